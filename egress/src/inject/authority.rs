//! The certificate authority of one cell.
//!
//! Here: its certificate, and a certificate for each host that is asked for. Not here: who may be asked for.
//! Invariant: it can vouch for nobody but the hosts of its rules, even if its key were known (name constraints).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use wire::EgressRule;
use wire::egress::Host;

use super::{HTTP_1, InjectError};

const NAME: &str = "claudemesh injection, this service only";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// An instance may run for long. The CA ends with it anyway.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clients refuse certificates of hosts that live for much more than a year.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Hosts whose certificate is kept, for a day: below a wildcard there is no end of names.
const MAX_KEPT: usize = 64;

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// Of all hosts: it never leaves this process, and neither does that of the issuer.
    leaf_key: KeyPair,
    kept: Mutex<HashMap<String, (Instant, Arc<ServerConfig>)>>,
}

impl Authority {
    pub(super) fn new(rules: &[EgressRule]) -> Result<Self, InjectError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let hosts = rules.iter().map(|rule| match &rule.host {
            Host::Name(name) | Host::Below(name) => name.clone(),
        });
        let hosts: BTreeSet<_> = hosts.collect();
        let permitted_subtrees = hosts.into_iter().map(GeneralSubtree::DnsName).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        (params.not_before, params.not_after) = lives(CA_LIFE);
        let pem = super::pem(params.self_signed(&key)?.der());
        let issuer = Issuer::new(params, key);
        Ok(Self { issuer, pem, leaf_key: KeyPair::generate()?, kept: Mutex::default() })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// To be this host.
    pub(super) fn as_host(&self, host: &str) -> Result<Arc<ServerConfig>, InjectError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = kept.get(host)
            && made.elapsed() < DAY
        {
            return Ok(config.clone());
        }
        let config = Arc::new(self.make(host)?);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(host.to_owned(), (Instant::now(), config.clone()));
        Ok(config)
    }

    fn make(&self, host: &str) -> Result<ServerConfig, InjectError> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        // A common name has 64 characters at most, and counts for nothing where there are alternative names.
        params.distinguished_name = name("claudemesh");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = lives(LEAF_LIFE);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)?;
        config.alpn_protocols = vec![HTTP_1.to_vec()];
        Ok(config)
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// From yesterday on: the clock may be set back a little.
fn lives<T: From<SystemTime>>(life: Duration) -> (T, T) {
    let now = SystemTime::now();
    ((now - DAY).into(), (now + life).into())
}
