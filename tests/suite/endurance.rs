//! Load and failures that a server survives: disconnects, signals, exhausted file descriptors, panics, and an
//! outage of the API server.
//!
//! Each test has a short form, which always runs, and a longer one:
//!
//!     ENDURANCE_ROUNDS=200 cargo test --release --test suite endurance -- --nocapture
//!
//! `LEDGER_SEED` repeats the random choices of an earlier run.

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    task::{JoinSet, spawn_blocking},
};

use crate::{
    cluster::{GOOD_IMAGE, Namespace, TestCluster, eventually, private, shared},
    ledger::{Random, records},
    program::{Engine, Program, Reply, Server, execute_request},
};

/// A private cluster: these tests keep its controllers so busy that other tests would wait for them.
fn own_cluster() -> &'static TestCluster {
    static CLUSTER: OnceLock<TestCluster> = OnceLock::new();
    CLUSTER.get_or_init(private)
}

fn rounds(default: u64) -> u64 {
    env::var("ENDURANCE_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(default)
}

fn restart(namespace: &Namespace, name: &str) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false, "id": name,
        "parameters": { "deployment": name, "namespace": namespace.name() },
    })
}

/// Deployments without pods, one for each request, named as its id.
async fn deployments(namespace: &Namespace, names: &[String]) {
    let mut made = JoinSet::new();
    for name in names {
        let (namespace, name) = (namespace.clone(), name.clone());
        made.spawn(async move { namespace.deployment(&name, 0, GOOD_IMAGE).await });
        while made.len() > 16 {
            made.join_next().await;
        }
    }
    made.join_all().await;
}

/// Each request either changed nothing, or has a record with its answer and one effect.
async fn all_or_nothing(namespace: &Namespace, names: &[String]) -> usize {
    let states: Vec<(String, String)> = records(namespace)
        .await
        .iter()
        .filter_map(|event: &Event| {
            let notes = event.metadata.annotations.as_ref()?;
            let of = |name: &str| notes.get(&format!("action-executor.dev/{name}")).cloned();
            Some((of("request-id")?, of("state")?))
        })
        .collect();
    let mut effects = 0;
    for name in names {
        let generation = namespace.get_deployment(name).await.metadata.generation;
        let state = states.iter().find(|(id, _)| id == name).map(|(_, state)| state.as_str());
        match (generation, state) {
            (Some(1), None) => {}
            (Some(2), Some("answered")) => effects += 1,
            other => panic!("{name}: {other:?}"),
        }
    }
    effects
}

/// A retry of each request gets an answer, and there is one effect.
async fn all_are_answered_in_the_end(namespace: &Namespace, server: &Server, names: &[String]) {
    for name in names {
        let reply = server.execute(restart(namespace, name).to_string().as_bytes());
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let generation = namespace.get_deployment(name).await.metadata.generation;
        assert_eq!(generation, Some(2), "{name}");
    }
}

fn gauge(server: &Server, line: &str) -> Option<u64> {
    let text = String::from_utf8(server.get("/metrics").body).ok()?;
    text.lines().find_map(|it| it.strip_prefix(line))?.trim().parse().ok()
}

async fn wait_until_idle(server: &Server) {
    eventually("nothing is in progress any more", async || {
        let actions = gauge(server, r#"action_executor_concurrency_in_use{lane="actions"} "#)?;
        let queued = gauge(server, "action_executor_queued_requests ")?;
        (actions + queued == 0).then_some(())
    })
    .await;
}

/// Sends a request, or the beginning of one, and disconnects after a while: by a reset, or in order, which at first
/// looks as if it waited for its response.
async fn send_and_hang_up(
    address: SocketAddr,
    body: Value,
    sent: f64,
    after: Duration,
    resets: bool,
) {
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return };
    let bytes = execute_request(body.to_string().as_bytes(), "");
    let part = ((bytes.len() as f64 * sent) as usize).min(bytes.len());
    let _ = stream.write_all(&bytes[..part]).await;
    tokio::time::sleep(after).await;
    if resets {
        stream.set_zero_linger().expect("is set");
    }
}

