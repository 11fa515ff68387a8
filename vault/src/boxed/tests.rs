//! Claims about HPKE as we use it.

use super::*;
use crate::testing::flipped_and_cut;

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// The test vectors of RFC 9180 (the JSON file that its appendix A names): base mode, KEM 0x0020, KDF 0x0001, AEAD 0x0002.
#[test]
fn the_first_message_of_the_vector_of_rfc_9180_for_this_suite_opens() {
    let private = "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d";
    let private: [u8; 32] = bytes(private).try_into().unwrap();
    let public = "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c";
    assert_eq!(hex::encode(public_of(&private)), public);
    let encapped = "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256";
    let ciphertext =
        "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a";
    let sealed = to_base64(&bytes(&format!("{encapped}{ciphertext}")));
    let plain = open(&private, "Ode on a Grecian Urn", b"Count-0", &sealed).expect("opens");
    assert_eq!(**plain, *b"Beauty is truth, truth beauty");
    assert_eq!(open(&private, "Ode on a Grecian Urn", b"Count-1", &sealed), Err(Refused::Damaged));
    assert_eq!(open(&private, "Ode on a Grecian Um", b"Count-0", &sealed), Err(Refused::Damaged));
}

/// RFC 5869, appendix A: the HKDF that member keys and record keys come from.
#[test]
fn hkdf_gives_the_output_of_rfc_5869() {
    let okm = |salt: Option<&str>, ikm: &str, info: &str, len: usize| {
        let mut okm = vec![0; len];
        let salt = salt.map(bytes);
        hkdf::Hkdf::<sha2::Sha256>::new(salt.as_deref(), &bytes(ikm)).expand(&bytes(info), &mut okm).unwrap();
        hex::encode(okm)
    };
    let ikm = "0b".repeat(22);
    assert_eq!(
        okm(Some("000102030405060708090a0b0c"), &ikm, "f0f1f2f3f4f5f6f7f8f9", 42),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    );
    assert_eq!(
        okm(None, &ikm, "", 42),
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    );
    let run = |from: u8, to: u8| hex::encode((from..=to).collect::<Vec<u8>>());
    assert_eq!(
        okm(Some(&run(0x60, 0xaf)), &run(0, 0x4f), &run(0xb0, 0xff), 82),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b\
         8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
    );
}

#[test]
fn every_changed_and_every_missing_character_is_damage() {
    let private = [7; 32];
    let sealed = seal(&public_of(&private), "info", b"aad", b"a content key of thirty-two byte").unwrap();
    assert_eq!(from_base64(&sealed).unwrap().len(), sealed_len(32));
    for changed in flipped_and_cut(&sealed) {
        assert_eq!(open(&private, "info", b"aad", &changed), Err(Refused::Damaged), "{changed}");
    }
    assert_eq!(open(&[8; 32], "info", b"aad", &sealed), Err(Refused::Damaged));
    // An encapsulated key of small order, which decapsulation refuses.
    let weak = to_base64(&[0; 80]);
    assert_eq!(open(&private, "info", b"aad", &weak), Err(Refused::Damaged));
}

#[test]
fn nothing_is_sealed_to_a_point_of_small_order() {
    assert!(matches!(seal(&[0; 32], "info", b"", b"x"), Err(Refused::Form(_))));
}

#[test]
fn two_seals_of_the_same_bytes_differ() {
    let to = public_of(&[7; 32]);
    let one = seal(&to, "info", b"", b"x").unwrap();
    let two = seal(&to, "info", b"", b"x").unwrap();
    assert_ne!(one[..40], two[..40]);
    assert_ne!(one[44..], two[44..]);
}
