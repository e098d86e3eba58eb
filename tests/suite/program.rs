//! The built program as a user runs it: with arguments, an environment and input; and clients of its server.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

/// The maximum run time of the program where it waits for nothing.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(90);

/// The program with its arguments and environment, before it starts.
pub struct Program {
    command: Command,
    input: Vec<u8>,
}

/// The result of a run.
#[derive(Debug)]
pub struct Finished {
    /// The exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long the run took.
    pub took: Duration,
}

impl Program {
    /// The program in an empty environment, without a cluster.
    pub fn offline() -> Self {
        Program::built(Path::new(env!("CARGO_BIN_EXE_action-executor")))
    }

    /// As [`Program::offline`], with another build of the program.
    pub fn built(path: &Path) -> Self {
        let mut command = Command::new(path);
        command.env_clear().env("HOME", "/nonexistent");
        Program { command, input: Vec::new() }
    }

    /// The program with this kubeconfig, under a policy with no limits but the built-in ones.
    pub fn with_kubeconfig(path: &Path) -> Self {
        let unlimited = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
        Program::offline().env("KUBECONFIG", path).under(Path::new(unlimited))
    }

    /// The program under this policy.
    pub fn under(self, policy: &Path) -> Self {
        self.env("ACTION_EXECUTOR_POLICY", policy)
    }

    /// Adds arguments.
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Shifts its clock by these seconds. Times since its start are not shifted.
    pub fn clock_shifted_by(self, seconds: i64) -> Self {
        self.env("LD_PRELOAD", clock_shift()).env("CLOCK_SHIFT_SECONDS", seconds.to_string())
    }

    /// Sets its standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Runs it until it ends.
    pub fn run(self) -> Finished {
        self.start().wait()
    }

    /// Starts it, and writes all its input.
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut process = self.command.spawn().expect("the program starts");
        let mut stdin = process.stdin.take().expect("is piped");
        let input = self.input;
        // A program that fails early does not read the rest.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
        Running { process, began }
    }
}

impl Program {
    /// Starts it for a dialogue over its standard streams.
    pub fn talk(mut self) -> Dialogue {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = self.command.spawn().expect("the program starts");
        let output = BufReader::new(process.stdout.take().expect("is piped"));
        let mut errors = process.stderr.take().expect("is piped");
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).expect("is readable");
            text
        });
        Dialogue { input: process.stdin.take(), output, log, process }
    }
}

/// A dialogue with the running program.
pub struct Dialogue {
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: JoinHandle<String>,
    process: Child,
}

impl Dialogue {
    /// Sends a line.
    pub fn send(&mut self, line: &[u8]) {
        let input = self.input.as_mut().expect("is open");
        input.write_all(&[line, b"\n"].concat()).expect("is sent");
    }

    /// The next line; `None` once there are no more.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("is read");
        (!line.is_empty()).then_some(line)
    }

    /// Its streams, for a client that writes and reads at the same time; writing ends when the sender is dropped.
    pub fn split(&mut self) -> (ChildStdin, &mut BufReader<ChildStdout>) {
        (self.input.take().expect("is open"), &mut self.output)
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Ends the input; returns the remaining lines, the exit status and the log.
    pub fn end(mut self) -> (Vec<String>, i32, String) {
        drop(self.input.take());
        let lines = std::iter::from_fn(|| self.line()).collect();
        let status = self.process.wait().expect("ends");
        (lines, status.code().unwrap_or(-1), self.log.join().expect("is read"))
    }
}

/// A library that shifts the real-time clock of the process that preloads it, built once.
fn clock_shift() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let (source, library) = (scratch("clock_shift.c"), scratch("clock_shift.so"));
        fs::write(&source, CLOCK_SHIFT).expect("is written");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        assert!(compiler.status().expect("cc runs").success());
        library
    })
}

const CLOCK_SHIFT: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *shift = getenv("CLOCK_SHIFT_SECONDS");
    if (result == 0 && clock == CLOCK_REALTIME && shift) time->tv_sec += atol(shift);
    return result;
}
"#;

/// The running program.
pub struct Running {
    process: Child,
    began: Instant,
}

