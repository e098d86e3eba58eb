//! The record of one request, and its form as an Event.
//!
//! The Event is claim, audit entry and stored answer in one. People read its message through
//! `kubectl describe` and `kubectl get events`; programs read the annotations. This file converts between
//! record and Event, and makes no calls.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::core::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    actions::{CompletionSpec, request::ActionRequest},
    contract::{
        cut::beginning,
        digest::sha256,
        error::ActionError,
        names::RequestId,
        response::{
            ActionResponse, ObservationState, Outcome, RolloutState, Target, rfc3339_millis,
        },
    },
    k8s::{
        FIELD_MANAGER, applied_requests,
        effect::{Applied, Effect},
        revisions::RollbackTarget,
    },
};

/// The label of all our Events (one of the recommended labels of Kubernetes).
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "action-executor");

/// The label that names the action.
const ACTION_LABEL: &str = "action-executor.dev/action";

/// The annotations of an Event, one per part of a record.
pub(crate) const REQUEST_ID: &str = "action-executor.dev/request-id";
pub(crate) const REQUESTER: &str = "action-executor.dev/requester";
pub(crate) const REASON: &str = "action-executor.dev/reason";
pub(crate) const CLIENT: &str = "action-executor.dev/client";
pub(crate) const REQUEST_DIGEST: &str = "action-executor.dev/request-digest";
const CLUSTER: &str = "action-executor.dev/cluster";
const IMPERSONATED_USERS: &str = "action-executor.dev/impersonated-users";
const STATE: &str = "action-executor.dev/state";
const HOLDER: &str = "action-executor.dev/holder";
const EXPIRES_AT: &str = "action-executor.dev/expires-at";
const INTENT: &str = "action-executor.dev/intent";
const APPLIED: &str = "action-executor.dev/applied";
const ROLLBACK: &str = "action-executor.dev/rollback";
const ANSWER: &str = "action-executor.dev/answer";
const APPROVAL_NONCE: &str = "action-executor.dev/approval-nonce";
const APPROVED_BY: &str = "action-executor.dev/approved-by";
const RECEIPT: &str = "action-executor.dev/receipt";

/// The most users that a record names.
const MAX_USERS: usize = 16;

/// The namespace for the records of cluster-scoped targets.
pub(crate) const NAMESPACE_OF_CLUSTER_SCOPED: &str = "default";

/// The longest message of an Event (the bound that events.k8s.io/v1 has for its note), in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RecordState {
    /// An attempt is about to apply the effect, or was when it crashed.
    Claimed,
    /// The effect was sent, and it is not known whether it was made.
    InDoubt,
    /// The effect is made, and its completion is awaited.
    Applied,
    /// The awaited rollout failed, and the target is being rolled back, or has been.
    RollingBack,
    /// The answer is final.
    Answered,
    /// It was refused after it was claimed, and nothing was done.
    Refused,
    /// A person has to approve it.
    PendingApproval,
}

impl RecordState {
    /// Whether the state stays as it is until the request is resent.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, RecordState::InDoubt | RecordState::Refused | RecordState::Answered)
    }
}

/// How far the receipt of a recorded answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReceiptState {
    /// It is written next, or was when the attempt crashed: the next attempt writes it.
    Pending,
    /// It is written.
    Written,
}

/// How a request ended, or how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HistoryState {
    /// It is being carried out, or the process that did it has crashed.
    Started,
    /// The change was made.
    Applied,
    /// Nothing had to be done.
    Unchanged,
    /// The change was made, and its effect did not complete.
    Failed,
    /// It was refused.
    Refused,
    /// It waits for a person's approval.
    PendingApproval,
    /// Whether the change was made is unknown.
    Unknown,
}

/// What is about to be done, in enough detail to find out later what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// The effect; `None` if there is nothing to do.
    pub effect: Option<Effect>,
    pub completion: CompletionSpec,
    /// The answer if it succeeds.
    pub answer: ActionResponse,
    /// What the plan was decided on, if a further plan has to be for the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_etag: Option<String>,
    /// The revision to roll back to if the awaited rollout fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_target: Option<RollbackTarget>,
    /// Whether the claim was taken over from an attempt that may still make the effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_over: bool,
}

