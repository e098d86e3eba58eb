//! Plans an effect and applies it, at most once.
//!
//! It plans from facts that were just read, then applies the effect or has the API server try it. If the
//! object changed in between, it plans again. Once an effect was sent and its answer is missing, only positive
//! evidence in the cluster decides: that it was made, or that it cannot be made any more. Without either the outcome
//! is unknown. A write in progress is never abandoned, not even at shutdown. It knows neither ledger nor budget.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    actions::{BoxFuture, CompletionSpec, Decision, Plan, PlanInput, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        response::{Outcome, Rollout, Target},
    },
    executor::{
        context::{Context, stopped},
        deletions,
        drain::simulate::refusals,
        failpoint::Failpoint,
    },
    k8s::{
        api::{client::Cluster, error::ApiError, mutation::ApplyError, retry},
        effect::{Applied, Effect},
        evidence::Evidence,
    },
};

/// Why the answer of an earlier attempt's effect is missing.
pub(crate) const NO_RECORDED_ANSWER: &str = "the attempt that sent it did not record an answer";

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
    /// Why the effect was not made wholly, if so.
    pub failed: Option<Rollout>,
}

/// An effect that was sent, and what is known of it.
pub(crate) struct Sent {
    effect: Effect,
    /// The plan behind it and the answer's sentence if it was made; `None` if an earlier attempt sent it.
    plan: Option<(Plan, String)>,
    /// Why its answer is missing; `None` if the API server refused it. Then it was not made, unless something
    /// between us and the API server has sent it twice.
    missing: Option<String>,
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
        plan = request.action.plannable().plan(cluster, input) => {
            let plan = plan?;
            plan.check_annotations_fit()?;
            Ok(plan)
        }
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
    let mut rejected = RejectedTests::default();
    loop {
        let mut plan = plan(context, cluster, request, input).await?;
        let (effect, would) = match plan.decision.clone() {
            Decision::Apply { effect, would, .. } => (effect, would),
            Decision::DeleteEach(each, would) => {
                let refusals = deletions::try_each(cluster, each, input.deadline).await?;
                plan.warnings.extend(refusals);
                return Ok(Execution::new(plan, Applied::default(), Outcome::Simulated, would));
            }
            Decision::AlreadyApplied(applied, result) => {
                return Ok(Execution::replayed(plan, applied, result));
            }
            Decision::NoOp(result) => return Ok(Execution::unchanged(plan, result)),
            // Each target's own request is simulated.
            Decision::EachTarget(result) => {
                return Ok(Execution::new(plan, Applied::default(), Outcome::Simulated, result));
            }
        };
        match cluster.apply(&effect, true, input.deadline).await {
            Ok(applied) => {
                check_nothing_deleted(cluster, &effect, &plan, &applied, input.deadline).await?;
                if let CompletionSpec::Drained(set) = &plan.completion {
                    let refusals = refusals(cluster, &plan.others, set, input.deadline).await;
                    plan.warnings.extend(refusals);
                }
                return Ok(Execution::new(plan, applied, Outcome::Simulated, would));
            }
            Err(ApplyError::Rejected(error) | ApplyError::NotTaken(error, _)) => return Err(error),
            Err(ApplyError::Disruption(why)) => return Err(blocked(&plan.target, &why)),
            Err(ApplyError::TestFailed(error)) => {
                if rejected.are_again_of(&effect) {
                    return Err(error);
                }
            }
            // A dry run changes nothing, so nothing is in doubt.
            Err(ApplyError::InDoubt(_) | ApplyError::Conflict) => {}
        }
        Pause::AfterConflict.wait(&mut backoff, input.deadline, request).await?;
    }
}

/// Checks that a simulated deletion deleted nothing, if its response shows another version than was read: then
/// something between us and the API server may have made it a real one.
async fn check_nothing_deleted(
    cluster: &Cluster,
    effect: &Effect,
    plan: &Plan,
    applied: &Applied,
    deadline: Instant,
) -> Result<(), ActionError> {
    let is_as_read = applied.resource_version.as_ref().is_none_or(|version| {
        plan.found.resource_version.as_ref().is_some_and(|found| found == version)
    });
    if !effect.is_deletion() || is_as_read {
        return Ok(());
    }
    match cluster.find_evidence(effect, deadline).await? {
        Evidence::Gone => Err(gone(effect)),
        _ => Ok(()),
    }
}

