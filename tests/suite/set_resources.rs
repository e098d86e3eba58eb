//! `set_resources` on a real API server.

use action_executor::k8s::workload::WorkloadKind;
use k8s_openapi::api::core::v1::{LimitRange, ResourceQuota};
use kube::api::{DynamicObject, Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, private},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::{extended, running, workload},
};

const KINDS: [WorkloadKind; 3] =
    [WorkloadKind::Deployment, WorkloadKind::StatefulSet, WorkloadKind::DaemonSet];

/// Amounts that the default policy would not allow where there are none.
const BOUNDED: &str = "resources: {max_cpu: '4', max_memory: 4Gi}";

fn request(namespace: &Namespace, kind: WorkloadKind, amounts: &Value, fields: Value) -> Value {
    let mut amounts = amounts.clone();
    amounts["container"] = "main".into();
    let request = json!({
        "type": "set_resources", "simulate": false,
        "parameters": {
            "kind": kind.name(), "name": "web", "namespace": namespace.name(), "resources": [amounts],
        },
    });
    let part = |name: &str| fields.get(name).cloned().unwrap_or_else(|| json!({}));
    extended(request, part("parameters"), part("request"))
}

fn send(namespace: &Namespace, policy: &str, request: &Value) -> Finished {
    let policy = namespace.policy(policy);
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    program.input(request.to_string()).run()
}

fn resources(found: &DynamicObject) -> &Value {
    &found.data["spec"]["template"]["spec"]["containers"][0]["resources"]
}

#[tokio::test]
async fn resources_leave_the_same_state_as_with_kubectl_for_each_kind() {
    for kind in KINDS {
        let (ours, theirs) =
            tokio::join!(running("resources_ours", kind), running("resources_theirs", kind));
        let wait = json!({ "request": { "wait": true, "timeout_seconds": 60 } });
        // As a person writes them; the API server stores 500m, 1536Mi and 1.
        let amounts =
            json!({ "cpu_request": "0.5", "memory_request": "1.5Gi", "cpu_limit": "1000m" });
        let done = send(&ours, BOUNDED, &request(&ours, kind, &amounts, wait.clone()));
        assert_eq!(done.status, 0, "{done:?}");
        let object = format!("{}/web", kind.for_kubectl());
        let requests = ["--requests=cpu=0.5,memory=1.5Gi", "--limits=cpu=1000m"];
        kubectl(&theirs, &["set", "resources", &object, requests[0], requests[1]]);
        let (found, theirs) = (workload(&ours, kind).await, workload(&theirs, kind).await);
        assert_eq!(resources(&found)["requests"], json!({ "cpu": "500m", "memory": "1536Mi" }));
        assert_eq!(found.data["spec"], theirs.data["spec"], "{}", kind.name());
        assert_eq!(found.metadata.generation, Some(2));
        let answer = done.answer();
        assert_eq!(answer["rollout"]["state"], "complete", "{answer}");
        // What was sent is what is stored.
        assert!(!answer["warnings"].to_string().contains("the cluster stored"), "{answer}");
        let again = send(&ours, BOUNDED, &request(&ours, kind, &amounts, wait));
        assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
    }
}

#[tokio::test]
async fn the_policy_bounds_each_amount_also_of_a_limited_simulation() {
    let kind = WorkloadKind::Deployment;
    let namespace = running("resources_policy", kind).await;
    let set = json!({ "memory_limit": "64Mi" });
    let done = send(&namespace, BOUNDED, &request(&namespace, kind, &set, json!({})));
    assert_eq!(done.status, 0, "{done:?}");
    for (policy, amounts, denied_by) in [
        ("{}", json!({ "memory_limit": "128Mi" }), None),
        ("{}", json!({ "memory_limit": "129Mi" }), Some("resources.max_factor")),
        ("{}", json!({ "memory_limit": "31Mi" }), Some("resources.max_factor")),
        ("{}", json!({ "cpu_limit": "1m" }), Some("resources.max_cpu")),
        ("{max_factor: 4}", json!({ "memory_limit": "129Mi" }), None),
        ("{max_memory: 100Mi}", json!({ "memory_limit": "101Mi" }), Some("resources.max_memory")),
        ("{max_cpu: '1'}", json!({ "cpu_request": "1001m" }), Some("resources.max_cpu")),
        ("{max_cpu: '1'}", json!({ "cpu_request": "1" }), None),
    ] {
        let rules = format!("resources: {policy}\nsimulation: {{limited: true}}");
        let simulate = json!({ "request": { "simulate": true } });
        let done = send(&namespace, &rules, &request(&namespace, kind, &amounts, simulate));
        match denied_by {
            None => assert_eq!(done.status, 0, "{policy} {amounts}: {done:?}"),
            Some(rule) => {
                assert_eq!(done.answer()["code"], "policy_denied", "{policy} {amounts}: {done:?}");
                assert!(done.answer()["detail"].to_string().contains(rule), "{rule}: {done:?}");
            }
        }
    }
    assert_eq!(resources(&workload(&namespace, kind).await)["limits"], json!({ "memory": "64Mi" }));
}

