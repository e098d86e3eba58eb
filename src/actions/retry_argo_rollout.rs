//! `retry_argo_rollout`: begins an aborted update anew, as `kubectl argo rollouts retry rollout` does
//! (`pkg/kubectl-argo-rollouts/cmd/retry/retry.go`).
//!
//! It sets `status.abort` to false. The status takes no annotation, so the change is recognised by a field manager of
//! the request. The time of the abort, which the patch tests, distinguishes this abort from a later one.

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    actions::{
        BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            argo_rollout::{
                PATCH_STATUS, READ, StatusChange, check_observed, earlier_plan, no_effect,
                plan_status, read, would,
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
        argo_rollouts::{ArgoGoal, ArgoRollout},
        effect::StatusDecision,
        integrations::{Integration, ROLLOUT},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "retry_argo_rollout",
    aliases: &[],
    description: "Retry the aborted update of a Rollout (Argo Rollouts): a canary begins again with its first step. \
                  Refused unless it is aborted.",
    takes_time: true,
    when: "an update was aborted for a reason that is gone",
    when_not: "the new version itself is at fault: use undo_argo_rollout",
    destructive: true,
    example: r#"{"rollout":"web"}"#,
    rules: &[READ, PATCH_STATUS, restart::PODS, preflight::AUTOSCALERS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoRollouts),
};

/// What `retry_argo_rollout` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Rollout.
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

    fn preview(&self, _: &PlanInput) -> Preview {
        let path = "/status/abort".to_owned();
        let change = Change { path, from: json!(true), to: json!(false) };
        Preview { result: would(&self.target(), "retried"), changes: vec![change] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let found = read(cluster, &self.namespace, &self.rollout, input).await?;
            Ok(found.warn_in(decide(&self.target(), &found.object, input)?))
        })
    }
}

fn decide(target: &Target, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
    let (rollout, metadata) = (ArgoRollout::new(found), &found.metadata);
    let sentence = format!("Rollout '{}' was retried.", target.name);
    if let Some(plan) = earlier_plan(target, metadata, &sentence, ArgoGoal::Advanced, input)? {
        return Ok(plan);
    }
    let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
    check_observed(target, rollout).map_err(with_uid)?;
    if !rollout.is_aborted() {
        return Err(with_uid(no_effect(target, "is not aborted: there is nothing to retry")));
    }
    let fields = ["currentPodHash", "stableRS", "abort", "abortedAt", "promoteFull"];
    // An abort leaves a promotion in full as it is, with which the retry would skip all steps.
    let mut set = Vec::new();
    if rollout.is_being_promoted() {
        set.push(("promoteFull", json!(false)));
    }
    set.push(("abort", json!(false)));
    let change = StatusChange {
        decided_on: StatusDecision::on(rollout.metadata, rollout.status(), &fields),
        set,
        participle: "retried".to_owned(),
        goal: ArgoGoal::Advanced,
    };
    let mut plan = plan_status(target, rollout, change, input).map_err(with_uid)?;
    let first_step =
        rollout.step().map(|(_, all)| format!("it begins again with the first of its {all} steps"));
    plan.warnings.extend(first_step);
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::error::Code, k8s::effect::Mutation};

    fn decided(status: &str) -> Result<Plan, ActionError> {
        let found = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}}\n\
             spec: {{template: {{}}, strategy: {{canary: {{steps: [{{pause: {{}}}}]}}}}}}\n\
             status: {{observedGeneration: '3', currentPodHash: new, stableRS: old, {status}}}"
        ));
        let found = found.expect("is a Rollout");
        decide(&ROLLOUT.target("shop", "web"), &found, &PlanInput::example())
    }

    #[test]
    fn a_retry_takes_this_abort_back_and_no_later_one() {
        let plan = decided("abort: true, abortedAt: '2026-01-31T11:00:00Z'").expect("is planned");
        let effect = plan.expect_change().0;
        let Mutation::Status { patch, .. } = &effect.mutation else { panic!("{effect:?}") };
        let operations: Vec<_> = patch.iter().map(|it| json!(it)).collect();
        let at = json!("2026-01-31T11:00:00Z");
        let test = json!({ "op": "test", "path": "/status/abortedAt", "value": at });
        assert!(operations.contains(&test), "{operations:?}");
        let change = json!({ "op": "add", "path": "/status/abort", "value": false });
        assert_eq!(operations.last(), Some(&change));
        assert!(plan.warnings[0].contains("first of its 1 steps"), "{:?}", plan.warnings);
    }

    #[test]
    fn a_retry_after_a_promotion_in_full_skips_no_step() {
        let status = "abort: true, abortedAt: '2026-01-31T11:00:00Z', promoteFull: true";
        let plan = decided(status).expect("is planned");
        let effect = plan.expect_change().0;
        let Mutation::Status { patch, .. } = &effect.mutation else { panic!("{effect:?}") };
        let operations: Vec<_> = patch.iter().map(|it| json!(it)).collect();
        for (op, value) in [("test", true), ("add", false)] {
            let expected = json!({ "op": op, "path": "/status/promoteFull", "value": value });
            assert!(operations.contains(&expected), "{expected} in {operations:?}");
        }
    }

    #[test]
    fn a_rollout_that_is_not_aborted_is_refused() {
        for status in ["abort: false", "phase: Healthy"] {
            assert_eq!(decided(status).expect_err("is refused").code, Code::NoEffect);
        }
    }
}
