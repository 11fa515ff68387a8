//! Archives, bundles and the project pipeline, with every package manager.

use std::time::Duration;

use serde_json::json;
use wire::ErrorCode;
use wire::spec::{Runtime, ServiceSpec};

use super::bench::{Bench, node_server, python_server, server_name};

async fn name_of(bench: &Bench, spec: &ServiceSpec) -> String {
    let prepared =
        bench.prepare(spec).await.unwrap_or_else(|e| panic!("{e} {:?}\n{}", e.stderr(), bench.said()));
    server_name(&prepared, bench.dir.path()).await
}

#[tokio::test]
async fn a_lone_file_needs_no_package_manager() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "python"]) {
        return;
    }
    let spec = bench.zip(&[("proj/server.py", &python_server("lone"))]).await;
    assert_eq!(name_of(&bench, &spec).await, "lone");
    let mut spec = bench.zip(&[("odd/name.mjs", &node_server("odd")), ("package.json", "{}")]).await;
    spec.entry = Some("odd/name.mjs".into());
    assert_eq!(name_of(&bench, &spec).await, "odd");
    assert!(!bench.said().contains("with npm"));
}

#[tokio::test]
async fn the_tree_is_read_only_and_the_artefact_is_named_by_its_content() {
    let bench = Bench::new().await;
    if !bench.has(&["python"]) {
        return;
    }
    let spec = bench.zip(&[("server.py", &python_server("a"))]).await;
    let one = bench.prepare(&spec).await.unwrap();
    use std::os::unix::fs::PermissionsExt;
    for path in [one.cwd.clone(), one.cwd.join("server.py")] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o222, 0, "{}", path.display());
    }
    let other = bench.prepare(&bench.zip(&[("server.py", &python_server("b"))]).await).await.unwrap();
    assert_ne!(one.pin.artefact, other.pin.artefact);
    assert_eq!(bench.prepare(&spec).await.unwrap(), one);
}

#[tokio::test]
async fn a_project_is_built_by_its_own_script_and_pruned() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let manifest = json!({"name": "built", "type": "module", "main": "dist/index.js",
        "scripts": {"build": "node -e \"require('is-odd'); const fs=require('fs'); fs.mkdirSync('dist'); fs.copyFileSync('src/main.mjs','dist/index.js')\""},
        "dependencies": {"is-number": "7.0.0"}, "devDependencies": {"is-odd": "3.0.1"}});
    let files = [("package.json", manifest.to_string()), ("src/main.mjs", node_server("built"))];
    let files: Vec<_> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let spec = bench.zip(&files).await;
    assert_eq!(name_of(&bench, &spec).await, "built");
    let prepared = bench.prepare(&spec).await.unwrap();
    assert!(prepared.cwd.join("node_modules/is-number").exists());
    assert!(!prepared.cwd.join("node_modules/is-odd").exists(), "development dependencies are pruned");
    assert!(prepared.pin.lock.contains("is-number"), "a project without a lock gets one");
    assert!(bench.said().contains("build: "), "{}", bench.said());
}

#[tokio::test]
async fn a_failing_build_says_why() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let manifest =
        json!({"main": "dist/x.js", "scripts": {"build": "echo the-reason >&2; exit 2"}}).to_string();
    let error = bench.prepare(&bench.zip(&[("package.json", &manifest)]).await).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BuildFailed);
    assert!(error.stderr().iter().any(|line| line.contains("the-reason")), "{:?}", error.stderr());
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
}

#[tokio::test]
async fn install_scripts_of_dependencies_do_not_run_and_npmrc_is_not_believed() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let manifest =
        json!({"type": "module", "scripts": {"preinstall": "touch ran", "postinstall": "touch ran"},
        "dependencies": {"is-number": "7.0.0"}})
        .to_string();
    let npmrc = "registry=http://127.0.0.1:9/\nscript-shell=/bin/false\n";
    let spec = bench
        .zip(&[("package.json", &manifest), ("index.js", &node_server("quiet")), (".npmrc", npmrc)])
        .await;
    assert_eq!(name_of(&bench, &spec).await, "quiet");
    assert!(!bench.prepare(&spec).await.unwrap().cwd.join("ran").exists());
}

