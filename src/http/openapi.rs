//! `GET /openapi.json`: all of this as OpenAPI 3.1, from the types that read and write it.
//!
//! The schemas are schemars' own (OpenAPI 3.1 takes JSON Schema 2020-12 as it is), the statuses and codes
//! those of [`Code`], the paths those of the table of routes: what is described below and not served, or
//! read from a header that does not pass the edge, is left out.

use std::collections::{BTreeMap, BTreeSet};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    actions::{
        ActionKind,
        request::{ActionRequest, MAX_REQUEST_BYTES},
    },
    contract::{
        error::{ActionError, Code},
        response::ActionResponse,
    },
    executor::status::Progress,
    http::{
        body::REQUEST_HEADERS,
        endpoints::{actions, history, respond_async::Accepted},
        headers::TIMEOUT_HEADERS,
        routes::Route,
    },
    ledger::history::Page,
};

/// What is done at one path with one method.
struct Operation {
    path: &'static str,
    method: &'static str,
    id: &'static str,
    summary: &'static str,
    description: String,
    /// Whether callers are asked who they are, where they are asked at all.
    asks: bool,
    parameters: Vec<Value>,
    request: Option<Value>,
    /// What comes back when all is well, and what is no problem document though it is no success.
    answers: Vec<(u16, Value)>,
    /// The problems that can come back instead.
    codes: Vec<Code>,
}

/// Problems that any request can meet on its way.
const ON_THE_WAY: [Code; 7] = [
    Code::InvalidRequest,
    Code::MisdirectedRequest,
    Code::CrossSite,
    Code::PayloadTooLarge,
    Code::RequestTimeout,
    Code::Overloaded,
    Code::Internal,
];

/// Problems of a question to the cluster.
const OF_THE_CLUSTER: [Code; 6] = [
    Code::Forbidden,
    Code::RejectedByCluster,
    Code::CredentialsRefused,
    Code::Configuration,
    Code::ClusterUnreachable,
    Code::ClusterUnavailable,
];

/// Problems of who asks, and how often.
const OF_CALLERS: [Code; 3] = [Code::Unauthenticated, Code::CallerForbidden, Code::TooManyRequests];

const DESCRIPTION: &str = "The hand that an SRE agent, a person or an alert has on a Kubernetes cluster: one \
    request in, one checked action done at most once, one answer out. It simulates unless a request says \
    `\"simulate\": false`. What was not done is told in a problem document (RFC 9457) with a stable `code`.";

/// The document in one line of JSON.
#[must_use]
pub fn text() -> String {
    document().to_string()
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    let served = |operation: &Operation| Route::of(operation.method, operation.path).is_ok();
    for operation in operations(&mut generator).into_iter().filter(served) {
        let with_head = Route::of("HEAD", operation.path).is_ok();
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method.to_ascii_lowercase();
        path[method] = operation.described(&mut generator);
        // Whoever may GET may ask for the header alone (RFC 9110, section 9.3.2).
        if with_head {
            path["head"] = header_alone(path["get"].clone());
        }
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "action-executor",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Checked actions on a Kubernetes cluster, each at most once.",
            "description": DESCRIPTION,
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "servers": [{ "url": "/", "description": "The server that this comes from." }],
        "tags": [
            { "name": "actions", "description": "To have something done, and to see what was done." },
            { "name": "documents", "description": "What there is to ask for, for programs and people." },
            { "name": "operation", "description": "How the server is." },
        ],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "A key from the server's file of keys, or a Kubernetes token for the \
                                    server's audience.",
                },
                "mutualTLS": {
                    "type": "mutualTLS",
                    "description": "A client certificate, where the server takes them.",
                },
            },
        },
    })
}