impl Running {
    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Waits until it ends.
    pub fn wait(mut self) -> Finished {
        let read = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                from.read_to_end(&mut text).expect("is readable");
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let stdout = read(Box::new(self.process.stdout.take().expect("is piped")));
        let stderr = read(Box::new(self.process.stderr.take().expect("is piped")));
        let status = loop {
            if let Some(status) = self.process.try_wait().expect("is our child") {
                break status;
            }
            if self.began.elapsed() > PROGRAM_TIMEOUT {
                let _ = self.process.kill();
                panic!("the program did not end: {}", stderr.join().expect("is read"));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.began.elapsed();
        Finished {
            status: status.code().unwrap_or(-1),
            stdout: stdout.join().expect("is read"),
            stderr: stderr.join().expect("is read"),
            took,
        }
    }
}

impl Finished {
    /// The answer on standard output, which must be a single line of JSON.
    pub fn answer(&self) -> Value {
        assert_eq!(self.stdout.matches('\n').count(), 1, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("is no JSON: {self:?}"))
    }
}

/// Sends a process a signal, by name.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &process.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

/// A path in the tests' temporary directory that no other test uses.
pub fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(directory).expect("is made");
    directory.join(format!("{}-{number}-{name}", std::process::id()))
}

/// The program as a server; killed when dropped.
pub struct Server {
    process: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    tls: Option<Arc<ClientConfig>>,
}

/// What answers a request that the server has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The default.
    Hyper,
    /// tiny_http.
    TinyHttp,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 2] = [Engine::Hyper, Engine::TinyHttp];

    /// The engine in the names of a test's objects.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Hyper => "hyper",
            Engine::TinyHttp => "tiny",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Engine::Hyper => &[],
            Engine::TinyHttp => &["--engine", "tiny-http"],
        }
    }
}

/// A client's connection, over plain HTTP or TLS.
pub trait Stream: Read + Write + Send {
    /// Ends the sent stream.
    fn end(&mut self);
}

impl Stream for TcpStream {
    fn end(&mut self) {
        self.shutdown(Shutdown::Write).expect("is shut");
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn end(&mut self) {
        self.conn.send_close_notify();
        // A server that has already closed the connection does not receive this.
        let _ = self.flush();
    }
}

impl Server {
    /// Starts it on a free loopback port.
    pub fn start(program: Program) -> Self {
        Self::start_on("127.0.0.1:0", program)
    }

    /// Starts it with this engine.
    pub fn start_with(engine: Engine, program: Program) -> Self {
        let program = program.args(["serve", "--bind", "127.0.0.1:0"]);
        Self::from_command(program.args(engine.arguments().iter().copied()).command)
    }

    /// Starts it on this address.
    pub fn start_on(address: &str, program: Program) -> Self {
        Self::from_command(program.args(["serve", "--bind", address]).command)
    }

    /// Starts it on all addresses, without authentication.
    pub fn start_open(program: Program) -> Self {
        let arguments = ["serve", "--bind", "0.0.0.0:0", "--insecure-open"];
        Self::from_command(program.args(arguments).command)
    }

    /// Starts it with at most this many open files.
    pub fn with_descriptors(engine: Engine, program: Program, limit: u32) -> Self {
        Self::after(&format!("ulimit -n {limit}"), engine, program)
    }

    /// Starts it in the cgroup whose processes are listed in this file, with at most this many open files.
    pub fn in_cgroup(engine: Engine, program: Program, processes: &Path, limit: u32) -> Self {
        let enter = format!("ulimit -n {limit} && echo $$ > {}", processes.display());
        Self::after(&enter, engine, program)
    }

