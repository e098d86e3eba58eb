//! The tests' cluster: one for the whole run, with a namespace for each test, and builders for its objects.
//!
//! It starts at first use through `tests/cluster/up`, unless `TEST_KUBECONFIG` names an existing one. This process
//! holds its standard input, so it ends with this process, even after a crash. A second cluster with a real node
//! serves the tests of what runs in a pod.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::TryStreamExt;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        authentication::v1::TokenRequest,
        authorization::v1::SubjectAccessReview,
        autoscaling::v2::HorizontalPodAutoscaler,
        batch::v1::{CronJob, Job},
        core::v1::{
            Namespace as CoreNamespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
            PodTemplateSpec, ServiceAccount,
        },
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        storage::v1::StorageClass,
    },
    serde::{Serialize, de::DeserializeOwned},
};
use kube::{
    Api, Client, Config, Resource,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PostParams, WatchEvent,
        WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::{ClusterResourceScope, NamespaceResourceScope},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The maximum time for anything in the cluster.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The pause between two reads of what a test waits for. Shorter ones are most of the API server's work.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A pod with this image is never started.
pub const MISSING_IMAGE: &str = "registry.invalid/missing:1";
/// A pod with this image crashes repeatedly.
pub const CRASHING_IMAGE: &str = "registry.invalid/crashing:1";
/// A pod with this image is ready after ten seconds.
pub const SLOW_IMAGE: &str = "registry.invalid/slow:1";
/// A Job's pod with this image fails.
pub const FAILING_IMAGE: &str = "registry.invalid/failing:1";
/// A pod with any other image is ready at once.
pub const GOOD_IMAGE: &str = "registry.invalid/good:1";
/// Another one of the same repository.
pub const OTHER_IMAGE: &str = "registry.invalid/good:2";

/// The only other image on the real node; it runs until it is stopped.
pub const PAUSE_IMAGE: &str = "test/pause:1";
/// The program under test, as an image on the real node.
pub const OWN_IMAGE: &str = "test/action-executor:1";

/// A running cluster.
pub struct TestCluster {
    kubeconfig: PathBuf,
    programs: PathBuf,
    audit_log: PathBuf,
    good_image: &'static str,
    supervisor: Option<Mutex<Supervisor>>,
}

struct Supervisor {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// The cluster that all tests share.
pub fn shared() -> &'static TestCluster {
    static SHARED: OnceLock<TestCluster> = OnceLock::new();
    SHARED.get_or_init(|| match env::var_os("TEST_KUBECONFIG") {
        Some(path) => TestCluster {
            kubeconfig: path.into(),
            programs: PathBuf::new(),
            audit_log: env::var_os("TEST_AUDIT_LOG").unwrap_or_default().into(),
            good_image: GOOD_IMAGE,
            supervisor: None,
        },
        None => private(),
    })
}

/// A cluster for one test, whose components the test may stop.
pub fn private() -> TestCluster {
    start(&[], GOOD_IMAGE)
}

/// The cluster with a real node, shared by all tests that need one. It enforces the `restricted` Pod
/// Security Standard in their namespaces.
pub fn with_node() -> &'static TestCluster {
    static WITH_NODE: OnceLock<TestCluster> = OnceLock::new();
    WITH_NODE.get_or_init(|| {
        let cluster = start(&["--node"], PAUSE_IMAGE);
        cluster.import_own_image();
        cluster
    })
}

fn start(mode: &[&str], good_image: &'static str) -> TestCluster {
    let up = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/up");
    let built = Command::new(up)
        .arg("--build-only")
        .stderr(Stdio::inherit())
        .output()
        .expect("tests/cluster/up runs");
    assert!(built.status.success(), "the test cluster could not be built; it needs Go");
    let directory = String::from_utf8(built.stdout).expect("is a path");
    let mut process = Command::new(Path::new(directory.trim()).join("test-cluster"))
        .args(mode)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the supervisor starts");
    let commands = process.stdin.take();
    let mut answers = BufReader::new(process.stdout.take().expect("is piped"));
    let ready = read_answer(&mut answers);
    let path = |name: &str| PathBuf::from(ready[name].as_str().expect("is a path"));
    TestCluster {
        kubeconfig: path("kubeconfig"),
        programs: directory.trim().into(),
        audit_log: path("audit_log"),
        good_image,
        supervisor: Some(Mutex::new(Supervisor { process, commands, answers })),
    }
}

fn read_answer(answers: &mut impl BufRead) -> Value {
    let mut line = String::new();
    answers.read_line(&mut line).expect("the supervisor answers");
    serde_json::from_str(&line).expect("the supervisor answers in JSON; it may not have started")
}

impl TestCluster {
    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The directory with kubectl; empty for an external cluster, where kubectl is on the PATH.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// A program that comes with the cluster, or one on the PATH for an external cluster.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Has the API server validate these objects as `kubectl apply --server-side` does; an unknown or duplicate
    /// field is an error.
    pub fn apply_strictly(&self, objects: &[Value]) {
        self.check_strictly(&["apply", "--server-side"], objects);
    }

