//! CloudEvents: interoperability with the Go SDK, and the HTTP statuses that a broker acts on.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use chrono::{DateTime, FixedOffset, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    exactly_once::transparent,
    program::{Program, Reply, Server},
};

const REQUEST: &str = "dev.action-executor.action.request.v1";
const DATA: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The client in Go, built once; Go caches the build.
fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cloudevents");
        let built = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cloudevents"))
            .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-trimpath")])
            .output()
            .expect("go runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        program
    })
}

/// Sends an event through the SDK; returns what the SDK received.
fn send(server: &Server, mode: &str, data: &str, more: &[&str]) -> Value {
    let to = format!("http://{}/", server.address());
    let mut client = Command::new(client());
    client.args(["-to", &to, "-mode", mode, "-traceparent", TRACE]).args(more);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = client.spawn().expect("the client runs");
    client.stdin.take().expect("is piped").write_all(data.as_bytes()).expect("is sent");
    let done = client.wait_with_output().expect("it ended");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("is JSON")
}

fn restart(namespace: &Namespace, simulate: bool) -> Value {
    json!({
        "type": "restart_k8s", "simulate": simulate,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
}

fn post(server: &Server, headers: &str, body: &str) -> Reply {
    let length = body.len();
    server.raw(
        format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        )
        .as_bytes(),
    )
}

fn binary(id: &str, source: &str) -> String {
    format!(
        "Content-Type: application/json\r\nce-specversion: 1.0\r\nce-type: {REQUEST}\r\n\
         ce-id: {id}\r\nce-source: {source}\r\n"
    )
}

fn moment(text: &Value) -> DateTime<FixedOffset> {
    DateTime::parse_from_rfc3339(text.as_str().expect("is text")).expect("is a time")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_sdk_gets_answers_in_the_mode_it_sends() {
    let namespace = shared().namespace("events").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let request = restart(&namespace, false).to_string();
    for (at, mode) in ["binary", "structured"].into_iter().enumerate() {
        let event = ["-source", "/pager/é", "-id", &format!("alert-{at}")];
        let received = send(&server, mode, &request, &event);
        let answer = &received["event"];
        assert_eq!(answer["type"], "dev.action-executor.action.response.v1", "{received}");
        assert_eq!(answer["source"], "https://action-executor.dev/executor");
        assert_eq!(answer["subject"], format!("{}/Deployment/web", namespace.name()));
        assert_eq!(answer["datacontenttype"], "application/json");
        assert_eq!(answer["traceparent"], TRACE);
        let id = answer["data"]["id"].as_str().expect("has one");
        assert!(id.starts_with("ce-") && id.ends_with(&format!("-alert-{at}")), "{id}");
        assert_eq!(answer["id"], format!("{id}.applied"));
        // The SDK writes 13.630 s as 13.63 s.
        assert_eq!(moment(&answer["time"]), moment(&answer["data"]["finished_at"]));
        assert_eq!(
            (&answer["data"]["outcome"], &answer["data"]["replayed"]),
            (&json!("applied"), &json!(false))
        );
        // Redelivered in the other mode and with another time, it is the same event.
        let other = if mode == "binary" { "structured" } else { "binary" };
        let again = send(&server, other, &request, &event);
        assert_eq!(
            (&again["event"]["id"], &again["event"]["data"]["replayed"]),
            (&answer["id"], &json!(true))
        );
    }
    let after = namespace.get_deployment("web").await.metadata.generation;
    assert_eq!(after, before.map(|it| it + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_or_refused_event_gets_a_problem_event() {
    let namespace = shared().namespace("event_problems").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let mut own = restart(&namespace, false);
    own["id"] = "mine".into();
    let mut missing = own.clone();
    missing["parameters"]["deployment"] = "missing".into();
    for mode in ["binary", "structured"] {
        for (request, more, id, code) in [
            (&own, ["-time", "2026-01-31T12:00:00Z"], "mine.request_expired", "request_expired"),
            (&missing, ["-id", "7"], "mine.target_not_found", "target_not_found"),
        ] {
            let received = send(&server, mode, &request.to_string(), &more);
            let answer = &received["event"];
            assert_eq!(answer["type"], "dev.action-executor.action.problem.v1", "{received}");
            assert_eq!((&answer["id"], &answer["data"]["code"]), (&json!(id), &json!(code)));
            assert_eq!(answer["datacontenttype"], "application/json");
        }
    }
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, before);
    // The request's own id takes precedence, and the same request may arrive in another event.
    for (event, replayed) in [("1", false), ("2", true)] {
        let received = send(&server, "binary", &own.to_string(), &["-id", event]);
        assert_eq!(received["event"]["id"], "mine.applied", "{received}");
        assert_eq!(received["event"]["data"]["replayed"], replayed);
    }
}

/// The clock of the server is 40 minutes behind: by it, the event would be young enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_an_event_is_judged_by_the_api_servers_clock() {
    let namespace = shared().namespace("event_age").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation;
    // Without TLS: by this clock, the API server's certificate is not valid yet.
    let proxy = transparent(&namespace).await;
    let program = Program::with_kubeconfig(&proxy.kubeconfig).clock_shifted_by(-40 * 60);
    let server = Server::start(program);
    let at = (Utc::now() - TimeDelta::minutes(65)).to_rfc3339();
    let data = restart(&namespace, false).to_string();
    let received = send(&server, "binary", &data, &["-time", &at, "-id", "7"]);
    assert_eq!(received["event"]["data"]["code"], "request_expired", "{received}");
    assert_eq!(received["event"]["data"]["field"], "time", "{received}");
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, before);
}

#[test]
fn http_statuses_show_a_broker_whether_to_redeliver() {
    let server = Server::start(Program::offline());
    let event = binary("7", "/pager");
    let reply = post(&server, &event, DATA);
    assert_eq!((reply.status, reply.header("ce-specversion")), (200, Some("1.0")), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.json()["outcome"], "simulated");
    // An invalid request in a valid event is answered, so that it does not become a dead letter.
    let reply = post(&server, &event, "{}");
    assert_eq!(
        (reply.status, reply.header("ce-type")),
        (200, Some("dev.action-executor.action.problem.v1"))
    );
    assert_eq!(reply.json()["code"], "invalid_request");
    assert!(reply.header("ce-id").expect("has one").ends_with("-7.invalid_request"));
    // An error that an administrator has to correct is redelivered meanwhile.
    let real = DATA.replace(r#"}}"#, r#"},"simulate":false}"#);
    assert_eq!(post(&server, &event, &real).status, 503);
}

#[test]
fn a_foreign_or_malformed_event_is_rejected() {
    let server = Server::start(Program::offline());
    let code = |headers: &str, body: &str| {
        let reply = post(&server, headers, body);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
        (reply.status, reply.json())
    };
    let (status, problem) =
        code("Content-Type: application/cloudevents-batch+json\r\n", &format!("[{DATA}]"));
    assert_eq!(status, 415);
    assert!(problem["hint"].as_str().expect("has one").contains("each event by itself"));
    let (status, problem) =
        code(&binary("7", "/pager").replace(REQUEST, "com.example.other"), DATA);
    assert_eq!((status, &problem["field"]), (400, &json!("ce-type")));
    assert!(problem["detail"].as_str().expect("has one").contains(REQUEST));
    let (status, problem) = code(&binary("7", "/pager").replace("1.0", "0.3"), DATA);
    assert_eq!((status, &problem["field"]), (400, &json!("ce-specversion")));
    let (status, problem) = code("Content-Type: application/json\r\n", DATA);
    assert_eq!(status, 400);
    assert!(problem["hint"].as_str().expect("has one").contains("/api/v1/action/execute"));
    let text = binary("7", "/pager").replace("application/json", "text/plain");
    assert_eq!(code(&text, DATA).0, 415);
    let structured = "Content-Type: application/cloudevents+json; charset=utf-8\r\n";
    let event = |data: &str| {
        format!(
            r#"{{"specversion":"1.0","type":"{REQUEST}","id":"7","source":"/p","data":{data}}}"#
        )
    };
    assert_eq!(post(&server, structured, &event(DATA)).status, 200);
    // A duplicate field is rejected here as everywhere else.
    let twice = DATA.replacen('{', r#"{"simulate":true,"simulate":true,"#, 1);
    let reply = post(&server, structured, &event(&twice));
    assert_eq!(reply.json()["data"]["detail"], "simulate: given more than once", "{reply:?}");
    let attribute_twice = event(DATA).replacen('{', r#"{"id":"8","#, 1);
    assert_eq!(code(structured, &attribute_twice).0, 400);
    assert_eq!(server.get("/").status, 405);
}

#[test]
fn an_unauthenticated_event_gets_401() {
    let keys = crate::program::scratch("keys.yaml");
    let sha256 = action_executor::contract::digest::sha256(b"secret");
    std::fs::write(
        &keys,
        format!("version: 1\nkeys: [{{name: pager, sha256: {sha256}, namespaces: [shop]}}]\n"),
    )
    .expect("is written");
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", &keys));
    for headers in [binary("7", "/pager"), String::new()] {
        assert_eq!(post(&server, &headers, DATA).status, 401);
    }
    // An event of a caller without permission becomes a dead letter.
    let received = send(&server, "binary", DATA, &["-key", "secret"]);
    assert_eq!(received["status"], 403, "{received}");
    let allowed = DATA.replace(r#""web""#, r#""web","namespace":"shop""#);
    assert_eq!(
        send(&server, "structured", &allowed, &["-key", "secret"])["event"]["data"]["outcome"],
        "simulated"
    );
}

/// As Azure Event Grid asks before it delivers (HTTP 1.1 Web Hooks for Event Delivery, section 4).
#[test]
fn a_sender_may_ask_whether_it_may_deliver_events() {
    let keys = crate::headers::key_file();
    for (program, rate) in
        [(Program::offline(), "*"), (Program::offline().env("ACTION_EXECUTOR_KEYS", &keys), "1200")]
    {
        let server = Server::start(program);
        let ask = |headers: &str| {
            let request = format!("OPTIONS / HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
            server.raw(request.as_bytes())
        };
        let origin = "WebHook-Request-Origin: eventgrid.azure.net\r\n";
        let reply = ask(&format!("{origin}WebHook-Request-Rate: 120\r\n"));
        assert_eq!((reply.status, reply.header("allow")), (200, Some("POST, OPTIONS")));
        assert_eq!(reply.header("webhook-allowed-origin"), Some("eventgrid.azure.net"));
        assert_eq!(reply.header("webhook-allowed-rate"), Some(rate));
        assert_eq!(ask(origin).header("webhook-allowed-rate"), None);
        for wrong in ["", &format!("{origin}WebHook-Request-Rate: 0\r\n")] {
            assert_eq!(ask(wrong).json()["code"], "invalid_request", "{wrong}");
        }
    }
}
