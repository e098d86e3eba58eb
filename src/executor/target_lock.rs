//! Turns at one object: at most one real action of this process makes its effect on an object at a time,
//! and few wait for that.
//!
//! Two at once would only meet each other's conflicts, or the cooldown. Several tries of the same request
//! are no crowd: the ledger lets them join, so they pass. A turn ends when the effect is made, so that
//! nobody waits for another's rollout. Over processes the ledger and the effect itself decide; this is
//! courtesy to the cluster, and nothing depends on it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::contract::{
    error::{ActionError, Code},
    names::RequestId,
    response::Target,
};

/// How many may wait for their turn at one object.
const MAX_WAITERS: usize = 8;

/// Longest wait for a turn.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The lines in front of all objects.
#[derive(Default)]
pub(crate) struct TargetLocks(Mutex<HashMap<String, Line>>);

/// Those at one object.
struct Line {
    turn: Arc<Semaphore>,
    /// How many wait for their turn.
    waiting: usize,
    /// The requests that have had their turn and are not answered yet, with how many tries of each.
    begun: HashMap<String, usize>,
}

/// What becomes of one who comes to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Another try of the same request has begun: the ledger tells what becomes of this one.
    Joins,
    /// It waits for its turn, or has it at once.
    Waits,
    /// Too many wait.
    Refused,
}

/// A turn at an object; whoever joins another try has one too.
pub(crate) struct TargetGuard {
    turns: Arc<TargetLocks>,
    target: String,
    id: String,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

/// Somebody in a line.
struct Waiter<'a> {
    turns: &'a TargetLocks,
    target: &'a str,
}

impl TargetLocks {
    /// Waits for a turn at `target`, at most half of the time until `deadline`.
    ///
    /// # Errors
    /// [`Code::RateLimited`] if too many wait already, or it took too long. Nothing was done.
    pub(crate) async fn take(
        self: &Arc<Self>,
        target: &Target,
        id: &RequestId,
        deadline: Instant,
    ) -> Result<TargetGuard, ActionError> {
        let (name, now) = (target.to_string(), Instant::now());
        let (entry, semaphore) = self.enter(&name, id);
        let permit = match entry {
            Entry::Joins => None,
            Entry::Refused => return Err(too_many_waiters(target, "as many others wait as may")),
            Entry::Waits => {
                let _waiting = Waiter { turns: self, target: &name };
                let until = now + LOCK_TIMEOUT.min(deadline.saturating_duration_since(now) / 2);
                let permit = timeout_at(until, semaphore.acquire_owned()).await;
                let Ok(Ok(permit)) = permit else {
                    return Err(too_many_waiters(target, "those before this one took too long"));
                };
                self.begin(&name, id);
                Some(permit)
            }
        };
        let (turns, id, permit) = (self.clone(), id.to_string(), Mutex::new(permit));
        Ok(TargetGuard { turns, target: name, id, permit })
    }

    fn enter(&self, target: &str, id: &str) -> (Entry, Arc<Semaphore>) {
        let mut lines = lock(&self.0);
        let line = lines.entry(target.to_owned()).or_insert_with(|| Line {
            turn: Arc::new(Semaphore::new(1)),
            waiting: 0,
            begun: HashMap::new(),
        });
        let entry = entry(&line.begun, line.waiting, id);
        match entry {
            Entry::Joins => *line.begun.entry(id.to_owned()).or_default() += 1,
            Entry::Waits => line.waiting += 1,
            Entry::Refused => {}
        }
        (entry, line.turn.clone())
    }

    fn begin(&self, target: &str, id: &str) {
        if let Some(line) = lock(&self.0).get_mut(target) {
            *line.begun.entry(id.to_owned()).or_default() += 1;
        }
    }

