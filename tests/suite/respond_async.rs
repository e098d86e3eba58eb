//! `Prefer: respond-async`, the state of a request, and its event stream: any replica reports them from
//! the cluster alone.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use action_executor::{contract::digest::sha256, executor::failpoint::Failpoint};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{MISSING_IMAGE, Namespace, SLOW_IMAGE, WAIT_TIMEOUT, eventually, shared},
    ledger::records,
    program::{Engine, Program, Reply, Server, execute_request, scratch},
    rollback_on_failure::{allow_new_pods, block_new_pods},
};

const ASYNC: &str = "Prefer: respond-async\r\nConnection: close\r\n";

fn server(namespace: &Namespace) -> Server {
    Server::start(program(namespace))
}

fn program(namespace: &Namespace) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig()).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "3")
}

/// A restart of `web` with `wait`.
fn restart(namespace: &Namespace, id: &str) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": id, "requester": "pager",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
}

fn execute(server: &Server, request: &Value, headers: &str) -> Reply {
    server.raw(&execute_request(request.to_string().as_bytes(), headers))
}

fn path(namespace: &Namespace, id: &str) -> String {
    format!("/api/v1/actions/{id}?namespace={}", namespace.name())
}

fn progress(server: &Server, namespace: &Namespace, id: &str) -> Value {
    let reply = server.get(&path(namespace, id));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The event stream of a request, read one event at a time.
struct Stream(BufReader<TcpStream>);

#[derive(Debug, Default)]
struct Event {
    name: String,
    id: String,
    data: String,
    comment: String,
}

impl Stream {
    fn open(server: &Server, target: &str) -> Self {
        let mut stream = server.connect();
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("is sent");
        let mut reader = BufReader::new(stream);
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut text).expect("is read"), 0, "{text}");
        }
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(text.to_lowercase().contains("content-type: text/event-stream\r\n"), "{text}");
        Stream(reader)
    }

    /// The next chunk, which is one event or comment; `None` at the end of the stream.
    fn next(&mut self) -> Option<Event> {
        let mut length = String::new();
        self.0.read_line(&mut length).expect("is read");
        let length = usize::from_str_radix(length.trim(), 16).expect("is a chunk");
        let mut chunk = vec![0; length + 2];
        std::io::Read::read_exact(&mut self.0, &mut chunk).expect("is whole");
        let text = String::from_utf8(chunk).expect("is text");
        (length > 0).then(|| {
            let mut event = Event::default();
            for line in text.lines() {
                match line.split_once(": ") {
                    Some(("event", name)) => event.name = name.to_owned(),
                    Some(("id", id)) => event.id = id.to_owned(),
                    Some(("data", data)) => event.data = data.to_owned(),
                    Some(("", comment)) => event.comment = comment.to_owned(),
                    _ => {}
                }
            }
            event
        })
    }

    /// All remaining events.
    fn rest(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Event {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("is no JSON: {self:?}"))
    }
}

