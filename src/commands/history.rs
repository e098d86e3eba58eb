//! `history`: lists what was done, by whom and why, from the Events of the ledger.
//!
//! The list contains what the API server still keeps of Events, an hour by default.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::{
    cli::{HistoryArgs, OutputFormat},
    commands::run,
    contract::error::ActionError,
    k8s::api::connect::connect,
    ledger::history::{Filter, HistoryEntry, no_cluster, query},
};

/// Limit on listing.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Lists what was done, oldest first.
///
/// # Errors
/// Why the Events could not be listed.
pub fn list(args: &HistoryArgs) -> Result<String, ActionError> {
    let mut entries = run::runtime()?.block_on(entries(args))?;
    entries.reverse();
    Ok(match args.output {
        OutputFormat::Json => lines(&entries, |entry| json!(entry).to_string()),
        OutputFormat::Pretty => format!("{:#}", json!(entries)),
        OutputFormat::Text => lines(&entries, sentence),
    })
}

async fn entries(args: &HistoryArgs) -> Result<Vec<HistoryEntry>, ActionError> {
    let cluster = connect(args.context.as_deref()).await?.ok_or_else(no_cluster)?;
    let namespace = match &args.namespace {
        _ if args.all_namespaces => None,
        Some(namespace) => Some(namespace.clone()),
        None => Some(cluster.default_namespace().to_owned()),
    };
    let (target, requester) = (args.target.clone(), args.requester.clone());
    let filter = Filter { namespace, target, requester, state: args.outcome };
    Ok(query(&cluster, &filter, usize::MAX, Instant::now() + LIST_TIMEOUT).await?.entries)
}

fn sentence(entry: &HistoryEntry) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let target = &entry.target;
    format!(
        "{}  {:<16} {} {}/{}: {}",
        text(&entry.at),
        text(&entry.event),
        text(&target.kind),
        text(&target.namespace),
        text(&target.name),
        text(&entry.message),
    )
}

fn lines(entries: &[HistoryEntry], line: impl Fn(&HistoryEntry) -> String) -> String {
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::history::ObjectRef;

    #[test]
    fn a_line_has_the_time_the_event_the_object_and_the_message() {
        let text = |text: &str| Some(text.to_owned());
        let entry = HistoryEntry {
            at: text("2026-01-31T12:00:01Z"),
            began_at: None,
            id: None,
            kind: text("restart_k8s"),
            event: text("ActionRefused"),
            outcome: None,
            requester: None,
            reason: None,
            client: None,
            target: ObjectRef {
                kind: text("Deployment"),
                namespace: text("shop"),
                name: text("web"),
                uid: None,
            },
            message: text("No."),
            answer: None,
        };
        assert_eq!(
            sentence(&entry),
            "2026-01-31T12:00:01Z  ActionRefused    Deployment shop/web: No."
        );
    }
}
