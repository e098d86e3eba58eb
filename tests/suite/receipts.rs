//! Receipts: what is in them, that OpenSSL verifies them, what is noticed of one that was changed, and what becomes of
//! them when processes crash, write at once or cannot write.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use action_executor::{
    actions::ActionKind, contract::digest::sha256, executor::failpoint::Failpoint,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Method;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    approval::{REQUIRE_APPROVAL, approve},
    cluster::{GOOD_IMAGE, Namespace, SLOW_IMAGE, eventually, shared},
    exactly_once::delete_records,
    fault_proxy::{ProxyBehavior, proxy},
    mcp,
    program::{Finished, Program, Server, scratch},
    scenario::{Scenario, extended, without_replayed},
};

/// A key pair that OpenSSL made.
pub struct Keys {
    pub private: PathBuf,
    pub public: PathBuf,
}

impl Keys {
    fn new() -> Self {
        let keys = Keys { private: scratch("receipt.pem"), public: scratch("receipt.pub") };
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", text(&keys.private)]);
        openssl(&["pkey", "-in", text(&keys.private), "-pubout", "-out", text(&keys.public)]);
        keys
    }

    /// The pair of most tests.
    pub fn shared() -> &'static Keys {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(Keys::new)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("is text")
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let done = Command::new("openssl").args(arguments).output().expect("openssl runs");
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    done.stdout
}

/// The program, which writes receipts to this file.
pub fn with_receipts(program: Program, file: &Path) -> Program {
    program
        .env("ACTION_EXECUTOR_RECEIPT_KEY", &Keys::shared().private)
        .env("ACTION_EXECUTOR_RECEIPTS", file)
}

fn program(namespace: &Namespace, file: &Path) -> Program {
    with_receipts(Program::with_kubeconfig(namespace.kubeconfig()), file)
}

fn send(program: Program, request: &Value) -> Finished {
    program.input(request.to_string()).run()
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).expect("is there").lines().map(str::to_owned).collect()
}

/// The payload of an envelope.
pub fn payload(line: &str) -> Value {
    let envelope: Value = serde_json::from_str(line).expect("is JSON");
    let payload = envelope["payload"].as_str().expect("is text");
    serde_json::from_slice(&BASE64_STANDARD.decode(payload).expect("is base64")).expect("is JSON")
}

/// The predicates of the receipts in this file.
fn predicates(file: &Path) -> Vec<Value> {
    lines(file).iter().map(|line| payload(line)["predicate"].clone()).collect()
}

fn verify(file: &Path, keys: &[&Path], output: &str) -> Finished {
    let mut arguments = vec!["verify-receipt", text(file), "-o", output];
    keys.iter().for_each(|key| arguments.extend(["--key", text(key)]));
    Program::offline().args(arguments).run()
}

/// Has OpenSSL verify what DSSE says is signed.
pub fn verified_by_openssl(line: &str) {
    let envelope: Value = serde_json::from_str(line).expect("is JSON");
    let part = |value: &Value| {
        BASE64_STANDARD.decode(value.as_str().expect("is text")).expect("is base64")
    };
    let payload = part(&envelope["payload"]);
    let kind = envelope["payloadType"].as_str().expect("is text");
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let (message, signature) = (scratch("pae"), scratch("sig"));
    fs::write(&message, [head.as_bytes(), &payload].concat()).expect("is written");
    fs::write(&signature, part(&envelope["signatures"][0]["sig"])).expect("is written");
    openssl(&[
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        text(&Keys::shared().public),
        "-rawin",
        "-in",
        text(&message),
        "-sigfile",
        text(&signature),
    ]);
}

