//! `POST /mcp`: the Model Context Protocol over HTTP (Streamable HTTP,
//! <https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http>).
//!
//! Each request is answered by itself, with one JSON object or, if it takes longer, with a stream of events that ends with
//! the answer. What concerns the connection and the caller is decided as for every other endpoint; here are the headers
//! that repeat the body, the statuses, and what becomes of a client that is gone.

use std::{borrow::Cow, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tracing::Instrument;

use crate::{
    contract::error::ActionError,
    http::{
        dispatch::Service,
        endpoints::execute::{action_time, with_permit},
        headers::{
            ACCEPT, CONTENT_TYPE, accepts_event_stream, check_accept, check_content_encoding,
            check_content_type,
        },
        message::{Body, FullRequest, RequestInfo, full},
    },
    mcp::{
        self, Exchange,
        calls::Progression,
        protocol::{
            self, HEADER_MISMATCH, METHOD_NOT_FOUND, Message, ProtocolError, Request, Revision,
        },
    },
};

/// The headers that repeat what the body says, for what is in front of the server.
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// How long a request may take before its answer becomes a stream, if the client accepts one.
const STREAM_AFTER: Duration = Duration::from_millis(500);

/// How often something is sent on a stream, so that no proxy takes the connection for a dead one.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How many lines of progress wait for a client that reads slowly.
const BUFFERED_LINES: usize = 16;

/// Answers one message.
///
/// # Errors
/// The media types do not fit, or the caller is not authenticated. All else is a message.
pub(crate) async fn post(
    service: &Service,
    request: FullRequest,
    info: RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let headers = request.headers();
    let accept = ACCEPT.read(headers)?;
    // A function's response is complete when it is sent.
    let may_stream = service.server.is_some() && accepts_event_stream(accept.as_deref());
    if !may_stream {
        check_accept(accept.as_deref())?;
    }
    check_content_type(CONTENT_TYPE.read(headers)?.as_deref())?;
    check_content_encoding(headers)?;
    let message = match protocol::read(request.body()) {
        Ok(Message::Request(message)) => message,
        // There is nothing to cancel: a client that closes its stream has done so.
        Ok(Message::Notification(_)) => return Ok(accepted()),
        Err((id, error)) => return Ok(refused(protocol::error(id.as_ref(), &error))),
    };
    let revision = match revision(headers, &message) {
        Ok(revision) => revision,
        Err(error) => return Ok(refused(protocol::error(Some(&message.id), &error))),
    };
    let settings = service.mcp;
    let (sender, lines) = mpsc::channel(BUFFERED_LINES);
    let token = message.meta.progress_token.clone().filter(|_| may_stream);
    let background = service.server.as_ref().map(|server| &server.background);
    let exchange = Exchange {
        context: with_permit(service, &info),
        caller: info.caller.clone(),
        client: None,
        revision,
        tools: settings.tools,
        wait: action_time(&info).map_or(settings.wait, |time| settings.wait.min(time)),
        permit: background.and_then(|background| background.permit()),
        progression: token.map(|token| Progression { token, lines: sender }),
    };
    let mut answer = Box::pin(async move { answer(exchange, &message).await }.in_current_span());
    tokio::select! {
        biased;
        (line, status) = &mut answer => return Ok(with_status(line, status)),
        () = sleep(STREAM_AFTER), if may_stream => {}
    }
    Ok(stream(answer, lines, revision.is_stateless()))
}

/// The answer in one line, with its status.
async fn answer<P: Send + 'static>(
    exchange: Exchange<P>,
    request: &Request,
) -> (String, StatusCode) {
    let is_stateless = exchange.revision.is_stateless();
    match mcp::answer(exchange, request).await {
        Ok(result) => (protocol::result(&request.id, result), StatusCode::OK),
        Err(error) => {
            let is_unknown = is_stateless && error.code == METHOD_NOT_FOUND;
            let status = if is_unknown { StatusCode::NOT_FOUND } else { StatusCode::OK };
            (protocol::error(Some(&request.id), &error), status)
        }
    }
}

