//! [`handle`]: one request in, one answer or error out, for every entry point.
//!
//! This module does what all actions share: the request's id, its time limits, whether a cluster is
//! configured. A simulation is planned and tried here; a real action is a `transaction`. Nothing here knows
//! a transport or a single action.

use std::{borrow::Cow, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{time::Instant, try_join};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    actions::{PlanInput, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        names::RequestId,
        response::{ActionResponse, Outcome},
    },
    executor::{context::Context, failpoint::Failpoint, selection::SelectedBy},
    ledger::{Ledger, record::RequestMetadata},
    policy::{
        Policy,
        evaluate::{Evaluation, Facts},
    },
    telemetry::calls::ClusterLabel,
};

pub(crate) mod apply;
pub(crate) mod auto_rollback;
mod batch;
pub(crate) mod clusters;
pub mod context;
mod deletions;
pub(crate) mod details;
pub(crate) mod drain;
pub mod failpoint;
pub(crate) mod follow_up;
pub(crate) mod incoming;
pub(crate) mod observe;
pub(crate) mod observer;
pub mod reply;
pub(crate) mod reports;
pub(crate) mod selection;
pub(crate) mod status;
pub(crate) mod target_lock;
pub(crate) mod target_results;
pub(crate) mod transaction;
mod unknown_outcomes;
pub(crate) mod wait;

/// How far ahead of ours a client's clock may be.
const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::seconds(60);

/// Executes the request and returns its answer.
///
/// # Errors
/// Why the action was not done; [`Code::OutcomeUnknown`] if it is not known whether it was. An action that
/// was done, and whose awaited effect failed, is an answer with [`Outcome::Failed`].
pub async fn handle(
    context: &Context,
    request: ActionRequest,
    restriction: Restriction<'_>,
) -> Result<ActionResponse, ActionError> {
    let context = &context.for_cluster(request.cluster.as_ref())?;
    let id = request.id.clone().unwrap_or_else(RequestId::generate);
    let name = request.action.kind().name();
    let span = tracing::debug_span!(
        "action",
        otel.name = name,
        otel.status_code = Empty,
        action_executor.action = name,
        action_executor.id = &*id,
        action_executor.simulate = request.simulate,
        action_executor.result = Empty,
    );
    let handled = async {
        let began = Instant::now();
        let result = simulate_or_execute(context, &request, &id, restriction).await;
        let cluster = ClusterLabel(context.shared_listed_name().cloned());
        context.observer().answered(&request, &result, cluster, began.elapsed());
        record_in_span(&result);
        log(context, &request, &id, &result);
        Failpoint::BeforeAnswer.pass();
        result.map_err(|error| error.with_id(&id))
    };
    handled.instrument(span).await
}

/// Which of the objects of its name a request is for. It is no part of the request, which may be resent after they are
/// gone, and its answer is found.
#[derive(Clone, Copy, Debug)]
pub enum Restriction<'a> {
    /// It is for whichever object has the name.
    None,
    /// It is for those that were shown.
    Shown(&'a Shown),
    /// It is for the one that a selector chose, as it was then.
    Selected(&'a SelectedBy),
}

/// The objects that a simulation showed to the person who then agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    uid: Option<String>,
    /// The uids of the targets that a selector chose, with spaces between, as in `Plan::decision_etag`.
    chosen: Option<String>,
}

impl Shown {
    pub(crate) fn by(simulated: &ActionResponse) -> Self {
        let chosen = simulated.targets.iter().filter_map(|it| it.target.uid.as_deref());
        let chosen = chosen.collect::<Vec<_>>().join(" ");
        Shown {
            uid: simulated.target.uid.clone(),
            chosen: Some(chosen).filter(|uids| !uids.is_empty()),
        }
    }
}

