//! What Flux's Kustomizations and HelmReleases say of their reconciliation. Pure.
//!
//! Read in kustomize-controller 1.9 (`internal/controller/kustomization_controller.go`), helm-controller 1.6
//! (`internal/controller/helmrelease_controller.go`) and Flux 2.9 (`cmd/flux/reconcile.go`, `cmd/flux/readiness.go`).

use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::k8s::{
    completion::deleted,
    conditions::{Condition, is_true},
    integrations::{CustomKind, HELM_RELEASE, KUSTOMIZATION},
    rollout::RolloutStatus,
};

/// The annotation by which a reconciliation is requested (`ReconcileRequestAnnotation` in `fluxcd/pkg`,
/// `apis/meta/annotations.go`). Any other value than the last one is a request; `flux reconcile` sets the time.
pub(crate) const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";

/// Reasons of `Ready: False` after which the controller retries by itself within seconds: a dependency or the source
/// is not ready, or a newer revision came.
const TEMPORARY: [&str; 3] = ["DependencyNotReady", "HealthCheckCanceled", "SourceNotReady"];

/// The kinds that Flux reconciles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FluxKind {
    /// Kustomization
    #[default]
    Kustomization,
    /// HelmRelease
    HelmRelease,
}

impl FluxKind {
    pub(crate) fn custom(self) -> &'static CustomKind {
        match self {
            FluxKind::Kustomization => &KUSTOMIZATION,
            FluxKind::HelmRelease => &HELM_RELEASE,
        }
    }
}

/// Which pass of the controller is awaited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pass {
    /// One that began after the annotation got this value.
    Requested(String),
    /// One over this generation of the object, or a later one.
    OfGeneration(i64),
}

pub(crate) fn is_suspended(object: &DynamicObject) -> bool {
    object.data["spec"]["suspend"] == true
}

/// The status of this pass on the object as it is now. The controllers write the conditions before they write which
/// request they have handled (`fluxcd/pkg`, `runtime/patch/patch.go`), so then the conditions are of that pass.
pub(crate) fn reconciliation_status(
    object: Option<&DynamicObject>,
    kind: FluxKind,
    name: &str,
    uid: &str,
    pass: &Pass,
) -> RolloutStatus {
    let kind = kind.custom().kind;
    let described = format!("{kind} '{name}'");
    let Some(object) = object else { return deleted(kind, name) };
    if object.metadata.uid.as_deref() != Some(uid) {
        let why = format!("{described} was replaced by another object of its name");
        return RolloutStatus::Failed(why);
    }
    if is_suspended(object) {
        let why = format!("{described} was suspended before its reconciliation was complete");
        return RolloutStatus::Failed(why);
    }
    let ready = Condition::of(&object.data, "Ready");
    match ready.filter(|ready| is_of(object, ready, pass)) {
        None => RolloutStatus::Waiting(format!("Flux has not reconciled {described} yet")),
        Some(ready) => judge(object, &described, &ready),
    }
}

/// Whether this condition is of this pass, or of a later one.
fn is_of(object: &DynamicObject, ready: &Condition, pass: &Pass) -> bool {
    match pass {
        Pass::Requested(value) => {
            let handled = object.data["status"]["lastHandledReconcileAt"].as_str();
            let annotations = object.metadata.annotations.as_ref();
            let requested = annotations.and_then(|all| all.get(REQUESTED_AT)).map(String::as_str);
            // A later request replaces ours, and its pass begins later.
            handled == Some(value) || (handled.is_some() && handled == requested)
        }
        // A HelmRelease's conditions may have no generation (`isObjectReady` in `cmd/flux/readiness.go`).
        Pass::OfGeneration(generation) => ready.is_of(*generation).unwrap_or_else(|| {
            let observed = object.data["status"]["observedGeneration"].as_i64();
            observed.is_some_and(|observed| observed >= *generation)
        }),
    }
}

