//! The Lambda runtime binary on a runtime API of the test's own, which sets the deadline, with each form of event
//! that AWS documents; and on a third-party emulator.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use action_executor::actions::ActionKind;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, shared},
    headers::{self, Case, Sent},
    pki::Authority,
    program::scratch,
    scenario::{Scenario, for_each_form},
};

const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

/// The maximum time of an invocation.
const INVOCATION_TIMEOUT: Duration = Duration::from_secs(60);

/// The outcome of an invocation.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// The function's response.
    Answered(Value),
    /// A function error: its type and its message.
    Failed(String, String),
}

impl Outcome {
    fn answer(self) -> Value {
        match self {
            Outcome::Answered(answer) => answer,
            Outcome::Failed(kind, message) => panic!("a function error: {kind}: {message}"),
        }
    }
}

/// An invocation that waits for the function.
struct Invocation {
    event: Vec<u8>,
    deadline_ms: u128,
}

/// The function, connected to a runtime API.
pub struct Function {
    process: Child,
    log: PathBuf,
    invocations: Sender<Invocation>,
    outcomes: Receiver<Outcome>,
}

impl Function {
    /// Starts the function with these environment variables.
    pub fn start(environment: &[(&str, &Path)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("has one").to_string();
        let (invocations, waiting) = channel();
        let (sender, outcomes) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (waiting, sender) = (waiting.clone(), sender.clone());
                thread::spawn(move || serve(&stream, &waiting, &sender));
            }
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootstrap"));
        command.env_clear().env("HOME", "/nonexistent").envs(variables(&address));
        command.envs(environment.iter().copied());
        let log = scratch("function.log");
        let file = fs::File::create(&log).expect("is made");
        let process = command.stderr(file).spawn().expect("the function starts");
        Function { process, log, invocations, outcomes }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("is readable")
    }

    /// Starts the function without a cluster.
    pub fn offline() -> Self {
        Function::start(&[])
    }

    /// On the shared cluster, under this policy.
    fn on_the_cluster(policy: &Path) -> Self {
        Function::start(&[
            ("KUBECONFIG", shared().kubeconfig()),
            ("ACTION_EXECUTOR_POLICY", policy),
        ])
    }

    /// Invokes the function with this event and a long deadline.
    pub fn invoke(&self, event: &[u8]) -> Outcome {
        self.invoke_within(event, Duration::from_secs(900))
    }

    /// Invokes the function with this event, and with this much time.
    pub fn invoke_within(&self, event: &[u8], time: Duration) -> Outcome {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("is after");
        let deadline_ms = (now + time).as_millis();
        let invocation = Invocation { event: event.to_vec(), deadline_ms };
        self.invocations.send(invocation).expect("the runtime API lives");
        self.outcomes.recv_timeout(INVOCATION_TIMEOUT).expect("the function answers")
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn variables(runtime_api: &str) -> HashMap<&'static str, String> {
    HashMap::from([
        ("AWS_LAMBDA_RUNTIME_API", runtime_api.to_owned()),
        ("AWS_LAMBDA_FUNCTION_NAME", "action-executor".to_owned()),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1".to_owned()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "a".to_owned()),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "b".to_owned()),
    ])
}

/// The runtime API on one connection ([AWS: Lambda runtime API](https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html)).
fn serve(stream: &TcpStream, waiting: &Mutex<Receiver<Invocation>>, sender: &Sender<Outcome>) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("the header is whole");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).expect("the body is whole");
        let parsed = || serde_json::from_slice::<Value>(&body).unwrap_or_default();
        if path.ends_with("/next") {
            let Ok(invocation) = waiting.lock().expect("is not poisoned").recv() else { return };
            let Invocation { event, deadline_ms } = invocation;
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\n\
                 Lambda-Runtime-Deadline-Ms: {deadline_ms}\r\n\
                 Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-central-1:1:function:a\r\n\r\n",
                event.len()
            );
            writer.write_all(&[head.into_bytes(), event].concat()).expect("is sent");
            continue;
        }
        let outcome = if path.ends_with("/response") {
            Outcome::Answered(parsed())
        } else {
            let text = |name: &str| parsed()[name].as_str().unwrap_or_default().to_owned();
            Outcome::Failed(text("errorType"), text("errorMessage"))
        };
        writer.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").expect("is sent");
        let _ = sender.send(outcome);
    }
}

