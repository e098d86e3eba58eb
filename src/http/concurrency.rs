//! Room for requests: how many are under way at once, how many may wait for that, and how long.
//!
//! Four rooms, so that none starves another. Questions wait for a moment or are refused. Actions wait in a
//! bounded line, and are refused as soon as it is known that they would wait too long. An action of which
//! nothing is left but a long wait, and an answer that is a stream, cost little and may last: each has a
//! room of its own. Whoever hangs up while in the line has begun nothing and leaves it.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Method,
    body::{Body as HttpBody, Bytes, Frame, SizeHint},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    contract::error::{ActionError, Code},
    http::upstream::Body,
    telemetry::metrics::{GaugeGuard, Metrics},
};

/// Most questions at once. They cost nothing, and a busy server still says that it lives.
const QUESTIONS: usize = 256;

/// Most streams at once.
const STREAMS: usize = 64;

/// Most actions at once that only wait. Each holds a thread of the router and three descriptors.
const WAITS: usize = 1024;

/// How many may be in line for each place there is.
const LINE_PER_PLACE: usize = 4;

/// Longest time that a question waits; the others are answered so quickly that it is enough.
const MOMENT: Duration = Duration::from_secs(1);

/// Longest time in the line.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many places must have been freed before a rate is believed.
const FEW: usize = 8;

/// Longest time that a refused caller is asked to stay away.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// In the words of the metrics: the client's time was over first.
pub const UNFINISHED: &str = "deadline";

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It asks something.
    Questions,
    /// It does something.
    Actions,
    /// It has done it, and waits for the effect.
    Waits,
    /// Its answer is a stream.
    Streams,
}

impl Room {
    const ALL: [Room; 4] = [Room::Questions, Room::Actions, Room::Waits, Room::Streams];

    /// The room in the words of the metrics.
    const fn name(self) -> &'static str {
        match self {
            Room::Questions => "reads",
            Room::Actions => "actions",
            Room::Waits => "waiting",
            Room::Streams => "streams",
        }
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The room takes no more, and has no line.
    NoRoom(Room),
    /// The line is full.
    LineFull,
    /// The line moves so slowly that the wait would be longer than is waited.
    LineSlow,
    /// It was waited as long as is waited.
    Waited,
}

impl Refusal {
    const ALL: [Refusal; 5] = [
        Refusal::NoRoom(Room::Questions),
        Refusal::NoRoom(Room::Streams),
        Refusal::LineFull,
        Refusal::LineSlow,
        Refusal::Waited,
    ];

    /// The reason in the words of the metrics.
    const fn name(self) -> &'static str {
        match self {
            Refusal::NoRoom(Room::Streams) => "streams_full",
            Refusal::NoRoom(_) => "reads_full",
            Refusal::LineFull => "queue_full",
            Refusal::LineSlow => "queue_slow",
            Refusal::Waited => "queue_timeout",
        }
    }

    const fn detail(self) -> &'static str {
        match self {
            Refusal::NoRoom(Room::Streams) => "too many streams are open",
            Refusal::NoRoom(_) => "too many questions are under way",
            Refusal::LineFull => "too many actions are under way and in line",
            Refusal::LineSlow => {
                "too many actions are under way, and those in line would wait too long"
            }
            Refusal::Waited => "too many actions are under way, and no place became free in time",
        }
    }
}

