//! Suspending, resuming and reconciling Kustomizations with Flux's own kustomize-controller. The source-controller,
//! which would fetch from Git, is this file: it serves archives of manifests.

use std::{
    collections::HashMap,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use action_executor::contract::digest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PostParams},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    cluster::{Namespace, eventually, shared},
    controllers::Controller,
    integration_objects::{Kind, Object},
    program::{Finished, Program, scratch},
};

/// The real controller sees only Kustomizations with this label; the others are left to `integration_objects`.
const LABEL: &str = "test.action-executor.dev/controller";

static CONTROLLER: Controller = Controller::new(
    "flux",
    &["flux", "flux-sources"],
    &[
        "--watch-label-selector=test.action-executor.dev/controller=real",
        "--metrics-addr=127.0.0.1:0",
        "--health-addr=127.0.0.1:0",
        "--requeue-dependency=1s",
        "--http-retry=0",
    ],
);

/// A GitRepository, and the archives of its revisions on a server of its own.
struct Source {
    repositories: Api<DynamicObject>,
    address: String,
    archives: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Source {
    async fn create(namespace: &Namespace) -> Self {
        let server = tiny_http::Server::http("127.0.0.1:0").expect("a port is free");
        let address = format!("http://{}", server.server_addr());
        let archives: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let served = archives.clone();
        thread::spawn(move || {
            for request in server.incoming_requests() {
                let served = served.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = match served.get(request.url()) {
                    Some(archive) => {
                        request.respond(tiny_http::Response::from_data(archive.clone()))
                    }
                    None => request.respond(tiny_http::Response::empty(404)),
                };
            }
        });
        let repositories = namespace.objects(&ApiResource {
            group: "source.toolkit.fluxcd.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "source.toolkit.fluxcd.io/v1".to_owned(),
            kind: "GitRepository".to_owned(),
            plural: "gitrepositories".to_owned(),
        });
        let repository: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
            "metadata": { "name": "shop" },
            "spec": { "url": "https://example.com/shop.git", "interval": "10m" },
        }))
        .expect("is an object");
        repositories.create(&PostParams::default(), &repository).await.expect("is created");
        Source { repositories, address, archives }
    }

    /// Makes this the newest revision, and serves it.
    async fn publish(&self, revision: &str, manifests: &str) {
        let serve = self.announce(revision, manifests).await;
        serve();
    }

    /// Makes this the newest revision; it is served once the returned function is called.
    async fn announce(&self, revision: &str, manifests: &str) -> impl FnOnce() + use<> {
        let archive = archive(manifests);
        let path = format!("/{revision}.tar.gz");
        let patch = json!({ "status": { "artifact": {
            "url": format!("{}{path}", self.address), "path": format!("gitrepository/shop/{revision}"),
            "revision": format!("main@sha1:{revision}"), "size": archive.len(),
            "digest": format!("sha256:{}", digest::sha256(&archive)),
            "lastUpdateTime": "2026-01-31T12:00:00Z",
        }}});
        let params = Default::default();
        let patched = self.repositories.patch_status("shop", &params, &Patch::Merge(patch)).await;
        patched.expect("is written");
        let archives = self.archives.clone();
        move || {
            archives.lock().unwrap_or_else(PoisonError::into_inner).insert(path, archive);
        }
    }
}

/// A compressed archive with these manifests.
fn archive(manifests: &str) -> Vec<u8> {
    let directory = scratch("manifests");
    std::fs::create_dir(&directory).expect("is new");
    std::fs::write(directory.join("all.yaml"), manifests).expect("is written");
    let mut tar = Command::new("tar");
    let done = tar.args(["-cz", "-C"]).arg(&directory).arg("all.yaml").output().expect("tar runs");
    assert!(done.status.success(), "{done:?}");
    done.stdout
}

/// A manifest of a ConfigMap whose value is this.
fn says(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{says: {value}}}\n"
    )
}

async fn said(namespace: &Namespace, name: &str) -> Option<String> {
    let found = namespace.api::<ConfigMap>().get_opt(name).await.expect("is read")?;
    found.data?.remove("says")
}

async fn kustomization(namespace: &Namespace, name: &str, spec: Value) -> Object {
    let mut all =
        json!({ "path": ".", "targetNamespace": namespace.name(), "retryInterval": "1s" });
    all.as_object_mut().expect("is one").extend(spec.as_object().expect("is one").clone());
    let labels = json!({ "labels": { LABEL: "real" } });
    Kind::Kustomization.create_named(namespace, name, labels, all).await
}

/// The value of this condition's field.
fn ready<'a>(object: &'a Value, field: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|it| it["type"] == "Ready"));
    ready.map_or(&Value::Null, |ready| &ready[field])
}

async fn send(namespace: &Namespace, action: &str) -> Finished {
    let _log = spawn_blocking(|| CONTROLLER.run()).await.expect("the controller starts");
    let request = json!({
        "type": action, "simulate": false, "wait": true, "timeout_seconds": 30,
        "parameters": { "name": "web", "namespace": namespace.name() },
    });
    let policy = namespace.policy("cooldown_seconds: 0");
    let program = Program::with_kubeconfig(namespace.kubeconfig()).under(&policy);
    let program = program.input(request.to_string());
    spawn_blocking(|| program.run()).await.expect("it ran")
}

