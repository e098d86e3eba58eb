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
    k8s::{api::client::Cluster, rbac::PolicyRule, workload::WorkloadKind},
};

/// The RBAC rule to read autoscalers.
pub(crate) const AUTOSCALERS: PolicyRule = PolicyRule {
    api_groups: &["autoscaling"],
    resources: &["horizontalpodautoscalers"],
    verbs: &["list"],
};

/// The RBAC rule to read disruption budgets.
pub(crate) const PDBS: PolicyRule =
    PolicyRule { api_groups: &["policy"], resources: &["poddisruptionbudgets"], verbs: &["list"] };

/// The RBAC rule to read the volume claims of a Deployment's pods.
pub(crate) const PVCS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["persistentvolumeclaims"], verbs: &["list"] };

const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Default)]
pub(crate) struct Preflight {
    /// All of the namespace.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// All of the namespace.
    pub pdbs: Vec<PodDisruptionBudget>,
    /// All of the namespace, where they matter.
    pub pvcs: Vec<PersistentVolumeClaim>,
    /// What could not be read, and why.
    pub unavailable: Vec<String>,
    /// Why the volume claims could not be read; of interest only to a pod that mounts one.
    pub pvcs_unavailable: Option<String>,
}

impl Preflight {
    /// Reads what a workload of this kind depends on, all at the same time, and so without knowing the workload.
    pub(crate) async fn of(
        cluster: &Cluster,
        kind: WorkloadKind,
        namespace: &str,
        deadline: Instant,
    ) -> Self {
        let deadline = end(deadline);
        // Only a Deployment starts a pod beside the one that it replaces, with the same volume claim.
        let claims = async {
            match kind {
                WorkloadKind::Deployment => cluster.list_cached(namespace, deadline).await,
                _ => Ok(Vec::new()),
            }
        };
        let (autoscalers, pdbs, claims) = tokio::join!(
            cluster.list_cached(namespace, deadline),
            cluster.list_cached(namespace, deadline),
            claims,
        );
        let mut preflight = Preflight::default();
        preflight.autoscalers = or_unavailable(autoscalers, &mut preflight.unavailable);
        preflight.pdbs = or_unavailable(pdbs, &mut preflight.unavailable);
        match claims {
            Ok(claims) => preflight.pvcs = claims,
            Err(error) => preflight.pvcs_unavailable = Some(not_checked(&error)),
        }
        preflight
    }

    /// Reads the disruption budgets of a namespace only.
    pub(crate) async fn of_pods(cluster: &Cluster, namespace: &str, deadline: Instant) -> Self {
        let deadline = end(deadline);
        let mut preflight = Preflight::default();
        preflight.pdbs = or_unavailable(
            cluster.list_cached(namespace, deadline).await,
            &mut preflight.unavailable,
        );
        preflight
    }
}

/// What was read; nothing, with a warning that it is `unavailable`, if it could not be read.
pub(super) fn or_unavailable<T: Default>(
    read: Result<T, ActionError>,
    unavailable: &mut Vec<String>,
) -> T {
    read.unwrap_or_else(|error| {
        unavailable.push(not_checked(&error));
        T::default()
    })
}

/// When a check that only causes a warning ends.
pub(crate) fn end(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + PREFLIGHT_TIMEOUT)
}

/// The warning about something that could not be read.
pub(crate) fn not_checked(error: &ActionError) -> String {
    format!("not checked: {}", error.with_its_hint())
}
