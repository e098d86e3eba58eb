//! TLS: the certificate that is served, reloaded as its files are rotated, and the certificates of clients.
//!
//! TLS 1.3 and 1.2 of rustls, HTTP/1.1 alone: HTTP/2 would cost more, since the limits on slow clients and on
//! many clients are those of a connection with one request at a time. Its streams would each need a timeout for their
//! header, a permit, and a limit on being opened and reset (CVE-2023-44487). For HTTP/2, put a proxy in front.
//!
//! Clients need no certificate, for probes have none. One that is presented must be issued by the clients'
//! authorities, or there is no connection. Sessions are not resumed, so that a certificate is verified with
//! each connection, and with each request again, as kube-apiserver does it: one that has expired, or whose
//! authority is no longer trusted, proves nothing on an old connection either.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, ServerConnection,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
        server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};
use x509_parser::parse_x509_certificate;

use crate::{
    auth::client_cert::CertificateSubject,
    config::{
        TlsFiles,
        reload::{File, FromFiles, Reloading},
    },
    contract::error::{ActionError, Code},
};

/// Maximum time from a connection to the end of the handshake: a few round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of what is encrypted and not yet written, in bytes: that of one record.
const MAX_BUFFERED_BYTES: usize = 16 * 1024;

/// What TLS is served with.
pub(crate) struct Tls {
    server: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    expiries: Vec<(&'static str, i64)>,
}

/// The certificates that a client has presented, its own first; empty if it has none.
pub(crate) type PeerCertificates = Vec<CertificateDer<'static>>;

/// Follows these files.
///
/// # Errors
/// [`Code::Configuration`] if there is no certificate, key or authority in them, or they do not match.
pub(crate) fn follow(files: &TlsFiles) -> Result<Arc<Reloading<Tls>>, ActionError> {
    let TlsFiles { certificate, key, client_ca } = files.clone();
    let paths = [Some(certificate), Some(key), client_ca];
    Reloading::of(paths.into_iter().flatten().collect()).map(Arc::new)
}

impl FromFiles for Tls {
    const NAME: &'static str = "certificate";

    /// The certificate, its key, and if there are any the clients' authorities.
    fn from_files(files: &[File]) -> Result<Self, ActionError> {
        let [certificate, key, authorities @ ..] = files else {
            return Err(ActionError::new(
                Code::Internal,
                "a certificate and its key are two files",
            ));
        };
        let chain = certificates(certificate)?;
        let mut expiries = vec![("server", first_expiry(&chain[..1], certificate)?)];
        let clients = match authorities.first() {
            Some(file) => {
                let authorities = certificates(file)?;
                expiries.push(("client_ca", first_expiry(&authorities, file)?));
                Some(verifier(authorities, file)?)
            }
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ActionError::new(Code::Internal, error.to_string()))?;
        let builder = match clients.clone() {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, private_key(key)?).map_err(|error| {
            wrong(key, &format!("cannot be used with {}: {error}", certificate.path.display()))
        })?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Tls { server: Arc::new(server), clients, expiries })
    }
}

impl Tls {
    /// Agrees on TLS with a client.
    ///
    /// # Errors
    /// Why there is no agreement, or that it takes too long.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, String> {
        let limited = |connection: &mut ServerConnection| {
            connection.set_buffer_limit(Some(MAX_BUFFERED_BYTES));
        };
        let handshake = TlsAcceptor::from(self.server.clone()).accept_with(stream, limited);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(agreed) => agreed.map_err(|error| error.to_string()),
            Err(_) => {
                Err(format!("handshake not complete within {} s", HANDSHAKE_TIMEOUT.as_secs()))
            }
        }
    }

    /// The subject of these certificates, if the clients' authorities verify them now.
    pub(crate) fn subject(
        &self,
        peer_certificates: &PeerCertificates,
    ) -> Option<CertificateSubject> {
        let (leaf, intermediates) = peer_certificates.split_first()?;
        self.clients.as_ref()?.verify_client_cert(leaf, intermediates, UnixTime::now()).ok()?;
        CertificateSubject::of(leaf)
    }

    /// When the server's certificate and the first of the clients' authorities expire, in seconds since
    /// 1970.
    pub(crate) fn expiries(&self) -> &[(&'static str, i64)] {
        &self.expiries
    }
}

