//! `POST /api/v1/action/execute`: the request in the body, carried out.

use std::{sync::Arc, time::Duration};

use http::Response;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::{
    actions::{
        ActionKind,
        request::{ActionRequest, MAX_REQUEST_BYTES},
    },
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
    },
    executor::{
        context::Context,
        incoming::{IncomingRequest, execute_as},
        reply::Reply,
    },
    http::{
        dispatch::Service,
        endpoints::{
            actions,
            respond_async::{Accepted, execute_async},
        },
        headers::{
            ACCEPT, CONTENT_TYPE, IDEMPOTENCY_KEY, PREFER, TIMEOUT_PATTERN, TIMEOUTS, check_accept,
            check_content_encoding, check_content_type, idempotency_key, respond_async,
        },
        message::{Body, FullRequest, RequestInfo},
        openapi::{self, Operation, Tag, json_content, response},
    },
};

/// How long before its client's time is over an action ends: long enough to find out what became of a
/// write, and to record it. At most a quarter of that time.
const RECORD_MARGIN: Duration = Duration::from_secs(2);

/// Carries out the request; with `Prefer: respond-async` the response may come earlier.
///
/// # Errors
/// The media types do not fit, a header cannot be read, or as `execute_as` says.
pub(crate) async fn execute(
    service: &Service,
    request: FullRequest,
    info: RequestInfo,
) -> Result<Response<Body>, ActionError> {
    let headers = request.headers();
    check_accept(ACCEPT.read(headers)?.as_deref())?;
    check_content_type(CONTENT_TYPE.read(headers)?.as_deref())?;
    check_content_encoding(headers)?;
    let key = idempotency_key(IDEMPOTENCY_KEY.read(headers)?.as_deref())?;
    let wait = respond_async(PREFER.read(headers)?.as_deref());
    let caller = info.caller.clone();
    let incoming = IncomingRequest { body: request.into_body().into(), key, ..Default::default() };
    note_simulation(&incoming, &info);
    let time = action_time(&info);
    if let (Some(wait), Some(server)) = (wait, &service.server)
        && let Some(permit) = server.background.permit()
    {
        // The client's time is for its response; asynchronous work outlasts it.
        let wait = time.map_or(wait, |time| wait.min(time));
        let context = with_permit(service, &info);
        return Box::pin(execute_async(context, caller, incoming, permit, wait)).await;
    }
    let context = action_context(service, &info);
    let done = execute_as(&context, caller.as_ref(), &incoming).await?;
    Ok(Reply::from(done).into())
}

/// A simulation whose client's time runs out has changed nothing.
pub(super) fn note_simulation(incoming: &IncomingRequest, info: &RequestInfo) {
    let is_timed = info.deadline.is_some();
    if let Some(permit) = info.permit.as_ref().filter(|_| is_timed)
        && incoming.request().is_ok_and(|request| request.simulate)
    {
        permit.simulates();
    }
}

/// The context for the action of this request: within its client's time, and with its permit.
pub(super) fn action_context(service: &Service, info: &RequestInfo) -> Context {
    let context = with_permit(service, info);
    match action_time(info) {
        Some(time) => context.with_deadline(time),
        None => context,
    }
}

/// The context in which an action that only waits for its effect frees the permit to act.
pub(super) fn with_permit(service: &Service, info: &RequestInfo) -> Context {
    let context = service.context.clone();
    let Some(permit) = &info.permit else { return context };
    // Asynchronous work holds the context for longer than the permit.
    let permit = Arc::downgrade(permit);
    context.map_observer(|observer| {
        observer.on_waiting(move || {
            if let Some(permit) = permit.upgrade() {
                permit.downgrade();
            }
        })
    })
}

/// The time for the action of this request, if its client waits for a limited time.
pub(super) fn action_time(info: &RequestInfo) -> Option<Duration> {
    let time = info.deadline?.saturating_duration_since(Instant::now());
    Some(time - RECORD_MARGIN.min(time / 4))
}

