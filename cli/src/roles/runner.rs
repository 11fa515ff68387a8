//! The runner role.

use std::path::PathBuf;

use runner::cell::Cells;
use runner::{Listen, RunnerConfig};
use wire::isolation::IsolationReport;
use wire::vault::Custody;

use super::logging::{self, Chatter};
use crate::args::{ListenArg, RunnerArgs};
use crate::failure::Failure;
use crate::settings::secret_file;

/// Our own image, which stays what it is when the file is replaced by a newer build.
const OWN_IMAGE: &str = "/proc/self/exe";
/// What systemd calls the boot key.
const BOOT_KEY_CREDENTIAL: &str = "claudemesh-boot-key";

/// Makes this process the leader of a session without a terminal.
pub fn leave_session(detach: bool) -> Result<(), Failure> {
    if !detach {
        return Ok(());
    }
    nix::unistd::setsid().map(drop).map_err(|e| Failure::platform(format!("cannot leave the session: {e}")))
}

pub async fn runner(args: RunnerArgs) -> Result<u8, Failure> {
    logging::start(Chatter::Lifecycle, args.json_logs);
    // Not required by the command line itself: `runner ls` and its like do without.
    let (Some(listen), Some(data)) = (args.listen, args.data) else {
        return Err(Failure::user(
            "a runner needs --listen and --data; or name what is to be done: ls, trust, revoke, id",
        ));
    };
    let listen = match (listen, &args.token_file) {
        (ListenArg::Unix(path), None) => Listen::Unix(path),
        (ListenArg::Tcp(addr), Some(file)) => Listen::Tcp { addr, token: secret_file(file)? },
        (ListenArg::Unix(_), Some(_)) => {
            return Err(Failure::user("a unix socket has no token: its file mode decides who may connect"));
        }
        (ListenArg::Tcp(_), None) => {
            return Err(Failure::user("listening on TCP needs a token: --token-file")
                .with_cure("Make one: head -c 32 /dev/urandom | base64 > runner.token"));
        }
    };
    let mut config = RunnerConfig::new(data, listen, PathBuf::from(OWN_IMAGE));
    config.orphan_timeout = args.orphan_timeout;
    config.git_schemes = args.git_schemes;
    config.egress.private = args.private.read()?;
    config.custody = args.custody;
    config.boot_key_file = boot_key_file(args.custody, args.boot_key_file)?;
    runner::run(config).await.map_err(|e| Failure::of_code(e.code(), e.to_string()))?;
    Ok(0)
}

/// A named file goes before the credential that systemd hands over.
fn boot_key_file(custody: Custody, named: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    match (custody, named) {
        (Custody::File, None) => crate::env::credential(BOOT_KEY_CREDENTIAL).map(Some).ok_or_else(|| {
            Failure::user("custody `file` needs its boot key: --boot-key-file").with_cure(format!(
                "Make one: head -c 32 /dev/urandom | xxd -p -c 64 > FILE; or LoadCredential={BOOT_KEY_CREDENTIAL}:FILE."
            ))
        }),
        (Custody::File, named) => Ok(named),
        (Custody::Split | Custody::Memory, None) => Ok(None),
        (Custody::Split | Custody::Memory, Some(_)) => {
            Err(Failure::user("--boot-key-file belongs to --custody file"))
        }
    }
}

/// What a runner that was started here, as this user, could build. Blocks while it tries.
pub fn isolation_here() -> IsolationReport {
    // The folder is never touched: it names the probe's control group, apart from those of real runners.
    let data = PathBuf::from(format!("doctor-{}", std::process::id()));
    let config = RunnerConfig::new(data, Listen::Unix(PathBuf::new()), PathBuf::from(OWN_IMAGE));
    Cells::new(&config).isolation().clone()
}

/// As the runner itself says it in `/health`.
pub async fn own_build() -> String {
    runner::build_of(OWN_IMAGE.as_ref()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_key_file_belongs_to_its_custody() {
        let file = || Some(PathBuf::from("/k"));
        assert_eq!(boot_key_file(Custody::File, file()).unwrap(), file());
        assert_eq!(boot_key_file(Custody::Split, None).unwrap(), None);
        for custody in [Custody::Split, Custody::Memory] {
            assert!(boot_key_file(custody, file()).is_err(), "{custody:?}");
        }
    }
}
