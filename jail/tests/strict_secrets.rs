//! Files of secrets: the service reads them, and nobody else finds them anywhere.
//!
//! Here: what is inside, what shows from outside, and what the helper and init still hold. Not here: refused specs (see
//! `secret.rs` of the crate).
#![expect(clippy::unwrap_used, reason = "a test's own helpers fail the test")]

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use jail::{Isolation, JailSpec, LightView, SecretFile, SpawnError, Stdio};
use nix::unistd::getuid;
use support::world::{World, start_strict, system};
use support::*;

/// In pieces, so that this file's own text in memory is none of it.
fn canary(which: &str) -> String {
    ["canary", which, "7f3a91"].join("-of-")
}

fn file(path: &str, bytes: impl Into<Vec<u8>>) -> SecretFile {
    SecretFile { path: path.into(), bytes: bytes.into() }
}

/// The user of this test, and where that is root an ordinary one; nobody without a Python that both may read.
fn users() -> Vec<Option<u32>> {
    if system("python3").is_none() {
        assert!(std::env::var_os("CI").is_none(), "no python3");
        eprintln!("skipped: no python3 of the system");
        return Vec::new();
    }
    [None].into_iter().chain(getuid().is_root().then_some(Some(1000))).collect()
}

fn start(world: &World, user: Option<u32>, script: &str, change: impl FnOnce(&mut JailSpec)) -> Run {
    let python = system("python3").unwrap();
    start_strict(world, vec![python, "-uc".into(), script.into()], user, change)
}

const PRELUDE: &str = "
import errno, hashlib, os, stat, sys
def tried(what):
    try:
        what()
        return 'done'
    except OSError as error:
        return errno.errorcode[error.errno]
def shown(path):
    found = os.stat(path)
    return oct(stat.S_IMODE(found.st_mode)), found.st_uid == os.getuid(), found.st_gid == os.getgid()
";

#[test]
fn the_service_owns_its_files_and_can_only_read_them() {
    let script = format!(
        "{PRELUDE}
a, b = '/secrets/creds.json', '/run/secrets/key'
print(*os.listdir('/secrets'), *os.listdir('/run/secrets'))
print(open(a, 'rb').read() == b'{{\"a\":\\n1}}\\0\\xff', open(b, 'rb').read() == b'')
for path in a, b, '/secrets', '/run/secrets':
    print(*shown(path))
print(tried(lambda: open(a, 'r+')), tried(lambda: os.chmod(a, 0o600)), tried(lambda: os.unlink(a)))
print(tried(lambda: open('/secrets/new', 'w')), tried(lambda: os.chmod('/secrets', 0o700)))
print(tried(lambda: os.execv(b, [b])), tried(lambda: os.mkdir('/run/more')))
for line in open('/proc/self/mountinfo'):
    if '/secrets' in line:
        print(*sorted(set(line.split()[5].split(','))))
"
    );
    for user in users() {
        let world = World::new();
        let mut run = start(&world, user, &script, |spec| {
            let json = b"{\"a\":\n1}\0\xff";
            spec.secret_files = vec![file("/secrets/creds.json", json), file("/run/secrets/key", "")];
        });
        let output = run.output();
        run.gone();
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[..2], ["creds.json key", "True True"], "{output}");
        assert_eq!(lines[2..4], ["0o400 True True"; 2], "{output}");
        assert_eq!(lines[4..6], ["0o500 True True"; 2], "{output}");
        let refused = lines[6..9].iter().flat_map(|line| line.split(' '));
        assert_eq!(refused.clone().count(), 7);
        refused.for_each(|word| assert!(["EROFS", "EACCES"].contains(&word), "{output}"));
        assert_eq!(lines[9..], ["nodev noexec nosuid relatime ro"; 2], "{output}");
    }
}

#[test]
fn several_of_half_a_mebibyte_arrive_whole_beside_a_large_environment() {
    let script = format!(
        "{PRELUDE}
for n in range(6):
    print(open(f'/secrets/{{n}}', 'rb').read() == bytes((n + i) % 251 for i in range(512 << 10)))
print(os.environ['LARGE'] == 'x' * 100000)
"
    );
    for user in users() {
        let world = World::new();
        let mut run = start(&world, user, &script, |spec| {
            let bytes = |n: usize| (0..512 << 10).map(|i| ((n + i) % 251) as u8).collect::<Vec<_>>();
            spec.secret_files = (0..6).map(|n| file(&format!("/secrets/{n}"), bytes(n))).collect();
            spec.env.push(("LARGE".into(), "x".repeat(100_000)));
        });
        assert_eq!(run.output(), "True\n".repeat(7));
        run.gone();
    }
}

