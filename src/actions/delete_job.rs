//! `delete_job`: deletes a Job, and with it its pods, as `kubectl delete job` does.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        plan::removal,
    },
    contract::{
        error::{ActionError, Code},
        names::{Namespace, ObjectName, null_is_default},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster, completion::Completion, drain_filter::grace_period_beyond,
        effect::Effect, gitops, jobs, pods, rbac::PolicyRule, replacement::describe,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "delete_job",
    aliases: &[],
    description: "Delete a finished Job, and with it its pods and their logs. Refused for a Job that is \
                  not complete and has not failed, unless even_if_running is set: then its pods are \
                  stopped within their grace periods, and their work is lost. With wait it is complete \
                  once the Job and its pods are gone.",
    takes_time: true,
    when: "a finished Job is in the way of a new one of its name, or a Job that hangs is to be stopped",
    when_not: "its logs are still needed",
    destructive: true,
    example: r#"{"name":"migrate"}"#,
    rules: &[
        PolicyRule { api_groups: &["batch"], resources: &["jobs"], verbs: &["get", "delete"] },
        // Only to see when its pods are gone, if the request waits.
        PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["list", "watch"] },
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `delete_job` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Job to delete.
    pub name: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Delete it even if it has not finished: its pods are stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_if_running: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        Target::named("batch/v1", "Job", &self.namespace, &self.name)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, _: &PlanInput) -> Preview {
        let result = format!(
            "Simulated: Job '{}' would be deleted, and with it its pods and their logs.",
            self.name
        );
        Preview { result, changes: Vec::new() }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let job = cluster.get(&self.namespace, &self.name, input.deadline).await?;
            self.decide(&job, input)
        })
    }
}

impl Parameters {
    /// From the Job as it was read to what is to be done.
    fn decide(&self, job: &Job, input: &PlanInput) -> Result<Plan, ActionError> {
        let target = self.target().found(&job.metadata);
        let with_uid = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        input.check_same(&target).map_err(with_uid)?;
        let name = &*self.name;
        let completion = CompletionSpec::Known(Completion::JobGone {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: target.uid.clone().unwrap_or_default(),
            query: jobs::pods_query(job),
        });
        if job.metadata.deletion_timestamp.is_some() {
            let decision = Decision::NoOp(format!("Job '{name}' is being deleted already."));
            return Ok(Plan::new(target, &job.metadata, decision, completion));
        }
        if !jobs::has_finished(job) && !self.even_if_running {
            return Err(with_uid(not_finished_error(&target, job)));
        }
        let (resource, version) = (ApiResource::erase::<Job>(&()), input.required_version());
        let effect = Effect::deletion(resource, &job.metadata, version);
        let at = rfc3339_millis(input.at);
        let did = format!("Job '{name}' deleted at {at}, and with it its pods and their logs.");
        let would = format!(
            "Simulated: Job '{name}' would be deleted, and with it its pods ({}) and their logs.",
            jobs::pods_phrase(job)
        );
        let changes = vec![removal(&target)];
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, &job.metadata, decision, completion);
        plan.changes = changes;
        plan.warnings = warnings(job, input);
        Ok(plan)
    }
}

fn not_finished_error(target: &Target, job: &Job) -> ActionError {
    let how = match job.spec.as_ref().and_then(|spec| spec.suspend) {
        Some(true) => "is suspended and has not finished".to_owned(),
        _ => format!("has not finished: {}", jobs::pods_phrase(job)),
    };
    ActionError::new(Code::PreconditionFailed, format!("{target} {how}"))
        .with_hint("to delete it and stop its pods, set parameters.even_if_running")
}

