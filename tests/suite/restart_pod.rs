//! `restart_pod` on a real API server.

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared},
    program::{Finished, Program},
};

fn send(namespace: &Namespace, pod: &str, fields: Value) -> Finished {
    let mut request = json!({
        "type": "restart_pod",
        "parameters": { "pod_name": pod, "namespace": namespace.name() },
    });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn uid(namespace: &Namespace, pod: &str) -> Option<String> {
    namespace.api::<Pod>().get_opt(pod).await.expect("is read").and_then(|pod| pod.uid())
}

#[tokio::test]
async fn a_restart_deletes_the_pod_and_names_its_controller() {
    let namespace = shared().namespace("pod_deleted").await;
    namespace.running_deployment("web", 2).await;
    let pod = namespace.pods_of("web").await.remove(0);
    let done = send(&namespace, &pod.name_any(), json!({ "simulate": false }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied");
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("ReplicaSet 'web-"), "{result}");
    eventually("the pod is gone", async || {
        uid(&namespace, &pod.name_any()).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_waits_until_the_replacement_is_ready() {
    let namespace = shared().namespace("pod_waits").await;
    namespace.running_deployment("web", 2).await;
    let before = namespace.pods_of("web").await;
    let name = before[0].name_any();
    let done = send(&namespace, &name, json!({ "simulate": false, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let message = done.answer()["rollout"]["message"].as_str().expect("has one").to_owned();
    let after = namespace.pods_of("web").await;
    let new = after.iter().find(|pod| !before.iter().any(|old| old.uid() == pod.uid()));
    assert!(message.contains(&new.expect("there is a new one").name_any()), "{message}");
}

#[tokio::test]
async fn a_stateful_sets_pod_is_replaced_under_its_name() {
    let namespace = shared().namespace("pod_stateful").await;
    namespace.running_stateful_set("db", 2).await;
    let before = uid(&namespace, "db-0").await;
    let done = send(&namespace, "db-0", json!({ "simulate": false, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.answer()["result"].as_str().expect("is one").contains("StatefulSet 'db'"));
    let after = uid(&namespace, "db-0").await;
    assert!(after.is_some() && after != before);
}

#[tokio::test]
async fn pods_of_one_controller_are_found_whatever_labels_each_has_of_its_node_and_role() {
    let namespace = shared().namespace("pod_labels").await;
    namespace.running_deployment("web", 2).await;
    let name = namespace.pods_of("web").await[0].name_any();
    let own = json!({ "topology.kubernetes.io/zone": "zone-of-this-pod", "role": "leader" });
    let labels = Patch::Merge(json!({ "metadata": { "labels": own } }));
    namespace.api::<Pod>().patch(&name, &Default::default(), &labels).await.expect("is patched");
    let evict = json!({ "type": "evict_pod", "simulate": true });
    for fields in [evict, json!({ "simulate": false, "wait": true, "timeout_seconds": 20 })] {
        let done = send(&namespace, &name, fields);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["warnings"], json!([]), "{done:?}");
    }
}

#[tokio::test]
async fn the_only_pod_of_its_controller_is_warned_of() {
    let namespace = shared().namespace("pod_only").await;
    namespace.running_deployment("web", 1).await;
    namespace.running_stateful_set("db", 1).await;
    let web = namespace.pods_of("web").await[0].name_any();
    for pod in [web.as_str(), "db-0"] {
        let done = send(&namespace, pod, json!({ "simulate": true }));
        let warnings = done.answer()["warnings"].to_string();
        assert!(warnings.contains("it is the only pod of "), "{pod}: {warnings}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_new_pod_of_a_stateful_set_does_not_replace_the_one_that_was_restarted() {
    let namespace = shared().namespace("pod_identity").await;
    namespace.running_stateful_set("db", 2).await;
    let pods = namespace.api::<Pod>();
    let held = json!({ "metadata": { "finalizers": ["test.action-executor.dev/held"] } });
    pods.patch("db-1", &Default::default(), &Patch::Merge(held)).await.expect("is held");
    let other = uid(&namespace, "db-0").await;
    let request = json!({
        "type": "restart_pod", "simulate": false, "wait": true, "timeout_seconds": 6,
        "parameters": { "pod_name": "db-1", "namespace": namespace.name() },
    });
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let restart = program.input(request.to_string()).start();
    eventually("the pod is being deleted", async || {
        pods.get("db-1").await.expect("is there").metadata.deletion_timestamp
    })
    .await;
    pods.delete("db-0", &Default::default()).await.expect("is deleted");
    eventually("the other pod is replaced and ready", async || {
        let found = pods.get_opt("db-0").await.expect("is read")?;
        let conditions = found.status.clone()?.conditions?;
        let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
        (found.uid() != other && is_ready).then_some(())
    })
    .await;
    let done = restart.wait();
    assert_eq!(done.status, 69, "{done:?}");
    let message = done.answer()["rollout"]["message"].to_string();
    assert!(message.contains("has not created a new pod yet"), "{message}");
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch("db-1", &Default::default(), &unset).await.expect("is released");
}

#[tokio::test]
async fn a_pod_without_a_controller_is_refused() {
    let namespace = shared().namespace("pod_bare").await;
    namespace.bare_pod("lonely").await;
    for simulate in [true, false] {
        let done = send(&namespace, "lonely", json!({ "simulate": simulate }));
        assert_eq!(done.status, 69, "{done:?}");
        assert_eq!(done.answer()["code"], "target_unmanaged");
    }
    assert!(uid(&namespace, "lonely").await.is_some());
}

#[tokio::test]
async fn another_pod_of_the_same_name_is_never_deleted() {
    let namespace = shared().namespace("pod_uid").await;
    namespace.running_stateful_set("db", 1).await;
    let old = uid(&namespace, "db-0").await.expect("is there");
    assert_eq!(send(&namespace, "db-0", json!({ "simulate": false, "wait": true })).status, 0);
    let new = uid(&namespace, "db-0").await;
    let asked = json!({ "simulate": false, "precondition": { "uid": old } });
    let done = send(&namespace, "db-0", asked);
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["code"], "precondition_failed");
    assert_eq!(uid(&namespace, "db-0").await, new);
}

#[tokio::test]
async fn a_simulation_deletes_nothing() {
    let namespace = shared().namespace("pod_simulation").await;
    namespace.running_deployment("web", 1).await;
    let pod = namespace.pods_of("web").await.remove(0);
    let done = send(&namespace, &pod.name_any(), json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    assert_eq!(answer["changes"][0]["to"], Value::Null);
    let after = namespace.api::<Pod>().get(&pod.name_any()).await.expect("is there");
    assert_eq!(after.resource_version(), pod.resource_version());
}

#[tokio::test]
async fn a_restart_keeps_the_grace_period_and_skips_a_terminating_pod() {
    let namespace = shared().namespace("pod_grace").await;
    namespace.running_deployment("web", 1).await;
    let slow = json!({ "spec": { "template": {
        "metadata": { "annotations": { "test.action-executor.dev/slow-delete": "true" } },
        "spec": { "terminationGracePeriodSeconds": 47 },
    }}});
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    deployments.patch("web", &Default::default(), &Patch::Merge(slow)).await.expect("is patched");
    namespace.rolled_out("web").await;
    let name = namespace.pods_of("web").await[0].name_any();
    assert_eq!(send(&namespace, &name, json!({ "simulate": false })).status, 0);
    let going = namespace.api::<Pod>().get(&name).await.expect("is still there");
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(47));
    let done = send(&namespace, &name, json!({ "simulate": false }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["outcome"], "unchanged");
}

#[tokio::test]
async fn a_missing_replacement_is_a_failure() {
    let namespace = shared().namespace("pod_broken").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let name = eventually("there is a pod", async || {
        namespace.pods_of("web").await.first().map(ResourceExt::name_any)
    })
    .await;
    let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 3 });
    let done = send(&namespace, &name, asked);
    assert_eq!(done.status, 69, "{done:?}");
    let problems = done.answer()["rollout"]["problems"].to_string();
    assert!(problems.contains("ImagePullBackOff"), "{problems}");
}

#[tokio::test]
async fn a_missing_pod_is_reported() {
    let namespace = shared().namespace("pod_missing").await;
    let done = send(&namespace, "nobody", json!({ "simulate": false }));
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["code"], "target_not_found");
}

/// Sets the status of a pod, as its kubelet or the node controller does.
async fn set_status(namespace: &Namespace, pod: &str, status: Value) {
    let patch = Patch::Strategic(json!({ "status": status }));
    let pods = namespace.api::<Pod>();
    pods.patch_status(pod, &Default::default(), &patch).await.expect("is patched");
}

#[tokio::test]
async fn a_wait_for_the_restart_of_a_pod_that_has_a_successor_ends_once_it_is_gone() {
    for (phase, reason) in
        [("Failed", json!("Evicted")), ("Failed", Value::Null), ("Succeeded", Value::Null)]
    {
        let namespace = shared().namespace("pod_over").await;
        namespace.running_deployment("web", 1).await;
        let pod = namespace.pods_of("web").await.remove(0).name_any();
        set_status(&namespace, &pod, json!({ "phase": phase, "reason": reason })).await;
        eventually("it has a successor", async || {
            let pods = namespace.pods_of("web").await;
            pods.iter().any(|it| it.name_any() != pod).then_some(())
        })
        .await;
        let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 20 });
        let done = send(&namespace, &pod, asked);
        assert_eq!(done.status, 0, "{phase} {reason}: {done:?}");
        let answer = done.answer();
        assert_eq!(answer["rollout"]["message"], format!("pod '{pod}' is gone"), "{answer}");
        assert!(answer["result"].to_string().contains("has replaced it already"), "{answer}");
        assert!(answer["warnings"].to_string().contains(phase), "{answer}");
        assert_eq!(uid(&namespace, &pod).await, None);
    }
}

#[tokio::test]
async fn a_wait_for_a_pod_that_is_being_deleted_ends_once_it_is_gone() {
    let namespace = shared().namespace("pod_leaving").await;
    namespace.running_deployment("web", 1).await;
    let slow = json!({ "spec": { "template": {
        "metadata": { "annotations": { "test.action-executor.dev/slow-delete": "true" } },
        "spec": { "terminationGracePeriodSeconds": 30 },
    }}});
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    deployments.patch("web", &Default::default(), &Patch::Merge(slow)).await.expect("is patched");
    namespace.rolled_out("web").await;
    let pod = namespace.pods_of("web").await[0].name_any();
    namespace.api::<Pod>().delete(&pod, &Default::default()).await.expect("is deleted");
    eventually("it has a successor", async || {
        (!namespace.pods_of("web").await.is_empty()).then_some(())
    })
    .await;
    let done =
        send(&namespace, &pod, json!({ "simulate": false, "wait": true, "timeout_seconds": 20 }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["message"], format!("pod '{pod}' is gone"), "{done:?}");
}

#[tokio::test]
async fn a_stateful_set_that_waits_for_a_broken_pod_of_a_lower_ordinal_is_warned_of() {
    let namespace = shared().namespace("pod_ordered").await;
    namespace.running_stateful_set("db", 3).await;
    namespace.set_ready("db-1", false).await;
    namespace.ready_stateful_set("db", 2).await;
    let name = namespace.name();
    let requests = |more: i32| {
        [
            (
                json!({ "type": "restart_pod", "parameters": { "pod_name": "db-2", "namespace": name } }),
                true,
            ),
            (
                json!({ "type": "restart_pod", "parameters": { "pod_name": "db-0", "namespace": name } }),
                false,
            ),
            (
                json!({ "type": "restart_statefulset", "parameters": { "statefulset": "db", "namespace": name } }),
                true,
            ),
            (
                json!({ "type": "scale", "parameters": {
                    "kind": "StatefulSet", "name": "db", "namespace": name, "replicas": more,
                }}),
                true,
            ),
            (
                json!({ "type": "scale", "parameters": {
                    "kind": "StatefulSet", "name": "db", "namespace": name, "replicas": 1,
                }}),
                false,
            ),
        ]
    };
    let is_warned = |request: &Value| {
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        let done = program.input(request.to_string()).run();
        assert_eq!(done.status, 0, "{request}: {done:?}");
        done.answer()["warnings"].to_string().contains("until db-1 is ready")
    };
    for (request, expected) in requests(4) {
        assert_eq!(is_warned(&request), expected, "{request}");
    }
    namespace.set_ready("db-1", true).await;
    namespace.ready_stateful_set("db", 3).await;
    for (request, _) in requests(4) {
        assert!(!is_warned(&request), "{request}");
    }
}
