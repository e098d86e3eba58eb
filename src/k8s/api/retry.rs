//! Whether a failed call is retried, and after which pause.
//!
//! kube's own retry repeats any verb on 429, 503 and 504, up to fifteen times. A repeated write can be a
//! second effect, so that is off. Here reads are retried after every transient error. An effect is not: before
//! it is resent, kill switch and policy have to be checked again. The caller's deadline limits all attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::k8s::api::error::ApiError;

/// When a call may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A call that is harmless when repeated: after every transient error.
    Idempotent,
    /// An effect: never, since the caller checks the limits before it resends it.
    Never,
}

/// The pauses of one call: from 0.1 s to 2 s, doubling, with jitter.
pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

/// The pause before the retry; none if the call must not be retried.
pub(crate) fn pause(
    error: &ApiError,
    retry: Retry,
    backoff: &mut impl Iterator<Item = Duration>,
) -> Option<Duration> {
    let retry_after = match (retry, error) {
        (Retry::Never, _) => return None,
        (_, ApiError::Busy(_, retry_after) | ApiError::ServerError(_, retry_after)) => *retry_after,
        (_, ApiError::Unreachable(_) | ApiError::Proxy(_) | ApiError::NoAnswer(_)) => None,
        _ => return None,
    };
    let own = backoff.next()?;
    Some(retry_after.map_or(own, |retry_after| retry_after.max(own)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_retry(error: &ApiError, retry: Retry) -> bool {
        pause(error, retry, &mut backoff()).is_some()
    }

    #[test]
    fn a_transient_error_is_retried_unless_the_call_is_an_effect() {
        for error in [
            ApiError::ServerError("timeout".into(), Some(Duration::from_secs(1))),
            ApiError::NoAnswer("connection reset".into()),
            ApiError::Busy("full".into(), None),
            ApiError::Unreachable("refused".into()),
        ] {
            assert!(!with_retry(&error, Retry::Never), "{error:?}");
            assert!(with_retry(&error, Retry::Idempotent), "{error:?}");
        }
    }

    #[test]
    fn a_refused_call_is_never_retried() {
        for error in [
            ApiError::NotFound,
            ApiError::Conflict(String::new()),
            ApiError::Forbidden(String::new()),
            ApiError::Rejected(String::new()),
            ApiError::Unauthorized(String::new()),
            ApiError::Misconfigured(String::new()),
        ] {
            assert!(!with_retry(&error, Retry::Idempotent), "{error:?}");
        }
    }

    #[test]
    fn a_pause_is_at_least_the_servers_retry_after() {
        let error = ApiError::Busy("full".into(), Some(Duration::from_secs(9)));
        assert_eq!(pause(&error, Retry::Idempotent, &mut backoff()), Some(Duration::from_secs(9)));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let all: Vec<_> = backoff().take(12).collect();
        assert!(all[0] <= Duration::from_millis(200));
        assert!(all.iter().all(|pause| *pause <= Duration::from_secs(4)));
    }
}
