//! `POST /`: a CloudEvent with a request is answered with an event that carries the answer, which a broker of
//! Knative forwards to its subscribers.
//!
//! Brokers use the status alone. They retry 404, 408, 409, 429 and 5xx, put an event with any other error, or
//! with too many of these, into a dead-letter queue, and forward a response as an event only with 2xx. So
//!
//! - a transient error has the status that it has elsewhere, and is retried; so is an error that an administrator
//!   has to correct (credentials, settings), and an unknown outcome, since resending the same request is safe
//!   and may resolve it;
//! - a permanent refusal, by the policy, the target or the request itself, is an answer: 200 with a problem in the
//!   event, so that the sender gets it. As a dead letter it would not reach the sender, and a replay would not help;
//! - what is not such an event, or comes from a caller that may not ask, has its 4xx. No sender would be
//!   helped by an event; an administrator reads the dead letters.

use std::collections::BTreeSet;

use chrono::Utc;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ALLOW, RETRY_AFTER},
};
use hyper::body::Bytes;
use percent_encoding::percent_decode_str;
use schemars::SchemaGenerator;
use serde_json::json;

use crate::{
    actions::request::{ActionRequest, IdempotencyKey},
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        names::RequestId,
        response::{ActionResponse, Target},
    },
    executor::{
        incoming::{EventMetadata, IncomingRequest, execute_as},
        reply::Reply,
    },
    http::{
        dispatch::Service,
        endpoints::{
            cloudevents::event::{Incoming, Outgoing},
            execute::{action_context, action_errors, note_simulation},
        },
        headers::{WEBHOOK_REQUEST_ORIGIN, WEBHOOK_REQUEST_RATE},
        message::{Body, FullRequest, RequestInfo},
        openapi::{Operation, Tag, header, response},
    },
    ledger::record::is_final,
};

mod event;

/// The source of the events.
const SOURCE: &str = "https://action-executor.dev/executor";

/// The types of the events.
const RESPONSE: &str = "dev.action-executor.action.response.v1";
const PROBLEM: &str = "dev.action-executor.action.problem.v1";

