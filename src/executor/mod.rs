//! `handle`: one request in, one answer out, whichever door it came through.
//!
//! It settles what is common to all actions: the request's id, the time allowed, whether there is a
//! cluster at all. A simulation is planned and tried here; a real action is a `transaction`.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;
use tracing::{Instrument, Span, field::Empty};

use crate::{
    actions::{PlanInput, request::ActionRequest},
    contract::{
        error::{ActionError, Code},
        names::RequestId,
        response::{ActionResponse, Outcome},
    },
    executor::{context::Context, failpoint::Failpoint},
    policy::{
        Policy,
        evaluate::{Facts, Verdict},
    },
};

pub mod apply;
pub mod auto_rollback;
pub mod context;
pub mod drain;
pub mod failpoint;
pub mod reply;
pub mod status;
pub mod target_lock;
pub mod transaction;
pub mod wait;

/// How far in the future a request may seem to come from, since clocks differ.
const MAX_CLOCK_SKEW: TimeDelta = TimeDelta::seconds(60);

/// Does what the request asks, and tells what came of it.
///
/// # Errors
/// An [`ActionError`] whenever the action was not done, or, as [`Code::OutcomeUnknown`], when that
/// is not known. An action that was done and did not lead to what was waited for is an answer with
/// [`Outcome::Failed`].
pub async fn handle(
    context: &Context,
    request: ActionRequest,
) -> Result<ActionResponse, ActionError> {
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
    handle_traced(context, &request, &id).instrument(span).await
}

async fn handle_traced(
    context: &Context,
    request: &ActionRequest,
    id: &RequestId,
) -> Result<ActionResponse, ActionError> {
    let began = Instant::now();
    let result = answer_request(context, request, id).await;
    context.count(request, &result, began.elapsed());
    record_in_span(&result);
    log(request, id, &result);
    Failpoint::BeforeAnswer.pass();
    result.map_err(|error| error.with_id(id))
}

async fn answer_request(
    context: &Context,
    request: &ActionRequest,
    id: &RequestId,
) -> Result<ActionResponse, ActionError> {
    let asked = plan_input(context, request, id);
    if request.simulate {
        return simulate(context, request, &asked).await;
    }
    let cluster = context.require_cluster("nothing can be done")?;
    check_replay_window("issued_at", request.issued_at, asked.at, context.replay_window())?;
    let target = request.action.target();
    let turn = Arc::new(context.target_locks().take(&target, id, asked.deadline).await?);
    // Its effect is made by then: nobody else has to wait for its completion.
    let ended = turn.clone();
    let context = context.clone().resting(Arc::new(move || ended.end()));
    transaction::execute(&context, cluster, request, asked).await
}

fn plan_input(context: &Context, request: &ActionRequest, id: &RequestId) -> PlanInput {
    let calls = request.timeout.map_or(context.deadline(), |it| it.min(context.deadline()));
    PlanInput {
        id: id.clone(),
        at: Utc::now(),
        deadline: Instant::now() + calls,
        wait: request.wait,
        precondition: request.precondition.clone(),
        uid: None,
        decision_etag: None,
    }
}

/// What the ledger may have forgotten cannot be recognised as done, so it is not done again. Nor is a
/// request from the future, which would outlive the ledger's memory.
pub(crate) fn check_replay_window(
    field: &str,
    issued_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    window: Duration,
) -> Result<(), ActionError> {
    let Some(issued_at) = issued_at else { return Ok(()) };
    let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
    let what = if now - issued_at > window {
        format!("is more than {} s ago", window.num_seconds())
    } else if issued_at - now > MAX_CLOCK_SKEW {
        "is in the future".to_owned()
    } else {
        return Ok(());
    };
    Err(ActionError::new(Code::RequestExpired, format!("{field}: {what}"))
        .with_field(field)
        .with_hint("decide anew, and send a new request with an id of its own"))
}

