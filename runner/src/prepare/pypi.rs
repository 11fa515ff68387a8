//! PyPI packages through uv: a hashed lock first, then a relocatable environment made from exactly that lock.
//!
//! Here: the arguments that uv gets, what its errors mean, and the console scripts of a distribution.
//! Not here: Python projects from git and archives ([`super::project`]), which use the same pieces.

use std::path::{Path, PathBuf};

use wire::ErrorCode;

use super::error::{Doing, PrepareError};
use super::launch::{Launch, Word};
use super::requirement::{PyRequirement, normalise};
use super::setting;
use super::step::{Bench, Step};
use super::tree;

/// Where the environment is, relative to the tree.
pub(crate) const VENV: &str = "venv";
const LOCK: &str = "requirements.lock";
const MAX_LOCK: u64 = 16 << 20;

/// A requirement, resolved with everything that it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Locked {
    pub(crate) version: String,
    /// Hashes of the package's own files, any of which may be the one that is installed.
    pub(crate) integrity: String,
    pub(crate) lock: String,
}

/// Resolves the requirement to a lock with hashes.
pub(crate) async fn resolve(
    bench: &Bench,
    wanted: &PyRequirement,
    allow_scripts: bool,
) -> Result<Locked, PrepareError> {
    let spec = wanted.spec();
    bench.say("fetch", &format!("looking up {spec}"));
    let work = bench.work()?;
    std::fs::write(work.join("requirements.in"), format!("{spec}\n")).doing("writing the requirement")?;
    let compiled = compile(bench, &work, "requirements.in", allow_scripts, &spec).await;
    let lock = match compiled {
        Err(error) if bench.min_age.before().is_some() => return Err(judge_age(bench, wanted, error).await),
        compiled => compiled?,
    };
    from_lock(&lock, &wanted.name).ok_or_else(|| {
        PrepareError::new(ErrorCode::InstallFailed, format!("uv resolved `{spec}` to nothing"))
    })
}

/// Whether a resolution failed only because what is wanted is too new.
async fn judge_age(bench: &Bench, wanted: &PyRequirement, error: PrepareError) -> PrepareError {
    let spec = wanted.spec();
    let young = single(bench, &spec, None).await;
    let Ok(Some((version, published))) = young else { return error };
    let before = bench.min_age.before();
    let other = single(bench, &wanted.name, before.as_deref()).await.ok().flatten();
    if bench.min_age.covers(published.as_deref()) {
        return error; // It is old enough itself: a dependency is not.
    }
    let (what, other) = (format!("{}=={version}", wanted.name), other.map(|(version, _)| version));
    bench.min_age.too_new(&what, published.as_deref(), other.as_deref())
}

/// The version that a requirement means by itself, and when its newest file was published. `None`: none.
async fn single(
    bench: &Bench,
    spec: &str,
    before: Option<&str>,
) -> Result<Option<(String, Option<String>)>, PrepareError> {
    let (work, python) = (bench.work()?, python(bench)?);
    std::fs::write(work.join("single.in"), format!("{spec}\n")).doing("writing the requirement")?;
    let output = work.join("pylock.single.toml");
    let output_text = output.to_string_lossy();
    let mut args = vec!["pip", "compile", "--no-deps", "--only-binary", ":all:", "--format", "pylock.toml"];
    args.extend(["--quiet", "--python", &python, "--output-file", &output_text]);
    if let Some(before) = before {
        args.extend(["--exclude-newer", before]);
    }
    args.extend(["--", "single.in"]);
    if !bench.run(Step::new("fetch", "uv", &work, &args)).await?.success {
        return Ok(None);
    }
    let text = tree::read_plain(&output, MAX_LOCK).doing("reading the lock")?;
    Ok(published(&text))
}

/// Version and latest upload of the one package in a `pylock.toml`.
fn published(lock: &str) -> Option<(String, Option<String>)> {
    let lock: toml::Table = lock.parse().ok()?;
    let package = lock.get("packages")?.as_array()?.first()?;
    let version = package.get("version")?.as_str()?.to_owned();
    let wheels = package.get("wheels").and_then(toml::Value::as_array).into_iter().flatten();
    let times = wheels
        .chain(package.get("sdist"))
        .filter_map(|file| Some(file.get("upload-time")?.as_datetime()?.to_string()));
    Some((version, times.max()))
}

