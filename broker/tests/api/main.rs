//! The broker from outside: raw frames and HTTP at a real broker, with a runner that does as it is told.

mod calls;
mod connections;
mod hosting;
mod jail;
mod quarantine;
mod world;
