//! What `cordon` and `uncordon` have in common: the field of the node that keeps new pods off, what it
//! changes, and what to warn of.

use k8s_openapi::api::core::v1::Node;
use kube::api::ApiResource;

use crate::{
    actions::{CompletionSpec, Decision, Plan, PlanInput, Preview},
    contract::{
        error::ActionError,
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{completion::Completion, mutation::Effect},
        applied_requests::AppliedRequests,
        nodes,
    },
};

/// The node of this name.
pub(crate) fn target(name: &str) -> Target {
    Target::named("v1", "Node", "", name)
}

/// What can be said without a cluster.
pub(crate) fn preview(name: &str, cordoned: bool, asked: &PlanInput) -> Preview {
    let changes =
        vec![nodes::cordon_change(cordoned), AppliedRequests::default().change(&asked.id)];
    Preview { result: would(name, cordoned), changes }
}

/// From the node as it was read to what is to be done, so that it is cordoned or is not.
pub(crate) fn decide(node: &Node, cordoned: bool, asked: &PlanInput) -> Result<Plan, ActionError> {
    let found = &node.metadata;
    let name = found.name.as_deref().unwrap_or_default();
    let target = target(name);
    let did = format!("Node '{name}' {} at {}.", word(cordoned), rfc3339_millis(asked.at));
    let completion = CompletionSpec::Known(Completion::Immediate(state(name, cordoned)));
    if AppliedRequests::from_metadata(found).contains(&asked.id) {
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    if nodes::is_cordoned(node) == cordoned {
        let was = if cordoned { "is cordoned already" } else { "is not cordoned" };
        let todo = Decision::NoOp(format!("Node '{name}' {was}."));
        return Ok(Plan::new(target, found, todo, completion));
    }
    let todo = Decision::Apply(Box::new(effect(node, cordoned, asked)), did, would(name, cordoned));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = changes(node, cordoned, asked);
    Ok(plan)
}

/// The change of the node, which leaves this request's mark even where it changes nothing else.
pub(crate) fn effect(node: &Node, cordoned: bool, asked: &PlanInput) -> Effect {
    let resource = ApiResource::erase::<Node>(&());
    Effect::patch(resource, &node.metadata, &asked.id, nodes::cordon_patch(cordoned))
}

pub(crate) fn changes(node: &Node, cordoned: bool, asked: &PlanInput) -> Vec<Change> {
    let field = (nodes::is_cordoned(node) != cordoned).then(|| nodes::cordon_change(cordoned));
    field
        .into_iter()
        .chain([AppliedRequests::from_metadata(&node.metadata).change(&asked.id)])
        .collect()
}

fn word(cordoned: bool) -> &'static str {
    if cordoned { "cordoned" } else { "uncordoned" }
}

fn state(name: &str, cordoned: bool) -> String {
    match cordoned {
        true => format!("no new pods come to Node '{name}', and those that are there stay"),
        false => format!("new pods may come to Node '{name}'"),
    }
}

fn would(name: &str, cordoned: bool) -> String {
    format!("Simulated: Node '{name}' would be {}.", word(cordoned))
}

/// Why the node may be of no use to anybody who wants it to take pods.
pub(crate) fn not_ready(node: &Node) -> Option<String> {
    let why = nodes::not_ready(node)?;
    Some(format!("the node is not ready: {why}"))
}
