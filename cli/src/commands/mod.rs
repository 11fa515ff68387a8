//! What each command of a person does: one frame or stream, then words.

mod agents;
mod call;
mod card;
mod consent;
mod deploy;
mod doctor;
mod drift;
mod follow;
mod hook;
mod invite;
mod launch;
mod lent;
mod logs;
mod mcp;
mod network;
mod people;
mod policy;
mod services;
mod share;
mod skill;
mod status_line;
mod tools;
mod trust;
mod vault;
mod why;

pub use hook::complain as complain_of_hook;
pub use invite::display_name;
pub use mcp::{become_small, mcp};
pub use trust::state_words;
pub use vault::passphrase;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::peer::Body;

use crate::args::Command;
use crate::failure::Failure;
use crate::here::Here;

/// `Ok(code)`: done; the code is not 0 only when a tool said that it failed, or `doctor` found something.
pub async fn run(here: &Here, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Deploy(args) => deploy::deploy(here, &args).await?,
        Command::Ls(_) => services::list(here).await?,
        Command::Status(args) => services::status(here, &args.name).await?,
        Command::Tools(args) => tools::tools(here, &args.name, args.tool.as_deref()).await?,
        Command::Call(args) => return call::call(here, &args).await,
        Command::Logs(args) => logs::logs(here, &args).await?,
        Command::Scope(args) => services::scope(here, &args).await?,
        Command::Why(args) => why::why(here, &args.name).await?,
        Command::Allow(args) => network::allow(here, &args).await?,
        Command::Deny(args) => network::deny(here, &args).await?,
        Command::Learn(args) => network::learn(here, &args).await?,
        Command::Approve(args) => drift::approve(here, &args).await?,
        Command::Policy(args) => policy::policy(here, &args).await?,
        Command::Update(args) => deploy::update(here, args.name).await?,
        Command::Rollback(args) => deploy::rollback(here, args.name).await?,
        Command::Stop(args) => deploy::stop(here, args.name).await?,
        Command::Start(args) => deploy::start(here, args.name).await?,
        Command::Rm(args) => deploy::remove(here, args.name).await?,
        Command::Vault(args) => vault::vault(here, &args.act).await?,
        Command::Consent(args) => consent::consent(here, &args.service.name, args.yes).await?,
        Command::Key(args) => trust::key(here, args.act).await?,
        Command::Runner(args) => match &args.act {
            Some(act) => trust::runner(here, act).await?,
            None => return Err(Failure::platform("a role is not a command")),
        },
        Command::Connect(args) => agents::connect(here, &args).await?,
        Command::Disconnect(args) => agents::disconnect(here, &args).await?,
        Command::Import(args) => agents::import(here, &args).await?,
        Command::Launch(args) => return launch::launch(here, &args).await,
        Command::Share(args) => share::share(here, &args).await?,
        Command::Skill(args) => skill::skill(here, &args).await?,
        Command::Hook(args) => hook::hook(here, &args).await?,
        Command::StatusLine(_) => status_line::status_line(here).await?,
        Command::Invite(args) => invite::invite(here, &args).await?,
        Command::Join(args) => invite::join(here, &args).await?,
        Command::Peers(_) => people::peers(here).await?,
        Command::Members(_) => people::members(here).await?,
        Command::Member(args) => people::member(here, &args).await?,
        Command::Doctor(args) => return doctor::doctor(here, &args).await,
        Command::Version => version(here)?,
        Command::Mcp(_)
        | Command::Up(_)
        | Command::Down(_)
        | Command::Broker(_)
        | Command::Backup(_)
        | Command::Restore(_) => {
            return Err(Failure::platform("a role is not a command"));
        }
    }
    Ok(0)
}

/// One question on a connection of its own.
async fn ask<B, R>(here: &Here, body: &B) -> Result<R, Failure>
where
    B: Body + Serialize,
    R: Body + DeserializeOwned,
{
    let connection = here.connect().await?;
    let answer = connection.request(body).await;
    connection.close().await;
    Ok(answer?)
}

fn version(here: &Here) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
    }
    let version = env!("CARGO_PKG_VERSION");
    if here.out.json {
        return here.out.document(&Version { version });
    }
    here.out.line(format!("claudemesh {version}"));
    Ok(())
}
