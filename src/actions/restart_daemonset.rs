//! `restart_daemonset`: replaces a DaemonSet's pods node by node, as `kubectl rollout restart` does.

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
    name: "restart_daemonset",
    aliases: &[],
    description: "Restart a DaemonSet: replace its pods node by node, at the pace that its strategy \
                  allows. Refused if no pod would restart (update strategy OnDelete) unless \
                  accept_on_delete is set.",
    takes_time: true,
    when: "the agent misbehaves on many nodes",
    when_not: "it misbehaves on one node: use restart_pod there",
    destructive: true,
    example: r#"{"daemonset":"agent"}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["daemonsets"],
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
    /// Annotate the template even if no pod restarts automatically (update strategy `OnDelete`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_on_delete: bool,
    /// If the awaited rollout fails or times out, roll the DaemonSet back to the revision that it had. Only
    /// with `wait`.
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

    fn preview(&self, input: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::DaemonSet, &self.daemonset, input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let options = RestartOptions {
            accept_no_restart: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::DaemonSet, options, cluster, input))
    }
}
