//! `handle`: one request in, one answer out, whichever door it came through.
//!
//! It settles what is common to all actions: the request's id, the time allowed, whether there is a
//! cluster at all, and the form of the answer. `execution` makes the effect and
//! `wait` stays until it is complete.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use crate::{
    actions::Asked,
    context::Context,
    error::{ActionError, Code},
    execution,
    k8s::cluster::Cluster,
    names::RequestId,
    request::ActionRequest,
    response::{ActionResponse, Outcome, RolloutState, Target},
    wait,
};

/// Longest wait for an effect when the request names none.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);

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
    let what = request.to_string();
    let result = match (context.cluster(), request.simulate) {
        (Some(cluster), _) => on_cluster(context, cluster, &request, &id).await,
        (None, true) => Ok(offline(context, &request, &id)),
        (None, false) => Err(ActionError::new(
            Code::Configuration,
            "no cluster is configured, so nothing can be done",
        )
        .with_hint("set KUBECONFIG, or run where a service account is mounted")),
    };
    log(&what, &request, &id, &result);
    result.map_err(|error| error.with_id(&id))
}

fn log(
    what: &str,
    request: &ActionRequest,
    id: &RequestId,
    result: &Result<ActionResponse, ActionError>,
) {
    let requester = request.requester.as_deref();
    let reason = request.reason.as_deref();
    let (simulate, id) = (request.simulate, &**id);
    match result {
        Ok(answer) => tracing::info!(
            id, action = what, simulate, requester, reason,
            outcome = ?answer.outcome, result = answer.result, "action answered"
        ),
        Err(error) => tracing::warn!(
            id, action = what, simulate, requester, reason,
            code = %error.code, detail = error.detail, "action not done"
        ),
    }
}

fn ask(context: &Context, request: &ActionRequest, id: &RequestId) -> Asked {
    let calls = request.timeout.map_or(context.deadline(), |it| it.min(context.deadline()));
    Asked {
        id: id.clone(),
        at: Utc::now(),
        deadline: Instant::now() + calls,
        wait: request.wait && !request.simulate,
        precondition: request.precondition.clone(),
    }
}

fn offline(context: &Context, request: &ActionRequest, id: &RequestId) -> ActionResponse {
    let asked = ask(context, request, id);
    let preview = request.action.plannable().preview(&asked);
    let mut answer = answer(request, &asked, Outcome::Simulated, preview.result);
    answer.offline = true;
    answer.changes = preview.changes;
    answer.warnings.push("no cluster is configured: the target was not looked at".to_owned());
    answer
}

async fn on_cluster(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    id: &RequestId,
) -> Result<ActionResponse, ActionError> {
    let asked = ask(context, request, id);
    let end = Instant::now() + request.timeout.unwrap_or(DEFAULT_WAIT);
    let done = execution::execute(context, cluster, request, &asked).await?;
    let mut answer = answer(request, &asked, done.outcome, done.result);
    answer.replayed = done.replayed;
    answer.warnings.extend(done.plan.warnings.iter().cloned());
    if asked.wait {
        let completion = done.plan.completion(&done.made, &asked.id);
        let rollout = wait::until_complete(context, cluster, &completion, end).await;
        if rollout.state != RolloutState::Complete {
            answer.outcome = Outcome::Failed;
        }
        answer.result = format!("{} {rollout}", answer.result);
        answer.rollout = Some(rollout);
    }
    answer.changes = done.plan.changes;
    answer.target = Target { resource_version: done.made.resource_version, ..done.plan.target };
    answer.finished_at = Utc::now();
    Ok(answer)
}

fn answer(
    request: &ActionRequest,
    asked: &Asked,
    outcome: Outcome,
    result: String,
) -> ActionResponse {
    ActionResponse {
        result,
        id: asked.id.to_string(),
        kind: request.action.kind().name(),
        outcome,
        replayed: false,
        offline: false,
        target: request.action.target(),
        changes: Vec::new(),
        warnings: request.action.warnings(),
        rollout: None,
        started_at: asked.at,
        finished_at: Utc::now(),
    }
}
