//! What an action costs at a distance from the API server, compared with curl's bare PATCH and with kubectl.
//!
//!     tests/cluster/up cargo bench --bench distance
//!
//! A proxy delays each direction by half of the round trip. Each program starts anew, so each run has its TCP and TLS
//! handshakes. The programs run in turn, `DISTANCE_ROUNDS` times. Prints medians in milliseconds, and ratios to
//! action-executor. Then it restarts a Deployment `DISTANCE_WRITTEN` times at 50 ms while its status is written 50
//! times a second, and prints how many of the restarts succeed and how long they take.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use process::median;
use programs::{Cost, Curl, kubectl, run};

mod process;
mod programs;

const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");

/// The round trips, in milliseconds.
const ROUND_TRIPS: [u64; 4] = [0, 5, 20, 50];

/// How many pods the drained node has.
const PODS: usize = 50;

fn main() {
    if env::var_os("KUBECONFIG").is_none() {
        eprintln!("run this in a throwaway cluster: tests/cluster/up cargo bench --bench distance");
        std::process::exit(64);
    }
    let rounds = number("DISTANCE_ROUNDS", 15);
    let near = env::var_os("KUBECONFIG").map(PathBuf::from).expect("is set");
    let server = kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let server: SocketAddr = server.trim_start_matches("https://").parse().expect("is an address");
    create("bench");
    // kubectl refuses a second restart of the same Deployment within a second.
    (0..rounds).for_each(|round| create(&format!("bench-{round}")));
    println!("medians of {rounds}, in ms; the ratio is to action-executor's real action");
    println!(
        "{:<12}{:<36}{:>8}{:>9}{:>10}{:>8}",
        "round trip", "", "p50 ms", "CPU ms", "RSS MiB", "ratio"
    );
    for round_trip in ROUND_TRIPS {
        let far = far_kubeconfig(&near, server, Duration::from_millis(round_trip) / 2);
        at_distance(round_trip, &far, rounds);
    }
    let far = far_kubeconfig(&near, server, Duration::from_millis(25));
    while_written(&far, &near, number("DISTANCE_WRITTEN", 200));
}

