//! Actions on Rollouts: with the real controller of Argo Rollouts, and the Rollout of the loops over every action,
//! whose controller is played by this file.

use std::time::Duration;

use action_executor::{
    actions::ActionKind, executor::failpoint::Failpoint, k8s::integrations::Integration,
};
use chrono::{SecondsFormat, Utc};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Pod, Service},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PostParams},
};
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    cluster::{GOOD_IMAGE, Namespace, OTHER_IMAGE, eventually, play_controller, shared, template},
    controllers::Controller,
    exactly_once::{Run, is_applied_or_unknown, on_effects, transparent},
    fault_proxy::{Held, ProxyBehavior},
    program::{Finished, Program},
    scenario::extended,
};

/// The label by which the real controller knows its Rollouts; the others are left to this file.
const INSTANCE_LABEL: &str = "argo-rollouts.argoproj.io/controller-instance-id";
const INSTANCE: &str = "real";

/// The kind of the tests' objects.
pub fn resource() -> ApiResource {
    ApiResource {
        group: "argoproj.io".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "argoproj.io/v1alpha1".to_owned(),
        kind: "Rollout".to_owned(),
        plural: "rollouts".to_owned(),
    }
}

/// Whether this file plays the controller of the action's target.
pub fn is_ours(kind: ActionKind) -> bool {
    kind.descriptor().integration == Some(Integration::ArgoRollouts)
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn pause() -> Value {
    json!([{ "reason": "CanaryPauseStep", "startTime": now() }])
}

async fn create(namespace: &Namespace, labels: Value, spec: Value) -> DynamicObject {
    let mut object = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
        "metadata": { "name": "web", "labels": labels },
        "spec": {
            "replicas": 0, "selector": { "matchLabels": { "app": "web" } },
            "template": template("web", GOOD_IMAGE),
        },
    });
    object["spec"].as_object_mut().expect("is one").extend(spec.as_object().expect("is").clone());
    let object: DynamicObject = serde_json::from_value(object).expect("is a Rollout");
    let rollouts = namespace.objects(&resource());
    rollouts.create(&PostParams::default(), &object).await.expect("is created")
}

async fn found(rollouts: &Api<DynamicObject>) -> DynamicObject {
    rollouts.get("web").await.expect("is there")
}

async fn write_status(rollouts: &Api<DynamicObject>, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    rollouts.patch_status(name, &Default::default(), &patch).await.expect("is written");
}

/// The status of the Rollout `web` before an action of this kind: it waits at a step, or is aborted.
fn status_before(kind: ActionKind) -> Value {
    let common = json!({
        "observedGeneration": "1", "currentPodHash": "new", "stableRS": "old", "currentStepIndex": 0,
        "currentStepHash": "steps",
    });
    let state = match kind {
        ActionKind::RetryArgoRollout => json!({
            "abort": true, "abortedAt": "2026-01-31T12:00:00Z", "phase": "Degraded", "message": "RolloutAborted",
        }),
        _ => json!({
            "pauseConditions": pause(), "controllerPause": true, "phase": "Paused",
            "message": "CanaryPauseStep",
        }),
    };
    extended_by(common, state)
}

fn extended_by(mut object: Value, more: Value) -> Value {
    object.as_object_mut().expect("is one").extend(more.as_object().expect("is one").clone());
    object
}

