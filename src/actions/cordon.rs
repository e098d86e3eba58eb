//! `cordon`: keeps new pods off a node, as `kubectl cordon` does.

use k8s_openapi::api::core::v1::Node;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::toggle::CORDON,
    },
    contract::{error::ActionError, names::ObjectName, response::Target},
    k8s::{api::client::Cluster, completion::Completion, nodes, rbac::PolicyRule},
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "cordon",
    aliases: &[],
    description: "Cordon a node: no new pods are scheduled onto it; those that run there stay. Use it \
                  before you investigate a node that misbehaves. `uncordon` undoes it; `drain` also \
                  evicts the pods.",
    takes_time: false,
    when: "a node misbehaves and must get no new pods",
    when_not: "its pods have to leave too: use drain",
    destructive: false,
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[
        // `list` only to warn that no other node accepts pods.
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "list", "patch"] },
    ],
    integration: None,
};

/// What `cordon` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The node to cordon.
    pub node: ObjectName,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        CORDON.target("", &self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        CORDON.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let others = nodes::other_schedulable(&self.node);
            let (node, others) = tokio::join!(
                cluster.get_global(&self.node, input.deadline),
                cluster.exists::<Node>(&others, input.deadline),
            );
            decide(self.target(), &node?, others, input)
        })
    }
}

/// From the node, and whether another one accepts new pods, to the plan.
fn decide(
    target: Target,
    node: &Node,
    others: Result<bool, ActionError>,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let completion = CompletionSpec::Known(Completion::Immediate(format!(
        "no new pods are scheduled onto Node '{}'; its pods keep running",
        target.name
    )));
    let is_cordoned = nodes::is_cordoned(node);
    let mut plan = CORDON.decide(target, &node.metadata, is_cordoned, completion, input)?;
    if plan.is_change() {
        plan.warnings.extend(nodes::not_ready_warning(node));
        plan.warnings.extend(no_other_node_warning(others));
    }
    Ok(plan)
}

fn no_other_node_warning(others: Result<bool, ActionError>) -> Option<String> {
    match others {
        Ok(true) => None,
        Ok(false) => Some("no other node accepts new pods: new pods stay pending".to_owned()),
        Err(error) => {
            let why = error.with_its_hint();
            Some(format!("it is unknown whether another node accepts new pods: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actions::Decision, contract::error::Code};

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node")
    }

    const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}]}";

    fn plan_of(node: &Node, others: Result<bool, ActionError>) -> Plan {
        decide(CORDON.target("", "n1"), node, others, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn a_cordon_is_one_patch_of_the_node() {
        let plan = plan_of(&node(READY), Ok(true));
        let (effect, did, would) = plan.expect_change();
        assert_eq!((effect.namespace.as_str(), effect.name.as_str()), ("", "n1"));
        let change =
            serde_json::json!({ "op": "add", "path": "/spec/unschedulable", "value": true });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "Node 'n1' cordoned at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Node 'n1' would be cordoned.");
        assert_eq!(plan.warnings, Vec::<String>::new());
        assert_eq!(plan.changes[0].path, "/spec/unschedulable");
    }

    #[test]
    fn a_cordoned_node_is_left_without_a_warning() {
        let plan = plan_of(&node("spec: {unschedulable: true}"), Ok(true));
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.changes.is_empty() && plan.warnings.is_empty());
    }

    #[test]
    fn the_last_schedulable_node_and_one_that_is_not_ready_are_warned_of() {
        let plan = plan_of(&node("status: {conditions: []}"), Ok(false));
        let warnings = plan.warnings.join("; ");
        assert!(warnings.contains("not ready") && warnings.contains("no other node"), "{warnings}");
        let forbidden =
            ActionError::new(Code::Forbidden, "x may not list nodes").with_hint("a rule");
        let warnings = plan_of(&node(READY), Err(forbidden)).warnings.join("; ");
        assert!(warnings.contains("may not list nodes; a rule"), "{warnings}");
    }
}
