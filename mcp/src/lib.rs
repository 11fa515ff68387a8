//! The mesh spoken as MCP over stdio: what an agent's MCP client starts and talks to.
//!
//! ```text
//! MCP client ── stdin/stdout ── stdio ── front ── Offer: service (one hosted service) ──┐
//!                               lines    eras,          mesh (the whole mesh as a server) ├── client::Connection
//!                                        lists, asks     channel (pushes into a session) ─┘   (one a session)
//! ```
//!
//! Here: JSON-RPC over stdio, both protocol eras towards the client, one hosted service as a server, the mesh as a server, a
//! local MCP server that is lent to the mesh. Not here: the link to the broker (`client`), configuration files of clients (`cli`).
//! Invariants: what a hosted server said reaches the client byte for byte; nothing but MCP is ever written to stdout; the process
//! ends when its client closes stdin or asks it to, and for no other reason.

pub mod cache;
pub mod channel;
pub mod front;
pub mod local;
pub mod mesh;
pub mod raw;
pub mod service;
pub mod stdio;
