//! Reads what a workload depends on: its autoscalers, disruption budgets and volume claims.
//!
//! A failed read is a warning and stops nothing. What follows from the objects is for
//! `k8s::preflight_warnings`.

use std::time::Duration;

use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler, core::v1::PersistentVolumeClaim,
    policy::v1::PodDisruptionBudget,
};
use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    k8s::{api::client::Cluster, pods, rbac::PolicyRule, workload::Workload},
};

/// The RBAC rule to read autoscalers.
pub(crate) const AUTOSCALERS: PolicyRule = PolicyRule {
    api_groups: &["autoscaling"],
    resources: &["horizontalpodautoscalers"],
    verbs: &["list"],
};

/// The RBAC rule to read disruption budgets.
pub(crate) const BUDGETS: PolicyRule =
    PolicyRule { api_groups: &["policy"], resources: &["poddisruptionbudgets"], verbs: &["list"] };

/// The RBAC rule to read the volume claims of a Deployment's pods.
pub(crate) const CLAIMS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["persistentvolumeclaims"], verbs: &["get"] };

const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default)]
pub struct Preflight {
    /// All of the namespace.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// All of the namespace.
    pub budgets: Vec<PodDisruptionBudget>,
    /// The claims that the pods mount by name.
    pub claims: Vec<PersistentVolumeClaim>,
    /// What could not be read, and why.
    pub unavailable: Vec<String>,
}

impl Preflight {
    pub(crate) async fn of(
        cluster: &Cluster,
        namespace: &str,
        workload: &Workload,
        deadline: Instant,
    ) -> Self {
        let deadline = deadline.min(Instant::now() + PREFLIGHT_TIMEOUT);
        let mut preflight = Preflight::default();
        preflight.autoscalers =
            preflight.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        preflight.budgets =
            preflight.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        // Only a Deployment starts a pod beside the one that it replaces, with the same claim.
        if let Workload::Deployment(_) = workload {
            let pod = workload.template().and_then(|template| template.spec.as_ref());
            for name in pods::claims(pod) {
                let claim = cluster.get_opt(namespace, name, deadline).await;
                let claim = preflight.read_or_unavailable(claim);
                preflight.claims.extend(claim);
            }
        }
        preflight
    }

    /// Reads the budgets of a namespace only.
    pub(crate) async fn of_pods(cluster: &Cluster, namespace: &str, deadline: Instant) -> Self {
        let deadline = deadline.min(Instant::now() + PREFLIGHT_TIMEOUT);
        let mut preflight = Preflight::default();
        preflight.budgets =
            preflight.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        preflight
    }

    fn read_or_unavailable<T: Default>(&mut self, result: Result<T, ActionError>) -> T {
        result.unwrap_or_else(|error| {
            self.unavailable.push(format!("not checked: {}", error.with_its_hint()));
            T::default()
        })
    }
}
