//! Many clients that hold what they can, on both engines, over plain HTTP and over TLS, in a cgroup with the
//! chart's limit on memory: how a valid client is served meanwhile, and how much memory that takes. It prints the
//! table of `docs/explanation/performance.md`, as root:
//!
//!     cargo test --all-features --test suite load:: -- --nocapture
//!
//! `ENDURANCE_ROUNDS` is how often each load comes, `LOAD_MEMORY` the limit in MiB, and `LOAD_PROGRAM` another build
//! of the program, for example the image's.

use std::{
    env,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::Cgroup,
    pki::Authority,
    program::{Engine, Program, Server, Stream},
};

const REQUEST: &[u8] = br#"{"type":"restart_k8s","parameters":{"deployment":"web"}}"#;

/// The limit on memory of the chart, in MiB.
const CHART_MEMORY: u64 = 128;

/// How long a valid client may wait, also on a machine that runs many other tests.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// How soon after all clients have left the server is as before, on such a machine.
const RECOVERED_WITHIN: Duration = Duration::from_secs(5);

/// How many valid requests are answered while all clients are connected, and how many more between two bytes of a slow
/// one.
const REQUESTS_MEANWHILE: usize = 100;

/// Clients that all do the same.
struct LoadProfile {
    name: &'static str,
    /// How many come, one round after the other.
    rounds: &'static [usize],
    /// What each of them sends.
    first: Vec<u8>,
    /// How often each of them sends one more byte, a second after the last one.
    bytes: usize,
    /// The limit on open files of the server.
    descriptors: u32,
}

fn load_profiles() -> [LoadProfile; 3] {
    let body = |length: usize| {
        format!(
            "POST /api/v1/action/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: 65500\r\n\r\n{}",
            " ".repeat(length)
        )
    };
    let documents = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5);
    [
        LoadProfile {
            name: "65,000 bytes of a body, then nothing",
            rounds: &[670],
            first: body(65_000).into_bytes(),
            bytes: 0,
            descriptors: 4096,
        },
        LoadProfile {
            name: "five `/openapi.json`, and nothing is read",
            rounds: &[670, 350],
            first: documents.into_bytes(),
            bytes: 0,
            descriptors: 4096,
        },
        LoadProfile {
            name: "a byte of a body each second",
            rounds: &[520],
            first: body(0).into_bytes(),
            bytes: 3,
            descriptors: 1024,
        },
    ]
}

/// How a server is started.
#[derive(Clone)]
struct Setup {
    engine: Engine,
    tls: bool,
    /// The build of the program; none: the one under test.
    program: Option<PathBuf>,
    /// An environment variable.
    variable: Option<(&'static str, String)>,
}

impl Setup {
    fn all() -> impl Iterator<Item = Setup> {
        let program = env::var_os("LOAD_PROGRAM").map(PathBuf::from);
        Engine::ALL.into_iter().flat_map(move |engine| {
            let program = program.clone();
            [false, true].map(move |tls| Setup {
                engine,
                tls,
                program: program.clone(),
                variable: None,
            })
        })
    }

    fn name(&self) -> String {
        format!("{}{}", self.engine.name(), if self.tls { ", TLS" } else { "" })
    }

