//! Plans an effect and applies it, at most once.
//!
//! It plans from facts that were just read, then applies the effect or has the API server try it. If the
//! object changed in between, it plans again. If the answer to a write is lost, it asks the cluster whether
//! the write took effect; only if that fails is the outcome unknown. A write in progress is never abandoned,
//! not even at shutdown. It knows neither ledger nor budget.

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

/// Time after the deadline to find out whether a write took effect.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_millis(800);

/// Judges a plan by the limits as they are now.
pub(crate) type Recheck<'a> = dyn Fn(&Plan) -> BoxFuture<'a, ()> + Sync + 'a;

/// What was done, and the plan behind it.
pub(crate) struct Execution {
    pub plan: Plan,
    /// What the effect left behind.
    pub applied: Applied,
    pub outcome: Outcome,
    /// The answer's sentence.
    pub result: String,
    /// Whether an earlier attempt at the same request made the effect.
    pub replayed: bool,
}

/// A write whose answer was lost.
struct InDoubt {
    plan: Plan,
    effect: Effect,
    /// The answer's sentence if it took effect.
    result: String,
    error: ApiError,
}

/// Reads the facts and plans. Shutdown may interrupt it: nothing was done yet.
///
/// # Errors
/// Why it cannot be done, or [`Code::ShuttingDown`].
pub(crate) async fn plan(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    input: &PlanInput,
) -> Result<Plan, ActionError> {
    let mut stopping = context.stopping();
    tokio::select! {
        biased;
        () = stopped(&mut stopping) => {
            Err(ActionError::new(Code::ShuttingDown, "shutting down; nothing was done"))
        }
        plan = request.action.plannable().plan(cluster, input) => plan,
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
    input: &PlanInput,
) -> Result<Execution, ActionError> {
    let mut backoff = retry::backoff();
    let mut rejected = None;
    loop {
        let plan = plan(context, cluster, request, input).await?;
        let (effect, would) = match plan.decision.clone() {
            Decision::Apply(effect, _, would) => (effect, would),
            Decision::AlreadyApplied(applied, result) => {
                return Ok(Execution::replayed(plan, applied, result));
            }
            Decision::NoOp(result) => return Ok(Execution::unchanged(plan, result)),
        };
        match cluster.apply(&effect, true, input.deadline).await {
            Ok(applied) => return Ok(Execution::new(plan, applied, Outcome::Simulated, would)),
            Err(ApplyError::Rejected(error)) => return Err(error),
            Err(ApplyError::Disruption(why)) => return Err(blocked(&plan.target, &why)),
            Err(ApplyError::TestFailed(error)) => {
                if rejected.replace(effect.clone()).is_some_and(|before| before == effect) {
                    return Err(error);
                }
            }
            // A dry run changes nothing, so nothing is in doubt.
            Err(ApplyError::InDoubt(_) | ApplyError::Conflict) => {}
        }
        pause(&mut backoff, input.deadline, request).await?;
    }
}

/// Applies the effect of a plan. `recheck` judges each further plan.
///
/// # Errors
/// Why it was not done, or [`Code::OutcomeUnknown`].
pub(crate) async fn apply(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    input: &PlanInput,
    mut plan: Plan,
    recheck: &Recheck<'_>,
) -> Result<Execution, ActionError> {
    // A further plan is for this very object, and not for one that takes its name.
    let (uid, decision_etag) = (plan.target.uid.clone(), plan.decision_etag.clone());
    let input = &PlanInput { uid, decision_etag, ..input.clone() };
    let judged = plan.uids_of_others();
    let mut backoff = retry::backoff();
    let mut in_doubt: Option<InDoubt> = None;
    let mut rejected: Option<Effect> = None;
    loop {
        let (effect, result) = match plan.decision.clone() {
            // Under a writer of status a bound effect may fail again and again.
            Decision::Apply(effect, result, _) if rejected.is_none() || in_doubt.is_some() => {
                (effect.bound_to(&plan.found), result)
            }
            Decision::Apply(effect, result, _) => (*effect, result),
            Decision::AlreadyApplied(applied, result) => {
                let replayed = in_doubt.is_none();
                return Ok(Execution { replayed, ..Execution::replayed(plan, applied, result) });
            }
            Decision::NoOp(result) => return Ok(Execution::unchanged(plan, result)),
        };
        Failpoint::BeforeWrite.pass();
        match cluster.apply(&effect, false, input.deadline).await {
            Ok(applied) => {
                Failpoint::AfterWrite.pass();
                return Ok(Execution::new(plan, applied, Outcome::Applied, result));
            }
            Err(ApplyError::Rejected(error)) => return fail(cluster, in_doubt, error).await,
            Err(ApplyError::Disruption(why)) => {
                let error = blocked(&plan.target, &why);
                return fail(cluster, in_doubt, error).await;
            }
            Err(ApplyError::InDoubt(error)) => {
                let sent = InDoubt { plan, effect, result, error };
                match sent.find_evidence(cluster, input.deadline.max(Instant::now())).await {
                    Some(Evidence::Made(applied)) => return Ok(sent.into_execution(applied)),
                    Some(Evidence::NotMade) => in_doubt = Some(sent),
                    Some(Evidence::Unknowable) | None => return Err(sent.unknown()),
                }
            }
            Err(ApplyError::TestFailed(error)) => {
                // The same tests again, of an object that was just read: they did not fail.
                if rejected.replace(effect.clone()).is_some_and(|before| before == effect) {
                    return fail(cluster, in_doubt, error).await;
                }
            }
            Err(ApplyError::Conflict) => {
                if in_doubt.is_none() && is_gone(cluster, &effect, input.deadline).await {
                    let result = gone_already(&plan.target);
                    return Ok(Execution::unchanged(plan, result));
                }
            }
        }
        let next = async {
            pause(&mut backoff, input.deadline, request).await?;
            let next = self::plan(context, cluster, request, input).await?;
            recheck(&next).await?;
            Ok(next)
        };
        plan = match next.await {
            // The policy judged and the budget counted these objects, and no others.
            Ok(next) if next.uids_of_others().is_subset(&judged) => next,
            Ok(_) => return fail(cluster, in_doubt, kept_changing(request)).await,
            Err(error) => return fail(cluster, in_doubt, error).await,
        };
    }
}

async fn pause(
    backoff: &mut impl Iterator<Item = Duration>,
    deadline: Instant,
    request: &ActionRequest,
) -> Result<(), ActionError> {
    let pause = backoff.next().unwrap_or_default();
    if Instant::now() + pause >= deadline {
        return Err(kept_changing(request));
    }
    sleep(pause).await;
    Ok(())
}

/// Whether the object to delete is gone by itself, so that its name may be another object's now.
async fn is_gone(cluster: &Cluster, effect: &Effect, deadline: Instant) -> bool {
    effect.is_deletion()
        && matches!(cluster.find_evidence(effect, deadline).await, Ok(Evidence::Made(_)))
}

fn gone_already(target: &Target) -> String {
    format!("{target} was deleted by someone else in the meantime.")
}

/// Fails with `error`, unless an earlier write is in doubt: then the cluster is asked about it once more.
async fn fail(
    cluster: &Cluster,
    in_doubt: Option<InDoubt>,
    error: ActionError,
) -> Result<Execution, ActionError> {
    let Some(sent) = in_doubt else { return Err(error) };
    let evidence = sent.find_evidence(cluster, Instant::now()).await;
    settle(sent, evidence, error)
}

/// What becomes of a write in doubt, given this evidence (`None` if the cluster did not answer) and the
/// error that ended the attempt.
fn settle(
    sent: InDoubt,
    evidence: Option<Evidence>,
    error: ActionError,
) -> Result<Execution, ActionError> {
    match evidence {
        Some(Evidence::Made(applied)) => Ok(sent.into_execution(applied)),
        Some(Evidence::NotMade) => Err(error),
        Some(Evidence::Unknowable) | None => Err(sent.unknown()),
    }
}

fn blocked(target: &Target, why: &str) -> ActionError {
    ActionError::new(Code::DisruptionBudget, format!("{target} cannot be evicted now: {why}"))
        .with_retry_after(Some(Duration::from_secs(5)))
}

fn kept_changing(request: &ActionRequest) -> ActionError {
    let target = request.action.target();
    let detail = format!("{target} kept changing during every attempt; nothing was done");
    ActionError::new(Code::Conflict, detail).with_retry_after(Some(Duration::from_secs(1)))
}

impl InDoubt {
    /// What the cluster shows of it; `None` if the cluster does not answer.
    async fn find_evidence(&self, cluster: &Cluster, deadline: Instant) -> Option<Evidence> {
        let until = deadline + RECOVERY_TIMEOUT;
        timeout_at(until, cluster.find_evidence(&self.effect, until)).await.ok()?.ok()
    }

    fn into_execution(self, applied: Applied) -> Execution {
        Execution::new(self.plan, applied, Outcome::Applied, self.result)
    }

    fn unknown(&self) -> ActionError {
        unknown(&self.effect, &format!("its answer was lost ({:?})", self.error))
    }
}

/// The error for an effect that may or may not have been made, with what to check.
pub(crate) fn unknown(effect: &Effect, why: &str) -> ActionError {
    let Effect { resource, namespace, name, uid, .. } = effect;
    let (prefix, option) = match namespace.as_str() {
        "" => (String::new(), String::new()),
        namespace => (format!("{namespace}/"), format!(" -n {namespace}")),
    };
    ActionError::new(
        Code::OutcomeUnknown,
        format!(
            "the change to {} {prefix}{name} was sent and {why}; it may or may not have been made",
            resource.kind
        ),
    )
    .with_hint(format!(
        "check `kubectl{option} get {} {name} -o yaml` (it had uid {uid}); the same request with the same \
         id is safe to resend",
        resource.plural
    ))
}

impl Execution {
    fn new(plan: Plan, applied: Applied, outcome: Outcome, result: String) -> Self {
        Execution { plan, applied, outcome, result, replayed: false }
    }

    fn replayed(plan: Plan, applied: Applied, result: String) -> Self {
        Execution { replayed: true, ..Execution::new(plan, applied, Outcome::Applied, result) }
    }

    fn unchanged(plan: Plan, result: String) -> Self {
        let applied = Applied::unchanged(plan.target.resource_version.clone());
        Execution::new(plan, applied, Outcome::Unchanged, result)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;
    use crate::{
        actions::CompletionSpec,
        k8s::{completion::Completion, workload::WorkloadKind},
    };

    fn in_doubt() -> InDoubt {
        let target = Target::named("apps/v1", "Deployment", "shop", "web");
        let found = ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some("web".to_owned()),
            uid: Some("u1".to_owned()),
            ..ObjectMeta::default()
        };
        let resource = WorkloadKind::Deployment.resource();
        let effect = Effect::patch(resource, &found, "r1", None, Vec::new());
        let completion = CompletionSpec::Known(Completion::Immediate("done".to_owned()));
        let plan = Plan::new(target, &found, Decision::NoOp(String::new()), completion);
        let result = "Deployment 'web' restarted.".to_owned();
        InDoubt { plan, effect, result, error: ApiError::NotFound }
    }

    #[test]
    fn a_write_in_doubt_is_settled_by_evidence_alone() {
        let applied = Applied { generation: Some(4), ..Applied::default() };
        for (evidence, expected) in [
            (Some(Evidence::Made(applied)), Ok(Outcome::Applied)),
            (Some(Evidence::NotMade), Err(Code::Forbidden)),
            (Some(Evidence::Unknowable), Err(Code::OutcomeUnknown)),
            (None, Err(Code::OutcomeUnknown)),
        ] {
            let error = ActionError::new(Code::Forbidden, "may not");
            let settled = settle(in_doubt(), evidence, error);
            let settled = settled.map(|done| done.outcome).map_err(|error| error.code);
            assert_eq!(settled, expected);
        }
    }

    #[test]
    fn an_unknown_outcome_names_the_command_that_shows_the_object() {
        let error = in_doubt().unknown();
        assert!(error.detail.contains("Deployment shop/web"), "{}", error.detail);
        let hint = error.hint.expect("has one");
        assert!(hint.contains("`kubectl -n shop get deployments web -o yaml`"), "{hint}");
        assert!(hint.contains("uid u1"), "{hint}");
    }

    #[test]
    fn a_blocked_eviction_may_be_retried_soon() {
        let error = blocked(&Target::named("v1", "Pod", "shop", "web-1"), "budget 'web' allows 0");
        assert_eq!((error.code, error.retry_after_seconds()), (Code::DisruptionBudget, Some(5)));
        assert!(error.detail.contains("Pod shop/web-1"), "{}", error.detail);
    }
}
