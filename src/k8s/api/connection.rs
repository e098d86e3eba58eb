//! The connection to the API server: one with HTTP/2, if the server offers it (ALPN), so that calls at the same
//! time share one handshake, and further ones for many watches; else several with HTTP/1.1. Each call gets our
//! credentials. Must not retry: a caller knows which call may be repeated.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Http1Client, connect::Connection},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Config,
    client::{Body, ConfigExt},
};
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};
use tokio_rustls::rustls::{client::Resumption, pki_types::ServerName};
use tower::{BoxError, Service, ServiceExt};
use tracing::{Instrument, Span, field::Empty};

use crate::k8s::api::{credentials::Credentials, dialer::Dialer, kubeconfig};

/// For the TCP connection and the TLS handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how long, a connection with calls is checked: a server that is gone without a word must not
/// hold later calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a cancelled call has waited if its connection is suspected.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of a response, and of all responses, may be in flight: a list crosses a long distance in few round trips.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How many watches may use each connection. The API server allows 100 calls at a time on one connection with HTTP/2,
/// and further ones wait. The first connection has all other calls too.
const MAX_WATCHES: [usize; 4] = [32, 96, 96, 96];

/// No connection could be made, so nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect")]
pub(crate) struct ConnectError(#[source] BoxError);

/// Calls to one API server. Clones share the connection.
#[derive(Clone)]
pub(crate) struct ApiConnection {
    credentials: Credentials,
    dialer: Dialer,
    connector: HttpsConnector<Dialer>,
    http1: HttpsConnector<Dialer>,
    /// Made when they are first used.
    slots: Slots,
}

type Slots = Arc<[Mutex<Slot>; MAX_WATCHES.len()]>;

/// A transport, and the number of the client certificate that its connections were made with.
struct Slot {
    /// None while it is not known what the server supports.
    transport: Option<Transport>,
    certificate: u64,
}

/// In a request's extensions: which connection it uses. It is the first without one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionIndex(usize);

/// Permits for watches. Clones share them.
#[derive(Clone)]
pub(crate) struct WatchPermits(Arc<[Semaphore; MAX_WATCHES.len()]>);

impl WatchPermits {
    pub(crate) fn new() -> Self {
        WatchPermits(Arc::new(MAX_WATCHES.map(Semaphore::new)))
    }

    /// A permit to watch over this connection; none if too many watches run.
    pub(crate) fn try_acquire(&self) -> Option<(ConnectionIndex, SemaphorePermit<'_>)> {
        let mut connections = self.0.iter().enumerate();
        connections.find_map(|(index, it)| Some((ConnectionIndex(index), it.try_acquire().ok()?)))
    }
}

/// What the server supports.
#[derive(Clone)]
enum Transport {
    Http1(Box<Http1>),
    Http2(Http2),
}

type Http1 = Http1Client<HttpsConnector<Dialer>, Body>;

impl Transport {
    fn is_open(&self) -> bool {
        match self {
            Transport::Http1(_) => true,
            Transport::Http2(http2) => !http2.sender.is_closed(),
        }
    }
}

/// One connection, with its number.
#[derive(Clone)]
struct Http2 {
    sender: SendRequest<Body>,
    number: u64,
}

impl ApiConnection {
    /// A connection by this configuration and through this proxy; it is made with the first call.
    ///
    /// # Errors
    /// What in the configuration cannot be used.
    pub(crate) fn new(
        config: &Config,
        proxy_url: Option<&str>,
        credentials: Credentials,
    ) -> Result<Self, String> {
        let mut tls = config.rustls_client_config().map_err(|error| explain(&error))?;
        // A certificate in the kubeconfig takes precedence over that of a plugin.
        if !tls.client_auth_cert_resolver.has_certs()
            && let Some(certificate) = credentials.client_certificate()
        {
            tls.client_auth_cert_resolver = certificate;
            // A resumed session would keep the certificate of the first one.
            tls.resumption = Resumption::disabled();
        }
        let name = config.tls_server_name.clone().map(ServerName::try_from).transpose();
        let name = name.map_err(|_| "`tls-server-name` of the kubeconfig is not a host name")?;
        let dialer = Dialer::new(&config.cluster_url, proxy_url, &tls)?;
        let builder = || {
            let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
            match name.clone() {
                Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
                None => builder,
            }
        };
        let http1 = builder().enable_http1().wrap_connector(dialer.clone());
        // Without TLS there is nothing to negotiate.
        let is_tls = config.cluster_url.scheme_str() == Some("https");
        let slots = MAX_WATCHES.map(|_| {
            let transport = (!is_tls).then(|| Transport::Http1(client(http1.clone())));
            Mutex::new(Slot { transport, certificate: 0 })
        });
        Ok(ApiConnection {
            credentials,
            connector: builder().enable_all_versions().wrap_connector(dialer.clone()),
            dialer,
            http1,
            slots: Arc::new(slots),
        })
    }

    /// Sends one request with our credentials.
    async fn send(self, mut request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        let credential = self.credentials.get().await?;
        if let Some(header) = credential.header.clone() {
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        let credentials = self.credentials.clone();
        let response = self.send_over(credential.certificate, request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            credentials.reject(&credential);
        }
        Ok(response)
    }

    /// Sends one request over a connection that was made with this client certificate.
    async fn send_over(
        self,
        certificate: u64,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, BoxError> {
        // Nothing is sent before there is a connection, however long others take to connect.
        let index = request.extensions().get().map_or(0, |&ConnectionIndex(index)| index);
        let connected = timeout(CONNECT_TIMEOUT, self.transport(index, certificate, request.uri()));
        let late = |_| Err(ConnectError(self.dialer.late()).into());
        let mut http2 = match connected.await.unwrap_or_else(late)? {
            Transport::Http1(http1) => return http1.request(request).await.map_err(BoxError::from),
            Transport::Http2(http2) => http2,
        };
        let mut unanswered = Unanswered {
            slots: Some(self.slots),
            index,
            number: http2.number,
            since: Instant::now(),
        };
        let response = http2.sender.send_request(request).await;
        unanswered.slots = None;
        response.map_err(BoxError::from)
    }

    /// The connection with HTTP/2, or the client for HTTP/1.1 if the server supports only that. Other calls wait
    /// while one connects.
    async fn transport(
        &self,
        index: usize,
        certificate: u64,
        server: &Uri,
    ) -> Result<Transport, BoxError> {
        let mut slot = self.slots[index].lock().await;
        match &slot.transport {
            Some(transport) if slot.certificate == certificate && transport.is_open() => {
                return Ok(transport.clone());
            }
            _ => {}
        }
        let transport = match self.connect(server).await? {
            Some(http2) => Transport::Http2(http2),
            None => Transport::Http1(client(self.http1.clone())),
        };
        *slot = Slot { transport: Some(transport.clone()), certificate };
        Ok(transport)
    }

    async fn connect(&self, server: &Uri) -> Result<Option<Http2>, BoxError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut connector = self.connector.clone();
        let stream = connector.ready().await.map_err(ConnectError)?.call(server.clone()).await;
        let stream = stream.map_err(ConnectError)?;
        if !stream.connected().is_negotiated_h2() {
            return Ok(None);
        }
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream);
        let (sender, connection) = handshake.await.map_err(|it| ConnectError(it.into()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the API server ended");
            }
        });
        Ok(Some(Http2 { sender, number: NUMBER.fetch_add(1, Ordering::Relaxed) }))
    }
}

