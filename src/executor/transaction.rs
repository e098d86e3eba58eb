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
    actions::{Asked, Plan, Rest, Step, Todo, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, PendingApproval, RolloutState, rfc3339_millis},
    },
    executor::{
        apply,
        apply::{AFTERTHOUGHT, Done},
        context::{Context, stopped},
        drain::{Drain, Remaining},
        failpoint::Failpoint,
        wait,
        wait::DEFAULT_WAIT,
    },
    k8s::api::{
        client::Cluster,
        mutation::{Found, Made},
    },
    ledger::{
        Ledger, Settled, Standing, in_progress,
        record::{Intent, Record, State, Subject},
    },
    policy::{
        Policy, approval,
        budget::{
            Budget, Glance,
            usage::{Entry, SLACK},
        },
        evaluate::Facts,
    },
};

/// How often it is looked whether there is room now.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);

/// Time to record the answer once a wait has used up all the others.
const TO_RECORD: Duration = Duration::from_secs(5);

/// Carries out a real request, or finds the answer of an earlier try.
///
/// # Errors
/// Why nothing was done, or [`Code::OutcomeUnknown`].
pub(crate) async fn carry_out(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: Asked,
) -> Result<ActionResponse, ActionError> {
    let policy = context.policy();
    let ledger = Ledger::new(cluster, Subject::of(request, &asked.id));
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
    needs_approval: bool,
    /// What was seen of the budget; none where there is nothing to charge.
    glance: Option<Glance>,
}

/// What comes of a record that was there before.
enum Next {
    /// The request is ours now: make its effect.
    Act(Box<Record>, Box<Planned>, Asked),
    /// Its effect is made: what is left is the answer.
    Conclude(Box<Record>, Made),
    /// It waits for a person.
    AskPerson(Box<Record>, Box<Plan>),
    /// Somebody was quicker: look again.
    Again,
}

