//! Kubeconfigs, service accounts and RBAC: which credentials the executor uses, and which rules each action needs.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use action_executor::{
    actions::ActionKind,
    config::reload::ConfigFile,
    manifests::rbac,
    policy::{Policy, budget},
};
use serde_json::{Value, json};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, shared},
    program::{Finished, Program, scratch},
    scenario::{for_each_action, is_on_nodes, parameters, prepare, prepare_broken, undo},
};

/// A real request for each action, with `wait`.
async fn request(kind: ActionKind, namespace: &Namespace) -> String {
    let mut parameters = parameters(kind, namespace).await;
    // An action's rules include those that its automatic rollback needs.
    let schema = kind.parameters_schema(&mut schemars::SchemaGenerator::default());
    if schema.pointer("/properties/rollback_on_failure").is_some() {
        parameters["rollback_on_failure"] = true.into();
    }
    json!({
        "type": kind.name(), "parameters": parameters,
        "simulate": false, "wait": true, "timeout_seconds": 20,
    })
    .to_string()
}

/// A policy that uses every feature that needs a rule.
const COUNTED: &str = "cooldown_seconds: 0";

/// The scope of a rule.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    /// In the test's namespace.
    Here,
    /// In the namespace that holds the records of cluster-scoped objects.
    Default,
    /// In the whole cluster.
    Everywhere,
}

/// All rules that this action needs under [`COUNTED`], as the program lists them.
fn rules(kind: ActionKind) -> Vec<(Scope, Value)> {
    let policy = Policy::parse(COUNTED, "counted").expect("is a policy");
    let target = if is_on_nodes(kind) { Scope::Default } else { Scope::Here };
    let in_namespace = rbac::rules(&[kind], &policy).into_iter().map(|rule| (target, json!(rule)));
    let in_cluster = rbac::cluster_rules(&[kind]);
    let in_cluster = in_cluster.into_iter().map(|rule| (Scope::Everywhere, json!(rule)));
    in_namespace.chain(in_cluster).chain([(Scope::Here, json!(budget::RULE))]).collect()
}

/// The kubeconfig of a new service account with these rules.
async fn account(namespace: &Namespace, name: &str, rules: &[(Scope, Value)]) -> PathBuf {
    let of = |place: Scope| {
        let these = rules.iter().filter(|(it, _)| *it == place).map(|(_, rule)| rule);
        json!(these.collect::<Vec<_>>())
    };
    namespace.grant_in_default(name, of(Scope::Default)).await;
    namespace.grant_everywhere(name, of(Scope::Everywhere)).await;
    namespace.account(name, of(Scope::Here)).await
}

/// Rules that lack one verb.
struct ReducedRules {
    verb: String,
    resource: String,
    rules: Vec<(Scope, Value)>,
}

/// The rules without one verb, for every verb in turn, and which one is missing.
fn without_one_verb(rules: &[(Scope, Value)]) -> Vec<ReducedRules> {
    let mut ways = Vec::new();
    for (index, (_, rule)) in rules.iter().enumerate() {
        // Without `watch` a wait polls, as another test shows.
        for verb in rule["verbs"].as_array().expect("are verbs").iter().filter(|it| *it != "watch")
        {
            let mut fewer = rules.to_vec();
            let verbs = fewer[index].1["verbs"].as_array_mut().expect("are verbs");
            verbs.retain(|it| it != verb);
            if verbs.is_empty() {
                fewer.remove(index);
            }
            let text = |value: &Value| value.as_str().expect("is text").to_owned();
            let (verb, resource) = (text(verb), text(&rule["resources"][0]));
            ways.push(ReducedRules { verb, resource, rules: fewer });
        }
    }
    ways
}

#[test]
fn each_action_succeeds_with_exactly_its_rbac_rules() {
    for_each_action(async |kind| {
        let namespace = shared().namespace("exact_rules").await;
        prepare(kind, &namespace).await;
        let kubeconfig = account(&namespace, "exact", &rules(kind)).await;
        let request = request(kind, &namespace).await;
        let policy = namespace.policy(COUNTED);
        let done = Program::with_kubeconfig(&kubeconfig).under(&policy).input(request).run();
        assert_eq!(done.status, 0, "{}: {done:?}", kind.name());
        // A missing rule of a read that only serves warnings shows in the warnings.
        let warnings = done.answer()["warnings"].to_string();
        assert!(!warnings.contains("may not"), "{}: {done:?}", kind.name());
    });
}

