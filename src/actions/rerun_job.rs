//! `rerun_job`: creates a new Job from the template of one that has finished.
//!
//! The template is the one that the API server shows, without what it and the Job controller generated, so the new Job
//! gets a selector of its own. It has no owner: a CronJob that controls it would count it in its history and delete an
//! older one for it, or this one (`cleanupFinishedJobs` in `pkg/controller/cronjob`), and report it as unexpected.

use k8s_openapi::api::batch::v1::Job;
use kube::api::{ApiResource, DynamicObject};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    actions::{
        BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            job::{self, NewJob},
            restart,
        },
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        OWN_PREFIX, api::client::Cluster, gitops, jobs, pods, replacement::describe,
        revisions::LAST_APPLIED_ANNOTATION, rollout::RolloutStatus,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "rerun_job",
    aliases: &[],
    description: "Run a finished Job again: create a new Job from its template, which belongs to no CronJob. \
                  Refused for a Job that is not complete and has not failed. With wait it is complete when \
                  the new Job is; the answer of a failed Job has its pod's last log lines.",
    takes_time: true,
    when: "a Job failed, and the cause is gone",
    when_not: "the present template of its CronJob is to run: use run_cronjob; its work must not be done twice",
    destructive: false,
    example: r#"{"name":"migrate"}"#,
    rules: &[
        job::CREATION,
        // Only to report why a Job does not complete when the request waits.
        restart::PODS,
        restart::EVENTS,
        job::LOGS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `rerun_job` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Job to run again.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("batch/v1", "Job", &self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let job = job::name(&self.name, &input.id);
        job::preview(&job, &described(&job, &self.name))
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let resource = ApiResource::erase::<Job>(&());
            let (found, new) = tokio::try_join!(
                cluster.get_dynamic(&resource, &self.namespace, &self.name, input.deadline),
                NewJob::read(cluster, &self.namespace, &self.name, input),
            )?;
            decide(self.target(), &found, &new, input)
        })
    }
}

/// From the Job, with fields that this program does not know, and what is known of the new one to the plan.
fn decide(
    target: Target,
    object: &DynamicObject,
    new: &NewJob,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let job: Job = job::parse(&target, object)?;
    let what = described(&new.name, &target.name);
    let manifest = || {
        let refusal = check_finished(&target, &job).and_then(|()| check_selector(&target, &job));
        refusal.map_err(|refusal| refusal.object_uid(job.metadata.uid.as_deref()))?;
        Ok(manifest(object))
    };
    let mut plan = new.plan(target.clone(), &job.metadata, &what, manifest, input)?;
    if plan.is_change() {
        plan.warnings = warnings(&job);
    }
    Ok(plan)
}

fn check_finished(target: &Target, job: &Job) -> Result<(), ActionError> {
    if jobs::has_finished(job) {
        return Ok(());
    }
    let detail = format!("{target} has not finished: {}", jobs::pods_phrase(job));
    Err(ActionError::new(Code::PreconditionFailed, detail)
        .with_hint("wait until it is complete or has failed, or delete it first with delete_job"))
}

/// Refuses a Job with a selector of its own: that of the new one would be the same, and each of the two would take the
/// pods of the other for its own.
fn check_selector(target: &Target, job: &Job) -> Result<(), ActionError> {
    if job.spec.as_ref().and_then(|spec| spec.manual_selector) != Some(true) {
        return Ok(());
    }
    let detail = format!(
        "{target} has a selector of its own (spec.manualSelector), which would select the pods of both Jobs"
    );
    Err(ActionError::new(Code::PreconditionFailed, detail)
        .with_hint("create the new Job from its manifest, with another selector and other labels"))
}

/// The new Job's labels, annotations and spec, as the old one has them, without what was generated for the old one.
fn manifest(job: &DynamicObject) -> Value {
    let is_generated = |key: &str| jobs::GENERATED_LABELS.contains(&key);
    let is_of_the_old = |key: &str| {
        key == LAST_APPLIED_ANNOTATION
            || key.starts_with(OWN_PREFIX)
            || jobs::START_ANNOTATIONS.contains(&key)
            || gitops::is_tracking_mark(key)
    };
    let metadata = json!(job.metadata);
    let labels =
        without(&metadata["labels"], |key| is_generated(key) || gitops::is_tracking_mark(key));
    let mut spec = job.data["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        // A Job that is made suspended would wait for someone who resumes it.
        spec.retain(|key, _| !["selector", "manualSelector", "suspend"].contains(&key.as_str()));
    }
    let labels_of_pods = &mut spec["template"]["metadata"]["labels"];
    *labels_of_pods = without(labels_of_pods, is_generated).into();
    json!({
        "metadata": { "labels": labels, "annotations": without(&metadata["annotations"], is_of_the_old) },
        "spec": spec,
    })
}

