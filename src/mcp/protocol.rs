//! The Model Context Protocol's messages (JSON-RPC 2.0): read strictly, written on one line. Decisions on text alone;
//! no tool, no transport and no cluster is known here.
//!
//! Revisions of two kinds are supported (<https://modelcontextprotocol.io/specification/2026-07-28/basic/versioning>):
//! since 2026-07-28 each request names its revision in `_meta`; before, `initialize` agreed on one. No session is kept
//! in either: a request of an earlier revision is answered by itself.
//!
//! A field that is given twice is refused, because two readers could take different values. So messages are not read
//! by the types of the official SDK, which keep the last value of each.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json, value::RawValue};

use crate::contract::{error::ActionError, json::read as read_strictly, names::AuditText};

/// The first revision in which each request is self-contained.
pub(crate) const STATELESS: Revision = Revision("2026-07-28");

/// Every supported revision, the newest first.
pub(crate) const REVISIONS: [Revision; 4] =
    [STATELESS, NEWEST_WITH_HANDSHAKE, Revision("2025-06-18"), ASSUMED];

/// What `initialize` agrees on if the client names a revision that has no handshake or is not known.
const NEWEST_WITH_HANDSHAKE: Revision = Revision("2025-11-25");

/// The revision of a request that names none.
const ASSUMED: Revision = Revision("2025-03-26");

/// A revision of the protocol, by its date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision(pub &'static str);

impl Revision {
    /// The revision of this date, if it is supported.
    pub(crate) fn named(name: &str) -> Option<Self> {
        REVISIONS.into_iter().find(|revision| revision.0 == name)
    }

    /// Whether each request is self-contained.
    pub(crate) fn is_stateless(self) -> bool {
        self >= STATELESS
    }

    /// What `initialize` agrees on, given what the client names.
    pub(crate) fn agreed(name: &str) -> Self {
        let known = Revision::named(name).filter(|revision| !revision.is_stateless());
        known.unwrap_or(NEWEST_WITH_HANDSHAKE)
    }
}

/// Why a message is not answered by a result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProtocolError {
    /// The code, of JSON-RPC or of the protocol.
    pub code: i64,
    /// What was wrong.
    pub message: String,
    /// What else a program may need.
    pub data: Option<Box<Value>>,
}

/// JSON-RPC: the text is not JSON.
pub(crate) const PARSE_ERROR: i64 = -32700;
/// JSON-RPC: the JSON is not a message.
pub(crate) const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC: there is no such method.
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC: the request could not be answered.
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// JSON-RPC: the method's parameters are wrong.
pub(crate) const INVALID_PARAMS: i64 = -32602;
/// A header of the request differs from its body.
pub(crate) const HEADER_MISMATCH: i64 = -32020;
/// The client does not declare what the request needs.
pub(crate) const MISSING_CAPABILITY: i64 = -32021;
/// The revision is not supported.
pub(crate) const UNSUPPORTED_REVISION: i64 = -32022;

impl ProtocolError {
    pub(crate) fn new(code: i64, message: impl Into<String>) -> Self {
        ProtocolError { code, message: message.into(), data: None }
    }

    /// The client has to declare these capabilities.
    pub(crate) fn missing_capability(required: Value) -> Self {
        ProtocolError {
            data: Some(Box::new(json!({ "requiredCapabilities": required }))),
            ..ProtocolError::new(MISSING_CAPABILITY, "Missing required client capability")
        }
    }

    fn unsupported(requested: &str) -> Self {
        let supported = REVISIONS.map(|revision| revision.0);
        // What is not a date may be long, or anything else.
        let requested: String = requested.chars().take(32).collect();
        let data = json!({ "supported": supported, "requested": requested });
        ProtocolError {
            data: Some(Box::new(data)),
            ..ProtocolError::new(UNSUPPORTED_REVISION, "Unsupported protocol version")
        }
    }
}

/// The id of a request: a string or an integer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MessageId(Value);

impl MessageId {
    pub(crate) fn of(value: Value) -> Option<Self> {
        let is_id = value.is_string() || value.is_i64() || value.is_u64();
        is_id.then_some(MessageId(value))
    }
}

