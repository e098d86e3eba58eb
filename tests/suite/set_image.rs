//! `set_image` on a real API server.

use action_executor::k8s::workload::WorkloadKind;
use kube::api::{DynamicObject, Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, OTHER_IMAGE, eventually},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::{extended, running, workload},
};

const KINDS: [WorkloadKind; 3] =
    [WorkloadKind::Deployment, WorkloadKind::StatefulSet, WorkloadKind::DaemonSet];

fn request(namespace: &Namespace, kind: WorkloadKind, image: &str, fields: Value) -> Value {
    let request = json!({
        "type": "set_image", "simulate": false,
        "parameters": {
            "kind": kind.name(), "name": "web", "namespace": namespace.name(),
            "images": [{ "container": "main", "image": image }],
        },
    });
    let part = |name: &str| fields.get(name).cloned().unwrap_or_else(|| json!({}));
    extended(request, part("parameters"), part("request"))
}

fn send(namespace: &Namespace, request: &Value) -> Finished {
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

fn image(found: &DynamicObject) -> &Value {
    &found.data["spec"]["template"]["spec"]["containers"][0]["image"]
}

#[tokio::test]
async fn an_image_leaves_the_same_state_as_with_kubectl_for_each_kind() {
    for kind in KINDS {
        let (ours, theirs) =
            tokio::join!(running("image_ours", kind), running("image_theirs", kind));
        let wait = json!({ "request": { "wait": true, "timeout_seconds": 60 } });
        let done = send(&ours, &request(&ours, kind, OTHER_IMAGE, wait));
        assert_eq!(done.status, 0, "{done:?}");
        let object = format!("{}/web", kind.for_kubectl());
        kubectl(&theirs, &["set", "image", &object, &format!("main={OTHER_IMAGE}")]);
        let (ours, theirs) = (workload(&ours, kind).await, workload(&theirs, kind).await);
        assert_eq!(image(&ours), OTHER_IMAGE);
        assert_eq!(ours.data["spec"], theirs.data["spec"], "{}", kind.name());
        assert_eq!(ours.metadata.generation, Some(2));
        let answer = done.answer();
        assert_eq!(answer["changes"][0]["from"], GOOD_IMAGE, "{answer}");
        assert_eq!(answer["rollout"]["state"], "complete", "{answer}");
    }
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_taken_back_if_the_request_asks_for_that() {
    let (kind, missing) = (WorkloadKind::Deployment, MISSING_IMAGE);
    let namespace = running("image_back", kind).await;
    let policy = namespace.policy("images: {allow: ['registry.invalid/*']}");
    let fields = json!({
        "parameters": { "rollback_on_failure": true },
        "request": { "wait": true, "timeout_seconds": 3 },
    });
    let body = request(&namespace, kind, missing, fields).to_string();
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let done = program.input(body).run();
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert!(answer["rollout"]["problems"].to_string().contains("ImagePullBackOff"), "{answer}");
    assert_eq!(answer["rolled_back"]["rollout"]["state"], "complete", "{answer}");
    assert_eq!(image(&workload(&namespace, kind).await), GOOD_IMAGE);
}

#[tokio::test]
async fn the_policy_decides_on_the_repository_also_of_a_limited_simulation() {
    let kind = WorkloadKind::Deployment;
    let namespace = running("image_policy", kind).await;
    let other = "registry.example.com/shop/web:1";
    for (policy, image, is_allowed) in [
        ("", OTHER_IMAGE, true),
        ("", other, false),
        ("images: {allow: ['registry.example.com/shop/*']}", other, true),
        ("images: {allow: ['registry.example.com/shop/*']}", OTHER_IMAGE, false),
        (
            "images: {allow: ['registry.example.com/s*']}",
            "registry.example.com.evil.example/s/web:1",
            false,
        ),
        ("images: {allow: ['*']}", other, true),
    ] {
        let policy = namespace.policy(&format!("{policy}\nsimulation: {{limited: true}}"));
        let simulate = json!({ "request": { "simulate": true } });
        let body = request(&namespace, kind, image, simulate).to_string();
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        let done = program.input(body).run();
        if is_allowed {
            assert_eq!(done.status, 0, "{image}: {done:?}");
            continue;
        }
        assert_eq!(done.answer()["code"], "policy_denied", "{image}: {done:?}");
        assert!(done.answer()["detail"].to_string().contains("images.allow"), "{done:?}");
    }
    let done = send(&namespace, &request(&namespace, kind, other, json!({})));
    assert_eq!(done.answer()["code"], "policy_denied", "{done:?}");
    assert_eq!(image(&workload(&namespace, kind).await), GOOD_IMAGE);
}

#[tokio::test]
async fn a_container_that_is_missing_is_named_with_those_that_there_are() {
    let kind = WorkloadKind::Deployment;
    let namespace = running("image_unknown", kind).await;
    let images = json!([{ "container": "web", "image": OTHER_IMAGE }]);
    let fields = json!({ "parameters": { "images": images } });
    let done = send(&namespace, &request(&namespace, kind, OTHER_IMAGE, fields));
    let answer = done.answer();
    assert_eq!(answer["code"], "invalid_request", "{answer}");
    assert_eq!(answer["field"], "parameters.images[0].container");
    assert!(answer["hint"].to_string().contains("main"), "{answer}");
}

#[tokio::test]
async fn a_template_that_another_client_changes_meanwhile_keeps_its_containers() {
    // A container is inserted before ours between two requests: the place of ours is read anew.
    let kind = WorkloadKind::Deployment;
    let namespace = running("image_moved", kind).await;
    let found = workload(&namespace, kind).await;
    let main = found.data["spec"]["template"]["spec"]["containers"][0].clone();
    let mut first = main.clone();
    first["name"] = "first".into();
    let spec = json!({ "template": { "spec": { "containers": [first, main] } } });
    let patch = Patch::Merge(json!({ "spec": spec }));
    let objects = namespace.objects(&kind.resource());
    objects.patch("web", &Default::default(), &patch).await.expect("is patched");
    let done = send(&namespace, &request(&namespace, kind, OTHER_IMAGE, json!({})));
    assert_eq!(done.status, 0, "{done:?}");
    let now = eventually("the image is set", async || {
        let found = workload(&namespace, kind).await;
        (found.metadata.generation == Some(3)).then_some(found)
    })
    .await;
    let containers = &now.data["spec"]["template"]["spec"]["containers"];
    assert_eq!(
        (&containers[0]["image"], &containers[1]["image"]),
        (&json!(GOOD_IMAGE), &json!(OTHER_IMAGE))
    );
}
