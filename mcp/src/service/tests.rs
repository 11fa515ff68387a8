//! One service against a scripted broker in the same process, with a client at the other end.

use std::path::Path;

use client::{Announce, BrokerAddress, Connection, Identity, Membership, Reconnect};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use wire::{MemberId, MeshId};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it happens in time")
}

/// One link of the broker, and the frames that nobody has looked at yet.
struct Broker {
    peer: WebSocketStream<TcpStream>,
    unread: Vec<Value>,
}

impl Broker {
    async fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = soon(listener.accept()).await.unwrap();
        let peer = tokio_tungstenite::accept_async(socket).await.unwrap();
        let mut broker = Self { peer, unread: Vec::new() };
        broker.expect("hello").await;
        broker.say(&json!({"type":"hello_ack","presenceId":"P","memberDisplayName":"Ana","services":[],"memberRole":"owner","brokerVersion":"0"}).to_string()).await;
        broker
    }

    async fn say(&mut self, frame: &str) {
        soon(self.peer.send(Message::text(frame.to_owned()))).await.unwrap();
    }

    /// The next frame of this type.
    async fn expect(&mut self, kind: &str) -> Value {
        if let Some(at) = self.unread.iter().position(|frame| frame["type"] == kind) {
            return self.unread.remove(at);
        }
        loop {
            if let Message::Text(text) = soon(self.peer.next()).await.unwrap().unwrap() {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["type"] == kind {
                    return frame;
                }
                self.unread.push(frame);
            }
        }
    }

    /// Answers the next frame of a type; `body` begins with the answer's type.
    async fn answer(&mut self, kind: &str, body: &str) -> Value {
        let asked = self.expect(kind).await;
        self.reply(&asked, body).await;
        asked
    }

    async fn reply(&mut self, asked: &Value, body: &str) {
        self.say(&format!(r#"{{"_reqId":{},"type":{body}}}"#, asked["_reqId"])).await;
    }

    /// From the start on until the lists are known and listened for.
    async fn settle(&mut self, tools: &str) -> Value {
        self.answer("mcp_schema", &schema(tools)).await;
        let listen = self.answer("mcp_listen", r#""mcp_listening""#).await;
        self.answer("mcp_schema", &schema(tools)).await;
        listen
    }

    async fn push(&mut self, event: &str) {
        let push = json!({"type":"push","subtype":"system","event":event,"eventData":{"name":"echo"},"messageId":"m","meshId":"M",
            "senderPubkey":"system","priority":"low","nonce":"","ciphertext":"","createdAt":"t"});
        self.say(&push.to_string()).await;
    }
}

fn schema(tools: &str) -> String {
    format!(
        r#""mcp_schema_result","server_name":"echo","tools":{tools},"names":[],"prompts":[],"resources":[],"resource_templates":[],
        "server_info":{{"name":"E","version":"1.0"}},"capabilities":{{"tools":{{}},"logging":{{}},"resources":{{"subscribe":true}}}},
        "instructions":"i","protocol":"2025-11-25""#
    )
    .replace('\n', " ")
}

const GONE: &str = r#""error","code":"not_found","message":"no service `echo`""#;

struct Stage {
    listener: TcpListener,
    dir: tempfile::TempDir,
}

struct Client {
    to: DuplexStream,
    from: BufReader<DuplexStream>,
    work: JoinSet<()>,
}

impl Stage {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, dir: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> &Path {
        self.dir.path()
    }

    /// A process that is just starting, with its link.
    async fn start(&self) -> (Client, Broker) {
        let url = format!("ws://{}/ws", self.listener.local_addr().unwrap());
        let membership = Membership {
            mesh_id: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            identity: Identity::from_seed([1; 32]),
            broker: BrokerAddress::parse(&url).unwrap(),
        };
        let open = Connection::open(membership, Announce::here("ai", "mcp"), Reconnect::Forever);
        let (connection, broker) = tokio::join!(open, Broker::accept(&self.listener));
        let (to, input) = duplex(1 << 16);
        let (output, from) = duplex(1 << 16);
        let name = ServiceName::parse("echo").unwrap();
        let mut work = JoinSet::new();
        work.spawn(serve(
            (input, output),
            connection.unwrap(),
            name,
            self.cache().to_owned(),
            std::future::pending(),
        ));
        (Client { to, from: BufReader::new(from), work }, broker)
    }

    async fn settled(&self, tools: &str) -> (Client, Broker) {
        let (mut client, mut broker) = self.start().await;
        broker.settle(tools).await;
        client.initialize().await;
        (client, broker)
    }
}

impl Client {
    async fn say(&mut self, line: &str) {
        soon(self.to.write_all(format!("{line}\n").as_bytes())).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.from.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    async fn ask(&mut self, method: &str, params: &str) -> Value {
        self.say(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#)).await;
        self.hear().await
    }

    async fn initialize(&mut self) -> Value {
        let params = r#"{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}}}"#;
        let answer = self.ask("initialize", params).await;
        self.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        answer
    }
}

#[tokio::test]
async fn lists_are_the_brokers_and_byte_for_byte() {
    let stage = Stage::new().await;
    let tools = r#"[{ "name":"t","x":1.0e2,"d":"\u00e9" }]"#;
    let (mut client, mut broker) = stage.start().await;
    // Asked before the broker has answered anything.
    let hello = async {
        let greeting = client.initialize().await;
        client.say(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#).await;
        (greeting, client.line().await)
    };
    let ((greeting, list), listen) = tokio::join!(hello, broker.settle(tools));
    assert_eq!(greeting["result"]["serverInfo"]["name"], "E");
    assert_eq!(greeting["result"]["instructions"], "i");
    // No list_changed before it: nothing had been listed.
    assert_eq!(list, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":{tools}}}}}"#));
    assert_eq!(listen["serverName"], "echo");
    assert_eq!(client.ask("prompts/list", "{}").await["error"]["code"], -32601, "it never offered prompts");
    assert_eq!(client.ask("tools/list", r#"{"cursor":"x"}"#).await["error"]["code"], -32602);
}

#[tokio::test]
async fn the_last_lists_are_there_while_the_broker_says_nothing() {
    let stage = Stage::new().await;
    let (client, _broker) = stage.settled(r#"[{"name":"old"}]"#).await;
    drop(client.to);
    let mut work = client.work;
    soon(work.join_next()).await;

    let (mut client, mut broker) = stage.start().await;
    let greeting = client.initialize().await;
    assert_eq!(greeting["result"]["serverInfo"]["name"], "E");
    assert_eq!(client.ask("tools/list", "{}").await["result"], json!({"tools":[{"name":"old"}]}));
    broker.answer("mcp_schema", &schema(r#"[{"name":"new"}]"#)).await;
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed");
    assert_eq!(client.ask("tools/list", "{}").await["result"], json!({"tools":[{"name":"new"}]}));
}

#[tokio::test]
async fn a_service_that_goes_empties_its_lists_and_comes_back() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled(r#"[{"name":"t"}]"#).await;
    broker.push("mcp_undeployed").await;
    broker.answer("mcp_schema", GONE).await;
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed");
    assert_eq!(client.ask("tools/list", "{}").await["result"], json!({"tools":[]}));
    assert_eq!(std::fs::read_dir(stage.cache()).unwrap().count(), 0, "nor does the cache show it");
    broker.push("mcp_deployed").await;
    broker.answer("mcp_schema", &schema(r#"[{"name":"t"}]"#)).await;
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed");
    assert_eq!(client.ask("tools/list", "{}").await["result"], json!({"tools":[{"name":"t"}]}));
}

#[tokio::test]
async fn a_change_is_told_only_when_bytes_differ() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    broker.push("mcp_updated").await;
    broker.answer("mcp_schema", &schema("[]")).await;
    broker.push("mcp_updated").await;
    broker.answer("mcp_schema", &schema(r#"[{"name":"t"}]"#)).await;
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed");
    assert_eq!(client.ask("ping", "{}").await["id"], 7, "once");
}

#[tokio::test]
async fn calls_pass_with_what_the_server_says_and_asks_meanwhile() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    let params = r#"{ "name":"t","arguments":{"n":1.0e2},"_meta":{"progressToken":"p"} }"#;
    client.say(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)).await;
    let call = broker.expect("mcp_request").await;
    let wanted: Value = serde_json::from_str(params).unwrap();
    assert_eq!(
        (&call["params"], &call["asks"], &call["method"]),
        (&wanted, &json!(true), &json!("tools/call"))
    );
    let event = r#"{"method":"notifications/progress","params":{"progressToken":"p","progress":1.0e0}}"#;
    broker.reply(&call, &format!(r#""mcp_request_event","event":{event}"#)).await;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0",{}"#, event.strip_prefix('{').unwrap()));
    let ask = r#"{"method":"elicitation/create","params":{ "message":"m" }}"#;
    broker.reply(&call, &format!(r#""mcp_ask","ask":4,"request":{ask}"#)).await;
    let asked = client.hear().await;
    assert_eq!(asked["method"], "elicitation/create");
    client.say(&json!({"jsonrpc":"2.0","id":asked["id"],"result":{"action":"decline"}}).to_string()).await;
    let answered = broker.expect("mcp_ask_answer").await;
    assert_eq!(
        (&answered["requestId"], &answered["ask"], &answered["result"]),
        (&call["_reqId"], &json!(4), &json!({"action":"decline"}))
    );
    let result = r#"{ "content":[],"n":1.50,"s":"\u00e9" }"#;
    broker.reply(&call, &format!(r#""mcp_request_result","result":{result}"#)).await;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#));
}

#[tokio::test]
async fn failures_are_read_by_the_model_and_the_servers_own_errors_are_its_own() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    let call = async |client: &mut Client, broker: &mut Broker, method: &str, body: &str| {
        let body = format!(r#""mcp_request_result",{body}"#);
        let answered = broker.answer("mcp_request", &body);
        tokio::join!(client.ask(method, r#"{"name":"t"}"#), answered).0
    };
    let rpc = r#""code":"mcp_error","error":"e","rpc":{"code":-32602,"message":"bad","data":[1.0]}"#;
    let answer = call(&mut client, &mut broker, "tools/call", rpc).await;
    assert_eq!(answer["error"], json!({"code":-32602,"message":"bad","data":[1.0]}));
    let failed = r#""code":"service_failed","error":"it never became ready","stderr":["Error: no key"]"#;
    let answer = call(&mut client, &mut broker, "tools/call", failed).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert_eq!(answer["result"]["isError"], true);
    for part in ["it never became ready", "service_failed", "claudemesh status", "Error: no key"] {
        assert!(text.contains(part), "{text}");
    }
    let answer = call(&mut client, &mut broker, "prompts/get", failed).await;
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["code"]),
        (&json!(-32603), &json!("service_failed"))
    );
    let refused = broker.answer("mcp_request", GONE);
    let (answer, _) = tokio::join!(client.ask("tools/call", r#"{"name":"t"}"#), refused);
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("not_found"), "{answer}");
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_broker() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    client.say(r#"{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"t"}}"#).await;
    let call = broker.expect("mcp_request").await;
    client.say(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c"}}"#).await;
    assert_eq!(broker.expect("mcp_cancel").await["requestId"], call["_reqId"]);
}

#[tokio::test]
async fn a_lost_link_fails_what_runs_and_everything_comes_back() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    let lost = async {
        broker.expect("mcp_request").await;
        drop(broker);
    };
    let (answer, ()) = tokio::join!(client.ask("tools/call", r#"{"name":"t"}"#), lost);
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("may have had an effect"), "{text}");
    // Asked while the link is down: it waits for the next one.
    let back = async {
        let mut broker = Broker::accept(&stage.listener).await;
        broker.answer("mcp_schema", &schema(r#"[{"name":"t"}]"#)).await;
        broker.answer("mcp_listen", r#""mcp_listening""#).await;
        broker.answer("mcp_request", r#""mcp_request_result","result":{"ok":1}"#).await;
        broker
    };
    client.say(r#"{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"t"}}"#).await;
    let _broker = back.await;
    let (one, two) = (client.hear().await, client.hear().await);
    let (answer, told) = if one["id"] == 8 { (one, two) } else { (two, one) };
    assert_eq!(answer["result"], json!({"ok":1}));
    assert_eq!(told["method"], "notifications/tools/list_changed");
}

#[tokio::test]
async fn what_the_client_subscribes_is_listened_for_and_passed_on() {
    let stage = Stage::new().await;
    let (mut client, mut broker) = stage.settled("[]").await;
    let listening = broker.answer("mcp_listen", r#""mcp_listening""#);
    let (answer, listen) = tokio::join!(client.ask("resources/subscribe", r#"{"uri":"f:///a"}"#), listening);
    assert_eq!(answer["result"], json!({}));
    assert_eq!(listen["resources"], json!(["f:///a"]));
    broker.expect("mcp_cancel").await;
    let event = r#"{"method":"notifications/resources/updated","params":{"uri":"f:///a", "n":1.0}}"#;
    broker.reply(&listen, &format!(r#""mcp_request_event","event":{event}"#)).await;
    assert_eq!(client.line().await, format!(r#"{{"jsonrpc":"2.0",{}"#, event.strip_prefix('{').unwrap()));
    // The server's own word about its lists makes us read them.
    let changed = r#"{"method":"notifications/tools/list_changed"}"#;
    broker.answer("mcp_schema", &schema("[]")).await;
    broker.reply(&listen, &format!(r#""mcp_request_event","event":{changed}"#)).await;
    broker.answer("mcp_schema", &schema(r#"[{"name":"n"}]"#)).await;
    assert_eq!(client.hear().await["method"], "notifications/tools/list_changed");
    let refusing = broker.answer("mcp_listen", GONE);
    let (answer, listen) = tokio::join!(client.ask("logging/setLevel", r#"{"level":"error"}"#), refusing);
    assert_eq!((&answer["result"], &listen["logLevel"]), (&json!({}), &json!("error")), "heard or not");
}

#[tokio::test]
async fn it_ends_with_its_client_only() {
    let stage = Stage::new().await;
    let (mut client, broker) = stage.settled("[]").await;
    drop((broker, stage));
    assert_eq!(client.ask("ping", "{}").await["result"], json!({}));
    drop(client.to);
    soon(client.work.join_next()).await.unwrap().unwrap();
}
