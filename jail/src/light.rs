//! The light jail: no namespace, but rules for files, TCP and system calls, and a uid of its own where there is root.
//!
//! Here: what is allowed, opened in the helper; the Landlock rules, put on the process that becomes the server. Not here:
//! the list of system calls (see [`crate::seccomp`]), the order of the steps (see [`crate::server`]).
//! Invariant: rules for reads, writes and TCP are there as a whole or no server starts; only what newer kernels add on top
//! of them is used as far as it goes.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::identity::Identity;
use crate::report::Step;
use crate::server::{SetupError, build};
use crate::sources::{self, DEVICES, ETC, ETC_OF_THE_NETWORK, SYSTEM, Source, if_there, of_the_system};
use crate::spec::JailSpec;
use crate::strict::confine::MOST;
use crate::sys::privilege::{bound_capabilities, drop_capabilities, landlock_abi};
use crate::view::LightView;

/// What this kernel must have: reads and writes of files.
const LEAST: ABI = ABI::V1;
/// From this version of Landlock on it decides who may connect to a path socket.
const WITH_PATH_SOCKETS: u32 = 9;
const USERS: [&str; 2] = ["/etc/group", "/etc/passwd"];

/// Everything that the forked child needs, found while the helper still has its privileges.
pub(crate) struct Light {
    pub(crate) helper: Pid,
    identity: Identity,
    /// Programs, libraries, `/proc`, and what the spec lets it read.
    readable: Vec<Source>,
    writable: Vec<Source>,
    devices: Vec<Source>,
    proxy_port: Option<u16>,
}

impl Light {
    pub(crate) fn open(spec: &JailSpec, view: &LightView) -> Result<Self, SetupError> {
        let (writable, mut readable): (Vec<_>, Vec<_>) =
            sources::named(spec)?.into_iter().partition(|source| source.is_writable);
        for path in SYSTEM.iter().chain(&ETC).chain(&ETC_OF_THE_NETWORK).chain(&USERS) {
            readable.extend(if_there(Path::new(path))?);
        }
        readable.push(of_the_system(Path::new("/proc"))?);
        let devices = DEVICES.iter().map(|path| of_the_system(Path::new(path))).collect::<Result<_, _>>()?;
        let identity = Identity::of(view.uid)?;
        Ok(Self { helper: Pid::this(), identity, readable, writable, devices, proxy_port: view.proxy_port })
    }

    /// The descriptors that the rules are made of. They close when the program is executed.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.readable, &self.writable, &self.devices].into_iter().flatten().map(|source| source.fd.as_fd())
    }

    /// The service's uid. Nothing of root's may come back with a program that is executed later.
    pub(crate) fn assume(&self) -> Result<(), SetupError> {
        match bound_capabilities() {
            // A container's root may lack the right to do this, as every other user does. `no_new_privs` holds as well.
            Ok(()) | Err(Errno::EPERM) => self.identity.assume(),
            Err(errno) => Err(build(Step::Capabilities, "the bounding set", errno)),
        }
    }

    /// After the change of uid, which keeps them if the bounding set could be locked.
    pub(crate) fn drop_capabilities(&self) -> Result<(), SetupError> {
        drop_capabilities().map_err(|errno| build(Step::Capabilities, "capabilities", errno))
    }

    /// Files by an allow-list, TCP to one port; signals and abstract sockets only inside, where the kernel can.
    pub(crate) fn restrict(&self) -> Result<(), SetupError> {
        let status = self.enforce().map_err(|error| build(Step::Landlock, error, Errno::ENOTSUP))?;
        match status {
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
            RulesetStatus::NotEnforced => {
                Err(build(Step::Landlock, "the kernel enforces no rule", Errno::ENOTSUP))
            }
        }
    }

    fn enforce(&self) -> Result<RulesetStatus, RulesetError> {
        let read = AccessFs::from_read(MOST);
        let node: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
        let device = node | AccessFs::IoctlDev | AccessFs::Truncate;
        let write =
            AccessFs::from_all(MOST) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(LEAST))?
            .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(MOST))?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?;
        let rules = allow(rules, &self.readable, read)?;
        let rules = allow(rules, &self.writable, write)?;
        let rules = allow(rules, &self.devices, device)?;
        let port =
            self.proxy_port.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp)));
        Ok(rules.add_rules(port)?.restrict_self()?.ruleset)
    }
}

fn allow(
    rules: RulesetCreated,
    sources: &[Source],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // Rights that only a directory can have are refused for anything else.
    let of = |source: &Source| {
        if source.is_directory { access } else { access & AccessFs::from_file(MOST) }
    };
    rules.add_rules(
        sources.iter().map(|source| Ok::<_, RulesetError>(PathBeneath::new(source.fd.as_fd(), of(source)))),
    )
}

/// Whether the rules above hold for path sockets, so that the server may have some.
pub(crate) fn rules_path_sockets() -> bool {
    landlock_abi().is_ok_and(|abi| abi >= WITH_PATH_SOCKETS)
}
