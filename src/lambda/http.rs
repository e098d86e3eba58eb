//! HTTP in an invocation: the same routes, media types and statuses as the server's, behind whichever
//! gateway is in front.

use hyper::body::Bytes;
use lambda_http::{
    Body, Request, RequestExt, Response, aws_lambda_events::apigw::ApiGatewayRequestAuthorizer,
    request::RequestContext,
};

use crate::{
    auth::Credentials,
    contract::error::ActionError,
    http::{
        body::{check_target, request_id},
        headers::{credentials, response_deadline},
        message,
        message::{FullRequest, RequestInfo},
        routes::MatchedPath,
    },
};

/// The request for the dispatcher, under the path that the client sees behind the stage, and what proves who
/// sends it, with the caller that the platform has authenticated.
///
/// # Errors
/// The target is not a path in ASCII, or the client's timeout is not a number.
pub(crate) fn from_lambda(
    request: Request,
) -> Result<(FullRequest, RequestInfo, Credentials), ActionError> {
    let context = request.request_context_ref();
    let path = without_stage(request.raw_http_path(), context);
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let recognised = context.and_then(platform_identity);
    let (mut head, body) = request.into_parts();
    // What is not a path is served nowhere.
    head.uri = target.parse().unwrap_or_default();
    check_target(&head.uri)?;
    let deadline = response_deadline(&head.headers)?;
    let path = MatchedPath::of(head.uri.path());
    let info = RequestInfo::new(request_id(&head.headers), path, deadline);
    let body = match body {
        Body::Text(text) => text.into(),
        Body::Binary(bytes) => bytes.into(),
        _ => Bytes::new(),
    };
    let credentials = Credentials { recognised, ..credentials(&head.headers) };
    Ok((http::Request::from_parts(head, body), info, credentials))
}

/// The path without the stage, which an HTTP API puts before it unless it is the default one.
fn without_stage<'a>(path: &'a str, context: Option<&RequestContext>) -> &'a str {
    let stage = match context {
        Some(RequestContext::ApiGatewayV2(context)) => context.stage.as_deref(),
        _ => None,
    };
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    rest.filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// The caller that AWS has authenticated by IAM, as an ARN.
fn platform_identity(context: &RequestContext) -> Option<String> {
    match context {
        RequestContext::ApiGatewayV1(context) => context.identity.user_arn.clone(),
        RequestContext::ApiGatewayV2(context) => match &context.authorizer {
            Some(ApiGatewayRequestAuthorizer { iam: Some(iam), .. }) => iam.user_arn.clone(),
            _ => None,
        },
        _ => None,
    }
}

/// The response for the platform.
pub(crate) fn to_lambda(response: http::Response<message::Body>) -> Response<Body> {
    response.map(|body| match body {
        message::Body::Full(body) => String::from_utf8(body.into())
            .map_or_else(|binary| Body::Binary(binary.into_bytes()), Body::Text),
        // Only a server has streams.
        message::Body::Stream(_) => Body::Empty,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_passes_for_what_the_platform_knows() {
        let request = http::Request::post("/api/v1/action/execute")
            .header("x-edge-certificate", "eyJuYW1lIjoib3BzIiwiZ3JvdXBzIjpbXX0=")
            .header("x-request-number", "1")
            .header("x-request-id", "a\"b");
        let request = request.body(Body::Empty).expect("is a request");
        let (_, info, credentials) = from_lambda(request).expect("is right");
        assert_eq!(credentials, Default::default());
        assert_eq!(info.request_id.len(), 36);
        let request = http::Request::get("/readyz").header("request-timeout", "soon");
        assert!(from_lambda(request.body(Body::Empty).expect("is a request")).is_err());
    }
}
