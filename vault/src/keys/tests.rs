//! Claims about key pairs, vault keys and grants.

use super::*;
use crate::testing::{flipped_and_cut, member, mesh};

/// Points of small order (RFC 7748 §6.1 asks to refuse them): whatever is sealed to them, anybody opens.
const WEAK: [&str; 3] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
];

fn weak(hex: &str) -> BoxPublic {
    BoxPublic::parse(hex).unwrap()
}

#[test]
fn a_public_key_is_that_of_rfc_7748_section_6_1() {
    let mut private = [0; 32];
    let alice = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    hex::decode_to_slice(alice, &mut private).unwrap();
    let public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    assert_eq!(BoxKey::from_bytes(&private).public().as_str(), public);
}

#[test]
fn a_members_box_key_follows_from_the_seed_and_is_not_the_signing_key() {
    let one = BoxKey::of_member(&[1; 32]);
    assert_eq!(one.public(), BoxKey::of_member(&[1; 32]).public());
    assert_ne!(one.public(), BoxKey::of_member(&[2; 32]).public());
    assert_ne!(one.public(), BoxKey::from_bytes(&[1; 32]).public());
    assert_ne!(one.public().as_str(), member(1).public().as_str());
}

#[test]
fn ids_are_the_beginning_of_the_sha_256_of_the_bytes() {
    let public = weak(WEAK[0]);
    // sha256 of 32 zero bytes.
    assert_eq!(key_id(&public).as_str(), "66687aadf862bd77");
    assert_eq!(runner_id(&public).as_str(), "66687aadf862bd776c8fc18b8e9f8e20");
}

#[test]
fn a_vault_key_counts_only_with_the_owners_signature_for_this_mesh() {
    let (owner, mesh_a) = (member(1), mesh('A'));
    let key = certify(&owner, &mesh_a, 1, &BoxKey::generate().public(), 7);
    check_key(owner.public(), &mesh_a, &key).expect("the owner's own");
    assert_eq!(check_key(member(2).public(), &mesh_a, &key), Err(Refused::Signature));
    assert_eq!(check_key(owner.public(), &mesh('B'), &key), Err(Refused::Signature));
    assert_eq!(
        check_key(owner.public(), &mesh_a, &VaultKey { number: 2, ..key.clone() }),
        Err(Refused::Signature)
    );
    assert_eq!(
        check_key(owner.public(), &mesh_a, &VaultKey { created_ms: 8, ..key.clone() }),
        Err(Refused::Signature)
    );
    let other = BoxKey::generate().public();
    let swapped = VaultKey { kid: key_id(&other), public: other.clone(), ..key.clone() };
    assert_eq!(check_key(owner.public(), &mesh_a, &swapped), Err(Refused::Signature));
    let named = VaultKey { public: other, ..key.clone() };
    assert!(matches!(check_key(owner.public(), &mesh_a, &named), Err(Refused::Form(_))));
    for signature in flipped_and_cut(&key.signature).chain([key.signature.to_uppercase()]) {
        let changed = VaultKey { signature, ..key.clone() };
        assert_eq!(check_key(owner.public(), &mesh_a, &changed), Err(Refused::Signature));
    }
}

#[test]
fn a_vault_key_below_one_or_of_small_order_is_refused_even_when_signed() {
    let (owner, mesh) = (member(1), mesh('A'));
    let zero = certify(&owner, &mesh, 0, &BoxKey::generate().public(), 7);
    assert!(matches!(check_key(owner.public(), &mesh, &zero), Err(Refused::Form(_))));
    for hex in WEAK {
        let key = certify(&owner, &mesh, 1, &weak(hex), 7);
        assert!(matches!(check_key(owner.public(), &mesh, &key), Err(Refused::Form(_))), "{hex}");
        assert!(matches!(grant(&owner, &mesh, &BoxKey::generate(), &weak(hex)), Err(Refused::Form(_))));
    }
}

