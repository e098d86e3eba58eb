//! A change to the cluster as data.
//!
//! An action decides on an [`Effect`]; `k8s::api::mutation` sends it, and `k8s::evidence` recognises it in the cluster.
//! Each effect is bound to the object as it was decided on, so sending it twice changes nothing twice: a patch, a
//! scaling, a resize and a change of the status by their `test` operations, a deletion by the uid, a creation by its
//! name. The record has the effect before it is sent, so a process that resumes the request can find out what happened.
//! Pure.

use std::collections::BTreeMap;

use json_patch::{Patch as JsonPatch, PatchOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    contract::precondition::Precondition,
    k8s::{
        applied_requests::{AppliedRequests, REQUESTS_ANNOTATION},
        argo_rollouts::REVISION_ANNOTATION,
        conditional_patch::{self, test},
        field_managers::{replica_managers, request_manager, resize_managers, status_managers},
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
    /// The generation that the object had, if its kind has one and the change adds one to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    pub mutation: Mutation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mutation {
    /// A JSON Patch that tests what was decided on and adds the request's mark.
    Patch {
        /// Never stored, since it may contain secret values.
        #[serde(skip)]
        patch: JsonPatch,
        /// The request's mark (`k8s::applied_requests`).
        mark: String,
        /// The number after which ours comes in the annotation.
        since: u64,
    },
    /// A number of replicas, through the scale subresource.
    Scale {
        replicas: i32,
        /// The replicas that the object must still have.
        from: i32,
        /// The resourceVersion that the object must still have, if it must.
        resource_version: Option<String>,
        /// The field manager of this request, by which the change is recognised.
        manager: String,
        /// The managers of the replicas before the change, as the API server records them.
        before: Vec<String>,
    },
    /// Requests and limits of a running pod, through the resize subresource (KEP-1287).
    Resize {
        /// Tests what was decided on. Never stored, as that of a patch.
        #[serde(skip)]
        patch: JsonPatch,
        /// The field manager of this request, by which the change is recognised.
        manager: String,
        /// The managers of what was resized before the change, as the API server records them.
        before: Vec<String>,
    },
    /// Fields of the status of a custom resource, through its status subresource, which keeps no annotation.
    Status {
        /// Tests what was decided on. Never stored, as that of a patch.
        #[serde(skip)]
        patch: JsonPatch,
        /// The field manager of this request, by which the change is recognised.
        manager: String,
        decided_on: StatusDecision,
    },
    /// A deletion.
    Delete {
        /// The resourceVersion that the object must still have, if it must.
        resource_version: Option<String>,
        /// Replaces the object's own grace period; with 0 the object is removed at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_period_seconds: Option<u32>,
    },
    /// A pod's eviction (KEP-85, policy/v1): a deletion that its disruption budgets may refuse.
    Evict {
        /// The resourceVersion that the pod must still have, if it must.
        resource_version: Option<String>,
        /// Replaces the pod's own grace period.
        #[serde(default)]
        grace_period_seconds: Option<u32>,
    },
    /// A new object with a name of this request alone, and its mark in an annotation.
    Create {
        /// Never stored.
        #[serde(skip)]
        object: Value,
        mark: String,
        /// The version of the list of these objects before the creation.
        since: Option<String>,
    },
}

/// The state of a status that a change of it was decided on. The change itself, and whatever follows it, leaves another
/// one, and this one does not come again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusDecision {
    /// Fields by their names, which the patch tests; null where there is none.
    pub fields: BTreeMap<String, Value>,
    /// The revision of a Rollout, which each other pod template makes a higher one: all fields may come again once its
    /// template was another one in the meantime.
    #[serde(default)]
    pub revision: Option<String>,
    /// A field whose values may come again, and its managers as the API server records them.
    pub owned: Option<(String, Vec<String>)>,
}

impl StatusDecision {
    /// These fields of the status of the object with this metadata, and its revision.
    pub(crate) fn on(metadata: &ObjectMeta, status: &Value, fields: &[&str]) -> Self {
        let fact = |field: &&str| ((*field).to_owned(), status[*field].clone());
        let fields = fields.iter().map(fact).collect();
        StatusDecision { fields, revision: revision(metadata).cloned(), owned: None }
    }

    /// The same decision, which rests on who set this field last, too.
    pub(crate) fn and_owners(self, metadata: &ObjectMeta, field: &str) -> Self {
        let owners = status_managers(metadata, field);
        StatusDecision { owned: Some((field.to_owned(), owners)), ..self }
    }

