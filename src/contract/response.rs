//! The answer: what was done, to which object, and what changed.
//!
//! Plain types with their JSON form. An answer contains only facts: an effect that is not known is an error
//! (`outcome_unknown`), never a guess.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// The answer to a request that was carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ActionResponse {
    /// What happened, in a sentence.
    pub result: String,
    /// The request's id, or the one made for it.
    pub id: String,
    /// The action.
    #[serde(rename = "type")]
    pub kind: String,
    /// The outcome.
    pub outcome: Outcome,
    /// Whether the request was carried out before, so that nothing was done now.
    pub replayed: bool,
    /// Present and true if no cluster is configured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
    /// The cluster's name, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The object of the action.
    pub target: Target,
    /// What changed in the target, or would change.
    pub changes: Vec<Change>,
    /// Conditions and consequences that the caller should know.
    pub warnings: Vec<String>,
    /// How the wait for the effect ended, with `wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How the target was after that, with `observe_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observation: Option<Observation>,
    /// How the target was rolled back after that failed, with `rollback_on_failure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// How a person approves the action, with `pending_approval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<PendingApproval>,
    /// What became of each target, where a selector chose them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetResult>,
    /// When the action started (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub started_at: DateTime<Utc>,
    /// When it ended (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub finished_at: DateTime<Utc>,
}

/// The lists in an answer that may be long, as JSON Pointers, for where its length is limited.
pub(crate) const LONG_LISTS: [&str; 5] = [
    "/changes",
    "/warnings",
    "/rollout/problems",
    "/observation/problems",
    "/rolled_back/rollout/problems",
];

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and complete if `wait` was set.
    Applied,
    /// Nothing had to be done.
    Unchanged,
    /// Nothing was done: the request is a simulation.
    Simulated,
    /// The change was made, but not wholly, or its effect did not complete; `rollout` has the reason.
    Failed,
    /// Nothing was done yet: a person must approve it; `approval` has the command.
    PendingApproval,
}

impl Outcome {
    /// Its name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Unchanged => "unchanged",
            Outcome::Simulated => "simulated",
            Outcome::Failed => "failed",
            Outcome::PendingApproval => "pending_approval",
        }
    }
}

/// What became of one of the targets that a selector chose. Each is a request of its own, with this id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TargetResult {
    /// The object.
    pub target: Target,
    /// The id of its own request, by which its record is found.
    pub id: String,
    /// What became of it.
    pub outcome: TargetOutcome,
    /// What happened, in a sentence, or why it did not.
    pub result: String,
    /// The code of the error, with `refused` and `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What to do about the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What changed in it, or would change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Conditions and consequences that the caller should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How the wait for its effect ended, with `wait`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How it was after that, with `observe_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observation: Option<Observation>,
    /// How it was rolled back after that failed, with `rollback_on_failure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
}

impl TargetResult {
    /// A result with nothing but the sentence.
    pub(crate) fn new(target: Target, id: String, outcome: TargetOutcome, result: String) -> Self {
        TargetResult {
            target,
            id,
            outcome,
            result,
            code: None,
            hint: None,
            changes: Vec::new(),
            warnings: Vec::new(),
            rollout: None,
            observation: None,
            rolled_back: None,
        }
    }
}

/// What became of one of several targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetOutcome {
    /// Done, and complete if `wait` was set.
    Applied,
    /// Nothing had to be done.
    Unchanged,
    /// Nothing was done: the request is a simulation.
    Simulated,
    /// The change was made, and its effect did not complete.
    Failed,
    /// Nothing was done yet: a person must approve the whole.
    PendingApproval,
    /// It was refused, and nothing was done.
    Refused,
    /// Whether the change was made is unknown.
    Unknown,
    /// Nothing was done, because targets before it failed or the time was over.
    NotAttempted,
}

/// An object in the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Target {
    /// Group and version, for example `apps/v1`.
    pub api_version: String,
    /// The kind, for example `Deployment`.
    pub kind: String,
    /// The namespace; absent for a cluster-scoped object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The object's uid; absent if no cluster is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The resourceVersion after the action; absent if no cluster is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

impl Target {
    /// An object as a request names it, before it is read; an empty namespace means cluster-scoped.
    pub(crate) fn named(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Target {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            resource_version: None,
        }
    }

    /// Its place in the API, for example `apps/v1/Deployment/shop/web` or `v1/Node/n1`: the name of the object outside
    /// of the cluster.
    pub(crate) fn path(&self) -> String {
        let parts = [&self.api_version, &self.kind, &self.namespace, &self.name];
        let parts = parts.into_iter().filter(|part| !part.is_empty());
        parts.map(String::as_str).collect::<Vec<_>>().join("/")
    }

    /// The target as it was read.
    pub(crate) fn found(mut self, metadata: &kube::core::ObjectMeta) -> Self {
        self.uid.clone_from(&metadata.uid);
        self.resource_version.clone_from(&metadata.resource_version);
        self
    }
}

