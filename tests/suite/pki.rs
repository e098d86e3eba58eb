//! Certificate authorities, and the certificates of the tests' servers and clients.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::program::{Program, scratch};

/// An authority. rustls accepts no CA certificate as a server's own, so the authority issues one.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, in PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// The files of a server's certificate and key.
pub struct Files {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("is made");
        let pem = params.self_signed(&key).expect("is signed").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a server on this machine.
    pub fn server(&self) -> Pair {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("are names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A client certificate for this user and these groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Pair {
        self.issue(client(user, groups))
    }

    /// A client certificate that has just expired.
    pub fn expired_client(&self, user: &str) -> Pair {
        let mut params = client(user, &[]);
        params.not_after = (SystemTime::now() - Duration::from_secs(5)).into();
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().expect("is made");
        let certificate = params.signed_by(&key, &self.issuer).expect("is signed").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A file with the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        let path = scratch("ca.pem");
        self.write(&path);
        path
    }

    /// Writes the authority's own certificate to this file.
    pub fn write(&self, path: &Path) {
        fs::write(path, &self.pem).expect("is written");
    }

    /// A client configuration that trusts this authority and presents this certificate.
    pub fn trusted_by(&self, own: Option<&Pair>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("is PEM");
        roots.add(authority).expect("is an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("are supported")
            .with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("is PEM");
                builder.with_client_auth_cert(vec![pair.der()], key).expect("are a pair")
            }
        })
    }
}

fn client(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Pair {
    /// The certificate in DER, as a client receives it.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("is PEM")
    }

    /// The pair in files.
    pub fn files(&self) -> Files {
        let files = Files { certificate: scratch("tls.crt"), key: scratch("tls.key") };
        fs::write(&files.certificate, &self.certificate).expect("is written");
        fs::write(&files.key, &self.key).expect("is written");
        files
    }
}

impl Files {
    /// Configures the program to serve with these files.
    pub fn apply_to(&self, program: Program) -> Program {
        program
            .env("ACTION_EXECUTOR_TLS_CERTIFICATE", &self.certificate)
            .env("ACTION_EXECUTOR_TLS_KEY", &self.key)
    }
}
