//! The registry of actions: one file per action has all that is particular to it.
//!
//! An action's file has its parameters, the facts that it reads, and the decision from those facts to a
//! `Plan`: a refusal, or an effect as data with what it changes, what to warn of and when it is complete.
//! Applying effects and waiting for them is the executor's work: an action writes nothing and must not
//! depend on an entry point.
//!
//! To add an action: a file with `DESCRIPTOR` and `Parameters`, and its line in the table below. Tests that
//! loop over [`ActionKind::ALL`] then ask for the rest.

use std::pin::Pin;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::{Serialize, Serializer};

pub(crate) use crate::actions::plan::{
    AffectedObject, BoundsChange, ChangedKeys, CompletionSpec, Decision, FollowUp, ImageChange,
    KeysOf, Plan, PlanInput, Preview, ResourceChange, SelectedTarget, SizeChange,
};
use crate::{
    actions::{request::read_parameters, shared::selection::Selection},
    contract::{error::ActionError, image::ImageReference, names::ObjectName, response::Target},
    k8s::{api::client::Cluster, integrations::Integration, rbac::PolicyRule},
};

/// Generates from the table of actions all that has an arm for each of them.
macro_rules! actions {
    ($($(#[doc = $what:literal])* $kind:ident: $file:ident,)*) => {
        $(pub(crate) mod $file;)*

        /// An action with its parameters.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Action {
            $($(#[doc = $what])* $kind($file::Parameters),)*
        }

        /// Which action.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ActionKind {
            $($(#[doc = $what])* $kind,)*
        }

        impl ActionKind {
            /// Every action.
            pub const ALL: [ActionKind; [$(stringify!($kind)),*].len()] = [$(ActionKind::$kind,)*];

            /// What is known of it without parameters.
            pub fn descriptor(self) -> &'static Descriptor {
                match self {
                    $(ActionKind::$kind => &$file::DESCRIPTOR,)*
                }
            }

            /// Reads this action's parameters from JSON.
            ///
            /// # Errors
            /// `Code::InvalidRequest` with the path of the wrong field.
            pub(crate) fn parse(self, parameters: &str) -> Result<Action, ActionError> {
                match self {
                    $(ActionKind::$kind => {
                        read_parameters(parameters).and_then(validated).map(Action::$kind)
                    })*
                }
            }

            /// The JSON Schema of its parameters.
            pub fn parameters_schema(self, generator: &mut SchemaGenerator) -> Schema {
                match self {
                    $(ActionKind::$kind => $file::Parameters::json_schema(generator),)*
                }
            }
        }

        impl Action {
            /// Its kind.
            pub fn kind(&self) -> ActionKind {
                match self {
                    $(Action::$kind(_) => ActionKind::$kind,)*
                }
            }

            pub(crate) fn plannable(&self) -> &(dyn Plannable + Send + Sync) {
                match self {
                    $(Action::$kind(parameters) => parameters,)*
                }
            }
        }

        impl Serialize for Action {
            /// The parameters alone; a request has the kind beside them.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Action::$kind(parameters) => parameters.serialize(serializer),)*
                }
            }
        }
    };
}

// In the order of every list: the variant, and its file.
actions! {
    /// Restart a Deployment.
    RestartK8s: restart_k8s,
    /// Restart a pod by deleting it.
    RestartPod: restart_pod,
    /// Restart a StatefulSet.
    RestartStatefulset: restart_statefulset,
    /// Restart a DaemonSet.
    RestartDaemonset: restart_daemonset,
    /// Set a workload's number of replicas.
    Scale: scale,
    /// Set the bounds of an autoscaler.
    SetAutoscalerBounds: set_autoscaler_bounds,
    /// Set the images of a workload's containers.
    SetImage: set_image,
    /// Set the requests and limits of a workload's containers.
    SetResources: set_resources,
    /// Set the requests and limits of a running pod's containers.
    ResizePod: resize_pod,
    /// Expand a volume claim.
    ExpandPvc: expand_pvc,
    /// Pause a Deployment's rollout.
    PauseRollout: pause_rollout,
    /// Resume a Deployment's rollout.
    ResumeRollout: resume_rollout,
    /// Evict a pod.
    EvictPod: evict_pod,
    /// Remove the object of a pod that nobody removes.
    DeleteStuckPod: delete_stuck_pod,
    /// Run a CronJob now.
    RunCronjob: run_cronjob,
    /// Suspend a CronJob.
    SuspendCronjob: suspend_cronjob,
    /// Resume a CronJob.
    ResumeCronjob: resume_cronjob,
    /// Delete a Job.
    DeleteJob: delete_job,
    /// Run a finished Job again.
    RerunJob: rerun_job,
    /// Delete the finished pods of a namespace.
    CleanPods: clean_pods,
    /// Roll a workload back to an earlier revision.
    Rollback: rollback,
    /// Restart a Rollout.
    RestartArgoRollout: restart_argo_rollout,
    /// End the pause of a Rollout.
    PromoteArgoRollout: promote_argo_rollout,
    /// Abort the update of a Rollout.
    AbortArgoRollout: abort_argo_rollout,
    /// Retry the aborted update of a Rollout.
    RetryArgoRollout: retry_argo_rollout,
    /// Roll a Rollout back to an earlier revision.
    UndoArgoRollout: undo_argo_rollout,
    /// Keep new pods off a node.
    Cordon: cordon,
    /// Let new pods come to a node again.
    Uncordon: uncordon,
    /// Evict the pods of a node.
    Drain: drain,
    /// Set and remove labels.
    Label: label,
    /// Set and remove annotations.
    Annotate: annotate,
    /// Taint a node.
    Taint: taint,
    /// Remove a taint of a node.
    Untaint: untaint,
    /// Suspend what Flux reconciles.
    SuspendFlux: suspend_flux,
    /// Resume what Flux reconciles.
    ResumeFlux: resume_flux,
    /// Have Flux reconcile now.
    ReconcileFlux: reconcile_flux,
    /// Suspend automated sync of an Application of Argo CD.
    SuspendArgoCdSync: suspend_argo_cd_sync,
    /// Resume automated sync of an Application of Argo CD.
    ResumeArgoCdSync: resume_argo_cd_sync,
    /// Have Argo CD sync an Application now.
    SyncArgoCd: sync_argo_cd,
    /// Pause KEDA's scaling.
    PauseKeda: pause_keda,
    /// Resume KEDA's scaling.
    ResumeKeda: resume_keda,
}

pub(crate) mod plan;
pub mod request;
pub(crate) mod shared;
pub(crate) mod summary;

/// What is known of an action without its parameters.
pub struct Descriptor {
    /// The `type` of a request.
    pub name: &'static str,
    /// Other spellings of `type`.
    pub aliases: &'static [&'static str],
    /// What it does and when it refuses, for a person or a model that chooses an action.
    pub description: &'static str,
    /// Whether its effect is complete some time after the change, for which `wait` waits.
    pub takes_time: bool,
    /// When to choose it, as the end of the sentence "Choose it when ...".
    pub when: &'static str,
    /// When to choose something else, as the end of the sentence "Do not choose it when ...".
    pub when_not: &'static str,
    /// Whether pods end, or their template is replaced.
    pub destructive: bool,
    /// Example parameters, in JSON.
    pub example: &'static str,
    /// The minimal RBAC rules in the target's namespace; none if the target is cluster-scoped.
    pub rules: &'static [PolicyRule],
    /// The minimal RBAC rules in the whole cluster, for a target that is cluster-scoped, or to read nodes.
    pub cluster_rules: &'static [PolicyRule],
    /// The operator whose objects it acts on; none for those of Kubernetes itself.
    pub integration: Option<Integration>,
}