impl std::fmt::Display for Target {
    /// `Deployment shop/web`, `Node n1`, `Namespace shop`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            // Its records are in itself.
            _ if self.kind == "Namespace" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One value of the target, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Change {
    /// The field, as a JSON Pointer (RFC 6901).
    pub path: String,
    /// The value before; null if there was none.
    pub from: Value,
    /// The value after; null if it is removed.
    pub to: Value,
}

/// The approval that an action waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct PendingApproval {
    /// The digest of what is approved: the plan, on the object as it is.
    pub digest: String,
    /// When the approval expires (UTC).
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
    /// The command that approves it.
    pub command: String,
}

/// How the wait for an effect ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Rollout {
    /// The state.
    pub state: RolloutState,
    /// The state in a sentence.
    pub message: String,
    /// What is wrong, as the pods report it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// How the target was while it was observed, after the wait for the effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Observation {
    /// The state.
    pub state: ObservationState,
    /// How long it was observed, in seconds.
    pub seconds: u64,
    /// The state in a sentence.
    pub message: String,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// The state of an observed target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservationState {
    /// It stayed as the wait left it, for the whole time.
    Healthy,
    /// A pod restarted, was not ready any more or is gone, or the rollout regressed.
    Unhealthy,
    /// It could not be read, so nothing is known.
    Unknown,
    /// The executor shut down before the time was over.
    Interrupted,
    /// The action leaves nothing that could be observed.
    NotApplicable,
}

impl ObservationState {
    /// Whether the outcome of the action stays what it was.
    pub(crate) fn keeps_outcome(self) -> bool {
        matches!(self, ObservationState::Healthy | ObservationState::NotApplicable)
    }
}

/// How a workload was rolled back to the revision that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RolledBack {
    /// The number of that revision before the rollback.
    pub revision: i64,
    /// The workload's resourceVersion afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// How the rollout of that revision ended.
    pub rollout: Rollout,
}

/// The state of an effect that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// The effect is complete.
    Complete,
    /// It cannot complete any more: it failed, or the target was changed or deleted.
    Failed,
    /// The timeout expired; it may still complete.
    TimedOut,
    /// The executor shut down before it completed; it may still complete.
    Interrupted,
}

impl fmt::Display for RolledBack {
    /// The last sentences of a result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rolled back to revision {}. {}", self.revision, self.rollout)
    }
}

impl fmt::Display for Observation {
    /// The sentence of a result that follows the one about the wait.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lead = match self.state {
            ObservationState::Healthy => "Healthy",
            ObservationState::Unhealthy => "Not healthy",
            ObservationState::Unknown => "Not known to be healthy",
            ObservationState::Interrupted => "Observation ended early by a shutdown",
            ObservationState::NotApplicable => "Not observed",
        };
        write!(f, "{lead}: {}", self.message)?;
        match self.problems.first() {
            Some(problem) => write!(f, " ({problem})."),
            None => f.write_str("."),
        }
    }
}

impl fmt::Display for Rollout {
    /// The second sentence of a result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lead = match self.state {
            RolloutState::Complete => "Complete",
            RolloutState::Failed => "Failed",
            RolloutState::TimedOut => "Not complete in the time allowed",
            RolloutState::Interrupted => "Not complete at shutdown",
        };
        write!(f, "{lead}: {}", self.message)?;
        match self.problems.first() {
            Some(problem) => write!(f, " ({problem})."),
            None => f.write_str("."),
        }
    }
}

pub(crate) fn milliseconds<S: Serializer>(
    time: &DateTime<Utc>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339_millis(*time))
}

/// A time in the format of answers: RFC 3339, UTC, milliseconds.
pub(crate) fn rfc3339_millis(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
impl TargetResult {
    /// What became of Deployment shop/`name`, for tests.
    pub(crate) fn example(name: &str, outcome: TargetOutcome) -> Self {
        let target = Target::named("apps/v1", "Deployment", "shop", name);
        TargetResult::new(target, "alert-7:0".to_owned(), outcome, String::new())
    }
}

#[cfg(test)]
impl ActionResponse {
    /// An answer of `restart_k8s` on Deployment default/web, for tests.
    pub(crate) fn example(outcome: Outcome) -> Self {
        let at = "2026-01-31T12:00:00.987Z".parse().expect("is a time");
        let target = Target::named("apps/v1", "Deployment", "default", "web");
        ActionResponse {
            result: "Deployment 'web' restarted.".to_owned(),
            id: "alert-7".to_owned(),
            kind: "restart_k8s".to_owned(),
            outcome,
            replayed: false,
            offline: false,
            cluster: None,
            target: Target { uid: Some("u1".to_owned()), ..target },
            changes: Vec::new(),
            warnings: Vec::new(),
            rollout: None,
            observation: None,
            rolled_back: None,
            approval: None,
            targets: Vec::new(),
            started_at: at,
            finished_at: at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcomes_name_is_that_in_json() {
        for outcome in [
            Outcome::Applied,
            Outcome::Unchanged,
            Outcome::Simulated,
            Outcome::Failed,
            Outcome::PendingApproval,
        ] {
            assert_eq!(serde_json::to_value(outcome).expect("is text"), outcome.name());
        }
    }
}
