//! `drain` on a real API server, on nodes that kwok simulates.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use action_executor::contract::digest::sha256;
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    apps::v1::ReplicaSet,
    core::v1::{Event, Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{block_in_place, spawn_blocking},
    time::sleep,
};

use crate::{
    approval::approve,
    cluster::{CRASHING_IMAGE, MISSING_IMAGE, Namespace, eventually, shared},
    exactly_once::transparent,
    fault_proxy::{Proxy, ProxyBehavior},
    program::{Finished, Program},
    scenario::extended,
};

fn request(namespace: &Namespace, parameters: Value, fields: Value) -> String {
    let request = json!({
        "type": "drain", "simulate": false, "parameters": { "node": namespace.name() },
    });
    extended(request, parameters, fields).to_string()
}

fn send(namespace: &Namespace, parameters: Value, fields: Value) -> Finished {
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    program.input(request(namespace, parameters, fields)).run()
}

async fn is_cordoned(namespace: &Namespace) -> bool {
    let node = namespace.global::<Node>().get(namespace.name()).await.expect("is there");
    node.spec.and_then(|spec| spec.unschedulable) == Some(true)
}

async fn on_node(namespace: &Namespace) -> Vec<Pod> {
    let params = ListParams::default().fields(&format!("spec.nodeName={}", namespace.name()));
    namespace.api::<Pod>().list(&params).await.expect("are listed").items
}

/// A disruption budget for the pods of `app`, once it allows this many disruptions.
async fn budget(namespace: &Namespace, app: &str, max_unavailable: i32, allowed: i32) {
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": app },
            "spec": {
                "maxUnavailable": max_unavailable, "selector": { "matchLabels": { "app": app } },
            },
        }))
        .await;
    eventually("the disruption budget allows it", async || {
        let status = namespace.api::<PodDisruptionBudget>().get(app).await.expect("is").status?;
        (status.expected_pods > 0 && status.disruptions_allowed == allowed).then_some(())
    })
    .await;
}

/// A node that runs the pods of these ReplicaSets.
async fn node_with(test: &str, sets: &[(&str, i32)]) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.own_node(false).await;
    for (name, replicas) in sets {
        namespace.replica_set_on_own_node(name, *replicas, json!({})).await;
    }
    namespace
}

/// A pod without a controller on the node, with this metadata and spec.
async fn bare_pod(namespace: &Namespace, name: &str, metadata: Value, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": namespace.name(), "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "main", "image": "registry.invalid/good:1",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    });
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        let more = more.as_object().expect("are fields").clone();
        pod[part].as_object_mut().expect("is one").extend(more);
    }
    namespace.create::<Pod>(pod).await
}

#[tokio::test]
async fn a_drain_evicts_the_pods_and_waits_until_they_are_gone() {
    let namespace = node_with("drain_waits", &[("web", 3), ("api", 2)]).await;
    namespace.daemon_set_on_own_node("agent").await;
    let done = send(&namespace, json!({}), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("applied"), &json!("complete"))
    );
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("cordoned at") && result.contains("all 5 pods are gone"), "{result}");
    assert!(is_cordoned(&namespace).await);
    let left = on_node(&namespace).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].name_any().starts_with("agent-"));
    for (name, replicas) in [("web", 3), ("api", 2)] {
        eventually("they are back elsewhere", async || {
            (namespace.pods_of(name).await.len() == replicas).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_simulation_names_the_pods_to_evict_and_changes_nothing() {
    let namespace = node_with("drain_simulated", &[("web", 2)]).await;
    let done = send(&namespace, json!({}), json!({ "simulate": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    let result = answer["result"].as_str().expect("is a sentence");
    let name = namespace.name();
    assert!(
        result.contains(&format!("2 pods would be evicted: {name}/web-0, {name}/web-1")),
        "{result}"
    );
    assert!(!is_cordoned(&namespace).await);
    assert!(on_node(&namespace).await.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()));
}

#[tokio::test]
async fn all_blocking_pods_are_named_and_nothing_is_cordoned() {
    let namespace = node_with("drain_blocked", &[("web", 1), ("full", 1)]).await;
    bare_pod(&namespace, "lonely", json!({}), json!({})).await;
    let volumes = json!([{ "name": "tmp", "emptyDir": {} }]);
    namespace.replica_set_on_own_node("cache", 1, json!({ "volumes": volumes })).await;
    budget(&namespace, "web", 1, 1).await;
    budget(&namespace, "full", 0, 0).await;
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": "second" },
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    for wait in [true, false] {
        let done = send(&namespace, json!({}), json!({ "wait": wait }));
        assert_eq!(done.status, 69, "{done:?}");
        let problem = done.answer();
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&json!("drain_blocked"), &json!(false))
        );
        let detail = problem["detail"].as_str().expect("has one");
        let name = namespace.name();
        for part in [
            format!("without a controller, which would not come back: {name}/lonely"),
            format!("with data in emptyDir volumes, which would be lost: {name}/cache-0"),
            format!("{name}/web-0 (second, web)"),
            "PodDisruptionBudget 'full' never allows a disruption".to_owned(),
            format!("{name}/full-0"),
        ] {
            assert!(detail.contains(&part), "{part}: {detail}");
        }
        assert!(problem["hint"].as_str().expect("has one").contains("force: true"));
    }
    assert!(!is_cordoned(&namespace).await);
    assert_eq!(on_node(&namespace).await.len(), 4);
}

#[tokio::test]
async fn pods_allowed_by_options_are_evicted_with_a_warning() {
    let namespace = node_with("drain_accepted", &[]).await;
    let volumes = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
    bare_pod(&namespace, "lonely", json!({}), volumes).await;
    let accepted = json!({ "force": true, "delete_empty_dir_data": true });
    let done = send(&namespace, accepted, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(
        warnings.contains("without a controller") && warnings.contains("emptyDir"),
        "{warnings}"
    );
    assert!(on_node(&namespace).await.is_empty());
}

#[tokio::test]
async fn a_selector_limits_the_evicted_pods() {
    let namespace = node_with("drain_selected", &[("web", 1), ("api", 1)]).await;
    let selected = json!({ "pod_selector": "app in (api)" });
    let done = send(&namespace, selected, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let left: Vec<_> = on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["web-0"]);
}

#[tokio::test]
async fn an_exhausted_budget_is_refused_or_waited_for() {
    let namespace = node_with("drain_room", &[("web", 1), ("api", 1)]).await;
    namespace.exhausted_pdb("web", "web", 1).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "disruption_budget");
    assert!(!is_cordoned(&namespace).await);
    let waiting = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 50 }));
    let waiting = Program::with_kubeconfig(namespace.kubeconfig()).input(waiting).start();
    eventually("the other pod is gone", async || {
        (on_node(&namespace).await.len() == 1).then_some(())
    })
    .await;
    namespace.set_min_available("web", 0).await;
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("waiting for a disruption budget"), "{warnings}");
    assert!(on_node(&namespace).await.is_empty());
}

