//! A change to the cluster as data, and how it is applied at most once.
//!
//! An action decides on an [`Effect`]; this file applies it. Each effect is bound to the object as it was
//! decided on, so sending it twice cannot change anything twice: a patch by its `test` operations
//! (`k8s::conditional_patch`), a deletion by the uid. Each can be recognised in the
//! cluster afterwards: a patch by the request's id in an annotation, a deletion by the uid that is gone,
//! since uids are never reused. The scale subresource accepts no annotation: there it is the field manager of
//! the change. So the record has the effect before it is applied, and a process that resumes the request can
//! find out what happened.

use json_patch::{Patch as JsonPatch, PatchOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{
        ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions,
    },
    core::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    contract::{digest::sha256, error::ActionError, precondition::Precondition},
    k8s::{
        FIELD_MANAGER, REQUEST_ID_ANNOTATION,
        api::{
            client::{Call, Cluster},
            error::ApiError,
            retry::Retry,
            warnings::with_warnings,
        },
        applied_requests::{AppliedRequests, Presence},
        conditional_patch,
        conditional_patch::{add, test},
    },
};

/// One change to one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub resource: ApiResource,
    /// Empty if the object is cluster-scoped.
    pub namespace: String,
    pub name: String,
    /// The change is for the object with this uid and no other of the same name. Empty for a creation.
    pub uid: String,
    pub mutation: Mutation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mutation {
    /// A JSON Patch that tests what was decided on and adds the request's id.
    Patch {
        /// Never stored, since it may contain secret values.
        #[serde(skip)]
        patch: JsonPatch,
        request_id: String,
        /// The number of the last request before ours in the annotation.
        since: u64,
    },
    /// A number of replicas, through the scale subresource.
    Scale {
        replicas: i32,
        /// The replicas that the object must still have.
        from: i32,
        /// The resourceVersion that the object must still have, if the request names one.
        resource_version: Option<String>,
        /// The field manager of this request, by which the change is recognised.
        manager: String,
        /// The managers of the replicas before the change, as the API server records them.
        before: Vec<String>,
    },
    /// A deletion, with the object's own grace period.
    Delete {
        /// The resourceVersion that the object must still have.
        resource_version: Option<String>,
    },
    /// A pod's eviction (KEP-85, policy/v1): a deletion that its disruption budgets may refuse.
    Evict {
        /// The resourceVersion that the pod must still have.
        resource_version: Option<String>,
        /// Replaces the pod's own grace period.
        #[serde(default)]
        grace_period_seconds: Option<u32>,
    },
    /// A new object with a name of this request alone, and its id in an annotation.
    Create {
        /// Never stored.
        #[serde(skip)]
        object: Value,
        request_id: String,
    },
}

/// The target after an effect was applied, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub resource_version: Option<String>,
    /// The generation that a rollout must have observed.
    pub generation: Option<i64>,
    /// The API server's warnings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Applied {
    pub(crate) fn warnings_for_answer(&self) -> impl Iterator<Item = String> {
        self.warnings.iter().map(|warning| format!("the API server warns: {warning}"))
    }

    /// The target if nothing had to be done.
    pub(crate) fn unchanged(resource_version: Option<String>) -> Self {
        Applied { resource_version, ..Applied::default() }
    }
}

/// What the cluster shows of an effect whose response was lost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Evidence {
    Made(Applied),
    NotMade,
    /// Unknown: the object was changed too often, or replaced, since.
    Unknowable,
}

/// Why an effect was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// The object changed since it was read: plan again.
    Conflict,
    /// The response was lost: find the evidence.
    InDoubt(ApiError),
    /// A `test` of the patch failed, so the object changed since it was read: plan again. If the next plan has
    /// the same tests, they cannot have failed, and this is why the change was rejected.
    TestFailed(ActionError),
    /// A disruption budget does not allow it now; the API server's message.
    Disruption(String),
    /// Refused, permanently or for now.
    Rejected(ActionError),
}

