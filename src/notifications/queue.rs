//! The events that wait for the sink: a bounded number, in the memory of this process. Makes no calls.
//!
//! An event that was not delivered waits for its next attempt, and others are sent meanwhile.
//!
//! A full queue drops its oldest event. What has waited longest is what a person needs least by now, and a request for
//! an approval that is still valid is among the newest.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    notifications::{delivery::AttemptResult, event::Event, retries::Retries},
    telemetry::deliveries::{Deliveries, DeliveryLabels, no_deliveries},
};

/// Maximum number of events that wait. An event has some kilobytes, one about many targets up to a hundred.
const MAX_WAITING: usize = 256;

/// How many ids of events that wait or are delivered are remembered, so that a request that is resent does not notify
/// again.
const MAX_REMEMBERED: usize = 512;

/// The queue; a clone is the same one.
#[derive(Clone)]
pub(super) struct Queue {
    events: Arc<Mutex<Events>>,
    /// How many events are not done: those that wait, and the one that is being sent.
    open: watch::Sender<usize>,
    deliveries: Deliveries,
}

/// An event that waits, or is being sent.
pub(super) struct QueuedEvent {
    pub event: Event,
    arrived_at: Instant,
    /// When it is sent next, at the earliest.
    due_at: Instant,
    retries: Retries,
}

#[derive(Default)]
struct Events {
    /// In the order in which they arrived.
    waiting: VecDeque<QueuedEvent>,
    remembered: VecDeque<String>,
}

impl Events {
    /// Puts an event where it belongs; returns the one that is dropped for it.
    fn insert(&mut self, queued: QueuedEvent) -> Option<Event> {
        let at = self.waiting.partition_point(|it| it.arrived_at <= queued.arrived_at);
        self.waiting.insert(at, queued);
        let is_full = self.waiting.len() > MAX_WAITING;
        let dropped = if is_full { self.waiting.pop_front() } else { None };
        let dropped = dropped.map(|it| it.event);
        if let Some(event) = &dropped {
            self.forget(event);
        }
        dropped
    }

    /// Takes the event that has been due for longest, or returns when one will be.
    fn take_due(&mut self, now: Instant) -> Result<QueuedEvent, Option<Instant>> {
        let due = self.waiting.iter().enumerate().min_by_key(|(_, it)| it.due_at);
        let Some((at, due_at)) = due.map(|(at, it)| (at, it.due_at)) else { return Err(None) };
        if due_at > now {
            return Err(Some(due_at));
        }
        self.waiting.remove(at).ok_or(None)
    }

    fn forget(&mut self, event: &Event) {
        self.remembered.retain(|id| *id != event.id);
    }
}

impl Default for Queue {
    fn default() -> Self {
        let (open, _) = watch::channel(0);
        Queue { events: Arc::default(), open, deliveries: no_deliveries() }
    }
}

impl Queue {
    pub(super) fn push(&self, event: Event) {
        let now = Instant::now();
        let dropped = {
            let mut events = self.lock();
            if events.remembered.contains(&event.id) {
                return;
            }
            if events.remembered.len() == MAX_REMEMBERED {
                events.remembered.pop_front();
            }
            events.remembered.push_back(event.id.clone());
            events.insert(QueuedEvent {
                event,
                arrived_at: now,
                due_at: now,
                retries: Retries::default(),
            })
        };
        self.open.send_modify(|open| *open += 1);
        self.drop_event(dropped.as_ref());
    }

    /// Waits for the next event that is due, and takes it.
    pub(super) async fn next(&self) -> QueuedEvent {
        let mut open = self.open.subscribe();
        loop {
            let taken = self.lock().take_due(Instant::now());
            // The sender is this queue's own.
            match taken {
                Ok(queued) => return queued,
                Err(Some(due_at)) => drop(timeout_at(due_at, open.changed()).await),
                Err(None) => drop(open.changed().await),
            }
        }
    }

    /// An attempt to send this event, which was taken, ended so, and why. The event waits for the next attempt, or is
    /// done. One that was not delivered may be put into the queue again.
    pub(super) fn done(&self, mut queued: QueuedEvent, result: AttemptResult, why: &str) {
        let event = &queued.event.id;
        let result = match result {
            AttemptResult::Delivered => "delivered",
            AttemptResult::Rejected => {
                tracing::error!(event, why, "notification rejected by the sink");
                "rejected"
            }
            AttemptResult::Retry(least) => match queued.retries.next(least, Instant::now()) {
                Some(due_at) => {
                    tracing::debug!(event, why, "notification not delivered yet");
                    let dropped = self.lock().insert(QueuedEvent { due_at, ..queued });
                    return self.drop_event(dropped.as_ref());
                }
                None => {
                    tracing::error!(event, why, "notification not delivered");
                    "failed"
                }
            },
        };
        if result != "delivered" {
            self.lock().forget(&queued.event);
        }
        self.count(result);
        self.close();
    }