/// The boxed future of a fallible step, so that [`Plannable`] can be a trait object.
pub(crate) type BoxFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, ActionError>> + Send + 'a>>;

/// What each action's parameters implement.
pub(crate) trait Plannable {
    fn target(&self) -> Target;

    /// The target's namespace; empty if it is cluster-scoped.
    fn namespace(&self) -> &str;

    /// The target's name, if it is a node.
    fn node(&self) -> Option<&str> {
        None
    }

    /// Warnings about the parameters themselves.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Checks the parameters against each other; each one was checked when it was read.
    ///
    /// # Errors
    /// `Code::InvalidRequest` with the wrong field.
    fn check(&self) -> Result<(), ActionError> {
        Ok(())
    }

    /// Whether a workload is rolled back when its awaited rollout fails.
    fn rollback_on_failure(&self) -> bool {
        false
    }

    /// How the targets are chosen, if they are not named.
    fn selection(&self) -> Option<Selection<'_>> {
        None
    }

    /// The same action on one target of the selection; none if there is no selection.
    fn on(&self, _target: ObjectName) -> Option<Action> {
        None
    }

    /// The keys that it sets or removes, if it changes entries by their keys.
    fn changed_keys(&self) -> Option<ChangedKeys<'_>> {
        None
    }

    /// The images that it sets.
    fn images(&self) -> Vec<&ImageReference> {
        Vec::new()
    }

    /// What would be done, as far as that is known without a cluster.
    fn preview(&self, input: &PlanInput) -> Preview;

    /// Reads the facts from the cluster and decides.
    fn plan<'a>(&'a self, cluster: &'a Cluster, input: &'a PlanInput) -> BoxFuture<'a, Plan>;
}

