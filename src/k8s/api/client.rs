//! The client of the API server: each call has a deadline, is retried only where that is harmless, and
//! its error says what to do.
//!
//! A forbidden call is reported with verb, resource, namespace and user, and with the RBAC rule that
//! would allow it. Must not depend on an action, nor on one kind of object.

use std::{fmt::Debug, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ListMeta,
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams, ObjectList, Patch, PatchParams, PostParams},
    core::{ObjectMeta, PartialObjectMeta},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        FIELD_MANAGER,
        api::{
            connection::WatchPermits,
            credentials::{Credential, Credentials},
            error::{ApiError, failed_admission},
            impersonation::Impersonation,
            retry,
            retry::Retry,
            server_time::ServerTime,
        },
    },
    telemetry::calls::{CallLabels, Calls, ClusterLabel, no_calls},
};

/// Limit of one attempt: a server that accepts and never answers leaves time for a retry.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for an effect, which is not repeated. The API server itself repeats an eviction for 10 s
/// (`registry/core/pod/storage/eviction.go`, `EvictionsRetry`).
const EFFECT_CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Limit of the call that finds out the user name for an error, and of the readiness check.
pub(super) const SELF_REVIEW_TIMEOUT: Duration = Duration::from_secs(2);

/// How many writes of an object that many write this process makes at a time.
const MAX_CONTENDED_WRITES: usize = 2;

/// The most objects that one list call returns, which bounds memory.
const PAGE_SIZE: u32 = 500;

/// A namespaced kind of `k8s_openapi`.
pub(crate) trait Namespaced:
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

/// A cluster-scoped kind of `k8s_openapi`.
pub(crate) trait ClusterScoped:
    Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug
{
}

impl<K> ClusterScoped for K where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug
{
}

/// A kind of `k8s_openapi`, namespaced or not.
pub(crate) trait Listable:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug
{
}

impl<K> Listable for K where K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug {}

/// One cluster, as one identity. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    server: String,
    name: String,
    credentials: Credentials,
    calls: Calls,
    /// Its name in the list of clusters, if there is one.
    listed: Option<Arc<str>>,
    time: ServerTime,
    watches: WatchPermits,
    /// The permits of writes of an object that many write.
    contended_writes: Arc<Semaphore>,
    /// The user name that the cluster knows our own credentials by, once it is read.
    own_name: Arc<OnceCell<String>>,
    /// Set once an impersonation has reached the API server.
    impersonation_seen: Arc<OnceCell<()>>,
    /// As whom the calls are made, if not as ourselves.
    person: Option<Arc<Impersonation>>,
    /// Whether the kubeconfig's user is impersonated with each call.
    impersonates: bool,
}

/// A call, as an error names it.
#[derive(Clone, Debug)]
pub(crate) struct ApiCall {
    /// The verb as RBAC names it.
    pub verb: &'static str,
    pub resource: ApiResource,
    /// Empty if the object is cluster-scoped.
    pub namespace: String,
    /// None for a list.
    pub name: Option<String>,
}

impl Cluster {
    /// `server` is the address for messages.
    pub fn new(client: Client, server: String) -> Self {
        Cluster {
            client,
            name: server.clone(),
            server,
            credentials: Credentials::default(),
            calls: no_calls(),
            listed: None,
            time: ServerTime::default(),
            watches: WatchPermits::new(),
            contended_writes: Arc::new(Semaphore::new(MAX_CONTENDED_WRITES)),
            own_name: Arc::default(),
            impersonation_seen: Arc::default(),
            person: None,
            impersonates: false,
        }
    }

    /// The cluster with the clock that its client's responses set.
    pub(crate) fn with_time(self, time: ServerTime) -> Self {
        Cluster { time, ..self }
    }

    /// The cluster with the credentials that its client uses.
    pub(crate) fn with_credentials(self, credentials: Credentials) -> Self {
        Cluster { credentials, ..self }
    }