#[tokio::test]
async fn a_real_action_leaves_one_receipt_that_openssl_verifies_too() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "receipt").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let fields = json!({ "requester": "pager", "reason": "p99 is 4 s" });
    let request = extended(scenario.request("receipt-1"), json!({}), fields);
    let simulated = extended(request.clone(), json!({}), json!({ "simulate": true }));
    assert_eq!(send(program(namespace, &file), &simulated).status, 0);
    assert!(lines(&file).is_empty(), "simulations have none");

    let named = program(namespace, &file).env("ACTION_EXECUTOR_CLUSTER_NAME", "prod");
    let answer = send(named, &request).answer();
    assert_eq!((&answer["outcome"], &answer["warnings"]), (&json!("applied"), &json!([])));
    assert_eq!(send(program(namespace, &file), &request).answer()["replayed"], true);
    let lines = lines(&file);
    assert_eq!(lines.len(), 1, "a replay has none");

    let statement = payload(&lines[0]);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://action-executor.dev/receipt/v1");
    let subject = &statement["subject"][0];
    let name = format!("apps/v1/Deployment/{}/web", namespace.name());
    assert_eq!(subject["name"], name);
    let uid = answer["target"]["uid"].as_str().expect("has one");
    assert_eq!(subject["digest"]["sha256"], sha256(uid.as_bytes()));
    let predicate = &statement["predicate"];
    for (field, value) in [
        ("requestId", json!("receipt-1")),
        ("action", json!("restart_k8s")),
        ("parameters", json!({ "deployment": "web", "namespace": namespace.name() })),
        ("requester", json!("pager")),
        ("reason", json!("p99 is 4 s")),
        ("outcome", json!("applied")),
        ("final", json!(true)),
        ("resumed", json!(false)),
        ("result", answer["result"].clone()),
        ("startedAt", answer["started_at"].clone()),
        ("finishedAt", answer["finished_at"].clone()),
        ("cluster", json!("prod")),
        ("executorVersion", json!(env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(predicate[field], value, "{field} of {predicate}");
    }

    verified_by_openssl(&lines[0]);
    let public = Keys::shared().public.as_path();
    let envelope: Value = serde_json::from_str(&lines[0]).expect("is JSON");
    let der = openssl(&["pkey", "-pubin", "-in", text(public), "-outform", "DER"]);
    assert_eq!(envelope["signatures"][0]["keyid"], sha256(&der));
    let done = verify(&file, &[public], "text");
    assert_eq!(done.status, 0, "{done:?}");
    let says =
        format!("restart_k8s of {name}: applied (request receipt-1, requested by pager, key ");
    assert!(done.stdout.starts_with("line 1: valid: ") && done.stdout.contains(&says), "{done:?}");
    let document = verify(&file, &[public], "json").answer();
    assert_eq!((&document["valid"], &document["line"]), (&json!(true), &json!(1)));
    assert_eq!(document["statement"], statement);
    let piped = fs::read(&file).expect("is there");
    let piped =
        Program::offline().args(["verify-receipt", "-", "--key", text(public)]).input(piped);
    assert_eq!(piped.run().status, 0);
}

/// A file with receipts of this many actions that found nothing to change.
async fn some_receipts(test: &str, number: usize) -> PathBuf {
    let namespace = shared().namespace(test).await;
    namespace.deployment("web", 1, GOOD_IMAGE).await;
    let file = scratch("receipts");
    for number in 0..number {
        let done = send(program(&namespace, &file), &unchanged(&namespace, number));
        assert_eq!(done.answer()["outcome"], "unchanged", "{done:?}");
    }
    file
}

/// A real request that changes nothing.
fn unchanged(namespace: &Namespace, number: usize) -> Value {
    json!({
        "type": "scale", "simulate": false, "id": format!("scale-{number}"),
        "parameters": { "name": "web", "namespace": namespace.name(), "replicas": 1 },
    })
}

#[tokio::test]
async fn a_receipt_that_was_changed_is_reported_with_its_line_and_the_reason() {
    let file = some_receipts("changed-receipt", 2).await;
    let (lines, public) = (lines(&file), Keys::shared().public.as_path());
    let other = Keys::new();
    let reported = |second: &str, keys: &[&Path], reason: &str| {
        let changed = scratch("changed");
        fs::write(&changed, format!("{}\n{second}", lines[0])).expect("is written");
        let done = verify(&changed, keys, "text");
        assert_eq!(done.status, 65, "{second}: {done:?}");
        let line = done.stdout.lines().nth(1).expect("there are two");
        assert!(line.starts_with("line 2: NOT VALID: ") && line.contains(reason), "{line}");
        let first = done.stdout.lines().next().expect("there are two");
        assert_eq!(first.contains("NOT VALID"), !keys.contains(&public), "{first}");
        let documents = verify(&changed, keys, "json");
        assert_eq!(documents.status, 65);
        let document: Value = documents
            .stdout
            .lines()
            .nth(1)
            .and_then(|line| serde_json::from_str(line).ok())
            .expect("is JSON");
        assert_eq!(document["valid"], false);
    };
    let second = &lines[1];
    // Each field of the payload.
    let statement = payload(second);
    let fields = statement["predicate"].as_object().expect("is an object").keys();
    let paths = ["/_type", "/predicateType", "/subject/0/name", "/subject/0/digest/sha256"];
    let paths = paths.map(str::to_owned).into_iter();
    for path in paths.chain(fields.map(|field| format!("/predicate/{field}"))) {
        let mut changed = statement.clone();
        *changed.pointer_mut(&path).expect("is there") = json!("changed");
        let mut envelope: Value = serde_json::from_str(second).expect("is JSON");
        envelope["payload"] = BASE64_STANDARD.encode(changed.to_string()).into();
        reported(&envelope.to_string(), &[public], "the signature is not that of the payload");
    }
    let envelope = |change: &dyn Fn(&mut Value)| {
        let mut envelope: Value = serde_json::from_str(second).expect("is JSON");
        change(&mut envelope);
        envelope.to_string()
    };
    let signature = json!({ "keyid": "a", "sig": "b" });
    for (changed, reason) in [
        (second[..second.len() / 2].to_owned(), "was cut"),
        (envelope(&|it| it["payloadType"] = "text/plain".into()), "payloadType"),
        (envelope(&|it| it["note"] = "x".into()), "unknown field"),
        (second.replacen('{', r#"{"payload":"e30=","#, 1), "duplicate field"),
        (
            envelope(&|it| {
                it["signatures"].as_array_mut().expect("is one").push(signature.clone())
            }),
            "2 signatures",
        ),
        (envelope(&|it| it["signatures"] = json!([])), "0 signatures"),
        (envelope(&|it| it["signatures"][0]["keyid"] = "0".repeat(64).into()), "keyid"),
        (envelope(&|it| it["signatures"][0]["sig"] = "AAAA".into()), "the signature is not"),
        (String::new(), "was cut"),
    ] {
        // A line end makes an empty line one, too.
        reported(&format!("{changed}\n"), &[public], reason);
    }
    reported(second, &[&other.public], "keyid");
    assert_eq!(verify(&file, &[&other.public, public], "text").status, 0);

    let empty = scratch("empty");
    fs::write(&empty, "").expect("is written");
    assert_eq!(verify(&empty, &[public], "text").status, 65);
    assert_eq!(verify(Path::new("/nonexistent"), &[public], "text").status, 64);
    assert_eq!(verify(&file, &[&Keys::shared().private], "text").status, 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_end_at_once_do_not_mix_their_receipts() {
    let namespace = shared().namespace("at-once").await;
    namespace.deployment("web", 1, GOOD_IMAGE).await;
    let file = scratch("receipts");
    let requests: Vec<_> = (0..8).map(|number| unchanged(&namespace, number).to_string()).collect();
    let running: Vec<_> =
        requests.iter().map(|it| program(&namespace, &file).input(it.clone()).start()).collect();
    for done in running.into_iter().map(crate::program::Running::wait) {
        assert_eq!(done.status, 0, "{done:?}");
    }
    let done = verify(&file, &[&Keys::shared().public], "text");
    assert_eq!((done.status, done.stdout.lines().count()), (0, 8), "{done:?}");
}

#[tokio::test]
async fn a_full_disk_leaves_the_answer_as_it_is_and_the_next_attempt_writes_the_receipt() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "full-disk").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    fs::write(&file, "").expect("is written");
    let request = scenario.request("full-1");
    // Of a file, 512 bytes can be written: fewer than a receipt has. The signal for that would end the program.
    let program_with_limit = Program::built(Path::new("/bin/sh"))
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 1; exec \"$0\"",
            env!("CARGO_BIN_EXE_action-executor"),
        ])
        .env("KUBECONFIG", namespace.kubeconfig());
    let done = send(with_receipts(program_with_limit, &file), &request);
    assert_eq!(done.status, 0, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "applied");
    let warning = answer["warnings"][0].as_str().expect("there is one");
    assert!(warning.starts_with("the receipt could not be written: "), "{warning}");
    assert!(done.stderr.contains("receipt not written"), "{done:?}");

    let replayed = send(program(namespace, &file), &request).answer();
    assert_eq!((&replayed["replayed"], &replayed["warnings"]), (&json!(true), &json!([])));
    let lines = lines(&file);
    assert_eq!(lines.len(), 2, "the part of a line, and a line: {lines:?}");
    let predicate = &payload(&lines[1])["predicate"];
    assert_eq!((&predicate["outcome"], &predicate["resumed"]), (&json!("applied"), &json!(true)));
    let verified = verify(&file, &[&Keys::shared().public], "text");
    assert_eq!(verified.status, 65, "a line is missing, and that is seen");
    assert!(
        verified.stdout.contains("line 1: NOT VALID") && verified.stdout.contains("line 2: valid")
    );
    assert_eq!(scenario.effects().await, 1);
    assert_eq!(send(program(namespace, &file), &request).answer()["replayed"], true);
    assert_eq!(self::lines(&file).len(), 2, "it is written once");
}

#[tokio::test]
async fn a_server_whose_directory_is_gone_answers_and_counts_it() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "directory-gone").await;
    let directory = scratch("receipts");
    fs::create_dir(&directory).expect("is made");
    let server = Server::start(program(&scenario.namespace, &directory.join("receipts")));
    let first = server.execute(scenario.request("gone-1").to_string().as_bytes());
    assert_eq!((first.status, &first.json()["warnings"]), (200, &json!([])), "{first:?}");
    fs::remove_dir_all(&directory).expect("is removed");
    let second = server.execute(scenario.request("gone-2").to_string().as_bytes());
    assert_eq!((second.status, &second.json()["outcome"]), (200, &json!("applied")), "{second:?}");
    assert!(second.json()["warnings"].to_string().contains("the receipt could not be written"));
    let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
    for line in [
        r#"action_executor_receipts_total{result="written"} 1"#,
        r#"action_executor_receipts_total{result="failed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// Resends a request until another attempt's claim has expired.
async fn resent(namespace: &Namespace, file: &Path, request: &Value) -> Value {
    eventually("the request is answered", async || {
        let (program, request) = (program(namespace, file), request.clone());
        let done = spawn_blocking(move || send(program, &request)).await.expect("it ran");
        (done.status != 75).then(|| done.answer())
    })
    .await
}

async fn crashes(scenario: &Scenario, file: &Path, request: &Value, at: Failpoint) {
    let crashing = program(&scenario.namespace, file)
        .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2")
        .env("ACTION_EXECUTOR_FAILPOINT", at.name());
    let request = request.clone();
    let crashed = spawn_blocking(move || send(crashing, &request)).await.expect("it ran");
    assert_eq!(crashed.status, -1, "{at:?}: {crashed:?}");
    assert!(lines(file).is_empty(), "{at:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_crashes_after_its_effect_leaves_the_receipt_to_the_next_attempt() {
    for at in [Failpoint::AfterWrite, Failpoint::BeforeRecord, Failpoint::AfterRecord] {
        let scenario = Scenario::new(ActionKind::RestartK8s, "crashes-before-receipt").await;
        let (namespace, file) = (&scenario.namespace, scratch("receipts"));
        let request = scenario.request(&format!("crashes-{}", at.name()));
        crashes(&scenario, &file, &request, at).await;
        let answer = resent(namespace, &file, &request).await;
        assert_eq!((&answer["outcome"], &answer["replayed"]), (&json!("applied"), &json!(true)));
        let again = resent(namespace, &file, &request).await;
        assert_eq!(without_replayed(again), without_replayed(answer), "{at:?}");
        let all = predicates(&file);
        assert_eq!(all.len(), 1, "{at:?}: {all:?}");
        assert_eq!((&all[0]["outcome"], &all[0]["resumed"]), (&json!("applied"), &json!(true)));
        assert_eq!(scenario.effects().await, 1, "{at:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_crashes_between_a_receipt_and_the_note_of_it_leaves_two_of_one_request() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "crashes-after-receipt").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let request = scenario.request("twice");
    let crashing = program(namespace, &file).env("ACTION_EXECUTOR_FAILPOINT", "AfterReceipt");
    assert_eq!(send(crashing, &request).status, -1);
    assert_eq!(predicates(&file).len(), 1);
    for _ in 0..2 {
        assert_eq!(resent(namespace, &file, &request).await["replayed"], true);
    }
    are_two_of_one_request(&file);
}

#[tokio::test]
async fn a_resend_after_the_record_is_gone_leaves_a_second_receipt_with_its_own_times() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "record-gone").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let request = scenario.request("record-gone-1");
    assert_eq!(send(program(namespace, &file), &request).status, 0);
    delete_records(namespace).await;
    assert_eq!(send(program(namespace, &file), &request).status, 0);
    are_two_of_one_request(&file);
    let all = predicates(&file);
    let time = |at: usize, field: &str| all[at][field].as_str().expect("is text").to_owned();
    assert!(time(1, "startedAt") > time(0, "finishedAt"), "{all:?}");
    assert_eq!(scenario.effects().await, 1);
}

/// The limit of what a receipt with `resumed` proves.
#[tokio::test]
async fn the_mark_of_a_request_on_an_object_is_believed_and_its_receipt_is_resumed() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "forged-mark").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let request = scenario.request("forged-1");
    assert_eq!(send(program(namespace, &file), &request).status, 0);
    let deployments: Api<Deployment> = namespace.api();
    let web = deployments.get("web").await.expect("is there");
    let mark = web.annotations()["action-executor.dev/requests"].clone();
    deployments.delete("web", &DeleteParams::background()).await.expect("is deleted");
    eventually("it is gone", async || {
        deployments.get_opt("web").await.expect("is read").is_none().then_some(())
    })
    .await;
    delete_records(namespace).await;
    namespace.deployment("web", 1, GOOD_IMAGE).await;
    let forged = json!({ "metadata": { "annotations": { "action-executor.dev/requests": mark } } });
    let forged = Patch::Merge(forged);
    let forged = deployments.patch("web", &PatchParams::default(), &forged).await;
    let forged = forged.expect("is patched");
    assert_eq!(send(program(namespace, &file), &request).status, 0);
    are_two_of_one_request(&file);
    let web = deployments.get("web").await.expect("is there");
    assert_eq!(web.metadata.generation, forged.metadata.generation, "nothing was changed");
}

