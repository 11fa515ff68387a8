//! Invites: how somebody becomes a member. Keyed by the SHA-256 (lowercase hex) of what the owner
//! signed; the column is still called `token_sha256`, as an applied migration is never edited.

use catalog::Role;
use wire::peer::mesh::InvitePreset;
use wire::{MemberId, MeshId};

use super::row::{Place, to_json};
use super::{StoreError, Tx, execute, fetch_optional};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    pub token_sha256: String,
    pub mesh: MeshId,
    /// Never [`Role::Owner`].
    pub role: Role,
    pub preset: InvitePreset,
    pub max_uses: u32,
    pub used_count: u32,
    pub expires_at: i64,
    pub created_by: MemberId,
    pub created_at: i64,
    pub revoked_at: Option<i64>,
}

pub struct Invites<'t> {
    pub(super) tx: &'t mut Tx,
}

const INSERT: &str = "INSERT INTO invite (token_sha256, mesh_id, role, preset, max_uses, used_count, expires_at, \
    created_by, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING";
const FIND: &str = "SELECT token_sha256, mesh_id, role, preset, max_uses, used_count, expires_at, \
    created_by, created_at, revoked_at FROM invite WHERE token_sha256 = $1";
const CONSUME: &str = "UPDATE invite SET used_count = used_count + 1 \
    WHERE token_sha256 = $1 AND revoked_at IS NULL AND expires_at > $2 AND used_count < max_uses";
const REVOKE: &str = "UPDATE invite SET revoked_at = $2 WHERE token_sha256 = $1 AND revoked_at IS NULL";

impl Invites<'_> {
    /// # Errors
    /// [`StoreError::Conflict`] when the token is known already.
    pub async fn insert(&mut self, invite: &Invite) -> Result<(), StoreError> {
        let Invite {
            token_sha256,
            mesh,
            role,
            preset,
            max_uses,
            used_count,
            expires_at,
            created_by,
            created_at,
            revoked_at,
        } = invite;
        let rows = execute!(
            &mut *self.tx,
            INSERT,
            token_sha256,
            mesh.as_str(),
            role.as_str(),
            to_json(preset),
            i64::from(*max_uses),
            i64::from(*used_count),
            expires_at,
            created_by.as_str(),
            created_at,
            revoked_at
        )?;
        if rows == 1 { Ok(()) } else { Err(StoreError::Conflict) }
    }

    /// In whatever state it is.
    pub async fn find(&mut self, token_sha256: &str) -> Result<Option<Invite>, StoreError> {
        let row: Option<InviteRow> = fetch_optional!(&mut *self.tx, FIND, token_sha256)?;
        row.map(Invite::try_from).transpose()
    }

    /// Takes one use. `false` when none is left, or it has ended or was withdrawn: [`Invites::find`] says which.
    pub async fn consume(&mut self, token_sha256: &str, now: i64) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, CONSUME, token_sha256, now)? == 1)
    }

    /// `false` when it was withdrawn before, or is unknown.
    pub async fn revoke(&mut self, token_sha256: &str, now: i64) -> Result<bool, StoreError> {
        Ok(execute!(&mut *self.tx, REVOKE, token_sha256, now)? == 1)
    }
}

#[derive(sqlx::FromRow)]
struct InviteRow {
    token_sha256: String,
    mesh_id: String,
    role: String,
    preset: String,
    max_uses: i64,
    used_count: i64,
    expires_at: i64,
    created_by: String,
    created_at: i64,
    revoked_at: Option<i64>,
}

impl TryFrom<InviteRow> for Invite {
    type Error = StoreError;
    fn try_from(row: InviteRow) -> Result<Self, StoreError> {
        let InviteRow {
            token_sha256,
            mesh_id,
            role,
            preset,
            max_uses,
            used_count,
            expires_at,
            created_by,
            created_at,
            revoked_at,
        } = row;
        let place = Place { table: "invite", id: &token_sha256 };
        Ok(Self {
            mesh: place.mesh(&mesh_id)?,
            role: Role::parse(&role).map_err(|_| place.broken("role"))?,
            preset: place.json("preset", &preset)?,
            max_uses: u32::try_from(max_uses).map_err(|_| place.broken("max_uses"))?,
            used_count: u32::try_from(used_count).map_err(|_| place.broken("used_count"))?,
            created_by: place.member("created_by", &created_by)?,
            token_sha256,
            expires_at,
            created_at,
            revoked_at,
        })
    }
}
