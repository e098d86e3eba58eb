//! The status of a request, from its record alone: any process that can read the ledger can report it,
//! whether it works on the request or not, and after any crash.
//!
//! A record says how far its holder was when it last wrote. During a wait nothing is written, so the target
//! is read as the wait reads it. This module changes nothing and authorizes no one: the caller of [`find`]
//! decides who may see the status.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Event;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    actions::ActionKind,
    contract::{
        error::ActionError,
        names::{Namespace, RequestId},
        response::{ActionResponse, Target, milliseconds},
    },
    executor::{context::Context, follow_up::Pending},
    k8s::api::client::Cluster,
    ledger::record::{REQUESTER, Record, RecordState, event_name, is_final},
};

/// Time to read the record, and time to read the target.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// The status of a request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Progress {
    /// The request's id.
    pub id: String,
    /// The action.
    #[serde(rename = "type")]
    pub kind: String,
    /// How far it is.
    pub state: RecordState,
    /// The same in a sentence; during a wait, the progress now.
    pub detail: String,
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The object acted upon.
    pub target: Target,
    /// The requester, if the request names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// When the work began (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: DateTime<Utc>,
    /// When the claim expires (`claimed`), or until when a person may approve (`pending_approval`).
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "milliseconds_if_any")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub until: Option<DateTime<Utc>>,
    /// Present and true once `until` has passed: resend the same request to resume it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub overdue: bool,
    /// The answer: final with `answered`; with `rolling_back`, what was known when the rollout failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<ActionResponse>,
}

/// A request whose record was found.
pub(crate) struct Operation {
    namespace: Namespace,
    id: RequestId,
    record: Record,
    /// The name of the cluster that has the record.
    cluster: Option<Arc<str>>,
    /// How records and the target are read; or why the target cannot be.
    clusters: Result<StatusClients, ActionError>,
    /// The uid of the record's Event.
    uid: String,
    /// When the record was last written (UTC).
    written_at: Option<String>,
    requester: Option<String>,
    message: String,
}

/// The cluster, as those who read it.
struct StatusClients {
    /// As the executor itself.
    own: Cluster,
    /// As the caller who asks, if callers are impersonated.
    target: Cluster,
}

/// Finds the record of a request; `None` if the namespace has none, or none any more. The context is that of the caller
/// who asks (`Context::acting_for`).
///
/// # Errors
/// Why the ledger could not be read.
pub(crate) async fn find(
    context: &Context,
    namespace: &Namespace,
    id: &RequestId,
) -> Result<Option<Operation>, ActionError> {
    let cluster = context.require_cluster("no request has a record")?;
    let name = event_name(id);
    let deadline = Instant::now() + STATUS_TIMEOUT;
    let event = cluster.get_opt::<Event>(namespace, &name, deadline).await?;
    Ok(event.and_then(|event| Operation::read(context, namespace, id, event)))
}

impl StatusClients {
    fn of(context: &Context) -> Result<Self, ActionError> {
        let own = context.require_cluster("no request has a record")?.clone();
        Ok(StatusClients {
            own,
            target: context.target_cluster("no request has a record")?.clone(),
        })
    }
}

impl Operation {
    /// `None` for an Event without a record: it is not ours, whatever its name.
    fn read(
        context: &Context,
        namespace: &Namespace,
        id: &RequestId,
        event: Event,
    ) -> Option<Self> {
        let record = Record::read(&event)?;
        let annotations = event.metadata.annotations.unwrap_or_default();
        Some(Operation {
            namespace: namespace.clone(),
            id: id.clone(),
            record,
            cluster: context.cluster_name().cloned(),
            clusters: StatusClients::of(context),
            uid: event.metadata.uid?,
            written_at: event.last_timestamp.map(|time| time.0.to_string()),
            requester: annotations.get(REQUESTER).cloned(),
            message: event.message.unwrap_or_default(),
        })
    }

    /// The action; `None` if this version does not know it.
    pub(crate) fn kind(&self) -> Option<ActionKind> {
        ActionKind::named(&self.record.intent.answer.kind).ok()
    }

    /// The namespace of the record.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The request's id.
    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// The uid of the record's Event: it is random, stays the same as long as the record exists, and only who may read
    /// Events knows it.
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    /// When the record was last written (UTC).
    pub(crate) fn written_at(&self) -> Option<&str> {
        self.written_at.as_deref()
    }

