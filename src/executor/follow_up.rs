//! What follows an effect: the wait for its completion, or the evictions after a cordon. Only this file
//! distinguishes the two, for the transaction and for the status of a request.

use tokio::time::Instant;

use crate::{
    actions::{CompletionSpec, FollowUp},
    contract::{
        error::ActionError,
        response::{Rollout, Target},
    },
    executor::{
        context::Context,
        drain::{Drain, LiveLimits, Remaining},
        wait,
    },
    k8s::{api::client::Cluster, effect::Applied, rollout::RolloutStatus},
    ledger::record::RequestMetadata,
};

/// What follows the effect of this request.
pub(crate) struct Pending<'a> {
    pub cluster: &'a Cluster,
    pub completion: &'a CompletionSpec,
    /// The target after the effect.
    pub target: &'a Target,
    /// What the effect left behind.
    pub applied: &'a Applied,
}

/// How it is carried out.
pub(crate) struct Run<'a> {
    pub context: &'a Context,
    pub request: &'a RequestMetadata,
    /// Whether to wait for completion; if not, only the remaining work is done.
    pub wait: bool,
    pub end: Instant,
    /// Checked again before further changes.
    pub limits: &'a dyn LiveLimits,
    /// Whether an earlier attempt made the effect.
    pub is_taken_up: bool,
}

/// How it ended.
pub(crate) enum FollowUpResult {
    /// The wait ended.
    Waited(Rollout),
    /// The work is done, and nothing waited for its completion; in a sentence.
    Begun(String),
}

impl<'a> Pending<'a> {
    pub(crate) async fn run(&self, run: Run<'a>) -> FollowUpResult {
        let (cluster, node) = (self.cluster, self.target);
        let Run { context, request, wait, end, limits, is_taken_up } = run;
        match self.completion.given(self.target, self.applied) {
            FollowUp::Wait(completion) => FollowUpResult::Waited(
                wait::until_complete(context, cluster, &completion, end).await,
            ),
            FollowUp::Drain(evictions) => {
                let remaining = Remaining { cluster, node, evictions };
                let drain = Drain { context, remaining, request, end, limits, is_taken_up };
                if wait {
                    return FollowUpResult::Waited(drain.until_gone().await);
                }
                match drain.evict_once().await {
                    Ok(sentence) => FollowUpResult::Begun(sentence),
                    Err(rollout) => FollowUpResult::Waited(rollout),
                }
            }
        }
    }

    /// Its progress in a sentence. This changes nothing.
    ///
    /// # Errors
    /// Why the cluster could not be read.
    pub(crate) async fn progress(&self, deadline: Instant) -> Result<String, ActionError> {
        let (cluster, node) = (self.cluster, self.target);
        match self.completion.given(self.target, self.applied) {
            FollowUp::Wait(completion) => {
                Ok(match cluster.completion_status(&completion, deadline).await? {
                    RolloutStatus::Waiting(stage)
                    | RolloutStatus::Complete(stage)
                    | RolloutStatus::Failed(stage) => stage,
                })
            }
            FollowUp::Drain(evictions) => {
                Remaining { cluster, node, evictions }.progress(deadline).await
            }
        }
    }
}
