//! The budget: how often the executor may act, and whether at all. It is shared by all processes in one Lease.
//!
//! The Lease's annotations have an entry for each allowed action (`usage.action-executor.dev/...`), and
//! `action-executor.dev/stop`, the kill switch. An action writes its entry first, in one patch that conflicts with
//! no other, and checks what the API server returns: all entries that were written before its own. So all
//! processes together allow no more actions than the limits, and no action is retried because others write too. An
//! entry that is refused is removed. The switch is in the same response, so it also stops requests in progress.
//!
//! After the effect its time is added to the entry: a cooldown begins with the effect. A process that crashes between
//! leaves an entry that counts until it expires, as if the effect came as late as it may. The request's next attempt
//! writes one of its own; the two are counted once.
//!
//! The budget knows no action and no request; it is given entries.

use std::{collections::BTreeMap, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt, core::ObjectMeta};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::{
            client::{ApiCall, CHECK_PROXIES, Cluster},
            error::ApiError,
        },
        rbac::PolicyRule,
    },
    policy::budget::usage::{BudgetLimits, LimitExceeded, Quota, Usage, UsageEntry},
};

#[cfg(test)]
mod model;
pub(crate) mod usage;

/// The permissions on the Lease.
pub const RULE: PolicyRule = PolicyRule {
    api_groups: &["coordination.k8s.io"],
    resources: &["leases"],
    verbs: &["create", "get", "patch"],
};

/// The kill switch: any value but `false` stops all actions, and is the reason.
pub(crate) const STOP_ANNOTATION: &str = "action-executor.dev/stop";

/// How often a charge is retried because others charge at the same time.
const MAX_RETRIES: usize = 3;

/// Time to remove what may have been written.
const REFUND_TIMEOUT: Duration = Duration::from_millis(800);

/// The Lease as it was read before the claim; `None` if it does not exist.
pub(crate) struct LeaseSnapshot(Option<Lease>);

/// The budget, and the limits that it enforces.
pub(crate) struct Budget<'a> {
    cluster: &'a Cluster,
    lease: LeaseRef,
    limits: BudgetLimits,
}

/// The Lease's namespace and name.
struct LeaseRef {
    namespace: String,
    name: String,
}

impl<'a> Budget<'a> {
    /// The budget with these limits, kept in the Lease of this namespace and name.
    pub(crate) fn new(
        limits: BudgetLimits,
        namespace: &str,
        name: &str,
        cluster: &'a Cluster,
    ) -> Self {
        let lease = LeaseRef { namespace: namespace.to_owned(), name: name.to_owned() };
        Budget { cluster, lease, limits }
    }

    /// Reads the Lease, if there are limits.
    ///
    /// # Errors
    /// Why it could not be read.
    pub(crate) async fn snapshot(
        &self,
        deadline: Instant,
    ) -> Result<Option<LeaseSnapshot>, ActionError> {
        if self.limits.are_none() {
            return Ok(None);
        }
        self.read(deadline).await.map(|lease| Some(LeaseSnapshot(lease)))
    }

    /// Checks the budget before anything is written, so that a request that is refused repeatedly leaves
    /// nothing each time. It reserves nothing; [`Budget::reserve`] decides.
    ///
    /// # Errors
    /// [`Code::Stopped`] or [`Code::RateLimited`].
    pub(crate) fn check(
        &self,
        snapshot: Option<&LeaseSnapshot>,
        entries: &[UsageEntry],
    ) -> Result<(), ActionError> {
        let lease = |LeaseSnapshot(lease): &LeaseSnapshot| self.judge(lease.as_ref(), entries);
        snapshot.map_or(Ok(()), lease)
    }