fn python(bench: &Bench) -> Result<String, PrepareError> {
    Ok(bench.tools.get("python")?.path.to_string_lossy().into_owned())
}

/// `uv pip compile` of a requirements file or pyproject.toml in `cwd`.
pub(crate) async fn compile(
    bench: &Bench,
    cwd: &Path,
    input: &str,
    allow_scripts: bool,
    what: &str,
) -> Result<String, PrepareError> {
    let python = python(bench)?;
    let output = bench.work()?.join(LOCK);
    let output_text = output.to_string_lossy();
    let mut args = vec!["pip", "compile", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"];
    args.extend(["--python", &python, "--output-file", &output_text]);
    if !allow_scripts {
        args.extend(["--only-binary", ":all:"]);
    }
    let before = bench.min_age.before();
    if let Some(before) = &before {
        args.extend(["--exclude-newer", before]);
    }
    args.extend(["--", input]);
    // To read what a project depends on, its own build code may have to run, or that of its dependencies.
    let is_foreign = allow_scripts || is_dynamic(cwd, input);
    let ended = bench.run(Step::new("fetch", "uv", cwd, &args).foreign_if(is_foreign)).await?;
    if !ended.success {
        return Err(failed(what, &ended.text(), ended.tail));
    }
    tree::read_plain(&output, MAX_LOCK).doing("reading the lock")
}

/// Whether only a project's build code knows its dependencies.
fn is_dynamic(cwd: &Path, input: &str) -> bool {
    if input != "pyproject.toml" {
        return false;
    }
    let text = std::fs::read_to_string(cwd.join(input)).unwrap_or_default();
    let Ok(manifest) = text.parse::<toml::Table>() else { return true };
    let Some(project) = manifest.get("project") else { return true };
    let dynamic = project.get("dynamic").and_then(toml::Value::as_array).into_iter().flatten();
    let mut fields = dynamic.filter_map(toml::Value::as_str);
    fields.any(|field| field.ends_with("dependencies") || field == "version")
}

/// Makes the environment `tree/venv` with exactly what the lock names.
pub(crate) async fn install(
    bench: &Bench,
    tree: &Path,
    lock: &str,
    allow_scripts: bool,
    what: &str,
) -> Result<(), PrepareError> {
    std::fs::create_dir_all(tree).doing("making a staging directory")?;
    make_venv(bench, tree).await?;
    let file = bench.work()?.join(LOCK);
    // A step may have left a link of that name.
    let _ = std::fs::remove_file(&file);
    std::fs::write(&file, lock).doing("writing the lock")?;
    let (file, python) = (file.to_string_lossy(), venv_python(tree));
    let mut args = vec!["pip", "sync", "--require-hashes", "--link-mode", "copy"];
    args.extend(["--allow-empty-requirements", "--python", &python]);
    if !allow_scripts {
        args.extend(["--only-binary", ":all:"]);
    }
    args.extend(["--", &file]);
    let ended = bench.run(Step::new("install", "uv", tree, &args).foreign_if(allow_scripts)).await?;
    if !ended.success {
        return Err(failed(what, &ended.text(), ended.tail));
    }
    compile_bytecode(bench, tree).await
}

/// The tree is read-only when the server runs. uv would do this with the environment's own Python, which runs any line
/// that a wheel puts into a `.pth` file: so it is a foreign step, in which Python looks at no environment either.
async fn compile_bytecode(bench: &Bench, tree: &Path) -> Result<(), PrepareError> {
    let args = ["-I", "-S", "-m", "compileall", "-q", VENV];
    // Files that are no Python of this version are common, and nothing to fail for.
    bench.run(Step::new("install", "python", tree, &args).foreign()).await.map(drop)
}

/// Relocatable, because it is renamed into the store afterwards.
pub(crate) async fn make_venv(bench: &Bench, tree: &Path) -> Result<(), PrepareError> {
    let python = python(bench)?;
    let args = ["venv", "--relocatable", "--no-project", "--quiet", "--python", &python, "--", VENV];
    let ended = bench.run(Step::new("install", "uv", tree, &args)).await?;
    ended.success_or(
        ErrorCode::InstallFailed,
        "uv could not make a Python environment; the last lines say why",
    )?;
    Ok(())
}

pub(crate) fn venv_python(tree: &Path) -> String {
    tree.join(VENV).join("bin/python").to_string_lossy().into_owned()
}

/// What uv's output says about the cause.
pub(crate) fn failed(what: &str, text: &str, tail: Vec<String>) -> PrepareError {
    let name = normalise(what.split(['[', '=', '<', '>', '~', '!']).next().unwrap_or(what));
    let about_it = text.contains(&format!("you require {name}"));
    let has = |marks: &[&str]| marks.iter().any(|mark| text.contains(mark));
    let (code, message) = if text.contains(&format!("Because {name} was not found in the package registry")) {
        (ErrorCode::SourceNotFound, format!("PyPI has no package `{name}`; check the spelling"))
    } else if has(&[
        "has no usable wheels",
        "have no usable wheels",
        "building from source is disabled",
        "Building source distributions",
    ]) {
        let message = format!(
            "`{what}` or a dependency has no ready-built wheel for this machine; deploy with `--allow-scripts` to build it"
        );
        (ErrorCode::InstallFailed, message)
    } else if about_it
        && has(&[
            "there is no version of",
            "there are no versions of",
            "is available and",
            "are available and",
        ])
    {
        (ErrorCode::VersionNotFound, format!("PyPI has no `{what}`; leave the version out to get the newest"))
    } else if has(&["401 Unauthorized", "403 Forbidden"]) {
        let message =
            format!("the Python index refuses `{what}`; give the runner's uv a login that may read it");
        (ErrorCode::SourceDenied, message)
    } else if has(&[
        "error sending request",
        "Failed to fetch",
        "dns error",
        "tcp connect",
        "operation timed out",
    ]) {
        let message = format!(
            "the Python index could not be reached for `{what}`; check the runner's network{}",
            setting::about_proxy()
        );
        (ErrorCode::SourceUnreachable, message)
    } else {
        (ErrorCode::InstallFailed, format!("uv could not install `{what}`; the last lines say why"))
    };
    PrepareError::new(code, message).with_lines(tail)
}

/// Version and hashes of one package in a hashed requirements file.
pub(crate) fn from_lock(lock: &str, name: &str) -> Option<Locked> {
    let mut lines = lock.lines().skip_while(|line| {
        let package = line.split(['=', '[', ' ', ';']).next().unwrap_or_default();
        line.starts_with(' ') || normalise(package) != name
    });
    let version = lines.next()?.split_once("==")?.1;
    let version = version.split([' ', ';', '\\']).next()?.to_owned();
    let hashes = lines.map_while(|line| line.trim().strip_prefix("--hash="));
    let hashes: Vec<&str> = hashes.map(|h| h.trim_end_matches(['\\', ' '])).collect();
    Some(Locked { version, integrity: hashes.join(" "), lock: lock.to_owned() })
}

/// The console scripts that the distribution itself declares.
pub(crate) fn launches(tree: &Path, distribution: &str) -> Result<Vec<Launch>, PrepareError> {
    let Some(info) = dist_info(tree, distribution) else { return Ok(Vec::new()) };
    // A distribution without scripts has no such file.
    let text = super::tree::read_plain(&info.join("entry_points.txt"), MAX_LOCK).unwrap_or_default();
    let present = |script: &String| tree.join(VENV).join("bin").join(script).is_file();
    Ok(console_scripts(&text).into_iter().filter(present).map(|script| launch(&script)).collect())
}

/// The environment's Python runs the script, so nothing depends on the script's own first line.
pub(crate) fn launch(script: &str) -> Launch {
    let path = |file: &str| Word::Path(format!("{VENV}/bin/{file}"));
    Launch { name: script.to_owned(), argv: vec![path("python"), path(script)] }
}

fn dist_info(tree: &Path, distribution: &str) -> Option<PathBuf> {
    let lib = tree.join(VENV).join("lib").read_dir().ok()?.flatten();
    let packages = lib.filter_map(|python| python.path().join("site-packages").read_dir().ok());
    packages.flatten().flatten().map(|entry| entry.path()).find(|path| {
        let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".dist-info"));
        stem.and_then(|s| s.rsplit_once('-')).is_some_and(|(name, _)| normalise(name) == distribution)
    })
}

