//! Notifications: what a sink gets and that it can verify it, and that a sink which is down, slow or wrong changes no
//! action.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use action_executor::{
    actions::ActionKind, contract::digest::sha256, executor::failpoint::Failpoint,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
};

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{MISSING_IMAGE, Namespace, WAIT_TIMEOUT, eventually},
    pki::Authority,
    program::{Finished, Program, Server, scratch},
    receipts::{Keys, verified_by_openssl},
    scenario::{Scenario, extended},
};

/// 32 bytes.
const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// An HTTP request that the sink received.
#[derive(Clone, Debug)]
struct Received {
    head: String,
    body: Vec<u8>,
    at: Instant,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.unwrap_or_else(|| panic!("no {name} in {}", self.head)).1.trim()
    }

    fn event(&self) -> Value {
        serde_json::from_slice(&self.body).expect("is JSON")
    }

    /// Has OpenSSL compute the signature.
    fn is_verified(&self) -> bool {
        let (id, at) = (self.header("webhook-id"), self.header("webhook-timestamp"));
        let signed = scratch("signed");
        let text = [format!("{id}.{at}.").as_bytes(), &self.body].concat();
        fs::write(&signed, text).expect("is written");
        let secret = SECRET.strip_prefix("whsec_").expect("has a prefix");
        let secret = BASE64_STANDARD.decode(secret).expect("is base64");
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let done = Command::new("openssl")
            .args(["dgst", "-sha256", "-binary", "-mac", "HMAC", "-macopt"])
            .arg(format!("hexkey:{secret}"))
            .arg(&signed)
            .output()
            .expect("openssl runs");
        assert!(done.status.success(), "{done:?}");
        self.header("webhook-signature") == format!("v1,{}", BASE64_STANDARD.encode(&done.stdout))
    }
}

/// How the sink responds to its first, second, ... request; `None` leaves it without a response.
type Responses = Arc<dyn Fn(usize, &Received) -> Option<String> + Send + Sync>;

/// A receiver of notifications.
struct Sink {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

fn status(line: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"))
}

impl Sink {
    fn start(respond: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
        Sink::on(listener, None, Arc::new(move |number, _| respond(number)))
    }

    /// One whose response depends on the request.
    fn start_with(respond: impl Fn(&Received) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
        Sink::on(listener, None, Arc::new(move |_, request| respond(request)))
    }

    fn accepting() -> Self {
        Sink::start(|_| status("204 No Content"))
    }

    fn on(listener: TcpListener, tls: Option<Arc<ServerConfig>>, respond: Responses) -> Self {
        let address = listener.local_addr().expect("is bound");
        let received = Arc::<Mutex<Vec<_>>>::default();
        let into = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (into, respond, tls) = (into.clone(), respond.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &into, &respond),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).expect("is made");
                        serve(StreamOwned::new(connection, stream), &into, &respond);
                    }
                });
            }
        });
        Sink { address, received }
    }

    fn url(&self) -> String {
        format!("http://{}/events?team=sre", self.address)
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().expect("is not poisoned").clone()
    }

    /// Waits until it has received so many requests.
    async fn has(&self, number: usize) -> Vec<Received> {
        eventually("the sink has the events", async || {
            let received = self.received();
            (received.len() >= number).then_some(received)
        })
        .await
    }
}

/// Reads requests from a connection, and responds to them.
fn serve(stream: impl Read + Write, into: &Mutex<Vec<Received>>, respond: &Responses) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let received = Received { head, body, at: Instant::now() };
        let number = {
            let mut all = into.lock().expect("is not poisoned");
            all.push(received.clone());
            all.len()
        };
        match respond(number, &received) {
            Some(response) => {
                if stream.get_mut().write_all(response.as_bytes()).is_err() {
                    return;
                }
            }
            // Until the client closes the connection.
            None => {
                let _ = stream.read(&mut [0]);
                return;
            }
        }
    }
}

/// A file with the sink's secret.
pub fn secret() -> PathBuf {
    let file = scratch("secret");
    fs::write(&file, format!("{SECRET}\n")).expect("is written");
    file
}

fn program(namespace: &Namespace, url: &str) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig())
        .env("ACTION_EXECUTOR_CLUSTER_NAME", "prod")
        .env("ACTION_EXECUTOR_SINK", url)
        .env("ACTION_EXECUTOR_SINK_SECRET", secret())
}

fn send(program: Program, request: &Value) -> Finished {
    program.input(request.to_string()).run()
}

