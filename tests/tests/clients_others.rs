//! Codex, Gemini CLI and opencode, offline, with the test as their model: they list and call hosted services as tools of the
//! mesh, as servers of their own, and through the one tool that needs no new listing.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::Path;

use serde_json::json;
use tests::clients::Model;
use tests::clients::programs::{self, Entry, Errand};
use tests::{World, fixture};

type Client = fn(&Path, &Path, &Model, &[Entry]) -> Errand;

/// How a client spells the tools of the entries `claudemesh` and `mesh-alpha`.
struct Names {
    svc: &'static str,
    native: &'static str,
    generic: &'static str,
}

async fn lists_and_calls(client: Client, names: Names) {
    let Some(clients) = programs::folder() else { return };
    World::scene(async |world| {
        let folder = fixture::python_folder(&world.folder("python"));
        world.owner.ok(["deploy", "alpha", folder.to_str().unwrap()]).await;
        let model = Model::start().await;
        let entries = [
            programs::mesh_entry("claudemesh", &world.owner, &[]),
            programs::mesh_entry("mesh-alpha", &world.owner, &["--service", "alpha"]),
        ];
        let errand = client(&clients, &world.folder("client"), &model, &entries);
        let turn = model.turn().await;
        let text = json!({ "text": "grüße 🔑" });
        let generic = json!({ "server_name": "alpha", "tool_name": "echo", "args": text });
        let calls = [(names.svc, text.clone()), (names.native, text.clone()), (names.generic, generic)];
        let mut turn = turn;
        for (tool, arguments) in calls {
            turn = model.call(turn, tool, arguments).await;
            assert!(turn.outcome().text.contains("grüße 🔑"), "{tool}: {:?}", turn.outcomes);
        }
        turn.say("done");
        errand.ends().await;
    })
    .await;
}

#[tokio::test]
async fn codex_lists_and_calls_hosted_services() {
    let names = Names {
        svc: "mcp__claudemesh__svc__alpha__echo",
        native: "mcp__mesh_alpha__echo",
        generic: "mcp__claudemesh__mesh_tool_call",
    };
    lists_and_calls(programs::codex, names).await;
}

#[tokio::test]
async fn gemini_lists_and_calls_hosted_services() {
    let names = Names {
        svc: "mcp_claudemesh_svc__alpha__echo",
        native: "mcp_mesh-alpha_echo",
        generic: "mcp_claudemesh_mesh_tool_call",
    };
    lists_and_calls(programs::gemini, names).await;
}

#[tokio::test]
async fn opencode_lists_and_calls_hosted_services() {
    let names = Names {
        svc: "claudemesh_svc__alpha__echo",
        native: "mesh-alpha_echo",
        generic: "claudemesh_mesh_tool_call",
    };
    lists_and_calls(programs::opencode, names).await;
}
