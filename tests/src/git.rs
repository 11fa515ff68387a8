//! A git host: repositories made by a test, served over HTTP by git's own CGI program.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use base64::Engine as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::web::Web;

/// The token that opens repositories under `/private/`.
pub const TOKEN: &str = "git-host-token-5ec2e7";

pub struct GitHost {
    root: PathBuf,
    web: Web,
}

impl GitHost {
    /// Serves `root`: a repository `private/x` needs [`TOKEN`], all others nothing.
    pub async fn start(root: PathBuf) -> Self {
        std::fs::create_dir_all(&root).unwrap();
        let served = root.clone();
        let router =
            Router::new().fallback(move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                answer(served.clone(), method, uri, headers, body)
            });
        Self { root, web: Web::serve(router).await }
    }

    pub fn url(&self, repository: &str) -> String {
        self.web.url(&format!("/{repository}"))
    }

    /// Commits these files to the repository (made when missing) and gives the commit id.
    pub async fn commit(&self, repository: &str, files: &[(&str, &str)]) -> String {
        let dir = self.root.join(repository);
        if !dir.exists() {
            std::fs::create_dir_all(&dir).unwrap();
            self.git(repository, &["init", "-q", "-b", "main"]).await;
            self.git(repository, &["config", "uploadpack.allowAnySHA1InWant", "true"]).await;
        }
        crate::fixture::write_tree(&dir, files);
        self.git(repository, &["add", "-A"]).await;
        self.git(repository, &["commit", "-q", "-m", "change"]).await;
        self.git(repository, &["rev-parse", "HEAD"]).await
    }

    /// Runs git in the repository and gives what it printed.
    pub async fn git(&self, repository: &str, args: &[&str]) -> String {
        let output = plain_git(&self.root.join(repository)).args(args).output().await.unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// git that reads no configuration of the machine.
fn plain_git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir)
        .kill_on_drop(true)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "tests").env(format!("GIT_{who}_EMAIL"), "tests@example.org");
    }
    git
}

async fn answer(root: PathBuf, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let login = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"));
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if uri.path().starts_with("/private/") && given != Some(&format!("Basic {login}")) {
        let denied = Response::builder().status(StatusCode::UNAUTHORIZED);
        return denied.header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"").body(Body::empty()).unwrap();
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut cgi = plain_git(&root)
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", &root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method.as_str())
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = cgi.stdin.take().unwrap();
    let fed = async move { stdin.write_all(&body).await };
    let (_, output) = tokio::join!(fed, cgi.wait_with_output());
    cgi_response(&output.unwrap().stdout)
}

fn cgi_response(output: &[u8]) -> Response<Body> {
    let split = output.windows(4).position(|four| four == b"\r\n\r\n").expect("CGI output has a head");
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Body::from(output[split + 4..].to_vec())).unwrap()
}