async fn simulate_or_execute(
    context: &Context,
    request: &ActionRequest,
    id: &RequestId,
    restriction: Restriction<'_>,
) -> Result<ActionResponse, ActionError> {
    let (selected_by, Shown { uid, chosen: decision_etag }) = match restriction {
        Restriction::None => (None, Shown::default()),
        Restriction::Shown(shown) => (None, shown.clone()),
        Restriction::Selected(it) => (Some(it), Shown { uid: Some(it.uid.clone()), chosen: None }),
    };
    // Before one of several targets it is checked where they are acted on, which then stops.
    if selected_by.is_none() {
        context.check_policy_in_use()?;
    }
    let metadata = metadata_of(context, request, id);
    let input = PlanInput { uid, decision_etag, ..plan_input(context, request, &metadata) };
    if request.simulate {
        return simulate(context, request, metadata, &input).await;
    }
    let cluster = context.require_cluster("nothing can be done")?;
    let target = request.action.target();
    let guard = Arc::new(context.target_locks().acquire(&target, id, input.deadline).await?);
    // An action that only waits has made its effect: the next one need not wait for its completion.
    let waiting = guard.clone();
    let context =
        context.clone().map_observer(|observer| observer.on_waiting(move || waiting.release()));
    // The future of a real action is large: on the heap it does not grow that of each simulation.
    let work = transaction::execute(&context, cluster, request, selected_by, metadata, input);
    Box::pin(work).await
}

fn metadata_of(context: &Context, request: &ActionRequest, id: &RequestId) -> RequestMetadata {
    let user = context.impersonation().map(|person| person.user());
    RequestMetadata::of(request, id).in_cluster(context.cluster_name()).acting_as(user)
}

fn plan_input(context: &Context, request: &ActionRequest, metadata: &RequestMetadata) -> PlanInput {
    let limit = request.timeout.map_or(context.deadline(), |it| it.min(context.deadline()));
    PlanInput {
        id: metadata.id.clone(),
        cluster: context.cluster_name().cloned(),
        mark: metadata.mark(),
        at: Utc::now(),
        deadline: Instant::now() + limit,
        wait: request.wait,
        timeout: request.wait_time(),
        own_pod: context.own_pod().cloned(),
        precondition: request.precondition.clone(),
        uid: None,
        decision_etag: None,
    }
}

/// Refuses a request that is too old for the ledger to recognise as done, and one from the future, which
/// would outlive the ledger's memory.
pub(crate) fn check_replay_window(
    made_at: Option<(&str, DateTime<Utc>)>,
    now: DateTime<Utc>,
    window: Duration,
) -> Result<(), ActionError> {
    let Some((field, made_at)) = made_at else { return Ok(()) };
    let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
    let what = if now - made_at > window {
        format!("is more than {} s ago", window.num_seconds())
    } else if made_at - now > MAX_CLOCK_SKEW {
        "is in the future".to_owned()
    } else {
        return Ok(());
    };
    Err(ActionError::new(Code::RequestExpired, format!("{field}: {what}"))
        .with_field(field)
        .with_hint(
            "check whether the action is still needed; if so, send a new request with a new id",
        ))
}

/// Has the API server try the effect and its record; without a cluster, says what is known from the request alone.
/// What the policy decides about the real action, and a record that could not be created, are warnings.
async fn simulate(
    context: &Context,
    request: &ActionRequest,
    metadata: RequestMetadata,
    input: &PlanInput,
) -> Result<ActionResponse, ActionError> {
    let policy = context.policy();
    policy.judge(&Facts::of(request, None)).refuse()?;
    let Some(cluster) = context.cluster() else {
        return Ok(simulate_offline(request, input, &policy));
    };
    let target_cluster = context.target_cluster("nothing can be tried")?;
    if request.action.selection().is_some() {
        return selection::simulate(context, target_cluster, request, input, &policy).await;
    }
    let ledger = Ledger::new(cluster, metadata);
    let record = async { Ok(ledger.try_to_open(input.deadline).await) };
    let (done, record) =
        try_join!(Box::pin(apply::simulate(context, target_cluster, request, input)), record)?;
    policy.judge_plan(request, &done.plan, true).refuse()?;
    let preview = policy_preview(&policy.judge_plan(request, &done.plan, false));
    let mut response = response_to(request, input, done.outcome, done.result);
    response.replayed = done.replayed;
    response.warnings.extend(done.plan.warnings.iter().cloned());
    response.warnings.extend(done.applied.warnings_for_answer());
    response.warnings.extend(preview);
    response.warnings.extend(record.err().and_then(|error| record_preview(&error)));
    response.changes = done.plan.changes;
    response.target = done.plan.target;
    if done.applied.resource_version.is_some() {
        response.target.resource_version = done.applied.resource_version;
    }
    Ok(response)
}

