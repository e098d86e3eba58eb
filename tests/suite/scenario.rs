//! For each action: the objects that it acts on, a valid request, and the count of its effects.
//!
//! What must hold for every action is tested in a loop over [`ActionKind::ALL`] with these scenarios. A new action
//! that states its effect here is covered.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use action_executor::{actions::ActionKind, k8s::applied_requests::AppliedRequests};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    core::v1::{Event, Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::cluster::{
    FAILING_IMAGE, GOOD_IMAGE, MISSING_IMAGE, Namespace, OWN_IMAGE, TestCluster, eventually, shared,
};

/// A namespace with a workload, and the parameters of a request for it.
pub struct Scenario {
    /// The action.
    pub kind: ActionKind,
    /// The namespace.
    pub namespace: Namespace,
    parameters: Value,
    /// The target before any request.
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

    /// The same, but a pod is one that a StatefulSet replaces under the same name.
    pub async fn with_successor(kind: ActionKind, test: &str) -> Self {
        let namespace = shared().namespace(&format!("{test}-{}", kind.name())).await;
        match kind {
            ActionKind::RestartPod | ActionKind::EvictPod => {
                namespace.running_stateful_set("web", 1).await;
            }
            _ => prepare(kind, &namespace).await,
        }
        Scenario::around(kind, namespace).await
    }

    /// The scenario in a namespace in which the workload `web` already runs.
    pub async fn around(kind: ActionKind, namespace: Namespace) -> Self {
        let parameters = parameters(kind, &namespace).await;
        let before = target(kind, &namespace, &parameters).await.expect("is there");
        Scenario { kind, namespace, parameters, before }
    }

    /// A real request with this id. The records of all nodes share one namespace, so the id of a request for a node
    /// contains the scenario's name.
    pub fn request(&self, id: &str) -> Value {
        let id = match is_on_nodes(self.kind) {
            true => format!("{id}.{}", self.namespace.name()),
            false => id.to_owned(),
        };
        json!({
            "type": self.kind.name(), "parameters": self.parameters, "simulate": false, "id": id,
        })
    }

    /// The kubeconfig of a new service account that has these rules in every scope that this action needs.
    pub async fn account(&self, name: &str, rules: Value) -> PathBuf {
        if is_on_nodes(self.kind) {
            self.namespace.grant_everywhere(name, rules.clone()).await;
        }
        self.namespace.account(name, rules).await
    }