fn are_two_of_one_request(file: &Path) {
    let all = predicates(file);
    assert_eq!(all.len(), 2, "{all:?}");
    for field in ["requestId", "requestDigest", "outcome"] {
        assert_eq!(all[0][field], all[1][field], "{field}");
    }
    assert_eq!((&all[0]["resumed"], &all[1]["resumed"]), (&json!(false), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_could_not_be_recorded_has_a_receipt_and_so_has_the_one_that_is() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "unrecorded-receipt").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let request = scenario.request("unrecorded");
    let denied = proxy(namespace, |call| match call.method {
        Method::PATCH if call.writes("events") => ProxyBehavior::Respond(403, "denied"),
        _ => ProxyBehavior::Forward,
    })
    .await;
    let first = with_receipts(Program::with_kubeconfig(&denied), &file)
        .env("ACTION_EXECUTOR_DEADLINE_SECONDS", "2")
        .input(request.to_string());
    let first = spawn_blocking(move || first.run()).await.expect("it ran");
    assert_eq!(first.status, 0, "{first:?}");
    assert!(first.stdout.contains("the answer could not be recorded"), "{first:?}");
    assert_eq!(predicates(&file).len(), 1);
    assert_eq!(resent(namespace, &file, &request).await["replayed"], true);
    are_two_of_one_request(&file);
    assert_eq!(scenario.effects().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_attempts_that_wait_for_one_rollout_leave_one_receipt() {
    let namespace = shared().namespace("joined-receipt").await;
    namespace.deployment("web", 1, SLOW_IMAGE).await;
    namespace.rolled_out("web").await;
    let file = scratch("receipts");
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "joined", "wait": true,
        "parameters": { "deployment": "web", "namespace": namespace.name() },
    });
    let attempts: Vec<_> = (0..3)
        .map(|_| program(&namespace, &file).args(["--join"]).input(request.to_string()).start())
        .collect();
    for attempt in attempts {
        let done = spawn_blocking(|| attempt.wait()).await.expect("it ran");
        assert_eq!(done.status, 0, "{done:?}");
    }
    let all = predicates(&file);
    assert_eq!(all.len(), 1, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_known_has_a_receipt_that_says_so() {
    let scenario = Scenario::new(ActionKind::RestartPod, "unknown-receipt").await;
    let (namespace, file) = (&scenario.namespace, scratch("receipts"));
    let request = scenario.request("unknown-1");
    crashes(&scenario, &file, &request, Failpoint::AfterWrite).await;
    let answer = resent(namespace, &file, &request).await;
    assert_eq!(answer["code"], "outcome_unknown", "{answer}");
    let all = predicates(&file);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&all[0]["outcome"], &all[0]["final"]), (&json!("unknown"), &json!(false)));
    // A server that gets the request repeatedly writes one more.
    let server = Server::start(program(namespace, &file));
    for _ in 0..3 {
        let problem = server.execute(request.to_string().as_bytes()).json();
        assert_eq!(problem["code"], "outcome_unknown", "{problem}");
    }
    assert_eq!(predicates(&file).len(), 2);
    assert_eq!(verify(&file, &[&Keys::shared().public], "text").status, 0);
}

#[tokio::test]
async fn a_refused_request_has_no_receipt() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "refused-receipt").await;
    let file = scratch("receipts");
    let policy = scenario.namespace.policy("read_only: true");
    let done = send(program(&scenario.namespace, &file).under(&policy), &scenario.request("r1"));
    assert_eq!(done.status, 77, "{done:?}");
    assert!(lines(&file).is_empty());
}

