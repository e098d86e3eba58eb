//! The server: connections of clients, and each of their requests from its header to its response.
//!
//! Slow headers and bodies, long ones, ambiguous lengths and too many of them end here: `tls` has the
//! certificates, `origin` the hosts that are served, `body` the limits of a body, `connections` what clients may
//! hold, and `concurrency` the limits of what is in progress. Callers are authenticated before their body is read,
//! and only full requests reach the engine. A request that acts and has to wait becomes a
//! task of its own: whether its client stays or not, it is finished and logged.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use chrono::Utc;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    auth::Credentials,
    config::reload::Reloading,
    contract::error::{ActionError, Code},
    executor::{context::stopped, reply::Reply},
    http::{
        activity::{Activity, ExchangePhase},
        body::{check_target, check_transfer_coding, read_body, request_id},
        concurrency::{DEADLINE, GuardedBody, Lane, Limiter, Permit},
        connections::{Admission, Connections},
        dispatch::{Service, handler_panicked},
        endpoints::respond_async::BackgroundTasks,
        headers::{credentials, response_deadline},
        message::{Body, RequestInfo},
        origin::{ConnectionInfo, HostPolicy},
        routes::MatchedPath,
        stream::{ClientStream, WriteTimeout},
        tiny::TinyHttp,
        tls::{PeerCertificates, Tls, peer_certificates},
    },
    telemetry::{metrics::Metrics, traces},
};

/// Maximum time from the end of one request to the end of the next one's header: a slow client and an
/// idle one are the same.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum length of a header, in bytes (hyper answers 431 beyond it).
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// What the request is called, in its response.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum number of header lines.
const MAX_HEADER_LINES: usize = 64;

/// How long after the start of a shutdown connections that the kernel has established already are accepted, and
/// requests on open ones read; and after how long without a new connection the accepting ends earlier.
const ACCEPT_GRACE: Duration = Duration::from_millis(250);
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(10);

/// How many connections may be accepted of which it is not known yet whether their clients have sent something; at
/// most half of all. Else many that come at once could take the place of one whose request is there and not read.
const MAX_NEW_CONNECTIONS: usize = 32;

/// How long it takes at most until that is known.
const NEW_TIMEOUT: Duration = Duration::from_millis(5);

/// Stands for no time limit: that of [`tokio::time::sleep`] for a time that is too far away for it.
const UNLIMITED: Duration = Duration::from_secs(86_400 * 365 * 30);

/// How long, and for how many bytes, a connection lingers after an early rejection.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: u64 = 1 << 20;

/// The server's state, shared by all connections.
pub(crate) struct Server {
    service: Service,
    engine: Engine,
    limits: Limits,
    hosts: HostPolicy,
    tls: Option<Arc<Reloading<Tls>>>,
    metrics: Arc<Metrics>,
    next_id: AtomicU64,
    new_connections: Arc<Semaphore>,
}

/// What answers a request that has been read.
pub(crate) enum Engine {
    /// The dispatcher, called in process.
    Hyper,
    /// The same dispatcher, called from a handler of tiny_http.
    TinyHttp(Box<TinyHttp>),
}

/// How much the server does at once.
pub(crate) struct Limits {
    /// The connections.
    pub connections: Connections,
    /// The requests in progress.
    pub concurrency: Arc<Limiter>,
    /// The work that continues after its response.
    pub background: BackgroundTasks,
}

/// The connection of a client.
struct Connection {
    id: u64,
    peer: IpAddr,
    info: ConnectionInfo,
    certificates: PeerCertificates,
    admission: Admission,
    activity: Arc<Activity>,
    /// Whether the client may still be sending what is not read.
    lingers: AtomicBool,
}

/// A response, and the permit that it holds if it is a stream.
type Answered = (Response<Body>, Option<Arc<Permit>>);

impl Server {
    /// A server that answers with this service and engine, within these limits, for these hosts.
    pub(crate) fn new(
        service: Service,
        engine: Engine,
        limits: Limits,
        hosts: HostPolicy,
        tls: Option<Arc<Reloading<Tls>>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let next_id = AtomicU64::new(0);
        let new = MAX_NEW_CONNECTIONS.min(limits.connections.max() / 2);
        let new_connections = Arc::new(Semaphore::new(new));
        Arc::new(Server { service, engine, limits, hosts, tls, metrics, next_id, new_connections })
    }

