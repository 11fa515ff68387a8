//! Git repositories over HTTP, served by `git http-backend` on a port of the test's own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use wire::spec::{ServiceSpec, Source};
use wire::{ErrorCode, Secret};

use super::bench::{Bench, python_server, server_name, spec};

/// `x-access-token:letmein` in base64.
const BASIC: &str = "Basic eC1hY2Nlc3MtdG9rZW46bGV0bWVpbg==";

struct Host {
    addr: std::net::SocketAddr,
    root: PathBuf,
    _dir: tempfile::TempDir,
    _tasks: tokio::task::JoinSet<()>,
}

/// Paths that begin with `/private` want the token.
async fn serve(State(root): State<Arc<PathBuf>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let allowed = parts.headers.get("authorization").is_some_and(|value| value == BASIC);
    if parts.uri.path().starts_with("/private") && !allowed {
        let builder = Response::builder().status(StatusCode::UNAUTHORIZED);
        return builder.header("www-authenticate", "Basic realm=\"git\"").body(Body::empty()).unwrap();
    }
    let header =
        |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let body = to_bytes(body, 64 << 20).await.unwrap();
    let mut command = Command::new("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", root.as_path()).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("REQUEST_METHOD", parts.method.as_str()).env("PATH_INFO", parts.uri.path());
    command
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"));
    command
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("CONTENT_LENGTH", body.len().to_string());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (_, output) = tokio::join!(
        async move {
            let _ = stdin.write_all(&body).await; // the backend may end without reading everything
        },
        child.wait_with_output()
    );
    answer(&output.unwrap().stdout)
}

/// CGI output: headers, an empty line, the body.
fn answer(output: &[u8]) -> Response {
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(output.len());
    let mut response = Response::new(Body::from(output[(end + 4).min(output.len())..].to_vec()));
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        if name.eq_ignore_ascii_case("status") {
            *response.status_mut() = value[..3].parse().unwrap();
        } else {
            headers
                .insert(axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
    }
    *response.headers_mut() = headers;
    response
}

async fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"])
        .args(args);
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null");
    let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Host {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(serve).with_state(Arc::new(root.clone()));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { addr, root, _dir: dir, _tasks: tasks }
    }

    fn url(&self, repo: &str) -> String {
        format!("http://{}/{repo}", self.addr)
    }

    /// main: "old" then "new"; branch `side/way`; annotated tag `v1` on "old"; folder `sub`. Answers the two commits.
    async fn repo(&self, name: &str) -> (String, String) {
        let work = self.root.join(format!("{name}.work"));
        std::fs::create_dir_all(work.join("sub")).unwrap();
        git(&work, &["init", "-q", "-b", "main"]).await;
        let commit = async |text: &str| {
            std::fs::write(work.join("server.py"), python_server(text)).unwrap();
            std::fs::write(work.join("sub/server.py"), python_server(&format!("sub-{text}"))).unwrap();
            git(&work, &["add", "-A"]).await;
            git(&work, &["commit", "-q", "-m", text]).await;
            git(&work, &["rev-parse", "HEAD"]).await
        };
        let old = commit("old").await;
        git(&work, &["tag", "-a", "v1", "-m", "first"]).await;
        commit("between").await;
        let new = commit("new").await;
        git(&work, &["checkout", "-q", "-b", "side/way"]).await;
        commit("side").await;
        git(&work, &["checkout", "-q", "main"]).await;
        let bare = self.root.join(name);
        std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
        git(&self.root, &["clone", "-q", "--bare", &work.to_string_lossy(), &bare.to_string_lossy()]).await;
        (old, new)
    }
}

fn source(url: &str, reference: Option<&str>, subdir: Option<&str>) -> ServiceSpec {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    spec(Source::Git { url: url.into(), reference: owned(reference), subdir: owned(subdir) })
}

async fn has_git() -> bool {
    let found = Command::new("git").args(["http-backend"]).env("REQUEST_METHOD", "X").output().await;
    let found = found.is_ok_and(|o| !String::from_utf8_lossy(&o.stderr).contains("is not a git command"));
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "git http-backend is missing in CI");
        println!("skipped: git http-backend not found");
    }
    found
}

#[tokio::test]
async fn branch_tag_commit_and_folder_are_found_and_pinned_to_the_commit() {
    let mut bench = Bench::new().await;
    if !bench.has(&["python"]) || !has_git().await {
        return;
    }
    let host = Host::start().await;
    let (old, new) = host.repo("team/mine.git").await;
    let url = host.url("team/mine.git");
    for (reference, subdir, name) in [
        (None, None, "new"),
        (Some("main"), Some("sub"), "sub-new"),
        (Some("side/way"), None, "side"),
        (Some("v1"), None, "old"),
        (Some(old.as_str()), None, "old"),
        (Some(&old[..9]), None, "old"),
        (Some("refs/heads/main"), None, "new"),
    ] {
        let spec = source(&url, reference, subdir);
        let made =
            bench.prepare(&spec).await.unwrap_or_else(|e| panic!("{reference:?}: {e}\n{}", bench.said()));
        assert_eq!(server_name(&made, bench.dir.path()).await, name, "{reference:?}");
        assert_eq!(made.pin.version.len(), 40);
    }
    let made = bench.prepare(&source(&url, None, None)).await.unwrap();
    assert_eq!((made.pin.kind.as_str(), &made.pin.version, &made.pin.name), ("git", &new, &url));
    assert!(!made.cwd.join(".git").exists());

    let tagged = bench.prepare(&source(&url, Some("v1"), None)).await.unwrap();
    bench.lose_artefacts().await;
    let again = bench.prepare_with(&source(&url, Some("v1"), None), None, Some(&tagged.pin)).await.unwrap();
    assert_eq!(again.pin, tagged.pin, "a lost artefact is made again from its pin");
    drop(host);
    let warm = bench.prepare_with(&source(&url, Some("v1"), None), None, Some(&tagged.pin)).await.unwrap();
    assert_eq!(warm, again, "a warm start does not ask the host");
}

