//! The ledger: one record for each request, in the cluster, so that whoever comes with the same
//! request again gets the same answer and nothing is done twice.
//!
//! A record is an Event in the target's namespace under a name made from the request's id alone.
//! Creating it is the claim: the API server lets one creator through. Every later change to it names
//! the resourceVersion that was read, so of two who would go on with a claim one does. A claim whose
//! holder died is taken over after its time, once the cluster has said what became of the effect.
//!
//! Clocks only say when a claim may be taken over, never whether an effect is made twice: that the
//! effect itself prevents, being bound to the object as it was read and leaving its mark (see
//! [`crate::k8s::api::mutation`]). So clocks that differ cost at most patience.
//!
//! This room writes Events and knows no action; what became of an effect is for its caller to find out.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Event;
use tokio::time::Instant;

use crate::{
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome},
    },
    k8s::{
        api::{
            client::{Call, Cluster},
            error::ApiError,
            mutation::{Applied, Effect},
        },
        rbac::PolicyRule,
    },
    ledger::record::{Intent, Record, RequestMetadata, State},
};

pub mod history;
pub mod record;

/// What RBAC must allow in the target's namespace for every action.
pub const RULE: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["create", "get", "patch"] };

/// What a server's history needs besides, in a namespace that it tells of: the records of all requests,
/// and not only the one whose name is known. No action needs it.
pub const HISTORY: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["events"], verbs: &["list"] };

/// How long a claim outlasts the time that its holder has for its calls.
const CLAIM_GRACE: Duration = Duration::from_secs(2);

/// The longest time that a note of a refusal may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The ledger's pages for one request.
pub(crate) struct Ledger<'a> {
    cluster: &'a Cluster,
    pub(crate) subject: RequestMetadata,
    /// Tells our own record from that of another try of the same request.
    holder: String,
}

/// What stands in the ledger under a request's id.
#[derive(Debug)]
pub(crate) enum ClaimState {
    /// Nothing.
    Free,
    /// Our own claim, just made.
    Ours(Box<Record>),
    /// The final answer is there.
    Answered(Box<Record>),
    /// The effect is made; its completion is being waited for, or it failed and is being taken back.
    Applied(Box<Record>),
    /// Another try is at it, until this time at the latest.
    Held(DateTime<Utc>),
    /// A claim whose holder's time is over: what became of it has to be found out.
    Abandoned(Box<Record>),
    /// It had been claimed and was refused: it may be claimed again.
    Refused(Box<Record>),
    /// It waits for a person's approval; ours or an earlier try's.
    Pending(Box<Record>),
}

/// What came of writing down how a claim ended.
#[derive(Debug)]
pub(crate) enum Commit {
    /// It is written.
    Stored,
    /// Another try had settled it before: its answer is the answer.
    Superseded(Box<ActionResponse>),
    /// Another try has taken it over and is at it, until this time at the latest.
    LostClaim(DateTime<Utc>),
}

impl<'a> Ledger<'a> {
    /// The ledger for this request.
    pub(crate) fn new(cluster: &'a Cluster, subject: RequestMetadata) -> Self {
        Ledger { cluster, subject, holder: uuid::Uuid::now_v7().to_string() }
    }

    /// A claim to make the effect ourselves, to be opened or to take over with.
    pub(crate) fn claim(&self, intent: Intent, deadline: Instant) -> Record {
        let left = deadline.saturating_duration_since(Instant::now()) + CLAIM_GRACE;
        Record::claim(&self.subject, &self.holder, Utc::now() + left, intent)
    }

    /// A record of another try that we go on with. What is written of it from now on is told apart from
    /// what others write who go on with it too.
    pub(crate) fn adopt(&self, record: Record) -> Record {
        Record { holder: self.holder.clone(), ..record }
    }

    /// A plea for a person's approval until then, to be opened or to take over with.
    pub(crate) fn approval_request(&self, intent: Intent, until: DateTime<Utc>) -> Record {
        let claim = Record::claim(&self.subject, &self.holder, until, intent);
        Record { state: State::Pending, ..claim }
    }