/// Whether the controller retries by itself within seconds. The artifact of a source that was just renewed may be gone
/// (`ErrFileNotFound` in `fluxcd/pkg`, `http/fetch`, which both controllers retry).
fn is_temporary(ready: &Condition) -> bool {
    let is_gone = ready.reason == "ArtifactFailed" && ready.message.contains("not found, retrying");
    is_gone || TEMPORARY.contains(&ready.reason.as_str())
}

fn judge(object: &DynamicObject, described: &str, ready: &Condition) -> RolloutStatus {
    let why = ready.why();
    let is_running = is_true(&object.data, "Reconciling");
    match ready.status.as_str() {
        "False" if is_temporary(ready) => RolloutStatus::Waiting(why),
        "False" => RolloutStatus::Failed(format!("{described} is not ready: {why}")),
        "True" if is_running || is_stale(object) => {
            RolloutStatus::Waiting(format!("Flux reconciles {described} again: {why}"))
        }
        "True" => RolloutStatus::Complete(format!("{described} is reconciled: {}", ready.message)),
        _ => RolloutStatus::Waiting(why),
    }
}

/// Whether the controller has not observed the object's spec.
fn is_stale(object: &DynamicObject) -> bool {
    let observed = object.data["status"]["observedGeneration"].as_i64().unwrap_or(0);
    observed < object.metadata.generation.unwrap_or(0)
}

/// The warning that a reconciliation runs now, which a suspension does not end; none if none does.
pub(crate) fn running_warning(object: &DynamicObject) -> Option<String> {
    is_true(&object.data, "Reconciling").then(|| {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        format!("a reconciliation of '{name}' is running, and continues until it ends")
    })
}

/// Whether this Kustomization deletes what its source no longer has.
pub(crate) fn prunes(object: &DynamicObject) -> bool {
    object.data["spec"]["prune"] == true
}

/// Whether the object is in the source of this Kustomization itself, for example after `flux bootstrap`.
pub(crate) fn manages_itself(object: &DynamicObject) -> bool {
    let metadata = &object.metadata;
    let label = |key: &str| metadata.labels.as_ref()?.get(key);
    let is =
        |key: &str, value: &Option<String>| label(key).is_some() && label(key) == value.as_ref();
    object.types.as_ref().is_none_or(|types| types.kind == KUSTOMIZATION.kind)
        && is("kustomize.toolkit.fluxcd.io/name", &metadata.name)
        && is("kustomize.toolkit.fluxcd.io/namespace", &metadata.namespace)
}

