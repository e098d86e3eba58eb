//! `run_cronjob`, `suspend_cronjob` and `resume_cronjob` on a real API server.

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Event, Pod},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{
        FAILING_IMAGE, GOOD_IMAGE, MISSING_IMAGE, Namespace, SLOW_IMAGE, eventually, shared,
    },
    ledger::{kubectl, records},
    program::{Finished, Program},
};

fn send(namespace: &Namespace, action: &str, fields: Value) -> Finished {
    let mut request = json!({
        "type": action, "simulate": false,
        "parameters": { "cronjob": "nightly", "namespace": namespace.name() },
    });
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string()).run()
}

async fn jobs(namespace: &Namespace) -> Vec<Job> {
    namespace.api::<Job>().list(&Default::default()).await.expect("are listed").items
}

async fn is_suspended(namespace: &Namespace, name: &str) -> Option<bool> {
    let found = namespace.api::<CronJob>().get(name).await.expect("is there");
    found.spec.expect("has one").suspend
}

/// Lists this Job as active in the CronJob's status, as its controller does for the Jobs that it starts.
async fn activate(namespace: &Namespace, job: &Job) {
    let reference = json!({ "kind": "Job", "name": job.name_any(), "uid": job.uid() });
    let status = Patch::Merge(json!({ "status": { "active": [reference] } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch_status("nightly", &Default::default(), &status).await.expect("is patched");
}

#[tokio::test]
async fn run_cronjob_creates_the_job_that_kubectl_creates() {
    let namespace = shared().namespace("run_like_kubectl").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let done = send(&namespace, "run_cronjob", json!({ "id": "r1" }));
    assert_eq!(done.status, 0, "{done:?}");
    let ours = jobs(&namespace).await.remove(0);
    kubectl(&namespace, &["create", "job", "theirs", "--from=cronjob/nightly"]);
    let theirs = namespace.api::<Job>().get("theirs").await.expect("is there");
    // The API server adds what distinguishes the Jobs.
    let essence = |job: &Job| {
        let mut whole = json!({
            "labels": job.metadata.labels, "annotations": job.metadata.annotations,
            "owners": job.metadata.owner_references, "spec": job.spec,
        });
        let annotations = whole["annotations"].as_object_mut().expect("are there");
        annotations.retain(|key, _| !key.starts_with("action-executor.dev/"));
        whole["spec"]["selector"] = Value::Null;
        for labels in ["/labels", "/spec/template/metadata/labels"] {
            let labels = whole.pointer_mut(labels).and_then(Value::as_object_mut);
            labels
                .expect("are there")
                .retain(|key, _| !key.ends_with("job-name") && !key.ends_with("controller-uid"));
        }
        whole
    };
    assert_eq!(essence(&ours), essence(&theirs));
    assert_eq!(ours.annotations()["action-executor.dev/request-id"], "r1");
    let answer = done.answer();
    assert_eq!(answer["target"]["kind"], "CronJob");
    assert!(answer["result"].as_str().expect("is one").contains(&ours.name_any()), "{answer}");
    assert_eq!(answer["changes"][0]["to"], ours.name_any());
    assert_eq!(answer["warnings"], json!([]));
}

#[tokio::test]
async fn run_cronjob_waits_until_the_job_is_complete() {
    let namespace = shared().namespace("run_waits").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let done = send(&namespace, "run_cronjob", json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let name = jobs(&namespace).await[0].name_any();
    let message = done.answer()["rollout"]["message"].as_str().expect("has one").to_owned();
    assert_eq!(message, format!("Job '{name}' is complete: 1 pods succeeded"));
}

#[tokio::test]
async fn a_failed_job_is_reported_with_its_reason_and_its_pods_error() {
    let namespace = shared().namespace("run_fails").await;
    namespace.cron_job("nightly", FAILING_IMAGE, false).await;
    let done = send(&namespace, "run_cronjob", json!({ "wait": true, "timeout_seconds": 30 }));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("failed"), &json!("failed"))
    );
    let message = answer["rollout"]["message"].as_str().expect("has one");
    assert!(message.starts_with("BackoffLimitExceeded"), "{message}");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("exit code 3"), "{problems}");
    // Without a kubelet the log cannot be read; the failure is reported all the same.
    assert!(problems.contains("the log of pod"), "{problems}");
}

#[tokio::test]
async fn a_job_that_was_deleted_after_its_end_is_reported_as_it_ended() {
    let fields = json!({ "id": "r1" });
    for (image, is_complete) in [(GOOD_IMAGE, true), (FAILING_IMAGE, false)] {
        let namespace = shared().namespace("run_deleted").await;
        namespace.cron_job("nightly", image, false).await;
        let done = send(&namespace, "run_cronjob", fields.clone());
        assert_eq!(done.status, 0, "{done:?}");
        let job = jobs(&namespace).await.remove(0).name_any();
        let api = namespace.api::<Job>();
        eventually("the Job has ended", async || {
            let conditions = api.get(&job).await.expect("is there").status?.conditions?;
            conditions.iter().any(|it| it.type_ == "Complete" || it.type_ == "Failed").then_some(())
        })
        .await;
        api.delete(&job, &DeleteParams::background()).await.expect("is deleted");
        let waiting = json!({ "id": "r1", "wait": true, "timeout_seconds": 20 });
        let done = send(&namespace, "run_cronjob", waiting);
        let message = done.answer()["rollout"]["message"].to_string();
        let expected = match is_complete {
            true => "was complete, and has been deleted since",
            false => "BackoffLimitExceeded: ",
        };
        assert_eq!(done.status == 0, is_complete, "{done:?}");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_simulation_creates_no_job_and_names_it() {
    let namespace = shared().namespace("run_simulated").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let done = send(&namespace, "run_cronjob", json!({ "simulate": true, "id": "r1" }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    assert!(answer["target"]["resourceVersion"].is_string(), "{answer}");
    assert!(jobs(&namespace).await.is_empty());
    assert_eq!(send(&namespace, "run_cronjob", json!({ "id": "r1" })).status, 0);
    assert_eq!(answer["changes"][0]["to"], jobs(&namespace).await[0].name_any());
}

#[tokio::test]
async fn a_simulation_reports_what_admission_rejects() {
    let namespace = shared().namespace("run_quota").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let quota =
        json!({ "metadata": { "name": "none" }, "spec": { "hard": { "count/jobs.batch": "0" } } });
    namespace.create::<k8s_openapi::api::core::v1::ResourceQuota>(quota).await;
    for simulate in [true, false] {
        let done = eventually("the quota holds", async || {
            let done = send(&namespace, "run_cronjob", json!({ "simulate": simulate }));
            (done.status != 0).then_some(done)
        })
        .await;
        assert_eq!((done.status, &done.answer()["code"]), (69, &json!("rejected_by_cluster")));
        assert!(done.answer()["detail"].as_str().expect("has one").contains("quota"), "{done:?}");
    }
}

#[tokio::test]
async fn a_job_is_found_after_its_record_is_gone() {
    let namespace = shared().namespace("run_again").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    assert_eq!(send(&namespace, "run_cronjob", json!({ "id": "r1" })).status, 0);
    for record in records(&namespace).await {
        let events = namespace.api::<Event>();
        events.delete(&record.name_any(), &Default::default()).await.expect("is deleted");
    }
    let done = send(&namespace, "run_cronjob", json!({ "id": "r1" }));
    assert_eq!((done.status, &done.answer()["replayed"]), (0, &json!(true)), "{done:?}");
    assert_eq!(jobs(&namespace).await.len(), 1);
}

#[tokio::test]
async fn a_foreign_job_of_the_same_name_is_not_adopted() {
    let namespace = shared().namespace("run_taken").await;
    namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let foreseen =
        send(&namespace, "run_cronjob", json!({ "simulate": true, "id": "r1" })).answer();
    let name = foreseen["changes"][0]["to"].as_str().expect("is a name");
    kubectl(&namespace, &["create", "job", name, "--from=cronjob/nightly"]);
    let done = send(&namespace, "run_cronjob", json!({ "id": "r1" }));
    assert_eq!((done.status, &done.answer()["code"]), (69, &json!("rejected_by_cluster")));
    assert_eq!(jobs(&namespace).await.len(), 1);
}

#[tokio::test]
async fn run_and_suspend_warn_of_suspension_and_running_jobs() {
    let namespace = shared().namespace("run_warns").await;
    namespace.cron_job("nightly", SLOW_IMAGE, true).await;
    let forbid = Patch::Merge(json!({ "spec": { "concurrencyPolicy": "Forbid" } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch("nightly", &Default::default(), &forbid).await.expect("is patched");
    let done = send(&namespace, "run_cronjob", json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("suspended") && !warnings.contains("Forbid"), "{warnings}");
    let running = jobs(&namespace).await.remove(0);
    activate(&namespace, &running).await;
    let warnings =
        send(&namespace, "run_cronjob", json!({ "simulate": true })).answer()["warnings"]
            .to_string();
    assert!(warnings.contains("Forbid") && warnings.contains(&running.name_any()), "{warnings}");
    // The running Job is not affected when the CronJob is suspended.
    assert_eq!(send(&namespace, "resume_cronjob", json!({})).status, 0);
    let warnings = send(&namespace, "suspend_cronjob", json!({})).answer()["warnings"].to_string();
    assert!(
        warnings.contains("still running") && warnings.contains(&running.name_any()),
        "{warnings}"
    );
}

#[tokio::test]
async fn a_long_name_leaves_room_for_the_indexes_of_the_pods() {
    let namespace = shared().namespace("run_indexed").await;
    let name = "a".repeat(52);
    namespace.cron_job(&name, GOOD_IMAGE, false).await;
    let indexed = Patch::Merge(json!({ "spec": { "jobTemplate": { "spec": {
        "completionMode": "Indexed", "completions": 5, "parallelism": 5,
    }}}}));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch(&name, &Default::default(), &indexed).await.expect("is patched");
    for simulate in [true, false] {
        let parameters = json!({ "cronjob": name, "namespace": namespace.name() });
        let fields = json!({ "parameters": parameters, "simulate": simulate, "wait": !simulate });
        let done = send(&namespace, "run_cronjob", fields);
        assert_eq!(done.status, 0, "{done:?}");
    }
    let job = jobs(&namespace).await.remove(0);
    assert_eq!(job.status.and_then(|status| status.succeeded), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_that_failed_is_told_before_the_sidecar_that_was_killed_and_its_log_is_read()
{
    let namespace = shared().namespace("run_sidecar").await;
    namespace.cron_job("nightly", FAILING_IMAGE, false).await;
    // It stays as the test sets it.
    let slow = |name: &str| json!({ "name": name, "image": MISSING_IMAGE });
    let two = json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": {
        "containers": [slow("a-proxy"), slow("main")],
    }}}}}});
    let cron_jobs = namespace.api::<CronJob>();
    let found = cron_jobs.get("nightly").await.expect("is there");
    let security = &json!(found)["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        [0]["securityContext"];
    let mut two = two;
    for number in 0..2 {
        two["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][number]["securityContext"] =
            security.clone();
    }
    cron_jobs.patch("nightly", &Default::default(), &Patch::Merge(two)).await.expect("is patched");
    let (first, program) = (namespace.clone(), Program::with_kubeconfig(namespace.kubeconfig()));
    let request = json!({
        "type": "run_cronjob", "simulate": false, "wait": true, "timeout_seconds": 40,
        "parameters": { "cronjob": "nightly", "namespace": namespace.name() },
    });
    let running = spawn_blocking(move || program.input(request.to_string()).run());
    let pod = eventually("the pod is on a node", async || {
        let pods = first.api::<Pod>().list(&Default::default()).await.expect("are listed").items;
        let pod = pods.into_iter().next()?;
        let status = pod.status.clone()?;
        status.container_statuses.is_some_and(|it| it.len() == 2).then(|| pod.name_any())
    })
    .await;
    let ended = |name: &str, code: i32| {
        json!({
            "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": code, "finishedAt": "2026-01-31T12:00:00Z" } },
        })
    };
    let failed = Patch::Merge(json!({ "status": {
        "phase": "Failed", "containerStatuses": [ended("a-proxy", 137), ended("main", 3)],
    }}));
    let pods = namespace.api::<Pod>();
    pods.patch_status(&pod, &Default::default(), &failed).await.expect("is patched");
    let done = running.await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let problems = done.answer()["rollout"]["problems"].clone();
    let lines: Vec<&str> =
        problems.as_array().expect("are lines").iter().filter_map(Value::as_str).collect();
    assert!(lines[0].contains("container main") && lines[0].contains("exit code 3"), "{lines:?}");
    assert!(lines[1].contains("container a-proxy") && lines[1].contains("137"), "{lines:?}");
    // Without a kubelet the log cannot be read; the answer names its container.
    let of_main = format!("the log of pod {pod}, container main, could not be read");
    assert!(lines[2].contains(&of_main), "{lines:?}");
}

#[tokio::test]
async fn a_job_that_was_started_by_hand_and_runs_is_warned_of_under_forbid() {
    let namespace = shared().namespace("run_beside").await;
    namespace.cron_job("nightly", SLOW_IMAGE, false).await;
    let forbid = Patch::Merge(json!({ "spec": { "concurrencyPolicy": "Forbid" } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch("nightly", &Default::default(), &forbid).await.expect("is patched");
    kubectl(&namespace, &["create", "job", "by-hand", "--from=cronjob/nightly"]);
    let done = send(&namespace, "run_cronjob", json!({ "simulate": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("Forbid") && warnings.contains("by-hand"), "{warnings}");
}

#[tokio::test]
async fn a_precondition_applies_to_the_cron_job() {
    let namespace = shared().namespace("run_precondition").await;
    let cron_job = namespace.cron_job("nightly", GOOD_IMAGE, false).await;
    let wrong = json!({ "precondition": { "uid": "another" } });
    let done = send(&namespace, "run_cronjob", wrong);
    assert_eq!((done.status, &done.answer()["code"]), (69, &json!("precondition_failed")));
    assert!(jobs(&namespace).await.is_empty());
    let right = json!({ "precondition": { "uid": cron_job.uid() } });
    assert_eq!(send(&namespace, "run_cronjob", right).status, 0);
}

#[tokio::test]
async fn suspend_and_resume_match_kubectl_patch_and_apply_once() {
    let namespace = shared().namespace("suspends").await;
    for name in ["nightly", "theirs"] {
        namespace.cron_job(name, GOOD_IMAGE, false).await;
    }
    for (action, suspend) in [("suspend_cronjob", true), ("resume_cronjob", false)] {
        let done = send(&namespace, action, json!({ "simulate": true }));
        assert_eq!((done.status, &done.answer()["outcome"]), (0, &json!("simulated")));
        assert_eq!(is_suspended(&namespace, "nightly").await, Some(!suspend));
        let done = send(&namespace, action, json!({ "wait": true }));
        assert_eq!((done.status, &done.answer()["outcome"]), (0, &json!("applied")), "{done:?}");
        let change = &done.answer()["changes"][0];
        assert_eq!((&change["path"], &change["to"]), (&json!("/spec/suspend"), &json!(suspend)));
        let patch = json!({ "spec": { "suspend": suspend } }).to_string();
        kubectl(&namespace, &["patch", "cronjob", "theirs", "-p", &patch]);
        let spec = async |name: &str| {
            namespace.api::<CronJob>().get(name).await.expect("is there").spec.expect("has one")
        };
        let mut theirs = json!(spec("theirs").await);
        theirs["jobTemplate"] = json!(spec("nightly").await.job_template);
        assert_eq!(json!(spec("nightly").await), theirs);
        let again = send(&namespace, action, json!({}));
        assert_eq!((again.status, &again.answer()["outcome"]), (0, &json!("unchanged")));
    }
}

#[tokio::test]
async fn resume_cronjob_warns_that_a_missed_run_may_start_at_once() {
    let namespace = shared().namespace("missed").await;
    namespace.cron_job("nightly", GOOD_IMAGE, true).await;
    let forever = Patch::Merge(json!({ "spec": { "startingDeadlineSeconds": null } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch("nightly", &Default::default(), &forever).await.expect("is patched");
    let done = send(&namespace, "resume_cronjob", json!({}));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.answer()["warnings"].to_string().contains("starts at once"), "{done:?}");
}

#[tokio::test]
async fn a_missing_cron_job_is_reported() {
    let namespace = shared().namespace("no_cronjob").await;
    for action in ["run_cronjob", "suspend_cronjob", "resume_cronjob"] {
        let done = send(&namespace, action, json!({}));
        assert_eq!((done.status, &done.answer()["code"]), (69, &json!("target_not_found")));
        assert!(done.answer()["hint"].as_str().expect("has one").contains("get cronjobs"));
    }
}