#[tokio::test]
async fn a_drain_without_wait_evicts_once_and_reports_the_rest() {
    let namespace = node_with("drain_once", &[("web", 3), ("api", 1)]).await;
    budget(&namespace, "web", 1, 1).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed");
    assert_eq!(answer["rollout"]["message"], "2 of 4 pods could not be evicted now");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("PodDisruptionBudget 'web' allows"), "{problems}");
    eventually("two are gone", async || (on_node(&namespace).await.len() == 2).then_some(())).await;
    assert!(is_cordoned(&namespace).await);
    // A caller that resends it in a loop completes the drain.
    let last = eventually("the loop ends", async || {
        let done = send(&namespace, json!({}), json!({}));
        (done.status == 0).then(|| done.answer())
    })
    .await;
    assert!(last["rollout"].is_null(), "{last}");
    eventually("all are gone", async || on_node(&namespace).await.is_empty().then_some(())).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.answer()["outcome"], "unchanged", "{done:?}");
}

#[tokio::test]
async fn a_failed_drain_is_undone_once_on_request() {
    let namespace = node_with("drain_undone", &[("web", 1)]).await;
    namespace.exhausted_pdb("web", "web", 1).await;
    let fields = json!({ "wait": true, "timeout_seconds": 2, "id": namespace.name() });
    let undo = json!({ "uncordon_on_failure": true });
    let done = send(&namespace, undo.clone(), fields.clone());
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("failed"), &json!("timed_out"))
    );
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("is uncordoned again"), "{result}");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("web-0: PodDisruptionBudget 'web' allows 0"), "{problems}");
    assert!(!is_cordoned(&namespace).await);
    // A retry gets the same answer and changes nothing.
    let again = send(&namespace, undo.clone(), fields).answer();
    assert_eq!((&again["replayed"], &again["result"]), (&json!(true), &answer["result"]));
    // A node that was cordoned before the drain stays cordoned.
    let nodes = namespace.global::<Node>();
    let cordon = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
    nodes.patch(namespace.name(), &Default::default(), &cordon).await.expect("is cordoned");
    let done = send(&namespace, undo, json!({ "wait": true, "timeout_seconds": 2 }));
    assert_eq!(done.status, 69, "{done:?}");
    assert!(is_cordoned(&namespace).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_stops_a_running_drain() {
    let namespace = node_with("drain_stopped", &[("web", 2)]).await;
    namespace.exhausted_pdb("web", "web", 2).await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let asked = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 60 }));
    let running = spawn_blocking(move || program.input(asked).run());
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    crate::limits::set_kill_switch(&namespace, Some("incident 7")).await;
    // The check before an eviction is valid for a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    namespace.set_min_available("web", 0).await;
    let done = running.await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed", "{answer}");
    assert!(answer["result"].to_string().contains("incident 7"), "{answer}");
    assert_eq!(on_node(&namespace).await.len(), 2, "{answer}");
}

