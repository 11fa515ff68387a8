//! The table, row by row, and what must hold for every caller and scope.

use proptest::prelude::*;

use super::*;

fn mesh(n: u8) -> MeshId {
    MeshId::parse(&format!("M{n:031}")).expect("32 letters and digits")
}

fn member(n: u8) -> MemberId {
    MemberId::parse(&format!("P{n:031}")).expect("32 letters and digits")
}

fn caller(n: u8, role: Role) -> Caller {
    Caller {
        mesh: mesh(1),
        member: member(n),
        display_name: format!("name-{n}"),
        role,
        role_tag: None,
        groups: Vec::new(),
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// `A`llow, `N`ot found, `F`orbidden for guest, member, admin, owner.
fn row(action: Action, who: u8, scope: Option<&Scope>) -> String {
    let (mesh, deployer) = (mesh(1), member(1));
    let subject = scope.map(|scope| Subject { mesh: &mesh, deployed_by: &deployer, scope });
    let letter = |role| match decide(&caller(who, role), action, subject) {
        Decision::Allow => 'A',
        Decision::NotFound => 'N',
        Decision::Forbidden => 'F',
    };
    Role::ALL.into_iter().map(letter).collect()
}

#[test]
fn the_table_of_role_and_action() {
    use Action::*;
    // columns: no such service · own · another's in scope · another's out of scope
    let table: [(Action, [&str; 4]); 21] = [
        (Call, ["NNNN", "AAAA", "AAAA", "NNFF"]),
        (Look, ["NNNN", "AAAA", "AAAA", "NNAA"]),
        (Deploy, ["FAAA", "FAAA", "FFAA", "FFAA"]),
        (DeployShared, ["FFAA", "FFAA", "FFAA", "FFAA"]),
        (Widen, ["NNNN", "FFAA", "FFAA", "NNAA"]),
        (Narrow, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (Update, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (Stop, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (Start, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (Remove, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (Logs, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (ManageMembers, ["FFAA", "FFAA", "FFAA", "FFAA"]),
        (Invite, ["FFAA", "FFAA", "FFAA", "FFAA"]),
        (SetPolicy, ["FFAA", "FFAA", "FFAA", "FFAA"]),
        (KeepSecrets, ["FAAA", "FFFF", "FFFF", "FFFF"]),
        (ReadLedger, ["FFAA", "FFAA", "FFAA", "FFAA"]),
        (ManageKeys, ["FFFA", "FFFF", "FFFF", "FFFF"]),
        (Lend, ["FAAA", "FFFF", "FFFF", "FFFF"]),
        (TakeBack, ["NNNN", "FAAA", "FFAA", "NNAA"]),
        (ShareSkill, ["FAAA", "FAAA", "FFAA", "FFAA"]),
        (RemoveSkill, ["NNNN", "FAAA", "FFAA", "NNAA"]),
    ];
    assert_eq!(table.map(|(action, _)| action), Action::ALL, "every action has a row");
    for (action, [none, own, shared, hidden]) in table {
        assert_eq!(row(action, 2, None), none, "{action:?}, no such service");
        assert_eq!(row(action, 1, Some(&Scope::Peer)), own, "{action:?}, own");
        assert_eq!(row(action, 2, Some(&Scope::Mesh)), shared, "{action:?}, in scope");
        assert_eq!(row(action, 2, Some(&Scope::Peer)), hidden, "{action:?}, out of scope");
    }
}

#[test]
fn a_scope_reaches_whom_it_names_and_nobody_else() {
    let (mesh, deployer) = (mesh(1), member(1));
    let mut ana = caller(2, Role::Member);
    ana.display_name = "Ana".into();
    ana.role_tag = Some("lead".into());
    ana.groups = vec![
        Group { name: "eng".into(), role: Some("reviewer".into()) },
        Group { name: "@ops".into(), role: None },
    ];
    let bo = caller(3, Role::Member);
    let reaches =
        |scope: &Scope, who: &Caller| may_call(who, Subject { mesh: &mesh, deployed_by: &deployer, scope });
    for scope in [
        Scope::Mesh,
        Scope::Peers { allow: set(&["Ana"]) },
        Scope::Peers { allow: set(&["x", ana.member.as_str()]) },
        Scope::Group { group: "eng".into() },
        Scope::Group { group: "ops".into() },
        Scope::Groups { groups: set(&["a", "ops"]) },
        Scope::Role { role: "lead".into() },
        Scope::Role { role: "reviewer".into() },
    ] {
        assert!(reaches(&scope, &ana), "{scope:?}");
        assert_eq!(reaches(&scope, &bo), scope == Scope::Mesh, "{scope:?}");
        assert!(reaches(&scope, &caller(1, Role::Guest)), "the deployer always: {scope:?}");
    }
    for scope in [
        Scope::Peer,
        Scope::Peers { allow: set(&["ana", "name-2", "Ana "]) },
        Scope::Group { group: "lead".into() },
        Scope::Role { role: "member".into() },
        Scope::Role { role: "eng".into() },
        Scope::Role { role: String::new() },
    ] {
        assert!(!reaches(&scope, &ana), "{scope:?}");
    }
}

#[test]
fn a_display_name_in_the_form_of_an_id_opens_no_door() {
    let (mesh, deployer) = (mesh(1), member(1));
    let scope = Scope::Peers { allow: set(&[member(2).as_str()]) };
    let impostor = Caller { display_name: member(2).to_string(), ..caller(3, Role::Member) };
    assert!(!may_call(&impostor, Subject { mesh: &mesh, deployed_by: &deployer, scope: &scope }));
}

#[test]
fn another_mesh_is_out_of_reach_for_every_role_scope_and_action() {
    let (elsewhere, same_id) = (mesh(2), member(1));
    for role in Role::ALL {
        for action in Action::ALL {
            for scope in [Scope::Mesh, Scope::Peer, Scope::Peers { allow: set(&["name-1"]) }] {
                let subject = Subject { mesh: &elsewhere, deployed_by: &same_id, scope: &scope };
                let decision = decide(&caller(1, role), action, Some(subject));
                assert_ne!(decision, Decision::Allow, "{role:?} {action:?} {scope:?}");
            }
        }
    }
}

#[test]
fn nobody_touches_the_owner_and_only_the_owner_makes_admins() {
    use Role::*;
    for (who, from, to, allowed) in [
        (Owner, Admin, Member, true),
        (Owner, Member, Admin, true),
        (Owner, Owner, Owner, false),
        (Owner, Member, Owner, false),
        (Admin, Member, Guest, true),
        (Admin, Guest, Member, true),
        (Admin, Member, Admin, false),
        (Admin, Admin, Admin, false),
        (Admin, Owner, Guest, false),
        (Member, Guest, Guest, false),
        (Guest, Guest, Guest, false),
    ] {
        assert_eq!(may_change_member(&caller(1, who), from, to), allowed, "{who:?}: {from:?} to {to:?}");
    }
}

#[test]
fn a_change_of_scope_sorts_members_into_gained_lost_and_kept() {
    let (mesh, deployer) = (mesh(1), member(1));
    let people: Vec<Caller> = (1..=4).map(|n| caller(n, Role::Member)).collect();
    let before = Scope::Peers { allow: set(&["name-2", "name-3"]) };
    let scope = Scope::Peers { allow: set(&["name-3", "name-4"]) };
    let change =
        scope_change(&before, Subject { mesh: &mesh, deployed_by: &deployer, scope: &scope }, &people);
    assert_eq!(change.gained, [member(4)]);
    assert_eq!(change.lost, [member(2)]);
    assert_eq!(change.kept, [member(1), member(3)]);
}

#[test]
fn roles_are_read_back_and_nothing_else_is_one() {
    for role in Role::ALL {
        assert_eq!(Role::parse(role.as_str()), Ok(role));
    }
    for bad in ["", "Owner", "root", "admin "] {
        assert_eq!(Role::parse(bad), Err(BadRole));
    }
}

fn scopes() -> impl Strategy<Value = Scope> {
    let names = || proptest::collection::btree_set("[abc]|name-[1-4]", 1..4);
    prop_oneof![
        Just(Scope::Peer),
        Just(Scope::Mesh),
        names().prop_map(|allow| Scope::Peers { allow }),
        "[abc]".prop_map(|group| Scope::Group { group }),
        names().prop_map(|groups| Scope::Groups { groups }),
        "[abc]".prop_map(|role| Scope::Role { role }),
    ]
}

fn callers() -> impl Strategy<Value = Caller> {
    let groups = proptest::collection::vec(("@?[abc]", proptest::option::of("[abc]")), 0..3);
    (1_u8..5, 0_usize..4, proptest::option::of("[abc]"), groups).prop_map(|(n, role, role_tag, groups)| {
        Caller {
            role_tag,
            groups: groups.into_iter().map(|(name, role)| Group { name, role }).collect(),
            ..caller(n, Role::ALL[role])
        }
    })
}

proptest! {
    #[test]
    fn what_is_allowed_is_visible_and_what_is_invisible_is_not_found(
        who in callers(), scope in scopes(), action in proptest::sample::select(Action::ALL.to_vec()),
    ) {
        let (mesh, deployer) = (mesh(1), member(1));
        let subject = Subject { mesh: &mesh, deployed_by: &deployer, scope: &scope };
        let decision = decide(&who, action, Some(subject));
        let names_a_service = !matches!(
            action,
            Action::Deploy
                | Action::DeployShared
                | Action::ManageMembers
                | Action::Invite
                | Action::SetPolicy
                | Action::KeepSecrets
                | Action::ReadLedger
                | Action::ManageKeys
                | Action::Lend
                | Action::ShareSkill
        );
        if names_a_service {
            prop_assert_eq!(decision == Decision::NotFound, !may_see(&who, subject));
        } else {
            prop_assert_ne!(decision, Decision::NotFound);
        }
        if !may_see(&who, subject) {
            prop_assert_ne!(decision, Decision::Allow);
        }
    }

    #[test]
    fn a_private_service_is_called_by_its_deployer_only(who in callers()) {
        let (mesh, deployer) = (mesh(1), member(1));
        let subject = Subject { mesh: &mesh, deployed_by: &deployer, scope: &Scope::Peer };
        prop_assert_eq!(may_call(&who, subject), who.member == deployer);
    }

    #[test]
    fn a_higher_role_may_do_all_that_a_lower_one_may(
        who in callers(), scope in scopes(), action in proptest::sample::select(Action::ALL.to_vec()),
    ) {
        let (mesh, deployer) = (mesh(1), member(1));
        let subject = Subject { mesh: &mesh, deployed_by: &deployer, scope: &scope };
        let mut allowed = false;
        for role in Role::ALL {
            let now = decide(&Caller { role, ..who.clone() }, action, Some(subject)) == Decision::Allow;
            prop_assert!(now || !allowed, "{:?} may not", role);
            allowed = now;
        }
    }

    #[test]
    fn a_narrowing_never_gains_anybody(who in callers(), before in scopes(), after in scopes()) {
        let (mesh, deployer) = (mesh(1), member(1));
        let change = scope_change(&before, Subject { mesh: &mesh, deployed_by: &deployer, scope: &after }, [&who]);
        if Action::of_scope_change(&before, &after) == Action::Narrow {
            prop_assert!(change.gained.is_empty());
        }
        prop_assert!(change.gained.len() + change.lost.len() + change.kept.len() <= 1);
    }
}
