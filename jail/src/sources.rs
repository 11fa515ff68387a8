//! What a server may see, opened before the uid changes: the way to a service's directory is often the runner's alone.
//!
//! Here: the lists of the system's directories and files, and the opening. Not here: binding (see
//! [`crate::strict`]), rules (see [`crate::light`]).
//! Invariant: a path of the spec is opened only if no symbolic link lies on it; a path of the system may be one.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::spec::JailSpec;
use crate::view::{Network, View};

/// Programs and libraries. On most systems all but the first are links into it.
pub(crate) const SYSTEM: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What programs look up in `/etc` and no secret is in.
pub(crate) const ETC: [&str; 12] = [
    "/etc/alternatives",
    "/etc/crypto-policies",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// Only with the host's network: they tell about it.
pub(crate) const ETC_OF_THE_NETWORK: [&str; 5] =
    ["/etc/gai.conf", "/etc/host.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf"];

pub(crate) const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// One thing to be bound at the path that it has outside.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) fd: OwnedFd,
    pub(crate) is_directory: bool,
    pub(crate) is_writable: bool,
}

/// A directory of the system that is a symbolic link, to be made again.
pub(crate) struct Link {
    pub(crate) path: PathBuf,
    pub(crate) to: PathBuf,
}

pub(crate) struct Sources {
    pub(crate) system: Vec<Source>,
    pub(crate) links: Vec<Link>,
    /// Parents before what lies below them.
    pub(crate) binds: Vec<Source>,
    pub(crate) devices: Vec<Source>,
}

impl Sources {
    pub(crate) fn open(spec: &JailSpec, view: &View) -> Result<Self, SetupError> {
        let mut sources =
            Self { system: Vec::new(), links: Vec::new(), binds: Vec::new(), devices: Vec::new() };
        for path in SYSTEM.map(Path::new) {
            match fs::read_link(path) {
                Ok(to) => sources.links.push(Link { path: path.into(), to }),
                Err(_) => sources.system.extend(if_there(path)?),
            }
        }
        let of_the_network = ETC_OF_THE_NETWORK.iter().filter(|_| view.network == Network::Host);
        for path in ETC.iter().chain(of_the_network).map(Path::new) {
            sources.system.extend(if_there(path)?);
        }
        for path in DEVICES.map(Path::new) {
            sources.devices.push(of_the_system(path)?);
        }
        sources.binds = named(spec)?;
        sources.binds.sort_by_key(|source| source.path.components().count());
        Ok(sources)
    }
}

/// What the spec names, to be read or to be written.
pub(crate) fn named(spec: &JailSpec) -> Result<Vec<Source>, SetupError> {
    let exactly = ResolveFlag::RESOLVE_NO_SYMLINKS;
    let read_only = spec.isolation.read_only().iter().map(|path| source(path, exactly, false));
    read_only.chain(spec.own_directories().into_iter().map(|path| source(path, exactly, true))).collect()
}

pub(crate) fn of_the_system(path: &Path) -> Result<Source, SetupError> {
    source(path, ResolveFlag::empty(), false)
}

/// A system without some of these is a whole system; and what we may not read, the server does not need.
pub(crate) fn if_there(path: &Path) -> Result<Option<Source>, SetupError> {
    match of_the_system(path) {
        Ok(found) => Ok(Some(found)),
        Err(SetupError::Build { errno: Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn source(path: &Path, resolve: ResolveFlag, is_writable: bool) -> Result<Source, SetupError> {
    let failed = |errno| match errno {
        Errno::ELOOP => build(Step::Sources, format!("{} leads over a symbolic link", path.display()), errno),
        _ => build(Step::Sources, path.display(), errno),
    };
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let fd = if resolve.is_empty() {
        open(path, flags, Mode::empty())
    } else {
        openat2(nix::fcntl::AT_FDCWD, path, OpenHow::new().flags(flags).resolve(resolve))
    };
    let fd = fd.map_err(failed)?;
    let kind = SFlag::from_bits_truncate(fstat(&fd).map_err(failed)?.st_mode) & SFlag::S_IFMT;
    let is_directory = kind == SFlag::S_IFDIR;
    Ok(Source { path: path.into(), fd, is_directory, is_writable })
}
