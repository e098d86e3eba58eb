//! The usage of a budget, and whether it allows one more action: pure arithmetic on a short list.
//!
//! The list is in the annotations of a Lease, one for each entry, shared by all processes. Its times are the API
//! server's, so a wrong clock in one process does not matter. An entry is written before its effect, which follows
//! within [`EFFECT_WINDOW`]; after the effect its time is added. Until then the entry counts as if the effect came
//! as late as it may. So no window ever has more effects than its limit, whichever process crashes in between.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::contract::{digest::sha256, response::Target};

/// The longest time between an entry and its effect.
pub(crate) const EFFECT_WINDOW: Duration = Duration::from_secs(30);

/// How long an effect may be made after its entry. It is shorter than [`EFFECT_WINDOW`] by the precision of the API
/// server's time as this process knows it.
pub(crate) const EFFECT_TIMEOUT: Duration = Duration::from_secs(28);

/// By how much the API server's time, as this process knows it, may be behind.
const CLOCK_PRECISION: TimeDelta = TimeDelta::seconds(1);

/// The prefix of the annotations with the entries.
const PREFIX: &str = "usage.action-executor.dev/";

/// Ends an entry whose effect was made.
const MADE: &str = ".made";

/// The maximum number of entries; a full list refuses further actions until some entries expire. An entry
/// has 172 bytes, and the annotations of an object at most 256 KiB.
const MAX_ENTRIES: usize = 1500;

/// A number of actions in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// The number of actions.
    pub actions: usize,
    /// The time.
    pub within: Duration,
}

/// All limits on the rate of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BudgetLimits {
    /// The time between two actions on one target.
    pub cooldown: Duration,
    /// Per namespace.
    pub per_namespace: Option<Quota>,
    /// For the whole cluster.
    pub cluster: Option<Quota>,
}

impl BudgetLimits {
    /// Whether there is no limit.
    pub(crate) fn are_none(&self) -> bool {
        *self == BudgetLimits::default()
    }

    /// How long an entry counts.
    fn retention(&self) -> Duration {
        let quotas = [self.per_namespace, self.cluster].into_iter().flatten();
        quotas.map(|quota| quota.within).fold(self.cooldown, Duration::max)
    }
}

/// One action that was allowed, or asks to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsageEntry {
    /// The annotation, of this charge alone: no late write of another charge can touch it.
    key: String,
    /// The digest of the request's id, so that a retry is not counted twice.
    request: String,
    target: String,
    namespace: String,
    /// When the effect was made; before that, when the entry was.
    at: DateTime<Utc>,
    is_made: bool,
}

impl UsageEntry {
    /// A new entry for an action on `target`, at this time of the API server.
    pub(crate) fn new(id: &str, target: &Target, at: DateTime<Utc>) -> Self {
        let Target { namespace, kind, name, .. } = target;
        UsageEntry {
            key: new_key(),
            request: digest(id),
            target: digest(&format!("{kind}/{namespace}/{name}")),
            namespace: digest(namespace),
            at,
            is_made: false,
        }
    }

    /// The same action, charged anew.
    pub(crate) fn renewed(&self) -> Self {
        UsageEntry { key: new_key(), ..self.clone() }
    }

    /// The name and the value of its annotation.
    pub(crate) fn annotation(&self) -> (String, String) {
        let UsageEntry { key, request, target, namespace, at, is_made } = self;
        let made = if *is_made { MADE } else { "" };
        (key.clone(), format!("{request}.{target}.{namespace}.{}{made}", at.timestamp()))
    }

    /// The entry after its effect was made at this time.
    pub(crate) fn after_effect(&self, at: DateTime<Utc>) -> Self {
        UsageEntry { at, is_made: true, ..self.clone() }
    }

    /// The latest time at which its effect may have been made.
    fn latest_effect(&self) -> DateTime<Utc> {
        if self.is_made { self.at + CLOCK_PRECISION } else { self.at + EFFECT_WINDOW }
    }

    /// When it was written, or its effect made, by the API server's clock.
    pub(crate) fn at(&self) -> DateTime<Utc> {
        self.at
    }

