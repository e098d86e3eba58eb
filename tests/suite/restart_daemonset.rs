//! `restart_daemonset` on a real API server.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared, without_restart},
    ledger::kubectl,
    program::{Finished, Program},
};

fn send(namespace: &Namespace, parameters: Value) -> Finished {
    let mut request = json!({
        "type": "restart_daemonset", "simulate": false, "wait": true,
        "parameters": { "daemonset": "agent", "namespace": namespace.name() },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn get(namespace: &Namespace) -> DaemonSet {
    namespace.api::<DaemonSet>().get("agent").await.expect("is there")
}

async fn pods(namespace: &Namespace) -> BTreeSet<String> {
    let pods = namespace.pods_of("agent").await.into_iter();
    pods.map(|pod| pod.uid().expect("has one")).collect()
}

#[tokio::test]
async fn a_restart_waits_until_each_node_has_a_new_available_pod() {
    let namespace = shared().namespace("ds_waits").await;
    namespace.running_daemon_set("agent").await;
    let before = pods(&namespace).await;
    let done = send(&namespace, json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    let after = pods(&namespace).await;
    assert_eq!(after.len(), before.len());
    assert!(after.is_disjoint(&before), "{before:?} {after:?}");
}

#[tokio::test]
async fn an_on_delete_strategy_is_refused_unless_accepted() {
    let namespace = shared().namespace("ds_on_delete").await;
    namespace.running_daemon_set("agent").await;
    let strategy = json!({ "type": "OnDelete", "rollingUpdate": null });
    let patch = Patch::Merge(json!({ "spec": { "updateStrategy": strategy } }));
    let sets = namespace.api::<DaemonSet>();
    sets.patch("agent", &Default::default(), &patch).await.expect("is patched");
    let before = (get(&namespace).await.metadata.generation, pods(&namespace).await);
    let refused = send(&namespace, json!({}));
    assert_eq!(refused.status, 69, "{refused:?}");
    assert_eq!(refused.answer()["code"], "no_effect");
    assert_eq!((get(&namespace).await.metadata.generation, pods(&namespace).await), before);
    let done = send(&namespace, json!({ "accept_on_delete": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(get(&namespace).await.metadata.generation > before.0);
    assert_eq!(pods(&namespace).await, before.1);
}

#[tokio::test]
async fn a_restart_leaves_the_same_state_as_kubectl() {
    let theirs = shared().namespace("ds_kubectl").await;
    let ours = shared().namespace("ds_ours").await;
    for namespace in [&theirs, &ours] {
        namespace.running_daemon_set("agent").await;
    }
    kubectl(&theirs, &["rollout", "restart", "daemonset/agent"]);
    kubectl(&theirs, &["rollout", "status", "daemonset/agent", "--timeout=50s"]);
    assert_eq!(send(&ours, json!({})).status, 0);
    let end = async |namespace: &Namespace| {
        let set = get(namespace).await;
        let template = without_restart(set.spec.expect("has one").template);
        let status = set.status.expect("has one");
        json!([
            set.metadata.generation,
            template,
            status.updated_number_scheduled,
            status.number_available,
        ])
    };
    assert_eq!(end(&ours).await, end(&theirs).await);
}
