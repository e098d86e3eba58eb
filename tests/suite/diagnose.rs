//! `diagnose`: what is found in a cluster, what a report leaves out, who may ask, and that it writes nothing.

use std::fs;

use action_executor::{contract::digest::sha256, diagnosis::parts, ledger};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{CRASHING_IMAGE, MISSING_IMAGE, Namespace, eventually, shared, template},
    kubelet::{node_with_logs, pod_with_status},
    limits::{calls, log_length},
    mcp::{Http, Stdio},
    program::{Program, Server, scratch},
    rollback_on_failure::block_new_pods,
};

const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";
const MAX_BYTES: usize = 8192;

/// The report of a program with this kubeconfig.
async fn report_of(program: Program, namespace: &Namespace, target: &str) -> Value {
    let namespace = namespace.name().to_owned();
    let mut arguments = vec!["diagnose".to_owned(), target.to_owned()];
    arguments.extend(["--output".to_owned(), "json".to_owned()]);
    if !target.starts_with("node/") {
        arguments.extend(["--namespace".to_owned(), namespace]);
    }
    let program = program.args(arguments.iter().map(String::as_str));
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stdout.trim().len() <= MAX_BYTES, "{}", done.stdout.len());
    serde_json::from_str(&done.stdout).expect("is JSON")
}

/// The report of an administrator.
pub async fn report(namespace: &Namespace, target: &str) -> Value {
    report_of(Program::with_kubeconfig(namespace.kubeconfig()), namespace, target).await
}

/// The kind and the message of the first finding.
fn first(report: &Value) -> (&str, &str) {
    let finding = &report["findings"][0];
    (finding["kind"].as_str().unwrap_or_default(), finding["message"].as_str().unwrap_or_default())
}

/// The report once its first finding is of this kind.
async fn report_with(namespace: &Namespace, target: &str, kind: &str) -> Value {
    eventually(&format!("{target} has the finding {kind}"), async || {
        let report = report(namespace, target).await;
        (first(&report).0 == kind).then_some(report)
    })
    .await
}

fn crashing(code: i32, reason: &str) -> Value {
    let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "False", "reason": "ContainersNotReady" }],
        "containerStatuses": [{
            "name": "main", "image": CRASHING_IMAGE, "imageID": "", "ready": false, "restartCount": 6,
            "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 5m0s" } },
            "lastState": { "terminated": {
                "exitCode": code, "reason": reason, "startedAt": at, "finishedAt": at,
            }},
        }],
    })
}

