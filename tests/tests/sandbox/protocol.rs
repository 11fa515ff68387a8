//! What a hostile server does to those who speak with it: nobody else suffers, and nothing of it is left.

use std::time::Duration;

use serde_json::json;
use tests::{Peer, World, eventually, fixture, processes};

use super::PYTHON;

/// How the server misbehaves, and what its own caller may hear.
struct Case {
    how: &'static str,
    heard: Heard,
}

enum Heard {
    Text(&'static str),
    /// Any error with a code: the call ends within its deadline.
    Refusal,
    /// An answer or an error, but an end.
    Anything,
}

const CASES: [Case; 12] = [
    Case { how: "daemon", heard: Heard::Text("left one behind") },
    Case { how: "ignore_sigterm", heard: Heard::Text("deaf") },
    Case { how: "flood", heard: Heard::Refusal },
    Case { how: "deaf", heard: Heard::Refusal },
    Case { how: "silent", heard: Heard::Refusal },
    Case { how: "malformed", heard: Heard::Anything },
    Case { how: "spoof", heard: Heard::Text("mine") },
    Case { how: "twice", heard: Heard::Text("first") },
    Case { how: "requests", heard: Heard::Text("asked") },
    Case { how: "huge", heard: Heard::Refusal },
    Case { how: "text", heard: Heard::Anything },
    Case { how: "many_tools", heard: Heard::Anything },
];

#[tokio::test]
async fn a_misbehaving_server_harms_nobody_else_and_leaves_nothing() {
    World::scene(async |world| {
        let good = fixture::node_folder(&world.folder("good"));
        world.owner.ok(["deploy", "good", good.to_str().unwrap()]).await;
        let peer = world.owner.peer().await;
        for case in &CASES {
            one(world, &peer, case).await;
        }
    })
    .await;
}

async fn one(world: &World, peer: &Peer, case: &Case) {
    let how = case.how;
    let bad = fixture::write_tree(&world.folder("bad"), &PYTHON);
    world.owner.ok(["deploy", "bad", bad.to_str().unwrap()]).await;
    let request = json!({
        "serverName": "bad", "toolName": "misbehave", "args": { "how": how }, "deadlineMs": 8000,
    });
    let began = std::time::Instant::now();
    let answer = peer.request("mcp_call", request).await;
    let text = fixture::text(&answer["result"]);
    match case.heard {
        Heard::Text(wanted) => assert_eq!(text, wanted, "{how}: {answer}"),
        Heard::Refusal => {
            assert!(answer["error"].is_string() || answer["code"].is_string(), "{how}: {answer}")
        }
        Heard::Anything => {}
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{how} took {:?}", began.elapsed());
    assert_eq!(peer.call_text("good", "echo", json!({ "text": "hi" })).await, "hi", "after {how}");
    if how == "text" {
        what_people_read_is_harmless(world).await;
    }
    world.owner.ok(["stop", "bad"]).await;
    eventually("nothing of the server is left", async || {
        let all = processes::of(world.path());
        all.iter().all(|found| !found.command.contains("server.py")).then_some(())
    })
    .await;
    world.owner.ok(["rm", "bad"]).await;
}

/// Log lines and results on a terminal: no sequence that moves a cursor, hides, reorders or forges a line.
async fn what_people_read_is_harmless(world: &World) {
    let printed = eventually("the line is in the log", async || {
        let printed = world.owner.ok(["logs", "bad"]).await;
        printed.contains("forged line").then_some(printed)
    })
    .await;
    let is_hostile =
        |c: char| (c.is_control() && !"\n\t".contains(c)) || "\u{202e}\u{202c}\u{200b}".contains(c);
    assert!(!printed.contains(is_hostile), "{printed:?}");
    assert!(!printed.lines().any(|line| line.starts_with("2030-01-01")), "a forged line: {printed:?}");
}
