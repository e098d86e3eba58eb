//! The answer: what was done, to what, and what changed.
//!
//! Plain types with their JSON form and nothing else. Whatever is in an answer is true at the moment
//! it is given: an effect that is not known is an error of its kind, never a guess in here.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::contract::error::wire_name;

/// What came of a request.
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
    /// How it ended.
    pub outcome: Outcome,
    /// Whether this request had been carried out before, so that nothing was done now.
    pub replayed: bool,
    /// Present and true when no cluster was asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline: bool,
    /// The object acted upon.
    pub target: Target,
    /// What changed in the target, or would change.
    pub changes: Vec<Change>,
    /// What a careful person would want to know.
    pub warnings: Vec<String>,
    /// How the wait for the effect ended, when the request asked to wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How the target was taken back once that had failed, when the request asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// What a person has to do before it is done, with `pending_approval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<PendingApproval>,
    /// When the work began (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub started_at: DateTime<Utc>,
    /// When it ended (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub finished_at: DateTime<Utc>,
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and complete if the request asked to wait.
    Applied,
    /// Nothing had to be done.
    Unchanged,
    /// Nothing was done, because the request asked only what would happen.
    Simulated,
    /// The change was made, but what the request waited for did not come; `rollout` says why.
    Failed,
    /// Nothing was done yet: a person has to approve it, as `approval` says.
    PendingApproval,
}

impl Outcome {
    /// The name on the wire, in snake case.
    #[must_use]
    pub fn name(self) -> String {
        wire_name(self)
    }
}

/// An object in the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Target {
    /// Group and version, as `apps/v1`.
    pub api_version: String,
    /// The kind, as `Deployment`.
    pub kind: String,
    /// The namespace; absent for what is in none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The object's uid; absent when no cluster was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The resourceVersion after the action; absent when no cluster was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

impl Target {
    /// An object as a request names it, before it was read; in no namespace if that is empty.
    #[must_use]
    pub fn named(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Target {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            resource_version: None,
        }
    }

    /// The target as it was read.
    pub(crate) fn found(mut self, metadata: &kube::core::ObjectMeta) -> Self {
        self.uid.clone_from(&metadata.uid);
        self.resource_version.clone_from(&metadata.resource_version);
        self
    }
}

impl std::fmt::Display for Target {
    /// As people write it: `Deployment shop/web`, `Node n1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One value of the target, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Change {
    /// Where, as a JSON Pointer (RFC 6901).
    pub path: String,
    /// The value before; null where there was none.
    pub from: Value,
    /// The value after; null where there is none any more.
    pub to: Value,
}

/// What an action is waiting for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct PendingApproval {
    /// What is to be approved: this plan on the object as it is.
    pub digest: String,
    /// Until when (UTC).
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: String,
    /// How a person approves it.
    pub command: String,
}

/// How the wait for an effect ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Rollout {
    /// Where it stands.
    pub state: RolloutState,
    /// The same in a sentence.
    pub message: String,
    /// What the pods themselves say is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// How a workload was taken back to the revision that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RolledBack {
    /// The revision, by the number that it had before.
    pub revision: i64,
    /// The workload's resourceVersion afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// How the rollout of that revision ended.
    pub rollout: Rollout,
}

/// Where an awaited effect stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Everything asked for is there.
    Complete,
    /// It cannot come any more: the cluster gave up, or someone changed or deleted the target.
    Failed,
    /// It had not come when the time allowed ran out; it may still come.
    TimedOut,
    /// We were told to stop before it came; it may still come.
    Interrupted,
}

impl fmt::Display for RolledBack {
    /// The last sentences of a result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rolled back to revision {}. {}", self.revision, self.rollout)
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

/// A time as answers write it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339_millis(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
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
            target: Target { uid: Some("u1".to_owned()), ..target },
            changes: Vec::new(),
            warnings: Vec::new(),
            rollout: None,
            rolled_back: None,
            approval: None,
            started_at: at,
            finished_at: at,
        }
    }
}