async fn event(namespace: &Namespace, about: &Pod, name: &str, reason: &str, message: &str) {
    let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    namespace
        .create::<Event>(json!({
            "metadata": { "name": name },
            "involvedObject": {
                "kind": "Pod", "namespace": namespace.name(), "name": about.name_any(),
                "uid": about.uid(),
            },
            "type": "Warning", "reason": reason, "message": message, "count": 3,
            "firstTimestamp": at, "lastTimestamp": at, "source": { "component": "kubelet" },
        }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_of_a_failing_workload_is_the_first_finding() {
    let namespace = shared().namespace("diagnose_causes").await;
    namespace.deployment("crashing", 1, CRASHING_IMAGE).await;
    namespace.deployment("missing", 1, MISSING_IMAGE).await;
    let crashing = report_with(&namespace, "deployment/crashing", "crash_loop").await;
    let message = first(&crashing).1;
    assert!(
        message.starts_with("CrashLoopBackOff: container main exited 1 4 times, last "),
        "{message}"
    );
    assert_eq!((&crashing["healthy"], &crashing["pods"]["total"]), (&json!(false), &json!(1)));
    assert_eq!(crashing["pods"]["listed"][0]["status"], "CrashLoopBackOff");
    let missing = report_with(&namespace, "deploy/missing", "image_pull").await;
    let message = first(&missing).1;
    assert!(
        message.starts_with("ImagePullBackOff: container main, image registry.invalid/missing:1"),
        "{message}"
    );

    let huge = json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "main", "resources": { "requests": { "cpu": "10000" } } },
    ]}}}});
    namespace.running_deployment("huge", 1).await;
    let deployments = namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    let patch = Patch::Strategic(huge);
    deployments.patch("huge", &Default::default(), &patch).await.expect("is patched");
    let unschedulable = report_with(&namespace, "deployment/huge", "unschedulable").await;
    assert!(first(&unschedulable).1.starts_with("Unschedulable: 0/"), "{unschedulable}");
    assert!(unschedulable["state"].as_str().is_some_and(|it| it.starts_with("not complete: ")));

    block_new_pods(&namespace).await;
    namespace.deployment("over", 1, MISSING_IMAGE).await;
    let over = report_with(&namespace, "deployment/over", "pod_creation").await;
    let message = first(&over).1;
    assert!(
        message.starts_with("quota exceeded: FailedCreate")
            && message.contains("exceeded quota: closed"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_memory_and_its_masked_log_are_reported() {
    let namespace = shared().namespace("diagnose_log").await;
    let logs = node_with_logs(&namespace).await;
    let pod = pod_with_status(&namespace, "web-1", "web", crashing(137, "OOMKilled")).await;
    let key = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    let secrets = [
        "password=hunter2canary",
        "Authorization: Bearer abc.canary-0123",
        "dial postgres://jo:canary@db:5432/shop",
        "key AKIAIOSFODNN7EXAMPLE",
        "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2ln",
    ];
    let text = format!(
        "starting\n{}\n-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\nthe last line\n",
        secrets.join("\n")
    );
    logs.set("web-1", "main", true, &text);
    event(&namespace, &pod, "web-1.1", "BackOff", &secrets.join(" and ")).await;

    let report = report(&namespace, "pod/web-1").await;
    let (kind, message) = first(&report);
    assert_eq!(kind, "crash_loop");
    let lead = "CrashLoopBackOff: container main exited 137 (OOMKilled) 7 times, last ";
    assert!(message.starts_with(lead) && message.ends_with(" s ago; pod web-1"), "{message}");
    assert_eq!(
        (&report["log"]["container"], &report["log"]["previous"]),
        (&json!("main"), &json!(true))
    );
    let lines = report["log"]["lines"].as_array().expect("are lines");
    assert_eq!((&lines[0], lines.last()), (&json!("starting"), Some(&json!("the last line"))));
    assert!(lines.contains(&json!("[masked PEM block]")), "{lines:?}");
    assert_eq!(report["events"][0]["reason"], "BackOff");
    let text = report.to_string();
    for secret in ["canary", "hunter2", "AKIAIOSFODNN7EXAMPLE", key, "eyJhbGciOiJIUzI1NiJ9"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert_eq!((&report["unread"], &report["cut"]), (&json!([]), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_about_500_failing_pods_with_enormous_events_is_short() {
    let namespace = shared().namespace("diagnose_crowd").await;
    let huge = "password=hunter2 ".repeat(4_000);
    let client = namespace.api::<Pod>();
    let waiting = json!({ "status": {
        "phase": "Pending",
        "containerStatuses": [{
            "name": "main", "image": MISSING_IMAGE, "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ImagePullBackOff", "message": huge[..1000] } },
        }],
    }});
    for first in (0..500).step_by(50) {
        let mut creations = tokio::task::JoinSet::new();
        for number in first..first + 50 {
            let (client, waiting) = (client.clone(), Patch::Strategic(waiting.clone()));
            let name = format!("web-{number:03}");
            // A node that does not exist: nobody else writes their status.
            let mut pod = template("web", MISSING_IMAGE);
            pod["metadata"]["name"] = name.as_str().into();
            pod["spec"]["nodeName"] = "nobody".into();
            let pod: Pod = serde_json::from_value(pod).expect("is a pod");
            creations.spawn(async move {
                client.create(&Default::default(), &pod).await?;
                client.patch_status(&name, &Default::default(), &waiting).await
            });
        }
        while let Some(created) = creations.join_next().await {
            created.expect("ran").expect("is created");
        }
    }
    // It adopts them.
    namespace.replica_set("web", 500).await;
    let owner = namespace.api::<ReplicaSet>().get("web").await.expect("is there");
    for number in 0..3 {
        let pod = client.get(&format!("web-{number:03}")).await.expect("is there");
        event(&namespace, &pod, &format!("crowd.{number}"), "FailedMount", &huge).await;
    }
    let report = report(&namespace, "replicaset/web").await;
    assert_eq!(report["target"]["uid"], json!(owner.uid()));
    let _ =
        namespace.api::<Pod>().delete_collection(&Default::default(), &ListParams::default()).await;
    assert_eq!(report["pods"]["total"], 500, "{report}");
    let (kind, message) = first(&report);
    assert!(kind == "image_pull" && message.ends_with("and 499 more"), "{message}");
    let listed = report["pods"]["listed"].as_array().expect("is a list").len() as u64;
    assert!(listed <= 10, "{listed}");
    let cut = report["cut"].to_string();
    assert!(cut.contains(" pods, those that are ready first"), "{cut}");
    assert!(!report.to_string().contains("hunter2"));
}

/// Without what differs from one moment to the next.
fn settled(mut report: Value) -> Value {
    report["at"] = json!(null);
    for event in report["events"].as_array_mut().expect("are Events") {
        event["age"] = json!(null);
    }
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn each_entry_point_gives_the_same_report_and_writes_nothing() {
    let namespace = shared().namespace("diagnose_parity").await;
    namespace.running_deployment("web", 2).await;
    namespace.disruption_budget("web", "web", json!({ "minAvailable": 2 })).await;
    namespace.settled_pdb("web").await;
    namespace
        .create::<HorizontalPodAutoscaler>(json!({
            "metadata": { "name": "web" },
            "spec": {
                "minReplicas": 2, "maxReplicas": 2,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            },
        }))
        .await;
    eventually("the autoscaler has been evaluated", async || {
        let found = namespace.api::<HorizontalPodAutoscaler>().get("web").await.expect("is there");
        found.status?.conditions.filter(|all| all.len() > 1).map(drop)
    })
    .await;
    let name = namespace.name().to_owned();
    // Something was done to it.
    let restart = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "id": "r1",
        "parameters": { "deployment": "web", "namespace": name },
    });
    let program = Program::with_kubeconfig(namespace.kubeconfig()).input(restart.to_string());
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    namespace.settled_pdb("web").await;

    let kubeconfig = namespace.account("reader", json!(parts::RULES)).await;
    let user = format!("system:serviceaccount:{name}:reader");
    let since = log_length();
    let by_flags =
        settled(report_of(Program::with_kubeconfig(&kubeconfig), &namespace, "deploy/web").await);
    assert_eq!(by_flags["history"][0]["id"], "r1", "{by_flags}");
    assert_eq!(by_flags["healthy"], true, "{by_flags}");
    let owners = by_flags["owners"].to_string();
    assert!(owners.contains("HorizontalPodAutoscaler 'web' sets its replicas, from "), "{owners}");
    assert!(
        by_flags["findings"].to_string().contains("PodDisruptionBudget 'web' allows 0"),
        "{by_flags}"
    );
    assert_eq!(by_flags["unread"], json!([]));
    let writes = |entry: &&Value| {
        let resource = entry["objectRef"]["resource"].as_str().unwrap_or_default();
        !["get", "list", "watch"].contains(&entry["verb"].as_str().unwrap_or_default())
            && !resource.ends_with("reviews")
    };
    let made = calls(&user, since);
    assert!(!made.is_empty() && made.iter().filter(writes).count() == 0, "{made:?}");
    let secrets = made.iter().filter(|entry| entry["objectRef"]["resource"] == "secrets").count();
    assert_eq!(secrets, 0);

    let by_all = spawn_blocking(move || {
        let server = Server::start(Program::with_kubeconfig(&kubeconfig));
        let path = format!("/api/v1/diagnosis?target=deployment/web&namespace={name}");
        let reply = server.get(&path);
        assert_eq!((reply.status, reply.header("cache-control")), (200, Some("no-store")));
        let document = server.get("/openapi.json").json();
        let mut schema = json!({ "$ref": "#/components/schemas/Diagnosis" });
        schema["components"] = document["components"].clone();
        let schema = jsonschema::validator_for(&schema).expect("is a schema");
        assert!(schema.is_valid(&reply.json()), "{:?}", schema.validate(&reply.json()));
        let arguments = json!({ "target": "deployment/web", "namespace": name }).to_string();
        let by_mcp = Http::new(&server).call("diagnose", &arguments);
        let mut stdio = Stdio::start(Program::with_kubeconfig(&kubeconfig).args(["mcp"]));
        let by_stdio = stdio.call("diagnose", &arguments);
        assert_eq!(by_mcp["isError"], false, "{by_mcp}");
        let text = by_mcp["content"][0]["text"].as_str().expect("is text").to_owned();
        assert!(text.starts_with("The target is "), "{text}");
        [reply.json(), by_mcp["structuredContent"].clone(), by_stdio["structuredContent"].clone()]
    });
    for report in by_all.await.expect("it ran") {
        assert_eq!(settled(report), by_flags);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_whose_permission_is_missing_is_left_out_and_named() {
    let namespace = shared().namespace("diagnose_rights").await;
    namespace.deployment("web", 1, CRASHING_IMAGE).await;
    report_with(&namespace, "deployment/web", "crash_loop").await;
    let only = |verbs: &[&str]| json!([{ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": verbs }]);
    let target_alone = namespace.account("target", only(&["get"])).await;
    let report =
        report_of(Program::with_kubeconfig(&target_alone), &namespace, "deployment/web").await;
    let unread = report["unread"].as_array().expect("is a list");
    let parts: Vec<_> = unread.iter().filter_map(|it| it["part"].as_str()).collect();
    assert_eq!(
        parts,
        ["pods", "events", "autoscalers", "disruption_budgets", "history"],
        "{report}"
    );
    for part in unread {
        assert!(
            part["hint"].as_str().is_some_and(|it| it.contains("\"verbs\":[\"list\"]")),
            "{part}"
        );
    }
    assert_eq!(report["pods"], Value::Null);
    let nothing = namespace.account("nothing", json!([])).await;
    let arguments = ["diagnose", "deployment/web", "--namespace", namespace.name()];
    let done = Program::with_kubeconfig(&nothing).args(arguments).run();
    assert_eq!((done.status, done.answer()["code"].clone()), (77, json!("forbidden")));
    assert!(done.answer()["hint"].to_string().contains("deployments"), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_the_policy_forbids_is_not_read() {
    let namespace = shared().namespace("diagnose_policy").await;
    namespace.running_deployment("web", 1).await;
    let name = namespace.name();
    for (policy, rule) in [
        (format!("namespaces: {{allow: ['*'], deny: [{name}]}}"), "namespaces.deny"),
        ("namespaces: {allow: [other]}".to_owned(), "namespaces.allow"),
    ] {
        let since = log_length();
        let kubeconfig = namespace.account(&rule.replace('.', "-"), json!(parts::RULES)).await;
        let program = Program::with_kubeconfig(&kubeconfig).under(&namespace.policy(&policy));
        let done = program.args(["diagnose", "deployment/web", "--namespace", name]).run();
        assert_eq!((done.status, done.answer()["code"].clone()), (77, json!("policy_denied")));
        assert!(done.answer()["detail"].to_string().contains(rule), "{done:?}");
        let user = format!("system:serviceaccount:{name}:{}", rule.replace('.', "-"));
        let reads = calls(&user, since);
        assert!(reads.iter().all(|entry| entry["objectRef"]["namespace"] != name), "{reads:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_needs_permission_to_list_and_to_read_what_it_gets() {
    let namespace = shared().namespace("diagnose_callers").await;
    namespace.deployment("web", 1, CRASHING_IMAGE).await;
    report_with(&namespace, "deployment/web", "crash_loop").await;
    let name = namespace.name().to_owned();
    let keys = scratch("keys.yaml");
    let entry = |more: &str| {
        let digest = sha256(KEY.as_bytes());
        fs::write(&keys, format!("version: 1\nkeys: [{{name: agent, sha256: {digest}{more}}}]\n"))
    };
    entry(&format!(", namespaces: [{name}]")).expect("is written");
    let actions = json!({
        "apiGroups": ["action-executor.dev"], "resources": ["actions"], "verbs": ["list"],
    });
    let get = json!({ "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] });
    let pods = json!({ "apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"] });
    let mut tokens = Vec::new();
    for (account, rules) in [
        ("nobody", json!([get])),
        ("lists", json!([actions])),
        ("reads", json!([actions, get, pods])),
    ] {
        namespace.grant(account, rules).await;
        tokens.push(namespace.token(account, &["action-executor"]).await);
    }
    let program = Program::with_kubeconfig(namespace.kubeconfig())
        .env("ACTION_EXECUTOR_KEYS", &keys)
        .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor");
    let asked = spawn_blocking(move || {
        let server = Server::start(program);
        let get = |namespace: &str, token: &str| {
            let path = format!("/api/v1/diagnosis?target=deployment/web&namespace={namespace}");
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
            );
            server.raw(request.as_bytes())
        };
        assert_eq!(get(&name, "wrong").status, 401);
        assert_eq!(get(&name, KEY).status, 200);
        assert_eq!(get("other", KEY).status, 403);
        let nobody = get(&name, &tokens[0]);
        assert_eq!(
            (nobody.status, nobody.json()["code"].clone()),
            (403, json!("caller_forbidden"))
        );
        assert!(nobody.json()["detail"].to_string().contains("may not list actions"));
        let lists = get(&name, &tokens[1]);
        assert_eq!(lists.status, 403);
        assert!(lists.json()["detail"].to_string().contains("may not get deployments"));
        get(&name, &tokens[2])
    });
    let reads = asked.await.expect("it ran");
    assert_eq!(reads.status, 200);
    let report = reads.json();
    // What the executor may read, and the caller may not, is not in its report.
    let unread = report["unread"].as_array().expect("is a list");
    let parts: Vec<_> = unread.iter().filter_map(|it| it["part"].as_str()).collect();
    assert_eq!(parts, ["log", "autoscalers", "disruption_budgets"], "{report}");
    assert!(unread[0]["why"].to_string().contains("may not get pods/log"), "{report}");
    assert_eq!((first(&report).0, &report["log"]), ("crash_loop", &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_kinds_are_diagnosed_too() {
    let namespace = shared().namespace("diagnose_kinds").await;
    namespace.running_stateful_set("set", 1).await;
    let set = report(&namespace, "sts/set").await;
    assert_eq!((&set["target"]["kind"], &set["healthy"]), (&json!("StatefulSet"), &json!(true)));
    namespace.cron_job("nightly", crate::cluster::GOOD_IMAGE, true).await;
    let nightly = report(&namespace, "cronjob/nightly").await;
    assert_eq!(first(&nightly), ("paused", "suspended: the CronJob starts no Jobs"));
    assert!(
        nightly["state"].as_str().is_some_and(|it| it.ends_with("; it has no Job")),
        "{nightly}"
    );
    namespace.job("failing", crate::cluster::FAILING_IMAGE, json!({ "backoffLimit": 0 })).await;
    eventually("the Job has failed", async || {
        let job = namespace.api::<Job>().get("failing").await.expect("is there");
        job.status?.conditions?.iter().any(|it| it.type_ == "Failed").then_some(())
    })
    .await;
    let failing = report(&namespace, "job/failing").await;
    let findings = failing["findings"].to_string();
    assert!(findings.contains("the Job has failed: BackoffLimitExceeded"), "{failing}");
    assert_eq!(failing["healthy"], false);

    namespace.own_node(true).await;
    let node = report(&namespace, &format!("node/{}", namespace.name())).await;
    assert_eq!(first(&node).0, "cordoned", "{node}");
    assert_eq!((&node["target"]["kind"], &node["healthy"]), (&json!("Node"), &json!(true)));
    assert!(node["node"]["conditions"].to_string().contains("Ready=True"), "{node}");

    let missing = ["diagnose", "deployment/nobody", "--namespace", namespace.name()];
    let done = Program::with_kubeconfig(namespace.kubeconfig()).args(missing).run();
    assert_eq!((done.status, done.answer()["code"].clone()), (69, json!("target_not_found")));
    let wrong = ["diagnose", "secret/x", "--namespace", namespace.name()];
    let done = Program::with_kubeconfig(namespace.kubeconfig()).args(wrong).run();
    assert_eq!((done.status, done.answer()["field"].clone()), (65, json!("target")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_a_node_are_those_of_namespaces_that_the_policy_allows() {
    let namespace = shared().namespace("diagnose_node").await;
    node_with_logs(&namespace).await;
    let status = json!({ "phase": "Pending" });
    pod_with_status(&namespace, "web-1", "web", status).await;
    let node = format!("node/{}", namespace.name());
    let whole = report(&namespace, &node).await;
    let listed = whole["pods"]["listed"][0]["name"].as_str().expect("is listed").to_owned();
    assert_eq!(listed, format!("{}/web-1", namespace.name()), "{whole}");
    let policy = namespace.policy("namespaces: {allow: [other]}");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let bounded = report_of(program, &namespace, &node).await;
    assert_eq!(bounded["pods"]["total"], 0, "{bounded}");
}

#[test]
fn the_permissions_of_a_diagnosis_are_granted_on_request_alone() {
    let print = |more: &[&str]| {
        let account = ["rbac", "--service-account", "ops:executor", "--namespace", "shop"];
        let done = Program::offline().args(account.into_iter().chain(more.iter().copied())).run();
        assert_eq!(done.status, 0, "{done:?}");
        done.stdout
    };
    assert!(!print(&["--history", "--nodes"]).contains("diagnosis"));
    let with = print(&["--diagnosis"]);
    assert!(
        with.contains("action-executor.ops.executor.diagnosis") && with.contains("pods/log"),
        "{with}"
    );
    assert!(print(&["--diagnosis", "--nodes"]).contains("action-executor.ops.executor.diagnosis"));
    assert!(parts::RULES.contains(&ledger::HISTORY));
}