fn operations(generator: &mut SchemaGenerator) -> Vec<Operation> {
    let answer = json_content::<ActionResponse>(generator, Some(example_answer()));
    vec![
        execute(generator, &answer),
        cloud_event(generator),
        Operation {
            description:
                "The newest first, as far back as the API server keeps Events: an hour, unless \
                          it was told otherwise. Callers need the right to `list`."
                    .to_owned(),
            asks: true,
            parameters: vec![
                query(
                    "namespace",
                    "Only records in this namespace, where those of actions on nodes are in `default`; \
                     all of them, if it is left out.",
                    &generator.subschema_for::<crate::contract::names::Namespace>().to_value(),
                ),
                query(
                    "target",
                    "Only what was done to this target, as `deployment/web` or `web`.",
                    &json!({ "type": "string", "minLength": 1, "maxLength": 320 }),
                ),
                query(
                    "limit",
                    "How many, at most.",
                    &json!({
                        "type": "integer", "minimum": 1, "maximum": history::MOST,
                        "default": history::USUAL,
                    }),
                ),
            ],
            answers: vec![(
                200,
                reply("What was done, by whom and why.", json_content::<Page>(generator, None)),
            )],
            codes: [&OF_CALLERS[..], &OF_THE_CLUSTER].concat(),
            ..read("/api/v1/history", "listHistory", "What was done")
        },
        progress(generator),
        Operation {
            description: "Every action with the JSON Schema of its parameters. Public.".to_owned(),
            answers: vec![(
                200,
                reply("Every action.", json_content::<actions::ActionList>(generator, None)),
            )],
            ..fixed("/api/v1/actions", "listActions", "What can be asked for")
        },
        Operation {
            answers: vec![(
                200,
                reply(
                    "An OpenAPI document.",
                    json!({ "application/json": { "schema": {
                    "type": "object", "required": ["openapi", "info", "paths"],
                } } }),
                ),
            )],
            ..fixed("/openapi.json", "getOpenApi", "This document")
        },
        document_of("/docs", "getDocs", "The page for people: actions and a console", "text/html"),
        document_of("/docs/page.js", "getDocsScript", "The page's script", "text/javascript"),
        document_of("/docs/page.css", "getDocsStyle", "The page's style", "text/css"),
        document_of(
            "/history",
            "getHistoryPage",
            "The page for people: what was done",
            "text/html",
        ),
        Operation {
            answers: vec![(200, reply("It does.", healthy()))],
            ..read("/api/v1/healthz", "getHealth", "Does the process live?")
        },
        Operation {
            description:
                "The cluster answers, and the files of policy and keys are the ones that hold."
                    .to_owned(),
            answers: vec![
                (200, reply("It could.", healthy())),
                // Whatever the reason, a probe goes by the status.
                (
                    503,
                    reply(
                        "It could not; the problem says why, with the status of its own kind in the \
                         document.",
                        json!({ "application/problem+json": {
                            "schema": generator.subschema_for::<ActionError>(),
                        } }),
                    ),
                ),
            ],
            ..read("/readyz", "getReadiness", "Could an action be done now?")
        },
        Operation {
            description: "For Prometheus, in its text format. A function has none.".to_owned(),
            answers: vec![(
                200,
                reply("The metrics.", json!({ "text/plain": { "schema": { "type": "string" } } })),
            )],
            codes: vec![Code::RouteNotFound],
            ..read("/metrics", "getMetrics", "What has been counted")
        },
    ]
}

fn execute(generator: &mut SchemaGenerator, answer: &Value) -> Operation {
    let examples: Map<_, _> = ActionKind::ALL
        .into_iter()
        .map(|kind| {
            let example = json!({ "summary": kind.name(), "value": actions::example(kind) });
            (kind.name().to_owned(), example)
        })
        .collect();
    Operation {
        path: "/api/v1/action/execute",
        method: "POST",
        id: "executeAction",
        summary: "Do an action, or tell what it would do",
        description: format!(
            "Simulated unless the request says `\"simulate\": false`. With an `id`, or the header \
             `Idempotency-Key`, the same request is done once however often it is sent, and answered \
             alike. At most {MAX_REQUEST_BYTES} bytes. Callers need the right to `simulate` or `execute` \
             the action in the target's namespace."
        ),
        asks: true,
        parameters: headers([
            (
                "Idempotency-Key",
                "The request's id, in quotes or bare, in place of `id`.",
                json!({
                    "type": "string",
                    "pattern": r#"^("[A-Za-z0-9._:-]{1,128}"|[A-Za-z0-9._:-]{1,128})$"#,
                }),
            ),
            (
                "Prefer",
                "`respond-async`: answer as soon as the request is written down (RFC 7240).",
                json!({ "type": "string", "examples": ["respond-async, wait=5"] }),
            ),
            (
                "Request-Timeout",
                "Seconds that the caller waits for the answer; the shorter, if both are there.",
                seconds(),
            ),
            ("X-Request-Timeout", "The same.", seconds()),
        ]),
        request: Some(json!({
            "required": true,
            "content": { "application/json": {
                "schema": generator.subschema_for::<ActionRequest>(),
                "examples": examples,
            } },
        })),
        answers: vec![
            (200, reply("Done, unchanged or simulated, as `outcome` says.", answer.clone())),
            (
                202,
                later(reply(
                    "A person has to approve it first, as `approval` says; or it goes on without the caller, \
                     who can ask how it is getting on.",
                    json!({ "application/json": { "schema": { "anyOf": [
                        generator.subschema_for::<ActionResponse>(),
                        generator.subschema_for::<Accepted>(),
                    ] } } }),
                )),
            ),
            (422, reply("Done, and what was waited for did not come", answer.clone())),
            (503, reply("Done, and the wait was interrupted", answer.clone())),
        ],
        codes: of_an_action(),
    }
}

