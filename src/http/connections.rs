//! How many clients may be connected, what they may hold, and whose connection is closed at a limit.
//!
//! File descriptors and memory are limited, and a client that sends slowly, reads slowly or does nothing is cheap. So a
//! client that has not sent a whole request, or does not read its response, is waiting, and at a limit the connection
//! that has been waiting longest is closed: first those that have not authenticated. So is one whose request only reads
//! and waits for a permit: else with many of those only the newest connection could be closed. A request that is being
//! served is never dropped. No peer may hold more than its share, and some connections are kept back for health checks.

use std::{
    collections::HashMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Resource, getrlimit};
use tokio::task::AbortHandle;

use crate::{
    auth::rate_limit::network,
    http::activity::{Activity, ExchangePhase},
};

/// Descriptors kept for the cluster, files and, with the engine tiny-http, its sockets (two for each request
/// in progress): at least so many, and half of those there are.
const RESERVED_DESCRIPTORS: usize = 400;

/// Maximum memory of a connection, without bodies and responses: 48 KiB of the process over TLS, of which about 33
/// were measured, and 64 KiB of the kernel's buffers, which counts as the container's.
const BYTES_PER_CONNECTION: u64 = (48 + 64) * 1024;

/// Maximum number of connections, whatever the limits allow.
const MAX_CONNECTIONS: usize = 8192;

/// Connections beyond these, on which only health checks are answered; one peer may hold half of them.
const HEALTH_CONNECTIONS: usize = 16;

/// What clients may hold: the part of the container's memory that is for bodies and responses, and how much of it
/// without a limit on that memory.
const BYTES_SHARE: u64 = 4;
const MAX_BYTES: u64 = 256 << 20;

/// How much of the server clients may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The connections.
    pub connections: usize,
    /// The connections of one peer.
    of_one_peer: usize,
    /// The bytes of bodies that are being read or served, and of responses that are being written.
    bytes: usize,
}

/// What a new connection may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// All requests.
    All,
    /// Health checks alone.
    HealthChecks,
}

/// The open connections.
pub(crate) struct Connections {
    bounds: Bounds,
    /// The bytes that all of them hold.
    held: Arc<AtomicUsize>,
    open: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    task: AbortHandle,
    /// The address, or the network of an IPv6 address.
    peer: IpAddr,
    admission: Admission,
    activity: Arc<Activity>,
}

impl Bounds {
    /// What this limit on open files and that on the container's memory allow; one peer may hold so many percent
    /// of the connections.
    pub(crate) fn within(descriptors: usize, peer_share: u32) -> Self {
        Self::of(descriptors, memory_limit(), peer_share)
    }

    fn of(descriptors: usize, memory: Option<u64>, peer_share: u32) -> Self {
        let reserved = RESERVED_DESCRIPTORS.max(descriptors / 2);
        let by_descriptors = descriptors.saturating_sub(reserved);
        let whole = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let by_memory = memory.map_or(usize::MAX, |bytes| whole(bytes / 2 / BYTES_PER_CONNECTION));
        let connections = by_descriptors.min(by_memory).clamp(16, MAX_CONNECTIONS);
        let of_one_peer = (connections * peer_share as usize).div_ceil(100);
        let bytes = memory.map_or(MAX_BYTES, |bytes| MAX_BYTES.min(bytes / BYTES_SHARE));
        Bounds { connections, of_one_peer, bytes: whole(bytes) }
    }
}

impl Connections {
    /// No connection is open yet.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Connections { bounds, held: Arc::default(), open: Mutex::default() }
    }

    /// How many of them there may be.
    pub(crate) fn max(&self) -> usize {
        self.bounds.connections
    }

    /// How one more connection of this peer may be admitted; closes one at a limit. None if all that could be closed
    /// are being served.
    pub(crate) fn evict_if_full(&self, peer: IpAddr) -> Option<Admission> {
        let mut open = self.lock();
        let (admission, victim) = decide(&open, &self.bounds, network(peer))?;
        if let Some(victim) = victim {
            close(&mut open, victim);
        }
        Some(admission)
    }

    /// Closes the connection that has been waiting longest, if one is waiting.
    pub(crate) fn evict_one(&self) {
        let mut open = self.lock();
        if let Some(victim) = longest_waiting(open.iter()) {
            close(&mut open, victim);
        }
    }

    /// The activity of a new connection.
    pub(crate) fn activity(&self) -> Arc<Activity> {
        Arc::new(Activity::new(self.held.clone()))
    }

    /// Adds a connection.
    pub(crate) fn admit(
        &self,
        id: u64,
        peer: IpAddr,
        admission: Admission,
        activity: Arc<Activity>,
        task: AbortHandle,
    ) {
        let connection = Connection { task, peer: network(peer), admission, activity };
        self.lock().insert(id, connection);
    }

    /// Whether clients hold no more than they may, once others than this one that wait have been closed.
    pub(crate) fn relieve(&self, id: u64) -> bool {
        while self.held.load(Ordering::Relaxed) > self.bounds.bytes {
            let mut open = self.lock();
            let others = open.iter().filter(|(other, it)| **other != id && it.activity.held() > 0);
            let Some(victim) = longest_waiting(others) else { return false };
            close(&mut open, victim);
        }
        true
    }

    /// The connection has ended.
    pub(crate) fn closed(&self, id: u64) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        // Nothing that panics runs under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a new connection of this peer may be used for, and which one is closed for it.