    /// Whether the object is still in this state.
    fn is_shown_by(&self, object: &DynamicObject) -> bool {
        let status = &object.data["status"];
        let mut owned = self.owned.iter();
        self.fields.iter().all(|(field, value)| status[field] == *value)
            && self.revision.as_ref() == revision(&object.metadata)
            && owned.all(|(field, before)| status_managers(&object.metadata, field) == *before)
    }
}

fn revision(metadata: &ObjectMeta) -> Option<&String> {
    metadata.annotations.as_ref()?.get(REVISION_ANNOTATION)
}

/// The target after an effect was applied, or would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub resource_version: Option<String>,
    /// The generation that a rollout must have observed.
    pub generation: Option<i64>,
    /// The digest of a workload's pod template after the effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// When a Deployment's progress deadline was exceeded, if its status after the effect still says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exceeded_at: Option<String>,
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

impl Effect {
    /// A patch of the object with this metadata, under the conditions of [`conditional_patch::patch`].
    pub(crate) fn patch(
        resource: ApiResource,
        metadata: &ObjectMeta,
        mark: &str,
        precondition: Option<&Precondition>,
        change: Vec<PatchOperation>,
    ) -> Self {
        let patch = conditional_patch::patch(metadata, mark, precondition, change);
        let since = AppliedRequests::from_metadata(metadata).last_number();
        let mutation = Mutation::Patch { patch, mark: mark.to_owned(), since };
        Effect::on(resource, metadata, mutation)
    }

    /// A patch of the metadata of an object of a kind that does not count this as a generation. It is recognised by its
    /// mark alone.
    pub(crate) fn metadata_patch(
        resource: ApiResource,
        metadata: &ObjectMeta,
        mark: &str,
        precondition: Option<&Precondition>,
        change: Vec<PatchOperation>,
    ) -> Self {
        let patch = conditional_patch::patch_beside(metadata, mark, precondition, change);
        let since = AppliedRequests::from_metadata(metadata).newest();
        let mutation = Mutation::Patch { patch, mark: mark.to_owned(), since };
        Effect { generation: None, ..Effect::on(resource, metadata, mutation) }
    }

    pub(crate) fn deletion(
        resource: ApiResource,
        metadata: &ObjectMeta,
        resource_version: Option<String>,
    ) -> Self {
        let mutation = Mutation::Delete { resource_version, grace_period_seconds: None };
        Effect::on(resource, metadata, mutation)
    }

    /// A deletion that removes the object at once, also one that is being deleted already.
    pub(crate) fn forced_deletion(
        resource: ApiResource,
        metadata: &ObjectMeta,
        resource_version: Option<String>,
    ) -> Self {
        let mutation = Mutation::Delete { resource_version, grace_period_seconds: Some(0) };
        Effect::on(resource, metadata, mutation)
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
        mark: &str,
        precondition: Option<&Precondition>,
        [from, replicas]: [i32; 2],
    ) -> Self {
        let version = precondition.and_then(|it| it.resource_version.as_deref());
        let mutation = Mutation::Scale {
            replicas,
            from,
            resource_version: version.map(str::to_owned),
            manager: request_manager(mark),
            before: replica_managers(metadata),
        };
        Effect::on(resource, metadata, mutation)
    }

    /// Requests and limits of the pod with this metadata, under the conditions of [`conditional_patch::tests`].
    pub(crate) fn resize(
        metadata: &ObjectMeta,
        mark: &str,
        precondition: Option<&Precondition>,
        change: Vec<PatchOperation>,
    ) -> Self {
        let mut operations = conditional_patch::tests(metadata, precondition);
        operations.extend(change);
        let mutation = Mutation::Resize {
            patch: JsonPatch(operations),
            manager: request_manager(mark),
            before: resize_managers(metadata),
        };
        Effect::on(ApiResource::erase::<Pod>(&()), metadata, mutation)
    }

    /// Fields of the status of the object with this metadata, under the conditions of [`conditional_patch::tests`] and
    /// while the fields that were decided on are as they were.
    pub(crate) fn status_patch(
        resource: ApiResource,
        metadata: &ObjectMeta,
        mark: &str,
        precondition: Option<&Precondition>,
        decided_on: StatusDecision,
        change: Vec<PatchOperation>,
    ) -> Self {
        let mut operations = conditional_patch::tests(metadata, precondition);
        let facts = decided_on.fields.iter();
        operations.extend(facts.map(|(field, it)| test(&["status", field], it.clone())));
        operations.extend(change);
        let mutation = Mutation::Status {
            patch: JsonPatch(operations),
            manager: request_manager(mark),
            decided_on,
        };
        // A change of the status is no generation.
        Effect { generation: None, ..Effect::on(resource, metadata, mutation) }
    }

