//! A validating admission webhook that the test serves: a tool of the suite.
//!
//! It is called for the writes of one account, so that other tests are not disturbed.

use std::{
    convert::Infallible,
    future::pending,
    process::Command,
    sync::{Arc, Mutex},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, pem::PemObject},
    },
};

use crate::{
    cluster::{Namespace, eventually, shared},
    pki::{Authority, Pair},
    program::scratch,
};

/// What the webhook answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WebhookBehavior {
    /// It allows the write.
    Allow,
    /// It denies the write with this status and message.
    Deny(u16, &'static str),
    /// It answers the API server with this status, so that the call fails.
    Fail(u16),
    /// It does not answer, so that the call fails after a second.
    Hang,
}

/// The webhook and its configuration, which is deleted with this value.
pub struct Webhook {
    name: String,
    behavior: Arc<Mutex<WebhookBehavior>>,
}

impl Webhook {
    /// Serves a webhook for the writes of this account to these resources, and waits until the API server calls it.
    pub async fn start(namespace: &Namespace, account: &str, resources: &[&str]) -> Self {
        let behavior = Arc::new(Mutex::new(WebhookBehavior::Allow));
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("has one");
        let webhook = Webhook { name: format!("{}.example.com", namespace.name()), behavior };
        tokio::spawn(serve(listener, acceptor(&authority.server()), webhook.behavior.clone()));
        let user = format!("system:serviceaccount:{}:{account}", namespace.name());
        let resources = [resources, &["configmaps"]].concat();
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": webhook.name },
            "webhooks": [{
                "name": webhook.name, "sideEffects": "None", "timeoutSeconds": 1,
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "url": format!("https://{address}/"),
                    "caBundle": BASE64_STANDARD.encode(authority.pem()),
                },
                "rules": [{
                    "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"],
                    "resources": resources,
                }],
                "matchConditions": [{
                    "name": "account", "expression": format!("request.userInfo.username == '{user}'"),
                }],
            }],
        });
        let path = scratch("webhook.json");
        std::fs::write(&path, configuration.to_string()).expect("is written");
        kubectl(&["apply", "--validate=strict", "-f", &path.display().to_string()])
            .expect("is applied");
        let user = format!("--as={user}");
        webhook.set(WebhookBehavior::Deny(403, "not yet"));
        eventually("the API server calls the webhook", async || {
            let probe =
                ["-n", namespace.name(), "create", "configmap", "probe", "--dry-run=server", &user];
            kubectl(&probe).is_err_and(|output| output.contains("not yet")).then_some(())
        })
        .await;
        webhook.set(WebhookBehavior::Allow);
        webhook
    }

    /// The name in the API server's messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers like this from now on.
    pub fn set(&self, behavior: WebhookBehavior) {
        *self.behavior.lock().expect("is whole") = behavior;
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "--wait=false", "validatingwebhookconfiguration", &self.name]);
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    behavior: Arc<Mutex<WebhookBehavior>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, behavior) = (acceptor.clone(), behavior.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request| answer(request, &behavior));
            // A connection that the API server ends is no error of the test.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    behavior: &Mutex<WebhookBehavior>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let behavior = *behavior.lock().expect("is whole");
    let (allowed, status) = match behavior {
        WebhookBehavior::Allow => (true, Value::Null),
        WebhookBehavior::Deny(code, message) => {
            (false, json!({ "code": code, "message": message }))
        }
        WebhookBehavior::Fail(code) => {
            let response = Response::builder().status(code).body(Full::default());
            return Ok(response.expect("is a response"));
        }
        WebhookBehavior::Hang => pending().await,
    };
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": { "uid": review["request"]["uid"], "allowed": allowed, "status": status },
    });
    let response = Response::builder().header(CONTENT_TYPE, "application/json");
    Ok(response.body(Full::from(answer.to_string())).expect("is a response"))
}

pub fn acceptor(pair: &Pair) -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("is PEM");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("are supported")
        .with_no_client_auth()
        .with_single_cert(vec![pair.der()], key)
        .expect("are a pair");
    TlsAcceptor::from(Arc::new(config))
}

fn kubectl(args: &[&str]) -> Result<String, String> {
    let mut kubectl = Command::new(shared().program("kubectl"));
    let done = kubectl.args(args).env("KUBECONFIG", shared().kubeconfig()).output();
    let done = done.expect("kubectl runs");
    let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    if done.status.success() { Ok(output) } else { Err(output) }
}
