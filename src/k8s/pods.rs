//! What a Pod says: its controller, whether it is ready, what is wrong with it. Pure.

use std::{borrow::Borrow, collections::HashSet};

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

/// The annotation by which a kubelet marks the API's mirror of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The exit codes of a container that was ended by SIGKILL or SIGTERM.
const KILLED: [i32; 2] = [137, 143];

/// The most problems that are reported.
const MAX_PROBLEMS: usize = 10;

/// The owner that controls an object.
pub(crate) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// The controller that replaces the pod once it is gone; none for a bare or a static pod.
pub(crate) fn controller(pod: &Pod) -> Option<&OwnerReference> {
    if is_mirror(pod) { None } else { controller_of(&pod.metadata) }
}

/// Whether the pod is the API's mirror of a static pod, which its kubelet runs from a file.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(MIRROR_ANNOTATION))
}

/// The ordinal in the name of a StatefulSet's pod.
pub(crate) fn ordinal(name: &str) -> Option<i32> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// Empty before the pod has a phase.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Why the pod has its phase, for example `Evicted`.
pub(crate) fn reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref()
}

/// The same in a sentence.
pub(crate) fn message(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.message.as_deref()
}

/// Why no node takes the pod, if so.
pub(crate) fn unschedulable(pod: &Pod) -> Option<&str> {
    let (_, _, message) =
        condition(pod, "PodScheduled").filter(|(status, ..)| *status == "False")?;
    Some(message)
}

/// Why the pod is not ready, by its condition.
pub(crate) fn unready_reason(pod: &Pod) -> Option<String> {
    let (_, reason, message) = condition(pod, "Ready").filter(|(status, ..)| *status != "True")?;
    Some(sentence(reason, message)).filter(|it| !it.is_empty())
}

/// Whether the pod has terminated and is not restarted.
pub(crate) fn has_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The volume claims that a pod mounts.
pub(crate) fn pvcs(spec: Option<&PodSpec>) -> impl Iterator<Item = &str> {
    let volumes = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The node that the pod is assigned to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether the pod is ready and not being deleted.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    !is_terminating(pod) && condition(pod, "Ready").is_some_and(|(status, ..)| status == "True")
}

/// When the node controller marked the pod as not ready, if so: its containers are ready, and no readiness gate is the
/// reason (`MarkPodsNotReady` of Kubernetes).
pub(crate) fn marked_unready_at(pod: &Pod) -> Option<String> {
    let has_gates = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty()));
    let are_containers_ready = condition(pod, "ContainersReady").is_some_and(|it| it.0 == "True");
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let unready = conditions.iter().find(|it| it.type_ == "Ready" && it.status == "False")?;
    let at = unready.last_transition_time.as_ref()?.0.to_string();
    (are_containers_ready && !has_gates).then_some(at)
}

/// Status, reason and message of the pod's condition.
fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| {
        (
            condition.status.as_str(),
            condition.reason.as_deref().unwrap_or_default(),
            condition.message.as_deref().unwrap_or_default(),
        )
    })
}

/// Why a pod that is to be deleted still exists at this time.
pub(crate) fn termination_blockers(pod: &Pod, now: DateTime<Utc>) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(until) = &pod.metadata.deletion_timestamp else {
        return vec![format!("pod {name} is not being deleted")];
    };
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let until = &until.0;
    let mut reasons = vec![match until.as_second() < now.timestamp() {
        true => format!(
            "pod {name} had until {until} to stop (grace period {grace} s) and is still there"
        ),
        false => format!("pod {name} has until {until} to stop (grace period {grace} s)"),
    }];
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    if !finalizers.is_empty() {
        reasons.push(format!("pod {name} is blocked by the finalizers {}", finalizers.join(", ")));
    }
    reasons
}

