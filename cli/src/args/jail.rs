//! Flags of the commands about what a service may do, and what a mesh demands.

use std::time::Duration;

use clap::Args;
use wire::{EgressRule, Tier};

use super::InMesh;
use crate::units::parse_duration;

#[derive(Debug, Args)]
pub struct RulesArgs {
    /// Name of the service
    pub name: String,
    /// HOST, HOST:PORT or *.DOMAIN[:PORT]; the port is 443 unless given
    #[arg(value_name = "HOST[:PORT]", required = true, value_parser = rule)]
    pub rules: Vec<EgressRule>,
    #[command(flatten)]
    pub place: InMesh,
}

/// Lets a service connect to any public host for a while and records where it goes.
#[derive(Debug, Args)]
pub struct LearnArgs {
    /// Name of the service
    pub name: String,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub minutes: u32,
    /// End it, and allow nothing of what was seen
    #[arg(long, conflicts_with_all = ["minutes", "accept"])]
    pub stop: bool,
    /// End it, and allow what was seen after you have looked at it
    #[arg(long, conflicts_with = "minutes")]
    pub accept: bool,
    /// Do not ask
    #[arg(long, requires = "accept")]
    pub yes: bool,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// Name of the service
    pub name: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub place: InMesh,
}

#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// The weakest jail that a service may run in: strict or light
    #[arg(long, value_name = "TIER", value_parser = tier)]
    pub min_isolation: Option<Tier>,
    /// How long a package version must have been public before it is installed; 0 for no such wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub min_release_age: Option<Duration>,
    #[command(flatten)]
    pub place: InMesh,
}

/// One item of `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Nowhere,
    Rule(EgressRule),
}

impl Place {
    pub fn rule(&self) -> Option<&EgressRule> {
        match self {
            Self::Nowhere => None,
            Self::Rule(rule) => Some(rule),
        }
    }
}

pub(super) fn place(text: &str) -> Result<Place, String> {
    match text.trim() {
        "none" => Ok(Place::Nowhere),
        text => rule(text).map(Place::Rule),
    }
}

pub(super) fn rule(text: &str) -> Result<EgressRule, String> {
    EgressRule::parse(text.trim()).map_err(|e| e.to_string())
}

pub(super) fn tier(text: &str) -> Result<Tier, String> {
    [Tier::Light, Tier::Strict]
        .into_iter()
        .find(|tier| tier.as_str() == text)
        .ok_or_else(|| "write strict or light".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tiers_are_read_by_their_names() {
        assert_eq!(tier("strict"), Ok(Tier::Strict));
        assert_eq!(tier("light"), Ok(Tier::Light));
        assert!(tier("none").is_err());
    }

    #[test]
    fn nowhere_is_a_place_and_a_bad_rule_says_why() {
        assert_eq!(place("none"), Ok(Place::Nowhere));
        assert_eq!(place(" a.com").unwrap().rule().unwrap().to_string(), "a.com:443");
        assert!(place("10.0.0.1").unwrap_err().contains("address"));
        assert!(place("").is_err());
    }
}
