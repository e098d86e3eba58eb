//! How an effect is sent to the API server, and how it is found out later whether it was made.
//!
//! A write is sent once. If its answer is missing, or does not show the effect, it is in doubt: the caller searches
//! for the evidence (`k8s::evidence`) before it does anything else. This file decides nothing about an action.

use std::time::Duration;

use http::{HeaderValue, header::ACCEPT_ENCODING};
use json_patch::Patch as JsonPatch;
use kube::{
    Api, Client, Resource,
    api::{
        DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective, WatchParams,
    },
    core::{Request, request},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        FIELD_MANAGER,
        api::{
            client::{ApiCall, CHECK_PROXIES, Cluster},
            error::ApiError,
            retry::Retry,
            warnings::with_warnings,
        },
        conditional_patch::{add, test},
        effect::{Applied, Effect, Mutation},
        evidence::{Evidence, confirmed},
    },
};

/// How long the changes of the past are read. The API server sends a bookmark 2 s before the end.
const CHANGES_SECONDS: u32 = 3;

/// What becomes of the objects that a deleted one owns: the garbage collector deletes them.
const PROPAGATION: &str = "Background";

/// Why an effect was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// The object changed since it was read: plan again.
    Conflict,
    /// The response is missing or does not show the effect: find the evidence.
    InDoubt(ApiError),
    /// A `test` of the patch failed, so the object changed since it was read: plan again. If the next plan has
    /// the same tests, they cannot have failed, and this is why the change was rejected.
    TestFailed(ActionError),
    /// A disruption budget does not allow it now; the API server's message.
    Disruption(String),
    /// It did not reach the API server, or the server did not take it (429): check the limits, then resend it
    /// after the time that the server named.
    NotTaken(ActionError, Option<Duration>),
    /// Refused, permanently or for now.
    Rejected(ActionError),
}

impl Cluster {
    /// Applies the effect; with `dry_run` as a server-side dry run. It is sent once: before it is resent, the
    /// caller has to check the limits again.
    pub(crate) async fn apply(
        &self,
        effect: &Effect,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<Applied, ApplyError> {
        let retry = if dry_run { Retry::Idempotent } else { Retry::Never };
        let sent = self.attempt(retry, deadline, || effect.send(self.client(), dry_run));
        let (sent, warnings) = with_warnings(sent).await;
        match sent {
            Ok(response) => match confirmed(effect, &response) {
                Some(applied) => Ok(Applied { warnings, ..applied }),
                None if dry_run => Err(ApplyError::Rejected(not_shown(&effect.call()))),
                None => Err(ApplyError::InDoubt(ApiError::NoAnswer(NOT_SHOWN.to_owned()))),
            },
            Err(ApiError::Conflict(_)) => Err(ApplyError::Conflict),
            // It was deleted after it was read: plan again.
            Err(ApiError::NotFound) => Err(ApplyError::Conflict),
            Err(error @ ApiError::TestFailed(_)) => {
                Err(ApplyError::TestFailed(self.explain(&effect.call(), error).await))
            }
            Err(ApiError::Disruption(message)) => Err(ApplyError::Disruption(message)),
            Err(error @ (ApiError::Busy(..) | ApiError::Unreachable(_) | ApiError::Proxy(_))) => {
                let wait = error.retry_after();
                Err(ApplyError::NotTaken(self.explain(&effect.call(), error).await, wait))
            }
            Err(error) if error.may_be_applied() && !dry_run => Err(ApplyError::InDoubt(error)),
            Err(error) => Err(ApplyError::Rejected(self.explain(&effect.call(), error).await)),
        }
    }

    /// What the cluster shows of the effect.
    ///
    /// # Errors
    /// Why the cluster could not be asked; then nothing is known.
    pub(crate) async fn find_evidence(
        &self,
        effect: &Effect,
        deadline: Instant,
    ) -> Result<Evidence, ActionError> {
        let api = match effect.namespace.as_str() {
            "" => Api::<DynamicObject>::all_with(self.client(), &effect.resource),
            namespace => Api::namespaced_with(self.client(), namespace, &effect.resource),
        };
        match self.get_named(&api, &effect.name, deadline).await {
            Ok(object) => {
                let evidence = Evidence::of(effect, Some(&object.metadata));
                Ok(evidence.with_template_of(effect, &object).with_status_of(effect, &object))
            }
            Err(ApiError::NotFound) => match &effect.mutation {
                Mutation::Create { mark, since: Some(since), .. } => {
                    Ok(self.find_creation(effect, mark, since, deadline).await)
                }
                _ => Ok(Evidence::of(effect, None)),
            },
            Err(error) => Err(self.explain(&ApiCall { verb: "get", ..effect.call() }, error).await),
        }
    }

    /// What the cluster shows of a creation whose object is not there. The API server keeps the changes of the last
    /// minutes; without them, or without the permission to watch, nothing is known.
    async fn find_creation(
        &self,
        effect: &Effect,
        mark: &str,
        since: &str,
        deadline: Instant,
    ) -> Evidence {
        let fields = format!("metadata.name={}", effect.name);
        let requests = Request::new(effect.url());
        let list = requests.list_metadata(&ListParams::default().fields(&fields).limit(1));
        let watch = WatchParams::default().fields(&fields).timeout(CHANGES_SECONDS);
        let watch = requests.watch_metadata(&watch, since);
        let read = async {
            let now: Value = self.client().request(list.ok()?).await.ok()?;
            let mut watch = watch.ok()?;
            // The API server compresses each event by itself (Kubernetes 1.37), which the client cannot read.
            watch.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let text = self.client().request_text(watch).await.ok()?;
            let events: Result<Vec<_>, _> = text.lines().map(serde_json::from_str).collect();
            let absent_at = now["metadata"]["resourceVersion"].as_str()?;
            Some(Evidence::of_creation(mark, &events.ok()?, absent_at))
        };
        let read = timeout_at(deadline, read).await;
        read.ok().flatten().unwrap_or(Evidence::Unknowable)
    }
}

/// Why a response of the right status code proves nothing.
const NOT_SHOWN: &str = "the response does not show the change";

fn not_shown(call: &ApiCall) -> ActionError {
    ActionError::new(Code::ClusterUnavailable, format!("{call}: {NOT_SHOWN}"))
        .with_hint(CHECK_PROXIES)
}

impl Effect {
    fn call(&self) -> ApiCall {
        let (verb, subresource) = match &self.mutation {
            Mutation::Patch { .. } => ("patch", ""),
            Mutation::Scale { .. } => ("patch", "/scale"),
            Mutation::Resize { .. } => ("patch", "/resize"),
            Mutation::Status { .. } => ("patch", "/status"),
            Mutation::Delete { .. } => ("delete", ""),
            Mutation::Evict { .. } => ("create", "/eviction"),
            Mutation::Create { .. } => ("create", ""),
        };
        let mut resource = self.resource.clone();
        resource.plural.push_str(subresource);
        ApiCall { verb, resource, namespace: self.namespace.clone(), name: Some(self.name.clone()) }
    }