    /// Serves until the shutdown begins, then until nothing is in progress or `grace` is over.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        mut stopping: watch::Receiver<bool>,
        grace: impl Future<Output = ()>,
    ) {
        let mut tasks = JoinSet::new();
        loop {
            let next = async {
                // The semaphore is never closed.
                let new = self.new_connections.clone().acquire_owned().await.ok();
                (listener.accept().await, new)
            };
            let (accepted, new) = tokio::select! {
                next = next => next,
                () = stopped(&mut stopping) => break,
            };
            while tasks.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, new, &stopping, &mut tasks),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    self.limits.connections.evict_one();
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
        let end = Instant::now() + ACCEPT_GRACE;
        while Instant::now() < end
            && let Ok(Ok((stream, peer))) = timeout(ACCEPT_TIMEOUT, listener.accept()).await
        {
            self.admit(stream, peer, None, &stopping, &mut tasks);
        }
        drop(listener);
        tokio::select! {
            () = self.wait_idle(&mut tasks) => {}
            () = grace => tracing::warn!("stopped with requests still in progress"),
        }
    }

    fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        new: Option<OwnedSemaphorePermit>,
        stopping: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        let connections = &self.limits.connections;
        let Some(admission) = connections.evict_if_full(peer.ip()) else {
            self.metrics.connection_refused();
            tracing::warn!(
                %peer,
                "connection refused: the limit is reached, and all of them are being served"
            );
            return;
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let activity = connections.activity();
        let activity_of_task = activity.clone();
        let admitted = Admitted { id, peer: peer.ip(), admission, activity: activity_of_task, new };
        let task = tasks.spawn(self.clone().accept(admitted, stream, stopping.clone()));
        connections.admit(id, peer.ip(), admission, activity, task);
    }

    /// Returns when every connection has ended, and so has all work that outlives its connection.
    async fn wait_idle(&self, tasks: &mut JoinSet<()>) {
        while tasks.join_next().await.is_some() {}
        self.limits.concurrency.wait_idle().await;
        self.limits.background.wait_idle().await;
    }

    async fn accept(
        self: Arc<Self>,
        admitted: Admitted,
        stream: TcpStream,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Admitted { id, peer, admission, activity, new } = admitted;
        let _guard = ConnectionGuard(self.clone(), id);
        let _connected = self.metrics.connected();
        let _ = timeout(NEW_TIMEOUT, stream.readable()).await;
        drop(new);
        // A response is small and written at once: there is nothing to collect before sending.
        let _ = stream.set_nodelay(true);
        // A client that is gone already needs no response.
        let Ok(local) = stream.local_addr() else { return };
        let info = ConnectionInfo { local: local.ip(), secure: self.tls.is_some() };
        let connection = |certificates| Connection {
            id,
            peer,
            info,
            certificates,
            admission,
            activity,
            lingers: AtomicBool::new(false),
        };
        let stream = WriteTimeout::new(stream);
        let Some(tls) = self.tls.as_ref().map(|tls| tls.current()) else {
            return self.serve_connection(connection(Vec::new()), stream, stopping).await;
        };
        let agreed = tokio::select! {
            agreed = Box::pin(tls.accept(stream)) => agreed,
            () = accept_grace(&mut stopping) => return,
        };
        match agreed {
            Ok(stream) => {
                let connection = connection(peer_certificates(&stream));
                // The state of TLS is large, and no part of each connection's task.
                Box::pin(self.serve_connection(connection, stream, stopping)).await;
            }
            Err(error) => {
                self.metrics.handshake_failed();
                tracing::debug!(error, %peer, "the TLS handshake failed");
            }
        }
    }

    /// Answers the requests of a connection until it ends.
    async fn serve_connection(
        self: Arc<Self>,
        connection: Connection,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        mut stopping: watch::Receiver<bool>,
    ) {
        let connection = Arc::new(connection);
        let stream = ClientStream::new(stream, connection.activity.clone());
        let service = service_fn(|request| {
            // hyper reads more from the client before it polls the future.
            connection.activity.enter(ExchangePhase::Reading);
            // hyper reserves memory for this future in each connection, and most connections are idle.
            Box::pin(self.clone().answer(connection.clone(), request))
        });
        let mut exchange = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = &mut exchange => ended,
            // hyper closes at once where it has read nothing yet, but a request may be on its way.
            () = accept_grace(&mut stopping) => {
                Pin::new(&mut exchange).graceful_shutdown();
                (&mut exchange).await
            }
        };
        if let Err(error) = &ended {
            tracing::debug!(%error, "a connection ended early");
        }
        let (mut stream, is_malformed) = exchange.into_parts().io.into_inner().into_parts();
        if is_malformed {
            let is_too_large = ended.is_err_and(|error| error.is_parse_too_large());
            let refused = self.refuse_malformed(&mut stream, connection.peer, is_too_large);
            if Box::pin(refused).await.is_err() {
                return;
            }
        }
        if is_malformed || connection.lingers.load(Ordering::Relaxed) {
            // Few connections need this memory, so it is not part of each one's task.
            Box::pin(linger(stream)).await;
        }
    }

    /// Answers what is no request that hyper can read, and ends the response.
    async fn refuse_malformed(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        peer: IpAddr,
        is_too_large: bool,
    ) -> io::Result<()> {
        let error = if is_too_large {
            let detail = format!(
                "the request's header is longer than {MAX_HEADER_BYTES} bytes or {MAX_HEADER_LINES} lines"
            );
            ActionError::new(Code::HeaderTooLarge, detail)
        } else {
            ActionError::new(Code::InvalidRequest, "the request is not valid HTTP/1.1")
        };
        self.metrics.problem(&error);
        self.metrics.http(MatchedPath::of("").name(), error.code.http_status());
        let request_id = request_id(&HeaderMap::new());
        let id = request_id.to_str().unwrap_or_default();
        tracing::info!(%peer, status = error.code.http_status(), request_id = id, "malformed HTTP refused");
        let mut response = Response::<Body>::from(Reply::from(error));
        response.headers_mut().insert(REQUEST_ID, request_id);
        stream.write_all(&written(response)).await?;
        stream.shutdown().await
    }

    /// Answers one request: its span, its metrics, its line in the log.
    async fn answer(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Response<GuardedBody<(Option<Arc<Permit>>, RequestGuard)>>, Infallible> {
        let began = Instant::now();
        let _in_flight = self.metrics.in_flight();
        let mut guard = RequestGuard::new(&self, &connection);
        // hyper 1.12 may take what follows a chunked body for a part of it, or the other way round.
        let closes = request.headers().contains_key(header::TRANSFER_ENCODING)
            || connection.admission == Admission::HealthChecks;
        connection.lingers.store(closes || !request.body().is_end_stream(), Ordering::Relaxed);
        let request_id = request_id(request.headers());
        let (method, target) = (request.method().clone(), request.uri().clone());
        let path = MatchedPath::of(target.path());
        let span = span(&method, path, &request_id);
        traces::extract(&span, request.headers());
        let info =
            RequestInfo { span: span.clone(), ..RequestInfo::new(request_id.clone(), path, None) };
        let forwarded = self.forward(&connection, request, info);
        let (mut response, permit) = match forwarded.instrument(span.clone()).await {
            Ok(answer) => answer,
            Err(error) => {
                self.metrics.problem(&error);
                (self.service.refused(error, path), None)
            }
        };
        // A body that the client still sends is not read.
        if closes || connection.lingers.load(Ordering::Relaxed) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        match response.body() {
            Body::Full(_) => connection.activity.enter(ExchangePhase::Answering),
            Body::Stream(_) => connection.activity.begin_stream(),
        }
        connection.activity.hold_response(response.body().own_bytes());
        self.limits.connections.relieve(connection.id);
        guard.answered = true;
        self.metrics.http(path.name(), response.status().as_u16());
        log(&span, &method, target.path(), response.status(), &request_id, began);
        response.headers_mut().insert(REQUEST_ID, request_id);
        // A stream holds its permit until it ends.
        Ok(response.map(|body| GuardedBody::new(body, (permit, guard))))
    }

    /// Authenticates the caller, reads the request, takes a permit for it and has it dispatched.
    async fn forward(
        self: &Arc<Self>,
        connection: &Connection,
        request: Request<Incoming>,
        info: RequestInfo,
    ) -> Result<Answered, ActionError> {
        self.hosts.check(&request, info.path, connection.info)?;
        check_target(request.uri())?;
        check_transfer_coding(request.headers())?;
        let is_health_check = info.path.is_health_check(request.method().as_str());
        if connection.admission == Admission::HealthChecks && !is_health_check {
            return Err(self.limits.concurrency.reject_beyond_health_checks());
        }
        let deadline = response_deadline(request.headers())?;
        let end = deadline.unwrap_or_else(|| Instant::now() + UNLIMITED);
        let credentials = || self.credentials(connection, request.headers());
        let authenticated = self.service.authenticate(request.method(), info.path, credentials);
        let caller = timeout_at(end, authenticated)
            .await
            .unwrap_or_else(|_| Err(deadline_exceeded(true, &self.metrics)))?;
        if caller.is_some() {
            connection.activity.authenticated();
        }
        let request = read_body(request, |bytes| {
            connection.activity.hold_body(bytes);
            self.limits.connections.relieve(connection.id)
        });
        let request = request.await?;
        let lane = Lane::of(request.method());
        let reads = lane == Lane::Reads;
        connection.activity.enter(if reads {
            ExchangePhase::Queued
        } else {
            ExchangePhase::Serving
        });
        let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        connection.lingers.store(is_chunked, Ordering::Relaxed);
        // Health checks are cheap, and answered whatever else is in progress.
        let permit = match is_health_check {
            true => None,
            false if reads => Some(self.limits.concurrency.acquire_read(deadline).await?),
            false => {
                let cluster = self.service.cluster_meant(&request, info.path);
                let concurrency = &self.limits.concurrency;
                Some(concurrency.acquire_action(cluster.map(|it| &**it), deadline).await?)
            }
        };
        if reads {
            connection.activity.enter(ExchangePhase::Serving);
        }
        let span = info.span.clone();
        let info = RequestInfo { caller, deadline, permit: permit.clone(), ..info };
        let server = self.clone();
        let held = permit.clone();
        let work = async move {
            let response = match &server.engine {
                Engine::Hyper => server.service.dispatch(request, info).await,
                Engine::TinyHttp(tiny_http) => Box::pin(tiny_http.exchange(request, info)).await?,
            };
            let held = held.filter(|_| matches!(response.body(), Body::Stream(_)));
            if let Some(permit) = &held {
                permit.become_stream()?;
            }
            Ok((response, held))
        };
        let done = match lane {
            Lane::Actions => timeout_at(end, finish(work.instrument(span))).await,
            _ => timeout_at(end, work).await,
        };
        done.unwrap_or_else(|_| {
            let changes_nothing = permit.as_ref().is_none_or(|permit| permit.changes_nothing());
            Err(deadline_exceeded(changes_nothing, &self.metrics))
        })
    }

    /// What proves who sends a request with this header on this connection.
    fn credentials(&self, connection: &Connection, headers: &HeaderMap) -> Credentials {
        let certificate = match &self.tls {
            Some(tls) if !connection.certificates.is_empty() => {
                tls.current().subject(&connection.certificates)
            }
            _ => None,
        };
        Credentials { certificate, peer: Some(connection.peer), ..credentials(headers) }
    }
}

