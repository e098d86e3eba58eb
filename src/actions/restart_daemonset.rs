//! `restart_daemonset`: replaces a DaemonSet's pods node by node, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        Action, BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview,
        shared::{
            restart::{self, RestartOptions},
            selection::{Chosen, Selection},
        },
    },
    contract::{
        error::ActionError,
        label_selector::LabelSelector,
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
            // To list is for a selector.
            verbs: &["get", "list", "patch", "watch"],
        },
        // Only with rollback_on_failure, for the revision to return to.
        PolicyRule { api_groups: &["apps"], resources: &["controllerrevisions"], verbs: &["list"] },
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `restart_daemonset` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["daemonset"], "properties": {
        "selector": { "type": "null" }, "max_targets": { "type": "null" }, "max_failures": { "type": "null" },
    } },
    { "required": ["selector"], "properties": { "daemonset": { "type": "null" } } },
]))]
pub struct Parameters {
    /// The DaemonSet to restart. Either this or `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemonset: Option<ObjectName>,
    /// Restart all DaemonSets that match this label selector, one after the other, instead of one by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// With `selector`: refused if more match; 10 if it is omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub max_targets: Option<u32>,
    /// With `selector`: how many may fail before the others are left alone; 0 if it is omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 49))]
    pub max_failures: Option<u32>,
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

impl Parameters {
    fn chosen(&self) -> Chosen<'_> {
        Chosen {
            field: "daemonset",
            name: self.daemonset.as_ref(),
            selector: self.selector.as_ref(),
            max_targets: self.max_targets,
            max_failures: self.max_failures,
        }
    }
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.chosen().target(WorkloadKind::DaemonSet, &self.namespace)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn check(&self) -> Result<(), ActionError> {
        self.chosen().check()
    }

    fn selection(&self) -> Option<Selection<'_>> {
        self.chosen().selection(WorkloadKind::DaemonSet, &self.namespace)
    }

    fn on(&self, target: ObjectName) -> Option<Action> {
        self.selection()?;
        Some(Action::RestartDaemonset(Parameters {
            daemonset: Some(target),
            selector: None,
            max_targets: None,
            max_failures: None,
            ..self.clone()
        }))
    }

    fn rollback_on_failure(&self) -> bool {
        self.rollback_on_failure
    }

    fn preview(&self, input: &PlanInput) -> Preview {
        match self.selection() {
            Some(selection) => selection.preview("restarted"),
            None => restart::preview(WorkloadKind::DaemonSet, &self.target().name, input),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let options = RestartOptions {
            accept_no_restart: self.accept_on_delete,
            rollback_on_failure: self.rollback_on_failure,
        };
        if let Some(selection) = self.selection() {
            return Box::pin(async move { selection.resolve(cluster, input).await });
        }
        Box::pin(restart::plan(self.target(), WorkloadKind::DaemonSet, options, cluster, input))
    }
}
