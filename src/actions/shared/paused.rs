//! What pausing and resuming a rollout have in common: the one field that both set.

use serde_json::json;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        error::ActionError,
        response::{Change, Target},
    },
    k8s::{api::mutation::Effect, applied_requests::AppliedRequests, workload::Workload},
};

/// Where the field stands (RFC 6901).
const PAUSED_POINTER: &str = "/spec/paused";

/// What can be said without a cluster.
pub(crate) fn preview(name: &str, paused: bool, asked: &PlanInput) -> Preview {
    Preview {
        result: would(name, paused),
        changes: changes(&AppliedRequests::default(), paused, asked),
    }
}

/// From the Deployment as it was read to what is to be done, so that it is paused or not, as after
/// `kubectl rollout pause` and `resume`. `warnings` are for the case that this is a change.
pub(crate) fn decide(
    target: Target,
    deployment: &Workload,
    paused: bool,
    completion: CompletionSpec,
    warnings: Vec<String>,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let (found, name) = (deployment.metadata(), target.name.clone());
    let marks = AppliedRequests::from_metadata(found);
    let did = format!("Deployment '{name}' {}.", participle(paused));
    if marks.contains(&asked.id) {
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    if deployment.is_paused() == paused {
        let state = if paused { "is paused already" } else { "is not paused" };
        let todo = Decision::NoOp(format!("Deployment '{name}' {state}."));
        return Ok(Plan::new(target, found, todo, completion));
    }
    let patch = json!({ "spec": { "paused": paused } });
    let effect = Effect::patch(deployment.kind().resource(), found, &asked.id, patch);
    let todo = Decision::Apply(Box::new(effect), did, would(&name, paused));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = changes(&marks, paused, asked);
    plan.warnings = warnings;
    Ok(plan)
}

/// What the patch changes, with the mark that every change leaves.
fn changes(marks: &AppliedRequests, paused: bool, asked: &PlanInput) -> Vec<Change> {
    let path = PAUSED_POINTER.to_owned();
    let field = Change { path, from: (!paused).into(), to: paused.into() };
    vec![field, marks.change(&asked.id)]
}

fn would(name: &str, paused: bool) -> String {
    format!("Simulated: Deployment '{name}' would be {}.", participle(paused))
}

fn participle(paused: bool) -> &'static str {
    if paused { "paused" } else { "resumed" }
}
