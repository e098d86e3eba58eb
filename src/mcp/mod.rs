//! The Model Context Protocol: from a client's request to the executor, and from its answer to a result that a model
//! can act on. `protocol` has the messages, `tools` what is offered, `calls` the time of a call, `tasks` what comes
//! later, and `answers` the results.
//!
//! It knows no transport: `commands::mcp` serves standard input and output, `http::endpoints::mcp` serves HTTP. Both
//! authenticate the caller, and decide what becomes of a client that is gone. No session is kept, and nothing in the
//! protocol approves an action.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    actions::ActionKind,
    auth::{
        Caller,
        permissions::{PermissionCache, PermissionScope, Permissions},
    },
    config::ToolSet,
    contract::{
        error::{ActionError, Code},
        json::{read as read_strictly, strict_object_or_null},
        names::{AuditText, ClusterName, Namespace, RequestId},
    },
    diagnosis::target::Target,
    executor::{
        context::Context,
        incoming::{IncomingRequest, diagnose_as, find_as, list_as},
        reply::Reply,
    },
    ledger::history::Filter,
    mcp::{
        calls::{CallResult, Hold, Progression, ToolCall, Waits},
        protocol::{
            DISCOVER, INITIALIZE, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, ProtocolError,
            REVISIONS, Request, Revision, TASKS,
        },
        tools::{
            CLUSTER_HEADER, DEFAULT_ENTRIES, INSTRUCTIONS, MAX_ENTRIES, NAMESPACE_HEADER,
            NamespaceAt, Offer, Tool,
        },
    },
    policy::Policy,
    telemetry::traces,
};

mod answers;
pub(crate) mod calls;
pub(crate) mod protocol;
mod tasks;
mod tools;

/// How long a client may keep the description of the server, which changes with the program only.
const DISCOVERY_TTL: Duration = Duration::from_secs(3600);

/// How long a client may keep its tools, which change with the policy and with its permissions.
const TOOLS_TTL: Duration = Duration::from_secs(30);

/// How long the permissions of a caller are read. Each of them is a call to the cluster; what is read by then is
/// listed.
const OFFER_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a call's time in which a diagnosis reads: its target has to be authorized before.
const DIAGNOSIS_PART: f64 = 0.8;

/// On how many clusters of the list the permissions of a cluster's user are checked.
const MAX_CLUSTERS: usize = 8;

/// In how many namespaces that a policy names the permissions of a cluster's user are checked.
const MAX_NAMESPACES: usize = 8;

/// What is known of a request besides its text.
pub(crate) struct Exchange<B, R> {
    /// The executor's context.
    pub context: Context,
    /// Who sent it; `None` if authentication is off.
    pub caller: Option<Caller>,
    /// The client's program, if the request does not name it.
    pub client: Option<AuditText>,
    /// The revision in which it is answered.
    pub revision: Revision,
    /// The tools that are offered.
    pub tools: ToolSet,
    /// After how long a call is answered.
    pub wait: Duration,
    /// Held until the action ends.
    pub hold: Hold<B, R>,
    /// What is known of callers' permissions.
    pub permissions: Arc<PermissionCache>,
    /// The waits in progress.
    pub waits: Waits,
    /// The lines that the client gets before its answer, if it wants any.
    pub progression: Option<Progression>,
}

/// The result of a request. Dropping the returned future gives the request up.
///
/// # Errors
/// There is no such method or tool, or its parameters are not what the protocol says. What is wrong with the arguments
/// of a tool is a result, so that a model can act on it.
pub(crate) async fn answer<B, R>(
    exchange: Exchange<B, R>,
    request: &Request,
) -> Result<Value, ProtocolError>
where
    B: Send + 'static,
    R: Send + 'static,
{
    let span = span(request);
    Box::pin(answer_in_span(exchange, request)).instrument(span).await
}

/// The span of a request that names a trace of its own; it continues that trace, whatever its transport names.
fn span(request: &Request) -> Span {
    let Some(trace) = &request.meta.trace else { return Span::current() };
    let span = tracing::debug_span!("mcp", otel.kind = "server", trace_id = Empty);
    traces::extract(&span, trace);
    span
}

