//! `mesh_mcp_deploy`, `_update`, `_undeploy`: one frame, progress, and the last status.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::connection::DeployEvent;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use wire::peer::Body;
use wire::peer::hosting::{
    DeployConfig, DeploySource, McpDeploy, McpDeployProgress, McpDeployStatus, McpUndeploy, McpUpdate,
};
use wire::spec::Runtime;
use wire::{Scope, Secret, ServiceName};

use super::super::words::Refusal;
use super::super::{Mesh, Packed, passing, splice};
use super::Named;
use crate::front::Exchange;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deploy {
    server_name: String,
    npx_package: Option<String>,
    uvx_package: Option<String>,
    git_url: Option<String>,
    git_branch: Option<String>,
    subdir: Option<String>,
    path: Option<PathBuf>,
    file_id: Option<String>,
    bin: Option<String>,
    entry: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, Secret>,
    runtime: Option<Runtime>,
    memory_mb: Option<u32>,
    cpus: Option<f64>,
    network_allow: Option<Vec<String>>,
    #[serde(default)]
    allow_scripts: bool,
    idle_stop_s: Option<u32>,
    scope: Option<Scope>,
}

const SOURCES: &str = "give exactly one of npx_package, uvx_package, git_url, path and file_id";

/// A source, of which a path has yet to be uploaded.
enum Wanted {
    Ready(DeploySource),
    Path(PathBuf),
}

impl Deploy {
    fn source(&self) -> Result<Wanted, Refusal> {
        let given = [
            self.npx_package.is_some(),
            self.uvx_package.is_some(),
            self.git_url.is_some(),
            self.path.is_some(),
            self.file_id.is_some(),
        ];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(Refusal(format!("{SOURCES} (invalid_args)")));
        }
        let of_package = self.npx_package.is_some() || self.uvx_package.is_some();
        let of_git = self.git_url.is_some();
        for (field, is_given, fits) in [
            ("bin", self.bin.is_some(), of_package),
            ("entry", self.entry.is_some(), !of_package),
            ("runtime", self.runtime.is_some(), !of_package),
            ("git_branch", self.git_branch.is_some(), of_git),
            ("subdir", self.subdir.is_some(), of_git),
        ] {
            if is_given && !fits {
                return Err(Refusal(format!("`{field}` does not go with this source (invalid_args)")));
            }
        }
        let bin = self.bin.clone();
        Ok(Wanted::Ready(if self.npx_package.is_some() {
            DeploySource::Npx { package: self.npx_package.clone(), bin }
        } else if self.uvx_package.is_some() {
            DeploySource::Uvx { package: self.uvx_package.clone(), bin }
        } else if let Some(url) = self.git_url.clone() {
            let (reference, subdir) = (self.git_branch.clone(), self.subdir.clone());
            DeploySource::Git { url, reference, subdir, auth: None }
        } else if let Some(file_id) = self.file_id.clone() {
            DeploySource::Zip { file_id, format: None, label: None }
        } else {
            return self.path.clone().map(Wanted::Path).ok_or_else(|| Refusal(SOURCES.to_owned()));
        }))
    }

    fn frame(self, source: DeploySource, env_salt: Secret) -> McpDeploy {
        McpDeploy {
            server_name: self.server_name,
            source,
            config: DeployConfig {
                env: self.env,
                runtime: self.runtime,
                memory_mb: self.memory_mb,
                cpus: self.cpus,
                network_allow: self.network_allow,
                args: self.args,
                entry: self.entry,
                idle_stop_s: self.idle_stop_s,
                allow_scripts: self.allow_scripts,
                env_salt: Some(env_salt),
                ..DeployConfig::default()
            },
            scope: self.scope,
        }
    }
}

/// Tells the caller how far it is, if they want to know; package managers write more lines than anybody reads.
pub(super) struct Progress<'e> {
    exchange: &'e Exchange,
    count: u32,
    step: String,
    said: Option<Instant>,
}

const PROGRESS_EVERY: Duration = Duration::from_millis(250);
const MAX_LINE: usize = 300;

impl<'e> Progress<'e> {
    pub(super) fn of(exchange: &'e Exchange) -> Self {
        Self { exchange, count: 0, step: String::new(), said: None }
    }

