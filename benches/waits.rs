//! What waiting costs the API server: 128 requests of a server wait for Deployments that do not complete.
//!
//!     tests/cluster/up cargo bench --bench waits
//!
//! A proxy between the server and the API server counts the requests by verb for `WAITS_SECONDS` (30 by default) once
//! all of them wait: first with watch, then with a proxy that forbids watch, so that the server polls. Prints requests
//! a second, beside a wait that reads its object each second.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use kube::{Config, client::ConfigExt};
use serde_json::json;
use server_process::{ServerProcess, create_deployments, directory};
use tokio::{net::TcpListener, time::sleep};

#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod process;
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod programs;
#[allow(dead_code, reason = "each bench is a crate of its own and uses a part")]
mod server_process;

const PORT: u16 = 18_481;
const POLICY: &str = "cooldown_seconds: 0\nbudget: {per_namespace: null, cluster: null}\n";

/// How many requests wait.
const WAITS: usize = 128;

/// All requests wait once nothing was written for so long.
const SETTLED: Duration = Duration::from_secs(5);

/// The requests so far by verb, and the time of the last write.
struct Counts {
    by_verb: BTreeMap<&'static str, usize>,
    last_write: Instant,
}

type Counted = Arc<Mutex<Counts>>;

#[tokio::main]
async fn main() {
    if env::var_os("KUBECONFIG").is_none() {
        eprintln!("run this in a throwaway cluster: tests/cluster/up cargo bench --bench waits");
        std::process::exit(64);
    }
    let seconds = env::var("WAITS_SECONDS").ok().and_then(|it| it.parse().ok()).unwrap_or(30);
    // Their pods never start.
    let names: Vec<_> = (0..WAITS).map(name).collect();
    let spec = json!({ "replicas": 1, "progressDeadlineSeconds": 3600 });
    create_deployments(&names, "registry.invalid/missing:1", &spec);
    println!("{WAITS} waits, requests a second to the API server over {seconds} s");
    println!("{:<26}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "total", "get", "list", "watch", "write");
    print("a GET each second", [WAITS as f64, 0.0, 0.0, 0.0]);
    for (name, may_watch) in [("with watch", true), ("without permission to watch", false)] {
        let counts = count_waits(may_watch, Duration::from_secs(seconds)).await;
        let per_second = |verb| counts.get(verb).copied().unwrap_or(0) as f64 / seconds as f64;
        print(name, ["get", "list", "watch", "write"].map(per_second));
    }
}

fn print(name: &str, per_second: [f64; 4]) {
    print!("{name:<28}{:>8.2}", per_second.iter().sum::<f64>());
    per_second.iter().for_each(|it| print!("{it:>10.2}"));
    println!();
}

/// The requests in this time, once all requests wait.
async fn count_waits(may_watch: bool, lasting: Duration) -> BTreeMap<&'static str, usize> {
    let counted =
        Arc::new(Mutex::new(Counts { by_verb: BTreeMap::new(), last_write: Instant::now() }));
    let kubeconfig = start_proxy(counted.clone(), may_watch).await;
    let _server = ServerProcess::start(PORT, POLICY, Some(&kubeconfig));
    for number in 0..WAITS {
        tokio::spawn(restart(number));
    }
    let since_write = || counted.lock().expect("no task panicked").last_write.elapsed();
    sleep(SETTLED).await;
    while since_write() < SETTLED {
        sleep(Duration::from_millis(100)).await;
    }
    counted.lock().expect("no task panicked").by_verb.clear();
    sleep(lasting).await;
    counted.lock().expect("no task panicked").by_verb.clone()
}

fn name(number: usize) -> String {
    format!("waits-{number:03}")
}

/// Restarts a Deployment and waits, until the server ends.
async fn restart(number: usize) {
    let body = json!({
        "type": "restart_k8s", "simulate": false, "wait": true, "timeout_seconds": 3600,
        "parameters": { "deployment": name(number) },
    });
    let request = Request::post(format!("http://127.0.0.1:{PORT}/api/v1/action/execute"))
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body.to_string()))
        .expect("is a request");
    let client = Client::builder(TokioExecutor::new()).build_http();
    let Ok(response) = client.request(request).await else { return };
    let status = response.status();
    let body = response.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    eprintln!("a wait ended: {status} {}", String::from_utf8_lossy(&body));
}

/// What the proxy forwards with.
#[derive(Clone)]
struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Incoming>,
    server: Uri,
    counted: Counted,
    may_watch: bool,
}

/// Starts a proxy with the administrator's credentials; returns a kubeconfig that points to it.
async fn start_proxy(counted: Counted, may_watch: bool) -> PathBuf {
    let config = Config::infer().await.expect("is a kubeconfig");
    let tls = config.rustls_client_config().expect("has certificates");
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let upstream = Upstream { client, server: config.cluster_url, counted, may_watch };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("is bound");
    let address = listener.local_addr().expect("has one");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let upstream = upstream.clone();
            let service = service_fn(move |request| upstream.clone().forward(request));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    write_kubeconfig(address)
}

fn write_kubeconfig(address: SocketAddr) -> PathBuf {
    let path = directory().join(format!("{}.kubeconfig", address.port()));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{ "name": "proxy", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "anonymous", "user": {} }],
        "contexts": [{ "name": "proxy", "context": { "cluster": "proxy", "user": "anonymous" } }],
    });
    fs::write(&path, config.to_string()).expect("is written");
    path
}

impl Upstream {
    async fn forward(
        self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Either<Incoming, Full<Bytes>>>, hyper_util::client::legacy::Error> {
        let verb = verb(&request);
        {
            let mut counts = self.counted.lock().expect("no task panicked");
            *counts.by_verb.entry(verb).or_default() += 1;
            if verb == "write" {
                counts.last_write = Instant::now();
            }
        }
        if verb == "watch" && !self.may_watch {
            let mut response = Response::new(Either::Right(Full::default()));
            *response.status_mut() = StatusCode::FORBIDDEN;
            return Ok(response);
        }
        let mut uri = self.server.into_parts();
        uri.path_and_query = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from_parts(uri).expect("is whole");
        request.headers_mut().remove(HOST);
        Ok(self.client.request(request).await?.map(Either::Left))
    }
}

fn verb(request: &Request<Incoming>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    match request.method().as_str() {
        "GET" if query.contains("watch=") => "watch",
        // `.../namespaces/default/PLURAL`
        "GET" if request.uri().path().rsplit('/').nth(1) == Some("default") => "list",
        "GET" => "get",
        _ => "write",
    }
}
