//! Canary secrets in every input of the server, in every place of a kubeconfig and in what plugins print; the tests
//! search all output for them.

use std::{fs, time::Duration};

use action_executor::{auth::token_review::RULES, contract::digest::sha256, policy::budget};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    program::{Program, Server, execute_request, scratch},
    receipts::Keys,
    traces::Collector,
};

const KEY: &str = "canary-key-51aa0c";
const WRONG_KEY: &str = "canary-wrong-key-77f1";
const COOKIE: &str = "canary-cookie-9d2e";
const VARIABLE: &str = "canary-variable-0b7c";
const COLLECTOR_TOKEN: &str = "canary-collector-3e44";
const SINK_PATH: &str = "canary-sink-7a30";

#[tokio::test(flavor = "multi_thread")]
async fn secrets_appear_in_no_log_answer_metric_or_trace() {
    let namespace = shared().namespace("canaries").await;
    namespace.running_deployment("web", 1).await;
    let rules = json!([
        { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "get", "patch"] },
    ]);
    let kubeconfig = namespace.account("server", rules).await;
    namespace.grant_everywhere("server", json!(RULES)).await;
    // The namespace of its kubeconfig has the budget.
    namespace.grant_in_default("server", json!([budget::RULE])).await;
    let text = fs::read_to_string(&kubeconfig).expect("is readable");
    let config: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    let token = config["users"][0]["user"]["token"].as_str().expect("has one").to_owned();
    let caller = namespace.token("default", &["action-executor"]).await;
    let keys = scratch("keys.yaml");
    let entry = format!("keys: [{{name: pager, sha256: {}}}]", sha256(KEY.as_bytes()));
    fs::write(&keys, entry).expect("is written");

    let sink_secret =
        format!("whsec_{}", BASE64_STANDARD.encode("canary-sink-secret-4c19e8b0a5f2"));
    let secret_file = scratch("sink-secret");
    fs::write(&secret_file, &sink_secret).expect("is written");
    let receipt_key = fs::read_to_string(&Keys::shared().private).expect("is readable");
    let receipt_key = receipt_key.lines().nth(1).expect("is PEM").to_owned();

    let collector = Collector::start();
    let server = Server::start(
        Program::with_kubeconfig(&kubeconfig)
            .env("ACTION_EXECUTOR_KEYS", keys)
            .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor")
            .env("ACTION_EXECUTOR_LOG", "trace")
            .env("DATABASE_PASSWORD", VARIABLE)
            .env("ACTION_EXECUTOR_RECEIPT_KEY", &Keys::shared().private)
            .env("ACTION_EXECUTOR_SINK", format!("http://127.0.0.1:1/{SINK_PATH}"))
            .env("ACTION_EXECUTOR_SINK_SECRET", secret_file)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {COLLECTOR_TOKEN}")),
    );
    let mut said = Vec::new();
    for bearer in [KEY, WRONG_KEY, &caller, &token] {
        for (deployment, simulate) in [("web", true), ("web", false), ("nowhere", true)] {
            let request = json!({
                "type": "restart_k8s", "simulate": simulate,
                "parameters": { "deployment": deployment, "namespace": namespace.name() },
            });
            let headers = format!(
                "Authorization: Bearer {bearer}\r\nCookie: session={COOKIE}\r\n\
                 X-Api-Key: {WRONG_KEY}\r\nConnection: close\r\n"
            );
            let reply = server.raw(&execute_request(request.to_string().as_bytes(), &headers));
            assert_ne!(reply.status, 0, "{reply:?}");
            said.extend(format!("{reply:?}").into_bytes());
            said.extend(reply.body);
        }
    }
    for path in ["/metrics", "/readyz", "/api/v1/healthz", "/nowhere"] {
        said.extend(server.get(path).body);
    }
    server.signal("TERM");
    let (_, log) = tokio::task::spawn_blocking(|| server.wait()).await.expect("it ended");
    assert!(log.contains("action answered"), "{log}");
    let traces = collector.bytes();
    assert!(!traces.is_empty());
    assert!(log.contains("notifications lost: not delivered before the process ended"), "{log}");
    let canaries = [
        KEY,
        WRONG_KEY,
        COOKIE,
        VARIABLE,
        COLLECTOR_TOKEN,
        SINK_PATH,
        &sink_secret,
        &receipt_key,
        &token,
        &caller,
    ];
    for canary in canaries.map(str::as_bytes) {
        for (where_from, text) in
            [("answers", &said), ("log", &log.clone().into_bytes()), ("traces", &traces)]
        {
            let found = text.windows(canary.len()).any(|window| window == canary);
            assert!(!found, "{} is in the {where_from}", String::from_utf8_lossy(canary));
        }
    }
}

/// A kubeconfig that has canaries and cannot be used.
struct Unusable {
    name: &'static str,
    kubeconfig: String,
    /// The error's code.
    code: &'static str,
    /// What the error says.
    says: &'static str,
}