/// The entries whose key is not one of these.
fn without(entries: &Value, is_one: impl Fn(&str) -> bool) -> Map<String, Value> {
    let mut entries = entries.as_object().cloned().unwrap_or_default();
    entries.retain(|key, _| !is_one(key));
    entries
}

fn described(new: &str, job: &str) -> String {
    format!("Job '{new}', a rerun of Job '{job}',")
}

fn warnings(job: &Job) -> Vec<String> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let mut warnings = vec![match jobs::status(job) {
        RolloutStatus::Failed(why) => {
            format!("Job '{name}' failed, and the new one may fail for the same cause: {why}")
        }
        _ => format!("Job '{name}' is complete: the new one does its work a second time"),
    }];
    if job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true) {
        warnings.push(format!("Job '{name}' is suspended now; the new one runs at once"));
    }
    let owner = pods::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob");
    warnings.extend(owner.map(|owner| {
        format!(
            "the new Job does not belong to {}: its concurrencyPolicy and history limits do not apply, and its \
             template may have changed since (run_cronjob runs the present one)",
            describe(owner)
        )
    }));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::Decision, k8s::effect::Mutation};

    const COMPLETE: &str = "succeeded: 1, conditions: [{type: Complete, status: 'True'}]";
    const FAILED: &str = "failed: 1, conditions: [{type: Failed, status: 'True', reason: BackoffLimitExceeded, \
                          message: m}]";

    fn job(metadata: &str, spec: &str, status: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: migrate, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{backoffLimit: 2, selector: {{matchLabels: {{batch.kubernetes.io/controller-uid: u1}}}}, \
             manualSelector: false, suspend: false, template: {{metadata: {{labels: {{app: web, \
             controller-uid: u1, job-name: migrate, batch.kubernetes.io/controller-uid: u1, \
             batch.kubernetes.io/job-name: migrate}}}}}}{spec}}}\n\
             status: {{{status}}}"
        ))
        .expect("is a Job")
    }

    fn decide_on(job: &DynamicObject, existing: Option<&Job>) -> Result<Plan, ActionError> {
        let target = Target::named("batch/v1", "Job", "shop", "migrate");
        decide(target, job, &NewJob::example("migrate", existing), &PlanInput::example())
    }

    fn created(job: &DynamicObject) -> Value {
        let plan = decide_on(job, None).expect("is planned");
        let effect = plan.expect_change().0;
        let Mutation::Create { object, .. } = &effect.mutation else { panic!("is no creation") };
        object.clone()
    }

    #[test]
    fn a_rerun_is_one_job_without_what_was_generated_for_the_first() {
        let metadata = ", labels: {team: a, job-name: migrate, batch.kubernetes.io/job-name: migrate, \
                        controller-uid: u1, batch.kubernetes.io/controller-uid: u1, \
                        argocd.argoproj.io/instance: shop}, \
                        annotations: {note: b, kubectl.kubernetes.io/last-applied-configuration: x, \
                        action-executor.dev/requests: '1:r0@d0', action-executor.dev/request-id: r0, \
                        batch.kubernetes.io/cronjob-scheduled-timestamp: t, \
                        cronjob.kubernetes.io/instantiate: manual, meta.helm.sh/release-name: web}, \
                        ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: c, uid: c, controller: true}]";
        let new = created(&job(metadata, "", COMPLETE));
        assert_eq!(
            new["metadata"],
            json!({
                "name": job::name("migrate", "r1"), "namespace": "shop", "labels": { "team": "a" },
                "annotations": {
                    "note": "b", "action-executor.dev/request-id": "r1",
                    "action-executor.dev/requests": "1:r1@d1",
                },
            })
        );
        let spec = json!({
            "backoffLimit": 2, "ttlSecondsAfterFinished": null,
            "template": { "metadata": { "labels": { "app": "web" } } },
        });
        assert_eq!(new["spec"], spec);
        assert_eq!(new["status"], Value::Null);
    }

    #[test]
    fn all_other_fields_are_kept_also_unknown_ones() {
        let spec = ", completionMode: Indexed, completions: 3, parallelism: 3, backoffLimitPerIndex: 1, \
                    podFailurePolicy: {rules: []}, ofALaterVersion: {a: 1}, ttlSecondsAfterFinished: 5";
        let new = created(&job("", spec, FAILED));
        for (field, value) in [
            ("completionMode", json!("Indexed")),
            ("completions", json!(3)),
            ("parallelism", json!(3)),
            ("backoffLimitPerIndex", json!(1)),
            ("podFailurePolicy", json!({ "rules": [] })),
            ("ofALaterVersion", json!({ "a": 1 })),
            // A resent request must find the new Job.
            ("ttlSecondsAfterFinished", json!(600)),
        ] {
            assert_eq!(new["spec"][field], value, "{field}");
        }
    }

    #[test]
    fn the_result_names_the_job() {
        let plan = decide_on(&job("", "", COMPLETE), None).expect("is planned");
        let name = job::name("migrate", "r1");
        let (_, did, would) = plan.expect_change();
        assert_eq!(
            did,
            format!("Job '{name}', a rerun of Job 'migrate', created at 2026-01-31T12:00:00.987Z.")
        );
        assert_eq!(
            would,
            format!("Simulated: Job '{name}', a rerun of Job 'migrate', would be created.")
        );
        assert_eq!(plan.changes[0].to, Value::from(name));
    }

    #[test]
    fn a_job_that_has_not_finished_or_has_a_selector_of_its_own_is_refused() {
        for (spec, status, says) in [
            ("", "active: 1", "has not finished: 1 pods run"),
            ("", "conditions: [{type: Suspended, status: 'True'}]", "has not finished"),
            ("", "conditions: [{type: FailureTarget, status: 'True'}]", "has not finished"),
            ("manual", COMPLETE, "spec.manualSelector"),
        ] {
            let mut job = job("", "", status);
            job.data["spec"]["manualSelector"] = (spec == "manual").into();
            let error = decide_on(&job, None).expect_err("is refused");
            assert_eq!(error.code, Code::PreconditionFailed);
            assert!(error.detail.contains(says), "{}", error.detail);
            assert!(error.hint.is_some());
            assert_eq!(error.refused_uid(), Some("u1"));
        }
    }

    #[test]
    fn a_job_that_is_being_deleted_is_refused() {
        let leaving = job(", deletionTimestamp: '2026-01-31T12:00:00Z'", "", COMPLETE);
        assert_eq!(decide_on(&leaving, None).expect_err("is refused").code, Code::TargetNotFound);
    }

    #[test]
    fn a_request_is_not_applied_twice_and_another_requests_job_is_refused() {
        let made = |mark: &str| -> Job {
            let text =
                format!("metadata: {{annotations: {{action-executor.dev/requests: '1:{mark}'}}}}");
            serde_yaml_ng::from_str(&text).expect("is a Job")
        };
        // Whatever became of the first Job since.
        for status in [COMPLETE, "active: 1"] {
            let plan = decide_on(&job("", "", status), Some(&made("r1@d1"))).expect("is planned");
            assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        }
        for (mark, code) in [("r2@d2", Code::RejectedByCluster), ("r1@d2", Code::IdReused)] {
            let error = decide_on(&job("", "", COMPLETE), Some(&made(mark)));
            assert_eq!(error.expect_err("is refused").code, code);
        }
    }

    #[test]
    fn the_end_of_the_first_job_is_warned_of() {
        let owned = ", ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: nightly, uid: c, controller: true}]";
        for (metadata, status, says) in [
            ("", COMPLETE, "does its work a second time"),
            ("", FAILED, "may fail for the same cause: BackoffLimitExceeded: m"),
            (owned, COMPLETE, "does not belong to CronJob 'nightly'"),
        ] {
            let plan = decide_on(&job(metadata, "", status), None).expect("is planned");
            assert!(plan.warnings.join("; ").contains(says), "{:?}", plan.warnings);
        }
        let mut suspended = job("", "", COMPLETE);
        suspended.data["spec"]["suspend"] = true.into();
        let plan = decide_on(&suspended, None).expect("is planned");
        assert!(plan.warnings[1].contains("runs at once"), "{:?}", plan.warnings);
        assert_eq!(created(&suspended)["spec"]["suspend"], Value::Null);
    }

    #[test]
    fn no_value_of_the_template_is_stored_or_shown() {
        let mut job = job("", "", COMPLETE);
        let env = json!([{ "name": "K", "value": "hunter2" }]);
        job.data["spec"]["template"]["spec"] =
            json!({ "containers": [{ "name": "a", "env": env }] });
        assert!(created(&job).to_string().contains("hunter2"));
        let plan = decide_on(&job, None).expect("is planned");
        let (effect, did, would) = plan.expect_change();
        let shown = json!([effect, did, would, plan.changes]).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
