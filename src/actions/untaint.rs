//! `untaint`: removes a taint of a node, as `kubectl taint nodes KEY-` does.

use k8s_openapi::api::core::v1::{Node, Taint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, ChangedKeys, CompletionSpec, Decision, Descriptor, Plan, PlanInput, Plannable,
        Preview, shared::taint as shared,
    },
    contract::{
        error::ActionError,
        names::{ObjectName, QualifiedName},
        response::{Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        completion::Completion,
        gitops, nodes,
        rbac::PolicyRule,
        taints::{self, TaintEffect, describe},
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "untaint",
    aliases: &[],
    description: "Remove a taint of a node: pods that do not tolerate it may be scheduled onto it again. Refused for keys \
                  that the policy does not list (without a rule: all). Pods that it ended do not come back by themselves. \
                  Unchanged if the node does not have it.",
    takes_time: false,
    when: "the reason of a taint is gone",
    when_not: "it is unknown why the node was tainted",
    destructive: false,
    example: r#"{"node":"worker-1","key":"example.com/dedicated"}"#,
    rules: &[],
    cluster_rules: &[PolicyRule {
        api_groups: &[""],
        resources: &["nodes"],
        verbs: &["get", "patch"],
    }],
    integration: None,
};

/// What `untaint` acts upon, and the taint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The node.
    pub node: ObjectName,
    /// The key of the taint.
    pub key: QualifiedName,
    /// Its effect; without one, each taint of this key is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        shared::target(&self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn check(&self) -> Result<(), ActionError> {
        shared::check_key(&self.key)
    }

    fn changed_keys(&self) -> Option<ChangedKeys<'_>> {
        Some(shared::changed_keys(&self.key))
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        let result = format!(
            "Simulated: the taint {} of Node '{}' would be removed.",
            self.named(),
            self.node
        );
        Preview { result, changes: vec![AppliedRequests::default().change(&input.mark)] }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let node = cluster.get_global(&self.node, input.deadline).await?;
            self.decide(&node, input)
        })
    }
}

impl Parameters {
    /// In the form `key` or `key:effect`.
    fn named(&self) -> String {
        match self.effect {
            Some(effect) => format!("{}:{}", self.key, effect.name()),
            None => self.key.to_string(),
        }
    }

    fn decide(&self, node: &Node, input: &PlanInput) -> Result<Plan, ActionError> {
        let (target, found, named) = (self.target(), &node.metadata, self.named());
        let name = &self.node;
        let did =
            format!("Taint {named} of Node '{name}' removed at {}.", rfc3339_millis(input.at));
        let completion = CompletionSpec::Known(Completion::Immediate(format!(
            "Node '{name}' does not have the taint any more"
        )));
        if input.has_changed(found)? {
            return Ok(Plan::already_applied(target, found, did, completion));
        }
        input.check_found(&target, found)?;
        let is_removed = |taint: &&Taint| {
            taint.key == *self.key && self.effect.is_none_or(|effect| taint.effect == effect.name())
        };
        let (removed, left): (Vec<_>, Vec<_>) = taints::taints(node).iter().partition(is_removed);
        if removed.is_empty() {
            let decision =
                Decision::NoOp(format!("Node '{name}' does not have the taint {named}."));
            return Ok(Plan::new(target, found, decision, completion));
        }
        let after: Vec<Taint> = left.iter().map(|taint| (*taint).clone()).collect();
        let effect = shared::effect(node, &after, input);
        let listed: Vec<_> = removed.iter().map(|taint| describe(taint)).collect();
        let would = format!(
            "Simulated: the taint {} of Node '{name}' would be removed.",
            listed.join(", ")
        );
        let decision = Decision::apply(effect, did, would);
        let mut plan = Plan::new(target, found, decision, completion);
        let changes = removed.iter().map(|taint| shared::change(Some(taint), None));
        plan.changes = changes.chain([shared::mark_change(node, input)]).collect();
        plan.warnings = warnings(node, &after);
        Ok(plan)
    }
}

