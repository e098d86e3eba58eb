//! `POST /mcp`: the Model Context Protocol over HTTP (Streamable HTTP,
//! <https://modelcontextprotocol.io/specification/2026-07-28/basic/transports/streamable-http>).
//!
//! Each request is answered by itself, with one JSON object or, if it takes longer, with a stream of events that ends
//! with the answer. What concerns the connection and the caller is decided as for every other endpoint; here are the
//! headers that repeat the body, the statuses, and what becomes of a client that is gone.

use std::{borrow::Cow, sync::Arc, time::Duration};

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
        concurrency,
        dispatch::Service,
        endpoints::{
            execute::{action_time, with_permit},
            respond_async::{self, BackgroundTasks},
        },
        headers::{
            ACCEPT, CONTENT_TYPE, accepts_event_stream, check_accept, check_content_encoding,
            check_content_type,
        },
        message::{Body, FullRequest, RequestInfo, full},
    },
    mcp::{
        self, Exchange,
        calls::{Hold, Progression},
        protocol::{
            self, HEADER_MISMATCH, METHOD_NOT_FOUND, MISSING_CAPABILITY, Message, ProtocolError,
            Request, Revision,
        },
    },
};

/// The headers that repeat what the body says, for what is in front of the server.
const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// The beginning of the names of headers that repeat an argument.
const PARAMETER: &str = "Mcp-Param-";

/// How long a request may take before its answer becomes a stream, if the client accepts one.
const JSON_RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How often something is sent on a stream, so that no proxy takes the connection for an idle one.
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
        Ok(Message::Request(message)) => *message,
        // There is nothing to cancel: a client that closes its stream has done so.
        Ok(Message::Notification(_)) => return Ok(accepted()),
        Err((id, error)) => return Ok(refused(protocol::error(id.as_ref(), &error))),
    };
    let settings = service.mcp;
    let repeated = mcp::repeated_arguments(&service.context);
    let revision = match revision(headers, &message, repeated) {
        Ok(revision) => revision,
        Err(error) => return Ok(refused(protocol::error(Some(&message.id), &error))),
    };
    let (sender, lines) = mpsc::channel(BUFFERED_LINES);
    let token = message.meta.progress_token.clone().filter(|_| may_stream);
    let server = service.server.as_ref();
    let hold = hold(server.map(|server| &server.background), &info);
    let exchange = Exchange {
        context: with_permit(service, &info),
        caller: info.caller.clone(),
        client: None,
        revision,
        tools: settings.tools,
        wait: action_time(&info).map_or(settings.wait, |time| settings.wait.min(time)),
        hold,
        permissions: service.permissions.clone(),
        waits: server.map(|server| server.waits.clone()).unwrap_or_default(),
        progression: token.map(|token| Progression { token, lines: sender }),
    };
    let mut answer = Box::pin(async move { answer(exchange, &message).await }.in_current_span());
    tokio::select! {
        biased;
        (line, status) = &mut answer => return Ok(with_status(line, status)),
        () = sleep(JSON_RESPONSE_TIMEOUT), if may_stream => {}
    }
    Ok(stream(answer, lines, revision.is_stateless()))
}

/// What an action of this request holds until it ends, also if its client is gone before: a permit to continue, or
/// where none is left, the request's own.
fn hold(
    background: Option<&BackgroundTasks>,
    info: &RequestInfo,
) -> Hold<respond_async::Permit, Option<Arc<concurrency::Permit>>> {
    match background.and_then(BackgroundTasks::permit) {
        Some(permit) => Hold::Background(permit),
        None => Hold::Request(info.permit.clone()),
    }
}

/// The answer in one line, with its status.
async fn answer<B, R>(exchange: Exchange<B, R>, request: &Request) -> (String, StatusCode)
where
    B: Send + 'static,
    R: Send + 'static,
{
    let is_stateless = exchange.revision.is_stateless();
    match mcp::answer(exchange, request).await {
        Ok(result) => (protocol::result(&request.id, result), StatusCode::OK),
        Err(error) => {
            let status = match error.code {
                METHOD_NOT_FOUND if is_stateless => StatusCode::NOT_FOUND,
                MISSING_CAPABILITY => StatusCode::BAD_REQUEST,
                _ => StatusCode::OK,
            };
            (protocol::error(Some(&request.id), &error), status)
        }
    }
}

