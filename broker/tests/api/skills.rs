//! Skills: who shares, replaces and removes one, and who hears of it.

use serde_json::{Value, json};

use crate::world::World;
use crate::world::peer::Peer;

fn share(name: &str) -> Value {
    json!({
        "type": "share_skill", "name": name, "description": "How we Review", "instructions": "# Look twice\n",
        "tags": ["Code"], "manifest": {"when_to_use": "before a merge", "allowed_tools": ["Read"]},
        "files": [{"path": "scripts/run.sh", "content": "ZWNobw==", "executable": true}, {"path": "a.md", "content": ""}],
    })
}

async fn ask(peer: &mut Peer, kind: &str, fields: Value) -> Value {
    let mut frame = json!({"type": kind});
    frame.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
    peer.ask(frame).await
}

#[tokio::test]
async fn a_skill_is_shared_read_found_and_taken_back() {
    let mut world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut gil = world.member(3, "Gil", "guest").await;
    let ack = bo.ask(share("review")).await;
    assert_eq!(
        (&ack["type"], &ack["name"], &ack["action"]),
        (&json!("skill_ack"), &json!("review"), &json!("shared"))
    );
    for peer in [&mut owner, &mut gil, &mut bo] {
        let event = peer.event("skill_shared").await;
        assert_eq!(event["eventData"], json!({"name": "review", "by": "Bo"}));
    }
    world.stop_broker().await;
    world.start_broker().await;
    let mut owner = world.owner().await;
    let found = ask(&mut owner, "get_skill", json!({"name": "review"})).await;
    let skill = &found["skill"];
    let sent = share("review");
    for field in ["name", "description", "instructions", "tags", "manifest"] {
        assert_eq!(skill[field], sent[field], "{field}");
    }
    assert_eq!(skill["author"], "Bo");
    assert_eq!(skill["files"], json!([{"path": "a.md", "content": ""}, sent["files"][0]]));
    for (query, count) in [(Value::Null, 1), (json!("VIEW"), 1), (json!("code"), 1), (json!("none"), 0)] {
        let list = ask(&mut owner, "list_skills", json!({"query": query})).await;
        assert_eq!(list["skills"].as_array().map(Vec::len), Some(count), "{query}: {list}");
    }
    let list = ask(&mut owner, "list_skills", json!({})).await;
    assert_eq!(list["skills"][0]["files"], json!(["a.md", "scripts/run.sh"]));
    assert!(list["skills"][0]["instructions"].is_null());
    assert_eq!(list["skills"][0]["createdAt"], skill["createdAt"]);
    let gone = ask(&mut owner, "remove_skill", json!({"name": "review"})).await;
    assert_eq!(gone["action"], "removed", "an admin may");
    assert_eq!(owner.event("skill_removed").await["eventData"]["by"], "Olga");
    assert_eq!(ask(&mut owner, "remove_skill", json!({"name": "review"})).await["action"], "not_found");
    assert_eq!(ask(&mut owner, "get_skill", json!({"name": "review"})).await["skill"], Value::Null);
}

#[tokio::test]
async fn a_skill_is_replaced_and_removed_by_its_author_or_an_admin() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    let mut bo = world.member(2, "Bo", "member").await;
    let mut ann = world.member(3, "Ann", "member").await;
    let mut gil = world.member(5, "Gil", "guest").await;
    bo.ask(share("review")).await;
    for stranger in [&mut ann, &mut gil] {
        assert_eq!(stranger.ask(share("review")).await["code"], "forbidden");
        let removal = ask(stranger, "remove_skill", json!({"name": "review"})).await;
        assert_eq!(removal["code"], "forbidden");
    }
    assert_eq!(gil.ask(share("new")).await["code"], "forbidden");
    let mut second = share("review");
    second["instructions"] = json!("# Look again");
    second["files"] = json!([]);
    assert_eq!(bo.ask(second).await["action"], "shared");
    let found = ask(&mut gil, "get_skill", json!({"name": "review"})).await;
    assert_eq!(
        (&found["skill"]["instructions"], &found["skill"]["files"]),
        (&json!("# Look again"), &Value::Null)
    );
    // Who wrote what is read now is its author.
    assert_eq!(owner.ask(share("review")).await["action"], "shared");
    assert_eq!(ask(&mut gil, "get_skill", json!({"name": "review"})).await["skill"]["author"], "Olga");
    assert_eq!(bo.ask(share("review")).await["code"], "forbidden");
}

#[tokio::test]
async fn what_is_no_skill_is_refused_and_nothing_is_lost() {
    let world = World::start().await;
    let mut owner = world.owner().await;
    owner.ask(share("review")).await;
    let with = |field: &str, value: Value| {
        let mut frame = share("review");
        frame[field] = value;
        frame
    };
    let file = |path: &str| json!([{"path": path, "content": ""}]);
    for (frame, code) in [
        (with("name", json!("a b")), "invalid_name"),
        (with("manifest", json!([1])), "invalid_args"),
        (with("tags", json!([""])), "invalid_args"),
        (with("files", file("../evil")), "invalid_args"),
        (with("files", file("SKILL.md")), "invalid_args"),
        (with("files", json!([{"path": "a", "content": "%"}])), "invalid_args"),
        (with("description", json!("x".repeat(2001))), "invalid_args"),
        (with("instructions", json!("x".repeat((256 << 10) + 1))), "too_large"),
    ] {
        let refused = owner.ask(frame).await;
        assert_eq!(refused["code"], code, "{refused}");
    }
    let found = ask(&mut owner, "get_skill", json!({"name": "review"})).await;
    assert_eq!(found["skill"]["instructions"], "# Look twice\n");
    // As large as a bundle may be: more than other frames.
    let large = "AAAA".repeat((4 << 20) / 3);
    assert_eq!(
        owner.ask(with("files", json!([{"path": "large", "content": large}]))).await["action"],
        "shared"
    );
}