#[test]
fn an_answer_names_each_missing_verb_and_its_rule() {
    for_each_action(async |kind| {
        let ways = without_one_verb(&rules(kind));
        for (number, ReducedRules { verb, resource, rules }) in ways.iter().enumerate() {
            let namespace = shared().namespace("one_verb_less").await;
            // Its pod does not start, so that the wait has to read why.
            let namespace = namespace.with_image(MISSING_IMAGE);
            prepare_broken(kind, &namespace).await;
            let name = format!("less-{number}");
            let kubeconfig = account(&namespace, &name, rules).await;
            let policy = namespace.policy(COUNTED);
            let send = |id: &str, request: String| {
                let request = request.replace("\"timeout_seconds\":20", "\"timeout_seconds\":2");
                Program::with_kubeconfig(&kubeconfig)
                    .under(&policy)
                    .env("ACTION_ID", format!("{id}.{}", namespace.name()))
                    .input(request)
                    .run()
                    .stdout
            };
            // First, a retry, and a second request: only the latter two need some of the rules.
            let first = request(kind, &namespace).await;
            let mut output = send("one", first.clone());
            output.push_str(&send("one", first));
            undo(kind, &namespace).await;
            output.push_str(&send("two", request(kind, &namespace).await));
            let namespace = namespace.name();
            let who = format!("system:serviceaccount:{namespace}:{name}");
            let what = format!("{who} may not {verb} {resource}");
            assert!(output.contains(&what), "{} without {verb} {resource}: {output}", kind.name());
            let rule = format!("\\\"verbs\\\":[\\\"{verb}\\\"]");
            assert!(output.contains(&rule), "{output}");
        }
    });
}

#[tokio::test]
async fn a_forbidden_patch_is_reported_with_the_missing_rule() {
    let namespace = shared().namespace("exact_message").await;
    namespace.running_deployment("web", 1).await;
    let all = rules(ActionKind::RestartK8s);
    let fewer = without_one_verb(&all)
        .into_iter()
        .find(|ReducedRules { verb, resource, .. }| verb == "patch" && resource == "deployments");
    let kubeconfig = account(&namespace, "reader", &fewer.expect("is one").rules).await;
    let request = request(ActionKind::RestartK8s, &namespace).await;
    let policy = namespace.policy(COUNTED);
    let done = Program::with_kubeconfig(&kubeconfig).under(&policy).input(request).run();
    assert_eq!(done.status, 77, "{done:?}");
    let (answer, name) = (done.answer(), namespace.name());
    assert_eq!(answer["status"], 403);
    assert_eq!(
        answer["detail"],
        format!(
            "system:serviceaccount:{name}:reader may not patch deployments.apps in namespace '{name}'"
        )
    );
    assert_eq!(
        answer["hint"],
        format!(
            "a Role in namespace '{name}' with the rule {{\"apiGroups\":[\"apps\"],\
             \"resources\":[\"deployments\"],\"verbs\":[\"patch\"]}} would allow it"
        )
    );
}

