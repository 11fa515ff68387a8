//! The new root: what is in it, and how it takes the old one's place.
//!
//! Here: tmpfs, binds, devices, `/proc`, files of secrets, pivot. Not here: what is bound (see [`crate::sources`]).
//! Invariant: everything that is attached is nosuid, and nodev but for the five device nodes; what is not `home`, `tmp`,
//! `writable` or a private memory file system is read-only when the old root is let go.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, pivot_root};

use crate::identity::Identity;
use crate::report::Step;
use crate::secret::{self, SecretFile};
use crate::server::{SetupError, build};
use crate::sources::{Link, Source, Sources};
use crate::spec::JailSpec;
use crate::sys::mount::{NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, attach_tree, clone_tree};
use crate::sys::mount::{restrict_mount, restrict_tree};
use crate::sys::raw;
use crate::view::{Network, View};

/// Where the new root is put together: a directory that is certain to be there, for the helper has read it.
const STAGE: &str = "/proc";

/// Files of `/proc` that tell about the machine or act on it: empty inside.
const HIDDEN_FILES: [&str; 11] = [
    "cmdline",
    "config.gz",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "sysrq-trigger",
    "timer_list",
];
const HIDDEN_DIRECTORIES: [&str; 4] = ["acpi", "driver", "pressure", "scsi"];
const READ_ONLY_PARTS: [&str; 4] = ["bus", "fs", "irq", "sys"];

const NAMESPACES: &str = "max_user_namespaces";
/// Of this user namespace, for good. What is watched counts for the helper's user, too, who may be root and has 128
/// instances for all: without a limit one server would leave none to the others and to the machine's own daemons.
const USER_LIMITS: [(&str, &str); 3] =
    [(NAMESPACES, "0"), ("max_inotify_instances", "16"), ("max_inotify_watches", "8192")];

pub(super) struct Root {
    fd: OwnedFd,
}

impl Root {
    /// An empty one, mounted at the stage.
    pub(super) fn make(view: &View) -> Result<Self, SetupError> {
        let failed = |what: &'static str| move |errno| build(Step::Root, what, errno);
        // Nothing that happens here may reach the host, nor the other way round.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(failed("private mounts"))?;
        let none = MsFlags::empty();
        let small = Some("size=1m,nr_inodes=4096,mode=755");
        mount(Some("tmpfs"), STAGE, Some("tmpfs"), none, small).map_err(failed("tmpfs"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(STAGE, flags, Mode::empty()).map_err(failed("the new root"))?;
        let root = Self { fd };
        root.private_memory("/tmp", view, Step::Root)?;
        Ok(root)
    }

    fn private_memory(&self, path: &str, view: &View, step: Step) -> Result<(), SetupError> {
        directory(Path::new(path), step)?;
        let size = format!("size={},nr_inodes=65536,mode=1777", view.tmpfs_bytes);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &staged(Path::new(path)), Some("tmpfs"), flags, Some(size.as_str()))
            .map_err(|errno| build(step, path, errno))
    }

    pub(super) fn add_system(&self, sources: &Sources, view: &View) -> Result<(), SetupError> {
        for source in &sources.system {
            self.bind(source, Step::System)?;
        }
        let link = |path: &Path, to: &Path| {
            symlink(to, staged(path)).map_err(|error| build(Step::System, path.display(), raw(&error)))
        };
        for Link { path, to } in &sources.links {
            link(path, to)?;
        }
        directory(Path::new("/var"), Step::System)?;
        directory(Path::new("/run"), Step::System)?;
        link(Path::new("/var/tmp"), Path::new("/tmp"))?;
        if view.network != Network::Host {
            write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
            write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
        }
        if let Network::Filtered { .. } = view.network {
            write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")?;
        }
        Ok(())
    }

    pub(super) fn add_users(&self, identity: Identity, spec: &JailSpec) -> Result<(), SetupError> {
        let Identity { uid, gid, .. } = identity;
        let home = spec.home.display();
        // A line break in a path would be a line of the file.
        let home = if home.to_string().contains(['\n', ':']) { "/tmp".into() } else { home.to_string() };
        let nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        let own = format!("service:x:{uid}:{gid}:service:{home}:/bin/sh\n");
        write("/etc/passwd", &if uid == 65534 { own } else { own + nobody })?;
        let own = format!("service:x:{gid}:\n");
        write("/etc/group", &if gid == 65534 { own } else { own + "nogroup:x:65534:\n" })
    }

    pub(super) fn add_binds(&self, sources: &Sources) -> Result<(), SetupError> {
        sources.binds.iter().try_for_each(|source| self.bind(source, Step::Binds))
    }

    pub(super) fn add_devices(&self, sources: &Sources, view: &View) -> Result<(), SetupError> {
        for device in &sources.devices {
            let failed = |errno| build(Step::Devices, device.path.display(), errno);
            let place = self.place(&device.path, false, Step::Devices)?;
            let tree = clone_tree(&device.fd).map_err(failed)?;
            restrict_tree(&tree, NO_SUID | NO_EXEC).map_err(failed)?;
            attach_tree(&tree, &place).map_err(failed)?;
        }
        let names = [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")];
        for (name, which) in names {
            symlink(format!("/proc/self/fd{which}"), staged(&Path::new("/dev").join(name)))
                .map_err(|error| build(Step::Devices, name, raw(&error)))?;
        }
        self.private_memory("/dev/shm", view, Step::Devices)
    }

    /// Fresh, so that it shows the new pid namespace only; and without what the whole machine shares.
    pub(super) fn add_proc(&self, sources: &Sources) -> Result<(), SetupError> {
        let proc = Path::new("/proc");
        directory(proc, Step::Proc)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &staged(proc), Some("proc"), flags, None::<&str>)
            .map_err(|errno| build(Step::Proc, "a fresh /proc", errno))?;
        let limits = staged(Path::new("/proc/sys/user"));
        for (name, most) in USER_LIMITS {
            match fs::write(limits.join(name), most) {
                // Of a kernel without it.
                Err(error) if error.kind() == ErrorKind::NotFound && name != NAMESPACES => {}
                written => written.map_err(|error| build(Step::Proc, name, raw(&error)))?,
            }
        }
        for part in READ_ONLY_PARTS {
            self.cover(&proc.join(part), |place| clone_tree(place))?;
        }
        for file in HIDDEN_FILES {
            self.cover(&proc.join(file), |_| clone_tree(&sources.devices[0].fd))?;
        }
        for hidden in HIDDEN_DIRECTORIES {
            let path = staged(&proc.join(hidden));
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            match mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=555")) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(build(Step::Proc, path.display(), errno)),
            }
        }
        Ok(())
    }

