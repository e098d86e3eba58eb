//! The edge: what strangers connect to, and what of theirs goes further.
//!
//! The router behind it trusts its peer, so slow headers and bodies, long ones, ambiguous lengths and
//! crowds end here; `tls` says what connections are secured with, `site` whose requests are meant for us,
//! `passage` what of them goes through, and `queue` when. Once a request has passed, its client's going away
//! changes nothing: what was begun is finished, and logged. Before that nothing is.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::HeaderValue,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, copy, sink},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    config::reload::Reloading,
    contract::error::{ActionError, Code},
    executor::context::stopped,
    http::{
        body::{REQUEST_ID, outward, placed, refusal, request_id, whole},
        concurrency::{Attended, Place, Queue, UNFINISHED},
        connections::Connections,
        endpoints::respond_async::Later,
        headers::client_timeout,
        origin::{Arrival, Site},
        routes::Route,
        tls::{Presented, Tls, presented},
        upstream::{Body, Upstream, UpstreamError},
    },
    telemetry::{metrics::Metrics, traces},
};

/// Longest time from the end of one request to the end of the next one's header: a slow client and an
/// idle one are the same to us.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest header, in bytes (hyper answers 431 beyond it).
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Most header lines.
const MAX_HEADER_LINES: usize = 64;

/// How long before its client's time is over a request is answered, come what may; at most a tenth of it.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// How long those that wait to be accepted, and requests that are on their way, are waited for once we
/// are told to stop, and how long nobody has to come for there to be nobody.
const LAST_CALL: Duration = Duration::from_millis(250);
const NOBODY_WAITS: Duration = Duration::from_millis(10);

/// How long, and for how many bytes, a client is listened to that was answered before it had said all.
const LAST_WORDS: Duration = Duration::from_secs(2);
const MOST_LAST_WORDS: u64 = 1 << 20;

/// The edge's state, shared by all connections.
pub struct Edge {
    upstream: Upstream,
    site: Site,
    tls: Option<Arc<Reloading<Tls>>>,
    room: Room,
    metrics: Arc<Metrics>,
    numbers: AtomicU64,
}

/// How much the edge takes on at once.
pub struct Room {
    /// The connections there are and may be.
    pub connections: Connections,
    /// Where requests wait to be let through.
    pub queue: Arc<Queue>,
    /// What goes on after its client was answered.
    pub later: Later,
}

/// The client at the other end of a connection.
struct Client {
    peer: IpAddr,
    arrival: Arrival,
    presented: Presented,
    /// Whether its last request was answered before it was read.
    unread: AtomicBool,
}

impl Client {
    fn new(peer: IpAddr, arrival: Arrival, presented: Presented) -> Self {
        Client { peer, arrival, presented, unread: AtomicBool::new(false) }
    }
}

