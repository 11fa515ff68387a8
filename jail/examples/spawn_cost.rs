//! What a jail costs at start: plain, light, strict, strict with a filtered network, and that one in a cgroup as the runner
//! starts it, interleaved; p10 and median of the time from `spawn` to the end.
//!
//! Here: a print, asserted by nobody. Run `cargo run -p jail --release --example spawn_cost -- [rounds] [program args…]`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use jail::cgroup::{Cgroups, Group, GroupLimits};
use jail::{Isolation, JailSpec, LightView, Limits, Network, Reading, Report, View};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Failure> {
    let mut arguments = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some(jail::ROLE) {
        return Ok(jail::main());
    }
    let rounds: usize = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let mut argv: Vec<String> = arguments.collect();
    if argv.is_empty() {
        argv.push("/bin/true".into());
    }
    let exe = std::env::current_exe()?;
    let home = std::env::temp_dir().join(format!("spawn-cost-{}", std::process::id()));
    let uid = Some(400_001).filter(|_| nix::unistd::getuid().is_root());
    let light = Isolation::Light(LightView { uid, ..LightView::default() });
    let strict = |network| Isolation::Strict(View { uid, network, ..View::default() });
    let filtered = strict(Network::Filtered { ports: vec![80, 443] });
    let cgroups = Cgroups::find(&format!("spawn-cost-{}", std::process::id()));
    let limits = GroupLimits { memory_bytes: 512 << 20, pids: 128, milli_cpus: None };
    let group = cgroups.as_ref().ok().map(|cgroups| cgroups.make("all", limits)).transpose()?;
    let none = Vec::new();
    let groups = group.as_ref().map(Group::directories).unwrap_or_default();
    let jails = [
        ("light", light, &none),
        ("strict", strict(Network::None), &none),
        ("filtered", filtered.clone(), &none),
        ("grouped", filtered, &groups),
    ];
    std::fs::create_dir_all(&home)?;
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..rounds {
        times[0].push(plain(&argv)?);
        for (times, (name, isolation, groups)) in times[1..].iter_mut().zip(&jails) {
            times.push(jailed(&exe, &argv, &home.join(name), isolation.clone(), groups)?);
        }
    }
    std::fs::remove_dir_all(&home)?;
    let names = ["plain"].into_iter().chain(jails.iter().map(|(name, ..)| *name));
    for (name, mut times) in names.zip(times) {
        times.sort_unstable();
        let ms = |place: usize| times[place].as_secs_f64() * 1000.0;
        println!("{name:<8} p10 {:6.2} ms   median {:6.2} ms", ms(rounds / 10), ms(rounds / 2));
    }
    Ok(ExitCode::SUCCESS)
}

fn plain(argv: &[String]) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    child.wait()?;
    Ok(start.elapsed())
}

fn jailed(
    exe: &Path,
    argv: &[String],
    home: &Path,
    isolation: Isolation,
    groups: &[PathBuf],
) -> Result<Duration, Failure> {
    let (mut output, stdout) = std::io::pipe()?;
    let stdin = std::fs::File::open("/dev/null")?;
    let stdio =
        jail::Stdio { stdin: stdin.into(), stderr: stdout.try_clone()?.into(), stdout: stdout.into() };
    let spec = JailSpec {
        argv: argv.to_vec(),
        env: Vec::new(),
        cwd: "/".into(),
        home: PathBuf::from(home),
        tmp: home.with_extension("tmp"),
        limits: Limits::default(),
        isolation,
        cgroups: groups.to_vec(),
        secret_files: vec![],
    };
    let start = Instant::now();
    let mut jailed = jail::spawn(exe, &spec, stdio)?;
    loop {
        match jailed.try_read_report()? {
            Reading::Report(Report::Gone) => break,
            Reading::Report(Report::Failed { step, message, .. }) => {
                return Err(format!("{step}: {message}").into());
            }
            Reading::Report(_) => {}
            Reading::Closed => return Err("the helper was killed".into()),
            Reading::Empty => {
                poll(
                    &mut [PollFd::new(std::os::fd::AsFd::as_fd(&jailed), PollFlags::POLLIN)],
                    PollTimeout::from(10_000_u16),
                )?;
            }
        }
    }
    let took = start.elapsed();
    jailed.wait(Duration::from_secs(5))?;
    let mut printed = Vec::new();
    output.read_to_end(&mut printed)?;
    Ok(took)
}
