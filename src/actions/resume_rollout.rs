//! `resume_rollout`: resumes a paused Deployment, as `kubectl rollout resume` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{restart, toggle::RESUME_ROLLOUT},
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::{
            client::Cluster,
            preflight::{self, Preflight},
        },
        completion::RolloutOf,
        rbac::PolicyRule,
        revisions::template_digest,
        workload::{Workload, WorkloadKind},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "resume_rollout",
    aliases: &[],
    description: "Resume a paused Deployment: all changes made to its pod template during the pause are \
                  rolled out now, in one rollout. Unchanged if it is not paused.",
    takes_time: true,
    when: "what the pause was for is settled",
    when_not: "the changes made during the pause are not wanted: they are rolled out",
    destructive: true,
    example: r#"{"deployment":"web"}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments"],
            verbs: &["get", "patch", "watch"],
        },
        // Whether an exceeded progress deadline is that of the newest ReplicaSet, when the request waits.
        PolicyRule { api_groups: &["apps"], resources: &["replicasets"], verbs: &["list"] },
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
        preflight::PVCS,
    ],
    cluster_rules: &[],
    integration: None,
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
        RESUME_ROLLOUT.target(&self.namespace, &self.deployment)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        RESUME_ROLLOUT.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (kind, namespace) = (WorkloadKind::Deployment, &self.namespace);
            let (found, preflight) = tokio::join!(
                cluster.workload_and_template(kind, namespace, &self.deployment, input.deadline),
                Preflight::of(cluster, kind, namespace, input.deadline),
            );
            let (found, template) = found?;
            let plan = decide(self.target(), &found, &template, input)?;
            Ok(plan.with_preflight_warnings(&preflight, &found, input))
        })
    }
}

/// `template` is the Deployment's, with unknown fields.
fn decide(
    target: Target,
    deployment: &Workload,
    template: &Value,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let (metadata, is_paused) = (deployment.metadata(), deployment.is_paused());
    // The request does not set the template: the one that is there is rolled out.
    let template = match input.has_changed(metadata)? {
        true => input.template_left(metadata, template),
        false => Some(template_digest(template)),
    };
    let rollout = RolloutOf { kind: WorkloadKind::Deployment, template };
    let completion = CompletionSpec::Rollout(rollout);
    let mut plan = RESUME_ROLLOUT.decide(target, metadata, is_paused, completion, input)?;
    if plan.is_change() {
        plan.warnings.extend(outdated_pods_warning(deployment));
    }
    Ok(plan)
}

fn outdated_pods_warning(deployment: &Workload) -> Option<String> {
    let (outdated, all) = deployment.outdated_pods()?;
    Some(format!(
        "the pod template changed during the pause, or its rollout was interrupted: {outdated} of {all} \
         pods are replaced now"
    ))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;
    use crate::actions::Decision;

    fn decide_on(spec: &str, updated: i32, requests: &str) -> Plan {
        let deployment: Deployment = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             annotations: {{action-executor.dev/requests: '{requests}'}}}}\n\
             spec: {{selector: {{}}, template: {{}}{spec}}}\n\
             status: {{observedGeneration: 3, replicas: 3, updatedReplicas: {updated}}}"
        ))
        .expect("is a Deployment");
        let target = RESUME_ROLLOUT.target("shop", "web");
        let template = serde_json::json!({});
        decide(target, &deployment.into(), &template, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_resumption_sets_one_field_and_waits_for_the_rollout_of_the_present_template() {
        let plan = decide_on(", paused: true", 3, "");
        let (effect, did, would) = plan.expect_change();
        let change = serde_json::json!({ "op": "add", "path": "/spec/paused", "value": false });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "Deployment 'web' resumed at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be resumed.");
        assert_eq!(plan.changes[0].from, true);
        assert_eq!(plan.warnings, Vec::<String>::new());
        let CompletionSpec::Rollout(rollout) = plan.completion else { panic!("is a rollout") };
        assert_eq!(rollout.template, Some(template_digest(&serde_json::json!({}))));
    }

    #[test]
    fn a_deployment_that_is_not_paused_is_left_and_a_request_is_not_applied_twice() {
        assert!(matches!(decide_on("", 3, "").decision, Decision::NoOp(_)));
        assert!(matches!(decide_on("", 3, "1:r1@d1").decision, Decision::AlreadyApplied(..)));
        assert!(matches!(
            decide_on(", paused: true", 3, "1:r1@d1").decision,
            Decision::AlreadyApplied(..)
        ));
    }

    #[test]
    fn outdated_pods_are_warned_of() {
        let warnings = decide_on(", paused: true", 0, "").warnings;
        assert!(warnings[0].contains("3 of 3 pods are replaced now"), "{warnings:?}");
    }
}
