//! How strongly a server is kept apart, and what it sees.
//!
//! Here: [`Isolation`], [`View`], [`LightView`], their check. Not here: building them (see [`crate::strict`],
//! [`crate::light`]).
//! Invariant: a path that passes the check names neither the whole of the host nor a directory that the view makes
//! itself.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::BadSpec;

/// Never chosen in silence: there is no default, and a strict jail that can't be built starts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Landlock and seccomp: files by an allow-list, no network but one port of the runner's proxy. Processes stay visible,
    /// and so do names, sizes and owners of files.
    Light(LightView),
    /// Namespaces, a view of its own, no capabilities, Landlock and seccomp.
    Strict(View),
}

/// What there is inside: the system's programs and libraries read-only, a private `/tmp`, and what is named here, each
/// at the path that it has outside. The spec's `home` and `tmp` are the only places outside that can be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// The server's uid and gid. A runner that is root must give each service one of its own; any other runner has
    /// nothing to give but its own uid (`None`).
    pub uid: Option<u32>,
    pub network: Network,
    /// Files and directories to be read and executed: the code, and toolchains outside `/usr`. No symbolic link may lie
    /// on the way to one.
    pub read_only: Vec<PathBuf>,
    /// Directories outside, besides `home` and `tmp`, that can be written; they must be there and be the service's own.
    pub writable: Vec<PathBuf>,
    /// Bytes of each private memory file system: `/tmp` and `/dev/shm`. They count against no process.
    pub tmpfs_bytes: u64,
}

/// What a server may touch in a light jail, besides the system's programs and libraries and the spec's `home` and `tmp`.
/// There is no view of its own: every directory on the way to one of these must let the service's uid pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LightView {
    /// As in [`View`].
    pub uid: Option<u32>,
    /// As in [`View`], but none inside a directory that it can write: nothing would hold it there.
    pub read_only: Vec<PathBuf>,
    /// As in [`View`].
    pub writable: Vec<PathBuf>,
    /// The only TCP port that it may connect to: that of the runner's proxy on the loopback, but of any other host as well,
    /// since Landlock has no rule for addresses. `None`: no network.
    pub proxy_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A loopback of its own, and no way out.
    None,
    /// A loopback of its own, on which every address of 11.198.0.0/15 is local, with [`crate::Listeners`] that the runner
    /// answers on. `ports`: those to listen on besides DNS and the proxy, 128 at most; no server can listen on one itself.
    Filtered { ports: Vec<u16> },
    /// The runner's network, host services on its loopback included.
    Host,
}

impl Default for View {
    fn default() -> Self {
        Self {
            uid: None,
            network: Network::None,
            read_only: Vec::new(),
            writable: Vec::new(),
            tmpfs_bytes: 64 << 20,
        }
    }
}

/// Made by the view itself, or more than any one service needs: never bound as a whole.
const TOO_WIDE: [&str; 11] =
    ["/", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/lib"];
/// Nothing below these is bound, either.
const THE_KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Where the listener for HTTP proxies is.
pub(crate) const PROXY_PORT: u16 = 3128;
/// All of them travel in one message, which takes 253 descriptors.
const MOST_PORTS: usize = 128;

impl Isolation {
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Light(LightView { uid, .. }) | Self::Strict(View { uid, .. }) => *uid,
        }
    }

    pub(crate) fn read_only(&self) -> &[PathBuf] {
        match self {
            Self::Light(LightView { read_only, .. }) | Self::Strict(View { read_only, .. }) => read_only,
        }
    }

    pub(crate) fn writable(&self) -> &[PathBuf] {
        match self {
            Self::Light(LightView { writable, .. }) | Self::Strict(View { writable, .. }) => writable,
        }
    }

    pub(crate) fn check(&self, home: &Path, tmp: &Path) -> Result<(), BadSpec> {
        if self.uid() == Some(0) || self.uid() == Some(u32::MAX) {
            return Err(BadSpec::Uid);
        }
        for path in self.read_only() {
            bindable("read_only", path)?;
        }
        for path in self.writable() {
            bindable("writable", path)?;
        }
        bindable("home", home)?;
        self.check_nesting(home, tmp)?;
        match self {
            Self::Light(view) => {
                bindable("tmp", tmp)?;
                if view.proxy_port == Some(0) { Err(BadSpec::Ports) } else { Ok(()) }
            }
            Self::Strict(view) => {
                if !is_private_tmp(tmp) {
                    bindable("tmp", tmp)?;
                }
                view.check()
            }
        }
    }

    /// What lies in such a directory is the server's to arrange: a link there could lead a helper that makes directories
    /// astray.
    fn check_nesting(&self, home: &Path, tmp: &Path) -> Result<(), BadSpec> {
        let own = || [home, tmp].into_iter().chain(self.writable().iter().map(PathBuf::as_path));
        // The private `/tmp` is none of them: what lies below that path outside is another directory.
        let own = || own().filter(|path| !is_private_tmp(path));
        let is_inside = |path: &Path| own().any(|other| path != other && path.starts_with(other));
        let of = |field, paths: &[PathBuf]| {
            if paths.iter().any(|path| is_inside(path)) { Err(BadSpec::Inside(field)) } else { Ok(()) }
        };
        of("home", &[home.into()])?;
        of("tmp", &[tmp.into()])?;
        of("writable", self.writable())?;
        match self {
            Self::Light(view) => of("read_only", &view.read_only),
            Self::Strict(_) => Ok(()),
        }
    }
}