/// All rooms, and the line in front of one of them.
pub struct Queue {
    rooms: [Arc<Semaphore>; 4],
    limits: [usize; 4],
    in_line: AtomicUsize,
    pace: Mutex<Pace>,
    places: Mutex<HashMap<u64, Weak<Place>>>,
    numbers: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Queue {
    /// Room for so many actions at once, and for as many waits as this number of open files allows.
    #[must_use]
    pub fn new(actions: usize, descriptors: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        let limits = [QUESTIONS, actions, waits(descriptors), STREAMS];
        for room in Room::ALL {
            metrics.concurrency_limit(room.name(), limits[room as usize]);
        }
        // What has not happened yet is told as none, so that the first one shows as an increase.
        for reason in Refusal::ALL.map(Refusal::name).into_iter().chain([UNFINISHED]) {
            let _ = metrics.rejected_requests(reason);
        }
        Arc::new(Queue {
            rooms: limits.map(|limit| Arc::new(Semaphore::new(limit))),
            limits,
            in_line: AtomicUsize::new(0),
            pace: Mutex::new(Pace::over(actions)),
            places: Mutex::default(),
            numbers: AtomicU64::new(0),
            metrics,
        })
    }

    /// A place for a request of this method; `until` is when its client expects the answer.
    ///
    /// # Errors
    /// [`Code::Overloaded`], as early as it is known that there will be none in time.
    pub async fn enter(
        self: &Arc<Self>,
        method: &Method,
        until: Option<Instant>,
    ) -> Result<Arc<Place>, ActionError> {
        let room = if method == Method::POST { Room::Actions } else { Room::Questions };
        if let Some(permit) = self.permit(room) {
            return Ok(self.place(room, permit));
        }
        let now = Instant::now();
        let patience = patience(until.map(|until| until.saturating_duration_since(now)));
        if room == Room::Questions {
            // No more of them wait than there are connections.
            let permit = self.rooms[room as usize].clone().acquire_owned();
            return match timeout_at(now + patience.min(MOMENT), permit).await {
                Ok(Ok(permit)) => Ok(self.place(room, permit)),
                _ => Err(self.refuse(Refusal::NoRoom(room), None)),
            };
        }
        let waiting = Waiting::behind(self);
        let expected = lock(&self.pace).expected(waiting.ahead, now);
        if let Some(refusal) = refusal(waiting.ahead, self.line(), expected, patience) {
            return Err(self.refuse(refusal, expected));
        }
        let permit = timeout_at(now + patience, self.rooms[room as usize].clone().acquire_owned());
        let permit = permit.await;
        self.metrics.queued_for(now.elapsed());
        match permit {
            Ok(Ok(permit)) => Ok(self.place(room, permit)),
            _ => Err(self.refuse(Refusal::Waited, expected)),
        }
    }

    /// The request of this number needs its place no more than a wait does.
    pub fn rest(&self, number: u64) {
        let place = lock(&self.places).get(&number).and_then(Weak::upgrade);
        if let Some(place) = place {
            place.move_to(Room::Waits);
        }
    }

    /// Returns when nobody is in any room but that of the questions. Nobody must come any more.
    pub async fn emptied(&self) {
        // In this order: from the actions they go to the others.
        for room in [Room::Actions, Room::Waits, Room::Streams] {
            // Closed by nobody, so this waits for the last place to be free.
            let all = self.limits[room as usize] as u32;
            let _ = self.rooms[room as usize].acquire_many(all).await.map(|all| all.forget());
        }
    }

    fn line(&self) -> usize {
        self.limits[Room::Actions as usize] * LINE_PER_PLACE
    }

    fn permit(&self, room: Room) -> Option<OwnedSemaphorePermit> {
        self.rooms[room as usize].clone().try_acquire_owned().ok()
    }

    fn place(self: &Arc<Self>, room: Room, permit: OwnedSemaphorePermit) -> Arc<Place> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let taken = Mutex::new(Taken::new(room, permit, &self.metrics));
        let place = Arc::new(Place { queue: self.clone(), number, taken });
        if room == Room::Actions {
            lock(&self.places).insert(number, Arc::downgrade(&place));
        }
        place
    }

    fn freed(&self, room: Room) {
        if room == Room::Actions {
            lock(&self.pace).freed(Instant::now(), self.in_line.load(Ordering::Relaxed));
        }
    }

    fn refuse(&self, refusal: Refusal, expected: Option<Duration>) -> ActionError {
        self.metrics.rejected_requests(refusal.name()).inc();
        let wait = expected.unwrap_or_default().clamp(Duration::from_secs(1), LONGEST_RETRY);
        ActionError::new(Code::Overloaded, refusal.detail()).with_retry_after(Some(wait))
    }
}

/// A place in one of the rooms, until it is dropped.
pub struct Place {
    queue: Arc<Queue>,
    number: u64,
    taken: Mutex<Taken>,
}

