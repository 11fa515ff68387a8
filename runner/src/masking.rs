//! What an instance holds as secrets, masked in whatever of it leaves the runner.
//!
//! Here: masking of JSON and of text. Not here: finding a secret in bytes (crate `vault`), what counts as one (see
//! [`crate::service`]), where words of a server pass (see [`crate::logs`], [`crate::mcp`]).
//! Invariant: what holds no secret keeps its bytes and is not copied; what can not be masked and stay JSON is left out.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::task::spawn_blocking;
use vault::Redactor;

/// Bytes.
const LARGE: usize = 256 << 10;
/// In place of JSON as a whole.
const NOTHING: &[u8] = b"\"[secret]\"";

/// Of one instance. Cheap to clone.
#[derive(Clone, Default)]
pub struct Masking {
    redactor: Redactor,
    /// Whether the results of calls are masked, too.
    pub results: bool,
}

impl Masking {
    pub fn new(redactor: Redactor, results: bool) -> Self {
        Self { redactor, results }
    }

    pub fn is_empty(&self) -> bool {
        self.redactor.is_empty()
    }

    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_empty() { Cow::Borrowed(bytes) } else { self.redactor.mask(bytes) }
    }

    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.is_empty() { Cow::Borrowed(text) } else { self.redactor.mask_text(text) }
    }

    /// See [`Redactor::tail`]; never more than there is.
    pub fn tail(&self, chunk: &[u8]) -> usize {
        if self.is_empty() { 0 } else { self.redactor.tail(chunk).min(chunk.len()) }
    }

    /// As much of it as is wanted, and no half of a secret at its end.
    pub fn beginning<'a>(&self, text: &'a [u8], most: usize) -> Cow<'a, [u8]> {
        if text.len() <= most {
            return Cow::Borrowed(text);
        }
        match self.bytes(text) {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..most]),
            Cow::Owned(mut masked) => {
                masked.truncate(most);
                Cow::Owned(masked)
            }
        }
    }

    /// As [`Self::json`]. A large one takes milliseconds, which the runtime's own threads have not.
    pub async fn large_json(&self, json: Bytes) -> Bytes {
        if self.is_empty() || json.len() < LARGE {
            return self.json(json);
        }
        let masking = self.clone();
        let masked = spawn_blocking(move || masking.json(json)).await;
        masked.unwrap_or(Bytes::from_static(NOTHING))
    }

    /// Valid JSON, which stays valid.
    pub fn json(&self, json: Bytes) -> Bytes {
        match self.bytes(&json) {
            Cow::Borrowed(_) => json,
            Cow::Owned(masked) if serde_json::from_slice::<IgnoredAny>(&masked).is_ok() => {
                Bytes::from(masked)
            }
            // The redactor keeps JSON what it is; a line of our own protocol must not hang on that.
            Cow::Owned(_) => Bytes::from_static(NOTHING),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masking(secrets: &[&str]) -> Masking {
        Masking::new(Redactor::new(secrets.iter().map(|s| s.as_bytes())), true)
    }

    #[test]
    fn what_holds_no_secret_is_the_very_same_bytes() {
        let odd = Bytes::from_static(br#"{ "a" : 1.0e2 }"#);
        for masking in [Masking::default(), masking(&["canary-0123"])] {
            assert_eq!(masking.json(odd.clone()).as_ptr(), odd.as_ptr());
        }
    }

    #[test]
    fn a_beginning_ends_with_no_half_of_a_secret() {
        let text = b"xxxxcanary-0123yyyy";
        for most in 0..text.len() {
            let cut = masking(&["canary-0123"]).beginning(text, most).into_owned();
            assert!(!cut.windows(2).any(|pair| pair == b"ca") && cut.len() <= most, "{most}");
        }
        assert_eq!(&*Masking::default().beginning(text, 6), b"xxxxca");
    }

    #[test]
    fn json_stays_json_whatever_the_secret_is() {
        let of = |secret: &str, json: &str| {
            let masked = masking(&[secret]).json(Bytes::copy_from_slice(json.as_bytes()));
            let text = String::from_utf8(masked.to_vec()).expect("text");
            assert!(!text.contains(secret), "{text}");
            serde_json::from_str::<serde_json::Value>(&text).expect("json")
        };
        assert_eq!(of("canary-0123", r#"{"a":"canary-0123!"}"#), serde_json::json!({"a": "[secret]!"}));
        assert_eq!(of("canary-0123", r#"{"canary-0123":1}"#), serde_json::json!({"[secret]": 1}));
        of("12345678", r#"{"a":12345678,"b":[1]}"#);
        of(r#"{"private":"key"}"#, r#"{"file":{"private":"key"},"n":1}"#);
    }
}
