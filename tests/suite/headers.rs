//! Every header that is read, with each kind of value that is not one line of readable text: over plain HTTP, over
//! TLS, on both engines, in a CloudEvent and in a function. The expectation is the program's own table, of which
//! `docs/reference/http.md` has a copy.

use std::{fs, path::PathBuf};

use action_executor::{
    contract::digest::sha256,
    http::headers::{At, FaultHandling, HEADERS, Header},
};
use serde_json::json;

use crate::{
    cluster::{GOOD_IMAGE, shared},
    pki::Authority,
    program::{Engine, Program, Reply, Server, execute_request, scratch},
};

const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";
const EVENT: &str = "dev.action-executor.action.request.v1";

/// The header lines of a request: names and values.
pub type Lines = Vec<(&'static str, Vec<u8>)>;

/// One request: its method, its path, its header lines and its body.
#[derive(Clone)]
pub struct Sent {
    /// The method.
    pub method: &'static str,
    /// The path.
    pub path: &'static str,
    /// The header lines.
    pub lines: Lines,
    /// The body.
    pub body: &'static str,
}

fn line(name: &'static str, value: impl AsRef<[u8]>) -> (&'static str, Vec<u8>) {
    (name, value.as_ref().to_vec())
}

/// A request in which this header is read.
fn request_at(at: At) -> Sent {
    let bearer = line("Authorization", format!("Bearer {KEY}"));
    let json = line("Content-Type", "application/json");
    match at {
        At::Document => {
            Sent { method: "GET", path: "/docs", lines: vec![line("Host", "localhost")], body: "" }
        }
        At::Navigation => {
            let site = ["cross-site", "navigate", "document"];
            let names = ["Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"];
            let mut sent = request_at(At::Document);
            sent.lines.extend(names.into_iter().zip(site).map(|(name, value)| line(name, value)));
            sent
        }
        At::Validation => {
            let origin = line("WebHook-Request-Origin", "eventgrid.azure.net");
            let lines = vec![line("Host", "localhost"), origin];
            Sent { method: "OPTIONS", path: "/", lines, body: "" }
        }
        At::Event => {
            let attributes = [
                ("ce-specversion", "1.0"),
                ("ce-type", EVENT),
                ("ce-id", "alert-7"),
                ("ce-source", "/pager"),
            ];
            let attributes = attributes.into_iter().map(|(name, value)| line(name, value));
            let lines = [line("Host", "localhost"), bearer, json].into_iter().chain(attributes);
            Sent { method: "POST", path: "/", lines: lines.collect(), body: REQUEST }
        }
        _ => Sent {
            method: "POST",
            path: "/api/v1/action/execute",
            lines: vec![line("Host", "localhost"), bearer, json],
            body: REQUEST,
        },
    }
}

/// A value that the header may have.
fn valid(name: &str) -> Vec<u8> {
    let value = match name {
        "Host" => "localhost",
        "Origin" => "http://localhost",
        "Sec-Fetch-Site" => "cross-site",
        "Sec-Fetch-Mode" => "navigate",
        "Sec-Fetch-Dest" => "document",
        "Authorization" => return format!("Bearer {KEY}").into_bytes(),
        "Content-Type" | "Accept" => "application/json",
        "Content-Encoding" => "identity",
        "Prefer" => "respond-async",
        "WebHook-Request-Origin" => "eventgrid.azure.net",
        "WebHook-Request-Rate" => "120",
        "If-None-Match" => "*",
        "Request-Timeout" | "X-Request-Timeout" => "30",
        "ce-specversion" => "1.0",
        "ce-type" => EVENT,
        "ce-source" => "/pager",
        "ce-time" => return chrono::Utc::now().to_rfc3339().into_bytes(),
        _ => "a",
    };
    value.as_bytes().to_vec()
}

/// The request with these lines of the header in place of its own.
fn with_lines(header: &Header, values: &[Vec<u8>]) -> Sent {
    let mut sent = request_at(header.at);
    sent.lines.retain(|(name, _)| *name != header.name);
    sent.lines.extend(values.iter().map(|value| (header.name, value.clone())));
    sent
}

/// A case of the table: what is sent, and the status and code that it gets. Where none is given, the answer is that
/// to the second request.
pub struct Case {
    /// For the message of a failure.
    pub what: String,
    /// The request.
    pub sent: Sent,
    /// The refusal, or the request whose answer it gets.
    pub expected: Result<Sent, (u16, String)>,
}

/// Every case of the table.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for header in &HEADERS {
        let one = valid(header.name);
        let long = vec![b'a'; header.max + 1];
        let not_first = ["a\u{2011}b".as_bytes().to_vec()];
        for (what, values, handling) in [
            ("UTF-8", vec!["st\u{f6}rung".as_bytes().to_vec()], header.unreadable),
            ("NBSP", vec![[&one[..], "\u{a0}".as_bytes()].concat()], header.unreadable),
            ("0xff", vec![[&one[..], b"\xff"].concat()], header.unreadable),
            (
                "U+2011 in another line",
                [&[one.clone()][..], &not_first].concat(),
                header.unreadable,
            ),
            ("empty", vec![Vec::new()], header.empty),
            ("spaces", vec![b"  ".to_vec()], header.empty),
            ("twice", vec![one.clone(), one.clone()], header.repeated),
            ("long", vec![long], header.overlong),
        ] {
            let expected = match handling {
                FaultHandling::Refused(code) => Err((code.http_status(), code.to_string())),
                FaultHandling::Ignored if what.contains("another line") => continue,
                FaultHandling::Ignored => Ok(with_lines(header, &[])),
                FaultHandling::Joined | FaultHandling::Shortest => {
                    Ok(with_lines(header, std::slice::from_ref(&one)))
                }
            };
            let what = format!("{}: {what}", header.name);
            cases.push(Case { what, sent: with_lines(header, &values), expected });
        }
    }
    cases
}

