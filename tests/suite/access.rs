//! Kubeconfigs, service accounts and RBAC: which credentials the executor uses, and which rules each action needs.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use action_executor::{
    actions::{ActionKind, Descriptor},
    config::reload::ConfigFile,
    manifests::rbac,
    policy::{Policy, budget},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{TimeDelta, Utc};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{
    cluster::{MISSING_IMAGE, Namespace, eventually, shared},
    program::{Finished, Program, Server, scratch},
    scenario::{
        for_each_action, is_on_nodes, other_parameters, parameters, prepare, prepare_broken, undo,
    },
};

/// A real request for each action, with `wait`.
async fn request(kind: ActionKind, namespace: &Namespace) -> String {
    let mut parameters = parameters(kind, namespace).await;
    // An action's rules include those that its automatic rollback needs.
    let schema = kind.parameters_schema(&mut schemars::SchemaGenerator::default());
    if schema.pointer("/properties/rollback_on_failure").is_some() {
        parameters["rollback_on_failure"] = true.into();
    }
    request_with(kind, parameters)
}

fn request_with(kind: ActionKind, parameters: Value) -> String {
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
        these.collect::<Vec<_>>()
    };
    let (in_default, everywhere) = (of(Scope::Default), of(Scope::Everywhere));
    if !in_default.is_empty() {
        namespace.grant_in_default(name, json!(in_default)).await;
    }
    if !everywhere.is_empty() {
        namespace.grant_everywhere(name, json!(everywhere)).await;
    }
    namespace.account(name, json!(of(Scope::Here))).await
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

/// Whether this rule is of the action itself, and not one of those that every action needs.
fn is_own(kind: ActionKind, resource: &str) -> bool {
    let Descriptor { rules, cluster_rules, .. } = kind.descriptor();
    rules.iter().chain(*cluster_rules).any(|rule| rule.resources.contains(&resource))
}

/// The actions that also lack each verb of the rules that every action needs: one of each way to act.
const ALL_VERBS: [ActionKind; 4] =
    [ActionKind::RestartK8s, ActionKind::RestartPod, ActionKind::RunCronjob, ActionKind::Cordon];

#[test]
fn an_answer_names_each_missing_verb_and_its_rule() {
    for_each_action(async |kind| {
        let mut ways = without_one_verb(&rules(kind));
        ways.retain(|way| ALL_VERBS.contains(&kind) || is_own(kind, &way.resource));
        for way in &ways {
            let mut outputs = outputs_without_the_rule(kind, way, 2).await;
            // A busy machine may have no time for every read in two seconds.
            if !outputs.is_empty() {
                outputs = outputs_without_the_rule(kind, way, 20).await;
            }
            let ReducedRules { verb, resource, .. } = way;
            assert!(outputs.is_empty(), "{} without {verb} {resource}: {outputs:?}", kind.name());
        }
    });
}

