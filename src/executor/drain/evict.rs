//! Evictions of a drain: which pods to evict now, the evictions themselves, and why pods remain.
//!
//! No more evictions are attempted than the disruption budgets allow.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Drain,
    known::KnownPods,
    remaining::{DrainSnapshot, RemainingPod, is_terminating, name_of, uid},
};
use crate::{
    contract::{
        counted::counted,
        error::{ActionError, Code},
    },
    executor::batch::{Batch, apply_each},
    k8s::{
        api::{error::is_denial, mutation::ApplyError, retry},
        effect::Effect,
        pdb, pods,
    },
};

/// How long a check of limits and node is valid: one per batch would double the number of calls.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long it is valid while no pod can be evicted.
const IDLE_RECHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The pause before an eviction that admission has denied is retried: kubectl's after a refusal.
const DENIED_INTERVAL: Duration = Duration::from_secs(5);

/// How many remaining pods are listed with their reasons.
const MAX_PROBLEMS: usize = 20;

/// What became of the attempts so far. Pods are known by uid.
#[derive(Default)]
pub(super) struct EvictionAttempts {
    /// What is known of the pods besides.
    pub known: KnownPods,
    /// Why the last eviction of a pod was refused.
    refused: HashMap<String, String>,
    /// The same for pods whose eviction is not retried.
    given_up: HashMap<String, String>,
    /// When admission last denied the eviction of a pod. An operator of a database may do so until it has moved what
    /// the pod has.
    denied: HashMap<String, Instant>,
    /// Pods whose eviction was sent and its answer lost, or that the API server did not take.
    in_doubt: HashSet<String>,
    /// When limits and node were last checked.
    checked: Option<Instant>,
}

impl Drain<'_> {
    /// Evicts these pods, a bounded number at a time, and returns the uids of the evicted ones. An eviction
    /// in progress is never abandoned.
    pub(super) async fn evict(
        &self,
        chosen: &[&RemainingPod],
        attempts: &mut EvictionAttempts,
        end: Instant,
    ) -> HashSet<String> {
        let stopping = self.context.stopping();
        let mut evicted = HashSet::new();
        let grace_period_seconds = self.remaining.evictions.grace_period_seconds;
        let eviction = |left: &&RemainingPod| {
            Effect::eviction(&left.pod, None).with_grace_period(grace_period_seconds)
        };
        let batch = Batch { cluster: self.remaining.cluster, dry_run: false, deadline: end };
        let may_begin = || may_begin(&stopping, end);
        // The next list shows what was not sent.
        let evictions = chosen.iter().map(eviction).collect();
        apply_each(batch, evictions, may_begin, |effect, result| {
            let name = format!("{}/{}", effect.namespace, effect.name);
            match result {
                Ok(_) => {
                    self.context.observer().progress(&format!("pod {name} is evicted"));
                    attempts.refused.remove(&effect.uid);
                    evicted.insert(effect.uid);
                }
                Err(ApplyError::Disruption(why)) => {
                    attempts.known.record_refusal(&effect.uid);
                    attempts.refused.insert(effect.uid, why);
                }
                // It is gone, or another pod has its name: the next list shows it.
                Err(ApplyError::Conflict) => {
                    attempts.in_doubt.insert(effect.uid.clone());
                    attempts.refused.insert(effect.uid, "it was changed or replaced".to_owned());
                }
                // The next list shows whether it was evicted.
                Err(ApplyError::InDoubt(error)) => {
                    attempts.in_doubt.insert(effect.uid.clone());
                    attempts.refused.insert(
                        effect.uid,
                        format!("no answer shows whether it was evicted ({})", error.message()),
                    );
                }
                Err(ApplyError::NotTaken(error, _)) => {
                    attempts.in_doubt.insert(effect.uid.clone());
                    attempts.refused.insert(effect.uid, error.detail);
                }
                Err(ApplyError::Rejected(error)) if is_transient(&error) => {
                    attempts.refused.insert(effect.uid, error.detail);
                }
                Err(ApplyError::Rejected(error)) if is_denial(&error.detail) => {
                    attempts.denied.insert(effect.uid.clone(), Instant::now());
                    attempts.refused.insert(effect.uid, error.with_its_hint());
                }
                // An eviction has no tests, so it was rejected.
                Err(ApplyError::Rejected(error) | ApplyError::TestFailed(error)) => {
                    attempts.given_up.insert(effect.uid, error.with_its_hint());
                }
            }
        })
        .await;
        evicted
    }

    /// Finds out which evictions without an answer were made, and evicts the other pods.
    /// Returns the uids of the evicted pods.
    pub(super) async fn resolve_unknown(
        &self,
        attempts: &mut EvictionAttempts,
        end: Instant,
    ) -> HashSet<String> {
        let stopping = self.context.stopping();
        let mut evicted = HashSet::new();
        let mut backoff = retry::backoff();
        while !attempts.in_doubt.is_empty() && may_begin(&stopping, end) {
            sleep(backoff.next().unwrap_or_default()).await;
            let Ok(None) = self.stop_reason(end).await else { break };
            let Ok(snapshot) = self.list(attempts, end).await else { break };
            let in_doubt = std::mem::take(&mut attempts.in_doubt);
            let is_there =
                |it: &&RemainingPod| !is_terminating(&it.pod) && in_doubt.contains(uid(&it.pod));
            let there: Vec<_> = snapshot.pods.iter().filter(is_there).collect();
            let not_evicted: HashSet<_> = there.iter().map(|it| uid(&it.pod).to_owned()).collect();
            evicted.extend(in_doubt.difference(&not_evicted).cloned());
            evicted.extend(self.evict(&there, attempts, end).await);
        }
        evicted
    }
}

