//! What the API server says of ourselves: which server it is, who we are, and what we may do.

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    contract::error::{ActionError, Code},
    k8s::api::{
        client::{ApiCall, Cluster, SELF_REVIEW_TIMEOUT},
        error::ApiError,
    },
};

fn without_a_name(why: &str) -> ActionError {
    let detail = format!("the cluster does not say who the executor is: {why}");
    ActionError::new(Code::Forbidden, detail).with_hint(
        "let its account create selfsubjectreviews.authentication.k8s.io, as the ClusterRole system:basic-user does",
    )
}

/// One verb on one resource: a part of a rule of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ResourceAccess {
    /// The API group; the core group is empty.
    pub group: &'static str,
    /// In the plural, with its subresource, for example `pods/eviction`.
    pub resource: &'static str,
    pub verb: &'static str,
}

impl Cluster {
    /// The user name that the cluster knows us by, for messages.
    pub(crate) async fn user_name(&self) -> String {
        let deadline = Instant::now() + SELF_REVIEW_TIMEOUT;
        let name = self.read_user_name(deadline).await;
        name.unwrap_or_else(|_| "this identity".to_owned())
    }

    /// The same, read once.
    ///
    /// # Errors
    /// Why the cluster did not say it.
    pub(super) async fn own_name(&self, deadline: Instant) -> Result<&str, ActionError> {
        let name = self.own_name_cell().get_or_try_init(|| self.read_user_name(deadline)).await;
        name.map(String::as_str)
    }

    /// By a SelfSubjectReview, which every identity may create.
    async fn read_user_name(&self, deadline: Instant) -> Result<String, ActionError> {
        let answer = self.create_review(&SelfSubjectReview::default(), deadline).await;
        let review = match answer {
            Ok(review) => review,
            // To explain a refusal takes the name.
            Err(ApiError::Forbidden(message)) => return Err(without_a_name(&message)),
            Err(error) => {
                let call = ApiCall::of_kind::<SelfSubjectReview>("create");
                return Err(Box::pin(self.explain(&call, error)).await);
            }
        };
        let name = review.status.and_then(|status| status.user_info?.username);
        name.ok_or_else(|| without_a_name("the review has no user name"))
    }

    /// The version of the API server, for example `v1.36.0`.
    ///
    /// # Errors
    /// Why it did not answer.
    pub(crate) async fn version(&self, deadline: Instant) -> Result<String, ActionError> {
        let answer = timeout_at(deadline, self.client().apiserver_version()).await;
        let unreachable = |why: String| {
            ActionError::new(Code::ClusterUnreachable, format!("the API server: {why}"))
        };
        let version = answer.map_err(|_| unreachable("no answer in time".to_owned()))?;
        version.map(|it| it.git_version).map_err(|error| unreachable(error.to_string()))
    }

    /// Whether we have this access in the namespace, or in the whole cluster if it is empty; with a name, for the
    /// object of this name, else for all (SelfSubjectAccessReview, which every identity may create).
    ///
    /// # Errors
    /// Why it could not be asked.
    pub(crate) async fn is_allowed(
        &self,
        access: ResourceAccess,
        namespace: &str,
        name: Option<&str>,
        deadline: Instant,
    ) -> Result<bool, ActionError> {
        let ResourceAccess { group, resource, verb } = access;
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (resource, None),
        };
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            verb: Some(verb.to_owned()),
            namespace: Some(namespace.to_owned()).filter(|it| !it.is_empty()),
            name: name.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = self.create_review(&review, deadline).await;
        let call = ApiCall::of_kind::<SelfSubjectAccessReview>("create");
        let review = self.explain_result(&call, answer).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }
}
