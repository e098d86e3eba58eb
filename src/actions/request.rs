//! The request, and how it is parsed.
//!
//! Parsing has two phases, so that an error can always name the wrong field: first the envelope,
//! with `parameters` left unread, then the parameters, by the action that owns them. What is
//! accepted here is fully checked; no later code parses text again. Every entry point reads requests with
//! the same function. Must not call the cluster.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    actions::{Action, ActionKind},
    contract::{
        error::{ActionError, Code},
        json::{read, strict_object_or_null},
        names::{AuditText, ClusterName, RequestId},
        precondition::Precondition,
    },
};

/// The longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The highest `timeout_seconds`.
pub(crate) const MAX_TIMEOUT_SECONDS: u64 = 3600;

/// The `timeout_seconds` of a request that names none.
pub(crate) const DEFAULT_TIMEOUT_SECONDS: u64 = 300;

/// An action with its parameters and conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionRequest {
    /// The action with its parameters.
    pub action: Action,
    /// Only report what would happen. True by default.
    pub simulate: bool,
    /// The idempotency key.
    pub id: Option<RequestId>,
    /// The person or program that sends the request.
    pub requester: Option<AuditText>,
    /// The reason.
    pub reason: Option<AuditText>,
    /// The program that sent it, as it names itself; for the audit trail. It is no part of the JSON form and of the
    /// payload: another version of a client may resend a request.
    pub client: Option<AuditText>,
    /// When the request was created.
    pub issued_at: Option<DateTime<Utc>>,
    /// The time of the event that carried it. It is no part of the request: another event may carry the same one.
    pub event_time: Option<DateTime<Utc>>,
    /// Wait until the effect is complete.
    pub wait: bool,
    /// The limit of the whole action, including the wait and the observation.
    pub timeout: Option<Duration>,
    /// How long the target is observed once the wait is over.
    pub observe: Option<Duration>,
    /// Act only if the target is still this one.
    pub precondition: Option<Precondition>,
    /// The cluster on which to act, if the request names one.
    pub cluster: Option<ClusterName>,
}

/// The request's JSON form, generic over how far `parameters` has been read.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Envelope")]
struct Envelope<P> {
    /// The action.
    #[serde(rename = "type")]
    kind: String,
    /// The action's own parameters.
    parameters: P,
    /// Only report what would happen; true by default.
    #[serde(default = "simulate_by_default")]
    simulate: bool,
    /// Idempotency key; without one an id is generated, for the audit trail only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    /// The person or program that sends the request; for the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requester: Option<AuditText>,
    /// The reason; for the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<AuditText>,
    /// When the request was created (RFC 3339).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_time",
        deserialize_with = "read_time"
    )]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    issued_at: Option<DateTime<Utc>>,
    /// Wait until the effect is complete: the rollout is done, the pod is replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    wait: bool,
    /// Limit of the whole action in seconds, including the wait and the observation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    timeout_seconds: Option<u64>,
    /// With `wait`: seconds to observe the target once the effect is complete. A pod that restarts, is not ready any
    /// more or is gone, and a rollout that regresses, are failures then. Less than `timeout_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3599))]
    observe_seconds: Option<u64>,
    /// Act only if the target is still this one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "strict_object_or_null"
    )]
    #[schemars(with = "Option<Precondition>")]
    precondition: Option<Precondition>,
    /// The cluster on which to act: one of those that the executor is configured for. Where there is only one, the
    /// request is refused unless it has this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterName>,
}

fn simulate_by_default() -> bool {
    true
}

fn write_time<S: Serializer>(time: &Option<DateTime<Utc>>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)).serialize(to)
}

/// RFC 3339; the error does not repeat the value.
fn read_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    DateTime::parse_from_rfc3339(&text).map(|time| Some(time.to_utc())).map_err(|_| {
        serde::de::Error::custom("must be an RFC 3339 time, for example 2026-01-31T12:00:00Z")
    })
}

