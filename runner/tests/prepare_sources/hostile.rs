//! Installs that try to get out: what a script sees, reaches and leaves behind.

use std::os::unix::fs::MetadataExt;

use serde_json::json;
use wire::ErrorCode;
use wire::spec::ServiceSpec;

use super::bench::{Bench, node_server};

/// A project whose `postinstall` notes what it finds in `found.json`, beside the server.
async fn project(bench: &Bench, script: &str) -> ServiceSpec {
    let manifest = json!({"type": "module", "scripts": {"postinstall": "node probe.cjs"},
        "dependencies": {"is-number": "7.0.0"}});
    let probe = format!(
        "const fs = require('fs'), path = require('path');\n\
         const attempt = (f) => {{ try {{ return f() ?? 'done' }} catch (e) {{ return 'refused ' + (e.code ?? e.message) }} }};\n\
         (async () => {{ const found = {{}};\n{script}\n\
         fs.writeFileSync('found.json', JSON.stringify(found)); }})();"
    );
    let files =
        [("package.json", manifest.to_string()), ("index.js", node_server("x")), ("probe.cjs", probe)];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut spec = bench.zip(&files).await;
    spec.allow_scripts = true;
    spec
}

async fn found(bench: &Bench, spec: &ServiceSpec) -> serde_json::Value {
    let prepared = bench.prepare(spec).await;
    let prepared = prepared.unwrap_or_else(|e| panic!("{e} {:?}\n{}", e.stderr(), bench.said()));
    let text = std::fs::read_to_string(prepared.cwd.join("found.json")).expect("the script ran");
    serde_json::from_str(&text).expect("it noted JSON")
}

fn refused(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with("refused"))
}

#[tokio::test]
async fn an_install_script_sees_no_secret_and_writes_nothing_outside() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let outside = bench.dir.path().join("outside");
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "s3cr3t").unwrap();
    let script = format!(
        "found.env = Object.keys(process.env).filter((n) => /token|password|secret|claudemesh/i.test(n));\n\
         found.home = fs.readdirSync(process.env.HOME);\n\
         found.npmrc = attempt(() => fs.readFileSync('{home}/.npmrc', 'utf8'));\n\
         found.shadow = attempt(() => fs.readFileSync('/etc/shadow', 'utf8'));\n\
         found.secret = attempt(() => fs.readFileSync({secret:?}, 'utf8'));\n\
         found.write = attempt(() => fs.writeFileSync({outside:?}, 'x'));\n\
         found.usr = attempt(() => fs.writeFileSync('/usr/local/bin/claudemesh-evil', 'x'));\n\
         found.bin = attempt(() => fs.writeFileSync(path.join(process.env.PATH.split(':')[0], 'evil'), 'x'));\n\
         found.blobs = attempt(() => fs.readdirSync({blobs:?}).length);\n\
         found.uid = process.getuid();",
        home = std::env::var("HOME").unwrap_or_default(),
        blobs = bench.dir.path().join("store/blobs"),
    );
    let spec = project(&bench, &script).await;
    let found = found(&bench, &spec).await;
    assert_eq!(found["env"], json!([]), "{found}");
    for attempt in ["npmrc", "shadow", "secret", "usr", "bin", "blobs"] {
        assert!(refused(&found[attempt]), "{attempt}: {found}");
    }
    assert!(!found["home"].to_string().contains("npmrc"), "{found}");
    // In a strict jail it may have written to a private `/tmp` of its own.
    assert!(!outside.exists(), "{found}");
    if nix::unistd::geteuid().is_root() {
        assert!(found["uid"].as_u64().unwrap() > 20_000, "neither root's nor the installer's: {found}");
    }
}

#[tokio::test]
async fn an_install_script_reaches_the_registries_and_nothing_else() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "const net = require('net'), https = require('https');\n\
         const dial = (host, port) => new Promise((done) => {{ const s = net.connect(port, host, () => {{ s.destroy(); done('connected') }});\n\
           s.on('error', (e) => done('refused ' + e.code)); setTimeout(() => {{ s.destroy(); done('refused slow') }}, 4000); }});\n\
         const get = (url) => new Promise((done) => https.get(url, (r) => {{ r.resume(); done('status ' + r.statusCode) }})\n\
           .on('error', (e) => done('refused ' + e.code)));\n\
         found.loopback = await dial('127.0.0.1', {port});\n\
         found.metadata = await dial('169.254.169.254', 80);\n\
         found.raw = await dial('1.1.1.1', 443);\n\
         const asked = performance.now();\n\
         found.other = await dial('crates.io', 443);\n\
         found.other_ms = performance.now() - asked;\n\
         const registry = process.env.npm_config_registry || require('child_process').execFileSync('npm', ['config', 'get', 'registry']).toString().trim();\n\
         found.registry = await get(new URL('is-number', registry.endsWith('/') ? registry : registry + '/'));"
    );
    let spec = project(&bench, &script).await;
    let found = found(&bench, &spec).await;
    for attempt in ["loopback", "metadata", "raw", "other"] {
        assert!(refused(&found[attempt]), "{attempt}: {found}");
    }
    assert_eq!(found["registry"], json!("status 200"), "{found}");
    // Not after the seconds that a resolver waits for a better answer, nor as something to be tried again.
    println!("{found}");
    assert!(found["other_ms"].as_f64().unwrap() < 1000.0, "{found}");
    if bench.cells.isolation().tier == Some(wire::Tier::Strict) {
        assert_eq!(found["other"], json!("refused ENOTFOUND"), "{found}");
    }
}

