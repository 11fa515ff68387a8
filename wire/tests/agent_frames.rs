//! Golden JSON of the frames between agents and what serves them: asks, listening, live servers, skills, status. The rules are
//! those of `frames.rs`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use wire::RawJson;
use wire::peer::calls::{McpAsk, McpAskAnswer, McpListen, McpListening};
use wire::peer::live::*;
use wire::peer::mesh::{HookStatus, HookStatusSet, SetStatus, StatusSet};
use wire::peer::skills::*;
use wire::peer::{Body, Head, write};

const WHEN: &str = "2026-01-02T03:04:05.678Z";

fn raw(value: &serde_json::Value) -> RawJson {
    serde_json::value::to_raw_value(value).expect("json")
}

fn tool() -> RawJson {
    raw(&json!({"name": "say", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": true}}))
}

/// Snapshots the written frame and checks that its own reader takes it back to the same bytes.
fn golden<B: Body + Serialize + DeserializeOwned>(name: &str, body: &B) {
    let text = write(Some("r1"), body).expect("writes");
    let head: Head = serde_json::from_str(&text).expect("has a head");
    assert_eq!((&*head.kind, head.req_id.as_deref()), (B::TYPE, Some("r1")));
    let back: B = serde_json::from_str(&text).expect("reads its own words");
    assert_eq!(write(Some("r1"), &back).expect("writes again"), text);
    insta::assert_snapshot!(name, text);
}

/// What is no frame: data of an event, a body of HTTP.
fn golden_part<T: Serialize + DeserializeOwned>(name: &str, part: &T) {
    let text = serde_json::to_string(part).expect("writes");
    let back: T = serde_json::from_str(&text).expect("reads its own words");
    assert_eq!(serde_json::to_string(&back).expect("writes again"), text);
    insta::assert_snapshot!(name, text);
}

#[test]
fn asks_and_listening() {
    let request = json!({"method": "elicitation/create", "params": {"message": "really?"}});
    golden("mcp_ask", &McpAsk { ask: 1, request: raw(&request) });
    let answer = |result, error| McpAskAnswer { request_id: "r9".into(), ask: 1, result, error };
    golden("mcp_ask_answer", &answer(Some(raw(&json!({"action": "accept", "content": {}}))), None));
    let error = json!({"code": -32601, "message": "Method not found"});
    golden("mcp_ask_answer_error", &answer(None, Some(raw(&error))));
    let resources = vec!["file:///a".to_owned()];
    golden(
        "mcp_listen",
        &McpListen { server_name: "echo".into(), resources, log_level: Some("info".into()) },
    );
    golden("mcp_listening", &McpListening {});
}

#[test]
fn live_frames() {
    let server_name = || "db".to_owned();
    golden(
        "mcp_register",
        &McpRegister {
            server_name: server_name(),
            description: "a database".into(),
            tools: vec![tool()],
            persistent: true,
        },
    );
    golden("mcp_register_ack", &McpRegisterAck { server_name: server_name(), tool_count: 1 });
    golden("mcp_unregister", &McpUnregister { server_name: server_name() });
    golden("mcp_unregister_ack", &McpUnregisterAck { server_name: server_name() });
    golden("mcp_list", &McpList {});
    let online = LiveServer {
        name: server_name(),
        description: "a database".into(),
        hosted_by: "Ana".into(),
        tools: vec![tool()],
        online: true,
        offline_since: None,
        persistent: false,
        own: true,
    };
    let offline = LiveServer {
        name: "web".into(),
        description: String::new(),
        hosted_by: "Bo".into(),
        tools: vec![],
        online: false,
        offline_since: Some(WHEN.into()),
        persistent: true,
        own: false,
    };
    golden("mcp_list_result", &McpListResult { servers: vec![online, offline] });
}

#[test]
fn frames_of_calls_that_are_forwarded() {
    let server_name = || "db".to_owned();
    let call_id = || "0f2c".to_owned();
    golden(
        "mcp_call_forward",
        &McpCallForward {
            call_id: call_id(),
            server_name: server_name(),
            tool_name: "say".into(),
            args: raw(&json!({"n": 1.0})),
            caller_name: "Bo".into(),
        },
    );
    let response = |result, error| McpCallResponse { call_id: call_id(), result, error };
    golden("mcp_call_response", &response(Some(raw(&json!({"content": []}))), None));
    golden("mcp_call_response_error", &response(None, Some("no such table".into())));
    golden("mcp_call_forward_cancel", &McpCallForwardCancel { call_id: call_id() });
    golden_part(
        "data_mcp_registered",
        &McpRegistered {
            server_name: server_name(),
            description: "a database".into(),
            tools: vec!["say".into()],
            hosted_by: "Ana".into(),
        },
    );
    golden_part(
        "data_mcp_unregistered",
        &McpLiveEvent { server_name: server_name(), hosted_by: "Ana".into() },
    );
}

#[test]
fn skill_frames() {
    let manifest = || Some(raw(&json!({"when_to_use": "before a release"})));
    let file = || SkillFile { path: "bin/check".into(), content: "IyE=".into(), executable: true };
    golden(
        "share_skill",
        &ShareSkill {
            name: "release".into(),
            description: "How we release".into(),
            instructions: "# Release\n".into(),
            tags: vec!["ops".into()],
            manifest: manifest(),
            files: vec![file()],
        },
    );
    golden("skill_ack", &SkillAck { name: "release".into(), action: "shared".into() });
    golden("get_skill", &GetSkill { name: "release".into() });
    let skill = Skill {
        name: "release".into(),
        description: "How we release".into(),
        instructions: "# Release\n".into(),
        tags: vec!["ops".into()],
        author: "Ana".into(),
        manifest: manifest(),
        created_at: WHEN.into(),
        files: vec![file()],
    };
    golden("skill_data", &SkillData { skill: Some(skill) });
    golden("list_skills", &ListSkills { query: Some("rel".into()) });
    let entry = SkillEntry {
        name: "release".into(),
        description: "How we release".into(),
        tags: vec!["ops".into()],
        author: "Ana".into(),
        created_at: WHEN.into(),
        manifest: None,
        files: vec!["bin/check".into()],
    };
    golden("skill_list", &SkillList { skills: vec![entry] });
    golden("remove_skill", &RemoveSkill { name: "release".into() });
    golden_part("data_skill_shared", &SkillEvent { name: "release".into(), by: "Ana".into() });
}

#[test]
fn status_frames() {
    golden("set_status", &SetStatus { status: "dnd".into() });
    golden("status_set", &StatusSet { status: "dnd".into() });
    golden_part(
        "hook_status",
        &HookStatus {
            cwd: "/w".into(),
            status: "working".into(),
            pid: Some(4242),
            session_id: Some("7f1c".into()),
        },
    );
    golden_part("hook_status_set", &HookStatusSet { ok: true, presence_id: None, pending: true });
}

#[test]
fn what_the_original_leaves_out_is_read_as_its_defaults() {
    let register: McpRegister =
        serde_json::from_str(r#"{"serverName":"db","description":"d","tools":[]}"#).expect("reads");
    assert!(!register.persistent);
    let listen: McpListen = serde_json::from_str(r#"{"serverName":"db"}"#).expect("reads");
    assert_eq!((listen.resources, listen.log_level), (vec![], None));
    let share: ShareSkill =
        serde_json::from_str(r#"{"name":"a","description":"b","instructions":"c"}"#).expect("reads");
    assert!(share.tags.is_empty() && share.manifest.is_none() && share.files.is_empty());
}
