//! Requests that a member signed.
//!
//! `Authorization: Claudemesh <meshId>.<memberId>.<timestampMs>.<sha256 of the body>.<signature>`; the signature is of
//! `wire::canonical::http_request`. Whoever reads the body holds it against [`Claim::sha256`].

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use catalog::access::Caller;
use wire::{ErrorCode, MemberId, MeshId, canonical};

use crate::app::Broker;
use crate::clock;
use crate::error::FrameError;
use crate::identity::{self, Proof};
use crate::views::MeshView;

/// What the header claims.
pub struct Claim {
    pub mesh: MeshId,
    pub member: MemberId,
    timestamp: i64,
    pub sha256: String,
    signature: String,
}

impl Claim {
    /// # Errors
    /// `unauthorized` without the header, `malformed` with another one.
    pub fn read(headers: &HeaderMap) -> Result<Self, FrameError> {
        let refuse = |code: ErrorCode| {
            let form = "Authorization: Claudemesh <meshId>.<memberId>.<timestampMs>.<sha256>.<signature>";
            FrameError::new(code, format!("sign the request: {form}"))
        };
        let malformed = || refuse(ErrorCode::Malformed);
        let value = headers.get(header::AUTHORIZATION).ok_or_else(|| refuse(ErrorCode::Unauthorized))?;
        let value = value.to_str().map_err(|_| malformed())?;
        let fields: Vec<&str> = value.strip_prefix("Claudemesh ").ok_or_else(malformed)?.split('.').collect();
        let [mesh, member, timestamp, sha256, signature] = fields.as_slice() else { return Err(malformed()) };
        let is_digest = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_digest {
            return Err(malformed());
        }
        Ok(Self {
            mesh: MeshId::parse(mesh).map_err(|_| malformed())?,
            member: MemberId::parse(member).map_err(|_| malformed())?,
            timestamp: timestamp.parse().map_err(|_| malformed())?,
            sha256: (*sha256).to_owned(),
            signature: (*signature).to_owned(),
        })
    }

    /// That the member signed this, a moment ago.
    ///
    /// # Errors
    /// `timestamp_skew`, `unauthorized`, `bad_signature`.
    pub async fn prove(
        &self,
        broker: &Broker,
        request: (&str, &str),
    ) -> Result<(Arc<MeshView>, Arc<Caller>), FrameError> {
        if identity::signed_time(self.timestamp as f64, clock::now_ms()).is_none() {
            return Err(FrameError::new(
                ErrorCode::TimestampSkew,
                "the signed time is too far from the broker's",
            ));
        }
        let unauthorized = || FrameError::new(ErrorCode::Unauthorized, "not a member of this mesh");
        let view = broker.views.find(&self.mesh).await?.ok_or_else(unauthorized)?;
        let caller = view.caller(&self.member).ok_or_else(unauthorized)?;
        let key = view.key_of(&self.member).ok_or_else(unauthorized)?;
        let bytes = canonical::http_request(&self.mesh, &self.member, self.timestamp, request, &self.sha256);
        match identity::verify(key.as_str(), &self.signature, &bytes) {
            Proof::Good(_) => Ok((view, caller)),
            _ => Err(FrameError::new(ErrorCode::BadSignature, "the signature does not match")),
        }
    }
}
