//! `mcp_deploy` becomes a [`NewService`]: parsed once, valid ever after.
//!
//! Here: every rule about the fields of a deploy. Not here: rights, counts and whether an upload exists (`super`),
//! and whether a package exists (the runner finds out).

use wire::ServiceName;
use wire::peer::hosting::{DeployConfig, DeploySource, McpDeploy};
use wire::spec::{ArchiveFormat, Limits, Secrets, ServiceSpec, Source};
use wire::{ErrorCode, Scope, Secret};

const MAX_ARGS: usize = 256;
const MAX_ARG_BYTES: usize = 8 << 10;
const MAX_ENV: usize = 256;
const MAX_ENV_VALUE: usize = 64 << 10;
const MAX_TEXT: usize = 2048;

/// Variables that make an interpreter or the dynamic linker run other code than the pinned one.
const REFUSED_ENV: &[&str] = &[
    "NODE_OPTIONS",
    "NODE_PATH",
    "BASH_ENV",
    "ENV",
    "PYTHONSTARTUP",
    "PYTHONPATH",
    "PYTHONHOME",
    "PERL5OPT",
    "RUBYOPT",
    "BUN_OPTIONS",
    "IFS",
];

/// What a deploy asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewService {
    pub name: ServiceName,
    pub spec: ServiceSpec,
    pub secrets: Secrets,
    /// `None`: an existing service keeps its scope, a new one is private.
    pub scope: Option<Scope>,
}

/// Names the field and the rule; never echoes a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDeploy {
    #[error("{0}")]
    Name(&'static str),
    #[error("{field}: {rule}")]
    Field { field: &'static str, rule: &'static str },
    #[error("config.env.{name}: {rule}")]
    Env { name: String, rule: &'static str },
    #[error("{0}: this version can not enforce it")]
    NotEnforced(&'static str),
}

impl InvalidDeploy {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Name(_) => ErrorCode::InvalidName,
            Self::Field { .. } | Self::Env { .. } => ErrorCode::InvalidArgs,
            Self::NotEnforced(_) => ErrorCode::NotEnforced,
        }
    }
}

/// Reads a service name with the error of the original protocol.
///
/// # Errors
/// [`InvalidDeploy::Name`].
pub fn service_name(text: &str) -> Result<ServiceName, InvalidDeploy> {
    ServiceName::parse(text).map_err(|_| {
        InvalidDeploy::Name(
            "service name must be 1-64 chars, alphanumeric/hyphens/underscores, starting with alphanumeric, \
             without `__` and not ending in `_`",
        )
    })
}

impl TryFrom<McpDeploy> for NewService {
    type Error = InvalidDeploy;

    fn try_from(raw: McpDeploy) -> Result<Self, InvalidDeploy> {
        let McpDeploy { server_name, source, config, scope } = raw;
        let name = service_name(&server_name)?;
        let DeployConfig {
            env,
            runtime,
            memory_mb,
            cpus,
            network_allow,
            args,
            entry,
            open_files,
            file_size_mb,
            idle_stop_s,
            allow_scripts,
        } = config;
        if cpus.is_some() {
            return Err(InvalidDeploy::NotEnforced("config.cpus"));
        }
        if network_allow.is_some_and(|hosts| !hosts.is_empty()) {
            return Err(InvalidDeploy::NotEnforced("config.network_allow"));
        }
        env_is_valid(&env)?;
        args_are_valid(&args)?;
        let entry = optional("config.entry", entry)?;
        if idle_stop_s.is_some_and(|s| !(10..=604_800).contains(&s)) {
            return Err(field("config.idle_stop_s", "10 to 604800 seconds"));
        }
        let limits = limits(memory_mb, open_files, file_size_mb)?;
        let (source, git_token) = parse_source(source, &name)?;
        let env_names = env.keys().cloned().collect();
        let spec =
            ServiceSpec { source, runtime, args, entry, env_names, limits, idle_stop_s, allow_scripts };
        Ok(Self { name, spec, secrets: Secrets { env, git_token }, scope })
    }
}

fn field(field: &'static str, rule: &'static str) -> InvalidDeploy {
    InvalidDeploy::Field { field, rule }
}