/// Applies the effect of a plan. `earlier` is an effect of the same request that an earlier attempt sent, and that
/// may still be made. `recheck` judges each further plan.
///
/// Once an effect was sent, the answer is its evidence and nothing else: not the next plan, and not an error.
///
/// # Errors
/// Why it was not done, or [`Code::OutcomeUnknown`].
pub(crate) async fn apply(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    input: &PlanInput,
    mut plan: Plan,
    earlier: Option<Effect>,
    recheck: &Recheck<'_>,
) -> Result<Execution, ActionError> {
    // A further plan is for this very object, and not for one that takes its name.
    let (uid, decision_etag) = (plan.target.uid.clone(), plan.decision_etag.clone());
    let input = &PlanInput { uid, decision_etag, ..input.clone() };
    let judged = plan.uids_of_others();
    let mut backoff = retry::backoff();
    let mut sent = earlier.map(Sent::by_an_earlier_attempt);
    let mut bound = Bound::default();
    let mut rejected = RejectedTests::default();
    loop {
        if plan.is_change()
            && let Some(evidence) = sent.as_ref().and_then(|it| it.bars_another(&plan))
            && let Some(sent) = sent.take()
        {
            return sent.conclude(Some(evidence), Err(kept_changing(request)));
        }
        let (effect, result) = match plan.decision.clone() {
            Decision::Apply { effect, did: result, .. } => {
                let is_lost = sent.as_ref().is_some_and(Sent::is_lost);
                (bound.bind(*effect, &plan, is_lost), result)
            }
            Decision::DeleteEach(each, _) => {
                return deletions::delete_each(cluster, input, plan, each, recheck).await;
            }
            Decision::AlreadyApplied(applied, result) => {
                let replayed = sent.as_ref().is_none_or(Sent::is_of_an_earlier_attempt);
                // Not the generation as it was found: another client may have changed the object since.
                let made = sent.as_ref().map(|it| Evidence::of(&it.effect, Some(&plan.found)));
                let applied = match made {
                    Some(Evidence::Made(applied)) => applied,
                    _ => applied,
                };
                return Ok(Execution { replayed, ..Execution::replayed(plan, applied, result) });
            }
            // Each target's own request makes an effect, once this one is recorded.
            Decision::EachTarget(result) => {
                return Ok(Execution::new(plan, Applied::default(), Outcome::Applied, result));
            }
            Decision::NoOp(result) => {
                let done = Execution::unchanged(plan, result);
                return settle(cluster, sent, input.deadline, Ok(done)).await;
            }
        };
        if Instant::now() >= input.deadline {
            return settle(cluster, sent, input.deadline, Err(out_of_time(request))).await;
        }
        Failpoint::BeforeWrite.pass();
        let pause = match cluster.apply(&effect, false, input.deadline).await {
            Ok(applied) => {
                Failpoint::AfterWrite.pass();
                return Ok(Execution::new(plan, applied, Outcome::Applied, result));
            }
            Err(ApplyError::Rejected(error)) => {
                return settle(cluster, sent, input.deadline, Err(error)).await;
            }
            Err(ApplyError::Disruption(why)) => {
                let error = blocked(&plan.target, &why);
                return settle(cluster, sent, input.deadline, Err(error)).await;
            }
            Err(ApplyError::NotTaken(error, wait)) => Pause::AfterBusy(error, wait),
            Err(ApplyError::InDoubt(error)) => {
                let lost = Sent::without_answer(effect, plan, result, &error);
                let evidence = lost.find_evidence(cluster, input.deadline).await;
                match lost.resume(sent, evidence, kept_changing(request)) {
                    ControlFlow::Continue(before) => sent = before,
                    ControlFlow::Break(result) => return result,
                }
                Pause::AfterConflict
            }
            Err(ApplyError::TestFailed(error)) if rejected.are_again_of(&effect) => {
                return settle(cluster, sent, input.deadline, Err(error)).await;
            }
            Err(ApplyError::TestFailed(_) | ApplyError::Conflict) => {
                bound.count_conflict();
                sent = Some(Sent::refused(sent, effect, plan, result));
                Pause::AfterConflict
            }
        };
        let next = async {
            pause.wait(&mut backoff, input.deadline, request).await?;
            let next = self::plan(context, cluster, request, input).await?;
            recheck(&next).await?;
            Ok(next)
        };
        plan = match next.await {
            // The policy judged and the budget counted these objects, and no others.
            Ok(next) if next.uids_of_others().is_subset(&judged) => next,
            Ok(_) => {
                let error = kept_changing(request);
                return settle(cluster, sent, input.deadline, Err(error)).await;
            }
            Err(error) => return settle(cluster, sent, input.deadline, Err(error)).await,
        };
    }
}

