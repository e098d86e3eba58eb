//! What was spent of a budget, and whether there is room for one more: arithmetic on a short list.
//!
//! The list is one annotation of a Lease, shared by all processes. Its times are the API server's, not
//! ours, so it does not matter whose clock is wrong. An entry is written before its effect is made,
//! and the effect follows within [`SLACK`]; a window of time is counted with that much added, so that
//! in no stretch of its length there are ever more effects than it allows.

use std::{fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use crate::contract::{digest::sha256, response::Target};

/// The longest time between an entry and its effect.
pub const EFFECT_WINDOW: Duration = Duration::from_secs(30);

/// The most entries that are kept; beyond it nothing more is let through until some are over. An
/// entry has 50 bytes, and all annotations of an object together at most 256 KiB.
const MAX_ENTRIES: usize = 4000;

/// At most so many actions in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub actions: usize,
    /// In what time.
    pub within: Duration,
}

/// All limits on how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The time that one target is left alone after an action on it.
    pub cooldown: Duration,
    /// For each namespace.
    pub per_namespace: Option<Quota>,
    /// For all of the cluster.
    pub cluster: Option<Quota>,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn are_none(&self) -> bool {
        *self == Limits::default()
    }

    /// The longest time that an entry matters.
    fn memory(&self) -> Duration {
        let quotas = [self.per_namespace, self.cluster].into_iter().flatten();
        quotas.map(|quota| quota.within + EFFECT_WINDOW).fold(self.cooldown, Duration::max)
    }
}

/// One action that was let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageEntry {
    /// The request, so that its retry is not counted twice.
    request: String,
    target: String,
    namespace: String,
    at: DateTime<Utc>,
}

impl UsageEntry {
    /// The entry for what this request, which is about `subject`, does to this target, at this time of
    /// the API server.
    #[must_use]
    pub fn new(id: &str, subject: &Target, target: &Target, at: DateTime<Utc>) -> Self {
        let Target { namespace, kind, name, .. } = target;
        UsageEntry {
            request: short(&format!("{}/{id}", subject.namespace)),
            target: short(&format!("{kind}/{namespace}/{name}")),
            namespace: short(namespace),
            at,
        }
    }
}

/// Enough of a digest to tell a few thousand things apart.
fn short(text: &str) -> String {
    sha256(text.as_bytes())[..12].to_owned()
}

/// Which limit leaves no room, and when there may be some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// The target was acted upon a moment ago.
    Cooldown(Duration),
    /// The namespace's quota is used up.
    Namespace(Quota, Duration),
    /// The cluster's quota is used up.
    Cluster(Quota, Duration),
    /// The list itself is full.
    List(Duration),
}

/// The actions that were let through and still count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(Vec<UsageEntry>);

impl Usage {
    /// Reads the list; an entry that is not of our form counts as none.
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

    /// The list with the entries of a request, if there is room for all of them. Earlier ones of the same
    /// request give way to them.
    ///
    /// # Errors
    /// The limit that leaves no room.
    pub fn with(&self, entries: &[UsageEntry], limits: &Limits) -> Result<Usage, LimitExceeded> {
        let mut spent = self.without(entries);
        for entry in entries {
            spent.0.retain(|it| age(it, entry.at) < limits.memory());
            spent.check(entry, limits)?;
            spent.0.push(entry.clone());
        }
        Ok(spent)
    }

    /// The list with the entries of a request, whether there is room for them or not; only a list that is
    /// full to the brim stays as it is.
    #[must_use]
    pub fn with_unconditional(&self, entries: &[UsageEntry], limits: &Limits) -> Usage {
        let mut spent = self.without(entries);
        for entry in entries {
            spent.0.retain(|it| age(it, entry.at) < limits.memory());
            if spent.0.len() < MAX_ENTRIES {
                spent.0.push(entry.clone());
            }
        }
        spent
    }

    /// The list without the entries of these ones' request.
    #[must_use]
    pub fn without(&self, entries: &[UsageEntry]) -> Usage {
        let is_theirs = |it: &&UsageEntry| entries.iter().any(|entry| entry.request == it.request);
        Usage(self.0.iter().filter(|it| !is_theirs(it)).cloned().collect())
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
        match wait_for_slot(self.0.iter(), MAX_ENTRIES, limits.memory(), now) {
            Some(wait) => Err(LimitExceeded::List(wait)),
            None => Ok(()),
        }
    }
}

/// How long it takes until fewer than `room` of these lie within `window`; `None` if they do now.
fn wait_for_slot<'a>(
    entries: impl Iterator<Item = &'a UsageEntry>,
    room: usize,
    window: Duration,
    now: DateTime<Utc>,
) -> Option<Duration> {
    let mut ages: Vec<_> = entries.map(|it| age(it, now)).filter(|age| *age < window).collect();
    if ages.len() < room {
        return None;
    }
    ages.sort_unstable();
    // The youngest that has to be over before there is room.
    ages.get(room - 1).map(|age| window.saturating_sub(*age))
}

