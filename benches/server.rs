//! The server with each engine beside the same two endpoints in FastAPI under uvicorn (one worker).
//!
//!     cargo bench --bench server
//!
//! Needs python3 with venv, and wrk. FastAPI parses and checks the same request with pydantic and returns a
//! fixed sentence; action-executor does everything that an offline simulation does, and logs it. With
//! `tests/cluster/up cargo bench --bench server`, simulations that the API server checks are measured too;
//! it runs on the same machine.
//!
//! Prints, for each load: requests per second, median and 99th percentile of the latency, processor time
//! per request (user and system, of the server's process), and each as a ratio to FastAPI. Then, for a
//! fresh server of each kind: peak memory after 100,000 requests at 64 connections, the memory that it then holds for
//! itself (without the pages of files, which processes share and the kernel can take back), and the processor time of
//! an idle second. `BENCH_SECONDS` is the length of each load (30 by default).

use std::{
    env,
    ffi::OsStr,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

mod peer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");
const CONNECTIONS: [u32; 3] = [8, 64, 512];

/// The load after which memory is read.
const MEMORY_CONNECTIONS: u32 = 64;
const MEMORY_REQUESTS: u64 = 100_000;

/// How long an idle server is observed.
const IDLE: Duration = Duration::from_secs(5);

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

/// What is measured: the server with an engine, or the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hyper,
    TinyHttp,
    FastApi,
}

/// A server that ends with the bench.
struct Server {
    kind: Kind,
    port: u16,
    process: Child,
}

/// One load on one server.
struct Load {
    requests: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time of the server per request, in microseconds.
    processor_us: f64,
    errors: bool,
}

/// The files of the bench, and how long a load lasts.
struct Bench {
    directory: PathBuf,
    python: PathBuf,
    script: PathBuf,
    seconds: u32,
}

fn main() {
    let bench = Bench::prepare();
    println!("{} s each, in turn", bench.seconds);
    print_header();
    let servers = Kind::ALL.map(|kind| bench.start(kind, &[]));
    for (name, path, script) in [
        ("health", "/api/v1/healthz", None),
        ("offline simulation", "/api/v1/action/execute", Some(bench.script.as_path())),
    ] {
        for server in &servers {
            // A cold server is not measured.
            server.load(path, script, 8, 2);
        }
        for connections in CONNECTIONS {
            let loads = servers
                .each_ref()
                .map(|server| server.load(path, script, connections, bench.seconds));
            print_loads(&format!("{name}, {connections}"), &loads);
        }
    }
    drop(servers);
    bench.print_memory();
    if let Some(kubeconfig) = env::var_os("KUBECONFIG") {
        bench.with_cluster(&kubeconfig);
    }
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Hyper, Kind::TinyHttp, Kind::FastApi];

    fn name(self) -> &'static str {
        match self {
            Kind::Hyper => "engine hyper",
            Kind::TinyHttp => "engine tiny-http",
            Kind::FastApi => "FastAPI",
        }
    }

    fn port(self) -> u16 {
        18_461 + self as u16
    }
}

impl Bench {
    fn prepare() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-server");
        fs::create_dir_all(&directory).expect("is made");
        fs::write(directory.join("app.py"), APPLICATION).expect("is written");
        let script = directory.join("post.lua");
        fs::write(&script, POST).expect("is written");
        let packages = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0"];
        let python = peer::python_with(&directory, &packages);
        let seconds = env::var("BENCH_SECONDS").ok().and_then(|it| it.parse().ok());
        Bench { directory, python, script, seconds: seconds.unwrap_or(30) }
    }

    /// Starts a server; `environment` is all that action-executor gets besides a home.
    fn start(&self, kind: Kind, environment: &[(&str, &OsStr)]) -> Server {
        let port = kind.port();
        let mut command = match kind {
            Kind::FastApi => {
                let mut command = Command::new(&self.python);
                command
                    .args(["-m", "uvicorn", "app:app", "--log-level", "warning", "--port"])
                    .arg(port.to_string())
                    .current_dir(&self.directory);
                command
            }
            Kind::Hyper | Kind::TinyHttp => {
                let engine = if kind == Kind::Hyper { "hyper" } else { "tiny-http" };
                let log = fs::File::create(self.directory.join(engine)).expect("is made");
                let mut command = Command::new(PROGRAM);
                command
                    .args(["serve", "--engine", engine, "--bind", &format!("127.0.0.1:{port}")])
                    .env_clear()
                    .env("HOME", "/nonexistent")
                    .envs(environment.iter().copied())
                    .stderr(log);
                command
            }
        };
        Server::start(kind, port, &mut command)
    }

    /// Memory after a fixed number of requests, and the cost of doing nothing, of a fresh server each.
    fn print_memory(&self) {
        println!();
        println!(
            "{:<18}{:>24}{:>16}{:>28}",
            "",
            format!("MiB after {MEMORY_REQUESTS}"),
            "private, at end",
            "idle, ms of CPU a second"
        );
        for kind in Kind::ALL {
            let server = self.start(kind, &[]);
            let before = server.processor_time();
            sleep(IDLE);
            let idle = (server.processor_time() - before).as_secs_f64() * 1e3 / IDLE.as_secs_f64();
            let mut requests = 0;
            while requests < MEMORY_REQUESTS {
                let load = server.load(
                    "/api/v1/action/execute",
                    Some(&self.script),
                    MEMORY_CONNECTIONS,
                    2,
                );
                assert!(load.requests > 0, "{} answers nothing", kind.name());
                requests += load.requests;
            }
            println!(
                "{:<18}{:>24.1}{:>16.1}{:>28.1}",
                kind.name(),
                server.peak_mib(),
                peer::private_mib(server.process.id()),
                idle
            );
        }
    }

    /// Simulations that the API server checks.
    fn with_cluster(&self, kubeconfig: &OsStr) {
        let create =
            ["create", "deployment", "web", "--image=registry.invalid/good:1", "--replicas=0"];
        let done = Command::new("kubectl").args(create).status().expect("kubectl is there");
        assert!(done.success(), "the Deployment is not made");
        println!();
        print_header();
        for kind in [Kind::Hyper, Kind::TinyHttp] {
            let server = self.start(kind, &[("KUBECONFIG", kubeconfig)]);
            let path = "/api/v1/action/execute";
            server.load(path, Some(&self.script), 8, 2);
            for connections in CONNECTIONS {
                let load = server.load(path, Some(&self.script), connections, self.seconds);
                load.print(&format!("by the cluster, {connections}"), kind.name());
            }
            println!("{:<24}{:<18}peak memory {:.1} MiB", "", kind.name(), server.peak_mib());
        }
    }
}

