//! For each action: the objects that it acts on, a valid request, and the count of its effects.
//!
//! What must hold for every action is tested in a loop over [`ActionKind::ALL`] with these scenarios. A new action
//! that states its effect here is covered.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use action_executor::{
    actions::ActionKind,
    k8s::{applied_requests::AppliedRequests, workload::WorkloadKind},
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    core::v1::{Event, Namespace as CoreNamespace, Node, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    argo_rollout,
    cluster::{
        FAILING_IMAGE, GOOD_IMAGE, MISSING_IMAGE, Namespace, OWN_IMAGE, TestCluster, eventually,
        own_taint, shared,
    },
    integration_objects,
};

/// The key of the label or annotation that the scenarios set.
const ENTRY: &str = "example.com/team";

/// A namespace with a workload, and the parameters of a request for it.
pub struct Scenario {
    /// The action.
    pub kind: ActionKind,
    /// The namespace.
    pub namespace: Namespace,
    parameters: Value,
    /// The target before any request.
    before: DynamicObject,
    /// How many pods the ReplicaSet of the drained node had created by then: under load it may create one before it sees
    /// those that it is to adopt.
    pods_made: i64,
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
        let pods_made = match kind {
            ActionKind::Drain => pods_made(&namespace).await,
            _ => 0,
        };
        Scenario { kind, namespace, parameters, before, pods_made }
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
        if !self.kind.descriptor().cluster_rules.is_empty() {
            self.namespace.grant_everywhere(name, rules.clone()).await;
        }
        self.namespace.account(name, rules).await
    }

    /// The policy's section for the target: `nodes` or `namespaces`. The test's node is named as its namespace.
    pub fn policy_section(&self) -> &'static str {
        if is_on_nodes(self.kind) { "nodes" } else { "namespaces" }
    }

    /// Labels the target.
    pub async fn label(&self, labels: Value) {
        let patch = json!({ "metadata": { "labels": labels } });
        self.patch(&self.namespace, &patch).await.expect("is labelled");
    }

    /// The target as it is now.
    pub async fn object(&self) -> DynamicObject {
        target(self.kind, &self.namespace, &self.parameters).await.expect("is there")
    }

    /// Merges into the target, as the account of this access to the namespace.
    pub async fn patch(
        &self,
        access: &Namespace,
        patch: &Value,
    ) -> Result<DynamicObject, kube::Error> {
        let params = Default::default();
        api(self.kind, access).patch(&self.before.name_any(), &params, &Patch::Merge(patch)).await
    }

    /// Writes the target's status as its controller does. A CronJob has no conditions, so an annotation stands for
    /// its status.
    pub async fn write_status(&self, value: &str) {
        let (api, name, params) =
            (api(self.kind, &self.namespace), self.before.name_any(), Default::default());
        let is_cron_job = self.before.types.as_ref().is_some_and(|types| types.kind == "CronJob");
        let condition = json!({ "type": "Heartbeat", "status": "True", "message": value });
        if integration_objects::Kind::of(self.kind).is_some() {
            return integration_objects::beat(self.kind, api, &name, value).await;
        }
        if argo_rollout::is_ours(self.kind) {
            // A custom resource takes no strategic patch.
            let time = "2026-01-31T12:00:00Z";
            let condition = json!({
                "type": "Heartbeat", "status": "True", "message": value, "reason": "Beats",
                "lastTransitionTime": time, "lastUpdateTime": time,
            });
            let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
            api.patch_status(&name, &params, &patch).await.expect("is written");
            return;
        }
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
            ActionKind::Drain => self.drains().await,
            _ => self.effects_so_far().await,
        }
    }

    /// How often the action took effect so far, by what the API server stores; it waits for no controller.
    pub async fn effects_so_far(&self) -> i64 {
        match self.kind {
            ActionKind::CleanPods => self.cleanings().await,
            ActionKind::DeleteStuckPod => i64::from(self.is_removed().await),
            kind if is_deletion(kind) => i64::from(self.is_replaced().await),
            ActionKind::RunCronjob => self.jobs_made().await,
            ActionKind::Cordon
            | ActionKind::Uncordon
            | ActionKind::Drain
            | ActionKind::ExpandPvc
            | ActionKind::Taint
            | ActionKind::Untaint => self.marks().await,
            ActionKind::RerunJob => self.reruns().await,
            ActionKind::ReconcileFlux
            | ActionKind::SuspendArgoCdSync
            | ActionKind::ResumeArgoCdSync
            | ActionKind::SyncArgoCd
            | ActionKind::PauseKeda
            | ActionKind::ResumeKeda => self.requests().await,
            ActionKind::PromoteArgoRollout
            | ActionKind::AbortArgoRollout
            | ActionKind::RetryArgoRollout => self.status_changes().await,
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

    /// Whether the target's object is gone, or is another one of its name.
    async fn is_removed(&self) -> bool {
        let now = target(self.kind, &self.namespace, &self.parameters).await;
        now.is_none_or(|it| it.uid() != self.before.uid())
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
        let now = self.object().await;
        let number = |it: &DynamicObject| it.metadata.generation.expect("has one");
        number(&now) - number(&self.before)
    }

    /// How often the status of the Rollout was changed.
    async fn status_changes(&self) -> i64 {
        let now = self.object().await;
        argo_rollout::status_changes(self.kind, &now)
            - argo_rollout::status_changes(self.kind, &self.before)
    }

    /// How many requests are recorded on the target, for changes that add no generation.
    async fn marks(&self) -> i64 {
        let now = self.object().await;
        let number =
            |it: &DynamicObject| AppliedRequests::from_metadata(&it.metadata).newest() as i64;
        number(&now) - number(&self.before)
    }

    /// How many requests have changed the target, by their marks alone.
    async fn requests(&self) -> i64 {
        let now = self.object().await;
        integration_objects::requests_on(&now) - integration_objects::requests_on(&self.before)
    }

    /// How often the node was drained: each drain adds its record, and the ReplicaSet replaces its pod.
    async fn drains(&self) -> i64 {
        let marks = self.marks().await;
        eventually("as many evictions follow as there were cordons", async || {
            (pods_made(&self.namespace).await - self.pods_made == marks).then_some(())
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

    /// How often the finished pod was deleted: it does not come back.
    async fn cleanings(&self) -> i64 {
        i64::from(self.namespace.pods_of("web").await.is_empty())
    }

    /// How many Jobs there are with the labels of the Job, besides it.
    async fn reruns(&self) -> i64 {
        let params = ListParams::default().labels("app=web");
        let jobs = self.namespace.api::<Job>().list(&params).await.expect("are listed").items;
        jobs.iter().filter(|job| job.uid() != self.before.uid()).count() as i64
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

/// A namespace in which a workload `web` of this kind runs.
pub async fn running(test: &str, kind: WorkloadKind) -> Namespace {
    let namespace = shared().namespace(&format!("{test}-{}", kind.for_kubectl())).await;
    match kind {
        WorkloadKind::StatefulSet => namespace.running_stateful_set("web", 1).await,
        WorkloadKind::DaemonSet => namespace.running_daemon_set("web").await,
        _ => drop(namespace.running_deployment("web", 1).await),
    }
    namespace
}

/// The workload `web`.
pub async fn workload(namespace: &Namespace, kind: WorkloadKind) -> DynamicObject {
    namespace.objects(&kind.resource()).get("web").await.expect("is there")
}

/// How many actions are tested at a time: most of a test is waiting.
const ACTIONS_AT_A_TIME: usize = 3;

/// Runs this test for each of [`actions`], a few at a time, each on a thread and a runtime of its own.
pub fn for_each_action(test: impl AsyncFn(ActionKind) + Sync) {
    for_each(&actions(), test);
}

/// Every action. Of those on objects of operators two stand for all, since a loop over all of them takes twice as long:
/// one that changes a status, and one that sets annotations. `TEST_ACTIONS=all` has them all.
pub fn actions() -> Vec<ActionKind> {
    chosen(|kind| {
        let of_integrations = [ActionKind::PromoteArgoRollout, ActionKind::ReconcileFlux];
        kind.descriptor().integration.is_none() || of_integrations.contains(&kind)
    })
}

/// The actions that `TEST_ACTIONS` names, by commas, or all; without it, these.
fn chosen(default: impl Fn(ActionKind) -> bool) -> Vec<ActionKind> {
    let named = std::env::var("TEST_ACTIONS").ok();
    let is_chosen = |kind: &ActionKind| match named.as_deref() {
        None => default(*kind),
        Some("all") => true,
        Some(named) => named.split(',').any(|name| name == kind.name()),
    };
    ActionKind::ALL.into_iter().filter(is_chosen).collect()
}

/// One action for each form of a change: what becomes of a request or of a change on its way is the same for all of one
/// form. `TEST_ACTIONS=all` has every action.
fn forms() -> Vec<ActionKind> {
    use ActionKind::*;
    chosen(|kind| {
        matches!(
            kind,
            // A patch: of a pod template, of a flag of the spec, of labels, of a PVC, of a node, of a status.
            RestartK8s | PauseRollout | Label | ExpandPvc | Cordon | PromoteArgoRollout
            // A subresource: a scaling, a resize.
            | Scale | ResizePod
            // A deletion, an eviction, several of each, a creation.
            | RestartPod | EvictPod | CleanPods | Drain | RunCronjob
        )
    })
}

/// Runs this test for each of [`forms`], as [`for_each_action`] does for each action.
pub fn for_each_form(test: impl AsyncFn(ActionKind) + Sync) {
    for_each(&forms(), test);
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
    kind.descriptor().rules.is_empty()
}

/// Whether the action deletes an object, which then does not show who deleted it.
pub fn is_deletion(kind: ActionKind) -> bool {
    use ActionKind::*;
    matches!(kind, RestartPod | EvictPod | DeleteStuckPod | DeleteJob | CleanPods)
}

/// Whether the action creates an object with a name of the request alone.
pub fn is_creation(kind: ActionKind) -> bool {
    matches!(kind, ActionKind::RunCronjob | ActionKind::RerunJob)
}

/// Creates the workload `web` for this action and waits until it runs; or creates the test's own node.
pub async fn prepare(kind: ActionKind, namespace: &Namespace) {
    match kind {
        ActionKind::RestartK8s | ActionKind::RestartPod => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::RestartStatefulset => namespace.running_stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.running_daemon_set("web").await,
        ActionKind::Scale
        | ActionKind::SetImage
        | ActionKind::PauseRollout
        | ActionKind::Label
        | ActionKind::Annotate => {
            namespace.running_deployment("web", 1).await;
        }
        ActionKind::SetAutoscalerBounds => namespace.autoscaler("web").await,
        ActionKind::SetResources => {
            namespace.running_deployment("web", 1).await;
            set_memory(namespace, MEMORY).await;
            namespace.rolled_out("web").await;
        }
        ActionKind::ResizePod => drop(namespace.running_sized_pod("web", MEMORY).await),
        ActionKind::ExpandPvc => namespace.bound_claim("web", "10Gi").await,
        ActionKind::RestartArgoRollout
        | ActionKind::PromoteArgoRollout
        | ActionKind::AbortArgoRollout
        | ActionKind::RetryArgoRollout
        | ActionKind::UndoArgoRollout => argo_rollout::prepare(kind, namespace).await,
        ActionKind::ResumeRollout => {
            namespace.running_deployment("web", 1).await;
            set_paused(namespace, true).await;
        }
        // A second pod: evicting a controller's only pod would cause a warning.
        ActionKind::EvictPod => drop(namespace.running_deployment("web", 2).await),
        ActionKind::DeleteStuckPod => namespace.stuck_pod("web").await,
        ActionKind::RunCronjob | ActionKind::SuspendCronjob => {
            namespace.cron_job("web", OWN_IMAGE, false).await;
        }
        ActionKind::ResumeCronjob => drop(namespace.cron_job("web", OWN_IMAGE, true).await),
        ActionKind::DeleteJob | ActionKind::RerunJob => {
            namespace.finished_job("web", OWN_IMAGE).await;
        }
        ActionKind::CleanPods => namespace.failed_pod("web").await,
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
        ActionKind::Taint => drop(namespace.own_node(false).await),
        ActionKind::Untaint => {
            namespace.own_node(false).await;
            set_tainted(namespace, true).await;
        }
        ActionKind::SuspendFlux
        | ActionKind::ResumeFlux
        | ActionKind::ReconcileFlux
        | ActionKind::SuspendArgoCdSync
        | ActionKind::ResumeArgoCdSync
        | ActionKind::SyncArgoCd
        | ActionKind::PauseKeda
        | ActionKind::ResumeKeda => integration_objects::prepare(kind, namespace).await,
    }
}

/// Creates the workload `web` for this action with pods that never run.
pub async fn prepare_broken(kind: ActionKind, namespace: &Namespace) {
    match kind {
        // The warnings of these actions read the volume claims that the pods mount.
        ActionKind::RestartK8s | ActionKind::SetImage | ActionKind::ResumeRollout => {
            namespace.deployment_with_claim("web", "data").await;
        }
        ActionKind::SetResources => {
            namespace.deployment_with_claim("web", "data").await;
            set_memory(namespace, MEMORY).await;
        }
        ActionKind::ResizePod => drop(namespace.sized_pod("web", MISSING_IMAGE, MEMORY).await),
        ActionKind::RestartPod => drop(namespace.deployment("web", 1, MISSING_IMAGE).await),
        ActionKind::RestartStatefulset => namespace.stateful_set("web", 1).await,
        ActionKind::RestartDaemonset => namespace.daemon_set("web").await,
        ActionKind::Scale | ActionKind::PauseRollout => {
            namespace.deployment("web", 1, MISSING_IMAGE).await;
        }
        ActionKind::EvictPod => drop(namespace.deployment("web", 2, MISSING_IMAGE).await),
        // One object for each rule.
        ActionKind::Label | ActionKind::Annotate => {
            namespace.deployment("web", 1, MISSING_IMAGE).await;
            namespace.cron_job("web", OWN_IMAGE, true).await;
        }
        ActionKind::DeleteStuckPod => return prepare(kind, namespace).await,
        // They have no pods, and nobody plays their controller.
        ActionKind::SuspendFlux
        | ActionKind::ResumeFlux
        | ActionKind::ReconcileFlux
        | ActionKind::SuspendArgoCdSync
        | ActionKind::ResumeArgoCdSync
        | ActionKind::SyncArgoCd
        | ActionKind::PauseKeda
        | ActionKind::ResumeKeda => {
            return integration_objects::prepare_broken(kind, namespace).await;
        }
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
        // They have no pods, and nobody plays their controller.
        ActionKind::RestartArgoRollout
        | ActionKind::PromoteArgoRollout
        | ActionKind::AbortArgoRollout
        | ActionKind::RetryArgoRollout
        | ActionKind::UndoArgoRollout => {
            return argo_rollout::prepare_broken(kind, namespace).await;
        }
        // They have no pods of their own.
        ActionKind::RerunJob => {
            namespace.finished_job("web", FAILING_IMAGE).await;
            return;
        }
        // Its pods have finished.
        ActionKind::DeleteJob => return prepare(kind, namespace).await,
        // Its pod has finished.
        ActionKind::CleanPods => return prepare(kind, namespace).await,
        // It has no pods of its own.
        ActionKind::SetAutoscalerBounds => return prepare(kind, namespace).await,
        // A volume that does not become larger.
        ActionKind::ExpandPvc => return namespace.bound_claim("web", "1Gi").await,
        // A node without pods has none that fail.
        ActionKind::Cordon | ActionKind::Uncordon | ActionKind::Taint | ActionKind::Untaint => {
            return prepare(kind, namespace).await;
        }
        // With everything on the node that a drain checks.
        ActionKind::Drain => {
            namespace.own_node(false).await;
            namespace.daemon_set_on_own_node("agent").await;
            let claim = json!({ "claimName": "data" });
            let volumes = json!([{ "name": "data", "persistentVolumeClaim": claim }]);
            // No scheduler handles the replacements: it would retry as long as there is no such volume claim.
            let spec = json!({ "volumes": volumes, "schedulerName": "none" });
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
        ActionKind::SetResources => set_memory(namespace, MEMORY).await,
        ActionKind::ResizePod => {
            let container =
                json!({ "name": "main", "resources": { "limits": { "memory": MEMORY } } });
            let patch = Patch::Strategic(json!({ "spec": { "containers": [container] } }));
            let pods = namespace.api::<Pod>();
            let resized =
                pods.patch_subresource("resize", "web", &Default::default(), &patch).await;
            resized.expect("is resized");
        }
        ActionKind::PauseRollout => set_paused(namespace, false).await,
        ActionKind::ResumeRollout => set_paused(namespace, true).await,
        ActionKind::SuspendCronjob => set_suspended(namespace, false).await,
        ActionKind::ResumeCronjob => set_suspended(namespace, true).await,
        ActionKind::DeleteJob => create_again(namespace).await,
        ActionKind::CleanPods if namespace.pods_of("web").await.is_empty() => {
            namespace.failed_pod("web").await;
        }
        ActionKind::Cordon | ActionKind::Drain => set_cordoned(namespace, false).await,
        ActionKind::Uncordon => set_cordoned(namespace, true).await,
        ActionKind::Label => remove_entry(namespace, "labels").await,
        ActionKind::Annotate => remove_entry(namespace, "annotations").await,
        ActionKind::DeleteStuckPod => namespace.stuck_again("web").await,
        ActionKind::Taint => set_tainted(namespace, false).await,
        ActionKind::Untaint => set_tainted(namespace, true).await,
        kind if argo_rollout::is_ours(kind) => argo_rollout::undo(kind, namespace).await,
        kind => integration_objects::undo(kind, namespace).await,
    }
}

/// Adds or removes a taint of the namespace's own node, as someone else. Its pods must not be scheduled anyway.
async fn set_tainted(namespace: &Namespace, tainted: bool) {
    let own = own_taint();
    let more = json!({ "key": ENTRY, "value": "shop", "effect": "NoExecute" });
    let taints = if tainted { json!([own, more]) } else { json!([own]) };
    let patch = Patch::Merge(json!({ "spec": { "taints": taints } }));
    let nodes = namespace.global::<Node>();
    nodes.patch(namespace.name(), &Default::default(), &patch).await.expect("is patched");
}

/// Removes the label or annotation of the Deployment `web`, as someone else.
async fn remove_entry(namespace: &Namespace, field: &str) {
    let patch = Patch::Merge(json!({ "metadata": { field: { ENTRY: null } } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
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
    set_in_container(namespace, json!({ "image": image })).await;
}

/// The memory limit before `set_resources` and `resize_pod`.
const MEMORY: &str = "64Mi";

/// Sets the memory limit of the Deployment `web`, as someone else.
async fn set_memory(namespace: &Namespace, limit: &str) {
    set_in_container(namespace, json!({ "resources": { "limits": { "memory": limit } } })).await;
}

async fn set_in_container(namespace: &Namespace, fields: Value) {
    let mut container = fields;
    container["name"] = "main".into();
    let containers = json!([container]);
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

/// Creates the Job `web` again, if it was deleted.
async fn create_again(namespace: &Namespace) {
    let found = namespace.api::<Job>().get_opt("web").await.expect("is read");
    if found.is_none() {
        namespace.finished_job("web", OWN_IMAGE).await;
    }
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
        ActionKind::DeleteStuckPod => {
            json!({ "pod_name": "web", "namespace": name, "overdue_seconds": 10 })
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
        ActionKind::SetResources => json!({
            "name": "web", "namespace": name, "resources": [{ "container": "main", "memory_limit": "96Mi" }],
        }),
        // More than it is, also for a second request.
        ActionKind::ExpandPvc => {
            let claims = namespace.api::<PersistentVolumeClaim>();
            let claim = json!(claims.get("web").await.expect("is there"));
            let size = claim["spec"]["resources"]["requests"]["storage"].as_str().expect("has one");
            let gibibytes: u32 = size.trim_end_matches("Gi").parse().expect("is a number");
            json!({ "pvc": "web", "namespace": name, "size": format!("{}Gi", gibibytes + 1) })
        }
        ActionKind::ResizePod => json!({
            "pod_name": "web", "namespace": name, "resources": [{ "container": "main", "memory_limit": "96Mi" }],
        }),
        ActionKind::PauseRollout | ActionKind::ResumeRollout => {
            json!({ "deployment": "web", "namespace": name })
        }
        ActionKind::RunCronjob | ActionKind::SuspendCronjob | ActionKind::ResumeCronjob => {
            json!({ "cronjob": "web", "namespace": name })
        }
        ActionKind::DeleteJob | ActionKind::RerunJob | ActionKind::Rollback => {
            json!({ "name": "web", "namespace": name })
        }
        ActionKind::CleanPods => json!({ "namespace": name, "max_pods": 100 }),
        ActionKind::Cordon | ActionKind::Uncordon | ActionKind::Drain => json!({ "node": name }),
        ActionKind::Label | ActionKind::Annotate => {
            json!({ "name": "web", "namespace": name, "set": { ENTRY: "shop" } })
        }
        ActionKind::Taint => {
            json!({ "node": name, "key": ENTRY, "value": "shop", "effect": "NoExecute" })
        }
        ActionKind::Untaint => json!({ "node": name, "key": ENTRY }),
        ActionKind::SuspendFlux
        | ActionKind::ResumeFlux
        | ActionKind::ReconcileFlux
        | ActionKind::SuspendArgoCdSync
        | ActionKind::ResumeArgoCdSync
        | ActionKind::SyncArgoCd
        | ActionKind::PauseKeda
        | ActionKind::ResumeKeda => json!({ "name": "web", "namespace": name }),
        ActionKind::RestartArgoRollout
        | ActionKind::PromoteArgoRollout
        | ActionKind::AbortArgoRollout
        | ActionKind::RetryArgoRollout
        | ActionKind::UndoArgoRollout => {
            json!({ "rollout": "web", "namespace": name })
        }
    }
}

/// Parameters of the same action for objects of other kinds, which need other rules; only of the workload of
/// [`prepare_broken`].
pub async fn other_parameters(kind: ActionKind, namespace: &Namespace) -> Vec<Value> {
    let schema = kind.parameters_schema(&mut schemars::SchemaGenerator::default());
    if schema.pointer("/properties/selector").is_some() {
        let mut parameters = json!({ "selector": "app=web", "namespace": namespace.name() });
        if kind == ActionKind::Scale {
            parameters["by"] = 1.into();
        }
        return vec![parameters];
    }
    if kind == ActionKind::PromoteArgoRollout {
        // One that is held by its spec.
        return vec![json!({ "rollout": "held", "namespace": namespace.name() })];
    }
    if kind == ActionKind::PauseKeda {
        let mut parameters = parameters(kind, namespace).await;
        parameters["replicas"] = 1.into();
        return vec![parameters];
    }
    if !matches!(kind, ActionKind::Label | ActionKind::Annotate) {
        return integration_objects::other_parameters(kind, namespace.name());
    }
    let (name, set) = (namespace.name(), json!({ ENTRY: "shop" }));
    let pod = namespace.pods_of("web").await[0].name_any();
    let of = |kind: &str, object: &str| json!({ "kind": kind, "name": object, "namespace": name, "set": set });
    vec![of("CronJob", "web"), of("Pod", &pod)]
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
        | ActionKind::SetResources
        | ActionKind::PauseRollout
        | ActionKind::ResumeRollout
        | ActionKind::Label
        | ActionKind::Annotate => ApiResource::erase::<Deployment>(&()),
        ActionKind::SetAutoscalerBounds => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
        ActionKind::EvictPod | ActionKind::DeleteStuckPod | ActionKind::ResizePod => {
            ApiResource::erase::<Pod>(&())
        }
        ActionKind::ExpandPvc => ApiResource::erase::<PersistentVolumeClaim>(&()),
        ActionKind::RunCronjob | ActionKind::SuspendCronjob | ActionKind::ResumeCronjob => {
            ApiResource::erase::<CronJob>(&())
        }
        ActionKind::DeleteJob | ActionKind::RerunJob => ApiResource::erase::<Job>(&()),
        ActionKind::Cordon
        | ActionKind::Uncordon
        | ActionKind::Drain
        | ActionKind::Taint
        | ActionKind::Untaint => {
            return namespace.global_objects(&ApiResource::erase::<Node>(&()));
        }
        ActionKind::CleanPods => {
            return namespace.global_objects(&ApiResource::erase::<CoreNamespace>(&()));
        }
        ActionKind::SuspendFlux
        | ActionKind::ResumeFlux
        | ActionKind::ReconcileFlux
        | ActionKind::SuspendArgoCdSync
        | ActionKind::ResumeArgoCdSync
        | ActionKind::SyncArgoCd
        | ActionKind::PauseKeda
        | ActionKind::ResumeKeda => {
            integration_objects::Kind::of(kind).expect("is known there").resource()
        }
        ActionKind::RestartArgoRollout
        | ActionKind::PromoteArgoRollout
        | ActionKind::AbortArgoRollout
        | ActionKind::RetryArgoRollout
        | ActionKind::UndoArgoRollout => argo_rollout::resource(),
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
    let mut named = named.filter(|(key, _)| *key != "namespace");
    let first = || named.find_map(|(_, value)| value.as_str());
    // Without another name the target is the namespace.
    let name = parameters["node"].as_str().or_else(first);
    let name = name.or_else(|| parameters["namespace"].as_str());
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
