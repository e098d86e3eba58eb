//! The server's throughput, with each engine, beside the same two endpoints in FastAPI under uvicorn (one
//! worker).
//!
//!     cargo bench --bench server
//!
//! Needs python3 with venv, and wrk. FastAPI parses and checks the same request with pydantic and
//! answers a fixed sentence; we do all that a simulation without a cluster does, and log it. In
//! `tests/cluster/up cargo bench --bench server` we are also asked for simulations by the API server, which
//! runs on the same machine. Prints requests a second, the median, the slowest of a hundred, processor time for each request, and
//! memory, with ratios. `BENCH_SECONDS` is how long each load lasts.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

mod peer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");
const OURS: u16 = 18_461;
const THEIRS: u16 = 18_462;
const OURS_WITH_CLUSTER: u16 = 18_463;
const OURS_WITH_TINY_HTTP: u16 = 18_464;
const CONNECTIONS: [u32; 3] = [8, 64, 512];

const APPLICATION: &str = r#"
from typing import Optional
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()

class Parameters(BaseModel):
    deployment: Optional[str] = None
    pod_name: Optional[str] = None
    namespace: str = "default"

class ActionRequest(BaseModel):
    type: str
    parameters: Parameters
    simulate: bool = True

@app.get("/api/v1/healthz")
async def healthz():
    return {"status": "ok"}

@app.post("/api/v1/action/execute")
async def execute(request: ActionRequest):
    return {"result": f"Simulated: Deployment '{request.parameters.deployment}' would be restarted."}
"#;

const POST: &str = r#"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":true}'
"#;

/// A server that ends with us.
struct Server {
    process: Child,
    port: u16,
}

struct Load {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time for each request.
    cpu_us: f64,
    errors: bool,
}

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-server");
    fs::create_dir_all(&folder).expect("is made");
    fs::write(folder.join("app.py"), APPLICATION).expect("is written");
    fs::write(folder.join("post.lua"), POST).expect("is written");
    let python = peer::python_with(&folder, &["fastapi==0.165.0", "uvicorn[standard]==0.54.0"]);

    let log = fs::File::create(folder.join("log")).expect("is made");
    let start = |port: u16, engine: &str| {
        let bind = format!("127.0.0.1:{port}");
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--bind", &bind, "--engine", engine]);
        let log = log.try_clone().expect("is cloned");
        Server::start(command.env_clear().env("HOME", "/nonexistent").stderr(log), port)
    };
    let ours = start(OURS, "hyper");
    let tiny_http = start(OURS_WITH_TINY_HTTP, "tiny-http");
    let theirs = Server::start(
        Command::new(python)
            .args(["-m", "uvicorn", "app:app", "--log-level", "warning", "--port"])
            .arg(THEIRS.to_string())
            .current_dir(&folder),
        THEIRS,
    );
    let seconds = env::var("BENCH_SECONDS").ok().and_then(|it| it.parse().ok()).unwrap_or(30);
    println!("{seconds} s each, in turn");
    println!(
        "{:<22}{:<18}{:>12}{:>10}{:>10}{:>10}{:>8}",
        "", "", "requests/s", "p50 ms", "p99 ms", "cpu µs", "errors"
    );
    let script = folder.join("post.lua");
    for (name, path, script) in [
        ("health", "/api/v1/healthz", None),
        ("simulation", "/api/v1/action/execute", Some(script.as_path())),
    ] {
        // Nobody is measured cold.
        for server in [&ours, &tiny_http, &theirs] {
            server.load(path, script, 8, 2);
        }
        for connections in CONNECTIONS {
            let [mine, tiny, other] = [&ours, &tiny_http, &theirs]
                .map(|server| server.load(path, script, connections, seconds));
            let name = format!("{name}, {connections}");
            mine.print(&name, "action-executor");
            tiny.print(&name, "with tiny-http");
            other.print(&name, "FastAPI");
            println!(
                "{name:<22}{:<18}{:>11.1}x{:>9.2}x{:>9.2}x{:>9.3}x",
                "ratio",
                mine.per_second / other.per_second,
                mine.p50_ms / other.p50_ms,
                mine.p99_ms / other.p99_ms,
                mine.cpu_us / other.cpu_us
            );
        }
    }
    println!(
        "peak memory: action-executor {:.1} MiB, with tiny-http {:.1} MiB, FastAPI {:.1} MiB",
        ours.peak(),
        tiny_http.peak(),
        theirs.peak()
    );
    if let Some(kubeconfig) = env::var_os("KUBECONFIG") {
        let log = fs::File::create(folder.join("log-with-cluster")).expect("is made");
        with_cluster(&kubeconfig, &script, seconds, log);
    }
}

