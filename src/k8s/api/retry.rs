//! When a failed call is made again, and how long after.
//!
//! kube's own retry repeats any verb on 429, 503 and 504, fifteen times; a repeated write can be a
//! second effect, so that is off. Here reads are repeated on every passing fault, writes only when
//! the fault proves that the first was not carried out. The caller's deadline bounds it all.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::k8s::api::error::Fault;

/// Whether a call may be carried out twice without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A read: ask as often as needed.
    Freely,
    /// A write: only when it provably was not carried out.
    IfNotDone,
}

/// The pauses of one call: from a tenth of a second to two, doubling, with jitter.
#[must_use]
pub fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

/// The pause before the call is made again, or none if it must not or need not be.
pub fn pause(
    fault: &Fault,
    repeat: Repeat,
    pauses: &mut impl Iterator<Item = Duration>,
) -> Option<Duration> {
    let asked = match fault {
        Fault::Busy(_, asked) => *asked,
        Fault::Unreachable(_) => None,
        Fault::ServerError(_, asked) if repeat == Repeat::Freely => *asked,
        Fault::NoAnswer(_) if repeat == Repeat::Freely => None,
        _ => return None,
    };
    let ours = pauses.next()?;
    Some(asked.map_or(ours, |asked| asked.max(ours)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(fault: &Fault, repeat: Repeat) -> bool {
        pause(fault, repeat, &mut pauses()).is_some()
    }

    #[test]
    fn a_write_in_doubt_is_never_repeated() {
        let doubtful = [
            Fault::ServerError("timeout".into(), Some(Duration::from_secs(1))),
            Fault::NoAnswer("connection reset".into()),
        ];
        for fault in doubtful {
            assert!(fault.may_have_been_done());
            assert!(!repeated(&fault, Repeat::IfNotDone), "{fault:?}");
            assert!(repeated(&fault, Repeat::Freely), "{fault:?}");
        }
    }

    #[test]
    fn what_was_not_carried_out_is_repeated() {
        for fault in [Fault::Busy("full".into(), None), Fault::Unreachable("refused".into())] {
            assert!(repeated(&fault, Repeat::IfNotDone), "{fault:?}");
        }
    }

    #[test]
    fn a_refusal_is_final() {
        for fault in [
            Fault::NotFound,
            Fault::Conflict(String::new()),
            Fault::Forbidden(String::new()),
            Fault::Rejected(String::new()),
            Fault::Unauthorized(String::new()),
            Fault::Misconfigured(String::new()),
        ] {
            assert!(!repeated(&fault, Repeat::Freely), "{fault:?}");
        }
    }

    #[test]
    fn waits_at_least_as_long_as_the_server_asks() {
        let fault = Fault::Busy("full".into(), Some(Duration::from_secs(9)));
        assert_eq!(pause(&fault, Repeat::Freely, &mut pauses()), Some(Duration::from_secs(9)));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let all: Vec<_> = pauses().take(12).collect();
        assert!(all[0] <= Duration::from_millis(200));
        assert!(all.iter().all(|pause| *pause <= Duration::from_secs(4)));
    }
}