#[tokio::test]
async fn a_receipt_names_the_approver_and_a_pending_approval_has_none() {
    let scenario = Scenario::new(ActionKind::RestartK8s, "approved-receipt").await;
    let file = scratch("receipts");
    let policy = scenario.namespace.policy(REQUIRE_APPROVAL);
    let request = scenario.request("approved-1");
    let send = || send(program(&scenario.namespace, &file).under(&policy), &request);
    let pending = send().answer();
    assert_eq!(pending["outcome"], "pending_approval");
    assert!(lines(&file).is_empty());
    assert!(approve(&pending, scenario.namespace.kubeconfig()));
    assert_eq!(send().answer()["outcome"], "applied");
    let all = predicates(&file);
    assert_eq!((all.len(), &all[0]["approvedBy"]), (1, &json!("alice")), "{all:?}");
    let done = verify(&file, &[&Keys::shared().public], "text");
    assert!(done.stdout.contains("approved by alice"), "{done:?}");
}

#[tokio::test]
async fn several_targets_have_a_receipt_each_and_one_for_the_whole() {
    let namespace = shared().namespace("receipts-of-several").await;
    for name in ["api", "web"] {
        namespace.deployment(name, 1, GOOD_IMAGE).await;
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "tier": "front" } } }));
        let deployments = namespace.api::<Deployment>();
        deployments.patch(name, &Default::default(), &patch).await.expect("is labelled");
    }
    let file = scratch("receipts");
    let request = json!({
        "type": "restart_k8s", "simulate": false, "id": "several",
        "parameters": { "namespace": namespace.name(), "selector": "tier=front" },
    });
    let policy = namespace.policy("version: 1");
    let answer = send(program(&namespace, &file).under(&policy), &request).answer();
    assert_eq!(answer["outcome"], "applied", "{answer}");
    let all = predicates(&file);
    assert_eq!(all.len(), 3, "{all:?}");
    let whole = all.last().expect("is the last");
    assert_eq!(whole["requestId"], "several");
    for (number, name) in ["api", "web"].into_iter().enumerate() {
        let part = &whole["targets"][number];
        let path = format!("apps/v1/Deployment/{}/{name}", namespace.name());
        assert_eq!((&part["name"], &part["outcome"]), (&json!(path), &json!("applied")));
        assert_eq!(all[number]["requestId"], part["requestId"]);
    }
}

