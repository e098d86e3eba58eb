//! What a failed call to the API server means.
//!
//! Above all: may the write have been applied nevertheless? After a failed connection or a 429 it was not;
//! after a lost response or a 5xx it may have been.

use std::time::Duration;

use hyper_util::client::legacy;
use kube::core::Status;

use crate::k8s::api::connection::ConnectError;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// 404: the object does not exist.
    NotFound,
    /// 409: the object is another one, or has changed since it was read.
    Conflict(String),
    /// 403 by the authorizer: this identity may not make this call.
    Forbidden(String),
    /// 400, 403 by admission, 422 and the like: the cluster rejects this change.
    Rejected(String),
    /// 422 without a cause: a `test` of a JSON Patch failed, or an admission webhook rejected the change so.
    TestFailed(String),
    /// 401: the cluster does not know this identity.
    Unauthorized(String),
    /// 429: not applied; retry later.
    Busy(String, Option<Duration>),
    /// 429 of an eviction: a disruption budget does not allow it now; not applied.
    Disruption(String),
    /// 5xx: a write may have been applied.
    ServerError(String, Option<Duration>),
    /// The connection failed, so nothing was sent.
    Unreachable(String),
    /// The connection broke, or the response did not come in time: a write may have been applied.
    NoAnswer(String),
    /// The call cannot be made: an exec plugin, a certificate or a proxy is wrong.
    Misconfigured(String),
}

impl ApiError {
    /// Its kind in snake case, for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            ApiError::NotFound => "not_found",
            ApiError::Conflict(_) => "conflict",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::Rejected(_) => "rejected",
            ApiError::TestFailed(_) => "test_failed",
            ApiError::Unauthorized(_) => "unauthorized",
            ApiError::Busy(..) => "busy",
            ApiError::Disruption(_) => "disruption",
            ApiError::ServerError(..) => "server_error",
            ApiError::Unreachable(_) => "unreachable",
            ApiError::NoAnswer(_) => "no_answer",
            ApiError::Misconfigured(_) => "misconfigured",
        }
    }

    /// What happened, for people.
    pub(crate) fn message(&self) -> &str {
        match self {
            ApiError::NotFound => "not found",
            ApiError::Conflict(message)
            | ApiError::Forbidden(message)
            | ApiError::Rejected(message)
            | ApiError::TestFailed(message)
            | ApiError::Unauthorized(message)
            | ApiError::Busy(message, _)
            | ApiError::Disruption(message)
            | ApiError::ServerError(message, _)
            | ApiError::Unreachable(message)
            | ApiError::NoAnswer(message)
            | ApiError::Misconfigured(message) => message,
        }
    }

    /// When to try again, if the server named a time.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::Busy(_, wait) | ApiError::ServerError(_, wait) => *wait,
            _ => None,
        }
    }

    /// Whether the failed write may have been applied.
    pub(crate) fn may_be_applied(&self) -> bool {
        matches!(self, ApiError::ServerError(..) | ApiError::NoAnswer(_))
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => of_status(&status),
            kube::Error::Service(error) if is_connect(error.as_ref()) => {
                of_connect(chain(error.as_ref()))
            }
            kube::Error::Service(error) => ApiError::NoAnswer(chain(error.as_ref())),
            kube::Error::Auth(error) => ApiError::Misconfigured(chain(&error)),
            kube::Error::BuildRequest(error) => ApiError::Misconfigured(chain(&error)),
            // All others happen while a response is read.
            error => ApiError::NoAnswer(chain(&error)),
        }
    }
}

fn is_connect(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<ConnectError>()
        || error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
}

/// An untrusted certificate is no transient error: a retry would not help.
fn of_connect(message: String) -> ApiError {
    if message.contains("invalid peer certificate") {
        return ApiError::Misconfigured(message);
    }
    ApiError::Unreachable(message)
}

fn of_status(status: &Status) -> ApiError {
    let message = status.message.clone();
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let retry_after = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
    match status.code {
        // Not the API server's: something between has answered with JSON or text of its own.
        0 | 408 => ApiError::NoAnswer(message),
        404 | 409 if status.reason == "Failed to parse error data" => ApiError::NoAnswer(message),
        401 => ApiError::Unauthorized(message),
        403 if by_the_authorizer(&message) => ApiError::Forbidden(message),
        404 => ApiError::NotFound,
        409 => ApiError::Conflict(message),
        422 if has_no_cause(status) => ApiError::TestFailed(message),
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

/// The authorizer's message is `User "x" cannot patch resource "y"`; admission has other messages.
fn by_the_authorizer(message: &str) -> bool {
    message.contains("\" cannot ") && message.contains(" resource \"")
}

/// The disruption budget that refused and what it needs; only the details of the status have it.
fn disruption_message(status: &Status) -> Option<&str> {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    let budget = causes.find(|cause| cause.reason == "DisruptionBudget");
    budget.map(|cause| cause.message.as_str())
}

/// An error with its causes, outermost first, without repetitions.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
