//! A change to the cluster as data, and how it is made at most once.
//!
//! An action decides on an [`Effect`]; this file makes it. Each effect is bound to the object that
//! was read (uid, resourceVersion), so sending it twice cannot change anything twice, and each can be
//! recognised in the cluster afterwards: a patch by the request's id that it leaves behind, a
//! deletion by the uid that is gone, since uids are never used again.

use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions},
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    FIELD_MANAGER,
    cluster::{Call, Cluster},
    fault::Fault,
    retry::Repeat,
};
use crate::error::ActionError;

/// One change to one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// The kind of object.
    pub resource: ApiResource,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: the change is for this object and no other of the same name.
    pub uid: String,
    /// The change.
    pub mutation: Mutation,
}

/// What is changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Mutation {
    /// A strategic merge patch that itself names uid and resourceVersion.
    Patch {
        /// The patch.
        body: Value,
        /// Where in the object (RFC 6901) the request's id stands afterwards.
        marker_pointer: &'static str,
        /// The request's id.
        marker: String,
    },
    /// A deletion, with the object's own grace period.
    Delete {
        /// The resourceVersion that the object must still have.
        resource_version: Option<String>,
    },
}

/// What is there after an effect was made, or would be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// The object's resourceVersion.
    pub resource_version: Option<String>,
    /// The object's generation, which a rollout must have observed.
    pub generation: Option<i64>,
}

impl Made {
    /// What is there when nothing had to be done.
    #[must_use]
    pub fn unchanged(resource_version: Option<String>) -> Self {
        Made { resource_version, generation: None }
    }
}

/// Why an effect was not made.
#[derive(Debug)]
pub enum NotMade {
    /// The object is not as it was read: read it again and decide anew.
    Stale,
    /// The call was made and its answer lost: look for the effect.
    InDoubt(Fault),
    /// Refused, for good or until later.
    Refused(ActionError),
}

impl Cluster {
    /// Makes the effect; with `dry_run`, has the API server only say what it would do.
    pub(crate) async fn make(
        &self,
        effect: &Effect,
        dry_run: bool,
        deadline: Instant,
    ) -> Result<Made, NotMade> {
        let api = self.api_of(effect);
        let repeat = if dry_run { Repeat::Freely } else { Repeat::IfNotDone };
        let sent = self.attempt(repeat, deadline, || effect.send(&api, dry_run)).await;
        match sent {
            Ok(made) => Ok(made),
            Err(Fault::Conflict(_)) => Err(NotMade::Stale),
            // Read a moment ago and gone now: to be read again, whatever stands there then.
            Err(Fault::NotFound) => Err(NotMade::Stale),
            Err(fault) if fault.may_have_been_done() && !dry_run => Err(NotMade::InDoubt(fault)),
            Err(fault) => Err(NotMade::Refused(self.tell(&effect.call(), fault).await)),
        }
    }

    /// Looks whether the effect is there: `None` if it is not.
    ///
    /// # Errors
    /// When the cluster cannot be asked; then nothing is known.
    pub(crate) async fn recognise(
        &self,
        effect: &Effect,
        deadline: Instant,
    ) -> Result<Option<Made>, ActionError> {
        let api = self.api_of(effect);
        match self.attempt(Repeat::Freely, deadline, || api.get(&effect.name)).await {
            Ok(object) => Ok(effect.left_on(&object)),
            Err(Fault::NotFound) => Ok(effect.is_deletion().then(Made::default)),
            Err(fault) => Err(self.tell(&Call { verb: "get", ..effect.call() }, fault).await),
        }
    }

    fn api_of(&self, effect: &Effect) -> Api<DynamicObject> {
        Api::namespaced_with(self.client(), &effect.namespace, &effect.resource)
    }
}

impl Effect {
    fn is_deletion(&self) -> bool {
        matches!(self.mutation, Mutation::Delete { .. })
    }

    fn call(&self) -> Call {
        Call {
            verb: if self.is_deletion() { "delete" } else { "patch" },
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            name: Some(self.name.clone()),
        }
    }

    async fn send(&self, api: &Api<DynamicObject>, dry_run: bool) -> kube::Result<Made> {
        match &self.mutation {
            Mutation::Patch { body, .. } => {
                let params = PatchParams {
                    dry_run,
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                api.patch(&self.name, &params, &Patch::Strategic(body)).await.map(Made::from)
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
                Ok(deleted.left().map(Made::from).unwrap_or_default())
            }
        }
    }

    /// The effect's trace on the object that now stands under the name.
    fn left_on(&self, object: &DynamicObject) -> Option<Made> {
        let same = object.metadata.uid.as_deref() == Some(self.uid.as_str());
        let there = match &self.mutation {
            Mutation::Patch { marker_pointer, marker, .. } => {
                same && object.data.pointer(marker_pointer).and_then(Value::as_str) == Some(marker)
            }
            Mutation::Delete { .. } => !same || object.metadata.deletion_timestamp.is_some(),
        };
        there.then(|| Made::from(object.clone()))
    }
}

impl From<DynamicObject> for Made {
    fn from(object: DynamicObject) -> Self {
        Made {
            resource_version: object.metadata.resource_version,
            generation: object.metadata.generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn effect(mutation: Mutation) -> Effect {
        Effect {
            resource: ApiResource::erase::<Pod>(&()),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u1".into(),
            mutation,
        }
    }

    fn patch() -> Effect {
        effect(Mutation::Patch {
            body: Value::Null,
            marker_pointer: "/spec/mark",
            marker: "r1".into(),
        })
    }

    fn object(yaml: &str) -> DynamicObject {
        serde_yaml_ng::from_str(yaml).expect("is an object")
    }

    #[test]
    fn a_patch_is_recognised_by_the_requests_id_on_the_same_object() {
        let left = |yaml| patch().left_on(&object(yaml)).is_some();
        assert!(left("{metadata: {uid: u1}, spec: {mark: r1}}"));
        assert!(!left("{metadata: {uid: u1}, spec: {mark: r2}}"));
        assert!(!left("{metadata: {uid: u2}, spec: {mark: r1}}"));
        assert!(!left("{metadata: {uid: u1}}"));
    }

    #[test]
    fn a_deletion_is_recognised_by_the_uid_that_is_gone_or_going() {
        let delete = effect(Mutation::Delete { resource_version: None });
        let left = |yaml| delete.left_on(&object(yaml)).is_some();
        assert!(left("metadata: {uid: u2}"));
        assert!(left("metadata: {uid: u1, deletionTimestamp: '2026-01-31T12:00:00Z'}"));
        assert!(!left("metadata: {uid: u1}"));
    }
}
