//! `set_autoscaler_bounds` on a real API server.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::Patch;
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::{extended, without_replayed},
};

fn request(namespace: &Namespace, parameters: Value, fields: Value) -> Value {
    let request = json!({
        "type": "set_autoscaler_bounds", "simulate": false,
        "parameters": { "autoscaler": "web", "namespace": namespace.name() },
    });
    extended(request, parameters, fields)
}

fn send(namespace: &Namespace, parameters: Value, fields: Value) -> Finished {
    let request = request(namespace, parameters, fields);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn spec(namespace: &Namespace) -> Value {
    let found = namespace.api::<HorizontalPodAutoscaler>().get("web").await.expect("is there");
    json!(found.spec)
}

#[tokio::test]
async fn bounds_are_set_as_with_kubectl() {
    let (ours, theirs) =
        tokio::join!(shared().namespace("hpa_ours"), shared().namespace("hpa_theirs"));
    tokio::join!(ours.autoscaler("web"), theirs.autoscaler("web"));
    let done =
        send(&ours, json!({ "min_replicas": 2, "max_replicas": 8 }), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let patch = r#"{"spec":{"minReplicas":2,"maxReplicas":8}}"#;
    kubectl(&theirs, &["patch", "hpa", "web", "--type=merge", "-p", patch]);
    assert_eq!(spec(&ours).await, spec(&theirs).await);
    let answer = done.answer();
    let changes = answer["changes"].as_array().expect("are listed");
    let change = |at: usize| (&changes[at]["path"], &changes[at]["from"], &changes[at]["to"]);
    assert_eq!(change(0), (&json!("/spec/minReplicas"), &json!(1), &json!(2)), "{answer}");
    assert_eq!(change(1), (&json!("/spec/maxReplicas"), &json!(4), &json!(8)), "{answer}");
}

#[tokio::test]
async fn a_difference_is_added_once_for_an_id_also_after_its_record_is_gone() {
    let namespace = shared().namespace("hpa_once").await;
    namespace.autoscaler("web").await;
    let by_one = || send(&namespace, json!({ "max_by": 1 }), json!({ "id": "r1" }));
    let (first, second) = (by_one(), by_one());
    assert_eq!(first.status, 0, "{first:?}");
    assert_eq!(without_replayed(first.answer()), without_replayed(second.answer()));
    kubectl(&namespace, &["delete", "events", "--all"]);
    let third = by_one();
    assert_eq!(third.status, 0, "{third:?}");
    assert_eq!(spec(&namespace).await["maxReplicas"], 5);
}

#[tokio::test]
async fn the_policy_bounds_both_numbers_and_the_growth_of_the_maximum() {
    let namespace = shared().namespace("hpa_policy").await;
    namespace.autoscaler("web").await;
    for (policy, parameters, denied) in [
        ("version: 1", json!({ "max_replicas": 9 }), Some("autoscalers.max_factor")),
        ("autoscalers: {max_factor: 3}", json!({ "max_replicas": 9 }), None),
        ("replicas: {min: 0, max: 7}", json!({ "max_replicas": 8 }), Some("replicas")),
        ("replicas: {min: 2, max: 7}", json!({ "max_replicas": 5 }), Some("replicas")),
        ("version: 1", json!({ "max_replicas": 8 }), None),
    ] {
        let policy = namespace.policy(&format!("{policy}\nsimulation: {{limited: true}}"));
        let body = request(&namespace, parameters.clone(), json!({ "simulate": true }));
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        let done = program.input(body.to_string()).run();
        match denied {
            None => assert_eq!(done.status, 0, "{parameters}: {done:?}"),
            Some(rule) => {
                let answer = done.answer();
                assert_eq!(answer["code"], "policy_denied", "{parameters}: {answer}");
                assert!(answer["detail"].to_string().contains(&format!("({rule})")), "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn an_autoscaler_of_keda_is_refused_and_current_bounds_are_a_precondition() {
    let namespace = shared().namespace("hpa_refused").await;
    namespace.autoscaler("web").await;
    let done = send(&namespace, json!({ "max_by": 1, "current_max": 3 }), json!({}));
    assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
    assert_eq!(done.answer()["field"], "parameters.current_max", "{done:?}");
    let labels = json!({ "metadata": { "labels": { "scaledobject.keda.sh/name": "web-so" } } });
    let autoscalers = namespace.api::<HorizontalPodAutoscaler>();
    let patch = Patch::Merge(labels);
    autoscalers.patch("web", &Default::default(), &patch).await.expect("is patched");
    for simulate in [true, false] {
        let done = send(&namespace, json!({ "max_by": 1 }), json!({ "simulate": simulate }));
        let answer = done.answer();
        assert_eq!(answer["code"], "target_managed", "{answer}");
        assert!(answer["detail"].to_string().contains("ScaledObject 'web-so'"), "{answer}");
    }
    assert_eq!(spec(&namespace).await["maxReplicas"], 4);
}
