//! Reads workloads and their revisions. Must not decide anything about them.

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::Pod,
};
use kube::core::ObjectMeta;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{client::Cluster, preflight::not_checked},
        revisions::{History, revision_resource},
        workload::{self, Workload, WorkloadKind},
    },
};

impl Cluster {
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
