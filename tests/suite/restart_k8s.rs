//! `restart_k8s` on a real API server.

use serde_json::{Value, json};

use crate::{
    cluster::{CRASHING_IMAGE, MISSING_IMAGE, Namespace, SLOW_IMAGE, eventually, private, shared},
    program::{Finished, Program},
};

/// A request to restart `web`, with these additional fields.
fn request(namespace: &Namespace, fields: Value) -> String {
    let mut request = json!({
        "type": "restart_k8s",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    request.to_string()
}

fn send(namespace: &Namespace, fields: Value) -> Finished {
    Program::with_kubeconfig(namespace.kubeconfig()).input(request(namespace, fields)).run()
}

async fn generation(namespace: &Namespace) -> i64 {
    namespace.get_deployment("web").await.metadata.generation.expect("has one")
}

#[tokio::test]
async fn each_restart_adds_exactly_one_generation() {
    let namespace = shared().namespace("one_generation").await;
    namespace.running_deployment("web", 2).await;
    let before = generation(&namespace).await;
    for restart in 1..=3 {
        let done = send(&namespace, json!({ "simulate": false }));
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["outcome"], "applied");
        // More than one restart a second, where kubectl's second restart changes nothing.
        assert_eq!(generation(&namespace).await, before + restart);
    }
}

#[tokio::test]
async fn a_restart_sets_kubectls_annotation_and_its_own_field_manager() {
    let namespace = shared().namespace("annotation").await;
    namespace.running_deployment("web", 1).await;
    let done = send(&namespace, json!({ "simulate": false, "id": "alert:7" }));
    let deployment = namespace.get_deployment("web").await;
    let spec = deployment.spec.expect("has one");
    let annotations = spec.template.metadata.and_then(|it| it.annotations).expect("has some");
    assert_eq!(annotations["action-executor.dev/request-id"], "alert:7");
    let restarted_at = &annotations["kubectl.kubernetes.io/restartedAt"];
    let started_at = done.answer()["started_at"].as_str().expect("is a time").to_owned();
    assert_eq!(restarted_at[..19], started_at[..19]);
    let managers = deployment.metadata.managed_fields.expect("has some");
    assert!(managers.iter().any(|it| it.manager.as_deref() == Some("action-executor")));
}

#[tokio::test]
async fn the_answer_describes_the_object_after_the_restart() {
    let namespace = shared().namespace("target").await;
    let before = namespace.running_deployment("web", 0).await;
    let answer = send(&namespace, json!({ "simulate": false })).answer();
    let target = &answer["target"];
    assert_eq!(target["kind"], "Deployment");
    assert_eq!(target["uid"], before.metadata.uid.expect("has one"));
    assert_ne!(target["resourceVersion"], before.metadata.resource_version.expect("has one"));
    assert_eq!(answer["changes"][0]["from"], Value::Null);
    let result = answer["result"].as_str().expect("is a sentence");
    let at = answer["started_at"].as_str().expect("is a time");
    assert_eq!(result, format!("Deployment 'web' restarted at {at}."));
}

#[tokio::test]
async fn a_simulation_changes_nothing() {
    let namespace = shared().namespace("simulation").await;
    let before = namespace.running_deployment("web", 1).await;
    let done = send(&namespace, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    assert_eq!(answer["result"], "Simulated: Deployment 'web' would be restarted.");
    assert!(answer["changes"][0]["to"].is_string());
    assert!(answer.get("offline").is_none() && answer.get("rollout").is_none());
    let after = namespace.get_deployment("web").await;
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
}

#[tokio::test]
async fn a_simulation_is_refused_where_the_action_would_be() {
    let namespace = shared().namespace("simulation_refused").await;
    let rules = json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] }]);
    let kubeconfig = namespace.account("reader", rules).await;
    namespace.running_deployment("web", 1).await;
    let done = Program::with_kubeconfig(&kubeconfig).input(request(&namespace, json!({}))).run();
    assert_eq!(done.status, 77, "{done:?}");
    assert_eq!(done.answer()["code"], "forbidden");
}

#[tokio::test]
async fn a_paused_deployment_is_refused() {
    let namespace = shared().namespace("paused").await;
    namespace.running_deployment("web", 1).await;
    pause(&namespace).await;
    let before = generation(&namespace).await;
    for simulate in [true, false] {
        let done = send(&namespace, json!({ "simulate": simulate }));
        assert_eq!(done.status, 69, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["code"], "target_paused");
        assert!(
            answer["hint"].as_str().expect("has one").contains("rollout resume deployment/web")
        );
    }
    assert_eq!(generation(&namespace).await, before);
}

