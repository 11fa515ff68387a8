//! `status-line`: one line for the client.
//!
//! A client starts this often, so it asks nobody: the process that holds the session's link keeps the answer in a file.

use std::time::Duration;

use client::{SessionEnv, SessionStatus};
use serde::Serialize;
use tokio::io::AsyncReadExt as _;

use crate::failure::Failure;
use crate::here::Here;
use crate::plain::plain_line;

/// What the client tells us about its session is taken, so that it need not write to a closed pipe.
const INPUT_DEADLINE: Duration = Duration::from_millis(100);
const INPUT_LIMIT: u64 = 1 << 20;

#[derive(Serialize)]
struct Document<'a> {
    mesh: &'a str,
    online: bool,
    peers: usize,
    name: Option<&'a str>,
}

pub async fn status_line(here: &Here) -> Result<(), Failure> {
    let entry = here.entry()?;
    let session = SessionEnv::read().map_err(|e| Failure::user(e.to_string()))?;
    let places = session.places(&here.config_folder);
    let found = places.iter().find_map(|place| SessionStatus::read(place, &entry.mesh_id, &entry.member_id));
    let status = found.filter(|status| status.is_online);
    if here.out.json {
        here.out.document(&Document {
            mesh: &entry.slug,
            online: status.is_some(),
            peers: status.as_ref().map_or(0, |status| status.peers),
            name: status.as_ref().map(|status| status.display_name.as_str()),
        })?;
    } else {
        here.out.line(line(&entry.slug, status.as_ref()));
    }
    let mut ignored = Vec::new();
    let mut input = tokio::io::stdin().take(INPUT_LIMIT);
    let _ = tokio::time::timeout(INPUT_DEADLINE, input.read_to_end(&mut ignored)).await;
    Ok(())
}

fn line(mesh: &str, status: Option<&SessionStatus>) -> String {
    let mesh = plain_line(mesh);
    match status {
        Some(SessionStatus { peers, display_name, .. }) => {
            let word = if *peers == 1 { "peer" } else { "peers" };
            format!("◇ {mesh} · {peers} {word} online · {}", plain_line(display_name))
        }
        None => format!("◇ {mesh} · offline"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_who_is_there_or_that_nobody_knows() {
        let status = |peers| SessionStatus { is_online: true, peers, display_name: "Ana\u{1b}[2J".into() };
        assert_eq!(line("acme", Some(&status(3))), "◇ acme · 3 peers online · Ana\\u{1b}[2J");
        assert_eq!(line("acme", Some(&status(1))), "◇ acme · 1 peer online · Ana\\u{1b}[2J");
        assert_eq!(line("acme", None), "◇ acme · offline");
    }
}
