//! What a failed call to the API server means.
//!
//! Above all: may the write have been applied nevertheless? After a failed connection or a 429 it was not;
//! after a lost response or a 5xx it may have been.

use std::{error::Error, time::Duration};

use hyper_util::client::legacy;
use kube::core::Status;

use crate::{
    contract::error::{ActionError, Code},
    k8s::api::{connection::ConnectError, dialer::ProxyError},
};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// 404: the object does not exist.
    NotFound,
    /// 404 as text: the API server, or a proxy, does not serve this path. A write may have been applied, as after every
    /// answer that may be a proxy's.
    NoSuchPath(String),
    /// 409: the object is another one, or has changed since it was read.
    Conflict(String),
    /// 403 by the authorizer: this identity may not make this call.
    Forbidden(String),
    /// 403 by the authorizer: this identity may not make it as another user.
    MayNotImpersonate(String),
    /// 400, 403 by admission, 422 and the like: the cluster rejects this change.
    Rejected(String),
    /// 422 without a cause: a `test` of a JSON Patch failed, or an admission webhook rejected the change so.
    TestFailed(String),
    /// 410: the API server has discarded the state of a list whose next page was asked for.
    Expired(String),
    /// 401: the cluster does not know this identity.
    Unauthorized(String),
    /// 429: not applied; retry later.
    Busy(String, Option<Duration>),
    /// 429 of an eviction: a disruption budget does not allow it now; not applied.
    Disruption(String),
    /// An admission webhook or policy could not decide, so the write was not applied.
    AdmissionFailed(String),
    /// 5xx: a write may have been applied.
    ServerError(String, Option<Duration>),
    /// The connection failed, so nothing was sent.
    Unreachable(String),
    /// The connection broke, or the response did not come in time: a write may have been applied.
    NoAnswer(String),
    /// The proxy made no connection, so nothing was sent.
    Proxy(String),
    /// The call cannot be made: a certificate or the proxy's password is wrong.
    Misconfigured(String),
    /// There are no credentials, so nothing was sent.
    Credentials(CredentialsError),
}

/// Why there is no credential. It has no text of a kubeconfig, and of a plugin's output only what its standard error
/// says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct CredentialsError {
    code: Code,
    detail: String,
    hint: String,
}

impl CredentialsError {
    /// What is configured cannot give a credential.
    pub(crate) fn configuration(detail: String, hint: impl Into<String>) -> Self {
        CredentialsError { code: Code::Configuration, detail, hint: hint.into() }
    }

    /// The source of the credential refused it.
    pub(crate) fn refused(detail: String, hint: impl Into<String>) -> Self {
        CredentialsError { code: Code::CredentialsRefused, detail, hint: hint.into() }
    }

    /// The error as it is reported, for calls to this server.
    pub(crate) fn to_action_error(&self, server: &str) -> ActionError {
        let detail = format!("no credentials for the cluster at {server}: {}", self.detail);
        ActionError::new(self.code, detail).with_hint(self.hint.clone())
    }
}

impl ApiError {
    /// Its kind in snake case, for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            ApiError::NotFound => "not_found",
            ApiError::NoSuchPath(_) => "no_such_path",
            ApiError::Conflict(_) => "conflict",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::MayNotImpersonate(_) => "may_not_impersonate",
            ApiError::Rejected(_) => "rejected",
            ApiError::TestFailed(_) => "test_failed",
            ApiError::Expired(_) => "expired",
            ApiError::Unauthorized(_) => "unauthorized",
            ApiError::Busy(..) => "busy",
            ApiError::Disruption(_) => "disruption",
            ApiError::AdmissionFailed(_) => "admission_failed",
            ApiError::ServerError(..) => "server_error",
            ApiError::Unreachable(_) => "unreachable",
            ApiError::NoAnswer(_) => "no_answer",
            ApiError::Proxy(_) => "proxy",
            ApiError::Misconfigured(_) => "misconfigured",
            ApiError::Credentials(_) => "credentials",
        }
    }

    /// What happened, for people.
    pub(crate) fn message(&self) -> &str {
        match self {
            ApiError::NotFound => "not found",
            ApiError::Conflict(message)
            | ApiError::Forbidden(message)
            | ApiError::MayNotImpersonate(message)
            | ApiError::Rejected(message)
            | ApiError::TestFailed(message)
            | ApiError::Expired(message)
            | ApiError::Unauthorized(message)
            | ApiError::Busy(message, _)
            | ApiError::Disruption(message)
            | ApiError::AdmissionFailed(message)
            | ApiError::ServerError(message, _)
            | ApiError::Unreachable(message)
            | ApiError::NoAnswer(message)
            | ApiError::NoSuchPath(message)
            | ApiError::Proxy(message)
            | ApiError::Misconfigured(message) => message,
            ApiError::Credentials(error) => &error.detail,
        }
    }

    /// When to retry, if the server named a time.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::Busy(_, wait) | ApiError::ServerError(_, wait) => *wait,
            _ => None,
        }
    }

    /// Whether the failed write may have been applied.
    pub(crate) fn may_be_applied(&self) -> bool {
        matches!(self, ApiError::ServerError(..) | ApiError::NoAnswer(_) | ApiError::NoSuchPath(_))
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => of_status(&status),
            kube::Error::Service(error) => of_service(error.as_ref()),
            kube::Error::BuildRequest(error) => ApiError::Misconfigured(chain(&error)),
            // The parser may quote the response, which may have secrets.
            kube::Error::SerdeError(error) => ApiError::NoAnswer(format!(
                "the response is not the object that was asked for (line {}, column {})",
                error.line(),
                error.column()
            )),
            // All others happen while a response is read.
            error => ApiError::NoAnswer(chain(&error)),
        }
    }
}

