//! Works off a drain: evicts the pods of a cordoned node that were decided on, within their disruption
//! budgets, until they are gone, it cannot go on, or time is up.
//!
//! It looks, evicts what may go now, and looks again. What is left is always what the cluster says is
//! left, so whoever takes it over goes on from there; and since each eviction is bound to its pod's uid,
//! two who are at it do nothing twice. No more evictions are tried than the budgets have room for. While it
//! evicts, it asks once a second for the kill switch and the node, since one that somebody has uncordoned is
//! not to be emptied any more. kubectl tries each pod every five seconds instead, and asks of each whether
//! it is gone.

mod remaining;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{api::ApiResource, core::ObjectMeta};
pub(crate) use remaining::Remaining;
use remaining::{RemainingPod, Snapshot, is_going, uid};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    actions,
    contract::{
        error::{ActionError, Code},
        names::RequestId,
        response::{Rollout, RolloutState, Target},
    },
    executor::context::{Context, stopped},
    k8s::{
        api::mutation::{ApplyError, Effect},
        applied_requests::AppliedRequests,
        drain_filter::plural,
        nodes, pdb, pods,
    },
};

/// The most evictions that are under way at once.
const MAX_PARALLEL: usize = 16;

/// How long one eviction may take.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked: soon after something has happened, since most pods are quick.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(200);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often one pod is tried although its budget has no room, since a pod that is not healthy any more
/// may be let go all the same: kubectl's pace.
const BLOCKED_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long the look at kill switch and node is good for: one for each batch would be as many calls as there
/// are evictions.
const PERMIT_TTL: Duration = Duration::from_secs(1);

/// The most pods of which it is said why they are left.
const MAX_PROBLEMS: usize = 20;

/// How long it may take to let the node take pods again.
const UNCORDON_TIMEOUT: Duration = Duration::from_secs(4);

/// What is worked off, and until when.
pub(crate) struct Drain<'a> {
    pub context: &'a Context,
    pub remaining: Remaining<'a>,
    /// The request.
    pub id: &'a RequestId,
    pub end: Instant,
    /// Whether policy and kill switch still let it go on.
    pub permit: &'a (dyn Fn(Instant) -> actions::BoxFuture<'a, ()> + Sync),
}

/// What came of the tries so far.
#[derive(Default)]
struct EvictionAttempts {
    /// Why pods were refused the last time, by uid.
    refused: HashMap<String, String>,
    /// The same of those that are refused for good.
    given_up: HashMap<String, String>,
    /// Those of which it is not known whether they were evicted, by uid.
    in_doubt: HashSet<String>,
    /// When budgets were first seen without room, or last tried all the same.
    without_room: HashMap<String, Instant>,
    /// When it was last asked whether anything may be evicted.
    permitted: Option<Instant>,
}

/// What came of one look, and of what was evicted then.
enum Step {
    /// These are evicted, by uid.
    On(HashSet<String>),
    /// It has ended.
    Over(RolloutState, String),
}

/// How it ended, and what is left.
struct Ended {
    state: RolloutState,
    message: String,
    problems: Vec<String>,
}