#[tokio::test]
async fn a_drain_stops_when_its_node_is_uncordoned() {
    let namespace = node_with("drain_stopped", &[("web", 2)]).await;
    namespace.exhausted_pdb("web", "web", 2).await;
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 50 }));
    let waiting = Program::with_kubeconfig(namespace.kubeconfig()).input(body).start();
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    let nodes = namespace.global::<Node>();
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
    nodes.patch(namespace.name(), &Default::default(), &uncordon).await.expect("is uncordoned");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let message = done.answer()["rollout"]["message"].as_str().expect("is reported").to_owned();
    assert!(message.contains("uncordoned by another client"), "{message}");
    assert_eq!(on_node(&namespace).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_a_killed_executor_is_resumed_and_names_newer_pods_that_would_not_come_back() {
    let namespace = node_with("drain_killed", &[("web", 2), ("api", 2)]).await;
    namespace.exhausted_pdb("web", "web", 2).await;
    let fields = json!({ "wait": true, "timeout_seconds": 50, "id": namespace.name() });
    let body = request(&namespace, json!({}), fields);
    let start = || Program::with_kubeconfig(namespace.kubeconfig()).input(body.clone()).start();
    let first = start();
    eventually("it is in the middle", async || {
        (on_node(&namespace).await.len() == 2).then_some(())
    })
    .await;
    first.signal("KILL");
    spawn_blocking(|| first.wait()).await.expect("it ended");
    bare_pod(&namespace, "late", json!({}), json!({})).await;
    // Two processes resume it at the same time.
    let (second, third) = (start(), start());
    namespace.set_min_available("web", 1).await;
    let (second, third) = spawn_blocking(|| (second.wait(), third.wait())).await.expect("they ran");
    for done in [&second, &third] {
        assert_eq!(done.status, 69, "{done:?}");
        assert_eq!(done.answer()["replayed"], true, "{done:?}");
        let rollout = &done.answer()["rollout"];
        let message = rollout["message"].as_str().expect("is reported");
        assert!(message.contains("all 4 pods are gone"), "{message}");
        let problems = rollout["problems"].to_string();
        assert!(problems.contains("/late appeared after the drain was planned"), "{problems}");
        assert!(problems.contains("force: true"), "{problems}");
    }
    assert_eq!(second.answer(), third.answer());
    let left: Vec<_> = on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["late"]);
}

