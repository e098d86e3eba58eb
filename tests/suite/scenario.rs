//! For each action: objects to act upon, a request, and how often it took effect.
//!
//! Whatever must hold for every action is a loop over [`ActionKind::ALL`] with these; an action that is
//! added says here what its effect is, and is covered.

use action_executor::actions::ActionKind;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{Event, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch},
};
use serde_json::{Value, json};

use crate::cluster::{MISSING_IMAGE, Namespace, TestCluster, eventually, shared};

/// A namespace with a workload, and what is asked for on it.
pub struct Scenario {
    /// The action.
    pub kind: ActionKind,
    /// Where.
    pub namespace: Namespace,
    parameters: Value,
    /// The target as it was before anything was asked for.
    before: DynamicObject,
}

impl Scenario {
    /// A running workload for this action.
    pub async fn new(kind: ActionKind, test: &str) -> Self {
        Scenario::within(shared(), kind, test).await
    }

    /// A running workload for this action in this cluster.
    pub async fn within(cluster: &TestCluster, kind: ActionKind, test: &str) -> Self {
        let namespace = cluster.namespace(&format!("{test}-{}", kind.name())).await;
        prepare(kind, &namespace).await;
        Scenario::around(kind, namespace).await
    }

    /// What is asked for in a namespace in which the workload `web` runs.
    pub async fn around(kind: ActionKind, namespace: Namespace) -> Self {
        let parameters = parameters(kind, &namespace).await;
        let before = target(kind, &namespace, &parameters).await.expect("is there");
        Scenario { kind, namespace, parameters, before }
    }

    /// A real request under this id.
    pub fn request(&self, id: &str) -> Value {
        json!({
            "type": self.kind.name(), "parameters": self.parameters, "simulate": false, "id": id,
        })
    }

    /// The target as kubectl names it: `Deployment/web`.
    pub fn named(&self) -> String {
        let kind = self.before.types.as_ref().expect("is of a kind").kind.clone();
        format!("{kind}/{}", self.before.name_any())
    }

    /// Gives the target these labels.
    pub async fn label(&self, labels: Value) {
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        let api = api(self.kind, &self.namespace);
        api.patch(&self.before.name_any(), &Default::default(), &patch).await.expect("is labelled");
    }

    /// How often the action took effect, once the workload has come to rest.
    pub async fn effects(&self) -> i64 {
        match self.kind {
            ActionKind::RestartPod => self.pods_replaced().await,
            _ => self.generations().await,
        }
    }

    /// How often the target's spec was changed.
    async fn generations(&self) -> i64 {
        let now = target(self.kind, &self.namespace, &self.parameters).await.expect("is there");
        let number = |it: &DynamicObject| it.metadata.generation.expect("has one");
        number(&now) - number(&self.before)
    }

    /// How often the Deployment's one pod was replaced.
    async fn pods_replaced(&self) -> i64 {
        self.namespace.rolled_out("web").await;
        let pod = eventually("there is one pod", async || {
            let mut pods = self.namespace.pods_of("web").await;
            (pods.len() == 1).then(|| pods.remove(0))
        })
        .await;
        // The ReplicaSet tells of a pod a moment after it made it.
        let replaced = i64::from(pod.uid() != self.before.uid());
        eventually("the ReplicaSet has told of it", async || {
            let made = pods_made(&self.namespace).await;
            (made > replaced).then_some(made - 1)
        })
        .await
    }
}

/// The workload `web` that this action is for, once it runs.
pub async fn prepare(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::RestartK8s | ActionKind::RestartPod => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::RestartStatefulset => namespace.running_stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.running_daemon_set("web").await,
        ActionKind::Scale | ActionKind::PauseRollout => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::ResumeRollout => {
            namespace.running_deployment("web", 1).await;
            set_paused(namespace, true).await;
        }
    }
}

/// The workload `web` that this action is for, of pods that never run.
pub async fn prepare_broken(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::RestartK8s => namespace.deployment_with_claim("web", "data").await,
        ActionKind::RestartPod => drop(namespace.deployment("web", 1, MISSING_IMAGE).await),
        ActionKind::RestartStatefulset => namespace.stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.daemon_set("web").await,
        ActionKind::Scale | ActionKind::PauseRollout | ActionKind::ResumeRollout => {
            namespace.deployment("web", 1, MISSING_IMAGE).await;
        }
    }
    eventually("there is a pod", async || {
        (!namespace.pods_of("web").await.is_empty()).then_some(())
    })
    .await;
    ready_again(kind, namespace).await;
}

/// Takes back what one request of this action did, where a second one would find nothing to do.
pub async fn ready_again(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::PauseRollout => set_paused(namespace, false).await,
        ActionKind::ResumeRollout => set_paused(namespace, true).await,
        _ => {}
    }
}

/// Pauses or resumes the Deployment `web`, as somebody else.
pub async fn set_paused(namespace: &Namespace, paused: bool) {
    let patch = Patch::Merge(json!({ "spec": { "paused": paused } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
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
        ActionKind::RestartStatefulset => json!({ "statefulset": "web", "namespace": name }),
        ActionKind::RestartDaemonset => json!({ "daemonset": "web", "namespace": name }),
        // A difference, since what is done twice shows.
        ActionKind::Scale => json!({ "name": "web", "namespace": name, "by": 1 }),
        ActionKind::PauseRollout | ActionKind::ResumeRollout => {
            json!({ "deployment": "web", "namespace": name })
        }
    }
}

/// Parameters that name no object in particular.
pub fn example(kind: ActionKind) -> Value {
    match kind {
        ActionKind::RestartK8s => json!({ "deployment": "web" }),
        ActionKind::RestartPod => json!({ "pod_name": "web-1" }),
        ActionKind::RestartStatefulset => json!({ "statefulset": "db" }),
        ActionKind::RestartDaemonset => json!({ "daemonset": "agent" }),
        ActionKind::Scale => json!({ "name": "web", "replicas": 3 }),
        ActionKind::PauseRollout | ActionKind::ResumeRollout => json!({ "deployment": "web" }),
    }
}

/// The objects of the kind that this action is for.
fn api(kind: ActionKind, namespace: &Namespace) -> Api<DynamicObject> {
    let resource = match kind {
        ActionKind::RestartK8s => ApiResource::erase::<Deployment>(&()),
        ActionKind::RestartPod => ApiResource::erase::<Pod>(&()),
        ActionKind::RestartStatefulset => ApiResource::erase::<StatefulSet>(&()),
        ActionKind::RestartDaemonset => ApiResource::erase::<DaemonSet>(&()),
        ActionKind::Scale | ActionKind::PauseRollout | ActionKind::ResumeRollout => {
            ApiResource::erase::<Deployment>(&())
        }
    };
    namespace.objects(&resource)
}

/// The object that these parameters mean.
async fn target(
    kind: ActionKind,
    namespace: &Namespace,
    parameters: &Value,
) -> Option<DynamicObject> {
    let named = parameters.as_object().expect("are parameters").iter();
    let name = named.filter(|(key, _)| *key != "namespace").find_map(|(_, value)| value.as_str());
    let api = api(kind, namespace);
    api.get_opt(name.expect("is named")).await.expect("is asked")
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