/// The id of the request that an event is about.
fn request_id(event: &Value) -> String {
    let id = event["data"]["id"].as_str().expect("is text");
    assert!(event["id"].as_str().is_some_and(|it| it.contains(&format!("/{id}."))), "{event}");
    id.to_owned()
}

/// The number of notifications with this result.
fn counted(server: &Server, result: &str) -> u64 {
    let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
    let line = format!("action_executor_notifications_total{{result=\"{result}\"}} ");
    let value = metrics.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok());
    value.unwrap_or(0)
}

#[tokio::test]
async fn the_outcome_of_a_real_action_arrives_signed_and_a_simulation_or_a_replay_sends_nothing() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "notified").await;
    let sink = Sink::accepting();
    let request = scenario.request("notified-1");
    let program = || program(&scenario.namespace, &sink.url());
    let simulated = extended(request.clone(), json!({}), json!({ "simulate": true }));
    assert_eq!(send(program(), &simulated).status, 0);
    let denied = scenario.namespace.policy("read_only: true");
    assert_eq!(send(program().under(&denied), &request).status, 77);
    let answer = send(program(), &request).answer();
    assert_eq!(answer["outcome"], "applied", "{answer}");
    assert_eq!(send(program(), &request).answer()["replayed"], true);

    let received = sink.received();
    assert_eq!(received.len(), 1, "{received:?}");
    let request = &received[0];
    assert!(request.head.starts_with("POST /events?team=sre HTTP/1.1\r\n"), "{}", request.head);
    assert_eq!(request.header("content-type"), "application/cloudevents+json; charset=utf-8");
    assert!(request.is_verified(), "{request:?}");
    let sent: u64 = request.header("webhook-timestamp").parse().expect("is a number");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    assert!(now.expect("is after 1970").as_secs().abs_diff(sent) < 300);
    let event = request.event();
    let source = "https://action-executor.dev/executor/clusters/prod";
    let id = event["id"].as_str().expect("is text");
    let namespace = scenario.namespace.name();
    let rest = id.strip_prefix(&format!("{namespace}/notified-1.")).expect("names the request");
    assert!(rest.len() == 24 && rest.ends_with(".applied"), "{id}");
    for (name, value) in [
        ("specversion", json!("1.0")),
        ("type", json!("dev.action-executor.action.applied.v1")),
        ("source", json!(source)),
        ("id", json!(id)),
        ("time", answer["finished_at"].clone()),
        ("subject", json!(format!("apps/v1/Deployment/{}/web", scenario.namespace.name()))),
        ("datacontenttype", json!("application/json")),
        ("data", answer),
    ] {
        assert_eq!(event[name], value, "{name}");
    }
    let id = &sha256(format!("{source} {id}").as_bytes())[..32];
    assert_eq!(request.header("webhook-id"), format!("msg_{id}"));
}

#[tokio::test]
async fn a_pending_approval_arrives_once_from_a_server_with_the_command_that_approves_it() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "pending-event").await;
    let sink = Sink::accepting();
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let request = scenario.request("pending-1");
    let program = || program(&scenario.namespace, &sink.url()).under(&policy);
    let server = Server::start(program());
    for _ in 0..2 {
        assert_eq!(server.execute(request.to_string().as_bytes()).status, 202);
    }
    // Another process does not know what this one has sent; the receiver does.
    assert_eq!(send(program(), &request).status, 75);
    let received = sink.has(2).await;
    let ids: HashSet<_> = received.iter().map(|it| it.header("webhook-id")).collect();
    assert_eq!((received.len(), ids.len()), (2, 1), "{received:?}");
    let event = received[0].event();
    assert_eq!(event["type"], "dev.action-executor.approval.pending.v1");
    assert!(received.iter().all(Received::is_verified));

    assert!(approve(&event["data"], scenario.namespace.kubeconfig()));
    assert_eq!(server.execute(request.to_string().as_bytes()).json()["outcome"], "applied");
    let received = sink.has(3).await;
    assert_eq!(received[2].event()["type"], "dev.action-executor.action.applied.v1");
    assert_eq!(request_id(&received[2].event()), "pending-1");
}

