//! The real controllers of integrations, each one process for all tests, which ends with them.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
};

use crate::{
    cluster::{from_integrations, shared},
    program::scratch,
};

/// A controller as `tests/integrations/get` names it, and what it needs to run beside the tests.
pub struct Controller {
    name: &'static str,
    /// The CRDs that it reads.
    crds: &'static [&'static str],
    arguments: &'static [&'static str],
    process: OnceLock<(Child, PathBuf)>,
}

impl Controller {
    pub const fn new(
        name: &'static str,
        crds: &'static [&'static str],
        arguments: &'static [&'static str],
    ) -> Self {
        Controller { name, crds, arguments, process: OnceLock::new() }
    }

    /// Starts it on the shared cluster, unless it runs. What it prints last is printed if the test fails while the
    /// returned value lives.
    pub fn run(&'static self) -> PrintsLog {
        let start = || {
            let cluster = self.crds.iter().fold(shared(), |cluster, crds| cluster.with_crds(crds));
            let log = scratch(&format!("{}.log", self.name));
            // When this process ends, so does the pipe to the shell, even after a crash.
            let script = r#"log=$1; shift; "$0" "$@" >"$log" 2>&1 & read -r _; kill $!"#;
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(script).arg(from_integrations(&["controller", self.name]));
            shell.arg(&log).args(self.arguments);
            shell.env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::piped());
            (shell.spawn().expect("the controller starts"), log)
        };
        PrintsLog(&self.process.get_or_init(start).1)
    }
}

/// Prints what the controller has printed last, if the test fails while this lives.
pub struct PrintsLog(&'static PathBuf);

impl Drop for PrintsLog {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = fs::read_to_string(self.0).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(50).collect();
            eprintln!("the controller's last lines, the newest first:\n{}", last.join("\n"));
        }
    }
}
