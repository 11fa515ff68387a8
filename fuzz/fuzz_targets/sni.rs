//! The first bytes of a connection on port 443.
#![no_main]

use egress::parse::is_name;
use egress::parse::sni::{self, Hello, MAX_HELLO};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match sni::read(bytes) {
        Hello::Name(name) => {
            assert!(is_name(&name));
            // What was decided stays decided, whatever comes behind.
            assert_eq!(sni::read(&[bytes, b"more"].concat()), Hello::Name(name));
        }
        Hello::More => assert!(bytes.len() < MAX_HELLO),
        Hello::NotTls => assert_eq!(sni::read(&[bytes, b"more"].concat()), Hello::NotTls),
        Hello::NoName => {}
    }
});