async fn done(server: &Server, namespace: &Namespace, id: &str) -> Value {
    eventually("it is done", async || {
        let progress = progress(server, namespace, id);
        (progress["state"] == "answered").then_some(progress)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_async_request_is_202_once_claimed_and_any_replica_reports_it() {
    let namespace = shared().namespace("later").await;
    namespace.running_deployment("web", 1).await;
    block_new_pods(&namespace).await;
    let (one, other) = (server(&namespace), server(&namespace));
    let reply = execute(&one, &restart(&namespace, "r1"), ASYNC);
    // The claim is in the ledger before the response is sent.
    assert_eq!(records(&namespace).await.len(), 1);
    assert_eq!(reply.status, 202, "{reply:?}");
    assert_eq!(reply.header("location"), Some(&*path(&namespace, "r1")));
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
    let body = reply.json();
    assert_eq!((&body["id"], &body["type"]), (&json!("r1"), &json!("restart_k8s")));
    assert_eq!(
        (&body["state"], &body["links"]["self"]),
        (&json!("claimed"), &json!(path(&namespace, "r1")))
    );

    let under_way = eventually("its rollout is on its way", async || {
        let progress = progress(&other, &namespace, "r1");
        let detail = progress["detail"].as_str().expect("is a sentence");
        (progress["state"] == "applied" && detail.contains("of 1")).then_some(progress)
    })
    .await;
    assert_eq!(under_way["requester"], "pager");
    assert_eq!(under_way["target"]["name"], "web");
    assert!(under_way["since"].is_string() && under_way["answer"].is_null(), "{under_way}");

    allow_new_pods(&namespace).await;
    let progress = done(&other, &namespace, "r1").await;
    assert_eq!(progress["answer"]["outcome"], "applied");
    assert_eq!(progress["answer"]["rollout"]["state"], "complete");
    let reply = other.get(&path(&namespace, "r1"));
    assert!(reply.header("etag").is_some() && reply.header("retry-after").is_none(), "{reply:?}");
    // A retry of the request gets the same answer.
    let again = execute(&other, &restart(&namespace, "r1"), ASYNC);
    assert_eq!((again.status, &again.json()["replayed"]), (200, &json!(true)));
    assert_eq!(again.json()["result"], progress["answer"]["result"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_ends_before_its_claim_is_answered_directly() {
    let namespace = shared().namespace("at_once").await;
    namespace.running_deployment("web", 1).await;
    let server = server(&namespace);
    let mut simulated = restart(&namespace, "r1");
    simulated["simulate"] = true.into();
    let reply = execute(&server, &simulated, ASYNC);
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("simulated")));
    let mut refused = restart(&namespace, "r2");
    refused["parameters"]["deployment"] = "missing".into();
    assert_eq!(execute(&server, &refused, ASYNC).status, 422);
    let unchanged = json!({
        "type": "scale", "simulate": false, "id": "r3",
        "parameters": { "name": "web", "namespace": namespace.name(), "replicas": 1 },
    });
    let reply = execute(&server, &unchanged, ASYNC);
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("unchanged")));
    // With a long enough `wait`, the client gets the answer itself.
    let prefer = "Prefer: respond-async, wait=60\r\nConnection: close\r\n";
    let reply = execute(&server, &restart(&namespace, "r4"), prefer);
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("applied")));
    assert_eq!(reply.header("preference-applied"), None);
    assert_eq!(execute(&server, &json!({}), ASYNC).status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_wait_that_ends_early_is_202() {
    let namespace = shared().namespace("patience").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let server = server(&namespace);
    let mut request = restart(&namespace, "r1");
    request["timeout_seconds"] = 5.into();
    let began = Instant::now();
    let prefer = "Prefer: wait=1, respond-async\r\nConnection: close\r\n";
    let reply = execute(&server, &request, prefer);
    assert_eq!(reply.status, 202, "{reply:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let progress = done(&server, &namespace, "r1").await;
    assert_eq!(progress["answer"]["rollout"]["state"], "timed_out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_killed_replica_is_resumed_by_another() {
    let namespace = shared().namespace("killed").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let before = namespace.get_deployment("web").await.metadata.generation;
    let (one, other) = (server(&namespace), server(&namespace));
    assert_eq!(execute(&one, &restart(&namespace, "r1"), ASYNC).status, 202);
    eventually("its effect is recorded", async || {
        (progress(&other, &namespace, "r1")["state"] == "applied").then_some(())
    })
    .await;
    one.signal("KILL");
    let stage = progress(&other, &namespace, "r1");
    assert_eq!(stage["state"], "applied", "{stage}");
    // The same request to the other replica resumes the wait.
    let namespace_of_request = namespace.clone();
    let answer = spawn_blocking(move || {
        execute(&other, &restart(&namespace_of_request, "r1"), "Connection: close\r\n")
    });
    let reply = answer.await.expect("is answered");
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("applied"), &json!("complete"))
    );
    let after = namespace.get_deployment("web").await.metadata.generation;
    assert_eq!(after, before.map(|it| it + 1), "one effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_signal_lets_async_requests_finish() {
    let namespace = shared().namespace("term").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let (one, other) = (server(&namespace), server(&namespace));
    assert_eq!(execute(&one, &restart(&namespace, "r1"), ASYNC).status, 202);
    one.signal("TERM");
    let (status, log) = spawn_blocking(|| one.wait()).await.expect("it ended");
    assert_eq!(status, 0, "{log}");
    assert!(log.contains("action answered") && !log.contains("still in progress"), "{log}");
    let progress = progress(&other, &namespace, "r1");
    assert_eq!(
        (&progress["state"], &progress["answer"]["outcome"]),
        (&json!("answered"), &json!("applied"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_a_crashed_process_is_reported_as_overdue() {
    let namespace = shared().namespace("overdue").await;
    namespace.running_deployment("web", 1).await;
    let crashing =
        program(&namespace).env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterClaim.name());
    let request = restart(&namespace, "r1");
    assert_eq!(crashing.input(request.to_string()).run().status, -1);
    let server = server(&namespace);
    let claimed = progress(&server, &namespace, "r1");
    assert_eq!(claimed["state"], "claimed", "{claimed}");
    let overdue = eventually("its time is over", async || {
        let progress = progress(&server, &namespace, "r1");
        (progress["overdue"] == true).then_some(progress)
    })
    .await;
    assert!(overdue["detail"].as_str().expect("is a sentence").contains("resend the same request"));
    let reply = execute(&server, &request, "Connection: close\r\n");
    assert_eq!(reply.status, 200, "{reply:?} {}", server.log());
    assert_eq!(progress(&server, &namespace, "r1")["state"], "answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_reports_each_state_and_then_done() {
    let namespace = shared().namespace("stream").await;
    namespace.deployment("web", 2, SLOW_IMAGE).await;
    let (one, other) = (server(&namespace), server(&namespace));
    assert_eq!(execute(&one, &restart(&namespace, "r1"), ASYNC).status, 202);
    let target = path(&namespace, "r1");
    let events = spawn_blocking(move || {
        // Two clients of the stream get the same events.
        let mut streams = [Stream::open(&other, &target), Stream::open(&other, &target)];
        let [one, two] = streams.each_mut().map(Stream::rest);
        assert_eq!(one.last().expect("is one").data, two.last().expect("is one").data);
        // A client that connects late gets the last event alone.
        let late = Stream::open(&other, &target).rest();
        assert_eq!((late.len(), &*late[0].name), (1, "done"));
        one
    });
    let events = events.await.expect("are read");
    let (last, stages) = events.split_last().expect("there are some");
    assert!(!stages.is_empty() && stages.iter().all(|it| it.name == "progress"), "{events:?}");
    assert!(stages.iter().any(|it| it.json()["state"] == "applied"), "{events:?}");
    assert!(events.iter().all(|it| !it.id.is_empty()), "{events:?}");
    assert_eq!(last.name, "done");
    assert_eq!(last.json()["answer"]["rollout"]["state"], "complete", "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_server_shuts_down() {
    let namespace = shared().namespace("stream_term").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let (one, other) = (server(&namespace), server(&namespace));
    let mut request = restart(&namespace, "r1");
    request["timeout_seconds"] = 30.into();
    assert_eq!(execute(&one, &request, ASYNC).status, 202);
    let (target, began) = (path(&namespace, "r1"), Instant::now());
    spawn_blocking(move || {
        let mut stream = Stream::open(&other, &target);
        assert_eq!(stream.next().expect("is one").name, "progress");
        // A stream whose client disconnected does not delay the shutdown.
        drop(Stream::open(&other, &target));
        other.signal("TERM");
        let rest = stream.rest();
        assert!(rest.last().expect("is one").comment.contains("shutting down"), "{rest:?}");
        let (status, log) = other.wait();
        assert_eq!(status, 0, "{log}");
    })
    .await
    .expect("it ended");
    assert!(began.elapsed() < WAIT_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_client_is_gone() {
    let namespace = shared().namespace("stream_gone").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let mut request = restart(&namespace, "r1");
    request["timeout_seconds"] = 120.into();
    let acting = server(&namespace);
    assert_eq!(execute(&acting, &request, ASYNC).status, 202);
    for engine in Engine::ALL {
        let other = Server::start_with(engine, program(&namespace));
        let target = path(&namespace, "r1");
        let before = progress(&other, &namespace, "r1");
        assert_ne!(before["state"], "answered");
        let files = other.open_files();
        // More than there may be at once.
        for _ in 0..10 {
            let streams: Vec<_> = (0..20).map(|_| Stream::open(&other, &target)).collect();
            assert!(other.open_files() > files);
            drop(streams);
            let began = Instant::now();
            eventually("nothing of them is left", async || {
                (other.open_files() <= files + 2).then_some(())
            })
            .await;
            // Long before a stream sends something to keep it alive.
            assert!(began.elapsed() < Duration::from_secs(5), "{engine:?}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_id_is_404_and_an_invalid_one_400() {
    let namespace = shared().namespace("unknown").await;
    let server = server(&namespace);
    let code = |target: &str| {
        let reply = server.get(target);
        (reply.status, reply.json()["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(code(&path(&namespace, "none")), (404, "request_not_found".to_owned()));
    let wrong = (400, "invalid_request".to_owned());
    assert_eq!(code("/api/v1/actions/a%20b"), wrong);
    assert_eq!(code("/api/v1/actions/a?namespace=Not.One"), wrong);
    assert_eq!(code("/api/v1/actions/a?nonsense=1"), wrong);
    assert_eq!(code("/api/v1/actions/a/b").0, 404);
    let offline = Server::start(Program::offline());
    assert_eq!(offline.get("/api/v1/actions/a").status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_permitted_caller_learns_whether_a_request_exists() {
    let namespace = shared().namespace("may").await;
    namespace.running_deployment("web", 1).await;
    let name = namespace.name();
    let key = |name: &str, rest: &str| {
        format!("- {{name: {name}, sha256: {}, {rest}}}\n", sha256(name.as_bytes()))
    };
    let keys = scratch("keys.yaml");
    let entries = [
        key("restarter", &format!("actions: [restart_k8s], namespaces: [{name}]")),
        key("scaler", &format!("actions: [scale], namespaces: [{name}]")),
        key("all", &format!("namespaces: [{name}]")),
        key("elsewhere", "namespaces: [other]"),
    ];
    fs::write(&keys, format!("version: 1\nkeys:\n{}", entries.concat())).expect("is written");
    let server = Server::start(program(&namespace).env("ACTION_EXECUTOR_KEYS", &keys));
    let bearer = |who: &str| format!("Authorization: Bearer {who}\r\nConnection: close\r\n");
    assert_eq!(execute(&server, &restart(&namespace, "r1"), &bearer("restarter")).status, 200);
    let status = |who: &str, id: &str| {
        let (target, headers) = (path(&namespace, id), bearer(who));
        let reply = server
            .raw(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes());
        (reply.status, reply.body)
    };
    assert_eq!(server.get(&path(&namespace, "r1")).status, 401);
    assert_eq!(status("restarter", "r1").0, 200);
    assert_eq!((status("all", "r1").0, status("all", "none").0), (200, 404));
    for other in ["scaler", "elsewhere"] {
        assert_eq!(status(other, "r1").0, 403);
        // A request of someone else looks the same as one that does not exist.
        assert_eq!(status(other, "r1"), status(other, "none"));
    }
}