/// A message of a client.
#[derive(Debug)]
pub(crate) enum Message {
    /// It expects an answer.
    Request(Box<Request>),
    /// It expects none.
    Notification(Notification),
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    pub id: MessageId,
    pub method: String,
    /// The parameters, unread.
    params: String,
    pub meta: Meta,
}

/// A notification.
#[derive(Debug)]
pub(crate) struct Notification {
    method: String,
    params: String,
}

/// What a request says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Meta {
    /// The revision that it names.
    pub revision: Option<String>,
    /// The client's program and its version.
    pub client: Option<AuditText>,
    /// What progress notifications refer to, if they are wanted.
    pub progress_token: Option<Value>,
    /// Whether it lists what the client can do, which requests without a handshake have to.
    has_capabilities: bool,
    /// Whether the client takes a task for an answer.
    pub takes_tasks: bool,
    /// The trace that it belongs to (W3C Trace Context), as headers.
    pub trace: Option<Box<HeaderMap>>,
}

/// The extension for answers that come later.
pub(crate) const TASKS: &str = "io.modelcontextprotocol/tasks";

/// What could not be read, with the id if that could.
pub(crate) type Unreadable = (Option<MessageId>, ProtocolError);

#[derive(Deserialize)]
struct Envelope<'a> {
    jsonrpc: Option<String>,
    /// An id that is null is an id, and none that is allowed.
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WithMeta<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct MetaFields {
    #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
    revision: Option<String>,
    #[serde(rename = "io.modelcontextprotocol/clientInfo")]
    client: Option<Value>,
    #[serde(rename = "io.modelcontextprotocol/clientCapabilities")]
    capabilities: Option<Map<String, Value>>,
    #[serde(rename = "progressToken")]
    progress_token: Option<Value>,
    traceparent: Option<Value>,
    tracestate: Option<Value>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// Reads one message.
///
/// # Errors
/// It is not UTF-8 or JSON, not one object, not JSON-RPC 2.0, or a field is wrong or given twice.
pub(crate) fn read(bytes: &[u8]) -> Result<Message, Unreadable> {
    let without_id = |code, what: String| (None, ProtocolError::new(code, what));
    let text = std::str::from_utf8(bytes)
        .map_err(|_| without_id(PARSE_ERROR, "the message is not UTF-8".to_owned()))?;
    serde_json::from_str::<&RawValue>(text)
        .map_err(|error| without_id(PARSE_ERROR, format!("the message is not JSON: {error}")))?;
    if text.trim_start().starts_with('[') {
        let what = "batches are not supported: send one message at a time";
        return Err(without_id(INVALID_REQUEST, what.to_owned()));
    }
    let envelope: Envelope =
        read_strictly(text, "").map_err(|error| without_id(INVALID_REQUEST, error.detail))?;
    let id = envelope.id.map(MessageId::of);
    let known = id.clone().flatten();
    let invalid = |what: &str| (known.clone(), ProtocolError::new(INVALID_REQUEST, what));
    if envelope.jsonrpc.as_deref() != Some("2.0") {
        return Err(invalid("jsonrpc: must be \"2.0\""));
    }
    let Some(method) = envelope.method else {
        return Err(invalid("method: missing; this server asks its clients nothing"));
    };
    let params = envelope.params.map_or("{}", RawValue::get).to_owned();
    match id {
        None => Ok(Message::Notification(Notification { method, params })),
        Some(None) => Err(invalid("id: must be a string or an integer")),
        Some(Some(id)) => match meta(&params) {
            Ok(meta) => Ok(Message::Request(Box::new(Request { id, method, params, meta }))),
            Err(error) => Err((Some(id), error)),
        },
    }
}

fn meta(params: &str) -> Result<Meta, ProtocolError> {
    let Some(meta) = parameters::<WithMeta>(params)?.meta else { return Ok(Meta::default()) };
    let fields: MetaFields = read_strictly(meta.get(), "params._meta").map_err(wrong_params)?;
    if let Some(token) = &fields.progress_token
        && MessageId::of(token.clone()).is_none()
    {
        let what = "params._meta.progressToken: must be a string or an integer";
        return Err(ProtocolError::new(INVALID_PARAMS, what));
    }
    Ok(Meta {
        revision: fields.revision,
        client: fields.client.as_ref().and_then(client_name),
        progress_token: fields.progress_token,
        takes_tasks: fields
            .capabilities
            .as_ref()
            .and_then(|all| all.get("extensions")?.get(TASKS))
            .is_some_and(Value::is_object),
        has_capabilities: fields.capabilities.is_some(),
        trace: trace_headers(fields.traceparent, fields.tracestate),
    })
}

/// A trace that cannot be read is none; it changes nothing that is done.
fn trace_headers(parent: Option<Value>, state: Option<Value>) -> Option<Box<HeaderMap>> {
    let header = |name: &'static str, value: Option<Value>| {
        let value = HeaderValue::from_str(value?.as_str()?).ok()?;
        Some((HeaderName::from_static(name), value))
    };
    let parent = header("traceparent", parent)?;
    let headers = [Some(parent), header("tracestate", state)].into_iter().flatten();
    Some(Box::new(headers.collect()))
}

