//! What a hosted server asks of its clients, and what it says outside of calls: over the real broker and the real runner, to two
//! members at once.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use client::connection::{ListenEvent, ListenStream, RequestEvent, RequestStream};
use client::{Announce, Config, Connection, Membership, Reconnect};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tests::peer::PATIENCE;
use tests::{Person, World, fixture};
use tokio::time::timeout;
use wire::ErrorCode;
use wire::peer::calls::{McpAsk, McpCallResult, McpListen, McpRequest};

const ASKER: &str = include_str!("../fixtures/python/asker.py");

/// One member's session.
struct Session(Connection);

impl Session {
    async fn of(person: &Person) -> Self {
        let config = Config::load(&person.config).unwrap();
        let membership = Membership::of(config.choose(None).unwrap()).unwrap();
        let connected = Connection::open(membership, Announce::here("ai", "test"), Reconnect::Forever);
        Self(connected.await.unwrap())
    }

    async fn begin(&self, tool: &str, args: Value) -> RequestStream {
        let params = json!({ "name": tool, "arguments": args, "_meta": { "progressToken": 1 } });
        let request = McpRequest {
            server_name: "asker".into(),
            method: "tools/call".into(),
            params: Some(to_raw_value(&params).unwrap()),
            deadline_ms: Some(100_000),
            asks: true,
        };
        self.0.request_stream(&request).await.unwrap()
    }

    /// The text of a call during which nothing is asked.
    async fn call(&self, tool: &str, args: Value) -> String {
        let mut stream = self.begin(tool, args).await;
        text(&done(&mut stream).await)
    }

    /// Listens, and has heard that it does.
    async fn listen(&self, resources: &[&str], log_level: Option<&str>) -> ListenStream {
        let frame = McpListen {
            server_name: "asker".into(),
            resources: resources.iter().map(|&uri| uri.to_owned()).collect(),
            log_level: log_level.map(str::to_owned),
        };
        let mut stream = self.0.listen(&frame).await.unwrap();
        let first = timeout(PATIENCE, stream.next()).await.unwrap().unwrap();
        assert!(matches!(first, ListenEvent::Listening), "{first:?}");
        stream
    }
}

async fn next(stream: &mut RequestStream) -> RequestEvent {
    timeout(PATIENCE, stream.next()).await.expect("in time").unwrap()
}

async fn asked(stream: &mut RequestStream) -> McpAsk {
    loop {
        match next(stream).await {
            RequestEvent::Ask(ask) => return ask,
            RequestEvent::Notification(_) => {}
            RequestEvent::Done(result) => panic!("nothing was asked: {result:?}"),
        }
    }
}

async fn done(stream: &mut RequestStream) -> McpCallResult {
    loop {
        match next(stream).await {
            RequestEvent::Done(result) => return result,
            RequestEvent::Notification(_) => {}
            RequestEvent::Ask(ask) => panic!("asked: {}", ask.request),
        }
    }
}

fn text(result: &McpCallResult) -> String {
    let raw = result.result.as_ref().unwrap_or_else(|| panic!("{result:?}"));
    fixture::text(&serde_json::from_str(raw.get()).unwrap())
}

