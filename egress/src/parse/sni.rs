//! The server name of a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3).
//!
//! Here: the first bytes of a connection in, the name out; more bytes may be asked for. Not here: whether it is the right one.
//! Invariant: what is not exactly a ClientHello is none: no byte is skipped in search of one.
//!
//! With Encrypted Client Hello the outer name counts: the inner one can't be seen. A server that knows such a key of a
//! host that it may reach can so hide which of the sites behind that host it talks to.

/// Bytes of records that a ClientHello may take.
pub const MAX_HELLO: usize = 16 << 10;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const MAX_RECORD: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// So far it is one; more bytes are needed.
    More,
    /// In lowercase.
    Name(String),
    /// A ClientHello that names no host.
    NoName,
    NotTls,
}

/// Reads the first bytes of a connection.
pub fn read(bytes: &[u8]) -> Hello {
    match handshake(bytes) {
        // Nothing more is waited for than the bound.
        Ok(None) if bytes.len() >= MAX_HELLO => Hello::NotTls,
        Ok(None) => Hello::More,
        Ok(Some(hello)) => match server_name(&hello) {
            Some(Some(name)) => Hello::Name(name),
            Some(None) => Hello::NoName,
            None => Hello::NotTls,
        },
        Err(NotTls) => Hello::NotTls,
    }
}

struct NotTls;

/// The body of the ClientHello out of its records; `None` when some of it is still to come.
fn handshake(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, NotTls> {
    let mut message = Vec::new();
    loop {
        if let Some((&[kind, a, b, c], body)) = message.split_first_chunk::<4>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if kind != CLIENT_HELLO || length > MAX_HELLO {
                return Err(NotTls);
            }
            if let Some(body) = body.get(..length) {
                return Ok(Some(body.to_vec()));
            }
        }
        // Refused at the first byte that is wrong, and not only when a whole head is there.
        let is_right = |at: usize, right: u8| bytes.get(at).is_none_or(|byte| *byte == right);
        if !is_right(0, HANDSHAKE) || !is_right(1, 3) {
            return Err(NotTls);
        }
        let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > MAX_RECORD {
            return Err(NotTls);
        }
        let fragment = &rest[..length.min(rest.len())];
        if message.is_empty() && fragment.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(NotTls);
        }
        message.extend_from_slice(fragment);
        bytes = &rest[fragment.len()..];
    }
}

/// `None`: malformed. `Some(None)`: no host is named.
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    let mut hello = Cursor(hello);
    hello.take(2 + 32)?;
    let session = hello.byte()?;
    hello.take(usize::from(session))?;
    let ciphers = hello.short()?;
    hello.take(usize::from(ciphers))?;
    let compressions = hello.byte()?;
    hello.take(usize::from(compressions))?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = hello.block()?;
    if !hello.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let body = extensions.block()?;
        // Two of them: a server could heed the other one.
        if kind == SERVER_NAME && found.replace(host_name(body)?).is_some() {
            return None;
        }
    }
    Some(found.flatten())
}

