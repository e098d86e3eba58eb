//! Rolls a workload back to its previous revision after its awaited rollout failed.
//!
//! This is a second effect of the same request. Like the first one it is bound to the object as it was read,
//! carries a mark of its own, and is recorded before it is applied. The revision was recorded before the first
//! effect and is not chosen now. Several attempts at the request may arrive here at once; the object accepts
//! one of them, and the others find its mark there.
//!
//! The policy and the kill switch hold. The budget is charged but does not refuse: an exhausted budget, or the
//! cooldown that the request itself started, must not keep a broken workload broken.

use tokio::time::{Instant, sleep};

use crate::{
    actions::CompletionSpec,
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, ObservationState, Outcome, RolledBack, RolloutState},
    },
    executor::{apply, apply::RejectedTests, failpoint::Failpoint, transaction::Transaction, wait},
    k8s::{
        api::{mutation::ApplyError, retry},
        applied_requests::{self, AppliedRequests},
        completion::{AwaitedRollout, Completion, RolloutOf},
        effect::{Applied, Effect},
        evidence::Evidence,
        revisions::{History, Revision, RollbackTarget},
        rollout::{self, ExceededDeadline, RolloutStatus},
        workload::Workload,
    },
    ledger::{
        ClaimState, Commit,
        record::{Record, RecordState},
    },
    policy::{budget::usage::UsageEntry, evaluate::Facts},
};

/// Distinguishes the mark of the second effect from that of the request.
const ROLLBACK_SUFFIX: &str = "rollback";

/// What became of the rollback.
enum RollbackOutcome {
    /// The workload is patched: what that left behind, and the digest of the template to wait for.
    Applied(Applied, Option<String>),
    /// Another attempt has finished the request; this is its answer.
    Answered(Box<ActionResponse>),
}

/// What became of one attempt at it.
enum Attempt {
    Done(RollbackOutcome),
    /// The object changed in between, or the API server did not take the patch.
    Again,
    /// A test of this patch failed.
    TestFailed(Box<Effect>, ActionError),
    /// The patch was sent and its answer lost.
    InDoubt,
}

