//! The first mesh and its owner, for `claudemesh up`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use catalog::access::Role;
use wire::{MemberId, MeshId, PublicKey};

use crate::error::shown;
use crate::store::{Member, Mesh, Store, StoreError};
use crate::{clock, fresh};

/// What [`bootstrap`] found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrapped {
    pub mesh: MeshId,
    pub member: MemberId,
    pub slug: String,
    /// Part of every invite that the owner signs.
    pub root_key: String,
}

/// The mesh of this owner key, made when there is none. Doing it again changes nothing.
///
/// # Errors
/// [`StoreError`].
pub async fn bootstrap(
    store: &Store,
    slug: &str,
    owner: &PublicKey,
    display_name: &str,
) -> Result<Bootstrapped, StoreError> {
    let mut tx = store.begin().await?;
    let found = tx.meshes().by_owner(owner).await?.into_iter().next();
    let mesh = match found {
        Some(mesh) => mesh,
        None => {
            let mesh = new_mesh(slug, owner);
            tx.meshes().insert(&mesh).await?;
            mesh
        }
    };
    let member = match tx.members().by_pubkey(&mesh.id, owner).await? {
        Some(member) => member.id,
        None => {
            let owner = new_owner(&mesh, display_name);
            tx.members().insert(&owner).await?;
            owner.id
        }
    };
    tx.commit().await?;
    Ok(Bootstrapped { mesh: mesh.id, member, slug: mesh.slug, root_key: mesh.root_key })
}

fn new_mesh(slug: &str, owner: &PublicKey) -> Mesh {
    let mut root = [0_u8; 32];
    getrandom::fill(&mut root).expect("the operating system has random numbers");
    Mesh {
        id: fresh::mesh_id(),
        slug: shown(slug),
        name: shown(slug),
        owner_pubkey: owner.clone(),
        root_key: URL_SAFE_NO_PAD.encode(root),
        created_at: clock::now_ms(),
        policy: wire::Policy::default(),
    }
}

fn new_owner(mesh: &Mesh, display_name: &str) -> Member {
    Member {
        id: fresh::member_id(),
        mesh: mesh.id.clone(),
        pubkey: mesh.owner_pubkey.clone(),
        display_name: shown(display_name),
        role: Role::Owner,
        role_tag: None,
        groups: Vec::new(),
        message_mode: "push".into(),
        joined_at: clock::now_ms(),
        revoked_at: None,
    }
}
