//! `taint` and `untaint` on a real API server.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    ledger::kubectl,
    program::{Finished, Program},
};

fn request(namespace: &Namespace, action: &str, parameters: Value) -> Value {
    let mut request = json!({
        "type": action, "simulate": false, "parameters": { "node": namespace.name() },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("are parameters").extend(more);
    request
}

fn send(namespace: &Namespace, action: &str, parameters: Value) -> Finished {
    let body = request(namespace, action, parameters).to_string();
    Program::with_kubeconfig(namespace.kubeconfig()).input(body).run()
}

async fn taints(namespace: &Namespace) -> Value {
    let node = namespace.global::<Node>().get(namespace.name()).await.expect("is there");
    json!(node.spec.and_then(|spec| spec.taints))
}

#[tokio::test]
async fn taints_end_in_the_same_state_as_with_kubectl() {
    let (ours, theirs) =
        tokio::join!(shared().namespace("taint_ours"), shared().namespace("taint_theirs"));
    ours.own_node(false).await;
    theirs.own_node(false).await;
    for (action, parameters, args) in [
        (
            "taint",
            json!({ "key": "a", "value": "x", "effect": "NoSchedule" }),
            vec!["a=x:NoSchedule"],
        ),
        ("taint", json!({ "key": "a", "effect": "PreferNoSchedule" }), vec!["a:PreferNoSchedule"]),
        (
            "taint",
            json!({ "key": "a", "value": "y", "effect": "NoSchedule" }),
            vec!["--overwrite", "a=y:NoSchedule"],
        ),
        ("taint", json!({ "key": "a", "effect": "NoExecute" }), vec!["a:NoExecute"]),
        ("untaint", json!({ "key": "a", "effect": "NoExecute" }), vec!["a:NoExecute-"]),
        ("untaint", json!({ "key": "a" }), vec!["a-"]),
    ] {
        let done = send(&ours, action, parameters.clone());
        assert_eq!(done.answer()["outcome"], "applied", "{done:?}");
        let again = send(&ours, action, parameters);
        assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
        kubectl(&theirs, &[&["taint", "nodes", theirs.name()], args.as_slice()].concat());
        assert_eq!(taints(&ours).await, taints(&theirs).await, "{args:?}");
    }
}

#[tokio::test]
async fn no_execute_names_and_ends_the_pods_that_do_not_tolerate_it() {
    let namespace = shared().namespace("taint_ends").await;
    namespace.own_node(false).await;
    namespace.replica_set_on_own_node("web", 2, json!({})).await;
    let tolerations = json!([{ "key": "maintenance", "operator": "Exists" }]);
    namespace.replica_set_on_own_node("stays", 1, json!({ "tolerations": tolerations })).await;
    let done = send(&namespace, "taint", json!({ "key": "maintenance", "effect": "NoExecute" }));
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied", "{answer}");
    let result = answer["result"].as_str().expect("is text");
    let name = namespace.name();
    assert!(result.contains(&format!("it ends 2 pods: {name}/web-0, {name}/web-1")), "{result}");
    assert!(answer["warnings"].to_string().contains("disruption budgets"), "{answer}");
    eventually("its pods are elsewhere", async || {
        let here = |pod: &k8s_openapi::api::core::v1::Pod| {
            pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(name))
        };
        let (web, stays) = (namespace.pods_of("web").await, namespace.pods_of("stays").await);
        (web.len() == 2 && !web.iter().any(here) && stays.iter().all(here)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_policy_and_its_budget_apply_to_each_pod_that_ends() {
    let namespace = shared().namespace("taint_policy").await;
    namespace.own_node(false).await;
    namespace.replica_set_on_own_node("web", 2, json!({})).await;
    let name = namespace.name().to_owned();
    for (policy, code) in [
        (format!("namespaces: {{deny: ['{name}']}}"), "policy_denied"),
        ("targets: {protected: ['app=web']}".to_owned(), "policy_denied"),
        (
            "budget: {cluster: {actions: 2, within_seconds: 60}, per_namespace: null}".to_owned(),
            "rate_limited",
        ),
        ("taints: {allow: ['other/*']}".to_owned(), "policy_denied"),
    ] {
        let before = taints(&namespace).await;
        let path = namespace.policy(&policy);
        let body =
            request(&namespace, "taint", json!({ "key": "maintenance", "effect": "NoExecute" }));
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&path);
        let done = program.input(body.to_string()).run();
        assert_eq!(done.answer()["code"], code, "{policy} {done:?}");
        assert_eq!(taints(&namespace).await, before, "{policy}");
    }
}

#[tokio::test]
async fn losses_must_be_accepted() {
    let namespace = shared().namespace("taint_losses").await;
    namespace.own_node(false).await;
    let spec = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
    namespace.replica_set_on_own_node("web", 1, spec).await;
    let taint = json!({ "key": "maintenance", "effect": "NoExecute" });
    let done = send(&namespace, "taint", taint.clone());
    assert_eq!(done.answer()["code"], "drain_blocked", "{done:?}");
    assert!(done.answer()["hint"].to_string().contains("delete_empty_dir_data"), "{done:?}");
    let mut accepted = taint;
    accepted["delete_empty_dir_data"] = true.into();
    assert_eq!(send(&namespace, "taint", accepted).answer()["outcome"], "applied");
}

#[tokio::test]
async fn a_node_that_is_ready_is_not_taken_out_of_service() {
    let namespace = shared().namespace("taint_off").await;
    namespace.own_node(false).await;
    let key = "node.kubernetes.io/out-of-service";
    let done = send(&namespace, "taint", json!({ "key": key, "effect": "NoExecute" }));
    assert_eq!(done.answer()["code"], "drain_blocked", "{done:?}");
    let done =
        send(&namespace, "taint", json!({ "key": "node.kubernetes.io/x", "effect": "NoExecute" }));
    assert_eq!(done.answer()["field"], "parameters.key", "{done:?}");
}
