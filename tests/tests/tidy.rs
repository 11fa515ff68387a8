//! Rules that the compiler does not keep: who may depend on whom, where SQL and `unsafe` live, sizes, documents.
//!
//! `UPDATE=1 cargo test -p tests --test tidy` writes the generated documents anew.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// ARCHITECTURE.md, "Crates". Test crates may use everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("cli", &["mcp", "client", "broker", "runner", "jail", "vault", "wire"]),
    ("mcp", &["client", "catalog", "wire"]),
    ("client", &["wire", "vault"]),
    ("broker", &["catalog", "vault", "wire"]),
    ("runner", &["wire", "vault", "jail"]),
    ("catalog", &["wire"]),
    ("vault", &["wire"]),
    ("jail", &[]),
    ("wire", &[]),
];
const MAX_LINES: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.path.split('/').any(|part| part == "tests")
            || name == "tests.rs"
            || name.ends_with("_tests.rs")
            || self.path.starts_with("bench/")
    }

    /// Without the unit tests at the end.
    fn product(&self) -> &str {
        let inline = self.text.find("\n#[cfg(test)]\nmod tests {");
        // A declaration counts only where nothing follows it.
        let declared =
            self.text.trim_end().ends_with("mod tests;").then(|| self.text.rfind("\n#[cfg(test)]")).flatten();
        &self.text[..inline.or(declared).unwrap_or(self.text.len())]
    }

    /// Lines of code: comments left out, so that a rule may be named where it is explained.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.product().lines().enumerate();
        lines.filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(n, line)| (n + 1, line))
    }
}

fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root().to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = !["target", "node_modules", ".git", ".tools"].contains(&name.as_str());
            if path.is_dir() && is_ours {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).unwrap(),
        path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(),
    };
    let all: Vec<_> = files(&["rs"]).into_iter().map(read).collect();
    assert!(all.len() > 60, "the walk finds the sources");
    all
}

/// Fails with every place where a rule is broken.
fn refuse(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

fn manifest(name: &str) -> toml::Table {
    fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap().parse().unwrap()
}

#[test]
fn only_the_arrows_of_the_architecture_exist() {
    let ours: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let mut breaches = Vec::new();
    for (name, allowed) in ARROWS {
        for table in ["dependencies", "build-dependencies"] {
            let table = manifest(name).get(table).and_then(|t| t.as_table().cloned()).unwrap_or_default();
            let used = table.keys().filter(|used| ours.contains(used.as_str()));
            breaches.extend(used.filter(|u| !allowed.contains(&u.as_str())).map(|u| format!("{name} → {u}")));
        }
    }
    refuse("forbidden arrows between crates", breaches);
}

#[test]
fn jail_wire_vault_and_catalog_know_no_runtime_and_no_database() {
    let forbidden = ["tokio", "sqlx", "axum", "reqwest", "rmcp", "tracing"];
    let mut breaches = Vec::new();
    for name in ["jail", "wire", "vault", "catalog"] {
        let table = manifest(name)["dependencies"].as_table().cloned().unwrap();
        breaches
            .extend(forbidden.iter().filter(|d| table.contains_key(**d)).map(|d| format!("{name} → {d}")));
    }
    refuse("crates that do no I/O", breaches);
    assert!(
        !manifest("runner")["dependencies"].as_table().unwrap().contains_key("sqlx"),
        "the runner knows no SQL"
    );
}

#[test]
fn every_crate_takes_version_and_lints_from_the_workspace() {
    let members = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse::<toml::Table>().unwrap();
    for member in members["workspace"]["members"].as_array().unwrap() {
        let name = member.as_str().unwrap();
        let manifest = manifest(name);
        assert_eq!(manifest["package"]["publish"]["workspace"].as_bool(), Some(true), "{name}");
        // The jail lists its lints itself, because it alone may hold `unsafe`.
        let lints = &manifest["lints"];
        assert!(lints.get("workspace").is_some() || name == "jail", "{name}: workspace lints");
    }
}

#[test]
fn unsafe_code_lives_in_the_jail_only_and_each_block_says_why_it_is_sound() {
    let mut breaches = Vec::new();
    for source in sources() {
        for (n, line) in source.code_lines() {
            let opens =
                line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl");
            if opens && !source.path.starts_with("jail/") && !source.is_test() {
                breaches.push(format!("{}:{n}", source.path));
            }
        }
    }
    refuse("`unsafe` outside jail/", breaches);
}

#[test]
fn sql_lives_in_the_store_only() {
    let verbs =
        ["\"SELECT ", "\"INSERT INTO ", "\"UPDATE ", "\"DELETE FROM ", "\"CREATE TABLE ", "sqlx::query"];
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|s| !s.path.starts_with("broker/src/store") && !s.is_test()) {
        let hits = source.code_lines().filter(|(_, line)| verbs.iter().any(|verb| line.contains(verb)));
        breaches.extend(hits.map(|(n, _)| format!("{}:{n}", source.path)));
    }
    refuse("SQL outside broker/src/store", breaches);
}