#[tokio::test]
async fn obstacles_to_new_pods_are_warned_of() {
    let kind = WorkloadKind::Deployment;
    let namespace = running("resources_limits", kind).await;
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": { "name": "team" }, "spec": { "hard": { "limits.memory": "256Mi" } },
    }))
    .expect("is a quota");
    let quotas = namespace.api::<ResourceQuota>();
    quotas.create(&Default::default(), &quota).await.expect("is created");
    eventually("the quota is counted", async || {
        quotas.get("team").await.expect("is there").status?.used.map(drop)
    })
    .await;
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": { "name": "sizes" },
        "spec": { "limits": [{ "type": "Container", "max": { "memory": "512Mi" } }] },
    }))
    .expect("is a range");
    let ranges = namespace.api::<LimitRange>();
    ranges.create(&Default::default(), &range).await.expect("is created");
    let simulate = json!({ "request": { "simulate": true } });
    let amounts = json!({ "memory_limit": "1Gi", "memory_request": "1Gi" });
    let done = send(&namespace, BOUNDED, &request(&namespace, kind, &amounts, simulate));
    let warnings = done.answer()["warnings"].to_string();
    for expected in [
        "quota 'team' has 256Mi of limits.memory left, and the pods need 1Gi more in all",
        "LimitRange 'sizes' allows at most 512Mi of memory",
        "from BestEffort to Burstable",
        "container 'main' gets less memory than it may use now",
    ] {
        assert!(warnings.contains(expected), "{expected}: {warnings}");
    }
    // And this is what happens then.
    let wait = json!({
        "parameters": { "rollback_on_failure": true },
        "request": { "wait": true, "timeout_seconds": 5 },
    });
    let done = send(&namespace, BOUNDED, &request(&namespace, kind, &amounts, wait));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert!(answer["rollout"]["problems"].to_string().contains("512Mi"), "{answer}");
    assert_eq!(answer["rolled_back"]["rollout"]["state"], "complete", "{answer}");
    assert_eq!(*resources(&workload(&namespace, kind).await), json!({}));
}

#[tokio::test]
async fn nodes_that_are_all_too_small_are_named_where_they_may_be_listed() {
    let kind = WorkloadKind::Deployment;
    // Other tests create nodes whose size is unknown.
    let cluster = private();
    let namespace = cluster.namespace("resources_nodes").await;
    namespace.running_deployment("web", 1).await;
    let simulate = json!({ "request": { "simulate": true } });
    let huge = json!({ "memory_request": "1Pi" });
    let policy = "resources: {max_memory: 2Pi}";
    let done = send(&namespace, policy, &request(&namespace, kind, &huge, simulate));
    let warnings = done.answer()["warnings"].to_string();
    assert!(
        warnings.contains("no node can hold a pod that requests 0 of cpu and 1Pi"),
        "{warnings}"
    );
}

#[tokio::test]
async fn a_limit_that_another_client_lowers_meanwhile_is_not_passed_by() {
    // The request is judged against what is there when it acts, not against what its author read.
    let kind = WorkloadKind::Deployment;
    let namespace = running("resources_lowered", kind).await;
    let set = |limit: &str| {
        let container = json!({ "name": "main", "resources": { "limits": { "memory": limit } } });
        Patch::Strategic(
            json!({ "spec": { "template": { "spec": { "containers": [container] } } } }),
        )
    };
    let objects = namespace.objects(&kind.resource());
    objects.patch("web", &Default::default(), &set("64Mi")).await.expect("is patched");
    let double = json!({ "memory_limit": "128Mi" });
    let simulate = json!({ "request": { "simulate": true } });
    let simulated = send(&namespace, "", &request(&namespace, kind, &double, simulate));
    assert_eq!(simulated.status, 0, "{simulated:?}");
    objects.patch("web", &Default::default(), &set("32Mi")).await.expect("is patched");
    let done = send(&namespace, "", &request(&namespace, kind, &double, json!({})));
    assert_eq!(done.answer()["code"], "policy_denied", "{done:?}");
}
