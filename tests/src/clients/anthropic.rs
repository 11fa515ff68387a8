//! The Messages API, as Claude Code and opencode speak it.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::model::{Outcome, Reply, Request, event};

pub(super) fn read(body: &Value) -> Request {
    let tools = body["tools"].as_array().into_iter().flatten();
    let messages: Vec<_> = body["messages"].as_array().into_iter().flatten().collect();
    // Results of the last reply stand behind the last message of the assistant.
    let after = messages.iter().rposition(|message| message["role"] == "assistant").map_or(0, |at| at + 1);
    let parts =
        messages[after..].iter().flat_map(|message| message["content"].as_array().into_iter().flatten());
    let outcomes = parts.filter(|part| part["type"] == "tool_result").map(outcome).collect();
    let mut words = words_of(&body["system"]);
    for message in &messages {
        words.push_str(&words_of(&message["content"]));
    }
    Request {
        tools: tools.filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect(),
        outcomes,
        words,
    }
}

fn outcome(part: &Value) -> Outcome {
    let parts = part["content"].as_array().map_or(&[][..], Vec::as_slice);
    let other_parts = parts.iter().filter(|part| part["type"] != "text").count();
    Outcome { text: words_of(&part["content"]), is_error: part["is_error"] == true, other_parts }
}

fn words_of(content: &Value) -> String {
    if let Some(text) = content.as_str() {
        return text.to_owned();
    }
    let parts = content.as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
}

pub(super) fn write(reply: &Reply, body: &Value, id: u64) -> String {
    let (block, delta, stop) = match reply {
        Reply::Say(text) => {
            (json!({ "type": "text", "text": "" }), json!({ "type": "text_delta", "text": text }), "end_turn")
        }
        Reply::Call { tool, arguments } => (
            json!({ "type": "tool_use", "id": format!("toolu_{id}"), "name": tool, "input": {} }),
            json!({ "type": "input_json_delta", "partial_json": arguments.to_string() }),
            "tool_use",
        ),
    };
    let usage = json!({ "input_tokens": 1, "output_tokens": 1 });
    let message = json!({
        "id": format!("msg_{id}"), "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    });
    let events = [
        json!({ "type": "message_start", "message": message }),
        json!({ "type": "content_block_start", "index": 0, "content_block": block }),
        json!({ "type": "content_block_delta", "index": 0, "delta": delta }),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "message_delta", "delta": { "stop_reason": stop, "stop_sequence": null }, "usage": usage }),
        json!({ "type": "message_stop" }),
    ];
    events.iter().fold(String::new(), |mut text, data| {
        let _ = write!(text, "{}", event(data["type"].as_str(), data));
        text
    })
}