/// One request's record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub state: RecordState,
    /// The digest of the request's payload.
    pub digest: String,
    /// The attempt that wrote it.
    pub holder: String,
    /// When another attempt may take it over.
    pub expires_at: DateTime<Utc>,
    /// What the holder is about to do.
    pub intent: Intent,
    /// What the effect left behind, once it is made.
    pub applied: Option<Applied>,
    /// The effect that rolls the target back, once it is about to be made.
    pub rollback: Option<Effect>,
    /// The answer, once there is one.
    pub answer: Option<ActionResponse>,
    /// What distinguishes this record's request for approval from others of the same plan, if it asked for one.
    pub approval_nonce: Option<String>,
    /// The person who approved it, as the approval names them.
    pub approved_by: Option<String>,
    /// The receipt of the answer, if receipts are written.
    pub receipt: Option<ReceiptState>,
    /// The users in whose names attempts at the request called the cluster about its target, the first one first. What
    /// an attempt found done may be the work of any before it.
    pub impersonated_users: Vec<String>,
    /// Why it was refused, for the Event's message; it is not read back.
    pub refusal: Option<String>,
    /// The Event's resourceVersion; `None` before the first write.
    pub resource_version: Option<String>,
}

/// What all records of one request share.
#[derive(Clone, Debug)]
pub(crate) struct RequestMetadata {
    pub id: RequestId,
    /// The digest of the payload.
    pub digest: String,
    /// The action's name.
    pub action: &'static str,
    pub target: Target,
    pub requester: Option<String>,
    pub reason: Option<String>,
    /// The program that sent the request, as it names itself.
    pub client: Option<String>,
    /// The cluster's name for people.
    pub cluster: Option<String>,
    /// The user in whose name this attempt calls the cluster about its target, if not in the executor's.
    pub impersonated_user: Option<String>,
}

impl RequestMetadata {
    pub(crate) fn of(request: &ActionRequest, id: &RequestId) -> Self {
        RequestMetadata {
            id: id.clone(),
            digest: payload_digest(request),
            action: request.action.kind().name(),
            target: request.action.target(),
            requester: request.requester.as_deref().map(str::to_owned),
            reason: request.reason.as_deref().map(str::to_owned),
            client: request.client.as_deref().map(str::to_owned),
            cluster: None,
            impersonated_user: None,
        }
    }

    pub(crate) fn in_cluster(self, name: Option<&Arc<str>>) -> Self {
        RequestMetadata { cluster: name.map(ToString::to_string), ..self }
    }

    pub(crate) fn acting_as(self, user: Option<&str>) -> Self {
        RequestMetadata { impersonated_user: user.map(str::to_owned), ..self }
    }

    /// The request's mark on an object that it changed.
    pub(crate) fn mark(&self) -> String {
        applied_requests::mark(&self.id, &self.digest)
    }

    /// The mark of a further change by this request, distinguished by a suffix. No id has a slash.
    pub(crate) fn mark_of(&self, suffix: &str) -> String {
        applied_requests::mark(&format!("{}/{suffix}", self.id), &self.digest)
    }

    /// The Event's namespace: the target's, or `default` for a cluster-scoped target, as the API server
    /// requires (`ValidateEventCreate`).
    pub(crate) fn namespace(&self) -> &str {
        match self.target.namespace.as_str() {
            "" => NAMESPACE_OF_CLUSTER_SCOPED,
            namespace => namespace,
        }
    }

    /// The Event's name, from the id alone, so that there is one at most.
    pub(crate) fn event_name(&self) -> String {
        event_name(&self.id)
    }

    /// The Event that creates this record.
    pub(crate) fn event(&self, record: &Record) -> Event {
        let mut event = self.bare_event(record.intent.answer.target.uid.as_deref());
        event.metadata.name = Some(self.event_name());
        event.metadata.annotations = Some(self.annotations(record));
        event.reason = Some(HistoryState::of(record).event_reason().to_owned());
        event.message = Some(self.message(record));
        event.type_ = Some(kind_of_event(record).to_owned());
        event
    }

