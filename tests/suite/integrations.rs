//! The actions on objects of Flux, Argo CD and KEDA, and what they refuse, on a real API server with the projects' own
//! CRDs. The part of the controllers is written by the tests, or played (`integration_objects`).

use std::{fs, thread};

use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, TestCluster, apply_crds, eventually, private, shared},
    integration_objects::{Kind, Object, condition},
    ledger::kubectl,
    program::{Finished, Program, scratch},
    scenario::extended,
};

fn request(namespace: &Namespace, action: &str, parameters: Value, fields: Value) -> Value {
    let request = json!({
        "type": action, "simulate": false,
        "parameters": { "name": "web", "namespace": namespace.name() },
    });
    extended(request, parameters, fields)
}

fn program(namespace: &Namespace, policy: &str, request: &Value) -> Program {
    let policy = namespace.policy(&format!("cooldown_seconds: 0\n{policy}"));
    Program::with_kubeconfig(namespace.kubeconfig()).under(&policy).input(request.to_string())
}

fn send(namespace: &Namespace, action: &str, parameters: Value, fields: Value) -> Finished {
    program(namespace, "", &request(namespace, action, parameters, fields)).run()
}

/// Sends a request that waits, and lets the test play the controller meanwhile.
async fn while_it_waits(
    namespace: &Namespace,
    action: &str,
    parameters: Value,
    play: impl AsyncFnOnce(),
) -> Finished {
    let wait = json!({ "wait": true, "timeout_seconds": 20 });
    let program = program(namespace, "", &request(namespace, action, parameters, wait));
    let run = thread::spawn(move || program.run());
    play().await;
    run.join().expect("has run")
}

async fn until(object: &Object, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || {
        let found = object.read().await;
        is_so(&found).then_some(found)
    })
    .await
}

