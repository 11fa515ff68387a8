//! `runner ls|trust|revoke|id` and `key rotate`: who may open the mesh's vault, and with which keys.

use std::time::Duration;

use client::MeshVault;
use client::vault::Step;
use serde::Serialize;
use wire::peer::vault::{AtRestRotate, AtRestRotated, RunnerInfo, RunnerListResult};
use wire::vault::{BoxPublic, Custody, KeyId, RunnerId, VaultState};

use super::follow::Progress;
use super::vault::{Done, entries, open, warn_of_pinning};
use crate::args::{KeyAct, OwnIdArgs, RunnerAct};
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::plain::plain_line;
use crate::roles::RunnerAt;

/// Encrypting a large database again takes its time.
const AT_REST_DEADLINE: Duration = Duration::from_secs(10 * 60);

pub async fn runner(here: &Here, act: &RunnerAct) -> Result<(), Failure> {
    match act {
        RunnerAct::Ls => list(here).await,
        RunnerAct::Trust(args) => trust(here, &args.id).await,
        RunnerAct::Revoke(args) => revoke(here, &args.id).await,
        RunnerAct::Id(args) => own_id(here, args).await,
    }
}

async fn list(here: &Here) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let mut vault = open(here, &connection)?;
    let found = async { Ok::<_, Failure>((vault.runners().await?, vault.keys().await?)) }.await;
    warn_of_pinning(here, &vault);
    connection.close().await;
    let (runners, keys) = found?;
    if here.out.json {
        return here.out.document(&RunnerListResult { runners });
    }
    if runners.is_empty() {
        here.out.remark("the broker has no runner");
        return Ok(());
    }
    let newest = keys.first().map(|kept| &kept.key.kid);
    let rows = runners.iter().map(|runner| {
        vec![
            runner.id.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            if runner.connected { "connected" } else { "away" }.to_owned(),
            custody_word(runner.custody).to_owned(),
            state_words(&runner.state),
            trust_word(runner, newest).to_owned(),
        ]
    });
    here.out.line(table(&["ID", "LINK", "KEY IS KEPT", "VAULT", "TRUSTED"], rows.collect()));
    Ok(())
}

pub fn custody_word(custody: Custody) -> &'static str {
    match custody {
        Custody::Split => "split",
        Custody::File => "by a file",
        Custody::Memory => "in memory",
    }
}

pub fn state_words(state: &VaultState) -> String {
    match state {
        VaultState::New => "has no key yet".to_owned(),
        VaultState::Locked { .. } => "locked".to_owned(),
        VaultState::Open => "open".to_owned(),
        VaultState::Broken { message } => format!("broken: {}", plain_line(message)),
    }
}

/// Whether it can open what is sealed from now on.
pub fn trust_word(runner: &RunnerInfo, newest: Option<&KeyId>) -> &'static str {
    match newest {
        Some(newest) if runner.granted.contains(newest) => "yes",
        Some(_) if !runner.granted.is_empty() => "older keys only",
        _ => "no",
    }
}

async fn trust(here: &Here, id: &RunnerId) -> Result<(), Failure> {
    let connection = here.connect().await?;
    let mut vault = open(here, &connection)?;
    let trusted = vault.trust_runner(id).await;
    warn_of_pinning(here, &vault);
    connection.close().await;
    trusted?;
    if here.out.json {
        return here.out.document(&Done { done: "trusted", runner: Some(id.to_string()), vault_key: None });
    }
    here.out.line(format!("runner {id} may open the mesh's vault"));
    Ok(())
}

async fn revoke(here: &Here, id: &RunnerId) -> Result<(), Failure> {
    if here.out.can_ask() {
        let shown = format!("runner {id} forgets the vault's keys, and its services that hold secrets stop");
        here.out.confirm(&shown, "Revoke it, and rotate the vault key?")?;
    }
    let connection = here.connect().await?;
    let mut vault = open(here, &connection)?;
    let number = match vault.revoke_runner(id).await {
        // What it may have kept opens nothing that is sealed from now on.
        Ok(()) => rotate_vault_key(here, &mut vault).await.map_err(|mut failure| {
            let done = "the runner is revoked, but the vault key that it had is still in use";
            failure.note = Some(done.to_owned());
            failure.with_cure("Finish it with `claudemesh key rotate`.")
        }),
        Err(error) => Err(error.into()),
    };
    warn_of_pinning(here, &vault);
    connection.close().await;
    let number = number?;
    if here.out.json {
        let runner = Some(id.to_string());
        return here.out.document(&Done { done: "revoked", runner, vault_key: Some(number) });
    }
    here.out.line(format!("runner {id} may no longer open the mesh's vault; vault key {number} is in use"));
    here.out
        .remark("It may remember values that it opened before: change those that matter (vault rotate KEY).");
    Ok(())
}

