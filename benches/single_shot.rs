//! The cost of one restart as a process, compared with curl's bare PATCH and `kubectl rollout restart`.
//!
//!     tests/cluster/up cargo bench --bench single_shot
//!
//! curl sends one prepared PATCH and checks nothing, so it is the lower bound: a process, a handshake, a
//! write. action-executor also reads the Deployment, claims the request, charges the budget, makes the write
//! conditional on what it read, and records the answer. The three run in turn. Prints medians, and ratios to
//! action-executor, which vary less between machines.

use std::{env, process::Command};

use process::median;
use programs::{Cost, Curl, kubectl, run};

mod process;
mod programs;

const ROUNDS: usize = 60;
const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");

fn main() {
    if env::var_os("KUBECONFIG").is_none() {
        eprintln!(
            "run this in a throwaway cluster: tests/cluster/up cargo bench --bench single_shot"
        );
        std::process::exit(64);
    }
    // kubectl refuses a second restart of the same Deployment within a second, so each round has a new one.
    let kubectl_target = |round: usize| format!("bench-{round}");
    create("bench");
    (0..ROUNDS).for_each(|round| create(&kubectl_target(round)));
    let kubeconfig = env::var_os("KUBECONFIG").expect("is set");
    let curl = Curl::prepare_with(kubeconfig.as_ref());
    let mut runs: [(&str, Vec<Cost>); 3] =
        [("action-executor", vec![]), ("curl PATCH", vec![]), ("kubectl", vec![])];
    for round in 0..ROUNDS {
        runs[0].1.push(restart());
        runs[1].1.push(curl.restart("bench", round));
        let target = format!("deployment/{}", kubectl_target(round));
        runs[2].1.push(run(Command::new("kubectl").args(["rollout", "restart", &target]), b""));
    }
    println!("one restart: time, processor time and peak RSS, medians of {ROUNDS}");
    print(&runs);

    let mut offline = [("offline simulation", vec![]), ("/bin/true", vec![])];
    for _ in 0..ROUNDS {
        let mut program = Command::new(PROGRAM);
        program.env_clear().env("HOME", "/nonexistent");
        offline[0].1.push(run(&mut program, &request(true)));
        offline[1].1.push(run(&mut Command::new("/bin/true"), b""));
    }
    println!("\none offline simulation: time, processor time and peak RSS, medians of {ROUNDS}");
    print(&offline);
}

fn create(name: &str) {
    let image = "--image=registry.invalid/good:1";
    kubectl(&["create", "deployment", name, image, "--replicas=0"]);
}

fn print(runs: &[(&str, Vec<Cost>)]) {
    println!("{:<20}{:>10}{:>10}{:>12}{:>8}", "", "p50 ms", "CPU ms", "RSS MiB", "ratio");
    let ours = median(&runs[0].1, |cost| cost.wall.as_secs_f64());
    for (name, costs) in runs {
        let wall = median(costs, |cost| cost.wall.as_secs_f64());
        println!(
            "{name:<20}{:>10.2}{:>10.2}{:>12.1}{:>7.2}x",
            wall * 1e3,
            median(costs, |cost| cost.processor.as_secs_f64()) * 1e3,
            median(costs, |cost| cost.peak_kib as f64) / 1024.0,
            wall / ours,
        );
    }
}

fn request(simulate: bool) -> Vec<u8> {
    format!(
        r#"{{"type":"restart_k8s","parameters":{{"deployment":"bench"}},"simulate":{simulate}}}"#
    )
    .into_bytes()
}

fn restart() -> Cost {
    // Budgets are charged as in real use, and are large enough for all rounds.
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/counted.yaml");
    run(Command::new(PROGRAM).env("ACTION_EXECUTOR_POLICY", policy), &request(false))
}
