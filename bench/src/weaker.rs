//! A machine that grants no namespaces, as a default container: `bench without-namespaces PROGRAM ARGS…`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::libc::{CLONE_NEWUSER, ENOSYS, EPERM, SYS_clone, SYS_clone3, SYS_unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

pub const ROLE: &str = "without-namespaces";

/// Becomes the program; for it and all below it user namespaces are refused.
///
/// # Errors
/// When it can't.
pub fn run(command: &[String]) -> Result<()> {
    let (program, args) = command.split_first().context("no program")?;
    let bit = u64::from(CLONE_NEWUSER.cast_unsigned());
    let flagged = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)?;
    let flagged = vec![SeccompRule::new(vec![flagged])?];
    refuse([(SYS_clone, flagged.clone()), (SYS_unshare, flagged)].into(), EPERM)?;
    // Its flags are behind a pointer. C libraries fall back to the older call.
    refuse([(SYS_clone3, Vec::new())].into(), ENOSYS)?;
    Err(Command::new(program).args(args).exec()).with_context(|| program.clone())
}

fn refuse(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<()> {
    let answer = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?.try_into()?;
    Ok(seccompiler::apply_filter(&filter)?)
}
