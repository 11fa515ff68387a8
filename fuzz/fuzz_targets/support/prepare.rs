//! The runner's own unpacking, without the rest of the runner: its files are compiled in from where they are.

#[expect(dead_code, reason = "the runner uses the rest")]
#[path = "../../../runner/src/prepare/archive.rs"]
pub(crate) mod archive;
#[expect(dead_code, reason = "the runner uses the rest")]
#[path = "../../../runner/src/prepare/error.rs"]
mod error;
#[expect(dead_code, reason = "the runner uses the rest")]
#[path = "../../../runner/src/prepare/tree.rs"]
pub(crate) mod tree;
#[expect(dead_code, reason = "the runner uses the rest")]
#[path = "../../../runner/src/prepare/unpack.rs"]
mod unpack;
