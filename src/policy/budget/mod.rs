//! The budget: how often the executor may act, and whether at all. It is shared by all processes in one Lease.
//!
//! The Lease has two annotations. `action-executor.dev/usage` lists the allowed actions; it is changed by
//! compare-and-swap on the resourceVersion, so all processes together keep to the limits.
//! `action-executor.dev/stop` is the kill switch. It is read with the list. The list is changed after the claim
//! and right before the effect, only if the Lease still is as it was read, so the switch also stops requests
//! in progress.
//!
//! The budget knows no action and no request; it is given entries.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt, core::ObjectMeta};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    contract::error::{ActionError, Code},
    k8s::{
        api::{
            client::{Call, Cluster},
            error::ApiError,
        },
        rbac::PolicyRule,
    },
    policy::budget::usage::{LimitExceeded, Limits, Quota, Usage, UsageEntry},
};

pub(crate) mod usage;

/// The permissions on the Lease.
pub const RULE: PolicyRule = PolicyRule {
    api_groups: &["coordination.k8s.io"],
    resources: &["leases"],
    verbs: &["create", "get", "patch"],
};

/// The list of allowed actions.
const USAGE_ANNOTATION: &str = "action-executor.dev/usage";

/// The kill switch: any value but `false` stops all actions, and is the reason.
pub(crate) const STOP_ANNOTATION: &str = "action-executor.dev/stop";

/// The Lease as it was checked before the claim; the first attempt to charge it starts from there.
pub(crate) struct LeaseSnapshot(Option<Lease>);

/// The budget, and the limits that it enforces.
pub(crate) struct Budget<'a> {
    cluster: &'a Cluster,
    lease: LeaseRef,
    limits: Limits,
}

/// The Lease's namespace and name.
struct LeaseRef {
    namespace: String,
    name: String,
}

impl<'a> Budget<'a> {
    /// The budget with these limits, kept in the Lease of this namespace and name.
    pub(crate) fn new(limits: Limits, namespace: &str, name: &str, cluster: &'a Cluster) -> Self {
        let lease = LeaseRef { namespace: namespace.to_owned(), name: name.to_owned() };
        Budget { cluster, lease, limits }
    }

