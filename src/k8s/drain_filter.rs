//! Which pods of a node go when it is drained, which stay, and which stand in the way.
//!
//! The verdicts are kubectl's (`pkg/drain/filters.go`), asked in its order; with what somebody who gives
//! the order has to be told. What is left to do of a drain is data, so that whoever picks it up goes on.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::{api::ListParams, core::ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::{contract::digest::sha256, k8s::pods};

/// What the one who drains accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DrainOptions {
    /// That pods without a controller are gone for good.
    pub unmanaged: bool,
    /// That pods of DaemonSets stay.
    pub daemon_sets: bool,
    /// That what is in emptyDir volumes is lost.
    pub empty_dir_data: bool,
    /// That pods stay which have been deleted for so many seconds.
    pub deleted_for: Option<u32>,
}

/// What is done with one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainVerdict {
    /// It is evicted; with what is accepted in doing so.
    Evict(Vec<BlockReason>),
    /// It is left alone.
    Skip(SkipReason),
    /// It stands in the way.
    Block(BlockReason),
}

/// Why a pod is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SkipReason {
    /// It has been deleted for a long time.
    Deleted,
    /// Its DaemonSet would make it again at once, on the same node.
    DaemonSet,
    /// It is a mirror of what the kubelet runs from a file.
    Mirror,
}

/// What is lost with a pod, or not understood about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockReason {
    /// A DaemonSet would make it again at once.
    DaemonSet,
    /// The DaemonSet that it belongs to does not exist.
    DaemonSetMissing,
    /// What is in its emptyDir volumes.
    EmptyDir,
    /// The pod itself: no controller makes another one.
    Unmanaged,
}

/// What is done with this pod. `daemon_set_exists`: whether the DaemonSet exists that owns it, if one does.
#[must_use]
pub fn classify(
    pod: &Pod,
    accepted: &DrainOptions,
    daemon_set_exists: bool,
    now: DateTime<Utc>,
) -> DrainVerdict {
    if is_deleted_for_long(&pod.metadata, accepted.deleted_for, now) {
        return DrainVerdict::Skip(SkipReason::Deleted);
    }
    let mut losses = Vec::new();
    let mut accept = |loss: BlockReason, is_accepted: bool| {
        losses.push(loss);
        is_accepted
    };
    if daemon_set(pod).is_some() {
        if daemon_set_exists {
            return match accepted.daemon_sets {
                true => DrainVerdict::Skip(SkipReason::DaemonSet),
                false => DrainVerdict::Block(BlockReason::DaemonSet),
            };
        }
        if !accept(BlockReason::DaemonSetMissing, accepted.unmanaged) {
            return DrainVerdict::Block(BlockReason::DaemonSetMissing);
        }
    }
    if pods::is_mirror(pod) {
        return DrainVerdict::Skip(SkipReason::Mirror);
    }
    let finished = pods::has_finished(pod);
    if !finished && has_empty_dir(pod) && !accept(BlockReason::EmptyDir, accepted.empty_dir_data) {
        return DrainVerdict::Block(BlockReason::EmptyDir);
    }
    if !finished
        && pods::controller(pod).is_none()
        && !accept(BlockReason::Unmanaged, accepted.unmanaged)
    {
        return DrainVerdict::Block(BlockReason::Unmanaged);
    }
    DrainVerdict::Evict(losses)
}

/// The DaemonSet that owns the pod, of which it matters whether it exists; a pod that has finished goes
/// whoever owns it.
#[must_use]
pub fn daemon_set(pod: &Pod) -> Option<&str> {
    let owner = pods::controller(pod).filter(|owner| owner.kind == "DaemonSet")?;
    (!pods::has_finished(pod)).then_some(owner.name.as_str())
}

/// Whether the pod was to be gone so many seconds ago.
#[must_use]
pub fn is_deleted_for_long(
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

/// What selects the pods of a node, all or those with these labels.
#[must_use]
pub fn pods_of(node: &str, selector: Option<&str>) -> ListParams {
    let all = ListParams::default().fields(&format!("spec.nodeName={node}"));
    match selector {
        Some(selector) => all.labels(selector),
        None => all,
    }
}

/// So many of these, in words.
#[must_use]
pub fn plural(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The claim, as `namespace/name`, that holds a volume which no other node has: a directory or a disk of
/// the node, or one that is bound to a node by name.
#[must_use]
pub fn local_claim(volume: &PersistentVolume) -> Option<String> {
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
    /// What such pods are.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            SkipReason::Deleted => "deleted long ago",
            SkipReason::DaemonSet => "of DaemonSets",
            SkipReason::Mirror => "static",
        }
    }
}

impl BlockReason {
    /// Why such pods are not evicted.
    #[must_use]
    pub fn how_to_allow(self) -> &'static str {
        match self {
            BlockReason::DaemonSet => "of a DaemonSet, which would make them again at once",
            BlockReason::DaemonSetMissing => "of a DaemonSet that does not exist",
            BlockReason::EmptyDir => "with data in emptyDir volumes, which would be lost",
            BlockReason::Unmanaged => "without a controller, which would not come back",
        }
    }

    /// The parameter that accepts it, with its value.
    #[must_use]
    pub fn is_allowed_by(self) -> &'static str {
        match self {
            BlockReason::DaemonSet => "ignore_daemonsets: true",
            BlockReason::DaemonSetMissing | BlockReason::Unmanaged => "force: true",
            BlockReason::EmptyDir => "delete_empty_dir_data: true",
        }
    }
}

