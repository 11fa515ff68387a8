//! The Responses API, as Codex speaks it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::model::{Outcome, Reply, Request, event};

pub(super) fn read(body: &Value) -> Request {
    let items: Vec<_> = body["input"].as_array().into_iter().flatten().collect();
    let after = items.iter().rposition(|item| item["type"] == "function_call").map_or(0, |at| at + 1);
    let results = items[after..].iter().filter(|item| item["type"] == "function_call_output");
    let words = items.iter().filter(|item| item["type"] == "message").map(|item| words_of(&item["content"]));
    Request {
        tools: tools_of(body).into_iter().map(|(name, _)| name).collect(),
        outcomes: results.map(|item| outcome(&item["output"])).collect(),
        words: words.collect::<Vec<_>>().join("\n"),
    }
}

/// The full name of each tool, and how it is called: tools of MCP servers may stand in a namespace.
fn tools_of(body: &Value) -> BTreeSet<(String, Option<String>)> {
    let mut found = BTreeSet::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        let Some(name) = tool["name"].as_str() else { continue };
        if tool["type"] == "namespace" {
            let inner = tool["tools"].as_array().into_iter().flatten();
            let names = inner.filter_map(|tool| tool["name"].as_str());
            found.extend(names.map(|inner| (format!("{name}__{inner}"), Some(name.to_owned()))));
        } else {
            found.insert((name.to_owned(), None));
        }
    }
    found
}

fn outcome(output: &Value) -> Outcome {
    let parts = output.as_array().map_or(&[][..], Vec::as_slice);
    let other_parts = parts.iter().filter(|part| part["type"] != "input_text").count();
    let text = words_of(output);
    // Codex tells the model of a failure in words only.
    let is_error = text.contains("tool call error") || text.contains("\"isError\":true");
    Outcome { text, is_error, other_parts }
}

fn words_of(content: &Value) -> String {
    if let Some(text) = content.as_str() {
        return text.to_owned();
    }
    let parts = content.as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
}

pub(super) fn write(reply: &Reply, body: &Value, id: u64) -> String {
    let item = match reply {
        Reply::Say(text) => json!({
            "type": "message", "id": format!("msg_{id}"), "role": "assistant", "status": "completed",
            "content": [{ "type": "output_text", "text": text, "annotations": [] }],
        }),
        Reply::Call { tool, arguments } => {
            let space =
                tools_of(body).into_iter().find(|(name, _)| name == tool).and_then(|(_, space)| space);
            let name = space.as_deref().map_or(tool.as_str(), |space| &tool[space.len() + 2..]);
            let mut item = json!({
                "type": "function_call", "id": format!("fc_{id}"), "call_id": format!("call_{id}"), "name": name,
                "arguments": arguments.to_string(), "status": "completed",
            });
            if let Some(space) = space {
                item["namespace"] = space.into();
            }
            item
        }
    };
    let response = format!("resp_{id}");
    let usage = json!({
        "input_tokens": 1, "input_tokens_details": { "cached_tokens": 0 }, "output_tokens": 1,
        "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 2,
    });
    let events = [
        json!({ "type": "response.created", "response": { "id": response, "status": "in_progress" } }),
        json!({ "type": "response.output_item.added", "output_index": 0, "item": item }),
        json!({ "type": "response.output_item.done", "output_index": 0, "item": item }),
        json!({
            "type": "response.completed",
            "response": { "id": response, "status": "completed", "output": [item], "usage": usage },
        }),
    ];
    events.iter().map(|data| event(data["type"].as_str(), data)).collect()
}
