//! Values that no decision shows, although a service asked for a host that holds one in its name.
//!
//! Here: finding them in a name. Not here: what counts as a secret (the runner), masking of other text (crate `vault`).
//! A net for accidents, as every mask: who means to leak writes it in another way.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// In place of a name.
const NOTHING: &str = "[secret]";
/// Shorter ones are found in names by chance.
const SHORTEST: usize = 8;
/// A name has no room for more (RFC 1035 §2.3.4).
const LONGEST: usize = 253;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Veil(Arc<[Zeroizing<Vec<u8>>]>);

impl fmt::Debug for Veil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[veil]")
    }
}

impl Veil {
    /// Values are looked for as they are and in hex.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let fits = |value: &&[u8]| value.len() <= 2 * LONGEST;
        let forms = values.into_iter().filter(fits).flat_map(|value| [fold(value), fold_hex(value)]);
        Self(forms.filter(|form| (SHORTEST..=LONGEST).contains(&form.len())).collect())
    }

    /// What may be shown of this name.
    pub(crate) fn over<'a>(&self, host: &'a str) -> &'a str {
        if self.0.is_empty() {
            return host;
        }
        let folded = fold(host.as_bytes());
        let holds =
            |form: &Zeroizing<Vec<u8>>| folded.windows(form.len()).any(|part| part == form.as_slice());
        if self.0.iter().any(holds) { NOTHING } else { host }
    }
}

/// Names come in lowercase, without most signs, and what is long in several labels.
fn fold(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut folded = Zeroizing::new(Vec::with_capacity(text.len()));
    folded.extend(text.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase));
    folded
}

fn fold_hex(value: &[u8]) -> Zeroizing<Vec<u8>> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = Zeroizing::new(Vec::with_capacity(2 * value.len()));
    hex.extend(value.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[usize::from(digit)]));
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_holds_a_value_is_not_shown_and_others_are_as_they_were() {
        let veil = Veil::new([b"Cnry-7f3A_91/Real".as_slice(), b"short", &[b'x'; 300], &[b'y'; 3000]]);
        for host in [
            "cnry-7f3a_91real.evil.com",
            "a.cnry7f3a.91real.b.com",
            "x436e72792d376633.415f39312f5265616c.evil.com",
        ] {
            assert_eq!(veil.over(host), "[secret]", "{host}");
        }
        for host in ["cnry-7f3a.evil.com", "short.com", "a.com", "", "xxxxxxxxxxxxxxxxxxxx.com"] {
            assert_eq!(veil.over(host), host);
        }
        assert_eq!(Veil::default().over("a.com"), "a.com");
        assert_eq!(format!("{veil:?}"), "[veil]");
    }
}