    /// Opens the request's record, or finds what stands there already.
    ///
    /// # Errors
    /// [`Code::IdReused`] if the id stands for another payload; else why the record could not be
    /// written, and then nothing may be done.
    pub(crate) async fn open(
        &self,
        record: &Record,
        deadline: Instant,
    ) -> Result<ClaimState, ActionError> {
        let event = self.subject.event(record);
        loop {
            // A repeated creation meets the first one's Event, which is told by its holder.
            match self.cluster.create(self.subject.namespace(), &event, deadline).await {
                Ok(event) => return self.state_of(&event),
                Err(ApiError::Conflict(_)) => match self.find(deadline).await? {
                    // It expired between the two calls.
                    ClaimState::Free if Instant::now() < deadline => {}
                    standing => return Ok(standing),
                },
                Err(fault) => return Err(self.explain("create", fault).await),
            }
        }
    }

    /// Finds what stands there.
    ///
    /// # Errors
    /// [`Code::IdReused`] if the id stands for another payload, else why it could not be read.
    pub(crate) async fn find(&self, deadline: Instant) -> Result<ClaimState, ActionError> {
        match self.read(deadline).await {
            Ok(event) => self.state_of(&event),
            Err(ApiError::NotFound) => Ok(ClaimState::Free),
            Err(fault) => Err(self.explain("get", fault).await),
        }
    }

    /// Puts a record of ours over one as it was read; `None` if somebody else was quicker.
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
        match self.write(&ours, deadline).await {
            Ok(event) => Ok(Record::read(&event)),
            Err(ApiError::Conflict(_) | ApiError::NotFound) => Ok(None),
            Err(fault) => Err(self.explain("patch", fault).await),
        }
    }

    /// Writes what came of a claim; if the Event has gone, it is made anew. Who has lost the claim to
    /// another try in the meantime may still say that the effect was made, and nothing else.
    ///
    /// # Errors
    /// Why it could not be written; what was done stays done.
    pub(crate) async fn settle(
        &self,
        record: &mut Record,
        deadline: Instant,
    ) -> Result<Commit, ActionError> {
        loop {
            let written = match self.write(record, deadline).await {
                Err(ApiError::NotFound) => {
                    let event = self.subject.event(record);
                    let made = self.cluster.create(self.subject.namespace(), &event, deadline);
                    made.await.map_err(|fault| ("create", fault))
                }
                written => written.map_err(|fault| ("patch", fault)),
            };
            match written {
                Ok(event) => {
                    record.written_at = record::written_at(&event.metadata);
                    record.resource_version = event.metadata.resource_version;
                    return Ok(Commit::Stored);
                }
                Err((_, ApiError::Conflict(_))) if Instant::now() < deadline => {}
                Err((verb, fault)) => return Err(self.explain(verb, fault).await),
            }
            let event = match self.read(deadline).await {
                Ok(event) => event,
                Err(ApiError::NotFound) => continue,
                Err(fault) => return Err(self.explain("get", fault).await),
            };
            if let Some(settled) =
                Record::read(&event).and_then(|there| record.resolve_conflict(there))
            {
                return Ok(settled);
            }
            record.resource_version = event.metadata.resource_version;
        }
    }

    fn state_of(&self, event: &Event) -> Result<ClaimState, ActionError> {
        let Some(record) = Record::read(event) else { return Err(self.unreadable()) };
        if record.digest != self.subject.digest {
            return Err(self.reused());
        }
        Ok(standing(record, &self.holder, Utc::now()))
    }

    async fn read(&self, deadline: Instant) -> Result<Event, ApiError> {
        let name = self.subject.event_name();
        self.cluster.try_get(self.subject.namespace(), &name, deadline).await
    }

    async fn write(&self, record: &Record, deadline: Instant) -> Result<Event, ApiError> {
        let (name, patch) = (self.subject.event_name(), self.subject.patch(record));
        let namespace = self.subject.namespace();
        match self.cluster.merge(namespace, &name, &patch, deadline).await {
            // A repeated patch meets its own first try.
            Err(ApiError::Conflict(message)) => match self.read(deadline).await {
                Ok(event) if Record::read(&event).is_some_and(|there| there.same_as(record)) => {
                    Ok(event)
                }
                _ => Err(ApiError::Conflict(message)),
            },
            written => written,
        }
    }

    async fn explain(&self, verb: &'static str, fault: ApiError) -> ActionError {
        let name = self.subject.event_name();
        let call = Call::of::<Event>(verb, self.subject.namespace(), Some(&name));
        self.cluster.explain(&call, fault).await
    }

    /// Leaves a trace of a request that was refused before there was a record of it: one Event for
    /// each kind of refusal on a target in ten minutes, however often it is asked for. It is a courtesy
    /// to whoever reads the Events; nothing depends on it.
    pub(crate) async fn record_refusal(&self, refusal: &ActionError) {
        let until = Instant::now() + REFUSAL_TIMEOUT;
        let event = self.subject.refusal(refusal, Utc::now());
        match self.cluster.create(self.subject.namespace(), &event, until).await {
            Ok(_) | Err(ApiError::Conflict(_)) => {}
            Err(fault) => tracing::debug!(?fault, "the refusal could not be noted"),
        }
    }

    fn reused(&self) -> ActionError {
        let detail = format!("id: '{}' was used for another request", self.subject.id);
        ActionError::new(Code::IdReused, detail).with_field("id").with_hint(
            "give each request an id of its own; send the same request to ask for its answer",
        )
    }

    fn unreadable(&self) -> ActionError {
        let (name, namespace) = (self.subject.event_name(), self.subject.namespace());
        let detail =
            format!("the record of '{}' cannot be read, so nothing was done", self.subject.id);
        ActionError::new(Code::IdReused, detail).with_hint(format!(
            "look at `kubectl -n {namespace} get event {name} -o yaml`, or use another id"
        ))
    }
}

