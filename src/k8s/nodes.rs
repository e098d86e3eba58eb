//! What nodes tell about themselves: whether pods may come, whether they are ready, who takes them out of
//! service.
//!
//! Verdicts and patches from the object alone; the calls are elsewhere.

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

use crate::contract::response::Change;

/// The taint that the node controller puts on a cordoned node, and takes away with the cordon.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What the taints begin with by which others take a node out of service: the node controller, the
/// cloud's node controller, the Cluster Autoscaler, Karpenter, and handlers of ended spot instances.
/// A taint of any other name is taken for one that dedicates the node.
const OUT_OF_SERVICE: [&str; 6] = [
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/",
    "aws-node-termination-handler/",
];

/// Where it says that no new pods come.
const UNSCHEDULABLE_POINTER: &str = "/spec/unschedulable";

/// Whether the node is cordoned: no new pods come.
#[must_use]
pub fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// The patch that cordons the node, or ends that (`kubectl cordon`, `kubectl uncordon`).
#[must_use]
pub fn cordon_patch(cordoned: bool) -> Value {
    // Null takes the field away, as kubectl does.
    json!({ "spec": { "unschedulable": if cordoned { json!(true) } else { Value::Null } } })
}

/// What that patch changes.
#[must_use]
pub fn cordon_change(cordoned: bool) -> Change {
    let (from, to) = if cordoned { (Value::Null, json!(true)) } else { (json!(true), Value::Null) };
    Change { path: UNSCHEDULABLE_POINTER.to_owned(), from, to }
}

/// The fields that select the nodes, this one left out, to which new pods may come.
#[must_use]
pub fn other_schedulable(name: &str) -> String {
    format!("spec.unschedulable=false,metadata.name!={name}")
}

/// Why the node is not ready, if it is not: its condition's reason, or that it has none.
#[must_use]
pub fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(condition.reason.clone().unwrap_or_else(|| "unknown".to_owned())),
        None => Some("its kubelet has not reported".to_owned()),
    }
}

/// The taints, as `key:effect`, by which others take the node out of service, the cordon's own left out.
#[must_use]
pub fn out_of_service(node: &Node) -> Vec<String> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let others = taints.filter(|Taint { key, .. }| {
        key != UNSCHEDULABLE && OUT_OF_SERVICE.iter().any(|begin| key.starts_with(begin))
    });
    others.map(|Taint { key, effect, .. }| format!("{key}:{effect}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(yaml).expect("is a Node")
    }

    #[test]
    fn a_node_is_cordoned_if_it_says_so() {
        assert!(is_cordoned(&node("spec: {unschedulable: true}")));
        assert!(!is_cordoned(&node("spec: {unschedulable: false}")));
        assert!(!is_cordoned(&node("metadata: {name: n1}")));
    }

    #[test]
    fn a_node_is_ready_only_if_its_condition_says_true() {
        let with = |condition: &str| {
            not_ready(&node(&format!("status: {{conditions: [{{type: Ready, {condition}}}]}}")))
        };
        assert_eq!(with("status: 'True'"), None);
        assert_eq!(
            with("status: Unknown, reason: NodeStatusUnknown").as_deref(),
            Some("NodeStatusUnknown")
        );
        assert!(not_ready(&node("metadata: {name: n1}")).is_some());
    }

    #[test]
    fn tells_who_takes_it_out_of_service_and_not_what_dedicates_it() {
        let tainted = node(
            "spec: {taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}, \
             {key: nvidia.com/gpu, effect: NoSchedule}, \
             {key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}, \
             {key: node.kubernetes.io/not-ready, effect: NoExecute}]}",
        );
        assert_eq!(
            out_of_service(&tainted),
            ["ToBeDeletedByClusterAutoscaler:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]
        );
    }
}
