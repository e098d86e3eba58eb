//! The clusters of a list, connected: each with its client, its policy and its locks. Which one a request means is the
//! list's decision (`config::clusters`). Connecting sends nothing, so a cluster that is down does not matter here.

use std::sync::Arc;

use crate::{
    config::{
        OwnPod, Settings,
        clusters::{ClusterEntry, ClusterList},
        reload::{Reloading, Source},
    },
    contract::error::{ActionError, Code},
    executor::target_lock::TargetLocks,
    k8s::api::{client::Cluster, connect::connect_to},
    policy::Policy,
    telemetry::calls::{Calls, no_calls},
};

/// The clusters on which requests may act by name.
pub(crate) struct Clusters {
    list: ClusterList,
    /// In the order of the list.
    members: Vec<Member>,
    /// The calls to all of them.
    calls: Calls,
}

/// The names of a list, for those who choose one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterNames {
    /// In the order of the list.
    pub all: Vec<Arc<str>>,
    /// The cluster of requests that name none, if they may leave the name out.
    pub default: Option<Arc<str>>,
}

/// One cluster, with what is its own.
#[derive(Clone)]
pub(crate) struct Member {
    pub name: Arc<str>,
    pub cluster: Cluster,
    pub policy: Arc<Reloading<Policy>>,
    pub target_locks: Arc<TargetLocks>,
    /// The program's own pod, if it is on this cluster.
    pub own_pod: Option<Arc<OwnPod>>,
}

impl Clusters {
    /// Connects to each cluster of the list, with the `common` policy where an entry has none of its own.
    ///
    /// # Errors
    /// [`Code::Configuration`] with the name of the cluster whose kubeconfig, context or policy cannot be used.
    pub(crate) async fn connect(
        list: ClusterList,
        common: &Arc<Reloading<Policy>>,
        settings: &Settings,
    ) -> Result<Self, ActionError> {
        let (calls, mut members) = (no_calls(), Vec::new());
        for entry in &list.clusters {
            let policy = match &entry.policy {
                Some(path) => Arc::new(
                    Reloading::new(Some(Source::File(path.clone())))
                        .map_err(|error| of_cluster(&entry.name, error))?,
                ),
                None => common.clone(),
            };
            let cluster = connect_entry(entry, &calls).await?;
            if settings.impersonation.is_some() {
                cluster.check_acts_as_itself().map_err(|error| of_cluster(&entry.name, error))?;
            }
            let own_pod = entry.own_pod(settings.own_pod.as_ref()).map(Arc::new);
            let (name, target_locks) = (Arc::from(&*entry.name), Arc::default());
            members.push(Member { name, cluster, policy, target_locks, own_pod });
        }
        Ok(Clusters { list, members, calls })
    }

    /// The cluster that a request means.
    ///
    /// # Errors
    /// As [`ClusterList::choose`].
    pub(crate) fn choose(&self, name: Option<&str>) -> Result<&Member, ActionError> {
        let index = self.list.choose(name)?;
        self.members.get(index).ok_or_else(|| {
            ActionError::new(
                Code::Internal,
                "the list of clusters does not match the connections, which is a defect of the program",
            )
        })
    }

    /// The cluster that reviews the tokens and the permissions of callers, if there is one.
    pub(crate) fn reviewer(&self) -> Option<&Member> {
        self.members.get(self.list.reviewer()?)
    }

    /// The calls to all of them.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// All of them, in the order of the list.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Their names.
    pub(crate) fn names(&self) -> ClusterNames {
        let name = |member: &Member| member.name.clone();
        ClusterNames {
            all: self.members.iter().map(name).collect(),
            default: self.choose(None).ok().map(name),
        }
    }
}

/// Connects to the cluster of one entry; nothing is sent.
///
/// # Errors
/// [`Code::Configuration`] with the cluster's name.
pub(crate) async fn connect_entry(
    entry: &ClusterEntry,
    calls: &Calls,
) -> Result<Cluster, ActionError> {
    let found = connect_to(entry.kubeconfig.as_deref(), entry.context.as_deref()).await;
    let found = found.map_err(|error| of_cluster(&entry.name, error))?;
    let cluster = found.ok_or_else(|| {
        let missing =
            ActionError::new(Code::Configuration, "there is no kubeconfig and no service account");
        of_cluster(&entry.name, missing)
    })?;
    Ok(cluster.listed(Arc::from(&*entry.name), calls.clone()))
}

/// The same error, with the name of the cluster that it concerns.
pub(crate) fn of_cluster(name: &str, error: ActionError) -> ActionError {
    let detail = format!("cluster {name} of the list: {}", error.detail);
    ActionError { detail, ..error }
}
