//! The source of a spec, read strictly, and what identifies an install of it.
//!
//! Not here: fetching and installing ([`super::job`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wire::ErrorCode;
use wire::spec::{ArchiveFormat, Pin, ServiceSpec, Source};

use super::address::GitSource;
use super::blobs;
use super::error::PrepareError;
use super::requirement::{NpmRequirement, PyRequirement};
use super::store::Request;
use super::tools::Tools;

/// The source, read strictly.
pub(crate) enum Wanted {
    Npm(NpmRequirement),
    Py(PyRequirement),
    Git(GitSource),
    Archive { sha256: String, format: ArchiveFormat, blob: PathBuf },
}

/// What exactly to install: from the registry or git host, or from an earlier pin.
pub(crate) struct Exact {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) integrity: String,
    /// `None`: an install makes it, or the source has its own.
    pub(crate) lock: Option<String>,
}

impl Wanted {
    pub(crate) fn read(
        source: &Source,
        git_schemes: &[String],
        blob_dir: &Path,
    ) -> Result<Self, PrepareError> {
        Ok(match source {
            Source::Npx { package, .. } => Self::Npm(NpmRequirement::parse(package)?),
            Source::Uvx { package, .. } => Self::Py(PyRequirement::parse(package)?),
            Source::Git { url, reference, subdir } => {
                let (reference, subdir) = (reference.as_deref(), subdir.as_deref());
                Self::Git(GitSource::parse(url, reference, subdir, git_schemes)?)
            }
            Source::Archive { sha256, format, .. } => {
                let blob = blobs::path(blob_dir, sha256)?;
                Self::Archive { sha256: sha256.clone(), format: *format, blob }
            }
        })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Npm(_) => "npm",
            Self::Py(_) => "pypi",
            Self::Git(_) => "git",
            Self::Archive { .. } => "archive",
        }
    }

    /// A pin of something else would run other code than the spec shows.
    pub(crate) fn check_pin(&self, pin: &Pin) -> Result<(), PrepareError> {
        let names_it = match self {
            Self::Npm(wanted) => pin.name == wanted.name,
            Self::Py(wanted) => pin.name == wanted.name,
            Self::Git(source) => pin.name == source.url,
            Self::Archive { sha256, .. } => pin.version == *sha256,
        };
        let message = "the pin belongs to another source than the spec; deploy again";
        let fits = names_it && pin.kind == self.kind();
        if fits { Ok(()) } else { Err(PrepareError::new(ErrorCode::InvalidArgs, message)) }
    }

    pub(crate) fn request<'e>(&self, exact: &'e Exact, spec: &ServiceSpec, tools: &Tools) -> Request<'e> {
        let mut detail = BTreeMap::from([("integrity", exact.integrity.clone())]);
        let all = ["node", "npm", "uv", "python", "bun", "pnpm", "yarn"].as_slice();
        let (name, needs, is_project) = match self {
            Self::Npm(_) => (exact.name.as_str(), ["node", "npm"].as_slice(), false),
            Self::Py(wanted) => {
                detail.insert("extras", wanted.extras.join(","));
                (exact.name.as_str(), ["uv", "python"].as_slice(), false)
            }
            Self::Git(source) => {
                detail.insert("subdir", source.subdir.clone().unwrap_or_default());
                (exact.name.as_str(), all, true)
            }
            // The label is for people: the same bytes are the same artefact.
            Self::Archive { format, .. } => {
                detail.insert("format", format!("{format:?}"));
                ("", all, true)
            }
        };
        if is_project {
            detail.insert("entry", spec.entry.clone().unwrap_or_default());
        }
        let (tools, allow_scripts) = (tools.versions(needs), spec.allow_scripts);
        let runtime = spec.runtime.filter(|_| is_project);
        Request { kind: self.kind(), name, version: &exact.version, detail, tools, runtime, allow_scripts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: Source) -> Wanted {
        Wanted::read(&source, &["https".into()], Path::new("/blobs")).unwrap()
    }

    #[test]
    fn a_pin_of_another_source_is_refused() {
        let npm = read(Source::Npx { package: "a@^1".into(), bin: None });
        let text = |s: &str| s.to_owned();
        let pin = Pin {
            kind: text("npm"),
            name: text("a"),
            version: text("1.2.3"),
            integrity: text("sha512-x"),
            artefact: text("k"),
            lock: String::new(),
        };
        assert!(npm.check_pin(&pin).is_ok());
        assert!(npm.check_pin(&Pin { name: text("b"), ..pin.clone() }).is_err());
        assert!(read(Source::Uvx { package: text("a"), bin: None }).check_pin(&pin).is_err());
    }
}
