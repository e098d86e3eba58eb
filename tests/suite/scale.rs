//! `scale` on a real API server.

use action_executor::executor::failpoint::Failpoint;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch},
};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    pause_rollout::change_template,
    program::{Finished, Program},
    scenario::{extended, set_paused, without_replayed},
};

/// A real request for the Deployment `web`, with these parameters and additional fields.
fn request(namespace: &Namespace, parameters: Value, fields: Value) -> Value {
    let request = json!({
        "type": "scale", "simulate": false,
        "parameters": { "name": "web", "namespace": namespace.name() },
    });
    extended(request, parameters, fields)
}

fn send(namespace: &Namespace, parameters: Value, fields: Value) -> Finished {
    let request = request(namespace, parameters, fields);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn replicas(namespace: &Namespace) -> i32 {
    namespace.get_deployment("web").await.spec.and_then(|spec| spec.replicas).expect("has some")
}

/// Sets the replicas as someone else.
async fn set(namespace: &Namespace, replicas: i32) {
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
}

/// The workload `web`, once it has this many ready pods.
async fn at_rest(api: &Api<DynamicObject>, replicas: i64) -> DynamicObject {
    eventually("the pods are there", async || {
        let found = api.get("web").await.expect("is there");
        let status = |field: &str| found.data["status"][field].as_i64().unwrap_or(0);
        let observed = Some(status("observedGeneration")) == found.metadata.generation;
        (observed && status("replicas") == replicas && status("readyReplicas") == replicas)
            .then_some(found)
    })
    .await
}

#[tokio::test]
async fn a_scaling_leaves_the_same_state_as_kubectl_for_each_kind() {
    for (kind, resource) in [
        ("Deployment", ApiResource::erase::<Deployment>(&())),
        ("StatefulSet", ApiResource::erase::<StatefulSet>(&())),
        ("ReplicaSet", ApiResource::erase::<ReplicaSet>(&())),
    ] {
        let (ours, theirs) =
            (shared().namespace("scale_ours").await, shared().namespace("scale_theirs").await);
        for namespace in [&ours, &theirs] {
            match kind {
                "Deployment" => drop(namespace.running_deployment("web", 1).await),
                "StatefulSet" => namespace.running_stateful_set("web", 1).await,
                _ => namespace.replica_set("web", 1).await,
            }
            at_rest(&namespace.objects(&resource), 1).await;
        }
        for number in [3, 0, 2] {
            let parameters = json!({ "kind": kind, "replicas": number });
            let done = send(&ours, parameters, json!({ "wait": true }));
            assert_eq!(done.status, 0, "{done:?}");
            assert_eq!(done.answer()["rollout"]["state"], "complete");
            let kubectl = std::process::Command::new(shared().program("kubectl"))
                .args(["-n", theirs.name(), "scale", kind, "web", "--timeout=60s"])
                .arg(format!("--replicas={number}"))
                .env("KUBECONFIG", theirs.kubeconfig())
                .output()
                .expect("kubectl runs");
            assert!(kubectl.status.success(), "{kubectl:?}");
            let ours = at_rest(&ours.objects(&resource), number).await;
            let theirs = at_rest(&theirs.objects(&resource), number).await;
            assert_eq!(ours.data["spec"], theirs.data["spec"], "{kind} to {number}");
            assert_eq!(ours.data["spec"]["replicas"], number);
            assert_eq!(ours.metadata.generation, theirs.metadata.generation);
            assert_eq!(ours.metadata.annotations, theirs.metadata.annotations);
        }
    }
}

#[tokio::test]
async fn the_answer_states_the_old_and_the_new_number() {
    let namespace = shared().namespace("scale_answer").await;
    let before = namespace.running_deployment("web", 1).await.metadata;
    let done = send(&namespace, json!({ "by": 2 }), json!({ "simulate": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["result"], "Simulated: Deployment 'web' would be scaled from 1 to 3.");
    assert_eq!(replicas(&namespace).await, 1);
    let answer = send(&namespace, json!({ "by": 2 }), json!({})).answer();
    assert_eq!(answer["result"], "Deployment 'web' scaled from 1 to 3.");
    assert_eq!(answer["outcome"], "applied");
    assert_eq!(answer["changes"], json!([{ "path": "/spec/replicas", "from": 1, "to": 3 }]));
    assert_eq!(answer["target"]["uid"], before.uid.expect("has one"));
    assert_ne!(answer["target"]["resourceVersion"], before.resource_version.expect("has one"));
    assert_eq!(replicas(&namespace).await, 3);
    let again = send(&namespace, json!({ "replicas": 3 }), json!({})).answer();
    assert_eq!(again["outcome"], "unchanged");
    assert_eq!(again["result"], "Deployment 'web' is scaled to 3 already.");
}

#[tokio::test]
async fn a_scaling_waits_until_the_pods_are_ready() {
    let namespace = shared().namespace("scale_slow").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    let done = send(&namespace, json!({ "by": 1 }), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.took.as_secs() >= 9, "{done:?}");
    let message = &done.answer()["rollout"]["message"];
    assert_eq!(message, "Deployment 'web' has 2 replicas, all available");
}

#[tokio::test]
async fn a_scaling_to_zero_is_not_complete_while_pods_are_terminating() {
    let namespace = shared().namespace("scale_terminating").await;
    namespace.running_deployment("web", 1).await;
    let slow = json!({ "spec": { "template": {
        "metadata": { "annotations": { "test.action-executor.dev/slow-delete": "true" } },
        "spec": { "terminationGracePeriodSeconds": 60 },
    }}});
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &Patch::Merge(slow)).await.expect("is patched");
    namespace.rolled_out("web").await;
    let fields = json!({ "wait": true, "timeout_seconds": 3 });
    let done = send(&namespace, json!({ "replicas": 0 }), fields);
    assert_eq!(done.status, 69, "{done:?}");
    let rollout = &done.answer()["rollout"];
    assert_eq!(rollout["state"], "timed_out", "{rollout}");
    assert_eq!(rollout["message"], "1 replicas are terminating", "{rollout}");
}

#[tokio::test]
async fn a_number_that_is_not_reached_fails_with_the_pods_error() {
    let namespace = shared().namespace("scale_broken").await;
    namespace.deployment("web", 0, MISSING_IMAGE).await;
    namespace.rolled_out("web").await;
    let fields = json!({ "wait": true, "timeout_seconds": 4 });
    let done = send(&namespace, json!({ "replicas": 1 }), fields);
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["rollout"]["state"], "timed_out");
    assert!(answer["rollout"]["problems"].to_string().contains("ImagePullBackOff"), "{answer}");
    assert_eq!(replicas(&namespace).await, 1);
}

#[tokio::test]
async fn a_difference_is_added_once_despite_crashes() {
    let namespace = shared().namespace("scale_crash").await;
    namespace.running_deployment("web", 1).await;
    let request = request(&namespace, json!({ "by": 1 }), json!({ "id": "r1" })).to_string();
    let program = || {
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        program.env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2").input(request.clone())
    };
    let crashed = program().env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterWrite.name()).run();
    assert_eq!(crashed.status, -1, "{crashed:?}");
    assert_eq!(replicas(&namespace).await, 2);
    for _ in 0..2 {
        let done = program().args(["--join"]).run();
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["replayed"], true);
        assert_eq!(done.answer()["result"], "Deployment 'web' scaled from 1 to 2.");
        assert_eq!(replicas(&namespace).await, 2);
    }
}

