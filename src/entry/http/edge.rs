//! The edge: what strangers connect to, and what of theirs goes further.
//!
//! The router behind it trusts its peer, so only whole, bounded, well-formed requests pass: slow
//! headers and bodies, long ones, ambiguous lengths and crowds end here. What passes is written anew
//! with the few headers that the router reads. Once a request has passed, its client's going away
//! changes nothing: what was begun is finished, and logged.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{connections::Connections, routes::Route, upstream::Upstream};
use crate::{
    context::stopped,
    entry::Answer,
    error::{ActionError, Code},
    metrics::Metrics,
    request::MAX_REQUEST_BYTES,
};

/// Longest time from the end of one request to the end of the next one's header: a slow client and an
/// idle one are the same to us.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest time for a body once its header is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

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

/// What the router reads of a request, and what clients get of its answer.
const REQUEST_HEADERS: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::AUTHORIZATION,
    HeaderName::from_static("idempotency-key"),
];
const ANSWER_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::ALLOW, header::WWW_AUTHENTICATE];

/// The edge's state, shared by all connections.
pub struct Edge {
    upstream: Upstream,
    connections: Connections,
    metrics: Arc<Metrics>,
    actions: Semaphore,
    questions: Semaphore,
    numbers: AtomicU64,
}

impl Edge {
    /// An edge in front of this router.
    #[must_use]
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Edge {
            upstream,
            metrics,
            connections: Connections::within_descriptor_limit(),
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
                Ok((stream, _)) => self.admit(stream, &stopping, &mut tasks),
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
            && let Ok(Ok((stream, _))) = timeout(NOBODY_WAITS, listener.accept()).await
        {
            self.admit(stream, &stopping, &mut tasks);
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
        stopping: &watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        if !self.connections.make_room() {
            self.metrics.connection_refused();
            tracing::warn!("a connection was refused: all there are are being served");
            return;
        }
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let connection = self.clone().connection(id, stream, stopping.clone());
        self.connections.admit(id, tasks.spawn(connection));
    }

    /// Returns when every connection has ended and every request that outlived its own is done.
    async fn idle(&self, tasks: &mut JoinSet<()>) {
        while tasks.join_next().await.is_some() {}
        // Closed by nobody, so this waits for the last action's place to be free.
        let _ = self.actions.acquire_many(MAX_ACTIONS as u32).await;
    }

    async fn connection(
        self: Arc<Self>,
        id: u64,
        stream: TcpStream,
        mut stopping: watch::Receiver<bool>,
    ) {
        let leaving = Leaving(self.clone(), id);
        let _connected = self.metrics.connected();
        // Answers are small and whole: there is nothing to collect before sending.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| self.clone().answer(id, request));
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
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let began = Instant::now();
        let _under_way = self.metrics.under_way();
        self.connections.serving(id);
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let response = match self.clone().pass(request).await {
            Ok(response) => response,
            Err(error) => {
                self.metrics.problem(&error);
                refusal(error)
            }
        };
        self.metrics.http(Route::known_path(&path), response.status().as_u16());
        self.connections.waiting(id);
        log(&method, &path, response.status(), began);
        Ok(response)
    }

    /// Takes the request in whole and has it carried out, whether or not its client stays.
    async fn pass(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, ActionError> {
        let request = whole(request).await?;
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

/// Tells that a connection has ended, however it did.
struct Leaving(Arc<Edge>, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.connections.left(self.1);
    }
}

/// Reads the body to its end, within the limits, and writes the request anew.
async fn whole(request: Request<Incoming>) -> Result<Request<Full<Bytes>>, ActionError> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map(|target| target.as_str().to_owned());
    let target = target.filter(|target| target.starts_with('/')).ok_or_else(|| {
        ActionError::new(Code::InvalidRequest, "the request's target is not a path")
    })?;
    check_length(&head.headers)?;
    let body = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
        Ok(Err(_)) => {
            return Err(ActionError::new(Code::InvalidRequest, "the request's body broke off"));
        }
        Err(_) => {
            let limit = BODY_TIMEOUT.as_secs();
            let detail = format!("the request's body did not arrive within {limit} s");
            return Err(ActionError::new(Code::RequestTimeout, detail));
        }
    };
    let mut passed = Request::new(Full::new(body));
    *passed.method_mut() = head.method;
    *passed.uri_mut() = target.parse().map_err(|_| {
        ActionError::new(Code::InvalidRequest, "the request's target is not a path")
    })?;
    let headers = passed.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("router"));
    for name in REQUEST_HEADERS {
        // The router reads ASCII only; what is not is as good as absent.
        let values = head.headers.get_all(&name).iter();
        for value in values.filter(|value| value.to_str().is_ok()) {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(passed)
}

/// A length must be within the limit before anything is read. That it is one number, and not several
/// different ones or one beside a Transfer-Encoding, hyper has seen to (RFC 9112, section 6.3).
fn check_length(headers: &HeaderMap) -> Result<(), ActionError> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(()) };
    match length.to_str().ok().and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length <= MAX_REQUEST_BYTES as u64 => Ok(()),
        Some(_) => Err(too_long()),
        None => Err(ActionError::new(Code::InvalidRequest, "Content-Length is not a number")),
    }
}

fn too_long() -> ActionError {
    ActionError::new(
        Code::PayloadTooLarge,
        format!("the request is longer than {MAX_REQUEST_BYTES} bytes"),
    )
}

fn outward(answer: Response<Bytes>) -> Response<Full<Bytes>> {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = head.status;
    for name in ANSWER_HEADERS {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// The edge's own answer. What the client still has to send is not read, so the connection ends.
fn refusal(error: ActionError) -> Response<Full<Bytes>> {
    let close = error.code != Code::Overloaded;
    let answer = Answer::from(error);
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = answer.retry_after_seconds {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
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

#[cfg(test)]
mod tests {
    use super::*;

    fn length(value: &str) -> Result<(), Code> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, value.parse().expect("is a value"));
        check_length(&headers).map_err(|error| error.code)
    }

    #[test]
    fn a_length_is_a_number_within_the_limit() {
        assert!(check_length(&HeaderMap::new()).is_ok());
        assert_eq!(length("65536"), Ok(()));
        assert_eq!(length("65537"), Err(Code::PayloadTooLarge));
        assert_eq!(length("9223372036854775808"), Err(Code::PayloadTooLarge));
        for wrong in ["-1", "1,1", "0x10", "99999999999999999999"] {
            assert_eq!(length(wrong), Err(Code::InvalidRequest), "{wrong}");
        }
    }
}
