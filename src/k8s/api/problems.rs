//! Reads why an awaited effect did not complete: the workload's conditions, its pods, the newest Warning Events.
//!
//! Must not decide: what the objects mean is for `k8s::problems`.

use std::collections::HashSet;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Node, Pod},
};
use kube::{
    ResourceExt,
    api::{DynamicObject, ListParams},
};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::{client::Cluster, completion::found_opt},
        argo_rollouts::{self, ArgoRollout, AwaitedArgoRollout},
        completion::{self, AwaitedRollout, Completion},
        events,
        integrations::ROLLOUT,
        jobs, nodes, pods, problems, replacement,
        revisions::{History, revision_resource},
        rollout::{self, RolloutStatus},
        workload::Workload,
    },
};

/// The most pods of a DaemonSet whose nodes are read.
const MAX_LOST_NODES: usize = 20;

/// The most Events of one object that are read.
const MAX_EVENTS: u32 = 100;

impl Cluster {
    /// What is wrong, each problem once, the most specific one first: conditions, pods, Events.
    ///
    /// # Errors
    /// Why it could not be read before `deadline`.
    pub(crate) async fn completion_problems(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        match completion {
            Completion::Immediate(_) => Ok(Vec::new()),
            Completion::RolledOut(awaited) => {
                let AwaitedRollout { kind, namespace, name, .. } = awaited;
                let found = self.workload_and_template(*kind, namespace, name, deadline).await;
                match found_opt(found)? {
                    // The problems of another rollout are not those of this one.
                    Some((workload, template))
                        if awaited.superseded(&workload, &template).is_none() =>
                    {
                        let (resource, selector) =
                            (revision_resource(*kind), workload.label_selector());
                        let revisions =
                            self.list_dynamic(&resource, namespace, &selector, deadline);
                        Ok(self.workload_problems(workload, template, revisions, deadline).await)
                    }
                    _ => Ok(Vec::new()),
                }
            }
            Completion::ArgoRollout(AwaitedArgoRollout { namespace, name, .. }) => {
                let found = self.get_custom(&ROLLOUT, namespace, name, deadline).await?;
                match argo_rollouts::newest_pods(ArgoRollout::new(&found)) {
                    Some(selector) => {
                        let pods = self.list::<Pod>(namespace, &selector, deadline).await?;
                        Ok(pods::problems(&pods))
                    }
                    None => Ok(Vec::new()),
                }
            }
            Completion::Scaled { kind, namespace, name, uid, replicas } => {
                let found = self.workload_and_template(*kind, namespace, name, deadline).await;
                let is_ours = |workload: &Workload| {
                    let status = completion::scale_status(workload, uid.as_deref(), *replicas);
                    !matches!(status, RolloutStatus::Failed(_))
                };
                match found_opt(found)? {
                    // Pods of each revision count.
                    Some((workload, template)) if is_ours(&workload) => {
                        let revisions = std::future::ready(Ok(Vec::new()));
                        Ok(self.workload_problems(workload, template, revisions, deadline).await)
                    }
                    _ => Ok(Vec::new()),
                }
            }
            Completion::Gone { namespace, name, .. } => {
                let pod = self.get::<Pod>(namespace, name, deadline).await?;
                Ok(self.termination_problems(&pod, deadline).await)
            }
            Completion::Resized { namespace, name, .. } => {
                let pod = self.get_opt::<Pod>(namespace, name, deadline).await?;
                Ok(pods::problems(pod.as_ref()))
            }
            Completion::Expanded { namespace, uid, .. }
            | Completion::Reconciled { namespace, uid, .. }
            | Completion::Synced { namespace, uid, .. }
            | Completion::ScalingPaused { namespace, uid, .. } => {
                let warning = self.newest_warning(namespace, Some(uid), deadline).await;
                Ok(problems::with_events(Vec::new(), [warning]))
            }
            Completion::PodsGone { namespace, pods } => {
                let left = self.finished_pods_of(namespace, pods, deadline).await?;
                let now = self.now();
                Ok(left.iter().flat_map(|pod| pods::termination_blockers(pod, now)).collect())
            }
            Completion::JobGone { namespace, name, uid, query } => {
                let job = self.get_opt::<Job>(namespace, name, deadline).await?;
                let is_ours = |job: &Job| job.metadata.uid.as_ref() == Some(uid);
                let blocked = job.filter(is_ours).and_then(|job| jobs::deletion_blocker(&job));
                let pods = self.controlled_pods(namespace, uid, query, deadline).await?;
                let mut problems: Vec<_> = blocked.into_iter().collect();
                if let Some(pod) = pods.first() {
                    problems.extend(self.termination_problems(pod, deadline).await);
                }
                Ok(problems)
            }
            Completion::Finished { namespace, name, .. } => {
                self.job_problems(namespace, name, deadline).await
            }
            Completion::Replaced { namespace, controller_uid, query, known, .. } => {
                let (pods, warning) = tokio::join!(
                    self.controlled_pods(namespace, controller_uid, query, deadline),
                    self.newest_warning(namespace, Some(controller_uid), deadline),
                );
                let pods = pods?;
                let mut problems = pods::problems(replacement::unknown(&pods, known));
                // A StatefulSet and a DaemonSet make the new pod only once the old one is gone.
                let is_old = |pod: &&Pod| {
                    let is_known = pod.metadata.uid.as_ref().is_some_and(|uid| known.contains(uid));
                    is_known && pods::is_terminating(pod)
                };
                if let Some(old) = pods.iter().find(is_old) {
                    problems.extend(self.termination_problems(old, deadline).await);
                }
                Ok(problems::with_events(problems, [warning]))
            }
        }
    }

