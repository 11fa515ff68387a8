//! The WebSocket side: one connection per peer.
//!
//! [`socket`] reads and writes, [`admission`] lets a peer in, [`dispatch`] finds the handler of a frame, [`handlers`]
//! are parse, one domain call, answer. [`presence`] knows who is here, [`outbox`] what waits for them, [`events`] tells
//! them what happened. Not here: services, calls and rights (`deploy`, `calls`, `catalog::access`).

pub mod admission;
pub mod dispatch;
pub mod events;
pub mod handlers;
pub mod outbox;
pub mod presence;
pub mod socket;
