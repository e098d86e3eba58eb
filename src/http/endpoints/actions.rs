//! `GET /api/v1/actions`: every action with its schema, from the table of actions alone.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    actions::ActionKind,
    executor::{clusters::ClusterNames, context::Context},
    http::openapi::{Operation, json_content},
    k8s::{integrations::Integration, rbac::PolicyRule},
};

/// Every action.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct ActionList {
    /// One for each, in the order in which they are listed everywhere.
    actions: Vec<ActionDescription>,
    /// The name of the cluster that they act on, if one is configured; of several the default, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// The names that a request may have for its cluster, if several are listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    clusters: Vec<String>,
}

/// One action.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ActionDescription {
    /// The `type` of a request.
    name: &'static str,
    /// Other spellings of `type`.
    aliases: &'static [&'static str],
    /// What it does and when it refuses.
    description: &'static str,
    /// Whether its effect is complete some time after the change, for which `wait` waits.
    takes_time: bool,
    /// Where its target is.
    scope: Scope,
    /// The operator whose objects it acts on, which the policy has to name; none for objects of Kubernetes itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    integration: Option<Integration>,
    /// The JSON Schema (2020-12) of its parameters, complete in itself.
    #[schemars(with = "serde_json::Map<String, Value>")]
    parameters: Schema,
    /// The least that RBAC must allow the executor for it, as rules of a Role, or of a ClusterRole for what
    /// is in no namespace.
    rules: Vec<PolicyRule>,
    /// A whole request that simulates it.
    #[schemars(with = "serde_json::Map<String, Value>")]
    example: Value,
}

/// Where a target is.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Scope {
    /// In a namespace, which `parameters.namespace` names.
    Namespace,
    /// In no namespace.
    Cluster,
}

/// A request that simulates this action.
pub(crate) fn example(kind: ActionKind) -> Value {
    let parameters: Value = serde_json::from_str(kind.descriptor().example).unwrap_or_default();
    json!({ "type": kind.name(), "parameters": parameters, "simulate": true })
}

/// The list in JSON, with the names of this context's clusters.
pub(crate) fn text(context: Option<&Context>) -> String {
    let ClusterNames { all, default } = context.and_then(Context::names).unwrap_or_default();
    let only = context.and_then(Context::cluster_name).cloned();
    let list = ActionList {
        actions: ActionKind::ALL.map(ActionDescription::of).into(),
        cluster: only.or(default).as_deref().map(str::to_owned),
        clusters: all.iter().map(ToString::to_string).collect(),
    };
    // Plain data, which JSON can hold.
    serde_json::to_string(&list).unwrap_or_default()
}

impl ActionDescription {
    fn of(kind: ActionKind) -> Self {
        let descriptor = kind.descriptor();
        Self {
            name: descriptor.name,
            aliases: descriptor.aliases,
            description: descriptor.description,
            takes_time: descriptor.takes_time,
            scope: if kind.is_on_cluster() { Scope::Cluster } else { Scope::Namespace },
            integration: descriptor.integration,
            parameters: kind.whole_schema(),
            rules: descriptor.rules.iter().chain(descriptor.cluster_rules).copied().collect(),
            example: example(kind),
        }
    }
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let content = json_content::<ActionList>(generator);
    let summary = "The actions, with the JSON Schema of their parameters";
    Operation::document("/api/v1/actions", "listActions", summary, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_there_whole() {
        let list: Value = serde_json::from_str(&text(None)).expect("is JSON");
        let names: Vec<_> = list["actions"].as_array().expect("is a list").iter().collect();
        assert_eq!(names.len(), ActionKind::ALL.len());
        for (listed, kind) in names.into_iter().zip(ActionKind::ALL) {
            assert_eq!(listed["name"], kind.name());
            assert!(!listed.to_string().contains("$ref"), "{listed}");
        }
    }
}
