//! One rule of a Role: each part of the program declares the rules for its own calls.

use schemars::JsonSchema;
use serde::Serialize;

/// One rule of a Role or ClusterRole (`rbac.authorization.k8s.io/v1`, `PolicyRule`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct PolicyRule {
    /// API groups; the core group is empty.
    pub api_groups: &'static [&'static str],
    /// Resources in the plural.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}