/// What requests for this action answer under these rules with waits of so many seconds, or nothing once an answer
/// names the missing verb and its rule.
async fn outputs_without_the_rule(
    kind: ActionKind,
    ReducedRules { verb, resource, rules }: &ReducedRules,
    seconds: u32,
) -> Vec<String> {
    let namespace = shared().namespace("one_verb_less").await;
    // Its pod does not start, so that the wait has to read why.
    let namespace = namespace.with_image(MISSING_IMAGE);
    prepare_broken(kind, &namespace).await;
    let kubeconfig = account(&namespace, "less", rules).await;
    let policy = namespace.policy(COUNTED);
    let who = format!("system:serviceaccount:{}:less", namespace.name());
    let what = format!("{who} may not {verb} {resource}");
    let rule = format!("\\\"verbs\\\":[\\\"{verb}\\\"]");
    let mut outputs = Vec::new();
    let mut names_it = |id: &str, request: &str| {
        let timeout = format!("\"timeout_seconds\":{seconds}");
        let done = Program::with_kubeconfig(&kubeconfig)
            .under(&policy)
            .env("ACTION_ID", format!("{id}.{}", namespace.name()))
            .input(request.replace("\"timeout_seconds\":20", &timeout))
            .run();
        let found = done.stdout.contains(&what) && done.stdout.contains(&rule);
        outputs.push(done.stdout);
        found
    };
    // First, a retry, and a second request: only the latter two need some of the rules.
    let first = request(kind, &namespace).await;
    if names_it("one", &first) || names_it("one", &first) {
        return Vec::new();
    }
    undo(kind, &namespace).await;
    if names_it("two", &request(kind, &namespace).await) {
        return Vec::new();
    }
    for (number, parameters) in other_parameters(kind, &namespace).await.into_iter().enumerate() {
        if names_it(&format!("other-{number}"), &request_with(kind, parameters)) {
            return Vec::new();
        }
    }
    outputs
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

/// A credential plugin that counts its starts.
struct Plugin {
    script: PathBuf,
    starts: PathBuf,
    status: PathBuf,
}

impl Plugin {
    /// A plugin that answers with this `status`, after these commands.
    fn new(status: &Value, before: &str) -> Self {
        let [script, starts, status_file] = ["plugin", "starts", "status"].map(scratch);
        let text = format!(
            "#!/bin/sh\necho started >> {}\n{before}\n\
             echo '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \"status\":'\n\
             cat {}\necho '}}'\n",
            starts.display(),
            status_file.display(),
        );
        fs::write(&script, text).expect("is written");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("is executable");
        let plugin = Plugin { script, starts, status: status_file };
        plugin.answer(status);
        plugin
    }

    /// Answers with this from now on.
    fn answer(&self, status: &Value) {
        fs::write(&self.status, status.to_string()).expect("is written");
    }

    fn starts(&self) -> usize {
        fs::read_to_string(&self.starts).unwrap_or_default().lines().count()
    }

    fn kubeconfig(&self, namespace: &Namespace) -> PathBuf {
        let name = self.script.file_name().expect("has one").to_string_lossy().into_owned();
        namespace.kubeconfig_with(&name, exec(&self.script.display().to_string()))
    }

    fn program(&self, namespace: &Namespace) -> Program {
        Program::with_kubeconfig(&self.kubeconfig(namespace)).env("PATH", "/usr/bin:/bin")
    }
}

/// A kubeconfig's user with this plugin.
fn exec(command: &str) -> Value {
    json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": command,
    }})
}

/// What a plugin answers for this kubeconfig's user: its token, or its certificate and key.
fn status_of(kubeconfig: &Path) -> Value {
    let text = fs::read_to_string(kubeconfig).expect("is readable");
    let config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    let user = &config["users"][0]["user"];
    if user["token"].is_string() {
        return json!({ "token": user["token"] });
    }
    let text = |field: &str| {
        let encoded = user[field].as_str().expect("is one");
        String::from_utf8(BASE64_STANDARD.decode(encoded).expect("is base64")).expect("is text")
    };
    json!({
        "clientCertificateData": text("client-certificate-data"),
        "clientKeyData": text("client-key-data"),
    })
}

#[tokio::test]
async fn a_plugin_is_started_once_for_its_token_or_certificate() {
    let namespace = shared().namespace("plugin").await;
    namespace.running_deployment("web", 1).await;
    let plugged = account(&namespace, "plugged", &rules(ActionKind::RestartK8s)).await;
    for (kubeconfig, id) in [(&*plugged, "token"), (namespace.kubeconfig(), "certificate")] {
        let plugin = Plugin::new(&status_of(kubeconfig), "");
        let request = json!({
            "type": "restart_k8s", "simulate": false, "wait": true,
            "id": format!("{id}.{}", namespace.name()),
            "parameters": { "deployment": "web", "namespace": namespace.name() },
        });
        let program = plugin.program(&namespace).under(&namespace.policy(COUNTED));
        let done = program.input(request.to_string()).run();
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(plugin.starts(), 1, "{id}");
    }
    let kubeconfig = namespace.kubeconfig_with("without-plugin", exec("/nonexistent/plugin"));
    let done = simulate(&namespace, Program::with_kubeconfig(&kubeconfig));
    assert_eq!(done.status, 78, "{done:?}");
    assert_eq!(done.answer()["code"], "configuration");
}