struct Taken {
    room: Room,
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

impl Taken {
    fn new(room: Room, permit: OwnedSemaphorePermit, metrics: &Metrics) -> Self {
        Taken { room, _permit: permit, _counted: metrics.permit_acquired(room.name()) }
    }
}

impl Place {
    /// By which the queue knows it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Moves to the room of the streams. Who has acted keeps the old place if there is no new one.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if there is no room for one more stream.
    pub fn stream(&self) -> Result<(), ActionError> {
        let asks = lock(&self.taken).room == Room::Questions;
        if self.move_to(Room::Streams) || !asks {
            return Ok(());
        }
        Err(self.queue.refuse(Refusal::NoRoom(Room::Streams), None))
    }

    /// Whether there was room.
    fn move_to(&self, room: Room) -> bool {
        let mut taken = lock(&self.taken);
        if taken.room == room || (room == Room::Waits && taken.room != Room::Actions) {
            return false;
        }
        let Some(permit) = self.queue.permit(room) else { return false };
        let left = taken.room;
        *taken = Taken::new(room, permit, &self.queue.metrics);
        drop(taken);
        self.queue.freed(left);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.queue.places).remove(&self.number);
        let room = lock(&self.taken).room;
        self.queue.freed(room);
    }
}

/// Somebody in the line.
struct Waiting<'a> {
    queue: &'a Queue,
    /// How many were there before.
    ahead: usize,
    _counted: GaugeGuard,
}