fn warnings(job: &Job, input: &PlanInput) -> Vec<String> {
    let is_finished = jobs::has_finished(job);
    let mut warnings = Vec::new();
    if !is_finished {
        warnings.push(format!(
            "the Job has not finished ({}): its pods are stopped within their grace periods, and their work is lost",
            jobs::pods_phrase(job)
        ));
        warnings.extend(slow_warning(job, input));
    }
    warnings.extend(owner_warning(job, is_finished));
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    warnings.extend(ttl.filter(|_| is_finished).map(|seconds| {
        format!("its ttlSecondsAfterFinished would delete it {seconds} s after its end anyway")
    }));
    let again = gitops::recreating_owner(&job.metadata);
    warnings.extend(again.map(|owner| format!("{owner}; then the Job runs again")));
    warnings
}

/// The warning that a pod may take longer to stop than the request waits.
fn slow_warning(job: &Job, input: &PlanInput) -> Option<String> {
    let spec = job.spec.as_ref()?.template.spec.clone();
    let pod = Pod { spec, ..Pod::default() };
    let seconds = grace_period_beyond(&pod, None, input.timeout).filter(|_| input.wait)?;
    let wait = input.timeout.as_secs();
    Some(format!("its pods may take {seconds} s to stop, longer than the wait of {wait} s"))
}

