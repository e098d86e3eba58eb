//! The effect of a transaction whose claim is ours: charge the budget, check the policy as it is now, apply.
//! Whatever was charged for an effect is refunded once it is certain that it was not made.

use std::time::Duration;

use tokio::time::Instant;

use super::{Approval, Charge, Planned, Transaction, claim::refusal_after, record_deadline};
use crate::{
    actions::{Decision, Plan, PlanInput},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome},
    },
    executor::{apply, apply::Execution, failpoint::Failpoint},
    ledger::record::Record,
    policy::budget::{
        LeaseSnapshot,
        usage::{EFFECT_TIMEOUT, UsageEntry},
    },
};

/// What becomes of the charge of an effect that ended like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    /// The effect was made: its time is recorded.
    Record,
    /// It was made, or may have been made, at an unknown time.
    Keep,
    /// It was not made.
    Refund,
}

impl Settlement {
    pub(super) fn of(result: &Result<Execution, ActionError>) -> Self {
        match result {
            Ok(done) if done.outcome == Outcome::Unchanged => Settlement::Refund,
            // When an earlier attempt made it is unknown.
            Ok(done) if done.replayed => Settlement::Keep,
            Ok(_) => Settlement::Record,
            Err(error) if error.code == Code::OutcomeUnknown => Settlement::Keep,
            Err(_) => Settlement::Refund,
        }
    }
}

/// How long a check of the kill switch is valid.
const SWITCH_TTL: Duration = Duration::from_secs(1);

