//! The edge: what strangers connect to, and what of theirs goes further.
//!
//! The router behind it trusts its peer, so slow headers and bodies, long ones, ambiguous lengths and
//! crowds end here; `tls` says what connections are secured with, `site` whose requests are meant for us, and
//! `passage` what of them goes through. Once a request has passed, its client's going away changes nothing:
//! what was begun is finished, and logged.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::HeaderValue,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::{Instrument, Span, field::Empty};

use super::{
    connections::Connections,
    later::Later,
    passage::{REQUEST_ID, outward, refusal, request_id, whole},
    routes::Route,
    site::{Arrival, Site},
    tls::{Presented, Tls, presented},
    upstream::{Body, Upstream},
};
use crate::{
    context::stopped,
    document::Followed,
    error::{ActionError, Code},
    metrics::Metrics,
    traces,
};

/// Longest time from the end of one request to the end of the next one's header: a slow client and an
/// idle one are the same to us.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest header, in bytes (hyper answers 431 beyond it).
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Most header lines.
const MAX_HEADER_LINES: usize = 64;

/// Most requests under way at once; each may wait for a rollout for minutes, and holds little.
const MAX_ACTIONS: usize = 128;

/// Room of their own for the questions that cost nothing, so that a busy server still says that it
/// lives.
const MAX_QUESTIONS: usize = 256;

/// How long those that wait to be accepted, and requests that are on their way, are waited for once we
/// are told to stop, and how long nobody has to come for there to be nobody.
const LAST_CALL: Duration = Duration::from_millis(250);
const NOBODY_WAITS: Duration = Duration::from_millis(10);

/// The edge's state, shared by all connections.
pub struct Edge {
    upstream: Upstream,
    site: Site,
    tls: Option<Arc<Followed<Tls>>>,
    connections: Connections,
    metrics: Arc<Metrics>,
    later: Later,
    actions: Semaphore,
    questions: Semaphore,
    numbers: AtomicU64,
}

/// The client at the other end of a connection.
struct Client {
    peer: IpAddr,
    arrival: Arrival,
    presented: Presented,
}

impl Edge {
    /// An edge in front of this router, which has work of its own for `later` and goes by the names of
    /// `site`.
    #[must_use]
    pub fn new(
        upstream: Upstream,
        metrics: Arc<Metrics>,
        later: Later,
        site: Site,
        tls: Option<Arc<Followed<Tls>>>,
    ) -> Arc<Self> {
        Arc::new(Edge {
            upstream,
            site,
            tls,
            metrics,
            later,
            connections: Connections::within_limits(),
            actions: Semaphore::new(MAX_ACTIONS),
            questions: Semaphore::new(MAX_QUESTIONS),
            numbers: AtomicU64::new(0),
        })
    }