#[tokio::test]
async fn every_entry_point_writes_receipts() {
    let namespace = shared().namespace("receipts-of-each").await;
    namespace.deployment("web", 1, GOOD_IMAGE).await;
    let file = scratch("receipts");
    let program = || program(&namespace, &file);
    let request = |number| unchanged(&namespace, number).to_string();

    assert_eq!(program().env("ACTION_REQUEST", request(0)).run().status, 0);
    let flags = ["scale", "deployment/web", "--replicas", "1", "-n", namespace.name(), "--execute"];
    assert_eq!(program().args(flags).run().status, 0);
    let server = Server::start(program());
    assert_eq!(server.execute(request(1).as_bytes()).status, 200);
    let (tool, arguments) = mcp::call_of(request(2).as_bytes()).expect("is a call");
    let per_action = program().env("ACTION_EXECUTOR_MCP_TOOLS", "per_action").args(["mcp"]);
    let result = mcp::Stdio::start(per_action).call(tool, &arguments);
    assert_eq!(result["structuredContent"]["outcome"], "unchanged", "{result}");
    #[cfg(feature = "lambda")]
    {
        let unlimited = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
        let function = crate::lambda::Function::start(&[
            ("KUBECONFIG", namespace.kubeconfig()),
            ("ACTION_EXECUTOR_POLICY", Path::new(unlimited)),
            ("ACTION_EXECUTOR_RECEIPT_KEY", &Keys::shared().private),
            ("ACTION_EXECUTOR_RECEIPTS", &file),
        ]);
        assert!(matches!(
            function.invoke(request(3).as_bytes()),
            crate::lambda::Outcome::Answered(_)
        ));
    }
    let expected = if cfg!(feature = "lambda") { 5 } else { 4 };
    let all = predicates(&file);
    assert_eq!(all.len(), expected, "{all:?}");
    assert!(all.iter().all(|predicate| predicate["outcome"] == "unchanged"), "{all:?}");
}

