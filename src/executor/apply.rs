//! Decides on an effect and makes it, at most once.
//!
//! The order of things: plan from facts that were just read; make the effect, or have the server try
//! it. When the object changed in between, plan anew. When the answer to a write is lost, ask the
//! cluster whether the write took effect; only if it cannot be asked the outcome is unknown. A write
//! that is under way is never abandoned, whoever asks us to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::{Asked, Plan, Step, Todo, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        response::{Outcome, Target},
    },
    executor::{
        context::{Context, stopped},
        failpoint::Failpoint,
    },
    k8s::api::{
        client::Cluster,
        error::Fault,
        mutation::{Effect, Found, Made, NotMade},
        retry,
    },
};

/// Time kept past the deadline to find out what became of a write.
pub(crate) const AFTERTHOUGHT: Duration = Duration::from_millis(800);

/// What was done, with the plan that led to it.
pub(crate) struct Done {
    /// The plan.
    pub plan: Plan,
    /// What the effect left behind.
    pub made: Made,
    /// How it ended.
    pub outcome: Outcome,
    /// The sentence about it.
    pub result: String,
    /// Whether an earlier try of the same request had made it.
    pub replayed: bool,
}

/// A write that was sent and whose answer was lost.
struct InDoubt {
    plan: Plan,
    effect: Effect,
    did: String,
    fault: Fault,
}

/// Reads the facts and decides. Reading can be given up at any time; nothing was done yet.
///
/// # Errors
/// Why it cannot be done, or [`Code::ShuttingDown`].
pub(crate) async fn plan(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
) -> Result<Plan, ActionError> {
    let mut stopping = context.stopping();
    tokio::select! {
        biased;
        () = stopped(&mut stopping) => Err(ActionError::new(
            Code::ShuttingDown,
            "told to stop before anything was done",
        )),
        plan = request.action.plannable().plan(cluster, asked) => plan,
    }
}

/// Plans, and has the API server try the effect.
///
/// # Errors
/// Why it could not be done.
pub(crate) async fn simulate(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
) -> Result<Done, ActionError> {
    let mut pauses = retry::pauses();
    loop {
        let plan = plan(context, cluster, request, asked).await?;
        let (effect, _, would) = match plan.todo.clone() {
            Todo::Make(effect, did, would) => (effect, did, would),
            Todo::AlreadyMade(made, result) => return Ok(Done::before(plan, made, result)),
            Todo::Nothing(result) => return Ok(Done::unchanged(plan, result)),
        };
        match cluster.make(&effect, true, asked.deadline).await {
            Ok(made) => return Ok(Done::now(plan, made, Outcome::Simulated, would)),
            Err(NotMade::Refused(error)) => return Err(error),
            Err(NotMade::Blocked(words)) => return Err(blocked(&plan.target, &words)),
            // A dry run leaves nothing to be in doubt of.
            Err(NotMade::InDoubt(_) | NotMade::Stale) => {}
        }
        pause(&mut pauses, asked.deadline, request).await?;
    }
}

/// Makes the effect of a plan. Whenever it has to be planned anew, `may_go_on` is asked first.
///
/// # Errors
/// Why it was not done, or [`Code::OutcomeUnknown`].
pub(crate) async fn make<'a>(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
    mut plan: Plan,
    may_go_on: &(dyn Fn() -> Step<'a, ()> + Sync),
) -> Result<Done, ActionError> {
    // From here on it is this object that is meant, and none that may come under its name.
    let (uid, decided_on) = (plan.target.uid.clone(), plan.decided_on.clone());
    let asked = &Asked { uid, decided_on, ..asked.clone() };
    let judged = plan.uids_of_others();
    let mut pauses = retry::pauses();
    let mut in_doubt: Option<InDoubt> = None;
    loop {
        let (effect, did) = match plan.todo.clone() {
            Todo::Make(effect, did, _) => (*effect, did),
            Todo::AlreadyMade(made, result) => {
                let ours = in_doubt.is_some();
                return Ok(Done { replayed: !ours, ..Done::before(plan, made, result) });
            }
            Todo::Nothing(result) => return Ok(Done::unchanged(plan, result)),
        };
        Failpoint::BeforeWrite.pass();
        match cluster.make(&effect, false, asked.deadline).await {
            Ok(made) => {
                Failpoint::AfterWrite.pass();
                return Ok(Done::now(plan, made, Outcome::Applied, did));
            }
            Err(NotMade::Refused(error)) => return settle(cluster, in_doubt, error).await,
            Err(NotMade::Blocked(words)) => {
                let error = blocked(&plan.target, &words);
                return settle(cluster, in_doubt, error).await;
            }
            Err(NotMade::InDoubt(fault)) => {
                let sent = InDoubt { plan, effect, did, fault };
                match sent.look(cluster, asked.deadline.max(Instant::now())).await {
                    Some(Found::Made(made)) => return Ok(sent.made(made)),
                    Some(Found::NotMade) => in_doubt = Some(sent),
                    Some(Found::Unknowable) | None => return Err(sent.unknown()),
                }
            }
            Err(NotMade::Stale) => {
                if in_doubt.is_none() && is_gone(cluster, &effect, asked.deadline).await {
                    let sentence = gone_already(&plan.target);
                    return Ok(Done::unchanged(plan, sentence));
                }
            }
        }
        let next = async {
            pause(&mut pauses, asked.deadline, request).await?;
            may_go_on().await?;
            self::plan(context, cluster, request, asked).await
        };
        plan = match next.await {
            // No more may be acted upon than was judged and counted.
            Ok(next) if next.uids_of_others().is_subset(&judged) => next,
            Ok(_) => return settle(cluster, in_doubt, kept_changing(request)).await,
            Err(error) => return settle(cluster, in_doubt, error).await,
        };
    }
}

