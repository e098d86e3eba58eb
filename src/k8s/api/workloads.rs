//! Reads workloads and their revisions. Must not decide anything about them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::Pod,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{ResourceExt, api::ListParams, core::ObjectMeta};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{
            client::Cluster,
            preflight::{self, not_checked},
        },
        pdb, pods,
        replacement::{self, PodQuery},
        revisions::{History, revision_resource},
        workload::{self, Workload, WorkloadKind},
    },
};

impl Cluster {
    /// Why the disruption budget never allows a disruption of its pods, if so. Of an integer `minAvailable` it is
    /// unknown where the account may not read the pods' StatefulSet.
    pub(crate) async fn never_allows(
        &self,
        pdb: &PodDisruptionBudget,
        pods: &[Pod],
        deadline: Instant,
    ) -> Option<String> {
        let replicas = match pdb::min_available(pdb) {
            Some(_) => self.replicas_of(pods, deadline).await,
            None => None,
        };
        pdb::never_allows(pdb, replicas)
    }

    /// How many pods these are if none is missing: the replicas of their controllers, and those without one. `None` if
    /// it cannot be found out. A ReplicaSet that may not be read has as many as there are, since it replaces a pod at
    /// once.
    async fn replicas_of(&self, pods: &[Pod], deadline: Instant) -> Option<i32> {
        let mut by_controller: BTreeMap<_, i32> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !pods::has_finished(pod)) {
            let owner = pods::controller(pod).map(|owner| (owner.kind.as_str(), &*owner.name));
            *by_controller.entry((pod.namespace().unwrap_or_default(), owner)).or_default() += 1;
        }
        let mut all = 0;
        for ((namespace, owner), number) in by_controller {
            all += match owner {
                None => number,
                Some(("ReplicaSet", name)) => {
                    let kind = WorkloadKind::ReplicaSet;
                    let set = self.workload(kind, &namespace, name, deadline).await;
                    set.ok().and_then(|set| set.replicas()).unwrap_or(number)
                }
                Some(("StatefulSet", name)) => {
                    let kind = WorkloadKind::StatefulSet;
                    self.workload(kind, &namespace, name, deadline).await.ok()?.replicas()?
                }
                Some(_) => return None,
            };
        }
        Some(all)
    }

    /// The pods of a controller that the query finds. If it finds none on a node, those that have no node yet and are
    /// meant for this one.
    pub(crate) async fn controlled_pods(
        &self,
        namespace: &str,
        controller_uid: &str,
        query: &PodQuery,
        deadline: Instant,
    ) -> Result<Vec<Pod>, ActionError> {
        let is_ours = |pod: &Pod| replacement::is_controlled_by(pod, controller_uid);
        let (in_namespace, mut found) = (Some(namespace), Vec::new());
        let add = |page: Vec<Pod>| found.extend(page.into_iter().filter(is_ours));
        self.each_page(in_namespace, query.list_params(), deadline, add).await?;
        if let PodQuery::Node(node) = query
            && found.is_empty()
        {
            let unassigned = ListParams::default().fields("spec.nodeName=");
            let is_meant = |pod: &Pod| is_ours(pod) && replacement::is_meant_for(pod, node);
            let add = |page: Vec<Pod>| found.extend(page.into_iter().filter(is_meant));
            self.each_page(in_namespace, unassigned, deadline, add).await?;
        }
        Ok(found)
    }

    /// The warning that the pod is the only one of its controller, or why that is not known.
    pub(crate) async fn only_pod_warning(&self, pod: &Pod, deadline: Instant) -> Option<String> {
        let owner = pods::controller(pod).filter(|owner| owner.kind != "DaemonSet")?;
        match self.is_only_pod(pod, owner, preflight::end(deadline)).await {
            Ok(is_only) => is_only.then(|| {
                let owner = replacement::describe(owner);
                format!("it is the only pod of {owner}: none runs until the new one is ready")
            }),
            Err(error) => Some(not_checked(&error)),
        }
    }

    async fn is_only_pod(
        &self,
        pod: &Pod,
        owner: &OwnerReference,
        deadline: Instant,
    ) -> Result<bool, ActionError> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        // No label identifies its pods, so that a list would read the whole namespace.
        if owner.kind == "StatefulSet" {
            for name in replacement::neighbours(pod) {
                let neighbour = self.get_opt::<Pod>(namespace, &name, deadline).await?;
                let is_there = |pod: &Pod| {
                    replacement::is_controlled_by(pod, &owner.uid) && !pods::is_terminating(pod)
                };
                if neighbour.as_ref().is_some_and(is_there) {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let query = PodQuery::siblings(pod, owner);
        let siblings = self.controlled_pods(namespace, &owner.uid, &query, deadline).await?;
        Ok(replacement::is_alone(&siblings))
    }

    /// The warning about pods for which an ordered StatefulSet waits: all, or those of ordinals below `end`. Where the
    /// status shows none, nothing more is read.
    pub(crate) async fn order_warning(
        &self,
        workload: &Workload,
        end: Option<i32>,
        deadline: Instant,
    ) -> Option<String> {
        if !workload.is_held_up() {
            return None;
        }
        let ObjectMeta { namespace, name, uid, .. } = workload.metadata();
        let namespace = namespace.as_deref().unwrap_or_default();
        match self.list::<Pod>(namespace, &workload.label_selector(), deadline).await {
            Ok(pods) => {
                let unready = workload::unready_pods(&pods, uid.as_deref(), end);
                workload::order_warning(name.as_deref().unwrap_or_default(), &unready)
            }
            Err(error) => Some(not_checked(&error)),
        }
    }

    pub(crate) async fn workload(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Workload, ActionError> {
        Ok(match kind {
            WorkloadKind::Deployment => {
                self.get::<Deployment>(namespace, name, deadline).await?.into()
            }
            WorkloadKind::StatefulSet => {
                self.get::<StatefulSet>(namespace, name, deadline).await?.into()
            }
            WorkloadKind::DaemonSet => {
                self.get::<DaemonSet>(namespace, name, deadline).await?.into()
            }
            WorkloadKind::ReplicaSet => {
                self.get::<ReplicaSet>(namespace, name, deadline).await?.into()
            }
        })
    }

    /// Reads a workload, and its pod template with the fields that `k8s_openapi` does not know.
    pub(crate) async fn workload_and_template(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<(Workload, Value), ActionError> {
        let object = self.get_dynamic(&kind.resource(), namespace, name, deadline).await?;
        kind.read_with_template(object)
    }

    /// Reads a workload and its revisions.
    pub(crate) async fn history(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<History, ActionError> {
        let (workload, template) =
            self.workload_and_template(kind, namespace, name, deadline).await?;
        let selector = workload.label_selector();
        let revisions =
            self.list_dynamic(&revision_resource(kind), namespace, &selector, deadline).await?;
        Ok(History::new(workload, template, &revisions))
    }
}
