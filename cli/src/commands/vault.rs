//! `vault`: a member's own secrets.

mod value;

pub use value::{passphrase, typed};

use client::{Connection, MeshVault};
use serde::Serialize;
use wire::peer::vault::{
    LedgerLine, VaultHistoryResult, VaultLedger, VaultLedgerResult, VaultListResult, VaultPutResult,
};
use wire::vault::{EntryKind, VaultName};
use wire::{ErrorCode, MemberId};
use zeroize::Zeroizing;

use super::deploy::count;
use crate::args::{LedgerArgs, SetArgs, VaultAct};
use crate::failure::Failure;
use crate::here::Here;
use crate::out::table;
use crate::plain::{brief, plain_line};
use crate::units;

pub async fn vault(here: &Here, act: &VaultAct) -> Result<(), Failure> {
    match act {
        VaultAct::Set(args) => set(here, args, false).await,
        VaultAct::Rotate(args) => set(here, args, true).await,
        VaultAct::Ls => list(here).await,
        VaultAct::Rm(args) => remove(here, &args.key).await,
        VaultAct::History(args) => history(here, &args.key).await,
        VaultAct::Ledger(args) => ledger(here, args).await,
    }
}

/// The vault of the chosen mesh. Whose key it is trusted by is said when that was taken on faith just now.
pub fn open<'c>(here: &Here, connection: &'c Connection) -> Result<MeshVault<'c>, Failure> {
    Ok(MeshVault::new(connection, &here.config_folder, here.entry()?)?)
}

