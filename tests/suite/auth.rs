//! Authentication and authorization of callers: keys from a file, cluster tokens, and the rate limits for both.

use std::{fs, path::PathBuf};

use action_executor::{auth::keys::Keys, config::reload::ConfigFile, contract::digest::sha256};
use k8s_openapi::api::{
    core::v1::Event,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    program::{Program, Reply, Server, execute_request, scratch},
};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";

fn execute(server: &Server, body: &[u8], headers: &str) -> Reply {
    server.raw(&execute_request(body, &format!("{headers}Connection: close\r\n")))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn keys(more: &str) -> PathBuf {
    let path = scratch("keys.yaml");
    fs::write(&path, one_key(more)).expect("is written");
    path
}

fn one_key(more: &str) -> String {
    format!("version: 1\nkeys: [{{name: pager, sha256: {}{more}}}]\n", sha256(KEY.as_bytes()))
}

fn code(reply: &Reply) -> (u16, String) {
    let code = reply.json()["code"].as_str().unwrap_or_default().to_owned();
    (reply.status, code)
}

#[test]
fn an_unauthenticated_caller_gets_401_for_any_request() {
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", keys("")));
    for headers in ["", "Authorization: Basic YTpi\r\n", &bearer("wrong"), &bearer("")] {
        for body in [REQUEST, b"{".as_slice(), b"{}".as_slice()] {
            let reply = execute(&server, body, headers);
            assert_eq!(code(&reply), (401, "unauthenticated".to_owned()), "{headers}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"action-executor\""));
        }
    }
    assert_eq!(server.get("/api/v1/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn a_key_permits_what_its_entry_says_and_a_change_applies_at_once() {
    let path = keys(", simulate_only: true");
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", &path));
    let real = br#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false}"#;
    assert_eq!(execute(&server, REQUEST, &bearer(KEY)).status, 200);
    let refused = execute(&server, real, &bearer(KEY));
    assert_eq!(code(&refused), (403, "caller_forbidden".to_owned()));
    assert!(refused.json()["hint"].as_str().expect("has one").contains("simulate_only"));

    fs::write(&path, one_key(", namespaces: [shop-*]")).expect("is written");
    let refused = execute(&server, REQUEST, &bearer(KEY));
    assert_eq!(code(&refused), (403, "caller_forbidden".to_owned()));

    fs::write(&path, "keys: []").expect("is written");
    assert_eq!(code(&execute(&server, REQUEST, &bearer(KEY))).0, 401);

    // An invalid file is ignored: the last valid keys stay, and the server is not ready.
    fs::write(&path, "keys: [{name: pager, sha256: oops}]").expect("is written");
    assert_eq!(code(&execute(&server, REQUEST, &bearer(KEY))).0, 401);
    let reply = server.get("/readyz");
    assert_eq!(reply.status, 503);
    assert!(reply.json()["detail"].as_str().expect("has a reason").contains("keys.yaml:1:"));
}

#[test]
fn repeated_wrong_keys_are_rate_limited_and_known_keys_still_work() {
    let server = Server::start(Program::offline().env("ACTION_EXECUTOR_KEYS", keys("")));
    for number in 0..10 {
        let refused = execute(&server, REQUEST, &bearer(&format!("guess-{number}")));
        assert_eq!(code(&refused).0, 401);
    }
    let refused = execute(&server, REQUEST, &bearer("guess-10"));
    assert_eq!(code(&refused), (429, "too_many_requests".to_owned()));
    let wait = refused.header("retry-after").expect("has a time").parse::<u64>();
    assert!((1..=6).contains(&wait.expect("is a number")));
    // All of these came from one address, as if from a proxy that other callers share.
    assert_eq!(execute(&server, REQUEST, &bearer(KEY)).status, 200);
    assert_eq!(code(&execute(&server, REQUEST, "")).0, 401);
}

#[test]
fn a_caller_over_its_rate_gets_429_with_retry_after() {
    let program = |rate| {
        Program::offline()
            .env("ACTION_EXECUTOR_KEYS", keys(""))
            .env("ACTION_EXECUTOR_CALLER_RATE", rate)
            .env("ACTION_EXECUTOR_CALLER_BURST", "2")
    };
    let server = Server::start(program("1"));
    let statuses = |server: &Server| {
        (0..8).map(|_| execute(server, REQUEST, &bearer(KEY))).collect::<Vec<_>>()
    };
    let replies = statuses(&server);
    assert_eq!((replies[0].status, replies[1].status), (200, 200));
    let refused = replies.iter().find(|reply| reply.status != 200).expect("is too often");
    assert_eq!(code(refused), (429, "too_many_requests".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.json()["detail"].as_str().expect("is text").contains("pager"));
    assert!(statuses(&Server::start(program("0"))).iter().all(|reply| reply.status == 200));
}

#[test]
fn the_keys_in_the_docs_are_keys() {
    for page in [
        include_str!("../../docs/how-to/keys-and-tokens.md"),
        include_str!("../../docs/how-to/impersonation.md"),
    ] {
        let mut blocks = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
        let example = blocks.find(|block| block.contains("\nkeys:")).expect("there is one");
        let entry = Keys::parse(example, "the page").expect("is right").find("secret");
        assert_eq!(entry.expect("is known").name.to_string(), "pager");
    }
}

#[test]
fn an_invalid_keys_file_is_a_startup_error() {
    let done = Program::offline()
        .env("ACTION_EXECUTOR_KEYS", "/nonexistent/keys.yaml")
        .args(["serve", "--bind", "127.0.0.1:0"])
        .run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stderr.contains("/nonexistent/keys.yaml"), "{done:?}");
}

#[test]
fn a_server_with_keys_may_listen_on_all_addresses() {
    let serve = ["serve", "--bind", "0.0.0.0:0"];
    let refused = Program::offline().args(serve).run();
    assert_eq!(refused.status, 78, "{refused:?}");
    let asked = Program::offline().env("ACTION_EXECUTOR_KEYS", keys(""));
    let server = Server::start_on("0.0.0.0:0", asked);
    assert_eq!(execute(&server, REQUEST, "").status, 401);
    assert_eq!(execute(&server, REQUEST, &bearer(KEY)).status, 200);
}

#[test]
fn keys_and_tokens_are_never_logged() {
    let server = Server::start(
        Program::offline()
            .env("ACTION_EXECUTOR_KEYS", keys(""))
            .env("ACTION_EXECUTOR_LOG", "trace"),
    );
    for token in [KEY, "canary-3c1f"] {
        execute(&server, REQUEST, &bearer(token));
    }
    server.signal("TERM");
    let (_, log) = server.wait();
    assert!(log.contains("action answered"), "{log}");
    assert!(!log.contains(KEY) && !log.contains("canary-3c1f"), "{log}");
}

/// A server whose own service account has these rules.
async fn server(namespace: &Namespace, rules: &[action_executor::k8s::rbac::PolicyRule]) -> Server {
    let account = namespace
        .account(
            "server",
            json!([
                { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] },
                { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "get", "patch"] },
                { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "patch"] },
            ]),
        )
        .await;
    let name = format!("callers-{}", namespace.name());
    let client = shared().client().await;
    let role: ClusterRole =
        serde_json::from_value(json!({ "metadata": { "name": name }, "rules": rules }))
            .expect("is a role");
    let roles = Api::<ClusterRole>::all(client.clone());
    roles.create(&PostParams::default(), &role).await.expect("is made");
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": "server", "namespace": namespace.name() }],
    }))
    .expect("is a binding");
    let bindings = Api::<ClusterRoleBinding>::all(client);
    bindings.create(&PostParams::default(), &binding).await.expect("is made");
    Server::start(
        Program::with_kubeconfig(&account)
            .under(&namespace.policy("cooldown_seconds: 0"))
            .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor"),
    )
}

