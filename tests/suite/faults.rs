//! Failures that a real API server does not produce on demand: missing and lost responses, unusual statuses.
//!
//! `fault_proxy` injects them. Each test compares the program's answer with the state of the cluster.

use std::{path::PathBuf, time::Duration};

use hyper::Method;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    fault_proxy::{ProxyBehavior, Received, kubeconfig, proxy},
    ledger::{Random, rounds},
    program::{Finished, Program},
    scenario::{Scenario, for_each_action, is_deletion},
};

fn restart(namespace: &Namespace) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
}

async fn send(kubeconfig: PathBuf, request: Value) -> Finished {
    let run = move || {
        Program::with_kubeconfig(&kubeconfig)
            .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "4")
            .input(request.to_string())
            .run()
    };
    tokio::task::spawn_blocking(run).await.expect("it ran")
}

async fn generation(namespace: &Namespace) -> i64 {
    namespace.get_deployment("web").await.metadata.generation.expect("has one")
}

/// One restart under this rule: how the program ended, and how often it took effect.
async fn restarted(
    test: &str,
    rule: impl Fn(&Received) -> ProxyBehavior + Send + Sync + 'static,
) -> (Finished, i64) {
    let namespace = shared().namespace(test).await;
    namespace.running_deployment("web", 1).await;
    let before = generation(&namespace).await;
    let kubeconfig = proxy(&namespace, rule).await;
    let done = send(kubeconfig, restart(&namespace)).await;
    (done, generation(&namespace).await - before)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transparent_proxy_changes_nothing() {
    let (done, effects) = restarted("honest", |_| ProxyBehavior::Forward).await;
    assert_eq!((done.status, effects), (0, 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_write_is_resolved_without_a_second_effect() {
    let (done, effects) = restarted("lost_answer", |call| match call.method {
        Method::PATCH => ProxyBehavior::DropResponse,
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (0, 1), "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied");
    assert_eq!(answer["replayed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_write_is_retried() {
    let (done, effects) = restarted("lost_request", |call| match call.method {
        Method::PATCH if call.number == 0 => ProxyBehavior::DropRequest,
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (0, 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_cannot_be_read_is_reported_as_unknown() {
    let (done, effects) = restarted("unknown", |call| match call.method {
        Method::PATCH => ProxyBehavior::DropResponse,
        // The program reads the target, its environment and the kill switch, and writes the claim.
        Method::GET if call.number >= 5 => ProxyBehavior::DropRequest,
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (69, 1), "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["code"], "outcome_unknown");
    assert_eq!(answer["retryable"], false);
    assert!(answer["hint"].as_str().expect("has one").contains("kubectl -n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_error_after_the_commit_is_resolved() {
    let (done, effects) = restarted("late_504", |call| match call.method {
        Method::PATCH if call.number == 0 => ProxyBehavior::Respond(504, "still processing"),
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (0, 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_retried() {
    let (done, effects) = restarted("busy_server", |call| match call.number {
        0 | 1 => ProxyBehavior::Respond(429, "slow down"),
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (0, 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_busy_is_reported_with_retry_after() {
    let (done, effects) =
        restarted("always_busy", |_| ProxyBehavior::Respond(503, "overloaded")).await;
    assert_eq!((done.status, effects), (75, 0), "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["code"], "cluster_unavailable");
    assert!(answer["retry_after_seconds"].as_u64().is_some_and(|seconds| seconds > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_times_out_within_the_deadline() {
    let (done, effects) = restarted("silent", |_| ProxyBehavior::Hang).await;
    assert_eq!((done.status, effects), (75, 0), "{done:?}");
    assert_eq!(done.answer()["code"], "cluster_unreachable");
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_an_answer_is_unknown_within_the_deadline() {
    let (done, effects) = restarted("silent_write", |call| match call.method {
        Method::GET if call.number < 5 => ProxyBehavior::Forward,
        Method::POST => ProxyBehavior::Forward,
        _ => ProxyBehavior::Hang,
    })
    .await;
    assert_eq!((done.status, effects), (69, 0), "{done:?}");
    assert_eq!(done.answer()["code"], "outcome_unknown");
    assert!(done.took < Duration::from_secs(6), "{:?}", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_an_error_even_for_a_simulation() {
    let namespace = shared().namespace("unreachable").await;
    let kubeconfig = kubeconfig(&namespace, "127.0.0.1:9".parse().expect("is one"));
    let mut request = restart(&namespace);
    request["simulate"] = true.into();
    let done = send(kubeconfig, request).await;
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "cluster_unreachable");
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_deletion_is_resolved() {
    let namespace = shared().namespace("lost_deletion").await;
    namespace.running_deployment("web", 1).await;
    let pod = namespace.pods_of("web").await.remove(0);
    let kubeconfig = proxy(&namespace, |call| match call.method {
        Method::DELETE => ProxyBehavior::DropResponse,
        _ => ProxyBehavior::Forward,
    })
    .await;
    let request = json!({
        "type": "restart_pod", "simulate": false, "wait": true,
        "parameters": { "pod_name": pod.name_any(), "namespace": namespace.name() },
    });
    let done = send(kubeconfig, request).await;
    // A pod that is gone does not show who deleted it.
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["code"], "outcome_unknown");
    assert!(done.answer()["detail"].as_str().expect("has one").contains("is gone"), "{done:?}");
    let after = eventually("there is one pod again", async || {
        let pods = namespace.pods_of("web").await;
        (pods.len() == 1).then_some(pods)
    })
    .await;
    assert_ne!(after[0].uid(), pod.uid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_by_admission_is_quoted() {
    let (done, effects) = restarted("admission", |call| match call.method {
        Method::PATCH => {
            ProxyBehavior::Respond(403, "admission webhook \"freeze\" denied the request")
        }
        _ => ProxyBehavior::Forward,
    })
    .await;
    assert_eq!((done.status, effects), (69, 0), "{done:?}");
    assert_eq!(done.answer()["code"], "rejected_by_cluster");
    assert!(done.answer()["detail"].as_str().expect("has one").contains("freeze"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_before_any_write_leaves_no_outcome() {
    let namespace = shared().namespace("early_signal").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Hang).await;
    let request = restart(&namespace);
    let run = move || {
        let program = Program::with_kubeconfig(&kubeconfig).input(request.to_string());
        let running = program.start();
        std::thread::sleep(Duration::from_millis(500));
        running.signal("TERM");
        running.wait()
    };
    let done = tokio::task::spawn_blocking(run).await.expect("it ran");
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "shutting_down");
    assert!(done.took < Duration::from_secs(3), "{:?}", done.took);
}

/// Sends each of several requests through a proxy that drops responses to writes at random, until it is
/// answered. Each must have taken effect once.
#[test]
fn answers_lost_at_random_never_cause_a_second_effect() {
    let tries = if rounds() > 1 { 250 } else { 6 };
    for_each_action(async |kind| {
        let mut random = Random::new(&format!("lost_at_random {}", kind.name()));
        for number in 0..tries {
            let scenario = Scenario::new(kind, "lossy").await;
            let lost: Vec<_> = (0..64).map(|_| random.below(3) == 0).collect();
            let kubeconfig = proxy(&scenario.namespace, move |call| {
                if call.is_write() && lost[call.number % lost.len()] {
                    ProxyBehavior::DropResponse
                } else {
                    ProxyBehavior::Forward
                }
            })
            .await;
            let request = scenario.request(&format!("r{number}"));
            let first = send(kubeconfig, request.clone()).await;
            // A request without an answer through the proxy gets one directly.
            let honest = Program::with_kubeconfig(scenario.namespace.kubeconfig());
            let again = honest.args(["--join"]).input(request.to_string());
            let again = tokio::task::spawn_blocking(|| again.run()).await.expect("it ran");
            assert_eq!(scenario.effects().await, 1, "{first:?} {again:?}");
            if !is_deletion(kind) || again.status == 0 {
                assert_eq!(again.status, 0, "{first:?} {again:?}");
                continue;
            }
            assert_eq!(again.answer()["code"], "outcome_unknown", "{first:?} {again:?}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_pod_of_the_same_name_is_never_deleted() {
    for _ in 0..if rounds() > 1 { 1000 } else { 5 } {
        let namespace = shared().namespace("recreated").await;
        namespace.running_stateful_set("db", 1).await;
        let pods = namespace.api::<Pod>();
        let old = pods.get("db-0").await.expect("is there").uid();
        let (administrator, handle) = (pods.clone(), tokio::runtime::Handle::current());
        let before = old.clone();
        let kubeconfig = proxy(&namespace, move |call| {
            if call.method == Method::DELETE {
                // Someone else replaces the pod between the executor's read and its deletion.
                let replace = async {
                    let now = DeleteParams::default().grace_period(0);
                    administrator.delete("db-0", &now).await.expect("is deleted");
                    eventually("it is back", async || {
                        let pod = administrator.get_opt("db-0").await.expect("is read")?;
                        (pod.uid() != before).then_some(())
                    })
                    .await;
                };
                tokio::task::block_in_place(|| handle.block_on(replace));
            }
            ProxyBehavior::Forward
        })
        .await;
        let request = json!({
            "type": "restart_pod", "simulate": false, "id": "r1",
            "parameters": { "pod_name": "db-0", "namespace": namespace.name() },
        });
        // The default timeout applies: the StatefulSet controller may be slow.
        let program = Program::with_kubeconfig(&kubeconfig).input(request.to_string());
        let done = tokio::task::spawn_blocking(|| program.run()).await.expect("it ran");
        // Something between may have sent the deletion twice, so the refusal does not show who deleted it.
        assert_eq!(done.status, 69, "{done:?}");
        assert_eq!(done.answer()["code"], "outcome_unknown");
        // A retry must not delete it either.
        let again = send(namespace.kubeconfig().to_owned(), request).await;
        assert_eq!(again.answer()["code"], "outcome_unknown", "{again:?}");
        // The other deletion succeeded and the executor's did not: it met the new pod, or none if a late kwok
        // deleted that one too.
        let statuses = eventually("the deletions are in the log", async || {
            let statuses = deletions(&namespace, "db-0");
            (statuses.len() >= 2).then_some(statuses)
        })
        .await;
        assert!(matches!(statuses[..], [200, 404 | 409]), "{statuses:?} {done:?}");
    }
}

/// The API server's response to each deletion of this pod, from its audit log. kwok's deletions are left out:
/// it acts as the kubelet, and may be late.
fn deletions(namespace: &Namespace, pod: &str) -> Vec<u64> {
    let mut answers: Vec<_> = shared()
        .audit_entries(0, namespace.name())
        .into_iter()
        .filter(|entry| entry["verb"] == "delete" && entry["objectRef"]["resource"] == "pods")
        .filter(|entry| entry["objectRef"]["namespace"] == namespace.name())
        .filter(|entry| entry["objectRef"]["name"] == pod)
        .filter(|entry| !entry["userAgent"].as_str().unwrap_or_default().contains("kwok"))
        .filter_map(|entry| entry["responseStatus"]["code"].as_u64())
        .collect();
    answers.sort_unstable();
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_expires_before_its_outcome_is_rewritten() {
    let namespace = shared().namespace("expires").await;
    namespace.running_deployment("web", 1).await;
    let (events, handle) = (namespace.api::<Event>(), tokio::runtime::Handle::current());
    let kubeconfig = proxy(&namespace, move |call| {
        // The claim is created, and the record patched.
        if call.method == Method::PATCH && call.writes("events") {
            let ours = ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
            let expire = async {
                for record in events.list(&ours).await.expect("are listed").items {
                    events.delete(&record.name_any(), &Default::default()).await.expect("goes");
                }
            };
            tokio::task::block_in_place(|| handle.block_on(expire));
        }
        ProxyBehavior::Forward
    })
    .await;
    let mut request = restart(&namespace);
    request["id"] = "r1".into();
    let done = send(kubeconfig, request.clone()).await;
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["warnings"], json!([]));
    let again = send(namespace.kubeconfig().to_owned(), request).await;
    assert_eq!(again.answer()["replayed"], true, "{again:?}");
    assert_eq!(generation(&namespace).await, 2);
}
