//! Reads objects of operators, and finds out whether the API server serves their kind at all.
//!
//! Must not decide what an object means, nor know one kind. A path that the API server does not serve is answered with
//! a 404 that is no `Status` but text (`apiserver/pkg/util/notfoundhandler`), as many a proxy's is. So such an answer
//! alone proves nothing: the groups that the API server lists do.

use kube::{Api, api::DynamicObject};
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{
            client::{ApiCall, Cluster},
            error::ApiError,
            retry::Retry,
        },
        integrations::{CustomKind, ServedVersions},
    },
};

impl Cluster {
    /// Reads an object of an operator.
    ///
    /// # Errors
    /// [`Code::KindNotInstalled`] if the cluster does not serve its kind, [`Code::TargetNotFound`] if the object does
    /// not exist, else as [`Cluster::explain`] says.
    ///
    /// [`Code::KindNotInstalled`]: crate::contract::error::Code::KindNotInstalled
    /// [`Code::TargetNotFound`]: crate::contract::error::Code::TargetNotFound
    pub(crate) async fn get_custom(
        &self,
        kind: &CustomKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<DynamicObject, ActionError> {
        let resource = kind.resource();
        let api = Api::<DynamicObject>::namespaced_with(self.client(), namespace, &resource);
        let result = self.get_named(&api, name, deadline).await;
        if let Err(ApiError::NoSuchPath(_)) = &result
            && let Some(refusal) = self.unserved(kind, deadline).await
        {
            return Err(refusal);
        }
        self.explain_result(&ApiCall::on(&resource, "get", namespace, Some(name)), result).await
    }

    /// The refusal because the API server's own lists do not have this kind; none if they do, or cannot be read.
    async fn unserved(&self, kind: &CustomKind, deadline: Instant) -> Option<ActionError> {
        let client = self.client();
        let groups = self.attempt(Retry::Idempotent, deadline, || client.list_api_groups());
        let groups = groups.await.ok()?;
        let group = groups.groups.into_iter().find(|group| group.name == kind.group);
        let versions: Vec<_> =
            group.into_iter().flat_map(|it| it.versions).map(|it| it.version).collect();
        let api_version = kind.api_version();
        let plurals = if versions.iter().any(|it| it == kind.version) {
            let list = || client.list_api_group_resources(&api_version);
            let resources = self.attempt(Retry::Idempotent, deadline, list).await.ok()?;
            resources.resources.into_iter().map(|it| it.name).collect()
        } else {
            Vec::new()
        };
        kind.refuse_unserved(&ServedVersions { versions, plurals })
    }
}
