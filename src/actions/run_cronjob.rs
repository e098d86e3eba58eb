//! `run_cronjob`: starts one Job from a CronJob's template now, as `kubectl create job --from` does.

use k8s_openapi::{
    api::batch::v1::{CronJob, Job},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
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
            toggle::SUSPEND_CRONJOB,
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::{client::Cluster, preflight::not_checked},
        jobs,
        rbac::PolicyRule,
    },
};

/// The annotation that kubectl sets on a Job that was started manually.
const INSTANTIATE_ANNOTATION: (&str, &str) = ("cronjob.kubernetes.io/instantiate", "manual");

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "run_cronjob",
    aliases: &[],
    description: "Run a CronJob now: create one Job from its template, outside of its schedule, whatever \
                  its concurrencyPolicy, and even if it is suspended. With wait it is complete when the \
                  Job is; the answer of a failed Job has its pod's last log lines.",
    takes_time: true,
    when: "a scheduled run was missed or failed, and is needed now",
    when_not: "its previous Job still runs and two must not run at once",
    destructive: false,
    example: r#"{"cronjob":"nightly"}"#,
    rules: &[
        PolicyRule { api_groups: &["batch"], resources: &["cronjobs"], verbs: &["get"] },
        job::CREATION,
        // Only to report why a Job does not complete when the request waits.
        restart::PODS,
        restart::EVENTS,
        job::LOGS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `run_cronjob` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The CronJob to run.
    pub cronjob: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        SUSPEND_CRONJOB.target(&self.namespace, &self.cronjob)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let job = job::name(&self.cronjob, &input.id);
        job::preview(&job, &described(&job, &self.cronjob))
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, input.deadline);
            let resource = ApiResource::erase::<CronJob>(&());
            let (found, new) = tokio::try_join!(
                cluster.get_dynamic(&resource, namespace, &self.cronjob, deadline),
                NewJob::read(cluster, namespace, &self.cronjob, input),
            )?;
            let mut plan = decide(self.target(), &found, &new, input)?;
            if plan.is_change() && forbids_concurrency(&found) {
                plan.warnings.extend(beside_warning(cluster, &plan.target, input).await);
            }
            Ok(plan)
        })
    }
}

fn forbids_concurrency(cron_job: &DynamicObject) -> bool {
    cron_job.data["spec"]["concurrencyPolicy"] == "Forbid"
}

/// The warning about the CronJob's Jobs that run. Its status lists only those that its controller has started.
async fn beside_warning(cluster: &Cluster, target: &Target, input: &PlanInput) -> Option<String> {
    let uid = target.uid.as_deref().unwrap_or_default();
    match cluster.list::<Job>(&target.namespace, "", input.deadline).await {
        Ok(all) => jobs_beside(&jobs::running_of(&all, uid)),
        Err(error) => Some(not_checked(&error)),
    }
}

fn jobs_beside(running: &[&str]) -> Option<String> {
    (!running.is_empty()).then(|| {
        format!(
            "the concurrencyPolicy is Forbid, but this Job runs beside those that are running: Job {}",
            running.join(", ")
        )
    })
}

/// From the CronJob and what is known of the new Job to the plan.
fn decide(
    target: Target,
    object: &DynamicObject,
    new: &NewJob,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let cron_job: CronJob = job::parse(&target, object)?;
    let what = described(&new.name, &target.name);
    let manifest = || Ok(manifest(&cron_job, &object.data["spec"]["jobTemplate"]));
    let mut plan = new.plan(target, &cron_job.metadata, &what, manifest, input)?;
    if plan.is_change() {
        plan.warnings = warnings(&cron_job);
    }
    Ok(plan)
}

