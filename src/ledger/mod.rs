//! The ledger: one record per request, in the cluster, so that a resent request gets the same answer and
//! nothing is done twice.
//!
//! A record is an Event in the target's namespace, named after the request's id alone. Creating it is the
//! claim: the API server lets one attempt create it. Every later write names the resourceVersion that was
//! read, so one of two concurrent writers succeeds. A claim that expired may be taken over once the cluster
//! has shown what became of its effect.
//!
//! When a claim may be taken over is decided by the API server's clock, so a wrong clock of one process blocks no
//! other. No clock decides whether an effect is made twice: the effect is bound to the object as it was read
//! (`k8s::effect`), and what it leaves behind shows that it was made (`k8s::evidence`).
//!
//! The ledger writes Events and knows no single action. What became of an effect is for its caller to find out.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Event;
use tokio::time::{Instant, sleep};

use crate::{
    contract::{
        error::{ActionError, Code},
        names::RequestId,
        response::ActionResponse,
    },
    k8s::{
        api::{
            client::{ApiCall, Cluster},
            error::ApiError,
            retry,
        },
        rbac::PolicyRule,
    },
    ledger::record::{
        Intent, NAMESPACE_OF_CLUSTER_SCOPED, REQUEST_ID, REQUESTER, Record, RecordState,
        RequestMetadata, event_name, event_name_of,
    },
};

pub(crate) mod history;
pub(crate) mod record;

/// The permissions in the target's namespace that every action needs.
pub const RULE: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["create", "get", "patch"] };

/// The further permission for a server's history, in each namespace that it shows: to list the records of
/// all requests. No action needs it.
pub const HISTORY: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["list"] };

/// How long a claim outlasts the time limit of its holder's calls.
const CLAIM_GRACE: Duration = Duration::from_secs(2);

/// Time to record a refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to read the record of another request.
const OTHER_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to try whether a record could be created.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The ledger, for one attempt at one request.
pub(crate) struct Ledger<'a> {
    cluster: &'a Cluster,
    pub(crate) request: RequestMetadata,
    /// Distinguishes this attempt's records from those of other attempts.
    holder: String,
}

/// What the ledger holds under a request's id, as seen by one attempt.
#[derive(Debug)]
pub(crate) enum ClaimState {
    /// No record.
    Free,
    /// This attempt's own claim.
    Ours(Box<Record>),
    /// The final answer.
    Answered(Box<Record>),
    /// The effect is made; its completion is awaited, or it failed and is being rolled back.
    Applied(Box<Record>),
    /// Another attempt's claim, which expires then.
    Held(DateTime<Utc>),
    /// A claim that expired or is in doubt: what became of it has to be found out.
    Abandoned(Box<Record>),
    /// A claim that was refused: it may be taken over.
    Refused(Box<Record>),
    /// A request for a person's approval, by this attempt or an earlier one.
    Pending(Box<Record>),
}

/// What became of writing the end of a claim.
#[derive(Debug)]
pub(crate) enum Commit {
    /// It is written.
    Stored,
    /// Another attempt recorded the final answer before.
    Superseded(Box<ActionResponse>),
    /// Another attempt took the claim over; its claim expires then.
    LostClaim(DateTime<Utc>),
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(cluster: &'a Cluster, request: RequestMetadata) -> Self {
        Ledger { cluster, request, holder: uuid::Uuid::now_v7().to_string() }
    }

    /// A claim of this attempt, to open or to take over with.
    pub(crate) fn claim(&self, intent: Intent, deadline: Instant) -> Record {
        let left = deadline.saturating_duration_since(Instant::now()) + CLAIM_GRACE;
        Record::claim(&self.request, &self.holder, self.cluster.now() + left, intent)
    }

    /// Another attempt's record, continued by this attempt: further writes are this holder's.
    pub(crate) fn adopt(&self, record: Record) -> Record {
        Record { holder: self.holder.clone(), ..record }
    }

    /// The same of an attempt that resumes what the record is about.
    pub(crate) fn resume(&self, record: Record) -> Record {
        let earlier = record.impersonated_users.clone();
        let impersonated_users = self.request.impersonated_user.iter().cloned().collect();
        self.adopt(Record { impersonated_users, ..record }).after_attempts_of(&earlier)
    }

    /// A request for a person's approval until then, to open or to take over with.
    pub(crate) fn approval_request(&self, intent: Intent, until: DateTime<Utc>) -> Record {
        let claim = Record::claim(&self.request, &self.holder, until, intent);
        let approval_nonce = Some(self.holder.clone());
        Record { state: RecordState::PendingApproval, approval_nonce, ..claim }
    }