#[tokio::test]
async fn a_private_repository_wants_its_token_and_never_shows_it() {
    let bench = Bench::new().await;
    if !bench.has(&["python"]) || !has_git().await {
        return;
    }
    let host = Host::start().await;
    host.repo("private/mine.git").await;
    let spec = source(&host.url("private/mine.git"), None, None);
    let without = bench.prepare(&spec).await.unwrap_err();
    assert_eq!(without.code(), ErrorCode::SourceDenied, "{without}");
    assert!(without.to_string().contains("--git-token-file"), "{without}");
    let wrong = bench.prepare_with(&spec, Some(&Secret::new("s3cr3t-wrong")), None).await.unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::SourceDenied, "{wrong}");
    assert!(!wrong.to_string().contains("s3cr3t"));
    let made = bench.prepare_with(&spec, Some(&Secret::new("letmein")), None).await.unwrap();
    assert_eq!(server_name(&made, bench.dir.path()).await, "new");
    assert!(!bench.said().contains("letmein") && !format!("{made:?}").contains("letmein"));
    let again = bench.prepare(&spec).await.unwrap_err();
    assert_eq!(
        again.code(),
        ErrorCode::SourceDenied,
        "an installed private repository is no way around its token"
    );
}

#[tokio::test]
async fn unknown_repositories_references_and_folders_each_have_a_code() {
    let bench = Bench::new().await;
    if !has_git().await {
        return;
    }
    let host = Host::start().await;
    host.repo("mine.git").await;
    let url = host.url("mine.git");
    for (spec, code) in [
        (source(&url, Some("no-such-branch"), None), ErrorCode::RefNotFound),
        (source(&url, Some("abcdef1"), None), ErrorCode::RefNotFound),
        (source(&url, Some(&"a".repeat(40)), None), ErrorCode::RefNotFound),
        (source(&url, None, Some("nowhere")), ErrorCode::SubdirNotFound),
        (source(&url, Some("--upload-pack=touch /tmp/x"), None), ErrorCode::SourceRefused),
        (source(&host.url("absent.git"), None, None), ErrorCode::SourceNotFound),
        (source("http://127.0.0.1:9/x", None, None), ErrorCode::SourceUnreachable),
        (source("file:///etc", None, None), ErrorCode::SourceRefused),
    ] {
        let error = bench.prepare(&spec).await.unwrap_err();
        assert_eq!(error.code(), code, "{error} for {:?}", spec.source);
    }
    bench.workshop.settled().await;
    assert!(bench.staging_is_empty());
}

#[tokio::test]
async fn a_repository_over_the_limit_is_too_big_and_a_link_out_is_refused() {
    if !has_git().await {
        return;
    }
    let host = Host::start().await;
    host.repo("mine.git").await;
    let small = Bench::with(|c| c.max_source_bytes = 100).await;
    let error = small.prepare(&source(&host.url("mine.git"), None, None)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooBig, "{error}");
    let work = host.root.join("mine.git.work");
    std::os::unix::fs::symlink("/etc/passwd", work.join("leak")).unwrap();
    git(&work, &["add", "-A"]).await;
    git(&work, &["commit", "-q", "-m", "leak"]).await;
    git(&work, &["push", "-q", &host.root.join("mine.git").to_string_lossy(), "main"]).await;
    let bench = Bench::new().await;
    let error = bench.prepare(&source(&host.url("mine.git"), None, None)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ArchiveRejected, "{error}");
}

#[tokio::test]
async fn submodules_are_named_but_not_fetched() {
    let bench = Bench::new().await;
    if !bench.has(&["python"]) || !has_git().await {
        return;
    }
    let host = Host::start().await;
    host.repo("other.git").await;
    host.repo("mine.git").await;
    let work = host.root.join("mine.git.work");
    git(&work, &["submodule", "add", "-q", &host.root.join("other.git").to_string_lossy(), "inner"]).await;
    git(&work, &["commit", "-q", "-m", "inner"]).await;
    git(&work, &["push", "-q", &host.root.join("mine.git").to_string_lossy(), "main"]).await;
    let made = bench.prepare(&source(&host.url("mine.git"), None, None)).await.unwrap();
    assert!(bench.said().contains("submodule `inner` is not fetched"), "{}", bench.said());
    assert_eq!(made.cwd.join("inner").read_dir().unwrap().count(), 0);
}