impl Cluster {
    /// Applies the effect; with `dry_run` as a server-side dry run.
    pub(crate) async fn apply(
        &self,
        effect: &Effect,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<Applied, ApplyError> {
        let api = self.api_of(effect);
        let retry = if dry_run { Retry::Idempotent } else { Retry::IfNotSent };
        let sent = self.attempt(retry, deadline, || effect.send(&api, dry_run));
        let (sent, warnings) = with_warnings(sent).await;
        match sent {
            Ok(made) => Ok(Applied { warnings, ..made }),
            Err(ApiError::Conflict(_)) => Err(ApplyError::Conflict),
            // It was deleted after it was read: plan again.
            Err(ApiError::NotFound) => Err(ApplyError::Conflict),
            Err(error @ ApiError::TestFailed(_)) => {
                Err(ApplyError::TestFailed(self.explain(&effect.call(), error).await))
            }
            Err(ApiError::Disruption(message)) => Err(ApplyError::Disruption(message)),
            Err(error) if error.may_be_applied() && !dry_run => Err(ApplyError::InDoubt(error)),
            Err(error) => Err(ApplyError::Rejected(self.explain(&effect.call(), error).await)),
        }
    }

    /// Whether the effect was applied.
    ///
    /// # Errors
    /// Why the cluster could not be asked; then nothing is known.
    pub(crate) async fn find_evidence(
        &self,
        effect: &Effect,
        deadline: Instant,
    ) -> Result<Evidence, ActionError> {
        let api = self.api_of(effect);
        match self.attempt(Retry::Idempotent, deadline, || api.get(&effect.name)).await {
            Ok(object) => Ok(effect.evidence_on(&object)),
            Err(ApiError::NotFound) => Ok(effect.evidence_if_absent()),
            Err(error) => Err(self.explain(&Call { verb: "get", ..effect.call() }, error).await),
        }
    }

    fn api_of(&self, effect: &Effect) -> Api<DynamicObject> {
        match effect.namespace.as_str() {
            "" => Api::all_with(self.client(), &effect.resource),
            namespace => Api::namespaced_with(self.client(), namespace, &effect.resource),
        }
    }
}

impl Effect {
    /// A patch of the object with this metadata, under the conditions of [`conditional_patch::patch`].
    pub(crate) fn patch(
        resource: ApiResource,
        metadata: &ObjectMeta,
        request_id: &str,
        precondition: Option<&Precondition>,
        change: Vec<PatchOperation>,
    ) -> Self {
        let patch = conditional_patch::patch(metadata, request_id, precondition, change);
        let since = AppliedRequests::from_metadata(metadata).newest();
        let mutation = Mutation::Patch { patch, request_id: request_id.to_owned(), since };
        Effect::on(resource, metadata, mutation)
    }

    pub(crate) fn deletion(
        resource: ApiResource,
        metadata: &ObjectMeta,
        resource_version: Option<String>,
    ) -> Self {
        Effect::on(resource, metadata, Mutation::Delete { resource_version })
    }

    pub(crate) fn eviction(metadata: &ObjectMeta, resource_version: Option<String>) -> Self {
        let mutation = Mutation::Evict { resource_version, grace_period_seconds: None };
        Effect::on(ApiResource::erase::<Pod>(&()), metadata, mutation)
    }

    pub(crate) fn with_grace_period(mut self, seconds: Option<u32>) -> Self {
        if let Mutation::Evict { grace_period_seconds, .. } = &mut self.mutation {
            *grace_period_seconds = seconds;
        }
        self
    }

    /// A number of replicas instead of the one that the object has, which is tested: the scale subresource shows
    /// no more of the object.
    pub(crate) fn scaling(
        resource: ApiResource,
        metadata: &ObjectMeta,
        request_id: &str,
        precondition: Option<&Precondition>,
        [from, replicas]: [i32; 2],
    ) -> Self {
        let version = precondition.and_then(|it| it.resource_version.as_deref());
        let mutation = Mutation::Scale {
            replicas,
            from,
            resource_version: version.map(str::to_owned),
            manager: request_manager(request_id),
            before: replica_managers(metadata),
        };
        Effect::on(resource, metadata, mutation)
    }

    /// A new object. Its name must depend on the request's id, so that at most one is created; the id is
    /// added to its annotations here.
    pub(crate) fn creation(
        resource: ApiResource,
        metadata: &ObjectMeta,
        request_id: &str,
        mut object: Value,
    ) -> Self {
        object["metadata"]["annotations"][REQUEST_ID_ANNOTATION] = request_id.into();
        let mutation = Mutation::Create { object, request_id: request_id.to_owned() };
        Effect { uid: String::new(), ..Effect::on(resource, metadata, mutation) }
    }

    fn on(resource: ApiResource, metadata: &ObjectMeta, mutation: Mutation) -> Self {
        Effect {
            resource,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            mutation,
        }
    }

