//! What a question and its answer are made of, once a request is whole.

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    auth::{Credentials, client_cert::CertificateSubject},
    executor::{reply, reply::Reply},
    http::{
        body::{CERTIFICATE, PEER},
        headers,
    },
};

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// Its parts, as they come; whoever sends them learns from the channel that nobody listens any more.
    Stream(mpsc::Receiver<Vec<u8>>),
}

/// Whom the platform in front has recognised and let through; an extension of the request.
#[derive(Clone, Debug)]
pub struct Recognised(pub String);

/// What came beside a request to prove who it is from.
pub(crate) fn credentials(request: &Request<Vec<u8>>) -> Credentials {
    let edge = |name: HeaderName| headers::header(request.headers(), name.as_str());
    Credentials {
        authorization: headers::header(request.headers(), "authorization"),
        certificate: edge(CERTIFICATE).and_then(|it| CertificateSubject::from_header(&it)),
        recognised: request.extensions().get::<Recognised>().map(|it| it.0.clone()),
        peer: edge(PEER).and_then(|it| it.parse().ok()),
    }
}

/// An answer that is there as a whole.
pub(crate) fn whole(media_type: &'static str, body: impl Into<Vec<u8>>) -> Response<Body> {
    let mut response = Response::new(Body::Whole(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A value that is there as a whole, in JSON.
pub(crate) fn json(value: &impl Serialize) -> Response<Body> {
    whole("application/json", reply::json(value))
}

impl From<Reply> for Response<Vec<u8>> {
    /// The reply over HTTP.
    fn from(reply: Reply) -> Self {
        let kind = match reply {
            Reply::Done(_) => "application/json",
            Reply::Problem(_) => "application/problem+json",
        };
        let mut response = Response::new(reply.to_json());
        *response.status_mut() =
            StatusCode::from_u16(reply.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(seconds) = reply.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if reply.http_status() == 401 {
            let bearer = HeaderValue::from_static("Bearer realm=\"action-executor\"");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<Reply> for Response<Body> {
    fn from(reply: Reply) -> Self {
        Response::<Vec<u8>>::from(reply).map(Body::Whole)
    }
}
