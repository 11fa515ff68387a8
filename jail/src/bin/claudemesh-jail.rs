//! The helper as a program of its own.
//!
//! Here: what this crate's tests start. Not here: the product's way in, which is `claudemesh jail` in `cli`.

fn main() -> std::process::ExitCode {
    jail::main()
}
