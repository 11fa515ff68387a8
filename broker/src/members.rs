//! Changing and removing members.
//!
//! Here: what an admin may change of whom, and what follows from a removal. Not here: joining (`invites`).

use catalog::access::{self, Caller, Role};
use wire::ErrorCode;
use wire::peer::hello::Group;
use wire::peer::mesh::MemberUpdate;

use crate::app::Broker;
use crate::clock;
use crate::commit::commit;
use crate::deploy;
use crate::error::FrameError;
use crate::live;
use crate::store::{Member, MemberChange, StoreError};

const MAX_GROUPS: usize = 64;
const MAX_LABEL: usize = 64;

/// Carries out a `member_update` of somebody who may manage members.
///
/// # Errors
/// `not_found`, `forbidden`, `invalid_args` or `conflict`.
pub async fn update(broker: &Broker, caller: &Caller, frame: MemberUpdate) -> Result<Member, FrameError> {
    let MemberUpdate { member, role, role_tag, groups, revoke } = frame;
    let role =
        role.map(|role| Role::parse(&role)).transpose().map_err(|e| FrameError::invalid(e.to_string()))?;
    labels_are_valid(role_tag.as_deref(), groups.as_deref())?;
    let mut tx = broker.store.begin().await?;
    tx.meshes().take_turns(&caller.mesh).await?;
    let found = tx.members().by_name_or_id(&caller.mesh, &member).await?;
    let known = found.filter(|m| !m.is_revoked());
    let known = known.ok_or_else(|| FrameError::new(ErrorCode::NotFound, "no such member"))?;
    let is_allowed = access::may_change_member(caller, known.role, role.unwrap_or(known.role))
        || (known.id == caller.member && role.is_none() && !revoke);
    if !is_allowed {
        let message = "you may only change members below your own role";
        return Err(FrameError::new(ErrorCode::Forbidden, message));
    }
    if revoke {
        let now = clock::now_ms();
        tx.members().revoke(&caller.mesh, &known.id, known.role, now).await.map_err(changed)?;
        // What a removed member deployed stops with them, so that none of their code or secrets stays in use. An admin
        // may start, or remove, what the others still need.
        tx.services().rest_of(&caller.mesh, &known.id, now).await?;
        deploy::owner_left(&mut tx, &caller.mesh, &known.pubkey).await?;
        tx.live().remove_of(&caller.mesh, &known.id).await?;
    } else {
        let groups = groups.map(|groups| groups.into_iter().map(bare).collect());
        let change = MemberChange { role, role_tag, groups };
        tx.members().update(&caller.mesh, &known.id, known.role, &change).await.map_err(changed)?;
    }
    let after = tx.members().by_id(&caller.mesh, &known.id).await?.unwrap_or(known);
    commit(broker, &caller.mesh, tx).await?;
    if revoke {
        live::member_left(broker, &caller.mesh, &after.id);
        broker.presences.ban(&caller.mesh, &after.id);
    }
    Ok(after)
}

fn changed(error: StoreError) -> FrameError {
    match error {
        StoreError::Conflict => {
            FrameError::new(ErrorCode::Conflict, "the member was changed at the same time")
        }
        other => other.into(),
    }
}

fn labels_are_valid(role_tag: Option<&str>, groups: Option<&[Group]>) -> Result<(), FrameError> {
    let is_label = |text: &str| text.len() <= MAX_LABEL && !text.chars().any(char::is_control);
    if !role_tag.is_none_or(is_label) {
        return Err(FrameError::invalid("role_tag: at most 64 characters"));
    }
    let groups = groups.unwrap_or_default();
    let are_valid = groups.len() <= MAX_GROUPS
        && groups.iter().all(|group| {
            !bare_name(&group.name).is_empty()
                && is_label(&group.name)
                && group.role.as_deref().is_none_or(is_label)
        });
    if are_valid {
        Ok(())
    } else {
        Err(FrameError::invalid("groups: at most 64, each named in 1 to 64 characters"))
    }
}

/// Groups are kept without the leading `@`.
pub fn bare(group: Group) -> Group {
    Group { name: bare_name(&group.name).to_owned(), role: group.role }
}

fn bare_name(name: &str) -> &str {
    name.strip_prefix('@').unwrap_or(name)
}

/// The checks of [`labels_are_valid`] for what an invite gives to the new member.
///
/// # Errors
/// `invalid_args`.
pub fn preset_is_valid(role_tag: Option<&str>, groups: &[Group]) -> Result<(), FrameError> {
    labels_are_valid(role_tag, Some(groups))
}

#[cfg(test)]
mod tests {
    use wire::PublicKey;
    use wire::spec::{Secrets, ServiceSpec, Source};

    use super::*;
    use crate::app::App;
    use crate::config::{Config, Limits, RunnerLink};
    use crate::deploy::NewService;

    #[tokio::test]
    async fn a_deploy_that_was_asked_before_its_asker_was_removed_comes_too_late() {
        let dir = tempfile::TempDir::new().expect("temp dir");
        let config = Config {
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: format!("sqlite:{}", dir.path().join("broker.db").display()),
            runner: RunnerLink::Unix(dir.path().join("nobody.sock")),
            at_rest_roots: vec![vault::AtRestKey::generate()],
            public_url: "ws://127.0.0.1/ws".into(),
            limits: Limits::default(),
            expected_migration: None,
        };
        let broker = App::build(config).await.expect("builds").broker();
        let key = |seed: &str| PublicKey::parse(&seed.repeat(32)).expect("key");
        let made = crate::bootstrap(&broker.store, "acme", &key("ab"), "Olga").await.expect("mesh");
        let bo = Member {
            id: crate::fresh::member_id(),
            mesh: made.mesh.clone(),
            pubkey: key("cd"),
            display_name: "Bo".into(),
            role: Role::Member,
            role_tag: None,
            groups: Vec::new(),
            message_mode: "push".into(),
            joined_at: 1,
            revoked_at: None,
        };
        let mut tx = broker.store.begin().await.expect("begins");
        tx.members().insert(&bo).await.expect("joins");
        commit(&broker, &made.mesh, tx).await.expect("commits");
        let view = broker.views.of(&made.mesh).await.expect("view");
        let (olga, caller) = (view.caller(&made.member).expect("Olga"), view.caller(&bo.id).expect("Bo"));
        let removal = MemberUpdate {
            member: bo.id.to_string(),
            role: None,
            role_tag: None,
            groups: None,
            revoke: true,
        };
        update(&broker, &olga, removal).await.expect("removes");
        let new = NewService {
            name: wire::ServiceName::parse("s").expect("a name"),
            spec: ServiceSpec::of(Source::Npx { package: "p".into(), bin: None }),
            secrets: Secrets::default(),
            network: None,
            scope: None,
        };
        let late = deploy::deploy(&broker, &caller, &view, new).await;
        assert_eq!(late.err().map(|error| error.code()), Some(ErrorCode::Forbidden));
    }
}
