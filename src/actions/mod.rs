//! The actions: one file each, holding all that is particular to it.
//!
//! An action's file has its parameters, the facts it reads, and the decision from those facts to a
//! `Plan`: a refusal, or an effect as data with what it changes, what to warn of and when it is
//! complete. Making effects and waiting for them is common to all and lives elsewhere, so an action
//! writes nothing itself and knows no entry point.
//!
//! To add one: a file with `DESCRIPTOR` and `Parameters`, and its line in the table below. Tests that
//! loop over [`ActionKind::ALL`] then ask for the rest.

use std::{
    collections::{BTreeMap, HashSet},
    pin::Pin,
    time::Duration,
};

use chrono::{DateTime, Utc};
use kube::core::ObjectMeta;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use crate::{
    actions::request::read_parameters,
    contract::{
        error::{ActionError, Code},
        names::RequestId,
        precondition::Precondition,
        response::{Change, Target},
    },
    k8s::{
        api::{
            client::Cluster,
            completion::{Completion, RolloutOf},
            mutation::{Applied, Effect},
            preflight::Preflight,
        },
        drain_filter::EvictionSet,
        preflight_warnings,
        rbac::PolicyRule,
        revisions::{History, RollbackTarget},
        workload::Workload,
    },
};

/// Makes of the table of actions all that has an arm for each of them.
macro_rules! actions {
    ($($(#[doc = $what:literal])* $kind:ident: $file:ident,)*) => {
        $(pub mod $file;)*

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
            #[must_use]
            pub fn descriptor(self) -> &'static Descriptor {
                match self {
                    $(ActionKind::$kind => &$file::DESCRIPTOR,)*
                }
            }

            /// Reads this action's parameters from JSON.
            ///
            /// # Errors
            /// [`Code::InvalidRequest`] with the path of the field at fault.
            pub fn parse(self, parameters: &str) -> Result<Action, ActionError> {
                match self {
                    $(ActionKind::$kind => {
                        read_parameters(parameters).and_then(validated).map(Action::$kind)
                    })*
                }
            }

            /// The JSON Schema of this action's parameters.
            #[must_use]
            pub fn parameters_schema(self, generator: &mut SchemaGenerator) -> Schema {
                match self {
                    $(ActionKind::$kind => $file::Parameters::json_schema(generator),)*
                }
            }
        }

        impl Action {
            /// Which action it is.
            #[must_use]
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
            /// The parameters alone; the kind stands beside them in a request.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Action::$kind(parameters) => parameters.serialize(serializer),)*
                }
            }
        }
    };
}

// In the order in which they are listed everywhere: a variant, and its file.
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
    /// Pause a Deployment's rollout.
    PauseRollout: pause_rollout,
    /// Resume a Deployment's rollout.
    ResumeRollout: resume_rollout,
    /// Evict a pod.
    EvictPod: evict_pod,
    /// Run a CronJob now.
    RunCronjob: run_cronjob,
    /// Suspend a CronJob.
    SuspendCronjob: suspend_cronjob,
    /// Resume a CronJob.
    ResumeCronjob: resume_cronjob,
    /// Take a workload back to an earlier revision.
    Rollback: rollback,
    /// Keep new pods off a node.
    Cordon: cordon,
    /// Let new pods come to a node again.
    Uncordon: uncordon,
    /// Evict the pods of a node.
    Drain: drain,
}

pub mod request;
pub mod shared;

/// What is known of an action without any parameters.
pub struct Descriptor {
    /// The `type` of a request.
    pub name: &'static str,
    /// Other spellings of `type`.
    pub aliases: &'static [&'static str],
    /// What it does and when it refuses, for a person or a model to choose by.
    pub description: &'static str,
    /// Parameters that name no object in particular, in JSON.
    pub example: &'static str,
    /// The least that RBAC must allow for it in the target's namespace.
    pub rules: &'static [PolicyRule],
    /// The least that RBAC must allow for it in the whole cluster, where the target is in no namespace.
    pub cluster_rules: &'static [PolicyRule],
}

