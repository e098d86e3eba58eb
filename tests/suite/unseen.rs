//! Reads that the cluster refuses while a request waits: what was not read has not failed, and undoes nothing.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Patch;
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::Instant};

use crate::{
    cluster::{GOOD_IMAGE, Namespace, SLOW_IMAGE, shared},
    fault_proxy::{ProxyBehavior, proxy},
    program::{Finished, Program},
    scenario::for_each,
};

/// How a read fails: each of these is an answer that a healthy cluster gives now and then, behind a proxy, while
/// RBAC is changed, while a token is renewed.
const REFUSALS: [(&str, ProxyBehavior); 5] = [
    ("401", ProxyBehavior::Respond(401, "Unauthorized")),
    ("403", ProxyBehavior::Respond(403, "User \"x\" cannot get resource \"y\" in API group \"\"")),
    ("403 of a webhook", ProxyBehavior::Respond(403, "denied")),
    ("400", ProxyBehavior::Respond(400, "bad request")),
    ("unreadable", ProxyBehavior::RespondBody("{\"kind\": <html>")),
];

async fn send(kubeconfig: &Path, request: &Value) -> Finished {
    let program = Program::with_kubeconfig(kubeconfig).input(request.to_string());
    spawn_blocking(move || program.run()).await.expect("it ran")
}

async fn slow_deployment(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    namespace
}

fn restart(namespace: &Namespace, seconds: u32) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "timeout_seconds": seconds, "id": "r1",
        "parameters": {
            "deployment": "web", "namespace": namespace.name(), "rollback_on_failure": true,
        },
    })
}