async fn pause(namespace: &Namespace) {
    patch(namespace, json!({ "spec": { "paused": true } })).await;
}

async fn patch(namespace: &Namespace, patch: Value) {
    let patch = kube::api::Patch::Merge(patch);
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
}

#[tokio::test]
async fn a_missing_deployment_is_reported_with_a_hint() {
    let namespace = shared().namespace("missing").await;
    let done = send(&namespace, json!({ "simulate": false }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["code"], "target_not_found");
    assert_eq!(answer["status"], 422);
    let name = namespace.name();
    assert_eq!(answer["detail"], format!("Deployment 'web' does not exist in namespace '{name}'"));
    assert!(answer["hint"].as_str().expect("has one").contains("get deployments"));
}

#[tokio::test]
async fn a_precondition_limits_the_restart_to_one_object() {
    let namespace = shared().namespace("precondition").await;
    let before = namespace.running_deployment("web", 1).await.metadata;
    let wanting = |field: &str, value: &str| {
        send(&namespace, json!({ "simulate": false, "precondition": { (field): value } }))
    };
    for (field, wrong) in [("uid", "another"), ("resource_version", "1")] {
        let done = wanting(field, wrong);
        assert_eq!(done.status, 69, "{done:?}");
        assert_eq!(done.answer()["code"], "precondition_failed");
        assert_eq!(done.answer()["field"], format!("precondition.{field}"));
    }
    let after = namespace.get_deployment("web").await.metadata;
    assert_eq!(after.generation, before.generation);
    let done = wanting("resource_version", &after.resource_version.expect("has one"));
    assert_eq!(done.status, 0, "{done:?}");
    let done = wanting("uid", &before.uid.expect("has one"));
    assert_eq!(done.status, 0, "{done:?}");
}

#[tokio::test]
async fn a_resent_request_restarts_once() {
    let namespace = shared().namespace("again").await;
    namespace.running_deployment("web", 1).await;
    let first = send(&namespace, json!({ "simulate": false, "id": "alert-7" }));
    assert_eq!(first.answer()["replayed"], false);
    let after = generation(&namespace).await;
    let second = send(&namespace, json!({ "simulate": false, "id": "alert-7" }));
    assert_eq!(second.status, 0, "{second:?}");
    assert_eq!(second.answer()["replayed"], true);
    assert_eq!(second.answer()["outcome"], "applied");
    assert_eq!(generation(&namespace).await, after);
}

#[tokio::test]
async fn a_restart_works_during_a_previous_rollout() {
    let namespace = shared().namespace("busy").await;
    namespace.running_deployment("web", 5).await;
    let before = generation(&namespace).await;
    // The controller updates the status all the time, so many patches conflict.
    for _ in 0..20 {
        let done = send(&namespace, json!({ "simulate": false }));
        assert_eq!(done.status, 0, "{done:?}");
    }
    assert_eq!(generation(&namespace).await, before + 20);
}

#[tokio::test]
async fn a_restart_waits_until_every_pod_is_new() {
    let namespace = shared().namespace("waits").await;
    namespace.running_deployment("web", 3).await;
    let done = send(&namespace, json!({ "simulate": false, "wait": true, "id": "r1" }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete");
    let pods = namespace.pods_of("web").await;
    assert_eq!(pods.len(), 3);
    for pod in pods {
        assert_eq!(
            pod.metadata.annotations.expect("has some")["action-executor.dev/request-id"],
            "r1"
        );
    }
    // Progress is printed for a terminal only.
    assert!(done.stderr.lines().all(|line| line.starts_with('{')), "{}", done.stderr);
}

#[tokio::test]
async fn a_restart_waits_until_the_pods_are_ready() {
    let namespace = shared().namespace("slow").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    let done = send(&namespace, json!({ "simulate": false, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.took.as_secs() >= 9, "{done:?}");
}

#[tokio::test]
async fn a_stuck_rollout_fails_with_the_pods_error() {
    for (image, problem) in [
        (MISSING_IMAGE, "ImagePullBackOff: Back-off pulling image"),
        (CRASHING_IMAGE, "CrashLoopBackOff: restarted 3 times, last exit code 1"),
    ] {
        let namespace = shared().namespace("broken").await;
        namespace.deployment("web", 1, image).await;
        let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 4 });
        let done = send(&namespace, asked);
        assert_eq!(done.status, 69, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["outcome"], "failed");
        assert_eq!(answer["rollout"]["state"], "timed_out");
        let text = answer["rollout"]["problems"][0].as_str().expect("has one");
        assert!(text.contains(problem), "{text}");
        assert!((4..6).contains(&done.took.as_secs()), "{:?}", done.took);
    }
}

#[tokio::test]
async fn an_unschedulable_pod_is_reported() {
    let namespace = shared().namespace("unschedulable").await;
    namespace.running_deployment("web", 1).await;
    let nowhere =
        json!({ "spec": { "template": { "spec": { "nodeSelector": { "none": "such" } } } } });
    patch(&namespace, nowhere).await;
    let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 4 });
    let answer = send(&namespace, asked).answer();
    let text = answer["rollout"]["problems"][0].as_str().expect("has one");
    // Other tests have their own nodes.
    assert!(text.contains("Unschedulable: 0/"), "{text}");
    assert!(text.contains("nodes are available"), "{text}");
}

#[tokio::test]
async fn a_progress_deadline_ends_the_wait_at_once() {
    let namespace = shared().namespace("deadline").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    patch(&namespace, json!({ "spec": { "progressDeadlineSeconds": 2, "minReadySeconds": 0 } }))
        .await;
    let done = send(&namespace, json!({ "simulate": false, "wait": true, "timeout_seconds": 60 }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "failed");
    let message = answer["rollout"]["message"].as_str().expect("has one");
    assert!(message.starts_with("ProgressDeadlineExceeded"), "{message}");
    assert!(done.took.as_secs() < 30, "{:?}", done.took);
}

#[tokio::test]
async fn a_superseded_rollout_is_reported() {
    let namespace = shared().namespace("superseded").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 60, "id": "r1" });
    let waiting =
        Program::with_kubeconfig(namespace.kubeconfig()).input(request(&namespace, asked)).start();
    let name = namespace.name().to_owned();
    eventually(&format!("{name} is restarted"), async || {
        (generation(&namespace).await > 1).then_some(())
    })
    .await;
    let done = send(&namespace, json!({ "simulate": false, "id": "r2" }));
    assert_eq!(done.status, 0, "{done:?}");
    let done = waiting.wait();
    assert_eq!(done.status, 69, "{done:?}");
    let message = done.answer()["rollout"]["message"].clone();
    assert!(message.as_str().expect("has one").starts_with("superseded"), "{message}");
}