/// A service account of a caller with these verbs on this action.
async fn caller(namespace: &Namespace, verbs: &[&str]) {
    let rule = json!({
        "apiGroups": ["action-executor.dev"], "resources": ["actions"],
        "resourceNames": ["restart_k8s"], "verbs": verbs,
    });
    namespace.grant("agent", json!([rule])).await;
}

fn request(namespace: &Namespace, simulate: bool) -> Vec<u8> {
    json!({
        "type": "restart_k8s", "simulate": simulate, "requester": "jo",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
    .to_string()
    .into_bytes()
}

#[tokio::test]
async fn a_cluster_token_permits_what_rbac_says() {
    let namespace = shared().namespace("callers").await;
    namespace.running_deployment("web", 1).await;
    let server = server(&namespace, &action_executor::auth::token_review::RULES).await;
    caller(&namespace, &["simulate"]).await;
    let token = bearer(&namespace.token("agent", &["action-executor"]).await);

    let simulated = execute(&server, &request(&namespace, true), &token);
    assert_eq!(simulated.status, 200, "{:?}", simulated.json());
    let refused = execute(&server, &request(&namespace, false), &token);
    assert_eq!(code(&refused), (403, "caller_forbidden".to_owned()));
    let hint = refused.json()["hint"].as_str().expect("has one").to_owned();
    assert!(hint.contains("verbs [\"execute\"]") && hint.contains("restart_k8s"), "{hint}");
    // Another action in the same namespace is another resource name.
    let other = json!({
        "type": "restart_pod", "parameters": { "pod_name": "x", "namespace": namespace.name() },
    });
    let refused = execute(&server, other.to_string().as_bytes(), &token);
    assert_eq!(code(&refused), (403, "caller_forbidden".to_owned()));

    // A token for the API server's audience is not valid here, and ours is not valid for another service.
    for audiences in [&[][..], &["another"]] {
        let token = bearer(&namespace.token("agent", audiences).await);
        let refused = execute(&server, &request(&namespace, true), &token);
        assert_eq!(code(&refused), (401, "unauthenticated".to_owned()));
    }
}

/// How many calls to the API server the server has counted.
fn calls(server: &Server) -> u64 {
    let text = String::from_utf8(server.get("/metrics").body).expect("is text");
    let counts = text.lines().filter_map(|line| {
        line.strip_prefix("action_executor_kubernetes_request_duration_seconds_count{")
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn a_known_token_works_while_unknown_ones_are_rejected_unread() {
    let namespace = shared().namespace("barred").await;
    namespace.running_deployment("web", 1).await;
    let server = server(&namespace, &action_executor::auth::token_review::RULES).await;
    caller(&namespace, &["simulate"]).await;
    let token = bearer(&namespace.token("agent", &["action-executor"]).await);
    assert_eq!(execute(&server, &request(&namespace, true), &token).status, 200);
    for number in 0..10 {
        let refused = execute(&server, b"{}", &bearer(&format!("guess-{number}")));
        assert_eq!(code(&refused).0, 401);
    }
    let before = calls(&server);
    let refused = execute(&server, b"{}", &bearer("guess-10"));
    assert_eq!(code(&refused), (429, "too_many_requests".to_owned()));
    // A known token is not reviewed again, and an invalid request causes no access review.
    assert_eq!(code(&execute(&server, b"{}", &token)), (400, "invalid_request".to_owned()));
    assert_eq!(calls(&server), before);
    assert_eq!(execute(&server, &request(&namespace, true), &token).status, 200);
}

#[tokio::test]
async fn the_audit_names_the_authenticated_user() {
    let namespace = shared().namespace("audit_caller").await;
    namespace.running_deployment("web", 1).await;
    let server = server(&namespace, &action_executor::auth::token_review::RULES).await;
    caller(&namespace, &["execute"]).await;
    let token = bearer(&namespace.token("agent", &["action-executor"]).await);
    let done = execute(&server, &request(&namespace, false), &token);
    assert_eq!(done.status, 200, "{:?}", done.json());
    let events = namespace.api::<Event>();
    let params = ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
    let event = events.list(&params).await.expect("are listed").items.remove(0);
    let message = event.message.expect("has one");
    let user = format!("system:serviceaccount:{}:agent on behalf of jo", namespace.name());
    assert!(message.contains(&user), "{message}");
}

#[tokio::test]
async fn a_server_without_permission_for_token_reviews_reports_the_rule() {
    let namespace = shared().namespace("unasked").await;
    let server = server(&namespace, &[]).await;
    caller(&namespace, &["execute"]).await;
    let token = bearer(&namespace.token("agent", &["action-executor"]).await);
    let refused = execute(&server, &request(&namespace, false), &token);
    assert_eq!(code(&refused), (503, "configuration".to_owned()));
    let problem: Value = refused.json();
    assert!(problem["detail"].as_str().expect("is text").contains("tokenreviews"), "{problem}");
    assert!(problem["hint"].as_str().expect("is text").starts_with("a ClusterRole"), "{problem}");
}
