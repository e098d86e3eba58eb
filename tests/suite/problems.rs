//! Why an awaited effect did not complete, as the answer says it: the workload's conditions, its pods, its Events.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, Pod, ResourceQuota},
};
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    program::{Finished, Program, Running},
    rollback_on_failure::block_new_pods,
    scenario::{for_each, set_paused},
};

fn request(namespace: &Namespace, action: &str, parameters: Value, seconds: u32) -> Value {
    let mut request = json!({
        "type": action, "simulate": false, "wait": true, "timeout_seconds": seconds, "id": "r1",
        "parameters": parameters,
    });
    request["parameters"]["namespace"] = namespace.name().into();
    request
}

fn start(namespace: &Namespace, request: &Value) -> Running {
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).start()
}

async fn wait(running: Running) -> Finished {
    spawn_blocking(|| running.wait()).await.expect("it ran")
}

fn problems(done: &Finished) -> Vec<String> {
    let problems = done.answer()["rollout"]["problems"].clone();
    serde_json::from_value(problems).unwrap_or_default()
}

/// The pods of `web` that this request has made.
async fn new_pods(namespace: &Namespace) -> Vec<Pod> {
    let annotation = "action-executor.dev/request-id";
    let pods = namespace.pods_of("web").await.into_iter();
    pods.filter(|pod| pod.annotations().contains_key(annotation)).collect()
}

async fn set_status(namespace: &Namespace, pod: &str, status: &Value) {
    let pods = namespace.api::<Pod>();
    let patch = Patch::Merge(json!({ "status": status }));
    pods.patch_status(pod, &Default::default(), &patch).await.expect("is patched");
}

/// A Deployment of one running pod whose next pods do not start.
async fn with_broken_template(test: &str) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    eventually("there is a pod", async || {
        (!namespace.pods_of("web").await.is_empty()).then_some(())
    })
    .await;
    namespace
}

#[test]
fn each_reason_why_a_new_pod_is_not_ready_is_in_the_answer() {
    let container = |state: Value, last: Value, ready: bool| {
        json!([{
            "name": "main", "image": MISSING_IMAGE, "imageID": "", "ready": ready, "restartCount": 2,
            "state": state, "lastState": last,
        }])
    };
    let unready = |reason: &str, message: &str| json!([{ "type": "Ready", "status": "False", "reason": reason, "message": message }]);
    let killed = json!({ "terminated": {
        "exitCode": 137, "reason": "OOMKilled", "startedAt": null, "finishedAt": null,
    }});
    let gate = "the status of pod readiness gate \"x\" is not \"True\", but False";
    let cases = [
        (
            "not ready",
            json!({
                "phase": "Running",
                "conditions": unready("ContainersNotReady", "containers with unready status: [main]"),
                "containerStatuses": container(json!({ "running": {} }), json!({}), false),
            }),
            "ContainersNotReady: containers with unready status: [main]",
        ),
        (
            "a readiness gate",
            json!({
                "phase": "Running",
                "conditions": unready("ReadinessGatesNotReady", gate),
                "containerStatuses": container(json!({ "running": {} }), json!({}), true),
            }),
            gate,
        ),
        (
            "creating",
            json!({
                "phase": "Pending", "conditions": [],
                "containerStatuses":
                    container(json!({ "waiting": { "reason": "ContainerCreating" } }), json!({}), false),
            }),
            "container main: ContainerCreating",
        ),
        (
            "killed and waiting",
            json!({
                "phase": "Running", "conditions": unready("ContainersNotReady", ""),
                "containerStatuses": container(
                    json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } }),
                    killed.clone(), false,
                ),
            }),
            "CrashLoopBackOff: restarted 2 times, last OOMKilled (exit code 137)",
        ),
        (
            "killed and running",
            json!({
                "phase": "Running", "conditions": unready("ContainersNotReady", ""),
                "containerStatuses": container(json!({ "running": {} }), killed.clone(), false),
            }),
            "container main: restarted 2 times, last OOMKilled (exit code 137)",
        ),
    ];
    for_each(&cases, async |(name, status, expected)| {
        let namespace = with_broken_template("unready_pod").await;
        let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 7);
        let running = start(&namespace, &asked);
        let pod = eventually("the new pod is there", async || {
            let pod = new_pods(&namespace).await.pop()?;
            // What the cluster's own simulation of a node writes comes first.
            pod.status.as_ref()?.container_statuses.as_ref()?;
            pod.metadata.name
        })
        .await;
        set_status(&namespace, &pod, &status).await;
        let done = wait(running).await;
        let problems = problems(&done);
        let has = problems
            .iter()
            .any(|it| it.starts_with(&format!("pod {pod}")) && it.contains(expected));
        assert!(has, "{name}: {problems:#?}");
    });
}

