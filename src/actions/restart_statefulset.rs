//! `restart_statefulset`: replaces a StatefulSet's pods in its own order, as `kubectl rollout restart` does.

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
    name: "restart_statefulset",
    aliases: &[],
    description: "Restart a StatefulSet: replace its pods one after the other, from the highest ordinal \
                  down. Refused where no pod would restart by itself (update strategy OnDelete, or a \
                  partition that holds all pods) unless accept_on_delete is set.",
    example: r#"{"statefulset":"db"}"#,
    rules: &[
        PolicyRule { api_groups: &["apps"], resources: &["statefulsets"], verbs: &["get", "patch"] },
        // Only with rollback_on_failure, for the revision to go back to.
        PolicyRule { api_groups: &["apps"], resources: &["controllerrevisions"], verbs: &["list"] },
        restart::PODS,
        preflight::AUTOSCALERS,
        preflight::BUDGETS,
    ],
    cluster_rules: &[],
};

/// What `restart_statefulset` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// The StatefulSet to restart.
    pub statefulset: ObjectName,
    /// Its namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schemars(with = "Option<Namespace>")]
    pub namespace: Namespace,
    /// Stamp the template even if no pod restarts by itself (update strategy `OnDelete`, or a partition
    /// that holds all of them).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_on_delete: bool,
    /// If the rollout that is waited for fails or takes too long, take the StatefulSet back to the
    /// revision that it had. Only with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::StatefulSet.target(&self.namespace, &self.statefulset)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, asked: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::StatefulSet, &self.statefulset, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let wishes = RestartOptions {
            even_if_none_restarts: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::StatefulSet, wishes, cluster, asked))
    }
}
