//! The server certificate that a health check accepts.
//!
//! On this machine's own addresses any is accepted: the certificate is for the name that other clients use,
//! and nothing is sent or read but the health. Everywhere else a file names it: its authority, which has to
//! verify the server's name, or the server's certificate itself.

use std::{path::Path, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{
    config::reload,
    contract::error::{ActionError, Code},
    http::tls::{certificates, roots},
};

#[derive(Debug)]
struct PinnedVerifier {
    /// The accepted certificates and authorities; `None` accepts any.
    known: Option<(Vec<CertificateDer<'static>>, Arc<WebPkiServerVerifier>)>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A client for servers that have a certificate in this file, or of an authority in it; without a file for any
/// server.
///
/// # Errors
/// [`Code::Configuration`] if there is no certificate in the file.
pub(crate) fn client(file: Option<&Path>) -> Result<ClientConfig, ActionError> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let known = match file {
        Some(path) => {
            let file = reload::read_one(path, "certificate")?;
            let known = certificates(&file)?;
            let roots = roots(known.clone(), &file)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
            Some((known, verifier.build().map_err(bug)?))
        }
        None => None,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(bug)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { known, algorithms }))
        .with_no_client_auth();
    Ok(config)
}

fn bug(error: impl std::fmt::Display) -> ActionError {
    ActionError::new(Code::Internal, error.to_string())
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.known {
            Some((known, authorities)) if !known.contains(leaf) => {
                authorities.verify_server_cert(leaf, intermediates, name, ocsp, now)
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
