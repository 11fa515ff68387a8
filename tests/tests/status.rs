//! `claudemesh hook`: what an agent's hooks say is seen by the others, and nothing that goes wrong disturbs the agent.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::process::Stdio;

use serde_json::{Value, json};
use tests::peer::{Socket, dial, exchange, now_ms};
use tests::{Person, World};
use tokio::io::AsyncWriteExt as _;

/// Runs a hook as an agent does, and checks that it says nothing and ends well.
async fn hook(person: &Person, args: &[&str], env: &[(&str, &str)], input: &str) {
    let mut command = person.command(["hook"].iter().chain(args));
    let mut child = command.envs(env.iter().copied()).stdin(Stdio::piped()).spawn().unwrap();
    // One that refuses at once reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{args:?}: {}", output.status);
    assert!(output.stdout.is_empty(), "{args:?}: {:?}", String::from_utf8_lossy(&output.stdout));
    assert!(output.stderr.is_empty(), "{args:?}: {:?}", String::from_utf8_lossy(&output.stderr));
}

/// A session of this person that stays as long as the socket.
async fn session(person: &Person, id: &str, cwd: &str) -> Socket {
    let mut socket = dial(&person.broker_url()).await;
    let mut hello = person.identity().hello(id, now_ms());
    hello["cwd"] = json!(cwd);
    let (frames, _) = exchange(&mut socket, hello.to_string(), 1).await;
    assert_eq!(frames[0]["type"], "hello_ack", "{frames:?}");
    socket
}

async fn status_of(world: &World, session: &str) -> String {
    let peers = world.owner.json(["peers"]).await;
    let peers = peers["peers"].as_array().unwrap();
    let found = peers.iter().find(|peer| peer["sessionId"] == session);
    found.unwrap_or_else(|| panic!("{session} in {peers:?}"))["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_hooks_say_is_seen_by_the_others() {
    World::scene(async |world| {
        let bo = world.join("Bo", &[]).await;
        let _one = session(&bo, "one", "/project/a").await;
        let _two = session(&bo, "two", "/project/b").await;
        let input =
            json!({"session_id": "of the agent", "cwd": "/project/b", "hook_event_name": "Stop"}).to_string();
        hook(&bo, &["working"], &[("CLAUDEMESH_SESSION_ID", "one")], &input).await;
        assert_eq!(status_of(world, "one").await, "working");
        assert_eq!(status_of(world, "two").await, "idle");
        hook(&bo, &["needs-input"], &[], &input).await;
        assert_eq!(status_of(world, "two").await, "needs_input");
        let table = world.owner.ok(["peers"]).await;
        assert!(table.contains("needs_input") && table.contains("working"), "{table}");
        // A session that is not here is not taken for another one of the same folder.
        hook(&bo, &["working"], &[("CLAUDEMESH_SESSION_ID", "three")], &input).await;
        let _three = session(&bo, "three", "/project/b").await;
        assert_eq!(status_of(world, "three").await, "working", "said a moment before it came");
        assert_eq!(status_of(world, "two").await, "needs_input");
        // The owner's hook in the same folder finds nobody of Bo's.
        hook(&world.owner, &["idle"], &[], &input).await;
        assert_eq!(status_of(world, "two").await, "needs_input");
    })
    .await;
}

#[tokio::test]
async fn a_hook_ends_well_whatever_is_wrong() {
    World::scene(async |world| {
        let owner = &world.owner;
        for (args, input) in [
            (&["working"][..], "no json"),
            (&["working"], ""),
            (&["asleep"], "{}"),
            (&[], "{}"),
            (&["idle", "--unknown"], "{}"),
            (&["idle", "--mesh", "nowhere"], "{}"),
        ] {
            hook(owner, args, &[], input).await;
        }
        let nobody = Person { config: world.folder("nobody"), ..owner.clone() };
        hook(&nobody, &["idle"], &[], "{}").await;
        world.down().await;
        hook(owner, &["idle"], &[], "{}").await;
        // Who asks is told.
        let mut command = owner.command(["hook", "idle"]);
        let output = command.env("CLAUDEMESH_HOOK_DEBUG", "1").output().await.unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).contains("claudemesh hook:"), "{output:?}");
        world.up().await;
    })
    .await;
}

#[tokio::test]
async fn a_hook_without_input_does_not_wait_for_it() {
    World::scene(async |world| {
        let _one = session(&world.owner, "one", "/project/a").await;
        let mut command = world.owner.command(["hook", "working"]);
        let mut child = command.env("CLAUDEMESH_SESSION_ID", "one").stdin(Stdio::piped()).spawn().unwrap();
        // Held open until it has ended.
        let stdin = child.stdin.take();
        let status = tokio::time::timeout(tests::peer::PATIENCE, child.wait()).await.expect("ends").unwrap();
        drop(stdin);
        assert!(status.success());
        let seen: Value = world.owner.json(["peers"]).await;
        assert!(seen.to_string().contains("\"working\""), "{seen}");
    })
    .await;
}
