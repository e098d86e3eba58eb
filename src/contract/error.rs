//! Errors: the reasons why an action was not done, in one enum.
//!
//! An [`ActionError`] states what was wrong, where, and what to do next. It is sent as an RFC 9457 problem
//! document, the same bytes at every entry point. [`Code`] has the one table of HTTP and exit statuses: an
//! entry point must not decide a status itself. This file makes no calls and reads no settings.

use std::{fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// The stable name of an error. Clients may branch on it; its spelling never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The syntax, a field, a type, a name or a number of the request is wrong.
    InvalidRequest,
    /// The request is longer than the limit.
    PayloadTooLarge,
    /// The header of the request is longer than the limit.
    HeaderTooLarge,
    /// No request, or more than one.
    Usage,
    /// There is no such path.
    RouteNotFound,
    /// There is no record of a request with this id.
    RequestNotFound,
    /// The path does not have this method.
    MethodNotAllowed,
    /// The client accepts no media type of the answer.
    NotAcceptable,
    /// The request's media type is not JSON.
    UnsupportedMediaType,
    /// The request took longer to arrive than the limit.
    RequestTimeout,
    /// The object that the request names does not exist.
    TargetNotFound,
    /// The cluster does not serve the kind of the object: its operator is not installed, or too old.
    KindNotInstalled,
    /// The Deployment is paused, so that nothing would be rolled out.
    TargetPaused,
    /// The pod has no controller and would not be replaced.
    TargetUnmanaged,
    /// Another controller sets the value and would change it back.
    TargetManaged,
    /// The change would have no effect.
    NoEffect,
    /// There is no earlier revision, or not the requested one.
    NoRevision,
    /// A disruption budget allows no disruption now.
    DisruptionBudget,
    /// Pods on the node block the drain.
    DrainBlocked,
    /// The target does not meet the request's `precondition`, or is not in the state that the action needs.
    PreconditionFailed,
    /// Admission, quota or validation of the cluster refused the change.
    RejectedByCluster,
    /// RBAC of the cluster does not permit the call.
    Forbidden,
    /// The cluster does not accept the executor's credentials.
    CredentialsRefused,
    /// A setting, a file or a kubeconfig cannot be used.
    Configuration,
    /// The caller is not authenticated.
    Unauthenticated,
    /// The caller is not authorized for this.
    CallerForbidden,
    /// The server does not serve the host of the request.
    MisdirectedRequest,
    /// A page of another site sent the request through a browser.
    CrossSite,
    /// The caller sends too often, or too many credentials of the peer were wrong.
    TooManyRequests,
    /// The policy does not allow it.
    PolicyDenied,
    /// The target's cooldown or a budget of actions is exceeded.
    RateLimited,
    /// The kill switch is on.
    Stopped,
    /// The id was used for another request.
    IdReused,
    /// The request is older than the replay window.
    RequestExpired,
    /// Another attempt at the same request is in progress.
    InProgress,
    /// The target changed during every attempt.
    Conflict,
    /// The cluster does not answer.
    ClusterUnreachable,
    /// The API server is overloaded.
    ClusterUnavailable,
    /// A change was sent and its answer was lost: it may or may not have been made.
    OutcomeUnknown,
    /// The server that `healthcheck` requested is not healthy.
    ServerUnhealthy,
    /// Too many requests are in progress and queued.
    Overloaded,
    /// The executor shut down before anything was done.
    ShuttingDown,
    /// A bug in the executor.
    Internal,
}

/// What a [`Code`] means to HTTP, to a shell and to a client that retries.
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