    /// Creates the request's record, or finds the one that exists.
    ///
    /// # Errors
    /// [`Code::IdReused`] if the id was used for another payload; else why the record could not be written,
    /// and then nothing may be done.
    pub(crate) async fn open(
        &self,
        record: &Record,
        deadline: Instant,
    ) -> Result<ClaimState, ActionError> {
        let event = self.request.event(record);
        let mut backoff = retry::backoff();
        loop {
            // A repeated creation conflicts with its own first Event; the holder shows that it is ours.
            let created = self.cluster.create(self.request.namespace(), &event, deadline).await;
            match created.map(|event| Record::read(&event)) {
                Ok(Some(record)) => return self.state_of(record),
                // A response without the record proves nothing, and a conflict may be with our own creation.
                Ok(None) | Err(ApiError::Conflict(_)) => match self.find(deadline).await? {
                    // The Event expired between the two calls.
                    ClaimState::Free if Instant::now() < deadline => {
                        sleep(backoff.next().unwrap_or_default()).await;
                    }
                    found => return Ok(found),
                },
                Err(error) => return Err(self.explain("create", error).await),
            }
        }
    }

    /// Has the API server try to create a record, for a simulation. Nothing is stored.
    ///
    /// # Errors
    /// Why the record of the real action could not be created.
    pub(crate) async fn try_to_open(&self, deadline: Instant) -> Result<(), ActionError> {
        let event = self.request.trial();
        let until = deadline.min(Instant::now() + TRIAL_TIMEOUT);
        match self.cluster.try_create(self.request.namespace(), &event, until).await {
            Ok(()) | Err(ApiError::Conflict(_)) => Ok(()),
            Err(error) => {
                let name = event.metadata.name.as_deref();
                let call = ApiCall::of::<Event>("create", self.request.namespace(), name);
                Err(self.cluster.explain(&call, error).await)
            }
        }
    }

    /// Finds the request's record.
    ///
    /// # Errors
    /// [`Code::IdReused`] if the id was used for another payload, else why the record could not be read.
    pub(crate) async fn find(&self, deadline: Instant) -> Result<ClaimState, ActionError> {
        match self.read(deadline).await? {
            Some(event) => match Record::read(&event) {
                Some(record) => self.state_of(record),
                None => Err(self.unreadable()),
            },
            None => Ok(ClaimState::Free),
        }
    }

    /// Replaces a record as it was read by ours; `None` if another attempt changed it before.
    ///
    /// # Errors
    /// Why it could not be written.
    pub(crate) async fn take(
        &self,
        found: &Record,
        ours: Record,
        deadline: Instant,
    ) -> Result<Option<Record>, ActionError> {
        let ours = Record { resource_version: found.resource_version.clone(), ..ours };
        let ours = ours.after_attempts_of(&found.impersonated_users);
        match self.write(&ours, deadline).await {
            Ok(event) => Ok(Record::read(&event).filter(|found| found.is_same_write(&ours))),
            Err(ApiError::Conflict(_) | ApiError::NotFound) => Ok(None),
            Err(error) => Err(self.explain("patch", error).await),
        }
    }

    /// Writes what became of a claim; an Event that is gone is created again. An attempt that lost its claim
    /// may still record that the effect was made, and nothing else.
    ///
    /// # Errors
    /// Why it could not be written; what was done stays done.
    pub(crate) async fn settle(
        &self,
        record: &mut Record,
        deadline: Instant,
    ) -> Result<Commit, ActionError> {
        let mut backoff = retry::backoff();
        loop {
            let written = match self.write(record, deadline).await {
                Err(ApiError::NotFound) => {
                    let event = self.request.event(record);
                    let created = self.cluster.create(self.request.namespace(), &event, deadline);
                    created.await.map_err(|error| ("create", error))
                }
                written => written.map_err(|error| ("patch", error)),
            };
            let written = match written {
                Ok(event)
                    if !Record::read(&event).is_some_and(|found| found.is_same_write(record)) =>
                {
                    Err(("patch", ApiError::NoAnswer("the response is not the record".to_owned())))
                }
                written => written,
            };
            match written {
                Ok(event) => {
                    record.resource_version = event.metadata.resource_version;
                    return Ok(Commit::Stored);
                }
                Err((verb, error)) => {
                    let pause = backoff.next().unwrap_or_default();
                    let is_conflict = matches!(error, ApiError::Conflict(_));
                    if !is_conflict || Instant::now() + pause >= deadline {
                        return Err(self.explain(verb, error).await);
                    }
                    sleep(pause).await;
                }
            }
            let Some(event) = self.read(deadline).await? else { continue };
            if let Some(commit) =
                Record::read(&event).and_then(|found| resolve_conflict(record, found))
            {
                return Ok(commit);
            }
            record.resource_version = event.metadata.resource_version;
        }
    }

