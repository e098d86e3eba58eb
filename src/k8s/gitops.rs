//! Tools that reset an object to a repository or a chart, recognised by their labels and annotations. Pure.
//!
//! Argo CD: <https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/>; Flux:
//! <https://fluxcd.io/flux/components/kustomize/kustomizations/>; Helm:
//! <https://helm.sh/docs/chart_best_practices/labels/>.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;

/// The warning that such a tool may revert the change of this field; none without such a tool. A field that its
/// source leaves out stays as it is.
pub(crate) fn revert_warning(metadata: &ObjectMeta, field: &str) -> Option<String> {
    Some(format!("if the source sets {field}, it will not last: {}", gitops_owner(metadata)?))
}

/// The sentence that such a tool will revert a change to the object; none without such a tool. Helm 4 applies on the
/// server's side, and not by force (<https://helm.sh/docs/overview>).
pub(crate) fn gitops_owner(metadata: &ObjectMeta) -> Option<String> {
    let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
    let label = |name: &str| value(labels, name);
    let annotation = |name: &str| value(annotations, name);
    let argo = annotation("argocd.argoproj.io/tracking-id")
        .and_then(|id| id.split(':').next())
        .or_else(|| label("argocd.argoproj.io/instance"))
        .or_else(|| annotation("argocd.argoproj.io/instance"));
    let reverts =
        |owner: String| Some(format!("{owner} will revert it unless its source changes too"));
    if let Some(name) = argo {
        return reverts(format!("Argo CD (application '{name}')"));
    }
    if let Some(name) = label("kustomize.toolkit.fluxcd.io/name") {
        return reverts(format!("Flux (Kustomization '{name}')"));
    }
    if let Some(name) = label("helm.toolkit.fluxcd.io/name") {
        return reverts(format!("Flux (HelmRelease '{name}')"));
    }
    let helm = label("app.kubernetes.io/managed-by") == Some("Helm");
    let release = annotation("meta.helm.sh/release-name").filter(|_| helm)?;
    Some(format!(
        "the next upgrade of the Helm release '{release}' will revert it, or, with Helm 4, fail with a conflict \
         until it is run with --force-conflicts"
    ))
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
        }
    }

    #[test]
    fn a_field_lasts_if_the_source_leaves_it_out() {
        let labels = "labels: {kustomize.toolkit.fluxcd.io/name: apps}";
        let metadata = serde_yaml_ng::from_str(labels).expect("is metadata");
        let warning = revert_warning(&metadata, "spec.suspend").expect("is managed");
        assert!(warning.starts_with("if the source sets spec.suspend"), "{warning}");
        assert_eq!(revert_warning(&ObjectMeta::default(), "spec.suspend"), None);
    }

    #[test]
    fn an_object_without_such_a_tool_has_no_gitops_owner() {
        assert_eq!(describe("labels: {app.kubernetes.io/managed-by: kubectl}"), None);
        assert_eq!(describe("{}"), None);
    }
}