    /// Why a pod that is to be deleted still exists.
    async fn termination_problems(&self, pod: &Pod, deadline: Instant) -> Vec<String> {
        let mut problems = pods::termination_blockers(pod, self.now());
        problems.extend(self.lost_node_warning(pod, deadline).await);
        problems
    }

    /// The warning that the node of a pod is lost. Of a pod that is ready it is not, so nothing is read. Where nodes
    /// may not be read, the pod shows what the node controller did to it.
    pub(crate) async fn lost_node_warning(&self, pod: &Pod, deadline: Instant) -> Option<String> {
        let name = pods::node_name(pod).filter(|_| !pods::is_ready(pod))?;
        match self.get_global::<Node>(name, deadline).await {
            Ok(node) => nodes::lost_warning(&node),
            Err(error) if error.code == Code::TargetNotFound => None,
            Err(_) => pods::marked_unready_at(pod).map(|at| nodes::may_be_lost_warning(name, &at)),
        }
    }

    /// Why a DaemonSet's rollout waits for lost nodes alone, if so. Another change would wait for them as well.
    pub(crate) async fn waits_for_lost_nodes(
        &self,
        history: &History,
        deadline: Instant,
    ) -> Option<String> {
        let Workload::DaemonSet(set) = &history.workload else { return None };
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let selector = history.workload.label_selector();
        let pods = self.list::<Pod>(namespace, &selector, deadline).await.ok()?;
        let mut lost = HashSet::new();
        for pod in pods.iter().filter(|pod| !pods::is_ready(pod)).take(MAX_LOST_NODES) {
            if self.lost_node_warning(pod, deadline).await.is_some() {
                lost.extend(pod.uid());
            }
        }
        let is_lost = |pod: &Pod| pod.uid().is_some_and(|uid| lost.contains(&uid));
        let nodes: Vec<_> =
            problems::lost_nodes_awaited(history, &pods, is_lost)?.into_iter().collect();
        let names = pods::join_names(&nodes, MAX_LOST_NODES);
        Some(format!(
            "the rollout waits only for nodes whose kubelets do not report ({names}); on every other node the new \
             pod is ready"
        ))
    }

    /// `revisions` are those by which new pods are distinguished from old ones.
    async fn workload_problems(
        &self,
        workload: Workload,
        template: Value,
        revisions: impl Future<Output = Result<Vec<DynamicObject>, ActionError>>,
        deadline: Instant,
    ) -> Vec<String> {
        let metadata = workload.metadata();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let (selector, uid) = (workload.label_selector(), metadata.uid.clone());
        let (pods, revisions, warning) = tokio::join!(
            self.list::<Pod>(&namespace, &selector, deadline),
            revisions,
            self.newest_warning(&namespace, uid.as_deref(), deadline),
        );
        let mut problems = rollout::failing_conditions(&workload);
        let mut unread = Vec::new();
        let pods = pods.unwrap_or_else(|error| {
            unread.push(format!("the pods could not be read: {}", error.with_its_hint()));
            Vec::new()
        });
        let revisions = revisions.unwrap_or_else(|error| {
            unread.push(format!("which pods are new is unknown: {}", error.with_its_hint()));
            Vec::new()
        });
        let history = History::new(workload, template, &revisions);
        problems.extend(problems::of_pods(&history, &pods, self.now()));
        if let Some(old) = pods.iter().find(|pod| pods::is_terminating(pod)) {
            problems.extend(self.lost_node_warning(old, deadline).await);
        }
        let unready = problems::unready_pod(&history, &pods).and_then(ResourceExt::uid);
        let (of_replica_set, of_pod) = tokio::join!(
            self.newest_warning(
                &namespace,
                problems::replica_set_uid(&history, &revisions),
                deadline
            ),
            self.newest_warning(&namespace, unready.as_deref(), deadline),
        );
        let mut problems = problems::with_events(problems, [warning, of_replica_set, of_pod]);
        problems.extend(unread);
        problems
    }

    async fn job_problems(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let warning = async {
            let job = self.get_opt::<Job>(namespace, name, deadline).await?;
            let uid = job.and_then(|job| job.metadata.uid);
            self.newest_warning(namespace, uid.as_deref(), deadline).await
        };
        let (problems, warning) =
            tokio::join!(self.failure_log(namespace, name, deadline), warning);
        Ok(problems::with_events(problems?, [warning]))
    }

    /// The newest Warning Event of the object with this uid.
    async fn newest_warning(
        &self,
        namespace: &str,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<Option<(Event, String)>, ActionError> {
        let Some(uid) = uid else { return Ok(None) };
        let fields = format!("involvedObject.uid={uid},type=Warning");
        let params = ListParams::default().fields(&fields).limit(MAX_EVENTS);
        let found = self.list_with::<Event>(namespace, &params, deadline).await?;
        let newest = events::newest(&found);
        Ok(newest.map(|event| (event.clone(), events::sentence(event, self.now()))))
    }
}
