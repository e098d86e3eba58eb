//! Lists the pods of a drain that remain on its node. It evicts nothing, so a request's status uses it too.
//!
//! Each list takes two calls, however many pods there are: the metadata of the node's pods, and the disruption
//! budgets, the latter only if one may protect a pod.

use std::collections::{HashMap, HashSet};

use chrono::Utc;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{ResourceExt, core::ObjectMeta};
use tokio::time::Instant;

use crate::{
    contract::{error::ActionError, response::Target},
    k8s::{api::client::Cluster, drain_filter, drain_filter::EvictionSet, pdb},
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
pub(crate) struct Snapshot {
    pub pods: Vec<RemainingPod>,
    /// The budgets that protect them, by `namespace/name`.
    pub budgets: HashMap<String, PodDisruptionBudget>,
}

/// A pod to evict that is there.
pub(crate) struct RemainingPod {
    pub pod: ObjectMeta,
    /// The key of the budget that may refuse its eviction.
    pub budget: Option<String>,
}

impl Remaining<'_> {
    /// The progress in a sentence.
    ///
    /// # Errors
    /// Why the cluster could not be read.
    pub(crate) async fn progress(&self, deadline: Instant) -> Result<String, ActionError> {
        let snapshot = self.list(deadline).await?;
        Ok(match snapshot.pods.is_empty() {
            true => self.all_gone(),
            false => self.stage(&snapshot, &HashSet::new()),
        })
    }

    pub(crate) async fn list(&self, deadline: Instant) -> Result<Snapshot, ActionError> {
        let mut left = Vec::new();
        let selector = self.evictions.selector.as_deref();
        let mut params = drain_filter::pods_of(&self.node.name, selector).limit(PAGE_SIZE);
        loop {
            let page = self.cluster.page_of_metadata::<Pod>(&params, deadline).await?;
            let pods = page.items.into_iter().map(|pod| pod.metadata);
            left.extend(pods.filter(|pod| self.is_remaining(pod)).map(strip));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        let budgets = match left.iter().any(|pod| self.may_be_protected(pod)) {
            true => self.cluster.list_all::<PodDisruptionBudget>(None, "", deadline).await?,
            false => Vec::new(),
        };
        Ok(self.with_budgets(left, budgets))
    }

    pub(crate) fn all_gone(&self) -> String {
        let name = &self.node.name;
        match self.evictions.count() {
            0 => format!("there was no pod to evict from Node '{name}'"),
            1 => format!("the one pod is gone from Node '{name}'"),
            all => format!("all {all} pods are gone from Node '{name}'"),
        }
    }

    pub(crate) fn stage(&self, snapshot: &Snapshot, evicted: &HashSet<String>) -> String {
        let (all, left) = (self.evictions.count(), snapshot.pods.len());
        let terminates =
            |it: &&RemainingPod| is_terminating(&it.pod) || evicted.contains(uid(&it.pod));
        let terminating = snapshot.pods.iter().filter(terminates).count();
        let (gone, waiting) = (all.saturating_sub(left), left - terminating);
        format!("{gone} of {all} pods are gone, {terminating} are shutting down, {waiting} wait")
    }

    fn is_remaining(&self, pod: &ObjectMeta) -> bool {
        self.evictions.contains(pod)
            && !drain_filter::is_deleted_for_long(pod, self.evictions.deleted_for, Utc::now())
    }

    fn may_be_protected(&self, pod: &ObjectMeta) -> bool {
        !is_terminating(pod) && !self.evictions.is_unprotected(pod)
    }

    /// Each pod with the budget that protects it.
    fn with_budgets(&self, pods: Vec<ObjectMeta>, budgets: Vec<PodDisruptionBudget>) -> Snapshot {
        let mut by_namespace: HashMap<_, Vec<_>> = HashMap::new();
        for budget in budgets {
            by_namespace.entry(budget.namespace()).or_default().push(budget);
        }
        let mut snapshot = Snapshot::default();
        for metadata in pods {
            let mut left = RemainingPod { pod: metadata, budget: None };
            let there =
                by_namespace.get(&left.pod.namespace).filter(|_| self.may_be_protected(&left.pod));
            if let Some(there) = there {
                let pod = Pod { metadata: left.pod.clone(), ..Pod::default() };
                if let Some(budget) = pdb::budgets_of(&pod, there).first() {
                    let namespace = budget.namespace().unwrap_or_default();
                    let key = format!("{namespace}/{}", pdb::name_of(budget));
                    snapshot.budgets.entry(key.clone()).or_insert_with(|| (*budget).clone());
                    left.budget = Some(key);
                }
            }
            snapshot.pods.push(left);
        }
        snapshot
    }
}

pub(crate) fn is_terminating(pod: &ObjectMeta) -> bool {
    pod.deletion_timestamp.is_some()
}

pub(crate) fn uid(pod: &ObjectMeta) -> &str {
    pod.uid.as_deref().unwrap_or_default()
}

/// The metadata without its largest parts, which are not used here.
fn strip(pod: ObjectMeta) -> ObjectMeta {
    ObjectMeta { annotations: None, managed_fields: None, ..pod }
}