impl ActionKind {
    /// The `type` of a request; never an alias.
    pub fn name(self) -> &'static str {
        self.descriptor().name
    }

    /// The JSON Schema (2020-12) of its parameters, which refers to nothing outside itself.
    pub(crate) fn whole_schema(self) -> Schema {
        let settings = SchemaSettings::draft2020_12();
        let settings = settings.with(|settings| settings.inline_subschemas = true);
        self.parameters_schema(&mut settings.into_generator())
    }

    /// Whether its target is cluster-scoped.
    pub(crate) fn is_on_cluster(self) -> bool {
        self.descriptor().rules.is_empty()
    }

    /// The action that a request's `type` names.
    ///
    /// # Errors
    /// `Code::InvalidRequest` with the known names.
    pub(crate) fn named(name: &str) -> Result<Self, ActionError> {
        let known = |kind: &ActionKind| {
            let descriptor = kind.descriptor();
            descriptor.name == name || descriptor.aliases.contains(&name)
        };
        ActionKind::ALL.into_iter().find(known).ok_or_else(|| {
            let names: Vec<_> = ActionKind::ALL.iter().map(|kind| kind.name()).collect();
            ActionError::invalid_field("type", "unknown action")
                .with_hint(format!("known actions: {}", names.join(", ")))
        })
    }
}

impl Action {
    pub(crate) fn target(&self) -> Target {
        self.plannable().target()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.plannable().namespace()
    }

    pub(crate) fn node(&self) -> Option<&str> {
        self.plannable().node()
    }

    pub(crate) fn rollback_on_failure(&self) -> bool {
        self.plannable().rollback_on_failure()
    }

    pub(crate) fn changed_keys(&self) -> Option<ChangedKeys<'_>> {
        self.plannable().changed_keys()
    }

    pub(crate) fn selection(&self) -> Option<Selection<'_>> {
        self.plannable().selection()
    }

    pub(crate) fn on(&self, target: ObjectName) -> Option<Action> {
        self.plannable().on(target)
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.plannable().warnings()
    }
}

fn validated<P: Plannable>(parameters: P) -> Result<P, ActionError> {
    parameters.check().map(|()| parameters)
}

/// The warning about a parameter that has no meaning for this action.
pub(crate) fn ignored(field: &str, kind: &str) -> String {
    format!("parameters.{field} has no meaning for {kind} and was ignored")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_aliases_are_unique() {
        let mut seen = HashSet::new();
        for kind in ActionKind::ALL {
            let descriptor = kind.descriptor();
            for name in [descriptor.name].iter().chain(descriptor.aliases) {
                assert!(seen.insert(*name), "{name}");
                assert_eq!(ActionKind::named(name).expect("is known"), kind);
            }
        }
    }

    #[test]
    fn every_example_is_accepted() {
        for kind in ActionKind::ALL {
            let action = kind.parse(kind.descriptor().example).expect("is accepted");
            assert_eq!(action.namespace().is_empty(), kind.is_on_cluster(), "{}", kind.name());
        }
    }

    #[test]
    fn no_rule_has_a_wildcard_or_names_secrets_or_exec() {
        for kind in ActionKind::ALL {
            let Descriptor { rules, cluster_rules, .. } = kind.descriptor();
            for rule in rules.iter().chain(*cluster_rules) {
                let words = [rule.api_groups, rule.resources, rule.verbs].concat();
                assert!(!words.contains(&"*"), "{}", kind.name());
                assert!(!rule.resources.contains(&"secrets"), "{}", kind.name());
                assert!(!rule.resources.iter().any(|it| it.ends_with("/exec")), "{}", kind.name());
            }
        }
    }

    #[test]
    fn every_parameter_is_described() {
        for kind in ActionKind::ALL {
            let mut generator = SchemaGenerator::default();
            let schema = kind.parameters_schema(&mut generator);
            let properties = schema.get("properties").and_then(|it| it.as_object());
            for (name, property) in properties.expect("has properties") {
                assert!(property.get("description").is_some(), "{}: {name}", kind.name());
            }
        }
    }
}
