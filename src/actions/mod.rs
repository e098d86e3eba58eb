//! The actions: one file each, holding all that is particular to it.
//!
//! An action's file has its parameters, the facts it reads, and the decision from those facts to a
//! `Plan`: a refusal, or an effect as data with what it changes, what to warn of and when it is
//! complete. Making effects and waiting for them is common to all and lives elsewhere, so an action
//! writes nothing itself and knows no entry point.
//!
//! To add one: a file, a variant of [`ActionKind`] and of [`Action`], and their match arms. Tests that
//! loop over [`ActionKind::ALL`] then ask for the rest.

use std::pin::Pin;

use chrono::{DateTime, Utc};
use kube::core::ObjectMeta;
use schemars::{Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use crate::{
    error::{ActionError, Code},
    k8s::{
        cluster::Cluster,
        completion::Completion,
        effect::{Effect, Made},
    },
    names::RequestId,
    request::Precondition,
    response::{Change, Target},
};

pub mod restart_k8s;
pub mod restart_pod;

/// An action with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Restart a Deployment.
    RestartK8s(restart_k8s::Parameters),
    /// Restart a pod by deleting it.
    RestartPod(restart_pod::Parameters),
}

/// Which action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActionKind {
    /// `restart_k8s`
    RestartK8s,
    /// `restart_pod`
    RestartPod,
}

/// What is known of an action without any parameters.
pub struct Descriptor {
    /// The `type` of a request.
    pub name: &'static str,
    /// Other spellings of `type`.
    pub aliases: &'static [&'static str],
    /// What it does and when it refuses, for a person or a model to choose by.
    pub description: &'static str,
    /// The least that RBAC must allow for it.
    pub rules: &'static [Rule],
    parse: fn(&str) -> Result<Action, ActionError>,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

/// One RBAC rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// API groups; the core group is empty.
    pub api_groups: &'static [&'static str],
    /// Resources in the plural.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}

/// What an action needs to know of the request beyond its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
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
}

impl Asked {
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
    pub todo: Todo,
    /// What differs afterwards.
    pub changes: Vec<Change>,
    /// What a careful person would want to know.
    pub warnings: Vec<String>,
    /// When it is complete.
    pub completion: CompletionOf,
    /// The target's metadata as it was read.
    pub found: ObjectMeta,
}

/// What there is to do, each with its sentence.
#[derive(Clone, Debug)]
pub(crate) enum Todo {
    /// Make this effect: what is said once it was made, and what is said of a simulation.
    Make(Box<Effect>, String, String),
    /// This very request made it before.
    AlreadyMade(Made, String),
    /// The target is as wanted through someone else.
    Nothing(String),
}

/// Makes the completion, once it is known what the effect left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompletionOf {
    /// A Deployment's rollout, of the generation that the effect made.
    Rollout,
    /// Known in full already.
    Known(Completion),
}

impl CompletionOf {
    /// When what this request did to the target is complete, given what the effect left behind.
    pub(crate) fn given(&self, target: &Target, made: &Made, id: &str) -> Completion {
        match self {
            CompletionOf::Known(completion) => completion.clone(),
            CompletionOf::Rollout => Completion::RolledOut {
                namespace: target.namespace.clone(),
                deployment: target.name.clone(),
                generation: made.generation.unwrap_or(0),
                request_id: id.to_owned(),
            },
        }
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
pub(crate) type Step<'a, T> = Pin<Box<dyn Future<Output = Result<T, ActionError>> + Send + 'a>>;

/// What each action's parameters can do.
pub(crate) trait Plannable {
    /// The object that is acted upon.
    fn target(&self) -> Target;

    /// The namespace of that object.
    fn namespace(&self) -> &str;

    /// What is odd about the parameters themselves.
    fn warnings(&self) -> Vec<String>;

    /// What would be done, as far as that can be said without a cluster.
    fn preview(&self, asked: &Asked) -> Preview;

    /// Reads the facts and decides.
    fn plan<'a>(&'a self, cluster: &'a Cluster, asked: &'a Asked) -> Step<'a, Plan>;
}

impl ActionKind {
    /// Every action.
    pub const ALL: [ActionKind; 2] = [ActionKind::RestartK8s, ActionKind::RestartPod];

    /// What is known of it without parameters.
    #[must_use]
    pub fn descriptor(self) -> &'static Descriptor {
        match self {
            ActionKind::RestartK8s => &restart_k8s::DESCRIPTOR,
            ActionKind::RestartPod => &restart_pod::DESCRIPTOR,
        }
    }

    /// The `type` of a request, in its first spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.descriptor().name
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
            ActionError::in_field("type", "is not an action")
                .with_hint(format!("known: {}", names.join(", ")))
        })
    }

    /// Reads this action's parameters from JSON.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] with the path of the field at fault.
    pub fn parse(self, parameters: &str) -> Result<Action, ActionError> {
        (self.descriptor().parse)(parameters)
    }

    /// The JSON Schema of this action's parameters.
    #[must_use]
    pub fn parameters_schema(self, generator: &mut SchemaGenerator) -> Schema {
        (self.descriptor().schema)(generator)
    }
}

impl Action {
    /// Which action it is.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self {
            Action::RestartK8s(_) => ActionKind::RestartK8s,
            Action::RestartPod(_) => ActionKind::RestartPod,
        }
    }

    /// The object that is acted upon.
    #[must_use]
    pub fn target(&self) -> Target {
        self.plannable().target()
    }

    /// The namespace of the object that is acted upon.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.plannable().namespace()
    }

    /// What is odd about the parameters themselves.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.plannable().warnings()
    }

    pub(crate) fn plannable(&self) -> &(dyn Plannable + Send + Sync) {
        match self {
            Action::RestartK8s(parameters) => parameters,
            Action::RestartPod(parameters) => parameters,
        }
    }
}

impl Serialize for Action {
    /// The parameters alone; the kind stands beside them in a request.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Action::RestartK8s(parameters) => parameters.serialize(serializer),
            Action::RestartPod(parameters) => parameters.serialize(serializer),
        }
    }
}

/// Tells that a parameter of the original service's example was given and has no meaning here.
pub(crate) fn ignored(field: &str, kind: &str) -> String {
    format!("parameters.{field} has no meaning for {kind} and was ignored")
}

#[cfg(test)]
impl Asked {
    /// What a plain request with the id `r1` asks, for the tests of decisions.
    pub(crate) fn example() -> Self {
        Asked {
            id: RequestId::try_from("r1".to_owned()).expect("is an id"),
            at: "2026-01-31T12:00:00.987Z".parse().expect("is a time"),
            deadline: Instant::now(),
            wait: false,
            precondition: None,
            uid: None,
        }
    }
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
    fn no_rule_is_wider_than_it_says() {
        for kind in ActionKind::ALL {
            for rule in kind.descriptor().rules {
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
