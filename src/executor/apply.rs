//! Decides on an effect and makes it, at most once.
//!
//! The order of things: plan from facts that were just read; make the effect, or have the server try
//! it. When the object changed in between, plan anew. When the answer to a write is lost, ask the
//! cluster whether the write took effect; only if it cannot be asked the outcome is unknown. A write
//! that is under way is never abandoned, whoever asks us to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::{BoxFuture, Decision, Plan, PlanInput, request::ActionRequest},
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
        error::ApiError,
        mutation::{Applied, ApplyError, Effect, Evidence},
        retry,
    },
};

/// Time kept past the deadline to find out what became of a write.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_millis(800);

/// What was done, with the plan that led to it.
pub(crate) struct Execution {
    /// The plan.
    pub plan: Plan,
    /// What the effect left behind.
    pub made: Applied,
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
    fault: ApiError,
}

/// Reads the facts and decides. Reading can be given up at any time; nothing was done yet.
///
/// # Errors
/// Why it cannot be done, or [`Code::ShuttingDown`].
pub(crate) async fn plan(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &PlanInput,
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
    asked: &PlanInput,
) -> Result<Execution, ActionError> {
    let mut pauses = retry::backoff();
    loop {
        let plan = plan(context, cluster, request, asked).await?;
        let (effect, _, would) = match plan.decision.clone() {
            Decision::Apply(effect, did, would) => (effect, did, would),
            Decision::AlreadyApplied(made, result) => {
                return Ok(Execution::before(plan, made, result));
            }
            Decision::NoOp(result) => return Ok(Execution::unchanged(plan, result)),
        };
        match cluster.apply(&effect, true, asked.deadline).await {
            Ok(made) => return Ok(Execution::now(plan, made, Outcome::Simulated, would)),
            Err(ApplyError::Rejected(error)) => return Err(error),
            Err(ApplyError::Disruption(words)) => return Err(blocked(&plan.target, &words)),
            // A dry run leaves nothing to be in doubt of.
            Err(ApplyError::InDoubt(_) | ApplyError::Conflict) => {}
        }
        pause(&mut pauses, asked.deadline, request).await?;
    }
}

/// Makes the effect of a plan. Whenever it has to be planned anew, `may_go_on` is asked first.
///
/// # Errors
/// Why it was not done, or [`Code::OutcomeUnknown`].
pub(crate) async fn apply<'a>(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &PlanInput,
    mut plan: Plan,
    may_go_on: &(dyn Fn() -> BoxFuture<'a, ()> + Sync),
) -> Result<Execution, ActionError> {
    // From here on it is this object that is meant, and none that may come under its name.
    let (uid, decided_on) = (plan.target.uid.clone(), plan.decided_on.clone());
    let asked = &PlanInput { uid, decision_etag: decided_on, ..asked.clone() };
    let judged = plan.uids_of_others();
    let mut pauses = retry::backoff();
    let mut in_doubt: Option<InDoubt> = None;
    loop {
        let (effect, did) = match plan.decision.clone() {
            Decision::Apply(effect, did, _) => (*effect, did),
            Decision::AlreadyApplied(made, result) => {
                let ours = in_doubt.is_some();
                return Ok(Execution { replayed: !ours, ..Execution::before(plan, made, result) });
            }
            Decision::NoOp(result) => return Ok(Execution::unchanged(plan, result)),
        };
        Failpoint::BeforeWrite.pass();
        match cluster.apply(&effect, false, asked.deadline).await {
            Ok(made) => {
                Failpoint::AfterWrite.pass();
                return Ok(Execution::now(plan, made, Outcome::Applied, did));
            }
            Err(ApplyError::Rejected(error)) => return settle(cluster, in_doubt, error).await,
            Err(ApplyError::Disruption(words)) => {
                let error = blocked(&plan.target, &words);
                return settle(cluster, in_doubt, error).await;
            }
            Err(ApplyError::InDoubt(fault)) => {
                let sent = InDoubt { plan, effect, did, fault };
                match sent.find_evidence(cluster, asked.deadline.max(Instant::now())).await {
                    Some(Evidence::Made(made)) => return Ok(sent.made(made)),
                    Some(Evidence::NotMade) => in_doubt = Some(sent),
                    Some(Evidence::Unknowable) | None => return Err(sent.unknown()),
                }
            }
            Err(ApplyError::Conflict) => {
                if in_doubt.is_none() && is_gone(cluster, &effect, asked.deadline).await {
                    let sentence = gone_already(&plan.target);
                    return Ok(Execution::unchanged(plan, sentence));
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
    effect.is_deletion()
        && matches!(cluster.find_evidence(effect, deadline).await, Ok(Evidence::Made(_)))
}

fn gone_already(target: &Target) -> String {
    format!("{target} was deleted by someone else in the meantime.")
}

/// An error stands as it is unless a write is in doubt: then the cluster is asked once more.
async fn settle(
    cluster: &Cluster,
    in_doubt: Option<InDoubt>,
    error: ActionError,
) -> Result<Execution, ActionError> {
    let Some(sent) = in_doubt else { return Err(error) };
    match sent.find_evidence(cluster, Instant::now()).await {
        Some(Evidence::Made(made)) => Ok(sent.made(made)),
        Some(Evidence::NotMade) => Err(error),
        Some(Evidence::Unknowable) | None => Err(sent.unknown()),
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
    async fn find_evidence(&self, cluster: &Cluster, deadline: Instant) -> Option<Evidence> {
        let until = deadline + RECOVERY_TIMEOUT;
        timeout_at(until, cluster.find_evidence(&self.effect, until)).await.ok()?.ok()
    }

    fn made(self, made: Applied) -> Execution {
        Execution::now(self.plan, made, Outcome::Applied, self.did)
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

impl Execution {
    fn now(plan: Plan, made: Applied, outcome: Outcome, result: String) -> Self {
        Execution { plan, made, outcome, result, replayed: false }
    }

    fn before(plan: Plan, made: Applied, result: String) -> Self {
        Execution { replayed: true, ..Execution::now(plan, made, Outcome::Applied, result) }
    }

    fn unchanged(plan: Plan, result: String) -> Self {
        let made = Applied::unchanged(plan.target.resource_version.clone());
        Execution::now(plan, made, Outcome::Unchanged, result)
    }
}
