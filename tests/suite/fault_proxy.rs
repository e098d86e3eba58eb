//! A proxy in front of the real API server that injects faults into single calls: a tool of the suite.
//!
//! The program connects to it over plain HTTP. The proxy forwards with the administrator's credentials. A rule
//! decides what becomes of each call: forwarded, dropped, repeated, held, truncated, rewritten, or answered by the
//! proxy. The proxy records what the API server answered, so a test knows which writes took effect.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Body, Bytes, Frame, Incoming},
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue, LOCATION, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::Client;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::sleep};

use crate::{
    cluster::{Namespace, shared},
    program::scratch,
};

/// What the proxy does with a request.
#[derive(Clone)]
pub enum ProxyBehavior {
    /// Forwards the request and returns the response.
    Forward,
    /// Forwards the request to another API server.
    ForwardTo(Client),
    /// Forwards the request and returns the response, each after this delay.
    Delay(Duration),
    /// Closes the connection without forwarding the request.
    DropRequest,
    /// Forwards the request and closes the connection without a response.
    DropResponse,
    /// Forwards the request and closes the connection in the middle of the response's body.
    TruncateResponse,
    /// Keeps the connection open, and neither forwards nor responds.
    Hang,
    /// Forwards the request, keeps the connection open and does not respond.
    HangAfterForward,
    /// Does not respond, and forwards the request once the test releases it: a late write.
    Hold(Held),
    /// Forwards the request twice and returns the second response, as a middlebox that retries.
    RepeatAndReturnSecond,
    /// Forwards the request and returns the response; forwards it again once the test releases it.
    RepeatLater(Held),
    /// Responds by itself, with this status and message.
    Respond(u16, &'static str),
    /// The same with this number of seconds in `Retry-After`.
    RespondRetryAfter(u16, u32),
    /// Forwards the request and responds with this status instead.
    ForwardAndRespond(u16),
    /// Responds with 200 and this body by itself.
    RespondBody(&'static str),
    /// Responds with 200 and an object with another uid: a read is rewritten, a write is not forwarded.
    RespondOtherUid,
    /// Forwards the request without its body.
    StripBody,
    /// Responds with a redirect by itself.
    Redirect,
    /// Resets the TCP connection without forwarding the request.
    Reset,
    /// Forwards the request and returns the response with a second `Date`, two hours ahead.
    DuplicateDate,
    /// Forwards the request and returns the response with a `Date` that differs by these seconds.
    ShiftDate(i64),
}

/// Each kind of fault with its name. `held` releases those that are delivered late.
pub fn faults(held: &Held) -> Vec<(&'static str, ProxyBehavior)> {
    use ProxyBehavior::*;
    vec![
        ("delay", Delay(Duration::from_millis(150))),
        ("drop_request", DropRequest),
        ("drop_response", DropResponse),
        ("truncate_response", TruncateResponse),
        ("hang", Hang),
        ("hang_after_forward", HangAfterForward),
        ("hold", Hold(held.clone())),
        ("repeat_and_return_second", RepeatAndReturnSecond),
        ("repeat_later", RepeatLater(held.clone())),
        ("status_401", Respond(401, "Unauthorized")),
        ("status_403", Respond(403, "User \"x\" cannot patch resource \"y\" in API group \"\"")),
        ("status_404", Respond(404, "not found")),
        ("status_409", Respond(409, "the object has been modified")),
        ("status_410", Respond(410, "too old resource version")),
        ("status_422", Respond(422, "the server rejected our request")),
        ("status_429", Respond(429, "too many requests")),
        ("status_429_retry_after", RespondRetryAfter(429, 1)),
        ("status_500", Respond(500, "internal error")),
        ("status_502", Respond(502, "bad gateway")),
        ("status_503", Respond(503, "unavailable")),
        ("status_504", Respond(504, "timeout")),
        ("done_and_status_500", ForwardAndRespond(500)),
        ("done_and_status_504", ForwardAndRespond(504)),
        ("empty_object", RespondBody("{}")),
        ("invalid_json", RespondBody("{\"kind\": <html>")),
        ("empty_body", RespondBody("")),
        ("other_uid", RespondOtherUid),
        ("strip_body", StripBody),
        ("redirect", Redirect),
        ("reset", Reset),
        ("duplicate_date", DuplicateDate),
        ("clock_ahead", ShiftDate(7200)),
        ("clock_behind", ShiftDate(-7200)),
    ]
}

/// A request that the proxy has received.
pub struct Received {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its index among the reads or the writes, from 0.
    pub number: usize,
    /// Its index among all calls, from 0.
    pub index: usize,
    /// Whether it is a dry run.
    pub is_dry_run: bool,
}

impl Received {
    /// Whether it may change something.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether it changes an object, or a subresource, of this name in the path.
    pub fn writes(&self, resource: &str) -> bool {
        self.is_write() && self.path.split('/').any(|part| part == resource)
    }

    /// Whether it changes something other than the request's record and the budget. A dry run and a review of
    /// permissions change nothing.
    pub fn is_effect(&self) -> bool {
        let own = ["events", "leases", "authorization.k8s.io", "authentication.k8s.io"];
        self.is_write() && !self.is_dry_run && !own.iter().any(|resource| self.writes(resource))
    }
}

/// Calls that are delivered when the test releases them. Clones share their calls.
#[derive(Clone)]
pub struct Held {
    released: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Default for Held {
    fn default() -> Self {
        Held { released: watch::Sender::new(false), waiting: watch::Sender::new(0) }
    }
}

impl Held {
    /// Waits until a call is held.
    pub async fn arrived(&self) {
        self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await.expect("is not closed");
    }

    /// Delivers the calls, and waits until the API server has answered them.
    pub async fn release(&self) {
        self.released.send_replace(true);
        self.waiting.subscribe().wait_for(|waiting| *waiting == 0).await.expect("is not closed");
    }

    /// Delivers a call once it is released, whether or not its client still waits.
    fn deliver_later(&self, call: Arc<Call>) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let held = self.clone();
        tokio::spawn(async move {
            held.released.subscribe().wait_for(|released| *released).await.expect("is not closed");
            let _ = call.forward().await;
            held.waiting.send_modify(|waiting| *waiting -= 1);
        });
    }
}

/// Decides on each request.
type Rule = dyn Fn(&Received) -> ProxyBehavior + Send + Sync;

/// What the API server answered to a call that the proxy forwarded.
#[derive(Clone, Debug)]
pub struct Forwarded {
    /// Its method and path.
    pub call: String,
    /// Its index among all calls, from 0.
    pub index: usize,
    /// Whether it is an effect, as [`Received::is_effect`].
    pub is_effect: bool,
    /// The API server's status.
    pub status: u16,
}

/// A running proxy. Clones are the same proxy.
#[derive(Clone)]
pub struct Proxy {
    /// A kubeconfig that points to it.
    pub kubeconfig: PathBuf,
    state: Arc<State>,
}

struct State {
    client: Client,
    rule: Box<Rule>,
    calls: AtomicUsize,
    reads: AtomicUsize,
    writes: AtomicUsize,
    forwarded: Mutex<Vec<Forwarded>>,
}

impl Proxy {
    /// Starts a proxy whose kubeconfig is named after this namespace.
    pub async fn start(
        namespace: &Namespace,
        rule: impl Fn(&Received) -> ProxyBehavior + Send + Sync + 'static,
    ) -> Self {
        Self::start_around(namespace, rule, || {}, |()| {}).await
    }

    async fn start_around<T: Send + 'static>(
        namespace: &Namespace,
        rule: impl Fn(&Received) -> ProxyBehavior + Send + Sync + 'static,
        begin: impl Fn() -> T + Clone + Send + Sync + 'static,
        end: impl Fn(T) + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("is bound");
        let address = listener.local_addr().expect("has one");
        let state = Arc::new(State {
            client: shared().client().await,
            rule: Box::new(rule),
            calls: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            forwarded: Mutex::default(),
        });
        let kubeconfig = kubeconfig(namespace, address);
        let proxy = Proxy { kubeconfig, state: state.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, begin, end) = (state.clone(), begin.clone(), end.clone());
                let reset = Arc::new(AtomicBool::new(false));
                let is_reset = reset.clone();
                let service = service_fn(move |request| {
                    let begun = begin();
                    let passed = pass(state.clone(), reset.clone(), request);
                    let end = end.clone();
                    async move {
                        let response = passed.await;
                        end(begun);
                        response
                    }
                });
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    let mut connection = http1::Builder::new().serve_connection(io, service);
                    let _ = (&mut connection).await;
                    if is_reset.load(Ordering::SeqCst) {
                        let stream = connection.into_parts().io.into_inner();
                        stream.set_zero_linger().expect("is set");
                    }
                });
            }
        });
        proxy
    }

    /// The number of calls that it has received.
    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The calls that it has forwarded, in the order of the API server's answers.
    pub fn forwarded(&self) -> Vec<Forwarded> {
        self.state.forwarded.lock().expect("is not poisoned").clone()
    }

    /// The effects that the API server has accepted.
    pub fn accepted_effects(&self) -> Vec<String> {
        let accepted = |it: &Forwarded| it.is_effect && (200..300).contains(&it.status);
        self.forwarded().into_iter().filter(accepted).map(|it| it.call).collect()
    }
}