    /// The policy's section for the target: `nodes` or `namespaces`. The test's node is named as its namespace.
    pub fn policy_section(&self) -> &'static str {
        if is_on_nodes(self.kind) { "nodes" } else { "namespaces" }
    }

    /// The target as kubectl names it: `Deployment/web`.
    pub fn named(&self) -> String {
        let kind = self.before.types.as_ref().expect("is of a kind").kind.clone();
        format!("{kind}/{}", self.before.name_any())
    }

    /// Labels the target.
    pub async fn label(&self, labels: Value) {
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        let api = api(self.kind, &self.namespace);
        api.patch(&self.before.name_any(), &Default::default(), &patch).await.expect("is labelled");
    }

    /// Writes the target's status as its controller does. A CronJob has no conditions, so an annotation stands for
    /// its status.
    pub async fn write_status(&self, value: &str) {
        let (api, name, params) =
            (api(self.kind, &self.namespace), self.before.name_any(), Default::default());
        let is_cron_job = self.before.types.as_ref().is_some_and(|types| types.kind == "CronJob");
        let condition = json!({ "type": "Heartbeat", "status": "True", "message": value });
        // A pod may be gone by now.
        let _ = match is_cron_job {
            true => {
                let annotations = json!({ "example.com/heartbeat": value });
                let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
                api.patch(&name, &params, &patch).await
            }
            false => {
                let patch = json!({ "status": { "conditions": [condition] } });
                api.patch_status(&name, &params, &Patch::Strategic(patch)).await
            }
        };
    }

    /// How often the action took effect, counted once the workload is stable.
    pub async fn effects(&self) -> i64 {
        match self.kind {
            ActionKind::RestartK8s => {
                self.namespace.rolled_out("web").await;
                self.generations().await
            }
            ActionKind::RestartPod => self.pods_replaced(1).await,
            ActionKind::EvictPod => self.pods_replaced(2).await,
            ActionKind::RunCronjob => self.jobs_made().await,
            ActionKind::Cordon | ActionKind::Uncordon => self.marks().await,
            ActionKind::Drain => self.drains().await,
            _ => self.generations().await,
        }
    }

    /// How often the action took effect so far, by what the API server stores; it waits for no controller.
    pub async fn effects_so_far(&self) -> i64 {
        match self.kind {
            ActionKind::RestartPod | ActionKind::EvictPod => i64::from(self.is_replaced().await),
            ActionKind::RunCronjob => self.jobs_made().await,
            ActionKind::Cordon | ActionKind::Uncordon | ActionKind::Drain => self.marks().await,
            _ => self.generations().await,
        }
    }

    /// Whether the target is gone, is terminating or is another object of the same name.
    async fn is_replaced(&self) -> bool {
        let now = target(self.kind, &self.namespace, &self.parameters).await;
        let is_same = |it: &DynamicObject| {
            it.uid() == self.before.uid() && it.metadata.deletion_timestamp.is_none()
        };
        !now.is_some_and(|it| is_same(&it))
    }

    /// The pod that has the name of the scenario's pod, once it is another one.
    pub async fn successor(&self) -> Pod {
        let pods = self.namespace.api::<Pod>();
        eventually("the pod has a successor", async || {
            let pod = pods.get_opt(&self.before.name_any()).await.expect("is read")?;
            (pod.uid() != self.before.uid()).then_some(pod)
        })
        .await
    }

    /// How often the target's spec changed.
    async fn generations(&self) -> i64 {
        let now = target(self.kind, &self.namespace, &self.parameters).await.expect("is there");
        let number = |it: &DynamicObject| it.metadata.generation.expect("has one");
        number(&now) - number(&self.before)
    }

    /// How many requests are recorded on the target, for changes that add no generation.
    async fn marks(&self) -> i64 {
        let now = target(self.kind, &self.namespace, &self.parameters).await.expect("is there");
        let number =
            |it: &DynamicObject| AppliedRequests::from_metadata(&it.metadata).newest() as i64;
        number(&now) - number(&self.before)
    }

    /// How often the node was drained: each drain adds its record, and the ReplicaSet replaces its pod.
    async fn drains(&self) -> i64 {
        let marks = self.marks().await;
        eventually("as many evictions follow as there were cordons", async || {
            (pods_made(&self.namespace).await == marks).then_some(())
        })
        .await;
        marks
    }

    /// How many writes the action needs: a drain also evicts a pod.
    pub fn writes(&self) -> usize {
        if self.kind == ActionKind::Drain { 2 } else { 1 }
    }

    /// How often a pod of the Deployment, which has this many replicas, was replaced.
    async fn pods_replaced(&self, replicas: i64) -> i64 {
        self.namespace.rolled_out("web").await;
        let pods = eventually("there are as many pods as there were", async || {
            let pods = self.namespace.pods_of("web").await;
            (pods.len() as i64 == replicas).then_some(pods)
        })
        .await;
        // The ReplicaSet's event follows the pod's creation with a delay.
        let replaced = i64::from(pods.iter().all(|pod| pod.uid() != self.before.uid()));
        eventually("the ReplicaSet has reported it", async || {
            let made = pods_made(&self.namespace).await;
            (made >= replicas + replaced).then_some(made - replicas)
        })
        .await
    }

    /// How many Jobs of the CronJob exist.
    async fn jobs_made(&self) -> i64 {
        let jobs = self.namespace.api::<Job>().list(&ListParams::default()).await;
        let jobs = jobs.expect("are listed").items;
        let ours = jobs.iter().filter(|job| {
            job.owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == self.before.uid().as_ref())
        });
        ours.count() as i64
    }
}

/// How many actions are tested at a time: most of a test is waiting.
const ACTIONS_AT_A_TIME: usize = 4;

/// Runs this test for each action, a few at a time, each on a thread and a runtime of its own.
pub fn for_each_action(test: impl AsyncFn(ActionKind) + Sync) {
    for_each(&ActionKind::ALL, test);
}

/// Runs the test for each case, some at a time.
pub fn for_each<T: Clone + Sync>(cases: &[T], test: impl AsyncFn(T) + Sync) {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let runtime = Runtime::new().expect("a runtime starts");
            runtime.block_on(test(case.clone()));
        }
    };
    thread::scope(|scope| {
        for _ in 0..ACTIONS_AT_A_TIME {
            scope.spawn(run);
        }
    });
}

/// Whether the target is a node, which is in no namespace.
pub fn is_on_nodes(kind: ActionKind) -> bool {
    !kind.descriptor().cluster_rules.is_empty()
}

