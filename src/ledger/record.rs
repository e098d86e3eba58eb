//! What is written down of one request, and how it stands in an Event.
//!
//! The Event is claim, audit entry and stored answer in one. People read its message through
//! `kubectl describe` and `kubectl get events`; programs read the annotations. This file turns the one
//! into the other and makes no calls.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    actions::{CompletionSpec, request::ActionRequest},
    contract::{
        digest::sha256,
        error::ActionError,
        names::RequestId,
        response::{ActionResponse, Outcome, RolloutState, Target, rfc3339_millis},
    },
    k8s::{
        FIELD_MANAGER,
        api::mutation::{Applied, Effect},
        revisions::RollbackTarget,
    },
};

/// The label that all our Events carry (one of the recommended labels of Kubernetes).
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "action-executor");

/// The label that names the action.
const ACTION_LABEL: &str = "action-executor.dev/action";

/// The annotations of an Event, one for each part of a record.
pub(crate) const REQUEST_ID: &str = "action-executor.dev/request-id";
pub(crate) const REQUESTER: &str = "action-executor.dev/requester";
pub(crate) const REASON: &str = "action-executor.dev/reason";
pub(crate) const REQUEST_DIGEST: &str = "action-executor.dev/request-digest";
const STATE: &str = "action-executor.dev/state";
const HOLDER: &str = "action-executor.dev/holder";
const EXPIRES_AT: &str = "action-executor.dev/until";
const INTENT: &str = "action-executor.dev/intent";
const MADE: &str = "action-executor.dev/made";
const ROLLBACK: &str = "action-executor.dev/rollback";
const ANSWER: &str = "action-executor.dev/answer";

/// Where the records of targets that are in no namespace are kept.
pub const NAMESPACE_OF_CLUSTER_SCOPED: &str = "default";

/// The longest message of an Event (the bound that events.k8s.io/v1 has for its note), in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Somebody is about to make its effect, or was.
    Claimed,
    /// Its effect was sent and its holder could not find out whether it was made.
    InDoubt,
    /// Its effect is made; whether it leads to what was asked for is being waited for.
    Applied,
    /// What was waited for has failed, as the answer so far says, and somebody is about to take the target
    /// back, or has.
    RollingBack,
    /// Its answer is final.
    Answered,
    /// It was refused after it had been claimed, and provably nothing was done.
    Refused,
    /// A person has to approve it first, until `until`.
    Pending,
}

/// What is about to be done, in enough words to find out later what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The effect; none if there is nothing to do.
    pub effect: Option<Effect>,
    /// When it is complete.
    pub completion: CompletionSpec,
    /// The answer, should all go well.
    pub answer: ActionResponse,
    /// What it was decided on, where that matters to whoever decides anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_on: Option<String>,
    /// Where the workload goes back to if the awaited rollout fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<RollbackTarget>,
    /// Whether the request was taken over from a try that may yet make the effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_over: bool,
}

/// One request's record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// How far it is.
    pub state: State,
    /// Which payload the id stands for.
    pub digest: String,
    /// Who has it; another one for each attempt.
    pub holder: String,
    /// Until when nobody else takes it over.
    pub expires_at: DateTime<Utc>,
    /// What the holder is about to do.
    pub intent: Intent,
    /// What the effect left behind, once it was made.
    pub made: Option<Applied>,
    /// The effect that takes the target back, once that is about to be made.
    pub rollback: Option<Effect>,
    /// The answer, once there is one.
    pub answer: Option<ActionResponse>,
    /// Why it was refused, for people; not read back.
    pub refusal: Option<String>,
    /// The Event's resourceVersion; none before it was written.
    pub resource_version: Option<String>,
    /// When the Event was last written, by the API server's clock.
    pub written_at: Option<DateTime<Utc>>,
}

/// What is the same in all records of one request.
#[derive(Clone, Debug)]
pub struct RequestMetadata {
    /// The request's id.
    pub id: RequestId,
    /// The digest of its payload.
    pub digest: String,
    /// The action's name.
    pub action: &'static str,
    /// What it acts upon.
    pub target: Target,
    /// Who asks, if it was said.
    pub requester: Option<String>,
    /// Why, if it was said.
    pub reason: Option<String>,
}

impl RequestMetadata {
    /// What this request's records have in common.
    #[must_use]
    pub fn of(request: &ActionRequest, id: &RequestId) -> Self {
        RequestMetadata {
            id: id.clone(),
            digest: payload_digest(request),
            action: request.action.kind().name(),
            target: request.action.target(),
            requester: request.requester.as_deref().map(str::to_owned),
            reason: request.reason.as_deref().map(str::to_owned),
        }
    }

