//! What a Job tells: whether it is complete, why it failed, and what its pods said last.

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, api::LogParams};
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{
            client::{Call, Cluster},
            error::ApiError,
            retry::Retry,
        },
        pods,
        rollout::RolloutStatus,
    },
};

/// How many of a failed pod's last lines are told.
const MAX_LOG_LINES: i64 = 5;

/// The longest line that is told, in characters.
const MAX_LINE_CHARACTERS: usize = 200;

/// The verdict on a Job, by its conditions as `kubectl wait` reads them.
#[must_use]
pub fn status(job: &Job) -> RolloutStatus {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let condition = |kind: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|it| it.type_ == kind && it.status == "True").cloned()
    };
    if let Some(failed) = condition("Failed") {
        let reason = failed.reason.unwrap_or_else(|| "Failed".to_owned());
        return RolloutStatus::Failed(format!("{reason}: {}", failed.message.unwrap_or_default()));
    }
    let succeeded = status.succeeded.unwrap_or(0);
    if condition("Complete").is_some() {
        return RolloutStatus::Complete(format!(
            "Job '{name}' is complete: {succeeded} pods succeeded"
        ));
    }
    if condition("Suspended").is_some() {
        return RolloutStatus::Waiting(format!("Job '{name}' is suspended"));
    }
    let (active, failed) = (status.active.unwrap_or(0), status.failed.unwrap_or(0));
    RolloutStatus::Waiting(format!("{active} pods run, {succeeded} succeeded, {failed} failed"))
}

/// What the Job's pods say is wrong, and the last lines of one that failed.
///
/// # Errors
/// Why they could not be listed or read before `deadline`.
pub(crate) async fn failure_log(
    cluster: &Cluster,
    namespace: &str,
    job: &str,
    deadline: Instant,
) -> Result<Vec<String>, ActionError> {
    let selector = format!("batch.kubernetes.io/job-name={job}");
    let found = cluster.list::<Pod>(namespace, &selector, deadline).await?;
    let mut words = pods::problems(&found);
    let failed = found.iter().find(|pod| pods::phase(pod) == "Failed");
    if let Some(name) = failed.and_then(|pod| pod.metadata.name.as_deref()) {
        // The log comes from the node, which may not answer; what the API server knows is told then too.
        let now = Instant::now();
        let sooner = now + deadline.saturating_duration_since(now) / 2;
        match cluster.tail(namespace, name, sooner).await {
            Ok(lines) => words.extend(lines),
            Err(error) => words.push(format!(
                "the log of pod {name} could not be read: {}",
                error.with_its_hint()
            )),
        }
    }
    Ok(words)
}

impl Cluster {
    /// The last lines of a pod's log, each with the pod's name.
    async fn tail(
        &self,
        namespace: &str,
        pod: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        let api = Api::<Pod>::namespaced(self.client(), namespace);
        let params = LogParams { tail_lines: Some(MAX_LOG_LINES), ..LogParams::default() };
        match self.attempt(Retry::Idempotent, deadline, || api.logs(pod, &params)).await {
            Ok(text) => Ok(text
                .lines()
                .map(|line| format!("pod {pod} said: {}", printable(line)))
                .collect()),
            // A pod that never started has no log.
            Err(ApiError::Rejected(_)) => Ok(Vec::new()),
            Err(fault) => {
                let mut call = Call::of::<Pod>("get", namespace, Some(pod));
                call.resource.plural.push_str("/log");
                Err(self.explain(&call, fault).await)
            }
        }
    }
}

/// A line as it can be shown anywhere.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(MAX_LINE_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: &str) -> RolloutStatus {
        let text = format!("metadata: {{name: nightly-1}}\nstatus: {status}");
        super::status(&serde_yaml_ng::from_str(&text).expect("is a Job"))
    }

    #[test]
    fn a_job_is_complete_by_its_condition_alone() {
        assert!(matches!(of("{succeeded: 1}"), RolloutStatus::Waiting(_)));
        assert_eq!(
            of("{succeeded: 1, conditions: [{type: Complete, status: 'True'}]}"),
            RolloutStatus::Complete("Job 'nightly-1' is complete: 1 pods succeeded".into())
        );
    }

    #[test]
    fn a_failed_job_says_why() {
        assert_eq!(
            of("{failed: 1, conditions: [{type: Failed, status: 'True', reason: \
                BackoffLimitExceeded, message: Job has reached the specified backoff limit}]}"),
            RolloutStatus::Failed(
                "BackoffLimitExceeded: Job has reached the specified backoff limit".into()
            )
        );
    }

    #[test]
    fn a_suspended_job_is_waited_for() {
        assert_eq!(
            of("{conditions: [{type: Suspended, status: 'True'}]}"),
            RolloutStatus::Waiting("Job 'nightly-1' is suspended".into())
        );
    }

    #[test]
    fn a_line_with_escapes_is_told_without_them() {
        assert_eq!(printable("\u{1b}[31mboom\u{7}"), "[31mboom");
    }
}
