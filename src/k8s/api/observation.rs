//! Reads the pods that an effect left behind, and its workload after them: a workload that is scaled down has the lower
//! number before its pods go.
//!
//! Decides nothing: `k8s::observation` interprets what was read.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{client::Cluster, completion::found_opt},
        completion::{self, AwaitedRollout, Completion},
        observation::{ObservedPods, PodsSnapshot},
        replacement,
        rollout::RolloutStatus,
        workload::Workload,
    },
};

/// Another change is no failure of the rollout, but what was rolled out is not there any more.
const CHANGED: &str = "another change replaced what this request had rolled out";

impl Cluster {
    /// Reads the pods once; `selector` is that of a workload, once it is known.
    ///
    /// # Errors
    /// Why they could not be read before `deadline`.
    pub(crate) async fn read_observed_pods(
        &self,
        completion: &Completion,
        pods: &ObservedPods<'_>,
        selector: &mut Option<String>,
        deadline: Instant,
    ) -> Result<PodsSnapshot, ActionError> {
        let mut snapshot = PodsSnapshot::default();
        match pods {
            ObservedPods::Workload { namespace, .. } => {
                let selector = match selector {
                    Some(selector) => selector,
                    None => match self.observed_workload(completion, deadline).await?.0 {
                        Some(workload) => selector.insert(workload.label_selector()),
                        None => {
                            snapshot.status = Some(deleted(completion));
                            return Ok(snapshot);
                        }
                    },
                };
                let params = ListParams::default().labels(selector);
                let add = |page: Vec<Pod>| snapshot.add(page);
                self.each_page(Some(namespace), params, deadline, add).await?;
                let (workload, status) = self.observed_workload(completion, deadline).await?;
                snapshot.desired = workload.map(|workload| workload.desired_pods());
                snapshot.status = Some(status);
            }
            ObservedPods::Successors { namespace, controller_uid, query, known } => {
                let found =
                    self.controlled_pods(namespace, controller_uid, query, deadline).await?;
                snapshot.add(replacement::unknown(&found, known).into_iter().cloned());
            }
            ObservedPods::Pod { namespace, name, uid } => {
                let found = self.get_opt::<Pod>(namespace, name, deadline).await?;
                snapshot.add(found.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)));
            }
        }
        Ok(snapshot)
    }

    /// The workload as it is now, if it is there, and how far the effect is on it.
    async fn observed_workload(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<(Option<Workload>, RolloutStatus), ActionError> {
        match completion {
            Completion::RolledOut(awaited) => {
                let AwaitedRollout { kind, namespace, name, exceeded_at, .. } = awaited;
                let found = self.workload_and_template(*kind, namespace, name, deadline).await;
                let Some((workload, template)) = found_opt(found)? else {
                    return Ok((None, deleted(completion)));
                };
                let status = match awaited.superseded(&workload, &template) {
                    Some(_) => RolloutStatus::Failed(CHANGED.to_owned()),
                    None => {
                        let stale = exceeded_at.as_deref();
                        completion::rollout_status(&workload, &template, awaited, stale)
                    }
                };
                Ok((Some(workload), status))
            }
            Completion::Scaled { kind, namespace, name, uid, replicas } => {
                let found = self.workload(*kind, namespace, name, deadline).await;
                let Some(workload) = found_opt(found)? else {
                    return Ok((None, deleted(completion)));
                };
                let status = completion::scale_status(&workload, uid.as_deref(), *replicas);
                Ok((Some(workload), status))
            }
            _ => Ok((None, deleted(completion))),
        }
    }
}

fn deleted(completion: &Completion) -> RolloutStatus {
    match completion {
        Completion::RolledOut(AwaitedRollout { kind, name, .. })
        | Completion::Scaled { kind, name, .. } => completion::deleted(kind.name(), name),
        _ => RolloutStatus::Failed("the object was deleted".to_owned()),
    }
}
