//! The concurrency limits of a server: who is queued, who is rejected and when, and the client's own timeout.

use std::{
    io::{BufReader, Write},
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use crate::{
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    program::{Engine, Program, Reply, Server, execute_request},
};

fn restart(namespace: &Namespace, deployment: &str, id: &str) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false, "id": id,
        "parameters": { "deployment": deployment, "namespace": namespace.name() },
    })
}

/// Sends a request from a thread of its own; returns the response and how long it took.
pub fn send(address: SocketAddr, body: &Value, headers: &str) -> JoinHandle<(Reply, Duration)> {
    let bytes =
        execute_request(body.to_string().as_bytes(), &format!("Connection: close\r\n{headers}"));
    thread::spawn(move || {
        let began = Instant::now();
        let mut stream = std::net::TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("is set");
        stream.write_all(&bytes).expect("is sent");
        (Reply::read(&mut BufReader::new(stream)), began.elapsed())
    })
}

pub async fn answer(sent: JoinHandle<(Reply, Duration)>) -> (Reply, Duration) {
    tokio::task::spawn_blocking(|| sent.join().expect("is answered")).await.expect("it ran")
}

/// The value in the metrics after this beginning of a line.
pub fn counted(server: &Server, line: &str) -> Option<u64> {
    let text = String::from_utf8(server.get("/metrics").body).expect("is text");
    let value = text.lines().find_map(|it| it.strip_prefix(line))?;
    value.trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_queue_limit_is_503_and_health_still_answers() {
    let namespace = shared().namespace("queue_full").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    let server = Server::start(
        Program::with_kubeconfig(&kubeconfig)
            .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "4")
            .env("ACTION_EXECUTOR_MAX_ACTIONS", "1"),
    );
    let sent = |number: usize| {
        let body = restart(&namespace, &format!("web-{number}"), &format!("r{number}"));
        send(server.address(), &body, "")
    };
    let mut under_way: Vec<_> = (0..5).map(sent).collect();
    eventually("one is running and four are queued", async || {
        (counted(&server, "action_executor_queued_requests ") == Some(4)).then_some(())
    })
    .await;
    let (refused, took) = answer(sent(5)).await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overloaded")));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(server.get("/api/v1/healthz").status, 200);
    let refusals = r#"action_executor_rejected_requests_total{reason="queue_full"} "#;
    assert_eq!(counted(&server, refusals), Some(1));
    let places = r#"action_executor_concurrency_in_use{lane="actions"} "#;
    assert_eq!(counted(&server, places), Some(1));
    // No request waits in the queue for longer than the limit.
    for sent in under_way.drain(..) {
        let (reply, took) = answer(sent).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert!(took < Duration::from_secs(12), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_action_frees_its_slot() {
    let namespace = shared().namespace("queue_waits").await;
    let stuck = |number: usize| format!("stuck-{number}");
    for number in 0..5 {
        namespace.deployment(&stuck(number), 1, MISSING_IMAGE).await;
    }
    namespace.deployment("web", 0, GOOD_IMAGE).await;
    let server = Server::start(
        Program::with_kubeconfig(namespace.kubeconfig()).env("ACTION_EXECUTOR_MAX_ACTIONS", "1"),
    );
    let waits: Vec<_> = (0..5)
        .map(|number| {
            let mut body = restart(&namespace, &stuck(number), &format!("w{number}"));
            body["wait"] = true.into();
            body["timeout_seconds"] = 20.into();
            send(server.address(), &body, "")
        })
        .collect();
    let places = r#"action_executor_concurrency_in_use{lane="waiting"} "#;
    eventually("all of them wait", async || (counted(&server, places) == Some(5)).then_some(()))
        .await;
    let (reply, took) = answer(send(server.address(), &restart(&namespace, "web", "r1"), "")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // A retry of a waiting request joins it.
    let joined = send(server.address(), &restart(&namespace, &stuck(0), "w0"), "");
    assert_eq!(answer(joined).await.0.json()["replayed"], true);
    server.signal("TERM");
    for wait in waits {
        assert!(matches!(answer(wait).await.0.status, 422 | 503));
    }
    assert_eq!(tokio::task::spawn_blocking(|| server.wait().0).await.expect("it ended"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_for_one_object_wait_or_are_429() {
    let namespace = shared().namespace("queue_target").await;
    namespace.deployment("web", 0, GOOD_IMAGE).await;
    namespace.deployment("other", 0, GOOD_IMAGE).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let sent: Vec<_> = (0..40)
        .map(|number| {
            send(server.address(), &restart(&namespace, "web", &format!("r{number}")), "")
        })
        .collect();
    let (reply, _) = answer(send(server.address(), &restart(&namespace, "other", "o1"), "")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let (mut done, mut limited) = (0, 0);
    for sent in sent {
        let (reply, _) = answer(sent).await;
        match reply.status {
            200 => done += 1,
            429 => {
                assert_eq!(reply.json()["code"], "rate_limited", "{reply:?}");
                assert!(reply.header("retry-after").is_some(), "{reply:?}");
                limited += 1;
            }
            _ => panic!("{reply:?}"),
        }
    }
    assert!(done >= 9 && done + limited == 40, "{done} done, {limited} limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_answered_before_its_timeout() {
    let namespace = shared().namespace("client_time").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    let server = Server::start(Program::with_kubeconfig(&kubeconfig));
    for header in ["Request-Timeout: 2\r\n", "X-Request-Timeout: 0.5\r\nRequest-Timeout: 30\r\n"] {
        let (reply, took) =
            answer(send(server.address(), &restart(&namespace, "w", "r"), header)).await;
        assert!(matches!(reply.status, 503 | 504), "{reply:?}");
        assert!(took < Duration::from_secs(2), "{header}: {took:?}");
    }
    let wrong =
        send(server.address(), &restart(&namespace, "w", "r"), "X-Request-Timeout: soon\r\n");
    let (reply, _) = answer(wrong).await;
    assert_eq!((reply.status, &reply.json()["field"]), (400, &json!("X-Request-Timeout")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_before_the_clients_timeout_and_reports_the_rollout() {
    let namespace = shared().namespace("client_wait").await;
    namespace.deployment("stuck", 1, MISSING_IMAGE).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let mut body = restart(&namespace, "stuck", "r1");
    body["wait"] = true.into();
    let (reply, took) = answer(send(server.address(), &body, "Request-Timeout: 4\r\n")).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(reply.json()["rollout"]["state"], "interrupted");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulation_whose_time_is_over_is_not_of_unknown_outcome() {
    let namespace = shared().namespace("simulation_time").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    for engine in Engine::ALL {
        let server = Server::start_with(engine, Program::with_kubeconfig(&kubeconfig));
        let mut body = restart(&namespace, "web", "r1");
        let reply = |body: &Value| send(server.address(), body, "Request-Timeout: 0.3\r\n");
        body["simulate"] = true.into();
        let (simulated, _) = answer(reply(&body)).await;
        let code = simulated.json()["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!(simulated.status, 503, "{simulated:?}");
        assert_ne!(code, "outcome_unknown");
    }
}

/// Connections on which requests are served are not closed, so the others are refused; health checks are not.
#[tokio::test(flavor = "multi_thread")]
async fn health_checks_are_answered_while_all_connections_are_served() {
    let namespace = shared().namespace("health_kept").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    for engine in Engine::ALL {
        // Sixteen connections.
        let program =
            Program::with_kubeconfig(&kubeconfig).env("ACTION_EXECUTOR_PEER_SHARE", "100");
        let server = Server::with_descriptors(engine, program, 200);
        let sent = |name: &str, headers: &str| {
            let body = restart(&namespace, name, name);
            send(server.address(), &body, headers)
        };
        for number in 0..15 {
            drop(sent(&format!("web-{number}"), ""));
            let served = r#"action_executor_concurrency_in_use{lane="actions"} "#;
            eventually("it is served", async || {
                (counted(&server, served) == Some(number + 1)).then_some(())
            })
            .await;
        }
        let mut number = 15;
        let (refused, took) = eventually("all connections are served", async || {
            drop(sent(&format!("web-{number}"), ""));
            number += 1;
            let (reply, took) = answer(sent("one-more", "Request-Timeout: 0.2\r\n")).await;
            let is_refused =
                reply.status == 503 && reply.json().to_string().contains("connections");
            is_refused.then_some((reply, took))
        })
        .await;
        assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overloaded")));
        assert!(took < Duration::from_secs(2), "{took:?}");
        for _ in 0..40 {
            assert_eq!(server.get("/api/v1/healthz").status, 200);
        }
    }
}

/// Each request in progress has a connection to the cluster, and on the engine tiny-http three more descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn health_checks_are_answered_while_requests_hold_the_descriptors() {
    let namespace = shared().namespace("health_files").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    for engine in Engine::ALL {
        // 120 connections.
        let program =
            Program::with_kubeconfig(&kubeconfig).env("ACTION_EXECUTOR_PEER_SHARE", "100");
        let server = Server::with_descriptors(engine, program, 520);
        let read = b"GET /api/v1/history HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let clients: Vec<_> = (0..140)
            .map(|number| {
                let act = restart(&namespace, &format!("web-{number}"), &format!("r{number}"));
                let act = execute_request(act.to_string().as_bytes(), "");
                let mut stream = server.connect();
                let sent: &[u8] = if number % 2 == 0 { read } else { &act };
                let _ = stream.write_all(sent);
                stream
            })
            .collect();
        for _ in 0..60 {
            assert_eq!(server.get("/api/v1/healthz").status, 200, "{engine:?}: {}", server.log());
        }
        drop(clients);
        eventually("others are served again", async || {
            (server.get("/api/v1/actions").status == 200).then_some(())
        })
        .await;
    }
}

/// tiny_http stops to accept connections once there is no descriptor for one.
#[tokio::test(flavor = "multi_thread")]
async fn the_engine_tiny_http_serves_again_once_there_are_descriptors() {
    let namespace = shared().namespace("files").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    let server = Server::start_with(Engine::TinyHttp, Program::with_kubeconfig(&kubeconfig));
    let mut number = 0;
    let mut held = Vec::new();
    let mut hold = |requests: u64| {
        for _ in 0..requests {
            number += 1;
            let name = format!("web-{number}");
            held.push(send(server.address(), &restart(&namespace, &name, &name), ""));
        }
    };
    let stopped = || server.log().contains("no connection to tiny_http");
    for free in 2..20 {
        server.limit_descriptors(server.open_files() + free);
        hold(4);
        let began = Instant::now();
        while !stopped() && began.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(20)).await;
        }
        if stopped() {
            break;
        }
    }
    assert!(stopped(), "{}", server.log());
    server.limit_descriptors(1024);
    let served = r#"action_executor_concurrency_in_use{lane="actions"} "#;
    let before = counted(&server, served).expect("is counted");
    hold(20);
    eventually("all of them are served", async || {
        (counted(&server, served) >= Some(before + 20)).then_some(())
    })
    .await;
}

/// One address cannot take the connections of another.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_holds_no_more_than_its_share() {
    // Sixteen connections.
    let server = Server::with_descriptors(Engine::Hyper, Program::offline(), 120);
    let ask = async |stream: &mut TcpStream| {
        let request =
            b"GET /api/v1/actions HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\n\r\n";
        stream.write_all(request).await.expect("is open");
        let mut header = [0; 12];
        stream.read_exact(&mut header).await.expect("is answered");
        assert_eq!(&header, b"HTTP/1.1 304");
        while !header.ends_with(b"\r\n\r\n") {
            header.rotate_left(1);
            stream.read_exact(&mut header[11..]).await.expect("is answered");
        }
    };
    let mut own = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(server.address()).await.expect("connects");
        ask(&mut stream).await;
        own.push(stream);
    }
    let mut others = Vec::new();
    for _ in 0..60 {
        let socket = TcpSocket::new_v4().expect("is made");
        socket.bind("127.0.0.2:0".parse().expect("is an address")).expect("is bound");
        others.push(socket.connect(server.address()).await.expect("connects"));
    }
    // The last of them is accepted.
    ask(others.last_mut().expect("is there")).await;
    for stream in &mut own {
        ask(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_shutting_down_is_not_ready() {
    let server = Server::start(Program::offline());
    let stream = server.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("is cloned"));
    let mut ask = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        (&stream).write_all(request.as_bytes()).expect("is sent");
        Reply::read(&mut reader)
    };
    assert_eq!(ask("/readyz").status, 200);
    // A connection that is already open is still served for a moment.
    let sent = Instant::now();
    server.signal("TERM");
    let reply = loop {
        let reply = ask("/readyz");
        if reply.status != 200 || sent.elapsed() > Duration::from_millis(200) {
            break reply;
        }
    };
    assert_eq!((reply.status, &reply.json()["code"]), (503, &json!("shutting_down")));
}
