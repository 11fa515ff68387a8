//! One cell from its opening to its end.
//!
//! Here: directories, cgroup and proxy before the jail is spawned, the tasks beside it, readings, the end.
//! Not here: what may be run where (see [`super`]).
//! Invariant: after [`Cell::end`] has returned [`Ended::Confirmed`] there is no process, socket, cgroup or temporary
//! directory of it; a dropped cell is being killed.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use egress::{Doors, Egress, Ledger, Rules};
use jail::cgroup::{Group, GroupEvents};
use jail::{Jailed, Listeners};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use wire::report::{Reason, Usage};
use wire::{ErrorCode, Tier};

use super::{CellOrder, Cells, spec_of};
use crate::inject::Trust;
use crate::warden::{Life, Order, watch_jail};

/// From SIGKILL to the jail's word that nothing is left.
const GRACE_KILL: Duration = Duration::from_secs(10);

/// A jail, and what is around it.
pub struct Cell {
    orders: mpsc::Sender<Order>,
    life: watch::Receiver<Life>,
    helper_pid: u32,
    tier: Tier,
    milli_cpus: u32,
    /// Taken at the end.
    group: Mutex<Option<Arc<Group>>>,
    /// The group's last ones.
    last_events: OnceLock<GroupEvents>,
    /// The directory outside that was made for it.
    tmp: Option<PathBuf>,
    /// Kept for as long as it may be read.
    _trust: Option<Trust>,
    /// The warden and the way out. Taken by whoever ends it first; a second end waits for the first.
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// What is known after a cell was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The jail said that the whole process tree is gone.
    Confirmed,
    /// The jail helper was killed itself, or could not say.
    Unknown,
}

/// Where a light jail's proxy listens.
struct Proxy {
    listener: TcpListener,
    port: u16,
    token: String,
}

fn broken(what: impl std::fmt::Display) -> Reason {
    Reason { code: ErrorCode::JailFailed, message: what.to_string(), stderr: vec![] }
}

pub(super) async fn open(cells: &Cells, mut order: CellOrder) -> Result<Cell, Reason> {
    if order.uid.is_some() != cells.is_root() {
        return Err(broken("a runner that is root, and no other, must give each cell a uid"));
    }
    let number = cells.number();
    let egress = cells.egress(&order.private);
    let (tier, limits, rules, ledger) = (order.tier, order.limits, order.rules.clone(), order.ledger.clone());
    let trust = order.trust.take();
    order.read_only.extend(trust.as_ref().map(|trust| trust.path().to_owned()));
    let proxy = match tier {
        Tier::Light => Some(Proxy::new().map_err(|e| broken(format!("no port for the proxy: {e}")))?),
        Tier::Strict => None,
    };
    if let Some(proxy) = &proxy {
        proxy.tell(&mut order.env);
    }
    let made_tmp =
        (tier == Tier::Light && order.tmp.is_none()).then(|| cells.data.join("tmp").join(number.to_string()));
    let group = cells
        .group(&group_name(&order.name, number), &limits)
        .map_err(|e| broken(format!("its control group could not be made: {e}")))?
        .map(Arc::new);
    let (exe, data, tmp) = (cells.exe.clone(), cells.data.clone(), made_tmp.clone());
    let (port, group_of_spec) = (proxy.as_ref().map(|proxy| proxy.port), group.clone());
    // Directories, and the start of a process: it blocks for as long as the kernel takes.
    let spawned =
        spawn_blocking(move || spawn(&exe, &data, order, tmp, group_of_spec.as_deref(), port)).await;
    let jailed = spawned.unwrap_or_else(|_| Err(broken("the start of the jail helper panicked")))?;
    let helper_pid = jailed.helper_pid();
    let control = jailed.as_fd().try_clone_to_owned().map(std::os::unix::net::UnixStream::from);
    let control =
        control.and_then(UnixStream::from_std).map_err(|e| broken(format!("the jail's socket: {e}")))?;
    let (tell_life, life) = watch::channel(Life::default());
    let (orders, inbox) = mpsc::channel(8);
    let (give, doors) = oneshot::channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_jail(jailed, control, inbox, tell_life, give));
    tasks.spawn(serve(egress, proxy, doors, rules, ledger));
    let (group, tasks) = (Mutex::new(group), tokio::sync::Mutex::new(tasks));
    let milli_cpus = limits.milli_cpus;
    let last_events = OnceLock::new();
    Ok(Cell {
        orders,
        life,
        helper_pid,
        tier,
        milli_cpus,
        group,
        last_events,
        tmp: made_tmp,
        _trust: trust,
        tasks,
    })
}

