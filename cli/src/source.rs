//! What `deploy` is asked to host: one of the flags, a path, or the command that a README tells people to run.
//!
//! Here: reading `npx` and `uvx` command lines. Nothing of them is ever executed: the runner gets package, executable and
//! arguments apart.

use std::path::{Path, PathBuf};

use wire::spec::ArchiveFormat;

use crate::args::DeployArgs;
use crate::failure::Failure;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Npx { package: String, bin: Option<String>, args: Vec<String> },
    Uvx { package: String, bin: Option<String>, args: Vec<String> },
    Git { url: String, reference: Option<String>, subdir: Option<String> },
    Folder(PathBuf),
    Archive(PathBuf, ArchiveFormat),
}

const ALTERNATIVES: &str = "Host a package with `-- npx PACKAGE …` or `-- uvx PACKAGE …`, a repository with `--git URL`, \
                            your own code with a folder or a .zip: `claudemesh deploy NAME ./folder`.";

/// Exactly one source.
pub fn choose(deploy: &DeployArgs) -> Result<Wanted, Failure> {
    let command = (!deploy.command.is_empty()).then_some(());
    let given = [
        deploy.path.as_ref().map(|_| ()),
        deploy.uvx.as_ref().map(|_| ()),
        deploy.git.as_ref().map(|_| ()),
        command,
    ];
    match given.iter().flatten().count() {
        1 => {}
        0 => return Err(Failure::user("nothing to deploy").with_cure(ALTERNATIVES)),
        _ => return Err(Failure::user("name one source: a path, --uvx, --git or a command after `--`")),
    }
    let wanted = if let Some(package) = &deploy.uvx {
        Wanted::Uvx { package: package.clone(), bin: None, args: Vec::new() }
    } else if let Some(url) = &deploy.git {
        let (reference, subdir) = (deploy.reference.clone(), deploy.subdir.clone());
        Wanted::Git { url: url.clone(), reference, subdir }
    } else if let Some(path) = &deploy.path {
        by_path(path)?
    } else {
        by_command(&deploy.command)?
    };
    with_bin(wanted, deploy.bin.clone())
}

fn with_bin(wanted: Wanted, chosen: Option<String>) -> Result<Wanted, Failure> {
    match (wanted, chosen) {
        (wanted, None) => Ok(wanted),
        (Wanted::Npx { package, bin: None, args }, bin) => Ok(Wanted::Npx { package, bin, args }),
        (Wanted::Uvx { package, bin: None, args }, bin) => Ok(Wanted::Uvx { package, bin, args }),
        (Wanted::Npx { .. } | Wanted::Uvx { .. }, _) => {
            Err(Failure::user("the command names its executable already; leave --bin out"))
        }
        _ => Err(Failure::user("--bin is for packages; name the file to start with --entry")),
    }
}

