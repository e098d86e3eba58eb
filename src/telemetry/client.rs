//! The HTTP client for receivers other than the cluster: a collector of traces, the sink of notifications. It trusts the
//! certificate authorities of the system (or of `SSL_CERT_FILE`), follows no redirect and uses no proxy. Knows nothing of
//! what is sent.

use std::io;

use http::{Request, Response, response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::BoxError;

/// Maximum length of a response that is read.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

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

    /// Sends a request and reads its response. The caller limits the time.
    ///
    /// # Errors
    /// There is no connection, no response, or one that is too long.
    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        let (head, body) = self.exchange(request).await?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    /// Sends a request and returns the head of its response as soon as it is there. The body is not read, so its length and
    /// its speed do not matter. The caller limits the time.
    ///
    /// # Errors
    /// There is no connection or no response.
    pub(crate) async fn send_for_head(
        &self,
        request: Request<Bytes>,
    ) -> Result<response::Parts, BoxError> {
        Ok(self.exchange(request).await?.into_parts().0)
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Incoming>, BoxError> {
        Ok(self.0.request(request.map(Full::new)).await?)
    }
}
