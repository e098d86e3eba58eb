//! The parts of a diagnosis, each with the permission that it needs. The executor needs them, and a user of the cluster
//! who asks for a diagnosis does, so that nobody reads more through the executor than without it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    diagnosis::target::{Target, TargetKind},
    k8s::{
        api::preflight::{AUTOSCALERS, PDBS},
        rbac::PolicyRule,
    },
    ledger,
};

/// A part that is left out where it cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// The pods, and what is wrong with them.
    Pods,
    /// The Jobs of a CronJob.
    Jobs,
    /// The Events of the target and of failing pods.
    Events,
    /// The log of the failing container.
    Log,
    /// Who scales it.
    Autoscalers,
    /// The disruption budgets of its pods.
    DisruptionBudgets,
    /// What was done to it.
    History,
}

const GET_PODS_LOG: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods/log"], verbs: &["get"] };

const LIST_PODS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["list"] };

const LIST_JOBS: PolicyRule =
    PolicyRule { api_groups: &["batch"], resources: &["jobs"], verbs: &["list"] };

/// What a diagnosis needs in the namespace of its target.
pub const RULES: [PolicyRule; 8] = [
    PolicyRule {
        api_groups: &["apps"],
        resources: &["deployments", "statefulsets", "daemonsets", "replicasets"],
        verbs: &["get"],
    },
    PolicyRule { api_groups: &["batch"], resources: &["cronjobs"], verbs: &["get"] },
    PolicyRule { api_groups: &["batch"], resources: &["jobs"], verbs: &["get", "list"] },
    PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "list"] },
    GET_PODS_LOG,
    ledger::HISTORY,
    AUTOSCALERS,
    PDBS,
];

/// What the diagnosis of a node needs in the whole cluster, besides [`ledger::HISTORY`] in the namespace `default`.
pub const NODE_RULES: [PolicyRule; 2] =
    [PolicyRule { api_groups: &[""], resources: &["nodes"], verbs: &["get"] }, LIST_PODS];

impl Part {
    /// The parts of a diagnosis of this kind.
    pub(crate) fn of(kind: TargetKind) -> &'static [Part] {
        use Part::{Autoscalers, DisruptionBudgets, Events, History, Jobs, Log, Pods};
        match kind {
            TargetKind::Workload(_) => {
                &[Pods, Events, Log, Autoscalers, DisruptionBudgets, History]
            }
            TargetKind::Pod => &[Events, Log, DisruptionBudgets, History],
            TargetKind::Job => &[Pods, Events, Log, History],
            TargetKind::CronJob => &[Jobs, Pods, Events, Log, History],
            TargetKind::Node => &[Pods, Events, History],
        }
    }

    /// The permission that it needs.
    pub(crate) fn rule(self) -> PolicyRule {
        match self {
            Part::Pods => LIST_PODS,
            Part::Jobs => LIST_JOBS,
            Part::Log => GET_PODS_LOG,
            Part::Events | Part::History => ledger::HISTORY,
            Part::Autoscalers => AUTOSCALERS,
            Part::DisruptionBudgets => PDBS,
        }
    }

    /// The namespace in which it is read; empty: all.
    pub(crate) fn namespace(self, target: &Target) -> &str {
        match (self, target.kind) {
            (Part::Events | Part::History, TargetKind::Node) => NODE_EVENTS,
            _ => target.namespace(),
        }
    }
}

/// The namespace of the Events about nodes.
pub(crate) const NODE_EVENTS: &str = "default";
