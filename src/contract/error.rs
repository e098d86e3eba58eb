//! Every way in which an action is not done, in one enum.
//!
//! An [`ActionError`] is written for the person (or model) who reads it: what was wrong, where, and
//! what to do next. It travels as an RFC 9457 problem document, the same bytes at every entry point,
//! so [`Code`] also holds the one table of what each error means to HTTP and to a shell. Entry points
//! look their status up here and never decide one themselves.
//!
//! This file knows the contract alone: it makes no calls and reads no settings.

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// The stable name of what went wrong. Callers may branch on it; its spelling never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not one: syntax, a field, a type, a name or a bound is wrong.
    InvalidRequest,
    /// The request is longer than the limit.
    PayloadTooLarge,
    /// No input, or more than one source of input at once.
    Usage,
    /// The path is not served.
    RouteNotFound,
    /// There is no record of a request with this id.
    RequestNotFound,
    /// The path is served, the method is not.
    MethodNotAllowed,
    /// The answer cannot be given in a media type that the caller accepts.
    NotAcceptable,
    /// The request's media type is not JSON.
    UnsupportedMediaType,
    /// The request took longer to arrive than the limit.
    RequestTimeout,
    /// The object that the request names does not exist.
    TargetNotFound,
    /// The Deployment is paused; nothing would be rolled out.
    TargetPaused,
    /// No controller owns the pod; it would not come back.
    TargetUnmanaged,
    /// Another controller decides what was to be changed, and would change it back.
    TargetManaged,
    /// The change would have no effect.
    NoEffect,
    /// There is no earlier revision, or not the one that was asked for.
    NoRevision,
    /// A disruption budget has no room for it now.
    DisruptionBudget,
    /// Something on the node stands in the way of draining it.
    DrainBlocked,
    /// The target is not the one that `precondition` names.
    PreconditionFailed,
    /// The cluster refused the change for its own reasons: admission, quota, validation.
    RejectedByCluster,
    /// The cluster does not permit this identity to make the call.
    Forbidden,
    /// The cluster does not accept our credentials.
    CredentialsRefused,
    /// The cluster's address or credentials cannot be read.
    Configuration,
    /// The caller has not proved who they are.
    Unauthenticated,
    /// The caller may not ask for this.
    CallerForbidden,
    /// The request is for a host name that this server does not go by.
    MisdirectedRequest,
    /// A page of another site sent the request, through somebody's browser.
    CrossSite,
    /// The caller asks too often, or too many of the peer's credentials were wrong.
    TooManyRequests,
    /// The policy does not allow it.
    PolicyDenied,
    /// Too soon after the last action on the target, or too many in the time.
    RateLimited,
    /// Somebody has thrown the kill switch.
    Stopped,
    /// The id was used for another request.
    IdReused,
    /// The request is older than what the ledger remembers.
    RequestExpired,
    /// Another try of the same request is under way.
    InProgress,
    /// The target changed under every attempt.
    Conflict,
    /// The cluster does not answer.
    ClusterUnreachable,
    /// The cluster answers that it cannot serve now.
    ClusterUnavailable,
    /// A change was sent and its answer was lost: it may or may not have happened.
    OutcomeUnknown,
    /// A server that was asked about its health is not well.
    ServerUnhealthy,
    /// The executor has no room for another request now.
    Overloaded,
    /// The executor was told to stop before anything was done.
    ShuttingDown,
    /// A bug in the executor.
    Internal,
}

/// What one [`Code`] means to those who do not read its text.
struct Meaning {
    title: &'static str,
    http: u16,
    exit: u8,
    retryable: bool,
}

const fn permanent(title: &'static str, http: u16, exit: u8) -> Meaning {
    Meaning { title, http, exit, retryable: false }
}

const fn transient(title: &'static str, http: u16, exit: u8) -> Meaning {
    Meaning { title, http, exit, retryable: true }
}

