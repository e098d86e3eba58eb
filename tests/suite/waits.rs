//! What a wait costs the API server, and how soon it notices that the effect is complete.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    cluster::{Namespace, SLOW_IMAGE, eventually, shared},
    limits::{all_permissions, calls, log_length},
    program::Program,
    scenario::{Scenario, for_each_action},
};

/// The reads of the Deployment by this user since then.
fn reads(user: &str, since: u64) -> usize {
    let reads = |entry: &Value| {
        let resource = &entry["objectRef"]["resource"];
        entry["verb"] == "get" && resource == "deployments" && entry["stage"] == "ResponseComplete"
    };
    calls(user, since).iter().filter(|entry| reads(entry)).count()
}

/// The rules of all actions without `watch`.
fn without_watch() -> Value {
    let mut rules = all_permissions();
    for rule in rules.as_array_mut().expect("are rules") {
        rule["verbs"].as_array_mut().expect("are verbs").retain(|verb| verb != "watch");
    }
    rules
}

/// How often a restart reads the Deployment while its pod takes ten seconds to become ready.
async fn reads_of_a_slow_restart(namespace: &Namespace, account: &str, rules: Value) -> usize {
    let kubeconfig = namespace.account(account, rules).await;
    let user = format!("system:serviceaccount:{}:{account}", namespace.name());
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let since = log_length();
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(&kubeconfig).under(&policy).input(request.to_string());
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete");
    assert!(done.took > Duration::from_secs(9), "{:?}", done.took);
    reads(&user, since)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_reads_the_target_when_it_changes_and_polls_without_watch() {
    let namespace = shared().namespace("watched").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    let watching = reads_of_a_slow_restart(&namespace, "watching", all_permissions()).await;
    let polling = reads_of_a_slow_restart(&namespace, "polling", without_watch()).await;
    println!("reads in ten seconds: {watching} with watch, {polling} without");
    assert!(watching <= 9, "{watching}");
    assert!(polling >= 10, "{polling}");
}

#[test]
fn each_action_completes_without_the_permission_to_watch() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "polled").await;
        let kubeconfig = scenario.account("polling", without_watch()).await;
        let mut request = scenario.request("r1");
        request["wait"] = true.into();
        let policy = scenario.namespace.policy("cooldown_seconds: 0");
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let program = program.input(request.to_string());
        let done = spawn_blocking(|| program.run()).await.expect("it ran");
        assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{}: {done:?}", kind.name());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_is_noticed_within_half_a_second_at_the_median() {
    let mut delays = Vec::new();
    for number in 0..9 {
        let namespace = shared().namespace("noticed").await;
        namespace.running_deployment("web", 1).await;
        let name = namespace.name().to_owned();
        // The new pod is ready when this test says so.
        let held = json!({ "spec": { "template": { "spec": { "readinessGates": [
            { "conditionType": "example.com/released" },
        ]}}}});
        let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
        let params = PatchParams::default();
        deployments.patch("web", &params, &Patch::Strategic(held)).await.expect("is patched");
        let request = json!({
            "type": "restart_k8s", "simulate": false, "wait": true,
            "parameters": { "deployment": "web", "namespace": name },
        });
        let program = Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string());
        let running = program.start();
        eventually("the restart has made its pod", async || {
            let pods = namespace.pods_of("web").await;
            let annotated = |pod: &k8s_openapi::api::core::v1::Pod| {
                let annotations = pod.metadata.annotations.as_ref();
                annotations.is_some_and(|all| all.contains_key("action-executor.dev/request-id"))
            };
            pods.iter().any(annotated).then_some(())
        })
        .await;
        // At any point of a poll.
        sleep(Duration::from_millis(3000 + 137 * number)).await;
        let pods = namespace.api::<k8s_openapi::api::core::v1::Pod>();
        for pod in namespace.pods_of("web").await {
            let released = json!({ "status": { "conditions": [
                { "type": "example.com/released", "status": "True" },
                { "type": "Ready", "status": "True" },
            ]}});
            let name = pod.metadata.name.as_deref().expect("has one");
            let _ = pods.patch_status(name, &params, &Patch::Strategic(released)).await;
        }
        namespace.rolled_out("web").await;
        let complete = Instant::now();
        let done = spawn_blocking(|| running.wait()).await.expect("it ran");
        assert_eq!(done.status, 0, "{done:?}");
        delays.push(complete.elapsed());
    }
    delays.sort_unstable();
    println!("noticed after {delays:?}");
    assert!(delays[delays.len() / 2] < Duration::from_millis(500), "{delays:?}");
}
