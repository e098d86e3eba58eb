//! The doors. Each brings bytes to the one handler and carries its answer away; none knows an action.

use chrono::{DateTime, Utc};

use crate::{
    actions::request::{ActionRequest, IdempotencyKey},
    auth::Caller,
    contract::{
        error::ActionError,
        response::{ActionResponse, Outcome},
    },
    executor,
    executor::{context::Context, handle},
    ledger::record::is_final,
};

/// An answer or a problem, ready to be carried away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// One line of JSON, without the line's end.
    pub body: Vec<u8>,
    /// The HTTP status that goes with it.
    pub http_status: u16,
    /// The exit status that goes with it.
    pub exit_status: u8,
    /// Whether the body is a problem document (RFC 9457).
    pub problem: bool,
    /// Whether the same request may go better another time.
    pub retryable: bool,
    /// Seconds to wait before another try.
    pub retry_after_seconds: Option<u64>,
}

/// A request as it was delivered.
#[derive(Clone, Debug)]
pub struct IncomingRequest {
    /// The request in JSON.
    pub body: Vec<u8>,
    /// An id that came beside it.
    pub key: Option<IdempotencyKey>,
    /// The event that brought it.
    pub event: Option<EventMetadata>,
}

/// The event that brought a request.
#[derive(Clone, Debug)]
pub struct EventMetadata {
    /// The event's own id, which is that of a request that brings none.
    pub key: IdempotencyKey,
    /// When the event was made.
    pub made_at: Option<DateTime<Utc>>,
}

impl IncomingRequest {
    /// Reads the request.
    ///
    /// # Errors
    /// As [`ActionRequest::parse`] and [`ActionRequest::with_idempotency_key`] say.
    pub fn request(&self) -> Result<ActionRequest, ActionError> {
        let request = ActionRequest::parse(&self.body)?.with_idempotency_key(self.key.as_ref())?;
        let event = self.event.as_ref().filter(|_| request.id.is_none());
        request.with_idempotency_key(event.map(|event| &event.key))
    }
}

/// Does what this caller asks.
///
/// A request is no younger than the event that brought it, whatever became of the event in between: one
/// that has lain in a dead-letter queue for longer than the ledger remembers may have been done. The event's
/// time is no part of the request, so that a caller may send the same request in another event.
///
/// # Errors
/// That the caller may not ask for this, that the request cannot be read, or as [`handle`] says.
pub async fn execute_as(
    context: &Context,
    caller: Option<&Caller>,
    delivery: &IncomingRequest,
) -> Result<ActionResponse, ActionError> {
    let mut request = delivery.request()?;
    if let Some(caller) = caller {
        request = caller.authorize_request(request, context.cluster()).await?;
    }
    let made_at = delivery.event.as_ref().and_then(|event| event.made_at);
    if !request.simulate && request.issued_at.is_none() {
        executor::check_replay_window("time", made_at, Utc::now(), context.replay_window())?;
    }
    // A real action's steps are many and their state is large; on the heap, no door's stack grows by it.
    Box::pin(handle(context, request)).await
}

impl From<ActionError> for Answer {
    fn from(error: ActionError) -> Self {
        Answer {
            body: json(&error),
            http_status: error.code.http_status(),
            exit_status: error.code.exit_status(),
            problem: true,
            retryable: error.code.retryable(),
            retry_after_seconds: error.retry_after_seconds(),
        }
    }
}

impl From<ActionResponse> for Answer {
    fn from(response: ActionResponse) -> Self {
        let (http_status, exit_status) = statuses(&response);
        Answer {
            body: json(&response),
            http_status,
            exit_status,
            problem: false,
            // Nothing is gained by asking again at once for a person's approval.
            retryable: http_status == 503,
            retry_after_seconds: None,
        }
    }
}

/// An effect that did not lead to what was waited for is no success to a caller who looks at the
/// status alone, and is not to be retried either; one whose wait was cut short may be.
fn statuses(response: &ActionResponse) -> (u16, u8) {
    match response.outcome {
        Outcome::Failed if !is_final(response) => (503, 75),
        Outcome::Failed => (422, 69),
        Outcome::PendingApproval => (202, 75),
        _ => (200, 0),
    }
}

pub(crate) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain structs of strings, numbers and times: there is nothing in them that JSON cannot say.
    serde_json::to_vec(value).unwrap_or_default()
}
