//! Notifications: what became of real actions, and which wait for an approval, as events for one sink.
//!
//! [`event`] says what an event says, [`signature`] signs it, [`delivery`] sends it, [`retries`] says when it is
//! resent, [`queue`] keeps events until they are sent. The status of the sink's response and its `Retry-After` are all
//! that is read of it. Knows no entry point.

use std::time::Duration;

use http::Uri;

use crate::{
    config::{SinkSettings, reload::Reloading},
    contract::error::{ActionError, Code},
    notifications::{delivery::Delivery, event::Event, queue::Queue, signature::Secrets},
    telemetry::{client::HttpClient, deliveries::Deliveries},
};

mod delivery;
pub(crate) mod event;
mod queue;
mod retries;
mod signature;

/// Checks that the file has secrets.
///
/// # Errors
/// [`Code::Configuration`], naming the file.
pub(crate) fn check_secret(settings: &SinkSettings) -> Result<(), ActionError> {
    secrets(settings).map(drop)
}

fn secrets(settings: &SinkSettings) -> Result<Reloading<Secrets>, ActionError> {
    Reloading::of(vec![settings.secret.clone()])
}

/// Sends events to the sink, one after the other, in a task of its own.
pub(crate) struct Notifier {
    queue: Queue,
    worker: tokio::task::AbortHandle,
}

impl Notifier {
    /// Starts the task; needs a runtime.
    ///
    /// # Errors
    /// [`Code::Configuration`], naming what cannot be used.
    pub(crate) fn start(settings: &SinkSettings) -> Result<Self, ActionError> {
        let secrets = secrets(settings)?;
        let client = HttpClient::new().map_err(|error| {
            ActionError::new(Code::Configuration, format!("the client of the sink: {error}"))
                .with_hint("set SSL_CERT_FILE to a PEM file with certificate authorities")
        })?;
        let url: Uri = settings
            .url
            .as_str()
            .parse()
            .map_err(|_| ActionError::new(Code::Internal, "the sink's URL cannot be parsed"))?;
        let queue = Queue::default();
        let delivery = Delivery::new(client, url, secrets);
        let worker = tokio::spawn(run(queue.clone(), delivery)).abort_handle();
        Ok(Notifier { queue, worker })
    }

    /// Puts an event into the queue, unless this process has sent it before. This never waits.
    pub(crate) fn send(&self, event: Event) {
        self.queue.push(event);
    }

    /// Waits until every event is sent or given up, for this time at most.
    pub(crate) async fn flush(&self, limit: Duration) {
        self.queue.flush(limit).await;
    }

    /// What became of the events so far.
    pub(crate) fn deliveries(&self) -> &Deliveries {
        self.queue.deliveries()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

async fn run(queue: Queue, delivery: Delivery) {
    loop {
        let queued = queue.next().await;
        let (result, why) = delivery.attempt(&queued.event).await;
        queue.done(queued, result, &why);
    }
}