async fn answer_in_span<B, R>(
    exchange: Exchange<B, R>,
    request: &Request,
) -> Result<Value, ProtocolError>
where
    B: Send + 'static,
    R: Send + 'static,
{
    let revision = exchange.revision;
    let result = match (&*request.method, revision.is_stateless()) {
        (DISCOVER, true) => cached(discovery(), DISCOVERY_TTL, "public"),
        (INITIALIZE, false) => handshake(request)?,
        ("ping", false) => json!({}),
        ("tools/list", _) => {
            let offers = Box::pin(offers(&exchange, Instant::now() + OFFER_TIMEOUT))
                .await
                .map_err(|error| ProtocolError::new(INTERNAL_ERROR, error.with_its_hint()))?;
            let default = exchange.context.names().and_then(|names| names.default);
            let tools = tools::list(&offers, exchange.tools, default.as_deref());
            let tools = json!({ "tools": tools });
            if revision.is_stateless() { cached(tools, TOOLS_TTL, "private") } else { tools }
        }
        ("tools/call", _) => Box::pin(call(exchange, request)).await?,
        (method, true) if let Some(method) = tasks::Method::named(method) => {
            let Exchange { context, caller, waits, .. } = &exchange;
            Box::pin(tasks::answer(method, request, context, caller.as_ref(), waits)).await?
        }
        (method, _) => {
            let known: String = method.chars().filter(|c| !c.is_control()).take(64).collect();
            let what = format!("there is no method '{known}'");
            return Err(ProtocolError::new(METHOD_NOT_FOUND, what));
        }
    };
    Ok(if revision.is_stateless() { complete(result) } else { result })
}

/// A result as revisions without a handshake have it: complete, unless it says something else.
fn complete(mut result: Value) -> Value {
    if result.get("resultType").is_none() {
        result["resultType"] = "complete".into();
    }
    result["_meta"] = json!({ "io.modelcontextprotocol/serverInfo": server_info() });
    result
}

fn cached(mut result: Value, ttl: Duration, scope: &str) -> Value {
    result["ttlMs"] = json!(ttl.as_millis() as u64);
    result["cacheScope"] = scope.into();
    result
}

fn server_info() -> Value {
    json!({ "name": "action-executor", "version": env!("CARGO_PKG_VERSION") })
}

fn discovery() -> Value {
    json!({
        "supportedVersions": REVISIONS.map(|revision| revision.0),
        "capabilities": { "tools": {}, "extensions": { (TASKS): {} } },
        "instructions": INSTRUCTIONS,
    })
}

fn handshake(request: &Request) -> Result<Value, ProtocolError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialize {
        protocol_version: String,
    }
    let wanted: Initialize = request.params()?;
    Ok(json!({
        "protocolVersion": Revision::agreed(&wanted.protocol_version).0,
        "capabilities": { "tools": {} },
        "serverInfo": server_info(),
        "instructions": INSTRUCTIONS,
    }))
}

/// Whether the request is about one task, which its parameters name.
pub(crate) fn is_about_a_task(request: &Request) -> bool {
    tasks::Method::named(&request.method).is_some()
}

/// The headers that repeat an argument, by the end of their names.
pub(crate) const REPEATED: &[&str] = &[NAMESPACE_HEADER];

/// The same where clusters are listed by name: only then do the tools take one.
pub(crate) const REPEATED_WITH_LIST: &[&str] = &[NAMESPACE_HEADER, CLUSTER_HEADER];

/// The headers that repeat an argument in this context.
pub(crate) fn repeated_arguments(context: &Context) -> &'static [&'static str] {
    if context.has_list() { REPEATED_WITH_LIST } else { REPEATED }
}

