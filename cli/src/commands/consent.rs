//! Agreeing to a service: what the broker asks to be signed, held against what was asked for.
//!
//! Invariant: nothing is signed that its owner did not ask for in this command, or see and say yes to.

mod judge;
mod words;

use client::Connection;
use wire::ErrorCode;
use wire::peer::hosting::McpDeployStatus;
use wire::peer::vault::{McpConsent, McpConsentAsk, McpConsentAsked};
use wire::vault::ConsentAsk;

use super::deploy::{follow, pin_text};
use crate::failure::Failure;
use crate::here::Here;
use crate::units;

pub use judge::Asked;
use judge::{Judgement, judge};

/// A pin may change between two looks; whoever changes it again and again gets no more signatures.
const ROUNDS: usize = 3;
const AWAITING: &str = "awaiting_consent";

/// `consent NAME`.
pub async fn consent(here: &Here, name: &str, yes: bool) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let done = look_and_sign(here, &connection, name, yes).await;
    connection.close().await;
    let Some(status) = done? else {
        if here.out.json {
            return here.out.document(&McpConsentAsked { ask: None });
        }
        here.out.line(format!("{name} needs no consent of yours"));
        return Ok(());
    };
    if here.out.json {
        return here.out.document(&status);
    }
    here.out.line(format!("{name} is {}", crate::plain::plain_line(&status.status)));
    Ok(())
}

async fn look_and_sign(
    here: &Here,
    connection: &Connection,
    name: &str,
    yes: bool,
) -> Result<Option<McpDeployStatus>, Failure> {
    let frame = McpConsentAsk { server_name: name.to_owned() };
    let McpConsentAsked { ask } = connection.request(&frame).await?;
    let Some(ask) = ask else { return Ok(None) };
    of_this_service(&ask, name)?;
    let previous = client::vault::previous(&here.entry()?, &ask)?;
    let shown = words::all(&ask, previous.as_ref());
    if yes {
        here.out.remark(shown);
    } else {
        here.out.confirm(&shown, &format!("Open your secrets to {name} as it is here?"))?;
    }
    let status = sign_and_follow(here, connection, name, &ask).await?;
    if status.status == AWAITING {
        let message = format!("{name} has changed again meanwhile");
        return Err(Failure::of_code(ErrorCode::AwaitingConsent, message)
            .with_cure(format!("Look at it again: claudemesh consent {name}")));
    }
    Ok(Some(status))
}

/// Goes on from `awaiting_consent`: signs what was asked for, shows and asks what was not.
pub async fn settle(
    here: &Here,
    connection: &Connection,
    name: &str,
    mut status: McpDeployStatus,
    asked: &Asked,
) -> Result<McpDeployStatus, Failure> {
    for _ in 0..ROUNDS {
        if status.status != AWAITING {
            return Ok(status);
        }
        let ask = status.consent.take().ok_or_else(|| not_ours(name))?;
        agree(here, name, &ask, asked)?;
        status = sign_and_follow(here, connection, name, &ask).await?;
    }
    match status.status.as_str() {
        AWAITING => Err(not_ours(name)),
        _ => Ok(status),
    }
}

fn not_ours(name: &str) -> Failure {
    let message = format!("{name} waits until the owner of its secrets agrees to it as it is now");
    Failure::of_code(ErrorCode::AwaitingConsent, message)
        .with_cure(format!("They look at it and sign with `claudemesh consent {name}`."))
}

fn agree(here: &Here, name: &str, ask: &ConsentAsk, asked: &Asked) -> Result<(), Failure> {
    of_this_service(ask, name)?;
    let previous = client::vault::previous(&here.entry()?, ask)?;
    match judge(asked, ask, previous.as_ref(), units::now_ms()) {
        Judgement::AsAsked => {
            let old = previous.map(|doc| doc.pin).filter(|old| *old != ask.pin);
            let old = old.map(|old| format!("{} → ", pin_text(&old.kind, &old.name, &old.version)));
            let new = pin_text(&ask.pin.kind, &ask.pin.name, &ask.pin.version);
            here.out.remark(format!(
                "you agree to {}{new} with {}",
                old.unwrap_or_default(),
                words::secrets(&ask.spec, &ask.versions)
            ));
            Ok(())
        }
        Judgement::Unasked(why) => {
            let shown = format!("{why}\n{}", words::all(ask, previous.as_ref()));
            here.out.confirm(&shown, &format!("Open your secrets to {name} as it is here?")).map_err(
                |failure| failure.with_cure(format!("Look at it and sign: claudemesh consent {name}")),
            )
        }
        Judgement::Another(differences) => {
            let message =
                format!("the broker wants another service signed than you asked for: {differences}");
            let message = crate::plain::plain_line(&message);
            Err(Failure::of_code(ErrorCode::AwaitingConsent, message).with_cure(format!(
                "Nothing was signed. Ask who runs the broker; `claudemesh consent {name}` shows all of it."
            )))
        }
    }
}

fn of_this_service(ask: &ConsentAsk, name: &str) -> Result<(), Failure> {
    if ask.service.as_str() == name {
        return Ok(());
    }
    Err(Failure::platform("the broker wants another service signed than was asked for; nothing was signed"))
}

async fn sign_and_follow(
    here: &Here,
    connection: &Connection,
    name: &str,
    ask: &ConsentAsk,
) -> Result<McpDeployStatus, Failure> {
    let consent = client::vault::sign(&here.config_folder, &here.entry()?, ask)?;
    follow(here, connection, name, &McpConsent { server_name: name.to_owned(), consent }).await
}
