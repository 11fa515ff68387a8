//! `config.json`: the meshes that this user is a member of (hosting reference §3.1).
//!
//! Here: reading, changing and writing the file (mode 0600 in a 0700 folder, replaced in one step). Keys that we do not
//! know are kept. Not here: environment variables and the home folder; the caller names the folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use wire::vault::{BoxPublic, RunnerId};
use wire::{MemberId, MeshId, PublicKey, Secret, ServiceName};

use crate::identity::{BadIdentity, Identity};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not a claudemesh config: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error("you are a member of no mesh: run `claudemesh up` or `claudemesh join LINK`")]
    NoMesh,
    #[error("no mesh `{wanted}` here; you are a member of: {known}")]
    UnknownMesh { wanted: String, known: String },
    #[error("you are a member of several meshes ({known}): choose one with `--mesh SLUG`")]
    Ambiguous { known: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub version: u32,
    #[serde(default)]
    pub meshes: Vec<MeshEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// What other versions wrote; kept as it is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One membership.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshEntry {
    pub mesh_id: MeshId,
    pub member_id: MemberId,
    pub slug: String,
    pub name: String,
    pub pubkey: PublicKey,
    pub secret_key: Secret,
    pub broker_url: String,
    /// ISO 8601.
    pub joined_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
    /// What this client knows of the mesh's vault without believing a broker.
    #[serde(default)]
    pub vault: VaultTrust,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Learned once, and held against whatever a broker says later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultTrust {
    /// The mesh's owner, who signs its vault keys: from `up` or the invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PublicKey>,
    /// The highest number of a vault key that was seen.
    #[serde(default)]
    pub newest_key: i64,
    /// Of the mesh's owner: the runners that were trusted here. A rotation seals the new key to these and to no other, whatever
    /// a broker lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runners: Vec<BoxPublic>,
    /// Runners that were revoked here: nothing trusts them again but a person who names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<RunnerId>,
    /// The serial of this member's newest consent for each service: a broker that shows an older one as the newest is found out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub signed: BTreeMap<ServiceName, i64>,
}

impl VaultTrust {
    pub fn of_owner(owner: PublicKey) -> Self {
        Self { owner: Some(owner), ..Self::default() }
    }
}

impl MeshEntry {
    /// # Errors
    /// When the stored key is damaged.
    pub fn identity(&self) -> Result<Identity, BadIdentity> {
        Identity::from_secret(&self.secret_key)
    }

    /// What this member binds the plain variables of a service with: the same at each deploy, so that the same deploy twice is
    /// the same service, and known to nobody who can't sign for them.
    ///
    /// # Errors
    /// When the stored key is damaged.
    pub fn env_salt(&self, service: &str) -> Result<Secret, BadIdentity> {
        let statement = format!("claudemesh-env-salt-v1|{}|{service}", self.mesh_id);
        Ok(Secret::new(hex::encode(Sha256::digest(self.identity()?.sign(&statement)))))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { version: 1, meshes: Vec::new(), display_name: None, other: Map::new() }
    }
}

impl Config {
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("config.json")
    }

    /// An absent file is an empty config.
    ///
    /// # Errors
    /// When the file cannot be read or is not a config.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        let path = Self::path(folder);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Io { what: "read", path, source }),
        };
        // serde's message may quote a value, and a value may be a secret key: say only where.
        let config: Self = serde_json::from_str(&text).map_err(|e| ConfigError::Unreadable {
            path: path.clone(),
            why: format!("line {}, column {}", e.line(), e.column()),
        })?;
        if config.version != 1 {
            let why = format!("it has version {}, this claudemesh reads version 1", config.version);
            return Err(ConfigError::Unreadable { path, why });
        }
        Ok(config)
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    /// When the folder or file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ConfigError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Io { what, path, source }
        };
        let text = serde_json::to_string_pretty(self).map_err(|e| failed("write", folder)(e.into()))?;
        private_folder(folder).map_err(failed("create", folder))?;
        write_private(&Self::path(folder), format!("{text}\n").as_bytes())
            .map_err(failed("write", &Self::path(folder)))
    }

    /// The mesh of this slug (or id); without one, the only mesh.
    ///
    /// # Errors
    /// When there is none, or the choice is not clear.
    pub fn choose(&self, wanted: Option<&str>) -> Result<&MeshEntry, ConfigError> {
        let known = || self.meshes.iter().map(|m| m.slug.as_str()).collect::<Vec<_>>().join(", ");
        match (wanted, self.meshes.as_slice()) {
            (_, []) => Err(ConfigError::NoMesh),
            (None, [only]) => Ok(only),
            (None, _) => Err(ConfigError::Ambiguous { known: known() }),
            (Some(slug), all) => all
                .iter()
                .find(|m| m.slug == slug)
                .or_else(|| all.iter().find(|m| m.mesh_id.as_str() == slug))
                .ok_or_else(|| ConfigError::UnknownMesh { wanted: slug.to_owned(), known: known() }),
        }
    }

    /// Changes the file as it is now. Others wait meanwhile: two commands at once lose nothing that either has learned.
    ///
    /// # Errors
    /// When the file can not be read or written.
    pub fn change<T>(folder: &Path, act: impl FnOnce(&mut Self) -> T) -> Result<T, ConfigError> {
        let _turn = take_turn(folder)?;
        let mut config = Self::load(folder)?;
        let done = act(&mut config);
        config.save(folder)?;
        Ok(done)
    }

    /// Changes what is known of one mesh's vault, and nothing else; answers what is known then.
    ///
    /// # Errors
    /// When the file can not be read or written, or knows the mesh no more.
    pub fn learn(
        folder: &Path,
        mesh: &MeshId,
        act: impl FnOnce(&mut VaultTrust),
    ) -> Result<VaultTrust, ConfigError> {
        let _turn = take_turn(folder)?;
        let mut config = Self::load(folder)?;
        let entry = config.meshes.iter_mut().find(|entry| entry.mesh_id == *mesh);
        let entry = entry.ok_or(ConfigError::NoMesh)?;
        let before = entry.vault.clone();
        act(&mut entry.vault);
        let known = entry.vault.clone();
        if known != before {
            config.save(folder)?;
        }
        Ok(known)
    }

    /// Adds or replaces the membership of this mesh. A slug that another mesh has already gets a number.
    pub fn put(&mut self, mut entry: MeshEntry) -> &MeshEntry {
        self.meshes.retain(|m| m.mesh_id != entry.mesh_id);
        let wanted = entry.slug.clone();
        let mut n = 2;
        while self.meshes.iter().any(|m| m.slug == entry.slug) {
            entry.slug = format!("{wanted}-{n}");
            n += 1;
        }
        self.meshes.push(entry);
        self.meshes.last().expect("one was just pushed")
    }
}

