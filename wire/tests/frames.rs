//! Golden JSON of every frame. A changed snapshot is a protocol review: old reader and new data, new reader and old
//! data, old writer and new data.
#![expect(clippy::too_many_lines, reason = "tables of frames")]

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use wire::isolation::{IsolationReport, PrimitiveReport};
use wire::peer::calls::*;
use wire::peer::hello::{Attestation, Group, Hello, HelloAck, MemberProfile, SessionHello};
use wire::peer::hosting::*;
use wire::peer::mesh::*;
use wire::peer::trust::*;
use wire::peer::{Body, ErrorBody, Head, write};
use wire::report::{EgressDecision, LogLine, Reason, Usage, Verdict};
use wire::runner::Health;
use wire::spec::{ArchiveFormat, Limits, Pin, Runtime};
use wire::{EgressRule, ErrorCode, Policy, RawJson, Scope, Secret, Tier};

const MESH: &str = "M0000000000000000000000000000001";
const MEMBER: &str = "U0000000000000000000000000000001";
const KEY: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
const SESSION_KEY: &str = "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1";

fn raw(value: &serde_json::Value) -> RawJson {
    serde_json::value::to_raw_value(value).expect("json")
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

fn reason() -> Reason {
    Reason {
        code: ErrorCode::StartExited,
        message: "it ended with code 1".into(),
        stderr: vec!["no key".into()],
    }
}

fn pin() -> Pin {
    Pin {
        kind: "npm".into(),
        name: "@scope/echo".into(),
        version: "1.2.3".into(),
        integrity: "sha512-x".into(),
        artefact: "ab".repeat(32),
        lock: String::new(),
    }
}

fn status() -> ServiceStatus {
    ServiceStatus {
        name: "echo".into(),
        kind: "mcp".into(),
        description: "MCP server: echo".into(),
        status: "running".into(),
        tool_count: 1,
        deployed_by: "Ana".into(),
        scope: Scope::Mesh,
        source_type: "npx".into(),
        runtime: Some(Runtime::Node),
        created_at: "2026-01-02T03:04:05.678Z".into(),
        phase: "ready".into(),
        generation: 2,
        reason: None,
        last_fall: None,
        failed_update: Some(FailedUpdate { generation: 3, reason: reason() }),
        pin: Some(pin()),
        source: "npm @scope/echo@1.2.3".into(),
        env_names: vec!["TOKEN".into()],
        vault: Vec::new(),
        run_as: wire::vault::RunAs::Deployer,
        inject: Vec::new(),
        unmasked_results: false,
        args: vec!["--stdio".into()],
        restarts: 1,
        usage: Some(Usage { memory_bytes: 1024, pids: 3, cpu_ms: Some(250), disk_bytes: 4096 }),
        limits: Limits::default(),
        tier: Some(Tier::Strict),
        network: vec![EgressRule::parse("*.example.org:8443").expect("a rule")],
        learning_until: Some("2026-01-02T03:14:05.678Z".into()),
        egress: vec![EgressDecision {
            host: "api.example.com".into(),
            port: 443,
            verdict: Verdict::NotListed,
            count: 3,
            last_ms: 1_700_000_000_000,
            sent_bytes: 0,
            received_bytes: 0,
            injected: 0,
        }],
        drift: Some(Drift {
            digest: "cd".repeat(32),
            changes: vec![DriftChange {
                kind: "tool".into(),
                name: "say".into(),
                before: Some(r#"{"name":"say"}"#.into()),
                after: None,
            }],
        }),
        suspicions: vec![Suspicion { tool: "say".into(), what: "U+202E right-to-left override".into() }],
        ready_since: Some("2026-01-02T03:04:06.000Z".into()),
        pid: Some(7),
        updated_at: "2026-01-02T03:04:06.000Z".into(),
        manageable: true,
    }
}

#[test]
fn hello_frames() {
    golden(
        "hello",
        &Hello {
            mesh_id: MESH.into(),
            member_id: MEMBER.into(),
            pubkey: KEY.into(),
            session_pubkey: Some(SESSION_KEY.into()),
            display_name: Some("Ana".into()),
            session_id: "7f1c".into(),
            pid: 4242,
            cwd: "/w/app".into(),
            hostname: Some("h1".into()),
            peer_type: Some("ai".into()),
            channel: Some("claude-code".into()),
            model: Some("opus".into()),
            groups: Some(vec![Group { name: "eng".into(), role: Some("lead".into()) }]),
            role: Some("review".into()),
            timestamp: 1_700_000_000_000.0,
            signature: "00".repeat(64),
        },
    );
    golden(
        "session_hello",
        &SessionHello {
            mesh_id: MESH.into(),
            parent_member_id: Some(MEMBER.into()),
            parent_member_pubkey: KEY.into(),
            session_pubkey: SESSION_KEY.into(),
            parent_attestation: Some(Attestation {
                session_pubkey: SESSION_KEY.into(),
                parent_member_pubkey: KEY.into(),
                expires_at: 1_700_043_200_000.0,
                signature: "00".repeat(64),
            }),
            display_name: Some("ann".into()),
            session_id: "7f1c".into(),
            pid: 4242,
            cwd: "/w/app".into(),
            hostname: None,
            peer_type: None,
            channel: None,
            model: None,
            groups: None,
            role: None,
            timestamp: 1_700_000_000_000.0,
            signature: "00".repeat(64),
        },
    );
    golden(
        "hello_ack",
        &HelloAck {
            presence_id: "P".repeat(32),
            member_display_name: "Ana".into(),
            member_profile: Some(MemberProfile {
                role_tag: None,
                groups: vec![],
                message_mode: "push".into(),
            }),
            services: vec![ServiceOffer {
                name: "echo".into(),
                description: "MCP server: echo".into(),
                status: "running".into(),
                tools: vec![raw(&json!({"name": "say", "inputSchema": {"type": "object"}}))],
                deployed_by: "Ana".into(),
            }],
            member_role: "owner".into(),
            broker_version: "0.1.0".into(),
        },
    );
    golden("error", &ErrorBody { code: ErrorCode::InvalidName, message: "no".into(), stderr: vec![] });
}

#[test]
fn deploy_frames() {
    let sources = [
        ("npx", DeploySource::Npx { package: Some("@scope/echo".into()), bin: None }),
        (
            "uvx",
            DeploySource::Uvx {
                package: Some("mcp-server-time".into()),
                bin: Some("mcp-server-time".into()),
            },
        ),
        (
            "git",
            DeploySource::Git {
                url: "https://example.org/a.git".into(),
                reference: Some("main".into()),
                subdir: Some("server".into()),
                auth: Some(Secret::new("t0ken")),
            },
        ),
        (
            "zip",
            DeploySource::Zip {
                file_id: "ab".repeat(32),
                format: Some(ArchiveFormat::TarGz),
                label: Some("mine".into()),
            },
        ),
    ];
    for (name, source) in sources {
        let config = DeployConfig {
            env: [("TOKEN".to_owned(), Secret::new("s3cret"))].into(),
            runtime: Some(Runtime::Node),
            memory_mb: Some(256),
            cpus: Some(0.5),
            network_allow: Some(vec!["api.example.com".into()]),
            pids: Some(100),
            disk_mb: Some(512),
            isolation: Some(Tier::Strict),
            args: vec!["--stdio".into()],
            idle_stop_s: Some(600),
            ..DeployConfig::default()
        };
        let deploy = McpDeploy { server_name: "echo".into(), source, config, scope: Some(Scope::Mesh) };
        golden(&format!("mcp_deploy_{name}"), &deploy);
    }
    golden(
        "mcp_deploy_status",
        &McpDeployStatus {
            server_name: "echo".into(),
            status: "failed".into(),
            tools: None,
            error: Some("it ended with code 1".into()),
            reason: Some(reason()),
            generation: Some(3),
            pin: Some(pin()),
            serving: Some(2),
            consent: None,
        },
    );
    golden(
        "mcp_deploy_progress",
        &McpDeployProgress {
            server_name: "echo".into(),
            generation: 3,
            step: "install".into(),
            line: "added 106 packages".into(),
        },
    );
    golden("mcp_undeploy", &McpUndeploy { server_name: "echo".into() });
    golden("mcp_update", &McpUpdate { server_name: "echo".into() });
    golden("mcp_rollback", &McpRollback { server_name: "echo".into() });
    golden("mcp_stop", &McpStop { server_name: "echo".into() });
    golden("mcp_start", &McpStart { server_name: "echo".into() });
}

#[test]
fn watch_frames() {
    let entry = LogLine { seq: 1, at_ms: 5, stream: "stderr".into(), text: "hi".into() };
    golden("mcp_status", &McpStatus { server_name: "echo".into() });
    golden("mcp_status_result", &McpStatusResult { service: status() });
    golden("mcp_logs", &McpLogs { server_name: "echo".into(), lines: Some(50), follow: true });
    golden(
        "mcp_logs_result",
        &McpLogsResult {
            server_name: "echo".into(),
            lines: vec!["[stderr] hi".into()],
            entries: vec![entry.clone()],
        },
    );
    golden("mcp_logs_event", &McpLogsEvent { server_name: "echo".into(), entries: vec![entry], end: None });
    golden(
        "mcp_scope",
        &McpScope { server_name: "echo".into(), scope: Some(Scope::Group { group: "eng".into() }) },
    );
    golden(
        "mcp_scope_result",
        &McpScopeResult { server_name: "echo".into(), scope: Scope::Peer, deployed_by: "Ana".into() },
    );
    golden("mcp_schema", &McpSchema { server_name: "echo".into(), tool_name: Some("say".into()) });
    golden(
        "mcp_schema_result",
        &McpSchemaResult {
            server_name: "echo".into(),
            tools: vec![raw(&json!({"name": "say"}))],
            names: vec!["svc__echo__say".into()],
            prompts: vec![],
            resources: vec![],
            resource_templates: vec![],
            server_info: Some(raw(&json!({"name": "echo", "version": "1"}))),
            capabilities: None,
            instructions: None,
            protocol: Some("2025-11-25".into()),
        },
    );
    golden("mcp_catalog", &McpCatalog {});
    golden("mcp_catalog_result", &McpCatalogResult { services: vec![status()] });
}

#[test]
fn call_frames() {
    golden(
        "mcp_call",
        &McpCall {
            server_name: "echo".into(),
            tool_name: "say".into(),
            args: Some(raw(&json!({"text": "hi"}))),
            deadline_ms: Some(1000),
            meta: Some(raw(&json!({"progressToken": 1}))),
        },
    );
    golden(
        "mcp_call_result",
        &McpCallResult { result: Some(raw(&json!({"content": []}))), ..McpCallResult::default() },
    );
    let failed = McpCallResult {
        error: Some("no such tool".into()),
        code: Some(ErrorCode::McpError),
        rpc: Some(raw(&json!({"code": -32602, "message": "no such tool"}))),
        ..McpCallResult::default()
    };
    golden("mcp_request_result", &McpRequestResult(failed));
    golden(
        "mcp_request",
        &McpRequest {
            server_name: "echo".into(),
            method: "prompts/get".into(),
            params: Some(raw(&json!({"name": "p"}))),
            deadline_ms: None,
            asks: true,
        },
    );
    golden(
        "mcp_request_event",
        &McpRequestEvent {
            event: raw(&json!({"method": "notifications/progress", "params": {"progress": 1}})),
        },
    );
    golden("mcp_cancel", &McpCancel { request_id: "r9".into() });
}

#[test]
fn jail_frames() {
    golden(
        "mcp_network",
        &McpNetwork {
            server_name: "echo".into(),
            allow: vec!["api.example.com".into()],
            deny: vec!["*.example.org:8443".into()],
            learn_minutes: Some(10),
        },
    );
    golden("mcp_approve", &McpApprove { server_name: "echo".into(), digest: "cd".repeat(32) });
    golden("mesh_policy", &MeshPolicy { min_isolation: Some(Tier::Light), min_release_age_s: Some(86_400) });
    golden("mesh_policy_result", &MeshPolicyResult { policy: Policy::default() });
    golden("runner_status", &RunnerStatus {});
    let landlock = PrimitiveReport {
        name: "landlock".into(),
        needed_by: Some(Tier::Light),
        refusal: Some("not built into this kernel".into()),
        remedy: "a kernel of 5.13 or later".into(),
    };
    let health = Health {
        build: "0.1.0-abc".into(),
        boot: "b1".into(),
        pid: 7,
        uptime_s: 60,
        services: 2,
        tools: vec!["node 20.20.2".into()],
        isolation: IsolationReport { tier: None, primitives: vec![landlock] },
    };
    golden("runner_status_result", &RunnerStatusResult { runner: Some(health) });
}

#[test]
fn mesh_frames() {
    golden("list_peers", &ListPeers {});
    let peer = Peer {
        pubkey: SESSION_KEY.into(),
        member_pubkey: KEY.into(),
        display_name: "Ana".into(),
        status: "idle".into(),
        summary: None,
        groups: vec![],
        session_id: "7f1c".into(),
        connected_at: "2026-01-02T03:04:05.678Z".into(),
        cwd: "/w".into(),
        peer_role: "session".into(),
        hostname: None,
        peer_type: None,
        channel: None,
        model: None,
        role: None,
    };
    golden("peers_list", &PeersList { peers: vec![peer] });
    let payload = InvitePayload {
        v: 1,
        mesh_id: MESH.into(),
        mesh_slug: "acme".into(),
        broker_url: "wss://broker.example/ws".into(),
        expires_at: 1_700_600_000,
        mesh_root_key: "BwcH".into(),
        role: "member".into(),
        owner_pubkey: KEY.into(),
        signature: "00".repeat(64),
    };
    let preset = InvitePreset { display_name: Some("bo".into()), role_tag: None, groups: vec![] };
    golden("invite_create", &InviteCreate { payload, max_uses: 1, preset });
    golden("invite_created", &InviteCreated { token: "abc".into() });
    golden("member_list", &MemberList {});
    let member = MemberEntry {
        member_id: MEMBER.into(),
        pubkey: KEY.into(),
        display_name: "Ana".into(),
        role: "owner".into(),
        role_tag: Some("lead".into()),
        groups: vec![Group { name: "eng".into(), role: None }],
        joined_at: "2026-01-02T03:04:05.678Z".into(),
        revoked: false,
    };
    golden("member_list_result", &MemberListResult { members: vec![member.clone()] });
    golden(
        "member_update",
        &MemberUpdate {
            member: "Ana".into(),
            role: None,
            role_tag: None,
            groups: Some(vec![]),
            revoke: false,
        },
    );
    golden("member_updated", &MemberUpdated { member });
}

fn event<E: Serialize>(event: &str, data: &E) {
    let push = SystemPush {
        subtype: "system".into(),
        event: event.into(),
        event_data: serde_json::value::to_raw_value(data).expect("json"),
        message_id: "00000000-0000-4000-8000-000000000000".into(),
        mesh_id: MESH.into(),
        sender_pubkey: "system".into(),
        priority: "low".into(),
        nonce: String::new(),
        ciphertext: String::new(),
        created_at: "2026-01-02T03:04:05.678Z".into(),
    };
    golden(&format!("push_{event}"), &push);
}

#[test]
fn system_events() {
    let tools = vec![raw(&json!({"name": "say"}))];
    event(
        "mcp_deployed",
        &McpDeployed {
            name: "echo".into(),
            description: "MCP server: echo".into(),
            tool_count: 1,
            deployed_by: "Ana".into(),
            scope: Scope::Mesh,
            tools: tools.clone(),
        },
    );
    event("mcp_undeployed", &McpUndeployed { name: "echo".into(), by: "Ana".into() });
    event(
        "mcp_updated",
        &McpUpdated {
            name: "echo".into(),
            prev_sha: Some("1.0.0".into()),
            new_sha: Some("1.1.0".into()),
            tools,
        },
    );
    event(
        "mcp_crashed",
        &McpCrashed { name: "echo".into(), error: "it ended".into(), restarts: 2, reason: Some(reason()) },
    );
    event(
        "mcp_scope_changed",
        &McpScopeChanged { name: "echo".into(), scope: Scope::Peer, by: "Ana".into() },
    );
    event(
        "peer_joined",
        &PeerEvent {
            name: "Bo".into(),
            display_name: "Bo".into(),
            pubkey: KEY.into(),
            groups: Some(vec![Group { name: "eng".into(), role: None }]),
        },
    );
    event(
        "peer_left",
        &PeerEvent { name: "Bo".into(), display_name: "Bo".into(), pubkey: KEY.into(), groups: None },
    );
}

#[test]
fn a_source_or_config_with_an_unknown_field_is_refused() {
    let source = json!({"server_name": "e", "source": {"type": "npx", "package": "x", "shell": true}});
    let config = json!({"server_name": "e", "source": {"type": "npx"}, "config": {"memroy_mb": 1}});
    for bad in [source, config] {
        let error = serde_json::from_value::<McpDeploy>(bad).expect_err("unknown field").to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}

#[test]
fn the_original_spelling_of_a_git_source_is_read() {
    let frame = json!({"server_name": "e", "source": {"type": "git", "url": "https://h/x", "branch": "dev"}});
    let deploy: McpDeploy = serde_json::from_value(frame).expect("reads");
    assert!(matches!(deploy.source, DeploySource::Git { reference: Some(r), .. } if r == "dev"));
}
