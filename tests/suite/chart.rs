//! The Helm chart: its defaults and roles equal the program's, an API server accepts all objects, the Kustomize base
//! equals it, and on the real node it installs, serves (also over TLS), upgrades under load and uninstalls.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use action_executor::{
    actions::ActionKind,
    config::reload::ConfigFile,
    diagnosis::parts,
    ledger,
    policy::{Policy, approval, budget},
};
use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{GOOD_IMAGE, Namespace, OWN_IMAGE, TestCluster, eventually, shared, with_node},
    messages::compare,
    notifications,
    pki::{Authority, Pair},
    program::{Program, Reply, Server, execute_request, scratch},
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/action-executor");

/// Policies that together use every field from which a Role or an admission policy is generated.
const POLICIES: [&str; 9] = [
    "{}",
    "actions: {allow: [restart_pod]}",
    "actions: {allow: [restart_deployment], require_approval: ['*']}",
    "actions: {allow: []}\nsimulation: {limited: true}",
    "namespaces: {require_approval: ['*-prod']}\nsimulation: {limited: true}",
    "read_only: true\nnamespaces: {allow: [shop-*, '*a*b*'], deny: [bank]}",
    "targets: {protected: [tier=db, x/y=, frozen], opt_in: [sre, a.b/c=d]}",
    "nodes: {allow: ['pool-*.example.com'], deny: ['*-gpu'], require_approval: ['*']}\nreplicas: {min: 1, max: 9}",
    "state: {namespace: ops, name: limits}\nbudget: {cluster: null}\ncooldown_seconds: 0",
];

fn helm(cluster: &TestCluster, arguments: &[&str]) -> Output {
    Command::new(cluster.program("helm"))
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()
        .expect("helm runs")
}

/// Helm's output; a failure fails the test.
fn helm_ok(cluster: &TestCluster, arguments: &[&str]) -> String {
    let done = helm(cluster, arguments);
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).expect("is text")
}

fn documents(yaml: &str) -> Vec<Value> {
    let parsed = serde_yaml_ng::Deserializer::from_str(yaml);
    let read = |document| serde::Deserialize::deserialize(document).expect("is YAML");
    parsed.map(read).filter(|document: &Value| !document.is_null()).collect()
}

/// A file with these values.
fn values_file(values: &Value) -> String {
    let file = scratch("values.yaml");
    std::fs::write(&file, values.to_string()).expect("is written");
    file.to_str().expect("is text").to_owned()
}

fn rendered(values: &Value) -> Vec<Value> {
    let file = values_file(values);
    documents(&helm_ok(
        shared(),
        &["template", "executor", CHART, "--namespace", "ops", "-f", &file],
    ))
}

/// The image that the real node has loaded.
fn own_image() -> Value {
    let (repository, tag) = OWN_IMAGE.split_once(':').expect("has a tag");
    json!({ "repository": repository, "tag": tag, "pullPolicy": "Never" })
}

/// The address of this release's Service, reachable from the test.
async fn address(cluster: &TestCluster, home: &Namespace, release: &str) -> String {
    let service = home.api::<Service>().get(&format!("{release}-action-executor")).await;
    let address = service.expect("is there").spec.and_then(|spec| spec.cluster_ip);
    cluster.forward(&format!("{}:8000", address.expect("has one")))
}

fn ci_values() -> Vec<PathBuf> {
    let files = std::fs::read_dir(format!("{CHART}/ci")).expect("is there");
    files.map(|file| file.expect("is readable").path()).collect()
}

#[test]
fn files_rules_yaml_is_generated_from_the_programs_rules() {
    let actions: BTreeMap<_, _> =
        ActionKind::ALL.iter().map(|kind| (kind.name(), kind.descriptor().rules)).collect();
    let aliases: BTreeMap<_, _> = ActionKind::ALL
        .iter()
        .flat_map(|kind| kind.descriptor().aliases.iter().map(|alias| (alias, kind.name())))
        .collect();
    let cluster: BTreeMap<_, _> = ActionKind::ALL
        .iter()
        .map(|kind| (kind.name(), kind.descriptor().cluster_rules))
        .filter(|(_, rules)| !rules.is_empty())
        .collect();
    let integrations: BTreeMap<_, _> = ActionKind::ALL
        .iter()
        .filter_map(|kind| Some((kind.name(), kind.descriptor().integration?.name())))
        .collect();
    let expected = json!({
        "actions": actions, "integrations": integrations, "cluster": cluster, "aliases": aliases, "ledger": ledger::RULE, "budget": budget::RULE,
        "history": ledger::HISTORY, "diagnosis": parts::RULES, "diagnosisOfNodes": parts::NODE_RULES,
        "approval": approval::RULE, "approver": approval::APPROVER,
    });
    let text = serde_yaml_ng::to_string(&expected).expect("is YAML");
    let text =
        format!("# The RBAC rules of the program. `make chart-rules` writes this file.\n{text}");
    let file = format!("{CHART}/files/rules.yaml");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&file, &text).expect("is written");
    }
    let found = std::fs::read_to_string(&file).expect("is there");
    assert_eq!(found, text, "run `make chart-rules`");
}

