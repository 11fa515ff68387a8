//! The broker role: alone, or as the part of `up` that others reach.

use std::net::SocketAddr;
use std::path::Path;

use broker::{App, Config, Limits, RunnerLink};
use client::MeshEntry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use wire::Secret;

use super::data::given_roots;
use super::logging::{self, Chatter};
use super::owner::{Owner, OwnerFiles};
use crate::args::{BrokerArgs, LimitArgs};
use crate::env;
use crate::failure::Failure;
use crate::here::Here;
use crate::settings::secret_file;

pub async fn broker(here: &Here, args: BrokerArgs) -> Result<u8, Failure> {
    logging::start(Chatter::Lifecycle, args.json_logs);
    let database_url = database_of(args.database_url_file.as_deref())?.ok_or_else(|| {
        Failure::user("a broker needs a database: DATABASE_URL or --database-url-file")
            .with_cure("Use sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME.")
    })?;
    let at_rest_roots = given_roots(&args.key)?;
    if at_rest_roots.is_empty() {
        let needed = "a broker needs the key of its stored secrets: BROKER_ENCRYPTION_KEY or --key-file";
        return Err(
            Failure::user(needed).with_cure("Make one: head -c 32 /dev/urandom | xxd -p -c 64 > broker.key")
        );
    }
    let config = Config {
        listen: args.listen,
        database_url: database_url.expose().to_owned(),
        runner: runner_link(&args)?,
        at_rest_roots,
        public_url: args.public_url.clone().unwrap_or_default(),
        limits: limits(&args.limits),
        expected_migration: args.expected_migration.clone(),
    };
    let app = App::build(config).await.map_err(not_built)?;
    if let Some(name) = &args.bootstrap {
        let files = OwnerFiles::in_folder(&here.config_folder);
        let owner = files.owner(here, Some(name))?;
        let url = args.public_url.unwrap_or_else(|| local_url(app.addr()));
        let entry = first_mesh(here, &app, &files, owner, &url).await?;
        info!("mesh {} ({}) is here", entry.slug, entry.mesh_id);
    }
    run(app).await
}

/// DATABASE_URL, or what the file holds.
pub fn database_of(file: Option<&Path>) -> Result<Option<Secret>, Failure> {
    match (env::database_url(), file) {
        (Some(_), Some(_)) => Err(Failure::user("both DATABASE_URL and a file are given; use one")),
        (Some(url), None) => Ok(Some(url)),
        (None, Some(path)) => secret_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

fn runner_link(args: &BrokerArgs) -> Result<RunnerLink, Failure> {
    if let Some(path) = args.runner.strip_prefix("unix:") {
        return Ok(RunnerLink::Unix(path.into()));
    }
    if !args.runner.starts_with("http://") && !args.runner.starts_with("https://") {
        return Err(Failure::user("--runner is unix:PATH or http://HOST:PORT"));
    }
    let file = args.runner_token_file.as_deref();
    let file = file.ok_or_else(|| Failure::user("a runner on TCP needs its token: --runner-token-file"))?;
    Ok(RunnerLink::Http { url: args.runner.trim_end_matches('/').to_owned(), token: secret_file(file)? })
}

/// Makes the owner's mesh, unless it is there, and writes the membership into the config.
pub async fn first_mesh(
    here: &Here,
    app: &App,
    files: &OwnerFiles,
    owner: Owner,
    broker_url: &str,
) -> Result<MeshEntry, Failure> {
    let mesh = broker::bootstrap(&app.broker().store, &owner.slug, &owner.pubkey, &owner.display_name)
        .await
        .map_err(|e| Failure::platform(format!("cannot make the mesh: {e}")))?;
    files.finish(here, owner, mesh, broker_url)
}

pub fn limits(args: &LimitArgs) -> Limits {
    Limits {
        max_connections_per_mesh: args.max_connections,
        max_message_bytes: args.max_message_bytes,
        max_services_per_mesh: args.max_services,
        max_upload_bytes: args.max_upload_bytes,
        ..Limits::default()
    }
}

/// As this machine reaches it: an address that stands for all is replaced by the loopback.
pub fn local_url(addr: SocketAddr) -> String {
    let mut addr = addr;
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("ws://{addr}/ws")
}

pub fn not_built(error: broker::BuildError) -> Failure {
    Failure::platform(format!("the broker does not start: {error}"))
}

/// The first SIGINT or SIGTERM ends it in order, the second at once.
async fn run(app: App) -> Result<u8, Failure> {
    let ending = CancellationToken::new();
    let mut signals = Signals::install()?;
    let running = app.run(ending.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return Err(ended_alone(ended)),
        () = signals.next() => ending.cancel(),
    }
    tokio::select! {
        ended = running => ended.map(|()| 0).map_err(|e| Failure::platform(format!("the broker failed: {e}"))),
        () = signals.next() => Ok(1),
    }
}

fn ended_alone(ended: std::io::Result<()>) -> Failure {
    let why = ended.err().map_or_else(|| "nobody asked it to".to_owned(), |e| e.to_string());
    Failure::platform(format!("the broker ended by itself: {why}"))
}

pub struct Signals {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn install() -> Result<Self, Failure> {
        let failed = |e| Failure::platform(format!("signals can not be handled: {e}"));
        Ok(Self {
            int: signal(SignalKind::interrupt()).map_err(failed)?,
            term: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_reached_by_the_loopback() {
        for (addr, url) in [
            ("0.0.0.0:7900", "ws://127.0.0.1:7900/ws"),
            ("[::]:1", "ws://[::1]:1/ws"),
            ("10.0.0.7:80", "ws://10.0.0.7:80/ws"),
        ] {
            assert_eq!(local_url(addr.parse().unwrap()), url);
        }
    }
}