fn requested(object: &Value) -> &Value {
    &object["metadata"]["annotations"]["reconcile.fluxcd.io/requestedAt"]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integration_that_is_off_is_not_read_and_the_refusal_has_the_line_to_add() {
    let namespace = shared().namespace("off").await;
    for (action, integration) in
        [("suspend_flux", "flux"), ("sync_argo_cd", "argo_cd"), ("pause_keda", "keda")]
    {
        for (named, line) in [
            ("[]", format!("[{integration}]")),
            ("[argo_rollouts]", format!("[argo_rollouts, {integration}]")),
        ] {
            for simulate in [true, false] {
                let request =
                    request(&namespace, action, json!({}), json!({ "simulate": simulate }));
                let done = program(&namespace, &format!("integrations: {named}"), &request).run();
                let answer = done.answer();
                assert_eq!(answer["code"], "policy_denied", "{answer}");
                let detail = answer["detail"].as_str().expect("has one");
                assert!(detail.contains(&format!("`integrations: {line}`")), "{detail}");
            }
        }
    }
}

/// Installs this CRD with other versions, or with fields removed.
fn install(cluster: &TestCluster, directory: &str, edit: impl Fn(&mut Value)) {
    let directory = crate::cluster::from_integrations(&["crds", directory]);
    for file in fs::read_dir(directory).expect("is there") {
        let text = fs::read_to_string(file.expect("is readable").path()).expect("is text");
        let mut crd: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
        edit(&mut crd);
        let path = scratch("crd.json");
        fs::write(&path, crd.to_string()).expect("is written");
        apply_crds(cluster.kubeconfig(), &cluster.program("kubectl"), &path);
    }
}

/// A cluster of its own: in the shared one the CRDs are installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_not_served_and_a_field_that_is_unknown_are_refused() {
    let cluster = private();
    let namespace = cluster.namespace("unserved").await;
    let refused = |action: &str, parameters: Value| {
        let done = send(&namespace, action, parameters, json!({}));
        assert_eq!(done.status, 69, "{done:?}");
        assert!(done.took.as_secs() < 5, "{done:?}");
        done.answer()
    };
    // The group is not served at all.
    let answer = refused("suspend_flux", json!({}));
    assert_eq!(answer["code"], "kind_not_installed", "{answer}");
    assert!(
        answer["detail"]
            .to_string()
            .contains("kustomizations.kustomize.toolkit.fluxcd.io is not installed")
    );
    assert!(answer["hint"].to_string().contains("install Flux 2.0 or newer"), "{answer}");
    // The group has the version, for another kind.
    install(&cluster, "argo-rollouts", |_| ());
    let answer = refused("sync_argo_cd", json!({}));
    assert!(answer["detail"].to_string().contains("applications.argoproj.io is not installed"));
    // The group has only another version.
    install(&cluster, "flux", |crd| {
        let versions = crd["spec"]["versions"].as_array_mut().expect("are versions");
        versions.truncate(1);
        versions[0]["name"] = "v1beta2".into();
        versions[0]["storage"] = true.into();
    });
    let answer = refused("suspend_flux", json!({ "kind": "HelmRelease" }));
    assert_eq!(answer["code"], "kind_not_installed", "{answer}");
    assert!(answer["detail"].to_string().contains("it serves only v1beta2"), "{answer}");
    // It is served, and the object does not exist.
    install(&cluster, "argo-cd", |crd| {
        // As before Argo CD 3.1.
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/syncPolicy/properties/automated/properties";
        let fields = crd.pointer_mut(path).and_then(Value::as_object_mut).expect("are there");
        assert!(fields.remove("enabled").is_some());
    });
    let answer = refused("suspend_argo_cd_sync", json!({}));
    assert_eq!(answer["code"], "target_not_found", "{answer}");
    // The field that would suspend it is unknown to its CRD.
    let application: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": { "name": "web" },
        "spec": {
            "project": "default", "source": { "repoURL": "https://example.com/shop.git", "path": "secret-path" },
            "destination": {}, "syncPolicy": { "automated": {} },
        },
    }))
    .expect("is an object");
    let applications = namespace.objects(&Kind::Application.resource());
    applications.create(&PostParams::default(), &application).await.expect("is created");
    for simulate in [true, false] {
        let done =
            send(&namespace, "suspend_argo_cd_sync", json!({}), json!({ "simulate": simulate }));
        let answer = done.answer();
        assert_eq!(answer["code"], "rejected_by_cluster", "{answer}");
        let detail = answer["detail"].as_str().expect("has one");
        assert!(detail.contains("unknown field \"spec.syncPolicy.automated.enabled\""), "{detail}");
        assert!(!detail.contains("secret-path"), "{detail}");
    }
    let found = json!(applications.get("web").await.expect("is there"));
    assert!(found["metadata"]["annotations"].is_null(), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_and_a_resumption_leave_the_state_that_flux_itself_leaves() {
    for kind in [Kind::Kustomization, Kind::HelmRelease] {
        let (ours, theirs) =
            tokio::join!(shared().namespace("flux_ours"), shared().namespace("flux_theirs"));
        let object = kind.create(&ours, json!({}), json!({})).await;
        let other = kind.create(&theirs, json!({}), json!({})).await;
        object.play();
        let name = kind.resource().kind;
        let parameters = json!({ "kind": name });
        for (action, patch) in [
            ("suspend_flux", json!({ "spec": { "suspend": true } })),
            ("resume_flux", json!({ "spec": { "suspend": null } })),
        ] {
            let wait = json!({ "wait": true, "timeout_seconds": 20 });
            let done = send(&ours, action, parameters.clone(), wait);
            assert_eq!(done.status, 0, "{done:?}");
            assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
            // The patch of `flux suspend` and `flux resume`.
            kubectl(
                &theirs,
                &["patch", &name, "web", "--type=merge", "--patch", &patch.to_string()],
            );
            let (found, theirs) = (object.read().await, other.read().await);
            assert_eq!(found["spec"], theirs["spec"], "{action}");
            assert_eq!(found["metadata"]["generation"], theirs["metadata"]["generation"]);
            let again = send(&ours, action, parameters.clone(), json!({}));
            assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_is_judged_by_what_flux_says_of_this_request() {
    let namespace = shared().namespace("flux_reconcile").await;
    let object = Kind::Kustomization.create(&namespace, json!({}), json!({})).await;
    let ready = |is_true: bool, reason: &str| {
        let mut ready = condition("Ready", is_true);
        ready["reason"] = reason.into();
        ready["observedGeneration"] = 1.into();
        ready
    };
    object
        .write_status(json!({ "observedGeneration": 1, "conditions": [ready(true, "Old")] }))
        .await;
    for (reason, status, expected) in [
        ("BuildFailed", 69, "is not ready: BuildFailed: by the test"),
        ("ReconciliationSucceeded", 0, "is reconciled"),
    ] {
        let before = requested(&object.read().await).clone();
        let done = while_it_waits(&namespace, "reconcile_flux", json!({}), async || {
            let found = until(&object, "a request", |found| *requested(found) != before).await;
            // A dependency that is not ready ends no wait.
            for (reason, is_true) in [("DependencyNotReady", false), (reason, status == 0)] {
                let handled = requested(&found);
                object
                    .write_status(json!({
                        "lastHandledReconcileAt": handled, "conditions": [ready(is_true, reason)],
                    }))
                    .await;
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
        })
        .await;
        assert_eq!(done.status, status, "{done:?}");
        let answer = done.answer();
        assert!(answer["rollout"]["message"].to_string().contains(expected), "{answer}");
    }
    object.merge(json!({ "spec": { "suspend": true } })).await;
    let done = send(&namespace, "reconcile_flux", json!({}), json!({}));
    assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn automated_sync_comes_back_exactly_as_it_was() {
    for automated in [
        json!({ "prune": true, "selfHeal": true }),
        json!({ "enabled": true, "allowEmpty": true }),
        json!({}),
    ] {
        let namespace = shared().namespace("argo_cd").await;
        let spec = json!({ "syncPolicy": { "automated": automated } });
        let object = Kind::Application.create(&namespace, json!({}), spec).await;
        let before = object.read().await;
        let done = send(&namespace, "suspend_argo_cd_sync", json!({}), json!({}));
        assert_eq!(done.status, 0, "{done:?}");
        let suspended = object.read().await;
        assert_eq!(suspended["spec"]["syncPolicy"]["automated"]["enabled"], false);
        let again = send(&namespace, "suspend_argo_cd_sync", json!({}), json!({}));
        assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
        let done = send(&namespace, "resume_argo_cd_sync", json!({}), json!({}));
        assert_eq!(done.status, 0, "{done:?}");
        let found = object.read().await;
        assert_eq!(found["spec"], before["spec"]);
        let kept = found["metadata"]["annotations"].as_object().expect("are there");
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["action-executor.dev/requests"]);
    }
    let namespace = shared().namespace("argo_cd_manual").await;
    Kind::Application.create(&namespace, json!({}), json!({ "syncPolicy": null })).await;
    for action in ["suspend_argo_cd_sync", "resume_argo_cd_sync"] {
        let done = send(&namespace, action, json!({}), json!({}));
        assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_ends_as_its_own_operation_ends() {
    let namespace = shared().namespace("argo_cd_sync").await;
    let policy = json!({ "syncOptions": ["ServerSideApply=true"], "retry": { "limit": 2 } });
    let object =
        Kind::Application.create(&namespace, json!({}), json!({ "syncPolicy": policy })).await;
    for (phase, status) in [("Failed", 69), ("Succeeded", 0)] {
        let parameters = json!({ "prune": status == 0 });
        let done = while_it_waits(&namespace, "sync_argo_cd", parameters, async || {
            let found = until(&object, "an operation", |it| it["operation"].is_object()).await;
            let operation = &found["operation"];
            assert_eq!(operation["initiatedBy"]["username"], "action-executor");
            assert_eq!(operation["sync"]["syncOptions"], json!(["ServerSideApply=true"]));
            assert_eq!(operation["retry"], json!({ "limit": 2 }));
            assert_eq!(operation["sync"]["prune"] == true, status == 0);
            // Another one is refused while it runs.
            let state = |phase: &str| {
                json!({
                    "operation": operation, "phase": phase, "message": "one of two is Degraded",
                    "startedAt": "2026-01-31T12:00:00Z",
                })
            };
            object.write_status(json!({ "operationState": state("Running") })).await;
            let other = send(&namespace, "sync_argo_cd", json!({}), json!({}));
            assert_eq!(other.answer()["code"], "precondition_failed", "{other:?}");
            let end = json!({ "operation": null, "status": { "operationState": state(phase) } });
            object.merge(end).await;
        })
        .await;
        assert_eq!(done.status, status, "{done:?}");
        let answer = done.answer();
        assert!(
            answer["rollout"]["message"].to_string().contains("one of two is Degraded"),
            "{answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_set_that_would_set_it_back_is_named_with_what_keeps_it() {
    let namespace = shared().namespace("argo_cd_set").await;
    namespace.install_crds("argo-cd-applicationsets");
    let resource = kube::api::ApiResource {
        kind: "ApplicationSet".to_owned(),
        plural: "applicationsets".to_owned(),
        ..Kind::Application.resource()
    };
    let sets = namespace.objects(&resource);
    let template = json!({
        "metadata": { "name": "web" },
        "spec": {
            "project": "default", "source": { "repoURL": "https://example.com/shop.git", "path": "." },
            "destination": {},
        },
    });
    let set: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "metadata": { "name": "all" },
        "spec": { "generators": [], "template": template },
    }))
    .expect("is an object");
    let set = sets.create(&PostParams::default(), &set).await.expect("is created");
    let owner = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "all",
        "uid": set.metadata.uid, "controller": true,
    });
    let metadata = json!({ "ownerReferences": [owner] });
    let object = Kind::Application.create(&namespace, metadata, json!({})).await;
    let refused = |action: &str, hint: &str| {
        let answer = send(&namespace, action, json!({}), json!({})).answer();
        assert_eq!(answer["code"], "target_managed", "{answer}");
        assert!(answer["hint"].to_string().contains(hint), "{answer}");
    };
    refused("suspend_argo_cd_sync", "ignoreApplicationDifferences");
    refused("sync_argo_cd", "preservedFields.annotations");
    let kept = json!({ "spec": {
        "preservedFields": {
            "annotations": ["action-executor.dev/requests", "action-executor.dev/argo-cd-automated-enabled"],
        },
        "ignoreApplicationDifferences": [{ "jsonPointers": ["/spec/syncPolicy/automated/enabled"] }],
    }});
    let params = Default::default();
    sets.patch("all", &params, &kube::api::Patch::Merge(kept)).await.expect("is patched");
    let done = send(&namespace, "suspend_argo_cd_sync", json!({}), json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(object.read().await["spec"]["syncPolicy"]["automated"]["enabled"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_is_paused_and_resumed_by_its_annotations() {
    for (kind, parameters) in [
        (Kind::ScaledObject, json!({})),
        (Kind::ScaledObject, json!({ "replicas": 2 })),
        (Kind::ScaledJob, json!({ "kind": "ScaledJob" })),
    ] {
        let namespace = shared().namespace("keda").await;
        let object = kind.create(&namespace, json!({}), json!({})).await;
        object.play();
        let wait = json!({ "wait": true, "timeout_seconds": 20 });
        let done = send(&namespace, "pause_keda", parameters.clone(), wait.clone());
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
        let annotations = object.read().await["metadata"]["annotations"].clone();
        match parameters["replicas"].as_i64() {
            Some(_) => assert_eq!(annotations["autoscaling.keda.sh/paused-replicas"], "2"),
            None => assert_eq!(annotations["autoscaling.keda.sh/paused"], "true"),
        }
        let again = send(&namespace, "pause_keda", parameters, json!({}));
        assert_eq!(again.answer()["outcome"], "unchanged", "{again:?}");
        let of_kind = json!({ "kind": kind.resource().kind });
        let done = send(&namespace, "resume_keda", of_kind, wait);
        assert_eq!(done.status, 0, "{done:?}");
        let annotations = object.read().await["metadata"]["annotations"].clone();
        let kept = annotations.as_object().expect("are there");
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["action-executor.dev/requests"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policys_bounds_of_replicas_apply_to_a_pause() {
    let namespace = shared().namespace("keda_bounds").await;
    let object = Kind::ScaledObject.create(&namespace, json!({}), json!({})).await;
    for (replicas, is_allowed) in [(4, false), (0, false), (3, true)] {
        let request = request(&namespace, "pause_keda", json!({ "replicas": replicas }), json!({}));
        let answer = program(&namespace, "replicas: {min: 1, max: 3}", &request).run().answer();
        assert_eq!(answer["code"] == "policy_denied", !is_allowed, "{answer}");
        let found = object.read().await["metadata"]["annotations"].clone();
        assert_eq!(found.is_object(), is_allowed, "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_keda_does_not_confirm_is_not_reported_as_complete() {
    let namespace = shared().namespace("keda_silent").await;
    Kind::ScaledObject.create(&namespace, json!({}), json!({})).await;
    let fields = json!({ "wait": true, "timeout_seconds": 2 });
    let done = send(&namespace, "pause_keda", json!({ "replicas": 1 }), fields);
    assert_ne!(done.status, 0, "{done:?}");
    assert!(done.answer()["rollout"].to_string().contains("has not paused"), "{done:?}");
}