impl Drain<'_> {
    /// Evicts the pods and waits until they are gone.
    pub(crate) async fn until_gone(&self) -> Rollout {
        let mut tries = EvictionAttempts::default();
        let mut seen = Snapshot::default();
        let (state, message) = self.work(&mut seen, &mut tries).await;
        let problems = match state {
            RolloutState::Complete => Vec::new(),
            _ => tries.problems(&seen, seen.pods.iter().collect()),
        };
        self.conclude(Ended { state, message, problems }).await
    }

    /// Evicts once each pod that can go now, and says so in a sentence.
    ///
    /// # Errors
    /// What is left that was not evicted, and why.
    pub(crate) async fn evict_once(&self) -> Result<String, Rollout> {
        let mut tries = EvictionAttempts::default();
        let end = self.end.min(Instant::now() + self.context.deadline());
        let failed = |message| Ended { state: RolloutState::Failed, message, problems: Vec::new() };
        let ended = match (self.stop_reason(end).await, self.remaining.list(end).await) {
            (Ok(Some(why)), _) => failed(why),
            (Err(error), _) | (_, Err(error)) => failed(error.with_its_hint()),
            (Ok(None), Ok(seen)) => {
                let chosen = select_evictable(&seen, &tries, Instant::now());
                let mut evicted = self.evict(&chosen, &mut tries, end).await;
                evicted.extend(self.resolve_unknown(&mut tries, end).await);
                let stays =
                    |it: &&RemainingPod| !is_going(&it.pod) && !evicted.contains(uid(&it.pod));
                let left: Vec<_> = seen.pods.iter().filter(stays).collect();
                if left.is_empty() {
                    return Ok(self.all_evicted(seen.pods.len()));
                }
                let all = plural(self.remaining.drained.count(), "pod");
                let message = format!("{} of {all} could not be evicted now", left.len());
                let problems = tries.problems(&seen, left);
                Ended { state: RolloutState::Failed, message, problems }
            }
        };
        Err(self.conclude(ended).await)
    }

    fn all_evicted(&self, left: usize) -> String {
        let all = plural(self.remaining.drained.count(), "pod");
        match (self.remaining.drained.count(), left) {
            (0, _) => "There was no pod to evict.".to_owned(),
            (_, 0) => format!("{all} evicted, and gone."),
            _ => format!("{all} evicted; it was not waited for that they are gone."),
        }
    }

    /// How it ended. What was left when it was looked at last is in `seen`.
    async fn work(
        &self,
        seen: &mut Snapshot,
        tries: &mut EvictionAttempts,
    ) -> (RolloutState, String) {
        let mut stopping = self.context.stopping();
        let mut pause = MIN_POLL_INTERVAL;
        let mut stage = "nothing was seen yet".to_owned();
        loop {
            let before = seen.pods.len();
            let mut next = stage.clone();
            match self.step(seen, tries).await {
                Ok(Step::Over(state, message)) => return (state, message),
                Ok(Step::On(evicted)) => {
                    if !evicted.is_empty() || seen.pods.len() < before {
                        pause = MIN_POLL_INTERVAL;
                    }
                    next = self.remaining.stage(seen, &evicted);
                }
                // The cluster may come back before the end does.
                Err(error) if error.code.retryable() => {
                    tracing::warn!(%error, "the node could not be looked at");
                }
                Err(error) => return (RolloutState::Failed, error.with_its_hint()),
            }
            if next != stage {
                self.context.progress(&next);
                stage = next;
            }
            if *stopping.borrow() {
                return (RolloutState::Interrupted, stage);
            }
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (RolloutState::TimedOut, stage);
            }
            tokio::select! {
                () = stopped(&mut stopping) => return (RolloutState::Interrupted, stage),
                () = sleep(pause.min(left)) => pause = (pause * 3 / 2).min(MAX_POLL_INTERVAL),
            }
        }
    }

    /// Looks, and evicts what may go now.
    async fn step(
        &self,
        seen: &mut Snapshot,
        tries: &mut EvictionAttempts,
    ) -> Result<Step, ActionError> {
        *seen = self.remaining.list(self.end).await?;
        if seen.pods.is_empty() {
            return Ok(Step::Over(RolloutState::Complete, self.remaining.all_gone()));
        }
        tries.record_room(seen);
        let chosen = select_evictable(seen, tries, Instant::now());
        if !chosen.is_empty() && tries.need_permit() {
            if let Some(why) = self.stop_reason(self.end).await? {
                return Ok(Step::Over(RolloutState::Failed, why));
            }
            tries.permitted = Some(Instant::now());
        }
        tries.record_attempts(&chosen, seen);
        let evicted = self.evict(&chosen, tries, self.end).await;
        if seen.pods.iter().all(|it| tries.given_up.contains_key(uid(&it.pod))) {
            let pods = plural(seen.pods.len(), "pod");
            return Ok(Step::Over(RolloutState::Failed, format!("{pods} cannot be evicted")));
        }
        Ok(Step::On(evicted))
    }

    /// Why nothing more may be evicted, if that is so: policy or kill switch, or the node is not the one that
    /// was cordoned, or is not cordoned any more.
    async fn stop_reason(&self, deadline: Instant) -> Result<Option<String>, ActionError> {
        match (self.permit)(deadline).await {
            Err(error) if matches!(error.code, Code::PolicyDenied | Code::Stopped) => {
                return Ok(Some(error.detail));
            }
            permitted => permitted?,
        }
        let Target { name, uid, .. } = self.remaining.node;
        let node: Node = match self.remaining.cluster.get_global(name, deadline).await {
            Ok(node) => node,
            Err(error) if error.code == Code::TargetNotFound => {
                return Ok(Some(format!("Node '{name}' was deleted")));
            }
            Err(error) => return Err(error),
        };
        if node.metadata.uid != *uid {
            return Ok(Some(format!("Node '{name}' was replaced by another of its name")));
        }
        if nodes::is_cordoned(&node) {
            return Ok(None);
        }
        Ok(Some(
            match AppliedRequests::from_metadata(&node.metadata).contains(&self.uncordon_id()) {
                true => format!("another try has given up and uncordoned Node '{name}'"),
                false => {
                    format!("Node '{name}' was uncordoned by someone else; nothing more is evicted")
                }
            },
        ))
    }

    /// Evicts these pods, a bounded number at a time, and returns the uids of those that go. An eviction
    /// that is under way is never abandoned.
    async fn evict(
        &self,
        chosen: &[&RemainingPod],
        tries: &mut EvictionAttempts,
        end: Instant,
    ) -> HashSet<String> {
        let stopping = self.context.stopping();
        let mut evicted = HashSet::new();
        let mut under_way = JoinSet::new();
        let mut next = chosen.iter();
        loop {
            while under_way.len() < MAX_PARALLEL && may_begin(&stopping, end) {
                let Some(left) = next.next() else { break };
                let effect = Effect::eviction(&left.pod, None)
                    .with_grace_period(self.remaining.drained.grace_period_seconds);
                let cluster = self.remaining.cluster.clone();
                let deadline = end.min(Instant::now() + EVICTION_TIMEOUT);
                under_way.spawn(async move {
                    let made = cluster.apply(&effect, false, deadline).await;
                    (effect, made)
                });
            }
            let Some(done) = under_way.join_next().await else { return evicted };
            // A task that panicked has said so; what became of its pod is seen at the next look.
            let Ok((effect, made)) = done else { continue };
            let name = format!("{}/{}", effect.namespace, effect.name);
            match made {
                // Gone, or another one under its name.
                Ok(_) | Err(ApplyError::Conflict) => {
                    self.context.progress(&format!("pod {name} is evicted"));
                    tries.refused.remove(&effect.uid);
                    evicted.insert(effect.uid);
                }
                Err(ApplyError::Disruption(words)) => {
                    tries.refused.insert(effect.uid, words);
                }
                // Whether it was made is seen at the next look.
                Err(ApplyError::InDoubt(fault)) => {
                    tries.in_doubt.insert(effect.uid.clone());
                    tries.refused.insert(effect.uid, format!("its answer was lost ({fault:?})"));
                }
                Err(ApplyError::Rejected(error)) if is_transient(&error) => {
                    tries.refused.insert(effect.uid, error.detail);
                }
                Err(ApplyError::Rejected(error)) => {
                    tries.given_up.insert(effect.uid, error.with_its_hint());
                }
            }
        }
    }

    /// Finds out what became of evictions whose answer was lost, and makes those that were not made.
    /// Returns the uids of the pods that go.
    async fn resolve_unknown(&self, tries: &mut EvictionAttempts, end: Instant) -> HashSet<String> {
        let stopping = self.context.stopping();
        let mut evicted = HashSet::new();
        while !tries.in_doubt.is_empty() && may_begin(&stopping, end) {
            let Ok(seen) = self.remaining.list(end).await else { break };
            let doubtful = std::mem::take(&mut tries.in_doubt);
            let is_there =
                |it: &&RemainingPod| !is_going(&it.pod) && doubtful.contains(uid(&it.pod));
            let there: Vec<_> = seen.pods.iter().filter(is_there).collect();
            let not_made: HashSet<_> = there.iter().map(|it| uid(&it.pod).to_owned()).collect();
            evicted.extend(doubtful.difference(&not_made).cloned());
            evicted.extend(self.evict(&there, tries, end).await);
        }
        evicted
    }

    /// The answer's part about the drain; on failure, once the node takes pods again if that is wished.
    async fn conclude(&self, ended: Ended) -> Rollout {
        let Ended { state, mut message, problems } = ended;
        let failed = matches!(state, RolloutState::Failed | RolloutState::TimedOut);
        if failed && self.remaining.drained.uncordon_on_failure {
            message = format!("{message}; {}", self.uncordon().await);
        }
        Rollout { state, message, problems }
    }

    /// What stands for the undoing of this request's cordon among the node's marks: no request's id can.
    fn uncordon_id(&self) -> String {
        format!("{}/uncordon", *self.id)
    }

    /// Takes the cordon back, at most once, and says what came of it.
    async fn uncordon(&self) -> String {
        let (name, until) = (&self.remaining.node.name, Instant::now() + UNCORDON_TIMEOUT);
        let could_not = |why: &str| format!("Node '{name}' could not be uncordoned: {why}");
        while Instant::now() < until {
            let node: Node = match self.remaining.cluster.get_global(name, until).await {
                Ok(node) => node,
                Err(error) => return could_not(&error.with_its_hint()),
            };
            if node.metadata.uid != self.remaining.node.uid {
                return could_not("it was replaced by another of its name");
            }
            if AppliedRequests::from_metadata(&node.metadata).contains(&self.uncordon_id()) {
                return format!("Node '{name}' is uncordoned again");
            }
            if !nodes::is_cordoned(&node) {
                return format!("Node '{name}' is not cordoned any more");
            }
            let resource = ApiResource::erase::<Node>(&());
            let patch = nodes::uncordon_patch();
            let effect = Effect::patch(resource, &node.metadata, &self.uncordon_id(), patch);
            match self.remaining.cluster.apply(&effect, false, until).await {
                Ok(_) => return format!("Node '{name}' is uncordoned again"),
                // Its mark tells, at the next look.
                Err(ApplyError::Conflict | ApplyError::InDoubt(_)) => {
                    sleep(MIN_POLL_INTERVAL).await
                }
                Err(ApplyError::Disruption(words)) => return could_not(&words),
                Err(ApplyError::Rejected(error)) => return could_not(&error.with_its_hint()),
            }
        }
        could_not("it kept changing")
    }
}

