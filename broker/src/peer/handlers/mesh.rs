//! Peers, members and invites.

use catalog::access::{self, Action, Decision, Role};
use wire::ErrorCode;
use wire::peer::mesh::{
    InviteCreate, InviteCreated, MemberEntry, MemberListResult, MemberUpdate, MemberUpdated, PeersList,
    SetStatus, StatusSet,
};
use wire::peer::trust::{MeshPolicy, MeshPolicyResult};

use crate::clock;
use crate::error::FrameError;
use crate::invites;
use crate::members;
use crate::peer::dispatch::Asked;
use crate::policy;
use crate::status::{self, Activity};
use crate::store::Member;

pub async fn peers(asked: &Asked) -> Result<(), FrameError> {
    let working_for = asked.broker.limits.working_for;
    let peers = asked.broker.presences.peers(&asked.presence.mesh, working_for);
    asked.answer(&PeersList { peers }).await;
    Ok(())
}

/// Of this session, in every form in which it is here.
pub async fn set_status(asked: &Asked, frame: SetStatus) -> Result<(), FrameError> {
    let activity = Activity::parse(&frame.status).map_err(|e| FrameError::invalid(e.to_string()))?;
    status::of_session(&asked.broker.presences, &asked.presence, activity);
    if asked.req_id.is_some() {
        asked.answer(&StatusSet { status: activity.as_str().into() }).await;
    }
    Ok(())
}

pub async fn invite(asked: &Asked, frame: InviteCreate) -> Result<(), FrameError> {
    may(asked, Action::Invite, "only admins may invite")?;
    let token = invites::register(&asked.broker, &asked.view, &asked.caller, frame).await?;
    asked.answer(&InviteCreated { token }).await;
    Ok(())
}

/// Every member may know who else is one; it is what `list_peers` shows of those who are connected.
pub async fn members(asked: &Asked) -> Result<(), FrameError> {
    let mut tx = asked.broker.store.read().await?;
    let members = tx.members().list(&asked.presence.mesh).await?;
    drop(tx);
    asked.answer(&MemberListResult { members: members.iter().map(entry).collect() }).await;
    Ok(())
}

pub async fn update_member(asked: &Asked, frame: MemberUpdate) -> Result<(), FrameError> {
    may(asked, Action::ManageMembers, "only admins may change members")?;
    let member = members::update(&asked.broker, &asked.caller, frame).await?;
    asked.answer(&MemberUpdated { member: entry(&member) }).await;
    Ok(())
}

pub async fn policy(asked: &Asked, frame: MeshPolicy) -> Result<(), FrameError> {
    let policy = policy::read_or_set(&asked.broker, &asked.caller, frame).await?;
    asked.answer(&MeshPolicyResult { policy }).await;
    Ok(())
}

fn may(asked: &Asked, action: Action, why_not: &str) -> Result<(), FrameError> {
    match access::decide(&asked.caller, action, None) {
        Decision::Allow => Ok(()),
        Decision::Forbidden | Decision::NotFound => Err(FrameError::new(ErrorCode::Forbidden, why_not)),
    }
}

fn entry(member: &Member) -> MemberEntry {
    let role: Role = member.role;
    MemberEntry {
        member_id: member.id.to_string(),
        pubkey: member.pubkey.to_string(),
        display_name: member.display_name.clone(),
        role: role.as_str().into(),
        role_tag: member.role_tag.clone(),
        groups: member.groups.clone(),
        joined_at: clock::iso(member.joined_at),
        revoked: member.is_revoked(),
    }
}
