//! Masks in JSON that leave it JSON: only what is inside strings, and whole numbers, are replaced.
//!
//! Not here: whether it is valid; a text that only looks like JSON loses its secrets all the same.

use std::ops::Range;

use super::MASK;

/// `None` when this is no JSON object, array or string.
pub(super) fn mask(text: &[u8], found: &[Range<usize>]) -> Option<Vec<u8>> {
    if !matches!(text.trim_ascii_start().first(), Some(b'{' | b'[' | b'"')) {
        return None;
    }
    let mut writer = Writer { text, found, masked: Vec::with_capacity(text.len()), last: None };
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let len = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | b'{' | b'}' | b'[' | b']' | b',' | b':' => {
                writer.copy(at..at + 1);
                1
            }
            b'"' => writer.string(at)?,
            b'-' | b'0'..=b'9' => writer.number(at),
            _ => writer.literal(at)?,
        };
        at += len;
    }
    Some(writer.masked)
}

struct Writer<'a> {
    text: &'a [u8],
    /// Sorted, without overlaps; what lies behind is gone.
    found: &'a [Range<usize>],
    masked: Vec<u8>,
    /// Where the secret began whose mask was written last, so that it is written once.
    last: Option<usize>,
}

impl Writer<'_> {
    fn copy(&mut self, range: Range<usize>) {
        self.masked.extend_from_slice(&self.text[range]);
    }

    /// Where the secret begins that this part has a byte of.
    fn secret_in(&mut self, part: &Range<usize>) -> Option<usize> {
        while self.found.first().is_some_and(|found| found.end <= part.start) {
            self.found = &self.found[1..];
        }
        self.found.first().filter(|found| found.start < part.end).map(|found| found.start)
    }

    /// From quote to quote, character by character; answers its length.
    fn string(&mut self, start: usize) -> Option<usize> {
        self.copy(start..start + 1);
        self.last = None;
        let mut at = start + 1;
        loop {
            if *self.text.get(at)? == b'"' {
                self.copy(at..at + 1);
                return Some(at + 1 - start);
            }
            let part = at..at + character(&self.text[at..])?;
            match self.secret_in(&part) {
                None => self.copy(part.clone()),
                secret if secret == self.last => {}
                secret => {
                    self.masked.extend_from_slice(MASK.as_bytes());
                    self.last = secret;
                }
            }
            at = part.end;
        }
    }

    fn number(&mut self, start: usize) -> usize {
        let is_part = |b: &&u8| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let len = self.text[start..].iter().take_while(is_part).count();
        match self.secret_in(&(start..start + len)) {
            None => self.copy(start..start + len),
            Some(_) => self.masked.extend_from_slice(format!("\"{MASK}\"").as_bytes()),
        }
        len
    }

    fn literal(&mut self, start: usize) -> Option<usize> {
        let rest = &self.text[start..];
        let literal = [&b"true"[..], b"false", b"null"].into_iter().find(|word| rest.starts_with(word))?;
        self.copy(start..start + literal.len());
        Some(literal.len())
    }
}

/// Bytes of the first character of a string's inside: an escape, with both halves of a surrogate pair, or UTF-8.
fn character(text: &[u8]) -> Option<usize> {
    let len = match text {
        [b'\\', b'u', rest @ ..] => {
            let is_high = matches!(rest, [b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..]);
            if is_high && rest.get(4..6) == Some(b"\\u") { 12 } else { 6 }
        }
        [b'\\', ..] => 2,
        [0xc0..=0xdf, ..] => 2,
        [0xe0..=0xef, ..] => 3,
        [0xf0..=0xff, ..] => 4,
        _ => 1,
    };
    (len <= text.len()).then_some(len)
}
