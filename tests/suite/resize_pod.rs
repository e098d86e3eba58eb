//! `resize_pod` on a real API server. The kubelet's part is written by the tests; on a real node the Jobs show it.

use std::thread;

use k8s_openapi::api::core::v1::{LimitRange, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::extended,
};

fn request(namespace: &Namespace, amounts: &Value, fields: Value) -> Value {
    let mut amounts = amounts.clone();
    amounts["container"] = "main".into();
    let request = json!({
        "type": "resize_pod", "simulate": false,
        "parameters": { "pod_name": "web", "namespace": namespace.name(), "resources": [amounts] },
    });
    extended(request, json!({}), fields)
}

fn program(namespace: &Namespace, request: &Value) -> Program {
    let policy =
        namespace.policy("cooldown_seconds: 0\nresources: {max_cpu: '4', max_memory: 4Gi}");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    program.input(request.to_string())
}

fn send(namespace: &Namespace, request: &Value) -> Finished {
    program(namespace, request).run()
}

/// A running pod that is resized by this test alone.
async fn running(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.running_sized_pod("web", "64Mi").await;
    let annotations = json!({ "test.action-executor.dev/no-resize": "true" });
    let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    let pods = namespace.api::<Pod>();
    pods.patch("web", &Default::default(), &patch).await.expect("is patched");
    namespace
}

async fn pod(namespace: &Namespace) -> Pod {
    namespace.api::<Pod>().get("web").await.expect("is there")
}

fn resources(pod: &Pod) -> Value {
    json!(pod.spec.as_ref().expect("has one").containers[0].resources)
}

/// Writes to the pod's status what a kubelet says of a resize, once the spec has this limit.
async fn kubelet(namespace: &Namespace, limit: &str, status: Value) {
    eventually("the pod is resized", async || {
        (resources(&pod(namespace).await)["limits"]["memory"] == limit).then_some(())
    })
    .await;
    let patch = Patch::Strategic(json!({ "status": status }));
    let pods = namespace.api::<Pod>();
    pods.patch_status("web", &PatchParams::default(), &patch).await.expect("is written");
}

fn resized(limit: &str) -> Value {
    let resources = json!({ "limits": { "memory": limit }, "requests": { "memory": limit } });
    json!({ "containerStatuses": [{
        "name": "main", "image": "a", "imageID": "a", "ready": true, "restartCount": 0,
        "resources": resources,
    }]})
}

fn pending(reason: &str) -> Value {
    json!({ "conditions": [{
        "type": "PodResizePending", "status": "True", "reason": reason, "message": "needs more than there is",
    }]})
}

#[tokio::test]
async fn a_resize_leaves_the_same_state_as_with_kubectl() {
    let (ours, theirs) = tokio::join!(running("resize_ours"), running("resize_theirs"));
    let amounts = json!({ "memory_limit": "0.125Gi", "memory_request": "96Mi" });
    let done = send(&ours, &request(&ours, &amounts, json!({})));
    assert_eq!(done.status, 0, "{done:?}");
    let patch = json!({ "spec": { "containers": [{
        "name": "main", "resources": { "limits": { "memory": "0.125Gi" }, "requests": { "memory": "96Mi" } },
    }]}});
    kubectl(
        &theirs,
        &["patch", "pod", "web", "--subresource", "resize", "--patch", &patch.to_string()],
    );
    let (before, theirs) = (pod(&ours).await, pod(&theirs).await);
    assert_eq!(resources(&before), resources(&theirs));
    assert_eq!(before.metadata.generation, Some(2));
    assert_eq!(done.answer()["warnings"], json!([]), "{done:?}");
    let again = send(&ours, &request(&ours, &amounts, json!({})));
    assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
    assert_eq!(pod(&ours).await.metadata.generation, Some(2));
}

#[tokio::test]
async fn a_wait_ends_with_what_the_kubelet_says() {
    for (name, statuses, status, expected) in [
        ("done", vec![pending("Deferred"), resized("96Mi")], 0, "have their resources"),
        ("never", vec![pending("Infeasible")], 69, "cannot provide these resources: needs more"),
    ] {
        let namespace = running(&format!("resize_wait_{name}")).await;
        let fields = json!({ "wait": true, "timeout_seconds": 30 });
        let waiting = request(
            &namespace,
            &json!({ "memory_limit": "96Mi", "memory_request": "96Mi" }),
            fields,
        );
        let program = program(&namespace, &waiting);
        let run = thread::spawn(move || program.run());
        for said in statuses {
            let mut said = said;
            if said["containerStatuses"].is_array() {
                // The kubelet takes the condition back.
                said["conditions"] = json!([{ "type": "PodResizePending", "$patch": "delete" }]);
            }
            kubelet(&namespace, "96Mi", said).await;
        }
        let done = run.join().expect("has run");
        assert_eq!(done.status, status, "{done:?}");
        assert!(done.answer()["rollout"].to_string().contains(expected), "{done:?}");
    }
}

#[tokio::test]
async fn another_resize_supersedes_one_that_is_waited_for() {
    let namespace = running("resize_superseded").await;
    let fields = json!({ "wait": true, "timeout_seconds": 30 });
    let amounts = json!({ "memory_limit": "96Mi", "memory_request": "96Mi" });
    let program = program(&namespace, &request(&namespace, &amounts, fields));
    let run = thread::spawn(move || program.run());
    kubelet(&namespace, "96Mi", pending("Deferred")).await;
    let container = json!({ "name": "main", "resources": {
        "limits": { "memory": "80Mi" }, "requests": { "memory": "80Mi" },
    }});
    let patch = Patch::Strategic(json!({ "spec": { "containers": [container] } }));
    let pods = namespace.api::<Pod>();
    pods.patch_subresource("resize", "web", &Default::default(), &patch).await.expect("is resized");
    let done = run.join().expect("has run");
    assert_eq!(done.status, 69, "{done:?}");
    assert!(done.answer()["rollout"].to_string().contains("superseded"), "{done:?}");
}

#[tokio::test]
async fn a_simulation_reports_api_server_refusals() {
    let namespace = running("resize_refused").await;
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": { "name": "sizes" },
        "spec": { "limits": [{ "type": "Container", "max": { "memory": "100Mi" } }] },
    }))
    .expect("is a range");
    namespace.api::<LimitRange>().create(&Default::default(), &range).await.expect("is created");
    let more = json!({ "memory_limit": "128Mi", "memory_request": "128Mi" });
    // A limit of CPU beside that of memory would make the pod Guaranteed.
    let class = json!({ "cpu_limit": "1", "cpu_request": "1" });
    for (amounts, expected) in
        [(more, "maximum memory usage per Container is 100Mi"), (class, "QOS Class")]
    {
        for simulate in [true, false] {
            let done =
                send(&namespace, &request(&namespace, &amounts, json!({ "simulate": simulate })));
            let answer = done.answer();
            assert_eq!(answer["code"], "rejected_by_cluster", "{answer}");
            assert!(answer["detail"].to_string().contains(expected), "{expected}: {answer}");
        }
    }
    assert_eq!(pod(&namespace).await.metadata.generation, Some(1));
}
