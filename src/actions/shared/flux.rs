//! The rules of the actions on what Flux reconciles.

use crate::k8s::rbac::PolicyRule;

/// To suspend.
pub(crate) const KUSTOMIZATIONS: PolicyRule = PolicyRule {
    api_groups: &["kustomize.toolkit.fluxcd.io"],
    resources: &["kustomizations"],
    verbs: &["get", "patch"],
};
/// The same.
pub(crate) const HELM_RELEASES: PolicyRule = PolicyRule {
    api_groups: &["helm.toolkit.fluxcd.io"],
    resources: &["helmreleases"],
    verbs: &["get", "patch"],
};
/// To wait for a reconciliation.
pub(crate) const AWAITED_KUSTOMIZATIONS: PolicyRule =
    PolicyRule { verbs: &["get", "patch", "watch"], ..KUSTOMIZATIONS };
/// The same.
pub(crate) const AWAITED_HELM_RELEASES: PolicyRule =
    PolicyRule { verbs: &["get", "patch", "watch"], ..HELM_RELEASES };
