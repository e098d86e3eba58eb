//! What every action needs besides its request: the cluster, the policy, time limits, an observer, the stop
//! signal. An entry point makes it once; a clone is cheap. It knows no transport.
//!
//! Where several clusters are listed, a context is of none of them until a request has named one: `for_cluster` chooses
//! it, and with it the client, the policy, the locks and the name, so that nothing after it knows more than one
//! cluster.
//!
//! The cluster is known as whom: records, budget, reviews and readiness are always the executor's own, and the calls
//! about a target may be made as the caller. Then a context has no cluster for targets before the caller is known, so
//! that no call is made as the executor by mistake.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    auth::{Caller, impersonation::impersonation_of},
    config::{
        OwnPod, Settings,
        clusters::{ClusterList, another_cluster},
        impersonation::ImpersonationRules,
        reload::Reloading,
    },
    contract::{
        error::{ActionError, Code},
        names::ClusterName,
    },
    executor::{
        clusters::{ClusterNames, Clusters, Member, of_cluster},
        observer::Observer,
        reports::Reports,
        target_lock::TargetLocks,
    },
    k8s::api::{client::Cluster, connect::connect, impersonation::Impersonation},
    policy::Policy,
    telemetry::{calls::Calls, metrics::Metrics},
};

/// What every action needs besides its request.
#[derive(Clone)]
pub struct Context {
    /// The cluster of the request; where several are listed, none until it is known.
    cluster: Option<Cluster>,
    listed: Option<Listed>,
    actor: Actor,
    policy: Arc<Reloading<Policy>>,
    deadline: Duration,
    replay_window: Duration,
    own_pod: Option<Arc<OwnPod>>,
    cluster_name: Option<Arc<str>>,
    observer: Observer,
    target_locks: Arc<TargetLocks>,
    reports: Reports,
    stopping: watch::Receiver<bool>,
}

/// What a context knows of a list of clusters.
#[derive(Clone)]
struct Listed {
    clusters: Arc<Clusters>,
    /// The name of the cluster of the request, once it is known.
    chosen: Option<Arc<str>>,
}

/// As whom the calls about targets are made.
#[derive(Clone)]
enum Actor {
    /// As the executor itself.
    Executor,
    /// As the caller, who is not known yet.
    Unknown(Arc<ImpersonationRules>),
    /// As this caller; without a cluster there are no calls.
    Caller(Arc<Impersonation>, Option<Arc<Cluster>>),
}

