//! `delete_stuck_pod` on a real API server.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    ledger::kubectl,
    program::{Finished, Program},
};

fn send(namespace: &Namespace, pod: &str, parameters: Value) -> Finished {
    let mut request = json!({
        "type": "delete_stuck_pod", "simulate": false, "wait": true,
        "parameters": { "pod_name": pod, "namespace": namespace.name(), "overdue_seconds": 10 },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("are parameters").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn pod(namespace: &Namespace, name: &str) -> Option<Pod> {
    namespace.api::<Pod>().get_opt(name).await.expect("is read")
}

#[tokio::test]
async fn a_stuck_pod_ends_in_the_same_state_as_with_kubectl() {
    let (ours, theirs) =
        tokio::join!(shared().namespace("stuck_ours"), shared().namespace("stuck_theirs"));
    tokio::join!(ours.stuck_pod("web"), theirs.stuck_pod("web"));
    // A deletion within the grace period changes nothing.
    let restarted = json!({
        "type": "restart_pod", "simulate": false,
        "parameters": { "pod_name": "web", "namespace": ours.name() },
    });
    let restarted =
        Program::with_kubeconfig(ours.kubeconfig()).input(restarted.to_string()).run().answer();
    assert_eq!(restarted["code"], "target_unmanaged", "{restarted}");
    assert!(pod(&ours, "web").await.is_some());
    let done = send(&ours, "web", json!({}));
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("applied"), &json!("complete")),
        "{answer}"
    );
    assert!(answer["warnings"].to_string().contains("no container is stopped"), "{answer}");
    kubectl(&theirs, &["delete", "pod", "web", "--force", "--grace-period=0"]);
    assert!(pod(&ours, "web").await.is_none() && pod(&theirs, "web").await.is_none());
    assert_eq!(send(&ours, "web", json!({})).answer()["code"], "target_not_found");
}

#[tokio::test]
async fn a_pod_that_is_not_stuck_is_refused_with_the_reason() {
    let namespace = shared().namespace("stuck_not").await;
    namespace.stuck_pod("web").await;
    let refused = |done: Finished, code: &str, part: &str| {
        assert_eq!(done.answer()["code"], code, "{done:?}");
        assert!(done.answer()["detail"].to_string().contains(part), "{done:?}");
    };
    refused(
        send(&namespace, "web", json!({ "overdue_seconds": 3600 })),
        "precondition_failed",
        "not stuck before",
    );
    namespace.bare_pod("other").await;
    refused(send(&namespace, "other", json!({})), "precondition_failed", "is not being deleted");
    let pods = namespace.api::<Pod>();
    let finalizers = |list: Value| Patch::Merge(json!({ "metadata": { "finalizers": list } }));
    // A finalizer cannot be added to a pod that is being deleted.
    let held = json!({ "name": "held", "finalizers": ["example.com/keep"] });
    namespace.pod_on_lost_node(held).await;
    namespace.delete_and_wait("held").await;
    refused(send(&namespace, "held", json!({})), "no_effect", "example.com/keep");
    pods.patch("held", &Default::default(), &finalizers(Value::Null)).await.expect("is patched");
    // The kubelet reports again.
    let ready =
        json!({ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-31T12:00:00Z" });
    let patch = Patch::Strategic(json!({ "status": { "conditions": [ready] } }));
    let nodes = namespace.global::<Node>();
    nodes.patch_status(namespace.name(), &Default::default(), &patch).await.expect("is patched");
    refused(send(&namespace, "web", json!({})), "precondition_failed", "is ready");
    assert!(pod(&namespace, "web").await.is_some());
}

#[tokio::test]
async fn a_pod_of_a_stateful_set_needs_acceptance_and_is_made_again() {
    let namespace = shared().namespace("stuck_set").await;
    namespace.lost_node().await;
    // The StatefulSet adopts a pod of its name wherever it runs.
    namespace.pod_on_lost_node(json!({ "name": "db-0", "labels": { "app": "db" } })).await;
    namespace.stateful_set("db", 1).await;
    eventually("the StatefulSet has the pod", async || {
        pod(&namespace, "db-0").await.filter(|pod| !pod.owner_references().is_empty())
    })
    .await;
    let stuck = pod(&namespace, "db-0").await.expect("is there").uid();
    namespace.delete_and_wait("db-0").await;
    let done = send(&namespace, "db-0", json!({}));
    assert_eq!(done.answer()["code"], "target_managed", "{done:?}");
    assert_eq!(done.answer()["field"], "parameters.accept_running_twice");
    let done = send(&namespace, "db-0", json!({ "accept_running_twice": true }));
    assert_eq!(done.answer()["outcome"], "applied", "{done:?}");
    eventually("the StatefulSet has made the next one", async || {
        pod(&namespace, "db-0").await.filter(|pod| pod.uid() != stuck)
    })
    .await;
}
