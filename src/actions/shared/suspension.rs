//! What suspending and resuming a CronJob have in common: one patch of `spec.suspend`, which `kubectl
//! patch` would make too.

use k8s_openapi::api::batch::v1::CronJob;
use kube::api::ApiResource;
use serde_json::json;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        error::ActionError,
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{completion::Completion, mutation::Effect},
        applied_requests::AppliedRequests,
    },
};

/// Where it is said that a CronJob is suspended (RFC 6901).
const SUSPEND_POINTER: &str = "/spec/suspend";

/// A CronJob as a request names it.
pub(crate) fn target(namespace: &str, name: &str) -> Target {
    Target::named("batch/v1", "CronJob", namespace, name)
}

/// What can be said without a cluster.
pub(crate) fn preview(name: &str, suspend: bool, asked: &PlanInput) -> Preview {
    let changes = vec![change(None, suspend), AppliedRequests::default().change(&asked.id)];
    Preview { result: would(name, suspend), changes }
}

/// Whether it makes no Jobs now.
pub(crate) fn is_suspended(cron_job: &CronJob) -> bool {
    cron_job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// The names of its Jobs that run, as it knows them.
pub(crate) fn active_jobs(cron_job: &CronJob) -> Vec<&str> {
    let active = cron_job.status.as_ref().and_then(|status| status.active.as_ref());
    active.into_iter().flatten().filter_map(|job| job.name.as_deref()).collect()
}

/// From the CronJob as it was read to what is to be done, so that it is suspended or not. `warnings`
/// are for the case that this is a change.
pub(crate) fn decide(
    target: Target,
    cron_job: &CronJob,
    suspend: bool,
    warnings: Vec<String>,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let (found, name) = (&cron_job.metadata, target.name.clone());
    let completion = CompletionSpec::Known(Completion::Immediate(format!(
        "CronJob '{name}' {}",
        state(suspend)
    )));
    let did = format!("CronJob '{name}' {} at {}.", participle(suspend), rfc3339_millis(asked.at));
    let marks = AppliedRequests::from_metadata(found);
    if marks.contains(&asked.id) {
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    if is_suspended(cron_job) == suspend {
        let sentence = format!("CronJob '{name}' {} already.", state(suspend));
        return Ok(Plan::new(target, found, Decision::NoOp(sentence), completion));
    }
    let patch = json!({ "spec": { "suspend": suspend } });
    let effect = Effect::patch(ApiResource::erase::<CronJob>(&()), found, &asked.id, patch);
    let todo = Decision::Apply(Box::new(effect), did, would(&name, suspend));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = vec![change(Some(cron_job), suspend), marks.change(&asked.id)];
    plan.warnings = warnings;
    Ok(plan)
}

fn change(cron_job: Option<&CronJob>, suspend: bool) -> Change {
    let from = cron_job.map(is_suspended);
    Change { path: SUSPEND_POINTER.to_owned(), from: from.into(), to: suspend.into() }
}

fn would(name: &str, suspend: bool) -> String {
    format!("Simulated: CronJob '{name}' would be {}.", participle(suspend))
}

fn participle(suspend: bool) -> &'static str {
    if suspend { "suspended" } else { "resumed" }
}

fn state(suspend: bool) -> &'static str {
    if suspend { "is suspended" } else { "is not suspended" }
}