impl Transaction<'_> {
    /// Rolls the workload back if the request asks for that and the rollout failed, and adds the result to
    /// the response.
    pub(crate) async fn roll_back_if_failed(
        &self,
        record: &mut Record,
        response: &mut ActionResponse,
    ) {
        // Targets that a selector chose are rolled back by their own requests.
        let action = &self.request.action;
        let is_requested = action.rollback_on_failure() && action.selection().is_none();
        if !is_requested || !has_failed(response, record.intent.answer.outcome) {
            return;
        }
        clear_rollback_text(response);
        let Some(rollback_target) = record.intent.rollback_target.clone() else {
            return not_rolled_back(response, "the previous revision is not recorded");
        };
        match self.roll_back(record, &rollback_target, response).await {
            Ok(RollbackOutcome::Applied(applied, template)) => {
                self.wait_for_rollback(record, &rollback_target, applied, template, response).await;
            }
            Ok(RollbackOutcome::Answered(theirs)) => *response = *theirs,
            Err(error) if error.code == Code::OutcomeUnknown => {
                response.result = format!(
                    "{} Whether it was rolled back is unknown: {}.",
                    response.result, error.detail
                );
            }
            Err(error) => not_rolled_back(response, &error.detail),
        }
    }

    async fn roll_back(
        &self,
        record: &mut Record,
        rollback_target: &RollbackTarget,
        response: &mut ActionResponse,
    ) -> Result<RollbackOutcome, ActionError> {
        let deadline = Instant::now() + self.context.deadline();
        let mut backoff = retry::backoff();
        // The attempt that recorded it before us may be slow, not crashed, and still apply it.
        let mut in_doubt = record.rollback.is_some();
        let mut rejected = RejectedTests::default();
        loop {
            let attempt = self.try_roll_back(record, rollback_target, response, deadline).await;
            match (attempt, &record.rollback) {
                (Ok(Attempt::Done(outcome)), _) => return Ok(outcome),
                (Ok(Attempt::InDoubt), _) => in_doubt = true,
                (Ok(Attempt::Again), _) => {}
                (Ok(Attempt::TestFailed(effect, error)), _) => {
                    if rejected.are_again_of(&effect) {
                        return Err(error);
                    }
                }
                (Err(error), Some(effect)) if in_doubt && !settles_doubt(error.code) => {
                    return Err(apply::unknown(effect, &error.detail));
                }
                (Err(error), _) => return Err(error),
            }
            if Instant::now() >= deadline && !in_doubt {
                let detail = format!("{} kept changing during every attempt", response.target);
                return Err(ActionError::new(Code::Conflict, detail));
            }
            sleep(backoff.next().unwrap_or_default()).await;
        }
    }

    /// Reads the workload, and rolls it back if it still is as the failed rollout left it.
    async fn try_roll_back(
        &self,
        record: &mut Record,
        rollback_target: &RollbackTarget,
        response: &mut ActionResponse,
        deadline: Instant,
    ) -> Result<Attempt, ActionError> {
        let CompletionSpec::Rollout(failed) = record.intent.completion.clone() else {
            return Err(ActionError::new(Code::Internal, "the action has no rollout"));
        };
        let (namespace, name) = (&response.target.namespace, &response.target.name);
        let history = self.cluster.history(failed.kind, namespace, name, deadline).await?;
        if let Some(applied) = self.find_applied(record, &history, deadline).await? {
            if record.rollback.is_none()
                && let Some(theirs) = self.adopt_rollback(record, response, deadline).await?
            {
                return Ok(Attempt::Done(RollbackOutcome::Answered(theirs)));
            }
            let template = history.kept(rollback_target).map(Revision::digest);
            return Ok(Attempt::Done(RollbackOutcome::Applied(applied, template)));
        }
        let mark = self.ledger.request.mark();
        let mark = applied_requests::mark_with_revision(&mark, &rollback_target.revision);
        let applied = record.applied.clone().unwrap_or_default();
        let failed = AwaitedRollout::new(&failed, &response.target, &applied);
        let revision = target_revision(&history, rollback_target, &failed, &mark, response)?;
        if let Some(why) = self.cluster.waits_for_lost_nodes(&history, deadline).await {
            return Err(ActionError::new(Code::Conflict, why));
        }
        self.warn_of_stuck_pods(&history, revision, response, deadline).await;
        let (found, mark) = (history.workload.metadata(), self.rollback_mark());
        let restore = history.operations_to(revision);
        let effect = Effect::patch(failed.kind.resource(), found, &mark, None, restore);
        record.mark_rolling_back(effect.clone(), response.clone());
        if let Commit::Superseded(theirs) = self.ledger.settle(record, deadline).await? {
            return Ok(Attempt::Done(RollbackOutcome::Answered(theirs)));
        }
        self.check_rollback_limits(&history.workload, response, deadline).await?;
        Failpoint::BeforeRollback.pass();
        match self.cluster.apply(&effect, false, deadline).await {
            Ok(applied) => {
                Failpoint::AfterRollback.pass();
                Ok(Attempt::Done(RollbackOutcome::Applied(applied, Some(revision.digest()))))
            }
            Err(ApplyError::Conflict | ApplyError::NotTaken(..)) => Ok(Attempt::Again),
            Err(ApplyError::TestFailed(error)) => Ok(Attempt::TestFailed(Box::new(effect), error)),
            Err(ApplyError::InDoubt(_)) => Ok(Attempt::InDoubt),
            Err(ApplyError::Rejected(error)) => Err(error),
            Err(ApplyError::Disruption(why)) => Err(ActionError::new(Code::DisruptionBudget, why)),
        }
    }

    fn rollback_mark(&self) -> String {
        self.ledger.request.mark_of(ROLLBACK_SUFFIX)
    }

    /// What the second effect left behind, if any attempt made it.
    async fn find_applied(
        &self,
        record: &Record,
        history: &History,
        deadline: Instant,
    ) -> Result<Option<Applied>, ActionError> {
        let Some(effect) = &record.rollback else {
            let found = history.workload.metadata();
            let (requests, mark) = (AppliedRequests::from_metadata(found), self.rollback_mark());
            let is_last = requests.is_last_change(&mark);
            return Ok(requests.contains(&mark).then(|| Applied {
                resource_version: found.resource_version.clone(),
                generation: found.generation.filter(|_| is_last),
                template: is_last.then(|| history.digest()),
                ..Applied::default()
            }));
        };
        match self.cluster.find_evidence(effect, deadline).await? {
            Evidence::Made(applied) => Ok(Some(applied)),
            Evidence::NeverMade | Evidence::NotYet => Ok(None),
            Evidence::Gone | Evidence::Unknowable => {
                Err(apply::unknown(effect, "the object was changed or replaced since"))
            }
        }
    }

    /// Continues from what another attempt has recorded; returns its answer if that is final.
    async fn adopt_rollback(
        &self,
        record: &mut Record,
        response: &mut ActionResponse,
        deadline: Instant,
    ) -> Result<Option<Box<ActionResponse>>, ActionError> {
        match self.ledger.find(deadline).await? {
            ClaimState::Answered(found) => Ok(found.answer.map(Box::new)),
            ClaimState::Applied(found) if found.state == RecordState::RollingBack => {
                if let (Some(effect), Some(failed)) = (found.rollback, found.answer) {
                    *response = failed;
                    clear_rollback_text(response);
                    record.mark_rolling_back(effect, response.clone());
                    record.resource_version = found.resource_version;
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Checks policy and kill switch as they are now, for the workload as it is now.
    async fn check_rollback_limits(
        &self,
        workload: &Workload,
        response: &ActionResponse,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let labels = workload.metadata().labels.clone().unwrap_or_default();
        let facts = Facts { labels: Some(&labels), ..Facts::of(self.request, None) };
        self.context.policy().judge(&facts).refuse()?;
        let (target, now) = (&response.target, self.cluster.now());
        let entry = UsageEntry::new(&self.rollback_mark(), target, now);
        self.budget.record_unconditionally(&[entry], deadline).await
    }

    /// Warns of the pods that a StatefulSet would wait for, if they may be listed.
    async fn warn_of_stuck_pods(
        &self,
        history: &History,
        revision: &Revision,
        response: &mut ActionResponse,
        deadline: Instant,
    ) {
        if !history.workload.keeps_order() {
            return;
        }
        let selector = history.workload.label_selector();
        let pods = self.cluster.list(&response.target.namespace, &selector, deadline).await;
        let pods = pods.unwrap_or_default();
        let stuck = history.stuck(revision, &pods);
        let warning = rollout::stuck_pods_warning(&stuck);
        if !stuck.is_empty() && !response.warnings.contains(&warning) {
            response.warnings.push(warning);
        }
    }

    /// Waits for the revision's rollout, for the request's time once more: the failed rollout used it up.
    async fn wait_for_rollback(
        &self,
        record: &Record,
        rollback_target: &RollbackTarget,
        applied: Applied,
        template: Option<String>,
        response: &mut ActionResponse,
    ) {
        let CompletionSpec::Rollout(RolloutOf { kind, .. }) = record.intent.completion else {
            return;
        };
        let rollout = RolloutOf { kind, template };
        let awaited = AwaitedRollout::new(&rollout, &response.target, &applied);
        let completion = Completion::RolledOut(awaited);
        let end = Instant::now() + self.request.wait_time();
        let stage = format!("rolled back to revision {}", rollback_target.number);
        self.context.observer().progress(&stage);
        let rollout = wait::until_complete(self.context, self.cluster, &completion, end).await;
        response.target.resource_version.clone_from(&applied.resource_version);
        let (revision, resource_version) = (rollback_target.number, applied.resource_version);
        let rolled_back = RolledBack { revision, resource_version, rollout };
        response.result = format!("{} {rolled_back}", response.result);
        response.rolled_back = Some(rolled_back);
    }
}

/// Whether the awaited rollout, or its observation, failed after a change. An interrupted wait has not failed.
fn has_failed(response: &ActionResponse, outcome: Outcome) -> bool {
    let state = response.rollout.as_ref().map(|rollout| rollout.state);
    outcome != Outcome::Unchanged
        && (matches!(state, Some(RolloutState::Failed | RolloutState::TimedOut))
            || was_unhealthy(response))
}

/// Whether the target was not healthy while it was observed. What could not be read has not failed.
fn was_unhealthy(response: &ActionResponse) -> bool {
    let observation = response.observation.as_ref();
    observation.is_some_and(|it| it.state == ObservationState::Unhealthy)
}

/// Whether this error leaves nothing in doubt: a patch for an object that is another one now has no effect,
/// and an unknown outcome is reported as such already.
fn settles_doubt(code: Code) -> bool {
    matches!(code, Code::PreconditionFailed | Code::OutcomeUnknown)
}

/// The revision to go back to, if the workload still is as the failed rollout left it, and has not completed it.
fn target_revision<'a>(
    history: &'a History,
    rollback_target: &RollbackTarget,
    failed: &AwaitedRollout,
    mark: &str,
    response: &ActionResponse,
) -> Result<&'a Revision, ActionError> {
    let (target, workload) = (&response.target, &history.workload);
    let found = workload.metadata();
    // A record alone does not count, for the revision neither: more accounts may write Events than workloads.
    let is_ours = failed.is_shown_by(workload, history.template())
        && AppliedRequests::from_metadata(found).contains(mark);
    if found.uid != target.uid || found.deletion_timestamp.is_some() || !is_ours {
        let detail = format!(
            "{target} is not as this request left it: another client changed or replaced it"
        );
        return Err(ActionError::new(Code::PreconditionFailed, detail));
    }
    if workload.is_paused() {
        return Err(ActionError::new(Code::TargetPaused, format!("{target} is paused")));
    }
    // The last read of the wait is older, or was refused.
    let exceeded_at = ExceededDeadline::on(workload).and_then(|exceeded| exceeded.at);
    let now = rollout::status(workload, failed.generation, exceeded_at.as_deref());
    // Pods that restarted while they were observed may be ready now.
    if let RolloutStatus::Complete(message) = now
        && !was_unhealthy(response)
    {
        return Err(ActionError::new(Code::Conflict, format!("it is complete now: {message}")));
    }
    let number = rollback_target.number;
    history.kept(rollback_target).ok_or_else(|| {
        let detail = format!("revision {number} of {target} does not exist any more");
        ActionError::new(Code::NoRevision, detail)
    })
}

/// Removes what an interrupted wait has recorded about the rollback.
fn clear_rollback_text(response: &mut ActionResponse) {
    if let Some(rolled_back) = response.rolled_back.take()
        && let Some(before) = response.result.strip_suffix(&format!(" {rolled_back}"))
    {
        response.result = before.to_owned();
    }
}

fn not_rolled_back(response: &mut ActionResponse, why: &str) {
    response.result = format!("{} Not rolled back: {why}.", response.result);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::response::{Observation, Rollout};

    fn rollout(state: RolloutState) -> Rollout {
        Rollout { state, message: "1 of 2 pods".to_owned(), problems: Vec::new() }
    }

    #[test]
    fn a_rollback_follows_a_failed_rollout_of_a_change() {
        for (state, outcome, expected) in [
            (Some(RolloutState::Failed), Outcome::Applied, true),
            (Some(RolloutState::TimedOut), Outcome::Applied, true),
            (Some(RolloutState::Failed), Outcome::Unchanged, false),
            (Some(RolloutState::Interrupted), Outcome::Applied, false),
            (Some(RolloutState::Complete), Outcome::Applied, false),
            (None, Outcome::Applied, false),
        ] {
            let rollout = state.map(rollout);
            let response = ActionResponse { rollout, ..ActionResponse::example(outcome) };
            assert_eq!(has_failed(&response, outcome), expected, "{state:?} {outcome:?}");
        }
    }

    #[test]
    fn a_rollback_follows_an_observation_that_found_a_problem_and_no_other() {
        for (state, expected) in [
            (ObservationState::Unhealthy, true),
            (ObservationState::Healthy, false),
            (ObservationState::Unknown, false),
            (ObservationState::Interrupted, false),
            (ObservationState::NotApplicable, false),
        ] {
            let observation =
                Observation { state, seconds: 1, message: String::new(), problems: Vec::new() };
            let response = ActionResponse {
                rollout: Some(rollout(RolloutState::Complete)),
                observation: Some(observation),
                ..ActionResponse::example(Outcome::Applied)
            };
            assert_eq!(has_failed(&response, Outcome::Applied), expected, "{state:?}");
            assert!(!has_failed(&response, Outcome::Unchanged), "{state:?}");
        }
    }

    #[test]
    fn doubt_ends_with_another_object_or_a_reported_doubt() {
        assert!(settles_doubt(Code::PreconditionFailed) && settles_doubt(Code::OutcomeUnknown));
        assert!(!settles_doubt(Code::Forbidden) && !settles_doubt(Code::ClusterUnavailable));
    }

    #[test]
    fn the_text_of_an_interrupted_rollback_is_removed_before_the_next() {
        let first = ActionResponse::example(Outcome::Failed);
        let mut response = first.clone();
        let rollout = rollout(RolloutState::Interrupted);
        let rolled_back = RolledBack { revision: 3, resource_version: None, rollout };
        response.result = format!("{} {rolled_back}", response.result);
        response.rolled_back = Some(rolled_back);
        clear_rollback_text(&mut response);
        assert_eq!(response, first);
        not_rolled_back(&mut response, "it is paused");
        assert!(response.result.ends_with(" Not rolled back: it is paused."));
    }
}
