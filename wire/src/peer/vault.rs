//! The vault's frames. `vault_set`, `vault_get`, `vault_list` and `vault_delete` are the original's (peer-protocol
//! reference §3.16), whose envelope the broker stores without understanding it; the rest is *ours*.
//!
//! An entry is either the original's (no version) or ours (`version`), never both: a name holds one of them.

use serde::{Deserialize, Serialize};

use super::body;
use crate::PublicKey;
use crate::vault::{
    BoxPublic, Consent, ConsentAsk, Custody, EntryKind, Grant, KeyId, Opening, RunnerId, VaultEntry,
    VaultKey, VaultName, VaultState, WrapOf,
};

// ── the original's ──

/// Stores the caller's entry, replacing all of it. Answered by [`VaultAck`] `stored`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultSet {
    pub key: String,
    /// Base64, as are the next two; opaque.
    pub ciphertext: String,
    pub nonce: String,
    pub sealed_key: String,
    /// `env` or `file`.
    pub entry_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The caller's entries of the original's form; missing ones are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultGet {
    pub keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultGetResult {
    pub entries: Vec<VaultSealed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultSealed {
    pub key: String,
    pub ciphertext: String,
    pub nonce: String,
    pub sealed_key: String,
    pub entry_type: String,
    pub mount_path: Option<String>,
}

/// The caller's entries, without their content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultList {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultListResult {
    pub entries: Vec<VaultListed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultListed {
    pub key: String,
    pub entry_type: String,
    pub mount_path: Option<String>,
    pub description: Option<String>,
    /// ISO 8601.
    pub updated_at: String,
    /// *Ours*, like the rest; absent for an entry of the original's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<KeyId>,
    /// ISO 8601; absent when it was never opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    /// Services whose wanted state refers to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<String>,
}

/// Removes an entry of the original's form. One of ours is removed by a [`VaultPut`] of kind `gone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultDelete {
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultAck {
    pub key: String,
    /// `stored`, `deleted` or `not_found`.
    pub action: String,
}

// ── ours: entries ──

/// Stores the next version of an entry of the caller. `conflict` unless it is one more than the newest;
/// `vault_key_retired` when it is sealed to a vault key that is not (any more) the newest. Services that hold the entry
/// get the new value by a new generation; those that hold a removed one are stopped. Answered by [`VaultPutResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultPut {
    pub entry: VaultEntry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultPutResult {
    pub key: String,
    pub version: i64,
    /// Services that start again with the new value, or that were stopped.
    pub services: Vec<String>,
}

/// Versions of one entry of the caller, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultHistory {
    pub key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultHistoryResult {
    pub key: String,
    pub versions: Vec<VaultVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultVersion {
    pub version: i64,
    pub kind: EntryKind,
    /// ISO 8601, by the broker's clock.
    pub stored_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<KeyId>,
    /// How often a runner opened it.
    pub openings: i64,
}

/// Openings, newest first: of the caller's entries; to the owner and admins of everybody's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultLedger {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// 1 to 1,000; 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultLedgerResult {
    pub lines: Vec<LedgerLine>,
}

/// What happened in the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerLine {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// `opened`; of entries `set`, `removed`; of runners `trusted`, `revoked`, `boot_key`; of vault keys, with their number as
    /// version, `rotated`, `rewrapped`, `key_dropped`; `at_rest`, a new key for what the broker itself encrypts.
    pub act: String,
    /// Display name of who did it; of an opening, whose entry it is.
    pub who: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<VaultName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Of an opening.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<Opening>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerId>,
}

// ── ours: keys ──

/// The mesh's vault keys. What is offered here must be checked against the owner's signature before it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKeys {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKeysResult {
    /// Of the mesh, as the broker says; a client believes what it learned when it joined.
    pub owner: PublicKey,
    /// Newest first; empty before the first.
    pub keys: Vec<KeptKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptKey {
    pub key: VaultKey,
    /// Entries that are still sealed to it.
    pub entries: i64,
    /// The private half, sealed to the mesh's owner; to nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_copy: Option<String>,
}

/// By the mesh's owner: the next vault key, with a copy for the owner and grants for the trusted runners, in one step.
/// `conflict` unless its number is one more than the newest. Answered by [`VaultKeysResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKeyPut {
    pub key: VaultKey,
    pub owner_copy: String,
    pub grants: Vec<Grant>,
}

