//! Handlers: parse, one domain call, answer. None knows a socket, a lock or a line of SQL.

pub mod calls;
pub mod consent;
pub mod hosting;
pub mod listen;
pub mod live;
pub mod logs;
pub mod mesh;
pub mod skills;
pub mod vault;