    /// The namespace of its Event: the target's, or `default` for a target that is in none, as the API
    /// server demands (`ValidateEventCreate`).
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self.target.namespace.as_str() {
            "" => NAMESPACE_OF_CLUSTER_SCOPED,
            namespace => namespace,
        }
    }

    /// The name of its Event, from the id alone, so that there is one at most.
    #[must_use]
    pub fn event_name(&self) -> String {
        event_name(&self.id)
    }

    /// The Event that a new record is first written as.
    #[must_use]
    pub fn event(&self, record: &Record) -> Event {
        let mut event = self.bare_event(record.intent.answer.target.uid.as_deref());
        event.metadata.name = Some(self.event_name());
        event.metadata.annotations = Some(self.annotations(record));
        event.reason = Some(reason(record).to_owned());
        event.message = Some(self.message(record));
        event.type_ = Some(kind_of_event(record).to_owned());
        event
    }

    /// The Event that notes a refusal at this time; the same for the same one within ten minutes.
    #[must_use]
    pub fn refusal(&self, refusal: &ActionError, at: DateTime<Utc>) -> Event {
        let Target { kind, name, .. } = &self.target;
        let bucket = at.timestamp() / 600;
        let who = self.requester.as_deref().unwrap_or_default();
        let whole = format!("{bucket} {} {kind} {name} {} {who}", self.action, refusal.code);
        let mut event = self.bare_event(refusal.about.as_deref());
        let digest = &sha256(whole.as_bytes())[..32];
        event.metadata.name = Some(format!("action-executor-refused-{digest}"));
        event.metadata.annotations = Some(owned(self.asked_by()));
        event.reason = Some("ActionRefused".to_owned());
        event.type_ = Some("Warning".to_owned());
        event.message =
            Some(self.asked(&format!("{} was refused: {}.", self.action, refusal.detail)));
        event
    }

    /// What all Events of this request have in common.
    fn bare_event(&self, uid: Option<&str>) -> Event {
        let Target { api_version, kind, namespace, name, .. } = &self.target;
        let now = Some(Time(Timestamp::now()));
        let action = (ACTION_LABEL.to_owned(), self.action.to_owned());
        let labels = [(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned()), action];
        Event {
            metadata: ObjectMeta {
                namespace: Some(self.namespace().to_owned()),
                labels: Some(labels.into_iter().collect()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(api_version.clone()),
                kind: Some(kind.clone()),
                namespace: Some(namespace.clone()).filter(|it| !it.is_empty()),
                name: Some(name.clone()),
                // `kubectl describe` shows an Event only with its object's uid.
                uid: uid.map(str::to_owned),
                ..ObjectReference::default()
            },
            source: Some(EventSource { component: Some(FIELD_MANAGER.to_owned()), host: None }),
            reporting_component: Some(FIELD_MANAGER.to_owned()),
            action: Some(self.action.to_owned()),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        }
    }

    /// The merge patch that writes a record over the one it was read from; refused by the API server
    /// (409) if somebody else has written it since.
    #[must_use]
    pub fn patch(&self, record: &Record) -> Value {
        let event = self.event(record);
        json!({
            "metadata": {
                "resourceVersion": record.resource_version,
                "annotations": event.metadata.annotations,
            },
            "reason": event.reason,
            "message": event.message,
            "type": event.type_,
            "lastTimestamp": event.last_timestamp,
        })
    }

    fn annotations(&self, record: &Record) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([
            (REQUEST_ID, self.id.to_string()),
            (REQUEST_DIGEST, record.digest.clone()),
            (STATE, json_text(&record.state).trim_matches('"').to_owned()),
            (HOLDER, record.holder.clone()),
            (EXPIRES_AT, rfc3339_millis(record.expires_at)),
            (INTENT, json_text(&record.intent)),
        ]);
        all.extend(record.made.as_ref().map(|made| (MADE, json_text(made))));
        all.extend(record.rollback.as_ref().map(|effect| (ROLLBACK, json_text(effect))));
        all.extend(record.answer.as_ref().map(|answer| (ANSWER, json_text(answer))));
        all.extend(self.asked_by());
        owned(all)
    }

    /// Who asks and why, for programs.
    fn asked_by(&self) -> BTreeMap<&'static str, String> {
        let said = [(REQUESTER, &self.requester), (REASON, &self.reason)];
        said.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }

    /// What people read: what happened, who asked and why.
    fn message(&self, record: &Record) -> String {
        let what = match (&record.answer, record.state) {
            (Some(answer), _) => answer.result.clone(),
            (None, State::InDoubt) => {
                format!("{} was sent; it is unknown whether it was done.", self.action)
            }
            (None, State::Applied) => record.intent.answer.result.clone(),
            (None, State::Refused) => {
                let why = record.refusal.as_deref().unwrap_or("nothing was done");
                format!("{} was refused: {why}.", self.action)
            }
            (None, State::Pending) => format!("{} waits for approval.", self.action),
            (None, _) => format!("{} was begun.", self.action),
        };
        self.asked(&what)
    }

    fn asked(&self, what: &str) -> String {
        let who = self.requester.as_deref().unwrap_or("unknown");
        let why = self.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        truncate(format!("{what} Asked by {who}{why} (request {}).", self.id), MAX_MESSAGE_BYTES)
    }
}

