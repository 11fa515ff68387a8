//! The last known lists of each service on this machine's disk, for when the broker is away.
//!
//! Here: one file a service, readable by its owner only, replaced as a whole. Not here: when they are used.
//! Invariant: a broken, too large or foreign file counts as none; failing to write one fails nothing else.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use wire::ServiceName;
use wire::peer::hosting::McpSchemaResult;

/// The runner takes lists of at most 4 MiB.
const LARGEST: u64 = 8 << 20;

/// Where one service's lists lie.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    file: PathBuf,
    name: ServiceName,
}

impl Cache {
    /// `dir`: of one membership, since another one may see other lists.
    pub fn new(dir: PathBuf, name: ServiceName) -> Self {
        let file = dir.join(format!("{name}.json"));
        Self { dir, file, name }
    }

    pub fn read(&self) -> Option<McpSchemaResult> {
        let mut bytes = Vec::new();
        let file = fs::File::open(&self.file).ok()?;
        file.take(LARGEST + 1).read_to_end(&mut bytes).ok()?;
        if bytes.len() as u64 > LARGEST {
            return None;
        }
        let read: McpSchemaResult = serde_json::from_slice(&bytes).ok()?;
        // On a file system that does not know upper case, another service's file may have answered.
        (read.server_name == self.name.as_str()).then_some(read)
    }

    pub fn write(&self, lists: &McpSchemaResult) {
        if let Err(e) = self.try_write(lists) {
            tracing::warn!("the lists of {} can not be kept in {}: {e}", self.name, self.dir.display());
        }
    }

    /// The service is gone, or not to be seen any more.
    pub fn forget(&self) {
        if let Err(e) = fs::remove_file(&self.file)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("the lists of {} can not be removed: {e}", self.name);
        }
    }

    fn try_write(&self, lists: &McpSchemaResult) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(lists)?;
        if bytes.len() as u64 > LARGEST {
            return Err(std::io::Error::other("larger than 8 MiB"));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&bytes)?;
        file.persist(&self.file)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lists(name: &str) -> McpSchemaResult {
        let text = format!(
            r#"{{"server_name":"{name}","tools":[{{ "name":"t","x":1.0e2,"é":"\u00e9" }}],"names":["svc__{name}__t"],
            "prompts":[],"resources":[],"resource_templates":[],"instructions":"i"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn cache(dir: &tempfile::TempDir, name: &str) -> Cache {
        Cache::new(dir.path().join("a/b"), ServiceName::parse(name).unwrap())
    }

    #[test]
    fn what_was_kept_comes_back_byte_for_byte_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir, "echo");
        assert!(cache.read().is_none());
        cache.write(&lists("echo"));
        assert_eq!(cache.read().unwrap().tools[0].get(), r#"{ "name":"t","x":1.0e2,"é":"\u00e9" }"#);
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&cache.file), mode(&cache.dir)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1, "no temporary file stays");
        cache.forget();
        assert!(cache.read().is_none());
        cache.forget();
    }

    #[test]
    fn a_broken_foreign_or_huge_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir, "echo");
        cache.write(&lists("Echo"));
        assert!(cache.read().is_none(), "another service's");
        cache.write(&lists("echo"));
        let whole = fs::read(&cache.file).unwrap();
        fs::write(&cache.file, &whole[..whole.len() / 2]).unwrap();
        assert!(cache.read().is_none(), "cut off");
        fs::File::create(&cache.file).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(cache.read().is_none(), "huge");
    }
}
