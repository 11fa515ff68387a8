//! What a step, and a hosted server, get of the operator's settings: registries, logins, certificates, folders of wheels.
//!
//! Here: the environment of install steps, and the files that it names. It is read from the runner's own environment,
//! because there the operator configures the package managers. Not here: which hosts that means ([`super::registries`]),
//! the directories of a step ([`super::ground`]).
//! Invariant: a step that may run a stranger's code gets certificates and the indexes' addresses, and no login. Proxies
//! are given to nobody: a jail's only way out is the runner's own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::tools::Tools;

/// In the view of every jail, so that nothing has to be copied or bound.
const IN_VIEW: [&str; 4] = ["/usr", "/etc/ssl/certs", "/etc/pki/ca-trust", "/etc/pki/tls/certs"];

/// Whose code may run in a step, which decides what it gets of the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// A package manager, and nothing that it downloads: the operator's registry configuration with its logins, and the
    /// download cache that all installs share.
    Registry,
    /// The deployer's own build code, or the packages' scripts: a uid, a home and a cache of its own.
    Project,
}

/// What keeps a package manager from running code that a project names, in steps that must run none.
const HOLDS: [(&str, &str); 3] = [
    // npm and yarn install a repository's own dependencies to pack it, by that repository's settings: those may name
    // any program as `git`. None is fetched, not even one that lies in the project.
    ("GIT_ALLOW_PROTOCOL", "none"),
    // Else `packageManager` and a `.corepack.env` of the project choose which yarn or pnpm runs, and from where.
    ("COREPACK_ENABLE_PROJECT_SPEC", "0"),
    ("COREPACK_ENV_FILE", "0"),
];

/// Places of one step.
pub(crate) struct Places<'a> {
    /// Links to the tools by name, first on the `PATH`.
    pub(crate) bin: &'a Path,
    pub(crate) cache: &'a Path,
}

/// The system's trusted certificates, where Debian and Red Hat keep them.
const SYSTEM_ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// The environment of one step but for `HOME` and `TMPDIR`, from scratch.
pub(crate) fn step_env(tools: &Tools, reach: Reach, places: &Places<'_>) -> BTreeMap<OsString, OsString> {
    let mut env = operators(std::env::vars_os(), reach);
    let cached = |dir: &str| places.cache.join(dir).into_os_string();
    let fixed: [(&str, OsString); 20] = [
        ("PATH", tools.run_path(Some(places.bin)).into()),
        ("LANG", "C.UTF-8".into()),
        ("CI", "true".into()),
        ("NO_COLOR", "1".into()),
        ("npm_config_cache", cached("npm")),
        ("npm_config_update_notifier", "false".into()),
        ("npm_config_loglevel", "warn".into()),
        ("UV_CACHE_DIR", cached("uv")),
        ("UV_PYTHON_DOWNLOADS", "never".into()),
        // Links into the cache would let one service poison the next one's install.
        ("UV_LINK_MODE", "copy".into()),
        ("UV_NO_PROGRESS", "1".into()),
        ("BUN_INSTALL_CACHE_DIR", cached("bun")),
        ("XDG_CACHE_HOME", cached("xdg")),
        ("YARN_CACHE_FOLDER", cached("yarn")),
        ("YARN_ENABLE_GLOBAL_CACHE", "false".into()),
        ("YARN_ENABLE_TELEMETRY", "0".into()),
        ("YARN_NODE_LINKER", "node-modules".into()),
        // A project's `yarnPath` is a program of the project's.
        ("YARN_IGNORE_PATH", "1".into()),
        ("PYTHONDONTWRITEBYTECODE", "1".into()),
        ("COREPACK_ENABLE_DOWNLOAD_PROMPT", "0".into()),
    ];
    env.extend(fixed.map(|(name, value)| (name.into(), value)));
    // uv brings roots of its own and knows those of the system only if told.
    let bundle = SYSTEM_ROOTS.iter().find(|bundle| Path::new(bundle).is_file());
    if let Some(bundle) = bundle.filter(|_| !env.contains_key(OsStr::new("SSL_CERT_FILE"))) {
        env.insert("SSL_CERT_FILE".into(), bundle.into());
    }
    if reach == Reach::Registry {
        env.extend(HOLDS.map(|(name, value)| (name.into(), value.into())));
    }
    // Headers for native builds, whose download is no registry's.
    if let Some(prefix) = tools.get("node").ok().and_then(|node| node.path.parent()?.parent())
        && prefix.join("include/node/node.h").is_file()
    {
        env.insert("npm_package_config_node_gyp_nodedir".into(), prefix.into());
    }
    env
}

/// The operator's settings as asking a tool outside of any jail needs them.
pub(crate) fn operators_own() -> BTreeMap<OsString, OsString> {
    operators(std::env::vars_os(), Reach::Registry)
}