/// By the mesh's owner: entries that are sealed to this key, at most 1,000, of every member, in the order of owner and key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultWraps {
    pub kid: KeyId,
    /// The last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<WrapAt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapAt {
    pub owner: PublicKey,
    pub key: VaultName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultWrapsResult {
    pub wraps: Vec<WrapOf>,
}

/// By the mesh's owner: replaces wraps to `from`, in one step; an entry that changed meanwhile is left as it is. Answered
/// by [`VaultRewrapped`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRewrap {
    pub from: KeyId,
    /// With the new wrap.
    pub wraps: Vec<WrapOf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRewrapped {
    /// Entries that are still sealed to `from`.
    pub left: i64,
}

/// By the mesh's owner: forgets a key that no entry is sealed to and that is not the newest, with its grants. Answered by
/// [`VaultKeysResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultKeyDrop {
    pub kid: KeyId,
}

/// By the mesh's owner: a new key for what the broker itself encrypts at rest; what is there is encrypted again before
/// the answer, [`AtRestRotated`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtRestRotate {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtRestRotated {
    /// Id of the new key.
    pub key: String,
    pub records: i64,
}

// ── ours: runners ──

/// The runners that this broker knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerList {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerListResult {
    pub runners: Vec<RunnerInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerInfo {
    /// Absent while its vault is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RunnerId>,
    /// What grants are sealed to: check that it belongs to the id that the runner's own machine shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<BoxPublic>,
    pub custody: Custody,
    pub state: VaultState,
    pub connected: bool,
    /// Keys of this mesh that were granted to it.
    pub granted: Vec<KeyId>,
}

/// By the mesh's owner: grants to runners; one that is there already is replaced. Answered by [`RunnerListResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerTrust {
    pub grants: Vec<Grant>,
}

/// By the mesh's owner: takes all grants of this mesh from a runner, which forgets the keys and stops what holds secrets.
/// The keys should be rotated then. Answered by [`RunnerListResult`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerRevoke {
    pub runner: RunnerId,
}

// ── ours: consent ──

/// What the caller would have to sign for a service as it is wanted now. Answered by [`McpConsentAsked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpConsentAsk {
    pub server_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpConsentAsked {
    /// `None`: it refers to no entry of the caller, or is signed already.
    pub ask: Option<Box<ConsentAsk>>,
}

/// The caller agrees. Answered like a deploy, or with `running` at once under [`crate::vault::RunAs::Caller`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpConsent {
    pub server_name: String,
    pub consent: Consent,
}

body! {
    VaultSet = "vault_set";
    VaultGet = "vault_get";
    VaultGetResult = "vault_get_result";
    VaultList = "vault_list";
    VaultListResult = "vault_list_result";
    VaultDelete = "vault_delete";
    VaultAck = "vault_ack";
    VaultPut = "vault_put";
    VaultPutResult = "vault_put_result";
    VaultHistory = "vault_history";
    VaultHistoryResult = "vault_history_result";
    VaultLedger = "vault_ledger";
    VaultLedgerResult = "vault_ledger_result";
    VaultKeys = "vault_keys";
    VaultKeysResult = "vault_keys_result";
    VaultKeyPut = "vault_key_put";
    VaultWraps = "vault_wraps";
    VaultWrapsResult = "vault_wraps_result";
    VaultRewrap = "vault_rewrap";
    VaultRewrapped = "vault_rewrapped";
    VaultKeyDrop = "vault_key_drop";
    AtRestRotate = "at_rest_rotate";
    AtRestRotated = "at_rest_rotated";
    RunnerList = "runner_list";
    RunnerListResult = "runner_list_result";
    RunnerTrust = "runner_trust";
    RunnerRevoke = "runner_revoke";
    McpConsentAsk = "mcp_consent_ask";
    McpConsentAsked = "mcp_consent_asked";
    McpConsent = "mcp_consent";
}
