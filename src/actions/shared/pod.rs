//! What the actions that remove a pod have in common. Must not depend on one of them.

use k8s_openapi::api::core::v1::Pod;

use crate::{
    contract::{
        error::{ActionError, Code},
        response::Target,
    },
    k8s::pods,
};

/// The most pods that are named for one reason.
pub(crate) const MAX_NAMED_PODS: usize = 50;

/// # Errors
/// The pod is the mirror of a static pod. Its removal restarts nothing: the kubelet runs the pod from a file, and
/// creates the mirror again.
pub(crate) fn refuse_mirror(target: &Target, pod: &Pod) -> Result<(), ActionError> {
    if !pods::is_mirror(pod) {
        return Ok(());
    }
    let Target { namespace, name, .. } = target;
    let detail = format!(
        "Pod '{name}' in namespace '{namespace}' mirrors a static pod, which its kubelet keeps running"
    );
    let node = pods::node_name(pod).unwrap_or("its node");
    Err(ActionError::new(Code::NoEffect, detail).with_hint(format!(
        "to stop it, remove its manifest from {node}; to restart it, change the manifest"
    )))
}