impl Record {
    /// A claim of this holder, before it is written.
    #[must_use]
    pub fn claim(
        subject: &RequestMetadata,
        holder: &str,
        expires_at: DateTime<Utc>,
        intent: Intent,
    ) -> Self {
        Record {
            state: State::Claimed,
            digest: subject.digest.clone(),
            holder: holder.to_owned(),
            expires_at,
            intent,
            made: None,
            rollback: None,
            answer: None,
            refusal: None,
            resource_version: None,
            written_at: None,
        }
    }

    /// Reads a record; `None` if the Event does not hold one.
    #[must_use]
    pub fn read(event: &Event) -> Option<Self> {
        let annotations = event.metadata.annotations.as_ref()?;
        let get = |name: &str| annotations.get(name).map(String::as_str);
        Some(Record {
            state: parsed(&format!("\"{}\"", get(STATE)?))?,
            digest: get(REQUEST_DIGEST)?.to_owned(),
            holder: get(HOLDER)?.to_owned(),
            expires_at: DateTime::parse_from_rfc3339(get(EXPIRES_AT)?).ok()?.to_utc(),
            intent: parsed(get(INTENT)?)?,
            made: get(MADE).and_then(parsed),
            rollback: get(ROLLBACK).and_then(parsed),
            answer: get(ANSWER).and_then(parsed),
            refusal: None,
            resource_version: event.metadata.resource_version.clone(),
            written_at: written_at(&event.metadata),
        })
    }
}

/// The name of the Event of the request with this id.
#[must_use]
pub fn event_name(id: &RequestId) -> String {
    format!("action-executor-{}", &sha256(id.as_bytes())[..32])
}

/// The API server's own clock: when it last wrote the object for us, else when it made it.
pub(crate) fn written_at(metadata: &ObjectMeta) -> Option<DateTime<Utc>> {
    let entries = metadata.managed_fields.iter().flatten();
    let times = entries.filter_map(|entry| entry.time.as_ref());
    let time = times.max().or(metadata.creation_timestamp.as_ref())?;
    DateTime::from_timestamp(time.0.as_second(), 0)
}

fn owned(annotations: BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
    annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

fn json_text(value: &impl Serialize) -> String {
    // Plain data: there is nothing in it that JSON cannot say.
    serde_json::to_string(value).unwrap_or_default()
}

/// The Event's reason: one word for machines, as `kubectl get events` shows it.
fn reason(record: &Record) -> &'static str {
    match (record.state, &record.answer) {
        (State::Claimed, _) => "ActionBegun",
        (State::InDoubt, _) => "ActionUnknown",
        (State::Refused, _) => "ActionRefused",
        (State::Pending, _) => "ApprovalPending",
        (State::Applied, _) => "ActionApplied",
        (State::RollingBack, _) => "ActionFailed",
        (State::Answered, answer) => match answer.as_ref().map(|answer| answer.outcome) {
            Some(Outcome::Failed) => "ActionFailed",
            Some(Outcome::Unchanged) => "ActionUnchanged",
            _ => "ActionApplied",
        },
    }
}

fn kind_of_event(record: &Record) -> &'static str {
    let failed = record.answer.as_ref().is_some_and(|answer| answer.outcome == Outcome::Failed);
    let unusual = failed || matches!(record.state, State::InDoubt | State::Refused);
    if unusual { "Warning" } else { "Normal" }
}

