//! The report of a transaction that has ended. It follows the record of the answer, so that only the attempt whose
//! answer counts makes a receipt; and the record says that the receipt is pending until it is written, so that an
//! attempt that crashes in between leaves it to the next one. What the action did and answers is the same whatever
//! becomes of the receipt: what fails is a warning.

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::Transaction;
use crate::{
    contract::{error::ActionError, response::ActionResponse},
    executor::failpoint::Failpoint,
    ledger::record::{ReceiptState, Record},
    receipts::statement::{RequestOrigin, Statement},
};

impl Transaction<'_> {
    /// Reports the answer that is recorded, and records that.
    pub(super) async fn report(
        &self,
        mut record: Record,
        response: &mut ActionResponse,
        deadline: Instant,
    ) {
        let is_written = self.report_unrecorded(&record, response).await;
        Failpoint::AfterReceipt.pass();
        if is_written && record.receipt == Some(ReceiptState::Pending) {
            record.receipt = Some(ReceiptState::Written);
            self.write(&mut record, deadline).await;
        }
    }

    /// Reports the answer of an attempt that recorded it and did not report it.
    pub(super) async fn report_pending(
        &self,
        record: &Record,
        response: &mut ActionResponse,
        deadline: Instant,
    ) {
        let is_pending = record.receipt == Some(ReceiptState::Pending);
        if is_pending && self.context.reports().keeps_receipts() {
            self.report(self.ledger.adopt(record.clone()), response, deadline).await;
        }
    }

    /// Reports an answer; returns whether its receipt is written. If it could not be recorded, the attempt that records
    /// it reports it again: rather twice than never.
    pub(super) async fn report_unrecorded(
        &self,
        record: &Record,
        response: &mut ActionResponse,
    ) -> bool {
        let origin = self.origin(record.approved_by.as_deref(), &record.impersonated_users);
        let (reports, metrics) = (self.context.reports(), self.context.metrics());
        // The answer about several targets has what became of each.
        if self.selected_by.is_none() {
            reports.notify(&self.ledger.request, response);
        }
        let written =
            reports.write_receipt(|| Statement::answered(origin, response), metrics).await;
        if let Err(why) = &written {
            response.warnings.push(format!("the receipt could not be written: {why}"));
        }
        written.is_ok()
    }

    /// Reports that it is not known whether the effect was made: once in a process, however often the request is
    /// resent.
    pub(super) async fn report_unknown(
        &self,
        error: ActionError,
        began: DateTime<Utc>,
    ) -> ActionError {
        let times = [began, Utc::now()];
        let (reports, metrics) = (self.context.reports(), self.context.metrics());
        if self.selected_by.is_none() {
            reports.notify_unknown(&self.ledger.request, &error);
        }
        let own = self.ledger.request.impersonated_user.as_slice();
        let statement = || Statement::unknown(self.origin(None, own), &error, times);
        match reports.write_unknown_receipt(&self.ledger.request, statement, metrics).await {
            Ok(()) => error,
            Err(why) => {
                let detail = format!("{}; the receipt could not be written: {why}", error.detail);
                ActionError { detail, ..error }
            }
        }
    }

    /// The origin of the action. What the record has counts, since an approval that was found may be of an earlier
    /// plan.
    fn origin<'a>(
        &'a self,
        recorded: Option<&'a str>,
        impersonated_users: &'a [String],
    ) -> RequestOrigin<'a> {
        let approved_by = recorded.or(self.approver.get().map(String::as_str));
        let (request, metadata) = (self.request, &self.ledger.request);
        RequestOrigin { request, metadata, approved_by, impersonated_users }
    }
}