/// The result of an attempt that ends like this, given what it has sent before.
async fn settle(
    cluster: &Cluster,
    sent: Option<Sent>,
    deadline: Instant,
    end: Result<Execution, ActionError>,
) -> Result<Execution, ActionError> {
    let Some(sent) = sent else { return end };
    let evidence = sent.find_evidence(cluster, deadline).await;
    sent.conclude(evidence, end)
}

/// The effect of which a test failed last.
#[derive(Default)]
pub(crate) struct RejectedTests(Option<Effect>);

impl RejectedTests {
    /// Whether this effect has the same tests again. Then they did not fail, since the object was just read.
    pub(crate) fn are_again_of(&mut self, effect: &Effect) -> bool {
        self.0.replace(effect.clone()).is_some_and(|before| before == *effect)
    }
}

/// Whether an effect without a mark is bound to the version that was read. Where others write the object's status all
/// the time, a bound effect may fail repeatedly.
#[derive(Default)]
struct Bound {
    conflicts: usize,
}

impl Bound {
    /// After so many conflicts an effect is bound by its other conditions alone.
    const MAX_CONFLICTS: usize = 2;

    /// While a write before is lost, each further one is bound.
    fn bind(&self, effect: Effect, plan: &Plan, is_lost: bool) -> Effect {
        let is_free = self.conflicts >= Self::MAX_CONFLICTS && !is_lost;
        if is_free { effect } else { effect.bound_to(&plan.found) }
    }

    fn count_conflict(&mut self) {
        self.conflicts += 1;
    }
}

/// Why an effect is retried later.
enum Pause {
    AfterConflict,
    /// The API server did not take it.
    AfterBusy(ActionError, Option<Duration>),
}

impl Pause {
    /// Waits, if there is time left.
    async fn wait(
        self,
        backoff: &mut impl Iterator<Item = Duration>,
        deadline: Instant,
        request: &ActionRequest,
    ) -> Result<(), ActionError> {
        let own = backoff.next().unwrap_or_default();
        let (pause, error) = match self {
            Pause::AfterConflict => (own, kept_changing(request)),
            Pause::AfterBusy(error, wait) => (wait.unwrap_or_default().max(own), error),
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        sleep(pause).await;
        Ok(())
    }
}

fn blocked(target: &Target, why: &str) -> ActionError {
    ActionError::new(Code::DisruptionBudget, format!("{target} cannot be evicted now: {why}"))
        .object_uid(target.uid.as_deref())
        .with_retry_after(Some(Duration::from_secs(5)))
}

fn out_of_time(request: &ActionRequest) -> ActionError {
    let target = request.action.target();
    let detail = format!("the time limit for {target} passed; nothing was done");
    ActionError::new(Code::ClusterUnavailable, detail)
        .with_retry_after(Some(Duration::from_secs(1)))
}

fn kept_changing(request: &ActionRequest) -> ActionError {
    let target = request.action.target();
    let detail = format!("{target} kept changing during every attempt; nothing was done");
    ActionError::new(Code::Conflict, detail).with_retry_after(Some(Duration::from_secs(1)))
}

impl Sent {
    pub(crate) fn by_an_earlier_attempt(effect: Effect) -> Self {
        let missing = Some(NO_RECORDED_ANSWER.to_owned());
        Sent { effect, plan: None, missing }
    }