    fn parse(key: &str, value: &str) -> Option<Self> {
        key.strip_prefix(PREFIX)?;
        let without_suffix = value.strip_suffix(MADE);
        let mut parts = without_suffix.unwrap_or(value).split('.');
        Some(UsageEntry {
            key: key.to_owned(),
            request: parts.next()?.to_owned(),
            target: parts.next()?.to_owned(),
            namespace: parts.next()?.to_owned(),
            at: DateTime::from_timestamp(parts.next()?.parse().ok()?, 0)?,
            is_made: without_suffix.is_some(),
        })
    }

    /// Whether it is the same action: another attempt at the same request. Two requests in different namespaces may
    /// have the same id, and one target only if it is a pod that one of them evicts with its node, which has one
    /// effect.
    fn is_same_action(&self, other: &UsageEntry) -> bool {
        (&self.request, &self.target) == (&other.request, &other.target)
    }
}

fn new_key() -> String {
    format!("{PREFIX}{}", uuid::Uuid::now_v7().simple())
}

/// 128 bits: a requester chooses ids, so two with the same digest must not be found.
fn digest(text: &str) -> String {
    sha256(text.as_bytes())[..32].to_owned()
}

/// The limit that is exceeded, and how long it takes until it allows one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitExceeded {
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
pub(crate) struct Usage(Vec<UsageEntry>);

impl Usage {
    /// Reads the list from the annotations of a Lease; malformed entries are ignored.
    pub(crate) fn parse(annotations: &BTreeMap<String, String>) -> Self {
        Usage(annotations.iter().filter_map(|(key, it)| UsageEntry::parse(key, it)).collect())
    }

    /// The annotations of the entries that count no more at this time.
    pub(crate) fn expired(&self, limits: &BudgetLimits, now: DateTime<Utc>) -> Vec<String> {
        let expired = self.0.iter().filter(|it| time_left(it, limits.retention(), now).is_none());
        expired.map(|it| it.key.clone()).collect()
    }

    /// The digest of the id of the request, other than that of these entries, that acted last on a target of theirs.
    pub(crate) fn last_request(&self, entries: &[UsageEntry]) -> Option<&str> {
        let is_other = |it: &&UsageEntry| {
            let same_target = entries.iter().find(|entry| entry.target == it.target);
            same_target.is_some_and(|entry| entry.request != it.request)
        };
        let last = self.0.iter().filter(is_other).max_by_key(|it| it.at)?;
        Some(&last.request)
    }

    /// Checks that the limits allow all of these entries of one request. Entries of the same request for the
    /// same targets, by attempts whose effect is not known to be made, are not counted beside them: the request has
    /// one effect.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub(crate) fn check(
        &self,
        entries: &[UsageEntry],
        limits: &BudgetLimits,
    ) -> Result<(), LimitExceeded> {
        let mut counted = HashMap::new();
        for it in &self.0 {
            // What was made was an effect of its own, also if the request has another one now.
            if !it.is_made && entries.iter().any(|entry| entry.is_same_action(it)) {
                continue;
            }
            let made = it.is_made.then_some(&it.key);
            let latest = counted.entry((&it.request, &it.target, made)).or_insert(it);
            if latest.at < it.at {
                *latest = it;
            }
        }
        let mut usage: Vec<&UsageEntry> = counted.into_values().collect();
        for entry in entries {
            check_one(&usage, entry, limits)?;
            usage.push(entry);
        }
        Ok(())
    }
}