/// How long ago; an entry of the future (of an API server that is ahead) is as if made now.
fn age(entry: &UsageEntry, now: DateTime<Utc>) -> Duration {
    (now - entry.at).max(TimeDelta::zero()).to_std().unwrap_or_default()
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, UsageEntry { request, target, namespace, at }) in self.0.iter().enumerate() {
            let space = if place > 0 { " " } else { "" };
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
    fn what_is_written_is_read() {
        let spent = Usage::default()
            .with(&entry("a", "shop", "web", 0), &Limits { cooldown: MINUTE, ..Limits::default() })
            .expect("has room");
        assert_eq!(Usage::parse(&spent.to_string()), spent);
        assert_eq!(Usage::parse(""), Usage::default());
        assert_eq!(Usage::parse("junk a.b.c.x"), Usage::default());
    }

    #[test]
    fn a_target_is_left_alone_for_its_cooldown() {
        let limits = Limits { cooldown: MINUTE, ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "web", 0), &limits).expect("has room");
        let refused = spent.with(&entry("b", "n", "web", 20), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(40))));
        assert!(spent.with(&entry("b", "n", "api", 20), &limits).is_ok());
        assert!(spent.with(&entry("b", "n", "web", 60), &limits).is_ok());
    }

    #[test]
    fn what_must_not_wait_is_written_down_where_there_is_no_room() {
        let quota = Some(Quota { actions: 1, within: MINUTE });
        let limits = Limits { cooldown: MINUTE, cluster: quota, ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "web", 0), &limits).expect("has room");
        let back = entry("a/rollback", "n", "web", 20);
        assert!(spent.with(&back, &limits).is_err());
        let noted = spent.with_unconditional(&back, &limits);
        assert_eq!(noted.to_string().split(' ').count(), 2);
        assert_eq!(noted.with_unconditional(&back, &limits), noted);
        // It counts for all that comes after it.
        let refused = noted.with(&entry("b", "n", "web", 61), &limits);
        assert_eq!(refused, Err(LimitExceeded::Cooldown(Duration::from_secs(19))));
    }

    #[test]
    fn a_namespace_has_its_quota_and_another_has_its_own() {
        let limits = Limits { per_namespace: two_in_a_minute(), ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("has room");
        let spent = spent.with(&entry("b", "n", "2", 1), &limits).expect("has room");
        let refused = spent.with(&entry("c", "n", "3", 2), &limits);
        assert!(matches!(refused, Err(LimitExceeded::Namespace(_, wait)) if wait.as_secs() == 88));
        assert!(spent.with(&entry("c", "m", "3", 2), &limits).is_ok());
    }

    #[test]
    fn the_cluster_has_one_quota() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("has room");
        let spent = spent.with(&entry("b", "m", "2", 1), &limits).expect("has room");
        assert!(matches!(
            spent.with(&entry("c", "o", "3", 2), &limits),
            Err(LimitExceeded::Cluster(..))
        ));
    }

    #[test]
    fn a_retry_of_the_same_request_is_counted_once() {
        let limits = Limits { cooldown: MINUTE, cluster: two_in_a_minute(), ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("has room");
        let spent = spent.with(&entry("a", "n", "1", 5), &limits).expect("is the same");
        assert_eq!(spent.to_string().split(' ').count(), 1);
    }

    #[test]
    fn what_is_given_back_leaves_room() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("has room");
        let spent = spent.with(&entry("b", "n", "2", 0), &limits).expect("has room");
        let spent = spent.without(&entry("a", "n", "1", 9));
        assert!(spent.with(&entry("c", "n", "3", 1), &limits).is_ok());
    }

    #[test]
    fn the_actions_of_one_request_are_let_through_together_or_not_at_all() {
        let limits = Limits { cluster: two_in_a_minute(), ..Limits::default() };
        let [one] = entry("a", "n", "1", 0);
        let [two] = entry("a", "m", "2", 0);
        let [three] = entry("a", "m", "3", 0);
        let both = [one.clone(), UsageEntry { request: one.request.clone(), ..two }];
        let spent = Usage::default().with(&both, &limits).expect("has room for two");
        assert_eq!(spent.to_string().split(' ').count(), 2);
        assert!(Usage::default().with(&[&both[..], &[three]].concat(), &limits).is_err());
        assert_eq!(spent.without(&both[..1]), Usage::default());
    }

    #[test]
    fn entries_that_matter_no_more_are_dropped() {
        let limits = Limits { cooldown: MINUTE, ..Limits::default() };
        let spent = Usage::default().with(&entry("a", "n", "1", 0), &limits).expect("has room");
        let spent = spent.with(&entry("b", "n", "2", 100), &limits).expect("has room");
        assert_eq!(spent.to_string().split(' ').count(), 1);
    }

    proptest! {
        /// Effects come up to [`SLACK`] after their entry, in an order of their own.
        #[test]
        fn no_stretch_of_time_ever_has_more_effects_than_it_allows(
            steps in proptest::collection::vec((0i64..20, 0i64..=30), 1..200),
            actions in 1usize..6,
        ) {
            let quota = Quota { actions, within: MINUTE };
            let limits = Limits { cluster: Some(quota), ..Limits::default() };
            let (mut spent, mut now, mut effects) = (Usage::default(), 0, Vec::new());
            for (number, (pause, delay)) in steps.into_iter().enumerate() {
                now += pause;
                let next = entry(&number.to_string(), "n", &number.to_string(), now);
                if let Ok(next) = spent.with(&next, &limits) {
                    spent = next;
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