    fn say(&mut self, step: &str, line: &str) {
        let is_soon = self.said.is_some_and(|said| said.elapsed() < PROGRESS_EVERY);
        if is_soon && self.step == step {
            return;
        }
        self.count += 1;
        step.clone_into(&mut self.step);
        self.said = Some(Instant::now());
        let message: String =
            wire::text::printable_line(&format!("{step}: {line}")).chars().take(MAX_LINE).collect();
        self.exchange.progress(self.count.into(), None, Some(&message));
    }
}

impl Mesh {
    pub(super) async fn deploy(&self, exchange: &Exchange, input: Deploy) -> Result<String, Refusal> {
        ServiceName::parse(&input.server_name)
            .map_err(|e| Refusal(format!("`server_name`: {e} (invalid_name)")))?;
        let mut progress = Progress::of(exchange);
        passing::link_up(&self.member.connection).await?;
        let source = match input.source()? {
            Wanted::Ready(source) => source,
            Wanted::Path(path) => self.upload(&path, &mut progress).await?,
        };
        let name = input.server_name.clone();
        let salt = self.member.entry.env_salt(&name).map_err(|e| Refusal(e.to_string()))?;
        let status = self.follow(&mut progress, &name, &input.frame(source, salt)).await?;
        if self.refresh_service(&name).await {
            self.tools_changed();
        }
        Ok(self.deployed(&name, &status))
    }

    async fn upload(&self, path: &Path, progress: &mut Progress<'_>) -> Result<DeploySource, Refusal> {
        progress.say("pack", &path.display().to_string());
        let (pack, from) = (self.hands.pack, path.to_owned());
        let packed = tokio::task::spawn_blocking(move || pack(&from)).await;
        let packed = packed.map_err(|e| Refusal(format!("packing failed: {e}")))?;
        let Packed { bytes, format } = packed.map_err(Refusal)?;
        progress.say("upload", &format!("{} bytes", bytes.len()));
        let uploaded = client::http::upload(&self.member.membership, bytes.into()).await?;
        let label = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(DeploySource::Zip { file_id: uploaded.file_id, format: Some(format), label })
    }

    /// Until the last status; `failed` is a refusal that says what still serves.
    async fn follow<B: Body + Serialize + Sync>(
        &self,
        progress: &mut Progress<'_>,
        name: &str,
        frame: &B,
    ) -> Result<McpDeployStatus, Refusal> {
        let refused = |error: client::ClientError| {
            let Refusal(mut text) = Refusal::of_client(&error, name);
            if error.is_link_loss() {
                text.push_str("\nThe broker carries on with what it accepted: look at mesh_mcp_catalog.");
            }
            Refusal(text)
        };
        let mut stream = self.member.connection.deploy(frame).await.map_err(refused)?;
        loop {
            match stream.next().await.map_err(refused)? {
                DeployEvent::Status(status) => progress.say(&status.status, name),
                DeployEvent::Progress(McpDeployProgress { step, line, .. }) => progress.say(&step, &line),
                DeployEvent::Done(status) if matches!(status.status.as_str(), "failed" | "crashed") => {
                    return Err(failed(name, &status));
                }
                DeployEvent::Done(status) => return Ok(status),
            }
        }
    }

    fn deployed(&self, name: &str, status: &McpDeployStatus) -> String {
        if status.status == "awaiting_consent" {
            return consent_words(name);
        }
        let pin =
            status.pin.as_ref().map(|pin| format!(" ({} {})", pin.name, pin.version)).unwrap_or_default();
        let tools = status.tools.as_deref().unwrap_or_default();
        let mut text = format!("{name} is {}{pin}, {} tools", status.status, tools.len());
        let service = ServiceName::parse(name).ok();
        for tool in tools.iter().take(50) {
            let Some(own) = splice::text_member(tool, "name") else { continue };
            let shown = service.as_ref().map_or_else(|| own.clone(), |s| catalog::names::svc_name(s, &own));
            let about = splice::text_member(tool, "description").unwrap_or_default();
            let about: String = about.lines().next().unwrap_or_default().chars().take(160).collect();
            text.push_str(&format!("\n- {shown}: {about}"));
        }
        text.push_str(&format!(
            "\nThese tools are callable now; a client that does not show them uses mesh_tool_call. A new service is private: \
             share it with mesh_mcp_scope {{\"server_name\":\"{name}\",\"scope\":\"mesh\"}}."
        ));
        text
    }