#[test]
fn a_quota_that_allows_no_pod_is_the_first_reason_for_each_kind() {
    let cases = [
        ("Deployment", "restart_k8s", json!({ "deployment": "web" })),
        ("StatefulSet", "restart_statefulset", json!({ "statefulset": "web" })),
        ("DaemonSet", "restart_daemonset", json!({ "daemonset": "web" })),
        ("Deployment", "scale", json!({ "name": "web", "replicas": 3 })),
        ("StatefulSet", "scale", json!({ "name": "web", "kind": "StatefulSet", "replicas": 3 })),
        ("CronJob", "run_cronjob", json!({ "cronjob": "web" })),
        ("Deployment", "restart_pod", json!({})),
    ];
    for_each(&cases, async |(kind, action, parameters)| {
        // The API server of a busy machine may have no time for the pods when the wait ends.
        let done = eventually("the pods are read", async || {
            let done = refused_by_a_quota(kind, action, &parameters).await;
            (!done.stdout.contains("the pods could not be read")).then_some(done)
        })
        .await;
        let problems = problems(&done);
        let first = problems.first().cloned().unwrap_or_default();
        assert!(
            first.contains("FailedCreate") && first.contains("exceeded quota: closed"),
            "{kind} {action}: {problems:#?} {done:?}"
        );
        let result = done.answer()["result"].to_string();
        assert!(result.contains("exceeded quota: closed"), "{result}");
    });
}