async fn disconnects_leave_nothing_half_done(
    engine: Engine,
    test: &str,
    permits: &str,
    longest: u64,
) {
    let test = &format!("{test}_{}", engine.name());
    let mut random = Random::new(test);
    let namespace = own_cluster().namespace(test).await;
    let names: Vec<_> = (0..rounds(30)).map(|number| format!("web-{number}")).collect();
    deployments(&namespace, &names).await;
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let program = program.env("ACTION_EXECUTOR_MAX_ACTIONS", permits);
    let server = Server::start_with(engine, program);
    let mut clients = JoinSet::new();
    for name in &names {
        let (body, address) = (restart(&namespace, name), server.address());
        // One in five is sent incompletely.
        let sent = if random.below(5) == 0 { random.below(100) as f64 / 100.0 } else { 1.0 };
        let after = Duration::from_millis(random.below(longest));
        let resets = random.below(2) == 0;
        clients.spawn(send_and_hang_up(address, body, sent, after, resets));
        while clients.len() >= 8 {
            clients.join_next().await;
        }
    }
    clients.join_all().await;
    wait_until_idle(&server).await;
    let effects = all_or_nothing(&namespace, &names).await;
    println!("{test}: {effects} of {} were begun, and all of these done", names.len());
    let hung_up = gauge(&server, "action_executor_client_disconnects_total ");
    assert!(hung_up.is_some_and(|it| it > 0), "{hung_up:?}");
    all_are_answered_in_the_end(&namespace, &server, &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_at_any_moment_leaves_nothing_half_done() {
    for engine in Engine::ALL {
        disconnects_leave_nothing_half_done(engine, "hang_up", "128", 120).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_while_queued_leaves_nothing_half_done() {
    for engine in Engine::ALL {
        disconnects_leave_nothing_half_done(engine, "hang_up_queued", "1", 400).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_signal_under_load_leaves_no_request_half_done() {
    for engine in Engine::ALL {
        term_under_load(engine).await;
    }
}

async fn term_under_load(engine: Engine) {
    const CLIENTS: usize = 4;
    let mut random = Random::new(&format!("term_under_load_{}", engine.name()));
    let namespace = own_cluster().namespace(&format!("term_load_{}", engine.name())).await;
    for round in 0..rounds(10) {
        let names: Vec<_> =
            (0..CLIENTS * 3).map(|number| format!("web-{round}-{number}")).collect();
        deployments(&namespace, &names).await;
        let start = || {
            Server::start_with(
                engine,
                Program::with_kubeconfig(namespace.kubeconfig())
                    .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "5"),
            )
        };
        let server = start();
        let answered = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let mine: Vec<_> = names.iter().skip(client).step_by(CLIENTS).cloned().collect();
            let (namespace, answered) = (namespace.clone(), answered.clone());
            let address = server.address();
            clients.spawn_blocking(move || {
                for name in mine {
                    let mut simulation = restart(&namespace, &name);
                    simulation["simulate"] = true.into();
                    for body in [simulation, restart(&namespace, &name)] {
                        let Some(reply) = Server::try_execute(address, body.to_string().as_bytes())
                        else {
                            return;
                        };
                        assert_eq!(reply.status, 200, "{reply:?}");
                        if body["simulate"] == false {
                            answered.lock().expect("is not poisoned").push(name.clone());
                        }
                    }
                }
            });
        }
        let moment = Duration::from_millis(random.below(600));
        let (status, log) = spawn_blocking(move || {
            thread::sleep(moment);
            server.signal("TERM");
            server.wait()
        })
        .await
        .expect("it ended");
        assert_eq!(status, 0, "round {round}: {log}");
        clients.join_all().await;
        all_or_nothing(&namespace, &names).await;
        // An answered request stays as it is; each other one is answered now, with one effect.
        all_are_answered_in_the_end(&namespace, &start(), &names).await;
        println!("round {round}: {} answered", answered.lock().expect("is not poisoned").len());
    }
}

#[test]
fn a_server_recovers_when_file_descriptors_are_free_again() {
    for engine in Engine::ALL {
        without_descriptors(engine);
    }
}

fn without_descriptors(engine: Engine) {
    let mut server = Server::with_descriptors(engine, Program::offline(), 40);
    let request = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let mut clients: Vec<_> =
        (0..200).map_while(|_| TcpStream::connect(server.address()).ok()).collect();
    for stream in &mut clients {
        let _ = stream.write_all(&execute_request(request, ""));
    }
    for stream in &mut clients {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(10)));
        let _ = stream.read(&mut [0; 1]);
    }
    assert!(server.is_alive());
    drop(clients);
    serves_within_two_seconds(&server, request);
    assert!(server.is_alive());
}

fn serves_within_two_seconds(server: &Server, request: &[u8]) {
    let began = Instant::now();
    loop {
        let reply = Server::try_execute(server.address(), request);
        if reply.as_ref().is_some_and(|reply| reply.status == 200) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{reply:?} {}", server.log());
        thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_panics_are_answered_and_affect_no_other_request() {
    // A release build has no failpoint at which it could panic.
    if !cfg!(debug_assertions) {
        return;
    }
    for engine in Engine::ALL {
        a_hundred_panics(engine).await;
    }
}

async fn a_hundred_panics(engine: Engine) {
    let namespace = shared().namespace(&format!("panics_{}", engine.name())).await;
    namespace.deployment("web", 0, GOOD_IMAGE).await;
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let program = program.env("ACTION_EXECUTOR_PANICPOINT", "BeforeClaim");
    let server = Server::start_with(engine, program);
    let mut clients = JoinSet::new();
    for client in 0..4 {
        let (address, namespace) = (server.address(), namespace.clone());
        clients.spawn_blocking(move || {
            for number in 0..25 {
                let mut request = restart(&namespace, "web");
                request["id"] = format!("{client}-{number}").into();
                let reply = Server::try_execute(address, request.to_string().as_bytes());
                let reply = reply.expect("is answered");
                assert_eq!((reply.status, &reply.json()["code"]), (500, &json!("internal")));
            }
        });
    }
    clients.join_all().await;
    let mut simulation = restart(&namespace, "web");
    simulation["simulate"] = true.into();
    serves_within_two_seconds(&server, simulation.to_string().as_bytes());
    wait_until_idle(&server).await;
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(1));
    assert!(records(&namespace).await.is_empty());
}

/// One response, when it came, and how long it took.
struct Sample {
    at: Instant,
    took: Duration,
    reply: Option<Reply>,
}

/// Sends simulations and real actions, one after the other, until `over` is set.
fn load(address: SocketAddr, bodies: Vec<Value>, over: &AtomicBool) -> Vec<Sample> {
    let mut samples = Vec::new();
    for body in bodies.iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let reply = Server::try_execute(address, body.to_string().as_bytes());
        samples.push(Sample { at: Instant::now(), took: began.elapsed(), reply });
        thread::sleep(Duration::from_millis(20));
    }
    samples
}

async fn outage(down: Duration) {
    const DEADLINE: Duration = Duration::from_secs(3);
    /// The time past the deadline to resolve a write's outcome and to record it, on a busy machine.
    const AFTER: Duration = Duration::from_secs(3);
    let cluster: TestCluster = private();
    let namespace = cluster.namespace("outage").await;
    let names: Vec<_> = (0..4).map(|number| format!("web-{number}")).collect();
    deployments(&namespace, &names).await;
    let program = Program::with_kubeconfig(cluster.kubeconfig());
    let server = Server::start(
        program.env("ACTION_EXECUTOR_DEADLINE_SECONDS", DEADLINE.as_secs().to_string()),
    );
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let mut body = restart(&namespace, &names[client % names.len()]);
            // Without an id, each real request is a new one.
            body.as_object_mut().expect("is an object").remove("id");
            body["simulate"] = (client < 4).into();
            let (address, over) = (server.address(), over.clone());
            thread::spawn(move || load(address, vec![body], &over))
        })
        .collect();
    eventually("it is ready", async || (server.get("/readyz").status == 200).then_some(())).await;
    let stopped = Instant::now();
    cluster.stop("kube-apiserver");
    let mut unready = false;
    let mut first = true;
    while stopped.elapsed() < down {
        let ready = server.get("/readyz").status == 200;
        // A single failure does not count.
        assert!(ready || !first, "it flaps");
        first = false;
        unready |= !ready;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(unready || down < Duration::from_secs(11), "it was never unready");
    let restarted = Instant::now();
    let start = move || {
        cluster.start("kube-apiserver");
        cluster
    };
    let _cluster = spawn_blocking(start).await.expect("it is ready");
    let back = Instant::now();
    eventually("it is ready again", async || (server.get("/readyz").status == 200).then_some(()))
        .await;
    let ready_after = back.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    over.store(true, Ordering::Relaxed);
    let samples: Vec<_> = clients.into_iter().flat_map(|it| it.join().expect("it ran")).collect();
    let slowest = samples.iter().map(|it| it.took).max().expect("there are some");
    assert!(slowest < DEADLINE + AFTER, "{slowest:?}");
    let mut refused = 0;
    for it in &samples {
        let reply = it.reply.as_ref().expect("is answered");
        let began = it.at - it.took;
        let code = if reply.status == 200 { json!(null) } else { reply.json()["code"].clone() };
        match reply.status {
            200 => {}
            503 | 504 => refused += 1,
            // Many real requests have the same target.
            409 | 429 => {}
            // The controllers and the admission of the API server start after it.
            _ if began > restarted => {}
            status => panic!("{status} {code} {:?}", it.at - stopped),
        }
    }
    let first_success = samples
        .iter()
        .filter(|it| it.at > restarted && it.reply.as_ref().is_some_and(|it| it.status == 200))
        .map(|it| it.at.saturating_duration_since(back))
        .min()
        .expect("it serves again");
    println!(
        "down for {:?}: {} answers, {refused} of them 503 or 504, slowest {slowest:?}; served again \
         {first_success:?} and ready {ready_after:?} after the API server",
        back - stopped,
        samples.len(),
    );
    assert!(refused > 0);
    assert!(first_success < Duration::from_secs(2), "{first_success:?}");
    assert!(ready_after < Duration::from_secs(2), "{ready_after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_api_server_is_reported_in_time_and_recovered_from() {
    outage(Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes over a minute: the API server is gone for that long"]
async fn a_minutes_outage_of_the_api_server_is_recovered_from() {
    outage(Duration::from_secs(60)).await;
}
