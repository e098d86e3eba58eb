//! `rollback_on_failure`: the state after a failed rollout, with crashes and other failures during the rollback.

use std::path::Path;

use action_executor::{executor::failpoint::Failpoint, k8s::workload::WorkloadKind};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    coordination::v1::Lease,
    core::v1::{Event, Pod, ResourceQuota},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{GOOD_IMAGE, MISSING_IMAGE, Namespace, eventually, shared},
    drain::lose_node,
    fault_proxy::{ProxyBehavior, proxy},
    ledger::records,
    program::{Finished, Program},
    scenario::without_replayed,
};

/// The workload's object as it is now.
async fn get(namespace: &Namespace, kind: WorkloadKind) -> kube::api::DynamicObject {
    namespace.objects(&kind.resource()).get("web").await.expect("is there")
}

async fn image(namespace: &Namespace, kind: WorkloadKind) -> Value {
    let found = get(namespace, kind).await;
    found.data["spec"]["template"]["spec"]["containers"][0]["image"].clone()
}

async fn generation(namespace: &Namespace, kind: WorkloadKind) -> i64 {
    get(namespace, kind).await.metadata.generation.expect("has one")
}

async fn set_image(namespace: &Namespace, kind: WorkloadKind, image: &str) {
    let container = json!({ "name": "main", "image": image });
    let patch = json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
    let (objects, patch) = (namespace.objects(&kind.resource()), Patch::Strategic(patch));
    objects.patch("web", &Default::default(), &patch).await.expect("is patched");
}

/// A running workload whose previous revision cannot run.
async fn after_a_broken_revision(test: &str, kind: WorkloadKind) -> Namespace {
    let namespace = shared().namespace(test).await;
    let broken = namespace.clone().with_image(MISSING_IMAGE);
    match kind {
        WorkloadKind::DaemonSet => broken.daemon_set("web").await,
        _ => drop(broken.deployment("web", 1, MISSING_IMAGE).await),
    }
    eventually("the broken revision is known", async || {
        (get(&namespace, kind).await.data["status"]["observedGeneration"] == 1).then_some(())
    })
    .await;
    set_image(&namespace, kind, GOOD_IMAGE).await;
    running(&namespace, kind).await;
    namespace
}

/// Waits until the current revision runs.
async fn running(namespace: &Namespace, kind: WorkloadKind) {
    let name = kind.for_kubectl();
    let (namespace, what) = (namespace.clone(), format!("{name}/web"));
    let wait = move || crate::ledger::kubectl(&namespace, &["rollout", "status", &what]);
    spawn_blocking(wait).await.expect("it ran");
}

/// A request to roll back to the broken revision, with an automatic rollback of that.
fn request(namespace: &Namespace, kind: WorkloadKind, id: &str) -> Value {
    json!({
        "type": "rollback", "simulate": false, "wait": true, "timeout_seconds": 2, "id": id,
        "parameters": {
            "kind": kind.name(), "name": "web", "namespace": namespace.name(),
            "rollback_on_failure": true,
        },
    })
}

fn program(namespace: &Namespace) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig()).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2")
}