    /// The Event for a refusal: the same name for the same refusal within ten minutes.
    pub(crate) fn refusal(&self, refusal: &ActionError, at: DateTime<Utc>) -> Event {
        let Target { kind, name, .. } = &self.target;
        let bucket = at.timestamp() / 600;
        let who = self.requester.as_deref().unwrap_or_default();
        let whole = format!("{bucket} {} {kind} {name} {} {who}", self.action, refusal.code);
        let mut event = self.bare_event(refusal.refused_uid());
        let digest = &sha256(whole.as_bytes())[..32];
        event.metadata.name = Some(format!("action-executor-refused-{digest}"));
        event.metadata.annotations = Some(owned(self.origin()));
        event.reason = Some(HistoryState::Refused.event_reason().to_owned());
        event.type_ = Some("Warning".to_owned());
        event.message = Some(
            self.message_with_origin(&format!("{} was refused: {}.", self.action, refusal.detail)),
        );
        event
    }

    /// An Event as a dry run. It has another name than the record: a proxy that drops the query must not leave a
    /// record without content behind.
    pub(crate) fn trial(&self) -> Event {
        let mut event = self.bare_event(None);
        event.metadata.name = Some(format!("{}-trial", self.event_name()));
        event.metadata.annotations = Some(owned(self.origin()));
        event.reason = Some("ActionSimulated".to_owned());
        event.type_ = Some("Normal".to_owned());
        event
    }

    /// What all Events of this request share.
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

    /// The merge patch that replaces a record as it was read; the API server refuses it (409) if the record
    /// was written in between.
    pub(crate) fn patch(&self, record: &Record) -> Value {
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
            (STATE, word(&record.state)),
            (HOLDER, record.holder.clone()),
            (EXPIRES_AT, rfc3339_millis(record.expires_at)),
            (INTENT, json_text(&record.intent)),
        ]);
        all.extend(record.applied.as_ref().map(|applied| (APPLIED, json_text(applied))));
        all.extend(record.rollback.as_ref().map(|effect| (ROLLBACK, json_text(effect))));
        all.extend(record.answer.as_ref().map(|answer| (ANSWER, json_text(answer))));
        all.extend(record.approval_nonce.clone().map(|nonce| (APPROVAL_NONCE, nonce)));
        all.extend(record.approved_by.clone().map(|name| (APPROVED_BY, name)));
        all.extend(record.receipt.as_ref().map(|state| (RECEIPT, word(state))));
        let users = &record.impersonated_users;
        all.extend((!users.is_empty()).then(|| (IMPERSONATED_USERS, json_text(users))));
        all.extend(self.origin());
        owned(all)
    }

    /// Requester, reason, client and cluster, for programs.
    fn origin(&self) -> BTreeMap<&'static str, String> {
        let all = [
            (REQUESTER, &self.requester),
            (REASON, &self.reason),
            (CLIENT, &self.client),
            (CLUSTER, &self.cluster),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }

    /// For people: what happened, who asked and why.
    fn message(&self, record: &Record) -> String {
        let targets = record.intent.completion.targets();
        let what = match (&record.answer, record.state) {
            (Some(answer), _) => answer.result.clone(),
            (None, RecordState::InDoubt) => {
                format!("{} was sent; whether it was done is unknown.", self.action)
            }
            (None, RecordState::Applied | RecordState::PendingApproval) if targets.is_some() => {
                let targets = targets.unwrap_or_default();
                let names: Vec<_> = targets.iter().map(|it| it.name.as_str()).collect();
                let stage = match record.state {
                    RecordState::Applied => "has begun",
                    _ => "waits for approval",
                };
                format!("{} {stage}, on {}.", self.action, names.join(", "))
            }
            (None, RecordState::Applied) => record.intent.answer.result.clone(),
            (None, RecordState::Refused) => {
                let why = record.refusal.as_deref().unwrap_or("nothing was done");
                format!("{} was refused: {why}.", self.action)
            }
            (None, RecordState::PendingApproval) => format!("{} waits for approval.", self.action),
            (None, _) => format!("{} has started.", self.action),
        };
        self.message_with_origin(&what)
    }

    fn message_with_origin(&self, what: &str) -> String {
        let who = self.requester.as_deref().unwrap_or("unknown");
        let through = self.client.as_deref().map(|it| format!(" through {it}")).unwrap_or_default();
        let why = self.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        truncate(
            format!("{what} Requested by {who}{through}{why} (request {}).", self.id),
            MAX_MESSAGE_BYTES,
        )
    }
}