fn send(server: &Server, sent: &Sent) -> (u16, String) {
    let Sent { method, path, lines, body } = sent;
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n").into_bytes();
    for (name, value) in lines {
        bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    bytes.extend(format!("Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    outcome(&server.raw(&bytes))
}

fn outcome(reply: &Reply) -> (u16, String) {
    let code =
        if reply.status < 400 { None } else { reply.json()["code"].as_str().map(str::to_owned) };
    (reply.status, code.unwrap_or_default())
}

/// A file with the key that the requests have.
pub fn key_file() -> PathBuf {
    let path = scratch("keys.yaml");
    let text = format!("keys: [{{name: pager, sha256: {}}}]", sha256(KEY.as_bytes()));
    fs::write(&path, text).expect("is written");
    path
}

fn program() -> Program {
    Program::offline()
        .env("ACTION_EXECUTOR_KEYS", key_file())
        .env("ACTION_EXECUTOR_CALLER_RATE", "0")
}

#[test]
fn a_header_that_cannot_be_read_gets_what_the_table_says() {
    let authority = Authority::new();
    let files = authority.server().files();
    let secure = |engine| {
        let server = Server::start_with(engine, files.apply_to(program()));
        server.over_tls(authority.trusted_by(None))
    };
    for (name, server) in [
        ("hyper", Server::start_with(Engine::Hyper, program())),
        ("tiny-http", Server::start_with(Engine::TinyHttp, program())),
        ("hyper over TLS", secure(Engine::Hyper)),
        ("tiny-http over TLS", secure(Engine::TinyHttp)),
    ] {
        for Case { what, sent, expected } in cases() {
            let expected = expected.map_or_else(|refusal| refusal, |sent| send(&server, &sent));
            assert_eq!(send(&server, &sent), expected, "{name}: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_idempotency_key_or_time_executes_nothing() {
    let namespace = shared().namespace("unreadable_header").await;
    namespace.deployment("web", 0, GOOD_IMAGE).await;
    let request = json!({
        "type": "restart_k8s", "simulate": false,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
    .to_string();
    let event = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         ce-specversion: 1.0\r\nce-type: {EVENT}\r\nce-id: 7\r\nce-source: /pager\r\n\
         ce-time: 2020-01-01T00:00:00Z",
        request.len()
    );
    for engine in Engine::ALL {
        let server = Server::start_with(engine, Program::with_kubeconfig(namespace.kubeconfig()));
        for key in ["st\u{f6}rung-7", "a\u{a0}b", "a\u{2011}b"] {
            for _ in 0..2 {
                let lines = format!("Idempotency-Key: {key}\r\nConnection: close\r\n");
                let reply = server.raw(&execute_request(request.as_bytes(), &lines));
                assert_eq!(
                    (reply.status, &reply.json()["field"]),
                    (400, &json!("Idempotency-Key"))
                );
            }
        }
        let lines = "Idempotency-Key: a\r\nIdempotency-Key: \u{f6}\r\n";
        assert_eq!(server.raw(&execute_request(request.as_bytes(), lines)).status, 400);
        let old = [event.as_bytes(), b"\xe9\r\n\r\n", request.as_bytes()].concat();
        let reply = server.raw(&old);
        assert_eq!((reply.status, &reply.json()["field"]), (400, &json!("ce-time")), "{reply:?}");
    }
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(1));
}
