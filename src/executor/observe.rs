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
    let run = ObservationRun { context, cluster, completion, pods, began: Instant::now(), time };
    let (state, message, problems) = run.until_over().await;
    Observation { state, seconds: run.began.elapsed().min(time).as_secs(), message, problems }
}

/// What is observed, since when and for how long.
struct ObservationRun<'a> {
    context: &'a Context,
    cluster: &'a Cluster,
    completion: &'a Completion,
    pods: ObservedPods<'a>,
    began: Instant,
    time: Duration,
}

impl ObservationRun<'_> {
    async fn until_over(&self) -> Ended {
        let mut stopping = self.context.stopping();
        let mut changes = self.cluster.changes(self.completion);
        let (mut reads, mut selector) = (Reads::default(), None);
        let mut pause = MIN_POLL_INTERVAL;
        loop {
            let read = tokio::select! {
                () = stopped(&mut stopping) => return interrupted(self.began.elapsed()),
                read = self.read_once(&mut selector) => read,
            };
            if let Some(ended) = reads.judge(read, self.began.elapsed(), self.time) {
                return ended;
            }
            let left = self.time.saturating_sub(self.began.elapsed());
            let next = async {
                match reads.waits_again {
                    true => sleep(RECHECK_INTERVAL).await,
                    // The last read begins at the end, and not before it.
                    false => next_poll(&mut changes, pause, left, left).await,
                }
            };
            tokio::select! {
                () = stopped(&mut stopping) => return interrupted(self.began.elapsed()),
                () = next => pause = (pause * 3 / 2).min(longest_pause(self.began.elapsed())),
            }
        }
    }

    async fn read_once(&self, selector: &mut Option<String>) -> Result<PodsSnapshot, ActionError> {
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
}

/// How an observation ended: its state, a sentence and what is wrong.
type Ended = (ObservationState, String, Vec<String>);

/// What the reads of an observation have shown so far.
#[derive(Default)]
struct Reads {
    first: Option<PodsSnapshot>,
    /// Whether the last read that succeeded showed a rollout that waits again: for a moment, a status that is about to
    /// be written shows the same, so only two such reads in a row are a problem.
    waits_again: bool,
}

impl Reads {
    /// Judges a read that ended this long after the observation began; `time` is how long that is to take. Returns how
    /// the observation ended; none if another read has to follow.
    fn judge(
        &mut self,
        read: Result<PodsSnapshot, ActionError>,
        elapsed: Duration,
        time: Duration,
    ) -> Option<Ended> {
        let is_over = elapsed >= time;
        let snapshot = match read {
            Ok(snapshot) => snapshot,
            // What could not be read has not failed; the next read may show it.
            Err(error) => return is_over.then(|| unknown(&error)),
        };
        let Some(first) = &self.first else {
            let problems = snapshot.problems_since(&PodsSnapshot::default());
            self.first = Some(snapshot);
            return match problems.is_empty() {
                false => Some(unhealthy(elapsed, problems)),
                // Before the first read nothing was observed, so this one cannot be the last.
                true => is_over.then(unknown_from_the_start),
            };
        };
        let mut problems = snapshot.problems_since(first);
        let waits_again = snapshot.regressed_since(first);
        if let Some(what) = waits_again.filter(|_| self.waits_again || !problems.is_empty()) {
            problems.insert(0, format!("the rollout regressed: {what}"));
        }
        if !problems.is_empty() {
            return Some(unhealthy(elapsed, problems));
        }
        self.waits_again = waits_again.is_some();
        (is_over && !self.waits_again).then(|| healthy(&snapshot, time))
    }
}

fn healthy(last: &PodsSnapshot, time: Duration) -> Ended {
    let pods = match last.ready() {
        1 => "1 pod is ready".to_owned(),
        number => format!("{number} pods are ready"),
    };
    let message =
        format!("{pods} after {} s, and none of them restarted or disappeared", time.as_secs());
    (ObservationState::Healthy, message, Vec::new())
}

fn unhealthy(after: Duration, problems: Vec<String>) -> Ended {
    let message = format!("it did not stay as it was, {} s after it was complete", after.as_secs());
    (ObservationState::Unhealthy, message, problems)
}

fn interrupted(after: Duration) -> Ended {
    let message = format!("it was healthy for {} s as far as it was observed", after.as_secs());
    (ObservationState::Interrupted, message, Vec::new())
}

fn unknown(error: &ActionError) -> Ended {
    let message = format!("it could not be read at the end: {}", error.with_its_hint());
    (ObservationState::Unknown, message, Vec::new())
}

