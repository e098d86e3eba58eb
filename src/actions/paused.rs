//! What pausing and resuming a rollout have in common: the one field that both set.

use serde_json::json;

use super::Asked;
use crate::{
    k8s::{effect::Effect, marks::Marks, workload::Workload},
    response::Change,
};

/// Where the field stands (RFC 6901).
const PAUSED_POINTER: &str = "/spec/paused";

/// The patch of the Deployment, as `kubectl rollout pause` and `resume` make it.
pub(super) fn patch(deployment: &Workload, paused: bool, asked: &Asked) -> Effect {
    let (resource, found) = (deployment.kind().resource(), deployment.metadata());
    Effect::patch(resource, found, &asked.id, json!({ "spec": { "paused": paused } }))
}

/// What the patch changes, with the mark that every change leaves.
pub(super) fn changes(marks: &Marks, paused: bool, asked: &Asked) -> Vec<Change> {
    let path = PAUSED_POINTER.to_owned();
    let field = Change { path, from: (!paused).into(), to: paused.into() };
    vec![field, marks.change(&asked.id)]
}
