//! MCPB bundles: a zip whose `manifest.json` says how the server starts and what its user must give.
//!
//! Here: reading the manifest, filling its templates. Not here: unpacking, and installing what a bundle left out.
//! A value that the manifest asks its user for comes from the deploy: an environment variable of the same name, or
//! arguments of the deployer's own.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use wire::ErrorCode;

use super::error::PrepareError;
use super::launch::{DIR_MARK, Launch, Word};
use super::npm::inside;
use super::pypi::VENV;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Node,
    Python,
    Uv,
    Binary,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) server: Server,
    #[serde(default)]
    user_config: BTreeMap<String, UserValue>,
    #[serde(default)]
    compatibility: Compatibility,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Server {
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    #[serde(default)]
    entry_point: String,
    #[serde(default)]
    mcp_config: Command,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Command {
    command: Option<String>,
    args: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    platform_overrides: BTreeMap<String, Command>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct UserValue {
    #[serde(default)]
    title: String,
    #[serde(default)]
    required: bool,
    default: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Compatibility {
    #[serde(default)]
    platforms: Vec<String>,
}

/// The manifest, when the project is a bundle. Any other `manifest.json` (a browser extension's) is none.
pub(crate) fn read(project: &Path) -> Result<Option<Manifest>, PrepareError> {
    let Ok(text) = std::fs::read(project.join("manifest.json")) else { return Ok(None) };
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    let versioned = value.get("manifest_version").or(value.get("dxt_version")).is_some();
    if !versioned || !value["server"].is_object() {
        return Ok(None);
    }
    let manifest: Manifest = serde_json::from_value(value)
        .map_err(|e| entry_error(&format!("the bundle's manifest.json is not understood: {e}")))?;
    let platforms = &manifest.compatibility.platforms;
    let here = std::env::consts::OS.replace("macos", "darwin");
    if !platforms.is_empty() && !platforms.contains(&here) {
        let message = format!("the bundle is for {} only, and this runner is {here}", platforms.join(", "));
        return Err(PrepareError::new(ErrorCode::RuntimeMissing, message));
    }
    Ok(Some(manifest))
}

fn entry_error(message: &str) -> PrepareError {
    PrepareError::new(ErrorCode::EntryNotFound, message)
}

impl Manifest {
    /// Python bundles usually carry their libraries, and say so through `PYTHONPATH`.
    pub(crate) fn carries_libraries(&self) -> bool {
        self.server.mcp_config.env.contains_key("PYTHONPATH")
    }

    /// What the deploy's own settings make of the manifest. `project` is relative to the tree.
    pub(crate) fn launch(
        &self,
        tree: &Path,
        project: &str,
        env_names: &[String],
        has_args: bool,
    ) -> Result<(Launch, Vec<(String, String)>), PrepareError> {
        let dir = tree.join(project);
        let here = self.server.mcp_config.platform_overrides.get(std::env::consts::OS);
        let config = &self.server.mcp_config;
        let command = here.and_then(|o| o.command.as_deref()).or(config.command.as_deref());
        let args = here.and_then(|o| o.args.as_ref()).or(config.args.as_ref());
        let has_venv = tree.join(VENV).is_dir();
        let mut argv = self.program(command, &dir, project, has_venv)?;
        // `uv run …` would install at every start; its environment is ready, so the entry point is started instead.
        match args {
            Some(args) if self.server.kind != Kind::Uv => argv.extend(self.arguments(args, has_args)?),
            _ if self.server.kind != Kind::Binary => argv.push(self.entry(&dir, project)?),
            _ => {}
        }
        let mut env = config.env.clone();
        env.extend(here.map(|o| o.env.clone()).unwrap_or_default());
        Ok((Launch { name: "bundle".into(), argv }, self.environment(env, &dir, env_names)?))
    }

    fn program(
        &self,
        command: Option<&str>,
        dir: &Path,
        project: &str,
        has_venv: bool,
    ) -> Result<Vec<Word>, PrepareError> {
        let venv_python = || Word::Path(format!("{VENV}/bin/python"));
        let by_kind = match self.server.kind {
            Kind::Node => "node",
            Kind::Python | Kind::Uv => "python",
            Kind::Binary => self.server.entry_point.as_str(),
        };
        let command = match command {
            Some(command) if self.server.kind != Kind::Uv => command,
            _ => by_kind,
        };
        match command {
            "python" | "python3" if has_venv => return Ok(vec![venv_python()]),
            "python" | "python3" => return Ok(vec![Word::Tool("python".into())]),
            "node" | "bun" => return Ok(vec![Word::Tool(command.into())]),
            _ => {}
        }
        let file = command.strip_prefix(DIR_MARK).unwrap_or(command).trim_start_matches('/');
        let file = inside(dir, file).ok_or_else(|| {
            entry_error(&format!(
                "the bundle starts `{}`, which is neither a runtime nor a file in it; ask its author",
                command.escape_debug()
            ))
        })?;
        Ok(vec![Word::Path(joined(project, &file))])
    }

    fn entry(&self, dir: &Path, project: &str) -> Result<Word, PrepareError> {
        let file = inside(dir, &self.server.entry_point).ok_or_else(|| {
            entry_error(&format!("the bundle has no file `{}`", self.server.entry_point.escape_debug()))
        })?;
        Ok(Word::Path(joined(project, &file)))
    }

    /// Arguments that hang on an unset value are left out when the deployer gives arguments of their own.
    fn arguments(&self, args: &[String], has_args: bool) -> Result<Vec<Word>, PrepareError> {
        let mut words = Vec::new();
        for arg in args {
            if let Some(Value::Array(items)) = whole_key(arg).and_then(|key| self.default(key)) {
                words.extend(items.iter().filter_map(Value::as_str).map(|item| Word::Text(item.to_owned())));
                continue;
            }
            match self.fill(arg) {
                Ok(text) => words.push(Word::Text(text)),
                Err(key) if has_args || !self.is_required(key) => {}
                Err(key) => return Err(self.needs(key, "pass it after the deploy's `--args`")),
            }
        }
        Ok(words)
    }

    fn environment(
        &self,
        env: BTreeMap<String, String>,
        dir: &Path,
        env_names: &[String],
    ) -> Result<Vec<(String, String)>, PrepareError> {
        let mut out = Vec::new();
        for (name, template) in env {
            if env_names.contains(&name) {
                continue; // The deployer's own value wins.
            }
            match self.fill(&template) {
                Ok(text) => out.push((name, text.replace(DIR_MARK, &dir.to_string_lossy()))),
                Err(key) if self.is_required(key) => {
                    return Err(self.needs(key, &format!("deploy with `--env {name}=…`")));
                }
                Err(_) => {}
            }
        }
        Ok(out)
    }

    fn needs(&self, key: &str, cure: &str) -> PrepareError {
        let title = self.user_config.get(key).map(|v| v.title.as_str()).unwrap_or_default();
        let title: String = title.chars().filter(|c| !c.is_control()).take(80).collect();
        PrepareError::new(
            ErrorCode::InvalidArgs,
            format!("the bundle needs a value for `{key}` ({title}); {cure}"),
        )
    }

    fn is_required(&self, key: &str) -> bool {
        self.user_config.get(key).is_none_or(|value| value.required)
    }

    fn default(&self, key: &str) -> Option<&Value> {
        self.user_config.get(key)?.default.as_ref()
    }

    /// Fills `${user_config.x}` from defaults; the directory mark stays, because artefacts may move. `Err`: the key
    /// that has no value.
    fn fill<'t>(&self, template: &'t str) -> Result<String, &'t str> {
        let mut out = String::new();
        let mut rest = template;
        while let Some(at) = rest.find("${user_config.") {
            let (head, tail) = rest.split_at(at);
            out.push_str(head);
            let tail = &tail["${user_config.".len()..];
            let (key, after) = tail.split_once('}').unwrap_or((tail, ""));
            match self.default(key) {
                Some(Value::String(text)) => out.push_str(text),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => out.push_str(&value.to_string()),
                _ => return Err(key),
            }
            rest = after;
        }
        out.push_str(rest);
        Ok(out.replace("${/}", "/").replace("${pathSeparator}", "/"))
    }
}

fn whole_key(template: &str) -> Option<&str> {
    template.strip_prefix("${user_config.")?.strip_suffix('}').filter(|key| !key.contains('}'))
}

pub(crate) fn joined(project: &str, file: &str) -> String {
    if project.is_empty() { file.to_owned() } else { format!("{project}/{file}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle(server: Value, user_config: Value) -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("src/server")).unwrap();
        std::fs::write(dir.path().join("src/server/index.js"), "").unwrap();
        let manifest = json!({"manifest_version": "0.3", "server": server, "user_config": user_config});
        std::fs::write(dir.path().join("src/manifest.json"), manifest.to_string()).unwrap();
        let manifest = read(&dir.path().join("src")).unwrap().expect("a bundle");
        (dir, manifest)
    }

    fn node(args: Value, env: Value) -> Value {
        json!({"type": "node", "entry_point": "server/index.js",
               "mcp_config": {"command": "node", "args": args, "env": env}})
    }

    #[test]
    fn a_bundle_starts_what_its_manifest_says() {
        let server = node(
            json!(["${__dirname}/server/index.js", "--x=${user_config.x}"]),
            json!({"D": "${__dirname}/d"}),
        );
        let (dir, manifest) = bundle(server, json!({"x": {"default": 7}}));
        let (launch, env) = manifest.launch(dir.path(), "src", &[], false).unwrap();
        let text = |s: &str| Word::Text(s.into());
        assert_eq!(
            launch.argv,
            [Word::Tool("node".into()), text("${__dirname}/server/index.js"), text("--x=7")]
        );
        assert_eq!(env, [("D".into(), dir.path().join("src/d").to_string_lossy().into_owned())]);
    }

    #[test]
    fn a_missing_user_value_is_named_with_its_cure() {
        let server = node(json!(["${__dirname}/server/index.js"]), json!({"API_KEY": "${user_config.key}"}));
        let (dir, manifest) = bundle(server, json!({"key": {"required": true, "title": "API key"}}));
        let error = manifest.launch(dir.path(), "src", &[], false).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgs);
        assert!(
            error.to_string().contains("`key` (API key)") && error.to_string().contains("--env API_KEY=")
        );
        let (_, env) = manifest.launch(dir.path(), "src", &["API_KEY".into()], false).unwrap();
        assert!(env.is_empty(), "the deployer's value is not overwritten");
    }

    #[test]
    fn own_arguments_stand_in_for_unset_ones() {
        let server = node(json!(["${__dirname}/server/index.js", "${user_config.dirs}"]), json!({}));
        let (dir, manifest) = bundle(server.clone(), json!({"dirs": {"required": true}}));
        assert!(manifest.launch(dir.path(), "src", &[], false).is_err());
        assert_eq!(manifest.launch(dir.path(), "src", &[], true).unwrap().0.argv.len(), 2);
        let (dir, manifest) = bundle(server, json!({"dirs": {"default": ["/a", "/b"]}}));
        assert_eq!(manifest.launch(dir.path(), "src", &[], false).unwrap().0.argv.len(), 4);
    }

    #[test]
    fn a_command_outside_the_bundle_is_not_started() {
        for command in ["/bin/sh", "${__dirname}/../x", "npx", "sh"] {
            let server = json!({"type": "binary", "entry_point": "x", "mcp_config": {"command": command}});
            let (dir, manifest) = bundle(server, json!({}));
            let error = manifest.launch(dir.path(), "src", &[], false).unwrap_err();
            assert_eq!(error.code(), ErrorCode::EntryNotFound, "{command}");
        }
    }

    #[test]
    fn a_bundle_for_another_platform_is_refused_and_another_manifest_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let write =
            |value: Value| std::fs::write(dir.path().join("manifest.json"), value.to_string()).unwrap();
        write(
            json!({"manifest_version": "0.3", "server": {"type": "node"}, "compatibility": {"platforms": ["win32"]}}),
        );
        assert_eq!(read(dir.path()).unwrap_err().code(), ErrorCode::RuntimeMissing);
        write(json!({"manifest_version": 3, "name": "a browser extension"}));
        assert!(read(dir.path()).unwrap().is_none());
    }
}
