//! Drains a cordoned node: evicts the chosen pods within their disruption budgets until they are gone, the
//! drain cannot continue, or the time is up.
//!
//! It lists all pods of the node, judges those that came after the plan ([`known`]), evicts what may be evicted now
//! ([`evict`]), and lists again. What remains is always what the cluster shows, so any attempt can resume a drain; and
//! since each eviction is bound to its pod's uid, two attempts at once do nothing twice. It is complete once a list
//! shows no pod that is to go. While it evicts, it checks policy, kill switch and node once a second: a node that
//! someone uncordoned is not emptied further. kubectl tries each pod every five seconds instead, and polls each one.

mod evict;
mod known;
mod remaining;
pub(crate) mod simulate;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use evict::{EvictionAttempts, select_evictable};
use k8s_openapi::api::core::v1::Node;
use kube::api::ApiResource;
pub(crate) use remaining::Remaining;
use remaining::{DrainSnapshot, RemainingPod, abandoned_phrase, is_terminating, stage, uid};
use tokio::time::{Instant, sleep};

use crate::{
    actions::{AffectedObject, BoxFuture, shared::toggle::UNCORDON},
    contract::{
        counted::counted,
        error::{ActionError, Code},
        response::{Rollout, RolloutState, Target},
    },
    executor::{
        batch::MAX_PODS_PER_MESSAGE,
        context::{Context, stopped},
    },
    k8s::{
        api::mutation::ApplyError,
        applied_requests::{AppliedRequests, DRAINS_ANNOTATION},
        drain_filter::EvictionSet,
        effect::Effect,
        nodes, pods,
    },
    ledger::record::RequestMetadata,
};

/// Pauses between lists: short after something has happened, since most pods terminate quickly.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(200);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time to uncordon the node.
const UNCORDON_TIMEOUT: Duration = Duration::from_secs(4);

/// Time to find out what is wrong with the node.
const PROBLEMS_TIMEOUT: Duration = Duration::from_millis(800);

/// Distinguishes the mark of the uncordoning from that of the request.
const UNCORDON_SUFFIX: &str = "uncordon";

/// The stage before the first list.
const NOTHING_SEEN: &str = "no state read yet";

/// A drain and its time limit.
pub(crate) struct Drain<'a> {
    pub context: &'a Context,
    pub remaining: Remaining<'a>,
    pub request: &'a RequestMetadata,
    pub end: Instant,
    pub limits: &'a dyn LiveLimits,
    /// Whether an earlier attempt made the cordon.
    pub is_taken_up: bool,
}

/// The limits on a request as they are now.
pub(crate) trait LiveLimits: Sync {
    /// Checks whether policy and kill switch still allow it.
    fn recheck(&self, deadline: Instant) -> BoxFuture<'_, ()>;

    /// Which of these pods, that are not in the plan, may not be evicted too, by uid with the reason. The others are
    /// charged to the budget.
    fn admit(
        &self,
        pods: Vec<AffectedObject>,
        deadline: Instant,
    ) -> BoxFuture<'_, HashMap<String, String>>;
}

/// What became of one list and its evictions.
enum EvictionRound {
    /// These pods are evicted, by uid.
    Evicted(HashSet<String>),
    /// The drain has ended.
    Over(RolloutState, String),
}

/// How it ended, and what remains.
struct DrainEnd {
    state: RolloutState,
    message: String,
    problems: Vec<String>,
    /// Whether the last list showed this. If not, the node is not uncordoned: its pods may be terminating.
    is_seen: bool,
}

