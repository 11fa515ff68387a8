//! A fresh database with a mesh and its owner, and short ways to say what a test needs.

use broker::store::{Deploy, Member, Mesh, Service, Store, StoreConfig, StoreError};
use catalog::Role;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;
use wire::report::Reason;
use wire::spec::{Pin, ServiceSpec};
use wire::{ErrorCode, Generation, MemberId, MeshId, PublicKey, Scope, ServiceKey, ServiceName};

pub struct World {
    pub store: Store,
    pub url: String,
    pub mesh: MeshId,
    pub owner: MemberId,
    _dir: TempDir,
}

impl World {
    pub async fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}", dir.path().join("db").display());
        Self::on(url, dir).await
    }

    pub async fn postgres() -> Option<Self> {
        let url = tests::pg::database().await?;
        Some(Self::on(url, tempfile::tempdir().expect("a directory")).await)
    }

    async fn on(url: String, dir: TempDir) -> Self {
        let store = open(&url).await.expect("opens");
        let (mesh, owner) = (mesh(1), member(1));
        let mut tx = store.begin().await.expect("begins");
        tx.meshes().insert(&a_mesh(&mesh)).await.expect("a mesh");
        tx.members().insert(&a_member(&mesh, 1, Role::Owner)).await.expect("its owner");
        tx.commit().await.expect("commits");
        Self { store, url, mesh, owner, _dir: dir }
    }

    pub fn key(&self, name: &str) -> ServiceKey {
        ServiceKey { mesh: self.mesh.clone(), name: ServiceName::parse(name).expect("a service name") }
    }

    /// Deploys generation `n` in a transaction of its own.
    pub async fn deploy(&self, key: &ServiceKey, n: i64) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        let (spec, scope) = (npx("echo"), Scope::Peer);
        tx.services().deploy(self.plain(key, n, &spec, &scope)).await?;
        tx.commit().await
    }

    pub fn plain<'a>(
        &'a self,
        key: &'a ServiceKey,
        n: i64,
        spec: &'a ServiceSpec,
        scope: &'a Scope,
    ) -> Deploy<'a> {
        Deploy {
            key,
            generation: Generation(n),
            by: &self.owner,
            scope,
            spec,
            secrets: None,
            pin: None,
            starts: true,
            at: 100 + n,
        }
    }

    pub async fn prove(&self, key: &ServiceKey, n: i64) -> bool {
        let mut tx = self.store.begin().await.expect("begins");
        let is_new = tx.services().mark_proven(key, Generation(n), Some(&pin(n))).await.expect("proves");
        tx.commit().await.expect("commits");
        is_new
    }

    pub async fn service(&self, key: &ServiceKey) -> Option<Service> {
        let mut tx = self.store.read().await.expect("reads");
        tx.services().find(key).await.expect("finds")
    }

    /// Does to the database what our own code never does.
    pub async fn damage(&self, statement: &str) {
        let safe = AssertSqlSafe(statement.to_owned());
        if let Some(path) = self.url.strip_prefix("sqlite:") {
            let mut connection = sqlx::SqliteConnection::connect(path).await.expect("connects");
            sqlx::query(safe).execute(&mut connection).await.expect("damages");
            connection.close().await.expect("closes");
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.url).await.expect("connects");
            sqlx::query(safe).execute(&mut connection).await.expect("damages");
            connection.close().await.expect("closes");
        }
    }
}

pub async fn open(url: &str) -> Result<Store, StoreError> {
    Store::open(StoreConfig { url: url.to_owned(), max_connections: 4 }).await
}

pub fn mesh(n: u32) -> MeshId {
    MeshId::parse(&format!("M{n:031}")).expect("32 letters and digits")
}

pub fn member(n: u32) -> MemberId {
    MemberId::parse(&format!("P{n:031}")).expect("32 letters and digits")
}

pub fn pubkey(n: u32) -> PublicKey {
    PublicKey::parse(&format!("{n:064x}")).expect("64 hex digits")
}

pub fn a_mesh(id: &MeshId) -> Mesh {
    Mesh {
        id: id.clone(),
        slug: "acme".into(),
        name: "Acme — Überall".into(),
        owner_pubkey: pubkey(1),
        root_key: "cm9vdA".into(),
        created_at: 1_700_000_000_000,
        policy: wire::Policy::default(),
    }
}

/// Member number `n`, named `name-n`.
pub fn a_member(mesh: &MeshId, n: u32, role: Role) -> Member {
    Member {
        id: member(n),
        mesh: mesh.clone(),
        pubkey: pubkey(n),
        display_name: format!("name-{n}"),
        role,
        role_tag: None,
        groups: Vec::new(),
        message_mode: "push".into(),
        joined_at: i64::from(n),
        revoked_at: None,
    }
}

pub fn npx(package: &str) -> ServiceSpec {
    serde_json::from_value(json!({ "source": { "type": "npx", "package": package } })).expect("a spec")
}

pub fn archive(sha256: &str) -> ServiceSpec {
    let source = json!({ "type": "archive", "sha256": sha256, "format": "zip" });
    serde_json::from_value(json!({ "source": source })).expect("a spec")
}

pub fn pin(n: i64) -> Pin {
    Pin {
        kind: "npm".into(),
        name: "echo".into(),
        version: format!("1.0.{n}"),
        integrity: "sha512-x".into(),
        artefact: format!("artefact-{n}"),
        lock: "{\"lockfileVersion\":3}".into(),
    }
}

pub fn reason(message: &str) -> Reason {
    Reason { code: ErrorCode::StartExited, message: message.into(), stderr: vec!["no key".into()] }
}
