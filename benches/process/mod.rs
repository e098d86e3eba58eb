//! One run of a program, measured: for benchmarks of whole processes.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use wait4::{ResourceUsage, Wait4};

/// Runs a program to its end, which must be a success; returns how long it took and what it used.
pub fn measure(command: &mut Command, input: &[u8]) -> (Duration, ResourceUsage) {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn().expect("it starts");
    // A program that reads no input may have ended before the write.
    let _ = process.stdin.take().expect("is piped").write_all(input);
    let used = process.wait4().expect("it ends");
    let wall = began.elapsed();
    assert!(used.status.success(), "{command:?} failed");
    (wall, used.rusage)
}

/// The median of a figure.
pub fn median<T>(costs: &[T], of: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<_> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
