//! The drain of a node with 200 pods under ten disruption budgets, compared with `kubectl drain`; and the peak
//! RSS of a drain of 2,000 pods.
//!
//!     tests/cluster/up cargo bench --bench drain
//!
//! Each drain has a new node and namespace: ten ReplicaSets of twenty pods, each with a disruption budget that allows
//! one unavailable pod. The pods terminate and become ready elsewhere at once, so the time depends on how soon the
//! client notices that a disruption budget allows the next eviction. Calls are counted in the API server's audit log.
//! The two run in turn, `DRAIN_ROUNDS` times. Prints medians, and ratios to action-executor.

use std::{
    env,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use process::{measure, median};
use serde_json::{Value, json};

mod process;

const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");

/// How many ReplicaSets there are, and how many pods in each.
const SETS: usize = 10;
const PODS_OF_A_SET: usize = 20;

/// How many pods the peak RSS is measured with.
const MANY: usize = 2000;

/// The cost of one drain.
struct Cost {
    wall: Duration,
    calls: usize,
    peak_kib: u64,
}

fn main() {
    if env::var_os("KUBECONFIG").is_none() {
        eprintln!("run this in a throwaway cluster: tests/cluster/up cargo bench --bench drain");
        std::process::exit(64);
    }
    let rounds = env::var("DRAIN_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(3);
    let mut runs = [("action-executor", Vec::new()), ("kubectl", Vec::new())];
    for round in 0..rounds {
        for (name, costs) in &mut runs {
            let node = format!("bench-{name}-{round}");
            set_up(&node);
            let cost = match *name {
                "kubectl" => measured(&mut kubectl_drain(&node), b""),
                _ => measured(&mut ours("counted.yaml"), &request(&node)),
            };
            assert_eq!(pods_on(&node), 0, "{name}");
            costs.push(cost);
        }
    }
    println!(
        "drain of {} pods under {SETS} disruption budgets: time, calls and peak RSS, medians of {rounds}",
        SETS * PODS_OF_A_SET
    );
    println!("{:<20}{:>10}{:>8}{:>12}{:>8}{:>8}", "", "p50 s", "calls", "RSS MiB", "time", "calls");
    let of = |costs: &[Cost], of: fn(&Cost) -> f64| median(costs, of);
    let (wall, calls) = (|it: &Cost| it.wall.as_secs_f64(), |it: &Cost| it.calls as f64);
    for (name, costs) in &runs {
        println!(
            "{name:<20}{:>10.2}{:>8}{:>12.1}{:>7.2}x{:>7.2}x",
            of(costs, wall),
            of(costs, calls),
            of(costs, |it| it.peak_kib as f64) / 1024.0,
            of(costs, wall) / of(&runs[0].1, wall),
            of(costs, calls) / of(&runs[0].1, calls),
        );
    }

    let node = "bench-many";
    make_node(node);
    for hundred in 0..MANY / 100 {
        let pods = (0..100).map(|number| large_pod(node, hundred * 100 + number));
        make(&pods.collect::<Vec<_>>());
    }
    let cost = measured(&mut ours("unlimited.yaml"), &request(node));
    assert_eq!(pods_on(node), 0);
    println!(
        "\ndrain of {MANY} pods: {:.2} s, {} calls, peak RSS {:.1} MiB",
        cost.wall.as_secs_f64(),
        cost.calls,
        cost.peak_kib as f64 / 1024.0
    );
}

fn request(node: &str) -> Vec<u8> {
    let parameters = json!({ "node": node, "force": true });
    let request = json!({
        "type": "drain", "simulate": false, "parameters": parameters, "wait": true,
        "timeout_seconds": 900,
    });
    request.to_string().into_bytes()
}

fn ours(policy: &str) -> Command {
    let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies");
    let mut program = Command::new(PROGRAM);
    program.env("ACTION_EXECUTOR_POLICY", Path::new(policies).join(policy));
    program
}

fn kubectl_drain(node: &str) -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.args(["drain", node, "--ignore-daemonsets", "--force"]);
    kubectl
}

/// Runs the command, and counts its calls to the API server.
fn measured(command: &mut Command, input: &[u8]) -> Cost {
    let since = fs::metadata(audit_log()).expect("there is an audit log").len();
    let (wall, used) = measure(command, input);
    // The audit log is written with a delay.
    sleep(Duration::from_secs(1));
    Cost { wall, calls: calls(since), peak_kib: used.maxrss / 1024 }
}

fn audit_log() -> std::path::PathBuf {
    let kubeconfig = env::var("KUBECONFIG").expect("is set");
    Path::new(&kubeconfig).with_file_name("audit.log")
}

/// How many calls of the administrator, who drains, the audit log has from this position on.
fn calls(since: u64) -> usize {
    let mut log = File::open(audit_log()).expect("is there");
    log.seek(SeekFrom::Start(since)).expect("is long enough");
    let mut text = String::new();
    log.read_to_string(&mut text).expect("is text");
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_ours = |entry: &Value| {
        let groups = entry["user"]["groups"].as_array();
        let component = entry["userAgent"].as_str().unwrap_or_default();
        groups.is_some_and(|it| it.contains(&json!("system:masters")))
            && !["kwok", "kube-"].iter().any(|it| component.starts_with(it))
    };
    entries.filter(|entry| entry["stage"] == "ResponseComplete").filter(is_ours).count()
}

/// Creates a node with all its pods, in a namespace of the same name.
fn set_up(node: &str) {
    make_node(node);
    make(&[json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": node } })]);
    wait_for("its service account", || {
        let args = ["-n", node, "get", "serviceaccount", "default", "-o", "name"];
        kubectl(&args).is_some()
    });
    let sets = || (0..SETS).map(|set| format!("set-{set}"));
    let pods = sets().flat_map(|set| {
        (0..PODS_OF_A_SET).map(move |number| {
            let mut pod = template(&set);
            pod["apiVersion"] = "v1".into();
            pod["kind"] = "Pod".into();
            pod["metadata"]["name"] = format!("{set}-{number}").into();
            pod["metadata"]["namespace"] = node.into();
            pod["spec"]["nodeName"] = node.into();
            pod
        })
    });
    make(&pods.collect::<Vec<_>>());
    wait_for("the pods run", || {
        let args =
            ["-n", node, "get", "pods", "--field-selector=status.phase!=Running", "-o", "name"];
        kubectl(&args).is_some_and(|left| left.is_empty())
    });
    let owners = sets().flat_map(|set| {
        let metadata = json!({ "name": set, "namespace": node });
        let selector = json!({ "matchLabels": { "app": set } });
        [
            json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata,
                "spec": {
                    "replicas": PODS_OF_A_SET, "selector": selector, "template": template(&set),
                },
            }),
            json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata,
                "spec": { "maxUnavailable": 1, "selector": selector },
            }),
        ]
    });
    make(&owners.collect::<Vec<_>>());
    wait_for("the disruption budgets allow an eviction", || {
        let allowed = "jsonpath={.items[*].status.disruptionsAllowed}";
        let output = kubectl(&["-n", node, "get", "pdb", "-o", allowed]).unwrap_or_default();
        output.split_whitespace().filter(|it| *it == "1").count() == SETS
    });
}