    fn state_of(&self, record: Record) -> Result<ClaimState, ActionError> {
        if record.digest != self.request.digest {
            return Err(ActionError::id_reused(&self.request.id));
        }
        if !record.is_about(&self.request) {
            return Err(self.unreadable());
        }
        Ok(claim_state(record, &self.holder, self.cluster.now()))
    }

    async fn read(&self, deadline: Instant) -> Result<Option<Event>, ActionError> {
        let name = self.request.event_name();
        self.cluster.get_opt(self.request.namespace(), &name, deadline).await
    }

    async fn write(&self, record: &Record, deadline: Instant) -> Result<Event, ApiError> {
        let (name, patch) = (self.request.event_name(), self.request.patch(record));
        let namespace = self.request.namespace();
        match self.cluster.merge(namespace, &name, &patch, deadline).await {
            // A repeated patch conflicts with its own first try.
            Err(ApiError::Conflict(message)) => {
                match self.cluster.try_get::<Event>(namespace, &name, deadline).await {
                    Ok(event)
                        if Record::read(&event)
                            .is_some_and(|found| found.is_same_write(record)) =>
                    {
                        Ok(event)
                    }
                    _ => Err(ApiError::Conflict(message)),
                }
            }
            written => written,
        }
    }

    async fn explain(&self, verb: &'static str, error: ApiError) -> ActionError {
        let name = self.request.event_name();
        let call = ApiCall::of::<Event>(verb, self.request.namespace(), Some(&name));
        self.cluster.explain(&call, error).await
    }

    /// Records that a request was refused before it had a record: one Event per kind of refusal and target
    /// in ten minutes, however often the request is sent. It informs readers of Events; nothing depends on it.
    pub(crate) async fn record_refusal(&self, refusal: &ActionError) {
        let until = Instant::now() + REFUSAL_TIMEOUT;
        let event = self.request.refusal(refusal, Utc::now());
        match self.cluster.create(self.request.namespace(), &event, until).await {
            Ok(_) | Err(ApiError::Conflict(_)) => {}
            Err(error) => tracing::debug!(?error, "the refusal could not be recorded"),
        }
    }

    /// The id with this digest, if there is a record of it where this request has its own, or where those of nodes are,
    /// and this request's requester sent it: another one could not use it.
    pub(crate) async fn id_of(&self, digest: &str) -> Option<RequestId> {
        let until = Instant::now() + OTHER_TIMEOUT;
        let name = event_name_of(digest);
        for namespace in [self.request.namespace(), NAMESPACE_OF_CLUSTER_SCOPED] {
            let event = self.cluster.try_get::<Event>(namespace, &name, until).await;
            let annotations = event.ok().and_then(|event| event.metadata.annotations);
            let ours =
                annotations.filter(|all| all.get(REQUESTER) == self.request.requester.as_ref());
            let id = ours.and_then(|mut all| all.remove(REQUEST_ID));
            let id = id.and_then(|id| RequestId::try_from(id).ok());
            // Another account that may write Events could have written another id.
            if let Some(id) = id.filter(|id| event_name(id) == name) {
                return Some(id);
            }
        }
        None
    }

    fn unreadable(&self) -> ActionError {
        let (name, namespace) = (self.request.event_name(), self.request.namespace());
        let detail =
            format!("the record of '{}' cannot be read, so nothing was done", self.request.id);
        ActionError::new(Code::IdReused, detail).with_hint(format!(
            "check `kubectl -n {namespace} get event {name} -o yaml`, or use another id"
        ))
    }
}

/// What a record means to the attempt with this holder.
pub(crate) fn claim_state(record: Record, holder: &str, now: DateTime<Utc>) -> ClaimState {
    match (record.state, &record.answer) {
        (RecordState::Answered, Some(_)) => ClaimState::Answered(Box::new(record)),
        (RecordState::Refused, _) => ClaimState::Refused(Box::new(record)),
        (RecordState::PendingApproval, _) => ClaimState::Pending(Box::new(record)),
        (RecordState::InDoubt, _) => ClaimState::Abandoned(Box::new(record)),
        (RecordState::Applied | RecordState::RollingBack, _) => {
            ClaimState::Applied(Box::new(record))
        }
        _ if record.holder == holder => ClaimState::Ours(Box::new(record)),
        _ if now < record.expires_at => ClaimState::Held(record.expires_at),
        _ => ClaimState::Abandoned(Box::new(record)),
    }
}

