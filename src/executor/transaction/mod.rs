//! One real action, from its claim to its recorded answer, as a state machine.
//!
//! [`Transaction::attempt`] reads all it decides on at the same time: the request's record, the target with what it
//! depends on, the budget. What the record says decides the next step:
//!
//! | record | next |
//! |---|---|
//! | none | claim the request and charge the budget at the same time, apply the effect, complete ([`effect`]) |
//! | pending approval | check for the approval; then as above |
//! | claimed by another attempt | refuse: in progress |
//! | its claim expired, or in doubt | find evidence of the effect: complete, or take the claim over |
//! | applied, rolling back | join the wait, complete ([`conclude`]) |
//! | refused | take the record over |
//! | answered | replay the answer |
//!
//! A crash between any two steps leaves a record from which the next attempt resumes. It recognises the
//! effect or applies it, and never applies it twice. No action and no transport is known here.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};

use crate::{
    actions::{BoxFuture, Decision, Plan, PlanInput, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
    },
    executor::{
        apply,
        apply::RECOVERY_TIMEOUT,
        context::{Context, stopped},
        failpoint::Failpoint,
        selection::{self, SelectedBy},
    },
    k8s::{
        api::{client::Cluster, retry},
        effect::{Applied, Effect},
    },
    ledger::{
        ClaimState, Ledger, in_progress,
        record::{Record, RequestMetadata},
    },
    policy::{
        Policy, approval,
        budget::{Budget, LeaseSnapshot, usage::UsageEntry},
        evaluate::{Evaluation, Facts},
    },
};

mod claim;
mod conclude;
mod effect;
#[cfg(test)]
mod model;
mod report;

/// How often an action that waits for a disruption budget retries.
const PDB_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Executes a real request with the executor's own `cluster`, or finds the answer of an earlier attempt. If a
/// disruption budget allows nothing now and the request waits, it is polled; meanwhile nothing is claimed.
///
/// # Errors
/// Why nothing was done, or [`Code::OutcomeUnknown`].
pub(crate) async fn execute(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    selected_by: Option<&SelectedBy>,
    metadata: RequestMetadata,
    mut input: PlanInput,
) -> Result<ActionResponse, ActionError> {
    let policy = context.policy();
    let target_cluster = context.target_cluster("nothing can be done")?;
    let ledger = Ledger::new(cluster, metadata);
    let namespace = policy.state.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let budget = Budget::new(policy.budget_limits(), namespace, &policy.state.name, cluster);
    let end = Instant::now() + request.wait_time();
    let transaction = Transaction {
        context,
        own_cluster: cluster,
        cluster: target_cluster,
        request,
        selected_by,
        policy: &policy,
        ledger,
        budget,
        end,
        approver: OnceLock::new(),
    };
    let began = input.at;
    let mut reported = String::new();
    loop {
        let refusal = match transaction.attempt(input.clone()).await {
            Err(refusal) if refusal.code == Code::DisruptionBudget && input.wait => refusal,
            Err(error) if error.code == Code::OutcomeUnknown => {
                return Err(transaction.report_unknown(error, began).await);
            }
            Err(refusal) => return Err(transaction.name_last_request(refusal).await),
            done => return done,
        };
        if Instant::now() + PDB_POLL_INTERVAL >= end {
            return Err(refusal);
        }
        if refusal.detail != reported {
            context.observer().progress(&refusal.detail);
            reported.clone_from(&refusal.detail);
        }
        context.observer().waiting();
        let mut stopping = context.stopping();
        tokio::select! {
            () = stopped(&mut stopping) => return Err(refusal),
            () = sleep(PDB_POLL_INTERVAL) => {}
        }
        // The next attempt is for the object that was refused, and not for one that takes its name.
        input.uid = input.uid.or_else(|| refusal.refused_uid().map(str::to_owned));
        input.deadline = end.min(Instant::now() + context.deadline());
    }
}

pub(crate) struct Transaction<'a> {
    pub(super) context: &'a Context,
    /// The cluster with the executor's own identity, for what a person approved.
    own_cluster: &'a Cluster,
    /// The cluster for the calls about the target.
    pub(super) cluster: &'a Cluster,
    pub(super) request: &'a ActionRequest,
    /// How the target was chosen, if a selector chose it.
    selected_by: Option<&'a SelectedBy>,
    /// The policy when the request arrived; right before the effect the current one is checked.
    policy: &'a Arc<Policy>,
    pub(super) ledger: Ledger<'a>,
    pub(super) budget: Budget<'a>,
    /// When the wait for completion ends.
    end: Instant,
    /// The person who has approved the plan, as the approval names them, once it is found.
    approver: OnceLock<String>,
}

/// What can be done, and whether a person has to approve it first.
struct Planned {
    plan: Plan,
    requires_approval: bool,
    /// The approval of this plan, once it is found.
    approval: Option<Approval>,
    /// The effect of an earlier attempt at the request, if it may still come.
    earlier: Option<Effect>,
    /// Whether deletions that an earlier attempt has sent may still come.
    deletions_may_come: bool,
    /// What to charge to the budget; `None` if there is no effect.
    charge: Option<Charge>,
}

