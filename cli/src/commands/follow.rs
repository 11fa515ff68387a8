//! Following long work: a spinner with the step and the last line on a terminal, plain lines elsewhere.

use std::time::Duration;

use client::connection::{DeployEvent, DeployStream};
use indicatif::{ProgressBar, ProgressStyle};
use wire::peer::hosting::{McpDeployProgress, McpDeployStatus};

use crate::failure::Failure;
use crate::out::Out;
use crate::plain::{brief, plain_line};

/// Shows what happens; on drop nothing of the spinner stays.
pub enum Progress {
    Live(ProgressBar),
    Lines { out: Out, last: String },
}

const LINE_WIDTH: usize = 100;

impl Progress {
    pub fn new(out: Out, what: &str) -> Self {
        if !out.is_live() {
            return Self::Lines { out, last: String::new() };
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
            Self::Lines { out, last } => {
                let text = format!("{}: {}", plain_line(step), plain_line(line));
                if *last != text {
                    out.remark(&text);
                    *last = text;
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Live(bar) = self {
            bar.finish_and_clear();
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
