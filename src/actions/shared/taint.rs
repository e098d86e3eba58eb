//! What `taint` and `untaint` have in common: the keys, and the patch of a node's whole list of taints. Must not depend
//! on one of them.

use json_patch::{PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::ApiResource;
use serde_json::{Value, json};

use crate::{
    actions::{ChangedKeys, KeysOf, PlanInput},
    contract::{
        error::ActionError,
        names::{QualifiedName, is_own_key},
        response::{Change, Target},
    },
    k8s::{
        applied_requests::AppliedRequests,
        conditional_patch::{add, remove, test},
        effect::Effect,
        taints::{self, is_of_the_cluster},
    },
};

pub(crate) fn target(node: &str) -> Target {
    Target::named("v1", "Node", "", node)
}

pub(crate) fn changed_keys(key: &QualifiedName) -> ChangedKeys<'_> {
    ChangedKeys { of: KeysOf::Taints, set: None, others: std::slice::from_ref(key) }
}

/// # Errors
/// `Code::InvalidRequest` for a key that only the cluster or this program sets.
pub(crate) fn check_key(key: &str) -> Result<(), ActionError> {
    let what = match () {
        () if is_of_the_cluster(key) => "is set and removed by the cluster itself",
        () if is_own_key(key) => "is a key of this program, which no action changes",
        () => return Ok(()),
    };
    Err(ActionError::invalid_field("parameters.key", what))
}

/// The patch of the node's taints. All of them must be as they were read, since a node has no generation.
pub(crate) fn effect(node: &Node, after: &[Taint], input: &PlanInput) -> Effect {
    let path = ["spec", "taints"];
    let (read, precondition) = (taints::taints(node), input.precondition.as_ref());
    // The API server leaves out an empty list.
    let list = |taints: &[Taint]| if taints.is_empty() { Value::Null } else { json!(taints) };
    let change = match after {
        [] => remove(&path),
        after => add(&path, json!(after)),
    };
    let operations: Vec<PatchOperation> = vec![test(&path, list(read)), change];
    let resource = ApiResource::erase::<Node>(&());
    Effect::patch(resource, &node.metadata, &input.mark, precondition, operations)
}

/// How the value of one taint changes; null where there is no such taint.
pub(crate) fn change(before: Option<&Taint>, after: Option<&Taint>) -> Change {
    let name = before.or(after).map(|Taint { key, effect, .. }| format!("{key}:{effect}"));
    let value = |taint: Option<&Taint>| match taint {
        Some(taint) => taint.value.clone().unwrap_or_default().into(),
        None => Value::Null,
    };
    let tokens = ["spec".to_owned(), "taints".to_owned(), name.unwrap_or_default()];
    let path = PointerBuf::from_tokens(&tokens).to_string();
    Change { path, from: value(before), to: value(after) }
}

/// How the request's mark changes the node's annotation.
pub(crate) fn mark_change(node: &Node, input: &PlanInput) -> Change {
    AppliedRequests::from_metadata(&node.metadata).change(&input.mark)
}
