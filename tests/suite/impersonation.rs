//! Impersonation: the cluster sees who asked. Its RBAC and its audit log are asked, not the program.

use std::{
    fs,
    io::{BufReader, Read, Write},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

use action_executor::{
    actions::ActionKind, auth::token_review, contract::digest::sha256,
    executor::failpoint::Failpoint,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::Event,
    rbac::v1::{Role, RoleBinding},
};
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    admission::kubectl,
    cluster::{Namespace, SLOW_IMAGE, client, eventually, shared},
    fault_proxy::{ProxyBehavior, proxy},
    ledger::records,
    limits::{calls, log_length},
    mcp::Http,
    pki::Authority,
    program::{Program, Reply, Server, execute_request, scratch},
};

const IMPERSONATE: &str = "ACTION_EXECUTOR_IMPERSONATE";
const GROUPS: &str = "ACTION_EXECUTOR_IMPERSONATE_GROUPS";
const ACCOUNTS: &str = "ACTION_EXECUTOR_IMPERSONATE_ACCOUNTS";
const EXTRA: &str = "ACTION_EXECUTOR_IMPERSONATE_EXTRA";
const RBAC: &str = "rbac.authorization.k8s.io";
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// A namespace with the account of a server, which has the permissions that the program prints.
struct Site {
    namespace: Namespace,
    kubeconfig: PathBuf,
    policy: PathBuf,
}

impl Site {
    /// With a Deployment `web`, and what `rbac` prints with these arguments.
    async fn new(test: &str, arguments: &[&str]) -> Self {
        let namespace = shared().namespace(test).await;
        namespace.running_deployment("web", 1).await;
        let kubeconfig = namespace.account("server", json!([])).await;
        namespace.grant_everywhere("server", json!(token_review::RULES)).await;
        let policy = namespace.policy("cooldown_seconds: 0\nactions: {allow: [restart_k8s]}");
        let site = Site { namespace, kubeconfig, policy };
        if !arguments.is_empty() {
            site.apply_printed(&[&["rbac"], arguments].concat());
        }
        site
    }

    /// Applies what the program prints about the account.
    fn apply_printed(&self, arguments: &[&str]) {
        let (name, policy) = (self.name(), self.policy.display().to_string());
        let account = format!("{name}:server");
        let arguments = [arguments, &["--service-account", &account, &policy]].concat();
        let printed = Program::offline().args(arguments).run();
        assert_eq!(printed.status, 0, "{printed:?}");
        let manifests = scratch("impersonation.yaml");
        fs::write(&manifests, printed.stdout).expect("is written");
        let manifests = manifests.display().to_string();
        let (applied, output) = kubectl(&["apply", "--validate=strict", "-f", &manifests]);
        assert!(applied, "{output}");
    }

    fn name(&self) -> &str {
        self.namespace.name()
    }

    /// The user name of the server's account.
    fn account(&self) -> String {
        format!("system:serviceaccount:{}:server", self.name())
    }

    /// A user or a group of this test alone.
    fn own(&self, name: &str) -> String {
        format!("{name}@{}", self.name())
    }

    /// Grants a subject what a restart needs, of the objects with these names, or of all.
    async fn may_restart(&self, kind: &str, subject: &str, deployments: &[&str]) {
        let mut rules = json!(ActionKind::RestartK8s.descriptor().rules);
        for rule in rules.as_array_mut().expect("are rules").iter_mut() {
            if rule["resources"] == json!(["deployments"]) && !deployments.is_empty() {
                rule["resourceNames"] = json!(deployments);
            }
        }
        self.grant(kind, subject, rules).await;
    }

