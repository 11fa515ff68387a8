//! Keeps the lists true: reads them from the broker whenever they may have changed.

use std::sync::Arc;
use std::time::Duration;

use client::{ClientError, LinkState};
use serde::Deserialize;
use tokio::sync::{broadcast, watch};
use wire::ErrorCode;
use wire::peer::hosting::{McpSchema, McpSchemaResult};
use wire::peer::mesh::SystemPush;

use super::lists::Lists;
use super::{Shared, View};

const RETRY_S: [u64; 5] = [1, 2, 5, 10, 30];

/// For ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    // From before the first reading on, so that nothing is missed in between.
    let mut pushes = shared.connection.pushes();
    let mut link = shared.connection.state();
    let mut failures = 0;
    loop {
        link.borrow_and_update();
        let schema = McpSchema { server_name: shared.name.to_string(), tool_name: None };
        let answer = shared.connection.request::<_, McpSchemaResult>(&schema).await;
        match answer {
            Ok(schema) => shared.learn(schema),
            Err(e) if e.code() == Some(ErrorCode::NotFound) => shared.lose(),
            Err(e) => {
                tracing::debug!("the lists of {} can not be read: {e}", shared.name);
                if !retry_soon(&e, &mut link, failures).await {
                    return;
                }
                failures += 1;
                continue;
            }
        }
        failures = 0;
        tokio::select! {
            () = shared.stale.notified() => {}
            () = named(&mut pushes, shared.name.as_str()) => {}
            is_up = up_again(&mut link) => if !is_up { return },
        }
    }
}

/// `false`: there is nothing more to wait for.
async fn retry_soon(error: &ClientError, link: &mut watch::Receiver<LinkState>, failures: usize) -> bool {
    if matches!(&*link.borrow(), LinkState::Ended(_)) {
        return false;
    }
    let pause = Duration::from_secs(RETRY_S[failures.min(RETRY_S.len() - 1)]);
    if error.is_link_loss() {
        // Over the new link, at once.
        return tokio::time::timeout(pause, up_again(link)).await.unwrap_or(true);
    }
    tokio::time::sleep(pause).await;
    true
}

/// `false`: the link is gone for good.
async fn up_again(link: &mut watch::Receiver<LinkState>) -> bool {
    while link.changed().await.is_ok() {
        match &*link.borrow_and_update() {
            LinkState::Up(_) => return true,
            LinkState::Down(_) => {}
            LinkState::Ended(_) => return false,
        }
    }
    false
}

/// The next push that may mean other lists of this service.
async fn named(pushes: &mut broadcast::Receiver<Arc<SystemPush>>, name: &str) {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    loop {
        match pushes.recv().await {
            Ok(push) => {
                let is_about_lists = matches!(
                    push.event.as_str(),
                    "mcp_deployed" | "mcp_undeployed" | "mcp_updated" | "mcp_scope_changed"
                );
                let named = serde_json::from_str::<Named>(push.event_data.get());
                if is_about_lists && named.is_ok_and(|named| named.name == name) {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Shared {
    fn learn(&self, schema: McpSchemaResult) {
        let is_ready = schema.capabilities.is_some();
        if is_ready && self.cache.read().is_none_or(|kept| !is_same(&kept, &schema)) {
            self.cache.write(&schema);
        }
        self.show(Lists::from(schema));
    }

    /// Undeployed, or out of scope.
    fn lose(&self) {
        self.cache.forget();
        let emptied = self.view.borrow().lists.emptied();
        self.show(emptied);
    }

    fn show(&self, lists: Lists) {
        let old = Arc::clone(&self.view.borrow().lists);
        let before = *self.changes.borrow();
        let changes = lists.changes_since(&old, before);
        self.view.send_replace(View { lists: Arc::new(lists), is_fresh: true });
        if changes != before {
            self.changes.send_replace(changes);
        }
    }
}

fn is_same(one: &McpSchemaResult, other: &McpSchemaResult) -> bool {
    let text = |schema| serde_json::to_string(schema).ok();
    text(one) == text(other)
}