/// Has work finished whether its client stays or not: where it first waits, it becomes a task of its own. Work
/// that never waits, such as a simulation without a cluster, does not cost one.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, ActionError>> + Send + 'static,
) -> Result<T, ActionError> {
    let mut work = Box::pin(work);
    let begin = |context: &mut Context<'_>| {
        Poll::Ready(catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))))
    };
    let task = match poll_fn(begin).await {
        Ok(Poll::Ready(done)) => return done,
        Ok(Poll::Pending) => tokio::spawn(work),
        // A panic is reported as that of any task.
        Err(panic) => tokio::spawn(async move { resume_unwind(panic) }),
    };
    task.await.unwrap_or_else(|panic| Err(handler_panicked(&panic)))
}

/// The client's time is over before the response. An action that has begun is not interrupted.
fn deadline_exceeded(changes_nothing: bool, metrics: &Metrics) -> ActionError {
    metrics.rejected_requests(DEADLINE).inc();
    if changes_nothing {
        let detail = "no response within the timeout in the request's header";
        return ActionError::new(Code::Overloaded, detail);
    }
    let detail = "the timeout in the request's header has passed; the action continues";
    ActionError::new(Code::OutcomeUnknown, detail)
        .with_hint("resend the same request with the same id to get its answer")
}

