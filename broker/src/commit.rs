//! Committing what changes a mesh, so that nobody goes on with what was before.
//!
//! A commit whose answer is lost may still have happened, and a client that hangs up drops the request in the middle of
//! it. So everybody looks again whatever the outcome, and the commit runs in a task that nobody's leaving ends: otherwise
//! a snapshot that is read between the leaving and the end of the commit would be kept.

use std::sync::Arc;

use tokio::sync::Notify;
use wire::MeshId;

use crate::app::Broker;
use crate::store::{StoreError, Tx};
use crate::views::Views;

/// Lets everybody look again when it goes.
struct LookAgain {
    views: Arc<Views>,
    mesh: MeshId,
    reconciler: Option<Arc<Notify>>,
}

impl Drop for LookAgain {
    fn drop(&mut self) {
        self.views.changed(&self.mesh);
        if let Some(reconciler) = &self.reconciler {
            reconciler.notify_one();
        }
    }
}

/// Commits what people want of a mesh; the view of it and the reconciler look again.
///
/// # Errors
/// [`StoreError`] when the commit fails, or its outcome is unknown.
pub async fn commit(broker: &Broker, mesh: &MeshId, tx: Tx) -> Result<(), StoreError> {
    finish(broker, mesh, tx, Some(broker.reconciler.waker())).await
}

/// [`commit`] for the reconciler itself, which reads again after its own writes, and after a failed one not at once.
///
/// # Errors
/// As for [`commit`].
pub async fn commit_observed(broker: &Broker, mesh: &MeshId, tx: Tx) -> Result<(), StoreError> {
    finish(broker, mesh, tx, None).await
}

async fn finish(
    broker: &Broker,
    mesh: &MeshId,
    tx: Tx,
    reconciler: Option<Arc<Notify>>,
) -> Result<(), StoreError> {
    let again = LookAgain { views: Arc::clone(&broker.views), mesh: mesh.clone(), reconciler };
    let committed = broker.tracker.spawn(async move {
        let _again = again;
        tx.commit().await
    });
    committed.await.unwrap_or(Err(StoreError::Interrupted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::config::{Config, Limits, RunnerLink};
    use catalog::access::Role;
    use wire::PublicKey;

    #[tokio::test]
    async fn a_commit_whose_asker_leaves_still_happens_and_is_seen() {
        let dir = tempfile::TempDir::new().expect("temp dir");
        let config = Config {
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            database_url: format!("sqlite:{}", dir.path().join("broker.db").display()),
            runner: RunnerLink::Unix(dir.path().join("nobody.sock")),
            at_rest_roots: vec![vault::AtRestKey::generate()],
            public_url: "ws://127.0.0.1/ws".into(),
            limits: Limits::default(),
            expected_migration: None,
        };
        let broker = App::build(config).await.expect("builds").broker();
        let key = PublicKey::parse(&"ab".repeat(32)).expect("key");
        let made = crate::bootstrap(&broker.store, "acme", &key, "Olga").await.expect("mesh");
        assert_eq!(broker.views.of(&made.mesh).await.expect("view").name_of(&made.member), "Olga");
        let mut tx = broker.store.begin().await.expect("begins");
        let change = crate::store::MemberChange { role_tag: Some("boss".into()), ..Default::default() };
        tx.members().update(&made.mesh, &made.member, Role::Owner, &change).await.expect("updates");
        {
            let mut asking = std::pin::pin!(commit(&broker, &made.mesh, tx));
            assert!(futures_util::poll!(asking.as_mut()).is_pending());
        }
        // The reconciler is told when the commit has ended.
        broker.reconciler.waker().notified().await;
        let view = broker.views.of(&made.mesh).await.expect("view");
        let caller = view.caller(&made.member).expect("a member");
        assert_eq!(caller.role_tag.as_deref(), Some("boss"));
    }
}
