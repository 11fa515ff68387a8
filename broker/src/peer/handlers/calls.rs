//! `mcp_call` and `mcp_request`: one way through [`crate::calls`], two spellings; `mcp_ask` on the way.

use catalog::access::{self, Action, Decision};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::RawJson;
use wire::peer::Body;
use wire::peer::calls::{McpAsk, McpCall, McpCallResult, McpRequest, McpRequestEvent, McpRequestResult};
use wire::runner::{RpcAsk, RpcDown};

use crate::calls::{self, Call, CallError, Said};
use crate::live;
use crate::peer::dispatch::Asked;

pub async fn tool(asked: Asked, frame: McpCall, cancel: CancellationToken) {
    let McpCall { server_name, tool_name, args, deadline_ms, meta } = frame;
    // Only a progress token asks for events; without one the server has nothing to address them to.
    let events = meta.as_ref().is_some_and(|meta| meta.get().contains("\"progressToken\""));
    let params = match tool_params(&tool_name, args.as_deref(), meta.as_deref()) {
        Ok(params) => params,
        Err(error) => return answer(&asked, &server_name, Err(error.into()), |result| result).await,
    };
    let call = Call {
        caller: &asked.caller,
        view: &asked.view,
        server_name: &server_name,
        method: "tools/call",
        params: Some(params),
        deadline: calls::deadline(deadline_ms, calls::MAX_CALL),
        events,
        asks: false,
        session: &asked.presence.presence_id,
    };
    let result = run(&asked, &cancel, call, None).await;
    answer(&asked, &server_name, result, |result| result).await;
}

/// `answers`: to what the server asks, when the caller wants to be asked.
pub async fn request(
    asked: Asked,
    frame: McpRequest,
    answers: Option<mpsc::Receiver<RpcDown>>,
    cancel: CancellationToken,
) {
    let McpRequest { server_name, method, params, deadline_ms, asks: _ } = frame;
    // A server asks in words that only a caller who can be asked waits for; it may also tell how its questions fare.
    let events =
        answers.is_some() || params.as_ref().is_some_and(|params| params.get().contains("\"progressToken\""));
    let call = Call {
        caller: &asked.caller,
        view: &asked.view,
        server_name: &server_name,
        method: &method,
        params,
        deadline: calls::deadline(deadline_ms, calls::MAX_REQUEST),
        events,
        asks: answers.is_some(),
        session: &asked.presence.presence_id,
    };
    let result = run(&asked, &cancel, call, answers).await;
    answer(&asked, &server_name, result, McpRequestResult).await;
}

async fn run(
    asked: &Asked,
    cancel: &CancellationToken,
    call: Call<'_>,
    answers: Option<mpsc::Receiver<RpcDown>>,
) -> Result<RawJson, CallError> {
    tokio::select! {
        result = carry(asked, call, answers) => result,
        () = cancel.cancelled() => Err(CallError::Cancelled),
    }
}

async fn carry(
    asked: &Asked,
    call: Call<'_>,
    mut answers: Option<mpsc::Receiver<RpcDown>>,
) -> Result<RawJson, CallError> {
    // No name is of both kinds.
    if asked.view.service(call.server_name).is_none()
        && asked.broker.live.knows(&asked.presence.mesh, call.server_name)
    {
        let to = (call.server_name, call.method);
        let params = call.params.as_deref();
        return Ok(live::call(&asked.broker, &asked.presence, to, params, call.deadline).await?);
    }
    let mut ongoing = calls::begin(&asked.broker, call).await?;
    loop {
        let said = match &mut answers {
            None => ongoing.next().await,
            Some(answers) => tokio::select! {
                said = ongoing.next() => said,
                Some(answer) = answers.recv() => {
                    ongoing.answer(&answer).await;
                    continue;
                }
            },
        };
        match said {
            Ok(Said::Event(event)) => asked.answer(&McpRequestEvent { event }).await,
            Ok(Said::Ask(RpcAsk { ask, request })) => asked.answer(&McpAsk { ask, request }).await,
            Ok(Said::Result(result)) => return Ok(result),
            Err(error) => return Err(calls::explained(&asked.broker, &ongoing.key, error).await),
        }
    }
}

pub(super) async fn answer<B: Body + Serialize>(
    asked: &Asked,
    server_name: &str,
    result: Result<RawJson, CallError>,
    spell: impl FnOnce(McpCallResult) -> B,
) {
    let body = match result {
        Ok(result) => McpCallResult { result: Some(result), ..McpCallResult::default() },
        Err(error) => {
            let failure = error.into_failure();
            McpCallResult {
                result: None,
                error: Some(failure.message),
                code: Some(failure.code),
                stderr: if may_read_logs(asked, server_name) { failure.stderr } else { Vec::new() },
                rpc: failure.rpc,
            }
        }
    };
    asked.answer(&spell(body)).await;
}

/// The last lines of a process are a piece of its log, and a call is answered to more people than may read that.
fn may_read_logs(asked: &Asked, server_name: &str) -> bool {
    let service = asked.view.service(server_name);
    service.is_some_and(|service| {
        access::decide(&asked.caller, Action::Logs, Some(service.subject())) == Decision::Allow
    })
}

/// `{"name":…,"arguments":…,"_meta":…}`, with the client's bytes as they came.
fn tool_params(
    tool: &str,
    args: Option<&serde_json::value::RawValue>,
    meta: Option<&serde_json::value::RawValue>,
) -> Result<RawJson, serde_json::Error> {
    #[derive(Serialize)]
    struct Params<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        arguments: Option<&'a serde_json::value::RawValue>,
        #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
        meta: Option<&'a serde_json::value::RawValue>,
    }
    serde_json::value::to_raw_value(&Params { name: tool, arguments: args, meta })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_meta_pass_byte_for_byte() {
        let frame: McpCall = serde_json::from_str(
            r#"{"serverName":"s","toolName":"t\"x","args":{ "n": 1.0, "b":1e2 },"meta":{"progressToken": 7}}"#,
        )
        .expect("reads");
        let params =
            tool_params(&frame.tool_name, frame.args.as_deref(), frame.meta.as_deref()).expect("params");
        assert_eq!(
            params.get(),
            r#"{"name":"t\"x","arguments":{ "n": 1.0, "b":1e2 },"_meta":{"progressToken": 7}}"#
        );
    }
}
