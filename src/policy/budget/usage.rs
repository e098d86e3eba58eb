//! The usage of a budget, and whether it allows one more action: pure arithmetic on a short list.
//!
//! The list is one annotation of a Lease, shared by all processes. Its times are the API server's, so a wrong
//! clock in one process does not matter. An entry is written before its effect, and the effect follows within
//! [`EFFECT_WINDOW`]. Each time window is extended by that much, so that no window ever has more effects than
//! its limit.

use std::{fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use crate::contract::{digest::sha256, response::Target};

/// The longest time between an entry and its effect.
pub const EFFECT_WINDOW: Duration = Duration::from_secs(30);

/// The maximum number of entries; a full list refuses further actions until some entries expire. An entry
/// has 50 bytes, and the annotations of an object at most 256 KiB.
const MAX_ENTRIES: usize = 4000;

/// A number of actions in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The number of actions.
    pub actions: usize,
    /// The time.
    pub within: Duration,
}

/// All limits on the rate of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The time between two actions on one target.
    pub cooldown: Duration,
    /// Per namespace.
    pub per_namespace: Option<Quota>,
    /// For the whole cluster.
    pub cluster: Option<Quota>,
}

impl Limits {
    /// Whether there is no limit.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Limits::default()
    }

    /// How long an entry counts.
    fn retention(&self) -> Duration {
        let quotas = [self.per_namespace, self.cluster].into_iter().flatten();
        quotas.map(|quota| quota.within + EFFECT_WINDOW).fold(self.cooldown, Duration::max)
    }
}

/// One action that was allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEntry {
    /// The request, so that a retry is not counted twice.
    request: String,
    target: String,
    namespace: String,
    at: DateTime<Utc>,
}

impl UsageEntry {
    /// The entry for an action on `target`, at this time of the API server. `request_target` is the request's
    /// own target, which differs for a pod of a drained node.
    #[must_use]
    pub fn new(id: &str, request_target: &Target, target: &Target, at: DateTime<Utc>) -> Self {
        let Target { namespace, kind, name, .. } = target;
        UsageEntry {
            request: short_digest(&format!("{}/{id}", request_target.namespace)),
            target: short_digest(&format!("{kind}/{namespace}/{name}")),
            namespace: short_digest(namespace),
            at,
        }
    }
}

/// Enough of a digest for a few thousand entries.
fn short_digest(text: &str) -> String {
    sha256(text.as_bytes())[..12].to_owned()
}

/// The limit that is exceeded, and how long it takes until it allows one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// The target's cooldown.
    Cooldown(Duration),
    /// The namespace's quota.
    Namespace(Quota, Duration),
    /// The cluster's quota.
    Cluster(Quota, Duration),
    /// The length of the list.
    List(Duration),
}

/// The actions that were allowed and still count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(Vec<UsageEntry>);

