//! Which finished pods of a namespace a cleanup deletes, and which stay. Pure.
//!
//! A pod stays that another controller still needs: the Job controller counts a finished pod by it, and what a
//! controller of an unknown kind makes of its finished pods is unknown.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::k8s::{jobs, pods, replacement::is_replacing};

/// The field selector for finished pods.
pub(crate) const FINISHED: &str =
    "status.phase!=Pending,status.phase!=Running,status.phase!=Unknown";

/// The finalizer of a pod that its Job has not counted yet.
const JOB_TRACKING_FINALIZER: &str = "batch.kubernetes.io/job-tracking";

/// Which finished pods are meant.
#[derive(Clone, Debug)]
pub(crate) struct CleanupFilter<'a> {
    /// `Failed`, `Succeeded` or both.
    pub phases: Vec<&'a str>,
    /// The pod's `status.reason`, for example `Evicted`.
    pub reason: Option<&'a str>,
    /// When it has finished at the latest; none for any time, so that no clock of a node decides.
    pub finished_before: Option<DateTime<Utc>>,
}

/// Why a pod that is meant stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StayReason {
    /// Its Job has not counted it, or has not finished.
    UnfinishedJob,
    /// What its controller makes of it is unknown.
    UnknownController,
    /// It is the mirror of a static pod.
    Mirror,
}

impl CleanupFilter<'_> {
    /// Whether the pod is meant: it has finished as the filter says, and is not being deleted.
    pub(crate) fn matches(&self, pod: &Pod) -> bool {
        self.phases.contains(&pods::phase(pod))
            && !pods::is_terminating(pod)
            && self.reason.is_none_or(|reason| pods::reason(pod) == Some(reason))
            && self.finished_before.is_none_or(|end| finished_at(pod).is_some_and(|at| at <= end))
    }
}

/// The uids of the Jobs that have finished.
pub(crate) fn finished(jobs: &[Job]) -> HashSet<&str> {
    let finished = jobs.iter().filter(|job| jobs::has_finished(job));
    finished.filter_map(|job| job.metadata.uid.as_deref()).collect()
}

/// Why the pod stays, if it does, given the uids of the Jobs that have finished. A Job that is not listed may have been
/// created since; the pods of one that is gone are removed by the garbage collector.
pub(crate) fn stays(pod: &Pod, finished_jobs: &HashSet<&str>) -> Option<StayReason> {
    if pods::is_mirror(pod) {
        return Some(StayReason::Mirror);
    }
    let finalizers = pod.metadata.finalizers.iter().flatten();
    if finalizers.into_iter().any(|it| it == JOB_TRACKING_FINALIZER) {
        return Some(StayReason::UnfinishedJob);
    }
    let owner = pods::controller(pod)?;
    if owner.kind == "Job" && !finished_jobs.contains(owner.uid.as_str()) {
        return Some(StayReason::UnfinishedJob);
    }
    (!is_replacing(owner)).then_some(StayReason::UnknownController)
}

/// When the pod finished, as far as it shows: when its last container ended; of a pod whose containers never ended, or
/// are not listed, when its conditions changed last; else when it was created.
pub(crate) fn finished_at(pod: &Pod) -> Option<DateTime<Utc>> {
    let status = pod.status.as_ref();
    let containers = status.into_iter().flat_map(|status| {
        let all = [&status.init_container_statuses, &status.container_statuses];
        all.into_iter().flatten().flatten()
    });
    let ended =
        containers.filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let changed = conditions.filter_map(|it| it.last_transition_time.as_ref());
    let last = ended.map(time).max().or_else(|| changed.map(time).max());
    last.or_else(|| pod.metadata.creation_timestamp.as_ref().map(time)).flatten()
}

fn time(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.0.as_second(), 0)
}

/// The latest time of the end of the pods that are meant; none for any.
pub(crate) fn before(now: DateTime<Utc>, older_than_seconds: u32) -> Option<DateTime<Utc>> {
    (older_than_seconds > 0).then(|| now - TimeDelta::seconds(i64::from(older_than_seconds)))
}

/// The pod's phase, with its reason, for example `Failed, Evicted`.
pub(crate) fn ending(pod: &Pod) -> String {
    match pods::reason(pod) {
        Some(reason) => format!("{}, {reason}", pods::phase(pod)),
        None => pods::phase(pod).to_owned(),
    }
}

