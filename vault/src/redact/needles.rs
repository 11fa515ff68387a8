//! What is looked for in a text, and where it is.
//!
//! A form is known by its first sixteen bytes; the rest is compared where these were found, so that a secret of half a
//! mebibyte costs no more than a short one. Invariant: the work on a text is bounded by its length, whatever the secrets
//! are; a text that needs more of it is one secret as a whole.

use std::collections::BTreeSet;
use std::ops::Range;

use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use super::forms::{self, Compared, Form};
use super::{Found, SHORTEST};

/// Shorter lines of a longer text are not looked for by themselves, nor are shorter texts in JSON.
const SHORTEST_LINE: usize = 16;
/// Of one secret. A file with more lines is not read aloud line by line.
const MOST_LINES: usize = 1024;
/// Bytes of one line of base64 of 64 (RFC 7468) and 76 characters (RFC 2045).
const BASE64_LINES: [usize; 2] = [48, 57];
/// A larger value is no JSON that is looked into.
const MOST_JSON: usize = 64 << 10;
const ANCHOR: usize = 16;
/// Comparisons for each byte of a text, beside so many for all of it.
const STEPS: usize = 16;
const STEPS_ALWAYS: usize = 1 << 20;

pub(super) struct Needles {
    secrets: Vec<Zeroizing<Vec<u8>>>,
    /// Forms with a whole anchor, and those that are shorter than one.
    long: Sorted,
    short: Sorted,
    filter: Filter,
}

struct Sorted {
    /// The beginning of each form, as one big-endian number.
    anchors: Zeroizing<Vec<u128>>,
    /// Beside the anchors, in the same order.
    needles: Vec<Needle>,
}

/// A part of a secret in one form.
#[derive(Clone, Copy)]
struct Needle {
    secret: usize,
    start: usize,
    end: usize,
    form: Form,
    /// Bytes of its anchor.
    known: usize,
}

impl Needles {
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Self {
        let secrets = with_texts_of_json(secrets.collect());
        let mut forms = Vec::new();
        for (secret, bytes) in secrets.iter().enumerate() {
            let needle = |(part, form): (Range<usize>, Form)| {
                let Range { start, end } = part;
                Needle { secret, start, end, form, known: 0 }
            };
            forms.extend(parts(bytes).into_iter().map(needle));
        }
        // None of these grows: a vector that does leaves copies behind.
        let mut anchors = Zeroizing::new(Vec::with_capacity(forms.len()));
        for needle in &mut forms {
            let beginning = Zeroizing::new(needle.form.beginning(needle.value(&secrets), ANCHOR));
            needle.known = beginning.len();
            anchors.push(number(&beginning));
        }
        let mut order: Vec<usize> = (0..forms.len()).collect();
        order.sort_unstable_by_key(|at| anchors[*at]);
        let mut sorted = [Sorted::with_room(forms.len()), Sorted::with_room(forms.len())];
        for at in order {
            let sorted = &mut sorted[usize::from(forms[at].known < ANCHOR)];
            sorted.anchors.push(anchors[at]);
            sorted.needles.push(forms[at]);
        }
        let [long, short] = sorted;
        let filter = Filter::new(&anchors);
        Self { secrets, long, short, filter }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.long.needles.is_empty() && self.short.needles.is_empty()
    }

    pub(super) fn find(&self, text: &[u8]) -> Found {
        let mut found = Found { secrets: Vec::new(), cut: None };
        let mut steps = text.len().saturating_mul(STEPS).saturating_add(STEPS_ALWAYS);
        for (at, word) in text.windows(SHORTEST).enumerate() {
            let word = u64::from_be_bytes(word.try_into().expect("a window is eight bytes"));
            if !self.filter.may_hold(word) {
                continue;
            }
            let here = &text[at..];
            let long = self.long.beginning_with(here, here.len().min(ANCHOR));
            for needle in long.iter().chain(self.short.beginning_with(here, SHORTEST)) {
                steps = steps.saturating_sub(1);
                match needle.form.compare(needle.value(&self.secrets), here, &mut steps) {
                    Compared::Whole(len) => found.secrets.push(at..at + len),
                    Compared::Cut => found.cut = found.cut.or(Some(at)),
                    Compared::Other => {}
                }
                if steps == 0 {
                    return Found { secrets: std::iter::once(0..text.len()).collect(), cut: None };
                }
            }
        }
        // Too short for a word: every form is longer.
        let mut last = text.len().saturating_sub(SHORTEST - 1)..text.len();
        let begins = |sorted: &Sorted, at| !sorted.beginning_with(&text[at..], text.len() - at).is_empty();
        let early = last.find(|at| begins(&self.long, *at) || begins(&self.short, *at));
        found.cut = found.cut.or(early);
        found.secrets = merged(found.secrets);
        found
    }
}

