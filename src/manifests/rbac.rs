//! The least RBAC for a policy: Roles and bindings of the executor.
//!
//! Each rule is beside the code that needs it: those of an action in its file, those of the ledger and the budget
//! in theirs. This file collects them and must not have a rule of its own.

use serde_json::{Value, json};

use crate::{
    actions::ActionKind,
    contract::names::{Namespace, ServiceAccount},
    diagnosis::parts,
    k8s::rbac::PolicyRule,
    ledger,
    manifests::name_prefix,
    policy::{Policy, approval, budget},
};

/// The Role to which approvers are bound. It has the same rules whichever account acts.
const APPROVER_ROLE: &str = "action-executor-approver";

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

/// The cluster-wide rules, which the actions on nodes need, and those that read nodes.
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

/// The actions that the policy allows.
pub(crate) fn enabled(policy: &Policy) -> Vec<ActionKind> {
    ActionKind::ALL.into_iter().filter(|kind| policy.permits(*kind)).collect()
}

/// What the allowed actions on nodes need in addition to [`manifests`]: a ClusterRole, and a Role for their
/// records. Empty if no action on nodes is allowed.
pub(crate) fn node_manifests(policy: &Policy, account: &ServiceAccount) -> Vec<Value> {
    let rules = cluster_rules(&enabled(policy));
    if rules.is_empty() {
        return Vec::new();
    }
    let name = name_of(account, "nodes");
    let mut documents = cluster_role(&name, json!(rules), account).to_vec();
    documents.extend(node_record_manifests(policy, account));
    documents
}

/// What the records of actions on nodes need: a Role. Empty if no action on nodes is allowed.
pub(crate) fn node_record_manifests(policy: &Policy, account: &ServiceAccount) -> Vec<Value> {
    if cluster_rules(&enabled(policy)).is_empty() {
        return Vec::new();
    }
    let (name, namespace) = (name_of(account, "records"), Namespace::default());
    let records = self::rules(&[], policy);
    vec![role(&name, &namespace, json!(records)), binding(&name, &namespace, account)]
}

/// The Roles and RoleBindings of the account: one in each namespace of targets, one for the Lease of the budget,
/// and one for approvers.
pub(crate) fn manifests(
    policy: &Policy,
    account: &ServiceAccount,
    namespaces: &[Namespace],
) -> Vec<Value> {
    manifests_of(&enabled(policy), policy, account, namespaces)
}

/// The same without the rules of the actions: for a server that makes the calls about targets in another's name.
pub(crate) fn record_manifests(
    policy: &Policy,
    account: &ServiceAccount,
    namespaces: &[Namespace],
) -> Vec<Value> {
    manifests_of(&[], policy, account, namespaces)
}

fn manifests_of(
    kinds: &[ActionKind],
    policy: &Policy,
    account: &ServiceAccount,
    namespaces: &[Namespace],
) -> Vec<Value> {
    let (name, rules) = (name_of(account, "targets"), json!(rules(kinds, policy)));
    let mut documents = Vec::new();
    for namespace in namespaces {
        documents.push(role(&name, namespace, rules.clone()));
        documents.push(binding(&name, namespace, account));
        if policy.requires_approval() {
            documents.push(role(APPROVER_ROLE, namespace, json!(approval::APPROVER)));
        }
    }
    let namespace = policy.state.namespace.as_ref().unwrap_or(&account.namespace);
    let name = name_of(account, "state");
    documents.push(role(&name, namespace, state_rules(policy)));
    documents.push(binding(&name, namespace, account));
    documents
}

/// What a server needs in addition to list the history of these namespaces: a Role in each. The account of Jobs
/// does not need it.
pub(crate) fn history_manifests(account: &ServiceAccount, namespaces: &[Namespace]) -> Vec<Value> {
    let name = &name_of(account, "history");
    let of = |namespace: &Namespace| {
        [role(name, namespace, json!([ledger::HISTORY])), binding(name, namespace, account)]
    };
    namespaces.iter().flat_map(of).collect()
}

