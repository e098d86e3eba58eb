//! A lock per target: in one process, at most one real action makes its effect on an object at a time, and a
//! bounded number waits.
//!
//! It only spares the cluster conflicts and gives callers an early answer. Nothing depends on it: across
//! processes the ledger and the effect itself decide. Attempts at the same request pass, because the ledger
//! joins them. The permit is released once the effect is made, so no request waits for another's rollout.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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

/// How many requests may wait for one target.
const MAX_WAITERS: usize = 8;

/// How long a request waits at most.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The locks of all targets in use.
#[derive(Default)]
pub(crate) struct TargetLocks(Mutex<HashMap<String, Weak<TargetLock>>>);

struct TargetLock {
    /// Held while an effect is made.
    effect: Arc<Semaphore>,
    /// Held while waiting for `effect`.
    queue: Semaphore,
    /// The requests that were let in and are not answered yet, one entry per attempt.
    requests: Mutex<Vec<String>>,
}

/// A request's place at a target until it is answered.
pub(crate) struct TargetGuard {
    lock: Arc<TargetLock>,
    id: String,
    /// `None` for a further attempt at the same request, and once the effect is made.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl TargetLocks {
    /// Waits for the target's lock, at most half of the time until `deadline`.
    ///
    /// # Errors
    /// [`Code::RateLimited`] if too many requests wait, or the wait took too long. Nothing was done.
    pub(crate) async fn acquire(
        &self,
        target: &Target,
        id: &RequestId,
        deadline: Instant,
    ) -> Result<TargetGuard, ActionError> {
        let target_lock = self.of(target);
        if lock(&target_lock.requests).iter().any(|it| *it == **id) {
            return Ok(TargetGuard::new(target_lock, id, None));
        }
        let Ok(waiting) = target_lock.queue.try_acquire() else {
            return Err(busy(target, "its queue is full"));
        };
        let now = Instant::now();
        let until = now + LOCK_TIMEOUT.min(deadline.saturating_duration_since(now) / 2);
        let acquired = timeout_at(until, target_lock.effect.clone().acquire_owned()).await;
        drop(waiting);
        match acquired {
            Ok(Ok(permit)) => Ok(TargetGuard::new(target_lock, id, Some(permit))),
            _ => Err(busy(target, "the actions before this one took too long")),
        }
    }

    fn of(&self, target: &Target) -> Arc<TargetLock> {
        let mut locks = lock(&self.0);
        locks.retain(|_, it| it.strong_count() > 0);
        let name = target.to_string();
        if let Some(existing) = locks.get(&name).and_then(Weak::upgrade) {
            return existing;
        }
        let created = Arc::new(TargetLock {
            effect: Arc::new(Semaphore::new(1)),
            queue: Semaphore::new(MAX_WAITERS),
            requests: Mutex::default(),
        });
        locks.insert(name, Arc::downgrade(&created));
        created
    }
}

impl TargetGuard {
    fn new(target_lock: Arc<TargetLock>, id: &str, permit: Option<OwnedSemaphorePermit>) -> Self {
        lock(&target_lock.requests).push(id.to_owned());
        TargetGuard { lock: target_lock, id: id.to_owned(), permit: Mutex::new(permit) }
    }

    /// Lets the next request make its effect.
    pub(crate) fn release(&self) {
        lock(&self.permit).take();
    }
}

impl Drop for TargetGuard {
    fn drop(&mut self) {
        let mut requests = lock(&self.lock.requests);
        if let Some(index) = requests.iter().position(|it| *it == self.id) {
            requests.swap_remove(index);
        }
    }
}

fn busy(target: &Target, why: &str) -> ActionError {
    let detail = format!("{target} is busy and {why}; nothing was done");
    ActionError::new(Code::RateLimited, detail).with_retry_after(Some(Duration::from_secs(2)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target::named("apps/v1", "Deployment", "shop", "web")
    }

    async fn acquire(locks: &TargetLocks, id: &str) -> Result<TargetGuard, Code> {
        let id = RequestId::try_from(id.to_owned()).expect("is an id");
        let deadline = Instant::now() + Duration::from_secs(30);
        locks.acquire(&target(), &id, deadline).await.map_err(|error| error.code)
    }

    fn is_empty(locks: &TargetLocks) -> bool {
        lock(&locks.0).values().all(|it| it.strong_count() == 0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_the_effect_before_it_and_not_for_the_rollout() {
        let locks = Arc::<TargetLocks>::default();
        let first = acquire(&locks, "first").await.expect("is at once");
        let again = acquire(&locks, "first").await.expect("joins");
        let next = tokio::spawn({
            let locks = locks.clone();
            async move { acquire(&locks, "next").await.map(|guard| (guard, Instant::now())) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!next.is_finished());
        first.release();
        let (next, at) = next.await.expect("ends").expect("has the lock");
        assert_eq!(at, Instant::now());
        // An attempt joins a request that only waits.
        assert!(acquire(&locks, "first").await.is_ok());
        drop((first, again, next));
        assert!(is_empty(&locks));
    }

    #[tokio::test(start_paused = true)]
    async fn the_ninth_waiter_is_rejected_at_once_and_the_others_time_out() {
        let locks = Arc::<TargetLocks>::default();
        let first = acquire(&locks, "first").await.expect("is at once");
        let waiters: Vec<_> = (0..MAX_WAITERS)
            .map(|number| {
                let locks = locks.clone();
                tokio::spawn(async move { acquire(&locks, &format!("{number}")).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        assert_eq!(acquire(&locks, "late").await.map(drop), Err(Code::RateLimited));
        assert_eq!(began.elapsed(), Duration::ZERO);
        // An attempt at the running request is not rejected.
        assert!(acquire(&locks, "first").await.is_ok());
        waiters[0].abort();
        for waiter in waiters {
            if let Ok(waited) = waiter.await {
                assert_eq!(waited, Err(Code::RateLimited));
            }
        }
        assert_eq!(began.elapsed(), LOCK_TIMEOUT);
        assert_eq!(first.lock.queue.available_permits(), MAX_WAITERS);
    }
}
