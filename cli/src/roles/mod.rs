//! The long-lived roles: `up`, `broker`, `runner`, and `down`, which ends the first.

mod asked;
mod backup;
mod broker;
mod data;
mod down;
mod logging;
mod own_runner;
mod owner;
mod runner;
mod runner_child;
mod up;

pub use asked::RunnerAt;
pub use backup::{backup, restore};
pub use broker::{Signals, broker};
pub use data::DataFolder;
pub use down::down;
pub use logging::{log_for_commands, log_warnings};
pub use runner::{isolation_here, leave_session, runner};
pub use up::up;
