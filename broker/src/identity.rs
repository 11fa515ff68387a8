//! Who is speaking: the checks of `hello`, `session_hello`, invites and signed HTTP requests.
//!
//! Here: pure checks in the order of the peer-protocol reference (§1.3, §1.4); `now` comes in.
//! Not here: the store (is the key a member?), capacity, sockets. The admission in `peer::admission` calls these
//! around its own checks.

use ed25519_dalek::{Signature, VerifyingKey};
use wire::peer::hello::{Attestation, Hello, SessionHello};
use wire::peer::mesh::InvitePayload;
use wire::{ErrorCode, MeshId, PublicKey, canonical};

/// Signed times may differ from ours by this much.
pub const MAX_SKEW_MS: f64 = 60_000.0;
const MAX_ATTESTATION_MS: f64 = 86_400_000.0;

/// A refused hello. The `label` is the closed metric label of the reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
    pub label: &'static str,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), label: code.as_str() }
    }

    fn labelled(code: ErrorCode, message: impl Into<String>, label: &'static str) -> Self {
        Self { code, message: message.into(), label }
    }
}

/// Check 1 of `hello`: the optional session key.
///
/// # Errors
/// `bad_session_pubkey`.
pub fn session_key_of_hello(hello: &Hello) -> Result<Option<PublicKey>, Refusal> {
    match hello.session_pubkey.as_deref() {
        None | Some("") => Ok(None),
        Some(key) => PublicKey::parse(key).map(Some).map_err(|_| bad_session_key()),
    }
}

fn bad_session_key() -> Refusal {
    Refusal::new(ErrorCode::BadSessionPubkey, "sessionPubkey must be 64 lowercase hex chars")
}

/// Checks 3 to 5 of `hello`. Answers the member key, in lowercase.
///
/// # Errors
/// `timestamp_skew`, `malformed` or `bad_signature`, in this order.
pub fn prove_hello(hello: &Hello, mesh: &MeshId, now_ms: i64) -> Result<PublicKey, Refusal> {
    let refuse = |code: ErrorCode| Refusal::new(code, format!("hello rejected: {code}"));
    let at = signed_time(hello.timestamp, now_ms).ok_or_else(|| refuse(ErrorCode::TimestampSkew))?;
    let bytes = canonical::hello(mesh, &hello.member_id, &hello.pubkey, at);
    match verify(&hello.pubkey, &hello.signature, &bytes) {
        Proof::Good(key) => Ok(key),
        Proof::Malformed => Err(refuse(ErrorCode::Malformed)),
        Proof::Bad => Err(refuse(ErrorCode::BadSignature)),
    }
}

/// The two keys of a `session_hello` whose form and binding are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKeys {
    pub session: PublicKey,
    pub parent: PublicKey,
}

/// Checks 1 to 3 of `session_hello`.
///
/// # Errors
/// `bad_session_pubkey`, `bad_parent_pubkey` or `attestation_mismatch`, in this order.
pub fn session_keys(hello: &SessionHello) -> Result<(SessionKeys, &Attestation), Refusal> {
    let session = PublicKey::parse(&hello.session_pubkey).map_err(|_| bad_session_key())?;
    let parent = PublicKey::parse(&hello.parent_member_pubkey).map_err(|_| {
        Refusal::new(ErrorCode::BadParentPubkey, "parentMemberPubkey must be 64 lowercase hex chars")
    })?;
    let bound = hello.parent_attestation.as_ref().filter(|attestation| {
        attestation.session_pubkey == hello.session_pubkey
            && attestation.parent_member_pubkey == hello.parent_member_pubkey
    });
    let attestation = bound.ok_or_else(|| {
        Refusal::new(
            ErrorCode::AttestationMismatch,
            "parentAttestation does not bind the claimed session+parent pubkeys",
        )
    })?;
    Ok((SessionKeys { session, parent }, attestation))
}

