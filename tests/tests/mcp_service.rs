//! `claudemesh mcp --service`: a hosted server as an MCP server of one's own machine, in either era, whatever happens to the service,
//! its runner and its broker meanwhile.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::fixture::{self, text};
use tests::mcp_client::{Client, TOOLS_CHANGED};
use tests::{Person, World, eventually};

const URI: &str = "chatty://page/1";
const UPDATED: &str = "notifications/resources/updated";

/// The folder of a server that does all that a server may do.
fn chatty(world: &World) -> PathBuf {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/chatty");
    let text = |file: &str| std::fs::read_to_string(source.join(file)).unwrap();
    let files = [("index.js", text("index.js")), ("package.json", text("package.json"))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    fixture::write_tree(&world.folder("chatty"), &files)
}

async fn deploy_chatty(world: &World, name: &str, args: &[&str]) {
    let folder = chatty(world);
    let mut words = vec!["deploy".to_owned(), name.to_owned(), folder.to_str().unwrap().to_owned()];
    words.extend(args.iter().map(|arg| format!("--args={arg}")));
    world.owner.ok(words).await;
}

async fn deploy_python(world: &World, name: &str, args: &[&str]) {
    let folder = fixture::python_folder(&world.folder("python"));
    let mut words = vec!["deploy".to_owned(), name.to_owned(), folder.to_str().unwrap().to_owned()];
    words.extend(args.iter().map(|arg| format!("--args={arg}")));
    world.owner.ok(words).await;
}

/// Answers what a server asks, so that the answer can be told from any other.
fn obliging(method: &str, params: &Value) -> Value {
    let result = match method {
        "roots/list" => json!({ "roots": [{ "uri": "file:///r", "name": "r" }] }),
        "elicitation/create" => json!({ "action": "accept", "content": { "name": params["message"] } }),
        "sampling/createMessage" => {
            let content = json!({ "type": "text", "text": params["systemPrompt"] });
            json!({ "role": "assistant", "model": "m", "content": content })
        }
        _ => return json!({ "error": { "code": -32601, "message": "Method not found" } }),
    };
    json!({ "result": result })
}

fn able(person: &Person, session: &str, service: &str) -> Client {
    let mut client = Client::start(person, session, &["--service", service]);
    client.capabilities =
        json!({ "roots": {}, "sampling": { "tools": {} }, "elicitation": { "form": {}, "url": {} } });
    client.answers = obliging;
    client
}

async fn plain(person: &Person, session: &str, service: &str) -> Client {
    Client::legacy(person, session, &["--service", service]).await
}

fn names(tools: &[Value]) -> Vec<&str> {
    tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

/// What an answer of [`obliging`] became.
fn is_told(said: &str, what: &str) -> bool {
    let wanted: &[&str] = match what {
        "roots" => &["file:///r"],
        "elicit" => &["accept", "Who?"],
        "sample" => &["assistant", "Be brief."],
        _ => &["Who?", "Be brief."],
    };
    wanted.iter().all(|word| said.contains(word))
}

#[tokio::test]
async fn all_that_a_server_can_do_passes_in_all_four_pairs_of_eras() {
    World::scene(async |world| {
        for (name, args) in [("old", &[][..]), ("new", &["modern"][..])] {
            deploy_chatty(world, name, args).await;
            legacy_client(world, name).await;
            modern_client(world, name).await;
        }
    })
    .await;
}

async fn legacy_client(world: &World, name: &str) {
    let mut client = able(&world.owner, &format!("legacy-{name}"), name);
    let about = client.initialize().await;
    assert_eq!(about["serverInfo"]["title"], "Chatty", "{about}");
    let listed = client.request("tools/list", json!({})).await;
    assert_eq!(listed["tools"][0]["x-unknown"], true, "what no SDK knows is kept");
    let rich = client.call("rich", json!({ "big": 9_007_199_254_740_991_i64 })).await;
    assert_eq!(rich["structuredContent"]["given"]["big"], 9_007_199_254_740_991_i64);
    assert_eq!(rich["content"][1]["mimeType"], "image/png");
    assert!(rich.get("resultType").is_none(), "an era that the client does not speak: {rich}");
    for what in ["roots", "elicit", "sample", "both"] {
        let said = client.says(what, json!({})).await;
        assert!(is_told(&said, what), "{name} {what}: {said}");
    }
    let failed = client.ask("tools/call", json!({ "name": "fail" })).await;
    assert_eq!((&failed["error"]["code"], &failed["error"]["data"]["why"][0]), (&json!(-32050), &json!("a")));
    assert_eq!(
        client.request("resources/read", json!({ "uri": URI })).await["contents"][0]["text"],
        "a page"
    );
    let greeting = json!({ "name": "greet", "arguments": { "who": "Ana" } });
    let greeting = client.request("prompts/get", greeting).await;
    assert_eq!(greeting["messages"][0]["content"]["text"], "Hello Ana");
    let complete = json!({ "ref": { "type": "ref/prompt", "name": "greet" }, "argument": { "name": "who", "value": "A" } });
    let completed = client.request("completion/complete", complete).await;
    assert_eq!(completed["completion"]["values"], json!(["Ana", "Abe"]));

    client.request("resources/subscribe", json!({ "uri": URI })).await;
    // A subscription counts as soon as it is answered.
    client.says("touch", json!({ "uri": URI })).await;
    let updated = client.hears(UPDATED, |params| params["uri"] == URI).await;
    assert!(updated["_meta"].is_null(), "the server's own stream is nothing to this client: {updated}");
    client.says("grow", json!({})).await;
    client.tools_until("the tool that grew", |tools| names(tools).contains(&"late")).await;
    client.leave().await;
    // For the client of the other era.
    world.owner.ok(["stop", name]).await;
    world.owner.ok(["start", name]).await;
}

async fn modern_client(world: &World, name: &str) {
    let mut client = able(&world.owner, &format!("modern-{name}"), name);
    let about = client.ask_modern("server/discover", json!({})).await;
    assert_eq!(about["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["title"], "Chatty", "{about}");
    let listed = client.ask_modern("tools/list", json!({})).await;
    assert_eq!(
        (&listed["result"]["resultType"], &listed["result"]["ttlMs"]),
        (&json!("complete"), &json!(0))
    );
    let rich = client.call_modern("rich", json!({ "big": 1 })).await;
    assert_eq!(
        (&rich["resultType"], &rich["structuredContent"]["given"]["big"]),
        (&json!("complete"), &json!(1))
    );
    for what in ["roots", "elicit", "sample", "both"] {
        let result = client.call_modern(what, json!({})).await;
        assert!(is_told(&text(&result), what), "{name} {what}: {result}");
    }
    let stream = json!({ "jsonrpc": "2.0", "id": "ear", "method": "subscriptions/listen", "params": {
        "notifications": { "toolsListChanged": true, "resourceSubscriptions": [URI] },
        "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} },
    } });
    client.send(&stream).await;
    client.hears("notifications/subscriptions/acknowledged", |_| true).await;
    client.call_modern("touch", json!({ "uri": URI })).await;
    let updated = client.hears(UPDATED, |params| params["uri"] == URI).await;
    assert_eq!(updated["_meta"]["io.modelcontextprotocol/subscriptionId"], "ear");
    client.call_modern("grow", json!({})).await;
    client
        .hears(TOOLS_CHANGED, |params| params["_meta"]["io.modelcontextprotocol/subscriptionId"] == "ear")
        .await;
    client.leave().await;
}

#[tokio::test]
async fn a_service_that_changes_is_shared_and_goes_is_told_to_its_client() {
    World::scene(async |world| {
        let bo = world.join("bo", &[]).await;
        deploy_python(world, "mine", &["many", "3"]).await;
        world.owner.ok(["scope", "mine", "--mesh-wide"]).await;
        let mut owner = plain(&world.owner, "owner", "mine").await;
        let mut other = plain(&bo, "other", "mine").await;
        assert_eq!(owner.tools().await.len(), 3);
        assert_eq!(other.tools().await.len(), 3);

        deploy_python(world, "mine", &["many", "5"]).await;
        owner.tools_until("the new version's tools", |tools| tools.len() == 5).await;
        // What has changed is the others' once somebody has looked at it.
        world.owner.ok(["approve", "mine", "--yes"]).await;
        for client in [&mut owner, &mut other] {
            client.tools_until("the new version's tools", |tools| tools.len() == 5).await;
        }
        world.owner.ok(["scope", "mine", "--peer"]).await;
        other.tools_until("it is private", <[_]>::is_empty).await;
        let why = other.refuses("tool_1", json!({})).await;
        assert!(why.contains("not_found") && why.contains("scope"), "{why}");
        assert_eq!(owner.tools().await.len(), 5, "its owner keeps it");
        world.owner.ok(["scope", "mine", "--mesh-wide"]).await;
        other.tools_until("it is shared again", |tools| tools.len() == 5).await;

        world.owner.ok(["rm", "mine"]).await;
        for client in [&mut owner, &mut other] {
            client.tools_until("it is gone", <[_]>::is_empty).await;
            assert!(client.refuses("tool_1", json!({})).await.contains("not_found"));
        }
        deploy_python(world, "mine", &[]).await;
        owner.tools_until("it is back", |tools| names(tools).contains(&"echo")).await;
        assert_eq!(owner.says("echo", json!({ "text": "again" })).await, "again");
        owner.leave().await;
        other.leave().await;
    })
    .await;
}

/// Calls until one works: what is under way at the moment of a crash may fail, with a reason.
async fn calls_work(client: &mut Client, text: &str) {
    eventually("calls work again", async || {
        let result = client.call("echo", json!({ "text": text })).await;
        if result["isError"] == true {
            let why = fixture::text(&result);
            assert!(why.starts_with("claudemesh: mine: "), "{why}");
            return None;
        }
        assert_eq!(fixture::text(&result), text);
        Some(())
    })
    .await;
}

#[tokio::test]
async fn it_lives_through_a_crash_of_the_server_of_the_runner_and_of_the_broker() {
    World::scene(async |world| {
        deploy_python(world, "mine", &[]).await;
        let mut client = plain(&world.owner, "lives", "mine").await;
        calls_work(&mut client, "one").await;
        let died = client.refuses("crash", json!({})).await;
        assert!(died.contains("exited with code 7") && died.contains("instance_lost"), "{died}");
        calls_work(&mut client, "after its crash").await;
        world.kill_9_runner().await;
        calls_work(&mut client, "after the runner's").await;

        world.kill_9_broker().await;
        // Answered at once, and from what is known.
        assert!(names(&client.tools().await).contains(&"echo"));
        let mut second = plain(&world.owner, "starts-without", "mine").await;
        assert!(names(&second.tools().await).contains(&"echo"), "the last known lists");
        world.up().await;
        calls_work(&mut client, "after the broker's").await;
        calls_work(&mut second, "for the first time").await;
        client.leave().await;
        second.leave().await;
    })
    .await;
}

#[tokio::test]
async fn a_stopped_service_is_listed_and_a_call_says_how_to_start_it() {
    World::scene(async |world| {
        deploy_python(world, "mine", &[]).await;
        world.owner.ok(["stop", "mine"]).await;
        let mut client = plain(&world.owner, "stopped", "mine").await;
        let mut mesh = Client::legacy(&world.owner, "stopped", &[]).await;
        assert!(names(&client.tools().await).contains(&"echo"));
        assert!(names(&mesh.tools().await).contains(&"svc__mine__echo"));
        for why in [client.refuses("echo", json!({})).await, mesh.refuses("svc__mine__echo", json!({})).await]
        {
            assert!(why.contains("service_stopped") && why.contains("claudemesh start mine"), "{why}");
        }
        world.owner.ok(["start", "mine"]).await;
        assert_eq!(client.says("echo", json!({ "text": "up" })).await, "up");
        assert_eq!(mesh.says("svc__mine__echo", json!({ "text": "up" })).await, "up");
        client.leave().await;
        mesh.leave().await;
    })
    .await;
}

/// Milliseconds of processor time, and threads.
fn effort(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // utime and stime are the 14th and 15th, the number of threads the 20th; a tick is 10 ms.
    ((fields[10] + fields[11]) * 10, fields[16])
}

#[tokio::test]
async fn a_proxy_that_has_nothing_to_do_does_nothing_on_one_thread() {
    World::scene(async |world| {
        deploy_python(world, "mine", &[]).await;
        // One that holds the session's link, and one that has joined.
        let mut holder = plain(&world.owner, "idle", "mine").await;
        calls_work(&mut holder, "a").await;
        let mut joiner = plain(&world.owner, "idle", "mine").await;
        calls_work(&mut joiner, "b").await;
        let pids = [holder.child.id().unwrap(), joiner.child.id().unwrap()];
        for pid in pids {
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            assert!(
                program.ends_with("claudemesh-mcp"),
                "{program:?}: `cargo build -p cli -p mcp` builds both"
            );
        }
        // What it does all the time shows in each of these; the link's pings and a write of its state only in one.
        let mut spent = [u64::MAX; 2];
        for _ in 0..4 {
            let before = pids.map(effort);
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            for ((pid, (before, _)), least) in pids.into_iter().zip(before).zip(&mut spent) {
                *least = (*least).min(effort(pid).0 - before);
            }
            if spent.iter().all(|ms| *ms <= 20) && pids.iter().all(|pid| effort(*pid).1 == 1) {
                break;
            }
        }
        assert!(spent.iter().all(|ms| *ms <= 20), "{spent:?} ms of processor time in 5 s of idleness");
        assert_eq!(pids.map(|pid| effort(pid).1), [1, 1], "threads");
        holder.leave().await;
        joiner.leave().await;
    })
    .await;
}

#[tokio::test]
async fn hostile_lines_are_answered_and_cost_nobody_anything() {
    World::scene(async |world| {
        deploy_python(world, "mine", &[]).await;
        let mut client = Client::start(&world.owner, "hostile", &["--service", "mine"]);
        let echo = |id: &str, text: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"text":"{text}"}}}}}}"#)
        };
        // Before any handshake.
        client.raw(&echo("1", "early")).await;
        assert_eq!(client.line().await["error"]["code"], -32602);
        client.initialize().await;
        client.initialize().await;
        for (line, code) in [
            ("nonsense", -32700),
            ("[]", -32600),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[1]}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":null,"method":"tools/list"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":{},"method":"tools/list"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#, -32601),
            ("\u{0}\u{1}", -32700),
        ] {
            client.raw(line).await;
            let answer = client.line().await;
            assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        }
        // Taken back before it was asked, and answers to what nobody asked.
        client.raw(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"never"}}"#).await;
        client.raw(r#"{"jsonrpc":"2.0","id":77,"result":{}}"#).await;
        for id in ["1.5", "-0", "\"\"", "\"1\"", "123456789012345678901234567890"] {
            client.raw(&echo(id, "odd")).await;
            let line = client.raw_line().await;
            assert!(line.contains(&format!("\"id\":{id},")), "an id comes back as it was written: {line}");
            assert!(line.contains("odd"), "{line}");
        }
        // The same id twice, and both eras in one conversation.
        client.raw(r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"sleep","arguments":{"ms":300}}}"#).await;
        client.raw(&echo("5", "twice")).await;
        assert_eq!(client.line().await["error"]["code"], -32600);
        assert_eq!(text(&client.line().await["result"]), "slept");
        let modern = client.call_modern("echo", json!({ "text": "both eras" })).await;
        assert_eq!((text(&modern).as_str(), &modern["resultType"]), ("both eras", &json!("complete")));
        let forged = json!({ "name": "echo", "arguments": { "text": "x" }, "requestState": "00112233445566778899aabbccddeeff" });
        assert_eq!(client.ask_modern("tools/call", forged).await["error"]["code"], -32602);
        // A line beyond all limits, and then one that is not.
        let giant = "x".repeat(65 << 20);
        client.raw(&giant).await;
        drop(giant);
        assert_eq!(client.line().await["error"]["code"], -32600);
        assert_eq!(client.says("echo", json!({ "text": "still here" })).await, "still here");
        client.leave().await;
    })
    .await;
}
