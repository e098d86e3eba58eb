//! The dispatcher: from a request that has been read to the endpoint that answers it, whether the server
//! or the function runtime has read it.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderValue, Method, Response, header};
use tokio::{sync::watch, task::JoinError};
use tracing::{Instrument, field::Empty};

use crate::{
    auth::{Authenticator, Caller, Credentials, permissions::PermissionCache},
    config::{McpSettings, ProtectedResource, Settings, reload::Reloading},
    contract::error::{ActionError, Code},
    executor::{context::Context, reply::Reply},
    http::{
        addressee::Addressee,
        assets::{self, Document},
        endpoints::{
            cloudevents, diagnosis, execute, history, mcp, metrics, operation, protected_resource,
            readiness::{self, Readiness},
            respond_async::BackgroundTasks,
            sse::Watchers,
        },
        message::{Body, FullRequest, RequestInfo},
        routes::{Asset, MatchedPath, Route},
        tls::Tls,
    },
    mcp::calls::Waits,
    telemetry::traces,
};

/// What the endpoints answer with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    /// The executor's context.
    pub context: Context,
    /// Who may call.
    pub callers: Arc<Authenticator>,
    /// What is known of their permissions.
    pub permissions: Arc<PermissionCache>,
    /// How MCP is served.
    pub mcp: McpSettings,
    /// What is said of it to OAuth clients.
    pub resource: Option<ProtectedResource>,
    /// What is known of the cluster's readiness.
    pub readiness: Arc<Readiness>,
    /// What only a server has.
    pub server: Option<ServerState>,
}

/// What a server has and a function does not.
#[derive(Clone)]
pub(crate) struct ServerState {
    /// The work that continues after its response.
    pub background: BackgroundTasks,
    /// The waits of MCP calls.
    pub waits: Waits,
    /// The requests that are watched.
    pub watchers: Watchers,
    /// The certificate that is served.
    pub tls: Option<Arc<Reloading<Tls>>>,
    /// The list of the actions, with the cluster's name.
    pub actions: Arc<OnceLock<Document>>,
}

impl Service {
    /// A service for this context, these callers and these settings.
    pub(crate) fn new(context: Context, callers: Arc<Authenticator>, settings: &Settings) -> Self {
        Service {
            context,
            callers,
            permissions: Arc::default(),
            mcp: settings.mcp,
            resource: settings.protected_resource.clone(),
            readiness: Arc::default(),
            server: None,
        }
    }

    /// The same service in a server, which is ready only until `stopping` becomes true.
    pub(crate) fn in_server(
        mut self,
        server: ServerState,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        self.server = Some(server);
        self.readiness = Arc::new(Readiness::until(stopping));
        self
    }

    /// The same service for work that has to be over after `left`.
    #[cfg(feature = "lambda")]
    pub(crate) fn with_deadline(mut self, left: std::time::Duration) -> Self {
        self.context = self.context.with_deadline(left);
        self
    }

    /// The caller of a request, which is known before its body is read; none if authentication is off, or not
    /// required for this route.
    ///
    /// # Errors
    /// As [`Authenticator::authenticate`].
    pub(crate) async fn authenticate(
        &self,
        method: &Method,
        path: MatchedPath,
        credentials: impl FnOnce() -> Credentials,
    ) -> Result<Option<Caller>, ActionError> {
        if !path.requires_authentication(method.as_str()) {
            return Ok(None);
        }
        self.callers.authenticate(&credentials(), self.context.reviewer()).await
    }

    /// The cluster of the list that a request means, as far as it can be read before it is dispatched.
    pub(crate) fn cluster_meant(
        &self,
        request: &FullRequest,
        path: MatchedPath,
    ) -> Option<&Arc<str>> {
        if !self.context.has_list() {
            return None;
        }
        let addressee = match path.route(request.method().as_str()).ok()? {
            Route::Execute => Addressee::of_request(request.body()),
            Route::CloudEvent => Addressee::of_request(&cloudevents::data(request)?),
            Route::Mcp => Addressee::of_message(request.body()),
            _ => None,
        };
        self.context.meant_by(addressee?.cluster.as_deref())
    }