    /// The cluster whose kubeconfig impersonates a user, or does not.
    pub(crate) fn impersonating(self, impersonates: bool) -> Self {
        Cluster { impersonates, ..self }
    }

    /// Whether each call impersonates the user that the kubeconfig names.
    pub(crate) fn impersonates(&self) -> bool {
        self.impersonates
    }

    /// The cluster with this client, whose calls are made as this person.
    pub(super) fn with_person(&self, client: Client, person: Arc<Impersonation>) -> Self {
        Cluster { client, person: Some(person), ..self.clone() }
    }

    /// As whom the calls are made, if not as ourselves.
    pub(super) fn person(&self) -> Option<&Impersonation> {
        self.person.as_deref()
    }

    /// Where our own user name is kept once it is read.
    pub(super) fn own_name_cell(&self) -> &OnceCell<String> {
        &self.own_name
    }

    /// Where it is kept that impersonations reach the API server.
    pub(super) fn impersonation_seen_cell(&self) -> &OnceCell<()> {
        &self.impersonation_seen
    }

    /// Permits for watches.
    pub(crate) fn watches(&self) -> &WatchPermits {
        &self.watches
    }

    /// With a name for people, in place of the server's address.
    pub(crate) fn with_name(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// The cluster of this name in a list, all of whose calls are counted together.
    pub(crate) fn listed(self, name: Arc<str>, calls: Calls) -> Self {
        Cluster { name: name.to_string(), listed: Some(name), calls, ..self }
    }

    /// The permits of writes of an object that many write, such as the Lease of the budget.
    pub(crate) fn contended_writes(&self) -> &Semaphore {
        &self.contended_writes
    }

    /// Its name in the list of clusters, if there is one.
    pub(crate) fn listed_name(&self) -> Option<&str> {
        self.listed.as_deref()
    }

    /// The name for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The API server's time.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.time.now()
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The calls made so far, by result.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The namespace of our pod, or of the kubeconfig's context.
    pub(crate) fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Reads an object, for callers that handle kinds of errors. The error is not explained.
    pub(crate) async fn try_get<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        self.get_named(&api, name, deadline).await
    }

