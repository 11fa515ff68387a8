//! A jail for a test: real helper, real server, own directories, a marker that finds every process of its tree.
//!
//! Here: starting, awaiting reports and output with a deadline, looking for survivors. Not here: claims.
#![expect(dead_code, reason = "each test target uses its own part")]

pub mod findings;
pub mod world;

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use jail::{Exit, Isolation, JailSpec, Jailed, LightView, Limits, Reading, Report, Stdio, View};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

/// The target decides: those named `strict…` start every jail that way.
pub fn is_strict() -> bool {
    env!("CARGO_CRATE_NAME").starts_with("strict")
}

pub const LIMIT: Duration = Duration::from_secs(30);
const MARK: &str = "JAIL_TEST_MARK";

pub fn helper() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_claudemesh-jail"))
}

/// The interpreter itself: a version manager's shim is a shell script that wants the caller's environment. In a light jail
/// the system's, for the way to any other may be closed to the service's uid.
pub fn python() -> String {
    if !is_strict() && Path::new("/usr/bin/python3").exists() {
        return "/usr/bin/python3".into();
    }
    static FOUND: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let ask = || {
        let found = std::process::Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .and_then(|child| child.wait_with_output())
            .expect("python3 is installed");
        String::from_utf8(found.stdout).expect("a path").trim().to_owned()
    };
    FOUND.get_or_init(ask).clone()
}

/// Where the interpreter's own files are, when that is not a directory of the system.
pub fn python_prefix() -> Option<PathBuf> {
    let prefix = PathBuf::from(python()).parent()?.parent()?.canonicalize().ok()?;
    Some(prefix).filter(|prefix| !prefix.starts_with("/usr"))
}

/// The view of a test: as root a uid that no other test has.
pub fn view() -> View {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test targets run one after another, but a failed one may have left files behind.
    let uid = 300_000 + std::process::id() % 1000 * 1000 + NEXT.fetch_add(1, Ordering::Relaxed);
    View { uid: Some(uid).filter(|_| nix::unistd::getuid().is_root()), ..View::default() }
}

pub fn light_view() -> LightView {
    LightView { uid: view().uid, ..LightView::default() }
}

pub fn light(spec: &mut JailSpec) -> &mut LightView {
    match &mut spec.isolation {
        Isolation::Light(view) => view,
        Isolation::Strict(_) => panic!("not a light jail"),
    }
}

pub fn strict(spec: &mut JailSpec) -> &mut View {
    match &mut spec.isolation {
        Isolation::Strict(view) => view,
        Isolation::Light(_) => panic!("not a strict jail"),
    }
}

pub fn sh(script: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), script.into()]
}

pub fn py(script: &str) -> Vec<String> {
    vec![python(), "-u".into(), "-c".into(), script.into()]
}

/// A server that leaves a daemon (own session, double fork), says both pids and then does `rest`.
pub fn daemonising(rest: &str) -> Vec<String> {
    py(&format!(
        "import os, sys, time, signal\n\
         if os.fork() == 0:\n\
         \x20   os.setsid()\n\
         \x20   if os.fork() == 0:\n\
         \x20       signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         \x20       signal.signal(signal.SIGHUP, signal.SIG_IGN)\n\
         \x20       os.write(1, b'daemon %d\\n' % os.getpid())\n\
         \x20       while True: time.sleep(1000)\n\
         \x20   os._exit(0)\n\
         os.wait()\n\
         sys.stdin.readline()\n\
         {rest}\n"
    ))
}

pub struct Run {
    pub jailed: Option<Jailed>,
    pub spec: JailSpec,
    pub stdin: Option<PipeWriter>,
    pub stdout: PipeReader,
    pub mark: String,
    dir: TempDir,
}

