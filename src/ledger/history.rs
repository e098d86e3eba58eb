//! The history: the ledger's Events as a list, newest first. It only reads.

use std::str::FromStr;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome},
    },
    k8s::api::client::Cluster,
    ledger::record::{CLIENT, HistoryState, MANAGED_BY, REASON, REQUEST_ID, REQUESTER, Record},
};

/// One request that was executed, is in progress, or was refused.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct HistoryEntry {
    /// When this was last written (UTC).
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub at: Option<String>,
    /// When the request was first recorded (UTC).
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub began_at: Option<String>,
    /// The request's id; null for a refusal, which may stand for many requests.
    pub id: Option<String>,
    /// The action.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The Event's reason, as `kubectl get events` shows it: `ActionApplied`, `ActionRefused`.
    pub event: Option<String>,
    /// How it ended; null if it has not, or was refused.
    pub outcome: Option<Outcome>,
    /// The requester, if the request names one.
    pub requester: Option<String>,
    /// The reason, if the request has one.
    pub reason: Option<String>,
    /// The program that sent the request, as it names itself, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The object acted upon.
    pub target: ObjectRef,
    /// What happened, who asked and why, in a sentence.
    pub message: Option<String>,
    /// The answer, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<ActionResponse>,
}

/// The object of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct ObjectRef {
    /// The kind, for example `Deployment`.
    pub kind: Option<String>,
    /// The namespace; null for a cluster-scoped object.
    pub namespace: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// The object's uid, if it was found.
    pub uid: Option<String>,
}

/// Which entries to return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The namespace; `None` for all. Actions on nodes are recorded in `default`.
    pub namespace: Option<String>,
    /// The target, for example `deployment/web` or `web`; `None` for any.
    pub target: Option<String>,
    /// The requester; `None` for any.
    pub requester: Option<String>,
    /// How it ended; `None` for any.
    pub state: Option<HistoryState>,
}

/// Each by its name in a query, which is that in JSON.
const STATES: [(&str, HistoryState); 7] = [
    ("started", HistoryState::Started),
    ("applied", HistoryState::Applied),
    ("unchanged", HistoryState::Unchanged),
    ("failed", HistoryState::Failed),
    ("refused", HistoryState::Refused),
    ("pending_approval", HistoryState::PendingApproval),
    ("unknown", HistoryState::Unknown),
];

impl FromStr for HistoryState {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = STATES.iter().find(|(known, _)| *known == name).map(|(_, state)| *state);
        found.ok_or_else(|| format!("must be one of {}", STATES.map(|(known, _)| known).join(", ")))
    }
}

/// The newest entries, and whether there are older ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "History", deny_unknown_fields)]
pub(crate) struct Page {
    /// The newest first.
    pub entries: Vec<HistoryEntry>,
    /// Whether there are older entries than these.
    pub more: bool,
}

/// The newest entries, at most `limit`. Only these and one page of the API server's list are in memory at a
/// time.
///
/// # Errors
/// As [`Cluster::each_page`].
pub(crate) async fn query(
    cluster: &Cluster,
    filter: &Filter,
    limit: usize,
    deadline: Instant,
) -> Result<Page, ActionError> {
    let records = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
    let mut page = Page::default();
    let namespace = filter.namespace.as_deref();
    let add = |events: Vec<Event>| page.add(&events, filter, limit);
    cluster.each_page(namespace, records, deadline, add).await?;
    Ok(page)
}

impl Page {
    fn add(&mut self, events: &[Event], filter: &Filter, limit: usize) {
        self.entries.extend(events.iter().filter(|it| filter.includes(it)).map(HistoryEntry::of));
        // RFC 3339 times in UTC sort as text.
        self.entries.sort_by(|one, other| {
            (&other.at, &other.began_at, &other.id).cmp(&(&one.at, &one.began_at, &one.id))
        });
        self.more |= self.entries.len() > limit;
        self.entries.truncate(limit);
    }
}

