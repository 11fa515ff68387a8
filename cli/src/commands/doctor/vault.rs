//! Whether secrets can be opened: the mesh's vault key, the runners that hold it, and what the broker's own key lies in.

use client::{Connection, MeshVault};
use wire::peer::vault::{KeptKey, RunnerInfo};
use wire::vault::VaultState;

use super::{Finding, broken, fine, missing};
use crate::commands::trust::{custody_word, state_words, trust_word};
use crate::commands::vault::open;
use crate::env;
use crate::here::Here;
use crate::roles::DataFolder;

pub async fn findings(here: &Here, connection: &Connection) -> Vec<Finding> {
    let mut vault = match open(here, connection) {
        Ok(vault) => vault,
        Err(failure) => return vec![broken("vault", failure.message, failure.cure.unwrap_or_default())],
    };
    let asked = async { Ok::<_, client::ClientError>((vault.keys().await?, vault.runners().await?)) }.await;
    match asked {
        Ok((keys, runners)) => of(&vault, &keys, &runners),
        Err(e) => {
            let cure = e.code().map_or("Use the same version on both sides.", wire::ErrorCode::cure);
            vec![broken("vault", e.to_string(), cure)]
        }
    }
}

fn of(vault: &MeshVault<'_>, keys: &[KeptKey], runners: &[RunnerInfo]) -> Vec<Finding> {
    let mut findings = vec![match keys {
        [] => missing(
            "vault.key",
            "the mesh has no vault key, so nothing can be stored",
            "Its owner makes one with `claudemesh runner trust ID`; `claudemesh up` does it by itself.",
        ),
        [newest] => fine("vault.key", format!("key {}, signed by the mesh's owner", newest.key.number)),
        [newest, ..] => missing(
            "vault.key",
            format!("key {}; entries may still be sealed to older ones", newest.key.number),
            "A rotation was interrupted: its owner finishes it with `claudemesh key rotate`.",
        ),
    }];
    let newest = keys.first().map(|kept| &kept.key.kid);
    if let Some(owner) = vault.owner().filter(|_| vault.has_pinned_owner()) {
        findings.push(missing(
            "vault.owner",
            format!("the broker's word was taken, once, that the mesh's owner is {owner}"),
            "Join again with an invite of the owner's to check it.",
        ));
    }
    findings.extend(runners.iter().map(|runner| of_runner(runner, trust_word(runner, newest))));
    let unknown = runners.iter().filter(|runner| {
        vault.is_owner()
            && !runner.granted.is_empty()
            && runner.public.as_ref().is_some_and(|public| !vault.trusted_runners().contains(public))
    });
    findings.extend(unknown.map(|runner| {
        let id = runner.id.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        missing(
            "vault.trust",
            format!("runner {id} has a grant that was not made from this config"),
            "A rotation from here leaves it out. Trust it from here too, or revoke it.",
        )
    }));
    findings
}

fn of_runner(runner: &RunnerInfo, trusted: &str) -> Finding {
    let id = runner.id.as_ref().map_or_else(|| "without an id".to_owned(), ToString::to_string);
    let detail = format!(
        "runner {id}: {}, its key is kept {}, trusted: {trusted}",
        state_words(&runner.state),
        custody_word(runner.custody)
    );
    match (&runner.state, trusted) {
        (VaultState::Broken { .. }, _) => {
            broken("vault.runner", detail, "Look at the runner's log; its key file is under DATA/vault.")
        }
        (VaultState::Open, "yes") => fine("vault.runner", detail),
        (VaultState::Open, _) => missing(
            "vault.runner",
            detail,
            "If its own machine shows that id (`claudemesh runner id`): claudemesh runner trust ID",
        ),
        _ => missing("vault.runner", detail, wire::ErrorCode::VaultLocked.cure()),
    }
}

/// What the broker of this machine's `up` encrypts with; `None` when there is none here.
pub fn at_rest(data: &DataFolder) -> Option<Finding> {
    let file = data.join("broker.key");
    if env::encryption_key().is_some() {
        return Some(fine("at-rest", "the broker's key comes from BROKER_ENCRYPTION_KEY"));
    }
    file.is_file()
        .then(|| fine("at-rest", format!("the broker's key is {}, beside its database", file.display())))
}

#[cfg(test)]
mod tests {
    use wire::vault::Custody;

    use super::*;
    use crate::commands::doctor::Verdict;

    fn runner(state: VaultState) -> RunnerInfo {
        RunnerInfo {
            id: None,
            public: None,
            custody: Custody::Split,
            state,
            connected: true,
            granted: vec![],
        }
    }

    #[test]
    fn only_a_trusted_open_runner_is_fine() {
        let verdict = |state, trusted| of_runner(&runner(state), trusted).verdict;
        assert_eq!(verdict(VaultState::Open, "yes"), Verdict::Fine);
        assert_eq!(verdict(VaultState::Open, "no"), Verdict::Missing);
        assert_eq!(verdict(VaultState::Open, "older keys only"), Verdict::Missing);
        assert_eq!(verdict(VaultState::Locked { boot_id: "b".into() }, "yes"), Verdict::Missing);
        assert_eq!(verdict(VaultState::Broken { message: "m".into() }, "yes"), Verdict::Broken);
    }
}
