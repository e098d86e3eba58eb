//! The router: takes whole requests from the edge, has them answered, and sends the answers back.
//!
//! Its threads never wait for an action: they hand it to the runtime and take the next request, so
//! that the questions of a probe are answered however many rollouts are being waited for.

use std::{
    io::{self, Write},
    os::unix::net::UnixListener,
    sync::Arc,
    thread,
};

use http::{HeaderName, HeaderValue, Request, Response};
use tiny_http::{Header, Method, Server};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking};

use crate::{
    contract::error::{ActionError, Code},
    executor::reply::Reply,
    http::{dispatch::Service, message::Body},
};

/// Threads that route; they only read and hand on.
const THREADS: usize = 2;

/// Starts routing what comes in on `listener`; the answers are made on `runtime`.
///
/// # Errors
/// When the listener cannot be used or a thread cannot be started.
pub fn start(listener: UnixListener, service: &Service, runtime: &Handle) -> io::Result<()> {
    let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
    for number in 0..THREADS {
        let (service, server, runtime) = (service.clone(), server.clone(), runtime.clone());
        thread::Builder::new().name(format!("router-{number}")).spawn(move || {
            for request in server.incoming_requests() {
                route(request, &service, &runtime);
            }
        })?;
    }
    Ok(())
}

fn route(mut request: tiny_http::Request, service: &Service, runtime: &Handle) {
    let whole = match read(&mut request) {
        Ok(whole) => whole,
        Err(error) => {
            let error = ActionError::new(Code::Internal, format!("the edge broke off: {error}"));
            return tell_if_lost(send(request, Reply::from(error).into()));
        }
    };
    let service = service.clone();
    runtime.spawn(async move {
        let answer = guarded(async move { service.answer(whole).await }).await;
        match answer.body() {
            Body::Whole(_) => tell_if_lost(send(request, answer)),
            // Its parts are waited for by a thread of their own.
            Body::Stream(_) => {
                spawn_blocking(|| tell_if_lost(send(request, answer)));
            }
        }
    });
}

/// The request in the types that everybody else uses. The edge has made sure that it is whole.
fn read(request: &mut tiny_http::Request) -> io::Result<Request<Vec<u8>>> {
    let mut body = Vec::new();
    request.as_reader().read_to_end(&mut body)?;
    let mut whole = Request::builder().method(request.method().as_str()).uri(request.url());
    if let Some(headers) = whole.headers_mut() {
        for header in request.headers() {
            let name = HeaderName::from_bytes(header.field.as_str().as_bytes());
            let value = HeaderValue::from_bytes(header.value.as_bytes());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
    }
    whole.body(body).map_err(io::Error::other)
}

/// Does the work in a task of its own, so that a panic in it is an answer like any other.
async fn guarded(work: impl Future<Output = Response<Body>> + Send + 'static) -> Response<Body> {
    tokio::spawn(work).await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "a handler panicked");
        let error = ActionError::new(Code::Internal, "a handler panicked; this is a bug");
        Reply::from(error).into()
    })
}

fn send(request: tiny_http::Request, answer: Response<Body>) -> io::Result<()> {
    let (head, body) = answer.into_parts();
    let headers = head.headers.iter().filter_map(|(name, value)| {
        Header::from_bytes(name.as_str().as_bytes(), value.as_bytes()).ok()
    });
    let status = head.status.as_u16();
    match body {
        Body::Whole(body) => {
            let length = body.len();
            let body = if *request.method() == Method::Head { Vec::new() } else { body };
            let (headers, body) = (headers.collect(), body.as_slice());
            request.respond(tiny_http::Response::new(
                status.into(),
                headers,
                body,
                Some(length),
                None,
            ))
        }
        Body::Stream(parts) => stream(&mut request.into_writer(), status, headers, parts),
    }
}

/// Sends parts as they come, in chunks (RFC 9112, section 7.1). tiny_http would keep small ones until
/// there are 8 KiB of them.
fn stream(
    to: &mut dyn Write,
    status: u16,
    headers: impl Iterator<Item = Header>,
    mut parts: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    write!(to, "HTTP/1.1 {status} \r\nTransfer-Encoding: chunked\r\n")?;
    for header in headers {
        write!(to, "{}: {}\r\n", header.field, header.value)?;
    }
    write!(to, "\r\n")?;
    to.flush()?;
    while let Some(part) = parts.blocking_recv() {
        // An empty chunk would be the last one.
        if part.is_empty() {
            continue;
        }
        write!(to, "{:x}\r\n", part.len())?;
        to.write_all(&part)?;
        write!(to, "\r\n")?;
        to.flush()?;
    }
    write!(to, "0\r\n\r\n")?;
    to.flush()
}

fn tell_if_lost(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer did not reach the edge");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer_like_any_other() {
        let answer = guarded(async { panic!("a test's own") }).await;
        assert_eq!(answer.status(), 500);
        let Body::Whole(body) = answer.body() else { panic!("is a problem") };
        let body: serde_json::Value = serde_json::from_slice(body).expect("is JSON");
        assert_eq!(body["code"], "internal");
    }

    #[test]
    fn parts_are_sent_as_they_come() {
        let (sender, parts) = mpsc::channel(4);
        for part in ["data: 1\n\n", "", "data: 2\n\n"] {
            sender.try_send(part.into()).expect("has room");
        }
        drop(sender);
        let mut sent = Vec::new();
        stream(&mut sent, 200, std::iter::empty(), parts).expect("is sent");
        let text = String::from_utf8(sent).expect("is text");
        assert!(
            text.ends_with("\r\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"),
            "{text}"
        );
    }
}