impl Sorted {
    fn with_room(len: usize) -> Self {
        Self { anchors: Zeroizing::new(Vec::with_capacity(len)), needles: Vec::new() }
    }

    /// The forms that begin with the first `len` bytes of a text, at most [`ANCHOR`].
    fn beginning_with(&self, text: &[u8], len: usize) -> &[Needle] {
        let first = number(&text[..len]);
        let last = first | u128::MAX.checked_shr(8 * len as u32).unwrap_or(0);
        let from = self.anchors.partition_point(|anchor| *anchor < first);
        let some = self.anchors[from..].partition_point(|anchor| *anchor <= last);
        &self.needles[from..from + some]
    }
}

impl Needle {
    fn value(self, secrets: &[Zeroizing<Vec<u8>>]) -> &[u8] {
        &secrets[self.secret][self.start..self.end]
    }
}

/// At most [`ANCHOR`] bytes, zeros behind them.
fn number(bytes: &[u8]) -> u128 {
    let mut all = [0; ANCHOR];
    all[..bytes.len()].copy_from_slice(bytes);
    u128::from_be_bytes(all)
}

/// Parts of a secret that are looked for, each in the forms in which it is.
fn parts(secret: &[u8]) -> Vec<(Range<usize>, Form)> {
    let in_forms =
        |part: Range<usize>, forms: Vec<Form>| forms.into_iter().map(move |form| (part.clone(), form));
    let mut parts: Vec<_> = in_forms(0..secret.len(), forms::all(secret)).collect();
    for part in lines(secret) {
        parts.extend(in_forms(part.clone(), forms::of_text(&secret[part])));
    }
    for width in BASE64_LINES.into_iter().filter(|width| secret.len() > *width) {
        for start in (0..secret.len()).step_by(width) {
            let part = start..secret.len().min(start + width);
            if part.len() >= SHORTEST_LINE {
                parts.extend(in_forms(part.clone(), forms::of_base64_line(&secret[part])));
            }
        }
    }
    parts
}

/// Where the long lines of a longer text are, without the white space around them.
fn lines(secret: &[u8]) -> Vec<Range<usize>> {
    if !secret.contains(&b'\n') {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut start = 0;
    let lines = secret.split(|b| *b == b'\n').map(|line| {
        let from = start + line.len() - line.trim_ascii_start().len();
        start += line.len() + 1;
        from..from + line.trim_ascii().len()
    });
    let is_new = |line: &Range<usize>| line.len() >= SHORTEST_LINE && seen.insert(&secret[line.clone()]);
    lines.filter(is_new).take(MOST_LINES).collect()
}

/// The secrets, and the texts in those that are a JSON object: a program reads such a file and shows what is in it. Addresses
/// are no secrets, and would be missed in results.
fn with_texts_of_json(secrets: Vec<&[u8]>) -> Vec<Zeroizing<Vec<u8>>> {
    let mut all: BTreeSet<Vec<u8>> = secrets.iter().map(|secret| secret.to_vec()).collect();
    for secret in secrets.into_iter().filter(|secret| secret.len() <= MOST_JSON) {
        if secret.trim_ascii_start().first() == Some(&b'{')
            && let Ok(value) = serde_json::from_slice(secret)
        {
            take_texts(value, &mut all);
        }
    }
    all.into_iter().map(Zeroizing::new).collect()
}

fn take_texts(value: Value, texts: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::String(text) => {
            let mut text = text.into_bytes();
            let is_address = text.windows(3).any(|part| part == b"://");
            if text.len() < SHORTEST_LINE || is_address || texts.contains(&text) {
                text.zeroize();
            } else {
                texts.insert(text);
            }
        }
        Value::Array(values) => values.into_iter().for_each(|value| take_texts(value, texts)),
        Value::Object(fields) => fields.into_iter().for_each(|(_, value)| take_texts(value, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Tells most words that begin no form, without a look at the forms.
struct Filter {
    bits: Vec<u64>,
    shift: u32,
}

impl Filter {
    /// Of sixteen bits for each anchor one is set.
    fn new(anchors: &[u128]) -> Self {
        let size = (anchors.len() * 16).next_power_of_two().max(4096);
        let mut filter = Self { bits: vec![0; size / 64], shift: 64 - size.ilog2() };
        for anchor in anchors {
            let (word, bit) = filter.place((*anchor >> 64) as u64);
            filter.bits[word] |= bit;
        }
        filter
    }

    /// Fibonacci hashing (Knuth, TAOCP 3, 6.4).
    fn place(&self, word: u64) -> (usize, u64) {
        let hash = word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    fn may_hold(&self, word: u64) -> bool {
        let (word, bit) = self.place(word);
        self.bits[word] & bit != 0
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
