//! `run_cronjob`: starts one Job from a CronJob's template now, as `kubectl create job --from` does.

use k8s_openapi::{
    api::batch::v1::{CronJob, Job},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::actions::PlanInput;
use crate::actions::CompletionSpec;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::Decision;
use crate::actions::shared::restart;
use crate::actions::shared::suspension;
use crate::contract::error::ActionError;
use crate::contract::error::Code;
use crate::k8s::REQUEST_ID_ANNOTATION;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::api::mutation::Effect;
use crate::k8s::api::mutation::Applied;
use crate::contract::digest::sha256;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Change;
use crate::contract::response::Target;
use crate::contract::response::rfc3339_millis;

/// What kubectl, too, writes on a Job that a person has started.
const INSTANTIATE_ANNOTATION: (&str, &str) = ("cronjob.kubernetes.io/instantiate", "manual");

/// The longest name of which Job and pods can be labelled.
const MAX_NAME_CHARACTERS: usize = 63;

/// How much of a digest tells the Jobs of two requests apart.
const DIGEST_CHARACTERS: usize = 10;

/// How long a finished Job stays at least, in seconds: whoever repeats the request after a crash has to
/// find it, or would start it a second time.
const MIN_TTL_SECONDS: i64 = 600;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "run_cronjob",
    aliases: &[],
    description: "Run a CronJob now: start one Job from its template, outside of its schedule, whatever \
                  its concurrencyPolicy, and even if it is suspended. Waited for, it is complete when the \
                  Job is, and a failed one is told with its pod's last log lines.",
    example: r#"{"cronjob":"nightly"}"#,
    rules: &[
        PolicyRule { api_groups: &["batch"], resources: &["cronjobs"], verbs: &["get"] },
        PolicyRule { api_groups: &["batch"], resources: &["jobs"], verbs: &["get", "create"] },
        // Only to say why a Job that is waited for does not complete.
        restart::PODS,
        PolicyRule { api_groups: &[""], resources: &["pods/log"], verbs: &["get"] },
    ],
    cluster_rules: &[],
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
        suspension::target(&self.namespace, &self.cronjob)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        let job = job_name(&self.cronjob, &asked.id);
        Preview { result: would(&job, &self.cronjob), changes: vec![appears(&job)] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, deadline) = (&self.namespace, asked.deadline);
            let resource = ApiResource::erase::<CronJob>(&());
            let found = cluster.get_dynamic(&resource, namespace, &self.cronjob, deadline).await?;
            let job = job_name(&self.cronjob, &asked.id);
            let job = match cluster.get::<Job>(namespace, &job, deadline).await {
                Ok(job) => Some(job),
                Err(error) if error.code == Code::TargetNotFound => None,
                Err(error) => return Err(error),
            };
            decide(self.target(), &found, job.as_ref(), asked)
        })
    }
}

/// From the CronJob as it was read, and what stands under the name of the Job that is to be made, to
/// what is to be done.
fn decide(
    target: Target,
    whole: &DynamicObject,
    job: Option<&Job>,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let cron_job: CronJob = whole.clone().try_parse().map_err(|error| {
        ActionError::new(Code::Internal, format!("{target} cannot be read: {error}"))
    })?;
    let (found, cron_job_name) = (&cron_job.metadata, target.name.clone());
    let name = job_name(&cron_job_name, &asked.id);
    let completion = CompletionSpec::Known(Completion::Finished {
        namespace: target.namespace.clone(),
        name: name.clone(),
    });
    let at = rfc3339_millis(asked.at);
    let did = format!("Job '{name}' of CronJob '{cron_job_name}' created at {at}.");
    match job {
        Some(job) if is_of_request(job, &asked.id) => {
            // The CronJob is as it was; nothing of it changed with the Job.
            let todo = Decision::AlreadyApplied(Applied::default(), did);
            return Ok(Plan::new(target, found, todo, completion));
        }
        Some(_) => return Err(name_is_taken(&target, &name)),
        None => {}
    }
    asked.check_found(&target, found)?;
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(target.namespace.clone()),
        ..ObjectMeta::default()
    };
    let resource = ApiResource::erase::<Job>(&());
    let manifest = manifest(&cron_job, &whole.data["spec"]["jobTemplate"], &metadata);
    let effect = Effect::creation(resource, &metadata, &asked.id, manifest);
    let todo = Decision::Apply(Box::new(effect), did, would(&name, &cron_job_name));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = vec![appears(&name)];
    plan.warnings = warnings(&cron_job);
    Ok(plan)
}

