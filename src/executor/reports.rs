//! What is reported of a real action once it has ended: a signed receipt, and events for the sink. Whether that
//! succeeds changes neither what an action does nor its outcome. A receipt is written before the answer: it delays the
//! answer, and its failure is a warning there. Knows no entry point.

use std::{sync::Arc, time::Duration};

use crate::{
    config::Settings,
    contract::{error::ActionError, response::ActionResponse},
    executor::unknown_outcomes::UnknownOutcomes,
    ledger::record::RequestMetadata,
    notifications::{Notifier, event::Event},
    receipts::{Receipts, statement::Statement},
    telemetry::{deliveries::Deliveries, metrics::Metrics},
};

/// How long a process waits at its end until its notifications are sent.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the ends of actions are reported; nowhere by default.
#[derive(Clone, Default)]
pub(crate) struct Reports {
    receipts: Option<Arc<Receipts>>,
    notifier: Option<Arc<Notifier>>,
    unknown_outcomes: Arc<UnknownOutcomes>,
}

impl Reports {
    /// # Errors
    /// [`Code::Configuration`](crate::contract::error::Code::Configuration), naming what cannot be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ActionError> {
        let receipts = settings.receipts.as_ref().map(Receipts::new).transpose()?;
        let notifier = settings.sink.as_ref().map(Notifier::start).transpose()?;
        Ok(Reports {
            receipts: receipts.map(Arc::new),
            notifier: notifier.map(Arc::new),
            unknown_outcomes: Arc::default(),
        })
    }

    /// Whether receipts are written to a file.
    pub(crate) fn keeps_receipts(&self) -> bool {
        self.receipts.as_ref().is_some_and(|receipts| receipts.has_file())
    }

    /// Signs the receipt of an action, sends it to the sink and writes it to the file, as far as these are configured.
    ///
    /// # Errors
    /// Why it was not written.
    pub(crate) async fn write_receipt(
        &self,
        statement: impl FnOnce() -> Statement,
        metrics: Option<&Metrics>,
    ) -> Result<(), String> {
        let Some(receipts) = &self.receipts else { return Ok(()) };
        let statement = statement();
        let line = receipts.sign(&statement);
        if let Some(notifier) = &self.notifier {
            notifier.send(Event::receipt(&statement, &line));
        }
        if !receipts.has_file() {
            return Ok(());
        }
        let written = receipts.write(line).await;
        if let Some(metrics) = metrics {
            metrics.receipt(written.is_ok());
        }
        if let Err(why) = &written {
            let Statement { predicate, .. } = &statement;
            let (id, outcome) = (&predicate.request_id, &predicate.outcome);
            tracing::error!(id, outcome, why, "receipt not written");
        }
        written
    }

    /// Writes the receipt of a request whose outcome is unknown, unless this process has written it before.
    ///
    /// # Errors
    /// Why it was not written.
    pub(crate) async fn write_unknown_receipt(
        &self,
        metadata: &RequestMetadata,
        statement: impl FnOnce() -> Statement,
        metrics: Option<&Metrics>,
    ) -> Result<(), String> {
        if self.unknown_outcomes.contains(metadata) {
            return Ok(());
        }
        self.write_receipt(statement, metrics).await?;
        self.unknown_outcomes.insert(metadata);
        Ok(())
    }

    /// Notifies of an answer, or of a pending approval.
    pub(crate) fn notify(&self, metadata: &RequestMetadata, response: &ActionResponse) {
        if let Some(notifier) = &self.notifier {
            notifier.send(Event::answered(metadata, response));
        }
    }

    /// Notifies that it is not known whether an effect was made.
    pub(crate) fn notify_unknown(&self, metadata: &RequestMetadata, error: &ActionError) {
        if let Some(notifier) = &self.notifier {
            notifier.send(Event::unknown(metadata, error));
        }
    }

    /// Waits until the notifications so far are sent, for this time at most.
    pub(crate) async fn flush(&self, limit: Duration) {
        if let Some(notifier) = &self.notifier {
            notifier.flush(limit).await;
        }
    }

    /// What became of notifications, if there is a sink.
    pub(crate) fn deliveries(&self) -> Option<&Deliveries> {
        self.notifier.as_ref().map(|notifier| notifier.deliveries())
    }
}
