//! `drain` on a real API server, on nodes that kwok simulates.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch},
};
use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared},
    program::{Finished, Program},
};

fn request(namespace: &Namespace, parameters: Value, fields: Value) -> String {
    let mut request = json!({
        "type": "drain", "simulate": false, "parameters": { "node": namespace.name() },
    });
    let more = parameters.as_object().expect("are parameters").clone();
    request["parameters"].as_object_mut().expect("is an object").extend(more);
    let more = fields.as_object().expect("are fields").clone();
    request.as_object_mut().expect("is an object").extend(more);
    request.to_string()
}

fn send(namespace: &Namespace, parameters: Value, fields: Value) -> Finished {
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    program.input(request(namespace, parameters, fields)).run()
}

async fn is_cordoned(namespace: &Namespace) -> bool {
    let node = namespace.global::<Node>().get(namespace.name()).await.expect("is there");
    node.spec.and_then(|spec| spec.unschedulable) == Some(true)
}

async fn on_node(namespace: &Namespace) -> Vec<Pod> {
    let params = ListParams::default().fields(&format!("spec.nodeName={}", namespace.name()));
    namespace.api::<Pod>().list(&params).await.expect("are listed").items
}

/// A disruption budget for the pods of `app`, once it allows this many disruptions.
async fn budget(namespace: &Namespace, app: &str, max_unavailable: i32, allowed: i32) {
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": app },
            "spec": {
                "maxUnavailable": max_unavailable, "selector": { "matchLabels": { "app": app } },
            },
        }))
        .await;
    eventually("the budget allows it", async || {
        let status = namespace.api::<PodDisruptionBudget>().get(app).await.expect("is").status?;
        (status.expected_pods > 0 && status.disruptions_allowed == allowed).then_some(())
    })
    .await;
}

/// A node that runs the pods of these ReplicaSets.
async fn node_with(test: &str, sets: &[(&str, i32)]) -> Namespace {
    let namespace = shared().namespace(test).await;
    namespace.own_node(false).await;
    for (name, replicas) in sets {
        namespace.replica_set_on_own_node(name, *replicas, json!({})).await;
    }
    namespace
}

/// A pod without a controller on the node, with this metadata and spec.
async fn bare_pod(namespace: &Namespace, name: &str, metadata: Value, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": namespace.name(), "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "main", "image": "registry.invalid/good:1",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    });
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        let more = more.as_object().expect("are fields").clone();
        pod[part].as_object_mut().expect("is one").extend(more);
    }
    namespace.create::<Pod>(pod).await
}

