//! npm packages: from a requirement to an exact version with its integrity, and from that to a locked tree.
//!
//! Here: the arguments that npm gets, what its errors mean, and which executables a package has.
//! Not here: projects that have a package.json of their own ([`super::project`]).
//!
//! npm itself never runs a script: it installs with the operator's logins. Scripts that the deployer allows run in a step
//! of their own afterwards, without them.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use wire::ErrorCode;

use super::error::{Doing, PrepareError};
use super::launch::{Launch, Word, script};
use super::requirement::NpmRequirement;
use super::setting;
use super::step::{Bench, Ended, Step};
use super::tree;

/// No dependency may come from git, a URL or a folder: only registries have integrity.
const REGISTRY_ONLY: [&str; 4] =
    ["--allow-git=none", "--allow-remote=none", "--allow-file=none", "--allow-directory=none"];
/// npm 12 blocks dependencies' scripts unless told; npm before 11 does not know the option and only warns.
pub(crate) const ALLOW_SCRIPTS: &str = "--dangerously-allow-all-scripts";
/// Of a package-lock.json.
const MAX_LOCK: u64 = 64 << 20;
/// Of a package.json.
const MAX_MANIFEST: u64 = 4 << 20;
pub(crate) const QUIET: [&str; 3] = ["--no-audit", "--no-fund", "--loglevel=http"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) version: String,
    /// Absent for packages of registries that do not tell.
    pub(crate) integrity: Option<String>,
}

pub(crate) struct Installed {
    pub(crate) lock: String,
    pub(crate) integrity: String,
    pub(crate) launches: Vec<Launch>,
}

