//! HTTP as it reaches a function: the same routes, media types and statuses as the server's, from
//! whatever stands in front.

use http::HeaderName;
use lambda_http::{
    Body, Request, RequestExt, Response, aws_lambda_events::apigw::ApiGatewayRequestAuthorizer,
    request::RequestContext,
};

use crate::http::{
    body::{REQUEST_ID, is_of_the_edge, request_id},
    message,
    message::Recognised,
};

/// A function is frozen once it has answered, so what is asked for later is answered now.
const ASKS_FOR_LATER: HeaderName = HeaderName::from_static("prefer");

/// The request as the service takes it: under the path that the client sees behind the stage, with whom
/// the platform recognised.
pub fn whole(request: Request) -> http::Request<Vec<u8>> {
    let context = request.request_context_ref();
    let path = without_stage(request.raw_http_path(), context);
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let recognised = context.and_then(recognised);
    let (head, body) = request.into_parts();
    let body = match body {
        Body::Text(text) => text.into_bytes(),
        Body::Binary(bytes) => bytes,
        _ => Vec::new(),
    };
    let mut whole = http::Request::new(body);
    *whole.method_mut() = head.method;
    // What is no path is served nowhere.
    *whole.uri_mut() = target.parse().unwrap_or_default();
    *whole.headers_mut() = head.headers;
    let headers = whole.headers_mut();
    headers.remove(ASKS_FOR_LATER);
    // There is no edge here that could have told anything.
    let told: Vec<_> = headers.keys().filter(|it| is_of_the_edge(it)).cloned().collect();
    told.iter().for_each(|name| drop(headers.remove(name)));
    let named = request_id(headers);
    headers.insert(REQUEST_ID, named);
    if let Some(name) = recognised {
        whole.extensions_mut().insert(Recognised(name));
    }
    whole
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

/// Whom AWS recognised by IAM, by their ARN.
fn recognised(context: &RequestContext) -> Option<String> {
    match context {
        RequestContext::ApiGatewayV1(context) => context.identity.user_arn.clone(),
        RequestContext::ApiGatewayV2(context) => match &context.authorizer {
            Some(ApiGatewayRequestAuthorizer { iam: Some(iam), .. }) => iam.user_arn.clone(),
            _ => None,
        },
        _ => None,
    }
}

/// An answer on its way out.
pub fn answer(answer: http::Response<message::Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let body = match body {
        message::Body::Whole(body) => String::from_utf8(body)
            .map_or_else(|no_text| Body::Binary(no_text.into_bytes()), Body::Text),
        // Nothing that a function is asked has an answer without end.
        message::Body::Stream(_) => Body::Empty,
    };
    Response::from_parts(head, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::{CERTIFICATE, PEER, PLACE};

    #[test]
    fn what_only_an_edge_could_tell_is_taken_from_nobody() {
        let request = http::Request::post("/api/v1/action/execute")
            .header(PEER, "127.0.0.1")
            .header(CERTIFICATE, "eyJuYW1lIjoib3BzIiwiZ3JvdXBzIjpbXX0=")
            .header(PLACE, "1")
            .header("prefer", "respond-async")
            .header("authorization", "Bearer x")
            .header("x-request-id", "a\"b");
        let request = request.body(Body::Empty).expect("is a request");
        let whole = whole(request);
        let mut left: Vec<_> = whole.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "x-request-id"]);
        assert_eq!(whole.headers()[REQUEST_ID].len(), 36);
    }
}
