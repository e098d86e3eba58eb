//! Rate limits: requests of a caller, and wrong credentials of a peer. In memory and bounded; each process counts
//! for itself.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};

use crate::contract::error::{ActionError, Code};

/// Wrong credentials of one peer in a minute, after which its unknown credentials are rejected unchecked.
const MAX_FAILURES: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// After this time without a failure a peer's record is deleted.
const FAILURES_TTL: Duration = Duration::from_secs(60);

/// Maximum number of peers, and of callers, that are counted separately.
const MAX_PEERS: usize = 4096;

/// The rate limit of each caller.
pub(crate) struct Rates {
    per_second: u32,
    limiter: Option<DefaultKeyedRateLimiter<String>>,
}

impl Rates {
    /// `rate` requests a second, and `burst` at once; no limit if `rate` is 0.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let quota = |rate| {
            Quota::per_second(rate).allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN))
        };
        let limiter = NonZeroU32::new(rate).map(|rate| RateLimiter::keyed(quota(rate)));
        Rates { per_second: rate, limiter }
    }

    /// The rate of each caller in a minute; none: there is no limit.
    pub(crate) fn per_minute(&self) -> Option<u32> {
        self.limiter.as_ref().map(|_| self.per_second.saturating_mul(60))
    }

    /// Counts a request of this caller.
    ///
    /// # Errors
    /// [`Code::TooManyRequests`], with the time until the next request is allowed.
    pub(crate) fn admit(&self, name: &str) -> Result<(), ActionError> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if limiter.len() > MAX_PEERS {
            // Drops the callers whose burst is available again.
            limiter.retain_recent();
        }
        limiter.check_key(&name.to_owned()).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            ActionError::new(Code::TooManyRequests, format!("{name} sends too many requests"))
                .with_hint("the server's settings ACTION_EXECUTOR_CALLER_RATE and ACTION_EXECUTOR_CALLER_BURST limit each caller")
                .with_retry_after(Some(wait))
        })
    }
}

/// The failures of peers.
#[derive(Default)]
pub(crate) struct Failures(Mutex<HashMap<Peer, FailureRecord>>);

/// The key by which failures are counted: an address (of IPv6 its first 64 bits, since one host has all the
/// others), or all further addresses together if there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Peer {
    Address(IpAddr),
    Overflow,
}

struct FailureRecord {
    limiter: Limiter,
    last: Instant,
    /// Until when unknown credentials of the peer are rejected unchecked.
    blocked_until: Option<Instant>,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

impl Failures {
    /// Checks that an unknown credential of this peer may be checked.
    ///
    /// # Errors
    /// [`Code::TooManyRequests`], with the time until the next one may be.
    pub(crate) fn check(&self, address: Option<IpAddr>, now: Instant) -> Result<(), ActionError> {
        let Some(address) = address else { return Ok(()) };
        let peers = self.lock();
        let blocked_until =
            peers.get(&bucket(&peers, address)).and_then(|record| record.blocked_until);
        let wait = blocked_until.map(|until| until.saturating_duration_since(now));
        let Some(wait) = wait.filter(|wait| !wait.is_zero()) else { return Ok(()) };
        let detail = format!("too many wrong credentials from {address}");
        Err(ActionError::new(Code::TooManyRequests, detail)
            .with_hint(
                "known keys and tokens still work; unknown ones are rejected unchecked until then",
            )
            .with_retry_after(Some(wait)))
    }

    /// Counts a wrong credential of this peer.
    pub(crate) fn count(&self, address: Option<IpAddr>, now: Instant) {
        let Some(address) = address else { return };
        let mut peers = self.lock();
        if peers.len() >= MAX_PEERS {
            peers.retain(|_, record| now.saturating_duration_since(record.last) < FAILURES_TTL);
        }
        let peer = bucket(&peers, address);
        let quota = Quota::per_minute(MAX_FAILURES);
        let new = || FailureRecord { limiter: limiter(quota), last: now, blocked_until: None };
        let record = peers.entry(peer).or_insert_with(new);
        record.last = now;
        record.blocked_until = match record.limiter.check() {
            Ok(left) if left.remaining_burst_capacity() > 0 => None,
            Ok(_) => Some(now + quota.replenish_interval()),
            Err(not_until) => Some(now + not_until.wait_time_from(DefaultClock::default().now())),
        };
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Peer, FailureRecord>> {
        // No code under the lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limiter(quota: Quota) -> Limiter {
    RateLimiter::direct(quota).with_middleware()
}

fn bucket(peers: &HashMap<Peer, FailureRecord>, address: IpAddr) -> Peer {
    let peer = Peer::Address(network(address));
    if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) { Peer::Overflow } else { peer }
}

/// The address, or of IPv6 the network of its host.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(it) => {
            let [a, b, c, d, ..] = it.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("is an address"))
    }

    #[test]
    fn a_peer_with_ten_failures_is_blocked_for_a_while() {
        let (failures, now) = (Failures::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(failures.check(address("2001:db8::1"), now), Ok(()));
            failures.count(address("2001:db8::1"), now);
        }
        let error = failures.check(address("2001:db8::2"), now).expect_err("is its neighbour");
        assert_eq!((error.code, error.retry_after_seconds()), (Code::TooManyRequests, Some(6)));
        let later = now + Duration::from_secs(7);
        assert_eq!(failures.check(address("2001:db8::1"), later), Ok(()));
        for another in ["2001:db8:0:1::1", "10.0.0.1"] {
            assert_eq!(failures.check(address(another), now), Ok(()));
        }
        assert_eq!(failures.check(None, now), Ok(()));
    }

    #[test]
    fn an_address_is_the_same_in_both_notations() {
        let (failures, now) = (Failures::default(), Instant::now());
        (0..10).for_each(|_| failures.count(address("::ffff:10.0.0.1"), now));
        assert!(failures.check(address("10.0.0.1"), now).is_err());
    }

    #[test]
    fn peers_beyond_the_limit_are_counted_together() {
        let (failures, now) = (Failures::default(), Instant::now());
        let peer = |number: u32| Some(IpAddr::from(number.to_be_bytes()));
        (0..MAX_PEERS as u32 + 20).for_each(|number| failures.count(peer(number), now));
        assert_eq!(failures.lock().len(), MAX_PEERS + 1);
        assert!(failures.check(peer(1 << 24), now).is_err());
        assert_eq!(failures.check(peer(1), now), Ok(()));
        // A minute later the records are deleted.
        failures.count(peer(1 << 24), now + FAILURES_TTL);
        assert_eq!(failures.lock().len(), 1);
    }

    #[test]
    fn each_caller_has_its_own_rate() {
        let rates = Rates::new(1, 2);
        assert!(rates.admit("jo").is_ok() && rates.admit("jo").is_ok());
        let error = rates.admit("jo").expect_err("is too often");
        assert_eq!((error.code, error.retry_after_seconds()), (Code::TooManyRequests, Some(1)));
        assert!(rates.admit("pager").is_ok());
        assert!((0..1000).all(|_| Rates::new(0, 1).admit("jo").is_ok()));
    }
}