impl ActionRequest {
    /// Reads a request from JSON.
    ///
    /// # Errors
    /// [`Code::PayloadTooLarge`] beyond [`MAX_REQUEST_BYTES`], else [`Code::InvalidRequest`] with
    /// the path of the wrong field: invalid UTF-8 or JSON, NUL, an unknown or repeated field, a
    /// wrong type, a missing parameter, a name that Kubernetes would not take.
    pub fn parse(bytes: &[u8]) -> Result<Self, ActionError> {
        let text = checked_text(bytes)?;
        let envelope: Envelope<&RawValue> =
            read(text, "").map_err(|error| with_list_hint(text, error))?;
        let action = ActionKind::named(&envelope.kind)?.parse(envelope.parameters.get())?;
        if action.rollback_on_failure() && !envelope.wait {
            let what = "requires \"wait\": true: without it a failed rollout is not noticed";
            return Err(ActionError::invalid_field("parameters.rollback_on_failure", what));
        }
        if action.selection().is_some() && envelope.precondition.is_some() {
            let what =
                "cannot be combined with parameters.selector, which may choose several objects";
            return Err(ActionError::invalid_field("precondition", what));
        }
        let timeout = envelope.timeout_seconds.map(checked_timeout).transpose()?;
        let observe = envelope
            .observe_seconds
            .map(|seconds| checked_observation(seconds, envelope.wait, timeout))
            .transpose()?;
        Ok(ActionRequest {
            action,
            simulate: envelope.simulate,
            id: envelope.id,
            requester: envelope.requester,
            reason: envelope.reason,
            client: None,
            issued_at: envelope.issued_at,
            event_time: None,
            wait: envelope.wait,
            timeout,
            observe,
            precondition: envelope.precondition,
            cluster: envelope.cluster,
        })
    }
}

/// An id from a header or an environment variable, beside the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The id.
    pub id: RequestId,
    /// Its source, for messages.
    pub from: &'static str,
}

impl IdempotencyKey {
    /// # Errors
    /// [`Code::InvalidRequest`] with the source.
    pub(crate) fn new(text: &str, from: &'static str) -> Result<Self, ActionError> {
        let id = RequestId::try_from(text.to_owned());
        id.map(|id| IdempotencyKey { id, from })
            .map_err(|what| ActionError::invalid_field(from, what))
    }
}

impl ActionRequest {
    /// The request with the id from beside it, if there is one.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the request has another id.
    pub(crate) fn with_idempotency_key(
        mut self,
        key: Option<&IdempotencyKey>,
    ) -> Result<Self, ActionError> {
        let Some(key) = key else { return Ok(self) };
        if self.id.as_ref().is_some_and(|id| *id != key.id) {
            return Err(ActionError::invalid_field("id", format!("differs from {}", key.from)));
        }
        self.id = Some(key.id.clone());
        Ok(self)
    }

    /// The request for this cluster, which was named beside it, if one was.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the request names another one.
    pub(crate) fn with_cluster(mut self, name: Option<&ClusterName>) -> Result<Self, ActionError> {
        let Some(name) = name else { return Ok(self) };
        if self.cluster.as_ref().is_some_and(|own| own != name) {
            return Err(ActionError::invalid_field("cluster", "differs from --cluster"));
        }
        self.cluster = Some(name.clone());
        Ok(self)
    }
}

impl ActionRequest {
    /// How long the wait for completion may last: what the observation leaves of the whole time. Of several targets
    /// each one is observed for itself.
    pub(crate) fn wait_time(&self) -> Duration {
        let whole = self.timeout.unwrap_or(Duration::from_secs(DEFAULT_TIMEOUT_SECONDS));
        if self.action.selection().is_some() {
            return whole;
        }
        whole.saturating_sub(self.observe.unwrap_or_default())
    }

    /// When the request was made, as far as it or its event says, with the name of the field: an event from a
    /// dead-letter queue may be older than what the ledger remembers.
    pub(crate) fn made_at(&self) -> Option<(&'static str, DateTime<Utc>)> {
        let of_event = self.event_time.map(|time| ("time", time));
        self.issued_at.map(|time| ("issued_at", time)).or(of_event)
    }
}

impl Serialize for ActionRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Envelope {
            kind: self.action.kind().name().to_owned(),
            parameters: &self.action,
            simulate: self.simulate,
            id: self.id.clone(),
            requester: self.requester.clone(),
            reason: self.reason.clone(),
            issued_at: self.issued_at,
            wait: self.wait,
            timeout_seconds: self.timeout.map(|timeout| timeout.as_secs()),
            observe_seconds: self.observe.map(|time| time.as_secs()),
            precondition: self.precondition.clone(),
            cluster: self.cluster.clone(),
        }
        .serialize(serializer)
    }
}

