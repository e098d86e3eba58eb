//! `rerun_job` on a real API server.

use k8s_openapi::api::{batch::v1::Job, core::v1::Event};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::{Value, json};

use crate::{
    cluster::{FAILING_IMAGE, GOOD_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    ledger::{kubectl, records},
    program::{Finished, Program},
};

fn send(namespace: &Namespace, fields: Value) -> Finished {
    let mut request = json!({
        "type": "rerun_job", "simulate": false,
        "parameters": { "name": "migrate", "namespace": namespace.name() },
    });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn jobs(namespace: &Namespace) -> Vec<Job> {
    namespace.api::<Job>().list(&Default::default()).await.expect("are listed").items
}

/// The only Job besides `migrate`.
async fn rerun(namespace: &Namespace) -> Job {
    let mut others = jobs(namespace).await;
    others.retain(|job| job.name_any() != "migrate");
    assert_eq!(others.len(), 1, "{others:?}");
    others.remove(0)
}

/// What a Job has besides what distinguishes it from others of the same manifest.
fn essence(job: &Job) -> Value {
    let mut whole = json!({
        "labels": job.metadata.labels, "owners": job.metadata.owner_references, "spec": job.spec,
    });
    whole["spec"]["selector"] = Value::Null;
    let labels = whole.pointer_mut("/spec/template/metadata/labels").and_then(Value::as_object_mut);
    labels
        .expect("are there")
        .retain(|key, _| !key.ends_with("job-name") && !key.ends_with("controller-uid"));
    whole
}

#[tokio::test]
async fn a_rerun_is_a_job_with_the_same_manifest_and_pods_of_its_own() {
    let namespace = shared().namespace("rerun_same").await;
    let first = namespace.finished_job("migrate", GOOD_IMAGE).await;
    let done = send(&namespace, json!({ "id": "r1", "wait": true, "timeout_seconds": 30 }));
    assert_eq!(done.status, 0, "{done:?}");
    let second = rerun(&namespace).await;
    assert_eq!(essence(&second), essence(&first));
    assert_ne!(
        second.spec.as_ref().map(|it| &it.selector),
        first.spec.as_ref().map(|it| &it.selector)
    );
    assert_eq!(second.annotations()["action-executor.dev/request-id"], "r1");
    let (answer, name) = (done.answer(), second.name_any());
    assert_eq!(
        (&answer["target"]["kind"], &answer["target"]["name"]),
        (&json!("Job"), &json!("migrate"))
    );
    assert_eq!(answer["changes"][0]["to"], name);
    assert_eq!(
        answer["rollout"]["message"],
        format!("Job '{name}' is complete: 1 pods succeeded"),
        "{answer}"
    );
    assert!(answer["warnings"].to_string().contains("does its work a second time"), "{answer}");
    let now = namespace.api::<Job>().get("migrate").await.expect("is there");
    assert_eq!(now.resource_version(), first.resource_version(), "the first Job stays as it was");
}

#[tokio::test]
async fn a_failed_job_of_a_cron_job_is_run_again_without_an_owner() {
    let namespace = shared().namespace("rerun_cronjob").await;
    namespace.cron_job("nightly", FAILING_IMAGE, false).await;
    kubectl(&namespace, &["create", "job", "migrate", "--from=cronjob/nightly"]);
    namespace.ended_job("migrate").await;
    let done = send(&namespace, json!({ "wait": true, "timeout_seconds": 30 }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("may fail for the same cause: BackoffLimitExceeded"), "{warnings}");
    assert!(warnings.contains("does not belong to CronJob 'nightly'"), "{warnings}");
    let rollout = &answer["rollout"];
    assert!(rollout["message"].to_string().contains("BackoffLimitExceeded"), "{rollout}");
    assert!(rollout["problems"].to_string().contains("exit code 3"), "{rollout}");
    let second = rerun(&namespace).await;
    assert!(second.owner_references().is_empty());
    assert!(!second.annotations().contains_key("cronjob.kubernetes.io/instantiate"));
    // The CronJob controller counts it neither as active nor as one of its history.
    let params = kube::api::ListParams::default().fields("reason=UnexpectedJob");
    let events = namespace.api::<Event>().list(&params).await.expect("are listed").items;
    assert!(
        !events
            .iter()
            .any(|it| it.message.as_ref().is_some_and(|it| it.contains(&second.name_any())))
    );
}

#[tokio::test]
async fn an_indexed_job_of_a_long_name_is_run_again_with_all_its_indexes() {
    let namespace = shared().namespace("rerun_indexed").await;
    let name = "a".repeat(50);
    let spec = json!({
        "completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1,
        "backoffLimit": null, "ttlSecondsAfterFinished": 300,
    });
    namespace.job(&name, GOOD_IMAGE, spec).await;
    namespace.ended_job(&name).await;
    for simulate in [true, false] {
        let parameters = json!({ "name": name, "namespace": namespace.name() });
        let fields = json!({ "parameters": parameters, "simulate": simulate, "wait": !simulate });
        let done = send(&namespace, fields);
        assert_eq!(done.status, 0, "{done:?}");
    }
    let again = jobs(&namespace).await.into_iter().find(|job| job.name_any() != name);
    let again = again.expect("was created");
    let status = again.status.expect("has one");
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(3), Some("0-2")));
    assert_eq!(again.spec.and_then(|spec| spec.ttl_seconds_after_finished), Some(600));
}

#[tokio::test]
async fn a_job_that_runs_or_selects_its_pods_by_labels_of_its_own_is_refused() {
    let namespace = shared().namespace("rerun_running").await;
    let selector = json!({
        "manualSelector": true, "selector": { "matchLabels": { "app": "migrate" } },
    });
    for (image, spec, says) in [
        (SLOW_IMAGE, json!({}), "has not finished"),
        (GOOD_IMAGE, json!({ "suspend": true }), "has not finished"),
        (GOOD_IMAGE, selector, "spec.manualSelector"),
    ] {
        namespace.job("migrate", image, spec).await;
        if says.contains("manual") {
            namespace.ended_job("migrate").await;
        }
        for simulate in [true, false] {
            let done = send(&namespace, json!({ "simulate": simulate }));
            assert_eq!(done.answer()["code"], "precondition_failed", "{done:?}");
            assert!(done.answer()["detail"].to_string().contains(says), "{done:?}");
        }
        assert_eq!(jobs(&namespace).await.len(), 1);
        let params = DeleteParams::background();
        namespace.api::<Job>().delete("migrate", &params).await.expect("is deleted");
    }
}

#[tokio::test]
async fn a_simulation_creates_no_job_and_names_the_one_that_follows() {
    let namespace = shared().namespace("rerun_simulated").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    let done = send(&namespace, json!({ "simulate": true, "id": "r1" }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(jobs(&namespace).await.len(), 1);
    assert_eq!(send(&namespace, json!({ "id": "r1" })).status, 0);
    assert_eq!(done.answer()["changes"][0]["to"], rerun(&namespace).await.name_any());
}

#[tokio::test]
async fn a_rerun_is_found_after_its_record_is_gone() {
    let namespace = shared().namespace("rerun_again").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    assert_eq!(send(&namespace, json!({ "id": "r1" })).status, 0);
    for record in records(&namespace).await {
        let events = namespace.api::<Event>();
        events.delete(&record.name_any(), &Default::default()).await.expect("is deleted");
    }
    let done = send(&namespace, json!({ "id": "r1" }));
    assert_eq!((done.status, &done.answer()["replayed"]), (0, &json!(true)), "{done:?}");
    rerun(&namespace).await;
}

#[tokio::test]
async fn a_rerun_does_not_belong_to_the_tool_that_manages_the_first_job() {
    let namespace = shared().namespace("rerun_gitops").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    let marks = json!({ "metadata": {
        "labels": { "argocd.argoproj.io/instance": "shop", "team": "a" },
        "annotations": { "argocd.argoproj.io/tracking-id": "shop:batch/Job:shop/migrate" },
    }});
    let api = namespace.api::<Job>();
    api.patch("migrate", &Default::default(), &Patch::Merge(marks)).await.expect("is patched");
    assert_eq!(send(&namespace, json!({})).status, 0);
    let second = rerun(&namespace).await;
    assert_eq!(second.labels()["team"], "a");
    let marked = |key: &String| key.starts_with("argocd.");
    assert!(!second.labels().keys().chain(second.annotations().keys()).any(marked));
}

#[tokio::test]
async fn a_rerun_of_a_rerun_is_another_job() {
    let namespace = shared().namespace("rerun_twice").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    assert_eq!(send(&namespace, json!({ "id": "r1" })).status, 0);
    let second = rerun(&namespace).await.name_any();
    namespace.ended_job(&second).await;
    let parameters = json!({ "name": second, "namespace": namespace.name() });
    let done = send(&namespace, json!({ "id": "r2", "parameters": parameters, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    eventually("there are three", async || (jobs(&namespace).await.len() == 3).then_some(())).await;
}