    /// Allows all of these actions, or none, and charges them; without limits nothing is written. Returns the
    /// entries as they were written.
    ///
    /// # Errors
    /// [`Code::Stopped`], [`Code::RateLimited`], or why the Lease could not be read or written; then nothing
    /// may be done.
    pub(crate) async fn reserve(
        &self,
        entries: &[UsageEntry],
        snapshot: Option<&LeaseSnapshot>,
        deadline: Instant,
    ) -> Result<Vec<UsageEntry>, ActionError> {
        let mut entries = entries.to_vec();
        if self.limits.are_none() {
            return self.check_switch(deadline).await.map(|()| entries);
        }
        let mut pauses = backoff().take(MAX_RETRIES);
        loop {
            let written = self.add(&entries, snapshot, deadline).await;
            let judged = written.and_then(|lease| {
                check_written(&lease, &self.lease, &entries)?;
                self.judge(Some(&lease), &entries)
            });
            let Err(refusal) = judged else { return Ok(entries) };
            // What was not answered may have been written.
            let removed =
                self.refund(&entries, deadline.max(Instant::now() + REFUND_TIMEOUT)).await;
            let pause = pauses.next().filter(|pause| Instant::now() + *pause < deadline);
            let (Code::RateLimited, Ok(()), Some(pause)) = (refusal.code, removed, pause) else {
                return Err(refusal);
            };
            // Some of the entries before ours are refused, too, and removed soon: then the limits may allow it.
            sleep(pause).await;
            entries = entries.iter().map(UsageEntry::renewed).collect();
        }
    }

    /// Charges these actions whatever the limits, for a rollback of an allowed action, which must not wait.
    /// The kill switch holds for it too.
    ///
    /// # Errors
    /// [`Code::Stopped`], or why the Lease could not be read or written; then nothing may be done.
    pub(crate) async fn record_unconditionally(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        if self.limits.are_none() {
            return self.check_switch(deadline).await;
        }
        let lease = self.add(entries, None, deadline).await?;
        let stopped = refuse_if_stopped(Some(&lease), &self.lease);
        if stopped.is_err() {
            self.write(&removal(entries), deadline).await?;
        }
        stopped
    }

    /// Adds the time of their effects to these entries. Until then each counts as if its effect came as late as it
    /// may.
    ///
    /// # Errors
    /// Why the Lease could not be written.
    pub(crate) async fn record_effect(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        let now = self.cluster.now();
        let made = entries.iter().map(|entry| entry.after_effect(now).annotation());
        self.change(&made.map(|(key, value)| (key, Some(value))).collect(), deadline).await
    }

    /// Refunds the charge of actions that were not done.
    ///
    /// # Errors
    /// Why the Lease could not be written; then the actions still count.
    pub(crate) async fn refund(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        self.change(&removal(entries), deadline).await
    }

    /// Changes entries, where there are any.
    async fn change(&self, entries: &Annotations, deadline: Instant) -> Result<(), ActionError> {
        if self.limits.are_none() || entries.is_empty() {
            return Ok(());
        }
        self.write(entries, deadline).await.map(drop)
    }

    /// Checks the kill switch alone.
    ///
    /// # Errors
    /// [`Code::Stopped`], or why the Lease could not be read.
    pub(crate) async fn check_switch(&self, deadline: Instant) -> Result<(), ActionError> {
        refuse_if_stopped(self.read(deadline).await?.as_ref(), &self.lease)
    }

    fn judge(&self, lease: Option<&Lease>, entries: &[UsageEntry]) -> Result<(), ActionError> {
        judge(lease, &self.lease, entries, &self.limits)
    }

    /// Adds these entries, and removes those of the snapshot that count no more.
    async fn add(
        &self,
        entries: &[UsageEntry],
        snapshot: Option<&LeaseSnapshot>,
        deadline: Instant,
    ) -> Result<Lease, ActionError> {
        let annotations = self.addition(entries, snapshot);
        if let Some(LeaseSnapshot(None)) = snapshot {
            match self.create(&annotations, deadline).await {
                Ok(lease) => return Ok(lease),
                // Another process has created it.
                Err(ApiError::Conflict(_)) => {}
                Err(error) => return Err(self.explain("create", error).await),
            }
        }
        self.write(&annotations, deadline).await
    }

    fn addition(&self, entries: &[UsageEntry], snapshot: Option<&LeaseSnapshot>) -> Annotations {
        let mut annotations = Annotations::new();
        if let (Some(LeaseSnapshot(lease)), Some(entry)) = (snapshot, entries.first()) {
            let expired = usage_of(lease.as_ref()).expired(&self.limits, entry.at());
            annotations.extend(expired.into_iter().map(|key| (key, None)));
        }
        annotations
            .extend(entries.iter().map(UsageEntry::annotation).map(|(key, it)| (key, Some(it))));
        annotations
    }

    async fn read(&self, deadline: Instant) -> Result<Option<Lease>, ActionError> {
        self.cluster.get_opt(&self.lease.namespace, &self.lease.name, deadline).await
    }