fn make_node(node: &str) {
    make(&[json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node, "annotations": { "kwok.x-k8s.io/node": "fake" } },
        "spec": {
            "taints": [{ "key": "kwok.x-k8s.io/node", "value": "own", "effect": "NoSchedule" }],
        },
    })]);
    wait_for("the node is ready", || {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        kubectl(&["get", "node", node, "-o", ready]).as_deref() == Some("True")
    });
}

fn template(app: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": "registry.invalid/good:1" }],
        },
    })
}

/// A pod of a realistic size, about 5 KiB.
fn large_pod(node: &str, number: usize) -> Value {
    let variable =
        |number: usize| json!({ "name": format!("VARIABLE_{number}"), "value": "x".repeat(60) });
    let mut pod = template("many");
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = format!("many-{number}").into();
    pod["metadata"]["namespace"] = "default".into();
    pod["spec"]["nodeName"] = node.into();
    pod["spec"]["containers"][0]["env"] = (0..30).map(variable).collect();
    pod
}

fn make(objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    let mut create = Command::new("kubectl");
    create.args(["create", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut process = create.spawn().expect("kubectl is there");
    let mut input = process.stdin.take().expect("is piped");
    input.write_all(list.to_string().as_bytes()).expect("is written");
    drop(input);
    assert!(process.wait().expect("it ends").success());
}

fn pods_on(node: &str) -> usize {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let args = ["get", "pods", "--all-namespaces", &selector, "-o", "name"];
    kubectl(&args).expect("are listed").lines().count()
}

fn kubectl(args: &[&str]) -> Option<String> {
    let done = Command::new("kubectl").args(args).stderr(Stdio::null()).output();
    let done = done.expect("kubectl is there");
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < until, "timed out: {what}");
        sleep(Duration::from_millis(200));
    }
}