/// Asks the registry which version the requirement means today.
pub(crate) async fn resolve(bench: &Bench, wanted: &NpmRequirement) -> Result<Resolved, PrepareError> {
    let spec = wanted.spec();
    bench.say("fetch", &format!("looking up {spec}"));
    let args = ["view", "--json", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--", &spec];
    let fields = ["version", "dist.integrity", "dist-tags.latest"];
    let args: Vec<&str> = args.into_iter().chain(fields).collect();
    let ended = bench.run(Step::new("fetch", "npm", &bench.work()?, &args).captured()).await?;
    let answer: Value = serde_json::from_slice(&ended.stdout).unwrap_or_default();
    if !ended.success {
        return Err(not_resolved(wanted, &answer, ended));
    }
    let newest = newest(&answer).ok_or_else(|| {
        let message =
            format!("npm has no version of `{}` that `{spec}` means; leave the version out", wanted.name);
        PrepareError::new(ErrorCode::VersionNotFound, message)
    })?;
    if bench.min_age.before().is_none() {
        Ok(newest)
    } else {
        old_enough(bench, wanted, &answer, newest).await
    }
}

/// The newest that the requirement means and the mesh's minimum age allows.
async fn old_enough(
    bench: &Bench,
    wanted: &NpmRequirement,
    answer: &Value,
    newest: Resolved,
) -> Result<Resolved, PrepareError> {
    let times = view(bench, &wanted.name, &["time"]).await?;
    let is_old = |version: &str| bench.min_age.covers(times[version].as_str());
    let mut fitting = versions(answer).unwrap_or_default();
    fitting.retain(|v| is_old(&v.version));
    if let Some(best) = best_of(&fitting) {
        return Ok(best);
    }
    let mut others: Vec<&str> =
        times.as_object().into_iter().flatten().map(|(version, _)| version.as_str()).collect();
    let limit = precedence(&newest.version);
    // A release, and none that its author has not made the latest yet.
    others.retain(|v| is_version(v) && is_old(v) && precedence(v) <= limit);
    let other = others.into_iter().max_by_key(|version| precedence(version));
    match other {
        // Whoever names no version takes what the mesh allows.
        Some(version) if wanted.is_open() => {
            let exact = format!("{}@{version}", wanted.name);
            bench.say("fetch", &format!("{} is too new for this mesh; taking {version}", newest.version));
            let answer = view(bench, &exact, &["version", "dist.integrity", "dist-tags.latest"]).await?;
            let found = versions(&answer).and_then(|all| best_of(&all));
            found.ok_or_else(|| PrepareError::lost("looking up an older version"))
        }
        _ => {
            let published = times[newest.version.as_str()].as_str();
            Err(bench.min_age.too_new(&format!("{}@{}", wanted.name, newest.version), published, other))
        }
    }
}

async fn view(bench: &Bench, spec: &str, fields: &[&str]) -> Result<Value, PrepareError> {
    let args: Vec<&str> = ["view", "--json", "--", spec].into_iter().chain(fields.iter().copied()).collect();
    let ended = bench.run(Step::new("fetch", "npm", &bench.work()?, &args).captured()).await?;
    if !ended.success {
        return Err(failed(spec, &ended.text(), ended.tail));
    }
    Ok(serde_json::from_slice(&ended.stdout).unwrap_or_default())
}

/// Numbers only: a release, and not `created` or `modified`.
fn is_version(text: &str) -> bool {
    text.split('.').count() == 3 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn not_resolved(wanted: &NpmRequirement, answer: &Value, ended: Ended) -> PrepareError {
    let name = &wanted.name;
    let summary = answer["error"]["summary"].as_str().unwrap_or_default();
    let code = answer["error"]["code"].as_str().unwrap_or_default();
    let error = match code {
        "E404" if summary.contains("No match found for version") => PrepareError::new(
            ErrorCode::VersionNotFound,
            format!("npm has no `{}`; leave the version out to get the newest of `{name}`", wanted.spec()),
        ),
        "ETARGET" => PrepareError::new(ErrorCode::VersionNotFound, format!("npm has no `{}`", wanted.spec())),
        "E404" => {
            let message = format!("npm has no package `{name}`; check the spelling");
            PrepareError::new(ErrorCode::SourceNotFound, message)
        }
        _ => return failed(name, &format!("{code} {summary} {}", ended.text()), ended.tail),
    };
    error.with_lines(ended.tail)
}

/// What npm's output says about the cause.
pub(crate) fn failed(what: &str, text: &str, tail: Vec<String>) -> PrepareError {
    const NETWORK: [&str; 9] = [
        "ENOTFOUND",
        "EAI_AGAIN",
        "ECONNREFUSED",
        "ECONNRESET",
        "ETIMEDOUT",
        "ERR_SOCKET_TIMEOUT",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "UNABLE_TO_VERIFY",
    ];
    let has = |marks: &[&str]| marks.iter().any(|mark| text.contains(mark));
    let error = if has(&NETWORK) {
        let message = format!(
            "the npm registry could not be reached for `{what}`; check the runner's network{}",
            setting::about_proxy()
        );
        PrepareError::new(ErrorCode::SourceUnreachable, message)
    } else if has(&["E401", "E403", "ENEEDAUTH"]) {
        let message =
            format!("the npm registry refuses `{what}`; give the runner's npm a login that may read it");
        PrepareError::new(ErrorCode::SourceDenied, message)
    } else if has(&["EALLOWGIT", "EALLOWREMOTE", "EALLOWFILE", "EALLOWDIRECTORY"]) {
        let message = format!(
            "`{what}` depends on a git repository, URL or folder; only registry packages are installed"
        );
        PrepareError::new(ErrorCode::SourceRefused, message)
    } else {
        PrepareError::new(
            ErrorCode::InstallFailed,
            format!("npm could not install `{what}`; the last lines say why"),
        )
    };
    error.with_lines(tail)
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default, rename = "dist.integrity")]
    integrity: Option<String>,
    #[serde(default, rename = "dist-tags.latest")]
    latest: Option<String>,
}

fn newest(answer: &Value) -> Option<Resolved> {
    best_of(&versions(answer)?)
}

/// `npm view` answers an object for one match and a list, in no useful order, for several.
fn versions(answer: &Value) -> Option<Vec<Version>> {
    match answer {
        Value::Array(_) => serde_json::from_value(answer.clone()).ok(),
        Value::Object(_) => Some(vec![serde_json::from_value(answer.clone()).ok()?]),
        _ => None,
    }
}

fn best_of(all: &[Version]) -> Option<Resolved> {
    let is_latest = |v: &&Version| v.latest.as_ref() == Some(&v.version);
    let best = all.iter().find(is_latest).or_else(|| all.iter().max_by_key(|v| precedence(&v.version)))?;
    Some(Resolved { version: best.version.clone(), integrity: best.integrity.clone() })
}

/// Semver order: numbers, then a release over its pre-releases, then the pre-release's identifiers.
fn precedence(version: &str) -> (Vec<u64>, bool, Vec<(bool, u64, String)>) {
    let version = version.split('+').next().unwrap_or(version);
    let (numbers, pre) = version.split_once('-').unwrap_or((version, ""));
    let numbers = numbers.split('.').map(|n| n.parse().unwrap_or(0)).collect();
    let identifier = |id: &str| match id.parse::<u64>() {
        Ok(n) => (false, n, String::new()),
        Err(_) => (true, 0, id.to_owned()),
    };
    (numbers, pre.is_empty(), pre.split('.').map(identifier).collect())
}

