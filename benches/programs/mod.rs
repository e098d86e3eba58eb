//! The programs that action-executor is compared with, and the cost of one run of any.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use crate::process::measure;

/// The cost of one run.
pub struct Cost {
    /// From the start of the process to its end.
    pub wall: Duration,
    /// User and system time.
    pub processor: Duration,
    /// The most memory that it has held.
    pub peak_kib: u64,
}

/// Runs a program to its end, which must be a success.
pub fn run(command: &mut Command, input: &[u8]) -> Cost {
    let (wall, used) = measure(command, input);
    Cost { wall, processor: used.utime + used.stime, peak_kib: used.maxrss / 1024 }
}

/// The output of kubectl.
pub fn kubectl(args: &[&str]) -> String {
    let done = Command::new("kubectl").args(args).output().expect("kubectl is there");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("is text")
}

/// curl with the kubeconfig's credentials in files.
pub struct Curl {
    directory: PathBuf,
    server: String,
}

impl Curl {
    /// Reads server and credentials from this kubeconfig.
    pub fn prepare_with(kubeconfig: &Path) -> Self {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("is made");
        let raw = |path: &str| {
            let output = format!("jsonpath={{{path}}}");
            let file = format!("--kubeconfig={}", kubeconfig.display());
            kubectl(&["config", "view", "--raw", &file, "-o", &output])
        };
        for (name, path) in [
            ("ca", ".clusters[0].cluster.certificate-authority-data"),
            ("cert", ".users[0].user.client-certificate-data"),
            ("key", ".users[0].user.client-key-data"),
        ] {
            let decode = format!("base64 -d > '{}'", directory.join(name).display());
            let mut base64 =
                Command::new("sh").args(["-c", &decode]).stdin(Stdio::piped()).spawn().expect("sh");
            let mut input = base64.stdin.take().expect("is piped");
            input.write_all(raw(path).as_bytes()).expect("is written");
            drop(input);
            assert!(base64.wait().expect("it ends").success());
        }
        Curl { directory, server: raw(".clusters[0].cluster.server") }
    }

    /// Restarts this Deployment, as a bare PATCH.
    pub fn restart(&self, deployment: &str, round: usize) -> Cost {
        let server = &self.server;
        let url = format!("{server}/apis/apps/v1/namespaces/default/deployments/{deployment}");
        let file = |name: &str| self.directory.join(name).display().to_string();
        let patch = format!(
            r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"round":"{round}"}}}}}}}}}}"#
        );
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "-X", "PATCH", "--cacert", &file("ca"), "--cert", &file("cert")]);
        curl.args(["--key", &file("key"), "--data", &patch]);
        curl.args(["-H", "Content-Type: application/strategic-merge-patch+json", &url]);
        run(&mut curl, b"")
    }
}
