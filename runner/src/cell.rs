//! The one way to run anything foreign: a jail with its reports, its way out, its control group and its directories.
//!
//! Here: [`Cells`] (what all cells of a runner share), [`CellOrder`] (what one is asked to run), the opening.
//! Not here: what the program says and means (see [`crate::instance`] and [`crate::prepare`]), a [`Cell`]'s life from
//! then on (see [`open`]).
//! Invariant: nothing foreign runs in a weaker jail than was asked for; what can't be built is a [`Reason`].

mod found;
mod open;
mod uids;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use egress::{Egress, EgressConfig, Ledger, Rules};
use jail::cgroup::{Cgroups, Group, GroupLimits};
use jail::{Isolation, JailSpec, LightView, Network, SecretFile, View};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use wire::egress::PrivateHost;
use wire::isolation::IsolationReport;
use wire::report::Reason;
use wire::spec::Limits;
use wire::{EgressRule, ErrorCode, Tier};
use zeroize::Zeroizing;

use crate::config::RunnerConfig;
use crate::inject::Trust;
pub use open::{Cell, Ended};
use uids::Uids;
pub use uids::{INSTALLER, UidLease};

/// Private memory file systems without a cgroup count against nothing, so there they are a part of the memory limit.
const TMPFS_PART: u64 = 4;

/// What every cell of this runner shares.
pub struct Cells {
    exe: PathBuf,
    data: PathBuf,
    isolation: IsolationReport,
    cgroups: Option<Cgroups>,
    egress: Egress,
    egress_config: EgressConfig,
    /// `None`: the runner is not root, and all runs under its own uid.
    uids: Option<Arc<Uids>>,
    n_opened: AtomicU64,
}

/// What to run, and in what.
pub struct CellOrder {
    /// For the cgroup and for logs: letters, digits, `-` and `_`. A number is added to it.
    pub name: String,
    pub argv: Vec<String>,
    /// Wiped also when no jail comes of it.
    pub env: Zeroizing<Vec<(String, String)>>,
    /// Of a strict cell only.
    pub secret_files: Vec<SecretFile>,
    pub cwd: PathBuf,
    pub home: PathBuf,
    /// `None`: the private `/tmp` of a strict jail, a fresh directory in a light one.
    pub tmp: Option<PathBuf>,
    pub read_only: Vec<PathBuf>,
    pub writable: Vec<PathBuf>,
    /// Must be given by a runner that is root, and by no other.
    pub uid: Option<u32>,
    pub limits: Limits,
    pub rules: Rules,
    /// What the jail has to trust for the injection of the rules.
    pub trust: Option<Trust>,
    /// Those of the rules that may mean private addresses, besides the operator's own hosts: an install's registries.
    pub private: Vec<EgressRule>,
    pub ledger: Arc<Ledger>,
    /// As [`Cells::tier`] said.
    pub tier: Tier,
    pub stdio: jail::Stdio,
}

impl Cells {
    /// Finds out what this machine lets us build. Blocks for some tens of milliseconds.
    pub fn new(config: &RunnerConfig) -> Self {
        raise_descriptors();
        let name = hex::encode(Sha256::digest(config.data.as_os_str().as_encoded_bytes()));
        let cgroups = config.use_cgroups.then(|| Cgroups::find(&name[..12]));
        let isolation = found::report(jail::probe(), cgroups.as_ref(), config.strongest);
        match isolation.tier {
            Some(tier) => tracing::info!("services run in the {tier} jail"),
            None => tracing::error!(
                "no jail can be built, so no service will start: {}",
                found::missing(&isolation, Tier::Light)
            ),
        }
        let cgroups = cgroups.and_then(|found| {
            found
                .inspect_err(|e| {
                    tracing::warn!("no control groups, so limits hold for each process alone: {e}")
                })
                .ok()
        });
        let is_root = nix::unistd::geteuid().is_root();
        Self {
            exe: config.jail_exe.clone(),
            // It is there; a jail takes no path with a symbolic link on it.
            data: config.data.canonicalize().unwrap_or_else(|_| config.data.clone()),
            isolation,
            cgroups,
            egress: Egress::new(config.egress.clone()),
            egress_config: config.egress.clone(),
            uids: is_root.then(|| Arc::new(Uids::new(config.uids.clone(), config.data.join("services")))),
            n_opened: AtomicU64::new(1),
        }
    }

    pub fn isolation(&self) -> &IsolationReport {
        &self.isolation
    }

    /// The tier that everything here runs in.
    ///
    /// # Errors
    /// `isolation_unavailable` when it is below `least`, with what is missing and what usually grants it.
    pub fn tier(&self, least: Tier) -> Result<Tier, Reason> {
        match self.isolation.tier {
            Some(tier) if tier >= least => Ok(tier),
            built => {
                let built =
                    built.map_or("no jail at all".to_owned(), |tier| format!("at most a {tier} jail"));
                let message = format!(
                    "a {least} jail is demanded, and this runner can build {built}: {}",
                    found::missing(&self.isolation, least)
                );
                Err(Reason { code: ErrorCode::IsolationUnavailable, message, stderr: vec![] })
            }
        }
    }

