//! Servers to deploy: folders, archives and bundles made of `tests/fixtures`.

use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub const PYTHON: &str = include_str!("../fixtures/python/server.py");
/// Tells the digests of secrets that it was given.
pub const KEEPER: &str = include_str!("../fixtures/python/keeper.py");
/// Gives its secrets away wherever a server can speak.
pub const LEAKY: &str = include_str!("../fixtures/python/leaky.py");
/// As [`KEEPER`], in Node.
pub const NODE_KEEPER: &str = include_str!("../fixtures/node/keeper.js");
pub const NODE: &str = include_str!("../fixtures/node/index.js");
pub const NODE_PACKAGE: &str = include_str!("../fixtures/node/package.json");

/// Writes files, with the folders that they need. What is there already is left alone: somebody may be packing it.
pub fn write_tree(root: &Path, files: &[(&str, &str)]) -> PathBuf {
    for (name, text) in files {
        let path = root.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|known| known == *text) {
            continue;
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root.to_owned()
}

pub fn python_folder(root: &Path) -> PathBuf {
    write_tree(root, &[("server.py", PYTHON)])
}

pub fn keeper_folder(root: &Path) -> PathBuf {
    write_tree(root, &[("server.py", KEEPER)])
}

pub fn node_folder(root: &Path) -> PathBuf {
    write_tree(root, &[("index.js", NODE), ("package.json", NODE_PACKAGE)])
}

/// A Node project that can only start once its (local) dependency is installed from its lock and its build has run: half
/// an install does not serve. `mark` goes into the source, for a content of its own. Has the tool `sleep` too.
pub fn built_folder(root: &Path, mark: &str) -> PathBuf {
    let dependency = json!({ "local": "file:./local" });
    let package = json!({
        "name": "built", "version": "1.0.0", "private": true, "type": "module", "main": "built.js",
        "scripts": { "build": "node make.js" }, "dependencies": dependency,
    });
    let lock = json!({
        "name": "built", "version": "1.0.0", "lockfileVersion": 3, "requires": true,
        "packages": {
            "": { "name": "built", "version": "1.0.0", "dependencies": dependency },
            "local": { "version": "1.0.0" },
            "node_modules/local": { "resolved": "local", "link": true },
        },
    });
    let make = "import 'local';\nimport { copyFileSync } from 'node:fs';\ncopyFileSync('src/server.js', 'built.js');\n";
    let local = json!({ "name": "local", "version": "1.0.0", "type": "module", "main": "index.js" });
    let sleep = "const cell = new Int32Array(new SharedArrayBuffer(4));\n\
        export const sleep = ({ ms }) => (Atomics.wait(cell, 0, 0, ms), 'slept');\n";
    let server = NODE.replacen("  echo:", "  sleep,\n  echo:", 1);
    let server = format!("// {mark}\nimport {{ sleep }} from 'local';\n{server}");
    write_tree(
        root,
        &[
            ("package.json", &package.to_string()),
            ("package-lock.json", &lock.to_string()),
            ("make.js", make),
            ("local/package.json", &local.to_string()),
            ("local/index.js", sleep),
            ("src/server.js", &server),
        ],
    )
}

pub fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An `.mcpb`: a zip with a manifest that names the entry point and an argument.
pub fn mcpb(version: &str) -> Vec<u8> {
    let manifest = json!({
        "manifest_version": "0.3", "name": "bundle", "version": "1.0.0", "description": "a bundle",
        "author": { "name": "tests" },
        "server": {
            "type": "node", "entry_point": "server/index.js",
            "mcp_config": { "command": "node", "args": ["${__dirname}/server/index.js", version], "env": {} },
        },
    });
    let manifest = manifest.to_string();
    zip_of(&[
        ("manifest.json", manifest.as_bytes()),
        ("server/index.js", NODE.as_bytes()),
        ("server/package.json", NODE_PACKAGE.as_bytes()),
    ])
}

/// A gzipped tar whose entries are written as they are, however hostile.
pub fn raw_tar_gz(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(encoder);
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        // `set_path` refuses what we need to write.
        let bytes = name.as_bytes();
        header.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let is_file = *kind == tar::EntryType::Regular;
        if !is_file {
            header.set_link_name_literal(content).unwrap();
        }
        let body = if is_file { content.as_bytes() } else { b"" };
        header.set_size(body.len() as u64);
        header.set_cksum();
        tar.append(&header, body).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// A small zip that unpacks to `mib` MiB of zeros.
pub fn bomb(mib: usize) -> Vec<u8> {
    let zeros = vec![0_u8; mib << 20];
    zip_of(&[("server.py", b"pass"), ("zeros", &zeros)])
}

/// The text of a tool result.
pub fn text(result: &Value) -> String {
    let parts = result["content"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
}
