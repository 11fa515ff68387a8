//! The connection against servers that are scripted in memory, polite and otherwise.

#[path = "asks_tests.rs"]
mod asks;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::caller::{Caller, Ear, Said};
use super::super::handshake::{self, greet};
use super::super::lists;
use super::*;
use crate::logs::LogRing;
use crate::masking::Masking;

const SOON: Duration = Duration::from_secs(10);

/// The server's side of the pipes.
struct Server {
    stdin: BufReader<DuplexStream>,
    stdout: DuplexStream,
}

struct World {
    pub client: Client,
    pub server: Server,
    task: JoinHandle<End>,
    log: Arc<LogRing>,
    changed: watch::Receiver<Changed>,
}

fn world(limits: Limits) -> World {
    world_with(limits, Default::default())
}

fn world_with(limits: Limits, masking: Masking) -> World {
    let (our_out, stdin) = tokio::io::duplex(64 << 10);
    let (stdout, our_in) = tokio::io::duplex(64 << 10);
    let log = Arc::new(LogRing::default());
    let voice = Arc::new(Voice::new(log.clone(), masking));
    let (tell, changed) = watch::channel(Changed::default());
    let (client, task) = connect(our_in, our_out, limits, voice, tell);
    let task = tokio::spawn(task);
    World { client, server: Server { stdin: BufReader::new(stdin), stdout }, task, log, changed }
}

impl Server {
    pub async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.hear_line().await).expect("one JSON message per line")
    }

    pub async fn hear_line(&mut self) -> String {
        let mut line = String::new();
        let n = timeout(SOON, self.stdin.read_line(&mut line)).await.expect("in time").expect("reads");
        assert!(n > 0, "stdin is open");
        line
    }

    pub async fn say(&mut self, text: &str) {
        self.stdout.write_all(text.as_bytes()).await.expect("writes");
        self.stdout.write_all(b"\n").await.expect("writes");
    }

    pub async fn reply(&mut self, to: &Value, result: Value) {
        self.say(&json!({"jsonrpc": "2.0", "id": to["id"], "result": result}).to_string()).await;
    }

    async fn refuse(&mut self, to: &Value, code: i64) {
        let error = json!({"code": code, "message": "no"});
        self.say(&json!({"jsonrpc": "2.0", "id": to["id"], "error": error}).to_string()).await;
    }
}

fn logged(w: &World, stream: Stream) -> Vec<String> {
    let of_stream = |line: &Arc<wire::report::LogLine>| line.stream == stream.as_str();
    w.log.tail(100).into_iter().filter(of_stream).map(|line| line.text.clone()).collect()
}

/// A caller without a session that takes events.
fn hears(sink: mpsc::Sender<Said>) -> Caller {
    Caller { session: None, ear: Some(Ear { sink, events: true, asks: false }) }
}

fn event(said: Option<Said>) -> Bytes {
    match said.expect("something was said") {
        Said::Event(event) => event,
        Said::Ask(question) => panic!("no event: {:?}", question.request),
    }
}

fn text(reply: Result<Reply, CallError>) -> String {
    match reply.expect("answered") {
        Reply::Result(bytes) | Reply::Error(bytes) => String::from_utf8(bytes.to_vec()).expect("utf-8"),
    }
}

async fn answer(call: &mut super::super::client::InFlight) -> Result<Reply, CallError> {
    timeout(SOON, call.answer()).await.expect("answered in time")
}