/// Whether there is nothing more to say: a wait that was interrupted is taken up by the next try.
#[must_use]
pub fn is_final(answer: &ActionResponse) -> bool {
    let back = answer.rolled_back.as_ref().map(|rolled_back| &rolled_back.rollout);
    let mut waits = answer.rollout.iter().chain(back);
    waits.all(|rollout| rollout.state != RolloutState::Interrupted)
}

/// The digest of what is asked for and by whom: everything but the id and how long the caller stays.
fn payload_digest(request: &ActionRequest) -> String {
    let payload = ActionRequest { id: None, wait: false, timeout: None, ..request.clone() };
    sha256(json_text(&payload).as_bytes())
}

/// At most `limit` bytes, cut between characters.
fn truncate(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate((0..=limit - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{
        completion::{RolloutOf, TemplateIdentity},
        workload::WorkloadKind,
    };

    fn request(text: &str) -> ActionRequest {
        ActionRequest::parse(text.as_bytes()).expect("is a request")
    }

    const WEB: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false,
        "id":"alert-7","requester":"pager","reason":"p99 is 4 s""#;

    fn subject(more: &str) -> RequestMetadata {
        let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
        RequestMetadata::of(&request(&format!("{WEB}{more}}}")), &id)
    }

    fn answer() -> ActionResponse {
        let at = "2026-01-31T12:00:00.987Z".parse().expect("is a time");
        ActionResponse {
            result: "Deployment 'web' restarted.".to_owned(),
            id: "alert-7".to_owned(),
            kind: "restart_k8s".to_owned(),
            outcome: Outcome::Applied,
            replayed: false,
            offline: false,
            target: Target { uid: Some("u1".to_owned()), ..subject("").target },
            changes: Vec::new(),
            warnings: Vec::new(),
            rollout: None,
            rolled_back: None,
            approval: None,
            started_at: at,
            finished_at: at,
        }
    }

    fn claim() -> Record {
        let until = "2026-01-31T12:00:30Z".parse().expect("is a time");
        let intent = Intent {
            effect: None,
            completion: CompletionSpec::Rollout(RolloutOf {
                kind: WorkloadKind::Deployment,
                template: TemplateIdentity::RequestId("r1".to_owned()),
            }),
            answer: answer(),
            decided_on: None,
            fallback: None,
            taken_over: false,
        };
        Record::claim(&subject(""), "holder", until, intent)
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let answered = Record {
            state: State::Answered,
            made: Some(Applied {
                resource_version: Some("8".into()),
                generation: Some(4),
                warnings: Vec::new(),
            }),
            answer: Some(answer()),
            ..claim()
        };
        for record in [claim(), answered] {
            assert_eq!(Record::read(&subject("").event(&record)), Some(record));
        }
    }

    #[test]
    fn an_event_of_someone_else_holds_no_record() {
        assert_eq!(Record::read(&Event::default()), None);
    }

    #[test]
    fn the_event_belongs_to_the_object_and_tells_who_and_why() {
        let record = Record { state: State::Answered, answer: Some(answer()), ..claim() };
        let event = subject("").event(&record);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u1"));
        assert_eq!(event.reason.as_deref(), Some("ActionApplied"));
        assert_eq!(
            event.message.as_deref(),
            Some("Deployment 'web' restarted. Asked by pager: p99 is 4 s (request alert-7).")
        );
    }

    #[test]
    fn one_id_has_one_event() {
        let other = RequestMetadata {
            target: Target { name: "api".into(), ..subject("").target },
            ..subject("")
        };
        assert_eq!(subject("").event_name(), other.event_name());
        assert!(subject("").event_name().len() < 63);
    }

    #[test]
    fn how_long_the_caller_stays_is_no_part_of_the_payload() {
        let waiting = subject(r#","wait":true,"timeout_seconds":7"#);
        assert_eq!(subject("").digest, waiting.digest);
    }

    #[test]
    fn everything_else_is() {
        let other = |text: &str| {
            let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
            RequestMetadata::of(&request(text), &id).digest
        };
        let whole = format!("{WEB}}}");
        assert_eq!(other(&whole), subject("").digest);
        for (from, to) in [("web", "api"), ("pager", "bot"), ("4 s", "5 s")] {
            assert_ne!(other(&whole.replace(from, to)), subject("").digest, "{to}");
        }
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let message = truncate("ü".repeat(800), MAX_MESSAGE_BYTES);
        assert!(message.len() <= MAX_MESSAGE_BYTES && message.ends_with("..."));
    }
}