impl Drain<'_> {
    /// Evicts the pods and waits until they are gone.
    pub(crate) async fn until_gone(&self) -> Rollout {
        let mut attempts = EvictionAttempts::default();
        let mut snapshot = DrainSnapshot::default();
        let mut is_seen = false;
        let (state, message) = self.work(&mut snapshot, &mut attempts, &mut is_seen).await;
        let problems = match state {
            RolloutState::Complete => Vec::new(),
            _ => {
                let mut problems = attempts.problems(&snapshot, snapshot.pods.iter().collect());
                problems.extend(self.lost_node_warning().await);
                problems
            }
        };
        self.conclude(DrainEnd { state, message, problems, is_seen }).await
    }

    /// Evicts once each pod that may be evicted now, and returns a sentence about it.
    ///
    /// # Errors
    /// The pods that were not evicted, and why.
    pub(crate) async fn evict_once(&self) -> Result<String, Rollout> {
        let mut attempts = EvictionAttempts::default();
        let end = self.end.min(Instant::now() + self.context.deadline());
        let failed = |message, is_seen| DrainEnd {
            state: RolloutState::Failed,
            message,
            problems: Vec::new(),
            is_seen,
        };
        let listed = match self.stop_reason(end).await {
            Ok(None) => self.list(&mut attempts, end).await,
            Ok(Some(why)) => return Err(self.conclude(failed(why, true)).await),
            Err(error) => Err(error),
        };
        let ended = match listed {
            Err(error) => failed(error.with_its_hint(), false),
            Ok(snapshot) => {
                let chosen = select_evictable(&snapshot, &attempts);
                let mut evicted = self.evict(&chosen, &mut attempts, end).await;
                evicted.extend(self.resolve_unknown(&mut attempts, end).await);
                evicted.extend(self.evict_own_last(&snapshot, &evicted, &mut attempts, end).await);
                let stays = |it: &&RemainingPod| {
                    !is_terminating(&it.pod) && !evicted.contains(uid(&it.pod))
                };
                let left: Vec<_> = snapshot.pods.iter().filter(stays).collect();
                let all = self.count(&attempts);
                if left.is_empty() && snapshot.refused.is_empty() {
                    return Ok(all_evicted(all, &snapshot, self.remaining.evictions));
                }
                let (left_over, refused) = (left.len(), snapshot.refused.len());
                let all = counted(all + refused, "pod");
                let message = format!("{} of {all} could not be evicted now", left_over + refused);
                let problems = attempts.problems(&snapshot, left);
                // What was not tried is left to the next attempt.
                let state = match *self.context.stopping().borrow() {
                    true => RolloutState::Interrupted,
                    false => RolloutState::Failed,
                };
                DrainEnd { state, message, problems, is_seen: true }
            }
        };
        Err(self.conclude(ended).await)
    }

    /// Evicts the executor's own pod, if all others of the list are evicted by now.
    async fn evict_own_last(
        &self,
        snapshot: &DrainSnapshot,
        evicted: &HashSet<String>,
        attempts: &mut EvictionAttempts,
        end: Instant,
    ) -> HashSet<String> {
        let stays = |it: &&RemainingPod| {
            !is_terminating(&it.pod)
                && !evicted.contains(uid(&it.pod))
                && !attempts.was_tried(&it.pod)
        };
        let left: Vec<_> = snapshot.pods.iter().filter(stays).collect();
        if left.iter().any(|it| !it.is_own) {
            return HashSet::new();
        }
        self.evict(&left, attempts, end).await
    }

    /// How many pods are evicted: those of the set, and those that came later.
    fn count(&self, attempts: &EvictionAttempts) -> usize {
        self.remaining.evictions.count() + attempts.known.evicted_newcomers()
    }

    /// Evicts until it ends, and returns how. The last list that was answered is in `snapshot`; whether it was the last
    /// one is in `is_seen`.
    async fn work(
        &self,
        snapshot: &mut DrainSnapshot,
        attempts: &mut EvictionAttempts,
        is_seen: &mut bool,
    ) -> (RolloutState, String) {
        let mut stopping = self.context.stopping();
        let mut pause = MIN_POLL_INTERVAL;
        let mut reached = NOTHING_SEEN.to_owned();
        let mut unseen = None;
        loop {
            let before = snapshot.pods.len();
            let mut next = reached.clone();
            let step = self.step(snapshot, attempts).await;
            // A list that the end cut short takes nothing from the one before.
            let is_cut_short = step.is_err() && Instant::now() >= self.end;
            if !is_cut_short {
                *is_seen = step.is_ok();
            }
            match step {
                Ok(EvictionRound::Over(state, message)) => return (state, message),
                Ok(EvictionRound::Evicted(evicted)) => {
                    unseen = None;
                    if !evicted.is_empty() || snapshot.pods.len() < before {
                        pause = MIN_POLL_INTERVAL;
                    }
                    next = stage(snapshot, self.count(attempts), &evicted);
                }
                Err(_) if is_cut_short => {}
                // What could not be seen has not failed; the next list may show it.
                Err(error) => {
                    tracing::warn!(%error, "the node's pods could not be listed");
                    unseen = Some(error.detail);
                }
            }
            if next != reached {
                self.context.observer().progress(&next);
                reached = next;
            }
            if *stopping.borrow() {
                return (RolloutState::Interrupted, reached);
            }
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = match unseen {
                    Some(why) => {
                        format!("{reached}; since then the pods could not be listed: {why}")
                    }
                    None => reached,
                };
                return (RolloutState::TimedOut, message);
            }
            tokio::select! {
                () = stopped(&mut stopping) => return (RolloutState::Interrupted, reached),
                () = sleep(pause.min(left)) => pause = (pause * 3 / 2).min(MAX_POLL_INTERVAL),
            }
        }
    }

    /// Lists the remaining pods, and evicts what may be evicted now.
    async fn step(
        &self,
        snapshot: &mut DrainSnapshot,
        attempts: &mut EvictionAttempts,
    ) -> Result<EvictionRound, ActionError> {
        *snapshot = self.list(attempts, self.end).await?;
        if snapshot.pods.is_empty() {
            if !snapshot.ignoring.is_empty()
                && let Some(why) = self.stop_reason(self.end).await?
            {
                return Ok(EvictionRound::Over(RolloutState::Failed, why));
            }
            let (state, message) = self.without_pods_to_evict(snapshot, self.count(attempts));
            return Ok(EvictionRound::Over(state, message));
        }
        let chosen = select_evictable(snapshot, attempts);
        if attempts.need_recheck(chosen.is_empty()) {
            if let Some(why) = self.stop_reason(self.end).await? {
                return Ok(EvictionRound::Over(RolloutState::Failed, why));
            }
            attempts.record_recheck();
        }
        let evicted = self.evict(&chosen, attempts, self.end).await;
        if snapshot.pods.iter().all(|it| attempts.is_given_up(&it.pod)) {
            let pods = counted(snapshot.pods.len(), "pod");
            return Ok(EvictionRound::Over(
                RolloutState::Failed,
                format!("{pods} cannot be evicted"),
            ));
        }
        Ok(EvictionRound::Evicted(evicted))
    }

    /// How it ends once the last list shows none of the pods to evict: they were so many.
    fn without_pods_to_evict(
        &self,
        snapshot: &DrainSnapshot,
        all: usize,
    ) -> (RolloutState, String) {
        let DrainSnapshot { refused, ignoring, abandoned, .. } = snapshot;
        let gone = self.remaining.all_gone(all, abandoned);
        if !refused.is_empty() {
            let stay = counted(refused.len(), "pod");
            return (
                RolloutState::Failed,
                format!("{gone}, but {stay} appeared after the drain was planned"),
            );
        }
        if ignoring.is_empty() {
            return (RolloutState::Complete, gone);
        }
        let there = counted(ignoring.len(), "pod");
        let names = pods::join_names(ignoring, MAX_PODS_PER_MESSAGE);
        let why = "since they tolerate it or name the node";
        let message = format!("{gone}; {there} came despite the cordon, {why}: {names}");
        (RolloutState::Complete, message)
    }

    /// Why nothing more may be evicted, if so: policy or kill switch, or the node is another one than was
    /// cordoned, or is not cordoned any more.
    pub(super) async fn stop_reason(
        &self,
        deadline: Instant,
    ) -> Result<Option<String>, ActionError> {
        match self.limits.recheck(deadline).await {
            Err(error) if matches!(error.code, Code::PolicyDenied | Code::Stopped) => {
                return Ok(Some(error.detail));
            }
            result => result?,
        }
        let Remaining { cluster, node, evictions } = &self.remaining;
        match cluster.get_global(&node.name, deadline).await {
            Ok(found) => Ok(reason_of_node(&found, node, self.request, evictions)),
            Err(error) if error.code == Code::TargetNotFound => {
                Ok(Some(format!("Node '{}' was deleted", node.name)))
            }
            Err(error) => Err(error),
        }
    }

    /// The warning that the node is lost.
    async fn lost_node_warning(&self) -> Option<String> {
        let Remaining { cluster, node, .. } = &self.remaining;
        let deadline = Instant::now() + PROBLEMS_TIMEOUT;
        nodes::lost_warning(&cluster.get_global(&node.name, deadline).await.ok()?)
    }

    /// The drain's part of the answer. After a failure it uncordons the node, if the request asks for that.
    async fn conclude(&self, ended: DrainEnd) -> Rollout {
        let DrainEnd { state, mut message, problems, is_seen } = ended;
        let failed = is_seen && matches!(state, RolloutState::Failed | RolloutState::TimedOut);
        if failed && self.remaining.evictions.uncordon_on_failure {
            message = format!("{message}; {}", self.uncordon().await);
        }
        Rollout { state, message, problems }
    }

    /// Uncordons the node, at most once, and returns what became of it.
    async fn uncordon(&self) -> String {
        let (name, until) = (&self.remaining.node.name, Instant::now() + UNCORDON_TIMEOUT);
        let failed = |why: &str| format!("Node '{name}' could not be uncordoned: {why}");
        if let Err(error) = self.limits.recheck(until).await {
            return failed(&error.detail);
        }
        let mut is_in_doubt = false;
        while Instant::now() < until {
            let node: Node = match self.remaining.cluster.get_global(name, until).await {
                Ok(node) => node,
                Err(error) => return failed(&error.with_its_hint()),
            };
            if node.metadata.uid != self.remaining.node.uid {
                return failed("it was replaced by another node of its name");
            }
            let mark = self.request.mark_of(UNCORDON_SUFFIX);
            let requests = AppliedRequests::from_metadata(&node.metadata);
            if !requests.contains(&self.request.mark()) {
                return failed("it does not have this request's mark");
            }
            if !shows_set(&node, self.request, self.remaining.evictions) {
                return failed(&format!(
                    "its annotation {DRAINS_ANNOTATION} does not match the pods in this drain's record"
                ));
            }
            if requests.contains(&mark) {
                return format!("Node '{name}' is uncordoned again");
            }
            if !nodes::is_cordoned(&node) {
                return format!("Node '{name}' is not cordoned any more");
            }
            let resource = ApiResource::erase::<Node>(&());
            let change = UNCORDON.operations(&node.metadata, true);
            let effect = Effect::patch(resource, &node.metadata, &mark, None, change);
            match self.remaining.cluster.apply(&effect, false, until).await {
                Ok(_) => return format!("Node '{name}' is uncordoned again"),
                // The next read shows whether it was applied.
                Err(
                    error @ (ApplyError::Conflict
                    | ApplyError::TestFailed(_)
                    | ApplyError::InDoubt(_)
                    | ApplyError::NotTaken(..)),
                ) => {
                    is_in_doubt |= matches!(error, ApplyError::InDoubt(_));
                    sleep(MIN_POLL_INTERVAL).await;
                }
                Err(ApplyError::Disruption(why)) => return failed(&why),
                Err(ApplyError::Rejected(error)) => return failed(&error.with_its_hint()),
            }
        }
        if is_in_doubt {
            return format!("whether Node '{name}' was uncordoned is unknown");
        }
        failed("it kept changing")
    }
}

