//! Volume claims: how large they are, and how far their expansion is. Pure.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimStatus as ClaimStatus, Pod,
};
use serde_json::Value;

use crate::{
    contract::quantity::Quantity,
    k8s::{pods, rollout::RolloutStatus},
};

/// The size that a PVC requests.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    Quantity::read(requested_text(claim).as_str()?)
}

/// The same as it is stored; null if there is none.
pub(crate) fn requested_text(claim: &PersistentVolumeClaim) -> Value {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.and_then(|it| it.get("storage")).map_or(Value::Null, |size| size.0.clone().into())
}

/// The size that it has.
fn capacity(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    Quantity::read(&claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0)
}

/// Whether it has a volume.
pub(crate) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// The pods of this list that mount it.
pub(crate) fn mounted_by<'a>(name: &str, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let mounts = |pod: &&Pod| pods::pvcs(pod.spec.as_ref()).any(|claim| claim == name);
    pods.iter().filter(mounts).filter(|pod| !pods::has_finished(pod)).collect()
}

/// How far the PVC that has the name now is expanded
/// (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/#expanding-persistent-volumes-claims>).
pub(crate) fn expansion_status(
    claim: Option<&PersistentVolumeClaim>,
    name: &str,
    uid: &str,
    size: Quantity,
) -> RolloutStatus {
    let object = format!("PersistentVolumeClaim '{name}'");
    let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) else {
        return RolloutStatus::Failed(format!("{object} was deleted"));
    };
    if capacity(claim).is_some_and(|now| now >= size) {
        return RolloutStatus::Complete(format!("{object} has {size}"));
    }
    if let Some(requested) = requested(claim).filter(|requested| *requested < size) {
        return RolloutStatus::Failed(format!(
            "superseded: {object} requests {requested} in the meantime"
        ));
    }
    let status = claim.status.as_ref();
    let of_storage =
        |status: &ClaimStatus| status.allocated_resource_statuses.as_ref()?.get("storage").cloned();
    let step = status.and_then(of_storage).unwrap_or_default();
    let conditions = status.iter().flat_map(|status| status.conditions.iter().flatten());
    let active: Vec<_> = conditions.filter(|it| it.status == "True").collect();
    let failure = active.iter().find(|it| it.type_.ends_with("ResizeError"));
    let why = failure.and_then(|it| it.message.as_deref()).unwrap_or("the driver gives no reason");
    if step.ends_with("Infeasible") {
        return RolloutStatus::Failed(format!("{object} cannot be expanded to {size}: {why}"));
    }
    if failure.is_some() {
        return RolloutStatus::Waiting(format!("{object} is not expanded yet: {why}"));
    }
    if step == "NodeResizePending" || active.iter().any(|it| it.type_ == "FileSystemResizePending")
    {
        return RolloutStatus::Waiting(format!(
            "the volume of {object} is larger, its file system is not: that follows once a pod mounts it; if a running \
             pod does and nothing happens, restart that pod"
        ));
    }
    RolloutStatus::Waiting(format!("the volume of {object} is not larger yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(requested: &str, status: &str) -> PersistentVolumeClaim {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: data, uid: u1}}\nspec: {{resources: {{requests: {{storage: {requested}}}}}}}\n\
             status: {{phase: Bound{status}}}"
        ))
        .expect("is a PVC")
    }

    fn status(claim: &PersistentVolumeClaim) -> RolloutStatus {
        let size = Quantity::read("20Gi").expect("is one");
        expansion_status(Some(claim), "data", "u1", size)
    }

    #[test]
    fn an_expansion_is_complete_once_the_claim_has_the_size() {
        for (capacity, is_complete) in
            [("10Gi", false), ("20Gi", true), ("20480Mi", true), ("21Gi", true)]
        {
            let found = status(&claim("20Gi", &format!(", capacity: {{storage: {capacity}}}")));
            assert_eq!(
                matches!(found, RolloutStatus::Complete(_)),
                is_complete,
                "{capacity}: {found:?}"
            );
        }
    }

    #[test]
    fn the_reason_of_a_blocked_expansion_is_reported() {
        let condition = |kind: &str| {
            format!(
                ", capacity: {{storage: 10Gi}}, conditions: [{{type: {kind}, status: 'True', message: because}}]"
            )
        };
        for (more, expected) in [
            (", capacity: {storage: 10Gi}".to_owned(), "is not larger yet"),
            (condition("FileSystemResizePending"), "restart that pod"),
            (condition("ControllerResizeError"), "is not expanded yet: because"),
            (
                ", allocatedResourceStatuses: {storage: NodeResizePending}".to_owned(),
                "once a pod mounts it",
            ),
        ] {
            let RolloutStatus::Waiting(why) = status(&claim("20Gi", &more)) else {
                panic!("{more}")
            };
            assert!(why.contains(expected), "{why}");
        }
        let never = format!(
            "{}, allocatedResourceStatuses: {{storage: ControllerResizeInfeasible}}",
            condition("ControllerResizeError")
        );
        let RolloutStatus::Failed(why) = status(&claim("20Gi", &never)) else {
            panic!("has failed")
        };
        assert!(why.contains("cannot be expanded to 20Gi: because"), "{why}");
    }

    #[test]
    fn a_smaller_request_and_another_claim_end_the_wait() {
        let smaller = status(&claim("15Gi", ", capacity: {storage: 10Gi}"));
        assert!(matches!(smaller, RolloutStatus::Failed(why) if why.starts_with("superseded")));
        let size = Quantity::read("20Gi").expect("is one");
        for gone in [None, Some(&claim("20Gi", ""))] {
            let found = expansion_status(gone, "data", "u2", size);
            assert!(matches!(found, RolloutStatus::Failed(_)), "{found:?}");
        }
    }
}