/// Simulations that the API server tries.
fn with_cluster(kubeconfig: &OsStr, script: &Path, seconds: u32, log: fs::File) {
    let create = ["create", "deployment", "web", "--image=registry.invalid/good:1", "--replicas=0"];
    let done = Command::new("kubectl").args(create).status().expect("kubectl is there");
    assert!(done.success(), "the Deployment is not made");
    let ours = Server::start(
        Command::new(PROGRAM)
            .args(["serve", "--bind", &format!("127.0.0.1:{OURS_WITH_CLUSTER}")])
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .stderr(log),
        OURS_WITH_CLUSTER,
    );
    let path = "/api/v1/action/execute";
    ours.load(path, Some(script), 8, 2);
    for connections in CONNECTIONS {
        let load = ours.load(path, Some(script), connections, seconds);
        load.print(&format!("by the cluster, {connections}"), "action-executor");
    }
    println!("peak memory: action-executor {:.1} MiB", ours.peak());
}

impl Load {
    fn print(&self, name: &str, who: &str) {
        let errors = if self.errors { "yes" } else { "none" };
        println!(
            "{name:<22}{who:<18}{:>12.0}{:>10.2}{:>10.2}{:>10.1}{errors:>8}",
            self.per_second, self.p50_ms, self.p99_ms, self.cpu_us
        );
    }
}

/// From `123 requests in 2.00s, 1.00MB read`.
fn requests(text: &str) -> f64 {
    let line = text.lines().find(|line| line.contains(" requests in ")).expect("is told");
    line.split_whitespace().next().and_then(|it| it.parse().ok()).expect("is a number")
}

/// From `3.45ms`, `870.00us` or `1.20s`.
fn milliseconds(text: &str) -> f64 {
    let split = text.find(|c: char| c.is_alphabetic()).expect("has a unit");
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().expect("is a number");
    match unit {
        "us" => number / 1e3,
        "ms" => number,
        _ => number * 1e3,
    }
}

impl Server {
    fn start(command: &mut Command, port: u16) -> Self {
        let process = command.stdin(Stdio::null()).spawn().expect("it starts");
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "nobody listens on {port}");
            sleep(Duration::from_millis(50));
        }
        Server { process, port }
    }

    fn load(&self, path: &str, script: Option<&Path>, connections: u32, seconds: u32) -> Load {
        let before = self.cpu_us();
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", "--latency", "--timeout", "30s"]);
        wrk.args([format!("-c{connections}"), format!("-d{seconds}s")]);
        if let Some(script) = script {
            wrk.arg("-s").arg(script);
        }
        let done = wrk
            .arg(format!("http://127.0.0.1:{}{path}", self.port))
            .output()
            .expect("wrk is there");
        let text = String::from_utf8(done.stdout).expect("is text");
        let after = |label: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            line.unwrap_or_else(|| panic!("wrk says {text}")).trim().to_owned()
        };
        Load {
            per_second: after("Requests/sec:").parse().expect("is a number"),
            p50_ms: milliseconds(&after("50%")),
            p99_ms: milliseconds(&after("99%")),
            cpu_us: (self.cpu_us() - before) / requests(&text),
            errors: text.contains("Non-2xx") || text.contains("Socket errors"),
        }
    }

    /// The processor time that it has used, as Linux counts it, in ticks of 10 ms (proc(5), stat).
    fn cpu_us(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("it lives");
        // The program's name is in parentheses, and may hold spaces.
        let fields = stat.rsplit(')').next().expect("is there").split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).map(|it| it.parse::<f64>().expect("is one")).sum();
        ticks * 10_000.0
    }

    /// The most memory that it has held, in MiB.
    fn peak(&self) -> f64 {
        peer::peak_mib(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