/// The pods to evict now: those that no disruption budget protects, and of the others as many as theirs allow,
/// round-robin over the pods' owners, so that all of them shrink evenly. The executor's own pod comes once all others
/// are gone, since nobody evicts any more then.
pub(super) fn select_evictable<'a>(
    snapshot: &'a DrainSnapshot,
    attempts: &EvictionAttempts,
) -> Vec<&'a RemainingPod> {
    let has_others = snapshot.pods.iter().any(|it| !it.is_own && !attempts.is_given_up(&it.pod));
    let can_evict = |it: &&RemainingPod| {
        let may_be_its_turn = !it.is_own || !has_others;
        may_be_its_turn
            && !is_terminating(&it.pod)
            && !attempts.is_given_up(&it.pod)
            && !attempts.is_denied_now(&it.pod)
    };
    let pdbs = snapshot.pdbs.iter();
    let mut allowed: HashMap<&str, usize> =
        pdbs.map(|(key, pdb)| (key.as_str(), pdb::disruptions_allowed(pdb))).collect();
    let mut chosen = round_robin(snapshot.pods.iter().filter(can_evict).collect());
    chosen.retain(|left| match &left.pdb_key {
        None => true,
        Some(key) => {
            let allowed = allowed.entry(key).or_default();
            let is_allowed = *allowed > 0;
            *allowed = allowed.saturating_sub(1);
            is_allowed
        }
    });
    chosen
}

/// The pods, round-robin over their owners.
fn round_robin(pods: Vec<&RemainingPod>) -> Vec<&RemainingPod> {
    let mut turns: HashMap<&str, usize> = HashMap::new();
    let mut numbered: Vec<_> = pods
        .into_iter()
        .map(|left| {
            let turn = turns.entry(owner(&left.pod)).or_default();
            *turn += 1;
            (*turn, left)
        })
        .collect();
    numbered.sort_by_key(|(turn, _)| *turn);
    numbered.into_iter().map(|(_, left)| left).collect()
}

impl EvictionAttempts {
    /// Whether limits and node are to be checked, before pods are evicted or while none can be.
    pub(super) fn need_recheck(&self, is_idle: bool) -> bool {
        let interval = if is_idle { IDLE_RECHECK_INTERVAL } else { RECHECK_INTERVAL };
        self.checked.is_none_or(|at| at.elapsed() >= interval)
    }