    /// On a ramfs, whose pages are never swapped out as those of a tmpfs may be; nobody can add to it once it is read-only.
    /// The files are the service's, as this process has its uid. Nothing of them stays in this memory.
    pub(super) fn add_secrets(&self, files: &mut Vec<SecretFile>) -> Result<(), SetupError> {
        let directories: Vec<_> = secret::directories(files).map(Path::new).collect();
        let locked = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        for path in &directories {
            directory(path, Step::Secrets)?;
            mount(Some("ramfs"), &staged(path), Some("ramfs"), locked, Some("mode=500"))
                .map_err(|errno| build(Step::Secrets, path.display(), errno))?;
        }
        for file in files.drain(..) {
            let made =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(staged(&file.path));
            made.and_then(|mut made| made.write_all(&file.bytes))
                .map_err(|error| build(Step::Secrets, file.path.display(), raw(&error)))?;
        }
        for path in directories {
            let failed = |errno| build(Step::Secrets, path.display(), errno);
            let place = self.open(path).map_err(failed)?;
            restrict_mount(&place, READ_ONLY | NO_SUID | NO_DEV | NO_EXEC).map_err(failed)?;
        }
        Ok(())
    }

    /// Puts a read-only `what` on a path of `/proc` that some kernels do not have.
    fn cover(
        &self,
        path: &Path,
        what: impl FnOnce(&OwnedFd) -> Result<OwnedFd, Errno>,
    ) -> Result<(), SetupError> {
        let failed = |errno| build(Step::Proc, path.display(), errno);
        let place = match self.open(path) {
            Err(Errno::ENOENT) => return Ok(()),
            place => place.map_err(failed)?,
        };
        let tree = what(&place).map_err(failed)?;
        restrict_tree(&tree, READ_ONLY | NO_SUID | NO_EXEC).map_err(failed)?;
        attach_tree(&tree, &place).map_err(failed)
    }

    /// The new root in the old one's place. The old one is detached with all its mounts: no path leads to it any more.
    pub(super) fn enter(self) -> Result<(), SetupError> {
        let failed = |what: &'static str| move |errno| build(Step::Pivot, what, errno);
        restrict_mount(&self.fd, READ_ONLY | NO_SUID | NO_DEV).map_err(failed("a read-only root"))?;
        fchdir(&self.fd).map_err(failed("the new root"))?;
        // Onto itself: the old root then lies on top of the new one, and is what `.` means until it is detached.
        pivot_root(".", ".").map_err(failed("pivot_root"))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(failed("the old root"))?;
        chdir("/").map_err(failed("the new root"))
    }

    fn bind(&self, source: &Source, step: Step) -> Result<(), SetupError> {
        let failed = |errno| build(step, source.path.display(), errno);
        let place = self.place(&source.path, source.is_directory, step)?;
        let tree = clone_tree(&source.fd).map_err(failed)?;
        let mode = if source.is_writable { 0 } else { READ_ONLY };
        restrict_tree(&tree, mode | NO_SUID | NO_DEV).map_err(failed)?;
        attach_tree(&tree, &place).map_err(failed)
    }

    /// A place to attach to: made, unless something that was attached before brought it along.
    fn place(&self, path: &Path, is_directory: bool, step: Step) -> Result<OwnedFd, SetupError> {
        if is_directory {
            directory(path, step)?;
        } else {
            directory(path.parent().unwrap_or(Path::new("/")), step)?;
            if fs::symlink_metadata(staged(path)).is_err() {
                fs::write(staged(path), "").map_err(|error| build(step, path.display(), raw(&error)))?;
            }
        }
        self.open(path).map_err(|errno| build(step, path.display(), errno))
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        openat2(&self.fd, path.strip_prefix("/").unwrap_or(path), how)
    }
}

fn staged(path: &Path) -> PathBuf {
    Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path))
}

fn directory(path: &Path, step: Step) -> Result<(), SetupError> {
    fs::create_dir_all(staged(path)).map_err(|error| build(step, path.display(), raw(&error)))
}

fn write(path: &str, text: &str) -> Result<(), SetupError> {
    directory(Path::new("/etc"), Step::System)?;
    fs::write(staged(Path::new(path)), text).map_err(|error| build(Step::System, path, raw(&error)))
}