/// Each problem once, with the pods that have it, in the order of the pods.
pub(crate) fn problems<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<String> {
    let mut by_problem: Vec<(String, Vec<&str>)> = Vec::new();
    for pod in pods.into_iter().filter(|pod| !is_terminating(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        for problem in problems_of(pod) {
            match by_problem.iter_mut().find(|(known, _)| *known == problem) {
                Some((_, names)) => names.push(name),
                None => by_problem.push((problem, vec![name])),
            }
        }
    }
    let listed = by_problem.into_iter().take(MAX_PROBLEMS);
    listed.map(|(problem, names)| format!("{}: {problem}", count_phrase(&names))).collect()
}

/// The names, shortened to `a, b and 3 more`.
pub(crate) fn join_names<S: Borrow<str>>(names: &[S], max: usize) -> String {
    let more = names.len().saturating_sub(max);
    let listed = names[..names.len() - more].join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

fn count_phrase(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("pod {one}"),
        [first, others @ ..] => format!("pod {first} and {} more", others.len()),
    }
}

fn problems_of(pod: &Pod) -> Vec<String> {
    let failing = |kind: &str| {
        let (_, reason, message) =
            condition(pod, kind).filter(|(status, ..)| *status == "False")?;
        Some(sentence(reason, message))
    };
    let unscheduled = failing("PodScheduled");
    let others = containers_of(pod).filter(|it| failed_exit(it).is_none());
    let containers = failed_containers(pod).into_iter().chain(others);
    let mut problems: Vec<_> =
        unscheduled.into_iter().chain(containers.filter_map(problem_of_container)).collect();
    // Of a finished pod the containers say why.
    if problems.is_empty() && !has_finished(pod) {
        problems.extend(failing("Ready").filter(|it| !it.is_empty()));
    }
    problems
}

/// The status of the pod's containers, init containers first.
pub(crate) fn containers_of(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mains = status.and_then(|status| status.container_statuses.as_ref());
    inits.into_iter().flatten().chain(mains.into_iter().flatten())
}

/// How a container that has failed ended last.
fn failed_exit(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or(last).filter(|exit| exit.exit_code != 0)
}

/// The containers that have failed, the likely cause first: what failed by itself before what was killed, a sidecar
/// last, then by time.
pub(crate) fn failed_containers(pod: &Pod) -> Vec<&ContainerStatus> {
    let sidecars: HashSet<_> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let mut failed: Vec<_> = containers_of(pod)
        .filter_map(|container| Some((failed_exit(container)?, container)))
        .collect();
    failed.sort_by_key(|(exit, container)| {
        let is_killed =
            KILLED.contains(&exit.exit_code) && exit.reason.as_deref() != Some("OOMKilled");
        let finished_at = exit.finished_at.as_ref().map(|at| at.0);
        let is_sidecar = sidecars.contains(container.name.as_str());
        (is_killed, is_sidecar, finished_at.is_none(), finished_at)
    });
    failed.into_iter().map(|(_, container)| container).collect()
}

/// How often the pod's containers were started again, all together.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    containers_of(pod).map(|container| container.restart_count).sum()
}

/// How the container ended that is the likely cause of the pod's failure, for example `container app: OOMKilled (exit
/// code 137)`.
pub(crate) fn last_ending(pod: &Pod) -> Option<String> {
    let container = failed_containers(pod).into_iter().next()?;
    Some(format!("container {}: {}", container.name, ending_of(failed_exit(container)?)))
}

/// A container that waits, terminated with an error, or is not ready after a restart.
fn problem_of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let name = &container.name;
    let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let restarted = last.map(|last| {
        let times = container.restart_count;
        format!("restarted {times} times, last {}", ending_of(last))
    });
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // The kubelet's message has the pod's name, so it would not be the same for all pods.
        let message = match (reason, restarted) {
            ("", _) => return None,
            ("CrashLoopBackOff", Some(restarted)) => restarted,
            _ => waiting.message.clone().unwrap_or_default(),
        };
        return Some(format!("container {name}: {}", sentence(reason, &message)));
    }
    if let Some(terminated) = state.terminated.as_ref().filter(|it| it.exit_code != 0) {
        return Some(format!("container {name}: {}", ending_of(terminated)));
    }
    let is_unready = state.running.is_some() && !container.ready;
    restarted.filter(|_| is_unready).map(|restarted| format!("container {name}: {restarted}"))
}

/// How a container ended: `OOMKilled` says more than its exit code.
fn ending_of(terminated: &ContainerStateTerminated) -> String {
    let code = terminated.exit_code;
    match terminated.reason.as_deref() {
        None | Some("Error") => format!("exit code {code}"),
        Some(reason) => format!("{reason} (exit code {code})"),
    }
}

