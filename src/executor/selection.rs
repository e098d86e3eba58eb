//! Requests whose targets a selector chose. Each target is a request of its own, with an id made from that of the whole
//! and from the target's uid: so it has its own record, mark and charge, and takes effect once, whatever becomes of the
//! others.
//!
//! Before anything is claimed, what would be done to each target is planned and judged by the policy; if more are
//! refused than may fail, nothing is done. Then the targets are acted on one after the other. A resent request finds
//! the same targets in the record of the whole, and each target's answer in its own record.
//!
//! An approval is of the whole: of the targets and of what is planned for each. What the results mean is decided in
//! `target_results`. No action is known here.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Event;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    actions::{
        BoxFuture, CompletionSpec, Plan, PlanInput, SelectedTarget, request::ActionRequest,
        shared::selection::Selection,
    },
    contract::{
        digest::sha256,
        error::{ActionError, Code},
        label_selector::LabelSelector,
        names::{ObjectName, RequestId},
        response::{ActionResponse, Outcome, TargetOutcome, TargetResult},
    },
    executor::{
        Restriction, apply,
        context::{Context, stopped},
        handle, metadata_of, plan_input, policy_preview, response_to,
        target_results::{
            Progress, bare, bounded, is_settled, not_attempted, refuse_together, target_result,
        },
    },
    k8s::api::client::Cluster,
    ledger::record::{Record, RequestMetadata, event_name},
    policy::{Policy, evaluate::Evaluation},
};

/// How often, and for how long, a target on which another attempt is acting is retried.
const JOIN_INTERVAL: Duration = Duration::from_millis(500);
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How many targets are planned or simulated at the same time.
const MAX_PARALLEL: usize = 8;

/// The length of a plan's digest, in hexadecimal digits.
const DIGEST_CHARACTERS: usize = 16;

/// What a request for one target has from the request that selected it.
#[derive(Clone, Debug)]
pub struct SelectedBy {
    selector: LabelSelector,
    /// The target's uid: the request is for no other object of its name.
    pub uid: String,
    /// The digest of the plan that a person approved, if one did.
    approved: Option<String>,
    /// When the whole was made, if its record is taken up: then the record of this target may have expired.
    pub made_at: Option<(&'static str, DateTime<Utc>)>,
}

impl SelectedBy {
    /// Checks that the target is still one that the selector chooses, unless this request has changed it already.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`].
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), ActionError> {
        let matches = plan.labels().is_some_and(|labels| self.selector.matches(labels));
        if matches || !plan.is_change() {
            return Ok(());
        }
        let detail = format!("{} no longer matches '{}'", plan.target, self.selector);
        Err(ActionError::new(Code::PreconditionFailed, detail)
            .object_uid(plan.found.uid.as_deref()))
    }

    /// Checks that a plan that needs an approval is the one that was approved.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`].
    pub(crate) fn check_approved(
        &self,
        evaluation: &Evaluation,
        plan: &Plan,
    ) -> Result<(), ActionError> {
        if !evaluation.requires_approval() || self.approved.as_deref() == Some(&plan_digest(plan)) {
            return Ok(());
        }
        let detail = format!(
            "{} in its current state is not approved, or its approval has expired; nothing was done to it",
            plan.target
        );
        Err(ActionError::new(Code::PreconditionFailed, detail)
            .with_hint("send a new request with a new id to ask for it"))
    }
}

/// The digest of what is planned for one target, on the object as it is.
fn plan_digest(plan: &Plan) -> String {
    let Plan { found, replicas, decision_etag, .. } = plan;
    let whole = serde_json::json!([found.uid, found.generation, replicas, decision_etag]);
    sha256(whole.to_string().as_bytes())[..DIGEST_CHARACTERS].to_owned()
}

/// The request for one of the targets. The age of the whole was checked when it was claimed.
fn request_for(
    request: &ActionRequest,
    id: &RequestId,
    target: &SelectedTarget,
) -> Result<ActionRequest, ActionError> {
    let name = ObjectName::try_from(target.name.clone()).ok();
    let action = name.and_then(|name| request.action.on(name)).ok_or_else(|| {
        ActionError::new(Code::Internal, "a recorded target cannot be read").with_id(id)
    })?;
    let id = Some(id.of_target(&target.uid));
    Ok(ActionRequest { action, id, issued_at: None, event_time: None, ..request.clone() })
}

