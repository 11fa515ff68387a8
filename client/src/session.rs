//! Which session this process belongs to, and how that session presents itself.
//!
//! Here: what `claudemesh launch` hands down in the environment, and what stands for it when somebody else has started us: MCP
//! clients start their servers as children, so the parent process names the session. Not here: the link
//! ([`crate::connection`]).

use std::path::Path;

use sha2::{Digest, Sha256};
use wire::peer::hello::Group;

use crate::connection::{Announce, SessionPlace};

/// How far up a client is looked for: it may have started us through a shell or two.
const MAX_ANCESTORS: usize = 4;

/// What the environment says about the session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionEnv {
    /// Given to all processes of a session by who started it.
    pub session_id: Option<String>,
    pub display_name: Option<String>,
    pub role: Option<String>,
    pub groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a list of groups: write eng:lead,ops")]
pub struct BadGroups(String);

impl SessionEnv {
    /// # Errors
    /// When the groups are not a list of groups.
    pub fn read() -> Result<Self, BadGroups> {
        let some = |value: Result<String, _>| value.ok().filter(|text| !text.trim().is_empty());
        let groups = some(std::env::var("CLAUDEMESH_GROUPS"));
        Ok(Self {
            session_id: some(std::env::var("CLAUDEMESH_SESSION_ID")),
            display_name: some(std::env::var("CLAUDEMESH_DISPLAY_NAME")),
            role: some(std::env::var("CLAUDEMESH_ROLE")),
            groups: groups.map_or(Ok(Vec::new()), |text| parse_groups(&text))?,
        })
    }

    /// Where the processes of this session meet.
    pub fn place(&self, config_folder: &Path) -> SessionPlace {
        let derived = || id_of_process(std::os::unix::process::parent_id());
        let session_id = self.session_id.clone().unwrap_or_else(derived);
        SessionPlace { dir: config_folder.join("run"), session_id }
    }

    /// For a process that need not be a child of the client itself: where its session may be, likeliest first.
    pub fn places(&self, config_folder: &Path) -> Vec<SessionPlace> {
        let dir = config_folder.join("run");
        if let Some(session_id) = self.session_id.clone() {
            return vec![SessionPlace { dir, session_id }];
        }
        let first = std::os::unix::process::parent_id();
        let ancestors = std::iter::successors(Some(first), |pid| parent_of(*pid)).take(MAX_ANCESTORS);
        ancestors.map(|pid| SessionPlace { dir: dir.clone(), session_id: id_of_process(pid) }).collect()
    }

    /// As `name`, unless the environment has another; the role is also that of every group that has none of its own.
    pub fn announce(&self, name: Option<String>, peer_type: &str, channel: &str) -> Announce {
        let with_role = |group: &Group| Group {
            name: group.name.clone(),
            role: group.role.clone().or_else(|| self.role.clone()),
        };
        let groups: Vec<_> = self.groups.iter().map(with_role).collect();
        Announce {
            display_name: self.display_name.clone().or(name),
            groups: (!groups.is_empty()).then_some(groups),
            role: self.role.clone(),
            ..Announce::here(peer_type, channel)
        }
    }
}

/// `eng:lead,ops`.
///
/// # Errors
/// When it is anything else.
pub fn parse_groups(text: &str) -> Result<Vec<Group>, BadGroups> {
    let bad = || BadGroups(text.to_owned());
    let group = |part: &str| {
        let (name, role) = match part.split_once(':') {
            Some((name, role)) => (name.trim(), Some(role.trim())),
            None => (part.trim(), None),
        };
        let is_word = |word: &str| !word.is_empty() && !word.contains(':') && word.len() <= 64;
        if !is_word(name) || role.is_some_and(|role| !is_word(role)) {
            return Err(bad());
        }
        Ok(Group { name: name.to_owned(), role: role.map(str::to_owned) })
    };
    text.split(',').map(group).collect()
}

/// A process id is used again, so the time at which it started belongs to it, and as that counts from the start of the
/// machine, which start that was.
fn id_of_process(pid: u32) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let started = stat_field(pid, 22).unwrap_or_default();
    let sum = Sha256::digest(format!("{}|{pid}|{started}", boot.trim()));
    format!("p{pid}-{}", &hex::encode(sum)[..16])
}

fn parent_of(pid: u32) -> Option<u32> {
    stat_field(pid, 4)?.parse().ok().filter(|parent| *parent > 1)
}

/// Counted as in proc(5), from the third on: the second may hold spaces and parentheses.
fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(field.checked_sub(3)?).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, role: Option<&str>) -> Group {
        Group { name: name.into(), role: role.map(str::to_owned) }
    }

    #[test]
    fn groups_are_read_as_people_write_them() {
        assert_eq!(parse_groups("eng:lead, ops").unwrap(), [group("eng", Some("lead")), group("ops", None)]);
        for bad in ["", ",", "a,", ":x", "a:", "a:b:c"] {
            assert!(parse_groups(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_session_without_a_name_is_that_of_the_parent_process() {
        let env = SessionEnv::default();
        let place = env.place(Path::new("/c"));
        assert_eq!(place.dir, Path::new("/c/run"));
        assert_eq!(place.session_id, env.place(Path::new("/c")).session_id);
        assert_ne!(place.session_id, id_of_process(std::process::id()));
        assert!(env.places(Path::new("/c")).iter().any(|other| other.session_id == place.session_id));
        let named = SessionEnv { session_id: Some("s".into()), ..SessionEnv::default() };
        assert_eq!(named.place(Path::new("/c")).session_id, "s");
        assert_eq!(named.places(Path::new("/c")).len(), 1);
    }

    #[test]
    fn a_role_is_the_sessions_and_that_of_the_groups_that_have_none() {
        let env = SessionEnv {
            role: Some("review".into()),
            groups: parse_groups("eng:lead,ops").unwrap(),
            ..SessionEnv::default()
        };
        let announce = env.announce(Some("Ana".into()), "ai", "t");
        assert_eq!(
            (announce.display_name.as_deref(), announce.role.as_deref()),
            (Some("Ana"), Some("review"))
        );
        assert_eq!(announce.groups.unwrap(), [group("eng", Some("lead")), group("ops", Some("review"))]);
        let alone =
            SessionEnv { role: Some("review".into()), ..SessionEnv::default() }.announce(None, "ai", "t");
        assert_eq!((alone.role.as_deref(), alone.groups), (Some("review"), None));
    }
}