    /// A new object, which did not exist when the list of its kind had the version `since`. Its name must depend on
    /// the request's id, so that at most one exists; the mark is added to its annotations here.
    pub(crate) fn creation(
        resource: ApiResource,
        metadata: &ObjectMeta,
        mark: &str,
        since: Option<String>,
        mut object: Value,
    ) -> Self {
        let marked = AppliedRequests::default().push(mark);
        object["metadata"]["annotations"][REQUESTS_ANNOTATION] = marked.into();
        let mutation = Mutation::Create { object, mark: mark.to_owned(), since };
        Effect { uid: String::new(), ..Effect::on(resource, metadata, mutation) }
    }

    fn on(resource: ApiResource, metadata: &ObjectMeta, mutation: Mutation) -> Self {
        Effect {
            resource,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation,
            mutation,
        }
    }

    /// Binds a scaling or a deletion to the version that was read, too. Its success then proves that it changed
    /// the object as it was read, and a late write of it has no effect once the object has changed. A patch is
    /// bound by its tests.
    pub(crate) fn bound_to(mut self, found: &ObjectMeta) -> Self {
        if let Mutation::Scale { resource_version, .. }
        | Mutation::Delete { resource_version, .. }
        | Mutation::Evict { resource_version, .. } = &mut self.mutation
        {
            resource_version.clone_from(&found.resource_version);
        }
        self
    }

    /// Whether the object has the status that a change of it was decided on: then no such change was made so far. False
    /// for other effects.
    pub(crate) fn is_decided_on(&self, object: &DynamicObject) -> bool {
        object.metadata.uid.as_deref() == Some(&self.uid)
            && self.status_decision().is_some_and(|it| it.is_shown_by(object))
    }

    /// Whether both are changes of the status of one object that were decided on the same state of it.
    pub(crate) fn shares_decision(&self, other: &Effect) -> bool {
        let [ours, theirs] = [self, other].map(Effect::status_decision);
        self.uid == other.uid && ours.is_some() && ours == theirs
    }

    fn status_decision(&self) -> Option<&StatusDecision> {
        match &self.mutation {
            Mutation::Status { decided_on, .. } => Some(decided_on),
            _ => None,
        }
    }

    pub(crate) fn is_deletion(&self) -> bool {
        matches!(self.mutation, Mutation::Delete { .. } | Mutation::Evict { .. })
    }

    /// Whether the request's target is the object that it changes.
    pub(crate) fn changes_the_target(&self) -> bool {
        !matches!(self.mutation, Mutation::Create { .. })
    }
}

#[cfg(test)]
impl Effect {
    /// The operations of a patch as JSON, for tests.
    pub(crate) fn operations(&self) -> Vec<Value> {
        let Mutation::Patch { patch, .. } = &self.mutation else { panic!("is no patch") };
        patch.iter().map(|operation| serde_json::json!(operation)).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;
    use crate::k8s::conditional_patch::add;

    fn metadata() -> ObjectMeta {
        let yaml = "{name: web, namespace: shop, uid: u1, resourceVersion: '7', generation: 3}";
        serde_yaml_ng::from_str(yaml).expect("is metadata")
    }

    #[test]
    fn a_stored_patch_does_not_contain_its_body() {
        let change = vec![add(&["spec", "paused"], json!(true))];
        let resource = ApiResource::erase::<Deployment>(&());
        let patch = Effect::patch(resource, &metadata(), "r1@d1", None, change);
        let written = serde_json::to_string(&patch).expect("is written");
        assert!(!written.contains("paused"), "{written}");
        let read: Effect = serde_json::from_str(&written).expect("is read");
        assert_eq!((read.uid.as_str(), read.name.as_str()), ("u1", "web"));
        assert_eq!(read.generation, Some(3));
    }

    #[test]
    fn a_deletion_and_a_scaling_can_be_bound_to_the_version_that_was_read() {
        let resource = ApiResource::erase::<Deployment>(&());
        for effect in [
            Effect::deletion(resource.clone(), &metadata(), None),
            Effect::eviction(&metadata(), None),
            Effect::scaling(resource, &metadata(), "r1@d1", None, [1, 2]),
        ] {
            let bound = json!(effect.clone().bound_to(&metadata())).to_string();
            assert!(bound.contains(r#""resource_version":"7""#), "{bound}");
            assert!(!json!(effect).to_string().contains(r#""resource_version":"7""#));
        }
    }
}
