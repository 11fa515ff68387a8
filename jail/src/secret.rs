//! What of a spec must not be copied about: the environment's values and the files of secrets.
//!
//! Here: [`SecretFile`], where one may lie, and how such bytes travel: beside the frame, which only says how long they are.
//! Not here: the files' place inside (see [`crate::strict`]), the socket (see [`crate::parent`]).
//! Invariant: no encoder, parser or message ever holds a secret; its one buffer is zeroized when it is dropped.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::spec::{BadSpec, JailSpec};
use crate::view::plain;

/// The directories that a strict jail makes for files of secrets.
pub(crate) const DIRECTORIES: [&str; 2] = ["/secrets", "/run/secrets"];

/// Bytes of all secrets of a spec together; 2 MiB of them at most can be the environment of `execve`.
const MOST_BYTES: usize = 32 << 20;
/// Bytes of a place in the environment or of a file.
const MOST_OF_ONE: usize = 4 << 20;
const MOST_FILES: usize = 256;

/// A file that is there for the server alone, and only in a strict jail: in memory, mode 0400, read-only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    /// `/secrets/NAME` or `/run/secrets/NAME`.
    pub path: PathBuf,
    #[serde(with = "length")]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretFile").field(&self.path).finish_non_exhaustive()
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl SecretFile {
    /// The directory of [`DIRECTORIES`] that it lies in.
    pub(crate) fn directory(&self) -> Option<&'static str> {
        DIRECTORIES.into_iter().find(|directory| self.path.parent() == Some(Path::new(directory)))
    }
}

/// Those of [`DIRECTORIES`] that some file lies in.
pub(crate) fn directories(files: &[SecretFile]) -> impl Iterator<Item = &'static str> {
    DIRECTORIES.into_iter().filter(|one| files.iter().any(|file| file.directory() == Some(*one)))
}

/// Files that could not be made, or not be found by the server.
pub(crate) fn check(spec: &JailSpec) -> Result<(), BadSpec> {
    let files = &spec.secret_files;
    for (n, file) in files.iter().enumerate() {
        plain("secret_files", &file.path)?;
        let is_twice = files[..n].iter().any(|other| other.path == file.path);
        if file.directory().is_none() || is_twice {
            return Err(BadSpec::SecretPath(file.path.clone()));
        }
    }
    let covered = |path: &&PathBuf| directories(files).any(|directory| path.starts_with(directory));
    let bound = spec.isolation.read_only().iter().chain(spec.isolation.writable());
    if let Some(path) = bound.chain([&spec.home, &spec.tmp]).find(covered) {
        return Err(BadSpec::SecretPath(path.clone()));
    }
    let sizes = || spec.env.iter().map(|(_, value)| value.len()).chain(files.iter().map(|f| f.bytes.len()));
    if files.len() > MOST_FILES || sizes().sum::<usize>() > MOST_BYTES || sizes().any(|n| n > MOST_OF_ONE) {
        return Err(BadSpec::TooMuch);
    }
    Ok(())
}

/// Sends what the frame only gave the lengths of.
pub(crate) fn send(spec: &JailSpec, mut to: impl Write) -> io::Result<()> {
    spec.env.iter().try_for_each(|(_, value)| to.write_all(value.as_bytes()))?;
    spec.secret_files.iter().try_for_each(|file| to.write_all(&file.bytes))
}

/// Puts it in the places that the frame's reader has made. Values that are no UTF-8 are of no runner of ours.
pub(crate) fn receive(spec: &mut JailSpec, mut from: impl Read) -> io::Result<()> {
    for (_, value) in &mut spec.env {
        let mut bytes = Zeroizing::new(std::mem::take(value).into_bytes());
        from.read_exact(&mut bytes)?;
        // In place: the buffer becomes the value.
        *value = String::from_utf8(std::mem::take(&mut bytes)).map_err(|refused| {
            refused.into_bytes().zeroize();
            io::Error::from(io::ErrorKind::InvalidData)
        })?;
    }
    spec.secret_files.iter_mut().try_for_each(|file| from.read_exact(&mut file.bytes))
}

