//! When is an effect complete? As data, so that whoever picks up a request can go on waiting.
//!
//! An action names its [`Completion`]; this file asks the cluster how far it is and, when it does
//! not come, what the pods themselves say.

use std::collections::HashSet;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, PodTemplateSpec},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        response::Target,
    },
    k8s::{
        REQUEST_ID_ANNOTATION,
        api::{client::Cluster, jobs, mutation::Applied},
        pods, rollout,
        rollout::RolloutStatus,
        workload::{Workload, WorkloadKind},
    },
};

/// Which rollout of a workload is meant: with another template than ours it is somebody else's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutOf {
    /// The kind of workload.
    pub kind: WorkloadKind,
    /// By what our template is known.
    pub template: TemplateIdentity,
}

/// By what a pod template is known to be ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateIdentity {
    /// The request's id, in an annotation of the template.
    RequestId(String),
    /// A digest of the template, where nothing may be added to it.
    Digest(String),
    /// Nothing: the template was not ours to begin with.
    Nothing,
}

/// What must be true for an effect to be complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// The change itself is all there is to wait for; in a sentence.
    Immediate(String),
    /// The workload's rollout is done.
    RolledOut {
        /// The namespace.
        namespace: String,
        /// The workload.
        name: String,
        /// The generation that our change made.
        generation: i64,
        /// The rollout.
        rollout: RolloutOf,
    },
    /// The workload has this number of pods and all of them are available.
    Scaled {
        /// The kind of workload.
        kind: WorkloadKind,
        /// The namespace.
        namespace: String,
        /// The workload.
        name: String,
        /// How many.
        replicas: i32,
    },
    /// The pod has gone, or another one has its name.
    Gone {
        /// The namespace.
        namespace: String,
        /// The pod.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// The Job is complete.
    Finished {
        /// The namespace.
        namespace: String,
        /// The Job.
        name: String,
    },
    /// A pod that the controller made in place of the deleted one is ready.
    Replaced {
        /// The namespace.
        namespace: String,
        /// The controller, as `ReplicaSet 'web-5d4f'`.
        controller: String,
        /// The controller's uid.
        controller_uid: String,
        /// A label selector that the replacement matches.
        selector: String,
        /// The uids of the controller's pods before the deletion.
        known: HashSet<String>,
    },
}

impl Completion {
    /// The rollout of this target, of the generation that the effect made.
    pub(crate) fn of_rollout(rollout: RolloutOf, target: &Target, made: &Applied) -> Self {
        Completion::RolledOut {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            generation: made.generation.unwrap_or(0),
            rollout,
        }
    }

