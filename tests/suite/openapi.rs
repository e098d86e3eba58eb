//! The served OpenAPI document, checked by schemathesis. It sends valid and invalid requests that it generates from
//! the document: no response is a 5xx, and each one is described.

use std::{fs, process::Command};

use action_executor::contract::digest::sha256;
use serde_json::Value;

use crate::{
    cluster::shared,
    program::{Program, Server, scratch},
};

const KEY: &str = "7d1c0ffee0ffee0ffee0ffee0ffee0ff";

/// How many requests to generate by default: about a minute. `SCHEMATHESIS_CASES=20000` is the long form. The
/// real number is higher, because each bound of each field is tried once more.
const CASES: usize = 2000;

/// Generates about this many requests; returns how many were sent.
fn cases(server: &Server, cases: usize, headers: &[&str]) -> usize {
    let program = std::env::var_os("SCHEMATHESIS").unwrap_or_else(|| "schemathesis".into());
    let base = format!("http://{}", server.address());
    let document: Value = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("are there").values();
    // An operation without parameters has a single request.
    let takes = |it: &&Value| it.get("requestBody").or(it.get("parameters")).is_some();
    let operations = paths.filter_map(Value::as_object).flat_map(|path| path.values());
    let operations = operations.filter(takes).count();
    let for_each = cases.div_ceil(operations).to_string();
    // The same requests each time, unless the caller sets a seed.
    let seed = std::env::var("SCHEMATHESIS_SEED").unwrap_or_else(|_| "1".to_owned());
    let done = Command::new(program)
        .args(["run", &format!("{base}/openapi.json"), "--url", &base, "--no-color"])
        .args(["--max-examples", &for_each, "--generation-database", "none"])
        .args(["--seed", &seed])
        // A valid request for a missing object is refused, which that check counts as a failure; and JSON Schema
        // accepts 7.0 as an integer, which the program does not.
        .args(["--exclude-checks", "positive_data_acceptance"])
        // schemathesis writes files into its working directory.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .args(headers.iter().flat_map(|header| ["--header", header]))
        .output()
        .expect("schemathesis runs");
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    let made = text.lines().find(|line| line.contains(" generated,")).expect("is reported");
    println!("{headers:?}: {}", made.trim());
    made.split_whitespace().next().and_then(|it| it.parse().ok()).expect("is a number")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs schemathesis"]
async fn every_answer_to_generated_requests_is_described() {
    let namespace = shared().namespace("openapi").await;
    let all = std::env::var("SCHEMATHESIS_CASES").ok().map(|it| it.parse().expect("is a number"));
    let all = all.unwrap_or(CASES);
    let keys = scratch("keys.yaml");
    let text = format!("version: 1\nkeys: [{{name: st, sha256: {}}}]\n", sha256(KEY.as_bytes()));
    fs::write(&keys, text).expect("is written");
    let program = || Program::with_kubeconfig(namespace.kubeconfig());
    let open = Server::start(program());
    let asking = Server::start(program().env("ACTION_EXECUTOR_KEYS", &keys));
    let bearer = format!("Authorization: Bearer {KEY}");
    let runs = [
        cases(&open, all / 2, &[]),
        cases(&asking, all * 2 / 5, &[&bearer]),
        cases(&asking, all / 10, &[]),
    ];
    let made: usize = runs.iter().sum();
    println!("{made} requests");
    assert!(made >= all * 3 / 4, "{runs:?}");
    let counted = String::from_utf8(open.get("/metrics").body).expect("is text");
    assert!(!counted.contains("status=\"5"), "{counted}");
}