    /// Reads the object of this name. A response that is another object is an error, whatever its status code: an
    /// empty Lease would hide the kill switch.
    pub(crate) async fn get_named<K>(
        &self,
        api: &Api<K>,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ApiError>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let object = self.attempt(Retry::Idempotent, deadline, || api.get(name)).await?;
        match object.meta().name.as_deref() {
            Some(found) if found == name => Ok(object),
            _ => Err(ApiError::NoAnswer("the response is not the object".to_owned())),
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`Code::TargetNotFound`] if it does not exist, else as [`Cluster::explain`] says.
    pub(crate) async fn get<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ActionError> {
        let result = self.try_get(namespace, name, deadline).await;
        self.explain_result(&ApiCall::of::<K>("get", namespace, Some(name)), result).await
    }

    /// Reads an object that may not exist.
    pub(crate) async fn get_opt<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<K>, ActionError> {
        let result = match self.try_get(namespace, name, deadline).await {
            Err(ApiError::NotFound) => Ok(None),
            result => result.map(Some),
        };
        self.explain_result(&ApiCall::of::<K>("get", namespace, Some(name)), result).await
    }

    /// Reads a cluster-scoped object.
    pub(crate) async fn get_global<K: ClusterScoped>(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<K, ActionError> {
        let api = Api::<K>::all(self.client());
        let result = self.get_named(&api, name, deadline).await;
        self.explain_result(&ApiCall::of::<K>("get", "", Some(name)), result).await
    }

    /// Reads an object as the API returns it, with the fields that `k8s_openapi` does not know.
    pub(crate) async fn get_dynamic(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<DynamicObject, ActionError> {
        let api = Api::<DynamicObject>::namespaced_with(self.client(), namespace, resource);
        let result = self.get_named(&api, name, deadline).await;
        self.explain_result(&ApiCall::on(resource, "get", namespace, Some(name)), result).await
    }

    /// Whether any cluster-scoped object matches these field selectors.
    pub(crate) async fn exists<K: ClusterScoped>(
        &self,
        fields: &str,
        deadline: Instant,
    ) -> Result<bool, ActionError> {
        let params = ListParams::default().fields(fields).limit(1);
        let page = self.page_of_metadata::<K>(&params, deadline).await?;
        Ok(!page.items.is_empty())
    }

    /// Lists all objects of a namespace that match a label selector.
    pub(crate) async fn list<K: Namespaced>(
        &self,
        namespace: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        let (namespace, params) = (Some(namespace), ListParams::default().labels(selector));
        let mut found = Vec::new();
        self.each_page(namespace, params, deadline, |page| found.extend(page)).await?;
        Ok(found)
    }

    /// The version of the list of objects of this name, from which a watch returns all that happens to them.
    pub(crate) async fn list_version<K: Namespaced>(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<String>, ActionError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        let params = ListParams::default().fields(&format!("metadata.name={name}")).limit(1);
        let call = ApiCall::of::<K>("list", namespace, None);
        let list = self.read(&call, deadline, || api.list_metadata(&params)).await?;
        Ok(list.metadata.resource_version)
    }

    /// Lists all objects of a namespace from the API server's cache. The list may be slightly out of date,
    /// which is enough for a warning, and it causes no read from etcd.
    pub(crate) async fn list_cached<K: Namespaced>(
        &self,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        self.list_with(namespace, &ListParams::default().match_any(), deadline).await
    }

    pub(crate) async fn list_with<K: Namespaced>(
        &self,
        namespace: &str,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<Vec<K>, ActionError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        let call = ApiCall::of::<K>("list", namespace, None);
        self.read(&call, deadline, || api.list(params)).await.map(|list| list.items)
    }

    /// Lists all objects of a namespace that match a label selector, as the API returns them.
    pub(crate) async fn list_dynamic(
        &self,
        resource: &ApiResource,
        namespace: &str,
        selector: &str,
        deadline: Instant,
    ) -> Result<Vec<DynamicObject>, ActionError> {
        let api = Api::<DynamicObject>::namespaced_with(self.client(), namespace, resource);
        let call = ApiCall::on(resource, "list", namespace, None);
        let (params, mut found) = (ListParams::default().labels(selector), Vec::new());
        self.pages_of(&api, &call, params, deadline, |page| found.extend(page)).await?;
        Ok(found)
    }

    /// Lists the metadata of at most `limit` objects of a namespace, or of a cluster-scoped kind if it is empty, that
    /// match a label selector.
    pub(crate) async fn list_metadata(
        &self,
        resource: &ApiResource,
        namespace: &str,
        selector: &str,
        limit: u32,
        deadline: Instant,
    ) -> Result<Vec<ObjectMeta>, ActionError> {
        let api: Api<DynamicObject> = match namespace {
            "" => Api::all_with(self.client(), resource),
            namespace => Api::namespaced_with(self.client(), namespace, resource),
        };
        let call = ApiCall::on(resource, "list", namespace, None);
        let params = ListParams::default().labels(selector).limit(limit);
        let found = self.read(&call, deadline, || api.list_metadata(&params)).await?;
        Ok(found.items.into_iter().map(|object| object.metadata).collect())
    }

    /// One page of the objects of all namespaces, or of a cluster-scoped kind.
    pub(crate) async fn page<K: Listable>(
        &self,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<ObjectList<K>, ActionError> {
        let api = Api::<K>::all(self.client());
        self.read(&ApiCall::of::<K>("list", "", None), deadline, || api.list(params)).await
    }

    /// The same page with each object's metadata only.
    pub(crate) async fn page_of_metadata<K: Listable>(
        &self,
        params: &ListParams,
        deadline: Instant,
    ) -> Result<ObjectList<PartialObjectMeta<K>>, ActionError> {
        let api = Api::<K>::all(self.client());
        self.read(&ApiCall::of::<K>("list", "", None), deadline, || api.list_metadata(params)).await
    }

    /// Lists all objects that match the selectors, in one namespace or in all, and passes them on page
    /// by page, so that no more than one page is in memory.
    pub(crate) async fn each_page<K: Namespaced>(
        &self,
        namespace: Option<&str>,
        params: ListParams,
        deadline: Instant,
        on_page: impl FnMut(Vec<K>),
    ) -> Result<(), ActionError> {
        let api = match namespace {
            Some(namespace) => Api::<K>::namespaced(self.client(), namespace),
            None => Api::<K>::all(self.client()),
        };
        let call = ApiCall::of::<K>("list", namespace.unwrap_or_default(), None);
        self.pages_of(&api, &call, params, deadline, on_page).await
    }

    async fn pages_of<K: Clone + DeserializeOwned + Debug>(
        &self,
        api: &Api<K>,
        call: &ApiCall,
        params: ListParams,
        deadline: Instant,
        mut on_page: impl FnMut(Vec<K>),
    ) -> Result<(), ActionError> {
        let mut params = params.limit(PAGE_SIZE);
        loop {
            let page = self.read(call, deadline, || api.list(&params)).await?;
            on_page(page.items);
            if !next_page(&mut params, &page.metadata) {
                return Ok(());
            }
        }
    }

    /// Creates an object with a fixed name. It is retried after every transient error, since the name
    /// lets only one creation succeed; after a conflict the caller checks whether the object is its own.
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

    /// Has the API server try to create an object, and stores nothing.
    pub(crate) async fn try_create<K: Namespaced + Serialize>(
        &self,
        namespace: &str,
        object: &K,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let api = Api::<K>::namespaced(self.client(), namespace);
        let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
        self.attempt(Retry::Idempotent, deadline, || api.create(&params, object)).await.map(drop)
    }

    /// Applies a merge patch that names a resourceVersion, or one that may be applied twice. It is retried after
    /// every transient error; a conflict may be with its own first attempt.
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

    /// Creates a review (TokenReview and the like), which the API server answers and does not store.
    pub(crate) async fn create_review<K: ClusterScoped + Serialize>(
        &self,
        review: &K,
        deadline: Instant,
    ) -> Result<K, ApiError> {
        let api = Api::<K>::all(self.client());
        let params = PostParams::default();
        self.attempt(Retry::Idempotent, deadline, || api.create(&params, review)).await
    }

    /// Asks the API server once whether it is ready to serve (`/readyz`).
    ///
    /// # Errors
    /// [`Code::ClusterUnreachable`] or [`Code::ClusterUnavailable`] with the server's message, or what is
    /// wrong with our credentials.
    pub(crate) async fn ready(&self) -> Result<(), ActionError> {
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| {
            ActionError::new(Code::Internal, format!("the readiness request: {error}"))
        })?;
        let deadline = Instant::now() + SELF_REVIEW_TIMEOUT;
        self.authenticate(deadline).await.map_err(|error| self.unavailable(error))?;
        match timeout_at(deadline, self.client.request_text(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => match ApiError::from(error) {
                // A server that refuses the identity serves.
                ApiError::Forbidden(_) | ApiError::MayNotImpersonate(_) => Ok(()),
                error => Err(self.unavailable(error)),
            },
            Err(_) => Err(self.unavailable(no_answer_in(SELF_REVIEW_TIMEOUT))),
        }
    }

    /// Obtains the credentials that the next call uses. Then it is known that nothing was sent if they are missing.
    async fn authenticate(&self, deadline: Instant) -> Result<Arc<Credential>, ApiError> {
        let start = Instant::now();
        match timeout_at(deadline, self.credentials.get()).await {
            Ok(result) => result.map_err(ApiError::Credentials),
            Err(_) => {
                let plugin = self.credentials.running_plugin().unwrap_or_default();
                let seconds = (deadline - start).as_secs_f64();
                Err(ApiError::Unreachable(format!(
                    "the credential plugin '{plugin}' has printed nothing within {seconds:.1} s"
                )))
            }
        }
    }

    /// Makes a call until it succeeds, fails permanently, or the deadline passes.
    pub(crate) async fn attempt<T, F>(
        &self,
        retry: Retry,
        deadline: Instant,
        call: impl Fn() -> F,
    ) -> Result<T, ApiError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let mut backoff = retry::backoff();
        let mut renewed = false;
        loop {
            let start = Instant::now();
            let credential = self.authenticate(deadline).await?;
            let limit = match retry {
                Retry::Idempotent => ATTEMPT_TIMEOUT,
                Retry::Never => EFFECT_CALL_TIMEOUT,
            };
            let end = deadline.min(Instant::now() + limit);
            let result = match timeout_at(end, call()).await {
                Ok(result) => result.map_err(ApiError::from),
                Err(_) => Err(no_answer_in(end - start)),
            };
            let labels = CallLabels {
                result: result.as_ref().map_or_else(ApiError::name, |_| "ok"),
                cluster: ClusterLabel(self.listed.clone()),
            };
            self.calls.get_or_create(&labels).observe(start.elapsed().as_secs_f64());
            let error = match result {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            // A credential that was kept may have been withdrawn since; a new one is obtained once.
            let is_stale = matches!(error, ApiError::Unauthorized(_))
                && retry == Retry::Idempotent
                && credential.is_older_than(start);
            if is_stale && !std::mem::replace(&mut renewed, true) {
                continue;
            }
            let Some(pause) = retry::pause(&error, retry, &mut backoff) else { return Err(error) };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::warn!(server = self.server, ?error, "call to the API server failed; retrying");
            sleep(pause).await;
        }
    }

    /// Makes a call that changes nothing, and explains its error.
    pub(crate) async fn read<T, F>(
        &self,
        call: &ApiCall,
        deadline: Instant,
        send: impl Fn() -> F,
    ) -> Result<T, ActionError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let result = self.attempt(Retry::Idempotent, deadline, send).await;
        self.explain_result(call, result).await
    }

    /// The result of a call with its error explained.
    pub(crate) async fn explain_result<T>(
        &self,
        call: &ApiCall,
        result: Result<T, ApiError>,
    ) -> Result<T, ActionError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(self.explain(call, error).await),
        }
    }

    /// The error of a call as it is reported to the client: [`Code::TargetNotFound`],
    /// [`Code::Forbidden`] with the missing rule, [`Code::RejectedByCluster`], [`Code::Conflict`], or why
    /// the cluster did not serve.
    pub(crate) async fn explain(&self, call: &ApiCall, error: ApiError) -> ActionError {
        match error {
            ApiError::NotFound => call.not_found(),
            ApiError::Forbidden(_) => match &self.person {
                Some(person) => call.forbidden_to_person(person.user()),
                None => call.forbidden(&self.user_name().await),
            },
            ApiError::MayNotImpersonate(message) => self.may_not_impersonate(&message),
            ApiError::Rejected(message) | ApiError::TestFailed(message) => {
                let is_terminating = message.contains(NAMESPACE_IS_TERMINATING);
                let detail = format!("the cluster rejected {call}: {message}");
                let error = ActionError::new(Code::RejectedByCluster, detail);
                if is_terminating { error.with_hint(NOTHING_IS_CREATED) } else { error }
            }
            ApiError::AdmissionFailed(message) => {
                let what = failed_admission(&message).unwrap_or_default();
                let detail = format!(
                    "the cluster could not {call}, since its admission {what} failed: {message}"
                );
                ActionError::new(Code::ClusterUnavailable, detail)
                    .with_hint(
                        "repair what serves it; `kubectl get validatingwebhookconfigurations,\
                         mutatingwebhookconfigurations -o yaml` has the addresses of webhooks",
                    )
                    .with_retry_after(Some(Duration::from_secs(5)))
            }
            ApiError::Conflict(message) => ActionError::new(
                Code::Conflict,
                format!("the object changed during {call}: {message}"),
            )
            .with_retry_after(Some(Duration::from_secs(1))),
            ApiError::Expired(message) => ActionError::new(
                Code::ClusterUnavailable,
                format!("{call} took so long that its next page has expired: {message}"),
            )
            .with_retry_after(Some(Duration::from_secs(1))),
            error => self.unavailable(error),
        }
    }

    /// The permissions of the executor's own account are missing, whatever the person may do.
    fn may_not_impersonate(&self, message: &str) -> ActionError {
        let Some(person) = &self.person else {
            let detail =
                format!("the kubeconfig's user may not impersonate whom it names: {message}");
            return ActionError::new(Code::Forbidden, detail)
                .with_hint("remove `as` from the kubeconfig's user, or let it impersonate");
        };
        let (user, rules) = (person.user(), person.rules());
        let detail = format!("the executor's own account may not impersonate {user}: {message}");
        ActionError::new(Code::Forbidden, detail).with_hint(format!(
            "a ClusterRole of the executor's account with the rules {rules} would allow it, as \
             `action-executor rbac --impersonate` prints them"
        ))
    }

    fn unavailable(&self, error: ApiError) -> ActionError {
        let server = &self.server;
        match error {
            ApiError::Unauthorized(message) => ActionError::new(
                Code::CredentialsRefused,
                format!("the cluster at {server} rejected the credentials: {message}"),
            )
            .with_hint("renew the kubeconfig's credentials or the service account's token"),
            ApiError::Misconfigured(message) => ActionError::new(
                Code::Configuration,
                format!("the cluster at {server} cannot be called: {message}"),
            )
            .with_hint("check the kubeconfig: certificate authority, server, proxy"),
            ApiError::Credentials(error) => error.to_action_error(server),
            ApiError::Busy(message, wait) | ApiError::ServerError(message, wait) => {
                ActionError::new(
                    Code::ClusterUnavailable,
                    format!("the cluster at {server} is unavailable: {message}"),
                )
                .with_retry_after(Some(wait.unwrap_or(Duration::from_secs(5))))
            }
            ApiError::Proxy(message) => ActionError::new(
                Code::ClusterUnreachable,
                format!("the cluster at {server} cannot be reached: {message}"),
            )
            .with_hint(
                "check the proxy, and `proxy-url` of the kubeconfig or HTTPS_PROXY and NO_PROXY",
            )
            .with_retry_after(Some(Duration::from_secs(5))),
            ApiError::Unreachable(message)
            | ApiError::NoAnswer(message)
            | ApiError::NoSuchPath(message) => ActionError::new(
                Code::ClusterUnreachable,
                format!("the cluster at {server} does not answer: {message}"),
            )
            .with_retry_after(Some(Duration::from_secs(5))),
            ApiError::Disruption(message) => ActionError::new(Code::DisruptionBudget, message)
                .with_retry_after(Some(Duration::from_secs(5))),
            error => ActionError::new(
                Code::ClusterUnavailable,
                format!("the cluster at {server} is unavailable: {error:?}"),
            ),
        }
    }
}

/// What the API server says of each creation in a namespace that is being deleted.
const NAMESPACE_IS_TERMINATING: &str = "because it is being terminated";

const NOTHING_IS_CREATED: &str = "a namespace that is being terminated accepts no new objects, and so no record of a \
                                  real action; what is in it is deleted with it, and `kubectl delete pod` needs no \
                                  record";

/// The hint for a response that is not the API server's.
pub(crate) const CHECK_PROXIES: &str = "check the proxies between this program and the API server: one of them may \
                                        have answered instead";

/// Selects the page after this one; false if this is the last.
pub(crate) fn next_page(params: &mut ListParams, page: &ListMeta) -> bool {
    params.continue_token = page.continue_.clone().filter(|token| !token.is_empty());
    params.continue_token.is_some()
}

fn no_answer_in(time: Duration) -> ApiError {
    ApiError::NoAnswer(format!("no answer within {:.1} s", time.as_secs_f64()))
}

impl ApiCall {
    pub(crate) fn of<K: Resource<DynamicType = ()>>(
        verb: &'static str,
        namespace: &str,
        name: Option<&str>,
    ) -> Self {
        ApiCall::on(&ApiResource::erase::<K>(&()), verb, namespace, name)
    }

