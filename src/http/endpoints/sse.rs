//! The state of a request as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! All streams of the same request share one poll of the ledger a second; where callers are impersonated, those of one
//! caller do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Response, header};
use hyper::body::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    actions::request::MAX_TIMEOUT_SECONDS,
    contract::{
        error::ActionError,
        names::{Namespace, RequestId},
    },
    executor::{
        context::{Context, stopped},
        status,
    },
    http::{endpoints::operation::OperationSnapshot, message::Body},
    k8s::api::impersonation::Impersonation,
};

/// How often a watched request is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often something is sent, so that no proxy takes the connection for an idle one.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Maximum time of a stream: that of a request.
const STREAM_TIMEOUT: Duration = Duration::from_secs(MAX_TIMEOUT_SECONDS);

/// How soon a client may reconnect when its stream has ended early.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The name of a request, and as whom its target is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OperationKey {
    namespace: String,
    id: String,
    reader: Option<Arc<Impersonation>>,
    cluster: Option<Arc<str>>,
}

type Snapshots = watch::Sender<Option<OperationSnapshot>>;

/// The requests that are watched. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Watchers {
    stopping: watch::Receiver<bool>,
    watched: Arc<Mutex<HashMap<OperationKey, Snapshots>>>,
}

impl Watchers {
    /// No request is watched yet; all streams end when `stopping` becomes true.
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> Self {
        Watchers { stopping, watched: Arc::default() }
    }

    /// A stream of the changes of a request, beginning with its state now.
    pub(crate) fn stream(
        &self,
        context: &Context,
        namespace: Namespace,
        id: RequestId,
        first: OperationSnapshot,
    ) -> Response<Body> {
        let snapshots = self.subscribe(context, namespace, id, first);
        let (parts, body) = mpsc::channel(4);
        tokio::spawn(send(snapshots, parts, self.stopping.clone()));
        let mut response = Response::new(Body::Stream(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// The state of a request from now on, by a poll that all of its streams share.
    fn subscribe(
        &self,
        context: &Context,
        namespace: Namespace,
        id: RequestId,
        first: OperationSnapshot,
    ) -> watch::Receiver<Option<OperationSnapshot>> {
        let key = OperationKey {
            namespace: namespace.to_string(),
            id: id.to_string(),
            reader: context.impersonation().cloned(),
            cluster: context.cluster_name().cloned(),
        };
        let mut watched = self.lock();
        if let Some(snapshots) = watched.get(&key) {
            return snapshots.subscribe();
        }
        let (snapshots, receiver) = watch::channel(Some(first));
        watched.insert(key.clone(), snapshots.clone());
        let (watchers, context) = (self.clone(), context.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sleep(POLL_INTERVAL) => {}
                    () = snapshots.closed() => {}
                }
                if watchers.remove_if_unwatched(&key, &snapshots) {
                    return;
                }
                let now = match status::find(&context, &namespace, &id).await {
                    Ok(Some(found)) => Some(OperationSnapshot::of(&found).await),
                    Ok(None) => None,
                    // The last known state stays until the next poll.
                    Err(_) => continue,
                };
                snapshots.send_if_modified(|last| {
                    let is_new = *last != now;
                    *last = now;
                    is_new
                });
            }
        });
        receiver
    }

    /// Whether a request has no streams any more; then it is not polled any more either.
    fn remove_if_unwatched(&self, key: &OperationKey, snapshots: &Snapshots) -> bool {
        // Subscribing needs the lock, so none comes meanwhile.
        let mut watched = self.lock();
        let unwatched = snapshots.receiver_count() == 0;
        if unwatched {
            watched.remove(key);
        }
        unwatched
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationKey, Snapshots>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends each change until the request is done, the client disconnects or the server shuts down.
async fn send(
    mut snapshots: watch::Receiver<Option<OperationSnapshot>>,
    parts: mpsc::Sender<Bytes>,
    mut stopping: watch::Receiver<bool>,
) {
    let end = Instant::now() + STREAM_TIMEOUT;
    let mut next = to_event(&snapshots.borrow_and_update());
    loop {
        let (part, is_last) = next;
        // What fits into the channel is sent, also at the end; a client that does not read delays nothing.
        let sent = tokio::select! {
            biased;
            sent = parts.send(part) => sent.is_ok(),
            () = stopped(&mut stopping) => false,
            () = sleep_until(end) => false,
        };
        if is_last || !sent {
            return;
        }
        next = tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => to_event(&snapshots.borrow_and_update()),
                Err(_) => return,
            },
            () = sleep(KEEP_ALIVE_INTERVAL) => (comment("still in progress"), false),
            () = stopped(&mut stopping) => (comment("server shutting down; reconnect"), true),
            () = sleep_until(end) => (comment("the stream has reached its maximum time"), true),
            () = parts.closed() => return,
        };
    }
}

