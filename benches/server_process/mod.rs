//! A server of action-executor as a process, and Deployments for its requests: for benchmarks of a server with a
//! cluster.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::programs::kubectl;

/// A server that ends with this value.
pub struct ServerProcess(Child);

impl ServerProcess {
    /// Starts it on this loopback port, under this policy; `kubeconfig` replaces the one of the environment.
    pub fn start(port: u16, policy: &str, kubeconfig: Option<&Path>) -> Self {
        let (file, log) = (directory().join("policy.yaml"), directory().join("log"));
        fs::write(&file, policy).expect("is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_action-executor"));
        command
            .args(["serve", "--bind", &format!("127.0.0.1:{port}")])
            .env("ACTION_EXECUTOR_POLICY", file)
            // All clients are one caller.
            .env("ACTION_EXECUTOR_CALLER_RATE", "0")
            .envs(kubeconfig.map(|path| ("KUBECONFIG", path)))
            .stdin(Stdio::null())
            .stderr(fs::File::create(log).expect("is made"));
        let server = ServerProcess(command.spawn().expect("it starts"));
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "nothing listens on {port}");
            sleep(Duration::from_millis(20));
        }
        server
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Creates a Deployment of each name; `spec` has the fields besides selector and template.
pub fn create_deployments(names: &[String], image: &str, spec: &Value) {
    let deployment = |name: &String| {
        let mut spec = spec.clone();
        spec["selector"] = json!({ "matchLabels": { "app": name } });
        spec["template"] = json!({
            "metadata": { "labels": { "app": name } },
            "spec": { "containers": [{ "name": "app", "image": image }] },
        });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": name, "annotations": { "bench": "server" } }, "spec": spec,
        })
    };
    let items: Vec<_> = names.iter().map(deployment).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    let file = directory().join("deployments.json");
    fs::write(&file, list.to_string()).expect("is written");
    kubectl(&["create", "-f", &file.display().to_string()]);
}

/// The files of this benchmark.
pub fn directory() -> PathBuf {
    let directory =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!("bench-", env!("CARGO_CRATE_NAME")));
    fs::create_dir_all(&directory).expect("is made");
    directory
}