impl Context {
    /// A context for this cluster (`None`: simulations are offline), this policy and these settings. Waits
    /// end when `stopping` becomes true.
    ///
    /// # Errors
    /// [`Code::Configuration`] if what the settings name for reports cannot be used, or if callers are to be
    /// impersonated and the kubeconfig impersonates a user already.
    pub fn new(
        cluster: Option<Cluster>,
        policy: Reloading<Policy>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, ActionError> {
        if let Some(cluster) = cluster.as_ref().filter(|_| settings.impersonation.is_some()) {
            cluster.check_acts_as_itself()?;
        }
        Context::with_policy(cluster, Arc::new(policy), settings, stopping)
    }

    fn with_policy(
        cluster: Option<Cluster>,
        policy: Arc<Reloading<Policy>>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, ActionError> {
        let Settings { deadline, replay_window, .. } = *settings;
        let name =
            |cluster: &Cluster| settings.cluster_name.as_deref().unwrap_or(cluster.name()).into();
        let cluster_name = cluster.as_ref().map(name);
        Ok(Context {
            listed: None,
            own_pod: settings.own_pod.clone().map(Arc::new),
            cluster_name,
            cluster,
            actor: match &settings.impersonation {
                Some(rules) => Actor::Unknown(Arc::new(rules.clone())),
                None => Actor::Executor,
            },
            policy,
            deadline,
            replay_window,
            observer: Observer::default(),
            target_locks: Arc::default(),
            reports: Reports::new(settings)?,
            stopping,
        })
    }

    /// A context for the clusters of the settings' list, or without a list for the cluster of this kubeconfig context,
    /// if there is any. Nothing is sent.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the list, a kubeconfig or a policy cannot be used.
    pub(crate) async fn connect(
        kube_context: Option<&str>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, ActionError> {
        Context::connect_to(ClusterList::of(settings)?, kube_context, settings, stopping).await
    }

    /// The same for the clusters of this list, which has been read.
    ///
    /// # Errors
    /// [`Code::Configuration`] if a kubeconfig or a policy cannot be used.
    pub(crate) async fn connect_to(
        list: Option<ClusterList>,
        kube_context: Option<&str>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, ActionError> {
        let Some(list) = list else {
            let policy = Reloading::new(settings.policy.clone())?;
            return Context::new(connect(kube_context).await?, policy, settings, stopping);
        };
        refuse_context(kube_context)?;
        let policy = Arc::new(Reloading::new(settings.policy.clone())?);
        let clusters = Arc::new(Clusters::connect(list, &policy, settings).await?);
        let context = Context::with_policy(None, policy, settings, stopping)?;
        Ok(Context { listed: Some(Listed { clusters, chosen: None }), ..context })
    }

    /// The context of the cluster that a request means: the one that it names, or the default.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if there is no such cluster, or if it has to be named.
    pub(crate) fn for_cluster(&self, name: Option<&ClusterName>) -> Result<Self, ActionError> {
        if let Some(Listed { clusters, chosen: None }) = &self.listed {
            let member = clusters.choose(name.map(|name| &**name))?;
            return Ok(self.of_member(clusters, member));
        }
        match name {
            Some(name) if self.cluster_name.as_deref() != Some(&**name) => {
                Err(another_cluster(self.cluster_name.as_deref()))
            }
            _ => Ok(self.clone()),
        }
    }

    fn of_member(&self, clusters: &Arc<Clusters>, member: &Member) -> Self {
        let chosen = Some(member.name.clone());
        Context {
            cluster: Some(member.cluster.clone()),
            cluster_name: chosen.clone(),
            policy: member.policy.clone(),
            target_locks: member.target_locks.clone(),
            own_pod: member.own_pod.clone(),
            listed: Some(Listed { clusters: clusters.clone(), chosen }),
            ..self.clone()
        }
    }

    /// The context of each cluster: those of the list, or the only one.
    pub(crate) fn each_cluster(&self) -> Vec<Self> {
        match &self.listed {
            Some(Listed { clusters, chosen: None }) => {
                let members = clusters.members().iter();
                members.map(|member| self.of_member(clusters, member)).collect()
            }
            _ => vec![self.clone()],
        }
    }

    /// The name of the request's cluster in the list, if there is a list.
    pub(crate) fn listed_name(&self) -> Option<&str> {
        self.shared_listed_name().map(|name| &**name)
    }

    /// The same, for those who keep it.
    pub(crate) fn shared_listed_name(&self) -> Option<&Arc<str>> {
        self.listed.as_ref()?.chosen.as_ref()
    }

    /// The names of the list, if there is a list.
    pub(crate) fn names(&self) -> Option<ClusterNames> {
        self.listed.as_ref().map(|Listed { clusters, .. }| clusters.names())
    }

    /// Whether there is a list of clusters.
    pub(crate) fn has_list(&self) -> bool {
        self.listed.is_some()
    }

    /// The cluster of the list that a request with this name, or with none, means, if there is such a cluster.
    pub(crate) fn meant_by(&self, name: Option<&str>) -> Option<&Arc<str>> {
        let Listed { clusters, .. } = self.listed.as_ref()?;
        clusters.choose(name).ok().map(|member| &member.name)
    }

    /// The calls to all clusters, if there is one.
    pub(crate) fn calls(&self) -> Option<&Calls> {
        match &self.listed {
            Some(Listed { clusters, .. }) => Some(clusters.calls()),
            None => self.cluster().map(Cluster::calls),
        }
    }

    /// The cluster that reviews the tokens and the permissions of callers, if there is one.
    pub(crate) fn reviewer(&self) -> Option<&Cluster> {
        match &self.listed {
            Some(Listed { clusters, .. }) => clusters.reviewer().map(|member| &member.cluster),
            None => self.cluster(),
        }
    }

    /// The context with its observer changed, for example by `|observer| observer.on_waiting(...)`.
    pub(crate) fn map_observer(mut self, change: impl FnOnce(Observer) -> Observer) -> Self {
        self.observer = change(self.observer);
        self
    }

    /// The context for work that ends within `limit`: its calls are bounded by it, and its waits end then
    /// if they have not ended before.
    pub(crate) fn with_deadline(self, limit: Duration) -> Self {
        self.with_call_limit(limit).with_waits_until(sleep(limit))
    }

    /// The context for work whose calls are bounded by `limit`.
    pub(crate) fn with_call_limit(mut self, limit: Duration) -> Self {
        self.deadline = self.deadline.min(limit);
        self
    }

    /// The context for work whose waits end when `end` does.
    pub(crate) fn with_waits_until(
        mut self,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (stop, stopping) = watch::channel(false);
        let mut outer = self.stopping;
        tokio::spawn(async move {
            tokio::select! {
                () = end => { let _ = stop.send(true); }
                () = stopped(&mut outer) => { let _ = stop.send(true); }
                // The work is over.
                () = stop.closed() => {}
            }
        });
        self.stopping = stopping;
        self
    }

    /// The context in which the calls about targets are made as this caller, if callers are impersonated.
    ///
    /// # Errors
    /// [`Code::CallerForbidden`] if the caller is no user of the cluster that may be impersonated, or why the cluster
    /// could not answer.
    pub(crate) async fn acting_for(&self, caller: Option<&Caller>) -> Result<Self, ActionError> {
        // The calls of this caller are to the cluster of the request.
        let context = self.for_cluster(None)?;
        let Actor::Unknown(rules) = &context.actor else { return Ok(context) };
        let person = impersonation_of(rules, caller)?;
        let deadline = Instant::now() + context.deadline;
        let cluster = match &context.cluster {
            Some(cluster) => {
                Some(Arc::new(Box::pin(cluster.acting_as(person.clone(), deadline)).await?))
            }
            None => None,
        };
        Ok(Context { actor: Actor::Caller(Arc::new(person), cluster), ..context })
    }

    /// As whom the calls about targets are made, if as a caller.
    pub(crate) fn impersonation(&self) -> Option<&Arc<Impersonation>> {
        match &self.actor {
            Actor::Caller(person, _) => Some(person),
            Actor::Executor | Actor::Unknown(_) => None,
        }
    }

    /// The cluster for the calls about targets; `consequence` as in [`Context::require_cluster`].
    ///
    /// # Errors
    /// [`Code::Configuration`] if no cluster is configured, or if there is no caller to impersonate.
    pub(crate) fn target_cluster(&self, consequence: &str) -> Result<&Cluster, ActionError> {
        let own = self.require_cluster(consequence)?;
        match &self.actor {
            Actor::Executor => Ok(own),
            Actor::Caller(_, Some(cluster)) => Ok(cluster),
            Actor::Caller(_, None) | Actor::Unknown(_) => Err(ActionError::new(
                Code::Configuration,
                "callers are impersonated here, and this request has no caller",
            )
            .with_hint("only `serve` has callers: unset ACTION_EXECUTOR_IMPERSONATE elsewhere")),
        }
    }

    /// The cluster with the executor's own identity, if one is configured.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The cluster's name for people, if one is configured.
    pub(crate) fn cluster_name(&self) -> Option<&Arc<str>> {
        self.cluster_name.as_ref()
    }

    /// The cluster, where nothing works without one; `consequence` ends the sentence "no cluster is
    /// configured, so ...".
    ///
    /// # Errors
    /// [`Code::Configuration`] if none is configured.
    pub(crate) fn require_cluster(&self, consequence: &str) -> Result<&Cluster, ActionError> {
        self.cluster().ok_or_else(|| {
            let detail = format!("no cluster is configured, so {consequence}");
            ActionError::new(Code::Configuration, detail)
                .with_hint("set KUBECONFIG, or run where a service account is mounted")
        })
    }

    /// The time limit for the calls of one action; the wait for its effect does not count.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The maximum age of a real request, by its own `issued_at`.
    pub(crate) fn replay_window(&self) -> Duration {
        self.replay_window
    }

    /// The pod in which this process runs, if it is known.
    pub(crate) fn own_pod(&self) -> Option<&OwnPod> {
        self.own_pod.as_deref()
    }

    /// Becomes true when the process is shutting down.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// The current policy. This reads the file: call it once per request, and once more for the recheck
    /// right before an effect.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.current()
    }

    /// Checks that the policy file of a cluster in a list is the policy in use. Without a list the server is not ready
    /// while it is not, and gets no requests; with one it stays ready for the other clusters.
    ///
    /// # Errors
    /// [`Code::Configuration`] with the cluster's name and the reason.
    pub(crate) fn check_policy_in_use(&self) -> Result<(), ActionError> {
        match (self.listed_name(), self.policy.load_error()) {
            (Some(name), Some(error)) => Err(of_cluster(name, error)),
            _ => Ok(()),
        }
    }

    /// Why a policy file is not the policy in use, if it is not.
    pub(crate) fn policy_error(&self) -> Option<ActionError> {
        self.each_cluster().iter().find_map(|context| context.policy.load_error())
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The metrics, if there are any.
    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.observer.metrics()
    }

    /// Where the ends of actions are reported.
    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    pub(crate) fn target_locks(&self) -> &TargetLocks {
        &self.target_locks
    }

    /// Whether the cluster of this context answers. Without a cluster nothing can fail.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn cluster_serves(&self) -> Result<(), ActionError> {
        match &self.cluster {
            Some(cluster) => cluster.ready().await,
            None => Ok(()),
        }
    }
}

/// A list of clusters names their contexts itself.
///
/// # Errors
/// [`Code::Configuration`] if a context is given all the same.
pub(crate) fn refuse_context(kube_context: Option<&str>) -> Result<(), ActionError> {
    match kube_context {
        None => Ok(()),
        Some(_) => {
            let detail = "--context and ACTION_EXECUTOR_CLUSTERS cannot be combined";
            Err(ActionError::new(Code::Configuration, detail)
                .with_hint("name a cluster of the list with --cluster, or in the request"))
        }
    }
}

/// Returns when the process is shutting down; never, if its sender is gone.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::reload::ConfigFile;

    /// The context of two clusters, the second of which is `blue`, whose kubeconfig has a user with these fields.
    async fn listed(user: &str, settings: &[(&str, &str)]) -> Result<Context, ActionError> {
        let path = std::env::temp_dir().join(format!("kubeconfig-{}", uuid::Uuid::now_v7()));
        let text = |user: &str| {
            format!(
                "{{current-context: a, clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:1'}}}}], \
                 contexts: [{{name: a, context: {{cluster: a, user: a}}}}, \
                 {{name: b, context: {{cluster: a, user: b}}}}], \
                 users: [{{name: a, user: {{}}}}, {{name: b, user: {user}}}]}}"
            )
        };
        fs::write(&path, text(user)).expect("is written");
        let file = path.display();
        let list = format!(
            "clusters: [{{name: green, kubeconfig: {file}}}, {{name: blue, kubeconfig: {file}, context: b}}]"
        );
        let list = ClusterList::parse(&list, "clusters.yaml").expect("is one");
        let settings = settings.iter().map(|(name, value)| (name.into(), value.into()));
        let settings = Settings::from_vars(settings).expect("are read");
        let (_, stopping) = watch::channel(false);
        let context = Context::connect_to(Some(list), None, &settings, stopping).await;
        fs::remove_file(&path).expect("is removed");
        context
    }

    fn named(name: &str) -> ClusterName {
        ClusterName::try_from(name.to_owned()).expect("is one")
    }

    #[tokio::test]
    async fn clusters_without_a_policy_of_their_own_share_the_one_that_is_read_at_the_start() {
        let context = listed("{}", &[]).await.expect("is connected");
        for name in ["green", "blue"] {
            let of_cluster = context.for_cluster(Some(&named(name))).expect("is listed");
            assert!(Arc::ptr_eq(&context.policy, &of_cluster.policy), "{name}");
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_impersonates_is_refused_with_the_name_of_its_cluster() {
        let impersonate = ("ACTION_EXECUTOR_IMPERSONATE", "callers");
        assert!(listed("{}", &[impersonate]).await.is_ok());
        assert!(listed("{as: jo}", &[]).await.is_ok());
        let error = listed("{as: jo}", &[impersonate]).await.err().expect("is refused");
        assert_eq!(error.code, Code::Configuration);
        assert!(error.detail.starts_with("cluster blue of the list: "), "{error}");
    }

    #[tokio::test]
    async fn the_own_pod_is_known_on_no_cluster_that_a_kubeconfig_names() {
        let own = [("POD_NAME", "executor-1"), ("NODE_NAME", "n1")];
        let context = listed("{}", &own).await.expect("is connected");
        assert!(context.own_pod().is_some());
        for name in ["green", "blue"] {
            let of_cluster = context.for_cluster(Some(&named(name))).expect("is listed");
            assert_eq!(of_cluster.own_pod(), None, "{name}");
        }
    }
}