/// Has the API server try it, or without a cluster says what can be said. What the policy would say of
/// the real action is a warning.
async fn simulate(
    context: &Context,
    request: &ActionRequest,
    asked: &PlanInput,
) -> Result<ActionResponse, ActionError> {
    let policy = context.policy();
    policy.judge(&Facts::of(request, None)).refuse()?;
    let Some(cluster) = context.cluster() else {
        return Ok(offline(request, asked, &policy));
    };
    let done = apply::simulate(context, cluster, request, asked).await?;
    policy.judge_plan(request, &done.plan, true).refuse()?;
    let foreseen = policy_preview(&policy.judge_plan(request, &done.plan, false));
    let mut answer = ActionResponse::to(request, asked, done.outcome, done.result);
    answer.replayed = done.replayed;
    answer.warnings.extend(done.plan.warnings.iter().cloned());
    answer.warnings.extend(done.made.warnings_for_answer());
    answer.warnings.extend(foreseen);
    answer.changes = done.plan.changes;
    answer.target = done.plan.target;
    if done.made.resource_version.is_some() {
        answer.target.resource_version = done.made.resource_version;
    }
    Ok(answer)
}

fn offline(request: &ActionRequest, asked: &PlanInput, policy: &Policy) -> ActionResponse {
    let preview = request.action.plannable().preview(asked);
    let mut answer = ActionResponse::to(request, asked, Outcome::Simulated, preview.result);
    answer.offline = true;
    answer.changes = preview.changes;
    answer.warnings.push("no cluster is configured: the target was not looked at".to_owned());
    let facts = Facts { simulate: false, ..Facts::of(request, None) };
    answer.warnings.extend(policy_preview(&policy.judge(&facts)));
    answer
}

/// What the policy says of the same, were it not a simulation.
fn policy_preview(verdict: &Verdict) -> Option<String> {
    match verdict.refuse() {
        Err(refusal) => Some(format!("the real action would be refused: {}", refusal.detail)),
        Ok(()) if verdict.requires_approval() => {
            Some("the real action would wait for a person's approval".to_owned())
        }
        Ok(()) => None,
    }
}

/// Says in the action's span what came of it, as the metrics do.
fn record_in_span(result: &Result<ActionResponse, ActionError>) {
    let (word, failed) = match result {
        Ok(answer) => (answer.outcome.name(), answer.outcome == Outcome::Failed),
        Err(error) => (error.code.name(), true),
    };
    let span = Span::current();
    span.record("action_executor.result", word);
    if failed {
        span.record("otel.status_code", "ERROR");
    }
}

fn log(request: &ActionRequest, id: &RequestId, result: &Result<ActionResponse, ActionError>) {
    let action = request.to_string();
    let requester = request.requester.as_deref();
    let reason = request.reason.as_deref();
    let (simulate, id) = (request.simulate, &**id);
    match result {
        Ok(answer) => tracing::info!(
            id, action, simulate, requester, reason, replayed = answer.replayed,
            outcome = ?answer.outcome, result = answer.result, "action answered"
        ),
        Err(error) => tracing::warn!(
            id, action, simulate, requester, reason,
            code = %error.code, detail = error.detail, "action not done"
        ),
    }
}

impl ActionResponse {
    /// The beginning of an answer to this request: what is known before the cluster is asked.
    pub(crate) fn to(
        request: &ActionRequest,
        asked: &PlanInput,
        outcome: Outcome,
        result: String,
    ) -> Self {
        ActionResponse {
            result,
            id: asked.id.to_string(),
            kind: request.action.kind().name().to_owned(),
            outcome,
            replayed: false,
            offline: false,
            target: request.action.target(),
            changes: Vec::new(),
            warnings: request.action.warnings(),
            rollout: None,
            rolled_back: None,
            approval: None,
            started_at: asked.at,
            finished_at: Utc::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_forgotten_after_the_window_and_unheard_of_before_its_time() {
        let now: DateTime<Utc> = "2026-01-31T12:00:00Z".parse().expect("is a time");
        let age = |seconds: i64| {
            let issued_at = now - TimeDelta::seconds(seconds);
            let text = format!(
                r#"{{"type":"restart_k8s","parameters":{{"deployment":"a"}},"issued_at":"{}"}}"#,
                issued_at.to_rfc3339()
            );
            let request = ActionRequest::parse(text.as_bytes()).expect("is accepted");
            check_replay_window("issued_at", request.issued_at, now, Duration::from_secs(1800))
                .map_err(|error| error.code)
        };
        assert_eq!(age(1800), Ok(()));
        assert_eq!(age(1801), Err(Code::RequestExpired));
        assert_eq!(age(-60), Ok(()));
        assert_eq!(age(-61), Err(Code::RequestExpired));
    }
}