impl Record {
    /// What the effect left behind, as far as it is known.
    pub(crate) fn applied_or_default(&self) -> Applied {
        self.applied.clone().unwrap_or_default()
    }

    /// A claim of this holder, not yet written.
    pub(crate) fn claim(
        request: &RequestMetadata,
        holder: &str,
        expires_at: DateTime<Utc>,
        intent: Intent,
    ) -> Self {
        Record {
            state: RecordState::Claimed,
            digest: request.digest.clone(),
            holder: holder.to_owned(),
            expires_at,
            intent,
            applied: None,
            rollback: None,
            answer: None,
            approval_nonce: None,
            approved_by: None,
            receipt: None,
            impersonated_users: request.impersonated_user.iter().cloned().collect(),
            refusal: None,
            resource_version: None,
        }
    }

    /// Reads a record; `None` if the Event has none.
    pub(crate) fn read(event: &Event) -> Option<Self> {
        let annotations = event.metadata.annotations.as_ref()?;
        let get = |name: &str| annotations.get(name).map(String::as_str);
        Some(Record {
            state: of_word(get(STATE)?)?,
            digest: get(REQUEST_DIGEST)?.to_owned(),
            holder: get(HOLDER)?.to_owned(),
            expires_at: DateTime::parse_from_rfc3339(get(EXPIRES_AT)?).ok()?.to_utc(),
            intent: parsed(get(INTENT)?).filter(|intent: &Intent| is_recorded(&intent.answer))?,
            applied: get(APPLIED).and_then(parsed),
            rollback: get(ROLLBACK).and_then(parsed),
            answer: get(ANSWER).and_then(parsed).filter(is_recorded),
            approval_nonce: get(APPROVAL_NONCE).map(str::to_owned),
            approved_by: get(APPROVED_BY).map(str::to_owned),
            receipt: get(RECEIPT).and_then(of_word),
            impersonated_users: get(IMPERSONATED_USERS).and_then(parsed).unwrap_or_default(),
            refusal: None,
            resource_version: event.metadata.resource_version.clone(),
        })
    }

    /// Whether all that it names is the request's own. More accounts may write Events than the objects that a forged
    /// record could name.
    pub(crate) fn is_about(&self, request: &RequestMetadata) -> bool {
        let Target { api_version, kind, namespace, name, .. } = &request.target;
        let target = &self.intent.answer.target;
        let is_target = [&target.api_version, &target.kind, &target.namespace, &target.name]
            == [api_version, kind, namespace, name];
        let effects = self.intent.effect.iter().chain(&self.rollback);
        let mut namespaces = effects
            .map(|effect| effect.namespace.as_str())
            .chain(self.intent.completion.namespace());
        is_target && namespaces.all(|it| it == namespace)
    }

    /// The answer for an effect that an earlier attempt made. Which version the target had right after it is unknown.
    pub(crate) fn answer_of_earlier_attempt(&self) -> ActionResponse {
        let mut answer = self.intent.answer.clone();
        if self.intent.effect.as_ref().is_none_or(Effect::changes_the_target) {
            answer.target.resource_version = None;
        }
        answer
    }

    /// Whether these are the same write of the same attempt.
    pub(crate) fn is_same_write(&self, other: &Record) -> bool {
        let of = |record: &Record| (record.holder.clone(), record.state, record.receipt);
        of(self) == of(other)
    }

    /// The record with the users of an earlier one before its own.
    pub(crate) fn after_attempts_of(mut self, earlier: &[String]) -> Self {
        let own = std::mem::take(&mut self.impersonated_users);
        let new = own.into_iter().filter(|user| !earlier.contains(user));
        self.impersonated_users = earlier.iter().cloned().chain(new).take(MAX_USERS).collect();
        self
    }

