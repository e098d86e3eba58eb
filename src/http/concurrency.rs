//! How many requests are in progress at once, how many may wait for that, and how long.
//!
//! Four lanes, so that no kind of request starves another. Reads wait briefly or are rejected. Actions wait
//! in a bounded queue. An action that only waits for its effect, and a response that is a stream, cost
//! little and may last: each has a lane of its own. A client that disconnects from the queue leaves it, and
//! its request is never started.
//!
//! Where several clusters are listed, the actions on each have permits and a queue of their own, so that one that does
//! not answer keeps no other from acting.

use std::{
    collections::HashMap,
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
    telemetry::{
        calls::ClusterLabel,
        metrics::{GaugeGuard, Metrics},
    },
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

/// The limits of all lanes.
pub(crate) struct Limiter {
    reads: Pool,
    waiting: Pool,
    streams: Pool,
    /// The actions on each cluster of a list.
    listed: HashMap<Arc<str>, ActionPool>,
    /// The other actions: without a list all, with one those that mean no cluster of it.
    unlisted: ActionPool,
    metrics: Arc<Metrics>,
}

/// The permits of a lane, or in the lane of actions those of one cluster.
struct Pool {
    lane: Lane,
    limit: usize,
    permits: Arc<Semaphore>,
    in_use: Gauge,
}

/// The permits of actions on one cluster, and the queue for them.
struct ActionPool {
    pool: Pool,
    queued: AtomicUsize,
    in_queue: Gauge,
}

impl Pool {
    fn new(lane: Lane, limit: usize, cluster: &ClusterLabel, metrics: &Metrics) -> Self {
        let in_use = metrics.concurrency_limit(lane.name(), cluster, limit);
        Pool { lane, limit, permits: Arc::new(Semaphore::new(limit)), in_use }
    }

    fn try_acquire(&self) -> Option<HeldPermit> {
        self.permits.clone().try_acquire_owned().ok().map(|permit| self.held(permit))
    }

    /// A permit, if one becomes free before `end`.
    async fn acquire_until(&self, end: Instant) -> Option<HeldPermit> {
        // The semaphore is never closed.
        let permit = timeout_at(end, self.permits.clone().acquire_owned()).await.ok()?.ok()?;
        Some(self.held(permit))
    }

    fn held(&self, permit: OwnedSemaphorePermit) -> HeldPermit {
        HeldPermit { lane: self.lane, _permit: permit, _counted: GaugeGuard::new(&self.in_use) }
    }

    async fn wait_idle(&self) {
        let all = self.permits.acquire_many(self.limit as u32).await;
        let _ = all.map(|all| all.forget());
    }
}

impl ActionPool {
    fn new(limit: usize, cluster: &ClusterLabel, metrics: &Metrics) -> Self {
        let pool = Pool::new(Lane::Actions, limit, cluster, metrics);
        ActionPool { pool, queued: AtomicUsize::new(0), in_queue: metrics.queue(cluster) }
    }

    fn queue_limit(&self) -> usize {
        self.pool.limit * QUEUED_PER_PERMIT
    }
}

impl Limiter {
    /// A limiter that permits so many actions at once, on so many connections. Each of these clusters has an equal part
    /// of the actions for itself, and so have requests that mean none of them: the number bounds the memory of all, and
    /// a cluster that does not answer holds its own part alone.
    ///
    /// # Errors
    /// [`Code::Configuration`] if there are more parts than actions.
    pub(crate) fn new(
        actions: usize,
        connections: usize,
        clusters: &[Arc<str>],
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ActionError> {
        let reads = MAX_READS.min(connections / CONNECTIONS_PER_READ);
        let parts = clusters.len() + 1;
        if actions < parts {
            return Err(too_few(actions, clusters.len()));
        }
        let lane = |lane, limit| Pool::new(lane, limit, &ClusterLabel::default(), &metrics);
        let pool = |index, cluster| {
            ActionPool::new(part(actions, parts, index), &ClusterLabel(cluster), &metrics)
        };
        let listed = clusters.iter().enumerate();
        // A counter is exported from the start, so that its first increase is seen.
        for reason in Rejection::ALL.map(Rejection::name).into_iter().chain([DEADLINE]) {
            let _ = metrics.rejected_requests(reason);
        }
        Ok(Arc::new(Limiter {
            reads: lane(Lane::Reads, reads),
            waiting: lane(Lane::Waiting, MAX_WAITING),
            streams: lane(Lane::Streams, MAX_STREAMS),
            listed: listed
                .map(|(index, name)| (name.clone(), pool(index, Some(name.clone()))))
                .collect(),
            unlisted: pool(clusters.len(), None),
            metrics: metrics.clone(),
        }))
    }

    /// A permit of the lane of reads; the client expects its response by `deadline`.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if no permit becomes free in time.
    pub(crate) async fn acquire_read(
        self: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Permit>, ActionError> {
        let now = Instant::now();
        // No more of them wait than there are connections.
        let end = now + queue_timeout(left(deadline, now)).min(READ_TIMEOUT);
        match self.reads.acquire_until(end).await {
            Some(held) => Ok(self.permit(held)),
            None => Err(self.reject(Rejection::ReadsFull)),
        }
    }

    /// A permit of the lane of actions, for this cluster of the list; the client expects its response by `deadline`.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if the queue is full, or no permit becomes free in time.
    pub(crate) async fn acquire_action(
        self: &Arc<Self>,
        cluster: Option<&str>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Permit>, ActionError> {
        let actions = cluster.and_then(|name| self.listed.get(name)).unwrap_or(&self.unlisted);
        if let Some(held) = actions.pool.try_acquire() {
            return Ok(self.permit(held));
        }
        let queued = Queued::enter(actions);
        if queued.ahead >= actions.queue_limit() {
            return Err(self.reject(Rejection::QueueFull));
        }
        let now = Instant::now();
        let acquired = actions.pool.acquire_until(now + queue_timeout(left(deadline, now))).await;
        self.metrics.queued_for(now.elapsed());
        match acquired {
            Some(held) => Ok(self.permit(held)),
            None => Err(self.reject(Rejection::QueueTimeout)),
        }
    }

    /// Returns when only reads are in progress. No request may be accepted any more.
    pub(crate) async fn wait_idle(&self) {
        // Permits move from the lane of actions to the others.
        for actions in self.listed.values().chain([&self.unlisted]) {
            actions.pool.wait_idle().await;
        }
        self.waiting.wait_idle().await;
        self.streams.wait_idle().await;
    }

    fn permit(self: &Arc<Self>, held: HeldPermit) -> Arc<Permit> {
        let changes_nothing = AtomicBool::new(held.lane == Lane::Reads);
        Arc::new(Permit { limiter: self.clone(), held: Mutex::new(held), changes_nothing })
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

/// The size of the part with this index, of so many equal parts: the first ones share the remainder.
fn part(all: usize, parts: usize, index: usize) -> usize {
    all / parts + usize::from(index < all % parts)
}

fn too_few(actions: usize, clusters: usize) -> ActionError {
    let detail = format!(
        "ACTION_EXECUTOR_MAX_ACTIONS: {actions} is too few for a list of {clusters} clusters"
    );
    ActionError::new(Code::Configuration, detail).with_hint(format!(
        "set it to {} at least: one for each cluster, and one for the requests that name no cluster",
        clusters + 1
    ))
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
            self.move_to(&self.limiter.waiting);
        }
    }

    /// Moves a read to the lane of streams. An action stays in its lane, whatever its response is.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if too many streams are open.
    pub(crate) fn become_stream(&self) -> Result<(), ActionError> {
        if self.lane() != Lane::Reads || self.move_to(&self.limiter.streams) {
            return Ok(());
        }
        Err(self.limiter.reject(Rejection::StreamsFull))
    }

    fn move_to(&self, pool: &Pool) -> bool {
        let Some(held) = pool.try_acquire() else { return false };
        *lock(&self.held) = held;
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
    actions: &'a ActionPool,
    /// How many were queued before it.
    ahead: usize,
    _counted: GaugeGuard,
}

impl<'a> Queued<'a> {
    fn enter(actions: &'a ActionPool) -> Self {
        let ahead = actions.queued.fetch_add(1, Ordering::Relaxed);
        Queued { actions, ahead, _counted: GaugeGuard::new(&actions.in_queue) }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.actions.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The time until `deadline`.
fn left(deadline: Option<Instant>, now: Instant) -> Option<Duration> {
    deadline.map(|end| end.saturating_duration_since(now))
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
        limiter_of(actions, usize::MAX, &[]).expect("is right")
    }

    fn limiter_of(
        actions: usize,
        connections: usize,
        clusters: &[Arc<str>],
    ) -> Result<Arc<Limiter>, ActionError> {
        Limiter::new(actions, connections, clusters, Arc::new(Metrics::new(None)))
    }

    async fn act(limiter: &Arc<Limiter>) -> Result<Arc<Permit>, ActionError> {
        limiter.acquire_action(None, None).await
    }

    #[tokio::test(start_paused = true)]
    async fn actions_on_one_cluster_leave_those_on_another_their_permits() {
        let clusters = [Arc::from("green"), Arc::from("blue")];
        let limiter = limiter_of(6, usize::MAX, &clusters).expect("is right");
        let act = async |cluster| limiter.acquire_action(cluster, None).await;
        let mut held = Vec::new();
        for cluster in [Some("green"), Some("blue"), None, Some("red")] {
            // What is not in the list shares the part of what means no cluster.
            let part = if cluster == Some("red") { 0 } else { 2 };
            for _ in 0..part {
                held.push(act(cluster).await.expect("is free"));
            }
            let began = Instant::now();
            assert_eq!(act(cluster).await.map(|_| ()).expect_err("is full").code, Code::Overloaded);
            assert_eq!(began.elapsed(), QUEUE_TIMEOUT, "{cluster:?}");
        }
        // One that only waits frees the part of its own cluster.
        held[2].downgrade();
        assert!(act(Some("blue")).await.is_ok());
        assert!(act(Some("green")).await.is_err());
    }

    #[test]
    fn the_parts_of_all_clusters_are_the_permits_of_one() {
        let names: Vec<Arc<str>> = (0..9).map(|it| Arc::from(it.to_string())).collect();
        for (actions, clusters, parts) in [
            (128, 0, vec![128]),
            (128, 1, vec![64, 64]),
            (128, 2, vec![43, 43, 42]),
            (3, 2, vec![1, 1, 1]),
            (7, 3, vec![2, 2, 2, 1]),
        ] {
            let limiter = limiter_of(actions, 16, &names[..clusters]).expect("is right");
            let listed = names[..clusters].iter().map(|name| &limiter.listed[name]);
            let limits: Vec<_> =
                listed.chain([&limiter.unlisted]).map(|it| it.pool.limit).collect();
            assert_eq!(limits, parts);
            assert_eq!(limits.iter().sum::<usize>(), actions);
        }
        let error = limiter_of(9, 16, &names).err().expect("is refused");
        assert_eq!(error.code, Code::Configuration);
        assert!(error.detail.contains("9 is too few for a list of 9 clusters"), "{error:?}");
        assert!(error.hint.expect("has one").starts_with("set it to 10 at least"));
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
        assert_eq!(limiter.unlisted.queued.load(Ordering::Relaxed), QUEUED_PER_PERMIT - 1);
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
        let read = async || limiter.acquire_read(None).await.expect("is free");
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
        assert_eq!(limiter.reads.permits.available_permits(), MAX_READS - 1);
    }

    #[test]
    fn reads_leave_connections_to_others() {
        let reads = |connections| {
            let limiter = limiter_of(1, connections, &[]).expect("is right");
            limiter.reads.permits.available_permits()
        };
        assert_eq!((reads(16), reads(146), reads(8192)), (8, 73, MAX_READS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_waits_briefly() {
        let limiter = limiter(1);
        let read = async || limiter.acquire_read(None).await;
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
