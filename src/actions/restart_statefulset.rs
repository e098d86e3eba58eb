//! `restart_statefulset`: replaces a StatefulSet's pods in its own order, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::restart::{self, RestartOptions},
    },
    contract::{
        names::{Namespace, ObjectName, null_is_default},
        response::Target,
    },
    k8s::{
        api::{client::Cluster, preflight},
        rbac::PolicyRule,
        workload::WorkloadKind,
    },
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_statefulset",
    aliases: &[],
    description: "Restart a StatefulSet: replace its pods one after the other, from the highest ordinal \
                  down. Refused if no pod would restart (update strategy OnDelete, or a partition \
                  that covers all pods) unless accept_on_delete is set.",
    takes_time: true,
    when: "its pods hang, or run with an old configuration",
    when_not: "one member alone is at fault: use restart_pod",
    destructive: true,
    example: r#"{"statefulset":"db"}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["statefulsets"],
            verbs: &["get", "patch", "watch"],
        },
        // Only with rollback_on_failure, for the revision to return to.
        PolicyRule { api_groups: &["apps"], resources: &["controllerrevisions"], verbs: &["list"] },
        restart::PODS,
        restart::EVENTS,
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
    /// Annotate the template even if no pod restarts automatically (update strategy `OnDelete`, or a
    /// partition that covers all pods).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_on_delete: bool,
    /// If the awaited rollout fails or times out, roll the StatefulSet back to the revision that it had. Only
    /// with `wait`.
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

    fn preview(&self, input: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::StatefulSet, &self.statefulset, input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let options = RestartOptions {
            accept_no_restart: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::StatefulSet, options, cluster, input))
    }
}
