//! `pause_rollout`: pauses a Deployment, as `kubectl rollout pause` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::toggle::PAUSE_ROLLOUT,
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::client::Cluster,
        completion::Completion,
        rbac::PolicyRule,
        workload::{Workload, WorkloadKind},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "pause_rollout",
    aliases: &[],
    description: "Pause a Deployment: changes to its pod template are kept and not rolled out until \
                  resume_rollout. A rollout in progress stops where it is, with old and new pods side by \
                  side. Scaling still works; restarts and rollbacks are refused. Unchanged if it is \
                  paused already.",
    takes_time: false,
    when: "a rollout in progress looks wrong and has to stop now",
    when_not: "the rollout is complete: use rollback",
    destructive: false,
    example: r#"{"deployment":"web"}"#,
    rules: &[PolicyRule {
        api_groups: &["apps"],
        resources: &["deployments"],
        verbs: &["get", "patch"],
    }],
    cluster_rules: &[],
    integration: None,
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
        PAUSE_ROLLOUT.target(&self.namespace, &self.deployment)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        PAUSE_ROLLOUT.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (kind, namespace) = (WorkloadKind::Deployment, &self.namespace);
            let found = cluster.workload(kind, namespace, &self.deployment, input.deadline).await?;
            decide(self.target(), &found, input)
        })
    }
}

fn decide(target: Target, deployment: &Workload, input: &PlanInput) -> Result<Plan, ActionError> {
    let completion = CompletionSpec::Known(Completion::Immediate(format!(
        "changes to the pod template of Deployment '{}' are rolled out once it is resumed",
        target.name
    )));
    let (metadata, is_paused) = (deployment.metadata(), deployment.is_paused());
    let mut plan = PAUSE_ROLLOUT.decide(target, metadata, is_paused, completion, input)?;
    if plan.is_change() {
        plan.warnings.extend(outdated_pods_warning(deployment));
    }
    Ok(plan)
}

fn outdated_pods_warning(deployment: &Workload) -> Option<String> {
    let (outdated, all) = deployment.outdated_pods()?;
    Some(format!(
        "a rollout is in progress: {outdated} of {all} pods are old and keep running beside the new \
         ones until the Deployment is resumed"
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
        let target = PAUSE_ROLLOUT.target("shop", "web");
        decide(target, &deployment.into(), &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_pause_sets_one_field_and_is_complete_at_once() {
        let plan = decide_on("", 3, "");
        let (effect, did, would) = plan.expect_change();
        let change = serde_json::json!({ "op": "add", "path": "/spec/paused", "value": true });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "Deployment 'web' paused at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Deployment 'web' would be paused.");
        assert_eq!(plan.changes[0].to, true);
        assert_eq!(plan.warnings, Vec::<String>::new());
        assert!(matches!(plan.completion, CompletionSpec::Known(Completion::Immediate(_))));
    }

    #[test]
    fn a_paused_deployment_is_left_and_a_request_is_not_applied_twice() {
        assert!(matches!(decide_on(", paused: true", 3, "").decision, Decision::NoOp(_)));
        assert!(matches!(
            decide_on(", paused: true", 3, "1:r1@d1").decision,
            Decision::AlreadyApplied(..)
        ));
        // A later request has resumed it.
        assert!(matches!(
            decide_on("", 3, "1:r1@d1 2:r2@d2").decision,
            Decision::AlreadyApplied(..)
        ));
    }

    #[test]
    fn a_rollout_in_progress_is_warned_of() {
        let warnings = decide_on("", 1, "").warnings;
        assert!(warnings[0].contains("2 of 3 pods are old"), "{warnings:?}");
    }
}