/// Sends a simulation, which shows whether the cluster is reached.
fn simulate(namespace: &Namespace, program: Program) -> Finished {
    let request = json!({
        "type": "restart_k8s",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    program.input(request.to_string()).run()
}

#[tokio::test]
async fn several_kubeconfigs_are_merged_and_a_context_is_selected() {
    let namespace = shared().namespace("merged").await;
    namespace.running_deployment("web", 1).await;
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let whole: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    let part = |name: &str, keep: &[&str]| {
        let mut config = json!({ "apiVersion": "v1", "kind": "Config" });
        for key in keep {
            config[*key] = whole[*key].clone();
        }
        let path = scratch(name);
        fs::write(&path, config.to_string()).expect("is written");
        path.display().to_string()
    };
    let clusters = part("clusters", &["clusters", "contexts"]);
    let users = part("users", &["users"]);
    let both = format!("{clusters}:/nonexistent/config:{users}");
    let program = || Program::offline().env("KUBECONFIG", &both);
    let context = whole["current-context"].as_str().expect("is one");
    let done = simulate(&namespace, program().args(["--context", context]));
    assert_eq!(done.status, 0, "{done:?}");
    let done = simulate(&namespace, program().args(["--context", "nowhere"]));
    assert_eq!(done.status, 78, "{done:?}");
}

#[tokio::test]
async fn an_exec_plugin_provides_the_credentials() {
    let namespace = shared().namespace("plugin").await;
    namespace.running_deployment("web", 1).await;
    let plugged = account(&namespace, "plugged", &rules(ActionKind::RestartK8s)).await;
    let config: Value =
        serde_json::from_str(&fs::read_to_string(plugged).expect("is readable")).expect("is JSON");
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": config["users"][0]["user"],
    });
    let plugin = scratch("plugin");
    fs::write(&plugin, format!("#!/bin/sh\necho '{credential}'\n")).expect("is written");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o700)).expect("is executable");
    let user = |command: &str| {
        json!({ "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": command,
        }})
    };
    let kubeconfig = namespace.kubeconfig_with("with-plugin", user(&plugin.display().to_string()));
    let done =
        simulate(&namespace, Program::with_kubeconfig(&kubeconfig).env("PATH", "/usr/bin:/bin"));
    assert_eq!(done.status, 0, "{done:?}");
    let kubeconfig = namespace.kubeconfig_with("without-plugin", user("/nonexistent/plugin"));
    let done = simulate(&namespace, Program::with_kubeconfig(&kubeconfig));
    assert_eq!(done.status, 78, "{done:?}");
    assert_eq!(done.answer()["code"], "configuration");
}

#[tokio::test]
async fn rejected_credentials_are_an_error_and_are_not_printed() {
    let namespace = shared().namespace("credentials").await;
    let kubeconfig = namespace.kubeconfig_with("stranger", json!({ "token": "hunter2-hunter2" }));
    let done = simulate(&namespace, Program::with_kubeconfig(&kubeconfig));
    assert_eq!(done.status, 78, "{done:?}");
    assert_eq!(done.answer()["code"], "credentials_refused");
    assert!(!format!("{done:?}").contains("hunter2"), "{done:?}");
}

#[tokio::test]
async fn an_untrusted_api_server_receives_no_request() {
    let namespace = shared().namespace("stranger").await;
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    // Another authority whose certificate is valid too: an untrusted one must not pass.
    let other = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-keyout", "/dev/null", "-subj", "/CN=other", "-days", "1"])
        .output()
        .expect("openssl runs");
    let path = scratch("other-ca");
    fs::write(&path, other.stdout).expect("is written");
    let cluster = config["clusters"][0]["cluster"].as_object_mut().expect("is one");
    cluster.remove("certificate-authority-data");
    cluster.insert("certificate-authority".into(), path.display().to_string().into());
    let kubeconfig = scratch("distrusting");
    fs::write(&kubeconfig, config.to_string()).expect("is written");
    let done = simulate(&namespace, Program::with_kubeconfig(&kubeconfig));
    assert_eq!(done.status, 78, "{done:?}");
    assert!(done.took.as_secs() < 5, "{done:?}");
}

#[test]
fn a_broken_kubeconfig_is_an_error_and_never_means_no_cluster() {
    let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
    let broken = scratch("broken");
    fs::write(&broken, "{ this is no: [ kubeconfig").expect("is written");
    let broken = broken.display().to_string();
    let cases: [&[(&str, &str)]; 4] = [
        &[("KUBECONFIG", "/nonexistent/config")],
        &[("KUBECONFIG", &broken)],
        &[("KUBECONFIG", "/dev/null")],
        // A pod whose service account token is not mounted.
        &[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("TERMINATION_LOG", "/dev/null")],
    ];
    for vars in cases {
        let program = vars.iter().fold(Program::offline(), |it, (name, value)| it.env(name, value));
        let done = program.input(request).run();
        assert_eq!(done.status, 78, "{vars:?}: {done:?}");
        assert_eq!(done.answer()["code"], "configuration");
    }
}
