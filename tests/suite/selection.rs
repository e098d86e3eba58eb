//! Targets that a label selector chooses, on a real API server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use action_executor::executor::failpoint::Failpoint;
use hyper::Method;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::Event,
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch},
};
use serde_json::{Value, json};

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, WAIT_TIMEOUT, eventually, shared},
    exactly_once::{Run, transparent},
    fault_matrix::charged,
    fault_proxy::{Held, Proxy, ProxyBehavior, faults},
    ledger::kubectl,
    program::{Finished, Program, Server},
    scenario::{extended, without_replayed},
};

/// Two Deployments with this label, and one without.
const LABEL: &str = "tier=front";

fn request(namespace: &Namespace, fields: Value) -> Value {
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "s1",
        "parameters": { "namespace": namespace.name(), "selector": LABEL },
    });
    let part = |name: &str| fields.get(name).cloned().unwrap_or_else(|| json!({}));
    extended(request, part("parameters"), part("request"))
}

fn program(namespace: &Namespace, policy: &str) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig()).under(&namespace.policy(policy))
}

fn send_under(namespace: &Namespace, policy: &str, fields: Value) -> Finished {
    program(namespace, policy).input(request(namespace, fields).to_string()).run()
}

fn send(namespace: &Namespace, fields: Value) -> Finished {
    send_under(namespace, "version: 1", fields)
}

async fn labelled(namespace: &Namespace, name: &str) {
    namespace.deployment(name, 1, GOOD_IMAGE).await;
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "tier": "front" } } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch(name, &Default::default(), &patch).await.expect("is labelled");
}

/// The Deployments `api` and `web` with the label, and `other` without it.
async fn shop(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    for name in ["api", "web"] {
        labelled(&namespace, name).await;
    }
    namespace.deployment("other", 1, GOOD_IMAGE).await;
    for name in ["api", "web", "other"] {
        namespace.rolled_out(name).await;
    }
    namespace
}

/// How often each Deployment's spec was changed.
async fn changes(namespace: &Namespace) -> [i64; 3] {
    let mut all = [0; 3];
    for (changes, name) in all.iter_mut().zip(["api", "web", "other"]) {
        let generation = namespace.get_deployment(name).await.metadata.generation;
        *changes = generation.expect("has one") - 1;
    }
    all
}

fn outcomes(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let results = answer["targets"].as_array().cloned().unwrap_or_default();
    let outcome = |it: &Value| (text(&it["target"]["name"]), text(&it["outcome"]));
    results.iter().map(outcome).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned())).collect()
}

#[tokio::test]
async fn each_match_is_restarted_once_and_nothing_else() {
    let namespace = shop("selected").await;
    let simulated = send(&namespace, json!({ "request": { "simulate": true } }));
    assert_eq!(simulated.status, 0, "{simulated:?}");
    let answer = simulated.answer();
    assert_eq!(outcomes(&answer), pairs(&[("api", "simulated"), ("web", "simulated")]));
    assert!(answer["targets"][0]["changes"].as_array().is_some_and(|it| !it.is_empty()));
    assert!(answer["result"].as_str().is_some_and(|it| it.ends_with(": api, web.")), "{answer}");
    assert_eq!(changes(&namespace).await, [0, 0, 0]);

    let fields = || json!({ "request": { "wait": true, "timeout_seconds": 60 } });
    let done = send(&namespace, fields());
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied", "{answer}");
    assert_eq!(answer["rollout"]["state"], "complete", "{answer}");
    assert_eq!(answer["target"]["kind"], "Namespace", "{answer}");
    assert_eq!(outcomes(&answer), pairs(&[("api", "applied"), ("web", "applied")]));
    assert_eq!(answer["targets"][1]["rollout"]["state"], "complete", "{answer}");
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
    // Each is charged, and the whole is not.
    assert_eq!(charged(&namespace).await, 2);

    // The same request has the same answer, and so has that of one target by its own id.
    let again = send(&namespace, fields()).answer();
    assert_eq!(again["replayed"], true);
    assert_eq!(without_replayed(again), without_replayed(answer.clone()));
    let id = answer["targets"][0]["id"].as_str().expect("has one");
    let entries = program(&namespace, "version: 1")
        .args(["history", "-n", namespace.name(), "-o", "json"])
        .run();
    assert!(entries.stdout.contains(id), "{entries:?}");
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
}

