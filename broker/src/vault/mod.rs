//! The vault, as far as the broker goes: storing what it can't open.
//!
//! Here: who may store what, and the checks that keep nonsense and old states out. Not here: opening (the runner), the
//! tables (`crate::store`), what follows for services (`crate::deploy`), consents (`crate::deploy`).
//! Invariant: each change and its line in the ledger are one transaction. What is refused here would be refused by the
//! runner and the clients, too: nobody has to trust these checks.

mod entries;
mod envelopes;
mod keys;
mod ledger;
mod runners;

use std::sync::atomic::Ordering;

use catalog::access::{self, Action, Caller, Decision};
use vault::Refused;
use wire::vault::VaultName;
use wire::{BadId, ErrorCode, PublicKey};

pub use entries::{history, list, put};
pub use envelopes::{delete, get, set};
pub use keys::{drop_key, keys, put_key, rewrap, rotate_at_rest, wraps};
pub use ledger::ledger;
pub use runners::{revoke, runners, trust};

use crate::app::Broker;
use crate::at_rest::AtRestError;
use crate::clock;
use crate::deploy::DeployError;
use crate::error::FrameError;
use crate::store::{Act, ActKind, StoreError, Tx};
use crate::views::MeshView;

/// Of all sealed values of one member, as they are stored: otherwise a thousand of the largest would be 700 MB.
const MAX_BYTES: usize = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("{0}")]
    Name(#[from] BadId),
    #[error("{0}")]
    Args(&'static str),
    /// Not signed as it must be, or of no possible form.
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    TooMuch(&'static str),
    #[error("no entry `{0}` in your vault")]
    NoEntry(VaultName),
    #[error("{0}")]
    NotFound(&'static str),
    #[error("{0}")]
    Conflict(&'static str),
    #[error("it is sealed to a vault key that is not the newest of this mesh")]
    KeyRetired,
    #[error(transparent)]
    AtRest(#[from] AtRestError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error("storage failed")]
    Store(#[source] StoreError),
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict("somebody changed the same at the same time; try again"),
            error => Self::Store(error),
        }
    }
}

impl From<VaultError> for FrameError {
    fn from(error: VaultError) -> Self {
        let code = match error {
            VaultError::Forbidden(_) => ErrorCode::Forbidden,
            VaultError::Name(_) | VaultError::Args(_) => ErrorCode::InvalidArgs,
            VaultError::Refused(_) | VaultError::TooMuch(_) => ErrorCode::VaultError,
            VaultError::NoEntry(_) | VaultError::NotFound(_) => ErrorCode::NotFound,
            VaultError::Conflict(_) => ErrorCode::Conflict,
            VaultError::KeyRetired => ErrorCode::VaultKeyRetired,
            VaultError::AtRest(error) => return error.into(),
            VaultError::Deploy(error) => return error.into(),
            VaultError::Store(error) => return Self::internal(&error),
        };
        Self::new(code, error.to_string())
    }
}

/// Who asks, of what they see.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub broker: &'a Broker,
    pub caller: &'a Caller,
    pub view: &'a MeshView,
}

impl<'a> Asker<'a> {
    fn may(&self, action: Action) -> bool {
        access::decide(self.caller, action, None) == Decision::Allow
    }

    /// Only the owner has to do with keys.
    fn owns(&self) -> Result<(), VaultError> {
        // The store says who is the owner twice; what is signed is signed by the key of the mesh.
        let is_signer = *self.key()? == self.view.mesh().owner_pubkey;
        if is_signer && self.may(Action::ManageKeys) {
            Ok(())
        } else {
            Err(VaultError::Forbidden("only the owner of the mesh manages its keys and runners"))
        }
    }

    fn key(&self) -> Result<&'a PublicKey, VaultError> {
        self.view.key_of(&self.caller.member).ok_or(VaultError::Forbidden("you are no member any more"))
    }

    /// Whether the caller may store this sealed value under a name, in place of what is there.
    async fn has_room(&self, tx: &mut Tx, key: &VaultName, sealed: &str) -> Result<(), VaultError> {
        let beside = tx.entries().bytes_beside(&self.caller.mesh, self.key()?, key).await?;
        if beside.saturating_add(sealed.len()) > MAX_BYTES {
            return Err(VaultError::TooMuch("your entries would take more than 32 MiB; remove some"));
        }
        Ok(())
    }

    /// Something that the caller does now.
    fn act(&self, act: ActKind) -> Act {
        Act {
            mesh: Some(self.caller.mesh.clone()),
            at_ms: clock::now_ms(),
            act,
            who: self.caller.display_name.clone(),
            entry: None,
            version: None,
            runner: None,
        }
    }

    /// Keys or grants are other ones: whoever talks to the runner has something to tell. After the commit.
    fn keys_changed(&self) {
        self.broker.vault_epoch.fetch_add(1, Ordering::Release);
        self.broker.reconciler.wake();
    }
}
