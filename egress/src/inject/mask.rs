//! Values in an answer, turned back into placeholders.
//!
//! Here: the forms that a value is repeated in, the search, in streams too. Not here: what an answer is.
//! Invariant: of a form that lies across two chunks no byte is passed on before it is known to be none.
//!
//! A net: a host that means to can write a value in a way that nobody looks for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderValue;
use zeroize::Zeroizing;

/// Shorter ones are in every text.
const SHORTEST: usize = 8;

pub(super) struct Mask {
    forms: Vec<Zeroizing<Vec<u8>>>,
    /// Of the form with the same place.
    placeholders: Vec<String>,
    /// `None`: there is nothing to look for.
    finder: Option<AhoCorasick>,
    /// Which bytes a form begins with.
    first: [bool; 256],
    longest: usize,
}

impl Mask {
    pub(super) fn new(placed: &[(String, Zeroizing<Vec<u8>>)]) -> Self {
        let mut forms: Vec<Zeroizing<Vec<u8>>> = Vec::new();
        let mut placeholders = Vec::new();
        for (placeholder, value) in placed.iter().filter(|(_, value)| value.len() >= SHORTEST) {
            for form in forms_of(value) {
                if !forms.iter().any(|known| **known == *form) {
                    forms.push(form);
                    placeholders.push(placeholder.clone());
                }
            }
        }
        let mut first = [false; 256];
        for byte in forms.iter().filter_map(|form| form.first()) {
            first[usize::from(*byte)] = true;
        }
        let longest = forms.iter().map(|form| form.len()).max().unwrap_or(0);
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostLongest);
        let finder = (!forms.is_empty()).then(|| builder.build(forms.iter().map(|form| form.as_slice())));
        // It can only fail for gigabytes of forms; a value has 8 KiB.
        let finder = finder.map(|built| built.expect("few and short forms"));
        Self { forms, placeholders, finder, first, longest }
    }

    pub(super) fn headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            let bytes = value.as_bytes();
            if self.finder.as_ref().is_some_and(|finder| finder.is_match(bytes)) {
                let mut masked = BytesMut::new();
                self.replace(bytes, bytes.len(), &mut masked);
                // Placeholders are plain text, so what was a value is one still.
                *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static(""));
            }
        }
    }

    /// Writes what begins before `end`, and says where it stopped.
    fn replace(&self, bytes: &[u8], end: usize, into: &mut BytesMut) -> usize {
        let mut from = 0;
        let found = self.finder.iter().flat_map(|finder| finder.find_iter(bytes));
        for found in found.take_while(|found| found.start() < end) {
            into.extend_from_slice(&bytes[from..found.start()]);
            into.extend_from_slice(self.placeholders[found.pattern().as_usize()].as_bytes());
            from = found.end();
        }
        let end = end.max(from);
        into.extend_from_slice(&bytes[from..end]);
        end
    }

    /// Where the end begins that may be the beginning of a form.
    fn open_end(&self, bytes: &[u8]) -> usize {
        let begin = (bytes.len() + 1).saturating_sub(self.longest.max(1));
        let is_open = |at: &usize| {
            let end = &bytes[*at..];
            self.first[usize::from(end[0])]
                && self.forms.iter().any(|form| form.len() > end.len() && form.starts_with(end))
        };
        (begin..bytes.len()).find(is_open).unwrap_or(bytes.len())
    }
}

/// As it is, and as it stands in JSON, in URLs and in base64, alone or inside other text.
fn forms_of(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms = vec![value.to_vec(), json(value, false), json(value, true)];
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        forms.push(percent(value, digits, unreserved));
        forms.push(percent(value, digits, |byte| unreserved(byte) || b"/:@!$'()*,;".contains(&byte)));
        forms.push(value.iter().flat_map(|byte| hex(*byte, digits)).collect());
    }
    for before in 0..3 {
        // Characters that are made of the value's bytes alone.
        let shifted = Zeroizing::new([vec![0; before], value.to_vec()].concat());
        let (from, to) = ((before * 8).div_ceil(6), shifted.len() * 8 / 6);
        for text in [STANDARD_NO_PAD.encode(&*shifted), URL_SAFE_NO_PAD.encode(&*shifted)] {
            let text = Zeroizing::new(text);
            forms.push(text.as_bytes()[from..to].to_vec());
        }
    }
    forms.into_iter().filter(|form| form.len() >= SHORTEST).map(Zeroizing::new).collect()
}

fn json(value: &[u8], escapes_slash: bool) -> Vec<u8> {
    let escaped = |byte: &u8| match *byte {
        b'"' | b'\\' => vec![b'\\', *byte],
        b'/' if escapes_slash => vec![b'\\', b'/'],
        byte => vec![byte],
    };
    value.iter().flat_map(escaped).collect()
}