    async fn pods_of(
        &self,
        cluster: &Cluster,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<Vec<Pod>, ActionError> {
        let selector = cluster.workload(kind, namespace, name, deadline).await?.label_selector();
        cluster.list::<Pod>(namespace, &selector, deadline).await
    }

    /// How far it is.
    ///
    /// # Errors
    /// Why the cluster could not be asked before `deadline`.
    pub(crate) async fn check(
        &self,
        cluster: &Cluster,
        deadline: Instant,
    ) -> Result<RolloutStatus, ActionError> {
        match self {
            Completion::Immediate(what) => Ok(RolloutStatus::Complete(what.clone())),
            Completion::RolledOut { namespace, name, generation, rollout } => {
                let found = cluster.workload(rollout.kind, namespace, name, deadline).await;
                unless_deleted(found, rollout.kind.name(), name, |it| {
                    rolled_out(&it, *generation, &rollout.template)
                })
            }
            Completion::Scaled { kind, namespace, name, replicas } => {
                let found = cluster.workload(*kind, namespace, name, deadline).await;
                unless_deleted(found, kind.name(), name, |it| scaled(&it, *replicas))
            }
            Completion::Gone { namespace, name, uid } => {
                match cluster.get::<Pod>(namespace, name, deadline).await {
                    Ok(pod) if pod.metadata.uid.as_ref() == Some(uid) => {
                        Ok(RolloutStatus::Waiting(format!("pod '{name}' is shutting down")))
                    }
                    Ok(_) => Ok(gone(name)),
                    Err(error) if error.code == Code::TargetNotFound => Ok(gone(name)),
                    Err(error) => Err(error),
                }
            }
            Completion::Finished { namespace, name } => {
                let found = cluster.get::<Job>(namespace, name, deadline).await;
                unless_deleted(found, "Job", name, |it| jobs::status(&it))
            }
            Completion::Replaced { namespace, controller, controller_uid, selector, known } => {
                let pods = cluster.list::<Pod>(namespace, selector, deadline).await?;
                Ok(replaced(&pods::replacements(&pods, controller_uid, known), controller))
            }
        }
    }

    /// What the pods say is wrong; each problem once.
    ///
    /// # Errors
    /// Why they could not be listed before `deadline`.
    pub(crate) async fn problems(
        &self,
        cluster: &Cluster,
        deadline: Instant,
    ) -> Result<Vec<String>, ActionError> {
        match self {
            Completion::Immediate(_) => Ok(Vec::new()),
            Completion::RolledOut { namespace, name, rollout, .. } => {
                let pods = self.pods_of(cluster, rollout.kind, namespace, name, deadline).await?;
                let ours = pods.iter().filter(|pod| rollout.template.matches_pod(pod));
                let of_ours = pods::problems(ours);
                // A StatefulSet that keeps order may wait for an old pod before it makes a new one.
                Ok(if of_ours.is_empty() { pods::problems(&pods) } else { of_ours })
            }
            Completion::Scaled { kind, namespace, name, .. } => {
                let pods = self.pods_of(cluster, *kind, namespace, name, deadline).await?;
                Ok(pods::problems(&pods))
            }
            Completion::Gone { namespace, name, .. } => Ok(pods::termination_blockers(
                &cluster.get::<Pod>(namespace, name, deadline).await?,
            )),
            Completion::Finished { namespace, name } => {
                jobs::failure_log(cluster, namespace, name, deadline).await
            }
            Completion::Replaced { namespace, controller_uid, selector, known, .. } => {
                let pods = cluster.list::<Pod>(namespace, selector, deadline).await?;
                Ok(pods::problems(pods::replacements(&pods, controller_uid, known)))
            }
        }
    }
}

/// The verdict on what was found; what was deleted will not be complete any more.
fn unless_deleted<T>(
    found: Result<T, ActionError>,
    kind: &str,
    name: &str,
    verdict: impl FnOnce(T) -> RolloutStatus,
) -> Result<RolloutStatus, ActionError> {
    match found {
        Ok(object) => Ok(verdict(object)),
        Err(error) if error.code == Code::TargetNotFound => {
            Ok(RolloutStatus::Failed(format!("{kind} '{name}' was deleted")))
        }
        Err(error) => Err(error),
    }
}

fn rolled_out(workload: &Workload, generation: i64, template: &TemplateIdentity) -> RolloutStatus {
    // The object may be one from before our change, or as just that left it, whatever the API server has
    // added to our template; its generation tells.
    let is_no_younger = workload.metadata().generation.unwrap_or(0) <= generation;
    if is_no_younger || template.is_on(workload) {
        return rollout::status(workload, generation);
    }
    RolloutStatus::Failed(
        "superseded: the pod template was changed by someone else before the rollout was complete"
            .to_owned(),
    )
}

impl TemplateIdentity {
    pub(crate) fn is_on(&self, workload: &Workload) -> bool {
        match self {
            TemplateIdentity::RequestId(id) => {
                workload.template_annotation(REQUEST_ID_ANNOTATION) == Some(id.as_str())
            }
            TemplateIdentity::Digest(digest) => digest_of_template(workload) == *digest,
            TemplateIdentity::Nothing => true,
        }
    }

