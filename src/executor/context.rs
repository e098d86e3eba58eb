//! What the handler is given besides the request: the cluster, the clock's bounds, a way to tell
//! progress and a way to be told to stop. Made once by an entry point; cheap to clone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    actions::request::ActionRequest,
    config::{Settings, reload::Reloading},
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
    },
    executor::target_lock::TargetLocks,
    k8s::api::client::Cluster,
    ledger::record::RequestMetadata,
    policy::Policy,
    telemetry::metrics::Metrics,
};

/// Told each new stage of a long wait, in a sentence.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// Told that a request's record stands in the ledger, and that its answer may take long: from now on
/// whoever reads the record can tell of it, and a crash loses nothing.
pub type Claimed = Arc<dyn Fn(&RequestMetadata) + Send + Sync>;
/// Told when nothing is left of an action but a long wait, which costs little.
pub type OnWaiting = Arc<dyn Fn() + Send + Sync>;

/// The handler's surroundings.
#[derive(Clone)]
pub struct Context {
    cluster: Option<Cluster>,
    policy: Arc<Reloading<Policy>>,
    deadline: Duration,
    replay_window: Duration,
    progress: Progress,
    claimed: Claimed,
    on_waiting: OnWaiting,
    turns: Arc<TargetLocks>,
    metrics: Option<Arc<Metrics>>,
    stopping: watch::Receiver<bool>,
}

impl Context {
    /// A context for this cluster (none: simulation is offline), this policy and these settings, in
    /// which a wait ends when `stopping` becomes true.
    #[must_use]
    pub fn new(
        cluster: Option<Cluster>,
        policy: Reloading<Policy>,
        settings: &Settings,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let policy = Arc::new(policy);
        let Settings { deadline, replay_window, .. } = *settings;
        let progress: Progress = Arc::new(|_| ());
        let claimed: Claimed = Arc::new(|_| ());
        Context {
            cluster,
            policy,
            deadline,
            replay_window,
            progress,
            claimed,
            on_waiting: Arc::new(|| ()),
            turns: Arc::default(),
            metrics: None,
            stopping,
        }
    }

    /// The same context with somebody to tell progress to.
    #[must_use]
    pub fn telling(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The same context with somebody to tell that a request's record stands.
    #[must_use]
    pub fn claiming(mut self, claimed: Claimed) -> Self {
        self.claimed = claimed;
        self
    }

    /// The same context with one more to tell when only a wait is left.
    #[must_use]
    pub fn resting(mut self, also: OnWaiting) -> Self {
        let before = self.on_waiting;
        self.on_waiting = Arc::new(move || {
            before();
            also();
        });
        self
    }

    /// The same context with somebody to count.
    #[must_use]
    pub fn counting(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The same context for work that has to be over after `left`: its calls are bounded by it, and its
    /// waits told to stop then, if they are not before.
    #[must_use]
    pub fn with_deadline(mut self, left: Duration) -> Self {
        let (stop, stopping) = watch::channel(false);
        let mut before = self.stopping;
        tokio::spawn(async move {
            tokio::select! {
                () = sleep(left) => { let _ = stop.send(true); }
                () = stopped(&mut before) => { let _ = stop.send(true); }
                // Whoever was to be told has gone.
                () = stop.closed() => {}
            }
        });
        self.deadline = self.deadline.min(left);
        self.stopping = stopping;
        self
    }

    /// The cluster, if one is configured.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The cluster, where nothing goes without it; `so` is what comes of there being none.
    ///
    /// # Errors
    /// [`Code::Configuration`] if none is configured.
    pub(crate) fn require_cluster(&self, so: &str) -> Result<&Cluster, ActionError> {
        self.cluster().ok_or_else(|| {
            ActionError::new(Code::Configuration, format!("no cluster is configured, so {so}"))
                .with_hint("set KUBECONFIG, or run where a service account is mounted")
        })
    }

    /// Longest time for the calls of one action, waiting for its effect aside.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How old a real request may be, by its own word.
    #[must_use]
    pub fn replay_window(&self) -> Duration {
        self.replay_window
    }

    /// Becomes true when the process is told to stop.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// The policy as it is now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.current()
    }

    /// Tells that nothing is left but a wait.
    pub(crate) fn waiting(&self) {
        (self.on_waiting)();
    }

    /// The turns of this process at the objects that are acted upon.
    pub(crate) fn target_locks(&self) -> &Arc<TargetLocks> {
        &self.turns
    }

    /// Tells a stage of a wait.
    pub(crate) fn progress(&self, stage: &str) {
        (self.progress)(stage);
    }

    /// Tells that a request's record stands; more than once does no harm.
    pub(crate) fn claimed(&self, subject: &RequestMetadata) {
        (self.claimed)(subject);
    }

    /// Who counts, if somebody does.
    #[must_use]
    pub fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_deref()
    }

    /// Counts an answered action.
    pub(crate) fn count(
        &self,
        request: &ActionRequest,
        result: &Result<ActionResponse, ActionError>,
        took: Duration,
    ) {
        if let Some(metrics) = self.metrics() {
            let result = match result {
                Ok(answer) => answer.outcome.name(),
                Err(error) => error.code.name(),
            };
            metrics.action(request.action.kind().name(), request.simulate, &result, took);
        }
    }

    /// Why the policy's file is not what holds, if it is not.
    #[must_use]
    pub fn policy_error(&self) -> Option<ActionError> {
        self.policy.load_error()
    }

    /// Whether the cluster serves. Without one there is nothing to fail.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn cluster_serves(&self) -> Result<(), ActionError> {
        match &self.cluster {
            Some(cluster) => cluster.ready().await,
            None => Ok(()),
        }
    }
}

/// Returns when we are told to stop; never, when nobody is left who could tell.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