fn hex(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]
}

fn percent(value: &[u8], digits: &[u8; 16], stays: impl Fn(u8) -> bool) -> Vec<u8> {
    let escaped = |byte: &u8| {
        let [high, low] = hex(*byte, digits);
        if stays(*byte) { vec![*byte] } else { vec![b'%', high, low] }
    };
    value.iter().flat_map(escaped).collect()
}

/// The body of an answer, masked as it comes. Without trailers.
pub(super) struct Masked {
    body: Incoming,
    stream: Stream,
    is_over: bool,
}

/// A text that comes in chunks.
struct Stream {
    mask: Arc<Mask>,
    held: BytesMut,
}

impl Stream {
    fn push(&mut self, chunk: Bytes) -> Bytes {
        let is_plain = |finder: &AhoCorasick| !finder.is_match(&chunk);
        if self.held.is_empty()
            && self.mask.finder.as_ref().is_none_or(is_plain)
            && self.mask.open_end(&chunk) == chunk.len()
        {
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        let end = self.mask.open_end(&self.held);
        self.pass(end)
    }

    fn pass(&mut self, end: usize) -> Bytes {
        let mut passed = BytesMut::with_capacity(end);
        let end = self.mask.replace(&self.held, end, &mut passed);
        let _ = self.held.split_to(end);
        passed.freeze()
    }

    fn finish(&mut self) -> Bytes {
        self.pass(self.held.len())
    }
}

impl Masked {
    pub(super) fn new(body: Incoming, mask: Arc<Mask>) -> Self {
        let is_over = body.is_end_stream();
        Self { body, stream: Stream { mask, held: BytesMut::new() }, is_over }
    }
}

impl Body for Masked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        while !self.is_over {
            let passed = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => self.stream.push(chunk),
                    Err(_trailers) => continue,
                },
                // What was held back of a broken answer is not told.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.is_over = true;
                    self.stream.finish()
                }
            };
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_over { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::super::swap::tests::{ONE, placed};
    use super::*;

    const VALUE: &str = "canary-\"one\"/secret";

    fn through(chunks: &[&[u8]]) -> String {
        let mut stream = Stream { mask: Arc::new(Mask::new(&placed())), held: BytesMut::new() };
        let mut out: Vec<u8> =
            chunks.iter().flat_map(|chunk| stream.push(Bytes::copy_from_slice(chunk))).collect();
        out.extend(stream.finish());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_value_is_found_in_every_form() {
        for form in [
            VALUE.to_owned(),
            r#"canary-\"one\"/secret"#.to_owned(),
            r#"canary-\"one\"\/secret"#.to_owned(),
            "canary-%22one%22%2Fsecret".to_owned(),
            "canary-%22one%22/secret".to_owned(),
            VALUE.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ] {
            assert_eq!(through(&[format!("a {form} b").as_bytes()]), format!("a {ONE} b"));
        }
        for before in ["", "u", "us", "user:"] {
            let out = through(&[STANDARD.encode(format!("{before}{VALUE}")).as_bytes()]);
            assert!(out.contains(ONE), "{out}");
            assert!(out.len() < before.len() * 2 + ONE.len() + 6, "{out}");
        }
    }

    #[test]
    fn nothing_is_held_back_that_can_be_no_value() {
        let mut stream = Stream { mask: Arc::new(Mask::new(&placed())), held: BytesMut::new() };
        assert_eq!(stream.push(Bytes::from_static(b"data: 1\n\n")), "data: 1\n\n");
        assert_eq!(stream.push(Bytes::from_static(b"can")), "");
        assert_eq!(stream.push(Bytes::from_static(b"nery")), "cannery");
    }

    #[test]
    fn headers_are_masked() {
        let mut headers = HeaderMap::new();
        headers.insert("location", HeaderValue::try_from(format!("/?t={VALUE}")).expect("text"));
        Mask::new(&placed()).headers(&mut headers);
        assert_eq!(headers["location"], format!("/?t={ONE}"));
    }

    proptest! {
        #[test]
        fn wherever_it_is_cut_a_value_is_found(before in "[a-z%]{0,20}", after in "[a-z%]{0,20}", cuts in proptest::collection::vec(0usize..70, 0..6)) {
            let text = format!("{before}{VALUE}{after}{VALUE}");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(through(&chunks), format!("{}{}{}{}", before, ONE, after, ONE));
        }

        #[test]
        fn other_bytes_are_passed_on_as_they_are(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6)) {
            let mut stream = Stream { mask: Arc::new(Mask::new(&placed())), held: BytesMut::new() };
            let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| stream.push(Bytes::copy_from_slice(chunk))).collect();
            out.extend(stream.finish());
            prop_assert_eq!(out, chunks.concat());
        }
    }
}