/// The value of the annotation, if there is one.
pub(crate) fn requested_at(object: &DynamicObject) -> Option<&str> {
    object.metadata.annotations.as_ref()?.get(REQUESTED_AT).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(metadata: &str, spec: &str, status: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\n\
             metadata: {{name: apps, namespace: shop, uid: u1, generation: 3{metadata}}}\n\
             spec: {{interval: 10m{spec}}}\nstatus: {{observedGeneration: 3{status}}}"
        ))
        .expect("is an object")
    }

    fn requested(status: &str) -> RolloutStatus {
        let annotation = ", annotations: {reconcile.fluxcd.io/requestedAt: t2}";
        let pass = Pass::Requested("t2".to_owned());
        let object = object(annotation, "", status);
        reconciliation_status(Some(&object), FluxKind::Kustomization, "apps", "u1", &pass)
    }

    fn ready(status: &str, reason: &str) -> String {
        format!(", conditions: [{{type: Ready, status: '{status}', reason: {reason}, message: m}}]")
    }

    #[test]
    fn a_request_is_judged_once_it_is_handled() {
        let handled = ", lastHandledReconcileAt: t2";
        for (status, expected) in [
            (ready("True", "ReconciliationSucceeded"), "waiting"),
            (format!(", lastHandledReconcileAt: t1{}", ready("True", "Ok")), "waiting"),
            (format!("{handled}{}", ready("True", "Ok")), "complete"),
            (format!("{handled}{}", ready("False", "BuildFailed")), "failed"),
            (format!("{handled}{}", ready("False", "DependencyNotReady")), "waiting"),
            (format!("{handled}{}", ready("False", "SourceNotReady")), "waiting"),
            (
                format!(
                    "{handled}{}",
                    ready("False", "ArtifactFailed").replace(": m}", ": 'x not found, retrying'}")
                ),
                "waiting",
            ),
            (format!("{handled}{}", ready("Unknown", "Progressing")), "waiting"),
        ] {
            let found = match requested(&status) {
                RolloutStatus::Waiting(_) => "waiting",
                RolloutStatus::Complete(_) => "complete",
                RolloutStatus::Failed(why) => {
                    assert_eq!(why, "Kustomization 'apps' is not ready: BuildFailed: m");
                    "failed"
                }
            };
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn a_later_request_that_replaced_ours_covers_it() {
        let status = format!(", lastHandledReconcileAt: t3{}", ready("True", "Ok"));
        let object = object(", annotations: {reconcile.fluxcd.io/requestedAt: t3}", "", &status);
        let pass = Pass::Requested("t2".to_owned());
        let kind = FluxKind::Kustomization;
        let status = reconciliation_status(Some(&object), kind, "apps", "u1", &pass);
        assert!(matches!(status, RolloutStatus::Complete(_)), "{status:?}");
    }

    #[test]
    fn a_resumed_object_is_judged_once_its_generation_is_reconciled() {
        let of = |conditions: &str, observed: i64| {
            let object: DynamicObject = serde_yaml_ng::from_str(&format!(
                "metadata: {{name: apps, uid: u1, generation: 3}}\n\
                 status: {{observedGeneration: {observed}, conditions: [{conditions}]}}"
            ))
            .expect("is an object");
            let kind = FluxKind::HelmRelease;
            reconciliation_status(Some(&object), kind, "apps", "u1", &Pass::OfGeneration(3))
        };
        // A failure does not raise the object's observed generation, but that of the condition.
        let failed = "{type: Ready, status: 'False', reason: BuildFailed, observedGeneration: 3}";
        assert!(matches!(of(failed, 2), RolloutStatus::Failed(_)));
        let old = "{type: Ready, status: 'False', reason: BuildFailed, observedGeneration: 2}";
        assert!(matches!(of(old, 2), RolloutStatus::Waiting(_)));
        let without = "{type: Ready, status: 'True'}";
        assert!(matches!(of(without, 2), RolloutStatus::Waiting(_)));
        assert!(matches!(of(without, 3), RolloutStatus::Complete(_)));
        let again = format!("{without}, {{type: Reconciling, status: 'True'}}");
        assert!(matches!(of(&again, 3), RolloutStatus::Waiting(_)));
    }

    #[test]
    fn a_reconciliation_does_not_come_if_the_object_is_gone_replaced_or_suspended() {
        let pass = Pass::OfGeneration(3);
        let suspended = object("", ", suspend: true", "");
        for (object, uid, expected) in [
            (None, "u1", "was deleted"),
            (Some(&suspended), "u2", "was replaced"),
            (Some(&suspended), "u1", "was suspended"),
        ] {
            let kind = FluxKind::Kustomization;
            let status = reconciliation_status(object, kind, "apps", uid, &pass);
            assert!(matches!(&status, RolloutStatus::Failed(why) if why.contains(expected)));
        }
    }

    #[test]
    fn a_kustomization_may_manage_itself() {
        let label = |name: &str| {
            format!(
                ", labels: {{kustomize.toolkit.fluxcd.io/name: {name}, \
                 kustomize.toolkit.fluxcd.io/namespace: shop}}"
            )
        };
        assert!(manages_itself(&object(&label("apps"), "", "")));
        assert!(!manages_itself(&object(&label("other"), "", "")));
        assert!(!manages_itself(&object("", "", "")));
    }
}
