//! Observes what an effect left behind for a time after it is complete: it stays healthy to the end, or the first
//! problem ends the observation. It reads as a wait does, and changes nothing.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    contract::{
        error::{ActionError, Code},
        response::{Observation, ObservationState, Target},
    },
    executor::{
        context::{Context, stopped},
        wait::{MIN_POLL_INTERVAL, longest_pause, next_poll},
    },
    k8s::{
        api::client::Cluster,
        completion::Completion,
        observation::{Look, ObservedPods},
    },
};

/// Time for one read. The last one begins when the time of the observation is over.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);

/// The pause before a rollout that waits again is read a second time.
const SECOND_LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The observation of an effect that leaves nothing behind that could be observed.
pub(crate) fn not_applicable(target: &Target) -> Observation {
    Observation {
        state: ObservationState::NotApplicable,
        seconds: 0,
        message: format!("this action leaves nothing of {target} that could be observed"),
        problems: Vec::new(),
    }
}

/// Observes what the effect left behind for this time, or until it is not healthy.
pub(crate) async fn observe(
    context: &Context,
    cluster: &Cluster,
    completion: &Completion,
    target: &Target,
    time: Duration,
) -> Observation {
    let Some(pods) = ObservedPods::of(completion) else { return not_applicable(target) };
    context.observer().progress(&format!("complete; observing it for {} s", time.as_secs()));
    let began = Instant::now();
    let watched = Watched { context, cluster, completion, pods, began, end: began + time };
    let (state, message, problems) = watched.until_over().await;
    Observation { state, seconds: began.elapsed().min(time).as_secs(), message, problems }
}

/// What is observed, and until when.
struct Watched<'a> {
    context: &'a Context,
    cluster: &'a Cluster,
    completion: &'a Completion,
    pods: ObservedPods<'a>,
    began: Instant,
    end: Instant,
}

/// How an observation ended.
type Ended = (ObservationState, String, Vec<String>);

impl Watched<'_> {
    async fn until_over(&self) -> Ended {
        let mut stopping = self.context.stopping();
        let mut changes = self.cluster.changes(self.completion);
        let (mut first, mut selector) = (None::<Look>, None);
        let (mut pause, mut fell_back) = (MIN_POLL_INTERVAL, false);
        loop {
            let looked = tokio::select! {
                () = stopped(&mut stopping) => return self.interrupted(),
                looked = self.look(&mut selector) => looked,
            };
            let is_over = Instant::now() >= self.end;
            match (looked, &first) {
                // What could not be read has not failed; the next read may show it.
                (Err(error), _) if is_over => return unknown(&error),
                (Err(_), _) => {}
                (Ok(look), None) => {
                    let problems = look.problems_since(&Look::default());
                    if !problems.is_empty() {
                        return self.unhealthy(problems);
                    }
                    // Before the first read nothing was observed, so this one cannot be the last.
                    if is_over {
                        return unknown_from_the_start();
                    }
                    first = Some(look);
                }
                (Ok(look), Some(first)) => {
                    let mut problems = look.problems_since(first);
                    let waits_again = look.fell_back_since(first);
                    if let Some(what) = waits_again.filter(|_| fell_back || !problems.is_empty()) {
                        problems.insert(0, format!("the rollout regressed: {what}"));
                    }
                    if !problems.is_empty() {
                        return self.unhealthy(problems);
                    }
                    fell_back = waits_again.is_some();
                    if is_over && !fell_back {
                        return self.healthy(&look);
                    }
                }
            }
            let left = self.end.saturating_duration_since(Instant::now());
            let next = async {
                match fell_back {
                    true => sleep(SECOND_LOOK_PAUSE).await,
                    // The last read begins at the end, and not before it.
                    false => next_poll(&mut changes, pause, left, left).await,
                }
            };
            tokio::select! {
                () = stopped(&mut stopping) => return self.interrupted(),
                () = next => pause = (pause * 3 / 2).min(longest_pause(self.began.elapsed())),
            }
        }
    }

    async fn look(&self, selector: &mut Option<String>) -> Result<Look, ActionError> {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let look = self.cluster.look_at(self.completion, &self.pods, selector, deadline);
        match timeout_at(deadline, look).await {
            Ok(looked) => looked,
            Err(_) => {
                let detail = format!("no answer within {} s", LOOK_TIMEOUT.as_secs());
                Err(ActionError::new(Code::ClusterUnreachable, detail))
            }
        }
    }

    fn healthy(&self, last: &Look) -> Ended {
        let seconds = self.end.duration_since(self.began).as_secs();
        let pods = match last.ready() {
            1 => "1 pod is ready".to_owned(),
            number => format!("{number} pods are ready"),
        };
        let message = format!("{pods} after {seconds} s, and none of them restarted or is gone");
        (ObservationState::Healthy, message, Vec::new())
    }

    fn unhealthy(&self, problems: Vec<String>) -> Ended {
        let after = self.began.elapsed().as_secs();
        let message = format!("it did not stay as it was, {after} s after it was complete");
        (ObservationState::Unhealthy, message, problems)
    }

    fn interrupted(&self) -> Ended {
        let after = self.began.elapsed().as_secs();
        let message = format!("it was healthy for {after} s as far as it was observed");
        (ObservationState::Interrupted, message, Vec::new())
    }
}

fn unknown(error: &ActionError) -> Ended {
    let message = format!("it could not be read at the end: {}", error.with_its_hint());
    (ObservationState::Unknown, message, Vec::new())
}

fn unknown_from_the_start() -> Ended {
    let message = "it could not be read before the end".to_owned();
    (ObservationState::Unknown, message, Vec::new())
}
