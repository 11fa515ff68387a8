//! Invites: registering what the mesh owner signed, and joining with it.
//!
//! Here: the order of checks of the hosting reference §4.2 and its error words. Not here: HTTP (`http::join`), making
//! and signing a link (the owner's own machine).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use catalog::access::{Caller, Role};
use sha2::{Digest, Sha256};
use wire::peer::mesh::{InviteCreate, InvitePayload, InvitePreset, Join, Joined};
use wire::{ErrorCode, MeshId, PublicKey};

use crate::app::Broker;
use crate::commit::commit;
use crate::error::{FrameError, shown};
use crate::store::{Invite, Member, StoreError, Tx};
use crate::views::MeshView;
use crate::{clock, fresh, identity, members};

const MAX_USES: u32 = 1000;

/// The text of each is what `POST /join` answers; a refusal is its code alone.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0}")]
    Field(&'static str),
    #[error("{0}")]
    Refused(ErrorCode),
    #[error("storage failed")]
    Store(#[from] StoreError),
}

/// The text form of an invite: base64url of its payload.
fn token_of(payload: &InvitePayload) -> Result<String, serde_json::Error> {
    serde_json::to_vec(payload).map(|json| URL_SAFE_NO_PAD.encode(json))
}

/// What an invite is found by: what the owner signed, and not one of the ways to write it down. So nobody can register
/// the same invite twice, with another number of uses.
fn digest(payload: &InvitePayload, mesh: &MeshId) -> String {
    hex::encode(Sha256::digest(identity::invite_text(payload, mesh).as_bytes()))
}

/// Makes a signed invite usable. The signature must be of this mesh's owner, whoever brings it.
///
/// # Errors
/// `invite_bad_signature`, `invite_owner_mismatch`, `invite_expired`, `invalid_args` or `conflict`.
pub async fn register(
    broker: &Broker,
    view: &MeshView,
    caller: &Caller,
    frame: InviteCreate,
) -> Result<String, FrameError> {
    let InviteCreate { payload, max_uses, preset } = frame;
    let refuse = |code: ErrorCode| FrameError::new(code, code.cause());
    let mesh = &view.mesh().id;
    if payload.mesh_id != mesh.as_str() {
        return Err(refuse(ErrorCode::InviteMeshMismatch));
    }
    if !identity::is_signed_invite(&payload, mesh) {
        return Err(refuse(ErrorCode::InviteBadSignature));
    }
    if payload.owner_pubkey != view.mesh().owner_pubkey.as_str() {
        return Err(refuse(ErrorCode::InviteOwnerMismatch));
    }
    let role = Role::parse(&payload.role).ok().filter(|role| *role < Role::Owner);
    let role = role.ok_or_else(|| FrameError::invalid("role: `admin`, `member` or `guest`"))?;
    if !(1..=MAX_USES).contains(&max_uses) {
        return Err(FrameError::invalid("max_uses: 1 to 1000"));
    }
    let now = clock::now_ms();
    let expires_at = payload.expires_at.saturating_mul(1000);
    if expires_at <= now {
        return Err(refuse(ErrorCode::InviteExpired));
    }
    members::preset_is_valid(preset.role_tag.as_deref(), &preset.groups)?;
    let InvitePreset { display_name, role_tag, groups } = preset;
    let preset = InvitePreset {
        display_name: display_name.map(|name| shown(&name)).filter(|name| !name.is_empty()),
        role_tag,
        groups: groups.into_iter().map(members::bare).collect(),
    };
    let token = token_of(&payload).map_err(|error| FrameError::internal(&error))?;
    let invite = Invite {
        token_sha256: digest(&payload, mesh),
        mesh: mesh.clone(),
        role,
        preset,
        max_uses,
        used_count: 0,
        expires_at,
        created_by: caller.member.clone(),
        created_at: now,
        revoked_at: None,
    };
    let mut tx = broker.store.begin().await?;
    tx.invites().insert(&invite).await.map_err(|error| match error {
        StoreError::Conflict => FrameError::new(ErrorCode::Conflict, "this invite is registered already"),
        other => other.into(),
    })?;
    tx.commit().await?;
    Ok(token)
}

/// Carries out `POST /join`.
///
/// # Errors
/// [`JoinError`], the first check that fails.
pub async fn join(broker: &Broker, join: Join) -> Result<Joined, JoinError> {
    let Join { invite_token, invite_payload, peer_pubkey, display_name } = join;
    let name = shown(display_name.trim());
    if invite_token.is_empty() || name.is_empty() {
        return Err(JoinError::Field("invite_token, invite_payload, peer_pubkey, display_name required"));
    }
    let key = PublicKey::parse(&peer_pubkey.to_ascii_lowercase())
        .map_err(|_| JoinError::Field("peer_pubkey must be 64 hex chars (32 bytes)"))?;
    let refuse = |code| JoinError::Refused(code);
    let mesh_id = MeshId::parse(&invite_payload.mesh_id).map_err(|_| refuse(ErrorCode::MeshNotFound))?;
    if !identity::is_signed_invite(&invite_payload, &mesh_id) {
        return Err(refuse(ErrorCode::InviteBadSignature));
    }
    let mut tx = broker.store.begin().await?;
    let mesh = tx.meshes().find(&mesh_id).await?.ok_or(refuse(ErrorCode::MeshNotFound))?;
    if mesh.owner_pubkey.as_str() != invite_payload.owner_pubkey {
        return Err(refuse(ErrorCode::InviteOwnerMismatch));
    }
    let now = clock::now_ms();
    let invite = usable_invite(&mut tx, (&invite_token, &invite_payload), &mesh_id, now).await?;
    if let Some(member) = tx.members().by_pubkey(&mesh_id, &key).await? {
        // A removed key stays removed: whoever shall come back gets a new identity and a new invite.
        return if member.is_revoked() {
            Err(refuse(ErrorCode::Revoked))
        } else {
            Ok(Joined { ok: true, member_id: member.id.to_string(), already_member: true })
        };
    }
    if !tx.invites().consume(&invite.token_sha256, now).await? {
        return Err(refuse(ErrorCode::InviteExhausted));
    }
    let id = insert_member(&mut tx, &invite, key, &name, now).await?;
    commit(broker, &mesh_id, tx).await?;
    Ok(Joined { ok: true, member_id: id, already_member: false })
}

async fn usable_invite(
    tx: &mut Tx,
    (token, payload): (&str, &InvitePayload),
    mesh: &MeshId,
    now: i64,
) -> Result<Invite, JoinError> {
    let unknown = || JoinError::Refused(ErrorCode::InviteNotFound);
    // The token is the payload in one spelling; another one was never given out.
    if !token_of(payload).is_ok_and(|own| own == token) {
        return Err(unknown());
    }
    // The mesh is part of what was signed, so an invite that is found is of this mesh.
    let invite = tx.invites().find(&digest(payload, mesh)).await?.ok_or_else(unknown)?;
    let refusal = if invite.revoked_at.is_some() {
        Some(ErrorCode::InviteRevoked)
    } else if invite.expires_at <= now {
        Some(ErrorCode::InviteExpired)
    } else {
        None
    };
    refusal.map_or(Ok(invite), |code| Err(JoinError::Refused(code)))
}

/// The role comes from the invite that the owner registered, never from the joiner's request.
async fn insert_member(
    tx: &mut Tx,
    invite: &Invite,
    pubkey: PublicKey,
    wish: &str,
    now: i64,
) -> Result<String, JoinError> {
    let InvitePreset { display_name, role_tag, groups } = invite.preset.clone();
    let display_name = tx.members().free_name(&invite.mesh, display_name.as_deref().unwrap_or(wish)).await?;
    let member = Member {
        id: fresh::member_id(),
        mesh: invite.mesh.clone(),
        pubkey,
        display_name,
        role: invite.role,
        role_tag,
        groups,
        message_mode: "push".into(),
        joined_at: now,
        revoked_at: None,
    };
    tx.members().insert(&member).await?;
    Ok(member.id.to_string())
}
