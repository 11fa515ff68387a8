//! Where a broker is: its WebSocket URL and the HTTP base that belongs to it.

use crate::error::ClientError;

/// A checked `ws://` or `wss://` URL. HTTP and WebSocket share host and port (peer-protocol reference §1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    socket: reqwest::Url,
}

impl BrokerAddress {
    /// Reads `wss://host/ws`; `http(s)://host[:port]` is taken as the same broker, and `/ws` is added when no path is given.
    ///
    /// # Errors
    /// When the text is not such a URL.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let bad = |why: &str| ClientError::Local(format!("not a broker address ({why}): use wss://HOST/ws"));
        let mut url = reqwest::Url::parse(text.trim()).map_err(|e| bad(&e.to_string()))?;
        let scheme = match url.scheme() {
            "ws" | "http" => "ws",
            "wss" | "https" => "wss",
            _ => return Err(bad("the scheme is unknown")),
        };
        if url.host_str().is_none() {
            return Err(bad("it names no host"));
        }
        // `Url::set_scheme` refuses http → ws only for non-special schemes; all four are special.
        url.set_scheme(scheme).map_err(|()| bad("the scheme is unknown"))?;
        if url.path() == "/" {
            url.set_path("/ws");
        }
        url.set_fragment(None);
        Ok(Self { socket: url })
    }

    pub fn socket(&self) -> &str {
        self.socket.as_str()
    }

    /// The HTTP URL of `path` (which starts with `/`): scheme swapped, a trailing `/ws` replaced. A path prefix stays, and
    /// a host that starts with `ws` is not mangled.
    pub fn http(&self, path: &str) -> String {
        let mut url = self.socket.clone();
        let scheme = if url.scheme() == "wss" { "https" } else { "http" };
        let prefix = url.path().strip_suffix("/ws").unwrap_or(url.path()).trim_end_matches('/').to_owned();
        url.set_path(&format!("{prefix}{path}"));
        url.set_query(None);
        let text = url.as_str();
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        format!("{scheme}://{rest}")
    }
}

impl std::fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.socket.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http_base_follows_from_the_socket_url() {
        for (socket, http) in [
            ("ws://127.0.0.1:7900/ws", "http://127.0.0.1:7900/join"),
            ("wss://broker.example/ws", "https://broker.example/join"),
            ("wss://ws.example/a/ws", "https://ws.example/a/join"),
            ("https://broker.example", "https://broker.example/join"),
            ("ws://[::1]:7900", "http://[::1]:7900/join"),
        ] {
            assert_eq!(BrokerAddress::parse(socket).unwrap().http("/join"), http, "{socket}");
        }
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for bad in ["", "broker", "ftp://x/ws", "file:///etc/passwd", "ws://"] {
            assert!(BrokerAddress::parse(bad).is_err(), "{bad}");
        }
    }
}
