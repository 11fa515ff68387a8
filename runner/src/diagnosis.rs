//! Why a server did not start, in words that say what to do.
//!
//! Here: reading a server's last words; pure. Not here: collecting them.
//! Invariant: what is recognised is a guess and is worded as one; the words themselves are always passed on.

use jail::{Ending, Exit, Report, Step};
use wire::ErrorCode;
use wire::report::Reason;

const ENOENT: i32 = 2;

/// What was seen of a start that failed.
pub enum Failure<'a> {
    /// A jail report of kind `Failed`, or what is like one.
    Jail(&'a Report),
    /// The process ended, or closed its stdout; `None` when how is not known.
    Exited(Option<&'a Exit>),
    /// No answer in time.
    Silent { seconds: u64 },
    /// Other output where MCP was expected.
    Chatter,
    /// It answered, and wrongly.
    Protocol(ErrorCode, String),
}

/// The reason that people get. `words`: the last lines the server wrote.
pub fn diagnose(failure: &Failure<'_>, words: Vec<String>) -> Reason {
    let (code, message) = match failure {
        Failure::Jail(report) => jail(report),
        Failure::Exited(exit) => {
            let how = exit.map_or_else(|| "closed its output".to_owned(), ended);
            (ErrorCode::StartExited, format!("the server {how} before it spoke MCP{}", hint(&words)))
        }
        Failure::Silent { .. } | Failure::Chatter if speaks_http(&words) => (
            ErrorCode::HttpServer,
            "the server listens on HTTP instead of speaking MCP over stdio; give it its stdio flag or subcommand, \
             often `--stdio` or `stdio`"
                .to_owned(),
        ),
        Failure::Silent { seconds } => (
            ErrorCode::StartTimeout,
            format!("the server did not answer `initialize` within {seconds} s{}", hint(&words)),
        ),
        Failure::Chatter => (
            ErrorCode::BadProtocol,
            format!("the server writes to stdout what is not MCP{}", hint(&words)),
        ),
        Failure::Protocol(code, message) => (*code, message.clone()),
    };
    Reason { code, message, stderr: words }
}

/// `exited with code 1`, for the middle of a sentence.
pub fn ended(exit: &Exit) -> String {
    let how = match exit.ending {
        Ending::Code(code) => format!("exited with code {code}"),
        Ending::Signal(signal) => format!("was ended by signal {signal}"),
    };
    let memory = if exit.oom_hint { " (probably out of memory; raise `--memory`)" } else { "" };
    format!("{how}{memory}")
}

fn jail(report: &Report) -> (ErrorCode, String) {
    match report {
        Report::Failed { step: Step::Exec, errno: Some(ENOENT), .. } => (
            ErrorCode::EntryNotFound,
            "the program to start does not exist, or its interpreter does not".to_owned(),
        ),
        Report::Failed { step, message, .. } => {
            (ErrorCode::JailFailed, format!("the jail could not be built: step `{step}`: {message}"))
        }
        _ => (ErrorCode::JailFailed, "the jail helper ended without a word".to_owned()),
    }
}

fn speaks_http(words: &[String]) -> bool {
    const SIGNS: [&str; 7] = [
        "listening on",
        "listening at",
        "uvicorn running on",
        "http://localhost",
        "http://127.0.0.1",
        "http://0.0.0.0",
        "running on port",
    ];
    words.iter().map(|line| line.to_lowercase()).any(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

/// `; it may need …`, or nothing.
fn hint(words: &[String]) -> String {
    if let Some(name) = words.iter().find_map(|line| missing_variable(line)) {
        return format!("; it may need the environment variable {name} (`--env {name}=…`)");
    }
    let lower: Vec<String> = words.iter().map(|line| line.to_lowercase()).collect();
    let says = |signs: &[&str]| lower.iter().any(|line| signs.iter().any(|sign| line.contains(sign)));
    if says(&["subcommand", "{stdio", "unknown command", "no command specified"]) {
        return "; it may need a subcommand, often `stdio` (`--args=stdio`)".to_owned();
    }
    if says(&["usage:", "arguments are required", "required argument", "missing argument", "at least one"]) {
        return "; it may need an argument (`--args=…`): see its last lines".to_owned();
    }
    if says(&["cannot find module", "modulenotfounderror", "importerror"]) {
        return "; something it imports is not installed".to_owned();
    }
    String::new()
}

/// A name in capitals in a line that complains.
fn missing_variable(line: &str) -> Option<&str> {
    let lower = line.to_lowercase();
    let complains = [
        "required",
        "missing",
        "not set",
        "must be set",
        "environment variable",
        "please set",
        "not found",
        "not provided",
        "undefined",
        "keyerror",
    ]
    .iter()
    .any(|word| lower.contains(word));
    if !complains {
        return None;
    }
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').find(|word| {
        word.len() >= 5
            && word.contains('_')
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && !word.ends_with('_')
            && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
            // `ERR_MODULE_NOT_FOUND` and its like are Node's codes.
            && !word.starts_with("ERR_")
            && !word.starts_with("MODULE_NOT")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(ending: Ending) -> Exit {
        Exit { ending, oom_hint: false, max_rss_kb: 0, cpu_ms: 0 }
    }

    fn exited(words: &[&str]) -> Reason {
        let exit = exit(Ending::Code(1));
        diagnose(&Failure::Exited(Some(&exit)), words.iter().map(|&w| w.to_owned()).collect())
    }

    #[test]
    fn last_words_of_real_servers_are_understood() {
        for (words, wanted) in [
            ("Error: BRAVE_API_KEY environment variable is required", "--env BRAVE_API_KEY="),
            ("Please set GITHUB_PERSONAL_ACCESS_TOKEN", "--env GITHUB_PERSONAL_ACCESS_TOKEN="),
            ("KeyError: 'NOTION_TOKEN' not found", "--env NOTION_TOKEN="),
            ("Usage: mcp-server-filesystem [allowed-directory]", "--args="),
            ("error: the following arguments are required: --db", "--args="),
            ("Please provide a subcommand", "--args=stdio"),
            ("Error [ERR_MODULE_NOT_FOUND]: Cannot find module 'x'", "not installed"),
        ] {
            let reason = exited(&[words]);
            assert_eq!(reason.code, ErrorCode::StartExited);
            assert!(reason.message.contains(wanted), "{words}: {}", reason.message);
            assert_eq!(reason.stderr, [words]);
        }
        assert_eq!(exited(&["boom"]).message, "the server exited with code 1 before it spoke MCP");
    }

    #[test]
    fn a_silent_server_that_mentions_its_port_is_an_http_server() {
        for words in ["Server listening on port 3000", "INFO: Uvicorn running on http://127.0.0.1:8000"] {
            let reason = diagnose(&Failure::Silent { seconds: 30 }, vec![words.to_owned()]);
            assert_eq!(reason.code, ErrorCode::HttpServer);
        }
        let reason = diagnose(&Failure::Silent { seconds: 30 }, vec!["hello".to_owned()]);
        assert_eq!(reason.code, ErrorCode::StartTimeout);
        assert_eq!(diagnose(&Failure::Chatter, vec![]).code, ErrorCode::BadProtocol);
    }

    #[test]
    fn a_missing_program_is_told_from_a_broken_jail() {
        let failed = |step, errno| Report::Failed { step, errno, message: "m".to_owned() };
        let code = |report: &Report| diagnose(&Failure::Jail(report), vec![]).code;
        assert_eq!(code(&failed(Step::Exec, Some(ENOENT))), ErrorCode::EntryNotFound);
        assert_eq!(code(&failed(Step::Exec, Some(13))), ErrorCode::JailFailed);
        assert_eq!(code(&failed(Step::Limits, Some(ENOENT))), ErrorCode::JailFailed);
        let text = diagnose(&Failure::Jail(&failed(Step::Limits, None)), vec![]).message;
        assert!(text.contains("`limits`"), "{text}");
    }

    #[test]
    fn a_signal_and_a_lack_of_memory_are_named() {
        let exit = Exit { oom_hint: true, ..exit(Ending::Signal(9)) };
        let reason = diagnose(&Failure::Exited(Some(&exit)), vec![]);
        assert!(reason.message.contains("signal 9") && reason.message.contains("--memory"));
    }
}
