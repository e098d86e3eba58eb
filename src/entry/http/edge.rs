//! The edge: what strangers connect to, and what of theirs goes further.
//!
//! The router behind it trusts its peer, so slow headers and bodies, long ones, ambiguous lengths and
//! crowds end here; `passage` says what goes through, and `queue` when. Once a request has passed, its
//! client's going away changes nothing: what was begun is finished, and logged. Before that nothing is.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    connections::Connections,
    negotiation::client_timeout,
    passage::{outward, placed, refusal, whole},
    queue::{Attended, Place, Queue, UNFINISHED},
    routes::Route,
    upstream::{Body, Upstream, UpstreamError},
};
use crate::{
    context::stopped,
    error::{ActionError, Code},
    metrics::Metrics,
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

/// The edge's state, shared by all connections.
pub struct Edge {
    upstream: Upstream,
    connections: Connections,
    metrics: Arc<Metrics>,
    queue: Arc<Queue>,
    numbers: AtomicU64,
}

impl Edge {
    /// An edge in front of this router, with this much room.
    #[must_use]
    pub fn new(
        upstream: Upstream,
        connections: Connections,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Edge { upstream, metrics, connections, queue, numbers: AtomicU64::new(0) })
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
                Ok((stream, peer)) => self.admit(stream, peer.ip(), &stopping, &mut tasks),
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
            self.admit(stream, peer.ip(), &stopping, &mut tasks);
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
        peer: IpAddr,
        stopping: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        if !self.connections.make_room() {
            self.metrics.connection_refused();
            tracing::warn!("a connection was refused: all there are are being served");
            return;
        }
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let connection = self.clone().connection(id, stream, peer, stopping.clone());
        self.connections.admit(id, tasks.spawn(connection));
    }

    /// Returns when every connection has ended and every request that outlived its own is done.
    async fn idle(&self, tasks: &mut JoinSet<()>) {
        while tasks.join_next().await.is_some() {}
        self.queue.emptied().await;
    }

    async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        peer: IpAddr,
        mut stopping: watch::Receiver<bool>,
    ) {
        let leaving = Leaving(self.clone(), id);
        let _connected = self.metrics.connected();
        // Answers are small and whole: there is nothing to collect before sending.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| self.clone().answer(id, peer, request));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADER_LINES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stopped(&mut stopping) => {
                // hyper closes at once where it has read nothing yet, but a request may be on its way.
                let last = timeout(LAST_CALL, &mut connection).await;
                match last {
                    Ok(ended) => ended,
                    Err(_) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(leaving);
    }

    async fn answer(
        self: Arc<Self>,
        id: u64,
        peer: IpAddr,
        request: Request<Incoming>,
    ) -> Result<Response<Attended<(Arc<Place>, Served)>>, Infallible> {
        let began = Instant::now();
        let _under_way = self.metrics.under_way();
        let mut served = Served::begin(&self, id);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let (response, place) = match self.clone().pass(peer, request).await {
            Ok((response, place)) => (response, place),
            Err(error) => {
                self.metrics.problem(&error);
                (refusal(error), None)
            }
        };
        served.answered = true;
        self.metrics.http(Route::known_path(&path), response.status().as_u16());
        log(&method, &path, response.status(), began);
        // A stream is served, and holds its place, until it ends.
        Ok(response.map(|body| Attended::new(body, place.map(|place| (place, served)))))
    }

    /// Takes the request in whole and waits for a place for it; then has it carried out, whether or not
    /// its client stays. A stream comes with the place that it holds.
    async fn pass(self: Arc<Self>, peer: IpAddr, request: Request<Incoming>) -> Passed {
        let timeout = client_timeout(request.headers())?;
        let until = timeout.map(|timeout| {
            let last_moment = LAST_MOMENT.min(timeout / 10);
            Instant::now() + timeout - last_moment
        });
        let request = whole(request, peer).await?;
        let place = self.queue.enter(request.method(), until).await?;
        let request = placed(request, place.number(), until);
        let metrics = self.metrics.clone();
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
                metrics.edge_refusals(UNFINISHED).inc();
                unfinished()
            })?,
        };
        carried.unwrap_or_else(|panic| {
            Err(ActionError::new(Code::Internal, format!("the edge: {panic}")))
        })
    }
}

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

/// The client's time is over, and the request is still under way: it is never broken off.
fn unfinished() -> ActionError {
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
        edge.connections.serving(connection);
        Served { edge: edge.clone(), connection, answered: false }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.edge.connections.waiting(self.connection);
        if !self.answered {
            self.edge.metrics.hung_up();
        }
    }
}

/// Tells that a connection has ended, however it did.
struct Leaving(Arc<Edge>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.connections.left(self.1);
    }
}

fn log(method: &Method, path: &str, status: StatusCode, began: Instant) {
    let (status, milliseconds) = (status.as_u16(), began.elapsed().as_secs_f64() * 1000.0);
    // An action that was carried out has its own line; here is what did not get so far.
    if status >= 400 {
        tracing::info!(%method, path, status, milliseconds, "request refused");
    } else {
        tracing::debug!(%method, path, status, milliseconds, "request answered");
    }
}
