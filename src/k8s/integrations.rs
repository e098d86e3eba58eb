//! The operators whose objects this program acts on, beside those of Kubernetes itself: which kinds, at which version,
//! and what installs them. Pure.
//!
//! Nothing is discovered: each kind has one version, whose fields its actions know. A cluster that does not serve it
//! is refused. Objects are read and patched as JSON, so fields that this program does not know survive.

use kube::api::ApiResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::{
    error::{ActionError, Code},
    response::Target,
};

/// An operator with kinds of its own. Its actions are off unless the policy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Integration {
    /// Argo Rollouts
    ArgoRollouts,
    /// Argo CD
    ArgoCd,
    /// Flux
    Flux,
    /// KEDA
    Keda,
}

impl Integration {
    /// Every integration.
    pub const ALL: [Integration; 4] =
        [Integration::ArgoRollouts, Integration::ArgoCd, Integration::Flux, Integration::Keda];

    /// As the policy names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Integration::ArgoRollouts => "argo_rollouts",
            Integration::ArgoCd => "argo_cd",
            Integration::Flux => "flux",
            Integration::Keda => "keda",
        }
    }

    /// As its project writes it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Integration::ArgoRollouts => "Argo Rollouts",
            Integration::ArgoCd => "Argo CD",
            Integration::Flux => "Flux",
            Integration::Keda => "KEDA",
        }
    }
}

/// A kind of an operator, at the version that this program knows.
#[derive(Debug)]
pub(crate) struct CustomKind {
    pub integration: Integration,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    /// The first release whose CRD serves this version, for example `Flux 2.3`.
    pub since: &'static str,
}

/// <https://github.com/argoproj/argo-rollouts>, `pkg/apis/rollouts/v1alpha1`.
pub(crate) static ROLLOUT: CustomKind = CustomKind {
    integration: Integration::ArgoRollouts,
    group: "argoproj.io",
    version: "v1alpha1",
    kind: "Rollout",
    plural: "rollouts",
    since: "Argo Rollouts 1.0",
};

/// <https://github.com/argoproj/argo-cd>, `pkg/apis/application/v1alpha1`.
pub(crate) static APPLICATION: CustomKind = CustomKind {
    integration: Integration::ArgoCd,
    group: "argoproj.io",
    version: "v1alpha1",
    kind: "Application",
    plural: "applications",
    since: "Argo CD 1.0",
};

/// The same.
pub(crate) static APPLICATION_SET: CustomKind = CustomKind {
    integration: Integration::ArgoCd,
    group: "argoproj.io",
    version: "v1alpha1",
    kind: "ApplicationSet",
    plural: "applicationsets",
    since: "Argo CD 2.3",
};

/// <https://github.com/fluxcd/kustomize-controller>, `api/v1`.
pub(crate) static KUSTOMIZATION: CustomKind = CustomKind {
    integration: Integration::Flux,
    group: "kustomize.toolkit.fluxcd.io",
    version: "v1",
    kind: "Kustomization",
    plural: "kustomizations",
    since: "Flux 2.0",
};

/// <https://github.com/fluxcd/helm-controller>, `api/v2`.
pub(crate) static HELM_RELEASE: CustomKind = CustomKind {
    integration: Integration::Flux,
    group: "helm.toolkit.fluxcd.io",
    version: "v2",
    kind: "HelmRelease",
    plural: "helmreleases",
    since: "Flux 2.3",
};

/// <https://github.com/kedacore/keda>, `apis/keda/v1alpha1`.
pub(crate) static SCALED_OBJECT: CustomKind = CustomKind {
    integration: Integration::Keda,
    group: "keda.sh",
    version: "v1alpha1",
    kind: "ScaledObject",
    plural: "scaledobjects",
    since: "KEDA 2.0",
};

/// The same.
pub(crate) static SCALED_JOB: CustomKind = CustomKind {
    integration: Integration::Keda,
    group: "keda.sh",
    version: "v1alpha1",
    kind: "ScaledJob",
    plural: "scaledjobs",
    since: "KEDA 2.0",
};

/// What the API server serves of a kind's group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServedVersions {
    /// The versions of the group; none if it has no such group.
    pub versions: Vec<String>,
    /// The plurals at the kind's own version; empty if that is not served.
    pub plurals: Vec<String>,
}

impl CustomKind {
    pub(crate) fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// Group and version.
    pub(crate) fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    pub(crate) fn target(&self, namespace: &str, name: &str) -> Target {
        Target::named(&self.api_version(), self.kind, namespace, name)
    }

    /// The refusal because the API server does not serve this kind, from what it serves; none if it does.
    pub(crate) fn refuse_unserved(&self, served: &ServedVersions) -> Option<ActionError> {
        if served.plurals.iter().any(|plural| plural == self.plural) {
            return None;
        }
        let crd = format!("{}.{}", self.plural, self.group);
        let others: Vec<_> =
            served.versions.iter().filter(|it| *it != self.version).map(String::as_str).collect();
        let has_version = served.versions.iter().any(|it| it == self.version);
        let (detail, hint) = match others.is_empty() || has_version {
            true => (
                format!(
                    "the cluster does not serve {} {}: its CustomResourceDefinition {crd} is not installed",
                    self.api_version(),
                    self.kind
                ),
                format!(
                    "install {} or newer, or remove `{}` from the policy's `integrations`",
                    self.since,
                    self.integration.name()
                ),
            ),
            false => (
                format!(
                    "the cluster does not serve {} {}: of {} it serves only {}",
                    self.api_version(),
                    self.kind,
                    self.group,
                    others.join(", ")
                ),
                format!(
                    "install {} or newer, whose CustomResourceDefinition {crd} has {}",
                    self.since, self.version
                ),
            ),
        };
        Some(ActionError::new(Code::KindNotInstalled, detail).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(versions: &[&str], plurals: &[&str]) -> Option<ActionError> {
        let owned = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect();
        HELM_RELEASE
            .refuse_unserved(&ServedVersions { versions: owned(versions), plurals: owned(plurals) })
    }

    #[test]
    fn a_kind_that_is_not_installed_is_refused_with_its_crd_and_what_installs_it() {
        for (versions, plurals) in [(&[][..], &[][..]), (&["v2"], &["others"])] {
            let error = refusal(versions, plurals).expect("is refused");
            assert_eq!(error.code, Code::KindNotInstalled);
            assert!(error.detail.contains("helmreleases.helm.toolkit.fluxcd.io is not installed"));
            let hint = error.hint.expect("has one");
            assert!(hint.contains("Flux 2.3") && hint.contains("`flux`"), "{hint}");
        }
    }

    #[test]
    fn an_older_version_is_named_with_what_has_the_newer_one() {
        let error = refusal(&["v2beta1", "v2beta2"], &[]).expect("is refused");
        assert!(error.detail.contains("serves only v2beta1, v2beta2"), "{}", error.detail);
        assert!(error.hint.expect("has one").contains("has v2"));
    }

    #[test]
    fn a_kind_that_is_served_is_not_refused() {
        assert_eq!(refusal(&["v2", "v2beta2"], &["helmreleases"]), None);
    }

    #[test]
    fn the_names_are_those_of_the_policy() {
        for integration in Integration::ALL {
            assert_eq!(serde_json::json!(integration), integration.name());
        }
    }
}
