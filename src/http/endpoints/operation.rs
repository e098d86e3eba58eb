//! How a request is getting on: asked for once, or followed as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! Any replica can tell, since it tells from the ledger alone. Those who follow the same request share its
//! looks, one a second, however many they are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Method, Request, Response, header};
use percent_encoding::percent_decode_str;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    actions::request::MAX_TIMEOUT_SECONDS,
    auth::{AccessRequest, Authenticator, Caller, Credentials, Verb},
    contract::{
        error::{ActionError, Code},
        names::{Namespace, RequestId},
    },
    executor::{
        context::{Context, stopped},
        status,
        status::{Operation, Progress},
    },
    http::{
        headers,
        headers::{check_accept, takes_events},
        message::{Body, whole},
        query,
        query::parameters,
    },
    ledger::record::State,
};

/// How often a request that is followed is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often something is sent, so that nothing in between takes the connection for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The longest that a request is followed: as long as one may take.
const LONGEST: Duration = Duration::from_secs(MAX_TIMEOUT_SECONDS);

/// How soon a client may come again when its stream has ended early.
const RETRY: Duration = Duration::from_secs(2);

/// Which request is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    namespace: String,
    id: String,
}

/// What was seen of a request at one time.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    progress: Progress,
    version: Option<String>,
}

/// The requests that are followed. Cheap to clone.
#[derive(Clone)]
pub struct Followers {
    stopping: watch::Receiver<bool>,
    looks: Arc<Mutex<HashMap<Asked, watch::Sender<Option<Seen>>>>>,
}

/// Tells how the request in this path is getting on. Without `followers`, streams are not to be had.
///
/// # Errors
/// That the path or query is wrong, the caller may not know, or there is no such request.
pub async fn tell(
    context: &Context,
    callers: &Authenticator,
    credentials: &Credentials,
    followers: Option<&Followers>,
    request: &Request<Vec<u8>>,
) -> Result<Response<Body>, ActionError> {
    let caller = callers.authenticate(credentials, context.cluster()).await?;
    let accept = headers::header(request.headers(), "accept");
    let streams = followers.filter(|_| request.method() != Method::HEAD);
    let followers = streams.filter(|_| takes_events(accept.as_deref()));
    if followers.is_none() {
        check_accept(accept.as_deref())?;
    }
    let (namespace, id) = asked(request.uri())?;
    let found = status::find(context, &namespace, &id).await?;
    let found = if_allowed(found, caller.as_ref(), &namespace, context).await?;
    let seen = Seen::of(&found, context).await;
    match followers {
        Some(followers) => Ok(followers.stream(context, namespace, id, seen)),
        None => seen.response(),
    }
}

/// Which request is meant, by the last segment of the path and the query.
fn asked(uri: &http::Uri) -> Result<(Namespace, RequestId), ActionError> {
    let segment = uri.path().rsplit('/').next().unwrap_or_default();
    let id = percent_decode_str(segment).decode_utf8();
    let id = id.map_err(|_| ActionError::invalid_field("id", "is not UTF-8"))?;
    let id = RequestId::try_from(id.into_owned());
    let id = id.map_err(|what| ActionError::invalid_field("id", what))?;
    let mut namespace = None;
    for parameter in parameters(uri.query().unwrap_or_default()) {
        match parameter? {
            (name, value) if name == "namespace" => namespace = Some(query::namespace(value)?),
            _ => {
                let what = "the query has a parameter of no use";
                return Err(ActionError::new(Code::InvalidRequest, what)
                    .with_hint("?namespace= is the target's namespace, or default for nodes"));
            }
        }
    }
    Ok((namespace.unwrap_or_default(), id))
}

/// What was found, if this caller may know of it. Whether there is anything is told only to those who may
/// know of every action in the namespace; to others, what is not theirs looks the same as what is not there.
async fn if_allowed(
    found: Option<Operation>,
    caller: Option<&Caller>,
    namespace: &Namespace,
    context: &Context,
) -> Result<Operation, ActionError> {
    let Some(caller) = caller else { return found.ok_or_else(|| not_found(namespace)) };
    let wish = |kind| AccessRequest { verb: Verb::Get, kind, namespace };
    let kind = found.as_ref().and_then(Operation::kind);
    if let (Some(found), Some(kind)) = (found, kind)
        && caller.authorize(&wish(Some(kind)), context.cluster()).await.is_ok()
    {
        return Ok(found);
    }
    caller.authorize(&wish(None), context.cluster()).await?;
    Err(not_found(namespace))
}