    pub(super) fn record_recheck(&mut self) {
        self.checked = Some(Instant::now());
    }

    pub(super) fn is_given_up(&self, pod: &ObjectMeta) -> bool {
        self.given_up.contains_key(uid(pod))
    }

    /// Whether admission has denied the eviction of the pod a short time ago.
    fn is_denied_now(&self, pod: &ObjectMeta) -> bool {
        self.denied.get(uid(pod)).is_some_and(|at| at.elapsed() < DENIED_INTERVAL)
    }

    /// Whether an eviction of the pod was sent, and did not succeed.
    pub(super) fn was_tried(&self, pod: &ObjectMeta) -> bool {
        let uid = uid(pod);
        self.refused.contains_key(uid)
            || self.given_up.contains_key(uid)
            || self.in_doubt.contains(uid)
    }

    /// Why these pods and those that came after the plan remain, one line per pod.
    pub(super) fn problems(
        &self,
        snapshot: &DrainSnapshot,
        left: Vec<&RemainingPod>,
    ) -> Vec<String> {
        let ignoring = snapshot.ignoring.iter();
        let ignoring = ignoring.map(|name| format!("pod {name} is there despite the cordon"));
        let left = left.into_iter().map(|left| self.problem(snapshot, left));
        let mut problems: Vec<_> =
            snapshot.refused.iter().cloned().chain(left).chain(ignoring).collect();
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        if more > 0 {
            problems.truncate(MAX_PROBLEMS);
            problems.push(format!("and {}", counted(more, "other pod")));
        }
        problems
    }

    fn problem(&self, snapshot: &DrainSnapshot, left: &RemainingPod) -> String {
        let RemainingPod { pod, pdb_key, .. } = left;
        let reason_in = |all: &HashMap<String, String>| all.get(uid(pod)).cloned();
        let pdb = pdb_key.as_ref().and_then(|key| snapshot.pdbs.get(key));
        let why = reason_in(&self.given_up)
            .or_else(|| {
                is_terminating(pod).then(|| {
                    let pod = Pod { metadata: pod.clone(), ..Pod::default() };
                    pods::termination_blockers(&pod, Utc::now()).join("; ")
                })
            })
            .or_else(|| reason_in(&self.refused).filter(|_| self.denied.contains_key(uid(pod))))
            .or_else(|| pdb.map(|pdb| pdb::reason(pdb, &[])))
            .or_else(|| reason_in(&self.refused))
            .unwrap_or_else(|| "its eviction was not attempted yet".to_owned());
        format!("pod {}: {why}", name_of(pod))
    }
}

/// Whether a new eviction may be sent.
fn may_begin(stopping: &watch::Receiver<bool>, end: Instant) -> bool {
    !*stopping.borrow() && Instant::now() < end
}

/// Whether a retry may succeed. While a namespace is being deleted its pods are deleted too, and evictions
/// are refused with this message (`NamespaceLifecycle` of Kubernetes).
fn is_transient(error: &ActionError) -> bool {
    // The next call obtains other credentials.
    error.code.retryable()
        || error.code == Code::CredentialsRefused
        || error.detail.contains("because it is being terminated")
}

