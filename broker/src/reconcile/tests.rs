//! Watches are answered by what the store says now, or not yet.

use wire::{Generation, MeshId, ServiceName};

use super::*;
use crate::app::App;
use crate::config::{Config, Limits, RunnerLink};

/// A broker on a new database, whose runner is never there.
async fn broker(dir: &tempfile::TempDir) -> Arc<Broker> {
    let config = Config {
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        database_url: format!("sqlite:{}", dir.path().join("broker.db").display()),
        runner: RunnerLink::Unix(dir.path().join("nobody.sock")),
        at_rest_roots: vec![vault::AtRestKey::generate()],
        public_url: "ws://127.0.0.1/ws".into(),
        limits: Limits::default(),
        expected_migration: None,
    };
    App::build(config).await.expect("builds").broker()
}

fn watch(goal: Goal) -> (Watch, oneshot::Receiver<Verdict>) {
    let key = ServiceKey {
        mesh: MeshId::parse(&"M".repeat(32)).expect("mesh"),
        name: ServiceName::parse("s").expect("name"),
    };
    let (verdict, waits) = oneshot::channel();
    (Watch { key, goal, progress: mpsc::channel(1).0, verdict }, waits)
}

#[tokio::test]
async fn nobody_is_answered_from_wishes_that_could_not_be_read_again() {
    let dir = tempfile::TempDir::new().expect("temp dir");
    let broker = broker(&dir).await;
    let mut reconciler = Reconciler::new(Arc::clone(&broker));
    reconciler.refresh().await;
    broker.store.close().await;
    let (watch, mut waits) = watch(Goal::Serve(Generation(1)));
    reconciler.watches.push(watch);
    reconciler.refresh().await;
    reconciler.settle().await;
    assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Empty), "the deploy may well be there");
    reconciler.read_again = None;
    reconciler.settle().await;
    assert_eq!(waits.try_recv(), Ok(Verdict::Superseded), "what was read says that there is no such service");
}

/// Stores a version of an entry behind the broker's back: no snapshot hears of it.
async fn put(broker: &Broker, mesh: &MeshId, owner: &wire::PublicKey, key: &str, version: i64) {
    let entry = wire::vault::VaultEntry {
        owner: owner.clone(),
        key: wire::vault::VaultName::parse(key).expect("a name"),
        version,
        kind: wire::vault::EntryKind::Env,
        created_ms: 1,
        content: "x".into(),
        signature: format!("signature-{version}"),
        wrap: None,
    };
    let mut tx = broker.store.begin().await.expect("begins");
    tx.entries().put(mesh, &entry, 1).await.expect("puts");
    tx.commit().await.expect("commits");
}

#[tokio::test]
async fn what_is_known_of_references_is_read_once_until_the_mesh_changes() {
    const SERVICES: u32 = 20;
    let dir = tempfile::TempDir::new().expect("temp dir");
    let broker = broker(&dir).await;
    let owner = wire::PublicKey::parse(&"ab".repeat(32)).expect("key");
    let made = crate::bootstrap(&broker.store, "acme", &owner, "Olga").await.expect("mesh");
    let mut spec = wire::spec::ServiceSpec::of(wire::spec::Source::Npx { package: "p".into(), bin: None });
    for n in 0..10 {
        put(&broker, &made.mesh, &owner, &format!("k{n}"), 1).await;
        let reference = wire::vault::VaultRef::parse(&format!("$vault:k{n}"), Some(&owner));
        spec.vault.insert(format!("K{n}"), reference.expect("one").expect("good"));
    }
    let key = |n: u32| ServiceKey {
        mesh: made.mesh.clone(),
        name: ServiceName::parse(&format!("s{n}")).expect("name"),
    };
    let mut tx = broker.store.begin().await.expect("begins");
    for n in 0..SERVICES {
        let (scope, generation, secrets, pin) = (wire::Scope::Peer, Generation(1), None, None);
        let (key, by, spec, starts, at) = (&key(n), &made.member, &spec, true, 1);
        let deploy =
            crate::store::Deploy { key, generation, by, scope: &scope, spec, secrets, pin, starts, at };
        tx.services().deploy(deploy).await.expect("deploys");
    }
    tx.commit().await.expect("commits");
    let (mut known, none) = (Known::default(), Wishes::new());
    let began = std::time::Instant::now();
    let first = desired::load(&broker, &none, &mut known).await.expect("reads");
    let cold = began.elapsed();
    put(&broker, &made.mesh, &owner, "k3", 2).await;
    let began = std::time::Instant::now();
    let kept = desired::load(&broker, &none, &mut known).await.expect("reads");
    println!("{SERVICES} services of 10 references: {cold:?}, then {:?}", began.elapsed());
    broker.views.changed(&made.mesh);
    let anew = desired::load(&broker, &none, &mut known).await.expect("reads");
    for n in 0..SERVICES {
        let mark = |wishes: &Wishes| wishes[&key(n)].material.expect("it has references");
        assert_eq!(mark(&first), mark(&kept), "nothing says that it changed");
        assert_ne!(mark(&first), mark(&anew));
    }
}
