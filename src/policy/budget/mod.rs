//! How often the executor may act, and whether at all: held in one Lease for all processes.
//!
//! The Lease has two annotations. `action-executor.dev/spent` lists what was let through; it is
//! changed by compare-and-swap on the resourceVersion, so however many processes there are, together
//! they let through what the limits allow. `action-executor.dev/stop` is the kill switch: it is read
//! with the list, and since the list is changed after the claim and right before the effect, only if
//! the Lease still is as it was read, it also stops what is under way.
//!
//! This room knows no action and no request; it is given an entry and keeps the books.

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
    policy::{
        Policy,
        budget::usage::{LimitExceeded, Limits, Quota, Usage, UsageEntry},
    },
};

pub mod usage;

/// What RBAC must allow on the Lease.
pub const RULE: PolicyRule = PolicyRule {
    api_groups: &["coordination.k8s.io"],
    resources: &["leases"],
    verbs: &["create", "get", "patch"],
};

/// The list of what was spent.
const USAGE_ANNOTATION: &str = "action-executor.dev/spent";

/// The kill switch: any value but `false` stops all actions, and says why.
pub(crate) const STOP_ANNOTATION: &str = "action-executor.dev/stop";

/// The Lease as it was looked at before the claim; the first try to charge it goes on from there.
pub(crate) struct LeaseSnapshot(Option<Lease>);

/// The books, kept in one Lease.
pub(crate) struct Budget<'a> {
    cluster: &'a Cluster,
    namespace: String,
    name: String,
    limits: Limits,
}

impl<'a> Budget<'a> {
    /// The budget that this policy sets, kept where it says.
    pub(crate) fn of(policy: &Policy, cluster: &'a Cluster) -> Self {
        let namespace = policy.state.namespace.as_deref();
        Budget {
            cluster,
            namespace: namespace.unwrap_or_else(|| cluster.default_namespace()).to_owned(),
            name: policy.state.name.to_string(),
            limits: policy.limits(),
        }
    }

