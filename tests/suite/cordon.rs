//! `cordon` and `uncordon` on a real API server.

use std::process::Command;

use k8s_openapi::api::core::v1::{Event, Node};
use kube::{
    Api,
    api::{ListParams, Patch},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    program::{Finished, Program},
};

fn send(namespace: &Namespace, action: &str, fields: Value) -> Finished {
    let mut request = json!({ "type": action, "parameters": { "node": namespace.name() } });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn node(namespace: &Namespace) -> Node {
    namespace.global::<Node>().get(namespace.name()).await.expect("is there")
}

async fn is_cordoned(namespace: &Namespace) -> bool {
    node(namespace).await.spec.and_then(|spec| spec.unschedulable) == Some(true)
}

fn kubectl(args: &[&str]) -> String {
    let mut kubectl = Command::new(shared().program("kubectl"));
    let done = kubectl.args(args).env("KUBECONFIG", shared().kubeconfig()).output();
    let done = done.expect("kubectl runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("is text")
}

#[tokio::test]
async fn cordon_and_uncordon_change_the_node_and_report_it() {
    let namespace = shared().namespace("cordoned").await;
    namespace.own_node(false).await;
    let done = send(&namespace, "cordon", json!({ "simulate": false, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!((&answer["outcome"], &answer["warnings"]), (&json!("applied"), &json!([])));
    assert_eq!(answer["target"]["kind"], "Node");
    assert!(answer["target"].get("namespace").is_none(), "{answer}");
    assert_eq!(answer["rollout"]["state"], "complete");
    assert!(is_cordoned(&namespace).await);
    let done = send(&namespace, "uncordon", json!({ "simulate": false }));
    assert_eq!(done.answer()["outcome"], "applied", "{done:?}");
    assert!(!is_cordoned(&namespace).await);
}

#[tokio::test]
async fn a_node_already_in_the_state_is_unchanged() {
    let namespace = shared().namespace("cordoned_already").await;
    namespace.own_node(true).await;
    let done = send(&namespace, "cordon", json!({ "simulate": false }));
    assert_eq!((done.status, &done.answer()["outcome"]), (0, &json!("unchanged")), "{done:?}");
    let annotations = node(&namespace).await.metadata.annotations.expect("has some");
    assert!(!annotations.contains_key("action-executor.dev/requests"), "{annotations:?}");
    assert_eq!(send(&namespace, "uncordon", json!({ "simulate": false })).status, 0);
    let done = send(&namespace, "uncordon", json!({ "simulate": false }));
    assert_eq!(done.answer()["outcome"], "unchanged", "{done:?}");
}

#[tokio::test]
async fn cordon_leaves_the_same_state_as_kubectl() {
    let (ours, theirs) =
        (shared().namespace("cordon_ours").await, shared().namespace("cordon_theirs").await);
    for (theirs_verb, cordoned) in [("cordon", true), ("uncordon", false)] {
        for namespace in [&ours, &theirs] {
            if cordoned {
                namespace.own_node(false).await;
            }
        }
        assert_eq!(send(&ours, theirs_verb, json!({ "simulate": false })).status, 0);
        kubectl(&[theirs_verb, theirs.name()]);
        let field = |node: Node| node.spec.and_then(|spec| spec.unschedulable);
        assert_eq!(field(node(&ours).await), field(node(&theirs).await), "{theirs_verb}");
    }
}

#[tokio::test]
async fn a_simulation_changes_nothing() {
    let namespace = shared().namespace("cordon_simulated").await;
    namespace.own_node(false).await;
    let done = send(&namespace, "cordon", json!({}));
    assert_eq!(done.answer()["outcome"], "simulated", "{done:?}");
    assert_eq!(done.answer()["changes"][0]["path"], "/spec/unschedulable");
    assert!(!is_cordoned(&namespace).await);
}

#[tokio::test]
async fn uncordon_warns_of_a_node_that_an_autoscaler_is_about_to_delete() {
    let namespace = shared().namespace("uncordon_tainted").await;
    namespace.own_node(true).await;
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    let patch = Patch::Strategic(json!({ "spec": { "taints": [taint] } }));
    let nodes = namespace.global::<Node>();
    nodes.patch(namespace.name(), &Default::default(), &patch).await.expect("is tainted");
    let done = send(&namespace, "uncordon", json!({ "simulate": false }));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("ToBeDeletedByClusterAutoscaler:NoSchedule"), "{warnings}");
}

#[tokio::test]
async fn a_missing_node_is_reported() {
    let namespace = shared().namespace("cordon_missing").await;
    let done = send(&namespace, "cordon", json!({ "simulate": false }));
    assert_eq!(done.status, 69, "{done:?}");
    let problem = done.answer();
    assert_eq!(problem["code"], "target_not_found");
    assert_eq!(problem["detail"], format!("Node '{}' does not exist", namespace.name()));
    assert_eq!(problem["hint"], "`kubectl get nodes` lists those that do");
}

#[tokio::test]
async fn the_record_is_in_default_and_kubectl_shows_it_on_the_node() {
    let namespace = shared().namespace("cordon_record").await;
    namespace.own_node(false).await;
    let done = send(&namespace, "cordon", json!({ "simulate": false, "requester": "pager" }));
    assert_eq!(done.status, 0, "{done:?}");
    let events: Api<Event> = Api::namespaced(shared().client().await, "default");
    let fields = format!("involvedObject.kind=Node,involvedObject.name={}", namespace.name());
    let ours = ListParams::default()
        .labels("app.kubernetes.io/managed-by=action-executor")
        .fields(&fields);
    let records = events.list(&ours).await.expect("are listed").items;
    assert_eq!(records.len(), 1, "{records:?}");
    let described = kubectl(&["describe", "node", namespace.name()]);
    let line = described.lines().find(|line| line.contains("ActionApplied")).expect("is listed");
    assert!(line.contains("cordoned at") && line.contains("Requested by pager"), "{line}");
    let history = ["history", "--namespace", "default", "--target", namespace.name()];
    let listed = Program::with_kubeconfig(namespace.kubeconfig()).args(history).run();
    assert!(listed.stdout.contains("ActionApplied"), "{listed:?}");
}