fn check_one(
    usage: &[&UsageEntry],
    entry: &UsageEntry,
    limits: &BudgetLimits,
) -> Result<(), LimitExceeded> {
    let now = entry.at;
    let all = || usage.iter().copied();
    let same_target = all().filter(|it| it.target == entry.target);
    if let Some(wait) = wait_for_slot(same_target, 1, limits.cooldown, now) {
        return Err(LimitExceeded::Cooldown(wait));
    }
    if let Some(quota) = limits.per_namespace {
        let here = all().filter(|it| it.namespace == entry.namespace);
        if let Some(wait) = wait_for_slot(here, quota.actions, quota.within, now) {
            return Err(LimitExceeded::Namespace(quota, wait));
        }
    }
    if let Some(quota) = limits.cluster
        && let Some(wait) = wait_for_slot(all(), quota.actions, quota.within, now)
    {
        return Err(LimitExceeded::Cluster(quota, wait));
    }
    match wait_for_slot(all(), MAX_ENTRIES, limits.retention(), now) {
        Some(wait) => Err(LimitExceeded::List(wait)),
        None => Ok(()),
    }
}

/// How long it takes until fewer than `limit` of these effects are younger than `window`; `None` if that is
/// so now.
fn wait_for_slot<'a>(
    entries: impl Iterator<Item = &'a UsageEntry>,
    limit: usize,
    window: Duration,
    now: DateTime<Utc>,
) -> Option<Duration> {
    let mut left: Vec<_> = entries.filter_map(|it| time_left(it, window, now)).collect();
    left.sort_unstable_by(|a, b| b.cmp(a));
    // The one that must have left the window: as many as are allowed beside the new one stay.
    left.get(limit.checked_sub(1)?).copied()
}

