//! A real broker on a free port with its own database, peers that speak raw frames, and a runner that does as the name
//! of the package says.

pub mod peer;
pub mod runner;
pub mod vault;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use broker::store::{Store, StoreConfig};
use broker::{App, AtRestKey, Bootstrapped, Config, Limits, RunnerLink, bootstrap};
use ed25519_dalek::SigningKey;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wire::PublicKey;

use self::peer::Peer;
use self::runner::FakeRunner;

/// Every wait of every test ends.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct World {
    pub dir: TempDir,
    pub runner: FakeRunner,
    pub mesh: Bootstrapped,
    pub addr: SocketAddr,
    limits: Limits,
    at_rest: String,
    running: Option<(CancellationToken, JoinHandle<std::io::Result<()>>)>,
}

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn public(key: &SigningKey) -> PublicKey {
    PublicKey::parse(&hex::encode(key.verifying_key().to_bytes())).expect("a key")
}

/// The owner's seed.
pub const OWNER: u8 = 4;

impl World {
    pub async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let dir = TempDir::new().expect("temp dir");
        let runner = FakeRunner::start(dir.path().join("runner.sock")).await;
        let store = Store::open(StoreConfig { url: url(&dir), max_connections: 2 }).await.expect("store");
        let mesh = bootstrap(&store, "acme", &public(&key(OWNER)), "Olga").await.expect("mesh");
        store.close().await;
        let at_rest = AtRestKey::generate().to_hex().to_string();
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { dir, runner, mesh, addr, limits, at_rest, running: None };
        world.start_broker().await;
        world
    }

    pub async fn start_broker(&mut self) {
        self.start_broker_expecting(None).await;
    }

    pub async fn start_broker_expecting(&mut self, migration: Option<&str>) {
        let config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: url(&self.dir),
            runner: RunnerLink::Unix(self.socket()),
            at_rest_roots: vec![AtRestKey::from_hex(&self.at_rest).expect("key")],
            public_url: "ws://127.0.0.1/ws".into(),
            limits: self.limits.clone(),
            expected_migration: migration.map(str::to_owned),
        };
        let app = App::build(config).await.expect("builds");
        self.addr = app.addr();
        let stop = CancellationToken::new();
        let running = tokio::spawn(app.run(stop.clone()));
        self.running = Some((stop, running));
    }

    pub async fn stop_broker(&mut self) {
        let (stop, running) = self.running.take().expect("running");
        stop.cancel();
        tokio::time::timeout(PATIENCE, running)
            .await
            .expect("stops in time")
            .expect("no panic")
            .expect("ends well");
    }

    /// As `kill -9`: nothing is told to anybody.
    pub async fn kill_broker(&mut self) {
        let (_, running) = self.running.take().expect("running");
        running.abort();
        let _ = running.await;
    }

    /// Does to the database what our own code never does.
    pub async fn damage(&self, statement: &'static str) {
        use sqlx::Connection as _;
        let mut connection = sqlx::SqliteConnection::connect(&url(&self.dir)).await.expect("connects");
        sqlx::query(statement).execute(&mut connection).await.expect("damages");
        connection.close().await.expect("closes");
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("runner.sock")
    }

    pub async fn owner(&self) -> Peer {
        Peer::hello(self, OWNER, self.mesh.member.as_str()).await
    }

    /// Invites, joins and connects.
    pub async fn member(&self, seed: u8, name: &str, role: &str) -> Peer {
        let id = self.join(seed, name, role).await;
        Peer::hello(self, seed, &id).await
    }

    pub async fn join(&self, seed: u8, name: &str, role: &str) -> String {
        let mut owner = self.owner().await;
        let payload = peer::invite(self, role);
        let created =
            owner.ask(serde_json::json!({"type": "invite_create", "payload": payload, "max_uses": 1})).await;
        let token = created["token"].as_str().unwrap_or_else(|| panic!("{created}")).to_owned();
        let (status, joined) = self.post_join(&token, &payload, seed, name).await;
        assert_eq!(status, 200, "{joined}");
        joined["memberId"].as_str().expect("member id").to_owned()
    }

    pub async fn post_join(
        &self,
        token: &str,
        payload: &serde_json::Value,
        seed: u8,
        name: &str,
    ) -> (u16, serde_json::Value) {
        let body = serde_json::json!({
            "invite_token": token, "invite_payload": payload,
            "peer_pubkey": public(&key(seed)).as_str(), "display_name": name,
        });
        let answer = self.http().post(self.url("/join")).json(&body).send().await.expect("answer");
        (answer.status().as_u16(), answer.json().await.expect("json"))
    }

    pub fn http(&self) -> reqwest::Client {
        reqwest::Client::builder().no_proxy().build().expect("client")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.http().get(self.url(path)).send().await.expect("answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }
}

fn url(dir: &TempDir) -> String {
    format!("sqlite:{}", dir.path().join("broker.db").display())
}
