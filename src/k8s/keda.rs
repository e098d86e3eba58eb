//! How KEDA's ScaledObjects and ScaledJobs are paused, by annotations, and what their status says of it. Pure.
//!
//! Read in KEDA 2.20: `apis/keda/v1alpha1/scaledobject_types.go`, `apis/keda/v1alpha1/scaledjob_types.go` and
//! `controllers/keda/scaledobject_controller.go`. `paused` came with KEDA 2.11 for a ScaledJob and 2.12 for a
//! ScaledObject, `paused-replicas` with 2.7.

use kube::{api::DynamicObject, core::ObjectMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::k8s::{
    completion::deleted,
    conditions::Condition,
    integrations::{CustomKind, SCALED_JOB, SCALED_OBJECT},
    rollout::RolloutStatus,
};

/// Stops scaling at the replicas that there are.
pub(crate) const PAUSED: &str = "autoscaling.keda.sh/paused";

/// Scales to this number, and stops scaling there; only of a ScaledObject. It counts before [`PAUSED`].
pub(crate) const PAUSED_REPLICAS: &str = "autoscaling.keda.sh/paused-replicas";

/// These stop scaling in one direction only, and set the Paused condition, too.
const ONE_DIRECTION: [&str; 2] =
    ["autoscaling.keda.sh/paused-scale-in", "autoscaling.keda.sh/paused-scale-out"];

/// The kinds that KEDA scales by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KedaKind {
    /// ScaledObject
    #[default]
    ScaledObject,
    /// ScaledJob
    ScaledJob,
}

impl KedaKind {
    pub(crate) fn custom(self) -> &'static CustomKind {
        match self {
            KedaKind::ScaledObject => &SCALED_OBJECT,
            KedaKind::ScaledJob => &SCALED_JOB,
        }
    }
}

/// How scaling is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pause {
    /// Not at all.
    None,
    /// At the replicas that there are.
    AsItIs,
    /// At this number of replicas; none if KEDA cannot read it.
    At(Option<i32>),
}

