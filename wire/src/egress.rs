//! Where a service may connect to: rules of host and port.
//!
//! Here: the text form and the match. Not here: resolving, connecting, refusing (crate `egress`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The port of a rule that names none.
pub const DEFAULT_PORT: u16 = 443;
/// Most rules of one service.
pub const MAX_RULES: usize = 100;

/// `api.github.com`, `api.github.com:8443`, `*.githubusercontent.com:443`. The host is in lowercase ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressRule {
    pub host: Host,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// This name.
    Name(String),
    /// Every name below this one, at any depth; not the name itself.
    Below(String),
}

/// A text that is no rule. Says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    #[error("`{0}` is an address; name a host")]
    Address(String),
    #[error("`{0}` names the machine itself, which no service may reach")]
    Loopback(String),
    #[error(
        "`{0}` is no host name; write HOST, HOST:PORT or *.DOMAIN:PORT, international names in their `xn--` form"
    )]
    Name(String),
    #[error("the port of `{0}` is not 1 to 65535")]
    Port(String),
    #[error("`{0}` would allow every name below a public suffix; name a domain that somebody owns")]
    TooWide(String),
    #[error("`{0}`: behind `=` stands the address of one host")]
    Meaning(String),
}

impl EgressRule {
    /// Reads `HOST`, `HOST:PORT` or `*.DOMAIN[:PORT]`.
    ///
    /// # Errors
    /// [`BadRule`].
    pub fn parse(text: &str) -> Result<Self, BadRule> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => return Err(BadRule::Address(text.to_owned())),
            Some((host, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|port| digits && *port != 0);
                (host, port.ok_or_else(|| BadRule::Port(text.to_owned()))?)
            }
            None => (text, DEFAULT_PORT),
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let host = match host.strip_prefix("*.") {
            Some(domain) if !is_owned(domain) => return Err(BadRule::TooWide(text.to_owned())),
            Some(domain) => Host::Below(domain.to_owned()),
            None => Host::Name(host),
        };
        let name = match &host {
            Host::Name(name) | Host::Below(name) => name,
        };
        if name.parse::<std::net::IpAddr>().is_ok() || ends_in_number(name) {
            return Err(BadRule::Address(text.to_owned()));
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Err(BadRule::Loopback(text.to_owned()));
        }
        if is_host_name(name) { Ok(Self { host, port }) } else { Err(BadRule::Name(text.to_owned())) }
    }

    /// Whether it covers this host, which must be in lowercase and without the final dot.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host.covers(host)
    }
}

impl Host {
    pub fn covers(&self, host: &str) -> bool {
        match self {
            Self::Name(name) => name == host,
            Self::Below(domain) => {
                host.strip_suffix(domain.as_str()).is_some_and(|left| left.len() > 1 && left.ends_with('.'))
            }
        }
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63, 253 in all (RFC 1123 §2.1; `_` occurs in real names).
pub fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Resolvers take `127.1` and `0x7f.1` for addresses (WHATWG URL, "ends in a number").
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_hex =
        last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_hex || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Not a suffix under which anybody can register (Public Suffix List, ICANN part); an unknown suffix is one label.
fn is_owned(domain: &str) -> bool {
    use psl::Psl;
    let suffix = psl::List.suffix(domain.as_bytes());
    let is_icann = |suffix: &psl::Suffix<'_>| suffix.typ() != Some(psl::Type::Private);
    match suffix {
        Some(suffix) if is_icann(&suffix) => suffix.as_bytes().len() < domain.len(),
        // A suffix of the private part, such as `github.io` or `githubusercontent.com`: somebody owns it.
        Some(_) => true,
        None => false,
    }
}

/// A host of the operator's own, which may mean a private address: `HOST[:PORT][=ADDRESS]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateHost {
    pub rule: EgressRule,
    /// What the name means, where no resolver knows it.
    pub address: Option<std::net::IpAddr>,
}

impl PrivateHost {
    /// # Errors
    /// [`BadRule`].
    pub fn parse(text: &str) -> Result<Self, BadRule> {
        let Some((rule, address)) = text.split_once('=') else {
            return EgressRule::parse(text).map(Self::from);
        };
        let rule = EgressRule::parse(rule)?;
        match (&rule.host, address.parse()) {
            (Host::Name(_), Ok(address)) => Ok(Self { rule, address: Some(address) }),
            _ => Err(BadRule::Meaning(text.to_owned())),
        }
    }
}

impl From<EgressRule> for PrivateHost {
    fn from(rule: EgressRule) -> Self {
        Self { rule, address: None }
    }
}

impl fmt::Display for PrivateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}={address}", self.rule),
            None => self.rule.fmt(f),
        }
    }
}

impl TryFrom<String> for EgressRule {
    type Error = BadRule;
    fn try_from(text: String) -> Result<Self, BadRule> {
        Self::parse(&text)
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Below(domain) => write!(f, "*.{domain}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> EgressRule {
        EgressRule::parse(text).expect(text)
    }

    #[test]
    fn a_rule_reads_back_as_it_is_written() {
        for (text, written) in [
            ("api.github.com", "api.github.com:443"),
            ("API.GitHub.com.:8443", "api.github.com:8443"),
            ("*.githubusercontent.com", "*.githubusercontent.com:443"),
            ("gitlab:80", "gitlab:80"),
        ] {
            assert_eq!(rule(text).to_string(), written);
            assert_eq!(rule(written), rule(text));
        }
    }

    #[test]
    fn addresses_machines_and_whole_registries_are_refused() {
        for (text, why) in [
            ("10.0.0.1", BadRule::Address("10.0.0.1".into())),
            ("127.1:80", BadRule::Address("127.1:80".into())),
            ("host.0x7f", BadRule::Address("host.0x7f".into())),
            ("[::1]:443", BadRule::Address("[::1]:443".into())),
            ("localhost:5432", BadRule::Loopback("localhost:5432".into())),
            ("*.localhost:1", BadRule::TooWide("*.localhost:1".into())),
            ("*.com", BadRule::TooWide("*.com".into())),
            ("*.co.uk", BadRule::TooWide("*.co.uk".into())),
            ("*", BadRule::Name("*".into())),
            ("a.*.com", BadRule::Name("a.*.com".into())),
            ("https://a.com", BadRule::Port("https://a.com".into())),
            ("a.com:0", BadRule::Port("a.com:0".into())),
            ("a.com:+1", BadRule::Port("a.com:+1".into())),
            ("a b.com", BadRule::Name("a b.com".into())),
            ("", BadRule::Name(String::new())),
        ] {
            assert_eq!(EgressRule::parse(text), Err(why));
        }
    }

    #[test]
    fn a_private_host_may_say_what_it_means() {
        let read = |text: &str| PrivateHost::parse(text);
        for text in ["db.corp:5432", "db.corp:5432=10.0.0.7", "db.corp:5432=fd00::7"] {
            assert_eq!(read(text).expect(text).to_string(), text);
        }
        for text in ["db.corp=here", "*.corp.example=10.0.0.7", "db.corp="] {
            assert_eq!(read(text), Err(BadRule::Meaning(text.into())));
        }
    }

    #[test]
    fn a_wildcard_covers_what_is_below_and_nothing_else() {
        let below = rule("*.example.com");
        assert!(below.covers("a.example.com", 443) && below.covers("a.b.example.com", 443));
        for host in ["example.com", ".example.com", "badexample.com", "a.example.com.evil.org"] {
            assert!(!below.covers(host, 443), "{host}");
        }
        assert!(!below.covers("a.example.com", 80));
        assert!(rule("a.com").covers("a.com", 443) && !rule("a.com").covers("b.a.com", 443));
    }
}