fn of_service(error: &(dyn Error + 'static)) -> ApiError {
    if let Some(error) = find::<CredentialsError>(error) {
        return ApiError::Credentials(error.clone());
    }
    let is_connect = error.is::<ConnectError>()
        || error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
    match find::<ProxyError>(error) {
        Some(proxy) => of_proxy(chain(proxy)),
        None if is_connect => of_connect(chain(error)),
        None => ApiError::NoAnswer(chain(error)),
    }
}

/// The first error of this type among the error and its causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    error.downcast_ref().or_else(|| find(error.source()?))
}

/// Another password is no transient error either.
fn of_proxy(message: String) -> ApiError {
    if message.contains("proxy authorization required") {
        return ApiError::Misconfigured(message);
    }
    ApiError::Proxy(message)
}

/// An untrusted certificate is no transient error: a retry would not help.
fn of_connect(message: String) -> ApiError {
    if message.contains("invalid peer certificate") {
        return ApiError::Misconfigured(message);
    }
    ApiError::Unreachable(message)
}

/// The reason that kube gives an answer that is no `Status`.
const UNPARSED: &str = "Failed to parse error data";

/// What Go's `http.NotFound` writes, with which the API server answers a path that it does not serve
/// (`apiserver/pkg/util/notfoundhandler`).
const NO_SUCH_PATH: &str = "404 page not found";

/// How the API server says which fields of a patch the object's schema does not have
/// (`apimachinery/pkg/runtime/error.go`).
const UNKNOWN_FIELDS: &str = "strict decoding error: ";

fn of_status(status: &Status) -> ApiError {
    let message = status.message.clone();
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let retry_after = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
    // Admission comes before the write, and may have any status code.
    match status.code {
        400.. if failed_admission(&message).is_some() => return ApiError::AdmissionFailed(message),
        400.. if is_denial(&message) => return ApiError::Rejected(message),
        _ => {}
    }
    match status.code {
        // Not the API server's: something between has answered with JSON or text of its own.
        0 | 408 => ApiError::NoAnswer(message),
        404 if status.reason == UNPARSED && message.trim() == NO_SUCH_PATH => {
            ApiError::NoSuchPath(message)
        }
        404 | 409 if status.reason == UNPARSED => ApiError::NoAnswer(message),
        401 => ApiError::Unauthorized(message),
        403 if is_about_impersonation(&message) => ApiError::MayNotImpersonate(message),
        403 if by_the_authorizer(&message) => ApiError::Forbidden(message),
        404 => ApiError::NotFound,
        409 => ApiError::Conflict(message),
        410 => ApiError::Expired(message),
        422 if has_no_cause(status) => ApiError::TestFailed(message),
        // The message has the whole object before it.
        422 if message.contains(UNKNOWN_FIELDS) => {
            let at = message.find(UNKNOWN_FIELDS).unwrap_or_default();
            ApiError::Rejected(message[at..].to_owned())
        }
        429 => match disruption_message(status) {
            Some(detail) => ApiError::Disruption(format!("{message} {detail}")),
            None => ApiError::Busy(message, retry_after),
        },
        // Reported as a server error, but permanent (`registry/core/pod/storage/eviction.go`).
        500 if message.contains("more than one PodDisruptionBudget") => ApiError::Rejected(message),
        500.. => ApiError::ServerError(message, retry_after),
        _ => ApiError::Rejected(message),
    }
}

