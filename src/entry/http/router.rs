//! The router: takes whole requests from the edge, finds out what is asked, and answers.
//!
//! Its threads never wait for an action: they hand it to the runtime and take the next request, so
//! that the questions of a probe are answered however many rollouts are being waited for.

use std::{io, os::unix::net::UnixListener, sync::Arc, thread, time::Duration};

use tiny_http::{Header, Method, Request, Response, Server};
use tokio::{
    runtime::Handle,
    sync::Mutex,
    time::{Instant, timeout},
};

use super::routes::{HEALTHY, Route, check_accept, check_content_type, idempotency_key};
use crate::{
    callers::{Callers, Credentials},
    context::Context,
    entry::{Answer, Delivery, carry_out},
    error::{ActionError, Code},
    metrics::{MEDIA_TYPE, Metrics},
};

/// Threads that route; they only parse and hand on.
const THREADS: usize = 2;

/// How long the cluster's answer to a readiness question holds, so that probes do not load it.
const READINESS_HOLDS: Duration = Duration::from_secs(1);

/// Longest time to find out whether the cluster is ready.
const READINESS_TIMEOUT: Duration = Duration::from_secs(3);

/// What the router answers with.
pub struct Router {
    context: Context,
    callers: Callers,
    metrics: Arc<Metrics>,
    readiness: Mutex<Option<(Instant, Result<(), ActionError>)>>,
}

/// One answer on its way out.
struct Reply {
    status: u16,
    headers: Vec<Header>,
    body: Vec<u8>,
}

impl Router {
    /// A router for this context and these callers.
    #[must_use]
    pub fn new(context: Context, callers: Callers, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Router { context, callers, metrics, readiness: Mutex::default() })
    }

    /// Starts routing what comes in on `listener`; the actions run on `runtime`.
    ///
    /// # Errors
    /// When the listener cannot be used or a thread cannot be started.
    pub fn start(self: &Arc<Self>, listener: UnixListener, runtime: &Handle) -> io::Result<()> {
        let server = Server::from_listener(listener, None).map_err(io::Error::other)?;
        let server = Arc::new(server);
        for number in 0..THREADS {
            let (router, server, runtime) = (self.clone(), server.clone(), runtime.clone());
            thread::Builder::new().name(format!("router-{number}")).spawn(move || {
                for request in server.incoming_requests() {
                    router.route(request, &runtime);
                }
            })?;
        }
        Ok(())
    }

    fn route(self: &Arc<Self>, mut request: Request, runtime: &Handle) {
        let (method, target) = (request.method().to_string(), request.url().to_owned());
        let reply = match Route::of(&method, &target) {
            Err(error) => self.problem(error).with_allow(&target),
            Ok(route) => match self.accept(route, &mut request) {
                Ok(None) => Reply::json(200, HEALTHY.into()),
                Ok(Some(work)) => {
                    let router = self.clone();
                    runtime.spawn(async move { guarded(router.work(work)).await.send(request) });
                    return;
                }
                Err(error) => self.problem(error),
            },
        };
        reply.send(request);
    }

    /// Checks what can be checked at once; what is left to do takes time.
    fn accept(&self, route: Route, request: &mut Request) -> Result<Option<Work>, ActionError> {
        match route {
            Route::Health => Ok(None),
            Route::Ready => Ok(Some(Work::Ready)),
            Route::Metrics => Ok(Some(Work::Metrics)),
            Route::Execute => {
                check_accept(header(request, "Accept").as_deref())?;
                check_content_type(header(request, "Content-Type").as_deref())?;
                let key = idempotency_key(header(request, "Idempotency-Key").as_deref())?;
                let mut body = Vec::new();
                request.as_reader().read_to_end(&mut body).map_err(|error| {
                    ActionError::new(Code::Internal, format!("the edge broke off: {error}"))
                })?;
                let authorization = header(request, "Authorization");
                let credentials = Credentials { authorization, recognised: None };
                Ok(Some(Work::Execute(Delivery { body, key }, credentials)))
            }
        }
    }

    async fn work(self: Arc<Self>, work: Work) -> Reply {
        match work {
            Work::Ready => match self.ready().await {
                Ok(()) => Reply::json(200, HEALTHY.into()),
                Err(error) => Reply::problem(error).with_status(503),
            },
            Work::Metrics => self.counted(),
            Work::Execute(delivery, credentials) => {
                match carry_out(&self.context, &self.callers, &delivery, &credentials).await {
                    Ok(answer) => Answer::from(answer).into(),
                    Err(error) => self.problem(error),
                }
            }
        }
    }

    fn problem(&self, error: ActionError) -> Reply {
        self.metrics.problem(&error);
        Reply::problem(error)
    }

    fn counted(&self) -> Reply {
        let documents = [
            ("policy", self.context.policy_fault().is_none()),
            ("keys", self.callers.fault().is_none()),
        ];
        Reply {
            status: 200,
            headers: vec![field("Content-Type", MEDIA_TYPE)],
            body: self.metrics.text(&documents).into_bytes(),
        }
    }

    async fn ready(&self) -> Result<(), ActionError> {
        // Held while asking, so that many probes at once ask once.
        let mut last = self.readiness.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < READINESS_HOLDS
        {
            return result.clone();
        }
        let late = || ActionError::new(Code::ClusterUnreachable, "the cluster does not answer");
        let result = match self.callers.fault() {
            Some(fault) => Err(fault),
            None => {
                let result = timeout(READINESS_TIMEOUT, self.context.ready()).await;
                result.unwrap_or_else(|_| Err(late()))
            }
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

/// What takes time.
enum Work {
    Ready,
    Metrics,
    /// A request, and what its caller says to prove who they are.
    Execute(Delivery, Credentials),
}

/// Does the work in a task of its own, so that a panic in it is an answer like any other.
async fn guarded(work: impl Future<Output = Reply> + Send + 'static) -> Reply {
    tokio::spawn(work).await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a handler panicked");
        Reply::problem(ActionError::new(Code::Internal, "a handler panicked; this is a bug"))
    })
}

