//! For each action: objects to act upon, a request, and how often it took effect.
//!
//! Whatever must hold for every action is a loop over [`ActionKind::ALL`] with these; an action that is
//! added says here what its effect is, and is covered.

use action_executor::actions::ActionKind;
use k8s_openapi::api::core::v1::Event;
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::cluster::{Namespace, TestCluster, eventually, shared};

/// A namespace with a workload, and what is asked for on it.
pub struct Scenario {
    /// The action.
    pub kind: ActionKind,
    /// Where.
    pub namespace: Namespace,
    parameters: Value,
    /// The uid of the first pod.
    first: Option<String>,
}

impl Scenario {
    /// A running workload for this action.
    pub async fn new(kind: ActionKind, test: &str) -> Self {
        Scenario::within(shared(), kind, test).await
    }

    /// A running workload for this action in this cluster.
    pub async fn within(cluster: &TestCluster, kind: ActionKind, test: &str) -> Self {
        let namespace = cluster.namespace(&format!("{test}-{}", kind.name())).await;
        namespace.running_deployment("web", 1).await;
        Scenario::around(kind, namespace).await
    }

    /// What is asked for in a namespace in which the workload `web` runs.
    pub async fn around(kind: ActionKind, namespace: Namespace) -> Self {
        let parameters = parameters(kind, &namespace).await;
        let first = namespace.pods_of("web").await[0].uid();
        Scenario { kind, namespace, parameters, first }
    }

    /// A real request under this id.
    pub fn request(&self, id: &str) -> Value {
        json!({
            "type": self.kind.name(), "parameters": self.parameters, "simulate": false, "id": id,
        })
    }

    /// How often the action took effect, once the workload has come to rest.
    pub async fn effects(&self) -> i64 {
        let deployment = self.namespace.rolled_out("web").await;
        match self.kind {
            ActionKind::RestartK8s => deployment.metadata.generation.expect("has one") - 1,
            ActionKind::RestartPod => {
                let pod = eventually("there is one pod", async || {
                    let mut pods = self.namespace.pods_of("web").await;
                    (pods.len() == 1).then(|| pods.remove(0))
                })
                .await;
                // The ReplicaSet tells of a pod a moment after it made it.
                let replaced = i64::from(pod.uid() != self.first);
                eventually("the ReplicaSet has told of it", async || {
                    let made = pods_made(&self.namespace).await;
                    (made > replaced).then_some(made - 1)
                })
                .await
            }
        }
    }
}

/// Parameters that mean the workload `web`.
pub async fn parameters(kind: ActionKind, namespace: &Namespace) -> Value {
    let name = namespace.name();
    match kind {
        ActionKind::RestartK8s => json!({ "deployment": "web", "namespace": name }),
        ActionKind::RestartPod => {
            let pod = namespace.pods_of("web").await[0].name_any();
            json!({ "pod_name": pod, "namespace": name })
        }
    }
}

/// Parameters that name no object in particular.
pub fn example(kind: ActionKind) -> Value {
    match kind {
        ActionKind::RestartK8s => json!({ "deployment": "web" }),
        ActionKind::RestartPod => json!({ "pod_name": "web-1" }),
    }
}

/// How many pods the ReplicaSet has made, by its own account.
async fn pods_made(namespace: &Namespace) -> i64 {
    let params =
        ListParams::default().fields("reason=SuccessfulCreate,involvedObject.kind=ReplicaSet");
    let events = namespace.api::<Event>().list(&params).await.expect("events are listed");
    events.items.iter().map(|event| i64::from(event.count.unwrap_or(1))).sum()
}

/// An answer without what differs between the one that did it and the one that was told.
pub fn told(mut answer: Value) -> Value {
    answer.as_object_mut().expect("is an answer").remove("replayed");
    answer
}