#[tokio::test]
async fn two_requests_add_twice_and_a_retry_adds_nothing() {
    let namespace = shared().namespace("scale_retry").await;
    namespace.running_deployment("web", 1).await;
    let send = |id: &str| {
        let done = send(&namespace, json!({ "by": 1 }), json!({ "id": id }));
        assert_eq!(done.status, 0, "{done:?}");
        done.answer()
    };
    let (first, second, retry) = (send("a"), send("b"), send("a"));
    assert_eq!(second["result"], "Deployment 'web' scaled from 2 to 3.");
    assert_eq!(without_replayed(retry), without_replayed(first));
    assert_eq!(replicas(&namespace).await, 3);
}

#[tokio::test]
async fn an_outcome_is_not_guessed_when_others_scaled_after_a_crash() {
    let namespace = shared().namespace("scale_unknown").await;
    namespace.running_deployment("web", 1).await;
    let program = |id: &str| {
        let request = request(&namespace, json!({ "by": 1 }), json!({ "id": id })).to_string();
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        program.env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2").input(request)
    };
    let crashed = program("a").env("ACTION_EXECUTOR_FAILPOINT", Failpoint::AfterWrite.name()).run();
    assert_eq!(crashed.status, -1, "{crashed:?}");
    assert_eq!(program("b").run().status, 0);
    let done = program("a").args(["--join"]).run();
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["code"], "outcome_unknown");
    assert_eq!(replicas(&namespace).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_not_added_to_a_concurrent_change() {
    let namespace = shared().namespace("scale_meddled").await;
    namespace.running_deployment("web", 1).await;
    let (meddled, handle) = (namespace.clone(), tokio::runtime::Handle::current());
    let kubeconfig = proxy(&namespace, move |call| {
        if call.writes("scale") {
            tokio::task::block_in_place(|| handle.block_on(set(&meddled, 5)));
        }
        ProxyBehavior::Forward
    })
    .await;
    let request = request(&namespace, json!({ "by": 1 }), json!({ "id": "r1" })).to_string();
    let program = Program::with_kubeconfig(&kubeconfig).input(request.clone());
    let done = tokio::task::spawn_blocking(|| program.run()).await.expect("it ran");
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "conflict", "{done:?}");
    assert_eq!(replicas(&namespace).await, 5);
    // A resent request is decided again.
    let done = Program::with_kubeconfig(namespace.kubeconfig()).input(request).run();
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["changes"][0]["from"], 5);
    assert_eq!(replicas(&namespace).await, 6);
}

