//! OpenTelemetry traces: the spans that a collector receives, and an unreachable collector.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::json;

use crate::{
    cluster::shared,
    program::{Program, Server, execute_request},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A collector that stores what it receives.
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Export>>>,
}

/// The header and the body of an export, as received.
type Export = (String, Vec<u8>);

impl Collector {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
        let address = listener.local_addr().expect("is bound");
        let received = Arc::<Mutex<Vec<_>>>::default();
        let into = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let into = into.clone();
                thread::spawn(move || while take(&stream, &into).is_some() {});
            }
        });
        Collector { address, received }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything received, as searchable bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let received = self.received.lock().expect("is not poisoned");
        received.iter().flat_map(|(_, body)| body.clone()).collect()
    }

    fn headers(&self) -> Vec<String> {
        self.received
            .lock()
            .expect("is not poisoned")
            .iter()
            .map(|(header, _)| header.clone())
            .collect()
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().expect("is not poisoned");
        let exports = received.iter().map(|(_, body)| {
            ExportTraceServiceRequest::decode(body.as_slice()).expect("is an export")
        });
        let resources = exports.flat_map(|export| export.resource_spans);
        resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
    }
}

/// Reads one export from a connection.
fn take(stream: &TcpStream, into: &Mutex<Vec<Export>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut header = String::new();
    while !header.ends_with("\r\n\r\n") {
        if reader.read_line(&mut header).ok()? == 0 {
            return None;
        }
    }
    let length = header.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    into.lock().expect("is not poisoned").push((header, body));
    let mut stream = stream;
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(answer.as_bytes()).ok()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|it| it.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        other => format!("{other:?}"),
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| {
        panic!("{name} is not in {:?}", spans.iter().map(|it| &it.name).collect::<Vec<_>>())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_from_the_caller_to_the_api_server_calls() {
    let namespace = shared().namespace("traced").await;
    namespace.running_deployment("web", 1).await;
    let collector = Collector::start();
    let server = Server::start(
        Program::with_kubeconfig(namespace.kubeconfig())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=sre")
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    );
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "traced-1",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let headers = format!(
        "traceparent: 00-{TRACE}-{CALLER}-01\r\nX-Request-Id: page-7\r\nConnection: close\r\n"
    );
    let reply = server.raw(&execute_request(request.to_string().as_bytes(), &headers));
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("page-7")));
    server.signal("TERM");
    let (status, log) = tokio::task::spawn_blocking(|| server.wait()).await.expect("it ended");
    assert_eq!(status, 0, "{log}");

    let spans = collector.spans();
    let spans: Vec<_> =
        spans.into_iter().filter(|span| hexadecimal(&span.trace_id) == TRACE).collect();
    let server_span = named(&spans, "POST /api/v1/action/execute");
    assert_eq!(
        (hexadecimal(&server_span.parent_span_id), server_span.kind()),
        (CALLER.into(), SpanKind::Server)
    );
    assert_eq!(attribute(server_span, "http.response.status_code").as_deref(), Some("200"));
    assert_eq!(attribute(server_span, "http.request.method").as_deref(), Some("POST"));
    let answer = named(&spans, "answer");
    assert_eq!(answer.parent_span_id, server_span.span_id);
    let action = named(&spans, "restart_k8s");
    assert_eq!(action.parent_span_id, answer.span_id);
    assert_eq!(attribute(action, "action_executor.id").as_deref(), Some("traced-1"));
    assert_eq!(attribute(action, "action_executor.result").as_deref(), Some("applied"));
    let calls: Vec<_> = spans.iter().filter(|span| span.kind() == SpanKind::Client).collect();
    assert!(calls.len() >= 5 && calls.iter().any(|call| call.name == "patch"), "{calls:?}");
    for call in &calls {
        assert_eq!(call.parent_span_id, action.span_id, "{call:?}");
    }
    assert!(collector.headers().iter().all(|header| header.contains("x-tenant: sre")));
    // The log line has the request's id and the trace's.
    let line = log.lines().find(|line| line.contains("action answered")).expect("is logged");
    assert!(line.contains("page-7") && line.contains(TRACE), "{line}");
}