/// A connection that has been admitted.
struct Admitted {
    id: u64,
    peer: IpAddr,
    admission: Admission,
    activity: Arc<Activity>,
    new: Option<OwnedSemaphorePermit>,
}

/// A request whose response is not complete.
pub(crate) struct RequestGuard {
    server: Arc<Server>,
    activity: Arc<Activity>,
    answered: bool,
}

impl RequestGuard {
    fn new(server: &Arc<Server>, connection: &Connection) -> Self {
        RequestGuard {
            server: server.clone(),
            activity: connection.activity.clone(),
            answered: false,
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.activity.enter(ExchangePhase::Sending);
        if !self.answered {
            self.server.metrics.client_disconnects();
        }
    }
}

/// Removes a connection when it has ended.
struct ConnectionGuard(Arc<Server>, u64);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.limits.connections.closed(self.1);
    }
}

/// Returns some time after the start of the shutdown, in which requests on their way arrive.
async fn accept_grace(stopping: &mut watch::Receiver<bool>) {
    stopped(stopping).await;
    sleep(ACCEPT_GRACE).await;
}

/// Reads on after the last response: a connection that is closed while its client still sends is reset, and
/// the response may be lost (RFC 9112, section 9.6).
async fn linger(stream: impl AsyncRead + Unpin) {
    let mut rest = stream.take(MAX_LINGER_BYTES);
    let _ = timeout(LINGER_TIMEOUT, copy(&mut rest, &mut sink())).await;
}

