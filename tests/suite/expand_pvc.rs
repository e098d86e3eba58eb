//! `expand_pvc` on a real API server. The part of the storage driver is written by the tests.

use std::thread;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::extended,
};

fn request(namespace: &Namespace, size: &str, fields: Value) -> Value {
    let request = json!({
        "type": "expand_pvc", "simulate": false,
        "parameters": { "pvc": "data", "namespace": namespace.name(), "size": size },
    });
    extended(request, json!({}), fields)
}

fn program(namespace: &Namespace, rules: &str, request: &Value) -> Program {
    let policy = namespace.policy(&format!("cooldown_seconds: 0\nvolumes: {rules}"));
    Program::with_kubeconfig(namespace.kubeconfig()).under(&policy).input(request.to_string())
}

fn send(namespace: &Namespace, request: &Value) -> Finished {
    program(namespace, "{max_factor: 10}", request).run()
}

async fn with_claim(test: &str, capacity: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.bound_claim("data", capacity).await;
    namespace
}

async fn claim(namespace: &Namespace) -> Value {
    json!(namespace.api::<PersistentVolumeClaim>().get("data").await.expect("is there"))
}

/// Writes to the PVC's status, once it requests this size.
async fn driver(namespace: &Namespace, size: &str, status: Value) {
    eventually("the size is requested", async || {
        (claim(namespace).await["spec"]["resources"]["requests"]["storage"] == size).then_some(())
    })
    .await;
    let patch = Patch::Merge(json!({ "status": status }));
    let claims = namespace.api::<PersistentVolumeClaim>();
    claims.patch_status("data", &PatchParams::default(), &patch).await.expect("is written");
}

#[tokio::test]
async fn an_expansion_leaves_the_same_state_as_with_kubectl() {
    let (ours, theirs) =
        tokio::join!(with_claim("pvc_ours", "10Gi"), with_claim("pvc_theirs", "10Gi"));
    let wait = json!({ "wait": true, "timeout_seconds": 30 });
    // As a person writes it; the API server stores 1536Mi. The volume is large enough, so it is complete at once.
    let done = send(&ours, &request(&ours, "1.5Gi", wait));
    assert_eq!(done.status, 0, "{done:?}");
    let patch = json!({ "spec": { "resources": { "requests": { "storage": "1.5Gi" } } } });
    kubectl(&theirs, &["patch", "pvc", "data", "--patch", &patch.to_string()]);
    let (found, theirs) = (claim(&ours).await, claim(&theirs).await);
    assert_eq!(found["spec"]["resources"], theirs["spec"]["resources"]);
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "complete", "{answer}");
    assert!(!answer["warnings"].to_string().contains("the cluster stored"), "{answer}");
    let again = send(&ours, &request(&ours, "1536Mi", json!({})));
    assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
    let smaller = send(&ours, &request(&ours, "1Gi", json!({})));
    assert_eq!(smaller.answer()["code"], "precondition_failed", "{smaller:?}");
}

#[tokio::test]
async fn a_wait_ends_with_what_the_driver_says() {
    let file_system =
        json!({ "conditions": [{ "type": "FileSystemResizePending", "status": "True" }] });
    let never = json!({
        "allocatedResourceStatuses": { "storage": "ControllerResizeInfeasible" },
        "conditions": [{ "type": "ControllerResizeError", "status": "True", "message": "the pool is full" }],
    });
    let enough = json!({ "capacity": { "storage": "2Gi" }, "conditions": null });
    for (name, statuses, status, expected) in [
        ("done", vec![file_system.clone(), enough], 0, "has 2Gi"),
        ("never", vec![never], 69, "cannot be expanded to 2Gi: the pool is full"),
        ("pending", vec![file_system], 69, "restart that pod"),
    ] {
        let namespace = with_claim(&format!("pvc_wait_{name}"), "1Gi").await;
        let fields =
            json!({ "wait": true, "timeout_seconds": if name == "pending" { 3 } else { 30 } });
        let program = program(&namespace, "{}", &request(&namespace, "2Gi", fields));
        let run = thread::spawn(move || program.run());
        for said in statuses {
            driver(&namespace, "2Gi", said).await;
        }
        let done = run.join().expect("has run");
        assert_eq!(done.status, status, "{done:?}");
        assert!(done.answer()["rollout"].to_string().contains(expected), "{done:?}");
    }
}

#[tokio::test]
async fn the_policy_bounds_the_size() {
    let namespace = with_claim("pvc_policy", "10Gi").await;
    for (rules, size, denied_by) in [
        ("{}", "2049Mi", "volumes.max_factor"),
        ("{max_factor: 9, max_size: 4Gi}", "5Gi", "volumes.max_size"),
    ] {
        let done = program(&namespace, rules, &request(&namespace, size, json!({}))).run();
        let answer = done.answer();
        assert_eq!(answer["code"], "policy_denied", "{answer}");
        assert!(answer["detail"].to_string().contains(denied_by), "{answer}");
    }
    assert_eq!(claim(&namespace).await["spec"]["resources"]["requests"]["storage"], "1Gi");
}

#[tokio::test]
async fn a_simulation_reports_api_server_refusals() {
    let namespace = with_claim("pvc_refused", "10Gi").await;
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": { "name": "team" }, "spec": { "hard": { "requests.storage": "1Gi" } },
    }))
    .expect("is a quota");
    let quotas = namespace.api::<ResourceQuota>();
    quotas.create(&Default::default(), &quota).await.expect("is created");
    eventually("the quota is counted", async || {
        quotas.get("team").await.expect("is there").status?.used.map(drop)
    })
    .await;
    for simulate in [true, false] {
        let done = send(&namespace, &request(&namespace, "2Gi", json!({ "simulate": simulate })));
        let answer = done.answer();
        assert!(answer["detail"].to_string().contains("exceeded quota: team"), "{answer}");
    }
}

#[tokio::test]
async fn a_claim_whose_class_does_not_allow_it_or_that_has_no_volume_is_refused() {
    let namespace = shared().namespace("pvc_class").await;
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    namespace
        .create::<PersistentVolumeClaim>(json!({ "metadata": { "name": "data" }, "spec": spec }))
        .await;
    let done = send(&namespace, &request(&namespace, "2Gi", json!({})));
    assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
    let namespace = shared().namespace("pvc_fixed").await;
    namespace.bound_claim_of("fixed", false, "data", "10Gi").await;
    for simulate in [true, false] {
        let done = send(&namespace, &request(&namespace, "2Gi", json!({ "simulate": simulate })));
        let answer = done.answer();
        assert!(answer["detail"].to_string().contains("must support resize"), "{answer}");
    }
}
