//! What is answered at each path, whoever carries the question here and the answer away: the server's
//! router, or the function runtime.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::sync::watch;
use tracing::{Instrument, field::Empty};

use crate::{
    auth::Authenticator,
    config::reload::Reloading,
    contract::error::{ActionError, Code},
    executor::{
        context::Context,
        incoming::{IncomingRequest, execute},
        reply::Reply,
    },
    http::{
        assets,
        body::{PLACE, REQUEST_ID},
        concurrency::Queue,
        endpoints::{
            cloudevents, history, operation,
            operation::Followers,
            readiness::Readiness,
            respond_async::{Later, carry_out_later},
        },
        headers,
        headers::{
            check_accept, check_content_type, client_timeout, idempotency_key, respond_async,
        },
        message::{Body, credentials, whole},
        routes::{HEALTHY, Route},
        tls::Tls,
    },
    telemetry::{metrics::MEDIA_TYPE, traces},
};

/// How long before a client's time is over its action ends: long enough to find out what became of a
/// write, and to record it. At most a quarter of that time.
const MARGIN: Duration = Duration::from_secs(2);

/// What there is to answer with. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    context: Context,
    callers: Arc<Authenticator>,
    readiness: Arc<Readiness>,
    lasting: Option<Lasting>,
}

/// What only a process that stays has, besides.
#[derive(Clone)]
pub struct Lasting {
    /// Where there is room for work that goes on once it was answered.
    pub later: Later,
    /// Those who follow it.
    pub followers: Followers,
    /// Where requests have their places.
    pub places: Arc<Queue>,
    /// The certificate that the edge serves with.
    pub tls: Option<Arc<Reloading<Tls>>>,
}

impl Service {
    /// A service for this context and these callers.
    #[must_use]
    pub fn new(context: Context, callers: Arc<Authenticator>) -> Self {
        Service { context, callers, readiness: Arc::default(), lasting: None }
    }

    /// The same service in a process that stays, and is ready only until `stopping` becomes true.
    #[must_use]
    pub fn lasting(mut self, lasting: Lasting, stopping: watch::Receiver<bool>) -> Self {
        self.lasting = Some(lasting);
        self.readiness = Arc::new(Readiness::until(stopping));
        self
    }

    /// The same service for work that has to be over after `left`.
    #[cfg(feature = "lambda")]
    #[must_use]
    pub fn within(mut self, left: Duration) -> Self {
        self.context = self.context.with_deadline(left);
        self
    }

    /// Answers a whole request. Its target is a path, with or without a query.
    pub async fn answer(&self, request: Request<Vec<u8>>) -> Response<Body> {
        let request_id = headers::header(request.headers(), REQUEST_ID.as_str());
        let span = tracing::info_span!("answer", request_id, trace_id = Empty);
        traces::extract(&span, request.headers());
        self.reply(request).instrument(span).await
    }

    async fn reply(&self, request: Request<Vec<u8>>) -> Response<Body> {
        let method = request.method().as_str();
        let target = request.uri().path().to_owned();
        let result = match Route::of(method, &target) {
            Ok(route) => self.at(route, request).await,
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| self.problem(error, &target))
    }

    async fn at(
        &self,
        route: Route,
        request: Request<Vec<u8>>,
    ) -> Result<Response<Body>, ActionError> {
        match route {
            Route::Health => Ok(healthy()),
            Route::Ready => Ok(self.ready().await),
            Route::Metrics => self.counted(),
            Route::Execute => self.execute(request).await,
            Route::Receive => {
                let credentials = credentials(&request);
                let time = time_for(request.headers())?;
                let context = bounded(self.with_place(request.headers()), time);
                cloudevents::receive(&context, &self.callers, &credentials, request).await
            }
            Route::Progress => {
                let (credentials, lasting) = (credentials(&request), self.lasting.as_ref());
                let followers = lasting.map(|it| &it.followers);
                let (context, callers) = (&self.context, &self.callers);
                operation::tell(context, callers, &credentials, followers, &request).await
            }
            Route::History => history::answer(&self.context, &self.callers, &request).await,
            Route::Fixed(which) => Ok(assets::answer(which, &request)),
        }
    }

