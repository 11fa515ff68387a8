//! Projects from git and archives: which runtime they need, and installing them as their lock file says.
//!
//! Here: detection, Node and Bun projects. Not here: Python projects ([`super::python`]), published packages, entries.
//! The project's own build script is its deployer's code and runs; its dependencies' install scripts do not, unless
//! the deployer allows them. Neither sees the operator's registry logins: a step that may run one of them is foreign.
//! npm's scripts run in a step after its install. The other managers have no such step, so with scripts allowed their
//! whole install is foreign, and private packages can not be among its dependencies. Yarn 2 and later loads plugins that
//! the project names, so it is always foreign.

use std::path::{Path, PathBuf};

use serde_json::Value;
use wire::ErrorCode;
use wire::spec::Runtime;

use super::bundle::{self, Kind};
use super::entry::{self, Project};
use super::error::{Doing, PrepareError};
use super::launch::Launch;
use super::manager::Manager;
use super::npm;
use super::setting::Reach;
use super::step::{Bench, Step};
use super::{pypi, python, tree};

/// Of a package-lock.json.
const MAX_LOCK: u64 = 64 << 20;

pub(crate) struct Wishes<'a> {
    pub(crate) runtime: Option<Runtime>,
    pub(crate) allow_scripts: bool,
    /// Of an earlier install of the same source, for projects without a lock of their own.
    pub(crate) lock: Option<&'a str>,
}

/// An installed project.
#[derive(Default)]
pub(crate) struct Made {
    /// `None` for a bundle, whose manifest is read at every start.
    pub(crate) launch: Option<Launch>,
    /// Made here, because the project has none.
    pub(crate) lock: String,
    /// Where the Python environment's interpreter really is.
    pub(crate) interpreter: Option<PathBuf>,
}

/// Installs the project in place.
pub(crate) async fn install(
    bench: &Bench,
    project: Project<'_>,
    wishes: &Wishes<'_>,
) -> Result<Made, PrepareError> {
    let dir = project.dir();
    disarm(bench, project.tree, &dir)?;
    if let Some(manifest) = bundle::read(&dir)? {
        return install_bundle(bench, project, wishes, &manifest).await;
    }
    match wishes.runtime.map(Ok).unwrap_or_else(|| detect(&dir))? {
        Runtime::Python => python::install(bench, project, wishes).await,
        runtime => install_node(bench, project, wishes, runtime).await,
    }
}

/// A bundle carries what it needs, except for uv bundles and those that only name their dependencies.
async fn install_bundle(
    bench: &Bench,
    project: Project<'_>,
    wishes: &Wishes<'_>,
    manifest: &bundle::Manifest,
) -> Result<Made, PrepareError> {
    let dir = project.dir();
    let made = match manifest.server.kind {
        Kind::Node if dir.join("package.json").is_file() && !dir.join("node_modules").is_dir() => {
            let package = npm::read_manifest(&dir)?;
            let manager = Manager::of(&dir, project.tree, Runtime::Node);
            let lock = dependencies(bench, &dir, &package, manager, wishes, false).await?;
            Made { lock, ..Made::default() }
        }
        Kind::Uv => python::environment(bench, project, wishes).await?,
        Kind::Python if !manifest.carries_libraries() && python::has_requirements(&dir) => {
            python::environment(bench, project, wishes).await?
        }
        _ => Made::default(),
    };
    // Fails here, with the reason, rather than at the start.
    manifest.launch(project.tree, project.project, &[], true).map(drop).or_else(|e| match e.code() {
        ErrorCode::InvalidArgs => Ok(()), // Judged again with the deploy's own environment.
        _ => Err(e),
    })?;
    Ok(made)
}

fn detect(dir: &Path) -> Result<Runtime, PrepareError> {
    let has = |files: &[&str]| files.iter().any(|file| dir.join(file).is_file());
    if has(&["bun.lock", "bun.lockb", "bunfig.toml"]) {
        return Ok(Runtime::Bun);
    }
    if has(&["package.json"]) {
        return Ok(Runtime::Node);
    }
    if has(&[
        "pyproject.toml",
        "requirements.txt",
        "uv.lock",
        "server.py",
        "main.py",
        "src/server.py",
        "src/main.py",
    ]) {
        return Ok(Runtime::Python);
    }
    if has(&["index.js", "dist/index.js", "build/index.js", "src/index.js"]) {
        return Ok(Runtime::Node);
    }
    let message = "nothing to start: looked for package.json, bun.lock, pyproject.toml, requirements.txt, uv.lock, \
                   server.py, main.py and index.js; name the folder with `--subdir`, or the file with `--entry` and \
                   the runtime with `--runtime`";
    Err(PrepareError::new(ErrorCode::EntryNotFound, message))
}

