//! What the client of a connection is doing, as its stream, the server and the list of connections see it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How soon after its request a client has to close its sending side to count as one that waits for its response
/// (`nc -N`, `socat`). One that closes later has given up: to the server both look alike.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExchangePhase {
    /// No request, or only a part of a header.
    Waiting,
    /// A header, and the body not yet.
    Reading,
    /// The whole request, which only reads and waits for a permit: nothing has been done for it yet.
    Queued,
    /// The whole request, and no response yet, or one that is a stream.
    Serving,
    /// The whole response, of which hyper has not taken all yet.
    Answering,
    /// The whole response, written into buffers that the client has not emptied yet.
    Sending,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionState {
    /// The phase.
    pub phase: ExchangePhase,
    /// Since when.
    pub since: Instant,
    /// Whether its client has authenticated.
    pub authenticated: bool,
    /// Whether the response is a stream that has begun.
    streams: bool,
    /// The memory of the body of its request, in bytes.
    body: usize,
    /// The memory of responses that are not yet written, in bytes.
    unsent: usize,
}

impl ConnectionState {
    /// The bytes that the connection holds.
    fn held(&self) -> usize {
        self.body + self.unsent
    }
}

/// The state of a connection, shared.
pub(crate) struct Activity {
    state: Mutex<ConnectionState>,
    /// The bytes that all connections hold.
    held: Arc<AtomicUsize>,
}

impl Activity {
    /// That of a new connection.
    pub(crate) fn new(held: Arc<AtomicUsize>) -> Self {
        let state = ConnectionState {
            phase: ExchangePhase::Waiting,
            since: Instant::now(),
            authenticated: false,
            streams: false,
            body: 0,
            unsent: 0,
        };
        Activity { state: Mutex::new(state), held }
    }

    /// The state now.
    pub(crate) fn state(&self) -> ConnectionState {
        *self.lock()
    }

    /// A phase begins.
    pub(crate) fn enter(&self, phase: ExchangePhase) {
        self.change(|state| {
            state.phase = phase;
            state.since = Instant::now();
            state.streams = false;
            if matches!(phase, ExchangePhase::Answering | ExchangePhase::Sending) {
                state.body = 0;
            }
        });
    }

    /// The response is a stream: a client that ends its side from now on has given up.
    pub(crate) fn begin_stream(&self) {
        self.change(|state| state.streams = true);
    }

    /// All that was written has reached the kernel.
    pub(crate) fn flushed(&self) {
        self.change(|state| {
            state.unsent = 0;
            if state.phase == ExchangePhase::Sending {
                state.phase = ExchangePhase::Waiting;
                state.since = Instant::now();
            }
        });
    }

    /// The client has authenticated.
    pub(crate) fn authenticated(&self) {
        self.change(|state| state.authenticated = true);
    }

    /// The body of the request takes so many bytes now.
    pub(crate) fn hold_body(&self, bytes: usize) {
        self.change(|state| state.body = bytes);
    }

    /// A response of so many bytes of its own is to be written.
    pub(crate) fn hold_response(&self, bytes: usize) {
        self.change(|state| state.unsent += bytes);
    }

    /// The bytes that the connection holds.
    pub(crate) fn held(&self) -> usize {
        self.lock().held()
    }

    /// The connection is about to end.
    pub(crate) fn release(&self) {
        self.change(|state| (state.body, state.unsent) = (0, 0));
    }

    /// Whether no exchange is in progress.
    pub(crate) fn is_waiting(&self) -> bool {
        self.lock().phase == ExchangePhase::Waiting
    }

    /// Whether a client that sends nothing more now waits for its response.
    pub(crate) fn awaits_response(&self) -> bool {
        let ConnectionState { phase, since, streams, .. } = self.state();
        match phase {
            ExchangePhase::Queued | ExchangePhase::Serving => {
                !streams && since.elapsed() < HALF_CLOSE_TIMEOUT
            }
            ExchangePhase::Answering | ExchangePhase::Sending => true,
            ExchangePhase::Waiting | ExchangePhase::Reading => false,
        }
    }

    fn change(&self, change: impl FnOnce(&mut ConnectionState)) {
        let mut state = self.lock();
        let before = state.held();
        change(&mut state);
        let after = state.held();
        if after != before {
            // The addition wraps, so that it subtracts, too.
            self.held.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        // Nothing that panics runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_with_its_request_waits_and_one_that_ends_later_has_given_up() {
        let activity = Activity::new(Arc::default());
        assert!(!activity.awaits_response());
        activity.enter(ExchangePhase::Reading);
        assert!(!activity.awaits_response());
        for phase in [ExchangePhase::Queued, ExchangePhase::Serving] {
            activity.enter(phase);
            assert!(activity.awaits_response());
            sleep(HALF_CLOSE_TIMEOUT).await;
            assert!(!activity.awaits_response());
        }
    }

    #[tokio::test]
    async fn a_client_that_ends_while_its_stream_runs_has_given_up() {
        let activity = Activity::new(Arc::default());
        activity.enter(ExchangePhase::Serving);
        activity.begin_stream();
        assert!(!activity.awaits_response());
        activity.enter(ExchangePhase::Serving);
        assert!(activity.awaits_response());
    }

    #[test]
    fn a_response_is_taken_when_all_of_it_is_written() {
        let activity = Activity::new(Arc::default());
        activity.enter(ExchangePhase::Serving);
        activity.flushed();
        assert_eq!(activity.state().phase, ExchangePhase::Serving);
        activity.enter(ExchangePhase::Sending);
        assert!(!activity.is_waiting());
        activity.flushed();
        assert!(activity.is_waiting());
    }

    #[test]
    fn held_bytes_count_until_written() {
        let held = Arc::new(AtomicUsize::new(0));
        let all = || held.load(Ordering::Relaxed);
        let activity = Activity::new(held.clone());
        activity.hold_body(7);
        activity.hold_body(9);
        activity.hold_response(100);
        assert_eq!((all(), activity.held()), (109, 109));
        activity.enter(ExchangePhase::Sending);
        assert_eq!(all(), 100);
        activity.flushed();
        assert_eq!(all(), 0);
        activity.hold_body(5);
        drop(activity);
        assert_eq!(all(), 0);
    }
}
