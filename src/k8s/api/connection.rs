//! The connection to the API server: one with HTTP/2, if the server offers it (ALPN), so that calls at the same
//! time share one handshake, and further ones for many watches; else several with HTTP/1.1. Must not retry: a caller
//! knows which call may be repeated.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client as Http1Client,
        connect::{Connection, HttpConnector},
    },
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
use tokio_rustls::rustls::pki_types::ServerName;
use tower::{BoxError, Service, ServiceExt};
use tracing::{Instrument, Span, field::Empty};

/// For the TCP connection and the TLS handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how long, a connection with calls is checked: a server that is gone without a word must not
/// hold later calls.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a cancelled call has waited if its connection is suspected.
const SUSPICIOUS_SILENCE: Duration = Duration::from_secs(1);

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
    connector: HttpsConnector<HttpConnector>,
    /// Made when they are first used.
    protocols: Protocols,
    http1: Http1Client<HttpsConnector<HttpConnector>, Body>,
}

type Protocols = Arc<[Mutex<Protocol>; MAX_WATCHES.len()]>;

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

/// What the server speaks, as far as it is known.
enum Protocol {
    Unknown,
    Http1,
    Http2(Http2),
}

/// One connection, with its number.
#[derive(Clone)]
struct Http2 {
    sender: SendRequest<Body>,
    number: u64,
}

impl ApiConnection {
    /// A connection by this configuration, without its proxy; it is made with the first call.
    ///
    /// # Errors
    /// Why certificates or the server's name cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, BoxError> {
        let tls = config.rustls_client_config()?;
        let name = config.tls_server_name.clone().map(ServerName::try_from).transpose()?;
        let builder = || {
            let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
            match name.clone() {
                Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
                None => builder,
            }
        };
        let http1 = builder().enable_http1().wrap_connector(tcp());
        // Without TLS there is nothing to negotiate.
        let is_tls = config.cluster_url.scheme_str() == Some("https");
        let protocols = MAX_WATCHES
            .map(|_| Mutex::new(if is_tls { Protocol::Unknown } else { Protocol::Http1 }));
        Ok(ApiConnection {
            connector: builder().enable_all_versions().wrap_connector(tcp()),
            protocols: Arc::new(protocols),
            http1: Http1Client::builder(TokioExecutor::new()).build(http1),
        })
    }

    /// Sends one request.
    async fn send(self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        // Nothing is sent before there is a connection, however long others take to connect.
        let index = request.extensions().get().map_or(0, |&ConnectionIndex(index)| index);
        let connected = timeout(CONNECT_TIMEOUT, self.http2(index, request.uri())).await;
        let Some(mut http2) = connected.unwrap_or_else(|_| Err(not_connected().into()))? else {
            return self.http1.request(request).await.map_err(BoxError::from);
        };
        let mut unanswered = Unanswered {
            protocols: Some(self.protocols),
            index,
            number: http2.number,
            since: Instant::now(),
        };
        let response = http2.sender.send_request(request).await;
        unanswered.protocols = None;
        response.map_err(BoxError::from)
    }

    /// The connection with HTTP/2, if the server speaks it. Other calls wait while one connects.
    async fn http2(&self, index: usize, server: &Uri) -> Result<Option<Http2>, BoxError> {
        let mut protocol = self.protocols[index].lock().await;
        match &*protocol {
            Protocol::Http1 => return Ok(None),
            Protocol::Http2(http2) if !http2.sender.is_closed() => return Ok(Some(http2.clone())),
            Protocol::Http2(_) | Protocol::Unknown => {}
        }
        let connected = self.connect(server).await?;
        *protocol = connected.clone().map_or(Protocol::Http1, Protocol::Http2);
        Ok(connected)
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

fn not_connected() -> ConnectError {
    ConnectError(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()).into())
}

/// A call that ends without an answer after a while: the next one connects anew, since the connection may be dead.
struct Unanswered {
    /// `None` once there is an answer.
    protocols: Option<Protocols>,
    index: usize,
    number: u64,
    since: Instant,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(protocols) = &self.protocols else { return };
        if self.since.elapsed() >= SUSPICIOUS_SILENCE
            && let Ok(mut protocol) = protocols[self.index].try_lock()
            && matches!(&*protocol, Protocol::Http2(http2) if http2.number == self.number)
        {
            *protocol = Protocol::Unknown;
        }
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp
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
