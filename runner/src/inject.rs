//! Placeholders instead of secrets: what a service of `inject` holds, and what its way out knows.
//!
//! Here: taking the values of variables out of a start, the certificates that the jail has to trust. Not here: TLS and the
//! exchange in the headers (crate `egress`), opening (see [`crate::vault`]).
//! Invariant: with any host in `inject`, no variable of the jail holds a value of the vault.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use egress::{InjectError, Injection};
use tempfile::TempDir;
use wire::report::Reason;
use wire::spec::ServiceSpec;
use wire::{EgressRule, ErrorCode};

use crate::config::RunnerConfig;
use crate::vault::Value;

/// Variables that name a file of authorities that count besides the runtime's own (Node and Bun, Deno).
const MORE: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Variables that name the file of all authorities (OpenSSL, Python and Go; Requests; curl; git).
const ALL: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// The certificates of one cell, on disk until it is dropped. Nothing of it is secret.
#[derive(Debug)]
pub struct Trust {
    _dir: TempDir,
    /// Without a symbolic link on the way.
    path: PathBuf,
}

impl Trust {
    /// To be read in the jail.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `operators`: authorities, in PEM, that the jail would have trusted besides.
    fn new(root: &Path, injection: &Injection, operators: &str) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let dir = tempfile::Builder::new().prefix("trust-").tempdir_in(root)?;
        let path = dir.path().canonicalize()?;
        for (name, pem) in [("ca.pem", injection.ca_pem()), ("bundle.pem", injection.bundle_pem())] {
            let file = path.join(name);
            std::fs::write(&file, format!("{operators}{pem}"))?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444))?;
        }
        // Of the service's uid, which is another one, or of the runner's own: in both nothing is added.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { _dir: dir, path })
    }

    /// Variables that a deployer has set stay as they are.
    fn tell(&self, spec: &ServiceSpec, env: &mut Vec<(String, String)>) {
        for (name, file) in names(spec) {
            env.retain(|(other, _)| other != name);
            env.push((name.to_owned(), self.path.join(file).display().to_string()));
        }
    }
}

/// Those of the variables that are ours to set, and the file of each.
fn names(spec: &ServiceSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let names = MORE.map(|name| (name, "ca.pem")).into_iter().chain(ALL.map(|name| (name, "bundle.pem")));
    names.filter(|(name, _)| {
        !spec.env_names.iter().any(|taken| taken == name) && !spec.vault.contains_key(*name)
    })
}