/// Runs `act` on the vault, and says afterwards what a person must know of it.
async fn on_vault<T>(
    here: &Here,
    act: impl AsyncFnOnce(&mut MeshVault<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let connection = here.connect().await?;
    let done = match open(here, &connection) {
        Ok(mut vault) => {
            let done = act(&mut vault).await;
            warn_of_pinning(here, &vault);
            done
        }
        Err(failure) => Err(failure),
    };
    connection.close().await;
    done
}

/// A config of an older version does not say who the mesh's owner is.
pub fn warn_of_pinning(here: &Here, vault: &MeshVault<'_>) {
    if vault.has_pinned_owner() {
        here.out.remark(
            "warning: who owns the mesh was not written down here; the broker's word was taken for it, once. \
             Join again with an invite to check it.",
        );
    }
}

/// Nothing is sealed to the key of an owner whom only the broker names, unless a person has looked.
fn believe_owner(here: &Here, vault: &mut MeshVault<'_>) -> Result<(), Failure> {
    let Some(owner) = vault.owner().filter(|_| vault.has_pinned_owner()) else { return Ok(()) };
    let shown = format!("who owns the mesh is not written down here; the broker says that it is\n  {owner}");
    let believed = here.out.confirm(&shown, "Is that the owner's key, and may it open your secrets?");
    if believed.is_err() {
        vault.unpin()?;
    }
    believed.map_err(|_| {
        Failure::of_code(
            ErrorCode::VaultKeyUnproven,
            "who owns the mesh is not known here; nothing was stored",
        )
        .with_cure("Join again with an invite of the owner's, or answer at a terminal.")
    })
}

async fn set(here: &Here, args: &SetArgs, must_exist: bool) -> Result<(), Failure> {
    let done = on_vault(here, async |vault| {
        // Before anybody types a secret in vain.
        let known = vault.list().await?.entries.into_iter().find(|entry| entry.key == args.key.as_str());
        match &known {
            Some(entry) if entry.version.is_none() => {
                let message = format!("`{}` is an entry of another client's form", args.key);
                return Err(Failure::of_code(ErrorCode::VaultError, message)
                    .with_cure(format!("Remove it first: claudemesh vault rm {}", args.key)));
            }
            None if must_exist => {
                let message = format!("you have no vault entry `{}`", args.key);
                return Err(Failure::of_code(ErrorCode::VaultMissing, message));
            }
            _ => {}
        }
        vault.newest_key().await?;
        believe_owner(here, vault)?;
        let value = value::read(args)?;
        Ok(vault.set(&args.key, value.kind, &value.bytes).await?)
    })
    .await?;
    if here.out.json {
        return here.out.document(&done);
    }
    here.out.line(format!("{} is stored, version {}", args.key, done.version));
    if !done.services.is_empty() {
        here.out.remark(format!("starts again with it: {}", services(&done)));
    } else if done.version == 1 {
        let form = if args.file.is_some() { ":file:/secrets/NAME" } else { "" };
        here.out
            .remark(format!("use it: claudemesh deploy NAME --env 'VARIABLE=$vault:{}{form}' …", args.key));
    }
    Ok(())
}

/// Stores values under names that are still free, `name`, `name-2`, …; gives the names that they got.
pub async fn store_new(
    here: &Here,
    values: &[(VaultName, Zeroizing<Vec<u8>>)],
) -> Result<Vec<VaultName>, Failure> {
    on_vault(here, async |vault| {
        let mut taken: Vec<String> = vault.list().await?.entries.into_iter().map(|entry| entry.key).collect();
        vault.newest_key().await?;
        believe_owner(here, vault)?;
        let mut stored = Vec::new();
        for (name, value) in values {
            let free = free_name(name, &taken)?;
            taken.push(free.to_string());
            let done = vault.set(&free, EntryKind::Env, value).await;
            if let Err(error) = done {
                // What was stored for nothing would only be in the way.
                for name in &stored {
                    let _ = vault.remove(name).await;
                }
                return Err(error.into());
            }
            stored.push(free);
        }
        Ok(stored)
    })
    .await
}

fn free_name(name: &VaultName, taken: &[String]) -> Result<VaultName, Failure> {
    let numbered = (2..100).map(|n| format!("{name}-{n}"));
    let free = std::iter::once(name.to_string()).chain(numbered).find(|name| !taken.contains(name));
    let free = free.and_then(|name| VaultName::parse(&name).ok());
    free.ok_or_else(|| Failure::user(format!("there are too many vault entries named like `{name}`")))
}

/// Takes back what [`store_new`] stored.
pub async fn remove_all(here: &Here, names: &[VaultName]) -> Result<(), Failure> {
    on_vault(here, async |vault| {
        for name in names {
            vault.remove(name).await?;
        }
        Ok(())
    })
    .await
}

fn services(done: &VaultPutResult) -> String {
    brief(&done.services.join(", "), 400)
}

async fn remove(here: &Here, key: &VaultName) -> Result<(), Failure> {
    let done = on_vault(here, async |vault| {
        if here.out.can_ask() {
            let listed = vault.list().await?.entries.into_iter().find(|entry| entry.key == key.as_str());
            let users = listed.map(|entry| entry.used_by).unwrap_or_default();
            let shown = match users.as_slice() {
                [] => format!("no service uses {key}"),
                users => format!("these services hold it and are stopped: {}", brief(&users.join(", "), 400)),
            };
            here.out.confirm(&shown, &format!("Remove {key}?"))?;
        }
        Ok(vault.remove(key).await?)
    })
    .await?;
    if here.out.json {
        return here.out.document(&done);
    }
    here.out.line(format!("{key} is removed"));
    if !done.services.is_empty() {
        here.out.remark(format!("stopped: {}", services(&done)));
    }
    Ok(())
}

async fn list(here: &Here) -> Result<(), Failure> {
    let found: VaultListResult = on_vault(here, async |vault| Ok(vault.list().await?)).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.entries.is_empty() {
        here.out.remark("you have no secrets here; store one: claudemesh vault set KEY");
        return Ok(());
    }
    let now = units::now_ms();
    let ago = |at: &str| units::since(at, now).map_or_else(|| "-".to_owned(), units::span);
    let rows = found.entries.iter().map(|entry| {
        vec![
            brief(&entry.key, 64),
            plain_line(&entry.entry_type),
            entry.version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
            ago(&entry.updated_at),
            entry.last_used_at.as_deref().map_or_else(|| "never".to_owned(), ago),
            if entry.used_by.is_empty() { "-".to_owned() } else { brief(&entry.used_by.join(", "), 60) },
        ]
    });
    here.out.line(table(&["KEY", "KIND", "VERSION", "AGE", "LAST USE", "USED BY"], rows.collect()));
    Ok(())
}

async fn history(here: &Here, key: &VaultName) -> Result<(), Failure> {
    let found: VaultHistoryResult = on_vault(here, async |vault| Ok(vault.history(key).await?)).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.versions.is_empty() {
        return Err(Failure::of_code(ErrorCode::VaultMissing, format!("you have no vault entry `{key}`")));
    }
    let now = units::now_ms();
    let rows = found.versions.iter().map(|version| {
        vec![
            version.version.to_string(),
            match version.kind {
                EntryKind::Gone => "removed".to_owned(),
                kind => kind.as_str().to_owned(),
            },
            units::since(&version.stored_at, now).map_or_else(|| "-".to_owned(), units::span),
            version.openings.to_string(),
            version.kid.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ]
    });
    here.out.line(table(&["VERSION", "KIND", "AGE", "OPENINGS", "VAULT KEY"], rows.collect()));
    Ok(())
}

async fn ledger(here: &Here, args: &LedgerArgs) -> Result<(), Failure> {
    let frame = VaultLedger {
        key: args.key.as_ref().map(ToString::to_string),
        service: args.service.clone(),
        limit: Some(args.lines),
    };
    let found: VaultLedgerResult = on_vault(here, async |vault| Ok(vault.ledger(&frame).await?)).await?;
    if here.out.json {
        return here.out.document(&found);
    }
    if found.lines.is_empty() {
        here.out.remark("nothing has happened that you may see");
        return Ok(());
    }
    let now = units::now_ms();
    let rows = found.lines.iter().map(|line| ledger_row(line, now)).collect();
    here.out.line(table(&["WHEN", "ACT", "WHO", "KEY", "VERSION", "SERVICE", "REASON", "RUNNER"], rows));
    Ok(())
}

fn ledger_row(line: &LedgerLine, now_ms: i64) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let opening = line.opening.as_ref();
    vec![
        units::moment(line.at_ms, now_ms),
        plain_line(&line.act),
        brief(&line.who, 40),
        or_dash(line.key.as_ref().map(ToString::to_string)),
        or_dash(line.version.map(|version| version.to_string())),
        or_dash(opening.map(|opening| {
            let caller = opening.caller.as_ref().map(MemberId::as_str);
            let whose = caller.map(|caller| format!(" for {caller}")).unwrap_or_default();
            format!("{} #{}{whose}", plain_line(opening.service.plain()), opening.generation)
        })),
        or_dash(opening.map(|opening| plain_line(&opening.reason))),
        or_dash(line.runner.as_ref().or(opening.map(|opening| &opening.runner)).map(ToString::to_string)),
    ]
}

/// What a command that changes who may open the vault says under `--json`.
#[derive(Serialize)]
pub struct Done<'a> {
    pub done: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vault_key: Option<i64>,
}

/// `2 entries`.
pub fn entries(n: i64) -> String {
    match usize::try_from(n) {
        Ok(1) => "1 entry".to_owned(),
        Ok(n) => count(n, "entrie"),
        Err(_) => n.to_string(),
    }
}