/// A time in seconds, as it stands in a header.
fn seconds() -> Value {
    json!({ "type": "string", "pattern": r"^[1-9][0-9]{0,3}(\.[0-9]{1,3})?$", "examples": ["30", "2.5"] })
}

/// Whatever can go wrong with an action; a wrong path or method cannot, and is no action.
fn of_an_action() -> Vec<Code> {
    let elsewhere = [Code::Usage, Code::ServerUnhealthy];
    let can = |code: &Code| !matches!(code.http_status(), 404 | 405) && !elsewhere.contains(code);
    Code::ALL.into_iter().filter(can).collect()
}

/// A request in a CloudEvent, in either mode of its HTTP binding.
fn cloud_event(generator: &mut SchemaGenerator) -> Operation {
    let request = json!({
        "description": "A request; data that is none is answered with a problem in an event.",
        "anyOf": [generator.subschema_for::<ActionRequest>(), {}],
    });
    let name = json!({ "type": "string", "minLength": 1 });
    let kind = json!({ "const": "dev.action-executor.action.request.v1" });
    Operation {
        path: "/",
        method: "POST",
        id: "sendEvent",
        summary: "Do the action that a CloudEvent carries",
        description: "CloudEvents 1.0, in binary mode (headers `ce-...`, the request as the body) or \
                      structured mode (the request in `data`). The event's source and id are the \
                      request's id, unless it brings one of its own. The answer is an event too, in the \
                      same mode: `dev.action-executor.action.response.v1`, or `.problem.v1`."
            .to_owned(),
        asks: true,
        parameters: ["ce-specversion", "ce-type", "ce-source", "ce-id"]
            .map(|name| {
                json!({
                    "name": name, "in": "header", "schema": { "type": "string" },
                    "description": "In binary mode, and not empty; in structured mode it is not read.",
                })
            })
            .into(),
        request: Some(json!({
            "required": true,
            "content": {
                "application/json": { "schema": request },
                "application/cloudevents+json": { "schema": {
                    "type": "object",
                    "required": ["specversion", "type", "source", "id", "data"],
                    "properties": {
                        "specversion": { "const": "1.0" }, "type": kind, "source": name, "id": name,
                        // Null is as good as nothing (JSON Event Format for CloudEvents, section 2.2).
                        "datacontenttype": { "type": ["string", "null"] },
                        "time": { "type": ["string", "null"], "format": "date-time" },
                        "data": request,
                    },
                } },
            },
        })),
        answers: answers_to_events()
            .into_iter()
            .map(|status| {
                let said = json!({ "anyOf": [
                    generator.subschema_for::<ActionResponse>(), generator.subschema_for::<ActionError>(),
                ] });
                let content = json!({
                    "application/json": { "schema": said },
                    "application/cloudevents+json": { "schema": {
                        "type": "object",
                        "required": ["specversion", "type", "source", "id", "data"],
                        "properties": { "specversion": { "const": "1.0" }, "data": said },
                    } },
                });
                (status, reply("What came of it, as an event", content))
            })
            .collect(),
        codes: of_an_action(),
    }
}

/// The statuses with which an event comes back: those that brokers take as done, and those that make them
/// try again.
fn answers_to_events() -> BTreeSet<u16> {
    let retried = of_an_action().into_iter().map(Code::http_status);
    retried.filter(|status| matches!(status, 408 | 409 | 429 | 500..)).chain([200, 202]).collect()
}

/// How one request is getting on.
fn progress(generator: &mut SchemaGenerator) -> Operation {
    Operation {
        description:
            "From its record in the ledger. With `Accept: text/event-stream` it tells each change \
                      until the end. Callers need the right to `get` the action in its namespace."
                .to_owned(),
        asks: true,
        parameters: vec![
            json!({
                "name": "id", "in": "path", "required": true,
                "schema": generator.subschema_for::<crate::contract::names::RequestId>(),
                "description": "The request's id.",
            }),
            query(
                "namespace",
                "Where the record is: in the target's namespace, or `default` for what is in none.",
                &json!({ "type": "string", "default": "default" }),
            ),
        ],
        answers: vec![(
            200,
            told(reply(
                "How it is getting on. As a stream, `event: progress` with each change and `event: done` with \
                 the last; the data of each is the same object.",
                json!({
                    "application/json": { "schema": generator.subschema_for::<Progress>() },
                    "text/event-stream": { "schema": { "type": "string" } },
                }),
            )),
        )],
        codes: Code::ALL
            .into_iter()
            .filter(|code| code.http_status() == 404 || OF_CALLERS.contains(code))
            .chain(OF_THE_CLUSTER)
            .collect(),
        ..read("/api/v1/actions/{id}", "getAction", "How a request is getting on")
    }
}