pub(crate) fn checked_text(bytes: &[u8]) -> Result<&str, ActionError> {
    if bytes.len() > MAX_REQUEST_BYTES {
        return Err(ActionError::new(
            Code::PayloadTooLarge,
            format!("the request is longer than {MAX_REQUEST_BYTES} bytes"),
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        ActionError::new(Code::InvalidRequest, format!("the request is not UTF-8 at byte {at}"))
    })?;
    if let Some(at) = text.find('\0') {
        let detail = format!("the request contains a NUL at byte {at}");
        return Err(ActionError::new(Code::InvalidRequest, detail));
    }
    if text.trim().is_empty() {
        return Err(ActionError::new(Code::InvalidRequest, "the request is empty").with_hint(
            r#"send JSON, for example {"type":"restart_k8s","parameters":{"deployment":"web"}}"#,
        ));
    }
    Ok(text)
}

fn checked_timeout(seconds: u64) -> Result<Duration, ActionError> {
    if (1..=MAX_TIMEOUT_SECONDS).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let what = format!("must be from 1 to {MAX_TIMEOUT_SECONDS}");
    Err(ActionError::invalid_field("timeout_seconds", what))
}

/// An observation follows a wait, and the time of the whole action has to hold both.
fn checked_observation(
    seconds: u64,
    wait: bool,
    timeout: Option<Duration>,
) -> Result<Duration, ActionError> {
    let wrong = |what: String| ActionError::invalid_field("observe_seconds", what);
    if !wait {
        return Err(wrong("requires \"wait\": true: it begins when the wait is over".to_owned()));
    }
    let whole = timeout.map_or(DEFAULT_TIMEOUT_SECONDS, |timeout| timeout.as_secs());
    if seconds == 0 {
        return Err(wrong("must be at least 1".to_owned()));
    }
    if seconds >= whole {
        let limit = match timeout {
            Some(_) => format!("timeout_seconds, {whole}"),
            None => format!("timeout_seconds, by default {whole}"),
        };
        return Err(wrong(format!("must be less than {limit}"))
            .with_hint("timeout_seconds is the limit of the wait and the observation together"));
    }
    Ok(Duration::from_secs(seconds))
}

/// Adds a hint for a common mistake: a list of requests.
fn with_list_hint(text: &str, error: ActionError) -> ActionError {
    match text.trim_start().as_bytes().first() {
        Some(b'[') => error.with_hint("send one request at a time, not a list"),
        _ => error,
    }
}

/// Reads an action's parameters.
pub(crate) fn read_parameters<T: DeserializeOwned>(text: &str) -> Result<T, ActionError> {
    read(text, "parameters")
}

impl JsonSchema for ActionRequest {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ActionRequest".into()
    }

    /// The envelope, and for each action which `type` goes with which `parameters`.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema =
            Envelope::<serde_json::Map<String, serde_json::Value>>::json_schema(generator);
        let alternatives: Vec<_> = ActionKind::ALL
            .into_iter()
            .map(|kind| {
                let descriptor = kind.descriptor();
                let names = [&[descriptor.name], descriptor.aliases].concat();
                json_schema!({
                    "title": descriptor.name,
                    "description": descriptor.description,
                    "properties": {
                        "type": { "enum": names },
                        "parameters": kind.parameters_schema(generator),
                    },
                })
            })
            .collect();
        schema.insert("title".to_owned(), "ActionRequest".into());
        schema.insert("oneOf".to_owned(), serde_json::to_value(alternatives).unwrap_or_default());
        schema
    }
}

