//! The history over HTTP: which requests it lists, the filters, and who may read it.

use std::fs;

use action_executor::{actions::ActionKind, contract::digest::sha256, ledger};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, shared},
    ledger::records,
    program::{Program, Reply, Server, scratch},
};

const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";

fn get(server: &Server, path: &str, headers: &str) -> Reply {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
    server.raw(request.as_bytes())
}

fn restart(server: &Server, namespace: &Namespace, deployment: &str, id: &str) -> Reply {
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": id, "requester": "pager",
        "reason": "p99 is 4 s",
        "parameters": { "deployment": deployment, "namespace": namespace.name() },
    });
    server.execute(request.to_string().as_bytes())
}

#[tokio::test]
async fn history_lists_applied_and_refused_requests_newest_first() {
    let namespace = shared().namespace("history").await;
    namespace.running_deployment("web", 1).await;
    namespace.running_deployment("api", 1).await;
    let server = Server::start(Program::with_kubeconfig(namespace.kubeconfig()));
    let name = namespace.name();
    for (deployment, id) in [("web", "one"), ("api", "two")] {
        let reply = restart(&server, &namespace, deployment, &format!("{id}.{name}"));
        assert_eq!(reply.status, 200, "{:?}", reply.json());
    }
    assert_eq!(restart(&server, &namespace, "nobody", &format!("three.{name}")).status, 422);

    let reply = server.get(&format!("/api/v1/history?namespace={name}"));
    assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
    let page = reply.json();
    let entries = page["entries"].as_array().expect("is a list");
    let of = |target: &str| entries.iter().find(|it| it["target"]["name"] == target);
    let web = of("web").expect("is reported");
    assert_eq!(web["id"], format!("one.{name}"));
    assert_eq!((&web["type"], &web["outcome"]), (&json!("restart_k8s"), &json!("applied")));
    assert_eq!((&web["requester"], &web["reason"]), (&json!("pager"), &json!("p99 is 4 s")));
    assert_eq!(web["answer"]["target"]["name"], "web");
    let times: Vec<_> = entries.iter().map(|it| it["at"].to_string()).collect();
    assert!(times.is_sorted_by(|one, other| one >= other), "{times:?}");

    let filtered = |query: &str| {
        let path = format!("/api/v1/history?namespace={name}&{query}");
        server.get(&path).json()
    };
    let one = filtered("target=deployment/api");
    assert_eq!(one["entries"].as_array().expect("is a list").len(), 1, "{one}");
    // A refusal of a target that does not exist is one, too.
    let refused = filtered("outcome=refused");
    assert_eq!(refused["entries"][0]["target"]["name"], "nobody", "{refused}");
    let count = |page: &Value| page["entries"].as_array().expect("is a list").len();
    assert_eq!(count(&refused), 1, "{refused}");
    assert_eq!(count(&filtered("outcome=applied&requester=pager")), 2);
    assert_eq!(count(&filtered("requester=another")), 0);
    let newest = filtered("limit=1");
    assert_eq!(newest["entries"].as_array().expect("is a list").len(), 1, "{newest}");
    assert_eq!(newest["more"], true);
    let everywhere = server.get("/api/v1/history?limit=500").json().to_string();
    assert!(everywhere.contains(&format!("one.{name}")));

    let document = server.get("/openapi.json").json();
    let mut schema = json!({ "$ref": "#/components/schemas/History" });
    schema["components"] = document["components"].clone();
    let schema = jsonschema::validator_for(&schema).expect("is a schema");
    assert!(schema.is_valid(&page), "{:?}", schema.validate(&page));
}

#[tokio::test]
async fn answers_records_and_the_list_of_actions_name_the_cluster() {
    let namespace = shared().namespace("named").await;
    namespace.running_deployment("web", 1).await;
    let program = || Program::with_kubeconfig(namespace.kubeconfig());
    let own = program().env("ACTION_EXECUTOR_CLUSTER_NAME", "EU production");
    for (id, program) in [("own", own), ("by-kubeconfig", program())] {
        let server = Server::start(program);
        let id = format!("{id}.{}", namespace.name());
        let answer = restart(&server, &namespace, "web", &id).json();
        let name = answer["cluster"].as_str().expect("is named").to_owned();
        match id.starts_with("own") {
            true => assert_eq!(name, "EU production"),
            // The context and the server.
            false => assert!(name.contains(" (127.0.0.1:"), "{name}"),
        }
        assert_eq!(server.get("/api/v1/actions").json()["cluster"], *name);
        let records = records(&namespace).await;
        let annotations = records.iter().filter_map(|event| event.metadata.annotations.as_ref());
        let of = annotations.filter(|it| it.get("action-executor.dev/request-id") == Some(&id));
        let names: Vec<_> = of.map(|it| it.get("action-executor.dev/cluster")).collect();
        assert_eq!(names, [Some(&name)]);
    }
}

#[tokio::test]
async fn history_requires_permission_to_list() {
    let namespace = shared().namespace("history_keys").await;
    let (keys, name) = (scratch("keys.yaml"), namespace.name());
    let write = |more: &str| {
        let digest = sha256(KEY.as_bytes());
        let text = format!("version: 1\nkeys: [{{name: pager, sha256: {digest}{more}}}]\n");
        fs::write(&keys, text).expect("is written");
    };
    write(&format!(", namespaces: [{name}]"));
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let server = Server::start(program.env("ACTION_EXECUTOR_KEYS", &keys));
    let key = format!("Authorization: Bearer {KEY}\r\n");
    let here = format!("/api/v1/history?namespace={name}");
    assert_eq!(get(&server, &here, &key).status, 200);
    for (path, headers, status) in [
        (&*here, "", 401),
        // An unauthenticated caller does not even learn whether the query is valid.
        ("/api/v1/history?limit=0", "", 401),
        ("/api/v1/history?limit=0", &*key, 400),
        ("/api/v1/history", &key, 403),
        ("/api/v1/history?namespace=other", &key, 403),
    ] {
        assert_eq!(get(&server, path, headers).status, status, "{path}");
    }
    // Permission to list covers all actions or none.
    write(", actions: [restart_k8s]");
    assert_eq!(get(&server, &here, &key).status, 403);
}

#[tokio::test]
async fn a_server_that_may_not_list_names_the_missing_rule() {
    let namespace = shared().namespace("history_rbac").await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let server = |account: std::path::PathBuf| {
        Server::start(Program::with_kubeconfig(&account).under(&policy))
    };
    let path = format!("/api/v1/history?namespace={}", namespace.name());
    let without = namespace.account("without", json!([])).await;
    let reply = server(without).get(&path);
    assert_eq!(reply.status, 403, "{:?}", reply.json());
    let problem: Value = reply.json();
    assert!(
        problem["detail"].as_str().expect("is text").contains("may not list events"),
        "{problem}"
    );
    assert!(
        problem["hint"].as_str().expect("is text").contains("\"verbs\":[\"list\"]"),
        "{problem}"
    );
    let with = namespace.account("with", json!([ledger::HISTORY])).await;
    let reply = server(with).get(&path);
    assert_eq!((reply.status, reply.json()["entries"].clone()), (200, json!([])));
}

#[test]
fn a_server_without_a_cluster_has_no_history_and_lists_every_action() {
    let server = Server::start(Program::offline());
    let reply = server.get("/api/v1/history");
    assert_eq!((reply.status, reply.json()["code"].clone()), (503, json!("configuration")));
    let listed = server.get("/api/v1/actions").json();
    assert_eq!(listed["actions"].as_array().expect("is a list").len(), ActionKind::ALL.len());
}
