//! Waits until an effect is complete, cannot complete any more, or the time is up.
//!
//! It reads the target when a watch notices a change, and else rarely; without the permission to `watch` it polls,
//! so that the permission to `get` is enough. Each new stage is reported to the context's observer. It changes nothing.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    contract::{
        error::ActionError,
        response::{Rollout, RolloutState},
    },
    executor::context::{Context, stopped},
    k8s::{
        api::{client::Cluster, watch::Changes},
        completion::Completion,
        rollout::RolloutStatus,
    },
};

/// The time limit of a wait if the request names none.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(300);

/// Pauses between polls: short at first, since most effects are quick, and longer the longer the wait lasts.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(100);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// From when on, and in relation to the time waited, pauses grow.
const STEADY_POLL_INTERVAL: Duration = Duration::from_secs(1);
const POLLS_PER_WAITED_TIME: u32 = 20;

/// Between reads while a watch runs: after a change, which seldom comes alone, and without one.
const CHANGE_INTERVAL: Duration = Duration::from_millis(300);
const WATCHED_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// How long before the end the last poll starts, so that its answer arrives in time.
const FINAL_CHECK_TIMEOUT: Duration = Duration::from_millis(200);

/// Time after the end to read what is wrong with the pods.
const PROBLEMS_TIMEOUT: Duration = Duration::from_millis(800);

/// The stage before the first poll.
const NOTHING_SEEN: &str = "no state read yet";

/// Waits for `completion` until `end`. If it does not come, the rollout has the problems of the pods.
pub(crate) async fn until_complete(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> Rollout {
    let (state, message) = poll(context, cluster, completion, end).await;
    let problems = match state {
        RolloutState::Complete => Vec::new(),
        _ => problems(cluster, completion).await,
    };
    Rollout { state, message, problems }
}

async fn poll(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> (RolloutState, String) {
    let mut stopping = context.stopping();
    let mut changes = cluster.changes(completion);
    let (began, mut pause) = (Instant::now(), MIN_POLL_INTERVAL);
    let mut stage = NOTHING_SEEN.to_owned();
    loop {
        let checked = tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, stage),
            checked = timeout_at(end, cluster.completion_status(completion, end)) => checked.ok(),
        };
        let next = match next_stage(checked, Instant::now() >= end) {
            ControlFlow::Continue(next) => next,
            ControlFlow::Break((state, message)) => return (state, message.unwrap_or(stage)),
        };
        if next != stage {
            context.observer().progress(&next);
            stage = next;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (RolloutState::TimedOut, stage);
        }
        tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, stage),
            () = next_poll(&mut changes, pause, left) => {
                pause = (pause * 3 / 2).min(longest_pause(began.elapsed()));
            }
        }
    }
}

/// The longest pause after so much time waited: without the permission to watch, many long waits would be many calls.
fn longest_pause(waited: Duration) -> Duration {
    (waited / POLLS_PER_WAITED_TIME).clamp(STEADY_POLL_INTERVAL, MAX_POLL_INTERVAL)
}

/// Returns when the target is to be read again: after a change, or after a pause that is long while changes would be
/// noticed. A watch may begin or break meanwhile.
async fn next_poll(changes: &mut Changes, pause: Duration, left: Duration) {
    let began = Instant::now();
    loop {
        let pause = if changes.is_live() { WATCHED_POLL_INTERVAL } else { pause };
        let pause = next_pause(pause, left);
        tokio::select! {
            () = sleep_until(began + pause) => return,
            () = changes.next() => {}
        }
        if changes.is_live() {
            sleep_until(began + next_pause(CHANGE_INTERVAL, left)).await;
            return;
        }
    }
}

/// What one poll means: the stage to wait in, or how the wait ends. `None` for a poll that had no answer
/// before the end, and for an end without a message of its own: then the last stage is what is known.
fn next_stage(
    checked: Option<Result<RolloutStatus, ActionError>>,
    is_over: bool,
) -> ControlFlow<(RolloutState, Option<String>), String> {
    match checked {
        Some(Ok(RolloutStatus::Complete(message))) => {
            ControlFlow::Break((RolloutState::Complete, Some(message)))
        }
        Some(Ok(RolloutStatus::Failed(why))) => {
            ControlFlow::Break((RolloutState::Failed, Some(why)))
        }
        Some(Ok(RolloutStatus::Waiting(stage))) => ControlFlow::Continue(stage),
        // The cluster may be back before the end.
        Some(Err(error)) if error.code.retryable() && !is_over => {
            ControlFlow::Continue(error.detail)
        }
        Some(Err(error)) if !error.code.retryable() => {
            ControlFlow::Break((RolloutState::Failed, Some(error.detail)))
        }
        Some(Err(_)) | None => ControlFlow::Break((RolloutState::TimedOut, None)),
    }
}

/// The pause before the next poll. The last one leaves time for its answer.
fn next_pause(pause: Duration, left: Duration) -> Duration {
    pause.min(left.saturating_sub(FINAL_CHECK_TIMEOUT).max(MIN_POLL_INTERVAL)).min(left)
}

/// What is wrong with the pods, or why they could not be read.
async fn problems(cluster: &Cluster, completion: &Completion) -> Vec<String> {
    let until = Instant::now() + PROBLEMS_TIMEOUT;
    match timeout_at(until, cluster.completion_problems(completion, until)).await {
        Ok(Ok(problems)) => problems,
        Ok(Err(error)) => {
            vec![format!("the pods could not be read: {}", error.with_its_hint())]
        }
        Err(_) => vec!["the pods could not be read in time".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::error::Code;

    #[test]
    fn a_poll_continues_the_wait_or_ends_it() {
        let error = |code| Some(Err(ActionError::new(code, "why")));
        let status = |status: fn(String) -> RolloutStatus| Some(Ok(status("how".to_owned())));
        let ended =
            |state, message: Option<&str>| ControlFlow::Break((state, message.map(str::to_owned)));
        let waits = |stage: &str| ControlFlow::Continue(stage.to_owned());
        for (checked, is_over, expected) in [
            (status(RolloutStatus::Waiting), false, waits("how")),
            (status(RolloutStatus::Waiting), true, waits("how")),
            (status(RolloutStatus::Complete), true, ended(RolloutState::Complete, Some("how"))),
            (status(RolloutStatus::Failed), false, ended(RolloutState::Failed, Some("how"))),
            (error(Code::ClusterUnavailable), false, waits("why")),
            (error(Code::ClusterUnavailable), true, ended(RolloutState::TimedOut, None)),
            (error(Code::Forbidden), false, ended(RolloutState::Failed, Some("why"))),
            (error(Code::Forbidden), true, ended(RolloutState::Failed, Some("why"))),
            (None, true, ended(RolloutState::TimedOut, None)),
        ] {
            assert_eq!(next_stage(checked.clone(), is_over), expected, "{checked:?}");
        }
    }

    #[test]
    fn the_last_poll_leaves_time_for_its_answer() {
        let ms = Duration::from_millis;
        for (pause, left, expected) in [
            (100, 5000, 100),
            (1000, 5000, 1000),
            (1000, 900, 700),
            (1000, 250, 100),
            (1000, 50, 50),
        ] {
            assert_eq!(next_pause(ms(pause), ms(left)), ms(expected), "{pause} {left}");
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