/// Makes a lock with the manager itself, then deploys the project with it.
async fn locked(tool: &str, args: &[&str], lock: &str, runtime_tools: &[&str]) {
    let bench = Bench::new().await;
    if !bench.has(&[runtime_tools, &[tool]].concat()) {
        return;
    }
    let manifest = json!({"name": "locked", "version": "1.0.0", "type": "module",
        "dependencies": {"is-number": "^7.0.0"}, "devDependencies": {"is-odd": "^3.0.0"}})
    .to_string();
    let source = node_server(tool)
        .replace("import {", "import isNumber from 'is-number';\nif (!isNumber(1)) throw 1;\nimport {");
    let dir = bench.dir.path().join("project");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("package.json"), &manifest).unwrap();
    let tools = std::env::var_os("CLAUDEMESH_TOOLS").map(|d| std::path::PathBuf::from(d).join("bin"));
    let path = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&path))).unwrap();
    let run =
        tokio::process::Command::new("env").arg(tool).args(args).current_dir(&dir).env("PATH", path).output();
    let output = tokio::time::timeout(Duration::from_secs(120), run).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lock_text = std::fs::read_to_string(dir.join(lock)).unwrap();
    let spec = bench.zip(&[("package.json", &manifest), ("index.js", &source), (lock, &lock_text)]).await;
    assert_eq!(name_of(&bench, &spec).await, tool);
    let prepared = bench.prepare(&spec).await.unwrap();
    assert!(!prepared.cwd.join("node_modules/is-odd").exists(), "no development dependencies");
    assert_eq!(prepared.pin.lock, "", "the project's own lock is enough");
}

#[tokio::test]
async fn a_package_lock_is_installed_by_npm() {
    locked("npm", &["install", "--package-lock-only"], "package-lock.json", &["node"]).await;
}

#[tokio::test]
async fn a_pnpm_lock_is_installed_by_pnpm() {
    locked("pnpm", &["install", "--lockfile-only"], "pnpm-lock.yaml", &["node"]).await;
}

#[tokio::test]
async fn a_yarn_lock_is_installed_by_yarn() {
    locked("yarn", &["install"], "yarn.lock", &["node"]).await;
}

#[tokio::test]
async fn a_bun_lock_is_installed_and_started_by_bun() {
    locked("bun", &["install", "--save-text-lockfile"], "bun.lock", &["node"]).await;
}

#[tokio::test]
async fn requirements_and_pyproject_make_an_environment() {
    let bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    let source = format!("import idna\n{}", python_server("requirements"));
    let spec = bench.zip(&[("requirements.txt", "idna>=3\n"), ("src/server.py", &source)]).await;
    assert_eq!(name_of(&bench, &spec).await, "requirements");
    let prepared = bench.prepare(&spec).await.unwrap();
    assert!(prepared.pin.lock.contains("idna==") && prepared.pin.lock.contains("--hash=sha256:"));

    let pyproject = "[project]\nname = 'my-app'\nversion = '1'\ndependencies = ['idna']\n[project.scripts]\nmy-app = 'my_app:main'\n\
                     [build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n";
    let source = format!("import idna\n{}", python_server("pyproject"));
    let spec = bench.zip(&[("pyproject.toml", pyproject), ("my_app.py", &source)]).await;
    assert_eq!(name_of(&bench, &spec).await, "pyproject");
}

#[tokio::test]
async fn a_loose_requirement_is_built_only_when_scripts_are_allowed() {
    let bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    let lib = "[project]\nname = 'lib'\nversion = '1'\n[build-system]\nrequires = ['setuptools']\n\
               build-backend = 'setuptools.build_meta'\n";
    let source = format!("import lib\n{}", python_server("loose"));
    let files = [
        ("requirements.txt", "./lib\n"),
        ("lib/pyproject.toml", lib),
        ("lib/lib.py", ""),
        ("server.py", source.as_str()),
    ];
    let mut spec = bench.zip(&files).await;
    let error = bench.prepare(&spec).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InstallFailed);
    assert!(error.to_string().contains("--allow-scripts"), "{error} {:?}", error.stderr());
    spec.allow_scripts = true;
    assert_eq!(name_of(&bench, &spec).await, "loose");
}

