//! The hosts that install steps may reach: those of the registries that the operator's own tools name.
//!
//! Here: asking npm, yarn, uv and Python what they use, and the addresses in the answers. No host is spelled here: the
//! built-in ones are the tools' own. Not here: holding steps to them (crate `egress`).
//! Invariant: a source never adds a host.
//!
//! `CLAUDEMESH_REGISTRY_HOSTS=HOST[:PORT],…` adds those that no tool names, such as where a registry keeps its files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use wire::EgressRule;

use super::setting;
use super::tools::Tools;

/// For the answer of one tool, which may ask an index.
const ANSWER: Duration = Duration::from_secs(40);
/// An index keeps its files where it likes, and only it knows: Python reads one of its pages.
const ASK_INDEXES: &str = include_str!("indexes.py");

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registries {
    pub(crate) rules: Vec<EgressRule>,
    /// Every tool has answered; otherwise they are asked again before the next install.
    pub(crate) is_complete: bool,
}

impl Registries {
    /// Runs the operator's tools as they are configured, outside of any jail: nothing of a source is involved.
    pub(crate) async fn ask(tools: &Tools) -> Self {
        if !setting::about_proxy().is_empty() {
            tracing::warn!("the proxy of this runner's environment is used by no install and by no service");
        }
        let asker = Asker::new(tools);
        let (npm, yarn, python) = tokio::join!(asker.npm(), asker.yarn(), asker.python());
        let is_complete = npm.is_some() && yarn.is_some() && python.is_some();
        let urls = [npm, yarn, python].into_iter().flatten().flatten();
        let mut rules: BTreeSet<EgressRule> = urls.filter_map(|url| rule_of(&url)).collect();
        let more = std::env::var("CLAUDEMESH_REGISTRY_HOSTS").unwrap_or_default();
        for host in more.split([',', ' ']).filter(|host| !host.is_empty()) {
            match EgressRule::parse(host) {
                Ok(rule) => drop(rules.insert(rule)),
                Err(error) => tracing::warn!("CLAUDEMESH_REGISTRY_HOSTS: {error}"),
            }
        }
        Self { rules: rules.into_iter().collect(), is_complete }
    }
}

struct Asker<'a> {
    tools: &'a Tools,
    env: BTreeMap<OsString, OsString>,
}

impl<'a> Asker<'a> {
    fn new(tools: &'a Tools) -> Self {
        let mut env = setting::operators_own();
        env.insert("PATH".into(), tools.run_path(None).into());
        env.insert("LANG".into(), "C.UTF-8".into());
        env.extend(std::env::var_os("HOME").map(|home| ("HOME".into(), home)));
        Self { tools, env }
    }

    /// `None`: the tool is there and did not answer.
    async fn npm(&self) -> Option<Vec<String>> {
        let Ok(npm) = self.tools.get("npm") else { return Some(Vec::new()) };
        let text = self.run(&npm.path, &["config", "list", "--json"], None).await?;
        Some(npm_registries(&serde_json::from_str(&text).ok()?))
    }

    /// Yarn has a registry of its own; which of the two names the setting has depends on its age.
    async fn yarn(&self) -> Option<Vec<String>> {
        let Ok(yarn) = self.tools.get("yarn") else { return Some(Vec::new()) };
        for name in ["registry", "npmRegistryServer"] {
            let text = self.run(&yarn.path, &["config", "get", name], None).await.unwrap_or_default();
            let found: Vec<String> =
                text.lines().map(str::trim).filter(|l| host_of(l).is_some()).map(Into::into).collect();
            if !found.is_empty() {
                return Some(found);
            }
        }
        None
    }

