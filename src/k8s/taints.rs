//! Taints of nodes, and whether pods tolerate them. Pure.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The taint by which a person says that a node is off (KEP-2268).
pub(crate) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The prefixes of the taints that the cluster itself sets and removes.
const OF_THE_CLUSTER: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// No new ones are scheduled.
    NoSchedule,
    /// New ones are scheduled only if there is no other node.
    PreferNoSchedule,
    /// No new ones are scheduled, and those that are there are deleted.
    NoExecute,
}

impl TaintEffect {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TaintEffect::NoSchedule => "NoSchedule",
            TaintEffect::PreferNoSchedule => "PreferNoSchedule",
            TaintEffect::NoExecute => "NoExecute",
        }
    }
}

/// Whether the cluster sets and removes taints with this key by itself.
pub(crate) fn is_of_the_cluster(key: &str) -> bool {
    key != OUT_OF_SERVICE && OF_THE_CLUSTER.iter().any(|prefix| key.starts_with(prefix))
}

/// The taints of the node.
pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// As kubectl writes it: `key=value:effect`, or `key:effect`.
pub(crate) fn describe(taint: &Taint) -> String {
    let Taint { key, value, effect, .. } = taint;
    match value.as_deref().unwrap_or_default() {
        "" => format!("{key}:{effect}"),
        value => format!("{key}={value}:{effect}"),
    }
}

/// Whether a pod with this toleration tolerates the taint (`ToleratesTaint` of `k8s.io/api/core/v1/toleration.go`).
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_set(&toleration.effect) && toleration.effect.as_deref() != Some(&taint.effect) {
        return false;
    }
    let operator = toleration.operator.as_deref().unwrap_or_default();
    let is_of_key = match is_set(&toleration.key) {
        true => toleration.key.as_deref() == Some(&taint.key),
        false => operator == "Exists",
    };
    let value = |text: &Option<String>| text.clone().unwrap_or_default();
    let (tolerated, found) = (value(&toleration.value), value(&taint.value));
    let numbers = || found.parse::<i64>().ok().zip(tolerated.parse::<i64>().ok());
    is_of_key
        && match operator {
            "" | "Equal" => tolerated == found,
            "Exists" => true,
            "Lt" => numbers().is_some_and(|(found, tolerated)| found < tolerated),
            "Gt" => numbers().is_some_and(|(found, tolerated)| found > tolerated),
            _ => false,
        }
}

/// After how many seconds a taint with the effect `NoExecute` ends this pod of its node; none if the pod tolerates it
/// without end. The first toleration that matches decides (`GetMatchingTolerations` of Kubernetes).
pub(crate) fn ends_after(pod: &Pod, taint: &Taint) -> Option<u64> {
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    match tolerations.find(|toleration| tolerates(toleration, taint)) {
        None => Some(0),
        Some(Toleration { toleration_seconds, .. }) => {
            toleration_seconds.map(|seconds| u64::try_from(seconds).unwrap_or(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(text: &str) -> Taint {
        serde_yaml_ng::from_str(text).expect("is a taint")
    }

    #[test]
    fn a_toleration_is_compared_as_kubernetes_compares_it() {
        let dedicated = "{key: dedicated, value: db, effect: NoExecute}";
        let sized = "{key: cores, value: '8', effect: NoExecute}";
        for (toleration, tainted, expected) in [
            ("{operator: Exists}", dedicated, true),
            ("{key: dedicated, operator: Exists}", dedicated, true),
            ("{key: dedicated, operator: Exists, effect: NoSchedule}", dedicated, false),
            ("{key: dedicated, value: db}", dedicated, true),
            ("{key: dedicated, operator: Equal, value: db, effect: NoExecute}", dedicated, true),
            ("{key: dedicated, value: web}", dedicated, false),
            ("{key: dedicated}", dedicated, false),
            ("{key: other, operator: Exists}", dedicated, false),
            ("{key: cores, operator: Gt, value: '4'}", sized, true),
            ("{key: cores, operator: Lt, value: '4'}", sized, false),
            ("{key: cores, operator: Lt, value: x}", sized, false),
        ] {
            let read: Toleration = serde_yaml_ng::from_str(toleration).expect("is one");
            assert_eq!(tolerates(&read, &taint(tainted)), expected, "{toleration}");
        }
    }

    #[test]
    fn the_first_toleration_that_matches_decides_how_long_a_pod_stays() {
        let dedicated = taint("{key: dedicated, effect: NoExecute}");
        for (tolerations, expected) in [
            ("[]", Some(0)),
            ("[{key: other, operator: Exists}]", Some(0)),
            ("[{operator: Exists}]", None),
            ("[{key: dedicated, operator: Exists, tolerationSeconds: 30}]", Some(30)),
            ("[{key: dedicated, operator: Exists, tolerationSeconds: -1}]", Some(0)),
            (
                "[{key: dedicated, operator: Exists, tolerationSeconds: 30}, {operator: Exists}]",
                Some(30),
            ),
        ] {
            let pod = format!("spec: {{containers: [], tolerations: {tolerations}}}");
            let pod: Pod = serde_yaml_ng::from_str(&pod).expect("is a pod");
            assert_eq!(ends_after(&pod, &dedicated), expected, "{tolerations}");
        }
    }

    #[test]
    fn the_clusters_own_taints_are_known_by_their_keys() {
        for (key, expected) in [
            ("node.kubernetes.io/not-ready", true),
            ("node.cloudprovider.kubernetes.io/shutdown", true),
            (OUT_OF_SERVICE, false),
            ("node-role.kubernetes.io/control-plane", false),
            ("dedicated", false),
        ] {
            assert_eq!(is_of_the_cluster(key), expected, "{key}");
        }
    }

    #[test]
    fn a_taint_is_written_as_kubectl_does() {
        assert_eq!(describe(&taint("{key: a, value: b, effect: NoExecute}")), "a=b:NoExecute");
        assert_eq!(describe(&taint("{key: a, effect: NoSchedule}")), "a:NoSchedule");
    }
}
