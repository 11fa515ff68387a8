//! The API over TCP: nothing without the token.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use runner::{Listen, RunnerConfig, run_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;
use wire::Secret;

/// One HTTP/1.1 request on its own connection; the answer's status line and body.
async fn get(address: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: runner\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test]
async fn every_path_needs_the_token_and_the_runner_ends_when_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let listen =
        Listen::Tcp { addr: "127.0.0.1:0".parse().expect("an address"), token: Secret::new("t0ken") };
    let exe = env!("CARGO_BIN_EXE_runner-dev").into();
    let config = RunnerConfig::new(dir.path().join("data"), listen, exe);
    let (ending, (say, address)) = (CancellationToken::new(), oneshot::channel());
    let running = run_until(config, ending.clone(), move |address| {
        say.send(address.to_owned()).expect("the test waits");
    });
    let visit = async {
        let address = address.await.expect("listens");
        for path in ["/health", "/v1/services", "/v1/events", "/v1/calls", "/nothing"] {
            for headers in ["", "authorization: Bearer wrong\r\n", "authorization: t0ken\r\n"] {
                let answer = get(&address, path, headers).await;
                assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
                assert!(answer.contains("\"unauthorized\""), "{answer}");
            }
        }
        let health = get(&address, "/health", "authorization: Bearer t0ken\r\n").await;
        assert!(health.starts_with("HTTP/1.1 200 ") && health.contains("\"boot\""), "{health}");
        // With the token it is a WebSocket; it ends with the runner.
        let mut request = format!("ws://{address}/v1/calls").into_client_request().expect("a request");
        request.headers_mut().insert("authorization", "Bearer t0ken".parse().expect("a header"));
        let stream = TcpStream::connect(&address).await.expect("connects");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("opens");
        socket.send(Message::text("{}")).await.expect("sent");
        let refused = socket.next().await.expect("open").expect("a message");
        assert!(refused.to_text().is_ok_and(|text| text.contains("\"invalid_args\"")), "{refused}");
        ending.cancel();
        while let Some(Ok(_)) = socket.next().await {}
    };
    let both = async { tokio::join!(running, visit) };
    let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("in time");
    ended.expect("ends well");
}