#[test]
fn a_grant_opens_for_its_runner_in_its_mesh_and_nowhere_else() {
    let (owner, runner, key) = (member(1), BoxKey::generate(), BoxKey::generate());
    let mesh_a = mesh('A');
    let granted = grant(&owner, &mesh_a, &key, &runner.public()).unwrap();
    let got = accept(&runner, &mesh_a, &granted).expect("its own grant");
    assert_eq!(*got.to_bytes(), *key.to_bytes());
    assert_eq!(accept(&runner, &mesh('B'), &granted).err(), Some(Refused::Signature));
    assert!(matches!(accept(&BoxKey::generate(), &mesh_a, &granted), Err(Refused::Form(_))));
    let forged = Grant { signer: member(2).public().clone(), ..granted };
    assert_eq!(accept(&runner, &mesh_a, &forged).err(), Some(Refused::Signature));
}

#[test]
fn a_grant_that_was_changed_and_signed_again_does_not_open() {
    let (owner, runner, key) = (member(1), BoxKey::generate(), BoxKey::generate());
    let mesh_a = mesh('A');
    let sign_again = |by: &crate::testing::Member, mut grant: Grant| {
        grant.signer = by.public().clone();
        grant.signature = by.sign(&grant_statement(&mesh_a, &grant));
        grant
    };
    let granted = grant(&owner, &mesh_a, &key, &runner.public()).unwrap();
    // Somebody else takes the owner's ciphertext as their own grant.
    let taken = sign_again(&member(2), granted.clone());
    assert_eq!(accept(&runner, &mesh_a, &taken).err(), Some(Refused::Damaged));
    let kid = key_id(&BoxKey::generate().public());
    let renamed = sign_again(&owner, Grant { kid, ..granted.clone() });
    assert_eq!(accept(&runner, &mesh_a, &renamed).err(), Some(Refused::Damaged));
    for sealed in flipped_and_cut(&granted.sealed) {
        let changed = sign_again(&owner, Grant { sealed, ..granted.clone() });
        assert_eq!(accept(&runner, &mesh_a, &changed).err(), Some(Refused::Damaged));
    }
}

#[test]
fn a_grant_of_another_key_than_it_names_is_damaged() {
    let (owner, runner, key, mesh) = (member(1), BoxKey::generate(), BoxKey::generate(), mesh('A'));
    let mut lie = grant(&owner, &mesh, &key, &runner.public()).unwrap();
    lie.kid = key_id(&BoxKey::generate().public());
    lie.sealed = seal_to(&runner.public(), GRANT_PURPOSE, &grant_frame(&mesh, &lie), &key.0).unwrap();
    lie.signature = owner.sign(&grant_statement(&mesh, &lie));
    assert_eq!(accept(&runner, &mesh, &lie).err(), Some(Refused::Damaged));
}

#[test]
fn the_owners_copy_opens_for_the_owner_as_that_key_only() {
    let (owner, key, mesh_a) = (BoxKey::of_member(&[1; 32]), BoxKey::generate(), mesh('A'));
    let copy = keep_copy(&owner.public(), &mesh_a, &key);
    let got = open_copy(&owner, &mesh_a, &key.public(), &copy).expect("the owner's");
    assert_eq!(*got.to_bytes(), *key.to_bytes());
    let other = BoxKey::generate();
    assert_eq!(open_copy(&other, &mesh_a, &key.public(), &copy).err(), Some(Refused::Damaged));
    assert_eq!(open_copy(&owner, &mesh('B'), &key.public(), &copy).err(), Some(Refused::Damaged));
    assert_eq!(open_copy(&owner, &mesh_a, &other.public(), &copy).err(), Some(Refused::Damaged));
    for changed in flipped_and_cut(&copy) {
        assert_eq!(open_copy(&owner, &mesh_a, &key.public(), &changed).err(), Some(Refused::Damaged));
    }
}

#[test]
fn a_private_key_shows_nothing() {
    let key = BoxKey::from_bytes(&[0x2a; 32]);
    assert_eq!(format!("{key:?}"), "[box key]");
    assert_eq!(format!("{:#?}", Some(&key)), "Some(\n    [box key],\n)");
}