/// The pods that are to be evicted now: those that no budget binds, and of the others as many as there is
/// room for, taken from each set of pods in turn so that all shrink evenly.
fn select_evictable<'a>(
    seen: &'a Snapshot,
    tries: &EvictionAttempts,
    now: Instant,
) -> Vec<&'a RemainingPod> {
    let is_there =
        |it: &&RemainingPod| !is_going(&it.pod) && !tries.given_up.contains_key(uid(&it.pod));
    let mut room: HashMap<&str, usize> = HashMap::new();
    for (key, budget) in &seen.budgets {
        room.insert(key, pdb::disruptions_allowed(budget).max(tries.due(key, now).into()));
    }
    let mut chosen = round_robin(seen.pods.iter().filter(is_there).collect());
    chosen.retain(|left| match &left.budget {
        None => true,
        Some(key) => {
            let room = room.entry(key).or_default();
            let is_in = *room > 0;
            *room = room.saturating_sub(1);
            is_in
        }
    });
    chosen
}

/// In such an order that the sets to which pods belong take turns.
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
    /// Whether it has to be asked again before anything is evicted.
    fn need_permit(&self) -> bool {
        self.permitted.is_none_or(|at| at.elapsed() >= PERMIT_TTL)
    }

    /// Notes which budgets have no room, since when.
    fn record_room(&mut self, seen: &Snapshot) {
        let now = Instant::now();
        self.without_room.retain(|key, _| {
            seen.budgets.get(key).is_some_and(|budget| pdb::disruptions_allowed(budget) == 0)
        });
        for (key, budget) in &seen.budgets {
            if pdb::disruptions_allowed(budget) == 0 {
                self.without_room.entry(key.clone()).or_insert(now);
            }
        }
    }

    /// Notes which budgets are tried although they have no room.
    fn record_attempts(&mut self, chosen: &[&RemainingPod], seen: &Snapshot) {
        for key in chosen.iter().filter_map(|left| left.budget.as_ref()) {
            if seen.budgets.get(key).is_some_and(|budget| pdb::disruptions_allowed(budget) == 0) {
                self.without_room.insert(key.clone(), Instant::now());
            }
        }
    }

    /// Whether it is time to try a pod although its budget has no room.
    fn due(&self, key: &str, now: Instant) -> bool {
        self.without_room.get(key).is_some_and(|since| now - *since >= BLOCKED_RETRY_INTERVAL)
    }

    /// Why these pods are left, pod by pod.
    fn problems(&self, seen: &Snapshot, left: Vec<&RemainingPod>) -> Vec<String> {
        let more = left.len().saturating_sub(MAX_PROBLEMS);
        let told = left.iter().take(MAX_PROBLEMS).map(|left| self.problem(seen, left));
        let more = (more > 0).then(|| format!("and {}", plural(more, "other pod")));
        told.chain(more).collect()
    }

    fn problem(&self, seen: &Snapshot, left: &RemainingPod) -> String {
        let RemainingPod { pod, budget } = left;
        let namespace = pod.namespace.as_deref().unwrap_or_default();
        let name = pod.name.as_deref().unwrap_or_default();
        let words = |all: &HashMap<String, String>| all.get(uid(pod)).cloned();
        let budget = budget.as_ref().and_then(|key| seen.budgets.get(key));
        let why = words(&self.given_up)
            .or_else(|| {
                is_going(pod).then(|| {
                    let pod = Pod { metadata: pod.clone(), ..Pod::default() };
                    pods::termination_blockers(&pod).join("; ")
                })
            })
            .or_else(|| budget.map(|budget| pdb::reason(budget, &[])))
            .or_else(|| words(&self.refused))
            .unwrap_or_else(|| "it was not tried yet".to_owned());
        format!("pod {namespace}/{name}: {why}")
    }
}