#[test]
fn one_refused_read_does_not_fail_a_rollout() {
    for_each(&REFUSALS, async |(name, refusal)| {
        let namespace = slow_deployment("one_look").await;
        let (changed, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kubeconfig = proxy(&namespace, move |call| {
            let path = call.path.as_str();
            if call.writes("deployments") {
                changed.store(true, Ordering::SeqCst);
            } else if changed.load(Ordering::SeqCst)
                && path.ends_with("/deployments/web")
                && reads.fetch_add(1, Ordering::SeqCst) < 2
            {
                return refusal.clone();
            }
            ProxyBehavior::Forward
        })
        .await;
        let done = send(&kubeconfig, &restart(&namespace, 60)).await;
        assert_eq!(done.status, 0, "{name}: {done:?}");
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{name}");
        let annotations = namespace.get_deployment("web").await.spec.expect("has one");
        let annotations = annotations.template.metadata.and_then(|it| it.annotations);
        assert!(annotations.expect("are there").contains_key("action-executor.dev/request-id"));
    });
}

#[test]
fn a_rollout_that_cannot_be_seen_is_not_complete_and_not_rolled_back() {
    for_each(&REFUSALS, async |(name, refusal)| {
        let namespace = shared().namespace("no_look").await;
        namespace.running_deployment("web", 1).await;
        let changed = AtomicBool::new(false);
        let kubeconfig = proxy(&namespace, move |call| {
            if call.writes("deployments") {
                changed.store(true, Ordering::SeqCst);
            } else if changed.load(Ordering::SeqCst) && call.path.ends_with("/deployments/web") {
                return refusal.clone();
            }
            ProxyBehavior::Forward
        })
        .await;
        let done = send(&kubeconfig, &restart(&namespace, 3)).await;
        assert_eq!(done.status, 69, "{name}: {done:?}");
        let answer = done.answer();
        assert_eq!(answer["rollout"]["state"], "timed_out", "{name}: {answer}");
        assert!(answer.get("rolled_back").is_none(), "{name}: {answer}");
        let message = answer["rollout"]["message"].as_str().expect("is a sentence");
        assert!(message.contains("could not be read"), "{name}: {message}");
        assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(2), "{name}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_completed_unseen_is_not_rolled_back() {
    // Every read of the wait is refused, and the read before the rollback is not.
    let namespace = shared().namespace("seen_late").await;
    namespace.running_deployment("web", 1).await;
    let began: Arc<OnceLock<Instant>> = Arc::default();
    let kubeconfig = proxy(&namespace, move |call| {
        if call.writes("deployments") {
            began.get_or_init(Instant::now);
        } else if began.get().is_some_and(|began| began.elapsed() < Duration::from_millis(3100))
            && call.path.ends_with("/deployments/web")
        {
            return ProxyBehavior::Respond(401, "Unauthorized");
        }
        ProxyBehavior::Forward
    })
    .await;
    let done = send(&kubeconfig, &restart(&namespace, 3)).await;
    let answer = done.answer();
    assert!(answer.get("rolled_back").is_none(), "{answer}");
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(2), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_read_neither_fails_a_scaling_nor_a_replacement_nor_an_eviction() {
    for action in ["scale", "restart_pod", "evict_pod"] {
        let namespace = shared().namespace("one_look_at").await;
        namespace.running_deployment("web", 2).await;
        let pod = namespace.pods_of("web").await[0].metadata.name.clone().expect("has one");
        let parameters = match action {
            "scale" => json!({ "name": "web", "namespace": namespace.name(), "replicas": 3 }),
            _ => json!({ "pod_name": pod, "namespace": namespace.name() }),
        };
        let (changed, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kubeconfig = proxy(&namespace, move |call| {
            if call.is_effect() {
                changed.store(true, Ordering::SeqCst);
            } else if changed.load(Ordering::SeqCst)
                && !call.path.contains("/events")
                && !call.path.contains("/leases")
                && reads.fetch_add(1, Ordering::SeqCst) < 2
            {
                return ProxyBehavior::Respond(401, "Unauthorized");
            }
            ProxyBehavior::Forward
        })
        .await;
        let request = json!({
            "type": action, "simulate": false, "wait": true, "timeout_seconds": 30, "id": "r1",
            "parameters": parameters,
        });
        let done = send(&kubeconfig, &request).await;
        assert_eq!(done.status, 0, "{action}: {done:?}");
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{action}: {done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_read_of_a_drain_does_not_uncordon_the_node() {
    for always in [false, true] {
        let namespace = shared().namespace("unseen_drain").await.with_image(GOOD_IMAGE);
        namespace.own_node(false).await;
        namespace.replica_set_on_own_node("web", 1, json!({})).await;
        // The pod takes a while to terminate.
        let pods = namespace.api::<Pod>();
        let slow = json!({ "metadata": { "annotations": {
            "test.action-executor.dev/slow-delete": "yes",
        }}});
        for pod in namespace.pods_of("web").await {
            let name = pod.metadata.name.expect("has one");
            pods.patch(&name, &Default::default(), &Patch::Merge(&slow)).await.expect("is patched");
        }
        let (evicted, lists) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kubeconfig = proxy(&namespace, move |call| {
            if call.path.ends_with("/eviction") && !call.is_dry_run {
                evicted.store(true, Ordering::SeqCst);
            } else if evicted.load(Ordering::SeqCst)
                && call.path.ends_with("/pods")
                && (always || lists.fetch_add(1, Ordering::SeqCst) < 2)
            {
                return ProxyBehavior::Respond(401, "Unauthorized");
            }
            ProxyBehavior::Forward
        })
        .await;
        let seconds = if always { 3 } else { 30 };
        let request = json!({
            "type": "drain", "simulate": false, "wait": true, "timeout_seconds": seconds,
            "parameters": { "node": namespace.name(), "uncordon_on_failure": true },
        });
        let done = send(&kubeconfig, &request).await;
        let state = done.answer()["rollout"]["state"].clone();
        assert_eq!(state, if always { "timed_out" } else { "complete" }, "{done:?}");
        let node = namespace.global::<Node>().get(namespace.name()).await.expect("is there");
        assert_eq!(node.spec.and_then(|spec| spec.unschedulable), Some(true), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_reads_become_rare() {
    let namespace = shared().namespace("patient").await;
    namespace.running_deployment("web", 1).await;
    let (changed, reads) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
    let counted = reads.clone();
    let kubeconfig = proxy(&namespace, move |call| {
        if call.writes("deployments") {
            changed.store(true, Ordering::SeqCst);
        } else if changed.load(Ordering::SeqCst) && call.path.ends_with("/deployments/web") {
            counted.fetch_add(1, Ordering::SeqCst);
            return ProxyBehavior::Respond(401, "Unauthorized");
        }
        ProxyBehavior::Forward
    })
    .await;
    send(&kubeconfig, &restart(&namespace, 6)).await;
    let reads = reads.load(Ordering::SeqCst);
    assert!((3..30).contains(&reads), "{reads}");
}
