//! One request to the service, with what it says and asks meanwhile, and what its client reads when it fails.
//!
//! Invariants: the server's own result or error passes byte for byte; of a failure the client learns whether the call may have had
//! an effect; dropping it cancels the call.

use std::time::Duration;

use client::connection::RequestEvent;
use client::{ClientError, LinkState};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use wire::peer::calls::{McpCallResult, McpRequest};
use wire::{ErrorCode, RawJson};

use super::Shared;
use crate::front::{Exchange, code};
use crate::raw::value;
use crate::stdio::Answer;

/// The client's own deadline is the one that counts; this is what the broker takes at most.
const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a request waits for the link before it is sent.
const LINK_PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer of the server.
struct Failure {
    code: Option<ErrorCode>,
    message: String,
    stderr: Vec<String>,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { code: None, message: message.into(), stderr: Vec::new() }
    }
}

pub(super) async fn call(shared: &Shared, exchange: &Exchange) -> Answer {
    let outcome = match link_up(shared).await {
        Ok(()) => exchange_with(shared, exchange).await,
        Err(failure) => Err(failure),
    };
    let failure = match outcome {
        Ok(McpCallResult { result: Some(result), .. }) => return Answer::Result(result),
        Ok(McpCallResult { rpc: Some(rpc), .. }) => return Answer::Error(rpc),
        Ok(McpCallResult { error, code, stderr, .. }) => {
            let message = error.unwrap_or_else(|| "the broker gave no reason".to_owned());
            Failure { code, message, stderr }
        }
        Err(failure) => failure,
    };
    tell(&exchange.method, &shared.name.to_string(), &failure)
}

async fn link_up(shared: &Shared) -> Result<(), Failure> {
    let mut link = shared.connection.state();
    let up = link.wait_for(|link| !matches!(link, LinkState::Down(_)));
    let ended = match tokio::time::timeout(LINK_PATIENCE, up).await {
        Ok(Ok(state)) => match &*state {
            LinkState::Up(_) | LinkState::Down(_) => return Ok(()),
            LinkState::Ended(why) => why.clone(),
        },
        Ok(Err(_)) => "the link is gone".to_owned(),
        Err(_) => {
            let text = "the mesh's broker can not be reached; nothing was called. Try again later";
            return Err(Failure::new(text));
        }
    };
    Err(Failure::new(format!("the connection to the mesh ended for good ({ended}); nothing was called")))
}

async fn exchange_with(shared: &Shared, exchange: &Exchange) -> Result<McpCallResult, Failure> {
    let request = McpRequest {
        server_name: shared.name.to_string(),
        method: exchange.method.clone(),
        params: exchange.params.clone(),
        deadline_ms: u64::try_from(DEADLINE.as_millis()).ok(),
        asks: true,
    };
    let mut stream = shared.connection.request_stream(&request).await.map_err(failed)?;
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            event = stream.next() => match event.map_err(failed)? {
                RequestEvent::Notification(event) => exchange.notify(&event),
                RequestEvent::Ask(ask) => {
                    asked.push(async move { (ask.ask, exchange.ask(&ask.request).await) });
                }
                RequestEvent::Done(result) => return Ok(result),
            },
            Some((ask, answer)) = asked.next() => {
                let answer = match answer {
                    Answer::Result(result) => Ok(result),
                    Answer::Error(error) => Err(error),
                };
                stream.answer(ask, answer).await.map_err(failed)?;
            }
        }
    }
}

fn failed(error: ClientError) -> Failure {
    if error.is_link_loss() {
        let text = format!(
            "{error}; the call was on its way and may have had an effect: check before you repeat it"
        );
        return Failure::new(text);
    }
    Failure { code: error.code(), stderr: error.stderr().to_vec(), message: error.to_string() }
}

/// A tool that fails is something the model should read; the other methods have JSON-RPC errors only.
fn tell(method: &str, name: &str, failure: &Failure) -> Answer {
    let Failure { code, message, stderr } = failure;
    let mut text = format!("claudemesh: {name}: {message}");
    if let Some(code) = code {
        text.push_str(&format!(" [{code}] {}", code.cure().replace("NAME", name)));
    }
    if method == "tools/call" {
        for line in stderr {
            text.push_str("\n  ");
            text.push_str(line);
        }
        let result = serde_json::json!({ "content": [{ "type": "text", "text": text }], "isError": true });
        return Answer::Result(value(&result));
    }
    Answer::Error(rpc_error(*code, &text, stderr))
}

fn rpc_error(code: Option<ErrorCode>, text: &str, stderr: &[String]) -> RawJson {
    let mut data = serde_json::json!({});
    if let Some(code) = code {
        data["code"] = code.as_str().into();
    }
    if !stderr.is_empty() {
        data["stderr"] = stderr.into();
    }
    value(&serde_json::json!({ "code": code::INTERNAL, "message": text, "data": data }))
}
