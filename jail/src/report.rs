//! What the helper tells the runner, and what the runner may ask.
//!
//! Here: the messages and the steps' names. Not here: framing (see [`crate::frame`]), sending.
//! Invariant: whatever happened before, the last report of a jail is [`Report::Gone`]; only a helper that was killed
//! itself closes the socket without it.

use serde::{Deserialize, Serialize};

/// From the helper to the runner, in this order: steps, then `Failed` or `Started`, `Exited` after `Started`, `Gone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// A step is done. Told together with what came of them all, not one by one.
    Step { name: Step },
    /// A step failed; no server runs. `Gone` follows.
    Failed { step: Step, errno: Option<i32>, message: String },
    /// The server's program was executed.
    Started { pid: u32 },
    /// The server's first process ended; what is left of its tree is being killed.
    Exited(Exit),
    /// Sent once: these many processes outlived SIGKILL for seconds (a hung disk, say). The helper keeps trying.
    Stuck { processes: usize },
    /// No process of the tree is left.
    Gone,
}

/// How the server's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    pub ending: Ending,
    /// Probably for want of memory: the kernel's out-of-memory killer was at work, or the server failed with its peak
    /// near the limit. A hint, since without a cgroup of its own nothing says so for certain.
    pub oom_hint: bool,
    /// Peak resident memory of the first process or of its largest waited-for child.
    pub max_rss_kb: u64,
    /// Processor time of the first process and its waited-for children.
    pub cpu_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Code(i32),
    Signal(i32),
}

/// The steps. A light jail does `Spec` to `Directories`, `Sources` and `Fork` in the helper, then `Cgroup`, `Identity`,
/// `Capabilities` and `Session` to `Exec` in the process that becomes the server. A strict one does `Spec` to
/// `Directories` in the helper, `Cgroup` to `Fork` in the init of the new pid namespace, `Session` to `Exec` (without
/// `NoNewPrivileges` and `ParentDeath`) in the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Spec and descriptors received and checked.
    Spec,
    /// Session, subreaper, signals and `/proc` of the helper; the rank of the server when memory runs out.
    Supervise,
    /// `home`, `tmp` and `writable`; umask 077.
    Directories,
    /// The spec's cgroups joined.
    Cgroup,
    /// Strict: user, mount, pid, ipc, uts and cgroup namespaces (and network), one uid mapped.
    Namespaces,
    /// What the server may see is opened.
    Sources,
    /// The service's own uid and gid, no other group.
    Identity,
    /// Strict: host name and loopback of its own; the listeners of a filtered one.
    Network,
    /// Strict: an empty root in memory, with the private `/tmp`.
    Root,
    /// Strict: the system's directories and the few files of `/etc`.
    System,
    /// Strict: `read_only`, `writable`, `home` and `tmp` of the spec.
    Binds,
    /// Strict: five device nodes and `/dev/shm`.
    Devices,
    /// Strict: a fresh `/proc`, parts of it hidden or read-only; no further user namespace.
    Proc,
    /// Strict: the spec's files of secrets, in memory and read-only.
    Secrets,
    /// Strict: the new root in place and read-only, the old one detached.
    Pivot,
    /// None left, in no set (in a light jail the bounding set may stay: `NoNewPrivileges` makes it worthless).
    Capabilities,
    /// Strict: init dies with its helper.
    Lifeline,
    Fork,
    /// Own session and process group.
    Session,
    /// Stdin, stdout and stderr put in place.
    Stdio,
    WorkingDirectory,
    Limits,
    NoNewPrivileges,
    /// Dispositions and mask back to the default.
    Signals,
    /// Every other descriptor closed.
    Descriptors,
    /// The server dies with its helper.
    ParentDeath,
    /// Reads and writes of files by an allow-list, signals and abstract sockets to nobody outside. Light: TCP, too.
    Landlock,
    /// System calls by a deny-list.
    Seccomp,
    Exec,
}

impl Step {
    /// The name as the reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spec => "spec",
            Self::Supervise => "supervise",
            Self::Directories => "directories",
            Self::Cgroup => "cgroup",
            Self::Namespaces => "namespaces",
            Self::Sources => "sources",
            Self::Identity => "identity",
            Self::Network => "network",
            Self::Root => "root",
            Self::System => "system",
            Self::Binds => "binds",
            Self::Devices => "devices",
            Self::Proc => "proc",
            Self::Secrets => "secrets",
            Self::Pivot => "pivot",
            Self::Capabilities => "capabilities",
            Self::Lifeline => "lifeline",
            Self::Fork => "fork",
            Self::Session => "session",
            Self::Stdio => "stdio",
            Self::WorkingDirectory => "working_directory",
            Self::Limits => "limits",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Signals => "signals",
            Self::Descriptors => "descriptors",
            Self::ParentDeath => "parent_death",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Exec => "exec",
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// From init to the helper: how the server ended. Init's own end follows, and with it that of everything else.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) ending: Ending,
    pub(crate) max_rss_kb: u64,
    pub(crate) cpu_ms: u64,
}

/// From the runner to the helper. Closing the socket means `Kill`, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Command {
    /// SIGTERM to the server's process group.
    Terminate,
    /// Kill the whole tree now.
    Kill,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_spelling() {
        let exit = Exit { ending: Ending::Signal(9), oom_hint: false, max_rss_kb: 1, cpu_ms: 2 };
        let reports = [
            (Report::Step { name: Step::NoNewPrivileges }, r#"{"report":"step","name":"no_new_privileges"}"#),
            (
                Report::Failed { step: Step::Exec, errno: Some(2), message: "m".into() },
                r#"{"report":"failed","step":"exec","errno":2,"message":"m"}"#,
            ),
            (Report::Started { pid: 7 }, r#"{"report":"started","pid":7}"#),
            (
                Report::Exited(exit),
                r#"{"report":"exited","ending":{"signal":9},"oom_hint":false,"max_rss_kb":1,"cpu_ms":2}"#,
            ),
            (Report::Stuck { processes: 3 }, r#"{"report":"stuck","processes":3}"#),
            (Report::Gone, r#"{"report":"gone"}"#),
        ];
        for (report, json) in reports {
            assert_eq!(serde_json::to_string(&report).unwrap(), json);
            assert_eq!(serde_json::from_str::<Report>(json).unwrap(), report);
        }
        assert_eq!(serde_json::to_string(&Command::Terminate).unwrap(), r#"{"command":"terminate"}"#);
    }

    #[test]
    fn a_step_is_spelled_the_same_in_reports_and_messages() {
        use Step::*;
        let all = [
            Spec,
            Supervise,
            Directories,
            Cgroup,
            Namespaces,
            Sources,
            Identity,
            Network,
            Root,
            System,
            Binds,
            Devices,
            Proc,
            Secrets,
            Pivot,
            Capabilities,
            Lifeline,
            Fork,
            Session,
            Stdio,
            WorkingDirectory,
            Limits,
            NoNewPrivileges,
            Signals,
            Descriptors,
            ParentDeath,
            Landlock,
            Seccomp,
            Exec,
        ];
        for step in all {
            assert_eq!(serde_json::to_value(step).unwrap(), step.as_str());
        }
    }
}
