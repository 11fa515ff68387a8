//! A server that plays, asked for what its audience wants to hear: resources, log messages, changed lists.
//!
//! Here: `resources/subscribe` and `logging/setLevel` of the legacy era, `subscriptions/listen` of the modern one. Not here:
//! who wants what (see [`crate::audience`]), what comes of it (see [`super::conn`]).
//! Invariants: what the server was asked for follows what is wanted; each URI is subscribed once, whoever wants it. What is wanted
//! when it begins to play leaves before the first call.

use std::collections::BTreeSet;
use std::time::Duration;

use rmcp::model::{SubscriptionFilter, SubscriptionsListenRequestParams};

use super::client::{CallError, Client, InFlight, Reply};
use super::frame;
use super::handshake::{Offers, error_message};
use super::notice::Level;
use crate::audience::{Player, Wanted};

/// For each answer of the server.
const PATIENCE: Duration = Duration::from_secs(30);

/// Resources that are asked for without waiting for each answer.
const AT_ONCE: usize = 256;

/// What the server was asked for as it began to play.
#[derive(Default)]
pub struct Begun {
    has: BTreeSet<String>,
    level: Option<Level>,
    answers: Vec<(&'static str, InFlight)>,
    /// In the modern era: the filter, and the request until the server ends it.
    open: Option<(String, Option<InFlight>)>,
}

/// Asks for what is wanted now, before anybody can call: a call may change what others wait for.
pub fn begin(client: &Client, offers: Offers, player: &mut Player) -> Begun {
    let wanted = player.wanted();
    let mut begun = Begun::default();
    if client.is_modern() {
        begun.open = filter(offers, &wanted).map(|filter| opened(client, filter));
        return begun;
    }
    // A connection that is closed has nothing to answer.
    let mut send = |method: &'static str, name: &str, value: &str| {
        begun.answers.extend(client.open(method, Some(&param(name, value))).ok().map(|call| (method, call)));
    };
    if offers.subscribe {
        begun.has = wanted.resources.iter().take(AT_ONCE).cloned().collect();
        begun.has.iter().for_each(|uri| send("resources/subscribe", "uri", uri));
    }
    begun.level = wanted.level.filter(|_| offers.logging);
    if let Some(least) = begun.level {
        send("logging/setLevel", "level", least.as_str());
    }
    begun
}

/// Until the connection ends. `say`: what goes wrong, for whoever runs the service.
pub async fn tune(client: &Client, offers: Offers, player: &mut Player, begun: Begun, say: impl Fn(&str)) {
    let follow = async {
        if client.is_modern() {
            follow_modern(client, offers, player, begun.open).await;
        } else {
            follow_legacy(client, offers, player, begun, &say).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = client.ended() => {}
    }
}

async fn follow_legacy(
    client: &Client,
    offers: Offers,
    player: &mut Player,
    begun: Begun,
    say: &impl Fn(&str),
) {
    let Begun { mut has, mut level, answers, open: _ } = begun;
    for (method, mut call) in answers {
        let answer = tokio::time::timeout(PATIENCE, call.answer()).await;
        told(method, answer.unwrap_or(Err(CallError::Silent(PATIENCE))), say);
    }
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
    told(method, client.ask(method, Some(&param(name, value)), PATIENCE).await, say);
}

fn param(name: &str, value: &str) -> String {
    format!(r#"{{"{name}":{}}}"#, frame::quote(value))
}

fn told(method: &str, answer: Result<Reply, CallError>, say: &impl Fn(&str)) {
    match answer {
        Ok(Reply::Result(_)) => {}
        // It is not asked again: its answer would be the same.
        Ok(Reply::Error(error)) => say(&format!("`{method}` was refused: {}", error_message(&error))),
        Err(e) => say(&format!("`{method}` failed: {e}")),
    }
}

/// In this era servers say nothing unasked, and one request names all that is wanted.
async fn follow_modern(
    client: &Client,
    offers: Offers,
    player: &mut Player,
    mut open: Option<(String, Option<InFlight>)>,
) {
    loop {
        let wanted = player.wanted();
        let filter = filter(offers, &wanted);
        if open.as_ref().map(|(filter, _)| filter) != filter.as_ref() {
            // The old one is cancelled when the new one is on its way, so that nothing falls between them.
            open = filter.map(|filter| opened(client, filter));
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

fn opened(client: &Client, filter: String) -> (String, Option<InFlight>) {
    // A connection that is closed has nothing to tell.
    let call = client.open("subscriptions/listen", Some(&filter)).ok();
    (filter, call)
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
