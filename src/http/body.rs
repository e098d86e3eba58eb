//! Reading a request to its end, within the limits.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{
    Request, Uri,
    body::{Body as _, Bytes, Incoming},
    header::{self, HeaderMap, HeaderValue},
};
use tokio::time::timeout;

use crate::{
    actions::request::MAX_REQUEST_BYTES,
    contract::{
        error::{ActionError, Code},
        names::RequestId,
    },
    http::{headers::REQUEST_ID, message::FullRequest},
};

/// Maximum time for a body once its header is there.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// By how much the memory of a body of unknown length grows.
const BUFFER_INCREMENT: usize = 8 * 1024;

/// Checks that the target is a path in ASCII (RFC 9112, section 3.2). hyper passes other ones through, too.
///
/// # Errors
/// [`Code::InvalidRequest`].
pub(crate) fn check_target(target: &Uri) -> Result<(), ActionError> {
    let wrong = |what| Err(ActionError::new(Code::InvalidRequest, what));
    match target.path_and_query().map(|target| target.as_str()) {
        Some(path) if !path.is_ascii() => wrong("the request's target is not percent-encoded"),
        Some(path) if path.starts_with('/') => Ok(()),
        _ => wrong("the request's target is not a path"),
    }
}

/// Checks that a body is sent in chunks or not, and in no other coding (RFC 9112, section 6.1). hyper takes each list
/// whose last one is `chunked`, and passes through what is still in the others.
///
/// # Errors
/// [`Code::InvalidRequest`].
pub(crate) fn check_transfer_coding(headers: &HeaderMap) -> Result<(), ActionError> {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Ok(())
        }
        _ => Err(ActionError::new(
            Code::InvalidRequest,
            "the only Transfer-Encoding that is accepted is chunked, once",
        )),
    }
}

/// Reads the body to its end, within the limits. `hold` reserves the memory that it takes, and returns false if there
/// is not so much.
///
/// # Errors
/// The body is too long, too slow, incomplete or followed by a trailer section, or there is no memory for it.
pub(crate) async fn read_body(
    request: Request<Incoming>,
    hold: impl Fn(usize) -> bool,
) -> Result<FullRequest, ActionError> {
    // hyper has checked Content-Length (RFC 9112, section 6.3); a length over the limit is rejected
    // before anything is read.
    if request.body().size_hint().lower() > MAX_REQUEST_BYTES as u64 {
        return Err(too_long());
    }
    let (head, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, collect(body, hold)).await {
        Ok(body) => Ok(Request::from_parts(head, body?)),
        Err(_) => {
            let limit = BODY_TIMEOUT.as_secs();
            let detail = format!("the request's body did not arrive within {limit} s");
            Err(ActionError::new(Code::RequestTimeout, detail))
        }
    }
}

/// All of a body. Its parts are copied: one of a few bytes would keep the buffer that it was read into.
async fn collect(mut body: Incoming, hold: impl Fn(usize) -> bool) -> Result<Bytes, ActionError> {
    let wrong = |what| Err(ActionError::new(Code::InvalidRequest, what));
    // Memory is taken as it is needed, and not twice of it.
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or_default();
    let mut all = Vec::with_capacity(declared.min(MAX_REQUEST_BYTES));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return wrong("the request's body is incomplete") };
        // hyper 1.12 loses the end of some trailer sections, and takes the next request for a part of them.
        let Ok(part) = frame.into_data() else {
            return wrong("the request has a trailer section, which is not accepted");
        };
        if all.len() + part.len() > MAX_REQUEST_BYTES {
            return Err(too_long());
        }
        if all.capacity() - all.len() < part.len() {
            all.reserve_exact(part.len().max(BUFFER_INCREMENT));
        }
        all.extend_from_slice(&part);
        if !hold(all.len()) {
            let detail = "the memory for request bodies is in use by other requests";
            return Err(ActionError::new(Code::Overloaded, detail)
                .with_retry_after(Some(Duration::from_secs(1))));
        }
    }
    Ok(all.into())
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
