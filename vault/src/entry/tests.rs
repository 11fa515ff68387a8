//! Claims about entries.

use super::*;
use crate::testing::{Member, flipped_and_cut, member, mesh, name};

const PLAIN: &[u8] = b"ghp_0123456789";

fn sealed(owner: &Member, key: &BoxKey, plain: &[u8]) -> VaultEntry {
    let new = NewEntry { mesh: &mesh('A'), key: &name("token"), version: 3, created_ms: 1_700_000_000_000 };
    seal(owner, &new, EntryKind::File, &key.public(), plain)
}

#[test]
fn what_was_sealed_opens_at_every_size() {
    let (owner, key) = (member(1), BoxKey::generate());
    for size in [0, 1, 15, 16, 17, 1024, MAX_ENV_VALUE, MAX_FILE_VALUE] {
        let plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let entry = sealed(&owner, &key, &plain);
        check(&mesh('A'), &entry).expect("checks");
        assert_eq!(*open(&key, &mesh('A'), &entry).expect("opens"), plain, "{size} bytes");
    }
}

#[test]
fn an_entry_survives_json() {
    let (owner, key) = (member(1), BoxKey::generate());
    let entry = sealed(&owner, &key, PLAIN);
    let back: VaultEntry = serde_json::from_str(&serde_json::to_string(&entry).unwrap()).unwrap();
    check(&mesh('A'), &back).unwrap();
    assert_eq!(**open(&key, &mesh('A'), &back).unwrap(), *PLAIN);
}
