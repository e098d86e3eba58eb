//! What is answered at each path, whoever carries the question here and the answer away: the server's
//! router, or the function runtime.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, header};
use tokio::sync::mpsc;

use super::{
    fixed, history,
    negotiation::{self, check_accept, check_content_type, idempotency_key},
    passage::PEER,
    readiness::Readiness,
    routes::{HEALTHY, Route},
};
use crate::{
    callers::{Callers, Credentials},
    context::Context,
    entry::{Answer, Delivery, carry_out},
    error::{ActionError, Code},
    metrics::MEDIA_TYPE,
};

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// Its parts, as they come; whoever sends them learns from the channel that nobody listens any more.
    Stream(mpsc::Receiver<Vec<u8>>),
}

/// Whom the platform in front has recognised and let through; an extension of the request.
#[derive(Clone, Debug)]
pub struct Recognised(pub String);

/// What there is to answer with. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    context: Context,
    callers: Arc<Callers>,
    readiness: Arc<Readiness>,
}

impl Service {
    /// A service for this context and these callers.
    #[must_use]
    pub fn new(context: Context, callers: Arc<Callers>) -> Self {
        Service { context, callers, readiness: Arc::default() }
    }

    /// The same service for work that has to be over after `left`.
    #[must_use]
    #[cfg_attr(not(feature = "lambda"), allow(dead_code, reason = "only a function's time ends"))]
    pub fn within(mut self, left: Duration) -> Self {
        self.context = self.context.within(left);
        self
    }

    /// Answers a whole request. Its target is a path, with or without a query.
    pub async fn answer(&self, request: Request<Vec<u8>>) -> Response<Body> {
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
            Route::History => history::answer(&self.context, &self.callers, &request).await,
            Route::Fixed(which) => Ok(fixed::answer(which, &request)),
        }
    }

    async fn execute(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, ActionError> {
        let header = |name| negotiation::header(request.headers(), name);
        check_accept(header("accept").as_deref())?;
        check_content_type(header("content-type").as_deref())?;
        let key = idempotency_key(header("idempotency-key").as_deref())?;
        let credentials = credentials(&request);
        let delivery = Delivery { body: request.into_body(), key };
        let done = carry_out(&self.context, &self.callers, &delivery, &credentials).await?;
        Ok(Answer::from(done).into())
    }

    async fn ready(&self) -> Response<Body> {
        match self.readiness.of(&self.context, &self.callers).await {
            Ok(()) => healthy(),
            Err(error) => Answer { http_status: 503, ..error.into() }.into(),
        }
    }

    fn counted(&self) -> Result<Response<Body>, ActionError> {
        // Each process of a function would tell of itself, and nobody knows how many there are.
        let metrics = self.context.metrics().ok_or_else(|| {
            ActionError::new(Code::RouteNotFound, "a function has no metrics")
                .with_hint("the platform counts invocations and errors")
        })?;
        let documents = [
            ("policy", self.context.policy_fault().is_none()),
            ("keys", self.callers.fault().is_none()),
        ];
        Ok(whole(MEDIA_TYPE, metrics.text(&documents)))
    }

    fn problem(&self, error: ActionError, target: &str) -> Response<Body> {
        if let Some(metrics) = self.context.metrics() {
            metrics.problem(&error);
        }
        let allow = Route::allow(target).filter(|_| error.code == Code::MethodNotAllowed);
        let mut response = Response::from(Answer::from(error));
        if let Some(allow) = allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

/// What is answered whether or not there is a cluster, or anything else to be had.
#[must_use]
#[cfg_attr(not(feature = "lambda"), allow(dead_code, reason = "a server always has its service"))]
pub fn at_once(request: &Request<Vec<u8>>) -> Option<Response<Body>> {
    match Route::of(request.method().as_str(), request.uri().path()) {
        Ok(Route::Health) => Some(healthy()),
        Ok(Route::Fixed(which)) => Some(fixed::answer(which, request)),
        _ => None,
    }
}

/// What came beside a request to prove who it is from.
pub(super) fn credentials(request: &Request<Vec<u8>>) -> Credentials {
    Credentials {
        authorization: negotiation::header(request.headers(), "authorization"),
        recognised: request.extensions().get::<Recognised>().map(|it| it.0.clone()),
        peer: negotiation::header(request.headers(), PEER.as_str()).and_then(|it| it.parse().ok()),
    }
}

fn healthy() -> Response<Body> {
    whole("application/json", HEALTHY)
}

/// An answer that is there as a whole.
pub(super) fn whole(media_type: &'static str, body: impl Into<Vec<u8>>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

impl From<Answer> for Response<Body> {
    fn from(answer: Answer) -> Self {
        let headers = answer.headers();
        let mut response = Response::new(Body::Whole(answer.body));
        *response.status_mut() =
            StatusCode::from_u16(answer.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in headers {
            // Our own header fields are ASCII.
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

#[cfg(test)]
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
