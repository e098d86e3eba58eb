//! Which controllers replace a pod, and where the pod in its place is found. Pure.
//!
//! The labels of a pod do not select its siblings: the API server adds those of its node's zone (KEP 4742), and
//! applications label one pod as the leader. The uid of the controller identifies its pods, so a query may find more.

use std::collections::HashSet;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::api::ListParams;
use serde::{Deserialize, Serialize};

use crate::k8s::pods;

/// The labels that identify a controller's pods, by the controller's kind: a hash of the pod template, or the
/// controller's uid.
const IDENTIFYING_LABELS: [(&str, &str); 4] = [
    ("ReplicaSet", "pod-template-hash"),
    ("ReplicaSet", "rollouts-pod-template-hash"),
    ("Job", "batch.kubernetes.io/controller-uid"),
    ("Job", "controller-uid"),
];

/// The label with which index of an indexed Job a pod carries out.
const COMPLETION_INDEX_LABEL: &str = "batch.kubernetes.io/job-completion-index";

/// The API groups and kinds of the controllers that are known to replace a pod. That of another kind may as well let
/// its work end with the pod, as a Workflow and a TaskRun do.
const REPLACING_CONTROLLERS: [(&str, &str); 8] = [
    ("", "ReplicationController"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("apps", "DaemonSet"),
    ("batch", "Job"),
    ("apps.kruise.io", "CloneSet"),
    ("apps.kruise.io", "StatefulSet"),
    ("apps.kruise.io", "DaemonSet"),
];

/// Finds pods in a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodQuery {
    /// By a label selector; an empty one finds all.
    Labels(String),
    /// By the pod's name.
    Name(String),
    /// By the node's name.
    Node(String),
}

impl PodQuery {
    /// Finds all pods of the pod's controller.
    pub(crate) fn siblings(pod: &Pod, controller: &OwnerReference) -> Self {
        let labels = IDENTIFYING_LABELS.iter().filter(|(kind, _)| *kind == controller.kind);
        let selector = labels.into_iter().find_map(|(_, key)| equality(pod, key));
        PodQuery::Labels(selector.unwrap_or_default())
    }

    /// Finds the pod that the controller creates in place of this one: a StatefulSet gives it the same name, a
    /// DaemonSet the same node, an indexed Job the same index.
    pub(crate) fn replacement(pod: &Pod, controller: &OwnerReference) -> Self {
        let name = pod.metadata.name.clone().unwrap_or_default();
        match (controller.kind.as_str(), pods::node_name(pod)) {
            ("StatefulSet", _) => PodQuery::Name(name),
            ("DaemonSet", Some(node)) => PodQuery::Node(node.to_owned()),
            _ => {
                let PodQuery::Labels(mut selector) = Self::siblings(pod, controller) else {
                    return PodQuery::Name(name);
                };
                let index = equality(pod, COMPLETION_INDEX_LABEL);
                match index.filter(|_| controller.kind == "Job") {
                    Some(index) if selector.is_empty() => selector = index,
                    Some(index) => selector = format!("{selector},{index}"),
                    None => {}
                }
                PodQuery::Labels(selector)
            }
        }
    }

    pub(crate) fn list_params(&self) -> ListParams {
        let (labels, fields) = self.selectors();
        ListParams::default().labels(&labels).fields(&fields)
    }

    /// The label selector and the field selector.
    pub(crate) fn selectors(&self) -> (String, String) {
        match self {
            PodQuery::Labels(selector) => (selector.clone(), String::new()),
            PodQuery::Name(name) => (String::new(), format!("metadata.name={name}")),
            PodQuery::Node(node) => (String::new(), format!("spec.nodeName={node}")),
        }
    }
}

/// `key=value` for a label that the pod has.
fn equality(pod: &Pod, key: &str) -> Option<String> {
    let value = pod.metadata.labels.as_ref()?.get(key)?;
    Some(format!("{key}={value}"))
}

/// Whether the controller is known to create a pod in place of one that is removed.
pub(crate) fn is_replacing(controller: &OwnerReference) -> bool {
    let group = controller.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    REPLACING_CONTROLLERS.contains(&(group, controller.kind.as_str()))
}

/// Why a running pod that is removed may not come back, although it has a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// A Job counts it as a failed pod.
    JobFailure,
    /// The controller is not known to replace its pods.
    UnknownController,
}

impl Doubt {
    pub(crate) fn of(controller: &OwnerReference) -> Option<Self> {
        match controller.kind.as_str() {
            _ if !is_replacing(controller) => Some(Doubt::UnknownController),
            "Job" => Some(Doubt::JobFailure),
            _ => None,
        }
    }

