//! A request with all that the server knows of it, and a response: the types between the engines, the
//! function runtime and the endpoints.

use std::{
    convert::Infallible,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};
use tracing::Span;

use crate::{
    auth::Caller,
    executor::{reply, reply::Reply},
    http::{concurrency::Permit, routes::MatchedPath},
};

/// What is known of a request besides its bytes. No header of a client can pass for any of it.
#[derive(Clone, Debug)]
pub(crate) struct RequestInfo {
    /// What the request is called in logs, traces and its response.
    pub request_id: HeaderValue,
    /// What is served under the request's path.
    pub path: MatchedPath,
    /// The authenticated caller; none if authentication is off, or not required for this route.
    pub caller: Option<Caller>,
    /// When the response must be sent, if the client waits for a limited time.
    pub deadline: Option<Instant>,
    /// What the request holds of the server's concurrency.
    pub permit: Option<Arc<Permit>>,
    /// The request's span, which carries the trace context.
    pub span: Span,
}

impl RequestInfo {
    /// Only an id, a path and a deadline.
    pub(crate) fn new(
        request_id: HeaderValue,
        path: MatchedPath,
        deadline: Option<Instant>,
    ) -> Self {
        RequestInfo { request_id, path, caller: None, deadline, permit: None, span: Span::none() }
    }
}

/// A request whose body has been read.
pub(crate) type FullRequest = Request<Bytes>;

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Body {
    /// All of it.
    Full(Bytes),
    /// Its parts as they come; the sender learns from the channel that the client is gone.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body {
    /// The bytes that this response alone holds: a document is shared by all of its responses.
    pub(crate) fn own_bytes(&self) -> usize {
        match self {
            Body::Full(all) if all.is_unique() => all.len(),
            _ => 0,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = match self.get_mut() {
            Body::Full(all) if all.is_empty() => return Poll::Ready(None),
            Body::Full(all) => Poll::Ready(Some(mem::take(all))),
            Body::Stream(parts) => parts.poll_recv(context),
        };
        part.map(|part| part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Full(all) if all.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(all) => SizeHint::with_exact(all.len() as u64),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}

/// A response with all of its body.
pub(crate) fn full(media_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A value in JSON.
pub(crate) fn json(value: &impl Serialize) -> Response<Body> {
    full("application/json", reply::json(value))
}

impl From<Reply> for Response<Body> {
    fn from(reply: Reply) -> Self {
        let media_type = match reply {
            Reply::Done(_) => "application/json",
            Reply::Problem(_) => "application/problem+json",
        };
        let status = reply.http_status();
        let mut response = full(media_type, reply.to_json());
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some(seconds) = reply.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == 401 {
            let bearer = HeaderValue::from_static("Bearer realm=\"action-executor\"");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_stream_is_sent_part_by_part_and_a_full_body_at_once() {
        let (sender, parts) = mpsc::channel(4);
        for part in ["data: 1\n\n", "data: 2\n\n"] {
            sender.try_send(Bytes::from(part)).expect("has capacity");
        }
        drop(sender);
        let mut stream = Body::Stream(parts);
        let first = stream.frame().await.expect("is there").expect("is one");
        assert_eq!(first.into_data().expect("is data"), "data: 1\n\n");
        let rest = stream.collect().await.expect("is read").to_bytes();
        assert_eq!(rest, "data: 2\n\n");
        let full = Body::Full(Bytes::from_static(b"{}"));
        assert_eq!((full.size_hint().exact(), full.is_end_stream()), (Some(2), false));
        assert_eq!(full.collect().await.expect("is read").to_bytes(), "{}");
    }
}