fn parse_source(raw: DeploySource, name: &ServiceName) -> Result<(Source, Option<Secret>), InvalidDeploy> {
    match raw {
        DeploySource::Npx { package, bin } => {
            let package = package_name(package, name)?;
            Ok((Source::Npx { package, bin: optional("source.bin", bin)? }, None))
        }
        DeploySource::Uvx { package, bin } => {
            let package = package_name(package, name)?;
            Ok((Source::Uvx { package, bin: optional("source.bin", bin)? }, None))
        }
        DeploySource::Git { url, reference, subdir, auth } => {
            let url = text("source.url", url)?;
            if has_credentials(&url) {
                return Err(field("source.url", "no user or password in the URL; send the token as `auth`"));
            }
            let reference = optional("source.ref", reference)?;
            let subdir = optional("source.subdir", subdir)?;
            if auth.as_ref().is_some_and(|t| t.expose().is_empty() || t.expose().len() > MAX_TEXT) {
                return Err(field("source.auth", "1 to 2048 characters"));
            }
            Ok((Source::Git { url, reference, subdir }, auth))
        }
        DeploySource::Zip { file_id, format, label } => {
            let is_digest =
                file_id.len() == 64 && file_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if !is_digest {
                return Err(field("source.file_id", "the id that `POST /v1/uploads` answered"));
            }
            let label = optional("source.label", label)?.unwrap_or_default();
            let format = format.unwrap_or(ArchiveFormat::Zip);
            Ok((Source::Archive { sha256: file_id, format, label }, None))
        }
    }
}

/// The URL is stored and shown in clear.
fn has_credentials(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

fn package_name(package: Option<String>, name: &ServiceName) -> Result<String, InvalidDeploy> {
    text("source.package", package.unwrap_or_else(|| name.as_str().to_owned()))
}

/// Not empty, not huge, no control characters, and never taken for an option by a tool that gets it as an argument.
fn text(name: &'static str, value: String) -> Result<String, InvalidDeploy> {
    if value.trim().is_empty() || value.len() > MAX_TEXT {
        return Err(field(name, "1 to 2048 characters"));
    }
    if value.chars().any(char::is_control) {
        return Err(field(name, "no control characters"));
    }
    if value.starts_with('-') {
        return Err(field(name, "must not start with `-`"));
    }
    Ok(value)
}

fn optional(name: &'static str, value: Option<String>) -> Result<Option<String>, InvalidDeploy> {
    value.filter(|v| !v.is_empty()).map(|v| text(name, v)).transpose()
}

fn args_are_valid(args: &[String]) -> Result<(), InvalidDeploy> {
    if args.len() > MAX_ARGS {
        return Err(field("config.args", "at most 256 arguments"));
    }
    if args.iter().any(|a| a.len() > MAX_ARG_BYTES || a.contains('\0')) {
        return Err(field("config.args", "each argument at most 8 KiB, without zero bytes"));
    }
    Ok(())
}

fn env_is_valid(env: &std::collections::BTreeMap<String, Secret>) -> Result<(), InvalidDeploy> {
    if env.len() > MAX_ENV {
        return Err(field("config.env", "at most 256 variables"));
    }
    for (name, value) in env {
        let refuse = |rule| Err(InvalidDeploy::Env { name: crate::error::shown(name), rule });
        let mut bytes = name.bytes();
        let starts_well = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts_well || name.len() > 128 || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return refuse("a name is letters, digits and `_`, not starting with a digit");
        }
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("LD_") || upper.starts_with("DYLD_") || REFUSED_ENV.contains(&upper.as_str()) {
            return refuse("would make the server run other code than the pinned one");
        }
        if value.expose().len() > MAX_ENV_VALUE || value.expose().contains('\0') {
            return refuse("a value is at most 64 KiB, without zero bytes");
        }
    }
    Ok(())
}