impl Usage {
    /// Parses the list; malformed entries are ignored.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let entry = |word: &str| {
            let mut parts = word.split('.');
            Some(UsageEntry {
                request: parts.next()?.to_owned(),
                target: parts.next()?.to_owned(),
                namespace: parts.next()?.to_owned(),
                at: DateTime::from_timestamp(parts.next()?.parse().ok()?, 0)?,
            })
        };
        Usage(text.split(' ').filter_map(entry).collect())
    }

    /// The list with the entries of a request, if the limits allow all of them. They replace earlier entries
    /// of the same request.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub fn with(&self, entries: &[UsageEntry], limits: &Limits) -> Result<Usage, LimitExceeded> {
        let mut usage = self.without(entries);
        for entry in entries {
            usage.0.retain(|it| age(it, entry.at) < limits.retention());
            usage.check(entry, limits)?;
            usage.0.push(entry.clone());
        }
        Ok(usage)
    }

    /// The list with the entries of a request, whatever the limits; only a full list stays as it is.
    #[must_use]
    pub fn with_unconditional(&self, entries: &[UsageEntry], limits: &Limits) -> Usage {
        let mut usage = self.without(entries);
        for entry in entries {
            usage.0.retain(|it| age(it, entry.at) < limits.retention());
            if usage.0.len() < MAX_ENTRIES {
                usage.0.push(entry.clone());
            }
        }
        usage
    }

    /// The list without the entries of the same request.
    #[must_use]
    pub fn without(&self, entries: &[UsageEntry]) -> Usage {
        let is_same_request =
            |it: &&UsageEntry| entries.iter().any(|entry| entry.request == it.request);
        Usage(self.0.iter().filter(|it| !is_same_request(it)).cloned().collect())
    }

    fn check(&self, entry: &UsageEntry, limits: &Limits) -> Result<(), LimitExceeded> {
        let now = entry.at;
        let same_target = self.0.iter().filter(|it| it.target == entry.target);
        if let Some(wait) = wait_for_slot(same_target, 1, limits.cooldown, now) {
            return Err(LimitExceeded::Cooldown(wait));
        }
        if let Some(quota) = limits.per_namespace {
            let here = self.0.iter().filter(|it| it.namespace == entry.namespace);
            if let Some(wait) =
                wait_for_slot(here, quota.actions, quota.within + EFFECT_WINDOW, now)
            {
                return Err(LimitExceeded::Namespace(quota, wait));
            }
        }
        if let Some(quota) = limits.cluster
            && let Some(wait) =
                wait_for_slot(self.0.iter(), quota.actions, quota.within + EFFECT_WINDOW, now)
        {
            return Err(LimitExceeded::Cluster(quota, wait));
        }
        match wait_for_slot(self.0.iter(), MAX_ENTRIES, limits.retention(), now) {
            Some(wait) => Err(LimitExceeded::List(wait)),
            None => Ok(()),
        }
    }
}

/// How long it takes until fewer than `limit` of these entries are younger than `window`; `None` if that is
/// so now.
fn wait_for_slot<'a>(
    entries: impl Iterator<Item = &'a UsageEntry>,
    limit: usize,
    window: Duration,
    now: DateTime<Utc>,
) -> Option<Duration> {
    let mut ages: Vec<_> = entries.map(|it| age(it, now)).filter(|age| *age < window).collect();
    if ages.len() < limit {
        return None;
    }
    ages.sort_unstable();
    // The youngest entry that has to expire.
    ages.get(limit - 1).map(|age| window.saturating_sub(*age))
}

