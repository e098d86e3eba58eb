//! The Model Context Protocol over both transports: what a client may send, what a model gets, and that an effect is
//! made once whichever entry point a request takes.
//!
//! [`Stdio`] and [`Http`] use the newest revision of the protocol. The official clients, in tests/mcp, are those of the
//! ignored tests.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio as Pipe},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use action_executor::{
    actions::{ActionKind, request::MAX_REQUEST_BYTES},
    auth::token_review,
    contract::digest::sha256,
    executor::failpoint::Failpoint,
    policy::approval,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json, value::RawValue};
use tokio::task::spawn_blocking;

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{MISSING_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    fault_proxy::{Proxy, ProxyBehavior},
    ledger::{effects_left_unknown, records},
    program::{Dialogue, Engine, Program, Reply, Server, scratch},
    scenario::{Scenario, for_each, without_replayed},
};

const REVISION: &str = "2026-07-28";
const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";
/// The tools of a caller with all actions: `simulate`, `execute`, `get_action`, `list_actions` and `diagnose`.
const TOOLS: usize = 5;
/// With [`PER_ACTION`] each action has its own instead of `execute`.
const OWN_TOOLS: usize = ActionKind::ALL.len() + 4;
const PER_ACTION: (&str, &str) = ("ACTION_EXECUTOR_MCP_TOOLS", "per_action");
const METADATA_PATH: &str = "/.well-known/oauth-protected-resource/mcp";

/// The default policy lists no key, so that label, annotate, taint and untaint are not allowed, and names no
/// integration.
fn own_tools_by_default() -> usize {
    let is_off = |kind: &ActionKind| kind.descriptor().integration.is_some();
    OWN_TOOLS - 4 - ActionKind::ALL.iter().filter(|kind| is_off(kind)).count()
}

/// A request of the newest revision, in one line; the arguments are sent as they are.
fn call_line(id: u64, tool: &str, arguments: &str, progress: bool) -> String {
    let token = if progress { ",\"progressToken\":\"p\"" } else { "" };
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"{tool}\",\
         \"arguments\":{arguments},\"_meta\":{{\"io.modelcontextprotocol/protocolVersion\":\"{REVISION}\",\
         \"io.modelcontextprotocol/clientCapabilities\":{{}},\
         \"io.modelcontextprotocol/clientInfo\":{{\"name\":\"suite\",\"version\":\"7\"}}{token}}}}}}}"
    )
}

/// A request of a client that takes tasks, in one line.
fn task_line(id: u64, method: &str, params: &Value) -> String {
    let mut params = params.clone();
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {
            "extensions": { "io.modelcontextprotocol/tasks": {} },
        },
    });
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
}

fn list_line() -> String {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": REVISION,
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let params = json!({ "_meta": meta });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params }).to_string()
}

/// The tool and the arguments that stand for this request; `None` if it is no JSON object, which arguments have to be,
/// or has a `simulate` that no tool has.
pub fn call_of(request: &[u8]) -> Option<(&'static str, String)> {
    let text = std::str::from_utf8(request).ok()?;
    serde_json::from_str::<&RawValue>(text).ok().filter(|it| it.get().starts_with('{'))?;
    if text.len() > MAX_REQUEST_BYTES / 2 {
        return None;
    }
    // What is given twice stays as it is.
    if !text.contains("\"simulate\"") {
        return Some(("simulate", text.replace('\n', " ")));
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    let simulate = value.as_object_mut()?.remove("simulate")?;
    let kind = value["type"]
        .as_str()
        .and_then(|name| ActionKind::ALL.into_iter().find(|kind| kind.descriptor().name == name));
    match (simulate, kind) {
        (Value::Bool(true), _) if !text.contains("duplicate") => {
            (text.matches("\"simulate\"").count() == 1).then(|| ("simulate", value.to_string()))
        }
        (Value::Bool(false), Some(kind)) if value["id"].is_string() => {
            value.as_object_mut()?.remove("type");
            Some((kind.descriptor().name, value.to_string()))
        }
        _ => None,
    }
}

/// A client that has started the program.
pub struct Stdio {
    dialogue: Dialogue,
    next: u64,
    /// The progress notifications so far.
    pub progress: Vec<Value>,
}

impl Stdio {
    pub fn start(program: Program) -> Self {
        Stdio { dialogue: program.talk(), next: 1, progress: Vec::new() }
    }

    /// Calls a tool; returns its result.
    pub fn call(&mut self, tool: &str, arguments: &str) -> Value {
        let id = self.begin(tool, arguments);
        self.answer(id)
    }

    /// Sends a request of a client that takes tasks; returns its result, or its error.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        self.dialogue.send(task_line(self.next, method, params).as_bytes());
        self.message(self.next)
    }

    /// Calls a tool; returns the id of the call.
    fn begin(&mut self, tool: &str, arguments: &str) -> u64 {
        self.next += 1;
        self.dialogue.send(call_line(self.next, tool, arguments, true).as_bytes());
        self.next
    }

    fn cancel(&mut self, id: u64) {
        let cancel = json!({
            "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id },
        });
        self.dialogue.send(cancel.to_string().as_bytes());
    }

    fn answer(&mut self, id: u64) -> Value {
        self.message(id)
    }

    /// The result, or the error, of this request.
    fn message(&mut self, id: u64) -> Value {
        loop {
            let line = self.dialogue.line().expect("there is an answer");
            let message: Value = serde_json::from_str(&line).expect("is JSON");
            if message["method"] == "notifications/progress" {
                self.progress.push(message["params"].clone());
            } else {
                assert_eq!(message["id"], id, "{message}");
                return result_of(&message);
            }
        }
    }
}

/// The result of a message, or its error.
fn result_of(message: &Value) -> Value {
    message.get("result").unwrap_or(&message["error"]).clone()
}

/// The headers that repeat the namespace and the cluster of these arguments, where they have one.
fn parameter_headers(tool: &str, arguments: &str) -> String {
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
    let namespace = match tool {
        "get_action" | "list_actions" | "diagnose" => &arguments["namespace"],
        _ => &arguments["parameters"]["namespace"],
    };
    let named = [("Namespace", namespace), ("Cluster", &arguments["cluster"])];
    let named = named.iter().filter_map(|(header, value)| Some((header, value.as_str()?)));
    let header = |(header, value): (&&str, &str)| {
        format!("Mcp-Param-{header}: =?base64?{}?=\r\n", BASE64_STANDARD.encode(value))
    };
    named.map(header).collect()
}

/// A client of a server.
pub struct Http<'a> {
    server: &'a Server,
    headers: String,
}

impl<'a> Http<'a> {
    pub fn new(server: &'a Server) -> Self {
        Http { server, headers: String::new() }
    }

    pub fn with_token(server: &'a Server, token: &str) -> Self {
        Http { server, headers: format!("Authorization: Bearer {token}\r\n") }
    }

    /// Sends a message with these additional header lines.
    fn post(&self, message: &str, headers: &str) -> Reply {
        self.server.raw(&self.request(message, &format!("{headers}Connection: close\r\n")))
    }

    fn request(&self, message: &str, headers: &str) -> Vec<u8> {
        let (length, own) = (message.len(), &self.headers);
        format!(
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{own}{headers}\r\n{message}"
        )
        .into_bytes()
    }

    /// Calls a tool; returns its result, whether it comes at once or as a stream.
    pub fn call(&self, tool: &str, arguments: &str) -> Value {
        let mut stream = self.begin(tool, arguments);
        stream.rest().pop().expect("there is an answer")["result"].clone()
    }

