//! The limits of the policy, checked with real requests through every entry point.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use action_executor::{
    actions::ActionKind,
    config::reload::ConfigFile,
    manifests::rbac,
    policy::{Policy, budget},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PostParams};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{Namespace, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    ledger::rounds,
    program::{Program, Server},
    scenario::{Scenario, for_each, for_each_action},
};

fn restart(namespace: &Namespace, deployment: &str) -> Value {
    json!({
        "type": "restart_k8s", "simulate": false,
        "parameters": { "deployment": deployment, "namespace": namespace.name() },
    })
}

/// An entry point: from a request to its answer.
type EntryPoint = fn(Program, &Value) -> Value;

/// The entry points.
const ENTRY_POINTS: [(&str, EntryPoint); 3] = [
    ("stdin", |program, request| program.input(request.to_string()).run().answer()),
    ("environment", |program, request| {
        program.env("ACTION_REQUEST", request.to_string()).run().answer()
    }),
    ("http", |program, request| {
        Server::start(program).execute(request.to_string().as_bytes()).json()
    }),
];

/// The calls of this user in the API server's audit log, from this position on.
pub fn calls(user: &str, since: u64) -> Vec<Value> {
    let entries = shared().audit_entries(since, user).into_iter();
    entries.filter(|entry| entry["user"]["username"] == user).collect()
}

/// The writes among them, without dry runs and without the ledger's and the budget's own.
fn writes(user: &str, since: u64) -> Vec<String> {
    calls(user, since)
        .into_iter()
        .filter(|entry| !matches!(entry["verb"].as_str(), Some("get" | "list" | "watch")))
        .filter(|entry| {
            !matches!(entry["objectRef"]["resource"].as_str(), Some("events" | "leases"))
        })
        .filter(|entry| !entry["requestURI"].as_str().unwrap_or_default().contains("dryRun=All"))
        .map(|entry| format!("{} {}", entry["verb"], entry["requestURI"]))
        .collect()
}

pub fn log_length() -> u64 {
    fs::metadata(shared().audit_log()).expect("there is an audit log").len()
}

/// Rules for all actions, so that the policy alone restricts the executor.
pub fn all_permissions() -> Value {
    let policy = Policy::parse("actions: {require_approval: ['*']}", "all").expect("is a policy");
    let mut rules = rbac::rules(&ActionKind::ALL, &policy);
    rules.extend(rbac::cluster_rules(&ActionKind::ALL));
    rules.push(budget::RULE);
    json!(rules)
}

#[test]
fn a_denied_action_reaches_the_cluster_through_no_entry_point() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "rules").await;
        let namespace = &scenario.namespace;
        let name = namespace.name();
        let kubeconfig = scenario.account("executor", all_permissions()).await;
        let user = format!("system:serviceaccount:{name}:executor");
        let places = scenario.policy_section();
        let (allow, deny) = (&format!("{places}.allow"), &format!("{places}.deny"));
        let rules = [
            ("read_only", "read_only: true".to_owned()),
            ("actions.allow", "actions: {allow: []}".to_owned()),
            (allow, format!("{places}: {{allow: [elsewhere]}}")),
            (deny, format!("{places}: {{deny: ['{name}']}}")),
            ("targets.protected", "targets: {protected: [app]}".to_owned()),
            ("targets.opt_in", "targets: {opt_in: [sre=yes]}".to_owned()),
        ];
        scenario.label(json!({ "app": "web" })).await;
        let since = log_length();
        for (rule, policy) in rules {
            let policy = namespace.policy(&policy);
            for (entry_point, send) in ENTRY_POINTS {
                let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
                let request = scenario.request(&format!("{rule}-{entry_point}"));
                let answer = spawn_blocking(move || send(program, &request)).await.expect("ran");
                assert_eq!(
                    answer["code"], "policy_denied",
                    "{kind:?} {rule} {entry_point}: {answer}"
                );
                assert_eq!(answer["status"], 403);
                assert!(answer["detail"].as_str().expect("has one").contains(rule), "{answer}");
            }
        }
        assert_eq!(writes(&user, since), Vec::<String>::new(), "{kind:?}");
        // The audit log does contain an allowed write.
        let policy = namespace.policy("version: 1");
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let done = program.input(scenario.request("allowed").to_string()).run();
        assert_eq!(done.status, 0, "{done:?}");
        eventually("the write is in the log", async || {
            (writes(&user, since).len() == scenario.writes()).then_some(())
        })
        .await;
    });
}