fn unknown_from_the_start() -> Ended {
    let message = "it could not be read before the end".to_owned();
    (ObservationState::Unknown, message, Vec::new())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::k8s::rollout::RolloutStatus;

    const TIME: Duration = Duration::from_secs(10);

    /// One pod that is ready and has restarted so often, and a rollout in this state.
    fn snapshot_of(restarts: i32, status: RolloutStatus) -> PodsSnapshot {
        let pod: Pod = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web-1, uid: u1}}\n\
             status: {{phase: Running, conditions: [{{type: Ready, status: 'True'}}], \
             containerStatuses: [{{name: app, image: i, imageID: '', ready: true, restartCount: {restarts}}}]}}"
        ))
        .expect("is a pod");
        let mut snapshot = PodsSnapshot::default();
        snapshot.status = Some(status);
        snapshot.add([pod]);
        snapshot
    }

    fn snapshot(restarts: i32) -> PodsSnapshot {
        snapshot_of(restarts, RolloutStatus::Complete("1 of 1".to_owned()))
    }

    fn waits_again() -> PodsSnapshot {
        snapshot_of(0, RolloutStatus::Waiting("0 of 1 are available".to_owned()))
    }

    fn unreadable() -> Result<PodsSnapshot, ActionError> {
        Err(ActionError::new(Code::ClusterUnreachable, "no answer"))
    }

    /// How an observation ends by these reads: one a second after the other from its first second, the last one at its
    /// end.
    fn ended(reads: impl IntoIterator<Item = Result<PodsSnapshot, ActionError>>) -> Option<Ended> {
        let (mut all, reads) = (Reads::default(), reads.into_iter().collect::<Vec<_>>());
        let last = reads.len() - 1;
        let mut judged = reads.into_iter().enumerate().map(|(number, read)| {
            let elapsed = if number == last { TIME } else { Duration::from_secs(number as u64) };
            all.judge(read, elapsed, TIME)
        });
        judged.find_map(|ended| ended)
    }

    #[test]
    fn pods_that_stay_as_they_were_to_the_end_are_healthy() {
        let (state, message, problems) = ended([Ok(snapshot(0)), Ok(snapshot(0))]).expect("ended");
        assert_eq!((state, problems), (ObservationState::Healthy, vec![]));
        assert!(message.starts_with("1 pod is ready after 10 s"), "{message}");
        let mut before_the_end = Reads::default();
        for second in 0..10 {
            let elapsed = Duration::from_secs(second);
            assert_eq!(before_the_end.judge(Ok(snapshot(0)), elapsed, TIME), None);
        }
    }

    #[test]
    fn the_first_problem_ends_the_observation() {
        let reads = [Ok(snapshot(0)), Ok(snapshot(1)), Ok(snapshot(1))];
        let (state, message, problems) = ended(reads).expect("ended");
        assert_eq!(state, ObservationState::Unhealthy);
        assert_eq!(problems, ["pod web-1 restarted once"]);
        assert!(message.contains(" 1 s after"), "{message}");
    }

    #[test]
    fn a_rollout_that_failed_before_the_first_read_is_unhealthy() {
        let failed = snapshot_of(0, RolloutStatus::Failed("ProgressDeadlineExceeded".to_owned()));
        let (state, _, problems) = ended([Ok(failed)]).expect("ended");
        assert_eq!((state, problems.len()), (ObservationState::Unhealthy, 1));
    }

    #[test]
    fn a_rollout_that_waits_again_in_one_read_is_read_once_more() {
        let mut reads = Reads::default();
        assert_eq!(reads.judge(Ok(snapshot(0)), Duration::ZERO, TIME), None);
        // Even at the end.
        assert_eq!(reads.judge(Ok(waits_again()), TIME, TIME), None);
        let mut twice = Reads { first: reads.first.clone(), ..reads };
        let (state, ..) = reads.judge(Ok(snapshot(0)), TIME, TIME).expect("ended");
        assert_eq!(state, ObservationState::Healthy);
        let (state, _, problems) = twice.judge(Ok(waits_again()), TIME, TIME).expect("ended");
        assert_eq!(state, ObservationState::Unhealthy);
        assert_eq!(problems, ["the rollout regressed: 0 of 1 are available"]);
    }

    #[test]
    fn a_read_that_failed_is_no_problem_before_the_end_and_unknown_at_the_end() {
        let healthy = ended([Ok(snapshot(0)), unreadable(), Ok(snapshot(0))]).expect("ended");
        assert_eq!(healthy.0, ObservationState::Healthy);
        let unknown = ended([Ok(snapshot(0)), unreadable()]).expect("ended");
        assert_eq!(unknown.0, ObservationState::Unknown);
    }

    #[test]
    fn one_read_at_the_end_has_observed_nothing() {
        let (state, message, _) = ended([unreadable(), Ok(snapshot(0))]).expect("ended");
        assert_eq!(state, ObservationState::Unknown);
        assert_eq!(message, "it could not be read before the end");
    }
}