#[test]
fn the_charts_default_policy_equals_the_programs() {
    let text = std::fs::read_to_string(format!("{CHART}/files/policy.yaml")).expect("is there");
    let shipped = Policy::parse(&text, "files/policy.yaml").expect("is a policy");
    assert_eq!(shipped, Policy::default());
    // The values set every field, because the templates cannot see the program's own defaults.
    let written: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    assert_eq!(written, json!(Policy::default()));
}

/// The parts of objects of these kinds in which the chart and the program must agree.
fn comparable_parts(documents: &[Value], kinds: &[&str], prefix: &str) -> BTreeMap<String, Value> {
    let of_kind = |document: &&Value| kinds.iter().any(|kind| document["kind"] == *kind);
    let parts: Vec<_> = documents
        .iter()
        .filter(of_kind)
        .filter(|document| !document["metadata"]["name"].to_string().contains(".callers"))
        .map(|document| {
            let name = document["metadata"]["name"].as_str().expect("has one");
            let kind = document["kind"].as_str().expect("has one");
            // Cluster-scoped objects have one name in both. The names of others begin with that of the release, or with
            // the account.
            let own = if kind.starts_with("Role") { prefix } else { "" };
            let name = name.strip_prefix(own).or(name.strip_prefix("action-executor-"));
            let name = name.unwrap_or_else(|| panic!("{document}")).trim_start_matches(['.', '-']);
            let name = if name == "targets" { String::new() } else { name.replace('.', "-") };
            let place = &document["metadata"]["namespace"];
            let mut parts = json!({});
            for part in ["rules", "subjects", "spec"] {
                parts[part] = document[part].clone();
            }
            // The order of rules and of conditions has no meaning.
            if let Some(rules) = parts["rules"].as_array_mut() {
                rules.sort_by_key(ToString::to_string);
            }
            for validation in parts["spec"]["validations"].as_array_mut().into_iter().flatten() {
                let text = validation["expression"].as_str().expect("is text");
                let mut terms: Vec<_> = text.split(" || ").collect();
                terms.sort_unstable();
                validation["expression"] = json!(terms);
            }
            (format!("{kind} {place} {name}"), parts)
        })
        .collect();
    let (number, by_name) = (parts.len(), BTreeMap::from_iter(parts));
    assert_eq!(by_name.len(), number, "two objects have one name: {:?}", by_name.keys());
    by_name
}

#[test]
fn the_charts_roles_and_admission_policies_equal_the_programs() {
    for policy in POLICIES {
        let values: Value = serde_yaml_ng::from_str(policy).expect("is YAML");
        let documents_of_chart = rendered(&json!({
            "policy": values, "namespaces": ["shop", "bank"], "rbac": { "nodes": true, "diagnosis": true },
        }));
        let mounted = documents_of_chart
            .iter()
            .find(|document| document["kind"] == "ConfigMap")
            .and_then(|document| document["data"]["policy.yaml"].as_str())
            .expect("the policy is mounted");
        let file = scratch("policy.yaml");
        std::fs::write(&file, mounted).expect("is written");
        let file = file.to_str().expect("is text");
        let account = "ops:executor-action-executor";
        let print = |arguments: &[&str]| {
            let arguments = arguments.iter().copied().chain(["--service-account", account, file]);
            let done = Program::offline().args(arguments).run();
            assert_eq!(done.status, 0, "{policy}: {done:?}");
            documents(&done.stdout)
        };
        let roles = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
        assert_eq!(
            comparable_parts(&documents_of_chart, &roles, "executor-action-executor"),
            comparable_parts(
                &print(&[
                    "rbac",
                    "--nodes",
                    "--history",
                    "--diagnosis",
                    "--namespace",
                    "shop",
                    "--namespace",
                    "bank"
                ]),
                &roles,
                "action-executor.ops.executor-action-executor"
            ),
            "{policy}"
        );
        let admission = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
        assert_eq!(
            comparable_parts(&documents_of_chart, &admission, ""),
            comparable_parts(&print(&["policy", "admission"]), &admission, ""),
            "{policy}"
        );
    }
}

