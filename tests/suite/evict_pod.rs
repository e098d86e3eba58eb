//! `evict_pod` on a real API server, whose disruption controller counts the healthy pods.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{ResourceExt, api::Patch};
use serde_json::{Value, json};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    cluster::{CRASHING_IMAGE, MISSING_IMAGE, Namespace, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    ledger::records,
    program::{Finished, Program, scratch},
    scenario::without_replayed,
};

fn request(namespace: &Namespace, pod: &str, fields: Value) -> String {
    let mut request = json!({
        "type": "evict_pod",
        "parameters": { "pod_name": pod, "namespace": namespace.name() },
        "simulate": false,
    });
    for (key, value) in fields.as_object().expect("are fields") {
        match key.as_str() {
            "grace_period_seconds" | "allow_unmanaged" => {
                request["parameters"][key] = value.clone();
            }
            _ => request[key] = value.clone(),
        }
    }
    request.to_string()
}

fn send(namespace: &Namespace, pod: &str, fields: Value) -> Finished {
    let request = request(namespace, pod, fields);
    Program::with_kubeconfig(namespace.kubeconfig()).input(request).run()
}

/// Runs the program through a kubeconfig while the test continues.
fn start(kubeconfig: PathBuf, request: String) -> tokio::task::JoinHandle<Finished> {
    spawn_blocking(move || Program::with_kubeconfig(&kubeconfig).input(request).run())
}

async fn uid(namespace: &Namespace, pod: &str) -> Option<String> {
    namespace.api::<Pod>().get_opt(pod).await.expect("is read").and_then(|pod| pod.uid())
}

/// A Deployment of two pods that must both be healthy while a third pod is not, and the name of one of them.
async fn exhausted_pdb(test: &str) -> (Namespace, String) {
    let namespace = shared().namespace(test).await;
    namespace.running_deployment("web", 2).await;
    namespace.exhausted_pdb("tight", "web", 2).await;
    let pod = namespace.pods_of("web").await[0].name_any();
    (namespace, pod)
}

async fn set_min_available(namespace: &Namespace, number: i32) {
    namespace.set_min_available("tight", number).await;
}

/// A kubeconfig whose proxy signals when the program checks the disruption budget a second time.
async fn watched(namespace: &Namespace) -> (PathBuf, watch::Receiver<bool>) {
    let (checks, seen) = watch::channel(false);
    let kubeconfig = proxy(namespace, move |call| {
        // Each check reads the pod, the disruption budgets, the pods and the record once.
        if call.method == http::Method::GET && call.number >= 4 {
            checks.send_replace(true);
        }
        ProxyBehavior::Forward
    })
    .await;
    (kubeconfig, seen)
}

