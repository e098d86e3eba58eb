//! `resume_rollout` on a real API server.

use serde_json::json;

use crate::{
    cluster::{MISSING_IMAGE, SLOW_IMAGE, shared},
    pause_rollout::{change_template, is_paused, kubectl_rollout, observed, send},
    scenario::set_paused,
};

#[tokio::test]
async fn a_resume_leaves_the_same_state_as_kubectl() {
    let (ours, theirs) =
        (shared().namespace("resume_ours").await, shared().namespace("resume_theirs").await);
    for namespace in [&ours, &theirs] {
        namespace.running_deployment("web", 1).await;
        set_paused(namespace, true).await;
        change_template(namespace, "registry.invalid/other:1").await;
    }
    let done = send(&ours, "resume_rollout", json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let change = json!({ "path": "/spec/paused", "from": true, "to": false });
    assert_eq!(done.answer()["changes"][0], change);
    assert!(kubectl_rollout(&theirs, "resume"));
    let (ours, theirs) = (ours.rolled_out("web").await, theirs.rolled_out("web").await);
    assert!(!is_paused(&ours));
    assert_eq!(ours.spec, theirs.spec);
    assert_eq!(ours.metadata.generation, theirs.metadata.generation);
}

#[tokio::test]
async fn a_resume_counts_the_outdated_pods_and_waits_until_they_are_replaced() {
    let namespace = shared().namespace("resume_waits").await;
    namespace.running_deployment("web", 2).await;
    set_paused(&namespace, true).await;
    change_template(&namespace, SLOW_IMAGE).await;
    observed(&namespace).await;
    let done = send(&namespace, "resume_rollout", json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert!(answer["warnings"].to_string().contains("2 of 2 pods are replaced now"), "{answer}");
    assert_eq!(answer["rollout"]["state"], "complete");
    assert!(done.took.as_secs() >= 9, "{done:?}");
    for pod in namespace.pods_of("web").await {
        let image = pod.spec.expect("has one").containers[0].image.clone();
        assert_eq!(image.as_deref(), Some(SLOW_IMAGE));
    }
}

#[tokio::test]
async fn a_stuck_rollout_fails_with_the_pods_error() {
    let namespace = shared().namespace("resume_broken").await;
    namespace.running_deployment("web", 1).await;
    set_paused(&namespace, true).await;
    change_template(&namespace, MISSING_IMAGE).await;
    let done = send(&namespace, "resume_rollout", json!({ "wait": true, "timeout_seconds": 4 }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("failed"), &json!("timed_out"))
    );
    assert!(answer["rollout"]["problems"].to_string().contains("ImagePullBackOff"), "{answer}");
}

#[tokio::test]
async fn a_running_rollout_is_unchanged_where_kubectl_reports_an_error() {
    let namespace = shared().namespace("resume_twice").await;
    let before = namespace.running_deployment("web", 1).await.metadata.resource_version;
    assert!(!kubectl_rollout(&namespace, "resume"));
    let done = send(&namespace, "resume_rollout", json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["outcome"], "unchanged");
    assert_eq!(done.answer()["result"], "Deployment 'web' is not paused.");
    assert_eq!(namespace.get_deployment("web").await.metadata.resource_version, before);
}
