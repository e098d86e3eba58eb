//! What of a request goes further, and what of an answer comes back.
//!
//! Only whole, bounded, well-formed requests pass, written anew with the few headers that are read behind
//! the edge, and with what the edge knows of whoever sent them. Nothing that a client sends can pass for
//! the latter.

use std::{net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};

use crate::{
    actions::request::MAX_REQUEST_BYTES,
    auth::client_cert::CertificateSubject,
    contract::{
        error::{ActionError, Code},
        names::RequestId,
    },
    executor::reply::Reply,
    http::{headers::TIMEOUT_HEADERS, upstream::Body},
};

/// Longest time for a body once its header is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the router reads of a request, and what clients get of its answer.
pub(crate) const REQUEST_HEADERS: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::AUTHORIZATION,
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    REQUEST_ID,
    HeaderName::from_static("prefer"),
    header::IF_NONE_MATCH,
];
const ANSWER_HEADERS: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    header::ALLOW,
    header::WWW_AUTHENTICATE,
    header::LOCATION,
    header::ETAG,
    header::CACHE_CONTROL,
    header::CONTENT_SECURITY_POLICY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::REFERRER_POLICY,
    HeaderName::from_static("preference-applied"),
];

/// The attributes of a CloudEvent, both ways; as many as a header may have lines.
const EVENT_HEADERS: &str = "ce-";

/// What a request goes by in logs, traces and its answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The address that the client's connection comes from, as the edge tells it to the router.
pub const PEER: HeaderName = HeaderName::from_static("x-edge-peer");

/// Whom the client's certificate names, as the edge has verified it and tells it to the router.
pub const CERTIFICATE: HeaderName = HeaderName::from_static("x-edge-certificate");

/// The number of the request's place in the queue, as the edge tells it to the router.
pub const PLACE: HeaderName = HeaderName::from_static("x-edge-place");

/// Whether a header of this name says what only the edge can know, so that from anybody else it is a lie.
#[cfg(feature = "lambda")]
pub fn is_of_the_edge(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-edge-")
}

/// The request with the number of its place, and what is left of its client's time.
pub fn placed(
    mut request: Request<Full<Bytes>>,
    place: u64,
    until: Option<Instant>,
) -> Request<Full<Bytes>> {
    let headers = request.headers_mut();
    headers.insert(PLACE, place.into());
    if let Some(until) = until {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let left = HeaderValue::try_from(format!("{:.3}", left.as_secs_f64()));
        if let Ok(left) = left {
            headers.insert(HeaderName::from_static(TIMEOUT_HEADERS[0]), left);
        }
    }
    request
}

/// Reads the body to its end, within the limits, and writes the request anew.
pub async fn whole(
    request: Request<Incoming>,
    peer: IpAddr,
    certificate: Option<&CertificateSubject>,
) -> Result<Request<Full<Bytes>>, ActionError> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map(|target| target.as_str().to_owned());
    let target = target.filter(|target| target.starts_with('/')).ok_or_else(|| {
        ActionError::new(Code::InvalidRequest, "the request's target is not a path")
    })?;
    check_length(&head.headers)?;
    let body = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_long()),
        Ok(Err(_)) => {
            return Err(ActionError::new(Code::InvalidRequest, "the request's body broke off"));
        }
        Err(_) => {
            let limit = BODY_TIMEOUT.as_secs();
            let detail = format!("the request's body did not arrive within {limit} s");
            return Err(ActionError::new(Code::RequestTimeout, detail));
        }
    };
    let mut passed = Request::new(Full::new(body));
    *passed.method_mut() = head.method;
    *passed.uri_mut() = target.parse().map_err(|_| {
        ActionError::new(Code::InvalidRequest, "the request's target is not a path")
    })?;
    let headers = passed.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("router"));
    if let Ok(peer) = HeaderValue::try_from(peer.to_string()) {
        headers.insert(PEER, peer);
    }
    if let Some(subject) = certificate.and_then(|it| HeaderValue::try_from(it.to_header()).ok()) {
        headers.insert(CERTIFICATE, subject);
    }
    let attributes = head.headers.keys().filter(|it| it.as_str().starts_with(EVENT_HEADERS));
    for name in REQUEST_HEADERS.iter().chain(attributes) {
        // The router reads ASCII only; what is not is as good as absent.
        let values = head.headers.get_all(name).iter();
        for value in values.filter(|value| value.to_str().is_ok()) {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(passed)
}

/// What a request goes by: as its client names it, if that is a name, else as we do.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(&REQUEST_ID).and_then(|given| given.to_str().ok());
    let given = given.and_then(|given| RequestId::try_from(given.to_owned()).ok());
    let id = given.unwrap_or_else(RequestId::generate);
    // Whatever can be part of an id can stand in a header.
    HeaderValue::try_from(&*id).unwrap_or(HeaderValue::from_static("-"))
}

/// A length must be within the limit before anything is read. That it is one number, and not several
/// different ones or one beside a Transfer-Encoding, hyper has seen to (RFC 9112, section 6.3).
fn check_length(headers: &HeaderMap) -> Result<(), ActionError> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(()) };
    match length.to_str().ok().and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length <= MAX_REQUEST_BYTES as u64 => Ok(()),
        Some(_) => Err(too_long()),
        None => Err(ActionError::new(Code::InvalidRequest, "Content-Length is not a number")),
    }
}

fn too_long() -> ActionError {
    ActionError::new(
        Code::PayloadTooLarge,
        format!("the request is longer than {MAX_REQUEST_BYTES} bytes"),
    )
}

/// The response with the headers that a client may see.
pub fn outward(answer: Response<Body>) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    let attributes = head.headers.keys().filter(|it| it.as_str().starts_with(EVENT_HEADERS));
    for name in ANSWER_HEADERS.iter().chain(attributes) {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(name.clone(), value.clone());
        }
    }
    response
}

/// The edge's own answer. What the client still has to send is not read, so the connection ends.
pub fn refusal(error: ActionError) -> Response<Body> {
    let close = error.code != Code::Overloaded;
    let answer: Response<Vec<u8>> = Reply::from(error).into();
    let mut response = answer.map(|body| Body::Left(Full::new(Bytes::from(body))));
    let headers = response.headers_mut();
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(value: &str) -> Result<(), Code> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, value.parse().expect("is a value"));
        check_length(&headers).map_err(|error| error.code)
    }

    #[test]
    fn a_length_is_a_number_within_the_limit() {
        assert!(check_length(&HeaderMap::new()).is_ok());
        assert_eq!(length("65536"), Ok(()));
        assert_eq!(length("65537"), Err(Code::PayloadTooLarge));
        assert_eq!(length("9223372036854775808"), Err(Code::PayloadTooLarge));
        for wrong in ["-1", "1,1", "0x10", "99999999999999999999"] {
            assert_eq!(length(wrong), Err(Code::InvalidRequest), "{wrong}");
        }
    }

    #[test]
    fn a_request_keeps_its_name_if_it_is_one() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("page-7"));
        assert_eq!(request_id(&headers), "page-7");
        for wrong in ["", "a b", "a\"b", &"x".repeat(129)] {
            headers.insert(REQUEST_ID, wrong.parse().expect("is a value"));
            assert_eq!(request_id(&headers).len(), 36, "{wrong}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