/// What the arguments of a call name that these headers repeat: each header with its value if there is one. Nothing of
/// what the call will be refused for instead.
pub(crate) fn repeated_in_headers(
    request: &Request,
    headers: &[&str],
) -> Vec<(&'static str, Option<String>)> {
    #[derive(Deserialize)]
    struct CallToolParams<'a> {
        name: String,
        #[serde(borrow)]
        arguments: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Parameters {
        namespace: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Arguments {
        namespace: Option<Value>,
        cluster: Option<Value>,
        #[serde(default, deserialize_with = "strict_object_or_null")]
        parameters: Option<Parameters>,
    }
    let Ok(CallToolParams { name, arguments }) = request.params() else { return Vec::new() };
    let Some(tool) = Tool::named(&name) else { return Vec::new() };
    let Ok(Arguments { namespace, cluster, parameters }) =
        read_strictly(arguments.map_or("{}", RawValue::get), "")
    else {
        return Vec::new();
    };
    let namespace = tool.namespace_at().map(|at| match at {
        NamespaceAt::Top => namespace,
        NamespaceAt::Parameters => parameters.and_then(|parameters| parameters.namespace),
    });
    let named = [(NAMESPACE_HEADER, namespace), (CLUSTER_HEADER, Some(cluster))];
    let named = named.into_iter().filter(|(header, _)| headers.contains(header));
    let text = |(header, value)| match value {
        Some(None) => Some((header, None)),
        Some(Some(Value::String(text))) => Some((header, Some(text))),
        Some(Some(_)) | None => None,
    };
    named.filter_map(text).collect()
}

/// The client's program as a handshake names it.
pub(crate) fn client_of_handshake(request: &Request) -> Option<AuditText> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Initialize {
        client_info: Value,
    }
    let wanted: Initialize = request.params().ok()?;
    protocol::client_name(&wanted.client_info)
}

/// What the caller may do on each cluster under its policy, in one namespace at least, as far as it is read before
/// `end`. One cluster follows the other, so that a client that asks again, because the time was up, finds what is known
/// of the first ones.
async fn offers<B, R>(exchange: &Exchange<B, R>, end: Instant) -> Result<Vec<Offer>, ActionError> {
    let Exchange { context, caller, permissions, .. } = exchange;
    let late = |_| {
        let detail = "the caller's permissions could not be read in time";
        Err(ActionError::new(Code::ClusterUnavailable, detail))
    };
    let max = match caller {
        Some(Caller::User(_)) => MAX_CLUSTERS,
        _ => usize::MAX,
    };
    let mut offers = Vec::new();
    for of in context.each_cluster().iter().take(max) {
        let policy = of.policy();
        let scope = scope(of, caller.as_ref(), &policy);
        let reading = permissions.of(caller.as_ref(), scope, context.reviewer());
        let permissions = timeout_at(end, reading).await.unwrap_or_else(late);
        let cluster = of.shared_listed_name().cloned();
        offers.push(
            permissions.map(|permissions| Offer {
                cluster,
                permissions: allowed_by(&policy, permissions),
            }),
        );
    }
    those_read(offers)
}

/// Those that could be read.
///
/// # Errors
/// Why the first could not be read, if none could.
fn those_read(offers: Vec<Result<Offer, ActionError>>) -> Result<Vec<Offer>, ActionError> {
    if offers.iter().any(Result::is_ok) {
        return Ok(offers.into_iter().flatten().collect());
    }
    offers.into_iter().collect()
}

/// What this policy leaves of these permissions.
fn allowed_by(policy: &Policy, permissions: Permissions) -> Permissions {
    let allowed = |kinds: Vec<ActionKind>, by: &dyn Fn(ActionKind) -> bool| {
        kinds.into_iter().filter(|kind| by(*kind)).collect()
    };
    Permissions {
        execute: allowed(permissions.execute, &|kind| policy.permits(kind) && !policy.read_only),
        simulate: allowed(permissions.simulate, &|kind| policy.allows_simulation(kind)),
        ..permissions
    }
}

/// Where and for what the permissions of a caller are checked on the cluster of this context: in all namespaces at
/// once, in its own, in that of the cluster's credentials, and in those that the policy names; for the actions that the
/// policy permits.
fn scope(context: &Context, caller: Option<&Caller>, policy: &Policy) -> PermissionScope {
    let own = caller.and_then(|caller| {
        let (namespace, _) =
            caller.name().strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Some(namespace.to_owned())
    });
    let servers = context.cluster().map(|cluster| cluster.default_namespace().to_owned());
    let own: Vec<_> = own.into_iter().chain(servers).collect();
    let Permissions { execute, simulate, .. } = allowed_by(policy, Permissions::all());
    PermissionScope {
        cluster: context.shared_listed_name().cloned(),
        namespaces: namespaces(&own, policy),
        execute,
        simulate,
    }
}

