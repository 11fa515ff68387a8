//! Masks known secret values: raw, JSON-escaped, percent-encoded, hex, base64 at its three alignments in both alphabets.
//!
//! Here: finding. How a value may be written is in [`forms`], what a mask does to JSON in [`json`].
//! A net for accidents: who means to leak can encode around it; the egress rules are the boundary.
//! Invariant: where two secrets overlap, all of both is masked.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use zeroize::Zeroizing;

use forms::{Compared, Form};

mod forms;
mod json;

/// What stands in place of a secret.
pub const MASK: &str = "[secret]";
/// Shorter values are not looked for: they would be found everywhere.
pub const SHORTEST: usize = 8;
/// Shorter lines of a longer text are not looked for by themselves.
const SHORTEST_LINE: usize = 16;
/// The automaton knows this much of the beginning of each form; the rest is compared where a beginning was found. So a
/// secret of half a mebibyte costs no more than a short one.
const ANCHOR: usize = 16;

/// The secrets of one instance. Its needles are zeroed on drop as far as the matcher lets us.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Needles>>);

struct Needles {
    anchors: AhoCorasick,
    /// Beside the anchors, in the same order: which secret in which form.
    forms: Vec<(usize, Form)>,
    secrets: Vec<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redactor]")
    }
}

impl Redactor {
    /// Lines of a longer text (a file) that are long enough are secrets of their own, in the forms of text only.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let whole: BTreeSet<&[u8]> = secrets.into_iter().filter(|s| s.len() >= SHORTEST).collect();
        let lines: BTreeSet<&[u8]> = whole
            .iter()
            .filter(|secret| secret.contains(&b'\n'))
            .flat_map(|secret| secret.split(|b| *b == b'\n'))
            .map(<[u8]>::trim_ascii)
            .filter(|line| line.len() >= SHORTEST_LINE && !whole.contains(line))
            .collect();
        if whole.is_empty() {
            return Self::default();
        }
        let secrets: Vec<_> =
            whole.iter().chain(&lines).map(|secret| Zeroizing::new(secret.to_vec())).collect();
        let forms: Vec<(usize, Form)> = secrets
            .iter()
            .enumerate()
            .flat_map(|(at, secret)| {
                let found = if at < whole.len() { forms::all(secret) } else { forms::of_text(secret) };
                found.into_iter().map(move |form| (at, form))
            })
            .collect();
        let beginnings = forms.iter().map(|(at, form)| form.beginning(&secrets[*at], ANCHOR));
        let anchors = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(beginnings.map(Zeroizing::new).map(Beginning))
            .expect("the needles of one service are fewer than the automaton can hold");
        Self(Some(Arc::new(Needles { anchors, forms, secrets })))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Borrowed when nothing was found. In JSON the result is JSON still.
    pub fn mask<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.0.as_ref().map(|needles| needles.find(bytes).0).unwrap_or_default();
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
        let (found, cut) = needles.find(chunk);
        let Some(mut cut) = [cut, needles.cut_early(chunk)].into_iter().flatten().min() else { return 0 };
        // What is found is sorted and does not overlap: at most one lies across the cut.
        if let Some(across) = found.iter().find(|found| found.start < cut && cut < found.end) {
            cut = across.start;
        }
        chunk.len() - cut
    }
}

/// The beginning of a form, zeroed once the automaton has it.
struct Beginning(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Beginning {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Needles {
    /// Where secrets are, sorted and merged where they overlap; and where the first one begins that the end of the text
    /// has cut behind its anchor.
    fn find(&self, text: &[u8]) -> (Vec<Range<usize>>, Option<usize>) {
        let mut found: Vec<Range<usize>> = Vec::new();
        let mut cut: Option<usize> = None;
        for hit in self.anchors.find_overlapping_iter(text) {
            let at = hit.start();
            match self.compare(hit.pattern().as_usize(), &text[at..]) {
                Compared::Whole(len) => found.push(at..at + len),
                Compared::Cut => cut = Some(cut.map_or(at, |first| first.min(at))),
                Compared::Other => {}
            }
        }
        (merged(found), cut)
    }

    /// Where the first secret begins that the end of the text has cut within its anchor.
    fn cut_early(&self, text: &[u8]) -> Option<usize> {
        let is_cut = |needle, at: usize| self.compare(needle, &text[at..]) == Compared::Cut;
        let last = text.len().saturating_sub(ANCHOR - 1)..text.len();
        last.into_iter().find(|at| (0..self.forms.len()).any(|needle| is_cut(needle, *at)))
    }

    fn compare(&self, needle: usize, text: &[u8]) -> Compared {
        let (secret, form) = &self.forms[needle];
        form.compare(&self.secrets[*secret], text)
    }
}

fn merged(mut found: Vec<Range<usize>>) -> Vec<Range<usize>> {
    found.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(found.len());
    for range in found {
        match merged.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
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
