//! Placeholders of a request, turned into values.
//!
//! Here: which headers carry credentials, the exchange in them. Not here: whether the host may have them.
//! Invariant: what is put in is not looked at again, so no value can ask for another one.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::{MARK, RANDOM};

const PLACEHOLDER: usize = MARK.len() + RANDOM;
/// Bytes of one header with its values: whoever names them all again and again gets no more.
const MAX_HEADER: usize = 64 << 10;
const BASIC: &[u8] = b"Basic ";
/// In the names of headers that carry credentials. Others may be kept by the host and shown to anybody.
const CREDENTIALS: [&str; 8] =
    ["auth", "token", "key", "secret", "password", "credential", "session", "cookie"];
/// Data of an object in a store; an id that is repeated in answers and logs.
const NOT_CREDENTIALS: [&str; 2] = ["-meta-", "idempotency"];

/// Each placeholder with its value.
pub(super) struct Swap(Vec<(String, Zeroizing<Vec<u8>>)>);

/// With its values in place the header is longer than any host takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Swap {
    pub(super) fn new(placed: Vec<(String, Zeroizing<Vec<u8>>)>) -> Self {
        Self(placed)
    }

    pub(super) fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(placeholder, _)| placeholder.as_str())
    }

    /// Whether any was there.
    ///
    /// # Errors
    /// [`TooLong`].
    pub(super) fn apply(&self, headers: &mut HeaderMap) -> Result<bool, TooLong> {
        let mut has_any = false;
        for (name, value) in headers.iter_mut() {
            if !carries_credentials(name) {
                continue;
            }
            let basic = if name == AUTHORIZATION { self.basic(value.as_bytes())? } else { None };
            let full = if basic.is_some() { basic } else { self.fill(value.as_bytes())? };
            let Some(full) = full else { continue };
            let mut full = HeaderValue::from_bytes(&full).map_err(|_| TooLong)?;
            full.set_sensitive(true);
            *value = full;
            has_any = true;
        }
        Ok(has_any)
    }

    /// `None`: there is no placeholder in it.
    fn fill(&self, text: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, TooLong> {
        // In one piece from the start: what a vector outgrows is not zeroed.
        let mut full = Zeroizing::new(Vec::with_capacity(self.room(text)));
        let (mut rest, mut has_any) = (text, false);
        while let Some((first, more)) = rest.split_first() {
            if let Some(value) = self.value_at(rest) {
                full.extend_from_slice(value);
                rest = &rest[PLACEHOLDER..];
                has_any = true;
            } else {
                full.push(*first);
                rest = more;
            }
            if full.len() > MAX_HEADER {
                return Err(TooLong);
            }
        }
        Ok(has_any.then_some(full))
    }

    /// As much as can be needed, within the bound and one value more.
    fn room(&self, text: &[u8]) -> usize {
        let longest = self.0.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
        (text.len() + text.len() / PLACEHOLDER * longest).min(MAX_HEADER + longest.max(1))
    }

    fn value_at(&self, text: &[u8]) -> Option<&[u8]> {
        let here = text.get(..PLACEHOLDER).filter(|here| here.starts_with(MARK.as_bytes()))?;
        let is_it = |placed: &&(String, Zeroizing<Vec<u8>>)| placed.0.as_bytes() == here;
        self.0.iter().find(is_it).map(|(_, value)| value.as_slice())
    }

    /// `Basic` of a user and a password (RFC 7617).
    fn basic(&self, value: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, TooLong> {
        let split = value.split_at_checked(BASIC.len());
        let credentials = split.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BASIC));
        let credentials = credentials.map(|(_, credentials)| credentials.trim_ascii()).unwrap_or_default();
        let decoded = STANDARD.decode(credentials).or_else(|_| STANDARD_NO_PAD.decode(credentials));
        let Some(full) = self.fill(&decoded.unwrap_or_default())? else { return Ok(None) };
        let mut header = Zeroizing::new(vec![0; BASIC.len() + full.len().div_ceil(3) * 4]);
        header[..BASIC.len()].copy_from_slice(BASIC);
        // The room is exact; were it not, nothing would be sent.
        STANDARD.encode_slice(full.as_slice(), &mut header[BASIC.len()..]).map_err(|_| TooLong)?;
        Ok(Some(header))
    }
}

