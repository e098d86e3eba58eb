//! What the benchmarks need of their peers: a Python with packages of its own, and the processor time and
//! memory of a running process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A Python in `directory` with these packages, installed when it is first asked for.
pub fn python_with(directory: &Path, packages: &[&str]) -> PathBuf {
    let python = directory.join("venv/bin/python");
    if !python.exists() {
        eprintln!("installing {} into {}", packages.join(" and "), directory.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(directory.join("venv")));
        run(Command::new(&python).args(["-m", "pip", "-q", "install"]).args(packages));
    }
    python
}

fn run(command: &mut Command) {
    assert!(command.status().expect("it starts").success(), "{command:?}");
}

/// The most memory that a running process has held, in MiB.
pub fn peak_mib(process: u32) -> f64 {
    status_mib(process, "VmHWM:")
}

/// The memory of a running process that is not that of files, in MiB.
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
pub fn private_mib(process: u32) -> f64 {
    status_mib(process, "RssAnon:")
}

/// A field of `/proc/PID/status` (proc(5)), in MiB.
fn status_mib(process: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with(field)).expect("is there");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("is");
    kib / 1024.0
}

/// The processor time of a running process so far, user and system, all threads (proc(5), `stat`).
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
pub fn processor_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("has a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| -> u64 { fields[index].parse().expect("is a number") };
    // Fields 14 and 15 of the line, of which the first two are cut off; a tick is 10 ms on Linux.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
