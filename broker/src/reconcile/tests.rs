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
