//! `delete_job` on a real API server.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::{Value, json};

use crate::{
    cluster::{FAILING_IMAGE, GOOD_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    ledger::kubectl,
    program::{Finished, Program},
    scenario::extended,
};

fn send(namespace: &Namespace, fields: Value) -> Finished {
    let request = json!({
        "type": "delete_job", "simulate": false,
        "parameters": { "name": "migrate", "namespace": namespace.name() },
    });
    let part = |name: &str| fields.get(name).cloned().unwrap_or_else(|| json!({}));
    let request = extended(request, part("parameters"), part("request"));
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

fn waiting(seconds: u32) -> Value {
    json!({ "wait": true, "timeout_seconds": seconds })
}

async fn uid(namespace: &Namespace) -> Option<String> {
    let job = namespace.api::<Job>().get_opt("migrate").await.expect("is read");
    job.and_then(|job| job.uid())
}

async fn pods(namespace: &Namespace) -> Vec<Pod> {
    namespace.api::<Pod>().list(&Default::default()).await.expect("are listed").items
}

#[tokio::test]
async fn a_deletion_leaves_the_same_state_as_with_kubectl() {
    for image in [GOOD_IMAGE, FAILING_IMAGE] {
        let (ours, theirs) =
            tokio::join!(shared().namespace("job_ours"), shared().namespace("job_theirs"));
        tokio::join!(ours.finished_job("migrate", image), theirs.finished_job("migrate", image));
        assert_eq!(pods(&ours).await.len(), 1);
        let done = send(&ours, json!({ "request": waiting(30) }));
        assert_eq!(done.status, 0, "{done:?}");
        let answer = done.answer();
        assert_eq!(answer["rollout"]["message"], "Job 'migrate' and its pods are gone", "{answer}");
        assert_eq!(answer["warnings"], json!([]), "{answer}");
        assert!(pods(&ours).await.is_empty());
        kubectl(&theirs, &["delete", "job", "migrate"]);
        assert_eq!((uid(&ours).await, uid(&theirs).await), (None, None));
        eventually("kubectl has deleted the pods too", async || {
            pods(&theirs).await.is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_job_that_has_not_finished_is_deleted_only_if_the_request_accepts_that() {
    for spec in [json!({}), json!({ "suspend": true })] {
        let namespace = shared().namespace("job_running").await;
        namespace.job("migrate", SLOW_IMAGE, spec.clone()).await;
        let is_suspended = spec["suspend"] == true;
        if !is_suspended {
            eventually("it has a pod", async || {
                let job = namespace.api::<Job>().get("migrate").await.expect("is there");
                (job.status?.active == Some(1)).then_some(())
            })
            .await;
        }
        for simulate in [true, false] {
            let done = send(&namespace, json!({ "request": { "simulate": simulate } }));
            let answer = done.answer();
            assert_eq!(answer["code"], "precondition_failed", "{done:?}");
            assert!(answer["hint"].to_string().contains("even_if_running"), "{answer}");
            let says = if is_suspended { "is suspended" } else { "1 pods run" };
            assert!(answer["detail"].to_string().contains(says), "{answer}");
        }
        let accepted = json!({ "even_if_running": true });
        let done = send(&namespace, json!({ "parameters": accepted, "request": waiting(30) }));
        assert_eq!(done.status, 0, "{done:?}");
        let warnings = done.answer()["warnings"].to_string();
        assert!(warnings.contains("their work is lost"), "{warnings}");
        assert_eq!((uid(&namespace).await, pods(&namespace).await.len()), (None, 0));
    }
}

#[tokio::test]
async fn a_simulation_of_a_deletion_keeps_the_job_and_says_what_would_be_lost() {
    let namespace = shared().namespace("job_simulated").await;
    let before = namespace.finished_job("migrate", GOOD_IMAGE).await;
    let done = send(&namespace, json!({ "request": { "simulate": true } }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        answer["result"],
        "Simulated: Job 'migrate' would be deleted, and with it its pods (0 pods run, 1 succeeded, 0 failed) and \
         their logs."
    );
    assert_eq!(answer["changes"][0]["from"], before.uid().expect("has one"));
    let now = namespace.api::<Job>().get("migrate").await.expect("is there");
    assert_eq!(now.resource_version(), before.resource_version());
    assert_eq!(pods(&namespace).await.len(), 1);
}

#[tokio::test]
async fn a_retry_does_not_delete_another_job_of_the_same_name() {
    let namespace = shared().namespace("job_again").await;
    let first = namespace.finished_job("migrate", GOOD_IMAGE).await.uid();
    let with_id = json!({ "request": { "id": "r1" } });
    assert_eq!(send(&namespace, with_id.clone()).status, 0);
    let second = namespace.finished_job("migrate", GOOD_IMAGE).await.uid();
    let again = send(&namespace, with_id);
    assert_eq!((again.status, &again.answer()["replayed"]), (0, &json!(true)), "{again:?}");
    let expected = json!({ "request": { "precondition": { "uid": first } } });
    let refused = send(&namespace, expected);
    assert_eq!(refused.answer()["code"], "precondition_failed", "{refused:?}");
    assert_eq!(uid(&namespace).await, second);
}

#[tokio::test]
async fn a_pod_that_does_not_go_is_named_with_the_reason() {
    let namespace = shared().namespace("job_held").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    let pod = pods(&namespace).await.remove(0).name_any();
    let held = |finalizers: Value| {
        let patch = Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
        let (api, pod) = (namespace.api::<Pod>(), pod.clone());
        async move { api.patch(&pod, &Default::default(), &patch).await.expect("is patched") }
    };
    held(json!(["test.action-executor.dev/held"])).await;
    let done = send(&namespace, json!({ "request": waiting(3) }));
    assert_eq!(done.status, 69, "{done:?}");
    let rollout = done.answer()["rollout"].clone();
    assert_eq!(rollout["message"], "Job 'migrate' is gone, one of its pods is not", "{rollout}");
    let problems = rollout["problems"].to_string();
    assert!(
        problems.contains("blocked by the finalizers test.action-executor.dev/held"),
        "{problems}"
    );
    held(Value::Null).await;
}

#[tokio::test]
async fn a_job_that_is_being_deleted_already_is_left_and_awaited() {
    let namespace = shared().namespace("job_leaving").await;
    namespace.finished_job("migrate", GOOD_IMAGE).await;
    let jobs = namespace.api::<Job>();
    let held = json!({ "metadata": { "finalizers": ["test.action-executor.dev/held"] } });
    jobs.patch("migrate", &Default::default(), &Patch::Merge(held)).await.expect("is held");
    jobs.delete("migrate", &DeleteParams::background()).await.expect("is being deleted");
    let done = send(&namespace, json!({ "request": waiting(2) }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert!(answer["result"].to_string().contains("is being deleted already"), "{answer}");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("Job 'migrate' is blocked by the finalizers"), "{problems}");
    let released = json!({ "metadata": { "finalizers": null } });
    jobs.patch("migrate", &Default::default(), &Patch::Merge(released)).await.expect("is released");
}

#[tokio::test]
async fn the_cron_job_that_controls_a_job_is_warned_of() {
    let namespace = shared().namespace("job_of_cronjob").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    kubectl(&namespace, &["create", "job", "migrate", "--from=cronjob/nightly"]);
    namespace.ended_job("migrate").await;
    let done = send(&namespace, json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("CronJob 'nightly' controls it"), "{warnings}");
}

#[tokio::test]
async fn a_missing_job_is_reported() {
    let namespace = shared().namespace("job_missing").await;
    let done = send(&namespace, json!({}));
    assert_eq!((done.status, &done.answer()["code"]), (69, &json!("target_not_found")));
    assert!(done.answer()["hint"].to_string().contains("get jobs"), "{done:?}");
}
