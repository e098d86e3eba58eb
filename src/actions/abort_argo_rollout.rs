//! `abort_argo_rollout`: ends an update and returns to the stable version, as `kubectl argo rollouts abort` does
//! (`pkg/kubectl-argo-rollouts/cmd/abort/abort.go`).
//!
//! It sets `status.abort`. The status takes no annotation, so the change is recognised by a field manager of the
//! request.

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    actions::{
        BoxFuture, Decision, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            argo_rollout::{
                PATCH_STATUS, READ, StatusChange, check_observed, completion, earlier_plan,
                newest_version, no_effect, plan_status, would,
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
        api::client::Cluster,
        argo_rollouts::{ArgoGoal, ArgoRollout},
        effect::StatusDecision,
        integrations::{Integration, ROLLOUT},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "abort_argo_rollout",
    aliases: &[],
    description: "Abort the update of a Rollout (Argo Rollouts): its stable version gets all traffic and all replicas \
                  back. The pod template stays the new one, and the Rollout Degraded, until it is retried or undone. \
                  Refused if no update is in progress. Unchanged if it is aborted already.",
    takes_time: true,
    when: "the new version of a Rollout fails, and the stable one is to serve at once",
    when_not: "the pod template itself is to return to an earlier one: use undo_argo_rollout",
    destructive: true,
    example: r#"{"rollout":"web"}"#,
    rules: &[READ, PATCH_STATUS, restart::PODS],
    cluster_rules: &[],
    integration: Some(Integration::ArgoRollouts),
};

/// What `abort_argo_rollout` acts upon.
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
        let change = Change { path, from: json!(false), to: json!(true) };
        Preview { result: would(&self.target(), "aborted"), changes: vec![change] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let (namespace, name) = (&self.namespace, &self.rollout);
            let found = cluster.get_custom(&ROLLOUT, namespace, name, input.deadline).await?;
            decide(&self.target(), &found, input)
        })
    }
}

fn decide(target: &Target, found: &DynamicObject, input: &PlanInput) -> Result<Plan, ActionError> {
    let (rollout, metadata) = (ArgoRollout::new(found), &found.metadata);
    let sentence = format!("Rollout '{}' was aborted.", target.name);
    if let Some(plan) = earlier_plan(target, metadata, &sentence, ArgoGoal::Aborted, input)? {
        return Ok(plan);
    }
    let with_uid = |refusal: ActionError| refusal.object_uid(metadata.uid.as_deref());
    check_observed(target, rollout).map_err(with_uid)?;
    if rollout.is_aborted() {
        let decision = Decision::NoOp(format!("Rollout '{}' is aborted already.", target.name));
        let completion = completion(metadata, newest_version(rollout), ArgoGoal::Aborted);
        return Ok(Plan::new(target.clone(), metadata, decision, completion));
    }
    refuse_without_update(target, rollout).map_err(with_uid)?;
    let fields = ["currentPodHash", "stableRS", "abort"];
    // An abort that is taken back leaves the value that was there before it.
    let decided_on = StatusDecision::on(rollout.metadata, rollout.status(), &fields)
        .and_owners(metadata, "abort");
    let change = StatusChange {
        decided_on,
        set: vec![("abort", json!(true))],
        participle: "aborted".to_owned(),
        goal: ArgoGoal::Aborted,
    };
    let mut plan = plan_status(target, rollout, change, input).map_err(with_uid)?;
    plan.warnings.push(
        "the pod template stays the new one: a retry continues to it, and undo_argo_rollout returns to an earlier one"
            .to_owned(),
    );
    plan.warnings.extend(switch_back_warning(rollout));
    Ok(plan)
}

/// The controller takes the abort of a Rollout back whose newest version is the stable one (`newRolloutContext` in
/// `rollout/controller.go`).
fn refuse_without_update(target: &Target, rollout: ArgoRollout) -> Result<(), ActionError> {
    if !rollout.has_stable_version() {
        return Err(no_effect(target, "has no stable version yet, to which it could return"));
    }
    if rollout.is_fully_promoted() {
        let why = "has no update in progress: its newest version is the stable one";
        return Err(no_effect(target, why));
    }
    Ok(())
}

fn switch_back_warning(rollout: ArgoRollout) -> Option<String> {
    let service = rollout.active_service().filter(|_| rollout.is_cut_over())?;
    Some(format!(
        "blue-green: Service '{service}' has the new version already, and switches back to the stable one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::error::Code, k8s::effect::Mutation};

    fn rollout(status: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}}\n\
             spec: {{template: {{}}, strategy: {{canary: {{}}}}}}\n\
             status: {{observedGeneration: '3', currentPodHash: new, {status}}}"
        ))
        .expect("is a Rollout")
    }

    fn decided(status: &str) -> Result<Plan, ActionError> {
        decide(&ROLLOUT.target("shop", "web"), &rollout(status), &PlanInput::example())
    }

    #[test]
    fn an_abort_sets_one_field_of_the_version_that_it_tests() {
        let plan = decided("stableRS: old").expect("is planned");
        let effect = plan.expect_change().0;
        let Mutation::Status { patch, decided_on, .. } = &effect.mutation else {
            panic!("{effect:?}")
        };
        let change = json!({ "op": "add", "path": "/status/abort", "value": true });
        assert_eq!(patch.0.last().map(|it| json!(it)), Some(change));
        assert_eq!(decided_on.fields["currentPodHash"], "new");
        assert!(decided_on.owned.is_some());
        assert!(plan.warnings[0].contains("undo_argo_rollout"), "{:?}", plan.warnings);
    }

    #[test]
    fn an_aborted_rollout_is_left_and_one_without_an_update_refused() {
        let plan = decided("stableRS: old, abort: true").expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        for status in ["stableRS: new", "phase: Progressing"] {
            assert_eq!(decided(status).expect_err("is refused").code, Code::NoEffect);
        }
    }
}
