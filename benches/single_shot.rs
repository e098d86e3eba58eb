//! The cost of one restart as a process, compared with curl's bare PATCH and `kubectl rollout restart`.
//!
//!     tests/cluster/up cargo bench --bench single_shot
//!
//! curl sends one prepared PATCH and checks nothing, so it is the lower bound: a process, a handshake, a
//! write. action-executor also reads the Deployment, claims the request, charges the budget, makes the write
//! conditional on what it read, and records the answer. The three run in turn. Prints medians, and ratios to
//! action-executor, which vary less between machines.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use wait4::Wait4;

const ROUNDS: usize = 60;
const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");

/// The cost of one run.
struct Cost {
    wall: Duration,
    processor: Duration,
    peak_kib: u64,
}

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
    let curl = Curl::prepare();
    let mut runs: [(&str, Vec<Cost>); 3] =
        [("action-executor", vec![]), ("curl PATCH", vec![]), ("kubectl", vec![])];
    for round in 0..ROUNDS {
        runs[0].1.push(restart());
        runs[1].1.push(curl.patch(round));
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

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<_> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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

fn run(command: &mut Command, input: &[u8]) -> Cost {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn().expect("it starts");
    // A program that reads no input may have ended before the write.
    let _ = process.stdin.take().expect("is piped").write_all(input);
    let used = process.wait4().expect("it ends");
    let wall = began.elapsed();
    assert!(used.status.success(), "{command:?} failed");
    Cost {
        wall,
        processor: used.rusage.utime + used.rusage.stime,
        peak_kib: used.rusage.maxrss / 1024,
    }
}

fn kubectl(args: &[&str]) -> String {
    let done = Command::new("kubectl").args(args).output().expect("kubectl is there");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("is text")
}

/// curl with the kubeconfig's credentials in files.
struct Curl {
    folder: PathBuf,
    url: String,
}

impl Curl {
    fn prepare() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
        fs::create_dir_all(&folder).expect("is made");
        let raw = |path: &str| {
            kubectl(&["config", "view", "--raw", "-o", &format!("jsonpath={{{path}}}")])
        };
        for (name, path) in [
            ("ca", ".clusters[0].cluster.certificate-authority-data"),
            ("cert", ".users[0].user.client-certificate-data"),
            ("key", ".users[0].user.client-key-data"),
        ] {
            let decode = format!("base64 -d > '{}'", folder.join(name).display());
            let mut base64 =
                Command::new("sh").args(["-c", &decode]).stdin(Stdio::piped()).spawn().expect("sh");
            let mut input = base64.stdin.take().expect("is piped");
            input.write_all(raw(path).as_bytes()).expect("is written");
            drop(input);
            assert!(base64.wait().expect("it ends").success());
        }
        let server = raw(".clusters[0].cluster.server");
        let url = format!("{server}/apis/apps/v1/namespaces/default/deployments/bench");
        Curl { folder, url }
    }

    fn patch(&self, round: usize) -> Cost {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let patch = format!(
            r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"round":"{round}"}}}}}}}}}}"#
        );
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "-X", "PATCH", "--cacert", &file("ca"), "--cert", &file("cert")]);
        curl.args(["--key", &file("key"), "--data", &patch]);
        curl.args(["-H", "Content-Type: application/strategic-merge-patch+json", &self.url]);
        run(&mut curl, b"")
    }
}
