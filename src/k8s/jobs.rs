//! What CronJobs, Jobs and their pods' logs say. Pure.

use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::{Event, Pod},
};

use kube::core::Selector;

use crate::k8s::{
    mask::{masked, masked_line},
    pods,
    replacement::PodQuery,
    rollout::RolloutStatus,
};

/// The annotation by which a pod names the container that kubectl means without a name.
const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";

/// How many of a failed pod's last log lines are reported.
pub(crate) const MAX_LOG_LINES: i64 = 5;

const MAX_LINE_CHARACTERS: usize = 200;

/// The labels that the API server adds to a Job's pod template, and to the Job itself if it has none
/// (`generateSelector` in `pkg/registry/batch/job/strategy.go`).
pub(crate) const GENERATED_LABELS: [&str; 4] = [
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

/// The annotations of a Job that say how it was started: those of the CronJob controller and of kubectl, and one of
/// Kubernetes before 1.27.
pub(crate) const START_ANNOTATIONS: [&str; 3] = [
    "batch.kubernetes.io/cronjob-scheduled-timestamp",
    "batch.kubernetes.io/job-tracking",
    "cronjob.kubernetes.io/instantiate",
];

/// The reasons with which a Job's controller ends it as failed (`k8s.io/api/batch/v1`).
const FAILURE_REASONS: [&str; 5] = [
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
];

pub(crate) fn is_suspended(cron_job: &CronJob) -> bool {
    cron_job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// The names of the Jobs that run, by the CronJob's status.
pub(crate) fn active_jobs(cron_job: &CronJob) -> Vec<&str> {
    let active = cron_job.status.as_ref().and_then(|status| status.active.as_ref());
    active.into_iter().flatten().filter_map(|job| job.name.as_deref()).collect()
}

/// The names of the Jobs that the CronJob with this uid owns and that have not finished, however they were started.
pub(crate) fn running_of<'a>(jobs: &'a [Job], cron_job_uid: &str) -> Vec<&'a str> {
    let owned = jobs.iter().filter(|job| {
        job.metadata.owner_references.iter().flatten().any(|owner| owner.uid == cron_job_uid)
    });
    let running = owned.filter(|job| matches!(status(job), RolloutStatus::Waiting(_)));
    running.filter_map(|job| job.metadata.name.as_deref()).collect()
}

/// The container of a Job's pod whose log shows why it failed: the one that failed first, else kubectl's default.
pub(crate) fn container_to_blame(pod: &Pod) -> Option<&str> {
    let failed = pods::failed_containers(pod).first().map(|container| container.name.as_str());
    let by_default = || {
        let annotation = pod.metadata.annotations.as_ref()?.get(DEFAULT_CONTAINER_ANNOTATION);
        annotation.map(String::as_str)
    };
    let first = || Some(pod.spec.as_ref()?.containers.first()?.name.as_str());
    failed.or_else(by_default).or_else(first)
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
    RolloutStatus::Waiting(pods_phrase(job))
}

/// The Job's pods as its controller has counted them.
pub(crate) fn pods_phrase(job: &Job) -> String {
    let status = job.status.clone().unwrap_or_default();
    let [active, succeeded, failed] =
        [status.active, status.succeeded, status.failed].map(Option::unwrap_or_default);
    format!("{active} pods run, {succeeded} succeeded, {failed} failed")
}

/// Whether the Job is complete or has failed, and starts no pods any more.
pub(crate) fn has_finished(job: &Job) -> bool {
    !matches!(status(job), RolloutStatus::Waiting(_))
}

/// The query for the Job's pods.
pub(crate) fn pods_query(job: &Job) -> PodQuery {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = selector.and_then(|it| Selector::try_from(it).ok());
    PodQuery::Labels(selector.map(|it| it.to_string()).unwrap_or_default())
}

/// The status of the deletion of a Job that has gone, and of which so many pods are left.
pub(crate) fn deletion_status(name: &str, pods: usize) -> RolloutStatus {
    match pods {
        0 => RolloutStatus::Complete(format!("Job '{name}' and its pods are gone")),
        1 => RolloutStatus::Waiting(format!("Job '{name}' is gone, one of its pods is not")),
        _ => RolloutStatus::Waiting(format!("Job '{name}' is gone, {pods} of its pods are not")),
    }
}

/// The same where the pods may not be read, with the reason.
pub(crate) fn gone_with_pods_unknown(name: &str, why: &str) -> RolloutStatus {
    RolloutStatus::Complete(format!(
        "Job '{name}' is gone; whether its pods are gone is unknown: {why}"
    ))
}

/// Why a Job that is to be deleted still exists, if something holds it.
pub(crate) fn deletion_blocker(job: &Job) -> Option<String> {
    let finalizers = job.metadata.finalizers.as_deref().filter(|all| !all.is_empty())?;
    let name = job.metadata.name.as_deref().unwrap_or_default();
    Some(format!("Job '{name}' is blocked by the finalizers {}", finalizers.join(", ")))
}

