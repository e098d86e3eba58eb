//! Who is informed while an action runs: its progress, its claim, its wait, its metrics. The executor calls
//! an observer; nothing depends on one.

use std::{sync::Arc, time::Duration};

use crate::{
    actions::request::ActionRequest,
    contract::{error::ActionError, response::ActionResponse},
    executor::details::Details,
    ledger::record::RequestMetadata,
    telemetry::{calls::ClusterLabel, metrics::Metrics},
};

type OnProgress = Arc<dyn Fn(&str) + Send + Sync>;
type OnDetails = Arc<dyn Fn(&Details) + Send + Sync>;
type OnClaimed = Arc<dyn Fn(&RequestMetadata) + Send + Sync>;
type OnClaiming = Arc<dyn Fn() + Send + Sync>;
type OnWaiting = Arc<dyn Fn() + Send + Sync>;

/// The hooks of an action; none by default.
#[derive(Clone, Default)]
pub(crate) struct Observer {
    on_progress: Option<OnProgress>,
    on_details: Option<OnDetails>,
    on_claiming: Option<OnClaiming>,
    on_claimed: Option<OnClaimed>,
    on_waiting: Vec<OnWaiting>,
    metrics: Option<Arc<Metrics>>,
}

impl Observer {
    /// Calls this with each new stage of a long wait, in a sentence.
    pub(crate) fn on_progress(mut self, hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(hook));
        self
    }

    /// Calls this repeatedly during a wait with what is known besides its stage.
    pub(crate) fn on_details(mut self, hook: impl Fn(&Details) + Send + Sync + 'static) -> Self {
        self.on_details = Some(Arc::new(hook));
        self
    }

    /// Calls this before the claim is written: from now on it may be made, even if nobody waits any more. It may be
    /// called more than once.
    pub(crate) fn on_claiming(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_claiming = Some(Arc::new(hook));
        self
    }

    /// Calls this when the request's record is in the ledger: from now on its status can be read there, and
    /// a crash loses nothing. It may be called more than once.
    pub(crate) fn on_claimed(
        mut self,
        hook: impl Fn(&RequestMetadata) + Send + Sync + 'static,
    ) -> Self {
        self.on_claimed = Some(Arc::new(hook));
        self
    }

    /// Calls this too when only a wait is left, so that a permit for work can be released. It may be called
    /// more than once.
    pub(crate) fn on_waiting(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_waiting.push(Arc::new(hook));
        self
    }

    /// Counts answered actions in these metrics.
    pub(crate) fn with_metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The observer of a part of the work: its claim is not that of the whole.
    pub(crate) fn of_part(self) -> Self {
        Observer { on_claiming: None, on_claimed: None, ..self }
    }

    pub(crate) fn progress(&self, stage: &str) {
        if let Some(hook) = &self.on_progress {
            hook(stage);
        }
    }

    /// Whether the details of a wait are to be read.
    pub(crate) fn shows_details(&self) -> bool {
        self.on_details.is_some()
    }

    pub(crate) fn details(&self, details: &Details) {
        if let Some(hook) = &self.on_details {
            hook(details);
        }
    }

    pub(crate) fn claiming(&self) {
        if let Some(hook) = &self.on_claiming {
            hook();
        }
    }

    pub(crate) fn claimed(&self, request: &RequestMetadata) {
        if let Some(hook) = &self.on_claimed {
            hook(request);
        }
    }

    pub(crate) fn waiting(&self) {
        for hook in &self.on_waiting {
            hook();
        }
    }

    pub(crate) fn answered(
        &self,
        request: &ActionRequest,
        result: &Result<ActionResponse, ActionError>,
        cluster: ClusterLabel,
        took: Duration,
    ) {
        if let Some(metrics) = self.metrics() {
            let result = match result {
                Ok(response) => response.outcome.name().into(),
                Err(error) => error.code.name().into(),
            };
            let action = request.action.kind().name();
            metrics.action(action, request.simulate, result, cluster, took);
        }
    }

    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_waiting_hook_is_called_and_the_default_has_none() {
        let calls = Arc::new(AtomicUsize::new(0));
        let hook = || {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        Observer::default().waiting();
        Observer::default().on_waiting(hook()).on_waiting(hook()).waiting();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
