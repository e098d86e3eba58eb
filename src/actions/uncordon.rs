//! `uncordon`: lets new pods come to a node again, as `kubectl uncordon` does.

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
    name: "uncordon",
    aliases: &[],
    description: "Uncordon a node: new pods may be scheduled onto it again. Pods that were evicted do \
                  not come back by themselves.",
    example: r#"{"node":"worker-1"}"#,
    rules: &[],
    cluster_rules: &[PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get", "patch"] }],
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
        cordoning::target(&self.node)
    }

    fn namespace(&self) -> &str {
        ""
    }

    fn node(&self) -> Option<&str> {
        Some(&self.node)
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        cordoning::preview(&self.node, false, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        Box::pin(async move {
            let node: Node = cluster.get_global(&self.node, asked.deadline).await?;
            decide(&node, asked)
        })
    }
}

/// From the node as it was read to what is to be done.
fn decide(node: &Node, asked: &PlanInput) -> Result<Plan, ActionError> {
    let mut plan = cordoning::decide(node, false, asked)?;
    if matches!(plan.decision, Decision::Apply(..)) {
        plan.warnings.extend(cordoning::not_ready(node));
        let taints = nodes::out_of_service(node);
        if !taints.is_empty() {
            plan.warnings.push(format!(
                "others take the node out of service: it has the taint {}",
                taints.join(", ")
            ));
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::api::mutation::Mutation;

    fn node(yaml: &str) -> Node {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: n1, uid: u1, resourceVersion: '7'}}\n{yaml}"
        ))
        .expect("is a Node")
    }

    fn decided(yaml: &str) -> Plan {
        decide(&node(yaml), &PlanInput::example()).expect("is planned")
    }

    #[test]
    fn takes_the_field_away() {
        let plan = decided(
            "spec: {unschedulable: true}\nstatus: {conditions: [{type: Ready, status: 'True'}]}",
        );
        let Decision::Apply(effect, did, _) = plan.decision else { panic!("{:?}", plan.decision) };
        let Mutation::Patch { body, .. } = effect.mutation else { panic!("is a patch") };
        assert!(body["spec"]["unschedulable"].is_null());
        assert_eq!(did, "Node 'n1' uncordoned at 2026-01-31T12:00:00.987Z.");
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn leaves_a_node_that_is_not_cordoned() {
        assert!(matches!(decided("spec: {}").decision, Decision::NoOp(_)));
    }

    #[test]
    fn warns_of_a_node_that_others_take_out_of_service() {
        let taint = "{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}";
        let plan = decided(&format!("spec: {{unschedulable: true, taints: [{taint}]}}"));
        let told = plan.warnings.join("; ");
        assert!(told.contains("not ready") && told.contains("ToBeDeletedByCluster"), "{told}");
    }
}
