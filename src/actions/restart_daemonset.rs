//! `restart_daemonset`: replaces a DaemonSet's pods node by node, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Asked, Descriptor, Plan, Plannable, Preview, Rule, Step, restart};
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
    rules: &[
        Rule { api_groups: &["apps"], resources: &["daemonsets"], verbs: &["get", "patch"] },
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
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        WorkloadKind::DaemonSet.target(&self.namespace, &self.daemonset)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn preview(&self, asked: &Asked) -> Preview {
        restart::preview(WorkloadKind::DaemonSet, &self.daemonset, asked)
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a Asked) -> Step<'a, Plan> {
        let kind = WorkloadKind::DaemonSet;
        Box::pin(restart::plan(self.target(), kind, self.accept_on_delete, cluster, asked))
    }
}
