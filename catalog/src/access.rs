//! Who may do what: one table, asked by `hello_ack`, catalog, schema, logs, events and calls alike.
//!
//! Here: the table (`Action::rule`), scopes, and who gains and loses by a change of scope.
//! Not here: where callers come from. Role, role tag, groups and display name of a [`Caller`] are those that the store
//! holds for the member; nothing that a client declares about itself may ever be put there.
//! Invariant: default deny. What a caller may not see is *not found*; what they see and may not do is *forbidden*.
//!
//! | action | who |
//! |---|---|
//! | call | everyone in the scope of the service; the deployer always is |
//! | look (catalog, schema, status, events) | the same, and every admin and owner, who must be able to manage what they may not call |
//! | deploy to oneself | members and above; an existing name only its deployer, or an admin |
//! | deploy to others, widen a scope | admins and the owner |
//! | narrow a scope, update, change its network, approve drift, stop, start, remove, logs | the deployer while at least a member, and every admin |
//! | lend a live server, share a skill | members and above; an existing skill only its author, or an admin |
//! | take back a live server or a skill | whose it is while at least a member, and every admin |
//! | keep secrets in the vault | members and above, each their own; anyone may remove their own |
//! | read everybody's lines of the vault's ledger | admins and the owner |
//! | keys and runners of the vault, the at-rest key | the owner |
//! | manage members, invite, set the policy of the mesh | admins and the owner; see [`may_change_member`] for whom |

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use wire::peer::hello::Group;
use wire::{MemberId, MeshId, Scope};

/// The rank of a member. Ordered: each may do what the one below may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Guest,
    Member,
    Admin,
    Owner,
}

/// Text that names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is `guest`, `member`, `admin` or `owner`")]
pub struct BadRole;

impl Role {
    /// Every role, lowest first.
    pub const ALL: [Role; 4] = [Role::Guest, Role::Member, Role::Admin, Role::Owner];

    /// The text form on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`BadRole`] for any other text.
    pub fn parse(text: &str) -> Result<Self, BadRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(BadRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A member as the store knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub mesh: MeshId,
    pub member: MemberId,
    pub display_name: String,
    pub role: Role,
    /// Free-form label set by an admin, e.g. `lead`.
    pub role_tag: Option<String>,
    pub groups: Vec<Group>,
}

/// What is known of a service when somebody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    pub mesh: &'a MeshId,
    pub deployed_by: &'a MemberId,
    pub scope: &'a Scope,
}

/// What a caller wants to do. The first two and those from `Narrow` to `Logs` need a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Call,
    /// Catalog, schema, status, events.
    Look,
    /// Deploy with the scope `peer`.
    Deploy,
    /// Deploy with any other scope. Also the right to put new code behind a scope that others already use.
    DeployShared,
    /// A scope that reaches somebody whom the old one does not.
    Widen,
    Narrow,
    /// Update, roll back, change where it may connect to, see and approve what changed.
    Update,
    Stop,
    Start,
    Remove,
    Logs,
    ManageMembers,
    Invite,
    /// Of the mesh.
    SetPolicy,
    /// Put an entry of their own into the vault.
    KeepSecrets,
    /// Everybody's lines of the vault's ledger.
    ReadLedger,
    /// The vault's keys, the runners that get them, and the key that the broker encrypts with at rest.
    ManageKeys,
    /// Offer a server of their own machine to the mesh.
    Lend,
    /// Take a live server off the mesh.
    TakeBack,
    /// Make or replace a skill of the mesh.
    ShareSkill,
    RemoveSkill,
}

/// The answer to [`decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Decision {
    Allow,
    /// There is no such service, or the caller may not know of it. Both look the same.
    NotFound,
    Forbidden,
}

/// One row of the table.
enum Rule {
    /// In the scope of the service.
    InScope,
    /// May see the service.
    Sees,
    /// Deployed it and is at least a member, or is an admin.
    OwnOrAdmin,
    /// An admin who sees the service.
    AdminOn,
    /// Like `OwnOrAdmin`; with no such service yet, any member.
    NewOrOwn,
    /// An admin, service or not.
    Admin,
    /// At least a member; no service is asked.
    Member,
    /// The owner; no service is asked.
    Owner,
}

impl Action {
    /// Every action, in the order of the table.
    pub const ALL: [Action; 21] = [
        Action::Call,
        Action::Look,
        Action::Deploy,
        Action::DeployShared,
        Action::Widen,
        Action::Narrow,
        Action::Update,
        Action::Stop,
        Action::Start,
        Action::Remove,
        Action::Logs,
        Action::ManageMembers,
        Action::Invite,
        Action::SetPolicy,
        Action::KeepSecrets,
        Action::ReadLedger,
        Action::ManageKeys,
        Action::Lend,
        Action::TakeBack,
        Action::ShareSkill,
        Action::RemoveSkill,
    ];

    fn rule(self) -> Rule {
        match self {
            Self::Call => Rule::InScope,
            Self::Look => Rule::Sees,
            Self::Deploy | Self::ShareSkill => Rule::NewOrOwn,
            Self::Widen => Rule::AdminOn,
            Self::Narrow
            | Self::Update
            | Self::Stop
            | Self::Start
            | Self::Remove
            | Self::Logs
            | Self::TakeBack
            | Self::RemoveSkill => Rule::OwnOrAdmin,
            Self::DeployShared | Self::ManageMembers | Self::Invite | Self::SetPolicy | Self::ReadLedger => {
                Rule::Admin
            }
            Self::KeepSecrets | Self::Lend => Rule::Member,
            Self::ManageKeys => Rule::Owner,
        }
    }

