//! When an event that was not delivered is resent, and until when. Makes no calls and reads no clock.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// How often an event is sent at most.
const MAX_ATTEMPTS: usize = 10;

/// The pauses between attempts: the first one, and the longest one. Each is made longer at random, at most twice as
/// long.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(500);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Time from the first failure to the last attempt, whatever the sink asks for.
pub(super) const RETRY_TIMEOUT: Duration = Duration::from_secs(300);

/// The retries of one event.
pub(super) struct Retries {
    pauses: ExponentialBackoff,
    last_at: Option<Instant>,
}

impl Default for Retries {
    fn default() -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(MIN_RETRY_INTERVAL)
            .with_max_delay(MAX_RETRY_INTERVAL)
            .with_max_times(MAX_ATTEMPTS - 1)
            .with_jitter()
            .build();
        Retries { pauses, last_at: None }
    }
}

impl Retries {
    /// When to resend it after an attempt that failed now: after this pause at least, and not after its time is over.
    pub(super) fn next(&mut self, least: Duration, now: Instant) -> Option<Instant> {
        let last_at = *self.last_at.get_or_insert(now + RETRY_TIMEOUT);
        let pause = self.pauses.next()?.max(least).min(RETRY_TIMEOUT);
        (now < last_at).then(|| (now + pause).min(last_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses until the end, each attempt failing at once.
    fn pauses(least: Duration) -> Vec<Duration> {
        let (mut retries, mut now) = (Retries::default(), Instant::now());
        let mut all = Vec::new();
        while let Some(next) = retries.next(least, now) {
            all.push(next - now);
            now = next;
        }
        all
    }

    #[test]
    fn pauses_grow_and_end_within_five_minutes() {
        let all = pauses(Duration::ZERO);
        assert!(
            all.len() < MAX_ATTEMPTS && all[0] >= MIN_RETRY_INTERVAL && all[3] > all[0],
            "{all:?}"
        );
        assert!(all.iter().sum::<Duration>() <= RETRY_TIMEOUT, "{all:?}");
    }

    #[test]
    fn a_pause_that_the_sink_asks_for_is_kept_and_does_not_lengthen_the_whole() {
        let seconds = Duration::from_secs;
        assert_eq!(pauses(seconds(100)), [seconds(100); 3]);
        assert_eq!(pauses(seconds(200)), [seconds(200), seconds(100)]);
        assert_eq!(pauses(seconds(86_400)), [RETRY_TIMEOUT]);
        assert_eq!(pauses(Duration::MAX), [RETRY_TIMEOUT]);
    }
}
