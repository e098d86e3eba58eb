//! How many real actions a server makes in a second, beside the same calls sent raw to the API server.
//!
//!     tests/cluster/up cargo bench --bench throughput
//!
//! Each phase restarts `THROUGHPUT_ACTIONS` Deployments (256 by default), each once, by 8 or 64 clients at a time:
//! through the server, and by a client here that sends the same calls with the same bodies, and waits where the
//! server waits: for the reads, for the claim with the charge, for the change, for the record. It
//! decides nothing, so it shows the limit of the API server. It uses HTTP/1.1, then HTTP/2. The phases run in
//! turn, `THROUGHPUT_ROUNDS` times (3), after a warm-up, without and with a budget; each phase with a budget has a
//! Lease of its own, since a Lease grows with each charge.
//!
//! Prints actions per second (the median of the rounds), latencies, the processor time of the server's process, how
//! many actions failed, and the ratio to the better raw client. The API server and its controllers run on the same
//! machine.

use std::{
    collections::VecDeque,
    env,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Config, client::ConfigExt};
use process::median;
use programs::kubectl;
use serde_json::{Value, json};
use server_process::{ServerProcess, create_deployments};
use tokio::{runtime::Runtime, task::JoinSet};

#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod peer;
mod process;
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod programs;
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod server_process;

const PORT: u16 = 18_471;

/// How many clients act at a time.
const CLIENTS: [usize; 2] = [8, 64];

/// How many actions come before the measured ones of each phase.
const WARM_UP: usize = 16;

const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const OPTIONS: &str = "fieldManager=action-executor";
/// What the API server's cache answers.
const CACHED: &str = "resourceVersion=0&resourceVersionMatch=NotOlderThan";

/// One phase.
struct Phase {
    per_second: f64,
    latencies: Vec<Duration>,
    failed: usize,
    /// Processor time of the server's process per action; none for a raw client.
    processor: Option<Duration>,
}

/// What makes an action on the Deployment of this name.
trait Subject: Clone + Send + 'static {
    fn act(&self, deployment: &str) -> impl Future<Output = Result<(), String>> + Send;
}

fn main() {
    if env::var_os("KUBECONFIG").is_none() {
        eprintln!(
            "run this in a throwaway cluster: tests/cluster/up cargo bench --bench throughput"
        );
        std::process::exit(64);
    }
    let actions = number("THROUGHPUT_ACTIONS", 256);
    let rounds = number("THROUGHPUT_ROUNDS", 3);
    let names: Vec<_> = (0..actions).map(|number| format!("bench-{number:04}")).collect();
    let spec = json!({ "replicas": 0, "revisionHistoryLimit": 1 });
    create_deployments(&names, "registry.invalid/good:1", &spec);
    let runtime = Runtime::new().expect("is a runtime");
    let records = runtime.block_on(Records::sample(&names[0]));
    println!("{actions} restarts, medians of {rounds}");
    println!(
        "{:<10}{:>8}  {:<24}{:>11}{:>10}{:>10}{:>16}{:>8}{:>8}",
        "budget",
        "clients",
        "",
        "actions/s",
        "p50 ms",
        "p99 ms",
        "CPU ms/action",
        "failed",
        "ratio"
    );
    for is_budgeted in [false, true] {
        for clients in CLIENTS {
            let mut phases: [Vec<Phase>; 3] = Default::default();
            // Each is the first in turn: the controllers are busy with the restarts of the phase before.
            for phase in (0..rounds).flat_map(|round| [0, 1, 2].map(|next| (round + next) % 3)) {
                phases[phase].push(match phase {
                    2 => runtime.block_on(Server::start(is_budgeted).measure(&names, clients)),
                    _ => runtime.block_on(async {
                        let raw = Raw::new(phase == 1, is_budgeted, &records).await;
                        measure(&raw, &names, clients).await
                    }),
                });
            }
            print(is_budgeted, clients, &phases);
        }
    }
}

