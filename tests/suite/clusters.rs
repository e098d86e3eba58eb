//! Several clusters in one process, on two real API servers: a request acts on the one that it names and on no other.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use action_executor::{actions::ActionKind, contract::digest::sha256};
use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};
use kube::api::Patch;
use serde_json::{Value, json};

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{MISSING_IMAGE, Namespace, TestCluster, eventually, private, shared},
    concurrency::{answer, counted, send},
    fault_proxy::{ProxyBehavior, Received, proxy},
    ledger::records,
    mcp::Http,
    program::{Finished, Program, Reply, Server, execute_request, scratch},
};

const CLUSTERS: &str = "ACTION_EXECUTOR_CLUSTERS";
pub const FREE: &str = "cooldown_seconds: 0";

/// The second cluster of all tests here.
fn second() -> &'static TestCluster {
    static SECOND: OnceLock<TestCluster> = OnceLock::new();
    SECOND.get_or_init(private)
}

/// A namespace of the same name on two clusters, each with a Deployment `web`.
pub struct Pair {
    pub green: Namespace,
    pub blue: Namespace,
}

impl Pair {
    pub async fn new(test: &str) -> Self {
        let green = shared().namespace(test).await;
        let blue = second().namespace_named(green.name().to_owned()).await;
        for namespace in [&green, &blue] {
            namespace.running_deployment("web", 1).await;
        }
        Pair { green, blue }
    }

    /// A list of both with these policies; `head` comes before it.
    pub fn list(&self, head: &str, policies: [&str; 2]) -> PathBuf {
        let entry = |name: &str, namespace: &Namespace, policy: &str| {
            json!({
                "name": name, "kubeconfig": namespace.kubeconfig(),
                "policy": namespace.policy(policy),
            })
        };
        let entries =
            [entry("green", &self.green, policies[0]), entry("blue", &self.blue, policies[1])];
        written(&format!("{head}\nclusters: {}", json!(entries)))
    }

    fn request(&self, id: &str, cluster: Option<&str>) -> Value {
        let mut request = json!({
            "type": "restart_k8s", "simulate": false, "id": format!("{id}.{}", self.green.name()),
            "parameters": { "deployment": "web", "namespace": self.green.name() },
        });
        if let Some(cluster) = cluster {
            request["cluster"] = cluster.into();
        }
        request
    }

    /// How often the Deployment was changed on each cluster.
    pub async fn effects(&self) -> [i64; 2] {
        let of = async |namespace: &Namespace| {
            namespace.get_deployment("web").await.metadata.generation.expect("has one") - 1
        };
        [of(&self.green).await, of(&self.blue).await]
    }
}

fn written(text: &str) -> PathBuf {
    let path = scratch("clusters.yaml");
    fs::write(&path, text).expect("is written");
    path
}

/// A copy of the file beside the list that names it.
fn beside(list: &Path, kubeconfig: &Path) -> String {
    let name = format!("{}.kubeconfig", list.file_name().expect("has one").display());
    fs::copy(kubeconfig, list.with_file_name(&name)).expect("is copied");
    name
}

/// A kubeconfig of a cluster that is down.
fn gone() -> PathBuf {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "gone",
        "clusters": [{ "name": "gone", "cluster": { "server": "https://127.0.0.1:1" } }],
        "contexts": [{ "name": "gone", "context": { "cluster": "gone", "user": "gone" } }],
        "users": [{ "name": "gone", "user": { "token": "canary" } }],
    });
    let path = scratch("gone.kubeconfig");
    fs::write(&path, config.to_string()).expect("is written");
    path
}

/// A list of this namespace's cluster as `green`, and of `other` behind this kubeconfig; `head` comes before it.
fn list_beside(green: &Namespace, head: &str, other: &Path, policy: &str) -> PathBuf {
    let entries = json!([
        { "name": "green", "kubeconfig": green.kubeconfig(), "policy": green.policy(policy) },
        { "name": "other", "kubeconfig": other, "policy": green.policy(policy) },
    ]);
    written(&format!("{head}\nclusters: {entries}"))
}

pub fn program(list: &PathBuf) -> Program {
    Program::offline().env(CLUSTERS, list)
}

/// The administrator's kubeconfig of this cluster, with its context under this name.
fn as_context(name: &str, namespace: &Namespace) -> PathBuf {
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    config["contexts"][0]["name"] = name.into();
    config["current-context"] = name.into();
    let path = scratch(&format!("{name}.kubeconfig"));
    fs::write(&path, config.to_string()).expect("is written");
    path
}

fn in_file(request: &Value) -> String {
    let path = scratch("request.json");
    fs::write(&path, request.to_string()).expect("is written");
    path.display().to_string()
}

/// Runs the container of this Job on the cluster of this namespace, under a policy of ours.
fn run_as_pod(job: &Value, namespace: &Namespace) -> Finished {
    let mut program =
        Program::with_kubeconfig(namespace.kubeconfig()).under(&namespace.policy(FREE));
    let variables = job.pointer("/spec/template/spec/containers/0/env").expect("is there");
    for variable in variables.as_array().expect("is a list") {
        let name = variable["name"].as_str().expect("is text");
        if let Some(value) = variable["value"].as_str().filter(|_| name != "ACTION_EXECUTOR_POLICY")
        {
            program = program.env(name, value);
        }
    }
    program.run()
}

