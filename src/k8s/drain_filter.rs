//! Which pods of a node are evicted by a drain, which are skipped, and which block it. Pure.
//!
//! The filters and their order are kubectl's (`pkg/drain/filters.go`). The pods to evict are data, so that
//! another process can resume the drain.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{api::ListParams, core::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::{
    contract::digest::sha256,
    k8s::{applied_requests, nodes, pod_set::PodSet, pods},
};

/// The grace period of a pod that names none.
const DEFAULT_GRACE_PERIOD_SECONDS: i64 = 30;

/// What the request accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DrainOptions {
    /// That pods without a controller do not come back.
    pub unmanaged: bool,
    /// That pods of DaemonSets stay.
    pub daemon_sets: bool,
    /// That data in emptyDir volumes is lost.
    pub empty_dir_data: bool,
    /// That pods stay that were deleted more than so many seconds ago.
    pub deleted_for: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FilterResult {
    /// It is evicted, with what was accepted for that.
    Evict(Vec<BlockReason>),
    /// It stays.
    Skip(SkipReason),
    /// It blocks the drain.
    Block(BlockReason),
}

/// Why a pod stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SkipReason {
    /// It was deleted long ago.
    Deleted,
    /// Its DaemonSet would recreate it at once on the same node.
    DaemonSet,
    /// It is the mirror of a static pod.
    Mirror,
}

/// Why a pod blocks the drain unless that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BlockReason {
    /// Its DaemonSet would recreate it at once.
    DaemonSet,
    /// Its DaemonSet does not exist.
    DaemonSetMissing,
    /// The data in its emptyDir volumes would be lost.
    EmptyDir,
    /// No controller would recreate it.
    Unmanaged,
}

/// `daemon_set_exists` is about the DaemonSet that owns the pod, if one does.
pub(crate) fn classify(
    pod: &Pod,
    options: &DrainOptions,
    daemon_set_exists: bool,
    now: DateTime<Utc>,
) -> FilterResult {
    if is_deleted_for_long(&pod.metadata, options.deleted_for, now) {
        return FilterResult::Skip(SkipReason::Deleted);
    }
    let mut accepted = Vec::new();
    let mut accept = |reason: BlockReason, is_accepted: bool| {
        accepted.push(reason);
        is_accepted
    };
    if daemon_set(pod).is_some() {
        if daemon_set_exists {
            return match options.daemon_sets {
                true => FilterResult::Skip(SkipReason::DaemonSet),
                false => FilterResult::Block(BlockReason::DaemonSet),
            };
        }
        if !accept(BlockReason::DaemonSetMissing, options.unmanaged) {
            return FilterResult::Block(BlockReason::DaemonSetMissing);
        }
    }
    if pods::is_mirror(pod) {
        return FilterResult::Skip(SkipReason::Mirror);
    }
    let finished = pods::has_finished(pod);
    if !finished && has_empty_dir(pod) && !accept(BlockReason::EmptyDir, options.empty_dir_data) {
        return FilterResult::Block(BlockReason::EmptyDir);
    }
    if !finished
        && pods::controller(pod).is_none()
        && !accept(BlockReason::Unmanaged, options.unmanaged)
    {
        return FilterResult::Block(BlockReason::Unmanaged);
    }
    FilterResult::Evict(accepted)
}

/// What is lost with a running pod, however it is removed, apart from its place on the node.
pub(crate) fn losses(pod: &Pod) -> impl Iterator<Item = BlockReason> {
    let runs = !pods::has_finished(pod);
    let data = (runs && has_empty_dir(pod)).then_some(BlockReason::EmptyDir);
    let unmanaged = runs && pods::controller(pod).is_none();
    data.into_iter().chain(unmanaged.then_some(BlockReason::Unmanaged))
}

/// The DaemonSet that owns the pod; none for a pod that has finished, which is evicted in any case.
pub(crate) fn daemon_set(pod: &Pod) -> Option<&OwnerReference> {
    let owner = pods::controller(pod).filter(|owner| owner.kind == "DaemonSet")?;
    (!pods::has_finished(pod)).then_some(owner)
}

/// Whether the DaemonSet is one of Kubernetes itself, whose existence can be checked. Of another API group (OpenKruise
/// has one) it is taken for granted; kubectl does not find it, and demands `--force`.
pub(crate) fn is_built_in(daemon_set: &OwnerReference) -> bool {
    daemon_set.api_version.starts_with("apps/")
}

/// Whether the pod's grace period ended more than so many seconds ago.
pub(crate) fn is_deleted_for_long(
    metadata: &ObjectMeta,
    seconds: Option<u32>,
    now: DateTime<Utc>,
) -> bool {
    let (Some(deleted), Some(seconds)) = (&metadata.deletion_timestamp, seconds) else {
        return false;
    };
    let deleted = DateTime::from_timestamp(deleted.0.as_second(), 0).unwrap_or(now);
    seconds > 0 && now - deleted > TimeDelta::seconds(i64::from(seconds))
}

