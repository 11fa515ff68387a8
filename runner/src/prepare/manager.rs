//! The package managers of Node and Bun projects: which one a project means, and the arguments that each gets.
//!
//! Not here: running them ([`super::project`]), npm packages from the registry ([`super::npm`]).
//! Invariant: an install that may run a script or a plugin says so ([`Manager::is_foreign`]).

use std::path::Path;

use wire::spec::Runtime;

use super::npm::QUIET;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    NpmLocked,
    Npm,
    Pnpm,
    Yarn1,
    Yarn,
    BunLocked,
    Bun,
}

impl Manager {
    /// By the lock file of the project, or of the workspace that it is part of.
    pub(super) fn of(dir: &Path, tree: &Path, runtime: Runtime) -> Self {
        let has =
            |file: &str| dir.ancestors().take_while(|d| d.starts_with(tree)).find(|d| d.join(file).is_file());
        if runtime == Runtime::Bun {
            return if has("bun.lock").or(has("bun.lockb")).is_some() { Self::BunLocked } else { Self::Bun };
        }
        if has("package-lock.json").or(has("npm-shrinkwrap.json")).is_some() {
            return Self::NpmLocked;
        }
        if has("pnpm-lock.yaml").is_some() {
            return Self::Pnpm;
        }
        match has("yarn.lock").map(|d| std::fs::read_to_string(d.join("yarn.lock")).unwrap_or_default()) {
            Some(lock) if lock.contains("# yarn lockfile v1") => Self::Yarn1,
            Some(_) => Self::Yarn,
            None => Self::Npm,
        }
    }

    pub(super) fn tool(self) -> &'static str {
        match self {
            Self::NpmLocked | Self::Npm => "npm",
            Self::Pnpm => "pnpm",
            Self::Yarn1 | Self::Yarn => "yarn",
            Self::BunLocked | Self::Bun => "bun",
        }
    }

    /// `production` leaves the development dependencies out, which only a build needs.
    pub(super) fn install(self, production: bool, allow_scripts: bool) -> Vec<&'static str> {
        let mut args = match self {
            Self::NpmLocked => vec!["ci"],
            Self::Npm => vec!["install", "--package-lock=true"],
            Self::Pnpm => vec![
                "install",
                "--frozen-lockfile",
                "--ignore-pnpmfile",
                "--package-import-method=copy",
                "--config.manage-package-manager-versions=false",
            ],
            Self::Yarn1 => vec!["install", "--frozen-lockfile", "--non-interactive"],
            Self::Yarn => vec!["install", "--immutable"],
            Self::BunLocked => vec!["install", "--frozen-lockfile", "--backend=copyfile"],
            Self::Bun => vec!["install", "--backend=copyfile"],
        };
        match self {
            Self::NpmLocked | Self::Npm => {
                args.extend(QUIET);
                args.push(if production { "--omit=dev" } else { "--include=dev" });
            }
            Self::Pnpm => args.push(if production { "--prod" } else { "--prod=false" }),
            Self::Yarn1 => args.push(if production { "--production=true" } else { "--production=false" }),
            Self::BunLocked | Self::Bun if production => args.push("--production"),
            Self::Yarn | Self::BunLocked | Self::Bun => {}
        }
        match self {
            Self::NpmLocked | Self::Npm => args.extend(["--ignore-scripts", "--allow-git=none"]),
            Self::Yarn => {} // By environment: YARN_ENABLE_SCRIPTS.
            _ if !allow_scripts => args.push("--ignore-scripts"),
            _ => {}
        }
        args
    }

    /// Whether its install may run code of the project or of a dependency.
    pub(super) fn is_foreign(self, allow_scripts: bool) -> bool {
        match self {
            Self::NpmLocked | Self::Npm => false,
            Self::Yarn => true,
            Self::Pnpm | Self::Yarn1 | Self::BunLocked | Self::Bun => allow_scripts,
        }
    }

    /// Takes the development dependencies away after a build. Where the tool has no such command, it installs anew.
    pub(super) fn prune(self, allow_scripts: bool) -> Vec<&'static str> {
        let scripts: &[&str] = if allow_scripts { &[] } else { &["--ignore-scripts"] };
        let args = match self {
            Self::NpmLocked | Self::Npm => vec!["prune", "--omit=dev", "--no-audit", "--no-fund"],
            Self::Pnpm => vec!["prune", "--prod"],
            // Needs a plugin in yarn 2 and 3, where the development dependencies stay.
            Self::Yarn => return vec!["workspaces", "focus", "--production"],
            Self::Yarn1 | Self::BunLocked | Self::Bun => return self.install(true, allow_scripts),
        };
        [args.as_slice(), scripts].concat()
    }
}