    /// What it means for each such pod.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Doubt::JobFailure => {
                "counts as a failure of its Job, which fails once its backoffLimit is reached"
            }
            Doubt::UnknownController => {
                "has a controller that is not known to replace its pods: its work may end with it"
            }
        }
    }
}

/// The warning that a running pod may not come back, if that is in doubt.
pub(crate) fn doubt_warning(controller: &OwnerReference) -> Option<String> {
    let owner = format!("{} ({})", describe(controller), controller.api_version);
    Doubt::of(controller).map(|doubt| format!("the pod of {owner} {}", doubt.meaning()))
}

/// What becomes of a running pod that is removed, as the end of a sentence, and the same if it were removed.
pub(crate) fn consequence(controller: &OwnerReference) -> [String; 2] {
    let owner = describe(controller);
    match controller.kind.as_str() {
        _ if !is_replacing(controller) => {
            [format!("{owner} controls it"), format!("{owner} controls it")]
        }
        "Job" => [
            format!("{owner} replaces it if its backoffLimit allows"),
            format!("{owner} would replace it if its backoffLimit allows"),
        ],
        _ => [format!("{owner} replaces it"), format!("{owner} would replace it")],
    }
}

/// `ReplicaSet 'web-5d4f'`
pub(crate) fn describe(controller: &OwnerReference) -> String {
    format!("{} '{}'", controller.kind, controller.name)
}

/// Whether the controller with this uid controls the pod.
pub(crate) fn is_controlled_by(pod: &Pod, controller_uid: &str) -> bool {
    pods::controller(pod).is_some_and(|owner| owner.uid == controller_uid)
}

/// The pods that are not among the `known` ones, by uid.
pub(crate) fn unknown<'a>(pods: &'a [Pod], known: &HashSet<String>) -> Vec<&'a Pod> {
    let is_known = |pod: &&Pod| pod.metadata.uid.as_ref().is_some_and(|uid| known.contains(uid));
    pods.iter().filter(|pod| !is_known(pod)).collect()
}

/// The names of the pods of a StatefulSet with the next ordinals.
pub(crate) fn neighbours(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some((set, ordinal)) = name.rsplit_once('-') else { return Vec::new() };
    let Ok(ordinal) = ordinal.parse::<u32>() else { return Vec::new() };
    let next = [ordinal.checked_sub(1), ordinal.checked_add(1)];
    next.into_iter().flatten().map(|ordinal| format!("{set}-{ordinal}")).collect()
}

/// Whether at most one of a controller's pods stays.
pub(crate) fn is_alone(siblings: &[Pod]) -> bool {
    let is_over = |pod: &&Pod| pods::is_terminating(pod) || pods::has_finished(pod);
    siblings.iter().filter(|pod| !is_over(pod)).count() <= 1
}

