//! What is wrong with an effect that does not complete, in the order in which it is reported. Pure.

use std::collections::BTreeSet;

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

/// The nodes for which a DaemonSet's rollout waits, if for nothing else: those whose pod `is_lost`. On every other node
/// the new pod is ready.
pub(crate) fn lost_nodes_awaited(
    history: &History,
    pods: &[Pod],
    is_lost: impl Fn(&Pod) -> bool,
) -> Option<BTreeSet<String>> {
    let Workload::DaemonSet(set) = &history.workload else { return None };
    let (status, current) = (set.status.as_ref()?, history.current()?);
    let is_done = |pod: &&Pod| pods::is_ready(pod) && history.is_of(current, pod);
    let (done, others): (Vec<_>, Vec<_>) = pods.iter().partition(is_done);
    let nodes: BTreeSet<_> = others
        .iter()
        .map(|pod| pods::node_name(pod).filter(|_| is_lost(pod)).map(str::to_owned))
        .collect::<Option<_>>()?;
    let desired = usize::try_from(status.desired_number_scheduled).ok()?;
    let are_available = status.number_available.unwrap_or(0) >= i32::try_from(done.len()).ok()?;
    let is_all = done.len() + nodes.len() >= desired;
    (!nodes.is_empty() && is_all && are_available).then_some(nodes)
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
    fn a_daemon_set_whose_other_pods_are_all_ready_waits_for_its_lost_nodes() {
        let revision = |number: u8| {
            format!(
                "metadata: {{name: agent-{number}, ownerReferences: [{{apiVersion: apps/v1, kind: DaemonSet, \
                 name: agent, uid: u1, controller: true}}]}}\nrevision: {number}\n\
                 data: {{spec: {{template: {{metadata: {{labels: {{revision: '{number}'}}}}}}}}}}"
            )
        };
        let awaited = |desired: u8, available: u8, pods: &[Pod]| {
            let object = format!(
                "metadata: {{name: agent, uid: u1}}\n\
                 spec: {{selector: {{}}, template: {{metadata: {{labels: {{revision: '2'}}}}}}}}\n\
                 status: {{desiredNumberScheduled: {desired}, currentNumberScheduled: 0, numberMisscheduled: 0, \
                 numberReady: 0, numberAvailable: {available}}}"
            );
            let kept = [revision(1), revision(2)];
            let history = History::example(WorkloadKind::DaemonSet, &object, &[&kept[0], &kept[1]]);
            let is_lost = |pod: &Pod| pods::node_name(pod) == Some("lost");
            lost_nodes_awaited(&history, pods, is_lost)
                .map(|nodes| nodes.into_iter().collect::<Vec<_>>().join(","))
        };
        let pod = |node: &str, revision: u8, ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: {node}, labels: {{controller-revision-hash: '{revision}'}}}}\n\
                 spec: {{containers: [], nodeName: {node}}}\n\
                 status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        let (a, b) = (pod("a", 2, "True"), pod("b", 2, "True"));
        let lost = pod("lost", 1, "False");
        let is = |nodes: Option<&str>| nodes.map(str::to_owned);
        for (desired, available, pods, expected) in [
            (3, 2, vec![&a, &b, &lost], Some("lost")),
            (3, 2, vec![&a, &b, &pod("lost", 2, "Unknown")], Some("lost")),
            // A pod that is missing, old, unready or not available on another node.
            (4, 2, vec![&a, &b, &lost], None),
            (3, 2, vec![&a, &pod("b", 1, "True"), &lost], None),
            (3, 1, vec![&a, &pod("b", 2, "False"), &lost], None),
            (3, 1, vec![&a, &b, &lost], None),
            (2, 2, vec![&a, &b], None),
        ] {
            let pods: Vec<_> = pods.into_iter().cloned().collect();
            assert_eq!(awaited(desired, available, &pods), is(expected), "{desired} {available}");
        }
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
