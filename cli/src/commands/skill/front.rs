//! The head of a SKILL.md: the lines between the first two `---`.
//!
//! What people write there is often not quite YAML (`description: Use when: …`), and agents take it all the same. So it is read line
//! by line: `key: the rest of the line`, lists, blocks of text, and maps of one level. Nothing that was written is dropped.

use serde_json::{Map, Value};
use wire::RawJson;
use wire::peer::skills::Skill;

use crate::failure::Failure;

pub type Head = Map<String, Value>;

/// Keys that are spelled with `-` in a SKILL.md and with `_` in the mesh.
const SPELLED: [(&str, &str); 3] = [
    ("allowed-tools", "allowed_tools"),
    ("user-invocable", "user_invocable"),
    ("argument-hint", "argument_hint"),
];

/// The head, and the instructions below it. Without a head all of it is instructions.
pub fn split(text: &str) -> (Head, &str) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let none = || (Head::new(), text);
    let Some(rest) = line_end(text.strip_prefix("---")) else { return none() };
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            let body = rest.get(at + line.len()..).unwrap_or_default();
            return (read(rest.get(..at).unwrap_or_default()), body.trim_start_matches(['\r', '\n']));
        }
        at += line.len();
    }
    none()
}

fn line_end(after_dashes: Option<&str>) -> Option<&str> {
    let (blank, rest) = after_dashes?.split_once('\n')?;
    blank.trim().is_empty().then_some(rest)
}

fn read(text: &str) -> Head {
    let mut head = Head::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let is_own = !line.starts_with([' ', '\t', '#', '-']);
        let Some((key, value)) = line.split_once(':').filter(|_| is_own) else { continue };
        let below = lines[at..].iter().take_while(|line| is_below(line)).count();
        let block = &lines[at..at + below];
        at += below;
        head.insert(key.trim().to_owned(), value_of(value.trim(), block));
    }
    head
}

fn is_below(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with([' ', '\t']) || line.starts_with("- ")
}

fn value_of(value: &str, below: &[&str]) -> Value {
    let written: Vec<&str> = below.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    match value {
        ">" | ">-" | ">+" => Value::String(written.join(" ")),
        "|" | "|-" | "|+" => Value::String(block(below)),
        "" if written.is_empty() => Value::Null,
        "" if written.iter().all(|line| line.starts_with('-')) => {
            let items = written.iter().map(|line| scalar(line.trim_start_matches('-').trim()));
            Value::Array(items.collect())
        }
        "" if written.iter().all(|line| line.contains(':')) => {
            let pairs = written.iter().filter_map(|line| line.split_once(':'));
            Value::Object(pairs.map(|(key, value)| (key.trim().to_owned(), scalar(value.trim()))).collect())
        }
        // A long line that goes on below.
        first => {
            let lines = [first].into_iter().chain(written).filter(|line| !line.is_empty());
            scalar(&lines.collect::<Vec<_>>().join(" "))
        }
    }
}

/// As it stands, without the indentation that all lines have.
fn block(lines: &[&str]) -> String {
    let indent = |line: &&&str| line.len() - line.trim_start().len();
    let least = lines.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(&line)).min();
    let cut = |line: &&str| line.get(least.unwrap_or(0)..).unwrap_or_default().trim_end().to_owned();
    lines.iter().map(cut).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn scalar(text: &str) -> Value {
    if text.starts_with(['"', '[', '{'])
        && let Ok(value) = serde_json::from_str(text)
    {
        return value;
    }
    let inside = |open: char, close: char| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
    if let Some(items) = inside('[', ']') {
        let items = items.split(',').map(str::trim).filter(|item| !item.is_empty());
        return Value::Array(items.map(scalar).collect());
    }
    if let Some(quoted) = inside('\'', '\'') {
        return Value::String(quoted.replace("''", "'"));
    }
    if let Some(quoted) = inside('"', '"') {
        return Value::String(quoted.to_owned());
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => Value::String(text.to_owned()),
    }
}

