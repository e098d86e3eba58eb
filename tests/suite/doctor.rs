//! `doctor` on a real API server, and `explain`.

use action_executor::{
    actions::ActionKind, config::reload::ConfigFile, manifests::rbac, policy::Policy,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Namespace, eventually, shared},
    limits::set_kill_switch,
    notifications,
    program::{Finished, Program, scratch},
    receipts::Keys,
};

const POLICY: &str = "actions: {allow: [restart_k8s, cordon]}";

fn examine(namespace: &Namespace, kubeconfig: &std::path::Path) -> Finished {
    Program::with_kubeconfig(kubeconfig)
        .under(&namespace.policy(POLICY))
        .args(["doctor", "-n", namespace.name(), "-o", "json"])
        .run()
}

/// The state of this check, and its detail.
fn finding(done: &Finished, check: &str) -> (String, String) {
    let answer: Value = serde_json::from_str(&done.stdout).expect("is JSON");
    let findings = answer["findings"].as_array().cloned().unwrap_or_default();
    let found = findings.iter().find(|it| it["check"] == check);
    let found = found.unwrap_or_else(|| panic!("{check}: {done:?}"));
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

#[tokio::test]
async fn an_account_with_all_permissions_is_well_and_a_missing_one_is_named() {
    let namespace = shared().namespace("doctor").await;
    let policy = Policy::parse(POLICY, "p").expect("is a policy");
    let kinds = [ActionKind::RestartK8s];
    let rules = rbac::rules(&kinds, &policy);
    let mut rules: Vec<Value> = rules.iter().map(|rule| json!(rule)).collect();
    let of_state = rbac::state_rules(&policy);
    rules.extend(of_state.as_array().expect("are rules").iter().cloned());
    let enough = namespace.account("enough", json!(rules)).await;
    let done = examine(&namespace, &enough);
    for (check, detail) in [
        ("policy", "2 actions"),
        ("cluster", "Kubernetes v1."),
        ("identity", "system:serviceaccount:"),
        ("clock", " s from that of the API server"),
        ("kill switch", "off (Lease "),
        ("records", "all permissions are granted"),
        ("budget", "all permissions are granted"),
        ("restart_k8s", "all permissions are granted"),
    ] {
        let (state, found) = finding(&done, check);
        assert_eq!(state, "ok", "{check}: {done:?}");
        assert!(found.contains(detail), "{check}: {found}");
    }
    // Its permissions are in the namespace, and a node is not.
    let (state, detail) = finding(&done, "cordon");
    assert_eq!((done.status, state.as_str()), (78, "failed"), "{done:?}");
    assert!(detail.contains("patch nodes in the cluster"), "{detail}");

    let fewer: Vec<_> = rules.iter().filter(|rule| rule["resources"][0] != "deployments").collect();
    let done = examine(&namespace, &namespace.account("fewer", json!(fewer)).await);
    let (state, detail) = finding(&done, "restart_k8s");
    assert_eq!(state, "failed", "{done:?}");
    assert!(detail.contains("patch deployments.apps in "), "{detail}");

    // A Role for the Lease of another name is none for this one.
    let mut other = rules.clone();
    for rule in other.iter_mut().filter(|rule| rule["resourceNames"].is_array()) {
        rule["resourceNames"] = json!(["another"]);
    }
    let done = examine(&namespace, &namespace.account("other", json!(other)).await);
    let (state, detail) = finding(&done, "budget");
    assert_eq!(state, "failed", "{done:?}");
    assert!(detail.contains("patch leases.coordination.k8s.io action-executor in "), "{detail}");
}

#[tokio::test]
async fn the_account_needs_no_action_permissions_with_impersonation() {
    let namespace = shared().namespace("doctor_impersonates").await;
    let policy = Policy::parse(POLICY, "p").expect("is a policy");
    let mut rules = json!(rbac::rules(&[], &policy));
    let of_state = rbac::state_rules(&policy);
    rules
        .as_array_mut()
        .expect("are rules")
        .extend(of_state.as_array().cloned().expect("are rules"));
    let account = namespace.account("server", rules).await;
    let examine = || {
        Program::with_kubeconfig(&account)
            .under(&namespace.policy(POLICY))
            .env("ACTION_EXECUTOR_IMPERSONATE", "callers")
            .env("ACTION_EXECUTOR_IMPERSONATE_GROUPS", "sre")
            .args(["doctor", "-n", namespace.name(), "-o", "json"])
            .run()
    };
    let done = examine();
    let (state, detail) = finding(&done, "impersonation");
    assert_eq!((done.status, state.as_str()), (78, "failed"), "{done:?}");
    assert!(detail.contains("impersonate groups sre in the cluster"), "{detail}");
    assert!(!done.stdout.contains("restart_k8s"), "{done:?}");
    let impersonate = json!([
        { "apiGroups": [""], "resources": ["groups"], "resourceNames": ["sre"], "verbs": ["impersonate"] },
        { "apiGroups": ["authentication.k8s.io"], "resources": ["uids"], "verbs": ["impersonate"] },
    ]);
    namespace.grant_everywhere("server", impersonate).await;
    eventually("the permissions are granted", async || (examine().status == 0).then_some(())).await;
}

#[tokio::test]
async fn a_kill_switch_that_is_on_is_a_warning() {
    let namespace = shared().namespace("doctor_stopped").await;
    set_kill_switch(&namespace, Some("maintenance")).await;
    let done = examine(&namespace, namespace.kubeconfig());
    let (state, detail) = finding(&done, "kill switch");
    assert_eq!((done.status, state.as_str()), (0, "warning"), "{done:?}");
    assert!(detail.contains("maintenance"), "{detail}");
}

#[test]
fn missing_configuration_ends_the_checks_with_a_hint() {
    let done = Program::offline().args(["doctor"]).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stdout.contains("FAILED   cluster"), "{done:?}");
    assert!(done.stdout.contains("-> set KUBECONFIG"), "{done:?}");
    let done = Program::offline()
        .env("ACTION_EXECUTOR_RECEIPT_KEY", &Keys::shared().public)
        .env("ACTION_EXECUTOR_RECEIPTS", scratch("receipts"))
        .env("ACTION_EXECUTOR_SINK", "https://events.example.com")
        .env("ACTION_EXECUTOR_SINK_SECRET", notifications::secret())
        .args(["doctor"])
        .run();
    assert!(done.stdout.contains("FAILED   receipts"), "{done:?}");
    assert!(done.stdout.contains("ok       sink"), "{done:?}");
    assert!(done.stdout.contains("-> make one with `openssl"), "{done:?}");
    let policy = scratch("doctor.policy.yaml");
    std::fs::write(&policy, "actions: {allow: [fly]}").expect("is written");
    let done = Program::offline().under(&policy).args(["doctor"]).run();
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.stdout.starts_with("FAILED   policy"), "{done:?}");
}

#[test]
fn an_error_and_an_exit_status_are_explained() {
    let run = |what: &str| Program::offline().args(["explain", what]).run();
    let code = run("rate_limited");
    assert_eq!(code.status, 0, "{code:?}");
    assert!(code.stdout.contains("What to do: resend after `retry_after_seconds`"), "{code:?}");
    let status = run("77");
    assert!(status.stdout.contains("  policy_denied"), "{status:?}");
    let unknown = run("nonsense");
    assert_eq!(unknown.status, 64, "{unknown:?}");
}
