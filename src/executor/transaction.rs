//! One real action, from its claim to its recorded answer.
//!
//! In order: decide from what the cluster and the policy say; claim the request in the ledger, or ask
//! for a person's approval there; take from the budget, which also looks at the kill switch; make the
//! effect; wait for its completion if that was asked for; record the answer. A crash between any two of
//! these leaves a record from which the next try of the same request goes on: it recognises the effect
//! or makes it, and never makes it twice.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep};

use crate::{
    actions::{BoxFuture, Decision, FollowUp, Plan, PlanInput, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, PendingApproval, RolloutState, rfc3339_millis},
    },
    executor::{
        apply,
        apply::{Execution, RECOVERY_TIMEOUT},
        context::{Context, stopped},
        drain::{Drain, Remaining},
        failpoint::Failpoint,
        wait,
        wait::DEFAULT_WAIT,
    },
    k8s::api::{
        client::Cluster,
        mutation::{Applied, Evidence},
    },
    ledger::{
        ClaimState, Commit, Ledger, in_progress,
        record::{Intent, Record, RequestMetadata, State},
    },
    policy::{
        Policy, approval,
        budget::{
            Budget, LeaseSnapshot,
            usage::{EFFECT_WINDOW, UsageEntry},
        },
        evaluate::Facts,
    },
};

/// How often it is looked whether there is room now.
const BUDGET_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time to record the answer once a wait has used up all the others.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// Carries out a real request, or finds the answer of an earlier try.
///
/// # Errors
/// Why nothing was done, or [`Code::OutcomeUnknown`].
pub(crate) async fn execute(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: PlanInput,
) -> Result<ActionResponse, ActionError> {
    let policy = context.policy();
    let ledger = Ledger::new(cluster, RequestMetadata::of(request, &asked.id));
    let budget = Budget::of(&policy, cluster);
    let end = Instant::now() + request.timeout.unwrap_or(DEFAULT_WAIT);
    Transaction { context, cluster, request, policy: &policy, ledger, budget, end }.run(asked).await
}

pub(crate) struct Transaction<'a> {
    pub(crate) context: &'a Context,
    pub(crate) cluster: &'a Cluster,
    pub(crate) request: &'a ActionRequest,
    /// The policy as it was at the beginning; before the effect it is asked for again.
    pub(crate) policy: &'a Policy,
    pub(crate) ledger: Ledger<'a>,
    pub(crate) budget: Budget<'a>,
    /// When a wait for completion ends.
    pub(crate) end: Instant,
}

/// What can be done, and whether a person has to approve it first.
struct Planned {
    plan: Plan,
    requires_approval: bool,
    /// What was seen of the budget; none where there is nothing to charge.
    glance: Option<LeaseSnapshot>,
}

/// What comes of a record that was there before.
enum Step {
    /// The request is ours now: make its effect.
    Act(Box<Record>, Box<Planned>, PlanInput),
    /// Its effect is made: what is left is the answer.
    Conclude(Box<Record>, Applied),
    /// It waits for a person.
    AskPerson(Box<Record>, Box<Plan>),
    /// Somebody was quicker: look again.
    Again,
}

