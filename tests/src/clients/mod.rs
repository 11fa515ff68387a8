//! Real MCP clients, offline: the programs, and a stand-in for the model that tells them what to do.
//!
//! Here: [`Model`] (the test is the model), [`Claude`](programs::Claude) and the others (how each is started), the SDK drivers of
//! `tests/clients`. Not here: any claim about the product.
//! Invariant: a client gets a home of its own and reaches nothing but the loopback of the test.

mod anthropic;
mod gemini;
pub mod model;
pub mod programs;
mod responses;
pub mod sdk;

pub use model::{Model, Turn};
