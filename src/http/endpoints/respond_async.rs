//! Asynchronous responses: `Prefer: respond-async` (RFC 7240).
//!
//! A response is asynchronous only once the request's record is in the ledger: then any replica can report
//! its state, and if this process crashes, resending the same request resumes it. A request that ends before
//! that gets its normal response, and so does every request when no permit is left: a preference may be
//! ignored (RFC 7240, section 2).

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tracing::Instrument;

use crate::{
    auth::Caller,
    contract::{
        error::{ActionError, Code},
        response::Target,
    },
    executor::{
        context::Context,
        incoming::{IncomingRequest, execute_as},
        reply::Reply,
    },
    http::{
        dispatch::handler_panicked,
        message::{Body, json},
    },
    ledger::record::{RecordState, RequestMetadata},
};

/// Maximum number of requests in progress whose response was asynchronous.
const MAX_BACKGROUND_TASKS: u32 = 128;

/// The work that continues after its response.
#[derive(Clone)]
pub(crate) struct BackgroundTasks(Arc<Semaphore>);

/// A permit for such work; released when dropped.
pub(crate) type Permit = OwnedSemaphorePermit;

/// The asynchronous response.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Accepted {
    /// The request's id, or the one made for it.
    pub id: String,
    /// The action.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its state.
    pub state: RecordState,
    /// The cluster's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// What it acts upon.
    pub target: Target,
    /// Related resources.
    pub links: Links,
}

/// The resources of a request.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Links {
    /// The state of the request, as in `Location`.
    #[serde(rename = "self")]
    pub itself: String,
}

/// What the ledger holds of a deferred request.
#[derive(Clone, Debug)]
struct Claim {
    id: String,
    action: &'static str,
    namespace: String,
    target: Target,
    /// The cluster's name.
    cluster: Option<String>,
    /// Its name in the list of clusters, if there is a list, so that a later request has to name it.
    listed: Option<String>,
}

impl Default for BackgroundTasks {
    fn default() -> Self {
        BackgroundTasks(Arc::new(Semaphore::new(MAX_BACKGROUND_TASKS as usize)))
    }
}

impl BackgroundTasks {
    /// A permit, if one is free.
    pub(crate) fn permit(&self) -> Option<Permit> {
        self.0.clone().try_acquire_owned().ok()
    }

    /// Returns when none of this work is in progress.
    pub(crate) async fn wait_idle(&self) {
        // The semaphore is never closed, so this waits for the last permit to be released.
        let _ = self.0.acquire_many(MAX_BACKGROUND_TASKS).await;
    }
}

/// Carries out a request, and responds once that is done; or, if it is still in progress after `wait`,
/// as soon as it is claimed in the ledger.
///
/// # Errors
/// As `execute_as` says, if it ends before the response.
pub(crate) async fn execute_async(
    context: Context,
    caller: Option<Caller>,
    incoming: IncomingRequest,
    permit: Permit,
    wait: Duration,
) -> Result<Response<Body>, ActionError> {
    let wait_end = Instant::now() + wait;
    let (claimed, mut claim) = watch::channel(None);
    let has_list = context.has_list();
    let context = context.map_observer(|observer| {
        observer.on_claimed(move |request: &RequestMetadata| {
            claimed.send_replace(Some(Claim::of(
                request,
                request.cluster.clone().filter(|_| has_list),
            )));
        })
    });
    let work = async move {
        let _permit = permit;
        execute_as(&context, caller.as_ref(), &incoming).await
    };
    let mut work = tokio::spawn(work.in_current_span());
    let deferred = async {
        let claim = claim.wait_for(Option::is_some).await.ok()?.clone();
        sleep_until(wait_end).await;
        claim
    };
    tokio::select! {
        biased;
        done = &mut work => {
            let done = done.unwrap_or_else(|panic| Err(handler_panicked(&panic)))?;
            Ok(Reply::from(done).into())
        }
        Some(claim) = deferred => accepted(&claim),
    }
}

/// The response for a request in progress (RFC 9110, section 15.3.3), with the location of its state.
fn accepted(claim: &Claim) -> Result<Response<Body>, ActionError> {
    let location = claim.location();
    let body = Accepted {
        id: claim.id.clone(),
        kind: claim.action,
        state: RecordState::Claimed,
        cluster: claim.cluster.clone(),
        target: claim.target.clone(),
        links: Links { itself: location.clone() },
    };
    let mut response = json(&body);
    *response.status_mut() = StatusCode::ACCEPTED;
    let location = HeaderValue::try_from(location).map_err(|error| {
        ActionError::new(Code::Internal, format!("the header Location cannot be written: {error}"))
    })?;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert("preference-applied", HeaderValue::from_static("respond-async"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    Ok(response)
}

impl Claim {
    fn of(subject: &RequestMetadata, listed: Option<String>) -> Self {
        Claim {
            id: subject.id.to_string(),
            action: subject.action,
            namespace: subject.namespace().to_owned(),
            target: subject.target.clone(),
            cluster: subject.cluster.clone(),
            listed,
        }
    }

    /// The path of the request's state. An id, a namespace and a name in a list of clusters hold only characters that a
    /// URI may hold.
    fn location(&self) -> String {
        let cluster: String = self.listed.iter().map(|name| format!("&cluster={name}")).collect();
        format!("/api/v1/actions/{}?namespace={}{cluster}", self.id, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deferred_request_has_a_location() {
        let claim = Claim {
            id: "alert:7".to_owned(),
            action: "cordon",
            namespace: "default".to_owned(),
            target: Target::named("v1", "Node", "", "n1"),
            cluster: Some("EU production".to_owned()),
            listed: None,
        };
        let name = Some("blue".to_owned());
        let listed = Claim { cluster: name.clone(), listed: name, ..claim.clone() };
        assert!(listed.location().ends_with("?namespace=default&cluster=blue"));
        let response = accepted(&claim).expect("is an answer");
        assert_eq!(response.status(), 202);
        assert_eq!(response.headers()["location"], "/api/v1/actions/alert:7?namespace=default");
        assert_eq!(response.headers()["preference-applied"], "respond-async");
    }

    #[tokio::test]
    async fn permits_are_limited_and_waited_for() {
        let tasks = BackgroundTasks::default();
        let permits: Vec<_> = (0..MAX_BACKGROUND_TASKS).filter_map(|_| tasks.permit()).collect();
        assert_eq!(permits.len(), MAX_BACKGROUND_TASKS as usize);
        assert!(tasks.permit().is_none());
        let idle = tokio::spawn({
            let tasks = tasks.clone();
            async move { tasks.wait_idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        drop(permits);
        idle.await.expect("is idle");
    }
}
