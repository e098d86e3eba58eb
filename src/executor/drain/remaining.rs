//! Lists the pods of a drain that remain on its node. It evicts nothing, so a request's status uses it too.
//!
//! Each list takes two calls, however many pods there are: the metadata of the node's pods, and the disruption budgets,
//! the latter only if one may protect a pod. What is not in the set of pods to evict came later; [`super::known`]
//! judges it.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::core::ObjectMeta;
use tokio::time::Instant;

use crate::{
    contract::{counted::counted, error::ActionError, response::Target},
    executor::batch::MAX_PODS_PER_MESSAGE,
    k8s::{
        api::{
            client::{Cluster, next_page},
            node_pods::Pdbs,
        },
        drain_filter::{self, EvictionSet},
        pdb, pods,
    },
};

/// Objects per page.
const PAGE_SIZE: u32 = 500;

/// The pods to evict, and their node.
pub(crate) struct Remaining<'a> {
    pub cluster: &'a Cluster,
    /// The node as it was cordoned.
    pub node: &'a Target,
    pub evictions: &'a EvictionSet,
}

/// The remaining pods at one time.
#[derive(Default)]
pub(crate) struct DrainSnapshot {
    pub pods: Vec<RemainingPod>,
    /// The disruption budgets that protect them, by `namespace/name`.
    pub pdbs: HashMap<String, PodDisruptionBudget>,
    /// Pods that came after the plan and may not be evicted, each with the reason.
    pub refused: Vec<String>,
    /// The names of pods that are on the node in spite of the cordon.
    pub ignoring: Vec<String>,
    /// The names of pods that are there and that nobody waits for.
    pub abandoned: Vec<String>,
}

/// The metadata of a node's pods.
pub(super) struct ListedPods {
    pub awaited: Vec<ObjectMeta>,
    /// The names of those that were deleted so long ago that nobody waits for them.
    pub abandoned: Vec<String>,
}

/// A pod to evict that is there.
pub(crate) struct RemainingPod {
    pub pod: ObjectMeta,
    /// The key of the disruption budget that may refuse its eviction.
    pub pdb_key: Option<String>,
    /// Whether the executor runs in it.
    pub is_own: bool,
}

impl Remaining<'_> {
    /// The progress in a sentence.
    ///
    /// # Errors
    /// Why the cluster could not be read.
    pub(crate) async fn progress(&self, deadline: Instant) -> Result<String, ActionError> {
        let ListedPods { mut awaited, abandoned } = self.pods(deadline).await?;
        awaited.retain(|pod| self.evictions.contains(pod));
        let all = self.evictions.count();
        Ok(match awaited.is_empty() {
            true => self.all_gone(all, &abandoned),
            false => stage(&DrainSnapshot::of(awaited), all, &HashSet::new()),
        })
    }

    /// All pods of the node.
    ///
    /// # Errors
    /// Why they could not be listed.
    pub(super) async fn pods(&self, deadline: Instant) -> Result<ListedPods, ActionError> {
        let mut pods = ListedPods { awaited: Vec::new(), abandoned: Vec::new() };
        let EvictionSet { selector, options, .. } = self.evictions;
        let mut params =
            drain_filter::pods_of(&self.node.name, selector.as_deref()).limit(PAGE_SIZE);
        loop {
            let page = self.cluster.page_of_metadata::<Pod>(&params, deadline).await?;
            for pod in page.items.into_iter().map(|pod| strip(pod.metadata)) {
                match drain_filter::is_deleted_for_long(&pod, options.deleted_for, Utc::now()) {
                    true => pods.abandoned.push(name_of(&pod)),
                    false => pods.awaited.push(pod),
                }
            }
            if !next_page(&mut params, &page.metadata) {
                return Ok(pods);
            }
        }
    }

    /// Once all of so many pods are gone, except those that nobody waits for.
    pub(super) fn all_gone(&self, all: usize, abandoned: &[String]) -> String {
        let name = &self.node.name;
        let gone = match all {
            0 => format!("there was no pod to evict from Node '{name}'"),
            1 => format!("the one pod is gone from Node '{name}'"),
            all => format!("all {all} pods are gone from Node '{name}'"),
        };
        match abandoned_phrase(abandoned, self.evictions) {
            Some(abandoned) => format!("{gone}, except {abandoned}"),
            None => gone,
        }
    }
}

