//! The records of the ledger as a list, newest first.

use k8s_openapi::api::core::v1::Event;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome},
    },
    k8s::api::client::Cluster,
    ledger::record::{MANAGED_BY, REASON, REQUEST_ID, REQUESTER, Record},
};

/// One request that was carried out, is under way, or was refused.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HistoryEntry {
    /// When this was last written (UTC).
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub at: Option<String>,
    /// When the request was first written down (UTC).
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub began_at: Option<String>,
    /// The request's id; none for a refusal, which may stand for many requests.
    pub id: Option<String>,
    /// The action.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What there is to say in one word, as `kubectl get events` shows it: `ActionApplied`,
    /// `ActionRefused`.
    pub event: Option<String>,
    /// How it ended; none if it has not, or was refused.
    pub outcome: Option<Outcome>,
    /// Who asked, if it was said.
    pub requester: Option<String>,
    /// Why, if it was said.
    pub reason: Option<String>,
    /// The object that it is about.
    pub target: ObjectRef,
    /// What happened, who asked and why, in a sentence.
    pub message: Option<String>,
    /// The answer, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<ActionResponse>,
}

/// The object that an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ObjectRef {
    /// The kind, as `Deployment`.
    pub kind: Option<String>,
    /// The namespace; none for what is in none.
    pub namespace: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// The object's uid, if it was found.
    pub uid: Option<String>,
}

/// Which entries are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The namespace; none: all of them. Actions on nodes are written down in `default`.
    pub namespace: Option<String>,
    /// The target, as `deployment/web` or `web`; none: any.
    pub target: Option<String>,
}

/// The newest entries, and whether there are older ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "History", deny_unknown_fields)]
pub struct Page {
    /// The newest first.
    pub entries: Vec<HistoryEntry>,
    /// Whether older ones were left out, because there are more than were asked for.
    pub more: bool,
}

/// The newest entries, at most `limit`. No more than these and one page of the API server's list are held
/// at a time, however many there are.
///
/// # Errors
/// As [`Cluster::tell`] says.
pub async fn query(
    cluster: &Cluster,
    wanted: &Filter,
    limit: usize,
    deadline: Instant,
) -> Result<Page, ActionError> {
    let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    let mut page = Page::default();
    let namespace = wanted.namespace.as_deref();
    cluster
        .each_page::<Event>(namespace, &selector, deadline, |events| {
            page.add(&events, wanted, limit)
        })
        .await?;
    Ok(page)
}

impl Page {
    fn add(&mut self, events: &[Event], wanted: &Filter, limit: usize) {
        self.entries.extend(events.iter().filter(|it| wanted.includes(it)).map(HistoryEntry::of));
        // RFC 3339 times of one form sort as text.
        self.entries.sort_by(|one, other| {
            (&other.at, &other.began_at, &other.id).cmp(&(&one.at, &one.began_at, &one.id))
        });
        self.more |= self.entries.len() > limit;
        self.entries.truncate(limit);
    }
}

impl Filter {
    /// Whether the event is about the target that is meant.
    fn includes(&self, event: &Event) -> bool {
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
    /// What one Event of the ledger tells.
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

/// That there is nothing to tell of.
#[must_use]
pub fn no_cluster() -> ActionError {
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
    fn the_newest_come_first_and_older_ones_are_counted_out() {
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
    fn a_target_is_meant_by_its_name_or_with_its_kind() {
        let includes = |target: &str| {
            Filter { namespace: None, target: Some(target.to_owned()) }
                .includes(&event("web", "01"))
        };
        assert!(includes("web") && includes("deployment/web") && includes("Deployment/web"));
        assert!(!includes("api") && !includes("pod/web") && !includes(""));
    }

    #[test]
    fn an_entry_has_the_requester_and_the_reason() {
        let entry = HistoryEntry::of(&event("web", "01"));
        assert_eq!(entry.requester.as_deref(), Some("pager"));
        assert_eq!(entry.reason.as_deref(), Some("p99 is 4 s"));
        assert_eq!((entry.outcome, entry.answer.as_ref()), (None, None));
    }
}
