//! `approve`: what has changed in a service since its owner approved it, shown as a diff, and the yes to exactly that.

use std::time::Duration;

use serde_json::Value;
use similar::TextDiff;
use wire::peer::hosting::{McpStatus, McpStatusResult, ServiceStatus};
use wire::peer::trust::{Drift, DriftChange, McpApprove};

use super::ask;
use super::deploy::count;
use crate::args::ApproveArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::out::{bold, diff_line};
use crate::plain::{brief, plain_line};

/// Two hostile texts of megabytes must not keep a terminal busy: from here on the diff is coarser, not wrong.
const DIFF_LIMIT: Duration = Duration::from_millis(500);

pub async fn approve(here: &Here, args: &ApproveArgs) -> Result<(), Failure> {
    let found: McpStatusResult = ask(here, &McpStatus { server_name: args.name.clone() }).await?;
    let Some(drift) = &found.service.drift else {
        return nothing_to_approve(here, &found.service);
    };
    let shown = [words(drift, None), suspicions(&found.service), unseen(drift, &args.name)].join("");
    if args.yes {
        here.out.remark(shown);
    } else {
        let changes = count(drift.changes.len(), "change");
        here.out.confirm(&shown, &format!("Offer {} with {changes} to everybody who sees it?", args.name))?;
    }
    let frame = McpApprove { server_name: args.name.clone(), digest: drift.digest.clone() };
    let approved: McpStatusResult = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&approved.service);
    }
    here.out.line(format!(
        "{} is approved as it is, with {}",
        args.name,
        count(drift.changes.len(), "change")
    ));
    Ok(())
}

fn nothing_to_approve(here: &Here, service: &ServiceStatus) -> Result<(), Failure> {
    if !service.manageable {
        let message = format!("only those who may manage {} approve it", plain_line(&service.name));
        return Err(Failure::of_code(wire::ErrorCode::Forbidden, message));
    }
    if here.out.json {
        return here.out.document(service);
    }
    here.out.line(format!("{} is as it was approved", plain_line(&service.name)));
    Ok(())
}

fn suspicions(service: &ServiceStatus) -> String {
    let line = |found: &wire::peer::trust::Suspicion| {
        format!("\nsuspicious: {}: {}", brief(&found.tool, 64), plain_line(&found.what))
    };
    service.suspicions.iter().map(line).collect()
}

/// Whoever says yes must know that they have not seen everything.
fn unseen(drift: &Drift, name: &str) -> String {
    let texts = drift.changes.iter().flat_map(|change| [&change.before, &change.after]).flatten();
    match texts.filter(|text| is_cut(text)).count() {
        0 => String::new(),
        cut => format!(
            "\nwarning: {} too long to be shown whole; the present ones: claudemesh --json tools {name}",
            if cut == 1 { "1 text is".to_owned() } else { format!("{cut} texts are") }
        ),
    }
}

/// The broker cuts what is too long, and says so at its end; a whole definition is JSON.
fn is_cut(text: &str) -> bool {
    text.ends_with(" bytes more)") && serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()
}

/// Each change as a diff; at most so many lines of each.
pub fn words(drift: &Drift, limit: Option<usize>) -> String {
    let head = format!("changed since it was approved ({})", count(drift.changes.len(), "change"));
    let changes = drift.changes.iter().map(|change| change_words(change, limit));
    [bold(&head)].into_iter().chain(changes).collect::<Vec<_>>().join("\n")
}

pub fn change_words(change: &DriftChange, limit: Option<usize>) -> String {
    let what = match (&change.before, &change.after) {
        (None, _) => "new",
        (_, None) => "gone",
        _ => "changed",
    };
    let mut text = format!("{what}: {} {}", plain_line(&change.kind), brief(&change.name, 128));
    let before = change.before.as_deref().map(pretty).unwrap_or_default();
    let after = change.after.as_deref().map(pretty).unwrap_or_default();
    let diff = TextDiff::configure().timeout(DIFF_LIMIT).diff_lines(&before, &after);
    let groups = diff.grouped_ops(2);
    let mut lines = groups.iter().enumerate().flat_map(|(at, group)| {
        let between = (at > 0).then(|| "  …".to_owned());
        let changes = group.iter().flat_map(|op| diff.iter_changes(op));
        between.into_iter().chain(changes.map(|line| format!("{} {}", line.tag(), plain_line(line.value()))))
    });
    for line in lines.by_ref().take(limit.unwrap_or(usize::MAX)) {
        text.push_str(&format!("\n  {}", diff_line(&line)));
    }
    let left = lines.count();
    if left > 0 {
        text.push_str(&format!("\n  … and {}; `claudemesh approve` shows all", count(left, "line")));
    }
    text
}

/// One line a field, the fields sorted, so that only what differs differs. What is not JSON stays as it is.
fn pretty(json: &str) -> String {
    let text = serde_json::from_str::<Value>(json).and_then(|value| serde_json::to_string_pretty(&value));
    text.unwrap_or_else(|_| json.to_owned()) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: Option<&str>, after: Option<&str>) -> DriftChange {
        let text = |json: Option<&str>| json.map(str::to_owned);
        DriftChange { kind: "tool".into(), name: "sum".into(), before: text(before), after: text(after) }
    }

    #[test]
    fn a_change_is_a_diff_of_the_lines_that_differ() {
        let before = r#"{"name":"sum","inputSchema":{"a":1},"description":"adds"}"#;
        let after = r#"{"description":"adds and pays","inputSchema":{"a":1},"name":"sum"}"#;
        let text = change_words(&change(Some(before), Some(after)), None);
        assert_eq!(
            text,
            "changed: tool sum\n    {\n  -   \"description\": \"adds\",\n  +   \"description\": \"adds and pays\",\n      \"inputSchema\": {\n        \"a\": 1"
        );
    }

    #[test]
    fn what_is_new_or_gone_is_shown_whole() {
        assert_eq!(change_words(&change(None, Some("{\"name\":\"x\"}")), None).matches("\n  +").count(), 3);
        let gone = change_words(&change(Some("{\"name\":\"x\"}"), None), None);
        assert!(gone.starts_with("gone: tool sum") && gone.matches("\n  -").count() == 3, "{gone}");
    }

    #[test]
    fn hostile_definitions_can_not_draw_their_own_diff() {
        let text = change_words(&change(None, Some("not json\u{1b}[2J\n+ forged\r- line")), None);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("  +")), "{text}");
    }

    #[test]
    fn whoever_approves_is_told_what_they_have_not_seen() {
        let drift = |after: &str| Drift { digest: "d".into(), changes: vec![change(None, Some(after))] };
        assert_eq!(unseen(&drift(r#"{"description":"… (9 bytes more)"}"#), "s"), "");
        assert_eq!(unseen(&drift(r#""… (9 bytes more)""#), "s"), "");
        assert!(
            unseen(&drift(r#"{"description":"adds… (9 bytes more)"#), "s").contains("1 text is too long")
        );
    }

    #[test]
    fn a_card_cuts_and_says_how_much() {
        let many = format!("[{}]", vec!["1"; 100].join(","));
        let text = change_words(&change(None, Some(&many)), Some(10));
        assert_eq!(text.lines().count(), 12);
        assert!(text.ends_with("… and 92 lines; `claudemesh approve` shows all"), "{text}");
    }
}