#[tokio::test]
async fn an_eviction_waits_until_the_pod_is_gone() {
    let namespace = shared().namespace("evicted").await;
    namespace.running_deployment("web", 2).await;
    namespace.disruption_budget("loose", "web", json!({ "maxUnavailable": 1 })).await;
    let pod = namespace.pods_of("web").await[0].name_any();
    let done = send(&namespace, &pod, json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied");
    assert_eq!(answer["rollout"]["message"], format!("pod '{pod}' is gone"));
    assert!(answer["result"].as_str().expect("is one").contains("ReplicaSet 'web-"), "{answer}");
    assert_eq!(answer["warnings"], json!([]));
    assert_eq!(uid(&namespace, &pod).await, None);
}

#[tokio::test]
async fn a_simulation_evicts_nothing_and_reports_the_budget() {
    let (namespace, pod) = exhausted_pdb("evict_simulated").await;
    let before = uid(&namespace, &pod).await;
    let done = send(&namespace, &pod, json!({ "simulate": true }));
    assert_eq!((done.status, &done.answer()["code"]), (75, &json!("disruption_budget")));
    set_min_available(&namespace, 1).await;
    let done = eventually("the disruption budget allows an eviction", async || {
        let done = send(&namespace, &pod, json!({ "simulate": true }));
        (done.status == 0).then_some(done)
    })
    .await;
    assert_eq!(done.answer()["outcome"], "simulated");
    assert_eq!(done.answer()["changes"][0]["to"], Value::Null);
    assert_eq!(uid(&namespace, &pod).await, before);
    // The simulation did not charge the disruption budget either.
    let budget = namespace.settled_pdb("tight").await.status.expect("has one");
    assert_eq!((budget.disruptions_allowed, budget.disrupted_pods), (1, None));
}

#[tokio::test]
async fn an_exhausted_budget_is_reported_with_its_blocking_pods() {
    let (namespace, pod) = exhausted_pdb("evict_no_room").await;
    for simulate in [true, false] {
        let done = send(&namespace, &pod, json!({ "simulate": simulate }));
        assert_eq!(done.status, 75, "{done:?}");
        let problem = done.answer();
        assert_eq!(
            (&problem["code"], &problem["status"]),
            (&json!("disruption_budget"), &json!(429))
        );
        let detail = problem["detail"].as_str().expect("has one");
        assert!(
            detail.contains(
                "PodDisruptionBudget 'tight' allows 0 disruptions now: 2 pods are healthy, and 2 must be; \
                 not healthy: web-unready"
            ),
            "{detail}"
        );
        assert!(problem["retry_after_seconds"].as_u64().is_some_and(|it| it > 0));
    }
    assert!(uid(&namespace, &pod).await.is_some());
    // An unhealthy pod may be evicted while enough pods are healthy, or under `AlwaysAllow` at any time.
    let stray = eventually("it crashes", async || {
        let pod = namespace.api::<Pod>().get("web-unready").await.expect("is there");
        (pod.status.as_ref()?.phase.as_deref() == Some("Running")).then_some(pod)
    })
    .await;
    namespace.bare_pod_of("stray", CRASHING_IMAGE, json!({ "app": "web" })).await;
    set_min_available(&namespace, 3).await;
    eventually("too few are healthy", async || {
        let status = namespace.settled_pdb("tight").await.status?;
        (status.expected_pods == 4 && status.desired_healthy == 3).then_some(())
    })
    .await;
    let unmanaged = json!({ "allow_unmanaged": true, "wait": true, "timeout_seconds": 1 });
    assert_eq!(send(&namespace, "web-unready", unmanaged.clone()).status, 75);
    let patch = json!({ "spec": { "unhealthyPodEvictionPolicy": "AlwaysAllow" } });
    let budgets = namespace.api::<PodDisruptionBudget>();
    budgets.patch("tight", &Default::default(), &Patch::Merge(patch)).await.expect("is patched");
    let done = send(&namespace, "web-unready", json!({ "allow_unmanaged": true, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.answer()["warnings"][0].as_str().expect("is one").contains("does not come back"));
    assert_ne!(uid(&namespace, "web-unready").await, stray.uid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_eviction_claims_nothing_until_the_budget_allows_it() {
    let (namespace, pod) = exhausted_pdb("evict_waits").await;
    let (kubeconfig, mut checks) = watched(&namespace).await;
    let asked = json!({ "wait": true, "timeout_seconds": 60, "id": "r1" });
    let running = start(kubeconfig, request(&namespace, &pod, asked));
    checks.wait_for(|again| *again).await.expect("it checks again");
    assert_eq!(records(&namespace).await.len(), 0);
    assert!(uid(&namespace, &pod).await.is_some());
    let deployments = namespace.api::<Deployment>();
    let third = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
    deployments.patch("web", &Default::default(), &third).await.expect("is scaled");
    let done = running.await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete");
    assert_eq!(uid(&namespace, &pod).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_waiting_with_one_request_evict_once() {
    let (namespace, pod) = exhausted_pdb("evict_twice").await;
    let asked = json!({ "wait": true, "timeout_seconds": 60, "id": "r1" });
    let request = request(&namespace, &pod, asked);
    let (mut running, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (kubeconfig, checks) = watched(&namespace).await;
        running.push(start(kubeconfig, request.clone()));
        waiting.push(checks);
    }
    for checks in &mut waiting {
        checks.wait_for(|again| *again).await.expect("it checks again");
    }
    set_min_available(&namespace, 0).await;
    let mut answers = Vec::new();
    for process in running {
        let done = process.await.expect("it ran");
        let answer = done.answer();
        let under_way = answer["code"] == "in_progress";
        assert!(done.status == 0 || under_way, "{done:?}");
        answers.extend((!under_way).then_some(answer));
    }
    assert!(!answers.is_empty());
    let firsts = answers.iter().filter(|answer| answer["replayed"] == false).count();
    assert_eq!(firsts, 1, "{answers:?}");
    let again = Program::with_kubeconfig(namespace.kubeconfig()).input(request).run().answer();
    assert_eq!(again["replayed"], true);
    for answer in answers {
        assert_eq!(without_replayed(answer), without_replayed(again.clone()));
    }
    assert_eq!(evictions(&namespace).await, 1);
}

/// How many of the two pods have been replaced, once there are two again.
async fn evictions(namespace: &Namespace) -> usize {
    namespace.rolled_out("web").await;
    let events = namespace.api::<k8s_openapi::api::core::v1::Event>();
    let params = kube::api::ListParams::default()
        .fields("reason=SuccessfulCreate,involvedObject.kind=ReplicaSet");
    eventually("the ReplicaSet has reported it", async || {
        let created = events.list(&params).await.expect("are listed").items.len();
        (created > 2).then(|| created - 2)
    })
    .await
}

#[tokio::test]
async fn a_budget_exhausted_until_the_timeout_is_reported() {
    let (namespace, pod) = exhausted_pdb("evict_in_vain").await;
    let done = send(&namespace, &pod, json!({ "wait": true, "timeout_seconds": 3, "id": "r1" }));
    assert_eq!(done.status, 75, "{done:?}");
    assert_eq!(done.answer()["code"], "disruption_budget");
    assert!((1..5).contains(&done.took.as_secs()), "{:?}", done.took);
    // The same request may be resent; it was not refused permanently.
    set_min_available(&namespace, 0).await;
    let done = send(&namespace, &pod, json!({ "wait": true, "timeout_seconds": 60, "id": "r1" }));
    assert_eq!((done.status, &done.answer()["replayed"]), (0, &json!(false)), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_exhausted_after_the_check_is_waited_for() {
    let namespace = shared().namespace("evict_raced").await;
    namespace.running_deployment("web", 2).await;
    namespace.disruption_budget("tight", "web", json!({ "minAvailable": 1 })).await;
    eventually("the disruption budget allows an eviction", async || {
        let status = namespace.settled_pdb("tight").await.status?;
        (status.disruptions_allowed == 1).then_some(())
    })
    .await;
    let pod = namespace.pods_of("web").await[0].name_any();
    let (meddler, handle) = (namespace.clone(), tokio::runtime::Handle::current());
    let (refused, mut seen) = watch::channel(false);
    let first = AtomicBool::new(true);
    let kubeconfig = proxy(&namespace, move |call| {
        // The claim is created, and released by a patch.
        if call.writes("eviction") && first.swap(false, Ordering::SeqCst) {
            let narrow = set_min_available(&meddler, 2);
            tokio::task::block_in_place(|| handle.block_on(narrow));
        } else if call.method == http::Method::PATCH && call.writes("events") {
            refused.send_replace(true);
        }
        ProxyBehavior::Forward
    })
    .await;
    let asked = json!({ "wait": true, "timeout_seconds": 60, "id": "r1" });
    let running = start(kubeconfig, request(&namespace, &pod, asked));
    seen.wait_for(|refused| *refused).await.expect("the API server refuses");
    assert!(uid(&namespace, &pod).await.is_some());
    set_min_available(&namespace, 1).await;
    let done = running.await.expect("it ran");
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(evictions(&namespace).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_recreated_during_the_wait_is_not_evicted() {
    let namespace = shared().namespace("evict_recreated").await;
    namespace.running_stateful_set("web", 2).await;
    namespace.exhausted_pdb("tight", "web", 2).await;
    let (kubeconfig, mut checks) = watched(&namespace).await;
    let asked = json!({ "wait": true, "timeout_seconds": 60 });
    let running = start(kubeconfig, request(&namespace, "web-0", asked));
    checks.wait_for(|again| *again).await.expect("it checks again");
    let old = uid(&namespace, "web-0").await;
    namespace.api::<Pod>().delete("web-0", &Default::default()).await.expect("is deleted");
    let new = eventually("it is back", async || {
        uid(&namespace, "web-0").await.filter(|new| Some(new) != old.as_ref())
    })
    .await;
    set_min_available(&namespace, 0).await;
    let done = running.await.expect("it ran");
    // The check may have run while no pod of this name existed.
    let code = done.answer()["code"].clone();
    assert!(code == "precondition_failed" || code == "target_not_found", "{done:?}");
    assert_eq!(uid(&namespace, "web-0").await, Some(new));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_budgets_for_one_pod_are_refused_before_any_write() {
    let namespace = shared().namespace("evict_two").await;
    namespace.running_deployment("web", 2).await;
    for name in ["first", "second"] {
        namespace.disruption_budget(name, "web", json!({ "maxUnavailable": 1 })).await;
    }
    let pod = namespace.pods_of("web").await[0].name_any();
    static SENT: AtomicBool = AtomicBool::new(false);
    let kubeconfig = proxy(&namespace, |call| {
        SENT.fetch_or(call.method != http::Method::GET, Ordering::SeqCst);
        ProxyBehavior::Forward
    })
    .await;
    let done = start(kubeconfig, request(&namespace, &pod, json!({ "wait": true }))).await;
    let done = done.expect("it ran");
    assert_eq!(done.status, 69, "{done:?}");
    assert_eq!(done.answer()["code"], "rejected_by_cluster");
    assert!(done.answer()["detail"].as_str().expect("has one").contains("'first' and 'second'"));
    assert!(!SENT.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_pdb_that_never_allows_a_disruption_is_refused_permanently() {
    let namespace = shared().namespace("evict_never").await;
    namespace.running_deployment("web", 2).await;
    namespace.running_stateful_set("db", 2).await;
    for (budget, spec, lasts) in [
        ("tight", json!({ "minAvailable": 2 }), true),
        ("none", json!({ "maxUnavailable": 0 }), true),
        ("share", json!({ "minAvailable": "100%" }), true),
        ("loose", json!({ "minAvailable": 1 }), false),
    ] {
        for app in ["web", "db"] {
            namespace.disruption_budget(budget, app, spec.clone()).await;
            eventually("both are counted", async || {
                let status = namespace.settled_pdb(budget).await.status?;
                (status.current_healthy == 2).then_some(())
            })
            .await;
            let pod = namespace.pods_of(app).await[0].name_any();
            for fields in [json!({}), json!({ "simulate": true }), json!({ "wait": true })] {
                if !lasts {
                    continue;
                }
                let done = send(&namespace, &pod, fields);
                assert_eq!(done.status, 69, "{done:?}");
                let problem = done.answer();
                assert_eq!(problem["retryable"], false, "{problem}");
                let detail = problem["detail"].as_str().expect("has one");
                let never = format!("PodDisruptionBudget '{budget}' never allows a disruption");
                assert!(detail.contains(&never), "{detail}");
                let hint = problem["hint"].as_str().expect("has one");
                assert!(hint.contains(&format!("edit pdb {budget}`")), "{hint}");
                assert!(done.took.as_secs() < 5, "{:?}", done.took);
            }
            if !lasts {
                assert_eq!(send(&namespace, &pod, json!({ "wait": true })).status, 0);
            }
            let budgets = namespace.api::<PodDisruptionBudget>();
            budgets.delete(budget, &Default::default()).await.expect("is deleted");
        }
    }
}

#[tokio::test]
async fn a_pod_without_a_replacement_is_refused_unless_forced() {
    let namespace = shared().namespace("evict_bare").await;
    namespace.bare_pod("lonely").await;
    let done = send(&namespace, "lonely", json!({}));
    assert_eq!((done.status, &done.answer()["code"]), (69, &json!("target_unmanaged")));
    let done = send(&namespace, "lonely", json!({ "allow_unmanaged": true, "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(uid(&namespace, "lonely").await, None);
    // A mirror pod, as a kubelet creates it from a file: without a service account.
    namespace.bare_pod("static").await;
    let scheduled = eventually("it is on a node", async || {
        let pod = namespace.api::<Pod>().get("static").await.expect("is there");
        pod.spec.as_ref()?.node_name.is_some().then_some(pod)
    })
    .await;
    let mut mirror = json!(scheduled);
    mirror["metadata"] = json!({
        "name": "mirror", "annotations": { "kubernetes.io/config.mirror": "digest" },
    });
    for field in ["serviceAccount", "serviceAccountName", "volumes"] {
        mirror["spec"].as_object_mut().expect("is one").remove(field);
    }
    mirror["spec"]["containers"][0]["volumeMounts"] = json!([]);
    mirror["status"] = json!({});
    namespace.create::<Pod>(mirror).await;
    let done = send(&namespace, "mirror", json!({ "allow_unmanaged": true }));
    assert_eq!((done.status, &done.answer()["code"]), (69, &json!("no_effect")), "{done:?}");
}

#[tokio::test]
async fn the_grace_period_is_the_pods_or_the_requests_and_a_terminating_pod_is_kept() {
    let namespace = shared().namespace("evict_grace").await;
    namespace.running_deployment("web", 1).await;
    let slow = json!({ "spec": { "replicas": 3, "template": {
        "metadata": { "annotations": { "test.action-executor.dev/slow-delete": "true" } },
        "spec": { "terminationGracePeriodSeconds": 47 },
    }}});
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &Patch::Merge(slow)).await.expect("is patched");
    namespace.rolled_out("web").await;
    let pods = namespace.pods_of("web").await;
    for (pod, asked, grace) in
        [(&pods[0], json!({}), 47), (&pods[1], json!({ "grace_period_seconds": 12 }), 12)]
    {
        let name = pod.name_any();
        assert_eq!(send(&namespace, &name, asked.clone()).status, 0);
        let going = namespace.api::<Pod>().get(&name).await.expect("is still there");
        assert_eq!(going.metadata.deletion_grace_period_seconds, Some(grace));
        let again = send(&namespace, &name, asked);
        assert_eq!((again.status, &again.answer()["outcome"]), (0, &json!("unchanged")));
    }
}

#[tokio::test]
async fn a_controllers_only_pod_and_a_daemon_sets_pod_cause_warnings() {
    let namespace = shared().namespace("evict_warned").await;
    namespace.running_deployment("web", 1).await;
    namespace.running_daemon_set("agent").await;
    for (app, warning) in [("web", "only pod of ReplicaSet 'web-"), ("agent", "on the same node")] {
        let pod = namespace.pods_of(app).await[0].name_any();
        let warnings =
            send(&namespace, &pod, json!({ "simulate": true })).answer()["warnings"].clone();
        assert!(warnings[0].as_str().is_some_and(|it| it.contains(warning)), "{warnings}");
    }
}

/// The eviction that `kubectl drain` sends, through kubectl.
fn evict_by_kubectl(namespace: &Namespace, pod: &str) -> (bool, String) {
    let name = namespace.name();
    let file = scratch("eviction.json");
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": pod, "namespace": name },
    });
    std::fs::write(&file, eviction.to_string()).expect("is written");
    let path = format!("/api/v1/namespaces/{name}/pods/{pod}/eviction");
    let done = Command::new(Path::new(shared().programs()).join("kubectl"))
        .args(["create", "--raw", &path, "-f"])
        .arg(file)
        .env("KUBECONFIG", namespace.kubeconfig())
        .output()
        .expect("kubectl runs");
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test]
async fn an_eviction_leaves_the_same_state_as_kubectl() {
    let (namespace, _) = exhausted_pdb("evict_parity").await;
    let pods: Vec<_> = namespace.pods_of("web").await.iter().map(ResourceExt::name_any).collect();
    // The disruption budget allows neither eviction.
    let (evicted, words) = evict_by_kubectl(&namespace, &pods[0]);
    assert!(!evicted && words.contains("disruption budget"), "{words}");
    assert_eq!(send(&namespace, &pods[1], json!({})).answer()["code"], "disruption_budget");
    set_min_available(&namespace, 0).await;
    let (evicted, words) = evict_by_kubectl(&namespace, &pods[0]);
    assert!(evicted, "{words}");
    let done = send(&namespace, &pods[1], json!({ "wait": true }));
    assert_eq!(done.status, 0, "{done:?}");
    for pod in &pods {
        eventually("it has gone", async || uid(&namespace, pod).await.is_none().then_some(()))
            .await;
    }
    namespace.rolled_out("web").await;
    // Both were evicted while unready too: a pod whose image is missing does not count as healthy.
    let pending = namespace.bare_pod_of("pending", MISSING_IMAGE, json!({ "app": "web" })).await;
    set_min_available(&namespace, 3).await;
    let done = send(&namespace, &pending.name_any(), json!({ "allow_unmanaged": true }));
    assert_eq!(done.status, 0, "{done:?}");
}
