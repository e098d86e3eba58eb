//! `resume_rollout`: what was changed while a Deployment was paused is rolled out, as after
//! `kubectl rollout resume`.

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
use crate::actions::shared::restart::PODS;
use crate::contract::error::ActionError;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::completion::TemplateIdentity;
use crate::k8s::api::completion::RolloutOf;
use crate::k8s::api::preflight;
use crate::k8s::workload::Workload;
use crate::k8s::workload::WorkloadKind;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Target;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_rollout",
    aliases: &[],
    description: "Resume a paused Deployment: whatever was changed in its pod template meanwhile is \
                  rolled out now, all at once. Unchanged if it is not paused.",
    example: r#"{"deployment":"web"}"#,
    rules: &[
        PolicyRule { api_groups: &["apps"], resources: &["deployments"], verbs: &["get", "patch"] },
        PODS,
        preflight::AUTOSCALERS,
        preflight::BUDGETS,
        preflight::CLAIMS,
    ],
    cluster_rules: &[],
};

/// What `resume_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Deployment to resume.
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
        paused::preview(&self.deployment, false, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (kind, namespace) = (WorkloadKind::Deployment, &self.namespace);
            let found = cluster.workload(kind, namespace, &self.deployment, asked.deadline).await?;
            let plan = decide(self.target(), &found, asked)?;
            Ok(plan.with_preflight_warnings(cluster, &found, asked).await)
        })
    }
}

/// From the Deployment as it was read to what is to be done.
fn decide(target: Target, deployment: &Workload, asked: &PlanInput) -> Result<Plan, ActionError> {
    // The template is not ours, and what others change in it meanwhile belongs to the same rollout.
    let rollout = RolloutOf { kind: WorkloadKind::Deployment, template: TemplateIdentity::Nothing };
    let completion = CompletionSpec::Rollout(rollout);
    paused::decide(target, deployment, false, completion, warnings(deployment), asked)
}

fn warnings(deployment: &Workload) -> Vec<String> {
    let pending = deployment.outdated_pods().map(|(outdated, all)| {
        format!(
            "the template was changed, or its rollout broken off: {outdated} of {all} pods are \
             replaced now"
        )
    });
    pending.into_iter().collect()
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
    fn sets_the_one_field_and_waits_for_the_rollout_whatever_its_template() {
        let plan = decide_on(", paused: true", 3, "");
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is no patch") };
        assert_eq!(body["spec"], serde_json::json!({ "paused": false }));
        assert_eq!(did, "Deployment 'web' resumed.");
        assert_eq!(would, "Simulated: Deployment 'web' would be resumed.");
        assert_eq!(plan.changes[0].from, true);
        assert_eq!(plan.warnings, Vec::<String>::new());
        let CompletionSpec::Rollout(rollout) = plan.completion else { panic!("is a rollout") };
        assert_eq!(rollout.template, TemplateIdentity::Nothing);
    }

    #[test]
    fn leaves_what_is_not_paused_and_does_not_repeat_itself() {
        assert!(matches!(decide_on("", 3, "").decision, Decision::NoOp(_)));
        assert!(matches!(decide_on("", 3, "1:r1").decision, Decision::AlreadyApplied(..)));
        assert!(matches!(decide_on(", paused: true", 3, "1:r1").decision, Decision::AlreadyApplied(..)));
    }

    #[test]
    fn tells_how_many_pods_wait_for_a_newer_template() {
        let warnings = decide_on(", paused: true", 0, "").warnings;
        assert!(warnings[0].contains("3 of 3 pods are replaced now"), "{warnings:?}");
    }
}
