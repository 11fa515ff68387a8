//! The one table of error codes: text on the wire, HTTP status, class, cause and cure.

use serde::{Deserialize, Serialize};

/// Whose turn it is. Decides the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request was wrong; change it. Exit code 2.
    User,
    /// No such thing for this caller. Exit code 3.
    Denied,
    /// The hosted server, its package or its repository failed. Exit code 4.
    Service,
    /// Try again later. Exit code 5.
    Unavailable,
    /// claudemesh itself failed; quote the id. Exit code 1.
    Platform,
}

impl Class {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Platform => 1,
            Self::User => 2,
            Self::Denied => 3,
            Self::Service => 4,
            Self::Unavailable => 5,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::User => "user",
            Self::Denied => "denied",
            Self::Service => "service",
            Self::Unavailable => "unavailable",
        }
    }
}

macro_rules! error_codes {
    ($($variant:ident $text:literal $status:literal $class:ident $cause:literal $cure:literal;)*) => {
        /// Public contract: a message may change, a code may not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $(#[doc = $cause] #[serde(rename = $text)] $variant,)*
        }

        impl ErrorCode {
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),*];

            /// The text on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }

            pub fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }

            pub fn cause(self) -> &'static str {
                match self { $(Self::$variant => $cause),* }
            }

            pub fn cure(self) -> &'static str {
                match self { $(Self::$variant => $cure),* }
            }
        }
    };
}

