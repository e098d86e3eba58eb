//! What the handler is given besides the request: the cluster, the clock's bounds, a way to tell
//! progress and a way to be told to stop. Made once by an entry point; cheap to clone.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    budget::{Budget, spent::Limits},
    error::ActionError,
    k8s::cluster::Cluster,
};

/// Told each new stage of a long wait, in a sentence.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// The handler's surroundings.
#[derive(Clone)]
pub struct Context {
    cluster: Option<Cluster>,
    deadline: Duration,
    progress: Progress,
    stopping: watch::Receiver<bool>,
}

impl Context {
    /// A context for this cluster (none: simulation is offline), where calls to the cluster for one
    /// action end within `deadline` and a wait ends when `stopping` becomes true.
    #[must_use]
    pub fn new(
        cluster: Option<Cluster>,
        deadline: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Context { cluster, deadline, progress: Arc::new(|_| ()), stopping }
    }

    /// The same context with somebody to tell progress to.
    #[must_use]
    pub fn telling(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The cluster, if one is configured.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Longest time for the calls of one action, waiting for its effect aside.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Becomes true when the process is told to stop.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// The books in which real actions are counted.
    pub(crate) fn budget<'a>(&self, cluster: &'a Cluster) -> Budget<'a> {
        let namespace = cluster.home_namespace().to_owned();
        Budget::new(cluster, namespace, "action-executor".to_owned(), Limits::default())
    }

    /// Tells a stage of a wait.
    pub(crate) fn tell(&self, stage: &str) {
        (self.progress)(stage);
    }

    /// Whether an action could be done now.
    ///
    /// # Errors
    /// Why the cluster does not serve. Without a cluster there is nothing to fail.
    pub async fn ready(&self) -> Result<(), ActionError> {
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
