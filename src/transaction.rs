//! One real action, from its claim to its recorded answer.
//!
//! In order: decide from what the cluster says; claim the request in the ledger; take from the
//! budget, which also looks at the kill switch; make the effect; wait for its completion if that was
//! asked for; record the answer. A crash between any two of these leaves a record from which the next
//! try of the same request goes on: it recognises the effect or makes it, and never makes it twice.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use crate::{
    actions::{Asked, Plan, Step, Todo},
    budget::{
        Budget,
        spent::{Entry, SLACK},
    },
    context::Context,
    error::{ActionError, Code},
    execution::{self, AFTERTHOUGHT, Done},
    failpoint::Failpoint,
    handler::DEFAULT_WAIT,
    k8s::{
        cluster::Cluster,
        effect::{Found, Made},
    },
    ledger::{
        Ledger, Standing, in_progress,
        record::{Intent, Record, Subject},
    },
    request::ActionRequest,
    response::{ActionResponse, Outcome, RolloutState},
    wait,
};

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
    let ledger = Ledger::new(cluster, Subject::of(request, &asked.id));
    let budget = context.budget(cluster);
    let end = Instant::now() + request.timeout.unwrap_or(DEFAULT_WAIT);
    Transaction { context, cluster, request, ledger, budget, end }.run(asked).await
}

struct Transaction<'a> {
    context: &'a Context,
    cluster: &'a Cluster,
    request: &'a ActionRequest,
    ledger: Ledger<'a>,
    budget: Budget<'a>,
    /// When a wait for completion ends.
    end: Instant,
}

/// What an earlier try left to do.
enum Taken {
    /// The request is ours now, with the plan to go on with.
    Over(Box<Record>, Box<Plan>, Asked),
    /// Its effect is made: what is left is the answer.
    Done(Box<Record>, Made),
    /// Somebody was quicker: look again.
    Lost,
}

