//! What goes into a deploy besides the source: environment, limits, arguments.

use std::collections::BTreeMap;
use std::path::Path;

use wire::Secret;
use wire::peer::hosting::{DeployConfig, DeploySource, McpDeploy};
use wire::spec::Runtime;

use crate::args::DeployArgs;
use crate::env;
use crate::failure::Failure;
use crate::source::Wanted;

/// The frame, but for the id of an upload, which `upload` gives (only archives and folders need one).
/// `salt`: for the digest of plain variables.
pub fn frame(
    deploy: &DeployArgs,
    wanted: &Wanted,
    upload: Option<String>,
    salt: Secret,
) -> Result<McpDeploy, Failure> {
    let mut args = deploy.args.clone();
    let source = match wanted.clone() {
        Wanted::Npx { package, bin, args: own } => {
            args.splice(0..0, own);
            DeploySource::Npx { package: Some(package), bin }
        }
        Wanted::Uvx { package, bin, args: own } => {
            args.splice(0..0, own);
            DeploySource::Uvx { package: Some(package), bin }
        }
        Wanted::Git { url, reference, subdir } => {
            let auth = deploy.git_token_file.as_deref().map(secret_file).transpose()?;
            DeploySource::Git { url, reference, subdir, auth }
        }
        Wanted::Folder(path) => archive(&path, wire::spec::ArchiveFormat::TarGz, upload)?,
        Wanted::Archive(path, format) => archive(&path, format, upload)?,
    };
    let config = DeployConfig {
        env: environment(&deploy.env, &deploy.env_file)?,
        env_salt: Some(salt),
        runtime: deploy.runtime.as_deref().and_then(runtime),
        memory_mb: deploy.memory,
        cpus: deploy.cpus,
        network_allow: deploy.network()?,
        args,
        entry: deploy.entry.clone(),
        open_files: deploy.open_files,
        pids: deploy.pids,
        disk_mb: deploy.disk,
        isolation: deploy.isolation,
        idle_stop_s: deploy.idle_stop.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        allow_scripts: deploy.allow_scripts,
        run_as: deploy.run_as.unwrap_or_default(),
        inject: deploy.inject.iter().map(ToString::to_string).collect(),
        unmasked_results: deploy.unmasked_results,
    };
    Ok(McpDeploy { server_name: deploy.name.clone(), source, config, scope: deploy.scope()? })
}

fn archive(
    path: &Path,
    format: wire::spec::ArchiveFormat,
    upload: Option<String>,
) -> Result<DeploySource, Failure> {
    let file_id = upload.ok_or_else(|| Failure::platform("the archive was not uploaded"))?;
    // `.` and `..` have no name of their own.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let label = real.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(DeploySource::Zip { file_id, format: Some(format), label })
}

fn runtime(text: &str) -> Option<Runtime> {
    match text {
        "node" => Some(Runtime::Node),
        "bun" => Some(Runtime::Bun),
        "python" => Some(Runtime::Python),
        _ => None,
    }
}

/// Files first, then flags: what is closer to the command wins.
fn environment(flags: &[String], files: &[std::path::PathBuf]) -> Result<BTreeMap<String, Secret>, Failure> {
    let mut values = BTreeMap::new();
    for file in files {
        let text = Secret::new(
            std::fs::read_to_string(file)
                .map_err(|e| Failure::user(format!("cannot read {}: {e}", file.display())))?,
        );
        for (at, line) in text.expose().lines().enumerate() {
            if let Some((name, value)) = env_line(line)
                .map_err(|why| Failure::user(format!("{}, line {}: {why}", file.display(), at + 1)))?
            {
                values.insert(name, value);
            }
        }
    }
    for flag in flags {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Secret::new(value)),
            None => (flag.as_str(), from_own_environment(flag)?),
        };
        if name.is_empty() {
            return Err(Failure::user("--env needs a name: NAME=VALUE or NAME"));
        }
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

fn from_own_environment(name: &str) -> Result<Secret, Failure> {
    let value = env::named_by_user(name).ok_or_else(|| {
        Failure::user(format!("--env {name}: your environment has no {name}"))
            .with_cure(format!("Set it, or write --env {name}=VALUE."))
    })?;
    match value.into_string() {
        Ok(text) => Ok(Secret::new(text)),
        Err(_) => Err(Failure::user(format!("--env {name}: the value is not UTF-8"))),
    }
}