fn decide(
    open: &HashMap<u64, Connection>,
    bounds: &Bounds,
    peer: IpAddr,
) -> Option<(Admission, Option<u64>)> {
    let kinds = [
        (Admission::All, bounds.connections, bounds.of_one_peer),
        (Admission::HealthChecks, HEALTH_CONNECTIONS, HEALTH_CONNECTIONS / 2),
    ];
    kinds.into_iter().find_map(|(admission, most, most_of_peer)| {
        let all = open.iter().filter(|(_, it)| it.admission == admission);
        let own = all.clone().filter(|(_, it)| it.peer == peer);
        // At its own limit a peer loses one of its own connections.
        if own.clone().count() >= most_of_peer {
            return longest_waiting(own).map(|victim| (admission, Some(victim)));
        }
        if all.clone().count() < most {
            return Some((admission, None));
        }
        longest_waiting(all).map(|victim| (admission, Some(victim)))
    })
}

/// The one that has been waiting longest; of those that have not authenticated, if there are any.
fn longest_waiting<'a>(
    connections: impl Iterator<Item = (&'a u64, &'a Connection)>,
) -> Option<u64> {
    let waiting = connections.filter_map(|(id, it)| {
        let state = it.activity.state();
        (state.phase != ExchangePhase::Serving).then_some((state.authenticated, state.since, *id))
    });
    waiting.min().map(|(.., id)| id)
}

fn close(open: &mut HashMap<u64, Connection>, id: u64) {
    if let Some(connection) = open.remove(&id) {
        connection.task.abort();
        connection.activity.release();
    }
}

/// How many files this process may have open at once.
pub(crate) fn descriptor_limit() -> usize {
    // None is no limit.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The limit on the memory of this process: the least of its cgroup and those above it, of which a container sees
/// some.
fn memory_limit() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&cgroups).into_iter().filter_map(|file| fs::read_to_string(file).ok());
    limits.filter_map(|limit| limit.trim().parse().ok()).min()
}

