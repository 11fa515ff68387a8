//! A change as people see it: a unified diff without the secrets that stand in the file.

use serde_json::Value;
use similar::TextDiff;
use vault::Redactor;

use super::edit::Change;
use super::text::{Document, Format};
use crate::out::diff_line;
use crate::plain::brief;

const CONTEXT: usize = 3;
const WIDTH: usize = 240;
/// Names of variables and fields that say what is in them.
const TELLTALE: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "AUTH"];
/// Fields that hold what is nobody else's business.
const PRIVATE: [&str; 5] = ["env", "environment", "headers", "http_headers", "oauth"];

pub fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    TELLTALE.iter().any(|word| name.contains(word))
}

/// Empty where nothing changes.
pub fn diff(change: &Change, format: Format) -> String {
    let before = change.original.text.as_deref().unwrap_or_default();
    let after = change.after.as_deref().unwrap_or_default();
    let mut secrets = Vec::new();
    for text in [before, after] {
        if let Ok(document) = Document::read(format, text) {
            collect(document.value(), false, &mut secrets);
        }
    }
    let mask = Redactor::new(secrets.iter().map(String::as_bytes));
    let path = change.original.path.display().to_string();
    let none = "/dev/null".to_owned();
    let old = if change.original.text.is_some() { &path } else { &none };
    let new = if change.after.is_some() { &path } else { &none };
    let diff = TextDiff::from_lines(before, after);
    let text =
        diff.unified_diff().context_radius(CONTEXT).missing_newline_hint(false).header(old, new).to_string();
    let lines = text.lines().map(|line| diff_line(&brief(&mask.mask_text(line), WIDTH)));
    lines.collect::<Vec<_>>().join("\n")
}

fn collect(value: &Value, is_private: bool, found: &mut Vec<String>) {
    match value {
        Value::String(text) if is_private => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, is_private, found)),
        Value::Object(fields) => {
            for (name, field) in fields {
                // Our own variable names a folder.
                let is_ours = name == "CLAUDEMESH_CONFIG_DIR";
                let is_private = is_private || PRIVATE.contains(&name.as_str()) || sounds_secret(name);
                collect(field, is_private && !is_ours, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::agents::edit::Original;

    #[test]
    fn a_diff_shows_what_changes_and_no_secret() {
        let before = "{\n  \"primaryApiKey\": \"hunter2-hunter2\",\n  \"mcpServers\": {\n    \"a\": {\"command\": \"x\", \
                      \"env\": {\"PLAIN\": \"geheim-123\"}}\n  }\n}\n";
        let after = before.replace("\"x\"", "\"new\"");
        let original = Original { path: "/f".into(), real: "/f".into(), text: Some(before.into()) };
        let change = Change { original, after: Some(after), foreign_lock: None };
        let shown = diff(&change, Format::Json);
        assert!(shown.contains("--- /f") && shown.contains("\"new\""), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("geheim"), "{shown}");
    }
}
