//! `restart_statefulset` on a real API server.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared, without_restart},
    ledger::kubectl,
    program::{Finished, Program},
};

fn send(namespace: &Namespace, parameters: Value, fields: Value) -> Finished {
    let mut request = json!({
        "type": "restart_statefulset", "simulate": false,
        "parameters": { "statefulset": "db", "namespace": namespace.name() },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("is an object").extend(more);
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn get(namespace: &Namespace) -> StatefulSet {
    namespace.api::<StatefulSet>().get("db").await.expect("is there")
}

async fn patch(namespace: &Namespace, patch: Value) {
    let patch = Patch::Strategic(patch);
    let sets = namespace.api::<StatefulSet>();
    sets.patch("db", &Default::default(), &patch).await.expect("is patched");
}

/// The pods' uids, by name.
async fn pods(namespace: &Namespace) -> BTreeMap<String, String> {
    let pods = namespace.pods_of("db").await.into_iter();
    pods.map(|pod| (pod.name_any(), pod.uid().expect("has one"))).collect()
}

#[tokio::test]
async fn a_restart_waits_until_every_pod_has_the_new_revision_and_is_ready() {
    let namespace = shared().namespace("sts_waits").await;
    namespace.running_stateful_set("db", 2).await;
    let before = pods(&namespace).await;
    let done = send(&namespace, json!({}), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let rollout = &done.answer()["rollout"];
    assert_eq!(rollout["state"], "complete", "{rollout}");
    let status = get(&namespace).await.status.expect("has one");
    let revision = status.update_revision.clone().expect("has one");
    let message = rollout["message"].as_str().expect("is a sentence");
    assert!(message.contains(&format!("2 of 2 pods are of revision {revision}")), "{message}");
    assert_eq!(status.current_revision, status.update_revision);
    let after = pods(&namespace).await;
    assert!(before.iter().all(|(name, uid)| after[name] != *uid), "{before:?} {after:?}");
}

#[tokio::test]
async fn an_on_delete_strategy_is_refused_unless_accepted() {
    let namespace = shared().namespace("sts_on_delete").await;
    namespace.running_stateful_set("db", 1).await;
    patch(
        &namespace,
        json!({ "spec": { "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } } }),
    )
    .await;
    let before = (get(&namespace).await.metadata.generation, pods(&namespace).await);
    for simulate in [true, false] {
        let refused = send(&namespace, json!({}), json!({ "simulate": simulate }));
        assert_eq!(refused.status, 69, "{refused:?}");
        assert_eq!(refused.answer()["code"], "no_effect");
        assert!(refused.answer()["detail"].to_string().contains("OnDelete"));
    }
    assert_eq!((get(&namespace).await.metadata.generation, pods(&namespace).await), before);
    let accepted = json!({ "accept_on_delete": true });
    let done = send(&namespace, accepted, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let message = done.answer()["rollout"]["message"].to_string();
    assert!(message.contains("a pod gets it once the old one is deleted"), "{message}");
    assert_eq!(pods(&namespace).await, before.1);
    // Deleting it creates a pod of the new revision.
    kubectl(&namespace, &["delete", "pod", "db-0", "--wait=false"]);
    eventually("the pod is of the new revision", async || {
        let status = get(&namespace).await.status?;
        (status.updated_replicas == Some(1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_partition_is_reported_and_the_pods_below_it_stay() {
    let namespace = shared().namespace("sts_partition").await;
    namespace.running_stateful_set("db", 2).await;
    let partition = |number: i32| json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": number } } } });
    patch(&namespace, partition(1)).await;
    let before = pods(&namespace).await;
    let done = send(&namespace, json!({}), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("the partition is 1"), "{warnings}");
    let after = pods(&namespace).await;
    assert_eq!(after["db-0"], before["db-0"]);
    assert_ne!(after["db-1"], before["db-1"]);
    patch(&namespace, partition(2)).await;
    let refused = send(&namespace, json!({}), json!({}));
    assert_eq!(refused.answer()["code"], "no_effect", "{refused:?}");
    assert!(refused.answer()["detail"].to_string().contains("covers all 2 pods"));
}

#[tokio::test]
async fn a_pod_that_does_not_start_is_reported_with_its_reason() {
    let namespace = shared().namespace("sts_broken").await;
    namespace.running_stateful_set("db", 1).await;
    patch(
        &namespace,
        json!({ "spec": { "template": { "spec": { "containers": [
            { "name": "main", "image": MISSING_IMAGE },
        ]}}}}),
    )
    .await;
    let done = send(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 4 }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "timed_out", "{answer}");
    assert!(answer["rollout"]["problems"].to_string().contains("ImagePullBackOff"), "{answer}");
}

#[tokio::test]
async fn a_restart_leaves_the_same_state_as_kubectl() {
    let theirs = shared().namespace("sts_kubectl").await;
    let ours = shared().namespace("sts_ours").await;
    for namespace in [&theirs, &ours] {
        namespace.running_stateful_set("db", 2).await;
    }
    kubectl(&theirs, &["rollout", "restart", "statefulset/db"]);
    kubectl(&theirs, &["rollout", "status", "statefulset/db", "--timeout=50s"]);
    assert_eq!(send(&ours, json!({}), json!({ "wait": true })).status, 0);
    let end = async |namespace: &Namespace| {
        let set = get(namespace).await;
        let template = without_restart(set.spec.expect("has one").template);
        let status = set.status.expect("has one");
        let at_rest = status.current_revision == status.update_revision;
        json!([set.metadata.generation, template, at_rest, status.ready_replicas])
    };
    assert_eq!(end(&ours).await, end(&theirs).await);
}

/// Pods count as available this many seconds after they are ready.
async fn set_min_ready_seconds(namespace: &Namespace, seconds: u32) {
    patch(namespace, json!({ "spec": { "minReadySeconds": seconds } })).await;
    eventually("all pods are available", async || {
        let found = get(namespace).await;
        let status = found.status?;
        (status.observed_generation == found.metadata.generation
            && status.available_replicas == found.spec?.replicas)
            .then_some(())
    })
    .await;
}

fn rollback(namespace: &Namespace, fields: Value) -> Value {
    let mut request = json!({
        "type": "rollback", "simulate": false, "wait": true,
        "parameters": { "kind": "StatefulSet", "name": "db", "namespace": namespace.name() },
    });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    request
}

#[tokio::test]
async fn a_restart_and_a_rollback_wait_until_the_pods_are_available() {
    let namespace = shared().namespace("sts_available").await;
    namespace.running_stateful_set("db", 1).await;
    set_min_ready_seconds(&namespace, 6).await;
    let run = |request: Value| {
        Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
    };
    for done in
        [send(&namespace, json!({}), json!({ "wait": true })), run(rollback(&namespace, json!({})))]
    {
        assert_eq!(done.status, 0, "{done:?}");
        assert!(done.took.as_secs_f64() > 5.0, "{done:?}");
        let status = get(&namespace).await.status.expect("has one");
        assert_eq!(status.available_replicas, Some(1), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_crashes_before_it_is_available_is_not_complete_and_neither_is_the_way_back() {
    let namespace = shared().namespace("sts_crashes").await;
    namespace.running_stateful_set("db", 1).await;
    set_min_ready_seconds(&namespace, 8).await;
    let request = json!({
        "type": "restart_statefulset", "simulate": false, "wait": true, "timeout_seconds": 10,
        "parameters": {
            "statefulset": "db", "namespace": namespace.name(), "rollback_on_failure": true,
        },
    });
    let before = pods(&namespace).await;
    let program = Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string());
    let running = program.start();
    eventually("the new pod is ready", async || {
        let status = get(&namespace).await.status?;
        let is_new = pods(&namespace).await != before;
        (is_new && status.ready_replicas == Some(1)).then_some(())
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let crashed = json!({ "status": { "conditions": [
        { "type": "Ready", "status": "False", "reason": "ContainersNotReady" },
    ]}});
    let all = namespace.api::<k8s_openapi::api::core::v1::Pod>();
    let patched = all.patch_status("db-0", &Default::default(), &Patch::Strategic(crashed)).await;
    patched.expect("is patched");
    let done = tokio::task::spawn_blocking(|| running.wait()).await.expect("it ran");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "timed_out", "{answer}");
    // An ordered StatefulSet waits for the pod that crashed before it replaces it.
    let way_back = &answer["rolled_back"]["rollout"];
    let status = get(&namespace).await.status.expect("has one");
    let available = status.available_replicas == Some(1);
    assert_eq!(way_back["state"] == "complete", available, "{answer}");
}
