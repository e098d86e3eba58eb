//! When an effect is complete, and what the objects say about how far it is. Pure.
//!
//! An action chooses its [`Completion`]. It is data and stored in the record, so that another process
//! that resumes the request can keep waiting.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use serde::{Deserialize, Serialize};

use crate::{
    contract::{digest::sha256, response::Target},
    k8s::{
        REQUEST_ID_ANNOTATION,
        effect::Applied,
        pods, rollout,
        rollout::RolloutStatus,
        workload::{Workload, WorkloadKind},
    },
};

/// The rollout of a request. A rollout of another template has superseded it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RolloutOf {
    pub kind: WorkloadKind,
    pub template: TemplateIdentity,
}

/// How the pod template of a request is recognised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TemplateIdentity {
    /// By the request's id in an annotation of the template.
    RequestId(String),
    /// By a digest, where no annotation may be added to the template.
    Digest(String),
    /// Not at all: the request does not set the template.
    Nothing,
}

/// What must be true for an effect to be complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Completion {
    /// There is nothing to wait for after the change; described in a sentence.
    Immediate(String),
    /// The workload's rollout is done.
    RolledOut {
        namespace: String,
        name: String,
        /// The generation that our change made.
        generation: i64,
        rollout: RolloutOf,
    },
    /// The workload has this number of pods and all of them are available.
    Scaled { kind: WorkloadKind, namespace: String, name: String, replicas: i32 },
    /// The pod has gone, or another one has its name.
    Gone { namespace: String, name: String, uid: String },
    /// The Job is complete.
    Finished { namespace: String, name: String },
    /// A pod that the controller created in place of the deleted one is ready.
    Replaced {
        namespace: String,
        /// As `ReplicaSet 'web-5d4f'`.
        controller: String,
        controller_uid: String,
        /// A label selector that the replacement matches.
        selector: String,
        /// The uids of the controller's pods before the deletion.
        known: HashSet<String>,
    },
}

impl Completion {
    /// The namespace of what is awaited.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Completion::Immediate(_) => None,
            Completion::RolledOut { namespace, .. }
            | Completion::Scaled { namespace, .. }
            | Completion::Gone { namespace, .. }
            | Completion::Finished { namespace, .. }
            | Completion::Replaced { namespace, .. } => Some(namespace),
        }
    }

    /// The rollout of the generation that the effect made.
    pub(crate) fn of_rollout(rollout: RolloutOf, target: &Target, applied: &Applied) -> Self {
        Completion::RolledOut {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            generation: applied.generation.unwrap_or(0),
            rollout,
        }
    }
}

/// The status of an object that was deleted: it does not complete any more.
pub(crate) fn deleted(kind: &str, name: &str) -> RolloutStatus {
    RolloutStatus::Failed(format!("{kind} '{name}' was deleted"))
}

pub(crate) fn rollout_status(
    workload: &Workload,
    generation: i64,
    template: &TemplateIdentity,
) -> RolloutStatus {
    // Up to our generation the object is from before the change or exactly as it left it, even if the API
    // server has added to our template.
    let is_not_newer = workload.metadata().generation.unwrap_or(0) <= generation;
    if is_not_newer || template.is_on(workload) {
        return rollout::status(workload, generation);
    }
    RolloutStatus::Failed(
        "superseded: another change of the pod template came before the rollout was complete"
            .to_owned(),
    )
}

impl TemplateIdentity {
    pub(crate) fn is_on(&self, workload: &Workload) -> bool {
        match self {
            TemplateIdentity::RequestId(id) => {
                workload.template_annotation(REQUEST_ID_ANNOTATION) == Some(id.as_str())
            }
            TemplateIdentity::Digest(digest) => template_digest(workload.template()) == *digest,
            TemplateIdentity::Nothing => true,
        }
    }

    /// Whether the pod may be of this template: pods carry their template's annotations.
    pub(crate) fn matches_pod(&self, pod: &Pod) -> bool {
        let annotations = pod.metadata.annotations.as_ref();
        match self {
            TemplateIdentity::RequestId(id) => {
                annotations.and_then(|all| all.get(REQUEST_ID_ANNOTATION)) == Some(id)
            }
            TemplateIdentity::Digest(_) | TemplateIdentity::Nothing => true,
        }
    }
}

pub(crate) fn template_digest(template: Option<&PodTemplateSpec>) -> String {
    sha256(serde_json::json!(template).to_string().as_bytes())
}