/// A drain whose cordon takes effect only once `meanwhile` is done, as with a slow admission webhook. The pods were
/// listed before.
async fn drain_with_slow_cordon(
    namespace: &Namespace,
    policy: &Path,
    request: String,
    meanwhile: impl AsyncFnOnce(),
) -> Finished {
    let (arrived, resume) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (reached, changed) = (arrived.clone(), resume.clone());
    let handle = Handle::current();
    let proxy = Proxy::start(namespace, move |call| {
        if call.method == http::Method::PATCH && call.writes("nodes") {
            reached.notify_one();
            block_in_place(|| handle.block_on(changed.notified()));
        }
        ProxyBehavior::Forward
    })
    .await;
    let program = Program::with_kubeconfig(&proxy.kubeconfig).under(policy).input(request);
    let running = spawn_blocking(move || program.run());
    arrived.notified().await;
    meanwhile().await;
    resume.notify_one();
    running.await.expect("it ran")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_before_the_cordon_takes_effect_are_evicted_too() {
    for wait in [true, false] {
        let namespace = node_with("drain_newcomers", &[("web", 1)]).await;
        let asked = request(&namespace, json!({}), json!({ "wait": wait }));
        let policy = namespace.policy("cooldown_seconds: 0");
        let done = drain_with_slow_cordon(&namespace, &policy, asked, async || {
            namespace.replica_set_on_own_node("late", 2, json!({})).await;
        })
        .await;
        assert_eq!(done.status, 0, "{done:?}");
        let result = done.answer()["result"].to_string();
        let expected = if wait { "all 3 pods are gone" } else { "3 pods evicted" };
        assert!(result.contains(expected), "{result}");
        eventually("all are gone", async || on_node(&namespace).await.is_empty().then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_before_the_cordon_takes_effect_and_may_not_be_evicted_are_named() {
    for (policy, fields, why) in [
        ("cooldown_seconds: 0", json!({}), "without a controller"),
        ("targets: {protected: [app=late]}", json!({}), "targets.protected"),
        ("budget: {cluster: {actions: 2, within_seconds: 600}}", json!({}), "2 actions"),
        (
            "actions: {require_approval: [drain]}",
            json!({}),
            "not one of the pods that a person approved",
        ),
        ("cooldown_seconds: 0", json!({ "wait": false }), "without a controller"),
    ] {
        let namespace = node_with("drain_refused", &[("web", 1)]).await;
        let mut with_id = json!({ "wait": true, "timeout_seconds": 30, "id": namespace.name() });
        with_id
            .as_object_mut()
            .expect("is one")
            .extend(fields.as_object().expect("is one").clone());
        let asked = request(&namespace, json!({}), with_id);
        let file = namespace.policy(policy);
        if policy.contains("require_approval") {
            let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&file);
            let pending = program.input(asked.clone()).run().answer();
            assert!(approve(&pending, namespace.kubeconfig()), "{pending}");
        }
        let done = drain_with_slow_cordon(&namespace, &file, asked, async || {
            if why == "without a controller" {
                bare_pod(&namespace, "late-0", json!({ "labels": { "app": "late" } }), json!({}))
                    .await;
            } else {
                namespace.replica_set_on_own_node("late", 1, json!({})).await;
            }
        })
        .await;
        assert_eq!(done.status, 69, "{done:?}");
        let rollout = done.answer()["rollout"].clone();
        assert_eq!(rollout["state"], "failed", "{rollout}");
        let problems = rollout["problems"].to_string();
        assert!(
            problems.contains("/late-0 appeared after the drain was planned")
                && problems.contains(why),
            "{problems}"
        );
        eventually("the pod of the plan is gone", async || {
            let left: Vec<_> =
                on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
            (left == ["late-0"]).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn pods_that_tolerate_the_cordon_and_come_back_are_named() {
    let namespace = node_with("drain_tolerated", &[("web", 1)]).await;
    let tolerating = json!({
        "tolerations": [{ "operator": "Exists" }],
        "nodeSelector": { "kubernetes.io/hostname": namespace.name() },
    });
    namespace.replica_set_on_own_node("stubborn", 1, tolerating).await;
    let before = namespace.pods_of("stubborn").await.pop().and_then(|pod| pod.uid());
    // The drain continues until the other one is back.
    let pods = namespace.api::<Pod>();
    let finalizers = |value: Value| Patch::Merge(json!({ "metadata": { "finalizers": value } }));
    let held = finalizers(json!(["test.action-executor.dev/held"]));
    pods.patch("web-0", &Default::default(), &held).await.expect("is patched");
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 30 }));
    let running = Program::with_kubeconfig(namespace.kubeconfig()).input(body).start();
    let back = eventually("it is back", async || {
        let pod = namespace.pods_of("stubborn").await.pop()?;
        (pod.uid() != before).then_some(pod)
    })
    .await;
    let released = finalizers(Value::Null);
    pods.patch("web-0", &Default::default(), &released).await.expect("is released");
    let done = spawn_blocking(move || running.wait()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "complete", "{answer}");
    let message = answer["rollout"]["message"].as_str().expect("is reported");
    assert!(message.contains("all 2 pods are gone"), "{message}");
    let named = format!(
        "despite the cordon, since they tolerate it or name the node: {}/{}",
        namespace.name(),
        back.name_any()
    );
    assert!(message.contains(&named), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_extends_no_drain_to_other_pods() {
    let namespace = node_with("drain_forged", &[("web", 1), ("other", 1)]).await;
    namespace.exhausted_pdb("web", "web", 1).await;
    let selected = json!({ "pod_selector": "app=web" });
    let fields = json!({ "wait": true, "timeout_seconds": 3, "id": namespace.name() });
    let body = request(&namespace, selected.clone(), fields.clone());
    let first = Program::with_kubeconfig(namespace.kubeconfig()).input(body.clone()).start();
    let events = Api::<Event>::namespaced(shared().client().await, "default");
    let record = eventually("the record says that the node is cordoned", async || {
        let all = events.list(&ListParams::default()).await.expect("are listed").items;
        all.into_iter().find(|event| {
            let annotations = event.annotations();
            annotations.get("action-executor.dev/request-id").map(String::as_str)
                == Some(namespace.name())
                && annotations.contains_key("action-executor.dev/applied")
        })
    })
    .await;
    first.signal("KILL");
    spawn_blocking(|| first.wait()).await.expect("it ended");
    // Who may write Events puts the other pod into the record, and lets all labels count.
    let other = namespace.api::<Pod>().get("other-0").await.expect("is there");
    let hash = &sha256(other.uid().expect("has one").as_bytes())[..10];
    let intent = &record.annotations()["action-executor.dev/intent"];
    let mut intent: Value = serde_json::from_str(intent).expect("is JSON");
    intent["completion"]["drained"]["unprotected"] = json!([hash]);
    intent["completion"]["drained"]["selector"] = Value::Null;
    let forged = json!({ "metadata": { "annotations": {
        "action-executor.dev/intent": intent.to_string(),
    }}});
    let name = record.name_any();
    events.patch(&name, &Default::default(), &Patch::Merge(forged)).await.expect("is forged");
    let done = Program::with_kubeconfig(namespace.kubeconfig()).input(body).run();
    assert_eq!(done.status, 69, "{done:?}");
    let message = done.answer()["rollout"]["message"].to_string();
    assert!(message.contains("does not match the pods in this drain's record"), "{message}");
    let left: BTreeSet<_> = on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, BTreeSet::from(["other-0", "web-0"].map(str::to_owned)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_become_unready_behind_an_exhausted_budget_are_evicted_first() {
    let namespace = node_with("drain_unready", &[("db", 2)]).await;
    // A third one elsewhere, which is not ready yet: two of three must be ready.
    let sets = namespace.api::<ReplicaSet>();
    let third = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
    sets.patch("db", &Default::default(), &third).await.expect("is scaled");
    let third = eventually("the third is ready", async || {
        let pods = namespace.pods_of("db").await;
        let third = pods.into_iter().find(|pod| !["db-0", "db-1"].contains(&&*pod.name_any()))?;
        let status = third.status.clone()?;
        (status.phase.as_deref() == Some("Running")).then(|| third.name_any())
    })
    .await;
    namespace.set_ready(&third, false).await;
    namespace.disruption_budget("db", "db", json!({ "minAvailable": 2 })).await;
    eventually("the disruption budget is exhausted", async || {
        let status = namespace.settled_pdb("db").await.status?;
        (status.current_healthy == 2 && status.disruptions_allowed == 0).then_some(())
    })
    .await;
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 40 }));
    let running = Program::with_kubeconfig(namespace.kubeconfig()).input(body).start();
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    // Four seconds later, as in the report, so that the drain has met the exhausted disruption budget.
    sleep(Duration::from_secs(4)).await;
    namespace.set_ready("db-1", false).await;
    namespace.set_ready(&third, true).await;
    let changed = std::time::Instant::now();
    let done = spawn_blocking(|| running.wait()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert!(changed.elapsed() < Duration::from_secs(12), "{:?}", changed.elapsed());
    assert!(on_node(&namespace).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_unready_pods_behind_one_exhausted_budget_are_evicted_at_once() {
    let namespace = node_with("drain_many_unready", &[("web", 6)]).await;
    namespace.exhausted_pdb("web", "web", 6).await;
    let always = Patch::Merge(json!({ "spec": { "unhealthyPodEvictionPolicy": "AlwaysAllow" } }));
    let budgets = namespace.api::<PodDisruptionBudget>();
    budgets.patch("web", &Default::default(), &always).await.expect("is patched");
    namespace.settled_pdb("web").await;
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 60 }));
    let running = Program::with_kubeconfig(namespace.kubeconfig()).input(body).start();
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    // Those that replace them are never ready, so the disruption budget stays exhausted.
    let crashing = json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "main", "image": CRASHING_IMAGE },
    ]}}}});
    let sets = namespace.api::<ReplicaSet>();
    sets.patch("web", &Default::default(), &Patch::Strategic(crashing)).await.expect("is patched");
    for number in 0..6 {
        namespace.set_ready(&format!("web-{number}"), false).await;
    }
    let changed = std::time::Instant::now();
    let done = spawn_blocking(|| running.wait()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert!(changed.elapsed() < Duration::from_secs(12), "{:?}", changed.elapsed());
}

