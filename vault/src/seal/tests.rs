//! Claims about the record format.

use super::*;

const CONTEXT: &[&str] = &["mesh", "service", "3"];

fn fixed() -> AtRestKey {
    AtRestKey::from_hex(&"07".repeat(32)).expect("64 hex digits")
}

#[test]
fn what_was_sealed_opens_at_every_size() {
    let key = AtRestKey::generate();
    for size in [0, 1, 15, 16, 17, 1024, 1 << 20] {
        let plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let sealed = key.seal(CONTEXT, &plain);
        assert_eq!(*key.open(CONTEXT, &sealed).expect("opens"), plain, "{size} bytes");
    }
}

#[test]
fn every_changed_byte_of_a_record_is_noticed() {
    let key = fixed();
    let text = key.seal(CONTEXT, b"forty-two bytes would be too many here").0;
    for at in 0..text.len() {
        for bit in 0..7 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let changed = Sealed(String::from_utf8(bytes).expect("seven bits are text"));
            assert!(key.open(CONTEXT, &changed).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn every_changed_byte_under_the_text_form_is_damage() {
    let key = fixed();
    let text = key.seal(CONTEXT, b"secret").0;
    let (head, body) = text.rsplit_once('.').expect("three parts");
    let record = BASE64.decode(body).expect("base64");
    assert_eq!(record.len(), SALT + 6 + TAG);
    for at in 0..record.len() {
        let mut changed = record.clone();
        changed[at] ^= 0x80;
        let sealed = Sealed(format!("{head}.{}", BASE64.encode(changed)));
        assert_eq!(key.open(CONTEXT, &sealed), Err(OpenError::Damaged), "byte {at}");
    }
}

#[test]
fn cut_empty_and_foreign_text_is_damage_without_a_panic() {
    let key = fixed();
    let text = key.seal(CONTEXT, b"secret").0;
    for end in 0..text.len() {
        assert!(key.open(CONTEXT, &Sealed(text[..end].to_owned())).is_err(), "cut at {end}");
    }
    for odd in ["", ".", "..", "v1", "v1..", "v2.00000000.AAAA", "hello", "v1.ZZZZZZZZ.AAAA", "v1.é.AAAA"] {
        assert_eq!(key.open(CONTEXT, &Sealed(odd.to_owned())), Err(OpenError::Damaged), "{odd:?}");
    }
    let longer = Sealed(format!("{text}AAAA"));
    assert_eq!(key.open(CONTEXT, &longer), Err(OpenError::Damaged));
}

#[test]
fn a_record_that_was_moved_does_not_open() {
    let key = fixed();
    let sealed = key.seal(&["ab", "c"], b"secret");
    for elsewhere in [
        &["a", "bc"][..],
        &["abc"],
        &["ab", "c", ""],
        &["", "ab", "c"],
        &["ab"],
        &[],
        &["c", "ab"],
        &["ab\0c"],
        &["AB", "c"],
    ] {
        assert_eq!(key.open(elsewhere, &sealed), Err(OpenError::Damaged), "{elsewhere:?}");
    }
    assert!(key.open(&["ab", "c"], &sealed).is_ok());
}

#[test]
fn another_key_is_named_and_does_not_open() {
    let (ours, theirs) = (fixed(), AtRestKey::generate());
    let sealed = theirs.seal(CONTEXT, b"secret");
    assert_eq!(ours.open(CONTEXT, &sealed), Err(OpenError::WrongKey(theirs.id().to_owned())));
    // A forged key id does not help: the id is part of what is authenticated, and the key differs anyway.
    let forged = Sealed(sealed.0.replace(theirs.id(), ours.id()));
    assert_eq!(ours.open(CONTEXT, &forged), Err(OpenError::Damaged));
}

#[test]
fn two_seals_of_the_same_bytes_differ() {
    let key = fixed();
    assert_ne!(key.seal(CONTEXT, b"secret"), key.seal(CONTEXT, b"secret"));
}

#[test]
fn a_record_of_format_v1_opens_for_ever() {
    let record = Sealed::from_stored(include_str!("v1-record.txt").trim().to_owned());
    let plain = fixed().open(&["M0000000000000000000000000000001", "time", "1"], &record).expect("opens");
    assert_eq!(*plain, br#"{"env":{"API_KEY":"hunter2"}}"#);
}

#[test]
fn a_key_survives_its_text_form_and_bad_text_is_refused() {
    let key = AtRestKey::generate();
    let again = AtRestKey::from_hex(&format!(" {}\n", *key.to_hex())).expect("own text form");
    assert_eq!(again.id(), key.id());
    assert_eq!(*again.open(CONTEXT, &key.seal(CONTEXT, b"x")).expect("same key"), b"x");
    for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64)] {
        assert_eq!(AtRestKey::from_hex(bad).expect_err("refused"), BadKey);
    }
}

#[test]
fn nothing_that_is_printed_helps_to_open_a_record() {
    let key = fixed();
    let sealed = key.seal(CONTEXT, b"hunter2");
    assert_eq!(format!("{key:?} {sealed:?}"), "[at-rest key] [sealed]");
    assert_eq!(key.id().len(), 8);
    assert!(!key.to_hex().contains(key.id()));
}
