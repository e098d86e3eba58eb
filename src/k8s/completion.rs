//! When is an effect complete? As data, so that whoever picks up a request can go on waiting.
//!
//! An action names its [`Completion`]; this file asks the cluster how far it is and, when it does
//! not come, what the pods themselves say.

use std::collections::HashSet;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::core::Selector;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    REQUEST_ID_ANNOTATION,
    cluster::Cluster,
    pods,
    restart::template_annotation,
    rollout::{self, Verdict},
};
use crate::error::{ActionError, Code};

/// What must be true for an effect to be complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// The Deployment's rollout is done.
    RolledOut {
        /// The namespace.
        namespace: String,
        /// The Deployment.
        deployment: String,
        /// The generation that our change made.
        generation: i64,
        /// The request's id, which the template carries as long as no one replaced our change.
        request_id: String,
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
    /// How far it is.
    ///
    /// # Errors
    /// Why the cluster could not be asked before `deadline`.
    pub(crate) async fn check(
        &self,
        cluster: &Cluster,
        deadline: Instant,
    ) -> Result<Verdict, ActionError> {
        match self {
            Completion::RolledOut { namespace, deployment, generation, request_id } => {
                match cluster.get::<Deployment>(namespace, deployment, deadline).await {
                    Ok(object) => Ok(rolled_out(&object, *generation, request_id)),
                    Err(error) if error.code == Code::TargetNotFound => {
                        Ok(Verdict::Failed(format!("Deployment '{deployment}' was deleted")))
                    }
                    Err(error) => Err(error),
                }
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
            Completion::RolledOut { namespace, deployment, request_id, .. } => {
                let object = cluster.get::<Deployment>(namespace, deployment, deadline).await?;
                let selector = label_selector(&object);
                let pods = cluster.list::<Pod>(namespace, &selector, deadline).await?;
                Ok(pods::problems(pods.iter().filter(|pod| made_by(pod, request_id))))
            }
            Completion::Replaced { namespace, controller_uid, selector, known, .. } => {
                let pods = cluster.list::<Pod>(namespace, selector, deadline).await?;
                Ok(pods::problems(pods::replacements(&pods, controller_uid, known)))
            }
        }
    }
}

fn rolled_out(deployment: &Deployment, generation: i64, request_id: &str) -> Verdict {
    match template_annotation(deployment, REQUEST_ID_ANNOTATION) {
        // The object may be one from before our change; its generation tells.
        _ if deployment.metadata.generation.unwrap_or(0) < generation => {
            rollout::deployment(deployment, generation)
        }
        Some(id) if id == request_id => rollout::deployment(deployment, generation),
        _ => Verdict::Failed(
            "superseded: the pod template was changed by someone else before the rollout was complete"
                .to_owned(),
        ),
    }
}

fn replaced(replacements: &[&Pod], controller: &str) -> Verdict {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    match replacements.iter().find(|pod| pods::is_ready(pod)) {
        Some(pod) => {
            Verdict::Complete(format!("pod '{}' of {controller} is ready in its place", name(pod)))
        }
        None => match replacements.first() {
            Some(pod) => Verdict::Waiting(format!("pod '{}' is not ready yet", name(pod))),
            None => Verdict::Waiting(format!("{controller} has not made a new pod yet")),
        },
    }
}

/// Pods carry their template's annotations, so ours tells which ones our change brought forth.
fn made_by(pod: &Pod, request_id: &str) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(REQUEST_ID_ANNOTATION)).map(String::as_str)
        == Some(request_id)
}

/// The Deployment's selector in the API's own notation.
fn label_selector(deployment: &Deployment) -> String {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone());
    let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
    selector.map(|selector| selector.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(id: &str, generation: i64) -> Deployment {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, generation: {generation}}}\n\
             spec: {{replicas: 1, selector: {{}}, template: {{metadata: {{annotations: \
             {{action-executor.dev/request-id: {id}}}}}}}}}\n\
             status: {{observedGeneration: {generation}, replicas: 1, updatedReplicas: 1, \
             availableReplicas: 1}}"
        ))
        .expect("is a Deployment")
    }

    #[test]
    fn our_own_rollout_is_judged() {
        assert!(matches!(rolled_out(&deployment("r1", 4), 4, "r1"), Verdict::Complete(_)));
    }

    #[test]
    fn a_rollout_that_someone_else_replaced_has_failed() {
        let verdict = rolled_out(&deployment("r2", 5), 4, "r1");
        assert!(matches!(verdict, Verdict::Failed(why) if why.starts_with("superseded")));
    }

    #[test]
    fn an_object_from_before_our_change_is_not_someone_elses() {
        assert!(matches!(rolled_out(&deployment("r0", 3), 4, "r1"), Verdict::Waiting(_)));
    }

    #[test]
    fn a_pod_is_replaced_once_the_new_one_is_ready() {
        let pod = |ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: web-2}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        assert!(matches!(replaced(&[], "ReplicaSet 'web'"), Verdict::Waiting(_)));
        assert!(matches!(replaced(&[&pod("False")], "ReplicaSet 'web'"), Verdict::Waiting(_)));
        assert_eq!(
            replaced(&[&pod("True")], "ReplicaSet 'web'"),
            Verdict::Complete("pod 'web-2' of ReplicaSet 'web' is ready in its place".into())
        );
    }

    #[test]
    fn the_selector_is_written_as_the_api_reads_it() {
        let deployment: Deployment = serde_yaml_ng::from_str(
            "spec: {template: {}, selector: {matchLabels: {app: web}, matchExpressions: \
             [{key: tier, operator: In, values: [a, b]}]}}",
        )
        .expect("is a Deployment");
        let selector = label_selector(&deployment);
        assert!(selector.contains("app=web") && selector.contains("tier in (a,b)"), "{selector}");
    }
}