/// Takes away the package managers' settings that could redirect the operator's credentials: npm fills `${VARIABLES}`
/// of its own environment into the deployer's `.npmrc`. Those of the folders above count too, in a workspace.
fn disarm(bench: &Bench, tree: &Path, dir: &Path) -> Result<(), PrepareError> {
    const HARMLESS: [&str; 11] = [
        "legacy-peer-deps",
        "strict-peer-dependencies",
        "auto-install-peers",
        "engine-strict",
        "node-linker",
        "shamefully-hoist",
        "public-hoist-pattern[]",
        "hoist-pattern[]",
        "hoist",
        "resolution-mode",
        "install-links",
    ];
    for dir in dir.ancestors().take_while(|dir| dir.starts_with(tree)) {
        let file = dir.join(".npmrc");
        if file.symlink_metadata().is_ok() {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let harmless = |line: &&str| {
                HARMLESS.contains(&line.split('=').next().unwrap_or_default().trim()) && !line.contains("${")
            };
            let kept: Vec<&str> = text.lines().filter(harmless).collect();
            if kept.len() < text.lines().filter(|line| !line.trim().is_empty()).count() {
                bench.say("install", "the project's .npmrc is not used; registries are the runner's own");
            }
            replace(&file, &kept.join("\n"), ".npmrc")?;
        }
        for name in ["uv.toml", ".yarnrc", "bunfig.toml"] {
            let file = dir.join(name);
            if file.symlink_metadata().is_ok() {
                bench.say(
                    "install",
                    &format!("the project's {name} is not used; registries are the runner's own"),
                );
                std::fs::remove_file(file).doing(&format!("setting {name} aside"))?;
            }
        }
    }
    Ok(())
}

/// Writes a file of the project's anew: what is there may be a link.
fn replace(file: &Path, text: &str, what: &str) -> Result<(), PrepareError> {
    if file.symlink_metadata().is_ok() {
        std::fs::remove_file(file).doing(&format!("setting {what} aside"))?;
    }
    std::fs::write(file, text).doing(&format!("writing {what}"))
}

async fn install_node(
    bench: &Bench,
    project: Project<'_>,
    wishes: &Wishes<'_>,
    runtime: Runtime,
) -> Result<Made, PrepareError> {
    let dir = project.dir();
    let manifest = match dir.join("package.json").is_file() {
        true => npm::read_manifest(&dir)?,
        false => Value::Null,
    };
    let manager = Manager::of(&dir, project.tree, runtime);
    let builds = needs_build(project, &manifest, runtime);
    let lock = dependencies(bench, &dir, &manifest, manager, wishes, builds).await?;
    if builds {
        build(bench, &dir, manager, wishes.allow_scripts, has_dependencies(&manifest, true)).await?;
    }
    let launch = entry::node(project, &manifest, runtime)?;
    Ok(Made { launch: Some(launch), lock, interpreter: None })
}

/// A project with a build script is built when what it would start is not there yet.
fn needs_build(project: Project<'_>, manifest: &Value, runtime: Runtime) -> bool {
    let has_script = manifest["scripts"]["build"].is_string();
    let is_there = match entry::declared(project, manifest) {
        Some(file) => npm::inside(&project.dir(), &file).is_some(),
        None => entry::node(project, manifest, runtime).is_ok(),
    };
    has_script && !is_there
}

fn has_dependencies(manifest: &Value, for_build: bool) -> bool {
    let mut kinds = vec!["dependencies", "optionalDependencies", "peerDependencies", "workspaces"];
    if for_build {
        kinds.push("devDependencies");
    }
    let filled = |value: &Value| {
        value.as_object().is_some_and(|map| !map.is_empty())
            || value.as_array().is_some_and(|list| !list.is_empty())
    };
    kinds.iter().any(|kind| filled(&manifest[kind]))
}

