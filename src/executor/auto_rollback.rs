//! Takes a workload back to the revision that it had, once its awaited rollout has failed.
//!
//! This is a second effect of the same request, and it has what the first one has: the object as it was
//! read, a mark of its own, and a record that says it is under way before it is made. Where to was written
//! down before the first effect and is not decided now. Several tries of the request may come here at
//! once; the object lets one of them through, and the others find its mark.
//!
//! A person's limits hold, with one exception: it counts in the budget, but a budget that is used up, or
//! the cooldown that the request itself began, does not keep a broken workload broken. What was allowed
//! and approved was the request as it is, the way back included.

use chrono::Utc;
use tokio::time::{Instant, sleep};

use crate::{
    actions::CompletionSpec,
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, RolledBack, RolloutState},
    },
    executor::{apply, failpoint::Failpoint, transaction::Transaction, wait, wait::DEFAULT_WAIT},
    k8s::{
        api::{
            mutation::{Applied, ApplyError, Effect, Evidence},
            retry,
        },
        applied_requests::AppliedRequests,
        completion::{Completion, RolloutOf, TemplateIdentity},
        revisions::{History, Revision, RollbackTarget},
        rollout,
        workload::Workload,
    },
    ledger::{
        ClaimState, Commit,
        record::{Record, State},
    },
    policy::{budget::usage::UsageEntry, evaluate::Facts},
};

/// What the second effect's mark has after the request's id; no id has a slash in it.
const SUFFIX: &str = "/rollback";

/// What came of it.
enum RollbackOutcome {
    /// The workload is taken back: what that left behind, and by what its template is known.
    Made(Applied, TemplateIdentity),
    /// Another try of the request has seen to it, and this is the answer.
    Answered(Box<ActionResponse>),
}

/// What came of one look.
enum Attempt {
    /// It is over.
    Over(RollbackOutcome),
    /// The object changed under it.
    Again,
    /// It was sent and its answer lost.
    InDoubt,
}

