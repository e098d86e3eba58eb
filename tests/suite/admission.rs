//! The admission policies: the API server itself denies what the policy denies, even if the executor does not.
//!
//! The executor runs under a policy that denies nothing, as if its own checks had failed. The admission policies
//! are generated from another policy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use action_executor::actions::ActionKind;
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    serde::Deserialize,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, task::block_in_place};

use crate::{
    cluster::{eventually, shared},
    program::{Finished, Program, scratch},
    scenario::{Scenario, for_each_action, for_each_form, is_creation},
    webhook::{Webhook, WebhookBehavior},
};

/// Far wider rules than the executor's own.
fn wide_permissions() -> Value {
    let groups = [
        "",
        "apps",
        "autoscaling",
        "batch",
        "policy",
        "coordination.k8s.io",
        "argoproj.io",
        "kustomize.toolkit.fluxcd.io",
        "keda.sh",
    ];
    json!([{ "apiGroups": groups, "resources": ["*"], "verbs": ["*"] }])
}

/// Whether kubectl succeeds with these arguments, as the administrator, and what it prints.
pub fn kubectl(args: &[&str]) -> (bool, String) {
    let done = Command::new(shared().programs().join("kubectl"))
        .args(args)
        .env("KUBECONFIG", shared().kubeconfig())
        .output()
        .expect("kubectl runs");
    let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    (done.status.success(), output)
}

/// Admission policies in the cluster, for one account. They are deleted with this value, because the API server
/// evaluates every policy of the cluster at each write, also at those of other tests.
struct Installed {
    /// The account's.
    kubeconfig: PathBuf,
    /// The policies and bindings: each with the administrator's access to its kind, and its name.
    objects: Vec<(Api<DynamicObject>, String)>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        let delete = async {
            for (api, name) in &self.objects {
                let _ = api.delete(name, &DeleteParams::default()).await;
            }
        };
        block_in_place(|| Handle::current().block_on(delete));
    }
}

/// The admission policies of this policy file for an account, as the program prints them.
fn print_policies(account: &str, policy: &Path) -> String {
    let policy = policy.display().to_string();
    let args = ["policy", "admission", "--service-account", account, &policy];
    let printed = Program::offline().args(args).run();
    assert_eq!(printed.status, 0, "{printed:?}");
    printed.stdout
}

/// Generates the admission policies of this policy for an account of the namespace, and applies them.
async fn install_policies(scenario: &Scenario, policy: &str) -> Installed {
    let namespace = &scenario.namespace;
    let kubeconfig = scenario.account("executor", wide_permissions()).await;
    let account = format!("{}:executor", namespace.name());
    let manifests = print_policies(&account, &namespace.policy(policy));
    // Strict validation: a field that the API server does not know is an error.
    let params = PatchParams::apply("tests").validation_strict();
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(&manifests) {
        let object = DynamicObject::deserialize(document).expect("is an object");
        let resource = match object.types.as_ref().expect("is of a kind").kind.as_str() {
            "ValidatingAdmissionPolicy" => ApiResource::erase::<ValidatingAdmissionPolicy>(&()),
            "ValidatingAdmissionPolicyBinding" => {
                ApiResource::erase::<ValidatingAdmissionPolicyBinding>(&())
            }
            other => panic!("{other} is no part of an admission policy"),
        };
        let (api, name) = (namespace.global_objects(&resource), object.name_any());
        api.patch(&name, &params, &Patch::Apply(&object)).await.expect("is applied");
        objects.push((api, name));
    }
    Installed { kubeconfig, objects }
}

/// Sends the request under a policy that denies nothing.
fn send(scenario: &Scenario, kubeconfig: &Path, request: &Value) -> Finished {
    let policy = scenario.namespace.policy("cooldown_seconds: 0");
    Program::with_kubeconfig(kubeconfig).under(&policy).input(request.to_string()).run()
}

