//! Waits until an effect is complete, cannot complete any more, or the time is up.
//!
//! It reads the target when a watch notices a change, and else rarely; without the permission to `watch` it polls,
//! so that the permission to `get` is enough. Each new stage is reported to the context's observer. It changes nothing.

use std::{fmt, ops::ControlFlow, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    actions::request::DEFAULT_TIMEOUT_SECONDS,
    contract::{
        error::ActionError,
        response::{Rollout, RolloutState},
    },
    executor::{
        context::{Context, stopped},
        details,
    },
    k8s::{
        api::{client::Cluster, watch::Changes},
        completion::Completion,
        rollout::RolloutStatus,
    },
};

/// The time limit of a wait if the request names none.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(DEFAULT_TIMEOUT_SECONDS);

/// Pauses between polls: short at first, since most effects are quick, and longer the longer the wait lasts.
pub(super) const MIN_POLL_INTERVAL: Duration = Duration::from_millis(100);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// From when on, and in relation to the time waited, pauses grow.
const STEADY_POLL_INTERVAL: Duration = Duration::from_secs(1);
const POLLS_PER_WAITED_TIME: u32 = 20;

/// Between reads while a watch runs: after a change, which seldom comes alone, and without one.
const CHANGE_INTERVAL: Duration = Duration::from_millis(300);
const WATCHED_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// How long before the end the last poll starts at the latest, so that its answer arrives in time; and the same in
/// relation to how long the poll before took.
const FINAL_CHECK_TIMEOUT: Duration = Duration::from_millis(200);
const FINAL_CHECK_POLLS: u32 = 2;

/// Time after the end to read what is wrong with the pods; and the same in relation to how long a poll took, which is
/// one call: the calls follow each other, and are repeated.
const MIN_PROBLEMS_TIMEOUT: Duration = Duration::from_millis(800);
const MAX_PROBLEMS_TIMEOUT: Duration = Duration::from_secs(8);
const PROBLEMS_POLLS: u32 = 8;

/// The stage before the first poll.
const NOTHING_SEEN: &str = "no state read yet";

/// Waits for `completion` until `end`. If it does not come, the rollout has the problems of the pods.
pub(crate) async fn until_complete(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> Rollout {
    let mut poll_time = Duration::ZERO;
    let (state, message) = tokio::select! {
        ended = poll(context, cluster, completion, end, &mut poll_time) => ended,
        never = details::report(context, cluster, completion, end) => match never {},
    };
    let problems = match state {
        RolloutState::Complete => Vec::new(),
        _ => problems(cluster, completion, problems_timeout(poll_time)).await,
    };
    Rollout { state, message, problems }
}

/// What the polls have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WaitProgress {
    /// What the last poll showed that had an answer.
    seen: String,
    /// Why the polls since then have shown nothing.
    unseen: Option<String>,
}

impl fmt::Display for WaitProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WaitProgress { seen, unseen } = self;
        match unseen {
            Some(why) => write!(f, "{seen}; since then it could not be read: {why}"),
            None => f.write_str(seen),
        }
    }
}

impl WaitProgress {
    /// What one poll means: the next stage, or how the wait ends. What could not be seen has not failed; the next
    /// poll may show it.
    fn next(
        &self,
        checked: Result<RolloutStatus, ActionError>,
    ) -> ControlFlow<(RolloutState, String), WaitProgress> {
        match checked {
            Ok(RolloutStatus::Complete(message)) => {
                ControlFlow::Break((RolloutState::Complete, message))
            }
            Ok(RolloutStatus::Failed(why)) => ControlFlow::Break((RolloutState::Failed, why)),
            Ok(RolloutStatus::Waiting(seen)) => {
                ControlFlow::Continue(WaitProgress { seen, unseen: None })
            }
            Err(error) => {
                ControlFlow::Continue(WaitProgress { unseen: Some(error.detail), ..self.clone() })
            }
        }
    }
}

/// Polls until it ends. `poll_time` is how long the last poll with an answer took.
async fn poll(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
    poll_time: &mut Duration,
) -> (RolloutState, String) {
    let mut stopping = context.stopping();
    let mut changes = cluster.changes(completion);
    let (began, mut pause) = (Instant::now(), MIN_POLL_INTERVAL);
    let mut progress = WaitProgress { seen: NOTHING_SEEN.to_owned(), unseen: None };
    loop {
        let asked = Instant::now();
        let checked = tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, progress.to_string()),
            checked = timeout_at(end, cluster.completion_status(completion, end)) => checked,
        };
        let checked = match checked {
            Ok(Err(_)) if Instant::now() >= end => None,
            checked => checked.ok(),
        };
        // Without an answer before the end, the last stage is what is known.
        let Some(checked) = checked else { return (RolloutState::TimedOut, progress.to_string()) };
        if checked.is_ok() {
            *poll_time = asked.elapsed();
        }
        let next = match progress.next(checked) {
            ControlFlow::Continue(next) => next,
            ControlFlow::Break(ended) => return ended,
        };
        if next != progress {
            context.observer().progress(&next.to_string());
            progress = next;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (RolloutState::TimedOut, progress.to_string());
        }
        let until_last = left.saturating_sub(final_check_timeout(*poll_time));
        tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, progress.to_string()),
            () = next_poll(&mut changes, pause, left, until_last) => {
                pause = (pause * 3 / 2).min(longest_pause(began.elapsed()));
            }
        }
    }
}