/// Installs exactly this version into `tree`: from the lock when there is one, else making it.
pub(crate) async fn install(
    bench: &Bench,
    tree: &Path,
    wanted: (&str, &Resolved),
    lock: Option<&str>,
    allow_scripts: bool,
) -> Result<Installed, PrepareError> {
    let (name, resolved) = wanted;
    let what = format!("{name}@{}", resolved.version);
    bench.say("install", &format!("installing {what}"));
    let manifest = json!({
        "name": "artefact", "version": "1.0.0", "private": true,
        "dependencies": { name: resolved.version },
    });
    std::fs::create_dir_all(tree).doing("making a staging directory")?;
    std::fs::write(tree.join("package.json"), manifest.to_string()).doing("writing package.json")?;
    let mut args = vec![if lock.is_some() { "ci" } else { "install" }, "--omit=dev", "--ignore-scripts"];
    args.extend(QUIET);
    args.extend(REGISTRY_ONLY);
    let before = bench.min_age.before().filter(|_| lock.is_none()).map(|moment| format!("--before={moment}"));
    args.extend(before.as_deref());
    if let Some(lock) = lock {
        std::fs::write(tree.join("package-lock.json"), lock).doing("writing package-lock.json")?;
    }
    let ended = bench.run(Step::new("install", "npm", tree, &args)).await?;
    if !ended.success {
        return Err(failed(&what, &ended.text(), ended.tail));
    }
    let lock = super::tree::read_plain(&tree.join("package-lock.json"), MAX_LOCK)
        .doing("reading package-lock.json")?;
    let integrity = locked_integrity(&lock, name, resolved)?;
    if allow_scripts {
        run_scripts(bench, tree, &what).await?;
    }
    Ok(Installed { lock, integrity, launches: launches(tree, name)? })
}

/// The install scripts of everything in `node_modules`.
pub(crate) async fn run_scripts(bench: &Bench, dir: &Path, what: &str) -> Result<(), PrepareError> {
    bench.say("install", "running the packages' install scripts, as the deployer allows");
    let args = ["rebuild", ALLOW_SCRIPTS, "--foreground-scripts", "--no-audit", "--no-fund"];
    let ended = bench.run(Step::new("install", "npm", dir, &args).foreign()).await?;
    if ended.success {
        return Ok(());
    }
    let message = format!("an install script of `{what}` or a dependency failed; the last lines say why");
    Err(PrepareError::new(ErrorCode::InstallFailed, message).with_lines(ended.tail))
}

/// What was installed must be what was resolved: a registry that answers twice differently is not believed.
fn locked_integrity(lock: &str, name: &str, resolved: &Resolved) -> Result<String, PrepareError> {
    let lock: Value = serde_json::from_str(lock).unwrap_or_default();
    let entry = &lock["packages"][format!("node_modules/{name}")];
    let integrity = entry["integrity"].as_str().unwrap_or_default();
    let same = entry["version"].as_str() == Some(&resolved.version)
        && resolved.integrity.as_deref().is_none_or(|wanted| wanted == integrity);
    if !same {
        let message = format!(
            "the registry delivered something else than `{name}@{}` with the integrity that it announced; deploy again",
            resolved.version
        );
        return Err(PrepareError::new(ErrorCode::InstallFailed, message));
    }
    Ok(integrity.to_owned())
}

/// The executables of an installed package, by its own package.json.
fn launches(tree: &Path, name: &str) -> Result<Vec<Launch>, PrepareError> {
    let folder = format!("node_modules/{name}");
    let manifest = read_manifest(&tree.join(&folder))?;
    let own = name.rsplit('/').next().unwrap_or(name);
    let mut found = Vec::new();
    for (bin, file) in bins(&manifest, own) {
        let Some(file) = inside(&tree.join(&folder), &file) else { continue };
        found.push(Launch { name: bin, argv: script(tree, &format!("{folder}/{file}"))? });
    }
    if found.is_empty()
        && let Some(main) = main_file(&tree.join(&folder), &manifest)
    {
        let argv = vec![Word::Tool("node".into()), Word::Path(format!("{folder}/{main}"))];
        found.push(Launch { name: own.to_owned(), argv });
    }
    Ok(found)
}

pub(crate) fn read_manifest(dir: &Path) -> Result<Value, PrepareError> {
    let text = tree::read_plain(&dir.join("package.json"), MAX_MANIFEST).doing("reading package.json")?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| {
        PrepareError::new(
            ErrorCode::InstallFailed,
            format!("package.json is not readable JSON ({e}); correct it"),
        )
    })
}

