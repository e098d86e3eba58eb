//! `GET /api/v1/actions/{id}`: the state of a request, once or as a stream of events (`sse`).
//!
//! It is read from the ledger alone, so any replica can answer.

use http::{HeaderValue, Method, Response, header};
use percent_encoding::percent_decode_str;
use schemars::SchemaGenerator;
use serde_json::json;

use crate::{
    contract::{
        error::{ActionError, Code},
        names::{ClusterName, Namespace, RequestId},
    },
    executor::{
        incoming::find_as,
        status::{Operation, Progress},
    },
    http::{
        dispatch::Service,
        headers::{ACCEPT, accepts_event_stream, check_accept},
        message::{Body, FullRequest, RequestInfo, full},
        openapi::{self, AUTH_ERRORS, CLUSTER_ERRORS, Tag, response},
        query,
        query::parameters,
    },
    ledger::record::RecordState,
};

/// The state of a request at one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OperationSnapshot {
    /// The state.
    pub progress: Progress,
    /// The version of the record that it was read from.
    pub version: Option<String>,
}

/// The state of the request in this path; a stream of it, if the client accepts one and this is a server.
///
/// # Errors
/// The path or the query is wrong, the caller may not read it, or there is no such request.
pub(crate) async fn get(
    service: &Service,
    request: &FullRequest,
    info: &RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let accept = ACCEPT.read(request.headers())?;
    let watchers = service.server.as_ref().map(|server| &server.watchers);
    let watchers = watchers
        .filter(|_| request.method() != Method::HEAD && accepts_event_stream(accept.as_deref()));
    if watchers.is_none() {
        check_accept(accept.as_deref())?;
    }
    let OperationPath { namespace, id, cluster } = operation_of(request.uri())?;
    let context = service.context.for_cluster(cluster.as_ref())?;
    let context = context.acting_for(info.caller.as_ref()).await?;
    let found = find_as(&context, info.caller.as_ref(), &namespace, &id).await?;
    let snapshot = OperationSnapshot::of(&found).await;
    match watchers {
        Some(watchers) => Ok(watchers.stream(&context, namespace, id, snapshot)),
        None => snapshot.response(),
    }
}

/// What the path and the query name.
struct OperationPath {
    namespace: Namespace,
    id: RequestId,
    cluster: Option<ClusterName>,
}

/// The request that the last segment of the path and the query name.
fn operation_of(uri: &http::Uri) -> Result<OperationPath, ActionError> {
    let segment = uri.path().rsplit('/').next().unwrap_or_default();
    let id = percent_decode_str(segment).decode_utf8();
    let id = id.map_err(|_| ActionError::invalid_field("id", "is not UTF-8"))?;
    let id = RequestId::try_from(id.into_owned());
    let id = id.map_err(|what| ActionError::invalid_field("id", what))?;
    let (mut namespace, mut cluster) = (None, None);
    for parameter in parameters(uri.query().unwrap_or_default()) {
        match parameter? {
            (name, value) if name == "namespace" => namespace = Some(query::namespace(value)?),
            (name, value) if name == "cluster" => cluster = Some(query::cluster(value)?),
            _ => {
                let what = "the query has an unknown parameter";
                return Err(ActionError::new(Code::InvalidRequest, what).with_hint(
                    "known: namespace, the target's or default for nodes, and cluster",
                ));
            }
        }
    }
    Ok(OperationPath { namespace: namespace.unwrap_or_default(), id, cluster })
}

impl OperationSnapshot {
    /// The state of a request that was found.
    pub(crate) async fn of(found: &Operation) -> Self {
        let version = found.version().map(str::to_owned);
        OperationSnapshot { progress: found.progress().await, version }
    }

    /// The state in JSON, on one line.
    ///
    /// # Errors
    /// [`Code::Internal`] if it cannot be written, which would be a bug.
    pub(crate) fn json(&self) -> Result<String, ActionError> {
        serde_json::to_string(&self.progress).map_err(|error| {
            ActionError::new(Code::Internal, format!("the state cannot be written: {error}"))
        })
    }

    fn response(&self) -> Result<Response<Body>, ActionError> {
        let mut response = full("application/json", self.json()?);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let seconds = match self.progress.state {
            RecordState::Claimed | RecordState::Applied | RecordState::RollingBack => Some(1),
            RecordState::PendingApproval => Some(10),
            _ => None,
        };
        match (seconds, &self.version) {
            (Some(seconds), _) => drop(headers.insert(header::RETRY_AFTER, seconds.into())),
            // The response stays the same until the record is written again.
            (None, Some(version)) => {
                if let Ok(etag) = HeaderValue::try_from(format!("\"{version}\"")) {
                    headers.insert(header::ETAG, etag);
                }
            }
            (None, None) => {}
        }
        Ok(response)
    }
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> openapi::Operation {
    let mut state = response(
        "Its state. As a stream, `event: progress` with each change and `event: done` with the last; the \
         data of each is the same object.",
        json!({
            "application/json": { "schema": generator.subschema_for::<Progress>() },
            "text/event-stream": { "schema": { "type": "string" } },
        }),
    );
    state["headers"] = json!({
        "Retry-After": {
            "schema": { "type": "integer", "minimum": 1 },
            "description": "Seconds until there may be a change, while it is in progress.",
        },
        "ETag": { "schema": { "type": "string" }, "description": "Its tag, once it is done." },
        "Cache-Control": { "schema": { "type": "string" }, "description": "`no-cache`." },
    });
    let not_found = |code: &Code| code.http_status() == 404;
    openapi::Operation {
        description:
            "From its record in the cluster. With `Accept: text/event-stream` it sends each change \
                      until the end. Callers need permission to `get` the action in its namespace."
                .to_owned(),
        authenticated: true,
        parameters: vec![
            json!({
                "name": "id", "in": "path", "required": true,
                "schema": generator.subschema_for::<RequestId>(),
                "description": "The request's id.",
            }),
            openapi::query(
                "namespace",
                "The namespace of the target; `default` for a target in none.",
                json!({ "type": "string", "default": "default" }),
            ),
            query::cluster_parameter(generator),
        ],
        responses: vec![(200, state)],
        errors: Code::ALL
            .into_iter()
            .filter(|code| not_found(code) || AUTH_ERRORS.contains(code))
            .chain(CLUSTER_ERRORS)
            .collect(),
        ..openapi::Operation::get(
            "/api/v1/actions/{id}",
            "getAction",
            Tag::Actions,
            "The state of a request",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(target: &str) -> Result<(String, String), ActionError> {
        let uri = target.parse().expect("is a target");
        let OperationPath { namespace, id, .. } = operation_of(&uri)?;
        Ok((namespace.to_string(), id.to_string()))
    }

    #[test]
    fn an_operation_is_named_by_id_and_namespace() {
        let pair = |one: &str, other: &str| Ok((one.to_owned(), other.to_owned()));
        assert_eq!(parsed("/api/v1/actions/alert-7"), pair("default", "alert-7"));
        assert_eq!(parsed("/api/v1/actions/alert%3A7?namespace=shop"), pair("shop", "alert:7"));
        for (wrong, field) in [
            ("/api/v1/actions/a%20b", Some("id")),
            ("/api/v1/actions/%ff", Some("id")),
            ("/api/v1/actions/a?namespace=", Some("namespace")),
            ("/api/v1/actions/a?namespace=A", Some("namespace")),
            ("/api/v1/actions/a?namespace=a&namespace=a", Some("namespace")),
            ("/api/v1/actions/a?name=a", None),
        ] {
            let error = parsed(wrong).expect_err(wrong);
            assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, field));
        }
    }
}