    /// The same for `kubectl create`, which accepts `generateName`.
    pub fn create_strictly(&self, objects: &[Value]) {
        self.check_strictly(&["create"], objects);
    }

    fn check_strictly(&self, verb: &[&str], objects: &[Value]) {
        let file = crate::program::scratch("objects.json");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        std::fs::write(&file, list.to_string()).expect("is written");
        let mut kubectl = Command::new(self.program("kubectl"));
        kubectl.args(verb).args(["--dry-run=server", "--validate=strict", "-f"]).arg(file);
        run(kubectl.env("KUBECONFIG", &self.kubeconfig));
    }

    /// The API server's audit log.
    pub fn audit_log(&self) -> &Path {
        &self.audit_log
    }

    /// The entries of the audit log from this position on that contain this text. Most are of other tests: they are not
    /// parsed.
    pub fn audit_entries(&self, since: u64, text: &str) -> Vec<Value> {
        let mut log = File::open(self.audit_log()).expect("there is an audit log");
        log.seek(SeekFrom::Start(since)).expect("is long enough");
        let mut entries = String::new();
        log.read_to_string(&mut entries).expect("is text");
        let lines = entries.lines().filter(|line| line.contains(text));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The cluster with the CRDs of an integration.
    pub fn with_crds(&self, integration: &str) -> &Self {
        install_crds(&self.kubeconfig, &self.program("kubectl"), integration);
        self
    }

    /// Stops a component of a private cluster.
    pub fn stop(&self, component: &str) {
        self.command(&format!("stop {component}"));
    }

    /// Starts the component again, and waits until the API server is ready.
    pub fn start(&self, component: &str) {
        self.command(&format!("start {component}"));
    }

    /// Forwards a local port to an address in the real node's network; returns the local address.
    pub fn forward(&self, target: &str) -> String {
        let answer = self.command(&format!("forward {target}"));
        answer["forward"].as_str().expect("is an address").to_owned()
    }

    fn command(&self, line: &str) -> Value {
        let mut supervisor =
            self.supervisor.as_ref().expect("is our own").lock().expect("no test panicked in it");
        let commands = supervisor.commands.as_mut().expect("is open");
        writeln!(commands, "{line}").expect("the supervisor listens");
        read_answer(&mut supervisor.answers)
    }

    /// Builds an image of the program and its shared libraries, and loads it on the real node.
    fn import_own_image(&self) {
        let program = env!("CARGO_BIN_EXE_action-executor");
        let directory = self.kubeconfig.parent().expect("is in a directory");
        let (stripped, image) = (directory.join("action-executor"), directory.join("own.tar"));
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(program));
        let mut assemble = Command::new(self.programs.join("image"));
        assemble.args(["-tag", OWN_IMAGE, "-entrypoint", "/action-executor", "-output"]);
        assemble.arg(&image).arg(format!("{}:/action-executor", stripped.display()));
        assemble.args(libraries(program).iter().map(|path| format!("{path}:{path}")));
        run(&mut assemble);
        let socket = directory.join("containerd.sock");
        let mut import = Command::new("ctr");
        import.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images", "import"]);
        run(import.arg(&image));
    }

    /// An administrator's client for the current runtime.
    pub async fn client(&self) -> Client {
        client(Kubeconfig::read_from(&self.kubeconfig).expect("is a kubeconfig")).await
    }

    /// A new namespace, ready for pods.
    pub async fn namespace(&self, test: &str) -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.namespace_named(format!("{}-{}-{number}", test.replace('_', "-"), std::process::id()))
            .await
    }

    /// A new namespace of this name.
    pub async fn namespace_named(&self, name: String) -> Namespace {
        let client = self.client().await;
        let kubeconfig = self.kubeconfig.clone();
        let testimony = FailureReport {
            name: name.clone(),
            kubeconfig: kubeconfig.clone(),
            kubectl: self.program("kubectl"),
        };
        let testimony = Arc::new(testimony);
        let namespace = Namespace { name, client, kubeconfig, image: self.good_image, testimony };
        let object = CoreNamespace {
            metadata: kube::api::ObjectMeta {
                name: Some(namespace.name.clone()),
                labels: Some(
                    [("pod-security.kubernetes.io/enforce", "restricted")]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into(),
                ),
                ..Default::default()
            },
            ..Default::default()
        };
        let all = Api::<CoreNamespace>::all(namespace.client.clone());
        all.create(&PostParams::default(), &object).await.expect("the namespace is made");
        eventually("the namespace has its service account", async || {
            namespace.api::<ServiceAccount>().get_opt("default").await.expect("is read")
        })
        .await;
        namespace
    }
}

/// Installs the CRDs of an integration, as `tests/integrations/get` has them, unless an earlier test did, and waits
/// until the API server serves them.
fn install_crds(kubeconfig: &Path, kubectl: &Path, integration: &str) {
    type Installations = BTreeMap<(PathBuf, String), Arc<OnceLock<()>>>;
    static INSTALLED: Mutex<Installations> = Mutex::new(BTreeMap::new());
    let these = (kubeconfig.to_owned(), integration.to_owned());
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let this = installed.entry(these).or_default().clone();
    drop(installed);
    // After a failure the next test retries.
    this.get_or_init(|| {
        apply_crds(kubeconfig, kubectl, &from_integrations(&["crds", integration]));
    });
}