    pub fn is_root(&self) -> bool {
        self.uids.is_some()
    }

    /// For package managers that run no foreign code; `None` when the runner is not root.
    pub fn installer_uid(&self) -> Option<u32> {
        self.uids.as_ref().map(|_| INSTALLER)
    }

    /// Given back when dropped; `None` when the runner is not root.
    ///
    /// # Errors
    /// All are in use, or the homes can't be read.
    pub fn fresh_uid(&self) -> io::Result<Option<UidLease>> {
        self.uids.as_ref().map(Uids::lease).transpose()
    }

    /// Makes a service's home if it is not there. Its path without symbolic links, and its owner, which is the record of
    /// the service's uid (`None` when the runner is not root). Blocks.
    ///
    /// # Errors
    /// It can't be made, or given away.
    pub fn settle_home(&self, home: &Path) -> io::Result<(PathBuf, Option<u32>)> {
        let uid = match &self.uids {
            Some(uids) => Some(uids.settle(home)?),
            None => uids::make_private(home).map(|()| None)?,
        };
        Ok((home.canonicalize()?, uid))
    }

    /// Starts it; what becomes of it is in [`Cell::life`].
    ///
    /// # Errors
    /// No helper could be started, or no cgroup or directory be made. Nothing is left then.
    pub async fn open(&self, order: CellOrder) -> Result<Cell, Reason> {
        open::open(self, order).await
    }

    /// The way out of a cell with these private hosts.
    fn egress(&self, private: &[EgressRule]) -> Egress {
        if private.is_empty() {
            return self.egress.clone();
        }
        let more = private.iter().cloned().map(PrivateHost::from);
        let private = self.egress_config.private.iter().cloned().chain(more).collect();
        Egress::new(EgressConfig { private, ..self.egress_config.clone() })
    }

    /// Its place among this runner's cells.
    fn number(&self) -> u64 {
        self.n_opened.fetch_add(1, Ordering::Relaxed)
    }

    fn group(&self, id: &str, limits: &Limits) -> io::Result<Option<Group>> {
        let limits = GroupLimits {
            memory_bytes: u64::from(limits.memory_mb) << 20,
            pids: u64::from(limits.pids),
            // A start needs more than it may have later.
            milli_cpus: None,
        };
        self.cgroups.as_ref().map(|cgroups| cgroups.make(id, limits)).transpose()
    }
}

/// As many descriptors as we may have. Each service takes a dozen. And descriptors that are on their way through sockets
/// count for the uid and against the limit of whoever sends the next: with one uid for all, and no more than a server may
/// have, one server could keep us from handing any other its streams.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        tracing::warn!("the runner's own limit of descriptors could not be raised: {e}");
    }
}

/// Limits of each process, which hold without a cgroup too.
fn floor(limits: &Limits, has_group: bool) -> jail::Limits {
    let memory = u64::from(limits.memory_mb) << 20;
    let disk = u64::from(limits.disk_mb) << 20;
    jail::Limits {
        // With a cgroup what counts is what is used; what a process only reserves may be more.
        memory_bytes: Some(if has_group { 2 * memory } else { memory }),
        max_processes: Some(u64::from(limits.pids)),
        open_files: u64::from(limits.open_files),
        file_size_bytes: Some(disk),
    }
}

/// What is built of an order. `proxy_port`: of a light one.
fn spec_of(order: &mut CellOrder, tmp: PathBuf, group: Option<&Group>, proxy_port: Option<u16>) -> JailSpec {
    let take = std::mem::take::<Vec<PathBuf>>;
    let (read_only, writable, uid) = (take(&mut order.read_only), take(&mut order.writable), order.uid);
    let memory = u64::from(order.limits.memory_mb) << 20;
    let isolation = match order.tier {
        Tier::Strict => Isolation::Strict(View {
            uid,
            network: Network::Filtered { ports: order.rules.ports() },
            read_only,
            writable,
            tmpfs_bytes: if group.is_some() { memory } else { memory / TMPFS_PART },
        }),
        Tier::Light => Isolation::Light(LightView { uid, read_only, writable, proxy_port }),
    };
    JailSpec {
        argv: std::mem::take(&mut order.argv),
        env: std::mem::take(&mut *order.env),
        cwd: std::mem::take(&mut order.cwd),
        home: std::mem::take(&mut order.home),
        tmp,
        limits: floor(&order.limits, group.is_some()),
        isolation,
        cgroups: group.map(Group::directories).unwrap_or_default(),
        secret_files: std::mem::take(&mut order.secret_files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_may_have_more_descriptors_than_a_server_that_keeps_all_of_its_own_on_the_way() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).expect("lowered");
        raise_descriptors();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("a limit"), (hard, hard));
    }
}