    /// Looks whether there is room before anything is claimed, so that what is refused again and again
    /// leaves no claim each time. It is no promise: what counts is [`Budget::reserve`]. `None` where
    /// nothing is limited.
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
        self.charged(lease.as_ref(), entries)?;
        Ok(Some(LeaseSnapshot(lease)))
    }

    /// Lets all of these actions through, or none of them, and writes them down; where nothing is limited, nothing is written. Begins
    /// with what was seen at a glance: if the Lease has changed since, it is read again.
    ///
    /// # Errors
    /// [`Code::Stopped`], [`Code::RateLimited`], or why the Lease could not be read or written; then
    /// nothing may be done.
    pub(crate) async fn reserve(
        &self,
        entries: &[UsageEntry],
        glance: Option<LeaseSnapshot>,
        deadline: Instant,
    ) -> Result<(), ActionError> {
        if self.limits.are_none() {
            return self.check_switch(deadline).await;
        }
        self.change(glance, deadline, |lease| self.charged(lease, entries)).await
    }

    /// Writes these actions down whether there is room or not, for what must not wait: it takes back what
    /// was let through before. The kill switch holds for it too.
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
        let noted = |lease: Option<&Lease>| {
            lease.map_or(Ok(()), |lease| self.refuse_if_stopped(lease))?;
            Ok(effects_on(lease).with_unconditional(entries, &self.limits))
        };
        self.change(None, deadline, noted).await
    }

    /// The list with these entries, if nothing is against them.
    fn charged(&self, lease: Option<&Lease>, entries: &[UsageEntry]) -> Result<Usage, ActionError> {
        lease.map_or(Ok(()), |lease| self.refuse_if_stopped(lease))?;
        let spent = effects_on(lease).with(entries, &self.limits);
        spent.map_err(|full| self.full(full))
    }

    /// Gives back what was reserved for an action that was provably not done.
    ///
    /// # Errors
    /// Why the Lease could not be written; then the action goes on counting.
    pub(crate) async fn refund(
        &self,
        entries: &[UsageEntry],
        deadline: Instant,
    ) -> Result<(), ActionError> {
        if self.limits.are_none() {
            return Ok(());
        }
        self.change(None, deadline, |lease| Ok(effects_on(lease).without(entries))).await
    }

    /// Looks at the kill switch alone.
    ///
    /// # Errors
    /// [`Code::Stopped`], or why the Lease could not be read.
    pub(crate) async fn check_switch(&self, deadline: Instant) -> Result<(), ActionError> {
        match self.read(deadline).await? {
            Some(lease) => self.refuse_if_stopped(&lease),
            None => Ok(()),
        }
    }

    /// Changes the list by compare-and-swap until it holds.
    async fn change(
        &self,
        mut glance: Option<LeaseSnapshot>,
        deadline: Instant,
        next: impl Fn(Option<&Lease>) -> Result<Usage, ActionError>,
    ) -> Result<(), ActionError> {
        let mut pauses = pauses();
        loop {
            let (lease, seen_before) = match glance.take() {
                Some(LeaseSnapshot(lease)) => (lease, true),
                None => (self.read(deadline).await?, false),
            };
            let after = next(lease.as_ref())?;
            if after == effects_on(lease.as_ref()) {
                // There is nothing to write, by which it would be noticed that the Lease has changed.
                if seen_before {
                    continue;
                }
                return Ok(());
            }
            match self.write(lease.as_ref(), &after, deadline).await {
                Ok(()) => return Ok(()),
                Err((_, ApiError::Conflict(_) | ApiError::NotFound))
                    if Instant::now() < deadline => {}
                Err((verb, fault)) => return Err(self.explain(verb, fault).await),
            }
            sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    async fn read(&self, deadline: Instant) -> Result<Option<Lease>, ActionError> {
        match self.cluster.try_get(&self.namespace, &self.name, deadline).await {
            Ok(lease) => Ok(Some(lease)),
            Err(ApiError::NotFound) => Ok(None),
            Err(fault) => Err(self.explain("get", fault).await),
        }
    }

    /// Writes the list over the Lease as it was read. A repeated write meets its own first try as a
    /// conflict, and then finds its entry there.
    async fn write(
        &self,
        lease: Option<&Lease>,
        spent: &Usage,
        deadline: Instant,
    ) -> Result<(), (&'static str, ApiError)> {
        let text = spent.to_string();
        if let Some(lease) = lease {
            let patch = json!({ "metadata": {
                "resourceVersion": lease.resource_version(),
                "annotations": { USAGE_ANNOTATION: text },
            }});
            let patched =
                self.cluster.merge::<Lease>(&self.namespace, &self.name, &patch, deadline);
            return patched.await.map(drop).map_err(|fault| ("patch", fault));
        }
        let annotations = [(USAGE_ANNOTATION.to_owned(), text)];
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                annotations: Some(annotations.into_iter().collect()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        let created = self.cluster.create(&self.namespace, &lease, deadline);
        created.await.map(drop).map_err(|fault| ("create", fault))
    }

    fn refuse_if_stopped(&self, lease: &Lease) -> Result<(), ActionError> {
        let Some(why) = lease.annotations().get(STOP_ANNOTATION).filter(|value| *value != "false")
        else {
            return Ok(());
        };
        let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
        let (namespace, name) = (&self.namespace, &self.name);
        let detail =
            format!("all actions are stopped by the switch on Lease {namespace}/{name}: {why}");
        Err(ActionError::new(Code::Stopped, detail)
            .with_hint(format!(
                "`kubectl -n {namespace} annotate lease {name} {STOP_ANNOTATION}-` lets them go on"
            ))
            .with_retry_after(Some(Duration::from_secs(60))))
    }

    fn full(&self, full: LimitExceeded) -> ActionError {
        let of =
            |quota: Quota| format!("{} actions in {} s", quota.actions, quota.within.as_secs());
        let (detail, field, wait) = match full {
            LimitExceeded::Cooldown(wait) => {
                let cooldown = self.limits.cooldown.as_secs();
                let detail = format!("the target was acted upon less than {cooldown} s ago");
                (detail, "cooldown_seconds", wait)
            }
            LimitExceeded::Namespace(quota, wait) => {
                (format!("the namespace has had its {}", of(quota)), "budget.per_namespace", wait)
            }
            LimitExceeded::Cluster(quota, wait) => {
                (format!("the cluster has had its {}", of(quota)), "budget.cluster", wait)
            }
            LimitExceeded::List(wait) => {
                ("too many actions to keep count of".to_owned(), "budget.cluster", wait)
            }
        };
        ActionError::new(Code::RateLimited, detail)
            .with_hint(format!("wait; the limit is {field} in the policy"))
            .with_retry_after(Some(wait))
    }

    async fn explain(&self, verb: &'static str, fault: ApiError) -> ActionError {
        let call = Call::of::<Lease>(verb, &self.namespace, Some(&self.name));
        self.cluster.explain(&call, fault).await
    }
}

fn effects_on(lease: Option<&Lease>) -> Usage {
    let text = lease.and_then(|lease| lease.annotations().get(USAGE_ANNOTATION));
    text.map(|text| Usage::parse(text)).unwrap_or_default()
}

/// Between two tries of a compare-and-swap: short, since each loser lost to a winner.
fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_millis(200))
        .with_jitter()
        .without_max_times()
        .build()
}
