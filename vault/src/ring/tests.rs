//! Claims about roots and mesh keys.

use super::*;
use crate::testing::mesh;

const CONTEXT: &[&str] = &["mesh", "service", "3"];

fn root(byte: u8) -> AtRestKey {
    AtRestKey::from_hex(&hex::encode([byte; 32])).unwrap()
}

fn ring(roots: &[u8]) -> KeyRing {
    KeyRing::new(roots.iter().copied().map(root).collect()).unwrap()
}

#[test]
fn a_ring_without_a_root_is_refused() {
    assert_eq!(KeyRing::new(Vec::new()).err(), Some(RingError::Empty));
}

#[test]
fn a_mesh_key_comes_back_and_opens_what_it_sealed() {
    let ring = ring(&[1]);
    let (key, wrapped) = ring.new_mesh_key(&mesh('A'));
    let record = key.seal(CONTEXT, b"value");
    let again = ring.unwrap_mesh_key(&mesh('A'), &wrapped).unwrap();
    assert_eq!(again.id(), key.id());
    assert_eq!(**again.open(CONTEXT, &record).unwrap(), *b"value");
    assert_ne!(ring.new_mesh_key(&mesh('A')).0.id(), key.id());
}

#[test]
fn a_root_does_not_open_a_record_of_a_mesh_and_a_mesh_key_is_no_record() {
    let ring = ring(&[1]);
    let (key, wrapped) = ring.new_mesh_key(&mesh('A'));
    let record = key.seal(CONTEXT, b"value");
    assert_eq!(ring.open(CONTEXT, &record).err(), Some(OpenError::WrongKey(key.id().to_owned())));
    assert_eq!(ring.open(CONTEXT, &wrapped).err(), Some(OpenError::Damaged));
    let of_root = ring.seal(CONTEXT, &[7; 32]);
    assert_eq!(ring.unwrap_mesh_key(&mesh('A'), &of_root).err(), Some(RingError::Damaged));
}

#[test]
fn a_mesh_key_is_no_key_of_another_mesh_and_not_a_byte_of_it_may_change() {
    let ring = ring(&[1]);
    let (_, wrapped) = ring.new_mesh_key(&mesh('A'));
    assert_eq!(ring.unwrap_mesh_key(&mesh('B'), &wrapped).err(), Some(RingError::Damaged));
    for text in crate::testing::flipped_and_cut(wrapped.as_str()) {
        let changed = Sealed::from_stored(text.clone());
        assert!(ring.unwrap_mesh_key(&mesh('A'), &changed).is_err(), "{text}");
        assert!(ring.rewrap(&mesh('A'), &changed).is_err(), "{text}");
    }
}

#[test]
fn with_two_roots_old_records_open_and_new_ones_are_of_the_first() {
    let before = ring(&[1]);
    let (key, wrapped) = before.new_mesh_key(&mesh('A'));
    let record = before.seal(CONTEXT, b"value");

    let both = ring(&[2, 1]);
    assert_eq!(**both.open(CONTEXT, &record).unwrap(), *b"value");
    assert_eq!(both.unwrap_mesh_key(&mesh('A'), &wrapped).unwrap().id(), key.id());
    assert_eq!(both.active(), root(2).id());
    assert_eq!(both.seal(CONTEXT, b"").key_id(), Some(root(2).id()));
    assert_eq!(both.new_mesh_key(&mesh('A')).1.key_id(), Some(root(2).id()));
}

#[test]
fn after_a_rewrap_the_old_root_is_not_needed_and_before_it_its_absence_has_a_name() {
    let (key, wrapped) = ring(&[1]).new_mesh_key(&mesh('A'));
    let early = ring(&[2]).unwrap_mesh_key(&mesh('A'), &wrapped).err();
    assert_eq!(early, Some(RingError::MissingRoot(root(1).id().to_owned())));

    let rewrapped = ring(&[2, 1]).rewrap(&mesh('A'), &wrapped).unwrap().expect("it was the old root's");
    let later = ring(&[2]);
    assert_eq!(*later.unwrap_mesh_key(&mesh('A'), &rewrapped).unwrap().to_hex(), *key.to_hex());
    assert_eq!(later.rewrap(&mesh('A'), &rewrapped).unwrap(), None);
}

#[test]
fn a_damaged_record_of_an_older_root_is_damaged_and_not_of_a_missing_key() {
    let record = ring(&[1]).seal(CONTEXT, b"value");
    let cut = Sealed::from_stored(record.as_str()[..record.as_str().len() - 1].to_owned());
    assert_eq!(ring(&[2, 1]).open(CONTEXT, &cut).err(), Some(OpenError::Damaged));
}

#[test]
fn a_ring_shows_no_key() {
    assert_eq!(format!("{:?}", ring(&[1, 2])), "KeyRing { active: [at-rest key], older: [[at-rest key]] }");
}
