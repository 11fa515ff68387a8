//! A service's log: the last lines it and its package manager wrote, clean enough for a terminal.
//!
//! Here: the ring, the cleaning, following. Not here: reading pipes (see [`crate::instance`]), HTTP.
//! Invariant: a line holds no control character, no escape sequence and at most 4 KiB.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use wire::report::LogLine;

use crate::masking::Masking;

/// Lines kept per service.
pub const KEPT: usize = 1000;
/// Bytes kept of one line.
pub const LINE_BYTES: usize = 4096;
/// Lines that a follower may be behind before it loses some.
const FOLLOW_QUEUE: usize = 1024;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stderr,
    Stdout,
    Install,
    Runner,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stderr => "stderr",
            Self::Stdout => "stdout",
            Self::Install => "install",
            Self::Runner => "runner",
        }
    }
}

/// Shared by everything that writes for one service. Outlives its generations.
pub struct LogRing {
    kept: Mutex<Kept>,
    follow: broadcast::Sender<Arc<LogLine>>,
}

struct Kept {
    lines: VecDeque<Arc<LogLine>>,
    next: u64,
}

impl Default for LogRing {
    fn default() -> Self {
        let kept = Kept { lines: VecDeque::new(), next: 1 };
        Self { kept: Mutex::new(kept), follow: broadcast::Sender::new(FOLLOW_QUEUE) }
    }
}

impl LogRing {
    /// Adds `raw` as one line per line break; empty lines are left out.
    pub fn push(&self, stream: Stream, raw: &str) {
        raw.split(['\n', '\r']).map(clean).for_each(|line| self.add(stream, line));
    }

    /// A line that is clean.
    fn add(&self, stream: Stream, text: String) {
        if text.trim().is_empty() {
            return;
        }
        let mut kept = self.lock();
        let line = LogLine { seq: kept.next, at_ms: now_ms(), stream: stream.as_str().to_owned(), text };
        let line = Arc::new(line);
        kept.next += 1;
        if kept.lines.len() == KEPT {
            kept.lines.pop_front();
        }
        kept.lines.push_back(line.clone());
        // Sent under the lock, so that a follower sees the order of `seq`. Nobody following is no error.
        let _ = self.follow.send(line);
    }

    /// The last `n` lines, oldest first.
    pub fn tail(&self, n: usize) -> Vec<Arc<LogLine>> {
        let kept = self.lock();
        kept.lines.iter().skip(kept.lines.len().saturating_sub(n)).cloned().collect()
    }