fn number(variable: &str, otherwise: usize) -> usize {
    env::var(variable).ok().and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

fn print(is_budgeted: bool, clients: usize, phases: &[Vec<Phase>; 3]) {
    let per_second = |phases: &[Phase]| median(phases, |phase| phase.per_second);
    let limit = per_second(&phases[0]).max(per_second(&phases[1]));
    let names = ["calls over HTTP/1.1", "calls over HTTP/2", "action-executor"];
    for (name, phases) in names.into_iter().zip(phases) {
        let mut latencies: Vec<_> =
            phases.iter().flat_map(|it| it.latencies.iter().copied()).collect();
        latencies.sort_unstable();
        let percentile = |of: usize| {
            let at = (latencies.len() * of / 100).min(latencies.len().saturating_sub(1));
            latencies.get(at).map_or(f64::NAN, |it| it.as_secs_f64() * 1e3)
        };
        let used: Vec<_> = phases.iter().filter_map(|phase| phase.processor).collect();
        let processor = match used.is_empty() {
            true => String::new(),
            false => format!("{:.2}", median(&used, |it| it.as_secs_f64() * 1e3)),
        };
        println!(
            "{:<10}{clients:>8}  {name:<24}{:>11.1}{:>10.1}{:>10.1}{:>16}{:>8}{:>7.2}x",
            if is_budgeted { "yes" } else { "none" },
            per_second(phases),
            percentile(50),
            percentile(99),
            processor,
            phases.iter().map(|phase| phase.failed).sum::<usize>(),
            per_second(phases) / limit,
        );
    }
}

/// Makes one action on each Deployment, as many at a time as there are clients. Those that fail do not count.
async fn measure(subject: &impl Subject, names: &[String], clients: usize) -> Phase {
    let queue = Arc::new(Mutex::new(VecDeque::from(names.to_vec())));
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..clients {
        let (subject, queue) = (subject.clone(), queue.clone());
        workers.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let next = queue.lock().expect("no worker panicked").pop_front();
                let Some(name) = next else { return latencies };
                let began = Instant::now();
                match subject.act(&name).await {
                    Ok(()) => latencies.push(began.elapsed()),
                    Err(error) => eprintln!("{name}: {error}"),
                }
            }
        });
    }
    let latencies = workers.join_all().await.concat();
    let per_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
    let failed = names.len() - latencies.len();
    Phase { per_second, latencies, failed, processor: None }
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// A server, under a policy of its own.
struct Server {
    process: ServerProcess,
    client: ServerClient,
}

/// Clients of the server; each has a connection that stays.
#[derive(Clone)]
struct ServerClient(Client<HttpConnector, Full<Bytes>>);

impl Server {
    fn start(is_budgeted: bool) -> Self {
        let quota = if is_budgeted { "{actions: 1000, within_seconds: 3600}" } else { "null" };
        let policy = format!(
            "cooldown_seconds: 0\nbudget: {{per_namespace: {quota}, cluster: {quota}}}\n\
             state: {{namespace: default, name: bench-{}}}\n",
            new_id()
        );
        let process = ServerProcess::start(PORT, &policy, None);
        Server { process, client: ServerClient(Client::builder(TokioExecutor::new()).build_http()) }
    }

    /// Measures the server once it is warm: the first calls connect.
    async fn measure(&self, names: &[String], clients: usize) -> Phase {
        measure(&self.client, &names[..WARM_UP.min(names.len())], clients).await;
        let before = peer::processor_time(self.process.id());
        let phase = measure(&self.client, names, clients).await;
        let used = peer::processor_time(self.process.id()) - before;
        Phase { processor: Some(used / names.len() as u32), ..phase }
    }
}

impl ServerClient {
    async fn restart(&self, deployment: &str, id: &str) -> Result<(), String> {
        let body = json!({
            "type": "restart_k8s", "id": id, "simulate": false,
            "parameters": { "deployment": deployment },
        });
        let request = Request::post(format!("http://127.0.0.1:{PORT}/api/v1/action/execute"))
            .header(CONTENT_TYPE, JSON)
            .body(Full::from(body.to_string()))
            .expect("is a request");
        let response = self.0.request(request).await.expect("is answered");
        let status = response.status();
        let body = response.into_body().collect().await.expect("is whole").to_bytes();
        match status {
            StatusCode::OK => Ok(()),
            _ => Err(String::from_utf8_lossy(&body).into_owned()),
        }
    }
}

impl Subject for ServerClient {
    async fn act(&self, deployment: &str) -> Result<(), String> {
        self.restart(deployment, &new_id()).await
    }
}

/// The writes of one action of the server, which the raw client copies: in each, the Deployment's name and uid, and
/// the request's id, stand for those of another action.
#[derive(Clone)]
struct Records {
    name: String,
    uid: String,
    id: String,
    event: String,
    /// The Event as it was created.
    claim: String,
    /// The patch that closes it, without its resourceVersion.
    record: Value,
    /// The annotation that an action adds to the Lease.
    usage: String,
}