pub(crate) fn scale_status(workload: &Workload, replicas: i32) -> RolloutStatus {
    match workload.replicas() {
        Some(now) if now == replicas => rollout::scale_status(workload),
        now => RolloutStatus::Failed(format!(
            "superseded: the replicas were set to {} in the meantime",
            now.unwrap_or_default()
        )),
    }
}

/// `pod` is the one that has the name now.
pub(crate) fn deletion_status(pod: Option<&Pod>, name: &str, uid: &str) -> RolloutStatus {
    match pod {
        Some(pod) if pod.metadata.uid.as_deref() == Some(uid) => {
            RolloutStatus::Waiting(format!("pod '{name}' is shutting down"))
        }
        _ => RolloutStatus::Complete(format!("pod '{name}' is gone")),
    }
}

pub(crate) fn replacement_status(replacements: &[&Pod], controller: &str) -> RolloutStatus {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    match replacements.iter().find(|pod| pods::is_ready(pod)) {
        Some(pod) => RolloutStatus::Complete(format!(
            "pod '{}' of {controller} is ready in its place",
            name(pod)
        )),
        None => match replacements.first() {
            Some(pod) => RolloutStatus::Waiting(format!("pod '{}' is not ready yet", name(pod))),
            None => RolloutStatus::Waiting(format!("{controller} has not created a new pod yet")),
        },
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;

    fn by(id: &str) -> TemplateIdentity {
        TemplateIdentity::RequestId(id.to_owned())
    }

    fn deployment(id: &str, generation: i64) -> Workload {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, generation: {generation}}}\n\
             spec: {{replicas: 1, selector: {{}}, template: {{metadata: {{annotations: \
             {{action-executor.dev/request-id: {id}}}}}}}}}\n\
             status: {{observedGeneration: {generation}, replicas: 1, updatedReplicas: 1, \
             availableReplicas: 1}}"
        ))
        .map(|it: Deployment| it.into())
        .expect("is a Deployment")
    }

    #[test]
    fn a_rollout_of_our_template_has_its_status() {
        assert!(matches!(
            rollout_status(&deployment("r1", 4), 4, &by("r1")),
            RolloutStatus::Complete(_)
        ));
    }

    #[test]
    fn a_superseded_rollout_has_failed() {
        let status = rollout_status(&deployment("r2", 5), 4, &by("r1"));
        assert!(matches!(status, RolloutStatus::Failed(why) if why.starts_with("superseded")));
    }

    #[test]
    fn an_object_from_before_our_change_is_not_superseded() {
        assert!(matches!(
            rollout_status(&deployment("r0", 3), 4, &by("r1")),
            RolloutStatus::Waiting(_)
        ));
    }

    #[test]
    fn a_template_that_the_api_server_changed_is_ours_in_our_generation() {
        let known = TemplateIdentity::Digest("of what we sent".to_owned());
        assert!(matches!(
            rollout_status(&deployment("r1", 4), 4, &known),
            RolloutStatus::Complete(_)
        ));
        assert!(matches!(
            rollout_status(&deployment("r1", 5), 4, &known),
            RolloutStatus::Failed(_)
        ));
    }

    #[test]
    fn a_pod_is_replaced_once_the_new_one_is_ready() {
        let pod = |ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: web-2}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        assert!(matches!(replacement_status(&[], "ReplicaSet 'web'"), RolloutStatus::Waiting(_)));
        assert!(matches!(
            replacement_status(&[&pod("False")], "ReplicaSet 'web'"),
            RolloutStatus::Waiting(_)
        ));
        assert_eq!(
            replacement_status(&[&pod("True")], "ReplicaSet 'web'"),
            RolloutStatus::Complete("pod 'web-2' of ReplicaSet 'web' is ready in its place".into())
        );
    }

    #[test]
    fn a_template_without_an_annotation_is_recognised_by_its_digest() {
        let ours = deployment("r1", 4);
        let known = TemplateIdentity::Digest(template_digest(ours.template()));
        assert!(matches!(rollout_status(&ours, 4, &known), RolloutStatus::Complete(_)));
        assert!(matches!(
            rollout_status(&deployment("r2", 5), 4, &known),
            RolloutStatus::Failed(_)
        ));
    }

    #[test]
    fn another_number_of_replicas_supersedes_ours() {
        let one = deployment("r1", 4);
        assert!(matches!(scale_status(&one, 1), RolloutStatus::Complete(_)));
        assert!(
            matches!(scale_status(&one, 2), RolloutStatus::Failed(why) if why.starts_with("superseded"))
        );
    }
}
