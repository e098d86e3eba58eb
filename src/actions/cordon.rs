//! `cordon`: keeps new pods off a node, as `kubectl cordon` does.

use k8s_openapi::api::core::v1::Node;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::Decision;
use crate::actions::shared::cordoning;
use crate::contract::error::ActionError;
use crate::k8s::api::client::Cluster;
use crate::k8s::nodes;
use crate::contract::names::ObjectName;
use crate::contract::response::Target;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "cordon",
    aliases: &[],
    description: "Cordon a node: no new pods are scheduled onto it; those that run there stay. Use it \
                  before looking at a node that misbehaves. `uncordon` ends it; `drain` also evicts \
                  the pods.",
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[
        // `list` only to warn that no other node takes pods.
        PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "list", "patch"] },
    ],
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
        cordoning::target(&self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        cordoning::preview(&self.node, true, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let node: Node = cluster.get_global(&self.node, asked.deadline).await?;
            let others = nodes::other_schedulable(&self.node);
            let others = cluster.exists::<Node>(&others, asked.deadline).await;
            decide(&node, others, asked)
        })
    }
}

/// From the node, and whether there is another one for new pods, to what is to be done.
fn decide(
    node: &Node,
    others: Result<bool, ActionError>,
    asked: &PlanInput,
) -> Result<Plan, ActionError> {
    let mut plan = cordoning::decide(node, true, asked)?;
    if matches!(plan.decision, Decision::Apply(..)) {
        plan.warnings.extend(cordoning::not_ready(node));
        plan.warnings.extend(no_other(others));
    }
    Ok(plan)
}

fn no_other(others: Result<bool, ActionError>) -> Option<String> {
    match others {
        Ok(true) => None,
        Ok(false) => Some("no other node takes new pods: they will have nowhere to run".to_owned()),
        Err(error) => {
            let why = error.with_its_hint();
            Some(format!("whether another node takes new pods could not be seen: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;
    use crate::k8s::api::mutation::Mutation;

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node")
    }

    const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}]}";

    fn decided(node: &Node, others: Result<bool, ActionError>) -> Plan {
        decide(node, others, &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn plans_one_patch_of_the_node_as_it_was_read() {
        let plan = decided(&node(READY), Ok(true));
        let Decision::Apply(effect, did, would) = plan.decision else { panic!("{:?}", plan.decision) };
        assert_eq!((effect.namespace.as_str(), effect.name.as_str()), ("", "n1"));
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is a patch") };
        assert_eq!(body["spec"]["unschedulable"], true);
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(did, "Node 'n1' cordoned at 2026-01-31T12:00:00.987Z.");
        assert_eq!(would, "Simulated: Node 'n1' would be cordoned.");
        assert_eq!(plan.warnings, Vec::<String>::new());
        assert_eq!(plan.changes[0].path, "/spec/unschedulable");
    }

    #[test]
    fn leaves_a_node_that_is_cordoned() {
        let plan = decided(&node("spec: {unschedulable: true}"), Ok(true));
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.changes.is_empty() && plan.warnings.is_empty());
    }

    #[test]
    fn warns_when_it_is_the_last_one_or_not_ready() {
        let plan = decided(&node("status: {conditions: []}"), Ok(false));
        let told = plan.warnings.join("; ");
        assert!(told.contains("not ready") && told.contains("no other node"), "{told}");
        let unseen = ActionError::new(Code::Forbidden, "x may not list nodes").with_hint("a rule");
        let told = decided(&node(READY), Err(unseen)).warnings.join("; ");
        assert!(told.contains("may not list nodes; a rule"), "{told}");
    }
}
