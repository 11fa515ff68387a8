//! Claims about entries.

use super::*;
use crate::testing::{Member, flipped_and_cut, member, mesh, name};

const PLAIN: &[u8] = b"ghp_0123456789";

fn sealed_as(owner: &Member, kind: EntryKind, key: &BoxKey, plain: &[u8]) -> VaultEntry {
    let new = NewEntry { mesh: &mesh('A'), key: &name("token"), version: 3, created_ms: 1_700_000_000_000 };
    seal(owner, &new, kind, &key.public(), plain)
}

fn sealed(owner: &Member, key: &BoxKey) -> VaultEntry {
    sealed_as(owner, EntryKind::Env, key, PLAIN)
}

fn signed_again(owner: &Member, mut entry: VaultEntry) -> VaultEntry {
    entry.owner = owner.public().clone();
    entry.signature = owner.sign(&entry_statement(&mesh('A'), &entry));
    entry
}

#[test]
fn what_was_sealed_opens_at_every_size() {
    let (owner, key) = (member(1), BoxKey::generate());
    for size in [0, 1, 15, 16, 17, 1024, MAX_ENV_VALUE, MAX_FILE_VALUE] {
        let plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let entry = sealed_as(&owner, EntryKind::File, &key, &plain);
        check(&mesh('A'), &entry).expect("checks");
        assert_eq!(*open(&key, &mesh('A'), &entry).expect("opens"), plain, "{size} bytes");
    }
}

#[test]
fn an_entry_survives_json() {
    let (owner, key) = (member(1), BoxKey::generate());
    let new = NewEntry { mesh: &mesh('A'), key: &name("token"), version: 4, created_ms: -1 };
    for entry in [sealed(&owner, &key), gone(&owner, &new)] {
        let back: VaultEntry = serde_json::from_str(&serde_json::to_string(&entry).unwrap()).unwrap();
        assert_eq!(back, entry);
        check(&mesh('A'), &back).unwrap();
    }
}

#[test]
fn nothing_of_a_value_is_in_its_entry_and_two_seals_differ() {
    let (owner, key) = (member(1), BoxKey::generate());
    let (one, two) = (sealed(&owner, &key), sealed(&owner, &key));
    assert!(!format!("{one:?}").contains("ghp_") && !serde_json::to_string(&one).unwrap().contains("ghp_"));
    assert_ne!(one.content, two.content);
    assert_ne!(one.wrap, two.wrap);
}

#[test]
fn a_value_that_is_too_long_or_none_of_its_kind_neither_checks_nor_opens() {
    let (owner, key) = (member(1), BoxKey::generate());
    let long = vec![b'x'; MAX_FILE_VALUE + 1];
    for (kind, plain) in [
        (EntryKind::Env, &long[..=MAX_ENV_VALUE]),
        (EntryKind::File, &long[..]),
        (EntryKind::Env, b"a\0b"),
        (EntryKind::Env, b"\xff\xfe"),
        (EntryKind::Gone, b""),
    ] {
        assert!(matches!(check_value(kind, plain), Err(Refused::Form(_))), "{kind:?}");
        let entry = sealed_as(&owner, kind, &key, plain);
        assert!(matches!(open(&key, &mesh('A'), &entry), Err(Refused::Form(_))), "{kind:?}");
        let is_short = plain.len() < 100 && kind != EntryKind::Gone;
        assert_eq!(check(&mesh('A'), &entry).is_ok(), is_short, "{kind:?}");
    }
    for (kind, plain) in [
        (EntryKind::Env, &long[..MAX_ENV_VALUE]),
        (EntryKind::File, &long[1..]),
        (EntryKind::File, b"\0\xff"),
    ] {
        assert_eq!(check_value(kind, plain), Ok(()));
    }
}

