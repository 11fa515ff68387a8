//! Where one service may connect to.
//!
//! Here: the match of a host and a port. Not here: the text form of a rule (`wire::egress`), resolving.
//! Invariant: an address is never covered, learning or not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use wire::EgressRule;
use wire::egress::Host;
use wire::report::Verdict;

use crate::inject::Injection;
use crate::parse::is_name;
use crate::veil::Veil;

/// Inside every jail the HTTP proxy listens here, so no other listener can.
pub const PROXY_PORT: u16 = 3128;
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Where one service may connect to.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    pub allow: Vec<EgressRule>,
    /// Until then ports 80 and 443 of any public host are allowed and recorded as learned.
    pub learn_until: Option<SystemTime>,
    /// The hosts of this also need a rule of the others.
    pub inject: Option<Arc<Injection>>,
    /// Over the names in decisions, but for those that a rule names.
    pub veil: Veil,
}

impl Rules {
    /// What is put into requests to this host.
    pub(crate) fn injection(&self, host: &str, port: u16) -> Option<&Arc<Injection>> {
        self.inject.as_ref().filter(|injection| injection.covers(host, port))
    }

    /// The ports that a jail must have doors on: those of the rules, 80 and 443. Without 3128, which the proxy has: a rule
    /// of that port holds for clients that use the proxy.
    pub fn ports(&self) -> Vec<u16> {
        let ports = self.allow.iter().map(|rule| rule.port).chain([HTTP, HTTPS]);
        ports.filter(|port| *port != PROXY_PORT).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The name of a host as decisions may have it.
    pub(crate) fn shown<'a>(&self, host: &'a str) -> &'a str {
        let is_named = self.allow.iter().any(|rule| matches!(&rule.host, Host::Name(name) if name == host));
        if is_named { host } else { self.veil.over(host) }
    }

    /// `None`: not to be connected to.
    pub(crate) fn verdict(&self, host: &str, port: u16, now: SystemTime) -> Option<Verdict> {
        if !is_name(host) {
            return None;
        }
        if self.allow.iter().any(|rule| rule.covers(host, port)) {
            return Some(Verdict::Allowed);
        }
        let is_web = [HTTP, HTTPS].contains(&port);
        (is_web && self.learns(host, now)).then_some(Verdict::Learned)
    }

    /// Whether any port of this host may be connected to.
    pub(crate) fn names(&self, host: &str, now: SystemTime) -> bool {
        is_name(host) && (self.allow.iter().any(|rule| rule.host.covers(host)) || self.learns(host, now))
    }

    fn learns(&self, host: &str, now: SystemTime) -> bool {
        self.learn_until.is_some_and(|until| now < until) && host.contains('.') && is_name(host)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rules(allow: &[&str], learn_until: Option<SystemTime>) -> Rules {
        Rules {
            allow: allow.iter().map(|rule| EgressRule::parse(rule).expect(rule)).collect(),
            learn_until,
            ..Rules::default()
        }
    }

    #[test]
    fn doors_are_needed_on_each_port_once() {
        assert_eq!(rules(&[], None).ports(), [80, 443]);
        let listed = rules(&["a.com:8443", "b.com:8443", "c.com", "d.com:22", "e.com:3128"], None);
        assert_eq!(listed.ports(), [22, 80, 443, 8443]);
    }

    #[test]
    fn a_port_is_allowed_for_its_host_only() {
        let rules = rules(&["a.com:8443", "*.b.com"], None);
        let now = SystemTime::now();
        assert_eq!(rules.verdict("a.com", 8443, now), Some(Verdict::Allowed));
        assert_eq!(rules.verdict("x.b.com", 443, now), Some(Verdict::Allowed));
        for (host, port) in [("a.com", 443), ("b.com", 443), ("x.b.com", 8443), ("c.com", 80)] {
            assert_eq!(rules.verdict(host, port, now), None, "{host}:{port}");
        }
        assert!(rules.names("a.com", now) && rules.names("x.b.com", now) && !rules.names("c.com", now));
    }

    #[test]
    fn learning_ends_and_never_covers_addresses_and_other_ports() {
        let now = SystemTime::now();
        let learning = rules(&["a.com"], Some(now + Duration::from_secs(1)));
        assert_eq!(learning.verdict("a.com", 443, now), Some(Verdict::Allowed));
        assert_eq!(learning.verdict("b.com", 80, now), Some(Verdict::Learned));
        for (host, port) in [("b.com", 22), ("localhost", 80), ("1.2.3.4", 80), ("127.1", 443), ("::1", 443)]
        {
            assert_eq!(learning.verdict(host, port, now), None, "{host}:{port}");
        }
        assert_eq!(learning.verdict("b.com", 443, now + Duration::from_secs(1)), None);
        assert!(!learning.names("b.com", now + Duration::from_secs(1)));
    }
}