impl DrainSnapshot {
    /// These pods, without disruption budgets.
    pub(crate) fn of(pods: Vec<ObjectMeta>) -> Self {
        let remaining = |pod| RemainingPod { pod, pdb_key: None, is_own: false };
        DrainSnapshot {
            pods: pods.into_iter().map(remaining).collect(),
            ..DrainSnapshot::default()
        }
    }

    /// Marks the pod of this namespace and name as the executor's own.
    pub(crate) fn mark_own(&mut self, namespace: &str, name: &str) {
        for left in &mut self.pods {
            let RemainingPod { pod, is_own, .. } = left;
            *is_own =
                pod.namespace.as_deref() == Some(namespace) && pod.name.as_deref() == Some(name);
        }
    }

    /// Adds to each pod that `may_be_protected` the disruption budget that protects it.
    pub(crate) fn add_pdbs(&mut self, pdbs: &Pdbs, may_be_protected: impl Fn(&ObjectMeta) -> bool) {
        for left in self.pods.iter_mut().filter(|left| may_be_protected(&left.pod)) {
            let pod = Pod { metadata: left.pod.clone(), ..Pod::default() };
            let pdb = pdb::pdbs_of(&pod, pdbs.of(&pod)).first().copied();
            left.pdb_key = pdb.map(|pdb| {
                let namespace = left.pod.namespace.as_deref().unwrap_or_default();
                let key = format!("{namespace}/{}", pdb::name_of(pdb));
                self.pdbs.entry(key.clone()).or_insert_with(|| pdb.clone());
                key
            });
        }
    }

    /// The keys of the disruption budgets that protect a pod and allow no disruption now.
    pub(crate) fn exhausted_pdbs(&self) -> impl Iterator<Item = &str> {
        let keys = self.pods.iter().filter_map(|left| left.pdb_key.as_deref());
        keys.filter(|key| pdb::disruptions_allowed(&self.pdbs[*key]) == 0)
    }
}

/// The pods that are there and that nobody waits for, if any.
pub(super) fn abandoned_phrase(abandoned: &[String], evictions: &EvictionSet) -> Option<String> {
    let seconds = evictions.options.deleted_for.unwrap_or_default();
    let pods = counted(abandoned.len(), "pod");
    let names = pods::join_names(abandoned, MAX_PODS_PER_MESSAGE);
    (!abandoned.is_empty())
        .then(|| format!("{pods} deleted more than {seconds} s ago and still there: {names}"))
}

/// How far it is, of so many pods; `evicted` are those that the list does not show as terminating yet.
pub(crate) fn stage(snapshot: &DrainSnapshot, all: usize, evicted: &HashSet<String>) -> String {
    let left = snapshot.pods.len();
    let terminates = |it: &&RemainingPod| is_terminating(&it.pod) || evicted.contains(uid(&it.pod));
    let terminating = snapshot.pods.iter().filter(terminates).count();
    let (gone, waiting) = (all.saturating_sub(left), left - terminating);
    format!("{gone} of {all} pods are gone, {terminating} are shutting down, {waiting} wait")
}

pub(crate) fn is_terminating(pod: &ObjectMeta) -> bool {
    pod.deletion_timestamp.is_some()
}

pub(crate) fn uid(pod: &ObjectMeta) -> &str {
    pod.uid.as_deref().unwrap_or_default()
}

/// In the form `namespace/name`.
pub(crate) fn name_of(pod: &ObjectMeta) -> String {
    let namespace = pod.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", pod.name.as_deref().unwrap_or_default())
}

/// The metadata without its largest parts, which are not used here.
fn strip(pod: ObjectMeta) -> ObjectMeta {
    ObjectMeta { annotations: None, managed_fields: None, ..pod }
}