impl View {
    fn check(&self) -> Result<(), BadSpec> {
        if self.tmpfs_bytes == 0 {
            return Err(BadSpec::Tmpfs);
        }
        match &self.network {
            Network::Filtered { ports } if ports.contains(&0) || ports.len() > MOST_PORTS => {
                Err(BadSpec::Ports)
            }
            _ => Ok(()),
        }
    }
}

/// Whether the server's `TMPDIR` is the private `/tmp` itself and no directory outside.
pub(crate) fn is_private_tmp(tmp: &Path) -> bool {
    tmp == Path::new("/tmp")
}

fn bindable(field: &'static str, path: &Path) -> Result<(), BadSpec> {
    plain(field, path)?;
    let is_refused = TOO_WIDE.iter().any(|whole| Path::new(whole) == path)
        || THE_KERNELS.iter().any(|whole| path.starts_with(whole));
    if is_refused { Err(BadSpec::NotBindable(path.to_path_buf())) } else { Ok(()) }
}

/// Refuses a path that could be understood in two ways.
pub(crate) fn plain(field: &'static str, path: &Path) -> Result<(), BadSpec> {
    if !path.is_absolute() {
        return Err(BadSpec::NotAbsolute(field));
    }
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.contains(&0) {
        return Err(BadSpec::Nul(field));
    }
    // `components` swallows `.`, doubled and trailing slashes; comparing the bytes finds them.
    let plain: PathBuf = path.components().filter(|part| *part != Component::ParentDir).collect();
    if plain.as_os_str().as_encoded_bytes() == bytes { Ok(()) } else { Err(BadSpec::NotPlain(field)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> Option<BadSpec> {
        let view = View { read_only: vec![path.into()], ..View::default() };
        Isolation::Strict(view).check(Path::new("/data/home"), Path::new("/tmp")).err()
    }

    #[test]
    fn a_path_that_could_mean_another_is_refused() {
        for path in ["/a/../etc", "/a/./b", "/a//b", "/a/b/", "/a/.."] {
            assert_eq!(refusal(path), Some(BadSpec::NotPlain("read_only")), "{path}");
        }
        assert_eq!(refusal("a/b"), Some(BadSpec::NotAbsolute("read_only")));
        assert_eq!(refusal("/a\0b"), Some(BadSpec::Nul("read_only")));
        assert_eq!(refusal("/a/b"), None);
    }

    #[test]
    fn the_host_as_a_whole_and_the_kernels_own_trees_are_never_bound() {
        for path in ["/", "/etc", "/root", "/tmp", "/proc/1/root", "/sys/kernel", "/dev/mem"] {
            assert_eq!(refusal(path), Some(BadSpec::NotBindable(path.into())), "{path}");
        }
        assert_eq!(refusal("/process"), None, "a name that only begins like one of them");
    }

    #[test]
    fn nothing_is_made_or_promised_inside_what_a_server_can_write() {
        let check =
            |isolation: &Isolation, tmp: &str| isolation.check(Path::new("/data/home"), Path::new(tmp));
        let strict =
            |writable: &str| Isolation::Strict(View { writable: vec![writable.into()], ..View::default() });
        assert_eq!(check(&strict("/w"), "/data/home/deep/tmp"), Err(BadSpec::Inside("tmp")));
        assert_eq!(check(&strict("/w"), "/w/tmp"), Err(BadSpec::Inside("tmp")));
        assert_eq!(check(&strict("/data/home/x"), "/tmp"), Err(BadSpec::Inside("writable")));
        assert_eq!(check(&strict("/data"), "/tmp"), Err(BadSpec::Inside("home")));
        assert_eq!(check(&strict("/w"), "/data/home-tmp"), Ok(()));
        assert_eq!(check(&strict("/tmp/w"), "/tmp"), Ok(()), "a directory outside, not in the private /tmp");
        let light = |read_only: &str| {
            Isolation::Light(LightView { read_only: vec![read_only.into()], ..LightView::default() })
        };
        assert_eq!(check(&light("/data/home/code"), "/t"), Err(BadSpec::Inside("read_only")));
        assert_eq!(check(&light("/code"), "/t"), Ok(()));
        assert_eq!(
            check(&light("/code"), "/tmp"),
            Err(BadSpec::NotBindable("/tmp".into())),
            "it has no private one"
        );
    }

    #[test]
    fn a_port_that_can_not_be_listened_on_is_refused() {
        for (ports, answer) in [
            (vec![443, 0], Err(BadSpec::Ports)),
            ((1..=129).collect(), Err(BadSpec::Ports)),
            ((1..=128).collect(), Ok(())),
        ] {
            let isolation =
                Isolation::Strict(View { network: Network::Filtered { ports }, ..View::default() });
            assert_eq!(isolation.check(Path::new("/h"), Path::new("/tmp")), answer);
        }
        let light = Isolation::Light(LightView { proxy_port: Some(0), ..LightView::default() });
        assert_eq!(light.check(Path::new("/h"), Path::new("/t")), Err(BadSpec::Ports));
    }

    #[test]
    fn nobody_is_given_root() {
        for uid in [0, u32::MAX] {
            let strict = Isolation::Strict(View { uid: Some(uid), ..View::default() });
            assert_eq!(strict.check(Path::new("/h"), Path::new("/tmp")), Err(BadSpec::Uid));
            let light = Isolation::Light(LightView { uid: Some(uid), ..LightView::default() });
            assert_eq!(light.check(Path::new("/h"), Path::new("/t")), Err(BadSpec::Uid));
        }
    }
}