    /// Sets or removes these annotations, and returns the Lease as the API server wrote it. Repeated, it does the
    /// same, and it conflicts with no other writer.
    async fn write(
        &self,
        annotations: &Annotations,
        deadline: Instant,
    ) -> Result<Lease, ActionError> {
        let LeaseRef { namespace, name } = &self.lease;
        let patch = json!({ "metadata": { "annotations": annotations } });
        let mut backoff = backoff();
        // Concurrent writes of one object conflict in the API server, which repeats each of them.
        let _permit = timeout_at(deadline, self.cluster.contended_writes().acquire()).await;
        loop {
            let patched = self.cluster.merge::<Lease>(namespace, name, &patch, deadline).await;
            let (verb, error) = match patched {
                Ok(lease) => return Ok(lease),
                Err(ApiError::NotFound) => match self.create(annotations, deadline).await {
                    Ok(lease) => return Ok(lease),
                    // Another process has created it.
                    Err(error) => ("create", error),
                },
                Err(error) => ("patch", error),
            };
            let pause = backoff.next().unwrap_or_default();
            if !matches!(error, ApiError::Conflict(_)) || Instant::now() + pause >= deadline {
                return Err(self.explain(verb, error).await);
            }
            sleep(pause).await;
        }
    }

    async fn create(
        &self,
        annotations: &Annotations,
        deadline: Instant,
    ) -> Result<Lease, ApiError> {
        let set = annotations.iter().filter_map(|(key, it)| Some((key.clone(), it.clone()?)));
        let metadata = ObjectMeta {
            name: Some(self.lease.name.clone()),
            annotations: Some(set.collect()),
            ..ObjectMeta::default()
        };
        let lease = Lease { metadata, ..Lease::default() };
        self.cluster.create(&self.lease.namespace, &lease, deadline).await
    }

    async fn explain(&self, verb: &'static str, error: ApiError) -> ActionError {
        let call = ApiCall::of::<Lease>(verb, &self.lease.namespace, Some(&self.lease.name));
        self.cluster.explain(&call, error).await
    }
}

/// Checks that the response shows these entries, whatever its status code.
fn check_written(
    lease: &Lease,
    lease_ref: &LeaseRef,
    entries: &[UsageEntry],
) -> Result<(), ActionError> {
    let annotations = lease.annotations();
    if entries.iter().all(|entry| annotations.contains_key(&entry.annotation().0)) {
        return Ok(());
    }
    let LeaseRef { namespace, name } = lease_ref;
    let detail = format!(
        "patch Lease {namespace}/{name}: the response does not show the charge; nothing was done"
    );
    Err(ActionError::new(Code::ClusterUnavailable, detail)
        .with_hint(CHECK_PROXIES)
        .with_retry_after(Some(Duration::from_secs(5))))
}

/// Annotations to set, or to remove (`None`).
type Annotations = BTreeMap<String, Option<String>>;

/// The annotations that remove these entries.
fn removal(entries: &[UsageEntry]) -> Annotations {
    entries.iter().map(|entry| (entry.annotation().0, None)).collect()
}

/// Whether the kill switch and the limits allow these entries.
fn judge(
    lease: Option<&Lease>,
    lease_ref: &LeaseRef,
    entries: &[UsageEntry],
    limits: &BudgetLimits,
) -> Result<(), ActionError> {
    refuse_if_stopped(lease, lease_ref)?;
    let usage = usage_of(lease);
    usage.check(entries, limits).map_err(|limit| {
        rate_limited(limit, limits.cooldown).last_request(usage.last_request(entries))
    })
}

fn refuse_if_stopped(lease: Option<&Lease>, lease_ref: &LeaseRef) -> Result<(), ActionError> {
    let annotation = lease.and_then(|lease| lease.annotations().get(STOP_ANNOTATION));
    let Some(reason) = annotation.filter(|value| *value != "false") else { return Ok(()) };
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(200).collect();
    let LeaseRef { namespace, name } = lease_ref;
    let detail = format!("the kill switch on Lease {namespace}/{name} stops all actions: {reason}");
    Err(ActionError::new(Code::Stopped, detail)
        .with_hint(format!(
            "`kubectl -n {namespace} annotate lease {name} {STOP_ANNOTATION}-` allows actions again"
        ))
        .with_retry_after(Some(Duration::from_secs(60))))
}

