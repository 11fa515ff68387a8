//! The first run: a mesh, and its owner's identity.
//!
//! The identity is written down before the mesh is made, so that a crash between the two never leaves a mesh that nobody
//! owns: making a mesh for a key that has one gives that mesh.

use std::path::{Path, PathBuf};

use broker::Bootstrapped;
use client::config::{VaultTrust, private_folder, write_private};
use client::{Config, Identity, MeshEntry};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wire::{MeshId, PublicKey, Secret};

use crate::commands::display_name;
use crate::failure::Failure;
use crate::here::Here;

const DEFAULT_NAME: &str = "home";

/// Which mesh belongs to this folder.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    mesh_id: MeshId,
}

/// An owner whose mesh may not exist yet.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pending {
    name: String,
    secret_key: Secret,
}

/// The files of the first run.
pub struct OwnerFiles {
    made: PathBuf,
    pending: PathBuf,
}

pub struct Owner {
    pub slug: String,
    pub display_name: String,
    pub pubkey: PublicKey,
    name: String,
    secret_key: Secret,
    /// What the config holds already.
    known: Option<MeshEntry>,
}

impl OwnerFiles {
    pub fn in_folder(folder: &Path) -> Self {
        Self { made: folder.join("mesh.json"), pending: folder.join("first-run.json") }
    }

    /// The owner of this folder's mesh; a new one when the folder has none.
    pub fn owner(&self, here: &Here, name: Option<&str>) -> Result<Owner, Failure> {
        let config = here.config()?;
        let display_name = display_name(None, &config);
        if let Some(Made { mesh_id }) = read_json(&self.made)? {
            let known = config.meshes.iter().find(|mesh| mesh.mesh_id == mesh_id).cloned();
            let known = known.ok_or_else(|| not_here(&self.made, &here.config_folder))?;
            return Ok(Owner {
                slug: known.slug.clone(),
                display_name,
                pubkey: known.pubkey.clone(),
                name: known.name.clone(),
                secret_key: known.secret_key.clone(),
                known: Some(known),
            });
        }
        let pending = match read_json(&self.pending)? {
            Some(pending) => pending,
            None => self.begin(name.unwrap_or(DEFAULT_NAME))?,
        };
        let Pending { name, secret_key } = pending;
        let identity = Identity::from_secret(&secret_key)
            .map_err(|e| Failure::platform(format!("{}: {e}", self.pending.display())))?;
        Ok(Owner {
            slug: slug_of(&name),
            display_name,
            pubkey: identity.public().clone(),
            name,
            secret_key,
            known: None,
        })
    }

    /// Whether a mesh belongs to this folder, or is about to.
    pub fn are_there(&self) -> bool {
        self.made.exists() || self.pending.exists()
    }

    /// The next `up` on this folder is by this owner, whose mesh is in its database already.
    pub fn expect_owner(&self, name: &str, secret_key: &Secret) -> Result<(), Failure> {
        self.write_pending(&Pending { name: name.to_owned(), secret_key: secret_key.clone() })
    }

    fn begin(&self, name: &str) -> Result<Pending, Failure> {
        let failed = |e: client::identity::BadIdentity| Failure::platform(e.to_string());
        let pending =
            Pending { name: name.to_owned(), secret_key: Identity::generate().map_err(failed)?.secret() };
        self.write_pending(&pending)?;
        Ok(pending)
    }

    fn write_pending(&self, pending: &Pending) -> Result<(), Failure> {
        if let Some(folder) = self.pending.parent() {
            private_folder(folder).map_err(|e| unwritable(folder, &e))?;
        }
        write_json(&self.pending, pending)
    }

