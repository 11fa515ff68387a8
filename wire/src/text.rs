//! Text that somebody else wrote, made safe for the eyes of people.
//!
//! A hosted server chooses its tool names, descriptions, results and log lines; so does the author of a package, and every other
//! member. Printed as they are they could move the cursor, set the window title, write to the clipboard (OSC 52), reverse
//! what a reader sees, or hide from a person what a model reads.
//!
//! Here: [`printable`] and [`printable_line`], which show such characters instead of obeying them, and [`hidden`], which
//! names them. Not here: what a program reads; JSON stays as it was written.

use std::borrow::Cow;

/// Keeps line breaks and tabs; every other character that [`hidden`] names becomes `\u{…}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, false)
}

/// One line: breaks and tabs become `\n`, `\r` and `\t`, too.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escape(text, true)
}

/// The characters of a text that a reader does not see or that change what is seen around them, each once, in the order
/// of their first appearance. Line breaks (`\r\n`, too) and tabs are none.
pub fn hidden(text: &str) -> Vec<(char, &'static str)> {
    let mut found: Vec<(char, &'static str)> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (c, next) in with_next(text) {
        if let Some(name) = power(c).filter(|_| !is_break(c, next))
            && seen.insert(c)
        {
            found.push((c, name));
        }
    }
    found
}

fn escape(text: &str, is_line: bool) -> Cow<'_, str> {
    let is_kept = |c: char| power(c).is_none() && !(is_line && matches!(c, '\n' | '\t'));
    let Some(first) = text.find(|c| !is_kept(c)) else { return Cow::Borrowed(text) };
    let (clean, rest) = text.split_at(first);
    let mut safe = String::with_capacity(text.len() + 16);
    safe.push_str(clean);
    for (c, next) in with_next(rest) {
        match c {
            _ if is_kept(c) => safe.push(c),
            '\n' | '\t' => safe.extend(c.escape_default()),
            // Half of a line break: the other half is enough.
            '\r' if is_break(c, next) => {}
            '\r' if is_line => safe.push_str("\\r"),
            _ => safe.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(safe)
}

fn with_next(text: &str) -> impl Iterator<Item = (char, Option<char>)> {
    text.chars().zip(text.chars().skip(1).map(Some).chain([None]))
}

fn is_break(c: char, next: Option<char>) -> bool {
    c == '\r' && next == Some('\n')
}

/// What a character does besides being read; `None` for ordinary ones.
fn power(c: char) -> Option<&'static str> {
    Some(match c {
        '\n' | '\t' | ' '..='~' => return None,
        '\u{1b}' => "escape",
        '\0'..='\u{1f}' | '\u{7f}' => "control character",
        // A terminal may take U+009B for an escape sequence.
        '\u{80}'..='\u{9f}' => "C1 control character",
        '\u{ad}' => "soft hyphen",
        '\u{200e}' => "left-to-right mark",
        '\u{200f}' => "right-to-left mark",
        '\u{61c}' => "Arabic letter mark",
        '\u{202a}' => "left-to-right embedding",
        '\u{202b}' => "right-to-left embedding",
        '\u{202c}' => "pop directional formatting",
        '\u{202d}' => "left-to-right override",
        '\u{202e}' => "right-to-left override",
        '\u{2066}' => "left-to-right isolate",
        '\u{2067}' => "right-to-left isolate",
        '\u{2068}' => "first strong isolate",
        '\u{2069}' => "pop directional isolate",
        '\u{200b}' => "zero-width space",
        '\u{200c}' => "zero-width non-joiner",
        '\u{200d}' => "zero-width joiner",
        '\u{2060}' => "word joiner",
        '\u{feff}' => "byte order mark",
        '\u{2028}' => "line separator",
        '\u{2029}' => "paragraph separator",
        '\u{180e}' | '\u{2061}'..='\u{2064}' => "invisible character",
        '\u{206a}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' => "invisible format character",
        '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' => "filler letter without a shape",
        // The tags spell ASCII, the supplement of variation selectors 240 byte values: both carry whole hidden texts.
        '\u{e0000}'..='\u{e007f}' => "tag character",
        '\u{e0080}'..='\u{e0fff}' => "invisible supplement character",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_in_any_script_is_untouched_and_not_copied() {
        for text in ["plain ascii\n\tindented", "日本語 العربية ελληνικά हिन्दी", "🎉 é ñ", ""]
        {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
            assert!(hidden(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn terminal_escapes_lose_their_power() {
        for hostile in [
            "\x1b[2J\x1b[H",
            "\x1b]0;title\x07",
            "\x1b]52;c;ZXZpbA==\x07",
            "\u{9b}31m",
            "a\x08b",
            "over\rwrite",
            "end\r",
            "\x00\x7f",
        ] {
            let safe = printable(hostile);
            assert!(!safe.chars().any(char::is_control), "{safe:?}");
            assert!(!hidden(hostile).is_empty(), "{hostile:?}");
        }
        assert_eq!(printable("\x1b[31mred"), "\\u{1b}[31mred");
    }

    #[test]
    fn text_can_not_be_reversed_or_hidden() {
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        let ranges = [
            '\u{202a}'..='\u{202e}',
            '\u{2066}'..='\u{2069}',
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{2029}',
        ];
        let tags = '\u{e0000}'..='\u{e007f}';
        for c in ranges.into_iter().flatten().chain(tags).chain(['\u{2060}', '\u{feff}']) {
            assert!(printable(&c.to_string()).is_ascii(), "{c:?}");
            assert_eq!(hidden(&c.to_string()).len(), 1, "{c:?}");
        }
    }

    #[test]
    fn every_control_and_format_character_of_the_first_planes_is_known() {
        let controls =
            (0..0x11_0000).filter_map(char::from_u32).filter(|c| c.is_control() && !"\n\t".contains(*c));
        for c in controls {
            assert!(power(c).is_some(), "{c:?}");
        }
    }

    #[test]
    fn a_line_stays_a_line() {
        assert_eq!(printable_line("a\nb\tc\r\nd\re"), "a\\nb\\tc\\nd\\re");
        assert_eq!(printable("a\r\nb\rc"), "a\nb\\u{d}c");
        assert!(matches!(printable_line("a b"), Cow::Borrowed("a b")));
    }

    #[test]
    fn what_is_hidden_is_named_once() {
        assert_eq!(
            hidden("a\u{202e}b\u{202e}\u{200b}\r\n"),
            [('\u{202e}', "right-to-left override"), ('\u{200b}', "zero-width space")]
        );
    }
}