fn not_found(namespace: &Namespace) -> ActionError {
    let detail = format!("there is no record of such a request in namespace '{namespace}'");
    ActionError::new(Code::RequestNotFound, detail).with_hint(
        "records are in the target's namespace (?namespace=), those of nodes in default, as long as the \
         cluster keeps Events; simulations have none",
    )
}

impl Seen {
    async fn of(found: &Operation, context: &Context) -> Self {
        let version = found.version().map(str::to_owned);
        Seen { progress: found.progress(context).await, version }
    }

    fn json(&self) -> Result<String, ActionError> {
        serde_json::to_string(&self.progress)
            .map_err(|error| ActionError::new(Code::Internal, format!("the progress: {error}")))
    }

    fn response(&self) -> Result<Response<Body>, ActionError> {
        let mut response = whole("application/json", self.json()?);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let seconds = match self.progress.state {
            State::Claimed | State::Applied | State::RollingBack => Some(1),
            State::PendingApproval => Some(10),
            _ => None,
        };
        match (seconds, &self.version) {
            (Some(seconds), _) => drop(headers.insert(header::RETRY_AFTER, seconds.into())),
            // Until somebody writes to it, it is told in the same words.
            (None, Some(version)) => {
                if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
                    headers.insert(header::ETAG, tag);
                }
            }
            (None, None) => {}
        }
        Ok(response)
    }

    /// As one event of a stream.
    fn event(&self) -> Result<Vec<u8>, ActionError> {
        let name = if self.progress.state.is_terminal() { "done" } else { "progress" };
        let (id, data) = (self.version.as_deref().unwrap_or_default(), self.json()?);
        let retry = RETRY.as_millis();
        // JSON on one line, so that it is one line of data.
        Ok(format!("event: {name}\nid: {id}\nretry: {retry}\ndata: {data}\n\n").into_bytes())
    }
}

/// What clients pass over, and people and proxies see.
fn comment(text: &str) -> Vec<u8> {
    format!(": {text}\n\n").into_bytes()
}

impl Followers {
    /// Nobody yet; all streams end when `stopping` becomes true.
    #[must_use]
    pub fn new(stopping: watch::Receiver<bool>) -> Self {
        Followers { stopping, looks: Arc::default() }
    }

    fn stream(
        &self,
        context: &Context,
        namespace: Namespace,
        id: RequestId,
        first: Seen,
    ) -> Response<Body> {
        let looks = self.looks_at(context, namespace, id, first);
        let (parts, body) = mpsc::channel(4);
        tokio::spawn(send(looks, parts, self.stopping.clone()));
        let mut response = Response::new(Body::Stream(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// What is seen of this request from now on, by looks that all who follow it share.
    fn looks_at(
        &self,
        context: &Context,
        namespace: Namespace,
        id: RequestId,
        first: Seen,
    ) -> watch::Receiver<Option<Seen>> {
        let asked = Asked { namespace: namespace.to_string(), id: id.to_string() };
        let mut all = self.lock();
        if let Some(looks) = all.get(&asked) {
            return looks.subscribe();
        }
        let (looks, receiver) = watch::channel(Some(first));
        all.insert(asked.clone(), looks.clone());
        let (followers, context) = (self.clone(), context.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sleep(LOOK) => {}
                    () = looks.closed() => {}
                }
                if followers.leave(&asked, &looks) {
                    return;
                }
                let seen = match status::find(&context, &namespace, &id).await {
                    Ok(Some(found)) => Some(Seen::of(&found, &context).await),
                    Ok(None) => None,
                    // It may answer the next time; what was seen before is what is known.
                    Err(_) => continue,
                };
                looks.send_if_modified(|last| {
                    let is_new = *last != seen;
                    *last = seen;
                    is_new
                });
            }
        });
        receiver
    }