/// The name of the Job that a request makes, the same whenever it is asked: the CronJob's, and enough of
/// a digest of the request's id. It is a DNS label, as the names of pods that come from it should be.
fn job_name(cron_job: &str, request_id: &str) -> String {
    let label = cron_job.replace('.', "-");
    let stem: String = label.chars().take(MAX_NAME_CHARACTERS - 1 - DIGEST_CHARACTERS).collect();
    let digest = &sha256(request_id.as_bytes())[..DIGEST_CHARACTERS];
    format!("{}-{digest}", stem.trim_end_matches('-'))
}

/// The Job as `kubectl create job --from` makes it (`pkg/cmd/create/create_job.go`), but that it stays
/// long enough to be found again. The template is taken as it was read, whatever is in it.
fn manifest(cron_job: &CronJob, template: &Value, metadata: &ObjectMeta) -> Value {
    let (key, value) = INSTANTIATE_ANNOTATION;
    let mut annotations = Map::from_iter([(key.to_owned(), value.into())]);
    annotations.extend(template["metadata"]["annotations"].as_object().cloned().unwrap_or_default());
    let owner = OwnerReference {
        api_version: "batch/v1".to_owned(),
        kind: "CronJob".to_owned(),
        name: cron_job.metadata.name.clone().unwrap_or_default(),
        uid: cron_job.metadata.uid.clone().unwrap_or_default(),
        // What it controls it also cleans away, and where it keeps none, as soon as it is finished.
        controller: keeps_finished_jobs(cron_job).then_some(true),
        block_owner_deletion: None,
    };
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": metadata.name, "namespace": metadata.namespace,
            "labels": template["metadata"]["labels"], "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    });
    let stays = &mut job["spec"]["ttlSecondsAfterFinished"];
    if let Some(seconds) = stays.as_i64() {
        *stays = seconds.max(MIN_TTL_SECONDS).into();
    }
    job
}

fn keeps_finished_jobs(cron_job: &CronJob) -> bool {
    cron_job.spec.as_ref().is_none_or(|spec| {
        let limits = [spec.successful_jobs_history_limit, spec.failed_jobs_history_limit];
        !limits.contains(&Some(0))
    })
}

fn is_of_request(job: &Job, id: &str) -> bool {
    let annotations = job.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REQUEST_ID_ANNOTATION)).is_some_and(|it| it == id)
}

fn name_is_taken(target: &Target, job: &str) -> ActionError {
    ActionError::new(
        Code::RejectedByCluster,
        format!("there is a Job '{job}' that this request did not make, so {target} was not run"),
    )
    .with_hint("send the request with another id")
}

/// The new Job, as a change: there was none, and there is this one.
fn appears(job: &str) -> Change {
    Change { path: "/metadata/name".to_owned(), from: Value::Null, to: job.into() }
}

fn would(job: &str, cron_job: &str) -> String {
    format!("Simulated: Job '{job}' of CronJob '{cron_job}' would be created.")
}

