//! The RBAC of a server that impersonates its callers, in place of that of the actions, which the callers then need
//! themselves.
//!
//! Plain impersonation (verb `impersonate`) lets the account do all that those whom it may impersonate may do.
//! Constrained impersonation (KEP-5284, on by default from Kubernetes 1.36) lets it do only what the actions do:
//! `impersonate:user-info` says whom, and `impersonate-on:user-info:VERB` what.

use serde_json::{Value, json};

use crate::{
    contract::names::{Namespace, ServiceAccount},
    k8s::{api::impersonation::EXECUTOR, rbac::PolicyRule},
    manifests::rbac::{binding, cluster_role, name_of, role},
};

/// The API group of uids and extra fields, and with constrained impersonation of users and groups.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Who may be impersonated.
pub(crate) struct Impersonated<'a> {
    /// The users; any if neither users nor accounts are named.
    pub users: &'a [String],
    pub groups: &'a [String],
    /// The service accounts, which constrained impersonation does not cover.
    pub accounts: &'a [ServiceAccount],
    /// The keys of extra fields.
    pub extra: &'a [String],
    /// Whether what is done is constrained, too.
    pub constrained: bool,
}

/// The rules about whom the account may impersonate: a ClusterRole, and a Role for each service account.
pub(crate) fn manifests(who: &Impersonated, account: &ServiceAccount) -> Vec<Value> {
    let name = name_of(account, "impersonation");
    let mut documents = cluster_role(&name, rules(who, account), account).to_vec();
    for other in who.accounts {
        let name = name_of(account, &format!("impersonation.{}", other.name));
        let rule = json!([{
            "apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": [other.name],
            "verbs": ["impersonate"],
        }]);
        documents.push(role(&name, &other.namespace, rule));
        documents.push(binding(&name, &other.namespace, account));
    }
    documents
}

fn rules(who: &Impersonated, account: &ServiceAccount) -> Value {
    let (group, verb) = match who.constrained {
        true => (AUTHENTICATION, "impersonate:user-info"),
        false => ("", "impersonate"),
    };
    let any = |group: &str, resource: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    let named = |group: &str, resource: &str, names: Value| {
        let mut rule = any(group, resource);
        rule["resourceNames"] = names;
        rule
    };
    let mut rules = Vec::new();
    if !who.users.is_empty() {
        rules.push(named(group, "users", json!(who.users)));
    } else if who.accounts.is_empty() {
        rules.push(any(group, "users"));
    }
    if !who.groups.is_empty() {
        rules.push(named(group, "groups", json!(who.groups)));
    }
    // A uid comes with its user, and without one it gives no permission.
    rules.push(any(AUTHENTICATION, "uids"));
    let executor = json!([account.user()]);
    rules.push(named(AUTHENTICATION, &format!("userextras/{EXECUTOR}"), executor));
    let extra = who.extra.iter().map(|key| any(AUTHENTICATION, &format!("userextras/{key}")));
    rules.extend(extra);
    rules.into()
}

/// What the account may do in the name of others with constrained impersonation: what these rules allow, in each
/// namespace.
pub(crate) fn constrained(
    rules: &[PolicyRule],
    account: &ServiceAccount,
    namespaces: &[Namespace],
) -> Vec<Value> {
    let name = &name_of(account, "impersonation");
    let of = |namespace: &Namespace| {
        [role(name, namespace, constrained_rules(rules)), binding(name, namespace, account)]
    };
    namespaces.iter().flat_map(of).collect()
}

/// The same in the whole cluster.
pub(crate) fn constrained_in_cluster(rules: &[PolicyRule], account: &ServiceAccount) -> Vec<Value> {
    let name = name_of(account, "impersonation-on");
    cluster_role(&name, constrained_rules(rules), account).to_vec()
}

fn constrained_rules(rules: &[PolicyRule]) -> Value {
    let constrained = |rule: &PolicyRule| {
        let verbs = rule.verbs.iter().map(|verb| format!("impersonate-on:user-info:{verb}"));
        json!({
            "apiGroups": rule.api_groups, "resources": rule.resources,
            "verbs": verbs.collect::<Vec<_>>(),
        })
    };
    rules.iter().map(constrained).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_of(who: &Impersonated) -> Value {
        rules(who, &"ops:executor".parse().expect("is one"))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const NOBODY: Impersonated<'static> =
        Impersonated { users: &[], groups: &[], accounts: &[], extra: &[], constrained: false };

    /// The names of this resource; null for all.
    fn of<'a>(rules: &'a Value, resource: &str) -> Option<&'a Value> {
        let mut rules = rules.as_array().expect("is a list").iter();
        rules.find(|rule| rule["resources"][0] == resource).map(|rule| &rule["resourceNames"])
    }

    #[test]
    fn only_listed_groups_are_allowed_and_users_by_name_where_they_are_named() {
        let any = rules_of(&NOBODY);
        assert_eq!((of(&any, "users"), of(&any, "groups")), (Some(&Value::Null), None));
        let (users, groups) = (names(&["jo"]), names(&["sre"]));
        let named = rules_of(&Impersonated { users: &users, groups: &groups, ..NOBODY });
        assert_eq!(of(&named, "users"), Some(&json!(["jo"])));
        assert_eq!(of(&named, "groups"), Some(&json!(["sre"])));
        let executor = of(&named, "userextras/action-executor.dev/executor");
        assert_eq!(executor, Some(&json!(["system:serviceaccount:ops:executor"])));
        let accounts = ["agents:agent".parse().expect("is one")];
        let agents = Impersonated { accounts: &accounts, ..NOBODY };
        assert_eq!(of(&rules_of(&agents), "users"), None);
        let documents = manifests(&agents, &"ops:executor".parse().expect("is one"));
        let role = documents.iter().find(|it| it["kind"] == "Role").expect("there is one");
        assert_eq!(role["metadata"]["namespace"], "agents");
        assert_eq!(role["rules"][0]["resourceNames"], json!(["agent"]));
    }

    #[test]
    fn constrained_rules_have_no_verb_that_works_without_a_caller() {
        let all = rules_of(&Impersonated { constrained: true, ..NOBODY });
        let of_actions = constrained_rules(&[crate::ledger::HISTORY]);
        for rule in all.as_array().into_iter().chain(of_actions.as_array()).flatten() {
            for verb in rule["verbs"].as_array().expect("are verbs") {
                let verb = verb.as_str().expect("is text");
                assert!(verb == "impersonate:user-info" || verb.starts_with("impersonate-on:"));
            }
        }
    }
}