/// A response with all of its body as it is sent (RFC 9112), the last one of its connection.
fn written(response: Response<Body>) -> Vec<u8> {
    let (head, body) = response.into_parts();
    let Body::Full(body) = body else { return Vec::new() };
    let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    let (status, length) = (head.status, body.len());
    let mut text = format!(
        "HTTP/1.1 {status}\r\nDate: {date}\r\nConnection: close\r\nContent-Length: {length}\r\n"
    )
    .into_bytes();
    for (name, value) in &head.headers {
        text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    [&text[..], b"\r\n", &body].concat()
}

/// The span of a request, named as OpenTelemetry's conventions for HTTP servers have it.
fn span(method: &Method, path: MatchedPath, request_id: &HeaderValue) -> Span {
    let method = match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
        _ => "_OTHER",
    };
    let route = path.name();
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

fn log(
    span: &Span,
    method: &Method,
    path: &str,
    status: StatusCode,
    request_id: &HeaderValue,
    began: Instant,
) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let _entered = span.enter();
    let (status, milliseconds) = (status.as_u16(), began.elapsed().as_secs_f64() * 1000.0);
    let request_id = request_id.to_str().unwrap_or_default();
    // An action that was carried out has its own line; this is for requests that did not get so far.
    if status >= 400 {
        tracing::info!(%method, path, status, milliseconds, request_id, "request refused");
    } else {
        tracing::debug!(%method, path, status, milliseconds, request_id, "request answered");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::oneshot, task};

    use super::*;

    #[tokio::test]
    async fn work_that_waits_is_finished_without_its_client() {
        let (go, may_go) = oneshot::channel::<()>();
        let (finished, is_finished) = oneshot::channel();
        let work = async move {
            may_go.await.expect("is sent");
            finished.send(()).expect("is awaited");
            Ok(())
        };
        let client = task::spawn(finish(work));
        task::yield_now().await;
        client.abort();
        assert!(client.await.expect_err("is gone").is_cancelled());
        go.send(()).expect("is awaited");
        is_finished.await.expect("is finished");
    }

    #[tokio::test]
    async fn work_that_never_waits_is_no_task_of_its_own() {
        let task_of_work = task::spawn(async {
            (finish(async { Ok(task::id()) }).await.expect("is done"), task::id())
        });
        let (work, caller) = task_of_work.await.expect("ends");
        assert_eq!(work, caller);
    }

    #[tokio::test]
    async fn a_panic_before_and_after_a_wait_is_a_problem() {
        for waits in [false, true] {
            let work = async move {
                if waits {
                    task::yield_now().await;
                }
                panic!("a test's own")
            };
            let problem: Result<(), _> = finish(work).await;
            assert_eq!(problem.expect_err("is a problem").code, Code::Internal);
        }
    }
}