/// The revision of a request whose headers say what its body says.
///
/// # Errors
/// [`HEADER_MISMATCH`] if they do not, or as [`Request::revision`] says.
fn revision(headers: &HeaderMap, request: &Request) -> Result<Revision, ProtocolError> {
    let named = single(headers, &VERSION)?;
    if let (Some(header), Some(body)) = (named, request.meta.revision.as_deref())
        && header != body
    {
        return Err(mismatch("MCP-Protocol-Version differs from the body"));
    }
    let revision = request.revision(named)?;
    if !revision.is_stateless() {
        return Ok(revision);
    }
    if named.is_none() {
        return Err(mismatch("MCP-Protocol-Version is missing"));
    }
    match single(headers, &METHOD)? {
        None => return Err(mismatch("Mcp-Method is missing")),
        Some(method) if method != request.method => {
            return Err(mismatch("Mcp-Method differs from the body"));
        }
        Some(_) => {}
    }
    if request.method == "tools/call" {
        #[derive(Deserialize)]
        struct Named {
            name: Value,
        }
        let Named { name } = request.params()?;
        match single(headers, &NAME)?.map(decoded).transpose()? {
            None => return Err(mismatch("Mcp-Name is missing")),
            Some(header) if name != *header => {
                return Err(mismatch("Mcp-Name differs from the body"));
            }
            Some(_) => {}
        }
    }
    Ok(revision)
}

/// The value of a header that may be sent once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ProtocolError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.map(HeaderValue::to_str).transpose();
    match (text, second) {
        (Ok(text), None) => Ok(text),
        (Ok(_), Some(_)) => Err(mismatch(&format!("{name} is sent more than once"))),
        (Err(_), _) => Err(mismatch(&format!("{name} is not ASCII"))),
    }
}

/// A value that may be in base64, because not every text is one of a header.
fn decoded(value: &str) -> Result<Cow<'_, str>, ProtocolError> {
    let encoded = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="));
    let Some(encoded) = encoded else { return Ok(value.into()) };
    let bytes = BASE64_STANDARD.decode(encoded).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Cow::Owned).ok_or_else(|| mismatch("Mcp-Name is not text in base64"))
}

