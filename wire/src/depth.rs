//! How deeply JSON of strangers may nest.
//!
//! Here: looking for it in text. Not here: what becomes of it when it does.
//! Invariant: nothing is parsed, so nothing recurses.

/// Values in values. Parsers of our peers stop at 128, and what we wrap around a result counts there, too.
pub const MAX_DEPTH: usize = 100;

/// Whether it nests deeper than [`MAX_DEPTH`]. A parser that skips values would not mind; one that reads them would.
pub fn is_too_deep(text: &[u8]) -> bool {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(found) = text.get(at..).and_then(|rest| rest.iter().position(|b| b"[]{}\"".contains(b))) {
        at += found + 1;
        match text[at - 1] {
            b'[' | b'{' => depth += 1,
            b'"' => at = end_of_string(text, at),
            _ => depth = depth.saturating_sub(1),
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// Behind the quote that ends the string whose first byte is at `at`.
fn end_of_string(text: &[u8], mut at: usize) -> usize {
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        match text[at - 1] {
            b'"' => return at,
            // Whatever is escaped, it ends no string.
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_nest() {
        let nested = |n: usize| format!(r#"{{"id":1,"result":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(!is_too_deep(nested(MAX_DEPTH - 1).as_bytes()));
        assert!(is_too_deep(nested(MAX_DEPTH).as_bytes()));
        let quoted = format!(r#"{{"a":"\"{}\\","b":"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(
            serde_json::from_str::<serde_json::Value>(&quoted).is_ok() && !is_too_deep(quoted.as_bytes())
        );
        let wide = format!("[{}]", "[],".repeat(10_000));
        assert!(!is_too_deep(wide.as_bytes()));
    }
}
