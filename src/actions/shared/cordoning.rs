//! What `cordon` and `uncordon` have in common: the field of the node that keeps new pods off, what it
//! changes, and what to warn of.

use k8s_openapi::api::core::v1::Node;
use kube::api::ApiResource;

use crate::{
    actions::{Asked, CompletionOf, Plan, Preview, Todo},
    contract::{
        error::ActionError,
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::{completion::Completion, mutation::Effect},
        applied_requests::Marks,
        nodes,
    },
};

/// The node of this name.
pub(crate) fn target(name: &str) -> Target {
    Target::named("v1", "Node", "", name)
}

/// What can be said without a cluster.
pub(crate) fn preview(name: &str, cordoned: bool, asked: &Asked) -> Preview {
    let changes = vec![nodes::cordon_change(cordoned), Marks::default().change(&asked.id)];
    Preview { result: would(name, cordoned), changes }
}

/// From the node as it was read to what is to be done, so that it is cordoned or is not.
pub(crate) fn decide(node: &Node, cordoned: bool, asked: &Asked) -> Result<Plan, ActionError> {
    let found = &node.metadata;
    let name = found.name.as_deref().unwrap_or_default();
    let target = target(name);
    let did = format!("Node '{name}' {} at {}.", word(cordoned), rfc3339_millis(asked.at));
    let completion = CompletionOf::Known(Completion::AtOnce(state(name, cordoned)));
    if Marks::on(found).hold(&asked.id) {
        return Ok(Plan::already_made(target, found, did, completion));
    }
    asked.check_found(&target, found)?;
    if nodes::is_cordoned(node) == cordoned {
        let was = if cordoned { "is cordoned already" } else { "is not cordoned" };
        let todo = Todo::Nothing(format!("Node '{name}' {was}."));
        return Ok(Plan::new(target, found, todo, completion));
    }
    let todo = Todo::Make(Box::new(effect(node, cordoned, asked)), did, would(name, cordoned));
    let mut plan = Plan::new(target, found, todo, completion);
    plan.changes = changes(node, cordoned, asked);
    Ok(plan)
}

/// The change of the node, which leaves this request's mark even where it changes nothing else.
pub(crate) fn effect(node: &Node, cordoned: bool, asked: &Asked) -> Effect {
    let resource = ApiResource::erase::<Node>(&());
    Effect::patch(resource, &node.metadata, &asked.id, nodes::cordon_patch(cordoned))
}

pub(crate) fn changes(node: &Node, cordoned: bool, asked: &Asked) -> Vec<Change> {
    let field = (nodes::is_cordoned(node) != cordoned).then(|| nodes::cordon_change(cordoned));
    field.into_iter().chain([Marks::on(&node.metadata).change(&asked.id)]).collect()
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