/// What the CronJob's own settings would have forbidden; kubectl does not look at them either.
fn warnings(cron_job: &CronJob) -> Vec<String> {
    let mut warnings = Vec::new();
    let policy = cron_job.spec.as_ref().and_then(|spec| spec.concurrency_policy.as_deref());
    let running = suspension::active_jobs(cron_job);
    if policy == Some("Forbid") && !running.is_empty() {
        warnings.push(format!(
            "the concurrencyPolicy is Forbid, and this runs beside what runs already: Job {}",
            running.join(", ")
        ));
    }
    if suspension::is_suspended(cron_job) {
        warnings.push("the CronJob is suspended: this one Job runs all the same".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::mutation::Mutation;

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
        decide(suspension::target("shop", "nightly"), cron_job, job, &PlanInput::example())
    }

    /// The Job that would be made.
    fn made(cron_job: &DynamicObject) -> Value {
        let plan = decide_on(cron_job, None).expect("is planned");
        let Decision::Apply(effect, ..) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Create { object, .. } = effect.mutation else { panic!("is no creation") };
        object
    }

    #[test]
    fn plans_one_job_from_the_template_as_kubectl_makes_it() {
        let template = "labels: {team: a}, annotations: {note: b}";
        let job = made(&cron_job("", template, ""));
        let name = job_name("nightly", "r1");
        assert_eq!(
            job["metadata"],
            json!({
                "name": name, "namespace": "shop", "labels": { "team": "a" },
                "annotations": {
                    "note": "b", "cronjob.kubernetes.io/instantiate": "manual",
                    "action-executor.dev/request-id": "r1",
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
    fn what_a_newer_api_knows_goes_into_the_job_too() {
        let job = made(&cron_job("", "", ", ofALaterVersion: {a: 1}"));
        assert_eq!(job["spec"]["ofALaterVersion"]["a"], 1);
    }

    #[test]
    fn the_answer_names_the_job() {
        let plan = decide_on(&cron_job("", "", ""), None).expect("is planned");
        let name = job_name("nightly", "r1");
        let Decision::Apply(_, did, _) = plan.decision else { panic!("{:?}", plan.decision) };
        assert_eq!(
            did,
            format!("Job '{name}' of CronJob 'nightly' created at 2026-01-31T12:00:00.987Z.")
        );
        assert_eq!(plan.changes[0].to, Value::from(name));
        assert_eq!(plan.target.kind, "CronJob");
    }

    #[test]
    fn a_name_is_a_label_and_the_same_request_has_the_same_one() {
        for cron_job in ["nightly", "nightly.report", &"a".repeat(52), &format!("{}-b", "a".repeat(51))]
        {
            let name = job_name(cron_job, "alert-7");
            assert!(Namespace::try_from(name.clone()).is_ok(), "{name}");
            assert_eq!(name, job_name(cron_job, "alert-7"));
            assert_ne!(name, job_name(cron_job, "alert-8"));
        }
    }

    #[test]
    fn a_finished_job_stays_long_enough_to_be_found_again() {
        let ttl = |job: &str| {
            made(&cron_job("", "", job))["spec"]["ttlSecondsAfterFinished"].clone()
        };
        assert_eq!(ttl(", ttlSecondsAfterFinished: 5"), 600);
        assert_eq!(ttl(", ttlSecondsAfterFinished: 9000"), 9000);
        assert_eq!(ttl(""), Value::Null);
    }

    #[test]
    fn a_cron_job_that_keeps_no_finished_jobs_does_not_control_this_one() {
        for limit in ["successfulJobsHistoryLimit: 0", "failedJobsHistoryLimit: 0"] {
            let job = made(&cron_job(&format!(", {limit}"), "", ""));
            let owner = &job["metadata"]["ownerReferences"][0];
            assert_eq!((&owner["uid"], &owner["controller"]), (&json!("u1"), &Value::Null));
        }
    }

    #[test]
    fn does_not_repeat_what_the_same_request_did_and_takes_no_others_job_for_its_own() {
        let job = |id: &str| -> Job {
            let text = format!("metadata: {{annotations: {{action-executor.dev/request-id: {id}}}}}");
            serde_yaml_ng::from_str(&text).expect("is a Job")
        };
        let plan = decide_on(&cron_job("", "", ""), Some(&job("r1"))).expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
        let error = decide_on(&cron_job("", "", ""), Some(&job("r2"))).expect_err("is refused");
        assert_eq!(error.code, Code::RejectedByCluster);
    }

    #[test]
    fn warns_of_what_the_cron_job_itself_would_not_do() {
        let warnings = |spec: &str| {
            decide_on(&cron_job(spec, "", ""), None).expect("is planned").warnings.join("; ")
        };
        assert!(warnings(", concurrencyPolicy: Forbid").contains("nightly-1"));
        assert!(warnings(", suspend: true").contains("suspended"));
        assert!(warnings(", concurrencyPolicy: Allow").is_empty());
    }

    #[test]
    fn no_value_of_the_template_is_written_down_or_shown() {
        let with_secret = ", template: {spec: {containers: [{name: a, env: [{name: K, value: hunter2}]}]}}";
        let text = format!(
            "metadata: {{name: nightly, uid: u1}}\nspec: {{schedule: x, jobTemplate: {{spec: \
             {{backoffLimit: 1{with_secret}}}}}}}"
        );
        let cron_job: DynamicObject = serde_yaml_ng::from_str(&text).expect("is a CronJob");
        assert!(made(&cron_job).to_string().contains("hunter2"));
        let plan = decide_on(&cron_job, None).expect("is planned");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        let shown = json!([effect, did, would, plan.changes]).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