#[tokio::test]
async fn its_siblings_and_a_scaling_take_a_selector_too() {
    let namespace = shop("selected_kinds").await;
    let front = Patch::Merge(json!({ "metadata": { "labels": { "tier": "front" } } }));
    namespace.stateful_set("db", 1).await;
    namespace.daemon_set("agent").await;
    let sets = namespace.api::<StatefulSet>();
    sets.patch("db", &Default::default(), &front).await.expect("is labelled");
    let daemons = namespace.api::<DaemonSet>();
    daemons.patch("agent", &Default::default(), &front).await.expect("is labelled");
    for (kind, parameters, names) in [
        ("restart_statefulset", json!({}), &["db"][..]),
        ("restart_daemonset", json!({}), &["agent"]),
        ("scale", json!({ "by": 1 }), &["api", "web"]),
    ] {
        let fields = json!({ "parameters": parameters, "request": { "type": kind, "id": kind } });
        for replayed in [false, true] {
            let done = send_under(&namespace, "cooldown_seconds: 0", fields.clone());
            assert_eq!(done.status, 0, "{done:?}");
            let expected: Vec<_> = names.iter().map(|name| (*name, "applied")).collect();
            assert_eq!(outcomes(&done.answer()), pairs(&expected), "{done:?}");
            assert_eq!(done.answer()["replayed"], replayed, "{done:?}");
        }
    }
    // By one each, and not by one for each attempt.
    for name in ["api", "web"] {
        let replicas = namespace.get_deployment(name).await.spec.expect("has one").replicas;
        assert_eq!(replicas, Some(2), "{name}");
    }
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
}

#[tokio::test]
async fn no_match_too_many_and_one_that_is_refused_refuse_all() {
    let namespace = shop("selected_refused").await;
    for (policy, fields, code, says) in [
        ("version: 1", json!({ "selector": "tier=none" }), "target_not_found", "there are no"),
        ("version: 1", json!({ "max_targets": 1 }), "precondition_failed", "more than 1 Dep"),
        ("targets: {max_per_request: 1}", json!({}), "policy_denied", "2 targets match"),
        ("targets: {protected: [app=web, tier=front]}", json!({}), "policy_denied", "tier=front"),
        (
            "budget: {cluster: {actions: 1, within_seconds: 60}}",
            json!({}),
            "rate_limited",
            "1 action",
        ),
    ] {
        let done = send_under(&namespace, policy, json!({ "parameters": fields }));
        assert_eq!(done.answer()["code"], code, "{policy}: {done:?}");
        assert!(done.answer()["detail"].to_string().contains(says), "{policy}: {done:?}");
    }
    let paused = Patch::Merge(json!({ "spec": { "paused": true } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &paused).await.expect("is paused");
    for simulate in [true, false] {
        let done = send(&namespace, json!({ "request": { "simulate": simulate } }));
        let answer = done.answer();
        assert_eq!(answer["code"], "target_paused", "{done:?}");
        assert!(answer["detail"].to_string().contains("so nothing was done"), "{done:?}");
    }
    let scaled = json!({
        "parameters": { "replicas": 3 }, "request": { "type": "scale" },
    });
    let done = send_under(&namespace, "replicas: {max: 2}", scaled);
    assert_eq!(done.answer()["code"], "policy_denied", "{done:?}");
    assert_eq!(changes(&namespace).await, [0, 1, 0]);
    // One may fail: the other one is restarted.
    let done = send(&namespace, json!({ "parameters": { "max_failures": 1 } }));
    assert_eq!(done.status, 69, "{done:?}");
    let expected = pairs(&[("api", "applied"), ("web", "refused")]);
    assert_eq!(outcomes(&done.answer()), expected, "{done:?}");
    assert_eq!(done.answer()["targets"][1]["code"], "target_paused", "{done:?}");
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
}

#[tokio::test]
async fn a_failure_leaves_the_targets_after_it_alone_unless_it_may_happen() {
    let namespace = shop("selected_failure").await;
    let rule = json!({
        "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"],
        "resources": ["deployments"], "resourceNames": ["api"],
    });
    let denied = json!({ "expression": "false", "message": "api is frozen" });
    namespace.admission_policy("Deny", rule, denied).await;
    eventually("the policy is in force", async || {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "x": "y" } } }));
        let deployments = namespace.api::<Deployment>();
        deployments.patch("api", &Default::default(), &patch).await.err()
    })
    .await;
    let done = send(&namespace, json!({}));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed", "{answer}");
    assert_eq!(outcomes(&answer), pairs(&[("api", "refused"), ("web", "not_attempted")]));
    let problem = answer["rollout"]["problems"][0].as_str().expect("is one");
    assert!(problem.contains("api is frozen"), "{answer}");
    assert_eq!(changes(&namespace).await, [0, 0, 0]);
    let fields = json!({ "parameters": { "max_failures": 1 }, "request": { "id": "s2" } });
    let done = send_under(&namespace, "cooldown_seconds: 0", fields);
    assert_eq!(outcomes(&done.answer()), pairs(&[("api", "refused"), ("web", "applied")]));
    assert_eq!(changes(&namespace).await, [0, 1, 0]);
}

