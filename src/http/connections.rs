//! How many clients may be connected, and who has to go when one more comes.
//!
//! File descriptors and memory are few, and idle or slow clients cost nothing to make, so when the house is
//! full the connection that has waited longest without a whole request leaves. One that is being served
//! never does.

use std::{
    collections::HashMap,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{task::AbortHandle, time::Instant};

/// Descriptors kept for the private socket (two for each request under way), the cluster, logs and the
/// like: at least so many, and half of those there are.
const RESERVED_DESCRIPTORS: usize = 400;

/// What a connection holds at most while its client is slow, over TLS, in bytes; about 33 KiB were measured.
const HELD_BYTES: u64 = 48 * 1024;

/// Where a container's limit on memory is told, by the second and by the first version of cgroups.
const MEMORY_LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// More connections than this serve nobody.
const MOST_CONNECTIONS: usize = 8192;

/// The connections there are.
pub struct Connections {
    capacity: usize,
    open: Mutex<HashMap<u64, Connection>>,
}

struct Connection {
    task: AbortHandle,
    /// Since when it has had no request in the house; none while it is being served.
    waiting_since: Option<Instant>,
}

impl Connections {
    /// As many as this limit on open files allows, and that on the container's memory.
    #[must_use]
    pub fn within(descriptors: usize) -> Self {
        let memory = MEMORY_LIMITS.iter().find_map(|path| fs::read_to_string(path).ok());
        let memory = memory.and_then(|limit| limit.trim().parse().ok());
        Self::with_capacity(capacity(descriptors, memory))
    }

    fn with_capacity(capacity: usize) -> Self {
        Connections { capacity, open: Mutex::default() }
    }

    /// Makes sure that one more can be admitted; false if all there are being served.
    pub fn make_room(&self) -> bool {
        let mut open = self.lock();
        open.len() < self.capacity || dismiss_longest_waiting(&mut open)
    }

    /// Lets the connection that waits longest go, if one does.
    pub fn dismiss_one(&self) {
        dismiss_longest_waiting(&mut self.lock());
    }

    /// A new connection, waiting for its first request.
    pub fn admit(&self, id: u64, task: AbortHandle) {
        let waiting_since = Some(Instant::now());
        self.lock().insert(id, Connection { task, waiting_since });
    }

    /// A whole request has come.
    pub fn serving(&self, id: u64) {
        if let Some(connection) = self.lock().get_mut(&id) {
            connection.waiting_since = None;
        }
    }

    /// The request was answered.
    pub fn waiting(&self, id: u64) {
        if let Some(connection) = self.lock().get_mut(&id) {
            connection.waiting_since = Some(Instant::now());
        }
    }

    /// The connection has ended.
    pub fn left(&self, id: u64) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        // Nothing that panics runs under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dismiss_longest_waiting(open: &mut HashMap<u64, Connection>) -> bool {
    let waiting = open.iter().filter_map(|(id, it)| Some((it.waiting_since?, *id)));
    let Some((_, longest)) = waiting.min() else { return false };
    if let Some(connection) = open.remove(&longest) {
        connection.task.abort();
    }
    true
}

/// How many files this process may have open at once.
#[must_use]
pub fn descriptor_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    soft_descriptor_limit(&limits).unwrap_or(1024)
}

/// Half of the memory, if there is a limit, is for connections.
fn capacity(descriptors: usize, memory: Option<u64>) -> usize {
    let reserved = RESERVED_DESCRIPTORS.max(descriptors / 2);
    let by_descriptors = descriptors.saturating_sub(reserved);
    let by_memory = memory.and_then(|bytes| usize::try_from(bytes / 2 / HELD_BYTES).ok());
    by_descriptors.min(by_memory.unwrap_or(usize::MAX)).clamp(16, MOST_CONNECTIONS)
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
    async fn the_longest_waiting_leaves_when_the_house_is_full() {
        let connections = Connections::with_capacity(2);
        let (first, second) = (task(), task());
        connections.admit(1, first.clone());
        connections.admit(2, second.clone());
        connections.serving(1);
        connections.waiting(1);
        assert!(connections.make_room());
        tokio::task::yield_now().await;
        assert!(second.is_finished() && !first.is_finished());
    }

    #[tokio::test]
    async fn none_that_is_being_served_has_to_leave() {
        let connections = Connections::with_capacity(1);
        connections.admit(1, task());
        connections.serving(1);
        assert!(!connections.make_room());
        connections.left(1);
        assert!(connections.make_room());
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
        assert_eq!(capacity(usize::MAX, None), MOST_CONNECTIONS);
        assert_eq!(capacity(usize::MAX, Some(64 << 20)), 682);
        assert_eq!(capacity(1024, Some(u64::MAX)), 512);
    }
}