/// Starts a proxy; returns a kubeconfig that points to it.
pub async fn proxy(
    namespace: &Namespace,
    rule: impl Fn(&Received) -> ProxyBehavior + Send + Sync + 'static,
) -> PathBuf {
    Proxy::start(namespace, rule).await.kubeconfig
}

/// The same; `begin` runs at each request, and `end` before its response with what `begin` returned.
pub async fn proxy_around<T: Send + 'static>(
    namespace: &Namespace,
    rule: impl Fn(&Received) -> ProxyBehavior + Send + Sync + 'static,
    begin: impl Fn() -> T + Clone + Send + Sync + 'static,
    end: impl Fn(T) + Clone + Send + Sync + 'static,
) -> PathBuf {
    Proxy::start_around(namespace, rule, begin, end).await.kubeconfig
}

/// A kubeconfig for plain HTTP to this address.
pub fn kubeconfig(namespace: &Namespace, address: SocketAddr) -> PathBuf {
    let path = scratch(&format!("{}.kubeconfig", namespace.name()));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "anonymous", "user": {} }],
        "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "anonymous" } }],
    });
    std::fs::write(&path, config.to_string()).expect("is written");
    path
}

/// A call as it was received, to be forwarded.
struct Call {
    state: Arc<State>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    index: usize,
    is_effect: bool,
}