/// What the controller of the Job would do with it, or will do without it.
fn owner_warning(job: &Job, is_finished: bool) -> Option<String> {
    let owner = pods::controller_of(&job.metadata)?;
    let who = describe(owner);
    Some(match (owner.kind.as_str(), is_finished) {
        ("CronJob", true) => format!(
            "{who} controls it and would delete it anyway once later Jobs fill its history \
             (successfulJobsHistoryLimit, failedJobsHistoryLimit)"
        ),
        ("CronJob", false) => format!(
            "{who} controls it: under concurrencyPolicy Forbid a run that was held back by it may start at once"
        ),
        _ => format!("{who} controls it and may create it again"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::precondition::Precondition, k8s::effect::Mutation};

    const COMPLETE: &str = "succeeded: 1, conditions: [{type: Complete, status: 'True'}]";
    const FAILED: &str = "failed: 2, conditions: [{type: Failed, status: 'True'}]";
    const RUNNING: &str = "active: 2, failed: 1";

    fn job(metadata: &str, spec: &str, status: &str) -> Job {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: migrate, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{selector: {{matchLabels: {{batch.kubernetes.io/controller-uid: u1}}}}, \
             template: {{spec: {{containers: [], terminationGracePeriodSeconds: 600}}}}{spec}}}\n\
             status: {{{status}}}"
        ))
        .expect("is a Job")
    }

    fn decide_on(job: &Job, more: &str, input: &PlanInput) -> Result<Plan, ActionError> {
        let parameters: Parameters =
            serde_json::from_str(&format!(r#"{{"name":"migrate","namespace":"shop"{more}}}"#))
                .expect("are parameters");
        parameters.decide(job, input)
    }

    fn warnings_of(job: &Job) -> String {
        let plan = decide_on(job, r#","even_if_running":true"#, &PlanInput::example());
        plan.expect("is planned").warnings.join("; ")
    }

    #[test]
    fn a_finished_job_is_deleted_and_the_deletion_is_bound_to_the_uid() {
        for status in [COMPLETE, FAILED] {
            let plan = decide_on(&job("", "", status), "", &PlanInput::example());
            let plan = plan.expect("is planned");
            let (effect, did, would) = plan.expect_change();
            assert_eq!(effect.uid, "u1");
            assert_eq!(
                effect.mutation,
                Mutation::Delete { resource_version: None, grace_period_seconds: None }
            );
            assert_eq!(
                did,
                "Job 'migrate' deleted at 2026-01-31T12:00:00.987Z, and with it its pods and their logs."
            );
            assert!(would.contains("0 pods run"), "{would}");
            assert_eq!(plan.changes[0].from, "u1");
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        }
    }

    #[test]
    fn the_version_that_the_request_names_is_required() {
        let precondition = Precondition {
            resource_version: Some("7".to_owned().try_into().expect("is")),
            ..Default::default()
        };
        let input = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
        let plan = decide_on(&job("", "", COMPLETE), "", &input).expect("is planned");
        let effect = plan.expect_change().0;
        assert_eq!(
            effect.mutation,
            Mutation::Delete { resource_version: Some("7".to_owned()), grace_period_seconds: None }
        );
    }

    #[test]
    fn a_job_that_has_not_finished_is_refused_unless_the_request_accepts_it() {
        for (spec, status, says) in [
            ("", RUNNING, "2 pods run, 0 succeeded, 1 failed"),
            ("", "conditions: [{type: FailureTarget, status: 'True'}]", "has not finished"),
            (", suspend: true", "", "is suspended"),
        ] {
            let job = job("", spec, status);
            let error = decide_on(&job, "", &PlanInput::example()).expect_err("is refused");
            assert_eq!(error.code, Code::PreconditionFailed);
            assert!(error.detail.contains(says), "{}", error.detail);
            assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("even_if_running")));
            assert_eq!(error.refused_uid(), Some("u1"));
            let warnings = warnings_of(&job);
            assert!(warnings.contains("their work is lost"), "{warnings}");
        }
    }

    #[test]
    fn another_job_of_the_same_name_is_refused() {
        let precondition = Precondition {
            uid: Some("u0".to_owned().try_into().expect("is")),
            ..Default::default()
        };
        let input = PlanInput { precondition: Some(precondition), ..PlanInput::example() };
        let error = decide_on(&job("", "", COMPLETE), "", &input).expect_err("is refused");
        assert_eq!(error.code, Code::PreconditionFailed);
    }

    #[test]
    fn a_job_that_is_being_deleted_is_left() {
        let leaving = job(", deletionTimestamp: '2026-01-31T12:00:00Z'", "", RUNNING);
        let plan = decide_on(&leaving, "", &PlanInput::example()).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.warnings.is_empty() && plan.changes.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn controllers_and_a_ttl_of_a_job_are_warned_of() {
        let owned = |kind: &str| {
            format!(
                ", ownerReferences: [{{apiVersion: batch/v1, kind: {kind}, name: nightly, uid: c, \
                 controller: true}}]"
            )
        };
        let argo = ", labels: {argocd.argoproj.io/instance: shop}";
        for (metadata, spec, status, says) in [
            (&*owned("CronJob"), "", COMPLETE, "CronJob 'nightly' controls it and would delete it"),
            (&*owned("CronJob"), "", RUNNING, "may start at once"),
            (
                &*owned("JobSet"),
                "",
                COMPLETE,
                "JobSet 'nightly' controls it and may create it again",
            ),
            ("", ", ttlSecondsAfterFinished: 60", FAILED, "60 s after its end anyway"),
            (
                argo,
                "",
                COMPLETE,
                "will create it again unless its source changes too; then the Job runs again",
            ),
        ] {
            let warnings = warnings_of(&job(metadata, spec, status));
            assert!(warnings.contains(says), "{warnings}");
        }
        let running = warnings_of(&job("", ", ttlSecondsAfterFinished: 60", RUNNING));
        assert!(!running.contains("ttlSecondsAfterFinished"), "{running}");
    }

    #[test]
    fn pods_that_may_stop_later_than_the_wait_ends_are_warned_of() {
        let input = PlanInput { wait: true, ..PlanInput::example() };
        let accepted = r#","even_if_running":true"#;
        let plan = decide_on(&job("", "", RUNNING), accepted, &input).expect("is planned");
        assert!(plan.warnings[1].contains("600 s"), "{:?}", plan.warnings);
        let plan = decide_on(&job("", "", COMPLETE), accepted, &input).expect("is planned");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn the_wait_is_for_the_pods_too() {
        let plan = decide_on(&job("", "", COMPLETE), "", &PlanInput::example());
        let CompletionSpec::Known(completion) = plan.expect("is planned").completion else {
            panic!("is known")
        };
        let Completion::JobGone { query, uid, .. } = completion else { panic!("{completion:?}") };
        assert_eq!(query.selectors().0, "batch.kubernetes.io/controller-uid=u1");
        assert_eq!(uid, "u1");
    }
}
