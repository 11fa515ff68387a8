//! `vault_set`, `vault_list`, `vault_delete`: a member's own secrets.
//!
//! Invariants: a value that is read here is zeroed afterwards and is in no text; nothing is sealed to the key of an owner
//! whom only the broker names, because nobody can be asked here whether that is right.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use client::MeshVault;
use serde::Deserialize;
use wire::vault::{EntryKind, MAX_FILE_VALUE, VaultName};
use wire::{ErrorCode, Secret};
use zeroize::Zeroizing;

use super::super::Mesh;
use super::super::words::Refusal;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Env,
    File,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    key: VaultName,
    from_file: Option<PathBuf>,
    from_env: Option<String>,
    value: Option<Secret>,
    #[serde(default, rename = "type")]
    kind: Kind,
    mount_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delete {
    key: VaultName,
}

impl Set {
    fn read(&self, variable: fn(&str) -> Option<std::ffi::OsString>) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let given = (&self.from_file, &self.from_env, &self.value);
        let bytes = match given {
            (Some(path), None, None) => of_file(path)?,
            (None, Some(name), None) => {
                use std::os::unix::ffi::OsStringExt as _;
                let value = variable(name);
                let value = value.ok_or_else(|| Refusal(format!("the variable `{name}` is not set here")))?;
                Zeroizing::new(value.into_vec())
            }
            // As in the original: for a file the value is its path.
            (None, None, Some(path)) if self.kind == Kind::File => of_file(Path::new(path.expose()))?,
            (None, None, Some(value)) => Zeroizing::new(value.expose().as_bytes().to_vec()),
            _ => {
                return Err(Refusal(
                    "give exactly one of from_file, from_env and value (invalid_args)".to_owned(),
                ));
            }
        };
        Ok(match self.kind {
            Kind::Env => without_line_end(bytes),
            Kind::File => bytes,
        })
    }

    /// How a deploy names it.
    fn reference(&self) -> String {
        match (self.kind, &self.mount_path) {
            (Kind::Env, _) => format!("$vault:{}", self.key),
            (Kind::File, Some(path)) => format!("$vault:{}:file:{path}", self.key),
            (Kind::File, None) => format!("$vault:{0}:file:/secrets/{0}", self.key),
        }
    }
}

fn of_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let failed = |e: std::io::Error| Refusal(format!("cannot read {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    // All of it at once: a vector that grows leaves copies behind. One byte more tells what is too large.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_VALUE + 1));
    file.take(MAX_FILE_VALUE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// An editor ends a file with a line break; a variable has none.
fn without_line_end(mut bytes: Zeroizing<Vec<u8>>) -> Zeroizing<Vec<u8>> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

impl Mesh {
    fn vault(&self) -> Result<MeshVault<'_>, Refusal> {
        let super::super::Member { connection, folder, entry, .. } = &self.member;
        Ok(MeshVault::new(connection, folder, entry.clone())?)
    }

    pub(super) async fn vault_set(&self, input: Set) -> Result<String, Refusal> {
        if input.mount_path.is_some() && input.kind == Kind::Env {
            return Err(Refusal("`mount_path` is for type \"file\" (invalid_args)".to_owned()));
        }
        let mut vault = self.vault()?;
        vault.newest_key().await?;
        if vault.has_pinned_owner() {
            vault.unpin()?;
            let message = "who owns the mesh is not known on this machine; nothing was stored";
            let cure = format!("Ask the person to run `claudemesh vault set {}` in a terminal.", input.key);
            return Err(Refusal(format!("{message} ({})\n{cure}", ErrorCode::VaultKeyUnproven)));
        }
        let kind = match input.kind {
            Kind::Env => EntryKind::Env,
            Kind::File => EntryKind::File,
        };
        let value = input.read(self.hands.variable)?;
        let done = vault.set(&input.key, kind, &value).await?;
        let mut text = format!(
            "{} is stored, version {}; use it in env as {}",
            input.key,
            done.version,
            input.reference()
        );
        if !done.services.is_empty() {
            text.push_str(&format!("\nstarts again with it: {}", done.services.join(", ")));
        }
        Ok(text)
    }

    pub(super) async fn vault_list(&self) -> Result<String, Refusal> {
        let found = self.vault()?.list().await?;
        if found.entries.is_empty() {
            return Ok("You have no secrets in this mesh.".to_owned());
        }
        let lines = found.entries.iter().map(|entry| {
            let version = entry.version.map(|version| format!(", version {version}")).unwrap_or_default();
            let users = match entry.used_by.as_slice() {
                [] => "not used".to_owned(),
                users => format!("used by {}", users.join(", ")),
            };
            format!("- {} ({}{version}), {users}, stored {}", entry.key, entry.entry_type, entry.updated_at)
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    pub(super) async fn vault_delete(&self, input: Delete) -> Result<String, Refusal> {
        let done = self.vault()?.remove(&input.key).await?;
        let stopped = match done.services.as_slice() {
            [] => String::new(),
            services => format!("; stopped: {}", services.join(", ")),
        };
        Ok(format!("{} is removed{stopped}", input.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<u8>, Refusal> {
        let set: Set = serde_json::from_str(text).unwrap();
        set.read(|name| (name == "TOKEN").then(|| "s3cret\n".into())).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn a_value_comes_from_exactly_one_place() {
        assert_eq!(read(r#"{"key":"k","from_env":"TOKEN"}"#).unwrap(), b"s3cret");
        assert_eq!(read(r#"{"key":"k","value":"v"}"#).unwrap(), b"v");
        for bad in [
            r#"{"key":"k"}"#,
            r#"{"key":"k","value":"s3cret","from_env":"TOKEN"}"#,
            r#"{"key":"k","from_env":"UNSET"}"#,
            r#"{"key":"k","from_file":"/nonexistent/file"}"#,
        ] {
            let Refusal(why) = read(bad).unwrap_err();
            assert!(!why.contains("s3cret"), "{why}");
        }
    }

    #[test]
    fn a_file_keeps_its_bytes_and_a_variable_loses_its_line_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"line\r\n").unwrap();
        let path = serde_json::to_string(file.path()).unwrap();
        assert_eq!(read(&format!(r#"{{"key":"k","from_file":{path}}}"#)).unwrap(), b"line");
        assert_eq!(read(&format!(r#"{{"key":"k","type":"file","from_file":{path}}}"#)).unwrap(), b"line\r\n");
        assert_eq!(read(&format!(r#"{{"key":"k","type":"file","value":{path}}}"#)).unwrap(), b"line\r\n");
    }

    #[test]
    fn the_answer_names_the_reference_to_write() {
        let set: Set =
            serde_json::from_str(r#"{"key":"k","type":"file","mount_path":"/secrets/x.pem"}"#).unwrap();
        assert_eq!(set.reference(), "$vault:k:file:/secrets/x.pem");
    }
}