#[tokio::test]
async fn a_drain_evicts_the_pods_and_waits_until_they_are_gone() {
    let namespace = node_with("drain_waits", &[("web", 3), ("api", 2)]).await;
    namespace.daemon_set_on_own_node("agent").await;
    let done = send(&namespace, json!({}), json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("applied"), &json!("complete"))
    );
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("cordoned at") && result.contains("all 5 pods are gone"), "{result}");
    assert!(is_cordoned(&namespace).await);
    let left = on_node(&namespace).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].name_any().starts_with("agent-"));
    for (name, replicas) in [("web", 3), ("api", 2)] {
        eventually("they are back elsewhere", async || {
            (namespace.pods_of(name).await.len() == replicas).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_simulation_names_the_pods_to_evict_and_changes_nothing() {
    let namespace = node_with("drain_simulated", &[("web", 2)]).await;
    let done = send(&namespace, json!({}), json!({ "simulate": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "simulated");
    let result = answer["result"].as_str().expect("is a sentence");
    let name = namespace.name();
    assert!(
        result.contains(&format!("2 pods would be evicted: {name}/web-0, {name}/web-1")),
        "{result}"
    );
    assert!(!is_cordoned(&namespace).await);
    assert!(on_node(&namespace).await.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()));
}

#[tokio::test]
async fn all_blocking_pods_are_named_and_nothing_is_cordoned() {
    let namespace = node_with("drain_blocked", &[("web", 1), ("full", 1)]).await;
    bare_pod(&namespace, "lonely", json!({}), json!({})).await;
    let volumes = json!([{ "name": "tmp", "emptyDir": {} }]);
    namespace.replica_set_on_own_node("cache", 1, json!({ "volumes": volumes })).await;
    budget(&namespace, "web", 1, 1).await;
    budget(&namespace, "full", 0, 0).await;
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": "second" },
            "spec": { "maxUnavailable": 1, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    for wait in [true, false] {
        let done = send(&namespace, json!({}), json!({ "wait": wait }));
        assert_eq!(done.status, 69, "{done:?}");
        let problem = done.answer();
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&json!("drain_blocked"), &json!(false))
        );
        let detail = problem["detail"].as_str().expect("has one");
        let name = namespace.name();
        for part in [
            format!("without a controller, which would not come back: {name}/lonely"),
            format!("with data in emptyDir volumes, which would be lost: {name}/cache-0"),
            format!("{name}/web-0 (second, web)"),
            "PodDisruptionBudget 'full' allows 0".to_owned(),
            format!("{name}/full-0"),
        ] {
            assert!(detail.contains(&part), "{part}: {detail}");
        }
        assert!(problem["hint"].as_str().expect("has one").contains("force: true"));
    }
    assert!(!is_cordoned(&namespace).await);
    assert_eq!(on_node(&namespace).await.len(), 4);
}

#[tokio::test]
async fn pods_allowed_by_options_are_evicted_with_a_warning() {
    let namespace = node_with("drain_accepted", &[]).await;
    let volumes = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
    bare_pod(&namespace, "lonely", json!({}), volumes).await;
    let accepted = json!({ "force": true, "delete_empty_dir_data": true });
    let done = send(&namespace, accepted, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(
        warnings.contains("without a controller") && warnings.contains("emptyDir"),
        "{warnings}"
    );
    assert!(on_node(&namespace).await.is_empty());
}

#[tokio::test]
async fn a_selector_limits_the_evicted_pods() {
    let namespace = node_with("drain_selected", &[("web", 1), ("api", 1)]).await;
    let selected = json!({ "pod_selector": "app in (api)" });
    let done = send(&namespace, selected, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let left: Vec<_> = on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["web-0"]);
}

#[tokio::test]
async fn an_exhausted_budget_is_refused_or_waited_for() {
    let namespace = node_with("drain_room", &[("web", 1), ("api", 1)]).await;
    budget(&namespace, "web", 0, 0).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "disruption_budget");
    assert!(!is_cordoned(&namespace).await);
    let waiting = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 50 }));
    let waiting = Program::with_kubeconfig(namespace.kubeconfig()).input(waiting).start();
    eventually("the other pod is gone", async || {
        (on_node(&namespace).await.len() == 1).then_some(())
    })
    .await;
    let budgets = namespace.api::<PodDisruptionBudget>();
    let one_unavailable = Patch::Merge(json!({ "spec": { "maxUnavailable": 1 } }));
    budgets.patch("web", &Default::default(), &one_unavailable).await.expect("is patched");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    let warnings = done.answer()["warnings"].to_string();
    assert!(warnings.contains("waiting for a disruption budget"), "{warnings}");
    assert!(on_node(&namespace).await.is_empty());
}

#[tokio::test]
async fn a_drain_without_wait_evicts_once_and_reports_the_rest() {
    let namespace = node_with("drain_once", &[("web", 3), ("api", 1)]).await;
    budget(&namespace, "web", 1, 1).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed");
    assert_eq!(answer["rollout"]["message"], "2 of 4 pods could not be evicted now");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("PodDisruptionBudget 'web' allows"), "{problems}");
    eventually("two are gone", async || (on_node(&namespace).await.len() == 2).then_some(())).await;
    assert!(is_cordoned(&namespace).await);
    // A caller that resends it in a loop completes the drain.
    let last = eventually("the loop ends", async || {
        let done = send(&namespace, json!({}), json!({}));
        (done.status == 0).then(|| done.answer())
    })
    .await;
    assert!(last["rollout"].is_null(), "{last}");
    eventually("all are gone", async || on_node(&namespace).await.is_empty().then_some(())).await;
    let done = send(&namespace, json!({}), json!({}));
    assert_eq!(done.answer()["outcome"], "unchanged", "{done:?}");
}

