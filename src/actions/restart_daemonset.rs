//! `restart_daemonset`: replaces a DaemonSet's pods node by node, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actions::PlanInput;
use crate::actions::Descriptor;
use crate::actions::Plan;
use crate::actions::Plannable;
use crate::actions::Preview;
use crate::k8s::rbac::PolicyRule;
use crate::actions::BoxFuture;
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
    name: "restart_daemonset",
    aliases: &[],
    description: "Restart a DaemonSet: replace its pods node by node, at the pace that its strategy \
                  allows. Refused where no pod would restart by itself (update strategy OnDelete) \
                  unless accept_on_delete is set.",
    example: r#"{"daemonset":"agent"}"#,
    rules: &[
        PolicyRule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get", "patch"] },
        // Only with rollback_on_failure, for the revision to go back to.
        PolicyRule { api_groups: &["apps"], resources: &["controllerrevisions"], verbs: &["list"] },
        restart::PODS,
        preflight::AUTOSCALERS,
        preflight::BUDGETS,
    ],
    cluster_rules: &[],
};

/// What `restart_daemonset` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The DaemonSet to restart.
    pub daemonset: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Stamp the template even if no pod restarts by itself (update strategy `OnDelete`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_on_delete: bool,
    /// If the rollout that is waited for fails or takes too long, take the DaemonSet back to the
    /// revision that it had. Only with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::DaemonSet.target(&self.namespace, &self.daemonset)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::DaemonSet, &self.daemonset, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let wishes = RestartOptions {
            even_if_none_restarts: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::DaemonSet, wishes, cluster, asked))
    }
}