/// Whether an eviction may still be begun.
fn may_begin(stopping: &watch::Receiver<bool>, end: Instant) -> bool {
    !*stopping.borrow() && Instant::now() < end
}

/// Whether the refusal may be another one next time. While a namespace is being deleted its pods go by
/// themselves, and evictions are refused in these words (`NamespaceLifecycle` of Kubernetes).
fn is_transient(error: &ActionError) -> bool {
    error.code.retryable() || error.detail.contains("because it is being terminated")
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

    fn remaining(name: &str, owner: &str, budget: Option<&str>) -> RemainingPod {
        let pod = serde_yaml_ng::from_str(&format!(
            "{{name: {name}, namespace: shop, uid: {name}, ownerReferences: [{{apiVersion: apps/v1, \
             kind: ReplicaSet, name: {owner}, uid: {owner}, controller: true}}]}}"
        ));
        RemainingPod { pod: pod.expect("is metadata"), budget: budget.map(str::to_owned) }
    }

    fn budget(allowed: i32) -> PodDisruptionBudget {
        serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, namespace: shop, generation: 1}}\n\
             status: {{observedGeneration: 1, currentHealthy: 2, desiredHealthy: 2, expectedPods: 3, \
             disruptionsAllowed: {allowed}}}"
        ))
        .expect("is a budget")
    }

    fn seen(pods: Vec<RemainingPod>, allowed: i32) -> Snapshot {
        let budgets = HashMap::from([("shop/web".to_owned(), budget(allowed))]);
        Snapshot { pods, budgets }
    }

    fn names(chosen: &[&RemainingPod]) -> String {
        let names = chosen.iter().map(|left| left.pod.name.clone().expect("has one"));
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn no_more_are_tried_than_have_room_and_the_free_ones_are_not_held_up() {
        let bound = Some("shop/web");
        let pods = vec![
            remaining("a", "web", bound),
            remaining("b", "web", bound),
            remaining("c", "web", bound),
            remaining("d", "job", None),
        ];
        let seen = seen(pods, 2);
        let now = Instant::now();
        assert_eq!(names(&select_evictable(&seen, &EvictionAttempts::default(), now)), "a d b");
        let without = self::seen(seen.pods, 0);
        assert_eq!(names(&select_evictable(&without, &EvictionAttempts::default(), now)), "d");
    }

    #[test]
    fn a_budget_without_room_is_tried_with_one_pod_every_five_seconds() {
        let bound = Some("shop/web");
        let seen = seen(vec![remaining("a", "web", bound), remaining("b", "web", bound)], 0);
        let mut tries = EvictionAttempts::default();
        tries.record_room(&seen);
        let now = Instant::now();
        assert!(select_evictable(&seen, &tries, now).is_empty());
        let later = now + BLOCKED_RETRY_INTERVAL;
        let chosen = select_evictable(&seen, &tries, later);
        assert_eq!(names(&chosen), "a");
        tries.record_attempts(&chosen, &seen);
        assert!(select_evictable(&seen, &tries, Instant::now()).is_empty());
    }

    #[test]
    fn sets_of_pods_take_turns() {
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
    fn what_goes_or_is_refused_for_good_is_not_tried() {
        let mut going = remaining("a", "web", None);
        going.pod.deletion_timestamp =
            serde_json::from_str(r#""2026-01-31T12:00:00Z""#).expect("is a time");
        let seen = seen(vec![going, remaining("b", "web", None), remaining("c", "web", None)], 1);
        let mut tries = EvictionAttempts::default();
        tries.given_up.insert("b".to_owned(), "may not".to_owned());
        assert_eq!(names(&select_evictable(&seen, &tries, Instant::now())), "c");
    }

    #[test]
    fn says_of_each_pod_why_it_is_left_and_of_how_many_it_does_not() {
        let pods = (0..25).map(|number| remaining(&format!("p{number}"), "web", Some("shop/web")));
        let seen = seen(pods.collect(), 0);
        let problems = EvictionAttempts::default().problems(&seen, seen.pods.iter().collect());
        assert_eq!(problems.len(), 21);
        assert!(problems[0].contains("pod shop/p0: PodDisruptionBudget 'web' allows 0"));
        assert_eq!(problems[20], "and 5 other pods");
    }
}
