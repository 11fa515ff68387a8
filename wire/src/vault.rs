//! What travels of the vault: sealed entries, keys and grants, consents. Data and its text forms.
//!
//! Here: types only. Not here: making, checking and opening them (crate `vault`), who may store what (the broker).
//!
//! ```text
//!   member ── seals a value to the mesh's vault key ─▶ VaultEntry ─┐
//!   mesh owner ── signs ─▶ VaultKey;  seals its private half to a runner ─▶ Grant ─┤─▶ broker stores ─▶ runner opens
//!   member ── signs the whole spec of a service ─▶ Consent ────────┘
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{BadId, text_id};
use crate::spec::ServiceSpec;
use crate::{MemberId, MeshId, PublicKey, ServiceName};

/// The largest value that an environment variable may get.
pub const MAX_ENV_VALUE: usize = 64 << 10;
/// The largest file secret: in base64 it still fits a frame of the default size.
pub const MAX_FILE_VALUE: usize = 512 << 10;
/// Entries of one member.
pub const MAX_ENTRIES: usize = 1000;
/// References of one service.
pub const MAX_REFERENCES: usize = 64;

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

text_id!(
    /// The name of an entry, unique for its owner in one mesh.
    VaultName,
    "vault key name",
    "1-128 letters, digits, `_`, `-` and `.`, starting with a letter or digit",
    |text| {
        (1..=128).contains(&text.len())
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    }
);
text_id!(
    /// An X25519 public key (RFC 7748), 64 lowercase hex digits.
    BoxPublic, "box public key", "64 lowercase hex digits", |text| is_hex(text, 64)
);
text_id!(
    /// Names a vault key: the first 8 bytes of the SHA-256 of its public half, in hex.
    KeyId, "vault key id", "16 lowercase hex digits", |text| is_hex(text, 16)
);
text_id!(
    /// Names a runner: the first 16 bytes of the SHA-256 of its box public key, in hex. Long enough that who types it
    /// as the runner's machine shows it has checked the key.
    RunnerId, "runner id", "32 lowercase hex digits", |text| is_hex(text, 32)
);

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Text without zero bytes.
    Env,
    /// Any bytes.
    File,
    /// Nothing: its owner removed it. A version like any other, so that an older one does not open after it.
    Gone,
}

impl EntryKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::File => "file",
            Self::Gone => "gone",
        }
    }
}

/// One version of one entry, of which only its value is secret. The mesh is known from the context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultEntry {
    /// The member's key, which made the signature.
    pub owner: PublicKey,
    pub key: VaultName,
    /// 1 for the first, then each one more than the last.
    pub version: i64,
    pub kind: EntryKind,
    /// By the owner's clock; nothing is decided by it.
    pub created_ms: i64,
    /// Base64 of AES-256-GCM of the value under a key of its own. Empty when gone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Hex. Over everything above and the mesh; not over `wrap`, which changes when the vault key does.
    pub signature: String,
    /// `None` when gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrap: Option<Wrap>,
}

/// The key of an entry's content, sealed to a vault key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    pub kid: KeyId,
    /// Base64 of the HPKE (RFC 9180) encapsulated key and ciphertext.
    pub sealed: String,
}

/// Which version of which entry: what binds a wrap, and what a rotation has to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrapOf {
    pub owner: PublicKey,
    pub key: VaultName,
    pub version: i64,
    pub kind: EntryKind,
    pub created_ms: i64,
    /// SHA-256 of `content` as it is written in the entry, in hex.
    pub content_sha256: String,
    pub wrap: Wrap,
}

/// The public half of a mesh's vault key, signed by the mesh's owner. The newest number is the one to seal to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultKey {
    /// 1 for the first, then each one more than the last.
    pub number: i64,
    pub kid: KeyId,
    pub public: BoxPublic,
    pub created_ms: i64,
    /// Hex, by the mesh owner's ed25519 key.
    pub signature: String,
}