/// The files with limits on memory, in the second and the first version of cgroups, from the text of
/// `/proc/self/cgroup`.
fn limit_files(cgroups: &str) -> Vec<PathBuf> {
    let controllers = cgroups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        match controllers {
            "" => Some(("/sys/fs/cgroup", "memory.max", path)),
            of if of.split(',').any(|it| it == "memory") => {
                Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
            }
            _ => None,
        }
    });
    controllers
        .flat_map(|(root, file, path)| {
            let of_root = move |it: &Path| {
                Path::new(root).join(it.strip_prefix("/").unwrap_or(it)).join(file)
            };
            Path::new(path).ancestors().map(of_root).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 4] = [10, 0, 0, 1];
    const OTHER: [u8; 4] = [10, 0, 0, 2];

    fn connections(connections: usize, of_one_peer: usize) -> Connections {
        Connections::new(Bounds { connections, of_one_peer, bytes: 100 })
    }

    /// Admits a connection of this peer in this phase.
    fn admit(to: &Connections, id: u64, peer: [u8; 4], phase: ExchangePhase) -> Arc<Activity> {
        let admission = to.evict_if_full(peer.into()).expect("has capacity");
        let activity = to.activity();
        activity.enter(phase);
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        to.admit(id, peer.into(), admission, activity.clone(), task);
        activity
    }

    fn ids(of: &Connections) -> Vec<u64> {
        let mut ids: Vec<_> = of.lock().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    #[tokio::test]
    async fn the_connection_that_has_waited_longest_is_closed_at_the_limit() {
        for phase in [
            ExchangePhase::Waiting,
            ExchangePhase::Reading,
            ExchangePhase::Queued,
            ExchangePhase::Answering,
            ExchangePhase::Sending,
        ] {
            let connections = connections(2, 2);
            let first = admit(&connections, 1, ONE, phase);
            admit(&connections, 2, ONE, phase);
            first.enter(phase);
            admit(&connections, 3, ONE, ExchangePhase::Waiting);
            assert_eq!(ids(&connections), [1, 3], "{phase:?}");
        }
    }

    #[tokio::test]
    async fn unauthenticated_clients_are_evicted_first() {
        let connections = connections(2, 2);
        admit(&connections, 1, ONE, ExchangePhase::Reading).authenticated();
        admit(&connections, 2, OTHER, ExchangePhase::Reading);
        admit(&connections, 3, OTHER, ExchangePhase::Waiting);
        assert_eq!(ids(&connections), [1, 3]);
    }

    #[tokio::test]
    async fn a_request_that_is_served_is_never_closed_and_health_has_connections_of_its_own() {
        let connections = connections(1, 1);
        admit(&connections, 1, ONE, ExchangePhase::Serving);
        assert_eq!(connections.evict_if_full(OTHER.into()), Some(Admission::HealthChecks));
        for id in 2..2 + HEALTH_CONNECTIONS as u64 {
            admit(&connections, id, [10, 1, 0, id as u8], ExchangePhase::Serving);
        }
        assert_eq!(connections.evict_if_full(OTHER.into()), None);
        connections.closed(1);
        assert_eq!(connections.evict_if_full(OTHER.into()), Some(Admission::All));
    }

    #[tokio::test]
    async fn a_peer_beyond_its_share_makes_room_for_itself() {
        let connections = connections(4, 2);
        admit(&connections, 1, OTHER, ExchangePhase::Waiting);
        for id in 2..10 {
            admit(&connections, id, ONE, ExchangePhase::Waiting);
        }
        assert_eq!(ids(&connections), [1, 8, 9]);
        // Where all that it has are being served, it can only ask for the health.
        for it in connections.lock().values() {
            it.activity.enter(ExchangePhase::Serving);
        }
        assert_eq!(connections.evict_if_full(ONE.into()), Some(Admission::HealthChecks));
        assert_eq!(connections.evict_if_full(OTHER.into()), Some(Admission::All));
    }

    #[tokio::test]
    async fn clients_hold_no_more_bytes_than_they_may() {
        let connections = connections(9, 9);
        let slow = admit(&connections, 1, ONE, ExchangePhase::Reading);
        slow.hold_body(60);
        let served = admit(&connections, 2, ONE, ExchangePhase::Serving);
        served.hold_body(30);
        assert!(connections.relieve(2));
        let next = admit(&connections, 3, OTHER, ExchangePhase::Reading);
        next.hold_body(40);
        assert!(connections.relieve(3));
        assert_eq!(ids(&connections), [2, 3]);
        // Only the one that is being served could be closed.
        next.hold_body(80);
        assert!(!connections.relieve(3));
        drop(served);
        connections.closed(2);
        assert!(connections.relieve(3));
    }

    #[test]
    fn a_limit_on_memory_is_that_of_the_cgroup_or_of_one_above_it() {
        let files = |text| {
            let files = limit_files(text).into_iter();
            files.map(|it| it.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            files("0::/kubepods/pod7\n"),
            [
                "/sys/fs/cgroup/kubepods/pod7/memory.max",
                "/sys/fs/cgroup/kubepods/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(
            files("5:cpu:/a\n4:memory:/a\n"),
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
    }

    #[test]
    fn this_process_may_have_descriptors() {
        assert!(descriptor_limit() > 16, "{}", descriptor_limit());
    }

    #[test]
    fn bounds_follow_the_limits_on_descriptors_and_memory() {
        let bounds = |descriptors, memory| Bounds::of(descriptors, memory, 50);
        assert_eq!(bounds(1024, None).connections, 512);
        assert_eq!(bounds(1024, None).of_one_peer, 256);
        assert_eq!(bounds(64, None).connections, 16);
        assert_eq!(bounds(usize::MAX, None).connections, MAX_CONNECTIONS);
        assert_eq!(bounds(usize::MAX, Some(64 << 20)).connections, 292);
        assert_eq!(bounds(usize::MAX, Some(64 << 20)).bytes, 16 << 20);
        assert_eq!(bounds(1024, Some(u64::MAX)).connections, 512);
        assert_eq!(Bounds::of(64, None, 1).of_one_peer, 1);
        assert_eq!(Bounds::of(64, None, 100).of_one_peer, 16);
    }
}
