//! A model's API on the loopback where the test is the model: each request of the client becomes a [`Turn`] that the test reads
//! and answers.
//!
//! Here: the HTTP server and the conversation. Not here: what a request looks like in each vendor's API (`anthropic`, `responses`,
//! `gemini`).
//! Invariant: requests that offer no tools (titles, summaries, routing) are answered at once and are no turns.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{anthropic, gemini, responses};

/// How long a client may think before it asks the model again. Generous: two processors run everything.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the test, as the model, says.
pub enum Reply {
    Say(String),
    Call { tool: String, arguments: Value },
}

/// What the client told the model about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// All text of the result.
    pub text: String,
    pub is_error: bool,
    /// Images and other things that are no text.
    pub other_parts: usize,
}

/// What one request says, whichever vendor's API it came by.
pub(super) struct Request {
    pub tools: BTreeSet<String>,
    pub outcomes: Vec<Outcome>,
    /// All that the client tells the model in words: system prompt and messages.
    pub words: String,
}

/// A request of the client to the model. Dropping it unanswered ends the request with an error.
pub struct Turn {
    /// The names of the tools that the client offers to the model, as the client spells them.
    pub tools: BTreeSet<String>,
    /// Results of the calls that followed the reply before this one.
    pub outcomes: Vec<Outcome>,
    pub words: String,
    reply: oneshot::Sender<Reply>,
}

impl Turn {
    pub fn offers(&self, tool: &str) -> bool {
        self.tools.contains(tool)
    }

    /// The result of the one call before.
    pub fn outcome(&self) -> &Outcome {
        assert_eq!(self.outcomes.len(), 1, "one call, one result: {:?}", self.outcomes);
        &self.outcomes[0]
    }

    pub fn say(self, text: &str) {
        // A client that hung up has failed its test elsewhere.
        let _ = self.reply.send(Reply::Say(text.to_owned()));
    }

    pub fn call(self, tool: &str, arguments: Value) {
        assert!(self.offers(tool), "{tool} is not offered, but {:#?}", self.tools);
        let _ = self.reply.send(Reply::Call { tool: tool.to_owned(), arguments });
    }
}

struct Desk {
    turns: mpsc::UnboundedSender<Turn>,
    next_id: AtomicU64,
}

/// The server; it ends when this is dropped.
pub struct Model {
    pub url: String,
    turns: Mutex<mpsc::UnboundedReceiver<Turn>>,
    _server: JoinSet<()>,
}

impl Model {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (turns, receiver) = mpsc::unbounded_channel();
        let desk = Arc::new(Desk { turns, next_id: AtomicU64::new(1) });
        let app = axum::Router::new().fallback(answer).with_state(desk);
        let app = app.layer(axum::extract::DefaultBodyLimit::max(64 << 20));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, turns: Mutex::new(receiver), _server: server }
    }

    /// The client's next request.
    pub async fn turn(&self) -> Turn {
        let mut turns = self.turns.lock().await;
        timeout(PATIENCE, turns.recv()).await.expect("the client asks the model in time").expect("a server")
    }

    /// Calls a tool and gives the turn that brings the result.
    pub async fn call(&self, turn: Turn, tool: &str, arguments: Value) -> Turn {
        turn.call(tool, arguments);
        self.turn().await
    }

    /// Keeps the client busy with a harmless call until a turn is as wanted: what a client hears of a change, and when, is its own
    /// affair, but it must be soon.
    pub async fn until(
        &self,
        mut turn: Turn,
        what: &str,
        harmless: &str,
        is_wanted: impl Fn(&Turn) -> bool,
    ) -> Turn {
        let end = Instant::now() + PATIENCE;
        while !is_wanted(&turn) {
            assert!(Instant::now() < end, "never seen by the client: {what}; it offers {:#?}", turn.tools);
            turn.call(harmless, json!({}));
            let mut turns = self.turns.lock().await;
            turn = timeout_at(end, turns.recv()).await.expect("the client asks in time").expect("a server");
        }
        turn
    }
}

async fn answer(State(desk): State<Arc<Desk>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    if method != Method::POST {
        // Some look for a list of models first; an empty one does.
        return axum::Json(json!({ "data": [], "models": [] })).into_response();
    }
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let id = desk.next_id.fetch_add(1, Ordering::Relaxed);
    if path.ends_with("/messages") {
        let Some(reply) = ask_test(&desk, anthropic::read(&body)).await else { return gone() };
        stream(anthropic::write(&reply, &body, id))
    } else if path.ends_with("/responses") {
        let Some(reply) = ask_test(&desk, responses::read(&body)).await else { return gone() };
        stream(responses::write(&reply, &body, id))
    } else if path.ends_with(":streamGenerateContent") {
        let Some(reply) = ask_test(&desk, gemini::read(&body)).await else { return gone() };
        stream(gemini::events(&reply))
    } else if path.ends_with(":generateContent") {
        axum::Json(gemini::aside(&body)).into_response()
    } else if path.ends_with("count_tokens") || path.ends_with(":countTokens") {
        axum::Json(json!({ "input_tokens": 1, "totalTokens": 1 })).into_response()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

async fn ask_test(desk: &Desk, request: Request) -> Option<Reply> {
    if request.tools.is_empty() {
        return Some(Reply::Say("A title".into()));
    }
    let (reply, answer) = oneshot::channel();
    let Request { tools, outcomes, words } = request;
    desk.turns.send(Turn { tools, outcomes, words, reply }).ok()?;
    answer.await.ok()
}

fn gone() -> Response {
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

fn stream(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], text).into_response()
}

/// One server-sent event.
pub(super) fn event(kind: Option<&str>, data: &Value) -> String {
    kind.map_or_else(|| format!("data: {data}\n\n"), |kind| format!("event: {kind}\ndata: {data}\n\n"))
}