/// Does this for each target, several at a time. The results are in the order of the targets.
async fn for_each<T, F>(
    targets: &[SelectedTarget],
    work: impl Fn(SelectedTarget) -> F,
) -> Vec<(SelectedTarget, Result<T, ActionError>)>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ActionError>> + Send + 'static,
{
    let (mut running, mut results) = (JoinSet::new(), Vec::new());
    let mut left = targets.iter().enumerate();
    loop {
        while running.len() < MAX_PARALLEL
            && let Some((number, target)) = left.next()
        {
            let (target, work) = (target.clone(), work(target.clone()));
            running.spawn(async move { (number, target, work.await) });
        }
        match running.join_next().await {
            Some(Ok(done)) => results.push(done),
            Some(Err(panic)) => tracing::error!(%panic, "the work on a target panicked"),
            None => break,
        }
    }
    let done: HashSet<_> = results.iter().map(|(number, ..)| *number).collect();
    // The work on these has panicked.
    let lost = targets.iter().enumerate().filter(|(number, _)| !done.contains(number));
    let lost = lost.map(|(number, target)| {
        let detail = format!("the work on {} panicked; this is a bug", target.name);
        (number, target.clone(), Err(ActionError::new(Code::Internal, detail)))
    });
    results.extend(lost);
    results.sort_by_key(|(number, ..)| *number);
    results.into_iter().map(|(_, target, result)| (target, result)).collect()
}

/// Has the API server try the action on each target.
///
/// # Errors
/// Why the targets cannot be chosen, or that more are refused than may fail.
pub(super) async fn simulate(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    input: &PlanInput,
    policy: &Policy,
) -> Result<ActionResponse, ActionError> {
    let plan = apply::plan(context, cluster, request, input).await?;
    policy.judge_plan(request, &plan, true).refuse()?;
    let simulated = |target| simulate_one(context.clone(), request.clone(), target, input.clone());
    let results = for_each(plan.completion.targets().unwrap_or_default(), simulated).await;
    let selection = require_selection(request)?;
    refuse_together(&selection, &results)?;
    let names: Vec<_> = results.iter().map(|(target, _)| target.name.as_str()).collect();
    let sentence = format!(
        "Simulated: {} would act on {}: {}.",
        request.action.kind().name(),
        selection.counted(names.len()),
        names.join(", ")
    );
    let mut response = response_to(request, input, Outcome::Simulated, sentence);
    response.targets = results
        .into_iter()
        .map(|(target, result)| target_result(&selection, &input.id, &target, result))
        .collect();
    let preview = policy_preview(&policy.judge_plan(request, &plan, false));
    response.warnings.extend(plan.warnings);
    response.warnings.extend(preview);
    Ok(response)
}

/// A future on the heap, since the simulation of the whole has it within itself.
fn simulate_one(
    context: Context,
    request: ActionRequest,
    target: SelectedTarget,
    of_whole: PlanInput,
) -> BoxFuture<'static, ActionResponse> {
    Box::pin(async move {
        let request = request_for(&request, &of_whole.id, &target)?;
        let id = of_whole.id.of_target(&target.uid);
        let metadata = metadata_of(&context, &request, &id);
        let input = plan_input(&context, &request, &metadata);
        let input = PlanInput { uid: Some(target.uid), deadline: of_whole.deadline, ..input };
        super::simulate(&context, &request, metadata, &input).await
    })
}

/// Plans what would be done to each target, and notes its digest in the plan of the whole. Returns whether a person has
/// to approve it.
///
/// # Errors
/// That the policy denies it, or that more are refused than may fail.
pub(super) async fn plan_each(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    input: &PlanInput,
    policy: &Arc<Policy>,
    plan: &mut Plan,
) -> Result<bool, ActionError> {
    let planned = for_each(plan.completion.targets().unwrap_or_default(), |target| {
        let (context, cluster, request) = (context.clone(), cluster.clone(), request.clone());
        let (of_whole, policy) = (input.clone(), policy.clone());
        async move {
            let request = request_for(&request, &of_whole.id, &target)?;
            let id = of_whole.id.of_target(&target.uid);
            let metadata = RequestMetadata::of(&request, &id);
            let input = PlanInput {
                uid: Some(target.uid),
                mark: metadata.mark(),
                id,
                decision_etag: None,
                ..of_whole
            };
            let plan = apply::plan(&context, &cluster, &request, &input).await?;
            let evaluation = policy.judge_plan(&request, &plan, false);
            evaluation.refuse()?;
            Ok((plan, evaluation.requires_approval()))
        }
    })
    .await;
    let selection = require_selection(request)?;
    refuse_together(&selection, &planned)?;
    let mut requires_approval = false;
    let (mut targets, mut previews) = (Vec::new(), Vec::new());
    for (target, planned) in planned {
        let digest = planned.as_ref().ok().map(|(plan, _)| plan_digest(plan));
        previews.push(match planned {
            Ok((plan, requires)) => {
                requires_approval |= requires;
                let what = "waits for the approval of the whole request".to_owned();
                let bare =
                    bare(&selection, &input.id, &target, TargetOutcome::PendingApproval, what);
                let Plan { target, changes, warnings, .. } = plan;
                bounded(TargetResult { target, changes, warnings, ..bare })
            }
            Err(error) => target_result(&selection, &input.id, &target, Err(error)),
        });
        targets.push(SelectedTarget { plan_digest: digest, ..target });
    }
    plan.completion = CompletionSpec::EachTarget(targets);
    plan.previews = previews;
    Ok(requires_approval)
}