#[tokio::test]
async fn what_an_install_script_daemonised_ends_with_it() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let mark = format!("claudemesh-daemon-{}", std::process::id());
    let script = format!(
        "const {{ spawn }} = require('child_process');\n\
         const child = spawn('setsid', ['sh', '-c', 'trap \"\" TERM HUP; sleep 600', {mark:?}], {{ detached: true, stdio: 'ignore' }});\n\
         child.unref(); found.pid = child.pid;"
    );
    let spec = project(&bench, &script).await;
    assert!(found(&bench, &spec).await["pid"].is_number());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let named = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&mark)
    };
    assert!(!processes.into_iter().any(named), "the daemon is still there");
}

#[tokio::test]
async fn a_cache_that_one_script_poisoned_is_no_other_deployment_s() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let script = "const cache = process.env.npm_config_cache; fs.mkdirSync(cache, { recursive: true });\n\
         fs.writeFileSync(path.join(cache, 'poison'), 'x'); found.cache = cache;";
    let found_first = found(&bench, &project(&bench, script).await).await;
    let look = "found.poison = fs.existsSync(path.join(process.env.npm_config_cache, 'poison'));\n\
         found.cache = process.env.npm_config_cache;";
    let found_second = found(&bench, &project(&bench, look).await).await;
    assert_eq!(found_second["poison"], json!(false));
    assert_ne!(found_first["cache"], found_second["cache"]);
    let shared = bench.dir.path().join("store/cache").canonicalize().unwrap();
    assert!(!shared.join("npm/poison").exists());
    if nix::unistd::geteuid().is_root() {
        assert_eq!(shared.metadata().unwrap().uid(), 20_000, "the installer's alone");
    }
}

#[tokio::test]
async fn a_step_that_fills_the_disk_is_stopped() {
    let bench = Bench::with(|config| config.max_artefact_bytes = 30 << 20).await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let script = "for (let n = 0; n < 100; n++) fs.writeFileSync('big' + n, Buffer.alloc(1 << 20));\n\
         await new Promise((done) => setTimeout(done, 60000));";
    let error = bench.prepare(&project(&bench, script).await).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooBig, "{error} {:?}", error.stderr());
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
}

#[tokio::test]
async fn an_installed_tree_that_was_changed_is_installed_again() {
    let bench = Bench::new().await;
    if !bench.has(&["node"]) {
        return;
    }
    let spec =
        bench.zip(&[("index.js", &node_server("honest")), ("package.json", r#"{"type":"module"}"#)]).await;
    let made = bench.prepare(&spec).await.unwrap();
    bench.workshop.check(&made.pin.artefact).await.unwrap();
    let file = made.cwd.join("index.js");
    let sealed = std::fs::read_to_string(&file).unwrap();
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&file, writable).unwrap();
    std::fs::write(&file, "evil").unwrap();
    assert_eq!(bench.workshop.check(&made.pin.artefact).await.unwrap_err().code(), ErrorCode::Tampered);
    let again = bench.prepare_with(&spec, None, Some(&made.pin)).await.unwrap();
    assert_eq!(again, made);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), sealed);
}

#[tokio::test]
async fn a_version_younger_than_the_mesh_demands_is_not_installed() {
    let mut bench = Bench::new().await;
    if !bench.has(&["node", "npm", "uv", "python"]) {
        return;
    }
    // Fifty years: everything is too new.
    bench.policy.min_release_age_s = 50 * 365 * 86_400;
    for spec in [super::bench::npx("is-number@7.0.0", None), super::bench::uvx("idna==3.10", None)] {
        let error = bench.prepare(&spec).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TooNew, "{error} {:?}", error.stderr());
        assert!(error.to_string().contains("days old"), "{error}");
    }
    // A year: is-number 7.0.0 will do, and it depends on nothing.
    bench.policy.min_release_age_s = 365 * 86_400;
    let made = bench.prepare(&super::bench::npx("is-number@>=7.0.0", None)).await.unwrap();
    assert_eq!(made.pin.version, "7.0.0");
}

/// To pack a repository, npm installs in it by its settings, which may name any program as `git`.
#[tokio::test]
async fn a_project_s_repositories_are_not_fetched_not_even_its_own() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let dependency = format!("git+file:///proc/self/cwd/repo#{}", "0".repeat(40));
    let manifest = json!({"type": "module", "dependencies": {"dep": dependency}}).to_string();
    let spec = bench.zip(&[("package.json", &manifest), ("index.js", &node_server("x"))]).await;
    let error = bench.prepare(&spec).await.unwrap_err();
    let said = error.stderr().join("\n");
    assert_eq!(error.code(), ErrorCode::SourceRefused, "{said}");
    assert!(!said.contains("not appear to be a git repository"), "git was run: {said}");
}