/// Whether a pod came onto its node in spite of the cordon, which was seen at `since`: it tolerates the cordon, or it
/// was created later, for this node by name. Once evicted, such a pod is replaced on the same node again.
pub(crate) fn ignores_cordon(pod: &Pod, since: DateTime<Utc>) -> bool {
    let created = pod.metadata.creation_timestamp.as_ref();
    tolerates_cordon(pod)
        || created.is_some_and(|created| created.0.as_second() > since.timestamp())
}

pub(crate) fn tolerates_cordon(pod: &Pod) -> bool {
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.any(nodes::tolerates_cordon)
}

/// The annotation by which a pod asks autoscalers not to move it, if it has one: of the Cluster Autoscaler, of
/// Karpenter, and of Karpenter before its version 1. A manual eviction ignores it.
pub(crate) fn disruption_objection(metadata: &ObjectMeta) -> Option<&'static str> {
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).map(String::as_str);
    if annotation("cluster-autoscaler.kubernetes.io/safe-to-evict") == Some("false") {
        return Some("cluster-autoscaler.kubernetes.io/safe-to-evict: \"false\"");
    }
    let objects = |key| annotation(key).is_some_and(|value| !matches!(value, "" | "false"));
    ["karpenter.sh/do-not-disrupt", "karpenter.sh/do-not-evict"].into_iter().find(|it| objects(it))
}

/// How many seconds the pod may take to stop, if that is longer than a wait. `requested` replaces its own time.
pub(crate) fn grace_period_beyond(
    pod: &Pod,
    requested: Option<u32>,
    wait: std::time::Duration,
) -> Option<u64> {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let own = u64::try_from(own.unwrap_or(DEFAULT_GRACE_PERIOD_SECONDS)).unwrap_or(0);
    let seconds = requested.map_or(own, u64::from);
    (!pods::has_finished(pod) && seconds > wait.as_secs()).then_some(seconds)
}

/// Selects the pods of a node, all or those with these labels.
pub(crate) fn pods_of(node: &str, selector: Option<&str>) -> ListParams {
    let all = ListParams::default().fields(&format!("spec.nodeName={node}"));
    match selector {
        Some(selector) => all.labels(selector),
        None => all,
    }
}

/// The PVC, in the form `namespace/name`, of a volume that exists on one node only: a directory or a disk of the
/// node, or a volume that is bound to a node by name.
pub(crate) fn local_pvc(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    let claim = spec.claim_ref.as_ref()?;
    let affinity = spec.node_affinity.as_ref().and_then(|it| it.required.as_ref());
    let terms = affinity.iter().flat_map(|it| &it.node_selector_terms);
    let by_name = terms
        .flat_map(|term| term.match_expressions.iter().flatten())
        .any(|expression| expression.key == "kubernetes.io/hostname");
    let local = spec.local.is_some() || spec.host_path.is_some() || by_name;
    local.then(|| {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}/{}", part(&claim.namespace), part(&claim.name))
    })
}

fn has_empty_dir(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| volume.empty_dir.is_some())
}

impl SkipReason {
    pub(crate) fn description(self) -> &'static str {
        match self {
            SkipReason::Deleted => "deleted long ago",
            SkipReason::DaemonSet => "of DaemonSets",
            SkipReason::Mirror => "static",
        }
    }
}

impl BlockReason {
    /// What such pods are, and what their eviction would mean.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            BlockReason::DaemonSet => "of a DaemonSet, which would recreate them at once",
            BlockReason::DaemonSetMissing => "of a DaemonSet that does not exist",
            BlockReason::EmptyDir => "with data in emptyDir volumes, which would be lost",
            BlockReason::Unmanaged => "without a controller, which would not come back",
        }
    }

    /// The parameter that accepts it, with its value.
    pub(crate) fn accepting_parameter(self) -> &'static str {
        match self {
            BlockReason::DaemonSet => "ignore_daemonsets: true",
            BlockReason::DaemonSetMissing | BlockReason::Unmanaged => "force: true",
            BlockReason::EmptyDir => "delete_empty_dir_data: true",
        }
    }
}

/// The pods to evict once the node is cordoned, and how.
///
/// The record has the set, and the node has its mark ([`EvictionSet::mark`]), since more accounts may write records
/// than nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct EvictionSet {
    /// Pods whose eviction no disruption budget could refuse when they were read.
    pub unprotected: PodSet,
    /// Pods whose eviction a disruption budget can refuse.
    pub protected: PodSet,
    /// Pods that stay.
    pub skipped: PodSet,
    /// The label selector of the pods to evict, if the request has one.
    pub selector: Option<String>,
    /// What the request accepts, by which pods are judged that come later.
    pub options: DrainOptions,
    /// Replaces the pods' own grace periods.
    pub grace_period_seconds: Option<u32>,
    /// Whether the node is uncordoned if the drain fails.
    pub uncordon_on_failure: bool,
}

