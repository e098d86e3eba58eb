//! How many requests are in progress at once, how many may wait for that, and how long.
//!
//! Four lanes, so that no kind of request starves another. Reads wait briefly or are rejected. Actions wait
//! in a bounded queue. An action that only waits for its effect, and a response that is a stream, cost
//! little and may last: each has a lane of its own. A client that disconnects from the queue leaves it, and
//! its request is never started.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Method,
    body::{Body as HttpBody, Bytes, Frame, SizeHint},
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    contract::error::{ActionError, Code},
    http::message::Body,
    telemetry::metrics::{GaugeGuard, Metrics},
};

/// Maximum number of reads at once, and how many of the connections may have one. They cost little, and a busy server
/// still answers its probes and has connections for others.
const MAX_READS: usize = 256;
const CONNECTIONS_PER_READ: usize = 2;

/// Maximum number of streams at once.
const MAX_STREAMS: usize = 64;

/// Maximum number of actions at once that only wait for their effect.
const MAX_WAITING: usize = 1024;

/// How many actions may be queued for each permit.
const QUEUED_PER_PERMIT: usize = 4;

/// Maximum time that a read waits; the others are answered so quickly that it is enough.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a rejected client is asked to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reason in the metrics for a request whose client's time was over first.
pub(crate) const DEADLINE: &str = "deadline";

/// What kind of work a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// It only reads.
    Reads,
    /// It acts.
    Actions,
    /// Its effect is made, and it waits for completion.
    Waiting,
    /// Its response is a stream.
    Streams,
}

impl Lane {
    const ALL: [Lane; 4] = [Lane::Reads, Lane::Actions, Lane::Waiting, Lane::Streams];

    /// The lane in which a request of this method begins.
    pub(crate) fn of(method: &Method) -> Self {
        if method == Method::POST { Lane::Actions } else { Lane::Reads }
    }

    /// The lane in the metrics.
    const fn name(self) -> &'static str {
        match self {
            Lane::Reads => "reads",
            Lane::Actions => "actions",
            Lane::Waiting => "waiting",
            Lane::Streams => "streams",
        }
    }
}

/// Why a request is not dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    ReadsFull,
    StreamsFull,
    QueueFull,
    QueueTimeout,
    ConnectionsFull,
}

impl Rejection {
    const ALL: [Rejection; 5] = [
        Rejection::ReadsFull,
        Rejection::StreamsFull,
        Rejection::QueueFull,
        Rejection::QueueTimeout,
        Rejection::ConnectionsFull,
    ];

    /// The reason in the metrics.
    const fn name(self) -> &'static str {
        match self {
            Rejection::ReadsFull => "reads_full",
            Rejection::StreamsFull => "streams_full",
            Rejection::QueueFull => "queue_full",
            Rejection::QueueTimeout => "queue_timeout",
            Rejection::ConnectionsFull => "connections_full",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Rejection::ReadsFull => "too many reads are in progress",
            Rejection::StreamsFull => "too many streams are open",
            Rejection::QueueFull => "too many actions are in progress and queued",
            Rejection::QueueTimeout => "too many actions are in progress, and none ended in time",
            Rejection::ConnectionsFull => {
                "too many connections are open, or too many from this address"
            }
        }
    }
}

/// The limits of all lanes, and the queue for actions.
pub(crate) struct Limiter {
    lanes: [Arc<Semaphore>; 4],
    limits: [usize; 4],
    in_use: [Gauge; 4],
    queued: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl Limiter {
    /// A limiter that permits so many actions at once, on so many connections.
    pub(crate) fn new(actions: usize, connections: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let reads = MAX_READS.min(connections / CONNECTIONS_PER_READ);
        let limits = [reads, actions, MAX_WAITING, MAX_STREAMS];
        let in_use =
            Lane::ALL.map(|lane| metrics.concurrency_limit(lane.name(), limits[lane as usize]));
        // A counter is exported from the start, so that its first increase is seen.
        for reason in Rejection::ALL.map(Rejection::name).into_iter().chain([DEADLINE]) {
            let _ = metrics.rejected_requests(reason);
        }
        let lanes = limits.map(|limit| Arc::new(Semaphore::new(limit)));
        Arc::new(Limiter { lanes, limits, in_use, queued: AtomicUsize::new(0), metrics })
    }

    /// A permit of the lane of reads or of actions; the client expects its response by `deadline`.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if the queue is full, or no permit becomes free in time.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        lane: Lane,
        deadline: Option<Instant>,
    ) -> Result<Arc<Permit>, ActionError> {
        if let Some(permit) = self.try_acquire(lane) {
            return Ok(self.permit(lane, permit));
        }
        let now = Instant::now();
        let patience = queue_timeout(deadline.map(|end| end.saturating_duration_since(now)));
        let acquired = self.lanes[lane as usize].clone().acquire_owned();
        if lane != Lane::Actions {
            // No more of them wait than there are connections.
            return match timeout_at(now + patience.min(READ_TIMEOUT), acquired).await {
                Ok(Ok(permit)) => Ok(self.permit(lane, permit)),
                _ => Err(self.reject(Rejection::ReadsFull)),
            };
        }
        let queued = Queued::enter(self);
        if queued.ahead >= self.queue_limit() {
            return Err(self.reject(Rejection::QueueFull));
        }
        let acquired = timeout_at(now + patience, acquired).await;
        self.metrics.queued_for(now.elapsed());
        match acquired {
            Ok(Ok(permit)) => Ok(self.permit(lane, permit)),
            _ => Err(self.reject(Rejection::QueueTimeout)),
        }
    }