/// The spec of a test: only the marker in its environment, default limits.
pub fn spec(argv: Vec<String>, dir: &Path) -> (JailSpec, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mark = format!("{MARK}={}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let value = mark[MARK.len() + 1..].to_owned();
    let spec = JailSpec {
        argv,
        env: vec![(MARK.into(), value)],
        cwd: "/".into(),
        home: dir.join("home"),
        tmp: dir.join("deeper/tmp"),
        limits: Limits::default(),
        isolation: if is_strict() { Isolation::Strict(view()) } else { Isolation::Light(light_view()) },
        cgroups: vec![],
        secret_files: vec![],
    };
    (spec, mark)
}

pub fn start(argv: Vec<String>) -> Run {
    start_with(&helper(), argv, |_| {})
}

pub fn start_with(exe: &Path, argv: Vec<String>, change: impl FnOnce(&mut JailSpec)) -> Run {
    let dir = TempDir::new().expect("a directory");
    let (mut spec, mark) = spec(argv, dir.path());
    change(&mut spec);
    let python_prefix = python_prefix();
    let (Isolation::Strict(View { read_only, .. }) | Isolation::Light(LightView { read_only, .. })) =
        &mut spec.isolation;
    read_only.extend(python_prefix.filter(|prefix| Path::new(&spec.argv[0]).starts_with(prefix)));
    read_only.extend(Some(spec.cwd.clone()).filter(|cwd| cwd.exists() && cwd != Path::new("/")));
    if let Isolation::Light(_) = spec.isolation {
        // Without a view of its own, the service's uid walks the way to its directories itself.
        fs::create_dir_all(dir.path().join("deeper")).expect("a directory");
    }
    let (their_stdin, stdin) = std::io::pipe().expect("a pipe");
    let (stdout, their_stdout) = std::io::pipe().expect("a pipe");
    let stderr = their_stdout.try_clone().expect("a descriptor");
    let stdio = Stdio { stdin: their_stdin.into(), stdout: their_stdout.into(), stderr: stderr.into() };
    let jailed = jail::spawn(exe, &spec, stdio).expect("a helper");
    Run { jailed: Some(jailed), spec, stdin: Some(stdin), stdout, mark, dir }
}

pub fn readable(fd: impl AsFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let n = poll(&mut fds, PollTimeout::try_from(left).expect("a short time")).expect("poll");
    assert_eq!(n, 1, "nothing came in time");
}

impl Run {
    pub fn jailed(&mut self) -> &mut Jailed {
        self.jailed.as_mut().expect("not dropped yet")
    }

    /// `None` at the end of the reports.
    pub fn next(&mut self) -> Option<Report> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.jailed().try_read_report().expect("a report") {
                Reading::Report(report) => return Some(report),
                Reading::Closed => return None,
                Reading::Empty => readable(self.jailed(), deadline),
            }
        }
    }

    pub fn started(&mut self) -> u32 {
        loop {
            match self.next() {
                Some(Report::Step { .. }) => {}
                Some(Report::Started { pid }) => return pid,
                other => panic!("no start but {other:?}"),
            }
        }
    }

    /// All reports that are still to come.
    pub fn rest(&mut self) -> Vec<Report> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Awaits the end of everything and gives the server's exit; nothing may be left by then.
    pub fn gone(&mut self) -> Exit {
        let reports = self.rest();
        assert_eq!(reports.last(), Some(&Report::Gone), "{reports:?}");
        assert_eq!(survivors(&self.mark), [0; 0], "Gone, but processes are left");
        let status = self.jailed().wait(LIMIT).expect("wait").expect("the helper ends after Gone");
        assert!(status.success(), "{status}");
        reports
            .into_iter()
            .find_map(|report| if let Report::Exited(exit) = report { Some(exit) } else { None })
            .expect("an exit")
    }

    pub fn line(&mut self) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            readable(&self.stdout, deadline);
            let mut byte = [0];
            if self.stdout.read(&mut byte).expect("read") == 0 {
                break;
            }
            line.extend(byte);
        }
        String::from_utf8(line).expect("text").trim_end().to_owned()
    }

    /// All output up to the end, which comes when no process holds the stream any more.
    pub fn output(&mut self) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut output = Vec::new();
        loop {
            readable(&self.stdout, deadline);
            let mut bytes = [0; 4096];
            match self.stdout.read(&mut bytes).expect("read") {
                0 => return String::from_utf8(output).expect("text"),
                n => output.extend(&bytes[..n]),
            }
        }
    }

    pub fn say(&mut self, text: &str) {
        self.stdin.as_mut().expect("open").write_all(text.as_bytes()).expect("written");
    }
}

/// A failed test must not leave a daemon behind.
impl Drop for Run {
    fn drop(&mut self) {
        if let Some(mut jailed) = self.jailed.take() {
            let _ = jailed.kill();
            let _ = jailed.wait(Duration::from_secs(5));
        }
        for pid in survivors(&self.mark) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Living processes with this marker in their environment.
pub fn survivors(mark: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("/proc");
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_marked = |pid: &i32| {
        let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes())
    };
    pids.filter(is_marked).collect()
}