fn execute(server: &Server, request: &Value) -> Reply {
    server.execute(request.to_string().as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_acts_on_the_cluster_that_it_names_and_on_no_other() {
    let pair = Pair::new("clusters").await;
    let server = Server::start(program(&pair.list("", [FREE, FREE])));
    for (cluster, effects) in [("green", [1, 0]), ("blue", [1, 1])] {
        // The same id on two clusters is two requests.
        let request = pair.request("r1", Some(cluster));
        for replayed in [false, true] {
            let reply = execute(&server, &request);
            assert_eq!(reply.status, 200, "{:?}", reply.json());
            assert_eq!(reply.json()["cluster"], cluster);
            assert_eq!(reply.json()["replayed"], replayed);
        }
        assert_eq!(pair.effects().await, effects);
    }
    for (namespace, name) in [(&pair.green, "green"), (&pair.blue, "blue")] {
        let records = records(namespace).await;
        assert_eq!(records.len(), 1, "{records:?}");
        let annotations = records[0].metadata.annotations.as_ref().expect("has some");
        assert_eq!(annotations["action-executor.dev/cluster"], name);
    }

    for (cluster, detail) in
        [(None, "cluster: missing"), (Some("red"), "cluster: there is no such")]
    {
        let refused = execute(&server, &pair.request("r2", cluster));
        assert_eq!(refused.status, 400, "{:?}", refused.json());
        let problem = refused.json();
        assert!(problem["detail"].to_string().contains(detail), "{problem}");
        assert_eq!(
            (&problem["field"], &problem["hint"]),
            (&json!("cluster"), &json!("name one of green, blue"))
        );
    }
    assert_eq!(pair.effects().await, [1, 1]);

    let name = pair.green.name();
    for cluster in ["green", "blue"] {
        let get = |path: &str| {
            let reply = server.get(&format!("{path}namespace={name}&cluster={cluster}"));
            assert_eq!(reply.status, 200, "{path}: {:?}", reply.json());
            reply.json()
        };
        assert_eq!(get("/api/v1/history?")["entries"][0]["answer"]["cluster"], cluster);
        assert_eq!(get(&format!("/api/v1/actions/r1.{name}?"))["answer"]["cluster"], cluster);
        let report = get("/api/v1/diagnosis?target=deployment/web&");
        assert_eq!(report["cluster"], cluster, "{report}");
    }
    for path in [
        "/api/v1/history?",
        &format!("/api/v1/actions/r1.{name}?"),
        "/api/v1/diagnosis?target=deployment/web&",
    ] {
        let reply = server.get(&format!("{path}namespace={name}"));
        assert_eq!((reply.status, &reply.json()["field"]), (400, &json!("cluster")), "{path}");
        let reply = server.get(&format!("{path}namespace={name}&cluster=red"));
        assert_eq!((reply.status, &reply.json()["field"]), (400, &json!("cluster")), "{path}");
    }
    let text = String::from_utf8(server.get("/metrics").body).expect("is text");
    for cluster in ["green", "blue"] {
        let label = format!(r#"result="applied",cluster="{cluster}"}} 2"#);
        assert!(text.contains(&label), "{text}");
    }
    let ready = server.get("/readyz").json();
    let both = json!([{ "name": "green", "ready": true }, { "name": "blue", "ready": true }]);
    assert_eq!(ready["clusters"], both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asynchronous_response_says_where_the_state_is() {
    let pair = Pair::new("clusters_async").await;
    let server = Server::start(program(&pair.list("default: green", [FREE, FREE])));
    let mut request = pair.request("a", Some("blue"));
    request["wait"] = true.into();
    let body = request.to_string();
    let reply = server.raw(&execute_request(body.as_bytes(), "Prefer: respond-async\r\n"));
    assert_eq!(reply.status, 202, "{:?}", reply.json());
    assert_eq!(reply.json()["cluster"], "blue");
    let location = reply.header("location").expect("has one").to_owned();
    assert!(location.ends_with("&cluster=blue"), "{location}");
    let state = server.get(&location);
    assert_eq!((state.status, &state.json()["cluster"]), (200, &json!("blue")));
    // The default cluster has no such request.
    assert_eq!(server.get(location.trim_end_matches("&cluster=blue")).status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_down_leaves_the_others() {
    let pair = Pair::new("clusters_down").await;
    let entries = json!([
        { "name": "gone", "kubeconfig": gone() },
        { "name": "green", "kubeconfig": pair.green.kubeconfig(), "policy": pair.green.policy(FREE) },
    ]);
    let list = written(&format!("default: gone\nclusters: {entries}"));
    let server = Server::start(program(&list).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "3"));
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 200, "{:?}", ready.json());
    let states = json!([
        { "name": "gone", "ready": false, "code": "cluster_unreachable" },
        { "name": "green", "ready": true },
    ]);
    assert_eq!(ready.json()["clusters"], states);
    let reply = execute(&server, &pair.request("r1", None));
    assert_eq!((reply.status, &reply.json()["code"]), (503, &json!("cluster_unreachable")));
    let reply = execute(&server, &pair.request("r1", Some("green")));
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    assert!(!server.log().contains("canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cluster_has_its_own_policy_and_budget() {
    let pair = Pair::new("clusters_policy").await;
    let denied = "cooldown_seconds: 0\nactions: {allow: [scale]}";
    let server = Server::start(program(&pair.list("", [FREE, denied])));
    assert_eq!(execute(&server, &pair.request("r1", Some("green"))).status, 200);
    let reply = execute(&server, &pair.request("r1", Some("blue")));
    assert_eq!(reply.json()["code"], "policy_denied", "{:?}", reply.json());
    assert_eq!(pair.effects().await, [1, 0]);

    // What one cluster's budget counts, the other's does not.
    let cooled = "cooldown_seconds: 600";
    let server = Server::start(program(&pair.list("", [cooled, cooled])));
    assert_eq!(execute(&server, &pair.request("r2", Some("blue"))).status, 200);
    let again = execute(&server, &pair.request("r3", Some("blue"))).json();
    assert_eq!(again["code"], "rate_limited", "{again}");
    assert_eq!(pair.effects().await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_on_one_cluster_does_not_hold_on_the_other() {
    let pair = Pair::new("clusters_approval").await;
    let list = pair.list("", [REQUIRE_APPROVAL, REQUIRE_APPROVAL]);
    let send =
        |cluster: &str| program(&list).input(pair.request("r1", Some(cluster)).to_string()).run();
    let (green, blue) = (send("green").answer(), send("blue").answer());
    assert_eq!(
        (&green["outcome"], &blue["outcome"]),
        (&json!("pending_approval"), &json!("pending_approval"))
    );
    // The command names its cluster: with a kubeconfig that lacks that one it approves nothing, on any cluster.
    assert!(!approve(&green, &as_context("blue", &pair.blue)));
    assert!(approve(&green, &as_context("green", &pair.green)));
    // The command of one, given on the other.
    assert!(approve(&green, &as_context("green", &pair.blue)));
    assert_eq!(send("green").answer()["outcome"], "applied");
    assert_eq!(send("blue").answer()["outcome"], "pending_approval");
    assert_eq!(pair.effects().await, [1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_names_a_cluster_of_the_list() {
    let pair = Pair::new("clusters_cli").await;
    let list = pair.list("default: green", [FREE, FREE]);
    let name = pair.green.name();
    let restart = |more: &[&str]| {
        let args = ["restart-k8s", "web", "-n", name, "--execute", "-o", "json"];
        program(&list).args([&args, more].concat()).run()
    };
    assert_eq!(restart(&["--cluster", "blue"]).answer()["cluster"], "blue");
    assert_eq!(pair.effects().await, [0, 1]);
    assert_eq!(restart(&[]).answer()["cluster"], "green");
    assert_eq!(restart(&["--cluster", "red"]).status, 65);
    assert_eq!(restart(&["--cluster", "blue", "--context", "a"]).status, 64);
    assert_eq!(restart(&["--context", "a"]).status, 78);
    assert_eq!(pair.effects().await, [1, 1]);
    for cluster in ["green", "blue"] {
        let of = ["-n", name, "--cluster", cluster];
        let history = program(&list).args([&["history", "-o", "json"], &of[..]].concat()).run();
        assert_eq!(history.stdout.lines().count(), 1, "{history:?}");
        assert!(history.stdout.contains(&format!(r#""cluster":"{cluster}""#)), "{history:?}");
        let args = [&["diagnose", "deployment/web", "-o", "json"], &of[..]].concat();
        assert_eq!(program(&list).args(args).run().answer()["cluster"], cluster);
        let doctor = program(&list).args([&["doctor"], &of[..]].concat()).run();
        assert!(doctor.stdout.contains(&format!("{cluster}, Kubernetes")), "{doctor:?}");
    }
    // A request beside the flag, and one in variables.
    let simulated = json!({
        "type": "restart_k8s", "parameters": { "deployment": "web", "namespace": name }, "cluster": "green",
    });
    let run = |request: &Value| {
        program(&list).args(["--cluster", "blue"]).input(request.to_string()).run()
    };
    assert_eq!(run(&simulated).status, 65);
    let mut unnamed = simulated.clone();
    unnamed.as_object_mut().expect("is one").remove("cluster");
    assert_eq!(run(&unnamed).answer()["cluster"], "blue");
    let by_variables = program(&list)
        .env("ACTION_TYPE", "restart_k8s")
        .env("ACTION_PARAM_DEPLOYMENT", "web")
        .env("ACTION_PARAM_NAMESPACE", name)
        .env("ACTION_CLUSTER", "blue");
    assert_eq!(by_variables.run().answer()["cluster"], "blue");
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_tools_take_a_cluster_of_the_list() {
    let pair = Pair::new("clusters_mcp").await;
    let server = Server::start(program(&pair.list("", [FREE, FREE])));
    let client = Http::new(&server);
    let name = pair.green.name();
    let call = |tool: &str, arguments: Value| client.call(tool, &arguments.to_string());
    let request = |cluster: &str| {
        json!({
            "type": "restart_k8s", "id": format!("m.{name}"), "cluster": cluster,
            "parameters": { "deployment": "web", "namespace": name },
        })
    };
    let done = call("execute", request("blue"));
    assert_eq!(done["structuredContent"]["cluster"], "blue", "{done}");
    assert_eq!(pair.effects().await, [0, 1]);
    let wanted =
        |cluster: &str| json!({ "id": format!("m.{name}"), "namespace": name, "cluster": cluster });
    assert_eq!(call("get_action", wanted("blue"))["isError"], false);
    let unknown = call("get_action", wanted("green"));
    assert_eq!(unknown["structuredContent"]["code"], "request_not_found", "{unknown}");
    let refused = call("execute", request("red"));
    assert_eq!(refused["structuredContent"]["field"], "cluster", "{refused}");
    let listed = call("list_actions", json!({ "namespace": name, "cluster": "blue" }));
    assert!(listed.to_string().contains(&format!("m.{name}")), "{listed}");
    let report = call(
        "diagnose",
        json!({ "target": "deployment/web", "namespace": name, "cluster": "green" }),
    );
    assert_eq!(report["structuredContent"]["cluster"], "green", "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_says_on_which_cluster_a_call_is_under_way() {
    let pair = Pair::new("clusters_mcp_time").await;
    pair.blue.deployment("slow", 1, MISSING_IMAGE).await;
    let program = program(&pair.list("default: green", [FREE, FREE]));
    let server = Server::start(program.env("ACTION_EXECUTOR_MCP_WAIT_SECONDS", "4"));
    let client = Http::new(&server);
    let name = pair.blue.name();
    let id = format!("m.{name}");
    let request = json!({
        "type": "restart_k8s", "id": id, "cluster": "blue", "wait": true,
        "parameters": { "deployment": "slow", "namespace": name },
    });
    let state = json!({ "id": id, "namespace": name, "cluster": "blue" });
    for (tool, arguments) in [("execute", request), ("get_action", state)] {
        let result = client.call(tool, &arguments.to_string());
        let text = result["content"][0]["text"].as_str().expect("is text");
        let where_to = format!("on Deployment {name}/slow of cluster blue (id {id})");
        assert!(text.starts_with("In progress") && text.contains(&where_to), "{tool}: {result}");
        assert!(text.contains("Call get_action again with this id and cluster"), "{result}");
        assert_eq!(result["structuredContent"]["cluster"], "blue", "{tool}: {result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_offers_what_a_caller_may_do_on_one_cluster_at_least() {
    let pair = Pair::new("clusters_offer").await;
    let few =
        "cooldown_seconds: 0\nactions: {allow: [restart_k8s, scale]}\nsimulation: {limited: true}";
    let program = program(&pair.list("default: green\nreviewer: green", [few, few]));
    let server = Server::start(program.env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor"));
    let rule = |resources: &[&str]| {
        json!([{
            "apiGroups": ["action-executor.dev"], "resources": resources,
            "resourceNames": ["restart_k8s"], "verbs": ["simulate", "execute"],
        }])
    };
    for (account, resources, clusters, default) in [
        ("other", &["actions/blue"][..], json!(["blue"]), None),
        (
            "both",
            &["actions", "actions/green", "actions/blue"],
            json!(["green", "blue"]),
            Some("green"),
        ),
        ("none", &["actions/red"], json!([]), None),
    ] {
        pair.green.account(account, rule(resources)).await;
        let token = pair.green.token(account, &["action-executor"]).await;
        let offered = Http::with_token(&server, &token).tool_list();
        let tools = offered["tools"].as_array().expect("are listed");
        let names: Vec<_> = tools.iter().map(|tool| &tool["name"]).collect();
        let expected: &[&str] = if account == "none" { &[] } else { &["simulate", "restart_k8s"] };
        assert_eq!(json!(names), json!(expected), "{account}: {offered}");
        for tool in tools {
            let input = &tool["inputSchema"];
            let cluster = &input["properties"]["cluster"];
            assert_eq!((&cluster["enum"], cluster["default"].as_str()), (&clusters, default));
            let required = input["required"].to_string();
            assert_eq!(required.contains("cluster"), default.is_none(), "{account}: {input}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_for_the_cluster_of_its_request_whose_name_its_pod_knows() {
    let pair = Pair::new("clusters_job").await;
    let list = pair.list("default: green", [FREE, FREE]);
    let job = |request: &Value, flags: &[&str]| {
        let file = in_file(request);
        program(&list).args([&["job", &file, "-o", "json"], flags].concat()).run()
    };
    for (id, named, flags, cluster, effects) in [
        ("j1", Some("blue"), &[][..], "blue", [0, 1]),
        ("j2", None, &["--cluster", "blue"], "blue", [0, 2]),
        ("j3", None, &[], "green", [1, 2]),
    ] {
        let rendered = job(&pair.request(id, named), flags);
        assert_eq!(rendered.status, 0, "{rendered:?}");
        let place = if cluster == "blue" { &pair.blue } else { &pair.green };
        let done = run_as_pod(&rendered.answer(), place);
        assert_eq!((done.status, &done.answer()["cluster"]), (0, &json!(cluster)), "{done:?}");
        assert_eq!(pair.effects().await, effects);
    }
    for (named, flags) in [("red", &[][..]), ("green", &["--cluster", "blue"])] {
        let refused = job(&pair.request("j4", Some(named)), flags);
        assert_eq!((refused.status, &refused.answer()["field"]), (65, &json!("cluster")));
    }
    let created = job(&pair.request("j5", Some("blue")), &["--apply"]);
    assert_eq!(created.status, 0, "{created:?}");
    let name = created.answer()["job"]["name"].as_str().expect("is a name").to_owned();
    let found = async |namespace: &Namespace| {
        namespace.api::<Job>().get_opt(&name).await.expect("is read").is_some()
    };
    assert_eq!((found(&pair.green).await, found(&pair.blue).await), (false, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_acts_on_the_clusters_that_it_names_whichever_reviews_and_is_the_default() {
    let pair = Pair::new("clusters_keys").await;
    let keys = scratch("keys.yaml");
    let entry = |name: &str, more: &str| {
        format!("- {{name: {name}, sha256: {}{more}}}\n", sha256(format!("{name}-key").as_bytes()))
    };
    let text =
        [entry("jo", ""), entry("mo", ", clusters: [blue]"), entry("al", ", clusters: ['*']")];
    fs::write(&keys, format!("keys:\n{}", text.concat())).expect("is written");
    let program = program(&pair.list("default: green\nreviewer: green", [FREE, FREE]));
    let server = Server::start(program.env("ACTION_EXECUTOR_KEYS", &keys));
    let send = |caller: &str, id: &str, cluster: &str| {
        let headers = format!("Authorization: Bearer {caller}-key\r\n");
        let body = pair.request(id, Some(cluster)).to_string();
        server.raw(&execute_request(body.as_bytes(), &headers))
    };
    for (caller, cluster) in [("jo", "green"), ("jo", "blue"), ("mo", "green")] {
        let refused = send(caller, "r1", cluster);
        let problem = refused.json();
        assert_eq!((refused.status, &problem["code"]), (403, &json!("caller_forbidden")));
        let named = format!("of cluster '{cluster}'");
        assert!(problem["detail"].to_string().contains(&named), "{problem}");
        assert!(problem["hint"].to_string().contains("`clusters`"), "{problem}");
    }
    assert_eq!(pair.effects().await, [0, 0]);
    assert_eq!(send("mo", "r1", "blue").status, 200);
    assert_eq!(pair.effects().await, [0, 1]);
    assert_eq!(send("al", "r2", "green").status, 200);
    assert_eq!(send("al", "r2", "blue").status, 200);
    assert_eq!(pair.effects().await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_not_ready_while_the_cluster_that_reviews_its_callers_does_not_answer() {
    let namespace = shared().namespace("clusters_review").await;
    let list = list_beside(&namespace, "reviewer: other", &gone(), FREE);
    let keys = scratch("keys.yaml");
    fs::write(&keys, format!("keys: [{{name: jo, sha256: {}}}]", sha256(b"jo-key")))
        .expect("is written");
    let by_keys = program(&list).env("ACTION_EXECUTOR_KEYS", &keys);
    assert_eq!(Server::start(by_keys).get("/readyz").status, 200);
    let by_tokens = program(&list).env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    let ready = Server::start(by_tokens).get("/readyz");
    assert_eq!((ready.status, &ready.json()["code"]), (503, &json!("cluster_unreachable")));
    let detail = ready.json()["detail"].to_string();
    assert!(detail.contains("cluster other, which reviews callers"), "{detail}");
    let states = ready.json()["clusters"].clone();
    assert_eq!(
        (&states[0]["ready"], &states[1]["ready"]),
        (&json!(true), &json!(false)),
        "{states}"
    );
    // The holders of keys do not need it.
    let by_both = program(&list).env("ACTION_EXECUTOR_KEYS", &keys);
    let by_both = by_both.env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    let ready = Server::start(by_both).get("/readyz");
    assert_eq!(ready.status, 200);
    assert_eq!(ready.json()["clusters"][1]["code"], "cluster_unreachable");
    // Of the clusters whose answers no caller needs, one may be down.
    let list = list_beside(&namespace, "default: other\nreviewer: green", &gone(), FREE);
    let by_tokens = program(&list).env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    assert_eq!(Server::start(by_tokens).get("/readyz").status, 200);
}

/// Sends requests until a cluster that behaves so holds all its permits and hangs, then one to another cluster.
async fn acts_beside(test: &str, behavior: fn(&Received) -> ProxyBehavior, policy: &str) {
    let namespace = shared().namespace(test).await;
    let names: Vec<_> = (0..3).map(|number| format!("web-{number}")).collect();
    for name in &names {
        namespace.running_deployment(name, 1).await;
    }
    let hanging = Arc::new(AtomicUsize::new(0));
    let hangs = hanging.clone();
    let kubeconfig = proxy(&namespace, move |call| {
        let behavior = behavior(call);
        let is_hanging = matches!(behavior, ProxyBehavior::Hang);
        hangs.fetch_add(usize::from(is_hanging), Ordering::SeqCst);
        behavior
    });
    let list = list_beside(&namespace, "", &kubeconfig.await, policy);
    // Two for each cluster, and for what means none of them.
    let server = Server::start(program(&list).env("ACTION_EXECUTOR_MAX_ACTIONS", "6"));
    let request = |deployment: &str, cluster: &str| {
        json!({
            "type": "restart_k8s", "simulate": false, "id": format!("{deployment}.{cluster}"), "cluster": cluster,
            "parameters": { "deployment": deployment, "namespace": namespace.name() },
        })
    };
    let held: Vec<_> = (0..6)
        .map(|number| send(server.address(), &request(&names[number % 2], "other"), ""))
        .collect();
    let of_other = r#"{lane="actions",cluster="other"} "#;
    eventually("the cluster holds its permits and the others wait", async || {
        let in_use = counted(&server, &format!("action_executor_concurrency_in_use{of_other}"));
        let queued = counted(&server, r#"action_executor_queued_requests{cluster="other"} "#);
        let hang = hanging.load(Ordering::SeqCst) >= 2;
        (in_use == Some(2) && queued == Some(4) && hang).then_some(())
    })
    .await;
    assert_eq!(counted(&server, &format!("action_executor_concurrency_limit{of_other}")), Some(2));
    let (reply, took) = answer(send(server.address(), &request(&names[2], "green"), "")).await;
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(held.iter().all(|sent| !sent.is_finished()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hangs_keeps_no_other_from_acting() {
    acts_beside("clusters_hang", |_| ProxyBehavior::Hang, FREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_budget_hangs_keeps_no_other_from_acting() {
    let behavior = |call: &Received| match call.writes("leases") {
        true => ProxyBehavior::Hang,
        false => ProxyBehavior::Forward,
    };
    acts_beside("clusters_lease", behavior, "cooldown_seconds: 600").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_policy_of_one_cluster_concerns_that_cluster_alone() {
    let pair = Pair::new("clusters_invalid").await;
    let policies = [pair.green.policy(FREE), pair.blue.policy(FREE)];
    let entries = json!([
        { "name": "green", "kubeconfig": pair.green.kubeconfig(), "policy": policies[0] },
        { "name": "blue", "kubeconfig": pair.blue.kubeconfig(), "policy": policies[1] },
    ]);
    let server = Server::start(program(&written(&format!("clusters: {entries}"))));
    let valid = fs::read(&policies[1]).expect("is read");
    fs::write(&policies[1], "read_only: perhaps").expect("is written");
    let ready = server.get("/readyz");
    assert_eq!(ready.status, 200, "{:?}", ready.json());
    let states = json!([
        { "name": "green", "ready": true },
        { "name": "blue", "ready": false, "code": "configuration" },
    ]);
    assert_eq!(ready.json()["clusters"], states);
    let refused = execute(&server, &pair.request("r1", Some("blue")));
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("configuration")));
    let detail = refused.json()["detail"].to_string();
    assert!(detail.contains("cluster blue of the list: policy"), "{detail}");
    let path =
        format!("/api/v1/diagnosis?target=deployment/web&namespace={}&cluster=", pair.green.name());
    assert_eq!(server.get(&format!("{path}blue")).json()["code"], "configuration");
    assert_eq!(server.get(&format!("{path}green")).status, 200);
    assert_eq!(execute(&server, &pair.request("r1", Some("green"))).status, 200);
    assert_eq!(pair.effects().await, [1, 0]);

    fs::write(&policies[0], "read_only: perhaps").expect("is written");
    let ready = server.get("/readyz");
    assert_eq!((ready.status, &ready.json()["code"]), (503, &json!("configuration")));
    fs::write(&policies[1], valid).expect("is written");
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(execute(&server, &pair.request("r1", Some("blue"))).status, 200);
    assert_eq!(pair.effects().await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_stop_once_the_policy_of_their_cluster_is_invalid() {
    let namespace = shared().namespace("clusters_stop").await;
    let labels = Patch::Merge(json!({ "metadata": { "labels": { "tier": "front" } } }));
    let deployments = namespace.api::<Deployment>();
    for name in ["api", "web"] {
        namespace.running_deployment(name, 1).await;
        deployments.patch(name, &Default::default(), &labels).await.expect("is labelled");
    }
    let policy = namespace.policy(FREE);
    let entry = json!({ "name": "green", "kubeconfig": namespace.kubeconfig(), "policy": policy });
    let server = Server::start(program(&written(&format!("clusters: [{entry}]"))));
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "s1", "wait": true, "timeout_seconds": 60,
        "parameters": { "namespace": namespace.name(), "selector": "tier=front" },
    });
    let sent = send(server.address(), &request, "");
    let changes =
        async |name| namespace.get_deployment(name).await.metadata.generation.expect("has one") - 1;
    // The first is waited for meanwhile.
    eventually("api is restarted", async || (changes("api").await == 1).then_some(())).await;
    fs::write(&policy, "read_only: perhaps").expect("is written");
    let (reply, _) = answer(sent).await;
    let targets = reply.json()["targets"].clone();
    assert_eq!((&targets[0]["outcome"], changes("api").await), (&json!("applied"), 1), "{targets}");
    assert_eq!(targets[1]["outcome"], "not_attempted", "{targets}");
    assert_eq!(targets[1]["result"], "not attempted: the policy of the cluster cannot be read");
    assert_eq!(changes("web").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rbac_knows_a_cluster_as_a_subresource_of_actions() {
    let pair = Pair::new("clusters_rbac").await;
    // Neither the default nor the first of the list reviews.
    let entries = ["blue", "green"].map(|name| {
        let namespace = if name == "green" { &pair.green } else { &pair.blue };
        json!({ "name": name, "kubeconfig": namespace.kubeconfig(), "policy": namespace.policy(FREE) })
    });
    let list = written(&format!("default: blue\nreviewer: green\nclusters: {}", json!(entries)));
    let server =
        Server::start(program(&list).env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor"));
    let rule = |resource: &str| json!([{ "apiGroups": ["action-executor.dev"], "resources": [resource], "verbs": ["execute", "list"] }]);
    pair.green.account("agent", rule("actions")).await;
    pair.green.account("other", rule("actions/blue")).await;
    let agent = pair.green.token("agent", &["action-executor"]).await;
    let other = pair.green.token("other", &["action-executor"]).await;
    let send = |token: &str, cluster: &str| {
        let headers = format!("Authorization: Bearer {token}\r\n");
        let body = pair.request("r1", Some(cluster)).to_string();
        server.raw(&execute_request(body.as_bytes(), &headers))
    };
    assert_eq!(send(&other, "green").status, 403);
    let refused = send(&agent, "blue");
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("caller_forbidden")));
    assert!(refused.json()["hint"].to_string().contains("actions/blue"), "{:?}", refused.json());
    assert_eq!(pair.effects().await, [0, 0]);
    assert_eq!(send(&agent, "green").status, 200);
    let reply = send(&other, "blue");
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    // What may be read of the objects themselves is up to the cluster that has them.
    let path = format!(
        "/api/v1/diagnosis?target=deployment/web&namespace={}&cluster=blue",
        pair.blue.name()
    );
    let diagnose = || {
        let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close";
        server.raw(format!("GET {path} {head}\r\nAuthorization: Bearer {other}\r\n\r\n").as_bytes())
    };
    let refused = diagnose();
    assert_eq!(refused.status, 403, "{:?}", refused.json());
    assert!(
        refused.json()["detail"].to_string().contains("may not get deployments"),
        "{:?}",
        refused.json()
    );
    let read = json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] }]);
    pair.blue.account("other", read).await;
    let reply = diagnose();
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    assert_eq!(reply.json()["cluster"], "blue");
    assert_eq!(pair.effects().await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impersonated_caller_has_its_permissions_on_each_cluster() {
    let pair = Pair::new("clusters_as").await;
    let name = pair.green.name();
    let keys = scratch("keys.yaml");
    let user = format!("impersonate: {{user: 'system:serviceaccount:{name}:agent'}}");
    let entry = format!("{{name: jo, sha256: {}, clusters: ['*'], {user}}}", sha256(b"jo-key"));
    fs::write(&keys, format!("keys: [{entry}]")).expect("is written");
    let program = program(&pair.list("default: green", [FREE, FREE]))
        .env("ACTION_EXECUTOR_KEYS", &keys)
        .env("ACTION_EXECUTOR_IMPERSONATE", "callers")
        .env("ACTION_EXECUTOR_IMPERSONATE_ACCOUNTS", format!("{name}:agent"));
    let server = Server::start(program);
    let send = |cluster: &str| {
        let body = pair.request("r1", Some(cluster)).to_string();
        server.raw(&execute_request(body.as_bytes(), "Authorization: Bearer jo-key\r\n"))
    };
    assert_eq!((send("green").status, send("blue").status), (403, 403));
    pair.blue.account("agent", json!(ActionKind::RestartK8s.descriptor().rules)).await;
    let reply = send("blue");
    assert_eq!(reply.status, 200, "{:?}", reply.json());
    assert_eq!(send("green").status, 403);
    assert_eq!(pair.effects().await, [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_name_the_only_cluster() {
    let namespace = shared().namespace("clusters_one").await;
    namespace.running_deployment("web", 1).await;
    let request = |cluster: &str| {
        json!({
            "type": "restart_k8s", "cluster": cluster,
            "parameters": { "deployment": "web", "namespace": namespace.name() },
        })
        .to_string()
    };
    let program = || {
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        program.env("ACTION_EXECUTOR_CLUSTER_NAME", "EU production")
    };
    assert_eq!(
        program().input(request("EU production")).run().answer()["cluster"],
        "EU production"
    );
    let refused = program().input(request("US production")).run();
    assert_eq!(refused.status, 65, "{refused:?}");
    assert_eq!(refused.answer()["hint"], "the only one is EU production");
    let history = program().args(["history", "--cluster", "US production"]).run();
    assert_eq!(history.status, 65, "{history:?}");
    // The cluster of a Job's pod has the name that the request has for it.
    let named: Value = serde_json::from_str(&request("EU production")).expect("is JSON");
    let file = in_file(&named);
    let rendered = Program::offline().args(["job", &file, "-o", "json"]).run();
    assert_eq!(rendered.status, 0, "{rendered:?}");
    let done = run_as_pod(&rendered.answer(), &namespace);
    assert_eq!((done.status, &done.answer()["cluster"]), (0, &json!("EU production")), "{done:?}");
    let elsewhere = Program::with_kubeconfig(namespace.kubeconfig());
    for (program, more) in [
        (elsewhere.env("ACTION_EXECUTOR_CLUSTER_NAME", "US production"), vec![]),
        (Program::with_kubeconfig(namespace.kubeconfig()), vec!["--apply"]),
    ] {
        let args = [vec!["job", &file, "-o", "json"], more].concat();
        let refused = program.args(args).run();
        assert_eq!((refused.status, &refused.answer()["field"]), (65, &json!("cluster")));
    }
    let server = Server::start(program());
    assert_eq!(server.get("/api/v1/history?cluster=US%20production").status, 400);
    assert_eq!(server.get("/api/v1/history?cluster=EU%20production").status, 200);
}

#[tokio::test]
async fn paths_in_a_list_are_relative_to_it() {
    let namespace = shared().namespace("clusters_paths").await;
    namespace.running_deployment("web", 1).await;
    let list = written("{}");
    let name = beside(&list, namespace.kubeconfig());
    fs::write(&list, format!("clusters: [{{name: a, kubeconfig: {name}}}]")).expect("is written");
    let request = json!({
        "type": "restart_k8s", "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let done = program(&list).input(request.to_string()).run();
    assert_eq!((done.status, &done.answer()["cluster"]), (0, &json!("a")), "{done:?}");
}

#[test]
fn a_list_that_cannot_be_used_is_an_error_at_startup() {
    let kubeconfig = shared().kubeconfig().display().to_string();
    for (text, named) in [
        (
            format!("clusters: [{{name: a, kubeconfig: {kubeconfig}, context: nowhere}}]"),
            "cluster a of the list: the kubeconfig has no context",
        ),
        ("clusters: [{name: a, kubeconfig: /nowhere}]".to_owned(), "cluster a of the list"),
        ("clusters: [{name: a}]".to_owned(), "cluster a of the list: there is no kubeconfig"),
        (
            format!("clusters: [{{name: a, kubeconfig: {kubeconfig}, policy: /nowhere}}]"),
            "cluster a of the list",
        ),
        ("clusters: [{name: a}, {name: a}]".to_owned(), "the name a is given twice"),
        ("clusters: [{name: a, servers: b}]".to_owned(), "servers"),
        ("{default: b, clusters: [{name: a}]}".to_owned(), "default: b"),
        ("{reviewer: b, clusters: [{name: a}]}".to_owned(), "reviewer: b"),
    ] {
        let list = written(&text);
        let done = program(&list).args(["serve", "--bind", "127.0.0.1:0"]).run();
        assert_eq!(done.status, 78, "{text}: {done:?}");
        assert!(done.stderr.contains(named), "{text}: {done:?}");
    }
    let both = format!(
        "default: b\nclusters: [{{name: a, kubeconfig: {kubeconfig}}}, {{name: b, kubeconfig: {kubeconfig}}}]"
    );
    let reviewed =
        program(&written(&both)).env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    let reviewed = reviewed.args(["serve", "--bind", "127.0.0.1:0"]).run();
    assert_eq!(reviewed.status, 78, "{reviewed:?}");
    for words in ["reviewer: missing", "one of a, b"] {
        assert!(reviewed.stderr.contains(words), "{reviewed:?}");
    }
    let list = written("clusters: [{name: a}]");
    let named = program(&list).env("ACTION_EXECUTOR_CLUSTER_NAME", "a").args(["serve"]).run();
    assert_eq!(named.status, 78, "{named:?}");
    assert!(format!("{named:?}").contains("ACTION_EXECUTOR_CLUSTER_NAME"), "{named:?}");
}

#[cfg(feature = "lambda")]
#[tokio::test(flavor = "multi_thread")]
async fn a_function_takes_the_same_list() {
    use crate::lambda::{Function, Outcome};
    let pair = Pair::new("clusters_lambda").await;
    let list = pair.list("default: green", [FREE, FREE]);
    let function = Function::start(&[(CLUSTERS, &list)]);
    for (named, cluster, effects) in [(None, "green", [1, 0]), (Some("blue"), "blue", [1, 1])] {
        let request = pair.request(&format!("l-{cluster}"), named).to_string();
        let Outcome::Answered(answer) = function.invoke(request.as_bytes()) else {
            panic!("{cluster}: {}", function.log());
        };
        assert_eq!(answer["cluster"], cluster, "{answer}");
        assert_eq!(pair.effects().await, effects);
    }
}