#[tokio::test]
async fn a_failed_drain_is_undone_once_on_request() {
    let namespace = node_with("drain_undone", &[("web", 1)]).await;
    budget(&namespace, "web", 0, 0).await;
    let fields = json!({ "wait": true, "timeout_seconds": 2, "id": namespace.name() });
    let undo = json!({ "uncordon_on_failure": true });
    let done = send(&namespace, undo.clone(), fields.clone());
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(
        (&answer["outcome"], &answer["rollout"]["state"]),
        (&json!("failed"), &json!("timed_out"))
    );
    let result = answer["result"].as_str().expect("is a sentence");
    assert!(result.contains("is uncordoned again"), "{result}");
    let problems = answer["rollout"]["problems"].to_string();
    assert!(problems.contains("web-0: PodDisruptionBudget 'web' allows 0"), "{problems}");
    assert!(!is_cordoned(&namespace).await);
    // A retry gets the same answer and changes nothing.
    let again = send(&namespace, undo.clone(), fields).answer();
    assert_eq!((&again["replayed"], &again["result"]), (&json!(true), &answer["result"]));
    // A node that was cordoned before the drain stays cordoned.
    let nodes = namespace.global::<Node>();
    let cordon = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
    nodes.patch(namespace.name(), &Default::default(), &cordon).await.expect("is cordoned");
    let done = send(&namespace, undo, json!({ "wait": true, "timeout_seconds": 2 }));
    assert_eq!(done.status, 69, "{done:?}");
    assert!(is_cordoned(&namespace).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_stops_a_running_drain() {
    let namespace = node_with("drain_stopped", &[("web", 2)]).await;
    budget(&namespace, "web", 0, 0).await;
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let asked = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 60 }));
    let running = spawn_blocking(move || program.input(asked).run());
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    crate::limits::set_kill_switch(&namespace, Some("incident 7")).await;
    let two_unavailable = Patch::Merge(json!({ "spec": { "maxUnavailable": 2 } }));
    let budgets = namespace.api::<PodDisruptionBudget>();
    budgets.patch("web", &Default::default(), &two_unavailable).await.expect("is patched");
    let done = running.await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed", "{answer}");
    assert!(answer["result"].to_string().contains("incident 7"), "{answer}");
    assert_eq!(on_node(&namespace).await.len(), 2, "{answer}");
}

#[tokio::test]
async fn a_drain_stops_when_its_node_is_uncordoned() {
    let namespace = node_with("drain_stopped", &[("web", 2)]).await;
    budget(&namespace, "web", 0, 0).await;
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 50 }));
    let waiting = Program::with_kubeconfig(namespace.kubeconfig()).input(body).start();
    eventually("it is cordoned", async || is_cordoned(&namespace).await.then_some(())).await;
    let nodes = namespace.global::<Node>();
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
    nodes.patch(namespace.name(), &Default::default(), &uncordon).await.expect("is uncordoned");
    let done = spawn_blocking(|| waiting.wait()).await.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    let message = done.answer()["rollout"]["message"].as_str().expect("is reported").to_owned();
    assert!(message.contains("uncordoned by another client"), "{message}");
    assert_eq!(on_node(&namespace).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_a_killed_executor_is_resumed_without_newer_pods() {
    let namespace = node_with("drain_killed", &[("web", 2), ("api", 2)]).await;
    budget(&namespace, "web", 0, 0).await;
    let fields = json!({ "wait": true, "timeout_seconds": 50, "id": namespace.name() });
    let body = request(&namespace, json!({}), fields);
    let start = || Program::with_kubeconfig(namespace.kubeconfig()).input(body.clone()).start();
    let first = start();
    eventually("it is in the middle", async || {
        (on_node(&namespace).await.len() == 2).then_some(())
    })
    .await;
    first.signal("KILL");
    spawn_blocking(|| first.wait()).await.expect("it ended");
    bare_pod(&namespace, "late", json!({}), json!({})).await;
    // Two processes resume it at the same time.
    let (second, third) = (start(), start());
    let budgets = namespace.api::<PodDisruptionBudget>();
    let one_unavailable = Patch::Merge(json!({ "spec": { "maxUnavailable": 1 } }));
    budgets.patch("web", &Default::default(), &one_unavailable).await.expect("is patched");
    let (second, third) = spawn_blocking(|| (second.wait(), third.wait())).await.expect("they ran");
    for done in [&second, &third] {
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["replayed"], true, "{done:?}");
    }
    assert_eq!(second.answer(), third.answer());
    let left: Vec<_> = on_node(&namespace).await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["late"]);
}