    /// Binds a scaling to the version that was read, too. The scale subresource shows neither the requests nor the
    /// labels of the object, so uid and replicas alone would let a late write pass once the number is the same again.
    pub(crate) fn bound_to(mut self, found: &ObjectMeta) -> Self {
        if let Mutation::Scale { resource_version, .. } = &mut self.mutation {
            resource_version.clone_from(&found.resource_version);
        }
        self
    }

    pub(crate) fn is_deletion(&self) -> bool {
        matches!(self.mutation, Mutation::Delete { .. } | Mutation::Evict { .. })
    }

    fn call(&self) -> Call {
        let (verb, subresource) = match &self.mutation {
            Mutation::Patch { .. } => ("patch", ""),
            Mutation::Scale { .. } => ("patch", "/scale"),
            Mutation::Delete { .. } => ("delete", ""),
            Mutation::Evict { .. } => ("create", "/eviction"),
            Mutation::Create { .. } => ("create", ""),
        };
        let mut resource = self.resource.clone();
        resource.plural.push_str(subresource);
        Call { verb, resource, namespace: self.namespace.clone(), name: Some(self.name.clone()) }
    }

    async fn send(&self, api: &Api<DynamicObject>, dry_run: bool) -> kube::Result<Applied> {
        match &self.mutation {
            Mutation::Patch { patch, .. } => {
                let params = PatchParams {
                    dry_run,
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                let patch = Patch::Json::<()>(patch.clone());
                api.patch(&self.name, &params, &patch).await.map(Applied::from)
            }
            Mutation::Scale { replicas, from, resource_version, manager, .. } => {
                let params = PatchParams {
                    dry_run,
                    field_manager: Some(manager.clone()),
                    ..PatchParams::default()
                };
                let version = resource_version.as_ref();
                let version = version.map(|it| test(&["metadata", "resourceVersion"], json!(it)));
                // The API server leaves out a number of 0.
                let from = (*from != 0).then_some(from);
                let operations = [
                    test(&["metadata", "uid"], json!(self.uid)),
                    test(&["spec", "replicas"], json!(from)),
                    add(&["spec", "replicas"], json!(replicas)),
                ];
                let patch = JsonPatch(version.into_iter().chain(operations).collect());
                let patch = Patch::Json::<()>(patch);
                let scaled = api.patch_scale(&self.name, &params, &patch).await?;
                let ObjectMeta { resource_version, generation, .. } = scaled.metadata;
                Ok(Applied { resource_version, generation, ..Applied::default() })
            }
            Mutation::Evict { resource_version, grace_period_seconds } => {
                // kube's own helper loses the preconditions.
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction",
                    "metadata": { "name": self.name, "namespace": self.namespace },
                    "deleteOptions": {
                        "gracePeriodSeconds": grace_period_seconds,
                        "preconditions": { "uid": self.uid, "resourceVersion": resource_version },
                    },
                });
                let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
                let evicted: kube::Result<Value> =
                    api.create_subresource("eviction", &self.name, &params, &eviction).await;
                evicted.map(|_| Applied::default())
            }
            Mutation::Create { object, .. } => {
                let object: DynamicObject =
                    serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
                let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) };
                // The target is the object that it was created from, which did not change.
                api.create(&params, &object).await.map(|_| Applied::default())
            }
            Mutation::Delete { resource_version } => {
                let preconditions = Preconditions {
                    uid: Some(self.uid.clone()),
                    resource_version: resource_version.clone(),
                };
                let params = DeleteParams {
                    dry_run,
                    preconditions: Some(preconditions),
                    ..DeleteParams::default()
                };
                let deleted = api.delete(&self.name, &params).await?;
                Ok(deleted.left().map(Applied::from).unwrap_or_default())
            }
        }
    }

    /// The evidence on the object that has the name now.
    fn evidence_on(&self, object: &DynamicObject) -> Evidence {
        let is_same_object = object.metadata.uid.as_deref() == Some(self.uid.as_str());
        let presence = match &self.mutation {
            Mutation::Patch { request_id, since, .. } if is_same_object => {
                AppliedRequests::from_metadata(&object.metadata).evidence_of(request_id, *since)
            }
            // The object of the effect is gone, and its annotations with it.
            Mutation::Patch { .. } => Presence::Lost,
            Mutation::Scale { manager, before, .. } if is_same_object => {
                scaling_presence(&replica_managers(&object.metadata), manager, before)
            }
            Mutation::Scale { .. } => Presence::Lost,
            Mutation::Delete { .. } | Mutation::Evict { .. }
                if is_same_object && object.metadata.deletion_timestamp.is_none() =>
            {
                Presence::NotMade
            }
            Mutation::Delete { .. } | Mutation::Evict { .. } => Presence::Made,
            Mutation::Create { request_id, .. } => {
                let annotations = object.metadata.annotations.as_ref();
                let id = annotations.and_then(|all| all.get(REQUEST_ID_ANNOTATION));
                // The name is this request's alone: another object means that ours was replaced.
                if id == Some(request_id) { Presence::Made } else { Presence::Lost }
            }
        };
        match presence {
            // As right after the creation: the new object is not the target.
            Presence::Made if matches!(self.mutation, Mutation::Create { .. }) => {
                Evidence::Made(Applied::default())
            }
            Presence::Made => Evidence::Made(Applied::from(object.clone())),
            Presence::NotMade => Evidence::NotMade,
            Presence::Lost => Evidence::Unknowable,
        }
    }

    fn evidence_if_absent(&self) -> Evidence {
        match self.mutation {
            Mutation::Delete { .. } | Mutation::Evict { .. } => Evidence::Made(Applied::default()),
            Mutation::Create { .. } => Evidence::NotMade,
            Mutation::Patch { .. } | Mutation::Scale { .. } => Evidence::Unknowable,
        }
    }
}

