//! What a server writes to stderr, line by line into its log.
//!
//! Here: reading at a bounded pace, lines without an end. Not here: masking and cleaning (see [`crate::logs`]).
//! Invariant: a line that never ends costs no more memory than a line of the log and the longest secret, and a secret is
//! never cut in two.

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::logs::{LINE_BYTES, Stream, Voice};
use crate::rate::{self, Bucket};

/// Until its end.
pub async fn read(mut errors: pipe::Receiver, voice: Arc<Voice>) {
    let mut text = Unsaid { bytes: Vec::with_capacity(2 * LINE_BYTES), seen: 0 };
    let mut lines = Bucket::new(rate::LINES);
    let mut was_held = false;
    loop {
        if let Some(until) = lines.held_until() {
            metrics::counter!("claudemesh_runner_held_total", "stream" => "stderr").increment(1);
            if !was_held {
                voice
                    .say(Stream::Runner, "the server logs faster than is taken and is held back (said once)");
            }
            was_held = true;
            tokio::time::sleep_until(until).await;
        }
        match errors.read_buf(&mut text.bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) => lines.take(text.say(&voice)),
        }
    }
    voice.say(Stream::Stderr, &text.bytes);
}

/// What was read of a line whose end was not.
struct Unsaid {
    bytes: Vec<u8>,
    /// Of them, those that hold no line break.
    seen: usize,
}

impl Unsaid {
    /// Says whole lines, and of a line that is too long what can be said of it already. How many lines that were.
    fn say(&mut self, voice: &Voice) -> f64 {
        let mut said = 0.0;
        while let Some(at) = memchr::memchr(b'\n', &self.bytes[self.seen..]) {
            said += 1.0;
            voice.say(Stream::Stderr, &self.bytes[..self.seen + at]);
            self.bytes.drain(..=self.seen + at);
            self.seen = 0;
        }
        if self.bytes.len() >= LINE_BYTES {
            said += 1.0;
            // What may be the beginning of a secret waits for its end.
            let whole = self.bytes.len() - voice.masking.tail(&self.bytes);
            voice.say(Stream::Stderr, &self.bytes[..whole]);
            self.bytes.drain(..whole);
        }
        self.seen = self.bytes.len();
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::LogRing;
    use crate::masking::Masking;

    const SECRET: &str = "canary-7f3a91-canary";

    fn heard(chunks: &[&str]) -> Vec<String> {
        let ring = Arc::new(LogRing::default());
        let redactor = vault::Redactor::new([SECRET.as_bytes()]);
        let voice = Voice::new(ring.clone(), Masking::new(redactor, true));
        let mut text = Unsaid { bytes: vec![], seen: 0 };
        for chunk in chunks {
            text.bytes.extend_from_slice(chunk.as_bytes());
            text.say(&voice);
        }
        voice.say(Stream::Stderr, &text.bytes);
        ring.tail(100).iter().map(|line| line.text.clone()).collect()
    }

    #[test]
    fn lines_are_said_whole_from_any_pieces() {
        assert_eq!(heard(&["o", "ne\ntw", "o\n\nthree"]), ["one", "two", "three"]);
    }

    #[test]
    fn a_secret_is_masked_wherever_the_pieces_of_an_endless_line_end() {
        let filler = "x".repeat(LINE_BYTES - 5);
        for cut in 0..=SECRET.len() {
            let (head, tail) = SECRET.split_at(cut);
            let lines = heard(&[&filler, head, tail, "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"]);
            let all = lines.concat();
            assert!(!all.contains("canary") && !all.contains("7f3a"), "cut at {cut}: {all}");
            assert!(all.contains("[secret]yyy"), "cut at {cut}: {all}");
        }
    }

    #[test]
    fn a_line_without_end_is_said_in_pieces() {
        let lines = heard(&[&"x".repeat(LINE_BYTES), &"y".repeat(LINE_BYTES), "z"]);
        assert_eq!(lines.len(), 3);
    }
}