/// An event of a REST API (payload format 1.0), whose `path` has no stage and whose context names it.
fn rest(method: &str, path: &str, body: Option<&str>) -> Value {
    json!({
        "resource": "/{proxy+}", "path": path, "httpMethod": method,
        "headers": { "Content-Type": "application/json", "Host": "x.execute-api.eu-central-1.amazonaws.com" },
        "multiValueHeaders": {
            "Content-Type": ["application/json"], "Host": ["x.execute-api.eu-central-1.amazonaws.com"],
        },
        "queryStringParameters": null, "multiValueQueryStringParameters": null,
        "pathParameters": { "proxy": path.trim_start_matches('/') }, "stageVariables": null,
        "requestContext": {
            "resourceId": "2gxmpl", "resourcePath": "/{proxy+}", "httpMethod": method,
            "extendedRequestId": "JJbxmplHYosFVYQ=", "requestTime": "10/Mar/2020:00:03:59 +0000",
            "path": format!("/prod{path}"), "accountId": "123456789012", "protocol": "HTTP/1.1",
            "stage": "prod", "domainPrefix": "x", "requestTimeEpoch": 1_583_798_639_428_u64,
            "requestId": "77375676-xmpl-4b79-853a-f982474efe18",
            "identity": {
                "sourceIp": "52.255.255.12", "userAgent": "curl/7.64.1",
                "userArn": "arn:aws:iam::123456789012:user/jo",
            },
            "domainName": "x.execute-api.eu-central-1.amazonaws.com", "apiId": "x",
        },
        "body": body, "isBase64Encoded": false,
    })
}

/// An event of an HTTP API or a function URL (payload format 2.0).
fn http_api(method: &str, path: &str, stage: &str, body: Option<&str>, base64: bool) -> Value {
    json!({
        "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "",
        "headers": { "content-type": "application/json", "idempotency-key": "\"v2-1\"" },
        "requestContext": {
            "accountId": "123456789012", "apiId": "x", "domainName": "x.on.aws", "domainPrefix": "x",
            "http": {
                "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1",
                "userAgent": "curl",
            },
            "requestId": "id", "routeKey": "$default", "stage": stage,
            "time": "12/Mar/2020:19:03:58 +0000", "timeEpoch": 1_583_348_638_390_u64,
        },
        "body": body, "isBase64Encoded": base64,
    })
}

/// An event of an application load balancer with multi-value headers.
fn load_balancer(method: &str, path: &str, body: &str) -> Value {
    json!({
        "requestContext": { "elb": {
            "targetGroupArn": "arn:aws:elasticloadbalancing:us-east-2:123456789012:targetgroup/lambda-279XGJDqGZ5rsrHC2Fjr/49e9d65c45c6791a",
        } },
        "httpMethod": method, "path": path, "multiValueQueryStringParameters": {},
        "multiValueHeaders": {
            "accept": ["text/html", "application/json"], "content-type": ["application/json"],
            "host": ["lambda-alb-123578498.us-east-2.elb.amazonaws.com"],
            "x-amzn-trace-id": ["Root=1-5c536348-3d683b8b04734faae651f476"],
        },
        "body": body, "isBase64Encoded": false,
    })
}

fn invoke(function: &Function, event: &Value) -> Value {
    function.invoke(event.to_string().as_bytes()).answer()
}

fn body(answer: &Value) -> Value {
    serde_json::from_str(answer["body"].as_str().expect("has a body")).expect("is JSON")
}