error_codes! {
    // ── connection and identity (peer-protocol reference §1.2–1.4) ──
    NoHello "no_hello" 401 User "A frame came before `hello`." "Send `hello` or `session_hello` first.";
    HelloTimeout "hello_timeout" 408 User "No `hello` within 10 seconds of connecting." "Connect again and say hello at once.";
    BadSessionPubkey "bad_session_pubkey" 400 User "`sessionPubkey` is not 64 lowercase hex characters." "Send the key in lowercase hex.";
    BadParentPubkey "bad_parent_pubkey" 400 User "`parentMemberPubkey` is not 64 lowercase hex characters." "Send the key in lowercase hex.";
    AttestationMismatch "attestation_mismatch" 400 User "The attestation names other keys than the hello." "Sign an attestation for exactly these two keys.";
    ParentMemberIdMismatch "parent_member_id_mismatch" 401 User "`parentMemberId` is not the member of `parentMemberPubkey`." "Use the member id that `join` returned.";
    Capacity "capacity" 503 Unavailable "The mesh has as many connections as it may have." "Close connections, or raise MAX_CONNECTIONS_PER_MESH.";
    TimestampSkew "timestamp_skew" 401 User "The signed time is more than 60 seconds from the broker's clock." "Set the clock (NTP) and try again.";
    Malformed "malformed" 400 User "A key or signature has the wrong form." "Send 64 hex characters for a key and 128 for a signature.";
    BadSignature "bad_signature" 401 User "The signature does not match." "Check that the identity belongs to this mesh; join again if it was replaced.";
    Expired "expired" 401 User "The attestation has ended." "Sign a new one.";
    TtlTooLong "ttl_too_long" 400 User "The attestation is valid for more than 24 hours." "Sign a shorter one.";
    Revoked "revoked" 403 Denied "The member was removed from the mesh." "Ask the mesh owner for a new invite.";
    Unauthorized "unauthorized" 401 Denied "The key is not a member of the mesh." "Run `claudemesh join LINK`.";
    UnknownMessageType "unknown_message_type" 400 User "The broker does not know this frame." "Upgrade the broker, or use a client of the same version.";
    TooLarge "too_large" 413 User "The frame or body is larger than the limit." "Send less, or raise MAX_MESSAGE_BYTES.";
    Busy "busy" 429 Unavailable "Too many requests of this connection or service are waiting." "Wait for answers before sending more.";
    // ── requests ──
    InvalidArgs "invalid_args" 400 User "A field is missing, unknown or has a wrong value; the message names it." "Correct the field.";
    InvalidName "invalid_name" 400 User "The service name breaks the name rule." "Use 1-64 letters, digits, `-`, `_`; start with a letter or digit; no `__`.";
    NotFound "not_found" 404 Denied "No such thing in this mesh, or not in your scope." "Check the name with `claudemesh ls`; ask its owner to widen the scope.";
    Forbidden "forbidden" 403 Denied "Your role does not allow this." "Ask the service's owner or a mesh admin.";
    Limit "limit" 409 User "The mesh has as many services as it may have." "Remove one with `claudemesh rm`, or raise MAX_SERVICES_PER_MESH.";
    Conflict "conflict" 409 Unavailable "Somebody else changed the same thing at the same time." "Look at the new state and try again.";
    Superseded "superseded" 409 User "A newer deploy of the same service replaced this one." "Look at `claudemesh status NAME`.";
    NoPrevious "no_previous" 409 User "There is no earlier working version to go back to." "Deploy the version you want.";
    // ── invites (hosting reference §4.2) ──
    InviteBadSignature "invite_bad_signature" 400 User "The invite was not signed by the mesh owner, or was changed." "Ask for a new link.";
    MeshNotFound "mesh_not_found" 400 User "The broker has no such mesh." "Check that the link is for this broker.";
    InviteOwnerMismatch "invite_owner_mismatch" 400 User "The invite names another owner than the mesh has." "Ask for a new link.";
    InviteNotFound "invite_not_found" 400 User "The broker does not know this invite." "Ask for a new link.";
    InviteMeshMismatch "invite_mesh_mismatch" 400 User "The invite belongs to another mesh." "Ask for a new link.";
    InviteRevoked "invite_revoked" 400 User "The invite was withdrawn." "Ask for a new link.";
    InviteExpired "invite_expired" 400 User "The invite has ended." "Ask for a new link.";
    InviteExhausted "invite_exhausted" 400 User "The invite was used as often as it may be." "Ask for a new link.";
    // ── getting the code ──
    SourceNotFound "source_not_found" 404 Service "The registry or git host has no such package or repository." "Check the spelling.";
    VersionNotFound "version_not_found" 404 Service "The package has no such version." "Leave the version out to get the newest, or name one that exists.";
    RefNotFound "ref_not_found" 404 Service "The repository has no such branch, tag or commit." "Check `--ref`.";
    SubdirNotFound "subdir_not_found" 404 Service "The source has no such folder." "Check `--subdir`.";
    SourceDenied "source_denied" 403 Service "The git host asks for a credential, or refuses the one given." "Deploy with `--git-token-file PATH`.";
    SourceRefused "source_refused" 400 User "The source is of a kind that is never fetched: another URL scheme, an option in place of a name, a path outside." "Use an https:// git URL, a plain package name, a path inside the project.";
    SourceUnreachable "source_unreachable" 502 Unavailable "The registry or git host could not be reached." "Check the network of the runner and try again.";
    UploadNotFound "upload_not_found" 404 User "The archive was not uploaded, or has been cleaned away." "Upload it again; `claudemesh deploy ./folder` does.";
    ArchiveRejected "archive_rejected" 400 User "The archive is damaged or hostile: `..`, absolute paths, links that lead out, too many or too large entries." "Pack plain files and folders.";
    InstallFailed "install_failed" 422 Service "The package manager failed; the last lines say why." "Read the lines; `claudemesh logs NAME` has the rest.";
    BuildFailed "build_failed" 422 Service "The project's build step failed; the last lines say why." "Make the build work locally, or commit its output.";
    InstallTimeout "install_timeout" 504 Service "Fetching, installing or building took too long." "Try again; a warm cache is faster.";
    TooBig "too_big" 413 Service "The source or its installed tree is larger than the limit." "Deploy less, or raise the runner's limit.";
    DiskFull "disk_full" 507 Unavailable "The runner's disk is full." "Free space on the runner and deploy again.";
    RuntimeMissing "runtime_missing" 501 Unavailable "The runner lacks a tool that this source needs; the message names it." "Install it on the runner (`make setup`); `claudemesh doctor` lists what is there.";
    EntryNotFound "entry_not_found" 422 Service "Nothing to start: no executable of that name, or the project does not say how it starts." "Name it: `--bin NAME` for packages, `--entry FILE` for projects.";
    EntryAmbiguous "entry_ambiguous" 422 User "The package has several executables; the message lists them." "Choose one with `--bin NAME`.";
    // ── starting it ──
    StartExited "start_exited" 422 Service "The server ended before it spoke MCP; the last lines say why." "Often a missing argument, subcommand or environment variable: see the lines.";
    StartTimeout "start_timeout" 504 Service "The server did not answer `initialize` in time." "Look at `claudemesh logs NAME`; some servers need a flag to speak stdio.";
    HttpServer "http_server" 422 Service "The server listens on HTTP instead of speaking over stdio." "Give it its stdio flag or subcommand, often `--stdio` or `stdio`.";
    BadProtocol "bad_protocol" 422 Service "The server's answers are not valid MCP." "Report it to its author; `claudemesh logs NAME` shows what it sent.";
    TooManyTools "too_many_tools" 422 Service "The server lists more than 1,000 tools, or lists larger than 4 MiB." "Configure it to offer fewer.";
    NameCollision "name_collision" 409 Service "Two tools of the service would get the same name at clients." "Rename one of them.";
    IsolationUnavailable "isolation_unavailable" 501 Unavailable "The runner can not build a jail as strong as the mesh demands; the message says what is missing." "Run `claudemesh doctor`; it prints what would grant it. Or let an admin lower `min_isolation`.";
    TooNew "too_new" 409 User "The version is younger than the mesh's minimum release age." "Deploy an older version, or wait.";
    Tampered "tampered" 500 Platform "The installed files are not those that were installed." "They were set aside; the service installs them again.";
    JailFailed "jail_failed" 500 Platform "The jail could not be built; the message names the step." "Run `claudemesh doctor` on the runner.";
    // ── the vault ──
    VaultError "vault_error" 400 User "The vault does not take this; the message says why." "Correct what the message names.";
    VaultMissing "vault_missing" 404 User "A reference names an entry that is not in the vault of its owner." "Its owner runs `claudemesh vault set KEY`.";
    VaultLocked "vault_locked" 503 Unavailable "The runner has not got its own key back since it started." "It opens by itself once its broker, or the system, hands over the boot key; with custody in memory the mesh's owner runs `claudemesh runner trust ID`.";
    RunnerNotTrusted "runner_not_trusted" 403 Unavailable "The mesh's owner has not let this runner open the mesh's vault." "The owner runs `claudemesh runner ls` and `claudemesh runner trust ID`.";
    AwaitingConsent "awaiting_consent" 403 Unavailable "The owner of the secrets has not agreed to the service as it is now." "They look at it and sign with `claudemesh consent NAME`.";
    VaultDamaged "vault_damaged" 500 Platform "A sealed entry, key or consent does not open or is not what its owner signed." "Set the entry again with `claudemesh vault set KEY`; if it comes back, somebody changes what the broker stores.";
    VaultStale "vault_stale" 409 Platform "An older version of an entry, key or consent was offered than was seen before." "Somebody put an old state back; set the entry again, or sign again.";
    VaultKeyRetired "vault_key_retired" 409 Unavailable "The mesh's vault key was replaced meanwhile." "Try again; the client seals to the new key.";
    VaultKeyUnproven "vault_key_unproven" 502 Platform "The vault key that the broker offers is not signed by the mesh's owner." "Seal nothing. Ask the mesh's owner what the broker is.";
    LedgerFailed "ledger_failed" 507 Unavailable "The runner could not write down that a secret is opened, so it did not open it." "Free space on the runner.";
    // ── running it ──
    ServiceStopped "service_stopped" 409 Unavailable "The service is stopped." "Start it with `claudemesh start NAME`.";
    ServiceFailed "service_failed" 503 Service "The service never became ready, or keeps crashing." "See `claudemesh status NAME`.";
    ServiceStarting "service_starting" 503 Unavailable "The service did not become ready before the call's deadline." "Try again in a moment.";
    CallTimeout "call_timeout" 504 Service "The server did not answer before the deadline." "Try again with a longer `--timeout`.";
    CallCancelled "call_cancelled" 499 User "The caller cancelled." "Nothing to do.";
    InstanceLost "instance_lost" 502 Service "The server ended while the call was running." "Try again; it restarts by itself. Check first whether the call had an effect.";
    OutOfMemory "out_of_memory" 502 Service "The server was ended because it used more memory than it may have." "Raise `--memory`; `claudemesh status NAME` shows what it uses.";
    TooManyProcesses "too_many_processes" 502 Service "The server ended after it was refused more processes or threads than it may have." "Raise `--pids`.";
    DiskExceeded "disk_exceeded" 502 Service "The server was ended because its data directory holds more than it may." "Raise `--disk`, or empty it with `claudemesh rm` and a new deploy.";
    Quarantined "quarantined" 403 Denied "The tool's definition changed since the service's owner approved it." "Its owner looks at `claudemesh status NAME` and runs `claudemesh approve NAME`.";
    HostOffline "host_offline" 503 Unavailable "The member that lends this server is not connected." "Wait until they are back; `claudemesh ls` shows since when.";
    ResultTooLarge "result_too_large" 502 Service "The server's answer is larger than the limit." "Ask for less.";
    McpError "mcp_error" 200 Service "The server answered with a JSON-RPC error, which is passed on." "Depends on the server's own message.";
    RunnerLost "runner_lost" 502 Unavailable "The runner ended while the call was running." "Try again; services come back by themselves. Check first whether the call had an effect.";
    RunnerUnavailable "runner_unavailable" 503 Unavailable "No runner is connected." "Look at the broker's `/health/ready`; `claudemesh doctor` tells more.";
    Internal "internal" 500 Platform "claudemesh failed; the details are in the broker's log under the quoted id." "Report it with the id.";
}

impl ErrorCode {
    /// A service that is held back by this starts by itself once somebody has done something about it: no fault of its
    /// code.
    pub fn is_vault_wait(self) -> bool {
        matches!(
            self,
            Self::VaultMissing
                | Self::VaultLocked
                | Self::RunnerNotTrusted
                | Self::AwaitingConsent
                | Self::VaultDamaged
                | Self::VaultStale
                | Self::LedgerFailed
        )
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        let mut seen = std::collections::HashSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            let json = format!("\"{code}\"");
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).expect("reads"), *code);
        }
    }
}