    /// Whether an attempt carries it out, according to the record: no claim that expired, and no wait that was
    /// interrupted.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.is_in_progress_at(Utc::now())
    }

    fn is_in_progress_at(&self, now: DateTime<Utc>) -> bool {
        match self.record.state {
            RecordState::Claimed => now < self.record.expires_at,
            RecordState::Applied | RecordState::RollingBack => self.interrupted_answer().is_none(),
            RecordState::InDoubt
            | RecordState::Answered
            | RecordState::Refused
            | RecordState::PendingApproval => false,
        }
    }

    /// The answer of an attempt whose wait was interrupted.
    pub(crate) fn interrupted_answer(&self) -> Option<&ActionResponse> {
        let is_interrupted = |answer: &&ActionResponse| !is_final(answer);
        self.record.answer.as_ref().filter(is_interrupted)
    }

    /// The record's version, which changes with every write.
    pub(crate) fn version(&self) -> Option<&str> {
        self.record.resource_version.as_deref()
    }

    /// The status. During a wait this reads the target.
    pub(crate) async fn progress(&self) -> Progress {
        let progress = self.progress_at(Utc::now());
        match progress.state {
            RecordState::Applied => Progress { detail: self.observe().await, ..progress },
            _ => progress,
        }
    }

    /// The status that the record itself gives.
    fn progress_at(&self, now: DateTime<Utc>) -> Progress {
        let Record { state, expires_at, intent, answer, .. } = &self.record;
        let can_expire = matches!(state, RecordState::Claimed | RecordState::PendingApproval);
        let overdue = can_expire && now >= *expires_at;
        let detail = match state {
            RecordState::Claimed if overdue => {
                "its claim has expired; resend the same request to resume it".to_owned()
            }
            RecordState::Claimed => "it is in progress".to_owned(),
            RecordState::PendingApproval if overdue => {
                "it was not approved in time; resend the same request to ask again".to_owned()
            }
            RecordState::RollingBack => "the rollout failed and is being rolled back".to_owned(),
            // The Event's message says why.
            _ => self.message.clone(),
        };
        let answer = answer.as_ref().filter(|_| *state != RecordState::Applied);
        Progress {
            id: self.id.to_string(),
            kind: intent.answer.kind.clone(),
            state: *state,
            detail,
            cluster: self.cluster.as_deref().map(str::to_owned),
            target: answer.unwrap_or(&intent.answer).target.clone(),
            requester: self.requester.clone(),
            since: intent.answer.started_at,
            until: can_expire.then_some(*expires_at),
            overdue,
            answer: answer.cloned(),
        }
    }

    /// The progress of the wait, in its own sentence.
    async fn observe(&self) -> String {
        let end = Instant::now() + STATUS_TIMEOUT;
        match timeout_at(end, self.observed(end)).await {
            Ok(Ok(stage)) => stage,
            Ok(Err(error)) => format!("the target could not be read: {}", error.detail),
            Err(_) => "the target could not be read in time".to_owned(),
        }
    }

    async fn observed(&self, end: Instant) -> Result<String, ActionError> {
        let StatusClients { own, target } = self.clusters.as_ref().map_err(Clone::clone)?;
        let pending = Pending {
            cluster: target,
            own_cluster: own,
            id: &self.id,
            completion: &self.record.intent.completion,
            target: &self.record.intent.answer.target,
            applied: &self.record.applied_or_default(),
        };
        pending.progress(end).await
    }
}

fn milliseconds_if_any<S: serde::Serializer>(
    time: &Option<DateTime<Utc>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => milliseconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::contract::{
        error::Code,
        response::{Rollout, RolloutState},
    };

    fn operation(state: RecordState) -> Operation {
        let record = Record { state, ..Record::example() };
        Operation {
            namespace: Namespace::default(),
            id: RequestId::try_from("alert-7".to_owned()).expect("is an id"),
            record,
            cluster: Some(Arc::from("blue")),
            clusters: Err(ActionError::new(Code::Configuration, "there is no cluster")),
            uid: "u".to_owned(),
            written_at: None,
            requester: Some("pager".to_owned()),
            message: "The message.".to_owned(),
        }
    }

    #[test]
    fn a_status_is_read_from_the_record() {
        for (state, late, detail, has_until) in [
            (RecordState::Claimed, false, "it is in progress", true),
            (RecordState::Claimed, true, "its claim has expired; resend", true),
            (RecordState::PendingApproval, false, "The message.", true),
            (RecordState::PendingApproval, true, "it was not approved in time; resend", true),
            (RecordState::RollingBack, true, "the rollout failed", false),
            (RecordState::Applied, true, "The message.", false),
            (RecordState::InDoubt, true, "The message.", false),
            (RecordState::Refused, true, "The message.", false),
            (RecordState::Answered, true, "The message.", false),
        ] {
            let operation = operation(state);
            let seconds = TimeDelta::seconds(if late { 0 } else { -1 });
            let progress = operation.progress_at(operation.record.expires_at + seconds);
            assert!(progress.detail.starts_with(detail), "{state:?}: {}", progress.detail);
            assert_eq!(progress.cluster.as_deref(), Some("blue"), "{state:?}");
            assert_eq!(progress.until.is_some(), has_until, "{state:?}");
            assert_eq!(progress.overdue, late && has_until, "{state:?}");
        }
    }

    #[test]
    fn an_interrupted_wait_and_an_expired_claim_are_not_in_progress() {
        let interrupted = Some(RolloutState::Interrupted);
        for (state, rollout, late, expected) in [
            (RecordState::Claimed, None, false, true),
            (RecordState::Claimed, None, true, false),
            (RecordState::Applied, None, true, true),
            (RecordState::Applied, interrupted, false, false),
            (RecordState::RollingBack, Some(RolloutState::Failed), true, true),
            (RecordState::RollingBack, interrupted, false, false),
            (RecordState::PendingApproval, None, false, false),
            (RecordState::InDoubt, None, false, false),
            (RecordState::Refused, None, false, false),
            (RecordState::Answered, None, false, false),
        ] {
            let mut operation = operation(state);
            operation.record.answer = rollout.map(|state| {
                let rollout = Rollout { state, message: String::new(), problems: Vec::new() };
                ActionResponse { rollout: Some(rollout), ..operation.record.intent.answer.clone() }
            });
            let seconds = TimeDelta::seconds(if late { 0 } else { -1 });
            let now = operation.record.expires_at + seconds;
            assert_eq!(operation.is_in_progress_at(now), expected, "{state:?} {rollout:?}");
        }
    }

    #[test]
    fn an_answer_is_shown_unless_the_wait_goes_on() {
        for (state, expected) in [
            (RecordState::Answered, true),
            (RecordState::RollingBack, true),
            (RecordState::Applied, false),
        ] {
            let mut operation = operation(state);
            operation.record.answer = Some(operation.record.intent.answer.clone());
            let progress = operation.progress_at(Utc::now());
            assert_eq!(progress.answer.is_some(), expected, "{state:?}");
        }
    }
}