fn simulate_offline(request: &ActionRequest, input: &PlanInput, policy: &Policy) -> ActionResponse {
    let preview = request.action.plannable().preview(input);
    let mut response = response_to(request, input, Outcome::Simulated, preview.result);
    response.offline = true;
    response.changes = preview.changes;
    response.warnings.push("no cluster is configured: the target was not read".to_owned());
    let facts = Facts { simulate: false, ..Facts::of(request, None) };
    response.warnings.extend(policy_preview(&policy.judge(&facts)));
    response
}

/// What the policy decides about the same action if it is not simulated.
fn policy_preview(evaluation: &Evaluation) -> Option<String> {
    match evaluation.refuse() {
        Err(refusal) => Some(format!("the real action would be refused: {}", refusal.detail)),
        Ok(()) if evaluation.requires_approval() => {
            Some("the real action would wait for a person's approval".to_owned())
        }
        Ok(()) => None,
    }
}

/// Why the record of the same action could not be created if it is not simulated. A transient error is not reported.
fn record_preview(error: &ActionError) -> Option<String> {
    let refusal = format!("the real action would be refused: {}", error.with_its_hint());
    (!error.code.retryable()).then_some(refusal)
}

/// The response before anything is known from the cluster.
fn response_to(
    request: &ActionRequest,
    input: &PlanInput,
    outcome: Outcome,
    result: String,
) -> ActionResponse {
    ActionResponse {
        result,
        id: input.id.to_string(),
        kind: request.action.kind().name().to_owned(),
        outcome,
        replayed: false,
        offline: false,
        cluster: input.cluster.as_deref().map(str::to_owned),
        target: request.action.target(),
        changes: Vec::new(),
        warnings: request.action.warnings(),
        rollout: None,
        observation: None,
        rolled_back: None,
        approval: None,
        targets: Vec::new(),
        started_at: input.at,
        finished_at: Utc::now(),
    }
}

/// Records the result in the action's span, under the name that the metrics use.
fn record_in_span(result: &Result<ActionResponse, ActionError>) {
    let (name, failed) = match result {
        Ok(response) => (response.outcome.name().into(), response.outcome == Outcome::Failed),
        Err(error) => (Cow::Owned(error.code.name()), true),
    };
    let span = Span::current();
    span.record("action_executor.result", &*name);
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}

fn log(
    context: &Context,
    request: &ActionRequest,
    id: &RequestId,
    result: &Result<ActionResponse, ActionError>,
) {
    let cluster = context.listed_name();
    let requester = request.requester.as_deref();
    let reason = request.reason.as_deref();
    let (simulate, id) = (request.simulate, &**id);
    match result {
        Ok(response) => tracing::info!(
            id, cluster, action = %request, simulate, requester, reason, replayed = response.replayed,
            outcome = ?response.outcome, result = response.result, "action answered"
        ),
        Err(error) => tracing::warn!(
            id, cluster, action = %request, simulate, requester, reason,
            code = %error.code, detail = error.detail, "action not done"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::response::{TargetOutcome, TargetResult};

    #[test]
    fn a_person_agrees_to_the_objects_that_were_shown() {
        let mut simulated = ActionResponse::example(Outcome::Simulated);
        let uid = simulated.target.uid.clone();
        assert_eq!(Shown::by(&simulated), Shown { uid, chosen: None });
        let one = |uid: &str| {
            let mut one = TargetResult::example("web", TargetOutcome::Simulated);
            one.target.uid = Some(uid.to_owned());
            one
        };
        simulated.targets = vec![one("u1"), one("u2")];
        simulated.target.uid = None;
        let chosen = Some("u1 u2".to_owned());
        assert_eq!(Shown::by(&simulated), Shown { uid: None, chosen });
    }

    #[test]
    fn a_request_expires_after_the_window_and_before_its_time() {
        let now: DateTime<Utc> = "2026-01-31T12:00:00Z".parse().expect("is a time");
        let age = |seconds: i64| {
            let issued_at = now - TimeDelta::seconds(seconds);
            let text = format!(
                r#"{{"type":"restart_k8s","parameters":{{"deployment":"a"}},"issued_at":"{}"}}"#,
                issued_at.to_rfc3339()
            );
            let request = ActionRequest::parse(text.as_bytes()).expect("is accepted");
            check_replay_window(request.made_at(), now, Duration::from_secs(1800))
                .map_err(|error| error.code)
        };
        assert_eq!(age(1800), Ok(()));
        assert_eq!(age(1801), Err(Code::RequestExpired));
        assert_eq!(age(-60), Ok(()));
        assert_eq!(age(-61), Err(Code::RequestExpired));
    }
}