impl EvictionSet {
    pub(crate) fn contains(&self, pod: &ObjectMeta) -> bool {
        self.unprotected.contains(pod) || self.protected.contains(pod)
    }

    pub(crate) fn is_unprotected(&self, pod: &ObjectMeta) -> bool {
        self.unprotected.contains(pod)
    }

    pub(crate) fn is_skipped(&self, pod: &ObjectMeta) -> bool {
        self.skipped.contains(pod)
    }

    pub(crate) fn count(&self) -> usize {
        self.unprotected.len() + self.protected.len()
    }

    /// What the node shows of this set once the request with this mark has cordoned it.
    pub(crate) fn mark(&self, request_mark: &str) -> String {
        let whole = serde_json::json!([request_mark, self]).to_string();
        applied_requests::mark(applied_requests::id_of(request_mark), &sha256(whole.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNED: &str = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: r, \
                         controller: true}]";
    const OF_A_DAEMON_SET: &str = "ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, \
                                   name: agent, uid: d, controller: true}]";
    const EMPTY_DIR: &str = "spec: {containers: [], volumes: [{name: tmp, emptyDir: {}}]}";

    fn pod(metadata: &str, rest: &str) -> Pod {
        let text = format!("metadata: {{name: a, namespace: shop, {metadata}}}\n{rest}");
        serde_yaml_ng::from_str(&text).expect("is a pod")
    }

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:01:00Z".parse().expect("is a time")
    }

    fn filter(pod: &Pod, options: DrainOptions) -> FilterResult {
        classify(pod, &options, true, now())
    }

    fn no_options() -> DrainOptions {
        DrainOptions::default()
    }

    fn all_options() -> DrainOptions {
        DrainOptions {
            unmanaged: true,
            daemon_sets: true,
            empty_dir_data: true,
            deleted_for: Some(30),
        }
    }

    #[test]
    fn a_managed_pod_is_evicted() {
        assert_eq!(filter(&pod(OWNED, ""), no_options()), FilterResult::Evict(vec![]));
    }

    #[test]
    fn an_unmanaged_pod_blocks_unless_accepted() {
        let bare = pod("labels: {app: web}", "");
        assert_eq!(filter(&bare, no_options()), FilterResult::Block(BlockReason::Unmanaged));
        assert_eq!(filter(&bare, all_options()), FilterResult::Evict(vec![BlockReason::Unmanaged]));
    }

    #[test]
    fn a_pod_with_local_data_blocks_unless_accepted() {
        let with_data = pod(OWNED, EMPTY_DIR);
        assert_eq!(filter(&with_data, no_options()), FilterResult::Block(BlockReason::EmptyDir));
        assert_eq!(
            filter(&with_data, all_options()),
            FilterResult::Evict(vec![BlockReason::EmptyDir])
        );
    }

    #[test]
    fn a_pod_of_an_existing_daemon_set_is_never_evicted() {
        let agent = pod(OF_A_DAEMON_SET, EMPTY_DIR);
        assert_eq!(filter(&agent, no_options()), FilterResult::Block(BlockReason::DaemonSet));
        assert_eq!(filter(&agent, all_options()), FilterResult::Skip(SkipReason::DaemonSet));
        let orphan = |options| classify(&agent, &options, false, now());
        assert_eq!(orphan(no_options()), FilterResult::Block(BlockReason::DaemonSetMissing));
        assert_eq!(
            orphan(all_options()),
            FilterResult::Evict(vec![BlockReason::DaemonSetMissing, BlockReason::EmptyDir])
        );
    }

    #[test]
    fn a_daemon_set_of_another_api_group_is_not_read() {
        for (api_version, expected) in [("apps/v1", true), ("apps.kruise.io/v1alpha1", false)] {
            let agent = pod(&OF_A_DAEMON_SET.replace("apps/v1", api_version), "");
            assert_eq!(daemon_set(&agent).map(is_built_in), Some(expected), "{api_version}");
        }
    }

    #[test]
    fn a_finished_pod_is_always_evicted() {
        let done = "status: {phase: Succeeded}";
        for metadata in [OF_A_DAEMON_SET, "labels: {app: web}"] {
            let finished = pod(metadata, &format!("{EMPTY_DIR}\n{done}"));
            assert_eq!(filter(&finished, no_options()), FilterResult::Evict(vec![]));
        }
    }

    #[test]
    fn a_static_pod_is_skipped() {
        let mirror = pod("annotations: {kubernetes.io/config.mirror: x}", EMPTY_DIR);
        assert_eq!(filter(&mirror, no_options()), FilterResult::Skip(SkipReason::Mirror));
    }

