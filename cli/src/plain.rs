//! Text from services, packages and other people, made safe to print on a terminal.
//!
//! A hosted server chooses its tool names, descriptions, results and log lines. Printed raw they could move the cursor, set the
//! window title, write to the clipboard (OSC 52) or reverse what a reader sees (bidirectional controls).

/// Keeps line breaks and tabs; every other control character becomes visible.
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => safe.push(c),
            '\r' if chars.peek() == Some(&'\n') => {}
            _ => push_visible(&mut safe, c),
        }
    }
    safe
}

/// One line: breaks and tabs become spaces.
pub fn plain_line(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' | '\t' => safe.push(' '),
            '\r' => {}
            _ => push_visible(&mut safe, c),
        }
    }
    safe
}

/// [`plain_line`], at most `limit` characters.
pub fn brief(text: &str, limit: usize) -> String {
    let line = plain_line(text);
    if line.chars().count() <= limit {
        return line;
    }
    line.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

fn push_visible(safe: &mut String, c: char) {
    let code = u32::from(c);
    match code {
        // The control pictures show what was there: ␛ for escape, ␇ for bell.
        0..=0x1f => safe.push(char::from_u32(0x2400 + code).unwrap_or('\u{fffd}')),
        0x7f => safe.push('␡'),
        _ if is_deceiving(code) => safe.extend(c.escape_unicode()),
        _ => safe.push(c),
    }
}

/// C1 controls (a terminal may take U+009B for an escape sequence), bidirectional controls, invisible characters and tags.
fn is_deceiving(code: u32) -> bool {
    matches!(
        code,
        0x80..=0x9f
            | 0x00ad
            | 0x061c
            | 0x180e
            | 0x200b
            | 0x200e..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xfff9..=0xfffb
            | 0xe0000..=0xe007f
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_in_any_script_is_untouched() {
        for text in ["plain ascii\n\tindented", "日本語 العربية ελληνικά", "👩‍💻 é ñ", ""]
        {
            assert_eq!(plain(text), text);
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
            "\x00\x7f",
        ] {
            let safe = plain(hostile);
            assert!(!safe.chars().any(char::is_control), "{safe:?}");
        }
        assert_eq!(plain("\x1b[31mred"), "␛[31mred");
        assert_eq!(plain("a\r\nb"), "a\nb");
    }

    #[test]
    fn text_can_not_be_reversed_or_hidden() {
        assert_eq!(plain("a\u{202e}b"), "a\\u{202e}b");
        for hidden in ["\u{2066}", "\u{200b}", "\u{feff}", "\u{e0041}", "\u{2028}"] {
            assert!(plain(hidden).is_ascii(), "{hidden:?}");
        }
    }

    #[test]
    fn a_line_stays_a_line_and_a_brief_one_short() {
        assert_eq!(plain_line("a\nb\tc\r\n"), "a b c");
        assert_eq!(brief("abcdef", 4), "abc…");
        assert_eq!(brief("abc", 4), "abc");
    }
}
