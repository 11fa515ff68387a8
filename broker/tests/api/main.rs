//! The broker from outside: raw frames and HTTP at a real broker, with a runner that does as it is told.

mod callers;
mod calls;
mod connections;
mod consent;
mod hosting;
mod jail;
mod listening;
mod live;
mod quarantine;
mod skills;
mod status;
mod vault;
mod world;
