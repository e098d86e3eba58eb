//! What one attempt at a drain knows of the node's pods beyond the set that was planned: the pods that came after the
//! plan, and which pods no disruption budget protects now.
//!
//! A pod that came later is judged as the plan would: by kubectl's filters, then by the policy as it is now, its budget
//! and the approval. It is evicted, or it stays and is named. Without the status of the pods it is unknown whether one
//! that is not ready may go although its disruption budget allows no disruption, so the status is read while one is
//! exhausted.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use tokio::time::Instant;

use super::{
    Drain,
    evict::EvictionAttempts,
    remaining::{DrainSnapshot, ListedPods, Remaining, is_terminating, name_of, uid},
};
use crate::{
    actions::AffectedObject,
    contract::error::ActionError,
    k8s::{
        api::node_pods::{NodePodReader, Pdbs},
        drain_filter::{self, EvictionSet, FilterResult},
        pdb::{self, PdbDecision},
    },
};

/// The status of the pods is read once a disruption budget has allowed no disruption for this long, and this often
/// then. Most allow one sooner, once a new pod is ready.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// What one attempt knows of the node's pods. Pods are known by uid.
#[derive(Default)]
pub(super) struct KnownPods {
    /// Pods that are not in the set.
    newcomers: HashMap<String, Newcomer>,
    /// When the first newcomers were judged, by the API server's clock.
    since: Option<DateTime<Utc>>,
    /// Pods that no disruption budget protects, by their status when it was read last.
    unprotected: HashSet<String>,
    /// When that was.
    read_at: Option<Instant>,
    /// Pods whose eviction a disruption budget has refused since.
    refused: HashSet<String>,
    /// Since when disruption budgets have allowed no disruption.
    exhausted: HashMap<String, Instant>,
}

/// A pod that is not in the set.
#[derive(Debug, PartialEq)]
enum Newcomer {
    /// It is evicted, like those of the set.
    Evicted,
    /// It stays, for example as a pod of a DaemonSet.
    Skipped,
    /// It came in spite of the cordon: once evicted, it would come again.
    IgnoresCordon,
    /// It may not be evicted, for this reason.
    Refused(String),
}

impl Drain<'_> {
    /// As [`Drain::list_and_classify`], with the executor's own pod marked.
    ///
    /// # Errors
    /// Why the cluster could not be read.
    pub(super) async fn list(
        &self,
        attempts: &mut EvictionAttempts,
        deadline: Instant,
    ) -> Result<DrainSnapshot, ActionError> {
        let mut snapshot = self.list_and_classify(attempts, deadline).await?;
        let Remaining { cluster, node, .. } = &self.remaining;
        if let Some(own_pod) = self.context.own_pod().filter(|own_pod| own_pod.node == node.name) {
            snapshot.mark_own(cluster.default_namespace(), &own_pod.name);
        }
        Ok(snapshot)
    }

    /// Lists the pods that are to be evicted and are there, judges those that came later, and finds out which
    /// disruption budgets protect them.
    ///
    /// # Errors
    /// Why the cluster could not be read.
    async fn list_and_classify(
        &self,
        attempts: &mut EvictionAttempts,
        deadline: Instant,
    ) -> Result<DrainSnapshot, ActionError> {
        let (set, cluster) = (self.remaining.evictions, self.remaining.cluster);
        let began = cluster.now();
        let ListedPods { awaited: pods, abandoned } = self.remaining.pods(deadline).await?;
        let known = &attempts.known;
        let has_unknown = pods.iter().any(|pod| known.is_unknown(pod, set));
        if !has_unknown && !pods.iter().any(|pod| known.may_be_protected(pod, set)) {
            attempts.known.since.get_or_insert(began);
            return Ok(DrainSnapshot { abandoned, ..attempts.known.snapshot(pods, set) });
        }
        let pdbs = Pdbs::read(cluster, deadline).await?;
        if has_unknown {
            self.read(attempts, &pdbs, deadline).await?;
        }
        let known = &mut attempts.known;
        known.since.get_or_insert(began);
        let mut snapshot = DrainSnapshot { abandoned, ..known.snapshot(pods, set) };
        snapshot.add_pdbs(&pdbs, |pod| known.may_be_protected(pod, set));
        known.record_exhausted(&snapshot);
        if known.is_status_due() {
            self.read(attempts, &pdbs, deadline).await?;
            let known = &attempts.known;
            for left in &mut snapshot.pods {
                left.pdb_key.take_if(|_| !known.may_be_protected(&left.pod, set));
            }
        }
        Ok(snapshot)
    }

    /// Reads the pods with their status, and judges those that are unknown.
    async fn read(
        &self,
        attempts: &mut EvictionAttempts,
        pdbs: &Pdbs,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let set = self.remaining.evictions;
        let known = &mut attempts.known;
        let mut reader = NodePodReader::new(
            self.remaining.cluster,
            &self.remaining.node.name,
            set.selector.as_deref(),
        );
        let (mut unprotected, mut candidates) = (HashSet::new(), Vec::new());
        let is_skipped = |pod: &Pod, known: &KnownPods| {
            set.is_skipped(&pod.metadata)
                || known.newcomers.get(uid(&pod.metadata)) == Some(&Newcomer::Skipped)
        };
        while let Some(pods) = reader.next(|pod| !is_skipped(pod, known), deadline).await? {
            for pod in &pods {
                let key = uid(&pod.metadata).to_owned();
                let decision = pdb::classify(pod, pdbs.of(pod));
                if decision == PdbDecision::Unprotected {
                    unprotected.insert(key.clone());
                }
                if !known.is_unknown(&pod.metadata, set) {
                    continue;
                }
                let exists = reader.daemon_set_exists(pod);
                let newcomer = self.judge(pod, exists, &decision, known.since);
                if newcomer == Newcomer::Evicted && !is_terminating(&pod.metadata) {
                    candidates.push(AffectedObject::pod(&pod.metadata));
                }
                known.newcomers.insert(key, newcomer);
            }
        }
        known.unprotected = unprotected;
        known.read_at = Some(Instant::now());
        known.refused.clear();
        if candidates.is_empty() {
            return Ok(());
        }
        let uids: Vec<_> = candidates.iter().filter_map(|pod| pod.target.uid.clone()).collect();
        let refused = match self.stop_reason(deadline).await {
            Ok(None) => self.limits.admit(candidates, deadline).await,
            Ok(Some(why)) => Ok(uids.iter().map(|uid| (uid.clone(), why.clone())).collect()),
            Err(error) => Err(error),
        };
        let refused = refused.unwrap_or_else(|error| {
            let why = error.with_its_hint();
            uids.into_iter().map(|uid| (uid, why.clone())).collect()
        });
        let refused = refused.into_iter().map(|(uid, why)| (uid, Newcomer::Refused(why)));
        known.newcomers.extend(refused);
        Ok(())
    }

    /// Judges a pod that came after the plan, by the rules of the plan. `since`: when the first ones were judged.
    fn judge(
        &self,
        pod: &Pod,
        daemon_set_exists: bool,
        decision: &PdbDecision<'_>,
        since: Option<DateTime<Utc>>,
    ) -> Newcomer {
        let options = &self.remaining.evictions.options;
        match drain_filter::classify(pod, options, daemon_set_exists, Utc::now()) {
            FilterResult::Skip(_) => Newcomer::Skipped,
            // Who takes up a drain does not know when it began, so what tolerates the cordon may have come back.
            FilterResult::Evict(_) | FilterResult::Block(_)
                if since.is_some_and(|since| drain_filter::ignores_cordon(pod, since))
                    || (self.is_taken_up && drain_filter::tolerates_cordon(pod)) =>
            {
                Newcomer::IgnoresCordon
            }
            FilterResult::Block(reason) => {
                let (what, parameter) = (reason.consequence(), reason.accepting_parameter());
                Newcomer::Refused(format!("it is one {what}; to accept this, set {parameter}"))
            }
            FilterResult::Evict(_) => match decision {
                PdbDecision::Ambiguous(pdbs) => {
                    let names: Vec<_> = pdbs.iter().map(|it| pdb::name_of(it)).collect();
                    Newcomer::Refused(format!(
                        "more than one disruption budget selects it: {}",
                        names.join(", ")
                    ))
                }
                _ => Newcomer::Evicted,
            },
        }
    }
}

