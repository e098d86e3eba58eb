//! The field managers of a workload's replicas (`managedFields`). Pure.
//!
//! The scale subresource accepts no annotation, so a scaling is recognised by a field manager of its request. Each
//! change of the replicas takes their ownership from the manager before.

use kube::core::ObjectMeta;

use crate::{contract::digest::sha256, k8s::FIELD_MANAGER};

/// The field manager of one request: ours, with a digest of its mark.
pub(crate) fn request_manager(mark: &str) -> String {
    format!("{FIELD_MANAGER}/{}", &sha256(mark.as_bytes())[..32])
}

/// Which field managers own the replicas, each with the time, as the API server records them.
pub(crate) fn replica_managers(metadata: &ObjectMeta) -> Vec<String> {
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
pub(crate) fn has_scaled(metadata: &ObjectMeta, mark: &str) -> bool {
    is_listed(&replica_managers(metadata), &request_manager(mark))
}

pub(crate) fn is_listed(managers: &[String], manager: &str) -> bool {
    managers.iter().any(|note| note.split(' ').next() == Some(manager))
}
