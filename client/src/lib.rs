//! The client side of a mesh: identity, local configuration, invites, and the connection to a broker.
//!
//! Here: everything that an agent, the command line or a benchmark needs to talk to a broker. Not here: what to print
//! (that is `cli`) and what the frames look like (that is `wire`).

pub mod address;
pub mod config;
pub mod connection;
pub mod error;
pub mod http;
pub mod identity;
pub mod invite;
pub mod session;
pub mod vault;

pub use self::vault::MeshVault;
pub use address::BrokerAddress;
pub use config::{Config, MeshEntry};
pub use connection::{
    Announce, CallOptions, Connection, LinkState, Membership, Reconnect, SessionPlace, SessionStatus,
};
pub use error::ClientError;
pub use identity::Identity;
pub use session::SessionEnv;

/// TLS needs a process-wide provider; the first caller wins and the others change nothing.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
