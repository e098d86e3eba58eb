//! Answers that come later: `Prefer: respond-async` (RFC 7240).
//!
//! A request is only put off once its record stands in the ledger: then any replica can tell of it, and if
//! this process dies, whoever sends the same request again goes on with it. What ends before that is
//! answered at once, as is everything when there is no place left: a preference may be passed over
//! (RFC 7240, section 2).

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinError,
    time::{Instant, sleep_until},
};
use tracing::Instrument;

use crate::{
    auth::{Authenticator, Credentials},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Target},
    },
    executor::{
        context::Context,
        incoming::{IncomingRequest, execute},
        reply::Reply,
    },
    http::message::{Body, json},
    ledger::record::{RequestMetadata, State},
};

/// Most requests that go on after they were put off.
const PLACES: u32 = 128;

/// The places for work that goes on without a client who waits.
#[derive(Clone)]
pub struct Later(Arc<Semaphore>);

/// A place; free again when dropped.
pub type Place = OwnedSemaphorePermit;

/// What is answered for a request that goes on.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Accepted {
    /// The request's id, or the one made for it.
    pub id: String,
    /// The action.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// How far it is.
    pub state: State,
    /// What it acts upon.
    pub target: Target,
    /// Where more is to be had.
    pub links: Links,
}

/// Where more is to be had of a request.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Links {
    /// Where it can be asked how the request is getting on, as `Location` says too.
    #[serde(rename = "self")]
    pub itself: String,
}

/// What the ledger holds of a request that is put off.
#[derive(Clone, Debug)]
struct Claim {
    id: String,
    action: &'static str,
    namespace: String,
    target: Target,
}

impl Default for Later {
    fn default() -> Self {
        Later(Arc::new(Semaphore::new(PLACES as usize)))
    }
}

impl Later {
    /// A place, if one is free.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.0.clone().try_acquire_owned().ok()
    }

    /// Returns when all that was put off is done.
    pub async fn idle(&self) {
        // Closed by nobody, so this waits for the last place to be free.
        let _ = self.0.acquire_many(PLACES).await;
    }
}

/// Does what a caller asks, and answers once that is done; or, if it still goes on after `patience`, as
/// soon as its record stands.
///
/// # Errors
/// As [`carry_out`] says, as long as it is waited for.
pub async fn carry_out_later(
    context: Context,
    callers: Arc<Authenticator>,
    delivery: IncomingRequest,
    credentials: Credentials,
    place: Place,
    patience: Duration,
) -> Result<Response<Body>, ActionError> {
    let patient_until = Instant::now() + patience;
    let (claimed, mut standing) = watch::channel(None);
    let context = context.map_observer(|observer| {
        observer.on_claimed(move |request| {
            claimed.send_replace(Some(Claim::of(request)));
        })
    });
    let work = async move {
        let _place = place;
        execute(&context, &callers, &delivery, &credentials).await
    };
    let mut work = tokio::spawn(work.in_current_span());
    let put_off = async {
        let claim = standing.wait_for(Option::is_some).await.ok()?.clone();
        sleep_until(patient_until).await;
        claim
    };
    tokio::select! {
        biased;
        done = &mut work => answer(done),
        Some(claim) = put_off => accepted(&claim),
    }
}

fn answer(
    done: Result<Result<ActionResponse, ActionError>, JoinError>,
) -> Result<Response<Body>, ActionError> {
    match done {
        Ok(answered) => Ok(Reply::from(answered?).into()),
        Err(panic) => {
            tracing::error!(%panic, "a handler panicked");
            Err(ActionError::new(Code::Internal, "a handler panicked; this is a bug"))
        }
    }
}

/// What is said of a request that goes on (RFC 9110, section 15.3.3): where it can be asked for.
fn accepted(claim: &Claim) -> Result<Response<Body>, ActionError> {
    let place = claim.location();
    let body = Accepted {
        id: claim.id.clone(),
        kind: claim.action,
        state: State::Claimed,
        target: claim.target.clone(),
        links: Links { itself: place.clone() },
    };
    let mut response = json(&body);
    *response.status_mut() = StatusCode::ACCEPTED;
    let location = HeaderValue::try_from(place)
        .map_err(|error| ActionError::new(Code::Internal, format!("the location: {error}")))?;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert("preference-applied", HeaderValue::from_static("respond-async"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    Ok(response)
}

impl Claim {
    fn of(subject: &RequestMetadata) -> Self {
        Claim {
            id: subject.id.to_string(),
            action: subject.action,
            namespace: subject.namespace().to_owned(),
            target: subject.target.clone(),
        }
    }

    /// Where the request can be asked for. An id and a namespace hold nothing that a URI would not.
    fn location(&self) -> String {
        format!("/api/v1/actions/{}?namespace={}", self.id, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_off_can_be_asked_for() {
        let claim = Claim {
            id: "alert:7".to_owned(),
            action: "cordon",
            namespace: "default".to_owned(),
            target: Target::named("v1", "Node", "", "n1"),
        };
        let response = accepted(&claim).expect("is an answer");
        assert_eq!(response.status(), 202);
        assert_eq!(response.headers()["location"], "/api/v1/actions/alert:7?namespace=default");
        assert_eq!(response.headers()["preference-applied"], "respond-async");
    }

    #[tokio::test]
    async fn places_are_few_and_waited_for() {
        let later = Later::default();
        let places: Vec<_> = (0..PLACES).filter_map(|_| later.place()).collect();
        assert_eq!(places.len(), PLACES as usize);
        assert!(later.place().is_none());
        let idle = tokio::spawn({
            let later = later.clone();
            async move { later.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        drop(places);
        idle.await.expect("is idle");
    }
}