    /// Returns when only reads are in progress. No request may be accepted any more.
    pub(crate) async fn wait_idle(&self) {
        // Permits move from the first of these lanes to the others.
        for lane in [Lane::Actions, Lane::Waiting, Lane::Streams] {
            let all = self.limits[lane as usize] as u32;
            // The semaphore is never closed, so this waits for the last permit to be released.
            let _ = self.lanes[lane as usize].acquire_many(all).await.map(|all| all.forget());
        }
    }

    fn queue_limit(&self) -> usize {
        self.limits[Lane::Actions as usize] * QUEUED_PER_PERMIT
    }

    fn try_acquire(&self, lane: Lane) -> Option<OwnedSemaphorePermit> {
        self.lanes[lane as usize].clone().try_acquire_owned().ok()
    }

    fn permit(self: &Arc<Self>, lane: Lane, permit: OwnedSemaphorePermit) -> Arc<Permit> {
        let held = Mutex::new(self.held(lane, permit));
        let changes_nothing = AtomicBool::new(lane == Lane::Reads);
        Arc::new(Permit { limiter: self.clone(), held, changes_nothing })
    }

    fn held(&self, lane: Lane, permit: OwnedSemaphorePermit) -> HeldPermit {
        let counted = GaugeGuard::new(&self.in_use[lane as usize]);
        HeldPermit { lane, _permit: permit, _counted: counted }
    }

    /// The rejection of a request on a connection that is kept back for health checks.
    pub(crate) fn reject_beyond_health_checks(&self) -> ActionError {
        self.reject(Rejection::ConnectionsFull)
    }

    fn reject(&self, rejection: Rejection) -> ActionError {
        self.metrics.rejected_requests(rejection.name()).inc();
        ActionError::new(Code::Overloaded, rejection.detail()).with_retry_after(Some(RETRY_AFTER))
    }
}

/// The permit of one request; released when dropped.
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    held: Mutex<HeldPermit>,
    /// Whether the request is known to change nothing.
    changes_nothing: AtomicBool,
}

struct HeldPermit {
    lane: Lane,
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

impl Permit {
    /// The request is a simulation.
    pub(crate) fn simulates(&self) {
        self.changes_nothing.store(true, Ordering::Relaxed);
    }

    /// Whether the request is known to change nothing.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.changes_nothing.load(Ordering::Relaxed)
    }

    /// Takes a permit of the lane of waiting actions and releases that of an acting one. If there is
    /// none, it stays as it is.
    pub(crate) fn downgrade(&self) {
        if self.lane() == Lane::Actions {
            self.move_to(Lane::Waiting);
        }
    }

    /// Moves a read to the lane of streams. An action stays in its lane, whatever its response is.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if too many streams are open.
    pub(crate) fn become_stream(&self) -> Result<(), ActionError> {
        if self.lane() != Lane::Reads || self.move_to(Lane::Streams) {
            return Ok(());
        }
        Err(self.limiter.reject(Rejection::StreamsFull))
    }

    fn move_to(&self, lane: Lane) -> bool {
        let Some(permit) = self.limiter.try_acquire(lane) else { return false };
        *lock(&self.held) = self.limiter.held(lane, permit);
        true
    }

    fn lane(&self) -> Lane {
        lock(&self.held).lane
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({:?})", self.lane())
    }
}

/// One request in the queue.
struct Queued<'a> {
    limiter: &'a Limiter,
    /// How many were queued before it.
    ahead: usize,
    _counted: GaugeGuard,
}