#[test]
fn wrong_settings_end_the_program_at_its_start() {
    let rsa = scratch("rsa.pem");
    openssl(&["genpkey", "-algorithm", "RSA", "-out", text(&rsa)]);
    let (private, public) = (&Keys::shared().private, &Keys::shared().public);
    let file = scratch("receipts");
    for (key, file, part) in [
        (Path::new("/nonexistent"), file.as_path(), "the key of receipts"),
        (&rsa, &file, "ed25519"),
        (public, &file, "no unencrypted PEM private key"),
        (private, Path::new("/nonexistent/receipts"), "cannot be written"),
        (private, Path::new("/dev/null"), "not a regular file"),
        (private, Path::new(""), "needs ACTION_EXECUTOR_RECEIPTS"),
        (Path::new(""), &file, "needs ACTION_EXECUTOR_RECEIPT_KEY"),
    ] {
        let program = || {
            Program::offline()
                .env("ACTION_EXECUTOR_RECEIPT_KEY", key)
                .env("ACTION_EXECUTOR_RECEIPTS", file)
        };
        let request = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;
        let done = program().input(request).run();
        assert_eq!((done.status, &done.answer()["code"]), (78, &json!("configuration")));
        assert!(done.stdout.contains(part), "{part}: {done:?}");
        let served = program().args(["serve", "--bind", "127.0.0.1:0"]).run();
        assert_eq!(served.status, 78, "{served:?}");
        let mcp = program().args(["mcp"]).run();
        assert_eq!(mcp.status, 78, "{mcp:?}");
    }
}
