//! At most one effect and true answers under single faults that are known to be dangerous: late and repeated writes,
//! lost evidence, records that are gone or forged, wrong clocks, plans that change after they were approved.
//!
//! `fault_matrix` has every fault at every call; here each test has one story.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use action_executor::{actions::ActionKind, executor::failpoint::Failpoint};
use chrono::{TimeDelta, Utc};
use hyper::Method;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PostParams},
    config::Kubeconfig,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{block_in_place, spawn_blocking},
    time::{Instant, sleep},
};

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{Namespace, WAIT_TIMEOUT, client, shared},
    fault_matrix::charged,
    fault_proxy::{Held, Proxy, ProxyBehavior, Received},
    ledger::records,
    limits::set_kill_switch,
    program::{Finished, Program},
    scenario::{Scenario, for_each_form},
};

/// A policy with limits, so that each effect is charged.
pub const LIMITS: &str = "cooldown_seconds: 1";

/// How to run a request.
#[derive(Clone)]
pub struct Run {
    kubeconfig: PathBuf,
    policy: PathBuf,
    /// The process aborts there.
    failpoint: Option<Failpoint>,
    /// By how many seconds the clock of the process is wrong.
    clock_shift: i64,
    deadline_seconds: u32,
}

impl Run {
    /// Through the proxy, with this policy.
    pub fn through(proxy: &Proxy, policy: &Path) -> Self {
        Run {
            kubeconfig: proxy.kubeconfig.clone(),
            policy: policy.to_owned(),
            failpoint: None,
            clock_shift: 0,
            deadline_seconds: 3,
        }
    }

    fn within(self, deadline_seconds: u32) -> Self {
        Run { deadline_seconds, ..self }
    }

    pub fn killed(self, at: Failpoint) -> Self {
        Run { failpoint: Some(at), ..self }
    }

    fn clock_shifted_by(self, clock_shift: i64) -> Self {
        Run { clock_shift, ..self }
    }

    pub async fn send(&self, request: &Value) -> Finished {
        let mut program = Program::with_kubeconfig(&self.kubeconfig)
            .under(&self.policy)
            .env("ACTION_EXECUTOR_DEADLINE_SECONDS", self.deadline_seconds.to_string())
            .input(request.to_string());
        if let Some(at) = self.failpoint {
            program = program.env("ACTION_EXECUTOR_FAILPOINT", at.name());
        }
        if self.clock_shift != 0 {
            program = program.clock_shifted_by(self.clock_shift);
        }
        let done = spawn_blocking(|| program.run()).await.expect("it ran");
        if self.failpoint.is_some() {
            assert_eq!((done.status, done.stdout.as_str()), (-1, ""), "{done:?}");
        }
        done
    }