/// Creates the workload `web` for this action and waits until it runs; or creates the test's own node.
pub async fn prepare(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::RestartK8s | ActionKind::RestartPod => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::RestartStatefulset => namespace.running_stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.running_daemon_set("web").await,
        ActionKind::Scale | ActionKind::SetImage | ActionKind::PauseRollout => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::SetAutoscalerBounds => namespace.autoscaler("web").await,
        ActionKind::ResumeRollout => {
            namespace.running_deployment("web", 1).await;
            set_paused(namespace, true).await;
        }
        // A second pod: evicting a controller's only pod would cause a warning.
        ActionKind::EvictPod => drop(namespace.running_deployment("web", 2).await),
        ActionKind::RunCronjob | ActionKind::SuspendCronjob => {
            namespace.cron_job("web", OWN_IMAGE, false).await;
        }
        ActionKind::ResumeCronjob => drop(namespace.cron_job("web", OWN_IMAGE, true).await),
        ActionKind::Rollback => {
            namespace.running_deployment("web", 1).await;
            namespace.revise("web", "2").await;
            namespace.rolled_out("web").await;
        }
        ActionKind::Cordon => drop(namespace.own_node(false).await),
        ActionKind::Uncordon => drop(namespace.own_node(true).await),
        ActionKind::Drain => {
            namespace.own_node(false).await;
            namespace.replica_set_on_own_node("web", 1, json!({})).await;
        }
    }
}

/// Creates the workload `web` for this action with pods that never run.
pub async fn prepare_broken(kind: ActionKind, namespace: &Namespace) {
    match kind {
        // The warnings of these actions read the claims that the pods mount.
        ActionKind::RestartK8s | ActionKind::SetImage | ActionKind::ResumeRollout => {
            namespace.deployment_with_claim("web", "data").await;
        }
        ActionKind::RestartPod => drop(namespace.deployment("web", 1, MISSING_IMAGE).await),
        ActionKind::RestartStatefulset => namespace.stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.daemon_set("web").await,
        ActionKind::Scale | ActionKind::PauseRollout => {
            namespace.deployment("web", 1, MISSING_IMAGE).await;
        }
        ActionKind::EvictPod => drop(namespace.deployment("web", 2, MISSING_IMAGE).await),
        // These have no pods before they run, and failing ones afterwards.
        ActionKind::RunCronjob | ActionKind::SuspendCronjob => {
            namespace.cron_job("web", FAILING_IMAGE, false).await;
            return;
        }
        ActionKind::ResumeCronjob => {
            namespace.cron_job("web", FAILING_IMAGE, true).await;
            return;
        }
        ActionKind::Rollback => {
            namespace.deployment_with_claim("web", "data").await;
            namespace.revise("web", "2").await;
        }
        // It has no pods of its own.
        ActionKind::SetAutoscalerBounds => return prepare(kind, namespace).await,
        // A node without pods has none that fail.
        ActionKind::Cordon | ActionKind::Uncordon => return prepare(kind, namespace).await,
        // With everything on the node that a drain checks.
        ActionKind::Drain => {
            namespace.own_node(false).await;
            namespace.daemon_set_on_own_node("agent").await;
            let claim = json!({ "claimName": "data" });
            let volumes = json!([{ "name": "data", "persistentVolumeClaim": claim }]);
            let spec = json!({ "volumes": volumes });
            namespace.replica_set_on_own_node("web", 1, spec).await;
        }
    }
    eventually("there is a pod", async || {
        (!namespace.pods_of("web").await.is_empty()).then_some(())
    })
    .await;
    undo(kind, namespace).await;
}

/// Reverts one request of this action, where a second request would find nothing to change.
pub async fn undo(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::SetImage => set_image(namespace, GOOD_IMAGE).await,
        ActionKind::PauseRollout => set_paused(namespace, false).await,
        ActionKind::ResumeRollout => set_paused(namespace, true).await,
        ActionKind::SuspendCronjob => set_suspended(namespace, false).await,
        ActionKind::ResumeCronjob => set_suspended(namespace, true).await,
        ActionKind::Cordon | ActionKind::Drain => set_cordoned(namespace, false).await,
        ActionKind::Uncordon => set_cordoned(namespace, true).await,
        _ => {}
    }
}

/// Cordons or uncordons the namespace's own node, as someone else.
async fn set_cordoned(namespace: &Namespace, cordoned: bool) {
    let patch = Patch::Merge(json!({ "spec": { "unschedulable": cordoned } }));
    let nodes = namespace.global::<Node>();
    nodes.patch(namespace.name(), &Default::default(), &patch).await.expect("is patched");
}

