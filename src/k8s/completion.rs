//! When an effect is complete, and what the objects say about how far it is. Pure.
//!
//! An action chooses its [`Completion`]. It is data and stored in the record, so that another process
//! that resumes the request can keep waiting.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    contract::{quantity::Quantity, response::Target},
    k8s::{
        argo_rollouts::AwaitedArgoRollout,
        effect::Applied,
        flux::{FluxKind, Pass},
        keda::{KedaKind, Pause},
        pod_set::PodSet,
        pods,
        replacement::PodQuery,
        resources::Amount,
        revisions::template_digest,
        rollout,
        rollout::RolloutStatus,
        workload::{Workload, WorkloadKind},
    },
};

/// The rollout of a request, before its change is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RolloutOf {
    pub kind: WorkloadKind,
    /// The digest of the pod template that the workload has after the change; none if that is unknown. Admission
    /// may change it.
    pub template: Option<String>,
}

/// The rollout that follows a change. A rollout of another template supersedes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AwaitedRollout {
    pub kind: WorkloadKind,
    pub namespace: String,
    pub name: String,
    /// The object that was changed.
    pub uid: Option<String>,
    /// The generation that our change made.
    pub generation: i64,
    pub template: TemplateIdentity,
    /// When the status that our change left said that the progress deadline of an earlier rollout was exceeded.
    pub exceeded_at: Option<String>,
}

/// How the pod template of a change is recognised. The annotation with the request's id does not show it: a client
/// that writes a part of the template leaves it there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TemplateIdentity {
    /// The digest of the template that the API server returned for the change.
    Returned(String),
    /// The digest of the template that the request sets. What the API server made of it is unknown.
    Expected(String),
    Unknown,
}

/// What must be true for an effect to be complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Completion {
    /// There is nothing to wait for after the change; described in a sentence.
    Immediate(String),
    /// The workload's rollout is done.
    RolledOut(AwaitedRollout),
    /// The Rollout of Argo Rollouts has reached what the change leads to.
    ArgoRollout(AwaitedArgoRollout),
    /// The workload has this number of pods and all of them are available.
    Scaled {
        kind: WorkloadKind,
        namespace: String,
        name: String,
        /// The object that was scaled.
        uid: Option<String>,
        replicas: i32,
    },
    /// The pod has gone, or another one has its name.
    Gone { namespace: String, name: String, uid: String },
    /// The containers of the pod have these requests and limits.
    Resized { namespace: String, name: String, uid: String, amounts: Vec<Amount> },
    /// The PersistentVolumeClaim has this size.
    Expanded { namespace: String, name: String, uid: String, size: Quantity },
    /// These pods have gone, which had finished.
    PodsGone { namespace: String, pods: PodSet },
    /// The Job has gone, and the pods that it controlled.
    JobGone {
        namespace: String,
        name: String,
        uid: String,
        /// Finds its pods, and others.
        query: PodQuery,
    },
    /// The Job with this request's mark is complete.
    Finished { namespace: String, name: String, mark: String },
    /// Flux has reconciled the object in this pass, or a later one.
    Reconciled { kind: FluxKind, namespace: String, name: String, uid: String, pass: Pass },
    /// Argo CD has ended the sync that the request with this mark started on the Application.
    Synced { namespace: String, name: String, uid: String, mark: String },
    /// KEDA has paused scaling by the object so, or resumed it.
    ScalingPaused { kind: KedaKind, namespace: String, name: String, uid: String, pause: Pause },
    /// A pod that the controller created in place of the deleted one is ready.
    Replaced {
        namespace: String,
        /// For example `ReplicaSet 'web-5d4f'`.
        controller: String,
        controller_uid: String,
        /// Finds the replacement, and other pods.
        query: PodQuery,
        /// The uids of the pods that were found before the deletion.
        known: HashSet<String>,
    },
}