impl Call {
    async fn forward(&self) -> std::io::Result<Answer> {
        self.forward_body(&self.state.client, self.body.clone()).await
    }

    async fn forward_body(&self, to: &Client, body: Bytes) -> std::io::Result<Answer> {
        let answer = self.send(to, self.method.clone(), &self.uri, body).await?;
        self.state.forwarded.lock().expect("is not poisoned").push(Forwarded {
            call: format!("{} {}", self.method, self.uri.path()),
            index: self.index,
            is_effect: self.is_effect,
            status: answer.status.as_u16(),
        });
        Ok(answer)
    }

    async fn send(
        &self,
        to: &Client,
        method: Method,
        uri: &Uri,
        body: Bytes,
    ) -> std::io::Result<Answer> {
        let mut onward = Request::builder().method(method).uri(uri.clone());
        for name in ["content-type", "accept"] {
            if let Some(value) = self.headers.get(name) {
                onward = onward.header(name, value);
            }
        }
        let onward = onward.body(body.to_vec().into()).expect("is whole");
        let answer = to.send(onward).await.map_err(std::io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// The object that the call creates, without all that it was to contain.
    fn name_alone(&self) -> String {
        let sent: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let name = &sent["metadata"]["name"];
        let metadata = json!({ "name": name, "namespace": sent["metadata"]["namespace"] });
        json!({ "apiVersion": sent["apiVersion"], "kind": sent["kind"], "metadata": metadata })
            .to_string()
    }

    /// The object that the call is about, with another uid: as a read returns it, or for a creation its name alone.
    async fn with_other_uid(&self) -> std::io::Result<Answer> {
        let mut answer = match self.method {
            Method::GET => self.forward().await?,
            Method::POST => Answer::json(201, self.name_alone()),
            _ => {
                let path = self.uri.path().parse().expect("is a path");
                self.send(&self.state.client, Method::GET, &path, Bytes::new()).await?
            }
        };
        let mut body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let items = body["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            set_other_uid(&mut body);
        } else {
            body["items"] = items.into_iter().map(|mut it| set_other_uid(&mut it).take()).collect();
        }
        answer.body = body.to_string().into();
        Ok(answer)
    }
}

fn set_other_uid(object: &mut Value) -> &mut Value {
    if object["metadata"].is_object() {
        object["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000".into();
    }
    object
}

/// A response of the API server, or one in its place.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(status: u16, body: impl Into<Bytes>) -> Self {
        let json = HeaderValue::from_static("application/json");
        Answer {
            status: StatusCode::from_u16(status).expect("is a status"),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
            body: body.into(),
        }
    }

    /// An error in the form of the API server.
    fn error(status: u16, message: &str, retry_after: Option<u32>) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
            "message": message, "reason": "Test", "metadata": {},
            "details": retry_after.map(|seconds| json!({ "retryAfterSeconds": seconds })),
        });
        let mut answer = Answer::json(status, body.to_string());
        answer.headers.extend(retry_after.map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
        answer
    }

    fn with_date(mut self, seconds: i64, keep: bool) -> Self {
        let date = Utc::now() + TimeDelta::seconds(seconds);
        let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let date = HeaderValue::try_from(date).expect("is a header");
        if keep {
            self.headers.append(DATE, date);
        } else {
            self.headers.insert(DATE, date);
        }
        self
    }

    /// The response, whose body ends early if it is truncated.
    fn into_response(mut self, truncated: bool) -> Response<ProxyBody> {
        self.headers.remove(CONNECTION);
        self.headers.remove("transfer-encoding");
        self.headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        if truncated {
            self.body.truncate(self.body.len() / 2);
        }
        let mut response = Response::new(ProxyBody { bytes: Some(self.body), truncated });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// A body of one piece, which may end with an error.
struct ProxyBody {
    bytes: Option<Bytes>,
    truncated: bool,
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        Poll::Ready(self.truncated.then(|| Err(cut())))
    }
}

