//! A request as an entry point received it, and its way to [`handle`]: parse, authorize. The entry point has
//! authenticated the caller before. It knows no transport.

use chrono::{DateTime, Utc};

use crate::{
    actions::request::{ActionRequest, IdempotencyKey},
    auth::Caller,
    contract::{error::ActionError, response::ActionResponse},
    executor::{context::Context, handle},
};

/// A request as it was received.
#[derive(Clone, Debug)]
pub(crate) struct IncomingRequest {
    /// The request in JSON.
    pub body: Vec<u8>,
    /// An idempotency key that came beside the body.
    pub key: Option<IdempotencyKey>,
    /// The event that carried the request.
    pub event: Option<EventMetadata>,
}

/// The event that carried a request.
#[derive(Clone, Debug)]
pub(crate) struct EventMetadata {
    /// The idempotency key made from the event's id, for a request without an id.
    pub key: IdempotencyKey,
    /// The event's time.
    pub time: Option<DateTime<Utc>>,
}

impl IncomingRequest {
    /// Parses the request. An event's time bounds its age.
    ///
    /// # Errors
    /// As [`ActionRequest::parse`] and [`ActionRequest::with_idempotency_key`].
    pub(crate) fn request(&self) -> Result<ActionRequest, ActionError> {
        let request = ActionRequest::parse(&self.body)?.with_idempotency_key(self.key.as_ref())?;
        let event = self.event.as_ref().filter(|_| request.id.is_none());
        let mut request = request.with_idempotency_key(event.map(|event| &event.key))?;
        request.event_time = self.event.as_ref().and_then(|event| event.time);
        Ok(request)
    }
}

/// Executes the request for this caller; `None` if authentication is off.
///
/// # Errors
/// The caller is unauthorized, the request cannot be parsed, or as [`handle`].
pub(crate) async fn execute_as(
    context: &Context,
    caller: Option<&Caller>,
    incoming: &IncomingRequest,
) -> Result<ActionResponse, ActionError> {
    let mut request = incoming.request()?;
    if let Some(caller) = caller {
        request = Box::pin(caller.authorize_request(request, context.cluster())).await?;
    }
    handle(context, request).await
}