    /// Sends it once, and returns the response's body.
    async fn send(&self, client: Client, dry_run: bool) -> kube::Result<Value> {
        let request = self.request(dry_run).map_err(kube::Error::BuildRequest)?;
        client.request(request).await
    }

    fn request(&self, dry_run: bool) -> Result<http::Request<Vec<u8>>, request::Error> {
        let requests = Request::new(self.url());
        let manager = match &self.mutation {
            Mutation::Scale { manager, .. }
            | Mutation::Resize { manager, .. }
            | Mutation::Status { manager, .. } => manager.clone(),
            _ => FIELD_MANAGER.to_owned(),
        };
        let post = PostParams { dry_run, field_manager: Some(manager.clone()) };
        let params = PatchParams {
            dry_run,
            field_manager: Some(manager),
            // By default the API server drops a field that the object's schema does not have, and reports success.
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::default()
        };
        match &self.mutation {
            Mutation::Patch { patch, .. } => {
                requests.patch(&self.name, &params, &Patch::Json::<()>(patch.clone()))
            }
            Mutation::Scale { replicas, from, resource_version, .. } => {
                let patch = self.scaling_patch([*from, *replicas], resource_version.as_deref());
                requests.patch_subresource("scale", &self.name, &params, &Patch::Json::<()>(patch))
            }
            Mutation::Resize { patch, .. } => {
                let patch = Patch::Json::<()>(patch.clone());
                requests.patch_subresource("resize", &self.name, &params, &patch)
            }
            Mutation::Status { patch, .. } => {
                let patch = Patch::Json::<()>(patch.clone());
                requests.patch_subresource("status", &self.name, &params, &patch)
            }
            Mutation::Evict { resource_version, grace_period_seconds } => {
                // kube's own helper loses the preconditions.
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": { "name": self.name, "namespace": self.namespace },
                    "deleteOptions": {
                        "dryRun": dry_run.then_some(["All"]),
                        "gracePeriodSeconds": grace_period_seconds,
                        "preconditions": { "uid": self.uid, "resourceVersion": resource_version },
                    },
                });
                requests.create_subresource("eviction", &self.name, &post, to_bytes(&eviction)?)
            }
            Mutation::Create { object, .. } => requests.create(&post, to_bytes(object)?),
            Mutation::Delete { resource_version, grace_period_seconds } => {
                self.deletion_request(resource_version.as_deref(), *grace_period_seconds, dry_run)
            }
        }
    }

    fn scaling_patch(
        &self,
        [from, replicas]: [i32; 2],
        resource_version: Option<&str>,
    ) -> JsonPatch {
        let version = resource_version.map(|it| test(&["metadata", "resourceVersion"], json!(it)));
        // The API server leaves out a number of 0.
        let from = (from != 0).then_some(from);
        let operations = [
            test(&["metadata", "uid"], json!(self.uid)),
            test(&["spec", "replicas"], json!(from)),
            add(&["spec", "replicas"], json!(replicas)),
        ];
        JsonPatch(version.into_iter().chain(operations).collect())
    }

    /// What the object owns is deleted after it, as kubectl does; the API server's default for a Job is to keep it.
    ///
    /// A proxy that drops the body of a DELETE must turn neither a simulation into a deletion nor this object's
    /// deletion into that of another one, so the query has all of it too. The API server reads it if there is no body
    /// (`endpoints/handlers/delete.go`); kube's own helper has the body alone.
    fn deletion_request(
        &self,
        resource_version: Option<&str>,
        grace_period_seconds: Option<u32>,
        dry_run: bool,
    ) -> Result<http::Request<Vec<u8>>, request::Error> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions",
            "dryRun": dry_run.then_some(["All"]),
            "propagationPolicy": PROPAGATION,
            "gracePeriodSeconds": grace_period_seconds,
            "preconditions": { "uid": self.uid, "resourceVersion": resource_version },
        });
        let (object, uid) = (format!("{}/{}", self.url(), self.name), &self.uid);
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        let grace = grace_period_seconds.map(|it| format!("&gracePeriodSeconds={it}"));
        let grace = grace.unwrap_or_default();
        let uri = format!("{object}?uid={uid}{grace}&propagationPolicy={PROPAGATION}{dry_run}");
        http::Request::delete(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(to_bytes(&options)?)
            .map_err(request::Error::BuildRequest)
    }

    fn url(&self) -> String {
        let namespace = Some(self.namespace.as_str()).filter(|it| !it.is_empty());
        DynamicObject::url_path(&self.resource, namespace)
    }
}

