//! Members: who holds which key in which mesh, and what an admin said about them.
//!
//! A display name belongs to one member of a mesh for ever, since scopes may hold names; see [`Members::free_name`].

use std::collections::HashSet;

use catalog::{Caller, Role};
use wire::peer::hello::Group;
use wire::{MemberId, MeshId, PublicKey};

use super::row::{Place, to_json};
use super::{StoreError, Tx, execute, fetch_all, fetch_optional};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    pub mesh: MeshId,
    pub pubkey: PublicKey,
    pub display_name: String,
    pub role: Role,
    pub role_tag: Option<String>,
    pub groups: Vec<Group>,
    pub message_mode: String,
    pub joined_at: i64,
    pub revoked_at: Option<i64>,
}

impl Member {
    /// The member as the access table asks for it.
    pub fn caller(&self) -> Caller {
        Caller {
            mesh: self.mesh.clone(),
            member: self.id.clone(),
            display_name: self.display_name.clone(),
            role: self.role,
            role_tag: self.role_tag.clone(),
            groups: self.groups.clone(),
        }
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked_at.is_some()
    }
}

/// What an admin changes; absent fields stay. An empty `role_tag` removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberChange {
    pub role: Option<Role>,
    pub role_tag: Option<String>,
    pub groups: Option<Vec<Group>>,
}

pub struct Members<'t> {
    pub(super) tx: &'t mut Tx,
}

/// Columns by name: with `*`, a column that a newer broker adds would break the prepared statements of this one.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, mesh_id, pubkey, display_name, role, role_tag, in_groups, message_mode, joined_at, revoked_at \
             FROM member ",
            $rest
        )
    };
}

const INSERT: &str = "INSERT INTO member (id, mesh_id, pubkey, display_name, role, role_tag, in_groups, message_mode, \
    joined_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
const BY_KEY: &str = select!("WHERE mesh_id = $1 AND pubkey = $2");
const BY_ID: &str = select!("WHERE mesh_id = $1 AND id = $2");
const BY_NAME: &str = select!("WHERE mesh_id = $1 AND display_name = $2");
const LIST: &str = select!("WHERE mesh_id = $1 ORDER BY joined_at, id");
const NAMES: &str = "SELECT display_name FROM member WHERE mesh_id = $1";
const UPDATE: &str = "UPDATE member SET role = COALESCE($4, role), role_tag = NULLIF(COALESCE($5, role_tag), ''), \
    in_groups = COALESCE($6, in_groups) WHERE mesh_id = $1 AND id = $2 AND role = $3 AND revoked_at IS NULL";
const REVOKE: &str = "UPDATE member SET revoked_at = $4 \
    WHERE mesh_id = $1 AND id = $2 AND role = $3 AND revoked_at IS NULL";