/// What is sent for a state, and whether that is the last event.
fn to_event(snapshot: &Option<OperationSnapshot>) -> (Bytes, bool) {
    match snapshot.as_ref().map(|it| (event(it), it.progress.state.is_terminal())) {
        Some((Ok(event), is_last)) => (event, is_last),
        Some((Err(error), _)) => (comment(&error.detail), true),
        None => (comment("the record is gone"), true),
    }
}

fn event(snapshot: &OperationSnapshot) -> Result<Bytes, ActionError> {
    let name = if snapshot.progress.state.is_terminal() { "done" } else { "progress" };
    let (id, data) = (snapshot.version.as_deref().unwrap_or_default(), snapshot.json()?);
    let retry = RETRY_AFTER.as_millis();
    Ok(format!("event: {name}\nid: {id}\nretry: {retry}\ndata: {data}\n\n").into())
}

/// A line that clients ignore, for people and proxies.
fn comment(text: &str) -> Bytes {
    format!(": {text}\n\n").into()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::{
        contract::response::Target, executor::status::Progress, ledger::record::RecordState,
    };

    fn snapshot(state: RecordState) -> Option<OperationSnapshot> {
        let progress = Progress {
            id: "alert-7".to_owned(),
            kind: "restart_k8s".to_owned(),
            state,
            detail: "it is being done".to_owned(),
            cluster: None,
            target: Target::named("apps/v1", "Deployment", "shop", "web"),
            requester: None,
            since: DateTime::default(),
            until: None,
            overdue: false,
            answer: None,
        };
        Some(OperationSnapshot { progress, version: Some("7".to_owned()) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_changes_is_kept_alive_every_15_seconds() {
        let (snapshots, receiver) = watch::channel(snapshot(RecordState::Applied));
        let (_stopping, stopping) = watch::channel(false);
        let (parts, mut body) = mpsc::channel(4);
        tokio::spawn(send(receiver, parts, stopping));
        let mut next = async || {
            let part = body.recv().await.unwrap_or_default();
            String::from_utf8(part.into()).expect("is text")
        };
        assert!(next().await.starts_with("event: progress\nid: 7\n"));
        let began = Instant::now();
        for times in 1..=3 {
            assert_eq!(next().await, ": still in progress\n\n");
            assert_eq!(began.elapsed(), KEEP_ALIVE_INTERVAL * times);
        }
        snapshots.send_replace(snapshot(RecordState::Answered));
        assert!(next().await.starts_with("event: done\n"));
        assert_eq!(next().await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_an_hour_also_if_its_client_does_not_read() {
        for reads in [true, false] {
            let (_snapshots, receiver) = watch::channel(snapshot(RecordState::Applied));
            let (_stopping, stopping) = watch::channel(false);
            let (parts, mut body) = mpsc::channel(4);
            let began = Instant::now();
            let stream = tokio::spawn(send(receiver, parts, stopping));
            let mut last = Bytes::new();
            while let Some(part) = if reads { body.recv().await } else { None } {
                last = part;
            }
            stream.await.expect("ends");
            assert_eq!(began.elapsed(), STREAM_TIMEOUT);
            assert_eq!(
                last,
                if reads {
                    comment("the stream has reached its maximum time")
                } else {
                    Bytes::new()
                }
            );
        }
    }
}
