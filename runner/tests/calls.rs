//! The kept sockets of `/v1/calls` on a real runner with a real server process: calls, what the server asks, listening.

mod world;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use world::{SOON, World};

/// One socket.
struct Socket(WebSocketStream<UnixStream>);

impl Socket {
    async fn open(world: &World) -> Self {
        let stream = UnixStream::connect(world.socket()).await.expect("connects");
        let opened = tokio_tungstenite::client_async("ws://runner/v1/calls", stream);
        Self(timeout(SOON, opened).await.expect("in time").expect("a WebSocket").0)
    }

    async fn say(&mut self, message: &Value) {
        self.say_text(message.to_string()).await;
    }

    async fn say_text(&mut self, text: String) {
        self.0.send(Message::text(text)).await.expect("sent");
    }

    /// The next line; `None` when the runner closed the socket.
    async fn line(&mut self) -> Option<Value> {
        loop {
            return match timeout(SOON, self.0.next()).await.expect("in time")? {
                Ok(Message::Text(text)) => {
                    assert!(!text.ends_with('\n'), "a line is a message");
                    Some(serde_json::from_str(&text).expect("a line"))
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(_) | Err(_) => None,
            };
        }
    }

    async fn hear(&mut self) -> Value {
        self.line().await.expect("open")
    }

    async fn begin(&mut self, session: &str, tool: &str, args: Value) {
        let mut call = call(tool, args);
        call["rpc"]["session"] = json!(session);
        self.say(&call).await;
    }

    /// The text of a call that says nothing else.
    async fn text(&mut self, tool: &str, args: Value) -> String {
        self.begin("side", tool, args).await;
        text(&self.hear().await)
    }

    async fn state(&mut self) -> Value {
        serde_json::from_str(&self.text("state", json!({})).await).expect("json")
    }

    async fn listen(&mut self, session: &str, resources: &[&str], level: Option<&str>) {
        let params = json!({"resources": resources, "logLevel": level});
        let rpc =
            json!({"method": "claudemesh/listen", "deadline_ms": 0, "session": session, "params": params});
        self.say(&json!({"service": service("asking"), "rpc": rpc})).await;
        assert_eq!(self.hear().await, json!({"event": {"method": "claudemesh/listening"}}));
    }
}

fn service(name: &str) -> Value {
    json!({"mesh": "mesh000000000000000000000000000A", "name": name})
}

fn call(tool: &str, args: Value) -> Value {
    let params = json!({"name": tool, "arguments": args});
    let rpc = json!({"method": "tools/call", "deadline_ms": 30_000, "asks": true, "params": params});
    json!({"service": service("asking"), "rpc": rpc})
}

fn text(line: &Value) -> String {
    let text = line["result"]["content"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("no text in {line}")).to_owned()
}

fn code(line: &Value) -> &str {
    line["error"]["code"].as_str().unwrap_or_else(|| panic!("no error in {line}"))
}

async fn asking(change: impl FnOnce(&mut Value)) -> World {
    let world = World::start(&[]).await;
    let program = include_bytes!("fixtures/asking.mjs");
    let archive = world.upload_files(&[("asking.mjs", program.as_slice())]).await;
    let mut wish = world.wish(&[]);
    wish["spec"]["source"]["sha256"] = json!(archive);
    wish["spec"]["entry"] = json!("asking.mjs");
    change(&mut wish);
    let ready = world.deploy("asking", &wish).await;
    assert_eq!(ready["phase"], json!("ready"), "{ready}");
    world
}

#[tokio::test]
async fn one_socket_carries_call_after_call_whatever_became_of_the_one_before() {
    let world = asking(|_| {}).await;
    let mut socket = Socket::open(&world).await;
    for n in 0..3 {
        assert_eq!(socket.text("echo", json!({"text": n.to_string()})).await, n.to_string());
        socket.begin("s", "fail", json!({})).await;
        let failed = socket.hear().await;
        assert_eq!(code(&failed), "mcp_error");
        assert_eq!(failed["error"]["rpc"]["data"], json!({"kept": 1}));
        let mut nowhere = call("echo", json!({}));
        nowhere["service"] = service("nothing");
        socket.say(&nowhere).await;
        assert_eq!(code(&socket.hear().await), "not_found");
        socket.say_text("{\"service\":".to_owned()).await;
        assert_eq!(code(&socket.hear().await), "invalid_args");
        // It crossed the last line of its call.
        socket.say(&json!({"ask": 1, "result": {}})).await;
    }
    let mut late = call("hold", json!({"name": "x"}));
    late["rpc"]["deadline_ms"] = json!(50);
    socket.say(&late).await;
    assert_eq!(code(&socket.hear().await), "call_timeout");
    assert_eq!(socket.text("echo", json!({"text": "still"})).await, "still");
    let rpc = json!({"method": "tools/call", "deadline_ms": 1000, "asks": true});
    let (status, refused) =
        world.send(Method::POST, &world.path("asking", "/rpc"), Bytes::from(rpc.to_string())).await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_args")));
}

#[tokio::test]
async fn what_the_server_asks_goes_to_its_caller_and_the_answer_back() {
    let world = asking(|_| {}).await;
    let mut socket = Socket::open(&world).await;
    let state = socket.state().await;
    let offered = json!({"roots": {}, "sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}});
    assert_eq!(state["capabilities"], offered);
    assert_eq!(state["early"], json!([{"roots": []}]), "outside of calls");
    socket.begin("s", "ask", json!({})).await;
    let ask = socket.hear().await["ask"].clone();
    assert_eq!((&ask["ask"], &ask["request"]["method"]), (&json!(1), &json!("elicitation/create")));
    assert_eq!(ask["request"]["params"]["message"], json!("Name?"));
    // One that was never asked, then the answer, then a second one.
    socket.say(&json!({"ask": 9, "result": {}})).await;
    let answer = json!({"action": "accept", "content": {"name": "Ann"}});
    socket.say(&json!({"ask": 1, "result": answer})).await;
    assert_eq!(serde_json::from_str::<Value>(&text(&socket.hear().await)).expect("json"), answer);
    socket.begin("s", "ask", json!({"method": "sampling/createMessage", "params": {"maxTokens": 1}})).await;
    let ask = socket.hear().await["ask"].clone();
    assert_eq!(ask["request"], json!({"method": "sampling/createMessage", "params": {"maxTokens": 1}}));
    let error = json!({"code": -1, "message": "not today"});
    socket.say(&json!({"ask": 1, "error": error})).await;
    assert_eq!(serde_json::from_str::<Value>(&text(&socket.hear().await)).expect("json"), error);
    for unusable in [json!({"ask": 1}), json!({"ask": 1, "result": {}, "error": {}})] {
        socket.begin("s", "ask", json!({})).await;
        socket.hear().await;
        socket.say(&unusable).await;
        assert!(text(&socket.hear().await).contains("-32603"), "the server hears that there is no answer");
    }
    let mut unable = call("ask", json!({}));
    unable["rpc"]["asks"] = json!(false);
    socket.say(&unable).await;
    assert!(text(&socket.hear().await).contains("-32601"), "its caller said that it does not answer");
}

#[tokio::test]
async fn a_socket_that_closes_cancels_its_call_and_what_was_asked_in_it() {
    let world = asking(|_| {}).await;
    let mut socket = Socket::open(&world).await;
    socket.begin("s", "ask", json!({})).await;
    assert_eq!(socket.hear().await["ask"]["ask"], json!(1));
    drop(socket);
    let mut side = Socket::open(&world).await;
    let mut state = side.state().await;
    // Each look is a round trip to the server, which hears of the end in its own time.
    let hears = async {
        while state["cancelled"] != json!(1) || state["outcomes"] == json!([]) {
            state = side.state().await;
        }
    };
    timeout(SOON, hears).await.expect("in time");
    assert_eq!(state["outcomes"][0]["code"], json!(-32603));
    // So does one that says anything but an answer.
    let mut socket = Socket::open(&world).await;
    socket.begin("s", "hold", json!({"name": "x"})).await;
    socket.say(&call("echo", json!({"text": "too early"}))).await;
    assert_eq!(socket.line().await, None);
    let hears = async { while side.state().await["cancelled"] != json!(2) {} };
    timeout(SOON, hears).await.expect("in time");
}

#[tokio::test]
async fn while_two_sessions_call_nobody_is_asked_and_then_they_take_turns() {
    let world = asking(|_| {}).await;
    let (mut a, mut b) = (Socket::open(&world).await, Socket::open(&world).await);
    a.begin("a", "hold", json!({"name": "first"})).await;
    let mut again = Socket::open(&world).await;
    let begun = async { while again.state().await["held"] != json!(["first"]) {} };
    timeout(SOON, begun).await.expect("it runs");
    b.begin("b", "ask", json!({})).await;
    assert!(text(&b.hear().await).contains("several sessions"));
    b.begin("b", "ask", json!({})).await;
    again.begin("a", "release", json!({"name": "first"})).await;
    // Whichever of them came first: the end of a's first call lets both go on.
    a.0.close(None).await.expect("closes");
    let ask = b.hear().await["ask"].clone();
    assert_eq!(ask["ask"], json!(1), "alone now: {ask}");
    b.say(&json!({"ask": 1, "result": {"action": "decline"}})).await;
    assert!(text(&b.hear().await).contains("decline"));
    assert_eq!(text(&again.hear().await), "done");
    let mut logs = world.stream(Method::GET, &world.path("asking", "/logs?lines=500"), Bytes::new()).await;
    let mut said = 0;
    while let Some(line) = logs.next().await {
        said += usize::from(line["text"].as_str().is_some_and(|text| text.contains("take turns")));
    }
    assert_eq!(said, 1);
}

#[tokio::test]
async fn a_secret_is_masked_in_what_the_server_asks() {
    let world = asking(|wish| {
        wish["spec"]["env_names"] = json!(["API_TOKEN"]);
        wish["secrets"]["env"]["API_TOKEN"] = json!("canary-0123456789");
    })
    .await;
    let mut socket = Socket::open(&world).await;
    socket.begin("s", "ask", json!({"secret": true})).await;
    let ask = socket.hear().await;
    assert_eq!(ask["ask"]["request"]["params"]["message"], json!("is [secret] right?"), "{ask}");
}

#[tokio::test]
async fn who_listens_hears_of_resources_over_a_restart_of_the_server_and_to_its_end() {
    let world = asking(|wish| wish["proven"] = json!(true)).await;
    let (mut ears, mut calls) = (Socket::open(&world).await, Socket::open(&world).await);
    ears.listen("s", &["mem:/a"], None).await;
    let mut more = Socket::open(&world).await;
    more.listen("t", &["mem:/a", "mem:/b"], Some("warning")).await;
    let state = calls.state().await;
    assert_eq!(state["subscribed"], json!({"mem:/a": 1, "mem:/b": 1}), "once, whoever listens");
    assert_eq!(state["level"], json!("warning"));
    drop(more);
    let updated =
        json!({"event": {"method": "notifications/resources/updated", "params": {"uri": "mem:/a"}}});
    calls.text("update", json!({"uri": "mem:/a"})).await;
    assert_eq!(ears.hear().await, updated);
    let born = calls.text("born", json!({})).await;
    calls.begin("side", "crash", json!({})).await;
    assert_eq!(code(&calls.hear().await), "instance_lost");
    assert_ne!(calls.text("born", json!({})).await, born);
    // Who comes now is told when the new server was asked, so it was for the first one, too.
    let mut more = Socket::open(&world).await;
    more.listen("t", &["mem:/a"], None).await;
    calls.text("update", json!({"uri": "mem:/a"})).await;
    assert_eq!(more.hear().await, updated);
    assert_eq!(ears.hear().await, updated);
    drop(more);
    let hears = async { while calls.state().await["subscribed"] != json!({"mem:/a": 1}) {} };
    timeout(SOON, hears).await.expect("still the first one's");
    assert_eq!(world.remove("asking").await, StatusCode::NO_CONTENT);
    assert_eq!(code(&ears.hear().await), "service_stopped");
}

#[tokio::test]
async fn who_listens_is_told_of_changed_lists_when_they_can_be_read_and_of_log_messages() {
    let world = asking(|_| {}).await;
    let (mut ears, mut calls) = (Socket::open(&world).await, Socket::open(&world).await);
    ears.listen("s", &[], Some("warning")).await;
    calls.text("change", json!({})).await;
    assert_eq!(ears.hear().await, json!({"event": {"method": "notifications/tools/list_changed"}}));
    let (_, lists) = world.send(Method::GET, &world.path("asking", "/lists"), Bytes::new()).await;
    assert!(lists["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == "extra0")));
    // Of another session's call, then of its own: below what it asked for, and above.
    calls.text("log", json!({"level": "error", "data": 1})).await;
    for (level, data) in [("info", 2), ("error", 3)] {
        calls.begin("s", "log", json!({"level": level, "data": data})).await;
        text(&calls.hear().await);
    }
    let message = json!({"level": "error", "data": 3});
    assert_eq!(ears.hear().await, json!({"event": {"method": "notifications/message", "params": message}}));
    // In a call that takes events it comes there and not twice.
    let mut own = call("log", json!({"level": "error", "data": 4}));
    own["rpc"]["session"] = json!("s");
    own["rpc"]["events"] = json!(true);
    calls.say(&own).await;
    assert_eq!(calls.hear().await["event"]["params"]["data"], json!(4));
    text(&calls.hear().await);
    calls.text("change", json!({})).await;
    assert_eq!(ears.hear().await["event"]["method"], json!("notifications/tools/list_changed"));
    let mut wrong = Socket::open(&world).await;
    let rpc = json!({"method": "claudemesh/listen", "deadline_ms": 0, "params": {"logLevel": "loud"}});
    wrong.say(&json!({"service": service("asking"), "rpc": rpc})).await;
    assert_eq!(code(&wrong.hear().await), "invalid_args");
    assert_eq!(wrong.text("echo", json!({"text": "usable"})).await, "usable");
}

#[tokio::test]
async fn listening_neither_wakes_a_service_nor_keeps_it_awake() {
    let world = asking(|wish| wish["spec"]["idle_stop_s"] = json!(1)).await;
    let mut ears = Socket::open(&world).await;
    ears.listen("s", &["mem:/a"], None).await;
    world.phase("asking", "idle").await;
    let mut more = Socket::open(&world).await;
    more.listen("t", &["mem:/b"], None).await;
    let (_, report) = world.send(Method::GET, &world.path("asking", ""), Bytes::new()).await;
    assert_eq!(report["serving"]["phase"], json!("idle"), "{report}");
    let mut calls = Socket::open(&world).await;
    let awake = async { while calls.state().await["subscribed"] != json!({"mem:/a": 1, "mem:/b": 1}) {} };
    timeout(SOON, awake).await.expect("asked for both once it is awake");
}
