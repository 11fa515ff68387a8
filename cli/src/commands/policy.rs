//! `policy`: what the mesh demands of every service.

use std::time::Duration;

use wire::peer::trust::{MeshPolicy, MeshPolicyResult};
use wire::{Policy, Tier};

use super::ask;
use crate::args::PolicyArgs;
use crate::failure::Failure;
use crate::here::Here;
use crate::units;

pub async fn policy(here: &Here, args: &PolicyArgs) -> Result<(), Failure> {
    let frame = MeshPolicy {
        min_isolation: args.min_isolation,
        min_release_age_s: args.min_release_age.map(|age| age.as_secs()),
    };
    let found: MeshPolicyResult = ask(here, &frame).await?;
    if here.out.json {
        return here.out.document(&found.policy);
    }
    here.out.line(words(&found.policy));
    if args.min_isolation == Some(Tier::Light) {
        here.out.remark(
            "warning: where no strict jail can be built, services now run in a light one: they see the processes of \
             this machine and their command lines",
        );
    }
    Ok(())
}

fn words(policy: &Policy) -> String {
    let age = match policy.min_release_age_s {
        0 => "none".to_owned(),
        seconds => units::span(Duration::from_secs(seconds)),
    };
    format!("min isolation    {}\nmin release age  {age}", policy.min_isolation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_demands_are_said() {
        assert_eq!(words(&Policy::default()), "min isolation    strict\nmin release age  none");
        let policy = Policy { min_isolation: Tier::Light, min_release_age_s: 3 * 86_400 };
        assert_eq!(words(&policy), "min isolation    light\nmin release age  3d0h");
    }
}