    /// Whether the record says that an effect was made.
    pub(crate) fn records_an_effect(&self) -> bool {
        match (self.state, &self.answer) {
            (RecordState::Answered, Some(answer)) => answer.outcome != Outcome::Unchanged,
            // A request that waits although it has changed nothing.
            (RecordState::Applied, _) => self.intent.answer.outcome != Outcome::Unchanged,
            (state, _) => state == RecordState::RollingBack,
        }
    }

    /// The effect is made, and its completion is awaited.
    pub(crate) fn mark_applied(&mut self, applied: Applied) {
        self.state = RecordState::Applied;
        self.applied = Some(applied);
    }

    /// The awaited rollout failed, as the answer so far says, and this effect is about to roll it back.
    pub(crate) fn mark_rolling_back(&mut self, effect: Effect, failed: ActionResponse) {
        self.state = RecordState::RollingBack;
        self.rollback = Some(effect);
        self.answer = Some(failed);
    }

    /// The request has this answer. One whose wait was interrupted is not final.
    pub(crate) fn mark_answered(&mut self, answer: ActionResponse) {
        self.state = match &self.rollback {
            _ if is_final(&answer) => RecordState::Answered,
            Some(_) => RecordState::RollingBack,
            None => RecordState::Applied,
        };
        self.answer = Some(answer);
    }

    /// It is not known whether the effect was made.
    pub(crate) fn mark_in_doubt(&mut self) {
        self.state = RecordState::InDoubt;
    }

    /// The request was refused after it was claimed. A claim that was taken over stays in doubt: the attempt that held
    /// it before may be slow, and not crashed.
    pub(crate) fn mark_refused(&mut self, refusal: &ActionError) {
        self.state =
            if self.intent.taken_over { RecordState::InDoubt } else { RecordState::Refused };
        self.refusal = Some(refusal.detail.clone());
    }
}

/// The name of the Event of the request with this id.
pub(crate) fn event_name(id: &RequestId) -> String {
    event_name_of(&sha256(id.as_bytes())[..32])
}

/// The same for the digest of an id, as the budget has it.
pub(crate) fn event_name_of(digest: &str) -> String {
    format!("action-executor-{digest}")
}

fn owned(annotations: BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
    annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// The name of a unit variant, without quotes.
fn word(variant: &impl Serialize) -> String {
    json_text(variant).trim_matches('"').to_owned()
}

fn of_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    parsed(&format!("\"{word}\""))
}

fn json_text(value: &impl Serialize) -> String {
    // Plain data always serializes.
    serde_json::to_string(value).unwrap_or_default()
}

impl HistoryState {
    fn of(record: &Record) -> Self {
        let has_several = record.intent.completion.targets().is_some();
        match (record.state, &record.answer) {
            (RecordState::Claimed, _) => HistoryState::Started,
            (RecordState::InDoubt, _) => HistoryState::Unknown,
            (RecordState::Refused, _) => HistoryState::Refused,
            (RecordState::PendingApproval, _) => HistoryState::PendingApproval,
            // Of several targets, as far as an attempt came.
            (RecordState::Applied, None) if has_several => HistoryState::Started,
            (RecordState::Applied, Some(_)) if has_several => HistoryState::Failed,
            (RecordState::Applied, _) => HistoryState::Applied,
            (RecordState::RollingBack, _) => HistoryState::Failed,
            (RecordState::Answered, answer) => match answer.as_ref().map(|answer| answer.outcome) {
                Some(Outcome::Failed) => HistoryState::Failed,
                Some(Outcome::Unchanged) => HistoryState::Unchanged,
                _ => HistoryState::Applied,
            },
        }
    }

    /// The Event's reason: one word for machines, as `kubectl get events` shows it.
    pub(crate) fn event_reason(self) -> &'static str {
        match self {
            HistoryState::Started => "ActionBegun",
            HistoryState::Applied => "ActionApplied",
            HistoryState::Unchanged => "ActionUnchanged",
            HistoryState::Failed => "ActionFailed",
            HistoryState::Refused => "ActionRefused",
            HistoryState::PendingApproval => "ApprovalPending",
            HistoryState::Unknown => "ActionUnknown",
        }
    }
}

