//! `observe_seconds`: a target that does not stay as the wait left it, and an observation that is interrupted, resumed
//! and replayed.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{Namespace, eventually, shared},
    limits::{all_permissions, calls, log_length},
    program::{Finished, Program, Running},
};

/// A restart of Deployment web that is observed for so long.
fn request(namespace: &Namespace, seconds: u32) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "timeout_seconds": 100,
        "observe_seconds": seconds, "id": "r1",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
}

/// A request in progress, and what shows how far it is.
struct Observed {
    namespace: Namespace,
    running: Running,
    user: String,
    since: u64,
}

impl Observed {
    /// Starts the request with an account of its own.
    async fn start(namespace: &Namespace, request: &Value) -> Self {
        let account = "observer";
        let kubeconfig = namespace.account(account, all_permissions()).await;
        let user = format!("system:serviceaccount:{}:{account}", namespace.name());
        let since = log_length();
        let policy = namespace.policy("cooldown_seconds: 0");
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let running = program.input(request.to_string()).start();
        Observed { namespace: namespace.clone(), running, user, since }
    }

    /// The ready pod, once the observation has seen it: no wait lists pods.
    async fn begun(&self) -> Pod {
        let lists = |entry: &Value| {
            let resource = &entry["objectRef"]["resource"];
            entry["verb"] == "list" && resource == "pods" && entry["stage"] == "ResponseComplete"
        };
        eventually("the observation has begun", async || {
            calls(&self.user, self.since).iter().any(lists).then_some(())
        })
        .await;
        self.namespace.pods_of("web").await.pop().expect("is there")
    }

    async fn end(self) -> Finished {
        spawn_blocking(|| self.running.wait()).await.expect("it ran")
    }
}

async fn send(namespace: &Namespace, request: &Value) -> Finished {
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let program = program.input(request.to_string());
    spawn_blocking(move || program.run()).await.expect("it ran")
}