/// The way out, until the cell is ended.
async fn serve(
    egress: Egress,
    proxy: Option<Proxy>,
    doors: oneshot::Receiver<Listeners>,
    rules: Rules,
    ledger: Arc<Ledger>,
) {
    let served = match proxy {
        Some(proxy) => egress.serve_proxy(proxy.listener, proxy.token, rules, ledger).await,
        None => match doors.await {
            Ok(Listeners { dns, proxy, ports }) => {
                egress.serve(Doors { dns, proxy, ports }, rules, ledger).await
            }
            // The jail ended before it had any.
            Err(_) => Ok(()),
        },
    };
    if let Err(e) = served {
        tracing::error!("a service is without network: {e}");
    }
}

/// Names of groups have no dot; that of a caller's instance has one. The number tells cells apart.
fn group_name(name: &str, number: u64) -> String {
    format!("{}-{number}", name.replace('.', "-"))
}

fn spawn(
    exe: &Path,
    data: &Path,
    mut order: CellOrder,
    made_tmp: Option<PathBuf>,
    group: Option<&Group>,
    proxy_port: Option<u16>,
) -> Result<Jailed, Reason> {
    let no_place = |e: std::io::Error| {
        let code = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
            _ => ErrorCode::JailFailed,
        };
        Reason { code, message: format!("its directories could not be made: {e}"), stderr: vec![] }
    };
    if let Some(made) = &made_tmp {
        // What a killed runner left of another service, and could not be removed when this one started.
        crate::prepare::remove_tree(made).map_err(no_place)?;
    }
    let tmp = made_tmp.or(order.tmp.take()).unwrap_or_else(|| PathBuf::from("/tmp"));
    if tmp != Path::new("/tmp")
        && let Some(parent) = tmp.parent()
    {
        // The last component is left to the jail, which makes it with mode 0700.
        std::fs::create_dir_all(parent).map_err(no_place)?;
    }
    if order.tier == Tier::Light && order.uid.is_some() {
        let program = PathBuf::from(order.argv.first().map(String::as_str).unwrap_or_default());
        let needed = [&order.home, &tmp, &order.cwd, &program].into_iter().chain(&order.writable);
        // Of what it may read it may never want some, so only what it needs must be within reach.
        needed
            .clone()
            .chain(&order.read_only)
            .try_for_each(|place| let_through(data, place))
            .map_err(no_place)?;
        needed.into_iter().try_for_each(|place| within_reach(place)).map_err(no_place)?;
    }
    let stdio_of = |order: CellOrder| order.stdio;
    let spec = spec_of(&mut order, tmp, group, proxy_port);
    jail::spawn(exe, &spec, stdio_of(order)).map_err(broken)
}

/// A light jail has no view of its own: another uid than ours must be able to walk to what it may use.
fn let_through(data: &Path, place: &Path) -> std::io::Result<()> {
    for dir in place.ancestors().skip(1).take_while(|dir| dir.starts_with(data)) {
        let mode = std::fs::metadata(dir)?.permissions().mode();
        if mode & 0o011 != 0o011 {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode & 0o7777 | 0o011))?;
        }
    }
    Ok(())
}

fn within_reach(place: &Path) -> std::io::Result<()> {
    for dir in place.ancestors().skip(1) {
        if std::fs::metadata(dir)?.permissions().mode() & 0o001 == 0 {
            let message = format!(
                "{} is closed to other users than root, and without namespaces a service must walk through it; give the \
                 platform a data folder outside, such as `--data /var/lib/claudemesh`, and tools outside, such as those in /usr",
                dir.display()
            );
            return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, message));
        }
    }
    Ok(())
}

