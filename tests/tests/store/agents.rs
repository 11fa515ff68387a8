//! Live servers and skills.

use broker::store::{LentServer, Skill, SkillRow, StoreError};
use catalog::Role;
use serde_json::json;
use wire::peer::skills::SkillFile;
use wire::{MemberId, RawJson};

use crate::on_both;
use crate::world::{World, a_member, mesh};

on_both! {
    a_lent_server_stays_its_members_and_notes_when_its_host_left;
    a_note_about_an_earlier_registration_changes_nothing;
    what_a_removed_member_lent_goes;
    a_skill_is_replaced_whole_and_keeps_the_time_of_its_making;
    skills_are_listed_by_name_with_the_paths_of_their_files;
    skills_and_lent_servers_are_in_a_dump;
}

fn raw(value: &serde_json::Value) -> RawJson {
    serde_json::value::to_raw_value(value).expect("JSON")
}

fn lent(world: &World, name: &str, by: &MemberId, registration: i64) -> LentServer {
    LentServer {
        key: world.key(name),
        member: by.clone(),
        description: format!("registration {registration}"),
        tools: vec![raw(&json!({"name": "t", "n": 1.0}))],
        registration,
        offline_since: None,
    }
}

async fn put(world: &World, server: &LentServer) -> Result<(), StoreError> {
    let mut tx = world.store.begin().await.expect("begins");
    tx.live().put(server).await?;
    tx.commit().await
}

/// `name registration since`, of all.
async fn all(world: &World) -> Vec<String> {
    let mut tx = world.store.read().await.expect("reads");
    let all = tx.live().all().await.expect("lists");
    let text = |s: &LentServer| format!("{} {} {:?}", s.key.name, s.registration, s.offline_since);
    all.iter().map(text).collect()
}

async fn second(world: &World) -> MemberId {
    let mut tx = world.store.begin().await.expect("begins");
    let member = a_member(&world.mesh, 2, Role::Member);
    tx.members().insert(&member).await.expect("joins");
    tx.commit().await.expect("commits");
    member.id
}

async fn a_lent_server_stays_its_members_and_notes_when_its_host_left(world: World) {
    let bo = second(&world).await;
    put(&world, &lent(&world, "mine", &bo, 1)).await.expect("is new");
    put(&world, &lent(&world, "mine", &bo, 2)).await.expect("is Bo's");
    let stolen = put(&world, &lent(&world, "mine", &world.owner, 3)).await;
    assert!(matches!(stolen, Err(StoreError::Conflict)), "{stolen:?}");
    put(&world, &lent(&world, "other", &world.owner, 4)).await.expect("is new");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.live().leave(&world.key("mine"), 2, 70).await.expect("notes"));
    tx.live().all_left(80).await.expect("notes");
    tx.commit().await.expect("commits");
    assert_eq!(all(&world).await, ["mine 2 Some(70)", "other 4 Some(80)"]);
    let mut tx = world.store.read().await.expect("reads");
    let mine = tx.live().all().await.expect("lists").remove(0);
    assert_eq!(
        (mine.description.as_str(), mine.tools[0].get()),
        ("registration 2", r#"{"n":1.0,"name":"t"}"#)
    );
    drop(tx);
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.live().remove(&world.key("mine")).await.expect("removes"));
    assert!(!tx.live().remove(&world.key("mine")).await.expect("removes"));
    tx.commit().await.expect("commits");
    assert_eq!(all(&world).await, ["other 4 Some(80)"]);
}

async fn a_note_about_an_earlier_registration_changes_nothing(world: World) {
    put(&world, &lent(&world, "mine", &world.owner, 5)).await.expect("is new");
    let mut tx = world.store.begin().await.expect("begins");
    assert!(!tx.live().leave(&world.key("mine"), 4, 70).await.expect("is late"));
    tx.commit().await.expect("commits");
    assert_eq!(all(&world).await, ["mine 5 None"]);
}

async fn what_a_removed_member_lent_goes(world: World) {
    let bo = second(&world).await;
    put(&world, &lent(&world, "one", &bo, 1)).await.expect("is new");
    put(&world, &lent(&world, "two", &world.owner, 2)).await.expect("is new");
    let mut tx = world.store.begin().await.expect("begins");
    tx.live().remove_of(&world.mesh, &bo).await.expect("removes");
    tx.live().remove_of(&mesh(9), &world.owner).await.expect("is another mesh");
    tx.commit().await.expect("commits");
    assert_eq!(all(&world).await, ["two 2 None"]);
}