impl Filter {
    fn includes(&self, event: &Event) -> bool {
        let annotations = event.metadata.annotations.as_ref();
        let requester = annotations.and_then(|all| all.get(REQUESTER));
        self.includes_target(event)
            && self.requester.as_ref().is_none_or(|it| Some(it) == requester)
            && self.state.is_none_or(|state| event.reason.as_deref() == Some(state.event_reason()))
    }

    /// Whether the event is about the filter's target.
    fn includes_target(&self, event: &Event) -> bool {
        let Some(target) = self.target.as_deref() else { return true };
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
}

impl HistoryEntry {
    fn of(event: &Event) -> Self {
        let annotation = |name| event.metadata.annotations.as_ref()?.get(name).cloned();
        let object = &event.involved_object;
        let answer = Record::read(event).and_then(|record| record.answer);
        HistoryEntry {
            at: event.last_timestamp.as_ref().map(|time| time.0.to_string()),
            began_at: event.first_timestamp.as_ref().map(|time| time.0.to_string()),
            id: annotation(REQUEST_ID),
            kind: event.action.clone(),
            event: event.reason.clone(),
            outcome: answer.as_ref().map(|answer| answer.outcome),
            requester: annotation(REQUESTER),
            client: annotation(CLIENT),
            reason: annotation(REASON),
            target: ObjectRef {
                kind: object.kind.clone(),
                namespace: object.namespace.clone(),
                name: object.name.clone(),
                uid: object.uid.clone(),
            },
            message: event.message.clone(),
            answer,
        }
    }
}

/// The error without a cluster.
pub(crate) fn no_cluster() -> ActionError {
    ActionError::new(Code::Configuration, "no cluster is configured, so there is no history")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, at: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": { "annotations": {
                REQUEST_ID: format!("{name}-{at}"), REQUESTER: "pager", REASON: "p99 is 4 s",
            } },
            "involvedObject": { "kind": "Deployment", "namespace": "shop", "name": name },
            "action": "restart_k8s", "reason": "ActionRefused", "message": "No.",
            "lastTimestamp": format!("2026-01-31T12:00:{at}Z"),
        }))
        .expect("is an Event")
    }

    #[test]
    fn the_newest_entries_come_first_and_older_ones_are_left_out() {
        let mut page = Page::default();
        let pages =
            [[event("web", "01"), event("web", "03")], [event("api", "02"), event("web", "04")]];
        for events in pages {
            page.add(&events, &Filter::default(), 3);
        }
        let ids: Vec<_> = page.entries.iter().filter_map(|entry| entry.id.as_deref()).collect();
        assert_eq!((ids, page.more), (vec!["web-04", "web-03", "api-02"], true));
    }

    #[test]
    fn a_filter_matches_a_name_or_a_kind_and_a_name() {
        let includes = |target: &str| {
            let target = Some(target.to_owned());
            Filter { target, ..Filter::default() }.includes(&event("web", "01"))
        };
        assert!(includes("web") && includes("deployment/web") && includes("Deployment/web"));
        assert!(!includes("api") && !includes("pod/web") && !includes(""));
    }

    #[test]
    fn a_filter_matches_the_requester_and_how_it_ended() {
        let includes = |filter: Filter| filter.includes(&event("web", "01"));
        let by = |name: &str| Filter { requester: Some(name.to_owned()), ..Filter::default() };
        let ended = |state| Filter { state: Some(state), ..Filter::default() };
        assert!(includes(by("pager")) && !includes(by("page")));
        assert!(includes(ended(HistoryState::Refused)) && !includes(ended(HistoryState::Applied)));
    }

    #[test]
    fn an_entry_has_the_requester_and_the_reason() {
        let entry = HistoryEntry::of(&event("web", "01"));
        assert_eq!(entry.requester.as_deref(), Some("pager"));
        assert_eq!(entry.reason.as_deref(), Some("p99 is 4 s"));
        assert_eq!((entry.outcome, entry.answer.as_ref()), (None, None));
    }
}
