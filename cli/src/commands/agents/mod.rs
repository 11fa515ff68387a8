//! `connect`, `disconnect`, `import`: configuration of MCP clients.
//!
//! Here: the parts. [`text`] changes a text, [`edit`] a file, [`clients`] knows who reads which; what to change is in
//! [`connect`] and [`import`].

pub mod claude;
pub mod clients;
pub mod connect;
pub mod edit;
pub mod import;
mod record;
mod secrets;
pub mod show;
pub mod text;

pub use connect::{connect, disconnect};
pub use import::import;
pub use secrets::shown_command;
