//! `restart_k8s`: replaces a Deployment's pods by its own rollout, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview, ignored,
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
    name: "restart_k8s",
    aliases: &["restart_deployment"],
    description: "Restart a Deployment: replace all its pods through its own rollout, at the pace \
                  that its strategy allows. Refused for a paused Deployment.",
    takes_time: true,
    when: "its pods hang, leak or run with an old configuration, and the image is right",
    when_not: "the new revision itself is at fault: use rollback",
    destructive: true,
    example: r#"{"deployment":"web"}"#,
    rules: &[
        PolicyRule {
            api_groups: &["apps"],
            resources: &["deployments"],
            verbs: &["get", "patch", "watch"],
        },
        // With rollback_on_failure, for the revision to return to; with wait, for the newest ReplicaSet.
        PolicyRule { api_groups: &["apps"], resources: &["replicasets"], verbs: &["list"] },
        restart::PODS,
        restart::EVENTS,
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
    /// If the awaited rollout fails or times out, roll the Deployment back to the revision that it had. Only
    /// with `wait`.
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

    fn preview(&self, input: &PlanInput) -> Preview {
        restart::preview(WorkloadKind::Deployment, &self.deployment, input)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let options = RestartOptions {
            accept_no_restart: false,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::Deployment, options, cluster, input))
    }
}