#[tokio::test]
async fn a_pdb_that_never_allows_a_disruption_blocks_the_drain_permanently() {
    let namespace = node_with("drain_never", &[("web", 2), ("api", 1)]).await;
    namespace.disruption_budget("tight", "web", json!({ "minAvailable": 2 })).await;
    namespace.disruption_budget("none", "api", json!({ "maxUnavailable": 0 })).await;
    eventually("both are counted", async || {
        let healthy =
            async |name: &str| Some(namespace.settled_pdb(name).await.status?.current_healthy);
        (healthy("tight").await == Some(2) && healthy("none").await == Some(1)).then_some(())
    })
    .await;
    for fields in [json!({ "wait": true }), json!({}), json!({ "simulate": true })] {
        let done = send(&namespace, json!({}), fields);
        assert_eq!(done.status, 69, "{done:?}");
        let problem = done.answer();
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&json!("drain_blocked"), &json!(false))
        );
        let (detail, hint) = (problem["detail"].to_string(), problem["hint"].to_string());
        for budget in ["tight", "none"] {
            let never = format!("PodDisruptionBudget '{budget}' never allows a disruption");
            assert!(detail.contains(&never), "{detail}");
            assert!(hint.contains(&format!("edit pdb {budget}`")), "{hint}");
        }
        assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
    }
    assert!(!is_cordoned(&namespace).await);
}

/// Makes the namespace's own node one whose kubelet does not report, as the node controller shows it.
pub async fn lose_node(namespace: &Namespace) {
    let condition = json!({
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
        "lastHeartbeatTime": "2026-01-31T12:00:00Z", "lastTransitionTime": "2026-01-31T12:00:50Z",
    });
    let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    let nodes = namespace.global::<Node>();
    // kwok simulates the kubelet of an annotated node.
    let alone =
        Patch::Merge(json!({ "metadata": { "annotations": { "kwok.x-k8s.io/node": null } } }));
    nodes.patch(namespace.name(), &Default::default(), &alone).await.expect("is patched");
    nodes.patch_status(namespace.name(), &Default::default(), &patch).await.expect("is patched");
}

#[tokio::test]
async fn a_lost_node_is_told_with_the_time_and_the_ways_out() {
    let namespace = shared().namespace("drain_lost").await;
    namespace.own_node(false).await;
    // A finalizer stands for the kubelet that does not confirm the deletion.
    let held = json!({
        "finalizers": ["test.action-executor.dev/held"], "labels": { "app": "lost" },
    });
    for name in ["lost-0", "lost-1", "lost-2"] {
        bare_pod(&namespace, name, held.clone(), json!({})).await;
    }
    namespace.replica_set("lost", 3).await;
    eventually("the pods are adopted", async || {
        let pods = namespace.pods_of("lost").await;
        pods.iter().all(|pod| !pod.owner_references().is_empty()).then_some(())
    })
    .await;
    lose_node(&namespace).await;
    let name = namespace.name();
    let pod = |number: i32| json!({ "pod_name": format!("lost-{number}"), "namespace": name });
    let mut evict = pod(1);
    evict["allow_unmanaged"] = true.into();
    for (kind, parameters) in [
        ("restart_pod", pod(0)),
        ("evict_pod", evict),
        ("drain", json!({ "node": name, "force": true })),
    ] {
        if kind != "drain" {
            let pod = parameters["pod_name"].as_str().expect("is a name");
            namespace.set_ready(pod, false).await;
        }
        for simulate in [true, false] {
            let request = json!({
                "type": kind, "parameters": parameters, "simulate": simulate, "wait": true,
                "timeout_seconds": 3,
            });
            let program = Program::with_kubeconfig(namespace.kubeconfig());
            let done = program.input(request.to_string()).run();
            let answer = done.answer();
            let is_named = |text: &Value| {
                let text = text.to_string();
                text.contains("not reported since 2026-01-31T12:00:00Z")
                    && text.contains("containers of deleted pods are not stopped")
                    && text.contains("delete the Node object")
                    && text.contains("out-of-service")
            };
            assert!(is_named(&answer["warnings"]), "{kind} {simulate}: {answer}");
            // A ReplicaSet replaces the pod elsewhere, whatever becomes of it.
            if simulate || kind == "restart_pod" {
                assert_eq!(done.status, 0, "{done:?}");
            } else {
                assert_eq!(answer["rollout"]["state"], "timed_out", "{kind}: {answer}");
                let problems = &answer["rollout"]["problems"];
                assert!(is_named(problems), "{kind}: {answer}");
                assert!(problems.to_string().contains("to stop"), "{kind}: {answer}");
                assert!(!problems.to_string().contains("has until"), "{kind}: {answer}");
            }
        }
    }
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    for name in ["lost-0", "lost-1", "lost-2"] {
        let pods = namespace.api::<Pod>();
        pods.patch(name, &Default::default(), &unset).await.expect("is released");
    }
}