/// `bin` is a map, or a string that is named like the package.
pub(crate) fn bins(manifest: &Value, own: &str) -> Vec<(String, String)> {
    match &manifest["bin"] {
        Value::String(file) => vec![(own.to_owned(), file.clone())],
        Value::Object(map) => {
            map.iter().filter_map(|(bin, file)| Some((bin.clone(), file.as_str()?.to_owned()))).collect()
        }
        _ => Vec::new(),
    }
}

/// The file that `main` means, if it is there; `index.js` when nothing is said.
pub(crate) fn main_file(dir: &Path, manifest: &Value) -> Option<String> {
    let main = manifest["main"].as_str().unwrap_or("index.js").trim_end_matches('/');
    [main.to_owned(), format!("{main}.js"), format!("{main}/index.js")].iter().find_map(|f| inside(dir, f))
}

/// A relative path in plain form, if it names a file inside `dir`.
pub(crate) fn inside(dir: &Path, file: &str) -> Option<String> {
    let parts: Vec<&str> = file.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let plain = parts.join("/");
    let stays = !file.starts_with('/') && !parts.contains(&"..") && !plain.is_empty();
    (stays && dir.join(&plain).is_file()).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_range_is_latest_or_the_highest() {
        let version = |v: &str, latest: &str| json!({ "version": v, "dist.integrity": format!("sha512-{v}"), "dist-tags.latest": latest });
        let pick = |answer: Value| newest(&answer).map(|r| r.version);
        assert_eq!(pick(version("1.0.0", "1.0.0")).unwrap(), "1.0.0");
        let list =
            json!([version("1.9.0", "2.0.0"), version("1.10.0", "2.0.0"), version("1.10.0-rc.1", "2.0.0")]);
        assert_eq!(pick(list).unwrap(), "1.10.0");
        let list = json!([version("1.1.0", "1.1.0"), version("1.2.0", "1.1.0")]);
        assert_eq!(pick(list).unwrap(), "1.1.0", "what the author calls latest wins when it fits");
        assert_eq!(pick(json!("")), None);
    }

    #[test]
    fn only_numbers_are_a_release() {
        assert!(is_version("1.10.0"));
        for none in ["created", "modified", "1.0.0-rc.1", "1.0", ""] {
            assert!(!is_version(none), "{none}");
        }
    }

    #[test]
    fn pre_releases_order_as_semver_says() {
        let order =
            ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0"];
        assert!(order.windows(2).all(|pair| precedence(pair[0]) < precedence(pair[1])));
    }

    #[test]
    fn another_integrity_than_announced_is_an_error() {
        let lock = json!({"packages": {"node_modules/a": {"version": "1.0.0", "integrity": "sha512-real"}}})
            .to_string();
        let resolved = |integrity: Option<&str>| Resolved {
            version: "1.0.0".into(),
            integrity: integrity.map(Into::into),
        };
        assert_eq!(locked_integrity(&lock, "a", &resolved(None)).unwrap(), "sha512-real");
        assert!(locked_integrity(&lock, "a", &resolved(Some("sha512-real"))).is_ok());
        assert!(locked_integrity(&lock, "a", &resolved(Some("sha512-other"))).is_err());
        assert!(locked_integrity("{}", "a", &resolved(None)).is_err());
    }

    #[test]
    fn a_bin_is_a_string_or_a_map_and_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("node_modules/@s/mcp");
        std::fs::create_dir_all(package.join("dist")).unwrap();
        std::fs::write(package.join("dist/a.js"), "#!/usr/bin/env node").unwrap();
        let with = |manifest: Value| {
            std::fs::write(package.join("package.json"), manifest.to_string()).unwrap();
            launches(dir.path(), "@s/mcp").unwrap().into_iter().map(|l| l.name).collect::<Vec<_>>()
        };
        assert_eq!(with(json!({"bin": "./dist/a.js"})), ["mcp"]);
        assert_eq!(
            with(json!({"bin": {"x": "dist/a.js", "y": "../../../etc/passwd", "z": "gone.js"}})),
            ["x"]
        );
        assert_eq!(with(json!({"main": "dist/a"})), ["mcp"]);
        assert!(with(json!({})).is_empty());
    }

    #[test]
    fn npm_s_errors_have_codes() {
        let code = |text| failed("x", text, Vec::new()).code();
        assert_eq!(code("npm error code ENOTFOUND"), ErrorCode::SourceUnreachable);
        assert_eq!(code("npm error code E401"), ErrorCode::SourceDenied);
        assert_eq!(code("npm error code ERESOLVE"), ErrorCode::InstallFailed);
    }
}