#[test]
fn no_command_is_a_shell_string() {
    let shells =
        ["\"sh\"", "\"bash\"", "\"dash\"", "\"zsh\"", "\"/bin/sh\"", "\"/bin/bash\"", "\"-c\"", "\"-lc\""];
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        let hits = source.code_lines().filter(|(_, line)| shells.iter().any(|shell| line.contains(shell)));
        // `python -I -c` with a program text of ours is an argument vector, not a shell. Nor is a pattern that reads a flag of
        // Claude Code or the ending of a file's name.
        let words = [r#""-I", "-c""#, r#""--continue" | "-c""#, r#""ts" | "sh""#];
        let hits = hits.filter(|(_, line)| !words.iter().any(|words| line.contains(words)));
        breaches.extend(hits.map(|(n, _)| format!("{}:{n}", source.path)));
    }
    refuse("shell strings", breaches);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut breaches = Vec::new();
    for source in sources() {
        let lines = source.product().lines().count();
        if lines > MAX_LINES && !source.is_test() {
            breaches.push(format!("{} has {lines} lines without its tests", source.path));
        }
        if !source.text.starts_with("//!") {
            breaches.push(format!("{} does not start with `//!`", source.path));
        }
    }
    refuse("file shape", breaches);
}

#[test]
fn no_test_is_switched_off_and_no_work_is_left_as_a_stub() {
    // Put together here, so that this file does not break its own rule.
    let marks = ["#[ign", "tod", "unimple", "#[all"];
    let ends = ["ore", "o!(", "mented!(", "ow("];
    let marks: Vec<String> = marks.iter().zip(ends).map(|(a, b)| format!("{a}{b}")).collect();
    let mut breaches = Vec::new();
    for source in sources() {
        for (n, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                breaches.push(format!("{}:{} {}", source.path, n + 1, line.trim()));
            }
        }
    }
    refuse("switched off, stubbed or allowed", breaches);
}

#[test]
fn tasks_have_somebody_who_awaits_them() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test()) {
        let hits = source.code_lines().filter(|(_, line)| line.contains("tokio::spawn("));
        breaches.extend(hits.map(|(n, _)| format!("{}:{n}", source.path)));
    }
    refuse("bare tokio::spawn", breaches);
}

#[test]
fn migrations_are_pairs_with_a_reason() {
    let names = |dialect: &str| -> BTreeMap<String, String> {
        let dir = root().join("migrations").join(dialect);
        let files = fs::read_dir(dir).unwrap().flatten();
        files.map(|f| (f.file_name().into_string().unwrap(), fs::read_to_string(f.path()).unwrap())).collect()
    };
    let (sqlite, postgres) = (names("sqlite"), names("postgres"));
    assert!(!sqlite.is_empty(), "there are migrations");
    assert_eq!(sqlite.keys().collect::<Vec<_>>(), postgres.keys().collect::<Vec<_>>());
    for (name, text) in sqlite.iter().chain(&postgres) {
        assert!(text.starts_with("--"), "{name} starts with a comment that says why");
    }
}

#[test]
fn nothing_names_a_package_registry_or_the_machine_it_was_written_on() {
    // In halves, so that this file does not hold what it looks for.
    let hosts = [
        ("registry.npm", "js.org"),
        ("pypi", ".org"),
        ("registry.yarn", "pkg.com"),
        ("files.python", "hosted.org"),
    ];
    let places = [("/wo", "rk/"), (".libr", "ary")];
    let words: Vec<String> = hosts.iter().chain(&places).map(|(a, b)| format!("{a}{b}")).collect();
    let mut breaches = Vec::new();
    for path in files(&["rs", "toml", "md", "sh", "py", "js", "json", "yml", "sql"]) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let hits = words.iter().filter(|word| text.contains(word.as_str()));
        breaches.extend(hits.map(|word| format!("{} names {word}", path.display())));
    }
    refuse("registry hosts and foreign paths", breaches);
}

fn errors_page() -> String {
    let mut page = String::from(
        "# Errors\n\n\
         Generated from `wire/src/error.rs` by `UPDATE=1 cargo test -p tests --test tidy`; a test keeps it true.\n\n\
         A code is a public contract: messages may change, codes do not. Frames carry it as `error.code` (or `code` in a\n\
         call's result), HTTP answers with the status, the command line exits with the exit code.\n\n\
         | exit code | class | whose turn it is |\n|---|---|---|\n\
         | 0 | | it worked |\n\
         | 1 | platform | claudemesh itself failed: report it with the quoted id |\n\
         | 2 | user | the request was wrong: change it |\n\
         | 3 | denied | no such thing for you |\n\
         | 4 | service | the hosted server, its package or its repository failed |\n\
         | 5 | unavailable | try again later |\n\n\
         | code | HTTP | exit | class | cause | cure |\n|---|---|---|---|---|---|\n",
    );
    for code in wire::ErrorCode::ALL {
        let (status, class) = (code.http_status(), code.class());
        let (cause, cure) = (code.cause().replace('|', "\\|"), code.cure().replace('|', "\\|"));
        let _ = writeln!(
            page,
            "| `{code}` | {status} | {} | {} | {cause} | {cure} |",
            class.exit_code(),
            class.as_str()
        );
    }
    page
}

#[test]
fn the_page_of_errors_is_the_table_in_the_code() {
    let path = root().join("docs/errors.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, errors_page()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == errors_page(),
        "docs/errors.md is out of date: run UPDATE=1 cargo test -p tests --test tidy"
    );
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut breaches = Vec::new();
    for path in files(&["md"]) {
        let text = fs::read_to_string(&path).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in
            targets.filter(|t| !t.contains("://") && !t.starts_with('#') && !t.starts_with("mailto:"))
        {
            let file = target.split('#').next().unwrap_or_default();
            if !path.parent().unwrap().join(file).exists() {
                breaches.push(format!("{} → {target}", path.display()));
            }
        }
    }
    refuse("dead links", breaches);
}
