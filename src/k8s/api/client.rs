//! Calls to the API server: each bounded by a deadline, repeated only where that is harmless, and
//! told exactly when it fails.
//!
//! A refused call is told as verb, resource, namespace and who we are, with the RBAC rule that would
//! allow it. Nothing here knows an action.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope, api::authentication::v1::SelfSubjectReview,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams, ObjectList, Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        FIELD_MANAGER,
        api::{error::ApiError, retry, retry::Retry},
    },
    telemetry::calls::{CallLabels, Calls, no_calls},
};

/// Longest time for one attempt, so that a server that accepts and never answers is given up on
/// while there is time to ask again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time to find out who we are, once a call was refused.
const SELF_REVIEW_TIMEOUT: Duration = Duration::from_secs(2);

/// Most objects that one list reads: enough to explain, bounded in memory.
const PAGE_SIZE: u32 = 500;

/// A namespaced kind with a type of its own.
pub trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug
{
}

impl<K> Namespaced for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
{
}

/// A kind of its own type that is in no namespace.
pub trait ClusterScoped:
    Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug
{
}

impl<K> ClusterScoped for K where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug
{
}

/// One cluster, as one identity. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    server: String,
    calls: Calls,
}

/// What is called, for the words of an error.
#[derive(Clone, Debug)]
pub struct Call {
    /// The verb as RBAC names it.
    pub verb: &'static str,
    /// The kind of object.
    pub resource: ApiResource,
    /// The namespace; empty for what is in none.
    pub namespace: String,
    /// The object; none for a list.
    pub name: Option<String>,
}

impl Cluster {
    /// A cluster reached through `client`; `server` is its address, for messages.
    #[must_use]
    pub fn new(client: Client, server: String) -> Self {
        Cluster { client, server, calls: no_calls() }
    }

