//! `GET /metrics`: what has been counted, for Prometheus.

use http::Response;
use serde_json::json;

use crate::{
    contract::error::{ActionError, Code},
    http::{
        dispatch::Service,
        message::{Body, full},
        openapi::{Operation, Tag, response},
    },
    telemetry::metrics::MEDIA_TYPE,
};

/// The metrics of this process.
///
/// # Errors
/// [`Code::RouteNotFound`] in a function: each of its processes would report only itself.
pub(crate) fn get(service: &Service) -> Result<Response<Body>, ActionError> {
    let metrics = service.context.metrics().ok_or_else(|| {
        ActionError::new(Code::RouteNotFound, "AWS Lambda functions have no metrics")
            .with_hint("the platform counts invocations and errors")
    })?;
    let mut files = vec![
        ("policy", service.context.policy_error().is_none()),
        ("keys", service.callers.load_error().is_none()),
    ];
    if let Some(tls) = service.tls() {
        files.push(("certificate", tls.load_error().is_none()));
        for (certificate, at) in tls.current().expiries() {
            metrics.certificate_expires(certificate, *at);
        }
    }
    Ok(full(MEDIA_TYPE, metrics.text(&files)))
}

/// The operation in the OpenAPI document.
pub(crate) fn operation() -> Operation {
    let content = json!({ "text/plain": { "schema": { "type": "string" } } });
    Operation {
        description: "For Prometheus, in its text format. A function has none.".to_owned(),
        responses: vec![(200, response("The metrics.", content))],
        errors: vec![Code::RouteNotFound],
        ..Operation::get("/metrics", "getMetrics", Tag::Operation, "The metrics")
    }
}
