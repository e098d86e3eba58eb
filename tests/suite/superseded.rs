//! A change by another client while a request waits: it is never reported as the request's own, and never reverted.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread::sleep,
    time::Duration,
};

use action_executor::{executor::failpoint::Failpoint, k8s::workload::WorkloadKind};
use kube::api::{DynamicObject, Patch};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    ledger::kubectl,
    pause_rollout::change_template,
    program::{Finished, Program, Running, Server, scratch},
    scenario::{for_each, set_paused},
};

/// How other clients change a pod template; each leaves the annotations of the template that they do not name.
#[derive(Clone, Copy, Debug)]
enum Change {
    SetEnv,
    SetImage,
    Restart,
    Apply,
    ServerSideApply,
}

const CHANGES: [Change; 5] =
    [Change::SetEnv, Change::SetImage, Change::Restart, Change::Apply, Change::ServerSideApply];

const KINDS: [WorkloadKind; 3] =
    [WorkloadKind::Deployment, WorkloadKind::StatefulSet, WorkloadKind::DaemonSet];

async fn get(namespace: &Namespace, kind: WorkloadKind) -> DynamicObject {
    namespace.objects(&kind.resource()).get("web").await.expect("is there")
}

async fn generation(namespace: &Namespace, kind: WorkloadKind) -> i64 {
    get(namespace, kind).await.metadata.generation.expect("has one")
}

/// A workload whose pods take ten seconds to become ready, once its first revision is recorded.
async fn slow_workload(test: &str, kind: WorkloadKind) -> Namespace {
    let namespace = shared().namespace(test).await.with_image(SLOW_IMAGE);
    match kind {
        WorkloadKind::StatefulSet => namespace.stateful_set("web", 1).await,
        WorkloadKind::DaemonSet => namespace.daemon_set("web").await,
        _ => drop(namespace.deployment("web", 1, SLOW_IMAGE).await),
    }
    observed(&namespace, kind).await;
    namespace
}

async fn observed(namespace: &Namespace, kind: WorkloadKind) {
    eventually("the controller has observed it", async || {
        let found = get(namespace, kind).await;
        let observed = found.data["status"]["observedGeneration"].as_i64();
        (observed == found.metadata.generation).then_some(())
    })
    .await;
}

impl Change {
    /// Makes the change, which adds a variable or sets another image; returns the template that it left.
    async fn make(self, namespace: &Namespace, kind: WorkloadKind) -> Value {
        let (what, file) = (format!("{}/web", kind.for_kubectl()), scratch("theirs.json"));
        let found = get(namespace, kind).await;
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind.name(),
            "metadata": { "name": "web", "namespace": namespace.name() },
        });
        let container = json!({ "name": "main", "env": [{ "name": "THEIRS", "value": "1" }] });
        match self {
            Change::SetEnv => kubectl(namespace, &["set", "env", &what, "THEIRS=1"]),
            Change::SetImage => {
                kubectl(namespace, &["set", "image", &what, "main=registry.invalid/theirs:1"])
            }
            Change::Restart => {
                // A restart within the second of ours would change nothing.
                sleep(Duration::from_millis(1100));
                kubectl(namespace, &["rollout", "restart", &what])
            }
            Change::Apply => {
                object["spec"] = found.data["spec"].clone();
                let annotations = &mut object["spec"]["template"]["metadata"]["annotations"];
                *annotations = Value::Null;
                object["spec"]["template"]["spec"]["containers"][0]["env"] =
                    container["env"].clone();
                std::fs::write(&file, object.to_string()).expect("is written");
                kubectl(namespace, &["apply", "-f", &file.display().to_string()])
            }
            Change::ServerSideApply => {
                let labels = json!({ "labels": { "app": "web" } });
                let container =
                    json!({ "name": "main", "image": SLOW_IMAGE, "env": container["env"] });
                let template = json!({ "metadata": labels, "spec": { "containers": [container] } });
                object["spec"] = json!({
                    "selector": found.data["spec"]["selector"], "template": template,
                });
                std::fs::write(&file, object.to_string()).expect("is written");
                let file = file.display().to_string();
                kubectl(namespace, &["apply", "--server-side", "--force-conflicts", "-f", &file])
            }
        };
        get(namespace, kind).await.data["spec"]["template"].clone()
    }
}

fn restart(namespace: &Namespace, kind: WorkloadKind, seconds: u32, back: bool) -> Value {
    let (action, parameter) = match kind {
        WorkloadKind::StatefulSet => ("restart_statefulset", "statefulset"),
        WorkloadKind::DaemonSet => ("restart_daemonset", "daemonset"),
        _ => ("restart_k8s", "deployment"),
    };
    json!({
        "type": action, "simulate": false, "wait": true, "timeout_seconds": seconds, "id": "r1",
        "parameters": {
            (parameter): "web", "namespace": namespace.name(), "rollback_on_failure": back,
        },
    })
}

