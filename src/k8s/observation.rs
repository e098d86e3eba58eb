//! Whether pods stay as an effect left them: what is remembered of them when it is complete, and what differs later.
//! Pure.
//!
//! Restarts and uids show later what happened between two reads. A workload that is scaled meanwhile, for
//! example by an autoscaler, may lose so many pods, and waits for new ones: neither is a problem of the effect.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::Pod;

use crate::k8s::{
    completion::{AwaitedRollout, Completion},
    pods,
    replacement::PodQuery,
    rollout::RolloutStatus,
};

/// The most problems that are reported.
const MAX_PROBLEMS: usize = 10;

/// Where the pods are that an effect left behind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ObservedPods<'a> {
    /// All of a workload.
    Workload { namespace: &'a str, name: &'a str },
    /// Those that a controller created in place of the deleted one.
    Successors {
        namespace: &'a str,
        controller_uid: &'a str,
        query: &'a PodQuery,
        known: &'a HashSet<String>,
    },
    /// This one.
    Pod { namespace: &'a str, name: &'a str, uid: &'a str },
}

impl<'a> ObservedPods<'a> {
    /// Those that are there once the effect is complete; `None` if it leaves none behind.
    pub(crate) fn of(completion: &'a Completion) -> Option<Self> {
        match completion {
            Completion::RolledOut(AwaitedRollout { namespace, name, .. })
            | Completion::Scaled { namespace, name, .. } => {
                Some(ObservedPods::Workload { namespace, name })
            }
            Completion::Replaced { namespace, controller_uid, query, known, .. } => {
                Some(ObservedPods::Successors { namespace, controller_uid, query, known })
            }
            Completion::Resized { namespace, name, uid, .. } => {
                Some(ObservedPods::Pod { namespace, name, uid })
            }
            Completion::Immediate(_)
            | Completion::Gone { .. }
            | Completion::Expanded { .. }
            | Completion::PodsGone { .. }
            | Completion::JobGone { .. }
            | Completion::Finished { .. }
            // An operator's object has pods that its operator knows.
            | Completion::ArgoRollout(_)
            | Completion::Reconciled { .. }
            | Completion::Synced { .. }
            | Completion::ScalingPaused { .. } => None,
        }
    }
}

/// What is remembered of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodSnapshot {
    name: String,
    /// Of all its containers.
    restarts: i32,
    is_ready: bool,
    is_leaving: bool,
    /// How a container ended last that failed.
    ending: Option<String>,
    /// What is wrong with it now.
    problem: Option<String>,
}

/// What an effect left behind, read once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodsSnapshot {
    /// By uid.
    pods: BTreeMap<String, PodSnapshot>,
    /// How many pods the workload is to have, if it is one.
    pub desired: Option<u64>,
    /// How far the effect is now, if a rollout can regress.
    pub status: Option<RolloutStatus>,
}

impl PodsSnapshot {
    /// Adds pods, of which little is kept.
    pub(crate) fn add(&mut self, pods: impl IntoIterator<Item = Pod>) {
        let seen = pods.into_iter().filter(|pod| !pods::has_finished(pod) || is_failed(pod));
        self.pods.extend(
            seen.filter_map(|pod| Some((pod.metadata.uid.clone()?, PodSnapshot::of(&pod)))),
        );
    }

    /// How many of the pods are ready.
    pub(crate) fn ready(&self) -> usize {
        self.pods.values().filter(|pod| pod.is_ready).count()
    }

    /// What differs from `first`, the first read. What was not ready then is not expected to be.
    pub(crate) fn problems_since(&self, first: &PodsSnapshot) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(RolloutStatus::Failed(why)) = &self.status {
            problems.push(why.clone());
        }
        let mut gone = Vec::new();
        for (uid, before) in first.pods.iter().filter(|(_, pod)| pod.is_ready) {
            match self.pods.get(uid).filter(|pod| !pod.is_leaving) {
                None => gone.push(before.name.as_str()),
                Some(now) => problems.extend(now.problem_since(before)),
            }
        }
        let fewer = first.desired.zip(self.desired).map(|(before, now)| before.saturating_sub(now));
        if gone.len() as u64 > fewer.unwrap_or(0) {
            problems.extend(gone.into_iter().map(|name| format!("pod {name} is gone")));
        }
        problems.truncate(MAX_PROBLEMS);
        problems
    }

    /// What the rollout waits for again, if the number of pods is still that of the first read. A status that is about
    /// to be written shows the same for a moment.
    pub(crate) fn regressed_since(&self, first: &PodsSnapshot) -> Option<&str> {
        match &self.status {
            Some(RolloutStatus::Waiting(what)) if self.desired == first.desired => Some(what),
            _ => None,
        }
    }
}