/// The operator's own authorities, which these variables name on machines that need them.
fn operators(spec: &ServiceSpec, env: &[(String, String)]) -> Vec<PathBuf> {
    let of = |name: &str| env.iter().find(|(other, _)| other == name).map(|(_, file)| PathBuf::from(file));
    names(spec).filter_map(|(name, _)| of(name)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A start whose variables hold placeholders.
pub struct Arranged {
    /// Those that appear as files.
    pub values: Vec<Value>,
    pub injection: Option<Arc<Injection>>,
    pub trust: Option<Trust>,
}

/// Takes the values of variables out, if the spec has hosts to put them in, and puts placeholders into `env`.
///
/// # Errors
/// A value fits no header, or no certificates could be made.
pub async fn arrange(
    config: &RunnerConfig,
    spec: &ServiceSpec,
    values: Vec<Value>,
    env: &mut Vec<(String, String)>,
) -> Result<Arranged, Reason> {
    if spec.inject.is_empty() {
        return Ok(Arranged { values, injection: None, trust: None });
    }
    let (files, variables): (Vec<_>, Vec<_>) = values.into_iter().partition(|value| value.file.is_some());
    let names: Vec<String> = variables.iter().map(|value| value.variable.clone()).collect();
    let (rules, root, extra_ca) =
        (spec.inject.clone(), config.data.join("tmp"), config.egress.extra_ca.clone());
    // Reads some hundred certificates.
    let operators = operators(spec, env);
    let made =
        tokio::task::spawn_blocking(move || make(rules, variables, extra_ca.as_deref(), &operators, &root));
    let made = made.await;
    let made = made.unwrap_or_else(|_| Err(Failed::Io(io::Error::other("it panicked"))));
    let (injection, trust) = made.map_err(|failed| failed.reason(&names))?;
    env.extend(names.into_iter().zip(injection.placeholders().map(str::to_owned)));
    trust.tell(spec, env);
    Ok(Arranged { values: files, injection: Some(injection), trust: Some(trust) })
}

enum Failed {
    Inject(InjectError),
    Io(io::Error),
}

fn make(
    rules: Vec<EgressRule>,
    variables: Vec<Value>,
    extra_ca: Option<&Path>,
    operators: &[PathBuf],
    root: &Path,
) -> Result<(Arc<Injection>, Trust), Failed> {
    let values = variables.into_iter().map(|value| value.bytes).collect();
    let injection = Injection::new(rules, values, extra_ca).map_err(Failed::Inject)?;
    // One that can't be read could not be read in the jail either.
    let operators = operators.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    let operators: String = operators.map(|pem| pem + "\n").collect();
    let trust = Trust::new(root, &injection, &operators).map_err(Failed::Io)?;
    Ok((Arc::new(injection), trust))
}

impl Failed {
    /// `names`: of the variables, in the order of the values.
    fn reason(self, names: &[String]) -> Reason {
        let (code, message) = match self {
            Self::Inject(error @ (InjectError::TooLong(at) | InjectError::NotForHeaders(at))) => {
                let name = names.get(at).map_or("a variable", String::as_str);
                (ErrorCode::VaultError, format!("{name}: the value can't be injected: {error}"))
            }
            Self::Inject(error) => (ErrorCode::JailFailed, format!("secrets can't be injected: {error}")),
            Self::Io(error) => (
                ErrorCode::JailFailed,
                format!("the certificates of the service could not be written: {error}"),
            ),
        };
        Reason { code, message, stderr: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use wire::spec::Source;

    use super::*;
    use crate::config::Listen;

    const CANARY: &str = "canary-5a1b-of-the-vault";

    fn config(dir: &TempDir) -> RunnerConfig {
        RunnerConfig::new(dir.path().to_owned(), Listen::Unix("r.sock".into()), "jail".into())
    }

    fn spec(inject: &[&str]) -> ServiceSpec {
        let source = Source::Npx { package: "p".into(), bin: None };
        let inject = inject.iter().map(|rule| EgressRule::parse(rule).expect(rule)).collect();
        ServiceSpec { inject, ..ServiceSpec::of(source) }
    }

    fn value(variable: &str, file: Option<&str>, bytes: &[u8]) -> Value {
        Value { variable: variable.to_owned(), file: file.map(str::to_owned), bytes: bytes.to_vec().into() }
    }

    fn of<'a>(env: &'a [(String, String)], name: &str) -> Vec<&'a str> {
        env.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    #[tokio::test]
    async fn variables_hold_placeholders_and_files_stay_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut env = vec![("CURL_CA_BUNDLE".to_owned(), "/mine".to_owned())];
        let values = vec![
            value("A", None, CANARY.as_bytes()),
            value("F", Some("/secrets/f"), b"\0file"),
            value("B", None, b"second-value"),
        ];
        let spec = ServiceSpec { env_names: vec!["CURL_CA_BUNDLE".to_owned()], ..spec(&["a.com"]) };
        let arranged = arrange(&config(&dir), &spec, values, &mut env).await.expect("arranged");
        assert_eq!(arranged.values.iter().map(|value| value.variable.as_str()).collect::<Vec<_>>(), ["F"]);
        let injection = arranged.injection.expect("an injection");
        let placeholders: Vec<_> = injection.placeholders().collect();
        assert_eq!((of(&env, "A"), of(&env, "B")), (vec![placeholders[0]], vec![placeholders[1]]));
        assert_eq!(of(&env, "CURL_CA_BUNDLE"), ["/mine"]);
        assert!(!format!("{env:?}").contains("canary"));
        let trust = arranged.trust.expect("certificates");
        let read = |name| std::fs::read_to_string(of(&env, name)[0]).expect(name);
        let (more, all) = (read("NODE_EXTRA_CA_CERTS"), read("SSL_CERT_FILE"));
        assert!(more.matches("BEGIN").count() == 1 && all.ends_with(&more) && all.len() > more.len());
        let path = trust.path().to_owned();
        drop(trust);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_operators_own_authorities_are_trusted_beside_the_cells() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join("own.pem");
        std::fs::write(&own, "the operator's own").expect("written");
        let set = |name: &str| (name.to_owned(), own.display().to_string());
        let mut env = vec![set("SSL_CERT_FILE"), set("NODE_EXTRA_CA_CERTS")];
        let values = vec![value("A", None, CANARY.as_bytes())];
        let arranged = arrange(&config(&dir), &spec(&["a.com"]), values, &mut env).await.expect("arranged");
        for name in MORE.into_iter().chain(ALL) {
            let [file] = of(&env, name)[..] else { panic!("{name} once") };
            let pem = std::fs::read_to_string(file).expect(name);
            let ca = arranged.injection.as_ref().expect("an injection").ca_pem();
            assert!(pem.starts_with("the operator's own\n") && pem.ends_with(ca), "{name}");
        }
    }

    #[tokio::test]
    async fn without_a_host_nothing_is_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut env = vec![];
        let values = vec![value("A", None, CANARY.as_bytes())];
        let arranged = arrange(&config(&dir), &spec(&[]), values, &mut env).await.expect("arranged");
        assert!(env.is_empty() && arranged.injection.is_none() && arranged.trust.is_none());
        assert_eq!(arranged.values[0].bytes.as_slice(), CANARY.as_bytes());
    }

    #[tokio::test]
    async fn a_value_that_fits_no_header_is_named_and_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut env = vec![];
        let values = vec![value("A", None, b"fine"), value("B", None, b"canary\nline")];
        let Err(reason) = arrange(&config(&dir), &spec(&["a.com"]), values, &mut env).await else {
            panic!("it must not start")
        };
        assert!(
            reason.message.starts_with("B: ") && !reason.message.contains("canary"),
            "{}",
            reason.message
        );
        assert!(env.is_empty());
    }
}