#[tokio::test]
async fn the_policy_and_its_budget_apply_to_each_pod() {
    let namespace = node_with("drain_policy", &[("web", 2)]).await;
    let run = |policy: &str| {
        let policy = namespace.policy(policy);
        let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
        program.input(request(&namespace, json!({}), json!({ "wait": true }))).run()
    };
    let denied = run(&format!("namespaces: {{deny: ['{}']}}", namespace.name()));
    assert_eq!(denied.status, 77, "{denied:?}");
    assert!(denied.answer()["detail"].as_str().expect("has one").contains("/web-0"), "{denied:?}");
    let denied = run("targets: {protected: [app=web]}");
    assert_eq!(denied.answer()["code"], "policy_denied", "{denied:?}");
    let limited = run("budget: {cluster: {actions: 2, within_seconds: 600}}");
    assert_eq!(limited.answer()["code"], "rate_limited", "{limited:?}");
    assert!(!is_cordoned(&namespace).await);
    let done = run("budget: {cluster: {actions: 3, within_seconds: 600}}");
    assert_eq!(done.status, 0, "{done:?}");
}

#[tokio::test]
async fn a_pod_that_does_not_terminate_is_reported_or_skipped() {
    let namespace = node_with("drain_stuck", &[]).await;
    let held = json!({ "finalizers": ["test.action-executor.dev/held"] });
    bare_pod(&namespace, "held", held, json!({})).await;
    let force = json!({ "force": true });
    let fields = json!({ "wait": true, "timeout_seconds": 2 });
    let done = send(&namespace, force, fields.clone());
    assert_eq!(done.status, 69, "{done:?}");
    let problems = done.answer()["rollout"]["problems"].to_string();
    assert!(problems.contains("test.action-executor.dev/held"), "{problems}");
    let skip = json!({ "force": true, "skip_wait_for_delete_timeout_seconds": 1 });
    let done = send(&namespace, skip, fields);
    assert_eq!(done.status, 0, "{done:?}");
    let unset = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let pods = namespace.api::<Pod>();
    pods.patch("held", &Default::default(), &unset).await.expect("is released");
}

#[tokio::test]
async fn pods_that_never_ran_are_evicted_despite_their_budget() {
    let namespace = shared().namespace("drain_pending").await.with_image(MISSING_IMAGE);
    namespace.own_node(false).await;
    namespace.replica_set_on_own_node("web", 3, json!({})).await;
    namespace
        .create::<PodDisruptionBudget>(json!({
            "metadata": { "name": "web" },
            "spec": { "minAvailable": 3, "selector": { "matchLabels": { "app": "web" } } },
        }))
        .await;
    let done = send(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 10 }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
}

