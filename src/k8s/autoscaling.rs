//! Which HorizontalPodAutoscaler, or KEDA behind it, sets the replicas of a workload. Pure.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;

use crate::contract::response::Target;

/// The label that KEDA sets on the autoscalers that it makes.
const SCALED_OBJECT_LABEL: &str = "scaledobject.keda.sh/name";

/// The autoscaler whose `scaleTargetRef` is this object.
pub(crate) fn autoscaler_of<'a>(
    autoscalers: &'a [HorizontalPodAutoscaler],
    target: &Target,
) -> Option<&'a HorizontalPodAutoscaler> {
    autoscalers.iter().find(|autoscaler| {
        let Some(spec) = &autoscaler.spec else { return false };
        let reference = &spec.scale_target_ref;
        // The reference may have another version of the group, or none.
        let version = reference.api_version.as_deref().unwrap_or(&target.api_version);
        reference.kind == target.kind
            && reference.name == target.name
            && group(version) == group(&target.api_version)
    })
}

/// KEDA's ScaledObject to which an autoscaler belongs.
pub(crate) fn scaled_object_of(autoscaler: &HorizontalPodAutoscaler) -> Option<&str> {
    let metadata = &autoscaler.metadata;
    let mut owners = metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.kind == "ScaledObject").map(|owner| &owner.name);
    let label = || metadata.labels.as_ref()?.get(SCALED_OBJECT_LABEL);
    owner.or_else(label).map(String::as_str)
}

/// The numbers between which an autoscaler sets the replicas.
pub(crate) fn bounds(autoscaler: &HorizontalPodAutoscaler) -> [i32; 2] {
    let spec = autoscaler.spec.as_ref();
    let min = spec.and_then(|spec| spec.min_replicas).unwrap_or(1);
    [min, spec.map_or(min, |spec| spec.max_replicas)]
}

/// Whether it leaves a workload alone that somebody else has scaled to 0 (`ScalingDisabled`). One that may scale to 0
/// itself, or has, does not, and KEDA has rules of its own. See `reconcileAutoscaler` in
/// `pkg/controller/podautoscaler/horizontal.go`.
pub(crate) fn is_disabled_at_zero(autoscaler: &HorizontalPodAutoscaler) -> bool {
    let conditions = autoscaler.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut scaled_to_zero =
        conditions.filter(|it| it.type_ == "ScaledToZero" && it.status == "True");
    let [min, _] = bounds(autoscaler);
    min > 0 && scaled_to_zero.next().is_none() && scaled_object_of(autoscaler).is_none()
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::workload::WorkloadKind;

    fn autoscaler(metadata: &str, target: &str) -> HorizontalPodAutoscaler {
        let text = format!(
            "metadata: {{name: web-hpa{metadata}}}\n\
             spec: {{maxReplicas: 5, scaleTargetRef: {{{target}}}}}"
        );
        serde_yaml_ng::from_str(&text).expect("is an autoscaler")
    }

    fn is_of_web(target: &str) -> bool {
        let web = WorkloadKind::Deployment.target("shop", "web");
        autoscaler_of(&[autoscaler("", target)], &web).is_some()
    }

    #[test]
    fn an_autoscaler_matches_its_target_by_group_kind_and_name() {
        assert!(is_of_web("apiVersion: apps/v1, kind: Deployment, name: web"));
        assert!(is_of_web("apiVersion: apps/v1beta2, kind: Deployment, name: web"));
        assert!(is_of_web("kind: Deployment, name: web"));
        assert!(!is_of_web("apiVersion: apps/v1, kind: Deployment, name: api"));
        assert!(!is_of_web("apiVersion: apps/v1, kind: StatefulSet, name: web"));
        assert!(!is_of_web("apiVersion: example.com/v1, kind: Deployment, name: web"));
    }

    #[test]
    fn a_scaled_object_is_the_owner_or_named_in_the_label() {
        let target = "kind: Deployment, name: web";
        let owned = ", ownerReferences: [{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, \
                     name: web-so, uid: s}]";
        assert_eq!(scaled_object_of(&autoscaler(owned, target)), Some("web-so"));
        let labelled = ", labels: {scaledobject.keda.sh/name: web-so}";
        assert_eq!(scaled_object_of(&autoscaler(labelled, target)), Some("web-so"));
        assert_eq!(scaled_object_of(&autoscaler("", target)), None);
    }
}
