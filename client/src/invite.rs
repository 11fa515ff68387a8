//! Invite links: made and signed by the mesh owner, read by whoever joins (hosting reference §4.2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wire::MeshId;
use wire::peer::mesh::InvitePayload;

use crate::identity::Identity;

/// What the owner decides; the signature follows from it.
#[derive(Debug, Clone)]
pub struct InviteDraft<'a> {
    pub mesh_id: &'a MeshId,
    pub mesh_slug: &'a str,
    pub broker_url: &'a str,
    /// Unix seconds.
    pub expires_at: i64,
    /// base64url of 32 bytes.
    pub root_key: &'a str,
    /// `admin`, `member` or `guest`.
    pub role: &'a str,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadInvite {
    #[error("not an invite link: it looks like ic://join/TOKEN or https://HOST/join/TOKEN")]
    NotALink,
    #[error("the invite link is damaged; copy all of it")]
    Damaged,
    #[error("the invite is of version {0}; this claudemesh reads version 1")]
    Version(u8),
}

impl InviteDraft<'_> {
    pub fn sign(&self, owner: &Identity) -> InvitePayload {
        let text = wire::canonical::invite_v1(
            self.mesh_id,
            self.mesh_slug,
            self.broker_url,
            self.expires_at,
            self.root_key,
            (self.role, owner.public().as_str()),
        );
        InvitePayload {
            v: 1,
            mesh_id: self.mesh_id.as_str().to_owned(),
            mesh_slug: self.mesh_slug.to_owned(),
            broker_url: self.broker_url.to_owned(),
            expires_at: self.expires_at,
            mesh_root_key: self.root_key.to_owned(),
            role: self.role.to_owned(),
            owner_pubkey: owner.public().as_str().to_owned(),
            signature: owner.sign(&text),
        }
    }
}

/// 32 random bytes, base64url without padding.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_root_key() -> Result<String, crate::identity::BadIdentity> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| crate::identity::BadIdentity::NoRandomness)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub fn link(token: &str) -> String {
    format!("ic://join/{token}")
}

/// The token of a link (or a bare token) and what it holds.
///
/// # Errors
/// When the text is no link, or its token does not decode.
pub fn read_link(text: &str) -> Result<(String, InvitePayload), BadInvite> {
    let text = text.trim();
    let token = match text.rsplit_once("/join/") {
        Some((_, token)) => token.split(['?', '#']).next().unwrap_or(token).trim_end_matches('/'),
        None if text.contains("://") || text.contains('/') => return Err(BadInvite::NotALink),
        None => text,
    };
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(BadInvite::NotALink);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadInvite::Damaged)?;
    #[derive(serde::Deserialize)]
    struct Version {
        v: u8,
    }
    let Version { v } = serde_json::from_slice(&bytes).map_err(|_| BadInvite::Damaged)?;
    if v != 1 {
        return Err(BadInvite::Version(v));
    }
    let payload = serde_json::from_slice(&bytes).map_err(|_| BadInvite::Damaged)?;
    Ok((token.to_owned(), payload))
}

/// # Errors
/// Never for a payload made by [`InviteDraft::sign`]; serde's type demands it.
pub fn token(payload: &InvitePayload) -> Result<String, serde_json::Error> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(payload)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> InvitePayload {
        let mesh = MeshId::parse("M0000000000000000000000000000001").unwrap();
        InviteDraft {
            mesh_id: &mesh,
            mesh_slug: "acme",
            broker_url: "wss://broker.example/ws",
            expires_at: 1_700_600_000,
            root_key: &URL_SAFE_NO_PAD.encode([7_u8; 32]),
            role: "member",
        }
        .sign(&Identity::from_seed([4; 32]))
    }

    #[test]
    fn the_reference_invite_gets_the_reference_signature() {
        assert_eq!(
            payload().signature,
            "8df246f5965de34c9b9cfa50931dc07e8c87b2b8acd0848df10d62967d8018fe374145a604b17afa7c5836740e8dce5d65cf969c63c9d8cbaea14b8a408ef504"
        );
    }

    #[test]
    fn every_spelling_of_a_link_is_read() {
        let token = token(&payload()).unwrap();
        for link in [
            link(&token),
            token.clone(),
            format!("https://mesh.example/join/{token}"),
            format!(" http://h:7900/en/join/{token}/?x=1 \n"),
        ] {
            let (found, read) = read_link(&link).unwrap();
            assert_eq!((found.as_str(), read), (token.as_str(), payload()), "{link}");
        }
    }

    #[test]
    fn damage_is_told_from_nonsense() {
        let token = token(&payload()).unwrap();
        assert_eq!(read_link("https://example.org/x").unwrap_err(), BadInvite::NotALink);
        assert_eq!(read_link("").unwrap_err(), BadInvite::NotALink);
        assert_eq!(read_link(&token[..token.len() - 9]).unwrap_err(), BadInvite::Damaged);
        assert_eq!(read_link(&URL_SAFE_NO_PAD.encode(r#"{"v":2}"#)).unwrap_err(), BadInvite::Version(2));
    }
}