    /// Resends the request until the answer is final.
    pub async fn resend(&self, request: &Value) -> Value {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let done = self.send(request).await;
            if done.status != 75 {
                return done.answer();
            }
            assert!(Instant::now() < deadline, "the answer never becomes final: {done:?}");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

pub async fn transparent(namespace: &Namespace) -> Proxy {
    Proxy::start(namespace, |_| ProxyBehavior::Forward).await
}

/// A proxy that does this with each effect.
pub async fn on_effects(namespace: &Namespace, behavior: ProxyBehavior) -> Proxy {
    let rule = move |call: &Received| match call.is_effect() {
        true => behavior.clone(),
        false => ProxyBehavior::Forward,
    };
    Proxy::start(namespace, rule).await
}

/// Whether the answer says that the effect was made, or that this is unknown.
pub fn is_applied_or_unknown(answer: &Value) -> bool {
    answer["outcome"] == "applied" || answer["code"] == "outcome_unknown"
}

fn is_deletion(call: &str) -> bool {
    call.starts_with("DELETE ") || call.ends_with("/eviction")
}

/// A proxy that holds each deletion.
async fn holding_deletions(namespace: &Namespace, held: &Held) -> Proxy {
    let held = held.clone();
    let rule = move |call: &Received| {
        let is_held = call.is_effect() && is_deletion(&format!("{} {}", call.method, call.path));
        if is_held { ProxyBehavior::Hold(held.clone()) } else { ProxyBehavior::Forward }
    };
    Proxy::start(namespace, rule).await
}

/// The deletions that the API server accepted.
fn deletions(proxies: &[&Proxy]) -> Vec<String> {
    let accepted = proxies.iter().flat_map(|proxy| proxy.accepted_effects());
    accepted.filter(|call| is_deletion(call)).collect()
}

/// A deletion reaches the API server after the attempt has ended.
async fn late(kind: ActionKind) {
    let scenario = Scenario::with_successor(kind, "late").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let held = Held::default();
    let proxy = holding_deletions(namespace, &held).await;
    let first = Run::through(&proxy, &policy).send(&request).await;
    held.arrived().await;
    assert_eq!(first.answer()["code"], "outcome_unknown", "{first:?}");
    assert_eq!(scenario.effects_so_far().await, 0);
    assert!(charged(namespace).await >= 1, "it is refunded: {first:?}");
    held.release().await;
    // It is refused if the attempt made its precondition fail.
    if !deletions(&[&proxy]).is_empty() {
        scenario.successor().await;
    }
    let honest = transparent(namespace).await;
    let answer = Run::through(&honest, &policy).resend(&request).await;
    let accepted = deletions(&[&proxy, &honest]);
    assert!(accepted.len() <= 1, "{accepted:?} {answer}");
    assert!(is_applied_or_unknown(&answer), "{answer}");
    assert!(charged(namespace).await >= 1, "it is refunded: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_deletion_never_reaches_a_successor() {
    late(ActionKind::RestartPod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_eviction_never_reaches_a_successor() {
    late(ActionKind::EvictPod).await;
}

/// A deletion is still on its way while the request is resent, and lands after that.
async fn still_on_its_way(kind: ActionKind) {
    let scenario = Scenario::with_successor(kind, "on_its_way").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let held = Held::default();
    let proxy = holding_deletions(namespace, &held).await;
    let first = Run::through(&proxy, &policy).send(&request).await;
    assert_eq!(first.answer()["code"], "outcome_unknown", "{first:?}");
    let honest = transparent(namespace).await;
    let run = Run::through(&honest, &policy);
    let second = run.resend(&request).await;
    assert!(is_applied_or_unknown(&second), "{second}");
    if scenario.effects_so_far().await == 1 {
        scenario.successor().await;
    }
    held.release().await;
    if !deletions(&[&proxy, &honest]).is_empty() {
        scenario.successor().await;
    }
    let third = run.resend(&request).await;
    assert!(is_applied_or_unknown(&third), "{third}");
    let accepted = deletions(&[&proxy, &honest]);
    assert!(accepted.len() <= 1, "{accepted:?} {second} {third}");
    assert!(charged(namespace).await >= 1, "it is refunded: {third}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_lands_after_the_retry_takes_no_second_effect() {
    still_on_its_way(ActionKind::RestartPod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_lands_after_the_retry_takes_no_second_effect() {
    still_on_its_way(ActionKind::EvictPod).await;
}

/// A middlebox sends a deletion twice, and returns the second response.
async fn repeated(kind: ActionKind) {
    let scenario = Scenario::with_successor(kind, "repeated").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let proxy = on_effects(namespace, ProxyBehavior::RepeatAndReturnSecond).await;
    let run = Run::through(&proxy, &policy);
    let first = run.send(&request).await.answer();
    assert_eq!(scenario.effects_so_far().await, 1, "{first}");
    assert!(is_applied_or_unknown(&first), "{first}");
    assert_eq!(charged(namespace).await, 1, "{first}");
    scenario.successor().await;
    let second = run.resend(&request).await;
    assert!(is_applied_or_unknown(&second), "{second}");
    assert_eq!(proxy.accepted_effects().len(), 1, "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deletion_is_not_reported_as_someone_elses() {
    repeated(ActionKind::RestartPod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_eviction_is_not_reported_as_someone_elses() {
    repeated(ActionKind::EvictPod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_someone_else_deleted_is_not_reported_as_applied() {
    let scenario = Scenario::with_successor(ActionKind::RestartPod, "someone_else").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let (pods, handle) = (namespace.api::<Pod>(), Handle::current());
    // Someone else's deletion arrives, and ours is lost.
    let lost = Proxy::start(namespace, move |call| {
        if !call.is_effect() {
            return ProxyBehavior::Forward;
        }
        let params = DeleteParams::default();
        let delete = pods.delete("web-0", &params);
        block_in_place(|| handle.block_on(delete)).expect("is deleted");
        ProxyBehavior::DropRequest
    })
    .await;
    let first = Run::through(&lost, &policy).send(&request).await.answer();
    assert_ne!(first["outcome"], "applied", "{first}");
    let honest = transparent(namespace).await;
    let second = Run::through(&honest, &policy).resend(&request).await;
    assert_ne!(second["outcome"], "applied", "{second}");
    assert_eq!(honest.accepted_effects(), Vec::<String>::new(), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_patch_whose_read_fails_is_unknown_or_applied() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "repeated_patch").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let written = AtomicUsize::new(0);
    let proxy = Proxy::start(namespace, move |call| {
        if call.is_effect() {
            written.fetch_add(1, Ordering::SeqCst);
            return ProxyBehavior::RepeatAndReturnSecond;
        }
        match call.method == Method::GET && written.load(Ordering::SeqCst) > 0 {
            true => ProxyBehavior::Hang,
            false => ProxyBehavior::Forward,
        }
    })
    .await;
    let first = Run::through(&proxy, &policy).send(&request).await.answer();
    assert_eq!(scenario.effects_so_far().await, 1, "{first}");
    assert!(is_applied_or_unknown(&first), "{first}");
    assert!(charged(namespace).await >= 1, "{first}");
    let honest = transparent(namespace).await;
    let second = Run::through(&honest, &policy).resend(&request).await;
    assert_eq!(second["outcome"], "applied", "{second}");
    assert_eq!(scenario.effects_so_far().await, 1, "{second}");
}

/// The proxy answers the effect itself, as if it had been made.
async fn unproven(kind: ActionKind, test: &str, answer: ProxyBehavior) {
    let scenario = Scenario::with_successor(kind, test).await;
    let policy = scenario.namespace.policy(LIMITS);
    let proxy = on_effects(&scenario.namespace, answer).await;
    let done = Run::through(&proxy, &policy).send(&scenario.request("r1")).await;
    assert_eq!(scenario.effects_so_far().await, 0, "{kind:?}");
    assert_ne!(done.answer()["outcome"], "applied", "{kind:?}: {done:?}");
    assert_ne!(done.answer()["outcome"], "unchanged", "{kind:?}: {done:?}");
}

#[test]
fn an_empty_object_is_no_proof_of_an_effect() {
    for_each_form(async |kind| unproven(kind, "empty", ProxyBehavior::RespondBody("{}")).await);
}

#[test]
fn a_redirect_is_no_proof_of_an_effect() {
    for_each_form(async |kind| unproven(kind, "redirected", ProxyBehavior::Redirect).await);
}

#[test]
fn an_object_with_another_uid_is_no_proof_of_an_effect() {
    for_each_form(async |kind| unproven(kind, "other_uid", ProxyBehavior::RespondOtherUid).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_deletion_survives_a_middlebox_that_drops_bodies() {
    for kind in [ActionKind::RestartPod, ActionKind::EvictPod] {
        let scenario = Scenario::with_successor(kind, "no_body").await;
        let policy = scenario.namespace.policy(LIMITS);
        let proxy = Proxy::start(&scenario.namespace, |call| match call.is_write() {
            true => ProxyBehavior::StripBody,
            false => ProxyBehavior::Forward,
        })
        .await;
        let mut request = scenario.request("r1");
        request["simulate"] = true.into();
        let done = Run::through(&proxy, &policy).send(&request).await;
        assert_eq!(scenario.effects_so_far().await, 0, "{kind:?}: {done:?}");
    }
}

#[test]
fn the_kill_switch_stops_an_effect_that_is_answered_429_again_and_again() {
    for_each_form(async |kind| {
        let scenario = Scenario::with_successor(kind, "busy").await;
        let (namespace, handle) = (scenario.namespace.clone(), Handle::current());
        let effects = AtomicUsize::new(0);
        let proxy = Proxy::start(&scenario.namespace, move |call| {
            if !call.is_effect() {
                return ProxyBehavior::Forward;
            }
            match effects.fetch_add(1, Ordering::SeqCst) {
                0 => ProxyBehavior::RespondRetryAfter(429, 1),
                1 => {
                    let stop = set_kill_switch(&namespace, Some("incident 7"));
                    block_in_place(|| handle.block_on(stop));
                    ProxyBehavior::RespondRetryAfter(429, 1)
                }
                _ => ProxyBehavior::Forward,
            }
        })
        .await;
        let policy = scenario.namespace.policy(LIMITS);
        let run = Run::through(&proxy, &policy).within(15);
        let done = run.send(&scenario.request("r1")).await;
        assert_eq!(proxy.accepted_effects(), Vec::<String>::new(), "{kind:?}: {done:?}");
        assert_eq!(done.answer()["code"], "stopped", "{kind:?}: {done:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_whose_mark_was_removed_is_not_repeated() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "undone").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let deployments = namespace.api::<Deployment>();
    let before = namespace.get_deployment("web").await;
    let proxy = transparent(namespace).await;
    let run = Run::through(&proxy, &policy);
    run.clone().killed(Failpoint::AfterWrite).send(&request).await;
    assert_eq!(scenario.effects_so_far().await, 1);
    // As `kubectl rollout undo` or `kubectl replace` with the old manifest does.
    let mut undone = namespace.get_deployment("web").await;
    undone.spec.as_mut().expect("has one").template = before.spec.expect("has one").template;
    undone.metadata.annotations = before.metadata.annotations;
    undone.metadata.resource_version = None;
    deployments.replace("web", &PostParams::default(), &undone).await.expect("is replaced");
    let answer = run.resend(&request).await;
    assert_eq!(proxy.accepted_effects().len(), 1, "{answer}");
    assert_eq!(scenario.effects_so_far().await, 2, "the restart and its reversal: {answer}");
    assert_eq!(answer["code"], "outcome_unknown", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_cleaned_up_is_not_created_again() {
    let scenario = Scenario::new(ActionKind::RunCronjob, "cleaned").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let proxy = transparent(namespace).await;
    let run = Run::through(&proxy, &policy);
    run.clone().killed(Failpoint::AfterWrite).send(&request).await;
    let jobs = namespace.api::<Job>();
    let made = jobs.list(&ListParams::default()).await.expect("are listed").items;
    assert_eq!(made.len(), 1);
    jobs.delete(&made[0].name_any(), &DeleteParams::background()).await.expect("is deleted");
    crate::cluster::eventually("the Job is gone", async || {
        jobs.get_opt(&made[0].name_any()).await.expect("is read").is_none().then_some(())
    })
    .await;
    let answer = run.resend(&request).await;
    assert_eq!(proxy.accepted_effects().len(), 1, "{answer}");
    assert!(is_applied_or_unknown(&answer), "{answer}");
}

pub async fn delete_records(namespace: &Namespace) {
    let events: Api<Event> = namespace.api();
    for record in records(namespace).await {
        events.delete(&record.name_any(), &Default::default()).await.expect("is deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_with_the_same_id_is_refused_though_its_record_is_gone() {
    for other in ["pause_rollout", "rollback", "scale"] {
        let scenario = Scenario::new(ActionKind::RestartK8s, "other_request").await;
        let namespace = &scenario.namespace;
        namespace.revise("web", "2").await;
        let policy = namespace.policy("cooldown_seconds: 0");
        let proxy = transparent(namespace).await;
        let run = Run::through(&proxy, &policy);
        let done = run.send(&scenario.request("r1")).await;
        assert_eq!(done.status, 0, "{done:?}");
        delete_records(namespace).await;
        let name = namespace.name();
        let parameters = match other {
            "pause_rollout" => json!({ "deployment": "web", "namespace": name }),
            "rollback" => json!({ "name": "web", "namespace": name }),
            _ => json!({ "name": "web", "namespace": name, "by": 1 }),
        };
        let request = json!({
            "type": other, "simulate": false, "id": "r1", "parameters": parameters,
        });
        let answer = run.resend(&request).await;
        assert_eq!(answer["code"], "id_reused", "{other}: {answer}");
        assert_eq!(proxy.accepted_effects().len(), 1, "{other}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_by_a_process_with_a_wrong_clock_expires_by_the_servers_time() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "clock_ahead").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let proxy = transparent(namespace).await;
    let run = Run::through(&proxy, &policy);
    let ahead = run.clone().clock_shifted_by(7200);
    ahead.killed(Failpoint::AfterClaim).send(&request).await;
    assert_eq!(records(namespace).await.len(), 1);
    let answer = run.resend(&request).await;
    assert_eq!(answer["outcome"], "applied", "{answer}");
    assert_eq!(scenario.effects_so_far().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_request_is_refused_by_the_servers_time() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "clock_behind").await;
    let namespace = &scenario.namespace;
    let policy = namespace.policy(LIMITS);
    let mut request = scenario.request("r1");
    request["issued_at"] = (Utc::now() - TimeDelta::minutes(65)).to_rfc3339().into();
    let proxy = transparent(namespace).await;
    let run = Run::through(&proxy, &policy);
    let answer = run.clone().clock_shifted_by(-40 * 60).send(&request).await.answer();
    assert_eq!(answer["code"], "request_expired", "{answer}");
    assert_eq!(scenario.effects_so_far().await, 0);
}

/// Changes annotations of a record.
async fn annotate_record(events: &Api<Event>, name: &str, annotations: Value) {
    let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
    events.patch(name, &Default::default(), &patch).await.expect("is patched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_gives_no_consent() {
    let past = "2026-01-31T12:00:00.000Z";
    for state in ["claimed", "in_doubt", "refused"] {
        let scenario = Scenario::new(ActionKind::RestartK8s, "forged").await;
        let namespace = &scenario.namespace;
        let (policy, request) = (namespace.policy(REQUIRE_APPROVAL), scenario.request("r1"));
        let proxy = transparent(namespace).await;
        let run = Run::through(&proxy, &policy);
        let pending = run.send(&request).await.answer();
        assert_eq!(pending["outcome"], "pending_approval", "{pending}");
        let record = records(namespace).await.remove(0).name_any();
        let rules = json!([{ "apiGroups": [""], "resources": ["events"], "verbs": ["patch"] }]);
        let forger = namespace.account("forger", rules).await;
        let forger = client(Kubeconfig::read_from(forger).expect("is a kubeconfig")).await;
        let forged = json!({
            "action-executor.dev/state": state, "action-executor.dev/expires-at": past,
        });
        annotate_record(&Api::namespaced(forger, namespace.name()), &record, forged).await;
        let answer = run.send(&request).await.answer();
        assert_eq!(proxy.accepted_effects(), Vec::<String>::new(), "{state}: {answer}");
        // What the record says was sent may come, for all that can be known.
        let is_undecided =
            answer["outcome"] == "pending_approval" || answer["code"] == "outcome_unknown";
        assert!(is_undecided, "{state}: {answer}");
        assert_eq!(scenario.effects_so_far().await, 0, "{state}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_expires_by_the_servers_time() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "approval_clock").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(REQUIRE_APPROVAL), scenario.request("r1"));
    let proxy = transparent(namespace).await;
    let run = Run::through(&proxy, &policy);
    let pending = run.send(&request).await.answer();
    assert!(approve(&pending, namespace.kubeconfig()));
    let record = records(namespace).await.remove(0).name_any();
    let expired = (Utc::now() - TimeDelta::minutes(5)).format("%Y-%m-%dT%H:%M:%S.000Z").to_string();
    let expired = json!({ "action-executor.dev/expires-at": expired });
    annotate_record(&namespace.api(), &record, expired).await;
    let answer = run.clock_shifted_by(-600).send(&request).await.answer();
    assert_eq!(answer["outcome"], "pending_approval", "{answer}");
    assert_eq!(scenario.effects_so_far().await, 0);
}

/// An approved request whose object changes: before the request is resent, or right before its effect. A new
/// approval must be requested.
async fn approved_before_a_change(
    scenario: Scenario,
    request: Value,
    change: impl AsyncFn(),
    is_last_moment: bool,
) {
    let namespace = &scenario.namespace;
    let policy = namespace.policy(REQUIRE_APPROVAL);
    let honest = transparent(namespace).await;
    let pending = Run::through(&honest, &policy).send(&request).await.answer();
    assert_eq!(pending["outcome"], "pending_approval", "{pending}");
    assert!(approve(&pending, namespace.kubeconfig()));
    if is_last_moment {
        let (arrived, resume) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (reached, changed) = (arrived.clone(), resume.clone());
        let (handle, effects) = (Handle::current(), AtomicUsize::new(0));
        let proxy = Proxy::start(namespace, move |call| {
            if call.is_effect() && effects.fetch_add(1, Ordering::SeqCst) == 0 {
                reached.notify_one();
                block_in_place(|| handle.block_on(changed.notified()));
            }
            ProxyBehavior::Forward
        })
        .await;
        let run = Run::through(&proxy, &policy);
        let (done, ()) = tokio::join!(run.send(&request), async {
            arrived.notified().await;
            change().await;
            resume.notify_one();
        });
        assert_eq!(proxy.accepted_effects(), Vec::<String>::new(), "{done:?}");
        assert_ne!(done.answer()["outcome"], "applied", "{done:?}");
    } else {
        change().await;
    }
    let after = Run::through(&honest, &policy).send(&request).await.answer();
    assert_eq!(honest.accepted_effects(), Vec::<String>::new(), "{after}");
    assert_eq!(after["outcome"], "pending_approval", "{after}");
    assert_ne!(after["approval"]["digest"], pending["approval"]["digest"], "{after}");
}

async fn patch_deployment(namespace: &Namespace, spec: Value) {
    let patch = Patch::Strategic(json!({ "spec": spec }));
    let deployments = namespace.api::<Deployment>();
    deployments.patch("web", &Default::default(), &patch).await.expect("is patched");
}

async fn scaling_approved(is_last_moment: bool) {
    let scenario = Scenario::new(ActionKind::Scale, "approved_scale").await;
    let namespace = scenario.namespace.clone();
    patch_deployment(&namespace, json!({ "replicas": 0 })).await;
    namespace.rolled_out("web").await;
    let mut request = scenario.request("r1");
    request["parameters"] = json!({ "name": "web", "namespace": namespace.name(), "replicas": 2 });
    let change = async move || patch_deployment(&namespace, json!({ "replicas": 9 })).await;
    approved_before_a_change(scenario, request, change, is_last_moment).await;
}

async fn restart_approved(is_last_moment: bool) {
    let scenario = Scenario::new(ActionKind::RestartK8s, "approved_restart").await;
    let namespace = scenario.namespace.clone();
    let request = scenario.request("r1");
    let change = async move || patch_deployment(&namespace, json!({ "replicas": 2 })).await;
    approved_before_a_change(scenario, request, change, is_last_moment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_scaling_ends_when_the_replicas_change() {
    scaling_approved(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_scaling_is_no_consent_to_one_from_other_replicas() {
    scaling_approved(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_restart_ends_when_the_generation_changes() {
    restart_approved(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_restart_is_no_consent_to_one_of_another_generation() {
    restart_approved(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_drain_is_no_consent_to_evict_more_pods() {
    let scenario = Scenario::new(ActionKind::Drain, "approved_drain").await;
    let (namespace, request) = (scenario.namespace.clone(), scenario.request("r1"));
    let change = async move || namespace.replica_set_on_own_node("more", 2, json!({})).await;
    approved_before_a_change(scenario, request, change, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_shows_no_other_version_than_the_first_answer() {
    for_each_form(async |kind| {
        let scenario = Scenario::new(kind, "version").await;
        let namespace = &scenario.namespace;
        let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
        // The effect is made, and its record is not.
        let unrecorded = Proxy::start(namespace, |call| {
            match call.method == Method::PATCH && call.writes("events") {
                true => ProxyBehavior::Respond(403, "no"),
                false => ProxyBehavior::Forward,
            }
        })
        .await;
        let first = Run::through(&unrecorded, &policy).send(&request).await.answer();
        assert_eq!(first["outcome"], "applied", "{first}");
        let honest = transparent(namespace).await;
        let second = Run::through(&honest, &policy).resend(&request).await;
        let [before, now] = [&first, &second].map(|it| &it["target"]["resourceVersion"]);
        let is_unknown = second["code"] == "outcome_unknown";
        assert!(is_unknown || now.is_null() || now == before, "{first} {second}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_conflicts_again_and_again_is_written_with_pauses() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "conflicts").await;
    let namespace = &scenario.namespace;
    let (policy, request) = (namespace.policy(LIMITS), scenario.request("r1"));
    let writes = Arc::new(AtomicUsize::new(0));
    let counted = writes.clone();
    let proxy = Proxy::start(namespace, move |call| {
        if call.method != Method::PATCH || !call.writes("events") {
            return ProxyBehavior::Forward;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        ProxyBehavior::Respond(409, "the object has been modified")
    })
    .await;
    let done = Run::through(&proxy, &policy).send(&request).await;
    assert_eq!(done.answer()["outcome"], "applied", "{done:?}");
    let writes = writes.load(Ordering::SeqCst);
    assert!((2..40).contains(&writes), "{writes} in {:?}", done.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_stopped_is_resumed_by_the_next_attempt() {
    const PODS: i32 = 24;
    let namespace = shared().namespace("stopped_drain").await;
    namespace.own_node(false).await;
    namespace.replica_set_on_own_node("web", PODS, json!({})).await;
    let request = json!({
        "type": "drain", "simulate": false, "id": format!("r1.{}", namespace.name()),
        "parameters": { "node": namespace.name() },
    });
    let (seen, first) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (notify, count) = (seen.clone(), first.clone());
    let proxy = Proxy::start(&namespace, move |call| {
        if !call.path.ends_with("/eviction") {
            return ProxyBehavior::Forward;
        }
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            notify.notify_one();
        }
        ProxyBehavior::Delay(Duration::from_millis(400))
    })
    .await;
    let program = Program::with_kubeconfig(&proxy.kubeconfig).input(request.to_string());
    let running = program.start();
    seen.notified().await;
    running.signal("TERM");
    let stopped = spawn_blocking(move || running.wait()).await.expect("it ran").answer();
    assert_eq!(stopped["rollout"]["state"], "interrupted", "{stopped}");
    let evicted = proxy.accepted_effects().iter().filter(|call| is_deletion(call)).count();
    assert!((1..PODS as usize).contains(&evicted), "{evicted}");
    let honest = transparent(&namespace).await;
    let policy = namespace.policy(LIMITS);
    let answer = Run::through(&honest, &policy).within(20).resend(&request).await;
    assert_eq!(answer["outcome"], "applied", "{answer}");
    let rest = honest.accepted_effects().iter().filter(|call| is_deletion(call)).count();
    assert_eq!(evicted + rest, PODS as usize, "{answer}");
}