impl fmt::Display for ActionRequest {
    /// For logs: the action and its target.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.kind().name(), self.action.target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ActionRequest, ActionError> {
        ActionRequest::parse(text.as_bytes())
    }

    /// The detail of the refusal, and a check that it names its field.
    #[track_caller]
    fn refusal(text: &str) -> String {
        let error = parse(text).expect_err("is refused");
        assert_eq!(error.code, Code::InvalidRequest);
        if let Some(field) = &error.field {
            assert!(error.detail.starts_with(field.as_str()), "{error:?}");
        }
        error.detail
    }

    fn with(field: &str) -> String {
        format!(r#"{{"type":"restart_k8s","parameters":{{"deployment":"web"}},{field}}}"#)
    }

    #[test]
    fn an_observation_needs_a_wait_and_a_part_of_its_time() {
        let request = parse(&with(r#""wait":true,"timeout_seconds":60,"observe_seconds":20"#));
        let request = request.expect("is accepted");
        assert_eq!(request.observe, Some(Duration::from_secs(20)));
        assert_eq!(request.wait_time(), Duration::from_secs(40));
        for (fields, detail) in [
            (r#""observe_seconds":20"#, "requires \"wait\": true: it begins when the wait is over"),
            (r#""wait":true,"observe_seconds":0"#, "must be at least 1"),
            (
                r#""wait":true,"observe_seconds":300"#,
                "must be less than timeout_seconds, by default 300",
            ),
            (
                r#""wait":true,"timeout_seconds":20,"observe_seconds":20"#,
                "must be less than timeout_seconds, 20",
            ),
        ] {
            assert_eq!(refusal(&with(fields)), format!("observe_seconds: {detail}"));
        }
    }

    #[test]
    fn a_request_is_simulated_by_default() {
        let request = parse(r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#);
        assert!(request.expect("is accepted").simulate);
        assert!(!parse(&with(r#""simulate":false"#)).expect("is accepted").simulate);
    }

    #[test]
    fn a_simulate_that_is_not_a_boolean_is_refused() {
        assert_eq!(
            refusal(&with(r#""simulate":"no""#)),
            "simulate: expected a boolean, got a string"
        );
        assert_eq!(
            refusal(&with(r#""simulate":1"#)),
            "simulate: expected a boolean, got an integer"
        );
        assert_eq!(refusal(&with(r#""simulate":null"#)), "simulate: expected a boolean, got null");
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let missing = "parameters.deployment: missing";
        assert_eq!(refusal(r#"{"type":"restart_k8s","parameters":{}}"#), missing);
        assert_eq!(refusal(r#"{"type":"restart_k8s","parameters":{"deployment":null}}"#), missing);
        assert_eq!(
            refusal(r#"{"type":"restart_pod","parameters":{"deployment":"web"}}"#),
            "parameters.pod_name: missing"
        );
        assert_eq!(refusal(r#"{"type":"restart_pod"}"#), "parameters: missing");
        assert_eq!(refusal(r#"{"parameters":{}}"#), "type: missing");
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_path() {
        assert_eq!(refusal(&with(r#""dry_run":false"#)), "dry_run: unknown field");
        assert_eq!(
            refusal(r#"{"type":"restart_k8s","parameters":{"deployment":"web","force":true}}"#),
            "parameters.force: unknown field"
        );
        assert_eq!(
            refusal(&with(r#""precondition":{"generation":1}"#)),
            "precondition.generation: unknown field"
        );
    }

    #[test]
    fn a_duplicate_key_is_refused_at_every_level() {
        assert_eq!(
            refusal(&with(r#""simulate":true,"simulate":false"#)),
            "simulate: given more than once"
        );
        assert_eq!(
            refusal(r#"{"type":"restart_k8s","parameters":{"deployment":"a","deployment":"b"}}"#),
            "parameters.deployment: given more than once"
        );
        assert_eq!(
            refusal(&with(r#""precondition":{"uid":"a","uid":"b"}"#)),
            "precondition.uid: given more than once"
        );
    }

    #[test]
    fn a_name_that_kubernetes_rejects_is_refused() {
        for name in ["", "Web", "--server=https://evil", "a/b", "a_b"] {
            let text =
                format!(r#"{{"type":"restart_k8s","parameters":{{"deployment":"{name}"}}}}"#);
            let detail = refusal(&text);
            assert!(detail.starts_with("parameters.deployment: must "), "{detail}");
        }
        let detail = refusal(
            r#"{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"a.b"}}"#,
        );
        assert!(detail.starts_with("parameters.namespace: must be a Kubernetes label"), "{detail}");
    }

    #[test]
    fn the_original_services_example_is_accepted() {
        let example = |kind| {
            format!(
                r#"{{"type":"{kind}","parameters":{{"deployment":"my-deployment",
                "pod_name":"my-pod-123","namespace":"default"}},"simulate":true}}"#
            )
        };
        for (kind, ignored) in [("restart_k8s", "pod_name"), ("restart_pod", "deployment")] {
            let request = parse(&example(kind)).expect("is accepted");
            let warnings = request.action.warnings();
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains(&format!("parameters.{ignored}")), "{warnings:?}");
        }
    }

    #[test]
    fn a_null_parameter_is_absent() {
        let request = parse(
            r#"{"type":"restart_k8s","parameters":{"deployment":"web","pod_name":null,"namespace":null}}"#,
        )
        .expect("is accepted");
        assert_eq!(request.action.target().to_string(), "Deployment default/web");
        assert!(request.action.warnings().is_empty());
    }

    #[test]
    fn a_request_that_is_too_long_or_not_text_is_refused() {
        let long = vec![b' '; MAX_REQUEST_BYTES + 1];
        assert_eq!(
            ActionRequest::parse(&long).expect_err("is refused").code,
            Code::PayloadTooLarge
        );
        let error = ActionRequest::parse(b"{\"type\":\"\xff\"}").expect_err("is refused");
        assert_eq!(error.detail, "the request is not UTF-8 at byte 9");
        assert_eq!(refusal("{\"type\":\"a\0\"}"), "the request contains a NUL at byte 10");
        assert_eq!(refusal("  "), "the request is empty");
        assert!(refusal(&with("\"reason\":\"a\\u0000b\"")).starts_with("reason: must be one line"));
    }

    #[test]
    fn a_request_that_is_not_one_object_is_refused() {
        for text in ["[]", "null", "1", "\"restart_k8s\"", "{", "{} {}", "{\"type\":\"x\"}x"] {
            refusal(text);
        }
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        refusal(&with(&format!("\"id\":{deep}")));
    }

    #[test]
    fn an_error_never_repeats_a_value() {
        for field in [r#""simulate":"hunter2""#, r#""issued_at":"hunter2""#, r#""id":"hunter 2""#] {
            assert!(!refusal(&with(field)).contains("hunter"));
        }
    }

    #[test]
    fn a_timeout_has_limits() {
        for bad in ["0", "3601"] {
            let detail = refusal(&with(&format!(r#""timeout_seconds":{bad}"#)));
            assert_eq!(detail, "timeout_seconds: must be from 1 to 3600");
        }
        let detail = refusal(&with(r#""timeout_seconds":-1"#));
        assert_eq!(detail, "timeout_seconds: must be a whole number from 0");
        let detail = refusal(&with(r#""timeout_seconds":"1""#));
        assert_eq!(detail, "timeout_seconds: expected a whole number from 0, got a string");
        let detail = refusal(&with(r#""timeout_seconds":1.5"#));
        assert_eq!(detail, "timeout_seconds: expected a whole number from 0, got a number");
    }

    #[test]
    fn a_number_out_of_range_is_refused_with_the_range() {
        #[derive(Debug, Deserialize)]
        #[allow(dead_code, reason = "only read")]
        struct Scale {
            by: i32,
        }
        for text in [r#"{"by":99999999999}"#, r#"{"by":-2147483649}"#] {
            let error = read_parameters::<Scale>(text).expect_err(text);
            let range = "must be a whole number from -2147483648 to 2147483647";
            assert_eq!(error.detail, format!("parameters.by: {range}"));
        }
    }

    #[test]
    fn an_unknown_action_is_refused_with_the_known_ones() {
        let error =
            parse(r#"{"type":"delete_everything","parameters":{}}"#).expect_err("is refused");
        assert_eq!(error.field.as_deref(), Some("type"));
        assert!(error.hint.expect("has a hint").contains("restart_k8s"));
    }

    #[test]
    fn restart_deployment_is_an_alias_of_restart_k8s() {
        let named =
            |kind| parse(&format!(r#"{{"type":"{kind}","parameters":{{"deployment":"a"}}}}"#));
        assert_eq!(named("restart_deployment"), named("restart_k8s"));
    }
}