impl StayReason {
    pub(crate) fn description(self) -> &'static str {
        match self {
            StayReason::UnfinishedJob => "their Job has not finished, or has not counted them yet",
            StayReason::UnknownController => {
                "what their controller makes of its finished pods is unknown"
            }
            StayReason::Mirror => "they mirror static pods",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(metadata: &str, status: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: a, uid: a, creationTimestamp: '2026-01-31T11:00:00Z'{metadata}}}\n\
             status: {{{status}}}"
        ))
        .expect("is a pod")
    }

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().expect("is a time")
    }

    fn owned(api: &str, kind: &str) -> String {
        format!(
            ", ownerReferences: [{{apiVersion: {api}, kind: {kind}, name: o, uid: o, controller: true}}]"
        )
    }

    const EVICTED: &str = "phase: Failed, reason: Evicted";

    #[test]
    fn pods_are_meant_by_phase_reason_and_age() {
        let filter = |phases: &[&'static str], reason, seconds| CleanupFilter {
            phases: phases.to_vec(),
            reason,
            finished_before: before(now(), seconds),
        };
        let ended = "phase: Succeeded, containerStatuses: [{name: a, image: i, imageID: '', ready: false, \
                     restartCount: 0, state: {terminated: {exitCode: 0, finishedAt: '2026-01-31T11:59:00Z'}}}]";
        for (status, filter, expected) in [
            (EVICTED, filter(&["Failed"], None, 0), true),
            (EVICTED, filter(&["Failed"], Some("Evicted"), 0), true),
            (EVICTED, filter(&["Failed"], Some("NodeLost"), 0), false),
            (EVICTED, filter(&["Succeeded"], None, 0), false),
            (EVICTED, filter(&["Failed"], None, 3600), true),
            (EVICTED, filter(&["Failed"], None, 3601), false),
            (ended, filter(&["Failed", "Succeeded"], None, 60), true),
            (ended, filter(&["Failed", "Succeeded"], None, 61), false),
            ("phase: Running", filter(&["Failed", "Succeeded"], None, 0), false),
        ] {
            assert_eq!(filter.matches(&pod("", status)), expected, "{status} {filter:?}");
        }
        let leaving = pod(", deletionTimestamp: '2026-01-31T12:00:00Z'", EVICTED);
        assert!(!filter(&["Failed"], None, 0).matches(&leaving));
    }

    #[test]
    fn the_last_container_or_condition_says_when_a_pod_finished() {
        let at = |status: &str| finished_at(&pod("", status)).map(|at| at.to_rfc3339());
        let container = |second: u8| {
            format!(
                "{{name: c{second}, image: i, imageID: '', ready: false, restartCount: 0, state: {{terminated: \
                 {{exitCode: 0, finishedAt: '2026-01-31T11:30:{second:02}Z'}}}}}}"
            )
        };
        let condition = "conditions: [{type: DisruptionTarget, status: 'True', \
                         lastTransitionTime: '2026-01-31T11:45:00Z'}]";
        let both = format!("containerStatuses: [{}, {}], {condition}", container(9), container(5));
        assert_eq!(at(&both).as_deref(), Some("2026-01-31T11:30:09+00:00"));
        assert_eq!(at(condition).as_deref(), Some("2026-01-31T11:45:00+00:00"));
        assert_eq!(at("phase: Failed").as_deref(), Some("2026-01-31T11:00:00+00:00"));
    }

    #[test]
    fn a_pod_that_a_controller_still_needs_stays() {
        let finished = HashSet::from(["o"]);
        let tracked = ", finalizers: [batch.kubernetes.io/job-tracking]";
        let mirror = ", annotations: {kubernetes.io/config.mirror: x}";
        for (metadata, finished_jobs, expected) in [
            (String::new(), &finished, None),
            (owned("apps/v1", "ReplicaSet"), &HashSet::new(), None),
            (owned("batch/v1", "Job"), &finished, None),
            (owned("batch/v1", "Job"), &HashSet::new(), Some(StayReason::UnfinishedJob)),
            (tracked.to_owned(), &HashSet::new(), Some(StayReason::UnfinishedJob)),
            (
                owned("argoproj.io/v1alpha1", "Workflow"),
                &HashSet::new(),
                Some(StayReason::UnknownController),
            ),
            (mirror.to_owned(), &HashSet::new(), Some(StayReason::Mirror)),
        ] {
            assert_eq!(stays(&pod(&metadata, EVICTED), finished_jobs), expected, "{metadata}");
        }
    }

    #[test]
    fn a_job_has_finished_with_a_condition_of_its_end() {
        let job = |uid: &str, conditions: &str| -> Job {
            let text = format!("metadata: {{uid: {uid}}}\nstatus: {{conditions: [{conditions}]}}");
            serde_yaml_ng::from_str(&text).expect("is a Job")
        };
        let jobs = [job("a", ""), job("b", "{type: Failed, status: 'True'}")];
        assert_eq!(finished(&jobs), HashSet::from(["b"]));
    }
}