fn final_check_timeout(poll_time: Duration) -> Duration {
    (poll_time * FINAL_CHECK_POLLS).max(FINAL_CHECK_TIMEOUT)
}

fn problems_timeout(poll_time: Duration) -> Duration {
    (poll_time * PROBLEMS_POLLS).clamp(MIN_PROBLEMS_TIMEOUT, MAX_PROBLEMS_TIMEOUT)
}

/// The longest pause after so much time waited: without the permission to watch, many long waits would be many calls.
pub(super) fn longest_pause(waited: Duration) -> Duration {
    (waited / POLLS_PER_WAITED_TIME).clamp(STEADY_POLL_INTERVAL, MAX_POLL_INTERVAL)
}

/// Returns when the target is to be read again: after a change, or after a pause that is long while changes would be
/// noticed. A watch may begin or break meanwhile. The last poll starts after `until_last`, and the wait ends after
/// `left`.
pub(super) async fn next_poll(
    changes: &mut Changes,
    pause: Duration,
    left: Duration,
    until_last: Duration,
) {
    let began = Instant::now();
    loop {
        let pause = if changes.is_live() { WATCHED_POLL_INTERVAL } else { pause };
        let pause = next_pause(pause, left, until_last);
        tokio::select! {
            () = sleep_until(began + pause) => return,
            () = changes.next() => {}
        }
        if changes.is_live() {
            sleep_until(began + next_pause(CHANGE_INTERVAL, left, until_last)).await;
            return;
        }
    }
}

/// The pause before the next poll. The last one leaves time for its answer.
fn next_pause(pause: Duration, left: Duration, until_last: Duration) -> Duration {
    pause.min(until_last.max(MIN_POLL_INTERVAL)).min(left)
}

/// What is wrong with the pods, or why they could not be read.
async fn problems(cluster: &Cluster, completion: &Completion, time: Duration) -> Vec<String> {
    let until = Instant::now() + time;
    match timeout_at(until, cluster.completion_problems(completion, until)).await {
        Ok(Ok(problems)) => problems,
        Ok(Err(error)) => {
            vec![format!("the pods could not be read: {}", error.with_its_hint())]
        }
        Err(_) => vec![format!("the pods could not be read within {:.1} s", time.as_secs_f64())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    #[test]
    fn a_poll_continues_the_wait_or_ends_it() {
        let before = WaitProgress { seen: "1 of 2".to_owned(), unseen: None };
        let status = |status: fn(String) -> RolloutStatus| Ok(status("how".to_owned()));
        let ended = |state| ControlFlow::Break((state, "how".to_owned()));
        let waits = |seen: &str, unseen: Option<&str>| {
            let unseen = unseen.map(str::to_owned);
            ControlFlow::Continue(WaitProgress { seen: seen.to_owned(), unseen })
        };
        for (checked, expected) in [
            (status(RolloutStatus::Waiting), waits("how", None)),
            (status(RolloutStatus::Complete), ended(RolloutState::Complete)),
            (status(RolloutStatus::Failed), ended(RolloutState::Failed)),
        ] {
            assert_eq!(before.next(checked.clone()), expected, "{checked:?}");
        }
        // Whatever the error: the object was not seen.
        for code in Code::ALL {
            let checked = Err(ActionError::new(code, "why"));
            assert_eq!(before.next(checked), waits("1 of 2", Some("why")), "{code}");
        }
    }

    #[test]
    fn a_stage_that_could_not_be_read_again_says_so() {
        let mut progress =
            WaitProgress { seen: "1 of 2".to_owned(), unseen: Some("refused".to_owned()) };
        assert_eq!(progress.to_string(), "1 of 2; since then it could not be read: refused");
        progress.unseen = None;
        assert_eq!(progress.to_string(), "1 of 2");
    }

    #[test]
    fn the_last_poll_leaves_time_for_its_answer() {
        let ms = Duration::from_millis;
        for (pause, left, poll_time, expected) in [
            (100, 5000, 1, 100),
            (1000, 5000, 1, 1000),
            (1000, 900, 1, 700),
            (1000, 250, 1, 100),
            (1000, 50, 1, 50),
            // An API server that is far away.
            (1000, 1500, 400, 700),
            (1000, 700, 400, 100),
        ] {
            let until_last = ms(left).saturating_sub(final_check_timeout(ms(poll_time)));
            let next = next_pause(ms(pause), ms(left), until_last);
            assert_eq!(next, ms(expected), "{pause} {left} {poll_time}");
        }
    }

    #[test]
    fn the_time_to_read_problems_depends_on_how_long_a_poll_takes() {
        let ms = Duration::from_millis;
        for (poll_time, expected) in [(0, 800), (5, 800), (250, 2000), (500, 4000), (9000, 8000)] {
            assert_eq!(problems_timeout(ms(poll_time)), ms(expected), "{poll_time}");
        }
    }

    #[test]
    fn pauses_grow_with_the_time_waited() {
        for (waited, expected) in [(0, 1), (10, 1), (20, 1), (60, 3), (200, 10), (3600, 10)] {
            let pause = longest_pause(Duration::from_secs(waited));
            assert_eq!(pause.as_secs(), expected, "{waited}");
        }
    }
}
