//! What follows an effect: the wait for its completion, the evictions after a cordon, or the requests for the targets
//! that a selector chose. Only this file distinguishes them, for the transaction and for the status of a request.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::{
    actions::{CompletionSpec, FollowUp, request::ActionRequest},
    contract::{
        error::ActionError,
        names::RequestId,
        response::{Observation, Rollout, Target, TargetResult},
    },
    executor::{
        context::Context,
        drain::{Drain, LiveLimits, Remaining},
        observe,
        selection::{self, EachTarget},
        wait,
    },
    k8s::{api::client::Cluster, effect::Applied, rollout::RolloutStatus},
    ledger::record::RequestMetadata,
};

/// What follows the effect of this request.
pub(crate) struct Pending<'a> {
    /// The cluster for the calls about the target.
    pub cluster: &'a Cluster,
    /// The cluster with the executor's own identity, for records.
    pub own_cluster: &'a Cluster,
    /// The request's id.
    pub id: &'a RequestId,
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
    pub action_request: &'a ActionRequest,
    /// What an earlier attempt found of the targets that a selector chose.
    pub known: &'a [TargetResult],
    /// Whether a person has approved what is planned for each of them.
    pub are_approved: bool,
    /// When the request was made, if an earlier attempt has begun to act on them.
    pub made_at: Option<(&'static str, DateTime<Utc>)>,
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
    /// What became of each target that a selector chose.
    EachTarget(Vec<TargetResult>),
}

impl<'a> Pending<'a> {
    pub(crate) async fn run(&self, run: Run<'a>) -> FollowUpResult {
        let (cluster, node) = (self.cluster, self.target);
        let Run { context, request, wait, end, limits, is_taken_up, .. } = run;
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
            FollowUp::EachTarget(targets) => {
                let Run { action_request: request, known, are_approved, made_at, .. } = run;
                let id = self.id;
                let each =
                    EachTarget { context, request, id, targets, are_approved, made_at, wait, end };
                FollowUpResult::EachTarget(each.run(known).await)
            }
        }
    }

    /// Observes for this time what the complete effect left behind.
    pub(crate) async fn observe(&self, context: &Context, time: Duration) -> Observation {
        match self.completion.given(self.target, self.applied) {
            FollowUp::Wait(completion) => {
                observe::observe(context, self.cluster, &completion, self.target, time).await
            }
            FollowUp::Drain(_) | FollowUp::EachTarget(_) => observe::not_applicable(self.target),
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
            FollowUp::EachTarget(targets) => {
                let namespace = &self.target.namespace;
                selection::progress(self.own_cluster, self.id, namespace, targets, deadline).await
            }
        }
    }
}
