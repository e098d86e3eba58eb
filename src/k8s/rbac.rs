//! One rule of a Role, as data that actions, the ledger and the budget declare for the calls they make.

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