fn skill(author: &MemberId, name: &str, at: i64, files: &[&str]) -> Skill {
    let file =
        |path: &&str| SkillFile { path: (*path).into(), content: "eA==".into(), executable: *path == "x.sh" };
    let row = SkillRow {
        name: name.into(),
        author: author.clone(),
        description: "Überall".into(),
        tags: vec!["a".into(), "b".into()],
        manifest: Some(raw(&json!({"n": 1.0}))),
        created_at: at,
        files: Vec::new(),
    };
    Skill { row, instructions: format!("# {at}"), files: files.iter().map(file).collect(), size: 10 }
}

async fn share(world: &World, skill: &Skill) {
    let mut tx = world.store.begin().await.expect("begins");
    tx.skills().put(&world.mesh, skill).await.expect("puts");
    tx.commit().await.expect("commits");
}

async fn a_skill_is_replaced_whole_and_keeps_the_time_of_its_making(world: World) {
    let bo = second(&world).await;
    share(&world, &skill(&world.owner, "review", 1, &["x.sh", "a/b"])).await;
    let mut tx = world.store.read().await.expect("reads");
    let first = tx.skills().find(&world.mesh, "review").await.expect("finds").expect("is there");
    assert_eq!(first.row.files, ["a/b", "x.sh"]);
    assert_eq!(first.files.iter().map(|file| file.executable).collect::<Vec<_>>(), [false, true]);
    assert_eq!(first.row.manifest.as_ref().map(|m| m.get()), Some(r#"{"n":1.0}"#));
    drop(tx);
    let mut replaced = skill(&bo, "review", 2, &["c"]);
    replaced.row.manifest = None;
    share(&world, &replaced).await;
    let mut tx = world.store.read().await.expect("reads");
    let second = tx.skills().find(&world.mesh, "review").await.expect("finds").expect("is there");
    assert_eq!((second.instructions.as_str(), second.row.created_at), ("# 2", 1));
    assert_eq!((second.row.files, second.row.manifest.is_none()), (vec!["c".to_owned()], true));
    assert_eq!(tx.skills().author(&world.mesh, "review").await.expect("finds"), Some(bo));
    assert!(tx.skills().find(&mesh(9), "review").await.expect("finds").is_none(), "of another mesh");
    drop(tx);
    let mut tx = world.store.begin().await.expect("begins");
    assert!(tx.skills().remove(&world.mesh, "review").await.expect("removes"));
    assert!(!tx.skills().remove(&world.mesh, "review").await.expect("removes"));
    tx.commit().await.expect("commits");
    // Nothing of its files is left for the next of the name.
    share(&world, &skill(&world.owner, "review", 3, &[])).await;
    let mut tx = world.store.read().await.expect("reads");
    assert!(tx.skills().list(&world.mesh).await.expect("lists")[0].files.is_empty());
}

async fn skills_are_listed_by_name_with_the_paths_of_their_files(world: World) {
    for (name, files) in [("b", &["y", "x"][..]), ("B", &[]), ("a-b", &["z"]), ("a_b", &[])] {
        share(&world, &skill(&world.owner, name, 1, files)).await;
    }
    let mut tx = world.store.read().await.expect("reads");
    let list = tx.skills().list(&world.mesh).await.expect("lists");
    let found: Vec<_> = list.iter().map(|row| (row.name.as_str(), row.files.join(" "))).collect();
    let wanted =
        [("B", ""), ("a-b", "z"), ("a_b", ""), ("b", "x y")].map(|(name, files)| (name, files.to_owned()));
    assert_eq!(found, wanted, "in the same order on every database");
    assert_eq!(tx.skills().others(&world.mesh, "b").await.expect("counts"), (3, 30));
    assert_eq!(tx.skills().others(&mesh(9), "b").await.expect("counts"), (0, 0));
}

async fn skills_and_lent_servers_are_in_a_dump(world: World) {
    put(&world, &lent(&world, "mine", &world.owner, 5)).await.expect("is new");
    share(&world, &skill(&world.owner, "review", 1, &["a/b"])).await;
    let mut tx = world.store.read().await.expect("reads");
    let tables = tx.dump().tables(&world.mesh).await.expect("dumps");
    drop(tx);
    let dir = tempfile::tempdir().expect("a directory");
    let other =
        crate::world::open(&format!("sqlite:{}", dir.path().join("db").display())).await.expect("opens");
    let mut tx = other.begin().await.expect("begins");
    tx.dump().load(&tables).await.expect("loads");
    tx.commit().await.expect("commits");
    let mut tx = other.read().await.expect("reads");
    assert_eq!(tx.live().all().await.expect("lists")[0].registration, 5);
    let skill = tx.skills().find(&world.mesh, "review").await.expect("finds").expect("is there");
    assert_eq!((skill.instructions.as_str(), skill.files.len()), ("# 1", 1));
    drop(tx);
    other.close().await;
}
