//! The transport over pipes in memory.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::task::JoinSet;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("it happens in time")
}

struct Wire {
    to: DuplexStream,
    from: BufReader<DuplexStream>,
    peer: Peer,
    incoming: mpsc::Receiver<Incoming>,
    work: JoinSet<()>,
}

impl Wire {
    fn new(room: usize) -> Self {
        let (to, input) = duplex(room);
        let (output, from) = duplex(room);
        let (peer, incoming, transport) = open(input, output);
        let mut work = JoinSet::new();
        work.spawn(transport);
        Self { to, from: BufReader::new(from), peer, incoming, work }
    }

    async fn say(&mut self, line: &str) {
        soon(self.to.write_all(format!("{line}\n").as_bytes())).await.unwrap();
    }

    async fn hear(&mut self) -> String {
        let mut line = String::new();
        soon(self.from.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }
}

fn raw(text: &str) -> RawJson {
    crate::raw::raw(text.to_owned())
}

#[tokio::test]
async fn requests_and_answers_keep_every_byte() {
    let mut wire = Wire::new(4096);
    let odd = r#"{ "b":1.0e2, "a" : "\u00e9\ud83d", "big":123456789012345678901234567890 }"#;
    wire.say(&format!(r#"{{"params":{odd},"id":"x\u0041","method":"tools/call","jsonrpc":"2.0"}}"#)).await;
    let Some(Incoming::Request { id, method, params }) = soon(wire.incoming.recv()).await else {
        panic!("a request")
    };
    assert_eq!((id.get(), method.as_str()), (r#""x\u0041""#, "tools/call"));
    assert_eq!(params.unwrap().get(), odd);
    wire.peer.answer(&id, &Answer::Result(raw(odd)));
    assert_eq!(wire.hear().await, format!(r#"{{"jsonrpc":"2.0","id":"x\u0041","result":{odd}}}"#));
    wire.peer.answer(&id, &Answer::Result(raw("{\"a\":\r\n1}")));
    assert_eq!(wire.hear().await, r#"{"jsonrpc":"2.0","id":"x\u0041","result":{"a":  1}}"#);
}

#[tokio::test]
async fn what_is_no_message_is_answered_and_loses_nothing() {
    let mut wire = Wire::new(4096);
    for (line, code, id) in [
        ("{\"jsonrpc\":\"2.0\",", -32700, "null"),
        ("nonsense", -32700, "null"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600, "null"),
        (r#"{"jsonrpc":"1.0","id":7,"method":"ping"}"#, -32600, "7"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600, "null"),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, -32600, "null"),
        (r#"{"jsonrpc":"2.0","id":8,"method":"ping","params":[1]}"#, -32600, "8"),
        (r#"{"jsonrpc":"2.0","id":9}"#, -32600, "9"),
    ] {
        wire.say(line).await;
        assert!(matches!(soon(wire.incoming.recv()).await, Some(Incoming::Nonsense)), "{line}");
        let answer: serde_json::Value = serde_json::from_str(&wire.hear().await).unwrap();
        assert_eq!(answer["error"]["code"], code, "{line}");
        assert_eq!(answer["id"].to_string(), id, "{line}");
    }
    wire.say("").await;
    wire.say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    let next = soon(wire.incoming.recv()).await;
    assert!(matches!(next, Some(Incoming::Notification { params: None, .. })), "{next:?}");
}

#[tokio::test]
async fn our_requests_find_their_answers_in_any_order() {
    let mut wire = Wire::new(4096);
    let peer = wire.peer.clone();
    let (one, two) = (peer.ask("a", None), peer.ask("b", Some("{\"n\":1.0}")));
    let client = async {
        assert_eq!(wire.hear().await, r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#);
        assert_eq!(wire.hear().await, r#"{"jsonrpc":"2.0","id":2,"method":"b","params":{"n":1.0}}"#);
        wire.say(r#"{"jsonrpc":"2.0","id":99,"result":{}}"#).await;
        wire.say(r#"{"jsonrpc":"2.0","id":2,"error":{"code":-1,"message":"no"}}"#).await;
        wire.say(r#"{"jsonrpc":"2.0","id":1,"result":{ "x":1.50 }}"#).await;
    };
    let (one, two, ()) = tokio::join!(soon(one), soon(two), client);
    assert!(matches!(one.unwrap(), Answer::Result(result) if result.get() == r#"{ "x":1.50 }"#));
    assert!(matches!(two.unwrap(), Answer::Error(_)));
}

#[tokio::test]
async fn a_dropped_question_is_taken_back() {
    let mut wire = Wire::new(4096);
    let peer = wire.peer.clone();
    let mut asked = Box::pin(peer.ask("elicitation/create", None));
    tokio::select! {
        _ = asked.as_mut() => panic!("nobody answers"),
        line = wire.hear() => assert!(line.contains("elicitation/create")),
    }
    drop(asked);
    let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    assert_eq!(wire.hear().await, cancelled);
}

#[tokio::test]
async fn a_client_that_goes_answers_everybody_and_gets_its_last_answers() {
    let Wire { to, mut from, peer, mut incoming, mut work } = Wire::new(4096);
    let asked = peer.ask("roots/list", None);
    let client = async {
        let mut line = String::new();
        soon(from.read_line(&mut line)).await.unwrap();
        drop(to);
        assert!(soon(incoming.recv()).await.is_none());
        peer.answer(&raw("5"), &Answer::Result(raw("{}")));
    };
    let (gone, ()) = tokio::join!(soon(asked), client);
    assert_eq!(gone.unwrap_err(), Gone);
    assert_eq!(soon(peer.ask("roots/list", None)).await.unwrap_err(), Gone);
    drop(peer);
    soon(work.join_next()).await;
    let mut rest = String::new();
    soon(from.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "{\"jsonrpc\":\"2.0\",\"id\":5,\"result\":{}}\n");
}

#[tokio::test]
async fn a_last_line_without_a_break_counts_and_a_long_line_passes_whole() {
    let mut wire = Wire::new(1 << 16);
    let long = "x".repeat(300_000);
    let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"t":"{long}"}}}}"#);
    soon(wire.to.write_all(line.as_bytes())).await.unwrap();
    drop(wire.to);
    let Some(Incoming::Request { params, .. }) = soon(wire.incoming.recv()).await else {
        panic!("a request")
    };
    assert_eq!(params.unwrap().get().len(), long.len() + 8);
}

#[tokio::test]
async fn while_the_client_does_not_read_no_more_of_it_is_read() {
    let mut wire = Wire::new(1024);
    let big = raw(&format!("\"{}\"", "x".repeat(BACKLOG + 1)));
    wire.peer.answer(&raw("1"), &Answer::Result(big));
    assert!(wire.peer.shared.is_behind());
    // Lost, since there is no room for it.
    wire.peer.notify("notifications/message", None);
    let (to, incoming) = (&mut wire.to, &mut wire.incoming);
    let first = soon(to.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}\n"));
    let from = &mut wire.from;
    let drain = async {
        let mut line = Vec::new();
        soon(from.read_until(b'\n', &mut line)).await.unwrap();
        line.len()
    };
    let (_, length, message) = tokio::join!(first, drain, soon(incoming.recv()));
    assert!(length > BACKLOG);
    assert!(matches!(message, Some(Incoming::Request { method, .. }) if method == "ping"));
    wire.peer.answer(&raw("2"), &Answer::Result(raw("{}")));
    assert_eq!(wire.hear().await, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
}

#[tokio::test]
async fn a_client_that_reads_no_more_ends_the_transport() {
    let mut wire = Wire::new(64);
    drop(wire.from);
    wire.peer.notify("notifications/message", Some("{}"));
    soon(wire.work.join_next()).await;
    assert!(soon(wire.incoming.recv()).await.is_none());
    assert_eq!(soon(wire.peer.ask("roots/list", None)).await.unwrap_err(), Gone);
}