impl Transaction<'_> {
    /// Applies the effect of a request whose claim is ours, and completes its record.
    pub(super) async fn act(
        &self,
        mut record: Record,
        planned: Planned,
        input: PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let Planned { plan, charge, approval, earlier, deletions_may_come, .. } = planned;
        if !matches!(plan.decision, Decision::NoOp(..)) {
            self.context.observer().claimed(&self.ledger.request);
        }
        let mut deadline = input.deadline;
        let mut entries = Vec::new();
        if let Some(mut charge) = charge {
            deadline = deadline.min(charge.at + EFFECT_TIMEOUT);
            let allowed = self.check_charge(&plan, &mut charge, approval.as_ref(), &input).await;
            if let Err(refusal) = allowed {
                self.release(record, &refusal, &input).await;
                return Err(refusal_after(earlier.as_ref(), deletions_may_come, refusal));
            }
            entries = charge.entries;
        }
        let input = PlanInput { deadline, ..input };
        let recheck = |plan: &Plan| self.recheck_plan(plan, approval.as_ref(), deadline);
        let (context, cluster, request) = (self.context, self.cluster, self.request);
        let applied = apply::apply(context, cluster, request, &input, plan, earlier, &recheck);
        let result = Box::pin(applied).await;
        // An earlier effect is in the error already.
        let result = result.map_err(|error| refusal_after(None, deletions_may_come, error));
        let settlement = Settlement::of(&result);
        if settlement == Settlement::Refund {
            self.refund(&entries, &input).await;
        }
        match result {
            Ok(done) if settlement == Settlement::Record => {
                let finished = Box::pin(self.finish(record, done, &input));
                tokio::join!(finished, self.record_effect(&entries, record_deadline(&input))).0
            }
            Ok(done) => Box::pin(self.finish(record, done, &input)).await,
            Err(error) if settlement == Settlement::Keep => {
                record.mark_in_doubt();
                self.write(&mut record, record_deadline(&input)).await;
                Err(error)
            }
            Err(error) => {
                self.release(record, &error, &input).await;
                Err(error)
            }
        }
    }

    /// Completes the record of an effect that was made, or was not needed.
    async fn finish(
        &self,
        mut record: Record,
        done: Execution,
        input: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let response = self.response_of(&record, &done, input);
        // For an effect that an earlier attempt made, the recorded intent holds.
        if !matches!(done.plan.decision, Decision::AlreadyApplied(..)) {
            record.intent.completion = done.plan.completion;
            record.intent.rollback_target = done.plan.rollback_target;
        }
        self.complete(record, done.applied, response, done.replayed, input).await
    }

    /// What the plan's effect costs, by the API server's time.
    pub(super) fn charge_of(
        &self,
        plan: &Plan,
        input: &PlanInput,
        lease: Option<LeaseSnapshot>,
    ) -> Charge {
        let others = plan.others.iter().map(|other| &other.target);
        // What a selector chose is each charged to its own request, and the whole is no target of its own.
        let itself = plan.selected().is_none().then_some(&plan.target);
        let entry = |target| UsageEntry::new(&input.id, target, self.cluster.now());
        let entries = itself.into_iter().chain(others).map(entry).collect();
        Charge { entries, at: Instant::now(), lease, result: None }
    }

    /// Charges the budget, if kill switch and limits allow it.
    pub(super) async fn reserve(
        &self,
        charge: &mut Charge,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        let Charge { entries, lease, .. } = charge;
        let reserved = self.budget.reserve(entries, lease.as_ref(), input.deadline).await;
        Failpoint::AfterCharge.pass();
        charge.entries = reserved?;
        Ok(())
    }

    /// The last checks before the effect: that it is charged, and lately, and the policy as it is now.
    async fn check_charge(
        &self,
        plan: &Plan,
        charge: &mut Charge,
        approval: Option<&Approval>,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        match charge.result.take() {
            Some(result) => result?,
            None => self.reserve(charge, input).await?,
        }
        let mut allowed = self.judge_now(plan, approval).and_then(|()| charge.check_age());
        // The response to the charge had the kill switch; a slow claim may have come after it.
        if allowed.is_ok() && charge.at.elapsed() > SWITCH_TTL {
            let switch = self.budget.check_switch(input.deadline).await;
            allowed = switch.and_then(|()| charge.check_age());
        }
        if allowed.is_err() {
            self.refund(&charge.entries, input).await;
        }
        allowed
    }

    /// The answer about what was done. For an effect that an earlier attempt made, it is the recorded one.
    fn response_of(&self, record: &Record, done: &Execution, input: &PlanInput) -> ActionResponse {
        match done.plan.decision {
            Decision::AlreadyApplied(..) => record.answer_of_earlier_attempt(),
            _ => {
                let result = match &done.failed {
                    Some(failed) => format!("{} {failed}", done.result),
                    None => done.result.clone(),
                };
                let response = self.response(&done.plan, input, done.outcome, result);
                ActionResponse { rollout: done.failed.clone(), ..response }
            }
        }
    }

    /// Records that the claimed request was refused and nothing was done.
    async fn release(&self, mut record: Record, refusal: &ActionError, input: &PlanInput) {
        record.mark_refused(refusal);
        self.write(&mut record, record_deadline(input)).await;
    }

    pub(super) async fn refund(&self, entries: &[UsageEntry], input: &PlanInput) {
        if let Err(error) = self.budget.refund(entries, record_deadline(input)).await {
            tracing::warn!(%error, "nothing was done, but the charge stays in the budget until it expires");
        }
    }

    /// Adds the time of the effect to the entries. If that fails, they count longer than they have to.
    pub(super) async fn record_effect(&self, entries: &[UsageEntry], deadline: Instant) {
        if let Err(error) = self.budget.record_effect(entries, deadline).await {
            tracing::warn!(%error, "the time of the effect was not recorded; the charge counts up to 30 s longer");
        }
    }
}

impl Charge {
    /// Refuses an effect that would come after the time that its entries stand for.
    fn check_age(&self) -> Result<(), ActionError> {
        if Instant::now() < self.at + EFFECT_TIMEOUT {
            return Ok(());
        }
        let detail = format!(
            "the records of the request and of its budget took longer than {} s; nothing was done",
            EFFECT_TIMEOUT.as_secs()
        );
        Err(ActionError::new(Code::ClusterUnavailable, detail)
            .with_retry_after(Some(Duration::from_secs(1))))
    }
}