async fn event(stream: &mut ListenStream) -> Value {
    match timeout(PATIENCE, stream.next()).await.expect("in time").unwrap() {
        ListenEvent::Notification(event) => serde_json::from_str(event.get()).unwrap(),
        other => panic!("no event: {other:?}"),
    }
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

fn elicit(message: &str) -> Value {
    json!({ "method": "elicitation/create", "params": { "message": message } })
}

async fn deploy(world: &World) -> Person {
    let folder = fixture::write_tree(&world.folder("asker"), &[("server.py", ASKER)]);
    world.owner.ok(["deploy", "asker", "--mesh-wide", folder.to_str().unwrap()]).await;
    world.join("bo", &[]).await
}

#[tokio::test]
async fn what_a_server_asks_reaches_who_called_and_nobody_else() {
    World::scene(async |world| {
        let bo = Session::of(&deploy(world).await).await;
        let me = Session::of(&world.owner).await;
        for method in ["elicitation/create", "sampling/createMessage", "roots/list"] {
            let mut call = me.begin("ask", json!({ "method": method, "params": { "m": 1.0 } })).await;
            let ask = asked(&mut call).await;
            assert_eq!(ask.request.get(), format!(r#"{{"method":"{method}","params":{{"m": 1.0}}}}"#));
            call.answer(ask.ask, Ok(raw(r#"{ "n" : 1.0e2 }"#))).await.unwrap();
            assert_eq!(text(&done(&mut call).await), r#"{"result": {"n": 100.0}}"#);
        }
        let mut call = me.begin("ask", elicit("?")).await;
        let ask = asked(&mut call).await.ask;
        // What is neither asked nor one's own answers nothing.
        let mut other = bo.begin("wait", elicit("late")).await;
        assert!(matches!(next(&mut other).await, RequestEvent::Notification(_)));
        other.answer(ask, Ok(raw(r#"{"from":"bo"}"#))).await.unwrap();
        call.answer(ask + 1, Ok(raw(r#"{"from":"nowhere"}"#))).await.unwrap();
        call.answer(ask, Err(raw(r#"{"code":-7,"message":"no"}"#))).await.unwrap();
        call.answer(ask, Ok(raw(r#"{"from":"the second answer"}"#))).await.unwrap();
        let said = text(&done(&mut call).await);
        assert!(said.starts_with(r#"{"error": "#) && said.contains("-7"), "{said}");

        // Bo's call still runs, so whose client is meant can not be told; from now on they take turns.
        let refused = me.call("ask", elicit("whose?")).await;
        assert!(refused.contains("several sessions"), "{refused}");
        let mut waiting = me.begin("ask", elicit("mine")).await;
        // Cancelled; and the server asks for it all the same.
        drop(other);
        let ask = asked(&mut waiting).await;
        assert!(ask.request.get().contains("mine"), "what bo's call asked: {}", ask.request);
        waiting.answer(ask.ask, Ok(raw("{}"))).await.unwrap();
        assert_eq!(text(&done(&mut waiting).await), r#"{"result": {}}"#);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_asks_without_end_is_bounded_and_goes_on_serving() {
    World::scene(async |world| {
        deploy(world).await;
        let me = Session::of(&world.owner).await;
        let mut args = elicit("again");
        args["n"] = json!(500);
        let mut call = me.begin("ask_many", args.clone()).await;
        let said = loop {
            match next(&mut call).await {
                RequestEvent::Ask(ask) => call.answer(ask.ask, Ok(raw("{}"))).await.unwrap(),
                RequestEvent::Notification(_) => {}
                RequestEvent::Done(result) => break text(&result),
            }
        };
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said["answered"].as_u64().unwrap() >= 32, "{said}");
        assert_eq!(said["answered"].as_u64().unwrap() + said["refused"].as_u64().unwrap(), 500);
        // Questions that were withdrawn: their call ends without their answers, and leaves nothing that is in the way.
        let mut call = me.begin("ask_and_forget", args).await;
        let result = loop {
            match next(&mut call).await {
                RequestEvent::Done(result) => break text(&result),
                RequestEvent::Ask(_) | RequestEvent::Notification(_) => {}
            }
        };
        assert_eq!(result, "forgotten");
        let mut call = me.begin("ask", elicit("still there?")).await;
        let ask = asked(&mut call).await;
        assert!(ask.request.get().contains("still there?"));
        // Large, and yet whole.
        let large = json!({ "text": "x".repeat(3 << 20) }).to_string();
        call.answer(ask.ask, Ok(raw(&large))).await.unwrap();
        assert!(text(&done(&mut call).await).len() > 3 << 20);
    })
    .await;
}

#[tokio::test]
async fn listeners_hear_what_they_asked_for_through_restarts_and_until_they_may_not() {
    World::scene(async |world| {
        let person = deploy(world).await;
        let (me, bo) = (Session::of(&world.owner).await, Session::of(&person).await);
        let mut mine = me.listen(&["x://a"], Some("error")).await;
        let mut theirs = bo.listen(&["x://a", "x://b"], Some("info")).await;
        assert_eq!(me.call("touch", json!({ "uri": "x://b" })).await, r#"["x://a", "x://b"]"#);
        assert_eq!(event(&mut theirs).await["params"]["uri"], "x://b");
        me.call("touch", json!({ "uri": "x://a" })).await;
        for listener in [&mut mine, &mut theirs] {
            assert_eq!(event(listener).await["params"]["uri"], "x://a");
        }
        assert_eq!(me.call("level", json!({})).await, "info", "the least that anybody wants");
        // During a call of mine it is mine, whatever others listen to.
        let mut call = me.begin("say", json!({ "level": "error", "text": "of the call" })).await;
        let RequestEvent::Notification(log) = next(&mut call).await else { panic!("a log message") };
        assert!(log.get().contains("of the call"));
        done(&mut call).await;
        me.call("later", json!({ "level": "info", "text": "of nobody" })).await;
        assert_eq!(event(&mut theirs).await["params"]["data"], "of nobody");

        // A runner that died: what was missed meanwhile is told as changed, then all goes on.
        world.kill_9_runner().await;
        assert_eq!(event(&mut mine).await["params"]["uri"], "x://a");
        for uri in ["x://a", "x://b"] {
            assert_eq!(event(&mut theirs).await["params"]["uri"], uri);
        }
        assert_eq!(me.call("touch", json!({ "uri": "x://b" })).await, r#"["x://a", "x://b"]"#);
        assert_eq!(event(&mut theirs).await["params"]["uri"], "x://b");

        // Taken away, it ends at once.
        world.owner.ok(["scope", "asker", "--peer"]).await;
        match timeout(PATIENCE, theirs.next()).await.expect("in time").unwrap() {
            ListenEvent::Ended(end) => assert_eq!(end.code, Some(ErrorCode::NotFound), "{end:?}"),
            other => panic!("no end: {other:?}"),
        }
        me.call("touch", json!({ "uri": "x://a" })).await;
        assert_eq!(event(&mut mine).await["params"]["uri"], "x://a");

        // The broker's restart ends it, and it can be asked for again.
        world.kill_9_broker().await;
        assert!(timeout(PATIENCE, mine.next()).await.expect("in time").is_err());
        world.up().await;
        let mut mine = timeout(Duration::from_secs(60), me.listen(&["x://a"], None)).await.expect("in time");
        me.call("touch", json!({ "uri": "x://a" })).await;
        loop {
            // When its runner was back only after that, it was told of that first.
            if event(&mut mine).await["params"]["uri"] == "x://a" {
                break;
            }
        }
        world.owner.ok(["rm", "asker"]).await;
        loop {
            if let ListenEvent::Ended(end) = timeout(PATIENCE, mine.next()).await.expect("in time").unwrap() {
                assert_eq!(end.code, Some(ErrorCode::NotFound), "{end:?}");
                break;
            }
        }
    })
    .await;
}