    /// The last `n` lines and, without gap or overlap, those to come.
    pub fn follow(&self, n: usize) -> (Vec<Arc<LogLine>>, broadcast::Receiver<Arc<LogLine>>) {
        let kept = self.lock();
        let past = kept.lines.iter().skip(kept.lines.len().saturating_sub(n)).cloned().collect();
        (past, self.follow.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One instance's way into the log of its service; remembers its own last words, which say why it failed. Its secrets are
/// masked in both.
pub struct Voice {
    ring: Arc<LogRing>,
    pub masking: Masking,
    last: Mutex<VecDeque<String>>,
}

/// Lines that a failure quotes.
const LAST_WORDS: usize = 20;

impl Voice {
    pub fn new(ring: Arc<LogRing>, masking: Masking) -> Self {
        Self { ring, masking, last: Mutex::new(VecDeque::new()) }
    }

    /// Logs `raw`, and remembers it when it is the instance's own output.
    pub fn say(&self, stream: Stream, raw: impl AsRef<[u8]>) {
        // Before anything is cut or rewritten: half a secret, or one in other characters, is not found any more.
        let masked = self.masking.bytes(raw.as_ref());
        let text = String::from_utf8_lossy(&masked);
        for line in text.split(['\n', '\r']).map(|part| self.clean(part)) {
            if matches!(stream, Stream::Stderr | Stream::Stdout) && !line.trim().is_empty() {
                let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if last.len() == LAST_WORDS {
                    last.pop_front();
                }
                last.push_back(line.clone());
            }
            self.ring.add(stream, line);
        }
    }

    /// Masked once more without its escape sequences: a secret in two colours is whole again.
    fn clean(&self, part: &str) -> String {
        if self.masking.is_empty() || !part.contains('\u{1b}') {
            return clean(part);
        }
        clean(&self.masking.text(&without_escapes(part, usize::MAX)))
    }

    /// At most 20 lines.
    pub fn last_words(&self) -> Vec<String> {
        self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Removes escape sequences; writes other control characters, and those that reorder or hide text, as `\u{…}`; cuts at
/// [`LINE_BYTES`].
pub fn clean(raw: &str) -> String {
    let mut text = wire::text::printable_line(&without_escapes(raw, LINE_BYTES)).into_owned();
    if text.len() > LINE_BYTES {
        while text.len() > LINE_BYTES - '…'.len_utf8() {
            text.pop();
        }
        text.push('…');
    }
    text
}

/// And without tabs. Of a longer text, more than `most` bytes.
fn without_escapes(raw: &str, most: usize) -> String {
    let mut text = String::with_capacity(raw.len().min(most));
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => skip_escape(&mut chars),
            '\t' => text.push(' '),
            c => text.push(c),
        }
        if text.len() > most {
            break;
        }
    }
    text
}

/// ECMA-48: CSI ends with `@`–`~`, string sequences (OSC, DCS, …) with BEL or ST, others take one character.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next() {
        Some('[') => while chars.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' {
                    break;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    break;
                }
            }
        }
        Some('(' | ')' | '#' | ' ') => {
            chars.next();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_removed_and_what_hides_or_reorders_is_shown() {
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m"), "red");
        assert_eq!(clean("\u{1b}]8;;http://x\u{7}link\u{1b}]8;;\u{1b}\\!"), "link!");
        assert_eq!(clean("a\0b\tc\u{202e}d\u{9b}e\u{200b}"), r"a\u{0}b c\u{202e}d\u{9b}e\u{200b}");
        assert_eq!(clean("\u{1b}(Bok"), "ok");
        assert_eq!(clean("\u{1b}[31"), "");
    }

    #[test]
    fn a_line_is_cut_at_a_character_and_says_so() {
        let text = clean(&"é".repeat(5000));
        assert!(text.len() <= LINE_BYTES && text.ends_with('…'));
    }

    #[test]
    fn one_message_with_line_breaks_can_not_forge_a_line_of_another_stream() {
        let ring = LogRing::default();
        ring.push(Stream::Stderr, "one\r\ntwo\n\nthree");
        let lines = ring.tail(10);
        assert_eq!(
            lines.iter().map(|l| (l.seq, l.text.as_str())).collect::<Vec<_>>(),
            [(1, "one"), (2, "two"), (3, "three")]
        );
        assert!(lines.iter().all(|l| l.stream == "stderr"));
    }

    #[test]
    fn the_ring_keeps_the_newest_and_a_follower_misses_nothing() {
        let ring = LogRing::default();
        for n in 0..KEPT + 5 {
            ring.push(Stream::Install, &format!("line {n}"));
        }
        assert_eq!(ring.tail(usize::MAX).len(), KEPT);
        let (past, mut follow) = ring.follow(2);
        ring.push(Stream::Runner, "new");
        assert_eq!(past.last().map(|l| l.seq), Some(1005));
        assert_eq!(follow.try_recv().expect("follows").seq, 1006);
    }

    #[test]
    fn an_instance_remembers_its_own_last_words_only() {
        let ring = Arc::new(LogRing::default());
        let voice = || Voice::new(ring.clone(), Masking::default());
        let (one, two) = (voice(), voice());
        for n in 0..30 {
            one.say(Stream::Stderr, format!("one {n}"));
        }
        two.say(Stream::Stdout, "two");
        two.say(Stream::Runner, "ours");
        assert_eq!(one.last_words().len(), LAST_WORDS);
        assert_eq!(one.last_words().last().map(String::as_str), Some("one 29"));
        assert_eq!(two.last_words(), ["two"]);
        assert_eq!(ring.tail(100).len(), 32);
    }

    #[test]
    fn a_secret_is_masked_before_its_line_is_cut_and_after_its_colours_are_gone() {
        let ring = Arc::new(LogRing::default());
        let redactor = vault::Redactor::new([&b"canary-7f3a91"[..]]);
        let voice = Voice::new(ring.clone(), Masking::new(redactor, true));
        voice.say(Stream::Stderr, format!("{}canary-7f3a91", "x".repeat(LINE_BYTES - 6)));
        voice.say(Stream::Stdout, "bad \u{1b}[31mcanary-\u{1b}[0m7f3a91!");
        voice.say(Stream::Runner, b"\xff canary-7f3a91 \xff");
        let all: Vec<_> = ring.tail(9).iter().map(|line| line.text.clone()).collect();
        assert!(!all.concat().contains("canary"), "{all:?}");
        assert_eq!(all[1..], ["bad [secret]!", "\u{fffd} [secret] \u{fffd}"]);
        assert_eq!(voice.last_words(), all[..2]);
    }
}