#[tokio::test]
async fn a_plugins_time_counts_within_the_deadline() {
    let namespace = shared().namespace("slow_plugin").await;
    let plugin = Plugin::new(&status_of(namespace.kubeconfig()), "sleep 25");
    let program = plugin.program(&namespace).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "3");
    let done = simulate(&namespace, program);
    assert_eq!(done.answer()["code"], "cluster_unreachable", "{done:?}");
    let name = plugin.script.file_name().expect("has one").to_string_lossy().into_owned();
    assert!(done.stdout.contains(&format!("the credential plugin '{name}' has printed nothing")));
    let took = done.took.as_secs_f64();
    assert!((3.0..5.0).contains(&took), "{done:?}");
    assert_eq!(plugin.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_without_waiting_for_a_plugin_and_shares_its_token_until_it_expires() {
    let namespace = shared().namespace("shared_plugin").await;
    namespace.running_deployment("web", 1).await;
    let mut status = status_of(namespace.kubeconfig());
    let expire_in = |seconds| (Utc::now() + TimeDelta::seconds(seconds)).to_rfc3339();
    status["expirationTimestamp"] = expire_in(3600).into();
    let plugin = Plugin::new(&status, "sleep 4");
    let began = Instant::now();
    let program = plugin.program(&namespace).env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2");
    let server = Server::start(program);
    let request = json!({
        "type": "restart_k8s",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
    .to_string();
    let reply = server.execute(request.as_bytes());
    assert_eq!(reply.json()["code"], "cluster_unreachable", "{reply:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let simulations = || {
        std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..6).map(|_| scope.spawn(|| server.execute(request.as_bytes()).status)).collect();
            all.into_iter().map(|it| it.join().expect("ends")).all(|status| status == 200)
        })
    };
    eventually("the plugin has answered", async || simulations().then_some(())).await;
    assert_eq!(plugin.starts(), 1);
    assert_eq!(server.get("/readyz").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_started_again_when_its_token_expires_or_is_rejected() {
    let namespace = shared().namespace("renewed_plugin").await;
    namespace.running_deployment("web", 1).await;
    let mut status = status_of(namespace.kubeconfig());
    status["expirationTimestamp"] = (Utc::now() + TimeDelta::seconds(6)).to_rfc3339().into();
    let plugin = Plugin::new(&status, "");
    let server = Server::start(plugin.program(&namespace));
    let request = json!({
        "type": "restart_k8s",
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    })
    .to_string();
    let simulate = || server.execute(request.as_bytes()).status;
    assert_eq!(simulate(), 200);
    assert_eq!((simulate(), plugin.starts()), (200, 1));
    // A token that lasts until the API server rejects it.
    let kubeconfig = account(&namespace, "short-lived", &rules(ActionKind::RestartK8s)).await;
    plugin.answer(&status_of(&kubeconfig));
    eventually("the token has expired", async || {
        assert_eq!(simulate(), 200);
        (plugin.starts() == 2).then_some(())
    })
    .await;
    let accounts = namespace.api::<ServiceAccount>();
    accounts.delete("short-lived", &DeleteParams::default()).await.expect("is deleted");
    plugin.answer(&status_of(namespace.kubeconfig()));
    eventually("the token is rejected", async || {
        assert_eq!(simulate(), 200);
        (plugin.starts() == 3).then_some(())
    })
    .await;
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

/// Serves a proxy on this machine, and counts the connections that it has made. The one for HTTP wants `jo:pw`.
async fn proxy(is_socks: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("has one");
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let opened =
                    if is_socks { open_socks(client).await } else { open_http(client).await };
                let Ok((mut client, mut server)) = opened else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                // A connection that either side ends is no error of the test.
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, made)
}

/// The server that a client asks for with CONNECT (RFC 9110 section 9.3.6).
async fn open_http(mut client: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if !head.contains("Basic am86cHc=") {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await?;
        return Err(io::Error::other("another password"));
    }
    let server = TcpStream::connect(head.split(' ').nth(1).unwrap_or_default()).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    Ok((client, server))
}

/// The server that a client asks for by SOCKS 5 (RFC 1928), with an IPv4 address.
async fn open_socks(mut client: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).await?;
    client.write_all(&[5, 0]).await?;
    let mut request = [0; 10];
    client.read_exact(&mut request).await?;
    assert_eq!(request[..4], [5, 1, 0, 1]);
    let [a, b, c, d, high, low] = request[4..] else { panic!("{request:?}") };
    let server = ([a, b, c, d], u16::from_be_bytes([high, low]));
    let server = TcpStream::connect(SocketAddr::from(server)).await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok((client, server))
}

/// The administrator's kubeconfig as YAML with this field of its cluster.
fn kubeconfig_through(namespace: &Namespace, proxy_url: &str) -> PathBuf {
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    config["clusters"][0]["cluster"]["proxy-url"] = proxy_url.into();
    let path = scratch("proxied");
    fs::write(&path, config.to_string()).expect("is written");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_reached_through_a_proxy_of_each_kind() {
    let namespace = shared().namespace("proxied").await;
    namespace.running_deployment("web", 1).await;
    for (scheme, user) in [("socks5", ""), ("http", "jo:pw@")] {
        let (address, made) = proxy(scheme == "socks5").await;
        let kubeconfig = kubeconfig_through(&namespace, &format!("{scheme}://{user}{address}"));
        // A kubeconfig's own proxy is used whatever this says.
        let program = Program::with_kubeconfig(&kubeconfig).env("NO_PROXY", "*");
        let done = simulate(&namespace, program);
        assert_eq!(done.status, 0, "{scheme}: {done:?}");
        assert_eq!(made.load(Ordering::SeqCst), 1, "{scheme}: HTTP/2 needs one connection");
    }
    let (address, made) = proxy(false).await;
    let kubeconfig = kubeconfig_through(&namespace, &format!("http://jo:canary@{address}"));
    let done = simulate(&namespace, Program::with_kubeconfig(&kubeconfig));
    assert_eq!(done.answer()["code"], "configuration", "{done:?}");
    assert!(done.stdout.contains(&format!("the proxy http://{address} ")), "{done:?}");
    assert!(!done.stdout.contains("canary"), "{done:?}");
    assert_eq!(made.load(Ordering::SeqCst), 0);
    // A proxy for all of HTTPS is not for this machine, as in kubectl.
    let program = Program::with_kubeconfig(namespace.kubeconfig());
    let done = simulate(&namespace, program.env("HTTPS_PROXY", "http://127.0.0.1:1"));
    assert_eq!(done.status, 0, "{done:?}");
}

#[tokio::test]
async fn a_kubeconfig_may_use_an_anchor_any_number_of_times() {
    let namespace = shared().namespace("anchors").await;
    namespace.running_deployment("web", 1).await;
    let text = fs::read_to_string(namespace.kubeconfig()).expect("is readable");
    let config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
    let part = |field: &str| config[field].to_string();
    let mut text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {}\nusers: {}\ncontexts: {}\nclusters:\n",
        part("current-context"),
        part("users"),
        part("contexts"),
    );
    let (name, cluster) = (&config["clusters"][0]["name"], &config["clusters"][0]["cluster"]);
    text += &format!("- name: {name}\n  cluster: &it {cluster}\n");
    (0..150).for_each(|number| text += &format!("- {{name: c{number}, cluster: *it}}\n"));
    let path = scratch("anchors");
    fs::write(&path, text).expect("is written");
    let done = simulate(&namespace, Program::with_kubeconfig(&path));
    assert_eq!(done.status, 0, "{done:?}");
}