#[test]
fn every_changed_and_every_missing_character_is_noticed() {
    let (owner, key) = (member(1), BoxKey::generate());
    let (entry, here) = (sealed(&owner, &key), mesh('A'));
    for content in flipped_and_cut(&entry.content) {
        let changed = VaultEntry { content, ..entry.clone() };
        assert!(check(&here, &changed).is_err());
        assert_eq!(open(&key, &here, &changed).err(), Some(Refused::Damaged));
        // An owner who signs what they did not seal: the wrap belongs to another content.
        assert_eq!(open(&key, &here, &signed_again(&owner, changed)).err(), Some(Refused::Damaged));
    }
    let wrap = entry.wrap.as_ref().unwrap();
    for sealed in flipped_and_cut(&wrap.sealed) {
        let changed = VaultEntry { wrap: Some(Wrap { sealed, ..wrap.clone() }), ..entry.clone() };
        assert_eq!(open(&key, &here, &changed).err(), Some(Refused::Damaged));
    }
    for signature in flipped_and_cut(&entry.signature).chain([entry.signature.to_uppercase()]) {
        let changed = VaultEntry { signature, ..entry.clone() };
        assert_eq!(check(&here, &changed), Err(Refused::Signature));
    }
}

#[test]
fn every_changed_byte_under_the_text_form_is_damage() {
    let (owner, key) = (member(1), BoxKey::generate());
    let entry = sealed(&owner, &key);
    let content = from_base64(&entry.content).unwrap();
    for at in 0..content.len() {
        let mut bytes = content.clone();
        bytes[at] ^= 0x80;
        let changed = signed_again(&owner, VaultEntry { content: to_base64(&bytes), ..entry.clone() });
        check(&mesh('A'), &changed).expect("well signed");
        assert_eq!(open(&key, &mesh('A'), &changed).err(), Some(Refused::Damaged), "byte {at}");
    }
}

/// What an attacker who can have anything signed, but has no key, may try.
#[test]
fn an_entry_opens_nowhere_but_where_it_was_sealed_for() {
    let (owner, key, here) = (member(1), BoxKey::generate(), mesh('A'));
    let entry = sealed(&owner, &key);
    let other = sealed(&owner, &key);
    let mut moved = vec![
        VaultEntry { owner: member(2).public().clone(), ..entry.clone() },
        VaultEntry { key: name("token2"), ..entry.clone() },
        VaultEntry { version: 4, ..entry.clone() },
        VaultEntry { version: 2, ..entry.clone() },
        VaultEntry { kind: EntryKind::File, ..entry.clone() },
        VaultEntry { created_ms: 0, ..entry.clone() },
    ];
    for changed in &moved {
        assert_eq!(check(&here, changed), Err(Refused::Signature), "{changed:?}");
    }
    assert_eq!(check(&mesh('B'), &entry), Err(Refused::Signature));
    assert_eq!(open(&key, &mesh('B'), &entry).err(), Some(Refused::Damaged));
    moved.push(VaultEntry { wrap: other.wrap.clone(), ..entry.clone() });
    moved.push(VaultEntry { content: other.content.clone(), ..entry.clone() });
    moved.push(signed_again(&member(2), entry.clone()));
    for changed in moved {
        assert_eq!(open(&key, &here, &changed).err(), Some(Refused::Damaged), "{changed:?}");
    }
    // A wrap of another key says so, also when its id is a lie.
    let stranger = BoxKey::generate();
    let kid = key_id(&key.public());
    assert_eq!(open(&stranger, &here, &entry).err(), Some(Refused::OtherKey(kid)));
    let lie = Wrap { kid: key_id(&stranger.public()), ..entry.wrap.clone().unwrap() };
    let renamed = VaultEntry { wrap: Some(lie), ..entry };
    assert_eq!(open(&stranger, &here, &renamed).err(), Some(Refused::Damaged));
}