/// How long the entry's effect stays within the window that ends now; `None` if it has left it.
fn time_left(entry: &UsageEntry, window: Duration, now: DateTime<Utc>) -> Option<Duration> {
    if window.is_zero() {
        return None;
    }
    let end = entry.latest_effect() + window;
    (end - now).to_std().ok().filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("is a time")
    }

    /// An entry of the request `id` for the Deployment `namespace/name`.
    fn entry(id: &str, namespace: &str, name: &str, seconds: i64) -> [UsageEntry; 1] {
        let target = Target::named("apps/v1", "Deployment", namespace, name);
        [UsageEntry::new(id, &target, at(seconds))]
    }

    /// The same, with an effect at that time.
    fn made(id: &str, namespace: &str, name: &str, seconds: i64) -> [UsageEntry; 1] {
        entry(id, namespace, name, seconds).map(|it| it.after_effect(at(seconds)))
    }

    impl Usage {
        fn with(&self, entries: &[UsageEntry]) -> Usage {
            Usage(self.0.iter().chain(entries).cloned().collect())
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn two_in_a_minute() -> Option<Quota> {
        Some(Quota { actions: 2, within: MINUTE })
    }

    #[test]
    fn a_list_is_parsed_as_it_is_written() {
        let usage = Usage::default().with(&entry("a", "shop", "web", 0));
        let annotations = BTreeMap::from([usage.0[0].annotation()]);
        let (key, value) = annotations.first_key_value().expect("is one");
        assert_eq!((key.len(), value.len()), (PREFIX.len() + 32, 3 * 33 + 10));
        assert_eq!(Usage::parse(&annotations), usage);
        let usage = Usage::default().with(&made("a", "shop", "web", 7));
        assert_eq!(Usage::parse(&BTreeMap::from([usage.0[0].annotation()])), usage);
        let of = |key: &str, value: &str| {
            Usage::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
        };
        assert_eq!(of("usage.action-executor.dev/x", "a.b.c.x"), Usage::default());
        assert_eq!(of("example.com/x", value), Usage::default());
    }

    #[test]
    fn the_last_other_request_for_a_target_is_known_by_the_digest_of_its_id() {
        let usage = Usage::default()
            .with(&made("alert-6", "n", "web", 0))
            .with(&made("alert-7", "n", "web", 9))
            .with(&made("alert-8", "n", "api", 10))
            .with(&entry("alert-9", "n", "web", 11));
        for (id, name, expected) in [
            ("new", "web", Some("alert-9")),
            ("alert-9", "web", Some("alert-7")),
            ("new", "api", Some("alert-8")),
            ("alert-8", "api", None),
            ("new", "db", None),
        ] {
            let last = usage.last_request(&entry(id, "n", name, 20)).map(str::to_owned);
            assert_eq!(last, expected.map(digest), "{id} {name}");
        }
    }

    #[test]
    fn a_target_is_refused_during_its_cooldown() {
        let limits = BudgetLimits { cooldown: MINUTE, ..BudgetLimits::default() };
        let usage = Usage::default().with(&made("a", "n", "web", 0));
        let refused = usage.check(&entry("b", "n", "web", 20), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(41))));
        assert!(usage.check(&entry("b", "n", "api", 20), &limits).is_ok());
        assert!(usage.check(&entry("b", "n", "web", 61), &limits).is_ok());
    }

    #[test]
    fn a_cooldown_begins_with_the_effect_and_not_with_its_entry() {
        let limits = BudgetLimits { cooldown: MINUTE, ..BudgetLimits::default() };
        let late =
            Usage::default().with(&entry("a", "n", "web", 0).map(|it| it.after_effect(at(9))));
        let refused = late.check(&entry("b", "n", "web", 61), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(9))));
        // The process that wrote it may have crashed before, or right after, the latest possible effect.
        let unknown = Usage::default().with(&entry("a", "n", "web", 0));
        let refused = unknown.check(&entry("b", "n", "web", 61), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(29))));
        assert!(unknown.check(&entry("b", "n", "web", 90), &limits).is_ok());
    }

    #[test]
    fn each_namespace_has_its_own_quota() {
        let limits = BudgetLimits { per_namespace: two_in_a_minute(), ..BudgetLimits::default() };
        let usage = Usage::default().with(&made("a", "n", "1", 0)).with(&entry("b", "n", "2", 1));
        let refused = usage.check(&entry("c", "n", "3", 2), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Namespace(_, wait)) if wait.as_secs() == 59));
        assert!(usage.check(&entry("c", "m", "3", 2), &limits).is_ok());
        assert!(usage.check(&entry("c", "n", "3", 61), &limits).is_ok());
    }

    #[test]
    fn the_cluster_has_one_quota() {
        let limits = BudgetLimits { cluster: two_in_a_minute(), ..BudgetLimits::default() };
        let usage = Usage::default().with(&entry("a", "n", "1", 0));
        assert!(usage.check(&entry("b", "m", "2", 1), &limits).is_ok());
        let usage = usage.with(&entry("b", "m", "2", 1));
        let refused = usage.check(&entry("c", "o", "3", 2), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Cluster(..))));
    }

    #[test]
    fn the_attempts_at_one_request_are_counted_once() {
        let limits = BudgetLimits {
            cooldown: MINUTE,
            cluster: two_in_a_minute(),
            ..BudgetLimits::default()
        };
        let usage = Usage::default().with(&entry("a", "n", "1", 0)).with(&entry("a", "n", "1", 5));
        assert!(usage.check(&entry("a", "n", "1", 9), &limits).is_ok());
        assert!(usage.check(&entry("b", "n", "2", 9), &limits).is_ok());
        let usage = usage.with(&entry("b", "n", "2", 9));
        assert!(usage.check(&entry("c", "n", "3", 9), &limits).is_err());
        // The latest attempt counts.
        let refused = usage.check(&entry("c", "n", "1", 90), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(5))));
    }

    #[test]
    fn a_request_that_has_an_effect_again_is_charged_again() {
        let limits = BudgetLimits {
            cooldown: MINUTE,
            cluster: two_in_a_minute(),
            ..BudgetLimits::default()
        };
        let usage = Usage::default().with(&made("a", "n", "1", 0));
        let refused = usage.check(&entry("a", "n", "1", 9), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Cooldown(_))));
        let usage = usage.with(&made("a", "n", "1", 5));
        let refused = usage.check(&entry("b", "n", "2", 9), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Cluster(..))));
    }

    #[test]
    fn each_charge_has_an_annotation_of_its_own() {
        let [first] = entry("a", "n", "1", 0);
        let second = first.renewed();
        assert!(first.is_same_action(&second));
        assert_ne!(first.annotation().0, second.annotation().0);
        assert_eq!(first.annotation().1, second.annotation().1);
    }

    #[test]
    fn the_actions_of_one_request_are_allowed_together_or_not_at_all() {
        let limits = BudgetLimits { cluster: two_in_a_minute(), ..BudgetLimits::default() };
        let both = [entry("a", "n", "1", 0), entry("a", "m", "2", 0)].concat();
        assert!(Usage::default().check(&both, &limits).is_ok());
        let three = [&both[..], &entry("a", "m", "3", 0)].concat();
        assert!(Usage::default().check(&three, &limits).is_err());
        // A later attempt, for the last of them, counts what the first one may have done.
        let usage = Usage::default().with(&both);
        assert!(usage.check(&entry("a", "m", "2", 9), &limits).is_ok());
        assert!(usage.check(&entry("a", "m", "3", 9), &limits).is_err());
    }

    #[test]
    fn expired_entries_are_named_for_removal() {
        let limits = BudgetLimits { cooldown: MINUTE, ..BudgetLimits::default() };
        let usage = Usage::default().with(&made("a", "n", "1", 0)).with(&entry("b", "n", "2", 0));
        assert_eq!(usage.expired(&limits, at(60)), Vec::<String>::new());
        assert_eq!(usage.expired(&limits, at(61)), [usage.0[0].key.clone()]);
        assert_eq!(usage.expired(&limits, at(90)).len(), 2);
    }

    #[test]
    fn a_full_list_refuses_until_an_entry_expires() {
        let limits = BudgetLimits { cooldown: MINUTE, ..BudgetLimits::default() };
        let entries = (0..MAX_ENTRIES).map(|it| made(&it.to_string(), "n", &it.to_string(), 0));
        let usage = Usage(entries.flatten().collect());
        let refused = usage.check(&entry("b", "n", "web", 20), &limits);
        assert_eq!(refused, Err(LimitExceeded::List(Duration::from_secs(41))));
        let bytes: usize =
            usage.0.iter().map(|it| it.annotation().0.len() + it.annotation().1.len()).sum();
        assert!(bytes < 256 * 1024, "{bytes}");
    }

    proptest! {
        /// Effects come up to [`EFFECT_WINDOW`] after their entry, in any order; some are added to their entry later,
        /// some never. Entries are written first and checked in the order in which the API server wrote them, each
        /// by what it saw then; an entry that is refused is removed some time later.
        #[test]
        fn no_window_ever_has_more_effects_than_its_limit(
            steps in proptest::collection::vec((0i64..20, 0i64..=30, 0usize..4, 0i64..60), 1..200),
            actions in 1usize..6,
        ) {
            let quota = Quota { actions, within: MINUTE };
            let limits = BudgetLimits { cluster: Some(quota), ..BudgetLimits::default() };
            let (mut usage, mut now, mut effects) = (Usage::default(), 0, Vec::new());
            let mut refused: Vec<(usize, String)> = Vec::new();
            let mut to_add: Vec<(i64, UsageEntry)> = Vec::new();
            for (number, (pause, delay, lag, added_after)) in steps.into_iter().enumerate() {
                now += pause;
                for (_, done) in to_add.extract_if(.., |(at, _)| *at <= now) {
                    usage.0.retain(|it| it.key != done.key);
                    usage = usage.with(&[done]);
                }
                let [next] = entry(&number.to_string(), "n", &number.to_string(), now);
                usage = usage.with(std::slice::from_ref(&next));
                match usage.check(std::slice::from_ref(&next), &limits) {
                    Ok(()) => {
                        effects.push(now + delay);
                        if added_after < 30 {
                            let done = next.after_effect(at(now + delay));
                            to_add.push((now + delay + added_after, done));
                        }
                    }
                    Err(_) => refused.push((number + lag, next.key)),
                }
                let expired = usage.expired(&limits, at(now));
                let removed = |key: &String| {
                    expired.contains(key) || refused.iter().any(|(at, it)| *at <= number && it == key)
                };
                usage.0.retain(|it| !removed(&it.key));
            }
            effects.sort_unstable();
            for few in effects.windows(actions + 1) {
                prop_assert!(few[actions] - few[0] >= 60, "{effects:?}");
            }
        }
    }
}
