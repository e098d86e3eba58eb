//! HTTP as it reaches a function: the same routes, media types and statuses as the server's, from
//! whatever stands in front.

use lambda_http::{
    Body, Request, RequestExt, Response, aws_lambda_events::apigw::ApiGatewayRequestAuthorizer,
    request::RequestContext,
};

use crate::{
    callers::Credentials,
    entry::{
        Answer, Delivery,
        http::routes::{HEALTHY, Route, check_accept, check_content_type, idempotency_key},
    },
    error::{ActionError, Code},
};

/// What is asked for.
pub enum Asked {
    /// Does it live?
    Health,
    /// Could it act?
    Ready,
    /// A request, and what its caller says to prove who they are.
    Action(Delivery, Credentials),
}

/// Reads what is asked for.
///
/// # Errors
/// As the server's: no such path, another method, another media type, a wrong id.
pub fn read(request: &Request) -> Result<Asked, ActionError> {
    let context = request.request_context_ref();
    let path = without_stage(request.raw_http_path(), context);
    match Route::of(request.method().as_str(), path)? {
        Route::Health => Ok(Asked::Health),
        Route::Ready => Ok(Asked::Ready),
        // Each process would tell of itself, and nobody knows how many there are.
        Route::Metrics => Err(ActionError::new(Code::RouteNotFound, "a function has no metrics")
            .with_hint("the platform counts invocations and errors")),
        Route::Execute => {
            check_accept(header(request, "accept").as_deref())?;
            check_content_type(header(request, "content-type").as_deref())?;
            let key = idempotency_key(header(request, "idempotency-key").as_deref())?;
            let body = match request.body() {
                Body::Text(text) => text.clone().into_bytes(),
                Body::Binary(bytes) => bytes.clone(),
                _ => Vec::new(),
            };
            let credentials = Credentials {
                authorization: header(request, "authorization"),
                recognised: context.and_then(recognised),
            };
            Ok(Asked::Action(Delivery { body, key }, credentials))
        }
    }
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

fn header(request: &Request, name: &str) -> Option<String> {
    let values = request.headers().get_all(name).iter();
    let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// That all is well, in the server's words.
pub fn healthy() -> Response<Body> {
    let mut response = Response::new(Body::from(HEALTHY));
    let json = lambda_http::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}

/// An answer on its way out.
pub fn answer(answer: &Answer) -> Response<Body> {
    let mut response = Response::builder().status(answer.http_status);
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    // Our own header fields are ASCII and the status is one of ours.
    response.body(Body::from(body)).unwrap_or_else(|_| Response::new(Body::Empty))
}
