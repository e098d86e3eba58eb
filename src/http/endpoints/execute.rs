//! `POST /api/v1/action/execute`: the request in the body, carried out.

use std::{sync::Arc, time::Duration};

use http::Response;
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    executor::{
        context::Context,
        reply::{Answer, Delivery, carry_out},
    },
    http::{
        dispatch::Service,
        endpoints::respond_async::execute_async,
        headers::{check_accept, check_content_type, header, idempotency_key, respond_async},
        message::{Body, FullRequest, RequestInfo},
    },
};

/// How long before its client's time is over an action ends: long enough to find out what became of a
/// write, and to record it. At most a quarter of that time.
const RECORD_MARGIN: Duration = Duration::from_secs(2);

/// Carries out the request; with `Prefer: respond-async` the response may come earlier.
///
/// # Errors
/// The media types do not fit, or as [`carry_out`] says.
pub async fn execute(
    service: &Service,
    request: FullRequest,
    info: RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let headers = request.headers();
    check_accept(header(headers, "accept").as_deref())?;
    check_content_type(header(headers, "content-type").as_deref())?;
    let key = idempotency_key(header(headers, "idempotency-key").as_deref())?;
    let patience = respond_async(header(headers, "prefer").as_deref());
    let credentials = info.credentials(headers);
    let delivery = Delivery { body: request.into_body().into(), key, event: None };
    let time = action_time(&info);
    if let (Some(patience), Some(server)) = (patience, &service.server)
        && let Some(permit) = server.background.permit()
    {
        // The client's time is for its response; asynchronous work outlasts it.
        let patience = time.map_or(patience, |time| patience.min(time));
        let (context, callers) = (with_permit(service, &info), service.callers.clone());
        return execute_async(context, callers, delivery, credentials, permit, patience).await;
    }
    let context = action_context(service, &info);
    let done = carry_out(&context, &service.callers, &delivery, &credentials).await?;
    Ok(Answer::from(done).into())
}

/// The context for the action of this request: within its client's time, and with its permit.
pub(super) fn action_context(service: &Service, info: &RequestInfo) -> Context {
    let context = with_permit(service, info);
    match action_time(info) {
        Some(time) => context.within(time),
        None => context,
    }
}

/// The context in which an action that only waits for its effect frees the permit to act.
fn with_permit(service: &Service, info: &RequestInfo) -> Context {
    let context = service.context.clone();
    let Some(permit) = &info.permit else { return context };
    // Asynchronous work holds the context for longer than the permit.
    let permit = Arc::downgrade(permit);
    context.resting(Arc::new(move || {
        if let Some(permit) = permit.upgrade() {
            permit.downgrade();
        }
    }))
}

/// The time for the action of this request, if its client waits for a limited time.
fn action_time(info: &RequestInfo) -> Option<Duration> {
    let time = info.deadline?.saturating_duration_since(Instant::now());
    Some(time - RECORD_MARGIN.min(time / 4))
}
