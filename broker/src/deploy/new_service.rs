//! `mcp_deploy` becomes a [`NewService`]: parsed once, valid ever after.
//!
//! Here: every rule about the fields of a deploy. Not here: rights, counts and whether an upload exists (`super`),
//! and whether a package exists (the runner finds out).

use std::collections::BTreeMap;

use wire::egress::MAX_RULES;
use wire::peer::hosting::{DeployConfig, DeploySource, McpDeploy};
use wire::spec::{ArchiveFormat, Limits, Secrets, ServiceSpec, Source};
use wire::vault::{BadReference, MAX_REFERENCES, RunAs, VaultRef};
use wire::{EgressRule, ErrorCode, PublicKey, Scope, Secret, ServiceName};

const MAX_ARGS: usize = 256;
const MAX_ARG_BYTES: usize = 8 << 10;
const MAX_ENV: usize = 256;
const MAX_ENV_VALUE: usize = 64 << 10;
const MAX_TEXT: usize = 2048;
/// The longest host name, a port, and room to be wrong in.
const MAX_RULE: usize = 300;

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
    /// Where it may connect to. `None`: an existing service keeps its list, a new one may connect nowhere. The list in
    /// `spec` is empty until that is known.
    pub network: Option<Vec<EgressRule>>,
    /// `None`: an existing service keeps its scope, a new one is private.
    pub scope: Option<Scope>,
}

/// Names the field and the rule. Never echoes a value, except that of a network rule, which is no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDeploy {
    #[error("{0}")]
    Name(&'static str),
    #[error("{field}: {rule}")]
    Field { field: &'static str, rule: &'static str },
    #[error("config.env.{name}: {rule}")]
    Env { name: String, rule: &'static str },
    #[error("config.env.{name}: {error}")]
    Reference { name: String, error: BadReference },
    #[error("{field}: {message}")]
    Network { field: &'static str, message: String },
}

impl InvalidDeploy {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Name(_) => ErrorCode::InvalidName,
            Self::Field { .. } | Self::Env { .. } | Self::Network { .. } | Self::Reference { .. } => {
                ErrorCode::InvalidArgs
            }
        }
    }
}

/// Reads a service name with the error of the original protocol.
///
/// # Errors
/// [`InvalidDeploy::Name`].
pub fn service_name(text: &str) -> Result<ServiceName, InvalidDeploy> {
    ServiceName::parse(text).ok().filter(ServiceName::is_plain).ok_or({
        InvalidDeploy::Name(
            "service name must be 1-64 chars, alphanumeric/hyphens/underscores, starting with alphanumeric, \
             without `__` and not ending in `_`",
        )
    })
}

impl NewService {
    /// `deployer`: whose entries `$vault:KEY` means, unless each caller's own.
    ///
    /// # Errors
    /// [`InvalidDeploy`].
    pub fn read(raw: McpDeploy, deployer: &PublicKey) -> Result<Self, InvalidDeploy> {
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
            pids,
            disk_mb,
            isolation,
            idle_stop_s,
            allow_scripts,
            run_as,
            inject,
            unmasked_results,
            env_salt,
        } = config;
        env_is_valid(&env)?;
        let (env, vault) = references(env, Some(deployer).filter(|_| run_as == RunAs::Deployer))?;
        args_are_valid(&args)?;
        let entry = optional("config.entry", entry)?;
        if idle_stop_s.is_some_and(|s| !(10..=604_800).contains(&s)) {
            return Err(field("config.idle_stop_s", "10 to 604800 seconds"));
        }
        let limits = limits(Asked { memory_mb, cpus, pids, disk_mb, open_files })?;
        let network = network_allow.map(|rules| network_rules("config.network_allow", &rules)).transpose()?;
        let (source, git_token) = parse_source(source, &name)?;
        let env_names = env.keys().cloned().collect();
        let inject = network_rules("config.inject", &inject)?;
        let env_salt = if vault.is_empty() || env.is_empty() { None } else { Some(salt(env_salt)?) };
        let env_digest = env_salt.as_ref().map(|salt| vault::consent::env_digest(salt.expose(), &env));
        let spec = ServiceSpec {
            source,
            runtime,
            args,
            entry,
            env_names,
            env_digest,
            limits,
            idle_stop_s,
            allow_scripts,
            network: Vec::new(),
            learn_until_ms: None,
            isolation,
            vault,
            run_as,
            inject,
            unmasked_results,
        };
        Ok(Self { name, spec, secrets: Secrets { env, env_salt, git_token }, network, scope })
    }
}

/// By the name of the variable.
type Named<T> = BTreeMap<String, T>;

/// What keeps the digest of plain variables from being guessed.
fn salt(given: Option<Secret>) -> Result<Secret, InvalidDeploy> {
    match given {
        Some(salt) if (16..=128).contains(&salt.expose().len()) => Ok(salt),
        Some(_) => Err(field("config.env_salt", "16 to 128 characters")),
        None => {
            let mut salt = [0_u8; 16];
            getrandom::fill(&mut salt).expect("the operating system has random numbers");
            Ok(Secret::new(hex::encode(salt)))
        }
    }
}