    /// What setting `after` in place of `before` amounts to.
    pub fn of_scope_change(before: &Scope, after: &Scope) -> Self {
        if is_within(after, before) { Self::Narrow } else { Self::Widen }
    }

    /// What deploying with this scope amounts to.
    pub fn of_deploy(scope: &Scope) -> Self {
        if *scope == Scope::Peer { Self::Deploy } else { Self::DeployShared }
    }
}

/// The only access decision of the product. `subject` is the service that the request names, if there is one.
pub fn decide(caller: &Caller, action: Action, subject: Option<Subject<'_>>) -> Decision {
    let is_admin = caller.role >= Role::Admin;
    let owns = |it: Subject<'_>| is_deployer(caller, it) && caller.role >= Role::Member;
    let allowed = match (action.rule(), subject) {
        (Rule::Admin, None) => is_admin,
        // Another mesh's service is no business of any role here.
        (Rule::Admin, Some(it)) => is_admin && it.mesh == &caller.mesh,
        (Rule::Member, None) => caller.role >= Role::Member,
        (Rule::Owner, None) => caller.role == Role::Owner,
        (Rule::Member | Rule::Owner, Some(_)) => false,
        (Rule::NewOrOwn, None) => caller.role >= Role::Member,
        (Rule::NewOrOwn, Some(it)) => may_see(caller, it) && (is_admin || owns(it)),
        (_, None) => return Decision::NotFound,
        (_, Some(it)) if !may_see(caller, it) => return Decision::NotFound,
        (Rule::Sees, Some(_)) => true,
        (Rule::InScope, Some(it)) => may_call(caller, it),
        (Rule::AdminOn, Some(_)) => is_admin,
        (Rule::OwnOrAdmin, Some(it)) => is_admin || owns(it),
    };
    // A deploy to a taken name is told so even when the service is out of sight: the name is what is refused.
    if allowed { Decision::Allow } else { Decision::Forbidden }
}

/// Whether the service is in the caller's listings. Admins and the owner see everything in their mesh.
pub fn may_see(caller: &Caller, subject: Subject<'_>) -> bool {
    may_call(caller, subject) || (caller.role >= Role::Admin && subject.mesh == &caller.mesh)
}

/// Whether the service is offered to the caller as tools: rank does not help here, only the scope does.
pub fn may_call(caller: &Caller, subject: Subject<'_>) -> bool {
    subject.mesh == &caller.mesh && (is_deployer(caller, subject) || is_in(caller, subject.scope))
}

/// Whether `caller` may turn a member of role `from` into one of role `to` (or revoke them: `to` = `from`). Nobody
/// touches the owner, nobody becomes owner, and only the owner makes and unmakes admins.
pub fn may_change_member(caller: &Caller, from: Role, to: Role) -> bool {
    caller.role >= Role::Admin && from < caller.role && to < caller.role
}

/// Who can call a service before and after a change of its scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeChange {
    pub gained: Vec<MemberId>,
    pub lost: Vec<MemberId>,
    pub kept: Vec<MemberId>,
}

/// Sorts `members` by what the change from `before` to `after.scope` means for them; those who can call it neither
/// before nor after are in no list.
pub fn scope_change<'a>(
    before: &Scope,
    after: Subject<'_>,
    members: impl IntoIterator<Item = &'a Caller>,
) -> ScopeChange {
    let mut change = ScopeChange::default();
    for member in members {
        let had = may_call(member, Subject { scope: before, ..after });
        let list = match (had, may_call(member, after)) {
            (false, true) => &mut change.gained,
            (true, false) => &mut change.lost,
            (true, true) => &mut change.kept,
            (false, false) => continue,
        };
        list.push(member.member.clone());
    }
    change
}

fn is_deployer(caller: &Caller, subject: Subject<'_>) -> bool {
    subject.mesh == &caller.mesh && *subject.deployed_by == caller.member
}

fn is_in(caller: &Caller, scope: &Scope) -> bool {
    let has_group = |wanted: &str| caller.groups.iter().any(|group| bare(&group.name) == wanted);
    match scope {
        Scope::Peer => false,
        Scope::Mesh => true,
        Scope::Peers { allow } => allow.contains(caller.member.as_str()) || is_named(caller, allow),
        Scope::Group { group } => has_group(group),
        Scope::Groups { groups } => groups.iter().any(|group| has_group(group)),
        Scope::Role { role } => {
            caller.role_tag.as_ref() == Some(role)
                || caller.groups.iter().any(|group| group.role.as_ref() == Some(role))
        }
    }
}

/// A display name is chosen by its bearer: one that has the form of a member id is never taken for a name, or a joiner
/// could call themselves like the id of somebody whom a scope lets in.
fn is_named(caller: &Caller, allow: &BTreeSet<String>) -> bool {
    MemberId::parse(&caller.display_name).is_err() && allow.contains(&caller.display_name)
}

/// Group names are written with and without `@`; scopes hold them without.
fn bare(group: &str) -> &str {
    group.strip_prefix('@').unwrap_or(group)
}

/// Whether `inner` can never reach anybody that `outer` does not, whoever joins later. False when in doubt.
fn is_within(inner: &Scope, outer: &Scope) -> bool {
    match (inner, outer) {
        (Scope::Peer, _) | (_, Scope::Mesh) => true,
        (Scope::Peers { allow: inner }, Scope::Peers { allow: outer }) => inner.is_subset(outer),
        (Scope::Group { group }, Scope::Groups { groups }) => groups.contains(group),
        (Scope::Groups { groups }, Scope::Group { group }) => groups.iter().all(|each| each == group),
        (Scope::Groups { groups: inner }, Scope::Groups { groups: outer }) => inner.is_subset(outer),
        (inner, outer) => inner == outer,
    }
}

#[cfg(test)]
mod tests;
