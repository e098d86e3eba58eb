//! `resume_cronjob`: lets a suspended CronJob start Jobs by its schedule again.

use k8s_openapi::api::batch::v1::CronJob;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::shared::suspension;
use crate::contract::error::ActionError;
use crate::k8s::api::client::Cluster;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Target;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_cronjob",
    aliases: &[],
    description: "Resume a suspended CronJob: it starts Jobs by its schedule again. The last run that \
                  was missed meanwhile may start at once. Nothing is changed if it is not suspended.",
    example: r#"{"cronjob":"nightly"}"#,
    rules: &[PolicyRule { api_groups: &["batch"], resources: &["cronjobs"], verbs: &["get", "patch"] }],
    cluster_rules: &[],
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
        suspension::target(&self.namespace, &self.cronjob)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        suspension::preview(&self.cronjob, false, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = cluster.get(&self.namespace, &self.cronjob, asked.deadline).await?;
            decide(self.target(), &found, asked)
        })
    }
}

/// From the CronJob as it was read to what is to be done.
fn decide(target: Target, cron_job: &CronJob, asked: &PlanInput) -> Result<Plan, ActionError> {
    let warnings = missed_runs(cron_job).into_iter().collect();
    suspension::decide(target, cron_job, false, warnings, asked)
}

/// What was due while it was suspended counts as missed, and the last such run is made up for as far
/// back as `startingDeadlineSeconds` reaches
/// ([Kubernetes: CronJob](https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-suspension)).
fn missed_runs(cron_job: &CronJob) -> Option<String> {
    let deadline = cron_job.spec.as_ref().and_then(|spec| spec.starting_deadline_seconds);
    let since = match deadline {
        Some(0) => return None,
        Some(seconds) => format!("in the last {seconds} s (startingDeadlineSeconds)"),
        None => "while it was suspended (it has no startingDeadlineSeconds)".to_owned(),
    };
    Some(format!("if a run was missed {since}, one Job starts at once"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Decision;
    use crate::k8s::api::mutation::Mutation;

    fn decide_on(spec: &str) -> Plan {
        let cron_job: CronJob = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: nightly, namespace: shop, uid: u1, resourceVersion: '7'}}\n\
             spec: {{schedule: '0 3 * * *', jobTemplate: {{}}{spec}}}"
        ))
        .expect("is a CronJob");
        let target = suspension::target("shop", "nightly");
        decide(target, &cron_job, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn plans_one_patch() {
        let plan = decide_on(", suspend: true");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["spec"]["suspend"], false);
        assert_eq!(did, "CronJob 'nightly' resumed at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: CronJob 'nightly' would be resumed.");
    }

    #[test]
    fn changes_nothing_on_one_that_is_not_suspended() {
        for spec in ["", ", suspend: false"] {
            let plan = decide_on(spec);
            assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
            assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        }
    }

    #[test]
    fn tells_that_a_missed_run_may_start_at_once_as_far_as_the_deadline_reaches() {
        let warnings = |deadline: &str| decide_on(&format!(", suspend: true{deadline}")).warnings;
        assert!(warnings("")[0].contains("no startingDeadlineSeconds"));
        assert!(warnings(", startingDeadlineSeconds: 200")[0].contains("in the last 200 s"));
        assert!(warnings(", startingDeadlineSeconds: 0").is_empty());
    }
}
