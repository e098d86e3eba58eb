//! What a caller may do on a cluster, in one namespace at least: for the list of what it is offered. No request is
//! authorized by this.
//!
//! The cluster's RBAC can only be asked about one action in one namespace at a time, or about all of them. So the
//! permissions of its users take many reviews. They are made a few at a time for all callers together, and their
//! answers are kept for a short time, so that a caller that asks repeatedly does not make the API server answer
//! each time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OnceCell, Semaphore},
    task::JoinSet,
    time::Instant,
    try_join,
};

use crate::{
    actions::ActionKind,
    auth::{AccessRequest, Caller, Verb, token_review::Identity},
    contract::error::{ActionError, Code},
    k8s::api::client::Cluster,
};

/// How long the permissions of a user are kept: a list may be wrong for this long, and a request never is.
const TTL: Duration = Duration::from_secs(30);

/// Maximum number of users and scopes whose permissions are kept.
const MAX_CACHED_USERS: usize = 1024;

/// Maximum number of reviews at once.
const MAX_REVIEWS: usize = 16;

/// What a caller may do somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permissions {
    /// The actions that it may execute, in the registry's order.
    pub execute: Vec<ActionKind>,
    /// The actions that it may simulate, in the registry's order.
    pub simulate: Vec<ActionKind>,
    /// Whether it may read the state of a request.
    pub get: bool,
    /// Whether it may list what was done.
    pub list: bool,
}

impl Permissions {
    /// Those of who may do everything.
    pub(crate) fn all() -> Self {
        Permissions::granted_by(|_, _| true)
    }

    fn granted_by(is_allowed: impl Fn(Verb, Option<ActionKind>) -> bool) -> Self {
        let actions = |verb| {
            let allowed = ActionKind::ALL.into_iter().filter(|kind| is_allowed(verb, Some(*kind)));
            allowed.collect::<Vec<_>>()
        };
        Permissions {
            execute: actions(Verb::Execute),
            simulate: actions(Verb::Simulate),
            get: !actions(Verb::Get).is_empty(),
            list: is_allowed(Verb::List, None),
        }
    }
}

/// Where and for what the permissions of a caller are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PermissionScope {
    /// The cluster's name in the list; none without a list.
    pub cluster: Option<Arc<str>>,
    /// The namespaces, of which the empty one is all at once.
    pub namespaces: Vec<String>,
    /// The actions that may be executed at all.
    pub execute: Vec<ActionKind>,
    /// The actions that may be simulated at all, those above among them.
    pub simulate: Vec<ActionKind>,
}

/// A user, and where and for what its permissions are checked.
type Key = (Identity, PermissionScope);

/// The permissions of a user, once they are read, and since when.
struct User {
    permissions: Arc<OnceCell<Permissions>>,
    at: Instant,
}

/// The permissions that were read lately.
pub(crate) struct PermissionCache {
    users: Mutex<HashMap<Key, User>>,
    reviews: Arc<Semaphore>,
}

impl Default for PermissionCache {
    fn default() -> Self {
        PermissionCache { users: Mutex::default(), reviews: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }
}

impl PermissionCache {
    /// The permissions of this caller on the scope's cluster; of a user only those for its actions and in its
    /// namespaces.
    ///
    /// # Errors
    /// Why the reviewing cluster could not answer.
    pub(crate) async fn of(
        &self,
        caller: Option<&Caller>,
        scope: PermissionScope,
        reviewer: Option<&Cluster>,
    ) -> Result<Permissions, ActionError> {
        let name = scope.cluster.as_deref();
        let identity = match caller {
            None | Some(Caller::Platform(_)) => return Ok(Permissions::all()),
            Some(Caller::Key(entry)) => {
                let is_allowed = |verb, kind| entry.allows_somewhere(verb, kind, name);
                return Ok(Permissions::granted_by(is_allowed));
            }
            Some(Caller::User(identity)) => identity,
        };
        // Without a cluster RBAC cannot authorize.
        let Some(reviewer) = reviewer else { return Ok(Permissions::default()) };
        let cell = self.cell((identity.clone(), scope.clone()), Instant::now());
        // Concurrent callers wait for the same reviews.
        let read = cell.get_or_try_init(|| async {
            let reviews = Reviews {
                caller: Caller::User(identity.clone()),
                scope: Arc::new(scope),
                reviewer: reviewer.clone(),
                permits: self.reviews.clone(),
            };
            reviews.permissions().await
        });
        read.await.cloned()
    }

    fn cell(&self, key: Key, now: Instant) -> Arc<OnceCell<Permissions>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, user| now.saturating_duration_since(user.at) < TTL);
        if users.len() >= MAX_CACHED_USERS && !users.contains_key(&key) {
            return Arc::default();
        }
        let user =
            users.entry(key).or_insert_with(|| User { permissions: Arc::default(), at: now });
        user.permissions.clone()
    }
}

