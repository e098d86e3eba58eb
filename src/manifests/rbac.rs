//! The least RBAC for a policy: Roles and bindings of the executor.
//!
//! Each rule is beside the code that needs it: those of an action in its file, those of the ledger and the budget
//! in theirs. This file collects them and must not have a rule of its own.

use serde_json::{Value, json};

use crate::{
    actions::ActionKind,
    contract::names::{Namespace, ServiceAccount},
    k8s::rbac::PolicyRule,
    ledger,
    policy::{Policy, approval, budget},
};

/// The rules that the executor needs in each namespace of targets.
#[must_use]
pub fn rules(kinds: &[ActionKind], policy: &Policy) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let of_actions = kinds.iter().flat_map(|kind| kind.descriptor().rules);
    for rule in of_actions.chain([&ledger::RULE]) {
        if !rules.contains(rule) {
            rules.push(*rule);
        }
    }
    if policy.requires_approval() {
        rules.push(approval::RULE);
    }
    rules
}

/// The cluster-wide rules, which the actions on nodes need.
#[must_use]
pub fn cluster_rules(kinds: &[ActionKind]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in kinds.iter().flat_map(|kind| kind.descriptor().cluster_rules) {
        if !rules.contains(rule) {
            rules.push(*rule);
        }
    }
    rules
}

fn enabled(policy: &Policy) -> Vec<ActionKind> {
    ActionKind::ALL.into_iter().filter(|kind| policy.allows(*kind)).collect()
}

/// What the allowed actions on nodes need in addition to [`manifests`]: a ClusterRole, and a Role for their
/// records. Empty if no action on nodes is allowed.
pub(crate) fn node_manifests(policy: &Policy, account: &ServiceAccount) -> Vec<Value> {
    let rules = cluster_rules(&enabled(policy));
    if rules.is_empty() {
        return Vec::new();
    }
    let name = format!("action-executor.{}.{}.nodes", account.namespace, account.name);
    let namespace = Namespace::default();
    let records = self::rules(&[], policy);
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": name, "labels": labels() },
            "rules": rules,
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": name, "labels": labels() },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name,
            },
            "subjects": [subject(account)],
        }),
        role("action-executor-records", &namespace, json!(records)),
        binding("action-executor-records", &namespace, account),
    ]
}

/// The Roles and RoleBindings of the account: one in each namespace of targets, one for the Lease of the budget,
/// and one for approvers.
pub(crate) fn manifests(
    policy: &Policy,
    account: &ServiceAccount,
    namespaces: &[Namespace],
) -> Vec<Value> {
    let rules = json!(rules(&enabled(policy), policy));
    let mut documents = Vec::new();
    for namespace in namespaces {
        documents.push(role("action-executor", namespace, rules.clone()));
        documents.push(binding("action-executor", namespace, account));
        if policy.requires_approval() {
            documents.push(role("action-executor-approver", namespace, json!(approval::APPROVER)));
        }
    }
    let namespace = policy.state.namespace.as_ref().unwrap_or(&account.namespace);
    documents.push(role("action-executor-state", namespace, state_rules(policy)));
    documents.push(binding("action-executor-state", namespace, account));
    documents
}

/// What a server needs in addition to list the history of these namespaces: a Role in each. The account of Jobs
/// does not need it.
pub(crate) fn history_manifests(account: &ServiceAccount, namespaces: &[Namespace]) -> Vec<Value> {
    let name = "action-executor-history";
    let of = |namespace: &Namespace| {
        [role(name, namespace, json!([ledger::HISTORY])), binding(name, namespace, account)]
    };
    namespaces.iter().flat_map(of).collect()
}

/// The budget's rule, restricted to its Lease where RBAC can restrict it (not for `create`).
fn state_rules(policy: &Policy) -> Value {
    let PolicyRule { api_groups, resources, verbs } = budget::RULE;
    let (create, rest): (Vec<&str>, Vec<&str>) =
        verbs.iter().copied().partition(|verb| *verb == "create");
    json!([
        { "apiGroups": api_groups, "resources": resources, "verbs": create },
        {
            "apiGroups": api_groups, "resources": resources, "verbs": rest,
            "resourceNames": [policy.state.name],
        },
    ])
}

fn role(name: &str, namespace: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": { "name": name, "namespace": namespace, "labels": labels() },
        "rules": rules,
    })
}

fn binding(name: &str, namespace: &str, account: &ServiceAccount) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": { "name": name, "namespace": namespace, "labels": labels() },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [subject(account)],
    })
}

fn subject(account: &ServiceAccount) -> Value {
    json!({ "kind": "ServiceAccount", "name": account.name, "namespace": account.namespace })
}

fn labels() -> Value {
    json!({ "app.kubernetes.io/name": "action-executor" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::ConfigFile;

    #[test]
    fn no_rule_is_wide() {
        let policy = Policy::parse("actions: {require_approval: ['*']}", "p").expect("is one");
        let account = "ops:executor".parse().expect("is an account");
        let shop = Namespace::try_from("shop".to_owned()).expect("is a name");
        let text = json!(manifests(&policy, &account, &[shop])).to_string();
        for wide in ["\"*\"", "secrets", "/exec", "ClusterRole", "escalate", "impersonate"] {
            assert!(!text.contains(wide), "{wide}");
        }
    }

    #[test]
    fn a_denied_action_has_no_rule() {
        let policy = Policy::parse("actions: {allow: [restart_pod]}", "p").expect("is one");
        let account = "ops:executor".parse().expect("is an account");
        let shop = Namespace::try_from("shop".to_owned()).expect("is a name");
        let text = json!(manifests(&policy, &account, &[shop])).to_string();
        assert!(text.contains("\"delete\"") && !text.contains("deployments"), "{text}");
    }

    #[test]
    fn the_executor_cannot_create_an_approval() {
        let policy = Policy::parse("actions: {require_approval: ['*']}", "p").expect("is one");
        for rule in rules(&ActionKind::ALL, &policy) {
            let concerns_approvals = rule.resources.contains(&"configmaps");
            assert!(!concerns_approvals || rule.verbs == ["get"]);
        }
    }
}