fn mismatch(what: &str) -> ProtocolError {
    ProtocolError::new(HEADER_MISMATCH, format!("Header mismatch: {what}"))
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(Body::Full(Bytes::new()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

fn refused(line: String) -> Response<Body> {
    with_status(line, StatusCode::BAD_REQUEST)
}

fn with_status(line: String, status: StatusCode) -> Response<Body> {
    let mut response = full("application/json", line);
    *response.status_mut() = status;
    // It depends on the caller and the time.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer as a stream of events: progress, if the client wants it, and the answer as the last one.
fn stream(
    answer: impl Future<Output = (String, StatusCode)> + Send + 'static,
    lines: mpsc::Receiver<String>,
    is_stateless: bool,
) -> Response<Body> {
    let (parts, body) = mpsc::channel(1);
    tokio::spawn(send(answer, lines, parts, is_stateless).in_current_span());
    let mut response = Response::new(Body::Stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx collects a response otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Sends what there is until the answer. A client that closes the stream gives its request up; before 2026-07-28 it did not,
/// and the request is carried on.
async fn send(
    answer: impl Future<Output = (String, StatusCode)> + Send + 'static,
    mut lines: mpsc::Receiver<String>,
    parts: mpsc::Sender<Bytes>,
    is_stateless: bool,
) {
    let mut answer = std::pin::pin!(answer);
    let mut next = Instant::now() + KEEP_ALIVE_INTERVAL;
    loop {
        let part = tokio::select! {
            biased;
            (line, _) = &mut answer => {
                let _ = parts.send(event(&line)).await;
                return;
            }
            () = parts.closed(), if is_stateless => return,
            Some(line) = lines.recv() => event(&line),
            () = sleep_until(next) => Bytes::from_static(b": in progress\n\n"),
        };
        next = Instant::now() + KEEP_ALIVE_INTERVAL;
        // A client that does not read delays nothing.
        let _ = parts.try_send(part);
    }
}

fn event(line: &str) -> Bytes {
    format!("event: message\ndata: {line}\n\n").into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mcp::protocol::{INVALID_PARAMS, UNSUPPORTED_REVISION};

    fn request(method: &str, params: Value) -> Request {
        let text = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        match protocol::read(text.to_string().as_bytes()) {
            Ok(Message::Request(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    fn meta(revision: &str) -> Value {
        json!({
            "io.modelcontextprotocol/protocolVersion": revision,
            "io.modelcontextprotocol/clientCapabilities": {},
        })
    }

    fn checked(request: &Request, headers: &[(&'static str, &str)]) -> Result<&'static str, i64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("is a value"));
        }
        revision(&map, request).map(|it| it.0).map_err(|error| error.code)
    }

    #[test]
    fn headers_repeat_the_body_or_the_request_is_refused() {
        let version = ("mcp-protocol-version", "2026-07-28");
        let (list, call) = (("mcp-method", "tools/list"), ("mcp-method", "tools/call"));
        let name = ("mcp-name", "drain");
        let lists = request("tools/list", json!({ "_meta": meta("2026-07-28") }));
        let calls = request("tools/call", json!({ "name": "drain", "_meta": meta("2026-07-28") }));
        let (ok, mismatch) = (Ok("2026-07-28"), Err(HEADER_MISMATCH));
        for (request, headers, expected) in [
            (&lists, vec![version, list], ok),
            (&lists, vec![version], mismatch),
            (&lists, vec![list], mismatch),
            (&lists, vec![version, version, list], mismatch),
            (&lists, vec![version, list, list], mismatch),
            (&lists, vec![version, call], mismatch),
            (&lists, vec![version, ("mcp-method", "Tools/List")], mismatch),
            (&lists, vec![("mcp-protocol-version", "2025-11-25"), list], mismatch),
            (&lists, vec![("mcp-protocol-version", "\u{fc}"), list], mismatch),
            (&calls, vec![version, call, name], ok),
            (&calls, vec![version, call, ("mcp-name", "=?base64?ZHJhaW4=?=")], ok),
            (&calls, vec![version, call], mismatch),
            (&calls, vec![version, call, name, name], mismatch),
            (&calls, vec![version, call, ("mcp-name", "scale")], mismatch),
            (&calls, vec![version, call, ("mcp-name", "=?base64?!?=")], mismatch),
            (&calls, vec![version, list, name], mismatch),
        ] {
            assert_eq!(checked(request, &headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_request_of_an_earlier_revision_needs_no_header() {
        let list = request("tools/list", json!({}));
        for (headers, expected) in [
            (vec![], Ok("2025-03-26")),
            (vec![("mcp-protocol-version", "2025-06-18")], Ok("2025-06-18")),
            (vec![("mcp-protocol-version", "1900-01-01")], Err(UNSUPPORTED_REVISION)),
            (vec![("mcp-protocol-version", "")], Err(UNSUPPORTED_REVISION)),
            (vec![("mcp-protocol-version", "2026-07-28")], Err(INVALID_PARAMS)),
        ] {
            assert_eq!(checked(&list, &headers), expected, "{headers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_has_progress_comments_and_the_answer_last() {
        let (lines, received) = mpsc::channel(4);
        let (parts, mut body) = mpsc::channel(1);
        let answer = async {
            sleep(KEEP_ALIVE_INTERVAL * 2).await;
            ("{\"answer\":1}".to_owned(), StatusCode::OK)
        };
        lines.try_send("{\"progress\":1}".to_owned()).expect("has room");
        let sent = tokio::spawn(send(answer, received, parts, true));
        let mut all = Vec::new();
        while let Some(part) = body.recv().await {
            all.push(String::from_utf8(part.into()).expect("is text"));
        }
        sent.await.expect("ends");
        assert_eq!(
            all,
            [
                "event: message\ndata: {\"progress\":1}\n\n",
                ": in progress\n\n",
                "event: message\ndata: {\"answer\":1}\n\n",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_closes_the_stream_gives_its_request_up_since_2026() {
        for is_stateless in [true, false] {
            let (_lines, received) = mpsc::channel(4);
            let (parts, body) = mpsc::channel(1);
            let (ended, has_ended) = tokio::sync::oneshot::channel();
            let answer = async move {
                sleep(Duration::from_secs(60)).await;
                ended.send(()).expect("is awaited");
                (String::new(), StatusCode::OK)
            };
            drop(body);
            send(answer, received, parts, is_stateless).await;
            assert_eq!(has_ended.await.is_ok(), !is_stateless);
        }
    }
}