/// What is typed as `runner trust ID` elsewhere.
async fn own_id(here: &Here, args: &OwnIdArgs) -> Result<(), Failure> {
    let found = RunnerAt::read(args)?.vault().await?;
    // Reckoned here: the id is to name the key, not what somebody says of it.
    let id = found.public.as_ref().map(vault::keys::runner_id);
    if here.out.json {
        #[derive(Serialize)]
        struct Own<'a> {
            id: Option<RunnerId>,
            public: Option<&'a BoxPublic>,
            custody: Custody,
            state: &'a VaultState,
        }
        let own = Own { id, public: found.public.as_ref(), custody: found.custody, state: &found.state };
        return here.out.document(&own);
    }
    let Some(id) = id else {
        let message = format!("the runner has no id now: its vault is {}", state_words(&found.state));
        return Err(Failure::of_code(wire::ErrorCode::VaultLocked, message));
    };
    here.out.line(id.as_str());
    here.out.remark(format!("the mesh's owner types: claudemesh runner trust {id}"));
    Ok(())
}

/// `key rotate`.
pub async fn key(here: &Here, act: KeyAct) -> Result<(), Failure> {
    let KeyAct::Rotate = act;
    let connection = here.connect().await?;
    let mut vault = open(here, &connection)?;
    let done = async {
        let at_rest: AtRestRotated = connection.request_within(AT_REST_DEADLINE, &AtRestRotate {}).await?;
        here.out.remark(format!(
            "the broker encrypts under key {} now, {} with it",
            plain_line(&at_rest.key),
            records(at_rest.records)
        ));
        Ok::<_, Failure>((at_rest, rotate_vault_key(here, &mut vault).await?))
    }
    .await;
    warn_of_pinning(here, &vault);
    connection.close().await;
    let (at_rest, vault_key) = done?;
    if here.out.json {
        #[derive(Serialize)]
        struct Rotated {
            at_rest: AtRestRotated,
            vault_key: i64,
        }
        return here.out.document(&Rotated { at_rest, vault_key });
    }
    here.out.line(format!("both keys are new: at rest {}, vault key {vault_key}", plain_line(&at_rest.key)));
    Ok(())
}

fn records(n: i64) -> String {
    if n == 1 { "1 record".to_owned() } else { format!("{n} records") }
}

async fn rotate_vault_key(here: &Here, vault: &mut MeshVault<'_>) -> Result<i64, Failure> {
    let mut progress = Progress::new(here.out, "rotate");
    let newest = vault
        .rotate(|step| match step {
            Step::LeftOut { runner } => here.out.remark(format!(
                "warning: runner {runner} does not get the new key: it was trusted from another machine, or revoked there. \
                 If it is yours: claudemesh runner trust {runner}"
            )),
            Step::Made { number } => progress.show("rotate", &format!("vault key {number} is made")),
            Step::Left { number, entries: left } => {
                progress.show("seal again", &format!("{} still sealed to vault key {number}", entries(left)));
            }
            Step::Dropped { number } => progress.show("rotate", &format!("vault key {number} is gone")),
        })
        .await?;
    Ok(newest.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_trusted_when_it_holds_the_newest_key() {
        let kid = |n: u8| KeyId::parse(&format!("{n:016x}")).unwrap();
        let runner = |granted: Vec<KeyId>| RunnerInfo {
            id: None,
            public: None,
            custody: Custody::Split,
            state: VaultState::Open,
            connected: true,
            granted,
        };
        assert_eq!(trust_word(&runner(vec![kid(2), kid(1)]), Some(&kid(2))), "yes");
        assert_eq!(trust_word(&runner(vec![kid(1)]), Some(&kid(2))), "older keys only");
        assert_eq!(trust_word(&runner(vec![]), Some(&kid(2))), "no");
        assert_eq!(trust_word(&runner(vec![]), None), "no");
    }
}