impl Transaction<'_> {
    async fn run(&self, asked: Asked) -> Result<ActionResponse, ActionError> {
        loop {
            let planned = self.plan(&asked).await;
            Failpoint::BeforeClaim.pass();
            let taken = match (self.standing(&planned, &asked).await?, planned) {
                (Standing::Ours(record), Ok(plan)) => {
                    return self.act(*record, plan, asked).await;
                }
                (Standing::Answered(record), _) => return self.replay(*record, &asked).await,
                (Standing::Effective(record), _) => return self.wait_on(*record, &asked).await,
                (Standing::Held(until), _) => return Err(in_progress(until)),
                (Standing::Free | Standing::Ours(_), Err(refusal)) => return Err(refusal),
                (Standing::Free, Ok(_)) => Taken::Lost,
                (Standing::Released(record), planned) => {
                    self.take(*record, planned?, asked.clone()).await?
                }
                (Standing::Abandoned(record), planned) => {
                    self.pick_up(*record, planned, &asked).await?
                }
            };
            match taken {
                Taken::Over(record, plan, asked) => return self.act(*record, *plan, asked).await,
                Taken::Done(record, made) => return self.conclude(*record, made, &asked).await,
                Taken::Lost if Instant::now() < asked.deadline => {}
                Taken::Lost => return Err(in_progress(Utc::now())),
            }
        }
    }

    async fn plan(&self, asked: &Asked) -> Result<Plan, ActionError> {
        execution::plan(self.context, self.cluster, self.request, asked).await
    }

    /// Claims what can be done. What cannot be done any more may have been done before.
    async fn standing(
        &self,
        planned: &Result<Plan, ActionError>,
        asked: &Asked,
    ) -> Result<Standing, ActionError> {
        match planned {
            Ok(plan) => self.ledger.claim(self.intent(plan, asked), asked.deadline).await,
            Err(refusal) if self.request.id.is_some() && !refusal.code.retryable() => {
                self.ledger.find(asked.deadline).await
            }
            Err(_) => Ok(Standing::Free),
        }
    }

    /// What a plan is about to do, and what will be answered if it goes well.
    fn intent(&self, plan: &Plan, asked: &Asked) -> Intent {
        let (effect, outcome, result) = match &plan.todo {
            Todo::Make(effect, did, _) => (Some((**effect).clone()), Outcome::Applied, did),
            Todo::AlreadyMade(_, result) => (None, Outcome::Applied, result),
            Todo::Nothing(result) => (None, Outcome::Unchanged, result),
        };
        let answer = self.answer(plan, asked, outcome, result.clone());
        Intent { effect, completion: plan.completion.clone(), answer }
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

    /// Makes the effect of a request that is ours.
    async fn act(
        &self,
        mut record: Record,
        plan: Plan,
        asked: Asked,
    ) -> Result<ActionResponse, ActionError> {
        Failpoint::AfterClaim.pass();
        let deadline = asked.deadline.min(Instant::now() + SLACK);
        let asked = Asked { deadline, ..asked };
        let at = record.written_at.unwrap_or_else(Utc::now);
        let entry = Entry::new(&asked.id, &plan.target, at);
        let counts = matches!(plan.todo, Todo::Make(..));
        if counts && let Err(refusal) = self.budget.reserve(&entry, deadline).await {
            self.release(record).await;
            return Err(refusal);
        }
        let may_go_on = || -> Step<'_, ()> { Box::pin(self.budget.check_switch(deadline)) };
        let made =
            execution::make(self.context, self.cluster, self.request, &asked, plan, &may_go_on);
        match made.await {
            Ok(done) => {
                if counts && done.outcome == Outcome::Unchanged {
                    self.refund(&entry).await;
                }
                let answer = self.answer_of(&record, &done, &asked);
                record.intent.completion = done.plan.completion;
                self.complete(record, done.made, answer, done.replayed, &asked).await
            }
            Err(error) if error.code == Code::OutcomeUnknown => {
                record.in_doubt();
                self.note(record).await;
                Err(error)
            }
            Err(error) => {
                if counts {
                    self.refund(&entry).await;
                }
                self.release(record).await;
                Err(error)
            }
        }
    }

    /// The answer about what was done. Where the mark was found instead of made, the answer is the one
    /// that was intended.
    fn answer_of(&self, record: &Record, done: &Done, asked: &Asked) -> ActionResponse {
        match done.plan.todo {
            Todo::AlreadyMade(..) => record.intent.answer.clone(),
            _ => self.answer(&done.plan, asked, done.outcome, done.result.clone()),
        }
    }

    /// Finds out what became of a claim whose holder's time is over, and takes it over.
    async fn pick_up(
        &self,
        record: Record,
        planned: Result<Plan, ActionError>,
        asked: &Asked,
    ) -> Result<Taken, ActionError> {
        let Some(effect) = record.intent.effect.clone() else {
            return self.take(record, planned?, asked.clone()).await;
        };
        match self.cluster.recognise(&effect, asked.deadline).await? {
            Found::Made(made) => return Ok(Taken::Done(Box::new(record), made)),
            Found::NotMade => {}
            Found::Unknowable => {
                let why = "its sender died, and the object has been changed by others since";
                return Err(execution::unknown(&effect, why));
            }
        }
        // The same decision again, at the time of the first one and for the same object, so that the
        // answer does not depend on who gives it.
        let at = record.intent.answer.started_at;
        let asked = Asked { at, uid: Some(effect.uid), ..asked.clone() };
        match self.plan(&asked).await {
            Ok(plan) => self.take(record, plan, asked).await,
            Err(refusal) => {
                self.release(record).await;
                Err(refusal)
            }
        }
    }

    async fn take(&self, record: Record, plan: Plan, asked: Asked) -> Result<Taken, ActionError> {
        let intent = self.intent(&plan, &asked);
        let taken = self.ledger.take(&record, intent, asked.deadline).await?;
        Ok(match taken {
            Some(record) => Taken::Over(Box::new(record), Box::new(plan), asked),
            None => Taken::Lost,
        })
    }

    /// Gives the answer of a try that made the effect and did not live to say so.
    async fn conclude(
        &self,
        record: Record,
        made: Made,
        asked: &Asked,
    ) -> Result<ActionResponse, ActionError> {
        let mut answer = record.intent.answer.clone();
        answer.finished_at = Utc::now();
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
        if made.resource_version.is_some() {
            answer.target.resource_version = made.resource_version.clone();
        }
        record.made = Some(made.clone());
        record.intent.answer = answer.clone();
        if asked.wait {
            record.effective(made.clone());
            self.note_in(&mut record, asked.deadline).await;
            self.wait_for(&record, &mut answer).await;
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
        let deadline = if asked.wait { Instant::now() + TO_RECORD } else { asked.deadline };
        let settled = self.ledger.settle(&mut record, at_least_a_moment(deadline)).await;
        Failpoint::AfterRecord.pass();
        match settled {
            Ok(None) => Ok(ActionResponse { replayed, ..answer }),
            Ok(Some(theirs)) => Ok(ActionResponse { replayed: true, ..theirs }),
            Err(error) => {
                let mut answer = ActionResponse { replayed, ..answer };
                answer.warnings.push(format!("the answer could not be recorded: {error}"));
                Ok(answer)
            }
        }
    }

    /// The answer of an earlier try, and the wait that it may not have been asked for.
    async fn replay(&self, record: Record, asked: &Asked) -> Result<ActionResponse, ActionError> {
        let answer = record.answer.clone().unwrap_or_else(|| record.intent.answer.clone());
        let mut answer = ActionResponse { replayed: true, ..answer };
        if asked.wait && answer.rollout.is_none() {
            self.wait_for(&record, &mut answer).await;
        }
        Ok(answer)
    }

    /// The effect is made and another try waits for its completion, or did: so do we.
    async fn wait_on(&self, record: Record, asked: &Asked) -> Result<ActionResponse, ActionError> {
        let mut answer = record.intent.answer.clone();
        if !asked.wait {
            return Ok(ActionResponse { replayed: true, ..answer });
        }
        self.wait_for(&record, &mut answer).await;
        answer.finished_at = Utc::now();
        self.record(record, answer, true, asked).await
    }

    async fn wait_for(&self, record: &Record, answer: &mut ActionResponse) {
        let made = record.made.clone().unwrap_or_default();
        let completion = record.intent.completion.given(&answer.target, &made, &answer.id);
        let rollout = wait::until_complete(self.context, self.cluster, &completion, self.end).await;
        if rollout.state != RolloutState::Complete {
            answer.outcome = Outcome::Failed;
        }
        answer.result = format!("{} {rollout}", answer.result);
        answer.rollout = Some(rollout);
    }

    async fn release(&self, mut record: Record) {
        record.released();
        self.note(record).await;
    }

    /// Writes a record that nothing depends on: without it the next try finds out by itself, later.
    async fn note(&self, mut record: Record) {
        self.note_in(&mut record, Instant::now()).await;
    }

    async fn note_in(&self, record: &mut Record, deadline: Instant) {
        if let Err(error) = self.ledger.settle(record, at_least_a_moment(deadline)).await {
            tracing::warn!(%error, "the record could not be written");
        }
    }

    async fn refund(&self, entry: &Entry) {
        let deadline = at_least_a_moment(Instant::now());
        if let Err(error) = self.budget.refund(entry, deadline).await {
            tracing::warn!(%error, "what was taken from the budget could not be given back");
        }
    }
}

/// The deadline, or a moment from now if it is over.
fn at_least_a_moment(deadline: Instant) -> Instant {
    deadline.max(Instant::now() + AFTERTHOUGHT)
}