/// What a record means to another try of the same request.
fn standing(record: Record, holder: &str, now: DateTime<Utc>) -> ClaimState {
    match (record.state, &record.answer) {
        (State::Answered, Some(_)) => ClaimState::Answered(Box::new(record)),
        (State::Refused, _) => ClaimState::Refused(Box::new(record)),
        (State::Pending, _) => ClaimState::Pending(Box::new(record)),
        (State::InDoubt, _) => ClaimState::Abandoned(Box::new(record)),
        (State::Applied | State::RollingBack, _) => ClaimState::Applied(Box::new(record)),
        _ if record.holder == holder => ClaimState::Ours(Box::new(record)),
        _ if now < record.expires_at => ClaimState::Held(record.expires_at),
        _ => ClaimState::Abandoned(Box::new(record)),
    }
}

impl Record {
    /// Whether this is what that holder last wrote.
    fn same_as(&self, other: &Record) -> bool {
        self.holder == other.holder && self.state == other.state
    }

    /// What becomes of ours now that another record stands in its place; `None` if ours goes over it.
    fn resolve_conflict(&self, there: Record) -> Option<Commit> {
        if there.holder == self.holder || there.digest != self.digest {
            return None;
        }
        match there.answer {
            Some(answer) if there.state == State::Answered => {
                Some(Commit::Superseded(Box::new(answer)))
            }
            _ if self.records_an_effect() => None,
            _ => Some(Commit::LostClaim(there.expires_at)),
        }
    }

    fn records_an_effect(&self) -> bool {
        match (self.state, &self.answer) {
            (State::Answered, Some(answer)) => answer.outcome != Outcome::Unchanged,
            (state, _) => matches!(state, State::Applied | State::RollingBack),
        }
    }

    /// The record once the effect is made and its completion is still to come.
    pub(crate) fn applied(&mut self, made: Applied) {
        self.state = State::Applied;
        self.made = Some(made);
    }

    /// The record once what was waited for has failed, as the answer so far says, and this effect is about
    /// to take the target back.
    pub(crate) fn rolling_back(&mut self, effect: Effect, so_far: ActionResponse) {
        self.state = State::RollingBack;
        self.rollback = Some(effect);
        self.answer = Some(so_far);
    }

    /// The record with its answer.
    pub(crate) fn answered(&mut self, answer: ActionResponse) {
        self.state = match &self.rollback {
            _ if record::is_final(&answer) => State::Answered,
            Some(_) => State::RollingBack,
            None => State::Applied,
        };
        self.answer = Some(answer);
    }

    /// The record of an effect of which it is not known whether it was made.
    pub(crate) fn in_doubt(&mut self) {
        self.state = State::InDoubt;
    }

    /// The record of a request that was refused although it was claimed. One that was taken over stays
    /// in doubt: the try that had it before may be slow and not dead.
    pub(crate) fn refused(&mut self, refusal: &ActionError) {
        self.state = if self.intent.taken_over { State::InDoubt } else { State::Refused };
        self.refusal = Some(refusal.detail.clone());
    }
}

/// What is said to a try that comes while another one is at it.
pub(crate) fn in_progress(until: DateTime<Utc>) -> ActionError {
    let left = (until - Utc::now()).to_std().unwrap_or_default();
    ActionError::new(Code::InProgress, "another try of the same request is at it")
        .with_hint("send the same request again later to get its answer")
        .with_retry_after(Some(left.clamp(Duration::from_secs(1), Duration::from_secs(10))))
}