fn limits(
    memory_mb: Option<u32>,
    open_files: Option<u32>,
    file_size_mb: Option<u32>,
) -> Result<Limits, InvalidDeploy> {
    let default = Limits::default();
    let limits = Limits {
        memory_mb: memory_mb.unwrap_or(default.memory_mb),
        open_files: open_files.unwrap_or(default.open_files),
        file_size_mb: file_size_mb.unwrap_or(default.file_size_mb),
    };
    if !(64..=65_536).contains(&limits.memory_mb) {
        return Err(field("config.memory_mb", "64 to 65536"));
    }
    if !(64..=65_536).contains(&limits.open_files) {
        return Err(field("config.open_files", "64 to 65536"));
    }
    if !(1..=1_048_576).contains(&limits.file_size_mb) {
        return Err(field("config.file_size_mb", "1 to 1048576"));
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(frame: Value) -> Result<NewService, InvalidDeploy> {
        let raw: McpDeploy = serde_json::from_value(frame).expect("reads");
        NewService::try_from(raw)
    }

    fn npx(config: Value) -> Result<NewService, InvalidDeploy> {
        parse(json!({"server_name": "x", "source": {"type": "npx"}, "config": config}))
    }

    #[test]
    fn the_package_defaults_to_the_service_name() {
        let new = npx(json!({})).expect("valid");
        assert_eq!(new.spec.source, Source::Npx { package: "x".into(), bin: None });
        assert_eq!(new.scope, None);
        assert_eq!(new.spec.limits, Limits::default());
    }

    #[test]
    fn secrets_leave_the_spec() {
        let new = parse(json!({
            "server_name": "x",
            "source": {"type": "git", "url": "https://example.org/r", "auth": "hunter2"},
            "config": {"env": {"KEY": "hunter3"}},
        }))
        .expect("valid");
        let stored = serde_json::to_string(&new.spec).expect("json");
        assert!(!stored.contains("hunter"), "{stored}");
        assert_eq!(new.spec.env_names, ["KEY"]);
        assert_eq!(new.secrets.git_token.expect("token").expose(), "hunter2");
    }

    #[test]
    fn names_outside_the_rule_are_invalid_name() {
        for bad in ["", "../x", "a b", "-a", "a__b", "a_", "ü", &"x".repeat(65)] {
            let error = parse(json!({"server_name": bad, "source": {"type": "npx", "package": "p"}}));
            assert_eq!(error.expect_err("refused").code(), ErrorCode::InvalidName, "{bad}");
        }
    }

    #[test]
    fn variables_that_load_other_code_are_refused() {
        for bad in
            ["LD_PRELOAD", "ld_library_path", "NODE_OPTIONS", "BASH_ENV", "PYTHONSTARTUP", "1A", "A-B", ""]
        {
            let error = npx(json!({"env": {bad: "v"}})).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::InvalidArgs, "{bad}");
            assert!(!error.to_string().contains(": v"), "{error}");
        }
    }

    #[test]
    fn limits_that_are_not_applied_are_refused_rather_than_stored() {
        assert_eq!(npx(json!({"cpus": 0.5})).expect_err("refused").code(), ErrorCode::NotEnforced);
        let network = npx(json!({"network_allow": ["example.org:443"]}));
        assert_eq!(network.expect_err("refused").code(), ErrorCode::NotEnforced);
        npx(json!({"network_allow": []})).expect("an empty list asks for nothing");
    }

    #[test]
    fn limits_have_ranges() {
        for bad in [
            json!({"memory_mb": 63}),
            json!({"open_files": 65_537}),
            json!({"file_size_mb": 0}),
            json!({"idle_stop_s": 9}),
        ] {
            assert_eq!(npx(bad).expect_err("refused").code(), ErrorCode::InvalidArgs);
        }
    }

    #[test]
    fn an_option_in_place_of_a_name_is_refused() {
        for source in [
            json!({"type": "npx", "package": "--registry=x"}),
            json!({"type": "git", "url": "-u"}),
            json!({"type": "git", "url": "https://ana:hunter2@e.org/r"}),
            json!({"type": "git", "url": "https://e.org/r", "ref": "--upload-pack=x"}),
            json!({"type": "zip", "file_id": "../../etc"}),
            json!({"type": "uvx", "package": "a\nb"}),
        ] {
            let error = parse(json!({"server_name": "x", "source": source})).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::InvalidArgs);
        }
    }

    #[test]
    fn unknown_fields_of_source_and_config_are_refused() {
        for frame in [
            json!({"server_name": "x", "source": {"type": "npx", "pkg": "y"}}),
            json!({"server_name": "x", "source": {"type": "npx"}, "config": {"memory": 1}}),
            json!({"server_name": "x", "source": {"type": "docker"}}),
        ] {
            assert!(serde_json::from_value::<McpDeploy>(frame).is_err());
        }
    }
}