impl Transaction<'_> {
    /// Tries until there is an answer. Where a disruption budget has no room, who waits for the effect
    /// waits for room first; meanwhile nothing is claimed.
    async fn run(&self, mut asked: Asked) -> Result<ActionResponse, ActionError> {
        let mut told = String::new();
        loop {
            let refusal = match self.attempt(asked.clone()).await {
                Err(refusal) if refusal.code == Code::DisruptionBudget && asked.wait => refusal,
                answered => return answered,
            };
            if Instant::now() + LOOK_FOR_ROOM >= self.end {
                return Err(refusal);
            }
            if refusal.detail != told {
                self.context.tell(&refusal.detail);
                told.clone_from(&refusal.detail);
            }
            self.context.rest();
            let mut stopping = self.context.stopping();
            tokio::select! {
                () = stopped(&mut stopping) => return Err(refusal),
                () = sleep(LOOK_FOR_ROOM) => {}
            }
            // It is still the object that was refused, and none that may come under its name.
            asked.uid = asked.uid.or_else(|| refusal.about.as_deref().map(str::to_owned));
            asked.deadline = self.end.min(Instant::now() + self.context.deadline());
        }
    }

    async fn attempt(&self, asked: Asked) -> Result<ActionResponse, ActionError> {
        loop {
            let planned = self.plan(&asked).await;
            Failpoint::BeforeClaim.pass();
            let next = match (self.standing(&planned, &asked).await?, planned) {
                (Standing::Answered(record), _) => return self.replay(*record, &asked).await,
                (Standing::Effective(record), _) => {
                    return self.wait_on(self.ledger.take_up(*record), &asked).await;
                }
                (Standing::Held(until), _) => return Err(in_progress(until)),
                (Standing::Abandoned(record), _) => {
                    self.pick_up(self.ledger.take_up(*record), &asked).await?
                }
                (Standing::Free, Err(refusal)) => {
                    self.note(&refusal).await;
                    return Err(refusal);
                }
                (_, Err(refusal)) => return Err(refusal),
                (Standing::Ours(record), Ok(planned)) => {
                    Next::Act(record, Box::new(planned), asked.clone())
                }
                (Standing::Released(record), Ok(planned)) => {
                    self.take(*record, planned, &asked).await?
                }
                (Standing::Pending(record), Ok(planned)) => {
                    self.look_for_approval(*record, planned, &asked).await?
                }
                (Standing::Free, Ok(_)) => Next::Again,
            };
            match next {
                Next::Act(record, planned, asked) => {
                    return self.act(*record, *planned, asked).await;
                }
                Next::Conclude(record, made) => return self.conclude(*record, made, &asked).await,
                Next::AskPerson(record, plan) => return Ok(self.pending(&record, &plan, &asked)),
                Next::Again if Instant::now() < asked.deadline => {}
                Next::Again => return Err(in_progress(Utc::now())),
            }
        }
    }

    /// Decides, if the policy allows it and the budget seems to have room.
    async fn plan(&self, asked: &Asked) -> Result<Planned, ActionError> {
        self.policy.judge(&Facts::of(self.request, None)).refuse()?;
        let plan = apply::plan(self.context, self.cluster, self.request, asked).await?;
        let verdict = self.policy.judge_plan(self.request, &plan, false);
        let about = |refusal: ActionError| refusal.about(plan.found.uid.as_deref());
        verdict.refuse().map_err(about)?;
        let glance = match plan.todo {
            Todo::Make(..) => {
                let entries = entries(&plan, asked, Utc::now());
                self.budget.glance(&entries, asked.deadline).await.map_err(about)?
            }
            _ => None,
        };
        Ok(Planned { plan, needs_approval: verdict.needs_approval(), glance })
    }

    /// Claims what can be done. What cannot be done any more may have been done before.
    async fn standing(
        &self,
        planned: &Result<Planned, ActionError>,
        asked: &Asked,
    ) -> Result<Standing, ActionError> {
        match planned {
            Ok(planned) => self.ledger.open(&self.opening(planned, asked), asked.deadline).await,
            Err(refusal) if self.request.id.is_some() && is_of_this_request(refusal) => {
                match self.ledger.find(asked.deadline).await {
                    // Where the executor may do nothing it need not be able to look either.
                    Err(error) if error.code == Code::Forbidden && is_denied(refusal) => {
                        Ok(Standing::Free)
                    }
                    found => found,
                }
            }
            Err(_) => Ok(Standing::Free),
        }
    }

    /// The record with which a request begins.
    fn opening(&self, planned: &Planned, asked: &Asked) -> Record {
        let intent = self.intent(&planned.plan, asked);
        if planned.needs_approval {
            let valid = TimeDelta::seconds(self.policy.approval.valid_seconds.get() as i64);
            return self.ledger.plea(intent, Utc::now() + valid);
        }
        self.ledger.claim(intent, asked.deadline)
    }

    /// What a plan is about to do, and what will be answered if it goes well.
    fn intent(&self, plan: &Plan, asked: &Asked) -> Intent {
        let (effect, outcome, result) = match &plan.todo {
            Todo::Make(effect, did, _) => (Some((**effect).clone()), Outcome::Applied, did),
            Todo::AlreadyMade(_, result) => (None, Outcome::Applied, result),
            Todo::Nothing(result) => (None, Outcome::Unchanged, result),
        };
        let answer = self.answer(plan, asked, outcome, result.clone());
        let Plan { completion, decided_on, fallback, .. } = plan.clone();
        Intent { effect, completion, answer, decided_on, fallback, retaken: false }
    }

    fn answer(
        &self,
        plan: &Plan,
        asked: &Asked,
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
        asked: &Asked,
    ) -> Result<Next, ActionError> {
        let ours = self.opening(&planned, asked);
        let taken = self.ledger.take(&found, ours, asked.deadline).await?;
        Ok(match taken {
            None => Next::Again,
            Some(record) if planned.needs_approval => {
                Next::AskPerson(Box::new(record), Box::new(planned.plan))
            }
            Some(record) => Next::Act(Box::new(record), Box::new(planned), asked.clone()),
        })
    }

    /// Whether a person has said yes to this very plan, in time.
    async fn look_for_approval(
        &self,
        found: Record,
        planned: Planned,
        asked: &Asked,
    ) -> Result<Next, ActionError> {
        if Utc::now() >= found.until || !planned.needs_approval {
            return self.take(found, planned, asked).await;
        }
        let digest = approval::digest(&self.ledger.subject, &found, &planned.plan);
        let namespace = self.ledger.subject.namespace();
        let given = approval::given(self.cluster, namespace, &digest, asked.deadline).await?;
        let Some(by) = given else {
            return Ok(Next::AskPerson(Box::new(found), Box::new(planned.plan)));
        };
        tracing::info!(id = &*asked.id, digest, by, "approved");
        self.take(found, Planned { needs_approval: false, ..planned }, asked).await
    }

    /// What is answered while a person has not decided.
    fn pending(&self, record: &Record, plan: &Plan, asked: &Asked) -> ActionResponse {
        let digest = approval::digest(&self.ledger.subject, record, plan);
        let action = self.request.action.kind().name();
        let result = format!("{action} of {} waits for a person's approval.", plan.target);
        let mut answer = self.answer(plan, asked, Outcome::PendingApproval, result);
        answer.approval = Some(PendingApproval {
            command: approval::command(self.ledger.subject.namespace(), &digest),
            expires_at: rfc3339_millis(record.until),
            digest,
        });
        answer
    }

    /// Makes the effect of a request that is ours.
    async fn act(
        &self,
        mut record: Record,
        planned: Planned,
        asked: Asked,
    ) -> Result<ActionResponse, ActionError> {
        Failpoint::AfterClaim.pass();
        let Planned { plan, glance, .. } = planned;
        if !matches!(plan.todo, Todo::Nothing(..)) {
            self.context.claimed(&self.ledger.subject);
        }
        let deadline = asked.deadline.min(Instant::now() + SLACK);
        let asked = Asked { deadline, ..asked };
        let at = record.written_at.unwrap_or_else(Utc::now);
        let entries = entries(&plan, &asked, at);
        let counts = matches!(plan.todo, Todo::Make(..));
        if counts && let Err(refusal) = self.reserve(&plan, &entries, glance, &asked).await {
            self.release(record, &refusal, &asked).await;
            return Err(refusal);
        }
        let may_go_on = || self.may_go_on(deadline);
        let made = apply::make(self.context, self.cluster, self.request, &asked, plan, &may_go_on);
        match made.await {
            // What has gone under our hands may have gone by the try from which we took over.
            Ok(done) if counts && done.outcome == Outcome::Unchanged && record.intent.retaken => {
                self.conclude(record, Made::default(), &asked).await
            }
            Ok(done) => {
                if counts && done.outcome == Outcome::Unchanged {
                    self.refund(&entries, &asked).await;
                }
                let answer = self.answer_of(&record, &done, &asked);
                // Where the mark was found instead of made, what was intended then holds.
                if !matches!(done.plan.todo, Todo::AlreadyMade(..)) {
                    record.intent.completion = done.plan.completion;
                    record.intent.fallback = done.plan.fallback;
                }
                self.complete(record, done.made, answer, done.replayed, &asked).await
            }
            Err(error) if error.code == Code::OutcomeUnknown => {
                record.in_doubt();
                self.write(&mut record, closing(&asked)).await;
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
    fn may_go_on(&self, deadline: Instant) -> Step<'_, ()> {
        Box::pin(async move {
            self.context.policy().judge(&Facts::of(self.request, None)).refuse()?;
            self.budget.check_switch(deadline).await
        })
    }

    /// The last questions before the effect: the kill switch, the budget, the policy as it is now.
    async fn reserve(
        &self,
        plan: &Plan,
        entries: &[Entry],
        glance: Option<Glance>,
        asked: &Asked,
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
    fn answer_of(&self, record: &Record, done: &Done, asked: &Asked) -> ActionResponse {
        match done.plan.todo {
            Todo::AlreadyMade(..) => record.intent.answer.clone(),
            _ => self.answer(&done.plan, asked, done.outcome, done.result.clone()),
        }
    }

    /// Finds out what became of a claim whose holder's time is over, and goes on from there.
    async fn pick_up(&self, record: Record, asked: &Asked) -> Result<Next, ActionError> {
        if let Some(made) = self.recognise(&record, asked).await? {
            return Ok(Next::Conclude(Box::new(record), made));
        }
        // The same decision again, at the time of the first one and for the same object, so that the
        // answer does not depend on who gives it. What needed approval had it when it was claimed.
        let intended = &record.intent.answer;
        let (at, uid) = (intended.started_at, intended.target.uid.clone());
        let decided_on = record.intent.decided_on.clone();
        let asked = Asked { at, uid, decided_on, ..asked.clone() };
        let planned = match self.plan(&asked).await {
            Ok(planned) => planned,
            // It may be refused because the other try was slow and has made it just now.
            Err(refusal) => match self.recognise(&record, &asked).await? {
                Some(made) => return Ok(Next::Conclude(Box::new(record), made)),
                None => return Err(refusal),
            },
        };
        let intent = Intent { retaken: true, ..self.intent(&planned.plan, &asked) };
        let claim = self.ledger.claim(intent, asked.deadline);
        let taken = self.ledger.take(&record, claim, asked.deadline).await?;
        let act = |record| Next::Act(Box::new(record), Box::new(planned), asked);
        Ok(taken.map_or(Next::Again, act))
    }

    /// What the effect of a claim left behind; `None` if it was not made.
    async fn recognise(&self, record: &Record, asked: &Asked) -> Result<Option<Made>, ActionError> {
        let Some(effect) = &record.intent.effect else { return Ok(None) };
        match self.cluster.recognise(effect, asked.deadline).await? {
            Found::Made(made) => Ok(Some(made)),
            Found::NotMade => Ok(None),
            Found::Unknowable => Err(apply::unknown(
                effect,
                "its sender died, and the object has been changed by others since",
            )),
        }
    }

    /// Gives the answer of a try that made the effect and did not live to say so.
    async fn conclude(
        &self,
        record: Record,
        made: Made,
        asked: &Asked,
    ) -> Result<ActionResponse, ActionError> {
        let answer = record.intent.answer.clone();
        self.complete(record, made, answer, true, asked).await
    }

    /// Waits if that was asked for, and records the answer.
    async fn complete(
        &self,
        mut record: Record,
        made: Made,
        mut answer: ActionResponse,
        replayed: bool,
        asked: &Asked,
    ) -> Result<ActionResponse, ActionError> {
        answer.warnings.extend(made.told_warnings());
        if made.resource_version.is_some() {
            answer.target.resource_version.clone_from(&made.resource_version);
        }
        record.intent.answer = answer.clone();
        if asked.wait || record.intent.completion.is_work() {
            record.effective(made);
            self.write(&mut record, closing(asked)).await;
            self.context.claimed(&self.ledger.subject);
            self.finish(&record, &mut answer, asked).await;
            self.fall_back(&mut record, &mut answer).await;
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
        asked: &Asked,
    ) -> Result<ActionResponse, ActionError> {
        Failpoint::BeforeRecord.pass();
        record.answered(answer.clone());
        let deadline = closing(asked).max(Instant::now() + TO_RECORD);
        let settled = self.ledger.settle(&mut record, deadline).await;
        Failpoint::AfterRecord.pass();
        match settled {
            Ok(Settled::Written) => Ok(ActionResponse { replayed, ..answer }),
            Ok(Settled::Theirs(theirs)) => Ok(ActionResponse { replayed: true, ..*theirs }),
            Ok(Settled::Lost(until)) => Err(in_progress(until)),
            Err(error) => {
                let mut answer = ActionResponse { replayed, ..answer };
                let why = error.with_its_hint();
                answer.warnings.push(format!("the answer could not be recorded: {why}"));
                Ok(answer)
            }
        }
    }

    /// The answer of an earlier try, and the wait that it may not have been asked for.
    async fn replay(&self, record: Record, asked: &Asked) -> Result<ActionResponse, ActionError> {
        let answer = record.answer.clone().unwrap_or_else(|| record.intent.answer.clone());
        let mut answer = ActionResponse { replayed: true, ..answer };
        if asked.wait && answer.rollout.is_none() {
            self.finish(&record, &mut answer, asked).await;
        }
        Ok(answer)
    }

    /// The effect is made and another try waits for its completion, or did: so do we. If that has failed
    /// already and is being taken back, we go on from there.
    async fn wait_on(
        &self,
        mut record: Record,
        asked: &Asked,
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
        self.fall_back(&mut record, &mut answer).await;
        answer.finished_at = Utc::now();
        self.record(record, answer, true, asked).await
    }

    /// Does what is left to do, or waits until it is done, and adds to the answer what came of it.
    async fn finish(&self, record: &Record, answer: &mut ActionResponse, asked: &Asked) {
        self.context.rest();
        let made = record.made.clone().unwrap_or_default();
        let rollout = match record.intent.completion.given(&answer.target, &made) {
            Rest::Wait(completion) => {
                wait::until_complete(self.context, self.cluster, &completion, self.end).await
            }
            Rest::Drain(drained) => {
                let (context, cluster, end) = (self.context, self.cluster, self.end);
                let (id, node) = (&asked.id, &answer.target);
                let permit = |deadline| self.may_go_on(deadline);
                let remaining = Remaining { cluster, node, drained };
                let drain = Drain { context, remaining, id, end, permit: &permit };
                if asked.wait {
                    drain.until_gone().await
                } else {
                    match drain.once().await {
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

    async fn release(&self, mut record: Record, refusal: &ActionError, asked: &Asked) {
        record.released(refusal);
        self.write(&mut record, closing(asked)).await;
    }

    /// Writes a record on which nothing depends: without it the next try finds out by itself, later.
    async fn write(&self, record: &mut Record, deadline: Instant) {
        if let Err(error) = self.ledger.settle(record, deadline).await {
            tracing::warn!(%error, "the record could not be written");
        }
    }

    /// Notes a refusal that someone who looks after the target would want to know of.
    async fn note(&self, refusal: &ActionError) {
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
            self.ledger.note_refusal(refusal).await;
        }
    }

    async fn refund(&self, entries: &[Entry], asked: &Asked) {
        if let Err(error) = self.budget.refund(entries, closing(asked)).await {
            tracing::warn!(%error, "what was taken from the budget could not be given back");
        }
    }
}

/// What a plan takes from the budget: one action on its target, and one on each other object.
fn entries(plan: &Plan, asked: &Asked, at: DateTime<Utc>) -> Vec<Entry> {
    let others = plan.others.iter().map(|other| &other.target);
    let all = std::iter::once(&plan.target).chain(others);
    all.map(|target| Entry::new(&asked.id, &plan.target, target, at)).collect()
}

/// When the books are closed: a moment after the last call for the effect.
fn closing(asked: &Asked) -> Instant {
    asked.deadline + AFTERTHOUGHT
}

/// Whether it was this request that was refused, and not the cluster that did not answer.
fn is_of_this_request(refusal: &ActionError) -> bool {
    !refusal.code.retryable()
        || matches!(refusal.code, Code::RateLimited | Code::Stopped | Code::DisruptionBudget)
}

fn is_denied(refusal: &ActionError) -> bool {
    refusal.code == Code::PolicyDenied
}