/// The name and version of a client's program (`Implementation`); what is not printable is left out, and so is what
/// exceeds its maximum length.
pub(crate) fn client_name(client: &Value) -> Option<AuditText> {
    let text = |name: &str| client[name].as_str().unwrap_or_default();
    let both = format!("{} {}", text("name"), text("version"));
    let printable = |c: &char| c.is_ascii_graphic() || *c == ' ';
    let short: String = both.trim().chars().filter(printable).take(MAX_CLIENT_LENGTH).collect();
    AuditText::try_from(short).ok()
}

/// The maximum length of a client's name and version.
const MAX_CLIENT_LENGTH: usize = 80;

fn parameters<'de, T: Deserialize<'de>>(params: &'de str) -> Result<T, ProtocolError> {
    read_strictly(params, "params").map_err(wrong_params)
}

fn wrong_params(error: ActionError) -> ProtocolError {
    ProtocolError::new(INVALID_PARAMS, error.detail)
}

impl Request {
    /// Its parameters.
    ///
    /// # Errors
    /// [`INVALID_PARAMS`] with the field that is wrong.
    pub(crate) fn params<'de, T: Deserialize<'de>>(&'de self) -> Result<T, ProtocolError> {
        parameters(&self.params)
    }

    /// The revision in which it is to be answered; `header` is the one that its transport names, if that can.
    ///
    /// # Errors
    /// [`UNSUPPORTED_REVISION`] for a revision that is not supported, [`INVALID_PARAMS`] if `_meta` lacks what requests
    /// without a handshake have to say.
    pub(crate) fn revision(&self, header: Option<&str>) -> Result<Revision, ProtocolError> {
        let named = self.meta.revision.as_deref();
        let Some(name) = named.or(header) else {
            return if self.method == DISCOVER { Err(missing(REVISION)) } else { Ok(ASSUMED) };
        };
        // A handshake agrees on a revision whatever the client names.
        if self.method == INITIALIZE && named.is_none() {
            return Ok(ASSUMED);
        }
        let revision = Revision::named(name).ok_or_else(|| ProtocolError::unsupported(name))?;
        if !revision.is_stateless() {
            return Ok(revision);
        }
        match named {
            None => Err(missing(REVISION)),
            Some(_) if !self.meta.has_capabilities => Err(missing(CAPABILITIES)),
            Some(_) => Ok(revision),
        }
    }
}

/// The method that describes the server.
pub(crate) const DISCOVER: &str = "server/discover";
/// The method of the handshake before 2026-07-28.
pub(crate) const INITIALIZE: &str = "initialize";

const REVISION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

fn missing(field: &str) -> ProtocolError {
    ProtocolError::new(INVALID_PARAMS, format!("params._meta.{field}: missing"))
}

impl Notification {
    /// The id of the request that it cancels, if that is what it says.
    pub(crate) fn cancelled(&self) -> Option<MessageId> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Cancelled {
            request_id: Value,
        }
        if self.method != "notifications/cancelled" {
            return None;
        }
        parameters::<Cancelled>(&self.params).ok().and_then(|it| MessageId::of(it.request_id))
    }
}

/// The answer with a result, in one line of JSON.
pub(crate) fn result(id: &MessageId, result: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id.0, "result": result }).to_string()
}

