//! How many clients may be connected, and which connection is closed when one more comes.
//!
//! File descriptors and memory are few, and idle or slow clients cost nothing to make, so at the
//! limit the connection that has been idle longest is closed. One that is being served never is.

use std::{
    collections::HashMap,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{task::AbortHandle, time::Instant};

/// Descriptors kept for the cluster, files and, with the engine tiny-http, its sockets (two for each request
/// in progress): at least so many, and half of those there are.
const RESERVED_DESCRIPTORS: usize = 400;

/// Maximum memory of a connection with a slow client, over TLS; about 33 KiB were measured.
const BYTES_PER_CONNECTION: u64 = 48 * 1024;

/// Where the limit on a container's memory is, in the second and the first version of cgroups.
const MEMORY_LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Maximum number of connections, whatever the limits allow.
const MAX_CONNECTIONS: usize = 8192;

/// The open connections.
pub(crate) struct Connections {
    capacity: usize,
    open: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    task: AbortHandle,
    /// Since when it has had no request; `None` while it is being served.
    idle_since: Option<Instant>,
}

impl Connections {
    /// As many as this limit on open files allows, and that on the container's memory.
    pub(crate) fn within(descriptors: usize) -> Self {
        let memory = MEMORY_LIMITS.iter().find_map(|path| fs::read_to_string(path).ok());
        let memory = memory.and_then(|limit| limit.trim().parse().ok());
        Self::with_capacity(capacity(descriptors, memory))
    }

    fn with_capacity(capacity: usize) -> Self {
        Connections { capacity, open: Mutex::default() }
    }

    /// Makes room for one more connection; false if all of them are being served.
    pub(crate) fn evict_if_full(&self) -> bool {
        let mut open = self.lock();
        open.len() < self.capacity || evict_longest_idle(&mut open)
    }

    /// Closes the connection that has been idle longest, if one is idle.
    pub(crate) fn evict_one(&self) {
        evict_longest_idle(&mut self.lock());
    }

    /// Adds a connection, which is idle until its first request.
    pub(crate) fn admit(&self, id: u64, task: AbortHandle) {
        let idle_since = Some(Instant::now());
        self.lock().insert(id, Connection { task, idle_since });
    }

    /// A request of this connection is being served.
    pub(crate) fn serving(&self, id: u64) {
        if let Some(connection) = self.lock().get_mut(&id) {
            connection.idle_since = None;
        }
    }

    /// The response was sent.
    pub(crate) fn idle(&self, id: u64) {
        if let Some(connection) = self.lock().get_mut(&id) {
            connection.idle_since = Some(Instant::now());
        }
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

fn evict_longest_idle(open: &mut HashMap<u64, Connection>) -> bool {
    let idle = open.iter().filter_map(|(id, it)| Some((it.idle_since?, *id)));
    let Some((_, longest)) = idle.min() else { return false };
    if let Some(connection) = open.remove(&longest) {
        connection.task.abort();
    }
    true
}

/// How many files this process may have open at once.
pub(crate) fn descriptor_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    soft_descriptor_limit(&limits).unwrap_or(1024)
}

/// Half of the memory, if there is a limit, is for connections.
fn capacity(descriptors: usize, memory: Option<u64>) -> usize {
    let reserved = RESERVED_DESCRIPTORS.max(descriptors / 2);
    let by_descriptors = descriptors.saturating_sub(reserved);
    let by_memory = memory.and_then(|bytes| usize::try_from(bytes / 2 / BYTES_PER_CONNECTION).ok());
    by_descriptors.min(by_memory.unwrap_or(usize::MAX)).clamp(16, MAX_CONNECTIONS)
}

/// From the text of `/proc/self/limits`.
fn soft_descriptor_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    Some(soft.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    #[tokio::test]
    async fn the_longest_idle_connection_is_closed_at_the_limit() {
        let connections = Connections::with_capacity(2);
        let (first, second) = (task(), task());
        connections.admit(1, first.clone());
        connections.admit(2, second.clone());
        connections.serving(1);
        connections.idle(1);
        assert!(connections.evict_if_full());
        tokio::task::yield_now().await;
        assert!(second.is_finished() && !first.is_finished());
    }

    #[tokio::test]
    async fn a_connection_that_is_being_served_is_never_closed() {
        let connections = Connections::with_capacity(1);
        connections.admit(1, task());
        connections.serving(1);
        assert!(!connections.evict_if_full());
        connections.closed(1);
        assert!(connections.evict_if_full());
    }

    #[test]
    fn capacity_follows_the_limits_on_descriptors_and_memory() {
        let limits = "Limit           Soft Limit  Hard Limit  Units\n\
                      Max open files  1024        524288      files\n";
        assert_eq!(soft_descriptor_limit(limits), Some(1024));
        let unlimited = "Max open files  unlimited  unlimited  files";
        assert_eq!(soft_descriptor_limit(unlimited), Some(usize::MAX));
        assert_eq!(capacity(1024, None), 512);
        assert_eq!(capacity(64, None), 16);
        assert_eq!(capacity(usize::MAX, None), MAX_CONNECTIONS);
        assert_eq!(capacity(usize::MAX, Some(64 << 20)), 682);
        assert_eq!(capacity(1024, Some(u64::MAX)), 512);
    }
}