/// Certificates for hosted servers: an operator's own authority must work for them too. Values, and what to bind.
pub(crate) fn certificates() -> (Vec<(String, String)>, Vec<PathBuf>) {
    let mut vars: BTreeMap<OsString, OsString> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_certificate)).collect();
    let mut shown = Vec::new();
    rewrite_paths(&mut vars, |path| {
        shown.push(path.to_owned());
        Some(path.to_owned())
    });
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    (vars.into_iter().filter_map(text).collect(), shown)
}

/// Every absolute path in the values that is there: canonical, and as `elsewhere` says for those that no view has.
pub(crate) fn rewrite_paths(
    env: &mut BTreeMap<OsString, OsString>,
    mut elsewhere: impl FnMut(&Path) -> Option<PathBuf>,
) {
    for value in env.values_mut() {
        let Some(text) = value.to_str().filter(|text| text.contains('/')) else { continue };
        let words = text.split_whitespace().map(|word| {
            let real =
                Some(Path::new(word)).filter(|path| path.is_absolute()).and_then(|p| p.canonicalize().ok());
            let shown = match real {
                Some(real) if IN_VIEW.iter().any(|seen| real.starts_with(seen)) => Some(real),
                Some(real) => elsewhere(&real),
                None => None,
            };
            shown.and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| word.to_owned())
        });
        *value = words.collect::<Vec<_>>().join(" ").into();
    }
}

/// For the message that a registry could not be reached: the operator may rely on a proxy, which is not used.
pub(crate) fn about_proxy() -> &'static str {
    const NAMES: [&str; 4] = ["https_proxy", "http_proxy", "all_proxy", "npm_config_https_proxy"];
    let is_proxy =
        |name: OsString| name.to_str().is_some_and(|name| NAMES.contains(&name.to_lowercase().as_str()));
    match std::env::vars_os().any(|(name, value)| is_proxy(name) && !value.is_empty()) {
        true => {
            "; it must lead to the registries directly: the proxy of the runner's environment is not used"
        }
        false => "",
    }
}

/// What a step gets of the runner's own variables.
fn operators(vars: impl Iterator<Item = (OsString, OsString)>, reach: Reach) -> BTreeMap<OsString, OsString> {
    let mut env = BTreeMap::new();
    for (name, value) in vars {
        let Some(text) = name.to_str() else { continue };
        if is_certificate(text) || (reach == Reach::Registry && is_registry(text)) {
            // npm reads both spellings; two of one name would race.
            let name = if text.starts_with("NPM_CONFIG_") { text.to_lowercase().into() } else { name };
            env.insert(name, value);
        } else if is_python_index(text)
            && let Some(urls) = value.to_str()
        {
            let public: Vec<String> = urls.split_whitespace().map(without_login).collect();
            env.insert(name, public.join(" ").into());
        }
    }
    mirror_pip_index(&mut env);
    env
}

fn is_python_index(name: &str) -> bool {
    const INDEXES: [&str; 6] = [
        "UV_DEFAULT_INDEX",
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_EXTRA_INDEX_URL",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    ];
    INDEXES.contains(&name)
}

/// `[name=]scheme://user:password@host/path` without the user and the password.
pub(crate) fn without_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[host..])
}

/// Where programs look for the certificates of those whom the operator trusts.
fn is_certificate(name: &str) -> bool {
    const NAMES: [&str; 5] =
        ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
    NAMES.contains(&name)
}

/// Registry configuration; not the options that would change where or how we install.
fn is_registry(name: &str) -> bool {
    const NOT: [&str; 27] = [
        // A jail has one way out, and no name for the proxy of the machine.
        "npm_config_proxy",
        "npm_config_http_proxy",
        "npm_config_https_proxy",
        "npm_config_global",
        "npm_config_prefix",
        "npm_config_local_prefix",
        "npm_config_location",
        "npm_config_cache",
        "npm_config_dry_run",
        "npm_config_ignore_scripts",
        "npm_config_script_shell",
        "npm_config_package_lock",
        "npm_config_package_lock_only",
        "npm_config_omit",
        "npm_config_include",
        "npm_config_only",
        "npm_config_production",
        "npm_config_json",
        "npm_config_workspace",
        "npm_config_workspaces",
        "npm_config_node_options",
        "uv_system_python",
        "uv_project_environment",
        "uv_target",
        "uv_prefix",
        "uv_python",
        "uv_no_build",
    ];
    let lower = name.to_ascii_lowercase();
    let prefixed = ["npm_config_", "uv_", "pip_"].iter().any(|prefix| lower.starts_with(prefix));
    prefixed && !NOT.contains(&lower.as_str())
}