/// A GET of something public, with nothing said of it yet.
fn read(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation {
        path,
        method: "GET",
        id,
        summary,
        description: String::new(),
        asks: false,
        parameters: Vec::new(),
        request: None,
        answers: Vec::new(),
        codes: Vec::new(),
    }
}

/// A GET of a document that is the same for everyone.
fn fixed(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    let parameters = headers([(
        "If-None-Match",
        "The tags of what the caller has already.",
        json!({ "type": "string" }),
    )]);
    Operation { parameters, ..read(path, id, summary) }
}

fn document_of(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    media_type: &'static str,
) -> Operation {
    let content = json!({ media_type: { "schema": { "type": "string" } } });
    Operation { answers: vec![(200, reply(summary, content))], ..fixed(path, id, summary) }
}

impl Operation {
    /// The operation as OpenAPI has it.
    fn described(self, generator: &mut SchemaGenerator) -> Value {
        let mut replies: BTreeMap<u16, Value> = self.answers.into_iter().collect();
        let is_fixed = self.parameters.iter().any(|it| it["name"] == "If-None-Match");
        if is_fixed {
            replies.insert(304, json!({ "description": "The caller has it already." }));
            let tag = json!({ "schema": { "type": "string" }, "description": "Its tag." });
            for reply in replies.values_mut() {
                reply["headers"]["ETag"] = tag.clone();
            }
        }
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in Code::ALL {
            if self.codes.contains(&code) || ON_THE_WAY.contains(&code) {
                by_status.entry(code.http_status()).or_default().push(code);
            }
        }
        for (status, codes) in by_status {
            let reply = replies.entry(status).or_insert_with(|| json!({}));
            add_problems(reply, status, &codes, generator);
        }
        let replies: Map<_, _> =
            replies.into_iter().map(|(status, reply)| (status.to_string(), reply)).collect();
        let mut described = json!({
            "operationId": self.id,
            "tags": [tag(self.path)],
            "summary": self.summary,
            "security": if self.asks { json!([{ "bearer": [] }, { "mutualTLS": [] }, {}]) } else { json!([]) },
            "responses": replies,
        });
        if !self.description.is_empty() {
            described["description"] = self.description.into();
        }
        if !self.parameters.is_empty() {
            described["parameters"] = self.parameters.into();
        }
        if let Some(request) = self.request {
            described["requestBody"] = request;
        }
        described
    }
}

fn tag(path: &str) -> &'static str {
    match path {
        "/" | "/api/v1/action/execute" | "/api/v1/history" | "/api/v1/actions/{id}" => "actions",
        "/api/v1/healthz" | "/readyz" | "/metrics" => "operation",
        _ => "documents",
    }
}

/// Adds to a reply the problems that come with this status.
fn add_problems(reply: &mut Value, status: u16, codes: &[Code], generator: &mut SchemaGenerator) {
    let listed: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}.", code.title())).collect();
    let listed = listed.join(" ");
    let words = match reply["description"].as_str() {
        Some(words) => format!("{}. Or a problem. {listed}", words.trim_end_matches('.')),
        None => listed,
    };
    reply["description"] = words.into();
    let problem = generator.subschema_for::<ActionError>().to_value();
    let mut content = json!({ "schema": problem });
    // Where another reply has said what a problem is here already, that holds.
    if reply["content"]["application/problem+json"].is_null() {
        let names: Vec<_> = codes.iter().map(|code| code.name()).collect();
        content["schema"] = json!({
            "allOf": [problem, { "properties": {
                "code": { "enum": names }, "status": { "const": status },
            } }],
        });
        content["examples"] = codes
            .iter()
            .map(|code| {
                let example = ActionError::new(*code, code.title());
                (code.name(), json!({ "summary": code.title(), "value": example }))
            })
            .collect();
        reply["content"]["application/problem+json"] = content;
    }
    if codes.iter().any(|code| code.retryable()) {
        reply["headers"]["Retry-After"] = json!({
            "schema": { "type": "integer", "minimum": 1 },
            "description": "Seconds to wait before another try, where that is known.",
        });
    }
    if status == 401 {
        reply["headers"]["WWW-Authenticate"] = json!({
            "schema": { "type": "string" }, "description": "How to say who you are (RFC 6750).",
        });
    }
}

