//! In which forms a value may be written, one byte after the other: a form of a long value is never in memory as a whole.
//!
//! Not here: finding. Every writer stops as soon as `put` answers `false`.

use base64::Engine;
use base64::alphabet;

/// One way to write a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Form {
    text: Text,
    /// `/` as `\/`, which JSON allows.
    escaped_slash: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Text {
    Raw,
    /// Inside a JSON string.
    Json,
    /// Inside a JSON string that has no characters but those of ASCII.
    JsonAscii,
    /// Inside a JSON string of a JSON document that is itself in a JSON string.
    JsonTwice,
    /// The same, the inner one with no characters but those of ASCII.
    JsonAsciiTwice,
    Percent {
        unreserved: Unreserved,
        upper: bool,
    },
    Hex {
        upper: bool,
    },
    /// As a part of something longer: so many bytes after a multiple of three, without the characters that depend on
    /// what stands before and after it.
    Base64 {
        after: usize,
        url: bool,
    },
    /// By itself, with padding.
    Base64Alone {
        url: bool,
    },
}

/// What percent-encoding leaves as it is, beside letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unreserved {
    /// RFC 3986.
    Uri,
    /// The same, but for a path.
    Path,
    /// JavaScript's `encodeURIComponent`.
    JavaScript,
    /// `application/x-www-form-urlencoded`.
    Form,
}

type Put<'a> = &'a mut dyn FnMut(u8) -> bool;

/// How a text begins, against a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compared {
    /// With the whole form, of so many bytes.
    Whole(usize),
    /// It ends before the form does.
    Cut,
    Other,
}

/// The forms of a text that differ from each other.
pub(super) fn of_text(value: &[u8]) -> Vec<Form> {
    let escapes = value.iter().any(|b| matches!(b, b'"' | b'\\' | 0..0x20));
    let is_unicode = !value.is_ascii() && std::str::from_utf8(value).is_ok();
    let mut texts = vec![Text::Raw];
    if escapes {
        texts.extend([Text::Json, Text::JsonTwice]);
    }
    if is_unicode {
        texts.extend([Text::JsonAscii, Text::JsonAsciiTwice]);
    }
    with_slashes(&texts, value.contains(&b'/'))
}

/// A line of base64 that was broken into lines.
pub(super) fn of_base64_line(value: &[u8]) -> Vec<Form> {
    let after = 0;
    let mut forms = base64_forms(value, |url| Text::Base64 { after, url });
    // The one that ends with padding.
    if !value.len().is_multiple_of(3) {
        forms.extend(base64_forms(value, |url| Text::Base64Alone { url }));
    }
    forms
}

fn with_slashes(texts: &[Text], has_slash: bool) -> Vec<Form> {
    let plain = texts.iter().map(|text| Form { text: *text, escaped_slash: false });
    let escaped = texts.iter().filter(|_| has_slash).map(|text| Form { text: *text, escaped_slash: true });
    plain.chain(escaped).collect()
}

/// All forms of a value that differ from each other.
pub(super) fn all(value: &[u8]) -> Vec<Form> {
    let mut forms = of_text(value);
    let mut texts = Vec::new();
    for unreserved in [Unreserved::Uri, Unreserved::Path, Unreserved::JavaScript, Unreserved::Form] {
        if value.iter().any(|b| !unreserved.keeps(*b)) {
            texts.extend([true, false].map(|upper| Text::Percent { unreserved, upper }));
        }
    }
    texts.extend([true, false].map(|upper| Text::Hex { upper }));
    forms.extend(with_slashes(&texts, false));
    for after in 0..3 {
        forms.extend(base64_forms(value, |url| Text::Base64 { after, url }));
    }
    if !value.len().is_multiple_of(3) {
        forms.extend(base64_forms(value, |url| Text::Base64Alone { url }));
    }
    forms
}

/// Both alphabets where they differ, and escaped slashes where there are any.
fn base64_forms(value: &[u8], text: impl Fn(bool) -> Text) -> Vec<Form> {
    // In a long one there will be some.
    let (mut has_slash, mut has_special) = (value.len() > 64, value.len() > 64);
    let _ = has_slash
        || text(false).write(value, &mut |b| {
            has_slash |= b == b'/';
            has_special |= matches!(b, b'+' | b'/');
            true
        });
    let mut forms = with_slashes(&[text(false)], has_slash);
    if has_special {
        forms.push(Form { text: text(true), escaped_slash: false });
    }
    forms
}