impl Proxy {
    fn new() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let mut token = [0u8; 16];
        getrandom::fill(&mut token).map_err(std::io::Error::other)?;
        Ok(Self { listener, port, token: hex::encode(token) })
    }

    /// Variables that clients look at, but for those that the deployer has set.
    fn tell(&self, env: &mut Vec<(String, String)>) {
        let url = format!("http://service:{}@127.0.0.1:{}", self.token, self.port);
        let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"];
        let others = [("NO_PROXY", "localhost,127.0.0.1"), ("NODE_USE_ENV_PROXY", "1")];
        for (name, value) in proxies.iter().map(|name| (*name, url.as_str())).chain(others) {
            if !env.iter().any(|(taken, _)| taken == name) {
                env.push((name.to_owned(), value.to_owned()));
            }
        }
    }
}

impl Cell {
    /// What the jail has reported.
    pub fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    pub fn helper_pid(&self) -> u32 {
        self.helper_pid
    }

    /// The tier that it was built in.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// False when nobody listens any more.
    pub async fn order(&self, order: Order) -> bool {
        self.orders.send(order).await.is_ok()
    }

    /// Whether this was seen, or the jail was gone, within the time.
    pub async fn reached(&self, what: impl Fn(&Life) -> bool, limit: Duration) -> bool {
        let mut life = self.life.clone();
        let what = |life: &Life| what(life) || life.gone;
        // An error means that the warden ended; it says `gone` before.
        timeout(limit, life.wait_for(what)).await.is_ok_and(|seen| seen.is_ok())
    }

    /// From now on its share of the processor is limited; a start is not.
    pub async fn limit_cpu(&self) {
        let milli_cpus = self.milli_cpus;
        let limited = self.of_group(move |group| group.set_cpu(milli_cpus)).await;
        if let Some(Err(e)) = limited {
            tracing::warn!("a service's share of the processor could not be limited: {e}");
        }
    }

    /// All but the disk. `None` when it can't be read.
    pub async fn usage(&self) -> Option<Usage> {
        if let Some(used) = self.of_group(|group| group.usage()).await {
            let used = used.ok()?;
            let (memory_bytes, pids) = (used.memory_bytes, used.pids);
            return Some(Usage { memory_bytes, pids, cpu_ms: Some(used.cpu_ms), disk_bytes: 0 });
        }
        let helper = self.helper_pid;
        // Reads /proc, which blocks.
        let used = spawn_blocking(move || jail::usage(helper)).await.ok()?.ok()?;
        let pids = u32::try_from(used.processes).unwrap_or(u32::MAX);
        Some(Usage { memory_bytes: used.rss_bytes, pids, cpu_ms: None, disk_bytes: 0 })
    }

    /// What the kernel refused it so far; `None` without a cgroup.
    pub async fn events(&self) -> Option<GroupEvents> {
        match self.of_group(|group| group.events()).await {
            Some(events) => events.ok(),
            None => self.last_events.get().copied(),
        }
    }

    /// Kills what is left of it, waits, and clears away what was made for it.
    pub async fn end(&self) -> Ended {
        let mut tasks = self.tasks.lock().await;
        self.order(Order::Kill).await;
        if !self.reached(|life| life.gone, GRACE_KILL).await {
            tracing::error!(
                helper.pid = self.helper_pid,
                "the jail helper does not end its tree; killing both"
            );
            self.order(Order::Force).await;
            self.reached(|life| life.gone, GRACE_KILL).await;
        }
        tasks.shutdown().await;
        if let Some(Ok(events)) = self.of_group(|group| group.events()).await {
            // A second end finds no group.
            let _ = self.last_events.set(events);
        }
        let (group, tmp) = (self.take_group(), self.tmp.clone());
        // Best effort: what can not be removed now is removed at the next start of the runner.
        let _ = spawn_blocking(move || {
            drop(group);
            tmp.map(|tmp| crate::prepare::remove_tree(&tmp))
        })
        .await;
        if self.life.borrow().confirmed { Ended::Confirmed } else { Ended::Unknown }
    }

    fn take_group(&self) -> Option<Arc<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// `None` without a group. Its files are the kernel's, which may take its time.
    async fn of_group<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Group) -> T + Send + 'static,
    ) -> Option<T> {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        spawn_blocking(move || look(&group)).await.ok()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let (group, tmp) = (self.take_group(), self.tmp.take());
        if group.is_none() && tmp.is_none() {
            return;
        }
        let clear = move || {
            drop(group);
            // What can not be removed yet is removed at the next start of the runner.
            tmp.map(|tmp| crate::prepare::remove_tree(&tmp))
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clear)),
            Err(_) => drop(clear()),
        }
    }
}
