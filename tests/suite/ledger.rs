//! Exactly once: crashes, retries, lost responses, and concurrent processes.
//!
//! Each test has a short form, which always runs, and a long one:
//!
//!     LEDGER_ROUNDS=100 cargo test --release --test suite ledger -- --nocapture
//!
//! `LEDGER_SEED` repeats the random choices of an earlier run.

use std::{
    env,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use action_executor::{
    actions::{ActionKind, Descriptor},
    executor::failpoint::Failpoint,
};
use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};
use tokio::{
    task::{JoinSet, LocalSet, spawn_blocking},
    time::sleep,
};

use crate::{
    cluster::{Namespace, WAIT_TIMEOUT, shared},
    program::{Finished, Program, Server},
    scenario::{Scenario, actions, for_each_form, is_creation, is_deletion, without_replayed},
};

/// How often the short forms are repeated.
pub fn rounds() -> usize {
    env::var("LEDGER_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(1)
}

/// Reproducible random numbers: xorshift64*.
pub struct Random(u64);

impl Random {
    /// Seeded from `LEDGER_SEED`, or from the clock; prints the seed, so that the run can be repeated.
    pub fn new(test: &str) -> Self {
        let given = env::var("LEDGER_SEED").ok().and_then(|it| it.parse().ok());
        let seed = given.unwrap_or_else(|| uuid_bits() | 1);
        println!("{test}: LEDGER_SEED={seed}");
        Random(seed)
    }

    /// From this seed.
    pub fn seeded(seed: u64) -> Self {
        Random(seed | 1)
    }

    /// A number below this one.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn uuid_bits() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("it is after 1970").as_nanos() as u64
}

fn program(namespace: &Namespace) -> Program {
    // Short, so that the claim of a crashed process expires soon.
    Program::with_kubeconfig(namespace.kubeconfig()).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2")
}

fn send(program: Program, request: &Value) -> Finished {
    program.input(request.to_string()).run()
}

/// Resends the request until it is answered, finally.
fn answered(namespace: &Namespace, request: &Value) -> Finished {
    let began = std::time::Instant::now();
    loop {
        // Long enough to read the changes of the past.
        let program = program(namespace).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "10");
        let done = send(program.args(["--join"]), request);
        // The timeout of an attempt is short, and a busy machine's cluster may exceed it.
        if done.status != 75 || began.elapsed() > WAIT_TIMEOUT {
            return done;
        }
    }
}

async fn crashes_and_is_retried(kind: ActionKind, at: Failpoint) {
    let scenario = Scenario::new(kind, "crashes").await;
    let request = scenario.request(&format!("{}-{}", kind.name(), at.name()));
    let crashing = program(&scenario.namespace).env("ACTION_EXECUTOR_FAILPOINT", at.name());
    let crashed = {
        let request = request.clone();
        spawn_blocking(move || send(crashing, &request)).await.expect("it ran")
    };
    assert_eq!(
        (crashed.status, crashed.stdout.as_str()),
        (-1, ""),
        "{kind:?} at {at:?}: {crashed:?}"
    );
    let namespace = scenario.namespace.clone();
    let (first, second) =
        spawn_blocking(move || (answered(&namespace, &request), answered(&namespace, &request)))
            .await
            .expect("it ran");
    let (first, second, effects) = (first.answer(), second.answer(), scenario.effects().await);
    let Some(expected) = effects_left_unknown(kind, at) else {
        assert_eq!(second["replayed"], true, "{kind:?} at {at:?}: {first}");
        assert_eq!(without_replayed(first), without_replayed(second), "{kind:?} at {at:?}");
        assert_eq!(effects, 1, "{kind:?} at {at:?}");
        return;
    };
    assert_eq!(first["code"], "outcome_unknown", "{kind:?} at {at:?}: {first}");
    assert_eq!(second["code"], "outcome_unknown", "{kind:?} at {at:?}: {second}");
    assert_eq!(effects, expected, "{kind:?} at {at:?}");
}

