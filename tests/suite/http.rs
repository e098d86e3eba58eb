//! The HTTP interface: paths, methods, media types, limits, startup and shutdown.

use std::{
    io::{BufReader, Write},
    net::Shutdown,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{SLOW_IMAGE, eventually, private, shared},
    program::{Engine, Program, Reply, Server, execute_request},
};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

fn offline() -> Server {
    Server::start(Program::offline())
}

#[test]
fn health_answers_in_the_originals_words() {
    let reply = offline().get("/api/v1/healthz");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, br#"{"status":"ok"}"#);
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[test]
fn head_is_answered_wherever_get_is() {
    let server = offline();
    let mut stream = server.connect();
    stream
        .write_all(b"HEAD /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).expect("is read");
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn a_request_is_executed() {
    let reply = offline().execute(REQUEST);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.json()["outcome"], "simulated");
}

#[test]
fn an_invalid_request_gets_a_problem_document() {
    let reply = offline().execute(b"{}");
    assert_eq!(reply.status, 400);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.json()["detail"], "type: missing");
}

#[test]
fn unknown_paths_are_404_and_other_methods_405() {
    let server = offline();
    for path in ["//", "/api/v1/action/execute/", "/api/v1/healthz/x", "/readyz/", "/%2e%2e/readyz"]
    {
        let reply = server.get(path);
        assert_eq!(
            (reply.status, reply.json()["code"].as_str()),
            (404, Some("route_not_found")),
            "{path}"
        );
    }
    let reply = server.get("/api/v1/action/execute");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    let reply = server.raw(b"DELETE /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(server.get("/api/v1/healthz?verbose=1").status, 200);
}

fn with_header(server: &Server, header: &str) -> Reply {
    let length = REQUEST.len();
    let mut request = format!(
        "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{header}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(REQUEST);
    server.raw(&request)
}

#[test]
fn other_media_types_are_415() {
    let server = offline();
    for header in
        ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
    {
        let reply = with_header(&server, header);
        assert_eq!(reply.status, 415, "{header}");
        let hint = reply.json()["hint"].as_str().expect("has one").to_owned();
        assert!(hint.contains("application/json"));
    }
    assert_eq!(
        with_header(&server, "Content-Type: application/json; charset=utf-8\r\n").status,
        200
    );
}

#[test]
fn an_accept_header_without_json_is_406() {
    let server = offline();
    let json = "Content-Type: application/json\r\n";
    assert_eq!(with_header(&server, &format!("{json}Accept: text/html\r\n")).status, 406);
    assert_eq!(
        with_header(&server, &format!("{json}Accept: text/html, */*;q=0.1\r\n")).status,
        200
    );
}

#[test]
fn the_originals_python_calls_work_unchanged() {
    let server = offline();
    let script = format!(
        r#"
import json, urllib.request
base = "http://{}"
health = json.load(urllib.request.urlopen(base + "/api/v1/healthz"))
assert health == {{"status": "ok"}}, health
body = json.dumps({{"type": "restart_k8s", "parameters": {{"deployment": "my-deployment",
    "pod_name": None, "namespace": "default"}}, "simulate": True}}).encode()
request = urllib.request.Request(base + "/api/v1/action/execute", body,
    {{"Content-Type": "application/json"}})
answer = json.load(urllib.request.urlopen(request))
assert "my-deployment" in answer["result"], answer
"#,
        server.address()
    );
    let done = Command::new("python3").args(["-c", &script]).output().expect("python3 runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The calls of the original's README, with its body verbatim, through the library that its users have.
/// A missing Python fails the test: it must not pass unrun.
#[test]
#[ignore = "needs a Python with requests in PYTHON_WITH_REQUESTS: pip install requests==2.34.2"]
fn the_originals_calls_with_requests_for_python_work_unchanged() {
    let server = offline();
    let script = format!(
        r#"
import requests

base = "http://{}"
health = requests.get(f"{{base}}/api/v1/healthz")
assert health.status_code == 200 and health.json() == {{"status": "ok"}}, health.text
# Both of them at once, as the README has it, and each by itself.
for named in (
    {{"deployment": "my-deployment", "pod_name": "my-pod-123", "namespace": "default"}},
    {{"deployment": "my-deployment", "namespace": "default"}},
    {{"deployment": "my-deployment"}},
):
    body = {{"type": "restart_k8s", "parameters": named, "simulate": True}}
    answer = requests.post(f"{{base}}/api/v1/action/execute", json=body)
    answer.raise_for_status()
    assert "my-deployment" in answer.json()["result"], answer.text
body = {{"type": "restart_pod", "parameters": {{"pod_name": "my-pod-123"}}}}
with requests.Session() as session:
    for _ in range(2):
        answer = session.post(f"{{base}}/api/v1/action/execute", json=body)
        assert answer.ok and "my-pod-123" in answer.json()["result"], answer.text
assert requests.post(f"{{base}}/api/v1/action/execute", json={{"type": "other"}}).status_code == 400
"#,
        server.address()
    );
    let python = std::env::var_os("PYTHON_WITH_REQUESTS").unwrap_or_else(|| "python3".into());
    let done = Command::new(python).args(["-c", &script]).output().expect("Python runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_chunked_request_is_accepted() {
    let server = offline();
    let mut request = b"POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\n\
        Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for part in REQUEST.chunks(10) {
        request.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        request.extend_from_slice(part);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(server.raw(&request).status, 200);
}

#[test]
fn connections_are_kept_alive() {
    let server = offline();
    let stream = server.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("is cloned"));
    for _ in 0..100 {
        (&stream).write_all(&execute_request(REQUEST, "")).expect("is sent");
        assert_eq!(Reply::read(&mut reader).status, 200);
    }
}

#[test]
fn an_unauthenticated_public_address_needs_a_flag() {
    let done = Program::offline().args(["serve", "--bind", "0.0.0.0:0"]).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stderr.contains("--insecure-open"), "{done:?}");
}

#[test]
fn an_address_in_use_is_reported() {
    let server = offline();
    let address = server.address().to_string();
    let done = Program::offline().args(["serve", "--bind", &address]).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stderr.contains(&address), "{done:?}");
}

#[test]
fn a_server_without_a_cluster_is_ready() {
    assert_eq!(offline().get("/readyz").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_only_while_the_cluster_answers() {
    let cluster = private();
    let server = Server::start(Program::with_kubeconfig(cluster.kubeconfig()));
    assert_eq!(server.get("/readyz").status, 200);
    cluster.stop("kube-apiserver");
    let reply = eventually("it is not ready", async || {
        let reply = server.get("/readyz");
        (reply.status == 503).then_some(reply)
    })
    .await;
    assert_eq!(reply.json()["code"], "cluster_unreachable");
    assert_eq!(server.get("/api/v1/healthz").status, 200);
    cluster.start("kube-apiserver");
    eventually("it is ready again", async || (server.get("/readyz").status == 200).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_disconnected_client_completes_and_is_logged() {
    let namespace = shared().namespace("hung_up").await;
    namespace.running_deployment("web", 1).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": "hung-up",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let mut stream = server.connect();
    stream.write_all(&execute_request(request.to_string().as_bytes(), "")).expect("is sent");
    // The request is complete before the client disconnects; an incomplete one is never executed.
    eventually("it is begun", async || {
        let generation = namespace.get_deployment("web").await.metadata.generation;
        (generation > Some(1)).then_some(())
    })
    .await;
    stream.shutdown(Shutdown::Both).expect("is shut");
    drop(stream);
    let line = eventually("it is logged", async || {
        server.log().lines().find(|line| line.contains("action answered")).map(str::to_owned)
    })
    .await;
    let event: Value = serde_json::from_str(&line).expect("is JSON");
    assert_eq!((&event["id"], &event["outcome"]), (&json!("hung-up"), &json!("Applied")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_signal_lets_running_requests_finish() {
    let namespace = shared().namespace("drain").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let mut stream = server.connect();
    stream.write_all(&execute_request(request.to_string().as_bytes(), "")).expect("is sent");
    eventually("it is begun", async || {
        (namespace.get_deployment("web").await.metadata.generation > Some(1)).then_some(())
    })
    .await;
    server.signal("TERM");
    eventually("new connections are refused", async || {
        std::net::TcpStream::connect(server.address()).is_err().then_some(())
    })
    .await;
    let reply = tokio::task::spawn_blocking(move || Reply::read(&mut BufReader::new(stream)));
    let reply = reply.await.expect("is read");
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["rollout"]["state"], "complete");
    let (status, log) = tokio::task::spawn_blocking(|| server.wait()).await.expect("it ended");
    assert_eq!(status, 0, "{log}");
}

/// The directories and files in a directory.
fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("is there").count()
}

#[test]
fn a_term_signal_ends_an_idle_server_at_once_and_leaves_nothing() {
    let directory = crate::program::scratch("tmp");
    std::fs::create_dir_all(&directory).expect("is made");
    for engine in Engine::ALL {
        for name in ["TERM", "INT"] {
            let server = Server::start_with(engine, Program::offline().env("TMPDIR", &directory));
            assert_eq!(server.execute(REQUEST).status, 200);
            // Only tiny_http needs the temporary directory.
            assert_eq!(entries(&directory), usize::from(engine == Engine::TinyHttp));
            let _idle = server.connect();
            let began = Instant::now();
            server.signal(name);
            let (status, log) = server.wait();
            assert_eq!(status, 0, "{log}");
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            assert_eq!(entries(&directory), 0, "{engine:?}");
        }
    }
}

#[test]
fn the_socket_of_a_killed_server_is_removed_by_the_next_and_that_of_a_living_one_is_not() {
    let directory = crate::program::scratch("tmp");
    std::fs::create_dir_all(&directory).expect("is made");
    let start =
        || Server::start_with(Engine::TinyHttp, Program::offline().env("TMPDIR", &directory));
    let (living, killed) = (start(), start());
    assert_eq!(entries(&directory), 2);
    killed.signal("KILL");
    let _ = killed.wait();
    assert_eq!(entries(&directory), 2);
    let next = start();
    assert_eq!(entries(&directory), 2);
    for server in [&living, &next] {
        assert_eq!(server.execute(REQUEST).status, 200);
    }
}

#[test]
fn tiny_http_needs_a_directory_that_can_be_written() {
    let server = ["serve", "--bind", "127.0.0.1:0", "--engine", "tiny-http"];
    let done = Program::offline().args(server).env("TMPDIR", "/proc").run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stderr.contains("TMPDIR"), "{done:?}");
}

#[test]
fn the_internal_header_of_tiny_http_is_taken_from_no_client() {
    let server = Server::start_with(Engine::TinyHttp, Program::offline());
    let number = format!("X-Request-Number: {}\r\n", "0".repeat(32));
    let request = execute_request(REQUEST, &format!("{number}Connection: close\r\n"));
    assert_eq!(server.raw(&request).json()["outcome"], "simulated");
}

#[test]
fn both_engines_send_the_same_header() {
    let servers = Engine::ALL.map(|engine| Server::start_with(engine, Program::offline()));
    for request in [
        "GET /api/v1/healthz HTTP/1.1\r\n",
        "HEAD /api/v1/healthz HTTP/1.1\r\n",
        "HEAD /docs HTTP/1.1\r\n",
        "GET /docs/page.css HTTP/1.1\r\n",
        "GET /api/v1/action/execute HTTP/1.1\r\n",
        "GET /nowhere HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 0\r\n",
        "POST http://localhost/?x HTTP/1.1\r\nContent-Length: 0\r\n",
        "GET /docs HTTP/1.1\r\nIf-None-Match: *\r\n",
    ] {
        let header = |server: &Server| {
            let mut stream = server.connect();
            let request = format!("{request}Host: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("is sent");
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut text).expect("is read");
            let text = String::from_utf8(text).expect("is text");
            let (header, body) = text.split_once("\r\n\r\n").expect("has a header");
            let mut lines: Vec<_> = header
                .lines()
                .map(str::to_lowercase)
                .filter(|line| !line.starts_with("date:") && !line.starts_with("x-request-id:"))
                .collect();
            lines.sort();
            (lines, body.len())
        };
        let [hyper, tiny_http] = servers.each_ref().map(header);
        assert_eq!(hyper, tiny_http, "{request}");
    }
}

#[test]
fn connections_in_the_backlog_are_answered_during_shutdown() {
    let server = offline();
    // A stopped process accepts no connection; the kernel keeps them in the backlog.
    server.signal("STOP");
    let mut waiting: Vec<_> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(&execute_request(REQUEST, "Connection: close\r\n")).expect("is sent");
    }
    server.signal("TERM");
    server.signal("CONT");
    let answered = |stream| Reply::read(&mut BufReader::new(stream)).status == 200;
    let answered = waiting.into_iter().map(answered).filter(|it| *it).count();
    let (status, log) = server.wait();
    assert_eq!((answered, status), (20, 0), "{log}");
}

#[test]
fn metrics_count_requests_and_contain_nothing_of_them() {
    let server = offline();
    let request = br#"{"type":"restart_k8s","parameters":{"deployment":"canary-9"}}"#;
    assert_eq!(server.execute(request).status, 200);
    assert_eq!(server.execute(b"{").status, 400);
    assert_eq!(server.get("/canary-9").status, 404);
    let reply = server.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(reply.body).expect("is text");
    for line in [
        r#"action_executor_actions_total{action="restart_k8s",simulate="true",result="simulated"} 1"#,
        r#"action_executor_problems_total{code="invalid_request"} 1"#,
        r#"action_executor_problems_total{code="route_not_found"} 1"#,
        r#"action_executor_http_requests_total{path="other",status="404"} 1"#,
        r#"action_executor_http_requests_total{path="/api/v1/action/execute",status="400"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("canary-9"), "{text}");
}

#[test]
#[ignore = "needs promtool, of Debian's package prometheus"]
fn promtool_reports_nothing_about_the_metrics() {
    use std::process::Stdio;
    let server = offline();
    assert_eq!(server.execute(REQUEST).status, 200);
    let metrics = server.get("/metrics").body;
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut promtool = promtool.stderr(Stdio::piped()).spawn().expect("promtool is there");
    promtool.stdin.take().expect("is piped").write_all(&metrics).expect("is read");
    let done = promtool.wait_with_output().expect("it ended");
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
