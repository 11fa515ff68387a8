//! `claudemesh`: one binary for every role and every command.
//!
//! Here: which of them this process is, and its exit code. The jail helper comes first: it must exist before any thread,
//! any runtime and any allocation that it does not need.

mod archive;
mod args;
mod commands;
mod env;
mod failure;
mod here;
mod out;
mod plain;
mod roles;
mod settings;
mod source;
mod units;

#[cfg(test)]
mod documentation;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;
use here::Here;
use out::Out;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|role| role == jail::ROLE) {
        return jail::main();
    }
    leave_no_core();
    // To an agent, some exit codes of a hook mean "stop": whatever is wrong with ours, it ends well.
    let is_hook = std::env::args_os().nth(1).is_some_and(|word| word == "hook");
    let cli = match Cli::try_parse() {
        Err(error) if is_hook && error.use_stderr() => {
            commands::complain_of_hook(&error.to_string());
            return ExitCode::SUCCESS;
        }
        parsed => parsed.unwrap_or_else(|error| error.exit()),
    };
    let out = Out { json: cli.json, quiet: cli.quiet };
    match run(cli, out) {
        Ok(code) => ExitCode::from(code),
        Err(failure) if is_hook => {
            commands::complain_of_hook(&failure.message);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.class.exit_code())
        }
    }
}

fn run(cli: Cli, out: Out) -> Result<u8, Failure> {
    let mesh = cli.command.mesh().map(str::to_owned).or(cli.mesh);
    let here = Here::new(out, mesh);
    if let Command::Mcp(args) = &cli.command {
        if let Ok(here) = &here {
            commands::become_small(here, args);
        }
        // One a session and service: small. What must be said goes to stderr, which the client keeps as a log.
        let runtime = one_thread()?;
        roles::log_warnings();
        let done = runtime.block_on(commands::mcp(here, args)).map(|()| 0);
        runtime.shutdown_background();
        return done;
    }
    let here = here?;
    match cli.command {
        Command::Up(args) => threads()?.block_on(roles::up(&here, args)),
        Command::Broker(args) => threads()?.block_on(roles::broker(&here, args)),
        Command::Runner(args) if args.act.is_none() => {
            // Before any thread: a session has one leader.
            roles::leave_session(args.role.detach)?;
            threads()?.block_on(roles::runner(args.role))
        }
        Command::Backup(args) => one_thread()?.block_on(roles::backup(&here, &args)).map(|()| 0),
        Command::Restore(args) => one_thread()?.block_on(roles::restore(&here, &args)).map(|()| 0),
        Command::Down(args) => one_thread()?.block_on(roles::down(&here, &args)),
        command => {
            let runtime = one_worker()?;
            let done = runtime.block_on(async {
                roles::log_for_commands();
                commands::run(&here, command).await
            });
            // A blocked read of stdin must not keep the process.
            runtime.shutdown_background();
            done
        }
    }
}

/// Every role and command holds a secret at some time: an identity, a root key, a value that was typed.
fn leave_no_core() {
    use nix::sys::resource::{Resource, setrlimit};
    // Not 0: the kernel would still start a `core_pattern` that is a program; and no file is made of one byte (core(5)).
    // One that is lower already can not be raised, and is as good.
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}

/// Half of the cores: broker, runner and the hosted servers share a machine, and every worker beyond what the work
/// needs costs each call a wake-up of another thread. On a quiet machine of two cores it made no measurable difference.
fn threads() -> Result<tokio::runtime::Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads((cores / 2).max(1)).enable_all().build().map_err(no_runtime)
}

fn one_thread() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)
}

/// Beside ourselves: while somebody reads a question or types a secret, the link answers the broker's pings.
fn one_worker() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(no_runtime)
}

fn no_runtime(error: std::io::Error) -> Failure {
    Failure::platform(format!("cannot start: {error}"))
}
