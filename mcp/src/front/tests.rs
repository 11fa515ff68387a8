//! Both eras towards a made-up offer, line by line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;

use super::*;
use crate::raw::raw;

const LIMIT: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it happens in time")
}

const ODD: &str = r#"{ "content" : [],"n":1.0e2,"s":"\u00e9","b":123456789012345678901234567890 }"#;
const ELICIT: &str =
    r#"{"method":"elicitation/create","params":{"message":"who?","requestedSchema":{ "n":1.0 }}}"#;

/// Tools: `odd` answers [`ODD`]; `params` answers its own params; `ask` asks [`ELICIT`] and answers with what came; `twice` asks twice;
/// `hang` never answers; `talk` sends progress and a log message; `panic` panics.
struct Stage {
    is_modern: bool,
    changes: watch::Sender<Changes>,
    notices: broadcast::Sender<RawJson>,
    wishes: watch::Sender<(Vec<String>, Option<String>)>,
    /// What is wished for is not heard yet.
    deaf: watch::Sender<bool>,
    hanging: AtomicUsize,
    hangs: Notify,
    asked: AtomicUsize,
}

struct Hanging<'a>(&'a Stage);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, Ordering::SeqCst);
        self.0.hangs.notify_one();
    }
}

impl Stage {
    async fn legacy_tool(&self, name: &str, exchange: &Exchange) -> Answer {
        match name {
            "odd" => Answer::Result(raw(ODD.to_owned())),
            "params" => Answer::Result(exchange.params.clone().unwrap()),
            "ask" => wrapped(exchange.ask(&raw(ELICIT.to_owned())).await),
            "twice" => {
                let first = exchange.ask(&raw(ELICIT.to_owned())).await;
                exchange.progress(0.5, Some(1.0), None);
                let second = exchange.ask(&raw(ELICIT.to_owned())).await;
                match (first, second) {
                    (Answer::Result(one), Answer::Result(two)) => {
                        Answer::Result(raw(format!("{{\"one\":{},\"two\":{}}}", one.get(), two.get())))
                    }
                    _ => panic!("both are answered"),
                }
            }
            "sample" => {
                wrapped(exchange.ask(&raw(r#"{"method":"sampling/createMessage"}"#.to_owned())).await)
            }
            "url" => wrapped(
                exchange.ask(&raw(r#"{"method":"elicitation/create","params":{"mode":"url"}}"#.into())).await,
            ),
            "hang" => {
                self.hanging.fetch_add(1, Ordering::SeqCst);
                let _hanging = Hanging(self);
                self.hangs.notify_one();
                std::future::pending().await
            }
            "talk" => {
                exchange.progress(1.0, None, Some("half"));
                for level in ["debug", "error"] {
                    let event = format!(
                        r#"{{"method":"notifications/message","params":{{"level":"{level}","data": 1.0}}}}"#
                    );
                    exchange.notify(&raw(event));
                }
                Answer::Result(raw("{}".to_owned()))
            }
            _ => panic!("asked to"),
        }
    }

    /// A modern server asks by its answers.
    fn modern_tool(name: &str, exchange: &Exchange) -> Answer {
        let params: Value = serde_json::from_str(exchange.params.as_ref().unwrap().get()).unwrap();
        match (name, params.get("inputResponses")) {
            ("ask", None) => Answer::Result(raw(format!(
                r#"{{"resultType":"input_required","inputRequests":{{"k":{ELICIT}}},"requestState":"s1"}}"#
            ))),
            ("ask", Some(answers)) => {
                assert_eq!(params["requestState"], "s1");
                Answer::Result(raw(format!(r#"{{"resultType":"complete","got":{}}}"#, answers["k"])))
            }
            ("endless", _) => Answer::Result(raw(format!(
                r#"{{"resultType":"input_required","inputRequests":{{"k":{ELICIT}}}}}"#
            ))),
            _ => Answer::Result(raw(format!(r#"{{"resultType":"complete","got":{params}}}"#))),
        }
    }
}

fn wrapped(answer: Answer) -> Answer {
    let (name, body) = match answer {
        Answer::Result(result) => ("got", result),
        Answer::Error(error) => ("refused", error),
    };
    Answer::Result(raw(format!("{{\"{name}\":{}}}", body.get())))
}

impl Offer for Stage {
    async fn about(&self) -> About {
        // Whoever comes first here is answered last.
        let turn = self.asked.fetch_add(1, Ordering::SeqCst);
        if turn == 0 {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        About {
            server_info: raw(r#"{"name":"stage","version":"1.0"}"#.to_owned()),
            capabilities: raw(
                r#"{"tools":{"x":1.0},"logging":{},"resources":{"subscribe":true},"e":{ }}"#.to_owned()
            ),
            instructions: Some("be \"kind\"".to_owned()),
            is_modern: self.is_modern,
        }
    }

    async fn handle(&self, exchange: &Exchange) -> Answer {
        match exchange.method.as_str() {
            "tools/list" => Answer::Result(raw(r#"{"tools":[ ]}"#.to_owned())),
            "tools/call" => {
                let params: Value = serde_json::from_str(exchange.params.as_ref().unwrap().get()).unwrap();
                let name = params["name"].as_str().unwrap().to_owned();
                if self.is_modern {
                    return Self::modern_tool(&name, exchange);
                }
                self.legacy_tool(&name, exchange).await
            }
            _ => unknown_method(),
        }
    }

    fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }

    fn subscribe(&self, resources: Vec<String>, log_level: Option<String>) -> BoxFuture<'static, ()> {
        self.wishes.send_replace((resources, log_level));
        let mut deaf = self.deaf.subscribe();
        Box::pin(async move { drop(deaf.wait_for(|deaf| !deaf).await) })
    }

    fn notices(&self) -> Option<broadcast::Receiver<RawJson>> {
        Some(self.notices.subscribe())
    }
}

struct Client {
    stage: Arc<Stage>,
    to: DuplexStream,
    from: BufReader<DuplexStream>,
    work: JoinSet<()>,
}

impl Client {
    fn new(is_modern: bool, eras: Eras) -> Self {
        let (to, input) = duplex(1 << 16);
        let (output, from) = duplex(1 << 16);
        let stage = Arc::new(Stage {
            is_modern,
            changes: watch::Sender::default(),
            notices: broadcast::Sender::new(16),
            wishes: watch::Sender::default(),
            deaf: watch::Sender::default(),
            hanging: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            hangs: Notify::new(),
        });
        let mut work = JoinSet::new();
        work.spawn(serve(input, output, Arc::clone(&stage), eras));
        Self { stage, to, from: BufReader::new(from), work }
    }

    async fn say(&mut self, line: &str) {
        soon(self.to.write_all(format!("{line}\n").as_bytes())).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.from.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn hear(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    async fn ask(&mut self, message: Value) -> Value {
        self.say(&message.to_string()).await;
        self.hear().await
    }

    async fn legacy(is_modern: bool) -> Self {
        let mut client = Self::new(is_modern, Eras::Both);
        let answer = client.ask(initialize(json!({"elicitation":{}}))).await;
        assert_eq!(answer["result"]["protocolVersion"], "2025-06-18");
        client.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        client
    }

    fn modern(is_modern: bool) -> Self {
        Self::new(is_modern, Eras::Both)
    }

    async fn wished(&self, resources: &[&str], level: Option<&str>) {
        let wanted = (resources.iter().map(|uri| (*uri).to_owned()).collect(), level.map(str::to_owned));
        let mut wishes = self.stage.wishes.subscribe();
        soon(wishes.wait_for(|wishes| *wishes == wanted)).await.unwrap();
    }
}

fn initialize(capabilities: Value) -> Value {
    json!({"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18",
        "capabilities":capabilities,"clientInfo":{"name":"c","version":"1"}}})
}

fn meta() -> Value {
    json!({"io.modelcontextprotocol/protocolVersion":"2026-07-28",
        "io.modelcontextprotocol/clientCapabilities":{"elicitation":{"form":{}}}})
}

fn modern(id: Value, method: &str, mut params: Value) -> Value {
    let mut whole = meta();
    if let Some(more) = params.get("_meta").and_then(Value::as_object) {
        whole.as_object_mut().unwrap().extend(more.clone());
    }
    params["_meta"] = whole;
    json!({"jsonrpc":"2.0","id":id,"method":method,"params":params})
}

fn call(id: i64, tool: &str) -> Value {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":tool}})
}

#[tokio::test]
async fn initialize_says_what_the_server_said_and_that_lists_change() {
    let mut client = Client::new(false, Eras::Both);
    client.say(&initialize(json!({})).to_string()).await;
    assert_eq!(
        client.line().await,
        r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{"x":1.0,"listChanged":true},"logging":{},"resources":{"subscribe":true,"listChanged":true},"e":{ }},"serverInfo":{"name":"stage","version":"1.0"},"instructions":"be \"kind\""}}"#
    );
    let mut future = initialize(json!({}));
    future["params"]["protocolVersion"] = json!("2199-01-01");
    assert_eq!(client.ask(future).await["result"]["protocolVersion"], "2025-11-25");
    let broken = json!({"jsonrpc":"2.0","id":1,"method":"initialize","params":{"capabilities":{}}});
    assert_eq!(client.ask(broken).await["error"]["code"], -32602);
    assert_eq!(client.ask(json!({"jsonrpc":"2.0","id":2,"method":"ping"})).await["result"], json!({}));
}

#[tokio::test]
async fn a_client_that_does_not_wait_hears_the_handshake_first() {
    let mut client = Client::new(false, Eras::Both);
    let both = format!("{}\n{}", initialize(json!({})), call(1, "odd"));
    client.say(&both).await;
    assert_eq!((&client.hear().await["id"], &client.hear().await["id"]), (&json!(0), &json!(1)));
}

#[tokio::test]
async fn legacy_results_and_params_pass_byte_for_byte() {
    let mut client = Client::legacy(false).await;
    client.say(&call(1, "odd").to_string()).await;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{ODD}}}"#));
    let params =
        r#"{ "name":"params","_meta":{"claudecode/toolUseId":"t","progressToken":1.50},"a":"\u00e9" }"#;
    client.say(&format!(r#"{{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{params}}}"#)).await;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":"x","result":{params}}}"#));
    let unknown = client.ask(json!({"jsonrpc":"2.0","id":3,"method":"tasks/list"})).await;
    assert_eq!(unknown["error"]["code"], -32601);
}

#[tokio::test]
async fn the_first_message_decides_the_era_and_wrong_ones_hear_why() {
    let mut client = Client::new(false, Eras::Both);
    let before = client.ask(json!({"jsonrpc":"2.0","id":1,"method":"tools/list"})).await;
    assert_eq!(before["error"]["code"], -32602);
    let mut newer = modern(json!(2), "tools/list", json!({}));
    newer["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2027-01-01");
    let answer = client.ask(newer).await;
    assert_eq!(answer["error"]["code"], -32022);
    assert_eq!(answer["error"]["data"], json!({"requested":"2027-01-01","supported":["2026-07-28"]}));
    let mut bare = modern(json!(3), "tools/list", json!({}));
    bare["params"]["_meta"].as_object_mut().unwrap().remove("io.modelcontextprotocol/clientCapabilities");
    assert_eq!(client.ask(bare).await["error"]["code"], -32602);
    for gone in ["ping", "logging/setLevel", "resources/subscribe"] {
        assert_eq!(client.ask(modern(json!(4), gone, json!({"uri":"u"}))).await["error"]["code"], -32601);
    }
    // A client that probed the modern era may still go on in the other.
    assert!(client.ask(initialize(json!({}))).await["result"].is_object());
    assert!(client.ask(json!({"jsonrpc":"2.0","id":5,"method":"tools/list"})).await["result"].is_object());
}

#[tokio::test]
async fn discover_and_results_have_what_the_modern_era_demands() {
    let mut client = Client::modern(false);
    let discovered = client.ask(modern(json!("server-discover-probe-1"), "server/discover", json!({}))).await;
    let result = &discovered["result"];
    assert_eq!(discovered["id"], "server-discover-probe-1");
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "stage");
    assert_eq!((&result["ttlMs"], &result["cacheScope"]), (&json!(0), &json!("private")));
    assert_eq!(result["resultType"], "complete");
    assert_eq!(result["instructions"], "be \"kind\"");
    client.say(&modern(json!(1), "tools/list", json!({})).to_string()).await;
    let list = r#"{"tools":[ ],"resultType":"complete","ttlMs":0,"cacheScope":"private"}"#;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{list}}}"#));
    client.say(&modern(json!(2), "tools/call", json!({"name":"odd"})).to_string()).await;
    let odd = format!(r#"{},"resultType":"complete"}}"#, ODD.strip_suffix('}').unwrap());
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":2,"result":{odd}}}"#));
}

#[tokio::test]
async fn a_legacy_only_front_does_not_know_the_modern_era() {
    let mut client = Client::new(false, Eras::LegacyOnly);
    let answer = client.ask(modern(json!(1), "server/discover", json!({}))).await;
    assert_eq!(answer["error"]["code"], -32601);
    assert!(client.ask(initialize(json!({}))).await["result"].is_object());
}

#[tokio::test]
async fn legacy_to_legacy_asks_are_requests_to_the_client() {
    let mut client = Client::legacy(false).await;
    client.say(&call(1, "ask").to_string()).await;
    assert_eq!(
        client.line().await,
        r#"{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{"message":"who?","requestedSchema":{ "n":1.0 }}}"#
    );
    client.say(r#"{"jsonrpc":"2.0","id":1,"result":{"action":"accept","content":{"n":1.50}}}"#).await;
    let wanted = r#"{"jsonrpc":"2.0","id":1,"result":{"got":{"action":"accept","content":{"n":1.50}}}}"#;
    assert_eq!(client.line().await, wanted);
}

#[tokio::test]
async fn a_client_is_not_bothered_with_what_it_never_promised() {
    let mut client = Client::legacy(false).await;
    for tool in ["sample", "url"] {
        assert_eq!(client.ask(call(2, tool)).await["result"]["refused"]["code"], -32601, "{tool}");
    }
    let mut client = Client::modern(false);
    let answer = client.ask(modern(json!(1), "tools/call", json!({"name":"sample"}))).await;
    assert_eq!(answer["result"]["refused"]["code"], -32601);
}

#[tokio::test]
async fn modern_to_legacy_asks_are_input_required_and_the_retry_gets_the_answer() {
    let mut client = Client::modern(false);
    let params =
        json!({"name":"twice","_meta":{"progressToken":"p1","io.modelcontextprotocol/logLevel":"info"}});
    let first = client.ask(modern(json!(1), "tools/call", params)).await;
    assert_eq!((&first["id"], &first["result"]["resultType"]), (&json!(1), &json!("input_required")));
    let asked: Value = serde_json::from_str(ELICIT).unwrap();
    assert_eq!(first["result"]["inputRequests"], json!({"ask-1": asked}));
    let state = first["result"]["requestState"].clone();
    let retry = |id: i64, tool: &str, state: &Value, key: &str| {
        modern(
            json!(id),
            "tools/call",
            json!({"name":tool,"requestState":state,"inputResponses":{key:{"n":id}},"_meta":{"progressToken":"p2"}}),
        )
    };
    let other = client.ask(retry(2, "odd", &state, "ask-1")).await;
    assert_eq!(other["error"]["code"], -32602, "a state belongs to its call");
    client.say(&retry(3, "twice", &state, "ask-1").to_string()).await;
    // The progress of the call goes to the token of the latest request.
    let progress = client.hear().await;
    assert_eq!(progress["params"]["progressToken"], "p2");
    let second = client.hear().await;
    assert_eq!(second["id"], 3);
    let next = second["result"]["requestState"].clone();
    let used = client.ask(retry(4, "twice", &state, "ask-1")).await;
    assert_eq!(used["error"]["code"], -32602, "a state is used once");
    let last = client.ask(retry(5, "twice", &next, "ask-2")).await;
    assert_eq!(last["result"], json!({"one":{"n":3},"two":{"n":5},"resultType":"complete"}));
}

#[tokio::test]
async fn a_retry_without_answers_is_asked_again_and_not_for_ever() {
    let mut client = Client::modern(false);
    let mut answer = client.ask(modern(json!(0), "tools/call", json!({"name":"ask"}))).await;
    for round in 1..=9 {
        assert_eq!(answer["result"]["resultType"], "input_required", "{round}");
        let params = json!({"name":"ask","requestState":answer["result"]["requestState"]});
        answer = client.ask(modern(json!(round), "tools/call", params)).await;
    }
    let params = json!({"name":"ask","requestState":answer["result"]["requestState"]});
    let last = client.ask(modern(json!(10), "tools/call", params)).await;
    assert_eq!(last["result"]["refused"]["code"], -32600);
}

#[tokio::test]
async fn a_legacy_server_never_sees_the_modern_era() {
    let mut client = Client::modern(false);
    let params = json!({"name":"params","_meta":{"progressToken":7,"traceparent":"t"}});
    let answer = client.ask(modern(json!(1), "tools/call", params)).await;
    assert_eq!(answer["result"]["_meta"], json!({"progressToken":7,"traceparent":"t"}));
    let answer = client.ask(modern(json!(2), "tools/call", json!({"name":"params"}))).await;
    assert_eq!(answer["result"], json!({"name":"params","resultType":"complete"}));
}

#[tokio::test]
async fn modern_to_modern_passes_through() {
    let mut client = Client::modern(true);
    client.say(&modern(json!(1), "tools/call", json!({"name":"ask"})).to_string()).await;
    let asked =
        format!(r#"{{"resultType":"input_required","inputRequests":{{"k":{ELICIT}}},"requestState":"s1"}}"#);
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{asked}}}"#));
    let retry = json!({"name":"ask","requestState":"s1","inputResponses":{"k":{"n":1}}});
    assert_eq!(client.ask(modern(json!(2), "tools/call", retry)).await["result"]["got"], json!({"n":1}));
    let seen = client.ask(modern(json!(3), "tools/call", json!({"name":"x"}))).await;
    assert_eq!(seen["result"]["got"]["_meta"], meta());
}

#[tokio::test]
async fn legacy_to_modern_asks_the_client_and_calls_again() {
    let mut client = Client::legacy(true).await;
    client.say(&call(1, "ask").to_string()).await;
    let asked = client.hear().await;
    assert_eq!(asked["method"], "elicitation/create");
    client.say(&json!({"jsonrpc":"2.0","id":asked["id"],"result":{"n":2}}).to_string()).await;
    assert_eq!(client.hear().await["result"], json!({"got":{"n":2}}), "and no word of the other era");
    let seen = client.ask(call(2, "x")).await;
    let meta = &seen["result"]["got"]["_meta"];
    assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({"elicitation":{}}));
    assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "c");
}

#[tokio::test]
async fn a_legacy_client_that_refuses_or_is_asked_for_ever_ends_the_call() {
    let mut client = Client::legacy(true).await;
    client.say(&call(1, "ask").to_string()).await;
    let asked = client.hear().await;
    let no = json!({"jsonrpc":"2.0","id":asked["id"],"error":{"code":-1,"message":"not now"}});
    let failed = client.ask(no).await;
    assert_eq!(failed["error"], json!({"code":-1,"message":"not now"}), "as from a server of its era");
    client.say(&call(2, "endless").to_string()).await;
    for _ in 0..=10 {
        let asked = client.hear().await;
        assert_eq!(asked["method"], "elicitation/create");
        client.say(&json!({"jsonrpc":"2.0","id":asked["id"],"result":{}}).to_string()).await;
    }
    assert_eq!(client.hear().await["error"]["code"], -32603);
}

#[tokio::test]
async fn cancelling_drops_the_call_and_nothing_is_answered() {
    for is_modern_client in [false, true] {
        let mut client = if is_modern_client { Client::modern(false) } else { Client::legacy(false).await };
        let request = match is_modern_client {
            true => modern(json!("h"), "tools/call", json!({"name":"hang"})),
            false => json!({"jsonrpc":"2.0","id":"h","method":"tools/call","params":{"name":"hang"}}),
        };
        client.say(&request.to_string()).await;
        soon(client.stage.hangs.notified()).await;
        assert_eq!(client.stage.hanging.load(Ordering::SeqCst), 1);
        client
            .say(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"h"}}"#)
            .await;
        soon(client.stage.hangs.notified()).await;
        assert_eq!(client.stage.hanging.load(Ordering::SeqCst), 0);
        let next = if is_modern_client { modern(json!(2), "tools/list", json!({})) } else { call(2, "odd") };
        assert_eq!(client.ask(next).await["id"], 2, "the cancelled one is not answered");
    }
}

#[tokio::test]
async fn an_id_in_use_is_refused_and_a_panic_is_answered() {
    let mut client = Client::legacy(false).await;
    client.say(&call(1, "hang").to_string()).await;
    soon(client.stage.hangs.notified()).await;
    assert_eq!(client.ask(call(1, "odd")).await["error"]["code"], -32600);
    assert_eq!(client.ask(call(2, "panic")).await["error"]["code"], -32603);
    assert!(client.ask(call(3, "odd")).await["result"].is_object());
}

#[tokio::test]
async fn progress_and_log_messages_go_to_who_wants_them() {
    let mut client = Client::legacy(false).await;
    let mut talk = call(1, "talk");
    talk["params"]["_meta"] = json!({"progressToken":"p"});
    client.say(&talk.to_string()).await;
    let progress = client.hear().await;
    assert_eq!(progress["params"], json!({"progress":1.0,"message":"half","progressToken":"p"}));
    for level in ["debug", "error"] {
        assert_eq!(client.hear().await["params"]["level"], level);
    }
    assert_eq!(client.hear().await["id"], 1);

    let mut client = Client::modern(false);
    assert_eq!(client.ask(modern(json!(1), "tools/call", json!({"name":"talk"}))).await["id"], 1);
    let leveled = json!({"name":"talk","_meta":{"io.modelcontextprotocol/logLevel":"warning"}});
    let message = client.ask(modern(json!(2), "tools/call", leveled)).await;
    assert_eq!(message["params"]["level"], "error");
    assert_eq!(client.hear().await["id"], 2);
    client.wished(&[], Some("warning")).await;
}

#[tokio::test]
async fn a_legacy_client_hears_of_changes_once_it_is_ready() {
    let mut client = Client::new(false, Eras::Both);
    client.ask(initialize(json!({}))).await;
    client.stage.changes.send_modify(|changes| changes.tools += 1);
    assert_eq!(client.ask(json!({"jsonrpc":"2.0","id":1,"method":"ping"})).await["id"], 1);
    client.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    assert_eq!(client.line().await, r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#);
    client.stage.changes.send_modify(|changes| changes.resources += 1);
    assert_eq!(client.hear().await["method"], "notifications/resources/list_changed");
    let update = r#"{"method":"notifications/resources/updated","params":{"uri":"u", "n":1.0}}"#;
    client.stage.notices.send(raw(update.to_owned())).unwrap();
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0",{}"#, update.strip_prefix('{').unwrap()));
    // Of a modern server: the stream is ours, and nothing to the client.
    let tagged = r#"{"method":"notifications/resources/updated","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"o","k": 1},"uri":"u"}}"#;
    client.stage.notices.send(raw(tagged.to_owned())).unwrap();
    assert_eq!(client.hear().await["params"], json!({ "_meta": { "k": 1 }, "uri": "u" }));
}

#[tokio::test]
async fn subscriptions_and_the_log_level_reach_the_offer() {
    let mut client = Client::legacy(false).await;
    let subscribe = |id: i64, method: &str, uri: &str| json!({"jsonrpc":"2.0","id":id,"method":method,"params":{"uri":uri}});
    for (id, uri) in [(1, "b"), (2, "a")] {
        assert_eq!(client.ask(subscribe(id, "resources/subscribe", uri)).await["result"], json!({}));
    }
    client.wished(&["a", "b"], None).await;
    client.ask(subscribe(3, "resources/unsubscribe", "b")).await;
    let level =
        |level: &str| json!({"jsonrpc":"2.0","id":4,"method":"logging/setLevel","params":{"level":level}});
    assert_eq!(client.ask(level("loud")).await["error"]["code"], -32602);
    assert_eq!(client.ask(level("notice")).await["result"], json!({}));
    client.wished(&["a"], Some("notice")).await;
}

#[tokio::test]
async fn a_modern_client_hears_what_its_stream_asked_for_until_it_is_cancelled() {
    let mut client = Client::modern(false);
    let filter = json!({"notifications":{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["f:///a"]}});
    let acknowledged = client.ask(modern(json!("listen:0"), "subscriptions/listen", filter)).await;
    assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
    let tag = json!({"io.modelcontextprotocol/subscriptionId":"listen:0"});
    assert_eq!(
        acknowledged["params"],
        json!({"_meta":tag,"notifications":{"toolsListChanged":true,"resourceSubscriptions":["f:///a"]}}),
        "there are no prompts"
    );
    client.wished(&["f:///a"], None).await;
    client.stage.changes.send_modify(|changes| {
        changes.tools += 1;
        changes.resources += 1;
    });
    let changed = client.hear().await;
    assert_eq!(
        (&changed["method"], &changed["params"]["_meta"]),
        (&json!("notifications/tools/list_changed"), &tag)
    );
    for uri in ["f:///other", "f:///a/part", "f:///ab"] {
        let update = json!({"method":"notifications/resources/updated","params":{"uri":uri}});
        client.stage.notices.send(crate::raw::value(&update)).unwrap();
    }
    let message = raw(r#"{"method":"notifications/message","params":{"level":"error"}}"#.to_owned());
    client.stage.notices.send(message).unwrap();
    let updated = client.hear().await;
    assert_eq!((&updated["params"]["uri"], &updated["params"]["_meta"]), (&json!("f:///a/part"), &tag));
    client
        .say(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"listen:0"}}"#)
        .await;
    client.wished(&[], None).await;
    client.stage.changes.send_modify(|changes| changes.tools += 1);
    assert_eq!(client.ask(modern(json!(9), "tools/list", json!({}))).await["id"], 9, "nothing came between");
}

#[tokio::test]
async fn what_is_asked_for_is_granted_once_it_will_be_heard() {
    let mut client = Client::legacy(false).await;
    for (id, method, params) in
        [(1, "resources/subscribe", json!({"uri":"a"})), (2, "logging/setLevel", json!({"level":"info"}))]
    {
        client.stage.deaf.send_replace(true);
        client.say(&json!({"jsonrpc":"2.0","id":id,"method":method,"params":params}).to_string()).await;
        client.wished(&["a"], (id == 2).then_some("info")).await;
        assert_eq!(client.ask(call(3, "odd")).await["id"], 3, "{method} is not answered yet");
        client.stage.deaf.send_replace(false);
        assert_eq!(client.hear().await["id"], id);
    }
    let mut client = Client::modern(false);
    client.stage.deaf.send_replace(true);
    let filter = json!({"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a"]}});
    client.say(&modern(json!(1), "subscriptions/listen", filter).to_string()).await;
    client.wished(&["a"], None).await;
    client.stage.changes.send_modify(|changes| changes.tools += 1);
    assert_eq!(client.ask(modern(json!(2), "tools/list", json!({}))).await["id"], 2, "nothing comes before");
    client.stage.deaf.send_replace(false);
    assert_eq!(client.hear().await["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed", "what came meanwhile");
    // A modern call of a legacy server goes when the server knows how much the call wants to hear.
    client.stage.deaf.send_replace(true);
    let meta = json!({"io.modelcontextprotocol/logLevel":"debug"});
    let params = json!({"name":"hang","_meta":meta});
    client.say(&modern(json!(3), "tools/call", params).to_string()).await;
    client.wished(&["a"], Some("debug")).await;
    assert_eq!(client.stage.hanging.load(Ordering::SeqCst), 0);
    client.stage.deaf.send_replace(false);
    soon(client.stage.hangs.notified()).await;
}

#[tokio::test(start_paused = true)]
async fn who_can_not_be_heard_is_waited_for_only_so_long() {
    let mut client = Client::legacy(false).await;
    client.stage.deaf.send_replace(true);
    let subscribe = json!({"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"a"}});
    assert_eq!(client.ask(subscribe).await["result"], json!({}));
}

#[tokio::test]
async fn a_legacy_client_hears_no_message_below_its_own_level() {
    let mut client = Client::legacy(false).await;
    client.say(&call(1, "talk").to_string()).await;
    for level in ["debug", "error"] {
        assert_eq!(client.hear().await["params"]["level"], level, "as the server thinks fit");
    }
    assert_eq!(client.hear().await["id"], 1);
    let level = json!({"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"error"}});
    assert_eq!(client.ask(level).await["result"], json!({}));
    assert_eq!(client.ask(call(3, "talk")).await["params"]["level"], "error");
    assert_eq!(client.hear().await["id"], 3);
    for level in ["warning", "critical"] {
        let message = json!({"method":"notifications/message","params":{"level":level,"data":1}});
        client.stage.notices.send(crate::raw::value(&message)).unwrap();
    }
    assert_eq!(client.hear().await["params"]["level"], "critical", "outside of calls as well");
}

#[tokio::test]
async fn it_ends_when_the_client_closes_stdin_and_answers_first() {
    let mut client = Client::legacy(false).await;
    client.say(&call(1, "odd").to_string()).await;
    drop(client.to);
    let mut rest = String::new();
    soon(client.from.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.contains(r#""id":1,"result""#), "{rest}");
    assert!(soon(client.work.join_next()).await.unwrap().is_ok());

    let mut client = Client::legacy(false).await;
    client.say(&call(1, "hang").to_string()).await;
    soon(client.stage.hangs.notified()).await;
    drop(client.to);
    assert!(soon(client.work.join_next()).await.unwrap().is_ok());
    assert_eq!(client.stage.hanging.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn it_ends_when_the_client_reads_no_more() {
    let mut client = Client::legacy(false).await;
    drop(client.from);
    client.to.write_all(format!("{}\n", call(1, "odd")).as_bytes()).await.unwrap();
    assert!(soon(client.work.join_next()).await.unwrap().is_ok());
}

#[tokio::test]
async fn the_level_of_modern_requests_rises_again_once_none_of_them_is_recent() {
    let mut client = Client::modern(false);
    let leveled = |id: i64, tool: &str, level: &str| {
        let level = json!({ "io.modelcontextprotocol/logLevel": level });
        modern(json!(id), "tools/call", json!({ "name": tool, "_meta": level }))
    };
    client.ask(leveled(1, "echo", "debug")).await;
    client.wished(&[], Some("debug")).await;
    // This one stays in work.
    client.say(&leveled(2, "hang", "error").to_string()).await;
    tokio::time::pause();
    let mut wishes = client.stage.wishes.subscribe();
    let mut risen = async |level: Option<&str>| {
        let risen = wishes.wait_for(|(_, now)| now.as_deref() == level);
        drop(tokio::time::timeout(Duration::from_secs(600), risen).await.expect("it rises").unwrap());
    };
    risen(Some("error")).await;
    client.say(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#).await;
    risen(None).await;
}
