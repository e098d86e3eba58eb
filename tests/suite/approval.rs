//! Approvals: an action is pending, a person approves it once, and the executor cannot approve its own request.

use std::{env, path::Path, process::Command};

use action_executor::{
    actions::ActionKind,
    config::reload::ConfigFile,
    manifests::rbac,
    policy::{Policy, approval, budget},
};
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch};
use serde_json::{Value, json};

use crate::{
    cluster::shared,
    program::{Finished, Program, Server},
    scenario::{Scenario, for_each_action, without_replayed},
};

pub const REQUIRE_APPROVAL: &str = "cooldown_seconds: 0\nactions: {require_approval: ['*']}";

fn send(scenario: &Scenario, request: &Value) -> Finished {
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let program = Program::with_kubeconfig(scenario.namespace.kubeconfig()).under(&policy);
    program.input(request.to_string()).run()
}

/// Runs the command of an answer verbatim, with this kubeconfig.
pub fn approve(answer: &Value, kubeconfig: &Path) -> bool {
    let command = answer["approval"]["command"].as_str().expect("there is a command");
    let path = env::var("PATH").unwrap_or_default();
    let done = Command::new("sh")
        .args(["-c", command])
        .env("PATH", format!("{}:{path}", shared().programs().display()))
        .env("USER", "alice")
        .env("KUBECONFIG", kubeconfig)
        .output()
        .expect("sh runs");
    done.status.success()
}

#[test]
fn an_approved_action_is_applied_once() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "approved").await;
        let request = scenario.request("r1");
        let asked = send(&scenario, &request);
        assert_eq!(asked.status, 75, "{asked:?}");
        let pending = asked.answer();
        assert_eq!(pending["outcome"], "pending_approval");
        assert!(pending["changes"].as_array().is_some_and(|it| !it.is_empty()), "{pending}");
        let again = send(&scenario, &request).answer();
        assert_eq!(again["approval"], pending["approval"]);
        assert_eq!(scenario.effects().await, 0);

        let rules = json!(approval::APPROVER);
        let approver = scenario.account("approver", rules).await;
        assert!(approve(&pending, &approver));
        let done = send(&scenario, &request);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(done.answer()["outcome"], "applied");
        let replayed = send(&scenario, &request).answer();
        assert_eq!(without_replayed(replayed), without_replayed(done.answer()));
        assert_eq!(scenario.effects().await, 1);
        // An approval belongs to one request.
        let other = ActionKind::RestartK8s == kind;
        if other {
            assert_eq!(send(&scenario, &scenario.request("r2")).status, 75);
        }
    });
}

#[tokio::test]
async fn a_pending_approval_is_202_over_http() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "accepted").await;
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let program = Program::with_kubeconfig(scenario.namespace.kubeconfig()).under(&policy);
    let reply = Server::start(program).execute(scenario.request("r1").to_string().as_bytes());
    assert_eq!(reply.status, 202);
    assert_eq!(reply.json()["outcome"], "pending_approval");
}

#[tokio::test]
async fn the_executor_cannot_approve_with_its_own_permissions() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "self").await;
    let policy = Policy::parse(REQUIRE_APPROVAL, "p").expect("is a policy");
    let rules = json!(rbac::rules(&ActionKind::ALL, &policy));
    let executor = scenario.namespace.account("executor", rules).await;
    let pending = send(&scenario, &scenario.request("r1")).answer();
    assert!(!approve(&pending, &executor));
    assert_eq!(send(&scenario, &scenario.request("r1")).status, 75);
}

#[tokio::test]
async fn a_missing_permission_to_read_approvals_is_reported() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "blind").await;
    let policy = Policy::parse(REQUIRE_APPROVAL, "p").expect("is a policy");
    let rules = rbac::rules(&ActionKind::ALL, &policy);
    let fewer: Vec<_> = rules.iter().filter(|rule| **rule != approval::RULE).collect();
    assert_eq!(fewer.len() + 1, rules.len());
    let fewer: Vec<_> = fewer.into_iter().chain([&budget::RULE]).collect();
    let blind = scenario.namespace.account("blind", json!(fewer)).await;
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let request = scenario.request("r1").to_string();
    let done = Program::with_kubeconfig(&blind).under(&policy).input(request).run();
    assert_eq!(done.status, 77, "{done:?}");
    assert!(done.stdout.contains("may not get configmaps"), "{done:?}");
}

#[tokio::test]
async fn an_approval_ends_when_its_object_changes() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "changed").await;
    let request = scenario.request("r1");
    let before = send(&scenario, &request).answer();
    assert!(approve(&before, scenario.namespace.kubeconfig()));
    let deployments = scenario.namespace.api::<k8s_openapi::api::apps::v1::Deployment>();
    let scaled = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
    deployments.patch("web", &Default::default(), &scaled).await.expect("is scaled");
    let after = send(&scenario, &request).answer();
    assert_eq!(after["outcome"], "pending_approval");
    assert_ne!(after["approval"]["digest"], before["approval"]["digest"]);
}

#[tokio::test]
async fn an_approval_is_valid_until_it_expires() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "expired").await;
    let request = scenario.request("r1");
    let before = send(&scenario, &request).answer();
    assert!(approve(&before, scenario.namespace.kubeconfig()));
    let events = scenario.namespace.api::<Event>();
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=action-executor");
    let record = events.list(&ours).await.expect("are listed").items.remove(0);
    let over = json!({ "metadata": { "annotations": {
        "action-executor.dev/expires-at": "2026-01-31T12:00:00.000Z",
    }}});
    let name = record.metadata.name.expect("has one");
    events.patch(&name, &Default::default(), &Patch::Merge(over)).await.expect("is patched");
    let after = send(&scenario, &request).answer();
    assert_eq!(after["outcome"], "pending_approval");
    assert_ne!(after["approval"]["digest"], before["approval"]["digest"]);
    assert_eq!(scenario.effects().await, 0);
}