/// The certificates that a client has presented.
pub(crate) fn peer_certificates<S>(stream: &TlsStream<S>) -> PeerCertificates {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    certificates.iter().map(|it| it.clone().into_owned()).collect()
}

/// The certificates of a PEM file, at least one. What is wrong with one that cannot be read is not
/// repeated: by mistake the file may hold a key.
pub(crate) fn certificates(file: &File) -> Result<PeerCertificates, ActionError> {
    let read: Result<PeerCertificates, _> =
        CertificateDer::pem_slice_iter(file.text.as_bytes()).collect();
    let read = read.map_err(|_| wrong(file, "is not PEM"))?;
    if read.is_empty() {
        return Err(wrong(file, "contains no PEM certificate"));
    }
    Ok(read)
}

fn private_key(file: &File) -> Result<PrivateKeyDer<'static>, ActionError> {
    PrivateKeyDer::from_pem_slice(file.text.as_bytes())
        .map_err(|_| wrong(file, "contains no unencrypted PEM private key"))
}

/// Trust in these authorities.
pub(crate) fn roots(
    authorities: Vec<CertificateDer<'static>>,
    file: &File,
) -> Result<Arc<RootCertStore>, ActionError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| wrong(file, &error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

fn verifier(
    authorities: Vec<CertificateDer<'static>>,
    file: &File,
) -> Result<Arc<dyn ClientCertVerifier>, ActionError> {
    let provider = Arc::new(ring::default_provider());
    let roots = roots(authorities, file)?;
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(file, &error.to_string()))
}

fn first_expiry(certificates: &[CertificateDer<'static>], file: &File) -> Result<i64, ActionError> {
    let expiry = |it: &CertificateDer<'static>| {
        let (_, certificate) = parse_x509_certificate(it).ok()?;
        Some(certificate.validity().not_after.timestamp())
    };
    let all: Option<Vec<_>> = certificates.iter().map(expiry).collect();
    let first = all.and_then(|all| all.into_iter().min());
    first.ok_or_else(|| wrong(file, "contains an invalid certificate"))
}

fn wrong(file: &File, what: &str) -> ActionError {
    ActionError::new(Code::Configuration, format!("{} {what}", file.path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn file(name: &str, text: &str) -> File {
        File { path: name.into(), text: text.to_owned() }
    }

    /// A self-signed certificate, and its key.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().expect("is made");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("are right");
        params.not_after = date_time_ymd(2100, 1, 1);
        (params.self_signed(&key).expect("is signed").pem(), key.serialize_pem())
    }

    fn refused(files: &[File]) -> String {
        let error = Tls::from_files(files).err().expect("is refused");
        assert_eq!(error.code, Code::Configuration);
        error.detail
    }

    #[test]
    fn a_certificate_and_its_key_are_served_and_their_end_is_known() {
        let (certificate, key) = pair();
        let files = [file("crt", &certificate), file("key", &key), file("ca", &certificate)];
        let tls = Tls::from_files(&files).expect("is right");
        let end = date_time_ymd(2100, 1, 1).unix_timestamp();
        assert_eq!(tls.expiries(), [("server", end), ("client_ca", end)]);
        assert_eq!(tls.subject(&Vec::new()), None);
    }

    #[test]
    fn mismatched_files_are_refused_and_not_repeated() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        let (crt, of_it) = (file("crt", &certificate), file("key", &key));
        assert!(
            refused(&[crt.clone(), file("key", &other)]).starts_with("key cannot be used with crt")
        );
        assert!(
            refused(&[file("crt", &key), of_it.clone()])
                .starts_with("crt contains no PEM certificate")
        );
        assert!(
            refused(&[crt.clone(), file("key", &certificate)])
                .starts_with("key contains no unencrypted")
        );
        assert!(
            refused(&[crt.clone(), of_it.clone(), file("ca", "")]).starts_with("ca contains no")
        );
        let canary = "-----BEGIN canary\n";
        for files in [
            [file("crt", canary), of_it.clone(), crt.clone()],
            [crt.clone(), file("key", canary), crt.clone()],
            [crt, of_it, file("ca", canary)],
        ] {
            assert!(!refused(&files).contains("canary"));
        }
    }
}