/// Whether a pod that has no node yet is meant for this one: a DaemonSet names it in the pod's affinity.
pub(crate) fn is_meant_for(pod: &Pod, node: &str) -> bool {
    let affinity =
        pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required =
        affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    let terms = required.iter().flat_map(|required| &required.node_selector_terms);
    terms.flat_map(|term| term.match_fields.iter().flatten()).any(|field| {
        field.key == "metadata.name" && field.values.iter().flatten().any(|value| value == node)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml_ng::from_str(yaml).expect("is a pod")
    }

    fn owner(api_version: &str, kind: &str) -> OwnerReference {
        OwnerReference {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }
    }

    /// The labels of a running pod: those of its template, of its controller, of its node and of its role.
    const LABELS: &str = "app: web, topology.kubernetes.io/zone: a, role: leader, pod-template-hash: h1, \
                          controller-revision-hash: r1, batch.kubernetes.io/controller-uid: j1, \
                          batch.kubernetes.io/job-completion-index: '3'";

    #[test]
    fn siblings_are_found_by_what_identifies_their_controller_alone() {
        let web = pod(&format!("metadata: {{name: web-1, labels: {{{LABELS}}}}}"));
        for (kind, expected) in [
            ("ReplicaSet", "pod-template-hash=h1"),
            ("Job", "batch.kubernetes.io/controller-uid=j1"),
            ("StatefulSet", ""),
            ("DaemonSet", ""),
            ("CloneSet", ""),
        ] {
            let query = PodQuery::siblings(&web, &owner("apps/v1", kind));
            assert_eq!(query, PodQuery::Labels(expected.to_owned()), "{kind}");
        }
        let bare = pod("metadata: {name: web-1, labels: {app: web}}");
        let query = PodQuery::siblings(&bare, &owner("apps/v1", "ReplicaSet"));
        assert_eq!(query, PodQuery::Labels(String::new()));
    }

    #[test]
    fn a_replacement_has_the_name_the_node_or_the_index_of_the_pod() {
        let web = pod(&format!(
            "metadata: {{name: web-1, labels: {{{LABELS}}}}}\nspec: {{nodeName: n1, containers: []}}"
        ));
        for (kind, expected) in [
            ("StatefulSet", PodQuery::Name("web-1".to_owned())),
            ("DaemonSet", PodQuery::Node("n1".to_owned())),
            ("ReplicaSet", PodQuery::Labels("pod-template-hash=h1".to_owned())),
            (
                "Job",
                PodQuery::Labels(
                    "batch.kubernetes.io/controller-uid=j1,batch.kubernetes.io/job-completion-index=3".to_owned(),
                ),
            ),
        ] {
            assert_eq!(PodQuery::replacement(&web, &owner("apps/v1", kind)), expected, "{kind}");
        }
    }

    #[test]
    fn a_pod_of_a_job_with_a_selector_of_its_own_is_found_by_its_index() {
        let index = "metadata: {name: a, labels: {batch.kubernetes.io/job-completion-index: '3'}}";
        let query = PodQuery::replacement(&pod(index), &owner("batch/v1", "Job"));
        assert_eq!(
            query,
            PodQuery::Labels("batch.kubernetes.io/job-completion-index=3".to_owned())
        );
    }

    #[test]
    fn a_controller_of_another_kind_is_not_known_to_replace_a_pod() {
        for (api_version, kind, expected) in [
            ("apps/v1", "ReplicaSet", true),
            ("v1", "ReplicationController", true),
            ("batch/v1", "Job", true),
            ("apps.kruise.io/v1alpha1", "CloneSet", true),
            ("argoproj.io/v1alpha1", "Workflow", false),
            ("tekton.dev/v1", "TaskRun", false),
            ("example.org/v1", "Job", false),
        ] {
            let owner = owner(api_version, kind);
            assert_eq!(is_replacing(&owner), expected, "{api_version} {kind}");
            assert_eq!(
                consequence(&owner)[0].contains("replaces it"),
                expected,
                "{api_version} {kind}"
            );
        }
        assert!(
            doubt_warning(&owner("argoproj.io/v1alpha1", "Workflow"))
                .is_some_and(|it| it.contains("not known"))
        );
        assert_eq!(doubt_warning(&owner("apps/v1", "ReplicaSet")), None);
    }

    #[test]
    fn a_job_counts_a_removed_pod_as_a_failure() {
        let job = owner("batch/v1", "Job");
        assert!(doubt_warning(&job).is_some_and(|it| it.contains("backoffLimit")));
        assert_eq!(consequence(&job)[0], "Job 'web' replaces it if its backoffLimit allows");
    }

    #[test]
    fn a_pod_that_was_there_before_is_no_replacement() {
        let pods = [pod("metadata: {uid: '1'}"), pod("metadata: {uid: '2'}")];
        let known = HashSet::from(["1".to_owned()]);
        let new: Vec<_> =
            unknown(&pods, &known).iter().map(|it| it.metadata.uid.as_deref()).collect();
        assert_eq!(new, [Some("2")]);
    }

    #[test]
    fn the_neighbours_of_a_stateful_sets_pod_have_the_next_ordinals() {
        let of = |name: &str| neighbours(&pod(&format!("metadata: {{name: {name}}}")));
        assert_eq!(of("my-db-0"), ["my-db-1"]);
        assert_eq!(of("my-db-7"), ["my-db-6", "my-db-8"]);
        assert_eq!(of("web-x"), [""; 0]);
    }

    #[test]
    fn a_pod_is_alone_if_no_other_stays() {
        let pods = [
            pod("metadata: {name: a}"),
            pod("metadata: {name: b, deletionTimestamp: '2026-01-31T12:00:00Z'}"),
            pod("metadata: {name: c}\nstatus: {phase: Failed}"),
        ];
        assert!(is_alone(&pods));
        assert!(!is_alone(&[pods[0].clone(), pods[0].clone()]));
    }

    #[test]
    fn a_pod_of_a_daemon_set_is_meant_for_the_node_of_its_affinity() {
        let pending = pod(
            "spec: {containers: [], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
             {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]}}}}",
        );
        assert!(is_meant_for(&pending, "n1") && !is_meant_for(&pending, "n2"));
    }
}
