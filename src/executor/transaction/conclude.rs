//! The end of a transaction: wait for completion if the request waits, observe if it says so, roll back if that failed,
//! record the answer. An answer is final once it is recorded; the first one recorded is everyone's.

use std::{collections::HashMap, time::Duration};

use chrono::Utc;
use tokio::time::Instant;

use super::{Transaction, record_deadline};
use crate::{
    actions::{AffectedObject, BoxFuture, PlanInput},
    contract::{
        error::ActionError,
        names::RequestId,
        response::{ActionResponse, Outcome, Rollout, RolloutState, Target},
    },
    executor::{
        drain::LiveLimits,
        failpoint::Failpoint,
        follow_up::{FollowUpResult, Pending, Run},
        target_results,
    },
    k8s::effect::Applied,
    ledger::{
        Commit,
        record::{ReceiptState, Record, RecordState},
    },
    policy::{budget::usage::UsageEntry, evaluate::Facts},
};

/// Time to record the answer after a wait that used up all other time.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

impl Transaction<'_> {
    /// Completes the record of an attempt that applied the effect and crashed before its answer.
    pub(super) async fn conclude(
        &self,
        record: Record,
        applied: Applied,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let response = record.answer_of_earlier_attempt();
        self.complete(record, applied, response, true, input).await
    }

    /// Waits if the request waits and the effect was made wholly, and records the answer.
    pub(super) async fn complete(
        &self,
        mut record: Record,
        applied: Applied,
        mut response: ActionResponse,
        replayed: bool,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        response.warnings.extend(applied.warnings_for_answer());
        if applied.resource_version.is_some() {
            response.target.resource_version.clone_from(&applied.resource_version);
        }
        record.intent.answer = response.clone();
        let has_more = input.wait || record.intent.completion.is_work();
        if has_more && response.rollout.is_none() {
            record.mark_applied(applied);
            if let Some(instead) = self.begin(&mut record, input).await? {
                return Ok(instead);
            }
            self.context.observer().claimed(&self.ledger.request);
            // On the heap, the futures of what follows do not grow that of every action, nor its stack.
            Box::pin(self.follow_up(&record, &mut response, replayed, input)).await;
            Box::pin(self.roll_back_if_failed(&mut record, &mut response)).await;
        } else {
            record.applied = Some(applied);
        }
        response.finished_at = Utc::now();
        Box::pin(self.record(record, response, replayed, input)).await
    }

    /// Records that what follows begins. The requests for targets that a selector chose begin only once this is
    /// recorded: without it nobody would find them. Returns the answer of an attempt that was faster.
    async fn begin(
        &self,
        record: &mut Record,
        input: &PlanInput,
    ) -> Result<Option<ActionResponse>, ActionError> {
        if record.intent.completion.targets().is_none() {
            self.write(record, record_deadline(input)).await;
            return Ok(None);
        }
        match self.ledger.settle(record, record_deadline(input)).await? {
            Commit::Stored => Ok(None),
            Commit::Superseded(theirs) => Ok(Some(ActionResponse { replayed: true, ..*theirs })),
            Commit::LostClaim(until) => Err(self.in_progress(until)),
        }
    }

    /// The effect is made, and another attempt waits or waited for its completion: wait too. If the effect
    /// has failed and is being rolled back, resume that.
    pub(super) async fn join_wait(
        &self,
        mut record: Record,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let failed = record.answer.clone().filter(|_| record.state == RecordState::RollingBack);
        let has_failed = failed.is_some();
        let mut response = failed.unwrap_or_else(|| record.intent.answer.clone());
        if !input.wait && !record.intent.completion.is_work() {
            return Ok(ActionResponse { replayed: true, ..response });
        }
        self.context.observer().claimed(&self.ledger.request);
        if !has_failed {
            self.follow_up(&record, &mut response, true, input).await;
        }
        self.roll_back_if_failed(&mut record, &mut response).await;
        response.finished_at = Utc::now();
        self.record(record, response, true, input).await
    }

    /// Returns the recorded answer, after a wait or an observation if that attempt made none and this one does.
    pub(super) async fn replay(
        &self,
        record: Record,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let response = record.answer.clone().unwrap_or_else(|| record.intent.answer.clone());
        let mut response = ActionResponse { replayed: true, ..response };
        self.report_pending(&record, &mut response, record_deadline(input)).await;
        if input.wait && response.rollout.is_none() {
            self.follow_up(&record, &mut response, true, input).await;
        } else if response.observation.is_none() && response.rolled_back.is_none() {
            let (target, applied) = (response.target.clone(), record.applied_or_default());
            let pending = self.pending(&record, &target, &applied);
            self.observe(&pending, &mut response).await;
        }
        Ok(response)
    }

    /// Does what follows the effect, which an earlier attempt may have made, and adds the result to the response.
    async fn follow_up(
        &self,
        record: &Record,
        response: &mut ActionResponse,
        is_taken_up: bool,
        input: &PlanInput,
    ) {
        let targets = record.intent.completion.targets();
        // What is done to several targets are changes, too.
        if targets.is_none() {
            self.context.observer().waiting();
        }
        let limits = LimitsOfRecord { transaction: self, record, id: &input.id };
        let (target, applied) = (response.target.clone(), record.applied_or_default());
        let pending = self.pending(record, &target, &applied);
        let are_approved = match targets {
            Some(targets) => self.are_approved(record, targets).await,
            None => false,
        };
        let known = record.answer.as_ref().map(|answer| answer.targets.as_slice());
        let run = Run {
            context: self.context,
            request: &self.ledger.request,
            action_request: self.request,
            known: known.unwrap_or_default(),
            are_approved,
            made_at: is_taken_up.then(|| {
                let began = ("started_at", record.intent.answer.started_at);
                self.request.made_at().unwrap_or(began)
            }),
            wait: input.wait,
            end: self.end,
            limits: &limits,
            is_taken_up,
        };
        match pending.run(run).await {
            FollowUpResult::Begun(sentence) => {
                response.result = format!("{} {sentence}", response.result);
            }
            FollowUpResult::Waited(rollout) => {
                if rollout.state != RolloutState::Complete {
                    response.outcome = Outcome::Failed;
                }
                response.result = format!("{} {rollout}", response.result);
                response.rollout = Some(rollout);
                self.observe(&pending, response).await;
            }
            // Each of them is observed for itself.
            FollowUpResult::EachTarget(results) => {
                if let Some(selection) = self.request.action.selection() {
                    target_results::conclude(response, &selection, results, input.wait);
                }
            }
        }
    }

    fn pending<'a>(
        &'a self,
        record: &'a Record,
        target: &'a Target,
        applied: &'a Applied,
    ) -> Pending<'a> {
        let (id, completion) = (&self.ledger.request.id, &record.intent.completion);
        let Transaction { cluster, own_cluster, .. } = *self;
        Pending { cluster, own_cluster, id, completion, target, applied }
    }

    /// Observes the target if the request says so and the effect is complete, and adds the result to the response.
    async fn observe(&self, pending: &Pending<'_>, response: &mut ActionResponse) {
        let is_complete = |rollout: &Rollout| rollout.state == RolloutState::Complete;
        let is_observed = response.rollout.as_ref().is_some_and(is_complete);
        let is_one = self.request.action.selection().is_none();
        let Some(time) = self.request.observe.filter(|_| is_observed && is_one) else { return };
        let observation = pending.observe(self.context, time).await;
        if !observation.state.keeps_outcome() {
            response.outcome = Outcome::Failed;
        }
        response.result = format!("{} {observation}", response.result);
        response.observation = Some(observation);
    }

    /// Records the answer and returns it, or the one that another attempt recorded first.
    async fn record(
        &self,
        mut record: Record,
        response: ActionResponse,
        replayed: bool,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        if let Some(in_progress) = target_results::in_progress(&response) {
            return Err(in_progress);
        }
        Failpoint::BeforeRecord.pass();
        record.mark_answered(response.clone());
        record.receipt = self.context.reports().keeps_receipts().then_some(ReceiptState::Pending);
        let deadline = record_deadline(input).max(Instant::now() + RECORD_TIMEOUT);
        let commit = self.ledger.settle(&mut record, deadline).await;
        Failpoint::AfterRecord.pass();
        match commit {
            Ok(Commit::Stored) => {
                let mut response = ActionResponse { replayed, ..response };
                self.report(record, &mut response, deadline).await;
                Ok(response)
            }
            Ok(Commit::Superseded(theirs)) => Ok(ActionResponse { replayed: true, ..*theirs }),
            Ok(Commit::LostClaim(until)) => Err(self.in_progress(until)),
            Err(error) => {
                let mut response = ActionResponse { replayed, ..response };
                let why = error.with_its_hint();
                response.warnings.push(format!("the answer could not be recorded: {why}"));
                self.report_unrecorded(&record, &mut response).await;
                Ok(response)
            }
        }
    }
}