/// The effects of a request that crashed where no later attempt can find out whether it had made its effect.
pub fn effects_left_unknown(kind: ActionKind, at: Failpoint) -> Option<i64> {
    use Failpoint::*;
    match kind {
        kind if is_deletion(kind) && matches!(at, AfterWrite | BeforeRecord) => Some(1),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_leaves_one_effect_and_one_answer() {
    // One action after the other: all at once on a slow machine, an attempt's two seconds would end before it
    // reaches the failpoint.
    for kind in actions() {
        let side_by_side = async {
            let mut tries = JoinSet::new();
            for at in Failpoint::ALL {
                tries.spawn_local(crashes_and_is_retried(kind, at));
            }
            tries.join_all().await;
        };
        LocalSet::new().run_until(side_by_side).await;
    }
}

/// Sends one request many times to four servers that are killed at random.
async fn many_tries_of_one_request(kind: ActionKind, requests: usize, random: &mut Random) {
    let scenario = Scenario::new(kind, "many").await;
    let request = scenario.request("one").to_string();
    let start = {
        let namespace = scenario.namespace.clone();
        move || Server::start(program(&namespace))
    };
    let servers: Vec<_> = (0..4).map(|_| Mutex::new(start())).collect();
    let servers = Arc::new(servers);
    let left = Arc::new(AtomicUsize::new(requests));
    let answers = Arc::new(Mutex::new(Vec::<Value>::new()));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (servers, left, answers) = (servers.clone(), left.clone(), answers.clone());
            let request = request.clone();
            spawn_blocking(move || {
                let take = |left: usize| left.checked_sub(1);
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                    answers
                        .lock()
                        .expect("is not poisoned")
                        .push(retry_until_answered(&servers, client, &request));
                }
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (servers, done, answers) = (servers.clone(), done.clone(), answers.clone());
        let pauses: Vec<_> = (0..10_000).map(|_| (random.below(4), random.below(400))).collect();
        spawn_blocking(move || {
            let answered = || answers.lock().expect("is not poisoned").len();
            let (mut before, mut kills) = (0, 0);
            for (victim, pause) in pauses {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                // While nothing is answered, the servers of a slow machine run longer.
                std::thread::sleep(Duration::from_millis(100 + pause + 20 * kills));
                kills = if answered() == before { kills + 1 } else { 0 };
                before = answered();
                let mut server = servers[victim as usize].lock().expect("is not poisoned");
                server.signal("KILL");
                *server = start();
            }
        })
    };
    let mut ends = Vec::new();
    for client in clients {
        ends.push(client.await);
    }
    // Before any of them fails the test, which ends only with the killer.
    done.store(true, Ordering::SeqCst);
    killer.await.expect("it ended");
    for end in ends {
        end.expect("all were answered");
    }
    let answers = answers.lock().expect("is not poisoned").clone();
    assert_eq!(answers.len(), requests);
    let (known, unknown): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer["code"] != "outcome_unknown");
    let firsts = known.iter().filter(|answer| answer["replayed"] == false).count();
    assert!(firsts <= 1, "{firsts} say that it was they");
    for answer in &known {
        assert_eq!(without_replayed(answer.clone()), without_replayed(known[0].clone()));
    }
    let effects = scenario.effects().await;
    let least = i64::from(!known.is_empty() || !is_creation(kind));
    assert!((least..=1).contains(&effects), "{kind:?}: {effects} {known:?} {unknown:?}");
}

/// Whether no later attempt can find out what became of the request: a pod that is gone does not show who deleted
/// it, and whether a Job that is not there was created takes longer to find out than these attempts have.
fn is_unknown_for_good(problem: &Value) -> bool {
    let says = |text: &str| problem["detail"].as_str().is_some_and(|detail| detail.contains(text));
    problem["code"] == "outcome_unknown"
        && (says("is gone or being deleted") || says("the change to Job "))
}

/// Asks one server after the other until one has the answer.
fn retry_until_answered(servers: &[Mutex<Server>], mut next: usize, request: &str) -> Value {
    let began = std::time::Instant::now();
    loop {
        let address = servers[next % servers.len()].lock().expect("is not poisoned").address();
        let reply = Server::try_execute(address, request.as_bytes());
        if let Some(reply) = &reply
            && (reply.status == 200 || is_unknown_for_good(&reply.json()))
        {
            return reply.json();
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "no answer in time, but {reply:?}");
        next += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_request_resent_to_killed_processes_takes_effect_once() {
    let requests = if rounds() > 1 { 1000 } else { 40 };
    for_each_form(async |kind| {
        let mut random = Random::new(&format!("killed {}", kind.name()));
        for _ in 0..rounds() {
            many_tries_of_one_request(kind, requests, &mut random).await;
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_spread_over_replicas_take_effect_once_and_get_one_answer() {
    const REPLICAS: usize = 3;
    const IDS: usize = 5;
    let mut random = Random::new("replicas");
    // Each effect is a mark that others do not overwrite. Of two replica counts, nothing would show after a crash
    // whether the first was ever set.
    let scenario = Scenario::new(ActionKind::RestartK8s, "replicas").await;
    let start = {
        let namespace = scenario.namespace.clone();
        move || Server::start(program(&namespace))
    };
    let servers: Arc<Vec<_>> = Arc::new((0..REPLICAS).map(|_| Mutex::new(start())).collect());
    // Round-robin, each id repeatedly: each time it reaches another replica.
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let requests: Vec<_> =
                (0..IDS).map(|id| scenario.request(&format!("r{id}")).to_string()).collect();
            let servers = servers.clone();
            spawn_blocking(move || {
                let turns = (0..IDS * 4 * rounds()).map(|turn| turn + client);
                let ask = |turn: usize| {
                    (turn % IDS, retry_until_answered(&servers, turn, &requests[turn % IDS]))
                };
                turns.map(ask).collect::<Vec<_>>()
            })
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (servers, done) = (servers.clone(), done.clone());
        let victims: Vec<_> = (0..8 * rounds())
            .map(|_| (random.below(REPLICAS as u64), random.below(1000)))
            .collect();
        spawn_blocking(move || {
            for (victim, pause) in victims {
                std::thread::sleep(Duration::from_millis(300 + pause));
                if done.load(Ordering::SeqCst) {
                    return;
                }
                let mut server = servers[victim as usize].lock().expect("is not poisoned");
                server.signal("KILL");
                *server = start();
            }
        })
    };
    let mut answers: Vec<Vec<Value>> = vec![Vec::new(); IDS];
    for client in clients {
        for (id, answer) in client.await.expect("all were answered") {
            answers[id].push(answer);
        }
    }
    done.store(true, Ordering::SeqCst);
    killer.await.expect("it ended");
    for (id, answers) in answers.into_iter().enumerate() {
        let firsts = answers.iter().filter(|answer| answer["replayed"] == false).count();
        assert!(firsts <= 1, "r{id}: {firsts} say that it was they");
        let mut answers = answers.into_iter().map(without_replayed);
        let first = answers.next().expect("is one");
        assert!(answers.all(|it| it == first), "r{id} is answered alike by all");
        // Each replica reports the same, whether or not it executed the request.
        for server in servers.iter() {
            let server = server.lock().expect("is not poisoned");
            let place = format!("/api/v1/actions/r{id}?namespace={}", scenario.namespace.name());
            let progress = server.get(&place).json();
            assert_eq!(progress["state"], "answered", "{progress}");
            assert_eq!(crate::scenario::without_replayed(progress["answer"].clone()), first);
        }
    }
    assert_eq!(scenario.effects().await, IDS as i64);
}

pub async fn records(namespace: &Namespace) -> Vec<Event> {
    let params = ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
    namespace.api::<Event>().list(&params).await.expect("events are listed").items
}

#[test]
fn an_id_belongs_to_one_payload() {
    for_each_form(async |kind| {
        let scenario = Scenario::new(kind, "payload").await;
        let request = scenario.request("r1");
        assert_eq!(send(program(&scenario.namespace), &request).status, 0);
        let mut other = request.clone();
        other["reason"] = "another one".into();
        let done = send(program(&scenario.namespace), &other);
        assert_eq!(done.status, 65, "{done:?}");
        let problem = done.answer();
        assert_eq!((&problem["code"], &problem["status"]), (&json!("id_reused"), &json!(422)));
        assert_eq!(problem["field"], "id");
        // `wait` is not part of the payload.
        let mut waiting = request;
        waiting["wait"] = true.into();
        let done = send(program(&scenario.namespace), &waiting);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["replayed"], true);
        assert_eq!(done.answer()["rollout"]["state"], "complete");
        assert_eq!(scenario.effects().await, 1);
    });
}

#[tokio::test]
async fn a_running_request_is_409_and_a_finished_one_is_replayed() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "under_way").await;
    let request = scenario.request("r1");
    let crashing =
        program(&scenario.namespace).env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterClaim.name());
    assert_eq!(send(crashing, &request).status, -1);
    let done = send(program(&scenario.namespace), &request);
    assert_eq!(done.status, 75, "{done:?}");
    let problem = done.answer();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("in_progress"), &json!(409)));
    assert!(problem["retry_after_seconds"].as_u64().is_some_and(|it| it > 0));
    let server = Server::start(program(&scenario.namespace));
    let reply = server.execute(request.to_string().as_bytes());
    assert_eq!(reply.status, 409);
    assert!(reply.header("retry-after").is_some());
}

