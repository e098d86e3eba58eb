//! What pods tell about themselves: who owns them, whether they are ready, what is wrong.
//!
//! Verdicts from objects alone; the lists come from elsewhere.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

/// The annotation by which a kubelet marks the API's mirror of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Labels that controllers add to tell generations of pods, or single pods, apart.
const GENERATED_LABELS: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// The most problems that are worth reading at once.
const MAX_PROBLEMS: usize = 10;

/// The controller that replaces the pod when it is gone; none for a bare or a static pod.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    if is_mirror(pod) {
        return None;
    }
    let owners = pod.metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.controller == Some(true))
}

/// Whether the pod is only the API's mirror of a static pod, which its kubelet runs from a file.
#[must_use]
pub fn is_mirror(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|all| all.contains_key(MIRROR_ANNOTATION))
}

/// A label selector (`a=b,c=d`) that the pod shares with its siblings, old and new.
#[must_use]
pub fn sibling_selector(pod: &Pod) -> String {
    let labels = pod.metadata.labels.iter().flatten();
    labels
        .filter(|(key, _)| !GENERATED_LABELS.contains(&key.as_str()))
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// The uids of those pods that this controller owns.
#[must_use]
pub fn uids_owned_by(pods: &[Pod], controller_uid: &str) -> HashSet<String> {
    pods.iter()
        .filter(|pod| controller(pod).is_some_and(|owner| owner.uid == controller_uid))
        .filter_map(|pod| pod.metadata.uid.clone())
        .collect()
}

/// The pods that this controller made since `known` was written down.
#[must_use]
pub fn replacements<'a>(
    pods: &'a [Pod],
    controller_uid: &str,
    known: &HashSet<String>,
) -> Vec<&'a Pod> {
    pods.iter()
        .filter(|pod| controller(pod).is_some_and(|owner| owner.uid == controller_uid))
        .filter(|pod| pod.metadata.uid.as_ref().is_some_and(|uid| !known.contains(uid)))
        .collect()
}

/// The pod's phase; empty before it has one.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has run to its end and is not started again.
#[must_use]
pub fn has_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The claims on volumes that such a pod mounts.
pub fn claims(spec: Option<&PodSpec>) -> impl Iterator<Item = &str> {
    let volumes = spec.into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Whether the pod is being deleted.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod is ready and stays.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    !is_terminating(pod) && condition(pod, "Ready").is_some_and(|(status, ..)| status == "True")
}

/// The pod's condition of this type: status, reason, message.
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

/// Why a pod that is to go is still there.
#[must_use]
pub fn termination_blockers(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(since) = &pod.metadata.deletion_timestamp else {
        return vec![format!("pod {name} is not being deleted")];
    };
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let mut reasons =
        vec![format!("pod {name} has until {} to stop ({grace} s of grace)", since.0)];
    let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
    if !finalizers.is_empty() {
        reasons.push(format!("pod {name} is held by the finalizers {}", finalizers.join(", ")));
    }
    reasons
}

/// What is wrong with these pods, each problem once, with the pods that have it.
#[must_use]
pub fn problems<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<String> {
    let mut by_problem: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| !is_terminating(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        for problem in problems_of(pod) {
            by_problem.entry(problem).or_default().push(name);
        }
    }
    let told = by_problem.into_iter().take(MAX_PROBLEMS);
    told.map(|(problem, names)| format!("{}: {problem}", count_phrase(&names))).collect()
}

fn count_phrase(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("pod {one}"),
        [first, others @ ..] => format!("pod {first} and {} more", others.len()),
    }
}

fn problems_of(pod: &Pod) -> Vec<String> {
    let unscheduled = condition(pod, "PodScheduled")
        .filter(|(status, ..)| *status == "False")
        .map(|(_, reason, message)| sentence(reason, message));
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mains = status.and_then(|status| status.container_statuses.as_ref());
    let containers = inits.into_iter().flatten().chain(mains.into_iter().flatten());
    unscheduled.into_iter().chain(containers.filter_map(problem_of_container)).collect()
}

/// Waiting for anything but a normal start, or ended with an error and not started again.
fn problem_of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let name = &container.name;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return None;
        }
        // The kubelet's message names the pod, which differs from pod to pod; the last exit doesn't.
        let exit = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let message = match (reason, exit) {
            ("CrashLoopBackOff", Some(exit)) => format!(
                "restarted {} times, last exit code {}",
                container.restart_count, exit.exit_code
            ),
            _ => waiting.message.clone().unwrap_or_default(),
        };
        return Some(format!("container {name}: {}", sentence(reason, &message)));
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.as_deref().unwrap_or("Error");
    Some(format!("container {name}: {reason}: exit code {}", ended.exit_code))
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
    fn a_static_pods_mirror_is_unmanaged() {
        let mirror = "metadata: {name: a, annotations: {kubernetes.io/config.mirror: x}, \
                      ownerReferences: [{apiVersion: v1, kind: Node, name: n, uid: u, controller: true}]}";
        assert!(controller(&pod(mirror)).is_none());
    }

    #[test]
    fn siblings_are_found_by_the_labels_that_outlive_a_pod() {
        let labels = "metadata: {labels: {app: web, pod-template-hash: abc, tier: front}}";
        assert_eq!(sibling_selector(&pod(labels)), "app=web,tier=front");
    }

    #[test]
    fn a_replacement_is_owned_by_the_same_controller_and_was_not_there_before() {
        let before = [owned("a", "1"), owned("b", "2"), pod("metadata: {name: x, uid: '9'}")];
        let known = uids_owned_by(&before, "rs");
        assert_eq!(known.len(), 2);
        let after = [owned("b", "2"), owned("a", "3"), pod("metadata: {name: y, uid: '8'}")];
        let new: Vec<_> =
            replacements(&after, "rs", &known).iter().map(|p| p.metadata.uid.clone()).collect();
        assert_eq!(new, [Some("3".to_owned())]);
    }

    #[test]
    fn tells_what_holds_a_pod_that_is_to_go() {
        let held = pod("metadata: {name: a, deletionTimestamp: '2026-01-31T12:00:30Z', \
             deletionGracePeriodSeconds: 30, finalizers: [example.org/keep]}");
        assert_eq!(
            termination_blockers(&held),
            [
                "pod a has until 2026-01-31T12:00:30Z to stop (30 s of grace)",
                "pod a is held by the finalizers example.org/keep",
            ]
        );
    }

    #[test]
    fn a_terminating_pod_is_not_ready() {
        let ready = "status: {conditions: [{type: Ready, status: 'True'}]}";
        assert!(is_ready(&pod(ready)));
        let leaving = format!("metadata: {{deletionTimestamp: '2026-01-31T12:00:00Z'}}\n{ready}");
        assert!(!is_ready(&pod(&leaving)));
    }

    #[test]
    fn tells_each_problem_once_with_its_pods() {
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
    fn tells_crashes_by_their_exit_code() {
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
    fn tells_why_a_pod_has_no_node() {
        let pending = pod("metadata: {name: a}\n\
             status: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, \
             message: 0/2 nodes are available}]}");
        assert_eq!(problems([&pending]), ["pod a: Unschedulable: 0/2 nodes are available"]);
    }

    #[test]
    fn a_normal_start_is_no_problem() {
        let starting = pod("metadata: {name: a}\n\
             status: {containerStatuses: [{name: app, image: i, imageID: '', ready: false, \
             restartCount: 0, state: {waiting: {reason: ContainerCreating}}}]}");
        assert!(problems([&starting]).is_empty());
    }
}
