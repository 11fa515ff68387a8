//! Python projects from git and archives, through uv.
//!
//! Not here: published packages ([`super::pypi`]), which file is started ([`super::entry`]).
//!
//! Whose code runs: a dependency's build code only with `allow_scripts`; without, dependencies come as wheels or not at
//! all. The project's own build code is its deployer's and always runs, as does that of its `-e` folders and what its
//! `[build-system]` names. Every step in which such code may run is foreign: it has nothing of the operator's but the
//! indexes' addresses, so a private index can not serve it.

use std::path::Path;

use wire::ErrorCode;

use super::entry::{self, Project};
use super::error::{Doing, PrepareError};
use super::project::{Made, Wishes, interpreter};
use super::pypi::{self, VENV};
use super::step::{Bench, Step};
use super::tree;

/// Of a pyvenv.cfg.
const MAX_CONFIG: u64 = 64 << 10;

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
        None => from_requirements(bench, tree, &dir, wishes.allow_scripts).await?,
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

async fn from_requirements(
    bench: &Bench,
    tree: &Path,
    dir: &Path,
    allow_scripts: bool,
) -> Result<Made, PrepareError> {
    pypi::make_venv(bench, tree).await?;
    let interpreter = interpreter(tree);
    bench.say(
        "install",
        "requirements.txt names paths, options or addresses: nothing is locked, and the runner's index login is not used",
    );
    let wheels_only: &[&str] = if allow_scripts { &[] } else { &["--only-binary", ":all:"] };
    pip(bench, tree, dir, &[&["-r", "requirements.txt"], wheels_only].concat()).await?;
    Ok(Made { launch: None, lock: String::new(), interpreter })
}

/// Without the operator's logins: a requirements file may put any variable into an address, and what is built may read
/// all of them.
async fn pip(bench: &Bench, tree: &Path, dir: &Path, what: &[&str]) -> Result<(), PrepareError> {
    let python = pypi::venv_python(tree);
    let mut args = vec!["pip", "install", "--link-mode", "copy", "--compile-bytecode", "--python", &python];
    let before = bench.min_age.before();
    if let Some(before) = &before {
        args.extend(["--exclude-newer", before]);
    }
    args.extend(what);
    let ended = bench.run(Step::new("install", "uv", dir, &args).foreign()).await?;
    if ended.success { Ok(()) } else { Err(pypi::failed("the project", &ended.text(), ended.tail)) }
}

/// Two passes: dependencies, from wheels only unless scripts are allowed; then the project itself, which may have to be
/// built.
async fn from_uv_lock(
    bench: &Bench,
    tree: &Path,
    dir: &Path,
    allow_scripts: bool,
) -> Result<Made, PrepareError> {
    pypi::make_venv(bench, tree).await?;
    let interpreter = interpreter(tree);
    let common = ["sync", "--frozen", "--no-dev", "--no-editable", "--link-mode", "copy"];
    let dependencies: &[&str] =
        if allow_scripts { &["--no-install-workspace"] } else { &["--no-install-workspace", "--no-build"] };
    // Only the second: compiling runs the environment's Python, and with it what the wheels put into `.pth` files.
    for (extra, is_foreign) in [(dependencies, allow_scripts), (&["--compile-bytecode"], true)] {
        let args: Vec<&str> = common.iter().chain(extra).copied().collect();
        let step = Step::new("install", "uv", dir, &args).foreign_if(is_foreign);
        let ended = bench.run(step.env("UV_PROJECT_ENVIRONMENT", tree.join(VENV))).await?;
        if !ended.success {
            return Err(pypi::failed("the project", &ended.text(), ended.tail));
        }
    }
    // uv replaces an environment whose Python the project does not support; the new one is not relocatable.
    let config = tree.join(VENV).join("pyvenv.cfg");
    let config = tree::read_plain(&config, MAX_CONFIG).doing("reading the environment")?;
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

    /// What uv is asked to do for a project of these files: the step's reach, then its arguments.
    async fn asked(files: &[(&str, &str)], allow_scripts: bool) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("artefact/tree");
        std::fs::create_dir_all(tree.join("src")).unwrap();
        for (file, text) in files {
            std::fs::write(tree.join("src").join(file), text).unwrap();
        }
        let bench = Bench::noting(dir.path(), |step| {
            if step.args[0] == "venv" {
                std::fs::create_dir_all(step.cwd.join("venv")).unwrap();
                std::fs::write(step.cwd.join("venv/pyvenv.cfg"), "relocatable = true").unwrap();
            }
        });
        let project = Project { tree: &tree, project: "src", wanted: None };
        let lock = files.iter().any(|(file, _)| *file == "pyproject.toml").then_some("a==1");
        let wishes = Wishes { runtime: None, allow_scripts, lock };
        environment(&bench, project, &wishes).await.unwrap();
        bench.noted().into_iter().filter(|line| !line.contains(" venv ")).collect()
    }

    #[tokio::test]
    async fn a_loose_requirements_file_builds_nothing_and_has_no_login_unless_allowed() {
        let files =
            [("requirements.txt", "--index-url https://h/${UV_INDEX_PASSWORD}\nx @ https://h/x.tar.gz")];
        let strict = asked(&files, false).await;
        assert!(strict[0].starts_with("Project uv pip install "), "{strict:?}");
        assert!(strict[0].ends_with("-r requirements.txt --only-binary :all:"), "{strict:?}");
        let allowed = asked(&files, true).await;
        assert!(allowed[0].starts_with("Project ") && !allowed[0].contains("--only-binary"), "{allowed:?}");
    }

    #[tokio::test]
    async fn the_project_s_own_build_has_no_login_and_its_dependencies_are_wheels() {
        let own = ("pyproject.toml", "[build-system]\nrequires = ['setuptools']\n");
        let lines = asked(&[own], false).await;
        assert!(lines[0].contains("--only-binary :all:") && lines[0].starts_with("Registry "), "{lines:?}");
        let last = lines.last().unwrap();
        assert!(last.starts_with("Project ") && last.ends_with("--no-deps -- ."), "{lines:?}");
        for (allow_scripts, reach) in [(false, "Registry "), (true, "Project ")] {
            let lines = asked(&[own, ("uv.lock", "")], allow_scripts).await;
            assert!(lines[0].starts_with(reach) && lines[0].contains("--no-install-workspace"), "{lines:?}");
            assert_eq!(lines[0].contains("--no-build"), !allow_scripts, "{lines:?}");
            assert!(lines[1].starts_with("Project ") && !lines[1].contains("--no-install"), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn nothing_that_runs_the_environment_s_python_has_a_login() {
        for (file, text) in [
            ("requirements.txt", "a==1"),
            ("pyproject.toml", "[build-system]\nrequires = ['setuptools']\n"),
            ("uv.lock", ""),
        ] {
            let lines = asked(&[("pyproject.toml", "[build-system]\n"), (file, text)], false).await;
            let compiles = |line: &&String| line.contains("compile-bytecode") || line.contains("compileall");
            assert!(lines.iter().any(|line| compiles(&line)), "{lines:?}");
            let known = lines.iter().filter(compiles).find(|line| !line.starts_with("Project "));
            assert_eq!(known, None, "{lines:?}");
        }
    }

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
