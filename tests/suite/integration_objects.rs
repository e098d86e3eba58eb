//! The objects of Flux, Argo CD and KEDA for the loops over every action, with the CRDs that these projects publish.
//!
//! Their controllers do not run: they need a source of manifests, a metrics server and the like. This file plays the
//! part of them that an action waits for, as their sources have it (`src/k8s/{flux,argo_cd,keda}.rs` names the files).

use action_executor::{actions::ActionKind, k8s::integrations::Integration};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PostParams},
};
use serde_json::{Value, json};

use crate::cluster::{Namespace, play_controller};

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kustomization,
    HelmRelease,
    Application,
    ScaledObject,
    ScaledJob,
}

impl Kind {
    /// Of the target of this action in the loops; none if this file does not know it.
    pub fn of(kind: ActionKind) -> Option<Self> {
        match kind.descriptor().integration? {
            Integration::Flux => Some(Kind::Kustomization),
            Integration::ArgoCd => Some(Kind::Application),
            Integration::Keda => Some(Kind::ScaledObject),
            Integration::ArgoRollouts => None,
        }
    }

    pub fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = match self {
            Kind::Kustomization => {
                ("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "kustomizations")
            }
            Kind::HelmRelease => ("helm.toolkit.fluxcd.io", "v2", "HelmRelease", "helmreleases"),
            Kind::Application => ("argoproj.io", "v1alpha1", "Application", "applications"),
            Kind::ScaledObject => ("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
            Kind::ScaledJob => ("keda.sh", "v1alpha1", "ScaledJob", "scaledjobs"),
        };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }

    /// The CRDs that it needs, as `tests/integrations/get` names them.
    fn crds(self) -> &'static str {
        match self {
            Kind::Kustomization | Kind::HelmRelease => "flux",
            Kind::Application => "argo-cd",
            Kind::ScaledObject => "keda",
            Kind::ScaledJob => "keda-scaledjobs",
        }
    }

    fn spec(self) -> Value {
        match self {
            Kind::Kustomization => json!({
                "interval": "10m", "path": "./shop", "prune": false,
                "sourceRef": { "kind": "GitRepository", "name": "shop" },
            }),
            Kind::HelmRelease => json!({
                "interval": "10m", "chartRef": { "kind": "OCIRepository", "name": "shop" },
            }),
            Kind::Application => json!({
                "project": "default",
                "source": { "repoURL": "https://example.com/shop.git", "path": "shop" },
                "destination": { "server": "https://kubernetes.default.svc", "namespace": "shop" },
                "syncPolicy": { "automated": { "prune": true, "selfHeal": true } },
            }),
            Kind::ScaledObject => json!({
                "scaleTargetRef": { "name": "api" },
                "triggers": [{ "type": "cpu", "metricType": "Utilization", "metadata": { "value": "60" } }],
            }),
            Kind::ScaledJob => json!({
                "jobTargetRef": { "template": { "spec": { "containers": [] } } },
                "triggers": [{ "type": "kafka", "metadata": { "topic": "orders" } }],
            }),
        }
    }

    /// An object `web` of this kind, with more of its spec and metadata as given.
    pub async fn create(self, namespace: &Namespace, metadata: Value, spec: Value) -> Object {
        self.create_named(namespace, "web", metadata, spec).await
    }

    pub async fn create_named(
        self,
        namespace: &Namespace,
        name: &str,
        metadata: Value,
        spec: Value,
    ) -> Object {
        namespace.install_crds(self.crds());
        let resource = self.resource();
        let mut object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": { "name": name, "labels": { "app": "web" } }, "spec": self.spec(),
        });
        merge(&mut object["metadata"], metadata);
        merge(&mut object["spec"], spec);
        let api = namespace.objects(&resource);
        let object: DynamicObject = serde_json::from_value(object).expect("is an object");
        api.create(&PostParams::default(), &object).await.expect("is created");
        let object = Object { kind: self, name: name.to_owned(), api };
        if matches!(self, Kind::ScaledObject | Kind::ScaledJob) {
            // KEDA writes these as soon as it sees the object.
            let found = object.read().await;
            let is_paused =
                pause(&found).is_some_and(|it| it["status"]["conditions"][0]["status"] == "True");
            object.write_status(json!({ "conditions": [condition("Paused", is_paused)] })).await;
        }
        object
    }
}