/// Installs the CRDs of this file or directory, and waits until the API server serves them.
pub fn apply_crds(kubeconfig: &Path, kubectl: &Path, crds: &Path) {
    let kubectl = |arguments: &[&str]| {
        let mut kubectl = Command::new(kubectl);
        kubectl.env("KUBECONFIG", kubeconfig).args(arguments).arg("--filename").arg(crds);
        kubectl
    };
    // Too long for the annotation of a client-side apply.
    run(&mut kubectl(&["apply", "--server-side"]));
    // Before the API server has processed one it has no conditions, which `kubectl wait` takes for an error.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut wait = kubectl(&["wait", "--for=condition=Established", "--timeout=60s"]);
    while !wait.output().expect("kubectl runs").status.success() {
        assert!(Instant::now() < deadline, "{}: the CRDs are not established", crds.display());
        thread::sleep(Duration::from_millis(100));
    }
}

/// The path that `tests/integrations/get` prints.
pub fn from_integrations(arguments: &[&str]) -> PathBuf {
    let mut get = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integrations/get"));
    let done = get.args(arguments).stderr(Stdio::inherit()).output().expect("runs");
    assert!(done.status.success(), "tests/integrations/get {arguments:?} failed; it needs Go");
    String::from_utf8(done.stdout).expect("is a path").trim().into()
}

/// The shared libraries of a program, including the loader.
fn libraries(program: &str) -> Vec<String> {
    let listed = Command::new("ldd").arg(program).output().expect("ldd runs").stdout;
    let listed = String::from_utf8(listed).expect("is text");
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(str::to_owned).collect()
}

/// Runs a command; a failure fails the test.
fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        let Some(supervisor) = self.supervisor.take() else { return };
        let mut supervisor = supervisor.into_inner().unwrap_or_else(|poison| poison.into_inner());
        drop(supervisor.commands.take());
        let _ = supervisor.process.wait();
    }
}

/// A client by this kubeconfig. It does not retry, so that a proxy passes on what the API server answers.
pub async fn client(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("is whole");
    config.default_retry = false;
    Client::try_from(config).expect("is a client")
}

/// Plays the controller of an object as long as the runtime lives: calls the function with each version of it.
pub fn play_controller<F>(
    objects: Api<DynamicObject>,
    name: String,
    react: impl Fn(Value) -> F + Send + 'static,
) where
    F: Future<Output = Result<(), kube::Error>> + Send,
{
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    tokio::spawn(async move {
        loop {
            // Starts with the object as the server's cache has it.
            let Ok(events) = objects.watch(&params, "0").await else {
                sleep(RETRY_INTERVAL).await;
                continue;
            };
            let mut events = pin!(events);
            while let Ok(Some(event)) = events.try_next().await {
                let reacted = match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        react(json!(object)).await
                    }
                    WatchEvent::Deleted(_) => return,
                    WatchEvent::Bookmark(_) => Ok(()),
                    WatchEvent::Error(_) => break,
                };
                // The next watch begins with the object as it is then.
                if reacted.is_err() {
                    break;
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    });
}

/// Retries until there is a value, for at most [`WAIT_TIMEOUT`].
pub async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(RETRY_INTERVAL).await;
    }
}

/// A test's own namespace. Our own cluster ends with all its namespaces. In an external cluster they stay for
/// inspection; their names contain the test's.
#[derive(Clone)]
pub struct Namespace {
    name: String,
    client: Client,
    kubeconfig: PathBuf,
    image: &'static str,
    /// Prints when it is dropped.
    testimony: Arc<FailureReport>,
}

/// Prints the events and pods of a failed test's namespace, since our own cluster does not outlive the run.
struct FailureReport {
    name: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

impl Drop for FailureReport {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", &self.name]);
        kubectl.args(["get", "jobs,pods,events", "--request-timeout=5s", "--no-headers"]);
        let Ok(seen) = kubectl.output() else { return };
        // The last lines are the most recent.
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        let lines: Vec<&str> = seen.lines().collect();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        println!("in namespace {} at the end:\n{last}", self.name);
    }
}

impl Namespace {
    /// The same namespace; its workloads use this image from here on.
    pub fn with_image(self, image: &'static str) -> Self {
        Namespace { image, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Installs the CRDs of an integration in the namespace's cluster.
    pub fn install_crds(&self, integration: &str) {
        install_crds(&self.kubeconfig, &self.testimony.kubectl, integration);
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The same namespace, with the permissions of this kubeconfig.
    pub async fn with_access(&self, kubeconfig: &Path) -> Self {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("is a kubeconfig");
        Namespace { client: client(kubeconfig).await, ..self.clone() }
    }

    /// The objects of this kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The objects of a kind given by name.
    pub fn objects(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.name, resource)
    }

    /// The objects of a cluster-scoped kind.
    pub fn global<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// The same for a kind given by name.
    pub fn global_objects(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), resource)
    }