impl Pause {
    /// How the annotations of an object of this kind pause it (`NeedToBePausedByAnnotation`).
    pub(crate) fn of(kind: KedaKind, metadata: &ObjectMeta) -> Self {
        let replicas = annotation(metadata, PAUSED_REPLICAS);
        match replicas.filter(|_| kind == KedaKind::ScaledObject) {
            Some(replicas) => Pause::At(replicas.parse().ok()),
            None if is_on(metadata, PAUSED) => Pause::AsItIs,
            None => Pause::None,
        }
    }
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether this annotation is set and not false. KEDA takes what is no boolean of Go (`strconv.ParseBool`) for true.
pub(crate) fn is_on(metadata: &ObjectMeta, key: &str) -> bool {
    let is_false = |value: &str| ["0", "f", "F", "false", "FALSE", "False"].contains(&value);
    annotation(metadata, key).is_some_and(|value| !is_false(value))
}

/// Whether scaling in one direction is paused, so that the Paused condition says nothing of the rest.
pub(crate) fn is_paused_in_one_direction(kind: KedaKind, metadata: &ObjectMeta) -> bool {
    kind == KedaKind::ScaledObject && ONE_DIRECTION.iter().any(|key| is_on(metadata, key))
}

/// The status of a pause, or of its end, on the object as it is now. KEDA sets the Paused condition before it stops
/// scaling, and `status.pausedReplicaCount` once it has scaled to that number (`handlePause`).
pub(crate) fn pause_status(
    object: Option<&DynamicObject>,
    kind: KedaKind,
    name: &str,
    uid: &str,
    wanted: Pause,
) -> RolloutStatus {
    let described = format!("{} '{name}'", kind.custom().kind);
    let Some(object) = object else { return deleted(kind.custom().kind, name) };
    if object.metadata.uid.as_deref() != Some(uid) {
        let why = format!("{described} was replaced by another object of its name");
        return RolloutStatus::Failed(why);
    }
    if Pause::of(kind, &object.metadata) != wanted {
        let why = format!("superseded: the annotations that pause {described} were changed since");
        return RolloutStatus::Failed(why);
    }
    let is_paused = Condition::of(&object.data, "Paused").is_some_and(|it| it.status == "True");
    let ready = Condition::of(&object.data, "Ready").filter(|it| it.status == "False");
    let reason = ready.map(|ready| format!("; KEDA says {}", ready.why())).unwrap_or_default();
    let count = object.data["status"]["pausedReplicaCount"].as_i64();
    match (wanted, is_paused) {
        (Pause::None, false) if reason.is_empty() => {
            RolloutStatus::Complete(format!("KEDA scales by {described} again"))
        }
        // KEDA writes Ready last: it may be of before the resumption.
        (Pause::None, false) => {
            RolloutStatus::Waiting(format!("{described} is not paused, but not ready{reason}"))
        }
        (Pause::None, true) => {
            RolloutStatus::Waiting(format!("KEDA has not resumed {described} yet{reason}"))
        }
        (Pause::AsItIs, true) if !reason.is_empty() => RolloutStatus::Waiting(format!(
            "KEDA says Paused of {described}, and may not have stopped scaling yet{reason}"
        )),
        (Pause::AsItIs, true) => RolloutStatus::Complete(format!("KEDA has paused {described}")),
        (Pause::At(replicas), true) if replicas.map(i64::from) == count && count.is_some() => {
            let number = count.unwrap_or_default();
            RolloutStatus::Complete(format!("KEDA has paused {described} at {number} replicas"))
        }
        (Pause::At(_), true) => RolloutStatus::Waiting(format!(
            "KEDA has paused {described}, and not scaled to the number yet{reason}"
        )),
        _ => RolloutStatus::Waiting(format!("KEDA has not paused {described} yet{reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(annotations: &str, status: &str) -> DynamicObject {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, uid: u1, annotations: {{{annotations}}}}}\nstatus: {{{status}}}"
        ))
        .expect("is an object")
    }

    #[test]
    fn the_annotations_pause_as_keda_reads_them() {
        let of = |kind, annotations: &str| Pause::of(kind, &object(annotations, "").metadata);
        let (paused, replicas) = (PAUSED, PAUSED_REPLICAS);
        for (annotations, expected) in [
            (String::new(), Pause::None),
            (format!("{paused}: 'true'"), Pause::AsItIs),
            (format!("{paused}: 'yes'"), Pause::AsItIs),
            (format!("{paused}: 'F'"), Pause::None),
            (format!("{replicas}: '3'"), Pause::At(Some(3))),
            (format!("{paused}: 'false', {replicas}: '0'"), Pause::At(Some(0))),
            (format!("{replicas}: three"), Pause::At(None)),
        ] {
            assert_eq!(of(KedaKind::ScaledObject, &annotations), expected, "{annotations}");
        }
        assert_eq!(of(KedaKind::ScaledJob, &format!("{replicas}: '3'")), Pause::None);
    }

    #[test]
    fn a_pause_is_complete_once_keda_says_so() {
        let paused = "conditions: [{type: Paused, status: 'True'}]";
        let not = "conditions: [{type: Paused, status: 'False'}]";
        let broken = "conditions: [{type: Paused, status: 'False'}, \
                      {type: Ready, status: 'False', reason: ScaledObjectCheckFailed, message: m}]";
        let (plain, at) = (format!("{PAUSED}: 'true'"), format!("{PAUSED_REPLICAS}: '3'"));
        for (annotations, status, wanted, expected) in [
            (plain.as_str(), not, Pause::AsItIs, "waiting"),
            (&plain, paused, Pause::AsItIs, "complete"),
            (&at, paused, Pause::At(Some(3)), "waiting"),
            (&at, &format!("{paused}, pausedReplicaCount: 3"), Pause::At(Some(3)), "complete"),
            (&at, &format!("{paused}, pausedReplicaCount: 2"), Pause::At(Some(3)), "waiting"),
            ("", paused, Pause::None, "waiting"),
            ("", not, Pause::None, "complete"),
            ("", broken, Pause::None, "waiting"),
            (&plain, &broken.replace("'False'}, ", "'True'}, "), Pause::AsItIs, "waiting"),
            ("", not, Pause::AsItIs, "failed"),
            (&plain, paused, Pause::None, "failed"),
        ] {
            let object = object(annotations, status);
            let found = pause_status(Some(&object), KedaKind::ScaledObject, "web", "u1", wanted);
            let found = match found {
                RolloutStatus::Waiting(_) => "waiting",
                RolloutStatus::Complete(_) => "complete",
                RolloutStatus::Failed(_) => "failed",
            };
            assert_eq!(found, expected, "{annotations} {status} {wanted:?}");
        }
    }
}
