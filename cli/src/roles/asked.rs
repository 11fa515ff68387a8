//! A runner, asked by who sits on its machine: what its id is, without any broker in between.

use std::path::PathBuf;
use std::time::Duration;

use wire::Secret;
use wire::vault::RunnerVault;

use super::data::DataFolder;
use crate::args::{ListenArg, OwnIdArgs};
use crate::failure::Failure;
use crate::settings::secret_file;

const LIMIT: Duration = Duration::from_secs(5);

/// Where a runner listens, for somebody who may ask it.
pub enum RunnerAt {
    Socket(PathBuf),
    Tcp { url: String, token: Secret },
}

impl RunnerAt {
    pub fn read(args: &OwnIdArgs) -> Result<Self, Failure> {
        match (&args.at, &args.at_token_file) {
            (None, _) => Ok(Self::Socket(DataFolder::of(&args.data)?.runner_socket())),
            (Some(ListenArg::Unix(path)), None) => Ok(Self::Socket(path.clone())),
            (Some(ListenArg::Unix(_)), Some(_)) => {
                Err(Failure::user("a unix socket has no token: its file mode decides who may connect"))
            }
            (Some(ListenArg::Tcp(addr)), Some(file)) => {
                Ok(Self::Tcp { url: format!("http://{addr}"), token: secret_file(file)? })
            }
            (Some(ListenArg::Tcp(_)), None) => {
                Err(Failure::user("a runner on TCP wants its token: --at-token-file"))
            }
        }
    }

    /// What the runner says of its own key.
    pub async fn vault(&self) -> Result<RunnerVault, Failure> {
        client::install_tls();
        let builder = reqwest::Client::builder().no_proxy().timeout(LIMIT);
        let builder = match self {
            Self::Socket(path) => builder.unix_socket(path.clone()),
            Self::Tcp { .. } => builder,
        };
        let http = builder.build().map_err(|e| Failure::platform(format!("no HTTP client: {e}")))?;
        let request = match self {
            Self::Socket(_) => http.get("http://runner/v1/vault"),
            Self::Tcp { url, token } => http.get(format!("{url}/v1/vault")).bearer_auth(token.expose()),
        };
        let answer = request.send().await.map_err(|_| {
            Failure::new(wire::Class::Unavailable, format!("no runner answers at {}", self.shown()))
                .with_cure(
                    "Is it running? `--data` names the folder of `up`, `--at` the address of a runner alone.",
                )
        })?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Failure::platform(format!("the runner at {} answered {status}", self.shown())));
        }
        answer.json().await.map_err(|_| Failure::platform("the runner's answer is not that of a runner"))
    }

    fn shown(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Tcp { url, .. } => url.clone(),
        }
    }
}