/// What a server needs in addition to diagnose targets in these namespaces: a Role in each, and with `nodes` a
/// ClusterRole. Reading logs is among it, so nobody gets it who does not ask for it.
pub(crate) fn diagnosis_manifests(
    account: &ServiceAccount,
    namespaces: &[Namespace],
    nodes: bool,
) -> Vec<Value> {
    let name = &name_of(account, "diagnosis");
    let of = |namespace: &Namespace| {
        [role(name, namespace, json!(parts::RULES)), binding(name, namespace, account)]
    };
    let mut documents: Vec<_> = namespaces.iter().flat_map(of).collect();
    if nodes {
        documents.extend(cluster_role(name, json!(parts::NODE_RULES), account));
    }
    documents
}

/// The name of a Role, a ClusterRole or a binding of this account: two accounts that act in one namespace have Roles of
/// their own there. `part` is never empty, since the name of an account may have dots.
pub(super) fn name_of(account: &ServiceAccount, part: &str) -> String {
    format!("{}.{part}", name_prefix(account))
}

pub(super) fn cluster_role(name: &str, rules: Value, account: &ServiceAccount) -> [Value; 2] {
    [
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
    ]
}

/// The budget's rule, restricted to its Lease where RBAC can restrict it (not for `create`).
#[must_use]
pub fn state_rules(policy: &Policy) -> Value {
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

pub(super) fn role(name: &str, namespace: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": { "name": name, "namespace": namespace, "labels": labels() },
        "rules": rules,
    })
}

pub(super) fn binding(name: &str, namespace: &str, account: &ServiceAccount) -> Value {
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
    use crate::{
        config::reload::ConfigFile,
        diagnosis::{parts::Part, target::TargetKind},
    };

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
    fn two_accounts_that_act_in_one_namespace_have_roles_of_their_own() {
        let policy = Policy::parse("{}", "p").expect("is one");
        let shop = [Namespace::try_from("shop".to_owned()).expect("is a name")];
        let names = |account: &str| -> Vec<String> {
            let account = account.parse().expect("is an account");
            let all = [
                manifests(&policy, &account, &shop),
                node_manifests(&policy, &account),
                history_manifests(&account, &shop),
                diagnosis_manifests(&account, &shop, true),
            ];
            let name = |document: &Value| document["metadata"]["name"].to_string();
            all.concat().iter().map(name).collect()
        };
        let first = names("sre:web");
        for other in ["shop:web", "sre:web.state", "sre:web.targets"] {
            let other = names(other);
            assert!(first.len() > 8 && first.iter().all(|name| !other.contains(name)), "{other:?}");
        }
    }

    #[test]
    fn a_diagnosis_only_reads_and_reads_no_secret() {
        for rule in parts::RULES.iter().chain(&parts::NODE_RULES) {
            assert!(rule.verbs.iter().all(|verb| ["get", "list"].contains(verb)), "{rule:?}");
            assert!(!rule.resources.contains(&"secrets") && !rule.resources.contains(&"*"));
        }
        for kind in [TargetKind::Pod, TargetKind::Job, TargetKind::CronJob, TargetKind::Node] {
            for part in Part::of(kind).iter().filter(|_| kind != TargetKind::Node) {
                let needed = part.rule();
                let has = |rule: &PolicyRule| {
                    rule.resources.contains(&needed.resources[0])
                        && rule.verbs.contains(&needed.verbs[0])
                };
                assert!(parts::RULES.iter().any(has), "{part:?}");
            }
            let needed = kind.rule();
            let has = |rule: &PolicyRule| rule.resources.contains(&needed.resources[0]);
            assert!(parts::RULES.iter().chain(&parts::NODE_RULES).any(has), "{kind:?}");
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
    fn an_action_that_changes_keys_has_rules_only_if_one_is_listed() {
        let kinds = |text: &str| enabled(&Policy::parse(text, "p").expect("is one"));
        assert!(!kinds("{}").contains(&ActionKind::Label));
        assert!(kinds("labels: {allow: [team]}").contains(&ActionKind::Label));
        assert!(!kinds("labels: {allow: [team]}").contains(&ActionKind::Annotate));
        assert!(
            !kinds("{labels: {allow: [team]}, actions: {allow: [scale]}}")
                .contains(&ActionKind::Label)
        );
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
