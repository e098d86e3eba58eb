//! The least that RBAC must allow, as data: from the enabled actions to the Roles of the executor.
//!
//! The rules stand with what needs them: each action's in its file, the ledger's and the budget's in
//! theirs. This file adds them up and writes the manifests, and has no rule of its own but that of the
//! person who approves.

use serde_json::{Value, json};

use crate::{
    actions::ActionKind,
    contract::names::{Namespace, ServiceAccount},
    k8s::rbac::PolicyRule,
    ledger,
    policy::{Policy, approval, budget},
};

/// What the executor needs in a namespace in which it acts.
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

/// The rules for the whole cluster, which the actions on nodes need.
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

/// What the allowed actions on nodes need beside the Roles of [`manifests`]: a ClusterRole, and a Role
/// where their records are kept. Nothing, if none is allowed.
#[must_use]
pub fn node_manifests(policy: &Policy, account: &ServiceAccount) -> Vec<Value> {
    let rules = cluster_rules(&enabled(policy));
    if rules.is_empty() {
        return Vec::new();
    }
    let name = format!("action-executor.{}.{}.nodes", account.namespace, account.name);
    let home = Namespace::default();
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
        role("action-executor-records", &home, json!(records)),
        binding("action-executor-records", &home, account),
    ]
}

/// The Roles and RoleBindings for this account: one in each namespace in which it acts, one where the
/// budget is kept, and one for those who approve.
#[must_use]
pub fn manifests(
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
    let home = policy.state.namespace.as_ref().unwrap_or(&account.namespace);
    documents.push(role("action-executor-state", home, state_rules(policy)));
    documents.push(binding("action-executor-state", home, account));
    documents
}

/// What a server needs besides to tell of what was done in these namespaces: a Role in each, which an
/// account that only carries out Jobs is better without.
#[must_use]
pub fn history_manifests(account: &ServiceAccount, namespaces: &[Namespace]) -> Vec<Value> {
    let name = "action-executor-history";
    let of = |namespace: &Namespace| {
        [role(name, namespace, json!([ledger::HISTORY])), binding(name, namespace, account)]
    };
    namespaces.iter().flat_map(of).collect()
}

/// The budget's rule, narrowed to its one Lease wherever RBAC can (not for `create`).
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
    fn no_rule_is_wider_than_it_says() {
        let policy = Policy::parse("actions: {require_approval: ['*']}", "p").expect("is one");
        let account = "ops:executor".parse().expect("is an account");
        let shop = Namespace::try_from("shop".to_owned()).expect("is a name");
        let text = json!(manifests(&policy, &account, &[shop])).to_string();
        for wide in ["\"*\"", "secrets", "/exec", "ClusterRole", "escalate", "impersonate"] {
            assert!(!text.contains(wide), "{wide}");
        }
    }

    #[test]
    fn an_action_that_is_not_allowed_needs_no_rule() {
        let policy = Policy::parse("actions: {allow: [restart_pod]}", "p").expect("is one");
        let account = "ops:executor".parse().expect("is an account");
        let shop = Namespace::try_from("shop".to_owned()).expect("is a name");
        let text = json!(manifests(&policy, &account, &[shop])).to_string();
        assert!(text.contains("\"delete\"") && !text.contains("deployments"), "{text}");
    }

    #[test]
    fn the_executor_cannot_make_an_approval() {
        let policy = Policy::parse("actions: {require_approval: ['*']}", "p").expect("is one");
        for rule in rules(&ActionKind::ALL, &policy) {
            let about_approvals = rule.resources.contains(&"configmaps");
            assert!(!about_approvals || rule.verbs == ["get"]);
        }
    }
}