#[tokio::test]
async fn the_id_may_be_in_a_header() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "header").await;
    let server = Server::start(program(&scenario.namespace));
    let mut request = scenario.request("r1");
    request.as_object_mut().expect("is an object").remove("id");
    let send = |key: &str| {
        let header = format!("Idempotency-Key: {key}\r\nConnection: close\r\n");
        server.raw(&crate::program::execute_request(request.to_string().as_bytes(), &header))
    };
    let first = send("\"alert-7\"").json();
    assert_eq!((&first["id"], &first["replayed"]), (&json!("alert-7"), &json!(false)));
    assert_eq!(send("alert-7").json()["replayed"], true);
    assert_eq!(send("not an id").status, 400);
    assert_eq!(scenario.effects().await, 1);
}

#[tokio::test]
async fn a_request_whose_record_is_gone_takes_no_second_effect() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "gone").await;
    let request = scenario.request("r1");
    assert_eq!(send(program(&scenario.namespace), &request).status, 0);
    let events: Api<Event> = scenario.namespace.api();
    for record in records(&scenario.namespace).await {
        let name = record.metadata.name.expect("has one");
        events.delete(&name, &Default::default()).await.expect("is deleted");
    }
    let done = send(program(&scenario.namespace), &request);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["replayed"], true);
    assert_eq!(scenario.effects().await, 1);
    assert_eq!(records(&scenario.namespace).await.len(), 1);
}