impl Planned {
    fn approved(self, approval: Approval) -> Self {
        Planned { requires_approval: false, approval: Some(approval), ..self }
    }
}

/// A person's approval of one plan.
struct Approval {
    /// As in the record that asked for it.
    nonce: String,
    digest: String,
    /// The person, as the approval names them.
    by: String,
}

impl Approval {
    /// Whether it is of this very plan.
    fn covers(&self, request: &RequestMetadata, plan: &Plan) -> bool {
        self.digest == approval::digest(request, &self.nonce, plan)
    }
}

/// What an effect costs.
struct Charge {
    entries: Vec<UsageEntry>,
    /// The time of the entries.
    at: Instant,
    /// The budget's Lease as it was checked; `None` without limits.
    lease: Option<LeaseSnapshot>,
    /// The result, once it is charged.
    result: Option<Result<(), ActionError>>,
}

/// What follows from the record.
enum NextStep {
    /// The claim is ours: apply the effect.
    Act(Box<Record>, Box<Planned>, PlanInput),
    /// The effect is applied: complete the record.
    Conclude(Box<Record>, Applied),
    /// A person has to approve it.
    AskApproval(Box<Record>, Box<Plan>),
    /// Another attempt changed the record: plan and read it again.
    Again,
}

impl Transaction<'_> {
    /// One way through the state machine.
    async fn attempt(&self, input: PlanInput) -> Result<ActionResponse, ActionError> {
        let mut backoff = retry::backoff();
        loop {
            let (planned, found) = tokio::join!(self.plan(&input), self.find_record(&input));
            Failpoint::BeforeClaim.pass();
            let (found, planned) = self.claim(planned, found, &input).await?;
            let step = match (found, planned) {
                (ClaimState::Answered(record), _) => {
                    return Box::pin(self.replay(*record, &input)).await;
                }
                (ClaimState::Applied(record), _) => {
                    let record = self.ledger.resume(*record);
                    return Box::pin(self.join_wait(record, &input)).await;
                }
                (ClaimState::Held(until), _) => return Err(self.in_progress(until)),
                (ClaimState::Abandoned(record), _) => {
                    self.resume_abandoned(self.ledger.resume(*record), &input).await?
                }
                (ClaimState::Free, Err(refusal)) => {
                    self.record_refusal(&refusal).await;
                    return Err(refusal);
                }
                (_, Err(refusal)) => return Err(refusal),
                (ClaimState::Ours(record), Ok(planned)) => {
                    NextStep::Act(record, Box::new(planned), input.clone())
                }
                (ClaimState::Refused(record), Ok(planned)) => {
                    self.take(*record, planned, &input).await?
                }
                (ClaimState::Pending(record), Ok(planned)) => {
                    self.check_approval(*record, planned, &input).await?
                }
                (ClaimState::Free, Ok(_)) => NextStep::Again,
            };
            match step {
                NextStep::Act(record, planned, input) => {
                    return Box::pin(self.act(*record, *planned, input)).await;
                }
                NextStep::Conclude(record, applied) => {
                    return Box::pin(self.conclude(*record, applied, &input)).await;
                }
                NextStep::AskApproval(record, plan) => {
                    let response = self.pending_approval(&record, &plan, &input);
                    self.context.reports().notify(&self.ledger.request, &response);
                    return Ok(response);
                }
                NextStep::Again if Instant::now() < input.deadline => {
                    sleep(backoff.next().unwrap_or_default()).await;
                }
                NextStep::Again => return Err(self.in_progress(self.cluster.now())),
            }
        }
    }

    /// Plans, if the policy allows it and the budget appears to allow it.
    async fn plan(&self, input: &PlanInput) -> Result<Planned, ActionError> {
        self.policy.judge(&Facts::of(self.request, None)).refuse()?;
        let (plan, lease) = tokio::join!(
            apply::plan(self.context, self.cluster, self.request, input),
            self.budget.snapshot(input.deadline),
        );
        let mut plan = plan?;
        let evaluation = self.policy.judge_plan(self.request, &plan, false);
        let uid = plan.found.uid.clone();
        let with_object = |refusal: ActionError| refusal.object_uid(uid.as_deref());
        evaluation
            .refuse()
            .and_then(|()| self.check_selected(&evaluation, &plan))
            .map_err(with_object)?;
        let mut requires_approval = self.selected_by.is_none() && evaluation.requires_approval();
        let charge = match plan.decision {
            Decision::Apply { .. } | Decision::DeleteEach(..) => {
                let charge = self.charge_of(&plan, input, lease.map_err(with_object)?);
                self.budget.check(charge.lease.as_ref(), &charge.entries).map_err(with_object)?;
                Some(charge)
            }
            // Each target's own request is charged.
            Decision::EachTarget(_) => {
                let charge = self.charge_of(&plan, input, lease?);
                self.budget.check(charge.lease.as_ref(), &charge.entries)?;
                let Transaction { context, cluster, request, policy, .. } = self;
                let each =
                    selection::plan_each(context, cluster, request, input, policy, &mut plan);
                requires_approval |= Box::pin(each).await?;
                None
            }
            _ => None,
        };
        Ok(Planned {
            plan,
            requires_approval,
            approval: None,
            earlier: None,
            deletions_may_come: false,
            charge,
        })
    }

    /// Checks that a target that a selector chose is as it was chosen, and approved if it has to be.
    fn check_selected(&self, evaluation: &Evaluation, plan: &Plan) -> Result<(), ActionError> {
        let Some(selected_by) = self.selected_by else { return Ok(()) };
        selected_by.check(plan)?;
        if plan.is_change() { selected_by.check_approved(evaluation, plan) } else { Ok(()) }
    }

    /// Checks policy and kill switch as they are now, before any further change.
    fn recheck_limits(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        let evaluation = self.context.policy().judge(&Facts::of(self.request, None));
        self.recheck(evaluation.refuse(), deadline)
    }

    /// The same for a further plan of the effect, whose target may have other labels now. What was approved was
    /// the plan before.
    fn recheck_plan(
        &self,
        plan: &Plan,
        approval: Option<&Approval>,
        deadline: Instant,
    ) -> BoxFuture<'_, ()> {
        self.recheck(self.judge_now(plan, approval), deadline)
    }

    fn recheck(&self, allowed: Result<(), ActionError>, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            allowed?;
            self.budget.check_switch(deadline).await
        })
    }

    /// Whether the policy as it is now allows this plan, given what was approved.
    fn judge_now(&self, plan: &Plan, approval: Option<&Approval>) -> Result<(), ActionError> {
        let evaluation = self.context.policy().judge_plan(self.request, plan, false);
        evaluation.refuse()?;
        if self.selected_by.is_some() {
            return self.check_selected(&evaluation, plan);
        }
        let covers = |it: &Approval| it.covers(&self.ledger.request, plan);
        if !evaluation.requires_approval() || approval.is_some_and(covers) {
            return Ok(());
        }
        let detail = format!(
            "{} in its current state needs a person's approval; nothing was done",
            plan.target
        );
        Err(ActionError::new(Code::Conflict, detail)
            .with_hint("resend the same request to ask for it")
            .with_retry_after(Some(Duration::from_secs(1))))
    }

    fn in_progress(&self, until: DateTime<Utc>) -> ActionError {
        in_progress(until, self.cluster.now())
    }

    /// Names the request that acted last on the target, if that is why this one is refused and its record is found: a
    /// retry that was sent with another id learns which one to read.
    async fn name_last_request(&self, refusal: ActionError) -> ActionError {
        let last = refusal.refused.as_ref().and_then(|refused| refused.last_request.as_deref());
        let Some(digest) = last else { return refusal };
        let Some(id) = self.ledger.id_of(digest).await else { return refusal };
        let hint = refusal.hint.as_deref().unwrap_or_default().to_owned();
        refusal.with_hint(format!(
            "{hint}; request '{id}' acted last: if this is a retry of it, use its id to get its answer"
        ))
    }

    /// Writes a record that nothing depends on: without it the next attempt finds out by itself, later.
    async fn write(&self, record: &mut Record, deadline: Instant) {
        if let Err(error) = self.ledger.settle(record, deadline).await {
            tracing::warn!(%error, "the record could not be written");
        }
    }

    /// Records a refusal that the target's owner may want to know about.
    async fn record_refusal(&self, refusal: &ActionError) {
        if concerns_owner(refusal.code) {
            self.ledger.record_refusal(refusal).await;
        }
    }
}

/// Until when records are written: a little longer than calls for the effect are made.
fn record_deadline(input: &PlanInput) -> Instant {
    input.deadline + RECOVERY_TIMEOUT
}

/// Whether the target's owner may want to know about a refusal of this kind.
fn concerns_owner(code: Code) -> bool {
    matches!(
        code,
        Code::PolicyDenied
            | Code::RateLimited
            | Code::Stopped
            | Code::TargetNotFound
            | Code::NoRevision
            | Code::TargetPaused
            | Code::TargetUnmanaged
            | Code::TargetManaged
            | Code::NoEffect
            | Code::DrainBlocked
            | Code::PreconditionFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_informed_of_refusals_and_not_of_outages() {
        for code in [Code::PolicyDenied, Code::RateLimited, Code::Stopped, Code::TargetNotFound] {
            assert!(concerns_owner(code), "{code}");
        }
        for code in [Code::ClusterUnavailable, Code::Forbidden, Code::Conflict] {
            assert!(!concerns_owner(code), "{code}");
        }
    }
}