/// Checks 5 to 9 of `session_hello`: does the member key vouch for the session key, now?
///
/// # Errors
/// `malformed`, `expired`, `ttl_too_long` or `bad_signature`.
pub fn prove_attestation(attestation: &Attestation, keys: &SessionKeys, now_ms: i64) -> Result<(), Refusal> {
    let refuse =
        |code: ErrorCode, label| Refusal::labelled(code, format!("attestation rejected: {code}"), label);
    let ends = attestation.expires_at;
    let now = now_ms as f64;
    if !ends.is_finite() {
        return Err(refuse(ErrorCode::Malformed, "attestation_malformed"));
    }
    if ends <= now {
        return Err(refuse(ErrorCode::Expired, "attestation_expired"));
    }
    if ends > now + MAX_ATTESTATION_MS {
        return Err(refuse(ErrorCode::TtlTooLong, "attestation_ttl_too_long"));
    }
    let bytes = canonical::attestation(keys.parent.as_str(), keys.session.as_str(), ends as i64);
    match verify(keys.parent.as_str(), &attestation.signature, &bytes) {
        Proof::Good(_) => Ok(()),
        Proof::Malformed => Err(refuse(ErrorCode::Malformed, "attestation_malformed")),
        Proof::Bad => Err(refuse(ErrorCode::BadSignature, "attestation_bad_signature")),
    }
}

/// Checks 10 to 12 of `session_hello`: does the speaker hold the session key?
///
/// # Errors
/// `timestamp_skew`, `malformed` or `bad_signature`, in this order.
pub fn prove_session(
    hello: &SessionHello,
    keys: &SessionKeys,
    mesh: &MeshId,
    now_ms: i64,
) -> Result<(), Refusal> {
    let refuse =
        |code: ErrorCode, label| Refusal::labelled(code, format!("session_hello rejected: {code}"), label);
    let at = signed_time(hello.timestamp, now_ms)
        .ok_or_else(|| refuse(ErrorCode::TimestampSkew, "session_timestamp_skew"))?;
    let bytes = canonical::session_hello(mesh, keys.parent.as_str(), keys.session.as_str(), at);
    match verify(keys.session.as_str(), &hello.signature, &bytes) {
        Proof::Good(_) => Ok(()),
        Proof::Malformed => Err(refuse(ErrorCode::Malformed, "session_malformed")),
        Proof::Bad => Err(refuse(ErrorCode::BadSignature, "session_bad_signature")),
    }
}

/// Whether the payload was signed by the owner key that it names. Which mesh has that owner is the caller's question.
///
/// Upper-case hex is refused here: it would be a second spelling, and so a second token, of one invite.
pub fn is_signed_invite(payload: &InvitePayload, mesh: &MeshId) -> bool {
    let bytes = invite_text(payload, mesh);
    let is_canonical = !payload.signature.bytes().any(|b| b.is_ascii_uppercase());
    let proof = || verify(&payload.owner_pubkey, &payload.signature, &bytes);
    payload.v == 1 && is_canonical && matches!(proof(), Proof::Good(_))
}

/// What the owner signed.
pub fn invite_text(payload: &InvitePayload, mesh: &MeshId) -> String {
    let InvitePayload {
        v: _,
        mesh_id: _,
        mesh_slug,
        broker_url,
        expires_at,
        mesh_root_key,
        role,
        owner_pubkey,
        signature: _,
    } = payload;
    canonical::invite_v1(
        mesh,
        mesh_slug,
        broker_url,
        *expires_at,
        mesh_root_key,
        (role.as_str(), owner_pubkey.as_str()),
    )
}

/// Outcome of one signature check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    Good(PublicKey),
    Malformed,
    Bad,
}

/// Strict ed25519 (RFC 8032, no weak keys). Hex of either case, as the reference accepts it.
pub fn verify(key_hex: &str, signature_hex: &str, bytes: &str) -> Proof {
    let mut key = [0_u8; 32];
    let mut signature = [0_u8; 64];
    if hex::decode_to_slice(key_hex, &mut key).is_err()
        || hex::decode_to_slice(signature_hex, &mut signature).is_err()
    {
        return Proof::Malformed;
    }
    let Ok(verifying) = VerifyingKey::from_bytes(&key) else { return Proof::Malformed };
    let Ok(name) = PublicKey::parse(&hex::encode(key)) else { return Proof::Malformed };
    match verifying.verify_strict(bytes.as_bytes(), &Signature::from_bytes(&signature)) {
        Ok(()) => Proof::Good(name),
        Err(_) => Proof::Bad,
    }
}

/// The signed time as an integer, when it is near enough to ours.
pub fn signed_time(timestamp: f64, now_ms: i64) -> Option<i64> {
    let fits = timestamp.is_finite() && (now_ms as f64 - timestamp).abs() <= MAX_SKEW_MS;
    fits.then_some(timestamp as i64)
}

#[cfg(test)]
mod tests;