impl Records {
    /// Makes actions, and reads what the last one has written.
    async fn sample(name: &str) -> Self {
        let server = Server::start(true);
        let mut id = String::new();
        // The first ones write less.
        for _ in 0..4 {
            id = new_id();
            server.client.restart(name, &id).await.expect("is made");
        }
        let read = |args: &[&str]| -> Value {
            let text = kubectl(&[&["get", "-o", "json"], args].concat());
            serde_json::from_str(&text).expect("is JSON")
        };
        let leases = read(&["leases"]);
        let lease = leases["items"].as_array().into_iter().flatten().find_map(|lease| {
            let annotations = lease["metadata"]["annotations"].as_object()?;
            annotations.values().find_map(Value::as_str)
        });
        let usage = lease.expect("the actions are charged").to_owned();
        let mut events = read(&["events"]);
        let is_ours = |event: &&mut Value| {
            event["metadata"]["annotations"]["action-executor.dev/request-id"] == id.as_str()
        };
        let events = events["items"].as_array_mut().into_iter().flatten();
        let mut event = { events }.find(is_ours).expect("the action has a record").take();
        let record = json!({
            "metadata": { "annotations": event["metadata"]["annotations"] },
            "reason": event["reason"], "message": event["message"],
            "type": event["type"], "lastTimestamp": event["lastTimestamp"],
        });
        let metadata = event["metadata"].as_object_mut().expect("is an object");
        for written in ["creationTimestamp", "managedFields", "resourceVersion", "uid"] {
            metadata.remove(written);
        }
        let annotations = metadata["annotations"].as_object_mut().expect("is an object");
        annotations.remove("action-executor.dev/answer");
        annotations.remove("action-executor.dev/applied");
        annotations["action-executor.dev/state"] = "claimed".into();
        let text = |value: &Value| value.as_str().expect("is text").to_owned();
        Records {
            name: name.to_owned(),
            uid: text(&event["involvedObject"]["uid"]),
            id,
            event: text(&event["metadata"]["name"]),
            claim: event.to_string(),
            record,
            usage,
        }
    }

    fn for_another(&self, text: &str, name: &str, uid: &str, id: &str, event: &str) -> String {
        text.replace(&self.event, event)
            .replace(&self.name, name)
            .replace(&self.uid, uid)
            .replace(&self.id, id)
    }
}

/// A client that sends the calls of an action.
#[derive(Clone)]
struct Raw {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: String,
    lease: String,
    is_budgeted: bool,
    records: Records,
}

impl Raw {
    /// A client with an empty Lease of its own, after some calls.
    async fn new(http2: bool, is_budgeted: bool, records: &Records) -> Self {
        let config = Config::infer().await.expect("is a kubeconfig");
        let tls = config.rustls_client_config().expect("has certificates");
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
        let connector =
            if http2 { builder.enable_http2().build() } else { builder.enable_http1().build() };
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build(connector);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let lease =
            format!("/apis/coordination.k8s.io/v1/namespaces/default/leases/raw-{}", new_id());
        let raw = Raw { client, server, lease, is_budgeted, records: records.clone() };
        let (collection, name) = raw.lease.rsplit_once('/').expect("has a name");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
        });
        raw.write(Method::POST, collection, JSON, lease.to_string()).await.expect("is created");
        for _ in 0..WARM_UP {
            raw.act(&records.name).await.expect("is made");
        }
        raw
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: String,
    ) -> (StatusCode, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header(CONTENT_TYPE, content_type)
            .body(Full::from(body))
            .expect("is a request");
        let response = self.client.request(request).await.expect("is answered");
        let status = response.status();
        (status, response.into_body().collect().await.expect("is whole").to_bytes())
    }

    async fn read(&self, path: &str) -> Bytes {
        self.call(Method::GET, path, JSON, String::new()).await.1
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: String,
    ) -> Result<Bytes, String> {
        let path = format!("{path}?{OPTIONS}");
        let (status, answer) = self.call(method, &path, content_type, body).await;
        match status.is_success() {
            true => Ok(answer),
            false => Err(format!("{path}: {}", String::from_utf8_lossy(&answer))),
        }
    }

    /// The charge before the effect.
    async fn charge(&self, key: &str) -> Result<(), String> {
        if !self.is_budgeted {
            self.read(&self.lease).await;
            return Ok(());
        }
        let usage = self.records.usage.trim_end_matches(".made");
        self.write_usage(key, usage).await
    }

    /// The time of the effect, after it.
    async fn charge_made(&self, key: &str) -> Result<(), String> {
        match self.is_budgeted {
            true => self.write_usage(key, &self.records.usage).await,
            false => Ok(()),
        }
    }

    async fn write_usage(&self, key: &str, usage: &str) -> Result<(), String> {
        let patch = json!({ "metadata": { "annotations": { key: usage } } });
        self.write(Method::PATCH, &self.lease, MERGE_PATCH, patch.to_string()).await.map(drop)
    }
}