impl Edge {
    /// An edge in front of this router, with this much room, which goes by the names of `site`.
    #[must_use]
    pub fn new(
        upstream: Upstream,
        room: Room,
        site: Site,
        tls: Option<Arc<Reloading<Tls>>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Edge { upstream, room, site, tls, metrics, numbers: AtomicU64::new(0) })
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
                    self.room.connections.dismiss_one();
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
        if !self.room.connections.make_room() {
            self.metrics.connection_refused();
            tracing::warn!("a connection was refused: all there are are being served");
            return;
        }
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let connection = self.clone().connection(id, stream, peer.ip(), stopping.clone());
        self.room.connections.admit(id, tasks.spawn(connection));
    }

    /// Returns when every connection has ended and every request that outlived its own, or was put off, is
    /// done.
    async fn idle(&self, tasks: &mut JoinSet<()>) {
        while tasks.join_next().await.is_some() {}
        self.room.queue.emptied().await;
        self.room.later.idle().await;
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
            let client = Client::new(peer, arrival, Vec::new());
            return self.converse(id, stream, client, stopping).await;
        };
        let agreed = tokio::select! {
            agreed = tls.accept(stream) => agreed,
            () = last_call(&mut stopping) => return,
        };
        match agreed {
            Ok(stream) => {
                let client = Client::new(peer, arrival, presented(&stream));
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
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            // hyper closes at once where it has read nothing yet, but a request may be on its way.
            () = last_call(&mut stopping) => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        if let Err(error) = &ended {
            tracing::debug!(%error, "a connection ended early");
        }
        if client.unread.load(Ordering::Relaxed) || ended.is_err_and(|error| error.is_parse()) {
            let stream = connection.into_parts().io.into_inner();
            // Few need it, so its room is not part of every connection's.
            Box::pin(hear_out(stream)).await;
        }
    }

    async fn answer(
        self: Arc<Self>,
        id: u64,
        client: Arc<Client>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Answered>, Infallible> {
        let request_id = request_id(request.headers());
        let span = span(&request, &request_id);
        traces::extract(&span, request.headers());
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
    ) -> Response<Answered> {
        let began = Instant::now();
        let _under_way = self.metrics.in_flight();
        let mut served = Served::begin(&self, id);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let (response, place) = match self.clone().pass(client, request).await {
            Ok((response, place)) => (response, place),
            Err(error) => {
                self.metrics.problem(&error);
                (refusal(error), None)
            }
        };
        served.answered = true;
        self.metrics.http(Route::known_path(&path), response.status().as_u16());
        log(&method, &path, response.status(), request_id, began);
        // A stream is served, and holds its place, until it ends.
        response.map(|body| Attended::new(body, place.map(|place| (place, served))))
    }

    /// Takes the request in whole and waits for a place for it; then has it carried out, whether or not
    /// its client stays. A stream comes with the place that it holds.
    async fn pass(self: Arc<Self>, client: &Client, request: Request<Incoming>) -> Passed {
        client.unread.store(!request.body().is_end_stream(), Ordering::Relaxed);
        self.site.check(&request, client.arrival)?;
        let timeout = client_timeout(request.headers())?;
        let until = timeout.map(|timeout| {
            let last_moment = LAST_MOMENT.min(timeout / 10);
            Instant::now() + timeout - last_moment
        });
        let certificate = match &self.tls {
            Some(tls) if !client.presented.is_empty() => tls.current().subject(&client.presented),
            _ => None,
        };
        let mut request = whole(request, client.peer, certificate.as_ref()).await?;
        client.unread.store(false, Ordering::Relaxed);
        traces::inject(&Span::current(), request.headers_mut());
        let place = self.room.queue.enter(request.method(), until).await?;
        let request = placed(request, place.number(), until);
        let (metrics, acts) = (self.metrics.clone(), request.method() == Method::POST);
        let carried = tokio::spawn(async move {
            let answer = self.upstream.exchange(request).await.map_err(no_answer)?;
            let is_stream = matches!(answer.body(), Body::Right(_));
            if is_stream {
                place.stream()?;
            }
            Ok((outward(answer), is_stream.then_some(place)))
        });
        let carried = match until {
            None => carried.await,
            Some(until) => timeout_at(until, carried).await.map_err(|_| {
                metrics.rejected_requests(UNFINISHED).inc();
                unfinished(acts)
            })?,
        };
        carried.unwrap_or_else(|panic| {
            Err(ActionError::new(Code::Internal, format!("the edge: {panic}")))
        })
    }
}

/// The body of an answer, with what a stream holds until it ends.
type Answered = Attended<(Arc<Place>, Served)>;

/// An answer, and if it is a stream the place that it holds.
type Passed = Result<(Response<Body>, Option<Arc<Place>>), ActionError>;

fn no_answer(error: UpstreamError) -> ActionError {
    match error {
        // Where there is no descriptor for one more socket nothing was sent.
        UpstreamError::Socket(error) => {
            tracing::warn!(%error, "no connection to the router");
            ActionError::new(Code::Overloaded, "too many requests are under way")
                .with_retry_after(Some(Duration::from_secs(1)))
        }
        UpstreamError::Exchange(_) => ActionError::new(Code::Internal, error.to_string()),
    }
}

/// The client's time is over, and the request is still under way: one that acts is never broken off.
fn unfinished(acts: bool) -> ActionError {
    if !acts {
        let detail = "there was no answer within the time that the request's header gives";
        return ActionError::new(Code::Overloaded, detail);
    }
    ActionError::new(
        Code::OutcomeUnknown,
        "the time that the request's header gives is over before it was finished, and it goes on",
    )
    .with_hint("send the same request with the same id to get its answer")
}

/// A request is being served, or its stream sent; then its connection waits for the next one.
pub struct Served {
    edge: Arc<Edge>,
    connection: u64,
    answered: bool,
}

impl Served {
    fn begin(edge: &Arc<Edge>, connection: u64) -> Self {
        edge.room.connections.serving(connection);
        Served { edge: edge.clone(), connection, answered: false }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.edge.room.connections.waiting(self.connection);
        if !self.answered {
            self.edge.metrics.client_disconnects();
        }
    }
}

/// Returns some time after we were told to stop, in which what is on its way arrives.
async fn last_call(stopping: &mut watch::Receiver<bool>) {
    stopped(stopping).await;
    sleep(LAST_CALL).await;
}

/// Reads on for a while after the last answer: were the connection closed on a client that still sends, it
/// would be reset, and the answer might be lost on the way (RFC 9112, section 9.6).
async fn hear_out(stream: impl AsyncRead + Unpin) {
    let mut rest = stream.take(MOST_LAST_WORDS);
    let _ = timeout(LAST_WORDS, copy(&mut rest, &mut sink())).await;
}

/// Tells that a connection has ended, however it did.
struct Leaving(Arc<Edge>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.room.connections.left(self.1);
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
