//! `restart_k8s`: replaces a Deployment's pods by its own rollout, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
use crate::actions::ignored;
use crate::actions::shared::restart;
use crate::actions::shared::restart::RestartOptions;
use crate::k8s::api::client::Cluster;
use crate::k8s::api::preflight;
use crate::k8s::workload::WorkloadKind;
use crate::contract::names::Namespace;
use crate::contract::names::ObjectName;
use crate::contract::names::null_is_default;
use crate::contract::response::Target;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_k8s",
    aliases: &["restart_deployment"],
    description: "Restart a Deployment: replace all its pods through its own rollout, at the pace \
                  that its strategy allows. Refused for a paused Deployment.",
    example: r#"{"deployment":"web"}"#,
    rules: &[
        PolicyRule { api_groups: &["apps"], resources: &["deployments"], verbs: &["get", "patch"] },
        // Only with rollback_on_failure, for the revision to go back to.
        PolicyRule { api_groups: &["apps"], resources: &["replicasets"], verbs: &["list"] },
        restart::PODS,
        preflight::AUTOSCALERS,
        preflight::BUDGETS,
        preflight::CLAIMS,
    ],
    cluster_rules: &[],
};

/// What `restart_k8s` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The Deployment to restart.
    pub deployment: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Ignored, with a warning: the original service's example carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub pod_name: Option<String>,
    /// If the rollout that is waited for fails or takes too long, take the Deployment back to the
    /// revision that it had. Only with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::Deployment.target(&self.namespace, &self.deployment)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn warnings(&self) -> Vec<String> {
        self.pod_name.iter().map(|_| ignored("pod_name", DESCRIPTOR.name)).collect()
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::Deployment, &self.deployment, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let wishes = RestartOptions {
            even_if_none_restarts: false,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::Deployment, wishes, cluster, asked))
    }
}
