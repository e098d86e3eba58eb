//! What was done, by whom and why: the Events of the ledger, for people and programs to read.
//!
//! It shows what the cluster still has, which is what its API server keeps of Events (an hour, unless
//! it was told otherwise).

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::once;
use crate::{
    cli::{HistoryArgs, OutputFormat},
    error::{ActionError, Code},
    k8s::connect::connect,
    ledger::record::{MANAGED_BY, REQUEST_ID},
};

/// The longest that listing may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Lists what was done, oldest first.
///
/// # Errors
/// Why the Events could not be listed.
pub fn list(args: &HistoryArgs) -> Result<String, ActionError> {
    let events = once::runtime()?.block_on(events(args))?;
    let entries: Vec<_> = events.iter().filter(|event| is_wanted(event, args)).map(entry).collect();
    Ok(match args.output {
        OutputFormat::Json => lines(&entries, Value::to_string),
        OutputFormat::Pretty => format!("{:#}", json!(entries)),
        OutputFormat::Text => lines(&entries, sentence),
    })
}

async fn events(args: &HistoryArgs) -> Result<Vec<Event>, ActionError> {
    let cluster = connect(args.context.as_deref()).await?.ok_or_else(|| {
        ActionError::new(Code::Configuration, "no cluster is configured, so there is no history")
    })?;
    let home = cluster.home_namespace().to_owned();
    let namespace = match args.namespace.as_deref() {
        _ if args.all_namespaces => None,
        Some(namespace) => Some(namespace),
        None => Some(home.as_str()),
    };
    let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    let mut events =
        cluster.list_all::<Event>(namespace, &selector, Instant::now() + DEADLINE).await?;
    events.sort_by(|one, other| one.last_timestamp.cmp(&other.last_timestamp));
    Ok(events)
}

/// Whether the event is about the target that was asked for, as `deployment/web` or `web`.
fn is_wanted(event: &Event, args: &HistoryArgs) -> bool {
    let Some(target) = args.target.as_deref() else { return true };
    let object = &event.involved_object;
    let (kind, name) = match target.split_once('/') {
        Some((kind, name)) => (Some(kind), name),
        None => (None, target),
    };
    object.name.as_deref() == Some(name)
        && kind.is_none_or(|kind| {
            object.kind.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(kind))
        })
}

fn entry(event: &Event) -> Value {
    let object = &event.involved_object;
    let id = event.metadata.annotations.as_ref().and_then(|all| all.get(REQUEST_ID));
    json!({
        "at": event.last_timestamp.as_ref().map(|time| time.0.to_string()),
        "id": id,
        "type": event.action,
        "reason": event.reason,
        "target": {
            "kind": object.kind, "namespace": object.namespace, "name": object.name,
            "uid": object.uid,
        },
        "message": event.message,
    })
}

fn sentence(entry: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let target = &entry["target"];
    format!(
        "{}  {:<16} {} {}/{}: {}",
        text(&entry["at"]),
        text(&entry["reason"]),
        text(&target["kind"]),
        text(&target["namespace"]),
        text(&target["name"]),
        text(&entry["message"]),
    )
}

fn lines(entries: &[Value], line: impl Fn(&Value) -> String) -> String {
    entries.iter().map(line).collect::<Vec<_>>().join("\n")
}