/// The actions that change keys, with the policy's field that lists them.
const KEYED: [(ActionKind, &str); 4] = [
    (ActionKind::Label, "labels"),
    (ActionKind::Annotate, "annotations"),
    (ActionKind::Taint, "taints"),
    (ActionKind::Untaint, "taints"),
];

#[test]
fn a_key_that_is_not_listed_is_changed_through_no_entry_point() {
    for_each(&KEYED, async |(kind, field)| {
        let scenario = Scenario::new(kind, "keys").await;
        let namespace = &scenario.namespace;
        let kubeconfig = scenario.account("executor", all_permissions()).await;
        let user = format!("system:serviceaccount:{}:executor", namespace.name());
        let since = log_length();
        for listed in ["", "other", "'example.org/*'"] {
            let policy = namespace.policy(&format!("{field}: {{allow: [{listed}]}}"));
            for (entry_point, send) in ENTRY_POINTS {
                let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
                let request = scenario.request(&format!("r-{entry_point}"));
                let answer = spawn_blocking(move || send(program, &request)).await.expect("ran");
                assert_eq!(answer["code"], "policy_denied", "{kind:?} {entry_point}: {answer}");
                let detail = answer["detail"].as_str().expect("has one");
                assert!(detail.contains(&format!("is not listed in {field}.allow")), "{detail}");
            }
        }
        assert_eq!(writes(&user, since), Vec::<String>::new(), "{kind:?}");
        let policy = namespace.policy(&format!("{field}: {{allow: ['example.com/*']}}"));
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        assert_eq!(program.input(scenario.request("allowed").to_string()).run().status, 0);
    });
}

