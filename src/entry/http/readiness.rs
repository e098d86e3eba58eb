//! Whether an action could be done now: what a probe asks, and a load balancer goes by.

use std::time::Duration;

use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    callers::Callers,
    context::Context,
    error::{ActionError, Code},
};

/// How long the cluster's answer holds, so that probes do not load it.
const HOLDS: Duration = Duration::from_secs(1);

/// Longest time to find out.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The last answer, and when it was given.
#[derive(Default)]
pub struct Readiness(Mutex<Option<(Instant, Result<(), ActionError>)>>);

impl Readiness {
    /// Whether an action could be done in this context.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn of(&self, context: &Context, callers: &Callers) -> Result<(), ActionError> {
        // Held while asking, so that many probes at once ask once.
        let mut last = self.0.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < HOLDS
        {
            return result.clone();
        }
        let late = || ActionError::new(Code::ClusterUnreachable, "the cluster does not answer");
        let result = match callers.fault() {
            Some(fault) => Err(fault),
            None => {
                let result = timeout(TIMEOUT, context.ready()).await;
                result.unwrap_or_else(|_| Err(late()))
            }
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Settings, document::Followed};

    #[tokio::test]
    async fn the_clusters_readiness_is_asked_once_and_holds() {
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = Followed::new(None).expect("is the shipped one");
        let context = Context::new(None, policy, &settings, stopping);
        let callers = Callers::new(None, None);
        let readiness = Readiness::default();
        assert_eq!(readiness.of(&context, &callers).await, Ok(()));
        let unready = ActionError::new(Code::ClusterUnreachable, "gone");
        *readiness.0.lock().await = Some((Instant::now(), Err(unready.clone())));
        assert_eq!(readiness.of(&context, &callers).await, Err(unready));
    }
}
