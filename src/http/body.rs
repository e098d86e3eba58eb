//! Reading a request to its end within the limits, and the responses that are sent where that fails.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    Request, Response,
    body::{Body as _, Incoming},
    header::{self, HeaderMap, HeaderValue},
};
use tokio::time::timeout;

use crate::{
    actions::request::MAX_REQUEST_BYTES,
    contract::{
        error::{ActionError, Code},
        names::RequestId,
    },
    executor::reply::Reply,
    http::{
        headers::REQUEST_ID,
        message::{Body, FullRequest},
    },
};

/// Maximum time for a body once its header is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the body to its end, within the limits.
///
/// # Errors
/// The target is not a path, or the body is too long, too slow or incomplete.
pub(crate) async fn read_body(request: Request<Incoming>) -> Result<FullRequest, ActionError> {
    let path = request.uri().path_and_query().map(|target| target.as_str());
    if !path.is_some_and(|path| path.starts_with('/')) {
        let detail = "the request's target is not a path";
        return Err(ActionError::new(Code::InvalidRequest, detail));
    }
    // hyper has checked Content-Length (RFC 9112, section 6.3); a length over the limit is rejected
    // before anything is read.
    if request.body().size_hint().lower() > MAX_REQUEST_BYTES as u64 {
        return Err(too_long());
    }
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(Request::from_parts(head, Default::default()));
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_REQUEST_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(Request::from_parts(head, body.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => {
            Err(ActionError::new(Code::InvalidRequest, "the request's body is incomplete"))
        }
        Err(_) => {
            let limit = BODY_TIMEOUT.as_secs();
            let detail = format!("the request's body did not arrive within {limit} s");
            Err(ActionError::new(Code::RequestTimeout, detail))
        }
    }
}

/// The request's id: the client's if it is a valid one, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = REQUEST_ID.read(headers).ok().flatten();
    let given = given.and_then(|given| RequestId::try_from(given.into_owned()).ok());
    let id = given.unwrap_or_else(RequestId::generate);
    // An id holds only characters that a header may hold.
    HeaderValue::try_from(String::from(id)).unwrap_or(HeaderValue::from_static("-"))
}

fn too_long() -> ActionError {
    let detail = format!("the request is longer than {MAX_REQUEST_BYTES} bytes");
    ActionError::new(Code::PayloadTooLarge, detail)
}

/// The response to a request that was not dispatched. A body that the client still sends is not read, so
/// the connection closes.
pub(crate) fn problem_response(error: ActionError) -> Response<Body> {
    let close = error.code != Code::Overloaded;
    let mut response = Response::<Body>::from(Reply::from(error));
    if close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_its_id_if_it_is_valid() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("page-7"));
        assert_eq!(request_id(&headers), "page-7");
        for wrong in ["", "a b", "a\"b", &"x".repeat(129)] {
            headers.insert("x-request-id", wrong.parse().expect("is a value"));
            assert_eq!(request_id(&headers).len(), 36, "{wrong}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
