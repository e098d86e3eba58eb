//! `history`: lists what was done, by whom and why, from the Events of the ledger.
//!
//! The list contains what the API server still keeps of Events, an hour by default.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    cli::{HistoryArgs, OutputFormat},
    commands::{cluster, run},
    config::Settings,
    contract::{error::ActionError, visible::one_line},
    ledger::history::{Filter, HistoryEntry, no_cluster, query},
};

/// Limit on listing.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Lists what was done, oldest first.
///
/// # Errors
/// Why the Events could not be listed.
pub fn list(args: &HistoryArgs, settings: &Settings) -> Result<String, ActionError> {
    let mut entries = run::runtime()?.block_on(entries(args, settings))?;
    entries.reverse();
    Ok(match args.output {
        OutputFormat::Json => lines(&entries, |entry| json!(entry).to_string()),
        OutputFormat::Pretty => format!("{:#}", json!(entries)),
        OutputFormat::Text => table(&entries, Utc::now()),
    })
}

async fn entries(
    args: &HistoryArgs,
    settings: &Settings,
) -> Result<Vec<HistoryEntry>, ActionError> {
    let cluster = cluster::find(&args.cluster, settings).await?.ok_or_else(no_cluster)?;
    let namespace = match &args.namespace {
        _ if args.all_namespaces => None,
        Some(namespace) => Some(namespace.clone()),
        None => Some(cluster.default_namespace().to_owned()),
    };
    let (target, requester) = (args.target.clone(), args.requester.clone());
    let filter = Filter { namespace, target, requester, state: args.outcome };
    Ok(query(&cluster, &filter, usize::MAX, Instant::now() + LIST_TIMEOUT).await?.entries)
}

/// A table as of kubectl, with a line for each entry, whatever its Event says. The last column has who asked and why,
/// too.
fn table(entries: &[HistoryEntry], now: DateTime<Utc>) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let header = ["AGE", "RESULT", "ACTION", "TARGET", "MESSAGE"].map(str::to_owned);
    let rows: Vec<_> = [header].into_iter().chain(entries.iter().map(|it| row(it, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..4).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  "));
        cells.collect::<String>() + &row[4]
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(entry: &HistoryEntry, now: DateTime<Utc>) -> [String; 5] {
    let text = |value: &Option<String>| value.as_deref().map_or_else(|| "-".to_owned(), one_line);
    let at = entry.at.as_deref().and_then(|at| DateTime::parse_from_rfc3339(at).ok());
    let target = &entry.target;
    let object = [&target.namespace, &target.name].into_iter().flatten();
    let object = object.map(String::as_str).collect::<Vec<_>>().join("/");
    [
        at.map_or_else(|| "-".to_owned(), |at| age(now - at.to_utc())),
        text(&entry.event),
        text(&entry.kind),
        format!("{} {}", text(&target.kind), one_line(&object)),
        text(&entry.message),
    ]
}

/// As kubectl writes an age: in the largest unit of which there are at least two.
fn age(age: TimeDelta) -> String {
    let seconds = age.num_seconds().max(0);
    let units = [("d", 86_400), ("h", 3600), ("m", 60)];
    match units.into_iter().find(|(_, unit)| seconds >= 2 * unit) {
        Some((name, unit)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

fn lines(entries: &[HistoryEntry], line: impl Fn(&HistoryEntry) -> String) -> String {
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::history::ObjectRef;

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn entry(kind: &str, event: &str, namespace: Option<String>) -> HistoryEntry {
        HistoryEntry {
            at: text("2026-01-31T12:00:01Z"),
            began_at: None,
            id: None,
            kind: text(kind),
            event: text(event),
            outcome: None,
            requester: None,
            reason: None,
            client: None,
            target: ObjectRef { kind: text("Node"), namespace, name: text("web"), uid: None },
            message: text("No."),
            answer: None,
        }
    }

    #[test]
    fn a_line_has_the_age_the_result_the_action_the_object_and_the_message() {
        let now = "2026-01-31T12:03:07Z".parse().expect("is a time");
        let entries =
            [entry("cordon", "ActionRefused", None), entry("scale", "ActionBegun", text("shop"))];
        let lines = [
            "AGE  RESULT         ACTION  TARGET         MESSAGE",
            "3m   ActionRefused  cordon  Node web       No.",
            "3m   ActionBegun    scale   Node shop/web  No.",
        ];
        assert_eq!(table(&entries, now), lines.join("\n"));
    }

    #[test]
    fn an_event_cannot_add_a_line_or_change_how_the_others_are_shown() {
        let now = "2026-01-31T12:03:07Z".parse().expect("is a time");
        let forged = entry("scale\n3m", "Action\u{1b}[2JRefused", text("shop\r\n"));
        let message = text("No.\n3m  ActionApplied\u{1b}]0;title\u{7}");
        let table = table(&[HistoryEntry { message, ..forged }], now);
        assert_eq!(table.lines().count(), 2, "{table:?}");
        assert!(!table.replace('\n', "").contains(char::is_control), "{table:?}");
        assert!(table.ends_with("No. 3m  ActionApplied]0;title"), "{table:?}");
    }

    #[test]
    fn an_age_is_in_the_largest_unit_of_which_there_are_two() {
        for (seconds, expected) in
            [(-5, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(TimeDelta::seconds(seconds)), expected);
        }
    }
}