/// The answer with an error, in one line of JSON. An id that could not be read is left out.
pub(crate) fn error(id: Option<&MessageId>, error: &ProtocolError) -> String {
    let mut answer = json!({ "jsonrpc": "2.0" });
    if let Some(id) = id {
        answer["id"] = id.0.clone();
    }
    answer["error"] = json!({ "code": error.code, "message": error.message });
    if let Some(data) = &error.data {
        answer["error"]["data"] = Value::clone(data);
    }
    answer.to_string()
}

/// A progress notification, in one line of JSON. `step` counts up.
pub(crate) fn progress(token: &Value, step: u64, message: &str) -> String {
    let params = json!({ "progressToken": token, "progress": step, "message": message });
    json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": params }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of the error, and whether the id is known.
    fn refused(text: &str) -> (i64, bool) {
        let (id, error) = read(text.as_bytes()).expect_err(text);
        (error.code, id.is_some())
    }

    fn request(text: &str) -> Request {
        match read(text.as_bytes()) {
            Ok(Message::Request(request)) => *request,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn invalid_messages_have_json_rpc_codes() {
        for (text, code, has_id) in [
            ("", PARSE_ERROR, false),
            ("{", PARSE_ERROR, false),
            ("{} {}", PARSE_ERROR, false),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a""#, PARSE_ERROR, false),
            ("null", INVALID_REQUEST, false),
            ("7", INVALID_REQUEST, false),
            ("[]", INVALID_REQUEST, false),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, INVALID_REQUEST, false),
            (r#"["2.0",1,"ping"]"#, INVALID_REQUEST, false),
            ("{}", INVALID_REQUEST, false),
            (r#"{"id":1,"method":"ping"}"#, INVALID_REQUEST, true),
            (r#"{"jsonrpc":"1.0","id":"a","method":"ping"}"#, INVALID_REQUEST, true),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, INVALID_REQUEST, false),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, INVALID_REQUEST, false),
            (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, INVALID_REQUEST, false),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, INVALID_REQUEST, true),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, INVALID_REQUEST, false),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#, INVALID_PARAMS, true),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}"#, INVALID_PARAMS, true),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":[]}}"#,
                INVALID_PARAMS,
                true,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{"progressToken":1.5}}}"#,
                INVALID_PARAMS,
                true,
            ),
        ] {
            assert_eq!(refused(text), (code, has_id), "{text}");
        }
        assert!(read(b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_field_that_is_given_twice_is_refused_at_every_level() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{},"params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{},"_meta":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"_meta":{"progressToken":1,"progressToken":2}}}"#,
        ] {
            let (_, error) = read(text.as_bytes()).expect_err(text);
            assert!(error.message.contains("given more than once"), "{}", error.message);
        }
        #[derive(Debug, Deserialize)]
        #[allow(dead_code, reason = "only read")]
        struct Call {
            name: String,
        }
        let twice =
            r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"name":"scale","name":"drain"}}"#;
        let twice = request(twice);
        let error = twice.params::<Call>().expect_err("is refused");
        assert_eq!(error.message, "params.name: given more than once");
    }

    #[test]
    fn a_revision_is_named_by_the_request_or_its_transport_and_has_to_be_spoken() {
        let with = |method: &str, meta: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"_meta":{{{meta}}}}}}}"#
            )
        };
        let revision = |text: &str, header: Option<&str>| {
            request(text).revision(header).map(|it| it.0).map_err(|error| error.code)
        };
        let version = |date: &str| format!(r#""{REVISION}":"{date}""#);
        let whole = format!(r#"{},"{CAPABILITIES}":{{}}"#, version("2026-07-28"));
        for (method, meta, header, expected) in [
            ("tools/list", String::new(), None, Ok("2025-03-26")),
            ("tools/list", String::new(), Some("2025-06-18"), Ok("2025-06-18")),
            ("tools/list", String::new(), Some("1900-01-01"), Err(UNSUPPORTED_REVISION)),
            ("tools/list", String::new(), Some("2026-07-28"), Err(INVALID_PARAMS)),
            ("tools/list", version("2026-07-28"), None, Err(INVALID_PARAMS)),
            ("tools/list", version("1900-01-01"), None, Err(UNSUPPORTED_REVISION)),
            ("tools/list", version("2025-11-25"), None, Ok("2025-11-25")),
            ("tools/list", whole.clone(), None, Ok("2026-07-28")),
            ("server/discover", String::new(), None, Err(INVALID_PARAMS)),
            ("server/discover", whole, None, Ok("2026-07-28")),
            ("initialize", String::new(), Some("2026-07-28"), Ok("2025-03-26")),
        ] {
            let text = with(method, &meta);
            assert_eq!(revision(&text, header), expected, "{text} {header:?}");
        }
        let error =
            request(&with("a", &version("1900-01-01"))).revision(None).expect_err("is unknown");
        let data = error.data.expect("is there");
        assert_eq!(data["requested"], "1900-01-01");
        assert_eq!(data["supported"][0], "2026-07-28");
    }

    #[test]
    fn a_client_takes_tasks_if_the_request_itself_declares_it() {
        for (capabilities, expected) in [
            ("{}", false),
            (r#"{"extensions":{}}"#, false),
            (r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#, true),
            (r#"{"extensions":{"io.modelcontextprotocol/tasks":null}}"#, false),
            (r#"{"extensions":{"io.modelcontextprotocol/ui":{}}}"#, false),
            (r#"{"tasks":{}}"#, false),
            (r#"{"extensions":[]}"#, false),
        ] {
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"_meta":{{"{CAPABILITIES}":{capabilities}}}}}}}"#
            );
            assert_eq!(request(&text).meta.takes_tasks, expected, "{capabilities}");
        }
    }

    #[test]
    fn a_trace_is_read_and_a_wrong_one_is_none() {
        let trace = |fields: &str| {
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"_meta":{{{fields}}}}}}}"#
            );
            request(&text).meta.trace
        };
        let both = trace(r#""traceparent":"00-1-2-01","tracestate":"a=b""#).expect("is read");
        let named = |name: &str| both[name].to_str().expect("is text");
        assert_eq!([named("traceparent"), named("tracestate")], ["00-1-2-01", "a=b"]);
        for none in ["", r#""traceparent":7"#, r#""traceparent":"\n""#, r#""tracestate":"a=b""#] {
            assert_eq!(trace(none), None, "{none}");
        }
    }

    #[test]
    fn a_handshake_agrees_on_a_revision_that_has_one() {
        for (named, agreed) in [
            ("2025-11-25", "2025-11-25"),
            ("2025-03-26", "2025-03-26"),
            ("2024-11-05", "2025-11-25"),
            ("2026-07-28", "2025-11-25"),
            ("", "2025-11-25"),
        ] {
            assert_eq!(Revision::agreed(named).0, agreed, "{named}");
        }
    }

    #[test]
    fn a_client_is_named_by_printable_text_of_limited_length() {
        let name = |client: Value| client_name(&client).map(|it| it.to_string());
        let both = json!({ "name": "claude-code", "version": "2.1.0" });
        assert_eq!(name(both).as_deref(), Some("claude-code 2.1.0"));
        assert_eq!(name(json!({ "name": "a\u{202e}\nb" })).as_deref(), Some("ab"));
        assert_eq!(name(json!({ "name": "x".repeat(500) })).map(|it| it.len()), Some(80));
        for nothing in [json!({}), json!(7), json!({ "name": "\n" })] {
            assert_eq!(name(nothing.clone()), None, "{nothing}");
        }
    }

    #[test]
    fn only_a_cancellation_cancels() {
        let cancelled = |text: &str| match read(text.as_bytes()) {
            Ok(Message::Notification(notification)) => notification.cancelled(),
            other => panic!("{text}: {other:?}"),
        };
        let text =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
        assert_eq!(cancelled(text), MessageId::of(json!(7)));
        for other in [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":[]}}"#,
        ] {
            assert_eq!(cancelled(other), None, "{other}");
        }
    }

    #[test]
    fn an_answer_is_one_line_with_the_id_as_it_came() {
        for id in [json!(7), json!("a\nb"), json!(u64::MAX), json!(-1)] {
            let id = MessageId::of(id).expect("is an id");
            let line = result(&id, json!({ "text": "a\nb" }));
            assert!(!line.contains('\n'), "{line}");
            let answer: Value = serde_json::from_str(&line).expect("is JSON");
            assert_eq!(answer["id"], id.0);
        }
        let unread = error(None, &ProtocolError::new(PARSE_ERROR, "no"));
        assert_eq!(unread, r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"no"}}"#);
    }
}