#[tokio::test]
async fn an_action_and_its_answer_do_not_wait_for_a_sink_that_never_responds() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "silent-sink").await;
    let sink = Sink::start(|_| None);
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    for number in 0..3 {
        let request = scenario.request(&format!("silent-{number}"));
        assert_eq!(server.execute(request.to_string().as_bytes()).status, 200);
    }
    // The sink still has the first one.
    assert_eq!(sink.has(1).await.len(), 1);
    assert_eq!(counted(&server, "delivered"), 0);

    let request = scenario.request("silent-once");
    let program = program(&scenario.namespace, &sink.url()).args(["run", "-"]);
    let mut dialogue = program.talk();
    let (mut input, output) = dialogue.split();
    input.write_all(request.to_string().as_bytes()).expect("is sent");
    drop(input);
    let mut line = String::new();
    output.read_line(&mut line).expect("is read");
    let answered = Instant::now();
    assert!(line.contains("\"applied\""), "{line}");
    let (rest, status, log) = dialogue.end();
    assert_eq!((rest.len(), status), (0, 0), "{log}");
    assert!(answered.elapsed() > Duration::from_secs(2), "the answer came first");
    assert!(answered.elapsed() < WAIT_TIMEOUT, "the end does not wait for the sink");
    assert!(log.contains("notifications lost: not delivered before the process ended"), "{log}");
}

#[tokio::test]
async fn transient_failures_are_retried_under_the_same_id() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "again").await;
    let sink = Sink::start(|number| match number {
        1 => status("500 Internal Server Error"),
        2 => status("429 Too Many Requests\r\nRetry-After: 3"),
        _ => status("200 OK"),
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    let request = scenario.request("again-1").to_string();
    assert_eq!(server.execute(request.as_bytes()).status, 200);
    let received = sink.has(3).await;
    eventually("it is counted", async || (counted(&server, "delivered") == 1).then_some(())).await;
    let ids: HashSet<_> = received.iter().map(|it| it.header("webhook-id")).collect();
    assert_eq!((received.len(), ids.len()), (3, 1), "{received:?}");
    assert!(received.iter().all(Received::is_verified));
    assert!(received[2].at - received[1].at >= Duration::from_secs(3));
    assert_ne!(
        received[1].header("webhook-timestamp"),
        received[2].header("webhook-timestamp"),
        "each attempt is signed with its own time"
    );
}

#[tokio::test]
async fn the_body_of_a_response_does_not_matter_even_if_it_never_ends() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "endless").await;
    let sink = Sink::start(|number| match number {
        // Its length is declared, and the bytes do not come.
        1 => Some("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello".to_owned()),
        2 => Some(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n{}",
            "x".repeat(200_000)
        )),
        _ => Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned()),
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    for number in 0..3 {
        let request = scenario.request(&format!("endless-{number}")).to_string();
        assert_eq!(server.execute(request.as_bytes()).status, 200);
    }
    let counted = eventually("all are counted", async || {
        let counted = counted(&server, "delivered");
        (counted == 3).then_some(counted)
    });
    assert_eq!(counted.await, 3);
    assert_eq!(sink.received().len(), 3);
}

#[tokio::test]
async fn an_event_that_the_sink_does_not_take_yet_does_not_delay_others() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "unblocked").await;
    let refused = Arc::new(Mutex::new(None));
    let sink = Sink::start_with(move |request| {
        let mut refused = refused.lock().expect("is not poisoned");
        let first = refused.get_or_insert_with(|| request.header("webhook-id").to_owned());
        match request.header("webhook-id") == first {
            true => status("503 Service Unavailable\r\nRetry-After: 60"),
            false => status("200 OK"),
        }
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    let request = |number| scenario.request(&format!("unblocked-{number}")).to_string();
    assert_eq!(server.execute(request(1).as_bytes()).status, 200);
    sink.has(1).await;
    let began = Instant::now();
    assert_eq!(server.execute(request(2).as_bytes()).status, 200);
    let received = sink.has(2).await;
    assert_eq!(request_id(&received[1].event()), "unblocked-2");
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_a_refusal_is_not_repeated() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "redirected").await;
    let other = Sink::accepting();
    let location = other.url();
    let sink = Sink::start(move |number| match number {
        1 => status(&format!("307 Temporary Redirect\r\nLocation: {location}")),
        2 => status("401 Unauthorized"),
        _ => status("200 OK"),
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    for number in 0..3 {
        let request = scenario.request(&format!("redirected-{number}"));
        assert_eq!(server.execute(request.to_string().as_bytes()).status, 200);
    }
    eventually("all are counted", async || {
        (counted(&server, "rejected") == 2 && counted(&server, "delivered") == 1).then_some(())
    })
    .await;
    assert_eq!((sink.received().len(), other.received().len()), (3, 0));
    let log = server.log();
    assert!(
        log.contains("notification rejected by the sink") && !log.contains("team=sre"),
        "{log}"
    );
}

#[tokio::test]
async fn a_sink_that_was_down_gets_the_events_once_it_is_up() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "down-sink").await;
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
        listener.local_addr().expect("is bound")
    };
    let url = format!("http://{address}/events");
    let server = Server::start(program(&scenario.namespace, &url));
    for number in 0..2 {
        let request = scenario.request(&format!("down-{number}"));
        assert_eq!(server.execute(request.to_string().as_bytes()).status, 200);
    }
    assert_eq!(counted(&server, "delivered"), 0);
    let listener = TcpListener::bind(address).expect("is bound");
    let sink = Sink::on(listener, None, Arc::new(|_, _| status("200 OK")));
    let received = sink.has(2).await;
    let ids: HashSet<_> = received.iter().map(|it| request_id(&it.event())).collect();
    assert_eq!(ids, HashSet::from(["down-0".to_owned(), "down-1".to_owned()]));

    // At the end of a process it is tried for a bounded time.
    let gone = "http://127.0.0.1:1/events";
    let done = send(program(&scenario.namespace, gone), &scenario.request("down-once"));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(
        done.stderr.contains("notifications lost: not delivered before the process ended"),
        "{done:?}"
    );
}

