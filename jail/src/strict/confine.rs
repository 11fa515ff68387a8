//! The last step but one before a strict server's `exec`: Landlock.
//!
//! Here: the rules, and that a rule set which the kernel does not enforce is a failure. Not here: the list of system calls
//! (see [`crate::seccomp`]).
//! Invariant: the rules repeat what the view already holds, so that a mistake in one of the two is no way out.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::errno::Errno;

use crate::report::Step;
use crate::server::{SetupError, build};
use crate::spec::JailSpec;
use crate::view::View;

/// What this kernel must have: reads and writes of files. Anything less is no Landlock.
const LEAST: ABI = ABI::V1;
/// What is used where the kernel has it.
pub(crate) const MOST: ABI = ABI::V9;

const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"];
const PRIVATE: [&str; 2] = ["/tmp", "/dev/shm"];

/// Files by an allow-list; signals and abstract sockets only inside.
pub(crate) fn restrict_files(spec: &JailSpec, view: &View) -> Result<(), SetupError> {
    let status = enforce(spec, view).map_err(|error| build(Step::Landlock, error, Errno::ENOTSUP))?;
    match status {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => {
            Err(build(Step::Landlock, "the kernel enforces no rule", Errno::ENOTSUP))
        }
    }
}

fn enforce(spec: &JailSpec, view: &View) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::from_read(MOST);
    let device: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::IoctlDev
        | AccessFs::Truncate;
    // Its own files, but neither device nodes nor a way to talk to one.
    let write = AccessFs::from_all(MOST) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    // Those that are not there are passed over; the files themselves have left the spec.
    let secrets = crate::secret::DIRECTORIES;
    let own = spec.own_directories().into_iter().chain(PRIVATE.map(Path::new));
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(MOST))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(["/"], AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(&view.read_only, read))?
        // Not to be written: a process could take back its rank when memory runs out.
        .add_rules(path_beneath_rules(["/proc"], AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(["/dev"], device))?
        .add_rules(path_beneath_rules(own, write))?
        .add_rules(path_beneath_rules(secrets, AccessFs::ReadFile | AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(status.ruleset)
}
