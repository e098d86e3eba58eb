//! The effect of a transaction whose claim is ours: charge the budget, check the policy as it is now, apply.
//! Whatever was charged for an effect that was not made is refunded.

use std::time::Duration;

use tokio::time::Instant;

use super::{Charge, Planned, Transaction, record_deadline};
use crate::{
    actions::{Decision, Plan, PlanInput},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome},
    },
    executor::{apply, apply::Execution, failpoint::Failpoint},
    k8s::api::mutation::Applied,
    ledger::record::Record,
    policy::budget::{
        LeaseSnapshot,
        usage::{EFFECT_TIMEOUT, UsageEntry},
    },
};

impl Transaction<'_> {
    /// Applies the effect of a request whose claim is ours, and completes its record.
    pub(super) async fn act(
        &self,
        mut record: Record,
        planned: Planned,
        input: PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let Planned { plan, charge, .. } = planned;
        if !matches!(plan.decision, Decision::NoOp(..)) {
            self.context.observer().claimed(&self.ledger.request);
        }
        let mut deadline = input.deadline;
        let charged = charge.is_some();
        let mut entries = Vec::new();
        if let Some(mut charge) = charge {
            deadline = deadline.min(charge.at + EFFECT_TIMEOUT);
            if let Err(refusal) = self.check_charge(&plan, &mut charge, &input).await {
                self.release(record, &refusal, &input).await;
                return Err(refusal);
            }
            entries = charge.entries;
        }
        let input = PlanInput { deadline, ..input };
        let recheck = |plan: &Plan| self.recheck_plan(plan, deadline);
        let result =
            apply::apply(self.context, self.cluster, self.request, &input, plan, &recheck).await;
        match result {
            // The object is gone: the attempt whose claim we took over may have deleted it.
            Ok(done)
                if charged && done.outcome == Outcome::Unchanged && record.intent.taken_over =>
            {
                self.conclude(record, Applied::default(), &input).await
            }
            Ok(done) => {
                if charged && done.outcome == Outcome::Unchanged {
                    self.refund(&entries, &input).await;
                }
                let response = self.response_of(&record, &done, &input);
                // For an effect that an earlier attempt made, the recorded intent holds.
                if !matches!(done.plan.decision, Decision::AlreadyApplied(..)) {
                    record.intent.completion = done.plan.completion;
                    record.intent.rollback_target = done.plan.rollback_target;
                }
                self.complete(record, done.applied, response, done.replayed, &input).await
            }
            Err(error) if error.code == Code::OutcomeUnknown => {
                record.mark_in_doubt();
                self.write(&mut record, record_deadline(&input)).await;
                Err(error)
            }
            Err(error) => {
                if charged {
                    self.refund(&entries, &input).await;
                }
                self.release(record, &error, &input).await;
                Err(error)
            }
        }
    }

    /// What the plan's effect costs, by the API server's time.
    pub(super) fn charge_of(
        &self,
        plan: &Plan,
        input: &PlanInput,
        lease: Option<LeaseSnapshot>,
    ) -> Charge {
        let (at, now) = (Instant::now(), self.cluster.now());
        let others = plan.others.iter().map(|other| &other.target);
        let targets = std::iter::once(&plan.target).chain(others);
        let entry = |target| UsageEntry::new(&input.id, &plan.target, target, now);
        Charge { entries: targets.map(entry).collect(), at, lease, result: None }
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
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        match charge.result.take() {
            Some(result) => result?,
            None => self.reserve(charge, input).await?,
        }
        let verdict = self.context.policy().judge_plan(self.request, plan, false);
        let allowed = verdict.refuse().and_then(|()| charge.check_age());
        if allowed.is_err() {
            self.refund(&charge.entries, input).await;
        }
        allowed
    }

    /// The answer about what was done. For an effect that an earlier attempt made, it is the recorded one.
    fn response_of(&self, record: &Record, done: &Execution, input: &PlanInput) -> ActionResponse {
        match done.plan.decision {
            Decision::AlreadyApplied(..) => record.intent.answer.clone(),
            _ => self.response(&done.plan, input, done.outcome, done.result.clone()),
        }
    }

    /// Records that the claimed request was refused and nothing was done.
    async fn release(&self, mut record: Record, refusal: &ActionError, input: &PlanInput) {
        record.mark_refused(refusal);
        self.write(&mut record, record_deadline(input)).await;
    }

    pub(super) async fn refund(&self, entries: &[UsageEntry], input: &PlanInput) {
        if let Err(error) = self.budget.refund(entries, record_deadline(input)).await {
            tracing::warn!(%error, "the action was not done, but its budget charge could not be removed");
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
            "claim and charge took longer than {} s; nothing was done",
            EFFECT_TIMEOUT.as_secs()
        );
        Err(ActionError::new(Code::ClusterUnavailable, detail)
            .with_retry_after(Some(Duration::from_secs(1))))
    }
}
