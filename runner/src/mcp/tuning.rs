//! A server that plays, asked for what its audience wants to hear: resources, log messages, changed lists.
//!
//! Here: `resources/subscribe` and `logging/setLevel` of the legacy era, `subscriptions/listen` of the modern one. Not here:
//! who wants what (see [`crate::audience`]), what comes of it (see [`super::conn`]).
//! Invariant: what the server was asked for follows what is wanted; each URI is subscribed once, whoever wants it.

use std::collections::BTreeSet;
use std::time::Duration;

use rmcp::model::{SubscriptionFilter, SubscriptionsListenRequestParams};

use super::client::{Client, InFlight, Reply};
use super::frame;
use super::handshake::{Offers, error_message};
use crate::audience::{Player, Wanted};

/// For each answer of the server.
const PATIENCE: Duration = Duration::from_secs(30);

/// Until the connection ends. `say`: what goes wrong, for whoever runs the service.
pub async fn tune(client: &Client, offers: Offers, player: &mut Player, say: impl Fn(&str)) {
    let follow = async {
        if client.is_modern() {
            follow_modern(client, offers, player).await;
        } else {
            follow_legacy(client, offers, player, &say).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = client.ended() => {}
    }
}

async fn follow_legacy(client: &Client, offers: Offers, player: &mut Player, say: &impl Fn(&str)) {
    let mut has = BTreeSet::new();
    let mut level = None;
    loop {
        let wanted = player.wanted();
        if offers.subscribe {
            for uri in wanted.resources.difference(&has) {
                ask(client, "resources/subscribe", "uri", uri, say).await;
            }
            for uri in has.difference(&wanted.resources) {
                ask(client, "resources/unsubscribe", "uri", uri, say).await;
            }
            has.clone_from(&wanted.resources);
        }
        if let Some(least) = wanted.level.filter(|least| offers.logging && level != Some(*least)) {
            ask(client, "logging/setLevel", "level", least.as_str(), say).await;
            level = Some(least);
        }
        player.tuned(&wanted);
        player.changed().await;
    }
}

async fn ask(client: &Client, method: &str, name: &str, value: &str, say: &impl Fn(&str)) {
    let params = format!(r#"{{"{name}":{}}}"#, frame::quote(value));
    match client.ask(method, Some(&params), PATIENCE).await {
        Ok(Reply::Result(_)) => {}
        // It is not asked again: its answer would be the same.
        Ok(Reply::Error(error)) => say(&format!("`{method}` was refused: {}", error_message(&error))),
        Err(e) => say(&format!("`{method}` failed: {e}")),
    }
}

/// In this era servers say nothing unasked, and one request names all that is wanted.
async fn follow_modern(client: &Client, offers: Offers, player: &mut Player) {
    // What was asked for, and the request until the server ends it.
    let mut open: Option<(String, Option<InFlight>)> = None;
    loop {
        let wanted = player.wanted();
        let filter = filter(offers, &wanted);
        if open.as_ref().map(|(filter, _)| filter) != filter.as_ref() {
            let next = filter.map(|filter| {
                // A connection that is closed has nothing to tell.
                let call = client.open("subscriptions/listen", Some(&filter)).ok();
                (filter, call)
            });
            // The old one is cancelled when the new one is on its way, so that nothing falls between them.
            open = next;
        }
        player.tuned(&wanted);
        let call = open.as_mut().map(|(_, call)| call);
        tokio::select! {
            // A server that refuses just never tells; its lists are read again at each start.
            () = ended(call) => player.changed().await,
            () = player.changed() => {}
        }
    }
}

/// Waits for the end of a request that is open.
async fn ended(call: Option<&mut Option<InFlight>>) {
    match call {
        Some(slot @ Some(_)) => {
            if let Some(call) = slot {
                // Whatever it says, it says no more.
                let _ = call.answer().await;
            }
            *slot = None;
        }
        _ => std::future::pending().await,
    }
}

/// `None`: nothing is wanted that this server has.
fn filter(offers: Offers, wanted: &Wanted) -> Option<String> {
    let mut filter = SubscriptionFilter::new();
    if offers.changes {
        filter.tools_list_changed = offers.tools.then_some(true);
        filter.prompts_list_changed = offers.prompts.then_some(true);
        filter.resources_list_changed = offers.resources.then_some(true);
    }
    if offers.resources && !wanted.resources.is_empty() {
        filter.resource_subscriptions = Some(wanted.resources.iter().cloned().collect());
    }
    if filter == SubscriptionFilter::new() {
        return None;
    }
    Some(
        serde_json::to_string(&SubscriptionsListenRequestParams::new(filter))
            .expect("a filter is plain JSON"),
    )
}
