//! What the benchmarks need of the peers that they measure us against: a Python with packages of its own,
//! and how much memory a process has held.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A Python in `folder` with these packages, installed when it is first asked for.
pub fn python_with(folder: &Path, packages: &[&str]) -> PathBuf {
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        eprintln!("installing {} into {}", packages.join(" and "), folder.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")));
        run(Command::new(&python).args(["-m", "pip", "-q", "install"]).args(packages));
    }
    python
}

fn run(command: &mut Command) {
    assert!(command.status().expect("it starts").success(), "{command:?}");
}

/// The most memory that a running process has held, in MiB.
pub fn peak_mib(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("is there");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("is");
    kib / 1024.0
}
