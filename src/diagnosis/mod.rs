//! What is wrong with a target, and what is known of it: state, pods, Events, the log of what fails, owners, and what
//! was done to it lately. It only reads: it writes nothing, no record and no budget.
//!
//! [`target`] is what can be asked about, [`parts`] what a report consists of and which permission each part needs.
//! [`read`] makes the calls, in parallel and bounded; it returns [`facts`]. [`findings`] and [`report`] turn facts into
//! the report, as pure functions. Who may ask is for the caller of [`diagnose`] to decide.

pub(crate) mod facts;
pub(crate) mod findings;
pub mod parts;
mod read;
pub(crate) mod report;
pub(crate) mod target;

use tokio::time::Instant;

use crate::{
    contract::error::ActionError,
    diagnosis::{facts::Unread, read::Reader, report::Report, target::Target},
    k8s::api::client::Cluster,
};

/// What a diagnosis may read.
pub(crate) struct DiagnosisScope<'a> {
    /// The parts that the caller may not read, with the reason.
    pub refused: Vec<Unread>,
    /// Whether the pods of this namespace may be read, of those on a node.
    pub includes: &'a (dyn Fn(&str) -> bool + Sync),
}

/// The report about the target, read before `deadline`.
///
/// # Errors
/// The target does not exist, or could not be read. Any other part that could not be read is named in the report.
pub(crate) async fn diagnose(
    cluster: &Cluster,
    name: Option<&str>,
    target: &Target,
    scope: DiagnosisScope<'_>,
    deadline: Instant,
) -> Result<Report, ActionError> {
    let facts = Reader::new(cluster, target, scope, deadline).facts().await?;
    Ok(Report::of(&facts, name))
}
