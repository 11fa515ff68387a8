//! Real sources end to end: npm, PyPI, git over HTTP, archives and bundles become artefacts that speak MCP.
//!
//! Here: what needs package managers, git or a network. Not here: parsers and hostile archives, which are unit tests.
//! A test whose tool is missing says so and returns; with `CI=true` it fails instead.

#![expect(clippy::unwrap_used, reason = "a test that can not go on says where by panicking")]

mod bench;
mod git;
mod hostile;
mod npm;
mod projects;
mod pypi;