    async fn execute(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, ActionError> {
        let header = |name| headers::header(request.headers(), name);
        check_accept(header("accept").as_deref())?;
        check_content_type(header("content-type").as_deref())?;
        let key = idempotency_key(header("idempotency-key").as_deref())?;
        let patience = respond_async(header("prefer").as_deref());
        let credentials = credentials(&request);
        let (time, context) = (time_for(request.headers())?, self.with_place(request.headers()));
        let delivery = IncomingRequest { body: request.into_body(), key, event: None };
        if let (Some(patience), Some(lasting)) = (patience, &self.lasting)
            && let Some(place) = lasting.later.place()
        {
            // The client's time is for its answer; what is put off outlasts it.
            let patience = time.map_or(patience, |time| patience.min(time));
            let callers = self.callers.clone();
            return carry_out_later(context, callers, delivery, credentials, place, patience).await;
        }
        let context = bounded(context, time);
        let done = execute(&context, &self.callers, &delivery, &credentials).await?;
        Ok(Reply::from(done).into())
    }

    /// The context for the work that a request with these headers asks for, whose place in the queue is told
    /// when only a wait is left.
    fn with_place(&self, headers: &HeaderMap) -> Context {
        let place = headers::header(headers, PLACE.as_str()).and_then(|it| it.parse().ok());
        match (&self.lasting, place) {
            (Some(lasting), Some(place)) => {
                let places = lasting.places.clone();
                self.context.clone().map_observer(|it| it.on_waiting(move || places.rest(place)))
            }
            _ => self.context.clone(),
        }
    }

    fn tls(&self) -> Option<&Reloading<Tls>> {
        self.lasting.as_ref()?.tls.as_deref()
    }

    async fn ready(&self) -> Response<Body> {
        let ready = match self.tls().and_then(Reloading::load_error) {
            Some(fault) => Err(fault),
            None => self.readiness.of(&self.context, &self.callers).await,
        };
        match ready {
            Ok(()) => healthy(),
            Err(error) => {
                let mut response = Response::from(Reply::from(error));
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        }
    }

    fn counted(&self) -> Result<Response<Body>, ActionError> {
        // Each process of a function would tell of itself, and nobody knows how many there are.
        let metrics = self.context.metrics().ok_or_else(|| {
            ActionError::new(Code::RouteNotFound, "a function has no metrics")
                .with_hint("the platform counts invocations and errors")
        })?;
        let mut documents = vec![
            ("policy", self.context.policy_error().is_none()),
            ("keys", self.callers.load_error().is_none()),
        ];
        if let Some(tls) = self.tls() {
            documents.push(("certificate", tls.load_error().is_none()));
            for (certificate, at) in tls.current().expiries() {
                metrics.certificate_expires(certificate, *at);
            }
        }
        Ok(whole(MEDIA_TYPE, metrics.text(&documents)))
    }

    fn problem(&self, error: ActionError, target: &str) -> Response<Body> {
        if let Some(metrics) = self.context.metrics() {
            metrics.problem(&error);
        }
        let allow = Route::allow(target).filter(|_| error.code == Code::MethodNotAllowed);
        let mut response = Response::from(Reply::from(error));
        if let Some(allow) = allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

/// What is answered whether or not there is a cluster, or anything else to be had.
#[cfg(feature = "lambda")]
#[must_use]
pub fn at_once(request: &Request<Vec<u8>>) -> Option<Response<Body>> {
    match Route::of(request.method().as_str(), request.uri().path()) {
        Ok(Route::Health) => Some(healthy()),
        Ok(Route::Fixed(which)) => Some(assets::answer(which, request)),
        _ => None,
    }
}

/// The time for the work that a request with these headers asks for, if its client's is bounded.
///
/// # Errors
/// As [`client_timeout`] says.
fn time_for(headers: &HeaderMap) -> Result<Option<Duration>, ActionError> {
    let time = client_timeout(headers)?;
    Ok(time.map(|time| time - MARGIN.min(time / 4)))
}

fn bounded(context: Context, time: Option<Duration>) -> Context {
    match time {
        Some(time) => context.with_deadline(time),
        None => context,
    }
}

fn healthy() -> Response<Body> {
    whole("application/json", HEALTHY)
}

#[cfg(all(test, feature = "lambda"))]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_cluster_is_answered_without_one() {
        let asked = |path: &str| {
            at_once(&Request::get(path).body(Vec::new()).expect("is a request"))
                .map(|answer| answer.status().as_u16())
        };
        for path in
            ["/api/v1/healthz", "/docs", "/docs/page.js", "/openapi.json", "/api/v1/actions"]
        {
            assert_eq!(asked(path), Some(200), "{path}");
        }
        for path in ["/readyz", "/api/v1/history", "/nowhere"] {
            assert_eq!(asked(path), None, "{path}");
        }
    }
}