/// The revision of a request whose headers say what its body says; `repeated` are those that repeat arguments of a
/// tool.
///
/// # Errors
/// [`HEADER_MISMATCH`] if they do not, or as [`Request::revision`] says.
fn revision(
    headers: &HeaderMap,
    request: &Request,
    repeated: &[&'static str],
) -> Result<Revision, ProtocolError> {
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
    if let Some(name) = name(request)? {
        match decoded(headers, &NAME)? {
            None => return Err(mismatch("Mcp-Name is missing")),
            Some(header) if name != *header => {
                return Err(mismatch("Mcp-Name differs from the body"));
            }
            Some(_) => {}
        }
    }
    if request.method == "tools/call" {
        for (parameter, named) in mcp::repeated_in_headers(request, repeated) {
            check_repeated(headers, parameter, named.as_deref())?;
        }
    }
    Ok(revision)
}

/// Checks that the header of this argument has its value, and is not sent if the argument is not given.
///
/// # Errors
/// [`HEADER_MISMATCH`] if it does not.
fn check_repeated(
    headers: &HeaderMap,
    parameter: &str,
    named: Option<&str>,
) -> Result<(), ProtocolError> {
    let header = format!("{PARAMETER}{parameter}");
    let differs = || mismatch(&format!("{header} differs from the arguments"));
    let name = HeaderName::try_from(&header).map_err(|_| differs())?;
    if named == decoded(headers, &name)?.as_deref() { Ok(()) } else { Err(differs()) }
}

/// What `Mcp-Name` repeats, if the method has such a parameter.
fn name(request: &Request) -> Result<Option<Value>, ProtocolError> {
    #[derive(Deserialize)]
    struct Tool {
        name: Value,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Task {
        task_id: Value,
    }
    if request.method == "tools/call" {
        return request.params().map(|Tool { name }| Some(name));
    }
    match mcp::is_about_a_task(request) {
        true => request.params().map(|Task { task_id }| Some(task_id)),
        false => Ok(None),
    }
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

/// The text of a header that may be in base64, because not every text is the value of a header.
fn decoded<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<Cow<'a, str>>, ProtocolError> {
    let Some(value) = single(headers, name)? else { return Ok(None) };
    let encoded = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="));
    let Some(encoded) = encoded else { return Ok(Some(value.into())) };
    let bytes = BASE64_STANDARD.decode(encoded).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| mismatch(&format!("{name} is not text in base64")))?;
    Ok(Some(Cow::Owned(text)))
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

/// Sends what there is until the answer. A client that closes the stream gives its request up; before 2026-07-28 it did
/// not, and the request is carried on.
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
    use crate::{
        http::{concurrency::Limiter, routes::MatchedPath},
        mcp::protocol::{INVALID_PARAMS, UNSUPPORTED_REVISION},
        telemetry::metrics::Metrics,
    };

    fn request(method: &str, params: Value) -> Request {
        let text = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        match protocol::read(text.to_string().as_bytes()) {
            Ok(Message::Request(request)) => *request,
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
        revision(&map, request, mcp::REPEATED_WITH_LIST).map(|it| it.0).map_err(|error| error.code)
    }

    #[test]
    fn headers_repeat_the_body_or_the_request_is_refused() {
        let version = ("mcp-protocol-version", "2026-07-28");
        let (list, call) = (("mcp-method", "tools/list"), ("mcp-method", "tools/call"));
        let name = ("mcp-name", "drain");
        let lists = request("tools/list", json!({ "_meta": meta("2026-07-28") }));
        let calls = request("tools/call", json!({ "name": "drain", "_meta": meta("2026-07-28") }));
        let get = ("mcp-method", "tasks/get");
        let params = json!({ "taskId": "shop/a/YWJj", "_meta": meta("2026-07-28") });
        let gets = request("tasks/get", params);
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
            (&gets, vec![version, get, ("mcp-name", "shop/a/YWJj")], ok),
            (&gets, vec![version, get, ("mcp-name", "shop/b/YWJj")], mismatch),
            (&gets, vec![version, get], mismatch),
        ] {
            assert_eq!(checked(request, &headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_header_repeats_the_namespace_of_the_arguments_or_the_call_is_refused() {
        let (ok, mismatch) = (Ok("2026-07-28"), Err(HEADER_MISMATCH));
        let shop = || json!({ "id": "a", "parameters": { "name": "web", "namespace": "shop" } });
        let (none, header) = (None, Some("shop"));
        for (tool, arguments, namespace, expected) in [
            ("scale", shop(), header, ok),
            ("scale", shop(), Some("=?base64?c2hvcA==?="), ok),
            ("scale", shop(), Some("=?base64?c2hvcA?="), mismatch),
            ("scale", shop(), none, mismatch),
            ("scale", shop(), Some("Shop"), mismatch),
            ("scale", shop(), Some("ops"), mismatch),
            ("scale", json!({ "id": "a", "parameters": { "name": "web" } }), none, ok),
            ("scale", json!({ "id": "a", "parameters": { "name": "web" } }), header, mismatch),
            ("scale", json!({ "id": "a", "parameters": { "namespace": null } }), none, ok),
            ("scale", json!({ "id": "a", "namespace": "shop" }), none, ok),
            ("simulate", shop(), none, mismatch),
            ("simulate", shop(), header, ok),
            ("get_action", json!({ "id": "a", "namespace": "shop" }), header, ok),
            ("get_action", json!({ "id": "a", "namespace": "shop" }), none, mismatch),
            ("list_actions", json!({}), none, ok),
            ("list_actions", json!({}), header, mismatch),
            // A node is in no namespace, so that the header means nothing.
            ("drain", json!({ "id": "a", "parameters": { "node": "n" } }), header, ok),
            // Refused for what they are.
            ("scale", json!({ "id": "a", "parameters": { "namespace": 7 } }), none, ok),
            ("scale", json!({ "id": "a", "parameters": ["shop"] }), none, ok),
            ("unknown", shop(), none, ok),
        ] {
            let params = json!({
                "name": tool, "arguments": arguments, "_meta": meta("2026-07-28"),
            });
            let call = request("tools/call", params);
            let mut headers = vec![
                ("mcp-protocol-version", "2026-07-28"),
                ("mcp-method", "tools/call"),
                ("mcp-name", tool),
            ];
            headers.extend(namespace.map(|namespace| ("mcp-param-namespace", namespace)));
            assert_eq!(checked(&call, &headers), expected, "{tool} {arguments} {namespace:?}");
        }
    }

    #[test]
    fn a_header_repeats_the_cluster_of_the_arguments_where_clusters_are_listed() {
        for (is_listed, argument, header, is_repeated) in [
            (true, json!("blue"), Some("blue"), true),
            (true, json!("blue"), None, false),
            (true, json!("blue"), Some("green"), false),
            (true, json!(null), Some("blue"), false),
            (true, json!(null), None, true),
            // Refused for what it is.
            (true, json!(7), None, true),
            // The tools' schemas do not name it.
            (false, json!("blue"), None, true),
        ] {
            for tool in ["simulate", "execute", "drain", "get_action", "list_actions", "diagnose"] {
                let arguments = json!({ "cluster": argument });
                let params =
                    json!({ "name": tool, "arguments": arguments, "_meta": meta("2026-07-28") });
                let call = request("tools/call", params);
                let mut headers = vec![
                    ("mcp-protocol-version", "2026-07-28"),
                    ("mcp-method", "tools/call"),
                    ("mcp-name", tool),
                ];
                headers.extend(header.map(|name| ("mcp-param-cluster", name)));
                let headers = headers.into_iter().map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                });
                let repeated = if is_listed { mcp::REPEATED_WITH_LIST } else { mcp::REPEATED };
                let checked = revision(&headers.collect(), &call, repeated);
                assert_eq!(checked.is_ok(), is_repeated, "{tool} {arguments} {header:?}");
            }
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
    async fn an_action_without_a_permit_to_continue_holds_that_of_its_request() {
        let limiter = Limiter::new(1, usize::MAX, &[], Arc::new(Metrics::new(None)));
        let limiter = limiter.expect("is right");
        let acquire = async || limiter.acquire_action(None, None).await;
        let background = BackgroundTasks::default();
        let mut taken = Vec::new();
        for is_free in [true, false] {
            let permit = acquire().await.expect("is free");
            let id = HeaderValue::from_static("id");
            let info = RequestInfo::new(id, MatchedPath::of("/mcp"), None);
            let info = RequestInfo { permit: Some(permit), ..info };
            let held = hold(Some(&background), &info);
            // Its client is gone.
            drop(info);
            assert_eq!(acquire().await.is_ok(), is_free);
            drop(held);
            assert!(acquire().await.is_ok());
            taken.extend(std::iter::from_fn(|| background.permit()));
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
        lines.try_send("{\"progress\":1}".to_owned()).expect("has capacity");
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