fn program(namespace: &Namespace) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig())
}

async fn send(program: Program, request: &Value) -> Finished {
    let program = program.input(request.to_string());
    spawn_blocking(move || program.run()).await.expect("it ran")
}

/// The running program, once its change is made.
async fn waiting(namespace: &Namespace, kind: WorkloadKind, request: &Value) -> Running {
    let before = generation(namespace, kind).await;
    let running = program(namespace).input(request.to_string()).start();
    eventually("the change is made", async || {
        (generation(namespace, kind).await > before).then_some(())
    })
    .await;
    running
}

/// Checks that the answer is of a change that another one superseded, and that the other one is still there.
async fn check_superseded(
    namespace: &Namespace,
    kind: WorkloadKind,
    theirs: &Value,
    done: &Finished,
    what: &str,
) {
    assert_eq!(done.status, 69, "{what}: {done:?}");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "failed", "{what}: {answer}");
    let message = answer["rollout"]["message"].as_str().expect("is a sentence");
    assert!(message.starts_with("superseded"), "{what}: {answer}");
    assert!(answer["rollout"].get("problems").is_none(), "{what}: {answer}");
    assert!(answer.get("rolled_back").is_none(), "{what}: {answer}");
    let template = &get(namespace, kind).await.data["spec"]["template"];
    assert_eq!(template, theirs, "{what}");
}

async fn supersede(kind: WorkloadKind, change: Change, back: bool) {
    let what = format!("{kind:?} {change:?} {back}");
    let namespace = slow_workload("theirs", kind).await;
    // Without a rollback, there is time for their rollout to complete.
    let seconds = if back { 8 } else { 40 };
    let running = waiting(&namespace, kind, &restart(&namespace, kind, seconds, back)).await;
    let theirs = change.make(&namespace, kind).await;
    let done = spawn_blocking(|| running.wait()).await.expect("it ran");
    check_superseded(&namespace, kind, &theirs, &done, &what).await;
    if back {
        let result = done.answer()["result"].to_string();
        assert!(result.contains("Not rolled back: ") && result.contains("as this request left it"));
    }
}