/// A validation error has a cause for each wrong field; a failed `test` has none (seen on Kubernetes 1.37).
fn has_no_cause(status: &Status) -> bool {
    status.details.as_ref().is_none_or(|details| details.causes.is_empty())
}

/// Whether a webhook or an admission policy denied the write. The message has the name of either (`k8s.io/apiserver`,
/// `pkg/admission/plugin/webhook/errors/statuserror.go` and `pkg/admission/plugin/policy`); the status code is the
/// webhook's own.
pub(crate) fn is_denial(message: &str) -> bool {
    (message.contains("admission webhook \"") && message.contains("\" denied the request"))
        || (message.contains("olicy '") && message.contains("' denied request: "))
}

/// The webhook that the API server could not call (`k8s.io/apiserver`, `pkg/util/webhook/error.go`), or the policy
/// whose binding or parameters it could not read (`pkg/admission/plugin/policy/generic/policy_dispatcher.go`).
pub(crate) fn failed_admission(message: &str) -> Option<String> {
    let name = |begin: &str, end: char| Some(message.split_once(begin)?.1.split_once(end)?.0);
    // A denial quotes the webhook's words, which may be anything.
    if message.contains("\" denied the request") {
        return None;
    }
    if let Some(webhook) = name("failed calling webhook \"", '"') {
        return Some(format!("webhook '{webhook}'"));
    }
    let is_unread = message.contains("' denied request: failed to configure binding: Get \"");
    let policy = name("olicy '", '\'').filter(|_| is_unread)?;
    Some(format!("policy '{policy}'"))
}

/// The authorizer's message is `User "x" cannot patch resource "y"`; admission has other messages.
fn by_the_authorizer(message: &str) -> bool {
    message.contains("\" cannot ") && message.contains(" resource \"")
}

/// The same with a verb of impersonation: `impersonate`, or with constrained impersonation `impersonate:MODE` and
/// `impersonate-on:MODE:VERB` (`apiserver/pkg/endpoints/filters/impersonation`).
fn is_about_impersonation(message: &str) -> bool {
    message.contains("\" cannot impersonate") && message.contains(" resource \"")
}

/// The disruption budget that refused and what it needs; only the details of the status have it.
fn disruption_message(status: &Status) -> Option<&str> {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    let budget = causes.find(|cause| cause.reason == "DisruptionBudget");
    budget.map(|cause| cause.message.as_str())
}

