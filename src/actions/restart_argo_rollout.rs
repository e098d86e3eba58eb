//! `restart_argo_rollout`: has the controller replace the pods of a Rollout, as `kubectl argo rollouts restart` does
//! (`pkg/kubectl-argo-rollouts/cmd/restart/restart.go`).
//!
//! It sets `spec.restartAt`. The controller evicts the pods that are older, a few at a time
//! (`rollout/restart.go`); the pod template stays as it is, so no step of a canary runs.

use chrono::SecondsFormat;
use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            argo_rollout::{
                READ_AND_PATCH, completion, done, earlier_plan, newest_version, read, would,
            },
            restart,
        },
    },
    contract::{
        error::ActionError,
        names::{Namespace, ObjectName, null_is_default},
        response::{Change, Target},
    },
    k8s::{
        api::{client::Cluster, preflight},
        applied_requests::AppliedRequests,
        argo_rollouts::{ArgoGoal, ArgoRollout},
        conditional_patch::add,
        effect::Effect,
        gitops,
        integrations::{Integration, ROLLOUT},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_argo_rollout",
    aliases: &[],
    description: "Restart a Rollout (Argo Rollouts): its controller evicts the pods a few at a time, within the \
                  disruption budgets, and starts new ones of the same version. No step of the update strategy runs.",
    takes_time: true,
    when: "the pods of a Rollout hang, or run with an old configuration",
    when_not: "its new version is at fault: use abort_argo_rollout or undo_argo_rollout",
    destructive: true,
    example: r#"{"rollout":"web"}"#,
    rules: &[
        READ_AND_PATCH,
        // For the wait, too.
        restart::PODS,
        preflight::AUTOSCALERS,
    ],
    cluster_rules: &[],
    integration: Some(Integration::ArgoRollouts),
};

/// What `restart_argo_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Rollout to restart.
    pub rollout: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        ROLLOUT.target(&self.namespace, &self.rollout)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let mark = AppliedRequests::default().change(&input.mark);
        let changes = vec![change(&Value::Null, input), mark];
        Preview { result: would(&self.target(), "restarted"), changes }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = read(cluster, &self.namespace, &self.rollout, input).await?;
            Ok(found.warn_in(decide(&self.target(), &found.object, input)?))
        })
    }
}

/// Kubernetes stores times in seconds.
fn restart_at(input: &PlanInput) -> String {
    input.at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn change(from: &Value, input: &PlanInput) -> Change {
    let path = "/spec/restartAt".to_owned();
    Change { path, from: from.clone(), to: json!(restart_at(input)) }
}

fn decide(target: &Target, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
    let (rollout, metadata) = (ArgoRollout::new(found), &found.metadata);
    let at = restart_at(input);
    let goal = ArgoGoal::Restarted(at.clone());
    let sentence = format!("Rollout '{}' was restarted.", target.name);
    // The time of this plan is not the one that the request has written.
    let written = rollout.restart_at().as_str().map(|at| ArgoGoal::Restarted(at.to_owned()));
    let written = written.unwrap_or_else(|| goal.clone());
    if let Some(plan) = earlier_plan(target, metadata, &sentence, written, input)? {
        return Ok(plan);
    }
    let precondition = input.precondition.as_ref();
    let operations = vec![add(&["spec", "restartAt"], json!(at))];
    let effect = Effect::patch(ROLLOUT.resource(), metadata, &input.mark, precondition, operations);
    let (did, would) = (done(target, "restarted", input), would(target, "restarted"));
    let decision = Decision::apply(effect, did, would);
    let completion = completion(metadata, newest_version(rollout), goal);
    let mut plan = Plan::new(target.clone(), metadata, decision, completion);
    plan.changes = vec![
        change(rollout.restart_at(), input),
        AppliedRequests::from_metadata(metadata).change(&input.mark),
    ];
    plan.warnings = gitops::undo_warnings(metadata, "spec.restartAt");
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(requests: &str) -> Plan {
        let found = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3, \
             labels: {{argocd.argoproj.io/instance: shop}}, \
             annotations: {{action-executor.dev/requests: '{requests}'}}}}\n\
             spec: {{template: {{}}, restartAt: '2026-01-31T11:00:00Z'}}\nstatus: {{currentPodHash: new}}"
        ));
        let found = found.expect("is a Rollout");
        let target = ROLLOUT.target("shop", "web");
        decide(&target, &found, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_restart_sets_the_time_with_the_requests_mark() {
        let plan = decided("");
        let (effect, did, _) = plan.expect_change();
        let change =
            json!({ "op": "add", "path": "/spec/restartAt", "value": "2026-01-31T12:00:00Z" });
        let operations = effect.operations();
        assert_eq!(operations.last(), Some(&change));
        assert!(json!(operations).to_string().contains("r1@d1"), "{operations:?}");
        assert_eq!(did, "Rollout 'web' restarted at 2026-01-31T12:00:00.987Z.");
        assert!(plan.warnings[0].contains("Argo CD"), "{:?}", plan.warnings);
    }

    #[test]
    fn the_same_request_is_not_applied_again() {
        let plan = decided("4:r1@d1");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
        // It waits for the restart that it has requested, and not for one of now.
        assert!(format!("{:?}", plan.completion).contains("11:00:00"), "{:?}", plan.completion);
    }
}