    /// Writes the membership down. Called again, it only renews the address.
    pub fn finish(
        &self,
        here: &Here,
        owner: Owner,
        mesh: Bootstrapped,
        broker_url: &str,
    ) -> Result<MeshEntry, Failure> {
        let Bootstrapped { mesh: mesh_id, member: member_id, slug, root_key } = mesh;
        let made = Made { mesh_id: mesh_id.clone() };
        let entry = Config::change(&here.config_folder, |config| {
            // A database that was thrown away has made another mesh for the same owner.
            if let Some(known) = owner.known.as_ref().filter(|known| known.mesh_id != mesh_id) {
                config.meshes.retain(|mesh| mesh.mesh_id != known.mesh_id);
            }
            let joined_at = owner.known.as_ref().map_or_else(
                || chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
                |known| known.joined_at.clone(),
            );
            // As it is by now: another command may have learned of the vault meanwhile.
            let before = config.meshes.iter().find(|known| known.mesh_id == mesh_id);
            let vault = VaultTrust {
                owner: Some(owner.pubkey.clone()),
                ..before.map(|known| known.vault.clone()).unwrap_or_default()
            };
            config.display_name.get_or_insert(owner.display_name);
            let entry = config.put(MeshEntry {
                vault,
                mesh_id,
                member_id,
                slug: owner.known.as_ref().map_or(slug, |known| known.slug.clone()),
                name: owner.name,
                pubkey: owner.pubkey,
                secret_key: owner.secret_key,
                broker_url: broker_url.to_owned(),
                joined_at,
                root_key: Some(root_key),
                other: owner.known.map(|known| known.other).unwrap_or_default(),
            });
            entry.clone()
        })?;
        write_json(&self.made, &made)?;
        // Last: until here the owner's key must be somewhere.
        match std::fs::remove_file(&self.pending) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(unwritable(&self.pending, &e)),
            _ => Ok(entry),
        }
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Secret::new(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::platform(format!("cannot read {}: {e}", path.display()))),
    };
    // serde's own message could quote the key.
    serde_json::from_str(text.expose())
        .map(Some)
        .map_err(|_| Failure::platform(format!("{} is damaged", path.display())))
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let text = serde_json::to_vec(value).map_err(|e| unwritable(path, &e.into()))?;
    write_private(path, &text).map_err(|e| unwritable(path, &e))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::platform(format!("cannot write {}: {error}", path.display()))
}

fn not_here(made: &Path, config: &Path) -> Failure {
    let message = format!(
        "{} names a mesh whose owner's identity is not in {}",
        made.display(),
        Config::path(config).display()
    );
    Failure::user(message)
        .with_cure("Set CLAUDEMESH_CONFIG_DIR to the config of the first run, or use another --data folder.")
}

/// Lowercase letters, digits and single `-`.
fn slug_of(name: &str) -> String {
    let words: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let slug: String = words.join("-").chars().take(48).collect();
    if slug.is_empty() { DEFAULT_NAME.to_owned() } else { slug.trim_end_matches('-').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::out::Out;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let mut bytes = [0_u8; 8];
            getrandom::fill(&mut bytes).unwrap();
            let path = std::env::temp_dir().join(format!("cm-owner-{}", hex::encode(bytes)));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn here(&self) -> Here {
            let out = Out { json: false, quiet: true };
            Here { out, config_folder: self.0.join("config"), mesh: None }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn made() -> Bootstrapped {
        Bootstrapped {
            mesh: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            member: wire::MemberId::parse("U0000000000000000000000000000001").unwrap(),
            slug: "acme".into(),
            root_key: "BwcH".into(),
        }
    }

    #[test]
    fn a_crash_before_the_mesh_exists_keeps_the_same_owner() {
        let scratch = Scratch::new();
        let files = OwnerFiles::in_folder(&scratch.0.join("data"));
        let first = files.owner(&scratch.here(), Some("Acme, Inc.")).unwrap();
        let again = files.owner(&scratch.here(), None).unwrap();
        assert_eq!(first.pubkey, again.pubkey);
        assert_eq!(again.slug, "acme-inc");
    }

    #[test]
    fn the_second_run_finds_the_owner_and_renews_the_address() {
        let scratch = Scratch::new();
        let here = scratch.here();
        let files = OwnerFiles::in_folder(&scratch.0.join("data"));
        let owner = files.owner(&here, Some("Acme")).unwrap();
        let key = owner.pubkey.clone();
        files.finish(&here, owner, made(), "ws://a/ws").unwrap();
        assert!(!scratch.0.join("data/first-run.json").exists());
        let owner = files.owner(&here, Some("ignored")).unwrap();
        assert_eq!((owner.pubkey.clone(), owner.slug.as_str()), (key, "acme"));
        let entry = files.finish(&here, owner, made(), "ws://b/ws").unwrap();
        assert_eq!(entry.broker_url, "ws://b/ws");
        assert_eq!(here.config().unwrap().meshes.len(), 1);
        assert_eq!(here.config().unwrap().meshes[0].root_key.as_deref(), Some("BwcH"));
    }

    #[test]
    fn a_folder_of_another_owner_is_not_taken_over() {
        let scratch = Scratch::new();
        let files = OwnerFiles::in_folder(&scratch.0.join("data"));
        let owner = files.owner(&scratch.here(), None).unwrap();
        files.finish(&scratch.here(), owner, made(), "ws://a/ws").unwrap();
        let stranger = Here { config_folder: scratch.0.join("other"), ..scratch.here() };
        let refused = files.owner(&stranger, None).err().unwrap();
        assert!(refused.message.contains("owner's identity is not in"), "{}", refused.message);
    }
}