    fn start(&self, cgroup: &Cgroup, descriptors: u32) -> Server {
        let program = self.program.as_deref().map_or_else(Program::offline, Program::built);
        // All clients have one address, as behind a proxy.
        let mut program = program.env("ACTION_EXECUTOR_PEER_SHARE", "100");
        if let Some((name, value)) = &self.variable {
            program = program.env(name, value);
        }
        if !self.tls {
            return Server::in_cgroup(self.engine, program, &cgroup.processes(), descriptors);
        }
        let authority = Authority::new();
        let program = authority.server().files().apply_to(program);
        let server = Server::in_cgroup(self.engine, program, &cgroup.processes(), descriptors);
        server.over_tls(authority.trusted_by(None))
    }
}

/// How a valid client was served.
#[derive(Default)]
struct Served {
    requests: usize,
    /// What the others got.
    failed: Vec<String>,
    p99: Duration,
}

/// What was measured, in MiB.
struct Figures {
    served: Served,
    peak: u64,
    buffers: Option<u64>,
    before: u64,
    /// After each round.
    after: Vec<u64>,
    recovered: Duration,
}

/// Sends one valid request after the other, each on a new connection, until `over` is set.
fn valid_client(server: &Server, sent: &AtomicUsize, over: &AtomicBool) -> Served {
    let mut times = Vec::new();
    let mut failed = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let reply = match times.len() % 4 {
            0 => server.get("/api/v1/healthz"),
            _ => server.execute(REQUEST),
        };
        times.push(began.elapsed());
        if reply.status != 200 {
            failed.push(format!("{reply:?} after {:?}", began.elapsed()));
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
    times.sort();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    Served { requests: times.len(), failed, p99 }
}

/// Returns when so many more valid requests have been answered.
fn wait_for(sent: &AtomicUsize, more: usize) {
    let end = sent.load(Ordering::Relaxed) + more;
    let began = Instant::now();
    while sent.load(Ordering::Relaxed) < end {
        assert!(began.elapsed() < Duration::from_secs(60), "valid requests are not answered");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Those who are disconnected come again.
fn come(
    server: &Server,
    profile: &LoadProfile,
    clients: usize,
    sent: &AtomicUsize,
) -> Vec<Box<dyn Stream>> {
    let begin = || {
        let mut stream = server.open();
        let _ = stream.write_all(&profile.first).and_then(|()| stream.flush());
        stream
    };
    let mut streams: Vec<_> = (0..clients).map(|_| begin()).collect();
    wait_for(sent, REQUESTS_MEANWHILE);
    for _ in 0..profile.bytes {
        let began = Instant::now();
        for stream in &mut streams {
            if stream.write_all(b" ").and_then(|()| stream.flush()).is_err() {
                *stream = begin();
            }
        }
        while began.elapsed() < Duration::from_secs(1) {
            wait_for(sent, 1);
        }
    }
    streams
}

/// The time until the clients that have left are known to have left, and a valid one is served.
fn recover(server: &Server) -> Duration {
    let began = Instant::now();
    loop {
        let metrics = String::from_utf8(server.get("/metrics").body).expect("is text");
        // The one that asks.
        if metrics.contains("\naction_executor_connections 1\n") {
            assert_eq!(server.execute(REQUEST).status, 200);
            return began.elapsed();
        }
        assert!(began.elapsed() < RECOVERED_WITHIN, "clients that have left are still served");
    }
}

fn measure(setup: &Setup, profile: &LoadProfile, memory: u64) -> Option<Figures> {
    let cgroup = Cgroup::with_memory(memory << 20)?;
    let mut server = setup.start(&cgroup, profile.descriptors);
    assert_eq!(server.execute(REQUEST).status, 200);
    let before = server.memory() >> 10;
    let (mut after, mut recovered) = (Vec::new(), Duration::ZERO);
    let mut all = Served::default();
    let times = env::var("ENDURANCE_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(1);
    for clients in std::iter::repeat_n(profile.rounds, times).flatten() {
        let (sent, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (served, streams) = thread::scope(|scope| {
            let valid = scope.spawn(|| valid_client(&server, &sent, &over));
            let streams = come(&server, profile, *clients, &sent);
            over.store(true, Ordering::Relaxed);
            (valid.join().expect("it ran"), streams)
        });
        all.requests += served.requests;
        all.failed.extend(served.failed);
        all.p99 = all.p99.max(served.p99);
        assert!(server.is_alive(), "{}, {}", setup.name(), profile.name);
        drop(streams);
        recovered = recovered.max(recover(&server));
        after.push(server.memory() >> 10);
    }
    let (peak, buffers) = (cgroup.peak() >> 20, cgroup.peak_of_buffers().map(|it| it >> 20));
    drop(server);
    Some(Figures { served: all, peak, buffers, before, after, recovered })
}

fn row(first: &str, profile: &LoadProfile, memory: u64, figures: &Figures) {
    let Figures { served, peak, buffers, before, after, recovered } = figures;
    let clients: Vec<_> = profile.rounds.iter().map(usize::to_string).collect();
    let after: Vec<_> = after.iter().map(u64::to_string).collect();
    println!(
        "| {first} | {memory} | {}: {} | {} of {} | {:.0} | {peak} | {} | {before} | {} | {:.0} |",
        clients.join(", then "),
        profile.name,
        served.failed.len(),
        served.requests,
        served.p99.as_secs_f64() * 1000.0,
        buffers.map_or_else(|| "in the peak".to_owned(), |it| it.to_string()),
        after.join(", "),
        recovered.as_secs_f64() * 1000.0,
    );
}

fn memory() -> u64 {
    env::var("LOAD_MEMORY").ok().and_then(|it| it.parse().ok()).unwrap_or(CHART_MEMORY)
}

fn header(first: &str) {
    println!(
        "| {first} | limit, MiB | clients | failed | p99, ms | peak, MiB | of the kernel, MiB | before, MiB | \
         after, MiB | recovered, ms |\n|{}",
        "---|".repeat(10)
    );
}

#[test]
fn a_valid_client_is_served_beside_clients_that_hold_what_they_can() {
    header("engine");
    for setup in Setup::all() {
        for profile in load_profiles() {
            let Some(figures) = measure(&setup, &profile, memory()) else { return };
            row(&setup.name(), &profile, memory(), &figures);
            let what = format!("{}, {}", setup.name(), profile.name);
            assert_eq!(figures.served.failed, Vec::<String>::new(), "{what}");
            assert!(figures.served.p99 < SERVED_WITHIN, "{what}: {:?}", figures.served.p99);
            assert!(figures.peak < memory(), "{what}: {} MiB", figures.peak);
        }
    }
}

#[test]
#[ignore = "a comparison: MUSL_PROGRAM names the image's program, and mimalloc is Debian's libmimalloc2.0"]
fn allocators_are_compared_by_what_they_give_back() {
    const MIMALLOC: &str = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2";
    let program = env::var_os("LOAD_PROGRAM").map(PathBuf::from);
    let of =
        |variable| Setup { engine: Engine::Hyper, tls: false, program: program.clone(), variable };
    let variable = |name, value: &str| Some((name, value.to_owned()));
    let mut allocators = vec![
        ("glibc", of(None)),
        ("glibc, `MALLOC_ARENA_MAX=1`", of(variable("MALLOC_ARENA_MAX", "1"))),
        ("glibc, `MALLOC_MMAP_THRESHOLD_=16384`", of(variable("MALLOC_MMAP_THRESHOLD_", "16384"))),
        (
            "glibc, `MALLOC_TRIM_THRESHOLD_=131072`",
            of(variable("MALLOC_TRIM_THRESHOLD_", "131072")),
        ),
    ];
    match Path::new(MIMALLOC).exists() {
        true => allocators.push(("mimalloc", of(variable("LD_PRELOAD", MIMALLOC)))),
        false => eprintln!("skipped: mimalloc, which is not installed"),
    }
    match env::var_os("MUSL_PROGRAM") {
        Some(musl) => allocators.push(("musl", Setup { program: Some(musl.into()), ..of(None) })),
        None => eprintln!("skipped: musl, since MUSL_PROGRAM names no program"),
    }
    header("allocator");
    for (name, setup) in allocators {
        for mut profile in load_profiles().into_iter().take(2) {
            profile.rounds = &[670, 670, 670];
            let Some(figures) = measure(&setup, &profile, memory()) else { return };
            row(name, &profile, memory(), &figures);
        }
    }
}