/// The field manager of one request: ours, with a digest of the request's id.
fn request_manager(request_id: &str) -> String {
    format!("{FIELD_MANAGER}/{}", &sha256(request_id.as_bytes())[..16])
}

/// Which field managers own the replicas, each with the time, as the API server records them.
fn replica_managers(metadata: &ObjectMeta) -> Vec<String> {
    let entries = metadata.managed_fields.iter().flatten();
    let on_replicas = entries.filter(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
    });
    on_replicas
        .map(|entry| {
            let time = entry.time.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
            format!("{} {time}", entry.manager.as_deref().unwrap_or_default())
        })
        .collect()
}

/// Whether this request was the last one to set the replicas.
pub(crate) fn has_scaled(metadata: &ObjectMeta, request_id: &str) -> bool {
    is_listed(&replica_managers(metadata), &request_manager(request_id))
}

fn is_listed(managers: &[String], manager: &str) -> bool {
    managers.iter().any(|note| note.split(' ').next() == Some(manager))
}

/// Each change of the replicas takes the ownership from the previous manager.
fn scaling_presence(now: &[String], manager: &str, before: &[String]) -> Presence {
    if is_listed(now, manager) {
        Presence::Made
    } else if now == before {
        Presence::NotMade
    } else {
        Presence::Lost
    }
}

impl From<DynamicObject> for Applied {
    fn from(object: DynamicObject) -> Self {
        Applied {
            resource_version: object.metadata.resource_version,
            generation: object.metadata.generation,
            warnings: Vec::new(),
        }
    }
}