fn require_selection(request: &ActionRequest) -> Result<Selection<'_>, ActionError> {
    let missing = || ActionError::new(Code::Internal, "the request has no selector");
    request.action.selection().ok_or_else(missing)
}

/// The targets of one request, to be acted on one after the other.
pub(crate) struct EachTarget<'a> {
    pub context: &'a Context,
    pub request: &'a ActionRequest,
    pub id: &'a RequestId,
    pub targets: &'a [SelectedTarget],
    /// Whether a person has approved what is planned for each.
    pub are_approved: bool,
    /// When the request was made, if an earlier attempt has begun.
    pub made_at: Option<(&'static str, DateTime<Utc>)>,
    pub wait: bool,
    pub end: Instant,
}

impl EachTarget<'_> {
    /// Acts on each target until more have failed than may, the time is over, or it is not known what became of one.
    /// `known` are the results of an earlier attempt.
    pub(crate) async fn run(&self, known: &[TargetResult]) -> Vec<TargetResult> {
        let Some(selection) = self.request.action.selection() else { return Vec::new() };
        let mut results: Vec<TargetResult> = Vec::new();
        let mut slowest = Duration::ZERO;
        for (number, target) in self.targets.iter().enumerate() {
            let is_known = |it: &&TargetResult| {
                it.target.uid.as_deref() == Some(&target.uid) && is_settled(it, self.wait)
            };
            let result = if let Some(known) = known.iter().find(is_known) {
                known.clone()
            } else if let Some(why) =
                self.progress_with(&selection, &results, slowest).stop_reason()
            {
                not_attempted(&selection, self.id, target, why)
            } else {
                let all = self.targets.len();
                let stage = format!("target {} of {all}: {}", number + 1, target.name);
                self.context.observer().progress(&stage);
                let began = Instant::now();
                let result = self.act_on(&selection, target).await;
                slowest = slowest.max(began.elapsed());
                target_result(&selection, self.id, target, result)
            };
            results.push(result);
        }
        results
    }

    fn progress_with<'r>(
        &self,
        selection: &Selection<'_>,
        results: &'r [TargetResult],
        slowest: Duration,
    ) -> Progress<'r> {
        let max_per_request = self.context.policy().targets.max_per_request.get();
        Progress {
            targets: self.targets.len(),
            max_targets: u64::from(selection.max_targets).min(max_per_request),
            max_failures: selection.max_failures,
            results,
            is_policy_readable: self.context.check_policy_in_use().is_ok(),
            is_shutting_down: *self.context.stopping().borrow(),
            left: self.end.saturating_duration_since(Instant::now()),
            observation: self.request.observe.unwrap_or_default(),
            slowest: self.wait.then_some(slowest),
        }
    }

    async fn act_on(
        &self,
        selection: &Selection<'_>,
        target: &SelectedTarget,
    ) -> Result<ActionResponse, ActionError> {
        let left = self.end.saturating_duration_since(Instant::now());
        let request = ActionRequest {
            timeout: Some(left.max(Duration::from_secs(1))),
            ..request_for(self.request, self.id, target)?
        };
        let selected_by = SelectedBy {
            selector: selection.selector.clone(),
            uid: target.uid.clone(),
            approved: target.plan_digest.clone().filter(|_| self.are_approved),
            made_at: self.made_at,
        };
        // Who waits for the whole is not informed of the claim of a part.
        let context = self.context.clone().map_observer(|observer| observer.of_part());
        let until = self.end.min(Instant::now() + JOIN_TIMEOUT);
        let mut stopping = context.stopping();
        loop {
            let result =
                Box::pin(handle(&context, request.clone(), Restriction::Selected(&selected_by)))
                    .await;
            let is_in_progress = result.as_ref().is_err_and(|error| error.code == Code::InProgress);
            if !is_in_progress || Instant::now() + JOIN_INTERVAL >= until {
                return result;
            }
            tokio::select! {
                () = stopped(&mut stopping) => return result,
                () = sleep(JOIN_INTERVAL) => {}
            }
        }
    }
}

/// Returns how far the requests of the targets are, in a sentence.
///
/// # Errors
/// Why a record could not be read.
pub(crate) async fn progress(
    cluster: &Cluster,
    id: &RequestId,
    namespace: &str,
    targets: &[SelectedTarget],
    deadline: Instant,
) -> Result<String, ActionError> {
    let records = for_each(targets, |target| {
        let (cluster, name) = (cluster.clone(), event_name(&id.of_target(&target.uid)));
        let namespace = namespace.to_owned();
        async move { cluster.get_opt::<Event>(&namespace, &name, deadline).await }
    })
    .await;
    let (mut done, mut in_progress) = (0, None);
    for (target, event) in records {
        match event?.as_ref().and_then(Record::read).map(|record| record.state) {
            Some(state) if state.is_terminal() => done += 1,
            Some(_) => in_progress = in_progress.or(Some(target.name)),
            None => {}
        }
    }
    let now = in_progress.map(|name| format!("; {name} is in progress")).unwrap_or_default();
    Ok(format!("{done} of {} targets have an answer{now}", targets.len()))
}