/// Pauses or resumes the Deployment `web`, as someone else.
pub async fn set_paused(namespace: &Namespace, paused: bool) {
    let patch = Patch::Merge(json!({ "spec": { "paused": paused } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
}

/// Sets the image of the Deployment `web`, as someone else.
async fn set_image(namespace: &Namespace, image: &str) {
    let containers = json!([{ "name": "main", "image": image }]);
    let patch = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
    let deployments = namespace.api::<Deployment>();
    let patch = Patch::Strategic(patch);
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
    eventually("the revision is recorded", async || {
        let found = deployments.get("web").await.expect("is there");
        (found.status?.observed_generation == found.metadata.generation).then_some(())
    })
    .await;
}

/// Suspends or resumes the CronJob `web`, as someone else.
async fn set_suspended(namespace: &Namespace, suspend: bool) {
    let patch = Patch::Merge(json!({ "spec": { "suspend": suspend } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch("web", &Default::default(), &patch).await.expect("is patched");
}

/// Parameters that name the workload `web`, or the test's own node.
pub async fn parameters(kind: ActionKind, namespace: &Namespace) -> Value {
    let name = namespace.name();
    match kind {
        ActionKind::RestartK8s => json!({ "deployment": "web", "namespace": name }),
        ActionKind::RestartPod | ActionKind::EvictPod => {
            let pod = namespace.pods_of("web").await[0].name_any();
            json!({ "pod_name": pod, "namespace": name })
        }
        ActionKind::RestartStatefulset => json!({ "statefulset": "web", "namespace": name }),
        ActionKind::RestartDaemonset => json!({ "daemonset": "web", "namespace": name }),
        // A difference, because applying it twice would show.
        ActionKind::Scale => json!({ "name": "web", "namespace": name, "by": 1 }),
        ActionKind::SetAutoscalerBounds => {
            json!({ "autoscaler": "web", "namespace": name, "max_by": 1 })
        }
        ActionKind::SetImage => json!({
            "name": "web", "namespace": name, "images": [{ "container": "main", "image": namespace.other_image() }],
        }),
        ActionKind::PauseRollout | ActionKind::ResumeRollout => {
            json!({ "deployment": "web", "namespace": name })
        }
        ActionKind::RunCronjob | ActionKind::SuspendCronjob | ActionKind::ResumeCronjob => {
            json!({ "cronjob": "web", "namespace": name })
        }
        ActionKind::Rollback => json!({ "name": "web", "namespace": name }),
        ActionKind::Cordon | ActionKind::Uncordon | ActionKind::Drain => json!({ "node": name }),
    }
}

/// The parameters of the action's documented example.
pub fn example(kind: ActionKind) -> Value {
    serde_json::from_str(kind.descriptor().example).expect("is JSON")
}

/// The objects of the kind that this action is for.
fn api(kind: ActionKind, namespace: &Namespace) -> Api<DynamicObject> {
    let resource = match kind {
        ActionKind::RestartK8s | ActionKind::Rollback => ApiResource::erase::<Deployment>(&()),
        ActionKind::RestartPod => ApiResource::erase::<Pod>(&()),
        ActionKind::RestartStatefulset => ApiResource::erase::<StatefulSet>(&()),
        ActionKind::RestartDaemonset => ApiResource::erase::<DaemonSet>(&()),
        ActionKind::Scale
        | ActionKind::SetImage
        | ActionKind::PauseRollout
        | ActionKind::ResumeRollout => ApiResource::erase::<Deployment>(&()),
        ActionKind::SetAutoscalerBounds => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
        ActionKind::EvictPod => ApiResource::erase::<Pod>(&()),
        ActionKind::RunCronjob | ActionKind::SuspendCronjob | ActionKind::ResumeCronjob => {
            ApiResource::erase::<CronJob>(&())
        }
        ActionKind::Cordon | ActionKind::Uncordon | ActionKind::Drain => {
            return namespace.global_objects(&ApiResource::erase::<Node>(&()));
        }
    };
    namespace.objects(&resource)
}

/// The object that these parameters name.
async fn target(
    kind: ActionKind,
    namespace: &Namespace,
    parameters: &Value,
) -> Option<DynamicObject> {
    let named = parameters.as_object().expect("are parameters").iter();
    let name = named.filter(|(key, _)| *key != "namespace").find_map(|(_, value)| value.as_str());
    let api = api(kind, namespace);
    api.get_opt(name.expect("is named")).await.expect("is read")
}

/// How many pods the ReplicaSet has created, by its events.
async fn pods_made(namespace: &Namespace) -> i64 {
    let params =
        ListParams::default().fields("reason=SuccessfulCreate,involvedObject.kind=ReplicaSet");
    let events = namespace.api::<Event>().list(&params).await.expect("events are listed");
    events.items.iter().map(|event| i64::from(event.count.unwrap_or(1))).sum()
}

/// The request with these parameters and these fields besides its own.
pub fn extended(mut request: Value, parameters: Value, fields: Value) -> Value {
    for (part, more) in [("/parameters", parameters), ("", fields)] {
        let part = request.pointer_mut(part).and_then(Value::as_object_mut).expect("is there");
        part.extend(more.as_object().expect("is an object").clone());
    }
    request
}

/// The answer without `replayed`, in which the first answer and a replay differ.
pub fn without_replayed(mut answer: Value) -> Value {
    answer.as_object_mut().expect("is an answer").remove("replayed");
    answer
}