/// Answers the lock that was made, if the project has none.
async fn dependencies(
    bench: &Bench,
    dir: &Path,
    manifest: &Value,
    manager: Manager,
    wishes: &Wishes<'_>,
    for_build: bool,
) -> Result<String, PrepareError> {
    let is_vendored =
        dir.join("node_modules").is_dir() && matches!(manager, Manager::Npm | Manager::Bun) && !for_build;
    if !has_dependencies(manifest, for_build) || is_vendored {
        return Ok(String::new());
    }
    let lock_file = dir.join("package-lock.json");
    let manager = match (manager, wishes.lock) {
        (Manager::Npm, Some(lock)) => {
            replace(&lock_file, lock, "package-lock.json")?;
            Manager::NpmLocked
        }
        _ => manager,
    };
    bench.say("install", &format!("installing dependencies with {}", manager.tool()));
    let mut args = manager.install(!for_build, wishes.allow_scripts);
    let age = match manager {
        Manager::Npm => bench.min_age.before().map(|moment| format!("--before={moment}")),
        Manager::Bun => bench.min_age.demanded().map(|seconds| format!("--minimum-release-age={seconds}")),
        // The project's lock decides.
        _ => None,
    };
    args.extend(age.as_deref());
    run(bench, dir, manager, args, wishes.allow_scripts).await?;
    let lock = match (manager, wishes.lock) {
        (Manager::Npm, None) => tree::read_plain(&lock_file, MAX_LOCK).unwrap_or_default(),
        (Manager::NpmLocked, Some(lock)) => lock.to_owned(),
        _ => String::new(),
    };
    if wishes.allow_scripts && matches!(manager, Manager::Npm | Manager::NpmLocked) {
        npm::run_scripts(bench, dir, "the project").await?;
        own_scripts(bench, dir, manifest).await?;
    }
    Ok(lock)
}

/// Those that npm would run at the end of an install.
async fn own_scripts(bench: &Bench, dir: &Path, manifest: &Value) -> Result<(), PrepareError> {
    let all = ["preinstall", "install", "postinstall", "prepublish", "preprepare", "prepare", "postprepare"];
    for script in all.into_iter().filter(|script| manifest["scripts"][script].is_string()) {
        // `run` would run its `pre` and `post` as well, and `install` and `prepare` have them in the list.
        let args = ["run", script, "--ignore-scripts"];
        let ended = bench.run(Step::new("install", "npm", dir, &args).foreign()).await?;
        let message = format!("the project's `{script}` script failed; the last lines say why");
        ended.success_or(ErrorCode::InstallFailed, message)?;
    }
    Ok(())
}

async fn run(
    bench: &Bench,
    dir: &Path,
    manager: Manager,
    args: Vec<&str>,
    allow_scripts: bool,
) -> Result<(), PrepareError> {
    let is_foreign = manager.is_foreign(allow_scripts)
        || names_variables(dir)
        // Only the first yarn loads no plugins, and heeds `--ignore-scripts`.
        || (manager == Manager::Yarn1 && !bench.tools.get("yarn")?.version.starts_with("1."));
    let reach = if is_foreign { Reach::Project } else { Reach::Registry };
    let store = format!("--store-dir={}", bench.cache_of(reach).join("pnpm").display());
    let args: Vec<&str> = match manager {
        Manager::Pnpm => args.into_iter().chain([store.as_str()]).collect(),
        _ => args,
    };
    let step = Step::new("install", manager.tool(), dir, &args)
        .foreign_if(is_foreign)
        .env("YARN_ENABLE_SCRIPTS", if allow_scripts { "true" } else { "false" });
    let ended = bench.run(step).await?;
    if ended.success {
        return Ok(());
    }
    let error = npm::failed("the project", &ended.text(), ended.tail.clone());
    if error.code() != ErrorCode::InstallFailed {
        return Err(error);
    }
    let message =
        format!("`{}` could not install the project's dependencies; the last lines say why", manager.tool());
    Err(PrepareError::new(ErrorCode::InstallFailed, message).with_lines(ended.tail))
}

/// pnpm fills variables into its settings here: a registry's path could say a login, and the error shows the path.
fn names_variables(dir: &Path) -> bool {
    let is_there = |file: PathBuf| file.symlink_metadata().is_ok();
    let names = |file: PathBuf| {
        is_there(file.clone()) && tree::read_plain(&file, MAX_LOCK).map_or(true, |text| text.contains("${"))
    };
    dir.ancestors().any(|dir| names(dir.join("pnpm-workspace.yaml"))) || names(dir.join("package.json"))
}

