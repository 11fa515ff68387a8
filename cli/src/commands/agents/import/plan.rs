//! What can be done with a server that was found: hosted, and how; or left where it is, and why.
//!
//! Nothing of it is run or asked here.

use std::path::{Path, PathBuf};

use super::found::{Found, Kind, Place};
use crate::commands::agents::clients::Program;
use crate::commands::agents::secrets::{looks_random, looks_secret, sounds_secret};
use crate::source::by_command;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `npx …`, `uvx …`, as it stands.
    Package(Vec<String>),
    Folder {
        root: PathBuf,
        entry: Option<String>,
        args: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    /// As it stands in the configuration: it may name variables of its own.
    pub text: String,
    pub is_secret: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Host { source: Source, env: Vec<Variable> },
    Leave(String),
}

pub fn judge(found: &Found, home: Option<&Path>, service: &str, taken: &[String]) -> Verdict {
    let leave = |why: &str| Verdict::Leave(why.to_owned());
    let program = match &found.kind {
        Kind::Program(program) => program,
        Kind::Remote(_) => return leave("it runs elsewhere already"),
        Kind::Ours => return leave("it is claudemesh's own"),
        Kind::Off => return leave("it is switched off"),
        Kind::Unreadable => return leave("its entry says neither a command nor a URL"),
    };
    if taken.iter().any(|name| name == service) {
        return Verdict::Leave(format!(
            "the mesh has a service `{service}` already; if it is the same, put `claudemesh mcp --service {service}` there"
        ));
    }
    if let Some(argument) = secret_argument(&program.args) {
        return Verdict::Leave(format!(
            "its argument {argument} looks like a secret, and arguments are readable; deploy it by hand with a variable"
        ));
    }
    if let Some(what) = of_this_machine(program, home) {
        return Verdict::Leave(format!(
            "{what} is a path of this machine, which a hosted server does not see"
        ));
    }
    let base = found.places.first().map_or(Path::new("/"), |place| place.base.as_path());
    match source(program, base, home) {
        Ok(source) => Verdict::Host { source, env: variables(program) },
        Err(why) => Verdict::Leave(why),
    }
}

/// A server that works on this machine's files belongs on it.
fn of_this_machine(program: &Program, home: Option<&Path>) -> Option<String> {
    let is_local = |text: &str| {
        let path = absolute(Path::new(""), text, home);
        path.is_absolute() && path != Path::new("/") && path.exists()
    };
    // A script is not an argument: its folder goes with it.
    let runs_folder = |arg: &str| {
        is_script(arg)
            || program.args.iter().any(|arg| arg == "--directory" || arg == "--project")
                && is_project(Path::new(arg))
    };
    let arg = program.args.iter().position(|arg| {
        let value = arg.split_once('=').map_or(arg.as_str(), |(_, value)| value);
        is_local(value) && !runs_folder(value)
    });
    let variable = || program.env.iter().find(|(_, value)| is_local(value)).map(|(name, _)| name.clone());
    arg.map(|at| format!("its argument {}", at + 1)).or_else(variable)
}

fn variables(program: &Program) -> Vec<Variable> {
    let variable = |(name, text): &(String, String)| Variable {
        name: name.clone(),
        text: text.clone(),
        is_secret: !text.is_empty() && (sounds_secret(name) || looks_secret(text) || looks_random(text)),
    };
    program.env.iter().map(variable).collect()
}

fn source(program: &Program, base: &Path, home: Option<&Path>) -> Result<Source, String> {
    let name = Path::new(&program.command).file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_default();
    let words: Vec<String> = std::iter::once(name.clone()).chain(program.args.iter().cloned()).collect();
    let refused = match by_command(&words) {
        Ok(_) => return Ok(Source::Package(words)),
        Err(failure) => failure.message,
    };
    let args: Vec<&str> = program.args.iter().map(String::as_str).collect();
    match (name.as_str(), args.as_slice()) {
        ("docker" | "podman", _) => {
            Err("container images are not hosted; deploy the package that is in it".to_owned())
        }
        ("uv", ["--directory" | "--project", folder, "run", rest @ ..])
        | ("uv", ["run", "--directory" | "--project", folder, rest @ ..]) => {
            let root = absolute(base, folder, home);
            let (entry, args) = match rest.split_first() {
                Some((first, rest)) if first.ends_with(".py") => (Some((*first).to_owned()), rest),
                // A script of the project: its only one is found by itself.
                Some((_, rest)) => (None, rest),
                None => (None, rest),
            };
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            project(&root).map(|root| Source::Folder { root, entry, args })
        }
        ("node" | "bun" | "python" | "python3" | "tsx" | "deno", [first, rest @ ..])
            if !first.starts_with('-') && *first != "run" =>
        {
            of_script(&absolute(base, first, home), rest, home)
        }
        _ if Path::new(&program.command).is_absolute() && is_script(&program.command) => {
            of_script(Path::new(&program.command), &args, home)
        }
        _ => Err(refused),
    }
}

fn is_script(path: &str) -> bool {
    [".js", ".mjs", ".cjs", ".ts", ".py"].iter().any(|end| path.ends_with(end))
}

fn of_script(script: &Path, rest: &[&str], home: Option<&Path>) -> Result<Source, String> {
    let missing = || format!("{} is not there", script.display());
    let script = script.canonicalize().map_err(|_| missing())?;
    let folders = script.ancestors().skip(1).take_while(|folder| Some(*folder) != home);
    let root = folders.into_iter().find(|folder| is_project(folder)).ok_or_else(|| {
        format!("no package.json or pyproject.toml is above {}; make it a project", script.display())
    })?;
    let entry = script.strip_prefix(root).map_err(|_| missing())?;
    let entry = entry.to_str().ok_or("its path is not UTF-8")?.to_owned();
    let args = rest.iter().map(|arg| (*arg).to_owned()).collect();
    Ok(Source::Folder { root: root.to_owned(), entry: Some(entry), args })
}

fn is_project(folder: &Path) -> bool {
    ["package.json", "pyproject.toml", "requirements.txt"].iter().any(|name| folder.join(name).is_file())
}

fn project(root: &Path) -> Result<PathBuf, String> {
    if is_project(root) { Ok(root.to_owned()) } else { Err(format!("{} is no project", root.display())) }
}

fn absolute(base: &Path, path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/").or(path.strip_prefix("${HOME}/")), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => base.join(path.strip_prefix("${workspaceFolder}/").unwrap_or(path)),
    }
}

/// The name of an option whose value would be readable by everybody who sees the service.
fn secret_argument(args: &[String]) -> Option<String> {
    let option = |arg: &str| arg.starts_with('-') && sounds_secret(arg.split('=').next().unwrap_or(arg));
    args.iter().enumerate().find_map(|(at, arg)| {
        let name = arg.split('=').next().unwrap_or_default();
        let has_value = arg.contains('=') || args.get(at + 1).is_some_and(|next| !next.starts_with('-'));
        if option(arg) && has_value {
            return Some(name.to_owned());
        }
        // Its own text may be the secret, or name one.
        let names_secret = (arg.contains("${") || arg.contains("{env:")) && sounds_secret(arg);
        let value = arg.split_once('=').map_or(arg.as_str(), |(_, value)| value);
        (looks_secret(value) || names_secret).then(|| format!("number {}", at + 1))
    })
}

/// `Claude Code, Cursor`.
pub fn places(places: &[Place]) -> String {
    let mut titles: Vec<&str> = places.iter().map(|place| place.title.as_str()).collect();
    titles.dedup();
    titles.join(", ")
}

#[cfg(test)]
mod tests;