fn print_header() {
    println!(
        "{:<24}{:<18}{:>12}{:>10}{:>10}{:>16}{:>8}",
        "", "", "requests/s", "p50 ms", "p99 ms", "CPU us/request", "errors"
    );
}

/// The loads of each kind, and the ratios of both engines to the peer.
fn print_loads(name: &str, loads: &[Load; 3]) {
    for (kind, load) in Kind::ALL.iter().zip(loads) {
        load.print(name, kind.name());
    }
    let [hyper, tiny_http, peer] = loads;
    for (kind, load) in [(Kind::Hyper, hyper), (Kind::TinyHttp, tiny_http)] {
        println!(
            "{name:<24}{:<18}{:>11.2}x{:>9.2}x{:>9.2}x{:>15.3}x",
            format!("{} ratio", kind.name().trim_start_matches("engine ")),
            load.per_second / peer.per_second,
            load.p50_ms / peer.p50_ms,
            load.p99_ms / peer.p99_ms,
            load.processor_us / peer.processor_us,
        );
    }
}

impl Load {
    fn print(&self, name: &str, who: &str) {
        let errors = if self.errors { "yes" } else { "none" };
        println!(
            "{name:<24}{who:<18}{:>12.0}{:>10.2}{:>10.2}{:>16.1}{errors:>8}",
            self.per_second, self.p50_ms, self.p99_ms, self.processor_us
        );
    }
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
    fn start(kind: Kind, port: u16, command: &mut Command) -> Self {
        let process = command.stdin(Stdio::null()).spawn().expect("it starts");
        let server = Server { kind, port, process };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "nothing listens on {port}");
            sleep(Duration::from_millis(50));
        }
        server
    }

    fn load(&self, path: &str, script: Option<&Path>, connections: u32, seconds: u32) -> Load {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t1", "--latency", "--timeout", "30s"]);
        wrk.args([format!("-c{connections}"), format!("-d{seconds}s")]);
        if let Some(script) = script {
            wrk.arg("-s").arg(script);
        }
        let before = self.processor_time();
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let done = wrk.arg(url).output().expect("wrk is there");
        let processor = self.processor_time() - before;
        let text = String::from_utf8(done.stdout).expect("is text");
        let after = |label: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            line.unwrap_or_else(|| panic!("{}: wrk prints {text}", self.kind.name())).trim()
        };
        let requests = text
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "))
            .and_then(|(count, _)| count.parse().ok())
            .unwrap_or_else(|| panic!("{}: wrk prints {text}", self.kind.name()));
        Load {
            requests,
            per_second: after("Requests/sec:").parse().expect("is a number"),
            p50_ms: milliseconds(after("50%")),
            p99_ms: milliseconds(after("99%")),
            processor_us: processor.as_secs_f64() * 1e6 / (requests.max(1) as f64),
            errors: text.contains("Non-2xx") || text.contains("Socket errors"),
        }
    }

    fn processor_time(&self) -> Duration {
        peer::processor_time(self.process.id())
    }

    fn peak_mib(&self) -> f64 {
        peer::peak_mib(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