    #[test]
    fn a_pod_that_was_deleted_long_ago_is_skipped_if_accepted() {
        let deleted = pod("deletionTimestamp: '2026-01-31T12:00:00Z'", "");
        assert_eq!(filter(&deleted, all_options()), FilterResult::Skip(SkipReason::Deleted));
        let longer = DrainOptions { deleted_for: Some(60), ..all_options() };
        assert!(matches!(filter(&deleted, longer), FilterResult::Evict(_)));
        let never = DrainOptions { deleted_for: Some(0), ..all_options() };
        assert!(matches!(filter(&deleted, never), FilterResult::Evict(_)));
    }

    #[test]
    fn a_volume_is_local_if_it_is_on_the_node_or_bound_to_it_by_name() {
        let claim = |volume: &str| {
            let text = format!("spec: {{claimRef: {{namespace: shop, name: data}}, {volume}}}");
            local_pvc(&serde_yaml_ng::from_str(&text).expect("is a volume"))
        };
        let affinity = |key: &str| {
            format!(
                "nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: {key}, \
                 operator: In, values: [a]}}]}}]}}}}"
            )
        };
        assert_eq!(claim("hostPath: {path: /data}").as_deref(), Some("shop/data"));
        assert_eq!(claim("local: {path: /data}").as_deref(), Some("shop/data"));
        assert!(claim(&affinity("kubernetes.io/hostname")).is_some());
        assert!(claim(&affinity("topology.kubernetes.io/zone")).is_none());
    }

    #[test]
    fn a_pod_ignores_the_cordon_if_it_tolerates_it_or_is_younger() {
        let ignores = |created: &str, tolerations: &str| {
            let metadata = format!("creationTimestamp: '2026-01-31T12:00:{created}Z'");
            let spec = format!("spec: {{containers: [], tolerations: [{tolerations}]}}");
            ignores_cordon(&pod(&metadata, &spec), now() - TimeDelta::seconds(30))
        };
        for (created, tolerations, expected) in [
            ("29", "", false),
            ("30", "", false),
            ("31", "", true),
            ("29", "{operator: Exists}", true),
            ("29", "{key: node.kubernetes.io/unschedulable, operator: Exists}", true),
            ("29", "{key: node.kubernetes.io/not-ready, operator: Exists}", false),
        ] {
            assert_eq!(ignores(created, tolerations), expected, "{created} {tolerations}");
        }
    }

    #[test]
    fn the_mark_of_a_set_depends_on_all_of_it_and_on_the_request() {
        let hashes = |uids: &[&str]| uids.iter().copied().collect();
        let set = |uids| EvictionSet { protected: hashes(uids), ..EvictionSet::default() };
        let mark = set(&["a", "b"]).mark("r1@d1");
        assert!(mark.starts_with("r1@"), "{mark}");
        assert_eq!(mark, set(&["b", "a"]).mark("r1@d1"));
        let forced = EvictionSet { options: all_options(), ..set(&["a", "b"]) };
        for (set, request) in [
            (set(&["a", "b", "c"]), "r1@d1"),
            (set(&["a"]), "r1@d1"),
            (forced, "r1@d1"),
            (set(&["a", "b"]), "r1@d2"),
        ] {
            assert_ne!(set.mark(request), mark, "{set:?} {request}");
        }
    }

    #[test]
    fn a_pod_that_asks_not_to_be_moved_is_recognised() {
        for (annotations, expected) in [
            ("{cluster-autoscaler.kubernetes.io/safe-to-evict: 'false'}", true),
            ("{cluster-autoscaler.kubernetes.io/safe-to-evict: 'true'}", false),
            ("{karpenter.sh/do-not-disrupt: 'true'}", true),
            ("{karpenter.sh/do-not-disrupt: 'false'}", false),
            ("{karpenter.sh/do-not-evict: 'true'}", true),
            ("{}", false),
        ] {
            let pod = pod(&format!("annotations: {annotations}"), "");
            let objection = disruption_objection(&pod.metadata);
            assert_eq!(objection.is_some(), expected, "{annotations}");
        }
    }

    #[test]
    fn a_grace_period_is_compared_with_the_wait() {
        let seconds = std::time::Duration::from_secs;
        let long = pod("", "spec: {containers: [], terminationGracePeriodSeconds: 3600}");
        for (pod, requested, wait, expected) in [
            (&long, None, 300, Some(3600)),
            (&long, Some(20), 300, None),
            (&long, None, 3600, None),
            (&pod("", ""), None, 20, Some(30)),
            (&pod("", "status: {phase: Failed}"), None, 20, None),
        ] {
            assert_eq!(grace_period_beyond(pod, requested, seconds(wait)), expected);
        }
    }
}
