//! The status of a request, from its record alone: any process that can read the ledger can report it,
//! whether it works on the request or not, and after any crash.
//!
//! A record says how far its holder was when it last wrote. During a wait nothing is written, so the target
//! is read as the wait reads it. This module changes nothing and authorizes no one: the caller of [`find`]
//! decides who may see the status.

use std::time::Duration;

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
    ledger::record::{REQUESTER, Record, State, event_name},
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
    pub state: State,
    /// The same in a sentence; during a wait, the progress now.
    pub detail: String,
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
    id: RequestId,
    record: Record,
    requester: Option<String>,
    message: String,
}

/// Finds the record of a request; `None` if the namespace has none, or none any more.
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
    Ok(event.and_then(|event| Operation::read(id, event)))
}

impl Operation {
    /// `None` for an Event without a record: it is not ours, whatever its name.
    fn read(id: &RequestId, event: Event) -> Option<Self> {
        let record = Record::read(&event)?;
        let annotations = event.metadata.annotations.unwrap_or_default();
        Some(Operation {
            id: id.clone(),
            record,
            requester: annotations.get(REQUESTER).cloned(),
            message: event.message.unwrap_or_default(),
        })
    }

    /// The action; `None` if this version does not know it.
    pub(crate) fn kind(&self) -> Option<ActionKind> {
        ActionKind::named(&self.record.intent.answer.kind).ok()
    }

    /// The record's version, which changes with every write.
    pub(crate) fn version(&self) -> Option<&str> {
        self.record.resource_version.as_deref()
    }

    /// The status. During a wait this reads the target.
    pub(crate) async fn progress(&self, context: &Context) -> Progress {
        let progress = self.progress_at(Utc::now());
        match progress.state {
            State::Applied => Progress { detail: self.observe(context).await, ..progress },
            _ => progress,
        }
    }

    /// The status that the record itself gives.
    fn progress_at(&self, now: DateTime<Utc>) -> Progress {
        let Record { state, expires_at, intent, answer, .. } = &self.record;
        let can_expire = matches!(state, State::Claimed | State::PendingApproval);
        let overdue = can_expire && now >= *expires_at;
        let detail = match state {
            State::Claimed if overdue => {
                "its claim has expired; resend the same request to resume it".to_owned()
            }
            State::Claimed => "it is in progress".to_owned(),
            State::PendingApproval if overdue => {
                "it was not approved in time; resend the same request to ask again".to_owned()
            }
            State::RollingBack => "the rollout failed and is being rolled back".to_owned(),
            // The Event's message says why.
            _ => self.message.clone(),
        };
        let answer = answer.as_ref().filter(|_| *state != State::Applied);
        Progress {
            id: self.id.to_string(),
            kind: intent.answer.kind.clone(),
            state: *state,
            detail,
            target: answer.unwrap_or(&intent.answer).target.clone(),
            requester: self.requester.clone(),
            since: intent.answer.started_at,
            until: can_expire.then_some(*expires_at),
            overdue,
            answer: answer.cloned(),
        }
    }

    /// The progress of the wait, in its own sentence.
    async fn observe(&self, context: &Context) -> String {
        let end = Instant::now() + STATUS_TIMEOUT;
        match timeout_at(end, self.observed(context, end)).await {
            Ok(Ok(stage)) => stage,
            Ok(Err(error)) => format!("the target could not be read: {}", error.detail),
            Err(_) => "the target could not be read in time".to_owned(),
        }
    }

    async fn observed(&self, context: &Context, end: Instant) -> Result<String, ActionError> {
        let pending = Pending {
            cluster: context.require_cluster("no request has a record")?,
            completion: &self.record.intent.completion,
            target: &self.record.intent.answer.target,
            applied: &self.record.applied.clone().unwrap_or_default(),
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

    fn operation(state: State) -> Operation {
        let record = Record { state, ..Record::example() };
        Operation {
            id: RequestId::try_from("alert-7".to_owned()).expect("is an id"),
            record,
            requester: Some("pager".to_owned()),
            message: "The message.".to_owned(),
        }
    }

    #[test]
    fn a_status_is_read_from_the_record() {
        for (state, late, detail, has_until) in [
            (State::Claimed, false, "it is in progress", true),
            (State::Claimed, true, "its claim has expired; resend", true),
            (State::PendingApproval, false, "The message.", true),
            (State::PendingApproval, true, "it was not approved in time; resend", true),
            (State::RollingBack, true, "the rollout failed", false),
            (State::Applied, true, "The message.", false),
            (State::InDoubt, true, "The message.", false),
            (State::Refused, true, "The message.", false),
            (State::Answered, true, "The message.", false),
        ] {
            let operation = operation(state);
            let seconds = TimeDelta::seconds(if late { 0 } else { -1 });
            let progress = operation.progress_at(operation.record.expires_at + seconds);
            assert!(progress.detail.starts_with(detail), "{state:?}: {}", progress.detail);
            assert_eq!(progress.until.is_some(), has_until, "{state:?}");
            assert_eq!(progress.overdue, late && has_until, "{state:?}");
        }
    }

    #[test]
    fn an_answer_is_shown_unless_the_wait_goes_on() {
        for (state, expected) in
            [(State::Answered, true), (State::RollingBack, true), (State::Applied, false)]
        {
            let mut operation = operation(state);
            operation.record.answer = Some(operation.record.intent.answer.clone());
            let progress = operation.progress_at(Utc::now());
            assert_eq!(progress.answer.is_some(), expected, "{state:?}");
        }
    }
}