fn kind_of_event(record: &Record) -> &'static str {
    let failed = record.answer.as_ref().is_some_and(|answer| answer.outcome == Outcome::Failed);
    let is_warning = failed || matches!(record.state, RecordState::InDoubt | RecordState::Refused);
    if is_warning { "Warning" } else { "Normal" }
}

/// Whether an answer is one that is recorded. What was simulated or waits for approval never is: more accounts may
/// write Events than may ask a person to run a command.
fn is_recorded(answer: &ActionResponse) -> bool {
    answer.approval.is_none()
        && !matches!(answer.outcome, Outcome::Simulated | Outcome::PendingApproval)
}

/// Whether an answer is final. An interrupted wait or observation is resumed by the next attempt.
pub(crate) fn is_final(answer: &ActionResponse) -> bool {
    let back = answer.rolled_back.as_ref().map(|rolled_back| &rolled_back.rollout);
    let mut waits = answer.rollout.iter().chain(back);
    let observation = answer.observation.as_ref().map(|observation| observation.state);
    waits.all(|rollout| rollout.state != RolloutState::Interrupted)
        && observation != Some(ObservationState::Interrupted)
}

/// The digest of the payload: everything but the id, `simulate`, `wait`, the observation and the timeout.
fn payload_digest(request: &ActionRequest) -> String {
    let request = request.clone();
    let payload = ActionRequest {
        id: None,
        simulate: false,
        wait: false,
        timeout: None,
        observe: None,
        ..request
    };
    sha256(json_text(&payload).as_bytes())
}

/// At most `limit` bytes, truncated between characters.
fn truncate(text: String, limit: usize) -> String {
    if text.len() > limit { format!("{}...", beginning(&text, limit - 3)) } else { text }
}

#[cfg(test)]
impl RequestMetadata {
    /// `restart_k8s` of Deployment shop/web with the id `alert-7`, for tests.
    pub(crate) fn example() -> Self {
        let text = r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false,
            "id":"alert-7","requester":"pager","reason":"p99 is 4 s"}"#;
        let request = ActionRequest::parse(text.as_bytes()).expect("is a request");
        let id = request.id.clone().expect("has an id");
        RequestMetadata::of(&request, &id)
    }
}