    async fn grant(&self, kind: &str, subject: &str, rules: Value) {
        let name = sha256(format!("{kind} {subject} {rules}").as_bytes())[..16].to_owned();
        let subject = match subject.split_once(':') {
            Some((namespace, name)) => {
                json!({ "kind": kind, "namespace": namespace, "name": name })
            }
            None => json!({ "apiGroup": RBAC, "kind": kind, "name": subject }),
        };
        self.namespace
            .create::<Role>(json!({ "metadata": { "name": name }, "rules": rules }))
            .await;
        self.namespace
            .create::<RoleBinding>(json!({
                "metadata": { "name": name },
                "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": name },
                "subjects": [subject],
            }))
            .await;
    }

    /// Lets a subject ask for actions.
    async fn may_ask(&self, kind: &str, subject: &str) {
        let rule = json!({
            "apiGroups": ["action-executor.dev"], "resources": ["actions"],
            "verbs": ["simulate", "execute", "get", "list"],
        });
        self.grant(kind, subject, json!([rule])).await;
    }

    /// A keys file with a key for each of these users, who are in the group `sre`.
    fn keys(&self, users: &[&str]) -> PathBuf {
        let entry = |user: &&str| {
            json!({
                "name": user, "sha256": sha256(key(user).as_bytes()),
                "impersonate": { "user": self.own(user), "groups": [self.own("sre"), "admins"] },
            })
        };
        let path = scratch("keys.yaml");
        let keys = json!({ "keys": users.iter().map(entry).collect::<Vec<_>>() });
        fs::write(&path, keys.to_string()).expect("is written");
        path
    }

    fn program(&self, users: &[&str]) -> Program {
        Program::with_kubeconfig(&self.kubeconfig)
            .under(&self.policy)
            .env(IMPERSONATE, "callers")
            .env(GROUPS, self.own("sre"))
            .env("ACTION_EXECUTOR_KEYS", self.keys(users))
    }

    fn restart(&self, deployment: &str, more: Value) -> Value {
        let mut request = json!({
            "type": "restart_k8s", "simulate": false,
            "parameters": { "deployment": deployment, "namespace": self.name() },
        });
        let fields = more.as_object().expect("are fields").clone();
        request.as_object_mut().expect("is one").extend(fields);
        request
    }

    /// What the audit log has of the server's account since then, about this resource in the namespace.
    fn audited(&self, since: u64, resource: &str) -> Vec<Value> {
        let is_about = |entry: &Value| {
            let object = &entry["objectRef"];
            object["resource"] == resource && object["namespace"] == self.name()
        };
        calls(&self.account(), since).into_iter().filter(is_about).collect()
    }

    async fn generation(&self, deployment: &str) -> i64 {
        self.namespace.get_deployment(deployment).await.metadata.generation.expect("has one")
    }
}

fn key(user: &str) -> String {
    sha256(format!("the key of {user}").as_bytes())
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\nConnection: close\r\n")
}

fn send(server: &Server, token: &str, request: &Value, headers: &str) -> Reply {
    let headers = format!("{headers}{}", bearer(token));
    server.raw(&execute_request(request.to_string().as_bytes(), &headers))
}

fn get(server: &Server, token: &str, path: &str) -> Reply {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer(token));
    server.raw(head.as_bytes())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The code and the detail of a problem.
fn problem(reply: &Reply) -> (u16, String, String) {
    let body = reply.json();
    (reply.status, text(&body["code"]).to_owned(), text(&body["detail"]).to_owned())
}

