//! DNS queries out of a jail.
#![no_main]

use std::net::Ipv4Addr;

use egress::parse::{dns, is_name};

libfuzzer_sys::fuzz_target!(|packet: &[u8]| {
    let Ok(query) = dns::read(packet) else { return };
    assert!(query.name.as_deref().is_none_or(is_name), "a name is the name of a host");
    let answer = query.address(Ipv4Addr::new(11, 198, 0, 1));
    assert!(answer.len() <= packet.len() + 16, "an answer is one record longer at most");
    assert_eq!(answer[..2], packet[..2]);
    assert_eq!(query.no_such_name().len(), query.empty().len());
});
