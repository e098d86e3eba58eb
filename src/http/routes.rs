//! Which path and method is which: decisions on text alone.

use crate::{
    contract::error::{ActionError, Code},
    http::endpoints::protected_resource::METADATA_PATH,
};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Whether the process is alive.
    Health,
    /// Whether an action could be carried out now.
    Ready,
    /// The metrics.
    Metrics,
    /// Carry out a request.
    Execute,
    /// Carry out the request of a CloudEvent.
    CloudEvent,
    /// Answer a message of the Model Context Protocol.
    Mcp,
    /// Whose tokens MCP takes.
    ProtectedResource,
    /// The state of a request.
    Operation,
    /// What was done.
    History,
    /// What is wrong with a target.
    Diagnosis,
    /// A document that is the same for every client.
    Asset(Asset),
}

/// The documents that are the same for every client, as long as the program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asset {
    /// Every action with its schema.
    Actions,
    /// The OpenAPI description.
    OpenApi,
    /// The page for people.
    Page,
    /// Its script.
    Script,
    /// Its style.
    Style,
}

/// The response of both health checks when all is well, in the original service's words.
pub(crate) const HEALTHY: &str = r#"{"status":"ok"}"#;

const GET_HEAD: &[&str] = &["GET", "HEAD"];
const POST: &[&str] = &["POST"];
const POST_OPTIONS: &[&str] = &["POST", "OPTIONS"];

/// Each path with its methods, its route and its purpose; `{...}` matches any one segment.
pub(crate) static ROUTES: [Entry; 17] = [
    ("/api/v1/healthz", GET_HEAD, Route::Health, "whether the process is alive"),
    ("/readyz", GET_HEAD, Route::Ready, "whether an action could be carried out now"),
    ("/metrics", GET_HEAD, Route::Metrics, "metrics for Prometheus"),
    ("/api/v1/action/execute", POST, Route::Execute, "carry out a request"),
    (
        "/",
        POST_OPTIONS,
        Route::CloudEvent,
        "carry out the request of a CloudEvent; OPTIONS: may a sender deliver events here?",
    ),
    ("/mcp", POST, Route::Mcp, "the Model Context Protocol: the tools of an agent"),
    (
        METADATA_PATH,
        GET_HEAD,
        Route::ProtectedResource,
        "whose tokens `/mcp` takes, if an OAuth issuer is configured",
    ),
    ("/.well-known/oauth-protected-resource", GET_HEAD, Route::ProtectedResource, "the same"),
    (
        "/api/v1/actions/{id}",
        GET_HEAD,
        Route::Operation,
        "the state of a request, once or as a stream of events",
    ),
    (
        "/api/v1/actions",
        GET_HEAD,
        Route::Asset(Asset::Actions),
        "every action with the JSON Schema of its parameters",
    ),
    ("/api/v1/history", GET_HEAD, Route::History, "what was done, by whom and why, newest first"),
    ("/api/v1/diagnosis", GET_HEAD, Route::Diagnosis, "what is wrong with a target"),
    ("/openapi.json", GET_HEAD, Route::Asset(Asset::OpenApi), "the OpenAPI 3.1 description"),
    ("/docs", GET_HEAD, Route::Asset(Asset::Page), "the page for people"),
    ("/docs/page.js", GET_HEAD, Route::Asset(Asset::Script), "its script"),
    ("/docs/page.css", GET_HEAD, Route::Asset(Asset::Style), "its style"),
    ("/history", GET_HEAD, Route::Asset(Asset::Page), "the page of the history"),
];