/// The status of a deleted Job by what its controller has recorded about its end; `None` if it has recorded none
/// (`recordJobFinished` in `pkg/controller/job`).
pub(crate) fn status_by_events(name: &str, events: &[Event]) -> Option<RolloutStatus> {
    let of_controller = events.iter().filter(|event| reporter(event) == Some("job-controller"));
    of_controller.into_iter().find_map(|event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        match reason {
            "Completed" => Some(RolloutStatus::Complete(format!(
                "Job '{name}' was complete, and has been deleted since"
            ))),
            _ if FAILURE_REASONS.contains(&reason) => Some(RolloutStatus::Failed(format!(
                "{reason}: {}",
                event.message.as_deref().unwrap_or_default()
            ))),
            _ => None,
        }
    })
}

/// The component that recorded the Event.
fn reporter(event: &Event) -> Option<&str> {
    let old = event.source.as_ref().and_then(|source| source.component.as_deref());
    event.reporting_component.as_deref().filter(|name| !name.is_empty()).or(old)
}

/// The status of a deleted Job about whose end nothing is known.
pub(crate) fn deleted(name: &str) -> RolloutStatus {
    RolloutStatus::Failed(format!(
        "Job '{name}' was deleted, and no Event says that it had completed: whether it did is unknown"
    ))
}

/// A container's log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogSource<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    /// Whether it is that of the container's instance before.
    pub is_previous: bool,
}

/// The log that shows why the last attempt of a Job failed: that of the newest pod that failed, else of the newest one
/// with a container that failed and was started again (`restartPolicy: OnFailure`).
pub(crate) fn log_of_failure(pods: &[Pod]) -> Option<LogSource<'_>> {
    let newest = |is_wanted: fn(&&Pod) -> bool| {
        let wanted = pods.iter().filter(is_wanted);
        wanted.max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0))
    };
    let pod = newest(|pod| pods::phase(pod) == "Failed")
        .or_else(|| newest(|pod| !pods::failed_containers(pod).is_empty()))?;
    let container = container_to_blame(pod)?;
    let failed = pods::failed_containers(pod).into_iter().find(|it| it.name == container);
    let state = failed.and_then(|it| it.state.as_ref());
    let is_previous = state.is_some_and(|state| state.terminated.is_none());
    Some(LogSource { pod: pod.metadata.name.as_deref()?, container, is_previous })
}

/// A container's log as lines that each name it, for example `pod a, container main`.
pub(crate) fn log_lines(container: &str, log: &str) -> Vec<String> {
    masked(log).lines().map(|line| format!("{container} printed: {}", printable(line))).collect()
}

