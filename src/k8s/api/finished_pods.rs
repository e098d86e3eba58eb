//! Reads a namespace and its finished pods. Must not decide: that is for `k8s::cleanup_filter`.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, api::ListParams};
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{
            client::{ApiCall, Cluster},
            error::ApiError,
        },
        cleanup_filter::FINISHED,
        pod_set::PodSet,
    },
};

impl Cluster {
    /// Reads a namespace. A Role in it may permit that.
    pub(crate) async fn namespace(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<Namespace, ActionError> {
        let result = self.get_named(&Api::<Namespace>::all(self.client()), name, deadline).await;
        let place = if matches!(result, Err(ApiError::NotFound)) { "" } else { name };
        self.explain_result(&ApiCall::of::<Namespace>("get", place, Some(name)), result).await
    }

    /// All finished pods of a namespace.
    pub(crate) async fn finished_pods(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Vec<Pod>, ActionError> {
        let (params, mut found) = (ListParams::default().fields(FINISHED), Vec::new());
        self.each_page(Some(namespace), params, deadline, |page| found.extend(page)).await?;
        Ok(found)
    }

    /// Those of these finished pods that are there.
    pub(super) async fn finished_pods_of(
        &self,
        namespace: &str,
        pods: &PodSet,
        deadline: Instant,
    ) -> Result<Vec<Pod>, ActionError> {
        let mut found = self.finished_pods(namespace, deadline).await?;
        found.retain(|pod| pods.contains(&pod.metadata));
        Ok(found)
    }
}
