//! `label` and `annotate` on a real API server.

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::Pod,
};
use kube::{
    ResourceExt,
    api::{ApiResource, DynamicObject},
};
use serde_json::{Value, json};

use crate::{
    cluster::{GOOD_IMAGE, Namespace, OWN_IMAGE, shared},
    ledger::kubectl,
    program::{Finished, Program},
};

/// Each kind, as kubectl names it and as a request does.
const KINDS: [(&str, &str); 6] = [
    ("deployment", "Deployment"),
    ("statefulset", "StatefulSet"),
    ("daemonset", "DaemonSet"),
    ("cronjob", "CronJob"),
    ("job", "Job"),
    ("pod", "Pod"),
];

/// Creates the object `web` of each kind.
async fn prepared(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.running_deployment("web", 1).await;
    namespace.stateful_set("web", 1).await;
    namespace.daemon_set("web").await;
    namespace.cron_job("web", OWN_IMAGE, true).await;
    // The controllers would adopt a pod of their labels, and delete it as one too many.
    namespace.bare_pod_of("web", GOOD_IMAGE, json!({ "role": "bare" })).await;
    kubectl(&namespace, &["create", "job", "web", "--from=cronjob/web"]);
    namespace
}

fn resource(kind: &str) -> ApiResource {
    match kind {
        "Deployment" => ApiResource::erase::<Deployment>(&()),
        "StatefulSet" => ApiResource::erase::<StatefulSet>(&()),
        "DaemonSet" => ApiResource::erase::<DaemonSet>(&()),
        "CronJob" => ApiResource::erase::<CronJob>(&()),
        "Job" => ApiResource::erase::<Job>(&()),
        _ => ApiResource::erase::<Pod>(&()),
    }
}

fn request(action: &str, namespace: &Namespace, parameters: Value) -> Value {
    let mut request = json!({
        "type": action, "simulate": false,
        "parameters": { "name": "web", "namespace": namespace.name() },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("are parameters").extend(more);
    request
}

fn send(namespace: &Namespace, request: &Value) -> Finished {
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn found(namespace: &Namespace, kind: &str) -> DynamicObject {
    namespace.objects(&resource(kind)).get("web").await.expect("is there")
}

/// Labels or annotations, without those that the cluster and this program set.
fn own(object: &DynamicObject, action: &str) -> Value {
    let map = if action == "label" { object.labels() } else { object.annotations() };
    let own = map.iter().filter(|(key, _)| {
        !key.contains("kubernetes.io/")
            && !key.starts_with("action-executor.dev/")
            && *key != "controller-uid"
    });
    json!(own.collect::<std::collections::BTreeMap<_, _>>())
}

#[tokio::test]
async fn each_kind_ends_in_the_same_state_as_with_kubectl() {
    let (ours, theirs) = tokio::join!(prepared("label_ours"), prepared("label_theirs"));
    for (noun, kind) in KINDS {
        for action in ["label", "annotate"] {
            let object = format!("{noun}/web");
            for (set, remove, args) in [
                (
                    json!({ "team": "a", "example.com/x": "1" }),
                    json!([]),
                    vec!["team=a", "example.com/x=1"],
                ),
                (
                    json!({ "team": "b" }),
                    json!(["example.com/x", "absent"]),
                    vec!["team=b", "example.com/x-", "absent-"],
                ),
            ] {
                let before = found(&ours, kind).await;
                let parameters = json!({ "kind": kind, "set": set, "remove": remove });
                let body = request(action, &ours, parameters);
                let done = send(&ours, &body);
                assert_eq!(done.answer()["outcome"], "applied", "{kind} {done:?}");
                assert_eq!(send(&ours, &body).answer()["outcome"], "unchanged");
                kubectl(&theirs, &[&[action, "--overwrite", &object], args.as_slice()].concat());
                let (after, theirs) = (found(&ours, kind).await, found(&theirs, kind).await);
                assert_eq!(own(&after, action), own(&theirs, action), "{kind} {action}");
                assert_eq!(after.data["spec"], before.data["spec"], "{kind} {action}");
            }
        }
    }
}

#[tokio::test]
async fn a_label_by_which_a_controller_selects_is_refused_on_pod_and_workload() {
    let namespace = prepared("label_selected").await;
    for (kind, name) in [
        ("Deployment", "web".to_owned()),
        ("StatefulSet", "web".to_owned()),
        ("Pod", "web-0".to_owned()),
    ] {
        for change in [json!({ "set": { "app": "other" } }), json!({ "remove": ["app"] })] {
            let mut body = request("label", &namespace, change);
            body["parameters"]["kind"] = kind.into();
            body["parameters"]["name"] = name.clone().into();
            let done = send(&namespace, &body);
            // A workload has its selector's labels in its template, and need not have them itself.
            if kind != "Pod" && body["parameters"].get("remove").is_some() {
                assert_eq!(done.answer()["outcome"], "unchanged", "{done:?}");
                continue;
            }
            assert_eq!(
                (done.status, &done.answer()["code"]),
                (69, &json!("target_managed")),
                "{done:?}"
            );
        }
    }
    // A pod without a controller is selected by none.
    let body = request("label", &namespace, json!({ "kind": "Pod", "remove": ["role"] }));
    assert_eq!(send(&namespace, &body).answer()["outcome"], "applied");
}

#[tokio::test]
async fn restarts_are_recognised_after_a_label_on_a_kind_that_counts_no_annotations() {
    let namespace = shared().namespace("label_restart").await;
    namespace.running_stateful_set("web", 1).await;
    for (number, team) in ["a", "b"].into_iter().enumerate() {
        let body =
            request("label", &namespace, json!({ "kind": "StatefulSet", "set": { "team": team } }));
        assert_eq!(send(&namespace, &body).status, 0);
        let restart = json!({
            "type": "restart_statefulset", "simulate": false, "id": format!("r{number}"),
            "parameters": { "statefulset": "web", "namespace": namespace.name() },
        });
        assert_eq!(send(&namespace, &restart).status, 0);
        let object = found(&namespace, "StatefulSet").await;
        let marks = &object.annotations()["action-executor.dev/requests"];
        let generation = object.metadata.generation.expect("has one");
        let last = marks.split(' ').next_back().expect("is one");
        assert!(last.starts_with(&format!("{generation}:r{number}@")), "{marks}");
    }
}
