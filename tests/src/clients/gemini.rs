//! The Gemini API, as Gemini CLI speaks it.

use serde_json::{Value, json};

use super::model::{Outcome, Reply, Request, event};

pub(super) fn read(body: &Value) -> Request {
    let groups = body["tools"].as_array().into_iter().flatten();
    let tools = groups.flat_map(|group| group["functionDeclarations"].as_array().into_iter().flatten());
    let contents: Vec<_> = body["contents"].as_array().into_iter().flatten().collect();
    let after = contents.iter().rposition(|content| content["role"] == "model").map_or(0, |at| at + 1);
    let parts =
        contents[after..].iter().flat_map(|content| content["parts"].as_array().into_iter().flatten());
    let results = parts.filter(|part| part["functionResponse"].is_object());
    let all = contents.iter().copied().chain([&body["systemInstruction"]]);
    Request {
        tools: tools.filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect(),
        outcomes: results.map(|part| outcome(&part["functionResponse"])).collect(),
        words: all.map(words_of).collect::<Vec<_>>().join("\n"),
    }
}

fn outcome(response: &Value) -> Outcome {
    let said = &response["response"];
    let text = said["output"].as_str().or_else(|| said["error"].as_str());
    Outcome {
        text: text.map_or_else(|| said.to_string(), str::to_owned),
        is_error: said["error"].is_string(),
        other_parts: response["parts"].as_array().map_or(0, Vec::len),
    }
}

fn words_of(content: &Value) -> String {
    let parts = content["parts"].as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
}

fn response(part: &Value) -> Value {
    json!({
        "candidates": [{ "content": { "role": "model", "parts": [part] }, "finishReason": "STOP", "index": 0 }],
        "usageMetadata": { "promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2 },
        "modelVersion": "stand-in",
    })
}

pub(super) fn events(reply: &Reply) -> String {
    let part = match reply {
        Reply::Say(text) => json!({ "text": text }),
        Reply::Call { tool, arguments } => json!({ "functionCall": { "name": tool, "args": arguments } }),
    };
    event(None, &response(&part))
}

/// What is asked beside the conversation: which model to use, who speaks next. Each wants a JSON document in the text.
pub(super) fn aside(_body: &Value) -> Value {
    let text =
        json!({ "reasoning": "-", "model_choice": "flash", "next_speaker": "user", "complexity_score": 1 });
    response(&json!({ "text": text.to_string() }))
}