/// Takes the references to the vault out of the environment.
fn references(
    env: Named<Secret>,
    owner: Option<&PublicKey>,
) -> Result<(Named<Secret>, Named<VaultRef>), InvalidDeploy> {
    let (mut plain, mut vault) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in env {
        match VaultRef::parse(value.expose(), owner) {
            None => drop(plain.insert(name, value)),
            Some(Ok(reference)) => drop(vault.insert(name, reference)),
            Some(Err(error)) => return Err(InvalidDeploy::Reference { name, error }),
        }
    }
    if vault.len() > MAX_REFERENCES {
        return Err(field("config.env", "at most 64 references to the vault"));
    }
    Ok((plain, vault))
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

fn env_is_valid(env: &BTreeMap<String, Secret>) -> Result<(), InvalidDeploy> {
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

/// Reads a list of rules, each once.
///
/// # Errors
/// [`InvalidDeploy::Network`]: the field, the text, and what is wrong with it.
pub fn network_rules(field: &'static str, texts: &[String]) -> Result<Vec<EgressRule>, InvalidDeploy> {
    let refuse = |message: String| InvalidDeploy::Network { field, message };
    if texts.len() > MAX_RULES {
        return Err(refuse(format!("at most {MAX_RULES} rules")));
    }
    let mut rules = Vec::with_capacity(texts.len());
    for text in texts {
        if text.len() > MAX_RULE || !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(refuse(format!(
                "`{}` is no rule; write HOST, HOST:PORT or *.DOMAIN:PORT",
                plain(text)
            )));
        }
        let rule = EgressRule::parse(text).map_err(|bad| refuse(bad.to_string()))?;
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// A text that may hold anything, for a message: what does not print is left out.
fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).take(64).collect()
}

struct Asked {
    memory_mb: Option<u32>,
    cpus: Option<f64>,
    pids: Option<u32>,
    disk_mb: Option<u32>,
    open_files: Option<u32>,
}

fn limits(asked: Asked) -> Result<Limits, InvalidDeploy> {
    let Asked { memory_mb, cpus, pids, disk_mb, open_files } = asked;
    let default = Limits::default();
    let limits = Limits {
        memory_mb: memory_mb.unwrap_or(default.memory_mb),
        milli_cpus: cpus.map_or(Ok(default.milli_cpus), milli_cpus)?,
        pids: pids.unwrap_or(default.pids),
        disk_mb: disk_mb.unwrap_or(default.disk_mb),
        open_files: open_files.unwrap_or(default.open_files),
    };
    if !(64..=65_536).contains(&limits.memory_mb) {
        return Err(field("config.memory_mb", "64 to 65536"));
    }
    if !(8..=65_536).contains(&limits.pids) {
        return Err(field("config.pids", "8 to 65536"));
    }
    if !(1..=1_048_576).contains(&limits.disk_mb) {
        return Err(field("config.disk_mb", "1 to 1048576"));
    }
    if !(64..=65_536).contains(&limits.open_files) {
        return Err(field("config.open_files", "64 to 65536"));
    }
    Ok(limits)
}

fn milli_cpus(cpus: f64) -> Result<u32, InvalidDeploy> {
    if !(0.01..=256.0).contains(&cpus) {
        return Err(field("config.cpus", "0.01 to 256"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "10 to 256,000 after the check"
    )]
    let milli = (cpus * 1000.0).round() as u32;
    Ok(milli)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(frame: Value) -> Result<NewService, InvalidDeploy> {
        let raw: McpDeploy = serde_json::from_value(frame).expect("reads");
        NewService::read(raw, &PublicKey::parse(&"ab".repeat(32)).expect("a key"))
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
    fn every_limit_reaches_the_spec() {
        let asked = json!({"memory_mb": 64, "cpus": 0.5, "pids": 9, "disk_mb": 2, "open_files": 65,
            "isolation": "light"});
        let spec = npx(asked).expect("valid").spec;
        let limits = Limits { memory_mb: 64, milli_cpus: 500, pids: 9, disk_mb: 2, open_files: 65 };
        assert_eq!((spec.limits, spec.isolation), (limits, Some(wire::Tier::Light)));
        for (cpus, milli) in [(0.01, 10), (1.2345, 1235), (256.0, 256_000)] {
            assert_eq!(npx(json!({"cpus": cpus})).expect("valid").spec.limits.milli_cpus, milli);
        }
    }

    #[test]
    fn no_list_an_empty_list_and_a_list_are_three_things() {
        assert_eq!(npx(json!({})).expect("valid").network, None);
        assert_eq!(npx(json!({"network_allow": []})).expect("valid").network, Some(vec![]));
        let list = json!({"network_allow": ["API.github.com", "api.github.com:443", "*.example.org:8443"]});
        let rules = npx(list).expect("valid").network.expect("a list");
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["api.github.com:443", "*.example.org:8443"], "each once");
    }

    #[test]
    fn a_bad_rule_is_named_with_its_field_and_nothing_that_does_not_print() {
        for (bad, says) in [
            ("10.0.0.1", "config.network_allow: `10.0.0.1` is an address; name a host"),
            ("*.com", "config.network_allow: `*.com` would allow every name"),
            ("a\u{202e}b\u{1b}[31m", "config.network_allow: `ab[31m` is no rule"),
        ] {
            let error = npx(json!({"network_allow": [bad]})).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::InvalidArgs);
            assert!(error.to_string().starts_with(says), "{error}");
        }
        let many: Vec<_> = (0..=MAX_RULES).map(|n| format!("h{n}.example")).collect();
        assert!(npx(json!({"network_allow": many})).is_err());
    }

    #[test]
    fn limits_have_ranges() {
        for bad in [
            json!({"memory_mb": 63}),
            json!({"cpus": 0.009}),
            json!({"cpus": 256.1}),
            json!({"cpus": -1}),
            json!({"pids": 7}),
            json!({"disk_mb": 0}),
            json!({"open_files": 65_537}),
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
