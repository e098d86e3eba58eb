//! What a caller may do in one namespace at least: for the list of what it is offered. No request is authorized by this.
//!
//! The cluster's RBAC can only be asked about one action in one namespace at a time, or about all of them. So the rights
//! of its users take many reviews. They are made a few at a time for all callers together, and their answers are kept for
//! a short time, so that a caller that asks again and again does not make the API server answer each time.

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

/// The rights of a user, once they are read, and since when.
struct User {
    rights: Arc<OnceCell<Rights>>,
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
    /// The rights of this caller; of a user of the cluster in these namespaces, of which the empty one is all at once.
    ///
    /// # Errors
    /// Why the cluster could not answer.
    pub(crate) async fn of(
        &self,
        caller: Option<&Caller>,
        namespaces: Vec<String>,
        cluster: Option<&Cluster>,
    ) -> Result<Rights, ActionError> {
        let identity = match caller {
            None | Some(Caller::Platform(_)) => return Ok(Rights::granted_by(|_, _| true)),
            Some(Caller::Key(entry)) => {
                return Ok(Rights::granted_by(|verb, kind| entry.allows_somewhere(verb, kind)));
            }
            Some(Caller::User(identity)) => identity,
        };
        // Without a cluster RBAC cannot authorize.
        let Some(cluster) = cluster else { return Ok(Rights::default()) };
        let cell = self.cell((identity.clone(), namespaces.clone()), Instant::now());
        // Whoever asks meanwhile waits for the same reviews.
        let read = cell.get_or_try_init(|| async {
            let reviews = Reviews {
                caller: Caller::User(identity.clone()),
                namespaces: namespaces.into(),
                cluster: cluster.clone(),
                permits: self.reviews.clone(),
            };
            reviews.rights().await
        });
        read.await.cloned()
    }

    fn cell(&self, key: Key, now: Instant) -> Arc<OnceCell<Rights>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, user| now.saturating_duration_since(user.at) < TTL);
        if users.len() >= MAX_USERS && !users.contains_key(&key) {
            return Arc::default();
        }
        let user = users.entry(key).or_insert_with(|| User { rights: Arc::default(), at: now });
        user.rights.clone()
    }
}

/// The reviews of one user.
#[derive(Clone)]
struct Reviews {
    caller: Caller,
    namespaces: Arc<[String]>,
    cluster: Cluster,
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
        let access = AccessRequest { verb, kind, namespace, cluster: None };
        match self.caller.authorize(&access, Some(&self.cluster)).await {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.code == Code::CallerForbidden => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(user: &str) -> Key {
        (Identity::new(user.to_owned(), Vec::new()), vec![String::new()])
    }

    #[tokio::test]
    async fn rights_are_kept_for_a_time_and_for_so_many_users() {
        let (known, now) = (KnownRights::default(), Instant::now());
        let rights = Rights { get: true, ..Rights::default() };
        known.cell(key("jo"), now).set(rights.clone()).expect("is empty");
        assert_eq!(known.cell(key("jo"), now).get(), Some(&rights));
        assert_eq!(known.cell(key("mo"), now).get(), None);
        let elsewhere = (key("jo").0, vec!["shop".to_owned()]);
        assert_eq!(known.cell(elsewhere, now).get(), None);
        assert_eq!(known.cell(key("jo"), now + TTL).get(), None);
        for number in 0..2 * MAX_USERS {
            known.cell(key(&number.to_string()), now + TTL);
        }
        assert_eq!(known.users.lock().expect("is whole").len(), MAX_USERS);
    }

    #[tokio::test]
    async fn callers_without_reviews_have_what_their_entry_or_their_platform_allows() {
        let known = KnownRights::default();
        let all = known.of(None, Vec::new(), None).await.expect("are known");
        assert_eq!((all.execute.len(), all.get, all.list), (ActionKind::ALL.len(), true, true));
        let platform = Caller::Platform("arn".to_owned());
        assert_eq!(known.of(Some(&platform), Vec::new(), None).await, Ok(all));
        let user = Caller::User(Identity::new("jo".to_owned(), Vec::new()));
        assert_eq!(known.of(Some(&user), Vec::new(), None).await, Ok(Rights::default()));
    }
}
