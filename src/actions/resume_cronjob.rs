//! `resume_cronjob`: lets a suspended CronJob start Jobs by its schedule again.

use k8s_openapi::api::batch::v1::CronJob;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::toggle::RESUME_CRONJOB,
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{api::client::Cluster, completion::Completion, jobs, rbac::PolicyRule},
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_cronjob",
    aliases: &[],
    description: "Resume a suspended CronJob: it starts Jobs by its schedule again. The last run that \
                  was missed during the suspension may start at once. Unchanged if it is not suspended.",
    takes_time: false,
    when: "the reason for the suspension is settled",
    when_not: "a missed run must not start at once",
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

/// What `resume_cronjob` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The CronJob to resume.
    pub cronjob: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        RESUME_CRONJOB.target(&self.namespace, &self.cronjob)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        RESUME_CRONJOB.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = cluster.get(&self.namespace, &self.cronjob, input.deadline).await?;
            decide(self.target(), &found, input)
        })
    }
}

fn decide(target: Target, cron_job: &CronJob, input: &PlanInput) -> Result<Plan, ActionError> {
    let sentence = format!("CronJob '{}' starts Jobs by its schedule", target.name);
    let completion = CompletionSpec::Known(Completion::Immediate(sentence));
    let is_suspended = jobs::is_suspended(cron_job);
    let mut plan =
        RESUME_CRONJOB.decide(target, &cron_job.metadata, is_suspended, completion, input)?;
    if plan.is_change() {
        plan.warnings.extend(missed_run_warning(cron_job));
    }
    Ok(plan)
}

/// A run that was due during the suspension counts as missed. The last missed run starts at once if it is
/// not older than `startingDeadlineSeconds`
/// ([Kubernetes: CronJob](https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-suspension)).
fn missed_run_warning(cron_job: &CronJob) -> Option<String> {
    let deadline = cron_job.spec.as_ref().and_then(|spec| spec.starting_deadline_seconds);
    let since = match deadline {
        Some(0) => return None,
        Some(seconds) => format!("in the last {seconds} s (startingDeadlineSeconds)"),
        None => "during the suspension (there is no startingDeadlineSeconds)".to_owned(),
    };
    Some(format!("one Job starts at once if a run was missed {since}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Decision;

    fn decide_on(spec: &str) -> Plan {
        let cron_job: CronJob = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: nightly, namespace: shop, uid: u1, resourceVersion: '7'}}\n\
             spec: {{schedule: '0 3 * * *', jobTemplate: {{}}{spec}}}"
        ))
        .expect("is a CronJob");
        let target = RESUME_CRONJOB.target("shop", "nightly");
        decide(target, &cron_job, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_resumption_is_one_patch() {
        let plan = decide_on(", suspend: true");
        let (effect, did, would) = plan.expect_change();
        let change = serde_json::json!({ "op": "add", "path": "/spec/suspend", "value": false });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "CronJob 'nightly' resumed at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: CronJob 'nightly' would be resumed.");
    }

    #[test]
    fn a_cron_job_that_is_not_suspended_is_left_without_a_warning() {
        for spec in ["", ", suspend: false"] {
            let plan = decide_on(spec);
            assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        }
    }

    #[test]
    fn a_missed_run_within_the_starting_deadline_is_warned_of() {
        let warnings = |deadline: &str| decide_on(&format!(", suspend: true{deadline}")).warnings;
        assert!(warnings("")[0].contains("no startingDeadlineSeconds"));
        assert!(warnings(", startingDeadlineSeconds: 200")[0].contains("in the last 200 s"));
        assert!(warnings(", startingDeadlineSeconds: 0").is_empty());
    }
}