fn console_scripts(entry_points: &str) -> Vec<String> {
    let mut inside = false;
    let mut scripts = Vec::new();
    for line in entry_points.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[console_scripts]";
        } else if let (true, Some((name, _))) = (inside, line.split_once('=')) {
            let name = name.trim();
            if !name.is_empty() && !name.starts_with(['#', ';', '.', '-']) && !name.contains('/') {
                scripts.push(name.to_owned());
            }
        }
    }
    scripts
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "anyio==4.1 \\\n    --hash=sha256:aa\nmcp-server-time==2025.9.25 ; python_version > '3' \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\nzzz==1 \\\n    --hash=sha256:dd\n";

    #[test]
    fn version_and_hashes_are_read_from_the_lock() {
        let locked = from_lock(LOCK, "mcp-server-time").unwrap();
        assert_eq!(locked.version, "2025.9.25");
        assert_eq!(locked.integrity, "sha256:bb sha256:cc");
        assert!(from_lock(LOCK, "absent").is_none());
    }

    #[test]
    fn the_newest_upload_of_a_version_is_read_from_its_lock() {
        let lock = "lock-version = '1.0'\n[[packages]]\nname = 'a'\nversion = '2.0'\n\
            wheels = [{ url = 'u', upload-time = 2026-11-01T10:00:00Z }, { url = 'v', upload-time = 2026-11-02T10:00:00Z }]\n\
            sdist = { url = 's', upload-time = 2026-10-30T10:00:00Z }";
        assert_eq!(published(lock), Some(("2.0".into(), Some("2026-11-02T10:00:00Z".into()))));
        assert_eq!(published("[[packages]]\nversion = '1'"), Some(("1".into(), None)));
        assert_eq!(published("nothing"), None);
    }

    #[test]
    fn a_project_whose_dependencies_only_its_build_knows_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let asks = |text: &str| {
            std::fs::write(dir.path().join("pyproject.toml"), text).unwrap();
            is_dynamic(dir.path(), "pyproject.toml")
        };
        assert!(!asks("[project]\nname = 'a'\nversion = '1'\ndependencies = []"));
        for dynamic in ["[build-system]", "[project]\ndynamic = ['dependencies']", "not toml"] {
            assert!(asks(dynamic), "{dynamic}");
        }
        assert!(!is_dynamic(dir.path(), "requirements.txt"));
    }

    #[test]
    fn only_console_scripts_are_executables() {
        let text = "[gui_scripts]\ng = a:b\n[console_scripts]\n# no = x\nword_mcp_server = w.main:run\ntwo=w:two\n[x]\nz = z";
        assert_eq!(console_scripts(text), ["word_mcp_server", "two"]);
    }

    #[test]
    fn uv_s_errors_have_codes() {
        let code = |what, text| failed(what, text, Vec::new()).code();
        let absent =
            "cause: Because no-such was not found in the package registry and you require no-such, we can";
        assert_eq!(code("no-such", absent), ErrorCode::SourceNotFound);
        assert_eq!(code("other", absent), ErrorCode::InstallFailed);
        let version = "Because there is no version of x==99 and you require x==99, we can conclude";
        assert_eq!(code("x==99", version), ErrorCode::VersionNotFound);
        let range = "Because only x<=2 is available and you require x>=99, we can conclude";
        assert_eq!(code("x>=99", range), ErrorCode::VersionNotFound);
        let wheels = "Because all versions of pyspark have no usable wheels and you require pyspark,";
        assert_eq!(code("pyspark", wheels), ErrorCode::InstallFailed);
        let built = "cause: Building source distributions for `x` is disabled";
        assert!(failed("the project", built, Vec::new()).to_string().contains("--allow-scripts"));
        assert_eq!(code("x", "error sending request for url"), ErrorCode::SourceUnreachable);
    }
}