#[test]
fn a_request_without_a_claim_takes_no_effect() {
    for_each_form(async |kind| {
        let scenario = Scenario::new(kind, "no_claim").await;
        let Descriptor { rules, cluster_rules, .. } = kind.descriptor();
        let rules = [*rules, *cluster_rules].concat();
        let kubeconfig = scenario.account("no-events", json!(rules)).await;
        let done = send(Program::with_kubeconfig(&kubeconfig), &scenario.request("r1"));
        assert_eq!(done.status, 77, "{done:?}");
        assert!(done.stdout.contains("may not create events"), "{done:?}");
        assert_eq!(scenario.effects().await, 0);
    });
}

#[tokio::test]
async fn a_refused_request_may_be_resent() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "again").await;
    let mut request = scenario.request("r1");
    request["precondition"] = json!({ "resource_version": "1" });
    assert_eq!(send(program(&scenario.namespace), &request).status, 69);
    assert_eq!(send(program(&scenario.namespace), &scenario.request("r1")).status, 0);
    assert_eq!(scenario.effects().await, 1);
}

#[tokio::test]
async fn an_expired_request_is_refused() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "old").await;
    let mut request = scenario.request("r1");
    request["issued_at"] = "2026-01-31T12:00:00Z".into();
    let done = send(program(&scenario.namespace), &request);
    assert_eq!(done.status, 65, "{done:?}");
    assert_eq!(done.answer()["code"], "request_expired");
    request["issued_at"] = chrono::Utc::now().to_rfc3339().into();
    assert_eq!(send(program(&scenario.namespace), &request).status, 0);
    assert_eq!(scenario.effects().await, 1);
}