/// Writes a part of a pod's status, as its kubelet does.
async fn set_status(namespace: &Namespace, pod: &Pod, status: Value) {
    let patch = Patch::Strategic(json!({ "status": status }));
    let pods = namespace.api::<Pod>();
    pods.patch_status(&pod.name_any(), &Default::default(), &patch).await.expect("is patched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stays_as_it_is_is_healthy_after_the_time() {
    let namespace = shared().namespace("observed").await;
    namespace.running_deployment("web", 2).await;
    let done = send(&namespace, &request(&namespace, 2)).await;
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("applied"), &json!("complete"))
    );
    let observation = &answer["observation"];
    assert_eq!((&observation["state"], &observation["seconds"]), (&json!("healthy"), &json!(2)));
    assert!(done.took >= Duration::from_secs(2), "{:?}", done.took);
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("Healthy: 2 pods are ready after 2 s"), "{result}");
    // The same request again returns that.
    let again = send(&namespace, &request(&namespace, 2)).await.answer();
    assert_eq!((&again["replayed"], &again["observation"]), (&json!(true), observation));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_restarts_is_not_ready_any_more_or_is_gone_fails_the_request() {
    for (test, problem) in [
        ("restarts", " restarted 2 times; last container main: OOMKilled (exit code 137)"),
        ("unready", ": not ready any more by this test"),
        ("gone", " is gone"),
    ] {
        let namespace = shared().namespace(&format!("observed_{test}")).await;
        namespace.running_deployment("web", 1).await;
        let observed = Observed::start(&namespace, &request(&namespace, 60)).await;
        let pod = observed.begun().await;
        match test {
            "restarts" => {
                let last = json!({ "terminated": {
                    "exitCode": 137, "reason": "OOMKilled", "startedAt": null, "finishedAt": null,
                }});
                let mut container = json!({ "name": "main", "restartCount": 2 });
                container["lastState"] = last;
                set_status(&namespace, &pod, json!({ "containerStatuses": [container] })).await;
            }
            "unready" => {
                let condition = json!({
                    "type": "Ready", "status": "False", "reason": "not ready any more by this test",
                });
                set_status(&namespace, &pod, json!({ "conditions": [condition] })).await;
            }
            _ => {
                let pods = namespace.api::<Pod>();
                pods.delete(&pod.name_any(), &Default::default()).await.expect("is deleted");
            }
        }
        let done = observed.end().await;
        assert_eq!(done.status, 69, "{test}: {done:?}");
        let answer = done.answer();
        assert_eq!(answer["rollout"]["state"], "complete", "{test}: {answer}");
        let observation = &answer["observation"];
        assert_eq!(
            (&answer["outcome"], &observation["state"]),
            (&json!("failed"), &json!("unhealthy"))
        );
        let problems = observation["problems"].to_string();
        assert!(
            problems.contains(&format!("pod {}{problem}", pod.name_any())),
            "{test}: {problems}"
        );
        // It ends with the first problem.
        assert!(done.took < Duration::from_secs(50), "{test}: {:?}", done.took);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_does_not_stay_healthy_is_rolled_back() {
    let namespace = shared().namespace("observed_back").await;
    namespace.running_deployment("web", 1).await;
    let mut wanted = request(&namespace, 60);
    wanted["parameters"]["rollback_on_failure"] = true.into();
    let observed = Observed::start(&namespace, &wanted).await;
    let pod = observed.begun().await;
    // It restarts, and is ready all the same: the rollout itself is complete.
    let container = json!({ "name": "main", "restartCount": 1 });
    set_status(&namespace, &pod, json!({ "containerStatuses": [container] })).await;
    let done = observed.end().await;
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["observation"]["state"], "unhealthy", "{answer}");
    assert_eq!(answer["rolled_back"]["rollout"]["state"], "complete", "{answer}");
    let template = namespace.get_deployment("web").await.spec.expect("has one").template;
    let annotations = template.metadata.and_then(|it| it.annotations).unwrap_or_default();
    assert!(!annotations.contains_key("kubectl.kubernetes.io/restartedAt"), "{annotations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observation_that_was_interrupted_or_killed_begins_anew() {
    for (signal, status) in [("TERM", Some(75)), ("KILL", None)] {
        let namespace = shared().namespace("observed_resumed").await;
        namespace.running_deployment("web", 1).await;
        let observed = Observed::start(&namespace, &request(&namespace, 60)).await;
        observed.begun().await;
        observed.running.signal(signal);
        let done = observed.end().await;
        if let Some(status) = status {
            assert_eq!(done.status, status, "{done:?}");
            assert_eq!(done.answer()["observation"]["state"], "interrupted", "{done:?}");
        }
        let generation = namespace.get_deployment("web").await.metadata.generation;
        let resumed = send(&namespace, &request(&namespace, 1)).await;
        assert_eq!(resumed.status, 0, "{signal}: {resumed:?}");
        let answer = resumed.answer();
        assert_eq!((&answer["replayed"], &answer["outcome"]), (&json!(true), &json!("applied")));
        assert_eq!(answer["observation"]["state"], "healthy", "{signal}: {answer}");
        // Nothing was done twice.
        assert_eq!(namespace.get_deployment("web").await.metadata.generation, generation);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_observes_if_the_first_attempt_did_not() {
    let namespace = shared().namespace("observed_replay").await;
    namespace.running_deployment("web", 1).await;
    let mut first = request(&namespace, 1);
    first.as_object_mut().expect("is one").remove("observe_seconds");
    let answer = send(&namespace, &first).await.answer();
    assert_eq!((&answer["outcome"], &answer["observation"]), (&json!("applied"), &Value::Null));
    let answer = send(&namespace, &request(&namespace, 1)).await.answer();
    assert_eq!(
        (&answer["replayed"], &answer["observation"]["state"]),
        (&json!(true), &json!("healthy"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_leaves_nothing_behind_says_so_at_once() {
    let namespace = shared().namespace("observed_node").await;
    namespace.own_node(false).await;
    let cordon = json!({
        "type": "cordon", "simulate": false, "wait": true, "observe_seconds": 60, "id": namespace.name(),
        "parameters": { "node": namespace.name() },
    });
    let done = send(&namespace, &cordon).await;
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["observation"]["state"], "not_applicable", "{answer}");
    let message = answer["observation"]["message"].as_str().expect("is a sentence");
    let expected =
        format!("this action leaves nothing of Node {} that could be observed", namespace.name());
    assert_eq!(message, expected);
    assert!(done.took < Duration::from_secs(30), "{:?}", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_scaled_meanwhile_stays_healthy() {
    let namespace = shared().namespace("observed_scaled").await;
    namespace.running_deployment("web", 2).await;
    let observed = Observed::start(&namespace, &request(&namespace, 8)).await;
    observed.begun().await;
    let scaled = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    deployments.patch("web", &Default::default(), &scaled).await.expect("is patched");
    let done = observed.end().await;
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["observation"]["state"], "healthy", "{done:?}");
}