#[test]
fn each_form_of_http_event_gets_the_servers_answer() {
    let function = Function::offline();
    let execute = "/api/v1/action/execute";
    let encoded = "eyJ0eXBlIjoicmVzdGFydF9rOHMiLCJwYXJhbWV0ZXJzIjp7ImRlcGxveW1lbnQiOiJ3ZWIifX0=";
    for (name, event) in [
        ("rest", rest("POST", execute, Some(REQUEST))),
        ("http", http_api("POST", execute, "$default", Some(REQUEST), false)),
        ("stage", http_api("POST", "/prod/api/v1/action/execute", "prod", Some(REQUEST), false)),
        ("base64", http_api("POST", execute, "$default", Some(encoded), true)),
        ("load balancer", load_balancer("POST", execute, REQUEST)),
    ] {
        let answer = invoke(&function, &event);
        assert_eq!(answer["statusCode"], 200, "{name}: {answer}");
        assert_eq!(body(&answer)["outcome"], "simulated", "{name}: {answer}");
    }
    for (name, event, status, code) in [
        ("no body", rest("POST", execute, None), 400, "invalid_request"),
        ("no body", http_api("POST", execute, "$default", None, false), 400, "invalid_request"),
        ("method", rest("GET", execute, None), 405, "method_not_allowed"),
        ("path", load_balancer("POST", "/nope", REQUEST), 404, "route_not_found"),
        ("metrics", rest("GET", "/metrics", None), 404, "route_not_found"),
        ("twice", load_balancer("POST", execute, r#"{"type":1}"#), 400, "invalid_request"),
    ] {
        let answer = invoke(&function, &event);
        assert_eq!(answer["statusCode"], status, "{name}: {answer}");
        assert_eq!(body(&answer)["code"], code, "{name}: {answer}");
        let headers = answer["headers"].to_string() + &answer["multiValueHeaders"].to_string();
        assert!(headers.contains("application/problem+json"), "{name}: {answer}");
    }
    let health = invoke(&function, &rest("GET", "/api/v1/healthz", None));
    assert_eq!((&health["statusCode"], body(&health)), (&json!(200), json!({ "status": "ok" })));
}

#[test]
fn an_idempotency_key_header_is_the_requests_id() {
    let function = Function::offline();
    let event = http_api("POST", "/api/v1/action/execute", "$default", Some(REQUEST), false);
    assert_eq!(body(&invoke(&function, &event))["id"], "v2-1");
}

/// An event of a load balancer for this request; a value that is not UTF-8 is none that JSON can hold.
fn as_load_balancer_event(sent: &Sent) -> Option<Value> {
    let mut event = load_balancer(sent.method, sent.path, sent.body);
    let mut headers = serde_json::Map::new();
    for (name, value) in &sent.lines {
        let value = String::from_utf8(value.clone()).ok()?;
        let values = headers.entry(name.to_lowercase()).or_insert_with(|| json!([]));
        values.as_array_mut().expect("is a list").push(value.into());
    }
    event["multiValueHeaders"] = headers.into();
    Some(event)
}

/// The platform decides what reaches a function, which checks neither host nor page.
const OF_A_SERVER: [&str; 5] =
    ["Host", "Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"];

#[test]
fn a_header_that_cannot_be_read_gets_what_the_table_says() {
    let function = Function::start(&[
        ("ACTION_EXECUTOR_KEYS", &headers::key_file()),
        ("ACTION_EXECUTOR_CALLER_RATE", Path::new("0")),
    ]);
    let outcome = |sent: &Sent| {
        let answer = invoke(&function, &as_load_balancer_event(sent)?);
        let status = answer["statusCode"].as_u64().expect("is a number") as u16;
        let code =
            if status < 400 { None } else { body(&answer)["code"].as_str().map(str::to_owned) };
        Some((status, code.unwrap_or_default()))
    };
    for Case { what, sent, expected } in headers::cases() {
        if OF_A_SERVER.iter().any(|name| what.starts_with(name)) {
            continue;
        }
        let Some(got) = outcome(&sent) else { continue };
        let expected = expected.map_or_else(Some, |sent| outcome(&sent));
        assert_eq!(Some(got), expected, "{what}");
    }
}

#[test]
fn a_bare_request_gets_a_bare_answer() {
    let function = Function::offline();
    let answer = function.invoke(REQUEST.as_bytes()).answer();
    assert_eq!(answer["outcome"], "simulated", "{answer}");
    // A problem that a retry would not change is a response too.
    let wrong = function.invoke(b"{\"type\":\"restart_k8s\"}").answer();
    assert_eq!(wrong["code"], "invalid_request", "{wrong}");
}

#[test]
fn the_kubeconfig_is_read_on_first_use_and_a_broken_one_is_reported() {
    let function = Function::start(&[("KUBECONFIG", Path::new("/nonexistent"))]);
    let health = invoke(&function, &rest("GET", "/api/v1/healthz", None));
    assert_eq!(health["statusCode"], 200);
    let answer = function.invoke(REQUEST.as_bytes()).answer();
    assert_eq!(answer["code"], "configuration", "{answer}");
}

/// The page shows the cluster's name by this list.
#[test]
fn the_actions_are_listed_with_the_clusters_name_and_without_a_cluster_too() {
    let named = |environment: &[(&str, &Path)]| {
        let answer = invoke(&Function::start(environment), &rest("GET", "/api/v1/actions", None));
        assert_eq!(answer["statusCode"], 200, "{answer}");
        let list = body(&answer);
        assert!(list["actions"].as_array().is_some_and(|it| it.len() > 10), "{list}");
        list["cluster"].as_str().map(str::to_owned)
    };
    let kubeconfig = scratch("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: prod, \
        contexts: [{name: prod, context: {cluster: a, user: b}}], \
        clusters: [{name: a, cluster: {server: 'https://api.prod.example:6443'}}], \
        users: [{name: b, user: {token: t}}]}";
    fs::write(&kubeconfig, text).expect("is written");
    let on_the_cluster = ("KUBECONFIG", &*kubeconfig);
    assert_eq!(named(&[on_the_cluster]).as_deref(), Some("prod (api.prod.example:6443)"));
    let name = ("ACTION_EXECUTOR_CLUSTER_NAME", Path::new("EU production"));
    assert_eq!(named(&[on_the_cluster, name]).as_deref(), Some("EU production"));
    let ca = BASE64_STANDARD.encode(Authority::new().server().certificate);
    let eks = [
        ("EKS_CLUSTER_NAME", "prod-eu"),
        ("EKS_CLUSTER_ENDPOINT", "https://a1.eks.example"),
        ("EKS_CLUSTER_CA", &ca),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
    ];
    let eks = eks.map(|(name, value)| (name, Path::new(value)));
    assert_eq!(named(&eks).as_deref(), Some("prod-eu (a1.eks.example)"));
    assert_eq!(named(&[]), None);
    assert_eq!(named(&[("KUBECONFIG", Path::new("/nonexistent"))]), None);
}

#[test]
fn the_binary_without_a_runtime_api_explains_itself() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootstrap"));
    let done = command.env_clear().output().expect("it starts");
    assert_eq!(done.status.code(), Some(64), "{done:?}");
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(words.contains("AWS_LAMBDA_RUNTIME_API is not set"), "{words}");
}

#[test]
fn an_invalid_setting_is_answered_and_not_a_crash() {
    let function = Function::start(&[("ACTION_EXECUTOR_DEADLINE_SECONDS", Path::new("soon"))]);
    let answer = function.invoke(REQUEST.as_bytes()).answer();
    assert_eq!(answer["code"], "configuration", "{answer}");
    assert!(answer["detail"].as_str().expect("is text").contains("DEADLINE_SECONDS"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_may_be_in_an_environment_variable() {
    let namespace = shared().namespace("base64").await;
    namespace.running_deployment("web", 1).await;
    let text = std::fs::read(shared().kubeconfig()).expect("is readable");
    let encoded = BASE64_STANDARD.encode(text);
    let function = Function::start(&[("KUBECONFIG_BASE64", Path::new(&encoded))]);
    let request = json!({
        "type": "restart_k8s",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let answer = invoke(&function, &request);
    assert_eq!(answer["outcome"], "simulated", "{answer}");
    assert!(answer.get("offline").is_none(), "{answer}");
}

#[test]
fn an_event_delivered_twice_acts_once() {
    for_each_form(async |kind| {
        let scenario = Scenario::new(kind, "lambda_twice").await;
        let policy = scenario.namespace.policy("cooldown_seconds: 0");
        let mut request = scenario.request("x");
        request.as_object_mut().expect("is an object").remove("id");
        let event = json!({
            "version": "0", "id": format!("17793124-05d4-b198-{}", scenario.namespace.name()),
            "detail-type": "action", "source": "pager", "account": "123456789012",
            "time": "2026-01-01T00:00:00Z", "region": "eu-central-1", "resources": [],
            "detail": request,
        });
        let first = invoke(&Function::on_the_cluster(&policy), &event);
        let second = invoke(&Function::on_the_cluster(&policy), &event);
        assert_eq!((&first["outcome"], &first["replayed"]), (&json!("applied"), &json!(false)));
        assert_eq!((&second["outcome"], &second["replayed"]), (&json!("applied"), &json!(true)));
        assert_eq!(first["id"], event["id"]);
        assert_eq!(scenario.effects().await, 1);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sqs_batch_returns_only_the_retryable_messages() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "sqs").await;
    let policy = scenario.namespace.policy("cooldown_seconds: 600");
    let good = scenario.request("sqs-good").to_string();
    // The cooldown of the first request applies.
    let soon = scenario.request("sqs-soon").to_string();
    let record = |id: &str, body: &str| {
        json!({
            "messageId": id, "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a...", "body": body,
            "attributes": { "ApproximateReceiveCount": "1" }, "messageAttributes": {},
            "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3", "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:us-east-2:123456789012:my-queue", "awsRegion": "us-east-2",
        })
    };
    let batch = json!({
        "Records": [record("m-good", &good), record("m-wrong", "{}"), record("m-soon", &soon)],
    });
    let answer = invoke(&Function::on_the_cluster(&policy), &batch);
    assert_eq!(answer, json!({ "batchItemFailures": [{ "itemIdentifier": "m-soon" }] }));
    assert_eq!(scenario.effects().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retryable_problem_is_a_function_error() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "retryable").await;
    let policy = scenario.namespace.policy("cooldown_seconds: 600");
    let function = Function::on_the_cluster(&policy);
    let notification = |id: &str| {
        json!({ "Records": [{
            "EventVersion": "1.0", "EventSource": "aws:sns",
            "EventSubscriptionArn": "arn:aws:sns:us-east-1:123456789012:sns-lambda:21be56ed",
            "Sns": {
                "SignatureVersion": "1", "Timestamp": "2019-01-02T12:45:07.000Z", "MessageId": id,
                "Message": scenario.request(id).to_string(), "MessageAttributes": {},
                "Type": "Notification", "TopicArn": "arn:aws:sns:us-east-1:123456789012:sns-lambda",
                "Subject": "TestInvoke",
            },
        }] })
    };
    let first = invoke(&function, &notification("sns-1"));
    assert_eq!(first[0]["outcome"], "applied", "{first}");
    let Outcome::Failed(kind, message) =
        function.invoke(notification("sns-2").to_string().as_bytes())
    else {
        panic!("is a function error");
    };
    assert_eq!(kind, "rate_limited");
    let problem: Value = serde_json::from_str(&message).expect("is the problem");
    assert!(problem["retry_after_seconds"].as_u64() > Some(0), "{problem}");
    // Over HTTP it is a response like any other.
    let request = scenario.request("http-1").to_string();
    let event = rest("POST", "/api/v1/action/execute", Some(&request));
    let answer = invoke(&function, &event);
    assert_eq!(answer["statusCode"], 429, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_before_the_invocation_times_out() {
    let namespace = shared().namespace("cut_off").await;
    namespace.deployment("web", 1, MISSING_IMAGE).await;
    let function = Function::on_the_cluster(&namespace.policy("cooldown_seconds: 0"));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": "cut-off",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let event = rest("POST", "/api/v1/action/execute", Some(&request.to_string()));
    let began = Instant::now();
    let time = Duration::from_secs(6);
    let answer = function.invoke_within(event.to_string().as_bytes(), time).answer();
    assert!(began.elapsed() < time, "{:?}", began.elapsed());
    assert_eq!(answer["statusCode"], 503, "{answer}");
    assert_eq!(body(&answer)["rollout"]["state"], "interrupted", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_names_the_iam_user() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "iam").await;
    let function = Function::on_the_cluster(&scenario.namespace.policy("cooldown_seconds: 0"));
    let request = scenario.request("iam-1").to_string();
    let event = rest("POST", "/api/v1/action/execute", Some(&request));
    assert_eq!(invoke(&function, &event)["statusCode"], 200);
    let events = scenario.namespace.api::<k8s_openapi::api::core::v1::Event>();
    let params =
        kube::api::ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
    let event = events.list(&params).await.expect("are listed").items.remove(0);
    let message = event.message.expect("has one");
    assert!(message.contains("arn:aws:iam::123456789012:user/jo"), "{message}");
}

/// A missing `cargo lambda` fails the test: it must not pass unrun.
fn cargo_lambda() -> Command {
    let path = std::env::var_os("CARGO_LAMBDA").unwrap_or_else(|| "cargo-lambda".into());
    let mut command = Command::new(path);
    command.arg("lambda");
    command
}

#[test]
#[ignore = "needs cargo-lambda: pip install cargo-lambda==1.9.2"]
fn a_third_party_emulator_gets_the_same_answers() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let port = port.expect("a port is free").port().to_string();
    let mut emulator = cargo_lambda()
        .args(["watch", "--only-lambda-apis", "-A", "127.0.0.1", "-P", &port])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("cargo-lambda starts");
    let deadline = Instant::now() + INVOCATION_TIMEOUT;
    while TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        assert!(Instant::now() < deadline, "the emulator does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let mut function = Command::new(env!("CARGO_BIN_EXE_bootstrap"))
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(variables(&format!("http://127.0.0.1:{port}/.rt")))
        .env("AWS_LAMBDA_FUNCTION_NAME", "_")
        .stderr(Stdio::null())
        .spawn()
        .expect("the function starts");
    let invoke = |event: &str| {
        let file = scratch("event.json");
        std::fs::write(&file, event).expect("is written");
        let deadline = Instant::now() + INVOCATION_TIMEOUT;
        loop {
            let done = cargo_lambda()
                .args(["invoke", "--invoke-address", "127.0.0.1", "--invoke-port", &port])
                .arg("--data-file")
                .arg(&file)
                .output()
                .expect("cargo-lambda runs");
            if done.status.success() {
                return serde_json::from_slice::<Value>(&done.stdout).expect("is JSON");
            }
            assert!(Instant::now() < deadline, "{done:?}");
            thread::sleep(Duration::from_millis(200));
        }
    };
    let simulated = invoke(REQUEST);
    let answer = invoke(&rest("POST", "/api/v1/action/execute", Some(REQUEST)).to_string());
    for child in [&mut function, &mut emulator] {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(simulated["outcome"], "simulated", "{simulated}");
    assert_eq!(answer["statusCode"], 200, "{answer}");
}
