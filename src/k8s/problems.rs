//! What is wrong with an effect that does not complete, in the order in which it is reported. Pure.

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::DynamicObject;

use crate::{
    contract::error::ActionError,
    k8s::{pods, revisions::History, workload::Workload},
};

/// The most terminating pods that are reported.
const MAX_TERMINATING: usize = 3;

/// The problems of the pods of the current revision, of the others, and of those that are terminating at this time.
pub(crate) fn of_pods(history: &History, pods: &[Pod], now: DateTime<Utc>) -> Vec<String> {
    let current = history.current();
    let (new, old): (Vec<_>, Vec<_>) =
        pods.iter().partition(|pod| current.is_none_or(|it| history.is_of(it, pod)));
    let terminating = pods.iter().filter(|pod| pods::is_terminating(pod)).take(MAX_TERMINATING);
    let of_old = pods::problems(old).into_iter().map(|problem| format!("old {problem}"));
    pods::problems(new)
        .into_iter()
        .chain(of_old)
        .chain(terminating.flat_map(|pod| pods::termination_blockers(pod, now)))
        .collect()
}

/// A pod that is not ready, of the current revision if there is one.
pub(crate) fn unready_pod<'a>(history: &History, pods: &'a [Pod]) -> Option<&'a Pod> {
    let unready = || pods.iter().filter(|pod| !pods::is_ready(pod) && !pods::is_terminating(pod));
    let current = history.current();
    let is_new = |pod: &&Pod| current.is_some_and(|it| history.is_of(it, pod));
    unready().find(is_new).or_else(|| unready().next())
}

/// The uid of the ReplicaSet that creates a Deployment's new pods.
pub(crate) fn replica_set_uid<'a>(
    history: &History,
    revisions: &'a [DynamicObject],
) -> Option<&'a str> {
    let Workload::Deployment(_) = &history.workload else { return None };
    let current = history.current()?;
    let found = revisions.iter().find(|it| it.metadata.name.as_ref() == Some(&current.name));
    found?.metadata.uid.as_deref()
}

/// The problems with those Events whose reason is not among them yet, and why Events could not be read.
pub(crate) fn with_events<const N: usize>(
    mut problems: Vec<String>,
    warnings: [Result<Option<(Event, String)>, ActionError>; N],
) -> Vec<String> {
    let mut refused = None;
    for warning in warnings {
        match warning {
            Ok(Some((event, sentence))) => {
                let reason = event.reason.unwrap_or_default();
                if reason.is_empty() || !problems.iter().any(|it| it.contains(&reason)) {
                    problems.push(sentence);
                }
            }
            Ok(None) => {}
            Err(error) => refused = Some(error),
        }
    }
    problems
        .extend(refused.map(|it| format!("the Events could not be read: {}", it.with_its_hint())));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract::error::Code, k8s::workload::WorkloadKind};

    /// A Deployment of revision 2.
    fn history() -> History {
        let owner = |kind: &str| {
            format!(
                "ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: web, uid: u1, controller: true}}]"
            )
        };
        let kept = |number: &str| {
            format!(
                "metadata: {{name: web-{number}, uid: rs{number}, {}, annotations: \
                 {{deployment.kubernetes.io/revision: '{number}'}}}}\n\
                 spec: {{template: {{metadata: {{labels: {{revision: '{number}'}}}}}}}}",
                owner("Deployment")
            )
        };
        History::example(
            WorkloadKind::Deployment,
            "metadata: {name: web, uid: u1}\n\
             spec: {selector: {}, template: {metadata: {labels: {revision: '2'}}}}",
            &[&kept("1"), &kept("2")],
        )
    }

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().expect("is a time")
    }

    fn pod(name: &str, metadata: &str, reason: &str) -> Pod {
        let (set, _) = name.rsplit_once('-').expect("is of a ReplicaSet");
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: {name}, uid: {name}{metadata}, ownerReferences: [{{apiVersion: apps/v1, \
             kind: ReplicaSet, name: {set}, uid: x, controller: true}}]}}\n\
             status: {{conditions: [{{type: Ready, status: 'False', reason: {reason}}}]}}"
        ))
        .expect("is a pod")
    }

    #[test]
    fn new_pods_come_first_then_old_ones_then_those_that_are_terminating() {
        let leaving = ", deletionTimestamp: '2026-01-31T12:00:30Z', finalizers: [example.org/keep]";
        let pods = [
            pod("web-1-a", "", "OldOne"),
            pod("web-1-b", leaving, "Gone"),
            pod("web-2-c", "", "NewOne"),
        ];
        assert_eq!(
            of_pods(&history(), &pods, now()),
            [
                "pod web-2-c: NewOne",
                "old pod web-1-a: OldOne",
                "pod web-1-b has until 2026-01-31T12:00:30Z to stop (grace period 0 s)",
                "pod web-1-b is blocked by the finalizers example.org/keep",
            ]
        );
        let unready = unready_pod(&history(), &pods).and_then(|pod| pod.metadata.name.as_deref());
        assert_eq!(unready, Some("web-2-c"));
        let unready = unready_pod(&history(), &pods[..2]);
        assert_eq!(unready.and_then(|pod| pod.metadata.name.as_deref()), Some("web-1-a"));
    }

    #[test]
    fn no_pod_is_called_old_while_the_current_revision_is_unknown() {
        let unknown = History::example(
            WorkloadKind::Deployment,
            "metadata: {name: web, uid: u1}\nspec: {selector: {}, template: {}}",
            &[],
        );
        assert_eq!(of_pods(&unknown, &[pod("web-1-a", "", "Why")], now()), ["pod web-1-a: Why"]);
    }

    #[test]
    fn an_event_is_reported_unless_its_reason_is_known() {
        let event = |reason: &str| {
            let event = Event { reason: Some(reason.to_owned()), ..Event::default() };
            Ok(Some((event, format!("Event of Pod a: {reason}: why"))))
        };
        let known = || vec!["FailedCreate: exceeded quota".to_owned()];
        assert_eq!(with_events(known(), [event("FailedCreate")]), known());
        assert_eq!(
            with_events(known(), [event("FailedMount"), event("FailedMount")])[1..],
            ["Event of Pod a: FailedMount: why"]
        );
        let refused = || Err(ActionError::new(Code::Forbidden, "x may not list events"));
        assert_eq!(
            with_events(Vec::new(), [Ok(None), refused(), refused()]),
            ["the Events could not be read: x may not list events"]
        );
    }
}