/// uv does not read pip's variables, yet they are where most machines name their mirror.
fn mirror_pip_index(env: &mut BTreeMap<OsString, OsString>) {
    let has = |env: &BTreeMap<OsString, OsString>, name: &str| env.contains_key(&OsString::from(name));
    if !has(env, "UV_DEFAULT_INDEX")
        && !has(env, "UV_INDEX_URL")
        && let Some(url) = env.get(&OsString::from("PIP_INDEX_URL")).cloned()
    {
        env.insert("UV_DEFAULT_INDEX".into(), url);
    }
    if !has(env, "UV_INDEX")
        && !has(env, "UV_EXTRA_INDEX_URL")
        && let Some(urls) = env.get(&OsString::from("PIP_EXTRA_INDEX_URL")).cloned()
    {
        env.insert("UV_EXTRA_INDEX_URL".into(), urls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_settings_pass_and_settings_that_move_the_install_do_not() {
        for yes in ["npm_config_registry", "NPM_CONFIG_CAFILE", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"] {
            assert!(is_registry(yes), "{yes}");
        }
        for no in [
            "npm_config_prefix",
            "NPM_CONFIG_GLOBAL",
            "UV_PROJECT_ENVIRONMENT",
            "NODE_OPTIONS",
            "LD_PRELOAD",
            "HTTPS_PROXY",
            "npm_config_https_proxy",
        ] {
            assert!(!is_registry(no) && !is_certificate(no), "{no}");
        }
    }

    #[test]
    fn own_build_code_sees_the_indexes_but_no_login() {
        let vars = [
            ("UV_DEFAULT_INDEX", "https://user:p%40ss@pypi.corp/simple"),
            ("UV_INDEX", "https://a@one/x@y own=https://u:p@w@two"),
            ("UV_INDEX_OWN_PASSWORD", "s3cr3t"),
            ("npm_config__authToken", "s3cr3t"),
            ("HTTPS_PROXY", "http://proxy"),
            ("CLAUDEMESH_X", "s3cr3t"),
        ];
        let get = |reach| operators(vars.iter().map(|(n, v)| (n.into(), v.into())), reach);
        let text = |env: &BTreeMap<OsString, OsString>, name: &str| env[&OsString::from(name)].clone();
        let own = get(Reach::Project);
        assert_eq!(own.len(), 2, "{own:?}");
        assert_eq!(text(&own, "UV_DEFAULT_INDEX"), "https://pypi.corp/simple");
        assert_eq!(text(&own, "UV_INDEX"), "https://one/x@y own=https://two");
        let registry = get(Reach::Registry);
        assert_eq!(text(&registry, "UV_DEFAULT_INDEX"), "https://user:p%40ss@pypi.corp/simple");
    }

    #[test]
    fn a_step_with_logins_fetches_no_repository_and_runs_no_manager_that_a_project_names() {
        let tools = Tools::of(&[]);
        let get = |reach| step_env(&tools, reach, &Places { bin: Path::new("/b"), cache: Path::new("/c") });
        let (registry, own) = (get(Reach::Registry), get(Reach::Project));
        for (name, value) in HOLDS {
            assert_eq!(registry[&OsString::from(name)], value);
            assert!(!own.contains_key(&OsString::from(name)), "{name}");
        }
    }

    #[test]
    fn paths_in_values_are_the_real_ones_and_absent_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("wheels")).unwrap();
        std::os::unix::fs::symlink("wheels", root.join("link")).unwrap();
        let value = format!("{}/link /not/there /usr/bin/env https://h/x", root.display());
        let mut env = BTreeMap::from([("PIP_FIND_LINKS".into(), OsString::from(value))]);
        let mut asked = Vec::new();
        rewrite_paths(&mut env, |path| {
            asked.push(path.to_owned());
            Some(path.to_owned())
        });
        assert_eq!(asked, [root.join("wheels")]);
        let env_program = Path::new("/usr/bin/env").canonicalize().unwrap();
        let wanted = format!("{}/wheels /not/there {} https://h/x", root.display(), env_program.display());
        assert_eq!(env[&OsString::from("PIP_FIND_LINKS")], OsString::from(wanted));
    }

    #[test]
    fn pip_s_mirror_is_uv_s_mirror_unless_uv_has_one() {
        let mut env = BTreeMap::from([("PIP_INDEX_URL".into(), OsString::from("https://mirror/simple"))]);
        mirror_pip_index(&mut env);
        assert_eq!(env[&OsString::from("UV_DEFAULT_INDEX")], "https://mirror/simple");
        let mut own: BTreeMap<OsString, OsString> =
            BTreeMap::from([("PIP_INDEX_URL".into(), "a".into()), ("UV_INDEX_URL".into(), "b".into())]);
        mirror_pip_index(&mut own);
        assert!(!own.contains_key(&OsString::from("UV_DEFAULT_INDEX")));
    }
}