fn carries_credentials(name: &HeaderName) -> bool {
    let has = |part: &&str| name.as_str().contains(*part);
    CREDENTIALS.iter().any(has) && !NOT_CREDENTIALS.iter().any(has)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) const ONE: &str = "cmsec-0123456789ABCDEFGHIJKLMNOPQRSTUV";
    pub(in super::super) const TWO: &str = "cmsec-zyxwvutsrqponmlkjihgfedcba987654";

    pub(in super::super) fn placed() -> Vec<(String, Zeroizing<Vec<u8>>)> {
        let value = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
        vec![(ONE.to_owned(), value("canary-\"one\"/secret")), (TWO.to_owned(), value(&format!("two {ONE}")))]
    }

    fn swapped(name: &str, value: &str) -> (String, bool) {
        let mut headers = HeaderMap::new();
        let name = HeaderName::try_from(name).expect(name);
        headers.insert(&name, HeaderValue::try_from(value).expect(value));
        let has_any = Swap::new(placed()).apply(&mut headers).expect("short");
        (headers[&name].to_str().expect("text").to_owned(), has_any)
    }

    #[test]
    fn a_placeholder_becomes_its_value_wherever_it_stands_in_a_credential() {
        assert_eq!(swapped("authorization", &format!("Bearer {ONE}")).0, "Bearer canary-\"one\"/secret");
        assert_eq!(swapped("x-api-key", ONE).0, "canary-\"one\"/secret");
        assert_eq!(
            swapped("cookie", &format!("a={ONE}; b={ONE}")).0,
            "a=canary-\"one\"/secret; b=canary-\"one\"/secret"
        );
    }

    #[test]
    fn a_value_is_not_looked_at_again() {
        assert_eq!(swapped("private-token", TWO).0, format!("two {ONE}"));
    }

    #[test]
    fn the_password_of_basic_credentials_is_exchanged() {
        let said = STANDARD.encode(format!("user:{ONE}"));
        let meant = format!("Basic {}", STANDARD.encode("user:canary-\"one\"/secret"));
        assert_eq!(swapped("authorization", &format!("Basic {said}")).0, meant);
        assert_eq!(swapped("authorization", &format!("basic {}", said.trim_end_matches('='))).0, meant);
    }

    #[test]
    fn what_is_no_credential_keeps_its_placeholder() {
        for name in ["user-agent", "referer", "accept", "x-amz-meta-token", "idempotency-key", "content-type"]
        {
            assert_eq!(swapped(name, ONE), (ONE.to_owned(), false), "{name}");
        }
    }

    #[test]
    fn near_misses_stay_as_they_are() {
        for text in [
            &ONE[..37],
            &ONE.to_lowercase(),
            "cmsec-",
            "Basic !!!",
            "Basic",
            &format!("cmsec-cmsec-{}", &ONE[6..37]),
        ] {
            assert_eq!(swapped("authorization", text), (text.to_owned(), false));
        }
        assert_eq!(swapped("authorization", &format!("cmsec-{ONE}")).0, "cmsec-canary-\"one\"/secret");
    }

    #[test]
    fn a_header_does_not_grow_without_end() {
        let long =
            vec![("cmsec-0123456789ABCDEFGHIJKLMNOPQRSTUV".to_owned(), Zeroizing::new(vec![b'v'; 8 << 10]))];
        let mut headers = HeaderMap::new();
        headers.insert("x-key", HeaderValue::try_from(ONE.repeat(9)).expect("text"));
        assert_eq!(Swap::new(long).apply(&mut headers), Err(TooLong));
    }

    proptest! {
        #[test]
        fn no_header_stops_it(value in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            let mut value = value;
            value.splice(at.min(value.len())..at.min(value.len()), ONE.bytes());
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::new();
                headers.insert("authorization", value);
                let has_any = Swap::new(placed()).apply(&mut headers).expect("short");
                prop_assert!(has_any || headers["authorization"].as_bytes().starts_with(b"Basic"));
            }
        }
    }
}