fn reply(description: &str, content: Value) -> Value {
    json!({ "description": description, "content": content })
}

/// A reply that says when there may be more, or by what tag it is known if there will be none.
fn told(mut reply: Value) -> Value {
    reply["headers"] = json!({
        "Retry-After": {
            "schema": { "type": "integer", "minimum": 1 },
            "description": "Seconds until there may be more, while it is under way.",
        },
        "ETag": { "schema": { "type": "string" }, "description": "Its tag, once nothing more will come." },
        "Cache-Control": { "schema": { "type": "string" }, "description": "`no-cache`." },
    });
    reply
}

/// A reply that may say where the rest will be found, where the caller can ask for that.
fn later(mut reply: Value) -> Value {
    if passes("Prefer") {
        reply["headers"] = json!({
            "Location": {
                "schema": { "type": "string", "format": "uri-reference" },
                "description": "Where to ask how it is getting on.",
            },
            "Preference-Applied": { "schema": { "type": "string" }, "description": "RFC 7240." },
        });
    }
    reply
}

fn json_content<T: JsonSchema>(generator: &mut SchemaGenerator, example: Option<Value>) -> Value {
    let mut content = json!({ "schema": generator.subschema_for::<T>() });
    if let Some(example) = example {
        content["example"] = example;
    }
    json!({ "application/json": content })
}

fn healthy() -> Value {
    json!({ "application/json": {
        "schema": {
            "type": "object", "required": ["status"], "additionalProperties": false,
            "properties": { "status": { "const": "ok" } },
        },
        "example": { "status": "ok" },
    } })
}

fn query(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

/// Those of these headers that pass the edge.
fn headers<const N: usize>(all: [(&str, &str, Value); N]) -> Vec<Value> {
    let described = all.into_iter().filter(|(name, ..)| passes(name));
    described
        .map(|(name, description, schema)| {
            json!({ "name": name, "in": "header", "description": description, "schema": schema })
        })
        .collect()
}

fn passes(header: &str) -> bool {
    let is = |name: &str| name.eq_ignore_ascii_case(header);
    REQUEST_HEADERS.iter().any(|name| is(name.as_str())) || TIMEOUT_HEADERS.into_iter().any(is)
}

/// The same operation, asked for its header alone.
fn header_alone(mut get: Value) -> Value {
    if let Some(id) = get["operationId"].as_str() {
        get["operationId"] = format!("{id}Header").into();
    }
    get["summary"] = "The header of the same".into();
    for reply in get["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        reply.as_object_mut().map(|reply| reply.remove("content"));
    }
    get
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::routes::ROUTES;

    #[test]
    fn every_route_and_method_is_described() {
        let document = document();
        for (path, methods, ..) in ROUTES {
            for method in methods {
                let operation = &document["paths"][path][method.to_ascii_lowercase()];
                assert!(operation["operationId"].is_string(), "{method} {path}");
            }
        }
    }

    #[test]
    fn nothing_is_described_that_is_not_served() {
        let document = document();
        for (path, operations) in document["paths"].as_object().expect("are there") {
            for method in operations.as_object().expect("are there").keys() {
                let method = method.to_ascii_uppercase();
                assert!(Route::of(&method, path).is_ok(), "{method} {path}");
            }
        }
    }

    /// Every `example` and `examples` beside a `schema`, with both.
    fn examples(value: &Value) -> Vec<(Value, Value)> {
        let mut found = Vec::new();
        if let (Some(schema), Some(example)) = (value.get("schema"), value.get("example")) {
            found.push((schema.clone(), example.clone()));
        }
        if let (Some(schema), Some(examples)) = (value.get("schema"), value.get("examples")) {
            let examples = examples.as_object().into_iter().flat_map(Map::values);
            found.extend(examples.map(|it| (schema.clone(), it["value"].clone())));
        }
        let parts: Vec<_> = match value {
            Value::Object(parts) => parts.values().collect(),
            Value::Array(parts) => parts.iter().collect(),
            _ => Vec::new(),
        };
        found.extend(parts.into_iter().flat_map(examples));
        found
    }

    #[test]
    fn every_example_keeps_to_its_schema() {
        let document = document();
        let examples = examples(&document["paths"]);
        assert!(examples.len() > ActionKind::ALL.len() + Code::ALL.len(), "{}", examples.len());
        for (mut schema, example) in examples {
            schema["components"] = document["components"].clone();
            let validator = jsonschema::validator_for(&schema).expect("is a schema");
            assert!(validator.is_valid(&example), "{example}: {:?}", validator.validate(&example));
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap_or_default();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
