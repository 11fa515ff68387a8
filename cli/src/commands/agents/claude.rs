//! What Claude Code is given besides its MCP entry: hooks that say what the session does, and a status line.
//!
//! `settings.json` beside its other settings. A hook's command is a line of a shell there; that is the client's format.

use std::path::PathBuf;

use serde_json::Value;

use super::clients::{Program, is_our_executable};
use super::edit::Draft;
use super::text::{Fault, Shape, Step, keys};
use crate::env;
use crate::failure::Failure;

/// When, for which kinds of it, and what is said then.
const HOOKS: [(&str, Option<&str>, &str); 4] = [
    ("SessionStart", None, "idle"),
    ("UserPromptSubmit", None, "working"),
    ("Stop", None, "idle"),
    ("Notification", Some("permission_prompt|elicitation_dialog|agent_needs_input"), "needs-input"),
];
const OWN_VARIABLES: &str = "CLAUDEMESH_";
/// Seconds. A status that comes late is worth nothing.
const HOOK_LIMIT: u32 = 5;

pub fn settings_file() -> Result<PathBuf, Failure> {
    let folders = env::client_folders()?;
    Ok(folders.claude.unwrap_or_else(|| folders.home.join(".claude")).join("settings.json"))
}

/// Writes what is missing, and brings to date what is ours already.
pub fn add(draft: &mut Draft, ours: &Program) -> Result<(), Fault> {
    for (event, matcher, status) in HOOKS {
        let command = line(ours, &["hook", status]);
        let wanted = Shape::fields([
            ("type", Shape::text("command")),
            ("command", Shape::text(&command)),
            ("timeout", Shape::Leaf(HOOK_LIMIT.into())),
        ]);
        if our_hooks(draft.document.value(), event).iter().any(|(_, found)| *found == command) {
            continue;
        }
        remove_hooks(draft, event)?;
        let mut group = vec![("hooks".to_owned(), Shape::List(vec![wanted]))];
        if let Some(matcher) = matcher {
            group.insert(0, ("matcher".to_owned(), Shape::text(matcher)));
        }
        draft.push(&["hooks", event], &Shape::Fields(group))?;
    }
    let there = draft.document.at(&["statusLine"]);
    if there.is_none() || is_our_status_line(there) {
        let wanted = Shape::fields([
            ("type", Shape::text("command")),
            ("command", Shape::text(line(ours, &["status-line"]))),
        ]);
        draft.set(&["statusLine"], &wanted)?;
    }
    Ok(())
}

pub fn remove(draft: &mut Draft) -> Result<(), Fault> {
    for event in events(draft.document.value()) {
        remove_hooks(draft, &event)?;
    }
    if is_our_status_line(draft.document.at(&["statusLine"])) {
        draft.document.remove(&keys(&["statusLine"]))?;
    }
    Ok(())
}

/// The commands in it that are ours.
pub fn commands(settings: &Value) -> Vec<String> {
    let hooks = events(settings).into_iter().flat_map(|event| our_hooks(settings, &event));
    let hooks = hooks.map(|(_, command)| command);
    let line = settings.get("statusLine").filter(|line| is_our_status_line(Some(line)));
    let line = line.and_then(|line| line["command"].as_str().map(str::to_owned));
    hooks.chain(line).collect()
}

/// The executable of a line that we wrote.
pub fn executable(line: &str) -> Option<String> {
    let words = words(line);
    words.into_iter().find(|word| is_our_executable(word))
}

fn events(settings: &Value) -> Vec<String> {
    settings
        .get("hooks")
        .and_then(Value::as_object)
        .map(|map| map.keys().cloned().collect())
        .unwrap_or_default()
}

/// Each of our hooks of an event: where it stands (group, place in it) and its command.
fn our_hooks(settings: &Value, event: &str) -> Vec<((usize, usize), String)> {
    let groups = settings["hooks"][event].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        let hooks = group["hooks"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (place, hook) in hooks.iter().enumerate() {
            let command = hook["command"].as_str().unwrap_or_default();
            if is_ours(command, "hook") {
                found.push(((at, place), command.to_owned()));
            }
        }
    }
    found
}

/// A group goes with the last hook in it.
fn remove_hooks(draft: &mut Draft, event: &str) -> Result<(), Fault> {
    // From the end, so that the places before it stay where they are.
    for ((at, place), _) in our_hooks(draft.document.value(), event).into_iter().rev() {
        let group = draft.document.value()["hooks"][event][at]["hooks"].as_array();
        let is_alone = group.is_some_and(|hooks| hooks.len() == 1);
        let mut path = keys(&["hooks", event]);
        path.push(Step::Item(at));
        if !is_alone {
            path.extend([Step::Key("hooks".to_owned()), Step::Item(place)]);
        }
        draft.document.remove(&path)?;
    }
    Ok(())
}

fn is_our_status_line(line: Option<&Value>) -> bool {
    line.and_then(|line| line["command"].as_str()).is_some_and(|command| is_ours(command, "status-line"))
}