fn sentence(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml_ng::from_str(yaml).expect("is a pod")
    }

    fn owned(name: &str, uid: &str) -> Pod {
        pod(&format!(
            "metadata: {{name: {name}, uid: {uid}, ownerReferences: [{{apiVersion: apps/v1, \
             kind: ReplicaSet, name: web, uid: rs, controller: true}}]}}"
        ))
    }

    #[test]
    fn a_pod_without_a_controller_is_unmanaged() {
        assert!(controller(&pod("metadata: {name: a}")).is_none());
        let owned_but_not_controlled = "metadata: {name: a, ownerReferences: [{apiVersion: v1, \
                                        kind: ConfigMap, name: c, uid: u}]}";
        assert!(controller(&pod(owned_but_not_controlled)).is_none());
        assert_eq!(
            controller(&owned("a", "1")).map(|owner| owner.kind.as_str()),
            Some("ReplicaSet")
        );
    }

    #[test]
    fn the_mirror_of_a_static_pod_is_unmanaged() {
        let mirror = "metadata: {name: a, annotations: {kubernetes.io/config.mirror: x}, \
                      ownerReferences: [{apiVersion: v1, kind: Node, name: n, uid: u, controller: true}]}";
        assert!(controller(&pod(mirror)).is_none());
    }

    #[test]
    fn a_terminating_pod_is_reported_with_deadline_and_finalizers() {
        let held = pod("metadata: {name: a, deletionTimestamp: '2026-01-31T12:00:30Z', \
             deletionGracePeriodSeconds: 30, finalizers: [example.org/keep]}");
        let at = |time: &str| time.parse().expect("is a time");
        assert_eq!(
            termination_blockers(&held, at("2026-01-31T12:00:30Z")),
            [
                "pod a has until 2026-01-31T12:00:30Z to stop (grace period 30 s)",
                "pod a is blocked by the finalizers example.org/keep",
            ]
        );
        let over = termination_blockers(&held, at("2026-01-31T12:00:31Z")).remove(0);
        assert!(over.starts_with("pod a had until 2026-01-31T12:00:30Z"), "{over}");
    }

    #[test]
    fn a_terminating_pod_is_not_ready() {
        let ready = "status: {conditions: [{type: Ready, status: 'True'}]}";
        assert!(is_ready(&pod(ready)));
        let leaving = format!("metadata: {{deletionTimestamp: '2026-01-31T12:00:00Z'}}\n{ready}");
        assert!(!is_ready(&pod(&leaving)));
    }

    #[test]
    fn a_problem_of_several_pods_is_reported_once() {
        let failing = |name: &str| {
            pod(&format!(
                "metadata: {{name: {name}}}\n\
                 status: {{containerStatuses: [{{name: app, image: i, imageID: '', ready: false, \
                 restartCount: 0, state: {{waiting: {{reason: ImagePullBackOff, message: Back-off}}}}}}]}}"
            ))
        };
        let pods = [failing("a"), failing("b")];
        assert_eq!(
            problems(&pods),
            ["pod a and 1 more: container app: ImagePullBackOff: Back-off"]
        );
    }

    #[test]
    fn a_crash_is_reported_with_its_exit_code() {
        let crashing = pod("metadata: {name: a}\n\
             status: {containerStatuses: [{name: app, image: i, imageID: '', ready: false, \
             restartCount: 3, state: {waiting: {reason: CrashLoopBackOff, message: back-off 40s}}, \
             lastState: {terminated: {exitCode: 137}}}]}");
        assert_eq!(
            problems([&crashing]),
            ["pod a: container app: CrashLoopBackOff: restarted 3 times, last exit code 137"]
        );
    }

    #[test]
    fn an_unschedulable_pod_is_reported() {
        let pending = pod("metadata: {name: a}\n\
             status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, \
             message: 0/2 nodes are available}]}");
        assert_eq!(problems([&pending]), ["pod a: Unschedulable: 0/2 nodes are available"]);
    }

    #[test]
    fn each_reason_why_a_pod_is_not_ready_is_reported() {
        let container = |state: &str| {
            format!(
                "containerStatuses: [{{name: app, image: i, imageID: '', ready: false, restartCount: 2, \
                 {state}}}]"
            )
        };
        let killed = "lastState: {terminated: {exitCode: 137, reason: OOMKilled}}";
        let conditions = "conditions: [{type: Ready, status: 'False', reason: ContainersNotReady, message: \
                          'containers with unready status: [app]'}]";
        let gate = "conditions: [{type: Ready, status: 'False', reason: ReadinessGatesNotReady, message: \
                    'the status of pod readiness gate \"x\" is not \"True\", but False'}]";
        for (status, expected) in [
            (
                container("state: {waiting: {reason: ContainerCreating}}"),
                "pod a: container app: ContainerCreating",
            ),
            (
                container(&format!("state: {{waiting: {{reason: CrashLoopBackOff}}}}, {killed}")),
                "pod a: container app: CrashLoopBackOff: restarted 2 times, last OOMKilled (exit code 137)",
            ),
            (
                container(&format!("state: {{running: {{}}}}, {killed}")),
                "pod a: container app: restarted 2 times, last OOMKilled (exit code 137)",
            ),
            (
                container("state: {terminated: {exitCode: 137, reason: OOMKilled}}"),
                "pod a: container app: OOMKilled (exit code 137)",
            ),
            (
                container("state: {terminated: {exitCode: 3, reason: Error}}"),
                "pod a: container app: exit code 3",
            ),
            (
                format!("{}, {conditions}", container("state: {running: {}}")),
                "pod a: ContainersNotReady: containers with unready status: [app]",
            ),
            (
                gate.to_owned(),
                "pod a: ReadinessGatesNotReady: the status of pod readiness gate \"x\" is not \"True\", but False",
            ),
        ] {
            let unready = pod(&format!("metadata: {{name: a}}\nstatus: {{{status}}}"));
            assert_eq!(problems([&unready]), [expected]);
        }
    }

    #[test]
    fn a_pod_that_the_node_controller_marked_as_not_ready_is_recognised() {
        let at = |conditions: &str, spec: &str| {
            marked_unready_at(&pod(&format!(
                "metadata: {{name: a}}\nspec: {{containers: []{spec}}}\nstatus: {{conditions: [{conditions}]}}"
            )))
        };
        let unready = "{type: Ready, status: 'False', lastTransitionTime: '2026-01-31T12:00:50Z'}";
        let marked = format!("{unready}, {{type: ContainersReady, status: 'True'}}");
        let crashing = format!("{unready}, {{type: ContainersReady, status: 'False'}}");
        assert_eq!(at(&marked, "").as_deref(), Some("2026-01-31T12:00:50Z"));
        assert_eq!(at(&marked, ", readinessGates: [{conditionType: x}]"), None);
        assert_eq!(at(&crashing, ""), None);
    }
}
