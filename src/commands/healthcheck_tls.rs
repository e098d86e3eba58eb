//! Whose certificate a health check takes for the server's.
//!
//! On this machine's own addresses any is taken: the certificate is for the name by which others call the
//! server, and nothing is told or believed but whether it answers 200. Everywhere else a file has to say
//! which one it may be: an authority, which answers for the server's name, or the server's certificate
//! itself.

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
struct Trust {
    /// The certificates that are the server's own, and the authorities; none: any server.
    known: Option<(Vec<CertificateDer<'static>>, Arc<WebPkiServerVerifier>)>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// How TLS is spoken to a server that has one of the certificates in this file or of its authorities; or
/// without a file to any.
///
/// # Errors
/// [`Code::Configuration`] if there are none in the file.
pub fn client(file: Option<&Path>) -> Result<ClientConfig, ActionError> {
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
        .with_custom_certificate_verifier(Arc::new(Trust { known, algorithms }))
        .with_no_client_auth();
    Ok(config)
}

fn bug(error: impl std::fmt::Display) -> ActionError {
    ActionError::new(Code::Internal, error.to_string())
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.known {
            Some((known, authorities)) if !known.contains(own) => {
                authorities.verify_server_cert(own, between, name, ocsp, now)
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
