//! Preflight warnings on a real API server: conditions that a person would check before an action.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared},
    pause_rollout::change_template,
    program::Program,
};

/// The warnings of a restart of `web`.
fn warnings(namespace: &Namespace, simulate: bool) -> Vec<String> {
    let request = json!({
        "type": "restart_k8s", "simulate": simulate,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let done = Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run();
    assert_eq!(done.status, 0, "{done:?}");
    serde_json::from_value(done.answer()["warnings"].clone()).expect("are sentences")
}

fn has(warnings: &[String], part: &str) -> bool {
    warnings.iter().any(|warning| warning.contains(part))
}

#[tokio::test]
async fn admission_warnings_are_in_the_answer() {
    let namespace = shared().namespace("admission_warns").await;
    namespace.running_deployment("web", 1).await;
    let updates = json!({
        "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"],
        "resources": ["deployments"],
    });
    let validation = json!({ "expression": "false", "message": "no \"restarts\" on Fridays" });
    namespace.admission_policy("Warn", updates, validation).await;
    let warning = "the API server warns: Validation failed for ValidatingAdmissionPolicy";
    eventually("a simulation is warned", async || {
        let warnings = warnings(&namespace, true);
        (has(&warnings, warning) && has(&warnings, "no \"restarts\" on Fridays")).then_some(())
    })
    .await;
    assert!(has(&warnings(&namespace, false), warning));
}

#[tokio::test]
async fn an_autoscaler_at_its_maximum_and_an_exhausted_budget_cause_warnings() {
    let namespace = shared().namespace("scaled_and_guarded").await;
    namespace.running_deployment("web", 1).await;
    namespace
        .create::<HorizontalPodAutoscaler>(json!({
            "metadata": { "name": "scaler" },
            "spec": {
                "maxReplicas": 1,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            },
        }))
        .await;
    // As its controller would write it; this cluster has no metrics.
    let status = json!({ "status": { "currentReplicas": 1, "desiredReplicas": 1 } });
    let scalers = namespace.api::<HorizontalPodAutoscaler>();
    let patched = scalers.patch_status("scaler", &Default::default(), &Patch::Merge(status)).await;
    patched.expect("is patched");
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": "guard" },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    eventually("both are reported", async || {
        let found = warnings(&namespace, true);
        let both = has(&found, "HorizontalPodAutoscaler 'scaler' is at its maximum of 1")
            && has(&found, "PodDisruptionBudget 'guard' allows no disruption");
        both.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_single_node_volume_causes_a_warning_under_surge() {
    let namespace = shared().namespace("one_volume").await;
    namespace
        .create::<PersistentVolumeClaim>(json!({
            "metadata": { "name": "data" },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
            },
        }))
        .await;
    namespace.deployment_with_claim("web", "data").await;
    assert!(has(&warnings(&namespace, true), "PersistentVolumeClaim 'data' is ReadWriteOnce"));
}

#[tokio::test]
async fn a_recent_restart_causes_a_warning_with_its_author() {
    let namespace = shared().namespace("restarted_before").await;
    namespace.running_deployment("web", 1).await;
    assert!(!has(&warnings(&namespace, true), "it was restarted"));
    assert!(!has(&warnings(&namespace, false), "it was restarted"));
    assert!(has(&warnings(&namespace, true), " s ago by request "));
    // A kubectl restart within the same second would change nothing.
    eventually("the second is over", async || {
        let found = warnings(&namespace, true);
        (!has(&found, "it was restarted 0 s ago")).then_some(())
    })
    .await;
    let restarted = std::process::Command::new(shared().program("kubectl"))
        .args(["-n", namespace.name(), "rollout", "restart", "deployment/web"])
        .env("KUBECONFIG", namespace.kubeconfig())
        .output()
        .expect("kubectl runs");
    assert!(restarted.status.success(), "{restarted:?}");
    assert!(has(&warnings(&namespace, true), " s ago by kubectl-rollout"));
}

#[tokio::test]
async fn an_unready_pod_is_no_rollout_in_progress() {
    for (kind, action, parameter) in [
        ("Deployment", "restart_k8s", "deployment"),
        ("StatefulSet", "restart_statefulset", "statefulset"),
        ("Deployment", "scale", "name"),
    ] {
        let namespace = shared().namespace("unready").await;
        match kind {
            "StatefulSet" => namespace.running_stateful_set("web", 2).await,
            _ => drop(namespace.running_deployment("web", 2).await),
        }
        // The rollout is complete, which its controller may not have recorded yet.
        eventually("the rollout is complete", async || {
            let set = namespace.api::<StatefulSet>().get_opt("web").await.expect("is read");
            let status = set.and_then(|it| it.status);
            let current = status.is_none_or(|it| it.current_revision == it.update_revision);
            current.then_some(())
        })
        .await;
        let pod = namespace.pods_of("web").await[0].metadata.name.clone().expect("has one");
        let unready = json!({ "status": { "conditions": [
            { "type": "Ready", "status": "False", "reason": "ContainersNotReady" },
        ]}});
        let pods = namespace.api::<Pod>();
        let patched =
            pods.patch_status(&pod, &Default::default(), &Patch::Strategic(unready)).await;
        patched.expect("is patched");
        let mut parameters = json!({ (parameter): "web", "namespace": namespace.name() });
        if action == "scale" {
            parameters["replicas"] = 3.into();
        }
        let request = json!({ "type": action, "parameters": parameters }).to_string();
        eventually("the pod counts as not available", async || {
            let program = Program::with_kubeconfig(namespace.kubeconfig()).input(request.clone());
            let warnings = program.run().answer()["warnings"].to_string();
            assert!(!warnings.contains("rollout is in progress"), "{kind} {action}: {warnings}");
            warnings.contains("not all pods are available: 1 of 2").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_rollout_in_progress_causes_a_warning() {
    let namespace = shared().namespace("rolling").await;
    namespace.running_deployment("web", 1).await;
    change_template(&namespace, MISSING_IMAGE).await;
    eventually("it is reported", async || {
        has(&warnings(&namespace, true), "a rollout is in progress: ").then_some(())
    })
    .await;
    // And it stays so, however long the pod does not start.
    eventually("the new pod is there", async || {
        (namespace.pods_of("web").await.len() == 2).then_some(())
    })
    .await;
    assert!(has(&warnings(&namespace, true), "a rollout is in progress: "));
}

#[tokio::test]
async fn a_simulation_in_a_namespace_that_is_being_terminated_says_that_the_real_action_is_refused()
{
    let namespace = shared().namespace("terminating").await;
    namespace.running_deployment("web", 1).await;
    // Kubernetes deletes a namespace's pods first, and nothing else while one is left.
    let pod = namespace.bare_pod("last").await;
    let finalizers =
        |value: serde_json::Value| Patch::Merge(json!({ "metadata": { "finalizers": value } }));
    let pods = namespace.api::<Pod>();
    let (params, name) = (PatchParams::default(), pod.metadata.name.expect("has one"));
    let held = finalizers(json!(["example.com/hold"]));
    pods.patch(&name, &params, &held).await.expect("is patched");
    let namespaces = namespace.global::<k8s_openapi::api::core::v1::Namespace>();
    namespaces.delete(namespace.name(), &DeleteParams::default()).await.expect("is deleted");
    let target = json!({ "namespace": namespace.name() });
    for (kind, field, more) in [
        ("restart_k8s", "deployment", json!({})),
        ("pause_rollout", "deployment", json!({})),
        ("scale", "name", json!({ "replicas": 2 })),
    ] {
        for simulate in [true, false] {
            let mut parameters = target.clone();
            parameters[field] = "web".into();
            let map = parameters.as_object_mut().expect("is one");
            map.extend(more.as_object().expect("is one").clone());
            let request = json!({ "type": kind, "simulate": simulate, "parameters": parameters });
            let program = Program::with_kubeconfig(namespace.kubeconfig());
            let done = program.input(request.to_string()).run();
            let why = "accepts no new objects, and so no record of a real action";
            assert!(done.stdout.contains(why), "{kind}: {done:?}");
            assert!(done.stdout.contains("because it is being terminated"), "{kind}: {done:?}");
            let answer = done.answer();
            if simulate {
                assert_eq!(answer["outcome"], "simulated", "{done:?}");
                let warnings = answer["warnings"].to_string();
                assert!(warnings.contains("the real action would be refused"), "{done:?}");
            } else {
                assert_eq!(answer["code"], "rejected_by_cluster", "{done:?}");
            }
        }
    }
    pods.patch(&name, &params, &finalizers(json!(null))).await.expect("is patched");
}
