//! `tools`: what a service offers, from the broker's store, also while the service sleeps.

use serde::Deserialize;
use serde_json::{Map, Value};
use wire::RawJson;
use wire::peer::hosting::{McpSchema, McpSchemaResult};

use super::ask;
use super::deploy::count;
use super::lent;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::{bold, table};
use crate::plain::{brief, plain, plain_line};

/// The parts of a tool definition that are shown. Every other field stays in `--json`.
#[derive(Debug, Deserialize)]
struct Tool {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default, rename = "inputSchema")]
    input: Value,
}

fn read(tool: &RawJson) -> Option<Tool> {
    serde_json::from_str(tool.get()).ok()
}

pub async fn tools(here: &Here, name: &str, tool: Option<&str>) -> Result<(), Failure> {
    let frame = McpSchema { server_name: name.to_owned(), tool_name: tool.map(str::to_owned) };
    let asked: Result<McpSchemaResult, Failure> = ask(here, &frame).await;
    let found = match asked {
        Ok(found) => found,
        Err(failure) => lent::schema(lent::instead(here, failure, name).await?),
    };
    if here.out.json {
        return here.out.document(&found);
    }
    match tool {
        None => show_all(here, name, &found),
        Some(tool) => return show_one(here, name, tool, &found),
    }
    Ok(())
}

fn show_all(here: &Here, name: &str, found: &McpSchemaResult) {
    let rows: Vec<Vec<String>> = found
        .tools
        .iter()
        .filter_map(read)
        .map(|tool| vec![brief(&tool.name, 80), first_line(tool.description.as_deref())])
        .collect();
    if rows.is_empty() {
        here.out.remark(format!("{name} offers no tools"));
    } else {
        here.out.line(table(&["TOOL", "DESCRIPTION"], rows));
    }
    let others = [
        (found.prompts.len(), "prompt"),
        (found.resources.len(), "resource"),
        (found.resource_templates.len(), "resource template"),
    ];
    let others: Vec<String> =
        others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| count(*n, what)).collect();
    if !others.is_empty() {
        here.out.remark(format!("and {}", others.join(", ")));
    }
    if let Some(example) = found.tools.first().and_then(|tool| example_call(name, tool)) {
        here.out.remark(format!("call one: {example}"));
    }
}

fn first_line(description: Option<&str>) -> String {
    let text = description.unwrap_or_default().trim();
    brief(text.lines().next().unwrap_or_default(), 100)
}

fn show_one(here: &Here, name: &str, wanted: &str, found: &McpSchemaResult) -> Result<(), Failure> {
    let Some((raw, tool)) =
        found.tools.iter().filter_map(|raw| Some((raw, read(raw)?))).find(|(_, tool)| tool.name == wanted)
    else {
        let message = format!("{name} has no tool `{}`", plain_line(wanted));
        return Err(Failure::of_code(wire::ErrorCode::NotFound, message)
            .with_cure(format!("`claudemesh tools {name}` lists them.")));
    };
    here.out.line(bold(&plain_line(&tool.name)));
    if let Some(description) = &tool.description {
        here.out.line(plain(description.trim()));
    }
    if let Ok(schema) = serde_json::to_string_pretty(&tool.input) {
        here.out.line(format!("\n{}", plain(&schema)));
    }
    if let Some(example) = example_call(name, raw) {
        here.out.line(format!("\n{example}"));
    }
    Ok(())
}

/// A command line with the required arguments filled in with something of the right type.
pub fn example_call(service: &str, tool: &RawJson) -> Option<String> {
    let tool = read(tool)?;
    let required = tool.input.get("required").and_then(Value::as_array);
    let names = required.into_iter().flatten().filter_map(Value::as_str);
    let args: Map<String, Value> = names
        .map(|name| (name.to_owned(), sample(tool.input.get("properties").and_then(|p| p.get(name)))))
        .collect();
    let word = plain_line(&tool.name);
    if args.is_empty() {
        return Some(format!("claudemesh call {service} {}", quoted(&word)));
    }
    let json = plain_line(&Value::Object(args).to_string());
    Some(format!("claudemesh call {service} {} {}", quoted(&word), quoted(&json)))
}

/// For a shell that a person pastes this into: a hostile tool name must stay one word.
fn quoted(word: &str) -> String {
    let is_plain =
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:".contains(&b));
    if is_plain && !word.starts_with('-') {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn sample(schema: Option<&Value>) -> Value {
    let Some(schema) = schema else { return Value::String("…".to_owned()) };
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|values| values.first()) {
        return first.clone();
    }
    if let Some(default) = schema.get("default") {
        return default.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("number" | "integer") => Value::from(1),
        Some("boolean") => Value::Bool(true),
        Some("array") => Value::Array(Vec::new()),
        Some("object") => Value::Object(Map::new()),
        _ => Value::String("…".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawJson {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_example_call_fills_in_what_is_required() {
        let tool = raw(
            r#"{"name":"sum","inputSchema":{"required":["a","m"],"properties":{"a":{"type":"number"},"m":{"enum":["x"]},"o":{}}}}"#,
        );
        assert_eq!(example_call("calc", &tool).unwrap(), r#"claudemesh call calc sum '{"a":1,"m":"x"}'"#);
        assert_eq!(example_call("c", &raw(r#"{"name":"now"}"#)).unwrap(), "claudemesh call c now");
    }

    #[test]
    fn a_hostile_tool_name_can_not_leave_its_word() {
        let tool = raw(r#"{"name":"x'; rm -rf ~ #","inputSchema":{}}"#);
        assert_eq!(example_call("s", &tool).unwrap(), r"claudemesh call s 'x'\''; rm -rf ~ #'");
    }
}