#[cfg(test)]
impl Effect {
    /// The operations of a patch as JSON, for tests.
    pub(crate) fn operations(&self) -> Vec<Value> {
        let Mutation::Patch { patch, .. } = &self.mutation else { panic!("is no patch") };
        patch.iter().map(|operation| json!(operation)).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{apps::v1::Deployment, batch::v1::Job};

    use super::*;

    fn object(yaml: &str) -> DynamicObject {
        serde_yaml_ng::from_str(yaml).expect("is an object")
    }

    fn patch() -> Effect {
        let before = object(
            "metadata: {name: web, namespace: shop, uid: u1, resourceVersion: '7', \
             annotations: {action-executor.dev/requests: '4:r0'}}",
        );
        let change = vec![add(&["spec", "paused"], json!(true))];
        Effect::patch(ApiResource::erase::<Deployment>(&()), &before.metadata, "r1", None, change)
    }

    #[test]
    fn a_patch_is_recognised_by_the_requests_id_on_the_same_object() {
        let left = |uid: &str, requests: &str| {
            patch().evidence_on(&object(&format!(
                "metadata: {{uid: {uid}, annotations: {{action-executor.dev/requests: '{requests}'}}}}"
            )))
        };
        assert!(matches!(left("u1", "4:r0 5:r1"), Evidence::Made(_)));
        assert!(matches!(left("u1", "5:r1 6:r2"), Evidence::Made(_)));
        assert_eq!(left("u1", "4:r0"), Evidence::NotMade);
        assert_eq!(left("u1", "4:r0 5:r2"), Evidence::NotMade);
        assert_eq!(left("u1", "7:r4"), Evidence::Unknowable);
        assert_eq!(left("u2", "5:r1"), Evidence::Unknowable);
    }

    #[test]
    fn a_deletion_is_recognised_by_the_uid_that_is_gone_or_terminating() {
        let pod = object("metadata: {name: web-1, uid: u1}");
        let delete = Effect::deletion(ApiResource::erase::<Pod>(&()), &pod.metadata, None);
        let left = |yaml| delete.evidence_on(&object(yaml));
        assert!(matches!(left("metadata: {uid: u2}"), Evidence::Made(_)));
        let going = "metadata: {uid: u1, deletionTimestamp: '2026-01-31T12:00:00Z'}";
        assert!(matches!(left(going), Evidence::Made(_)));
        assert_eq!(left("metadata: {uid: u1}"), Evidence::NotMade);
        assert!(matches!(delete.evidence_if_absent(), Evidence::Made(_)));
    }

    #[test]
    fn an_eviction_is_recognised_like_a_deletion() {
        let pod = object("metadata: {name: web-1, namespace: shop, uid: u1}");
        let evict = Effect::eviction(&pod.metadata, None);
        assert!(matches!(evict.evidence_if_absent(), Evidence::Made(_)));
        assert_eq!(evict.evidence_on(&object("metadata: {uid: u1}")), Evidence::NotMade);
        assert_eq!(evict.call().to_string(), "create Pod shop/web-1");
    }

    #[test]
    fn a_scaling_is_recognised_by_its_field_manager_on_the_replicas() {
        let noted = |managers: &[(&str, &str)]| {
            let entries: Vec<_> = managers
                .iter()
                .map(|(manager, at)| {
                    format!(
                        "{{manager: {manager}, time: '{at}', operation: Update, fieldsType: FieldsV1, \
                         fieldsV1: {{'f:spec': {{'f:replicas': {{}}}}}}}}"
                    )
                })
                .collect();
            object(&format!(
                "metadata: {{name: web, uid: u1, managedFields: [{}]}}",
                entries.join(", ")
            ))
        };
        let before = noted(&[("hpa", "2026-01-31T12:00:00Z")]);
        let resource = ApiResource::erase::<Deployment>(&());
        let effect = Effect::scaling(resource, &before.metadata, "r1", None, [3, 5]);
        let ours = request_manager("r1");
        let left = |managers: &[(&str, &str)]| effect.evidence_on(&noted(managers));
        assert!(matches!(left(&[(&ours, "2026-01-31T12:00:01Z")]), Evidence::Made(_)));
        assert_eq!(left(&[("hpa", "2026-01-31T12:00:00Z")]), Evidence::NotMade);
        assert_eq!(left(&[("hpa", "2026-01-31T12:00:02Z")]), Evidence::Unknowable);
        assert_eq!(left(&[(&request_manager("r2"), "2026-01-31T12:00:02Z")]), Evidence::Unknowable);
        let after = noted(&[(&ours, "2026-01-31T12:00:01Z")]).metadata;
        assert!(has_scaled(&after, "r1") && !has_scaled(&after, "r2"));
    }

    #[test]
    fn a_creation_is_recognised_by_the_id_on_the_object_of_its_name() {
        let metadata = object("metadata: {name: nightly-x, namespace: shop}").metadata;
        let job = json!({ "metadata": { "name": "nightly-x" } });
        let effect = Effect::creation(ApiResource::erase::<Job>(&()), &metadata, "r1", job);
        let ours = "metadata: {uid: u9, annotations: {action-executor.dev/request-id: r1}}";
        assert!(matches!(effect.evidence_on(&object(ours)), Evidence::Made(_)));
        assert_eq!(effect.evidence_on(&object("metadata: {uid: u9}")), Evidence::Unknowable);
        assert_eq!(effect.evidence_if_absent(), Evidence::NotMade);
    }

    #[test]
    fn a_stored_patch_does_not_contain_its_body() {
        let written = serde_json::to_string(&patch()).expect("is written");
        assert!(!written.contains("paused"), "{written}");
        let read: Effect = serde_json::from_str(&written).expect("is read");
        assert_eq!((read.uid.as_str(), read.name.as_str()), ("u1", "web"));
    }
}