/// The private half of a vault key, sealed to one runner by the mesh's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub runner: RunnerId,
    pub kid: KeyId,
    /// The mesh's owner.
    pub signer: PublicKey,
    /// Base64 of the HPKE encapsulated key and ciphertext.
    pub sealed: String,
    /// Hex.
    pub signature: String,
}

/// Whose entries the references of a service mean, and so who must agree to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunAs {
    /// One instance for all, with the entries of who deployed it.
    #[default]
    Deployer,
    /// An instance for each caller, with that caller's own entries.
    Caller,
}

impl RunAs {
    pub fn is_deployer(&self) -> bool {
        *self == Self::Deployer
    }
}

/// What stands in a spec for `$vault:key` or `$vault:key:file:/path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultRef {
    /// `None`: the caller of [`RunAs::Caller`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PublicKey>,
    pub key: VaultName,
    /// Where the value appears as a file; the variable then holds this path. `None`: the variable holds the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Text that looks like a reference and is none. Never echoes more than the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    #[error("a reference is `$vault:KEY` or `$vault:KEY:file:/secrets/NAME`")]
    Form,
    #[error("{0}")]
    Name(BadId),
    #[error(
        "a file secret goes to `/secrets/NAME` or `/run/secrets/NAME`, NAME being 1-128 letters, digits, `.`, `_`, `-`"
    )]
    Path,
}

const MARK: &str = "$vault:";

impl VaultRef {
    /// Reads the value of an environment variable; `None` when it is no reference but plain text. Only a whole value
    /// is a reference.
    ///
    /// # Errors
    /// [`BadReference`] for text that begins like a reference.
    pub fn parse(text: &str, owner: Option<&PublicKey>) -> Option<Result<Self, BadReference>> {
        let rest = text.strip_prefix(MARK)?;
        Some(Self::parse_rest(rest, owner))
    }

    fn parse_rest(rest: &str, owner: Option<&PublicKey>) -> Result<Self, BadReference> {
        let (key, file) = match rest.split_once(':') {
            None => (rest, None),
            Some((key, form)) => (key, Some(form.strip_prefix("file:").ok_or(BadReference::Form)?)),
        };
        let key = VaultName::parse(key).map_err(BadReference::Name)?;
        if file.is_some_and(|path| !is_secret_path(path)) {
            return Err(BadReference::Path);
        }
        Ok(Self { owner: owner.cloned(), key, file: file.map(str::to_owned) })
    }

    /// As it was written: `$vault:key` or `$vault:key:file:/path`.
    pub fn text(&self) -> String {
        match &self.file {
            None => format!("{MARK}{}", self.key),
            Some(path) => format!("{MARK}{}:file:{path}", self.key),
        }
    }
}

/// Directories that a jail makes for file secrets.
pub const SECRET_DIRS: [&str; 2] = ["/secrets", "/run/secrets"];

fn is_secret_path(path: &str) -> bool {
    SECRET_DIRS.iter().any(|dir| {
        path.strip_prefix(dir).and_then(|rest| rest.strip_prefix('/')).is_some_and(|name| {
            (1..=128).contains(&name.len())
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
    })
}

/// What a member agrees to: their entries, opened for exactly this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsentDoc {
    /// 1.
    pub v: u32,
    pub mesh: MeshId,
    pub service: ServiceName,
    pub spec: ServiceSpec,
    pub pin: ConsentPin,
    /// More than that of every consent that the signer gave for this service before.
    pub serial: i64,
    /// Consents of this signer for this service below this are withdrawn. At most `serial`.
    pub floor: i64,
    /// No older version of an entry than this may be opened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub min_versions: BTreeMap<VaultName, i64>,
}

/// What of a pin names the code. The artefact is left out: it names the tools of one runner, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsentPin {
    pub kind: String,
    pub name: String,
    pub version: String,
    pub integrity: String,
    /// SHA-256 of the lock, in hex; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lock_sha256: String,
}