    /// Counts an event that was dropped.
    fn drop_event(&self, dropped: Option<&Event>) {
        if let Some(event) = dropped {
            tracing::error!(event = event.id, "notification dropped: the queue is full");
            self.count("dropped");
            self.close();
        }
    }

    fn close(&self) {
        self.open.send_modify(|open| *open = open.saturating_sub(1));
    }

    /// Waits until no event is open, for this time at most.
    pub(super) async fn flush(&self, limit: Duration) {
        let mut open = self.open.subscribe();
        if timeout(limit, open.wait_for(|open| *open == 0)).await.is_err() {
            let left = *self.open.borrow();
            tracing::error!(left, "notifications lost: not delivered before the process ended");
        }
    }

    pub(super) fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    fn count(&self, result: &'static str) {
        self.deliveries.get_or_create(&DeliveryLabels { result }).inc();
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notifications::retries::RETRY_TIMEOUT;

    fn event(number: usize) -> Event {
        Event { id: number.to_string(), body: Vec::new() }
    }

    fn count(queue: &Queue, result: &'static str) -> u64 {
        queue.deliveries.get_or_create(&DeliveryLabels { result }).get()
    }

    #[tokio::test]
    async fn a_full_queue_drops_the_oldest_events_and_counts_them() {
        let queue = Queue::default();
        (0..MAX_WAITING + 3).for_each(|number| queue.push(event(number)));
        assert_eq!(count(&queue, "dropped"), 3);
        for number in 3..MAX_WAITING + 3 {
            let queued = queue.next().await;
            assert_eq!(queued.event.id, number.to_string());
            queue.done(queued, AttemptResult::Delivered, "why");
        }
        queue.flush(Duration::ZERO).await;
        assert_eq!((*queue.open.borrow(), count(&queue, "delivered")), (0, MAX_WAITING as u64));
    }

    #[tokio::test]
    async fn an_event_is_sent_again_only_if_it_was_not_delivered_or_is_forgotten() {
        let queue = Queue::default();
        let open = || *queue.open.borrow();
        queue.push(event(1));
        queue.push(event(1));
        assert_eq!(open(), 1, "it waits");
        queue.done(queue.next().await, AttemptResult::Rejected, "why");
        queue.push(event(1));
        assert_eq!(open(), 1, "it was not delivered");
        queue.done(queue.next().await, AttemptResult::Delivered, "why");
        queue.push(event(1));
        assert_eq!(open(), 0, "it was delivered");
        for number in 2..MAX_REMEMBERED + 2 {
            queue.push(event(number));
            queue.done(queue.next().await, AttemptResult::Delivered, "why");
        }
        queue.push(event(1));
        assert_eq!(open(), 1, "it is forgotten");
        (1..=MAX_WAITING).for_each(|number| queue.push(event(number + 10_000)));
        queue.push(event(1));
        assert_eq!(count(&queue, "dropped"), 2, "it was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_fails_for_minutes_does_not_delay_others() {
        let queue = Queue::default();
        let began = Instant::now();
        queue.push(event(1));
        queue.push(event(2));
        queue.done(queue.next().await, AttemptResult::Retry(Duration::from_secs(600)), "why");
        let second = queue.next().await;
        assert_eq!(second.event.id, "2");
        queue.done(second, AttemptResult::Delivered, "why");
        assert_eq!(began.elapsed(), Duration::ZERO);
        // One that arrives while the first waits is sent at once.
        let waiting = queue.clone();
        let next = tokio::spawn(async move { waiting.next().await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        queue.push(event(3));
        let third = next.await.expect("ends");
        assert_eq!((third.event.id.as_str(), began.elapsed().as_secs()), ("3", 60));
        queue.done(third, AttemptResult::Delivered, "why");
        queue.push(event(1));
        // The last attempt is made when the time of the first event is over.
        let first = queue.next().await;
        assert_eq!((first.event.id.as_str(), began.elapsed()), ("1", RETRY_TIMEOUT));
        queue.done(first, AttemptResult::Retry(Duration::ZERO), "why");
        assert_eq!((*queue.open.borrow(), count(&queue, "failed")), (0, 1));
    }

    #[tokio::test]
    async fn an_event_that_waits_for_its_next_attempt_is_the_first_to_be_dropped() {
        let queue = Queue::default();
        queue.push(event(0));
        let first = queue.next().await;
        (1..=MAX_WAITING).for_each(|number| queue.push(event(number)));
        queue.done(first, AttemptResult::Retry(Duration::ZERO), "why");
        assert_eq!((*queue.open.borrow(), count(&queue, "dropped")), (MAX_WAITING, 1));
        assert_eq!(queue.next().await.event.id, "1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_when_all_are_done_or_the_time_is_over() {
        let queue = Queue::default();
        queue.flush(Duration::from_secs(5)).await;
        queue.push(event(1));
        let began = tokio::time::Instant::now();
        queue.flush(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let other = queue.clone();
        let worker = tokio::spawn(async move {
            other.done(other.next().await, AttemptResult::Rejected, "why");
        });
        queue.flush(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        worker.await.expect("ends");
    }
}