/// `NAME=VALUE`, with `export`, quotes around the value, comments and empty lines as in a `.env` file. Values are never echoed.
fn env_line(line: &str) -> Result<Option<(String, Secret)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=').ok_or("write NAME=VALUE")?;
    let name = name.trim();
    if name.is_empty() {
        return Err("a name is missing before `=`");
    }
    let value = value.trim();
    let quoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    Ok(Some((name.to_owned(), Secret::new(quoted.unwrap_or(value)))))
}

/// The file's text without the line break that editors add.
pub fn secret_file(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path)
        .map(Secret::new)
        .map_err(|e| Failure::user(format!("cannot read {}: {e}", path.display())))?;
    match text.expose().trim() {
        "" => Err(Failure::user(format!("{} is empty", path.display()))),
        trimmed => Ok(Secret::new(trimmed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn deploy(line: &str) -> DeployArgs {
        let Command::Deploy(args) = Cli::parse_from(line.split(' ')).command else { panic!("{line}") };
        *args
    }

    fn json(line: &str) -> serde_json::Value {
        let args = deploy(line);
        let wanted = crate::source::choose(&args).unwrap();
        serde_json::to_value(frame(&args, &wanted, None, Secret::new("a salt of a test")).unwrap()).unwrap()
    }

    #[test]
    fn flags_become_the_frame() {
        let frame = json(
            "claudemesh deploy t --memory 512m --idle-stop 10m --open-files 64 --cpus 0.5 --pids 100 --disk 1g --isolation strict --network a.com,*.b.com:8443 --network c.com --env A=b=c --allow-scripts --args --last --mesh-wide -- npx -y p@1 --first",
        );
        assert_eq!(
            frame,
            serde_json::json!({
                "server_name": "t",
                "source": {"type": "npx", "package": "p@1"},
                "config": {"env": {"A": "b=c"}, "env_salt": "a salt of a test", "memory_mb": 512, "open_files": 64, "idle_stop_s": 600,
                           "cpus": 0.5, "pids": 100, "disk_mb": 1024, "isolation": "strict",
                           "network_allow": ["a.com:443", "*.b.com:8443", "c.com:443"],
                           "args": ["--first", "--last"], "allow_scripts": true},
                "scope": {"type": "mesh"},
            })
        );
        let git = json("claudemesh deploy g --git https://x/y --ref v1 --subdir a");
        assert_eq!(
            git["source"],
            serde_json::json!({"type":"git","url":"https://x/y","ref":"v1","subdir":"a"})
        );
        assert_eq!(git["scope"], serde_json::Value::Null);
    }

    #[test]
    fn nowhere_is_said_and_silence_is_not() {
        let network = |line: &str| deploy(line).network().map_err(|failure| failure.message);
        assert_eq!(network("claudemesh deploy t p"), Ok(None));
        assert_eq!(network("claudemesh deploy t p --network none"), Ok(Some(vec![])));
        assert!(network("claudemesh deploy t p --network none,a.com").is_err());
    }

    #[test]
    fn env_files_are_read_as_people_write_them() {
        let read = |line| env_line(line).map(|found| found.map(|(n, v)| (n, v.expose().to_owned())));
        let some = |n: &str, v: &str| Ok(Some((n.to_owned(), v.to_owned())));
        assert_eq!(read("A=b"), some("A", "b"));
        assert_eq!(read(" export A = \"b c\" "), some("A", "b c"));
        assert_eq!(read("A='x=y'"), some("A", "x=y"));
        assert_eq!(read("A="), some("A", ""));
        assert_eq!(read("# A=b"), Ok(None));
        assert_eq!(read("  "), Ok(None));
        assert!(read("A").is_err() && read("=b").is_err());
    }

    #[test]
    fn a_value_can_stay_out_of_argv() {
        let values = environment(&["PATH".to_owned(), "B=1".to_owned()], &[]).unwrap();
        assert!(!values["PATH"].expose().is_empty());
        let missing = environment(&["CLAUDEMESH_SURELY_NOT_SET".to_owned()], &[]).unwrap_err();
        assert!(missing.message.contains("no CLAUDEMESH_SURELY_NOT_SET"));
    }
}
