//! How a request is getting on, told from its record alone: whoever can read the ledger can tell, whether
//! it is at the request itself or not, and after any crash.
//!
//! A record says how far its holder had come when it last wrote. While an effect is being waited for,
//! nothing is written, so the target is looked at, as whoever waits looks at it. Nothing is changed here,
//! and nobody is told anything: who may know is for the caller to ask between the two steps.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Event;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    actions::{ActionKind, FollowUp},
    contract::{
        error::ActionError,
        names::{Namespace, RequestId},
        response::{ActionResponse, Target, milliseconds},
    },
    executor::{context::Context, drain::Remaining},
    k8s::{
        api::{client::Call, error::ApiError},
        rollout::RolloutStatus,
    },
    ledger::record::{REQUESTER, Record, State, event_name},
};

/// The longest that reading the record, and then looking at the target, may each take.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What is told of a request.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Progress {
    /// The request's id.
    pub id: String,
    /// The action.
    #[serde(rename = "type")]
    pub kind: String,
    /// How far it is.
    pub state: Stage,
    /// The same in a sentence; of what is being waited for, as it is now.
    pub detail: String,
    /// The object acted upon.
    pub target: Target,
    /// Who asked, if it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// When the work began (UTC).
    #[serde(serialize_with = "milliseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: DateTime<Utc>,
    /// Until when nobody else takes it over (`claimed`), or a person may approve it (`pending_approval`).
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "milliseconds_if_any")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub until: Option<DateTime<Utc>>,
    /// Present and true if that time is over: nobody is known to be at it, and the same request may be sent
    /// again, to be gone on with where it was left.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overdue: bool,
    /// The answer; final if the state is `answered`, and what was known when the rollout had failed if it
    /// is `rolling_back`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<ActionResponse>,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Somebody is about to make its effect.
    Claimed,
    /// Its effect is made, and its completion is being waited for.
    Effective,
    /// What was waited for has failed, and the target is being taken back.
    RollingBack,
    /// A person has to approve it.
    PendingApproval,
    /// It is not known whether its effect was made.
    InDoubt,
    /// It was refused after it had been claimed, and nothing was done.
    Released,
    /// It has its final answer.
    Answered,
}

impl Stage {
    /// Whether nothing more comes unless the request is sent again.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Stage::InDoubt | Stage::Released | Stage::Answered)
    }
}

impl From<State> for Stage {
    fn from(state: State) -> Self {
        match state {
            State::Claimed => Stage::Claimed,
            State::InDoubt => Stage::InDoubt,
            State::Applied => Stage::Effective,
            State::RollingBack => Stage::RollingBack,
            State::Answered => Stage::Answered,
            State::Refused => Stage::Released,
            State::Pending => Stage::PendingApproval,
        }
    }
}

/// A record that was found, of which nothing has been told yet.
pub struct Operation {
    id: RequestId,
    record: Record,
    requester: Option<String>,
    message: String,
}

/// Finds the record of a request; `None` if there is none in that namespace (any more).
///
/// # Errors
/// Why the ledger could not be read.
pub async fn find(
    context: &Context,
    namespace: &Namespace,
    id: &RequestId,
) -> Result<Option<Operation>, ActionError> {
    let cluster = context.require_cluster("nothing is remembered")?;
    let name = event_name(id);
    let deadline = Instant::now() + STATUS_TIMEOUT;
    match cluster.try_get::<Event>(namespace, &name, deadline).await {
        Ok(event) => Ok(Operation::read(id, event)),
        Err(ApiError::NotFound) => Ok(None),
        Err(fault) => {
            Err(cluster.explain(&Call::of::<Event>("get", namespace, Some(&name)), fault).await)
        }
    }
}

impl Operation {
    /// What an Event holds. One that holds no record is none of ours, whatever its name.
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
    #[must_use]
    pub fn kind(&self) -> Option<ActionKind> {
        ActionKind::named(&self.record.intent.answer.kind).ok()
    }

    /// The record's version: the same as long as nobody writes to it.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.record.resource_version.as_deref()
    }

    /// What is to be told, with a look at the target if its completion is being waited for.
    pub async fn progress(&self, context: &Context) -> Progress {
        let progress = self.from_record(Utc::now());
        match progress.state {
            Stage::Effective => Progress { detail: self.observe(context).await, ..progress },
            _ => progress,
        }
    }

    /// What the record says by itself.
    fn from_record(&self, now: DateTime<Utc>) -> Progress {
        let Record { state, expires_at: until, intent, answer, .. } = &self.record;
        let state = Stage::from(*state);
        let overdue = now >= *until;
        let timed = matches!(state, Stage::Claimed | Stage::PendingApproval);
        let detail = match state {
            Stage::Claimed if overdue => {
                "its holder's time is over; send the same request again, and it is gone on with"
                    .into()
            }
            Stage::Claimed => "it is being done".into(),
            Stage::PendingApproval if overdue => {
                "nobody approved it in time; send the same request again to ask anew".into()
            }
            Stage::RollingBack => "the rollout has failed and is being taken back".into(),
            // What people read in the Event says why.
            _ => self.message.clone(),
        };
        let told = answer.as_ref().filter(|_| state != Stage::Effective);
        let target = &told.unwrap_or(&intent.answer).target;
        Progress {
            id: self.id.to_string(),
            kind: intent.answer.kind.clone(),
            state,
            detail,
            target: target.clone(),
            requester: self.requester.clone(),
            since: intent.answer.started_at,
            until: timed.then_some(*until),
            overdue: timed && overdue,
            answer: told.cloned(),
        }
    }

    /// How far what is waited for is, in the words of the wait.
    async fn observe(&self, context: &Context) -> String {
        let end = Instant::now() + STATUS_TIMEOUT;
        match timeout_at(end, self.stage(context, end)).await {
            Ok(Ok(stage)) => stage,
            Ok(Err(error)) => format!("the target could not be looked at: {}", error.detail),
            Err(_) => "the target could not be looked at in time".to_owned(),
        }
    }

    async fn stage(&self, context: &Context, end: Instant) -> Result<String, ActionError> {
        let cluster = context.require_cluster("nothing is remembered")?;
        let made = self.record.made.clone().unwrap_or_default();
        let node = &self.record.intent.answer.target;
        match self.record.intent.completion.given(node, &made) {
            FollowUp::Wait(completion) => {
                Ok(match cluster.completion_status(&completion, end).await? {
                    RolloutStatus::Waiting(stage)
                    | RolloutStatus::Complete(stage)
                    | RolloutStatus::Failed(stage) => stage,
                })
            }
            FollowUp::Drain(drained) => {
                Remaining { cluster, node, drained }.with_progress(end).await
            }
        }
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