/// The JSON name of a unit variant.
fn wire_name(variant: impl Serialize) -> String {
    let name = serde_json::to_value(variant).ok();
    name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Code {
    /// Every code.
    pub const ALL: [Code; 43] = [
        Code::InvalidRequest,
        Code::PayloadTooLarge,
        Code::HeaderTooLarge,
        Code::Usage,
        Code::RouteNotFound,
        Code::RequestNotFound,
        Code::MethodNotAllowed,
        Code::NotAcceptable,
        Code::UnsupportedMediaType,
        Code::RequestTimeout,
        Code::TargetNotFound,
        Code::KindNotInstalled,
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

    /// The one table. Exit statuses are those of sysexits(3). A missing target is 422 and not 404, and a
    /// failed precondition is 422 and not 409, because event brokers (Knative) retry 404 and 409, and
    /// neither improves by itself.
    const fn meaning(self) -> Meaning {
        match self {
            Code::InvalidRequest => permanent("The request is not valid", 400, 65),
            Code::PayloadTooLarge => permanent("The request is too long", 413, 65),
            Code::HeaderTooLarge => permanent("Request header fields too large", 431, 65),
            Code::Usage => permanent("No request, or more than one", 400, 64),
            Code::RouteNotFound => permanent("No such path", 404, 64),
            Code::RequestNotFound => permanent("No record of such a request", 404, 69),
            Code::MethodNotAllowed => permanent("Method not allowed", 405, 64),
            Code::NotAcceptable => permanent("No acceptable media type", 406, 64),
            Code::UnsupportedMediaType => permanent("Unsupported media type", 415, 64),
            Code::RequestTimeout => transient("The request did not arrive in time", 408, 75),
            Code::TargetNotFound => permanent("The target does not exist", 422, 69),
            Code::KindNotInstalled => permanent("The target's kind is not installed", 422, 69),
            Code::TargetPaused => permanent("The target is paused", 422, 69),
            Code::TargetUnmanaged => permanent("The target would not be replaced", 422, 69),
            Code::TargetManaged => permanent("Another controller decides this", 422, 69),
            Code::NoEffect => permanent("The change would have no effect", 422, 69),
            Code::NoRevision => permanent("There is no such revision", 422, 69),
            Code::DisruptionBudget => transient("No disruption allowed now", 429, 75),
            Code::DrainBlocked => permanent("The node cannot be drained", 422, 69),
            Code::PreconditionFailed => permanent("The target does not match", 422, 69),
            Code::RejectedByCluster => permanent("The cluster rejected the change", 422, 69),
            Code::Forbidden => permanent("Not permitted in the cluster", 403, 77),
            Code::CredentialsRefused => permanent("Credentials refused by the cluster", 503, 78),
            Code::Configuration => permanent("The executor is misconfigured", 503, 78),
            Code::Unauthenticated => permanent("Not authenticated", 401, 77),
            Code::CallerForbidden => permanent("The caller is not authorized", 403, 77),
            // RFC 9110, section 15.5.20.
            Code::MisdirectedRequest => permanent("Misdirected request", 421, 77),
            Code::CrossSite => permanent("Request from another site", 403, 77),
            Code::TooManyRequests => transient("Too many requests", 429, 75),
            Code::PolicyDenied => permanent("Not allowed by the policy", 403, 77),
            Code::RateLimited => transient("Too many actions", 429, 75),
            Code::Stopped => transient("Actions are stopped", 503, 75),
            Code::IdReused => permanent("The id was used for another request", 422, 65),
            Code::RequestExpired => permanent("The request is too old", 422, 65),
            Code::InProgress => transient("The same request is in progress", 409, 75),
            Code::Conflict => transient("The target keeps changing", 409, 75),
            Code::ClusterUnreachable => transient("The cluster cannot be reached", 503, 75),
            Code::ClusterUnavailable => transient("The cluster is overloaded", 503, 75),
            Code::OutcomeUnknown => permanent("It is unknown whether the change was made", 504, 69),
            Code::ServerUnhealthy => transient("The server is unhealthy", 503, 75),
            Code::Overloaded => transient("The server is overloaded", 503, 75),
            Code::ShuttingDown => transient("The server is shutting down", 503, 75),
            Code::Internal => permanent("A bug in the executor", 500, 70),
        }
    }

    /// Its name in JSON.
    pub(crate) fn name(self) -> String {
        wire_name(self)
    }

    /// The title, which is the same for every occurrence (RFC 9457).
    pub(crate) fn title(self) -> &'static str {
        self.meaning().title
    }

    /// The HTTP status.
    #[must_use]
    pub fn http_status(self) -> u16 {
        self.meaning().http
    }

    /// The exit status (sysexits(3)).
    #[must_use]
    pub fn exit_status(self) -> u8 {
        self.meaning().exit
    }

    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub fn retryable(self) -> bool {
        self.meaning().retryable
    }
}

/// An exit status of the program.
pub(crate) struct ExitStatus {
    /// The number.
    pub status: u8,
    /// Its name in sysexits(3).
    pub name: &'static str,
    /// What it means here.
    pub meaning: &'static str,
}

const fn exit(status: u8, name: &'static str, meaning: &'static str) -> ExitStatus {
    ExitStatus { status, name, meaning }
}

/// Every exit status.
pub(crate) const EXIT_STATUSES: [ExitStatus; 8] = [
    exit(0, "EX_OK", "done, simulated, or nothing to do"),
    exit(64, "EX_USAGE", "no request, more than one, or wrong arguments"),
    exit(65, "EX_DATAERR", "the request is not valid"),
    exit(
        69,
        "EX_UNAVAILABLE",
        "refused because of the cluster's state, or the effect did not complete",
    ),
    exit(70, "EX_SOFTWARE", "a bug"),
    exit(75, "EX_TEMPFAIL", "retry later; also an interrupted wait and a pending approval"),
    exit(77, "EX_NOPERM", "not permitted by the policy, by RBAC or for this caller"),
    exit(
        78,
        "EX_CONFIG",
        "the executor is misconfigured, or the cluster does not accept its credentials",
    ),
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Why an action was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ActionError {
    /// The kind of error.
    pub code: Code,
    /// What was wrong this time.
    pub detail: String,
    /// The path of the request's field that is at fault, for example `parameters.deployment`.
    pub field: Option<String>,
    /// What to do next.
    pub hint: Option<Box<str>>,
    /// How long to wait before the request is resent.
    pub retry_after: Option<Duration>,
    /// The request's id, once it is known.
    pub id: Option<Box<str>>,
    /// What is known of the object that was refused.
    pub refused: Option<Box<RefusedObject>>,
}

/// What is known of an object that was refused; for the audit trail and for hints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedObject {
    /// Its uid.
    pub uid: Option<String>,
    /// The digest of the id of the request that acted on it last.
    pub last_request: Option<String>,
}

impl ActionError {
    /// An error with this detail.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        ActionError {
            code,
            detail: detail.into(),
            field: None,
            hint: None,
            retry_after: None,
            id: None,
            refused: None,
        }
    }

    /// An invalid field of the request; `path` is for example `parameters.deployment`.
    pub(crate) fn invalid_field(path: impl Into<String>, what: impl fmt::Display) -> Self {
        let path = path.into();
        ActionError::new(Code::InvalidRequest, format!("{path}: {what}")).with_field(path)
    }

    /// The id of a request was used for another one.
    pub(crate) fn id_reused(id: &str) -> Self {
        ActionError::new(Code::IdReused, format!("id: '{id}' was used for another request"))
            .with_field("id")
            .with_hint("use a new id for each request; resend the first request to get its answer")
    }

    /// Names the request's field that is at fault; `path` is for example `precondition.uid`.
    pub(crate) fn with_field(mut self, path: impl Into<String>) -> Self {
        self.field = Some(path.into());
        self
    }

    /// Detail and hint in one line, for the middle of a sentence.
    pub(crate) fn with_its_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}; {hint}", self.detail),
            None => self.detail.clone(),
        }
    }

    /// Adds what to do next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    /// Adds how long to wait before the request is resent.
    pub(crate) fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Adds the uid of the object that was refused.
    pub(crate) fn object_uid(mut self, uid: Option<&str>) -> Self {
        self.refused.get_or_insert_default().uid = uid.map(str::to_owned);
        self
    }

    /// The uid of the object that was refused.
    pub(crate) fn refused_uid(&self) -> Option<&str> {
        self.refused.as_ref()?.uid.as_deref()
    }

    /// Adds the digest of the id of the request that acted last on the object that was refused.
    pub(crate) fn last_request(mut self, digest: Option<&str>) -> Self {
        self.refused.get_or_insert_default().last_request = digest.map(str::to_owned);
        self
    }

    /// Adds the id of the request that failed.
    pub(crate) fn with_id(mut self, id: &str) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Whole seconds to wait before the request is resent, rounded up, at least one.
    pub(crate) fn retry_after_seconds(&self) -> Option<u64> {
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
    /// Seconds to wait before the request is resent.
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
        // A variant that is missing in ALL leaves a gap before the last one.
        assert_eq!(Code::Internal as usize + 1, Code::ALL.len());
    }

    #[test]
    fn exit_status_75_means_retryable() {
        for code in Code::ALL {
            assert_eq!(code.exit_status() == 75, code.retryable(), "{code}");
        }
    }

    #[test]
    fn every_exit_status_is_described() {
        let described: HashSet<_> = EXIT_STATUSES.iter().map(|it| it.status).collect();
        for code in Code::ALL {
            assert!(described.contains(&code.exit_status()), "{code}");
        }
    }

    #[test]
    fn no_permanent_error_has_a_status_that_event_brokers_retry() {
        // Knative Eventing retries 404, 408, 409, 429 and 5xx. The exceptions do not concern events (a wrong
        // path, the state of an id), or a person repairs the cause while the broker holds the event.
        let repaired_by_a_person =
            [Code::CredentialsRefused, Code::Configuration, Code::OutcomeUnknown, Code::Internal];
        for code in Code::ALL.into_iter().filter(|code| !code.retryable()) {
            let status = code.http_status();
            let retried = matches!(status, 404 | 408 | 409 | 429) || status >= 500;
            assert!(
                !retried
                    || matches!(code, Code::RouteNotFound | Code::RequestNotFound)
                    || repaired_by_a_person.contains(&code),
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
