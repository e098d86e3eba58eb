//! The field managers of what a subresource changes (`managedFields`). Pure.
//!
//! The subresources `scale` and `resize`, and the `status` of a custom resource, accept no annotation, so a change
//! through them is recognised by a field manager of its request. Each change of a field takes its ownership from the
//! manager before.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::core::ObjectMeta;

use crate::{contract::digest::sha256, k8s::FIELD_MANAGER};

/// The field manager of one request: ours, with a digest of its mark.
pub(crate) fn request_manager(mark: &str) -> String {
    format!("{FIELD_MANAGER}/{}", &sha256(mark.as_bytes())[..32])
}

/// Which field managers own the replicas, each with the time, as the API server records them.
pub(crate) fn replica_managers(metadata: &ObjectMeta) -> Vec<String> {
    managers(metadata, |entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
    })
}

/// Which field managers own what was set through the subresource `resize`, each with the time.
pub(crate) fn resize_managers(metadata: &ObjectMeta) -> Vec<String> {
    managers(metadata, |entry| entry.subresource.as_deref() == Some("resize"))
}

fn managers(metadata: &ObjectMeta, owns: impl Fn(&ManagedFieldsEntry) -> bool) -> Vec<String> {
    let entries = metadata.managed_fields.iter().flatten().filter(|entry| owns(entry));
    entries
        .map(|entry| {
            let time = entry.time.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
            format!("{} {time}", entry.manager.as_deref().unwrap_or_default())
        })
        .collect()
}

/// Whether this request was the last one to set the replicas.
pub(crate) fn has_scaled(metadata: &ObjectMeta, mark: &str) -> bool {
    is_listed(&replica_managers(metadata), &request_manager(mark))
}

/// Whether this request was the last one to set a request or a limit of the pod.
pub(crate) fn has_resized(metadata: &ObjectMeta, mark: &str) -> bool {
    is_listed(&resize_managers(metadata), &request_manager(mark))
}

/// Which field managers own this field of the status, each with the time.
pub(crate) fn status_managers(metadata: &ObjectMeta, field: &str) -> Vec<String> {
    let path = format!("/f:status/f:{field}");
    managers(metadata, |entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields.pointer(&path).is_some())
    })
}

/// Whether this field manager owns a field that it set in the status last.
pub(crate) fn owns_status(metadata: &ObjectMeta, manager: &str) -> bool {
    let of_status = |entry: &ManagedFieldsEntry| entry.subresource.as_deref() == Some("status");
    is_listed(&managers(metadata, of_status), manager)
}

/// Whether this request was the last one to set a field of the status.
pub(crate) fn has_set_status(metadata: &ObjectMeta, mark: &str) -> bool {
    owns_status(metadata, &request_manager(mark))
}

pub(crate) fn is_listed(managers: &[String], manager: &str) -> bool {
    managers.iter().any(|note| note.split(' ').next() == Some(manager))
}
