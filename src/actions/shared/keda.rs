//! What the actions that pause and resume KEDA's scaling have in common.

use kube::api::DynamicObject;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, shared::annotations},
    contract::{
        error::ActionError,
        response::{Target, rfc3339_millis},
    },
    k8s::{
        applied_requests::AppliedRequests,
        completion::Completion,
        conditions::Condition,
        effect::Effect,
        keda::{KedaKind, Pause},
        rbac::PolicyRule,
    },
};

pub(crate) const RULE: PolicyRule = PolicyRule {
    api_groups: &["keda.sh"],
    resources: &["scaledobjects", "scaledjobs"],
    verbs: &["get", "patch", "watch"],
};

/// A change of the annotations that pause an object.
pub(crate) struct PauseChange<'a> {
    pub kind: KedaKind,
    pub target: Target,
    /// How it is paused afterwards.
    pub pause: Pause,
    /// The annotations that differ; none if it is paused so already.
    pub entries: Vec<annotations::Entry<'a>>,
    /// For example `paused at 3 replicas`.
    pub participle: String,
    /// The sentence if nothing differs.
    pub already: String,
}

impl PauseChange<'_> {
    /// The plan, without warnings.
    pub(crate) fn decide(
        self,
        found: &DynamicObject,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (metadata, target) = (&found.metadata, self.target);
        let completion = CompletionSpec::Known(Completion::ScalingPaused {
            kind: self.kind,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: metadata.uid.clone().unwrap_or_default(),
            pause: self.pause,
        });
        let object = format!("{} '{}'", target.kind, target.name);
        let did = format!("{object} {} at {}.", self.participle, rfc3339_millis(input.at));
        if input.has_changed(metadata)? {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        if self.entries.is_empty() {
            let decision = Decision::NoOp(self.already);
            return Ok(Plan::new(target, metadata, decision, completion));
        }
        let effect = Effect::metadata_patch(
            self.kind.custom().resource(),
            metadata,
            &input.mark,
            input.precondition.as_ref(),
            annotations::operations(metadata, &self.entries),
        );
        let would = format!("Simulated: {object} would be {}.", self.participle);
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, metadata, decision, completion);
        plan.changes = annotations::changes(metadata, &self.entries);
        plan.changes.push(AppliedRequests::from_metadata(metadata).change_beside(&input.mark));
        plan.warnings.extend(unknown_to_keda(found));
        Ok(plan)
    }
}

/// KEDA 2.11 and newer write the Paused condition to each object that they know (`AreInitialized` in
/// `apis/keda/v1alpha1/condition_types.go`).
fn unknown_to_keda(found: &DynamicObject) -> Option<String> {
    Condition::of(&found.data, "Paused").is_none().then(|| {
        "KEDA has written no Paused condition to it: either KEDA does not run, or it is older than 2.11 and may ignore \
         the annotation"
            .to_owned()
    })
}