/// What an action needs to know of the request beyond its parameters.
#[derive(Clone, Debug)]
pub(crate) struct PlanInput {
    /// The request's id.
    pub id: RequestId,
    /// The time of the request, for stamps and sentences.
    pub at: DateTime<Utc>,
    /// Until when the cluster may be asked.
    pub deadline: Instant,
    /// Whether the effect is waited for.
    pub wait: bool,
    /// What the target must still be.
    pub precondition: Option<Precondition>,
    /// The uid of the object on which it was decided; none before the first look.
    pub uid: Option<String>,
    /// What [`Plan::decided_on`] said at the first look.
    pub decision_etag: Option<String>,
}

impl PlanInput {
    /// Refuses an object that is not the one that is meant, or is going.
    ///
    /// # Errors
    /// [`Code::TargetNotFound`] if it is being deleted, else as [`Asked::check_same`] says.
    pub(crate) fn check_found(
        &self,
        target: &Target,
        metadata: &ObjectMeta,
    ) -> Result<(), ActionError> {
        let target = target.clone().found(metadata);
        let refuse = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        self.check_same(&target).map_err(refuse)?;
        if metadata.deletion_timestamp.is_some() {
            let detail = format!("{target} is being deleted");
            return Err(refuse(ActionError::new(Code::TargetNotFound, detail)));
        }
        Ok(())
    }

    /// Refuses a workload whose pod template was changed since it was decided what to do with it.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`].
    pub(crate) fn check_decided_on(
        &self,
        target: &Target,
        history: &History,
    ) -> Result<(), ActionError> {
        if self.decision_etag.as_ref().is_none_or(|digest| *digest == history.digest()) {
            return Ok(());
        }
        let detail = format!("the pod template of {target} was changed by someone else in between");
        Err(ActionError::new(Code::PreconditionFailed, detail)
            .with_hint("look at the target again and decide anew"))
    }

    /// Whether the object that was read is the one that the request means, and the one that was
    /// looked at before.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`] with the field at fault.
    pub(crate) fn check_same(&self, found: &Target) -> Result<(), ActionError> {
        let differs = |wanted: Option<&str>, found: &Option<String>| {
            wanted.is_some_and(|wanted| found.as_deref() != Some(wanted))
        };
        if differs(self.uid.as_deref(), &found.uid) {
            let detail = format!("{found} was replaced by another of its name in between");
            return Err(ActionError::new(Code::PreconditionFailed, detail)
                .with_hint("look at the target again and decide anew"));
        }
        let Some(wanted) = &self.precondition else { return Ok(()) };
        let (what, is) = if differs(wanted.uid.as_deref(), &found.uid) {
            ("uid", &found.uid)
        } else if differs(wanted.resource_version.as_deref(), &found.resource_version) {
            ("resource_version", &found.resource_version)
        } else {
            return Ok(());
        };
        let is = is.as_deref().unwrap_or("not set");
        let detail = format!("{found} is not the one that the request means: its {what} is {is}");
        Err(ActionError::new(Code::PreconditionFailed, detail)
            .with_field(format!("precondition.{what}"))
            .with_hint("look at the target again and decide anew"))
    }
}

/// What is to be done, decided from facts.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The target as it was read.
    pub target: Target,
    /// The change to make; none if there is nothing to do.
    pub decision: Decision,
    /// What differs afterwards.
    pub changes: Vec<Change>,
    /// What a careful person would want to know.
    pub warnings: Vec<String>,
    /// When it is complete.
    pub completion: CompletionSpec,
    /// The target's metadata as it was read.
    pub found: ObjectMeta,
    /// How many replicas the target has afterwards, if that changes.
    pub replicas: Option<u32>,
    /// The other objects that are acted upon with the target: the policy and the budget hold for each.
    pub others: Vec<AffectedObject>,
    /// What it was decided on, or a digest of it, where the same parameters mean another change once that
    /// has changed: whoever decides anew has to refuse then.
    pub decided_on: Option<String>,
    /// Where the workload goes back to if the awaited rollout fails.
    pub fallback: Option<RollbackTarget>,
}

