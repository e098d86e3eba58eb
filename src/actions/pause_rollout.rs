//! `pause_rollout`: no change of a Deployment's template reaches its pods until it is resumed, as after
//! `kubectl rollout pause`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::CompletionSpec;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::shared::paused;
use crate::contract::error::ActionError;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::Completion;
use crate::k8s::workload::Workload;
use crate::k8s::workload::WorkloadKind;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Target;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "pause_rollout",
    aliases: &[],
    description: "Pause a Deployment: changes of its pod template are kept and not rolled out until \
                  resume_rollout. A rollout that is under way stops where it is, with old and new pods \
                  side by side. Scaling still works, restarts and rollbacks are refused. Unchanged if it \
                  is paused already.",
    example: r#"{"deployment":"web"}"#,
    rules: &[PolicyRule { api_groups: &["apps"], resources: &["deployments"], verbs: &["get", "patch"] }],
    cluster_rules: &[],
};

/// What `pause_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Deployment to pause.
    pub deployment: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::Deployment.target(&self.namespace, &self.deployment)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        paused::preview(&self.deployment, true, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (kind, namespace) = (WorkloadKind::Deployment, &self.namespace);
            let found = cluster.workload(kind, namespace, &self.deployment, asked.deadline).await?;
            decide(self.target(), &found, asked)
        })
    }
}

/// From the Deployment as it was read to what is to be done.
fn decide(target: Target, deployment: &Workload, asked: &PlanInput) -> Result<Plan, ActionError> {
    let completion = CompletionSpec::Known(Completion::Immediate(format!(
        "changes of the template of Deployment '{}' wait until it is resumed",
        target.name
    )));
    paused::decide(target, deployment, true, completion, warnings(deployment), asked)
}

fn warnings(deployment: &Workload) -> Vec<String> {
    let middle = deployment.outdated_pods().map(|(outdated, all)| {
        format!(
            "a rollout is under way: {outdated} of {all} pods are old ones and stay beside the new \
             ones until the Deployment is resumed"
        )
    });
    middle.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::{super::Decision, *};
    use crate::k8s::api::mutation::Mutation;

    fn decide_on(spec: &str, updated: i32, marks: &str) -> Plan {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             annotations: {{action-executor.dev/requests: '{marks}'}}}}\n\
             spec: {{selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 3, updatedReplicas: {updated}}}"
        ))
        .expect("is a Deployment");
        let target = WorkloadKind::Deployment.target("shop", "web");
        decide(target, &deployment.into(), &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn sets_the_one_field_and_waits_for_nothing() {
        let plan = decide_on("", 3, "");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["spec"], serde_json::json!({ "paused": true }));
        assert_eq!(did, "Deployment 'web' paused.");
        assert_eq!(would, "Simulated: Deployment 'web' would be paused.");
        assert_eq!(plan.changes[0].to, true);
        assert_eq!(plan.warnings, Vec::<String>::new());
        assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
    }

    #[test]
    fn leaves_what_is_paused_and_does_not_repeat_itself() {
        assert!(matches!(decide_on(", paused: true", 3, "").decision, Decision::NoOp(_)));
        assert!(matches!(decide_on(", paused: true", 3, "1:r1").decision, Decision::AlreadyApplied(..)));
        // Whoever resumed it since has decided later.
        assert!(matches!(decide_on("", 3, "1:r1 2:r2").decision, Decision::AlreadyApplied(..)));
    }

    #[test]
    fn warns_that_old_and_new_pods_stay_side_by_side() {
        let warnings = decide_on("", 1, "").warnings;
        assert!(warnings[0].contains("2 of 3 pods are old ones"), "{warnings:?}");
    }
}