#[tokio::test]
async fn a_simulation_tries_each_eviction_and_warns_of_slow_and_marked_pods() {
    let namespace = node_with("drain_tried", &[("web", 1)]).await;
    let slow = json!({ "terminationGracePeriodSeconds": 3600 });
    namespace.replica_set_on_own_node("slow", 1, slow).await;
    for (number, (key, value)) in [
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
        ("karpenter.sh/do-not-disrupt", "true"),
    ]
    .into_iter()
    .enumerate()
    {
        let app = format!("marked-{number}");
        namespace.replica_set_on_own_node(&app, 1, json!({})).await;
        let marked = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        let pods = namespace.api::<Pod>();
        let pod = format!("{app}-0");
        pods.patch(&pod, &Default::default(), &marked).await.expect("is patched");
    }
    // Admission that rejects the eviction of one pod.
    let name = namespace.name();
    let evictions = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["pods/eviction"],
    });
    let validation =
        json!({ "expression": "object.metadata.name != 'web-0'", "message": "not on Fridays" });
    namespace.admission_policy("Deny", evictions, validation).await;
    let warnings = eventually("the policy is in effect", async || {
        let fields = json!({ "simulate": true, "wait": true, "timeout_seconds": 60 });
        let done = send(&namespace, json!({}), fields);
        assert_eq!(done.status, 0, "{done:?}");
        let warnings = done.answer()["warnings"].to_string();
        warnings.contains("not on Fridays").then_some(warnings)
    })
    .await;
    for part in [
        format!("the wait of 60 s: {name}/slow-0 (3600 s)"),
        format!("safe-to-evict: \\\"false\\\", evicted anyway: {name}/marked-0-0"),
        format!("karpenter.sh/do-not-disrupt, evicted anyway: {name}/marked-1-0"),
        "1 pod would not be evicted".to_owned(),
        format!(": {name}/web-0\""),
    ] {
        assert!(warnings.contains(&part), "{part}: {warnings}");
    }
    assert!(on_node(&namespace).await.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_admission_denies_is_tried_again_while_the_other_pods_are_evicted() {
    let namespace = node_with("drain_denied", &[("web", 2)]).await;
    let evictions = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["pods/eviction"],
    });
    let validation =
        json!({ "expression": "object.metadata.name != 'web-0'", "message": "it still moves" });
    namespace.admission_policy("Deny", evictions, validation).await;
    eventually("the policy is in effect", async || {
        let done = send(&namespace, json!({}), json!({ "simulate": true }));
        done.answer()["warnings"].to_string().contains("it still moves").then_some(())
    })
    .await;
    let fields = json!({ "wait": true, "timeout_seconds": 40 });
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let drain = program.input(request(&namespace, json!({}), fields)).start();
    eventually("the other pod is gone", async || {
        let left = on_node(&namespace).await;
        (left.len() == 1 && left[0].name_any() == "web-0").then_some(())
    })
    .await;
    namespace
        .global::<ValidatingAdmissionPolicyBinding>()
        .delete(namespace.name(), &Default::default())
        .await
        .expect("is deleted");
    let done = drain.wait();
    assert_eq!(done.status, 0, "{done:?}");
    assert!(on_node(&namespace).await.is_empty());
}

/// A proxy whose kubeconfig names the namespace as its own.
async fn proxy_in(namespace: &Namespace) -> Proxy {
    let proxy = transparent(namespace).await;
    let text = std::fs::read_to_string(&proxy.kubeconfig).expect("is readable");
    let mut config: Value = serde_json::from_str(&text).expect("is JSON");
    config["contexts"][0]["context"]["namespace"] = namespace.name().into();
    std::fs::write(&proxy.kubeconfig, config.to_string()).expect("is written");
    proxy
}

/// The program as if it ran in the pod `executor-0` on the namespace's node.
fn inside(program: Program, namespace: &Namespace) -> Program {
    program.env("POD_NAME", "executor-0").env("NODE_NAME", namespace.name())
}