impl KnownPods {
    /// How many newcomers are evicted.
    pub(super) fn evicted_newcomers(&self) -> usize {
        self.newcomers.values().filter(|newcomer| **newcomer == Newcomer::Evicted).count()
    }

    /// Whether nothing is known of the pod.
    fn is_unknown(&self, pod: &ObjectMeta, set: &EvictionSet) -> bool {
        !set.contains(pod) && !set.is_skipped(pod) && !self.newcomers.contains_key(uid(pod))
    }

    /// Whether the pod is to be evicted and a disruption budget may refuse it, by its status when it was read last.
    fn may_be_protected(&self, pod: &ObjectMeta, set: &EvictionSet) -> bool {
        let is_newcomer = self.newcomers.get(uid(pod)) == Some(&Newcomer::Evicted);
        if is_terminating(pod) || !(is_newcomer || set.contains(pod)) {
            return false;
        }
        let was_unprotected = match self.read_at {
            Some(_) => self.unprotected.contains(uid(pod)),
            None => set.is_unprotected(pod),
        };
        !was_unprotected || self.refused.contains(uid(pod))
    }

    /// Records that a disruption budget has refused the eviction of this pod, so that one protects it.
    pub(super) fn record_refusal(&mut self, uid: &str) {
        self.refused.insert(uid.to_owned());
    }

    /// Records which disruption budgets allow no disruption, and since when.
    fn record_exhausted(&mut self, snapshot: &DrainSnapshot) {
        let now: HashSet<_> = snapshot.exhausted_pdbs().collect();
        self.exhausted.retain(|key, _| now.contains(key.as_str()));
        for key in now {
            self.exhausted.entry(key.to_owned()).or_insert_with(Instant::now);
        }
    }

    fn is_status_due(&self) -> bool {
        let is_old = |at: &Instant| at.elapsed() >= STATUS_INTERVAL;
        self.exhausted.values().any(is_old) && self.read_at.as_ref().is_none_or(is_old)
    }

    /// Those of these pods that are to be evicted, and the names of those that stay and should not.
    fn snapshot(&self, pods: Vec<ObjectMeta>, set: &EvictionSet) -> DrainSnapshot {
        let (mut left, mut refused, mut ignoring) = (Vec::new(), Vec::new(), Vec::new());
        for pod in pods {
            match self.newcomers.get(uid(&pod)) {
                _ if set.contains(&pod) => left.push(pod),
                Some(Newcomer::Evicted) => left.push(pod),
                Some(Newcomer::Refused(why)) => {
                    refused.push(format!(
                        "pod {} appeared after the drain was planned: {why}",
                        name_of(&pod)
                    ));
                }
                Some(Newcomer::IgnoresCordon) => ignoring.push(name_of(&pod)),
                Some(Newcomer::Skipped) | None => {}
            }
        }
        DrainSnapshot { refused, ignoring, ..DrainSnapshot::of(left) }
    }
}