/// How a unit variant is written in JSON.
pub(crate) fn wire_name(variant: impl Serialize) -> String {
    let name = serde_json::to_value(variant).ok();
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Code {
    /// Every code, for tables and for the tests that loop over them.
    pub const ALL: [Code; 41] = [
        Code::InvalidRequest,
        Code::PayloadTooLarge,
        Code::Usage,
        Code::RouteNotFound,
        Code::RequestNotFound,
        Code::MethodNotAllowed,
        Code::NotAcceptable,
        Code::UnsupportedMediaType,
        Code::RequestTimeout,
        Code::TargetNotFound,
        Code::TargetPaused,
        Code::TargetUnmanaged,
        Code::TargetManaged,
        Code::NoEffect,
        Code::NoRevision,
        Code::DisruptionBudget,
        Code::DrainBlocked,
        Code::PreconditionFailed,
        Code::RejectedByCluster,
        Code::Forbidden,
        Code::CredentialsRefused,
        Code::Configuration,
        Code::Unauthenticated,
        Code::CallerForbidden,
        Code::MisdirectedRequest,
        Code::CrossSite,
        Code::TooManyRequests,
        Code::PolicyDenied,
        Code::RateLimited,
        Code::Stopped,
        Code::IdReused,
        Code::RequestExpired,
        Code::InProgress,
        Code::Conflict,
        Code::ClusterUnreachable,
        Code::ClusterUnavailable,
        Code::OutcomeUnknown,
        Code::ServerUnhealthy,
        Code::Overloaded,
        Code::ShuttingDown,
        Code::Internal,
    ];

    /// The one table. Exit statuses are those of sysexits(3). A missing target is 422 rather than
    /// 404 and a failed precondition 422 rather than 409, because event brokers (Knative) retry 404
    /// and 409, and neither gets better by itself.
    const fn meaning(self) -> Meaning {
        match self {
            Code::InvalidRequest => permanent("The request is not valid", 400, 65),
            Code::PayloadTooLarge => permanent("The request is too long", 413, 65),
            Code::Usage => permanent("No single source of input", 400, 64),
            Code::RouteNotFound => permanent("No such path", 404, 64),
            Code::RequestNotFound => permanent("No such request is remembered", 404, 69),
            Code::MethodNotAllowed => permanent("Method not allowed", 405, 64),
            Code::NotAcceptable => permanent("No acceptable media type", 406, 64),
            Code::UnsupportedMediaType => permanent("Unsupported media type", 415, 64),
            Code::RequestTimeout => transient("The request did not arrive in time", 408, 75),
            Code::TargetNotFound => permanent("The target does not exist", 422, 69),
            Code::TargetPaused => permanent("The target is paused", 422, 69),
            Code::TargetUnmanaged => permanent("The target would not come back", 422, 69),
            Code::TargetManaged => permanent("Another controller decides this", 422, 69),
            Code::NoEffect => permanent("The change would have no effect", 422, 69),
            Code::NoRevision => permanent("There is no such revision", 422, 69),
            Code::DisruptionBudget => transient("A disruption budget has no room", 429, 75),
            Code::DrainBlocked => permanent("The node cannot be drained", 422, 69),
            Code::PreconditionFailed => permanent("The target is another one", 422, 69),
            Code::RejectedByCluster => permanent("The cluster rejected the change", 422, 69),
            Code::Forbidden => permanent("Not permitted in the cluster", 403, 77),
            Code::CredentialsRefused => permanent("Credentials refused by the cluster", 503, 78),
            Code::Configuration => permanent("The executor is misconfigured", 503, 78),
            Code::Unauthenticated => permanent("The caller is not known", 401, 77),
            Code::CallerForbidden => permanent("The caller may not ask for this", 403, 77),
            // 421 is for a request that reached a server which does not answer for its host (RFC 9110,
            // section 15.5.20).
            Code::MisdirectedRequest => permanent("Misdirected request", 421, 77),
            Code::CrossSite => permanent("Sent by another site", 403, 77),
            Code::TooManyRequests => transient("Too many requests", 429, 75),
            Code::PolicyDenied => permanent("Not allowed by the policy", 403, 77),
            Code::RateLimited => transient("Too many actions", 429, 75),
            Code::Stopped => transient("Actions are stopped", 503, 75),
            Code::IdReused => permanent("The id was used for another request", 422, 65),
            Code::RequestExpired => permanent("The request is too old", 422, 65),
            Code::InProgress => transient("The same request is under way", 409, 75),
            Code::Conflict => transient("The target keeps changing", 409, 75),
            Code::ClusterUnreachable => transient("The cluster cannot be reached", 503, 75),
            Code::ClusterUnavailable => transient("The cluster cannot serve now", 503, 75),
            Code::OutcomeUnknown => permanent("It is unknown whether the change was made", 504, 69),
            Code::ServerUnhealthy => transient("The server is unhealthy", 503, 75),
            Code::Overloaded => transient("The executor is busy", 503, 75),
            Code::ShuttingDown => transient("The executor is shutting down", 503, 75),
            Code::Internal => permanent("A bug in the executor", 500, 70),
        }
    }

    /// The name on the wire, in snake case.
    #[must_use]
    pub fn name(self) -> String {
        wire_name(self)
    }

    /// A short sentence that is the same for every occurrence (RFC 9457 `title`).
    #[must_use]
    pub fn title(self) -> &'static str {
        self.meaning().title
    }

    /// The HTTP status.
    #[must_use]
    pub fn http_status(self) -> u16 {
        self.meaning().http
    }

    /// The exit status, after sysexits(3).
    #[must_use]
    pub fn exit_status(self) -> u8 {
        self.meaning().exit
    }

    /// Whether the same request may succeed later without anyone changing anything.
    #[must_use]
    pub fn retryable(self) -> bool {
        self.meaning().retryable
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// One action that was not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ActionError {
    /// What kind of failure this is.
    pub code: Code,
    /// What was wrong this time, in a sentence.
    pub detail: String,
    /// The path of the request's field that is at fault, as `parameters.deployment`.
    pub field: Option<String>,
    /// What to do next.
    pub hint: Option<Box<str>>,
    /// How long the cluster (or we) asked to wait before another try.
    pub retry_after: Option<Duration>,
    /// The request's id, once it is known.
    pub id: Option<Box<str>>,
    /// The uid of the object that was refused; for the audit, not for the caller.
    pub about: Option<Box<str>>,
}

impl ActionError {
    /// An error of this kind, with the sentence that says what was wrong.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        ActionError {
            code,
            detail: detail.into(),
            field: None,
            hint: None,
            retry_after: None,
            id: None,
            about: None,
        }
    }

    /// A fault in one field of the request; `path` as `parameters.deployment`.
    #[must_use]
    pub fn invalid_field(path: impl Into<String>, what: impl fmt::Display) -> Self {
        let path = path.into();
        ActionError::new(Code::InvalidRequest, format!("{path}: {what}")).with_field(path)
    }

    /// Names the request's field that is at fault; `path` as `precondition.uid`.
    #[must_use]
    pub fn with_field(mut self, path: impl Into<String>) -> Self {
        self.field = Some(path.into());
        self
    }

    /// What was wrong and what to do next, as part of a longer sentence.
    #[must_use]
    pub fn with_its_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; {hint}", self.detail),
            None => self.detail.clone(),
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    /// Adds how long to wait before another try.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Adds the uid of the object that was refused.
    #[must_use]
    pub fn object_uid(mut self, uid: Option<&str>) -> Self {
        self.about = uid.map(Into::into);
        self
    }

    /// Adds the id of the request that failed.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Whole seconds to wait before another try, rounded up, at least one.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| (wait.as_secs_f64().ceil() as u64).max(1))
    }
}

