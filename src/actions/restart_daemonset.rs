//! `restart_daemonset`: replaces a DaemonSet's pods node by node, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Descriptor, Plan, Plannable, Preview, Rule, Step, restart::{self, Wishes}};
use crate::{
    k8s::{cluster::Cluster, surroundings, workload::WorkloadKind},
    names::{Namespace, ObjectName, null_is_default},
    response::Target,
};

pub(super) const DESCRIPTOR: Descriptor = Descriptor {
    name: "restart_daemonset",
    aliases: &[],
    description: "Restart a DaemonSet: replace its pods node by node, at the pace that its strategy \
                  allows. Refused where no pod would restart by itself (update strategy OnDelete) \
                  unless accept_on_delete is set.",
    example: r#"{"daemonset":"agent"}"#,
    rules: &[
        Rule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get", "patch"] },
        // Only with rollback_on_failure, for the revision to go back to.
        Rule { api_groups: &["apps"], resources: &["controllerrevisions"], verbs: &["list"] },
        restart::PODS,
        surroundings::AUTOSCALERS,
        surroundings::BUDGETS,
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

    fn preview(&self, asked: &Asked) -> Preview {
        restart::preview(WorkloadKind::DaemonSet, &self.daemonset, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a Asked) -> Step<'a, Plan> {
        let wishes = Wishes {
            even_if_none_restarts: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        Box::pin(restart::plan(self.target(), WorkloadKind::DaemonSet, wishes, cluster, asked))
    }
}
