//! The pages about commands and variables say what the code does: no more, no less.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use crate::args::Cli;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    let path = workspace().join("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `--flags` of a text.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// The text below "### `claudemesh NAME …`", up to the next heading.
fn sections(page: &str) -> Vec<(String, String)> {
    page.split("\n#")
        .filter_map(|part| {
            let part = part.trim_start_matches('#').trim_start();
            let (heading, _) = part.strip_prefix("`claudemesh ")?.split_once('\n')?;
            let name = heading.split([' ', '`']).next()?.to_owned();
            Some((name, part.to_owned()))
        })
        .collect()
}

#[test]
fn every_command_and_flag_is_described_and_nothing_else() {
    let page = page("cli.md");
    let sections = sections(&page);
    let described: Vec<&str> = sections.iter().map(|(name, _)| name.as_str()).collect();
    let command = Cli::command();
    let known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(
        described.iter().copied().collect::<BTreeSet<_>>(),
        known.iter().copied().collect::<BTreeSet<_>>(),
        "the commands of docs/cli.md and of the code"
    );
    assert_eq!(described.len(), known.len(), "a command is described twice");
    let everywhere: BTreeSet<String> =
        ["mesh", "json", "quiet", "help", "version"].into_iter().map(str::to_owned).collect();
    for sub in command.get_subcommands() {
        let (_, text) = sections.iter().find(|(name, _)| name == sub.get_name()).expect("compared above");
        let mut wanted = BTreeSet::new();
        let mut allowed = everywhere.clone();
        // What a command does below its own name is described with it.
        let words = [sub].into_iter().chain(sub.get_subcommands());
        for arg in words.flat_map(clap::Command::get_arguments).filter(|arg| !arg.is_hide_set()) {
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            allowed.extend(names.iter().map(|name| (*name).to_owned()));
            wanted.extend(arg.get_long().filter(|long| !everywhere.contains(*long)).map(str::to_owned));
        }
        let found = flags(text);
        let missing: Vec<_> = wanted.difference(&found).collect();
        // What stands in a code block is an example line, which may hold flags of the hosted server.
        let prose: String = text.split("```").step_by(2).collect();
        let invented: Vec<_> = flags(&prose).difference(&allowed).cloned().collect();
        assert!(missing.is_empty(), "{}: docs/cli.md leaves out {missing:?}", sub.get_name());
        assert!(invented.is_empty(), "{}: docs/cli.md invents {invented:?}", sub.get_name());
    }
}

#[test]
fn every_exit_code_is_described() {
    let page = page("cli.md");
    for class in ["platform", "user", "denied", "service", "unavailable"] {
        assert!(page.contains(&format!("`{class}`")), "{class}");
    }
}

/// Names that the sources read: `env::var("X")`, `var_os("X")`, clap's `env = "X"`.
fn read_by(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for start in ["env::var(\"", "var_os(\"", "env = \""] {
        for rest in source.split(start).skip(1) {
            let name = rest.split('"').next().unwrap_or_default();
            if !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
            {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs")
            // The files of tests read what they like.
            && !path.ends_with("documentation.rs")
            && path.file_name().is_none_or(|name| name != "tests.rs")
        {
            found.push(path);
        }
    }
}

#[test]
fn every_environment_variable_is_described_and_nothing_else() {
    let mut read = BTreeSet::new();
    let mut files = Vec::new();
    for member in ["wire", "vault", "catalog", "broker", "runner", "jail", "egress", "client", "cli"] {
        sources(&workspace().join(member).join("src"), &mut files);
    }
    assert!(files.len() > 50, "the sources are not where this test looks");
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        // Unit tests stand at the end of a file.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        read.extend(read_by(code));
    }
    let page = page("env-vars.md");
    let described: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned))
        .collect();
    assert_eq!(described, read, "docs/env-vars.md (left) and the code (right)");
}

#[test]
fn the_search_for_variables_finds_every_way_of_reading_one() {
    let source = r#"env::var("A") std::env::var_os("B_2") #[arg(env = "C")] env::var(name) env!("D")"#;
    assert_eq!(read_by(source).into_iter().collect::<Vec<_>>(), ["A", "B_2", "C"]);
}