#[cfg(test)]
impl Record {
    /// A claim of `restart_k8s` on Deployment shop/web, for tests.
    pub(crate) fn example() -> Self {
        use crate::k8s::{completion::RolloutOf, workload::WorkloadKind};
        let template = None;
        let intent = Intent {
            effect: None,
            completion: CompletionSpec::Rollout(RolloutOf {
                kind: WorkloadKind::Deployment,
                template,
            }),
            answer: ActionResponse::example(Outcome::Applied),
            decision_etag: None,
            rollback_target: None,
            taken_over: false,
        };
        let expires_at = "2026-01-31T12:00:30Z".parse().expect("is a time");
        Record::claim(&RequestMetadata::example(), "holder", expires_at, intent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::response::{RolledBack, Rollout};

    fn request(text: &str) -> ActionRequest {
        ActionRequest::parse(text.as_bytes()).expect("is a request")
    }

    const WEB: &str = r#"{"type":"restart_k8s","parameters":{"deployment":"web"},"simulate":false,
        "id":"alert-7","requester":"pager","reason":"p99 is 4 s""#;

    fn metadata(more: &str) -> RequestMetadata {
        let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
        RequestMetadata::of(&request(&format!("{WEB}{more}}}")), &id)
    }

    fn answer() -> ActionResponse {
        ActionResponse {
            result: "Deployment 'web' restarted.".to_owned(),
            ..ActionResponse::example(Outcome::Applied)
        }
    }

    fn claim() -> Record {
        Record::example()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let answered = Record {
            state: RecordState::Answered,
            approval_nonce: Some("nonce".to_owned()),
            applied: Some(Applied {
                resource_version: Some("8".into()),
                generation: Some(4),
                template: Some("digest".into()),
                exceeded_at: None,
                warnings: Vec::new(),
            }),
            answer: Some(answer()),
            ..claim()
        };
        for record in [claim(), answered] {
            assert_eq!(Record::read(&metadata("").event(&record)), Some(record));
        }
    }

    #[test]
    fn an_event_of_another_program_has_no_record() {
        assert_eq!(Record::read(&Event::default()), None);
    }

    #[test]
    fn an_answer_that_asks_for_an_approval_is_forged_and_not_read() {
        for outcome in [Outcome::Simulated, Outcome::PendingApproval] {
            let forged = ActionResponse { outcome, ..answer() };
            let record = Record { state: RecordState::Answered, answer: Some(forged), ..claim() };
            let read = Record::read(&metadata("").event(&record)).expect("is a record");
            assert_eq!(read.answer, None);
        }
    }

    #[test]
    fn the_event_belongs_to_the_object_and_says_who_asked_and_why() {
        let record = Record { state: RecordState::Answered, answer: Some(answer()), ..claim() };
        let event = metadata("").event(&record);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u1"));
        assert_eq!(event.reason.as_deref(), Some("ActionApplied"));
        assert_eq!(
            event.message.as_deref(),
            Some("Deployment 'web' restarted. Requested by pager: p99 is 4 s (request alert-7).")
        );
    }

    #[test]
    fn one_id_has_one_event() {
        let other = RequestMetadata {
            target: Target { name: "api".into(), ..metadata("").target },
            ..metadata("")
        };
        assert_eq!(metadata("").event_name(), other.event_name());
        assert!(metadata("").event_name().len() < 63);
    }

    #[test]
    fn the_wait_is_no_part_of_the_payload() {
        let waiting = metadata(r#","wait":true,"timeout_seconds":7"#);
        assert_eq!(metadata("").digest, waiting.digest);
    }

    #[test]
    fn every_other_field_is_part_of_the_payload() {
        let other = |text: &str| {
            let id = RequestId::try_from("alert-7".to_owned()).expect("is an id");
            RequestMetadata::of(&request(text), &id).digest
        };
        let whole = format!("{WEB}}}");
        assert_eq!(other(&whole), metadata("").digest);
        for (from, to) in [("web", "api"), ("pager", "bot"), ("4 s", "5 s")] {
            assert_ne!(other(&whole.replace(from, to)), metadata("").digest, "{to}");
        }
    }

    #[test]
    fn a_message_is_truncated_between_characters() {
        let message = truncate("ü".repeat(800), MAX_MESSAGE_BYTES);
        assert!(message.len() <= MAX_MESSAGE_BYTES && message.ends_with("..."));
    }

    #[test]
    fn an_answer_is_final_unless_a_wait_was_interrupted() {
        let rollout = |state| Rollout { state, message: String::new(), problems: Vec::new() };
        let rolled_back =
            |state| RolledBack { revision: 1, resource_version: None, rollout: rollout(state) };
        use RolloutState::{Complete, Failed, Interrupted, TimedOut};
        for (waited, back, expected) in [
            (None, None, true),
            (Some(Complete), None, true),
            (Some(Failed), None, true),
            (Some(TimedOut), None, true),
            (Some(Interrupted), None, false),
            (Some(Failed), Some(Complete), true),
            (Some(Failed), Some(Interrupted), false),
        ] {
            let answer = ActionResponse {
                rollout: waited.map(rollout),
                rolled_back: back.map(rolled_back),
                ..answer()
            };
            assert_eq!(is_final(&answer), expected, "{waited:?} {back:?}");
            let mut record = claim();
            record.mark_answered(answer);
            assert_eq!(record.state == RecordState::Answered, expected, "{waited:?} {back:?}");
        }
    }

    #[test]
    fn a_refused_claim_stays_in_doubt_if_it_was_taken_over() {
        let refusal = ActionError::new(crate::contract::error::Code::PolicyDenied, "read-only");
        for (taken_over, expected) in [(false, RecordState::Refused), (true, RecordState::InDoubt)]
        {
            let mut record = claim();
            record.intent.taken_over = taken_over;
            record.mark_refused(&refusal);
            assert_eq!(record.state, expected);
        }
    }
}