fn cut() -> std::io::Error {
    std::io::Error::other("cut")
}

/// Whether a call changes nothing: `dryRun` is in the query, or in the body of a deletion.
fn is_dry_run(uri: &Uri, body: &[u8]) -> bool {
    let in_body = || serde_json::from_slice(body).is_ok_and(|it: Value| !it["dryRun"].is_null());
    uri.query().is_some_and(|query| query.contains("dryRun=All")) || in_body()
}

async fn pass(
    state: Arc<State>,
    reset: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> std::io::Result<Response<ProxyBody>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let count = if head.method == Method::GET { &state.reads } else { &state.writes };
    let received = Received {
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        number: count.fetch_add(1, Ordering::SeqCst),
        index: state.calls.fetch_add(1, Ordering::SeqCst),
        is_dry_run: is_dry_run(&head.uri, &body),
    };
    let behavior = (state.rule)(&received);
    let is_effect = received.is_effect();
    let call = Call {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        state: state.clone(),
        body,
        index: received.index,
        is_effect,
    };
    let answer = match behavior {
        ProxyBehavior::Forward => call.forward().await?,
        ProxyBehavior::Delay(delay) => {
            sleep(delay).await;
            let answer = call.forward().await?;
            sleep(delay).await;
            answer
        }
        ProxyBehavior::DropRequest => return Err(cut()),
        ProxyBehavior::DropResponse => {
            call.forward().await?;
            return Err(cut());
        }
        ProxyBehavior::TruncateResponse => return Ok(call.forward().await?.into_response(true)),
        ProxyBehavior::Hang => hang().await,
        ProxyBehavior::HangAfterForward => {
            call.forward().await?;
            hang().await
        }
        ProxyBehavior::Hold(held) => {
            held.deliver_later(Arc::new(call));
            hang().await
        }
        ProxyBehavior::RepeatAndReturnSecond => {
            call.forward().await?;
            call.forward().await?
        }
        ProxyBehavior::RepeatLater(held) => {
            let answer = call.forward().await?;
            held.deliver_later(Arc::new(call));
            answer
        }
        ProxyBehavior::Respond(status, message) => Answer::error(status, message, None),
        ProxyBehavior::RespondRetryAfter(status, seconds) => {
            Answer::error(status, "retry later", Some(seconds))
        }
        ProxyBehavior::ForwardAndRespond(status) => {
            call.forward().await?;
            Answer::error(status, "failed after the change", None)
        }
        ProxyBehavior::RespondBody(body) => Answer::json(200, body),
        ProxyBehavior::RespondOtherUid => call.with_other_uid().await?,
        ProxyBehavior::StripBody => call.forward_body(&state.client, Bytes::new()).await?,
        // Not dropped with the client's connection: the API server's stays half open.
        ProxyBehavior::ForwardTo(other) => {
            let forward = async move { call.forward_body(&other, call.body.clone()).await };
            tokio::spawn(forward).await.map_err(std::io::Error::other)??
        }
        ProxyBehavior::Redirect => {
            let mut answer = Answer::error(307, "moved", None);
            let place = HeaderValue::try_from(call.uri.path()).expect("is a header");
            answer.headers.insert(LOCATION, place);
            answer
        }
        ProxyBehavior::Reset => {
            reset.store(true, Ordering::SeqCst);
            return Err(cut());
        }
        ProxyBehavior::DuplicateDate => call.forward().await?.with_date(7200, true),
        ProxyBehavior::ShiftDate(seconds) => call.forward().await?.with_date(seconds, false),
    };
    Ok(answer.into_response(false))
}

/// Never responds. hyper drops the call when its client closes the connection.
async fn hang<T>() -> T {
    std::future::pending().await
}
