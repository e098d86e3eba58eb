//! Jobs on a real node with a kubelet and containerd, in namespaces that enforce the `restricted` Pod Security
//! Standard.
//!
//! These tests need root and are ignored by default: `cargo test -- --ignored`.

use std::path::PathBuf;

use action_executor::{
    actions::ActionKind,
    config::reload::ConfigFile,
    manifests::rbac,
    policy::{Policy, budget},
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::{CronJob, Job},
    core::v1::{ConfigMap, Pod},
    policy::v1::Eviction,
};
use kube::{
    ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, OWN_IMAGE, eventually, with_node},
    diagnose::report,
    program::{Finished, Program, scratch},
    scenario::{Scenario, for_each},
};

const POLICY: &str = "cooldown_seconds: 0\nintegrations: [argo_rollouts, argo_cd, flux, keda]\n\
    labels: {allow: ['*']}\nannotations: {allow: ['*']}\ntaints: {allow: ['*']}";

/// A scenario in a namespace where the executor is installed as documented.
async fn installed(kind: ActionKind, test: &str) -> Scenario {
    let scenario = Scenario::within(with_node(), kind, test).await;
    install(kind, &scenario.namespace).await;
    scenario
}

async fn install(kind: ActionKind, namespace: &Namespace) {
    namespace
        .create::<ConfigMap>(json!({
            "metadata": { "name": "action-executor-policy" }, "data": { "policy.yaml": POLICY },
        }))
        .await;
    let policy = Policy::parse(POLICY, "policy").expect("is a policy");
    let rules: Vec<_> = rbac::rules(&[kind], &policy).into_iter().chain([budget::RULE]).collect();
    namespace.grant("action-executor", json!(rules)).await;
    let in_cluster = rbac::cluster_rules(&[kind]);
    if !in_cluster.is_empty() {
        namespace.grant_everywhere("action-executor", json!(in_cluster)).await;
        namespace.grant_in_default("action-executor", json!(rules)).await;
    }
}

fn file(request: &Value) -> PathBuf {
    let path = scratch("request.json");
    std::fs::write(&path, request.to_string()).expect("is written");
    path
}

fn job(namespace: &Namespace, request: &Value, flags: &[&str]) -> Finished {
    let file = file(request);
    Program::with_kubeconfig(namespace.kubeconfig())
        .args(["job", file.to_str().expect("is text"), "--image", OWN_IMAGE, "--output", "json"])
        // The executor's namespace; a node's records are in another one.
        .args(["--namespace", namespace.name()])
        .args(flags.iter().copied())
        .run()
}

fn waited(scenario: &Scenario, id: &str) -> Value {
    let mut request = scenario.request(id);
    request["wait"] = true.into();
    request["timeout_seconds"] = 60.into();
    request
}

/// A pod with this readiness gate is not ready until the test sets its condition.
const GATE: &str = "test.action-executor.dev/gate";

async fn pods_of(namespace: &Namespace, job: &str) -> Vec<Pod> {
    let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    namespace.api::<Pod>().list(&params).await.expect("pods are listed").items
}

/// The type and the reason of the Job's last condition, once the Job has ended.
async fn ended(namespace: &Namespace, name: &str) -> (String, String) {
    eventually("the Job has ended", async || end_of(namespace, name).await).await
}

async fn end_of(namespace: &Namespace, name: &str) -> Option<(String, String)> {
    let job = namespace.api::<Job>().get(name).await.expect("is there");
    let conditions = job.status?.conditions?;
    let last = conditions.into_iter().find(|it| it.type_ == "Complete" || it.type_ == "Failed")?;
    Some((last.type_, last.reason.unwrap_or_default()))
}

/// Makes all pods ready that wait for [`GATE`].
async fn open_gates(namespace: &Namespace) {
    let pods = namespace.api::<Pod>();
    for pod in namespace.pods_of("web").await {
        let open = json!({ "status": { "conditions": [{ "type": GATE, "status": "True" }] } });
        let params = PatchParams::default();
        // A pod that is gone needs no condition.
        let _ = pods.patch_status(&pod.name_any(), &params, &Patch::Strategic(open)).await;
    }
}