#[test]
fn an_entry_has_the_form_of_its_kind() {
    let (owner, key, here) = (member(1), BoxKey::generate(), mesh('A'));
    let entry = sealed(&owner, &key);
    let new = NewEntry { mesh: &here, key: &name("token"), version: 4, created_ms: 5 };
    let removed = gone(&owner, &new);
    check(&here, &removed).expect("a removal checks");
    assert_eq!(open(&key, &here, &removed).err(), Some(Refused::Damaged));
    assert_eq!(wrap_of(&removed), None);
    let wrap = |sealed: &str| Some(Wrap { sealed: sealed.to_owned(), ..entry.wrap.clone().unwrap() });
    for odd in [
        VaultEntry { version: 0, ..entry.clone() },
        VaultEntry { version: -3, ..entry.clone() },
        VaultEntry { wrap: None, ..entry.clone() },
        VaultEntry { content: String::new(), ..entry.clone() },
        VaultEntry { content: to_base64(&[0; 15]), ..entry.clone() },
        VaultEntry { content: format!("{}\n", entry.content), ..entry.clone() },
        VaultEntry { wrap: wrap(""), ..entry.clone() },
        VaultEntry { wrap: wrap(&to_base64(&[0; 79])), ..entry.clone() },
        VaultEntry { wrap: wrap(&to_base64(&[0; 81])), ..entry.clone() },
        VaultEntry { content: entry.content.clone(), ..removed.clone() },
        VaultEntry { wrap: entry.wrap.clone(), ..removed.clone() },
    ] {
        let odd = signed_again(&owner, odd);
        assert!(matches!(check(&here, &odd), Err(Refused::Form(_) | Refused::Damaged)), "{odd:?}");
    }
}

#[test]
fn a_rotation_changes_the_wrap_and_nothing_else() {
    let (owner, old, new, here) = (member(1), BoxKey::generate(), BoxKey::generate(), mesh('A'));
    let entry = sealed(&owner, &old);
    let of = wrap_of(&entry).unwrap();
    let wrap = rewrap(&old, &new.public(), &here, &of).unwrap();
    assert_eq!(wrap.kid, key_id(&new.public()));
    let rotated = VaultEntry { wrap: Some(wrap.clone()), ..entry.clone() };
    check(&here, &rotated).expect("the owner's signature stands");
    assert_eq!(**open(&new, &here, &rotated).unwrap(), *PLAIN);
    assert_eq!(open(&old, &here, &rotated).err(), Some(Refused::OtherKey(wrap.kid)));
    // Again, to a third one: a rewrapped entry is like any other.
    let third = BoxKey::generate();
    let wrap = rewrap(&new, &third.public(), &here, &wrap_of(&rotated).unwrap()).unwrap();
    let rotated = VaultEntry { wrap: Some(wrap), ..rotated };
    assert_eq!(**open(&third, &here, &rotated).unwrap(), *PLAIN);
}

#[test]
fn a_rotation_gives_no_wrap_for_another_place() {
    let (owner, old, new, here) = (member(1), BoxKey::generate(), BoxKey::generate(), mesh('A'));
    let of = wrap_of(&sealed(&owner, &old)).unwrap();
    let to = new.public();
    for moved in [
        WrapOf { owner: member(2).public().clone(), ..of.clone() },
        WrapOf { key: name("other"), ..of.clone() },
        WrapOf { version: 4, ..of.clone() },
        WrapOf { kind: EntryKind::File, ..of.clone() },
        WrapOf { created_ms: 0, ..of.clone() },
        WrapOf { content_sha256: sha256_hex(b"another"), ..of.clone() },
    ] {
        assert_eq!(rewrap(&old, &to, &here, &moved).err(), Some(Refused::Damaged), "{moved:?}");
    }
    assert_eq!(rewrap(&old, &to, &mesh('B'), &of).err(), Some(Refused::Damaged));
    let kid = key_id(&old.public());
    assert_eq!(rewrap(&new, &to, &here, &of).err(), Some(Refused::OtherKey(kid)));
}
