//! How strongly a server is kept apart, and what a strictly kept one sees.
//!
//! Here: [`Isolation`], [`View`], its check. Not here: building it (see [`crate::strict`]).
//! Invariant: a path that passes the check names neither the whole of the host nor a directory that the view makes
//! itself.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::BadSpec;

/// Never chosen in silence: there is no default, and a strict jail that can't be built starts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The files, the network and the uid of the runner; only the process tree is owned.
    Light,
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
    /// Bytes of each private memory file system: `/tmp` and `/dev/shm`. They count against no process.
    pub tmpfs_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A loopback of its own, and no way out.
    None,
    /// The runner's network, host services on its loopback included.
    Host,
}

impl Default for View {
    fn default() -> Self {
        Self { uid: None, network: Network::None, read_only: Vec::new(), tmpfs_bytes: 64 << 20 }
    }
}

/// Made by the view itself, or more than any one service needs: never bound as a whole.
const TOO_WIDE: [&str; 11] =
    ["/", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var", "/var/lib"];
/// Nothing below these is bound, either.
const THE_KERNELS: [&str; 3] = ["/dev", "/proc", "/sys"];

impl View {
    pub(crate) fn check(&self, home: &Path, tmp: &Path) -> Result<(), BadSpec> {
        if self.uid == Some(0) || self.uid == Some(u32::MAX) {
            return Err(BadSpec::Uid);
        }
        if self.tmpfs_bytes == 0 {
            return Err(BadSpec::Tmpfs);
        }
        for path in &self.read_only {
            bindable("read_only", path)?;
        }
        bindable("home", home)?;
        // What lies in a home is the server's to arrange: a link there could lead a helper that makes directories astray.
        if tmp.starts_with(home) && tmp != home {
            return Err(BadSpec::InHome("tmp"));
        }
        if is_private_tmp(tmp) { Ok(()) } else { bindable("tmp", tmp) }
    }
}

/// Whether the server's `TMPDIR` is the private `/tmp` itself and no directory outside.
pub(crate) fn is_private_tmp(tmp: &Path) -> bool {
    tmp == Path::new("/tmp")
}

fn bindable(field: &'static str, path: &Path) -> Result<(), BadSpec> {
    if !path.is_absolute() {
        return Err(BadSpec::NotAbsolute(field));
    }
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.contains(&0) {
        return Err(BadSpec::Nul(field));
    }
    // `components` swallows `.`, doubled and trailing slashes; comparing the bytes finds them.
    let plain: PathBuf = path.components().filter(|part| *part != Component::ParentDir).collect();
    if plain.as_os_str().as_encoded_bytes() != bytes {
        return Err(BadSpec::NotPlain(field));
    }
    let is_refused = TOO_WIDE.iter().any(|whole| Path::new(whole) == path)
        || THE_KERNELS.iter().any(|whole| path.starts_with(whole));
    if is_refused { Err(BadSpec::NotBindable(path.to_path_buf())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> Option<BadSpec> {
        let view = View { read_only: vec![path.into()], ..View::default() };
        view.check(Path::new("/data/home"), Path::new("/tmp")).err()
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
    fn nothing_is_made_inside_a_home() {
        let check = |tmp: &str| View::default().check(Path::new("/data/home"), Path::new(tmp));
        assert_eq!(check("/data/home/deep/tmp"), Err(BadSpec::InHome("tmp")));
        assert_eq!(check("/data/home-tmp"), Ok(()));
    }

    #[test]
    fn nobody_is_given_root() {
        let view = View { uid: Some(0), ..View::default() };
        assert_eq!(view.check(Path::new("/h"), Path::new("/tmp")), Err(BadSpec::Uid));
    }
}