#[tokio::test]
async fn a_response_that_comes_too_late_leads_to_a_second_one_of_the_same_id() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "late-sink").await;
    let sink = Sink::start(|number| {
        if number == 1 {
            // Later than an attempt may take. Its sender is gone by then.
            thread::sleep(Duration::from_secs(11));
        }
        status("200 OK")
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    let request = scenario.request("late-1").to_string();
    assert_eq!(server.execute(request.as_bytes()).status, 200);
    let received = sink.has(2).await;
    assert_eq!(received[0].header("webhook-id"), received[1].header("webhook-id"));
    assert_eq!(received[0].body, received[1].body);
    eventually("it is counted", async || (counted(&server, "delivered") == 1).then_some(())).await;
}

#[tokio::test]
async fn a_server_delivers_what_is_left_before_it_ends() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "flushed").await;
    let sink = Sink::start(|number| match number {
        1 => status("503 Service Unavailable"),
        _ => status("200 OK"),
    });
    let server = Server::start(program(&scenario.namespace, &sink.url()));
    let request = scenario.request("flushed-1").to_string();
    assert_eq!(server.execute(request.as_bytes()).status, 200);
    server.signal("TERM");
    let (ended, log) = tokio::task::spawn_blocking(|| server.wait()).await.expect("it ended");
    assert_eq!(ended, 0, "{log}");
    assert_eq!(sink.received().len(), 2, "{log}");
    assert!(!log.contains("not delivered"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_known_arrives_as_the_problem_that_the_caller_gets() {
    let scenario = Scenario::new(ActionKind::RestartPod, "unknown-event").await;
    let sink = Sink::accepting();
    let request = scenario.request("unknown-1");
    let crashing = program(&scenario.namespace, &sink.url())
        .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2")
        .env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterWrite.name());
    assert_eq!(send(crashing, &request).status, -1);
    let problem = eventually("the request is answered", async || {
        let done = send(program(&scenario.namespace, &sink.url()), &request);
        (done.status != 75).then(|| done.answer())
    })
    .await;
    let received = sink.received();
    assert_eq!(received.len(), 1, "{received:?}");
    let event = received[0].event();
    assert_eq!(event["type"], "dev.action-executor.action.unknown.v1");
    assert_eq!(request_id(&event), "unknown-1");
    assert!(event["id"].as_str().is_some_and(|id| id.ends_with(".unknown")), "{event}");
    assert_eq!(event["data"], problem);
}

#[tokio::test]
async fn receipts_arrive_too_with_a_file_or_without_one() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "receipt-event").await;
    let sink = Sink::accepting();
    let program = || {
        program(&scenario.namespace, &sink.url())
            .env("ACTION_EXECUTOR_RECEIPT_KEY", &Keys::shared().private)
    };
    assert_eq!(send(program(), &scenario.request("sent-1")).status, 0);
    let file = scratch("receipts");
    let done = send(program().env("ACTION_EXECUTOR_RECEIPTS", &file), &scenario.request("sent-2"));
    assert_eq!(done.status, 0, "{done:?}");
    let received = sink.received();
    let of = |kind: &str| {
        let events = received.iter().map(Received::event);
        events.filter(|event| event["type"] == kind).collect::<Vec<_>>()
    };
    assert_eq!(of("dev.action-executor.action.applied.v1").len(), 2);
    let receipts = of("dev.action-executor.receipt.v1");
    assert_eq!(receipts.len(), 2, "{received:?}");
    for receipt in &receipts {
        verified_by_openssl(&receipt["data"].to_string());
    }
    let written = fs::read_to_string(&file).expect("is there");
    assert_eq!(written.trim_end(), receipts[1]["data"].to_string());
}

