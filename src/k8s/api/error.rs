//! What a failed call to the API server means.
//!
//! One question matters more than the rest: can the call have been carried out all the same? A
//! connection that was never made, or an answer of 429, says no. A lost answer or a 5xx says maybe.

use std::time::Duration;

use hyper_util::client::legacy;
use kube::core::Status;

/// Why a call gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// 404: there is no such object.
    NotFound,
    /// 409: the object is another one, or has changed since it was read.
    Conflict(String),
    /// 403 by the authorizer: this identity may not make this call.
    Forbidden(String),
    /// 400, 403 by admission, 422 and the like: the cluster refuses this change.
    Rejected(String),
    /// 401: the cluster does not know this identity.
    Unauthorized(String),
    /// 429: not carried out; ask again later.
    Busy(String, Option<Duration>),
    /// 429 of an eviction: a disruption budget has no room for it now; not carried out.
    Disruption(String),
    /// 5xx: a write may have been carried out.
    ServerError(String, Option<Duration>),
    /// No connection came about, so nothing was sent.
    Unreachable(String),
    /// The connection broke, or nothing came back in time: a write may have been carried out.
    NoAnswer(String),
    /// Our own side cannot make the call: an exec plugin, a certificate, a proxy.
    Misconfigured(String),
}

impl ApiError {
    /// Its kind, in snake case.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ApiError::NotFound => "not_found",
            ApiError::Conflict(_) => "conflict",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::Rejected(_) => "rejected",
            ApiError::Unauthorized(_) => "unauthorized",
            ApiError::Busy(..) => "busy",
            ApiError::Disruption(_) => "disruption",
            ApiError::ServerError(..) => "server_error",
            ApiError::Unreachable(_) => "unreachable",
            ApiError::NoAnswer(_) => "no_answer",
            ApiError::Misconfigured(_) => "misconfigured",
        }
    }

    /// Whether a write that met this fault may nevertheless have been carried out.
    #[must_use]
    pub fn may_be_applied(&self) -> bool {
        matches!(self, ApiError::ServerError(..) | ApiError::NoAnswer(_))
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => of_status(&status),
            kube::Error::Service(error) => match error.downcast_ref::<legacy::Error>() {
                Some(error) if error.is_connect() => of_connect(chain(error)),
                Some(error) => ApiError::NoAnswer(chain(error)),
                None => ApiError::NoAnswer(chain(error.as_ref())),
            },
            kube::Error::Auth(error) => ApiError::Misconfigured(chain(&error)),
            kube::Error::BuildRequest(error) => ApiError::Misconfigured(chain(&error)),
            // What is left happens while an answer is read.
            error => ApiError::NoAnswer(chain(&error)),
        }
    }
}

/// A server whose certificate we do not trust will not become another one by waiting.
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
        401 => ApiError::Unauthorized(message),
        403 if by_the_authorizer(&message) => ApiError::Forbidden(message),
        404 => ApiError::NotFound,
        409 => ApiError::Conflict(message),
        429 => match disruption_message(status) {
            Some(words) => ApiError::Disruption(format!("{message} {words}")),
            None => ApiError::Busy(message, retry_after),
        },
        // Worded as a server's error, and for good (`registry/core/pod/storage/eviction.go`).
        500 if message.contains("more than one PodDisruptionBudget") => ApiError::Rejected(message),
        500.. => ApiError::ServerError(message, retry_after),
        _ => ApiError::Rejected(message),
    }
}

/// The authorizer's 403 reads `User "x" cannot patch resource "y"`; admission words its own.
fn by_the_authorizer(message: &str) -> bool {
    message.contains("\" cannot ") && message.contains(" resource \"")
}

/// Which disruption budget it was and what it needs, if it was one. The message alone does not say.
fn disruption_message(status: &Status) -> Option<&str> {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    let budget = causes.find(|cause| cause.reason == "DisruptionBudget");
    budget.map(|cause| cause.message.as_str())
}

/// An error with its causes, outermost first, without saying anything twice.
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
    fn tells_the_authorizer_from_admission() {
        let rbac = "{code: 403, message: 'deployments.apps \"web\" is forbidden: User \"u\" cannot \
                    patch resource \"deployments\" in API group \"apps\" in the namespace \"n\"'}";
        assert!(matches!(status(rbac), ApiError::Forbidden(_)));
        let quota = "{code: 403, message: 'pods \"a\" is forbidden: exceeded quota: q'}";
        assert!(matches!(status(quota), ApiError::Rejected(_)));
    }

    #[test]
    fn only_5xx_leaves_a_write_in_doubt() {
        for code in [400, 401, 403, 404, 409, 422, 429] {
            assert!(!status(&format!("{{code: {code}}}")).may_be_applied(), "{code}");
        }
        for code in [500, 502, 503, 504] {
            assert!(status(&format!("{{code: {code}}}")).may_be_applied(), "{code}");
        }
    }

    #[test]
    fn keeps_the_servers_word_on_when_to_come_back() {
        let busy = status("{code: 429, message: slow down, details: {retryAfterSeconds: 7}}");
        assert_eq!(busy, ApiError::Busy("slow down".into(), Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_disruption_budget_is_not_a_busy_server() {
        let blocked = status(
            "{code: 429, message: Cannot evict pod., details: {causes: [{reason: DisruptionBudget, \
             message: The disruption budget web needs 2 healthy pods}]}}",
        );
        let words = "Cannot evict pod. The disruption budget web needs 2 healthy pods";
        assert_eq!(blocked, ApiError::Disruption(words.into()));
        let two = status(
            "{code: 500, message: 'This pod has more than one PodDisruptionBudget, which the \
             eviction subresource does not support.'}",
        );
        assert!(matches!(two, ApiError::Rejected(_)));
    }

    #[test]
    fn an_untrusted_certificate_is_not_waited_for() {
        let fault = of_connect("client error: invalid peer certificate: UnknownIssuer".into());
        assert!(matches!(fault, ApiError::Misconfigured(_)));
    }
}
