//! Ids are newtypes, checked when they are read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that is not an id of the wanted kind. Never echoes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: {rule}")]
pub struct BadId {
    pub kind: &'static str,
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Reads the text form.
            ///
            /// # Errors
            /// [`BadId`] with the rule that the text breaks.
            pub fn parse(text: &str) -> Result<Self, $crate::BadId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err($crate::BadId { kind: $kind, rule: $rule }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::BadId;
            fn try_from(text: String) -> Result<Self, $crate::BadId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn base62_32(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

pub(crate) use text_id;

text_id!(
    /// A mesh: the tenant and trust boundary.
    MeshId, "mesh id", "32 letters and digits", base62_32
);
text_id!(
    /// A member of one mesh.
    MemberId, "member id", "32 letters and digits", base62_32
);
text_id!(
    /// An ed25519 public key (RFC 8032), 64 lowercase hex digits.
    PublicKey,
    "public key",
    "64 lowercase hex digits",
    |text| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);
text_id!(
    /// The name of a service inside its mesh. `__` and a trailing `_` are refused because clients see
    /// `svc__<service>__<tool>`, which must split in one way only. Between broker and runner `<name>.<member id>` names
    /// the instance of one caller; people can't choose such a name, see [`ServiceName::is_plain`].
    ServiceName,
    "service name",
    "1-64 chars, alphanumeric/hyphens/underscores, starting with alphanumeric, no `__`, not ending in `_`",
    |text| match text.split_once('.') {
        None => is_plain_name(text),
        Some((name, member)) => is_plain_name(name) && base62_32(member),
    }
);

fn is_plain_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && !text.contains("__")
        && !text.ends_with('_')
}

impl ServiceName {
    /// A name that a person may give; not that of a caller's instance.
    pub fn is_plain(&self) -> bool {
        !self.0.contains('.')
    }

    /// The instance of one caller of this service.
    pub fn for_caller(&self, member: &MemberId) -> Self {
        Self(format!("{}.{member}", self.plain()).into())
    }

    /// The name of the service, of the instance of a caller too.
    pub fn plain(&self) -> &str {
        self.0.split_once('.').map_or(&*self.0, |(name, _)| name)
    }

    /// Whose instance it is, if it is one.
    pub fn caller(&self) -> Option<MemberId> {
        self.0.split_once('.').and_then(|(_, member)| MemberId::parse(member).ok())
    }
}

/// A service is named inside its mesh; nothing is ever keyed by the bare name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    pub mesh: MeshId,
    pub name: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.mesh, self.name)
    }
}

/// Counts the desired states of one service. The first deploy is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_name_cannot_climb_or_split_in_two_ways() {
        for good in ["a", "echo", "my-server_2", "9lives"] {
            assert!(ServiceName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", "../x", "a/b", "-a", "_a", "a__b", "a_", "a b", "ä", "a\0", "a.b", long.as_str()] {
            assert!(ServiceName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_instance_of_a_caller_is_no_name_that_a_person_may_give() {
        let echo = ServiceName::parse("echo").unwrap();
        let member = MemberId::parse(&"U".repeat(32)).unwrap();
        let own = echo.for_caller(&member);
        assert!(echo.is_plain() && !own.is_plain());
        assert_eq!((own.plain(), own.caller()), ("echo", Some(member.clone())));
        assert_eq!((ServiceName::parse(own.as_str()).unwrap(), own.for_caller(&member)), (own.clone(), own));
        assert_eq!(echo.caller(), None);
    }

    #[test]
    fn an_id_is_checked_when_it_is_read_from_json() {
        assert!(serde_json::from_str::<MeshId>("\"M0000000000000000000000000000001\"").is_ok());
        assert!(serde_json::from_str::<MeshId>("\"short\"").is_err());
    }
}
