//! One line that a hosted server wrote.
#![no_main]

use runner::mcp::frame::{self, Message};
use serde_json::value::RawValue;

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    // The connection cuts lines, and asks for the depth, before anything else.
    if line.contains(&b'\n') || frame::is_too_deep(line) {
        return;
    }
    one(line);
    if let Ok(params) = serde_json::from_slice::<&RawValue>(line) {
        edits(params);
    }
});

fn one(text: &[u8]) {
    match frame::read(text) {
        Some(Message::Request { id, .. }) => {
            let mut answer = Vec::new();
            frame::write_answer(&mut answer, id, "\"result\":{}");
            assert_one_line(&answer);
        }
        Some(Message::Notification { params: Some(params), method }) => {
            let mut line = Vec::new();
            frame::write_notification(&mut line, &method, Some(params.get()));
            assert_one_line(&line);
            edits(params);
        }
        _ => {}
    }
}

fn edits(params: &RawValue) {
    if let Ok(edited) = frame::outgoing(Some(params.get()), Some("\"ours\""), &[("key", "1".to_owned())]) {
        let edited = edited.params.expect("there were some");
        serde_json::from_str::<&RawValue>(&edited).expect("an edit leaves JSON");
        let mut line = Vec::new();
        frame::write_request(&mut line, "1", "tools/call", Some(&edited));
        assert_one_line(&line);
    }
    if let Some(edited) = frame::with_token(params, "\"theirs\"") {
        serde_json::from_str::<&RawValue>(&edited).expect("an edit leaves JSON");
    }
}

fn assert_one_line(line: &[u8]) {
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
    serde_json::from_slice::<&RawValue>(line).expect("it is JSON");
}