    /// The client, for calls to kinds without a type.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The calls that were made, by result.
    #[must_use]
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The namespace that we are at home in: the pod's, or the kubeconfig context's.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Reads an object, for those who have their own words for a fault.
    pub(crate) async fn try_get<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        self.attempt(Retry::Idempotent, deadline, || api.get(name)).await
    }

    /// Creates an object of a given name. It is repeated on any passing fault, since the name lets
    /// only one through: whoever meets a conflict has to look whether the object is its own.
    pub(crate) async fn create<K: Namespaced + Serialize>(
        &self,
        namespace: &str,
        object: &K,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.attempt(Retry::Idempotent, deadline, || api.create(&params, object)).await
    }

    /// Applies a merge patch that names a resourceVersion. It is repeated on any passing fault, since
    /// the version lets only one through: a conflict may be with its own first try.
    pub(crate) async fn merge<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(patch);
        self.attempt(Retry::Idempotent, deadline, || api.patch(name, &params, &patch)).await
    }

    /// Asks a question of the kind that is created and answered at once, and kept by nobody (a review).
    pub(crate) async fn create_review<K: ClusterScoped + Serialize>(
        &self,
        question: &K,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::all(self.client());
        let params = PostParams::default();
        self.attempt(Retry::Idempotent, deadline, || api.create(&params, question)).await
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`Code::TargetNotFound`] if there is none, else as [`Cluster::tell`] says.
    pub async fn get<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ActionError> {
        match self.try_get(namespace, name, deadline).await {
            Ok(object) => Ok(object),
            Err(fault) => {
                Err(self.explain(&Call::of::<K>("get", namespace, Some(name)), fault).await)
            }
        }
    }

    /// Reads an object that is in no namespace.
    ///
    /// # Errors
    /// As [`Cluster::get`] says.
    pub async fn get_global<K: ClusterScoped>(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ActionError> {
        let api = Api::<K>::all(self.client());
        match self.attempt(Retry::Idempotent, deadline, || api.get(name)).await {
            Ok(object) => Ok(object),
            Err(fault) => Err(self.explain(&Call::of::<K>("get", "", Some(name)), fault).await),
        }
    }

    /// Whether there is any object that these fields select, of a kind that is in no namespace.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn exists<K: ClusterScoped>(
        &self,
        fields: &str,
        deadline: Instant,
    ) -> Result<bool, ActionError> {
        let params = ListParams::default().fields(fields).limit(1);
        let page = self.page_of_metadata::<K>(&params, deadline).await?;
        Ok(!page.items.is_empty())
    }

    /// Lists the objects of a namespace as the API server remembers them, which may be as of a moment ago:
    /// enough to warn, and it asks nobody further for it.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn list_cached<K: Namespaced>(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        self.listed(namespace, &ListParams::default().match_any(), deadline).await
    }

    /// Lists up to 500 objects by label selector.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn list<K: Namespaced>(
        &self,
        namespace: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        let params = ListParams::default().labels(selector).limit(PAGE_SIZE);
        self.listed(namespace, &params, deadline).await
    }

    async fn listed<K: Namespaced>(
        &self,
        namespace: &str,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        match self.attempt(Retry::Idempotent, deadline, || api.list(params)).await {
            Ok(list) => Ok(list.items),
            Err(fault) => Err(self.explain(&Call::of::<K>("list", namespace, None), fault).await),
        }
    }

    /// Reads an object as the API has it, fields that no type of ours knows included.
    ///
    /// # Errors
    /// As [`Cluster::get`] says.
    pub async fn get_dynamic(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<DynamicObject, ActionError> {
        let api = Api::<DynamicObject>::namespaced_with(self.client(), namespace, resource);
        match self.attempt(Retry::Idempotent, deadline, || api.get(name)).await {
            Ok(object) => Ok(object),
            Err(fault) => {
                Err(self.explain(&Call::on(resource, "get", namespace, Some(name)), fault).await)
            }
        }
    }

    /// Lists up to 500 objects by label selector, as the API has them.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn list_dynamic(
        &self,
        resource: &ApiResource,
        namespace: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Vec<DynamicObject>, ActionError> {
        let api = Api::<DynamicObject>::namespaced_with(self.client(), namespace, resource);
        let params = ListParams::default().labels(selector).limit(PAGE_SIZE);
        match self.attempt(Retry::Idempotent, deadline, || api.list(&params)).await {
            Ok(list) => Ok(list.items),
            Err(fault) => {
                Err(self.explain(&Call::on(resource, "list", namespace, None), fault).await)
            }
        }
    }

    /// One page of the objects that these parameters select in all namespaces, or in none for what is in
    /// none.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn page<K>(
        &self,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<ObjectList<K>, ActionError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::all(self.client());
        match self.attempt(Retry::Idempotent, deadline, || api.list(params)).await {
            Ok(list) => Ok(list),
            Err(fault) => Err(self.explain(&Call::of::<K>("list", "", None), fault).await),
        }
    }

    /// The same page with no more of each object than its metadata.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn page_of_metadata<K>(
        &self,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<ObjectList<PartialObjectMeta<K>>, ActionError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::all(self.client());
        match self.attempt(Retry::Idempotent, deadline, || api.list_metadata(params)).await {
            Ok(list) => Ok(list),
            Err(fault) => Err(self.explain(&Call::of::<K>("list", "", None), fault).await),
        }
    }

    /// Lists all objects with a label, in one namespace or in all.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn list_all<K: Namespaced>(
        &self,
        namespace: Option<&str>,
        selector: &str,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        let mut found = Vec::new();
        self.each_page(namespace, selector, deadline, |page| found.extend(page)).await?;
        Ok(found)
    }

    /// Lists all objects with a label, in one namespace or in all, and hands them on page by page, so that
    /// no more than one need be held.
    ///
    /// # Errors
    /// As [`Cluster::tell`] says.
    pub async fn each_page<K: Namespaced>(
        &self,
        namespace: Option<&str>,
        selector: &str,
        deadline: Instant,
        mut page_by_page: impl FnMut(Vec<K>),
    ) -> Result<(), ActionError> {
        let api = match namespace {
            Some(namespace) => Api::<K>::namespaced(self.client(), namespace),
            None => Api::<K>::all(self.client()),
        };
        let mut params = ListParams::default().labels(selector).limit(PAGE_SIZE);
        loop {
            match self.attempt(Retry::Idempotent, deadline, || api.list(&params)).await {
                Ok(page) => {
                    page_by_page(page.items);
                    match page.metadata.continue_.filter(|token| !token.is_empty()) {
                        Some(token) => params.continue_token = Some(token),
                        None => return Ok(()),
                    }
                }
                Err(fault) => {
                    let call = Call::of::<K>("list", namespace.unwrap_or_default(), None);
                    return Err(self.explain(&call, fault).await);
                }
            }
        }
    }

    /// Asks the API server whether it is ready to serve (`/readyz`), once.
    ///
    /// # Errors
    /// [`Code::ClusterUnreachable`] or [`Code::ClusterUnavailable`] with its own words, or what is
    /// wrong with our credentials.
    pub async fn ready(&self) -> Result<(), ActionError> {
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| {
            ActionError::new(Code::Internal, format!("the readiness request: {error}"))
        })?;
        match timeout(SELF_REVIEW_TIMEOUT, self.client.request_text(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => match ApiError::from(error) {
                // An identity that may not ask has been answered nevertheless.
                ApiError::Forbidden(_) => Ok(()),
                fault => Err(self.unavailable(fault)),
            },
            Err(_) => Err(self.unavailable(no_answer_in(SELF_REVIEW_TIMEOUT))),
        }
    }

    /// Makes a call until it gives a result, a final fault, or the deadline comes.
    pub(crate) async fn attempt<T, F>(
        &self,
        repeat: Retry,
        deadline: Instant,
        call: impl Fn() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let mut pauses = retry::backoff();
        loop {
            let now = Instant::now();
            let until = deadline.min(now + ATTEMPT_TIMEOUT);
            let result = match timeout_at(until, call()).await {
                Ok(result) => result.map_err(ApiError::from),
                Err(_) => Err(no_answer_in(until - now)),
            };
            let labels =
                CallLabels { result: result.as_ref().map_or_else(ApiError::name, |_| "ok") };
            self.calls.get_or_create(&labels).observe(now.elapsed().as_secs_f64());
            let fault = match result {
                Ok(result) => return Ok(result),
                Err(fault) => fault,
            };
            let Some(pause) = retry::pause(&fault, repeat, &mut pauses) else { return Err(fault) };
            if Instant::now() + pause >= deadline {
                return Err(fault);
            }
            tracing::warn!(server = self.server, ?fault, "the call failed and is made again");
            sleep(pause).await;
        }
    }

    /// Puts a fault into words for the one who asked.
    ///
    /// [`Code::TargetNotFound`], [`Code::Forbidden`] with the rule that is missing,
    /// [`Code::RejectedByCluster`], [`Code::Conflict`], or why the cluster did not serve.
    pub async fn explain(&self, call: &Call, fault: ApiError) -> ActionError {
        match fault {
            ApiError::NotFound => call.not_found(),
            ApiError::Forbidden(_) => call.forbidden(&self.user_name().await),
            ApiError::Rejected(message) => ActionError::new(
                Code::RejectedByCluster,
                format!("the cluster rejected to {call}: {message}"),
            ),
            ApiError::Conflict(message) => ActionError::new(
                Code::Conflict,
                format!("the object changed while we tried to {call}: {message}"),
            )
            .with_retry_after(Some(Duration::from_secs(1))),
            fault => self.unavailable(fault),
        }
    }

    fn unavailable(&self, fault: ApiError) -> ActionError {
        let server = &self.server;
        match fault {
            ApiError::Unauthorized(message) => ActionError::new(
                Code::CredentialsRefused,
                format!("the cluster at {server} does not accept our credentials: {message}"),
            )
            .with_hint("renew the kubeconfig's credentials or the service account's token"),
            ApiError::Misconfigured(message) => ActionError::new(
                Code::Configuration,
                format!("the cluster at {server} cannot be called: {message}"),
            )
            .with_hint("check the kubeconfig: certificate authority, exec plugin, proxy"),
            ApiError::Busy(message, wait) | ApiError::ServerError(message, wait) => {
                ActionError::new(
                    Code::ClusterUnavailable,
                    format!("the cluster at {server} cannot serve now: {message}"),
                )
                .with_retry_after(Some(wait.unwrap_or(Duration::from_secs(5))))
            }
            ApiError::Unreachable(message) | ApiError::NoAnswer(message) => ActionError::new(
                Code::ClusterUnreachable,
                format!("the cluster at {server} does not answer: {message}"),
            )
            .with_retry_after(Some(Duration::from_secs(5))),
            ApiError::Disruption(message) => ActionError::new(Code::DisruptionBudget, message)
                .with_retry_after(Some(Duration::from_secs(5))),
            fault => ActionError::new(Code::ClusterUnavailable, format!("{server}: {fault:?}")),
        }
    }

    /// Our identity in the cluster's own words (SelfSubjectReview, which everyone may make).
    async fn user_name(&self) -> String {
        let deadline = Instant::now() + SELF_REVIEW_TIMEOUT;
        let review = self.create_review(&SelfSubjectReview::default(), deadline).await.ok();
        let user = review.and_then(|review| review.status?.user_info?.username);
        user.unwrap_or_else(|| "this identity".to_owned())
    }
}