    /// Whether nobody follows it any more; then it is not looked at any more either.
    fn leave(&self, asked: &Asked, looks: &watch::Sender<Option<Seen>>) -> bool {
        // Under the lock nobody comes.
        let mut all = self.lock();
        let nobody = looks.receiver_count() == 0;
        if nobody {
            all.remove(asked);
        }
        nobody
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Asked, watch::Sender<Option<Seen>>>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what is seen until the request is done, the client leaves or the server is told to stop.
async fn send(
    mut looks: watch::Receiver<Option<Seen>>,
    parts: mpsc::Sender<Vec<u8>>,
    mut stopping: watch::Receiver<bool>,
) {
    let end = Instant::now() + LONGEST;
    let mut next = told(&looks.borrow_and_update());
    loop {
        let (part, is_last) = next;
        // What there is room for is sent, also when the end has come; who does not read does not hold it up.
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
            changed = looks.changed() => match changed {
                Ok(()) => told(&looks.borrow_and_update()),
                Err(_) => return,
            },
            () = sleep(KEEP_ALIVE) => (comment("still under way"), false),
            () = stopped(&mut stopping) => (comment("the server was told to stop; come again"), true),
            () = sleep_until(end) => (comment("followed for long enough"), true),
            () = parts.closed() => return,
        };
    }
}

/// What is sent of a look, and whether that is the end.
fn told(seen: &Option<Seen>) -> (Vec<u8>, bool) {
    match seen.as_ref().map(|seen| (seen.event(), seen.progress.state.is_terminal())) {
        Some((Ok(event), is_last)) => (event, is_last),
        Some((Err(error), _)) => (comment(&error.detail), true),
        None => (comment("the record has gone"), true),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::contract::response::Target;

    fn place(target: &str) -> Result<(String, String), ActionError> {
        let (namespace, id) = asked(&target.parse().expect("is a target"))?;
        Ok((namespace.to_string(), id.to_string()))
    }

    #[test]
    fn a_request_is_asked_for_by_id_and_namespace() {
        let pair = |one: &str, other: &str| Ok((one.to_owned(), other.to_owned()));
        assert_eq!(place("/api/v1/actions/alert-7"), pair("default", "alert-7"));
        assert_eq!(place("/api/v1/actions/alert%3A7?namespace=shop"), pair("shop", "alert:7"));
        for (wrong, field) in [
            ("/api/v1/actions/a%20b", Some("id")),
            ("/api/v1/actions/%ff", Some("id")),
            ("/api/v1/actions/a?namespace=", Some("namespace")),
            ("/api/v1/actions/a?namespace=A", Some("namespace")),
            ("/api/v1/actions/a?namespace=a&namespace=a", Some("namespace")),
            ("/api/v1/actions/a?name=a", None),
        ] {
            let error = place(wrong).expect_err(wrong);
            assert_eq!((error.code, error.field.as_deref()), (Code::InvalidRequest, field));
        }
    }

    fn seen(state: State) -> Option<Seen> {
        let progress = Progress {
            id: "alert-7".to_owned(),
            kind: "restart_k8s".to_owned(),
            state,
            detail: "it is being done".to_owned(),
            target: Target::named("apps/v1", "Deployment", "shop", "web"),
            requester: None,
            since: DateTime::default(),
            until: None,
            overdue: false,
            answer: None,
        };
        Some(Seen { progress, version: Some("7".to_owned()) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_news_shows_every_15_seconds_that_it_lives() {
        let (looks, receiver) = watch::channel(seen(State::Applied));
        let (_stopping, stopping) = watch::channel(false);
        let (parts, mut body) = mpsc::channel(4);
        tokio::spawn(send(receiver, parts, stopping));
        let mut next = async || {
            let part = body.recv().await.map(|part| String::from_utf8(part).expect("is text"));
            part.unwrap_or_default()
        };
        assert!(next().await.starts_with("event: progress\nid: 7\n"));
        let began = Instant::now();
        for times in 1..=3 {
            assert_eq!(next().await, ": still under way\n\n");
            assert_eq!(began.elapsed(), KEEP_ALIVE * times);
        }
        looks.send_replace(seen(State::Answered));
        assert!(next().await.starts_with("event: done\n"));
        assert_eq!(next().await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_an_hour_also_for_who_does_not_read() {
        for reads in [true, false] {
            let (_looks, receiver) = watch::channel(seen(State::Applied));
            let (_stopping, stopping) = watch::channel(false);
            let (parts, mut body) = mpsc::channel(4);
            let began = Instant::now();
            let stream = tokio::spawn(send(receiver, parts, stopping));
            let mut last = Vec::new();
            while let Some(part) = if reads { body.recv().await } else { None } {
                last = part;
            }
            stream.await.expect("ends");
            assert_eq!(began.elapsed(), LONGEST);
            assert_eq!(last, if reads { comment("followed for long enough") } else { Vec::new() });
        }
    }
}