#[tokio::test]
async fn a_uv_lock_is_synced_without_development_dependencies() {
    let bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    let dir = bench.dir.path().join("project");
    std::fs::create_dir(&dir).unwrap();
    let pyproject = "[project]\nname = 'locked-app'\nversion = '1'\nrequires-python = '>=3.10'\ndependencies = ['idna']\n\
                     [dependency-groups]\ndev = ['iniconfig']\n";
    std::fs::write(dir.join("pyproject.toml"), pyproject).unwrap();
    let tools = std::env::var("CLAUDEMESH_TOOLS").map(|d| format!("{d}/bin/uv")).unwrap_or("uv".into());
    let uv = if std::path::Path::new(&tools).exists() { tools } else { "uv".into() };
    let status =
        tokio::process::Command::new(uv).args(["lock", "-q"]).current_dir(&dir).status().await.unwrap();
    assert!(status.success());
    let lock = std::fs::read_to_string(dir.join("uv.lock")).unwrap();
    let source = format!("import idna\n{}", python_server("uv-lock"));
    let spec = bench.zip(&[("pyproject.toml", pyproject), ("uv.lock", &lock), ("main.py", &source)]).await;
    assert_eq!(name_of(&bench, &spec).await, "uv-lock");
    let venv = bench.prepare(&spec).await.unwrap().cwd.parent().unwrap().join("venv");
    let installed = walk(&venv);
    assert!(
        installed.iter().any(|f| f.contains("idna")) && !installed.iter().any(|f| f.contains("iniconfig"))
    );
}

fn walk(dir: &std::path::Path) -> Vec<String> {
    let site = dir.join("lib").read_dir().unwrap().flatten().next().unwrap().path().join("site-packages");
    site.read_dir().unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_bundle_starts_as_its_manifest_says_and_names_what_it_needs() {
    let bench = Bench::new().await;
    if !bench.has(&["node"]) {
        return;
    }
    let manifest = json!({"manifest_version": "0.3", "name": "b", "version": "1.0.0",
        "server": {"type": "node", "entry_point": "server/index.mjs", "mcp_config": {"command": "node",
            "args": ["${__dirname}/server/index.mjs"], "env": {"API_KEY": "${user_config.key}"}}},
        "user_config": {"key": {"type": "string", "title": "Key", "required": true, "sensitive": true}}})
    .to_string();
    let mut spec =
        bench.zip(&[("manifest.json", &manifest), ("server/index.mjs", &node_server("bundle"))]).await;
    let error = bench.prepare(&spec).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgs);
    assert!(error.to_string().contains("--env API_KEY="), "{error}");
    spec.env_names = vec!["API_KEY".into()];
    assert_eq!(name_of(&bench, &spec).await, "bundle");
}

#[tokio::test]
async fn nothing_to_start_a_missing_upload_and_a_missing_tool_each_have_a_code() {
    let bench = Bench::new().await;
    let empty = bench.zip(&[("README.md", "hello")]).await;
    assert_eq!(bench.prepare(&empty).await.unwrap_err().code(), ErrorCode::EntryNotFound);
    let mut wanted = bench.zip(&[("server.py", "")]).await;
    wanted.entry = Some("other.py".into());
    assert_eq!(bench.prepare(&wanted).await.unwrap_err().code(), ErrorCode::EntryNotFound);
    let mut gone = empty.clone();
    if let wire::spec::Source::Archive { sha256, .. } = &mut gone.source {
        *sha256 = "0".repeat(64);
    }
    assert_eq!(bench.prepare(&gone).await.unwrap_err().code(), ErrorCode::UploadNotFound);
    if !bench.workshop.known_tools().iter().any(|t| t.starts_with("bun ")) {
        let mut spec = bench.zip(&[("package.json", "{}"), ("index.ts", "")]).await;
        spec.runtime = Some(Runtime::Bun);
        let error = bench.prepare(&spec).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::RuntimeMissing);
        assert!(error.to_string().contains("`bun`"), "{error}");
    }
}

#[tokio::test]
async fn a_tree_over_the_limit_is_too_big_and_a_slow_step_times_out() {
    let bench = Bench::with(|c| c.max_artefact_bytes = 1000).await;
    let spec = bench.zip(&[("server.py", &"#".repeat(2000))]).await;
    let code = bench.prepare(&spec).await.unwrap_err().code();
    assert!(matches!(code, ErrorCode::TooBig | ErrorCode::ArchiveRejected), "{code}");
    let bench = Bench::with(|c| c.step_timeout = Duration::from_secs(2)).await;
    if bench.has(&["node", "npm"]) {
        let manifest = json!({"main": "dist/x.js", "scripts": {"build": "sleep 60"}}).to_string();
        let error = bench.prepare(&bench.zip(&[("package.json", &manifest)]).await).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InstallTimeout);
    }
}

#[tokio::test]
async fn install_scripts_run_when_the_deployer_allows_them() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let manifest = json!({"type": "module", "scripts": {"postinstall": "touch ran"},
        "dependencies": {"is-number": "7.0.0"}})
    .to_string();
    let mut spec = bench.zip(&[("package.json", &manifest), ("index.js", &node_server("x"))]).await;
    spec.allow_scripts = true;
    assert!(bench.prepare(&spec).await.unwrap().cwd.join("ran").exists());
}