/// A place of that many bytes, for [`receive`] to fill.
fn place<'de, D: Deserializer<'de>>(length: usize) -> Result<Vec<u8>, D::Error> {
    if length > MOST_OF_ONE {
        return Err(serde::de::Error::custom("a secret is too long"));
    }
    Ok(vec![0; length])
}

mod length {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(bytes.len() as u64)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        super::place::<D>(usize::deserialize(from)?)
    }
}

/// Names of the environment with the lengths of their values.
pub(crate) mod lengths {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(env: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(env.iter().map(|(name, value)| (name, value.len())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
        let named = Vec::<(String, usize)>::deserialize(from)?.into_iter();
        let text = |bytes| String::from_utf8(bytes).map_err(serde::de::Error::custom);
        named.map(|(name, length)| Ok((name, text(super::place::<D>(length)?)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use crate::spec::Limits;
    use crate::view::{Isolation, View};

    fn spec() -> JailSpec {
        JailSpec {
            argv: vec!["/bin/true".into()],
            env: vec![("KEY".into(), "canary-ü".into()), ("EMPTY".into(), String::new())],
            cwd: "/".into(),
            home: "/h".into(),
            tmp: "/t".into(),
            limits: Limits::default(),
            isolation: Isolation::Strict(View::default()),
            cgroups: vec![],
            secret_files: vec![
                SecretFile { path: "/secrets/a".into(), bytes: b"canary\0\xff".to_vec() },
                SecretFile { path: "/run/secrets/b".into(), bytes: vec![] },
            ],
        }
    }

    #[test]
    fn a_spec_arrives_whole_and_its_frame_holds_no_secret() {
        let sent = spec();
        let frame = frame::encode(&sent, 64, frame::MAX_SPEC).unwrap();
        assert!(!String::from_utf8_lossy(&frame).contains("canary"));
        let mut beside = Vec::new();
        send(&sent, &mut beside).unwrap();
        let mut got: JailSpec = frame::decode_body(&frame[4..]).unwrap();
        receive(&mut got, &beside[..]).unwrap();
        assert!(got == sent);
        assert!(receive(&mut got, &beside[..beside.len() - 1]).is_err(), "cut short");
        beside[0] = 0xff;
        assert!(receive(&mut got, &beside[..]).is_err(), "no text");
    }

    #[test]
    fn a_frame_can_not_ask_for_more_than_a_secret_may_be() {
        let mut value = serde_json::to_value(spec()).unwrap();
        value["secret_files"][0]["bytes"] = (MOST_OF_ONE + 1).into();
        assert!(serde_json::from_value::<JailSpec>(value).is_err());
    }

    #[test]
    fn a_file_that_could_not_be_made_or_found_is_refused() {
        type Change = fn(&mut JailSpec);
        let of = |path: &str| BadSpec::SecretPath(path.into());
        let cases: [(Change, BadSpec); 9] = [
            (|s| s.secret_files[0].path = "/secrets".into(), of("/secrets")),
            (|s| s.secret_files[0].path = "/secrets/a/b".into(), of("/secrets/a/b")),
            (|s| s.secret_files[0].path = "/etc/passwd".into(), of("/etc/passwd")),
            (|s| s.secret_files[0].path = "/secrets/../a".into(), BadSpec::NotPlain("secret_files")),
            (|s| s.secret_files[1].path = "/secrets/a".into(), of("/secrets/a")),
            (|s| s.home = "/secrets/home".into(), of("/secrets/home")),
            (|s| s.isolation = Isolation::Light(Default::default()), BadSpec::SecretsNeedStrict),
            (|s| s.secret_files[0].bytes = vec![0; MOST_OF_ONE + 1], BadSpec::TooMuch),
            (
                |s| {
                    s.isolation = Isolation::Strict(View {
                        read_only: vec!["/run/secrets/x".into()],
                        ..View::default()
                    })
                },
                of("/run/secrets/x"),
            ),
        ];
        assert_eq!(spec().check(), Ok(()));
        for (change, refusal) in cases {
            let mut changed = spec();
            change(&mut changed);
            assert_eq!(changed.check(), Err(refusal));
        }
    }

    #[test]
    fn a_file_that_is_printed_shows_its_path_alone() {
        let text = format!("{:?}", spec());
        assert!(text.contains("/secrets/a") && !text.contains("canary"), "{text}");
    }
}
