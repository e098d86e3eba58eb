//! When a failed call is made again, and how long after.
//!
//! kube's own retry repeats any verb on 429, 503 and 504, fifteen times; a repeated write can be a
//! second effect, so that is off. Here reads are repeated on every passing fault, writes only when
//! the fault proves that the first was not carried out. The caller's deadline bounds it all.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::k8s::api::error::ApiError;

/// Whether a call may be carried out twice without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// A read: ask as often as needed.
    Idempotent,
    /// A write: only when it provably was not carried out.
    IfNotSent,
}

/// The pauses of one call: from a tenth of a second to two, doubling, with jitter.
#[must_use]
pub fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

/// The pause before the call is made again, or none if it must not or need not be.
pub fn pause(
    fault: &ApiError,
    repeat: Retry,
    pauses: &mut impl Iterator<Item = Duration>,
) -> Option<Duration> {
    let asked = match fault {
        ApiError::Busy(_, asked) => *asked,
        ApiError::Unreachable(_) => None,
        ApiError::ServerError(_, asked) if repeat == Retry::Idempotent => *asked,
        ApiError::NoAnswer(_) if repeat == Retry::Idempotent => None,
        _ => return None,
    };
    let ours = pauses.next()?;
    Some(asked.map_or(ours, |asked| asked.max(ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_retry(fault: &ApiError, repeat: Retry) -> bool {
        pause(fault, repeat, &mut backoff()).is_some()
    }

    #[test]
    fn a_write_in_doubt_is_never_repeated() {
        let doubtful = [
            ApiError::ServerError("timeout".into(), Some(Duration::from_secs(1))),
            ApiError::NoAnswer("connection reset".into()),
        ];
        for fault in doubtful {
            assert!(fault.may_be_applied());
            assert!(!with_retry(&fault, Retry::IfNotSent), "{fault:?}");
            assert!(with_retry(&fault, Retry::Idempotent), "{fault:?}");
        }
    }

    #[test]
    fn what_was_not_carried_out_is_repeated() {
        for fault in [ApiError::Busy("full".into(), None), ApiError::Unreachable("refused".into())]
        {
            assert!(with_retry(&fault, Retry::IfNotSent), "{fault:?}");
        }
    }

    #[test]
    fn a_refusal_is_final() {
        for fault in [
            ApiError::NotFound,
            ApiError::Conflict(String::new()),
            ApiError::Forbidden(String::new()),
            ApiError::Rejected(String::new()),
            ApiError::Unauthorized(String::new()),
            ApiError::Misconfigured(String::new()),
        ] {
            assert!(!with_retry(&fault, Retry::Idempotent), "{fault:?}");
        }
    }

    #[test]
    fn waits_at_least_as_long_as_the_server_asks() {
        let fault = ApiError::Busy("full".into(), Some(Duration::from_secs(9)));
        assert_eq!(pause(&fault, Retry::Idempotent, &mut backoff()), Some(Duration::from_secs(9)));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let all: Vec<_> = backoff().take(12).collect();
        assert!(all[0] <= Duration::from_millis(200));
        assert!(all.iter().all(|pause| *pause <= Duration::from_secs(4)));
    }
}