/// The limits on what follows the effect of this record.
struct LimitsOfRecord<'a> {
    transaction: &'a Transaction<'a>,
    record: &'a Record,
    id: &'a RequestId,
}

impl LiveLimits for LimitsOfRecord<'_> {
    fn recheck(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        self.transaction.recheck_limits(deadline)
    }

    fn admit(
        &self,
        pods: Vec<AffectedObject>,
        deadline: Instant,
    ) -> BoxFuture<'_, HashMap<String, String>> {
        Box::pin(async move {
            let mut refused = HashMap::new();
            let mut entries = Vec::new();
            let Transaction { cluster, budget, .. } = self.transaction;
            for pod in &pods {
                match self.judge(pod) {
                    Ok(()) => {
                        entries.push(UsageEntry::new(self.id, &pod.target, cluster.now()));
                    }
                    Err(why) => {
                        refused.extend(pod.target.uid.clone().map(|uid| (uid, why)));
                    }
                }
            }
            if !entries.is_empty() {
                let charged = budget.reserve(&entries, None, deadline).await?;
                self.transaction.record_effect(&charged, deadline).await;
            }
            Ok(refused)
        })
    }
}

impl LimitsOfRecord<'_> {
    /// Whether the policy as it is now allows this pod too, and nothing about it needs a person's approval: what was
    /// approved were the pods of the plan.
    fn judge(&self, pod: &AffectedObject) -> Result<(), String> {
        let (policy, request) = (self.transaction.context.policy(), self.transaction.request);
        let evaluation = policy.judge_other(request, pod, false);
        evaluation.refuse().map_err(|refusal| refusal.detail)?;
        let is_of_approval = self.record.approval_nonce.is_some()
            || evaluation.requires_approval()
            || policy.judge(&Facts::of(request, None)).requires_approval();
        match is_of_approval {
            true => Err("it is not one of the pods that a person approved".to_owned()),
            false => Ok(()),
        }
    }
}