    /// Changes a line, and forgets it when nobody is there any more.
    fn leave(&self, target: &str, change: impl FnOnce(&mut Line)) {
        let mut lines = lock(&self.0);
        let Some(line) = lines.get_mut(target) else { return };
        change(line);
        if line.waiting == 0 && line.begun.is_empty() {
            lines.remove(target);
        }
    }
}

impl TargetGuard {
    /// The effect is made: the next one may come.
    pub(crate) fn end(&self) {
        lock(&self.permit).take();
    }
}

impl Drop for TargetGuard {
    fn drop(&mut self) {
        self.end();
        self.turns.leave(&self.target, |line| match line.begun.get_mut(&self.id) {
            Some(tries) if *tries > 1 => *tries -= 1,
            _ => {
                line.begun.remove(&self.id);
            }
        });
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.turns.leave(self.target, |line| line.waiting -= 1);
    }
}

fn entry(begun: &HashMap<String, usize>, waiting: usize, id: &str) -> Entry {
    match waiting {
        _ if begun.contains_key(id) => Entry::Joins,
        // The one in its turn comes out of the line at once.
        MAX_WAITERS.. => Entry::Refused,
        _ => Entry::Waits,
    }
}

fn too_many_waiters(target: &Target, why: &str) -> ActionError {
    let detail = format!("other actions on {target} come first, and {why}; nothing was done");
    ActionError::new(Code::RateLimited, detail).with_retry_after(Some(Duration::from_secs(2)))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::named("apps/v1", "Deployment", "shop", "web")
    }

    fn id(text: &str) -> RequestId {
        RequestId::try_from(text.to_owned()).expect("is an id")
    }

    async fn take(turns: &Arc<TargetLocks>, name: &str) -> Result<TargetGuard, Code> {
        let deadline = Instant::now() + Duration::from_secs(30);
        turns.take(&target(), &id(name), deadline).await.map_err(|error| error.code)
    }

    #[test]
    fn tries_of_one_request_join_and_others_wait_or_are_too_many() {
        let begun = HashMap::from([("a".to_owned(), 1)]);
        assert_eq!(entry(&begun, MAX_WAITERS, "a"), Entry::Joins);
        assert_eq!(entry(&begun, MAX_WAITERS - 1, "b"), Entry::Waits);
        assert_eq!(entry(&begun, MAX_WAITERS, "b"), Entry::Refused);
    }

    #[tokio::test(start_paused = true)]
    async fn one_comes_after_the_other_and_nobody_waits_for_a_rollout() {
        let turns = Arc::<TargetLocks>::default();
        let first = take(&turns, "first").await.expect("is at once");
        let again = take(&turns, "first").await.expect("joins");
        let next = tokio::spawn({
            let turns = turns.clone();
            async move { take(&turns, "next").await.map(|turn| (turn, Instant::now())) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!next.is_finished());
        first.end();
        let (next, at) = next.await.expect("ends").expect("has its turn");
        assert_eq!(at, Instant::now());
        // What only waits still is what another try joins.
        assert!(take(&turns, "first").await.is_ok());
        drop((first, again, next));
        assert!(lock(&turns.0).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_are_refused_at_once_and_the_others_in_time() {
        let turns = Arc::<TargetLocks>::default();
        let _first = take(&turns, "first").await.expect("is at once");
        let line: Vec<_> = (0..MAX_WAITERS)
            .map(|number| {
                let turns = turns.clone();
                tokio::spawn(async move { take(&turns, &format!("{number}")).await.map(|_| ()) })
            })
            .collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        assert_eq!(take(&turns, "late").await.map(|_| ()), Err(Code::RateLimited));
        assert_eq!(began.elapsed(), Duration::ZERO);
        line[0].abort();
        for waited in line {
            if let Ok(waited) = waited.await {
                assert_eq!(waited, Err(Code::RateLimited));
            }
        }
        assert_eq!(began.elapsed(), LOCK_TIMEOUT);
        assert_eq!(lock(&turns.0)[&target().to_string()].waiting, 0);
    }
}