/// An error with its causes, outermost first, without repetitions. Not for errors of a parser: they quote its input.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(yaml: &str) -> ApiError {
        of_status(&serde_yaml_ng::from_str(yaml).expect("is a Status"))
    }

    #[test]
    fn a_403_of_the_authorizer_differs_from_one_of_admission() {
        let rbac = "{code: 403, message: 'deployments.apps \"web\" is forbidden: User \"u\" cannot \
                    patch resource \"deployments\" in API group \"apps\" in the namespace \"n\"'}";
        assert!(matches!(status(rbac), ApiError::Forbidden(_)));
        let quota = "{code: 403, message: 'pods \"a\" is forbidden: exceeded quota: q'}";
        assert!(matches!(status(quota), ApiError::Rejected(_)));
    }

    #[test]
    fn a_403_about_an_impersonation_differs_from_one_about_the_call() {
        for (verb, resource) in [
            ("impersonate", "users"),
            ("impersonate:user-info", "groups"),
            ("impersonate-on:user-info:patch", "deployments"),
        ] {
            let message = format!(
                "{resource} \"jo\" is forbidden: User \"system:serviceaccount:ops:executor\" cannot {verb} \
                 resource \"{resource}\" in API group \"\" at the cluster scope"
            );
            let error = status(&json!({ "code": 403, "message": message }).to_string());
            assert!(matches!(error, ApiError::MayNotImpersonate(_)), "{verb}");
        }
    }

    #[test]
    fn a_write_is_in_doubt_after_a_5xx_only() {
        for code in [400, 401, 403, 404, 409, 422, 429] {
            assert!(!status(&format!("{{code: {code}}}")).may_be_applied(), "{code}");
        }
        for code in [500, 502, 503, 504] {
            assert!(status(&format!("{{code: {code}}}")).may_be_applied(), "{code}");
        }
    }

    #[test]
    fn a_failed_test_of_a_patch_differs_from_a_validation_error() {
        let test = "{code: 422, reason: Invalid, message: the server rejected our request}";
        assert!(matches!(status(test), ApiError::TestFailed(_)));
        let invalid = "{code: 422, reason: Invalid, message: 'spec.replicas: must not be negative', \
                       details: {causes: [{reason: FieldValueInvalid, field: spec.replicas}]}}";
        assert!(matches!(status(invalid), ApiError::Rejected(_)));
    }

    #[test]
    fn an_expired_list_may_be_read_again() {
        let expired = status(
            "{code: 410, reason: Expired, message: 'The provided continue parameter is too old'}",
        );
        assert!(matches!(expired, ApiError::Expired(_)) && !expired.may_be_applied());
    }

    #[test]
    fn a_denial_by_admission_is_one_whatever_its_status_code() {
        for code in [400, 401, 403, 404, 408, 409, 422, 429, 500, 503, 504] {
            for message in [
                r#"admission webhook "w.example.com" denied the request: User "x" cannot patch resource "y""#,
                r#"pods "a" is forbidden: admission webhook "w" denied the request without explanation"#,
                "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: not here",
                "policy 'p' with binding 'b' denied request: no",
            ] {
                let yaml = json!({ "code": code, "message": message }).to_string();
                assert_eq!(status(&yaml), ApiError::Rejected(message.to_owned()), "{code}");
            }
        }
        let failed = r#"Internal error occurred: failed calling webhook "w.example.com": failed to call webhook: Post "https://w": context deadline exceeded"#;
        let error = status(&json!({ "code": 500, "message": failed }).to_string());
        assert_eq!(error, ApiError::AdmissionFailed(failed.to_owned()));
        assert!(!error.may_be_applied());
        assert_eq!(failed_admission(failed).as_deref(), Some("webhook 'w.example.com'"));
        let unread = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: failed to configure binding: Get \"https://c\": context deadline exceeded";
        let error = status(&json!({ "code": 422, "message": unread }).to_string());
        assert_eq!(error, ApiError::AdmissionFailed(unread.to_owned()));
        assert_eq!(failed_admission(unread).as_deref(), Some("policy 'p'"));
        let quoting = "admission webhook \"w\" denied the request: failed calling webhook \"x\"";
        assert_eq!(failed_admission(quoting), None);
    }

    #[test]
    fn a_gateways_own_answer_is_none_of_the_api_servers() {
        for gateway in [
            "{message: The upstream server is timing out}",
            "{code: 408, message: timeout}",
            "{code: 404, reason: Failed to parse error data, message: not found}",
            "{code: 409, reason: Failed to parse error data, message: conflict}",
        ] {
            assert!(matches!(status(gateway), ApiError::NoAnswer(_)), "{gateway}");
            assert!(status(gateway).may_be_applied(), "{gateway}");
        }
        assert_eq!(status("{code: 404, reason: NotFound}"), ApiError::NotFound);
        let unserved =
            status("{code: 404, reason: Failed to parse error data, message: 404 page not found}");
        assert!(matches!(unserved, ApiError::NoSuchPath(_)) && unserved.may_be_applied());
    }

    #[test]
    fn a_retry_after_is_kept() {
        let busy = status("{code: 429, message: slow down, details: {retryAfterSeconds: 7}}");
        assert_eq!(busy, ApiError::Busy("slow down".into(), Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_disruption_budget_is_not_a_busy_server() {
        let blocked = status(
            "{code: 429, message: Cannot evict pod., details: {causes: [{reason: DisruptionBudget, \
             message: The disruption budget web needs 2 healthy pods}]}}",
        );
        let detail = "Cannot evict pod. The disruption budget web needs 2 healthy pods";
        assert_eq!(blocked, ApiError::Disruption(detail.into()));
        let two = status(
            "{code: 500, message: 'This pod has more than one PodDisruptionBudget, which the \
             eviction subresource does not support.'}",
        );
        assert!(matches!(two, ApiError::Rejected(_)));
    }

    #[test]
    fn an_untrusted_certificate_is_not_transient() {
        let error = of_connect("client error: invalid peer certificate: UnknownIssuer".into());
        assert!(matches!(error, ApiError::Misconfigured(_)));
    }
}