/// What is left to do once the node is cordoned: which pods are to go, and how.
///
/// The pods are those that were there when it was decided; what came to the node since was not judged and
/// stays. Of each there is a piece of a digest of its uid: enough to tell pods of one node apart, and short
/// enough for thousands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvictionSet {
    /// Pods whose eviction no disruption budget may refuse.
    pub unprotected: HashSet<String>,
    /// Pods whose eviction one may refuse.
    pub protected: HashSet<String>,
    /// The label selector that they match, if only such pods are meant.
    pub selector: Option<String>,
    /// How long they may take to stop, instead of their own grace period.
    pub grace_period_seconds: Option<u32>,
    /// After how many seconds a deleted pod is not waited for any more.
    pub deleted_for: Option<u32>,
    /// Whether the node is to take pods again if the drain fails.
    pub uncordon_on_failure: bool,
}

impl EvictionSet {
    /// What stands for the pod with this uid.
    #[must_use]
    pub fn uid_hash(uid: &str) -> String {
        sha256(uid.as_bytes())[..10].to_owned()
    }

    /// Whether the pod is to go.
    #[must_use]
    pub fn contains(&self, pod: &ObjectMeta) -> bool {
        let sign = EvictionSet::uid_hash(pod.uid.as_deref().unwrap_or_default());
        self.unprotected.contains(&sign) || self.protected.contains(&sign)
    }

    /// Whether no budget may refuse the pod's eviction.
    #[must_use]
    pub fn is_free(&self, pod: &ObjectMeta) -> bool {
        self.unprotected.contains(&EvictionSet::uid_hash(pod.uid.as_deref().unwrap_or_default()))
    }

    /// How many pods are to go.
    #[must_use]
    pub fn count(&self) -> usize {
        self.unprotected.len() + self.protected.len()
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

    fn verdict_on(pod: &Pod, accepted: DrainOptions) -> DrainVerdict {
        classify(pod, &accepted, true, now())
    }

    fn nothing_accepted() -> DrainOptions {
        DrainOptions::default()
    }

    fn all_accepted() -> DrainOptions {
        DrainOptions {
            unmanaged: true,
            daemon_sets: true,
            empty_dir_data: true,
            deleted_for: Some(30),
        }
    }

    #[test]
    fn what_a_controller_replaces_goes() {
        assert_eq!(verdict_on(&pod(OWNED, ""), nothing_accepted()), DrainVerdict::Evict(vec![]));
    }

    #[test]
    fn a_bare_pod_blocks_unless_that_is_accepted() {
        let bare = pod("labels: {app: web}", "");
        assert_eq!(
            verdict_on(&bare, nothing_accepted()),
            DrainVerdict::Block(BlockReason::Unmanaged)
        );
        assert_eq!(
            verdict_on(&bare, all_accepted()),
            DrainVerdict::Evict(vec![BlockReason::Unmanaged])
        );
    }

    #[test]
    fn a_pod_with_data_of_its_own_blocks_unless_that_is_accepted() {
        let with_data = pod(OWNED, EMPTY_DIR);
        assert_eq!(
            verdict_on(&with_data, nothing_accepted()),
            DrainVerdict::Block(BlockReason::EmptyDir)
        );
        assert_eq!(
            verdict_on(&with_data, all_accepted()),
            DrainVerdict::Evict(vec![BlockReason::EmptyDir])
        );
    }

    #[test]
    fn a_pod_of_a_daemon_set_stays_or_blocks_and_never_goes_while_that_exists() {
        let agent = pod(OF_A_DAEMON_SET, EMPTY_DIR);
        assert_eq!(
            verdict_on(&agent, nothing_accepted()),
            DrainVerdict::Block(BlockReason::DaemonSet)
        );
        assert_eq!(verdict_on(&agent, all_accepted()), DrainVerdict::Skip(SkipReason::DaemonSet));
        let orphan = |accepted| classify(&agent, &accepted, false, now());
        assert_eq!(orphan(nothing_accepted()), DrainVerdict::Block(BlockReason::DaemonSetMissing));
        assert_eq!(
            orphan(all_accepted()),
            DrainVerdict::Evict(vec![BlockReason::DaemonSetMissing, BlockReason::EmptyDir])
        );
    }

    #[test]
    fn a_pod_that_has_finished_goes_whatever_it_is() {
        let done = "status: {phase: Succeeded}";
        for metadata in [OF_A_DAEMON_SET, "labels: {app: web}"] {
            let finished = pod(metadata, &format!("{EMPTY_DIR}\n{done}"));
            assert_eq!(verdict_on(&finished, nothing_accepted()), DrainVerdict::Evict(vec![]));
        }
    }

    #[test]
    fn a_static_pod_stays() {
        let mirror = pod("annotations: {kubernetes.io/config.mirror: x}", EMPTY_DIR);
        assert_eq!(verdict_on(&mirror, nothing_accepted()), DrainVerdict::Skip(SkipReason::Mirror));
    }

    #[test]
    fn a_pod_that_is_long_deleted_is_not_waited_for_if_that_is_accepted() {
        let deleted = pod("deletionTimestamp: '2026-01-31T12:00:00Z'", "");
        assert_eq!(verdict_on(&deleted, all_accepted()), DrainVerdict::Skip(SkipReason::Deleted));
        let longer = DrainOptions { deleted_for: Some(60), ..all_accepted() };
        assert!(matches!(verdict_on(&deleted, longer), DrainVerdict::Evict(_)));
        let never = DrainOptions { deleted_for: Some(0), ..all_accepted() };
        assert!(matches!(verdict_on(&deleted, never), DrainVerdict::Evict(_)));
    }

    #[test]
    fn a_volume_is_local_if_it_is_of_the_node_or_bound_to_one_by_name() {
        let claim = |volume: &str| {
            let text = format!("spec: {{claimRef: {{namespace: shop, name: data}}, {volume}}}");
            local_claim(&serde_yaml_ng::from_str(&text).expect("is a volume"))
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
}