/// An object that is acted upon because of the target: a pod of a node that is drained.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AffectedObject {
    /// The object.
    pub target: Target,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Plan {
    /// A plan on the object with this metadata, to which changes and warnings may be added.
    pub(crate) fn new(
        target: Target,
        found: &ObjectMeta,
        decision: Decision,
        completion: CompletionSpec,
    ) -> Self {
        Plan {
            target: target.found(found),
            decision,
            changes: Vec::new(),
            warnings: Vec::new(),
            completion,
            found: found.clone(),
            replicas: None,
            others: Vec::new(),
            decided_on: None,
            fallback: None,
        }
    }

    /// The plan with the present revision to go back to, should the rollout fail; the present one as it is
    /// now, and none that somebody makes in between.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the controller has not recorded it yet.
    pub(crate) fn with_fallback(mut self, history: &History) -> Result<Self, ActionError> {
        self.fallback = history.rollback_target();
        self.decided_on = Some(history.digest());
        if self.fallback.is_some() {
            return Ok(self);
        }
        let detail = format!(
            "the present pod template of {} is not recorded as a revision yet, so there is none to go \
             back to",
            self.target
        );
        Err(ActionError::new(Code::Conflict, detail)
            .object_uid(self.target.uid.as_deref())
            .with_retry_after(Some(Duration::from_secs(1))))
    }

    /// The uids of the other objects that are acted upon.
    pub(crate) fn uids_of_others(&self) -> HashSet<String> {
        self.others.iter().filter_map(|other| other.target.uid.clone()).collect()
    }

    /// The plan for an object that carries this request's mark: the change was made, and its answer did
    /// not arrive.
    pub(crate) fn already_made(
        target: Target,
        found: &ObjectMeta,
        sentence: String,
        completion: CompletionSpec,
    ) -> Self {
        let made = Applied {
            resource_version: found.resource_version.clone(),
            generation: found.generation,
            warnings: Vec::new(),
        };
        Plan::new(target, found, Decision::AlreadyApplied(made, sentence), completion)
    }

    /// The plan with what a careful person would want to know of the workload whose pods it replaces;
    /// what is made already, or need not be, needs no warning.
    pub(crate) async fn with_preflight_warnings(
        mut self,
        cluster: &Cluster,
        workload: &Workload,
        asked: &PlanInput,
    ) -> Self {
        if let Decision::Apply(..) = self.decision {
            let namespace = &self.target.namespace;
            let around = Preflight::of(cluster, namespace, workload, asked.deadline).await;
            self.warnings.extend(preflight_warnings::on_rollout(workload, &around, asked.at));
        }
        self
    }
}

impl Target {
    /// The target as it was found.
    pub(crate) fn found(mut self, metadata: &ObjectMeta) -> Self {
        self.uid.clone_from(&metadata.uid);
        self.resource_version.clone_from(&metadata.resource_version);
        self
    }
}

/// What there is to do, each with its sentence.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// Make this effect: what is said once it was made, and what is said of a simulation.
    Apply(Box<Effect>, String, String),
    /// This very request made it before.
    AlreadyApplied(Applied, String),
    /// The target is as wanted through someone else.
    NoOp(String),
}

/// What is left to do once the effect is made.
pub(crate) enum FollowUp<'a> {
    /// To wait until this is so.
    Wait(Completion),
    /// To evict the pods of the node that was cordoned.
    Drain(&'a EvictionSet),
}

/// When what is planned is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompletionSpec {
    /// A workload's rollout, of the generation that the effect makes.
    Rollout(RolloutOf),
    /// Known in full already.
    Known(Completion),
    /// The pods of the node are gone, which is to be brought about.
    Drained(EvictionSet),
}

impl CompletionSpec {
    /// What is left of what this request is to do to the target, given what the effect left behind.
    pub(crate) fn given(&self, target: &Target, made: &Applied) -> FollowUp<'_> {
        match self {
            CompletionSpec::Known(completion) => FollowUp::Wait(completion.clone()),
            CompletionSpec::Drained(drained) => FollowUp::Drain(drained),
            CompletionSpec::Rollout(rollout) => {
                FollowUp::Wait(Completion::of_rollout(rollout.clone(), target, made))
            }
        }
    }

    /// Whether something is to be done after the effect even if nobody waits for it.
    pub(crate) fn is_work(&self) -> bool {
        matches!(self, CompletionSpec::Drained(_))
    }
}

