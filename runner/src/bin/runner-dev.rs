//! The runner on its own, for tests and for trying things: `runner-dev DATA SOCKET [name=milliseconds]…`.
//!
//! Names: `start`, `ping`, `pong`, `sample`, `orphan`; besides, `tier=light`, `cgroups=off`, `custody=file` or
//! `custody=memory`, `boot_key=FILE`, `private=HOST:PORT=ADDRESS` and `extra_ca=FILE`. As `runner-dev jail` it is
//! the jail helper.

use std::process::ExitCode;
use std::time::Duration;

use runner::{Listen, RunnerConfig};
use wire::egress::PrivateHost;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        // Before any thread exists.
        Some(jail::ROLE) => jail::main(),
        _ => run(&args).map_or_else(
            |why| {
                eprintln!("runner-dev: {why}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        ),
    }
}

fn run(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [data, socket, settings @ ..] = args else {
        return Err("usage: runner-dev DATA SOCKET [name=ms]…".into());
    };
    let mut config = RunnerConfig::new(data.into(), Listen::Unix(socket.into()), std::env::current_exe()?);
    for setting in settings {
        let (name, ms) = setting.split_once('=').ok_or("a setting is name=ms")?;
        match setting.as_str() {
            "tier=strict" => {}
            "tier=light" => config.strongest = wire::Tier::Light,
            "cgroups=off" => config.use_cgroups = false,
            "custody=file" => config.custody = wire::vault::Custody::File,
            "custody=memory" => config.custody = wire::vault::Custody::Memory,
            _ if name == "boot_key" => config.boot_key_file = Some(ms.into()),
            _ if name == "private" => config.egress.private.push(PrivateHost::parse(ms)?),
            _ if name == "extra_ca" => config.egress.extra_ca = Some(ms.into()),
            _ => {}
        }
        if matches!(name, "tier" | "cgroups" | "custody" | "boot_key" | "private" | "extra_ca") {
            continue;
        }
        let time = Duration::from_millis(ms.parse()?);
        match name {
            "start" => config.start_timeout = time,
            "ping" => config.ping_every = time,
            "pong" => config.ping_timeout = time,
            "sample" => config.sample_every = time,
            "orphan" => config.orphan_timeout = Some(time),
            _ => return Err(format!("no setting `{name}`").into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(runner::run(config))?)
}