#[tokio::test]
async fn a_sink_with_tls_must_have_a_certificate_of_a_trusted_authority() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "tls-sink").await;
    let authority = Authority::new();
    let pair = authority.server();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("is PEM");
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("are supported")
        .with_no_client_auth()
        .with_single_cert(vec![pair.der()], key)
        .expect("are a pair");
    let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
    let sink = Sink::on(listener, Some(Arc::new(tls)), Arc::new(|_, _| status("200 OK")));
    let url = format!("https://localhost:{}/events", sink.address.port());
    let program = || program(&scenario.namespace, &url);
    let trusting = program().env("SSL_CERT_FILE", authority.file());
    assert_eq!(send(trusting, &scenario.request("tls-1")).status, 0);
    let received = sink.received();
    assert!(received.len() == 1 && received[0].is_verified(), "{received:?}");
    let other = program().env("SSL_CERT_FILE", Authority::new().file());
    assert_eq!(send(other, &scenario.request("tls-2")).status, 0);
    assert_eq!(sink.received().len(), 1);
}

/// The relay of the page, on a port of its own; killed when dropped.
struct Relay {
    process: std::process::Child,
    url: String,
}

impl Relay {
    fn start(slack: &Sink, pagerduty: &Sink) -> Self {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/notifications.md");
        let page = fs::read_to_string(page).expect("is there");
        let source = page.split("```python\n").nth(1).and_then(|it| it.split("```").next());
        let file = scratch("relay.py");
        fs::write(&file, source.expect("is on the page")).expect("is written");
        let free = TcpListener::bind("127.0.0.1:0").expect("is bound");
        let port = free.local_addr().expect("is bound").port();
        drop(free);
        let process = Command::new("python3")
            .arg(&file)
            .env("PORT", port.to_string())
            .env("SINK_SECRET", SECRET)
            .env("SLACK_URL", slack.url())
            .env("PAGERDUTY_KEY", "a-key")
            .env("PAGERDUTY_URL", pagerduty.url())
            .spawn()
            .expect("python3 runs");
        Relay { process, url: format!("http://127.0.0.1:{port}/") }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_relay_of_the_page_passes_events_on_and_refuses_what_is_not_signed() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "relayed").await;
    let (slack, pagerduty) = (Sink::accepting(), Sink::accepting());
    let relay = Relay::start(&slack, &pagerduty);
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let asking = Server::start(program(&scenario.namespace, &relay.url).under(&policy));
    assert_eq!(asking.execute(scenario.request("relayed-1").to_string().as_bytes()).status, 202);
    let messages = slack.has(1).await;
    let text = messages[0].event()["text"].as_str().expect("is text").to_owned();
    assert!(text.contains("\nTo approve: `kubectl -n "), "{text}");
    assert_eq!(pagerduty.received().len(), 0);

    // The action is made, and its wait ends without success.
    scenario.namespace.deployment("stuck", 1, MISSING_IMAGE).await;
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "relayed-2", "wait": true,
        "timeout_seconds": 1,
        "parameters": { "deployment": "stuck", "namespace": scenario.namespace.name() },
    });
    let done = send(program(&scenario.namespace, &relay.url), &request);
    assert_eq!(done.answer()["outcome"], "failed", "{done:?}");
    let incidents = pagerduty.has(1).await;
    let incident = incidents[0].event();
    assert!(incident["dedup_key"].as_str().is_some_and(|key| key.starts_with("msg_")));
    assert_eq!(incident["event_action"], "trigger");

    let before = slack.received().len();
    let other = scratch("other-secret");
    fs::write(&other, format!("whsec_{}", BASE64_STANDARD.encode([7; 32]))).expect("is written");
    let wrong = program(&scenario.namespace, &relay.url).env("ACTION_EXECUTOR_SINK_SECRET", &other);
    let done = send(wrong, &scenario.request("relayed-3"));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stderr.contains("401"), "{done:?}");
    assert_eq!(slack.received().len(), before);
}