/// What a person can see of the line, so that it does not change how a terminal shows it, without its secrets.
pub(crate) fn printable(line: &str) -> String {
    masked_line(line, MAX_LINE_CHARACTERS)
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
    fn a_job_has_finished_once_it_is_complete_or_has_failed() {
        for (conditions, expected) in [
            ("{type: Complete, status: 'True'}", true),
            ("{type: Failed, status: 'True'}", true),
            ("{type: FailureTarget, status: 'True'}", false),
            ("{type: SuccessCriteriaMet, status: 'True'}", false),
            ("{type: Suspended, status: 'True'}", false),
            ("{type: Failed, status: 'False'}", false),
            ("", false),
        ] {
            let text = format!("status: {{succeeded: 1, conditions: [{conditions}]}}");
            let job = serde_yaml_ng::from_str(&text).expect("is a Job");
            assert_eq!(has_finished(&job), expected, "{conditions}");
        }
    }

    #[test]
    fn a_deletion_is_complete_once_the_pods_are_gone_too() {
        assert!(matches!(deletion_status("a", 2), RolloutStatus::Waiting(_)));
        assert_eq!(
            deletion_status("a", 0),
            RolloutStatus::Complete("Job 'a' and its pods are gone".into())
        );
        let held = "metadata: {name: a, finalizers: [example.org/keep]}";
        let blocker = deletion_blocker(&serde_yaml_ng::from_str(held).expect("is a Job"));
        assert!(blocker.is_some_and(|it| it.contains("example.org/keep")));
    }

    #[test]
    fn the_pods_of_a_job_are_found_by_its_selector() {
        let job = "spec: {template: {}, selector: {matchLabels: {batch.kubernetes.io/controller-uid: u1}}}";
        let query = pods_query(&serde_yaml_ng::from_str(job).expect("is a Job"));
        assert_eq!(query, PodQuery::Labels("batch.kubernetes.io/controller-uid=u1".to_owned()));
    }

    #[test]
    fn a_suspended_job_is_waited_for() {
        assert_eq!(
            of("{conditions: [{type: Suspended, status: 'True'}]}"),
            RolloutStatus::Waiting("Job 'nightly-1' is suspended".into())
        );
    }

    #[test]
    fn a_deleted_job_has_ended_as_its_controller_has_recorded() {
        let event = |component: &str, reason: &str| -> Event {
            serde_yaml_ng::from_str(&format!(
                "{{metadata: {{}}, involvedObject: {{}}, source: {{component: {component}}}, \
                 reason: {reason}, message: m}}"
            ))
            .expect("is an Event")
        };
        let created = event("job-controller", "SuccessfulCreate");
        let by = |last: Event| status_by_events("a", &[created.clone(), last]);
        assert!(matches!(
            by(event("job-controller", "Completed")),
            Some(RolloutStatus::Complete(_))
        ));
        assert_eq!(
            by(event("job-controller", "BackoffLimitExceeded")),
            Some(RolloutStatus::Failed("BackoffLimitExceeded: m".into()))
        );
        assert_eq!(by(event("someone", "Completed")), None);
        assert!(matches!(deleted("a"), RolloutStatus::Failed(why) if why.ends_with("is unknown")));
    }

    #[test]
    fn the_log_of_the_last_attempt_is_read() {
        let pod = |name: &str, second: u8, phase: &str, state: &str| -> Pod {
            let last = "lastState: {terminated: {exitCode: 3}}";
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: {name}, creationTimestamp: '2026-01-31T12:00:{second:02}Z'}}\n\
                 spec: {{containers: [{{name: main}}]}}\n\
                 status: {{phase: {phase}, containerStatuses: [{{name: main, image: i, imageID: '', ready: false, \
                 restartCount: 1, state: {{{state}}}, {last}}}]}}"
            ))
            .expect("is a pod")
        };
        let ended = "terminated: {exitCode: 3}";
        let source = |pod, is_previous| LogSource { pod, container: "main", is_previous };
        let pods = [
            pod("b", 2, "Failed", ended),
            pod("c", 5, "Failed", ended),
            pod("a", 9, "Running", ""),
        ];
        assert_eq!(log_of_failure(&pods), Some(source("c", false)));
        let waiting = [pod("a", 9, "Running", "waiting: {reason: CrashLoopBackOff}")];
        assert_eq!(log_of_failure(&waiting), Some(source("a", true)));
        assert_eq!(log_of_failure(&[]), None);
    }

    #[test]
    fn a_log_line_loses_its_control_characters() {
        assert_eq!(
            log_lines("pod a", "\u{1b}[31mboom\u{7}\nx"),
            ["pod a printed: [31mboom", "pod a printed: x"]
        );
    }

    #[test]
    fn a_running_job_is_found_by_its_owner_however_it_was_started() {
        let job = |name: &str, owner: &str, conditions: &str| -> Job {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: {name}, ownerReferences: [{{apiVersion: batch/v1, kind: CronJob, name: n, \
                 uid: {owner}}}]}}\nstatus: {{conditions: [{conditions}]}}"
            ))
            .expect("is a Job")
        };
        let jobs = [
            job("a", "u", ""),
            job("b", "u", "{type: Complete, status: 'True'}"),
            job("c", "u", "{type: Failed, status: 'True'}"),
            job("d", "other", ""),
            job("e", "u", "{type: Suspended, status: 'True'}"),
        ];
        assert_eq!(running_of(&jobs, "u"), ["a", "e"]);
    }

    #[test]
    fn the_container_to_blame_is_the_one_that_failed_first_and_by_itself() {
        let pod = |annotations: &str, statuses: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: a, annotations: {{{annotations}}}}}\n\
                 spec: {{containers: [{{name: a-proxy}}, {{name: main}}]}}\n\
                 status: {{phase: Failed, containerStatuses: [{statuses}]}}"
            ))
            .expect("is a pod")
        };
        let container = |name: &str, code: i32, second: u8| {
            format!(
                "{{name: {name}, image: i, imageID: '', ready: false, restartCount: 0, state: {{terminated: \
                 {{exitCode: {code}, finishedAt: '2026-01-31T12:00:{second:02}Z'}}}}}}"
            )
        };
        let killed = format!("{}, {}", container("a-proxy", 137, 5), container("main", 3, 5));
        let early = format!("{}, {}", container("a-proxy", 1, 1), container("main", 3, 5));
        let default = "kubectl.kubernetes.io/default-container: main";
        for (annotations, statuses, expected) in [
            ("", &*killed, "main"),
            ("", &*early, "a-proxy"),
            (default, "", "main"),
            ("", "", "a-proxy"),
        ] {
            assert_eq!(container_to_blame(&pod(annotations, statuses)), Some(expected));
        }
        assert_eq!(
            pods::problems([&pod("", &killed)]),
            ["pod a: container main: exit code 3", "pod a: container a-proxy: exit code 137"]
        );
    }
}