fn termination_message(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses[0].state.as_ref()?.terminated.as_ref()?.message.clone()
}

#[test]
#[ignore = "needs a real node, and so root"]
fn each_action_as_a_job_takes_effect_once_and_answers() {
    for_each(&ActionKind::ALL, async |kind| {
        let scenario = installed(kind, "job").await;
        let request = waited(&scenario, "job-1");
        let done = job(&scenario.namespace, &request, &["--apply", "--wait"]);
        assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
        let answer = done.answer();
        assert_eq!(answer["outcome"], "applied", "{done:?}");
        assert_eq!(answer["rollout"]["state"], "complete", "{done:?}");
        assert_eq!(scenario.effects().await, 1);
        // The same request renders the same Job, and so gets the same answer.
        let again = job(&scenario.namespace, &request, &["--apply", "--wait"]);
        assert_eq!((again.status, again.answer()), (0, answer.clone()));
        let ours = ListParams::default().labels("app.kubernetes.io/name=action-executor");
        let jobs = scenario.namespace.api::<Job>().list(&ours).await;
        let jobs = jobs.expect("are listed").items;
        assert_eq!(jobs.len(), 1);
        let pods = pods_of(&scenario.namespace, &jobs[0].name_any()).await;
        let message = termination_message(&pods[0]).expect("there is one");
        assert_eq!(serde_json::from_str::<Value>(&message).expect("is JSON"), answer);
        // Another request under this id is refused.
        let mut other = request.clone();
        other["reason"] = "another".into();
        let refused = job(&scenario.namespace, &other, &["--apply"]);
        assert_eq!((refused.status, refused.answer()["code"].clone()), (65, json!("id_reused")));
    });
}

