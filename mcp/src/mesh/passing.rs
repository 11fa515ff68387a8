//! Passing a tool call on to the server of another, with all that is said and asked meanwhile.
//!
//! Invariant: arguments, result, notifications, questions and answers stay raw.

use std::time::Duration;

use client::connection::RequestEvent;
use client::{ClientError, Connection, LinkState};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::value::RawValue;
use wire::RawJson;
use wire::peer::calls::McpRequest;

use super::words::{AWAY, Refusal, call_answer, told};
use crate::front::Exchange;
use crate::raw::{Members, quote};
use crate::stdio::Answer;

/// The longest that the broker allows: the client's own limit is the one that counts.
const CALL_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// A call that was not sent yet waits this long for the link.
const LINK_PATIENCE: Duration = Duration::from_secs(30);

/// Waits until there is a link.
///
/// # Errors
/// When there is none within the patience, or never again.
pub async fn link_up(connection: &Connection) -> Result<(), Refusal> {
    let mut state = connection.state();
    let settled = state.wait_for(|state| !matches!(state, LinkState::Down(_)));
    match tokio::time::timeout(LINK_PATIENCE, settled).await {
        Ok(Ok(state)) => match &*state {
            LinkState::Ended(why) => {
                let cure = "Join the mesh again with `claudemesh join LINK`, then restart this MCP server.";
                Err(Refusal(format!("the broker does not let this member in: {why}\n{cure}")))
            }
            LinkState::Up(_) | LinkState::Down(_) => Ok(()),
        },
        Ok(Err(_)) => Err(Refusal("the connection to the broker is closed".to_owned())),
        Err(_) => Err(Refusal(format!("the call was not sent\n{AWAY}"))),
    }
}

/// `params` of a `tools/call` of that tool: those of the call that asks for it, with its own name and arguments.
pub fn call_params(asking: &RawValue, tool: &str, arguments: Option<&RawValue>) -> Option<RawJson> {
    let members = Members::read(asking.get())?;
    let name = quote(tool);
    let mut put = vec![("name", name.as_str())];
    put.extend(arguments.map(|arguments| ("arguments", arguments.get())));
    let is_kept = |key: &str| key != "arguments" || arguments.is_some();
    Some(members.write(is_kept, &put))
}

pub async fn pass_on(connection: &Connection, exchange: &Exchange, server: &str, params: RawJson) -> Answer {
    if let Err(refusal) = link_up(connection).await {
        return told(Err(refusal));
    }
    let deadline_ms = u64::try_from(CALL_DEADLINE.as_millis()).ok();
    let request = McpRequest {
        server_name: server.to_owned(),
        method: "tools/call".to_owned(),
        params: Some(params),
        deadline_ms,
        asks: true,
    };
    match follow(connection, exchange, server, &request).await {
        Ok(answer) => answer,
        Err(error) if error.is_link_loss() => {
            let text = format!("{error}\nThe call may have had an effect: look before you repeat it.");
            told(Err(Refusal(text)))
        }
        Err(error) => told(Err(Refusal::of_client(&error, server))),
    }
}

async fn follow(
    connection: &Connection,
    exchange: &Exchange,
    server: &str,
    request: &McpRequest,
) -> Result<Answer, ClientError> {
    let mut stream = connection.request_stream(request).await?;
    let mut asked = FuturesUnordered::new();
    loop {
        tokio::select! {
            event = stream.next() => match event? {
                RequestEvent::Notification(event) => exchange.notify(&event),
                RequestEvent::Ask(ask) => asked.push(async move {
                    (ask.ask, exchange.ask(&ask.request).await)
                }),
                RequestEvent::Done(result) => return Ok(call_answer(result, server)),
            },
            Some((ask, answer)) = asked.next() => {
                let answer = match answer {
                    Answer::Result(result) => Ok(result),
                    Answer::Error(error) => Err(error),
                };
                stream.answer(ask, answer).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawJson {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_call_by_mesh_tool_call_keeps_what_is_not_its_own() {
        let asking = raw(
            r#"{"name":"mesh_tool_call","arguments":{"server_name":"a"},"_meta":{"progressToken":1.0},"requestState":"s"}"#,
        );
        let params = call_params(&asking, "say", Some(&raw(r#"{"n":1.0e1}"#))).unwrap();
        assert_eq!(
            params.get(),
            r#"{"name":"say","arguments":{"n":1.0e1},"_meta":{"progressToken":1.0},"requestState":"s"}"#
        );
        let params = call_params(&asking, "say", None).unwrap();
        assert_eq!(params.get(), r#"{"name":"say","_meta":{"progressToken":1.0},"requestState":"s"}"#);
    }
}