/// The wire form of an [`ActionError`]: an RFC 9457 problem document.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem", title = "Problem", deny_unknown_fields)]
struct Problem<'a> {
    /// A URI that identifies the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem in a short sentence.
    title: &'a str,
    /// The HTTP status that goes with it.
    status: u16,
    /// What was wrong this time.
    detail: &'a str,
    /// The stable name of the kind of problem.
    code: Code,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// The path of the request's field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// Seconds to wait before another try.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
    /// The request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl Serialize for ActionError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Problem {
            kind: format!("https://action-executor.dev/problems/{}", self.code),
            title: self.code.title(),
            status: self.code.http_status(),
            detail: &self.detail,
            code: self.code,
            retryable: self.code.retryable(),
            field: self.field.as_deref(),
            hint: self.hint.as_deref(),
            retry_after_seconds: self.retry_after_seconds(),
            id: self.id.as_deref(),
        }
        .serialize(serializer)
    }
}

impl JsonSchema for ActionError {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Problem".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Problem::json_schema(generator)
    }
}

impl JsonSchema for Code {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Code".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": Code::ALL.map(Code::name).as_slice() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_lists_each_code_once() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        // A variant added without a place in ALL would leave a gap before the last one.
        assert_eq!(Code::Internal as usize + 1, Code::ALL.len());
    }

    #[test]
    fn exit_status_75_and_retryable_say_the_same() {
        for code in Code::ALL {
            assert_eq!(code.exit_status() == 75, code.retryable(), "{code}");
        }
    }

    #[test]
    fn no_permanent_error_has_a_status_that_event_brokers_retry() {
        // Knative Eventing retries 404, 408, 409, 429 and 5xx. What is left is either not about an
        // event (a wrong path, a question about an id) or for a person to mend while the broker holds the event.
        let mended_by_a_person =
            [Code::CredentialsRefused, Code::Configuration, Code::OutcomeUnknown, Code::Internal];
        for code in Code::ALL.into_iter().filter(|code| !code.retryable()) {
            let status = code.http_status();
            let retried = matches!(status, 404 | 408 | 409 | 429) || status >= 500;
            assert!(
                !retried
                    || matches!(code, Code::RouteNotFound | Code::RequestNotFound)
                    || mended_by_a_person.contains(&code),
                "{code}"
            );
        }
    }

    #[test]
    fn serialises_as_a_problem_document() {
        let error = ActionError::invalid_field("parameters.deployment", "missing")
            .with_hint("name the Deployment")
            .with_retry_after(Some(Duration::from_millis(1200)));
        assert_eq!(
            serde_json::to_value(&error).expect("serialises"),
            serde_json::json!({
                "type": "https://action-executor.dev/problems/invalid_request",
                "title": "The request is not valid",
                "status": 400,
                "detail": "parameters.deployment: missing",
                "code": "invalid_request",
                "retryable": false,
                "field": "parameters.deployment",
                "hint": "name the Deployment",
                "retry_after_seconds": 2,
            })
        );
    }
}
