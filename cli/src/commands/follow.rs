//! Following long work: a spinner with the step and the last line on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use client::connection::{DeployEvent, DeployStream};
use indicatif::{ProgressBar, ProgressStyle};
use wire::peer::hosting::{McpDeployProgress, McpDeployStatus};

use crate::failure::Failure;
use crate::out::Out;
use crate::plain::{brief, plain_line};

/// Shows what happens; on drop nothing of the spinner stays.
pub enum Progress {
    Live(ProgressBar),
    Lines(Lines),
}

/// Package managers write hundreds of lines a second; a log of them helps nobody.
pub struct Lines {
    out: Out,
    step: String,
    said_at: Instant,
    held_back: Option<String>,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(2);

    fn new(out: Out) -> Self {
        Self { out, step: String::new(), said_at: Instant::now(), held_back: None }
    }

    /// The first line of each step, then the newest every two seconds, and the last one of the step.
    fn next(&mut self, step: &str, line: &str, now: Instant) -> Vec<String> {
        let text = format!("{}: {}", plain_line(step), plain_line(line));
        if self.step == step && now.duration_since(self.said_at) < Self::EVERY {
            self.held_back = Some(text);
            return Vec::new();
        }
        let last = self.held_back.take().filter(|_| self.step != step);
        step.clone_into(&mut self.step);
        self.said_at = now;
        last.into_iter().chain([text]).collect()
    }
}

const LINE_WIDTH: usize = 100;

impl Progress {
    pub fn new(out: Out, what: &str) -> Self {
        if !out.is_live() {
            return Self::Lines(Lines::new(out));
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Live(bar)
    }

    pub fn show(&mut self, step: &str, line: &str) {
        match self {
            Self::Live(bar) => {
                bar.set_prefix(brief(step, 12));
                bar.set_message(brief(line, LINE_WIDTH));
            }
            Self::Lines(lines) => {
                for text in lines.next(step, line, Instant::now()) {
                    lines.out.remark(text);
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match self {
            Self::Live(bar) => bar.finish_and_clear(),
            Self::Lines(lines) => {
                if let Some(last) = lines.held_back.take() {
                    lines.out.remark(last);
                }
            }
        }
    }
}

/// Until the last status. `failed` is a [`Failure`].
pub async fn to_the_end(out: Out, name: &str, mut stream: DeployStream) -> Result<McpDeployStatus, Failure> {
    let mut progress = Progress::new(out, name);
    loop {
        match stream.next().await {
            Ok(DeployEvent::Status(status)) => progress.show(&status.status, &status.server_name),
            Ok(DeployEvent::Progress(McpDeployProgress { step, line, .. })) => progress.show(&step, &line),
            Ok(DeployEvent::Done(status)) if matches!(status.status.as_str(), "failed" | "crashed") => {
                return Err(Failure::of_deploy(status));
            }
            Ok(DeployEvent::Done(status)) => return Ok(status),
            Err(error) => {
                let lost = error.is_link_loss();
                let mut failure = Failure::from(error);
                if lost {
                    failure.note = Some("the broker carries on with what it accepted".to_owned());
                    failure.cure = Some(format!("Look at `claudemesh status {name}`."));
                }
                return Err(failure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_becomes_a_few() {
        let mut lines = Lines::new(Out { json: false, quiet: true });
        let start = lines.said_at;
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(lines.next("fetch", "a", at(0)), ["fetch: a"]);
        assert!(lines.next("fetch", "b", at(10)).is_empty());
        assert!(lines.next("fetch", "c", at(20)).is_empty());
        assert_eq!(lines.next("install", "d", at(30)), ["fetch: c", "install: d"]);
        assert!(lines.next("install", "e", at(40)).is_empty());
        assert_eq!(lines.next("install", "f", at(2100)), ["install: f"]);
        assert_eq!(lines.held_back, None);
    }
}