    /// Checks the budget before anything is claimed, so that a request that is refused again and again leaves
    /// no claim each time. It reserves nothing; [`Budget::reserve`] decides. `None` without limits.
    ///
    /// # Errors
    /// [`Code::Stopped`], [`Code::RateLimited`], or why the Lease could not be read.
    pub(crate) async fn check(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<Option<LeaseSnapshot>, ActionError> {
        if self.limits.are_none() {
            return Ok(None);
        }
        let lease = self.read(deadline).await?;
        self.charge(lease.as_ref(), entries)?;
        Ok(Some(LeaseSnapshot(lease)))
    }

    /// Allows all of these actions, or none, and charges them; without limits nothing is written. It starts
    /// from the snapshot, and reads the Lease again if that has changed since.
    ///
    /// # Errors
    /// [`Code::Stopped`], [`Code::RateLimited`], or why the Lease could not be read or written; then nothing
    /// may be done.
    pub(crate) async fn reserve(
        &self,
        entries: &[UsageEntry],
        snapshot: Option<LeaseSnapshot>,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        if self.limits.are_none() {
            return self.check_switch(deadline).await;
        }
        self.change(snapshot, deadline, |lease| self.charge(lease, entries)).await
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
        let charge = |lease: Option<&Lease>| {
            refuse_if_stopped(lease, &self.lease)?;
            Ok(usage_of(lease).with_unconditional(entries, &self.limits))
        };
        self.change(None, deadline, charge).await
    }

    /// Refunds the charge of an action that was not done.
    ///
    /// # Errors
    /// Why the Lease could not be written; then the action still counts.
    pub(crate) async fn refund(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        if self.limits.are_none() {
            return Ok(());
        }
        self.change(None, deadline, |lease| Ok(usage_of(lease).without(entries))).await
    }

    /// Checks the kill switch alone.
    ///
    /// # Errors
    /// [`Code::Stopped`], or why the Lease could not be read.
    pub(crate) async fn check_switch(&self, deadline: Instant) -> Result<(), ActionError> {
        refuse_if_stopped(self.read(deadline).await?.as_ref(), &self.lease)
    }

    fn charge(&self, lease: Option<&Lease>, entries: &[UsageEntry]) -> Result<Usage, ActionError> {
        charge(lease, &self.lease, entries, &self.limits)
    }

    /// Changes the list by compare-and-swap.
    async fn change(
        &self,
        mut snapshot: Option<LeaseSnapshot>,
        deadline: Instant,
        next: impl Fn(Option<&Lease>) -> Result<Usage, ActionError>,
    ) -> Result<(), ActionError> {
        let mut backoff = backoff();
        loop {
            let (lease, is_snapshot) = match snapshot.take() {
                Some(LeaseSnapshot(lease)) => (lease, true),
                None => (self.read(deadline).await?, false),
            };
            let after = next(lease.as_ref())?;
            if after == usage_of(lease.as_ref()) {
                // There is no write that would fail if the Lease had changed, so read it again.
                if is_snapshot {
                    continue;
                }
                return Ok(());
            }
            match self.write(lease.as_ref(), &after, deadline).await {
                Ok(()) => return Ok(()),
                Err((_, ApiError::Conflict(_) | ApiError::NotFound))
                    if Instant::now() < deadline => {}
                Err((verb, error)) => return Err(self.explain(verb, error).await),
            }
            sleep(backoff.next().unwrap_or_default()).await;
        }
    }

    async fn read(&self, deadline: Instant) -> Result<Option<Lease>, ActionError> {
        let LeaseRef { namespace, name } = &self.lease;
        match self.cluster.try_get(namespace, name, deadline).await {
            Ok(lease) => Ok(Some(lease)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(self.explain("get", error).await),
        }
    }

    /// Replaces the list of the Lease as it was read. A repeated write conflicts with its own first try, and
    /// then finds its entries in the list.
    async fn write(
        &self,
        lease: Option<&Lease>,
        usage: &Usage,
        deadline: Instant,
    ) -> Result<(), (&'static str, ApiError)> {
        let LeaseRef { namespace, name } = &self.lease;
        let text = usage.to_string();
        if let Some(lease) = lease {
            let patch = json!({ "metadata": {
                "resourceVersion": lease.resource_version(),
                "annotations": { USAGE_ANNOTATION: text },
            }});
            let patched = self.cluster.merge::<Lease>(namespace, name, &patch, deadline);
            return patched.await.map(drop).map_err(|error| ("patch", error));
        }
        let annotations = [(USAGE_ANNOTATION.to_owned(), text)];
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                annotations: Some(annotations.into_iter().collect()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        let created = self.cluster.create(namespace, &lease, deadline);
        created.await.map(drop).map_err(|error| ("create", error))
    }

    async fn explain(&self, verb: &'static str, error: ApiError) -> ActionError {
        let call = Call::of::<Lease>(verb, &self.lease.namespace, Some(&self.lease.name));
        self.cluster.explain(&call, error).await
    }
}

/// The list with these entries, unless the kill switch or a limit refuses them.
fn charge(
    lease: Option<&Lease>,
    lease_ref: &LeaseRef,
    entries: &[UsageEntry],
    limits: &Limits,
) -> Result<Usage, ActionError> {
    refuse_if_stopped(lease, lease_ref)?;
    usage_of(lease).with(entries, limits).map_err(|limit| rate_limited(limit, limits.cooldown))
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
            (format!("the namespace has had its {}", of(quota)), "budget.per_namespace", wait)
        }
        LimitExceeded::Cluster(quota, wait) => {
            (format!("the cluster has had its {}", of(quota)), "budget.cluster", wait)
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
    let text = lease.and_then(|lease| lease.annotations().get(USAGE_ANNOTATION));
    text.map(|text| Usage::parse(text)).unwrap_or_default()
}

/// Pauses between tries of a compare-and-swap: short, since whenever one process loses another one wins.
fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
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
        [UsageEntry::new(id, &target, &target, at)]
    }

    fn charged(lease: Option<&Lease>, id: &str, seconds: i64) -> Result<Usage, ActionError> {
        let lease_ref = LeaseRef { namespace: "ops".to_owned(), name: "limits".to_owned() };
        let cluster = Some(Quota { actions: 2, within: Duration::from_secs(600) });
        let limits = Limits { cooldown: Duration::from_secs(60), cluster, ..Limits::default() };
        charge(lease, &lease_ref, &entry(id, seconds), &limits)
    }

    #[test]
    fn the_kill_switch_refuses_before_the_limits() {
        for (annotations, expected) in [
            (&[][..], Ok(())),
            (&[(STOP_ANNOTATION, "false")], Ok(())),
            (&[(STOP_ANNOTATION, "true")], Err(Code::Stopped)),
            (&[(STOP_ANNOTATION, "")], Err(Code::Stopped)),
            (&[(STOP_ANNOTATION, "incident 7"), (USAGE_ANNOTATION, "junk")], Err(Code::Stopped)),
        ] {
            let charged = charged(Some(&lease(annotations)), "a", 0);
            assert_eq!(charged.map(drop).map_err(|error| error.code), expected, "{annotations:?}");
        }
        let stopped = charged(Some(&lease(&[(STOP_ANNOTATION, "incident\n7")])), "a", 0);
        let error = stopped.expect_err("is stopped");
        assert!(error.detail.ends_with("Lease ops/limits stops all actions: incident7"), "{error}");
    }

    #[test]
    fn a_lease_is_charged_until_a_limit_refuses() {
        let first = charged(None, "a", 0).expect("has no Lease yet");
        let lease = lease(&[(USAGE_ANNOTATION, &first.to_string())]);
        for (id, seconds, expected) in [
            ("a", 20, None),
            ("b", 20, Some(("less than 60 s ago", "cooldown_seconds", 40))),
            ("b", 60, None),
        ] {
            let charged = charged(Some(&lease), id, seconds);
            let Some((detail, field, wait)) = expected else {
                assert!(charged.is_ok(), "{id} {seconds}");
                continue;
            };
            let error = charged.expect_err("is refused");
            assert_eq!((error.code, error.retry_after_seconds()), (Code::RateLimited, Some(wait)));
            assert!(error.detail.contains(detail), "{error}");
            assert!(error.hint.as_ref().is_some_and(|hint| hint.contains(field)), "{error:?}");
        }
    }
}