fn is_failed(pod: &Pod) -> bool {
    pods::phase(pod) == "Failed"
}

impl PodSnapshot {
    fn of(pod: &Pod) -> Self {
        let is_ready = pods::is_ready(pod);
        PodSnapshot {
            name: pod.metadata.name.clone().unwrap_or_default(),
            restarts: pods::restarts(pod),
            is_ready,
            is_leaving: pods::is_terminating(pod),
            ending: pods::last_ending(pod),
            problem: if is_ready { None } else { pods::problems([pod]).into_iter().next() },
        }
    }

    fn problem_since(&self, before: &PodSnapshot) -> Option<String> {
        let PodSnapshot { name, restarts, is_ready, ending, problem, .. } = self;
        if *restarts > before.restarts {
            let times = restarts - before.restarts;
            let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
            let ending = ending.as_ref().map(|how| format!("; last {how}")).unwrap_or_default();
            return Some(format!("pod {name} restarted {times}{ending}"));
        }
        if *is_ready {
            return None;
        }
        Some(problem.clone().unwrap_or_else(|| format!("pod {name} is not ready any more")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str, restarts: i32, more: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, uid: {name}{more}}}\n\
             status: {{phase: Running, conditions: [{{type: Ready, status: '{ready}', reason: ContainersNotReady}}], \
             containerStatuses: [{{name: app, image: i, imageID: '', ready: true, restartCount: {restarts}, \
             state: {{running: {{}}}}, lastState: {{terminated: {{exitCode: 137, reason: OOMKilled}}}}}}]}}"
        ))
        .expect("is a pod")
    }

    fn snapshot(desired: u64, pods: &[Pod]) -> PodsSnapshot {
        let mut snapshot = PodsSnapshot { desired: Some(desired), ..PodsSnapshot::default() };
        snapshot.add(pods.iter().cloned());
        snapshot
    }

    #[test]
    fn changes_between_two_reads_are_problems() {
        let first = snapshot(2, &[pod("a", "True", 1, ""), pod("b", "True", 0, "")]);
        assert_eq!(first.ready(), 2);
        let b = || pod("b", "True", 0, "");
        for (now, expected) in [
            (vec![pod("a", "True", 1, ""), b()], vec![]),
            (
                vec![pod("a", "True", 2, ""), b()],
                vec!["pod a restarted once; last container app: OOMKilled (exit code 137)"],
            ),
            (vec![pod("a", "False", 1, ""), b()], vec!["pod a: ContainersNotReady"]),
            (vec![b(), pod("c", "True", 0, "")], vec!["pod a is gone"]),
            (
                vec![pod("a", "True", 1, ", deletionTimestamp: '2026-01-31T12:00:00Z'"), b()],
                vec!["pod a is gone"],
            ),
            // A new pod is not one of those that were ready.
            (vec![pod("a", "True", 1, ""), b(), pod("c", "False", 9, "")], vec![]),
        ] {
            assert_eq!(snapshot(2, &now).problems_since(&first), expected);
        }
    }

    #[test]
    fn a_workload_that_was_scaled_down_loses_so_many_pods() {
        let first = snapshot(2, &[pod("a", "True", 0, ""), pod("b", "True", 0, "")]);
        assert_eq!(snapshot(1, &[pod("a", "True", 0, "")]).problems_since(&first), [""; 0]);
        let none = snapshot(1, &[]).problems_since(&first);
        assert_eq!(none, ["pod a is gone", "pod b is gone"]);
    }

    #[test]
    fn a_rollout_regresses_unless_the_number_of_its_pods_was_changed() {
        let first = snapshot(2, &[]);
        let waits = |desired| {
            let status = Some(RolloutStatus::Waiting("1 of 2 are available".to_owned()));
            PodsSnapshot { status, ..snapshot(desired, &[]) }
        };
        assert_eq!(waits(2).regressed_since(&first), Some("1 of 2 are available"));
        assert_eq!(waits(3).regressed_since(&first), None);
        let failed = PodsSnapshot {
            status: Some(RolloutStatus::Failed("no".to_owned())),
            ..snapshot(2, &[])
        };
        assert_eq!(failed.problems_since(&first), ["no"]);
    }

    #[test]
    fn initially_unready_pods_may_stay_unready() {
        let first = snapshot(2, &[pod("a", "False", 0, "")]);
        assert_eq!(snapshot(2, &[pod("a", "False", 3, "")]).problems_since(&first), [""; 0]);
    }
}