    async fn python(&self) -> Option<Vec<String>> {
        let (Ok(python), Ok(uv)) = (self.tools.get("python"), self.tools.get("uv")) else {
            return Some(Vec::new());
        };
        let mut indexes = self.configured_indexes();
        if !indexes.has_default {
            let help = self.run(&uv.path, &["pip", "compile", "--help"], None).await?;
            indexes.urls.extend(default_in_help(&help));
        }
        // Without logins: an index that wants one keeps its files beside it, or the operator says where.
        let urls: Vec<String> = indexes.urls.iter().map(|url| setting::without_login(url)).collect();
        let question = json!({ "indexes": urls }).to_string();
        let text = self.run(&python.path, &["-I", "-c", ASK_INDEXES], Some(&question)).await;
        match text.and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok()) {
            Some(files) => Some([urls, files].concat()),
            None => {
                tracing::warn!("the Python indexes did not say where their files are; this is asked again");
                (!urls.is_empty()).then_some(urls)
            }
        }
    }

    fn configured_indexes(&self) -> Indexes {
        let mut indexes = Indexes::default();
        let value = |name: &str| self.env.get(&OsString::from(name)).and_then(|value| value.to_str());
        for (name, is_default) in [
            ("UV_DEFAULT_INDEX", true),
            ("UV_INDEX_URL", true),
            ("UV_INDEX", false),
            ("UV_EXTRA_INDEX_URL", false),
        ] {
            let words = value(name).unwrap_or_default().split_whitespace();
            // `name=URL` is a spelling of these.
            let urls = words.map(|word| match word.split_once('=') {
                Some((name, url)) if !name.contains(':') => url.to_owned(),
                _ => word.to_owned(),
            });
            indexes.note(urls, is_default);
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/uv/uv.toml"));
        for file in home.into_iter().chain([PathBuf::from("/etc/uv/uv.toml")]) {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if let Ok(table) = text.parse::<toml::Table>() {
                indexes.read(&table);
                if let Some(pip) = table.get("pip").and_then(toml::Value::as_table) {
                    indexes.read(pip);
                }
            }
        }
        indexes
    }

    async fn run(&self, program: &Path, args: &[&str], input: Option<&str>) -> Option<String> {
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&self.env).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let answer = async {
            let mut child = command.spawn().ok()?;
            let mut stdin = child.stdin.take()?;
            stdin.write_all(input.unwrap_or_default().as_bytes()).await.ok()?;
            drop(stdin);
            child.wait_with_output().await.ok()
        };
        let output = tokio::time::timeout(ANSWER, answer).await.ok()??;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[derive(Debug, Default)]
struct Indexes {
    urls: Vec<String>,
    has_default: bool,
}

impl Indexes {
    fn note(&mut self, urls: impl Iterator<Item = String>, is_default: bool) {
        for url in urls {
            self.has_default |= is_default;
            self.urls.push(url);
        }
    }

    /// Of a uv.toml, or its `pip` table.
    fn read(&mut self, table: &toml::Table) {
        let text = |value: &toml::Value| value.as_str().map(str::to_owned);
        self.note(table.get("index-url").and_then(text).into_iter(), true);
        let extra = table.get("extra-index-url").and_then(toml::Value::as_array);
        self.note(extra.into_iter().flatten().filter_map(text), false);
        for index in table.get("index").and_then(toml::Value::as_array).into_iter().flatten() {
            let is_default = index.get("default").and_then(toml::Value::as_bool).unwrap_or(false);
            self.note(index.get("url").and_then(text).into_iter(), is_default);
        }
    }
}

/// `registry`, and `@scope:registry` of every scope.
fn npm_registries(config: &Value) -> Vec<String> {
    let entries = config.as_object().into_iter().flatten();
    let named = entries.filter(|(name, _)| *name == "registry" || name.ends_with(":registry"));
    named.filter_map(|(_, url)| url.as_str().map(str::to_owned)).collect()
}

/// uv says its built-in index only in its help: `(by default: <URL>)`, perhaps wrapped.
fn default_in_help(help: &str) -> Option<String> {
    let words: Vec<&str> = help.split_whitespace().collect();
    let at = words.windows(2).position(|pair| pair[0].ends_with("default:") && pair[1].starts_with('<'))?;
    let url = words[at + 1].trim_start_matches('<').split('>').next()?;
    host_of(url).map(|_| url.to_owned())
}

fn host_of(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let default = match scheme {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    match host.rsplit_once(':') {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => (!host.is_empty()).then_some((host, default)),
    }
}

fn rule_of(url: &str) -> Option<EgressRule> {
    let (host, port) = host_of(url)?;
    EgressRule::parse(&format!("{host}:{port}"))
        .inspect_err(|error| tracing::warn!("a registry can not be used from a jail: {error}"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_s_address_becomes_a_rule_without_its_login() {
        let rule = |url| rule_of(url).map(|rule| rule.to_string());
        assert_eq!(rule("https://user:p@ss@npm.corp.example/a?b"), Some("npm.corp.example:443".into()));
        assert_eq!(rule("http://npm.corp.example:4873/"), Some("npm.corp.example:4873".into()));
        for none in ["https://127.0.0.1:4873/", "file:///etc", "https://", "undefined", "https://h:x/"] {
            assert_eq!(rule(none), None, "{none}");
        }
    }

    #[test]
    fn npm_names_one_registry_and_one_for_each_scope() {
        let config = json!({"registry": "https://a/", "@corp:registry": "https://b/", "registryx": "https://c/", "cache": "/x"});
        let mut found = npm_registries(&config);
        found.sort();
        assert_eq!(found, ["https://a/", "https://b/"]);
    }

    #[test]
    fn indexes_are_read_from_every_spelling_of_a_uv_toml() {
        let table: toml::Table =
            "extra-index-url = ['https://a/simple']\n[[index]]\nurl = 'https://b/simple'\n[[index]]\nurl = 'https://c/simple'\ndefault = true"
                .parse()
                .unwrap();
        let mut indexes = Indexes::default();
        indexes.read(&table);
        assert_eq!(indexes.urls, ["https://a/simple", "https://b/simple", "https://c/simple"]);
        assert!(indexes.has_default);
    }

    #[test]
    fn the_built_in_index_is_found_in_wrapped_help() {
        let help = "  -i  (Deprecated) The URL of the index (by\n      default: <https://index.example/simple>) [env: X]";
        assert_eq!(default_in_help(help).as_deref(), Some("https://index.example/simple"));
        assert_eq!(default_in_help("nothing"), None);
    }
}
