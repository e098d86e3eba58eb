//! `pause_rollout` on a real API server.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared},
    program::{Finished, Program},
    scenario::set_paused,
};

/// Sends a real request of this type for the Deployment `web`.
pub fn send(namespace: &Namespace, kind: &str, fields: Value) -> Finished {
    let mut request = json!({
        "type": kind, "simulate": false,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    for (name, value) in fields.as_object().expect("is an object") {
        request[name] = value.clone();
    }
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

/// Runs `kubectl rollout VERB deployment/web`; returns whether that succeeded.
pub fn kubectl_rollout(namespace: &Namespace, verb: &str) -> bool {
    let done = std::process::Command::new(shared().program("kubectl"))
        .args(["-n", namespace.name(), "rollout", verb, "deployment/web"])
        .env("KUBECONFIG", namespace.kubeconfig())
        .output()
        .expect("kubectl runs");
    done.status.success()
}

/// Changes the pod template of `web`.
pub async fn change_template(namespace: &Namespace, image: &str) {
    let container = json!({ "name": "main", "image": image });
    let patch = json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
    let deployments = namespace.api::<Deployment>();
    let patch = Patch::Strategic(patch);
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
}

/// The Deployment, once its controller has observed its latest generation.
pub async fn observed(namespace: &Namespace) -> Deployment {
    eventually("it is observed", async || {
        let found = namespace.get_deployment("web").await;
        let seen = found.status.as_ref()?.observed_generation;
        (seen == found.metadata.generation).then_some(found)
    })
    .await
}

pub fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
}

#[tokio::test]
async fn a_pause_leaves_the_same_state_as_kubectl() {
    let (ours, theirs) =
        (shared().namespace("pause_ours").await, shared().namespace("pause_theirs").await);
    for namespace in [&ours, &theirs] {
        namespace.running_deployment("web", 1).await;
    }
    let done = send(&ours, "pause_rollout", json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied");
    let change = json!({ "path": "/spec/paused", "from": false, "to": true });
    assert_eq!(answer["changes"][0], change);
    assert_eq!(answer["rollout"]["state"], "complete");
    assert!(kubectl_rollout(&theirs, "pause"));
    let (ours, theirs) = (observed(&ours).await, observed(&theirs).await);
    assert!(is_paused(&ours));
    assert_eq!(ours.spec, theirs.spec);
    assert_eq!(ours.metadata.generation, theirs.metadata.generation);
}

#[tokio::test]
async fn a_template_changed_during_a_pause_reaches_no_pod() {
    let namespace = shared().namespace("pause_holds").await;
    namespace.running_deployment("web", 1).await;
    let before = namespace.pods_of("web").await[0].uid();
    assert_eq!(send(&namespace, "pause_rollout", json!({})).status, 0);
    change_template(&namespace, "registry.invalid/other:1").await;
    let deployment = observed(&namespace).await;
    assert_eq!(deployment.status.expect("has one").updated_replicas.unwrap_or(0), 0);
    let pods = namespace.pods_of("web").await;
    assert_eq!((pods.len(), pods[0].uid()), (1, before));
}

#[tokio::test]
async fn a_paused_deployment_is_unchanged_where_kubectl_reports_an_error() {
    let namespace = shared().namespace("pause_twice").await;
    namespace.running_deployment("web", 1).await;
    set_paused(&namespace, true).await;
    assert!(!kubectl_rollout(&namespace, "pause"));
    let before = observed(&namespace).await.metadata.resource_version;
    let done = send(&namespace, "pause_rollout", json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["outcome"], "unchanged");
    assert_eq!(done.answer()["result"], "Deployment 'web' is paused already.");
    assert_eq!(namespace.get_deployment("web").await.metadata.resource_version, before);
}

#[tokio::test]
async fn a_pause_during_a_rollout_causes_a_warning() {
    let namespace = shared().namespace("pause_middle").await;
    namespace.running_deployment("web", 2).await;
    change_template(&namespace, MISSING_IMAGE).await;
    eventually("the rollout is in the middle", async || {
        let status = namespace.get_deployment("web").await.status?;
        (status.updated_replicas? > 0 && status.updated_replicas < status.replicas).then_some(())
    })
    .await;
    let done = send(&namespace, "pause_rollout", json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("keep running beside the new ones"), "{warnings}");
}

#[tokio::test]
async fn a_retry_does_not_pause_a_resumed_rollout_again() {
    let namespace = shared().namespace("pause_retry").await;
    namespace.running_deployment("web", 1).await;
    let pause = || send(&namespace, "pause_rollout", json!({ "id": "r1" }));
    assert_eq!(pause().status, 0);
    set_paused(&namespace, false).await;
    let again = pause();
    assert_eq!(again.answer()["replayed"], true, "{again:?}");
    assert!(!is_paused(&namespace.get_deployment("web").await));
}
