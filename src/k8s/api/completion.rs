//! Asks the cluster how far an effect is and, if it does not complete, what is wrong with the pods.
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
            error::ApiError,
            retry::Retry,
        },
        completion::{self, Completion},
        jobs, pods,
        rollout::RolloutStatus,
        workload::{Workload, WorkloadKind},
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
            Completion::RolledOut { namespace, name, generation, rollout } => {
                let found = self.workload_opt(rollout.kind, namespace, name, deadline).await?;
                found.map_or_else(
                    || completion::deleted(rollout.kind.name(), name),
                    |it| completion::rollout_status(&it, *generation, &rollout.template),
                )
            }
            Completion::Scaled { kind, namespace, name, replicas } => {
                let found = self.workload_opt(*kind, namespace, name, deadline).await?;
                found.map_or_else(
                    || completion::deleted(kind.name(), name),
                    |it| completion::scale_status(&it, *replicas),
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

    /// What is wrong with the pods, each problem once.
    ///
    /// # Errors
    /// Why they could not be listed before `deadline`.
    pub(crate) async fn completion_problems(
        &self,
        completion: &Completion,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        match completion {
            Completion::Immediate(_) => Ok(Vec::new()),
            Completion::RolledOut { namespace, name, rollout, .. } => {
                let pods = self.pods_of(rollout.kind, namespace, name, deadline).await?;
                let new = pods.iter().filter(|pod| rollout.template.matches_pod(pod));
                let problems = pods::problems(new);
                // A StatefulSet that keeps order may wait for an old pod before it creates a new one.
                Ok(if problems.is_empty() { pods::problems(&pods) } else { problems })
            }
            Completion::Scaled { kind, namespace, name, .. } => {
                Ok(pods::problems(&self.pods_of(*kind, namespace, name, deadline).await?))
            }
            Completion::Gone { namespace, name, .. } => {
                Ok(pods::termination_blockers(&self.get::<Pod>(namespace, name, deadline).await?))
            }
            Completion::Finished { namespace, name } => {
                self.failure_log(namespace, name, deadline).await
            }
            Completion::Replaced { namespace, controller_uid, selector, known, .. } => {
                let pods = self.list::<Pod>(namespace, selector, deadline).await?;
                Ok(pods::problems(pods::replacements(&pods, controller_uid, known)))
            }
        }
    }

    /// The workload; none if it was deleted.
    async fn workload_opt(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Option<Workload>, ActionError> {
        match self.workload(kind, namespace, name, deadline).await {
            Err(error) if error.code == Code::TargetNotFound => Ok(None),
            found => found.map(Some),
        }
    }

    async fn pods_of(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Vec<Pod>, ActionError> {
        let selector = self.workload(kind, namespace, name, deadline).await?.label_selector();
        self.list(namespace, &selector, deadline).await
    }

    /// What is wrong with a Job's pods, and the last log lines of one that failed.
    async fn failure_log(
        &self,
        namespace: &str,
        job: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let selector = format!("batch.kubernetes.io/job-name={job}");
        let pods = self.list::<Pod>(namespace, &selector, deadline).await?;
        let mut problems = pods::problems(&pods);
        let failed = pods.iter().find(|pod| pods::phase(pod) == "Failed");
        if let Some(name) = failed.and_then(|pod| pod.metadata.name.as_deref()) {
            // The log comes from the node, which may not answer. Half of the time is left for the rest.
            let now = Instant::now();
            let end = now + deadline.saturating_duration_since(now) / 2;
            match self.log_tail(namespace, name, end).await {
                Ok(lines) => problems.extend(lines),
                Err(error) => problems.push(format!(
                    "the log of pod {name} could not be read: {}",
                    error.with_its_hint()
                )),
            }
        }
        Ok(problems)
    }

    /// The last lines of a pod's log, each with the pod's name.
    async fn log_tail(
        &self,
        namespace: &str,
        pod: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let api = Api::<Pod>::namespaced(self.client(), namespace);
        let params = LogParams { tail_lines: Some(jobs::MAX_LOG_LINES), ..LogParams::default() };
        let text = match self.attempt(Retry::Idempotent, deadline, || api.logs(pod, &params)).await
        {
            // A pod that never started has no log.
            Err(ApiError::Rejected(_)) => Ok(String::new()),
            text => text,
        };
        let mut call = Call::of::<Pod>("get", namespace, Some(pod));
        call.resource.plural.push_str("/log");
        Ok(jobs::log_lines(pod, &self.explain_result(&call, text).await?))
    }
}