#[tokio::test]
async fn an_interrupted_wait_is_resumed_by_a_retry() {
    let namespace = shared().namespace("taken_up").await;
    namespace.deployment("web", 1, crate::cluster::SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": "r1",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let waiting = program(&namespace).input(request.to_string()).start();
    crate::cluster::eventually("it is restarted", async || {
        (namespace.get_deployment("web").await.metadata.generation > Some(1)).then_some(())
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    waiting.signal("TERM");
    let done = waiting.wait();
    assert_eq!(done.status, 75, "{done:?}");
    let done = send(program(&namespace), &request);
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete");
    assert_eq!(done.answer()["replayed"], true);
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(2));
}

/// Runs kubectl in this namespace; returns its output, and fails the test if it fails.
pub fn kubectl(namespace: &Namespace, args: &[&str]) -> String {
    let kubectl = Path::new(shared().programs()).join("kubectl");
    let done = std::process::Command::new(kubectl)
        .args(["-n", namespace.name()])
        .args(args)
        .env("KUBECONFIG", namespace.kubeconfig())
        .output()
        .expect("kubectl runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("is text")
}

#[tokio::test]
async fn kubectl_shows_requester_reason_and_result() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "audit").await;
    let mut request = scenario.request("alert-7");
    request["requester"] = "pager".into();
    request["reason"] = "p99 is 4 s".into();
    assert_eq!(send(program(&scenario.namespace), &request).status, 0);
    for args in [&["describe", "deployment", "web"][..], &["get", "events"]] {
        let text = kubectl(&scenario.namespace, args);
        let line = text.lines().find(|line| line.contains("ActionApplied")).expect("is listed");
        for part in ["Deployment 'web' restarted at", "Requested by pager: p99 is 4 s", "alert-7"] {
            assert!(line.contains(part), "{line}");
        }
    }
    let name = scenario.namespace.name();
    let history = |args: &[&str]| {
        let args = [&["history", "--namespace", name], args].concat();
        program(&scenario.namespace).args(args).run()
    };
    let listed = history(&["--target", "deployment/web", "--output", "json"]);
    assert_eq!(listed.status, 0, "{listed:?}");
    let entry = listed.answer();
    assert_eq!((&entry["id"], &entry["type"]), (&json!("alert-7"), &json!("restart_k8s")));
    assert!(entry["message"].as_str().expect("has one").contains("Requested by pager"));
    assert_eq!(history(&["--target", "api"]).stdout.trim(), "");
    assert!(history(&[]).stdout.contains("ActionApplied"));
}

#[tokio::test]
async fn a_repeated_refusal_is_recorded_once() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "refusal").await;
    let policy = scenario.namespace.policy("actions: {allow: [restart_pod]}");
    for _ in 0..5 {
        let mut request = scenario.request("r1");
        request.as_object_mut().expect("is an object").remove("id");
        assert_eq!(send(program(&scenario.namespace).under(&policy), &request).status, 77);
    }
    let records = records(&scenario.namespace).await;
    assert_eq!(records.len(), 1);
    let message = records[0].message.as_deref().expect("has one");
    assert!(message.contains("restart_k8s was refused: not allowed by the policy"), "{message}");
    assert_eq!(scenario.effects().await, 0);
}
