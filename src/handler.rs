//! `handle`: one request in, one answer out, whichever door it came through.
//!
//! It settles what is common to all actions: the request's id, the time allowed, and whether there is
//! a cluster at all. A simulation is planned and tried here; a real action is a `transaction`.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use crate::{
    actions::Asked,
    context::Context,
    error::{ActionError, Code},
    execution,
    failpoint::Failpoint,
    k8s::cluster::Cluster,
    names::RequestId,
    request::ActionRequest,
    response::{ActionResponse, Outcome, Target},
    transaction,
};

/// Longest wait for an effect when the request names none.
pub(crate) const DEFAULT_WAIT: Duration = Duration::from_secs(300);

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
    let asked = ask(context, &request, &id);
    let result = match (context.cluster(), request.simulate) {
        (Some(cluster), true) => simulate(context, cluster, &request, &asked).await,
        (Some(cluster), false) => transaction::carry_out(context, cluster, &request, asked).await,
        (None, true) => Ok(offline(&request, &asked)),
        (None, false) => Err(ActionError::new(
            Code::Configuration,
            "no cluster is configured, so nothing can be done",
        )
        .with_hint("set KUBECONFIG, or run where a service account is mounted")),
    };
    log(&what, &request, &id, &result);
    Failpoint::BeforeAnswer.pass();
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
        uid: None,
    }
}

fn offline(request: &ActionRequest, asked: &Asked) -> ActionResponse {
    let preview = request.action.plannable().preview(asked);
    let mut answer = ActionResponse::to(request, asked, Outcome::Simulated, preview.result);
    answer.offline = true;
    answer.changes = preview.changes;
    answer.warnings.push("no cluster is configured: the target was not looked at".to_owned());
    answer
}

async fn simulate(
    context: &Context,
    cluster: &Cluster,
    request: &ActionRequest,
    asked: &Asked,
) -> Result<ActionResponse, ActionError> {
    let done = execution::simulate(context, cluster, request, asked).await?;
    let mut answer = ActionResponse::to(request, asked, done.outcome, done.result);
    answer.replayed = done.replayed;
    answer.warnings.extend(done.plan.warnings);
    answer.changes = done.plan.changes;
    answer.target = Target { resource_version: done.made.resource_version, ..done.plan.target };
    Ok(answer)
}

impl ActionResponse {
    /// The beginning of an answer to this request: what is known before the cluster is asked.
    pub(crate) fn to(
        request: &ActionRequest,
        asked: &Asked,
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
            started_at: asked.at,
            finished_at: Utc::now(),
        }
    }
}