/// Waits until the executor's account may not even annotate the target; returns the message.
async fn refused_to_annotate(scenario: &Scenario, installed: &Installed) -> String {
    let access = scenario.namespace.with_access(&installed.kubeconfig).await;
    eventually("it holds", async || {
        let probe = json!({ "metadata": { "annotations": { "probe": "1" } } });
        scenario.patch(&access, &probe).await.err().map(|error| error.to_string())
    })
    .await
}

/// Waits until the API server denies the request; returns the message.
async fn denied(scenario: &Scenario, kubeconfig: &Path) -> String {
    eventually("the API server denies it", async || {
        let mut request = scenario.request("r1");
        // A dry run first, so that nothing changes while not every API server has the policy.
        request["simulate"] = true.into();
        let done = send(scenario, kubeconfig, &request);
        (done.status == 69).then(|| done.answer()["detail"].as_str().expect("has one").to_owned())
    })
    .await
}

/// Whether the admission request of this action contains the target's labels. An eviction and a scale are
/// subresources, and a Job that is created is not the CronJob or Job that it comes from.
fn shows_labels(kind: ActionKind) -> bool {
    !matches!(kind, ActionKind::EvictPod | ActionKind::Scale) && !is_creation(kind)
}

#[test]
fn admission_denies_what_each_policy_rule_denies() {
    for_each_form(async |kind| {
        for (rule, policy) in [
            ("PLACES.deny", "PLACES: {deny: ['admission-*']}"),
            ("PLACES.allow", "PLACES: {allow: [elsewhere]}\nsimulation: {limited: true}"),
            ("actions.allow", "actions: {allow: []}\nsimulation: {limited: true}"),
            ("targets.opt_in", "targets: {opt_in: [sre=yes]}\nsimulation: {limited: true}"),
        ] {
            let scenario = Scenario::new(kind, "admission").await;
            let here = |text: &str| text.replace("PLACES", scenario.policy_section());
            let (rule, policy) = (&here(rule), &here(policy));
            let installed = install_policies(&scenario, policy).await;
            let request = scenario.request("r1");
            if rule.starts_with("targets.") && !shows_labels(kind) {
                // The API server cannot evaluate this rule for this action, so it allows what the executor's
                // own check missed, once the rules that it can evaluate are active.
                let refused = refused_to_annotate(&scenario, &installed).await;
                assert!(refused.contains("denied by "), "{refused}");
                let done = send(&scenario, &installed.kubeconfig, &request);
                assert_eq!(done.status, 0, "{kind:?} {rule}: {done:?}");
                continue;
            }
            let detail = denied(&scenario, &installed.kubeconfig).await;
            assert!(detail.contains(&format!("denied by {rule}")), "{kind:?} {rule}: {detail}");
            let done = send(&scenario, &installed.kubeconfig, &request);
            assert_eq!(done.answer()["code"], "rejected_by_cluster", "{kind:?} {rule}: {done:?}");
            assert_eq!(scenario.effects().await, 0, "{kind:?} {rule}");
            // The policy binds the executor's account alone.
            let own = send(&scenario, scenario.namespace.kubeconfig(), &scenario.request("r2"));
            assert_eq!(own.status, 0, "{own:?}");
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_denies_writes_to_a_protected_target() {
    let scenario = Scenario::new(ActionKind::RestartPod, "protected").await;
    let policy = "targets: {protected: [app=web]}\nsimulation: {limited: true}";
    let installed = install_policies(&scenario, policy).await;
    let detail = denied(&scenario, &installed.kubeconfig).await;
    assert!(detail.contains("denied by targets.protected"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_enforces_the_replica_bounds() {
    let scenario = Scenario::new(ActionKind::Scale, "bounds").await;
    // One replica exists, and the request adds one.
    let policy = "replicas: {min: 1, max: 1}\nsimulation: {limited: true}";
    let installed = install_policies(&scenario, policy).await;
    let detail = denied(&scenario, &installed.kubeconfig).await;
    assert!(detail.contains("denied by replicas"), "{detail}");
    let mut fewer = scenario.request("r2");
    fewer["parameters"]["by"] = json!(-1);
    let done = send(&scenario, &installed.kubeconfig, &fewer);
    assert!(done.stdout.contains("denied by replicas"), "{done:?}");
    assert_eq!(scenario.effects().await, 0);
}

#[test]
fn admission_under_read_only_allows_dry_runs_alone() {
    for_each_action(async |kind| {
        let scenario = Scenario::new(kind, "read_only").await;
        let installed = install_policies(&scenario, "read_only: true").await;
        let refused = refused_to_annotate(&scenario, &installed).await;
        assert!(refused.contains("denied by read_only"), "{refused}");
        let mut request = scenario.request("r1");
        let done = send(&scenario, &installed.kubeconfig, &request);
        assert_eq!(done.answer()["code"], "rejected_by_cluster", "{done:?}");
        request["simulate"] = true.into();
        assert_eq!(send(&scenario, &installed.kubeconfig, &request).status, 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_enforces_the_kill_switch() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "vap_switch").await;
    let name = scenario.namespace.name();
    let installed = install_policies(&scenario, "version: 1").await;
    assert_eq!(send(&scenario, &installed.kubeconfig, &scenario.request("r1")).status, 0);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": "action-executor", "namespace": name,
            "annotations": { "action-executor.dev/stop": "incident 7" },
        },
    });
    let path = scratch("lease.json");
    fs::write(&path, lease.to_string()).expect("is written");
    let (made, output) = kubectl(&["apply", "-f", &path.display().to_string()]);
    assert!(made, "{output}");
    let user = format!("--as=system:serviceaccount:{name}:executor");
    let refused = eventually("it holds", async || {
        let probe = ["-n", name, "annotate", "deployment", "web", "probe=1", "--overwrite", &user];
        let (done, output) = kubectl(&probe);
        (!done).then_some(output)
    })
    .await;
    assert!(refused.contains("denied by the kill switch"), "{refused}");
    // A stopped executor cannot lift the switch itself. Changes of the reason come first, until the policy is
    // active; each has another reason, since an equal one is no change.
    let tries = std::sync::atomic::AtomicU32::new(8);
    eventually("the executor cannot change the switch", async || {
        let number = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let reword = format!("action-executor.dev/stop=incident {number}");
        let args =
            ["-n", name, "annotate", "lease", "action-executor", &reword, "--overwrite", &user];
        (!kubectl(&args).0).then_some(())
    })
    .await;
    let release = ["-n", name, "annotate", "lease", "action-executor", "action-executor.dev/stop-"];
    let vanish = ["-n", name, "delete", "lease", "action-executor"];
    for attempt in [&release[..], &vanish] {
        let (done, output) = kubectl(&[attempt, &[user.as_str()]].concat());
        assert!(!done && output.contains("denied by the kill switch"), "{attempt:?}: {output}");
    }
    let (released, output) = kubectl(&release);
    assert!(released, "{output}");
    eventually("it acts again, and keeps its budget on the Lease", async || {
        (send(&scenario, &installed.kubeconfig, &scenario.request("r2")).status == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_denies_other_writes_despite_wide_permissions() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "nothing_else").await;
    let name = scenario.namespace.name();
    let _installed = install_policies(&scenario, "actions: {allow: [restart_k8s]}").await;
    let user = format!("--as=system:serviceaccount:{name}:executor");
    let attempt = |args: &[&str]| kubectl(&[&["-n", name, &user], args].concat());
    let refused = eventually("it holds", async || {
        let (done, output) = attempt(&["create", "configmap", "approval", "--dry-run=server"]);
        (!done).then_some(output)
    })
    .await;
    assert!(refused.contains("denied by actions.allow"), "{refused}");
    for args in [
        &["delete", "deployment", "web"][..],
        &["create", "deployment", "other", "--image=x"],
        &["create", "secret", "generic", "s"],
        &["scale", "deployment", "web", "--replicas=0"],
    ] {
        let (done, output) = attempt(args);
        assert!(!done && output.contains("denied by actions.allow"), "{args:?}: {output}");
    }
}

#[test]
fn kubectl_applies_the_printed_policies() {
    let policy = scratch("policy.yaml");
    let rules = "namespaces: {deny: [kube-*]}\ntargets: {protected: [app=db]}\nreplicas: {max: 9}";
    fs::write(&policy, rules).expect("is written");
    let manifests = scratch("admission.yaml");
    fs::write(&manifests, print_policies("default:executor", &policy)).expect("is written");
    let manifests = manifests.display().to_string();
    let args = ["apply", "--dry-run=server", "--validate=strict", "-f", &manifests];
    let (applied, output) = kubectl(&args);
    for kind in ["validatingadmissionpolicy.", "validatingadmissionpolicybinding."] {
        assert!(applied && output.contains(kind), "{kind}: {output}");
    }
}

#[tokio::test]
async fn the_printed_roles_are_accepted_and_sufficient() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "roles").await;
    let name = scenario.namespace.name();
    let kubeconfig = scenario.namespace.account("executor", json!([])).await;
    let policy = scenario.namespace.policy("cooldown_seconds: 0");
    let account = format!("{name}:executor");
    let printed = Program::offline()
        .args(["rbac", "--service-account", &account, &policy.display().to_string()])
        .run();
    let manifests = scratch("rbac.yaml");
    fs::write(&manifests, &printed.stdout).expect("is written");
    let manifests = manifests.display().to_string();
    let (applied, output) = kubectl(&["apply", "--validate=strict", "-f", &manifests]);
    assert!(applied, "{output}");
    eventually("the Roles hold", async || {
        let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
        let done = program.input(scenario.request("r1").to_string()).run();
        (done.status == 0).then_some(())
    })
    .await;
    assert_eq!(scenario.effects().await, 1);
}

/// All kinds that an action changes, and none of its own.
const TARGETS: [&str; 18] = [
    "deployments",
    "horizontalpodautoscalers",
    "statefulsets",
    "daemonsets",
    "replicasets",
    "pods",
    "nodes",
    "jobs",
    "cronjobs",
    "persistentvolumeclaims",
    "*/scale",
    "pods/eviction",
    "pods/resize",
    "kustomizations",
    "applications",
    "scaledobjects",
    "rollouts",
    "rollouts/status",
];

/// What a webhook may answer, the code that the answer has, and a part of its detail.
fn behaviors(webhook: &str) -> Vec<(WebhookBehavior, &'static str, String)> {
    let denied = [400, 401, 403, 404, 409, 422, 429, 500, 503].map(|code| {
        // The authorizer's words.
        let words = "User \"x\" cannot patch resource \"y\"; ask the platform team";
        let detail = format!("admission webhook \"{webhook}\" denied the request: {words}");
        (WebhookBehavior::Deny(code, words), "rejected_by_cluster", detail)
    });
    let failed = [WebhookBehavior::Fail(500), WebhookBehavior::Fail(404), WebhookBehavior::Hang]
        .map(|behavior| {
            let detail = format!("its admission webhook '{webhook}' failed");
            (behavior, "cluster_unavailable", detail)
        });
    denied.into_iter().chain(failed).collect()
}

#[test]
fn a_webhooks_denial_and_its_failure_are_told_at_once_whatever_its_status() {
    for_each_form(async |kind| {
        let scenario = Scenario::new(kind, "webhook").await;
        let kubeconfig = scenario.account("executor", wide_permissions()).await;
        let webhook = Webhook::start(&scenario.namespace, "executor", &TARGETS).await;
        for (number, (behavior, code, says)) in behaviors(webhook.name()).into_iter().enumerate() {
            webhook.set(behavior);
            for simulate in [true, false] {
                let mut request = scenario.request(&format!("r{number}"));
                request["simulate"] = simulate.into();
                let done = send(&scenario, &kubeconfig, &request);
                let place = format!("{} {behavior:?} simulate {simulate}: {done:?}", kind.name());
                let answer = done.answer();
                let detail = answer["detail"].as_str().or(answer["result"].as_str());
                assert_eq!(answer["code"], code, "{place}");
                assert!(detail.expect("has one").contains(&says), "{place}");
                assert!(done.took < Duration::from_secs(6), "{place}");
            }
        }
        assert_eq!(scenario.effects().await, 0);
        webhook.set(WebhookBehavior::Allow);
        let done = send(&scenario, &kubeconfig, &scenario.request("allowed"));
        assert_eq!(done.status, 0, "{done:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_denies_a_record_or_the_budget_is_named_and_nothing_is_done() {
    for resource in ["events", "leases"] {
        let scenario = Scenario::new(ActionKind::RestartK8s, "webhook_own").await;
        let kubeconfig = scenario.account("executor", wide_permissions()).await;
        let webhook = Webhook::start(&scenario.namespace, "executor", &[resource]).await;
        // Unlike `send`, with a budget to charge.
        let policy = scenario.namespace.policy("cooldown_seconds: 1");
        let send = |request: Value| {
            let program = Program::with_kubeconfig(&kubeconfig).under(&policy);
            program.input(request.to_string()).run()
        };
        for (number, (behavior, code, says)) in behaviors(webhook.name()).into_iter().enumerate() {
            webhook.set(behavior);
            let done = send(scenario.request(&format!("r{number}")));
            assert_eq!(done.answer()["code"], code, "{resource} {behavior:?}: {done:?}");
            assert!(done.answer()["detail"].as_str().expect("has one").contains(&says), "{done:?}");
            assert!(done.took < Duration::from_secs(6), "{resource} {behavior:?}: {done:?}");
        }
        assert_eq!(scenario.effects().await, 0);
    }
}

#[test]
fn an_object_without_room_for_the_mark_is_refused_before_anything_is_sent() {
    for_each_action(async |kind| {
        if kind == ActionKind::Drain {
            // The cordon is not its only effect.
            return;
        }
        let scenario = Scenario::new(kind, "annotations").await;
        let annotations = scenario.object().await.metadata.annotations.unwrap_or_default();
        let used: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        // Controllers write annotations too.
        let free = 60;
        let filler = 256 * 1024 - free - "example.com/filler".len() - used;
        let filler = json!({ "example.com/filler": "x".repeat(filler) });
        let patch = json!({ "metadata": { "annotations": filler } });
        scenario.patch(&scenario.namespace, &patch).await.expect("is patched");
        // An id as long as it may be.
        let id = "r".repeat(128 - scenario.namespace.name().len() - 1);
        let has_room = [
            ActionKind::Scale,
            ActionKind::ResizePod,
            ActionKind::PromoteArgoRollout,
            ActionKind::AbortArgoRollout,
            ActionKind::RetryArgoRollout,
            ActionKind::RestartPod,
            ActionKind::EvictPod,
            ActionKind::DeleteStuckPod,
            ActionKind::RunCronjob,
            ActionKind::DeleteJob,
            ActionKind::CleanPods,
            // It restores the annotations of the revision, and so removes the long one.
            ActionKind::Rollback,
        ];
        for simulate in [true, false] {
            let mut request = scenario.request(&id);
            request["simulate"] = simulate.into();
            let done = send(&scenario, scenario.namespace.kubeconfig(), &request);
            if has_room.contains(&kind) {
                let detail = done.answer()["detail"].to_string();
                assert!(!detail.contains("annotations"), "{kind:?}: {done:?}");
                continue;
            }
            let answer = done.answer();
            assert_eq!(answer["code"], "rejected_by_cluster", "{kind:?}: {done:?}");
            let detail = answer["detail"].as_str().expect("has one");
            assert!(
                detail.contains("the mark of this request does not fit into the annotations of"),
                "{detail}"
            );
            assert!(answer["hint"].to_string().contains("example.com/filler"), "{answer}");
        }
    });
}
