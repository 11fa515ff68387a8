//! `up`: broker and runner on one machine.
//!
//! The broker runs here; the runner is a process of its own that outlives us when we are killed, and ends with us when we
//! end in order.

use broker::{App, Config, RunnerLink};
use client::MeshEntry;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::broker::{Signals, first_mesh, limits, local_url, not_built};
use super::data::DataFolder;
use super::logging::{self, Chatter};
use super::own_runner::trust_own_runner;
use super::owner::OwnerFiles;
use super::runner_child::RunnerChild;
use crate::args::UpArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::Out;

pub async fn up(here: &Here, args: UpArgs) -> Result<u8, Failure> {
    logging::start(Chatter::Warnings, args.json_logs);
    let data = DataFolder::of(&args.data)?;
    let private = args.private.read()?;
    let held = data.hold()?;
    // Before anything that a signal should end in order.
    let signals = Signals::install()?;
    let at_rest_roots = data.at_rest_roots(&args.key)?;
    let files = OwnerFiles::in_folder(data.path());
    let owner = files.owner(here, args.name.as_deref())?;
    let config = Config {
        listen: args.listen,
        database_url: data.database_url(),
        runner: RunnerLink::Unix(data.runner_socket()),
        at_rest_roots,
        // Without one, invites carry the address that the owner uses.
        public_url: args.public_url.clone().unwrap_or_default(),
        limits: limits(&args.limits),
        expected_migration: None,
    };
    let app = App::build(config).await.map_err(not_built)?;
    let entry = first_mesh(here, &app, &files, owner, &local_url(app.addr())).await?;
    let runner = RunnerChild::new(data.clone(), &private)?;
    let code = serve(here, signals, app, runner, &entry, &data).await;
    drop(held);
    code
}

enum Part {
    Broker,
    Runner,
}

async fn serve(
    here: &Here,
    mut signals: Signals,
    app: App,
    runner: RunnerChild,
    entry: &MeshEntry,
    data: &DataFolder,
) -> Result<u8, Failure> {
    let out = here.out;
    let (broker_ending, runner_ending) = (CancellationToken::new(), CancellationToken::new());
    let mut parts = JoinSet::new();
    let (tell, is_up) = oneshot::channel();
    let ending = runner_ending.clone();
    parts.spawn(async move {
        let tell = move || {
            // Nobody listens any more when the broker has failed already.
            let _ = tell.send(());
        };
        runner.keep(ending, tell).await;
        Part::Runner
    });
    let ending = broker_ending.clone();
    parts.spawn(async move {
        if let Err(e) = app.run(ending).await {
            tracing::error!("the broker failed: {e}");
        }
        Part::Broker
    });
    say_hello(out, entry, data)?;
    let mut failed = false;
    tokio::select! {
        () = signals.next() => out.remark("stopping (once more to stop at once)"),
        Some(ended) = parts.join_next() => {
            failed = true;
            runner_ending.cancel();
            let which = if matches!(ended, Ok(Part::Runner)) { "runner's keeper" } else { "broker" };
            out.remark(format!("the {which} ended by itself; stopping"));
        }
        () = greet(here, entry, data, is_up) => unreachable!("it waits for ever once it has spoken"),
    }
    // The broker first: one that is still there would start again what the runner stops.
    broker_ending.cancel();
    let orderly = async {
        while let Some(ended) = parts.join_next().await {
            failed |= ended.is_err();
            runner_ending.cancel();
        }
        failed
    };
    tokio::select! {
        failed = orderly => Ok(u8::from(failed)),
        () = signals.next() => Ok(1),
    }
}

fn say_hello(out: Out, entry: &MeshEntry, data: &DataFolder) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Up<'a> {
        mesh: &'a str,
        mesh_id: &'a str,
        broker_url: &'a str,
        data: String,
        pid: u32,
    }
    let folder = data.path().display().to_string();
    if out.json {
        let (mesh, mesh_id, broker_url) =
            (entry.slug.as_str(), entry.mesh_id.as_str(), entry.broker_url.as_str());
        return out.document(&Up { mesh, mesh_id, broker_url, data: folder, pid: std::process::id() });
    }
    out.line(format!("claudemesh {} is up", env!("CARGO_PKG_VERSION")));
    out.line(format!("  broker  {}", entry.broker_url));
    out.line(format!("  mesh    {} (you are its owner)", entry.slug));
    out.line(format!("  data    {folder}"));
    Ok(())
}

/// Once the runner is there; then waits for ever.
async fn greet(here: &Here, entry: &MeshEntry, data: &DataFolder, is_up: oneshot::Receiver<()>) {
    let out = here.out;
    if is_up.await.is_ok() {
        // Before it is called ready: what is typed next may be a secret.
        match trust_own_runner(here, entry, data).await {
            Ok(true) => tracing::info!("the runner may open the mesh's vault"),
            Ok(false) => {}
            Err(failure) => tracing::warn!(
                "the runner can not open secrets yet: {}; `claudemesh doctor` tells more",
                failure.message
            ),
        }
        out.remark("  runner  ready");
        out.remark("\nnext, in another terminal:");
        out.remark("  claudemesh deploy everything -- npx -y @modelcontextprotocol/server-everything");
        out.remark("  claudemesh ls");
        out.remark("Ctrl-C stops everything; the next `claudemesh up` brings it back.\n");
    }
    std::future::pending().await
}