/// A path with its methods, its route and its purpose.
type Entry = (&'static str, &'static [&'static str], Route, &'static str);

/// What [`ROUTES`] has for the path of a request: found once, and used by all that answers the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MatchedPath(Option<&'static Entry>);

impl MatchedPath {
    /// What is served under this target; a query is no part of it.
    pub(crate) fn of(target: &str) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        MatchedPath(ROUTES.iter().find(|(pattern, ..)| matches(pattern, path)))
    }

    /// The route of a request with this method.
    ///
    /// # Errors
    /// [`Code::RouteNotFound`] or [`Code::MethodNotAllowed`].
    pub(crate) fn route(self, method: &str) -> Result<Route, ActionError> {
        let Some((_, methods, ..)) = self.0 else {
            let known: Vec<_> = ROUTES.iter().map(|(path, ..)| *path).collect();
            return Err(ActionError::new(Code::RouteNotFound, "no such path")
                .with_hint(format!("served: {}", known.join(", "))));
        };
        self.find(method).ok_or_else(|| {
            let allowed = methods.join(", ");
            ActionError::new(Code::MethodNotAllowed, format!("this path accepts only {allowed}"))
        })
    }

    /// What is served to a request with this method.
    fn find(self, method: &str) -> Option<Route> {
        let (_, methods, route, _) = self.0?;
        methods.contains(&method).then_some(*route)
    }

    /// Whether a request with this method is a health check.
    pub(crate) fn is_health_check(self, method: &str) -> bool {
        matches!(self.find(method), Some(Route::Health | Route::Ready))
    }

    /// Whether a request with this method requires authentication, if that is on.
    pub(crate) fn requires_authentication(self, method: &str) -> bool {
        match self.find(method) {
            None
            | Some(
                Route::Health
                | Route::Ready
                | Route::Metrics
                | Route::ProtectedResource
                | Route::Asset(_),
            ) => false,
            // A question before the first delivery.
            Some(Route::CloudEvent) => method != "OPTIONS",
            Some(
                Route::Execute | Route::Mcp | Route::Operation | Route::History | Route::Diagnosis,
            ) => true,
        }
    }

    /// The path in the metrics: one that is served, or `other`.
    pub(crate) fn name(self) -> &'static str {
        self.0.map_or("other", |(path, ..)| path)
    }

    /// The value of `Allow` for the path, whatever the method.
    pub(crate) fn allow(self) -> Option<String> {
        self.0.map(|(_, methods, ..)| methods.join(", "))
    }
}

/// Whether a path is what a pattern says, segment by segment.
fn matches(pattern: &str, path: &str) -> bool {
    // Most patterns match one path.
    if !pattern.contains('{') {
        return pattern == path;
    }
    let (mut expected, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return true,
            (Some(any), Some(segment)) if any.starts_with('{') && !segment.is_empty() => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &str, target: &str) -> Result<Route, Code> {
        MatchedPath::of(target).route(method).map_err(|error| error.code)
    }

    #[test]
    fn each_path_takes_its_methods() {
        assert_eq!(route("GET", "/api/v1/healthz"), Ok(Route::Health));
        assert_eq!(route("HEAD", "/readyz"), Ok(Route::Ready));
        assert_eq!(route("POST", "/api/v1/action/execute"), Ok(Route::Execute));
        assert_eq!(route("GET", "/api/v1/action/execute"), Err(Code::MethodNotAllowed));
        assert_eq!(route("POST", "/api/v1/healthz"), Err(Code::MethodNotAllowed));
        assert_eq!(route("OPTIONS", "/"), Ok(Route::CloudEvent));
        assert_eq!(MatchedPath::of("/readyz").allow().as_deref(), Some("GET, HEAD"));
    }

    #[test]
    fn routes_that_act_or_read_require_authentication() {
        let required = |method, path| MatchedPath::of(path).requires_authentication(method);
        for (method, path) in [
            ("POST", "/api/v1/action/execute"),
            ("POST", "/"),
            ("POST", "/mcp"),
            ("GET", "/api/v1/actions/a"),
            ("HEAD", "/api/v1/history"),
        ] {
            assert!(required(method, path), "{method} {path}");
        }
        for (method, path) in [
            ("OPTIONS", "/"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
            ("GET", "/api/v1/actions"),
            ("GET", "/.well-known/oauth-protected-resource/mcp"),
            ("GET", "/nowhere"),
        ] {
            assert!(!required(method, path), "{method} {path}");
        }
    }

    #[test]
    fn a_query_is_no_part_of_the_path_and_a_slash_is() {
        assert_eq!(route("GET", "/readyz?verbose"), Ok(Route::Ready));
        assert_eq!(route("GET", "/readyz/"), Err(Code::RouteNotFound));
        assert_eq!(route("GET", "/"), Err(Code::MethodNotAllowed));
        assert_eq!(route("POST", "//"), Err(Code::RouteNotFound));
        assert_eq!(route("GET", "/api/v1/../readyz"), Err(Code::RouteNotFound));
    }

    #[test]
    fn a_segment_in_braces_stands_for_one_segment() {
        assert!(matches("/api/v1/actions/{id}", "/api/v1/actions/alert-7"));
        for other in ["/api/v1/actions", "/api/v1/actions/", "/api/v1/actions/a/b", "/actions/a"] {
            assert!(!matches("/api/v1/actions/{id}", other), "{other}");
        }
    }
}
