//! The door for events: a CloudEvent that asks for an action is answered with one that says what came of
//! it, which a broker of Knative's passes on to whoever waits for it.
//!
//! What the statuses say is meant for brokers, who look at nothing else. They try 404, 408, 409, 429 and 5xx
//! again, and put what gets any other refusal, or too many of these, into a dead-letter queue; and only the
//! answer that comes with a 2xx is passed on as an event. So
//!
//! - what may go better another time has the status that it has elsewhere, and is tried again; and so is
//!   what a person has to mend (credentials, settings), or where the same request is safe to send again
//!   and may find out more (an unknown outcome);
//! - what was asked for and will not be done, whether the policy forbids it, the target is not there or the
//!   request is no request, is an answer as good as any: 200 with a problem in the event, so that whoever
//!   asked learns of it. As a dead letter it would be silent, and be replayed in vain;
//! - what is no event of ours, or from somebody who may not ask, has its 4xx. Nobody who asked would be
//!   helped by an answer; a person looks at the dead letters.

use chrono::Utc;
use http::{HeaderValue, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::{
    actions::request::IdempotencyKey,
    auth::{Authenticator, Credentials},
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        names::RequestId,
        response::{ActionResponse, Target},
    },
    executor::{
        context::Context,
        incoming::{EventMetadata, IncomingRequest, execute_as},
        reply::Reply,
    },
    http::{
        endpoints::cloudevents::event::{Incoming, Outgoing},
        message::Body,
    },
    ledger::record::is_final,
};

mod event;

/// Where our events are from.
const SOURCE: &str = "https://action-executor.dev/executor";

/// The types of our events.
const RESPONSE: &str = "dev.action-executor.action.response.v1";
const PROBLEM: &str = "dev.action-executor.action.problem.v1";

/// Does what an event asks for, and answers with one.
///
/// # Errors
/// That the caller is not known, or that it is no event of ours.
pub async fn receive(
    context: &Context,
    callers: &Authenticator,
    credentials: &Credentials,
    request: Request<Vec<u8>>,
) -> Result<Response<Body>, ActionError> {
    let caller = callers.authenticate(credentials, context.cluster()).await?;
    let (head, body) = request.into_parts();
    let Incoming { mode, id, source, time, traces, data } = Incoming::read(&head.headers, body)?;
    let key = IdempotencyKey::new(&key(&source, &id), "the event's source and id")?;
    let event = Some(EventMetadata { key: key.clone(), made_at: time });
    let delivery = IncomingRequest { body: data, key: None, event };
    let done = execute_as(context, caller.as_ref(), &delivery).await;
    let (kind, word, asked, target, time) = match &done {
        Ok(response) => {
            let (id, target) = (response.id.clone(), response.target.clone());
            (RESPONSE, word(response), id, Some(target), response.finished_at)
        }
        Err(error) => {
            let request = delivery.request().ok();
            let id = request.as_ref().and_then(|it| it.id.clone()).unwrap_or(key.id);
            let target = request.map(|it| it.action.target());
            (PROBLEM, error.code.name(), id.to_string(), target, Utc::now())
        }
    };
    let status = status(&done);
    if let (Err(error), Some(metrics)) = (&done, context.metrics()) {
        metrics.problem(error);
    }
    let reply = done.map_or_else(Reply::from, Reply::from);
    let retry_after = reply.retry_after_seconds();
    let event = Outgoing {
        kind,
        source: SOURCE,
        // A later answer to the same request is another event.
        id: format!("{asked}.{word}"),
        subject: target.as_ref().map(subject),
        time,
        data: reply.to_json(),
        traces,
    };
    let mut response = event.response(mode, status)?;
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

/// The request's id for an event, which is one of its own only among those of its source (CloudEvents 1.0,
/// section 3.1): the same for the same event however often it is delivered, another one for any other. The
/// event's id stays readable if it can be part of an id.
fn key(source: &str, id: &str) -> String {
    // A source is a URI reference: encoded once more or less, as SDKs disagree on in headers, it is the same.
    let of_source = sha256(&percent_decode_str(source).collect::<Vec<_>>());
    let readable = format!("ce-{}-{id}", &of_source[..16]);
    if RequestId::try_from(readable.clone()).is_ok() {
        return readable;
    }
    // Digests are of one length, so this is one of the pair.
    format!("ce-{}", sha256(format!("{of_source}{id}").as_bytes()))
}

/// How it ended, in a word that tells answers to the same request apart.
fn word(response: &ActionResponse) -> String {
    if is_final(response) { response.outcome.name() } else { "interrupted".to_owned() }
}

/// What an event is about.
fn subject(target: &Target) -> String {
    let Target { namespace, kind, name, .. } = target;
    match namespace.as_str() {
        "" => format!("{kind}/{name}"),
        namespace => format!("{namespace}/{kind}/{name}"),
    }
}

/// What the status says to a broker.
fn status(done: &Result<ActionResponse, ActionError>) -> StatusCode {
    let elsewhere = match done {
        Ok(response) => Reply::from(response.clone()).http_status(),
        Err(error) => error.code.http_status(),
    };
    let is_forbidden = done.as_ref().is_err_and(|error| error.code == Code::CallerForbidden);
    let is_retried = matches!(elsewhere, 404 | 408 | 409 | 429) || elsewhere >= 500;
    match is_forbidden || is_retried || elsewhere < 300 {
        true => StatusCode::from_u16(elsewhere).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        false => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_one_id_among_all_events() {
        let one = key("/pager", "alert-7");
        assert!(one.starts_with("ce-") && one.ends_with("-alert-7"), "{one}");
        assert_eq!(one, key("/pager", "alert-7"));
        assert_eq!(key("/caf%C3%A9", "1"), key("/café", "1"));
        let long = "x".repeat(200);
        let all = [
            key("/pager", "alert-8"),
            key("/other", "alert-7"),
            key("/pager", "alert 7"),
            key("/pager", "alert  7"),
            key("/other", "alert 7"),
            key("/caf%C3%A9", "alert-7"),
            key("/pager", &long),
        ];
        for (at, other) in all.iter().enumerate() {
            assert!(IdempotencyKey::new(other, "a test").is_ok(), "{other}");
            assert!(*other != one && !all[..at].contains(other), "{other}");
        }
    }

    #[test]
    fn brokers_retry_what_may_go_better_and_pass_on_what_will_not() {
        for code in Code::ALL {
            let status = status(&Err(ActionError::new(code, "a test's own"))).as_u16();
            let is_retried = matches!(status, 404 | 408 | 409 | 429) || status >= 500;
            if code.retryable() {
                assert!(is_retried, "{code}");
            }
            if !is_retried && code != Code::CallerForbidden {
                assert_eq!(status, 200, "{code}");
            }
        }
        let of = |code| status(&Err(ActionError::new(code, "a test's own"))).as_u16();
        assert_eq!(of(Code::TargetNotFound), 200);
        assert_eq!(of(Code::PolicyDenied), 200);
        assert_eq!(of(Code::CallerForbidden), 403);
        assert_eq!(of(Code::RateLimited), 429);
        assert_eq!(of(Code::OutcomeUnknown), 504);
    }
}