async fn complete(namespace: &Namespace, action: &str) -> Value {
    let done = send(namespace, action).await;
    assert_eq!(done.status, 0, "{action}: {done:?}");
    assert_eq!(done.answer()["rollout"]["state"], "complete", "{done:?}");
    done.answer()
}

/// A namespace with a source and a Kustomization `web` of it, which has been reconciled.
async fn reconciled(test: &str) -> (Namespace, Source, Object) {
    let _log = spawn_blocking(|| CONTROLLER.run()).await.expect("the controller starts");
    let namespace = shared().namespace(test).await;
    let source = Source::create(&namespace).await;
    source.publish("one", &says("shop", "one")).await;
    let web = kustomization(&namespace, "web", json!({})).await;
    eventually("the controller has applied the first revision", async || {
        (said(&namespace, "shop").await? == "one" && ready(&web.read().await, "status") == "True")
            .then_some(())
    })
    .await;
    (namespace, source, web)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_kustomization_is_left_alone_until_it_is_resumed() {
    let (namespace, source, _) = reconciled("flux_real_suspend").await;
    complete(&namespace, "suspend_flux").await;
    source.publish("two", &says("shop", "two")).await;
    // One that is not suspended shows that the controller has seen the revision.
    let other = json!({ "namePrefix": "other-" });
    kustomization(&namespace, "other", other).await;
    eventually("the other one has the second revision", async || {
        (said(&namespace, "other-shop").await? == "two").then_some(())
    })
    .await;
    assert_eq!(said(&namespace, "shop").await.as_deref(), Some("one"));
    let refused = send(&namespace, "reconcile_flux").await;
    assert_eq!(refused.answer()["code"], "precondition_failed", "{refused:?}");
    // At its answer the newest revision is there.
    complete(&namespace, "resume_flux").await;
    assert_eq!(said(&namespace, "shop").await.as_deref(), Some("two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_sets_back_what_someone_changed() {
    let (namespace, _, web) = reconciled("flux_real_drift").await;
    for value in ["changed", "again"] {
        let patch = Patch::Merge(json!({ "data": { "says": value } }));
        let maps = namespace.api::<ConfigMap>();
        maps.patch("shop", &Default::default(), &patch).await.expect("is patched");
        complete(&namespace, "reconcile_flux").await;
        assert_eq!(said(&namespace, "shop").await.as_deref(), Some("one"));
        let found = web.read().await;
        assert_eq!(found["status"]["lastHandledReconcileAt"], *requested(&found));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_that_fails_is_reported_in_the_controllers_words() {
    let (namespace, source, web) = reconciled("flux_real_failure").await;
    source
        .publish("broken", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: UPPER_CASE}\n")
        .await;
    eventually("the controller has tried it", async || {
        (ready(&web.read().await, "status") == "False").then_some(())
    })
    .await;
    let done = send(&namespace, "reconcile_flux").await;
    assert_eq!(done.status, 69, "{done:?}");
    let answer = done.answer();
    assert_eq!(answer["outcome"], "failed", "{answer}");
    let message = answer["rollout"]["message"].to_string();
    assert!(message.contains("is not ready: ") && message.contains("UPPER_CASE"), "{message}");
    source.publish("fixed", &says("shop", "fixed")).await;
    complete(&namespace, "reconcile_flux").await;
    assert_eq!(said(&namespace, "shop").await.as_deref(), Some("fixed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_waits_for_a_source_and_a_dependency_that_are_not_ready() {
    let (namespace, source, web) = reconciled("flux_real_wait").await;
    let serve = source.announce("late", &says("shop", "late")).await;
    eventually("the controller has missed the archive", async || {
        let found = web.read().await;
        (ready(&found, "reason") == "ArtifactFailed").then_some(())
    })
    .await;
    let before = requested(&web.read().await).clone();
    let (done, ()) = tokio::join!(send(&namespace, "reconcile_flux"), async {
        handled(&web, &before).await;
        serve();
    });
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(said(&namespace, "shop").await.as_deref(), Some("late"));
    // The same of a Kustomization that it depends on.
    web.merge(json!({ "spec": { "dependsOn": [{ "name": "base" }] } })).await;
    eventually("the controller has missed the dependency", async || {
        (ready(&web.read().await, "reason") == "DependencyNotReady").then_some(())
    })
    .await;
    let before = requested(&web.read().await).clone();
    let (done, ()) = tokio::join!(send(&namespace, "reconcile_flux"), async {
        handled(&web, &before).await;
        kustomization(&namespace, "base", json!({ "namePrefix": "base-" })).await;
    });
    assert_eq!(done.status, 0, "{done:?}");
    assert_eq!(said(&namespace, "base-shop").await.as_deref(), Some("late"));
}

/// Waits until the controller has ended a pass for another request than this one, which has failed.
async fn handled(object: &Object, before: &Value) {
    eventually("the controller has handled the request", async || {
        let found = object.read().await;
        let handled = &found["status"]["lastHandledReconcileAt"];
        let is_new = handled != before && handled == requested(&found);
        (is_new && ready(&found, "status") == "False").then_some(())
    })
    .await;
}

/// The newest request.
fn requested(object: &Value) -> &Value {
    &object["metadata"]["annotations"]["reconcile.fluxcd.io/requestedAt"]
}
