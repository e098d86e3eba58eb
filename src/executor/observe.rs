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
        observation::{ObservedPods, PodsSnapshot},
    },
};

/// Time for one read. The last one begins when the time of the observation is over.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// The pause before a rollout that waits again is read a second time.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

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
    let run = ObservationRun { context, cluster, completion, pods, began, end: began + time };
    let (state, message, problems) = run.until_over().await;
    Observation { state, seconds: began.elapsed().min(time).as_secs(), message, problems }
}

/// What is observed, and until when.
struct ObservationRun<'a> {
    context: &'a Context,
    cluster: &'a Cluster,
    completion: &'a Completion,
    pods: ObservedPods<'a>,
    began: Instant,
    end: Instant,
}

/// How an observation ended.
type Ended = (ObservationState, String, Vec<String>);

impl ObservationRun<'_> {
    async fn until_over(&self) -> Ended {
        let mut stopping = self.context.stopping();
        let mut changes = self.cluster.changes(self.completion);
        let (mut first, mut selector) = (None::<PodsSnapshot>, None);
        let (mut pause, mut waits_again_since_last) = (MIN_POLL_INTERVAL, false);
        loop {
            let observed = tokio::select! {
                () = stopped(&mut stopping) => return self.interrupted(),
                observed = self.observe_once(&mut selector) => observed,
            };
            let is_over = Instant::now() >= self.end;
            match (observed, &first) {
                // What could not be read has not failed; the next read may show it.
                (Err(error), _) if is_over => return unknown(&error),
                (Err(_), _) => {}
                (Ok(snapshot), None) => {
                    let problems = snapshot.problems_since(&PodsSnapshot::default());
                    if !problems.is_empty() {
                        return self.unhealthy(problems);
                    }
                    // Before the first read nothing was observed, so this one cannot be the last.
                    if is_over {
                        return unknown_from_the_start();
                    }
                    first = Some(snapshot);
                }
                (Ok(snapshot), Some(first)) => {
                    let mut problems = snapshot.problems_since(first);
                    let waits_again = snapshot.regressed_since(first);
                    if let Some(what) =
                        waits_again.filter(|_| waits_again_since_last || !problems.is_empty())
                    {
                        problems.insert(0, format!("the rollout regressed: {what}"));
                    }
                    if !problems.is_empty() {
                        return self.unhealthy(problems);
                    }
                    waits_again_since_last = waits_again.is_some();
                    if is_over && !waits_again_since_last {
                        return self.healthy(&snapshot);
                    }
                }
            }
            let left = self.end.saturating_duration_since(Instant::now());
            let next = async {
                match waits_again_since_last {
                    true => sleep(RECHECK_INTERVAL).await,
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

    async fn observe_once(
        &self,
        selector: &mut Option<String>,
    ) -> Result<PodsSnapshot, ActionError> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let read = self.cluster.read_observed_pods(self.completion, &self.pods, selector, deadline);
        match timeout_at(deadline, read).await {
            Ok(observed) => observed,
            Err(_) => {
                let detail = format!("no answer within {} s", READ_TIMEOUT.as_secs());
                Err(ActionError::new(Code::ClusterUnreachable, detail))
            }
        }
    }

    fn healthy(&self, last: &PodsSnapshot) -> Ended {
        let seconds = self.end.duration_since(self.began).as_secs();
        let pods = match last.ready() {
            1 => "1 pod is ready".to_owned(),
            number => format!("{number} pods are ready"),
        };
        let message =
            format!("{pods} after {seconds} s, and none of them restarted or disappeared");
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
