//! Asks the cluster how far an effect is, and what a failed Job printed.
//!
//! Must not decide: what the objects mean is for `k8s::completion`, `k8s::jobs` and `k8s::pods`.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, api::LogParams};
use tokio::time::Instant;

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::{
            client::{Call, Cluster},
            retry::Retry,
        },
        completion::{self, AwaitedRollout, Completion},
        jobs, pods,
        rollout::{self, ExceededDeadline, RolloutStatus},
    },
};

impl Cluster {
    /// How far the effect is.
    ///
    /// # Errors
    /// Why the cluster could not be asked before `deadline`.
    pub(crate) async fn completion_status(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        Ok(match completion {
            Completion::Immediate(what) => RolloutStatus::Complete(what.clone()),
            Completion::RolledOut(awaited) => self.rollout_status(awaited, deadline).await?,
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
            Completion::Finished { namespace, name } => {
                let job = self.get_opt::<Job>(namespace, name, deadline).await?;
                job.map_or_else(|| completion::deleted("Job", name), |job| jobs::status(&job))
            }
            Completion::Replaced { namespace, controller, controller_uid, selector, known } => {
                let pods = self.list::<Pod>(namespace, selector, deadline).await?;
                let replacements = pods::replacements(&pods, controller_uid, known);
                completion::replacement_status(&replacements, controller)
            }
        })
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
        let failed = pods.iter().find(|pod| pods::phase(pod) == "Failed");
        if let Some((pod, container)) = failed
            .and_then(|pod| Some((pod.metadata.name.as_deref()?, jobs::container_to_blame(pod)?)))
        {
            // The log comes from the node, which may not answer. Half of the time is left for the rest.
            let now = Instant::now();
            let end = now + deadline.saturating_duration_since(now) / 2;
            match self.log_tail(namespace, pod, container, end).await {
                Ok(lines) => problems.extend(lines),
                Err(error) => problems.push(format!(
                    "the log of pod {pod}, container {container}, could not be read: {}",
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
        pod: &str,
        container: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let api = Api::<Pod>::namespaced(self.client(), namespace);
        let params = LogParams {
            container: Some(container.to_owned()),
            tail_lines: Some(jobs::MAX_LOG_LINES),
            ..LogParams::default()
        };
        let text = self.attempt(Retry::Idempotent, deadline, || api.logs(pod, &params)).await;
        let mut call = Call::of::<Pod>("get", namespace, Some(pod));
        call.resource.plural.push_str("/log");
        let text = self.explain_result(&call, text).await?;
        Ok(jobs::log_lines(&format!("pod {pod}, container {container},"), &text))
    }
}

/// What was found; none if it was deleted.
pub(super) fn found_opt<T>(found: Result<T, ActionError>) -> Result<Option<T>, ActionError> {
    match found {
        Err(error) if error.code == Code::TargetNotFound => Ok(None),
        found => found.map(Some),
    }
}
