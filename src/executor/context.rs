//! What every action needs besides its request: the cluster, the policy, time limits, an observer, the stop
//! signal. An entry point makes it once; a clone is cheap. It knows no transport.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    config::{OwnPod, Settings, reload::Reloading},
    contract::error::{ActionError, Code},
    executor::{observer::Observer, target_lock::TargetLocks},
    k8s::api::client::Cluster,
    policy::Policy,
    telemetry::metrics::Metrics,
};

/// What every action needs besides its request.
#[derive(Clone)]
pub struct Context {
    cluster: Option<Cluster>,
    policy: Arc<Reloading<Policy>>,
    deadline: Duration,
    replay_window: Duration,
    own_pod: Option<Arc<OwnPod>>,
    cluster_name: Option<Arc<str>>,
    observer: Observer,
    target_locks: Arc<TargetLocks>,
    stopping: watch::Receiver<bool>,
}

impl Context {
    /// A context for this cluster (`None`: simulations are offline), this policy and these settings. Waits
    /// end when `stopping` becomes true.
    #[must_use]
    pub fn new(
        cluster: Option<Cluster>,
        policy: Reloading<Policy>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let Settings { deadline, replay_window, .. } = *settings;
        let name =
            |cluster: &Cluster| settings.cluster_name.as_deref().unwrap_or(cluster.name()).into();
        let cluster_name = cluster.as_ref().map(name);
        Context {
            own_pod: settings.own_pod.clone().map(Arc::new),
            cluster_name,
            cluster,
            policy: Arc::new(policy),
            deadline,
            replay_window,
            observer: Observer::default(),
            target_locks: Arc::default(),
            stopping,
        }
    }

    /// The context with its observer changed, as by `|observer| observer.on_waiting(...)`.
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

    /// The cluster, if one is configured.
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

    /// Why the policy file is not the policy in use, if it is not.
    pub(crate) fn policy_error(&self) -> Option<ActionError> {
        self.policy.load_error()
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The metrics, if there are any.
    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.observer.metrics()
    }

    pub(crate) fn target_locks(&self) -> &TargetLocks {
        &self.target_locks
    }

    /// Whether the cluster answers. Without a cluster nothing can fail.
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

/// Returns when the process is shutting down; never, if its sender is gone.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
