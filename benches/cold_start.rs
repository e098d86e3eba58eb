//! The Lambda function's cold start, compared with the same function in Python with the Kubernetes client.
//!
//!     cargo bench --features lambda --bench cold_start
//!
//! Needs python3 with venv and pip. Both connect to a runtime API in this process, in turn. Prints medians and
//! ratios of the time from the start of the process to its request for the first event (the init phase), the
//! time from there to its first response, the peak RSS, and the size of the archive.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

mod peer;

const FUNCTION: &str = env!("CARGO_BIN_EXE_bootstrap");
const RUNS: usize = 20;
const REQUEST: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

/// As small as the runtime's own client; the import of the Kubernetes client takes the time.
const PYTHON: &str = r#"
import http.client, json, os
from kubernetes import client, config

def handle(event):
    name = event["parameters"]["deployment"]
    return {"result": f"Simulated: Deployment '{name}' would be restarted."}

api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    api.request("GET", "/2018-06-01/runtime/invocation/next")
    response = api.getresponse()
    event = json.loads(response.read())
    path = f"/2018-06-01/runtime/invocation/{response.headers['Lambda-Runtime-Aws-Request-Id']}/response"
    api.request("POST", path, body=json.dumps(handle(event)))
    api.getresponse().read()
"#;

/// One start of a function.
struct Start {
    init_ms: f64,
    first_response_ms: f64,
    peak_mib: f64,
}

fn main() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-cold-start");
    fs::create_dir_all(&directory).expect("is made");
    fs::write(directory.join("function.py"), PYTHON).expect("is written");
    let python = peer::python_with(&directory, &["kubernetes==37.0.2"]);
    let ours = || Command::new(FUNCTION);
    let theirs = || {
        let mut command = Command::new(&python);
        command.arg(directory.join("function.py"));
        command
    };
    let (mut mine, mut other) = (Vec::new(), Vec::new());
    // The first pair warms the caches. The two alternate, so that the machine's load affects both alike.
    for run in 0..=RUNS {
        let pair = (start(ours()), start(theirs()));
        if run > 0 {
            mine.push(pair.0);
            other.push(pair.1);
        }
    }
    println!("cold start: p50 of {RUNS}");
    println!(
        "{:<18}{:>10}{:>18}{:>12}{:>14}",
        "", "init ms", "first response ms", "RSS MiB", "archive MB"
    );
    let archives = [archive(&[Path::new(FUNCTION)]), archive(&[&site_packages(&directory)])];
    for (name, starts, archive) in
        [("action-executor", &mine, archives[0]), ("Python", &other, archives[1])]
    {
        println!(
            "{name:<18}{:>10.2}{:>18.2}{:>12.1}{archive:>14.1}",
            median(starts, |it| it.init_ms),
            median(starts, |it| it.first_response_ms),
            median(starts, |it| it.peak_mib),
        );
    }
    println!(
        "{:<18}{:>9.0}x{:>17.1}x{:>11.1}x{:>13.1}x",
        "ratio",
        median(&other, |it| it.init_ms) / median(&mine, |it| it.init_ms),
        median(&other, |it| it.first_response_ms) / median(&mine, |it| it.first_response_ms),
        median(&other, |it| it.peak_mib) / median(&mine, |it| it.peak_mib),
        archives[1] / archives[0],
    );
}

/// Starts a function, invokes it once, and ends it.
fn start(mut command: Command) -> Start {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("has one").to_string();
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_LAMBDA_RUNTIME_API", &address)
        .env("AWS_LAMBDA_FUNCTION_NAME", "a")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
        .stderr(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn().expect("the function starts");
    // Each requests its first event on its first connection.
    let (stream, _) = listener.accept().expect("it connects");
    stream.set_nodelay(true).expect("is set");
    let mut reader = BufReader::new(stream.try_clone().expect("is ours"));
    let next = read_request(&mut reader).expect("it asks");
    let init = began.elapsed();
    assert!(next.ends_with("/next"), "{next}");
    let asked = Instant::now();
    (&stream).write_all(event().as_bytes()).expect("is sent");
    let answered = first_response(&listener, reader);
    let first_response = answered - asked;
    let peak_mib = peer::peak_mib(process.id());
    process.kill().expect("is ours");
    process.wait().expect("is ours");
    Start { init_ms: ms(init), first_response_ms: ms(first_response), peak_mib }
}

/// The time of the response, on the same connection or on a new one.
fn first_response(listener: &TcpListener, mut reader: BufReader<TcpStream>) -> Instant {
    reader.get_ref().set_read_timeout(Some(Duration::from_secs(30))).expect("is set");
    if let Some(path) = read_request(&mut reader) {
        assert!(path.ends_with("/response"), "{path}");
        return Instant::now();
    }
    let (stream, _) = listener.accept().expect("it connects");
    let path = read_request(&mut BufReader::new(stream)).expect("it answers");
    assert!(path.ends_with("/response"), "{path}");
    Instant::now()
}

fn event() -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Lambda-Runtime-Aws-Request-Id: 1\r\nLambda-Runtime-Deadline-Ms: 0\r\n\
         Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-central-1:1:function:a\r\n\r\n{REQUEST}",
        REQUEST.len()
    )
}

/// Reads a whole request; returns its path, or `None` when the connection has ended.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(path)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(starts: &[Start], of: impl Fn(&Start) -> f64) -> f64 {
    let mut values: Vec<_> = starts.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The size of these files in MB, packed as a function's archive.
fn archive(paths: &[&Path]) -> f64 {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--exclude=__pycache__", "--exclude=pip*", "--file=-"]);
    tar.args(paths).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = tar.spawn().expect("tar starts");
    let mut bytes = Vec::new();
    process.stdout.take().expect("is piped").read_to_end(&mut bytes).expect("is read");
    process.wait().expect("is ours");
    bytes.len() as f64 / 1e6
}

fn site_packages(directory: &Path) -> PathBuf {
    let lib = directory.join("venv/lib");
    let python = fs::read_dir(lib).expect("is there").flatten().next().expect("has one");
    python.path().join("site-packages")
}