pub fn by_path(path: &Path) -> Result<Wanted, Failure> {
    let found = std::fs::metadata(path)
        .map_err(|e| Failure::user(format!("cannot read {}: {e}", path.display())).with_cure(ALTERNATIVES))?;
    if found.is_dir() {
        return Ok(Wanted::Folder(path.to_owned()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let format = if name.ends_with(".zip") || name.ends_with(".mcpb") || name.ends_with(".dxt") {
        ArchiveFormat::Zip
    } else if name.ends_with(".tgz") || name.ends_with(".tar.gz") {
        ArchiveFormat::TarGz
    } else {
        let message = format!("{} is neither a folder nor a .zip, .mcpb or .tgz file", path.display());
        return Err(Failure::user(message).with_cure(ALTERNATIVES));
    };
    Ok(Wanted::Archive(path.to_owned(), format))
}

/// Reads the command as its own program would.
pub fn by_command(command: &[String]) -> Result<Wanted, Failure> {
    let (program, rest) = command.split_first().ok_or_else(|| Failure::user("nothing to deploy"))?;
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (program.as_str(), words.as_slice()) {
        ("npx", words) => npx(words),
        ("npm", ["exec" | "x", words @ ..]) | ("pnpm" | "yarn", ["dlx", words @ ..]) => npx(words),
        ("bunx", words) => npx(words),
        ("uvx", words) => uvx(words),
        ("uv", ["tool", "run", words @ ..]) | ("pipx", ["run", words @ ..]) => uvx(words),
        _ => {
            let message = format!(
                "`{program}` is not a command that can be hosted: the runner has neither your files nor your tools"
            );
            Err(Failure::user(message).with_cure(ALTERNATIVES))
        }
    }
}

/// `npx [-y] [-p PACKAGE] NAME args…`: without `-p`, NAME is the package.
fn npx(words: &[&str]) -> Result<Wanted, Failure> {
    let mut words = words;
    let mut package: Option<String> = None;
    while let [word, rest @ ..] = words
        && word.starts_with('-')
    {
        words = rest;
        match *word {
            "--" => break,
            "-y" | "--yes" | "-q" | "--quiet" | "--silent" => {}
            "-p" | "--package" => {
                let (value, rest) = value_of("npx", word, rest)?;
                once(&mut package, value)?;
                words = rest;
            }
            _ if word.starts_with("--package=") => once(&mut package, &word["--package=".len()..])?,
            _ => return Err(unknown_option("npx", word)),
        }
    }
    let (name, args) = split("npx", words)?;
    let bin = package.is_some().then(|| name.to_owned());
    let package = plain_package("npx", package.unwrap_or_else(|| name.to_owned()))?;
    Ok(Wanted::Npx { package, bin, args })
}

/// `uvx [--from PACKAGE] NAME args…`: without `--from`, NAME is the package.
fn uvx(words: &[&str]) -> Result<Wanted, Failure> {
    let mut words = words;
    let mut package: Option<String> = None;
    while let [word, rest @ ..] = words
        && word.starts_with('-')
    {
        words = rest;
        match *word {
            "--" => break,
            "-q" | "--quiet" | "--isolated" | "--no-config" => {}
            "--from" | "--spec" => {
                let (value, rest) = value_of("uvx", word, rest)?;
                once(&mut package, value)?;
                words = rest;
            }
            _ if word.starts_with("--from=") => once(&mut package, &word["--from=".len()..])?,
            _ => return Err(unknown_option("uvx", word)),
        }
    }
    let (name, args) = split("uvx", words)?;
    let bin = package.is_some().then(|| name.to_owned());
    let package = plain_package("uvx", package.unwrap_or_else(|| name.to_owned()))?;
    Ok(Wanted::Uvx { package, bin, args })
}

fn value_of<'a>(
    program: &str,
    option: &str,
    rest: &'a [&'a str],
) -> Result<(&'a str, &'a [&'a str]), Failure> {
    match rest {
        [value, rest @ ..] if !value.starts_with('-') => Ok((value, rest)),
        _ => Err(Failure::user(format!("`{program} {option}` needs a package"))),
    }
}

fn once(slot: &mut Option<String>, value: &str) -> Result<(), Failure> {
    match slot.replace(value.to_owned()) {
        None => Ok(()),
        Some(_) => Err(Failure::user("a service is one package; the command names two")),
    }
}

fn split(program: &str, words: &[&str]) -> Result<(String, Vec<String>), Failure> {
    match words {
        [name, args @ ..] if !name.is_empty() => {
            Ok(((*name).to_owned(), args.iter().map(|a| (*a).to_owned()).collect()))
        }
        _ => Err(Failure::user(format!("`{program}` without a package"))),
    }
}

/// A registry package; a path or a URL in its place would mean the deployer's machine, or git.
fn plain_package(program: &str, package: String) -> Result<String, Failure> {
    if package.starts_with("git+") || package.contains("://") || package.starts_with("github:") {
        let message = format!("`{program}` with a repository is not hosted");
        return Err(Failure::user(message)
            .with_cure("Deploy the repository itself: `claudemesh deploy NAME --git URL`."));
    }
    if package.starts_with(['.', '/', '~', '-']) {
        let message = format!("`{program} {package}` names a file of this machine");
        return Err(Failure::user(message).with_cure("Upload it: `claudemesh deploy NAME ./folder`."));
    }
    Ok(package)
}

fn unknown_option(program: &str, word: &str) -> Failure {
    let option = word.split('=').next().unwrap_or(word);
    Failure::user(format!("`{program} {option}` can not be hosted as it is")).with_cure(format!(
        "Write `-- {program} PACKAGE arguments…`; options of {program} itself are the runner's business."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Wanted, String> {
        by_command(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).map_err(|f| f.message)
    }

    fn parts(line: &str) -> (String, String, Option<String>, Vec<String>) {
        match read(line).unwrap_or_else(|e| panic!("{line}: {e}")) {
            Wanted::Npx { package, bin, args } => ("npx".into(), package, bin, args),
            Wanted::Uvx { package, bin, args } => ("uvx".into(), package, bin, args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_form_of_npx_and_uvx_is_read() {
        for (line, kind, package, bin, args) in [
            ("npx -y @scope/server-everything", "npx", "@scope/server-everything", None, ""),
            ("npx --yes pkg@1.2.3 stdio", "npx", "pkg@1.2.3", None, "stdio"),
            ("npx pkg -y --port 1", "npx", "pkg", None, "-y --port 1"),
            ("npx -y -p @a/b@^1 tool --x", "npx", "@a/b@^1", Some("tool"), "--x"),
            ("npx --package=@a/b -- tool", "npx", "@a/b", Some("tool"), ""),
            ("npx -- pkg -p x", "npx", "pkg", None, "-p x"),
            ("npm exec -- pkg --stdio", "npx", "pkg", None, "--stdio"),
            ("bunx pkg", "npx", "pkg", None, ""),
            ("pnpm dlx pkg a", "npx", "pkg", None, "a"),
            (
                "uvx mcp-server-time --local-timezone=UTC",
                "uvx",
                "mcp-server-time",
                None,
                "--local-timezone=UTC",
            ),
            ("uvx pkg@1.2", "uvx", "pkg@1.2", None, ""),
            ("uvx --from pkg[extra]==1.0 tool a", "uvx", "pkg[extra]==1.0", Some("tool"), "a"),
            ("uvx --from=pkg tool", "uvx", "pkg", Some("tool"), ""),
            ("uv tool run pkg", "uvx", "pkg", None, ""),
            ("pipx run --spec pkg tool", "uvx", "pkg", Some("tool"), ""),
        ] {
            let args: Vec<String> = args.split(' ').filter(|a| !a.is_empty()).map(str::to_owned).collect();
            assert_eq!(parts(line), (kind.into(), package.into(), bin.map(str::to_owned), args), "{line}");
        }
    }

    #[test]
    fn what_can_not_be_hosted_is_refused_with_a_reason() {
        for (line, word) in [
            ("node ./server.js", "node"),
            ("docker run -i x", "docker"),
            ("bash -c x", "bash"),
            ("npx", "without a package"),
            ("npx -y", "without a package"),
            ("npx -c evil", "-c"),
            ("npx --call=evil", "--call"),
            ("npx -p", "needs a package"),
            ("npx -p a -p b c", "names two"),
            ("npx ./local", "file of this machine"),
            ("npx github:a/b", "repository"),
            ("uvx --with x pkg", "--with"),
            ("uvx --from git+https://x/y tool", "repository"),
            ("uv run server.py", "uv"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(word), "{line}: {message}");
        }
    }

    #[test]
    fn bin_belongs_to_packages_that_do_not_name_one() {
        let npx = |bin: Option<&str>| Wanted::Npx {
            package: "p".into(),
            bin: bin.map(str::to_owned),
            args: vec![],
        };
        assert_eq!(with_bin(npx(None), Some("b".into())).unwrap(), npx(Some("b")));
        assert!(with_bin(npx(Some("a")), Some("b".into())).is_err());
        assert!(with_bin(Wanted::Folder("x".into()), Some("b".into())).is_err());
    }
}