/// `[VARIABLE=value] [/…/]claudemesh [--mesh SLUG] COMMAND …` and nothing around it.
fn is_ours(line: &str, command: &str) -> bool {
    let words = words(line);
    let mut words = words.iter().map(String::as_str).skip_while(|word| word.starts_with(OWN_VARIABLES));
    if !words.next().is_some_and(is_our_executable) {
        return false;
    }
    let rest: Vec<&str> = words.collect();
    let rest = match rest.as_slice() {
        ["--mesh", _, rest @ ..] => rest,
        rest => rest,
    };
    match (command, rest) {
        ("hook", ["hook", status]) => HOOKS.iter().any(|(_, _, known)| known == status),
        ("status-line", ["status-line"]) => true,
        _ => false,
    }
}

fn line(ours: &Program, command: &[&str]) -> String {
    // What a person gave to the MCP entry is not for a line that everybody on the machine can read.
    let own = ours.env.iter().filter(|(name, _)| name.starts_with(OWN_VARIABLES));
    let env = own.map(|(name, value)| format!("{name}={}", quoted(value)));
    // All that stands before `mcp` says which mesh.
    let place = ours.args.iter().take_while(|arg| *arg != "mcp").map(|arg| quoted(arg));
    let words =
        env.chain([quoted(&ours.command)]).chain(place).chain(command.iter().map(|word| quoted(word)));
    words.collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Undoes [`quoted`]; what a shell would make of anything else does not matter: it is not ours.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted, mut has_begun) = (Vec::new(), String::new(), false, false);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => (is_quoted, has_begun) = (!is_quoted, true),
            '\\' if !is_quoted => word.extend(chars.next()),
            ' ' if !is_quoted => {
                if has_begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                has_begun = false;
            }
            c => word.push(c),
        }
    }
    if has_begun || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::agents::text::Format;

    fn program(command: &str) -> Program {
        Program {
            command: command.into(),
            args: vec!["--mesh".into(), "acme".into(), "mcp".into()],
            env: vec![("CLAUDEMESH_CONFIG_DIR".into(), "/it's here".into())],
        }
    }

    fn draft(text: &str) -> Draft {
        Draft::read(Format::Json, text).unwrap()
    }

    #[test]
    fn hooks_come_once_and_go_without_a_trace() {
        for text in [
            "{}\n",
            "{\n  \"model\": \"x\"\n}\n",
            "{\n  // mine\n  \"hooks\": {\n    \"Stop\": [\n      {\n        \"hooks\": [\n          {\"type\": \"command\", \
             \"command\": \"say 'claudemesh hook idle'\"}\n        ]\n      }\n    ]\n  },\n  \"statusLine\": {\"type\": \
             \"command\", \"command\": \"mine\"}\n}\n",
        ] {
            let mut draft = draft(text);
            add(&mut draft, &program("/opt/a b/claudemesh")).unwrap();
            let once = draft.document.text().to_owned();
            add(&mut draft, &program("/opt/a b/claudemesh")).unwrap();
            assert_eq!(draft.document.text(), once, "a second time changes nothing");
            assert!(commands(draft.document.value()).len() >= 4);
            remove(&mut draft).unwrap();
            draft.remove_created().unwrap();
            assert_eq!(draft.document.text(), text, "by way of {once}");
        }
    }

    #[test]
    fn a_program_that_moved_is_followed() {
        let mut draft = draft("{}\n");
        add(&mut draft, &program("/old/claudemesh")).unwrap();
        add(&mut draft, &program("/new/claudemesh")).unwrap();
        let commands = commands(draft.document.value());
        assert_eq!(commands.len(), 5, "{commands:?}");
        assert!(commands.iter().all(|line| executable(line).as_deref() == Some("/new/claudemesh")));
    }

    #[test]
    fn variables_that_a_person_gave_to_our_entry_stay_out_of_lines_of_a_shell() {
        let mut ours = program("/new/claudemesh");
        ours.env.push(("API_TOKEN".into(), "hunter2".into()));
        let mut draft = draft("{}\n");
        add(&mut draft, &ours).unwrap();
        assert!(!draft.document.text().contains("hunter2"), "{}", draft.document.text());
        assert_eq!(commands(draft.document.value()).len(), 5, "and they are ours still");
    }

    #[test]
    fn a_status_line_of_the_persons_own_stays() {
        let mut draft = draft(r#"{"statusLine": {"type": "command", "command": "~/line.sh"}}"#);
        add(&mut draft, &program("/x/claudemesh")).unwrap();
        assert_eq!(draft.document.value()["statusLine"]["command"], "~/line.sh");
    }

    #[test]
    fn only_our_own_lines_are_ours() {
        let ours = line(&program("/opt/a b/claudemesh"), &["hook", "idle"]);
        assert!(is_ours(&ours, "hook"), "{ours}");
        assert!(is_ours("claudemesh status-line", "status-line"));
        for other in ["claudemesh hook idle; rm -rf x", "echo claudemesh hook idle", "claudemesh hook", "x"] {
            assert!(!is_ours(other, "hook"), "{other}");
        }
    }
}
