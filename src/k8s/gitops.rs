//! Tools that reset an object to a repository or a chart, recognised by their labels and annotations. Pure.
//!
//! Argo CD: <https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/>; Flux:
//! <https://fluxcd.io/flux/components/kustomize/kustomizations/>; Helm:
//! <https://helm.sh/docs/chart_best_practices/labels/>.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;

/// The sentence that such a tool will revert a change to the object; none without such a tool.
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
    Some(format!("the next upgrade of the Helm release '{release}' will revert it"))
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
    fn an_object_without_such_a_tool_has_no_gitops_owner() {
        assert_eq!(describe("labels: {app.kubernetes.io/managed-by: kubectl}"), None);
        assert_eq!(describe("{}"), None);
    }
}