#[test]
fn a_refusal_marks_its_span_and_a_request_without_a_trace_starts_one() {
    let collector = Collector::start();
    let server = Server::start(
        Program::offline().env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint()),
    );
    let real = br#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false}"#;
    let reply = server.execute(real);
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("x-request-id").map(str::len), Some(36));
    server.signal("TERM");
    server.wait();
    let spans = collector.spans();
    let server_span = named(&spans, "POST /api/v1/action/execute");
    assert!(server_span.parent_span_id.is_empty());
    let action = named(&spans, "restart_k8s");
    assert_eq!(action.trace_id, server_span.trace_id);
    assert_eq!(attribute(action, "action_executor.result").as_deref(), Some("configuration"));
    let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code == 2);
    assert!(failed(server_span) && failed(action), "{server_span:?} {action:?}");
}

#[test]
fn an_unreachable_collector_delays_no_request_and_is_logged_once() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("is bound").local_addr().expect("is bound");
    let server = Server::start(
        Program::offline()
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{gone}"))
            .env("OTEL_BSP_SCHEDULE_DELAY", "100"),
    );
    let began = Instant::now();
    while server.log().matches("traces dropped").count() == 0 {
        let request = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
        let asked = Instant::now();
        assert_eq!(server.execute(request).status, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "{}", server.log());
    }
    let began = Instant::now();
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!((status, log.matches("traces dropped").count()), (0, 1), "{log}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_single_run_is_traced() {
    let collector = Collector::start();
    let done = Program::offline()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .input(&br#"{"type":"restart_pod","parameters":{"pod_name":"web-1"}}"#[..])
        .run();
    assert_eq!(done.status, 0, "{done:?}");
    let spans = collector.spans();
    assert_eq!(
        attribute(named(&spans, "restart_pod"), "action_executor.result").as_deref(),
        Some("simulated")
    );
}

#[test]
fn an_invalid_collector_address_is_reported_without_its_value() {
    let done = Program::offline()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address, hunter2")
        .input(&br#"{"type":"restart_pod","parameters":{"pod_name":"web-1"}}"#[..])
        .run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stdout.contains("OTEL_EXPORTER_OTLP") && !done.stdout.contains("hunter2"));
}

#[test]
fn a_message_of_mcp_continues_the_trace_that_it_names() {
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {
            "name": "simulate",
            "arguments": { "type": "restart_pod", "parameters": { "pod_name": "web-1" } },
            "_meta": { "traceparent": format!("00-{TRACE}-{CALLER}-01") },
        },
    });
    let call = call.to_string();
    let collectors = [Collector::start(), Collector::start()];
    let [over_stdio, over_http] = &collectors;
    let program = |collector: &Collector| {
        Program::offline().env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
    };
    let done = program(over_stdio).args(["mcp"]).input(call.clone() + "\n").run();
    assert_eq!(done.status, 0, "{done:?}");
    let server = Server::start(program(over_http));
    // The transport has a trace of its own, as a proxy's.
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\ntraceparent: 00-{}-{CALLER}-01\r\nConnection: close\r\n\r\n{call}",
        call.len(),
        TRACE.replace('0', "1")
    );
    assert_eq!(server.raw(request.as_bytes()).status, 200);
    server.signal("TERM");
    server.wait();
    for collector in &collectors {
        let spans = collector.spans();
        let message = named(&spans, "mcp");
        let joined = (hexadecimal(&message.trace_id), hexadecimal(&message.parent_span_id));
        assert_eq!(joined, (TRACE.to_owned(), CALLER.to_owned()));
        let action = named(&spans, "restart_pod");
        assert_eq!(
            (&action.trace_id, &action.parent_span_id),
            (&message.trace_id, &message.span_id)
        );
    }
}