impl Members<'_> {
    /// # Errors
    /// [`StoreError::Conflict`] when the id, the key or the display name is taken in the mesh.
    pub async fn insert(&mut self, member: &Member) -> Result<(), StoreError> {
        let Member {
            id,
            mesh,
            pubkey,
            display_name,
            role,
            role_tag,
            groups,
            message_mode,
            joined_at,
            revoked_at,
        } = member;
        let rows = execute!(
            &mut *self.tx,
            INSERT,
            id.as_str(),
            mesh.as_str(),
            pubkey.as_str(),
            display_name,
            role.as_str(),
            role_tag.as_deref(),
            to_json(groups),
            message_mode,
            joined_at,
            revoked_at
        )?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// Revoked members too: their key must be told that it was revoked.
    pub async fn by_pubkey(&mut self, mesh: &MeshId, key: &PublicKey) -> Result<Option<Member>, StoreError> {
        let row: Option<MemberRow> = fetch_optional!(&mut *self.tx, BY_KEY, mesh.as_str(), key.as_str())?;
        row.map(Member::try_from).transpose()
    }

    /// Revoked members too.
    pub async fn by_id(&mut self, mesh: &MeshId, id: &MemberId) -> Result<Option<Member>, StoreError> {
        let row: Option<MemberRow> = fetch_optional!(&mut *self.tx, BY_ID, mesh.as_str(), id.as_str())?;
        row.map(Member::try_from).transpose()
    }

    /// The member whom a person means: by id, else by exact display name. Revoked members too.
    pub async fn by_name_or_id(&mut self, mesh: &MeshId, text: &str) -> Result<Option<Member>, StoreError> {
        if let Ok(id) = MemberId::parse(text)
            && let Some(member) = self.by_id(mesh, &id).await?
        {
            return Ok(Some(member));
        }
        let row: Option<MemberRow> = fetch_optional!(&mut *self.tx, BY_NAME, mesh.as_str(), text)?;
        row.map(Member::try_from).transpose()
    }

    /// All of a mesh, revoked ones too, in the order of joining.
    pub async fn list(&mut self, mesh: &MeshId) -> Result<Vec<Member>, StoreError> {
        let rows: Vec<MemberRow> = fetch_all!(&mut *self.tx, LIST, mesh.as_str())?;
        rows.into_iter().map(Member::try_from).collect()
    }

    /// `wish` if nobody in the mesh ever had it, else the first free of `wish-2`, `wish-3`, …
    pub async fn free_name(&mut self, mesh: &MeshId, wish: &str) -> Result<String, StoreError> {
        let rows: Vec<NameRow> = fetch_all!(&mut *self.tx, NAMES, mesh.as_str())?;
        let taken: HashSet<String> = rows.into_iter().map(|row| row.display_name).collect();
        if !taken.contains(wish) {
            return Ok(wish.to_owned());
        }
        let mut numbered = (2_usize..).map(|n| format!("{wish}-{n}")).filter(|name| !taken.contains(name));
        Ok(numbered.next().expect("a finite set leaves a number free"))
    }

    /// Changes a member whose role was `seen` when the rights of the caller were checked.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the role is another by now, or the member is revoked or unknown.
    pub async fn update(
        &mut self,
        mesh: &MeshId,
        id: &MemberId,
        seen: Role,
        change: &MemberChange,
    ) -> Result<(), StoreError> {
        let MemberChange { role, role_tag, groups } = change;
        let rows = execute!(
            &mut *self.tx,
            UPDATE,
            mesh.as_str(),
            id.as_str(),
            seen.as_str(),
            role.map(Role::as_str),
            role_tag.as_deref(),
            groups.as_ref().map(to_json)
        )?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// Ends a membership for good.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] as for [`Members::update`].
    pub async fn revoke(
        &mut self,
        mesh: &MeshId,
        id: &MemberId,
        seen: Role,
        at: i64,
    ) -> Result<(), StoreError> {
        let rows = execute!(&mut *self.tx, REVOKE, mesh.as_str(), id.as_str(), seen.as_str(), at)?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }
}

#[derive(sqlx::FromRow)]
struct NameRow {
    display_name: String,
}

#[derive(sqlx::FromRow)]
struct MemberRow {
    id: String,
    mesh_id: String,
    pubkey: String,
    display_name: String,
    role: String,
    role_tag: Option<String>,
    in_groups: String,
    message_mode: String,
    joined_at: i64,
    revoked_at: Option<i64>,
}

impl TryFrom<MemberRow> for Member {
    type Error = StoreError;
    fn try_from(row: MemberRow) -> Result<Self, StoreError> {
        let MemberRow {
            id,
            mesh_id,
            pubkey,
            display_name,
            role,
            role_tag,
            in_groups,
            message_mode,
            joined_at,
            revoked_at,
        } = row;
        let place = Place { table: "member", id: &id };
        Ok(Self {
            id: place.member("id", &id)?,
            mesh: place.mesh(&mesh_id)?,
            pubkey: place.id("pubkey", PublicKey::parse, &pubkey)?,
            role: Role::parse(&role).map_err(|_| place.broken("role"))?,
            groups: place.json("in_groups", &in_groups)?,
            display_name,
            role_tag,
            message_mode,
            joined_at,
            revoked_at,
        })
    }
}