#[test]
fn another_clients_change_during_a_wait_is_neither_reported_as_ours_nor_reverted() {
    let mut cases = Vec::new();
    for change in CHANGES {
        cases.push((WorkloadKind::Deployment, change, true));
    }
    for kind in KINDS {
        cases.push((kind, Change::SetEnv, false));
        cases.push((kind, Change::ServerSideApply, true));
    }
    for_each(&cases, async |(kind, change, back)| supersede(kind, change, back).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_another_change_superseded_is_not_reported_as_complete() {
    for kind in KINDS {
        let namespace = slow_workload("theirs_undo", kind).await;
        kubectl(&namespace, &["set", "env", &format!("{}/web", kind.for_kubectl()), "OURS=2"]);
        observed(&namespace, kind).await;
        let request = json!({
            "type": "rollback", "simulate": false, "wait": true, "timeout_seconds": 40, "id": "r1",
            "parameters": { "kind": kind.name(), "name": "web", "namespace": namespace.name() },
        });
        let running = waiting(&namespace, kind, &request).await;
        let theirs = Change::SetEnv.make(&namespace, kind).await;
        let done = spawn_blocking(|| running.wait()).await.expect("it ran");
        check_superseded(&namespace, kind, &theirs, &done, &format!("{kind:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_rollout_that_another_change_superseded_is_not_reported_as_complete() {
    let kind = WorkloadKind::Deployment;
    let namespace = slow_workload("theirs_resumed", kind).await;
    set_paused(&namespace, true).await;
    kubectl(&namespace, &["set", "env", "deployment/web", "DURING=pause"]);
    let request = json!({
        "type": "resume_rollout", "simulate": false, "wait": true, "timeout_seconds": 40, "id": "r1",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let running = waiting(&namespace, kind, &request).await;
    let theirs = Change::SetEnv.make(&namespace, kind).await;
    let done = spawn_blocking(|| running.wait()).await.expect("it ran");
    check_superseded(&namespace, kind, &theirs, &done, "resumed").await;
}

#[test]
fn a_change_of_anything_but_the_template_does_not_supersede_a_rollout() {
    for_each(&KINDS, async |kind| {
        let namespace = slow_workload("not_theirs", kind).await;
        let running = waiting(&namespace, kind, &restart(&namespace, kind, 60, false)).await;
        let other = match kind {
            WorkloadKind::DaemonSet => json!({ "spec": { "minReadySeconds": 1 } }),
            _ => json!({ "spec": { "replicas": 2 } }),
        };
        let objects = namespace.objects(&kind.resource());
        let patch = Patch::Merge(other);
        objects.patch("web", &Default::default(), &patch).await.expect("is patched");
        let done = spawn_blocking(|| running.wait()).await.expect("it ran");
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    });
}

/// How an attempt leaves a wait to its replay.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// It crashed after its change, before it recorded it.
    Unrecorded,
    /// It was interrupted while it waited.
    Interrupted,
    /// It did not wait.
    Answered,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_takes_up_a_wait_recognises_another_clients_change() {
    for left in [Left::Unrecorded, Left::Interrupted, Left::Answered] {
        let kind = WorkloadKind::Deployment;
        let namespace = slow_workload("theirs_replayed", kind).await;
        let mut request = restart(&namespace, kind, 40, false);
        match left {
            Left::Unrecorded => {
                let failpoint = Failpoint::AfterWrite.name();
                let crashing = program(&namespace).env("ACTION_EXECUTOR_FAILPOINT", failpoint);
                let crashing = crashing.env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2");
                assert_eq!(send(crashing, &request).await.status, -1);
            }
            Left::Interrupted => {
                let running = waiting(&namespace, kind, &request).await;
                running.signal("TERM");
                let done = spawn_blocking(|| running.wait()).await.expect("it ran");
                assert_eq!(done.status, 75, "{done:?}");
            }
            Left::Answered => {
                request["wait"] = false.into();
                request.as_object_mut().expect("is one").remove("timeout_seconds");
                request["parameters"]["rollback_on_failure"] = false.into();
                assert_eq!(send(program(&namespace), &request).await.status, 0);
                request["wait"] = true.into();
                request["timeout_seconds"] = 40.into();
            }
        }
        let theirs = Change::SetEnv.make(&namespace, kind).await;
        let done = send(program(&namespace).args(["--join"]), &request).await;
        check_superseded(&namespace, kind, &theirs, &done, &format!("{left:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_the_same_name_is_not_taken_for_the_one_that_was_changed() {
    for request in ["restart_k8s", "scale"] {
        let kind = WorkloadKind::Deployment;
        let namespace = slow_workload("successor", kind).await.with_image(GOOD_IMAGE);
        let parameters = match request {
            "scale" => json!({ "name": "web", "namespace": namespace.name(), "replicas": 2 }),
            _ => json!({ "deployment": "web", "namespace": namespace.name() }),
        };
        let request = json!({
            "type": request, "simulate": false, "wait": true, "timeout_seconds": 40, "id": "r1",
            "parameters": parameters,
        });
        let running = waiting(&namespace, kind, &request).await;
        running.signal("STOP");
        kubectl(&namespace, &["delete", "deployment", "web", "--cascade=foreground"]);
        namespace.running_deployment("web", 2).await;
        running.signal("CONT");
        let done = spawn_blocking(|| running.wait()).await.expect("it ran");
        assert_eq!(done.status, 69, "{done:?}");
        let message = done.answer()["rollout"]["message"].to_string();
        assert!(message.contains("was replaced by another object of its name"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_request_says_that_another_change_superseded_it() {
    let kind = WorkloadKind::Deployment;
    let namespace = slow_workload("theirs_status", kind).await;
    let server = Server::start(program(&namespace));
    let request = restart(&namespace, kind, 40, false);
    // The wait of another process was interrupted, so that only the record and the object remain.
    let running = waiting(&namespace, kind, &request).await;
    running.signal("TERM");
    spawn_blocking(|| running.wait()).await.expect("it ran");
    Change::SetEnv.make(&namespace, kind).await;
    let path = format!("/api/v1/actions/r1?namespace={}", namespace.name());
    let detail = server.get(&path).json()["detail"].to_string();
    assert!(detail.contains("superseded"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_right_before_the_rollback_is_not_reverted() {
    // Their change comes between the read on which the rollback rests, and its patch.
    let kind = WorkloadKind::Deployment;
    let namespace = shared().namespace("theirs_last").await;
    namespace.running_deployment("web", 1).await;
    change_template(&namespace, MISSING_IMAGE).await;
    observed(&namespace, kind).await;
    let (meddler, handle) = (namespace.clone(), tokio::runtime::Handle::current());
    let patches = AtomicUsize::new(0);
    let kubeconfig = proxy(&namespace, move |call| {
        if call.writes("deployments") && patches.fetch_add(1, Ordering::SeqCst) == 1 {
            let change = Change::SetEnv.make(&meddler, WorkloadKind::Deployment);
            tokio::task::block_in_place(|| handle.block_on(change));
        }
        ProxyBehavior::Forward
    })
    .await;
    let request = restart(&namespace, kind, 3, true);
    let program = Program::with_kubeconfig(&kubeconfig);
    let done = send(program, &request).await;
    let answer = done.answer();
    assert!(answer.get("rolled_back").is_none(), "{answer}");
    let result = answer["result"].to_string();
    assert!(result.contains("Not rolled back: "), "{result}");
    let env = kubectl(&namespace, &["set", "env", "deployment/web", "--list"]);
    assert!(env.contains("THEIRS=1"), "{env}");
}