impl<'a> Queued<'a> {
    fn enter(limiter: &'a Limiter) -> Self {
        let ahead = limiter.queued.fetch_add(1, Ordering::Relaxed);
        Queued { limiter, ahead, _counted: limiter.metrics.queued() }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.limiter.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long to stay in the queue: at most half of the time that the client waits.
fn queue_timeout(left: Option<Duration>) -> Duration {
    left.map_or(QUEUE_TIMEOUT, |left| QUEUE_TIMEOUT.min(left / 2))
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body, and what is held until it is sent or its client is gone.
pub(crate) struct GuardedBody<G> {
    body: Body,
    _guard: G,
}

impl<G> GuardedBody<G> {
    /// Holds the guard until the body ends.
    pub(crate) fn new(body: Body, guard: G) -> Self {
        GuardedBody { body, _guard: guard }
    }
}

impl<G: Unpin> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(actions: usize) -> Arc<Limiter> {
        Limiter::new(actions, usize::MAX, Arc::new(Metrics::new(None)))
    }

    async fn act(limiter: &Arc<Limiter>) -> Result<Arc<Permit>, ActionError> {
        limiter.acquire(Lane::Actions, None).await
    }

    #[test]
    fn a_request_is_queued_for_at_most_half_of_its_clients_time() {
        assert_eq!(queue_timeout(None), QUEUE_TIMEOUT);
        assert_eq!(queue_timeout(Some(SECOND * 60)), QUEUE_TIMEOUT);
        assert_eq!(queue_timeout(Some(SECOND)), SECOND / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn queued_requests_start_in_their_order_or_time_out() {
        let limiter = limiter(1);
        let first = act(&limiter).await.expect("is free");
        let next = tokio::spawn({
            let limiter = limiter.clone();
            async move { act(&limiter).await.map(|_| Instant::now()) }
        });
        tokio::time::sleep(SECOND).await;
        drop(first);
        let came = next.await.expect("ends").expect("is free");
        assert_eq!(came, Instant::now());
        let _held = act(&limiter).await.expect("is free");
        let began = Instant::now();
        let rejected = act(&limiter).await.map(|_| ()).expect_err("is not free");
        assert_eq!((rejected.code, began.elapsed()), (Code::Overloaded, QUEUE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_the_queue_is_rejected_at_once() {
        let limiter = limiter(1);
        let _held = act(&limiter).await.expect("is free");
        let queue: Vec<_> = (0..QUEUED_PER_PERMIT)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move { act(&limiter).await.map(|_| ()) })
            })
            .collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        let rejected = act(&limiter).await.map(|_| ()).expect_err("is not free");
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(rejected.retry_after_seconds(), Some(1));
        // A client that disconnects leaves the queue.
        queue[0].abort();
        tokio::task::yield_now().await;
        assert_eq!(limiter.queued.load(Ordering::Relaxed), QUEUED_PER_PERMIT - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_action_frees_its_permit() {
        let limiter = limiter(1);
        let waits = act(&limiter).await.expect("is free");
        waits.downgrade();
        let next = act(&limiter).await.expect("is free too");
        assert_eq!(waits.lane(), Lane::Waiting);
        next.downgrade();
        drop((waits, next));
        limiter.wait_idle().await;
    }

    #[tokio::test(start_paused = true)]
    async fn streams_have_a_limit_of_their_own() {
        let limiter = limiter(1);
        let read = async || limiter.acquire(Lane::Reads, None).await.expect("is free");
        let mut streams = Vec::new();
        for _ in 0..MAX_STREAMS {
            let permit = read().await;
            permit.become_stream().expect("is free");
            streams.push(permit);
        }
        let one_more = read().await;
        assert_eq!(one_more.become_stream().expect_err("is full").code, Code::Overloaded);
        // An action's response is sent all the same.
        assert!(act(&limiter).await.expect("is free").become_stream().is_ok());
        assert_eq!(limiter.lanes[Lane::Reads as usize].available_permits(), MAX_READS - 1);
    }

    #[test]
    fn reads_leave_connections_to_others() {
        let reads = |connections| {
            let limiter = Limiter::new(1, connections, Arc::new(Metrics::new(None)));
            limiter.lanes[Lane::Reads as usize].available_permits()
        };
        assert_eq!((reads(16), reads(146), reads(8192)), (8, 73, MAX_READS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_waits_briefly() {
        let limiter = limiter(1);
        let read = async || limiter.acquire(Lane::Reads, None).await;
        let mut permits = Vec::new();
        for _ in 0..MAX_READS {
            permits.push(read().await.expect("is free"));
        }
        let began = Instant::now();
        assert!(read().await.is_err());
        assert_eq!(began.elapsed(), READ_TIMEOUT);
        let releases = tokio::spawn(async move {
            tokio::time::sleep(READ_TIMEOUT / 2).await;
            permits.pop();
            permits
        });
        assert!(read().await.is_ok());
        drop(releases);
    }
}
