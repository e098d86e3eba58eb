//! `restart_k8s`: replaces a Deployment's pods by its own rollout, as `kubectl rollout restart` does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    actions::{
        Action, BoxFuture, Descriptor, Plan, PlanInput, Plannable, Preview, ignored,
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
            // To list is for a selector.
            verbs: &["get", "list", "patch", "watch"],
        },
        // With rollback_on_failure, for the revision to return to; with wait, for the newest ReplicaSet.
        PolicyRule { api_groups: &["apps"], resources: &["replicasets"], verbs: &["list"] },
        restart::PODS,
        restart::EVENTS,
        preflight::AUTOSCALERS,
        preflight::PDBS,
        preflight::PVCS,
    ],
    cluster_rules: &[],
    integration: None,
};

/// What `restart_k8s` acts upon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["deployment"], "properties": {
        "selector": { "type": "null" }, "max_targets": { "type": "null" }, "max_failures": { "type": "null" },
    } },
    { "required": ["selector"], "properties": { "deployment": { "type": "null" } } },
]))]
pub struct Parameters {
    /// The Deployment to restart. Either this or `selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<ObjectName>,
    /// Restart all Deployments that match this label selector, one after the other, instead of one by its name.
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
    /// Ignored, with a warning: the original service's example carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub pod_name: Option<String>,
    /// If the awaited rollout fails or times out, roll the Deployment back to the revision that it had. Only
    /// with `wait`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback_on_failure: bool,
}

impl Parameters {
    fn chosen(&self) -> Chosen<'_> {
        Chosen {
            field: "deployment",
            name: self.deployment.as_ref(),
            selector: self.selector.as_ref(),
            max_targets: self.max_targets,
            max_failures: self.max_failures,
        }
    }
}

impl Plannable for Parameters {
    fn target(&self) -> Target {
        self.chosen().target(WorkloadKind::Deployment, &self.namespace)
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn warnings(&self) -> Vec<String> {
        self.pod_name.iter().map(|_| ignored("pod_name", DESCRIPTOR.name)).collect()
    }

    fn check(&self) -> Result<(), ActionError> {
        self.chosen().check()
    }

    fn selection(&self) -> Option<Selection<'_>> {
        self.chosen().selection(WorkloadKind::Deployment, &self.namespace)
    }

    fn on(&self, target: ObjectName) -> Option<Action> {
        self.selection()?;
        Some(Action::RestartK8s(Parameters {
            deployment: Some(target),
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
            None => restart::preview(WorkloadKind::Deployment, &self.target().name, input),
        }
    }

    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan> {
        let options = RestartOptions {
            accept_no_restart: false,
            rollback_on_failure: self.rollback_on_failure,
        };
        if let Some(selection) = self.selection() {
            return Box::pin(async move { selection.resolve(cluster, input).await });
        }
        Box::pin(restart::plan(self.target(), WorkloadKind::Deployment, options, cluster, input))
    }
}