impl Subject for Raw {
    async fn act(&self, name: &str) -> Result<(), String> {
        let (id, event) = (new_id(), format!("action-executor-{}", uuid::Uuid::now_v7().simple()));
        let deployment = format!("/apis/apps/v1/namespaces/default/deployments/{name}");
        let events = "/api/v1/namespaces/default/events";
        let own = format!("{events}/{event}");
        let list =
            |group: &str, plural: &str| format!("/{group}/namespaces/default/{plural}?{CACHED}");
        let [hpas, pdbs, claims] = [
            list("apis/autoscaling/v2", "horizontalpodautoscalers"),
            list("apis/policy/v1", "poddisruptionbudgets"),
            list("api/v1", "persistentvolumeclaims"),
        ];
        let lease = async {
            if self.is_budgeted {
                self.read(&self.lease).await;
            }
        };
        let (found, ..) = tokio::join!(
            self.read(&deployment),
            self.read(&hpas),
            self.read(&pdbs),
            self.read(&claims),
            self.read(&own),
            lease,
        );
        let found: Value = serde_json::from_slice(&found).expect("is a Deployment");
        let uid = found["metadata"]["uid"].as_str().expect("has one");
        let replaced = |text: &str| self.records.for_another(text, name, uid, &id, &event);
        let claim = self.write(Method::POST, events, JSON, replaced(&self.records.claim));
        let key = format!("usage.action-executor.dev/{}", uuid::Uuid::now_v7().simple());
        let (claim, ()) = tokio::try_join!(claim, self.charge(&key))?;
        let patch = patch(&found, &id).to_string();
        self.write(Method::PATCH, &deployment, JSON_PATCH, patch).await?;
        let claim: Value = serde_json::from_slice(&claim).expect("is an Event");
        let mut record: Value =
            serde_json::from_str(&replaced(&self.records.record.to_string())).expect("is JSON");
        record["metadata"]["resourceVersion"] = claim["metadata"]["resourceVersion"].clone();
        let record = self.write(Method::PATCH, &own, MERGE_PATCH, record.to_string());
        tokio::try_join!(record, self.charge_made(&key)).map(drop)
    }
}

/// The change, with the tests of what it is decided on.
fn patch(found: &Value, id: &str) -> Value {
    let metadata = &found["metadata"];
    let requests = &metadata["annotations"]["action-executor.dev/requests"];
    let mut kept: Vec<_> = requests.as_str().unwrap_or_default().split_whitespace().collect();
    let newest = kept.last().and_then(|it| it.split(':').next()?.parse::<u64>().ok());
    let generation = metadata["generation"].as_u64().unwrap_or_default();
    let number = newest.unwrap_or_default().max(generation) + 1;
    let newest = format!("{number}:{id}@{:032}", 0);
    kept.push(&newest);
    let kept = kept[kept.len().saturating_sub(8)..].join(" ");
    let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let template = "/spec/template/metadata/annotations";
    let mut operations = vec![
        json!({ "op": "test", "path": "/metadata/uid", "value": metadata["uid"] }),
        json!({ "op": "test", "path": "/metadata/labels", "value": metadata["labels"] }),
        json!({ "op": "test", "path": "/metadata/annotations/action-executor.dev~1requests", "value": requests }),
        json!({ "op": "test", "path": "/metadata/generation", "value": metadata["generation"] }),
        json!({ "op": "add", "path": "/metadata/annotations/action-executor.dev~1requests", "value": kept }),
    ];
    let annotations = [
        ("kubectl.kubernetes.io/restartedAt", time.as_str()),
        ("action-executor.dev/request-id", id),
    ];
    if found["spec"]["template"]["metadata"]["annotations"].is_null() {
        let annotations: Value = annotations.into_iter().collect();
        operations.push(json!({ "op": "test", "path": template, "value": null }));
        operations.push(json!({ "op": "add", "path": template, "value": annotations }));
    } else {
        operations.extend(annotations.map(|(key, value)| {
            let path = format!("{template}/{}", key.replace('/', "~1"));
            json!({ "op": "add", "path": path, "value": value })
        }));
    }
    operations.into()
}