    /// Answers a request.
    pub(crate) async fn dispatch(&self, request: FullRequest, info: RequestInfo) -> Response<Body> {
        let route = match info.path.route(request.method().as_str()) {
            Ok(route) => route,
            Err(error) => return self.problem(error, info.path.allow()),
        };
        if let (Route::Asset(Asset::Actions), Some(server)) = (route, &self.server) {
            let document =
                server.actions.get_or_init(|| assets::actions_document(Some(&self.context)));
            return document.response(request.headers());
        }
        if let Some(response) = answer_static(route, request.headers()) {
            return response;
        }
        let span = tracing::info_span!(
            parent: &info.span,
            "answer",
            request_id = info.request_id.to_str().unwrap_or_default(),
            trace_id = Empty
        );
        // The client's trace context is in the parent, if there is one.
        let no_headers = HeaderMap::new();
        let is_root = info.span.is_disabled();
        traces::extract(&span, if is_root { request.headers() } else { &no_headers });
        // An endpoint's state is large, and most connections are idle: it is no part of each one's task. Nor are
        // those of the endpoints that call the cluster part of every request's.
        let answer = Box::pin(async {
            match route {
                Route::Execute => execute::execute(self, request, info).await,
                Route::CloudEvent if request.method() == Method::OPTIONS => {
                    cloudevents::validate(self, request.headers())
                }
                Route::CloudEvent => Box::pin(cloudevents::receive(self, request, info)).await,
                Route::Mcp => Box::pin(mcp::post(self, request, info)).await,
                Route::Operation => Box::pin(operation::get(self, &request, &info)).await,
                Route::History => Box::pin(history::get(self, &request, &info)).await,
                Route::Diagnosis => Box::pin(diagnosis::get(self, &request, &info)).await,
                Route::ProtectedResource => protected_resource::get(self),
                Route::Ready => Ok(Box::pin(readiness::get(self)).await),
                _ => metrics::get(self),
            }
        });
        answer.instrument(span).await.unwrap_or_else(|error| self.problem(error, None))
    }

    /// The response to a request that is refused before it is dispatched.
    pub(crate) fn refused(&self, error: ActionError, path: MatchedPath) -> Response<Body> {
        let is_unauthenticated = error.code == Code::Unauthenticated;
        let mut response = Response::from(Reply::from(error));
        if is_unauthenticated
            && path.route("POST") == Ok(Route::Mcp)
            && let Some(challenge) = self.resource.as_ref().and_then(protected_resource::challenge)
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// The served certificate, if this is a server with TLS.
    pub(crate) fn tls(&self) -> Option<&Reloading<Tls>> {
        self.server.as_ref()?.tls.as_deref()
    }

    fn problem(&self, error: ActionError, allow: Option<String>) -> Response<Body> {
        if let Some(metrics) = self.context.metrics() {
            metrics.problem(&error);
        }
        let allow = allow.filter(|_| error.code == Code::MethodNotAllowed);
        let mut response = Response::from(Reply::from(error));
        if let Some(allow) = allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

/// The response of a route that needs neither cluster nor context.
pub(crate) fn answer_static(route: Route, headers: &HeaderMap) -> Option<Response<Body>> {
    match route {
        Route::Health => Some(readiness::healthy()),
        Route::Asset(asset) => Some(assets::get(asset, headers)),
        _ => None,
    }
}

/// The problem to answer with when the task of a request has panicked.
pub(crate) fn handler_panicked(panic: &JoinError) -> ActionError {
    tracing::error!(%panic, "a handler panicked");
    ActionError::new(Code::Internal, "a handler panicked; this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_routes_need_no_cluster() {
        let status = |path: &str| {
            let route = MatchedPath::of(path).route("GET").expect("is served");
            answer_static(route, &HeaderMap::new()).map(|response| response.status().as_u16())
        };
        for path in
            ["/api/v1/healthz", "/docs", "/docs/page.js", "/openapi.json", "/api/v1/actions"]
        {
            assert_eq!(status(path), Some(200), "{path}");
        }
        for path in ["/readyz", "/api/v1/history"] {
            assert_eq!(status(path), None, "{path}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_problem() {
        let panic = tokio::spawn(async { panic!("a test's own") }).await.expect_err("panics");
        assert_eq!(handler_panicked(&panic).code, Code::Internal);
    }
}