/// The administrator's kubeconfig with this user, and more in its cluster.
fn kubeconfig(namespace: &Namespace, user: Value, cluster: Value) -> String {
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    config["users"][0]["user"] = user;
    let known = config["clusters"][0]["cluster"].as_object_mut().expect("is one");
    known.extend(cluster.as_object().expect("is one").clone());
    config.to_string()
}

/// A kubeconfig for each place that has secrets, and for each thing that may be wrong there.
fn unusable(namespace: &Namespace) -> Vec<Unusable> {
    let exec = |exec: Value| {
        let mut exec = exec;
        exec["apiVersion"] = "client.authentication.k8s.io/v1".into();
        exec["interactiveMode"] = "Never".into();
        kubeconfig(namespace, json!({ "exec": exec }), json!({}))
    };
    let script = |script: &str| {
        exec(json!({
            "command": "sh", "args": ["-c", script, "get-token", "--oidc-client-secret=canary-a"],
            "env": [{ "name": "CLIENT_SECRET", "value": "canary-b" }],
        }))
    };
    let user = |user: Value| kubeconfig(namespace, user, json!({}));
    let of_cluster = |cluster: Value| kubeconfig(namespace, json!({ "token": "canary" }), cluster);
    let case = |name, kubeconfig, code, says| Unusable { name, kubeconfig, code, says };
    let server = {
        let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
        let config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
        config["clusters"][0]["cluster"]["server"].as_str().expect("is one").to_owned()
    };
    vec![
        case("exec_fails", script("exit 1"), "credentials_refused", "'sh' failed (exit status: 1)"),
        case(
            "exec_repeats_its_arguments",
            script("echo \"bad $CLIENT_SECRET in $0 $1\" >&2; exit 3"),
            "credentials_refused",
            "(exit status: 3) with: bad *** in *** --oidc-client-secret=***",
        ),
        case(
            "exec_fails_after_output",
            script("echo '{\"status\": {\"token\": \"canary-c\"}}'; exit 1"),
            "credentials_refused",
            "'sh' failed",
        ),
        case("exec_output_is_cut", script("echo '{\"status\": {\"token\": \"canary-c'"), "configuration", "line 1"),
        case("exec_output_is_another_kind", script("echo '{\"kind\": \"canary-c\"}'"), "configuration", "no ExecCredential"),
        case(
            "exec_is_missing",
            exec(json!({
                "command": "kube-login", "args": ["--secret", "canary-a"],
                "installHint": "see https://example.com/kube-login",
            })),
            "configuration",
            "'kube-login' is not installed",
        ),
        case(
            "auth_provider",
            user(json!({ "auth-provider": { "name": "gcp", "config": {
                "cmd-path": "sh", "cmd-args": "-c exit canary-a", "access-token": "canary-b",
            } } })),
            "configuration",
            "`auth-provider`",
        ),
        case("token_with_a_line_end", user(json!({ "token": "canary\nx" })), "configuration", "the token of"),
        case(
            "key_is_no_pem",
            user(json!({
                "client-certificate-data": BASE64_STANDARD.encode("-----BEGIN canary-a"),
                "client-key-data": BASE64_STANDARD.encode("-----BEGIN canary-b"),
            })),
            "configuration",
            "client key cannot be used",
        ),
        case(
            "proxy_is_dead",
            of_cluster(json!({ "proxy-url": "http://jo:canary-p@127.0.0.1:1" })),
            "cluster_unreachable",
            "the proxy http://127.0.0.1:1 makes no connection",
        ),
        case(
            "proxy_of_another_kind",
            of_cluster(json!({ "proxy-url": "ftp://jo:canary-p@127.0.0.1:1" })),
            "configuration",
            "http://, https:// or socks5://",
        ),
        case(
            "user_in_the_servers_url",
            of_cluster(json!({ "server": server.replace("https://", "https://jo:canary-u@") })),
            "credentials_refused",
            "rejected the credentials",
        ),
        case(
            "wrong_indentation",
            "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user:\n    token: canary-a\n     x: canary-b\n".to_owned(),
            "configuration",
            ":7:",
        ),
        case("wrong_type", "users: [{name: a, user: {exec: {args: canary-a}}}]".to_owned(), "configuration", ":1:"),
        case("wrong_mode", "users: [{name: a, user: {exec: {interactiveMode: canary-a}}}]".to_owned(), "configuration", ":1:"),
    ]
}