/// One object, and the objects of its kind.
#[derive(Clone)]
pub struct Object {
    kind: Kind,
    name: String,
    api: Api<DynamicObject>,
}

impl Object {
    pub async fn read(&self) -> Value {
        json!(self.api.get(&self.name).await.expect("is there"))
    }

    /// Changes it, as someone else.
    pub async fn merge(&self, patch: Value) {
        let params = Default::default();
        self.api.patch(&self.name, &params, &Patch::Merge(patch)).await.expect("is patched");
    }

    /// Writes its status, as its controller does. An Application has no status subresource.
    pub async fn write_status(&self, status: Value) {
        let patch = json!({ "status": status });
        match self.kind {
            Kind::Application => self.merge(patch).await,
            _ => {
                let params = Default::default();
                let patch = Patch::Merge(patch);
                self.api.patch_status(&self.name, &params, &patch).await.expect("is written");
            }
        }
    }

    /// Plays its controller as long as the runtime lives.
    pub fn play(&self) {
        let object = self.clone();
        play_controller(self.api.clone(), self.name.clone(), move |found| {
            let object = object.clone();
            async move {
                let Some(patch) = reaction(object.kind, &found) else { return Ok(()) };
                let (params, patch) = (Default::default(), Patch::Merge(patch));
                let written = match object.kind {
                    Kind::Application => object.api.patch(&object.name, &params, &patch).await,
                    _ => object.api.patch_status(&object.name, &params, &patch).await,
                };
                written.map(drop)
            }
        });
    }
}

fn merge(object: &mut Value, more: Value) {
    object.as_object_mut().expect("is one").extend(more.as_object().expect("is one").clone());
}

/// A condition as all of these controllers write it.
pub fn condition(type_: &str, is_true: bool) -> Value {
    json!({
        "type": type_, "status": if is_true { "True" } else { "False" }, "reason": "Played",
        "message": "by the test", "lastTransitionTime": "2026-01-31T12:00:00Z",
    })
}

/// What the controller writes to this object, as if its work were done at once; none if there is nothing to do.
fn reaction(kind: Kind, object: &Value) -> Option<Value> {
    match kind {
        Kind::Kustomization | Kind::HelmRelease => reconciliation(object),
        Kind::Application => sync(object),
        Kind::ScaledObject | Kind::ScaledJob => pause(object),
    }
}

fn reconciliation(object: &Value) -> Option<Value> {
    let generation = &object["metadata"]["generation"];
    let requested = &object["metadata"]["annotations"]["reconcile.fluxcd.io/requestedAt"];
    let status = &object["status"];
    let is_handled = status["observedGeneration"] == *generation
        && status["lastHandledReconcileAt"] == *requested;
    if is_handled || object["spec"]["suspend"] == true {
        return None;
    }
    let mut ready = condition("Ready", true);
    ready["observedGeneration"] = generation.clone();
    Some(json!({ "status": {
        "observedGeneration": generation, "lastHandledReconcileAt": requested, "conditions": [ready],
    }}))
}

fn sync(object: &Value) -> Option<Value> {
    let operation = object.get("operation")?;
    let state = json!({
        "operation": operation, "phase": "Succeeded", "message": "successfully synced",
        "startedAt": "2026-01-31T12:00:00Z", "finishedAt": "2026-01-31T12:00:01Z",
    });
    Some(json!({ "operation": null, "status": { "operationState": state } }))
}

fn pause(object: &Value) -> Option<Value> {
    let annotations = &object["metadata"]["annotations"];
    let at = annotations["autoscaling.keda.sh/paused-replicas"].as_str();
    let is_paused = at.is_some() || annotations["autoscaling.keda.sh/paused"] == "true";
    let at: Option<i32> = at.and_then(|it| it.parse().ok());
    let paused = condition("Paused", is_paused);
    let status = &object["status"];
    let is_so = status["conditions"] == json!([paused]);
    (!is_so || status["pausedReplicaCount"] != json!(at))
        .then(|| json!({ "status": { "conditions": [paused], "pausedReplicaCount": at } }))
}