/// Watches the cluster: are fewer pods ready than a budget requires?
struct Observer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Observer {
    /// Each ReplicaSet has this many pods, of which one may be unavailable.
    fn start(namespace: &Namespace, replicas: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, stopped) = (namespace.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let (mut checks, mut broken) = (0, Vec::new());
            while !stopped.load(Ordering::SeqCst) {
                let pods = namespace.api::<Pod>().list(&ListParams::default()).await;
                let mut ready: BTreeMap<String, usize> = BTreeMap::new();
                for pod in pods.expect("are listed").items {
                    let conditions = pod.status.as_ref().and_then(|it| it.conditions.clone());
                    let is_ready = conditions
                        .into_iter()
                        .flatten()
                        .any(|it| it.type_ == "Ready" && it.status == "True")
                        && pod.metadata.deletion_timestamp.is_none();
                    *ready.entry(pod.labels()["app"].clone()).or_default() += usize::from(is_ready);
                }
                let few = ready.into_iter().filter(|(_, ready)| *ready + 1 < replicas);
                broken.extend(few.map(|(app, ready)| format!("{app} has {ready} of {replicas}")));
                let budgets = namespace.api::<PodDisruptionBudget>();
                for budget in budgets.list(&ListParams::default()).await.expect("are listed") {
                    let (name, status) = (budget.name_any(), budget.status.unwrap_or_default());
                    let (is, must) = (status.current_healthy, status.desired_healthy);
                    if is < must {
                        broken.push(format!("budget {name}: {is} are healthy, {must} must be"));
                    }
                }
                checks += 1;
                sleep(Duration::from_millis(20)).await;
            }
            (checks, broken)
        });
        Observer { stop, task }
    }

    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("it observed")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pods_under_ten_budgets_are_evicted_within_each_budget() {
    const SETS: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let namespace = node_with("drain_many", &SETS.map(|name| (name, 20))).await;
    for name in SETS {
        budget(&namespace, name, 1, 1).await;
    }
    let observer = Observer::start(&namespace, 20);
    let body = request(&namespace, json!({}), json!({ "wait": true, "timeout_seconds": 80 }));
    let program = Program::with_kubeconfig(namespace.kubeconfig()).input(body);
    let done = spawn_blocking(|| program.run()).await.expect("it ran");
    let (checks, broken) = observer.end().await;
    assert_eq!(done.status, 0, "{done:?}");
    assert!(checks > 20, "{checks}");
    assert_eq!(broken, Vec::<String>::new());
    assert!(on_node(&namespace).await.is_empty());
    println!("200 pods under 10 budgets: {:?}, {checks} checks", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_the_same_state_as_kubectl() {
    let mut ends = Vec::new();
    for by in ["ours", "kubectl"] {
        let namespace = node_with("drain_same", &[("web", 3), ("api", 2)]).await;
        namespace.daemon_set_on_own_node("agent").await;
        let volumes = json!({ "volumes": [{ "name": "tmp", "emptyDir": {} }] });
        bare_pod(&namespace, "lonely", json!({}), volumes).await;
        budget(&namespace, "web", 1, 1).await;
        if by == "ours" {
            let accepted = json!({ "force": true, "delete_empty_dir_data": true });
            let done = send(&namespace, accepted, json!({ "wait": true }));
            assert_eq!(done.status, 0, "{done:?}");
        } else {
            let mut kubectl = Command::new(shared().program("kubectl"));
            kubectl.args(["drain", namespace.name(), "--ignore-daemonsets", "--force"]);
            kubectl.arg("--delete-emptydir-data").env("KUBECONFIG", shared().kubeconfig());
            let done = spawn_blocking(move || kubectl.output()).await.expect("it ran");
            let done = done.expect("kubectl runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let sets = async |on_it: bool| -> BTreeSet<String> {
            let all = namespace.api::<Pod>().list(&ListParams::default()).await.expect("are");
            let is_on_it = |pod: &Pod| {
                pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())
                    == Some(namespace.name())
            };
            let those = all.items.iter().filter(|pod| is_on_it(pod) == on_it);
            those.map(|pod| pod.labels().get("app").cloned().unwrap_or_default()).collect()
        };
        eventually("all are back", async || {
            let (web, api) = (namespace.pods_of("web").await, namespace.pods_of("api").await);
            (web.len() == 3 && api.len() == 2).then_some(())
        })
        .await;
        ends.push((is_cordoned(&namespace).await, sets(true).await, sets(false).await));
    }
    assert_eq!(ends[0], ends[1]);
}
