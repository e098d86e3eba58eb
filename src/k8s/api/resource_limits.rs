//! Reads what limits the requests and limits of a namespace's pods: quotas, LimitRanges, VerticalPodAutoscalers, and
//! what nodes can hold.
//!
//! A failed read is a warning and stops nothing. What follows from the objects is for `k8s::resources`.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{
        api::{
            client::{ApiCall, Cluster},
            error::ApiError,
            preflight::{end, or_unavailable},
            retry::Retry,
        },
        rbac::PolicyRule,
        resources::ResourceLimits,
    },
};

/// The RBAC rule to read quotas and LimitRanges.
pub(crate) const QUOTAS: PolicyRule = PolicyRule {
    api_groups: &[""],
    resources: &["resourcequotas", "limitranges"],
    verbs: &["list"],
};

/// The RBAC rule to read VerticalPodAutoscalers.
pub(crate) const VERTICAL_AUTOSCALERS: PolicyRule = PolicyRule {
    api_groups: &["autoscaling.k8s.io"],
    resources: &["verticalpodautoscalers"],
    verbs: &["list"],
};

/// The most nodes that are read: among more of them, one is large enough.
const MAX_NODES: u32 = 250;

impl ResourceLimits {
    /// Reads all at the same time.
    pub(crate) async fn of(cluster: &Cluster, namespace: &str, deadline: Instant) -> Self {
        let deadline = end(deadline);
        let (quotas, ranges, scaling, nodes) = tokio::join!(
            cluster.list_cached(namespace, deadline),
            cluster.list_cached(namespace, deadline),
            vertical_autoscalers(cluster, namespace, deadline),
            nodes(cluster, deadline),
        );
        let mut unavailable = Vec::new();
        ResourceLimits {
            quotas: or_unavailable(quotas, &mut unavailable),
            ranges: or_unavailable(ranges, &mut unavailable),
            vertical_autoscalers: or_unavailable(scaling, &mut unavailable),
            nodes: or_unavailable(nodes, &mut unavailable),
            unavailable,
        }
    }
}

/// Those of the namespace; none where they are not installed.
async fn vertical_autoscalers(
    cluster: &Cluster,
    namespace: &str,
    deadline: Instant,
) -> Result<Vec<DynamicObject>, ActionError> {
    let kind = GroupVersionKind::gvk("autoscaling.k8s.io", "v1", "VerticalPodAutoscaler");
    let resource = ApiResource::from_gvk(&kind);
    let api = Api::<DynamicObject>::namespaced_with(cluster.client(), namespace, &resource);
    let params = ListParams::default().match_any();
    match cluster.attempt(Retry::Idempotent, deadline, || api.list(&params)).await {
        Ok(list) => Ok(list.items),
        Err(ApiError::NotFound | ApiError::NoSuchPath(_)) => Ok(Vec::new()),
        Err(error) => {
            let call = ApiCall::on(&resource, "list", namespace, None);
            Err(cluster.explain(&call, error).await)
        }
    }
}

/// All nodes; none if there are too many, or without permission to list them, which a Role cannot give.
async fn nodes(cluster: &Cluster, deadline: Instant) -> Result<Option<Vec<Node>>, ActionError> {
    let api = Api::<Node>::all(cluster.client());
    let params = ListParams::default().match_any().limit(MAX_NODES);
    let page = cluster.attempt(Retry::Idempotent, deadline, || api.list(&params)).await;
    let page = match page {
        Err(ApiError::Forbidden(_) | ApiError::MayNotImpersonate(_)) => return Ok(None),
        page => cluster.explain_result(&ApiCall::of_kind::<Node>("list"), page).await?,
    };
    let is_complete = page.metadata.continue_.as_deref().unwrap_or_default().is_empty();
    Ok(is_complete.then_some(page.items))
}