/// The object `web` for this action, and another one of a kind that needs another rule.
pub async fn prepare_broken(action: ActionKind, namespace: &Namespace) {
    let target = prepare_target(action, namespace).await;
    let (spec, _) = state_before(action);
    if target.kind == Kind::Kustomization {
        Kind::HelmRelease.create(namespace, json!({}), spec.clone()).await;
    }
    if target.kind == Kind::Application {
        let owner = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "all",
            "uid": "2f1b0c1e-0000-4000-8000-000000000000", "controller": true,
        });
        let owned = json!({ "ownerReferences": [owner] });
        Kind::Application.create_named(namespace, "owned", owned, spec).await;
    }
}

/// Parameters for that other object.
pub fn other_parameters(action: ActionKind, namespace: &str) -> Vec<Value> {
    match Kind::of(action) {
        Some(Kind::Kustomization) => {
            vec![json!({ "name": "web", "kind": "HelmRelease", "namespace": namespace })]
        }
        Some(Kind::Application) => vec![json!({ "name": "owned", "namespace": namespace })],
        _ => Vec::new(),
    }
}

/// The object `web` for this action, with its controller.
pub async fn prepare(action: ActionKind, namespace: &Namespace) {
    prepare_target(action, namespace).await.play();
}

async fn prepare_target(action: ActionKind, namespace: &Namespace) -> Object {
    let kind = Kind::of(action).expect("is known here");
    let (spec, annotations) = state_before(action);
    kind.create(namespace, json!({ "annotations": annotations }), spec).await
}

/// What a request of this action changes, in spec and annotations.
fn state_before(action: ActionKind) -> (Value, Value) {
    let automated = |enabled: Option<bool>| {
        let mut automated = json!({ "prune": true, "selfHeal": true });
        if let Some(enabled) = enabled {
            automated["enabled"] = enabled.into();
        }
        json!({ "syncPolicy": { "automated": automated } })
    };
    match action {
        ActionKind::ResumeFlux => (json!({ "suspend": true }), json!({})),
        ActionKind::ResumeArgoCdSync => (automated(Some(false)), json!({})),
        ActionKind::SuspendArgoCdSync => (automated(None), json!({})),
        ActionKind::ResumeKeda => (json!({}), json!({ "autoscaling.keda.sh/paused": "true" })),
        _ => (json!({}), json!({})),
    }
}

/// Reverts a request of this action, as someone else.
pub async fn undo(action: ActionKind, namespace: &Namespace) {
    let Some(kind) = Kind::of(action) else { return };
    let paused = |value: Value| json!({ "metadata": { "annotations": { "autoscaling.keda.sh/paused": value } } });
    let enabled =
        |value: Value| json!({ "spec": { "syncPolicy": { "automated": { "enabled": value } } } });
    let patch = match action {
        ActionKind::SuspendFlux => json!({ "spec": { "suspend": null } }),
        ActionKind::ResumeFlux => json!({ "spec": { "suspend": true } }),
        ActionKind::SuspendArgoCdSync => enabled(Value::Null),
        ActionKind::ResumeArgoCdSync => enabled(false.into()),
        ActionKind::SyncArgoCd => json!({ "operation": null }),
        ActionKind::PauseKeda => paused(Value::Null),
        ActionKind::ResumeKeda => paused("true".into()),
        _ => return,
    };
    let api = namespace.objects(&kind.resource());
    Object { kind, name: "web".to_owned(), api }.merge(patch).await;
}

/// How many requests have changed the object, where its generation does not show it: an Application's grows with its
/// status, too, and annotations are no generation.
pub fn requests_on(object: &DynamicObject) -> i64 {
    let annotations = object.metadata.annotations.as_ref();
    let listed = annotations.and_then(|all| all.get("action-executor.dev/requests"));
    listed.map_or(0, |listed| listed.split(' ').count() as i64)
}

/// Writes a heartbeat to the target's status, as its controller does.
pub async fn beat(action: ActionKind, api: Api<DynamicObject>, name: &str, value: &str) {
    let kind = Kind::of(action).expect("is known here");
    let mut beat = condition("Heartbeat", true);
    beat["message"] = value.into();
    let object = Object { kind, name: name.to_owned(), api };
    object.write_status(json!({ "conditions": [beat] })).await;
}