async fn pause(
    pauses: &mut impl Iterator<Item = Duration>,
    deadline: Instant,
    request: &ActionRequest,
) -> Result<(), ActionError> {
    let pause = pauses.next().unwrap_or_default();
    if Instant::now() + pause >= deadline {
        return Err(kept_changing(request));
    }
    sleep(pause).await;
    Ok(())
}

/// Whether what was to be deleted has gone by itself, so that its name may be another's now.
async fn is_gone(cluster: &Cluster, effect: &Effect, deadline: Instant) -> bool {
    effect.is_deletion() && matches!(cluster.recognise(effect, deadline).await, Ok(Found::Made(_)))
}

fn gone_already(target: &Target) -> String {
    format!("{target} was deleted by someone else in the meantime.")
}

/// An error stands as it is unless a write is in doubt: then the cluster is asked once more.
async fn settle(
    cluster: &Cluster,
    in_doubt: Option<InDoubt>,
    error: ActionError,
) -> Result<Done, ActionError> {
    let Some(sent) = in_doubt else { return Err(error) };
    match sent.look(cluster, Instant::now()).await {
        Some(Found::Made(made)) => Ok(sent.made(made)),
        Some(Found::NotMade) => Err(error),
        Some(Found::Unknowable) | None => Err(sent.unknown()),
    }
}

fn blocked(target: &Target, words: &str) -> ActionError {
    ActionError::new(Code::DisruptionBudget, format!("{target} may not be evicted now: {words}"))
        .with_retry_after(Some(Duration::from_secs(5)))
}

fn kept_changing(request: &ActionRequest) -> ActionError {
    ActionError::new(
        Code::Conflict,
        format!("{} changed under every attempt; nothing was done", request.action.target()),
    )
    .with_retry_after(Some(Duration::from_secs(1)))
}

impl InDoubt {
    /// What the cluster says of it; `None` if it cannot be asked.
    async fn look(&self, cluster: &Cluster, deadline: Instant) -> Option<Found> {
        let until = deadline + AFTERTHOUGHT;
        timeout_at(until, cluster.recognise(&self.effect, until)).await.ok()?.ok()
    }

    fn made(self, made: Made) -> Done {
        Done::now(self.plan, made, Outcome::Applied, self.did)
    }

    fn unknown(&self) -> ActionError {
        unknown(&self.effect, &format!("its answer was lost ({:?})", self.fault))
    }
}

/// The error for an effect of which it cannot be found out whether it was made.
pub(crate) fn unknown(effect: &Effect, why: &str) -> ActionError {
    let Effect { resource, namespace, name, uid, .. } = effect;
    let (place, option) = match namespace.as_str() {
        "" => (String::new(), String::new()),
        namespace => (format!("{namespace}/"), format!(" -n {namespace}")),
    };
    ActionError::new(
        Code::OutcomeUnknown,
        format!(
            "the change to {} {place}{name} was sent and {why}; it may or may not have been made",
            resource.kind
        ),
    )
    .with_hint(format!(
        "look at `kubectl{option} get {} {name} -o yaml` (it had uid {uid}); the same request \
         with the same id is safe to send again",
        resource.plural
    ))
}

impl Done {
    fn now(plan: Plan, made: Made, outcome: Outcome, result: String) -> Self {
        Done { plan, made, outcome, result, replayed: false }
    }

    fn before(plan: Plan, made: Made, result: String) -> Self {
        Done { replayed: true, ..Done::now(plan, made, Outcome::Applied, result) }
    }

    fn unchanged(plan: Plan, result: String) -> Self {
        let made = Made::unchanged(plan.target.resource_version.clone());
        Done::now(plan, made, Outcome::Unchanged, result)
    }
}