/// The age of an entry; an entry from the future (another API server's clock) has none.
fn age(entry: &UsageEntry, now: DateTime<Utc>) -> Duration {
    (now - entry.at).max(TimeDelta::zero()).to_std().unwrap_or_default()
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, UsageEntry { request, target, namespace, at }) in self.0.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{request}.{target}.{namespace}.{}", at.timestamp())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("is a time")
    }

    fn entry(id: &str, namespace: &str, name: &str, seconds: i64) -> [UsageEntry; 1] {
        let target = Target {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            resource_version: None,
        };
        [UsageEntry::new(id, &target, &target, at(seconds))]
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn two_in_a_minute() -> Option<Quota> {
        Some(Quota { actions: 2, within: MINUTE })
    }

    #[test]
    fn a_list_is_parsed_as_it_is_written() {
        let usage = Usage::default()
            .with(&entry("a", "shop", "web", 0), &Limits { cooldown: MINUTE, ..Limits::default() })
            .expect("is allowed");
        assert_eq!(Usage::parse(&usage.to_string()), usage);
        assert_eq!(Usage::parse(""), Usage::default());
        assert_eq!(Usage::parse("junk a.b.c.x"), Usage::default());
    }

    #[test]
    fn a_target_is_refused_during_its_cooldown() {
        let limits = Limits { cooldown: MINUTE, ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "web", 0), &limits).expect("is allowed");
        let refused = usage.with(&entry("b", "n", "web", 20), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(40))));
        assert!(usage.with(&entry("b", "n", "api", 20), &limits).is_ok());
        assert!(usage.with(&entry("b", "n", "web", 60), &limits).is_ok());
    }

    #[test]
    fn an_unconditional_entry_is_added_over_the_limit_and_counts() {
        let quota = Some(Quota { actions: 1, within: MINUTE });
        let limits = Limits { cooldown: MINUTE, cluster: quota, ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "web", 0), &limits).expect("is allowed");
        let back = entry("a/rollback", "n", "web", 20);
        assert!(usage.with(&back, &limits).is_err());
        let over = usage.with_unconditional(&back, &limits);
        assert_eq!(over.to_string().split(' ').count(), 2);
        assert_eq!(over.with_unconditional(&back, &limits), over);
        // It counts for all that comes after it.
        let refused = over.with(&entry("b", "n", "web", 61), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(19))));
    }

    #[test]
    fn each_namespace_has_its_own_quota() {
        let limits = Limits { per_namespace: two_in_a_minute(), ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("is allowed");
        let usage = usage.with(&entry("b", "n", "2", 1), &limits).expect("is allowed");
        let refused = usage.with(&entry("c", "n", "3", 2), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Namespace(_, wait)) if wait.as_secs() == 88));
        assert!(usage.with(&entry("c", "m", "3", 2), &limits).is_ok());
    }

    #[test]
    fn the_cluster_has_one_quota() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("is allowed");
        let usage = usage.with(&entry("b", "m", "2", 1), &limits).expect("is allowed");
        assert!(matches!(
            usage.with(&entry("c", "o", "3", 2), &limits),
            Err(LimitExceeded::Cluster(..))
        ));
    }

    #[test]
    fn a_retry_of_the_same_request_is_counted_once() {
        let limits = Limits { cooldown: MINUTE, cluster: two_in_a_minute(), ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("is allowed");
        let usage = usage.with(&entry("a", "n", "1", 5), &limits).expect("is the same");
        assert_eq!(usage.to_string().split(' ').count(), 1);
    }

    #[test]
    fn a_refund_allows_another_action() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("is allowed");
        let usage = usage.with(&entry("b", "n", "2", 0), &limits).expect("is allowed");
        let usage = usage.without(&entry("a", "n", "1", 9));
        assert!(usage.with(&entry("c", "n", "3", 1), &limits).is_ok());
    }

    #[test]
    fn the_actions_of_one_request_are_allowed_together_or_not_at_all() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let [one] = entry("a", "n", "1", 0);
        let [two] = entry("a", "m", "2", 0);
        let [three] = entry("a", "m", "3", 0);
        let both = [one.clone(), UsageEntry { request: one.request.clone(), ..two }];
        let usage = Usage::default().with(&both, &limits).expect("allows two");
        assert_eq!(usage.to_string().split(' ').count(), 2);
        assert!(Usage::default().with(&[&both[..], &[three]].concat(), &limits).is_err());
        assert_eq!(usage.without(&both[..1]), Usage::default());
    }

    #[test]
    fn expired_entries_are_dropped() {
        let limits = Limits { cooldown: MINUTE, ..Limits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("is allowed");
        let usage = usage.with(&entry("b", "n", "2", 100), &limits).expect("is allowed");
        assert_eq!(usage.to_string().split(' ').count(), 1);
    }

    proptest! {
        /// Effects come up to [`EFFECT_WINDOW`] after their entry, in any order.
        #[test]
        fn no_window_ever_has_more_effects_than_its_limit(
            steps in proptest::collection::vec((0i64..20, 0i64..=30), 1..200),
            actions in 1usize..6,
        ) {
            let quota = Quota { actions, within: MINUTE };
            let limits = Limits { cluster: Some(quota), ..Limits::default() };
            let (mut usage, mut now, mut effects) = (Usage::default(), 0, Vec::new());
            for (number, (pause, delay)) in steps.into_iter().enumerate() {
                now += pause;
                let next = entry(&number.to_string(), "n", &number.to_string(), now);
                if let Ok(next) = usage.with(&next, &limits) {
                    usage = next;
                    effects.push(now + delay);
                }
            }
            effects.sort_unstable();
            for few in effects.windows(actions + 1) {
                prop_assert!(few[actions] - few[0] >= 60, "{effects:?}");
            }
        }
    }
}