#[test]
fn another_service_finds_its_own_or_none() {
    let script = "import os, sys
for at in '/secrets', '/run/secrets':
    print([open(at + '/' + n).read() for n in os.listdir(at)] if os.path.exists(at) else 'none')
sys.stdin.readline()";
    for user in users() {
        let (one, two, three) = (World::new(), World::new(), World::new());
        let mut first = start(&one, user, script, |s| s.secret_files = vec![file("/secrets/a", "first")]);
        first.started();
        let mut second =
            start(&two, user, script, |s| s.secret_files = vec![file("/run/secrets/b", "second")]);
        let mut third = start(&three, user, script, |_| {});
        assert_eq!([first.line(), first.line()], ["['first']", "none"]);
        assert_eq!([second.line(), second.line()], ["none", "['second']"]);
        assert_eq!([third.line(), third.line()], ["none", "none"]);
        for run in [&mut first, &mut second, &mut third] {
            run.say("\n");
            run.gone();
        }
    }
}

fn mount_namespace(pid: &str) -> Option<std::path::PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

#[test]
fn nothing_of_them_shows_outside_and_all_is_gone_with_the_jail() {
    for user in users() {
        let world = World::new();
        let mut run = start(&world, user, "import sys; sys.stdin.readline()", |spec| {
            spec.secret_files = vec![file("/secrets/canary-file", canary("outside"))];
        });
        let server = run.started().to_string();
        let inside = mount_namespace(&server).unwrap();
        assert_ne!(Some(&inside), mount_namespace("self").as_ref());
        assert!(!Path::new("/secrets/canary-file").exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(" /secrets ") && !mounts.contains(" /run/secrets "), "{mounts}");
        assert!(fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap().contains(" /secrets "));
        for path in walk(world.dir.path()) {
            let bytes = fs::read(&path).unwrap_or_default();
            assert!(!contains(&bytes, canary("outside").as_bytes()), "{}", path.display());
        }
        run.say("\n");
        run.gone();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let holders =
            all.filter(|e| mount_namespace(&e.file_name().to_string_lossy()).as_ref() == Some(&inside));
        assert_eq!(holders.count(), 0, "a namespace that nobody is in is no more");
    }
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => vec![],
        })
        .collect()
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Whether a process has it anywhere in memory that it could have written.
fn holds(pid: &str, what: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|n| u64::from_str_radix(n, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        memory.seek(SeekFrom::Start(from)).unwrap();
        memory.read_exact(&mut bytes).is_ok() && contains(&bytes, what)
    })
}

#[test]
fn helper_and_init_hold_no_secret_once_the_server_runs() {
    if !getuid().is_root() || users().is_empty() {
        eprintln!("skipped: only root can read a helper's memory");
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    let world = World::new();
    let script = "import sys; kept = open('/secrets/a').read(); print('read'); sys.stdin.readline()";
    let (in_env, in_file) = (canary("env"), canary("file"));
    let mut run = start(&world, None, script, |spec| {
        // With what an encoder would escape, for escapes are what parsers copy.
        spec.env.push(("API_KEY".into(), format!("\"\n{in_env}\"")));
        spec.secret_files = vec![file("/secrets/a", in_file.clone())];
    });
    let server = run.started().to_string();
    let helper = run.jailed().helper_pid().to_string();
    assert_eq!(run.line(), "read");
    let init = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    for what in [&in_env, &in_file] {
        assert!(holds(&server, what.as_bytes()), "or the look at memory finds nothing at all");
        for pid in [helper.as_str(), init.trim()] {
            assert!(!holds(pid, what.as_bytes()), "{what} is in the memory of {pid}");
            assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
            assert_eq!(fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"claudemesh\0jail\0");
        }
    }
    run.say("\n");
    run.gone();
}

#[test]
fn a_light_jail_takes_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut spec, _) = spec(sh("exit 0"), dir.path());
    spec.isolation = Isolation::Light(LightView { uid: view().uid, ..LightView::default() });
    spec.secret_files = vec![file("/secrets/a", "x")];
    let pipe = || std::io::pipe().unwrap();
    let ((stdin, _in), (_out, stdout), (_err, stderr)) = (pipe(), pipe(), pipe());
    let stdio = Stdio { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
    let refused = jail::spawn(&helper(), &spec, stdio).unwrap_err();
    assert!(matches!(refused, SpawnError::Spec(_)) && refused.to_string().contains("strict"), "{refused}");
}