/// The operation in the OpenAPI document.
pub(crate) fn operation(generator: &mut SchemaGenerator) -> Operation {
    let examples = ActionKind::ALL.map(|kind| {
        let example = json!({ "summary": kind.name(), "value": actions::example(kind) });
        (kind.name().to_owned(), example)
    });
    let mut answer = json_content::<ActionResponse>(generator);
    answer["application/json"]["example"] = example_answer();
    let mut accepted = response(
        "A person has to approve it first, as `approval` says; or it continues, and its state can be read.",
        json!({ "application/json": { "schema": { "anyOf": [
            generator.subschema_for::<ActionResponse>(), generator.subschema_for::<Accepted>(),
        ] } } }),
    );
    accepted["headers"] = json!({
        "Location": {
            "schema": { "type": "string", "format": "uri-reference" },
            "description": "Where its state is.",
        },
        "Preference-Applied": { "schema": { "type": "string" }, "description": "RFC 7240." },
    });
    let seconds = || {
        json!({
            "type": "string", "pattern": TIMEOUT_PATTERN, "maxLength": TIMEOUTS[0].max,
            "examples": ["30", "2.5"],
        })
    };
    Operation {
        method: "POST",
        description: format!(
            "Simulated unless the request says `\"simulate\": false`. With an `id`, or the header \
             `Idempotency-Key`, the same request is carried out once however often it is sent, and answered \
             alike. At most {MAX_REQUEST_BYTES} bytes. Callers need permission to `simulate` or `execute` \
             the action in the target's namespace."
        ),
        authenticated: true,
        parameters: vec![
            openapi::header(
                "Idempotency-Key",
                "The request's id, in quotes or bare, in place of `id`.",
                json!({
                    "type": "string",
                    "pattern": r#"^("[A-Za-z0-9._:-]{1,128}"|[A-Za-z0-9._:-]{1,128})$"#,
                }),
            ),
            openapi::header(
                "Prefer",
                "`respond-async`: respond as soon as the request is claimed in the cluster (RFC 7240).",
                json!({ "type": "string", "examples": ["respond-async, wait=5"] }),
            ),
            openapi::header(
                "Request-Timeout",
                "Seconds that the client waits for the response, more than 0 and at most 86400; the shorter, if \
                 both are sent.",
                seconds(),
            ),
            openapi::header("X-Request-Timeout", "The same.", seconds()),
        ],
        request: Some(json!({
            "required": true,
            "content": { "application/json": {
                "schema": generator.subschema_for::<ActionRequest>(),
                "examples": examples.into_iter().collect::<Map<_, _>>(),
            } },
        })),
        responses: vec![
            (200, response("Done, unchanged or simulated, as `outcome` says.", answer.clone())),
            (202, accepted),
            (422, response("Done, but its effect did not complete", answer.clone())),
            (503, response("Done, and the wait was interrupted", answer)),
        ],
        errors: action_errors(),
        ..Operation::get(
            "/api/v1/action/execute",
            "executeAction",
            Tag::Actions,
            "Execute or simulate an action",
        )
    }
}

/// All that can go wrong with an action.
pub(super) fn action_errors() -> Vec<Code> {
    let elsewhere = [Code::Usage, Code::ServerUnhealthy];
    let can = |code: &Code| !matches!(code.http_status(), 404 | 405) && !elsewhere.contains(code);
    Code::ALL.into_iter().filter(can).collect()
}

fn example_answer() -> Value {
    json!({
        "result": "Simulated: Deployment 'web' would be restarted.",
        "id": "01a20d7d-ba38-7457-9d7e-86f8688ab624",
        "type": "restart_k8s",
        "outcome": "simulated",
        "replayed": false,
        "target": {
            "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "default", "name": "web",
            "uid": "bb0ca73b-bb38-428c-be61-3dfe14766e51", "resourceVersion": "304",
        },
        "changes": [{
            "path": "/spec/template/metadata/annotations/kubectl.kubernetes.io~1restartedAt",
            "from": null, "to": "2026-11-24T12:17:53Z",
        }],
        "warnings": [],
        "started_at": "2026-11-24T12:17:53.208Z",
        "finished_at": "2026-11-24T12:17:53.213Z",
    })
}