impl Transaction<'_> {
    /// Tries until there is an answer. Where a disruption budget has no room, who waits for the effect
    /// waits for room first; meanwhile nothing is claimed.
    async fn run(&self, mut asked: PlanInput) -> Result<ActionResponse, ActionError> {
        let mut told = String::new();
        loop {
            let refusal = match self.attempt(asked.clone()).await {
                Err(refusal) if refusal.code == Code::DisruptionBudget && asked.wait => refusal,
                answered => return answered,
            };
            if Instant::now() + BUDGET_POLL_INTERVAL >= self.end {
                return Err(refusal);
            }
            if refusal.detail != told {
                self.context.progress(&refusal.detail);
                told.clone_from(&refusal.detail);
            }
            self.context.waiting();
            let mut stopping = self.context.stopping();
            tokio::select! {
                () = stopped(&mut stopping) => return Err(refusal),
                () = sleep(BUDGET_POLL_INTERVAL) => {}
            }
            // It is still the object that was refused, and none that may come under its name.
            asked.uid = asked.uid.or_else(|| refusal.about.as_deref().map(str::to_owned));
            asked.deadline = self.end.min(Instant::now() + self.context.deadline());
        }
    }

    async fn attempt(&self, asked: PlanInput) -> Result<ActionResponse, ActionError> {
        loop {
            let planned = self.plan(&asked).await;
            Failpoint::BeforeClaim.pass();
            let next = match (self.claim_or_find(&planned, &asked).await?, planned) {
                (ClaimState::Answered(record), _) => return self.replay(*record, &asked).await,
                (ClaimState::Applied(record), _) => {
                    return self.join_wait(self.ledger.adopt(*record), &asked).await;
                }
                (ClaimState::Held(until), _) => return Err(in_progress(until)),
                (ClaimState::Abandoned(record), _) => {
                    self.resume_abandoned(self.ledger.adopt(*record), &asked).await?
                }
                (ClaimState::Free, Err(refusal)) => {
                    self.record_refusal(&refusal).await;
                    return Err(refusal);
                }
                (_, Err(refusal)) => return Err(refusal),
                (ClaimState::Ours(record), Ok(planned)) => {
                    Step::Act(record, Box::new(planned), asked.clone())
                }
                (ClaimState::Refused(record), Ok(planned)) => {
                    self.take(*record, planned, &asked).await?
                }
                (ClaimState::Pending(record), Ok(planned)) => {
                    self.check_approval(*record, planned, &asked).await?
                }
                (ClaimState::Free, Ok(_)) => Step::Again,
            };
            match next {
                Step::Act(record, planned, asked) => {
                    return self.act(*record, *planned, asked).await;
                }
                Step::Conclude(record, made) => return self.conclude(*record, made, &asked).await,
                Step::AskPerson(record, plan) => return Ok(self.pending(&record, &plan, &asked)),
                Step::Again if Instant::now() < asked.deadline => {}
                Step::Again => return Err(in_progress(Utc::now())),
            }
        }
    }

    /// Decides, if the policy allows it and the budget seems to have room.
    async fn plan(&self, asked: &PlanInput) -> Result<Planned, ActionError> {
        self.policy.judge(&Facts::of(self.request, None)).refuse()?;
        let plan = apply::plan(self.context, self.cluster, self.request, asked).await?;
        let verdict = self.policy.judge_plan(self.request, &plan, false);
        let about = |refusal: ActionError| refusal.object_uid(plan.found.uid.as_deref());
        verdict.refuse().map_err(about)?;
        let glance = match plan.decision {
            Decision::Apply(..) => {
                let entries = entries(&plan, asked, Utc::now());
                self.budget.check(&entries, asked.deadline).await.map_err(about)?
            }
            _ => None,
        };
        Ok(Planned { plan, requires_approval: verdict.requires_approval(), glance })
    }

    /// Claims what can be done. What cannot be done any more may have been done before.
    async fn claim_or_find(
        &self,
        planned: &Result<Planned, ActionError>,
        asked: &PlanInput,
    ) -> Result<ClaimState, ActionError> {
        match planned {
            Ok(planned) => {
                self.ledger.open(&self.initial_record(planned, asked), asked.deadline).await
            }
            Err(refusal) if self.request.id.is_some() && is_of_this_request(refusal) => {
                match self.ledger.find(asked.deadline).await {
                    // Where the executor may do nothing it need not be able to look either.
                    Err(error) if error.code == Code::Forbidden && is_denied(refusal) => {
                        Ok(ClaimState::Free)
                    }
                    found => found,
                }
            }
            Err(_) => Ok(ClaimState::Free),
        }
    }

    /// The record with which a request begins.
    fn initial_record(&self, planned: &Planned, asked: &PlanInput) -> Record {
        let intent = self.intent(&planned.plan, asked);
        if planned.requires_approval {
            let valid = TimeDelta::seconds(self.policy.approval.valid_seconds.get() as i64);
            return self.ledger.approval_request(intent, Utc::now() + valid);
        }
        self.ledger.claim(intent, asked.deadline)
    }

    /// What a plan is about to do, and what will be answered if it goes well.
    fn intent(&self, plan: &Plan, asked: &PlanInput) -> Intent {
        let (effect, outcome, result) = match &plan.decision {
            Decision::Apply(effect, did, _) => (Some((**effect).clone()), Outcome::Applied, did),
            Decision::AlreadyApplied(_, result) => (None, Outcome::Applied, result),
            Decision::NoOp(result) => (None, Outcome::Unchanged, result),
        };
        let answer = self.answer(plan, asked, outcome, result.clone());
        let Plan { completion, decided_on, fallback, .. } = plan.clone();
        Intent { effect, completion, answer, decided_on, fallback, taken_over: false }
    }

    fn answer(
        &self,
        plan: &Plan,
        asked: &PlanInput,
        outcome: Outcome,
        result: String,
    ) -> ActionResponse {
        let mut answer = ActionResponse::to(self.request, asked, outcome, result);
        answer.target = plan.target.clone();
        answer.changes = plan.changes.clone();
        answer.warnings.extend(plan.warnings.iter().cloned());
        answer
    }

    /// Begins anew on a record that is free to be taken.
    async fn take(
        &self,
        found: Record,
        planned: Planned,
        asked: &PlanInput,
    ) -> Result<Step, ActionError> {
        let ours = self.initial_record(&planned, asked);
        let taken = self.ledger.take(&found, ours, asked.deadline).await?;
        Ok(match taken {
            None => Step::Again,
            Some(record) if planned.requires_approval => {
                Step::AskPerson(Box::new(record), Box::new(planned.plan))
            }
            Some(record) => Step::Act(Box::new(record), Box::new(planned), asked.clone()),
        })
    }

    /// Whether a person has said yes to this very plan, in time.
    async fn check_approval(
        &self,
        found: Record,
        planned: Planned,
        asked: &PlanInput,
    ) -> Result<Step, ActionError> {
        if Utc::now() >= found.expires_at || !planned.requires_approval {
            return self.take(found, planned, asked).await;
        }
        let digest = approval::digest(&self.ledger.subject, &found, &planned.plan);
        let namespace = self.ledger.subject.namespace();
        let given = approval::given(self.cluster, namespace, &digest, asked.deadline).await?;
        let Some(by) = given else {
            return Ok(Step::AskPerson(Box::new(found), Box::new(planned.plan)));
        };
        tracing::info!(id = &*asked.id, digest, by, "approved");
        self.take(found, Planned { requires_approval: false, ..planned }, asked).await
    }

    /// What is answered while a person has not decided.
    fn pending(&self, record: &Record, plan: &Plan, asked: &PlanInput) -> ActionResponse {
        let digest = approval::digest(&self.ledger.subject, record, plan);
        let action = self.request.action.kind().name();
        let result = format!("{action} of {} waits for a person's approval.", plan.target);
        let mut answer = self.answer(plan, asked, Outcome::PendingApproval, result);
        answer.approval = Some(PendingApproval {
            command: approval::command(self.ledger.subject.namespace(), &digest),
            expires_at: rfc3339_millis(record.expires_at),
            digest,
        });
        answer
    }

    /// Makes the effect of a request that is ours.
    async fn act(
        &self,
        mut record: Record,
        planned: Planned,
        asked: PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        Failpoint::AfterClaim.pass();
        let Planned { plan, glance, .. } = planned;
        if !matches!(plan.decision, Decision::NoOp(..)) {
            self.context.claimed(&self.ledger.subject);
        }
        let deadline = asked.deadline.min(Instant::now() + EFFECT_WINDOW);
        let asked = PlanInput { deadline, ..asked };
        let at = record.written_at.unwrap_or_else(Utc::now);
        let entries = entries(&plan, &asked, at);
        let counts = matches!(plan.decision, Decision::Apply(..));
        if counts && let Err(refusal) = self.reserve(&plan, &entries, glance, &asked).await {
            self.release(record, &refusal, &asked).await;
            return Err(refusal);
        }
        let may_go_on = || self.recheck_limits(deadline);
        let made = apply::apply(self.context, self.cluster, self.request, &asked, plan, &may_go_on);
        match made.await {
            // What has gone under our hands may have gone by the try from which we took over.
            Ok(done)
                if counts && done.outcome == Outcome::Unchanged && record.intent.taken_over =>
            {
                self.conclude(record, Applied::default(), &asked).await
            }
            Ok(done) => {
                if counts && done.outcome == Outcome::Unchanged {
                    self.refund(&entries, &asked).await;
                }
                let answer = self.answer_of(&record, &done, &asked);
                // Where the mark was found instead of made, what was intended then holds.
                if !matches!(done.plan.decision, Decision::AlreadyApplied(..)) {
                    record.intent.completion = done.plan.completion;
                    record.intent.fallback = done.plan.fallback;
                }
                self.complete(record, done.made, answer, done.replayed, &asked).await
            }
            Err(error) if error.code == Code::OutcomeUnknown => {
                record.in_doubt();
                self.write(&mut record, record_deadline(&asked)).await;
                Err(error)
            }
            Err(error) => {
                if counts {
                    self.refund(&entries, &asked).await;
                }
                self.release(record, &error, &asked).await;
                Err(error)
            }
        }
    }

    /// Whether policy and kill switch, as they are now, still let the request change anything.
    fn recheck_limits(&self, deadline: Instant) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.context.policy().judge(&Facts::of(self.request, None)).refuse()?;
            self.budget.check_switch(deadline).await
        })
    }

    /// The last questions before the effect: the kill switch, the budget, the policy as it is now.
    async fn reserve(
        &self,
        plan: &Plan,
        entries: &[UsageEntry],
        glance: Option<LeaseSnapshot>,
        asked: &PlanInput,
    ) -> Result<(), ActionError> {
        self.budget.reserve(entries, glance, asked.deadline).await?;
        let verdict = self.context.policy().judge_plan(self.request, plan, false);
        if verdict.refuse().is_err() {
            self.refund(entries, asked).await;
        }
        verdict.refuse()
    }

    /// The answer about what was done. Where the mark was found instead of made, the answer is the one
    /// that was intended.
    fn answer_of(&self, record: &Record, done: &Execution, asked: &PlanInput) -> ActionResponse {
        match done.plan.decision {
            Decision::AlreadyApplied(..) => record.intent.answer.clone(),
            _ => self.answer(&done.plan, asked, done.outcome, done.result.clone()),
        }
    }

    /// Finds out what became of a claim whose holder's time is over, and goes on from there.
    async fn resume_abandoned(
        &self,
        record: Record,
        asked: &PlanInput,
    ) -> Result<Step, ActionError> {
        if let Some(made) = self.find_evidence(&record, asked).await? {
            return Ok(Step::Conclude(Box::new(record), made));
        }
        // The same decision again, at the time of the first one and for the same object, so that the
        // answer does not depend on who gives it. What needed approval had it when it was claimed.
        let intended = &record.intent.answer;
        let (at, uid) = (intended.started_at, intended.target.uid.clone());
        let decided_on = record.intent.decided_on.clone();
        let asked = PlanInput { at, uid, decision_etag: decided_on, ..asked.clone() };
        let planned = match self.plan(&asked).await {
            Ok(planned) => planned,
            // It may be refused because the other try was slow and has made it just now.
            Err(refusal) => match self.find_evidence(&record, &asked).await? {
                Some(made) => return Ok(Step::Conclude(Box::new(record), made)),
                None => return Err(refusal),
            },
        };
        let intent = Intent { taken_over: true, ..self.intent(&planned.plan, &asked) };
        let claim = self.ledger.claim(intent, asked.deadline);
        let taken = self.ledger.take(&record, claim, asked.deadline).await?;
        let act = |record| Step::Act(Box::new(record), Box::new(planned), asked);
        Ok(taken.map_or(Step::Again, act))
    }

    /// What the effect of a claim left behind; `None` if it was not made.
    async fn find_evidence(
        &self,
        record: &Record,
        asked: &PlanInput,
    ) -> Result<Option<Applied>, ActionError> {
        let Some(effect) = &record.intent.effect else { return Ok(None) };
        match self.cluster.find_evidence(effect, asked.deadline).await? {
            Evidence::Made(made) => Ok(Some(made)),
            Evidence::NotMade => Ok(None),
            Evidence::Unknowable => Err(apply::unknown(
                effect,
                "its sender died, and the object has been changed by others since",
            )),
        }
    }

    /// Gives the answer of a try that made the effect and did not live to say so.
    async fn conclude(
        &self,
        record: Record,
        made: Applied,
        asked: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let answer = record.intent.answer.clone();
        self.complete(record, made, answer, true, asked).await
    }

    /// Waits if that was asked for, and records the answer.
    async fn complete(
        &self,
        mut record: Record,
        made: Applied,
        mut answer: ActionResponse,
        replayed: bool,
        asked: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        answer.warnings.extend(made.warnings_for_answer());
        if made.resource_version.is_some() {
            answer.target.resource_version.clone_from(&made.resource_version);
        }
        record.intent.answer = answer.clone();
        if asked.wait || record.intent.completion.is_work() {
            record.applied(made);
            self.write(&mut record, record_deadline(asked)).await;
            self.context.claimed(&self.ledger.subject);
            self.finish(&record, &mut answer, asked).await;
            self.roll_back_if_failed(&mut record, &mut answer).await;
        } else {
            record.made = Some(made);
        }
        answer.finished_at = Utc::now();
        self.record(record, answer, replayed, asked).await
    }

    /// Records the answer and gives it, or gives the one that another try has recorded first.
    async fn record(
        &self,
        mut record: Record,
        answer: ActionResponse,
        replayed: bool,
        asked: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        Failpoint::BeforeRecord.pass();
        record.answered(answer.clone());
        let deadline = record_deadline(asked).max(Instant::now() + RECORD_TIMEOUT);
        let settled = self.ledger.settle(&mut record, deadline).await;
        Failpoint::AfterRecord.pass();
        match settled {
            Ok(Commit::Stored) => Ok(ActionResponse { replayed, ..answer }),
            Ok(Commit::Superseded(theirs)) => Ok(ActionResponse { replayed: true, ..*theirs }),
            Ok(Commit::LostClaim(until)) => Err(in_progress(until)),
            Err(error) => {
                let mut answer = ActionResponse { replayed, ..answer };
                let why = error.with_its_hint();
                answer.warnings.push(format!("the answer could not be recorded: {why}"));
                Ok(answer)
            }
        }
    }

    /// The answer of an earlier try, and the wait that it may not have been asked for.
    async fn replay(
        &self,
        record: Record,
        asked: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let answer = record.answer.clone().unwrap_or_else(|| record.intent.answer.clone());
        let mut answer = ActionResponse { replayed: true, ..answer };
        if asked.wait && answer.rollout.is_none() {
            self.finish(&record, &mut answer, asked).await;
        }
        Ok(answer)
    }

    /// The effect is made and another try waits for its completion, or did: so do we. If that has failed
    /// already and is being taken back, we go on from there.
    async fn join_wait(
        &self,
        mut record: Record,
        asked: &PlanInput,
    ) -> Result<ActionResponse, ActionError> {
        let so_far = record.answer.clone().filter(|_| record.state == State::RollingBack);
        let has_failed = so_far.is_some();
        let mut answer = so_far.unwrap_or_else(|| record.intent.answer.clone());
        if !asked.wait && !record.intent.completion.is_work() {
            return Ok(ActionResponse { replayed: true, ..answer });
        }
        self.context.claimed(&self.ledger.subject);
        if !has_failed {
            self.finish(&record, &mut answer, asked).await;
        }
        self.roll_back_if_failed(&mut record, &mut answer).await;
        answer.finished_at = Utc::now();
        self.record(record, answer, true, asked).await
    }

    /// Does what is left to do, or waits until it is done, and adds to the answer what came of it.
    async fn finish(&self, record: &Record, answer: &mut ActionResponse, asked: &PlanInput) {
        self.context.waiting();
        let made = record.made.clone().unwrap_or_default();
        let rollout = match record.intent.completion.given(&answer.target, &made) {
            FollowUp::Wait(completion) => {
                wait::until_complete(self.context, self.cluster, &completion, self.end).await
            }
            FollowUp::Drain(drained) => {
                let (context, cluster, end) = (self.context, self.cluster, self.end);
                let (id, node) = (&asked.id, &answer.target);
                let permit = |deadline| self.recheck_limits(deadline);
                let remaining = Remaining { cluster, node, drained };
                let drain = Drain { context, remaining, id, end, permit: &permit };
                if asked.wait {
                    drain.until_gone().await
                } else {
                    match drain.evict_once().await {
                        Ok(sentence) => {
                            answer.result = format!("{} {sentence}", answer.result);
                            return;
                        }
                        Err(rollout) => rollout,
                    }
                }
            }
        };
        if rollout.state != RolloutState::Complete {
            answer.outcome = Outcome::Failed;
        }
        answer.result = format!("{} {rollout}", answer.result);
        answer.rollout = Some(rollout);
    }

    async fn release(&self, mut record: Record, refusal: &ActionError, asked: &PlanInput) {
        record.refused(refusal);
        self.write(&mut record, record_deadline(asked)).await;
    }

    /// Writes a record on which nothing depends: without it the next try finds out by itself, later.
    async fn write(&self, record: &mut Record, deadline: Instant) {
        if let Err(error) = self.ledger.settle(record, deadline).await {
            tracing::warn!(%error, "the record could not be written");
        }
    }

    /// Notes a refusal that someone who looks after the target would want to know of.
    async fn record_refusal(&self, refusal: &ActionError) {
        let of_interest = matches!(
            refusal.code,
            Code::PolicyDenied
                | Code::RateLimited
                | Code::Stopped
                | Code::TargetPaused
                | Code::TargetUnmanaged
                | Code::TargetManaged
                | Code::NoEffect
                | Code::DrainBlocked
                | Code::PreconditionFailed
        );
        if of_interest {
            self.ledger.record_refusal(refusal).await;
        }
    }

    async fn refund(&self, entries: &[UsageEntry], asked: &PlanInput) {
        if let Err(error) = self.budget.refund(entries, record_deadline(asked)).await {
            tracing::warn!(%error, "what was taken from the budget could not be given back");
        }
    }
}

/// What a plan takes from the budget: one action on its target, and one on each other object.
fn entries(plan: &Plan, asked: &PlanInput, at: DateTime<Utc>) -> Vec<UsageEntry> {
    let others = plan.others.iter().map(|other| &other.target);
    let all = std::iter::once(&plan.target).chain(others);
    all.map(|target| UsageEntry::new(&asked.id, &plan.target, target, at)).collect()
}

/// When the books are closed: a moment after the last call for the effect.
fn record_deadline(asked: &PlanInput) -> Instant {
    asked.deadline + RECOVERY_TIMEOUT
}

/// Whether it was this request that was refused, and not the cluster that did not answer.
fn is_of_this_request(refusal: &ActionError) -> bool {
    !refusal.code.retryable()
        || matches!(refusal.code, Code::RateLimited | Code::Stopped | Code::DisruptionBudget)
}

fn is_denied(refusal: &ActionError) -> bool {
    refusal.code == Code::PolicyDenied
}
