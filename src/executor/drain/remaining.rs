//! Looks at what is left on a node of the pods that a drain is to make go. It evicts nothing, so whoever is
//! told how a drain is getting on may look as well.
//!
//! Each look asks two questions, however many pods there are: the metadata of the node's pods, and the
//! budgets, the latter only if there is a pod that one may bind.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{ResourceExt, core::ObjectMeta};
use tokio::time::Instant;

use crate::{
    contract::{error::ActionError, response::Target},
    k8s::{api::client::Cluster, drain_filter, drain_filter::EvictionSet, pdb},
};

/// How many objects are read at once.
const PAGE_SIZE: u32 = 500;

/// Where it is looked, and for which pods.
pub(crate) struct Remaining<'a> {
    pub cluster: &'a Cluster,
    /// The node, as it was cordoned.
    pub node: &'a Target,
    pub drained: &'a EvictionSet,
}

/// What is left, as it was seen.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub pods: Vec<RemainingPod>,
    /// The budgets that bind them, by namespace and name.
    pub budgets: HashMap<String, PodDisruptionBudget>,
}

/// A pod that is to go and is there.
pub(crate) struct RemainingPod {
    pub pod: ObjectMeta,
    /// The budget that may refuse its eviction.
    pub budget: Option<String>,
}

impl Remaining<'_> {
    /// How far it is, by a look that evicts nothing.
    ///
    /// # Errors
    /// Why the cluster could not be asked.
    pub(crate) async fn with_progress(&self, deadline: Instant) -> Result<String, ActionError> {
        let seen = self.list(deadline).await?;
        Ok(match seen.pods.is_empty() {
            true => self.all_gone(),
            false => self.stage(&seen, &HashSet::new()),
        })
    }

    /// Looks what is left on the node of what is to go.
    pub(crate) async fn list(&self, deadline: Instant) -> Result<Snapshot, ActionError> {
        let mut left = Vec::new();
        let selector = self.drained.selector.as_deref();
        let mut params = drain_filter::pods_of(&self.node.name, selector).limit(PAGE_SIZE);
        loop {
            let page = self.cluster.page_of_metadata::<Pod>(&params, deadline).await?;
            let pods = page.items.into_iter().map(|pod| pod.metadata);
            left.extend(pods.filter(|pod| self.is_left(pod)).map(strip));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        let budgets = match left.iter().any(|pod| self.is_bound(pod)) {
            true => self.cluster.list_all::<PodDisruptionBudget>(None, "", deadline).await?,
            false => Vec::new(),
        };
        Ok(self.bound(left, budgets))
    }

    pub(crate) fn all_gone(&self) -> String {
        let name = &self.node.name;
        match self.drained.count() {
            0 => format!("there was no pod to evict from Node '{name}'"),
            1 => format!("the one pod is gone from Node '{name}'"),
            all => format!("all {all} pods are gone from Node '{name}'"),
        }
    }

    pub(crate) fn stage(&self, seen: &Snapshot, evicted: &HashSet<String>) -> String {
        let (all, left) = (self.drained.count(), seen.pods.len());
        let goes = |it: &&RemainingPod| is_going(&it.pod) || evicted.contains(uid(&it.pod));
        let going = seen.pods.iter().filter(goes).count();
        let (gone, waiting) = (all.saturating_sub(left), left - going);
        format!("{gone} of {all} pods are gone, {going} are shutting down, {waiting} wait")
    }

    fn is_left(&self, pod: &ObjectMeta) -> bool {
        self.drained.contains(pod)
            && !drain_filter::is_deleted_for_long(pod, self.drained.deleted_for, Utc::now())
    }

    fn is_bound(&self, pod: &ObjectMeta) -> bool {
        !is_going(pod) && !self.drained.is_unprotected(pod)
    }

    /// Each pod with the budget that binds it.
    fn bound(&self, pods: Vec<ObjectMeta>, budgets: Vec<PodDisruptionBudget>) -> Snapshot {
        let mut by_namespace: HashMap<_, Vec<_>> = HashMap::new();
        for budget in budgets {
            by_namespace.entry(budget.namespace()).or_default().push(budget);
        }
        let mut seen = Snapshot::default();
        for metadata in pods {
            let mut left = RemainingPod { pod: metadata, budget: None };
            let there = by_namespace.get(&left.pod.namespace).filter(|_| self.is_bound(&left.pod));
            if let Some(there) = there {
                let pod = Pod { metadata: left.pod.clone(), ..Pod::default() };
                if let Some(budget) = pdb::budgets_of(&pod, there).first() {
                    let namespace = budget.namespace().unwrap_or_default();
                    let key = format!("{namespace}/{}", pdb::name_of(budget));
                    seen.budgets.entry(key.clone()).or_insert_with(|| (*budget).clone());
                    left.budget = Some(key);
                }
            }
            seen.pods.push(left);
        }
        seen
    }
}

pub(crate) fn is_going(pod: &ObjectMeta) -> bool {
    pod.deletion_timestamp.is_some()
}

pub(crate) fn uid(pod: &ObjectMeta) -> &str {
    pod.uid.as_deref().unwrap_or_default()
}

/// The metadata without what nobody asks of it here, which is most.
fn strip(pod: ObjectMeta) -> ObjectMeta {
    ObjectMeta { annotations: None, managed_fields: None, ..pod }
}