/// Why nothing more may be evicted from the node as it was found, if so. The node itself shows that this request
/// cordoned it, and to evict which pods: a record alone does not count, since more accounts may write Events than
/// nodes.
fn reason_of_node(
    found: &Node,
    cordoned: &Target,
    request: &RequestMetadata,
    evictions: &EvictionSet,
) -> Option<String> {
    let name = &cordoned.name;
    if found.metadata.uid != cordoned.uid {
        return Some(format!("Node '{name}' was replaced by another node of its name"));
    }
    let requests = AppliedRequests::from_metadata(&found.metadata);
    if !nodes::is_cordoned(found) {
        return Some(match requests.contains(&request.mark_of(UNCORDON_SUFFIX)) {
            true => format!("another attempt has given up and uncordoned Node '{name}'"),
            false => {
                format!("Node '{name}' was uncordoned by another client; nothing more is evicted")
            }
        });
    }
    if !requests.contains(&request.mark()) {
        return Some(format!(
            "Node '{name}' does not have this request's mark; nothing more is evicted"
        ));
    }
    (!shows_set(found, request, evictions)).then(|| {
        format!(
            "the annotation {DRAINS_ANNOTATION} of Node '{name}' does not match the pods in this drain's record; \
             nothing more is evicted. Drain the node by a new request with a new id"
        )
    })
}