    /// Serves until told to stop, then until nothing is under way or `grace` is over.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        mut stopping: watch::Receiver<bool>,
        grace: impl Future<Output = ()>,
    ) {
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stopping) => break,
            };
            while tasks.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &stopping, &mut tasks),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    self.connections.dismiss_one();
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
        // Who has been connected by the kernel has been let in, though we did not know it yet.
        let last_call = Instant::now() + LAST_CALL;
        while Instant::now() < last_call
            && let Ok(Ok((stream, peer))) = timeout(NOBODY_WAITS, listener.accept()).await
        {
            self.admit(stream, peer, &stopping, &mut tasks);
        }
        drop(listener);
        tokio::select! {
            () = self.idle(&mut tasks) => {}
            () = grace => tracing::warn!("stopped with requests still under way"),
        }
    }

    fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        stopping: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        if !self.connections.make_room() {
            self.metrics.connection_refused();
            tracing::warn!("a connection was refused: all there are are being served");
            return;
        }
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let connection = self.clone().connection(id, stream, peer.ip(), stopping.clone());
        self.connections.admit(id, tasks.spawn(connection));
    }

    /// Returns when every connection has ended and every request that outlived its own, or was put off, is
    /// done.
    async fn idle(&self, tasks: &mut JoinSet<()>) {
        while tasks.join_next().await.is_some() {}
        // Closed by nobody, so this waits for the last action's place to be free.
        let _ = self.actions.acquire_many(MAX_ACTIONS as u32).await;
        self.later.idle().await;
    }

    async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: IpAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        let _leaving = Leaving(self.clone(), id);
        let _connected = self.metrics.connected();
        // Answers are small and whole: there is nothing to collect before sending.
        let _ = stream.set_nodelay(true);
        // A client that is gone already needs no answer.
        let Ok(local) = stream.local_addr() else { return };
        let arrival = Arrival { local: local.ip(), secure: self.tls.is_some() };
        let Some(tls) = self.tls.as_ref().map(|tls| tls.current()) else {
            let client = Client { peer, arrival, presented: Vec::new() };
            return self.converse(id, stream, client, stopping).await;
        };
        let agreed = tokio::select! {
            agreed = tls.accept(stream) => agreed,
            () = last_call(&mut stopping) => return,
        };
        match agreed {
            Ok(stream) => {
                let client = Client { peer, arrival, presented: presented(&stream) };
                self.converse(id, stream, client, stopping).await;
            }
            Err(error) => {
                self.metrics.handshake_failed();
                tracing::debug!(error, %peer, "no TLS was agreed on");
            }
        }
    }

    /// Answers what comes over a connection, until it ends.
    async fn converse(
        self: Arc<Self>,
        id: u64,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        client: Client,
        mut stopping: watch::Receiver<bool>,
    ) {
        let client = Arc::new(client);
        let service = service_fn(|request| self.clone().answer(id, client.clone(), request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // hyper closes at once where it has read nothing yet, but a request may be on its way.
            () = last_call(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(
        self: Arc<Self>,
        id: u64,
        client: Arc<Client>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let request_id = request_id(request.headers());
        let span = span(&request, &request_id);
        traces::adopt(&span, request.headers());
        request.headers_mut().insert(REQUEST_ID, request_id.clone());
        let mut response = self.reply(id, &client, request, &request_id).instrument(span).await;
        response.headers_mut().insert(REQUEST_ID, request_id);
        Ok(response)
    }

    async fn reply(
        self: Arc<Self>,
        id: u64,
        client: &Client,
        request: Request<Incoming>,
        request_id: &HeaderValue,
    ) -> Response<Body> {
        let began = Instant::now();
        let _under_way = self.metrics.under_way();
        self.connections.serving(id);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let response = match self.clone().pass(client, request).await {
            Ok(response) => response,
            Err(error) => {
                self.metrics.problem(&error);
                refusal(error)
            }
        };
        self.metrics.http(Route::known_path(&path), response.status().as_u16());
        self.connections.waiting(id);
        log(&method, &path, response.status(), request_id, began);
        response
    }

    /// Takes the request in whole and has it carried out, whether or not its client stays.
    async fn pass(
        self: Arc<Self>,
        client: &Client,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ActionError> {
        self.site.check(&request, client.arrival)?;
        let certificate = match &self.tls {
            Some(tls) if !client.presented.is_empty() => tls.current().subject(&client.presented),
            _ => None,
        };
        let mut request = whole(request, client.peer, certificate.as_ref()).await?;
        traces::pass_on(&Span::current(), request.headers_mut());
        let carried = tokio::spawn(async move {
            let room = match *request.method() {
                Method::POST => self.actions.try_acquire(),
                _ => self.questions.try_acquire(),
            };
            let Ok(_place) = room else {
                return Err(ActionError::new(Code::Overloaded, "too many requests are under way")
                    .with_retry_after(Some(Duration::from_secs(1))));
            };
            let answer = self.upstream.exchange(request).await;
            answer.map_err(|error| ActionError::new(Code::Internal, error.to_string()))
        });
        let carried = carried.await.unwrap_or_else(|panic| {
            Err(ActionError::new(Code::Internal, format!("the edge: {panic}")))
        })?;
        Ok(outward(carried))
    }
}

/// Returns some time after we were told to stop, in which what is on its way arrives.
async fn last_call(stopping: &mut watch::Receiver<bool>) {
    stopped(stopping).await;
    sleep(LAST_CALL).await;
}

/// Tells that a connection has ended, however it did.
struct Leaving(Arc<Edge>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.connections.left(self.1);
    }
}

/// The span of a request, named as OpenTelemetry's conventions for HTTP servers have it.
fn span(request: &Request<Incoming>, request_id: &HeaderValue) -> Span {
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
        _ => "_OTHER",
    };
    let route = Route::known_path(request.uri().path());
    tracing::debug_span!(
        "request",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        request_id = request_id.to_str().unwrap_or_default(),
        trace_id = Empty,
    )
}

fn log(method: &Method, path: &str, status: StatusCode, request_id: &HeaderValue, began: Instant) {
    let span = Span::current();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let (status, milliseconds) = (status.as_u16(), began.elapsed().as_secs_f64() * 1000.0);
    let request_id = request_id.to_str().unwrap_or_default();
    // An action that was carried out has its own line; here is what did not get so far.
    if status >= 400 {
        tracing::info!(%method, path, status, milliseconds, request_id, "request refused");
    } else {
        tracing::debug!(%method, path, status, milliseconds, request_id, "request answered");
    }
}
