//! How strongly hosted servers are kept apart, and what a mesh demands.

use serde::{Deserialize, Serialize};

/// Weakest first. There is no tier without a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Landlock, seccomp, a uid of its own where the runner is root, and the network through a proxy of the runner only.
    /// Processes and their command lines stay visible.
    Light,
    /// Namespaces, a view of its own, no capabilities, Landlock and seccomp; network by name through the runner only.
    Strict,
}

impl Tier {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Strict => "strict",
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a mesh demands of every service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// A service whose jail would be weaker is not started.
    pub min_isolation: Tier,
    /// Seconds that a package version must have been public before it is installed. 0: none.
    pub min_release_age_s: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { min_isolation: Tier::Strict, min_release_age_s: 0 }
    }
}

/// What a runner can build, found by trying when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationReport {
    /// The strongest that works; `None`: not even light, and no service starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    pub primitives: Vec<PrimitiveReport>,
}

/// One thing that a jail is built of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimitiveReport {
    /// `user_namespace`, `landlock`, `cgroup`, …
    pub name: String,
    /// The tier that can't be built without it; `None`: limits are held in a weaker way without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_by: Option<Tier>,
    /// `None`: works. Else what the kernel said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// With a refusal: what usually grants it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}