    pub(crate) fn without_answer(
        effect: Effect,
        plan: Plan,
        result: String,
        error: &ApiError,
    ) -> Self {
        let missing = Some(format!("no answer shows whether it was made ({})", error.message()));
        Sent { effect, plan: Some((plan, result)), missing }
    }

    /// The API server refused this effect, because the object is not as it was. An earlier one whose answer is
    /// missing stays the one in question.
    pub(crate) fn refused(
        before: Option<Sent>,
        effect: Effect,
        plan: Plan,
        result: String,
    ) -> Self {
        let lost = before.filter(|it| it.missing.is_some());
        lost.unwrap_or(Sent { effect, plan: Some((plan, result)), missing: None })
    }

    /// Whether its answer is missing.
    fn is_lost(&self) -> bool {
        self.missing.is_some()
    }

    pub(crate) fn is_of_an_earlier_attempt(&self) -> bool {
        self.plan.is_none()
    }

    /// What the cluster shows of it; `None` if the cluster does not answer.
    async fn find_evidence(&self, cluster: &Cluster, deadline: Instant) -> Option<Evidence> {
        let until = deadline.max(Instant::now()) + RECOVERY_TIMEOUT;
        timeout_at(until, cluster.find_evidence(&self.effect, until)).await.ok()?.ok()
    }

    /// Whether an attempt that lost this effect's answer plans again, and what it has sent then.
    pub(crate) fn resume(
        self,
        before: Option<Sent>,
        evidence: Option<Evidence>,
        end: ActionError,
    ) -> ControlFlow<Result<Execution, ActionError>, Option<Sent>> {
        match evidence {
            Some(Evidence::NotYet) => ControlFlow::Continue(Some(self)),
            Some(Evidence::NeverMade) => ControlFlow::Continue(before),
            evidence => ControlFlow::Break(self.conclude(evidence, Err(end))),
        }
    }

    /// Why no further effect may follow this one, by the object as the next plan has read it: this one may have been
    /// made, and undone with its mark. A further effect is bound to that object, so what is made later is no danger.
    /// One that was decided on the same status shows that this one was not made.
    pub(crate) fn bars_another(&self, next: &Plan) -> Option<Evidence> {
        let is_same = |next: &Effect| next.shares_decision(&self.effect);
        if !self.effect.changes_the_target()
            || matches!(&next.decision, Decision::Apply { effect, .. } if is_same(effect))
        {
            return None;
        }
        match Evidence::of(&self.effect, Some(&next.found)) {
            Evidence::NeverMade | Evidence::NotYet => None,
            evidence => Some(evidence),
        }
    }