    /// A node with the namespace's name, once it is ready. It is tainted, so that it runs only the pods that the
    /// test assigns to it.
    pub async fn own_node(&self, cordoned: bool) -> Node {
        let object = json!({
            "metadata": {
                "name": self.name,
                "labels": { "kubernetes.io/hostname": self.name },
                "annotations": { "kwok.x-k8s.io/node": "fake" },
            },
            "spec": {
                "unschedulable": cordoned.then_some(true),
                "taints": [own_taint()],
            },
        });
        let object: Node = serde_json::from_value(object).expect("is a node");
        let nodes = self.global::<Node>();
        nodes.create(&PostParams::default(), &object).await.expect("the node is made");
        eventually("the node is ready", async || {
            let node = nodes.get(&self.name).await.expect("is there");
            let conditions = node.status.as_ref()?.conditions.as_ref()?;
            let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            let taints = node.spec.as_ref()?.taints.as_ref()?;
            let settled = taints.iter().all(|it| !it.key.ends_with("/not-ready"));
            let marked = taints.iter().any(|it| it.key.ends_with("/unschedulable")) == cordoned;
            (ready && settled && marked).then_some(node)
        })
        .await
    }

    /// A ReplicaSet whose pods run on the test's own node, and whose replacements run elsewhere; `spec` extends
    /// the pods' spec.
    pub async fn replica_set_on_own_node(&self, name: &str, replicas: i32, spec: Value) {
        let mut template = template(name, self.image);
        let more = spec.as_object().expect("are fields").clone();
        template["spec"].as_object_mut().expect("is one").extend(more);
        for number in 0..replicas {
            let mut pod = template.clone();
            pod["metadata"]["name"] = format!("{name}-{number}").into();
            pod["spec"]["nodeName"] = self.name.as_str().into();
            self.create::<Pod>(pod).await;
        }
        eventually("the pods are settled", async || {
            let pods = self.pods_of(name).await;
            let phase = |pod: &Pod| pod.status.as_ref().and_then(|it| it.phase.clone());
            let runs = |pod: &Pod| phase(pod).is_some_and(|it| it == "Running");
            (self.image == MISSING_IMAGE || pods.iter().all(runs)).then_some(())
        })
        .await;
        // It adopts matching pods wherever they run; the scheduler assigns those that it creates.
        self.create::<ReplicaSet>(json!({
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": template,
            },
        }))
        .await;
        eventually("the ReplicaSet has the pods", async || {
            let pods = self.pods_of(name).await;
            let owned = |pod: &Pod| pod.metadata.owner_references.is_some();
            (pods.len() == replicas as usize && pods.iter().all(owned)).then_some(())
        })
        .await;
    }

    /// A node with the namespace's name whose kubelet has not reported for ten minutes. It is tainted, so that no
    /// DaemonSet of another test wants a pod there.
    pub async fn lost_node(&self) {
        let object = json!({
            "metadata": { "name": self.name },
            "spec": { "taints": [own_taint()] },
        });
        let object: Node = serde_json::from_value(object).expect("is a node");
        let nodes = self.global::<Node>();
        nodes.create(&PostParams::default(), &object).await.expect("the node is made");
        let since = (chrono::Utc::now() - chrono::TimeDelta::minutes(10))
            .to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        let condition = json!({
            "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "lastHeartbeatTime": since, "lastTransitionTime": since,
        });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        nodes.patch_status(&self.name, &Default::default(), &patch).await.expect("is patched");
    }

    /// A pod with this metadata on the lost node.
    pub async fn pod_on_lost_node(&self, metadata: Value) {
        let mut pod = template("any", self.image);
        pod["metadata"] = metadata;
        pod["spec"]["nodeName"] = self.name.as_str().into();
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
        self.create::<Pod>(pod).await;
    }

    /// A lost node, and a pod on it that was deleted long enough ago to be stuck.
    pub async fn stuck_pod(&self, name: &str) {
        self.lost_node().await;
        self.stuck_again(name).await;
    }

    /// The same where there is a lost node, unless the pod is there.
    pub async fn stuck_again(&self, name: &str) {
        if self.api::<Pod>().get_opt(name).await.expect("is read").is_none() {
            self.pod_on_lost_node(json!({ "name": name, "labels": { "app": name } })).await;
            self.delete_and_wait(name).await;
        }
    }

    /// Deletes a pod that no kubelet removes, and waits until it is stuck.
    pub async fn delete_and_wait(&self, name: &str) {
        let params = DeleteParams { grace_period_seconds: Some(1), ..DeleteParams::default() };
        self.api::<Pod>().delete(name, &params).await.expect("is deleted");
        sleep(Duration::from_secs(12)).await;
    }

    /// Creates an object from JSON.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope>
            + Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let object = serde_json::from_value(object).expect("is an object of this kind");
        self.api::<K>().create(&PostParams::default(), &object).await.expect("is created")
    }

    /// A Deployment of pods with this image.
    pub async fn deployment(&self, name: &str, replicas: i32, image: &str) -> Deployment {
        self.create(json!({
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": template(name, image),
            },
        }))
        .await
    }

    /// A Deployment of good pods, once all of them are ready.
    pub async fn running_deployment(&self, name: &str, replicas: i32) -> Deployment {
        self.deployment(name, replicas, self.image).await;
        self.rolled_out(name).await
    }

    /// A Deployment of one pod that mounts this volume claim, and that no scheduler handles: it would retry, and
    /// report that, as long as there is no such volume claim.
    pub async fn deployment_with_claim(&self, name: &str, claim: &str) {
        let mut template = template(name, self.image);
        template["spec"]["schedulerName"] = "none".into();
        template["spec"]["volumes"] =
            json!([{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }]);
        self.create::<Deployment>(json!({
            "metadata": { "name": name },
            "spec": { "selector": { "matchLabels": { "app": name } }, "template": template },
        }))
        .await;
    }

    /// Changes a variable in the Deployment's template, once its current template is a revision.
    pub async fn revise(&self, name: &str, value: &str) {
        eventually("the present revision is known", async || {
            let found = self.get_deployment(name).await;
            (found.status?.observed_generation == found.metadata.generation).then_some(())
        })
        .await;
        let patch = json!({ "spec": { "template": { "spec": { "containers": [
            { "name": "main", "env": [{ "name": "REVISION", "value": value }] },
        ]}}}});
        let patch = Patch::Strategic(patch);
        let deployments = self.api::<Deployment>();
        deployments.patch(name, &Default::default(), &patch).await.expect("is patched");
        eventually("the new revision is known", async || {
            let found = self.get_deployment(name).await;
            (found.status?.observed_generation == found.metadata.generation).then_some(())
        })
        .await;
    }

    /// A Deployment of one pod that is ready once its condition of this type is set.
    pub async fn gated_deployment(&self, name: &str, gate: &str) {
        let mut template = template(name, self.image);
        template["spec"]["readinessGates"] = json!([{ "conditionType": gate }]);
        self.create::<Deployment>(json!({
            "metadata": { "name": name },
            "spec": { "selector": { "matchLabels": { "app": name } }, "template": template },
        }))
        .await;
    }

    /// A StatefulSet of good pods.
    pub async fn stateful_set(&self, name: &str, replicas: i32) {
        let object = json!({
            "metadata": { "name": name },
            "spec": {
                "serviceName": name,
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": template(name, self.image),
            },
        });
        self.create::<StatefulSet>(object).await;
    }

    /// A StatefulSet of good pods, once all of them are ready.
    pub async fn running_stateful_set(&self, name: &str, replicas: i32) {
        self.stateful_set(name, replicas).await;
        self.ready_stateful_set(name, replicas).await;
    }

    /// Waits until so many pods of the StatefulSet are ready.
    pub async fn ready_stateful_set(&self, name: &str, ready: i32) {
        eventually("the StatefulSet is ready", async || {
            let found = self.api::<StatefulSet>().get(name).await.expect("is there");
            (found.status?.ready_replicas? == ready).then_some(())
        })
        .await;
    }

    /// A ReplicaSet of good pods without an owner.
    pub async fn replica_set(&self, name: &str, replicas: i32) {
        let object = json!({
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": template(name, self.image),
            },
        });
        self.create::<ReplicaSet>(object).await;
    }

    /// A DaemonSet of good pods.
    pub async fn daemon_set(&self, name: &str) {
        let object = json!({
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": { "app": name } },
                "template": template(name, self.image),
            },
        });
        self.create::<DaemonSet>(object).await;
    }

    /// A DaemonSet with a pod on the test's own node alone.
    pub async fn daemon_set_on_own_node(&self, name: &str) {
        let mut template = template(name, self.image);
        template["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        template["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": self.name });
        self.create::<DaemonSet>(json!({
            "metadata": { "name": name },
            "spec": { "selector": { "matchLabels": { "app": name } }, "template": template },
        }))
        .await;
        eventually("its pod is there", async || {
            let pods = self.pods_of(name).await;
            pods.iter()
                .any(|pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some()))
                .then_some(())
        })
        .await;
    }

    /// A DaemonSet of good pods, once all of them are ready.
    pub async fn running_daemon_set(&self, name: &str) {
        self.daemon_set(name).await;
        eventually("the DaemonSet is ready", async || {
            let status = self.api::<DaemonSet>().get(name).await.expect("is there").status?;
            let wanted = status.desired_number_scheduled;
            (wanted > 0 && status.number_available == Some(wanted)).then_some(())
        })
        .await;
    }

    /// Another reference of the same repository as that of its pods' image.
    pub fn other_image(&self) -> String {
        match self.image {
            // The real node has one image of it, under a shorter and a longer name.
            PAUSE_IMAGE => format!("docker.io/{PAUSE_IMAGE}"),
            _ => OTHER_IMAGE.to_owned(),
        }
    }

    /// An autoscaler from 1 to 4 replicas, for a Deployment that does not exist, so that it never scales.
    pub async fn autoscaler(&self, name: &str) {
        let object = json!({
            "metadata": { "name": name },
            "spec": {
                "minReplicas": 1, "maxReplicas": 4,
                "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "none" },
            },
        });
        self.create::<HorizontalPodAutoscaler>(object).await;
    }

    /// A CronJob that is due once a year and never starts a missed run. Its Job's only pod has this image, and
    /// completes at once if that is the program under test.
    pub async fn cron_job(&self, name: &str, image: &str, suspend: bool) -> CronJob {
        self.create(json!({
            "metadata": { "name": name },
            "spec": {
                "schedule": "0 0 1 1 *",
                "startingDeadlineSeconds": 0,
                "suspend": suspend,
                "jobTemplate": job_template(name, image),
            },
        }))
        .await
    }

    /// A Job with one pod of this image, which completes at once if that is the program under test.
    pub async fn job(&self, name: &str, image: &str, spec: Value) -> Job {
        let mut job = job_template(name, image);
        job["metadata"]["name"] = name.into();
        let more = spec.as_object().expect("are fields").clone();
        job["spec"].as_object_mut().expect("is one").extend(more);
        self.create(job).await
    }

    /// The same, once it is complete or has failed.
    pub async fn finished_job(&self, name: &str, image: &str) -> Job {
        self.job(name, image, json!({})).await;
        self.ended_job(name).await
    }

    /// The Job, once it is complete or has failed.
    pub async fn ended_job(&self, name: &str) -> Job {
        eventually("the Job has ended", async || {
            let job = self.api::<Job>().get(name).await.expect("is there");
            let conditions = job.status.as_ref()?.conditions.as_ref()?;
            let has_ended = |kind: &str| matches!(kind, "Complete" | "Failed");
            conditions.iter().any(|it| has_ended(&it.type_)).then_some(job)
        })
        .await
    }

    /// A disruption budget for the pods whose label `app` has this value, once its status is current.
    pub async fn disruption_budget(&self, name: &str, app: &str, spec: Value) {
        let mut object = json!({
            "metadata": { "name": name },
            "spec": { "selector": { "matchLabels": { "app": app } } },
        });
        let more = spec.as_object().expect("are fields").clone();
        object["spec"].as_object_mut().expect("is one").extend(more);
        self.create::<PodDisruptionBudget>(object).await;
        self.settled_pdb(name).await;
    }

    /// Has the API server validate the calls of this rule in this namespace; `action` is what a failed validation does.
    pub async fn admission_policy(&self, action: &str, rule: Value, validation: Value) {
        let name = self.name();
        let namespace = json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
        let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "matchConstraints": { "namespaceSelector": namespace, "resourceRules": [rule] },
                "validations": [validation],
            },
        }))
        .expect("is a policy");
        let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "policyName": name, "validationActions": [action] },
        }))
        .expect("is a binding");
        let params = PostParams::default();
        self.global().create(&params, &policy).await.expect("is created");
        self.global().create(&params, &binding).await.expect("is created");
    }

    /// A disruption budget of this name for the pods of `app`, all of which it requires, and for one more pod, which is
    /// never ready: it allows no disruption, and would once that pod is ready or another is required less.
    pub async fn exhausted_pdb(&self, name: &str, app: &str, pods: i32) {
        let unready = format!("{app}-unready");
        self.bare_pod_of(&unready, CRASHING_IMAGE, json!({ "app": unready })).await;
        self.create::<PodDisruptionBudget>(json!({
            "metadata": { "name": name },
            "spec": {
                "minAvailable": pods,
                "selector": { "matchExpressions": [
                    { "key": "app", "operator": "In", "values": [app, unready] },
                ]},
            },
        }))
        .await;
        eventually("the disruption budget is exhausted", async || {
            let status = self.settled_pdb(name).await.status?;
            let counted =
                (status.expected_pods, status.current_healthy, status.disruptions_allowed);
            (counted == (pods + 1, pods, 0)).then_some(())
        })
        .await;
    }

    /// Sets how many pods a disruption budget requires, once its status is current.
    pub async fn set_min_available(&self, name: &str, number: i32) {
        let patch = Patch::Merge(json!({ "spec": { "minAvailable": number } }));
        let budgets = self.api::<PodDisruptionBudget>();
        budgets.patch(name, &Default::default(), &patch).await.expect("is patched");
        self.settled_pdb(name).await;
    }

    /// Sets whether a pod is ready, as its kubelet does.
    pub async fn set_ready(&self, pod: &str, ready: bool) {
        let status = if ready { "True" } else { "False" };
        let condition = json!({ "type": "Ready", "status": status });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        let pods = self.api::<Pod>();
        pods.patch_status(pod, &Default::default(), &patch).await.expect("is patched");
    }

    /// The disruption budget, once its status is current.
    pub async fn settled_pdb(&self, name: &str) -> PodDisruptionBudget {
        eventually("the disruption budget has a current status", async || {
            let found = self.api::<PodDisruptionBudget>().get(name).await.expect("is there");
            let observed = found.status.as_ref()?.observed_generation;
            (observed == found.metadata.generation).then_some(found)
        })
        .await
    }

    /// A pod without a controller.
    pub async fn bare_pod(&self, name: &str) -> Pod {
        self.bare_pod_of(name, self.image, json!({ "app": name })).await
    }

    /// A pod without a controller, with this image and these labels.
    pub async fn bare_pod_of(&self, name: &str, image: &str, labels: Value) -> Pod {
        let mut pod = template(name, image);
        pod["metadata"] = json!({ "name": name, "labels": labels });
        self.create(pod).await
    }

    /// A volume claim of 1Gi with a volume of this capacity, of a class that allows expansion.
    pub async fn bound_claim(&self, name: &str, capacity: &str) {
        self.bound_claim_of("expandable", true, name, capacity).await;
    }

    /// The same of a class of this name, that allows expansion or does not.
    pub async fn bound_claim_of(&self, class: &str, expands: bool, name: &str, capacity: &str) {
        let class_name = class;
        let class = json!({
            "metadata": { "name": class }, "provisioner": "example.com/none", "allowVolumeExpansion": expands,
        });
        // Another test may have created it.
        let class: StorageClass = serde_json::from_value(class).expect("is a class");
        let _ = self.global::<StorageClass>().create(&Default::default(), &class).await;
        let volume = json!({
            "metadata": { "name": format!("{}-{name}", self.name) },
            "spec": {
                "capacity": { "storage": capacity }, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class_name, "hostPath": { "path": "/tmp" },
                "claimRef": { "namespace": self.name, "name": name },
            },
        });
        let volume: PersistentVolume = serde_json::from_value(volume).expect("is a volume");
        let volumes = self.global::<PersistentVolume>();
        volumes.create(&Default::default(), &volume).await.expect("is created");
        self.create::<PersistentVolumeClaim>(json!({
            "metadata": { "name": name },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class_name,
                "resources": { "requests": { "storage": "1Gi" } },
            },
        }))
        .await;
        eventually("the volume claim is bound", async || {
            let claim = self.api::<PersistentVolumeClaim>().get(name).await.expect("is there");
            (claim.status?.phase? == "Bound").then_some(())
        })
        .await;
    }

    /// A pod without a controller, whose container has this memory limit.
    pub async fn sized_pod(&self, name: &str, image: &str, memory: &str) -> Pod {
        let mut pod = template(name, image);
        pod["metadata"] = json!({ "name": name, "labels": { "app": name } });
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": memory } });
        self.create(pod).await
    }

    /// The same of the good image, once its kubelet reports what the container has.
    pub async fn running_sized_pod(&self, name: &str, memory: &str) -> Pod {
        self.sized_pod(name, self.image, memory).await;
        eventually("the pod runs", async || {
            let pod = self.api::<Pod>().get(name).await.expect("is there");
            let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
            container.resources.as_ref()?.limits.is_some().then_some(pod)
        })
        .await
    }

    /// A pod without a controller that has failed. Only on a real node it does so by itself.
    pub async fn failed_pod(&self, name: &str) {
        let mut pod = template(name, OWN_IMAGE);
        pod["metadata"] = json!({ "name": name, "labels": { "app": name } });
        pod["spec"]["restartPolicy"] = "Never".into();
        pod["spec"]["securityContext"]["runAsUser"] = 65532.into();
        pod["spec"]["containers"][0]["args"] = json!(["--no-such-option"]);
        let pods = self.api::<Pod>();
        self.create::<Pod>(pod).await;
        let failed = Patch::Merge(json!({ "status": { "phase": "Failed", "reason": "Evicted" } }));
        eventually("the pod has failed", async || {
            let phase = pods.get(name).await.expect("is there").status?.phase?;
            if phase == "Running" {
                pods.patch_status(name, &Default::default(), &failed).await.expect("is patched");
            }
            (phase == "Failed").then_some(())
        })
        .await;
    }

    /// The Deployment, once its rollout is complete.
    pub async fn rolled_out(&self, name: &str) -> Deployment {
        eventually("the rollout is complete", async || {
            let found = self.get_deployment(name).await;
            let status = found.status.clone()?;
            let wanted = found.spec.as_ref()?.replicas;
            (status.observed_generation == found.metadata.generation
                && status.updated_replicas.or(Some(0)) == wanted
                && status.replicas.or(Some(0)) == wanted
                && status.available_replicas.or(Some(0)) == wanted)
                .then_some(found)
        })
        .await
    }

    /// The Deployment as it is now.
    pub async fn get_deployment(&self, name: &str) -> Deployment {
        self.api::<Deployment>().get(name).await.expect("the Deployment is there")
    }

    /// The pods whose label `app` has this value, without those that are terminating.
    pub async fn pods_of(&self, app: &str) -> Vec<Pod> {
        let params = ListParams::default().labels(&format!("app={app}"));
        let pods = self.api::<Pod>().list(&params).await.expect("pods are listed").items;
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// A new service account that has these rules in this namespace.
    pub async fn grant(&self, name: &str, rules: Value) {
        self.create::<ServiceAccount>(json!({ "metadata": { "name": name } })).await;
        let role = json!({ "metadata": { "name": name }, "rules": rules.clone() });
        self.create::<Role>(role).await;
        self.create::<RoleBinding>(json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": self.name }],
        }))
        .await;
        self.is_granted(name, Some(&self.name), &rules).await;
    }

    /// Waits until the API server's authorizer has seen the Role with these rules and its binding, which on a busy
    /// machine takes a while.
    async fn is_granted(&self, account: &str, namespace: Option<&str>, rules: &Value) {
        let rule = &rules[0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let Some(resource) = text(&rule["resources"][0]) else { return };
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource)),
            None => (&*resource, None),
        };
        let review: SubjectAccessReview = serde_json::from_value(json!({ "spec": {
            "user": format!("system:serviceaccount:{}:{account}", self.name),
            "resourceAttributes": {
                "group": rule["apiGroups"][0], "resource": resource, "subresource": subresource,
                "verb": rule["verbs"][0], "name": rule["resourceNames"][0], "namespace": namespace,
            },
        }}))
        .expect("is a review");
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        eventually("the authorizer has seen the rules", async || {
            let reviewed = reviews.create(&PostParams::default(), &review).await;
            reviewed.expect("is reviewed").status?.allowed.then_some(())
        })
        .await;
    }

    /// Grants a service account of this namespace these rules in the whole cluster.
    pub async fn grant_everywhere(&self, account: &str, rules: Value) {
        let name = format!("{}-{account}", self.name);
        let role = json!({ "metadata": { "name": name }, "rules": rules.clone() });
        let role: ClusterRole = serde_json::from_value(role).expect("is a role");
        let roles = self.global::<ClusterRole>();
        roles.create(&PostParams::default(), &role).await.expect("is created");
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": self.name }],
        });
        let binding: ClusterRoleBinding = serde_json::from_value(binding).expect("is a binding");
        let bindings = self.global::<ClusterRoleBinding>();
        bindings.create(&PostParams::default(), &binding).await.expect("is created");
        self.is_granted(account, None, &rules).await;
    }

    /// Grants a service account of this namespace these rules in `default`, which holds the records of actions on
    /// nodes.
    pub async fn grant_in_default(&self, account: &str, rules: Value) {
        let name = format!("{}-{account}", self.name);
        let default = Namespace { name: "default".to_owned(), ..self.clone() };
        let role = json!({ "metadata": { "name": name }, "rules": rules.clone() });
        default.create::<Role>(role).await;
        default
            .create::<RoleBinding>(json!({
                "metadata": { "name": name },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
                "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": self.name }],
            }))
            .await;
        self.is_granted(account, Some("default"), &rules).await;
    }

    /// The kubeconfig of a service account of this namespace.
    pub async fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let token = self.token(account, &[]).await;
        self.kubeconfig_with(account, json!({ "token": token }))
    }

    /// The kubeconfig of a new service account that has these rules in this namespace.
    pub async fn account(&self, name: &str, rules: Value) -> PathBuf {
        self.grant(name, rules).await;
        self.kubeconfig_of(name).await
    }

    /// A token of a service account for these audiences; without any, for the API server.
    pub async fn token(&self, account: &str, audiences: &[&str]) -> String {
        let request: TokenRequest =
            serde_json::from_value(json!({ "spec": { "audiences": audiences } }))
                .expect("is a request");
        let accounts = self.api::<ServiceAccount>();
        let token = accounts.create_token_request(account, &PostParams::default(), &request).await;
        token.expect("a token is issued").status.expect("is answered").token
    }

    /// A policy file whose state is kept in this namespace. It lists every key and every integration where the policy
    /// lists none.
    pub fn policy(&self, policy: &str) -> PathBuf {
        let path = crate::program::scratch("policy.yaml");
        let mut text = format!("{policy}\nstate: {{namespace: {}}}\n", self.name);
        for field in ["labels", "annotations", "taints"]
            .into_iter()
            .filter(|it| !policy.contains(&format!("{it}:")))
        {
            text.push_str(&format!("{field}: {{allow: ['*']}}\n"));
        }
        if !policy.contains("integrations:") {
            text.push_str("integrations: [argo_rollouts, argo_cd, flux, keda]\n");
        }
        std::fs::write(&path, text).expect("is written");
        path
    }

    /// The administrator's kubeconfig with another user.
    pub fn kubeconfig_with(&self, name: &str, user: Value) -> PathBuf {
        let text = std::fs::read_to_string(&self.kubeconfig).expect("is readable");
        let mut config: Value = serde_yaml_ng::from_str(&text).expect("is YAML");
        config["users"][0]["user"] = user;
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = directory.join(format!("{}-{name}.kubeconfig", self.name));
        std::fs::write(&path, config.to_string()).expect("is written");
        path
    }
}

/// The taint of a test's own node, which keeps away the pods of other tests.
pub fn own_taint() -> Value {
    json!({ "key": "kwok.x-k8s.io/node", "value": "own", "effect": "NoSchedule" })
}

/// A template without the annotations that a restart sets.
pub fn without_restart(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let annotations = template.metadata.as_mut().and_then(|it| it.annotations.take());
    let stamps = annotations.expect("has some");
    assert!(stamps.contains_key("kubectl.kubernetes.io/restartedAt"));
    template
}

/// A Job's part of a CronJob.
fn job_template(name: &str, image: &str) -> Value {
    let mut template = template(name, image);
    template["spec"]["restartPolicy"] = "Never".into();
    template["spec"]["securityContext"]["runAsUser"] = 65532.into();
    template["spec"]["containers"][0]["args"] = json!(["--version"]);
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": { "backoffLimit": 0, "template": template },
    })
}

pub fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "main",
                "image": image,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    })
}