/// For a server that may impersonate the group `sre` of the test, and any user.
async fn site_of_sre(test: &str) -> Site {
    let site = Site::new(test, &[]).await;
    let (group, name) = (site.own("sre"), site.name().to_owned());
    site.apply_printed(&[
        "rbac",
        "--impersonate",
        "--impersonate-group",
        &group,
        "--namespace",
        &name,
    ]);
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_shows_the_executor_and_the_person() {
    let site = site_of_sre("as_jo").await;
    // The person has the permissions, and the executor's account has none on Deployments.
    site.may_restart("User", &site.own("jo"), &[]).await;
    let server = Server::start(site.program(&["jo"]));
    let since = log_length();
    let request = site.restart("web", json!({ "wait": true, "id": "r1", "timeout_seconds": 30 }));
    let done = send(&server, &key("jo"), &request, "");
    assert_eq!((done.status, &done.json()["outcome"]), (200, &json!("applied")), "{done:?}");
    let target = site.audited(since, "deployments");
    let verbs: Vec<_> = target.iter().map(|entry| text(&entry["verb"])).collect();
    assert!(verbs.contains(&"get") && verbs.contains(&"patch"), "{verbs:?}");
    for entry in &target {
        let person = &entry["impersonatedUser"];
        assert_eq!(text(&person["username"]), site.own("jo"), "{entry}");
        assert_eq!(person["groups"], json!([site.own("sre"), "system:authenticated"]), "{entry}");
        let executor = &person["extra"]["action-executor.dev/executor"];
        assert_eq!(*executor, json!([site.account()]), "{entry}");
    }
    for resource in ["events", "leases"] {
        let own = site.audited(since, resource);
        assert!(own.iter().any(|entry| entry["verb"] == "create"), "{resource}: {own:?}");
        assert!(own.iter().all(|entry| entry["impersonatedUser"].is_null()), "{own:?}");
    }
    let record = records(&site.namespace).await.remove(0);
    let annotations = record.metadata.annotations.expect("has some");
    let users = &annotations["action-executor.dev/impersonated-users"];
    assert_eq!(*users, json!([site.own("jo")]).to_string());
    assert_eq!(annotations["action-executor.dev/requester"], "jo");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_refuses_a_person_without_permissions_though_the_executor_has_them() {
    let site = site_of_sre("without_rights").await;
    let account = format!("{}:server", site.name());
    site.may_restart("ServiceAccount", &account, &[]).await;
    let before = site.generation("web").await;
    let server = Server::start(site.program(&["jo"]));
    for simulate in [true, false] {
        let request = site.restart("web", json!({ "simulate": simulate }));
        let refused = send(&server, &key("jo"), &request, "");
        let (status, code, detail) = problem(&refused);
        assert_eq!((status, code.as_str()), (403, "forbidden"), "{refused:?}");
        let jo = site.own("jo");
        assert!(detail.starts_with(&format!("{jo} may not get deployments.apps")), "{detail}");
        let hint = refused.json()["hint"].to_string();
        assert!(hint.contains(&format!("bound to the user {jo}")), "{hint}");
    }
    assert_eq!(site.generation("web").await, before);
    // A group that is not listed gives no permission; one that is listed does.
    site.may_restart("Group", "admins", &[]).await;
    let request = site.restart("web", json!({}));
    assert_eq!(send(&server, &key("jo"), &request, "").status, 403);
    let page = include_str!("../../docs/how-to/impersonation.md");
    let mut blocks = page.split("```yaml\n").filter_map(|rest| rest.split("```").next());
    let role = blocks.find(|block| block.starts_with("# role.yaml")).expect("there is one");
    let role: Value = serde_yaml_ng::from_str(role).expect("is YAML");
    site.grant("Group", &site.own("sre"), role["rules"].clone()).await;
    eventually("the group has the permission", async || {
        (send(&server, &key("jo"), &request, "").status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_to_impersonate_is_the_executors_and_not_the_callers() {
    let site = Site::new("not_allowed", &[]).await;
    let name = site.name().to_owned();
    let mo = site.own("mo");
    site.apply_printed(&["rbac", "--impersonate", "--impersonate-user", &mo, "--namespace", &name]);
    site.may_restart("User", &site.own("jo"), &[]).await;
    let server = Server::start(site.program(&["jo", "mo"]));
    let request = site.restart("web", json!({}));
    for (user, missing) in [("jo", "users"), ("mo", "groups")] {
        let refused = send(&server, &key(user), &request, "");
        let (status, code, detail) = problem(&refused);
        assert_eq!((status, code.as_str()), (403, "forbidden"), "{refused:?}");
        let person = site.own(user);
        let begin = format!("the executor's own account may not impersonate {person}: ");
        assert!(detail.starts_with(&begin) && detail.contains(&site.account()), "{detail}");
        let hint = refused.json()["hint"].to_string();
        assert!(hint.contains("\\\"impersonate\\\"") && hint.contains(missing), "{hint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_caller_is_a_user_of_the_cluster_or_refused() {
    let site = Site::new("kinds", &[]).await;
    let name = site.name().to_owned();
    let (group, agent) = (site.own("sre"), format!("{name}:agent"));
    site.apply_printed(&[
        "rbac",
        "--impersonate",
        "--impersonate-user",
        &site.own("jo"),
        "--impersonate-user",
        &site.own("mo"),
        "--impersonate-group",
        &group,
        "--impersonate-account",
        &agent,
        "--impersonate-extra",
        CREDENTIAL,
        "--namespace",
        &name,
    ]);
    for account in ["agent", "other"] {
        site.namespace.grant(account, json!([])).await;
        let account = format!("{name}:{account}");
        site.may_ask("ServiceAccount", &account).await;
        site.may_restart("ServiceAccount", &account, &[]).await;
    }
    site.may_ask("User", &site.own("jo")).await;
    site.may_restart("Group", &group, &[]).await;
    let keys = scratch("keys.yaml");
    let entries = json!({ "keys": [
        { "name": "nobody", "sha256": sha256(key("nobody").as_bytes()) },
        { "name": "mo", "sha256": sha256(key("mo").as_bytes()),
          "impersonate": { "user": site.own("mo"), "groups": [group] } },
        { "name": "admin", "sha256": sha256(key("admin").as_bytes()),
          "impersonate": { "user": "system:admin" } },
        { "name": "listed", "certificate": "listed" },
    ]});
    fs::write(&keys, entries.to_string()).expect("is written");
    let (authority, clients) = (Authority::new(), Authority::new());
    let program = Program::with_kubeconfig(&site.kubeconfig)
        .under(&site.policy)
        .env(IMPERSONATE, "callers")
        .env(GROUPS, &group)
        .env(ACCOUNTS, &agent)
        .env(EXTRA, CREDENTIAL)
        .env("ACTION_EXECUTOR_KEYS", &keys)
        .env("ACTION_EXECUTOR_TOKEN_AUDIENCE", "action-executor")
        .env("ACTION_EXECUTOR_TLS_CLIENT_CA", clients.file());
    let server = Server::start(authority.server().files().apply_to(program));
    let request = site.restart("web", json!({}));
    let with = |user: Option<(&str, &[&str])>, headers: &str| {
        let pair = user.map(|(user, groups)| clients.client(user, groups));
        let client = authority.trusted_by(pair.as_ref());
        let mut over = BufReader::new(server.secured(&client));
        let headers = format!("{headers}Connection: close\r\n");
        let request = execute_request(request.to_string().as_bytes(), &headers);
        Reply::exchange(&mut over, &request)
    };
    let authorization = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let since = log_length();
    let jo = site.own("jo");
    let as_jo = with(Some((&jo, &[&group])), "");
    assert_eq!(as_jo.status, 200, "{as_jo:?}");
    let as_mo = with(None, &authorization(&key("mo")));
    assert_eq!(as_mo.status, 200, "{as_mo:?}");
    let token = site.namespace.token("agent", &["action-executor"]).await;
    let as_agent = with(None, &authorization(&token));
    assert_eq!(as_agent.status, 200, "{as_agent:?}");
    let user = format!("system:serviceaccount:{name}:agent");
    let seen: Vec<_> = site.audited(since, "deployments");
    let of = |user: &str| {
        let mut seen = seen.iter().map(|entry| &entry["impersonatedUser"]);
        seen.find(|person| person["username"] == user).cloned().expect("was seen")
    };
    assert_eq!(of(&jo)["groups"], json!([group, "system:authenticated"]));
    let agent_seen = of(&user);
    assert!(text(&agent_seen["uid"]).len() > 8, "{agent_seen}");
    assert!(text(&agent_seen["extra"][CREDENTIAL][0]).starts_with("JTI="), "{agent_seen}");
    assert!(agent_seen["groups"].to_string().contains("system:serviceaccounts"), "{agent_seen}");

    let before = site.generation("web").await;
    let other = site.namespace.token("other", &["action-executor"]).await;
    for (reply, detail) in [
        (with(None, &authorization(&other)), "is a user of Kubernetes"),
        (with(None, &authorization(&key("nobody"))), "key 'nobody' is not a user of the cluster"),
        (with(None, &authorization(&key("admin"))), "system:admin is a user of Kubernetes"),
        (with(Some(("listed", &[])), ""), "key 'listed' is not a user of the cluster"),
    ] {
        let (status, code, found) = problem(&reply);
        assert_eq!((status, code.as_str()), (403, "caller_forbidden"), "{reply:?}");
        assert!(found.contains(detail), "{found}");
    }
    assert_eq!(with(None, "").status, 401);
    assert_eq!(site.generation("web").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_at_the_same_time_never_mix() {
    let site = site_of_sre("never_mix").await;
    site.namespace.running_deployment("web-mo", 1).await;
    site.may_restart("User", &site.own("jo"), &["web"]).await;
    site.may_restart("User", &site.own("mo"), &["web-mo"]).await;
    let server = Arc::new(Server::start(site.program(&["jo", "mo"])));
    let since = log_length();
    let mut sending = Vec::new();
    for round in 0..8 {
        for (user, own, other) in [("jo", "web", "web-mo"), ("mo", "web-mo", "web")] {
            for (deployment, expected) in [(own, 200), (other, 403)] {
                let request = site.restart(deployment, json!({ "simulate": round != 0 }));
                let server = server.clone();
                sending.push(spawn_blocking(move || {
                    let reply = send(&server, &key(user), &request, "");
                    assert_eq!(reply.status, expected, "{user} {deployment}: {reply:?}");
                }));
            }
        }
    }
    for sent in sending {
        sent.await.expect("is as expected");
    }
    let seen = site.audited(since, "deployments");
    let succeeded: Vec<_> =
        seen.iter().filter(|entry| entry["responseStatus"]["code"] == 200).collect();
    assert!(succeeded.len() >= 32, "{}", succeeded.len());
    for entry in succeeded {
        let owner = if entry["objectRef"]["name"] == "web" { "jo" } else { "mo" };
        assert_eq!(text(&entry["impersonatedUser"]["username"]), site.own(owner), "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_stays_the_callers_and_its_state_is_read_as_who_asks() {
    let site = site_of_sre("waits").await;
    site.namespace.deployment("slow", 1, SLOW_IMAGE).await;
    site.namespace.rolled_out("slow").await;
    site.may_restart("User", &site.own("jo"), &[]).await;
    let server = Server::start(site.program(&["jo", "mo"]));
    let since = log_length();
    let request = site.restart("slow", json!({ "wait": true, "id": "r1", "timeout_seconds": 60 }));
    let accepted = send(&server, &key("jo"), &request, "Prefer: respond-async\r\n");
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let path = format!("/api/v1/actions/r1?namespace={}", site.name());
    // The streams of one request, which share a poll for each person alone.
    let streams = ["jo", "mo"].map(|user| {
        let mut stream = server.connect();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{}\r\n",
            bearer(&key(user))
        );
        stream.write_all(head.as_bytes()).expect("is sent");
        spawn_blocking(move || {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("is read");
            text
        })
    });
    let state = |user: &str| get(&server, &key(user), &path).json();
    let shown = eventually("the wait has begun", async || {
        let state = state("mo");
        (state["state"] == "applied").then_some(state)
    })
    .await;
    // Mo may know of the request, and may not read the Deployment.
    let detail = text(&shown["detail"]);
    let mo = site.own("mo");
    assert!(detail.contains(&format!("{mo} may not get deployments.apps")), "{detail}");
    let detail = state("jo")["detail"].to_string();
    assert!(!detail.contains("may not") && !detail.contains("could not be read"), "{detail}");
    eventually("it is done", async || (state("jo")["state"] == "answered").then_some(())).await;
    assert_eq!(state("jo")["answer"]["outcome"], "applied");
    for (stream, reads) in streams.into_iter().zip([true, false]) {
        let text = stream.await.expect("ends");
        assert!(text.contains("event: done"), "{text}");
        assert_eq!(text.contains("may not get deployments.apps"), !reads, "{text}");
    }
    for entry in site.audited(since, "deployments") {
        let user = text(&entry["impersonatedUser"]["username"]);
        let is_a_read_of_mo = user == mo && entry["responseStatus"]["code"] == 403;
        assert!(user == site.own("jo") || is_a_read_of_mo, "{entry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_acts_as_who_retries_and_another_caller_cannot() {
    for at in [Failpoint::BeforeWrite, Failpoint::AfterWrite] {
        let site = site_of_sre("retries").await;
        for user in ["jo", "mo"] {
            site.may_restart("User", &site.own(user), &[]).await;
        }
        let before = site.generation("web").await;
        let crashing = Server::start(
            site.program(&["jo"])
                .env("ACTION_EXECUTOR_FAILPOINT", at.name())
                .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2"),
        );
        let request = site.restart("web", json!({ "id": "r1" }));
        assert_eq!(send(&crashing, &key("jo"), &request, "").status, 0);
        // Mo has a key of the same name, so that the request is the same one.
        let keys = site.keys(&["jo", "mo"]);
        let entries = fs::read_to_string(&keys).expect("is readable").replace(
            &format!("\"name\":\"mo\",\"sha256\":\"{}\"", sha256(key("mo").as_bytes())),
            &format!("\"name\":\"jo\",\"sha256\":\"{}\"", sha256(key("mo").as_bytes())),
        );
        fs::write(&keys, entries).expect("is written");
        let server = Server::start(site.program(&[]).env("ACTION_EXECUTOR_KEYS", &keys));
        let since = log_length();
        let done = eventually("the claim has expired", async || {
            let reply = send(&server, &key("mo"), &request, "");
            (reply.status != 409).then_some(reply)
        })
        .await;
        assert_eq!(done.status, 200, "{done:?}");
        assert_eq!(done.json()["replayed"], at == Failpoint::AfterWrite, "{done:?}");
        assert_eq!(site.generation("web").await, before + 1);
        // The change may be the work of either.
        let record = records(&site.namespace).await.remove(0);
        let users = &record.metadata.annotations.expect("has some")["action-executor.dev/impersonated-users"];
        assert_eq!(*users, json!([site.own("jo"), site.own("mo")]).to_string());
        for entry in site.audited(since, "deployments") {
            assert_eq!(text(&entry["impersonatedUser"]["username"]), site.own("mo"), "{entry}");
        }
        let other = Server::start(site.program(&["mo"]));
        let (_, code, _) = problem(&send(&other, &key("mo"), &request, ""));
        assert_eq!(code, "id_reused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_and_a_tool_of_a_model_are_the_callers() {
    let site = site_of_sre("tools").await;
    let read = json!([
        { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"] },
        { "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] },
    ]);
    site.grant("User", &site.own("jo"), read).await;
    let server = Server::start(site.program(&["jo", "mo"]));
    let path = format!("/api/v1/diagnosis?target=deployment/web&namespace={}", site.name());
    let since = log_length();
    let report = get(&server, &key("jo"), &path);
    assert_eq!(report.status, 200, "{report:?}");
    let report = report.json();
    assert_eq!(report["pods"]["total"], 1, "{report}");
    let unread = report.to_string();
    assert!(unread.contains(&format!("{} may not list events", site.own("jo"))), "{unread}");
    let refused = get(&server, &key("mo"), &path);
    assert_eq!(problem(&refused).1, "forbidden", "{refused:?}");
    let arguments = json!({
        "parameters": { "deployment": "web", "namespace": site.name() }, "id": "t1", "reason": "slow",
    })
    .to_string();
    let tool = |user: &str| {
        Http::with_token(&server, &key(user)).call("restart_k8s", &arguments).to_string()
    };
    let refused = tool("jo");
    assert!(
        refused.contains(&format!("{} may not patch deployments", site.own("jo"))),
        "{refused}"
    );
    let seen = site.audited(since, "deployments");
    assert!(seen.len() >= 3 && seen.iter().all(|it| !it["impersonatedUser"].is_null()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_policies_bind_what_the_executor_does_in_anothers_name() {
    let site = site_of_sre("bound").await;
    site.may_restart("User", &site.own("jo"), &[]).await;
    let strict = site.namespace.policy("read_only: true");
    let account = format!("{}:server", site.name());
    let strict = strict.display().to_string();
    let printed = Program::offline()
        .args(["policy", "admission", "--service-account", &account, &strict])
        .run();
    let manifests = scratch("admission.yaml");
    fs::write(&manifests, printed.stdout).expect("is written");
    let manifests = manifests.display().to_string();
    let (applied, output) = kubectl(&["apply", "--validate=strict", "-f", &manifests]);
    assert!(applied, "{output}");
    let server = Server::start(site.program(&["jo"]));
    let denied = eventually("the API server denies it", async || {
        let refused = send(&server, &key("jo"), &site.restart("web", json!({})), "");
        (refused.status == 422).then_some(refused)
    })
    .await;
    assert!(problem(&denied).2.contains("denied by read_only"), "{denied:?}");
    // Of jo's own calls the policies know nothing.
    let user = format!("--as={}", site.own("jo"));
    let (done, output) =
        kubectl(&["-n", site.name(), "annotate", "deployment", "web", "own=1", &user]);
    kubectl(&["delete", "--wait=false", "-f", &manifests]);
    assert!(done, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn constrained_impersonation_allows_what_the_actions_do_and_nothing_else() {
    let site = Site::new("constrained", &[]).await;
    let (group, name) = (site.own("sre"), site.name().to_owned());
    site.apply_printed(&[
        "rbac",
        "--impersonate",
        "--constrained",
        "--impersonate-user",
        &site.own("jo"),
        "--impersonate-group",
        &group,
        "--namespace",
        &name,
    ]);
    let all = json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]);
    site.grant("User", &site.own("jo"), all).await;
    let server = Server::start(site.program(&["jo"]));
    let request = site.restart("web", json!({ "wait": true, "timeout_seconds": 30 }));
    let done = send(&server, &key("jo"), &request, "");
    assert_eq!((done.status, &done.json()["outcome"]), (200, &json!("applied")), "{done:?}");
    let warnings = done.json()["warnings"].to_string();
    assert!(!warnings.contains("may not"), "{warnings}");
    // The account with its own credentials, as if the program were another.
    let as_jo = |arguments: &[&str]| {
        let mut kubectl = Command::new(shared().program("kubectl"));
        kubectl.env("KUBECONFIG", &site.kubeconfig).args(["-n", &name, "--as", &site.own("jo")]);
        let done = kubectl.args(arguments).output().expect("kubectl runs");
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (read, output) = as_jo(&["get", "deployment", "web"]);
    assert!(read, "{output}");
    for more in [&["delete", "deployment", "web"][..], &["get", "secrets"]] {
        let (done, output) = as_jo(more);
        assert!(!done && output.contains("cannot impersonate"), "{more:?}: {output}");
    }
    assert!(site.namespace.api::<Deployment>().get_opt("web").await.expect("is read").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_if_a_proxy_drops_the_impersonation() {
    let site = Site::new("dropped", &[]).await;
    site.may_restart("User", &site.own("jo"), &[]).await;
    let before = site.generation("web").await;
    let mut as_jo = Kubeconfig::read_from(site.namespace.kubeconfig()).expect("is readable");
    as_jo.auth_infos[0].auth_info.get_or_insert_default().impersonate = Some(site.own("jo"));
    let as_jo = client(as_jo).await;
    // Both forward no header that they do not know. One calls as an administrator; the other as the very person.
    for behavior in [ProxyBehavior::Forward, ProxyBehavior::ForwardTo(as_jo)] {
        let kubeconfig = proxy(&site.namespace, move |_| behavior.clone()).await;
        let server = Server::start(site.program(&["jo"]).env("KUBECONFIG", &kubeconfig));
        for _ in 0..2 {
            let refused = send(&server, &key("jo"), &site.restart("web", json!({})), "");
            let (status, code, detail) = problem(&refused);
            assert_eq!((status, code.as_str()), (503, "configuration"), "{refused:?}");
            assert!(detail.contains("do not reach it"), "{detail}");
        }
    }
    assert_eq!(site.generation("web").await, before);
    assert!(records(&site.namespace).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_impersonate_does_not_start() {
    let site = Site::new("startup", &[]).await;
    let refusal = |program: Program| {
        let done = program.env("ACTION_EXECUTOR_LOG", "error").run();
        assert_eq!(done.status, 78, "{done:?}");
        format!("{}{}", done.stdout, done.stderr)
    };
    let serve = ["serve", "--bind", "127.0.0.1:0"];
    let open = Program::with_kubeconfig(&site.kubeconfig).env(IMPERSONATE, "callers");
    let words = refusal(open.args(serve));
    assert!(words.contains("ACTION_EXECUTOR_IMPERSONATE") && words.contains("TOKEN_AUDIENCE"));
    let words = refusal(site.program(&["jo"]).env(IMPERSONATE, "jo").args(serve));
    assert!(words.contains("must be none or callers"), "{words}");
    let words = refusal(site.program(&["jo"]).env(GROUPS, "system:masters").args(serve));
    assert!(words.contains(GROUPS), "{words}");
    // Groups alone would be added to those of each caller.
    for more in [json!({ "as": "jo" }), json!({ "as-groups": ["system:masters"] })] {
        let mut user = json!({ "token": "x" });
        user.as_object_mut().expect("is one").extend(more.as_object().expect("is one").clone());
        let kubeconfig = site.namespace.kubeconfig_with("as", user);
        let program = site.program(&["jo"]).env("KUBECONFIG", &kubeconfig);
        let words = refusal(program.args(serve));
        assert!(words.contains("remove `as`"), "{more}: {words}");
    }
    // A single request has no caller.
    let run = Program::with_kubeconfig(&site.kubeconfig).env(IMPERSONATE, "callers");
    let words = refusal(run.input(site.restart("web", json!({ "simulate": true })).to_string()));
    assert!(words.contains("unset ACTION_EXECUTOR_IMPERSONATE"), "{words}");
    let events = site.namespace.api::<Event>();
    let own = events.list(&kube::api::ListParams::default()).await.expect("are listed").items;
    assert!(
        own.iter().all(|event| event.reporting_component.as_deref() != Some("action-executor"))
    );
}