async fn send(program: Program, request: &Value) -> Finished {
    let program = program.input(request.to_string());
    spawn_blocking(move || program.run()).await.expect("it ran")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_rollout_is_rolled_back_and_both_are_reported() {
    for kind in [WorkloadKind::Deployment, WorkloadKind::DaemonSet] {
        let namespace = after_a_broken_revision("taken_back", kind).await;
        let before = generation(&namespace, kind).await;
        let mut request = request(&namespace, kind, "r1");
        request["timeout_seconds"] = 5.into();
        let done = send(program(&namespace), &request).await;
        assert_eq!(done.status, 69, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["outcome"], "failed");
        assert_eq!(answer["rollout"]["state"], "timed_out");
        let rolled_back = &answer["rolled_back"];
        assert_eq!(rolled_back["revision"], 2, "{answer}");
        assert_eq!(rolled_back["rollout"]["state"], "complete", "{answer}");
        assert_eq!(rolled_back["resource_version"], answer["target"]["resourceVersion"]);
        let result = answer["result"].as_str().expect("is a sentence");
        for part in
            ["rolled back to revision 1 at", "Not complete in the time", "revision 2. Complete"]
        {
            assert!(result.contains(part), "{result}");
        }
        assert_eq!(image(&namespace, kind).await, GOOD_IMAGE);
        assert_eq!(generation(&namespace, kind).await, before + 2);
        let marks =
            get(&namespace, kind).await.annotations()["action-executor.dev/requests"].clone();
        let id = |mark: &str| mark.split(['@', ':']).nth(1).map(str::to_owned);
        let ids: Vec<_> = marks.split(' ').filter_map(id).collect();
        assert_eq!(ids, ["r1", "r1/rollback"], "{marks}");
        // A retry gets the same answer and changes nothing.
        let again = send(program(&namespace), &request).await;
        assert_eq!(again.answer()["replayed"], true);
        assert_eq!(without_replayed(again.answer()), without_replayed(answer));
        assert_eq!(generation(&namespace, kind).await, before + 2);
    }
}

/// Prevents new pods in the namespace.
pub async fn block_new_pods(namespace: &Namespace) {
    namespace
        .create::<ResourceQuota>(json!({
            "metadata": { "name": "closed" }, "spec": { "hard": { "pods": "0" } },
        }))
        .await;
    eventually("the quota holds", async || {
        let quota = namespace.api::<ResourceQuota>().get("closed").await.expect("is there");
        quota.status?.hard.map(drop)
    })
    .await;
}

/// Ends what [`block_new_pods`] began.
pub async fn allow_new_pods(namespace: &Namespace) {
    let quotas = namespace.api::<ResourceQuota>();
    quotas.delete("closed", &DeleteParams::default()).await.expect("is deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_restart_of_each_kind_is_rolled_back() {
    for (kind, action, parameter) in [
        (WorkloadKind::Deployment, "restart_k8s", "deployment"),
        (WorkloadKind::StatefulSet, "restart_statefulset", "statefulset"),
        (WorkloadKind::DaemonSet, "restart_daemonset", "daemonset"),
    ] {
        let namespace = shared().namespace("taken_back").await;
        match kind {
            WorkloadKind::StatefulSet => namespace.running_stateful_set("web", 2).await,
            WorkloadKind::DaemonSet => namespace.running_daemon_set("web").await,
            _ => drop(namespace.running_deployment("web", 1).await),
        }
        let before = get(&namespace, kind).await.data["spec"]["template"].clone();
        block_new_pods(&namespace).await;
        let request = json!({
            "type": action, "simulate": false, "wait": true, "timeout_seconds": 3, "id": "r1",
            "parameters": {
                (parameter): "web", "namespace": namespace.name(), "rollback_on_failure": true,
            },
        });
        let done = send(program(&namespace), &request).await;
        assert_eq!(done.status, 69, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["rolled_back"]["revision"], 1, "{answer}");
        assert_eq!(get(&namespace, kind).await.data["spec"]["template"], before, "{answer}");
        // The old pods of a Deployment still run; those of the other kinds have been deleted.
        let state = &answer["rolled_back"]["rollout"]["state"];
        let whole = kind == WorkloadKind::Deployment;
        assert_eq!(state, if whole { "complete" } else { "timed_out" }, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_waits_for_a_lost_node_alone_is_not_rolled_back() {
    let namespace = shared().namespace("back_lost").await;
    namespace.own_node(false).await;
    namespace.daemon_set_on_own_node("web").await;
    let pod = namespace.pods_of("web").await.remove(0).name_any();
    let held = json!({ "metadata": { "finalizers": ["test.action-executor.dev/held"] } });
    let pods = namespace.api::<Pod>();
    pods.patch(&pod, &Default::default(), &Patch::Merge(held)).await.expect("is held");
    lose_node(&namespace).await;
    namespace.set_ready(&pod, false).await;
    let restart = json!({
        "type": "restart_daemonset", "simulate": false, "wait": true, "timeout_seconds": 2,
        "parameters": {
            "daemonset": "web", "namespace": namespace.name(), "rollback_on_failure": true,
        },
    });
    let done = send(program(&namespace), &restart).await;
    assert_eq!(done.status, 69, "{done:?}");
    let result = done.answer()["result"].to_string();
    let why = format!("waits only for nodes whose kubelets do not report ({})", namespace.name());
    assert!(result.contains("Not rolled back: ") && result.contains(&why), "{result}");
    assert_eq!(generation(&namespace, WorkloadKind::DaemonSet).await, 2);
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch(&pod, &Default::default(), &unset).await.expect("is released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_the_rollback_leaves_one_rollback_and_one_answer() {
    let kind = WorkloadKind::Deployment;
    for at in
        [Failpoint::AfterWrite, Failpoint::BeforeRecord].into_iter().chain(Failpoint::ROLLBACK)
    {
        let namespace = after_a_broken_revision("dies_back", kind).await;
        let before = generation(&namespace, kind).await;
        let mut request = request(&namespace, kind, "r1");
        request["timeout_seconds"] = 5.into();
        let crashing = program(&namespace).env("ACTION_EXECUTOR_FAILPOINT", at.name());
        let crashed = send(crashing, &request).await;
        assert_eq!((crashed.status, crashed.stdout.as_str()), (-1, ""), "{at:?}: {crashed:?}");
        let insist = || program(&namespace).args(["--join"]);
        let first = send(insist(), &request).await;
        assert_eq!(
            first.answer()["rolled_back"]["rollout"]["state"],
            "complete",
            "{at:?} {first:?}"
        );
        assert_eq!(first.answer()["rolled_back"]["revision"], 2, "{at:?} {first:?}");
        let second = send(insist(), &request).await;
        assert_eq!(without_replayed(first.answer()), without_replayed(second.answer()), "{at:?}");
        assert_eq!(image(&namespace, kind).await, GOOD_IMAGE);
        assert_eq!(generation(&namespace, kind).await, before + 2, "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_is_rolling_back_before_the_rollback_is_applied() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("under_way", kind).await;
    let crashing =
        program(&namespace).env("ACTION_EXECUTOR_FAILPOINT", Failpoint::BeforeRollback.name());
    send(crashing, &request(&namespace, kind, "r1")).await;
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE);
    let records = records(&namespace).await;
    let annotations = records[0].annotations();
    assert_eq!(annotations["action-executor.dev/state"], "rolling_back");
    assert!(annotations["action-executor.dev/rollback"].contains("r1/rollback"));
    assert!(annotations["action-executor.dev/intent"].contains(r#""rollback_target":{"#));
}

/// The name of the ReplicaSet with this image.
async fn replica_set_with(namespace: &Namespace, image: &str) -> String {
    let all = namespace.api::<ReplicaSet>().list(&Default::default()).await.expect("are listed");
    let has_image = |set: &ReplicaSet| json!(set.spec)["template"].to_string().contains(image);
    all.into_iter().find(has_image).expect("is there").name_any()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_does_not_choose_the_revision() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("forged_back", kind).await;
    let other = "registry.invalid/other:1";
    set_image(&namespace, kind, other).await;
    running(&namespace, kind).await;
    set_image(&namespace, kind, GOOD_IMAGE).await;
    running(&namespace, kind).await;
    let mut request = request(&namespace, kind, "r1");
    request["parameters"]["to_revision"] = 1.into();
    let crashing =
        program(&namespace).env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterWrite.name());
    send(crashing, &request).await;
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE);
    let record = records(&namespace).await.remove(0);
    let right = replica_set_with(&namespace, GOOD_IMAGE).await;
    let wrong = replica_set_with(&namespace, other).await;
    let named = |revision: &str| format!(r#""revision":"{revision}""#);
    let intent = &record.annotations()["action-executor.dev/intent"];
    let intent = intent.replace(&named(&right), &named(&wrong));
    assert!(intent.contains(&wrong), "{intent}");
    let forged = json!({ "metadata": { "annotations": { "action-executor.dev/intent": intent } } });
    let events = namespace.api::<Event>();
    events
        .patch(&record.name_any(), &Default::default(), &Patch::Merge(forged))
        .await
        .expect("is patched");
    let answer = eventually("the claim has expired", async || {
        let answer = send(program(&namespace).args(["--join"]), &request).await.answer();
        (answer["code"] != "in_progress").then_some(answer)
    })
    .await;
    let result = answer["result"].as_str().unwrap_or_default();
    assert!(result.contains("is not as this request left it"), "{answer}");
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_retries_roll_back_once() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("at_once", kind).await;
    let before = generation(&namespace, kind).await;
    let request = request(&namespace, kind, "r1");
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let program = program(&namespace).args(["--join"]).input(request.to_string());
        tries.spawn_blocking(move || program.run().answer());
    }
    let answers = tries.join_all().await;
    for answer in &answers {
        assert_eq!(answer["rolled_back"]["revision"], 2, "{answers:#?}");
    }
    assert_eq!(generation(&namespace, kind).await, before + 2);
    assert_eq!(image(&namespace, kind).await, GOOD_IMAGE);
}

/// The running program, once the broken revision is applied.
async fn waiting(namespace: &Namespace, policy: &Path) -> crate::program::Running {
    let kind = WorkloadKind::Deployment;
    let mut request = request(namespace, kind, "r1");
    request["timeout_seconds"] = 6.into();
    let running = program(namespace).under(policy).input(request.to_string()).start();
    eventually("the broken revision is there", async || {
        (image(namespace, kind).await == MISSING_IMAGE).then_some(())
    })
    .await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_changed_by_someone_else_is_not_rolled_back() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("superseded_back", kind).await;
    let waiting = waiting(&namespace, &namespace.policy("cooldown_seconds: 0")).await;
    set_image(&namespace, kind, "registry.invalid/theirs:1").await;
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert!(answer.get("rolled_back").is_none(), "{answer}");
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(
        result.contains("Not rolled back: ") && result.contains("is not as this request left it"),
        "{result}"
    );
    assert_eq!(image(&namespace, kind).await, "registry.invalid/theirs:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_stops_the_rollback() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("switch_back", kind).await;
    let waiting = waiting(&namespace, &namespace.policy("cooldown_seconds: 60")).await;
    let leases = namespace.api::<Lease>();
    let thrown =
        json!({ "metadata": { "annotations": { "action-executor.dev/stop": "incident" } } });
    let (params, thrown) = (Default::default(), Patch::Merge(thrown));
    leases.patch("action-executor", &params, &thrown).await.expect("is thrown");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    let result = done.answer()["result"].as_str().expect("is a sentence").to_owned();
    assert!(result.contains("Not rolled back: the kill switch on Lease "), "{result}");
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_becomes_read_only_stops_the_rollback() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("read_only_back", kind).await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let server = crate::program::Server::start(program(&namespace).under(&policy));
    let mut request = request(&namespace, kind, "r1");
    request["timeout_seconds"] = 6.into();
    let text = format!("read_only: true\nstate: {{namespace: {}}}\n", namespace.name());
    let (address, body) = (server.address(), request.to_string());
    let reply = spawn_blocking(move || {
        crate::program::Server::try_execute(address, body.as_bytes()).expect("is answered")
    });
    eventually("the broken revision is there", async || {
        (image(&namespace, kind).await == MISSING_IMAGE).then_some(())
    })
    .await;
    std::fs::write(&policy, text).expect("is written");
    let reply = reply.await.expect("it ran");
    let result = reply.json()["result"].as_str().expect("is a sentence").to_owned();
    assert!(result.contains("Not rolled back: ") && result.contains("read_only"), "{result}");
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_budget_allows_the_rollback_and_counts_it() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("budget_back", kind).await;
    let policy = namespace.policy(
        "cooldown_seconds: 3600\nbudget: {per_namespace: {actions: 1, within_seconds: 3600}}",
    );
    let done = send(program(&namespace).under(&policy), &request(&namespace, kind, "r1")).await;
    assert_eq!(done.answer()["rolled_back"]["revision"], 2, "{done:?}");
    let lease = namespace.api::<Lease>().get("action-executor").await.expect("is there");
    let annotations = lease.annotations();
    let entries = annotations.keys().filter(|key| key.starts_with("usage.action-executor.dev/"));
    assert_eq!(entries.count(), 2, "{annotations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_wait_rolls_nothing_back_and_its_retry_does() {
    let kind = WorkloadKind::Deployment;
    let namespace = after_a_broken_revision("interrupted_back", kind).await;
    let waiting = waiting(&namespace, &namespace.policy("cooldown_seconds: 0")).await;
    waiting.signal("TERM");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(image(&namespace, kind).await, MISSING_IMAGE);
    let done = send(program(&namespace), &request(&namespace, kind, "r1")).await;
    assert_eq!(done.answer()["rolled_back"]["revision"], 2, "{done:?}");
    assert_eq!(image(&namespace, kind).await, GOOD_IMAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_during_the_rollback_changes_nothing() {
    let kind = WorkloadKind::Deployment;
    // The first four writes precede the rollback: the claim, the budget, the change, the record.
    for lost in 4..8 {
        let namespace = after_a_broken_revision("lost_back", kind).await;
        let before = generation(&namespace, kind).await;
        let kubeconfig = proxy(&namespace, move |call| {
            if call.is_write() && call.number == lost {
                ProxyBehavior::DropResponse
            } else {
                ProxyBehavior::Forward
            }
        })
        .await;
        let policy = namespace.policy("cooldown_seconds: 60");
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let done = send(program, &request(&namespace, kind, "r1")).await;
        assert_eq!(done.answer()["rolled_back"]["revision"], 2, "{lost}: {done:?}");
        assert_eq!(image(&namespace, kind).await, GOOD_IMAGE);
        assert_eq!(generation(&namespace, kind).await, before + 2, "{lost}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rollback_is_resumed_by_a_retry() {
    let kind = WorkloadKind::DaemonSet;
    let namespace = shared().namespace("midway").await;
    namespace.running_daemon_set("web").await;
    block_new_pods(&namespace).await;
    let request = json!({
        "type": "restart_daemonset", "simulate": false, "wait": true, "timeout_seconds": 4, "id": "r1",
        "parameters": {
            "daemonset": "web", "namespace": namespace.name(), "rollback_on_failure": true,
        },
    });
    let waiting = program(&namespace).input(request.to_string()).start();
    eventually("it is rolled back", async || {
        (generation(&namespace, kind).await == 3).then_some(())
    })
    .await;
    waiting.signal("TERM");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["rolled_back"]["rollout"]["state"], "interrupted");
    let quotas = namespace.api::<ResourceQuota>();
    quotas.delete("closed", &Default::default()).await.expect("is deleted");
    let done = send(program(&namespace), &request).await;
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["rolled_back"]["revision"], 1);
    let result = answer["result"].as_str().expect("is a sentence");
    assert_eq!(result.matches("Rolled back to revision 1.").count(), 1, "{result}");
    assert_eq!(generation(&namespace, kind).await, 3);
}

#[tokio::test]
async fn a_complete_rollout_is_not_rolled_back() {
    let namespace = shared().namespace("no_way_back").await;
    namespace.running_deployment("web", 1).await;
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": "r1",
        "parameters": {
            "deployment": "web", "namespace": namespace.name(), "rollback_on_failure": true,
        },
    });
    let done = send(program(&namespace), &request).await;
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.answer().get("rolled_back").is_none());
    assert_eq!(generation(&namespace, WorkloadKind::Deployment).await, 2);
}

#[test]
fn rollback_on_failure_without_wait_is_refused() {
    for request in [
        json!({ "type": "restart_k8s", "parameters": { "deployment": "web" } }),
        json!({ "type": "restart_statefulset", "parameters": { "statefulset": "web" } }),
        json!({ "type": "restart_daemonset", "parameters": { "daemonset": "web" } }),
        json!({ "type": "rollback", "parameters": { "name": "web" } }),
    ] {
        let mut request = request;
        request["parameters"]["rollback_on_failure"] = true.into();
        let done = Program::offline().input(request.to_string()).run();
        assert_eq!(done.status, 65, "{done:?}");
        assert_eq!(done.answer()["field"], "parameters.rollback_on_failure");
        request["wait"] = true.into();
        assert_eq!(Program::offline().input(request.to_string()).run().status, 0);
    }
}