    pub(super) async fn update(&self, exchange: &Exchange, input: Named) -> Result<String, Refusal> {
        let Named { server_name } = input;
        let frame = McpUpdate { server_name: server_name.clone() };
        passing::link_up(&self.member.connection).await?;
        let status = self.follow(&mut Progress::of(exchange), &server_name, &frame).await?;
        if self.refresh_service(&server_name).await {
            self.tools_changed();
        }
        if status.status == "awaiting_consent" {
            return Ok(consent_words(&server_name));
        }
        let version = status.pin.map(|pin| format!(", version {}", pin.version)).unwrap_or_default();
        Ok(format!("{server_name} is {}{version}", status.status))
    }

    pub(super) async fn undeploy(&self, exchange: &Exchange, input: Named) -> Result<String, Refusal> {
        let Named { server_name } = input;
        let frame = McpUndeploy { server_name: server_name.clone() };
        passing::link_up(&self.member.connection).await?;
        self.follow(&mut Progress::of(exchange), &server_name, &frame).await?;
        if self.refresh_service(&server_name).await {
            self.tools_changed();
        }
        Ok(format!("{server_name} is removed, with its data"))
    }
}

/// Only a person agrees to open secrets, at a terminal where they see to what.
fn consent_words(name: &str) -> String {
    format!(
        "{name} is installed and waits for its owner's consent: it wants secrets of the vault. Ask the person to run \
         `claudemesh consent {name}` in a terminal, look at what it shows, and agree. It starts by itself then."
    )
}

fn failed(name: &str, status: &McpDeployStatus) -> Refusal {
    let Refusal(mut text) = match &status.reason {
        Some(reason) => Refusal::of_reason(reason, name),
        None => Refusal(status.error.clone().unwrap_or_else(|| "it failed without a reason".to_owned())),
    };
    text.insert_str(0, &format!("{name}: "));
    text.push_str(&match status.serving {
        Some(generation) => format!("\nGeneration {generation} of {name} still serves."),
        None => format!("\nNothing serves {name}."),
    });
    Refusal(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(text: &str) -> Deploy {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_deploy_has_exactly_one_source() {
        for bad in [
            r#"{"server_name":"a"}"#,
            r#"{"server_name":"a","npx_package":"x","git_url":"https://y"}"#,
            r#"{"server_name":"a","npx_package":"x","git_branch":"main"}"#,
            r#"{"server_name":"a","git_url":"https://y","bin":"x"}"#,
        ] {
            assert!(input(bad).source().is_err(), "{bad}");
        }
        let git = input(r#"{"server_name":"a","git_url":"https://y","git_branch":"dev","subdir":"s"}"#);
        assert!(
            matches!(git.source(), Ok(Wanted::Ready(DeploySource::Git { reference: Some(r), .. })) if r == "dev")
        );
        assert!(matches!(input(r#"{"server_name":"a","path":"./x"}"#).source(), Ok(Wanted::Path(_))));
    }

    #[test]
    fn every_setting_reaches_the_frame() {
        let input = input(
            r#"{"server_name":"a","npx_package":"x","bin":"b","args":["mcp"],"env":{"K":"$vault:k"},"memory_mb":128,
                "cpus":0.5,"network_allow":["x.org"],"allow_scripts":true,"idle_stop_s":60,"scope":{"group":"eng"}}"#,
        );
        let Ok(Wanted::Ready(source)) = input.source() else { panic!("a source") };
        let frame = input.frame(source, Secret::new("0123456789abcdef"));
        assert_eq!(
            serde_json::to_value(&frame).unwrap(),
            json!({ "server_name": "a", "source": { "type": "npx", "package": "x", "bin": "b" },
                "config": { "env": { "K": "$vault:k" }, "memory_mb": 128, "cpus": 0.5, "network_allow": ["x.org"],
                    "args": ["mcp"], "idle_stop_s": 60, "allow_scripts": true, "env_salt": "0123456789abcdef" },
                "scope": { "type": "group", "group": "eng" } })
        );
    }

    #[test]
    fn a_failure_says_what_still_serves() {
        let status: McpDeployStatus = serde_json::from_str(
            r#"{"server_name":"a","status":"failed","serving":2,"reason":{"code":"start_timeout","message":"no answer"}}"#,
        )
        .unwrap();
        let Refusal(text) = failed("a", &status);
        assert!(
            text.starts_with("a: no answer (start_timeout)")
                && text.ends_with("Generation 2 of a still serves."),
            "{text}"
        );
    }
}
