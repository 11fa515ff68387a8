//! npm packages from the real registry.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use wire::ErrorCode;
use wire::runner::Retain;

use super::bench::{Bench, npx, server_name};

#[tokio::test]
async fn a_real_package_is_pinned_reused_and_rebuilt_from_its_pin() {
    let mut bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let spec = npx("@modelcontextprotocol/server-everything", None);
    let made = bench.prepare(&spec).await.unwrap();
    assert!(made.argv[0].ends_with("node"), "never through npx: {:?}", made.argv);
    assert!(
        made.pin.integrity.starts_with("sha512-") && made.pin.lock.contains("node_modules/"),
        "{:?}",
        made.pin.version
    );
    assert!(made.pin.version.split('.').count() >= 3);
    server_name(&made, bench.dir.path()).await;

    bench.lines.lock().unwrap().clear();
    let start = Instant::now();
    let again = bench.prepare_with(&spec, None, Some(&made.pin)).await.unwrap();
    println!("warm reuse: {:?}", start.elapsed());
    assert_eq!(again, made);
    assert_eq!(bench.said(), "", "a warm start runs no step");

    let start = Instant::now();
    assert_eq!(bench.prepare(&spec).await.unwrap(), made, "a redeploy of the same version reuses it");
    println!("warm redeploy without a pin: {:?}", start.elapsed());

    bench.lose_artefacts().await;
    let rebuilt = bench.prepare_with(&spec, None, Some(&made.pin)).await.unwrap();
    assert_eq!(rebuilt.pin, made.pin);
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());

    let keep = Retain { artefacts: Vec::new(), blobs: Vec::new() };
    let in_use = HashSet::from([made.pin.artefact.clone()]);
    assert_eq!(bench.workshop.retain(&keep, &in_use).await.unwrap().removed, 0);
    assert_eq!(bench.workshop.retain(&keep, &HashSet::new()).await.unwrap().removed, 0, "just prepared");
    bench.reopen().await;
    let swept = bench.workshop.retain(&keep, &HashSet::new()).await.unwrap();
    assert!(swept.removed == 1 && swept.freed_bytes > 1_000_000, "{swept:?}");
    assert!(!made.cwd.exists());
}

#[tokio::test]
async fn a_bin_that_differs_from_the_package_is_found_and_several_are_chosen_by_name() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let scoped = bench.prepare(&npx("@modelcontextprotocol/server-memory@latest", None)).await.unwrap();
    assert!(
        scoped.argv[1].contains("node_modules/@modelcontextprotocol/server-memory/"),
        "{:?}",
        scoped.argv
    );
    let mut spec = npx("mcp-remote@0.1.16", Some("mcp-remote-client"));
    spec.args = vec!["--flag".into()];
    let client = bench.prepare(&spec).await.unwrap();
    assert_eq!(client.pin.version, "0.1.16");
    assert_eq!(client.argv.last().map(String::as_str), Some("--flag"));
    let namesake = bench.prepare(&npx("mcp-remote@0.1.16", None)).await.unwrap();
    assert_ne!(namesake.argv[1], client.argv[1]);
    assert_eq!(namesake.pin, client.pin, "one artefact serves every bin");
    let missing = bench.prepare(&npx("mcp-remote@0.1.16", Some("nope"))).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::EntryNotFound);
    assert!(missing.to_string().contains("mcp-remote-client"), "{missing}");
}

#[tokio::test]
async fn unknown_packages_and_versions_are_told_apart() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let unknown = bench.prepare(&npx("claudemesh-no-such-package-zzz", None)).await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::SourceNotFound, "{unknown} {:?}", unknown.stderr());
    assert!(!unknown.stderr().is_empty());
    for version in ["mcp-remote@99.99.99", "mcp-remote@no-such-tag", "mcp-remote@>=99"] {
        let error = bench.prepare(&npx(version, None)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::VersionNotFound, "{error} {:?}", error.stderr());
    }
    let refused = bench.prepare(&npx("git+https://github.com/a/b", None)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::SourceRefused);
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
}

#[tokio::test]
async fn two_equal_deploys_at_once_make_one_artefact() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let spec = npx("@modelcontextprotocol/server-sequential-thinking", None);
    let (one, two) = tokio::join!(bench.prepare(&spec), bench.prepare(&spec));
    assert_eq!(one.unwrap(), two.unwrap());
    let installs = bench.said().matches("installing @modelcontextprotocol").count();
    assert_eq!(installs, 1, "{}", bench.said());
}

#[tokio::test]
async fn a_dropped_preparation_leaves_no_process_and_no_files() {
    let bench = Bench::new().await;
    if !bench.has(&["node", "npm"]) {
        return;
    }
    let spec = npx("@modelcontextprotocol/server-everything", None);
    let started = async {
        while !bench.said().contains("installing") {
            tokio::time::sleep(Duration::from_millis(5)).await; // until the step shows; the select! below bounds it
        }
    };
    tokio::select! {
        done = bench.prepare(&spec) => panic!("it was not dropped: {:?}", done.map(|p| p.pin.version)),
        () = started => {}
    }
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
    let store = bench.dir.path().join("store").to_string_lossy().into_owned();
    let left = || {
        let procs = std::fs::read_dir("/proc").unwrap().flatten();
        procs.filter_map(|p| std::fs::read_link(p.path().join("cwd")).ok()).any(|cwd| cwd.starts_with(&store))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while left() {
        assert!(Instant::now() < deadline, "a process still works in the staging directory");
        tokio::task::yield_now().await;
    }
}
