//! PyPI packages from the real index.

use wire::ErrorCode;

use super::bench::{Bench, server_name, uvx};

#[tokio::test]
async fn a_real_package_is_locked_with_hashes_and_starts_after_the_rename() {
    let mut bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    let mut spec = uvx("mcp-server-time", None);
    spec.args = vec!["--local-timezone=UTC".into()];
    let made = bench.prepare(&spec).await.unwrap();
    assert!(made.argv[0].ends_with("venv/bin/python"), "{:?}", made.argv);
    assert!(made.pin.integrity.starts_with("sha256:"), "{}", made.pin.integrity);
    assert!(made.pin.lock.contains("--hash=sha256:") && made.pin.lock.contains("mcp=="));
    assert_eq!(server_name(&made, bench.dir.path()).await, "mcp-time");
    assert_eq!(bench.prepare(&spec).await.unwrap(), made);
    bench.lines.lock().unwrap().clear();
    assert_eq!(bench.prepare_with(&spec, None, Some(&made.pin)).await.unwrap(), made);
    assert_eq!(bench.said(), "");

    bench.lose_artefacts().await;
    let rebuilt = bench.prepare_with(&spec, None, Some(&made.pin)).await.unwrap();
    assert_eq!(rebuilt.pin, made.pin);
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
}

#[tokio::test]
async fn a_script_is_found_by_metadata_never_guessed() {
    let bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    let made = bench.prepare(&uvx("Office_Word.MCP-server", Some("word_mcp_server"))).await.unwrap();
    assert_eq!(made.pin.name, "office-word-mcp-server");
    assert!(made.argv[1].ends_with("venv/bin/word_mcp_server"), "{:?}", made.argv);
    let wrong =
        bench.prepare(&uvx("office-word-mcp-server", Some("office-word-mcp-server"))).await.unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::EntryNotFound);
    assert!(wrong.to_string().contains("word_mcp_server"), "{wrong}");
}

#[tokio::test]
async fn unknown_packages_and_versions_are_told_apart() {
    let bench = Bench::new().await;
    if !bench.has(&["uv", "python"]) {
        return;
    }
    for (package, code) in [
        ("claudemesh-no-such-package-zzz", ErrorCode::SourceNotFound),
        ("mcp-server-time==99.99", ErrorCode::VersionNotFound),
        ("mcp-server-time>=9999", ErrorCode::VersionNotFound),
        ("mcp-server-time @ https://evil/x.whl", ErrorCode::SourceRefused),
        ("--index-url=http://evil", ErrorCode::SourceRefused),
    ] {
        let error = bench.prepare(&uvx(package, None)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error} {:?}", error.stderr());
    }
}
