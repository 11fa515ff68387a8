//! A change as people see it: a unified diff without the secrets that stand in the file.

use similar::TextDiff;
use vault::Redactor;

use super::edit::Change;
use super::secrets;
use super::text::{Document, Format};
use crate::out::diff_line;
use crate::plain::brief;

const CONTEXT: usize = 3;
const WIDTH: usize = 240;
/// In bytes.
const SHORT: usize = 16;
/// Empty where nothing changes.
pub fn diff(change: &Change, format: Format) -> String {
    let before = change.original.text.as_deref().unwrap_or_default();
    let after = change.after.as_deref().unwrap_or_default();
    let documents = [before, after].into_iter().filter_map(|text| Document::read(format, text).ok());
    let secrets: Vec<String> = documents.flat_map(|document| secrets::of(document.value())).collect();
    let mask = Mask::new(&secrets);
    let path = change.original.path.display().to_string();
    let none = "/dev/null".to_owned();
    let old = if change.original.text.is_some() { &path } else { &none };
    let new = if change.after.is_some() { &path } else { &none };
    let diff = TextDiff::from_lines(before, after);
    let text =
        diff.unified_diff().context_radius(CONTEXT).missing_newline_hint(false).header(old, new).to_string();
    let lines = text.lines().map(|line| diff_line(&brief(&mask.line(line), WIDTH)));
    lines.collect::<Vec<_>>().join("\n")
}

struct Mask {
    long: Redactor,
    /// Too short to be looked for everywhere: masked where one is a whole text.
    short: Vec<String>,
}

impl Mask {
    fn new(secrets: &[String]) -> Self {
        let quoted = |text: &String| serde_json::to_string(text).ok();
        let short = secrets.iter().filter(|text| !text.is_empty() && text.len() < SHORT).filter_map(quoted);
        Self { long: Redactor::new(secrets.iter().map(String::as_bytes)), short: short.collect() }
    }

    fn line(&self, line: &str) -> String {
        let masked = self.long.mask_text(line).into_owned();
        self.short.iter().fold(masked, |line, quoted| line.replace(quoted.as_str(), "\"[secret]\""))
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
        let change = Change { original, after: Some(after), foreign_lock: None, is_ours: false };
        let shown = diff(&change, Format::Json);
        assert!(shown.contains("--- /f") && shown.contains("\"new\""), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("geheim"), "{shown}");
    }

    #[test]
    fn entries_around_ours_show_no_secret_of_their_arguments() {
        let before = r#"{"mcpServers": {
    "a": {"command": "docker", "args": ["run", "-e", "T=XSECRET-1", "--env=U=XSECRET-2", "mcp/x"]},
    "b": {"command": "bash", "args": ["-c", "export T=XSECRET-3; npx foo"]},
    "c": {"command": "npx", "args": ["-y", "pkg", "postgres://u:XSECRET-4@h/db", "--api-key", "XSECRET-5"]},
    "d": {"url": "https://h/mcp?k=XSECRET-6", "headers": {"X": "XSECRET-7"}},
    "e": {"command": ["npx", "pkg", "--header", "X-Key: XSECRET-8"], "environment": {"P": "pin\"4"}},
    "f": {"command": "npx", "args": ["pkg", "--token=XSECRET-9"]},
    "ours": {"command": "old path/claudemesh", "args": ["mcp", "--service", "github"]}
}}
"#;
        let after = before.replace("old path", "new path");
        for (before, after) in [(before, after.as_str()), ("{}", before), (before, "{}")] {
            let original = Original { path: "/f".into(), real: "/f".into(), text: Some(before.into()) };
            let change = Change { original, after: Some(after.into()), foreign_lock: None, is_ours: false };
            let shown = diff(&change, Format::Json);
            assert!(!shown.contains("XSECRET") && !shown.contains("pin"), "{shown}");
            let is_told = |word: &str| shown.contains(word);
            assert!(
                is_told("path/claudemesh") && is_told("\"--service\", \"github\"") && is_told("pkg"),
                "{shown}"
            );
        }
    }
}