/// Why pods may still not be scheduled onto the node.
fn warnings(node: &Node, left: &[Taint]) -> Vec<String> {
    let reverted = gitops::revert_warning(&node.metadata, "spec.taints");
    let cordoned = nodes::is_cordoned(node)
        .then(|| "the node is cordoned: no pods are scheduled onto it until uncordon".to_owned());
    let keeping = left.iter().filter(|taint| taint.effect != TaintEffect::PreferNoSchedule.name());
    // The taint of the cordon is that of the warning before.
    let keeping = keeping.filter(|taint| !nodes::is_of_the_cordon(taint)).map(describe);
    let keeping: Vec<_> = keeping.collect();
    let keeping = (!keeping.is_empty()).then(|| {
        format!(
            "the node has other taints, which keep pods off that do not tolerate them: {}",
            keeping.join(", ")
        )
    });
    let not_ready = nodes::not_ready_warning(node);
    reverted.into_iter().chain(not_ready).chain(cordoned).chain(keeping).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}]}";

    fn decide(text: &str, yaml: &str) -> Plan {
        let parameters: Parameters = serde_json::from_str(text).expect("are parameters");
        let node: Node = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node");
        parameters.decide(&node, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_taint_is_removed_by_its_key_or_by_key_and_effect() {
        let one = json!({ "key": "a", "value": "x", "effect": "NoSchedule" });
        let two = json!({ "key": "a", "effect": "NoExecute" });
        let other = json!({ "key": "b", "effect": "NoSchedule" });
        for (text, read, after) in [
            (r#"{"node":"n1","key":"a"}"#, json!([one, other, two]), Some(json!([other]))),
            (
                r#"{"node":"n1","key":"a","effect":"NoExecute"}"#,
                json!([one, two]),
                Some(json!([one])),
            ),
            (r#"{"node":"n1","key":"a"}"#, json!([two]), None),
        ] {
            let plan = decide(text, &format!("spec: {{taints: {read}}}\n{READY}"));
            let (effect, did, _) = plan.expect_change();
            let operations = effect.operations();
            let tested = json!({ "op": "test", "path": "/spec/taints", "value": read });
            assert!(operations.contains(&tested), "{operations:?}");
            let change = match after {
                Some(after) => json!({ "op": "add", "path": "/spec/taints", "value": after }),
                None => json!({ "op": "remove", "path": "/spec/taints" }),
            };
            assert_eq!(operations.last(), Some(&change));
            assert!(did.starts_with("Taint a"), "{did}");
            assert_eq!(plan.changes.last().map(|it| it.path.contains("requests")), Some(true));
            assert_eq!(plan.changes[0].to, Value::Null);
        }
    }

    #[test]
    fn a_taint_that_is_not_there_is_left() {
        let plan =
            decide(r#"{"node":"n1","key":"a"}"#, "spec: {taints: [{key: b, effect: NoExecute}]}");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
    }

    #[test]
    fn other_obstacles_to_scheduling_are_warned_of() {
        let taints = "{key: a, effect: NoSchedule}, {key: b, value: x, effect: NoExecute}, \
                      {key: c, effect: PreferNoSchedule}, \
                      {key: node.kubernetes.io/unschedulable, effect: NoSchedule}";
        let text = r#"{"node":"n1","key":"a"}"#;
        let plan = decide(text, &format!("spec: {{unschedulable: true, taints: [{taints}]}}"));
        let warnings = plan.warnings.join("; ");
        for part in ["not ready", "cordoned", "do not tolerate them: b=x:NoExecute"] {
            assert!(warnings.contains(part), "{part}: {warnings}");
        }
        assert!(
            !warnings.contains("c:Prefer") && !warnings.contains("unschedulable"),
            "{warnings}"
        );
        let plan =
            decide(text, &format!("spec: {{taints: [{{key: a, effect: NoSchedule}}]}}\n{READY}"));
        assert_eq!(plan.warnings, [""; 0]);
    }
}
