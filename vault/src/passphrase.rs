//! A file that opens with a passphrase: for a backup, which a person keeps.
//!
//! `claudemesh-sealed v1 argon2id <KiB> <passes> <salt, hex>` on a line of its own, then an at-rest record
//! ([`crate::AtRestKey`]) under the key that Argon2id (RFC 9106) derives, bound to that line. Not here: asking for the
//! passphrase.

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::{AtRestKey, Sealed};

const FORMAT: &str = "claudemesh-sealed v1 argon2id";
const PURPOSE: &str = "claudemesh/passphrase/v1";
/// RFC 9106 §4, the second recommended choice: 64 MiB, three passes.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
/// What a file may ask of whoever opens it.
const MOST_MEMORY_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 32;

/// Why a file does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    #[error("the file was not sealed by claudemesh, or by a newer one")]
    Format,
    /// One kind on purpose: nobody can tell them apart.
    #[error("the passphrase is another one, or the file is damaged")]
    Passphrase,
}

/// Takes about a tenth of a second and 64 MiB.
pub fn seal(passphrase: &str, plain: &[u8]) -> Vec<u8> {
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).expect("the operating system has random numbers");
    let head = format!("{FORMAT} {MEMORY_KIB} {PASSES} {}", hex::encode(salt));
    let key = derive(passphrase, &salt, MEMORY_KIB, PASSES).expect("our own parameters are within Argon2's");
    let sealed = key.seal(&[PURPOSE, &head], plain);
    format!("{head}\n{}\n", sealed.as_str()).into_bytes()
}

/// # Errors
/// [`Unopened`].
pub fn open(passphrase: &str, file: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
    let text = std::str::from_utf8(file).map_err(|_| Unopened::Format)?;
    let (head, record) = text.split_once('\n').ok_or(Unopened::Format)?;
    let (memory, passes, salt) = parse(head).ok_or(Unopened::Format)?;
    let key = derive(passphrase, &salt, memory, passes).ok_or(Unopened::Format)?;
    let record = Sealed::from_stored(record.trim_end().to_owned());
    key.open(&[PURPOSE, head], &record).map_err(|_| Unopened::Passphrase)
}

fn parse(head: &str) -> Option<(u32, u32, [u8; 16])> {
    let mut words = head.strip_prefix(FORMAT)?.strip_prefix(' ')?.split(' ');
    let memory: u32 = words.next()?.parse().ok()?;
    let passes: u32 = words.next()?.parse().ok()?;
    let mut salt = [0_u8; 16];
    hex::decode_to_slice(words.next()?, &mut salt).ok()?;
    let is_fair = memory <= MOST_MEMORY_KIB && passes <= MOST_PASSES && words.next().is_none();
    is_fair.then_some((memory, passes, salt))
}

fn derive(passphrase: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Option<AtRestKey> {
    let params = Params::new(memory_kib, passes, 1, Some(32)).ok()?;
    let mut root = Zeroizing::new([0_u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, root.as_mut())
        .ok()?;
    Some(AtRestKey::from_root(&root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_opens_with_its_passphrase_only_and_not_when_it_was_changed() {
        let file = seal("correct horse", b"everything");
        assert!(!file.windows(10).any(|part| part == b"everything"));
        assert_eq!(open("correct horse", &file).expect("opens").as_slice(), b"everything");
        assert_eq!(open("correct horsf", &file), Err(Unopened::Passphrase));
        let mut cut = file.clone();
        cut.truncate(file.len() / 2);
        assert_eq!(open("correct horse", &cut), Err(Unopened::Passphrase));
        for bad in [&b""[..], b"hello", b"claudemesh-sealed v1 argon2id 9999999999 3 00\nx", b"\xff\n"] {
            assert_eq!(open("p", bad), Err(Unopened::Format));
        }
        // A salt or a cost that was changed is another key.
        let text = String::from_utf8(file).expect("text");
        let (head, record) = text.split_once('\n').expect("two lines");
        let cheaper = head.replace(" 65536 3 ", " 1024 1 ");
        assert_ne!(cheaper, head);
        assert_eq!(
            open("correct horse", format!("{cheaper}\n{record}").as_bytes()),
            Err(Unopened::Passphrase)
        );
    }
}