    /// Calls a tool; the connection is open and the header of the answer is read.
    fn begin(&self, tool: &str, arguments: &str) -> Stream {
        let headers = format!(
            "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {REVISION}\r\n\
             Mcp-Method: tools/call\r\nMcp-Name: {tool}\r\n{}",
            parameter_headers(tool, arguments)
        );
        let mut stream = self.server.connect();
        let line = call_line(1, tool, arguments, true);
        stream.write_all(&self.request(&line, &headers)).expect("is sent");
        Stream::read(stream)
    }

    /// Sends a request of a client that takes tasks; returns its result, or its error.
    fn ask(&self, method: &str, params: &Value) -> Value {
        let name = params["taskId"].as_str().or(params["name"].as_str()).expect("is named");
        let headers = format!(
            "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {REVISION}\r\n\
             Mcp-Method: {method}\r\nMcp-Name: {name}\r\n{}",
            parameter_headers(name, &params["arguments"].to_string())
        );
        let mut stream = self.server.connect();
        let line = task_line(1, method, params);
        stream.write_all(&self.request(&line, &headers)).expect("is sent");
        result_of(&Stream::read(stream).rest().pop().expect("there is an answer"))
    }

    /// The result of `tools/list`.
    pub fn tool_list(&self) -> Value {
        let headers = format!("MCP-Protocol-Version: {REVISION}\r\nMcp-Method: tools/list\r\n");
        self.post(&list_line(), &headers).json()["result"].clone()
    }

    fn tools(&self) -> Vec<String> {
        names(&self.tool_list())
    }
}

fn names(result: &Value) -> Vec<String> {
    let tools = result["tools"].as_array().expect("are listed").iter();
    tools.map(|tool| tool["name"].as_str().expect("is text").to_owned()).collect()
}

/// The answer to a POST: one message, or a stream of them.
struct Stream {
    reader: BufReader<TcpStream>,
    length: Option<usize>,
}

impl Stream {
    fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("is read"), 0, "{head}");
        }
        let head = head.to_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map(|length| length.parse().expect("is a number"));
        assert_eq!(length.is_none(), head.contains("text/event-stream"), "{head}");
        assert_eq!(length.is_none(), head.contains("x-accel-buffering: no"), "{head}");
        Stream { reader, length }
    }

    fn is_stream(&self) -> bool {
        self.length.is_none()
    }

    /// The next chunk; `None` at the end.
    fn chunk(&mut self) -> Option<String> {
        let length = match self.length.take() {
            Some(length) => length,
            None => {
                let mut line = String::new();
                self.reader.read_line(&mut line).expect("is read");
                usize::from_str_radix(line.trim(), 16).ok()?
            }
        };
        let mut chunk = vec![0; length];
        self.reader.read_exact(&mut chunk).expect("is whole");
        let mut end = String::new();
        // Only chunks end with a line break.
        if self.reader.buffer().starts_with(b"\r\n") || self.reader.buffer().is_empty() {
            let _ = self.reader.read_line(&mut end);
        }
        (length > 0).then(|| String::from_utf8(chunk).expect("is text"))
    }

    /// All messages that follow; the last one is the answer.
    fn rest(&mut self) -> Vec<Value> {
        if let Some(length) = self.length.take() {
            let mut body = vec![0; length];
            self.reader.read_exact(&mut body).expect("is whole");
            return vec![serde_json::from_slice(&body).expect("is JSON")];
        }
        let mut messages = Vec::new();
        while let Some(chunk) = self.chunk() {
            let data = chunk.lines().filter_map(|line| line.strip_prefix("data: "));
            messages.extend(data.map(|data| serde_json::from_str::<Value>(data).expect("is JSON")));
        }
        messages
    }
}

fn restart(namespace: &Namespace, id: &str, wait: bool) -> String {
    let parameters = json!({ "deployment": "web", "namespace": namespace.name() });
    json!({ "id": id, "parameters": parameters, "wait": wait }).to_string()
}

/// The parameters of a call that waits for the restart of `web`.
fn waiting(namespace: &Namespace, id: &str) -> Value {
    let arguments: Value = serde_json::from_str(&restart(namespace, id, true)).expect("is JSON");
    json!({ "name": "restart_k8s", "arguments": arguments })
}

fn stdio(namespace: &Namespace) -> Program {
    Program::with_kubeconfig(namespace.kubeconfig()).args(["mcp"])
}

fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("has no text: {result}"))
}

/// A generator of numbers, always the same ones.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

/// A message that a broken or hostile client could send.
fn hostile_message(numbers: &mut Numbers) -> Vec<u8> {
    const SEEDS: [&str; 10] = [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"restart_k8s","arguments":{"id":"a","parameters":{"deployment":"web"}}}}"#,
        r#"{"jsonrpc":"2.0","id":"x","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
        r#"{"jsonrpc":"2.0","id":3,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]"#,
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping","method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":9,"result":{"tools":[]}}"#,
        r#"{"jsonrpc":"2.0","id":5,"method":"tasks/get","params":{"taskId":"shop/a/YWJj","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}}}"#,
        r#"{"jsonrpc":"2.0","id":6,"method":"tasks/update","params":{"taskId":"//","inputResponses":{"a":{}},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}},"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}"#,
        r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"simulate","arguments":{"type":"drain","parameters":{"node":"n","node":"m"}}}}"#,
    ];
    let mut message = SEEDS[numbers.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..numbers.below(4) {
        if message.is_empty() {
            break;
        }
        let at = numbers.below(message.len());
        match numbers.below(4) {
            0 => message[at] = numbers.below(256) as u8,
            1 => drop(message.remove(at)),
            2 => message.truncate(at + 1),
            _ => message.insert(at, b"{}[]\",:0\\"[numbers.below(9)]),
        }
    }
    message.retain(|byte| *byte != b'\n');
    message
}

#[test]
fn standard_output_carries_messages_only_whatever_is_sent() {
    let mut dialogue = Program::offline().args(["mcp"]).talk();
    let mut numbers = Numbers(1);
    let messages: Vec<_> = (0..10_000).map(|_| hostile_message(&mut numbers)).collect();
    let too_long = [b"{\"jsonrpc\":\"2.0\",\"id\":\"", &*vec![b'x'; 1 << 20], b"\"}"].concat();
    let reader = {
        // Answers are read while messages are sent: neither side may wait for the other.
        let (mut sender, receiver) = dialogue.split();
        let sent = thread::spawn(move || {
            for message in messages {
                sender.write_all(&[&*message, b"\n"].concat()).expect("is sent");
            }
            sender.write_all(&[&*too_long, b"\n"].concat()).expect("is sent");
            sender.write_all(list_line().as_bytes()).expect("is sent");
        });
        let lines: Vec<_> = receiver.lines().map(|line| line.expect("is text")).collect();
        sent.join().expect("has sent");
        lines
    };
    for line in &reader {
        let message: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(message["jsonrpc"], "2.0", "{line}");
        let kinds = ["result", "error"].map(|kind| message.get(kind).is_some());
        assert_eq!(kinds.iter().filter(|it| **it).count(), 1, "{line}");
        assert!(message.get("method").is_none(), "{line}");
    }
    assert!(reader.iter().any(|line| line.contains("longer than 65536 bytes")));
    // The last message has no line break; it is answered all the same.
    assert_eq!(names(&last_list(&reader)).len(), TOOLS);
    let (_, status, log) = dialogue.end();
    assert_eq!(status, 0, "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

fn last_list(lines: &[String]) -> Value {
    let lists = lines.iter().rev().filter(|line| line.contains("\"resultType\":\"complete\""));
    let mut lists = lists.filter(|line| line.contains("\"tools\":["));
    serde_json::from_str::<Value>(lists.next().expect("is there")).expect("is JSON")["result"]
        .clone()
}

#[test]
fn tools_are_listed_without_a_cluster_that_answers() {
    let gone = scratch("gone.kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": { "server": "http://127.0.0.1:1" } }],
        "users": [{ "name": "u", "user": {} }],
    });
    fs::write(&gone, config.to_string()).expect("is written");
    for program in [Program::offline(), Program::offline().env("KUBECONFIG", &gone)] {
        let mut dialogue = program.args(["mcp"]).talk();
        let began = Instant::now();
        dialogue.send(list_line().as_bytes());
        let answer: Value =
            serde_json::from_str(&dialogue.line().expect("is one")).expect("is JSON");
        assert_eq!(names(&answer["result"]).len(), TOOLS);
        assert!(began.elapsed() < Duration::from_secs(5));
        let (rest, status, _) = dialogue.end();
        assert_eq!((rest, status), (vec![], 0));
    }
}