fn evictions(proxy: &Proxy) -> Vec<String> {
    proxy.accepted_effects().into_iter().filter(|call| call.ends_with("/eviction")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_the_executors_own_node_evicts_it_last_and_is_taken_up_elsewhere() {
    let namespace = node_with("drain_own", &[("executor", 1), ("web", 3)]).await;
    let proxy = proxy_in(&namespace).await;
    let program = || inside(Program::with_kubeconfig(&proxy.kubeconfig), &namespace);
    let fields = json!({ "wait": true, "timeout_seconds": 50, "id": namespace.name() });
    let simulated = request(&namespace, json!({}), json!({ "simulate": true }));
    let done = program().input(simulated).run();
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("'executor-0'") && warnings.contains("resend"), "{warnings}");
    // It ends with its pod.
    let held =
        Patch::Merge(json!({ "metadata": { "finalizers": ["test.action-executor.dev/held"] } }));
    let pods = namespace.api::<Pod>();
    pods.patch("executor-0", &Default::default(), &held).await.expect("is patched");
    let body = request(&namespace, json!({}), fields);
    let running = program().input(body.clone()).start();
    eventually("its own pod is evicted", async || {
        let pod = pods.get("executor-0").await.expect("is there");
        pod.metadata.deletion_timestamp.map(drop)
    })
    .await;
    assert_eq!(on_node(&namespace).await.len(), 1);
    running.signal("TERM");
    let stopped = spawn_blocking(move || running.wait()).await.expect("it ran").answer();
    assert_eq!(stopped["rollout"]["state"], "interrupted", "{stopped}");
    let evictions = evictions(&proxy);
    assert_eq!(evictions.len(), 4, "{evictions:?}");
    assert!(evictions[3].contains("/executor-0/"), "{evictions:?}");
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch("executor-0", &Default::default(), &unset).await.expect("is released");
    let done = Program::with_kubeconfig(namespace.kubeconfig()).input(body).run();
    assert_eq!(done.status, 0, "{done:?}");
    let message = done.answer()["rollout"]["message"].to_string();
    assert!(message.contains("all 4 pods are gone"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_a_wait_evicts_the_executors_own_pod_after_all_others() {
    let namespace = node_with("drain_own_once", &[("executor", 1), ("web", 2)]).await;
    let proxy = proxy_in(&namespace).await;
    let program = inside(Program::with_kubeconfig(&proxy.kubeconfig), &namespace);
    let program = program.input(request(&namespace, json!({}), json!({})));
    let done = spawn_blocking(move || program.run()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    let evictions = evictions(&proxy);
    assert_eq!(evictions.len(), 3, "{evictions:?}");
    assert!(evictions[2].contains("/executor-0/"), "{evictions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_whose_credentials_were_rejected_is_tried_again() {
    let namespace = node_with("drain_rejected", &[("web", 2)]).await;
    let rejected = AtomicBool::new(false);
    let proxy = Proxy::start(&namespace, move |call| {
        let is_eviction = call.path.ends_with("/eviction") && !call.is_dry_run;
        match is_eviction && !rejected.swap(true, Ordering::SeqCst) {
            true => ProxyBehavior::Respond(401, "Unauthorized"),
            false => ProxyBehavior::Forward,
        }
    })
    .await;
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 30 }));
    let program = Program::with_kubeconfig(&proxy.kubeconfig).input(body);
    let done = spawn_blocking(move || program.run()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
}

#[tokio::test]
async fn the_policy_and_its_budget_apply_to_each_pod() {
    let namespace = node_with("drain_policy", &[("web", 2)]).await;
    let run = |policy: &str| {
        let policy = namespace.policy(policy);
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        program.input(request(&namespace, json!({}), json!({ "wait": true }))).run()
    };
    let denied = run(&format!("namespaces: {{deny: ['{}']}}", namespace.name()));
    assert_eq!(denied.status, 77, "{denied:?}");
    assert!(denied.answer()["detail"].as_str().expect("has one").contains("/web-0"), "{denied:?}");
    let denied = run("targets: {protected: [app=web]}");
    assert_eq!(denied.answer()["code"], "policy_denied", "{denied:?}");
    let limited = run("budget: {cluster: {actions: 2, within_seconds: 600}}");
    assert_eq!(limited.answer()["code"], "rate_limited", "{limited:?}");
    assert!(!is_cordoned(&namespace).await);
    let done = run("budget: {cluster: {actions: 3, within_seconds: 600}}");
    assert_eq!(done.status, 0, "{done:?}");
}

#[tokio::test]
async fn a_pod_that_does_not_terminate_is_reported_or_skipped() {
    let namespace = node_with("drain_stuck", &[]).await;
    let held = json!({ "finalizers": ["test.action-executor.dev/held"] });
    bare_pod(&namespace, "held", held, json!({})).await;
    let skip = json!({ "force": true, "skip_wait_for_delete_timeout_seconds": 1 });
    let fields = json!({ "wait": true, "timeout_seconds": 20 });
    let done = send(&namespace, skip.clone(), fields.clone());
    assert_eq!(done.status, 0, "{done:?}");
    // The pod is still there, so it is not said to be gone.
    let message = done.answer()["rollout"]["message"].to_string();
    let left =
        format!("1 pod deleted more than 1 s ago and still there: {}/held", namespace.name());
    assert!(message.contains(&left), "{message}");
    let done = send(&namespace, skip, fields);
    let result = done.answer()["result"].to_string();
    assert!(result.contains("no pods to evict; pods that stay: 1 deleted long ago"), "{result}");
    let fields = json!({ "wait": true, "timeout_seconds": 2 });
    let done = send(&namespace, json!({ "force": true }), fields);
    assert_eq!(done.status, 69, "{done:?}");
    let problems = done.answer()["rollout"]["problems"].to_string();
    assert!(problems.contains("test.action-executor.dev/held"), "{problems}");
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let pods = namespace.api::<Pod>();
    pods.patch("held", &Default::default(), &unset).await.expect("is released");
}

#[tokio::test]
async fn pods_that_never_ran_are_evicted_despite_their_budget() {
    let namespace = shared().namespace("drain_pending").await.with_image(MISSING_IMAGE);
    namespace.own_node(false).await;
    namespace.replica_set_on_own_node("web", 3, json!({})).await;
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": "web" },
            "spec": { "minAvailable": 3, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    let done = send(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 10 }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
}

/// Watches the cluster: are fewer pods ready than a disruption budget requires?
struct Observer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Observer {
    /// Each ReplicaSet has this many pods, of which one may be unavailable.
    fn start(namespace: &Namespace, replicas: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, stopped) = (namespace.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let (mut checks, mut broken) = (0, Vec::new());
            while !stopped.load(Ordering::SeqCst) {
                let pods = namespace.api::<Pod>().list(&ListParams::default()).await;
                let mut ready: BTreeMap<String, usize> = BTreeMap::new();
                for pod in pods.expect("are listed").items {
                    let conditions = pod.status.as_ref().and_then(|it| it.conditions.clone());
                    let is_ready = conditions
                        .into_iter()
                        .flatten()
                        .any(|it| it.type_ == "Ready" && it.status == "True")
                        && pod.metadata.deletion_timestamp.is_none();
                    *ready.entry(pod.labels()["app"].clone()).or_default() += usize::from(is_ready);
                }
                let few = ready.into_iter().filter(|(_, ready)| *ready + 1 < replicas);
                broken.extend(few.map(|(app, ready)| format!("{app} has {ready} of {replicas}")));
                let budgets = namespace.api::<PodDisruptionBudget>();
                for budget in budgets.list(&ListParams::default()).await.expect("are listed") {
                    let (name, status) = (budget.name_any(), budget.status.unwrap_or_default());
                    let (is, must) = (status.current_healthy, status.desired_healthy);
                    if is < must {
                        broken.push(format!(
                            "disruption budget {name}: {is} are healthy, {must} must be"
                        ));
                    }
                }
                checks += 1;
                sleep(Duration::from_millis(20)).await;
            }
            (checks, broken)
        });
        Observer { stop, task }
    }

    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("it observed")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pods_under_ten_budgets_are_evicted_within_each_budget() {
    const SETS: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let namespace = node_with("drain_many", &SETS.map(|name| (name, 20))).await;
    for name in SETS {
        budget(&namespace, name, 1, 1).await;
    }
    let observer = Observer::start(&namespace, 20);
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 80 }));
    let program = Program::with_kubeconfig(namespace.kubeconfig()).input(body);
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    let (checks, broken) = observer.end().await;
    assert_eq!(done.status, 0, "{done:?}");
    assert!(checks > 20, "{checks}");
    assert_eq!(broken, Vec::<String>::new());
    assert!(on_node(&namespace).await.is_empty());
    println!("200 pods under 10 disruption budgets: {:?}, {checks} checks", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_the_same_state_as_kubectl() {
    let mut ends = Vec::new();
    for by in ["ours", "kubectl"] {
        let namespace = node_with("drain_same", &[("web", 3), ("api", 2)]).await;
        namespace.daemon_set_on_own_node("agent").await;
        let volumes = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
        bare_pod(&namespace, "lonely", json!({}), volumes).await;
        budget(&namespace, "web", 1, 1).await;
        if by == "ours" {
            let accepted = json!({ "force": true, "delete_empty_dir_data": true });
            let done = send(&namespace, accepted, json!({ "wait": true }));
            assert_eq!(done.status, 0, "{done:?}");
        } else {
            let mut kubectl = Command::new(shared().program("kubectl"));
            kubectl.args(["drain", namespace.name(), "--ignore-daemonsets", "--force"]);
            kubectl.arg("--delete-emptydir-data").env("KUBECONFIG", shared().kubeconfig());
            let done = spawn_blocking(move || kubectl.output()).await.expect("it ran");
            let done = done.expect("kubectl runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let sets = async |on_it: bool| -> BTreeSet<String> {
            let all = namespace.api::<Pod>().list(&ListParams::default()).await.expect("are");
            let is_on_it = |pod: &Pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())
                    == Some(namespace.name())
            };
            let those = all.items.iter().filter(|pod| is_on_it(pod) == on_it);
            those.map(|pod| pod.labels().get("app").cloned().unwrap_or_default()).collect()
        };
        eventually("all are back", async || {
            let (web, api) = (namespace.pods_of("web").await, namespace.pods_of("api").await);
            (web.len() == 3 && api.len() == 2).then_some(())
        })
        .await;
        ends.push((is_cordoned(&namespace).await, sets(true).await, sets(false).await));
    }
    assert_eq!(ends[0], ends[1]);
}