#[tokio::test]
async fn a_request_resent_to_killed_processes_restarts_each_target_once() {
    for at in Failpoint::ALL {
        let namespace = shop("selected_killed").await;
        let fields = || json!({ "request": { "wait": true, "timeout_seconds": 60 } });
        let text = request(&namespace, fields()).to_string();
        let policy = "cooldown_seconds: 1";
        // Each attempt crashes there again, at the first target or at a later one.
        for _ in 0..2 {
            let killed = program(&namespace, policy)
                .env("ACTION_EXECUTOR_FAILPOINT", at.name())
                .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "3")
                .input(text.clone())
                .run();
            assert!([-1, 0, 75].contains(&killed.status), "{at:?}: {killed:?}");
        }
        let done = eventually("the answer is final", async || {
            let done = program(&namespace, policy).input(text.clone()).run();
            (done.status != 75).then_some(done)
        })
        .await;
        assert_eq!(done.status, 0, "{at:?}: {done:?}");
        let expected = pairs(&[("api", "applied"), ("web", "applied")]);
        assert_eq!(outcomes(&done.answer()), expected, "{at:?}");
        assert_eq!(changes(&namespace).await, [1, 1, 0], "{at:?}");
    }
}

/// A fault at one of the writes of a request for two targets: those of three records, and the two changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_write_of_any_record_or_target_restarts_each_target_once() {
    let namespace = shop("selected_lost").await;
    let policy =
        namespace.policy("cooldown_seconds: 0\nbudget: {per_namespace: null, cluster: null}");
    let mut expected = [0, 0, 0];
    for number in 0..9 {
        for (name, fault) in faults(&Held::default()) {
            if !matches!(name, "drop_request" | "drop_response" | "repeat_and_return_second") {
                continue;
            }
            let has_come = Arc::new(AtomicBool::new(false));
            let (comes, id) = (has_come.clone(), format!("lost-{number}-{name}"));
            let proxy = Proxy::start(&namespace, move |call| {
                let is_write = matches!(call.method, Method::POST | Method::PATCH);
                if is_write && call.number == number {
                    comes.store(true, Ordering::SeqCst);
                    return fault.clone();
                }
                ProxyBehavior::Forward
            })
            .await;
            let body = request(&namespace, json!({ "request": { "id": id } }));
            let answer = Run::through(&proxy, &policy).resend(&body).await;
            let applied = pairs(&[("api", "applied"), ("web", "applied")]);
            assert_eq!(outcomes(&answer), applied, "{id}: {answer}");
            assert!(has_come.load(Ordering::SeqCst), "{id}: there are fewer writes");
            expected = [expected[0] + 1, expected[1] + 1, 0];
            assert_eq!(changes(&namespace).await, expected, "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_with_the_same_request_restart_each_target_once() {
    let namespace = shop("selected_race").await;
    let policy = namespace.policy("version: 1");
    let proxy = transparent(&namespace).await;
    let body = request(&namespace, json!({}));
    let run = Run::through(&proxy, &policy);
    let all =
        tokio::join!(run.resend(&body), run.resend(&body), run.resend(&body), run.resend(&body));
    for answer in [all.0, all.1, all.2, all.3] {
        let applied = pairs(&[("api", "applied"), ("web", "applied")]);
        assert_eq!(outcomes(&answer), applied, "{answer}");
    }
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
}

#[tokio::test]
async fn one_approval_is_of_all_targets_as_they_were_chosen() {
    let namespace = shop("selected_approved").await;
    let ask = || send_under(&namespace, REQUIRE_APPROVAL, json!({}));
    let first = ask();
    assert_eq!(first.status, 75, "{first:?}");
    assert_eq!(first.answer()["outcome"], "pending_approval", "{first:?}");
    assert!(approve(&first.answer(), namespace.kubeconfig()));
    // Another target, or a change of one, needs another approval.
    labelled(&namespace, "zoo").await;
    namespace.rolled_out("zoo").await;
    let second = ask();
    assert_eq!(second.status, 75, "{second:?}");
    let digest = |asked: &Finished| asked.answer()["approval"]["digest"].clone();
    assert_ne!(digest(&second), digest(&first));
    assert!(approve(&second.answer(), namespace.kubeconfig()));
    kubectl(&namespace, &["set", "env", "deployment/web", "A=B"]);
    namespace.rolled_out("web").await;
    let third = ask();
    assert_eq!(third.status, 75, "{third:?}");
    assert_eq!(changes(&namespace).await, [0, 1, 0]);
    assert!(approve(&third.answer(), namespace.kubeconfig()));
    let done = ask();
    assert_eq!(done.status, 0, "{done:?}");
    let applied = [("api", "applied"), ("web", "applied"), ("zoo", "applied")];
    assert_eq!(outcomes(&done.answer()), pairs(&applied));
    assert_eq!(changes(&namespace).await, [1, 2, 0]);
}

#[tokio::test]
async fn a_record_that_was_forged_neither_approves_nor_chooses() {
    let namespace = shop("selected_forged").await;
    let first = send_under(&namespace, REQUIRE_APPROVAL, json!({}));
    assert_eq!(first.status, 75, "{first:?}");
    let events = namespace.api::<Event>();
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
    let record = events.list(&ours).await.expect("are listed").items.remove(0);
    let name = record.name_any();
    let intent = &record.annotations()["action-executor.dev/intent"];
    let mut intent: Value = serde_json::from_str(intent).expect("is JSON");
    let other = namespace.get_deployment("other").await.uid().expect("has one");
    let targets = intent["completion"]["each_target"].as_array_mut().expect("are targets");
    targets.push(json!({ "name": "other", "uid": other }));
    // As if it was approved, claimed, and its work had begun.
    let forged = json!({ "metadata": { "annotations": {
        "action-executor.dev/state": "applied",
        "action-executor.dev/intent": intent.to_string(),
    }}});
    events.patch(&name, &Default::default(), &Patch::Merge(&forged)).await.expect("is patched");
    for _ in 0..2 {
        let done = send_under(&namespace, REQUIRE_APPROVAL, json!({}));
        assert_eq!(done.status, 69, "{done:?}");
    }
    assert_eq!(changes(&namespace).await, [0, 0, 0]);
    // Where no approval is needed, what does not match stays as it is.
    events.patch(&name, &Default::default(), &Patch::Merge(forged)).await.expect("is patched");
    let done = send(&namespace, json!({}));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    let expected = [("api", "applied"), ("web", "applied"), ("other", "refused")];
    assert_eq!(outcomes(&answer), pairs(&expected), "{answer}");
    assert!(answer["targets"][2]["result"].to_string().contains("no longer matches"), "{answer}");
    assert_eq!(changes(&namespace).await, [1, 1, 0]);
}

#[tokio::test]
async fn the_status_says_how_many_targets_have_an_answer() {
    let namespace = shared().namespace("selected_status").await;
    labelled(&namespace, "api").await;
    namespace.rolled_out("api").await;
    // Its rollout does not complete.
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let front = Patch::Merge(json!({ "metadata": { "labels": { "tier": "front" } } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &front).await.expect("is labelled");
    let server = Server::start(program(&namespace, "version: 1"));
    let fields = json!({ "request": { "wait": true, "timeout_seconds": 60 } });
    let body = request(&namespace, fields).to_string();
    let running = thread::scope(|scope| {
        let work = scope.spawn(|| server.execute(body.as_bytes()));
        let path = format!("/api/v1/actions/s1?namespace={}", namespace.name());
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let seen = loop {
            let status = server.get(&path);
            if status.status == 200
                && status.json()["detail"] == "1 of 2 targets have an answer; web is in progress"
            {
                break true;
            }
            if Instant::now() > deadline {
                break false;
            }
            thread::sleep(Duration::from_millis(100));
        };
        server.signal("TERM");
        (seen, work.join().expect("has ended"))
    });
    let (seen, reply) = running;
    assert!(seen);
    // It is interrupted, and the same request continues.
    assert_eq!(reply.status, 503, "{:?}", reply.json());
    assert_eq!(outcomes(&reply.json()), pairs(&[("api", "applied"), ("web", "failed")]));
    assert_eq!(reply.json()["rollout"]["state"], "interrupted");
}
