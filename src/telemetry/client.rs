//! The HTTP client for receivers other than the cluster: a collector of traces, the sink of notifications. It trusts
//! the certificate authorities of the system (or of `SSL_CERT_FILE`), follows no redirect and uses no proxy. Knows
//! nothing of what is sent.

use std::io;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::BoxError;

/// A client with its pool of connections.
pub(crate) struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpClient {
    /// # Errors
    /// The system has no certificate authorities.
    pub(crate) fn new() -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(tokio_rustls::rustls::crypto::ring::default_provider())?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(HttpClient(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request and returns its response as soon as the head is there. Its body may be long or slow: the caller
    /// limits what it reads, and the time.
    ///
    /// # Errors
    /// There is no connection or no response.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Incoming>, BoxError> {
        Ok(self.0.request(request.map(Full::new)).await?)
    }
}
