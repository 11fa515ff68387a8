//! Text from services, packages and other people, as it is printed: [`wire::text`] cut to the width of a column.

/// Keeps line breaks and tabs; every other character that a terminal obeys or a reader does not see becomes visible.
pub fn plain(text: &str) -> String {
    wire::text::printable(text).into_owned()
}

/// One line, without the white space at its end.
pub fn plain_line(text: &str) -> String {
    wire::text::printable_line(text.trim_end()).into_owned()
}

/// [`plain_line`], at most `limit` characters.
pub fn brief(text: &str, limit: usize) -> String {
    let line = plain_line(text);
    if line.chars().count() <= limit {
        return line;
    }
    line.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line_and_a_brief_one_short() {
        assert_eq!(plain_line("a\nb\tc\r\n"), r"a\nb\tc");
        assert_eq!(plain("a\nb\u{1b}[2J"), "a\nb\\u{1b}[2J");
        assert_eq!(brief("abcdef", 4), "abc…");
        assert_eq!(brief("abc", 4), "abc");
    }
}