    /// Starts it from a shell that has run these commands.
    fn after(commands: &str, engine: Engine, program: Program) -> Self {
        let program = program.args(["serve", "--bind", "127.0.0.1:0"]);
        let program = program.args(engine.arguments().iter().copied());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{commands} && exec \"$0\" \"$@\""));
        command.arg(program.command.get_program()).args(program.command.get_args());
        command.env_clear();
        for (name, value) in program.command.get_envs() {
            command.env(name, value.expect("is set"));
        }
        Self::from_command(command)
    }

    fn from_command(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the server starts");
        let mut lines = BufReader::new(process.stderr.take().expect("is piped")).lines();
        let mut first = String::new();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .inspect(|line| first.push_str(line))
            .find_map(|line| {
                let event: Value = serde_json::from_str(&line).ok()?;
                (event["message"] == "listening")
                    .then(|| event["address"].as_str()?.parse().ok())?
            })
            .unwrap_or_else(|| panic!("the server does not listen: {first}"));
        let log = Arc::new(Mutex::new(String::new()));
        let written = log.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written.lock().expect("is not poisoned").push_str(&(line + "\n"));
            }
        });
        Server { process, address, log, reader: Some(reader), tls: None }
    }

    /// The same server, for a client that uses TLS with this configuration.
    pub fn over_tls(mut self, client: Arc<ClientConfig>) -> Self {
        self.tls = Some(client);
        self
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its log since it started to listen.
    pub fn log(&self) -> String {
        self.log.lock().expect("is not poisoned").clone()
    }

    /// Whether the process that was started still runs.
    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().expect("is our child").is_none()
    }

    /// Its peak memory, in KiB.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Its memory now, without files, in KiB.
    pub fn memory(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// How many sockets and other files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("it lives").count()
    }

    /// Lets it have at most this many open files from now on.
    pub fn limit_descriptors(&self, limit: usize) {
        let (process, limit) = (self.process.id().to_string(), format!("--nofile={limit}:"));
        let status = Command::new("prlimit").args(["--pid", &process, &limit]).status();
        assert!(status.expect("prlimit runs").success());
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it lives");
        let line = status.lines().find(|line| line.starts_with(name)).expect("is there");
        line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("is a number")
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// Waits until it ends; returns the exit status and the log.
    pub fn wait(mut self) -> (i32, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().expect("is our child") {
                break status;
            }
            assert!(began.elapsed() < PROGRAM_TIMEOUT, "the server did not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        self.reader.take().expect("is there").join().expect("has read");
        (status.code().unwrap_or(-1), self.log())
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PROGRAM_TIMEOUT)).expect("is set");
        stream.set_nodelay(true).expect("is set");
        stream
    }

    /// Whether this client uses TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// A connection over this client's transport.
    pub fn open(&self) -> Box<dyn Stream> {
        match &self.tls {
            None => Box::new(self.connect()),
            Some(client) => Box::new(self.secured(client)),
        }
    }

    /// A TLS connection before its handshake.
    pub fn secured(&self, client: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from("localhost").expect("is a name");
        let connection = ClientConnection::new(client.clone(), name).expect("is made");
        StreamOwned::new(connection, self.connect())
    }

    /// Sends these bytes and reads the whole response.
    pub fn raw(&self, bytes: &[u8]) -> Reply {
        Reply::exchange(&mut BufReader::new(self.open()), bytes)
    }

    /// Sends a GET request.
    pub fn get(&self, path: &str) -> Reply {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    }

    /// Posts JSON to the server that is, or was, at this address; `None` without a complete response.
    pub fn try_execute(address: SocketAddr, body: &[u8]) -> Option<Reply> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PROGRAM_TIMEOUT)).ok()?;
        stream.write_all(&execute_request(body, "Connection: close\r\n")).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        let whole = bytes.windows(4).any(|end| end == b"\r\n\r\n") && bytes.ends_with(b"}");
        whole.then(|| Reply::read(&mut bytes.as_slice()))
    }

    /// Posts JSON to the action endpoint, as the original service's users do.
    pub fn execute(&self, body: &[u8]) -> Reply {
        self.raw(&execute_request(body, "Connection: close\r\n"))
    }
}

/// The bytes of a POST to the action endpoint, with these additional header lines.
pub fn execute_request(body: &[u8], headers: &str) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An HTTP response.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The header lines, with lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Sends these bytes and reads one response; as [`Reply::read`] if the connection ends instead.
    pub fn exchange(over: &mut BufReader<impl Read + Write>, bytes: &[u8]) -> Self {
        match over.get_mut().write_all(bytes) {
            Ok(()) => Self::read(over),
            Err(_) => Reply { status: 0, headers: Vec::new(), body: Vec::new() },
        }
    }

    /// Reads one response; a connection that ends without one has status 0.
    pub fn read(from: &mut impl BufRead) -> Self {
        let mut line = String::new();
        // A connection that is reset counts as one that ended.
        let _ = from.read_line(&mut line);
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut reply = Reply { status, headers: Vec::new(), body: Vec::new() };
        if status == 0 {
            return reply;
        }
        loop {
            let mut line = String::new();
            from.read_line(&mut line).expect("the header is whole");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            reply.headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let length = reply.header("content-length").and_then(|length| length.parse().ok());
        reply.body = vec![0; length.unwrap_or(0)];
        from.read_exact(&mut reply.body).expect("the body is whole");
        reply
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("is no JSON: {self:?}"))
    }
}