/// Whether the node shows that this request is to evict these pods, and how.
fn shows_set(node: &Node, request: &RequestMetadata, evictions: &EvictionSet) -> bool {
    let drains = AppliedRequests::listed_in(&node.metadata, DRAINS_ANNOTATION);
    drains.contains(&evictions.mark(&request.mark()))
}

/// The sentence of a drain that did not wait, once so many pods are evicted.
fn all_evicted(all: usize, snapshot: &DrainSnapshot, evictions: &EvictionSet) -> String {
    let pods = counted(all, "pod");
    let evicted = match (all, snapshot.pods.len()) {
        (0, _) => "There was no pod to evict.".to_owned(),
        (_, 0) => format!("{pods} evicted and terminated."),
        _ => format!("{pods} evicted; did not wait for them to terminate."),
    };
    match abandoned_phrase(&snapshot.abandoned, evictions) {
        Some(abandoned) => format!("{evicted} Not waited for: {abandoned}."),
        None => evicted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_nobody_waits_for_are_not_said_to_be_gone() {
        let mut set = EvictionSet::default();
        set.options.deleted_for = Some(30);
        let abandoned = vec!["shop/a".to_owned()];
        let snapshot = DrainSnapshot { abandoned, ..DrainSnapshot::default() };
        assert_eq!(
            all_evicted(2, &snapshot, &set),
            "2 pods evicted and terminated. Not waited for: 1 pod deleted more than 30 s ago and still there: shop/a."
        );
        assert_eq!(
            all_evicted(2, &DrainSnapshot::default(), &set),
            "2 pods evicted and terminated."
        );
    }

    #[test]
    fn a_drain_stops_when_its_node_is_replaced_or_uncordoned_or_was_cordoned_by_another_request() {
        let request = RequestMetadata::example();
        let set = EvictionSet { grace_period_seconds: Some(7), ..EvictionSet::default() };
        let drains = format!("1:{}", set.mark(&request.mark()));
        let (ours, other) = (format!("1:{}", request.mark()), "1:alert-7@of-another");
        let both = format!("{ours} 2:{}", request.mark_of(UNCORDON_SUFFIX));
        let cordoned =
            Target { uid: Some("u1".to_owned()), ..Target::named("v1", "Node", "", "n1") };
        let unmarked = "does not have this request's mark; nothing more is evicted";
        let forged = "does not match the pods in this drain's record";
        let of_none = format!("1:{}", EvictionSet::default().mark(&request.mark()));
        for (uid, unschedulable, requests, drains, expected) in [
            ("u1", true, &*ours, &*drains, None),
            ("u1", true, other, &*drains, Some(unmarked)),
            ("u2", true, &*ours, &*drains, Some("replaced by another node")),
            ("u1", false, &*ours, &*drains, Some("uncordoned by another client")),
            ("u1", false, &*both, &*drains, Some("another attempt has given up")),
            ("u1", true, &*ours, "", Some(forged)),
            ("u1", true, &*ours, &*of_none, Some(forged)),
        ] {
            let node = serde_yaml_ng::from_str(&format!(
                "{{metadata: {{name: n1, uid: {uid}, annotations: \
                 {{action-executor.dev/requests: '{requests}', \
                 action-executor.dev/drains: '{drains}'}}}}, \
                 spec: {{unschedulable: {unschedulable}}}}}"
            ));
            let reason = reason_of_node(&node.expect("is a node"), &cordoned, &request, &set);
            assert_eq!(reason.is_some(), expected.is_some(), "{reason:?}");
            let says = |part| reason.as_ref().is_some_and(|reason| reason.contains(part));
            assert!(expected.is_none_or(says), "{reason:?}");
        }
    }
}