/// All namespaces at once, these own ones, and the first that the policy names besides.
fn namespaces(own: &[String], policy: &Policy) -> Vec<String> {
    let mut all = vec![String::new()];
    let add = |all: &mut Vec<String>, namespace: &str| {
        if !all.iter().any(|it| it == namespace) {
            all.push(namespace.to_owned());
        }
    };
    own.iter().for_each(|namespace| add(&mut all, namespace));
    let most = all.len() + MAX_NAMESPACES;
    let named = policy.namespaces.allow.iter().filter_map(|pattern| pattern.name());
    named.for_each(|namespace| add(&mut all, namespace));
    all.truncate(most);
    all
}

async fn call<B, R>(exchange: Exchange<B, R>, request: &Request) -> Result<Value, ProtocolError>
where
    B: Send + 'static,
    R: Send + 'static,
{
    #[derive(Deserialize)]
    struct CallToolParams<'a> {
        name: String,
        #[serde(borrow)]
        arguments: Option<&'a RawValue>,
    }
    let CallToolParams { name, arguments } = request.params()?;
    let arguments = arguments.map_or("{}", RawValue::get).trim();
    if !arguments.starts_with('{') {
        let what = "params.arguments: must be an object";
        return Err(ProtocolError::new(INVALID_PARAMS, what));
    }
    let tool = Tool::named(&name)
        .ok_or_else(|| ProtocolError::new(INVALID_PARAMS, "params.name: unknown tool"))?;
    let context = exchange.context.clone();
    let result = match tool {
        Tool::GetAction => get_action(&exchange, arguments).await,
        Tool::ListActions => list_actions(&exchange, arguments).await,
        Tool::Diagnose => diagnose(&exchange, arguments).await,
        Tool::Simulate | Tool::Execute | Tool::Action(_) => match request_of(tool, arguments) {
            Ok(body) => Ok(execute(exchange, request, body).await),
            Err(error) => Err(error),
        },
    };
    Ok(result.unwrap_or_else(|error| {
        if let Some(metrics) = context.metrics() {
            metrics.problem(&error);
        }
        answers::of_reply(&Reply::from(error), context.names().as_ref())
    }))
}

async fn execute<B, R>(exchange: Exchange<B, R>, request: &Request, body: Vec<u8>) -> Value
where
    B: Send + 'static,
    R: Send + 'static,
{
    let client = request.meta.client.clone().or(exchange.client);
    let incoming = IncomingRequest { body, client, ..IncomingRequest::default() };
    let Exchange { context, caller, wait, hold, waits, progression, revision, .. } = exchange;
    let ended = calls::execute(ToolCall {
        context: context.clone(),
        caller: caller.clone(),
        incoming,
        wait,
        takes_task: revision.is_stateless() && request.meta.takes_tasks,
        hold,
        waits,
        progression,
    });
    match ended.await {
        CallResult::Done(reply) => answers::of_reply(&reply, context.names().as_ref()),
        CallResult::InProgress(found) => {
            answers::of_progress(&found.progress().await, context.names().as_ref())
        }
        CallResult::Task(found, context) => tasks::created(&found, &context, caller.as_ref()).await,
    }
}

/// The request that a call stands for: its arguments, and what the tool itself says. The arguments are passed on as
/// they are, so that the parser of all entry points reads them, and sees what is given twice.
///
/// # Errors
/// The arguments have a field that the tool decides, or lack the id of a write.
fn request_of(tool: Tool, arguments: &str) -> Result<Vec<u8>, ActionError> {
    #[derive(Deserialize)]
    struct Given {
        id: Option<IgnoredAny>,
        #[serde(rename = "type")]
        kind: Option<IgnoredAny>,
        simulate: Option<IgnoredAny>,
    }
    let given: Given = read_strictly(arguments, "")?;
    let (simulates, kind) = match tool {
        Tool::Action(kind) => (false, Some(kind)),
        tool => (tool == Tool::Simulate, None),
    };
    if given.simulate.is_some() {
        return Err(ActionError::invalid_field("simulate", "the tool decides this")
            .with_hint("leave it out; the tool simulate simulates, and the others execute"));
    }
    if kind.is_some() && given.kind.is_some() {
        return Err(
            ActionError::invalid_field("type", "the tool decides this").with_hint("leave it out")
        );
    }
    if !simulates && given.id.is_none() {
        return Err(ActionError::invalid_field("id", "missing").with_hint(
            "take it from the incident, alert or ticket that this answers, and send the same one on every retry",
        ));
    }
    let kind = kind.map(|kind| format!("\"type\":\"{}\",", kind.name())).unwrap_or_default();
    let rest = arguments.strip_prefix('{').unwrap_or(arguments);
    let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
    Ok(format!("{{{kind}\"simulate\":{simulates}{comma}{rest}").into_bytes())
}