/// What becomes of our record when another one was written in its place; `None` if ours overwrites it.
pub(crate) fn resolve_conflict(ours: &Record, found: Record) -> Option<Commit> {
    if found.holder == ours.holder || found.digest != ours.digest {
        return None;
    }
    match found.answer {
        Some(answer) if found.state == RecordState::Answered => {
            Some(Commit::Superseded(Box::new(answer)))
        }
        _ if ours.records_an_effect() => None,
        _ => Some(Commit::LostClaim(found.expires_at)),
    }
}

/// The error for an attempt while another one is running.
pub(crate) fn in_progress(until: DateTime<Utc>, now: DateTime<Utc>) -> ActionError {
    let left = (until - now).to_std().unwrap_or_default();
    ActionError::new(Code::InProgress, "another attempt at this request is still running")
        .with_hint("resend the same request later to get its answer")
        .with_retry_after(Some(left.clamp(Duration::from_secs(1), Duration::from_secs(10))))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::contract::response::Outcome;

    fn record(state: RecordState, holder: &str) -> Record {
        Record { state, holder: holder.to_owned(), ..Record::example() }
    }

    fn with_answer(outcome: Outcome, record: Record) -> Record {
        Record { answer: Some(ActionResponse::example(outcome)), ..record }
    }

    #[test]
    fn a_record_means_one_thing_to_each_attempt() {
        for (state, holder, late, expected) in [
            (RecordState::Claimed, "us", false, "Ours"),
            (RecordState::Claimed, "us", true, "Ours"),
            (RecordState::Claimed, "them", false, "Held"),
            (RecordState::Claimed, "them", true, "Abandoned"),
            (RecordState::InDoubt, "us", false, "Abandoned"),
            (RecordState::Applied, "them", true, "Applied"),
            (RecordState::RollingBack, "them", false, "Applied"),
            (RecordState::Refused, "them", false, "Refused"),
            (RecordState::PendingApproval, "them", true, "Pending"),
            // An unreadable answer is ignored.
            (RecordState::Answered, "them", true, "Abandoned"),
        ] {
            let record = record(state, holder);
            let now = record.expires_at + TimeDelta::seconds(if late { 0 } else { -1 });
            let name = format!("{:?}", claim_state(record, "us", now));
            assert!(name.starts_with(expected), "{state:?} {holder} {late}: {name}");
        }
        let answered = with_answer(Outcome::Applied, record(RecordState::Answered, "them"));
        assert!(matches!(claim_state(answered, "us", Utc::now()), ClaimState::Answered(_)));
    }

    #[test]
    fn a_final_answer_stays_and_an_effect_is_recorded_over_a_claim() {
        let ours = |state| record(state, "us");
        let answered = |outcome| with_answer(outcome, ours(RecordState::Answered));
        let claim = || record(RecordState::Claimed, "them");
        let final_answer = || with_answer(Outcome::Applied, record(RecordState::Answered, "them"));
        let mut waits_unchanged = ours(RecordState::Applied);
        waits_unchanged.intent.answer.outcome = Outcome::Unchanged;
        let other_payload = Record { digest: "another".to_owned(), ..claim() };
        for (ours, found, expected) in [
            (ours(RecordState::Refused), ours(RecordState::Claimed), "None"),
            (ours(RecordState::Refused), other_payload, "None"),
            (ours(RecordState::Applied), final_answer(), "Some(Superseded"),
            (answered(Outcome::Applied), final_answer(), "Some(Superseded"),
            (ours(RecordState::Applied), claim(), "None"),
            (ours(RecordState::RollingBack), claim(), "None"),
            (waits_unchanged, claim(), "Some(LostClaim"),
            (answered(Outcome::Applied), claim(), "None"),
            (answered(Outcome::Unchanged), claim(), "Some(LostClaim"),
            (ours(RecordState::Refused), claim(), "Some(LostClaim"),
            (ours(RecordState::InDoubt), claim(), "Some(LostClaim"),
        ] {
            let state = ours.state;
            let resolved = format!("{:?}", resolve_conflict(&ours, found));
            assert!(resolved.starts_with(expected), "{state:?}: {resolved}");
        }
    }
}
