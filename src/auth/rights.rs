//! What a caller may do on each cluster, in one namespace at least: for the list of what it is offered. No request is
//! authorized by this.
//!
//! The cluster's RBAC can only be asked about one action in one namespace at a time, or about all of them. So the
//! rights of its users take many reviews. They are made a few at a time for all callers together, and their answers are
//! kept for a short time, so that a caller that asks again and again does not make the API server answer each time.

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

/// How long the rights of a user are kept: a list may be wrong for this long, and a request never is.
const TTL: Duration = Duration::from_secs(30);

/// Maximum number of users whose rights are kept.
const MAX_USERS: usize = 256;

/// On how many clusters the rights of a user are looked for: each takes reviews of its own.
const MAX_CLUSTERS: usize = 8;

/// Maximum number of reviews at once.
const MAX_REVIEWS: usize = 16;

/// What a caller may do somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    /// The actions that it may execute, in the registry's order.
    pub execute: Vec<ActionKind>,
    /// The actions that it may simulate, in the registry's order.
    pub simulate: Vec<ActionKind>,
    /// Whether it may read the state of a request.
    pub get: bool,
    /// Whether it may list what was done.
    pub list: bool,
}

impl Rights {
    fn granted_by(may: impl Fn(Verb, Option<ActionKind>) -> bool) -> Self {
        let actions = |verb| {
            let allowed = ActionKind::ALL.into_iter().filter(|kind| may(verb, Some(*kind)));
            allowed.collect::<Vec<_>>()
        };
        Rights {
            execute: actions(Verb::Execute),
            simulate: actions(Verb::Simulate),
            get: !actions(Verb::Get).is_empty(),
            list: may(Verb::List, None),
        }
    }
}

/// A user, and the namespaces in which its rights are looked for.
type Key = (Identity, Vec<String>);

/// The rights of a user on each cluster, once they are read, and since when.
struct User {
    rights: Arc<[OnceCell<Rights>]>,
    at: Instant,
}

/// The rights that were read lately.
pub(crate) struct KnownRights {
    users: Mutex<HashMap<Key, User>>,
    reviews: Arc<Semaphore>,
}

impl Default for KnownRights {
    fn default() -> Self {
        KnownRights { users: Mutex::default(), reviews: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }
}

impl KnownRights {
    /// The rights of this caller on each of these clusters of the list, which are always the same ones; `None` stands for
    /// the only one without a list. Those of a user are looked for on the reviewing one, on the first of the others up to
    /// [`MAX_CLUSTERS`], and in these namespaces, of which the empty one is all at once.
    ///
    /// # Errors
    /// Why the cluster could not answer.
    pub(crate) async fn on_each(
        &self,
        clusters: &[Option<Arc<str>>],
        caller: Option<&Caller>,
        namespaces: Vec<String>,
        reviewer: Option<&Cluster>,
    ) -> Result<Vec<Rights>, ActionError> {
        let granted = |may: &dyn Fn(Option<&str>, Verb, Option<ActionKind>) -> bool| {
            let on = |name: &Option<Arc<str>>| {
                Rights::granted_by(|verb, kind| may(name.as_deref(), verb, kind))
            };
            clusters.iter().map(on).collect()
        };
        let identity = match caller {
            None | Some(Caller::Platform(_)) => return Ok(granted(&|_, _, _| true)),
            Some(Caller::Key(entry)) => {
                return Ok(granted(&|name, verb, kind| entry.allows_somewhere(verb, kind, name)));
            }
            Some(Caller::User(identity)) => identity,
        };
        // Without a cluster RBAC cannot authorize.
        let Some(reviewer) = reviewer else { return Ok(granted(&|_, _, _| false)) };
        let key = (identity.clone(), namespaces.clone());
        let cells = self.cells(key, clusters.len(), Instant::now());
        let namespaces: Arc<[String]> = namespaces.into();
        let mut all = vec![Rights::default(); clusters.len()];
        let mut order: Vec<_> = clusters.iter().zip(&*cells).zip(&mut all).collect();
        order.sort_by_key(|((name, _), _)| name.as_deref() != reviewer.listed_name());
        // One cluster after the other, so that a client that gave up finds what was read of the first ones.
        for ((name, cell), rights) in order.into_iter().take(MAX_CLUSTERS) {
            let reviews = Reviews {
                caller: Caller::User(identity.clone()),
                name: name.clone(),
                namespaces: namespaces.clone(),
                reviewer: reviewer.clone(),
                permits: self.reviews.clone(),
            };
            // Whoever asks meanwhile waits for the same reviews.
            *rights = cell.get_or_try_init(|| reviews.rights()).await?.clone();
        }
        Ok(all)
    }

