//! The broker's HTTP routes that a client needs: joining, uploading, hooks, health.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use wire::peer::mesh::{HookStatus, HookStatusSet, InvitePayload, Join, Joined};

use crate::address::BrokerAddress;
use crate::connection::{Membership, now_ms};
use crate::error::{ClientError, LooseError};
use crate::identity::Identity;

const SHORT: Duration = Duration::from_secs(15);
const UPLOAD: Duration = Duration::from_secs(10 * 60);
const UPLOAD_PATH: &str = "/v1/uploads";
const HOOK_PATH: &str = "/hook/set-status";

/// An archive that the broker holds; `file_id` names it in a deploy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Uploaded {
    pub file_id: String,
    pub size: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct BrokerHealth {
    pub version: String,
    /// As teammates reach this broker.
    #[serde(default, rename = "url")]
    pub public_url: Option<String>,
    /// The `Date` header: what the broker thinks the time is.
    #[serde(skip)]
    pub date: Option<String>,
}

/// The broker's word on itself and its runner.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct BrokerReady {
    /// Why it is not ready; `None` when it is.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub runner: Option<RunnerState>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct RunnerState {
    pub connected: bool,
    #[serde(default)]
    pub build: Option<String>,
    #[serde(default)]
    pub tools: Vec<String>,
}

fn http() -> Result<reqwest::Client, ClientError> {
    crate::install_tls();
    reqwest::Client::builder()
        .tcp_nodelay(true)
        .connect_timeout(SHORT)
        // A broker never redirects; following one would send the signature elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|e| ClientError::Local(format!("no HTTP client: {e}")))
}

/// reqwest's own text stops at "error sending request"; the innermost cause says why.
fn unreachable(broker: &BrokerAddress, error: &reqwest::Error) -> ClientError {
    let mut why = if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        why = inner.to_string();
        cause = inner.source();
    }
    ClientError::Unreachable { url: broker.to_string(), why }
}

async fn read<T: serde::de::DeserializeOwned>(
    broker: &BrokerAddress,
    response: reqwest::Response,
) -> Result<T, ClientError> {
    let status = response.status();
    let body = response.bytes().await.map_err(|e| unreachable(broker, &e))?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|e| ClientError::Protocol(format!("HTTP {status} with an unreadable body: {e}")));
    }
    match serde_json::from_slice::<LooseError>(&body) {
        Ok(loose) => Err(loose.into()),
        Err(_) => Err(ClientError::Protocol(format!("HTTP {status} from {broker}"))),
    }
}

/// Becomes a member with the key of `identity`.
///
/// # Errors
/// The broker's refusal, or no broker.
pub async fn join(
    broker: &BrokerAddress,
    token: &str,
    payload: &InvitePayload,
    identity: &Identity,
    display_name: &str,
) -> Result<Joined, ClientError> {
    let body = Join {
        invite_token: token.to_owned(),
        invite_payload: payload.clone(),
        peer_pubkey: identity.public().as_str().to_owned(),
        display_name: display_name.to_owned(),
    };
    let sent = http()?.post(broker.http("/join")).timeout(SHORT).json(&body).send().await;
    read(broker, sent.map_err(|e| unreachable(broker, &e))?).await
}

/// Uploads an archive, signed by the member.
///
/// # Errors
/// The broker's refusal, or no broker.
pub async fn upload(membership: &Membership, archive: Bytes) -> Result<Uploaded, ClientError> {
    let sha256 = hex::encode(Sha256::digest(&archive));
    let header = authorization(membership, now_ms(), ("POST", UPLOAD_PATH), &sha256);
    let broker = &membership.broker;
    let sent = http()?
        .post(broker.http(UPLOAD_PATH))
        .header("authorization", header)
        .header("content-type", "application/octet-stream")
        .timeout(UPLOAD)
        .body(archive)
        .send()
        .await
        .map_err(|e| unreachable(broker, &e))?;
    let uploaded: Uploaded = read(broker, sent).await?;
    if uploaded.file_id == sha256 {
        Ok(uploaded)
    } else {
        Err(ClientError::Protocol("the upload arrived with other bytes".to_owned()))
    }
}

/// Says what a session of the member is doing, signed by the member.
///
/// # Errors
/// The broker's refusal, or no broker within `limit`.
pub async fn set_status(
    membership: &Membership,
    status: &HookStatus,
    limit: Duration,
) -> Result<HookStatusSet, ClientError> {
    let body = serde_json::to_vec(status)
        .map_err(|e| ClientError::Local(format!("cannot write the status as JSON: {e}")))?;
    let sha256 = hex::encode(Sha256::digest(&body));
    let header = authorization(membership, now_ms(), ("POST", HOOK_PATH), &sha256);
    let broker = &membership.broker;
    let sent = http()?
        .post(broker.http(HOOK_PATH))
        .header("authorization", header)
        .header("content-type", "application/json")
        .timeout(limit)
        .body(body)
        .send()
        .await
        .map_err(|e| unreachable(broker, &e))?;
    read(broker, sent).await
}

/// `Claudemesh <meshId>.<memberId>.<timestamp ms>.<sha256 of the body>.<signature>`.
fn authorization(
    membership: &Membership,
    timestamp_ms: i64,
    method_and_path: (&str, &str),
    sha256: &str,
) -> String {
    let Membership { mesh_id, member_id, identity, .. } = membership;
    let text = wire::canonical::http_request(mesh_id, member_id, timestamp_ms, method_and_path, sha256);
    format!("Claudemesh {mesh_id}.{member_id}.{timestamp_ms}.{sha256}.{}", identity.sign(&text))
}

/// # Errors
/// No broker.
pub async fn health(broker: &BrokerAddress) -> Result<BrokerHealth, ClientError> {
    let sent = http()?.get(broker.http("/health")).timeout(SHORT).send().await;
    let response = sent.map_err(|e| unreachable(broker, &e))?;
    let date = response.headers().get("date").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut health: BrokerHealth = read(broker, response).await?;
    health.date = date;
    Ok(health)
}

/// `/health/ready`, in both cases.
///
/// # Errors
/// No broker.
pub async fn ready(broker: &BrokerAddress) -> Result<BrokerReady, ClientError> {
    let sent = http()?.get(broker.http("/health/ready")).timeout(SHORT).send().await;
    let response = sent.map_err(|e| unreachable(broker, &e))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|e| unreachable(broker, &e))?;
    let mut ready: BrokerReady = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        ready.reason.get_or_insert_with(|| format!("HTTP {status}"));
    }
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{MemberId, MeshId};

    #[test]
    fn the_upload_header_signs_exactly_what_it_names() {
        let membership = Membership {
            mesh_id: MeshId::parse("M0000000000000000000000000000001").unwrap(),
            member_id: MemberId::parse("U0000000000000000000000000000001").unwrap(),
            identity: Identity::from_seed([1; 32]),
            broker: BrokerAddress::parse("ws://127.0.0.1:1/ws").unwrap(),
        };
        let header = authorization(&membership, 5, ("POST", UPLOAD_PATH), "ab");
        let signed = "claudemesh-http|M0000000000000000000000000000001|U0000000000000000000000000000001|5|POST|/v1/uploads|ab";
        let want = format!(
            "Claudemesh M0000000000000000000000000000001.U0000000000000000000000000000001.5.ab.{}",
            membership.identity.sign(signed)
        );
        assert_eq!(header, want);
    }
}