impl Reply {
    fn json(status: u16, body: Vec<u8>) -> Self {
        Reply { status, headers: vec![field("Content-Type", "application/json")], body }
    }

    fn problem(error: ActionError) -> Self {
        Answer::from(error).into()
    }

    fn with_status(self, status: u16) -> Self {
        Reply { status, ..self }
    }

    fn with_allow(mut self, target: &str) -> Self {
        self.headers.extend(Route::allow(target).map(|allow| field("Allow", &allow)));
        self
    }

    fn send(self, request: Request) {
        let length = self.body.len();
        let body = if *request.method() == Method::Head { Vec::new() } else { self.body };
        let status = self.status.into();
        let response = Response::new(status, self.headers, body.as_slice(), Some(length), None);
        if let Err(error) = request.respond(response) {
            tracing::warn!(%error, "an answer did not reach the edge");
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        let headers = answer.headers();
        let headers = headers.iter().map(|(name, value)| field(name, value)).collect();
        Reply { status: answer.http_status, headers, body: answer.body }
    }
}

fn field(name: &'static str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("our own header fields are ASCII")
}

/// All values of a header as one, as RFC 9110 (section 5.3) joins them.
fn header(request: &Request, name: &'static str) -> Option<String> {
    let values: Vec<&str> = request
        .headers()
        .iter()
        .filter(|header| header.field.equiv(name))
        .map(|header| header.value.as_str())
        .collect();
    (!values.is_empty()).then(|| values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Settings, document::Followed};

    #[tokio::test]
    async fn a_panic_is_an_answer_like_any_other() {
        let reply = guarded(async { panic!("a test's own") }).await;
        assert_eq!(reply.status, 500);
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("is JSON");
        assert_eq!(body["code"], "internal");
    }

    #[tokio::test]
    async fn the_clusters_readiness_is_asked_once_and_holds() {
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = Followed::new(None).expect("is the shipped one");
        let router = Router::new(
            Context::new(None, policy, &settings, stopping),
            Callers::new(None, None),
            Arc::new(Metrics::new(None)),
        );
        assert_eq!(router.ready().await, Ok(()));
        let unready = ActionError::new(Code::ClusterUnreachable, "gone");
        *router.readiness.lock().await = Some((Instant::now(), Err(unready.clone())));
        assert_eq!(router.ready().await, Err(unready));
    }
}