#[test]
fn a_wrong_setting_is_reported_on_standard_error() {
    for (name, value) in [("ACTION_EXECUTOR_MCP_TOOLS", "all"), ("KUBECONFIG", "/nonexistent/x")] {
        let done = Program::offline().env(name, value).args(["mcp"]).run();
        assert_eq!((done.status, &*done.stdout), (78, ""), "{done:?}");
        assert!(done.stderr.starts_with("configuration: "), "{done:?}");
    }
}

#[test]
fn each_status_and_code_is_that_of_the_revision() {
    for engine in Engine::ALL {
        let server = Server::start_with(engine, Program::offline());
        let http = Http::new(&server);
        let version = format!("MCP-Protocol-Version: {REVISION}\r\n");
        let list = format!("{version}Mcp-Method: tools/list\r\n");
        let old = "MCP-Protocol-Version: 2025-06-18\r\n";
        let unknown = list_line().replace("tools/list", "resources/list");
        let unknown_headers = format!("{version}Mcp-Method: resources/list\r\n");
        let declared = task_line(1, "tasks/get", &json!({ "taskId": "x" }));
        let undeclared = declared.replace("modelcontextprotocol/tasks", "modelcontextprotocol/ui");
        let task_headers = format!("{version}Mcp-Method: tasks/get\r\nMcp-Name: x\r\n");
        let bare = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let future = list_line().replace(REVISION, "2099-01-01");
        let future_headers = list.replace(REVISION, "2099-01-01");
        for (message, headers, status, code) in [
            (list_line(), &*list, 200, json!(null)),
            (list_line(), &*version, 400, json!(-32020)),
            (list_line(), "", 400, json!(-32020)),
            (list_line(), old, 400, json!(-32020)),
            (future, &*future_headers, 400, json!(-32022)),
            (unknown, &*unknown_headers, 404, json!(-32601)),
            (undeclared, &*task_headers, 400, json!(-32021)),
            (declared.clone(), &*task_headers, 200, json!(-32602)),
            (declared, &*version, 400, json!(-32020)),
            (bare.to_owned(), &*list, 400, json!(-32602)),
            (bare.to_owned(), "", 200, json!(null)),
            (bare.to_owned(), old, 200, json!(null)),
            (bare.replace("tools/list", "resources/list"), old, 200, json!(-32601)),
            ("{".to_owned(), &*list, 400, json!(-32700)),
            (format!("[{bare}]"), old, 400, json!(-32600)),
        ] {
            let reply = http.post(&message, headers);
            let body = reply.json();
            let got = (reply.status, &body["error"]["code"]);
            assert_eq!(got, (status, &code), "{engine:?} {message} {headers}: {body}");
        }
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        let reply = http.post(notification, old);
        assert_eq!((reply.status, reply.body.len()), (202, 0));
        for method in ["GET", "DELETE", "PUT"] {
            let request =
                format!("{method} /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let reply = server.raw(request.as_bytes());
            assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{method}");
        }
    }
}

#[test]
fn hosts_origins_and_callers_are_checked_as_everywhere() {
    let keys = scratch("keys.yaml");
    let text = format!("keys: [{{name: agent, sha256: {}}}]\n", sha256(KEY.as_bytes()));
    fs::write(&keys, text).expect("is written");
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", &keys));
    let message = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let known = Http::with_token(&server, KEY);
    assert_eq!(known.post(message, "").status, 200);
    for (http, headers, status) in [
        (&known, "Origin: http://evil.example\r\n", 403),
        (&known, "Sec-Fetch-Site: cross-site\r\n", 403),
        (&known, "Accept: text/html\r\n", 406),
        (&Http::new(&server), "", 401),
        (&Http::with_token(&server, "wrong"), "", 401),
    ] {
        assert_eq!(http.post(message, headers).status, status, "{headers}");
    }
    let request = String::from_utf8(known.request(message, "Connection: close\r\n"));
    let rebound = request.expect("is text").replace("Host: localhost", "Host: rebound.example");
    assert_eq!(server.raw(rebound.as_bytes()).status, 421);
    let long = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(known.post(&long, "").status, 413);
}

#[test]
fn only_what_policy_and_caller_allow_is_listed() {
    let keys = scratch("keys.yaml");
    fs::write(&keys, "keys: []").expect("is written");
    let policy = scratch("policy.yaml");
    let server = Server::start(
        Program::offline().env("ACTION_EXECUTOR_KEYS", &keys).under(&policy_file(&policy, "{}")),
    );
    let http = Http::with_token(&server, KEY);
    for (key, rules, expected) in [
        (", actions: [scale]", "{}", vec!["simulate", "scale", "get_action"]),
        (", actions: [scale], simulate_only: true", "{}", vec!["simulate", "get_action"]),
        // A node is in no namespace.
        (
            ", actions: [scale, drain], namespaces: [shop]",
            "{}",
            vec!["simulate", "scale", "get_action"],
        ),
        (
            ", actions: [scale, rollback]",
            "actions: {allow: [scale]}",
            vec!["simulate", "scale", "get_action"],
        ),
        ("", "read_only: true", vec!["simulate", "get_action", "list_actions", "diagnose"]),
        (", actions: []", "{}", vec![]),
    ] {
        let text = format!("keys: [{{name: agent, sha256: {}{key}}}]\n", sha256(KEY.as_bytes()));
        fs::write(&keys, text).expect("is written");
        policy_file(&policy, rules);
        assert_eq!(http.tools(), expected, "{key} {rules}");
    }
    // What is not listed is refused as over HTTP, and not done.
    let call = json!({ "id": "a", "parameters": { "deployment": "web" } }).to_string();
    let refused = http.call("restart_k8s", &call);
    assert_eq!(refused["structuredContent"]["code"], "caller_forbidden", "{refused}");
}

#[test]
fn the_registrys_description_has_the_version_and_the_name_of_the_image() {
    let described: Value =
        serde_json::from_str(include_str!("../../server.json")).expect("is JSON");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(described["version"], version);
    let image = described["packages"][0]["identifier"].as_str().expect("is there");
    assert!(image.ends_with(&format!(":{version}")), "{image}");
    let label = format!("io.modelcontextprotocol.server.name={}", described["name"]);
    assert!(include_str!("../../Dockerfile").contains(&label), "{label}");
    // The registry accepts no longer one.
    assert!(described["description"].as_str().is_some_and(|text| text.len() <= 100));
}

fn policy_file(path: &PathBuf, rules: &str) -> PathBuf {
    fs::write(path, rules).expect("is written");
    path.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_cluster_sees_the_tools_that_rbac_allows() {
    let namespace = shared().namespace("mcp_rbac").await;
    let rules = json!([{
        "apiGroups": ["action-executor.dev"], "resources": ["actions"],
        "resourceNames": ["scale"], "verbs": ["simulate", "execute", "get"],
    }]);
    namespace.account("agent", rules).await;
    let kubeconfig = namespace.account("server", json!([])).await;
    namespace.grant_everywhere("server", json!(token_review::RULES)).await;
    let program = Program::with_kubeconfig(&kubeconfig)
        .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    let server = Server::start(program);
    let token = namespace.token("agent", &["action-executor"]).await;
    let tools = Http::with_token(&server, &token).tools();
    assert_eq!(tools, ["simulate", "scale", "get_action"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_over_http_and_then_over_mcp_is_one_effect() {
    let namespace = shared().namespace("mcp_id").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "alert-7",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let first = server.execute(request.to_string().as_bytes());
    assert_eq!(first.status, 200, "{first:?}");
    let mut over_stdio = Stdio::start(stdio(&namespace));
    let call = restart(&namespace, "alert-7", false);
    for result in
        [Http::new(&server).call("restart_k8s", &call), over_stdio.call("restart_k8s", &call)]
    {
        let structure = result["structuredContent"].clone();
        assert_eq!(structure["replayed"], true, "{result}");
        assert_eq!(without_replayed(structure), without_replayed(first.json()));
        assert!(text(&result).contains("nothing was done now"), "{result}");
    }
    let after = namespace.get_deployment("web").await.metadata.generation;
    assert_eq!(after.map(|it| it - 1), before);
    // The same id for another payload is refused.
    let other = json!({ "id": "alert-7", "reason": "other", "parameters": request["parameters"] });
    let refused = over_stdio.call("restart_k8s", &other.to_string());
    assert_eq!(refused["structuredContent"]["code"], "id_reused", "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_program_is_recorded_and_its_version_does_not_change_the_request() {
    let namespace = shared().namespace("mcp_client").await;
    namespace.running_deployment("web", 1).await;
    let mut client = Stdio::start(stdio(&namespace));
    let call = restart(&namespace, "r1", false);
    let done = client.call("restart_k8s", &call);
    assert_eq!(done["isError"], false, "{done}");
    let event = records(&namespace).await.remove(0);
    let annotations = event.metadata.annotations.expect("are there");
    assert_eq!(annotations["action-executor.dev/client"], "suite 7");
    assert!(event.message.expect("is there").contains("Requested by unknown through suite 7"));
    let newer = call_line(9, "restart_k8s", &call, false).replace("\"7\"", "\"8\"");
    client.dialogue.send(newer.as_bytes());
    assert_eq!(client.answer(9)["structuredContent"]["replayed"], true);
    let listed = client.call("list_actions", &json!({ "namespace": namespace.name() }).to_string());
    let entry = &listed["structuredContent"]["entries"][0];
    assert_eq!((&entry["client"], &entry["id"]), (&json!("suite 7"), &json!("r1")));
    assert!(entry.get("answer").is_none(), "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_in_time_and_its_action_goes_on() {
    let namespace = shared().namespace("mcp_time").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let wait = ("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "3");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).env(wait.0, wait.1);
    let server = Server::start(program);
    let http = Http::new(&server);
    let mut over_stdio = Stdio::start(stdio(&namespace).env(wait.0, wait.1));
    let began = Instant::now();
    let mut stream = http.begin("restart_k8s", &restart(&namespace, "r1", true));
    assert!(stream.is_stream());
    let mut messages = stream.rest();
    let result = messages.pop().expect("is the answer")["result"].clone();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(text(&result).starts_with("In progress: restart_k8s on Deployment"), "{result}");
    assert_eq!(result["structuredContent"]["id"], "r1");
    assert_eq!(result["isError"], false);
    // The progress is that of the wait, and counts up.
    let steps: Vec<_> = messages.iter().map(|it| it["params"]["progress"].as_u64()).collect();
    assert!(!steps.is_empty() && steps.is_sorted(), "{messages:?}");
    assert!(messages.iter().all(|it| it["params"]["progressToken"] == "p"), "{messages:?}");

    // Another attempt at the same request is in progress too, and acts no second time.
    let again = over_stdio.call("restart_k8s", &restart(&namespace, "r1", true));
    assert!(text(&again).starts_with("In progress"), "{again}");
    assert!(!over_stdio.progress.is_empty());
    let asked = json!({ "id": "r1", "namespace": namespace.name() }).to_string();
    let done = eventually("it is done in the background", async || {
        let result = over_stdio.call("get_action", &asked);
        (result["structuredContent"]["state"] == "answered").then_some(result)
    })
    .await;
    assert_eq!(done["structuredContent"]["answer"]["rollout"]["state"], "complete", "{done}");
    assert!(text(&done).starts_with("Done: Applied and complete"), "{done}");
    let (_, status, _) = over_stdio.dialogue.end();
    assert_eq!((status, records(&namespace).await.len()), (0, 1));
}

/// Two pods that must both be healthy, and the name of one of them.
async fn protected_pod(test: &str) -> (Namespace, String) {
    let namespace = shared().namespace(test).await;
    namespace.running_deployment("web", 2).await;
    namespace.exhausted_pdb("tight", "web", 2).await;
    let pod = namespace.pods_of("web").await[0].name_any();
    (namespace, pod)
}

/// Evicts the pod once its disruption budget allows, which is never.
fn evict(namespace: &Namespace, pod: &str, id: &str) -> String {
    let parameters = json!({ "pod_name": pod, "namespace": namespace.name() });
    json!({ "id": id, "parameters": parameters, "wait": true }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclaimed_call_ends_at_its_timeout() {
    let (namespace, pod) = protected_pod("mcp_unclaimed").await;
    let mut client = Stdio::start(stdio(&namespace).env("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "5"));
    // The last attempt at a busy API server may get no answer in time, which is another refusal.
    let refused = eventually("the disruption budget refuses it", async || {
        let refused = client.call("evict_pod", &evict(&namespace, &pod, "r1"));
        assert_eq!(refused["isError"], true, "{refused}");
        (refused["structuredContent"]["code"] == "disruption_budget").then_some(refused)
    })
    .await;
    assert!(text(&refused).contains("may succeed later"), "{refused}");
    assert!(records(&namespace).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_before_its_claim_does_nothing() {
    let (namespace, pod) = protected_pod("mcp_given_up").await;
    let uid = namespace.api::<Pod>().get(&pod).await.expect("is there").uid();
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let stream = Http::new(&server).begin("evict_pod", &evict(&namespace, &pod, "over-http"));
    assert!(stream.is_stream());
    drop(stream);
    let mut client = Stdio::start(stdio(&namespace));
    let id = client.begin("evict_pod", &evict(&namespace, &pod, "over-stdio"));
    eventually("it waits", async || {
        let line = client.dialogue.line().expect("is one");
        line.contains("notifications/progress").then_some(())
    })
    .await;
    client.cancel(id);
    // A cancelled call has no answer: the next message is that of the next call.
    let listed = client.call("list_actions", &json!({ "namespace": namespace.name() }).to_string());
    assert_eq!(listed["structuredContent"]["entries"], json!([]), "{listed}");

    namespace.set_min_available("tight", 1).await;
    // Both would evict within a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(namespace.api::<Pod>().get(&pod).await.expect("is there").uid(), uid);
    assert!(records(&namespace).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_while_its_claim_is_written_is_finished() {
    let namespace = shared().namespace("mcp_claiming").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation;
    let claims = Arc::new(AtomicUsize::new(0));
    let counted = claims.clone();
    // The claim takes a second to arrive, and its answer another one.
    let proxy = Proxy::start(&namespace, move |call| {
        if call.method.as_str() != "POST" || !call.writes("events") {
            return ProxyBehavior::Forward;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        ProxyBehavior::Delay(Duration::from_secs(1))
    })
    .await;
    let mut client = Stdio::start(Program::with_kubeconfig(&proxy.kubeconfig).args(["mcp"]));
    let id = client.begin("restart_k8s", &restart(&namespace, "r1", false));
    eventually("the claim is on its way", async || {
        (claims.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    client.cancel(id);
    let asked = json!({ "id": "r1", "namespace": namespace.name() }).to_string();
    eventually("it is recorded how it ended", async || {
        let found = client.call("get_action", &asked);
        (found["structuredContent"]["state"] == "answered").then_some(())
    })
    .await;
    let after = namespace.get_deployment("web").await.metadata.generation;
    assert_eq!(after.map(|it| it - 1), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_after_the_claim_ends_only_its_own_wait() {
    let namespace = shared().namespace("mcp_gone").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let http = Http::new(&server);
    let mut stream = http.begin("restart_k8s", &restart(&namespace, "r1", true));
    assert!(stream.chunk().expect("is one").contains("notifications/progress"));
    drop(stream);
    let asked = json!({ "id": "r1", "namespace": namespace.name() }).to_string();
    eventually("its answer is recorded", async || {
        let result = http.call("get_action", &asked);
        (result["structuredContent"]["state"] == "answered").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_at_end_of_input() {
    let namespace = shared().namespace("mcp_end").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    for (id, wait) in [("quick", false), ("waits", true)] {
        let line = call_line(1, "restart_k8s", &restart(&namespace, id, wait), false);
        let program = stdio(&namespace).env("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "5");
        // The input ends at once.
        let done = spawn_blocking(|| program.input(line + "\n").run()).await.expect("ran");
        assert_eq!(done.status, 0, "{done:?}");
        let answer = done.answer();
        let structure = &answer["result"]["structuredContent"];
        let state = if wait { &structure["state"] } else { &structure["outcome"] };
        assert_eq!(state, "applied", "{answer}");
        assert!(done.took < Duration::from_secs(30), "{:?}", done.took);
    }
    assert_eq!(records(&namespace).await.len(), 2);
    let mut client = Stdio::start(stdio(&namespace));
    let id = client.begin("restart_k8s", &restart(&namespace, "termed", true));
    eventually("it waits", async || {
        client.dialogue.line().expect("is one").contains("progress").then_some(())
    })
    .await;
    client.dialogue.signal("TERM");
    assert_eq!(client.answer(id)["structuredContent"]["rollout"]["state"], "interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_person_approves() {
    let namespace = shared().namespace("mcp_approval").await;
    namespace.running_deployment("web", 1).await;
    let policy = namespace.policy(REQUIRE_APPROVAL);
    let program = stdio(&namespace).under(&policy);
    let mut client = Stdio::start(program);
    let call = restart(&namespace, "r1", false);
    let pending = client.call("restart_k8s", &call);
    let structure = pending["structuredContent"].clone();
    assert_eq!(
        (&pending["isError"], &structure["outcome"]),
        (&json!(false), &json!("pending_approval"))
    );
    let command = structure["approval"]["command"].as_str().expect("is there");
    assert!(text(&pending).contains(command), "{pending}");
    // Whatever a model fills in is no approval.
    for field in ["approval", "confirm", "approved"] {
        let mut arguments: Value = serde_json::from_str(&call).expect("is JSON");
        arguments[field] = true.into();
        let refused = client.call("restart_k8s", &arguments.to_string());
        assert_eq!(refused["structuredContent"]["field"], field, "{refused}");
    }
    let again = client.call("restart_k8s", &call);
    assert_eq!(again["structuredContent"]["outcome"], "pending_approval");
    let approver = namespace.account("approver", json!(approval::APPROVER)).await;
    assert!(approve(&structure, &approver));
    let done = client.call("restart_k8s", &call);
    assert_eq!(done["structuredContent"]["outcome"], "applied", "{done}");
}

/// The actions whose effects differ most: a changed template, a deleted pod, a difference that would add up, a new
/// object, evictions that follow.
const KILLED: [ActionKind; 5] = [
    ActionKind::RestartK8s,
    ActionKind::RestartPod,
    ActionKind::Scale,
    ActionKind::RunCronjob,
    ActionKind::Drain,
];

#[test]
fn a_killed_process_leaves_one_effect_for_the_next_call() {
    let cases: Vec<_> =
        KILLED.into_iter().flat_map(|kind| Failpoint::ALL.map(|at| (kind, at))).collect();
    for_each(&cases, async |(kind, at)| {
        let test = format!("mcp_killed-{}", at.name().to_lowercase());
        let scenario = Scenario::new(kind, &test).await;
        let program =
            |seconds| stdio(&scenario.namespace).env("ACTION_EXECUTOR_DEADLINE_SECONDS", seconds);
        let request = scenario.request("r1").to_string();
        let (tool, call) = call_of(request.as_bytes()).expect("is a call");
        // Short, so that the claim of the crashed process expires soon.
        let mut killed = program("2").env("ACTION_EXECUTOR_FAILPOINT", at.name()).talk();
        killed.send(call_line(1, tool, &call, false).as_bytes());
        let (lines, status, _) = killed.end();
        assert_eq!((lines, status), (vec![], -1), "{tool} {at:?}");
        // Long enough to read the changes of the past.
        let mut client = Stdio::start(program("10"));
        let done = eventually("the next call has an answer", async || {
            let result = client.call(tool, &call);
            let is_retryable = result["structuredContent"]["retryable"] == true;
            (!is_retryable).then_some(result)
        })
        .await;
        let structure = &done["structuredContent"];
        match effects_left_unknown(kind, at) {
            None => assert_eq!(structure["outcome"], "applied", "{tool} {at:?}: {done}"),
            Some(_) => assert_eq!(structure["code"], "outcome_unknown", "{tool} {at:?}: {done}"),
        }
        assert_eq!(scenario.effects().await, 1, "{tool} {at:?}");
    });
}

/// The task once it has ended.
async fn ended(mut get: impl FnMut() -> Value) -> Value {
    eventually("the task ends", async || {
        let task = get();
        assert_eq!(task["resultType"], "complete", "{task}");
        (task["status"] != "working").then_some(task)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_a_record_that_any_process_answers_from() {
    let namespace = shared().namespace("mcp_task").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    let program = || Program::with_kubeconfig(namespace.kubeconfig());
    let (one, other) = (Server::start(program()), Server::start(program()));
    let call = waiting(&namespace, "r1");
    let began = Instant::now();
    let created = Http::new(&one).ask("tools/call", &call);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(
        (&created["resultType"], &created["status"]),
        (&json!("task"), &json!("working")),
        "{created}"
    );
    assert_eq!(created["ttlMs"], 1_800_000);
    assert!(created.get("structuredContent").is_none() && created.get("result").is_none());
    let task = json!({ "taskId": created["taskId"] });
    // Before it ends, and by a process that has no part in it.
    let now = Http::new(&other).ask("tasks/get", &task);
    assert_eq!((&now["status"], &now["createdAt"]), (&json!("working"), &created["createdAt"]));
    assert!(now["statusMessage"].as_str().is_some_and(|it| it.starts_with("In progress: restart")));
    let acknowledged = Http::new(&other).ask(
        "tasks/update",
        &json!({ "taskId": created["taskId"], "inputResponses": { "approve": {} } }),
    );
    assert_eq!(acknowledged["resultType"], "complete", "{acknowledged}");
    let mut over_stdio = Stdio::start(stdio(&namespace));
    let done = ended(|| over_stdio.ask("tasks/get", &task)).await;
    assert_eq!(done["status"], "completed", "{done}");
    let result = &done["result"];
    assert_eq!(result["isError"], false, "{result}");
    assert_eq!(result["structuredContent"]["rollout"]["state"], "complete", "{result}");
    assert!(text(result).starts_with("Applied and complete: restart_k8s"), "{result}");
    assert_eq!(records(&namespace).await.len(), 1);
    // The same call again is answered at once, by the recorded answer.
    let again = over_stdio.ask("tools/call", &call);
    assert_eq!(again["structuredContent"]["replayed"], true, "{again}");
    // Another task is none.
    let text = created["taskId"].as_str().expect("is text");
    for unknown in [text.replace("r1", "r2"), format!("{text}A"), "x".to_owned()] {
        for method in ["tasks/get", "tasks/cancel", "tasks/update"] {
            let params = json!({ "taskId": unknown, "inputResponses": {} });
            assert_eq!(over_stdio.ask(method, &params)["code"], -32602, "{method} {unknown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_known_to_its_caller_only() {
    let namespace = shared().namespace("mcp_task_of").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let keys = scratch("keys.yaml");
    let other = "0b5e0b5e0b5e0b5e0b5e0b5e0b5e0b5e";
    let text = format!(
        "keys: [{{name: agent, sha256: {}}}, {{name: other, sha256: {}}}]\n",
        sha256(KEY.as_bytes()),
        sha256(other.as_bytes())
    );
    fs::write(&keys, text).expect("is written");
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let server = Server::start(program.env("ACTION_EXECUTOR_KEYS", &keys));
    let (agent, other) = (Http::with_token(&server, KEY), Http::with_token(&server, other));
    let created = agent.ask("tools/call", &waiting(&namespace, "r1"));
    let task = json!({ "taskId": created["taskId"] });
    assert_eq!(agent.ask("tasks/get", &task)["status"], "working", "{created}");
    for method in ["tasks/get", "tasks/cancel"] {
        assert_eq!(other.ask(method, &task)["code"], -32602, "{method}");
    }
    assert_eq!(agent.ask("tasks/get", &task)["status"], "working");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_ends_its_wait_and_undoes_nothing() {
    let namespace = shared().namespace("mcp_task_end").await;
    let before = namespace.deployment("web", 1, MISSING_IMAGE).await.metadata.generation;
    let wait = ("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "3");
    let program = || Program::with_kubeconfig(namespace.kubeconfig()).env(wait.0, wait.1);
    let (server, other) = (Server::start(program()), Server::start(program()));
    let http = Http::new(&server);
    let call = waiting(&namespace, "r1");
    let created = http.ask("tools/call", &call);
    let task = json!({ "taskId": created["taskId"] });
    // Who does not wait has nothing to end.
    for http in [&Http::new(&other), &http] {
        assert_eq!(http.ask("tasks/get", &task)["status"], "working", "{created}");
        let acknowledged = http.ask("tasks/cancel", &task);
        let mut names: Vec<_> = acknowledged.as_object().expect("is one").keys().collect();
        names.sort();
        assert_eq!(names, ["_meta", "resultType"], "{acknowledged}");
    }
    let done = ended(|| Http::new(&other).ask("tasks/get", &task)).await;
    assert_eq!((&done["status"], &done["result"]["isError"]), (&json!("completed"), &json!(true)));
    let structure = &done["result"]["structuredContent"];
    assert_eq!(structure["rollout"]["state"], "interrupted", "{done}");
    assert!(text(&done["result"]).contains("make the same call to keep waiting"), "{done}");
    let after = namespace.get_deployment("web").await.metadata.generation;
    assert_eq!(after.map(|it| it - 1), before);
    // A client that waits longer does so as without tasks: the task has ended.
    let again = http.ask("tools/call", &call);
    assert_eq!(again["resultType"], "complete", "{again}");
    assert!(text(&again).starts_with("In progress"), "{again}");
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_call_is_answered_without_a_task() {
    let namespace = shared().namespace("mcp_task_quick").await;
    namespace.running_deployment("web", 1).await;
    let mut client = Stdio::start(stdio(&namespace));
    let mut call = waiting(&namespace, "r1");
    call["arguments"]["wait"] = false.into();
    let done = client.ask("tools/call", &call);
    assert_eq!(done["structuredContent"]["outcome"], "applied", "{done}");
    assert_eq!(done["resultType"], "complete");
    // A client that does not declare tasks gets none, however long it takes.
    namespace.deployment("slow", 1, MISSING_IMAGE).await;
    let slow = restart(&namespace, "r2", true).replace("web", "slow");
    let program = stdio(&namespace).env("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "4");
    let plain = Stdio::start(program).call("restart_k8s", &slow);
    assert_eq!(plain["resultType"], "complete", "{plain}");
    assert!(text(&plain).starts_with("In progress"), "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_under_a_new_id_learns_which_id_acted() {
    let namespace = shared().namespace("mcp_new_id").await;
    namespace.running_deployment("web", 1).await;
    let policy = namespace.policy("cooldown_seconds: 600");
    let mut client = Stdio::start(stdio(&namespace).under(&policy));
    let done = client.call("restart_k8s", &restart(&namespace, "alert-7", false));
    assert_eq!(done["structuredContent"]["outcome"], "applied", "{done}");
    let refused = client.call("restart_k8s", &restart(&namespace, "alert-7-retry", false));
    assert_eq!(refused["structuredContent"]["code"], "rate_limited", "{refused}");
    assert!(text(&refused).contains("request 'alert-7' acted last"), "{refused}");
    // Its own id is none to name.
    let again = client.call("restart_k8s", &restart(&namespace, "alert-7-retry", false));
    assert!(text(&again).contains("request 'alert-7' acted last"), "{again}");
    // Another requester could not use it.
    let other = json!({
        "type": "restart_k8s", "simulate": false, "id": "other", "requester": "someone-else",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let refused = program.input(other.to_string()).run();
    assert_eq!(refused.answer()["code"], "rate_limited", "{refused:?}");
    assert!(!refused.answer()["hint"].to_string().contains("alert-7"), "{refused:?}");
    // Where its record is gone, nothing is known.
    for event in records(&namespace).await {
        let events = namespace.api::<k8s_openapi::api::core::v1::Event>();
        events.delete(&event.name_any(), &Default::default()).await.expect("is deleted");
    }
    let refused = client.call("restart_k8s", &restart(&namespace, "alert-8", false));
    assert_eq!(refused["structuredContent"]["code"], "rate_limited", "{refused}");
    assert!(!text(&refused).contains("acted last"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_a_user_take_few_round_trips_and_are_kept() {
    let namespace = shared().namespace("mcp_rights").await;
    let rules = json!([{
        "apiGroups": ["action-executor.dev"], "resources": ["actions"],
        "resourceNames": ["scale"], "verbs": ["simulate", "execute", "get"],
    }]);
    namespace.account("agent", rules).await;
    let token = namespace.token("agent", &["action-executor"]).await;
    let reviews = Arc::new(AtomicUsize::new(0));
    let counted = reviews.clone();
    let proxy = Proxy::start(&namespace, move |call| {
        if call.path.ends_with("/subjectaccessreviews") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        ProxyBehavior::Delay(Duration::from_millis(20))
    })
    .await;
    // One review after the other would take 20 s.
    let names: Vec<_> = (0..3).map(|number| format!("shop-{number}")).collect();
    let allowed = format!("integrations: []\nnamespaces: {{allow: [{}]}}", names.join(", "));
    let policy = namespace.policy(&allowed);
    let program = Program::with_kubeconfig(&proxy.kubeconfig).under(&policy);
    let server = Server::start(program.env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor"));
    let http = Http::with_token(&server, &token);
    let began = Instant::now();
    assert_eq!(http.tools(), ["simulate", "scale", "get_action"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let asked = reviews.load(Ordering::SeqCst);
    // Each verb of each action, and the history, in each of them, and in all: a few at a time.
    let most = (ActionKind::ALL.len() * 4 + 1) * (names.len() + 1);
    assert!((100..=most).contains(&asked), "{asked}");
    for _ in 0..3 {
        assert_eq!(http.tools(), ["simulate", "scale", "get_action"]);
    }
    assert_eq!(reviews.load(Ordering::SeqCst), asked);
    // A call is authorized each time.
    let call = json!({ "type": "scale", "parameters": { "name": "web", "replicas": 1 } });
    http.call("simulate", &call.to_string());
    assert_eq!(reviews.load(Ordering::SeqCst), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oauth_client_learns_whose_tokens_for_which_audience_are_accepted() {
    let namespace = shared().namespace("mcp_oauth").await;
    let resource = "https://actions.example.com/mcp";
    let kubeconfig = namespace.account("server", json!([])).await;
    namespace.grant_everywhere("server", json!(token_review::RULES)).await;
    namespace.account("agent", json!([])).await;
    let program = Program::with_kubeconfig(&kubeconfig)
        .env("ACTION_EXECUTOR_OAUTH_ISSUER", "https://issuer.example.com")
        .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", resource);
    let server = Server::start(program);
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let elsewhere = namespace.token("agent", &["https://other.example.com/mcp"]).await;
    for http in [Http::new(&server), Http::with_token(&server, &elsewhere)] {
        let refused = http.post(list, "");
        let challenge = "Bearer realm=\"action-executor\", resource_metadata=\"https://actions.\
                         example.com/.well-known/oauth-protected-resource/mcp\"";
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(challenge)));
    }
    for path in ["/.well-known/oauth-protected-resource", METADATA_PATH] {
        let document = server.get(path);
        assert_eq!(document.status, 200, "{path}");
        let document = document.json();
        assert_eq!(document["resource"], resource);
        assert_eq!(document["authorization_servers"], json!(["https://issuer.example.com"]));
    }
    // Other resources have no such clients.
    let refused = server.get("/api/v1/history");
    let challenge = refused.header("www-authenticate");
    assert_eq!((refused.status, challenge), (401, Some("Bearer realm=\"action-executor\"")));
    let token = namespace.token("agent", &[resource]).await;
    assert_eq!(Http::with_token(&server, &token).post(list, "").status, 200);
    // Without an issuer there is no such document.
    let plain = Server::start(Program::offline());
    assert_eq!(plain.get(METADATA_PATH).status, 404);
}

/// The agent of tests/mcp: one of the official clients, in one of its modes, over one of the transports.
struct Agent {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What the client says of the connection.
    greeting: Value,
}

impl Agent {
    fn start(
        language: &str,
        mode: &str,
        transport: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let file = |name: &str| format!("{}/tests/mcp/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut command = match language {
            "python" => {
                let python = env::var("PYTHON_WITH_MCP").unwrap_or_else(|_| "python3".to_owned());
                let mut command = Command::new(python);
                command.arg(file("client.py"));
                command
            }
            _ => {
                let mut command = Command::new(node());
                command.arg(file(if language == "tasks" { "tasks.mjs" } else { "client.mjs" }));
                command
            }
        };
        command.arg(mode).args(transport).envs(environment.iter().map(|(k, v)| (*k, v)));
        command.stdin(Pipe::piped()).stdout(Pipe::piped());
        let mut process = command.spawn().expect("the client starts");
        let input = process.stdin.take().expect("is piped");
        let mut output = BufReader::new(process.stdout.take().expect("is piped"));
        let greeting = line_of(&mut output);
        Agent { process, input, output, greeting }
    }

    fn send(&mut self, command: &Value) -> Value {
        self.input.write_all(format!("{command}\n").as_bytes()).expect("is sent");
        line_of(&mut self.output)
    }

    fn call(&mut self, tool: &str, arguments: &Value) -> Value {
        self.send(&json!({ "call": tool, "arguments": arguments, "progress": true }))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn node() -> String {
    env::var("NODE").unwrap_or_else(|_| "node".to_owned())
}

fn line_of(from: &mut impl BufRead) -> Value {
    let mut line = String::new();
    from.read_line(&mut line).expect("is read");
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("is no JSON: {line:?}"))
}

/// Each official client in both eras and over both transports.
fn agents(server: &Server, environment: &[(&str, String)]) -> Vec<(String, Agent)> {
    let url = format!("http://{}/mcp", server.address());
    let program = env!("CARGO_BIN_EXE_action-executor");
    let transports = [vec!["stdio", program, "mcp"], vec!["http", &*url]];
    let mut agents = Vec::new();
    for language in ["python", "node"] {
        for (mode, revision) in [("legacy", "2025-11-25"), ("auto", REVISION)] {
            for transport in &transports {
                let agent = Agent::start(language, mode, transport, environment);
                assert_eq!(agent.greeting["revision"], revision, "{language} {mode}");
                assert_eq!(agent.greeting["server"], "action-executor");
                agents.push((format!("{language}-{mode}-{}", transport[0]), agent));
            }
        }
    }
    agents
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official clients"]
async fn every_official_client_lists_calls_and_is_refused() {
    let namespace = shared().namespace("mcp_official").await;
    namespace.running_deployment("web", 1).await;
    let unlimited = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
    let kubeconfig = namespace.kubeconfig().to_str().expect("is text").to_owned();
    let environment = [
        ("KUBECONFIG", kubeconfig),
        ("ACTION_EXECUTOR_POLICY", unlimited.to_owned()),
        (PER_ACTION.0, PER_ACTION.1.to_owned()),
    ];
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let server = Server::start(program.env(PER_ACTION.0, PER_ACTION.1));
    let before = namespace.get_deployment("web").await.metadata.generation.expect("has one");
    let mut agents = agents(&server, &environment);
    for (name, agent) in &mut agents {
        assert_eq!(names(&agent.send(&json!({ "list": true }))).len(), OWN_TOOLS, "{name}");
        let parameters = json!({ "deployment": "web", "namespace": namespace.name() });
        let simulated =
            agent.call("simulate", &json!({ "type": "restart_k8s", "parameters": parameters }));
        assert_eq!(simulated["structure"]["outcome"], "simulated", "{name}: {simulated}");
        let refused = agent.call("restart_k8s", &json!({ "parameters": parameters }));
        assert_eq!(
            (&refused["isError"], &refused["structure"]["field"]),
            (&json!(true), &json!("id"))
        );
        let waits = json!({ "parameters": parameters, "id": name, "wait": true });
        let done = agent.call("restart_k8s", &waits);
        assert_eq!(done["structure"]["rollout"]["state"], "complete", "{name}: {done}");
        let again = agent.call("restart_k8s", &waits);
        assert_eq!(again["structure"]["replayed"], true, "{name}: {again}");
        let unknown = agent.call("delete_everything", &json!({}));
        assert_eq!(unknown["error"], -32602, "{name}: {unknown}");
    }
    let after = namespace.get_deployment("web").await.metadata.generation.expect("has one");
    assert_eq!(after - before, agents.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official client of tasks"]
async fn the_official_client_of_tasks_follows_one_to_its_result() {
    let namespace = shared().namespace("mcp_official_task").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.deployment("stuck", 1, MISSING_IMAGE).await;
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let server = Server::start(program.env(PER_ACTION.0, PER_ACTION.1));
    let url = format!("http://{}/mcp", server.address());
    let mut agent = Agent::start("tasks", "auto", &["http", &url], &[]);
    assert_eq!(agent.greeting["revision"], REVISION);
    let call = |id: &str, deployment: &str, wait: bool| {
        let parameters = json!({ "deployment": deployment, "namespace": namespace.name() });
        json!({
            "call": "restart_k8s",
            "arguments": { "id": id, "parameters": parameters, "wait": wait },
        })
    };
    let done = agent.send(&call("r1", "web", true));
    assert_eq!((&done["kind"], &done["status"]), (&json!("task"), &json!("completed")), "{done}");
    assert!(done["statuses"].as_array().is_some_and(|all| all.contains(&json!("working"))));
    assert_eq!(done["structure"]["rollout"]["state"], "complete", "{done}");
    assert_eq!(done["isError"], false);
    let quick = agent.send(&call("r2", "web", false));
    assert_eq!(quick["kind"], "immediate", "{quick}");
    let mut cancelled = call("r3", "stuck", true);
    cancelled["cancel"] = true.into();
    let cancelled = agent.send(&cancelled);
    assert_eq!(cancelled["kind"], "task", "{cancelled}");
    eventually("its wait is over", async || {
        let asked = json!({ "id": "r3", "namespace": namespace.name() }).to_string();
        let found = Http::new(&server).call("get_action", &asked);
        (found["structuredContent"]["state"] == "applied").then_some(())
    })
    .await;
}

/// The scenarios of the conformance suite that are about servers like this one, with the revision; the others call
/// tools of a test server. tests/mcp/expected-failures.yml has what they ask for without success.
const CONFORMANCE: [(&str, Option<&str>); 12] = [
    ("server-initialize", Some("2025-11-25")),
    ("ping", Some("2025-11-25")),
    ("tools-list", Some("2025-11-25")),
    ("tools-list", Some(REVISION)),
    ("dns-rebinding-protection", Some(REVISION)),
    ("http-header-validation", Some(REVISION)),
    ("http-custom-header-server-validation", Some(REVISION)),
    ("input-required-result-unsupported-methods", Some(REVISION)),
    ("server-stateless", Some(REVISION)),
    ("caching", Some(REVISION)),
    // The extension has no revision.
    ("tasks-capability-negotiation", None),
    ("tasks-dispatch-and-envelope", None),
];

#[test]
#[ignore = "needs the conformance suite of MCP"]
fn the_server_passes_the_conformance_suite() {
    let server = Server::start(Program::offline());
    let suite = env::var("MCP_CONFORMANCE").expect("MCP_CONFORMANCE names its program");
    let expected = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mcp/expected-failures.yml");
    let url = format!("http://{}/mcp", server.address());
    for (scenario, revision) in CONFORMANCE {
        let done = Command::new(node())
            .args([&*suite, "server", "--url", &*url, "--scenario", scenario])
            .args(["--expected-failures", expected])
            .args(revision.iter().flat_map(|revision| ["--spec-version", revision]))
            // The suite writes its results into the working directory.
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .output()
            .expect("node runs");
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{scenario} {revision:?}: {text}");
    }
}

#[test]
#[ignore = "needs the inspector of MCP"]
fn the_inspectors_command_line_lists_calls_and_finds_no_schema_wrong() {
    let server = Server::start(Program::offline().env(PER_ACTION.0, PER_ACTION.1));
    let inspector = env::var("MCP_INSPECTOR").expect("MCP_INSPECTOR names its program");
    let url = format!("http://{}/mcp", server.address());
    let inspect = |target: &[&str], era: &str, arguments: &[&str]| {
        let done = Command::new(node())
            .args([&*inspector, "--cli", "-e", &format!("{}={}", PER_ACTION.0, PER_ACTION.1)])
            .args(target)
            .args(["--format", "json", "--protocol-era", era])
            .args(arguments)
            // It keeps what it knows of servers there.
            .env("HOME", env!("CARGO_TARGET_TMPDIR"))
            .env_remove("KUBECONFIG")
            .output()
            .expect("node runs");
        let text = String::from_utf8(done.stdout).expect("is text");
        (done.status.code(), serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let call = |tool, arguments| {
        ["--method", "tools/call", "--tool-name", tool, "--tool-args-json", arguments]
    };
    for target in [&[env!("CARGO_BIN_EXE_action-executor"), "mcp"][..], &[&*url]] {
        for era in ["legacy", "auto", "modern"] {
            // It fails for a schema that some clients would not take.
            let (status, listed) = inspect(target, era, &["--method", "tools/list", "--strict"]);
            assert_eq!(
                (status, names(&listed["result"]).len()),
                (Some(0), own_tools_by_default()),
                "{target:?} {era}"
            );
            let web =
                r#"{"type":"restart_k8s","parameters":{"deployment":"web","namespace":"shop"}}"#;
            let (status, simulated) = inspect(target, era, &call("simulate", web));
            assert_eq!(status, Some(0), "{target:?} {era}: {simulated}");
            assert_eq!(simulated["result"]["structuredContent"]["offline"], true, "{simulated}");
            let (status, refused) = inspect(target, era, &call("restart_k8s", "{}"));
            assert_eq!(status, Some(5), "{target:?} {era}: {refused}");
            assert_eq!(refused["result"]["structuredContent"]["field"], "id", "{refused}");
        }
    }
}

/// The conversation of docs/how-to/mcp.md, by an agent without a model: what it does next follows from the last answer.
async fn incident(agent: &mut Agent, namespace: &Namespace, id: &str, approver: &std::path::Path) {
    enum State {
        Alert,
        Simulated,
        Pending(Value),
        Executed(Value),
        Verified,
    }
    let parameters = json!({ "deployment": "web", "namespace": namespace.name() });
    let write = json!({ "id": id, "parameters": parameters, "wait": true, "reason": "p99 is 4 s" });
    let mut state = State::Alert;
    loop {
        state = match state {
            State::Alert => {
                let call = json!({ "type": "restart_k8s", "parameters": parameters });
                let answer = agent.call("simulate", &call);
                assert_eq!(answer["structure"]["outcome"], "simulated", "{id}: {answer}");
                State::Simulated
            }
            State::Simulated => {
                let answer = agent.call("restart_k8s", &write);
                assert_eq!(answer["structure"]["outcome"], "pending_approval", "{id}: {answer}");
                assert_eq!(answer["isError"], false, "{id}: {answer}");
                State::Pending(answer["structure"].clone())
            }
            State::Pending(answer) => {
                // A person does this, with permissions that the agent does not have.
                assert!(approve(&answer, approver), "{id}");
                State::Executed(agent.call("restart_k8s", &write))
            }
            State::Executed(answer) if answer["structure"].get("state").is_some() => {
                let asked = json!({ "id": id, "namespace": namespace.name() });
                let found = agent.call("get_action", &asked);
                if found["structure"]["state"] == "answered" {
                    State::Verified
                } else {
                    State::Executed(found)
                }
            }
            State::Executed(answer) => {
                assert_eq!(answer["structure"]["outcome"], "applied", "{id}: {answer}");
                // The answer was lost: the same call again.
                let again = agent.call("restart_k8s", &write);
                assert_eq!(again["structure"]["replayed"], true, "{id}: {again}");
                State::Verified
            }
            State::Verified => {
                let call = json!({ "namespace": namespace.name(), "target": "deployment/web" });
                let listed = agent.call("list_actions", &call);
                assert_eq!(listed["structure"]["entries"][0]["id"], id, "{listed}");
                return;
            }
        };
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the official clients"]
async fn ten_incidents_of_an_agent_are_ten_effects() {
    let namespace = shared().namespace("mcp_incidents").await;
    let before = namespace.running_deployment("web", 1).await.metadata.generation.expect("has one");
    let policy = namespace.policy(REQUIRE_APPROVAL);
    let approver = namespace.account("approver", json!(approval::APPROVER)).await;
    let kubeconfig = namespace.kubeconfig().to_str().expect("is text").to_owned();
    let policy_path = policy.to_str().expect("is text").to_owned();
    let environment = [
        ("KUBECONFIG", kubeconfig),
        ("ACTION_EXECUTOR_POLICY", policy_path),
        (PER_ACTION.0, PER_ACTION.1.to_owned()),
    ];
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let server = Server::start(program.env(PER_ACTION.0, PER_ACTION.1));
    let mut agents = agents(&server, &environment);
    for number in 0..10 {
        let count = agents.len();
        let (_, agent) = &mut agents[number % count];
        incident(agent, &namespace, &format!("alert-{number}"), &approver).await;
    }
    let after = namespace.get_deployment("web").await.metadata.generation.expect("has one");
    assert_eq!(after - before, 10);
}
