//! `clean_pods` on a real API server.

use std::time::Duration;

use action_executor::executor::failpoint::Failpoint;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    cluster::{FAILING_IMAGE, Namespace, eventually, shared},
    fault_matrix::charged,
    ledger::kubectl,
    program::{Finished, Program},
    scenario::extended,
};

fn request(namespace: &Namespace, fields: Value) -> Value {
    let request = json!({
        "type": "clean_pods", "simulate": false, "parameters": { "namespace": namespace.name() },
    });
    let part = |name: &str| fields.get(name).cloned().unwrap_or_else(|| json!({}));
    extended(request, part("parameters"), part("request"))
}

fn send(namespace: &Namespace, fields: Value) -> Finished {
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    program.input(request(namespace, fields).to_string()).run()
}

/// The names of the pods, in order, without those that are being deleted.
async fn names(namespace: &Namespace) -> Vec<String> {
    let pods = namespace.api::<Pod>().list(&Default::default()).await.expect("are listed").items;
    let left = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut names: Vec<_> = left.map(ResourceExt::name_any).collect();
    names.sort_unstable();
    names
}

/// Two pods that have failed, one of them evicted, one that has succeeded, and one that runs.
async fn littered(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    for (name, status) in [
        ("evicted", json!({ "phase": "Failed", "reason": "Evicted" })),
        ("failed", json!({ "phase": "Failed" })),
        ("running", json!({})),
        ("succeeded", json!({ "phase": "Succeeded" })),
    ] {
        namespace.bare_pod(name).await;
        let pods = namespace.api::<Pod>();
        eventually("the pod runs", async || {
            let phase = pods.get(name).await.expect("is there").status?.phase?;
            (phase == "Running").then_some(())
        })
        .await;
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(name, &Default::default(), &patch).await.expect("is patched");
    }
    namespace
}

#[tokio::test]
async fn a_cleanup_leaves_the_pods_that_kubectl_leaves() {
    let (ours, theirs) = tokio::join!(littered("clean_ours"), littered("clean_theirs"));
    let fields = json!({ "request": { "wait": true, "timeout_seconds": 30 } });
    let program = Program::with_kubeconfig(ours.kubeconfig()).under(&ours.policy("version: 1"));
    let done = program.input(request(&ours, fields).to_string()).run();
    assert_eq!(done.status, 0, "{done:?}");
    kubectl(&theirs, &["delete", "pods", "--field-selector", "status.phase=Failed"]);
    assert_eq!(names(&ours).await, names(&theirs).await);
    assert_eq!(names(&ours).await, ["running", "succeeded"]);
    let answer = done.answer();
    let result = answer["result"].as_str().expect("is one");
    assert!(result.starts_with("2 finished pods in namespace "), "{result}");
    assert_eq!(answer["rollout"]["message"], "all 2 pods are gone", "{answer}");
    assert_eq!(answer["warnings"], json!([]), "{answer}");
    // The namespace and each pod.
    assert_eq!(charged(&ours).await, 3);
    let again = send(&ours, json!({}));
    assert_eq!((again.status, &again.answer()["outcome"]), (0, &json!("unchanged")), "{again:?}");
}

