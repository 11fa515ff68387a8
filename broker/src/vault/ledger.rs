//! The ledger as people read it: their own lines, and everybody's for admins and the owner.

use catalog::access::Action;
use wire::ServiceName;
use wire::peer::vault::{LedgerLine, VaultLedger, VaultLedgerResult};
use wire::vault::{Opening, VaultName};

use super::{Asker, VaultError};
use crate::store::{Act, Lines};

const MOST: u32 = 1000;
const USUAL: u32 = 100;

/// # Errors
/// [`VaultError`].
pub async fn ledger(asker: Asker<'_>, frame: VaultLedger) -> Result<VaultLedgerResult, VaultError> {
    let VaultLedger { key, service, limit } = frame;
    let most = limit.unwrap_or(USUAL);
    if !(1..=MOST).contains(&most) {
        return Err(VaultError::Args("limit: 1 to 1,000"));
    }
    let key = key.as_deref().map(VaultName::parse).transpose()?;
    let service = service.as_deref().map(ServiceName::parse).transpose()?;
    let own = asker.key()?;
    let owner = if asker.may(Action::ReadLedger) { None } else { Some(own) };
    let mesh = &asker.caller.mesh;
    let wanted = Lines { mesh, owner, key: key.as_ref(), service: service.as_ref(), most: i64::from(most) };
    let mut tx = asker.broker.store.read().await?;
    let openings = tx.ledger().openings(wanted).await?;
    let acts = if service.is_none() { tx.ledger().acts(wanted).await? } else { Vec::new() };
    drop(tx);
    let opened = openings.into_iter().map(|opening| opened(asker, opening));
    let mut lines: Vec<LedgerLine> = opened.chain(acts.into_iter().map(done)).collect();
    // Stable: lines of the same millisecond stay in the order of the store.
    lines.sort_by_key(|line| std::cmp::Reverse(line.at_ms));
    lines.truncate(most as usize);
    Ok(VaultLedgerResult { lines })
}

fn opened(asker: Asker<'_>, opening: Opening) -> LedgerLine {
    LedgerLine {
        at_ms: opening.at_ms,
        act: "opened".into(),
        who: asker.view.name_of_key(&opening.owner),
        key: Some(opening.key.clone()),
        version: Some(opening.version),
        runner: Some(opening.runner.clone()),
        opening: Some(opening),
    }
}

fn done(act: Act) -> LedgerLine {
    let Act { mesh: _, at_ms, act, who, entry, version, runner } = act;
    let key = entry.map(|(_, key)| key);
    LedgerLine { at_ms, act: act.as_str().into(), who, key, version, opening: None, runner }
}
