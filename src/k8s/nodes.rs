//! What a Node says: whether it is cordoned, ready, or tainted out of service. Pure.

use k8s_openapi::api::core::v1::{Node, Taint};

/// The taint that the node controller sets on a cordoned node, and removes with the cordon.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The prefixes of the taints that take a node out of service: set by the node controller, the cloud's
/// node controller, the Cluster Autoscaler, Karpenter, and handlers of ended spot instances. Any other
/// taint is regarded as one that dedicates the node.
const OUT_OF_SERVICE: [&str; 6] = [
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/",
    "aws-node-termination-handler/",
];

pub(crate) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// The field selector of the other nodes that accept new pods.
pub(crate) fn other_schedulable(name: &str) -> String {
    format!("spec.unschedulable=false,metadata.name!={name}")
}

/// The warning about a node that is not ready.
pub(crate) fn not_ready_warning(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let reason = match ready {
        Some(condition) if condition.status == "True" => return None,
        Some(condition) => condition.reason.as_deref().unwrap_or("unknown"),
        None => "its kubelet has not reported",
    };
    Some(format!("the node is not ready: {reason}"))
}

/// The taints, as `key:effect`, that take the node out of service, except that of a cordon.
pub(crate) fn out_of_service_taints(node: &Node) -> Vec<String> {
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
    fn a_node_is_cordoned_if_its_spec_says_so() {
        assert!(is_cordoned(&node("spec: {unschedulable: true}")));
        assert!(!is_cordoned(&node("spec: {unschedulable: false}")));
        assert!(!is_cordoned(&node("metadata: {name: n1}")));
    }

    #[test]
    fn a_node_is_ready_only_if_its_condition_is_true() {
        let with = |condition: &str| {
            not_ready_warning(&node(&format!(
                "status: {{conditions: [{{type: Ready, {condition}}}]}}"
            )))
        };
        assert_eq!(with("status: 'True'"), None);
        assert_eq!(
            with("status: Unknown, reason: NodeStatusUnknown").as_deref(),
            Some("the node is not ready: NodeStatusUnknown")
        );
        assert!(not_ready_warning(&node("metadata: {name: n1}")).is_some());
    }

    #[test]
    fn taints_that_dedicate_a_node_do_not_take_it_out_of_service() {
        let tainted = node(
            "spec: {taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}, \
             {key: nvidia.com/gpu, effect: NoSchedule}, \
             {key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}, \
             {key: node.kubernetes.io/not-ready, effect: NoExecute}]}",
        );
        assert_eq!(
            out_of_service_taints(&tainted),
            ["ToBeDeletedByClusterAutoscaler:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]
        );
    }
}
