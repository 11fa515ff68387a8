//! Lines from foreign processes, made safe to show: bounded, without control characters or credentials.

use std::collections::VecDeque;

/// Longest line that is passed on, in characters.
const LINE_CHARS: usize = 2_000;
/// How many lines an error carries.
const TAIL_LINES: usize = 20;

/// Cuts a byte stream into lines. Both `\n` and `\r` end one: progress bars redraw with `\r`.
#[derive(Default)]
pub(crate) struct LineCutter {
    partial: Vec<u8>,
}

impl LineCutter {
    pub(crate) fn push(&mut self, chunk: &[u8], mut emit: impl FnMut(String)) {
        for &byte in chunk {
            match byte {
                b'\n' | b'\r' => self.finish(&mut emit),
                // Four bytes are the longest character; more than that per shown character is never needed.
                _ if self.partial.len() < LINE_CHARS * 4 => self.partial.push(byte),
                _ => {}
            }
        }
    }

    pub(crate) fn finish(&mut self, mut emit: impl FnMut(String)) {
        let bytes = std::mem::take(&mut self.partial);
        let line = clean(&String::from_utf8_lossy(&bytes));
        if !line.is_empty() {
            emit(line);
        }
    }
}

/// The last lines of a step.
#[derive(Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    pub(crate) fn push(&mut self, line: String) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

/// Removes terminal sequences and control characters, masks `user:password@` in URLs, cuts at the limit.
pub(crate) fn clean(line: &str) -> String {
    let mut out = String::with_capacity(line.len().min(256));
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut chars),
            '\t' => out.push(' '),
            // Bidirectional overrides can make a line read as another one.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {}
            c => out.push(c),
        }
    }
    mask_userinfo(out.trim_end()).chars().take(LINE_CHARS).collect()
}

/// After ESC: a CSI sequence ends at a byte `@`..`~`, an OSC string at BEL or ESC `\`, others are one character.
fn skip_sequence(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next() {
        Some('[') => {
            for c in chars.by_ref() {
                if ('@'..='~').contains(&c) {
                    return;
                }
            }
        }
        Some(']') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                    return;
                }
            }
        }
        _ => {}
    }
}

fn mask_userinfo(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(|c: char| c == '/' || c.is_whitespace() || c == '"').unwrap_or(tail.len());
        match tail[..end].rfind('@') {
            Some(user) => {
                out.push_str("***");
                rest = &tail[user..];
            }
            None => rest = tail,
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_no_terminal_sequences_and_no_credentials() {
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m\u{1b}]0;title\u{7}\u{8}!"), "red!");
        assert_eq!(
            clean("get https://bo:s3cret@host/x and http://h/y"),
            "get https://***@host/x and http://h/y"
        );
    }

    #[test]
    fn an_endless_line_is_cut_and_a_redraw_is_a_line() {
        let mut cutter = LineCutter::default();
        let mut lines = Vec::new();
        cutter.push(b"10%\r20%\r\n", |l| lines.push(l));
        cutter.push(&vec![b'x'; 1 << 20], |l| lines.push(l));
        cutter.push(b"\xff\n", |l| lines.push(l));
        assert_eq!(lines[..2], ["10%", "20%"]);
        assert_eq!(lines[2].chars().count(), LINE_CHARS);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut tail = Tail::default();
        (0..50).for_each(|n| tail.push(n.to_string()));
        assert_eq!(tail.into_lines().first().map(String::as_str), Some("30"));
    }
}