impl Completion {
    /// The namespace of what is awaited.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Completion::Immediate(_) => None,
            Completion::RolledOut(AwaitedRollout { namespace, .. })
            | Completion::ArgoRollout(AwaitedArgoRollout { namespace, .. })
            | Completion::Scaled { namespace, .. }
            | Completion::Gone { namespace, .. }
            | Completion::Resized { namespace, .. }
            | Completion::Expanded { namespace, .. }
            | Completion::PodsGone { namespace, .. }
            | Completion::JobGone { namespace, .. }
            | Completion::Finished { namespace, .. }
            | Completion::Reconciled { namespace, .. }
            | Completion::Synced { namespace, .. }
            | Completion::ScalingPaused { namespace, .. }
            | Completion::Replaced { namespace, .. } => Some(namespace),
        }
    }
}

impl AwaitedRollout {
    /// The rollout that follows what the effect left.
    pub(crate) fn new(rollout: &RolloutOf, target: &Target, applied: &Applied) -> Self {
        let template = match (&applied.template, &rollout.template) {
            (Some(returned), _) => TemplateIdentity::Returned(returned.clone()),
            (None, Some(expected)) => TemplateIdentity::Expected(expected.clone()),
            (None, None) => TemplateIdentity::Unknown,
        };
        AwaitedRollout {
            kind: rollout.kind,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            uid: target.uid.clone(),
            generation: applied.generation.unwrap_or(0),
            template,
            exceeded_at: applied.exceeded_at.clone(),
        }
    }

