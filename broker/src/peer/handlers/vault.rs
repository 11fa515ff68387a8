//! The vault's frames. Not here: consents, which are answered like a deploy (`super::hosting`).

use wire::peer::vault::{
    RunnerRevoke, RunnerTrust, VaultDelete, VaultGet, VaultHistory, VaultKeyDrop, VaultKeyPut, VaultLedger,
    VaultPut, VaultRewrap, VaultSet, VaultWraps,
};

use crate::error::FrameError;
use crate::peer::dispatch::{Asked, body};
use crate::vault::{self, Asker};

fn asker(asked: &Asked) -> Asker<'_> {
    Asker { broker: &asked.broker, caller: &asked.caller, view: &asked.view }
}

/// Handles `kind`; `None` when it is no frame of the vault.
pub async fn handle(kind: &str, asked: &Asked, text: &str) -> Option<Result<(), FrameError>> {
    Some(match kind {
        "vault_set" | "vault_get" | "vault_list" | "vault_delete" => original(kind, asked, text).await,
        "vault_put" | "vault_history" | "vault_ledger" => entries(kind, asked, text).await,
        "vault_keys" | "vault_key_put" | "vault_wraps" | "vault_rewrap" | "vault_key_drop"
        | "at_rest_rotate" => keys(kind, asked, text).await,
        "runner_list" | "runner_trust" | "runner_revoke" => runners(kind, asked, text).await,
        _ => return None,
    })
}

async fn original(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    let asker = asker(asked);
    match kind {
        "vault_set" => asked.answer(&vault::set(asker, body::<VaultSet>(text)?).await?).await,
        "vault_get" => asked.answer(&vault::get(asker, body::<VaultGet>(text)?).await?).await,
        "vault_list" => asked.answer(&vault::list(asker).await?).await,
        _ => asked.answer(&vault::delete(asker, &body::<VaultDelete>(text)?.key).await?).await,
    }
    Ok(())
}

async fn entries(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    let asker = asker(asked);
    match kind {
        "vault_put" => asked.answer(&vault::put(asker, body::<VaultPut>(text)?.entry).await?).await,
        "vault_history" => {
            asked.answer(&vault::history(asker, &body::<VaultHistory>(text)?.key).await?).await;
        }
        _ => asked.answer(&vault::ledger(asker, body::<VaultLedger>(text)?).await?).await,
    }
    Ok(())
}

async fn keys(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    let asker = asker(asked);
    match kind {
        "vault_keys" => asked.answer(&vault::keys(asker).await?).await,
        "vault_key_put" => asked.answer(&vault::put_key(asker, body::<VaultKeyPut>(text)?).await?).await,
        "vault_wraps" => asked.answer(&vault::wraps(asker, &body::<VaultWraps>(text)?).await?).await,
        "vault_rewrap" => asked.answer(&vault::rewrap(asker, body::<VaultRewrap>(text)?).await?).await,
        "vault_key_drop" => {
            asked.answer(&vault::drop_key(asker, &body::<VaultKeyDrop>(text)?.kid).await?).await;
        }
        _ => asked.answer(&vault::rotate_at_rest(asker).await?).await,
    }
    Ok(())
}

async fn runners(kind: &str, asked: &Asked, text: &str) -> Result<(), FrameError> {
    let asker = asker(asked);
    match kind {
        "runner_list" => asked.answer(&vault::runners(asker).await?).await,
        "runner_trust" => {
            asked.answer(&vault::trust(asker, body::<RunnerTrust>(text)?.grants).await?).await;
        }
        _ => asked.answer(&vault::revoke(asker, body::<RunnerRevoke>(text)?.runner).await?).await,
    }
    Ok(())
}
