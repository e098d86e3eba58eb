//! Stays until an effect is complete, cannot be any more, or time is up.
//!
//! It looks at the target again and again instead of watching it, so that the right to `get` is
//! enough. Each new stage is told to whoever listens.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    contract::response::{RolledBack, Rollout, RolloutState},
    executor::context::{Context, stopped},
    k8s::{api::client::Cluster, completion::Completion, rollout::RolloutStatus},
};

/// Longest wait for an effect when the request names none.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(300);

/// How often the target is looked at: soon at first, since most effects are quick.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(100);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long before the end the last look comes.
const FINAL_CHECK_TIMEOUT: Duration = Duration::from_millis(200);

/// Time kept past the end to ask the pods what is wrong.
const RECOVERY_TIMEOUT: Duration = Duration::from_millis(800);

/// Waits for `completion` until `end`. That it did not come is told in the rollout's state, with what
/// the pods say.
pub(crate) async fn until_complete(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> Rollout {
    let (state, message) = watch(context, cluster, completion, end).await;
    let problems = match state {
        RolloutState::Complete => Vec::new(),
        _ => problems(cluster, completion).await,
    };
    Rollout { state, message, problems }
}

async fn watch(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    end: Instant,
) -> (RolloutState, String) {
    let mut stopping = context.stopping();
    let mut pause = MIN_POLL_INTERVAL;
    let mut stage = "nothing was seen yet".to_owned();
    loop {
        let next = tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, stage),
            next = timeout_at(end, cluster.completion_status(completion, end)) => next,
        };
        let next = match next {
            Ok(Ok(RolloutStatus::Complete(message))) => return (RolloutState::Complete, message),
            Ok(Ok(RolloutStatus::Failed(why))) => return (RolloutState::Failed, why),
            Ok(Ok(RolloutStatus::Waiting(what))) => what,
            // The last look came too late to be answered: what was seen before is what is known.
            Ok(Err(error)) if error.code.retryable() && Instant::now() >= end => {
                return (RolloutState::TimedOut, stage);
            }
            // The cluster may come back before the end does.
            Ok(Err(error)) if error.code.retryable() => error.detail,
            Ok(Err(error)) => return (RolloutState::Failed, error.detail),
            Err(_) => return (RolloutState::TimedOut, stage),
        };
        if next != stage {
            context.progress(&next);
            stage = next;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (RolloutState::TimedOut, stage);
        }
        // The last look comes while there is time for an answer to it.
        let next_look =
            pause.min(left.saturating_sub(FINAL_CHECK_TIMEOUT).max(MIN_POLL_INTERVAL)).min(left);
        tokio::select! {
            () = stopped(&mut stopping) => return (RolloutState::Interrupted, stage),
            () = sleep(next_look) => pause = (pause * 3 / 2).min(MAX_POLL_INTERVAL),
        }
    }
}

/// What the pods say, or why they could not be asked.
async fn problems(cluster: &Cluster, completion: &Completion) -> Vec<String> {
    let until = Instant::now() + RECOVERY_TIMEOUT;
    match timeout_at(until, cluster.completion_problems(completion, until)).await {
        Ok(Ok(problems)) => problems,
        Ok(Err(error)) => {
            vec![format!("the pods could not be asked: {}", error.with_its_hint())]
        }
        Err(_) => vec!["the pods could not be asked in time".to_owned()],
    }
}

impl fmt::Display for RolledBack {
    /// The way back as the last sentences of a result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rolled back to revision {}. {}", self.revision, self.rollout)
    }
}

impl fmt::Display for Rollout {
    /// The rollout as the second sentence of a result.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lead = match self.state {
            RolloutState::Complete => "Complete",
            RolloutState::Failed => "Failed",
            RolloutState::TimedOut => "Not complete in the time allowed",
            RolloutState::Interrupted => "Not complete when told to stop",
        };
        write!(f, "{lead}: {}", self.message)?;
        match self.problems.first() {
            Some(problem) => write!(f, " ({problem})."),
            None => f.write_str("."),
        }
    }
}