fn host_name(mut extension: Cursor<'_>) -> Option<Option<String>> {
    let mut list = extension.block()?;
    let kind = list.byte()?;
    let name = list.block()?;
    // One name of the only kind there is, and nothing behind it.
    if kind != HOST_NAME || !list.0.is_empty() || !extension.0.is_empty() {
        return None;
    }
    let name = std::str::from_utf8(name.0).ok()?.to_ascii_lowercase();
    Some(super::is_name(&name).then_some(name))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn short(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn block(&mut self) -> Option<Cursor<'a>> {
        let length = self.short()?;
        self.take(usize::from(length)).map(Cursor)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).expect("short");
        [length.to_be_bytes().as_slice(), bytes].concat()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        let list = [&[0][..], &block(name)].concat();
        [&[0, 0][..], &block(&block(&list))].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([9; 32]);
        body.extend([0, 2, 0x13, 1, 1, 0]);
        body.extend(block(extensions));
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[1, length[1], length[2], length[3]][..], &body].concat()
    }

    fn record(fragment: &[u8]) -> Vec<u8> {
        [&[22, 3, 1][..], &block(fragment)].concat()
    }

    /// A ClientHello that asks for `name`, with an extension on either side of it.
    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let extensions = [&[0, 43, 0, 3, 2, 3, 4][..], &named(name.as_bytes()), &[0, 23, 0, 0]].concat();
        record(&message(&extensions))
    }

    #[test]
    fn the_name_comes_out_when_the_last_byte_is_there() {
        let whole = hello("API.example.com");
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), Hello::More, "{length} bytes");
        }
        assert_eq!(read(&whole), Hello::Name("api.example.com".into()));
        assert_eq!(read(&[&whole[..], b"early data"].concat()), Hello::Name("api.example.com".into()));
    }

    #[test]
    fn records_may_split_it_anywhere() {
        let message = message(&named(b"a.example.com"));
        for size in [1, 3, 4, 5, 50] {
            let whole: Vec<u8> = message.chunks(size).flat_map(record).collect();
            assert_eq!(read(&whole), Hello::Name("a.example.com".into()), "records of {size}");
            assert_eq!(read(&whole[..whole.len() - 1]), Hello::More);
        }
    }

    #[test]
    fn without_a_host_there_is_no_name() {
        for extensions in [vec![], vec![0, 23, 0, 0], named(b"10.0.0.1"), named(b"a b"), named(b"a.com.")] {
            assert_eq!(read(&record(&message(&extensions))), Hello::NoName, "{extensions:?}");
        }
    }

    #[test]
    fn two_names_are_one_too_many() {
        let twice = [named(b"a.com"), named(b"b.com")].concat();
        assert_eq!(read(&record(&message(&twice))), Hello::NotTls);
        let list = [&[0][..], &block(b"a.com"), &[0], &block(b"b.com")].concat();
        let both = [&[0, 0][..], &block(&block(&list))].concat();
        assert_eq!(read(&record(&message(&both))), Hello::NotTls);
    }

    #[test]
    fn what_is_not_tls_is_known_by_its_first_bytes() {
        let mut certificate = hello("a.com");
        certificate[5] = 11;
        let zero = [22, 3, 1, 0, 0];
        let huge = [22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff];
        for bytes in
            [&b"G"[..], b"GET / HTTP/1.1", &[22, 2], &zero, &huge, &certificate, &[0x80, 0x2e, 1, 3, 1]]
        {
            assert_eq!(read(bytes), Hello::NotTls, "{bytes:?}");
        }
    }

    #[test]
    fn an_endless_hello_ends_at_the_bound() {
        let mut endless = record(&[1, 0, 0x40, 0]);
        endless.extend((0..).flat_map(|_| record(&[0])).take(MAX_HELLO));
        assert_eq!(read(&endless[..MAX_HELLO]), Hello::NotTls);
        assert_eq!(read(&endless[..MAX_HELLO - 1]), Hello::More);
    }

    #[test]
    fn lengths_that_lie_make_it_malformed() {
        let whole = hello("a.com");
        let trailing = {
            let mut message = message(&named(b"a.com"));
            message.push(0);
            message[3] += 1;
            record(&message)
        };
        assert_eq!(read(&trailing), Hello::NotTls);
        let mut session = whole.clone();
        session[5 + 4 + 34] = 255;
        assert_eq!(read(&session), Hello::NotTls);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let _ = read(&record(&message(&bytes)));
        }

        #[test]
        fn a_damaged_hello_never_yields_a_name_that_is_none(at in 0usize..100, byte in any::<u8>()) {
            let mut bytes = hello("api.example.com");
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Hello::Name(name) = read(&bytes) {
                prop_assert!(super::super::is_name(&name));
            }
        }
    }
}
