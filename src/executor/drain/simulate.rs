//! The evictions of a simulated drain, as server-side dry runs: what admission, RBAC and the API server would refuse.
//! Nothing is evicted.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use tokio::{task::JoinSet, time::Instant};

use super::{MAX_NAMED_PODS, evict::MAX_PARALLEL};
use crate::{
    actions::AffectedObject,
    k8s::{
        api::{client::Cluster, mutation::ApplyError},
        drain_filter::{EvictionSet, plural},
        effect::Effect,
        pods,
    },
};

/// The most evictions that are tried.
const MAX_EVICTIONS: usize = 500;

/// Tries the evictions of these pods, and returns a warning for each reason why some would be refused. A disruption budget
/// without room is no such reason: a drain waits for it, and a dry run uses up no room.
pub(crate) async fn refusals(
    cluster: &Cluster,
    pods: &[AffectedObject],
    set: &EvictionSet,
    deadline: Instant,
) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut in_flight, mut untried) = (JoinSet::new(), pods.len().saturating_sub(MAX_EVICTIONS));
    let mut next = pods.iter().take(MAX_EVICTIONS);
    loop {
        while in_flight.len() < MAX_PARALLEL {
            let Some(pod) = next.next() else { break };
            if Instant::now() >= deadline {
                untried += 1;
                continue;
            }
            let effect = eviction(pod, set);
            let cluster = cluster.clone();
            in_flight.spawn(async move {
                let result = cluster.apply(&effect, true, deadline).await;
                (format!("{}/{}", effect.namespace, effect.name), result)
            });
        }
        let Some(done) = in_flight.join_next().await else { break };
        let Ok((name, result)) = done else { continue };
        let reason = match result {
            // It is gone, or another pod has its name.
            Ok(_) | Err(ApplyError::Disruption(_) | ApplyError::Conflict) => continue,
            Err(ApplyError::Rejected(error) | ApplyError::TestFailed(error)) => {
                format!("would not be evicted: {}", error.with_its_hint().replace(&name, "POD"))
            }
            Err(ApplyError::NotTaken(error, _)) => {
                format!("could not be tried: {}", error.with_its_hint().replace(&name, "POD"))
            }
            Err(ApplyError::InDoubt(error)) => format!("could not be tried: {}", error.message()),
        };
        by_reason.entry(reason).or_default().push(name);
    }
    let mut warnings: Vec<_> =
        by_reason.into_iter().map(|(why, names)| warning(names, &why)).collect();
    if untried > 0 {
        warnings.push(format!("the evictions of {} were not tried", plural(untried, "pod")));
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

/// `2 pods would not be evicted: why: shop/a, shop/b`
fn warning(mut names: Vec<String>, why: &str) -> String {
    names.sort_unstable();
    let number = plural(names.len(), "pod");
    format!("{number} {why}: {}", pods::join_names(&names, MAX_NAMED_PODS))
}
