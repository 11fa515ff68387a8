//! Masks known secret values: raw, JSON-escaped, percent-encoded, hex, base64 at its three alignments in both alphabets.
//!
//! Here: masking. What is looked for and how it is found is in [`needles`], how a value may be written in [`forms`], what a
//! mask does to JSON in [`json`].
//! A net for accidents: who means to leak can encode around it; the egress rules are the boundary.
//! Invariant: where two secrets overlap, all of both is masked.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use needles::Needles;

mod forms;
mod json;
mod needles;

/// What stands in place of a secret.
pub const MASK: &str = "[secret]";
/// Shorter values are not looked for: they would be found everywhere.
pub const SHORTEST: usize = 8;

/// The secrets of one instance. What it knows of them is zeroed on drop.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Needles>>);

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redactor]")
    }
}

impl Redactor {
    /// Lines of a longer text (a file) that are long enough are secrets of their own, in the forms of text only; so are the
    /// texts in a value that is a JSON object, and the lines that base64 is broken into.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let needles = Needles::new(secrets.into_iter().filter(|secret| secret.len() >= SHORTEST));
        Self((!needles.is_empty()).then(|| Arc::new(needles)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Borrowed when nothing was found. In JSON the result is JSON still.
    pub fn mask<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.0.as_ref().map(|needles| needles.find(bytes).secrets).unwrap_or_default();
        if found.is_empty() {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned(json::mask(bytes, &found).unwrap_or_else(|| mask_plain(bytes, &found)))
    }

    pub fn mask_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.mask(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            // A secret that is no text may end inside a character.
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// How many last bytes of a chunk may be the beginning of a secret that ends in the next one: hold them back, and put
    /// them before the next chunk. At most the longest form of a secret. Pieces that are cut there and masked one by one
    /// are together what the whole would be, if that is no JSON.
    pub fn tail(&self, chunk: &[u8]) -> usize {
        let Some(needles) = &self.0 else { return 0 };
        let Found { secrets, cut: Some(mut cut) } = needles.find(chunk) else { return 0 };
        // What is found is sorted and does not overlap: at most one lies across the cut.
        if let Some(across) = secrets.iter().find(|found| found.start < cut && cut < found.end) {
            cut = across.start;
        }
        chunk.len() - cut
    }
}

/// What there is in a text.
struct Found {
    /// Sorted, and merged where they overlap.
    secrets: Vec<Range<usize>>,
    /// Where the first one begins that the end of the text cuts.
    cut: Option<usize>,
}

fn mask_plain(bytes: &[u8], found: &[Range<usize>]) -> Vec<u8> {
    let mut masked = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for range in found {
        masked.extend_from_slice(&bytes[at..range.start]);
        masked.extend_from_slice(MASK.as_bytes());
        at = range.end;
    }
    masked.extend_from_slice(&bytes[at..]);
    masked
}

#[cfg(test)]
mod tests;