    pub(crate) fn on(
        resource: &ApiResource,
        verb: &'static str,
        namespace: &str,
        name: Option<&str>,
    ) -> Self {
        ApiCall {
            verb,
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    /// A call on a cluster-scoped kind, without an object's name.
    pub(crate) fn of_kind<K: Resource<DynamicType = ()>>(verb: &'static str) -> Self {
        let resource = ApiResource::erase::<K>(&());
        ApiCall { verb, resource, namespace: String::new(), name: None }
    }

    fn not_found(&self) -> ActionError {
        let ApiCall { resource, namespace, .. } = self;
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

    /// The hint has the missing rule as it can be pasted into a Role.
    fn forbidden(&self, user: &str) -> ActionError {
        let ApiCall { verb, resource, namespace, .. } = self;
        let rule = json!({
            "apiGroups": [resource.group],
            "resources": [resource.plural],
            "verbs": [verb],
        });
        let (place, role) = match namespace.as_str() {
            "" => ("the cluster".to_owned(), "a ClusterRole".to_owned()),
            name => (format!("namespace '{name}'"), format!("a Role in namespace '{name}'")),
        };
        let resource = self.qualified();
        ActionError::new(Code::Forbidden, format!("{user} may not {verb} {resource} in {place}"))
            .with_hint(format!("{role} with the rule {rule} would allow it"))
    }

    /// The same of a call that was made as this person.
    fn forbidden_to_person(&self, user: &str) -> ActionError {
        let error = self.forbidden(user);
        let hint = error.hint.as_deref().unwrap_or_default().to_owned();
        error.with_hint(format!(
            "{hint} if it is bound to the user {user}, or to a group that is passed on: the call was made as the caller, \
             and not as the executor's account"
        ))
    }

    /// `deployments.apps`, or `pods` in the core group.
    fn qualified(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }
}

impl std::fmt::Display for ApiCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ApiCall { verb, resource, namespace, name } = self;
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

    use k8s_openapi::api::authentication::v1::SelfSubjectReview;

    use super::*;

    #[test]
    fn a_forbidden_call_names_the_rule_that_would_allow_it() {
        let error = ApiCall::of::<Deployment>("patch", "shop", Some("web")).forbidden("sa:x");
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
    fn a_resource_of_the_core_group_is_named_without_a_group() {
        let error = ApiCall::of::<Pod>("list", "shop", None).forbidden("sa:x");
        assert_eq!(error.detail, "sa:x may not list pods in namespace 'shop'");
    }

    #[test]
    fn a_cluster_scoped_kind_needs_a_cluster_role() {
        let error = ApiCall::of_kind::<SelfSubjectReview>("create").forbidden("sa:x");
        assert!(error.detail.ends_with("selfsubjectreviews.authentication.k8s.io in the cluster"));
        assert!(error.hint.expect("has one").starts_with("a ClusterRole with the rule"));
    }

    #[test]
    fn a_missing_target_is_reported_with_the_command_that_lists_those_that_exist() {
        let error = ApiCall::of::<Pod>("get", "shop", Some("web-1")).not_found();
        assert_eq!(error.detail, "Pod 'web-1' does not exist in namespace 'shop'");
        assert!(error.hint.expect("has one").contains("kubectl -n shop get pods"));
        let error = ApiCall::of::<Node>("get", "", Some("n1")).not_found();
        assert_eq!(error.detail, "Node 'n1' does not exist");
        assert!(error.hint.expect("has one").contains("`kubectl get nodes`"));
    }
}