#[tokio::test]
async fn the_relay_of_the_page_sends_to_a_receiver_again_only_what_it_may_take() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "relay-fails").await;
    scenario.namespace.deployment("stuck", 1, MISSING_IMAGE).await;
    let slack = Sink::start(|number| match number {
        1 => status("503 Service Unavailable"),
        _ => status("200 OK"),
    });
    let pagerduty = Sink::start(|number| match number {
        1 => status("503 Service Unavailable"),
        2 => status("429 Too Many Requests"),
        _ => status("400 Bad Request"),
    });
    let relay = Relay::start(&slack, &pagerduty);
    let server = Server::start(program(&scenario.namespace, &relay.url));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "relay-fails-1", "wait": true,
        "timeout_seconds": 1,
        "parameters": { "deployment": "stuck", "namespace": scenario.namespace.name() },
    });
    let reply = server.execute(request.to_string().as_bytes());
    assert_eq!(reply.json()["outcome"], "failed", "{reply:?}");
    eventually("it is counted", async || (counted(&server, "delivered") == 1).then_some(())).await;
    let (incidents, messages) = (pagerduty.received(), slack.received());
    assert_eq!((incidents.len(), messages.len()), (3, 2));
    assert!(incidents[0].at < messages[1].at, "the one does not wait for the other");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used_and_plain_http_must_be_allowed() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "no-proxy").await;
    let sink = Sink::accepting();
    // This machine by an address that is not a loopback one.
    let url = format!("http://0.0.0.0:{}/events", sink.address.port());
    let refused = send(program(&scenario.namespace, &url), &scenario.request("no-proxy-1"));
    assert_eq!(refused.status, 78, "{refused:?}");
    let nowhere = "http://127.0.0.1:1";
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"];
    let program = names
        .iter()
        .fold(program(&scenario.namespace, &url), |program, name| program.env(name, nowhere))
        .env("ACTION_EXECUTOR_SINK_ALLOW_HTTP", "true");
    assert_eq!(send(program, &scenario.request("no-proxy-1")).status, 0);
    assert_eq!(sink.received().len(), 1);
}

#[test]
fn wrong_settings_end_the_program_at_its_start() {
    let wrong = scratch("wrong");
    fs::write(&wrong, "hunter2").expect("is written");
    let right = secret();
    for (url, secret, part) in [
        ("https://events.example.com", Path::new("/nonexistent"), "the secret of the sink"),
        ("https://events.example.com", &wrong, "must have a secret of the sink"),
        ("https://events.example.com", Path::new(""), "needs ACTION_EXECUTOR_SINK_SECRET"),
        ("", &right, "needs ACTION_EXECUTOR_SINK"),
        ("http://events.example.com/hunter2", &right, "ACTION_EXECUTOR_SINK_ALLOW_HTTP"),
        ("hunter2", &right, "must be a URL"),
    ] {
        let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
        let done = Program::offline()
            .env("ACTION_EXECUTOR_SINK", url)
            .env("ACTION_EXECUTOR_SINK_SECRET", secret)
            .input(request)
            .run();
        assert_eq!((done.status, &done.answer()["code"]), (78, &json!("configuration")));
        assert!(done.stdout.contains(part), "{part}: {done:?}");
        assert!(!format!("{done:?}").contains("hunter2"), "{done:?}");
    }
}

#[cfg(feature = "lambda")]
#[tokio::test]
async fn a_function_delivers_before_it_answers() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "function-event").await;
    let sink = Sink::accepting();
    let (url, secret) = (sink.url(), secret());
    let unlimited = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
    let function = crate::lambda::Function::start(&[
        ("KUBECONFIG", scenario.namespace.kubeconfig()),
        ("ACTION_EXECUTOR_POLICY", Path::new(unlimited)),
        ("ACTION_EXECUTOR_SINK", Path::new(&url)),
        ("ACTION_EXECUTOR_SINK_SECRET", &secret),
    ]);
    let request = scenario.request("function-1").to_string();
    let outcome = function.invoke(request.as_bytes());
    assert!(matches!(outcome, crate::lambda::Outcome::Answered(_)), "{outcome:?}");
    assert_eq!(sink.received().len(), 1);
}
