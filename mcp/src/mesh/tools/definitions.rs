//! The management tools as a client sees them: names and inputs of the original (hosting reference §1.21), with fields of
//! our own added.

use std::sync::LazyLock;

use serde_json::{Value, json};

/// The definitions, joined by commas.
pub fn all() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let definitions = [hosting(), calling(), lending(), vault(), skills(), people()].concat();
        definitions.iter().map(Value::to_string).collect::<Vec<_>>().join(",")
    });
    &TEXT
}

/// What a tool does to the world, as MCP annotations say it.
#[derive(Clone, Copy)]
enum Effect {
    Reads,
    Writes,
    /// Or nobody knows: it runs what somebody else wrote.
    MayDestroy,
}

fn tool(name: &str, effect: Effect, description: &str, required: &[&str], properties: &Value) -> Value {
    let annotations = match effect {
        Effect::Reads => json!({ "readOnlyHint": true }),
        Effect::Writes => json!({ "readOnlyHint": false, "destructiveHint": false }),
        Effect::MayDestroy => json!({ "readOnlyHint": false, "destructiveHint": true }),
    };
    json!({
        "name": name,
        "description": description,
        "inputSchema": {
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        },
        "annotations": annotations,
    })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn texts(description: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": description })
}

fn server() -> Value {
    text("Name of the service, as mesh_mcp_catalog lists it")
}

fn scope_input(description: &str) -> Value {
    json!({
        "description": description,
        "anyOf": [
            { "type": "string", "enum": ["peer", "mesh"] },
            { "type": "object", "description":
                "{\"peers\":[\"Ana\"]}, {\"group\":\"eng\"}, {\"groups\":[\"eng\",\"ops\"]} or {\"role\":\"lead\"}" },
        ],
    })
}

fn deploy_input() -> Value {
    json!({
        "server_name": text("1-64 letters, digits, - and single _; the service's name in the mesh"),
        "npx_package": text("An npm package: name, name@1.2.3"),
        "uvx_package": text("A PyPI package: name, name==1.2"),
        "git_url": text("https:// URL of a repository"),
        "git_branch": text("Branch, tag or commit of git_url; default: the repository's own"),
        "subdir": text("Folder inside the repository of git_url"),
        "path": text("A folder, .zip or .mcpb on this machine; it is uploaded"),
        "file_id": text("An archive that was uploaded before"),
        "bin": text("Which executable of a package, when it has several"),
        "entry": text("Which file of a project is started, instead of the detected one"),
        "args": texts("Arguments of the server, e.g. its subcommand or --stdio"),
        "env": { "type": "object", "additionalProperties": { "type": "string" },
            "description": "Environment of the server. No secrets here: store them with vault_set and write $vault:KEY, \
                            or $vault:KEY:file:/secrets/NAME" },
        "runtime": { "type": "string", "enum": ["node", "python", "bun"],
            "description": "Instead of the detected one, for git_url, path and file_id" },
        "memory_mb": { "type": "integer", "minimum": 64, "description": "Most memory; default 512" },
        "cpus": { "type": "number", "exclusiveMinimum": 0, "description": "Most processors; default 1" },
        "network_allow": texts("Where it may connect to: HOST, HOST:PORT, *.DOMAIN. Default: nowhere"),
        "allow_scripts": { "type": "boolean", "description": "Let npm run install scripts; default false" },
        "idle_stop_s": { "type": "integer", "minimum": 1,
            "description": "Stop the process after so many seconds without a call; a call wakes it" },
        "scope": scope_input("Who may see and call it; default \"peer\": only you"),
    })
}

fn hosting() -> Vec<Value> {
    let only_server = json!({ "server_name": server() });
    vec![
        tool(
            "mesh_mcp_deploy",
            Effect::Writes,
            "Hosts an MCP server in the mesh, in a jail of its own, where it outlives this session. Give exactly one source: \
             npx_package, uvx_package, git_url, path or file_id. Waits until it runs or has failed, and reports progress. Its \
             tools are then yours as svc__SERVER__TOOL. Private until you widen its scope. Deploying under a name of \
             yours again replaces that service; the old version serves until the new one is ready.",
            &["server_name"],
            &deploy_input(),
        ),
        tool(
            "mesh_mcp_undeploy",
            Effect::MayDestroy,
            "Stops a hosted service and removes it with its data, for everybody.",
            &["server_name"],
            &only_server,
        ),
        tool(
            "mesh_mcp_update",
            Effect::Writes,
            "Resolves a hosted service's source again (newest version, newest commit) and deploys that; waits until it serves.",
            &["server_name"],
            &only_server,
        ),
        tool(
            "mesh_mcp_logs",
            Effect::Reads,
            "The last lines that a hosted service wrote, and what happened to it. Look here first when it does not work.",
            &["server_name"],
            &json!({ "server_name": server(), "lines": { "type": "integer", "minimum": 1, "maximum": 1000,
                "description": "Default 50" } }),
        ),
        tool(
            "mesh_mcp_scope",
            Effect::Writes,
            "Shows who may see and call a hosted service; with `scope`, changes it.",
            &["server_name"],
            &json!({ "server_name": server(), "scope": scope_input("Leave out to read it") }),
        ),
        tool(
            "mesh_mcp_schema",
            Effect::Reads,
            "The tools of a hosted service or a live server with description and input schema, as mesh_tool_call takes them.",
            &["server_name"],
            &json!({ "server_name": server(), "tool_name": text("Only this one, by the server's own name for it") }),
        ),
        tool(
            "mesh_mcp_catalog",
            Effect::Reads,
            "The hosted services that you may see: status, number of tools, scope, who deployed it, source. Live servers: \
             mesh_mcp_list.",
            &[],
            &json!({}),
        ),
    ]
}

fn calling() -> Vec<Value> {
    vec![tool(
        "mesh_tool_call",
        Effect::MayDestroy,
        "Calls a tool of any server of the mesh, hosted or live, and gives its result unchanged. Use it for tools that are \
             not in your tool list, for example of a service that was deployed a moment ago. How: mesh_mcp_catalog or \
             mesh_mcp_list names the servers, mesh_mcp_schema {server_name} shows the tools and their inputs, then \
             mesh_tool_call {server_name: \"weather\", tool_name: \"forecast\", args: {\"city\": \"Oslo\"}}. tool_name is \
             the server's own name for the tool, without svc__.",
        &["server_name", "tool_name"],
        &json!({ "server_name": text("The service or live server"), "tool_name": text("The server's own name of the tool"),
                "args": { "type": "object", "description": "The tool's arguments, as its input schema says" } }),
    )]
}

fn lending() -> Vec<Value> {
    let definition = json!({
        "type": "object", "required": ["name", "description", "inputSchema"],
        "properties": { "name": { "type": "string" }, "description": { "type": "string" },
            "inputSchema": { "type": "object" } },
    });
    vec![
        tool(
            "mesh_mcp_register",
            Effect::MayDestroy,
            "Lends a server to the mesh while this session lives. With `command`, that MCP server is started on this machine and \
             answers by itself. With `tools`, you answer: calls come as channel messages where channels are on, and by \
             mesh_mcp_calls everywhere; answer each within 30 s with mesh_mcp_respond. Lend only what everybody in the mesh \
             may use: it runs with your rights.",
            &["server_name", "description"],
            &json!({ "server_name": text("The name under which others call it; yours until you remove it"),
                "description": text("What it is for, for the others"),
                "tools": { "type": "array", "items": definition, "description": "What you answer yourself" },
                "command": texts("Program and arguments of an MCP server that speaks stdio, instead of `tools`"),
                "persistent": { "type": "boolean",
                    "description": "Stays listed, as offline, after this session; default false" } }),
        ),
        tool(
            "mesh_mcp_calls",
            Effect::Reads,
            "Calls of servers that you registered with `tools` and that wait for your answer (mesh_mcp_respond).",
            &[],
            &json!({ "wait_s": { "type": "integer", "minimum": 0, "maximum": 25,
                "description": "Wait so long for one; default 0" } }),
        ),
        tool(
            "mesh_mcp_respond",
            Effect::Writes,
            "Answers a call of a server that you registered with `tools`: either `result` or `error`.",
            &["call_id"],
            &json!({ "call_id": text("As the call said"),
                "result": { "description": "A text, or an MCP tool result {content: […]}, or any JSON" },
                "error": text("Why there is no result") }),
        ),
        tool(
            "mesh_mcp_list",
            Effect::Reads,
            "Live servers: MCP servers that members lend from their own machines, with tools, host, and since when offline.",
            &[],
            &json!({}),
        ),
        tool(
            "mesh_mcp_remove",
            Effect::MayDestroy,
            "Takes a live server of yours back: nobody can call it any more and its name is free.",
            &["server_name"],
            &json!({ "server_name": text("The live server") }),
        ),
    ]
}

fn vault() -> Vec<Value> {
    vec![
        tool(
            "vault_set",
            Effect::Writes,
            "Stores a secret of yours, sealed so that only a service you consented to can open it; use it in mesh_mcp_deploy's \
             env as $vault:KEY. Give from_file or from_env: the value is read on this machine and never passes through the \
             model. `value` works too, but then the secret is in this conversation: only for values that are no real secrets.",
            &["key"],
            &json!({ "key": text("1-128 letters, digits, _ - ."),
                "from_file": text("A local file that holds the value"),
                "from_env": text("A variable of this session's environment that holds the value"),
                "value": text("The value itself; with type \"file\" the path of a local file, as from_file"),
                "type": { "type": "string", "enum": ["env", "file"],
                    "description": "What the service gets: a variable (default) or a file" },
                "mount_path": text("For type \"file\": where the service shall find it, e.g. /secrets/key.pem") }),
        ),
        tool(
            "vault_list",
            Effect::Reads,
            "Your secrets: names, kinds, versions, and which services use them. Never values.",
            &[],
            &json!({}),
        ),
        tool(
            "vault_delete",
            Effect::MayDestroy,
            "Removes a secret of yours; services that hold it are stopped.",
            &["key"],
            &json!({ "key": text("As vault_list shows it") }),
        ),
    ]
}

fn skills() -> Vec<Value> {
    vec![
        tool(
            "share_skill",
            Effect::Writes,
            "Shares instructions for agents with the whole mesh, as a prompt and a skill:// resource. Replaces one of yours of \
             the same name.",
            &["name", "description", "instructions"],
            &json!({ "name": text("1-64 letters, digits, - and single _"), "description": text("What it does"),
                "instructions": text("Markdown"), "tags": texts("Words to find it by"),
                "when_to_use": text("When an agent should take it"), "allowed_tools": texts("Tools that it may use"),
                "model": text("Model that it is meant for"),
                "context": { "type": "string", "enum": ["inline", "fork"], "description": "fork: in a subagent" },
                "agent": text("Type of the subagent"),
                "user_invocable": { "type": "boolean", "description": "false: no slash command; default true" },
                "argument_hint": text("What may be typed behind the command") }),
        ),
        tool(
            "get_skill",
            Effect::Reads,
            "A skill of the mesh: front matter, instructions and the list of its files.",
            &["name"],
            &json!({ "name": text("As list_skills shows it") }),
        ),
        tool(
            "list_skills",
            Effect::Reads,
            "The skills that members share: name, description, tags and author.",
            &[],
            &json!({ "query": text("Part of a name, description or tag") }),
        ),
        tool(
            "remove_skill",
            Effect::MayDestroy,
            "Takes a skill of yours out of the mesh, for everybody.",
            &["name"],
            &json!({ "name": text("As list_skills shows it") }),
        ),
        tool(
            "mesh_skill_deploy",
            Effect::Writes,
            "Shares a skill with files: from a folder or zip with a SKILL.md on this machine, or from a git repository.",
            &[],
            &json!({ "path": text("A folder, a zip or a SKILL.md on this machine"), "git_url": text("https:// URL"),
                "git_branch": text("Branch, tag or commit of git_url"),
                "file_id": text("Of an upload; skills are not read from uploads here: use path") }),
        ),
    ]
}

fn people() -> Vec<Value> {
    vec![
        tool(
            "list_peers",
            Effect::Reads,
            "Who is in the mesh just now: name, status, groups, machine and folder.",
            &[],
            &json!({}),
        ),
        tool(
            "set_status",
            Effect::Writes,
            "Tells the others what this session is doing; list_peers shows it.",
            &["status"],
            &json!({ "status": { "type": "string", "enum": ["idle", "working", "dnd", "needs_input"] } }),
        ),
    ]
}