    fn cells(&self, key: Key, clusters: usize, now: Instant) -> Arc<[OnceCell<Rights>]> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, user| now.saturating_duration_since(user.at) < TTL);
        let unread = || (0..clusters).map(|_| OnceCell::new()).collect();
        if users.len() >= MAX_USERS && !users.contains_key(&key) {
            return unread();
        }
        let user = users.entry(key).or_insert_with(|| User { rights: unread(), at: now });
        user.rights.clone()
    }
}

/// The reviews of one user's rights on one cluster.
#[derive(Clone)]
struct Reviews {
    caller: Caller,
    /// The cluster's name, if there is a list.
    name: Option<Arc<str>>,
    namespaces: Arc<[String]>,
    reviewer: Cluster,
    permits: Arc<Semaphore>,
}

impl Reviews {
    async fn rights(&self) -> Result<Rights, ActionError> {
        let (execute, simulate, get, list) = try_join!(
            self.actions(Verb::Execute),
            self.actions(Verb::Simulate),
            self.actions(Verb::Get),
            self.may_somewhere(Verb::List, None),
        )?;
        Ok(Rights { execute, simulate, get: !get.is_empty(), list })
    }

    async fn actions(&self, verb: Verb) -> Result<Vec<ActionKind>, ActionError> {
        if self.may(verb, None, "").await? {
            return Ok(ActionKind::ALL.into());
        }
        let mut reviewed = JoinSet::new();
        for kind in ActionKind::ALL {
            let reviews = self.clone();
            let may = async move { (kind, reviews.may_somewhere(verb, Some(kind)).await) };
            reviewed.spawn(may);
        }
        let mut allowed = Vec::new();
        while let Some(done) = reviewed.join_next().await {
            let (kind, may) = done.map_err(|error| {
                ActionError::new(Code::Internal, format!("a review ended early: {error}"))
            })?;
            allowed.extend(may?.then_some(kind));
        }
        Ok(ActionKind::ALL.into_iter().filter(|kind| allowed.contains(kind)).collect())
    }

    async fn may_somewhere(
        &self,
        verb: Verb,
        kind: Option<ActionKind>,
    ) -> Result<bool, ActionError> {
        // A node is in no namespace.
        let on_cluster = kind.is_some_and(ActionKind::is_on_cluster);
        for namespace in self.namespaces.iter().filter(|it| it.is_empty() || !on_cluster) {
            if self.may(verb, kind, namespace).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn may(
        &self,
        verb: Verb,
        kind: Option<ActionKind>,
        namespace: &str,
    ) -> Result<bool, ActionError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let access = AccessRequest { verb, kind, namespace, cluster: self.name.as_deref() };
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

    fn key(user: &str) -> Key {
        (Identity::new(user.to_owned(), Vec::new()), vec![String::new()])
    }

    #[tokio::test]
    async fn rights_are_kept_for_a_time_and_for_so_many_users() {
        let (known, now) = (KnownRights::default(), Instant::now());
        let rights = Rights { get: true, ..Rights::default() };
        known.cells(key("jo"), 2, now)[1].set(rights.clone()).expect("is empty");
        let of = |key: Key, at| known.cells(key, 2, at)[1].get().cloned();
        assert_eq!(of(key("jo"), now), Some(rights));
        assert_eq!(known.cells(key("jo"), 2, now)[0].get(), None, "on another cluster");
        assert_eq!(of(key("mo"), now), None);
        let elsewhere = (key("jo").0, vec!["shop".to_owned()]);
        assert_eq!(of(elsewhere, now), None);
        assert_eq!(of(key("jo"), now + TTL), None);
        for number in 0..2 * MAX_USERS {
            of(key(&number.to_string()), now + TTL);
        }
        assert_eq!(known.users.lock().expect("is whole").len(), MAX_USERS);
    }

    #[tokio::test]
    async fn callers_without_reviews_have_what_their_entry_or_their_platform_allows() {
        let known = KnownRights::default();
        let clusters = ["green", "blue", "red"].map(|name| Some(Arc::from(name)));
        let of = async |caller: Option<Caller>| {
            known.on_each(&clusters, caller.as_ref(), Vec::new(), None).await.expect("are known")
        };
        let all = Rights::granted_by(|_, _| true);
        assert_eq!((all.execute.len(), all.get, all.list), (ActionKind::ALL.len(), true, true));
        let (everywhere, nowhere) = (vec![all.clone(); 3], vec![Rights::default(); 3]);
        assert_eq!(of(None).await, everywhere);
        assert_eq!(of(Some(Caller::Platform("arn".to_owned()))).await, everywhere);
        let digest = sha256(b"jo-key");
        let keys = format!("keys: [{{name: jo, sha256: {digest}, clusters: [blue]}}]");
        let keys = Keys::parse(&keys, "keys.yaml").expect("are keys");
        let jo = keys.find("jo-key").map(Caller::Key);
        assert_eq!(of(jo).await, [Rights::default(), all, Rights::default()]);
        let user = Caller::User(Identity::new("jo".to_owned(), Vec::new()));
        assert_eq!(of(Some(user)).await, nowhere);
    }
}