/// What this action on a new workload of this kind answers if its wait ends once the cluster has refused a pod.
async fn refused_by_a_quota(kind: &str, action: &str, parameters: &Value) -> Finished {
    let namespace = shared().namespace("closed").await;
    match kind {
        "StatefulSet" => namespace.running_stateful_set("web", 1).await,
        "DaemonSet" => namespace.running_daemon_set("web").await,
        "CronJob" => drop(namespace.cron_job("web", GOOD_IMAGE, false).await),
        _ => drop(namespace.running_deployment("web", 1).await),
    }
    block_new_pods(&namespace).await;
    let mut asked = request(&namespace, action, parameters.clone(), 60);
    if action == "restart_pod" {
        asked["parameters"]["pod_name"] = namespace.pods_of("web").await[0].name_any().into();
    }
    let running = start(&namespace, &asked);
    // The controllers of a busy machine try after seconds.
    eventually("a pod is refused", async || {
        let events = namespace.api::<Event>().list(&Default::default()).await.expect("are listed");
        let refused = |event: &Event| event.reason.as_deref() == Some("FailedCreate");
        events.iter().any(refused).then_some(())
    })
    .await;
    // Nothing but the Deployment's own condition says why it has fewer pods than it is scaled to. Its controller writes
    // that after the Event.
    if (kind, action) == ("Deployment", "scale") {
        eventually("the Deployment says that a pod is refused", async || {
            let deployment = namespace.api::<Deployment>().get("web").await.expect("is there");
            let conditions = deployment.status?.conditions?;
            conditions.iter().any(|it| it.type_ == "ReplicaFailure").then_some(())
        })
        .await;
    }
    running.signal("TERM");
    wait(running).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_that_cannot_be_created_is_reported() {
    let namespace = shared().namespace("no_replica_set").await;
    namespace.running_deployment("web", 1).await;
    namespace
        .create::<ResourceQuota>(json!({
            "metadata": { "name": "full" },
            "spec": { "hard": { "count/replicasets.apps": "1" } },
        }))
        .await;
    eventually("the quota holds", async || {
        let quota = namespace.api::<ResourceQuota>().get("full").await.expect("is there");
        let used = quota.status?.used?;
        (used.get("count/replicasets.apps")?.0 == "1").then_some(())
    })
    .await;
    let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 4);
    let problems = problems(&wait(start(&namespace, &asked)).await);
    let first = problems.first().cloned().unwrap_or_default();
    assert!(
        first.starts_with("ReplicaSetCreateError: ") && first.contains("exceeded quota: full"),
        "{problems:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_pod_that_does_not_go_is_reported_after_the_new_ones() {
    let namespace = shared().namespace("old_stays").await;
    namespace.running_stateful_set("web", 1).await;
    let pods = namespace.api::<Pod>();
    let finalizers = json!({ "metadata": { "finalizers": ["example.org/keep"] } });
    let patched = pods.patch("web-0", &Default::default(), &Patch::Merge(finalizers)).await;
    patched.expect("is patched");
    let asked = request(&namespace, "restart_statefulset", json!({ "statefulset": "web" }), 4);
    let problems = problems(&wait(start(&namespace, &asked)).await);
    let says = problems.iter().any(|it| it.contains("web-0") && it.contains("example.org/keep"));
    let none = json!({ "metadata": { "finalizers": null } });
    pods.patch("web-0", &Default::default(), &Patch::Merge(none)).await.expect("is patched");
    assert!(says, "{problems:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_pods_are_reported_before_old_ones_which_are_called_old() {
    let namespace = with_broken_template("old_and_new").await;
    let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 4);
    let old = namespace.pods_of("web").await[0].name_any();
    let problems = problems(&wait(start(&namespace, &asked)).await);
    let of_old = problems.iter().position(|it| it.starts_with(&format!("old pod {old}")));
    let of_new = problems.iter().position(|it| it.starts_with("pod web-"));
    assert!(of_new.is_some() && of_new < of_old, "{problems:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_warning_event_of_a_pod_is_reported() {
    let namespace = with_broken_template("events").await;
    let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 5);
    let running = start(&namespace, &asked);
    let pod = eventually("the new pod is there", async || new_pods(&namespace).await.pop()).await;
    for (reason, seconds) in [("FailedOld", 100), ("FailedMount", 2)] {
        let at = chrono::Utc::now() - chrono::TimeDelta::seconds(seconds);
        namespace
            .create::<Event>(json!({
                "metadata": { "name": reason.to_lowercase() },
                "involvedObject": {
                    "kind": "Pod", "apiVersion": "v1", "name": pod.name_any(),
                    "namespace": namespace.name(), "uid": pod.uid(),
                },
                "type": "Warning", "reason": reason, "message": "secret \"keys\" not found",
                "lastTimestamp": at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }))
            .await;
    }
    let problems = problems(&wait(running).await);
    let said = |part: &str| problems.iter().any(|it| it.contains(part));
    assert!(said("FailedMount: secret \"keys\" not found") && !said("FailedOld"), "{problems:#?}");
    let last = problems.last().expect("is there");
    assert!(last.starts_with(&format!("Event of Pod {}", pod.name_any())), "{problems:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_far_away_is_asked_for_the_reasons() {
    let namespace = with_broken_template("far").await;
    let kubeconfig = proxy(&namespace, |_| ProxyBehavior::Delay(Duration::from_millis(250))).await;
    let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 8);
    let program = Program::with_kubeconfig(&kubeconfig).input(asked.to_string());
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    let problems = problems(&done);
    assert!(problems.iter().any(|it| it.contains("ImagePullBackOff")), "{problems:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_another_client_paused_says_so() {
    let namespace = with_broken_template("paused_meanwhile").await;
    let asked = request(&namespace, "restart_k8s", json!({ "deployment": "web" }), 5);
    let running = start(&namespace, &asked);
    eventually("it is restarted", async || {
        (namespace.get_deployment("web").await.metadata.generation > Some(1)).then_some(())
    })
    .await;
    set_paused(&namespace, true).await;
    let problems = problems(&wait(running).await);
    assert_eq!(problems.first().map(String::as_str), Some("the Deployment is paused"));
}
