//! The ledger's protocol under thousands of random histories: three processes, few requests, a model of a server.
//!
//! The processes run the real handler. The server is a model: objects with resourceVersions and compare-and-swap,
//! and nothing else. Between any two steps it may drop a request or a response, a process may crash, and all claims
//! may expire, except for the process that holds one, as happens when clocks differ. At the end every request
//! must be answered and must have taken effect once.
//!
//!     LEDGER_ROUNDS=10 cargo test --release --test suite model -- --nocapture

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use action_executor::{
    actions::request::ActionRequest,
    config::{Settings, reload::Reloading},
    contract::response::{ActionResponse, Outcome},
    executor::{Restriction, context::Context, handle},
    k8s::api::client::Cluster,
};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ledger::{Random, rounds};

/// Histories in the short form.
const CASES: usize = 1000;

/// The faults: each occurs once in this many steps on average.
const FAULT: u64 = 12;
const CRASH: u64 = 25;
const EXPIRY: u64 = 12;

/// The model of the server, and how often each request took effect.
struct ModelServer {
    objects: HashMap<String, Value>,
    version: u64,
    effects: HashMap<String, usize>,
    random: Random,
    /// Whether faults still occur.
    faulty: bool,
    /// The steps so far, printed when an assertion fails.
    log: Vec<String>,
}

impl ModelServer {
    fn new(random: Random) -> Self {
        let mut model = ModelServer {
            objects: HashMap::new(),
            version: 0,
            effects: HashMap::new(),
            random,
            faulty: true,
            log: Vec::new(),
        };
        let deployment = json!({
            "metadata": { "name": "web", "namespace": "n", "generation": 1 },
            "spec": { "replicas": 1, "selector": {}, "template": { "metadata": {} } },
            "status": {},
        });
        model.put("/apis/apps/v1/namespaces/n/deployments/web", deployment);
        model.new_pod();
        model
    }

    fn new_pod(&mut self) {
        let pod = json!({
            "metadata": { "name": "db-0", "namespace": "n", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s",
                "controller": true,
            }]},
        });
        self.put("/api/v1/namespaces/n/pods/db-0", pod);
    }

    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("u{}", self.version).into();
        }
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    /// Lets every claim expire.
    fn expire_claims(&mut self) {
        for object in self.objects.values_mut() {
            let until = object.pointer_mut("/metadata/annotations/action-executor.dev~1expires-at");
            if let Some(until) = until {
                *until = "2026-01-31T12:00:00.000Z".into();
            }
        }
    }

    /// Serves a call of the request with this id.
    fn serve(&mut self, id: &str, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        match *method {
            Method::POST => {
                let name = body["metadata"]["name"].as_str().expect("has a name");
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return refusal(409, "AlreadyExists");
                }
                (201, self.put(&path, body.clone()))
            }
            Method::GET => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => refusal(404, "NotFound"),
            },
            Method::PATCH => self.patch(id, path, body),
            Method::DELETE => self.delete(id, path, body),
            _ => refusal(405, "MethodNotAllowed"),
        }
    }

    fn patch(&mut self, id: &str, path: &str, patch: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else {
            return refusal(404, "NotFound");
        };
        if let Some(operations) = patch.as_array() {
            if !apply_operations(&mut object, operations) {
                return refusal(422, "Invalid");
            }
            return self.patched(id, path, object);
        }
        for field in ["uid", "resourceVersion"] {
            let wanted = &patch["metadata"][field];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return refusal(409, "Conflict");
            }
        }
        merge(&mut object, patch);
        self.patched(id, path, object)
    }

    fn patched(&mut self, id: &str, path: &str, mut object: Value) -> (u16, Value) {
        if path.contains("/deployments/") {
            *self.effects.entry(id.to_owned()).or_default() += 1;
            let generation = object["metadata"]["generation"].as_i64().expect("has one");
            object["metadata"]["generation"] = (generation + 1).into();
        }
        (200, self.put(path, object))
    }

    fn delete(&mut self, id: &str, path: &str, body: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get(path).cloned() else {
            return refusal(404, "NotFound");
        };
        if body["preconditions"]["uid"] != object["metadata"]["uid"] {
            return refusal(409, "Conflict");
        }
        *self.effects.entry(id.to_owned()).or_default() += 1;
        self.objects.remove(path);
        // Its controller recreates it at once.
        self.new_pod();
        (200, object)
    }

    fn happens(&mut self, once_in: u64) -> bool {
        self.faulty && self.random.below(once_in) == 0
    }
}

/// Applies a JSON Patch as the API server does, which regards a missing value as null; false if a test fails.
fn apply_operations(object: &mut Value, operations: &[Value]) -> bool {
    let (tests, changes): (Vec<_>, Vec<_>) = operations.iter().partition(|it| it["op"] == "test");
    let holds = |test: &&Value| {
        let found = object.pointer(test["path"].as_str().expect("has a path"));
        *found.unwrap_or(&Value::Null) == test["value"]
    };
    if !tests.iter().all(holds) {
        return false;
    }
    let changes: json_patch::Patch = serde_json::from_value(json!(changes)).expect("is one");
    json_patch::patch(object, &changes).is_ok()
}

fn merge(object: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) => {
            if !object.is_object() {
                *object = json!({});
            }
            for (name, value) in fields {
                merge(&mut object[name], value);
            }
        }
        value => *object = value.clone(),
    }
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": code,
    });
    (code, status)
}

