//! Asks the cluster how far an effect is, and what a failed Job printed.
//!
//! Must not decide: what the objects mean is for `k8s::completion`, `k8s::jobs` and `k8s::pods`.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use tokio::time::{Instant, sleep};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::{
            client::{ApiCall, Cluster},
            retry::Retry,
        },
        applied_requests::AppliedRequests,
        argo_cd,
        argo_rollouts::{ArgoRollout, AwaitedArgoRollout},
        completion::{self, AwaitedRollout, Completion},
        flux,
        integrations::{APPLICATION, ROLLOUT},
        jobs::{self, LogSource},
        keda, pods, pvc, replacement,
        replicas::Replicas,
        resources,
        rollout::{self, ExceededDeadline, RolloutStatus},
    },
};

/// How long after a Job's deletion its last Event may come, and the pause between two reads.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(2);
const LAST_EVENT_INTERVAL: Duration = Duration::from_millis(400);

impl Cluster {
    /// The replicas of the workload that is awaited; none if it awaits none, or its controller has not observed it yet.
    ///
    /// # Errors
    /// Why the cluster could not be read before `deadline`.
    pub(crate) async fn awaited_replicas(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<Option<Replicas>, ActionError> {
        let (Completion::RolledOut(AwaitedRollout { kind, namespace, name, .. })
        | Completion::Scaled { kind, namespace, name, .. }) = completion
        else {
            return Ok(None);
        };
        let workload = self.workload(*kind, namespace, name, deadline).await?;
        Ok(Replicas::of(&workload))
    }

    /// How far the effect is.
    ///
    /// # Errors
    /// Why the cluster could not be read before `deadline`.
    pub(crate) async fn completion_status(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        Ok(match completion {
            Completion::Immediate(what) => RolloutStatus::Complete(what.clone()),
            Completion::RolledOut(awaited) => self.rollout_status(awaited, deadline).await?,
            Completion::ArgoRollout(awaited) => self.argo_rollout_status(awaited, deadline).await?,
            Completion::Scaled { kind, namespace, name, uid, replicas } => {
                let found = self.workload(*kind, namespace, name, deadline).await;
                found_opt(found)?.map_or_else(
                    || completion::deleted(kind.name(), name),
                    |it| completion::scale_status(&it, uid.as_deref(), *replicas),
                )
            }
            Completion::Gone { namespace, name, uid } => {
                let pod = self.get_opt::<Pod>(namespace, name, deadline).await?;
                completion::deletion_status(pod.as_ref(), name, uid)
            }
            Completion::Resized { namespace, name, uid, amounts } => {
                let pod = self.get_opt::<Pod>(namespace, name, deadline).await?;
                resources::resize_status(pod.as_ref(), name, uid, amounts)
            }
            Completion::Expanded { namespace, name, uid, size } => {
                let claim = self.get_opt(namespace, name, deadline).await?;
                pvc::expansion_status(claim.as_ref(), name, uid, *size)
            }
            Completion::PodsGone { namespace, pods } => {
                let left = self.finished_pods_of(namespace, pods, deadline).await?;
                completion::pods_status(left.len(), pods.len())
            }
            Completion::JobGone { namespace, name, uid, query } => {
                let job = self.get_opt::<Job>(namespace, name, deadline).await?;
                if job.is_some_and(|job| job.metadata.uid.as_ref() == Some(uid)) {
                    return Ok(RolloutStatus::Waiting(format!("Job '{name}' is being deleted")));
                }
                match self.controlled_pods(namespace, uid, query, deadline).await {
                    Err(error) if error.code == Code::Forbidden => {
                        jobs::gone_with_pods_unknown(name, &error.with_its_hint())
                    }
                    pods => jobs::deletion_status(name, pods?.len()),
                }
            }
            Completion::Finished { namespace, name, mark } => {
                let job = self.get_opt::<Job>(namespace, name, deadline).await?;
                let is_ours =
                    |job: &Job| AppliedRequests::from_metadata(&job.metadata).contains(mark);
                match job.filter(is_ours) {
                    Some(job) => jobs::status(&job),
                    None => self.status_of_deleted_job(namespace, name, deadline).await?,
                }
            }
            Completion::Reconciled { kind, namespace, name, uid, pass } => {
                let found = self.get_custom(kind.custom(), namespace, name, deadline).await;
                flux::reconciliation_status(found_opt(found)?.as_ref(), *kind, name, uid, pass)
            }
            Completion::Synced { namespace, name, uid, mark } => {
                let found = self.get_custom(&APPLICATION, namespace, name, deadline).await;
                argo_cd::sync_status(found_opt(found)?.as_ref(), name, uid, mark)
            }
            Completion::ScalingPaused { kind, namespace, name, uid, pause } => {
                let found = self.get_custom(kind.custom(), namespace, name, deadline).await;
                keda::pause_status(found_opt(found)?.as_ref(), *kind, name, uid, *pause)
            }
            Completion::Replaced { namespace, controller, controller_uid, query, known } => {
                let pods = self.controlled_pods(namespace, controller_uid, query, deadline).await?;
                completion::replacement_status(&replacement::unknown(&pods, known), controller)
            }
        })
    }

    /// The Events of a Job outlive it. A CronJob deletes a Job as soon as it has finished if later ones fill the
    /// history, so its last Event may not have arrived yet.
    async fn status_of_deleted_job(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        let fields = format!("involvedObject.kind=Job,involvedObject.name={name}");
        let params = ListParams::default().fields(&fields);
        let until = deadline.min(Instant::now() + LAST_EVENT_TIMEOUT);
        loop {
            let events = match self.list_with::<Event>(namespace, &params, deadline).await {
                Err(error) if error.code == Code::Forbidden => return Ok(jobs::deleted(name)),
                events => events?,
            };
            match jobs::status_by_events(name, &events) {
                None if Instant::now() < until => sleep(LAST_EVENT_INTERVAL).await,
                status => return Ok(status.unwrap_or_else(|| jobs::deleted(name))),
            }
        }
    }

    async fn argo_rollout_status(
        &self,
        awaited: &AwaitedArgoRollout,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        let AwaitedArgoRollout { namespace, name, .. } = awaited;
        let found = self.get_custom(&ROLLOUT, namespace, name, deadline).await;
        let Some(found) = found_opt(found)? else {
            return Ok(completion::deleted(ROLLOUT.kind, name));
        };
        let rollout = ArgoRollout::new(&found);
        let status = awaited.status(rollout);
        if !awaited.needs_pods() || !matches!(status, RolloutStatus::Complete(_)) {
            return Ok(status);
        }
        let pods = self.list::<Pod>(namespace, &rollout.label_selector(), deadline).await?;
        Ok(awaited.status_with_pods(rollout, &pods))
    }

    async fn rollout_status(
        &self,
        awaited: &AwaitedRollout,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        let AwaitedRollout { kind, namespace, name, .. } = awaited;
        let found = self.workload_and_template(*kind, namespace, name, deadline).await;
        let Some((workload, template)) = found_opt(found)? else {
            return Ok(completion::deleted(kind.name(), name));
        };
        let stale = awaited.exceeded_at.as_deref();
        let status = completion::rollout_status(&workload, &template, awaited, stale);
        let exceeded = match (&status, ExceededDeadline::on(&workload)) {
            (RolloutStatus::Failed(_), Some(exceeded))
                if awaited.superseded(&workload, &template).is_none() =>
            {
                exceeded
            }
            _ => return Ok(status),
        };
        // The controller may have written it about the ReplicaSet before. Only then is it worth another call.
        let history = self.history(*kind, namespace, name, deadline).await?;
        let is_of_newest = exceeded.replica_set().is_none_or(|name| history.is_current(name));
        let stale = exceeded.at.as_deref().filter(|_| !is_of_newest);
        Ok(rollout::status(&workload, awaited.generation, stale))
    }

    /// What is wrong with a Job's pods, and the last log lines of one that failed.
    pub(super) async fn failure_log(
        &self,
        namespace: &str,
        job: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let selector = format!("batch.kubernetes.io/job-name={job}");
        let pods = self.list::<Pod>(namespace, &selector, deadline).await?;
        let mut problems = pods::problems(&pods);
        if let Some(source) = jobs::log_of_failure(&pods) {
            // The log comes from the node, which may not answer. Half of the time is left for the rest.
            let now = Instant::now();
            let end = now + deadline.saturating_duration_since(now) / 2;
            match self.log_tail(namespace, &source, end).await {
                Ok(lines) => problems.extend(lines),
                Err(error) => problems.push(format!(
                    "the log of pod {}, container {}, could not be read: {}",
                    source.pod,
                    source.container,
                    error.with_its_hint()
                )),
            }
        }
        Ok(problems)
    }

    /// The last lines of a container's log, each with its name.
    async fn log_tail(
        &self,
        namespace: &str,
        source: &LogSource<'_>,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let text = self.log(namespace, source, jobs::MAX_LOG_LINES, None, deadline).await?;
        let LogSource { pod, container, .. } = source;
        Ok(jobs::log_lines(&format!("pod {pod}, container {container},"), &text))
    }

    /// The last lines of a container's log; of those at most the first `bytes`, at which the API server cuts.
    pub(crate) async fn log(
        &self,
        namespace: &str,
        source: &LogSource<'_>,
        lines: i64,
        bytes: Option<i64>,
        deadline: Instant,
    ) -> Result<String, ActionError> {
        let LogSource { pod, container, is_previous } = source;
        let api = Api::<Pod>::namespaced(self.client(), namespace);
        let params = LogParams {
            container: Some((*container).to_owned()),
            previous: *is_previous,
            tail_lines: Some(lines),
            limit_bytes: bytes,
            ..LogParams::default()
        };
        let text = self.attempt(Retry::Idempotent, deadline, || api.logs(pod, &params)).await;
        let mut call = ApiCall::of::<Pod>("get", namespace, Some(pod));
        call.resource.plural.push_str("/log");
        self.explain_result(&call, text).await
    }
}

/// What was found; none if it was deleted.
pub(super) fn found_opt<T>(found: Result<T, ActionError>) -> Result<Option<T>, ActionError> {
    match found {
        Err(error) if error.code == Code::TargetNotFound => Ok(None),
        found => found.map(Some),
    }
}
