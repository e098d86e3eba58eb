//! One write at a time, in a thread that may block, for a bounded time. Knows nothing of what is written.
//!
//! A volume that does not respond (NFS with `hard`) blocks a thread for as long as it does so. So at most one thread
//! waits for it, and while its write is overdue others fail at once.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::OwnedMutexGuard,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// Time for one write, with the wait for earlier ones. It must be below the time in which a server ends.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes one after the other.
#[derive(Default)]
pub(super) struct Writer {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// When the write in progress becomes overdue.
    overdue_at: Arc<Mutex<Option<Instant>>>,
}

impl Writer {
    /// Runs a write in a thread that may block.
    ///
    /// # Errors
    /// Why it failed, or that it did not end in time; it may end later.
    pub(super) async fn run(
        &self,
        write: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let deadline = Instant::now() + WRITE_TIMEOUT;
        if self.is_overdue() {
            return Err("an earlier receipt is still being written".to_owned());
        }
        let write = async {
            let lock = self.lock.clone().lock_owned().await;
            let guard = WriteGuard { overdue_at: self.overdue_at.clone(), _lock: lock };
            guard.set(Some(deadline));
            // The thread releases the lock, also if nobody waits for it any more.
            let written = spawn_blocking(move || {
                let _guard = guard;
                write()
            });
            written.await
        };
        match timeout_at(deadline, write).await {
            Ok(Ok(written)) => written.map_err(|error| error.to_string()),
            Ok(Err(panic)) => Err(panic.to_string()),
            Err(_) => Err(format!("it was not written within {} s", WRITE_TIMEOUT.as_secs())),
        }
    }

    fn is_overdue(&self) -> bool {
        let overdue_at = self.overdue_at.lock().unwrap_or_else(PoisonError::into_inner);
        overdue_at.is_some_and(|at| Instant::now() >= at)
    }
}

/// The write in progress, until it is dropped.
struct WriteGuard {
    overdue_at: Arc<Mutex<Option<Instant>>>,
    _lock: OwnedMutexGuard<()>,
}

impl WriteGuard {
    fn set(&self, overdue_at: Option<Instant>) {
        *self.overdue_at.lock().unwrap_or_else(PoisonError::into_inner) = overdue_at;
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        self.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_write_that_hangs_delays_one_caller_and_blocks_one_thread() {
        let writer = Writer::default();
        let (release, hanging) = mpsc::channel::<()>();
        let began = Instant::now();
        let hung = writer.run(move || {
            let _ = hanging.recv();
            Ok(())
        });
        // One that begins while the first is in time waits no longer than it.
        let (hung, waiting) = tokio::join!(hung, writer.run(|| Ok(())));
        assert!(hung.is_err_and(|why| why.contains("within 2 s")));
        assert!(waiting.is_err());
        for _ in 0..50 {
            let why = writer.run(|| panic!("is not begun")).await.expect_err("fails");
            assert!(why.contains("earlier receipt"), "{why}");
        }
        assert!(began.elapsed() < 2 * WRITE_TIMEOUT, "{:?}", began.elapsed());
        drop(release);
        // The thread releases the lock.
        drop(writer.lock.lock().await);
        assert_eq!(writer.run(|| Ok(())).await, Ok(()));
    }

    #[tokio::test]
    async fn writes_do_not_overlap_and_a_failed_one_or_a_panic_does_not_stop_the_next() {
        let writer = Writer::default();
        let busy = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let one = || {
            let busy = busy.clone();
            writer.run(move || {
                assert!(!busy.swap(true, std::sync::atomic::Ordering::SeqCst));
                std::thread::yield_now();
                busy.store(false, std::sync::atomic::Ordering::SeqCst);
                Ok(())
            })
        };
        let all = tokio::join!(one(), one(), one(), one());
        assert_eq!(all, (Ok(()), Ok(()), Ok(()), Ok(())));
        assert_eq!(writer.run(|| Err(io::Error::other("full"))).await, Err("full".to_owned()));
        assert!(writer.run(|| panic!("a bug")).await.is_err());
        assert_eq!(*writer.overdue_at.lock().expect("is not poisoned"), None);
        assert_eq!(writer.run(|| Ok(())).await, Ok(()));
    }
}