fn client(connector: HttpsConnector<Dialer>) -> Box<Http1> {
    Box::new(Http1Client::builder(TokioExecutor::new()).build(connector))
}

/// A call that ends without an answer after a while: the next one connects anew, since the connection may be broken.
struct Unanswered {
    /// `None` once there is an answer.
    slots: Option<Slots>,
    index: usize,
    number: u64,
    since: Instant,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(slots) = &self.slots else { return };
        if self.since.elapsed() >= STALL_TIMEOUT
            && let Ok(mut slot) = slots[self.index].try_lock()
            && matches!(&slot.transport, Some(Transport::Http2(it)) if it.number == self.number)
        {
            slot.transport = None;
        }
    }
}

/// Why there can be no TLS, without the content of a certificate or key.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::InferKubeconfig(error) => kubeconfig::explain(error),
        _ => "the kubeconfig's certificate authority, client certificate or client key cannot be used".to_owned(),
    }
}

impl Service<Request<Body>> for ApiConnection {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The names that kube gives to its spans.
        let span = tracing::debug_span!(
            "HTTP",
            http.method = %request.method(),
            http.url = %request.uri(),
            http.status_code = Empty,
            otel.name = request.extensions().get::<&'static str>().unwrap_or(&"HTTP"),
            otel.kind = "client",
            otel.status_code = Empty,
        );
        let call = self.clone().send(request);
        let recorded = async {
            let result = call.await;
            let status = result.as_ref().ok().map(|response| response.status());
            let span = Span::current();
            if let Some(status) = status {
                span.record("http.status_code", status.as_u16());
            }
            if status.is_none_or(|it| it.is_client_error() || it.is_server_error()) {
                span.record("otel.status_code", "ERROR");
            }
            result
        };
        Box::pin(recorded.instrument(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_leave_calls_to_the_first_connection_and_share_further_ones() {
        let permits = WatchPermits::new();
        let watches: Vec<_> = std::iter::from_fn(|| permits.try_acquire()).collect();
        let on = |wanted: usize| watches.iter().filter(|(it, _)| it.0 == wanted).count();
        assert_eq!([0, 1, 2, 3].map(on), MAX_WATCHES);
        drop(watches);
        assert!(matches!(permits.try_acquire(), Some((ConnectionIndex(0), _))));
    }
}