#[test]
#[ignore = "needs a real node, and so root"]
fn each_file_in_jobs_works_after_three_edited_lines() {
    for_each(&ActionKind::ALL, async |kind| {
        let scenario = installed(kind, "file").await;
        let path = format!("{}/jobs/{}.yaml", env!("CARGO_MANIFEST_DIR"), kind.name());
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (_, marked) = text.split_once("# 2. ").expect("the second line to edit is marked");
        let target = marked.lines().nth(1).expect("it is below");
        let (name, was) = target.trim().split_once("value: ").expect("is a variable");
        let parameter = name.split("ACTION_PARAM_").nth(1).expect("is a parameter");
        let parameter = parameter.trim_end_matches([',', ' ']).to_lowercase();
        let wanted = match &scenario.request("x")["parameters"][&parameter] {
            Value::String(name) => name.clone(),
            // A variable is a text.
            number => format!("\"{number}\""),
        };
        let text = text
            .replace("image: action-executor:0.1.0", &format!("image: {OWN_IMAGE}"))
            .replace(was.trim_end_matches(" }"), &wanted)
            .replace("ACTION_SIMULATE, value: \"true\"", "ACTION_SIMULATE, value: \"false\"");
        // The second line may have a second parameter, in JSON.
        let request = scenario.request("x");
        let text = ["images", "resources"].into_iter().fold(text, |text, name| {
            let begin = format!("ACTION_PARAM_{}, value: '", name.to_uppercase());
            let Some((before, rest)) = text.split_once(&begin) else { return text };
            let (_, after) = rest.split_once('\'').expect("is quoted");
            format!("{before}{begin}{}'{after}", request["parameters"][name])
        });
        // Its pod is overdue for no longer.
        let text = text.replace("OVERDUE_SECONDS, value: \"60\"", "OVERDUE_SECONDS, value: \"10\"");
        let key = request["parameters"]["key"].as_str().unwrap_or_default();
        let text = text.replace("KEY, value: example.com/dedicated", &format!("KEY, value: {key}"));
        let object: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
        let made = scenario.namespace.create::<Job>(object).await;
        let end = ended(&scenario.namespace, &made.name_any()).await;
        let pods = pods_of(&scenario.namespace, &made.name_any()).await;
        let message = termination_message(&pods[0]);
        assert_eq!(end.0, "Complete", "{}: {end:?} {message:?}", kind.name());
        assert_eq!(scenario.effects().await, 1, "{message:?}");
    });
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn a_job_whose_pod_is_evicted_takes_effect_once() {
    for kind in [ActionKind::RestartK8s, ActionKind::RestartPod] {
        // The rollout lasts until the test makes a new pod ready.
        let namespace = with_node().namespace(&format!("evicted-{}", kind.name())).await;
        namespace.gated_deployment("web", GATE).await;
        install(kind, &namespace).await;
        let before = eventually("the first pod is let be ready", async || {
            open_gates(&namespace).await;
            let found = namespace.get_deployment("web").await;
            (found.status.as_ref()?.available_replicas == Some(1)).then_some(found)
        })
        .await;
        let scenario = Scenario::around(kind, namespace).await;
        let namespace = &scenario.namespace;
        let request = waited(&scenario, "evicted-1");
        let made = job(namespace, &request, &["--apply"]);
        let name = made.answer()["job"]["name"].as_str().expect("is a name").to_owned();
        eventually("the action has been done", async || {
            let now = namespace.get_deployment("web").await;
            let restarted = now.metadata.generation > before.metadata.generation;
            let fewer = now.status?.available_replicas.unwrap_or(0) < 1;
            (restarted || fewer).then_some(())
        })
        .await;
        let first = pods_of(namespace, &name).await.remove(0).name_any();
        let eviction = Eviction {
            metadata: ObjectMeta { name: Some(first.clone()), ..ObjectMeta::default() },
            ..Eviction::default()
        };
        let params = PostParams::default();
        let pods = namespace.api::<Pod>();
        let evicted: Result<Value, _> =
            pods.create_subresource("eviction", &first, &params, &eviction).await;
        evicted.expect("is evicted");
        eventually("another pod has taken the Job up", async || {
            let pods = pods_of(namespace, &name).await;
            pods.iter().any(|pod| pod.name_any() != first).then_some(())
        })
        .await;
        let end = eventually("the Job has ended", async || {
            open_gates(namespace).await;
            end_of(namespace, &name).await
        })
        .await;
        assert_eq!(end.0, "Complete", "{end:?}");
        let done = job(namespace, &request, &["--apply", "--wait"]);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["replayed"], true, "{done:?}");
        assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
        let deployment = namespace.rolled_out("web").await;
        let generations = deployment.metadata.generation.expect("has one")
            - before.metadata.generation.expect("has one");
        match kind {
            ActionKind::RestartPod => assert_eq!(scenario.effects().await, 1),
            _ => assert_eq!(generations, 1),
        }
    }
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn a_failed_job_of_a_cron_job_is_reported_with_its_log() {
    let namespace = with_node().namespace("job_log").await;
    namespace.cron_job("nightly", OWN_IMAGE, false).await;
    let wrong = json!([{ "name": "main", "args": ["--no-such-option"] }]);
    let template = json!({ "spec": { "template": { "spec": { "containers": wrong } } } });
    let patch = Patch::Strategic(json!({ "spec": { "jobTemplate": template } }));
    let cron_jobs = namespace.api::<CronJob>();
    cron_jobs.patch("nightly", &PatchParams::default(), &patch).await.expect("is patched");
    let request = json!({
        "type": "run_cronjob", "simulate": false, "wait": true, "timeout_seconds": 60,
        "parameters": { "cronjob": "nightly", "namespace": namespace.name() },
    });
    // A busy node has no time for the log at times; each attempt is a request of its own.
    let problems = eventually("the log was read", async || {
        let program = Program::with_kubeconfig(namespace.kubeconfig()).input(request.to_string());
        let done = program.run();
        assert_eq!(done.status, 69, "{done:?}");
        let problems = done.answer()["rollout"]["problems"].to_string();
        (!problems.contains("could not be read")).then_some(problems)
    })
    .await;
    assert!(problems.contains("exit code 64"), "{problems}");
    assert!(problems.contains("printed: "), "{problems}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real node, and so root"]
async fn a_container_that_crashes_is_diagnosed_with_its_log() {
    let namespace = with_node().namespace("diagnosed").await;
    namespace.deployment("web", 1, OWN_IMAGE).await;
    let wrong = json!([{ "name": "main", "args": ["--no-such-option"] }]);
    let patch =
        Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": wrong } } } }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &PatchParams::default(), &patch).await.expect("is patched");
    eventually("the crash and its log are reported", async || {
        let report = report(&namespace, "deployment/web").await;
        let finding = report["findings"][0]["message"].as_str()?;
        let lines = report["log"]["lines"].to_string();
        let is_crash = finding.starts_with("CrashLoopBackOff: container main exited 64");
        (is_crash && lines.contains("--no-such-option")).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn an_invalid_request_fails_the_job_without_a_retry() {
    let scenario = installed(ActionKind::RestartK8s, "wrong").await;
    let namespace = &scenario.namespace;
    let request = |id: &str, deployment: &str| {
        json!({
            "type": "restart_k8s", "simulate": false, "id": id,
            "parameters": { "deployment": deployment, "namespace": namespace.name() },
        })
    };
    // An unreadable request never becomes a Job.
    let refused = job(namespace, &json!({ "type": "restart_k8s" }), &["--apply", "--wait"]);
    assert_eq!((refused.status, refused.answer()["code"].clone()), (65, json!("invalid_request")));
    // The target is missing; the policy is missing; a variable is misspelt; a permission is missing.
    let missing = job(namespace, &request("missing", "nobody"), &["--apply", "--wait"]);
    assert_eq!((missing.status, missing.answer()["code"].clone()), (69, json!("target_not_found")));
    let flags = ["--apply", "--wait", "--policy-config-map", "nothing"];
    let unconfigured = job(namespace, &request("lawless", "web"), &flags);
    assert_eq!(
        (unconfigured.status, unconfigured.answer()["code"].clone()),
        (78, json!("configuration"))
    );
    let flags = ["--apply", "--wait", "--service-account", "default"];
    let forbidden = job(namespace, &request("nobody", "web"), &flags);
    assert_eq!((forbidden.status, forbidden.answer()["code"].clone()), (77, json!("forbidden")));
    let text = job(namespace, &request("misspelt", "web"), &[]).stdout;
    let mut misspelt: Value = serde_json::from_str(&text).expect("is the manifest");
    let container = &mut misspelt["spec"]["template"]["spec"]["containers"][0];
    container["env"]
        .as_array_mut()
        .expect("is a list")
        .push(json!({ "name": "ACTION_SIMULAT", "value": "true" }));
    namespace.create::<Job>(misspelt).await;
    let jobs = namespace.api::<Job>();
    let list = jobs.list(&ListParams::default()).await.expect("are listed").items;
    assert_eq!(list.len(), 4);
    for job in list {
        let end = ended(namespace, &job.name_any()).await;
        assert_eq!(end, ("Failed".to_owned(), "PodFailurePolicy".to_owned()));
        assert_eq!(pods_of(namespace, &job.name_any()).await.len(), 1, "{}", job.name_any());
    }
    assert_eq!(scenario.effects().await, 0);
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn a_job_under_a_transient_limit_is_retried() {
    let scenario = installed(ActionKind::RestartK8s, "limit").await;
    let namespace = &scenario.namespace;
    let policy = json!({ "data": { "policy.yaml": "cooldown_seconds: 15" } });
    let policies = namespace.api::<ConfigMap>();
    let params = PatchParams::default();
    policies
        .patch("action-executor-policy", &params, &Patch::Merge(policy))
        .await
        .expect("is patched");
    let first = job(namespace, &scenario.request("limit-1"), &["--apply", "--wait"]);
    assert_eq!(first.status, 0, "{first:?}");
    let second = job(namespace, &scenario.request("limit-2"), &["--apply", "--wait"]);
    assert_eq!(second.status, 0, "{second:?}");
    assert_eq!(scenario.effects().await, 2);
    let jobs = namespace.api::<Job>().list(&ListParams::default()).await.expect("are listed");
    let failed = jobs.items.iter().map(|job| job.status.clone().and_then(|status| status.failed));
    assert!(failed.flatten().sum::<i32>() > 0, "the second needed another pod");
}