/// The uid of the pod's controller, or of the pod itself.
fn owner(pod: &ObjectMeta) -> &str {
    let mut owners = pod.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true));
    controller.map_or(uid(pod), |owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;

    fn remaining(name: &str, owner: &str, pdb: Option<&str>) -> RemainingPod {
        let pod = serde_yaml_ng::from_str(&format!(
            "{{name: {name}, namespace: shop, uid: {name}, ownerReferences: [{{apiVersion: apps/v1, \
             kind: ReplicaSet, name: {owner}, uid: {owner}, controller: true}}]}}"
        ));
        let pdb_key = pdb.map(str::to_owned);
        RemainingPod { pod: pod.expect("is metadata"), pdb_key, is_own: false }
    }

    fn pdb(allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, generation: 1}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, expectedPods: 3, \
             disruptionsAllowed: {allowed}}}"
        ))
        .expect("is a PDB")
    }

    fn snapshot(pods: Vec<RemainingPod>, allowed: i32) -> DrainSnapshot {
        let pdbs = HashMap::from([("shop/web".to_owned(), pdb(allowed))]);
        DrainSnapshot { pods, pdbs, ..DrainSnapshot::default() }
    }

    fn names(chosen: &[&RemainingPod]) -> String {
        let names = chosen.iter().map(|left| left.pod.name.clone().expect("has one"));
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_budget_bounds_its_own_pods_and_no_others() {
        let bound = Some("shop/web");
        let pods = vec![
            remaining("a", "web", bound),
            remaining("b", "web", bound),
            remaining("c", "web", bound),
            remaining("d", "job", None),
        ];
        let snapshot = snapshot(pods, 2);
        assert_eq!(names(&select_evictable(&snapshot, &EvictionAttempts::default())), "a d b");
        let without = self::snapshot(snapshot.pods, 0);
        assert_eq!(without.exhausted_pdbs().next(), bound);
        assert_eq!(names(&select_evictable(&without, &EvictionAttempts::default())), "d");
    }

    #[test]
    fn owners_take_turns() {
        let pods = [
            remaining("a1", "a", None),
            remaining("a2", "a", None),
            remaining("a3", "a", None),
            remaining("b1", "b", None),
            remaining("b2", "b", None),
        ];
        assert_eq!(names(&round_robin(pods.iter().collect())), "a1 b1 a2 b2 a3");
    }

    #[test]
    fn a_pod_that_terminates_or_is_given_up_is_not_evicted() {
        let mut going = remaining("a", "web", None);
        going.pod.deletion_timestamp =
            serde_json::from_str(r#""2026-01-31T12:00:00Z""#).expect("is a time");
        let snapshot =
            snapshot(vec![going, remaining("b", "web", None), remaining("c", "web", None)], 1);
        let mut attempts = EvictionAttempts::default();
        attempts.given_up.insert("b".to_owned(), "may not".to_owned());
        assert_eq!(names(&select_evictable(&snapshot, &attempts)), "c");
    }

    #[test]
    fn a_denied_eviction_is_tried_again_after_a_pause_and_says_who_denied_it() {
        let snapshot = snapshot(vec![remaining("a", "web", Some("shop/web"))], 1);
        let mut attempts = EvictionAttempts::default();
        attempts.refused.insert("a".to_owned(), "webhook 'w' denied it".to_owned());
        attempts.denied.insert("a".to_owned(), Instant::now());
        assert_eq!(names(&select_evictable(&snapshot, &attempts)), "");
        let problems = attempts.problems(&snapshot, snapshot.pods.iter().collect());
        assert_eq!(problems, ["pod shop/a: webhook 'w' denied it"]);
        attempts.denied.insert("a".to_owned(), Instant::now() - DENIED_INTERVAL);
        assert_eq!(names(&select_evictable(&snapshot, &attempts)), "a");
    }

    #[test]
    fn problems_list_twenty_pods_and_count_the_others() {
        let pods = (0..25).map(|number| remaining(&format!("p{number}"), "web", Some("shop/web")));
        let snapshot = snapshot(pods.collect(), 0);
        let problems =
            EvictionAttempts::default().problems(&snapshot, snapshot.pods.iter().collect());
        assert_eq!(problems.len(), 21);
        assert!(problems[0].contains("pod shop/p0: PodDisruptionBudget 'web' allows 0"));
        assert_eq!(problems[20], "and 5 other pods");
    }

    #[test]
    fn the_executors_own_pod_is_evicted_last() {
        let mut own = remaining("a", "web", None);
        own.is_own = true;
        let both = snapshot(vec![own, remaining("b", "web", None)], 1);
        assert_eq!(names(&select_evictable(&both, &EvictionAttempts::default())), "b");
        let mut attempts = EvictionAttempts::default();
        attempts.given_up.insert("b".to_owned(), "may not".to_owned());
        assert_eq!(names(&select_evictable(&both, &attempts)), "a");
    }
}