async fn build(
    bench: &Bench,
    dir: &Path,
    manager: Manager,
    allow_scripts: bool,
    prune: bool,
) -> Result<(), PrepareError> {
    bench.say("build", &format!("running the project's own build script: {} run build", manager.tool()));
    let ended = bench.run(Step::new("build", manager.tool(), dir, &["run", "build"]).foreign()).await?;
    ended.success_or(ErrorCode::BuildFailed, "the project's build script failed; the last lines say why")?;
    if !prune {
        return Ok(());
    }
    // What the build left may be anything, so this is foreign too: it has neither the shared cache nor a login.
    match run(bench, dir, manager, manager.prune(allow_scripts), allow_scripts).await {
        Err(_) if !matches!(manager, Manager::Npm | Manager::NpmLocked) => {
            let line = format!("{} could not remove the development dependencies; they stay", manager.tool());
            bench.say("install", &line);
            Ok(())
        }
        other => other,
    }
}

/// The environment's interpreter, for [`super::tree::seal`]: read before any code of the project's has run.
pub(crate) fn interpreter(tree: &Path) -> Option<PathBuf> {
    Path::new(&pypi::venv_python(tree)).canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_runtime_follows_the_lock_then_the_manifest_then_the_files() {
        let detected = |files: &[&str]| {
            let files: Vec<_> = files.iter().map(|f| (*f, "")).collect();
            detect(tree(&files).path())
        };
        assert_eq!(detected(&["bun.lock", "package.json"]).unwrap(), Runtime::Bun);
        assert_eq!(detected(&["package.json", "pyproject.toml"]).unwrap(), Runtime::Node);
        assert_eq!(detected(&["requirements.txt"]).unwrap(), Runtime::Python);
        assert_eq!(detected(&["server.py"]).unwrap(), Runtime::Python);
        assert_eq!(detected(&["index.js"]).unwrap(), Runtime::Node);
        let error = detected(&["README.md"]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::EntryNotFound);
        assert!(error.to_string().contains("pyproject.toml"));
    }

    #[test]
    fn the_package_manager_follows_the_lock_of_the_project_or_its_workspace() {
        let of = |files: &[(&str, &str)], dir: &str| {
            let tree = tree(files);
            Manager::of(&tree.path().join(dir), tree.path(), Runtime::Node)
        };
        assert_eq!(of(&[("package-lock.json", "{}")], ""), Manager::NpmLocked);
        assert_eq!(of(&[("pnpm-lock.yaml", ""), ("a/package.json", "{}")], "a"), Manager::Pnpm);
        assert_eq!(of(&[("yarn.lock", "# yarn lockfile v1\n")], ""), Manager::Yarn1);
        assert_eq!(of(&[("yarn.lock", "__metadata:\n")], ""), Manager::Yarn);
        assert_eq!(of(&[], ""), Manager::Npm);
    }

    #[test]
    fn a_build_runs_only_when_what_would_start_is_missing() {
        let needs = |files: &[(&str, &str)], manifest: Value| {
            let dir = tree(files);
            let project = Project { tree: dir.path(), project: "", wanted: None };
            needs_build(project, &manifest, Runtime::Node)
        };
        let built = json!({"main": "dist/index.js", "scripts": {"build": "tsc"}});
        assert!(needs(&[], built.clone()));
        assert!(!needs(&[("dist/index.js", "")], built));
        assert!(!needs(&[], json!({"main": "dist/index.js"})));
        assert!(needs(&[("src/index.js", "")], json!({"bin": "dist/x.js", "scripts": {"build": "x"}})));
    }

    #[test]
    fn no_manager_runs_scripts_unless_allowed() {
        use Manager::*;
        for manager in [NpmLocked, Npm, Pnpm, Yarn1, BunLocked, Bun] {
            assert!(manager.install(true, false).contains(&"--ignore-scripts"), "{manager:?}");
            let runs_them = !manager.install(true, true).contains(&"--ignore-scripts");
            assert_eq!(
                runs_them,
                manager.is_foreign(true),
                "{manager:?}: scripts run only in a foreign step"
            );
            assert!(!manager.is_foreign(false), "{manager:?}");
        }
        assert!(Yarn.is_foreign(false), "it loads the project's plugins");
    }
}