async fn get_action<B, R>(
    exchange: &Exchange<B, R>,
    arguments: &str,
) -> Result<Value, ActionError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct GetActionArguments {
        id: RequestId,
        #[serde(default)]
        namespace: Option<Namespace>,
        #[serde(default)]
        cluster: Option<ClusterName>,
    }
    let GetActionArguments { id, namespace, cluster } = read_strictly(arguments, "")?;
    let Exchange { context, caller, .. } = exchange;
    let context = context.for_cluster(cluster.as_ref())?;
    let found = find_as(&context, caller.as_ref(), &namespace.unwrap_or_default(), &id).await?;
    Ok(answers::of_progress(&found.progress().await, context.names().as_ref()))
}

async fn list_actions<B, R>(
    exchange: &Exchange<B, R>,
    arguments: &str,
) -> Result<Value, ActionError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ListActionsArguments {
        namespace: Option<Namespace>,
        target: Option<String>,
        limit: Option<usize>,
        cluster: Option<ClusterName>,
    }
    let ListActionsArguments { namespace, target, limit, cluster } = read_strictly(arguments, "")?;
    let limit = limit.unwrap_or(DEFAULT_ENTRIES);
    if !(1..=MAX_ENTRIES).contains(&limit) {
        let what = format!("must be a number from 1 to {MAX_ENTRIES}");
        return Err(ActionError::invalid_field("limit", what));
    }
    let Exchange { context, caller, .. } = exchange;
    let filter =
        Filter { namespace: namespace.map(|it| it.to_string()), target, ..Filter::default() };
    let context = context.for_cluster(cluster.as_ref())?;
    let time = context.deadline().min(exchange.wait);
    Ok(answers::of_page(list_as(&context, caller.as_ref(), &filter, limit, time).await?))
}