/// What can be said of an action when there is no cluster to ask.
#[derive(Clone, Debug)]
pub(crate) struct Preview {
    /// The sentence of the answer.
    pub result: String,
    /// What would differ.
    pub changes: Vec<Change>,
}

/// The future of a step that may fail.
pub(crate) type BoxFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, ActionError>> + Send + 'a>>;

/// What each action's parameters can do.
pub(crate) trait Plannable {
    /// The object that is acted upon.
    fn target(&self) -> Target;

    /// The namespace of that object; empty for what is in none.
    fn namespace(&self) -> &str;

    /// The node that is acted upon, if it is one.
    fn node(&self) -> Option<&str> {
        None
    }

    /// What is odd about the parameters themselves.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the parameters agree with each other; each by itself was checked when it was read.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] with the field at fault.
    fn check(&self) -> Result<(), ActionError> {
        Ok(())
    }

    /// Whether a workload whose awaited rollout fails is taken back.
    fn rollback_on_failure(&self) -> bool {
        false
    }

    /// What would be done, as far as that can be said without a cluster.
    fn preview(&self, asked: &PlanInput) -> Preview;

    /// Reads the facts and decides.
    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a PlanInput) -> BoxFuture<'a, Plan>;
}

impl ActionKind {
    /// The `type` of a request, in its first spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.descriptor().name
    }

    /// Whether its target is in no namespace.
    #[must_use]
    pub fn is_on_cluster(self) -> bool {
        !self.descriptor().cluster_rules.is_empty()
    }

    /// The action that a request's `type` names.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] with the known names.
    pub fn named(name: &str) -> Result<Self, ActionError> {
        let known = |kind: &ActionKind| {
            let descriptor = kind.descriptor();
            descriptor.name == name || descriptor.aliases.contains(&name)
        };
        ActionKind::ALL.into_iter().find(known).ok_or_else(|| {
            let names: Vec<_> = ActionKind::ALL.iter().map(|kind| kind.name()).collect();
            ActionError::invalid_field("type", "is not an action")
                .with_hint(format!("known: {}", names.join(", ")))
        })
    }
}

impl Action {
    /// The object that is acted upon.
    #[must_use]
    pub fn target(&self) -> Target {
        self.plannable().target()
    }

    /// The namespace of the object that is acted upon; empty for what is in none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.plannable().namespace()
    }

    /// The node that is acted upon, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.plannable().node()
    }

    /// Whether a workload whose awaited rollout fails is taken back.
    #[must_use]
    pub fn rollback_on_failure(&self) -> bool {
        self.plannable().rollback_on_failure()
    }

    /// What is odd about the parameters themselves.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.plannable().warnings()
    }
}

fn validated<P: Plannable>(parameters: P) -> Result<P, ActionError> {
    parameters.check().map(|()| parameters)
}

/// Tells that a parameter of the original service's example was given and has no meaning here.
pub(crate) fn ignored(field: &str, kind: &str) -> String {
    format!("parameters.{field} has no meaning for {kind} and was ignored")
}

#[cfg(test)]
impl PlanInput {
    /// What a plain request with the id `r1` asks, for the tests of decisions.
    pub(crate) fn example() -> Self {
        PlanInput {
            id: RequestId::try_from("r1".to_owned()).expect("is an id"),
            at: "2026-01-31T12:00:00.987Z".parse().expect("is a time"),
            deadline: Instant::now(),
            wait: false,
            precondition: None,
            uid: None,
            decision_etag: None,
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn every_example_is_taken() {
        for kind in ActionKind::ALL {
            let action = kind.parse(kind.descriptor().example).expect("is taken");
            assert_eq!(action.namespace().is_empty(), kind.is_on_cluster(), "{}", kind.name());
        }
    }

    #[test]
    fn no_rule_is_wider_than_it_says() {
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