#[tokio::test]
async fn a_deployment_deleted_during_the_wait_is_reported() {
    let namespace = shared().namespace("deleted").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 60 });
    let waiting =
        Program::with_kubeconfig(namespace.kubeconfig()).input(request(&namespace, asked)).start();
    eventually("it is restarted", async || (generation(&namespace).await > 1).then_some(())).await;
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    deployments.delete("web", &Default::default()).await.expect("is deleted");
    let done = waiting.wait();
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["rollout"]["message"], "Deployment 'web' was deleted");
}

#[tokio::test]
async fn a_signal_ends_the_wait_with_the_known_state() {
    let namespace = shared().namespace("signal").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    for name in ["TERM", "INT"] {
        let before = generation(&namespace).await;
        let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 60 });
        let waiting = Program::with_kubeconfig(namespace.kubeconfig())
            .input(request(&namespace, asked))
            .start();
        eventually("it is restarted", async || {
            (generation(&namespace).await > before).then_some(())
        })
        .await;
        waiting.signal(name);
        let done = waiting.wait();
        assert_eq!(done.status, 75, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["rollout"]["state"], "interrupted");
        let result = answer["result"].as_str().expect("is a sentence");
        assert!(result.contains("restarted at") && result.contains("at shutdown"), "{result}");
    }
}

#[tokio::test]
async fn a_wait_survives_an_outage_of_the_api_server() {
    let cluster = private();
    let namespace = cluster.namespace("outlives").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let asked = json!({ "simulate": false, "wait": true, "timeout_seconds": 80 });
    let waiting =
        Program::with_kubeconfig(namespace.kubeconfig()).input(request(&namespace, asked)).start();
    eventually("it is restarted", async || (generation(&namespace).await > 1).then_some(())).await;
    cluster.stop("kube-apiserver");
    cluster.start("kube-apiserver");
    let done = waiting.wait();
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete");
}

#[tokio::test]
async fn a_restart_of_zero_replicas_causes_a_warning() {
    let namespace = shared().namespace("warns").await;
    namespace.running_deployment("web", 0).await;
    let warnings = send(&namespace, json!({})).answer()["warnings"].to_string();
    assert!(warnings.contains("scaled to 0"), "{warnings}");
}
