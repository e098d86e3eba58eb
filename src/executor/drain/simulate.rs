//! The evictions of a simulated drain, as server-side dry runs: what admission, RBAC and the API server would refuse.
//! Nothing is evicted.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use tokio::time::Instant;

use crate::{
    actions::AffectedObject,
    contract::counted::counted,
    executor::batch::{Batch, apply_each, warning},
    k8s::{
        api::{client::Cluster, mutation::ApplyError},
        drain_filter::EvictionSet,
        effect::Effect,
    },
};

/// The most evictions that are tried.
const MAX_EVICTIONS: usize = 500;

/// Tries the evictions of these pods, and returns a warning for each reason why some would be refused. An
/// exhausted disruption budget is no such reason: a drain waits for it, and a dry run charges nothing to it.
pub(crate) async fn refusals(
    cluster: &Cluster,
    pods: &[AffectedObject],
    set: &EvictionSet,
    deadline: Instant,
) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let evictions = pods.iter().take(MAX_EVICTIONS).map(|pod| eviction(pod, set)).collect();
    let batch = Batch { cluster, dry_run: true, deadline };
    let may_begin = || Instant::now() < deadline;
    let left = apply_each(batch, evictions, may_begin, |effect, result| {
        let name = format!("{}/{}", effect.namespace, effect.name);
        let reason = match result {
            // It is gone, or another pod has its name.
            Ok(_) | Err(ApplyError::Disruption(_) | ApplyError::Conflict) => return,
            Err(ApplyError::Rejected(error) | ApplyError::TestFailed(error)) => {
                format!("would not be evicted: {}", error.with_its_hint().replace(&name, "POD"))
            }
            Err(ApplyError::NotTaken(error, _)) => {
                format!("could not be tried: {}", error.with_its_hint().replace(&name, "POD"))
            }
            Err(ApplyError::InDoubt(error)) => format!("could not be tried: {}", error.message()),
        };
        by_reason.entry(reason).or_default().push(name);
    });
    let untried = left.await.len() + pods.len().saturating_sub(MAX_EVICTIONS);
    let mut warnings: Vec<_> =
        by_reason.into_iter().map(|(why, names)| warning(names, &why)).collect();
    if untried > 0 {
        warnings.push(format!("the evictions of {} were not tried", counted(untried, "pod")));
    }
    warnings
}

fn eviction(pod: &AffectedObject, set: &EvictionSet) -> Effect {
    let metadata = ObjectMeta {
        namespace: Some(pod.target.namespace.clone()),
        name: Some(pod.target.name.clone()),
        uid: pod.target.uid.clone(),
        ..ObjectMeta::default()
    };
    Effect::eviction(&metadata, None).with_grace_period(set.grace_period_seconds)
}