#[tokio::test]
async fn results_and_errors_come_back_byte_for_byte() {
    let mut w = world(Limits::default());
    let odd = r#"{ "n": 1.0e400, "u":"\ud83d\ude00", "_meta":{"a":[1 , 2]} }"#;
    let mut call = w.client.call("tools/call", Some(r#"{ "x" : 1e2 }"#), Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    w.server.say(&format!(r#"{{"result":{odd},"jsonrpc":"2.0","id":{}}}"#, asked["id"])).await;
    assert_eq!(text(answer(&mut call).await), odd);
    let mut call = w.client.call("tools/call", None, Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    w.server.say(&format!(r#"{{"id":{},"error":{{"code":-1, "data":{{}}}}}}"#, asked["id"])).await;
    let reply = answer(&mut call).await.expect("answered");
    assert_eq!(reply, Reply::Error(Bytes::from_static(br#"{"code":-1, "data":{}}"#)));
    assert_eq!(w.client.in_flight(), 0);
}

#[tokio::test]
async fn answers_to_ids_that_are_not_pending_change_nothing() {
    let mut w = world(Limits::default());
    let mut call = w.client.call("x", None, Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    let id = asked["id"].as_str().expect("a text");
    let (prefix, number) = id.rsplit_once('-').expect("prefix and number");
    let number: u64 = number.parse().expect("a number");
    let next = format!("{prefix}-{}", number.wrapping_add(1));
    let giant = "9".repeat(100_000);
    for spoofed in ["1", "null", "\"1\"", "1e999", &giant, &format!("\"{next}\""), &format!("\"{id}x\"")] {
        w.server.say(&format!(r#"{{"id":{spoofed},"result":"spoofed"}}"#)).await;
    }
    w.server.say(r#"{"id":{},"result":"spoofed"}"#).await;
    // A ping answered proves that all of the above was read.
    w.server.say(r#"{"id":9,"method":"ping"}"#).await;
    assert_eq!(w.server.hear().await["result"], json!({}));
    let padded = format!("{prefix}-0{number}");
    w.server.say(&format!(r#"{{"id":"{padded}","result":"spoofed"}}"#)).await;
    w.server.reply(&asked, json!("first")).await;
    w.server.reply(&asked, json!("second")).await;
    assert_eq!(text(answer(&mut call).await), "\"first\"");
    let said = logged(&w, Stream::Runner);
    assert_eq!(said.len(), 1, "logged once: {said:?}");
}

#[tokio::test]
async fn banners_and_structured_logs_on_stdout_are_tolerated() {
    let mut w = world(Limits::default());
    w.server.say("Welcome!\r\n\r\n[not json\n{\"level\":\"info\"}\n{broken").await;
    let mut call = w.client.call("x", None, Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    w.server.reply(&asked, json!(1)).await;
    assert_eq!(text(answer(&mut call).await), "1");
    let said = logged(&w, Stream::Stdout);
    assert_eq!(said, ["Welcome!", "[not json", "{\"level\":\"info\"}", "{broken"]);
}

#[tokio::test]
async fn too_much_chatter_before_ready_ends_the_connection_and_later_it_does_not() {
    let mut w = world(Limits::default());
    for n in 0..=200 {
        w.server.say(&format!("line {n}")).await;
    }
    assert_eq!(timeout(SOON, w.task).await.expect("ends").expect("no panic"), End::Chatter);
    let mut w = world(Limits::default());
    w.client.mark_ready();
    for n in 0..=300 {
        w.server.say(&format!("line {n}")).await;
    }
    w.server.say(r#"{"id":1,"method":"ping"}"#).await;
    assert_eq!(w.server.hear().await["id"], json!(1));
}

#[tokio::test]
async fn a_giant_answer_fails_its_own_call_only() {
    let limits = Limits { message: 10_000, ..Limits::default() };
    let mut w = world(limits);
    for id_last in [true, false] {
        let mut big = w.client.call("big", None, Caller::default()).expect("taken");
        let mut small = w.client.call("small", None, Caller::default()).expect("taken");
        let (big_asked, small_asked) = (w.server.hear().await, w.server.hear().await);
        let (id, filler) = (&big_asked["id"], "x".repeat(200_000));
        let line = if id_last {
            format!(r#"{{"result":"{filler}","jsonrpc":"2.0","id":{id}}}"#)
        } else {
            format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"{filler}"}}"#)
        };
        w.server.say(&line).await;
        assert_eq!(answer(&mut big).await, Err(CallError::TooLarge(10_000)));
        w.server.reply(&small_asked, json!("fine")).await;
        assert_eq!(text(answer(&mut small).await), "\"fine\"");
    }
}

#[tokio::test]
async fn a_batch_is_refused_and_shown() {
    let mut w = world(Limits::default());
    let mut call = w.client.call("a", None, Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    w.server.say(&json!([{"id": asked["id"], "result": "in a batch"}]).to_string()).await;
    w.server.reply(&asked, json!("alone")).await;
    assert_eq!(text(answer(&mut call).await), "\"alone\"");
    assert_eq!(logged(&w, Stream::Stdout).len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_nested_too_deeply_fails_its_own_call_only() {
    let mut w = world(Limits::default());
    let mut deep = w.client.call("deep", None, Caller::default()).expect("taken");
    let mut flat = w.client.call("flat", None, Caller::default()).expect("taken");
    let (deep_asked, flat_asked) = (w.server.hear().await, w.server.hear().await);
    let nested = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    w.server.say(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{nested}}}"#, deep_asked["id"])).await;
    assert_eq!(answer(&mut deep).await, Err(CallError::TooDeep(frame::MAX_DEPTH)));
    w.server.reply(&flat_asked, json!("fine")).await;
    assert_eq!(text(answer(&mut flat).await), "\"fine\"");
}

#[tokio::test]
async fn ids_of_calls_do_not_follow_from_each_other() {
    let mut w = world(Limits::default());
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let _call = w.client.call("x", None, Caller::default()).expect("taken");
        let id = w.server.hear().await["id"].as_str().map(str::to_owned);
        // The cancellations of dropped calls come between.
        let Some(id) = id else { continue };
        numbers.insert(id.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).expect("a number"));
    }
    let steps: Vec<u64> = numbers.iter().zip(numbers.iter().skip(1)).map(|(a, b)| b - a).collect();
    assert!(steps.len() >= 3 && steps.iter().all(|step| *step > 1 << 20), "{steps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_held_back_and_not_dropped() {
    let mut w = world(Limits::default());
    w.client.mark_ready();
    let from = Instant::now();
    let flood = rate::ASIDES.burst as usize + rate::ASIDES.per_second as usize * 3;
    let line = r#"{"method":"notifications/tools/list_changed"}"#;
    for _ in 0..flood {
        w.server.stdout.write_all(format!("{line}\n").as_bytes()).await.expect("writes");
    }
    w.changed.wait_for(|n| n.tools == flood as u64).await.expect("all of them came");
    assert!(from.elapsed() >= Duration::from_secs(1), "it took {:?}", from.elapsed());
    assert!(logged(&w, Stream::Runner).iter().any(|line| line.contains("held back")));
}

#[tokio::test]
async fn progress_reaches_its_caller_under_the_callers_token_and_nobody_else() {
    let mut w = world(Limits::default());
    let (sink, mut events) = mpsc::channel(8);
    let (other_sink, mut other) = mpsc::channel(8);
    let params = r#"{"name":"t","_meta":{"progressToken":"mine"}}"#;
    let mut call = w.client.call("tools/call", Some(params), hears(sink)).expect("taken");
    let _second = w.client.call("tools/call", Some(params), hears(other_sink)).expect("taken");
    let asked = w.server.hear().await;
    let ours = &asked["params"]["_meta"]["progressToken"];
    assert_ne!(*ours, json!("mine"), "two callers may use one token");
    assert_ne!(w.server.hear().await["params"]["_meta"]["progressToken"], *ours);
    for token in [&json!("mine"), &json!(1), ours] {
        let params = json!({"progressToken": token, "progress": 0.5, "odd": {"k": 1}});
        w.server.say(&json!({"method": "notifications/progress", "params": params}).to_string()).await;
    }
    w.server.reply(&asked, json!("done")).await;
    answer(&mut call).await.expect("answered");
    let event: Value = serde_json::from_slice(&event(events.recv().await)).expect("json");
    assert_eq!(event["params"], json!({"progressToken": "mine", "progress": 0.5, "odd": {"k": 1}}));
    assert!(events.recv().await.is_none(), "unknown tokens are dropped");
    assert!(other.try_recv().is_err());
}

#[tokio::test]
async fn log_messages_are_logged_and_shown_to_a_caller_that_is_alone() {
    let mut w = world(Limits::default());
    let (sink, mut events) = mpsc::channel(8);
    let message = r#"{"method":"notifications/message","params":{"level":"info","data":"hi"}}"#;
    let mut call = w.client.call("a", None, hears(sink)).expect("taken");
    let asked = w.server.hear().await;
    w.server.say(message).await;
    let event = event(timeout(SOON, events.recv()).await.expect("in time"));
    assert_eq!(event, Bytes::from_static(message.as_bytes()));
    let second = w.client.call("b", None, Caller::default()).expect("taken");
    w.server.hear().await;
    w.server.say(message).await;
    w.server.reply(&asked, json!(1)).await;
    answer(&mut call).await.expect("answered");
    assert!(events.recv().await.is_none(), "not while another member's call runs");
    assert_eq!(logged(&w, Stream::Runner), ["[info] hi", "[info] hi"]);
    drop(second);
}

#[tokio::test]
async fn dropping_a_call_cancels_it_once_and_frees_its_place() {
    let mut w = world(Limits { in_flight: 1, ..Limits::default() });
    let call = w.client.call("slow", None, Caller::default()).expect("taken");
    assert_eq!(w.client.call("x", None, Caller::default()).err(), Some(CallError::Busy));
    let asked = w.server.hear().await;
    call.cancel("deadline");
    let told = w.server.hear().await;
    assert_eq!(told["method"], json!("notifications/cancelled"));
    assert_eq!(told["params"], json!({"requestId": asked["id"], "reason": "deadline"}));
    timeout(SOON, w.client.drained(SOON)).await.expect("the place is free");
    let mut next = w.client.call("next", None, Caller::default()).expect("taken");
    w.server.reply(&asked, json!("late")).await;
    let asked = w.server.hear().await;
    assert_eq!(asked["method"], json!("next"), "exactly one cancellation");
    w.server.reply(&asked, json!("good")).await;
    assert_eq!(text(answer(&mut next).await), "\"good\"");
}

#[tokio::test]
async fn the_servers_end_answers_every_waiter_and_what_was_not_sent_says_so() {
    let w = world(Limits::default());
    let mut call = w.client.call("x", None, Caller::default()).expect("taken");
    let World { server, task, client, .. } = w;
    let mut server = server;
    server.hear().await;
    drop(server);
    assert_eq!(answer(&mut call).await, Err(CallError::Lost));
    assert_eq!(timeout(SOON, task).await.expect("ends").expect("no panic"), End::Eof);
    assert_eq!(client.call("y", None, Caller::default()).err(), Some(CallError::NotSent));
}

#[tokio::test]
async fn closing_lets_running_calls_finish_and_refuses_new_ones() {
    let mut w = world(Limits::default());
    let mut call = w.client.call("x", None, Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    w.client.close();
    let mut rest = String::new();
    let n = timeout(SOON, w.server.stdin.read_line(&mut rest)).await.expect("in time").expect("reads");
    assert_eq!(n, 0, "stdin is closed");
    assert_eq!(w.client.call("y", None, Caller::default()).err(), Some(CallError::NotSent));
    w.server.reply(&asked, json!(1)).await;
    assert_eq!(text(answer(&mut call).await), "1");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_reads_is_given_up() {
    let w = world(Limits::default());
    let params = format!(r#"{{"x":"{}"}}"#, "y".repeat(300_000));
    let mut call = w.client.call("x", Some(&params), Caller::default()).expect("taken");
    let end = timeout(Duration::from_secs(60), w.task).await.expect("ends").expect("no panic");
    assert_eq!(end, End::Stalled);
    assert_eq!(call.answer().await, Err(CallError::Lost));
}

/// The clock of the write stall starts with what is to be written, not with the write before it.
#[tokio::test(start_paused = true)]
async fn a_server_that_asks_after_a_long_silence_is_answered() {
    let mut w = world(Limits::default());
    // Which of two ready branches runs is random: often enough, so that the wrong one would have been taken.
    for n in 0..50 {
        tokio::time::sleep(Limits::default().write_stall * 2).await;
        w.server.say(&format!(r#"{{"id":{n},"method":"ping"}}"#)).await;
        assert_eq!(w.server.hear().await["id"], json!(n));
    }
    for _ in 0..50 {
        let call = w.client.call("x", None, Caller::default()).expect("taken");
        w.server.hear().await;
        tokio::time::sleep(Limits::default().write_stall * 2).await;
        drop(call);
        assert_eq!(w.server.hear().await["method"], json!("notifications/cancelled"));
    }
}

#[tokio::test]
async fn the_servers_requests_are_answered_and_a_flood_does_not_grow_without_end() {
    let mut w = world(Limits::default());
    w.server.say(r#"{"id":"a","method":"sampling/createMessage","params":{}}"#).await;
    assert_eq!(w.server.hear().await["error"]["code"], json!(-32601));
    w.server.say(r#"{"id":2,"method":"roots/list"}"#).await;
    assert_eq!(w.server.hear().await["result"], json!({"roots": []}));
    let huge = "z".repeat(1000);
    w.server.say(&format!(r#"{{"id":"{huge}","method":"ping"}}"#)).await;
    w.server.say(r#"{"id":3,"method":"ping"}"#).await;
    assert_eq!(w.server.hear().await["id"], json!(3), "an absurd id is not echoed");
}

#[tokio::test]
async fn a_list_change_is_told_and_counted() {
    let mut w = world(Limits::default());
    w.server.say(r#"{"method":"notifications/tools/list_changed"}"#).await;
    timeout(SOON, w.changed.changed()).await.expect("in time").expect("alive");
    assert_eq!(*w.changed.borrow(), Changed { tools: 1, ..Changed::default() });
}

#[tokio::test]
async fn a_modern_server_is_recognised_and_gets_the_required_meta() {
    let mut w = world(Limits::default());
    let (greeting, ()) = tokio::join!(greet(&w.client, SOON), async {
        let asked = w.server.hear().await;
        assert_eq!(asked["method"], json!("server/discover"));
        let meta = &asked["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], json!("2026-07-28"));
        let info = json!({"io.modelcontextprotocol/serverInfo": {"name": "s", "version": "1"}});
        w.server
            .reply(
                &asked,
                json!({"resultType": "complete", "supportedVersions": ["2025-11-25", "2026-07-28"],
                       "capabilities": {"tools": {"listChanged": true}, "odd": 1}, "ttlMs": 0,
                       "cacheScope": "private", "_meta": info}),
            )
            .await;
    });
    let greeting = greeting.expect("greets");
    assert_eq!(greeting.protocol, "2026-07-28");
    assert!(greeting.capabilities.get().contains("odd"));
    assert_eq!(greeting.server_info.get(), r#"{"name":"s","version":"1"}"#);
    assert!(greeting.offers.tools && greeting.offers.changes && !greeting.offers.prompts);
    let _call = w.client.call("tools/call", Some(r#"{"name":"x"}"#), Caller::default()).expect("taken");
    let asked = w.server.hear().await;
    assert!(asked["params"]["_meta"]["io.modelcontextprotocol/clientInfo"]["name"] == json!("claudemesh"));
}

/// Answers `initialize` as an older server does.
async fn legacy_hello(server: &mut Server, protocol: &str) {
    let asked = server.hear().await;
    assert_eq!(asked["method"], json!("initialize"));
    assert_eq!(asked["params"]["protocolVersion"], json!("2025-11-25"));
    let result = json!({"protocolVersion": protocol, "capabilities": {"tools": {}, "resources": {}},
                        "serverInfo": {"name": "old"}, "instructions": "be kind"});
    server.reply(&asked, result).await;
}

#[tokio::test]
async fn a_legacy_server_is_greeted_after_any_error_to_discover() {
    for (code, protocol) in [(-32601, "2024-11-05"), (-32602, "2025-11-25")] {
        let mut w = world(Limits::default());
        let (greeting, ()) = tokio::join!(greet(&w.client, SOON), async {
            let asked = w.server.hear().await;
            w.server.refuse(&asked, code).await;
            legacy_hello(&mut w.server, protocol).await;
            assert_eq!(w.server.hear().await["method"], json!("notifications/initialized"));
        });
        let greeting = greeting.expect("greets");
        assert_eq!(
            (greeting.protocol.as_str(), greeting.instructions.as_deref()),
            (protocol, Some("be kind"))
        );
        assert!(!w.client.is_modern());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_silent_on_discover_is_sent_initialize_too() {
    let mut w = world(Limits::default());
    let (greeting, ()) = tokio::join!(greet(&w.client, Duration::from_secs(30)), async {
        assert_eq!(w.server.hear().await["method"], json!("server/discover"));
        let mut line = String::new();
        w.server.stdin.read_line(&mut line).await.expect("reads");
        let asked: Value = serde_json::from_str(&line).expect("json");
        assert_eq!(asked["method"], json!("initialize"));
        w.server.reply(&asked, json!({"protocolVersion": "2025-06-18", "capabilities": {}})).await;
    });
    assert_eq!(greeting.expect("greets").protocol, "2025-06-18");
}

#[tokio::test]
async fn an_unknown_protocol_and_nonsense_are_refused() {
    for (result, code) in [
        (json!({"protocolVersion": "1999-01-01", "capabilities": {}}), wire::ErrorCode::BadProtocol),
        (json!("hello"), wire::ErrorCode::BadProtocol),
    ] {
        let mut w = world(Limits::default());
        let (greeting, ()) = tokio::join!(greet(&w.client, SOON), async {
            let asked = w.server.hear().await;
            w.server.refuse(&asked, -32601).await;
            let asked = w.server.hear().await;
            w.server.reply(&asked, result).await;
        });
        assert_eq!(greeting.expect_err("refused").code(), code);
    }
}

fn greeting_with(offers: handshake::Offers) -> handshake::Greeting {
    let empty = || serde_json::value::RawValue::from_string("{}".to_owned()).expect("object");
    handshake::Greeting {
        protocol: "2025-11-25".to_owned(),
        server_info: empty(),
        capabilities: empty(),
        instructions: None,
        offers,
    }
}

fn generation() -> wire::Generation {
    serde_json::from_value(json!(1)).expect("a generation")
}

#[tokio::test]
async fn all_pages_are_read_and_a_missing_method_is_an_empty_list() {
    let mut w = world(Limits::default());
    let greeting = greeting_with(handshake::Offers { tools: true, resources: true, ..Default::default() });
    let (lists, ()) = tokio::join!(lists::read_all(&w.client, &greeting, generation(), SOON), async {
        for (cursor, next) in [(None, Some("p\"2")), (Some("p\"2"), Some("p3")), (Some("p3"), None)] {
            let asked = w.server.hear().await;
            assert_eq!(asked["method"], json!("tools/list"));
            assert_eq!(asked["params"].get("cursor"), cursor.map(|c| json!(c)).as_ref());
            let mut page =
                json!({"tools": [{"name": format!("t{next:?}"), "execution": {"taskSupport": "x"}}]});
            if let Some(next) = next {
                page["nextCursor"] = json!(next);
            }
            w.server.reply(&asked, page).await;
        }
        let asked = w.server.hear().await;
        w.server.reply(&asked, json!({"resources": [], "nextCursor": null})).await;
        let asked = w.server.hear().await;
        assert_eq!(asked["method"], json!("resources/templates/list"));
        w.server.refuse(&asked, -32601).await;
    });
    let lists = lists.expect("lists");
    assert_eq!(lists.tools.len(), 3);
    assert!(lists.tools[0].get().contains("taskSupport"), "unknown fields stay");
}

#[tokio::test]
async fn endless_pages_and_too_many_tools_are_stopped() {
    let greeting = greeting_with(handshake::Offers { tools: true, ..Default::default() });
    let mut w = world(Limits::default());
    let (lists, ()) = tokio::join!(lists::read_all(&w.client, &greeting, generation(), SOON), async {
        let asked = w.server.hear().await;
        let tools: Vec<_> = (0..2000).map(|n| json!({"name": format!("t{n}")})).collect();
        w.server.reply(&asked, json!({"tools": tools})).await;
    });
    assert_eq!(lists.expect_err("refused").code(), wire::ErrorCode::TooManyTools);
    let mut w = world(Limits::default());
    let (lists, n) = tokio::join!(lists::read_all(&w.client, &greeting, generation(), SOON), async {
        let mut n = 0;
        loop {
            let asked = w.server.hear().await;
            n += 1;
            w.server.reply(&asked, json!({"tools": [], "nextCursor": format!("{n}")})).await;
            if n == 1001 {
                break n;
            }
        }
    });
    assert_eq!((lists.expect_err("refused").code(), n), (wire::ErrorCode::TooManyTools, 1001));
}
