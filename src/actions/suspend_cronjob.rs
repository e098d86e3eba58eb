//! `suspend_cronjob`: keeps a CronJob from starting Jobs until it is resumed.

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
    name: "suspend_cronjob",
    aliases: &[],
    description: "Suspend a CronJob: it starts no Jobs until resume_cronjob. Jobs that run already go \
                  on. Nothing is changed if it is suspended already.",
    example: r#"{"cronjob":"nightly"}"#,
    rules: &[PolicyRule { api_groups: &["batch"], resources: &["cronjobs"], verbs: &["get", "patch"] }],
    cluster_rules: &[],
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
        suspension::target(&self.namespace, &self.cronjob)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        suspension::preview(&self.cronjob, true, asked)
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
    let running = suspension::active_jobs(cron_job);
    let warnings = match running.len() {
        0 => Vec::new(),
        number => {
            vec![format!("{number} of its Jobs run already, and go on: {}", running.join(", "))]
        }
    };
    suspension::decide(target, cron_job, true, warnings, asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Decision;
    use crate::k8s::api::mutation::Applied;
    use crate::k8s::api::mutation::Mutation;

    fn decide_on(spec: &str, metadata: &str) -> Plan {
        let cron_job: CronJob = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: nightly, namespace: shop, uid: u1, resourceVersion: '7'{metadata}}}\n\
             spec: {{schedule: '0 3 * * *', jobTemplate: {{}}{spec}}}\n\
             status: {{active: [{{name: nightly-1}}, {{name: nightly-2}}]}}"
        ))
        .expect("is a CronJob");
        let target = suspension::target("shop", "nightly");
        decide(target, &cron_job, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn plans_one_patch_and_names_the_jobs_that_go_on() {
        let plan = decide_on("", "");
        let Decision::Apply(effect, did, _) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["spec"]["suspend"], true);
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(did, "CronJob 'nightly' suspended at 2026-01-31T12:00:00.987Z.");
        assert_eq!(
            plan.warnings,
            ["2 of its Jobs run already, and go on: nightly-1, nightly-2"]
        );
    }

    #[test]
    fn changes_nothing_on_one_that_is_suspended() {
        let plan = decide_on(", suspend: true", "");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.warnings.is_empty() && plan.changes.is_empty());
    }

    #[test]
    fn does_not_repeat_what_the_same_request_did() {
        let mark = ", annotations: {action-executor.dev/requests: '4:r1'}";
        let plan = decide_on("", mark);
        assert!(matches!(plan.decision, Decision::AlreadyApplied(Applied { .. }, _)), "{:?}", plan.decision);
    }
}