    /// The result of an attempt that sent this effect and ends like this otherwise.
    pub(crate) fn conclude(
        self,
        evidence: Option<Evidence>,
        end: Result<Execution, ActionError>,
    ) -> Result<Execution, ActionError> {
        match (evidence, self) {
            (Some(Evidence::Made(applied)), Sent { plan: Some((plan, result)), .. }) => {
                Ok(Execution::new(plan, applied, Outcome::Applied, result))
            }
            (Some(Evidence::NeverMade), _) => end,
            // What was refused is not on its way, and it is not there.
            (Some(Evidence::NotYet), Sent { missing: None, .. }) => end,
            (Some(Evidence::Gone), sent) => Err(gone(&sent.effect)),
            (_, Sent { effect, missing, .. }) => {
                let why = missing.unwrap_or_else(|| {
                    "was refused because the object had changed; a proxy may have sent it twice"
                        .to_owned()
                });
                Err(match end {
                    Err(error) => unknown_after(&effect, &why, &error),
                    Ok(_) => unknown(&effect, &why),
                })
            }
        }
    }
}

/// The error for an effect that may or may not have been made, with what to check.
pub(crate) fn unknown(effect: &Effect, why: &str) -> ActionError {
    let detail = format!(
        "the change to {} was sent and {why}; it may or may not have been made",
        object_of(effect)
    );
    let hint = match effect.uid.as_str() {
        "" => format!("check `{}`", command_of(effect)),
        uid => format!("check `{}` (it had uid {uid})", command_of(effect)),
    };
    ActionError::new(Code::OutcomeUnknown, detail).with_hint(format!(
        "{hint}; then resend the same request with the same id: it does not repeat the change"
    ))
}

/// The same, for an attempt that ended with this error after it.
pub(crate) fn unknown_after(effect: &Effect, why: &str, end: &ActionError) -> ActionError {
    let end = end.detail.strip_suffix("; nothing was done").unwrap_or(&end.detail);
    unknown(effect, &format!("{why}; this attempt then failed: {end}"))
}

/// The error for an object that was to be deleted and is gone: uids are never used again, so this request can do
/// nothing more.
pub(crate) fn gone(effect: &Effect) -> ActionError {
    let (object, uid) = (object_of(effect), &effect.uid);
    ActionError::new(
        Code::OutcomeUnknown,
        format!(
            "{object} (uid {uid}) is gone or being deleted; whether this request or another client deleted it is unknown"
        ),
    )
    .with_hint(format!(
        "nothing is left to do for this request; `{}` shows what has its name now, and a new request with a new id \
         would act on that",
        command_of(effect)
    ))
}

fn object_of(effect: &Effect) -> String {
    let Effect { resource, namespace, name, .. } = effect;
    let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    format!("{} {prefix}{name}", resource.kind)
}

fn command_of(effect: &Effect) -> String {
    let Effect { resource, namespace, name, .. } = effect;
    let option = if namespace.is_empty() { String::new() } else { format!(" -n {namespace}") };
    format!("kubectl{option} get {} {name} -o yaml", resource.plural)
}

impl Execution {
    pub(super) fn new(plan: Plan, applied: Applied, outcome: Outcome, result: String) -> Self {
        Execution { plan, applied, outcome, result, replayed: false, failed: None }
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

    fn sent(missing: Option<&str>) -> Sent {
        let target = Target::named("apps/v1", "Deployment", "shop", "web");
        let found = ObjectMeta {
            namespace: Some("shop".to_owned()),
            name: Some("web".to_owned()),
            uid: Some("u1".to_owned()),
            ..ObjectMeta::default()
        };
        let resource = WorkloadKind::Deployment.resource();
        let effect = Effect::patch(resource, &found, "r1@d1", None, Vec::new());
        let completion = CompletionSpec::Known(Completion::Immediate("done".to_owned()));
        let plan = Plan::new(target, &found, Decision::NoOp(String::new()), completion);
        let result = "Deployment 'web' restarted.".to_owned();
        Sent { effect, plan: Some((plan, result)), missing: missing.map(str::to_owned) }
    }

    #[test]
    fn an_attempt_that_sent_an_effect_ends_by_its_evidence_alone() {
        let made = || Some(Evidence::Made(Applied { generation: Some(4), ..Applied::default() }));
        let lost = Some("its answer was lost");
        for (missing, evidence, expected) in [
            (lost, made(), Ok(Outcome::Applied)),
            (lost, Some(Evidence::NeverMade), Err(Code::Forbidden)),
            (lost, Some(Evidence::NotYet), Err(Code::OutcomeUnknown)),
            (lost, Some(Evidence::Gone), Err(Code::OutcomeUnknown)),
            (lost, Some(Evidence::Unknowable), Err(Code::OutcomeUnknown)),
            (lost, None, Err(Code::OutcomeUnknown)),
            // Sent twice by something between, and the second one refused.
            (None, made(), Ok(Outcome::Applied)),
            (None, Some(Evidence::NeverMade), Err(Code::Forbidden)),
            (None, Some(Evidence::NotYet), Err(Code::Forbidden)),
            (None, Some(Evidence::Gone), Err(Code::OutcomeUnknown)),
            (None, Some(Evidence::Unknowable), Err(Code::OutcomeUnknown)),
            (None, None, Err(Code::OutcomeUnknown)),
        ] {
            let end = Err(ActionError::new(Code::Forbidden, "may not"));
            let result = sent(missing).conclude(evidence.clone(), end);
            let result = result.map(|done| done.outcome).map_err(|error| error.code);
            assert_eq!(result, expected, "{missing:?} {evidence:?}");
        }
    }

    #[test]
    fn nothing_is_unchanged_while_an_effect_of_an_earlier_attempt_may_come() {
        let Sent { effect, plan, .. } = sent(None);
        let (plan, _) = plan.expect("has one");
        for (evidence, expected) in [
            (Evidence::NeverMade, Ok(Outcome::Unchanged)),
            (Evidence::NotYet, Err(Code::OutcomeUnknown)),
            (Evidence::Gone, Err(Code::OutcomeUnknown)),
        ] {
            let earlier = Sent::by_an_earlier_attempt(effect.clone());
            let end = Ok(Execution::unchanged(plan.clone(), "It is paused already.".to_owned()));
            let result = earlier.conclude(Some(evidence.clone()), end);
            let result = result.map(|done| done.outcome).map_err(|error| error.code);
            assert_eq!(result, expected, "{evidence:?}");
        }
    }

    #[test]
    fn no_effect_follows_one_that_may_have_been_made_and_undone() {
        let metadata = |generation, requests: &str| {
            serde_yaml_ng::from_str::<ObjectMeta>(&format!(
                "{{uid: u1, name: web, namespace: shop, generation: {generation}, \
                 annotations: {{action-executor.dev/requests: '{requests}'}}}}"
            ))
            .expect("is metadata")
        };
        let resource = WorkloadKind::Deployment.resource();
        let effect = Effect::patch(resource, &metadata(3, "4:r0@d0"), "r1@d1", None, Vec::new());
        let earlier = Sent::by_an_earlier_attempt(effect);
        for (generation, expected) in [
            (3, None),
            (4, None),
            // The effect and its removal, or two changes by others.
            (5, Some(Evidence::Unknowable)),
        ] {
            let found = metadata(generation, "4:r0@d0");
            let completion = CompletionSpec::Known(Completion::Immediate("done".to_owned()));
            let target = Target::named("apps/v1", "Deployment", "shop", "web");
            let next = Plan::new(target, &found, Decision::NoOp(String::new()), completion);
            assert_eq!(earlier.bars_another(&next), expected, "{generation}");
        }
    }

    #[test]
    fn a_refused_effect_does_not_hide_a_lost_one() {
        let Sent { effect, plan, .. } = sent(None);
        let (plan, result) = plan.expect("has one");
        let refused = |before| Sent::refused(before, effect.clone(), plan.clone(), result.clone());
        assert!(refused(Some(sent(Some("lost")))).missing.is_some());
        assert!(refused(Some(sent(None))).missing.is_none());
        assert!(refused(None).missing.is_none());
    }

    #[test]
    fn an_unknown_outcome_names_the_command_that_shows_the_object() {
        let error = unknown(&sent(None).effect, "its answer was lost");
        assert!(error.detail.contains("Deployment shop/web"), "{}", error.detail);
        let hint = error.hint.expect("has one");
        assert!(hint.contains("`kubectl -n shop get deployments web -o yaml`"), "{hint}");
        assert!(hint.contains("uid u1"), "{hint}");
    }

    #[test]
    fn an_object_that_is_gone_is_not_claimed_to_be_deleted_by_this_request() {
        let error = gone(&sent(None).effect);
        assert_eq!(error.code, Code::OutcomeUnknown);
        assert!(error.detail.contains("unknown"), "{}", error.detail);
        assert!(error.hint.expect("has one").contains("a new request with a new id"));
    }

    #[test]
    fn a_blocked_eviction_may_be_retried_soon() {
        let error = blocked(&Target::named("v1", "Pod", "shop", "web-1"), "budget 'web' allows 0");
        assert_eq!((error.code, error.retry_after_seconds()), (Code::DisruptionBudget, Some(5)));
        assert!(error.detail.contains("Pod shop/web-1"), "{}", error.detail);
    }
}