fn no_answer_in(time: Duration) -> ApiError {
    ApiError::NoAnswer(format!("no answer within {:.1} s", time.as_secs_f64()))
}

impl Call {
    /// A call on an object (or, without a name, a list) of a typed kind.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(
        verb: &'static str,
        namespace: &str,
        name: Option<&str>,
    ) -> Self {
        Call::on(&ApiResource::erase::<K>(&()), verb, namespace, name)
    }

    /// A call on an object (or, without a name, a list) of this kind.
    #[must_use]
    pub fn on(
        resource: &ApiResource,
        verb: &'static str,
        namespace: &str,
        name: Option<&str>,
    ) -> Self {
        Call {
            verb,
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    /// A call on a kind that is in no namespace, about no object in particular.
    #[must_use]
    pub fn about<K: Resource<DynamicType = ()>>(verb: &'static str) -> Self {
        let resource = ApiResource::erase::<K>(&());
        Call { verb, resource, namespace: String::new(), name: None }
    }

    fn not_found(&self) -> ActionError {
        let Call { resource, namespace, .. } = self;
        let name = self.name.as_deref().unwrap_or_default();
        let (place, option) = match namespace.as_str() {
            "" => (String::new(), String::new()),
            name => (format!(" in namespace '{name}'"), format!(" -n {name}")),
        };
        ActionError::new(
            Code::TargetNotFound,
            format!("{} '{name}' does not exist{place}", resource.kind),
        )
        .with_hint(format!("`kubectl{option} get {}` lists those that do", resource.plural))
    }

    /// Names the one rule whose absence was met, so that it can be pasted into a Role.
    fn forbidden(&self, who: &str) -> ActionError {
        let Call { verb, resource, namespace, .. } = self;
        let rule = json!({
            "apiGroups": [resource.group],
            "resources": [resource.plural],
            "verbs": [verb],
        });
        let (place, role) = match namespace.as_str() {
            "" => ("the cluster".to_owned(), "a ClusterRole".to_owned()),
            name => (format!("namespace '{name}'"), format!("a Role in namespace '{name}'")),
        };
        let what = self.qualified();
        ActionError::new(Code::Forbidden, format!("{who} may not {verb} {what} in {place}"))
            .with_hint(format!("{role} with the rule {rule} would allow it"))
    }

    /// `deployments.apps`, or `pods` in the core group.
    fn qualified(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Call { verb, resource, namespace, name } = self;
        match (name, namespace.as_str()) {
            (Some(name), "") => write!(f, "{verb} {} {name}", resource.kind),
            (Some(name), _) => write!(f, "{verb} {} {namespace}/{name}", resource.kind),
            (None, "") => write!(f, "{verb} {}", resource.plural),
            (None, _) => write!(f, "{verb} {} in {namespace}", resource.plural),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{Node, Pod},
    };

    use super::*;

    #[test]
    fn a_forbidden_call_names_the_rule_that_would_allow_it() {
        let error = Call::of::<Deployment>("patch", "shop", Some("web")).forbidden("sa:x");
        assert_eq!(error.detail, "sa:x may not patch deployments.apps in namespace 'shop'");
        assert_eq!(
            error.hint.as_deref(),
            Some(
                "a Role in namespace 'shop' with the rule {\"apiGroups\":[\"apps\"],\
                 \"resources\":[\"deployments\"],\"verbs\":[\"patch\"]} would allow it"
            )
        );
    }

    #[test]
    fn the_core_group_has_no_name() {
        let error = Call::of::<Pod>("list", "shop", None).forbidden("sa:x");
        assert_eq!(error.detail, "sa:x may not list pods in namespace 'shop'");
    }

    #[test]
    fn what_is_in_no_namespace_needs_a_cluster_role() {
        let error = Call::about::<SelfSubjectReview>("create").forbidden("sa:x");
        assert!(error.detail.ends_with("selfsubjectreviews.authentication.k8s.io in the cluster"));
        assert!(error.hint.expect("has one").starts_with("a ClusterRole with the rule"));
    }

    #[test]
    fn a_missing_target_says_how_to_look_for_it() {
        let error = Call::of::<Pod>("get", "shop", Some("web-1")).not_found();
        assert_eq!(error.detail, "Pod 'web-1' does not exist in namespace 'shop'");
        assert!(error.hint.expect("has one").contains("kubectl -n shop get pods"));
        let error = Call::of::<Node>("get", "", Some("n1")).not_found();
        assert_eq!(error.detail, "Node 'n1' does not exist");
        assert!(error.hint.expect("has one").contains("`kubectl get nodes`"));
    }
}