fn to_bytes(body: &Value) -> Result<Vec<u8>, request::Error> {
    serde_json::to_vec(body).map_err(request::Error::SerializeBody)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{api::ApiResource, core::ObjectMeta};

    use super::*;

    fn pod() -> ObjectMeta {
        let yaml = "{name: web-1, namespace: shop, uid: u1, resourceVersion: '7'}";
        serde_yaml_ng::from_str(yaml).expect("is metadata")
    }

    #[test]
    fn a_deletion_without_its_body_is_still_of_one_object_and_a_dry_run() {
        let delete = Effect::deletion(ApiResource::erase::<Pod>(&()), &pod(), None);
        let query = "uid=u1&propagationPolicy=Background";
        for (dry_run, query) in [(true, format!("{query}&dryRun=All")), (false, query.to_owned())] {
            let request = delete.request(dry_run).expect("is built");
            assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/pods/web-1");
            assert_eq!(request.uri().query(), Some(&*query));
            let body: Value = serde_json::from_slice(request.body()).expect("is JSON");
            assert_eq!(body["preconditions"]["uid"], "u1");
            assert_eq!(body["propagationPolicy"], "Background");
            assert_eq!(body["dryRun"] == json!(["All"]), dry_run);
        }
    }

    #[test]
    fn a_forced_deletion_has_a_grace_period_of_0_in_body_and_query() {
        let resource = ApiResource::erase::<Pod>(&());
        let forced = Effect::forced_deletion(resource, &pod(), Some("7".to_owned()));
        let request = forced.request(false).expect("is built");
        assert_eq!(
            request.uri().query(),
            Some("uid=u1&gracePeriodSeconds=0&propagationPolicy=Background")
        );
        let body: Value = serde_json::from_slice(request.body()).expect("is JSON");
        assert_eq!(
            (&body["gracePeriodSeconds"], &body["preconditions"]["resourceVersion"]),
            (&json!(0), &json!("7"))
        );
    }

    #[test]
    fn each_simulation_is_one_by_its_query() {
        let metadata = pod();
        let resource = ApiResource::erase::<Pod>(&());
        for effect in [
            Effect::patch(resource.clone(), &metadata, "r1@d1", None, Vec::new()),
            Effect::scaling(resource.clone(), &metadata, "r1@d1", None, [1, 2]),
            Effect::resize(&metadata, "r1@d1", None, Vec::new()),
            Effect::status_patch(
                resource.clone(),
                &metadata,
                "r1@d1",
                None,
                Default::default(),
                Vec::new(),
            ),
            Effect::eviction(&metadata, None),
            Effect::creation(resource.clone(), &metadata, "r1@d1", None, json!({})),
            Effect::deletion(resource, &metadata, None),
        ] {
            for dry_run in [true, false] {
                let request = effect.request(dry_run).expect("is built");
                let query = request.uri().query().unwrap_or_default();
                assert_eq!(query.contains("dryRun=All"), dry_run, "{effect:?}");
            }
        }
    }

    #[test]
    fn an_eviction_is_a_creation_of_its_subresource() {
        let evict = Effect::eviction(&pod(), Some("7".to_owned()));
        assert_eq!(evict.call().to_string(), "create Pod shop/web-1");
        let request = evict.request(false).expect("is built");
        assert!(request.uri().path().ends_with("/pods/web-1/eviction"));
        let body: Value = serde_json::from_slice(request.body()).expect("is JSON");
        let preconditions = json!({ "uid": "u1", "resourceVersion": "7" });
        assert_eq!(body["deleteOptions"]["preconditions"], preconditions);
    }
}