#[tokio::test]
async fn a_target_with_an_autoscaler_is_refused() {
    let namespace = shared().namespace("scale_managed").await;
    namespace.running_deployment("web", 1).await;
    let autoscalers = namespace.api::<HorizontalPodAutoscaler>();
    let autoscaler = |labels: Value, of: &str| {
        json!({
            "metadata": { "name": format!("{of}-hpa"), "labels": labels },
            "spec": {
                "maxReplicas": 5,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": of },
            },
        })
    };
    // An autoscaler of another target has no effect.
    namespace.create::<HorizontalPodAutoscaler>(autoscaler(json!({}), "api")).await;
    let done = send(&namespace, json!({ "by": 1 }), json!({ "simulate": true }));
    assert_eq!(done.status, 0, "{done:?}");
    for (labels, named) in [
        (json!({}), "HorizontalPodAutoscaler 'web-hpa'"),
        (json!({ "scaledobject.keda.sh/name": "web-so" }), "ScaledObject 'web-so'"),
    ] {
        namespace.create::<HorizontalPodAutoscaler>(autoscaler(labels, "web")).await;
        for simulate in [true, false] {
            let done = send(&namespace, json!({ "by": 1 }), json!({ "simulate": simulate }));
            assert_eq!(done.status, 69, "{done:?}");
            let answer = done.answer();
            assert_eq!(answer["code"], "target_managed");
            assert!(answer["detail"].as_str().expect("has one").contains(named), "{answer}");
        }
        autoscalers.delete("web-hpa", &Default::default()).await.expect("is deleted");
    }
    assert_eq!(replicas(&namespace).await, 1);
}

#[tokio::test]
async fn a_scaling_to_zero_and_back_lasts_beside_an_autoscaler() {
    let namespace = shared().namespace("scale_zero_hpa").await;
    namespace.running_deployment("web", 1).await;
    let autoscaler = json!({
        "metadata": { "name": "web-hpa" },
        "spec": {
            "maxReplicas": 5,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        },
    });
    namespace.create::<HorizontalPodAutoscaler>(autoscaler).await;
    for (parameters, expected, warning) in [
        (json!({ "replicas": 0 }), 0, "'web-hpa' does nothing while the number is 0"),
        (json!({ "by": 2 }), 2, "'web-hpa' sets the number from now on, from 1 to 5"),
    ] {
        for simulate in [true, false] {
            let done = send(&namespace, parameters.clone(), json!({ "simulate": simulate }));
            assert_eq!(done.status, 0, "{done:?}");
            assert!(done.answer()["warnings"].to_string().contains(warning), "{done:?}");
        }
        assert_eq!(replicas(&namespace).await, expected);
        if expected == 0 {
            eventually("the autoscaler is disabled", async || {
                let found = namespace.api::<HorizontalPodAutoscaler>().get("web-hpa").await;
                let conditions = found.expect("is read").status?.conditions?;
                conditions
                    .iter()
                    .find(|it| it.reason.as_deref() == Some("ScalingDisabled"))
                    .map(drop)
            })
            .await;
            assert_eq!(replicas(&namespace).await, 0);
        }
    }
}

#[tokio::test]
async fn a_deployments_replica_set_is_refused() {
    let namespace = shared().namespace("scale_owned").await;
    namespace.running_deployment("web", 1).await;
    let sets = namespace.api::<ReplicaSet>().list(&ListParams::default()).await;
    let set = sets.expect("are listed").items[0].name_any();
    let parameters = json!({ "kind": "ReplicaSet", "name": set, "replicas": 3 });
    let done = send(&namespace, parameters, json!({}));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["code"], "target_managed");
    assert!(answer["detail"].as_str().expect("has one").contains("Deployment 'web'"), "{answer}");
}