/// One call of a process: the request or the response may be dropped, and the process may crash before or after it.
async fn call(
    model: Arc<Mutex<ModelServer>>,
    id: String,
    crash: Arc<watch::Sender<bool>>,
    request: Request<Body>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let turns = model.lock().expect("is not poisoned").random.below(4);
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
    let done = {
        let mut model = model.lock().expect("is not poisoned");
        if model.happens(EXPIRY) {
            model.log.push("claims expire".to_owned());
            model.expire_claims();
        }
        let (crashes, lost) = (model.happens(CRASH), model.happens(FAULT));
        let too_early = model.random.below(2) == 0;
        let fault = |after: bool| match (crashes, lost) {
            _ if after == too_early => None,
            (true, _) => Some(Fault::Crash),
            (_, true) => Some(Fault::Loss),
            _ => None,
        };
        match fault(false) {
            Some(fault) => Err(fault),
            None => {
                let served = model.serve(&id, &head.method, head.uri.path(), &body);
                let (by, path) = (Arc::as_ptr(&crash) as usize & 0xfff0, head.uri.path());
                let (status, state) = (served.0, &body["metadata"]["annotations"]);
                let state = &state["action-executor.dev/state"];
                let line = format!("{by:x} {id}: {} {path} {state} -> {status}", head.method);
                model.log.push(line);
                fault(true).map_or(Ok(served), Err)
            }
        }
    };
    match done {
        Ok((status, object)) => {
            let response = Response::builder().status(status);
            Ok(response.body(Full::new(object.to_string().into())).expect("is whole"))
        }
        Err(Fault::Loss) => Err(std::io::Error::other("lost")),
        Err(Fault::Crash) => {
            crash.send_replace(true);
            std::future::pending().await
        }
    }
}

enum Fault {
    Crash,
    Loss,
}

/// A process that resends one request until it is answered; `None` if it stays unknown who deleted a pod.
async fn send_until_answered(
    model: Arc<Mutex<ModelServer>>,
    request: Value,
) -> Option<ActionResponse> {
    let id = request["id"].as_str().expect("has one").to_owned();
    for attempt in 0..200 {
        if attempt == 40 {
            model.lock().expect("is not poisoned").faulty = false;
        }
        let (crash, mut crashed) = watch::channel(false);
        let crash = Arc::new(crash);
        let (model, id) = (model.clone(), id.clone());
        let service = {
            let model = model.clone();
            tower::service_fn(move |request| {
                call(model.clone(), id.clone(), crash.clone(), request)
            })
        };
        let cluster = Cluster::new(Client::new(service, "n"), "model".to_owned());
        let (_stop, stopping) = watch::channel(false);
        let settings = Settings::from_vars(std::iter::empty()).expect("are the defaults");
        let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies/unlimited.yaml");
        let policy =
            Reloading::new(Some(std::path::PathBuf::from(policy).into())).expect("is a policy");
        let context = Context::new(Some(cluster), policy, &settings, stopping).expect("is right");
        let request = ActionRequest::parse(request.to_string().as_bytes()).expect("is one");
        let answered = tokio::select! {
            answered = handle(&context, request, Restriction::None) => answered,
            _ = crashed.wait_for(|crashed| *crashed) => continue,
        };
        match answered {
            Ok(answer) => return Some(answer),
            Err(error) if error.detail.contains("is gone or being deleted") => return None,
            Err(_) => model.lock().expect("is not poisoned").expire_claims(),
        }
    }
    panic!("{id} was never answered");
}

fn requests(random: &mut Random) -> Vec<Value> {
    let ids = ["a", "b", "c"];
    (0..3)
        .flat_map(|_| (0..2).map(|_| ids[random.below(3) as usize]).collect::<Vec<_>>())
        .map(|id| match id {
            // One id belongs to one payload, so the action depends on the id.
            "c" => json!({
                "type": "restart_pod", "simulate": false, "id": id,
                "parameters": { "pod_name": "db-0", "namespace": "n" },
            }),
            _ => json!({
                "type": "restart_k8s", "simulate": false, "id": id,
                "parameters": { "deployment": "web", "namespace": "n" },
            }),
        })
        .collect()
}

async fn history(mut random: Random, seed: u64) {
    let requests = requests(&mut random);
    let model = Arc::new(Mutex::new(ModelServer::new(random)));
    let mut processes = tokio::task::JoinSet::new();
    for mine in requests.chunks(2).map(<[Value]>::to_vec) {
        let model = model.clone();
        processes.spawn(async move {
            let mut answers = Vec::new();
            for request in mine {
                answers.extend(send_until_answered(model.clone(), request).await);
            }
            answers
        });
    }
    let answers: Vec<_> = processes.join_all().await.into_iter().flatten().collect();
    let model = model.lock().expect("is not poisoned");
    for answer in &answers {
        let effects = model.effects.get(&answer.id).copied().unwrap_or(0);
        let log = model.log.join("\n");
        assert!(effects <= 1, "seed {seed}: {} took effect {effects} times\n{log}", answer.id);
        if answer.kind == "restart_k8s" {
            assert_eq!((answer.outcome, effects), (Outcome::Applied, 1), "seed {seed}: {answer:?}");
        }
        let same = answers.iter().filter(|other| other.id == answer.id);
        let recorded = same.filter(|other| other.warnings.is_empty());
        for other in recorded.filter(|_| answer.warnings.is_empty()) {
            assert_eq!(answer.result, other.result, "seed {seed}");
            assert_eq!(answer.changes, other.changes, "seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_takes_effect_once_and_has_one_answer_in_every_history() {
    let mut seeds = Random::new("model");
    for _ in 0..CASES * rounds() {
        let seed = seeds.below(u64::MAX) | 1;
        history(Random::seeded(seed), seed).await;
    }
}