impl Transaction<'_> {
    /// Takes the workload back if that was asked for and is called for, and tells it in the answer.
    pub(crate) async fn roll_back_if_failed(
        &self,
        record: &mut Record,
        answer: &mut ActionResponse,
    ) {
        let state = answer.rollout.as_ref().map(|rollout| rollout.state);
        let failed = matches!(state, Some(RolloutState::Failed | RolloutState::TimedOut));
        let did_something = record.intent.answer.outcome != Outcome::Unchanged;
        if !failed || !did_something || !self.request.action.rollback_on_failure() {
            return;
        }
        answer.clear_rollback_text();
        let Some(fallback) = record.intent.fallback.clone() else {
            return answer.not_rolled_back("it is not known any more what was there before");
        };
        match self.roll_back(record, &fallback, answer).await {
            Ok(RollbackOutcome::Made(made, template)) => {
                self.wait_for_rollback(record, &fallback, made, template, answer).await;
            }
            Ok(RollbackOutcome::Answered(theirs)) => *answer = *theirs,
            Err(error) if error.code == Code::OutcomeUnknown => {
                answer.result = format!(
                    "{} Whether it was rolled back is unknown: {}.",
                    answer.result, error.detail
                );
            }
            Err(error) => answer.not_rolled_back(&error.detail),
        }
    }

    async fn roll_back(
        &self,
        record: &mut Record,
        fallback: &RollbackTarget,
        answer: &mut ActionResponse,
    ) -> Result<RollbackOutcome, ActionError> {
        let deadline = Instant::now() + self.context.deadline();
        let mut pauses = retry::backoff();
        // A try that wrote it down before us may be slow and not dead, and make it yet.
        let mut in_doubt = record.rollback.is_some();
        loop {
            let look = self.try_roll_back(record, fallback, answer, deadline).await;
            match (look, &record.rollback) {
                (Ok(Attempt::Over(back)), _) => return Ok(back),
                (Ok(Attempt::InDoubt), _) => in_doubt = true,
                (Ok(Attempt::Again), _) => {}
                (Err(error), Some(effect)) if in_doubt && !settles_doubt(&error) => {
                    return Err(apply::unknown(effect, &error.detail));
                }
                (Err(error), _) => return Err(error),
            }
            if Instant::now() >= deadline && !in_doubt {
                let detail = format!("{} changed under every attempt", answer.target);
                return Err(ActionError::new(Code::Conflict, detail));
            }
            sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// Looks at the workload as it is, and takes it back if it still is as the failed rollout left it.
    async fn try_roll_back(
        &self,
        record: &mut Record,
        fallback: &RollbackTarget,
        answer: &mut ActionResponse,
        deadline: Instant,
    ) -> Result<Attempt, ActionError> {
        let CompletionSpec::Rollout(failed) = record.intent.completion.clone() else {
            return Err(ActionError::new(Code::Internal, "there was no rollout"));
        };
        let (namespace, name) = (&answer.target.namespace, &answer.target.name);
        let history = self.cluster.history(failed.kind, namespace, name, deadline).await?;
        let template = |revision: Option<&Revision>| {
            revision.map_or(TemplateIdentity::Nothing, Revision::template_identity)
        };
        if let Some(made) = self.find_applied(record, &history, deadline).await? {
            if record.rollback.is_none()
                && let Some(theirs) = self.adopt(record, answer, deadline).await?
            {
                return Ok(Attempt::Over(RollbackOutcome::Answered(theirs)));
            }
            return Ok(Attempt::Over(RollbackOutcome::Made(
                made,
                template(history.kept(fallback)),
            )));
        }
        let revision = target_revision(&history, fallback, &failed, answer)?;
        self.warn_of_stuck_pods(&history, revision, answer, deadline).await;
        let (found, id) = (history.workload.metadata(), self.rollback_id());
        let patch = history.patch_to(revision);
        let effect = Effect::patch(failed.kind.resource(), found, &id, patch);
        record.rolling_back(effect.clone(), answer.clone());
        if let Commit::Superseded(theirs) = self.ledger.settle(record, deadline).await? {
            return Ok(Attempt::Over(RollbackOutcome::Answered(theirs)));
        }
        self.check_limits(&history.workload, record, answer, deadline).await?;
        Failpoint::BeforeRollback.pass();
        match self.cluster.apply(&effect, false, deadline).await {
            Ok(made) => {
                Failpoint::AfterRollback.pass();
                Ok(Attempt::Over(RollbackOutcome::Made(made, revision.template_identity())))
            }
            Err(ApplyError::Conflict) => Ok(Attempt::Again),
            Err(ApplyError::InDoubt(_)) => Ok(Attempt::InDoubt),
            Err(ApplyError::Rejected(error)) => Err(error),
            Err(ApplyError::Disruption(words)) => {
                Err(ActionError::new(Code::DisruptionBudget, words))
            }
        }
    }

    fn rollback_id(&self) -> String {
        format!("{}{SUFFIX}", self.ledger.subject.id)
    }

    /// What the second effect left behind, if it was made, by whatever try.
    async fn find_applied(
        &self,
        record: &Record,
        history: &History,
        deadline: Instant,
    ) -> Result<Option<Applied>, ActionError> {
        let Some(effect) = &record.rollback else {
            let found = history.workload.metadata();
            let (resource_version, generation) = (found.resource_version.clone(), found.generation);
            let marked = AppliedRequests::from_metadata(found).contains(&self.rollback_id());
            return Ok(marked.then_some(Applied {
                resource_version,
                generation,
                ..Applied::default()
            }));
        };
        match self.cluster.find_evidence(effect, deadline).await? {
            Evidence::Made(made) => Ok(Some(made)),
            Evidence::NotMade => Ok(None),
            Evidence::Unknowable => {
                Err(apply::unknown(effect, "the object has been changed by others since"))
            }
        }
    }

    /// Goes on from what another try of the request has found and written down; its answer, if that is
    /// final.
    async fn adopt(
        &self,
        record: &mut Record,
        answer: &mut ActionResponse,
        deadline: Instant,
    ) -> Result<Option<Box<ActionResponse>>, ActionError> {
        match self.ledger.find(deadline).await? {
            ClaimState::Answered(there) => Ok(there.answer.map(Box::new)),
            ClaimState::Applied(there) if there.state == State::RollingBack => {
                if let (Some(effect), Some(so_far)) = (there.rollback, there.answer) {
                    *answer = so_far;
                    answer.clear_rollback_text();
                    record.rolling_back(effect, answer.clone());
                    record.resource_version = there.resource_version;
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The kill switch and the policy as it is now, of the workload as it is now.
    async fn check_limits(
        &self,
        workload: &Workload,
        record: &Record,
        answer: &ActionResponse,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let labels = workload.metadata().labels.clone().unwrap_or_default();
        let facts = Facts { labels: Some(&labels), ..Facts::of(self.request, None) };
        self.context.policy().judge(&facts).refuse()?;
        let (target, at) = (&answer.target, record.written_at.unwrap_or_else(Utc::now));
        let entry = UsageEntry::new(&self.rollback_id(), target, target, at);
        self.budget.record_unconditionally(&[entry], deadline).await
    }

    /// Names the pods that a StatefulSet would wait for. Without the right to list them it is not said.
    async fn warn_of_stuck_pods(
        &self,
        history: &History,
        revision: &Revision,
        answer: &mut ActionResponse,
        deadline: Instant,
    ) {
        if !history.keeps_order() {
            return;
        }
        let selector = history.workload.label_selector();
        let pods = self.cluster.list(&answer.target.namespace, &selector, deadline).await;
        let pods = pods.unwrap_or_default();
        let stuck = history.stuck(revision, &pods);
        let warning = rollout::stuck_pods_warning(&stuck);
        if !stuck.is_empty() && !answer.warnings.contains(&warning) {
            answer.warnings.push(warning);
        }
    }

    /// Waits for the revision to be rolled out, for as long as the request allows once more: the time for
    /// the rollout that failed is over.
    async fn wait_for_rollback(
        &self,
        record: &Record,
        fallback: &RollbackTarget,
        made: Applied,
        template: TemplateIdentity,
        answer: &mut ActionResponse,
    ) {
        let CompletionSpec::Rollout(RolloutOf { kind, .. }) = record.intent.completion else {
            return;
        };
        let rollout = RolloutOf { kind, template };
        let completion = Completion::of_rollout(rollout, &answer.target, &made);
        let end = Instant::now() + self.request.timeout.unwrap_or(DEFAULT_WAIT);
        self.context.progress(&format!("rolled back to revision {}", fallback.number));
        let rollout = wait::until_complete(self.context, self.cluster, &completion, end).await;
        answer.target.resource_version.clone_from(&made.resource_version);
        let (revision, resource_version) = (fallback.number, made.resource_version);
        let rolled_back = RolledBack { revision, resource_version, rollout };
        answer.result = format!("{} {rolled_back}", answer.result);
        answer.rolled_back = Some(rolled_back);
    }
}

/// Whether nothing is in doubt after this: what was sent cannot come to anything once the object is another
/// one than it was sent for, and what is unknown has been told.
fn settles_doubt(error: &ActionError) -> bool {
    matches!(error.code, Code::PreconditionFailed | Code::OutcomeUnknown)
}

/// The revision to go back to, if the workload still is as the failed rollout left it.
fn target_revision<'a>(
    history: &'a History,
    fallback: &RollbackTarget,
    failed: &RolloutOf,
    answer: &ActionResponse,
) -> Result<&'a Revision, ActionError> {
    let (target, found) = (&answer.target, history.workload.metadata());
    let is_ours =
        failed.template != TemplateIdentity::Nothing && failed.template.is_on(&history.workload);
    if found.uid != target.uid || found.deletion_timestamp.is_some() || !is_ours {
        let detail = format!("{target} was changed by someone else in the meantime");
        return Err(ActionError::new(Code::PreconditionFailed, detail));
    }
    if history.workload.is_paused() {
        return Err(ActionError::new(Code::TargetPaused, format!("{target} is paused")));
    }
    let number = fallback.number;
    history.kept(fallback).ok_or_else(|| {
        ActionError::new(Code::NoRevision, format!("{target} has no revision {number} any more"))
    })
}

impl ActionResponse {
    /// Takes out what an interrupted wait has said of the way back.
    fn clear_rollback_text(&mut self) {
        if let Some(rolled_back) = self.rolled_back.take()
            && let Some(before) = self.result.strip_suffix(&format!(" {rolled_back}"))
        {
            self.result = before.to_owned();
        }
    }

    fn not_rolled_back(&mut self, why: &str) {
        self.result = format!("{} Not rolled back: {why}.", self.result);
    }
}
