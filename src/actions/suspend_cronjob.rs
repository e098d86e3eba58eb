//! `suspend_cronjob`: stops a CronJob from starting Jobs until it is resumed.

use k8s_openapi::api::batch::v1::CronJob;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::toggle::SUSPEND_CRONJOB,
    },
    contract::{
        counted::counted,
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{api::client::Cluster, completion::Completion, jobs, rbac::PolicyRule},
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "suspend_cronjob",
    aliases: &[],
    description: "Suspend a CronJob: it starts no Jobs until resume_cronjob. Running Jobs keep \
                  running. Unchanged if it is suspended already.",
    takes_time: false,
    when: "its Jobs do harm, or must not start during an incident",
    when_not: "a Job that runs now has to stop: this does not stop it",
    destructive: false,
    example: r#"{"cronjob":"nightly"}"#,
    rules: &[PolicyRule {
        api_groups: &["batch"],
        resources: &["cronjobs"],
        verbs: &["get", "patch"],
    }],
    cluster_rules: &[],
    integration: None,
};

/// What `suspend_cronjob` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The CronJob to suspend.
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
        SUSPEND_CRONJOB.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = cluster.get(&self.namespace, &self.cronjob, input.deadline).await?;
            decide(self.target(), &found, input)
        })
    }
}

fn decide(target: Target, cron_job: &CronJob, input: &PlanInput) -> Result<Plan, ActionError> {
    let sentence = format!("CronJob '{}' starts no Jobs until it is resumed", target.name);
    let completion = CompletionSpec::Known(Completion::Immediate(sentence));
    let is_suspended = jobs::is_suspended(cron_job);
    let mut plan =
        SUSPEND_CRONJOB.decide(target, &cron_job.metadata, is_suspended, completion, input)?;
    let active = jobs::active_jobs(cron_job);
    if plan.is_change() && !active.is_empty() {
        let (number, names) = (counted(active.len(), "Job"), active.join(", "));
        plan.warnings.push(format!("{number} of it still running, not affected: {names}"));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::Decision, k8s::effect::Applied};

    fn decide_on(spec: &str, metadata: &str) -> Plan {
        let cron_job: CronJob = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: nightly, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{schedule: '0 3 * * *', jobTemplate: {{}}{spec}}}\n\
             status: {{active: [{{name: nightly-1}}, {{name: nightly-2}}]}}"
        ))
        .expect("is a CronJob");
        let target = SUSPEND_CRONJOB.target("shop", "nightly");
        decide(target, &cron_job, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_suspension_is_one_patch_and_names_the_running_jobs() {
        let plan = decide_on("", "");
        let (effect, did, _) = plan.expect_change();
        let change = serde_json::json!({ "op": "add", "path": "/spec/suspend", "value": true });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "CronJob 'nightly' suspended at 2026-01-31T12:00:00.987Z.");
        assert_eq!(
            plan.warnings,
            ["2 Jobs of it still running, not affected: nightly-1, nightly-2"]
        );
    }

    #[test]
    fn a_suspended_cron_job_is_left() {
        let plan = decide_on(", suspend: true", "");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.warnings.is_empty() && plan.changes.is_empty());
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let mark = ", annotations: {action-executor.dev/requests: '4:r1@d1'}";
        let plan = decide_on("", mark);
        assert!(
            matches!(plan.decision, Decision::AlreadyApplied(Applied { .. }, _)),
            "{:?}",
            plan.decision
        );
    }
}