/// Carries out the request of an event, and answers with one.
///
/// # Errors
/// It is not such an event.
pub(crate) async fn receive(
    service: &Service,
    request: FullRequest,
    info: RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let context = &action_context(service, &info);
    let (head, body) = request.into_parts();
    let Incoming { mode, id, source, time, traces, data } =
        Incoming::read(&head.headers, body.into())?;
    let key = IdempotencyKey::new(&key(&source, &id), "the event's source and id")?;
    let event = Some(EventMetadata { key: key.clone(), time });
    let incoming = IncomingRequest { body: data, event, ..IncomingRequest::default() };
    note_simulation(&incoming, &info);
    let done = execute_as(context, info.caller.as_ref(), &incoming).await;
    let (kind, suffix, asked, target, time) = match &done {
        Ok(response) => {
            let (id, target) = (response.id.clone(), response.target.clone());
            (RESPONSE, suffix(response), id, Some(target), response.finished_at)
        }
        Err(error) => {
            let request = incoming.request().ok();
            let id = request.as_ref().and_then(|it| it.id.clone()).unwrap_or(key.id);
            let target = request.map(|it| it.action.target());
            (PROBLEM, error.code.name(), id.to_string(), target, Utc::now())
        }
    };
    let status = status(&done);
    if let (Err(error), Some(metrics)) = (&done, context.metrics()) {
        metrics.problem(error);
    }
    let answer = done.map_or_else(Reply::from, Reply::from);
    let retry_after = answer.retry_after_seconds();
    let event = Outgoing {
        kind,
        source: SOURCE,
        // A later answer to the same request is another event.
        id: format!("{asked}.{suffix}"),
        subject: target.as_ref().map(subject),
        time,
        data: answer.to_json(),
        traces,
    };
    let mut response = event.response(mode, status)?;
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

/// The request in an event, if it can be read.
pub(crate) fn data(request: &FullRequest) -> Option<Vec<u8>> {
    let event = Incoming::read(request.headers(), request.body().to_vec());
    event.ok().map(|event| event.data)
}

/// Answers a sender that asks whether it may deliver events here
/// ([HTTP 1.1 Web Hooks for Event Delivery](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md),
/// section 4): it may, at a caller's rate. Who it is is checked with each event.
///
/// # Errors
/// A header of the question is missing or cannot be read.
pub(crate) fn validate(
    service: &Service,
    headers: &HeaderMap,
) -> Result<Response<Body>, ActionError> {
    let origin = WEBHOOK_REQUEST_ORIGIN.read(headers)?;
    let origin = origin
        .and_then(|origin| HeaderValue::try_from(&*origin).ok())
        .ok_or_else(|| ActionError::invalid_field(WEBHOOK_REQUEST_ORIGIN.name, "missing"))?;
    let mut response = Response::new(Body::Full(Bytes::new()));
    let answer = response.headers_mut();
    answer.insert(ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    answer.insert("webhook-allowed-origin", origin);
    if let Some(rate) = WEBHOOK_REQUEST_RATE.read(headers)? {
        let is_number = rate.parse::<u32>().is_ok_and(|rate| rate > 0);
        if !is_number {
            let what = "must be a number of requests a minute";
            return Err(ActionError::invalid_field(WEBHOOK_REQUEST_RATE.name, what));
        }
        let allowed = service.callers.requests_per_minute();
        let allowed = allowed.map_or(HeaderValue::from_static("*"), HeaderValue::from);
        answer.insert("webhook-allowed-rate", allowed);
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

/// How it ended: distinguishes the answers to the same request.
fn suffix(response: &ActionResponse) -> String {
    if is_final(response) { response.outcome.name().to_owned() } else { "interrupted".to_owned() }
}

/// The subject of an event: the target.
fn subject(target: &Target) -> String {
    let Target { namespace, kind, name, .. } = target;
    match namespace.as_str() {
        "" => format!("{kind}/{name}"),
        namespace => format!("{namespace}/{kind}/{name}"),
    }
}

/// The status for a broker.
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

/// The operation in the OpenAPI document: a request in a CloudEvent, in either mode of its HTTP binding.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let request = json!({
        "description": "A request; other data is answered with a problem in an event.",
        "anyOf": [generator.subschema_for::<ActionRequest>(), {}],
    });
    let name = json!({ "type": "string", "minLength": 1 });
    let kind = json!({ "const": "dev.action-executor.action.request.v1" });
    Operation {
        method: "POST",
        description: "CloudEvents 1.0, in binary mode (headers `ce-...`, the request as the body) or \
                      structured mode (the request in `data`). The event's source and id are the \
                      request's id, unless it brings one of its own. The answer is an event too, in the \
                      same mode: `dev.action-executor.action.response.v1`, or `.problem.v1`."
            .to_owned(),
        authenticated: true,
        parameters: ["ce-specversion", "ce-type", "ce-source", "ce-id"]
            .map(|name| {
                let description = "In binary mode, and not empty; in structured mode it is ignored.";
                header(name, description, json!({ "type": "string" }))
            })
            .into(),
        request: Some(json!({
            "required": true,
            "content": {
                "application/json": { "schema": request },
                "application/cloudevents+json": { "schema": {
                    "type": "object",
                    "required": ["specversion", "type", "source", "id", "data"],
                    "properties": {
                        "specversion": { "const": "1.0" }, "type": kind, "source": name, "id": name,
                        // Null means absent (JSON Event Format for CloudEvents, section 2.2).
                        "datacontenttype": { "type": ["string", "null"] },
                        "time": { "type": ["string", "null"], "format": "date-time" },
                        "data": request,
                    },
                } },
            },
        })),
        responses: event_statuses()
            .into_iter()
            .map(|status| {
                let data = json!({ "anyOf": [
                    generator.subschema_for::<ActionResponse>(), generator.subschema_for::<ActionError>(),
                ] });
                let content = json!({
                    "application/json": { "schema": data },
                    "application/cloudevents+json": { "schema": {
                        "type": "object",
                        "required": ["specversion", "type", "source", "id", "data"],
                        "properties": { "specversion": { "const": "1.0" }, "data": data },
                    } },
                });
                (status, response("The answer, as an event", content))
            })
            .collect(),
        errors: action_errors(),
        ..Operation::get("/", "sendEvent", Tag::Actions, "Carry out the request of a CloudEvent")
    }
}

/// The operation in the OpenAPI document: may a sender deliver events?
pub(crate) fn validation_operation() -> Operation {
    let text = || json!({ "type": "string", "minLength": 1 });
    let mut allowed = json!({ "description": "It may." });
    allowed["headers"] = json!({
        "Allow": { "schema": text(), "description": "The methods of this path." },
        "WebHook-Allowed-Origin": { "schema": text(), "description": "The sender that asked." },
        "WebHook-Allowed-Rate": {
            "schema": text(), "description": "Requests a minute, or `*`; if the sender asked.",
        },
    });
    Operation {
        method: "OPTIONS",
        description: "HTTP 1.1 Web Hooks for Event Delivery, section 4, as Azure Event Grid asks it. A sender \
                      is authenticated with each event."
            .to_owned(),
        parameters: vec![
            header("WebHook-Request-Origin", "The sender.", text()),
            header(
                "WebHook-Request-Rate",
                "Requests a minute that it wants to send.",
                json!({ "type": "string", "pattern": "^[1-9][0-9]*$" }),
            ),
        ],
        responses: vec![(200, allowed)],
        ..Operation::get("/", "validateWebhook", Tag::Actions, "May a sender deliver events here?")
    }
}

/// The statuses of responses that are events: those that brokers forward, and those that they retry.
fn event_statuses() -> BTreeSet<u16> {
    let retried = action_errors().into_iter().map(Code::http_status);
    retried.filter(|status| matches!(status, 408 | 409 | 429 | 500..)).chain([200, 202]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_request_id_is_unique_to_it() {
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
    fn transient_errors_are_retried_and_permanent_ones_are_forwarded() {
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