#[test]
fn the_charts_permissions_to_impersonate_equal_the_programs() {
    let policy = "actions: {allow: [restart_pod, cordon], require_approval: ['*']}";
    let values: Value = serde_yaml_ng::from_str(policy).expect("is YAML");
    for (impersonation, arguments) in [
        (json!({}), &[][..]),
        (
            json!({
                "users": ["jo", "mo"], "groups": ["sre"], "accounts": ["agents:agent"], "extra": ["a/b"],
            }),
            &[
                "--impersonate-user",
                "jo",
                "--impersonate-user",
                "mo",
                "--impersonate-group",
                "sre",
                "--impersonate-account",
                "agents:agent",
                "--impersonate-extra",
                "a/b",
            ],
        ),
        (
            json!({ "groups": ["sre"], "constrained": true }),
            &["--impersonate-group", "sre", "--constrained"],
        ),
    ] {
        let mut on = impersonation;
        on["enabled"] = true.into();
        let documents_of_chart = rendered(&json!({
            "policy": values, "namespaces": ["shop", "bank"], "impersonation": on,
            "rbac": { "nodes": true, "diagnosis": true },
        }));
        let file = scratch("policy.yaml");
        let config = documents_of_chart.iter().find(|document| document["kind"] == "ConfigMap");
        let mounted = config.expect("there is one")["data"]["policy.yaml"].as_str();
        std::fs::write(&file, mounted.expect("is mounted")).expect("is written");
        let file = file.to_str().expect("is text");
        let print =
            "rbac --nodes --history --diagnosis --namespace shop --namespace bank --impersonate";
        let account = ["--service-account", "ops:executor-action-executor", file];
        let print = print.split(' ').chain(arguments.iter().copied()).chain(account);
        let done = Program::offline().args(print).run();
        assert_eq!(done.status, 0, "{done:?}");
        let roles = ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
        assert_eq!(
            comparable_parts(&documents_of_chart, &roles, "executor-action-executor"),
            comparable_parts(
                &documents(&done.stdout),
                &roles,
                "action-executor.ops.executor-action-executor"
            ),
            "{on}"
        );
        let text = json!(documents_of_chart).to_string();
        assert!(
            text.contains(r#"{"name":"ACTION_EXECUTOR_IMPERSONATE","value":"callers"}"#),
            "{text}"
        );
    }
    let off = json!(rendered(&json!({}))).to_string();
    assert!(!off.contains("\"impersonate\"") && !off.contains("ACTION_EXECUTOR_IMPERSONATE"));
}

#[test]
fn a_secret_with_a_list_of_clusters_is_mounted() {
    let on = json!({ "clusters": { "existingSecret": "fleet" } });
    let text = json!(rendered(&on)).to_string();
    for part in [
        r#"{"name":"ACTION_EXECUTOR_CLUSTERS","value":"/etc/action-executor/clusters/clusters.yaml"}"#,
        r#"{"name":"clusters","mountPath":"/etc/action-executor/clusters","readOnly":true}"#,
        r#"{"name":"clusters","secret":{"secretName":"fleet"}}"#,
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!json!(rendered(&json!({}))).to_string().contains("ACTION_EXECUTOR_CLUSTERS"));
}

#[test]
fn the_servers_cluster_role_allows_reviews_alone() {
    let documents = rendered(&json!({}));
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole");
    let rules = &role.expect("there is one")["rules"];
    assert_eq!(*rules, json!(action_executor::auth::token_review::RULES));
}

#[test]
fn tls_applies_to_probes_services_monitors_and_ingress() {
    let documents = rendered(&json!({
        "tls": { "enabled": true, "secretName": "executor-tls", "clientCaSecret": "clients" },
        "hosts": ["a.example.com", "b.example.com"],
        "authentication": { "tokenReview": { "enabled": false } },
        "metrics": { "serviceMonitor": { "enabled": true } },
        "ingress": { "enabled": true },
    }));
    let of_kind = |kind: &str| documents.iter().find(|it| it["kind"] == kind).expect("is there");
    let pod = &of_kind("Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS", "{probe}");
    }
    let variables = container["env"].as_array().expect("are there");
    let variable = |name: &str| {
        let found = variables.iter().find(|it| it["name"] == name);
        found.and_then(|it| it["value"].as_str()).expect(name).to_owned()
    };
    assert_eq!(variable("ACTION_EXECUTOR_HOSTS"), "a.example.com,b.example.com");
    let mounts = container["volumeMounts"].as_array().expect("are there");
    for name in ["CERTIFICATE", "KEY", "CLIENT_CA"] {
        let file = variable(&format!("ACTION_EXECUTOR_TLS_{name}"));
        let mounted = |it: &&Value| file.starts_with(it["mountPath"].as_str().expect("is one"));
        let mount = mounts.iter().find(mounted).expect("is mounted");
        // A `subPath` mount would not follow changes of its Secret.
        assert!(mount["subPath"].is_null(), "{mount}");
    }
    // Client certificates alone authenticate callers, and RBAC authorizes them.
    assert!(!container["args"].to_string().contains("--insecure-open"));
    let rules = &of_kind("ClusterRole")["rules"];
    assert_eq!(*rules, json!(action_executor::auth::token_review::RULES));

    let port = &of_kind("Service")["spec"]["ports"][0];
    assert_eq!((&port["name"], &port["appProtocol"]), (&json!("https"), &json!("https")));
    let endpoint = &of_kind("ServiceMonitor")["spec"]["endpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["scheme"]), (&json!("https"), &json!("https")));
    let ingress = of_kind("Ingress").to_string();
    assert!(ingress.contains(r#""port":{"name":"https"}"#), "{ingress}");
    let test = of_kind("Pod").to_string();
    assert!(test.contains("\"https://") && test.contains("--ca"), "{test}");
    assert!(!test.contains("tls.key"), "{test}");
}

#[test]
fn only_the_engine_tiny_http_has_a_volume_at_tmp() {
    for (engine, expected) in [("hyper", false), ("tiny-http", true)] {
        let documents = rendered(&json!({ "server": { "engine": engine } }));
        let server = documents.iter().find(|it| it["kind"] == "Deployment").expect("is there");
        let server = server.to_string();
        assert_eq!(server.contains("--engine"), expected, "{engine}");
        assert_eq!(server.contains(r#""mountPath":"/tmp""#), expected, "{engine}");
    }
}

#[test]
fn helm_lint_reports_nothing() {
    for file in ci_values() {
        let file = file.to_str().expect("is text");
        helm_ok(shared(), &["lint", "--strict", CHART, "-f", file]);
    }
}

/// The variables of the server's container with this prefix, in their order.
fn variables(documents: &[Value], prefix: &str) -> Vec<(String, String)> {
    let server = documents.iter().find(|it| it["kind"] == "Deployment").expect("is there");
    let all = server.pointer("/spec/template/spec/containers/0/env").and_then(Value::as_array);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pairs = all.expect("is a list").iter().map(|it| (text(&it["name"]), text(&it["value"])));
    pairs.filter(|(name, _)| name.starts_with(prefix)).collect()
}

#[test]
fn receipts_and_notifications_are_off_by_default_and_have_their_files_when_they_are_on() {
    let (receipts, sink) = ("ACTION_EXECUTOR_RECEIPT", "ACTION_EXECUTOR_SINK");
    let by_default = rendered(&json!({}));
    assert_eq!(variables(&by_default, receipts), []);
    assert_eq!(variables(&by_default, sink), []);

    let on = rendered(&json!({
        "receipts": { "keySecret": "receipt-key", "volume": { "emptyDir": {} } },
        "notifications": { "sink": "http://relay", "secretName": "sink", "allowHttp": true },
    }));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        variables(&on, receipts),
        [
            pair("ACTION_EXECUTOR_RECEIPT_KEY", "/etc/action-executor/receipts/receipt.pem"),
            pair("ACTION_EXECUTOR_RECEIPTS", "/var/lib/action-executor/receipts/$(POD_NAME).jsonl"),
        ]
    );
    assert_eq!(
        variables(&on, sink),
        [
            pair("ACTION_EXECUTOR_SINK", "http://relay"),
            pair("ACTION_EXECUTOR_SINK_SECRET", "/etc/action-executor/sink/secret"),
            pair("ACTION_EXECUTOR_SINK_ALLOW_HTTP", "true"),
        ]
    );
    // The kubelet expands a variable that is defined before.
    let names: Vec<_> = variables(&on, "").into_iter().map(|(name, _)| name).collect();
    let place = |name: &str| names.iter().position(|it| it == name).expect("is there");
    assert!(place("POD_NAME") < place("ACTION_EXECUTOR_RECEIPTS"));
    let server = on.iter().find(|it| it["kind"] == "Deployment").expect("is there");
    let list = |pointer: &str| {
        let all = server.pointer(pointer).and_then(Value::as_array).expect("is a list");
        all.iter().map(|it| it["name"].as_str().unwrap_or_default()).collect::<BTreeSet<_>>()
    };
    let (volumes, mounts) = (
        list("/spec/template/spec/volumes"),
        list("/spec/template/spec/containers/0/volumeMounts"),
    );
    assert_eq!(volumes, mounts);
    assert!(["receipt-key", "receipts", "sink"].iter().all(|name| volumes.contains(name)));

    let sent = rendered(&json!({
        "receipts": { "keySecret": "receipt-key" },
        "notifications": { "sink": "https://relay", "secretName": "sink" },
    }));
    assert_eq!(variables(&sent, receipts).len(), 1);
    assert_eq!(variables(&sent, sink).len(), 2);
}

#[test]
fn the_url_of_the_sink_can_be_in_the_secret_alone() {
    let all = rendered(&json!({
        "receipts": { "keySecret": "receipt-key" },
        "notifications": { "urlKey": "url", "secretName": "sink" },
    }));
    let server = all.iter().find(|it| it["kind"] == "Deployment").expect("is there");
    let pod = &server["spec"]["template"]["spec"];
    let variables = pod["containers"][0]["env"].as_array().expect("are there");
    let url = variables.iter().find(|it| it["name"] == "ACTION_EXECUTOR_SINK").expect("is there");
    let expected = json!({ "secretKeyRef": { "name": "sink", "key": "url" } });
    assert_eq!((&url["valueFrom"], &url["value"]), (&expected, &Value::Null));
    let volumes = pod["volumes"].as_array().expect("are there");
    let volume = volumes.iter().find(|it| it["name"] == "sink").expect("is there");
    // The URL is not in a file.
    assert_eq!(volume["secret"]["items"], json!([{ "key": "secret", "path": "secret" }]));
    assert!(variables.iter().any(|it| it["value"] == "/etc/action-executor/sink/secret"));
}

#[test]
fn inconsistent_values_are_rejected_with_a_sentence() {
    let refusal = |set: &str| {
        let done = helm(shared(), &["template", "executor", CHART, "--set", set]);
        assert!(!done.status.success(), "{set}");
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    for (set, sentence) in [
        ("authentication.tokenReview.enabled=false", "Authentication is off: set"),
        (
            "policy.actions.allow={restart_everything}",
            "unknown action \"restart_everything\"; known actions: ",
        ),
        ("policy.cooldown=5", "additional properties 'cooldown' not allowed"),
        ("image.repository=", "image.repository"),
        (
            "impersonation.enabled=true,server.enabled=false",
            "impersonation.enabled needs server.enabled",
        ),
        (
            "impersonation.enabled=true,authentication.tokenReview.enabled=false,authentication.insecureOpen=true",
            "impersonation.enabled needs authentication",
        ),
        (
            "impersonation.enabled=true,impersonation.constrained=true,impersonation.accounts={a:b}",
            "mutually exclusive",
        ),
        ("impersonation.enabled=true,impersonation.groups={system:masters}", "groups"),
        ("tls.enabled=true", "tls.enabled needs tls.secretName"),
        ("tls.clientCaSecret=a", "tls.clientCaSecret needs tls.enabled"),
        ("receipts.keySecret=a", "receipts.keySecret needs receipts.volume or notifications.sink"),
        ("receipts.volume.emptyDir.medium=Memory", "receipts.volume needs receipts.keySecret"),
        ("notifications.sink=https://a", "notifications.sink needs notifications.secretName"),
        ("notifications.sink=a", "notifications"),
        ("notifications.urlKey=url", "notifications.urlKey needs notifications.secretName"),
        ("notifications.urlKey=a/b,notifications.secretName=a", "urlKey"),
        (
            "notifications.sink=https://a,notifications.urlKey=url,notifications.secretName=a",
            "notifications.sink and notifications.urlKey are mutually exclusive",
        ),
        ("tls.enabled=true,tls.secretName=a,knative.enabled=true", "mutually exclusive"),
        ("hosts={a b}", "hosts"),
        ("replicas=3", "additional properties 'replicas' not allowed"),
    ] {
        let words = refusal(set);
        assert!(words.contains(sentence), "{set}: {words}");
    }
}

/// What the chart renders by default, without what is only Helm's: its labels, its tests, and the checksum with which
/// it replaces pods. The server itself loads a changed policy.
fn without_helm() -> Vec<Value> {
    let name = "action-executor";
    let text = helm_ok(shared(), &["template", name, CHART, "--namespace", name, "--skip-tests"]);
    let mut all = documents(&text);
    for document in &mut all {
        for (place, of_helm) in [
            ("/metadata/labels", &["helm.sh/chart", "app.kubernetes.io/managed-by"][..]),
            ("/spec/template/metadata/labels", &["helm.sh/chart", "app.kubernetes.io/managed-by"]),
            ("/spec/template/metadata/annotations", &["checksum/policy"]),
        ] {
            let Some(fields) = document.pointer_mut(place).and_then(Value::as_object_mut) else {
                continue;
            };
            fields.retain(|field, _| !of_helm.contains(&field.as_str()));
        }
    }
    all
}

fn kustomized(directory: &str) -> BTreeMap<String, Value> {
    let directory = format!("{}/kustomize/{directory}", env!("CARGO_MANIFEST_DIR"));
    let kubectl = shared().program("kubectl");
    let done =
        Command::new(kubectl).args(["kustomize", &directory]).output().expect("kubectl runs");
    assert!(done.status.success(), "{done:?}");
    by_name(&documents(&String::from_utf8(done.stdout).expect("is text")))
}

fn by_name(documents: &[Value]) -> BTreeMap<String, Value> {
    let named = |it: &Value| {
        let metadata = &it["metadata"];
        (format!("{} {} {}", it["kind"], metadata["namespace"], metadata["name"]), it.clone())
    };
    documents.iter().map(named).collect()
}

#[test]
fn the_kustomize_base_equals_the_charts_default_rendering() {
    let rendered = without_helm();
    let mut text =
        String::from("# The chart's default rendering. `make kustomize` writes this file.\n");
    for document in &rendered {
        text += "---\n";
        text += &serde_yaml_ng::to_string(document).expect("is YAML");
    }
    compare("kustomize/base/action-executor.yaml", &text);
    assert_eq!(kustomized("base"), by_name(&rendered));
}

#[test]
fn the_example_of_kustomize_changes_image_and_policy_alone() {
    let (base, example) = (kustomized("base"), kustomized("example"));
    let changed: Vec<_> = example.iter().filter(|(name, it)| base.get(*name) != Some(it)).collect();
    let kinds: Vec<_> =
        changed.iter().map(|(_, it)| it["kind"].as_str().expect("has one")).collect();
    assert_eq!(kinds, ["ConfigMap", "Deployment", "Namespace"]);
    assert_eq!(example.len(), base.len() + 1);
    let policy = changed[0].1["data"]["policy.yaml"].as_str().expect("is text");
    Policy::parse(policy, "policy.yaml").expect("is a policy");
    let image = &changed[1].1["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "registry.example.com/sre/action-executor:0.1.0");
}

#[tokio::test]
async fn an_api_server_accepts_every_object_strictly() {
    // Kinds that no API server has built in.
    let foreign = [
        "gateway.networking.k8s.io",
        "serving.knative.dev",
        "eventing.knative.dev",
        "monitoring.coreos.com",
    ];
    let mut kinds = BTreeSet::new();
    for file in ci_values() {
        let cluster = shared();
        let namespace = cluster.namespace("chart_objects").await;
        let values = file.to_str().expect("is text");
        let arguments =
            ["template", "executor", CHART, "--namespace", namespace.name(), "-f", values];
        let acts_here = format!("namespaces={{{}}}", namespace.name());
        let text = helm_ok(cluster, &[&arguments[..], &["--set", &acts_here]].concat());
        let ours: Vec<_> = documents(&text)
            .into_iter()
            .filter(|document| {
                let version = document["apiVersion"].as_str().expect("has one");
                foreign.iter().all(|group| !version.starts_with(group))
            })
            // A caller's Role may be in a namespace that only the values name.
            .filter(|document| document["metadata"]["namespace"] != "shop")
            .collect();
        kinds.extend(ours.iter().map(|document| document["kind"].to_string()));
        cluster.apply_strictly(&ours);
    }
    assert!(kinds.len() > 15, "{kinds:?}");
}

#[tokio::test]
async fn alerts_and_dashboard_use_metrics_that_exist() {
    let authority = Authority::new();
    let program = Program::with_kubeconfig(shared().kubeconfig())
        .env("ACTION_EXECUTOR_SINK", "http://127.0.0.1:1")
        .env("ACTION_EXECUTOR_SINK_SECRET", notifications::secret());
    let program = authority.server().files().apply_to(program);
    let server = Server::start(program).over_tls(authority.trusted_by(None));
    let missing = br#"{"type":"restart_k8s","parameters":{"deployment":"missing"}}"#;
    assert_eq!(server.execute(missing).status, 422);
    let counted = String::from_utf8(server.get("/metrics").body).expect("is text");
    let of_ours = |character: char| character.is_ascii_lowercase() || character == '_';
    for file in ["files/alerts.yaml", "files/dashboard.json"] {
        let text = std::fs::read_to_string(format!("{CHART}/{file}")).expect("is there");
        let names: BTreeSet<_> = text
            .split("action_executor_")
            .skip(1)
            .map(|rest| rest.split(|it| !of_ours(it)).next().unwrap_or_default())
            .collect();
        assert!(names.len() > 3, "{names:?}");
        for name in names {
            let sample = format!("\naction_executor_{name}");
            assert!(counted.contains(&sample), "{file}: {name} is not in {counted}");
        }
    }
}

/// Posts an action to this address.
fn post(address: &str, body: &Value, token: &str) -> Reply {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return Reply { status: 0, headers: Vec::new(), body: Vec::new() };
    };
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("is set");
    let headers = format!("Authorization: Bearer {token}\r\nConnection: close\r\n");
    let request = execute_request(body.to_string().as_bytes(), &headers);
    // A failed connection shows in the returned reply.
    let _ = stream.write_all(&request);
    Reply::read(&mut BufReader::new(stream))
}

/// Sends simulations, one after the other, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(address: &str, body: &Value, token: &str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..4).map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            let (address, body, token) = (address.to_owned(), body.clone(), token.to_owned());
            thread::spawn(move || {
                let (mut lost, began) = (Vec::new(), Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    let reply = post(&address, &body, &token);
                    sent.fetch_add(1, Ordering::Relaxed);
                    if reply.status != 200 {
                        lost.push(format!("after {:?}: {reply:?}", began.elapsed()));
                    }
                }
                lost
            })
        });
        let threads = threads.collect();
        Load { stop, sent, threads }
    }

    /// How many were sent, and the answers that were not successful.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let lost = self.threads.into_iter().flat_map(|thread| thread.join().expect("has ended"));
        let lost = lost.collect();
        (self.sent.load(Ordering::Relaxed), lost)
    }
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn the_chart_installs_serves_upgrades_under_load_and_uninstalls() {
    let cluster = with_node();
    let home = cluster.namespace("chart").await;
    let shop = cluster.namespace("chart-shop").await;
    shop.running_deployment("web", 1).await;
    home.create::<ServiceAccount>(json!({ "metadata": { "name": "agent" } })).await;
    let values = values_file(&json!({
        "image": own_image(),
        "namespaces": [shop.name()],
        "policy": { "cooldown_seconds": 0 },
        // The load below comes from one caller.
        "settings": { "callerRate": 0 },
        "authentication": { "tokenReview": { "callers": [{
            "name": "agent", "subjects": [{ "kind": "ServiceAccount", "name": "agent" }],
        }] } },
    }));
    let of = ["executor", "--namespace", home.name()];
    let chart = [CHART, "-f", &values, "--wait", "--timeout", "120s"];
    helm_ok(cluster, &[&["install"], &of[..], &chart[..]].concat());

    // Through the Service, as other pods in the cluster do.
    let address = address(cluster, &home, "executor").await;
    let token = home.token("agent", &["action-executor"]).await;
    let request = |simulate: bool| {
        json!({
            "type": "restart_k8s", "simulate": simulate, "wait": true,
            "parameters": { "deployment": "web", "namespace": shop.name() },
        })
    };
    // kube-proxy programs a new Service with a short delay.
    eventually("the Service leads to the server", async || {
        (post(&address, &request(false), "wrong").status == 401).then_some(())
    })
    .await;
    let done = post(&address, &request(false), &token);
    assert_eq!(done.status, 200, "{:?}", done.json());
    assert_eq!(done.json()["rollout"]["state"], "complete");
    let restarted = shop.rolled_out("web").await;
    assert_eq!(restarted.metadata.generation, Some(2));

    let tested = helm_ok(cluster, &[&["test"], &of[..]].concat());
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");

    // A changed policy starts new pods.
    let pods = async || {
        let params = ListParams::default().labels("app.kubernetes.io/component=server");
        let pods = home.api::<Pod>().list(&params).await.expect("are listed").items;
        pods.into_iter().filter_map(|pod| pod.metadata.uid).collect::<BTreeSet<_>>()
    };
    let before = pods().await;
    assert_eq!(before.len(), 2);
    let load = Load::start(&address, &request(true), &token);
    let changed = ["--set", "policy.cooldown_seconds=1"];
    helm_ok(cluster, &[&["upgrade"], &of[..], &chart[..], &changed[..]].concat());
    let (sent, lost) = load.end();
    assert!(before.is_disjoint(&pods().await) || pods().await.len() > 2, "no pod was replaced");
    assert!(lost.is_empty(), "{} of {sent} were lost: {:?}", lost.len(), lost.first());
    assert!(sent > 50, "{sent}");
    println!("{sent} requests during the upgrade, none lost");

    helm_ok(cluster, &[&["uninstall"], &of[..], &["--wait"]].concat());
    for kinds in [
        "all,configmap,secret,role,rolebinding,serviceaccount,pdb",
        "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding",
    ] {
        // Pods terminate within their own grace period.
        eventually(&format!("nothing is left of {kinds}"), async || {
            let left = Command::new(cluster.program("kubectl"))
                .args(["get", kinds, "--all-namespaces", "--ignore-not-found", "-o", "name"])
                .args(["-l", "app.kubernetes.io/instance=executor"])
                .env("KUBECONFIG", cluster.kubeconfig())
                .stderr(Stdio::inherit())
                .output()
                .expect("kubectl runs");
            (left.status.success() && left.stdout.is_empty()).then_some(())
        })
        .await;
    }
}

/// The output of curl for a request over TLS that trusts these authorities and presents this client
/// certificate.
fn curl(address: &str, trusted: &Path, own: Option<&Pair>, arguments: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--cacert"]).arg(trusted).args(arguments);
    if let Some(files) = own.map(Pair::files) {
        curl.arg("--cert").arg(files.certificate).arg("--key").arg(files.key);
    }
    curl.arg(format!("https://{address}/api/v1/action/execute"));
    let done = curl.output().expect("curl runs");
    String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned()
}

#[tokio::test]
#[ignore = "needs a real node, and so root"]
async fn the_chart_with_tls_is_probed_called_by_certificate_and_rotated() {
    let cluster = with_node();
    let home = cluster.namespace("chart-tls").await;
    home.deployment("web", 0, GOOD_IMAGE).await;
    let (first, second, clients) = (Authority::new(), Authority::new(), Authority::new());
    let (old, new) = (first.file(), second.file());
    let secret = |authority: &Authority| {
        let Pair { certificate, key } = authority.server();
        json!({
            "metadata": { "name": "served" }, "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": certificate, "tls.key": key },
        })
    };
    home.create::<Secret>(secret(&first)).await;
    let authorities = std::fs::read_to_string(clients.file()).expect("is readable");
    home.create::<Secret>(json!({
        "metadata": { "name": "clients" }, "stringData": { "ca.crt": authorities },
    }))
    .await;
    let values = values_file(&json!({
        "image": own_image(),
        "replicaCount": 1,
        "tls": { "enabled": true, "secretName": "served", "clientCaSecret": "clients" },
        "authentication": { "tokenReview": { "callers": [{
            "name": "agent", "subjects": [{ "kind": "User", "name": "agent" }],
        }] } },
    }));
    let of = ["secure", "--namespace", home.name()];
    // A timely rollout shows that the kubelet's probes use TLS.
    let chart = [CHART, "-f", &values, "--wait", "--timeout", "120s"];
    helm_ok(cluster, &[&["install"], &of[..], &chart[..]].concat());
    let tested = helm_ok(cluster, &[&["test"], &of[..]].concat());
    assert!(tested.contains("Phase:          Succeeded"), "{tested}");

    let address = address(cluster, &home, "secure").await;
    let request = json!({
        "type": "restart_k8s", "parameters": { "deployment": "web", "namespace": home.name() },
    });
    let request = ["--json", &request.to_string()];
    eventually("the Service leads to the server", async || {
        curl(&address, &old, None, &request).contains("unauthenticated").then_some(())
    })
    .await;
    let ask = |user: &str| curl(&address, &old, Some(&clients.client(user, &[])), &request);
    let answer = ask("agent");
    assert!(answer.contains(r#""outcome":"simulated""#), "{answer}");
    let refused = ask("stranger");
    assert!(refused.contains("caller_forbidden"), "{refused}");
    let distrusted = curl(&address, &new, None, &request);
    assert!(distrusted.starts_with("curl: "), "{distrusted}");

    let params = PatchParams::default();
    let patch = Patch::Merge(secret(&second));
    home.api::<Secret>().patch("served", &params, &patch).await.expect("is changed");
    // The kubelet syncs a pod's volumes when the pod changes, and otherwise once a minute.
    let pods = home.api::<Pod>();
    let server = ListParams::default().labels("app.kubernetes.io/component=server");
    for pod in pods.list(&server).await.expect("are listed").items {
        let noted = json!({ "metadata": { "annotations": { "seen": "anew" } } });
        pods.patch(&pod.name_any(), &params, &Patch::Merge(noted)).await.expect("is noted");
    }
    eventually("the new certificate is served", async || {
        curl(&address, &new, None, &request).contains("unauthenticated").then_some(())
    })
    .await;
    helm_ok(cluster, &[&["uninstall"], &of[..]].concat());
}