#[tokio::test]
async fn phase_reason_and_age_choose_the_pods_and_a_simulation_names_them() {
    let namespace = littered("clean_chosen").await;
    let all = names(&namespace).await;
    for (parameters, expected) in [
        (json!({ "pod_reason": "Evicted" }), "evicted (Failed, Evicted)."),
        (json!({ "phases": ["Succeeded"] }), "succeeded (Succeeded)."),
        (
            json!({ "phases": ["Succeeded", "Failed"] }),
            "evicted (Failed, Evicted), failed (Failed), succeeded (Succeeded).",
        ),
        (
            json!({ "older_than_seconds": 3600 }),
            "There are no pods that are Failed for at least 3600 s",
        ),
    ] {
        let fields = json!({ "parameters": parameters, "request": { "simulate": true } });
        let done = send(&namespace, fields);
        assert_eq!(done.status, 0, "{done:?}");
        assert!(done.answer()["result"].to_string().contains(expected), "{expected}: {done:?}");
    }
    assert_eq!(names(&namespace).await, all);
    let done = send(&namespace, json!({ "parameters": { "pod_reason": "Evicted" } }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(names(&namespace).await, ["failed", "running", "succeeded"]);
}

#[tokio::test]
async fn more_pods_than_the_request_accepts_and_a_protected_one_refuse_all() {
    let namespace = littered("clean_refused").await;
    let all = names(&namespace).await;
    let done = send(&namespace, json!({ "parameters": { "max_pods": 1 } }));
    assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
    for (policy, says) in [
        ("targets: {protected: [app=failed]}", "Pod"),
        ("budget: {per_namespace: {actions: 2, within_seconds: 60}}", "its 2 actions"),
    ] {
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        let program = program.under(&namespace.policy(policy));
        let done = program.input(request(&namespace, json!({})).to_string()).run();
        assert_ne!(done.status, 0, "{policy}: {done:?}");
        assert!(done.answer()["detail"].to_string().contains(says), "{policy}: {done:?}");
    }
    assert_eq!(names(&namespace).await, all);
}

#[tokio::test]
async fn pods_of_a_job_that_has_not_finished_stay() {
    let namespace = shared().namespace("clean_jobs").await;
    namespace.job("tried", FAILING_IMAGE, json!({ "backoffLimit": 5 })).await;
    namespace.finished_job("over", FAILING_IMAGE).await;
    eventually("an attempt has failed and is counted", async || {
        let job = namespace.api::<Job>().get("tried").await.expect("is there");
        (job.status?.failed? >= 1).then_some(())
    })
    .await;
    let done = send(&namespace, json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("their Job has not finished"), "{warnings}");
    assert!(warnings.contains("tried-"), "{warnings}");
    let left = names(&namespace).await;
    assert!(left.iter().all(|name| name.starts_with("tried-")) && !left.is_empty(), "{left:?}");
    let over = namespace.api::<Job>().get("over").await.expect("is there");
    assert_eq!(over.status.and_then(|status| status.failed), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_over_deletes_no_pod_that_came_later() {
    for at in [Failpoint::AfterClaim, Failpoint::BeforeWrite, Failpoint::AfterWrite] {
        let namespace = littered("clean_resumed").await;
        let body = request(&namespace, json!({ "request": { "id": "r1" } })).to_string();
        let program = || {
            let program = Program::with_kubeconfig(namespace.kubeconfig());
            program.env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2").input(body.clone())
        };
        let crashed = program().env("ACTION_EXECUTOR_FAILPOINT", at.name()).run();
        assert_eq!(crashed.status, -1, "{crashed:?}");
        namespace.failed_pod("later").await;
        let done = eventually("it is not in progress any more", async || {
            let done = program().run();
            sleep(Duration::from_millis(200)).await;
            (done.status != 75).then_some(done)
        })
        .await;
        assert_eq!(names(&namespace).await, ["later", "running", "succeeded"], "{at:?}: {done:?}");
        let answer = done.answer();
        match at {
            Failpoint::AfterWrite => assert_eq!(answer["code"], "outcome_unknown", "{done:?}"),
            _ => assert_eq!(answer["outcome"], "applied", "{at:?}: {done:?}"),
        }
    }
}

#[tokio::test]
async fn pods_that_the_cluster_does_not_let_go_are_named_with_the_reason() {
    let namespace = littered("clean_denied").await;
    let deletions = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["pods"],
    });
    let validation =
        json!({ "expression": "oldObject.metadata.name != 'failed'", "message": "not on Fridays" });
    namespace.admission_policy("Deny", deletions, validation).await;
    let warnings = eventually("the policy is in effect", async || {
        let done = send(&namespace, json!({ "request": { "simulate": true } }));
        assert_eq!(done.status, 0, "{done:?}");
        let warnings = done.answer()["warnings"].to_string();
        warnings.contains("not on Fridays").then_some(warnings)
    })
    .await;
    assert!(warnings.contains("1 pod would not be deleted"), "{warnings}");
    let only = json!({ "parameters": { "older_than_seconds": 0 }, "request": { "id": "r1" } });
    let done = send(&namespace, only.clone());
    assert_eq!((done.status, &done.answer()["outcome"]), (69, &json!("failed")), "{done:?}");
    assert!(done.answer()["result"].to_string().contains("1 of 2 finished pods"), "{done:?}");
    let rollout = done.answer()["rollout"].clone();
    assert_eq!(rollout["message"], "1 of 2 pods were not deleted", "{rollout}");
    assert!(rollout["problems"].to_string().contains("pod failed: "), "{rollout}");
    assert_eq!(names(&namespace).await, ["failed", "running", "succeeded"]);
    let again = send(&namespace, only);
    assert_eq!(again.answer()["replayed"], true, "{again:?}");
    // Now none of them can go.
    for simulate in [true, false] {
        let done = send(&namespace, json!({ "request": { "simulate": simulate } }));
        assert_eq!(done.answer()["code"], "rejected_by_cluster", "{done:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_once_the_pods_are_gone_and_names_what_holds_them() {
    let namespace = littered("clean_held").await;
    let pods = namespace.api::<Pod>();
    let hold =
        |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    let held = hold(json!(["test.action-executor.dev/held"]));
    pods.patch("failed", &Default::default(), &held).await.expect("is held");
    let waiting = json!({ "request": { "wait": true, "timeout_seconds": 3 } });
    let done = send(&namespace, waiting);
    assert_eq!(done.status, 69, "{done:?}");
    let rollout = done.answer()["rollout"].clone();
    assert_eq!(rollout["message"], "1 of 2 pods are shutting down", "{rollout}");
    assert!(rollout["problems"].to_string().contains("test.action-executor.dev/held"), "{rollout}");
    pods.patch("failed", &Default::default(), &hold(Value::Null)).await.expect("is released");
}

#[tokio::test]
async fn a_namespace_that_is_protected_by_a_label_or_missing_is_refused() {
    let namespace = littered("clean_protected").await;
    let labels = json!({ "metadata": { "labels": { "action-executor.dev/protected": "true" } } });
    let namespaces = namespace.global::<k8s_openapi::api::core::v1::Namespace>();
    let patch = Patch::Merge(labels);
    namespaces.patch(namespace.name(), &Default::default(), &patch).await.expect("is patched");
    let done = send(&namespace, json!({}));
    assert_eq!(done.answer()["code"], "policy_denied", "{done:?}");
    let done = send(&namespace, json!({ "parameters": { "namespace": "nowhere" } }));
    assert_eq!(done.answer()["code"], "target_not_found", "{done:?}");
}
