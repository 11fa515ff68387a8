//! The vectors of the peer-protocol reference §13, and each refusal.

use ed25519_dalek::{Signer, SigningKey};

use super::*;

const MESH: &str = "M0000000000000000000000000000001";
const A: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
const S: &str = "ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1";
const NOW: i64 = 1_700_000_000_000;

fn mesh() -> MeshId {
    MeshId::parse(MESH).expect("mesh id")
}

fn hello() -> Hello {
    serde_json::from_value(serde_json::json!({
        "meshId": MESH, "memberId": "U0000000000000000000000000000001", "pubkey": A,
        "sessionId": "s", "pid": 1, "timestamp": NOW,
        "signature": "630b2e6d91e5ddf92501aeb7e35dd39bad2a14e679744170c06a929a0896e39fee477eda71cccd4fec443375b88dfe1d5e3ef337777144a017eb1ec2c5487006",
    }))
    .expect("hello")
}

fn session_hello() -> SessionHello {
    serde_json::from_value(serde_json::json!({
        "meshId": MESH, "parentMemberId": "U0000000000000000000000000000001", "parentMemberPubkey": A,
        "sessionPubkey": S, "sessionId": "s", "pid": 1, "cwd": "/", "timestamp": NOW,
        "parentAttestation": {
            "sessionPubkey": S, "parentMemberPubkey": A, "expiresAt": 1_700_043_200_000_i64,
            "signature": "de95d2bb1c351605b882ac0d25580b28bd5e232ea473e0240c04712d8734c54be9d76019a94c8635ebec059c6f4676a6fc24f23108f907b41e0bc8c9adc23a0e",
        },
        "signature": "fcb14ff62c70dfc5a06b931271af4d6d8cac9dbfa3ecdad13dda519b955fe05efd798af47ad59e81d5f5210f8c7ac6fbdb9deb4eebb08850cf16e41576832809",
    }))
    .expect("session hello")
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> (String, &'static str) {
    let refusal = result.expect_err("refused");
    (refusal.message, refusal.label)
}

#[test]
fn the_reference_vectors_are_accepted() {
    assert_eq!(prove_hello(&hello(), &mesh(), NOW).expect("proven").as_str(), A);
    let hello = session_hello();
    let (keys, attestation) = session_keys(&hello).expect("keys");
    prove_attestation(attestation, &keys, NOW).expect("attested");
    prove_session(&hello, &keys, &mesh(), NOW).expect("session");
}

#[test]
fn the_invite_vector_is_accepted_and_any_change_is_not() {
    let payload: InvitePayload = serde_json::from_value(serde_json::json!({
        "v": 1, "mesh_id": MESH, "mesh_slug": "acme", "broker_url": "wss://broker.example/ws",
        "expires_at": 1_700_600_000, "mesh_root_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc",
        "role": "member", "owner_pubkey": "ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c",
        "signature": "8df246f5965de34c9b9cfa50931dc07e8c87b2b8acd0848df10d62967d8018fe374145a604b17afa7c5836740e8dce5d65cf969c63c9d8cbaea14b8a408ef504",
    }))
    .expect("payload");
    assert!(is_signed_invite(&payload, &mesh()));
    let mut changed = payload.clone();
    changed.role = "admin".into();
    assert!(!is_signed_invite(&changed, &mesh()));
    let mut version = payload;
    version.v = 2;
    assert!(!is_signed_invite(&version, &mesh()));
}

#[test]
fn a_hello_of_60_000_ms_is_accepted_and_of_60_001_is_not() {
    for at in [NOW - 60_000, NOW + 60_000] {
        prove_hello(&hello(), &mesh(), at).expect("near enough");
    }
    for at in [NOW - 60_001, NOW + 60_001] {
        let (message, label) = code(prove_hello(&hello(), &mesh(), at));
        assert_eq!((message.as_str(), label), ("hello rejected: timestamp_skew", "timestamp_skew"));
    }
    let mut endless = hello();
    endless.timestamp = f64::NAN;
    assert_eq!(code(prove_hello(&endless, &mesh(), NOW)).1, "timestamp_skew");
}

#[test]
fn a_hello_with_a_misshaped_key_or_signature_is_malformed() {
    for (key, signature) in [("zz", None), (&A[2..], None), (A, Some("00"))] {
        let mut bad = hello();
        bad.pubkey = key.into();
        if let Some(signature) = signature {
            bad.signature = signature.into();
        }
        assert_eq!(code(prove_hello(&bad, &mesh(), NOW)).0, "hello rejected: malformed");
    }
}

#[test]
fn a_hello_signed_for_another_mesh_or_member_is_a_bad_signature() {
    let mut other = hello();
    other.member_id = "U0000000000000000000000000000002".into();
    assert_eq!(code(prove_hello(&other, &mesh(), NOW)).0, "hello rejected: bad_signature");
    let elsewhere = MeshId::parse("M0000000000000000000000000000002").expect("mesh id");
    assert_eq!(code(prove_hello(&hello(), &elsewhere, NOW)).1, "bad_signature");
}

#[test]
fn a_session_key_in_capitals_is_refused_and_an_empty_one_is_none() {
    let mut odd = hello();
    odd.session_pubkey = Some(S.to_uppercase());
    assert_eq!(code(session_key_of_hello(&odd)).0, "sessionPubkey must be 64 lowercase hex chars");
    odd.session_pubkey = Some(String::new());
    assert_eq!(session_key_of_hello(&odd).expect("none"), None);
}

#[test]
fn the_keys_of_a_session_hello_are_checked_in_order() {
    let mut bad = session_hello();
    bad.parent_attestation = None;
    assert_eq!(
        code(session_keys(&bad).map(|_| ())).0,
        "parentAttestation does not bind the claimed session+parent pubkeys"
    );
    bad.parent_member_pubkey = "x".into();
    assert_eq!(code(session_keys(&bad).map(|_| ())).1, "bad_parent_pubkey");
    bad.session_pubkey = "x".into();
    assert_eq!(code(session_keys(&bad).map(|_| ())).1, "bad_session_pubkey");
}

#[test]
fn an_attestation_ends_at_its_time_and_lasts_a_day_at_most() {
    let attested = |ends: f64, seed: u8| {
        let bytes = canonical::attestation(A, S, ends as i64);
        let signature = hex::encode(key(seed).sign(bytes.as_bytes()).to_bytes());
        let attestation = Attestation {
            session_pubkey: S.into(),
            parent_member_pubkey: A.into(),
            expires_at: ends,
            signature,
        };
        let keys = SessionKeys {
            session: PublicKey::parse(S).expect("key"),
            parent: PublicKey::parse(A).expect("key"),
        };
        prove_attestation(&attestation, &keys, NOW)
    };
    attested((NOW + 86_400_000) as f64, 1).expect("a day");
    assert_eq!(code(attested((NOW + 86_400_001) as f64, 1)).0, "attestation rejected: ttl_too_long");
    assert_eq!(code(attested(NOW as f64, 1)).0, "attestation rejected: expired");
    assert_eq!(code(attested(f64::INFINITY, 1)).1, "attestation_malformed");
    assert_eq!(code(attested((NOW + 1000) as f64, 2)).1, "attestation_bad_signature");
}

#[test]
fn a_session_must_hold_its_own_key() {
    let mut hello = session_hello();
    let bytes = canonical::session_hello(&mesh(), A, S, NOW);
    hello.signature = hex::encode(key(1).sign(bytes.as_bytes()).to_bytes());
    let keys = session_keys(&hello).expect("keys").0;
    let refused = code(prove_session(&hello, &keys, &mesh(), NOW));
    assert_eq!(refused, ("session_hello rejected: bad_signature".into(), "session_bad_signature"));
    hello.signature = "zz".into();
    assert_eq!(code(prove_session(&hello, &keys, &mesh(), NOW)).1, "session_malformed");
    assert_eq!(code(prove_session(&hello, &keys, &mesh(), NOW + 70_000)).1, "session_timestamp_skew");
}
