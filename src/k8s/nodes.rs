//! What a Node says: whether it is cordoned, ready, or tainted out of service. Pure.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint, Toleration};

use crate::k8s::taints::{self, TaintEffect};

/// The taint that the node controller sets on a cordoned node, and removes with the cordon.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// How long pods stay on a node that is not ready before they are deleted (`DefaultTolerationSeconds` of Kubernetes).
const EVICTION_TIMEOUT: TimeDelta = TimeDelta::seconds(300);

/// What follows when a kubelet does not report, and what to do.
const LOST: &str = "the containers of deleted pods are not stopped, and the pods stay until it reports again. If the \
                    machine is gone, delete the Node object; if it is certainly off, taint it with \
                    node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

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

/// Whether the scheduler assigns pods with this toleration to a cordoned node (`ToleratesTaint` of Kubernetes, for the
/// taint that the scheduler adds for a cordon).
pub(crate) fn tolerates_cordon(toleration: &Toleration) -> bool {
    let taint = Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: TaintEffect::NoSchedule.name().to_owned(),
        ..Taint::default()
    };
    taints::tolerates(toleration, &taint)
}

/// Whether the node controller set the taint for a cordon.
pub(crate) fn is_of_the_cordon(taint: &Taint) -> bool {
    taint.key == UNSCHEDULABLE
}

/// The field selector of the other nodes that accept new pods.
pub(crate) fn other_schedulable(name: &str) -> String {
    format!("spec.unschedulable=false,metadata.name!={name}")
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")
}

/// The warning about a node that is not ready.
pub(crate) fn not_ready_warning(node: &Node) -> Option<String> {
    let reason = match ready_condition(node) {
        Some(condition) if condition.status == "True" => return None,
        Some(condition) => condition.reason.as_deref().unwrap_or("unknown"),
        None => "its kubelet has not reported",
    };
    Some(format!("the node is not ready: {reason}"))
}

/// Why no kubelet carries out the deletion of this node's pods; or why one may.
///
/// # Errors
/// The latter.
pub(crate) fn unattended(node: &Node, now: DateTime<Utc>) -> Result<String, String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if let Some(taint) = taints::taints(node).iter().find(|it| it.key == taints::OUT_OF_SERVICE) {
        return Ok(format!("its Node '{name}' has the taint {}", taints::describe(taint)));
    }
    let ready = ready_condition(node);
    let since = match ready.and_then(|it| it.last_transition_time.as_ref()) {
        _ if ready.is_some_and(|it| it.status == "True") => {
            return Err(format!("Node '{name}' is ready"));
        }
        None => return Err(format!("the kubelet of Node '{name}' has never reported")),
        Some(since) => DateTime::from_timestamp(since.0.as_second(), 0).unwrap_or(now),
    };
    let since_text = since.to_rfc3339_opts(SecondsFormat::Secs, true);
    let limit = EVICTION_TIMEOUT.num_seconds();
    match now - since >= EVICTION_TIMEOUT {
        true => Ok(format!("its Node '{name}' is not ready since {since_text}")),
        false => Err(format!(
            "Node '{name}' is not ready since {since_text}, which is less than {limit} s"
        )),
    }
}

/// The warning about a node whose kubelet does not report, so that the deletion of its pods is not carried out. The
/// node controller notices it (`NodeStatusUnknown`).
pub(crate) fn lost_warning(node: &Node) -> Option<String> {
    let unknown = ready_condition(node).filter(|condition| condition.status == "Unknown")?;
    let since = unknown.last_heartbeat_time.as_ref().or(unknown.last_transition_time.as_ref());
    let since = since.map(|since| format!(" since {}", since.0)).unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    Some(format!("the kubelet of Node '{name}' has not reported{since}: {LOST}"))
}

/// The warning about the node of a pod that the node controller marked as not ready at this time, although its
/// containers are ready, as it does once the kubelet does not report.
pub(crate) fn may_be_lost_warning(name: &str, at: &str) -> String {
    format!(
        "the node controller marked the pod as not ready at {at}, so the kubelet of Node '{name}' may not report any \
         more: then {LOST}"
    )
}

/// The taints, in the form `key:effect`, that take the node out of service, except that of a cordon.
pub(crate) fn out_of_service_taints(node: &Node) -> Vec<String> {
    let others = taints::taints(node).iter().filter(|Taint { key, .. }| {
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

    #[test]
    fn a_toleration_of_the_cordon_is_recognised() {
        for (toleration, expected) in [
            ("{operator: Exists}", true),
            ("{operator: Exists, effect: NoSchedule}", true),
            ("{operator: Exists, effect: NoExecute}", false),
            ("{key: node.kubernetes.io/unschedulable}", true),
            ("{key: node.kubernetes.io/unschedulable, value: x}", false),
            ("{key: node.kubernetes.io/unschedulable, operator: Exists}", true),
            ("{key: kwok.x-k8s.io/node, operator: Exists}", false),
            ("{key: node.kubernetes.io/unschedulable, operator: Lt, value: '5'}", false),
        ] {
            let read = serde_yaml_ng::from_str(toleration).expect("is a toleration");
            assert_eq!(tolerates_cordon(&read), expected, "{toleration}");
        }
    }

    #[test]
    fn a_node_is_lost_if_its_state_is_unknown() {
        let with = |condition: &str| {
            lost_warning(&node(&format!(
                "metadata: {{name: n1}}\nstatus: {{conditions: [{{type: Ready, {condition}}}]}}"
            )))
        };
        assert_eq!(with("status: 'True'"), None);
        assert_eq!(with("status: 'False', reason: KubeletNotReady"), None);
        let warning = with(
            "status: Unknown, lastHeartbeatTime: '2026-01-31T12:00:00Z', \
             lastTransitionTime: '2026-01-31T12:00:50Z'",
        );
        let warning = warning.expect("is warned of");
        assert!(warning.contains("not reported since 2026-01-31T12:00:00Z"), "{warning}");
        assert!(warning.contains("out-of-service"), "{warning}");
    }
}
