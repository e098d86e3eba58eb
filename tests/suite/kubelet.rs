//! A node of a test whose logs the test serves: what the API server asks of a kubelet, and nothing else of one.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PostParams};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    cluster::{CRASHING_IMAGE, Namespace, own_taint, template},
    pki::Authority,
    webhook::acceptor,
};

/// The logs, by path and query as the API server asks for them.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<HashMap<String, String>>>);

impl Logs {
    /// The log of this container from now on; `previous` for that of its instance before.
    pub fn set(&self, pod: &str, container: &str, previous: bool, text: &str) {
        let key = format!("{pod}/{container}/{previous}");
        self.0.lock().expect("is whole").insert(key, text.to_owned());
    }

    /// As a kubelet: the last lines, and of those the first bytes (`/containerLogs/NAMESPACE/POD/CONTAINER`).
    fn answer(&self, request: &Request<Incoming>) -> Option<String> {
        let parts: Vec<_> = request.uri().path().trim_start_matches('/').split('/').collect();
        let ["containerLogs", _, pod, container] = parts[..] else { return None };
        let query = request.uri().query().unwrap_or_default();
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.clone().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let number = |name: &str| value(name).and_then(|text| text.parse::<usize>().ok());
        let previous = value("previous").is_some_and(|text| text == "true");
        let logs = self.0.lock().expect("is whole");
        let text = logs.get(&format!("{pod}/{container}/{previous}"))?;
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        let first = lines.len().saturating_sub(number("tailLines").unwrap_or(usize::MAX));
        let mut tail = lines[first..].concat();
        tail.truncate(number("limitBytes").unwrap_or(usize::MAX).min(tail.len()));
        Some(tail)
    }
}

/// A node with the namespace's name, on which only this test's pods are.
pub async fn node_with_logs(namespace: &Namespace) -> Logs {
    let logs = Logs::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("has one").port();
    tokio::spawn(serve(listener, logs.clone()));
    let object = json!({
        "metadata": { "name": namespace.name() },
        "spec": { "taints": [own_taint()] },
    });
    let object: Node = serde_json::from_value(object).expect("is a node");
    let nodes = namespace.global::<Node>();
    nodes.create(&PostParams::default(), &object).await.expect("the node is made");
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let patch = Patch::Strategic(json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }}));
    nodes.patch_status(namespace.name(), &Default::default(), &patch).await.expect("is patched");
    logs
}

/// A pod on that node with this status, as its kubelet would write it.
pub async fn pod_with_status(namespace: &Namespace, name: &str, app: &str, status: Value) -> Pod {
    let mut pod = template(app, CRASHING_IMAGE);
    pod["metadata"]["name"] = name.into();
    pod["spec"]["nodeName"] = namespace.name().into();
    pod["spec"]["containers"][0]["env"] =
        json!([{ "name": "DB_PASSWORD", "value": "canary-of-the-environment" }]);
    namespace.create::<Pod>(pod).await;
    let patch = Patch::Strategic(json!({ "status": status }));
    let pods = namespace.api::<Pod>();
    pods.patch_status(name, &Default::default(), &patch).await.expect("is patched")
}

async fn serve(listener: TcpListener, logs: Logs) {
    let acceptor = acceptor(&Authority::new().server());
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, logs) = (acceptor.clone(), logs.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(async |request| {
                let (status, text) = match logs.answer(&request) {
                    Some(text) => (200, text),
                    None => (404, "no such log".to_owned()),
                };
                let body = Full::new(Bytes::from(text));
                let response = Response::builder().status(status).body(body);
                Ok::<_, Infallible>(response.expect("is a response"))
            });
            // A connection that the API server ends is no error of the test.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
