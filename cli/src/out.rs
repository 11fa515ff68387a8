//! What a command prints: documents on stdout, everything else on stderr.
//!
//! A reader that goes away (`claudemesh ls | head -1`) ends the process quietly instead of with a panic.

use std::io::{self, IsTerminal, Write};

use owo_colors::{OwoColorize, Stream};
use serde::Serialize;

use crate::failure::Failure;
use crate::plain::{plain, plain_line};

#[derive(Debug, Clone, Copy)]
pub struct Out {
    pub json: bool,
    pub quiet: bool,
}

impl Out {
    /// A line for people; nothing under `--json`. The text must be safe already (see [`crate::plain`]).
    pub fn line(self, text: impl AsRef<str>) {
        if !self.json {
            stdout_line(text.as_ref());
        }
    }

    /// A remark for people, on stderr.
    pub fn remark(self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            let _ = writeln!(io::stderr(), "{}", text.as_ref());
        }
    }

    /// One JSON document, or one line of a JSON stream.
    pub fn document<T: Serialize>(self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|e| Failure::platform(format!("cannot write the answer as JSON: {e}")))?;
        stdout_line(&text);
        Ok(())
    }

    /// JSON that somebody else wrote, byte for byte.
    pub fn raw(self, json: &str) {
        stdout_line(json);
    }

    /// Asks on the terminal; everything but a yes is a failure, so that a script that forgot `--yes` stops.
    /// `shown` is what it is about, and is printed whatever else is not: nobody says yes to what they did not see.
    pub fn confirm(self, shown: &str, question: &str) -> Result<(), Failure> {
        if !self.can_ask() {
            self.remark(shown);
            return Err(Failure::user(format!("{question} Nobody is here to answer"))
                .with_cure("Add --yes once you have looked at it."));
        }
        let mut answer = String::new();
        let asked = write!(io::stderr(), "{shown}\n{question} [y/N] ")
            .and_then(|()| io::stdin().read_line(&mut answer));
        asked.map_err(|e| Failure::platform(format!("cannot ask: {e}")))?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::user("not confirmed; nothing was changed")),
        }
    }

    /// Whether somebody is at the terminal to be asked.
    pub fn can_ask(self) -> bool {
        !self.json && io::stdin().is_terminal()
    }

    /// Whether long work may be drawn over and over.
    pub fn is_live(self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    pub fn failure(self, failure: &Failure) {
        if self.json {
            return stdout_line(&failure.json());
        }
        let mut text = String::new();
        let red = "error:".if_supports_color(Stream::Stderr, |t| t.red()).to_string();
        text.push_str(&format!("{red} {}", plain(&failure.message)));
        if failure.code.is_some() {
            text.push_str(&format!(" ({})", failure.code_text()));
        }
        text.push('\n');
        for line in &failure.stderr {
            text.push_str(&format!("  | {}\n", plain_line(line)));
        }
        for (word, part) in [("note:", &failure.note), ("cure:", &failure.cure)] {
            if let Some(part) = part {
                text.push_str(&format!("{word}  {}\n", plain(part)));
            }
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

fn stdout_line(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    if let Err(error) = written {
        // Nobody reads any more: there is nothing left to do, and nobody to tell.
        std::process::exit(if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { 1 });
    }
}

pub fn bold(text: &str) -> String {
    text.if_supports_color(Stream::Stdout, |t| t.bold()).to_string()
}

/// A line of a diff, coloured by its first character.
pub fn diff_line(text: &str) -> String {
    match text.as_bytes().first() {
        Some(b'+') => text.if_supports_color(Stream::Stdout, |t| t.green()).to_string(),
        Some(b'-') => text.if_supports_color(Stream::Stdout, |t| t.red()).to_string(),
        _ => text.to_owned(),
    }
}

/// Colour by what a reader should do about it.
fn state_cell(phase: String) -> comfy_table::Cell {
    use comfy_table::{Cell, Color};
    let color = match phase.as_str() {
        "ready" | "idle" => Color::Green,
        "failed" | "crash_loop" => Color::Red,
        "stopped" => Color::DarkGrey,
        _ => Color::Yellow,
    };
    Cell::new(phase).fg(color)
}

/// Columns without borders. On a terminal it fits the width; elsewhere nothing is cut.
/// A column named STATE is coloured.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(if io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(
            row.into_iter()
                .zip(header)
                .map(|(text, name)| if *name == "STATE" { state_cell(text) } else { Cell::new(text) }),
        );
    }
    let text = table.to_string();
    text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_keeps_every_cell() {
        let text = table(
            &["NAME", "STATE"],
            vec![vec!["a-long-name".into(), "ready".into()], vec!["b".into(), "x".into()]],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].find("STATE"), lines[1].find("ready"));
        assert_eq!(lines[2].find('x'), lines[1].find("ready"));
    }
}
