//! `share`: a real server on one member's machine, called by the others; through the end of its host, of the server and of the
//! broker.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::process::Stdio;

use serde_json::{Value, json};
use tests::peer::PATIENCE;
use tests::{Peer, Person, World, eventually, fixture, processes};
use tokio::process::Child;
use tokio::time::timeout;

/// Lends the Python fixture as `tools`, and waits until the mesh lists it.
async fn share(world: &World, person: &Person, flags: &[&str]) -> Child {
    let server = fixture::python_folder(&world.folder("lent")).join("server.py");
    let args = [&["share", "tools"][..], flags, &["--", "python3", server.to_str().unwrap()]].concat();
    let log = std::fs::File::create(world.path().join("share.log")).unwrap();
    let mut command = person.command(args);
    let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let peer = person.peer().await;
    eventually("it is lent", async || (entry(&peer).await?["online"] == true).then_some(())).await;
    child
}

async fn entry(peer: &Peer) -> Option<Value> {
    let list = peer.request("mcp_list", json!({})).await;
    list["servers"].as_array()?.iter().find(|server| server["name"] == "tools").cloned()
}

async fn echo(peer: &Peer, text: &str) -> Value {
    peer.call("tools", "echo", json!({ "text": text })).await
}

async fn end(mut child: Child) {
    processes::terminate(child.id().unwrap().cast_signed());
    let status = timeout(PATIENCE, child.wait()).await.expect("`share` ends when told to").unwrap();
    assert!(status.success(), "{status}");
}

/// The lent server itself, not the command that lends it.
fn servers(world: &World) -> Vec<i32> {
    let is_server = |command: &str| command.contains("server.py") && !command.contains(" share ");
    let found = processes::of(world.path()).into_iter();
    found.filter(|found| is_server(&found.command)).map(|found| found.pid).collect()
}

#[tokio::test]
async fn a_server_of_one_member_is_called_by_another_and_goes_with_its_command() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let child = share(world, &world.owner, &[]).await;
        let peer = bo.peer().await;
        let listed = entry(&peer).await.unwrap();
        assert_eq!((&listed["hostedBy"], &listed["own"]), (&json!("me"), &Value::Null), "{listed}");
        let tool = listed["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "echo").unwrap();
        assert_eq!(tool["x-unknown"]["kept"], json!([1, 2.0, null]), "whole definitions");
        assert_eq!(fixture::text(&echo(&peer, "over the mesh").await["result"]), "over the mesh");

        // It is looked at like a hosted one.
        let shown = bo.ok(["tools", "tools", "echo"]).await;
        assert!(shown.contains("claudemesh call tools echo"), "{shown}");
        let card = bo.ok(["status", "tools"]).await;
        assert!(card.contains("online") && card.contains("lent by      me"), "{card}");
        assert_eq!(bo.json(["status", "tools"]).await["hostedBy"], "me");
        assert_eq!(bo.refused(["tools", "nothing"]).await.code, "not_found");

        let path = fixture::python_folder(&world.folder("lent"));
        let path = path.to_str().unwrap();
        let taken = bo.refused(["share", "tools", "--", "python3", &format!("{path}/server.py")]).await;
        assert_eq!(taken.code, "conflict", "{}", taken.text);
        let taken = bo.refused(["deploy", "tools", path]).await;
        assert_eq!(taken.code, "conflict", "{}", taken.text);

        end(child).await;
        eventually("it is not listed any more", async || entry(&peer).await.is_none().then_some(())).await;
        assert_eq!(echo(&peer, "too late").await["code"], "not_found");
        assert!(servers(world).is_empty(), "the server ended with the command");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_dies_is_started_again_and_only_the_running_call_is_lost() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let child = share(world, &world.owner, &[]).await;
        let peer = bo.peer().await;
        let before = servers(world);
        assert_eq!(before.len(), 1);
        let lost = peer.call("tools", "crash", json!({})).await;
        assert_eq!(lost["error"], "the server ended while it was working on this");
        assert_eq!(fixture::text(&echo(&peer, "again").await["result"]), "again");
        assert_ne!(servers(world), before);
        end(child).await;
    })
    .await;
}

#[tokio::test]
async fn a_persistent_server_is_offline_without_its_host_and_back_by_itself_with_it() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        let mut child = share(world, &world.owner, &["--persistent"]).await;
        let peer = bo.peer().await;
        child.kill().await.unwrap();
        let gone = eventually("it is shown as offline", async || {
            entry(&peer).await.filter(|server| server["online"] == false)
        })
        .await;
        assert!(gone["offlineSince"].is_string() && gone["persistent"] == true, "{gone}");
        let refused = echo(&peer, "anybody there?").await;
        assert_eq!(refused["code"], "host_offline");
        let text = refused["error"].as_str().unwrap();
        assert!(text.starts_with("Server 'tools' is offline — hosted by me who"), "{text}");

        let child = share(world, &world.owner, &["--persistent"]).await;
        assert_eq!(fixture::text(&echo(&peer, "back").await["result"]), "back");
        end(child).await;
        world.owner.ok(["share", "tools", "--stop"]).await;
        assert!(entry(&peer).await.is_none(), "forgotten");
    })
    .await;
}

#[tokio::test]
async fn what_is_lent_is_lent_again_after_a_restart_of_the_broker() {
    World::scene(async |world| {
        let child = share(world, &world.owner, &[]).await;
        let before = servers(world);
        assert_eq!(before.len(), 1);
        world.kill_9_broker().await;
        world.up().await;
        let peer = world.owner.peer().await;
        eventually("it is lent again", async || (entry(&peer).await?["online"] == true).then_some(())).await;
        assert_eq!(fixture::text(&echo(&peer, "still here").await["result"]), "still here");
        assert_eq!(servers(world), before, "the same process");
        end(child).await;
    })
    .await;
}
