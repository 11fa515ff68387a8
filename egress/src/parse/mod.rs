//! The readers of what a hostile server writes. Public for the fuzz targets in `fuzz/` only.
//!
//! Here: bytes in, a value or a refusal out. Not here: sockets, clocks, rules.
//! Invariant: none of them panics, and none looks at more than its bound.

pub mod dns;
pub mod http;
pub mod sni;

/// Names that can only mean a host: not an address in any of the spellings that resolvers take (`127.1`, `0x7f.1`).
pub fn is_name(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or(host);
    // No top-level domain begins with a digit; a host with one label may (`3scale`), but not be a number.
    let is_numeric = last.starts_with(|first: char| first.is_ascii_digit())
        && (host.contains('.') || last.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'x'));
    wire::egress::is_host_name(host) && !is_numeric
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn an_address_in_any_spelling_is_no_name() {
        for address in
            ["1.2.3.4", "127.1", "0x7f.1", "127.0.0.0x1", "2130706433", "0x7f000001", "::1", "", "a..b"]
        {
            assert!(!is_name(address), "{address}");
        }
        for name in ["a.com", "1.a.com", "gitlab", "3scale", "xn--nxasmq6b.xn--p1ai", "_dmarc.a.com"] {
            assert!(is_name(name), "{name}");
        }
    }
}