/// All that was printed, and the answer's code.
fn check(case: &Unusable, entry: &str, output: &str) {
    let Unusable { name, code, says, .. } = case;
    assert!(!output.contains("canary"), "{name}, {entry}: {output}");
    assert!(output.contains(&format!(r#""code":"{code}""#)), "{name}, {entry}: {output}");
    assert!(output.contains(says), "{name}, {entry}: {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_text_of_a_kubeconfig_or_plugin_is_in_any_output() {
    let namespace = shared().namespace("secret_config").await;
    let request = json!({
        "type": "restart_k8s", "simulate": false,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
    .to_string();
    for case in unusable(&namespace) {
        let name = case.name;
        let path = scratch("kubeconfig");
        fs::write(&path, &case.kubeconfig).expect("is written");
        let program = || {
            Program::with_kubeconfig(&path)
                .env("PATH", "/usr/bin:/bin")
                .env("ACTION_EXECUTOR_LOG", "trace")
                .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "4")
        };
        let message = scratch("termination");
        let done = program().env("TERMINATION_LOG", &message).input(&*request).run();
        check(&case, "run", &format!("{}{}", done.stdout, done.stderr));
        check(&case, "termination message", &fs::read_to_string(&message).expect("is written"));
        if case.code != "cluster_unreachable" {
            assert!(done.took < Duration::from_secs(3), "{name}: {done:?}");
        }
        for command in [&["history", "--namespace", namespace.name()][..], &["job", "--apply"]] {
            if command[0] == "job" && case.code == "cluster_unreachable" {
                // It tries for longer.
                continue;
            }
            let done = program().args(command.iter().copied()).input(&*request).run();
            check(&case, command[0], &format!("{}{}", done.stdout, done.stderr));
        }
        let encoded = BASE64_STANDARD.encode(&case.kubeconfig);
        let in_variable = program().env("KUBECONFIG_BASE64", encoded).input(&*request).run();
        check(&case, "KUBECONFIG_BASE64", &format!("{in_variable:?}").replace("\\\"", "\""));
        serve(&case, &namespace, &request, program);
        #[cfg(feature = "lambda")]
        invoke(&case, &path, &request);
    }
}

/// A server with a kubeconfig that cannot be read does not start; any other one answers.
fn serve(case: &Unusable, namespace: &Namespace, request: &str, program: impl Fn() -> Program) {
    let offline = program().args(["serve", "--bind", "127.0.0.1:not-a-port"]).run();
    assert_eq!(offline.status, 64, "{offline:?}");
    let is_read_at_the_start = case.code == "configuration" && !case.name.starts_with("exec");
    if is_read_at_the_start {
        let done = program().args(["serve", "--bind", "127.0.0.1:0"]).run();
        return check(case, "serve", &format!("{}{}", done.stdout, done.stderr));
    }
    let server = Server::start(program());
    let history = format!("/api/v1/history?namespace={}", namespace.name());
    let diagnosis =
        format!("/api/v1/diagnosis?target=deployment/web&namespace={}", namespace.name());
    for path in ["/readyz", &history, &diagnosis] {
        let reply = server.get(path);
        check(case, path, &String::from_utf8_lossy(&reply.body));
    }
    let reply = server.execute(request.as_bytes());
    check(case, "POST", &String::from_utf8_lossy(&reply.body));
    let said = [server.get("/metrics").body, server.log().into_bytes()].concat();
    assert!(!String::from_utf8_lossy(&said).contains("canary"), "{}: {}", case.name, server.log());
}

#[cfg(feature = "lambda")]
fn invoke(case: &Unusable, kubeconfig: &std::path::Path, request: &str) {
    use crate::lambda;
    let function = lambda::Function::start(&[("KUBECONFIG", kubeconfig)]);
    // Shorter than an attempt at a proxy that does not answer.
    let outcome = function.invoke_within(request.as_bytes(), Duration::from_secs(6));
    let output = match outcome {
        lambda::Outcome::Answered(answer) => answer.to_string(),
        lambda::Outcome::Failed(kind, message) => format!(r#""code":"{kind}" {message}"#),
    };
    check(case, "function", &output);
    assert!(!function.log().contains("canary"), "{}: {}", case.name, function.log());
}

#[test]
fn a_keys_file_is_reported_by_position_alone() {
    for wrong in [
        "keys: [{name: pager, sha256: canary}]",
        "keys: [{name: pager, key: canary}]",
        "keys: [canary]",
        "keys: canary",
        "keys:\n- name: pager\n  sha256: canary-a\n   x: canary-b\n",
        "keys: [{name: pager, sha256: [canary]}]",
        "keys: [{name: pager, sha256: \"canary",
        "keys: [{name: pager, simulate_only: canary, sha256: x}]",
        "canary",
        "{canary: canary}",
    ] {
        let keys = scratch("keys.yaml");
        fs::write(&keys, wrong).expect("is written");
        let done = Program::offline()
            .env("ACTION_EXECUTOR_KEYS", &keys)
            .env("ACTION_EXECUTOR_LOG", "trace")
            .args(["serve", "--bind", "127.0.0.1:0"])
            .run();
        assert_eq!(done.status, 78, "{done:?}");
        assert!(!format!("{done:?}").contains("canary"), "{wrong}: {done:?}");
    }
}
