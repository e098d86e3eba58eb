//! Reads the pods of a node for a drain, page by page, with what decides on their eviction: whether their DaemonSets
//! exist, and the disruption budgets.
//!
//! Must not decide: which pods are evicted is for `k8s::drain_filter` and `k8s::pdb`.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{ResourceExt, api::ListParams};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::client::{Cluster, next_page},
        drain_filter,
    },
};

/// The pods of one page: pods are large, and little of each is kept.
const PAGE_SIZE: u32 = 100;

/// Reads the pods of one node.
pub(crate) struct NodePodReader<'a> {
    cluster: &'a Cluster,
    /// The next page; `None` after the last.
    params: Option<ListParams>,
    daemon_sets: HashMap<(String, String), bool>,
}

impl<'a> NodePodReader<'a> {
    /// The pods of this node, all or those with these labels.
    pub(crate) fn new(cluster: &'a Cluster, node: &str, selector: Option<&str>) -> Self {
        let params = drain_filter::pods_of(node, selector).limit(PAGE_SIZE);
        NodePodReader { cluster, params: Some(params), daemon_sets: HashMap::new() }
    }

    /// The next page, without pods that are not `wanted`; `None` after the last.
    ///
    /// # Errors
    /// Why the pods or their DaemonSets could not be read.
    pub(crate) async fn next(
        &mut self,
        wanted: impl Fn(&Pod) -> bool,
        deadline: Instant,
    ) -> Result<Option<Vec<Pod>>, ActionError> {
        let Some(mut params) = self.params.take() else { return Ok(None) };
        let page = self.cluster.page::<Pod>(&params, deadline).await?;
        if next_page(&mut params, &page.metadata) {
            self.params = Some(params);
        }
        let pods: Vec<_> = page.items.into_iter().filter(wanted).collect();
        self.read_daemon_sets(&pods, deadline).await?;
        Ok(Some(pods))
    }

    /// Whether the DaemonSet of a pod that was read exists; true for a pod that has none.
    pub(crate) fn daemon_set_exists(&self, pod: &Pod) -> bool {
        daemon_set_of(pod).and_then(|key| self.daemon_sets.get(&key)).copied().unwrap_or(true)
    }

    /// Reads those of these pods that are not known yet, all at the same time.
    async fn read_daemon_sets(
        &mut self,
        pods: &[Pod],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let named: HashSet<_> = pods.iter().filter_map(daemon_set_of).collect();
        let mut reads = JoinSet::new();
        for (namespace, name) in named.into_iter().filter(|key| !self.daemon_sets.contains_key(key))
        {
            let cluster = self.cluster.clone();
            reads.spawn(async move {
                let found = cluster.get_opt::<DaemonSet>(&namespace, &name, deadline).await;
                found.map(|found| ((namespace, name), found.is_some()))
            });
        }
        while let Some(read) = reads.join_next().await {
            let read = read.map_err(|error| ActionError::new(Code::Internal, error.to_string()))?;
            self.daemon_sets.extend([read?]);
        }
        Ok(())
    }
}

/// Namespace and name of the pod's DaemonSet, if it can be read.
fn daemon_set_of(pod: &Pod) -> Option<(String, String)> {
    let owner = drain_filter::daemon_set(pod).filter(|owner| drain_filter::is_built_in(owner))?;
    Some((pod.namespace().unwrap_or_default(), owner.name.clone()))
}

/// All disruption budgets by namespace.
pub(crate) struct Pdbs(HashMap<String, Vec<PodDisruptionBudget>>);

impl Pdbs {
    /// Reads those of all namespaces.
    ///
    /// # Errors
    /// Why they could not be read.
    pub(crate) async fn read(cluster: &Cluster, deadline: Instant) -> Result<Self, ActionError> {
        let mut pdbs: HashMap<String, Vec<PodDisruptionBudget>> = HashMap::new();
        let add = |page: Vec<PodDisruptionBudget>| {
            for pdb in page {
                pdbs.entry(pdb.namespace().unwrap_or_default()).or_default().push(pdb);
            }
        };
        cluster.each_page(None, ListParams::default(), deadline, add).await?;
        Ok(Pdbs(pdbs))
    }

    /// The disruption budgets of the pod's namespace.
    pub(crate) fn of(&self, pod: &Pod) -> &[PodDisruptionBudget] {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        self.0.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }
}