/// Held while the file is read, changed and written. The folder itself is locked, so that nothing lies beside the file.
fn take_turn(folder: &Path) -> Result<fs::File, ConfigError> {
    let failed = |source| ConfigError::Io { what: "lock", path: folder.to_owned(), source };
    private_folder(folder).map_err(failed)?;
    let turn = fs::File::open(folder).map_err(failed)?;
    turn.lock().map_err(failed)?;
    Ok(turn)
}

/// Creates the folder for its owner alone. One that exists keeps its mode.
///
/// # Errors
/// As the file system says.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a file of mode 0600 by renaming a complete copy over it.
///
/// # Errors
/// As the file system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", crate::identity::random_hex()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("cm-config-{}", crate::identity::random_hex()));
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(mesh: u8, slug: &str) -> MeshEntry {
        let identity = Identity::from_seed([mesh; 32]);
        MeshEntry {
            mesh_id: MeshId::parse(&format!("M{mesh:031}")).unwrap(),
            member_id: MemberId::parse(&format!("U{mesh:031}")).unwrap(),
            slug: slug.into(),
            name: slug.into(),
            pubkey: identity.public().clone(),
            secret_key: identity.secret(),
            broker_url: "ws://127.0.0.1:7900/ws".into(),
            joined_at: "2026-01-02T03:04:05Z".into(),
            root_key: None,
            vault: VaultTrust::default(),
            other: Map::new(),
        }
    }

    #[test]
    fn a_saved_config_is_private_and_reads_back() {
        let home = Scratch::new();
        let mut config = Config { display_name: Some("Ana".into()), ..Config::default() };
        config.put(entry(1, "acme"));
        config.save(&home.0).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&Config::path(&home.0)), 0o600);
        assert_eq!(mode(&home.0), 0o700);
        let back = Config::load(&home.0).unwrap();
        assert_eq!(back.choose(None).unwrap().slug, "acme");
        assert_eq!(back.meshes[0].identity().unwrap().public(), &back.meshes[0].pubkey);
        // Nothing is left beside the file.
        assert_eq!(fs::read_dir(&home.0).unwrap().count(), 1);
    }

    #[test]
    fn changes_at_the_same_time_lose_nothing() {
        let home = Scratch::new();
        let mut config = Config::default();
        config.put(entry(1, "acme"));
        config.save(&home.0).unwrap();
        let mesh = entry(1, "").mesh_id;
        let service = |n: i64| ServiceName::parse(&format!("s{n}")).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (folder, mesh) = (&home.0, &mesh);
                scope.spawn(move || {
                    let note = |trust: &mut VaultTrust| trust.signed.extend([(service(n), n)]);
                    Config::learn(folder, mesh, note).unwrap()
                });
                scope.spawn(move || Config::change(folder, |c| c.display_name = Some("Ana".into())).unwrap());
            }
        });
        let back = Config::load(&home.0).unwrap();
        assert_eq!((back.meshes[0].vault.signed.len(), back.display_name.as_deref()), (8, Some("Ana")));
    }

    #[test]
    fn unknown_keys_survive_a_rewrite() {
        let home = Scratch::new();
        private_folder(&home.0).unwrap();
        let mut value =
            serde_json::to_value(Config { meshes: vec![entry(1, "a")], ..Config::default() }).unwrap();
        value["accountId"] = "acc_1".into();
        value["meshes"][0]["inviteVersion"] = 2.into();
        fs::write(Config::path(&home.0), value.to_string()).unwrap();
        Config::load(&home.0).unwrap().save(&home.0).unwrap();
        let text = fs::read_to_string(Config::path(&home.0)).unwrap();
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back["accountId"], "acc_1");
        assert_eq!(back["meshes"][0]["inviteVersion"], 2);
        assert_eq!(back["version"], 1);
    }

    #[test]
    fn a_damaged_config_is_refused_without_echoing_a_secret() {
        let home = Scratch::new();
        private_folder(&home.0).unwrap();
        fs::write(Config::path(&home.0), r#"{"version":1,"meshes":[{"meshId":"s3cret"}]}"#).unwrap();
        let message = Config::load(&home.0).unwrap_err().to_string();
        assert!(message.contains("not a claudemesh config") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn the_only_mesh_is_the_default_and_two_need_a_choice() {
        let mut config = Config::default();
        assert!(matches!(config.choose(None), Err(ConfigError::NoMesh)));
        config.put(entry(1, "acme"));
        config.put(entry(2, "acme"));
        assert!(matches!(config.choose(None), Err(ConfigError::Ambiguous { .. })));
        assert_eq!(config.choose(Some("acme-2")).unwrap().mesh_id, entry(2, "").mesh_id);
        assert!(matches!(config.choose(Some("x")), Err(ConfigError::UnknownMesh { .. })));
        // The same mesh again replaces its entry.
        config.put(entry(2, "other"));
        assert_eq!(config.meshes.len(), 2);
    }
}