/// Takes a text out of the head; `None` when there is none, or an empty one.
pub fn take_text(head: &mut Head, key: &str) -> Option<String> {
    let text = words(&head.remove(key)?);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Takes a list out of the head, which may be written as `a, b`.
pub fn take_list(head: &mut Head, key: &str) -> Vec<String> {
    match head.remove(key) {
        Some(Value::Array(items)) => items.iter().map(words).collect(),
        Some(value) => comma_list(&words(&value)),
        None => Vec::new(),
    }
}

/// Split at commas that are in no parentheses: `Bash(git add:*, x), Read`.
fn comma_list(text: &str) -> Vec<String> {
    let mut depth = 0_i32;
    let parts = text.split(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth <= 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The keys as the mesh spells them; tools as a list.
pub fn spell_for_mesh(head: &mut Head) {
    for (written, key) in SPELLED {
        if let Some(value) = head.remove(written) {
            head.insert(key.to_owned(), value);
        }
    }
    if head.contains_key("allowed_tools") {
        let tools = take_list(head, "allowed_tools").into_iter().map(Value::String).collect();
        head.insert("allowed_tools".to_owned(), Value::Array(tools));
    }
    head.retain(|_, value| !value.is_null());
}

pub fn raw(head: &Head) -> Result<RawJson, Failure> {
    serde_json::value::to_raw_value(head)
        .map_err(|e| Failure::platform(format!("cannot write the head as JSON: {e}")))
}

pub fn manifest(skill: &Skill) -> Head {
    let manifest = skill.manifest.as_ref();
    manifest.and_then(|manifest| serde_json::from_str(manifest.get()).ok()).unwrap_or_default()
}

/// For people: lists with commas, text as it is.
pub fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A whole SKILL.md, which [`split`] reads back. Values are JSON, which is YAML too.
pub fn write(skill: &Skill) -> String {
    let mut text = String::from("---\n");
    let mut line = |key: &str, value: &Value| text.push_str(&format!("{key}: {value}\n"));
    line("name", &Value::String(skill.name.clone()));
    line("description", &Value::String(skill.description.clone()));
    if !skill.tags.is_empty() {
        line("tags", &skill.tags.iter().cloned().map(Value::String).collect());
    }
    for (key, value) in manifest(skill) {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let spelled = SPELLED.iter().find(|(_, mesh)| *mesh == key).map_or(key.as_str(), |(file, _)| file);
        // A key of somebody's own making must not end the head or begin another line.
        if !spelled.is_empty() && spelled.chars().all(is_plain) && !spelled.starts_with('-') {
            line(spelled, &value);
        }
    }
    text.push_str("---\n\n");
    text.push_str(&skill.instructions);
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_head_is_read_as_people_write_it() {
        let text = "---\nname: review\ndescription: Use when: a \"merge\" is near\nwhen_to_use: >\n  before\n  a merge\n\
            # a remark\ntags: [code, 'it''s', \"two words\"]\nallowed-tools: Bash(git add:*, git x), Read\n\
            model: \"opus\"\nuser-invocable: false\nsteps:\n  - one\n- two: three\nnotes: |\n  a\n    b\n\n  c\n\
            metadata:\n  author: me\nempty:\nlong: begins\n  and ends\n---\n\n# Body\n---\nmore\n";
        let (mut head, body) = split(text);
        assert_eq!(body, "# Body\n---\nmore\n");
        assert_eq!(take_text(&mut head, "name").as_deref(), Some("review"));
        assert_eq!(take_text(&mut head, "description").as_deref(), Some("Use when: a \"merge\" is near"));
        assert_eq!(take_list(&mut head, "tags"), ["code", "it's", "two words"]);
        spell_for_mesh(&mut head);
        let wanted = json!({
            "when_to_use": "before a merge", "allowed_tools": ["Bash(git add:*, git x)", "Read"],
            "model": "opus", "user_invocable": false, "steps": ["one", "two: three"], "notes": "a\n  b\n\nc",
            "metadata": {"author": "me"}, "long": "begins and ends",
        });
        assert_eq!(Value::Object(head), wanted);
    }

    #[test]
    fn without_a_whole_head_all_is_instructions() {
        for text in ["# Body\n", "", "---", "---\nname: x\n", "--- x\n---\n", "----\na: b\n---\n"] {
            let (head, body) = split(text);
            assert!(head.is_empty() && body == text, "{text:?}");
        }
        let (head, body) = split("---\r\nname: x\r\n---\r\nBody");
        assert_eq!((head["name"].as_str(), body), (Some("x"), "Body"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let manifest = json!({
            "allowed_tools": ["Bash(a, b)"], "user_invocable": true, "argument_hint": "[x]\n---\n", "own": {"a": ["b"]},
            "evil\n---\n": "dropped",
        });
        let skill = Skill {
            name: "s".into(),
            description: "line\n---\n\"quoted\": yes".into(),
            instructions: "# Body\n".into(),
            tags: vec!["a, b".into()],
            author: "Ann".into(),
            manifest: Some(serde_json::value::to_raw_value(&manifest).unwrap()),
            created_at: String::new(),
            files: Vec::new(),
        };
        let text = write(&skill);
        let (mut head, body) = split(&text);
        assert_eq!(body, skill.instructions);
        assert_eq!(take_text(&mut head, "name"), Some(skill.name));
        assert_eq!(take_text(&mut head, "description"), Some(skill.description));
        assert_eq!(take_list(&mut head, "tags"), skill.tags);
        spell_for_mesh(&mut head);
        let mut wanted = manifest;
        wanted.as_object_mut().unwrap().remove("evil\n---\n");
        assert_eq!(Value::Object(head), wanted);
    }
}
