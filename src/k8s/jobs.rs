//! What CronJobs, Jobs and their pods' logs say. Pure.

use k8s_openapi::api::batch::v1::{CronJob, Job};

use crate::k8s::rollout::RolloutStatus;

/// How many of a failed pod's last log lines are reported.
pub(crate) const MAX_LOG_LINES: i64 = 5;

const MAX_LINE_CHARACTERS: usize = 200;

pub(crate) fn is_suspended(cron_job: &CronJob) -> bool {
    cron_job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// The names of the Jobs that run, by the CronJob's status.
pub(crate) fn active_jobs(cron_job: &CronJob) -> Vec<&str> {
    let active = cron_job.status.as_ref().and_then(|status| status.active.as_ref());
    active.into_iter().flatten().filter_map(|job| job.name.as_deref()).collect()
}

/// The status by the Job's conditions, as `kubectl wait` reads them.
pub(crate) fn status(job: &Job) -> RolloutStatus {
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

/// A pod's log as lines that each name the pod.
pub(crate) fn log_lines(pod: &str, log: &str) -> Vec<String> {
    log.lines().map(|line| format!("pod {pod} printed: {}", printable(line))).collect()
}

/// Without control characters, which could change how a terminal shows the line.
pub(crate) fn printable(line: &str) -> String {
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
    fn a_log_line_loses_its_control_characters() {
        assert_eq!(
            log_lines("a", "\u{1b}[31mboom\u{7}\nx"),
            ["pod a printed: [31mboom", "pod a printed: x"]
        );
    }
}
