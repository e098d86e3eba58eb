//! `uncordon`: allows new pods on a node again, as `kubectl uncordon` does.

use k8s_openapi::api::core::v1::Node;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::toggle::UNCORDON,
    },
    contract::{error::ActionError, names::ObjectName, response::Target},
    k8s::{api::client::Cluster, completion::Completion, nodes, rbac::PolicyRule},
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "uncordon",
    aliases: &[],
    description: "Uncordon a node: new pods may be scheduled onto it again. Pods that were evicted do \
                  not come back by themselves.",
    takes_time: false,
    when: "a cordoned node is healthy again",
    when_not: "it is unknown why the node was cordoned",
    destructive: false,
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[PolicyRule {
        api_groups: &[""],
        resources: &["nodes"],
        verbs: &["get", "patch"],
    }],
    integration: None,
};

/// What `uncordon` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The node to uncordon.
    pub node: ObjectName,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        UNCORDON.target("", &self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        UNCORDON.preview(&self.target(), input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let node: Node = cluster.get_global(&self.node, input.deadline).await?;
            decide(self.target(), &node, input)
        })
    }
}

fn decide(target: Target, node: &Node, input: &PlanInput) -> Result<Plan, ActionError> {
    let sentence = format!("new pods may be scheduled onto Node '{}'", target.name);
    let completion = CompletionSpec::Known(Completion::Immediate(sentence));
    let is_cordoned = nodes::is_cordoned(node);
    let mut plan = UNCORDON.decide(target, &node.metadata, is_cordoned, completion, input)?;
    if plan.is_change() {
        plan.warnings.extend(nodes::not_ready_warning(node));
        let taints = nodes::out_of_service_taints(node);
        if !taints.is_empty() {
            plan.warnings.push(format!(
                "the node is taken out of service by the taint {}: pods may not be scheduled onto it",
                taints.join(", ")
            ));
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::Decision;

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node")
    }

    fn plan_of(yaml: &str) -> Plan {
        decide(UNCORDON.target("", "n1"), &node(yaml), &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn an_uncordon_removes_the_field() {
        let plan = plan_of(
            "spec: {unschedulable: true}\nstatus: {conditions: [{type: Ready, status: 'True'}]}",
        );
        let (effect, did, _) = plan.expect_change();
        let change = serde_json::json!({ "op": "remove", "path": "/spec/unschedulable" });
        assert_eq!(effect.operations().last(), Some(&change));
        assert_eq!(did, "Node 'n1' uncordoned at 2026-01-31T12:00:00.987Z.");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn a_node_that_is_not_cordoned_is_left() {
        assert!(matches!(plan_of("spec: {}").decision, Decision::NoOp(_)));
    }

    #[test]
    fn a_node_that_is_tainted_out_of_service_is_warned_of() {
        let taint = "{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}";
        let plan = plan_of(&format!("spec: {{unschedulable: true, taints: [{taint}]}}"));
        let warnings = plan.warnings.join("; ");
        assert!(warnings.contains("not ready"), "{warnings}");
        assert!(warnings.contains("ToBeDeletedByCluster"), "{warnings}");
    }
}
