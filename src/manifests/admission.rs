//! The policy as admission policies of the API server (ValidatingAdmissionPolicy, v1).
//!
//! A second layer: even a compromised executor's service account can do no more than the policy allows. One admission
//! policy has the fixed rules. A second one follows the kill switch on the Lease: it is separate because a policy with
//! a parameter does not apply while the parameter does not exist. A third one denies that the account, which writes its
//! budget to that Lease, changes the kill switch. All three apply to one service account, and to what is done in the
//! name of a caller whom it impersonates and names itself in. Rules that depend on counting (cooldown, budget) have no
//! admission policy.

use serde_json::{Value, json};

use crate::{
    actions::{ActionKind, Descriptor},
    contract::names::ServiceAccount,
    k8s::{api::impersonation::EXECUTOR, rbac::PolicyRule},
    manifests::name_prefix,
    policy::{Label, NodePattern, Pattern, Policy, ReplicaRules, budget::STOP_ANNOTATION},
};

/// The resources that the policies exclude: records, budget, and reviews of the executor itself and of its
/// callers.
const EXCLUDED: [(&str, &str); 8] = [
    ("", "events"),
    ("events.k8s.io", "events"),
    ("coordination.k8s.io", "leases"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// Whether the request is a dry run, in CEL.
const DRY_RUN: &str = "variables.simulated";

/// The admission policies for this service account, with their bindings.
pub(crate) fn manifests(policy: &Policy, account: &ServiceAccount) -> Vec<Value> {
    let name = name_prefix(account);
    let kill_switch_name = format!("{name}.kill-switch");
    let lease_guard_name = format!("{name}.lease-guard");
    let mut stop = admission_policy(&kill_switch_name, account, &[kill_switch()]);
    let mut lease = admission_policy(&lease_guard_name, account, &[lease_guard()]);
    lease["spec"]["matchConstraints"] =
        json!({ "resourceRules": [all_of("coordination.k8s.io", "leases")] });
    stop["spec"]["paramKind"] = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease" });
    let mut bound = binding(&kill_switch_name);
    bound["spec"]["paramRef"] = json!({
        "name": policy.state.name,
        "namespace": policy.state.namespace.as_ref().unwrap_or(&account.namespace),
        "parameterNotFoundAction": "Allow",
    });
    let fixed = admission_policy(&name, account, &fixed_rules(policy));
    vec![fixed, binding(&name), stop, bound, lease, binding(&lease_guard_name)]
}

/// A rule of a policy in CEL; its name is in the message of a denial.
struct Validation {
    rule: &'static str,
    expression: String,
}

fn admission_policy(name: &str, account: &ServiceAccount, rules: &[Validation]) -> Value {
    let user = account.user();
    let validations: Vec<_> = rules
        .iter()
        .map(|Validation { rule, expression }| {
            json!({
                "expression": expression,
                "message": format!("denied by {rule} of the action-executor's policy"),
                "reason": "Forbidden",
            })
        })
        .collect();
    let excluded: Vec<_> =
        EXCLUDED.iter().map(|(group, resource)| all_of(group, resource)).collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": name, "labels": labels() },
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": { "resourceRules": [all_of("*", "*/*")], "excludeResourceRules": excluded },
            "matchConditions": [{
                "name": "is-the-executor",
                "expression": is_the_executor(&user),
            }],
            // An empty field is absent.
            "variables": [
                variable("labels", "oldObject == null || !has(oldObject.metadata.labels) ? dyn({}) : \
                                    dyn(oldObject.metadata.labels)"),
                variable("requestNamespace", "has(request.namespace) ? request.namespace : ''"),
                variable("name", "has(request.name) ? request.name : ''"),
                variable("subresource", "has(request.subResource) ? request.subResource : ''"),
                // A subresource other than `resize` and `status` has no labels of its object, and neither has a new
                // one.
                variable("labelled", "oldObject != null && variables.subresource in ['', 'resize', 'status']"),
                variable("simulated", "has(request.dryRun) && request.dryRun"),
            ],
            "validations": validations,
        },
    })
}

/// Whether the executor's account makes the request, or has it made in the name of a caller whom it impersonates.
fn is_the_executor(user: &str) -> String {
    let extra = "request.userInfo.extra";
    format!(
        "request.userInfo.username == '{user}' || (has({extra}) && '{EXECUTOR}' in {extra} && '{user}' in \
         {extra}['{EXECUTOR}'])"
    )
}

fn all_of(group: &str, resource: &str) -> Value {
    json!({
        "apiGroups": [group], "apiVersions": ["*"], "operations": ["*"], "resources": [resource],
    })
}

fn variable(name: &str, expression: &str) -> Value {
    json!({ "name": name, "expression": expression })
}

fn binding(name: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": name, "labels": labels() },
        "spec": { "policyName": name, "validationActions": ["Deny"] },
    })
}

fn labels() -> Value {
    json!({ "app.kubernetes.io/name": "action-executor", "app.kubernetes.io/component": "policy" })
}

fn fixed_rules(policy: &Policy) -> Vec<Validation> {
    let rule = |rule, expression| Validation { rule, expression };
    let if_namespaced =
        |expression: String| format!("variables.requestNamespace == '' || ({expression})");
    let if_cluster_scoped =
        |expression: String| format!("variables.requestNamespace != '' || ({expression})");
    let if_labelled = |expression: String| format!("!variables.labelled || ({expression})");
    let denied = any(policy.namespaces.deny.iter().map(in_namespace));
    let nodes_denied = any(policy.nodes.deny.iter().map(on_node));
    let mut rules = vec![
        rule("namespaces.deny", if_namespaced(format!("!({denied})"))),
        rule("nodes.deny", if_cluster_scoped(format!("!({nodes_denied})"))),
    ];
    if policy.read_only {
        rules.push(rule("read_only", DRY_RUN.to_owned()));
    }
    let limited = policy.simulation.limited;
    let unless_simulated = |expression: String| {
        if limited { expression } else { format!("({DRY_RUN}) || ({expression})") }
    };
    let allowed = any(policy.namespaces.allow.iter().map(in_namespace));
    let nodes_allowed = any(policy.nodes.allow.iter().map(on_node));
    let protected = any(policy.targets.protected.iter().map(on_target));
    rules.push(rule("actions.allow", writes(policy)));
    rules.push(rule("namespaces.allow", unless_simulated(if_namespaced(allowed))));
    rules.push(rule("nodes.allow", unless_simulated(if_cluster_scoped(nodes_allowed))));
    let unprotected = if_labelled(format!("!({protected})"));
    rules.push(rule("targets.protected", unless_simulated(unprotected)));
    if !policy.targets.opt_in.is_empty() {
        let opted_in = any(policy.targets.opt_in.iter().map(on_target));
        rules.push(rule("targets.opt_in", unless_simulated(if_labelled(opted_in))));
    }
    rules.push(rule("replicas", unless_simulated(within(&policy.replicas))));
    rules
}

/// The bounds of the scale subresource; absent replicas mean 0 there.
fn within(bounds: &ReplicaRules) -> String {
    let replicas = "(has(object.spec) && has(object.spec.replicas) ? object.spec.replicas : 0)";
    let ReplicaRules { min, max } = bounds;
    format!("variables.subresource != 'scale' || ({replicas} >= {min} && {replicas} <= {max})")
}

/// Denies that the account sets or removes the kill switch, or deletes its Lease.
fn lease_guard() -> Validation {
    let switch = |object: &str| {
        format!(
            "({object} != null && has({object}.metadata.annotations) && '{STOP_ANNOTATION}' in \
             {object}.metadata.annotations ? {object}.metadata.annotations['{STOP_ANNOTATION}'] : '')"
        )
    };
    let (before, after) = (switch("oldObject"), switch("object"));
    Validation {
        rule: "the kill switch",
        expression: format!("object != null && {before} == {after}"),
    }
}

fn kill_switch() -> Validation {
    let expression = format!(
        "({DRY_RUN}) || !has(params.metadata.annotations) || !('{STOP_ANNOTATION}' in params.metadata.annotations) \
         || params.metadata.annotations['{STOP_ANNOTATION}'] == 'false'"
    );
    Validation { rule: "the kill switch", expression }
}

/// The writes that the permitted actions need. A simulation makes the same writes as dry runs.
fn writes(policy: &Policy) -> String {
    let is_possible = |kind: &ActionKind| policy.allows_simulation(*kind);
    any(ActionKind::ALL.into_iter().filter(is_possible).flat_map(|kind| {
        let Descriptor { rules, cluster_rules, .. } = kind.descriptor();
        rules.iter().chain(*cluster_rules).flat_map(operations).map(move |write| {
            if policy.permits(kind) { write } else { format!("{write} && {DRY_RUN}") }
        })
    }))
}

/// The writes of a rule, as conditions in CEL.
fn operations(rule: &PolicyRule) -> Vec<String> {
    let mut found = Vec::new();
    for group in rule.api_groups {
        for resource in rule.resources {
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            for verb in rule.verbs {
                let operation = match *verb {
                    "create" => "CREATE",
                    "patch" | "update" => "UPDATE",
                    "delete" => "DELETE",
                    _ => continue,
                };
                found.push(format!(
                    "request.resource.group == '{group}' && request.resource.resource == \
                     '{resource}' && variables.subresource == '{sub}' && request.operation == \
                     '{operation}'"
                ));
            }
        }
    }
    found
}

fn in_namespace(pattern: &Pattern) -> String {
    format!("variables.requestNamespace.matches('{}')", pattern.to_regex())
}

fn on_node(pattern: &NodePattern) -> String {
    format!("variables.name.matches('{}')", pattern.as_ref().to_regex())
}

fn on_target(label: &Label) -> String {
    match label.parts() {
        (key, None) => format!("'{key}' in variables.labels"),
        (key, Some(value)) => {
            format!("('{key}' in variables.labels && variables.labels['{key}'] == '{value}')")
        }
    }
}

/// At least one of these conditions; false if there are none.
fn any(conditions: impl Iterator<Item = String>) -> String {
    let conditions: Vec<_> = conditions.map(|condition| format!("({condition})")).collect();
    if conditions.is_empty() { "false".to_owned() } else { conditions.join(" || ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::ConfigFile;

    fn made(policy: &str) -> Vec<Value> {
        let policy = Policy::parse(policy, "p").expect("is a policy");
        let account = "ops:executor".parse().expect("is an account");
        manifests(&policy, &account)
    }

    fn expressions(policy: &str) -> String {
        made(policy)[0]["spec"]["validations"].to_string()
    }

    #[test]
    fn the_policies_apply_only_to_the_executors_account() {
        for document in made("{}").iter().filter(|it| it["kind"] == "ValidatingAdmissionPolicy") {
            assert_eq!(
                document["spec"]["matchConditions"][0]["expression"],
                "request.userInfo.username == 'system:serviceaccount:ops:executor' || \
                 (has(request.userInfo.extra) && 'action-executor.dev/executor' in request.userInfo.extra && \
                 'system:serviceaccount:ops:executor' in \
                 request.userInfo.extra['action-executor.dev/executor'])"
            );
        }
    }

    #[test]
    fn the_kill_switch_is_on_the_policys_lease() {
        let bound = &made("state: {namespace: limits, name: state}")[3]["spec"]["paramRef"];
        assert_eq!((&bound["namespace"], &bound["name"]), (&json!("limits"), &json!("state")));
        assert_eq!(made("{}")[3]["spec"]["paramRef"]["namespace"], "ops");
    }

    #[test]
    fn a_denied_action_can_only_be_simulated() {
        let text = expressions("actions: {allow: [restart_k8s]}");
        let pods = "'pods' && variables.subresource == '' && request.operation == 'DELETE'";
        assert!(text.contains(&format!("{pods} && variables.simulated")), "{text}");
        let text = expressions("actions: {allow: [restart_k8s]}\nsimulation: {limited: true}");
        assert!(!text.contains("'pods'"), "{text}");
    }

    #[test]
    fn every_rule_of_the_policy_is_in_the_admission_policy() {
        let text = expressions(
            "read_only: true\nnamespaces: {allow: ['shop-*'], deny: [bank]}\n\
             targets: {protected: [tier=db], opt_in: [sre]}",
        );
        for part in ["^shop-.*$", "^bank$", "['tier'] == 'db'", "'sre' in", "read_only"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