fn rate_limited(limit: LimitExceeded, cooldown: Duration) -> ActionError {
    let of = |quota: Quota| format!("{} actions in {} s", quota.actions, quota.within.as_secs());
    let (detail, field, wait) = match limit {
        LimitExceeded::Cooldown(wait) => {
            let detail =
                format!("the last action on the target was less than {} s ago", cooldown.as_secs());
            (detail, "cooldown_seconds", wait)
        }
        LimitExceeded::Namespace(quota, wait) => {
            (format!("the namespace has used its {}", of(quota)), "budget.per_namespace", wait)
        }
        LimitExceeded::Cluster(quota, wait) => {
            (format!("the cluster has used its {}", of(quota)), "budget.cluster", wait)
        }
        LimitExceeded::List(wait) => {
            ("the budget's list of actions is full".to_owned(), "budget.cluster", wait)
        }
    };
    ActionError::new(Code::RateLimited, detail)
        .with_hint(format!("wait; the limit is {field} in the policy"))
        .with_retry_after(Some(wait))
}

fn usage_of(lease: Option<&Lease>) -> Usage {
    lease.map(|lease| Usage::parse(lease.annotations())).unwrap_or_default()
}

/// Pauses until others have removed their refused entries.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_millis(200))
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::contract::response::Target;

    fn lease(annotations: &[(&str, &str)]) -> Lease {
        let annotations =
            annotations.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let metadata =
            ObjectMeta { annotations: Some(annotations.collect()), ..ObjectMeta::default() };
        Lease { metadata, ..Lease::default() }
    }

    fn entry(id: &str, seconds: i64) -> [UsageEntry; 1] {
        let target = Target::named("apps/v1", "Deployment", "shop", "web");
        let at = DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("is a time");
        [UsageEntry::new(id, &target, at)]
    }

    fn judged(lease: Option<&Lease>, id: &str, seconds: i64) -> Result<(), ActionError> {
        let lease_ref = LeaseRef { namespace: "ops".to_owned(), name: "limits".to_owned() };
        let cluster = Some(Quota { actions: 2, within: Duration::from_secs(600) });
        let limits =
            BudgetLimits { cooldown: Duration::from_secs(60), cluster, ..BudgetLimits::default() };
        judge(lease, &lease_ref, &entry(id, seconds), &limits)
    }

    #[test]
    fn the_kill_switch_refuses_before_the_limits() {
        for (annotations, expected) in [
            (&[][..], Ok(())),
            (&[(STOP_ANNOTATION, "false")], Ok(())),
            (&[(STOP_ANNOTATION, "true")], Err(Code::Stopped)),
            (&[(STOP_ANNOTATION, "")], Err(Code::Stopped)),
            (
                &[(STOP_ANNOTATION, "incident 7"), ("usage.action-executor.dev/x", "junk")],
                Err(Code::Stopped),
            ),
        ] {
            let judged = judged(Some(&lease(annotations)), "a", 0);
            assert_eq!(judged.map_err(|error| error.code), expected, "{annotations:?}");
        }
        let stopped = judged(Some(&lease(&[(STOP_ANNOTATION, "incident\n7")])), "a", 0);
        let error = stopped.expect_err("is stopped");
        assert!(error.detail.ends_with("Lease ops/limits stops all actions: incident7"), "{error}");
    }

    #[test]
    fn a_limit_refuses_with_its_name_and_the_time_to_wait() {
        let [first] = entry("a", 0);
        let (key, value) = first.after_effect(first.at()).annotation();
        let lease = lease(&[(&key, &value)]);
        for (id, seconds, expected) in [
            ("a", 20, Some(("less than 60 s ago", "cooldown_seconds", 41))),
            ("b", 20, Some(("less than 60 s ago", "cooldown_seconds", 41))),
            ("b", 61, None),
        ] {
            let judged = judged(Some(&lease), id, seconds);
            let Some((detail, field, wait)) = expected else {
                assert!(judged.is_ok(), "{id} {seconds}");
                continue;
            };
            let error = judged.expect_err("is refused");
            assert_eq!((error.code, error.retry_after_seconds()), (Code::RateLimited, Some(wait)));
            assert!(error.detail.contains(detail), "{error}");
            assert!(error.hint.as_ref().is_some_and(|hint| hint.contains(field)), "{error:?}");
        }
    }
}