/// A Rollout `web` with two revisions, whose controller nobody plays; and one that is held by its spec.
pub async fn prepare_broken(kind: ActionKind, namespace: &Namespace) {
    namespace.install_crds("argo-rollouts");
    let steps = json!([{ "pause": {} }, { "pause": {} }, { "pause": {} }]);
    let strategy = json!({ "strategy": { "canary": { "steps": steps } } });
    let rollouts = namespace.objects(&resource());
    let rollout = create(namespace, json!({ "app": "web" }), strategy.clone()).await;
    write_status(&rollouts, "web", status_before(kind)).await;
    if kind == ActionKind::UndoArgoRollout {
        for (hash, revision, image) in [("old", "1", OTHER_IMAGE), ("new", "2", GOOD_IMAGE)] {
            namespace.create::<ReplicaSet>(revision_of(&rollout, hash, revision, image)).await;
        }
    }
    if kind == ActionKind::PromoteArgoRollout {
        let mut held = json!(rollout);
        held["metadata"] = json!({ "name": "held", "labels": { "app": "web" } });
        held["spec"]["paused"] = true.into();
        let held: DynamicObject = serde_json::from_value(held).expect("is a Rollout");
        rollouts.create(&PostParams::default(), &held).await.expect("is created");
        write_status(&rollouts, "held", status_before(kind)).await;
    }
}

fn revision_of(rollout: &DynamicObject, hash: &str, revision: &str, image: &str) -> Value {
    let labels = json!({ "app": "web", "rollouts-pod-template-hash": hash });
    let mut template = template("web", image);
    template["metadata"]["labels"] = labels.clone();
    json!({
        "metadata": {
            "name": format!("web-{hash}"), "labels": labels,
            "annotations": { "rollout.argoproj.io/revision": revision },
            "ownerReferences": [{
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "web",
                "uid": rollout.uid(), "controller": true,
            }],
        },
        "spec": { "replicas": 0, "selector": { "matchLabels": labels }, "template": template },
    })
}

/// The same Rollout, with a played controller that lives as long as the runtime.
pub async fn prepare(kind: ActionKind, namespace: &Namespace) {
    prepare_broken(kind, namespace).await;
    let rollouts = namespace.objects(&resource());
    play_controller(rollouts.clone(), "web".to_owned(), move |found| {
        let rollouts = rollouts.clone();
        async move {
            let Some(status) = reaction(&found) else { return Ok(()) };
            let patch = Patch::Merge(json!({ "status": status }));
            rollouts.patch_status("web", &Default::default(), &patch).await.map(drop)
        }
    });
}

/// What the controller writes to the status of this Rollout, as if the steps that are left were done at once; none if
/// there is nothing to do.
fn reaction(rollout: &Value) -> Option<Value> {
    let (spec, status) = (&rollout["spec"], &rollout["status"]);
    let generation = rollout["metadata"]["generation"].to_string();
    let healthy = json!({
        "observedGeneration": generation, "phase": "Healthy", "message": null, "controllerPause": false,
    });
    let is_paused = status["pauseConditions"].as_array().is_some_and(|all| !all.is_empty());
    if status["observedGeneration"] != generation.as_str() {
        let restarted = json!({ "restartedAt": spec["restartAt"] });
        return Some(extended_by(healthy, restarted));
    }
    match (status["abort"] == true, status["abortedAt"].is_null()) {
        (true, true) => Some(json!({
            "abortedAt": now(), "phase": "Degraded", "message": "RolloutAborted",
            "pauseConditions": null, "controllerPause": false,
        })),
        (false, false) => Some(extended_by(healthy, json!({ "abortedAt": null }))),
        (false, true) if !is_paused && status["controllerPause"] == true => Some(healthy),
        _ => None,
    }
}

/// Whether the action's change of the status is there.
fn is_done(kind: ActionKind, status: &Value) -> bool {
    match kind {
        ActionKind::AbortArgoRollout => status["abort"] == true,
        ActionKind::RetryArgoRollout => status["abort"] != true,
        _ => status["pauseConditions"].as_array().is_none_or(Vec::is_empty),
    }
}

