//! Which addresses a service may be connected to.
//!
//! Here: one pure function. Not here: whose names may mean private addresses (see [`crate::EgressConfig::private`]).
//! Invariant: an IPv6 address that holds an IPv4 address is as forbidden as that one.
//!
//! The documentation ranges (192.0.2/24, 198.51.100/24, 203.0.113/24, 2001:db8::/32) lead nowhere on the Internet, and are
//! what closed networks give to their mirrors: they count as public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Public,
    /// Loopback, private, carrier-grade NAT: only for names that the operator lists.
    Private,
    /// No host of the Internet, or the cloud's metadata: for nobody.
    Never,
}

/// Clouds answer here with the machine's credentials, or configure it. 169.254.169.254 is link-local anyway.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

pub(crate) fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => reach_v6(address),
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        _ if METADATA_V4.contains(&address) => Reach::Never,
        // "This network", link-local, IETF protocols, 6to4 relays, benchmarks, multicast, reserved, broadcast.
        [0, ..]
        | [169, 254, ..]
        | [192, 0, 0, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [224..=255, ..] => Reach::Never,
        [127 | 10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Reach::Private,
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let held = |high: u16, low: u16| reach_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        _ if address == METADATA_V6 => Reach::Never,
        [0, 0, 0, 0, 0, 0, 0, 0] => Reach::Never,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Private,
        // Mapped and compatible; the translated form `::ffff:0:0:0/96`.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => held(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => held(high, low),
        // NAT64 prefixes of a site, discard-only, ORCHID: no hosts of the Internet.
        [0x64, 0xff9b, ..] | [0x100, 0, 0, 0, ..] | [0x2001, 0x10..=0x3f, ..] => Reach::Never,
        // Teredo: the server, and the client with its bits turned over.
        [0x2001, 0, high, low, _, _, x, y] => held(high, low).max(held(!x, !y)),
        [0x2002, high, low, ..] => held(high, low),
        // Link-local, multicast.
        [0xfe80..=0xfebf, ..] | [0xff00..=0xffff, ..] => Reach::Never,
        // Unique local, site-local.
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Reach::Private,
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => held(high, low),
        // Only 2000::/3 is given out to hosts.
        [0x2000..=0x3fff, ..] => Reach::Public,
        _ => Reach::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().expect(text))
    }

    #[test]
    fn hosts_of_the_internet_and_documentation_are_public() {
        for address in [
            "1.1.1.1",
            "203.0.113.80",
            "192.0.2.1",
            "198.51.100.9",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:db8::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:4860:4860::8888",
        ] {
            assert_eq!(of(address), Reach::Public, "{address}");
        }
    }

    #[test]
    fn private_addresses_are_private_in_every_disguise() {
        for address in [
            "127.0.0.1",
            "127.255.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "::1",
            "fc00::1",
            "fd12::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "::ffff:0:10.0.0.1",
            "64:ff9b::192.168.0.1",
            "2002:a00:1::1",
            "2001:0:a00:1:0:0:fefe:fefe",
            "2001:0:101:101:0:0:f5ff:fffe",
            "2606::5efe:10.0.0.1",
            "2606::200:5efe:127.0.0.1",
        ] {
            assert_eq!(of(address), Reach::Private, "{address}");
        }
    }

    #[test]
    fn metadata_benchmarks_and_groups_are_for_nobody() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "100::1",
            "2002:a9fe:a9fe::1",
            "::ffff:0.0.0.0",
            "5f00::1",
            "4000::1",
        ] {
            assert_eq!(of(address), Reach::Never, "{address}");
        }
    }
}