    /// Pods carry their template's annotations, so an id tells which ones our change brought forth.
    fn matches_pod(&self, pod: &Pod) -> bool {
        let annotations = pod.metadata.annotations.as_ref();
        match self {
            TemplateIdentity::RequestId(id) => {
                annotations.and_then(|all| all.get(REQUEST_ID_ANNOTATION)) == Some(id)
            }
            TemplateIdentity::Digest(_) | TemplateIdentity::Nothing => true,
        }
    }
}

/// A digest of a workload's pod template, as it is in the API.
#[must_use]
pub fn digest_of_template(workload: &Workload) -> String {
    digest_of(workload.template())
}

/// The digest that [`digest_of_template`] makes of a workload with this template.
#[must_use]
pub fn digest_of(template: Option<&PodTemplateSpec>) -> String {
    sha256(serde_json::json!(template).to_string().as_bytes())
}

fn scaled(workload: &Workload, replicas: i32) -> RolloutStatus {
    match workload.replicas() {
        Some(now) if now == replicas => rollout::scale_status(workload),
        now => RolloutStatus::Failed(format!(
            "superseded: someone else has set the replicas to {}",
            now.unwrap_or_default()
        )),
    }
}

fn gone(name: &str) -> RolloutStatus {
    RolloutStatus::Complete(format!("pod '{name}' is gone"))
}

fn replaced(replacements: &[&Pod], controller: &str) -> RolloutStatus {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    match replacements.iter().find(|pod| pods::is_ready(pod)) {
        Some(pod) => RolloutStatus::Complete(format!(
            "pod '{}' of {controller} is ready in its place",
            name(pod)
        )),
        None => match replacements.first() {
            Some(pod) => RolloutStatus::Waiting(format!("pod '{}' is not ready yet", name(pod))),
            None => RolloutStatus::Waiting(format!("{controller} has not made a new pod yet")),
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
    fn our_own_rollout_is_judged() {
        assert!(matches!(
            rolled_out(&deployment("r1", 4), 4, &by("r1")),
            RolloutStatus::Complete(_)
        ));
    }

    #[test]
    fn a_rollout_that_someone_else_replaced_has_failed() {
        let verdict = rolled_out(&deployment("r2", 5), 4, &by("r1"));
        assert!(matches!(verdict, RolloutStatus::Failed(why) if why.starts_with("superseded")));
    }

    #[test]
    fn an_object_from_before_our_change_is_not_someone_elses() {
        assert!(matches!(
            rolled_out(&deployment("r0", 3), 4, &by("r1")),
            RolloutStatus::Waiting(_)
        ));
    }

    #[test]
    fn a_template_that_the_api_server_has_added_to_is_ours_in_the_generation_that_we_made() {
        let known = TemplateIdentity::Digest("of what we sent".to_owned());
        assert!(matches!(rolled_out(&deployment("r1", 4), 4, &known), RolloutStatus::Complete(_)));
        assert!(matches!(rolled_out(&deployment("r1", 5), 4, &known), RolloutStatus::Failed(_)));
    }

    #[test]
    fn a_pod_is_replaced_once_the_new_one_is_ready() {
        let pod = |ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: web-2}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        assert!(matches!(replaced(&[], "ReplicaSet 'web'"), RolloutStatus::Waiting(_)));
        assert!(matches!(
            replaced(&[&pod("False")], "ReplicaSet 'web'"),
            RolloutStatus::Waiting(_)
        ));
        assert_eq!(
            replaced(&[&pod("True")], "ReplicaSet 'web'"),
            RolloutStatus::Complete("pod 'web-2' of ReplicaSet 'web' is ready in its place".into())
        );
    }

    #[test]
    fn a_template_that_nothing_may_be_added_to_is_known_by_its_digest() {
        let ours = deployment("r1", 4);
        let known = TemplateIdentity::Digest(digest_of_template(&ours));
        assert!(matches!(rolled_out(&ours, 4, &known), RolloutStatus::Complete(_)));
        assert!(matches!(rolled_out(&deployment("r2", 5), 4, &known), RolloutStatus::Failed(_)));
    }

    #[test]
    fn another_number_of_replicas_than_ours_is_someone_elses() {
        let one = deployment("r1", 4);
        assert!(matches!(scaled(&one, 1), RolloutStatus::Complete(_)));
        assert!(
            matches!(scaled(&one, 2), RolloutStatus::Failed(why) if why.starts_with("superseded"))
        );
    }
}
