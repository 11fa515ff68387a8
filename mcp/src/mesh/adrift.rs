//! A server without a mesh: the configuration is missing or broken, and somebody has to be told what to do.
//!
//! An MCP client shows a server that ends at once as "failed" and nothing else; one that answers can say why.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::{about, splice, words};
use crate::front::{self, About, Changes, Eras, Exchange, Offer};
use crate::stdio::Answer;

struct Adrift {
    why: String,
    changes: watch::Sender<Changes>,
}

/// Serves stdin and stdout; every call answers `why`, which ends with what to run.
pub async fn adrift(why: String, eras: Eras, stop: impl Future<Output = ()>) {
    let offer = Arc::new(Adrift { why, changes: watch::Sender::new(Changes::default()) });
    tokio::select! {
        () = front::serve(crate::stdio::stdin(), crate::stdio::stdout(), offer, eras) => {}
        () = stop => {}
    }
}

impl Offer for Adrift {
    async fn about(&self) -> About {
        About {
            server_info: about::server_info(),
            capabilities: splice::of(&json!({ "tools": {} })),
            instructions: Some(self.why.clone()),
            is_modern: false,
        }
    }

    async fn handle(&self, exchange: &Exchange) -> Answer {
        match exchange.method.as_str() {
            "tools/list" => Answer::Result(splice::of(&json!({ "tools": [{
                "name": "why_no_mesh",
                "description": format!("This server can not reach a mesh: {}", self.why),
                "inputSchema": { "type": "object", "properties": {} },
                "annotations": { "readOnlyHint": true },
            }] }))),
            // Whatever was called: a client may remember tools of better times.
            "tools/call" => Answer::Result(words::tool_text(&self.why, true)),
            other => Answer::Error(front::error(-32601, &format!("there is no method `{other}` here"))),
        }
    }

    fn changes(&self) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }
}