#[tokio::test]
async fn each_kind_of_request_makes_as_many_calls_as_documented() {
    let page = include_str!("../../docs/explanation/exactly-once.md");
    let scenario = Scenario::new(ActionKind::RestartK8s, "calls").await;
    let namespace = &scenario.namespace;
    let kubeconfig = namespace.account("executor", all_permissions()).await;
    let user = format!("system:serviceaccount:{}:executor", namespace.name());
    let counted = namespace.policy("cooldown_seconds: 0");
    let unlimited =
        namespace.policy("cooldown_seconds: 0\nbudget: {per_namespace: null, cluster: null}");
    for (request, policy, id, simulate) in [
        ("a simulation", &counted, "s", true),
        ("a real action", &counted, "r1", false),
        ("a real action", &counted, "r2", false),
        ("a replay", &counted, "r2", false),
        ("with no budget and no cooldown", &unlimited, "r3", false),
    ] {
        let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {request} | ")));
        let documented: usize =
            row.and_then(|row| row.split(' ').next()?.parse().ok()).expect("is documented");
        let mut body = scenario.request(id);
        body["simulate"] = simulate.into();
        // A running rollout would change the Deployment between the executor's read and its write.
        namespace.rolled_out("web").await;
        let since = log_length();
        let program = Program::with_kubeconfig(&kubeconfig).under(policy);
        let done = program.input(body.to_string()).run();
        assert_eq!(done.status, 0, "{done:?}");
        eventually(&format!("{request}: {documented} calls"), async || {
            (calls(&user, since).len() == documented).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_simulation_reports_the_policys_decision() {
    let namespace = shared().namespace("foresight").await;
    namespace.running_deployment("web", 1).await;
    let mut request = restart(&namespace, "web");
    request["simulate"] = true.into();
    let send = |policy: &str| {
        let program = Program::with_kubeconfig(namespace.kubeconfig());
        program.under(&namespace.policy(policy)).input(request.to_string()).run()
    };
    let warned = send("read_only: true").answer();
    assert_eq!(warned["outcome"], "simulated");
    assert!(warned["warnings"].to_string().contains("would be refused"), "{warned}");
    let warned = send("actions: {require_approval: ['*']}").answer();
    assert!(warned["warnings"].to_string().contains("approval"), "{warned}");
    let limited = send("actions: {allow: []}\nsimulation: {limited: true}");
    assert_eq!(limited.status, 77, "{limited:?}");
    let denied = send("namespaces: {deny: ['*']}");
    assert_eq!(denied.status, 77, "{denied:?}");
}

#[tokio::test]
async fn system_namespaces_are_protected_by_default() {
    for namespace in ["kube-system", "kube-public", "kube-node-lease"] {
        for simulate in [true, false] {
            let request = json!({
                "type": "restart_k8s", "simulate": simulate,
                "parameters": { "deployment": "coredns", "namespace": namespace },
            });
            let program = Program::offline().env("KUBECONFIG", shared().kubeconfig());
            let done = program.input(request.to_string()).run();
            assert_eq!(done.status, 77, "{done:?}");
        }
    }
}

#[tokio::test]
async fn a_target_is_refused_during_its_cooldown() {
    let namespace = shared().namespace("cooldown").await;
    for name in ["web", "api"] {
        namespace.running_deployment(name, 1).await;
    }
    let policy = namespace.policy("cooldown_seconds: 600");
    let send = |name: &str| {
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        program.input(restart(&namespace, name).to_string()).run()
    };
    assert_eq!(send("web").status, 0);
    let refused = send("web");
    assert_eq!(refused.status, 75, "{refused:?}");
    let problem = refused.answer();
    assert_eq!((&problem["code"], &problem["status"]), (&json!("rate_limited"), &json!(429)));
    let wait = problem["retry_after_seconds"].as_u64().expect("is reported");
    assert!((500..=601).contains(&wait), "{wait}");
    // A repeated refusal leaves one record, beside that of the applied action.
    for _ in 0..3 {
        assert_eq!(send("web").status, 75);
    }
    let records = crate::ledger::records(&namespace).await;
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(send("api").status, 0);
    assert_eq!(namespace.get_deployment("web").await.metadata.generation, Some(2));
}

/// Sends distinct requests to four servers concurrently; returns how many took effect.
async fn accepted_within_budget(budget: usize, requests: usize) -> usize {
    let namespace = shared().namespace("budget").await;
    for number in 0..requests {
        namespace.deployment(&format!("web-{number}"), 0, crate::cluster::GOOD_IMAGE).await;
    }
    let policy = namespace.policy(&format!(
        "cooldown_seconds: 0\nbudget: {{cluster: null, per_namespace: {{actions: {budget}, \
         within_seconds: 3600}}}}"
    ));
    let start = || {
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        Server::start(program.env("ACTION_EXECUTOR_DEADLINE_SECONDS", "60"))
    };
    let servers: Vec<_> = (0..4).map(|_| start()).collect();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let address = servers[client % 4].address();
        let mine: Vec<_> = (client..requests)
            .step_by(8)
            .map(|number| restart(&namespace, &format!("web-{number}")).to_string())
            .collect();
        clients.spawn_blocking(move || {
            let send = |body: String| Server::try_execute(address, body.as_bytes());
            let replies = mine.into_iter().map(|body| send(body).expect("is answered").status);
            replies.filter(|status| *status == 200).count()
        });
    }
    let accepted: usize = clients.join_all().await.into_iter().sum();
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    let all = deployments.list(&Default::default()).await.expect("are listed").items;
    let acted = all.iter().filter(|it| it.metadata.generation > Some(1)).count();
    assert_eq!(accepted, acted);
    acted
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_share_one_budget() {
    let requests = if rounds() > 1 { 1000 } else { 60 };
    assert_eq!(accepted_within_budget(17, requests).await, 17);
}

/// Sends distinct requests at the same time, each by a process of its own at a distance of 50 ms; returns how many
/// took effect, and how long the slowest one took.
async fn accepted_at_a_distance(budget: usize, processes: usize) -> (usize, Duration) {
    let namespace = shared().namespace("distance").await;
    for number in 0..processes {
        namespace.deployment(&format!("web-{number}"), 0, crate::cluster::GOOD_IMAGE).await;
        namespace.rolled_out(&format!("web-{number}")).await;
    }
    let policy = namespace.policy(&format!(
        "cooldown_seconds: 0\nbudget: {{per_namespace: null, cluster: {{actions: {budget}, \
         within_seconds: 3600}}}}"
    ));
    let delay = ProxyBehavior::Delay(Duration::from_millis(25));
    let kubeconfig = proxy(&namespace, move |_| delay.clone()).await;
    let mut running = tokio::task::JoinSet::new();
    for number in 0..processes {
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let request = restart(&namespace, &format!("web-{number}")).to_string();
        running.spawn_blocking(move || program.input(request).run());
    }
    let finished = running.join_all().await;
    let slowest = finished.iter().map(|it| it.took).max().expect("is one");
    for refused in finished.iter().filter(|it| it.status != 0) {
        assert_eq!(refused.answer()["code"], "rate_limited", "{refused:?}");
    }
    (finished.iter().filter(|it| it.status == 0).count(), slowest)
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_charge_one_lease_at_the_same_time_do_not_refuse_each_other() {
    for budget in [16, 10] {
        let (accepted, slowest) = accepted_at_a_distance(budget, 16).await;
        println!("16 processes, a budget of {budget}: {accepted} accepted, within {slowest:?}");
        assert_eq!(accepted, budget);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_rejected_is_refunded() {
    let namespace = shared().namespace("refund").await;
    namespace.running_deployment("web", 1).await;
    let policy = namespace
        .policy("cooldown_seconds: 0\nbudget: {cluster: {actions: 1, within_seconds: 3600}}");
    let kubeconfig = proxy(&namespace, |call| match call.method {
        http::Method::PATCH if call.is_effect() => ProxyBehavior::Respond(403, "admission says no"),
        _ => ProxyBehavior::Forward,
    })
    .await;
    let send = |kubeconfig: PathBuf, policy: PathBuf, request: Value| async move {
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let run = move || program.input(request.to_string()).run();
        spawn_blocking(run).await.expect("it ran")
    };
    let request = restart(&namespace, "web");
    let refused = send(kubeconfig, policy.clone(), request.clone()).await;
    assert_eq!(refused.answer()["code"], "rejected_by_cluster", "{refused:?}");
    let direct = namespace.kubeconfig().to_owned();
    let done = send(direct.clone(), policy.clone(), request.clone()).await;
    assert_eq!(done.status, 0, "{done:?}");
    let over = send(direct, policy, request).await;
    assert_eq!(over.answer()["code"], "rate_limited", "{over:?}");
}

pub async fn set_kill_switch(namespace: &Namespace, value: Option<&str>) {
    let leases = namespace.api::<Lease>();
    let lease = json!({ "metadata": { "name": "action-executor" } });
    let lease = serde_json::from_value(lease).expect("is a Lease");
    // It may exist already.
    let _ = leases.create(&PostParams::default(), &lease).await;
    let patch = json!({ "metadata": { "annotations": { "action-executor.dev/stop": value } } });
    let (params, patch) = (Default::default(), Patch::Merge(patch));
    leases.patch("action-executor", &params, &patch).await.expect("is patched");
}

#[test]
fn the_kill_switch_stops_the_very_next_request() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "switch").await;
        let policy = scenario.namespace.policy("cooldown_seconds: 0");
        let send = |id: &str, simulate: bool| {
            let mut request = scenario.request(id);
            request["simulate"] = simulate.into();
            let program = Program::with_kubeconfig(scenario.namespace.kubeconfig()).under(&policy);
            program.input(request.to_string()).run()
        };
        set_kill_switch(&scenario.namespace, Some("incident 7")).await;
        let stopped = send("r1", false);
        assert_eq!(stopped.status, 75, "{stopped:?}");
        let problem = stopped.answer();
        assert_eq!((&problem["code"], &problem["status"]), (&json!("stopped"), &json!(503)));
        assert!(problem["detail"].as_str().expect("has one").contains("incident 7"));
        assert_eq!(send("r2", true).status, 0);
        set_kill_switch(&scenario.namespace, None).await;
        assert_eq!(send("r1", false).status, 0);
        assert_eq!(scenario.effects().await, 1);
    });
}

/// The answer to a request when `change` runs between its claim and its effect.
async fn changed_after_claim(kind: ActionKind, change: impl AsyncFn(&Scenario, &PathBuf)) -> Value {
    let scenario = Scenario::new(kind, "between").await;
    let policy = scenario.namespace.policy("cooldown_seconds: 0");
    let (claimed, mut seen) = tokio::sync::watch::channel(false);
    let (resume, wait) = std::sync::mpsc::channel::<()>();
    let (wait, first) = (std::sync::Mutex::new(wait), AtomicBool::new(true));
    let kubeconfig = proxy(&scenario.namespace, move |call| {
        // The charge, which is sent at the same time as the claim.
        if call.writes("leases") && first.swap(false, Ordering::SeqCst) {
            claimed.send(true).expect("is waited for");
            let wait = wait.lock().expect("is not poisoned");
            let _ = tokio::task::block_in_place(|| wait.recv_timeout(Duration::from_secs(20)));
        }
        ProxyBehavior::Forward
    })
    .await;
    let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
    let request = scenario.request("r1").to_string();
    let running = spawn_blocking(move || program.input(request).run());
    seen.wait_for(|claimed| *claimed).await.expect("it is claimed");
    change(&scenario, &policy).await;
    resume.send(()).expect("is waited for");
    let done = running.await.expect("it ran");
    assert_eq!(scenario.effects().await, 0, "{done:?}");
    done.answer()
}

#[test]
fn the_kill_switch_stops_claimed_requests() {
    for_each_action(async |kind| {
        let problem = changed_after_claim(kind, async |scenario, _| {
            set_kill_switch(&scenario.namespace, Some("now")).await;
        })
        .await;
        assert_eq!(problem["code"], "stopped", "{kind:?}");
    });
}

#[test]
fn a_policy_that_becomes_read_only_stops_claimed_requests() {
    for_each_action(async |kind| {
        let problem = changed_after_claim(kind, async |_, policy| {
            let text = fs::read_to_string(policy).expect("is readable");
            fs::write(policy, format!("{text}read_only: true\n")).expect("is written");
        })
        .await;
        assert_eq!(problem["code"], "policy_denied", "{kind:?}: {problem}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_applies_at_once_and_an_invalid_one_is_ignored() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "reload").await;
    let policy = scenario.namespace.policy("cooldown_seconds: 0");
    let whole = fs::read_to_string(&policy).expect("is readable");
    let program = Program::with_kubeconfig(scenario.namespace.kubeconfig()).under(&policy);
    let server = Server::start(program);
    let status = |id: &str| server.execute(scenario.request(id).to_string().as_bytes()).status;
    assert_eq!(status("r1"), 200);
    fs::write(&policy, format!("{whole}read_only: true\n")).expect("is written");
    assert_eq!(status("r2"), 403);
    assert_eq!(server.get("/readyz").status, 200);
    fs::write(&policy, "read_only: perhaps").expect("is written");
    assert_eq!(status("r3"), 403);
    let unready = eventually("it is not ready", async || {
        let reply = server.get("/readyz");
        (reply.status == 503).then_some(reply)
    })
    .await;
    assert!(unready.json()["detail"].as_str().expect("has one").contains(":1:"), "{unready:?}");
    assert!(server.log().contains("the old one stays"));
    fs::write(&policy, &whole).expect("is written");
    assert_eq!(status("r4"), 200);
    eventually("it is ready again", async || (server.get("/readyz").status == 200).then_some(()))
        .await;
}

#[test]
fn an_invalid_policy_at_startup_exits_with_78() {
    let path = crate::program::scratch("policy.yaml");
    fs::write(&path, "version: 1\nactions: {allow: [everything]}\n").expect("is written");
    let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let done = Program::offline().under(&path).input(request).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.answer()["detail"].as_str().expect("has one").contains(":2:"), "{done:?}");
    let done = Program::offline().under(&path).args(["serve", "--bind", "127.0.0.1:0"]).run();
    assert_eq!(done.status, 78, "{done:?}");
}
