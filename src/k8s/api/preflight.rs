//! What stands around a workload: who scales it, which budgets guard its pods, what they mount.
//!
//! Looking is a courtesy: what cannot be looked at is told, and stops nothing. What follows from it is
//! for [`super::advice`].

use std::time::Duration;

use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler, core::v1::PersistentVolumeClaim,
    policy::v1::PodDisruptionBudget,
};
use tokio::time::Instant;

use crate::{
    contract::error::{ActionError, Code},
    k8s::{api::client::Cluster, pods, rbac::PolicyRule, workload::Workload},
};

/// What RBAC must allow to look at who scales a workload.
pub const AUTOSCALERS: PolicyRule = PolicyRule {
    api_groups: &["autoscaling"],
    resources: &["horizontalpodautoscalers"],
    verbs: &["list"],
};

/// What RBAC must allow to look at the budgets that guard pods.
pub const BUDGETS: PolicyRule =
    PolicyRule { api_groups: &["policy"], resources: &["poddisruptionbudgets"], verbs: &["list"] };

/// What RBAC must allow to look at the volumes that a Deployment's pods mount.
pub const CLAIMS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["persistentvolumeclaims"], verbs: &["get"] };

/// The longest time that looking around may take.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(2);

/// What was found around a workload.
#[derive(Clone, Debug, Default)]
pub struct Preflight {
    /// All autoscalers of the namespace.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// All disruption budgets of the namespace.
    pub budgets: Vec<PodDisruptionBudget>,
    /// The claims that the pods mount by name.
    pub claims: Vec<PersistentVolumeClaim>,
    /// What could not be looked at, and why.
    pub unavailable: Vec<String>,
}

impl Preflight {
    /// Looks around a workload.
    pub(crate) async fn of(
        cluster: &Cluster,
        namespace: &str,
        workload: &Workload,
        deadline: Instant,
    ) -> Self {
        let deadline = deadline.min(Instant::now() + PREFLIGHT_TIMEOUT);
        let mut found = Preflight::default();
        found.autoscalers =
            found.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        found.budgets = found.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        // Only a Deployment starts a pod beside the one that it replaces, with the same claim.
        if let Workload::Deployment(_) = workload {
            let pod = workload.template().and_then(|template| template.spec.as_ref());
            for name in pods::claims(pod) {
                match cluster.get(namespace, name, deadline).await {
                    Err(error) if error.code == Code::TargetNotFound => {}
                    claim => {
                        let seen = found.read_or_unavailable(claim.map(Some));
                        found.claims.extend(seen);
                    }
                }
            }
        }
        found
    }

    /// Looks for the budgets that guard the pods of a namespace.
    pub(crate) async fn of_pods(cluster: &Cluster, namespace: &str, deadline: Instant) -> Self {
        let deadline = deadline.min(Instant::now() + PREFLIGHT_TIMEOUT);
        let mut found = Preflight::default();
        found.budgets = found.read_or_unavailable(cluster.list_cached(namespace, deadline).await);
        found
    }

    fn read_or_unavailable<T: Default>(&mut self, looked: Result<T, ActionError>) -> T {
        looked.unwrap_or_else(|error| {
            self.unavailable.push(format!("not looked at: {}", error.with_its_hint()));
            T::default()
        })
    }
}
