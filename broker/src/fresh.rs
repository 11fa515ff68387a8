//! Fresh ids from the operating system's random numbers.
//!
//! Not here: what an id means (`wire::ids`).

use wire::{MemberId, MeshId};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// 32 letters and digits, each drawn evenly.
pub fn base62_32() -> String {
    let mut text = String::with_capacity(32);
    let mut bytes = [0_u8; 48];
    while text.len() < 32 {
        getrandom::fill(&mut bytes).expect("the operating system has random numbers");
        // 248 is the largest multiple of 62 in a byte: what lies above would favour the first letters.
        let even = bytes.iter().filter(|b| **b < 248);
        text.extend(even.map(|b| char::from(BASE62[usize::from(b % 62)])));
    }
    text.truncate(32);
    text
}

pub fn mesh_id() -> MeshId {
    MeshId::parse(&base62_32()).expect("32 letters and digits are a mesh id")
}

pub fn member_id() -> MemberId {
    MemberId::parse(&base62_32()).expect("32 letters and digits are a member id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_the_right_form() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| base62_32()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| MeshId::parse(id).is_ok()));
    }
}