#[tokio::test]
async fn a_precondition_on_the_number_holds_and_the_result_is_never_negative() {
    let namespace = shared().namespace("scale_current").await;
    namespace.running_deployment("web", 1).await;
    for (parameters, field) in [
        (json!({ "replicas": 3, "current_replicas": 2 }), "parameters.current_replicas"),
        (json!({ "by": -2 }), "parameters.by"),
    ] {
        let done = send(&namespace, parameters, json!({}));
        assert_eq!(done.status, 69, "{done:?}");
        assert_eq!(done.answer()["code"], "precondition_failed");
        assert_eq!(done.answer()["field"], field);
    }
    assert_eq!(replicas(&namespace).await, 1);
    let done = send(&namespace, json!({ "replicas": 3, "current_replicas": 1 }), json!({}));
    assert_eq!(done.status, 0, "{done:?}");
}

#[tokio::test]
async fn the_policys_bounds_apply_to_a_number_and_to_a_difference() {
    let namespace = shared().namespace("scale_bounds").await;
    namespace.running_deployment("web", 1).await;
    let policy = namespace.policy("cooldown_seconds: 0\nreplicas: {min: 1, max: 3}");
    let send = |parameters: Value, simulate: bool| {
        let request = request(&namespace, parameters, json!({ "simulate": simulate }));
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        program.input(request.to_string()).run()
    };
    for parameters in [
        json!({ "replicas": 4 }),
        json!({ "by": 3 }),
        json!({ "replicas": 0 }),
        json!({ "by": -1 }),
    ] {
        let done = send(parameters.clone(), false);
        assert_eq!(done.status, 77, "{done:?}");
        let detail = done.answer()["detail"].clone();
        assert!(detail.as_str().expect("has one").contains("(replicas)"), "{detail}");
        let warned = send(parameters, true).answer();
        assert_eq!(warned["outcome"], "simulated");
        assert!(warned["warnings"].to_string().contains("would be refused"), "{warned}");
    }
    assert_eq!(replicas(&namespace).await, 1);
    assert_eq!(send(json!({ "by": 2 }), false).status, 0);
    assert_eq!(replicas(&namespace).await, 3);
}

#[tokio::test]
async fn a_paused_deployment_is_scaled_with_a_warning() {
    let namespace = shared().namespace("scale_paused").await;
    namespace.running_deployment("web", 2).await;
    set_paused(&namespace, true).await;
    // No pod has this template while the Deployment is paused.
    change_template(&namespace, "registry.invalid/other:1").await;
    for number in [3, 1] {
        let fields = json!({ "wait": true, "timeout_seconds": 60 });
        let done = send(&namespace, json!({ "replicas": number }), fields);
        assert_eq!(done.status, 0, "{done:?}");
        let answer = done.answer();
        assert!(answer["warnings"].to_string().contains("is paused"), "{answer}");
        let message = answer["rollout"]["message"].as_str().expect("is reported");
        assert!(message.contains(&format!("has {number} replicas")), "{message}");
        assert_eq!(namespace.pods_of("web").await.len(), number);
    }
}

#[tokio::test]
async fn a_scaling_warns_of_a_running_rollout_and_of_zero_replicas() {
    let namespace = shared().namespace("scale_warns").await;
    namespace.running_deployment("web", 2).await;
    change_template(&namespace, MISSING_IMAGE).await;
    eventually("the rollout is in the middle", async || {
        let status = namespace.get_deployment("web").await.status?;
        (status.updated_replicas? < status.replicas?).then_some(())
    })
    .await;
    let answer = send(&namespace, json!({ "replicas": 0 }), json!({ "simulate": true })).answer();
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("a rollout is in progress"), "{warnings}");
    assert!(warnings.contains("scaled to 0"), "{warnings}");
}

#[tokio::test]
async fn an_id_is_found_on_the_object_after_its_record_is_gone() {
    let namespace = shared().namespace("scale_gone").await;
    namespace.running_deployment("web", 1).await;
    let send = || send(&namespace, json!({ "by": 1 }), json!({ "id": "r1" }));
    assert_eq!(send().status, 0);
    for record in crate::ledger::records(&namespace).await {
        let events = namespace.api::<k8s_openapi::api::core::v1::Event>();
        events.delete(&record.name_any(), &Default::default()).await.expect("is deleted");
    }
    let done = send();
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["replayed"], true);
    assert_eq!(replicas(&namespace).await, 2);
}