/// The Job as `kubectl create job --from` creates it (`pkg/cmd/create/create_job.go`), with the template
/// exactly as it was read.
fn manifest(cron_job: &CronJob, template: &Value) -> Value {
    let (key, value) = INSTANTIATE_ANNOTATION;
    let mut annotations = Map::from_iter([(key.to_owned(), value.into())]);
    annotations
        .extend(template["metadata"]["annotations"].as_object().cloned().unwrap_or_default());
    let owner = OwnerReference {
        api_version: "batch/v1".to_owned(),
        kind: "CronJob".to_owned(),
        name: cron_job.metadata.name.clone().unwrap_or_default(),
        uid: cron_job.metadata.uid.clone().unwrap_or_default(),
        // A CronJob deletes the finished Jobs that it controls, at once if its history limit is 0.
        controller: keeps_finished_jobs(cron_job).then_some(true),
        block_owner_deletion: None,
    };
    json!({
        "metadata": {
            "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    })
}

fn keeps_finished_jobs(cron_job: &CronJob) -> bool {
    cron_job.spec.as_ref().is_none_or(|spec| {
        let limits = [spec.successful_jobs_history_limit, spec.failed_jobs_history_limit];
        !limits.contains(&Some(0))
    })
}

fn described(job: &str, cron_job: &str) -> String {
    format!("Job '{job}' of CronJob '{cron_job}'")
}

/// What the CronJob's own settings would forbid; kubectl does not check it either.
fn warnings(cron_job: &CronJob) -> Vec<String> {
    let mut warnings = Vec::new();
    if jobs::is_suspended(cron_job) {
        warnings.push("the CronJob is suspended; this Job runs anyway".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::Decision, contract::error::Code, k8s::effect::Mutation};

    fn cron_job(spec: &str, template: &str, job: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: nightly, namespace: shop, uid: u1, resourceVersion: '7'}}\n\
             spec: {{schedule: '0 3 * * *'{spec}, jobTemplate: {{metadata: {{{template}}}, \
             spec: {{backoffLimit: 2, template: {{}}{job}}}}}}}\n\
             status: {{active: [{{name: nightly-1}}]}}"
        ))
        .expect("is a CronJob")
    }

    fn decide_on(cron_job: &DynamicObject, job: Option<&Job>) -> Result<Plan, ActionError> {
        let (target, new) =
            (SUSPEND_CRONJOB.target("shop", "nightly"), NewJob::example("nightly", job));
        decide(target, cron_job, &new, &PlanInput::example())
    }

    fn created(cron_job: &DynamicObject) -> Value {
        let plan = decide_on(cron_job, None).expect("is planned");
        let effect = plan.expect_change().0;
        let Mutation::Create { object, .. } = &effect.mutation else { panic!("is no creation") };
        object.clone()
    }

    #[test]
    fn a_run_is_one_job_from_the_template_as_kubectl_creates_it() {
        let template = "labels: {team: a}, annotations: {note: b}";
        let job = created(&cron_job("", template, ""));
        let name = job::name("nightly", "r1");
        assert_eq!(
            job["metadata"],
            json!({
                "name": name, "namespace": "shop", "labels": { "team": "a" },
                "annotations": {
                    "note": "b", "cronjob.kubernetes.io/instantiate": "manual",
                    "action-executor.dev/request-id": "r1",
                    "action-executor.dev/requests": "1:r1@d1",
                },
                "ownerReferences": [{
                    "apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "u1",
                    "controller": true,
                }],
            })
        );
        assert_eq!(job["spec"]["backoffLimit"], 2);
    }

    #[test]
    fn unknown_fields_of_the_template_are_kept_in_the_job() {
        let job = created(&cron_job("", "", ", ofALaterVersion: {a: 1}"));
        assert_eq!(job["spec"]["ofALaterVersion"]["a"], 1);
    }

    #[test]
    fn the_result_names_the_job() {
        let plan = decide_on(&cron_job("", "", ""), None).expect("is planned");
        let name = job::name("nightly", "r1");
        let did = plan.expect_change().1;
        assert_eq!(
            did,
            format!("Job '{name}' of CronJob 'nightly' created at 2026-01-31T12:00:00.987Z.")
        );
        assert_eq!(plan.changes[0].to, Value::from(name));
        assert_eq!(plan.target.kind, "CronJob");
    }

    #[test]
    fn a_finished_job_has_a_minimal_lifetime() {
        let ttl =
            |job: &str| created(&cron_job("", "", job))["spec"]["ttlSecondsAfterFinished"].clone();
        assert_eq!(ttl(", ttlSecondsAfterFinished: 5"), 600);
        assert_eq!(ttl(", ttlSecondsAfterFinished: 9000"), 9000);
        assert_eq!(ttl(""), Value::Null);
    }

    #[test]
    fn a_cron_job_that_keeps_no_finished_jobs_does_not_control_the_job() {
        for limit in ["successfulJobsHistoryLimit: 0", "failedJobsHistoryLimit: 0"] {
            let job = created(&cron_job(&format!(", {limit}"), "", ""));
            let owner = &job["metadata"]["ownerReferences"][0];
            assert_eq!((&owner["uid"], &owner["controller"]), (&json!("u1"), &Value::Null));
        }
    }

    #[test]
    fn a_request_is_not_applied_twice_and_another_requests_job_is_refused() {
        let job = |mark: &str| -> Job {
            let text =
                format!("metadata: {{annotations: {{action-executor.dev/requests: '1:{mark}'}}}}");
            serde_yaml_ng::from_str(&text).expect("is a Job")
        };
        let plan = decide_on(&cron_job("", "", ""), Some(&job("r1@d1"))).expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
        let error = decide_on(&cron_job("", "", ""), Some(&job("r2@d2"))).expect_err("is refused");
        assert_eq!(error.code, Code::RejectedByCluster);
        let error = decide_on(&cron_job("", "", ""), Some(&job("r1@d2"))).expect_err("is refused");
        assert_eq!(error.code, Code::IdReused);
    }

    #[test]
    fn settings_that_would_forbid_the_run_are_warned_of() {
        let warnings = |spec: &str| {
            decide_on(&cron_job(spec, "", ""), None).expect("is planned").warnings.join("; ")
        };
        assert!(warnings(", suspend: true").contains("suspended"));
        assert!(warnings(", concurrencyPolicy: Allow").is_empty());
        assert!(forbids_concurrency(&cron_job(", concurrencyPolicy: Forbid", "", "")));
        assert!(!forbids_concurrency(&cron_job("", "", "")));
        let beside = jobs_beside(&["nightly-1"]).expect("is a warning");
        assert!(beside.contains("Forbid") && beside.contains("nightly-1"), "{beside}");
    }

    #[test]
    fn no_value_of_the_template_is_stored_or_shown() {
        let with_secret =
            ", template: {spec: {containers: [{name: a, env: [{name: K, value: hunter2}]}]}}";
        let text = format!(
            "metadata: {{name: nightly, uid: u1}}\nspec: {{schedule: x, jobTemplate: {{spec: \
             {{backoffLimit: 1{with_secret}}}}}}}"
        );
        let cron_job: DynamicObject = serde_yaml_ng::from_str(&text).expect("is a CronJob");
        assert!(created(&cron_job).to_string().contains("hunter2"));
        let plan = decide_on(&cron_job, None).expect("is planned");
        let (effect, did, would) = plan.expect_change();
        let shown = json!([effect, did, would, plan.changes]).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
