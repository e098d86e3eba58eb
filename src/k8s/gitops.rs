//! What resets an object: its controlling owner, and tools that reset it to a repository or a chart, recognised by
//! their labels and annotations. Pure.
//!
//! Argo CD: <https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/>; Flux:
//! <https://fluxcd.io/flux/components/kustomize/kustomizations/>; Helm:
//! <https://helm.sh/docs/chart_best_practices/labels/>.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;

use crate::k8s::{pods, replacement::describe};

/// The warnings that the owner of the object, or such a tool, may revert the change of this field.
pub(crate) fn undo_warnings(metadata: &ObjectMeta, field: &str) -> Vec<String> {
    let owner = pods::controller_of(metadata)
        .map(|owner| format!("{} controls it and may change {field} back", describe(owner)));
    owner.into_iter().chain(revert_warning(metadata, field)).collect()
}

/// The labels and annotations by which these tools know an object as theirs. Argo CD deletes one that has them and is
/// not in its source.
const TRACKING_MARKS: [&str; 8] = [
    "argocd.argoproj.io/instance",
    "argocd.argoproj.io/tracking-id",
    "helm.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/namespace",
    "kustomize.toolkit.fluxcd.io/name",
    "kustomize.toolkit.fluxcd.io/namespace",
    "meta.helm.sh/release-name",
    "meta.helm.sh/release-namespace",
];

/// Whether this label or annotation marks an object as one of such a tool.
pub(crate) fn is_tracking_mark(key: &str) -> bool {
    TRACKING_MARKS.contains(&key)
}

/// The warning that such a tool may revert the change of this field; none without such a tool. A field that its
/// source leaves out stays as it is.
pub(crate) fn revert_warning(metadata: &ObjectMeta, field: &str) -> Option<String> {
    Some(format!("if the source sets {field}, it will not last: {}", gitops_owner(metadata)?))
}

/// The sentence that such a tool will revert a change to the object; none without such a tool. Helm 4 applies on the
/// server's side, and not by force (<https://helm.sh/docs/overview>).
fn gitops_owner(metadata: &ObjectMeta) -> Option<String> {
    Some(match owner(metadata)? {
        Owner::Reconciler(owner) => {
            format!("{owner} will revert it unless its source changes too")
        }
        Owner::Helm(release) => format!(
            "the next upgrade of the Helm release '{release}' will revert it, or, with Helm 4, fail with a conflict \
             until it is run with --force-conflicts"
        ),
    })
}

/// The sentence that such a tool will create the object again once it is deleted; none without such a tool.
pub(crate) fn recreating_owner(metadata: &ObjectMeta) -> Option<String> {
    Some(match owner(metadata)? {
        Owner::Reconciler(owner) => {
            format!("{owner} will create it again unless its source changes too")
        }
        Owner::Helm(release) => {
            format!("the next upgrade of the Helm release '{release}' will create it again")
        }
    })
}

/// The sentence that such a tool resets the object; none without such a tool.
pub(crate) fn source(metadata: &ObjectMeta) -> Option<String> {
    Some(match owner(metadata)? {
        Owner::Reconciler(owner) => format!("{owner} resets it to its source"),
        Owner::Helm(release) => format!("the Helm release '{release}' resets it at each upgrade"),
    })
}

/// A tool that resets an object.
enum Owner {
    /// It does so by itself. With its name.
    Reconciler(String),
    /// The release, which an upgrade resets.
    Helm(String),
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
    let label = |name: &str| value(labels, name);
    let annotation = |name: &str| value(annotations, name);
    let argo = annotation("argocd.argoproj.io/tracking-id")
        .and_then(|id| id.split(':').next())
        .or_else(|| label("argocd.argoproj.io/instance"))
        .or_else(|| annotation("argocd.argoproj.io/instance"));
    if let Some(name) = argo {
        return Some(Owner::Reconciler(format!("Argo CD (application '{name}')")));
    }
    if let Some(name) = label("kustomize.toolkit.fluxcd.io/name") {
        return Some(Owner::Reconciler(format!("Flux (Kustomization '{name}')")));
    }
    if let Some(name) = label("helm.toolkit.fluxcd.io/name") {
        return Some(Owner::Reconciler(format!("Flux (HelmRelease '{name}')")));
    }
    let helm = label("app.kubernetes.io/managed-by") == Some("Helm");
    let release = annotation("meta.helm.sh/release-name").filter(|_| helm)?;
    Some(Owner::Helm(release.to_owned()))
}

fn value<'a>(all: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    all?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(yaml: &str) -> Option<String> {
        gitops_owner(&serde_yaml_ng::from_str(yaml).expect("is metadata"))
    }

    #[test]
    fn the_tool_that_will_revert_a_change_is_named() {
        for (metadata, owner) in [
            (
                "annotations: {argocd.argoproj.io/tracking-id: 'shop:apps/Deployment:shop/web'}",
                "Argo CD (application 'shop')",
            ),
            ("labels: {argocd.argoproj.io/instance: shop}", "Argo CD (application 'shop')"),
            ("labels: {kustomize.toolkit.fluxcd.io/name: apps}", "Flux (Kustomization 'apps')"),
            (
                "labels: {helm.toolkit.fluxcd.io/name: web, app.kubernetes.io/managed-by: Helm}",
                "Flux (HelmRelease 'web')",
            ),
            (
                "{labels: {app.kubernetes.io/managed-by: Helm}, \
                 annotations: {meta.helm.sh/release-name: web}}",
                "the Helm release 'web'",
            ),
        ] {
            let text = describe(metadata).expect("is managed");
            assert!(text.contains(owner) && text.contains("will revert it"), "{text}");
            let metadata = serde_yaml_ng::from_str(metadata).expect("is metadata");
            let text = recreating_owner(&metadata).expect("is managed");
            assert!(text.contains(owner) && text.contains("will create it again"), "{text}");
        }
    }

    #[test]
    fn a_field_lasts_if_the_source_leaves_it_out() {
        let labels = "labels: {kustomize.toolkit.fluxcd.io/name: apps}";
        let metadata = serde_yaml_ng::from_str(labels).expect("is metadata");
        let warning = revert_warning(&metadata, "spec.suspend").expect("is managed");
        assert!(warning.starts_with("if the source sets spec.suspend"), "{warning}");
        assert_eq!(undo_warnings(&ObjectMeta::default(), "spec.suspend"), [""; 0]);
    }

    #[test]
    fn the_controlling_owner_is_named_and_another_owner_is_not() {
        let warnings = |controller: bool| {
            let yaml = format!(
                "ownerReferences: [{{apiVersion: example.com/v1, kind: Kafka, name: orders, uid: u1, controller: \
                 {controller}}}]"
            );
            undo_warnings(&serde_yaml_ng::from_str(&yaml).expect("is metadata"), "spec.replicas")
        };
        assert_eq!(
            warnings(true),
            ["Kafka 'orders' controls it and may change spec.replicas back"]
        );
        assert_eq!(warnings(false), [""; 0]);
    }

    #[test]
    fn an_object_without_such_a_tool_has_no_gitops_owner() {
        assert_eq!(describe("labels: {app.kubernetes.io/managed-by: kubectl}"), None);
        assert_eq!(describe("{}"), None);
    }
}
