//! Python projects from git and archives, through uv.
//!
//! Not here: published packages ([`super::pypi`]), which file is started ([`super::entry`]).

use std::path::Path;

use wire::ErrorCode;

use super::entry::{self, Project};
use super::error::{Doing, PrepareError};
use super::project::{Made, Wishes, interpreter};
use super::pypi::{self, VENV};
use super::step::{Bench, Step};

pub(crate) async fn install(
    bench: &Bench,
    project: Project<'_>,
    wishes: &Wishes<'_>,
) -> Result<Made, PrepareError> {
    let dir = project.dir();
    let manifest = manifest(&dir)?;
    let made = match has_requirements(&dir) {
        true => environment(bench, project, wishes).await?,
        false => Made::default(),
    };
    Ok(Made { launch: Some(entry::python(project, &manifest)?), ..made })
}

pub(crate) fn has_requirements(dir: &Path) -> bool {
    ["uv.lock", "requirements.txt", "pyproject.toml"].iter().any(|file| dir.join(file).is_file())
}

fn manifest(dir: &Path) -> Result<toml::Table, PrepareError> {
    let Ok(text) = std::fs::read_to_string(dir.join("pyproject.toml")) else { return Ok(toml::Table::new()) };
    text.parse().map_err(|e: toml::de::Error| {
        let message = format!("pyproject.toml is not readable ({}); correct it", e.message());
        PrepareError::new(ErrorCode::InstallFailed, message)
    })
}

/// Makes `tree/venv` as the project says: from uv.lock, else requirements.txt, else pyproject.toml.
pub(crate) async fn environment(
    bench: &Bench,
    project: Project<'_>,
    wishes: &Wishes<'_>,
) -> Result<Made, PrepareError> {
    let (dir, tree) = (project.dir(), project.tree);
    let manifest = manifest(&dir)?;
    let has = |file: &str| dir.join(file).is_file();
    bench.say("install", "installing dependencies with uv");
    if has("uv.lock") && has("pyproject.toml") {
        return from_uv_lock(bench, tree, &dir, wishes.allow_scripts).await;
    }
    let scripts = !entry::scripts(&manifest).is_empty();
    let (input, itself) = match has("requirements.txt") {
        true => ("requirements.txt", scripts),
        false => ("pyproject.toml", scripts || manifest.contains_key("build-system")),
    };
    let made = match wishes.lock {
        Some(lock) => from_lock(bench, tree, lock, wishes.allow_scripts).await?,
        None if is_lockable(&dir, input) => {
            let lock = pypi::compile(bench, &dir, input, wishes.allow_scripts, "the project").await?;
            from_lock(bench, tree, &lock, wishes.allow_scripts).await?
        }
        None => from_requirements(bench, tree, &dir).await?,
    };
    if itself {
        // Building the project itself is running its deployer's code, which is going to run anyway.
        pip(bench, tree, &dir, &["--no-deps", "--", "."]).await?;
    }
    Ok(made)
}

async fn from_lock(
    bench: &Bench,
    tree: &Path,
    lock: &str,
    allow_scripts: bool,
) -> Result<Made, PrepareError> {
    pypi::install(bench, tree, lock, allow_scripts, "the project").await?;
    Ok(Made { launch: None, lock: lock.to_owned(), interpreter: interpreter(tree) })
}

/// Local paths, editable installs and repositories have no hashes, so such a file makes no lock.
fn is_lockable(dir: &Path, input: &str) -> bool {
    let text = std::fs::read_to_string(dir.join(input)).unwrap_or_default();
    let loose = |line: &str| {
        line.starts_with(['-', '.', '/']) && !line.starts_with("--hash")
            || line.contains("://")
            || line.contains(" @ ")
    };
    input != "requirements.txt" || !text.lines().any(|line| loose(line.trim()))
}

async fn from_requirements(bench: &Bench, tree: &Path, dir: &Path) -> Result<Made, PrepareError> {
    pypi::make_venv(bench, tree).await?;
    let interpreter = interpreter(tree);
    bench.say(
        "install",
        "requirements.txt names paths, options or repositories: these are built, and nothing is locked",
    );
    pip(bench, tree, dir, &["-r", "requirements.txt"]).await?;
    Ok(Made { launch: None, lock: String::new(), interpreter })
}

async fn pip(bench: &Bench, tree: &Path, dir: &Path, what: &[&str]) -> Result<(), PrepareError> {
    let python = pypi::venv_python(tree);
    let mut args = vec!["pip", "install", "--link-mode", "copy", "--compile-bytecode", "--python", &python];
    args.extend(what);
    let ended = bench.run(Step::new("install", "uv", dir, &args)).await?;
    if ended.success { Ok(()) } else { Err(pypi::failed("the project", &ended.text(), ended.tail)) }
}

/// Two passes: dependencies from wheels only, then the project itself, which may have to be built.
async fn from_uv_lock(
    bench: &Bench,
    tree: &Path,
    dir: &Path,
    allow_scripts: bool,
) -> Result<Made, PrepareError> {
    pypi::make_venv(bench, tree).await?;
    let interpreter = interpreter(tree);
    let common =
        ["sync", "--frozen", "--no-dev", "--no-editable", "--link-mode", "copy", "--compile-bytecode"];
    let dependencies: &[&str] = if allow_scripts { &[] } else { &["--no-install-workspace", "--no-build"] };
    for extra in [dependencies, &[]] {
        let args: Vec<&str> = common.iter().chain(extra).copied().collect();
        let step = Step::new("install", "uv", dir, &args).env("UV_PROJECT_ENVIRONMENT", tree.join(VENV));
        let ended = bench.run(step).await?;
        if !ended.success {
            return Err(pypi::failed("the project", &ended.text(), ended.tail));
        }
    }
    // uv replaces an environment whose Python the project does not support; the new one is not relocatable.
    let config =
        std::fs::read_to_string(tree.join(VENV).join("pyvenv.cfg")).doing("reading the environment")?;
    if !config.contains("relocatable = true") {
        let message =
            "the project asks for another Python than the runner has; install that one on the runner";
        return Err(PrepareError::new(ErrorCode::RuntimeMissing, message));
    }
    Ok(Made { launch: None, lock: String::new(), interpreter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_requirements_make_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lockable = |text: &str| {
            std::fs::write(dir.path().join("requirements.txt"), text).unwrap();
            is_lockable(dir.path(), "requirements.txt")
        };
        assert!(lockable("# comment\nmcp>=1,<2\nhttpx[http2]==0.28 ; python_version > '3'\n"));
        for loose in
            ["-e .", "./lib", "/opt/x", "x @ git+https://h/x", "-r other.txt", "--index-url https://h"]
        {
            assert!(!lockable(loose), "{loose}");
        }
    }
}
