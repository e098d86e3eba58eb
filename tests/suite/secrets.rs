//! Canary secrets in every input of the server; the test searches all of its output for them.

use std::fs;

use action_executor::{auth::token_review::RULES, contract::digest::sha256};
use serde_json::json;

use crate::{
    cluster::shared,
    program::{Program, Server, execute_request, scratch},
    traces::Collector,
};

const KEY: &str = "canary-key-51aa0c";
const WRONG_KEY: &str = "canary-wrong-key-77f1";
const COOKIE: &str = "canary-cookie-9d2e";
const VARIABLE: &str = "canary-variable-0b7c";
const COLLECTOR_TOKEN: &str = "canary-collector-3e44";

#[tokio::test(flavor = "multi_thread")]
async fn secrets_appear_in_no_log_answer_metric_or_trace() {
    let namespace = shared().namespace("canaries").await;
    namespace.running_deployment("web", 1).await;
    let rules = json!([
        { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] },
    ]);
    let kubeconfig = namespace.account("server", rules).await;
    namespace.grant_everywhere("server", json!(RULES)).await;
    let text = fs::read_to_string(&kubeconfig).expect("is readable");
    let config: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    let token = config["users"][0]["user"]["token"].as_str().expect("has one").to_owned();
    let caller = namespace.token("default", &["action-executor"]).await;
    let keys = scratch("keys.yaml");
    let entry = format!("keys: [{{name: pager, sha256: {}}}]", sha256(KEY.as_bytes()));
    fs::write(&keys, entry).expect("is written");

    let collector = Collector::start();
    let server = Server::start(
        Program::with_kubeconfig(&kubeconfig)
            .env("ACTION_EXECUTOR_KEYS", keys)
            .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor")
            .env("ACTION_EXECUTOR_LOG", "trace")
            .env("DATABASE_PASSWORD", VARIABLE)
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
    let canaries =
        [KEY, WRONG_KEY, COOKIE, VARIABLE, COLLECTOR_TOKEN, &token, &caller].map(str::as_bytes);
    for canary in canaries {
        for (where_from, text) in
            [("answers", &said), ("log", &log.clone().into_bytes()), ("traces", &traces)]
        {
            let found = text.windows(canary.len()).any(|window| window == canary);
            assert!(!found, "{} is in the {where_from}", String::from_utf8_lossy(canary));
        }
    }
}