fn number(variable: &str, otherwise: usize) -> usize {
    env::var(variable).ok().and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

fn create(name: &str) {
    let image = "--image=registry.invalid/good:1";
    kubectl(&["create", "deployment", name, image, "--replicas=0"]);
}

/// One table row for each program and action.
fn at_distance(round_trip: u64, far: &Path, rounds: usize) {
    let curl = Curl::prepare_with(far);
    let mut rows: Vec<(&str, Vec<Cost>)> = [
        "restart: action-executor",
        "restart: curl PATCH",
        "restart: kubectl rollout restart",
        "simulated restart: action-executor",
        "scale: action-executor",
        "scale: kubectl scale",
    ]
    .map(|name| (name, Vec::new()))
    .into();
    for round in 0..rounds {
        let target = format!("deployment/bench-{round}");
        rows[0].1.push(ours(far, &restart("bench", false)));
        rows[1].1.push(curl.restart("bench", round));
        rows[2].1.push(with(far, "kubectl", &["rollout", "restart", &target]));
        rows[3].1.push(ours(far, &restart("bench", true)));
        let replicas = round % 2;
        rows[4].1.push(ours(far, &scale("bench", 1 - replicas)));
        let replicas = format!("--replicas={}", 1 - replicas);
        rows[5].1.push(with(far, "kubectl", &["scale", &target, &replicas]));
    }
    let mut drains = [("drain: action-executor", Vec::new()), ("drain: kubectl drain", Vec::new())];
    for (name, costs) in &mut drains {
        let node = format!("bench-{round_trip}-{}", costs_name(name));
        node_with_pods(&node);
        costs.push(match *name {
            "drain: kubectl drain" => with(far, "kubectl", &["drain", &node]),
            _ => ours(far, &drain(&node)),
        });
    }
    print(round_trip, &rows[..4]);
    print(round_trip, &rows[4..]);
    print(round_trip, &drains);
}

fn costs_name(name: &str) -> &str {
    if name.ends_with("drain") { "kubectl" } else { "ours" }
}

fn print(round_trip: u64, rows: &[(&str, Vec<Cost>)]) {
    let wall = |costs: &[Cost]| median(costs, |cost| cost.wall.as_secs_f64()) * 1e3;
    for (name, costs) in rows {
        println!(
            "{:<12}{name:<36}{:>8.1}{:>9.1}{:>10.1}{:>7.2}x",
            format!("{round_trip} ms"),
            wall(costs),
            median(costs, |cost| cost.processor.as_secs_f64()) * 1e3,
            median(costs, |cost| cost.peak_kib as f64) / 1024.0,
            wall(costs) / wall(&rows[0].1),
        );
    }
}

/// Restarts while the status is written.
fn while_written(far: &Path, near: &Path, restarts: usize) {
    let measured = |count: usize| -> Vec<Cost> {
        (0..count).map(|_| ours(far, &restart("bench", false))).collect()
    };
    let idle = measured(restarts.min(50));
    let done = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (done, near) = (done.clone(), near.to_owned());
        move || write_status_until(&done, &near)
    });
    let began = Instant::now();
    let written = measured(restarts);
    let lasted = began.elapsed();
    done.store(true, Ordering::Relaxed);
    let writes = writer.join().expect("it writes");
    let percentile = |costs: &[Cost], of: usize| {
        let mut walls: Vec<_> = costs.iter().map(|cost| cost.wall).collect();
        walls.sort_unstable();
        walls[(walls.len() * of / 100).min(walls.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "\n{restarts} of {restarts} restarts succeed at 50 ms under {:.0} status writes a second",
        writes as f64 / lasted.as_secs_f64()
    );
    println!("{:<24}{:>10}{:>10}", "", "p50 ms", "p99 ms");
    for (name, costs) in [("idle object", &idle), ("written object", &written)] {
        println!("{name:<24}{:>10.1}{:>10.1}", percentile(costs, 50), percentile(costs, 99));
    }
}

/// Writes the status of the Deployment `bench` 50 times a second by one kubectl proxy; returns how often.
fn write_status_until(done: &AtomicBool, near: &Path) -> usize {
    let mut proxy = Command::new("kubectl")
        .env("KUBECONFIG", near)
        .args(["proxy", "--port=0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl is there");
    let mut line = [0; 64];
    let length = proxy.stdout.as_mut().expect("is piped").read(&mut line).expect("is printed");
    let line = String::from_utf8_lossy(&line[..length]).into_owned();
    let address = line.trim().rsplit(' ').next().expect("names an address").to_owned();
    let mut writes = 0;
    while !done.load(Ordering::Relaxed) {
        let next = Instant::now() + Duration::from_millis(20);
        let body = format!(
            r#"{{"status":{{"conditions":[{{"type":"Heartbeat","status":"True","message":"{writes}"}}]}}}}"#
        );
        let mut stream = TcpStream::connect(&address).expect("kubectl proxy listens");
        write!(
            stream,
            "PATCH /apis/apps/v1/namespaces/default/deployments/bench/status HTTP/1.1\r\nHost: localhost\r\n\
             Connection: close\r\nContent-Type: application/strategic-merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("is answered");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        writes += 1;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    proxy.kill().expect("it runs");
    proxy.wait().expect("it ends");
    writes
}

fn restart(deployment: &str, simulate: bool) -> String {
    format!(
        r#"{{"type":"restart_k8s","parameters":{{"deployment":"{deployment}"}},"simulate":{simulate}}}"#
    )
}

fn scale(name: &str, replicas: usize) -> String {
    format!(
        r#"{{"type":"scale","parameters":{{"name":"{name}","replicas":{replicas}}},"simulate":false}}"#
    )
}

fn drain(node: &str) -> String {
    format!(
        r#"{{"type":"drain","parameters":{{"node":"{node}"}},"simulate":false,"wait":true,"timeout_seconds":120}}"#
    )
}

/// Budgets are charged as in real use, and are large enough for all rounds.
fn ours(kubeconfig: &Path, request: &str) -> Cost {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/counted.yaml");
    let mut program = Command::new(PROGRAM);
    program.env("KUBECONFIG", kubeconfig).env("ACTION_EXECUTOR_POLICY", policy);
    run(&mut program, request.as_bytes())
}

fn with(kubeconfig: &Path, program: &str, args: &[&str]) -> Cost {
    run(Command::new(program).env("KUBECONFIG", kubeconfig).args(args), b"")
}

/// A node with pods of a ReplicaSet that come up elsewhere once they are evicted.
fn node_with_pods(node: &str) {
    apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {node}, labels: {{kubernetes.io/hostname: {node}}}, \
         annotations: {{kwok.x-k8s.io/node: fake}}}}}}"
    ));
    kubectl(&["wait", "--for=condition=Ready", &format!("node/{node}"), "--timeout=60s"]);
    apply(&format!(
        "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: {node}}}, spec: {{replicas: {PODS}, \
         selector: {{matchLabels: {{app: {node}}}}}, template: {{metadata: {{labels: {{app: {node}}}}}, spec: \
         {{containers: [{{name: app, image: 'registry.invalid/good:1'}}], affinity: {{nodeAffinity: \
         {{preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 100, preference: {{matchExpressions: \
         [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}}}]}}}}}}}}}}}}"
    ));
    let ready = format!("--for=jsonpath={{.status.readyReplicas}}={PODS}");
    kubectl(&["wait", &ready, &format!("replicaset/{node}"), "--timeout=120s"]);
}

fn apply(yaml: &str) {
    let mut kubectl = Command::new("kubectl")
        .args(["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("kubectl is there");
    let mut input = kubectl.stdin.take().expect("is piped");
    input.write_all(yaml.as_bytes()).expect("is written");
    drop(input);
    assert!(kubectl.wait().expect("it ends").success(), "{yaml}");
}

/// A kubeconfig that points to a proxy in front of the server.
fn far_kubeconfig(near: &Path, server: SocketAddr, delay: Duration) -> PathBuf {
    let proxy = start_proxy(server, delay);
    let text = fs::read_to_string(near).expect("is readable");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join(format!("far-{}-{}.kubeconfig", std::process::id(), proxy.port()));
    fs::write(&path, text.replace(&server.to_string(), &proxy.to_string())).expect("is written");
    path
}

fn start_proxy(server: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("is bound");
    let address = listener.local_addr().expect("has one");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || {
                // The handshake of TCP is a round trip too.
                thread::sleep(delay * 2);
                let Ok(server) = TcpStream::connect(server) else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    from.set_nodelay(true).expect("is set");
                    let (from, to) = (from.try_clone(), to.try_clone());
                    pass_late(from.expect("is cloned"), to.expect("is cloned"), delay);
                }
            });
        }
    });
    address
}

/// Passes on what comes after the delay, however much is in transit.
fn pass_late(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