/// A signed [`ConsentDoc`]. What was signed is kept as text, so that nobody has to write it the same way twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    pub signer: PublicKey,
    /// JSON of the [`ConsentDoc`].
    pub doc: String,
    /// Hex.
    pub signature: String,
}

/// What the broker asks a member to agree to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentAsk {
    pub service: ServiceName,
    pub generation: i64,
    pub spec: ServiceSpec,
    pub pin: ConsentPin,
    /// The newest version of each entry that is referred to.
    pub versions: BTreeMap<VaultName, i64>,
    /// The newest consent of this member for this service, of whatever generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Consent>,
}

/// What a runner needs to open the entries of one service. Nothing in it is secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Material {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<VaultEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consents: Vec<Consent>,
    /// Whose instance this is, under [`RunAs::Caller`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<PublicKey>,
}

/// How a runner keeps its private key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Custody {
    /// In a file, encrypted under a boot key that the broker keeps and releases.
    #[default]
    Split,
    /// In a file, encrypted under a boot key that the operating system hands over (a systemd credential, a file).
    File,
    /// Nowhere but in memory: after a restart the mesh's owner has to trust the runner again.
    Memory,
}

/// Whether a runner can open anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VaultState {
    /// It has no key yet and wants a boot key to make one.
    New,
    /// It has a key file and wants its boot key.
    Locked {
        boot_id: String,
    },
    Open,
    /// The key file can not be used; the message says why.
    Broken {
        message: String,
    },
}

/// `GET /v1/vault` of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerVault {
    pub custody: Custody,
    pub state: VaultState,
    /// Of an open vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<BoxPublic>,
    /// The vault keys that it holds.
    #[serde(default)]
    pub held: BTreeMap<MeshId, Vec<KeyId>>,
    /// The number of the newest opening in its ledger; 0 when there is none.
    pub last_opening: i64,
    /// Random, written once beside the ledger: numbers of another ledger mean other openings.
    pub ledger: String,
}

/// `PUT /v1/vault/boot-key`: opens the runner's key, or makes one under this boot key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootKey {
    /// Names the boot key, and tells nothing about it.
    pub boot_id: String,
    /// 64 hex digits.
    pub key: crate::Secret,
}

/// `PUT /v1/vault/meshes/{mesh}`: everything that the runner may hold of this mesh. What is not here is forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    pub grants: Vec<Grant>,
}

/// An entry was opened: written by the runner before it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Counts in one ledger of one runner.
    pub seq: i64,
    pub at_ms: i64,
    pub runner: RunnerId,
    pub mesh: MeshId,
    pub owner: PublicKey,
    pub key: VaultName,
    pub version: i64,
    pub service: ServiceName,
    pub generation: i64,
    /// Whose instance, under [`RunAs::Caller`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<MemberId>,
    /// `start`, `restart`, `wake`.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_whole_value_and_nothing_else_is_one() {
        let owner = PublicKey::parse(&"ab".repeat(32)).unwrap();
        let read = |text| VaultRef::parse(text, Some(&owner));
        assert!(read("plain").is_none() && read("x$vault:a").is_none() && read("").is_none());
        for good in
            ["$vault:a", "$vault:gmail-creds:file:/secrets/creds.json", "$vault:A.b_c:file:/run/secrets/x"]
        {
            let reference = read(good).unwrap().unwrap();
            assert_eq!((reference.text().as_str(), reference.owner.as_ref()), (good, Some(&owner)));
        }
        for bad in [
            "$vault:",
            "$vault:a/b",
            "$vault:a b",
            "$vault:a:env",
            "$vault:a:file:",
            "$vault:a:file:/etc/passwd",
            "$vault:a:file:/secrets/../etc/passwd",
            "$vault:a:file:/secrets/.x",
            "$vault:a:file:/secrets/a/b",
            "$vault:.a",
            "$vault:a\0",
            &format!("$vault:{}", "k".repeat(300)),
        ] {
            assert!(read(bad).unwrap().is_err(), "{bad:?}");
        }
    }
}
