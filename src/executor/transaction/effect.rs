//! The effect of a transaction whose claim is ours: charge the budget, check the policy as it is now, apply.
//! Whatever was charged for an effect that was not made is refunded.

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{Planned, Transaction, record_deadline};
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
        usage::{EFFECT_WINDOW, UsageEntry},
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
        Failpoint::AfterClaim.pass();
        let Planned { plan, lease, .. } = planned;
        if !matches!(plan.decision, Decision::NoOp(..)) {
            self.context.observer().claimed(&self.ledger.request);
        }
        let deadline = input.deadline.min(Instant::now() + EFFECT_WINDOW);
        let input = PlanInput { deadline, ..input };
        let at = record.written_at.unwrap_or_else(Utc::now);
        let entries = usage_entries(&plan, &input, at);
        let charged = matches!(plan.decision, Decision::Apply(..));
        if charged && let Err(refusal) = self.reserve(&plan, &entries, lease, &input).await {
            self.release(record, &refusal, &input).await;
            return Err(refusal);
        }
        let recheck = || self.recheck_limits(deadline);
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

    /// The last checks before the effect: kill switch and budget, then the policy as it is now.
    async fn reserve(
        &self,
        plan: &Plan,
        entries: &[UsageEntry],
        lease: Option<LeaseSnapshot>,
        input: &PlanInput,
    ) -> Result<(), ActionError> {
        self.budget.reserve(entries, lease, input.deadline).await?;
        let verdict = self.context.policy().judge_plan(self.request, plan, false);
        if verdict.refuse().is_err() {
            self.refund(entries, input).await;
        }
        verdict.refuse()
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

    async fn refund(&self, entries: &[UsageEntry], input: &PlanInput) {
        if let Err(error) = self.budget.refund(entries, record_deadline(input)).await {
            tracing::warn!(%error, "the action was not done, but its budget charge could not be removed");
        }
    }
}

/// What a plan charges to the budget: one action for its target, and one for each other object.
pub(super) fn usage_entries(plan: &Plan, input: &PlanInput, at: DateTime<Utc>) -> Vec<UsageEntry> {
    let others = plan.others.iter().map(|other| &other.target);
    let targets = std::iter::once(&plan.target).chain(others);
    targets.map(|target| UsageEntry::new(&input.id, &plan.target, target, at)).collect()
}
