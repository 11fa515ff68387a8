//! What is started: argument vectors that are kept with an artefact, and the choice between a package's executables.
//!
//! Not here: how the executables of a package or project are found (`npm`, `pypi`, `entry`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::ErrorCode;

use super::error::PrepareError;
use super::tools::Tools;

/// In a [`Word::Text`], stands for the project directory; the spelling that MCPB bundles use.
pub(crate) const DIR_MARK: &str = "${__dirname}";

/// One argument. Artefacts and tools may move, so neither is stored as an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// A tool of the runner by name.
    Tool(String),
    /// A path inside the artefact, relative to its tree.
    Path(String),
    /// As it is; [`DIR_MARK`] is replaced.
    Text(String),
}

/// One way to start the artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Name of the executable, which `--bin` chooses by.
    pub(crate) name: String,
    pub(crate) argv: Vec<Word>,
}

impl Launch {
    /// The absolute argument vector, without the spec's own arguments.
    pub(crate) fn argv(
        &self,
        tree: &Path,
        project: &Path,
        tools: &Tools,
    ) -> Result<Vec<String>, PrepareError> {
        let words = self.argv.iter().map(|word| match word {
            Word::Tool(name) => Ok(tools.get(name)?.path.to_string_lossy().into_owned()),
            Word::Path(path) => Ok(tree.join(path).to_string_lossy().into_owned()),
            Word::Text(text) => Ok(text.replace(DIR_MARK, &project.to_string_lossy())),
        });
        words.collect()
    }
}

/// The executable that was asked for; else the only one; else the one named like the package.
pub(crate) fn choose<'a>(
    launches: &'a [Launch],
    wanted: Option<&str>,
    package: &str,
) -> Result<&'a Launch, PrepareError> {
    let names = || launches.iter().map(|l| format!("`{}`", l.name)).collect::<Vec<_>>().join(", ");
    let named = |name: &str| launches.iter().find(|l| l.name == name);
    if let Some(wanted) = wanted {
        return named(wanted).ok_or_else(|| {
            let has = if launches.is_empty() { "it has none".into() } else { format!("it has {}", names()) };
            PrepareError::new(
                ErrorCode::EntryNotFound,
                format!("the package has no executable `{wanted}`; {has}"),
            )
        });
    }
    match launches {
        [] => {
            let message = "the package has nothing to start: no executable and no main file";
            Err(PrepareError::new(ErrorCode::EntryNotFound, message))
        }
        [only] => Ok(only),
        // Several names of one program are no choice.
        [first, rest @ ..] if rest.iter().all(|l| l.argv == first.argv) => {
            Ok(named(package).unwrap_or(first))
        }
        _ => named(package).ok_or_else(|| {
            let message =
                format!("the package has several executables: {}; choose one with `--bin NAME`", names());
            PrepareError::new(ErrorCode::EntryAmbiguous, message)
        }),
    }
}

/// How a script is started: its `#!` line names a runtime of ours, or the kernel runs it.
pub(crate) fn script(tree: &Path, relative: &str) -> Result<Vec<Word>, PrepareError> {
    let file = tree.join(relative);
    let head = read_head(&file)?;
    let path = Word::Path(relative.to_owned());
    let text = |s: &str| Word::Text(s.to_owned());
    if let Some((program, flags)) = shebang(&head) {
        let runtime = match program.as_str() {
            "node" | "nodejs" => Some("node"),
            "bun" => Some("bun"),
            "python" | "python3" => Some("python"),
            _ => None,
        };
        return Ok(match runtime {
            Some(tool) => {
                let flags = flags.iter().map(|flag| text(flag));
                std::iter::once(Word::Tool(tool.into())).chain(flags).chain([path]).collect()
            }
            None => vec![path],
        });
    }
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let tool = match extension {
        "ts" | "mts" | "tsx" => "bun",
        "py" => "python",
        _ if head.starts_with(b"\x7fELF") => return Ok(vec![path]),
        _ => "node",
    };
    Ok(vec![Word::Tool(tool.into()), path])
}

fn read_head(file: &Path) -> Result<Vec<u8>, PrepareError> {
    use std::io::Read;
    let mut head = Vec::new();
    let read = std::fs::File::open(file).and_then(|f| f.take(512).read_to_end(&mut head));
    let name = PathBuf::from(file.file_name().unwrap_or_default());
    read.map_err(|_| {
        PrepareError::new(
            ErrorCode::EntryNotFound,
            format!("the file to start, `{}`, is not there", name.display()),
        )
    })?;
    Ok(head)
}

/// Program name and flags of a `#!` line; sees through `env`, `env -S` and its assignments.
fn shebang(head: &[u8]) -> Option<(String, Vec<String>)> {
    let line = head.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let mut program = base(words.next()?);
    if program == "env" {
        program = base(words.find(|word| !word.starts_with('-') && !word.contains('='))?);
    }
    Some((program, words.map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches(names: &[&str]) -> Vec<Launch> {
        names
            .iter()
            .map(|n| Launch { name: n.to_string(), argv: vec![Word::Path(format!("{n}.js"))] })
            .collect()
    }

    #[test]
    fn the_wanted_the_only_or_the_namesake_is_chosen() {
        let pick = |names: &[&str], wanted, package| {
            choose(&launches(names), wanted, package).map(|l| l.name.clone())
        };
        assert_eq!(
            pick(&["mcp-server-filesystem"], None, "server-filesystem").unwrap(),
            "mcp-server-filesystem"
        );
        assert_eq!(pick(&["a", "b"], None, "b").unwrap(), "b");
        assert_eq!(pick(&["a", "b"], Some("a"), "b").unwrap(), "a");
        let ambiguous = pick(&["a", "b"], None, "c").unwrap_err();
        assert_eq!(ambiguous.code(), ErrorCode::EntryAmbiguous);
        assert!(ambiguous.to_string().contains("`a`, `b`"), "{ambiguous}");
        let missing = pick(&["a"], Some("z"), "a").unwrap_err();
        assert_eq!(missing.code(), ErrorCode::EntryNotFound);
        assert_eq!(pick(&[], None, "a").unwrap_err().code(), ErrorCode::EntryNotFound);
    }

    #[test]
    fn two_names_of_one_program_are_not_ambiguous() {
        let same: Vec<Launch> = ["a", "b"].map(|n| Launch { name: n.into(), argv: vec![] }).into();
        assert_eq!(choose(&same, None, "x").unwrap().name, "a");
    }

    #[test]
    fn a_script_is_started_by_the_runtime_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let start = |name: &str, body: &str| {
            std::fs::write(dir.path().join(name), body).unwrap();
            script(dir.path(), name).unwrap()
        };
        let tool = |t: &str| Word::Tool(t.into());
        let path = |p: &str| Word::Path(p.into());
        assert_eq!(start("a.js", "#!/usr/bin/env node\n"), [tool("node"), path("a.js")]);
        assert_eq!(
            start("b", "#!/usr/bin/env -S node --no-warnings\n")[1],
            Word::Text("--no-warnings".into())
        );
        assert_eq!(start("c.mjs", "import x"), [tool("node"), path("c.mjs")]);
        assert_eq!(start("d", "#!/bin/sh\n"), [path("d")]);
        assert_eq!(start("e", "\x7fELF..."), [path("e")]);
        assert_eq!(start("f.ts", "x"), [tool("bun"), path("f.ts")]);
        assert!(script(dir.path(), "missing.js").is_err());
    }
}
