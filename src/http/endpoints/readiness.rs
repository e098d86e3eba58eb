//! Whether an action could be done now: what a probe asks, and a load balancer goes by.
//!
//! A cluster that fails once is not taken for gone: a server that has been ready is ready until the cluster
//! has not answered for a while, however often it was asked. What is wrong with our own files is told at
//! once, and so is that the process is about to stop.

use std::time::Duration;

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use crate::{
    auth::Authenticator,
    contract::error::{ActionError, Code},
    executor::context::Context,
};

/// How long the cluster's answer holds, so that probes do not load it; a fault is looked at again sooner.
const HOLDS: Duration = Duration::from_secs(1);
const FAULT_HOLDS: Duration = Duration::from_millis(250);

/// Longest time to find out.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long, and how often, the cluster must have failed before we are not ready.
const FAILS_FOR: Duration = Duration::from_secs(10);
const FAILURES: u32 = 3;

/// What has been found out so far.
#[derive(Default)]
pub struct Readiness {
    state: Mutex<State>,
    stopping: Option<watch::Receiver<bool>>,
}

#[derive(Default)]
struct State {
    /// The last answer, and when it was given.
    last: Option<(Instant, Result<(), ActionError>)>,
    steadiness: Steadiness,
}

/// How the cluster has answered: a verdict on each answer in the light of those before.
#[derive(Debug, Default)]
struct Steadiness {
    has_been_ready: bool,
    /// When it began to fail, and how often it has since.
    failing: Option<(Instant, u32)>,
}

impl Steadiness {
    fn judge(&mut self, now: Instant, answer: Result<(), ActionError>) -> Result<(), ActionError> {
        let Err(error) = answer else {
            *self = Steadiness { has_been_ready: true, failing: None };
            return Ok(());
        };
        let (since, failures) = self.failing.map_or((now, 1), |(since, times)| (since, times + 1));
        self.failing = Some((since, failures));
        let lasts = now - since >= FAILS_FOR && failures >= FAILURES;
        if self.has_been_ready && !lasts {
            tracing::warn!(%error, "the cluster does not serve; ready until that lasts");
            return Ok(());
        }
        Err(error)
    }
}

impl Readiness {
    /// Of a process that is ready only until this becomes true.
    #[must_use]
    pub fn until(stopping: watch::Receiver<bool>) -> Self {
        Readiness { stopping: Some(stopping), ..Readiness::default() }
    }

    /// Whether an action could be done in this context.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn of(&self, context: &Context, callers: &Authenticator) -> Result<(), ActionError> {
        if self.stopping.as_ref().is_some_and(|stopping| *stopping.borrow()) {
            return Err(ActionError::new(Code::ShuttingDown, "the server was told to stop"));
        }
        if let Some(fault) = callers.load_error().or_else(|| context.policy_error()) {
            return Err(fault);
        }
        // Held while asking, so that many probes at once ask once.
        let mut state = self.state.lock().await;
        if let Some((at, result)) = &state.last
            && at.elapsed() < holds(state.steadiness.failing.is_some())
        {
            return result.clone();
        }
        let late = || ActionError::new(Code::ClusterUnreachable, "the cluster does not answer");
        let answer =
            timeout(TIMEOUT, context.cluster_serves()).await.unwrap_or_else(|_| Err(late()));
        let now = Instant::now();
        let result = state.steadiness.judge(now, answer);
        state.last = Some((now, result.clone()));
        result
    }
}

fn holds(fails: bool) -> Duration {
    if fails { FAULT_HOLDS } else { HOLDS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, reload::Reloading};

    fn context() -> Context {
        let (_stop, stopping) = watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = Reloading::new(None).expect("is the shipped one");
        Context::new(None, policy, &settings, stopping)
    }

    fn gone() -> Result<(), ActionError> {
        Err(ActionError::new(Code::ClusterUnreachable, "gone"))
    }

    #[tokio::test]
    async fn the_clusters_readiness_is_asked_once_and_holds() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let readiness = Readiness::default();
        assert_eq!(readiness.of(&context, &callers).await, Ok(()));
        readiness.state.lock().await.last = Some((Instant::now(), gone()));
        assert_eq!(readiness.of(&context, &callers).await, gone());
    }

    #[tokio::test]
    async fn whoever_is_about_to_stop_is_not_ready() {
        let (context, callers) = (context(), Authenticator::new(None, None));
        let (stop, stopping) = watch::channel(false);
        let readiness = Readiness::until(stopping);
        assert_eq!(readiness.of(&context, &callers).await, Ok(()));
        stop.send(true).expect("is heard");
        let refused = readiness.of(&context, &callers).await.expect_err("is not ready");
        assert_eq!(refused.code, Code::ShuttingDown);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_none_and_many_over_a_while_are() {
        let mut steadiness = Steadiness::default();
        let mut judge = |answer| steadiness.judge(Instant::now(), answer);
        // Who has never been ready need not become it for a while first.
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(Ok(())), Ok(()));
        assert_eq!(judge(gone()), Ok(()));
        tokio::time::advance(FAILS_FOR).await;
        assert_eq!(judge(gone()), Ok(()), "two are not many");
        assert_eq!(judge(gone()), gone());
        assert_eq!(judge(Ok(())), Ok(()), "the first success counts");
        for _ in 0..20 {
            assert_eq!(judge(gone()), Ok(()), "many in a moment are one");
        }
    }
}