/// Takes a change of the status back, as someone else, and counts it in the number of the step.
pub async fn undo(kind: ActionKind, namespace: &Namespace) {
    let rollouts = namespace.objects(&resource());
    let status = json!(found(&rollouts).await)["status"].take();
    if !is_done(kind, &status) {
        return;
    }
    let step = json!({ "currentStepIndex": undone(&status) + 1 });
    let before = match kind {
        ActionKind::AbortArgoRollout => json!({
            "abort": false, "abortedAt": null, "phase": "Paused", "pauseConditions": pause(), "controllerPause": true,
        }),
        ActionKind::RetryArgoRollout => {
            json!({ "abort": true, "abortedAt": now(), "phase": "Degraded" })
        }
        ActionKind::PromoteArgoRollout => {
            json!({ "pauseConditions": pause(), "controllerPause": true, "phase": "Paused" })
        }
        _ => return,
    };
    write_status(&rollouts, "web", extended_by(before, step)).await;
}

/// How many changes of the status were taken back.
fn undone(status: &Value) -> i64 {
    status["currentStepIndex"].as_i64().unwrap_or(0)
}

/// How often the action changed the status of this Rollout.
pub fn status_changes(kind: ActionKind, rollout: &DynamicObject) -> i64 {
    let status = &rollout.data["status"];
    undone(status) + i64::from(is_done(kind, status))
}

static CONTROLLER: Controller = Controller::new(
    "argo-rollouts",
    &["argo-rollouts", "argo-rollouts-analysis"],
    &["--instance-id", INSTANCE, "--leader-elect=false", "--metricsPort=0", "--healthzPort=0"],
);

/// A namespace with a Rollout `web` of the real controller with two replicas, once it is Healthy.
async fn healthy(test: &str, strategy: Value) -> Namespace {
    let _log = spawn_blocking(|| CONTROLLER.run()).await.expect("the controller starts");
    let namespace = shared().namespace(test).await;
    for service in ["active", "preview"] {
        let ports = json!([{ "port": 80 }]);
        let spec = json!({ "selector": { "app": "web" }, "ports": ports });
        let metadata = json!({ "name": service });
        namespace.create::<Service>(json!({ "metadata": metadata, "spec": spec })).await;
    }
    let spec = json!({ "replicas": 2, "strategy": strategy });
    create(&namespace, json!({ INSTANCE_LABEL: INSTANCE }), spec).await;
    reaches(&namespace, "Healthy").await;
    namespace
}

/// Two steps with a pause each, after which all is updated.
fn canary() -> Value {
    json!({ "canary": { "steps": [{ "setWeight": 50 }, { "pause": {} }, { "setWeight": 100 }, { "pause": {} }] } })
}

/// Waits until the controller has seen the newest spec and judges it so.
async fn reaches(namespace: &Namespace, phase: &str) -> Value {
    let _log = CONTROLLER.run();
    let rollouts = namespace.objects(&resource());
    eventually(phase, async || {
        let rollout = json!(found(&rollouts).await);
        let generation = rollout["metadata"]["generation"].to_string();
        let is_observed = rollout["status"]["observedGeneration"] == generation.as_str();
        (is_observed && rollout["status"]["phase"] == phase).then_some(rollout)
    })
    .await
}

/// Begins an update to another image, and waits until it is paused.
async fn update(namespace: &Namespace, image: &str) -> Value {
    set_image(namespace, image).await;
    reaches(namespace, "Paused").await
}

async fn set_image(namespace: &Namespace, image: &str) {
    let patch = json!([
        { "op": "replace", "path": "/spec/template/spec/containers/0/image", "value": image },
    ]);
    let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("is a patch"));
    let rollouts = namespace.objects(&resource());
    rollouts.patch("web", &Default::default(), &patch).await.expect("is updated");
}

async fn send(namespace: &Namespace, action: &str, parameters: Value, fields: Value) -> Finished {
    let request = json!({
        "type": format!("{action}_argo_rollout"), "simulate": false, "timeout_seconds": 50,
        "parameters": { "rollout": "web", "namespace": namespace.name() },
    });
    let request = extended(request, parameters, fields).to_string();
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy).input(request);
    spawn_blocking(|| program.run()).await.expect("it ran")
}

