//! Who else decides what an object looks like: tools that bring it back to what a repository or a chart
//! says, known by the labels and annotations that they leave.
//!
//! Argo CD: <https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/>; Flux:
//! <https://fluxcd.io/flux/components/kustomize/kustomizations/>; Helm:
//! <https://helm.sh/docs/chart_best_practices/labels/>.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;

/// What such a tool will make of a change to the object, in a sentence; none if there is no such tool.
#[must_use]
pub fn gitops_owner(metadata: &ObjectMeta) -> Option<String> {
    let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
    let label = |name: &str| value(labels, name);
    let annotation = |name: &str| value(annotations, name);
    let argo = annotation("argocd.argoproj.io/tracking-id")
        .and_then(|id| id.split(':').next())
        .or_else(|| label("argocd.argoproj.io/instance"))
        .or_else(|| annotation("argocd.argoproj.io/instance"));
    let back = |who: String| Some(format!("{who} will put it back unless its source changes too"));
    if let Some(name) = argo {
        return back(format!("Argo CD (application '{name}')"));
    }
    if let Some(name) = label("kustomize.toolkit.fluxcd.io/name") {
        return back(format!("Flux (Kustomization '{name}')"));
    }
    if let Some(name) = label("helm.toolkit.fluxcd.io/name") {
        return back(format!("Flux (HelmRelease '{name}')"));
    }
    let helm = label("app.kubernetes.io/managed-by") == Some("Helm");
    let release = annotation("meta.helm.sh/release-name").filter(|_| helm)?;
    Some(format!("the next upgrade of the Helm release '{release}' will put it back"))
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
    fn names_the_tool_that_will_put_it_back() {
        for (metadata, who) in [
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
            let told = describe(metadata).expect("is managed");
            assert!(told.contains(who) && told.contains("will put it back"), "{told}");
        }
    }

    #[test]
    fn has_nothing_to_say_of_an_object_of_nobodys() {
        assert_eq!(describe("labels: {app.kubernetes.io/managed-by: kubectl}"), None);
        assert_eq!(describe("{}"), None);
    }
}