async fn diagnose<B, R>(exchange: &Exchange<B, R>, arguments: &str) -> Result<Value, ActionError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct DiagnoseArguments {
        target: String,
        #[serde(default)]
        namespace: Option<Namespace>,
        #[serde(default)]
        cluster: Option<ClusterName>,
    }
    let DiagnoseArguments { target, namespace, cluster } = read_strictly(arguments, "")?;
    let target = Target::read(&target, namespace)?;
    let Exchange { context, caller, .. } = exchange;
    let context = context.for_cluster(cluster.as_ref())?;
    let time = context.deadline().min(exchange.wait.mul_f64(DIAGNOSIS_PART));
    Ok(answers::of_report(&diagnose_as(&context, caller.as_ref(), &target, time).await?))
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::{
        actions::request::ActionRequest,
        config::{
            Settings,
            reload::{ConfigFile, Reloading},
        },
        mcp::protocol::{MISSING_CAPABILITY, Message, STATELESS, read},
    };

    fn request(method: &str, params: Value) -> Request {
        let text = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        match read(text.to_string().as_bytes()) {
            Ok(Message::Request(request)) => *request,
            other => panic!("{other:?}"),
        }
    }

    /// Answers without a cluster, under the default policy.
    async fn answered(revision: Revision, request: &Request) -> Result<Value, i64> {
        let settings = Settings::from_vars(std::iter::empty()).expect("are settings");
        let policy = Reloading::new(None).expect("is the shipped one");
        let (_stop, stopping) = watch::channel(false);
        let exchange = Exchange::<(), ()> {
            context: Context::new(None, policy, &settings, stopping).expect("is right"),
            caller: None,
            client: None,
            revision,
            tools: ToolSet::PerAction,
            wait: settings.mcp.wait,
            hold: Hold::Request(()),
            permissions: Arc::default(),
            waits: Waits::default(),
            progression: None,
        };
        answer(exchange, request).await.map_err(|error| error.code)
    }

    async fn called(name: &str, arguments: Value) -> Value {
        let call = request("tools/call", json!({ "name": name, "arguments": arguments }));
        answered(STATELESS, &call).await.expect("is a result")
    }

    #[tokio::test]
    async fn each_era_has_its_methods_and_its_results() {
        let legacy = Revision("2025-11-25");
        let initialize =
            json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {} });
        for (method, params, stateless, handshake) in [
            ("server/discover", json!({}), true, false),
            ("tools/list", json!({}), true, true),
            ("initialize", initialize, false, true),
            ("ping", json!({}), false, true),
            ("prompts/list", json!({}), false, false),
            ("resources/list", json!({}), false, false),
            ("logging/setLevel", json!({}), false, false),
            ("tasks/list", json!({}), false, false),
            ("tasks/result", json!({}), false, false),
            ("", json!({}), false, false),
        ] {
            let request = request(method, params);
            for (revision, is_known) in [(STATELESS, stateless), (legacy, handshake)] {
                let result = answered(revision, &request).await;
                assert_eq!(result.is_ok(), is_known, "{method} {revision:?}: {result:?}");
                match result {
                    Ok(result) => {
                        let is_stateless = revision.is_stateless();
                        assert_eq!(result["resultType"] == "complete", is_stateless, "{method}");
                        let is_cacheable = is_stateless && method != "tools/call";
                        assert_eq!(result["ttlMs"].is_u64(), is_cacheable, "{method}");
                    }
                    Err(code) => assert_eq!(code, METHOD_NOT_FOUND, "{method}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_wrong_call_is_an_error_and_wrong_arguments_are_a_result() {
        for params in [
            json!({}),
            json!({ "name": 7 }),
            json!({ "name": "delete_everything" }),
            json!({ "name": "scale", "arguments": [] }),
            json!({ "name": "scale", "arguments": "x" }),
        ] {
            let result = answered(STATELESS, &request("tools/call", params.clone())).await;
            assert_eq!(result, Err(INVALID_PARAMS), "{params}");
        }
        for (name, arguments, field) in [
            ("scale", json!({}), "id"),
            ("scale", json!({ "id": null, "parameters": {} }), "id"),
            ("scale", json!({ "id": "a b", "parameters": {} }), "id"),
            ("scale", json!({ "id": "a", "simulate": true }), "simulate"),
            ("scale", json!({ "id": "a", "type": "drain" }), "type"),
            ("scale", json!({ "id": "a", "parameters": {} }), "parameters.name"),
            ("scale", json!({ "id": "a", "parameters": { "x": 1 } }), "parameters.x"),
            ("scale", json!({ "id": "a", "x": 1 }), "x"),
            ("simulate", json!({}), "type"),
            ("simulate", json!({ "simulate": false }), "simulate"),
            ("get_action", json!({}), "id"),
            ("get_action", json!({ "id": "a", "x": 1 }), "x"),
            ("list_actions", json!({ "limit": 26 }), "limit"),
            ("diagnose", json!({}), "target"),
            ("diagnose", json!({ "target": "web" }), "target"),
            ("diagnose", json!({ "target": "pod/a", "x": 1 }), "x"),
        ] {
            let result = called(name, arguments.clone()).await;
            assert_eq!(result["isError"], true, "{name} {arguments}: {result}");
            let given = &result["structuredContent"]["field"];
            assert_eq!(given, field, "{name} {arguments}: {result}");
        }
    }

    #[tokio::test]
    async fn tasks_are_for_clients_that_declare_them_and_unknown_ones_are_wrong_parameters() {
        let declared = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": { "extensions": { (TASKS): {} } },
        });
        for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
            let params = |task: Value, meta: &Value| json!({ "taskId": task, "inputResponses": {}, "_meta": meta });
            for (task, meta, revision, expected) in [
                (json!("x"), &json!({}), STATELESS, MISSING_CAPABILITY),
                (json!("x"), &declared, STATELESS, INVALID_PARAMS),
                (json!(7), &declared, STATELESS, INVALID_PARAMS),
                (json!(null), &declared, STATELESS, INVALID_PARAMS),
                // There is no cluster to read the record from.
                (json!("shop/a/YWJj"), &declared, STATELESS, INTERNAL_ERROR),
                (json!("x"), &declared, Revision("2025-11-25"), METHOD_NOT_FOUND),
            ] {
                let request = request(method, params(task.clone(), meta));
                assert_eq!(answered(revision, &request).await, Err(expected), "{method} {task}");
            }
        }
        let update = request("tasks/update", json!({ "taskId": "x", "_meta": declared }));
        assert_eq!(answered(STATELESS, &update).await, Err(INVALID_PARAMS));
    }

    #[tokio::test]
    async fn a_simulation_works_without_a_cluster_and_nothing_else_does() {
        let web = json!({ "deployment": "web" });
        let result = called("simulate", json!({ "type": "restart_k8s", "parameters": web })).await;
        assert_eq!(result["isError"], false, "{result}");
        assert_eq!(result["structuredContent"]["offline"], true);
        for (name, arguments) in [
            ("restart_k8s", json!({ "id": "a", "parameters": web })),
            ("get_action", json!({ "id": "a" })),
            ("list_actions", json!({})),
            ("diagnose", json!({ "target": "pod/a" })),
        ] {
            let result = called(name, arguments).await;
            assert_eq!(result["structuredContent"]["code"], "configuration", "{result}");
        }
    }

    #[test]
    fn unread_permissions_are_not_offered() {
        let offer =
            |name: &str| Offer { cluster: Some(Arc::from(name)), permissions: Permissions::all() };
        let failed = |detail| Err(ActionError::new(Code::ClusterUnavailable, detail));
        let read = those_read(vec![failed("late"), Ok(offer("blue")), failed("gone")]);
        let names: Vec<_> = read.expect("is read").into_iter().map(|it| it.cluster).collect();
        assert_eq!(names, [Some(Arc::from("blue"))]);
        let error = those_read(vec![failed("late"), failed("gone")]).expect_err("none is read");
        assert_eq!(error.detail, "late");
        assert!(those_read(Vec::new()).is_ok_and(|offers| offers.is_empty()));
    }

    #[test]
    fn permissions_are_read_in_the_first_namespaces_of_each_policy_once() {
        let own = ["jo", "ops", "jo"].map(str::to_owned);
        let policy = "namespaces: {allow: [ops, a, a, team-*, b, c, d, e, f, g, h, i]}";
        let policy = Policy::parse(policy, "policy.yaml").expect("is one");
        let found = namespaces(&own, &policy);
        assert_eq!(found, ["", "jo", "ops", "a", "b", "c", "d", "e", "f", "g", "h"]);
    }

    #[test]
    fn a_call_becomes_the_request_that_every_entry_point_reads() {
        let parsed = |tool, arguments: &str| {
            request_of(tool, arguments).and_then(|body| ActionRequest::parse(&body))
        };
        let scale = r#"{"id":"a","parameters":{"name":"web","replicas":3},"wait":true}"#;
        let request = parsed(Tool::Action(ActionKind::Scale), scale).expect("is a request");
        assert_eq!((request.simulate, request.wait), (false, true));
        assert_eq!(request.action.kind(), ActionKind::Scale);
        let whole = r#" { "type":"scale","parameters":{"name":"web","replicas":3}}"#;
        assert!(parsed(Tool::Simulate, whole.trim()).expect("is a request").simulate);
        for (tool, arguments, detail) in [
            (Tool::Simulate, "{}", "type: missing"),
            (Tool::Simulate, "{ }", "type: missing"),
            (Tool::Execute, r#"{"type":"scale","type":"drain"}"#, "type: given more than once"),
            (Tool::Execute, r#"{"id":"a","id":"b"}"#, "id: given more than once"),
            (
                Tool::Action(ActionKind::Scale),
                r#"{"id":"a","parameters":{"name":"a","name":"b"}}"#,
                "parameters.name: given more than once",
            ),
            (
                Tool::Action(ActionKind::Scale),
                r#"{"id":"a","parameters":{},"parameters":{}}"#,
                "parameters: given more than once",
            ),
        ] {
            assert_eq!(parsed(tool, arguments).expect_err(arguments).detail, detail);
        }
    }
}