/// The reviews of one user.
#[derive(Clone)]
struct Reviews {
    caller: Caller,
    scope: Arc<PermissionScope>,
    reviewer: Cluster,
    permits: Arc<Semaphore>,
}

impl Reviews {
    async fn permissions(&self) -> Result<Permissions, ActionError> {
        let (execute, simulate, get, list) = try_join!(
            self.actions(Verb::Execute, &self.scope.execute),
            self.actions(Verb::Simulate, &self.scope.simulate),
            self.actions(Verb::Get, &self.scope.simulate),
            self.is_allowed_somewhere(Verb::List, None),
        )?;
        Ok(Permissions { execute, simulate, get: !get.is_empty(), list })
    }

    async fn actions(
        &self,
        verb: Verb,
        kinds: &[ActionKind],
    ) -> Result<Vec<ActionKind>, ActionError> {
        if self.is_allowed(verb, None, "").await? {
            return Ok(ActionKind::ALL.into());
        }
        let mut reviewed = JoinSet::new();
        for kind in kinds.iter().copied() {
            let reviews = self.clone();
            let review =
                async move { (kind, reviews.is_allowed_somewhere(verb, Some(kind)).await) };
            reviewed.spawn(review);
        }
        let mut allowed = Vec::new();
        while let Some(done) = reviewed.join_next().await {
            let (kind, is_allowed) = done.map_err(|error| {
                ActionError::new(Code::Internal, format!("a review ended early: {error}"))
            })?;
            allowed.extend(is_allowed?.then_some(kind));
        }
        Ok(kinds.iter().copied().filter(|kind| allowed.contains(kind)).collect())
    }

    async fn is_allowed_somewhere(
        &self,
        verb: Verb,
        kind: Option<ActionKind>,
    ) -> Result<bool, ActionError> {
        // A node is in no namespace.
        let on_cluster = kind.is_some_and(ActionKind::is_on_cluster);
        for namespace in self.scope.namespaces.iter().filter(|it| it.is_empty() || !on_cluster) {
            if self.is_allowed(verb, kind, namespace).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_allowed(
        &self,
        verb: Verb,
        kind: Option<ActionKind>,
        namespace: &str,
    ) -> Result<bool, ActionError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let access =
            AccessRequest { verb, kind, namespace, cluster: self.scope.cluster.as_deref() };
        match self.caller.authorize(&access, Some(&self.reviewer)).await {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.code == Code::CallerForbidden => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::keys::Keys, config::reload::ConfigFile, contract::digest::sha256};

    fn on(cluster: &str) -> PermissionScope {
        PermissionScope { cluster: Some(Arc::from(cluster)), ..PermissionScope::default() }
    }

    fn key(user: &str) -> Key {
        (Identity::new(user.to_owned(), Vec::new()), on("blue"))
    }

    #[tokio::test]
    async fn permissions_are_kept_for_a_time_and_for_so_many_users() {
        let (known, now) = (PermissionCache::default(), Instant::now());
        let permissions = Permissions { get: true, ..Permissions::default() };
        known.cell(key("jo"), now).set(permissions.clone()).expect("is empty");
        assert_eq!(known.cell(key("jo"), now).get(), Some(&permissions));
        assert_eq!(known.cell(key("mo"), now).get(), None);
        let namespaces = vec!["shop".to_owned()];
        for elsewhere in [on("red"), PermissionScope { namespaces, ..on("blue") }] {
            assert_eq!(known.cell((key("jo").0, elsewhere), now).get(), None);
        }
        assert_eq!(known.cell(key("jo"), now + TTL).get(), None);
        for number in 0..2 * MAX_CACHED_USERS {
            known.cell(key(&number.to_string()), now + TTL);
        }
        assert_eq!(known.users.lock().expect("is whole").len(), MAX_CACHED_USERS);
    }

    #[tokio::test]
    async fn callers_without_reviews_have_what_their_entry_or_their_platform_allows() {
        let known = PermissionCache::default();
        let of = async |caller: Option<Caller>, cluster: &str| {
            known.of(caller.as_ref(), on(cluster), None).await.expect("are known")
        };
        let all = of(None, "blue").await;
        assert_eq!((all.execute.len(), all.get, all.list), (ActionKind::ALL.len(), true, true));
        assert_eq!(of(Some(Caller::Platform("arn".to_owned())), "blue").await, all);
        let keys = format!("keys: [{{name: jo, sha256: {}, clusters: [blue]}}]", sha256(b"jo-key"));
        let keys = Keys::parse(&keys, "keys.yaml").expect("are keys");
        let jo = || keys.find("jo-key").map(Caller::Key);
        assert_eq!(of(jo(), "blue").await, all);
        assert_eq!(of(jo(), "red").await, Permissions::default());
        let user = Caller::User(Identity::new("jo".to_owned(), Vec::new()));
        assert_eq!(of(Some(user), "blue").await, Permissions::default());
    }
}
