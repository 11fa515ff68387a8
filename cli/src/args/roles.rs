//! Flags of the long-lived roles.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use wire::egress::PrivateHost;
use wire::vault::Custody;

use crate::failure::Failure;
use crate::units::parse_duration;

#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Folder of the database, the runner and the keys [default: ~/.claudemesh/data]
    #[arg(long, env = "CLAUDEMESH_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Limits of the broker, the same alone and in `up`.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    #[arg(long, env = "MAX_CONNECTIONS_PER_MESH", default_value_t = 100, hide_env_values = true)]
    pub max_connections: usize,
    /// Bytes of the largest frame
    #[arg(long, env = "MAX_MESSAGE_BYTES", default_value_t = 1 << 20, hide_env_values = true)]
    pub max_message_bytes: usize,
    #[arg(long, env = "MAX_SERVICES_PER_MESH", default_value_t = 20, hide_env_values = true)]
    pub max_services: usize,
    /// Bytes of the largest upload
    #[arg(long, env = "MAX_UPLOAD_BYTES", default_value_t = 50 << 20, hide_env_values = true)]
    pub max_upload_bytes: usize,
}

/// The root key of the secrets in the database: 64 hex digits. The key itself can come by BROKER_ENCRYPTION_KEY (never
/// by argv, which everybody on the machine can read).
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// File that holds the key
    #[arg(long, env = "BROKER_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// What only the operator of a runner can say: no deployer reaches an inside host that is not named here.
#[derive(Debug, Clone, Args)]
pub struct PrivateArgs {
    /// A host with a private address that services may be allowed to reach; repeat it or separate by commas
    #[arg(
        long = "private-host",
        env = "CLAUDEMESH_PRIVATE_HOSTS",
        value_name = "HOST[:PORT][=ADDRESS]",
        value_delimiter = ','
    )]
    hosts: Vec<String>,
}

impl PrivateArgs {
    /// An empty variable is no host.
    pub fn read(&self) -> Result<Vec<PrivateHost>, Failure> {
        let named = self.hosts.iter().filter(|text| !text.trim().is_empty());
        let read = |text: &String| PrivateHost::parse(text.trim());
        named.map(|text| read(text).map_err(|why| Failure::user(format!("--private-host: {why}")))).collect()
    }
}

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Address of the broker
    #[arg(long, env = "CLAUDEMESH_LISTEN", default_value = "127.0.0.1:7900", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Name of the mesh that the first run makes
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// URL of the broker in invite links, e.g. wss://mesh.example/ws
    #[arg(long, env = "CLAUDEMESH_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Log as JSON lines
    #[arg(long, env = "CLAUDEMESH_JSON_LOGS")]
    pub json_logs: bool,
    #[command(flatten)]
    pub key: KeyArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub private: PrivateArgs,
}

#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// Address to listen on
    #[arg(long, env = "CLAUDEMESH_LISTEN", default_value = "127.0.0.1:7900", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// File that holds the database URL
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Option<PathBuf>,
    /// The runner: unix:PATH or http://HOST:PORT
    #[arg(long, env = "CLAUDEMESH_RUNNER", value_name = "ADDR")]
    pub runner: String,
    /// File that holds the runner's token (http only)
    #[arg(long, env = "CLAUDEMESH_RUNNER_TOKEN_FILE", value_name = "FILE")]
    pub runner_token_file: Option<PathBuf>,
    /// URL of the broker in invite links, e.g. wss://mesh.example/ws
    #[arg(long, env = "CLAUDEMESH_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Make a mesh of this name and its owner's identity, unless this config folder has one for this database
    #[arg(long, env = "CLAUDEMESH_BOOTSTRAP", value_name = "NAME")]
    pub bootstrap: Option<String>,
    /// Migration that must have run before the broker says that it is ready
    #[arg(long, env = "EXPECTED_MIGRATION", value_name = "NAME")]
    pub expected_migration: Option<String>,
    /// Log as JSON lines
    #[arg(long, env = "CLAUDEMESH_JSON_LOGS")]
    pub json_logs: bool,
    #[command(flatten)]
    pub key: KeyArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Debug, Args)]
pub struct RunnerArgs {
    /// unix:PATH, or HOST:PORT (which needs a token)
    #[arg(long, env = "CLAUDEMESH_RUNNER_LISTEN", value_name = "ADDR")]
    pub listen: Option<ListenArg>,
    /// Folder of artefacts, service data and uploads
    #[arg(long, env = "CLAUDEMESH_RUNNER_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// File that holds the token that brokers must send
    #[arg(long, env = "CLAUDEMESH_RUNNER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// End after this long without a broker
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub orphan_timeout: Option<Duration>,
    /// URL schemes that git sources may have
    #[arg(
        long,
        env = "CLAUDEMESH_GIT_SCHEMES",
        value_name = "A,B",
        value_delimiter = ',',
        default_value = "https"
    )]
    pub git_schemes: Vec<String>,
    #[command(flatten)]
    pub private: PrivateArgs,
    /// How the runner's own key is kept: split (a file, and a key for it from the broker), file (a file, and a key for it
    /// from the system), memory (nowhere: after a restart the mesh's owner trusts it again)
    #[arg(
        long,
        env = "CLAUDEMESH_RUNNER_CUSTODY",
        value_name = "HOW",
        default_value = "split",
        value_parser = custody,
        hide_env_values = true
    )]
    pub custody: Custody,
    /// File that holds the boot key of custody `file`, 64 hex digits; else the systemd credential `claudemesh-boot-key`
    #[arg(long, env = "CLAUDEMESH_RUNNER_BOOT_KEY_FILE", value_name = "FILE")]
    pub boot_key_file: Option<PathBuf>,
    /// Log as JSON lines
    #[arg(long, env = "CLAUDEMESH_JSON_LOGS")]
    pub json_logs: bool,
    /// Leave the terminal's session, so that its signals and its end do not reach the services
    #[arg(long, hide = true)]
    pub detach: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenArg {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

fn custody(text: &str) -> Result<Custody, String> {
    match text {
        "split" => Ok(Custody::Split),
        "file" => Ok(Custody::File),
        "memory" => Ok(Custody::Memory),
        _ => Err("write split, file or memory".to_owned()),
    }
}

impl FromStr for ListenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path".to_owned()),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_| "write unix:PATH or HOST:PORT".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_names_no_host_and_a_bad_one_is_refused() {
        let rules = |hosts: &[&str]| {
            PrivateArgs { hosts: hosts.iter().map(|host| (*host).to_owned()).collect() }.read()
        };
        assert!(rules(&["", " "]).unwrap().is_empty());
        assert_eq!(rules(&["a.corp:8443=10.0.0.7", " b.corp"]).unwrap().len(), 2);
        assert!(rules(&["10.0.0.1"]).unwrap_err().message.starts_with("--private-host"));
    }
}
