//! Secrets that a service can use and never holds: the way out puts them into the headers of its requests.
//!
//! Here: [`Injection`] (what one jail's way out knows), the making of placeholders, the roots of trust on both sides.
//! Not here: opening secrets, and the files in the jail (the runner).
//!
//! ```text
//! jail ── TLS, certificate of the cell's own CA ──► authority ─► session ─► swap: placeholder → value ──► TLS ── the real host
//!      ◄───────────────────────────────────────────── mask: value → placeholder ◄────────────────────────────┘
//! ```
//!
//! Invariants: a value goes into a header that carries credentials, over TLS, to a host that a rule covers and whose
//! certificate was checked; nowhere else. A value that comes back in an answer does not reach the jail. The key of the CA
//! is in this process's memory only, and dies with the cell.

mod authority;
mod mask;
mod session;
mod stream;
mod swap;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use wire::EgressRule;
use zeroize::Zeroizing;

use authority::Authority;
use mask::Mask;
pub(crate) use session::run;
use swap::Swap;

/// A header has to hold it, among others.
pub const MAX_VALUE: usize = 8 << 10;
/// Secrets that begin alike could not be told from other text.
const MARK: &str = "cmsec-";
const RANDOM: usize = 32;
/// The only protocol that is spoken on both sides.
const HTTP_1: &[u8] = b"http/1.1";
/// No secret is put into a connection that nobody encrypts, whatever a rule says.
const PLAIN_PORT: u16 = 80;

/// Why there is no injection. Names a value by its place, and never shows it.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error("it is longer than {MAX_VALUE} bytes, so it fits no header")]
    TooLong(usize),
    #[error("it is empty, or holds a character that no header can hold")]
    NotForHeaders(usize),
    #[error("no certificate authority could be made: {0}")]
    Authority(#[from] rcgen::Error),
    #[error("TLS can't be spoken: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the certificates in {0} can't be read")]
    ExtraCa(String),
    #[error("this machine trusts no certificate authority, so no host can be checked")]
    NoRoots,
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// The values of one jail, the hosts that may get them, and the authority that the jail trusts. Made anew for each cell.
pub struct Injection {
    rules: Vec<EgressRule>,
    swap: Swap,
    mask: Arc<Mask>,
    authority: Authority,
    /// How the real hosts are spoken to.
    outward: Arc<ClientConfig>,
    bundle: String,
}

impl fmt::Debug for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injection").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Injection {
    /// Reads the machine's certificates, so it blocks. `extra_ca`: a PEM file of further authorities for the real hosts.
    ///
    /// # Errors
    /// [`InjectError`].
    pub fn new(
        rules: Vec<EgressRule>,
        values: Vec<Zeroizing<Vec<u8>>>,
        extra_ca: Option<&Path>,
    ) -> Result<Self, InjectError> {
        for (at, value) in values.iter().enumerate() {
            if value.len() > MAX_VALUE {
                return Err(InjectError::TooLong(at));
            }
            if !is_for_headers(value) {
                return Err(InjectError::NotForHeaders(at));
            }
        }
        let system = rustls_native_certs::load_native_certs().certs;
        let extra = extra_ca.map(read_certificates).transpose()?.unwrap_or_default();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system.iter().chain(&extra).cloned());
        if roots.is_empty() {
            return Err(InjectError::NoRoots);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut outward = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        outward.alpn_protocols = vec![HTTP_1.to_vec()];
        let authority = Authority::new(&rules)?;
        let bundle = system.iter().map(|der| pem(der)).chain([authority.pem().to_owned()]).collect();
        let placed = values.into_iter().map(|value| Ok((placeholder()?, value)));
        let placed = placed.collect::<Result<Vec<_>, InjectError>>()?;
        let mask = Arc::new(Mask::new(&placed));
        Ok(Self { rules, swap: Swap::new(placed), mask, authority, outward: Arc::new(outward), bundle })
    }

    /// What the service holds in place of the values, in their order.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.swap.placeholders()
    }

    /// The certificate that the jail has to trust.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The same with all that this machine trusts, for programs that take one file of all.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle
    }

    pub(crate) fn covers(&self, host: &str, port: u16) -> bool {
        port != PLAIN_PORT && self.rules.iter().any(|rule| rule.covers(host, port))
    }
}

/// Visible ASCII, and spaces inside. Others have no sure meaning in a header (RFC 9110 §5.5).
fn is_for_headers(value: &[u8]) -> bool {
    let is_ended = |end: Option<&u8>| end.is_some_and(u8::is_ascii_graphic);
    is_ended(value.first()) && is_ended(value.last()) && value.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, InjectError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    read.ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| InjectError::ExtraCa(path.display().to_string()))
}

fn pem(der: &[u8]) -> String {
    const LINE: usize = 64;
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn placeholder() -> Result<String, InjectError> {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::from(MARK);
    while text.len() < MARK.len() + RANDOM {
        let mut random = [0];
        getrandom::fill(&mut random)?;
        // Four times 62 are 248: what is above would make some digits more likely.
        if random[0] < 248 {
            text.push(char::from(DIGITS[usize::from(random[0] % 62)]));
        }
    }
    Ok(text)
}