    /// Why the workload as it is now, with this template, does not show this rollout, if so.
    pub(crate) fn superseded(&self, workload: &Workload, template: &Value) -> Option<String> {
        if let Some(why) = replaced(workload, self.uid.as_deref()) {
            return Some(why);
        }
        // Up to our generation the object is from before the change or exactly as it left it.
        if workload.metadata().generation.unwrap_or(0) <= self.generation {
            return None;
        }
        let differs = |known: &str| template_digest(template) != known;
        match &self.template {
            TemplateIdentity::Returned(known) if differs(known) => Some(
                "superseded: another change of the pod template came before the rollout was complete"
                    .to_owned(),
            ),
            TemplateIdentity::Expected(known) if differs(known) => Some(
                "superseded: the pod template is not the one that this request set; another change replaced \
                 it, or an admission webhook changed it"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether the workload as it is now certainly has the template that this request set.
    pub(crate) fn is_shown_by(&self, workload: &Workload, template: &Value) -> bool {
        self.template != TemplateIdentity::Unknown && self.superseded(workload, template).is_none()
    }
}

/// Why the object is not the one with this uid, if so.
fn replaced(workload: &Workload, uid: Option<&str>) -> Option<String> {
    let metadata = workload.metadata();
    let is_another = metadata.uid.as_deref().zip(uid).is_some_and(|(found, uid)| found != uid);
    let name = metadata.name.as_deref().unwrap_or_default();
    is_another.then(|| {
        format!("{} '{name}' was replaced by another object of its name", workload.kind().name())
    })
}

/// The status of an object that was deleted: it does not complete any more.
pub(crate) fn deleted(kind: &str, name: &str) -> RolloutStatus {
    RolloutStatus::Failed(format!("{kind} '{name}' was deleted"))
}

/// The status of this rollout on the workload as it is now, with this template. `stale` is when the progress deadline
/// of an earlier rollout was exceeded.
pub(crate) fn rollout_status(
    workload: &Workload,
    template: &Value,
    awaited: &AwaitedRollout,
    stale: Option<&str>,
) -> RolloutStatus {
    match awaited.superseded(workload, template) {
        Some(why) => RolloutStatus::Failed(why),
        None => rollout::status(workload, awaited.generation, stale),
    }
}

pub(crate) fn scale_status(workload: &Workload, uid: Option<&str>, replicas: i32) -> RolloutStatus {
    if let Some(why) = replaced(workload, uid) {
        return RolloutStatus::Failed(why);
    }
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

/// `left` are those of `all` pods that are there.
pub(crate) fn pods_status(left: usize, all: usize) -> RolloutStatus {
    match (left, all) {
        (0, 1) => RolloutStatus::Complete("the pod is gone".to_owned()),
        (0, _) => RolloutStatus::Complete(format!("all {all} pods are gone")),
        _ => RolloutStatus::Waiting(format!("{left} of {all} pods are shutting down")),
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
    use serde_json::json;

    use super::*;

    fn template(id: &str) -> Value {
        json!({ "metadata": { "annotations": { "action-executor.dev/request-id": id } } })
    }

    fn deployment(uid: &str, generation: i64) -> Workload {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, uid: {uid}, generation: {generation}}}\n\
             spec: {{replicas: 1, selector: {{}}, template: {{}}}}\n\
             status: {{observedGeneration: {generation}, replicas: 1, updatedReplicas: 1, \
             availableReplicas: 1}}"
        ))
        .map(|it: Deployment| it.into())
        .expect("is a Deployment")
    }

    /// The rollout of generation 4 of the Deployment u1.
    fn awaited(template: TemplateIdentity) -> AwaitedRollout {
        AwaitedRollout {
            kind: WorkloadKind::Deployment,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: Some("u1".to_owned()),
            generation: 4,
            template,
            exceeded_at: None,
        }
    }

    #[test]
    fn a_rollout_is_superseded_by_another_template_after_our_generation() {
        let ours = || template_digest(&template("r1"));
        let (returned, expected) =
            (TemplateIdentity::Returned(ours()), TemplateIdentity::Expected(ours()));
        let unknown = TemplateIdentity::Unknown;
        for (identity, generation, id, complete) in [
            (&returned, 4, "r1", true),
            // Scaled, or changed back.
            (&returned, 5, "r1", true),
            (&returned, 5, "r2", false),
            (&expected, 5, "r1", true),
            (&expected, 5, "r2", false),
            // As our change left it, whatever admission made of it.
            (&expected, 4, "r2", true),
            (&unknown, 5, "r2", true),
        ] {
            let awaited = awaited(identity.clone());
            let workload = deployment("u1", generation);
            let status = rollout_status(&workload, &template(id), &awaited, None);
            let is_complete = matches!(status, RolloutStatus::Complete(_));
            assert_eq!(is_complete, complete, "{identity:?} {generation} {id}: {status:?}");
            let is_superseded =
                matches!(&status, RolloutStatus::Failed(why) if why.starts_with("superseded"));
            assert_eq!(is_superseded, !complete, "{status:?}");
            let is_certain = complete && *identity != unknown;
            assert_eq!(awaited.is_shown_by(&workload, &template(id)), is_certain);
        }
    }

    #[test]
    fn an_object_from_before_our_change_is_not_superseded() {
        let awaited = awaited(TemplateIdentity::Returned("of ours".to_owned()));
        let status = rollout_status(&deployment("u1", 3), &template("r0"), &awaited, None);
        assert!(matches!(status, RolloutStatus::Waiting(_)), "{status:?}");
    }

    #[test]
    fn the_template_that_the_api_server_returned_counts_before_the_one_that_was_sent() {
        let rollout = RolloutOf { kind: WorkloadKind::Deployment, template: Some("sent".into()) };
        let target = WorkloadKind::Deployment.target("shop", "web");
        let identity = |template: Option<&str>| {
            let template = template.map(str::to_owned);
            let applied = Applied { template, ..Applied::default() };
            AwaitedRollout::new(&rollout, &target, &applied).template
        };
        assert_eq!(identity(Some("got")), TemplateIdentity::Returned("got".to_owned()));
        assert_eq!(identity(None), TemplateIdentity::Expected("sent".to_owned()));
    }

    #[test]
    fn another_object_of_the_same_name_is_not_ours() {
        let awaited = awaited(TemplateIdentity::Unknown);
        let successor = deployment("u2", 4);
        for status in [
            rollout_status(&successor, &template("r1"), &awaited, None),
            scale_status(&successor, Some("u1"), 1),
        ] {
            assert_eq!(
                status,
                RolloutStatus::Failed(
                    "Deployment 'web' was replaced by another object of its name".to_owned()
                )
            );
        }
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
    fn another_number_of_replicas_supersedes_ours() {
        let one = deployment("u1", 4);
        assert!(matches!(scale_status(&one, Some("u1"), 1), RolloutStatus::Complete(_)));
        let other = scale_status(&one, Some("u1"), 2);
        assert!(matches!(other, RolloutStatus::Failed(why) if why.starts_with("superseded")));
    }
}