/// Sends the request, waits for it, and returns what its wait saw.
async fn awaited(namespace: &Namespace, action: &str, id: &str, parameters: Value) -> String {
    let done = send(namespace, action, parameters, json!({ "wait": true, "id": id })).await;
    assert_eq!(done.status, 0, "{action}: {done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    done.answer()["rollout"]["message"].as_str().expect("has one").to_owned()
}

async fn refused(namespace: &Namespace, action: &str, parameters: Value, code: &str) {
    let done = send(namespace, action, parameters, json!({})).await;
    assert_eq!(done.answer()["code"], code, "{action}: {done:?}");
}

fn image_of(rollout: &Value) -> &str {
    rollout["spec"]["template"]["spec"]["containers"][0]["image"].as_str().expect("has one")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_ends_one_pause_and_its_replay_ends_no_further_one() {
    let namespace = healthy("argo_promote", canary()).await;
    refused(&namespace, "promote", json!({}), "no_effect").await;
    let paused = update(&namespace, OTHER_IMAGE).await;
    assert_eq!(paused["status"]["currentStepIndex"], 1);
    let simulated = send(&namespace, "promote", json!({}), json!({ "simulate": true })).await;
    assert_eq!(simulated.answer()["outcome"], "simulated", "{simulated:?}");
    assert_eq!(reaches(&namespace, "Paused").await["status"]["currentStepIndex"], 1);
    let seen = awaited(&namespace, "promote", "p1", json!({})).await;
    assert_eq!(seen, "paused at step 4 of 4: CanaryPauseStep");
    for _ in 0..2 {
        let replay = send(&namespace, "promote", json!({}), json!({ "wait": true, "id": "p1" }));
        let replay = replay.await;
        assert_eq!(replay.answer()["replayed"], true, "{replay:?}");
        let paused = reaches(&namespace, "Paused").await;
        assert_eq!(paused["status"]["currentStepIndex"], 3);
        assert_eq!(paused["status"]["pauseConditions"].as_array().map(Vec::len), Some(1));
    }
    let seen = awaited(&namespace, "promote", "p2", json!({})).await;
    assert!(seen.starts_with("Healthy"), "{seen}");
    refused(&namespace, "promote", json!({}), "no_effect").await;
    refused(&namespace, "promote", json!({ "full": true }), "no_effect").await;
}

/// Waits until the canary is paused at this step, which a promotion too many would leave at once.
async fn paused_at(namespace: &Namespace, step: i64) {
    let rollouts = namespace.objects(&resource());
    eventually("it is paused at the step", async || {
        let status = json!(found(&rollouts).await)["status"].take();
        let index = status["currentStepIndex"].as_i64().expect("has one");
        assert!(index <= step, "a pause too many was ended: {status}");
        let is_paused = status["pauseConditions"].as_array().is_some_and(|all| all.len() == 1);
        (index == step && is_paused).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_whose_answer_is_lost_ends_no_pause_but_its_own() {
    // The next pause follows at once, and takes the field over by which the change is recognised.
    let pauses = vec![json!({ "pause": {} }); 6];
    let namespace = healthy("argo_lost", json!({ "canary": { "steps": pauses } })).await;
    update(&namespace, OTHER_IMAGE).await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let request = |id: &str| {
        json!({
            "type": "promote_argo_rollout", "simulate": false, "id": id,
            "parameters": { "rollout": "web", "namespace": namespace.name() },
        })
    };
    let honest = transparent(&namespace).await;
    let run = Run::through(&honest, &policy);
    // The process crashes after the change.
    run.clone().killed(Failpoint::AfterWrite).send(&request("after")).await;
    paused_at(&namespace, 1).await;
    let answer = run.resend(&request("after")).await;
    assert!(is_applied_or_unknown(&answer), "{answer}");
    paused_at(&namespace, 1).await;
    // The process crashes before the change, and someone else makes it.
    run.clone().killed(Failpoint::BeforeWrite).send(&request("before")).await;
    paused_at(&namespace, 1).await;
    write_status(&namespace.objects(&resource()), "web", json!({ "pauseConditions": null })).await;
    paused_at(&namespace, 2).await;
    let answer = run.resend(&request("before")).await;
    assert_ne!(answer["outcome"], "applied", "{answer}");
    paused_at(&namespace, 2).await;
    // The process crashes before the change, and its successor makes it.
    run.clone().killed(Failpoint::BeforeWrite).send(&request("resumed")).await;
    let answer = run.resend(&request("resumed")).await;
    assert_eq!(answer["outcome"], "applied", "{answer}");
    paused_at(&namespace, 3).await;
    // The change is delivered twice, at once and later.
    let held = Held::default();
    let twice = [ProxyBehavior::RepeatAndReturnSecond, ProxyBehavior::RepeatLater(held.clone())];
    for (step, behavior) in (4..).zip(twice) {
        let proxy = on_effects(&namespace, behavior).await;
        let id = format!("twice-{step}");
        let first = Run::through(&proxy, &policy).send(&request(&id)).await.answer();
        assert!(is_applied_or_unknown(&first), "{first}");
        paused_at(&namespace, step).await;
        held.release().await;
        let answer = run.resend(&request(&id)).await;
        assert!(is_applied_or_unknown(&answer), "{answer}");
        paused_at(&namespace, step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_spec_is_ended_by_a_request_of_its_own() {
    let namespace = healthy("argo_unpause", canary()).await;
    update(&namespace, OTHER_IMAGE).await;
    let rollouts = namespace.objects(&resource());
    let held = Patch::Merge(json!({ "spec": { "paused": true } }));
    rollouts.patch("web", &Default::default(), &held).await.expect("is paused");
    reaches(&namespace, "Paused").await;
    refused(&namespace, "promote", json!({ "full": true }), "target_paused").await;
    let seen = awaited(&namespace, "promote", "p1", json!({})).await;
    assert_eq!(seen, "paused at step 2 of 4: CanaryPauseStep");
    let seen = awaited(&namespace, "promote", "p2", json!({ "full": true })).await;
    assert!(seen.starts_with("Healthy"), "{seen}");
    assert_eq!(reaches(&namespace, "Healthy").await["status"]["promoteFull"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_returns_to_the_stable_version_and_a_retry_begins_anew() {
    let namespace = healthy("argo_abort", canary()).await;
    refused(&namespace, "abort", json!({}), "no_effect").await;
    refused(&namespace, "retry", json!({}), "no_effect").await;
    update(&namespace, OTHER_IMAGE).await;
    let seen = awaited(&namespace, "abort", "a1", json!({})).await;
    assert_eq!(seen, "aborted: the stable version has all replicas");
    let aborted = reaches(&namespace, "Degraded").await;
    assert_eq!(image_of(&aborted), OTHER_IMAGE);
    let rollouts = namespace.objects(&resource());
    eventually("no pod of the new version is left", async || {
        let status = json!(found(&rollouts).await)["status"].take();
        (status["updatedReplicas"].as_i64().unwrap_or(0) == 0).then_some(())
    })
    .await;
    let again = send(&namespace, "abort", json!({}), json!({})).await;
    assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
    refused(&namespace, "promote", json!({}), "no_effect").await;
    let seen = awaited(&namespace, "retry", "r1", json!({})).await;
    assert_eq!(seen, "paused at step 2 of 4: CanaryPauseStep");
    refused(&namespace, "retry", json!({}), "no_effect").await;
    // The second abort is another one than the first, and so is its retry.
    awaited(&namespace, "abort", "a2", json!({})).await;
    awaited(&namespace, "retry", "r2", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_whose_answer_is_lost_aborts_no_later_update_to_the_same_version() {
    let namespace = healthy("argo_abort_lost", canary()).await;
    update(&namespace, OTHER_IMAGE).await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let request = json!({
        "type": "abort_argo_rollout", "simulate": false, "id": "a1",
        "parameters": { "rollout": "web", "namespace": namespace.name() },
    });
    let honest = transparent(&namespace).await;
    let run = Run::through(&honest, &policy);
    // The process crashes after the change.
    run.clone().killed(Failpoint::AfterWrite).send(&request).await;
    reaches(&namespace, "Degraded").await;
    // Someone returns to the stable version, and deploys the same one again.
    set_image(&namespace, GOOD_IMAGE).await;
    reaches(&namespace, "Healthy").await;
    update(&namespace, OTHER_IMAGE).await;
    let answer = run.resend(&request).await;
    assert!(is_applied_or_unknown(&answer), "{answer}");
    let rollout = json!(found(&namespace.objects(&resource())).await);
    assert_ne!(rollout["status"]["abort"], true, "the later update was aborted: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_returns_to_the_template_and_the_replica_set_of_a_revision() {
    let namespace = healthy("argo_undo", canary()).await;
    refused(&namespace, "undo", json!({}), "no_revision").await;
    update(&namespace, OTHER_IMAGE).await;
    // Back to the stable version, without steps.
    let seen = awaited(&namespace, "undo", "u1", json!({})).await;
    assert!(seen.starts_with("Healthy"), "{seen}");
    assert_eq!(image_of(&reaches(&namespace, "Healthy").await), GOOD_IMAGE);
    let sets = namespace.api::<ReplicaSet>().list(&ListParams::default()).await.expect("are");
    assert_eq!(sets.items.len(), 2, "the old ReplicaSet is used again");
    // The one that was left has the number 2, the one that is used again has 3.
    refused(&namespace, "undo", json!({ "to_revision": 1 }), "no_revision").await;
    let same = send(&namespace, "undo", json!({ "to_revision": 3 }), json!({})).await;
    assert_eq!(same.answer()["outcome"], "unchanged", "{same:?}");
    let seen = awaited(&namespace, "undo", "u2", json!({ "to_revision": 2 })).await;
    assert_eq!(seen, "paused at step 2 of 4: CanaryPauseStep");
    assert_eq!(image_of(&reaches(&namespace, "Paused").await), OTHER_IMAGE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_replaces_each_pod_and_no_step_runs() {
    let namespace = healthy("argo_restart", canary()).await;
    let uids =
        async || -> Vec<_> { namespace.pods_of("web").await.iter().filter_map(Pod::uid).collect() };
    let before = uids().await;
    // A pod that is as old as the restart, in seconds, is not replaced.
    sleep(Duration::from_millis(1100)).await;
    let seen = awaited(&namespace, "restart", "r1", json!({})).await;
    assert_eq!(seen, "all pods were replaced, and are available");
    assert!(uids().await.iter().all(|uid| !before.contains(uid)));
    let sets = namespace.api::<ReplicaSet>().list(&ListParams::default()).await.expect("are");
    assert_eq!(sets.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blue_green_promotion_switches_the_active_service() {
    let services = json!({ "activeService": "active", "previewService": "preview" });
    let strategy = extended_by(services, json!({ "autoPromotionEnabled": false }));
    let namespace = healthy("argo_blue_green", json!({ "blueGreen": strategy })).await;
    let active = async || {
        let service = namespace.api::<Service>().get("active").await.expect("is there");
        service.spec.expect("has one").selector.expect("has one")["rollouts-pod-template-hash"]
            .clone()
    };
    let before = active().await;
    let paused = update(&namespace, OTHER_IMAGE).await;
    assert_eq!(active().await, before);
    let done = send(&namespace, "promote", json!({}), json!({ "wait": true, "id": "p1" })).await;
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("Service 'active' switches to the new version"), "{warnings}");
    let after = active().await;
    assert_ne!(after, before);
    assert_eq!(paused["status"]["currentPodHash"], after.as_str());
    refused(&namespace, "promote", json!({}), "no_effect").await;
}