impl<'a> Waiting<'a> {
    fn behind(queue: &'a Queue) -> Self {
        let ahead = queue.in_line.fetch_add(1, Ordering::Relaxed);
        Waiting { queue, ahead, _counted: queue.metrics.queued() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.in_line.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How quickly places have become free while somebody was in line.
struct Pace {
    freed: VecDeque<Instant>,
    /// As many as there are places, so that those that end together count with the pause before them.
    kept: usize,
}

impl Pace {
    fn over(places: usize) -> Self {
        Pace { freed: VecDeque::new(), kept: places.max(FEW) + 1 }
    }

    fn freed(&mut self, now: Instant, in_line: usize) {
        if in_line == 0 {
            // A quiet time tells nothing of how quick a busy one will be.
            self.freed.clear();
            return;
        }
        if self.freed.len() == self.kept {
            self.freed.pop_front();
        }
        self.freed.push_back(now);
    }

    /// How long one with so many ahead will wait; none while too little is known.
    fn expected(&self, ahead: usize, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(*self.freed.front()?);
        let freed = u32::try_from(self.freed.len() - 1).ok().filter(|it| *it as usize >= FEW)?;
        Some(since / freed * u32::try_from(ahead + 1).ok()?)
    }
}

/// Whether to refuse one who would be in line behind so many.
fn refusal(
    ahead: usize,
    line: usize,
    expected: Option<Duration>,
    patience: Duration,
) -> Option<Refusal> {
    if ahead >= line {
        return Some(Refusal::LineFull);
    }
    expected.filter(|wait| *wait > patience).map(|_| Refusal::LineSlow)
}

/// How long to stay in line: not over half of the time that the client gives.
fn patience(left: Option<Duration>) -> Duration {
    left.map_or(PATIENCE, |left| PATIENCE.min(left / 2))
}

/// As many waits as an eighth of the descriptors.
fn waits(descriptors: usize) -> usize {
    (descriptors / 8).clamp(8, WAITS)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A body, with what is to be held until it is sent or nobody wants it any more.
pub struct Attended<H> {
    body: Body,
    _held: Option<H>,
}

impl<H> Attended<H> {
    /// Holds this until the end.
    pub fn new(body: Body, held: Option<H>) -> Self {
        Attended { body, _held: held }
    }
}

impl<H: Unpin> HttpBody for Attended<H> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
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

    fn queue(actions: usize) -> Arc<Queue> {
        Queue::new(actions, 1024, Arc::new(Metrics::new(None)))
    }

    async fn act(queue: &Arc<Queue>) -> Result<Arc<Place>, ActionError> {
        queue.enter(&Method::POST, None).await
    }

    #[test]
    fn a_full_line_and_a_slow_one_take_nobody() {
        assert_eq!(refusal(0, 4, None, SECOND), None);
        assert_eq!(refusal(3, 4, Some(SECOND), SECOND), None);
        assert_eq!(refusal(4, 4, None, SECOND), Some(Refusal::LineFull));
        assert_eq!(refusal(1, 4, Some(SECOND * 2), SECOND), Some(Refusal::LineSlow));
    }

    #[test]
    fn nobody_stays_in_line_longer_than_half_of_the_clients_time() {
        assert_eq!(patience(None), PATIENCE);
        assert_eq!(patience(Some(SECOND * 60)), PATIENCE);
        assert_eq!(patience(Some(SECOND)), SECOND / 2);
    }

    #[test]
    fn the_pace_is_that_of_a_busy_time() {
        let mut pace = Pace::over(4);
        let began = Instant::now();
        assert_eq!(pace.expected(10, began), None);
        for number in 0..9 {
            pace.freed(began + SECOND * number, 3);
        }
        assert_eq!(pace.expected(4, began + SECOND * 8), Some(SECOND * 5));
        // Where nothing becomes free any more it gets slower by itself.
        assert_eq!(pace.expected(4, began + SECOND * 80), Some(SECOND * 50));
        pace.freed(began + SECOND * 81, 0);
        assert_eq!(pace.expected(4, began + SECOND * 82), None);
    }

    #[tokio::test(start_paused = true)]
    async fn those_in_line_come_in_their_order_or_not_in_time() {
        let queue = queue(1);
        let first = act(&queue).await.expect("has room");
        let next = tokio::spawn({
            let queue = queue.clone();
            async move { act(&queue).await.map(|_| Instant::now()) }
        });
        tokio::time::sleep(SECOND).await;
        drop(first);
        let came = next.await.expect("ends").expect("has room");
        assert_eq!(came, Instant::now());
        let _held = act(&queue).await.expect("has room");
        let began = Instant::now();
        let refused = act(&queue).await.map(|_| ()).expect_err("has no room");
        assert_eq!((refused.code, began.elapsed()), (Code::Overloaded, PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn one_too_many_is_refused_at_once() {
        let queue = queue(1);
        let _held = act(&queue).await.expect("has room");
        let line: Vec<_> = (0..LINE_PER_PLACE)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { act(&queue).await.map(|_| ()) })
            })
            .collect();
        tokio::task::yield_now().await;
        let began = Instant::now();
        let refused = act(&queue).await.map(|_| ()).expect_err("has no room");
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(refused.retry_after_seconds(), Some(1));
        // Who hangs up leaves the line.
        line[0].abort();
        tokio::task::yield_now().await;
        assert_eq!(queue.in_line.load(Ordering::Relaxed), LINE_PER_PLACE - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_waits_leaves_its_place_to_the_next() {
        let queue = queue(1);
        let waits = act(&queue).await.expect("has room");
        queue.rest(waits.number());
        let next = act(&queue).await.expect("has room too");
        assert_eq!(lock(&waits.taken).room, Room::Waits);
        queue.rest(next.number());
        drop((waits, next));
        queue.emptied().await;
    }

    #[tokio::test(start_paused = true)]
    async fn streams_have_room_of_their_own_and_no_more() {
        let queue = queue(1);
        let ask = async || queue.enter(&Method::GET, None).await.expect("has room");
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let place = ask().await;
            place.stream().expect("has room");
            streams.push(place);
        }
        let one_more = ask().await;
        assert_eq!(one_more.stream().expect_err("has none").code, Code::Overloaded);
        // What was done is done, and told.
        assert!(act(&queue).await.expect("has room").stream().is_ok());
        assert_eq!(queue.rooms[Room::Questions as usize].available_permits(), QUESTIONS - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_for_a_moment_and_no_longer() {
        let queue = queue(1);
        let ask = async || queue.enter(&Method::GET, None).await;
        let mut places = Vec::new();
        for _ in 0..QUESTIONS {
            places.push(ask().await.expect("has room"));
        }
        let began = Instant::now();
        assert!(ask().await.is_err());
        assert_eq!(began.elapsed(), MOMENT);
        let leaves = tokio::spawn(async move {
            tokio::time::sleep(MOMENT / 2).await;
            places.pop();
            places
        });
        assert!(ask().await.is_ok());
        drop(leaves);
    }

    #[test]
    fn waits_are_as_many_as_descriptors_allow() {
        assert_eq!((waits(64), waits(1024), waits(1 << 20)), (8, 128, WAITS));
    }
}
