//! The MCP servers that this machine's clients are configured with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args::ClientName;
use crate::commands::agents::clients::{self, Client, Program, Style};
use crate::commands::agents::edit::Original;
use crate::commands::agents::text::Format;
use crate::failure::Failure;

/// Where an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub title: String,
    pub file: PathBuf,
    pub format: Format,
    pub style: Style,
    /// From the root of the file to the entry.
    pub path: Vec<String>,
    /// Whether other machines read this file, too.
    pub is_shared: bool,
    /// What relative paths start from.
    pub base: PathBuf,
}

impl Place {
    pub fn path(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Program(Program),
    Remote(String),
    Ours,
    /// Switched off in its client.
    Off,
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub kind: Kind,
    pub places: Vec<Place>,
}

/// All of them, the same server once; and what could not be read.
pub fn search(folder: &Path) -> Result<(Vec<Found>, Vec<Failure>), Failure> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in clients::ALL {
        let client = clients::client(name)?;
        match values(&client.file, client.format) {
            Ok(None) => {}
            Ok(Some(value)) => {
                of_map(&value, &[client.servers], &at(&client, folder), &mut found);
                if name == ClientName::ClaudeCode {
                    of_projects(&value, &client, &mut found);
                }
            }
            Err(failure) => failures.push(failure),
        }
    }
    let file = folder.join(".mcp.json");
    match values(&file, Format::Json) {
        Ok(None) => {}
        Ok(Some(value)) => {
            let place = Place {
                title: ".mcp.json".to_owned(),
                file,
                format: Format::Json,
                style: Style::Parts { has_type: true },
                path: Vec::new(),
                is_shared: true,
                base: folder.to_owned(),
            };
            of_map(&value, &["mcpServers"], &place, &mut found);
        }
        Err(failure) => failures.push(failure),
    }
    Ok((merged(found), failures))
}

fn values(file: &Path, format: Format) -> Result<Option<Value>, Failure> {
    let original = Original::read(file)?;
    if original.text.is_none() {
        return Ok(None);
    }
    Ok(Some(original.draft(format)?.document.value().clone()))
}

fn at(client: &Client, base: &Path) -> Place {
    Place {
        title: client.title.to_owned(),
        file: client.file.clone(),
        format: client.format,
        style: client.style,
        path: Vec::new(),
        is_shared: false,
        base: base.to_owned(),
    }
}

/// Claude Code keeps servers of one project in its own file.
fn of_projects(value: &Value, client: &Client, found: &mut Vec<Found>) {
    let projects = value.get("projects").and_then(Value::as_object).into_iter().flatten();
    for (folder, project) in projects {
        let mut place = at(client, Path::new(folder));
        place.title = format!("{} in {folder}", client.title);
        place.path = vec!["projects".to_owned(), folder.clone()];
        of_map(project, &["mcpServers"], &place, found);
    }
}

fn of_map(value: &Value, path: &[&str], place: &Place, found: &mut Vec<Found>) {
    let map = path.iter().try_fold(value, |value, key| value.get(key));
    for (name, entry) in map.and_then(Value::as_object).into_iter().flatten() {
        let mut place = place.clone();
        place.path.extend(path.iter().map(|key| (*key).to_owned()).chain([name.clone()]));
        found.push(Found { name: name.clone(), kind: kind(entry, place.style), places: vec![place] });
    }
}

fn kind(entry: &Value, style: Style) -> Kind {
    let flag = |name: &str| entry.get(name).and_then(Value::as_bool);
    if flag("enabled") == Some(false) || flag("disabled") == Some(true) {
        return Kind::Off;
    }
    let url = ["url", "httpUrl", "serverUrl"].into_iter().find_map(|name| entry.get(name)?.as_str());
    match (style.read(entry), url) {
        (Some(program), _) if program.is_ours() => Kind::Ours,
        (Some(program), _) => Kind::Program(program),
        (None, Some(url)) => Kind::Remote(url.to_owned()),
        (None, None) => Kind::Unreadable,
    }
}

/// One server that stands in several configurations is one.
fn merged(found: Vec<Found>) -> Vec<Found> {
    let mut merged: Vec<Found> = Vec::new();
    for one in found {
        let is_program = matches!(one.kind, Kind::Program(_));
        match merged.iter_mut().find(|other| is_program && other.kind == one.kind) {
            Some(other) => other.places.extend(one.places),
            None => merged.push(one),
        }
    }
    merged
}

/// The names of services: allowed, and each once.
pub fn service_names(found: &[Found]) -> Vec<String> {
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let named = found.iter().map(|one| {
        let name = service_name(&one.name);
        let n = used.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
        if *n == 1 { name } else { format!("{name}-{n}") }
    });
    named.collect()
}

fn service_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(allowed).take(40).collect();
    let name = name.trim_matches(['-', '_']);
    if name.is_empty() { "server".to_owned() } else { name.to_owned() }
}