impl Unreserved {
    fn keeps(self, byte: u8) -> bool {
        let others: &[u8] = match self {
            Self::Uri => b"-_.~",
            Self::Path => b"-_.~/",
            Self::JavaScript => b"-_.~!*'()",
            Self::Form => b"-_.*",
        };
        byte.is_ascii_alphanumeric() || others.contains(&byte)
    }
}

impl Form {
    /// The first `most` bytes.
    pub(super) fn beginning(self, value: &[u8], most: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(most);
        self.write(value, &mut |b| {
            bytes.push(b);
            bytes.len() < most
        });
        bytes
    }

    /// Takes a step for each byte.
    pub(super) fn compare(self, value: &[u8], text: &[u8], steps: &mut usize) -> Compared {
        let (mut len, mut result) = (0, None);
        self.write(value, &mut |b| {
            match text.get(len) {
                None => result = Some(Compared::Cut),
                Some(there) if *there != b => result = Some(Compared::Other),
                Some(_) => len += 1,
            }
            result.is_none()
        });
        *steps = steps.saturating_sub(len);
        result.unwrap_or(Compared::Whole(len))
    }

    fn write(self, value: &[u8], put: Put<'_>) -> bool {
        if !self.escaped_slash {
            return self.text.write(value, put);
        }
        self.text.write(value, &mut |b| if b == b'/' { put(b'\\') && put(b) } else { put(b) })
    }
}

impl Text {
    fn write(self, value: &[u8], put: Put<'_>) -> bool {
        match self {
            Self::Raw => value.iter().all(|b| put(*b)),
            Self::Json => value.iter().all(|b| json(*b, put)),
            Self::JsonTwice => value.iter().all(|b| json(*b, &mut |b| json(b, put))),
            Self::JsonAscii => json_ascii(value, put),
            Self::JsonAsciiTwice => json_ascii(value, &mut |b| json(b, put)),
            Self::Percent { unreserved, upper } => value.iter().all(|b| match b {
                b if unreserved.keeps(*b) => put(*b),
                b' ' if unreserved == Unreserved::Form => put(b'+'),
                b => put(b'%') && hex(*b, upper, put),
            }),
            Self::Hex { upper } => value.iter().all(|b| hex(*b, upper, put)),
            Self::Base64 { after, url } => base64_within(value, after, url, put),
            Self::Base64Alone { url } => base64_alone(value, url, put),
        }
    }
}

fn hex(byte: u8, upper: bool, put: Put<'_>) -> bool {
    let digits = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    put(digits[usize::from(byte >> 4)]) && put(digits[usize::from(byte & 15)])
}

/// As serde_json, JavaScript and Python write it.
fn json(byte: u8, put: Put<'_>) -> bool {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        8 => b'b',
        12 => b'f',
        0..0x20 => return b"\\u00".iter().all(|b| put(*b)) && hex(byte, false, put),
        _ => return put(byte),
    };
    put(b'\\') && put(short)
}

fn json_ascii(value: &[u8], put: Put<'_>) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return true };
    text.chars().all(|c| match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => json(byte, put),
        _ => c.encode_utf16(&mut [0; 2]).iter().all(|unit| {
            let [high, low] = unit.to_be_bytes();
            b"\\u".iter().all(|b| put(*b)) && hex(high, false, put) && hex(low, false, put)
        }),
    })
}

fn digits(url: bool) -> &'static [u8] {
    if url { alphabet::URL_SAFE.as_str().as_bytes() } else { alphabet::STANDARD.as_str().as_bytes() }
}

/// The characters all of whose six bits are of the value.
fn base64_within(value: &[u8], after: usize, url: bool, put: Put<'_>) -> bool {
    let bits = value.len() * 8;
    // The first character that begins at or after the value's first bit, in bits of the value.
    let first = (6 - (after * 8) % 6) % 6;
    (first..bits).step_by(6).take_while(|at| at + 6 <= bits).all(|at| put(digits(url)[six_bits(value, at)]))
}

fn six_bits(value: &[u8], at: usize) -> usize {
    let high = u16::from(value[at / 8]) << 8;
    let low = value.get(at / 8 + 1).copied().map_or(0, u16::from);
    usize::from((high | low) >> (10 - at % 8)) & 63
}

fn base64_alone(value: &[u8], url: bool, put: Put<'_>) -> bool {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let engine = if url { &URL_SAFE } else { &STANDARD };
    value.chunks(3).all(|three| {
        let mut four = [0; 4];
        let len = engine.encode_slice(three, &mut four).unwrap_or(0);
        four[..len].iter().all(|b| put(*b))
    })
}
