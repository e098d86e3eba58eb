//! An exhaustive model of the ledger's protocol: all histories of a few attempts at one request in a small world,
//! with at most so many disturbances.
//!
//! The world is one object, one record, the charges, the approvals, and a network. A disturbance is a crash, a lost or
//! repeated or held write, a skewed clock, a change by another writer, an Event that is gone, or a forged record. All
//! decisions are those of the program: each step calls the same pure functions on real plans, effects and records,
//! and a patch is applied to a JSON object. What the model has of its own is the order of the calls, and the API
//! server.
//!
//! Atomic here: a call that conflicts and the read that follows it, and the first evidence of an abandoned claim with
//! the plan after it. A charge that is not answered is removed at once. A wait for completion takes no time.
//!
//! Assumed: an Event that expires belongs to a request that is too old to be claimed; an Event that is deleted before
//! leaves the mark in place; no write of a record is held as long as an Event is kept. A forger writes one record and
//! knows all nonces. A deletion meets fewer conflicts than let it go without the version.
//!
//! `cargo test --lib model -- --nocapture` prints the number of states and what was reached; `MODEL=large` explores one
//! more disturbance.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::Hash,
    ops::ControlFlow,
    sync::Mutex,
    thread::LocalKey,
    time::Instant,
};

use chrono::TimeDelta;
use json_patch::{Patch as JsonPatch, PatchOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use serde_json::{Value, json};
use stateright::{Checker, HasDiscoveries, Model as _, Property};

use super::{
    Approval,
    claim::{EarlierEffect, check_approved, refusal_after},
    effect::Settlement,
};
use crate::{
    actions::{
        CompletionSpec, Decision, Plan, PlanInput, restart_pod, shared::toggle::PAUSE_ROLLOUT,
    },
    contract::{
        error::{ActionError, Code},
        response::{ActionResponse, Outcome, Target},
    },
    executor::apply::{Execution, Sent},
    k8s::{
        api::error::ApiError,
        applied_requests::REQUESTS_ANNOTATION,
        completion::Completion,
        effect::{Applied, Effect, Mutation},
        evidence::{Evidence, confirmed},
    },
    ledger::{
        ClaimState, Commit, claim_state,
        record::{Record, RecordState, RequestMetadata},
        resolve_conflict,
    },
    policy::approval,
};

/// Which object, and so which effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// A Deployment whose rollout is paused, by a patch.
    Deployment,
    /// A pod that is deleted, and that its controller replaces by another one of its name.
    Pod,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Object {
    uid: u8,
    generation: u8,
    /// Its resourceVersion, where something tests it.
    version: u8,
    /// A pod is being deleted.
    paused: bool,
    /// The annotation with the requests; empty if there is none.
    requests: String,
}

/// An effect: it follows from the object as it was planned for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Change {
    seen: Object,
    /// Whether it is bound to the version.
    bound: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Decided {
    Apply,
    AlreadyApplied,
    NoOp,
    Refused,
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct View {
    seen: Option<Object>,
    decided: Decided,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Said {
    Applied,
    Unchanged,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rec {
    state: RecordState,
    holder: u8,
    uid: u8,
    effect: Option<Object>,
    /// The answer if it succeeds.
    intended: Said,
    answer: Option<Said>,
    taken_over: bool,
    nonce: Option<u8>,
}

/// A record with its resourceVersion.
type Stored = (u8, Rec);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ModelClaimState {
    Free,
    Ours(Stored),
    Answered(Said),
    Applied(Stored),
    Held,
    Abandoned(Stored),
    Refused(Stored),
    Pending(Stored),
    Failed,
}

/// An effect that was sent (`apply::Sent`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SentChange {
    change: Change,
    own: bool,
    missing: bool,
}

/// The nonce of a record, and the object of the plan: what an approval is of.
type Consent = (u8, Object);

/// An attempt whose claim is its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OwnClaim {
    record: Stored,
    view: View,
    charged: bool,
    approval: Option<Consent>,
    earlier: Option<Object>,
    sent: Option<SentChange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum AttemptStage {
    Idle,
    Reading {
        found: Option<ModelClaimState>,
        view: Option<View>,
    },
    Claiming {
        view: View,
        opened: Option<ModelClaimState>,
        charged: Option<bool>,
    },
    /// About to replace a record by its own.
    Taking {
        found: u8,
        ours: Rec,
        view: View,
        approval: Option<Consent>,
        earlier: Option<Object>,
    },
    /// A record is pending: about to check for the approval.
    Asking {
        found: Stored,
        view: View,
    },
    Resuming {
        found: Stored,
    },
    Resumed {
        found: Stored,
        view: View,
    },
    Charging(OwnClaim),
    Sending(OwnClaim),
    /// The answer of this change is missing.
    Doubting(OwnClaim, Change),
    Replanning(OwnClaim),
    /// It ends, after evidence of what it has sent was found.
    Settling(OwnClaim, End),
    /// About to write that the effect is made, and to wait.
    Marking(Stored, End),
    /// About to write the end of its record.
    Recording(Stored, End),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum End {
    Said(Said),
    Unknown,
    /// Nothing was done, by this attempt.
    Refusal,
    InProgress,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attempt {
    id: u8,
    stage: AttemptStage,
}

/// A write that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Write {
    Effect {
        by: u8,
        change: Change,
        /// An answer has said that it has no effect.
        denied: bool,
    },
    Create(Rec),
    Patch(Stored),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    object: Option<Object>,
    /// The last uid: none is used again.
    last_uid: u8,
    event: Option<Stored>,
    /// The last resourceVersion of a record.
    writes: u8,
    /// The attempts whose charges count, as bits.
    entries: u8,
    /// What persons were asked to approve, and what they approved.
    asked: BTreeSet<Consent>,
    approved: BTreeSet<Consent>,
    network: Vec<Write>,
    attempts: [Attempt; 2],
    started: u8,
    /// The disturbances that may still come.
    left: u8,
    /// The Event is gone since the request is too old to be claimed (which lasts longer than an attempt), or earlier.
    expired: bool,
    lost: bool,
    /// The mark may have been removed.
    unmarked: bool,
    /// A record was forged.
    forged: bool,
    /// What is observed and not known to any attempt: the effects, the attempts that made them as bits, the uid of an
    /// effect that was sent and not answered, unless it was shown that it cannot be made, whether `unchanged` was
    /// recorded, and what is wrong.
    effects: u8,
    by: u8,
    unanswered: Option<u8>,
    unchanged: bool,
    wrong: Option<&'static str>,
}

const TWO_EFFECTS: &str = "an id has at most one effect";
const UNTRUE_APPLIED: &str = "applied is answered only if the effect was made";
const UNTRUE_UNCHANGED: &str = "unchanged is answered only if the effect was not made";
const NOT_FINAL: &str = "no effect follows a recorded unchanged";
const UNTRUE_REFUSAL: &str = "an attempt that is refused has made no effect";
const DENIED: &str = "no write has an effect after an answer denied it";
const NO_CONSENT: &str = "no effect without the approval of its plan";
const UNCHARGED: &str = "each effect has an entry that counts";
const SUCCESSOR: &str = "no effect on a successor of the object that an unanswered effect was for";

const ALL_RULES: [&str; 9] = [
    TWO_EFFECTS,
    UNTRUE_APPLIED,
    UNTRUE_UNCHANGED,
    NOT_FINAL,
    UNTRUE_REFUSAL,
    DENIED,
    NO_CONSENT,
    UNCHARGED,
    SUCCESSOR,
];

struct Model {
    kind: Kind,
    needs_approval: bool,
    forger: bool,
    /// Whether the requests wait for completion, so that an effect is recorded before its answer.
    waits: bool,
    disturbances: u8,
    attempts: u8,
    /// A rule that is broken, to see that the model finds it.
    broken: Option<Broken>,
    /// How often something noteworthy was reached.
    reached: Mutex<BTreeMap<&'static str, usize>>,
}

/// Rules without which something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// An effect that is not seen was never made.
    Absence,
    /// An effect of an unknown outcome is refunded.
    Refund,
    /// A claim stands for an approval.
    Consent,
    /// The same effect of another object stands for that of the one that was approved.
    Fence,
    /// A refused take-over ends the request.
    TakenOver,
    /// A further effect follows one that may have been made and undone.
    Undone,
}

#[derive(Clone, PartialEq)]
struct ModelStep {
    what: &'static str,
    who: u8,
    next: Box<World>,
}

impl fmt::Debug for ModelStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            0 => write!(f, "{}", self.what),
            who => write!(f, "{who}: {}", self.what),
        }
    }
}

/// The program's functions, on values of the model. Each result is computed once.
mod program {
    use super::*;

    type Cache<K, V> = RefCell<HashMap<K, V>>;

    fn cached<K: Hash + Eq + Clone, V: Clone>(
        cache: &'static LocalKey<Cache<K, V>>,
        key: K,
        make: impl FnOnce(&K) -> V,
    ) -> V {
        if let Some(known) = cache.with_borrow(|it| it.get(&key).cloned()) {
            return known;
        }
        let made = make(&key);
        cache.with_borrow_mut(|it| it.insert(key, made.clone()));
        made
    }

    fn request() -> RequestMetadata {
        RequestMetadata::example()
    }

    fn error(code: Code) -> ActionError {
        ActionError::new(code, "for this model")
    }

    fn json_of(kind: Kind, object: &Object) -> Value {
        let mut metadata = json!({
            "name": "web", "namespace": "shop", "uid": format!("u{}", object.uid),
            "resourceVersion": object.version.to_string(), "labels": { "app": "web" },
            "annotations": { "revision": "1" },
        });
        if !object.requests.is_empty() {
            metadata["annotations"][REQUESTS_ANNOTATION] = json!(object.requests);
        }
        match kind {
            Kind::Deployment => {
                metadata["generation"] = json!(object.generation);
                json!({ "metadata": metadata, "spec": { "paused": object.paused } })
            }
            Kind::Pod => {
                metadata["ownerReferences"] = json!([{ "apiVersion": "apps/v1",
                    "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true }]);
                if object.paused {
                    metadata["deletionTimestamp"] = json!("2026-01-31T12:00:00Z");
                }
                json!({ "metadata": metadata })
            }
        }
    }

    fn real_plan(kind: Kind, seen: &Object, uid: Option<u8>) -> Result<Plan, ActionError> {
        let object = json_of(kind, seen);
        let input = PlanInput { uid: uid.map(|uid| format!("u{uid}")), ..PlanInput::example() };
        match kind {
            Kind::Deployment => {
                let metadata: ObjectMeta =
                    serde_json::from_value(object["metadata"].clone()).expect("is metadata");
                let target = PAUSE_ROLLOUT.target("shop", "web");
                let done = CompletionSpec::Known(Completion::Immediate("done".to_owned()));
                PAUSE_ROLLOUT.decide(target, &metadata, seen.paused, done, &input)
            }
            Kind::Pod => {
                let pod: Pod = serde_json::from_value(object).expect("is a pod");
                restart_pod::decide(Target::named("v1", "Pod", "shop", "web"), &pod, &[], &input)
            }
        }
    }

    fn real_effect(kind: Kind, change: &Change) -> Effect {
        let plan = real_plan(kind, &change.seen, None).expect("was planned");
        let effect = plan.expect_change().0.clone();
        if change.bound { effect.bound_to(&plan.found) } else { effect }
    }

    /// An effect as the record has it.
    fn recorded_effect(kind: Kind, seen: &Object) -> Effect {
        real_effect(kind, &Change { seen: seen.clone(), bound: false })
    }

    fn some_effect() -> (Effect, Plan) {
        let seen =
            Object { uid: 1, generation: 1, version: 1, paused: false, requests: String::new() };
        let plan = real_plan(Kind::Deployment, &seen, None).expect("is planned");
        (recorded_effect(Kind::Deployment, &seen), plan)
    }

    pub(super) fn plan(kind: Kind, seen: Option<&Object>, uid: Option<u8>) -> View {
        thread_local!(static CACHE: Cache<(Kind, Object, Option<u8>), Decided> = RefCell::default());
        let decided = seen.map_or(Decided::Refused, |seen| {
            cached(&CACHE, (kind, seen.clone(), uid), |_| match real_plan(kind, seen, uid) {
                Err(_) => Decided::Refused,
                Ok(plan) => match plan.decision {
                    Decision::Apply { .. } => Decided::Apply,
                    Decision::AlreadyApplied(..) => Decided::AlreadyApplied,
                    Decision::NoOp(..) => Decided::NoOp,
                    Decision::DeleteEach(..) | Decision::EachTarget(..) => {
                        unreachable!("is one change of one object")
                    }
                },
            })
        });
        View { seen: seen.cloned(), decided }
    }

    /// The API server regards a missing value as null.
    fn as_served(patch: &JsonPatch, object: &Value) -> JsonPatch {
        let holds = |operation: &PatchOperation| match operation {
            PatchOperation::Test(test) => {
                test.value.is_null() && object.pointer(test.path.as_str()).is_none()
            }
            _ => false,
        };
        JsonPatch(patch.iter().filter(|it| !holds(it)).cloned().collect())
    }

    /// The object after the API server got this write; `Err` if a test or a precondition failed.
    pub(super) fn deliver(
        kind: Kind,
        change: &Change,
        now: Option<&Object>,
    ) -> Result<Option<Object>, ()> {
        thread_local!(static CACHE: Cache<(Kind, Change, Object), Result<Option<Object>, ()>> = RefCell::default());
        let Some(now) = now else { return Err(()) };
        cached(&CACHE, (kind, change.clone(), now.clone()), |_| {
            let effect = real_effect(kind, change);
            match &effect.mutation {
                Mutation::Patch { patch, .. } => {
                    let mut object = json_of(kind, now);
                    let patch = as_served(patch, &object);
                    json_patch::patch(&mut object, &patch).map_err(drop)?;
                    let applied = confirmed(&effect, &object);
                    assert!(applied.is_some(), "the response shows the effect: {object}");
                    let annotations = &object["metadata"]["annotations"];
                    Ok(Some(Object {
                        generation: now.generation + 1,
                        paused: object["spec"]["paused"] == true,
                        requests: annotations[REQUESTS_ANNOTATION]
                            .as_str()
                            .unwrap_or_default()
                            .to_owned(),
                        ..now.clone()
                    }))
                }
                Mutation::Delete { resource_version, .. } => {
                    let version = now.version.to_string();
                    let is_required = resource_version.as_ref().is_none_or(|it| *it == version);
                    if effect.uid != format!("u{}", now.uid) || !is_required {
                        return Err(());
                    }
                    assert!(confirmed(&effect, &json_of(kind, now)).is_some());
                    // A pod that is being deleted already is deleted by someone else, with the same answer.
                    let version = if now.paused { now.version } else { now.version + 1 };
                    Ok(Some(Object { version, paused: true, ..now.clone() }))
                }
                other => panic!("is not in this model: {other:?}"),
            }
        })
    }

    /// Indexes of `Evidence`, which has no hash.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(super) enum Shown {
        Made,
        NeverMade,
        NotYet,
        Gone,
        Unknowable,
    }

    impl Shown {
        fn of(evidence: &Evidence) -> Self {
            match evidence {
                Evidence::Made(_) => Shown::Made,
                Evidence::NeverMade => Shown::NeverMade,
                Evidence::NotYet => Shown::NotYet,
                Evidence::Gone => Shown::Gone,
                Evidence::Unknowable => Shown::Unknowable,
            }
        }

        fn evidence(self) -> Evidence {
            match self {
                Shown::Made => Evidence::Made(Applied::default()),
                Shown::NeverMade => Evidence::NeverMade,
                Shown::NotYet => Evidence::NotYet,
                Shown::Gone => Evidence::Gone,
                Shown::Unknowable => Evidence::Unknowable,
            }
        }
    }

    pub(super) fn evidence(kind: Kind, change: &Change, now: Option<&Object>) -> Shown {
        thread_local!(static CACHE: Cache<(Kind, Change, Option<Object>), Shown> = RefCell::default());
        cached(&CACHE, (kind, change.clone(), now.cloned()), |_| {
            let metadata = |now| json_of(kind, now)["metadata"].take();
            let found: Option<ObjectMeta> =
                now.map(|now| serde_json::from_value(metadata(now)).expect("is metadata"));
            Shown::of(&Evidence::of(&real_effect(kind, change), found.as_ref()))
        })
    }

    /// Why no further effect may follow this one.
    pub(super) fn bars_another(kind: Kind, change: &Change, seen: &Object) -> Option<Shown> {
        thread_local!(static CACHE: Cache<(Kind, Change, Object), Option<Shown>> = RefCell::default());
        cached(&CACHE, (kind, change.clone(), seen.clone()), |_| {
            let sent = Sent::by_an_earlier_attempt(real_effect(kind, change));
            let plan = real_plan(kind, seen, None).expect("was planned");
            sent.bars_another(&plan).as_ref().map(Shown::of)
        })
    }

    /// What follows from the evidence of an earlier attempt's effect.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(super) enum Earlier {
        Made,
        MayCome,
        None,
        Unknown,
    }

    pub(super) fn earlier(shown: Shown) -> Earlier {
        thread_local!(static CACHE: Cache<Shown, Earlier> = RefCell::default());
        cached(&CACHE, shown, |_| match EarlierEffect::of(&some_effect().0, shown.evidence()) {
            Ok(EarlierEffect::Made(_)) => Earlier::Made,
            Ok(EarlierEffect::MayCome(_)) => Earlier::MayCome,
            Ok(EarlierEffect::None) => Earlier::None,
            Err(error) => {
                assert_eq!(error.code, Code::OutcomeUnknown);
                Earlier::Unknown
            }
        })
    }

    pub(super) enum Resumed {
        TakeOver,
        AskAnew,
        Unknown,
    }

    pub(super) fn resume(has_earlier: bool, is_allowed: bool) -> Resumed {
        let (effect, _) = some_effect();
        match check_approved(has_earlier.then_some(&effect), is_allowed) {
            Ok(()) if is_allowed => Resumed::TakeOver,
            Ok(()) => Resumed::AskAnew,
            Err(_) => Resumed::Unknown,
        }
    }

    /// The end of an attempt that is refused while an earlier effect may still come, or not.
    pub(super) fn refusal(has_earlier: bool) -> End {
        thread_local!(static CACHE: Cache<bool, End> = RefCell::default());
        cached(&CACHE, has_earlier, |_| {
            let (effect, _) = some_effect();
            end_of_error(&refusal_after(
                has_earlier.then_some(&effect),
                false,
                error(Code::PolicyDenied),
            ))
        })
    }

    fn end_of_error(error: &ActionError) -> End {
        if error.code == Code::OutcomeUnknown { End::Unknown } else { End::Refusal }
    }

    fn result_of(end: End) -> Result<Execution, ActionError> {
        let execution = |outcome| Execution {
            plan: some_effect().1,
            applied: Applied::default(),
            outcome,
            result: String::new(),
            replayed: false,
            failed: None,
        };
        match end {
            End::Said(Said::Applied) => Ok(execution(Outcome::Applied)),
            End::Said(Said::Unchanged) => Ok(execution(Outcome::Unchanged)),
            End::Unknown => Err(error(Code::OutcomeUnknown)),
            End::Refusal | End::InProgress => Err(error(Code::Conflict)),
        }
    }

    fn end_of(result: Result<Execution, ActionError>) -> End {
        match result {
            Ok(done) if done.outcome == Outcome::Unchanged => End::Said(Said::Unchanged),
            Ok(_) => End::Said(Said::Applied),
            Err(error) => end_of_error(&error),
        }
    }

    fn real_sent(own: bool, missing: bool) -> Sent {
        let (effect, plan) = some_effect();
        match (own, missing) {
            (false, _) => Sent::by_an_earlier_attempt(effect),
            (true, true) => {
                let lost = ApiError::NoAnswer("lost".to_owned());
                Sent::without_answer(effect, plan, String::new(), &lost)
            }
            (true, false) => Sent::refused(None, effect, plan, String::new()),
        }
    }

    /// Of what an attempt has sent, the part that decides once this change was refused.
    pub(super) fn refused(before: Option<SentChange>, change: Change) -> Option<SentChange> {
        thread_local!(static CACHE: Cache<Option<(bool, bool)>, bool> = RefCell::default());
        let key = before.as_ref().map(|it| (it.own, it.missing));
        let keeps = cached(&CACHE, key, |_| {
            let (effect, plan) = some_effect();
            let sent = key.map(|(own, missing)| real_sent(own, missing));
            let sent = Sent::refused(sent, effect, plan, String::new());
            // One whose answer is missing is in doubt; one that was refused is not.
            end_of(sent.conclude(Some(Evidence::NotYet), result_of(End::Refusal))) == End::Unknown
        });
        if keeps { before } else { Some(SentChange { change, own: true, missing: false }) }
    }

    pub(super) fn conclude(sent: &SentChange, shown: Option<Shown>, end: End) -> End {
        thread_local!(static CACHE: Cache<(bool, bool, Option<Shown>, End), End> = RefCell::default());
        cached(&CACHE, (sent.own, sent.missing, shown, end), |_| {
            let sent = real_sent(sent.own, sent.missing);
            end_of(sent.conclude(shown.map(Shown::evidence), result_of(end)))
        })
    }

    pub(super) enum AfterLoss {
        /// Plan again: it may still come.
        MayCome,
        /// Plan again: it cannot come.
        CannotCome,
        End(End),
    }

    pub(super) fn after_loss(shown: Option<Shown>) -> AfterLoss {
        let end = error(Code::Conflict);
        match real_sent(true, true).resume(None, shown.map(Shown::evidence), end) {
            ControlFlow::Continue(Some(_)) => AfterLoss::MayCome,
            ControlFlow::Continue(None) => AfterLoss::CannotCome,
            ControlFlow::Break(result) => AfterLoss::End(end_of(result)),
        }
    }

    pub(super) fn is_replayed(sent: Option<&SentChange>) -> bool {
        sent.is_none_or(|it| real_sent(it.own, it.missing).is_of_an_earlier_attempt())
    }

    pub(super) fn settlement(end: End, is_replayed: bool) -> Settlement {
        thread_local!(static CACHE: Cache<(End, bool), Settlement> = RefCell::default());
        cached(&CACHE, (end, is_replayed), |_| {
            let result = result_of(end);
            Settlement::of(&result.map(|done| Execution { replayed: is_replayed, ..done }))
        })
    }

    fn answer(said: Said) -> ActionResponse {
        ActionResponse::example(match said {
            Said::Applied => Outcome::Applied,
            Said::Unchanged => Outcome::Unchanged,
        })
    }

    fn real_record(state: RecordState, said: Option<Said>, holder: &str) -> Record {
        Record { state, holder: holder.to_owned(), answer: said.map(answer), ..Record::example() }
    }

    pub(super) fn found((version, record): &Stored, who: u8, is_late: bool) -> ModelClaimState {
        #[derive(Clone, Copy)]
        enum Means {
            Ours,
            Answered,
            Applied,
            Held,
            Abandoned,
            Refused,
            Pending,
        }
        thread_local!(static CACHE: Cache<(RecordState, Option<Said>, bool, bool), Means> = RefCell::default());
        let is_ours = record.holder == who;
        let means = cached(&CACHE, (record.state, record.answer, is_ours, is_late), |_| {
            let holder = if is_ours { "us" } else { "them" };
            let real = real_record(record.state, record.answer, holder);
            let now = real.expires_at + TimeDelta::seconds(if is_late { 0 } else { -1 });
            match claim_state(real, "us", now) {
                ClaimState::Ours(_) => Means::Ours,
                ClaimState::Answered(_) => Means::Answered,
                ClaimState::Applied(_) => Means::Applied,
                ClaimState::Held(_) => Means::Held,
                ClaimState::Abandoned(_) => Means::Abandoned,
                ClaimState::Refused(_) => Means::Refused,
                ClaimState::Pending(_) => Means::Pending,
                ClaimState::Free => panic!("there is a record"),
            }
        });
        let stored = || (*version, record.clone());
        match means {
            Means::Ours => ModelClaimState::Ours(stored()),
            Means::Answered => ModelClaimState::Answered(record.answer.expect("is answered")),
            Means::Applied => ModelClaimState::Applied(stored()),
            Means::Held => ModelClaimState::Held,
            Means::Abandoned => ModelClaimState::Abandoned(stored()),
            Means::Refused => ModelClaimState::Refused(stored()),
            Means::Pending => ModelClaimState::Pending(stored()),
        }
    }

    #[derive(Clone, Copy)]
    pub(super) enum Resolved {
        Overwrite,
        Superseded,
        LostClaim,
    }

    pub(super) fn resolve(ours: &Rec, found: &Rec) -> Resolved {
        type Key = (RecordState, Said, Option<Said>, RecordState, Option<Said>, bool);
        thread_local!(static CACHE: Cache<Key, Resolved> = RefCell::default());
        let is_same = ours.holder == found.holder;
        let key = (ours.state, ours.intended, ours.answer, found.state, found.answer, is_same);
        cached(&CACHE, key, |_| {
            let theirs = if is_same { "us" } else { "them" };
            let mut real = real_record(ours.state, ours.answer, "us");
            real.intent.answer = answer(ours.intended);
            let ours = real;
            match resolve_conflict(&ours, real_record(found.state, found.answer, theirs)) {
                None => Resolved::Overwrite,
                Some(Commit::Superseded(_)) => Resolved::Superseded,
                Some(Commit::LostClaim(_)) => Resolved::LostClaim,
                Some(Commit::Stored) => panic!("nothing is stored"),
            }
        })
    }

    /// The state of a record that ends like this.
    pub(super) fn ended(record: &Rec, end: End) -> Rec {
        thread_local!(static CACHE: Cache<(RecordState, bool, End), RecordState> = RefCell::default());
        let state = cached(&CACHE, (record.state, record.taken_over, end), |_| {
            let mut real = real_record(record.state, None, "us");
            real.intent.taken_over = record.taken_over;
            match end {
                End::Said(said) => real.mark_answered(answer(said)),
                End::Unknown => real.mark_in_doubt(),
                End::Refusal | End::InProgress => real.mark_refused(&error(Code::Conflict)),
            }
            real.state
        });
        let said = if let End::Said(said) = end { Some(said) } else { record.answer };
        Rec { state, answer: said, intended: said.unwrap_or(record.intended), ..record.clone() }
    }

    /// A record of an effect whose completion is awaited.
    pub(super) fn marked(record: &Rec, said: Said) -> Rec {
        let mut real = real_record(record.state, None, "us");
        real.mark_applied(Applied::default());
        Rec { state: real.state, intended: said, ..record.clone() }
    }

    fn digest(kind: Kind, (nonce, seen): &Consent) -> String {
        let plan = real_plan(kind, seen, None).expect("was planned");
        approval::digest(&request(), &nonce.to_string(), &plan)
    }

    pub(super) fn is_same_consent(kind: Kind, one: &Consent, other: &Consent) -> bool {
        thread_local!(static CACHE: Cache<(Kind, Consent, Consent), bool> = RefCell::default());
        cached(&CACHE, (kind, one.clone(), other.clone()), |_| {
            digest(kind, one) == digest(kind, other)
        })
    }

    pub(super) fn covers(kind: Kind, approved: &Consent, seen: &Object) -> bool {
        thread_local!(static CACHE: Cache<(Kind, Consent, Object), bool> = RefCell::default());
        cached(&CACHE, (kind, approved.clone(), seen.clone()), |_| {
            let real = Approval {
                nonce: approved.0.to_string(),
                digest: digest(kind, approved),
                by: String::new(),
            };
            real_plan(kind, seen, None).is_ok_and(|plan| real.covers(&request(), &plan))
        })
    }
}

use program::{AfterLoss, Earlier, Resolved, Resumed, Shown};

/// Collects the steps from one state.
struct Steps<'a> {
    from: &'a World,
    all: Vec<ModelStep>,
}

impl Steps<'_> {
    fn add(&mut self, what: &'static str, who: u8, cost: u8, change: impl FnOnce(&mut World)) {
        let Some(left) = self.from.left.checked_sub(cost) else { return };
        let mut next = Box::new(World { left, ..self.from.clone() });
        change(&mut next);
        if u32::from(next.effects) > next.entries.count_ones() {
            next.wrong.get_or_insert(UNCHARGED);
        }
        self.all.push(ModelStep { what, who, next });
    }
}

impl Model {
    fn reach(&self, what: &'static str) {
        *self.reached.lock().expect("is not poisoned").entry(what).or_default() += 1;
    }

    fn read(&self, world: &World, uid: Option<u8>) -> View {
        program::plan(self.kind, world.object.as_ref(), uid)
    }

    fn find(&self, world: &World, who: u8, is_early: bool) -> ModelClaimState {
        let Some(stored) = &world.event else { return ModelClaimState::Free };
        program::found(stored, who, is_early || !is_running(world, stored.1.holder))
    }

    fn evidence(&self, world: &World, change: &Change) -> Shown {
        match program::evidence(self.kind, change, world.object.as_ref()) {
            Shown::NotYet if self.broken == Some(Broken::Absence) => Shown::NeverMade,
            shown => shown,
        }
    }

    fn evidence_of_recorded(&self, world: &World, record: &Rec) -> Earlier {
        let Some(seen) = record.effect.clone() else { return Earlier::None };
        program::earlier(self.evidence(world, &Change { seen, bound: false }))
    }

    /// The API server gets a write of an effect; whether it accepts it.
    fn arrives(&self, world: &mut World, by: u8, change: &Change, is_denied: bool) -> bool {
        let Ok(object) = program::deliver(self.kind, change, world.object.as_ref()) else {
            return false;
        };
        let is_change = world.object != object;
        world.object = object;
        if !is_change {
            return true;
        }
        world.effects += 1;
        world.by |= 1 << by;
        let seen = &change.seen;
        let is_approved = |it: &Consent| (it.1.uid, it.1.generation) == (seen.uid, seen.generation);
        let wrong = if self.needs_approval
            && (!world.approved.iter().any(is_approved)
                || usize::from(world.effects) > world.approved.len())
        {
            Some(NO_CONSENT)
        } else if self.forger {
            None
        } else if world.effects > 1 {
            Some(TWO_EFFECTS)
        } else if is_denied {
            Some(DENIED)
        } else if world.unanswered.is_some_and(|uid| uid != seen.uid) {
            Some(SUCCESSOR)
        } else if world.unchanged && !world.lost {
            Some(NOT_FINAL)
        } else {
            None
        };
        world.wrong = world.wrong.or(wrong);
        true
    }

    fn store(&self, world: &mut World, record: Rec) {
        if record.answer == Some(Said::Applied) && world.effects == 0 && !self.forger {
            world.wrong.get_or_insert(UNTRUE_APPLIED);
        }
        world.writes += 1;
        world.unchanged |= record.answer == Some(Said::Unchanged);
        world.event = Some((world.writes, record));
    }

    /// `Ledger::settle`.
    fn settle(&self, world: &mut World, (version, ours): &Stored) -> Option<Resolved> {
        if let Some((now, found)) = &world.event
            && now != version
        {
            match program::resolve(ours, found) {
                Resolved::Overwrite => self.reach("a record is overwritten"),
                resolved => return Some(resolved),
            }
        }
        self.store(world, ours.clone());
        None
    }

    /// An attempt answers.
    fn end(&self, world: &mut World, slot: usize, end: End) {
        let id = world.attempts[slot].id;
        world.attempts[slot] = Attempt { id: 0, stage: AttemptStage::Idle };
        let is_own_effect = world.by & (1 << id) != 0;
        let (wrong, denied): (_, fn(u8, u8) -> bool) = match end {
            End::Said(Said::Applied) => {
                self.reach("applied");
                ((world.effects == 0).then_some(UNTRUE_APPLIED), |_, _| false)
            }
            End::Said(Said::Unchanged) => {
                self.reach("unchanged");
                // An answer that was read before its Event was lost may be followed by another one.
                let is_stale = world.lost && world.unchanged;
                ((world.effects > 0 && !is_stale).then_some(UNTRUE_UNCHANGED), |_, _| true)
            }
            End::Refusal => {
                self.reach("a refusal");
                (is_own_effect.then_some(UNTRUE_REFUSAL), |by, id| by == id)
            }
            End::Unknown => {
                self.reach("an unknown outcome");
                (None, |_, _| false)
            }
            End::InProgress => {
                self.reach("in progress");
                (None, |_, _| false)
            }
        };
        if self.forger {
            return;
        }
        world.wrong = world.wrong.or(wrong);
        for write in &mut world.network {
            if let Write::Effect { by, denied: is_denied, .. } = write {
                *is_denied |= denied(*by, id);
            }
        }
    }

    /// A claim, or a request for approval (`initial_record`).
    fn record(&self, who: u8, view: &View, approval: Option<&Consent>) -> Rec {
        let asks = self.needs_approval && approval.is_none();
        Rec {
            state: if asks { RecordState::PendingApproval } else { RecordState::Claimed },
            holder: who,
            uid: view.seen.as_ref().map_or(0, |it| it.uid),
            effect: view.seen.clone().filter(|_| view.decided == Decided::Apply),
            intended: if view.decided == Decided::NoOp { Said::Unchanged } else { Said::Applied },
            answer: None,
            taken_over: false,
            nonce: if asks { Some(who) } else { approval.map(|it| it.0) },
        }
    }

    fn find_approval(&self, world: &World, record: &Rec, view: &View) -> Option<Consent> {
        let wanted = (record.nonce?, view.seen.clone()?);
        let is_it = |it: &Consent| program::is_same_consent(self.kind, it, &wanted);
        world.approved.iter().any(is_it).then_some(wanted)
    }

    /// `Transaction::judge_now`.
    fn is_allowed(&self, claim: &OwnClaim, view: &View) -> bool {
        let covers = |it: &Consent| {
            view.seen.as_ref().is_some_and(|seen| program::covers(self.kind, it, seen))
        };
        let is_broken = match self.broken {
            Some(Broken::Consent) => claim.approval.is_none(),
            Some(Broken::Fence) => claim.approval.is_some(),
            _ => false,
        };
        !self.needs_approval || claim.approval.as_ref().is_some_and(covers) || is_broken
    }

    /// What follows once record and target were read (`Transaction::attempt`).
    fn after_reading(&self, world: &mut World, slot: usize, found: ModelClaimState, view: View) {
        let id = world.attempts[slot].id;
        let is_refused = view.decided == Decided::Refused;
        let stage = match found {
            ModelClaimState::Answered(said) => {
                self.reach("a replay");
                return self.end(world, slot, End::Said(said));
            }
            ModelClaimState::Applied((_, record)) if !self.waits => {
                return self.end(world, slot, End::Said(record.intended));
            }
            ModelClaimState::Applied((version, record)) => {
                self.reach("a wait is joined");
                let end = End::Said(record.intended);
                let ours = program::ended(&Rec { holder: id, ..record }, end);
                AttemptStage::Recording((version, ours), end)
            }
            ModelClaimState::Held => return self.end(world, slot, End::InProgress),
            ModelClaimState::Abandoned(found) => AttemptStage::Resuming { found },
            ModelClaimState::Failed => return self.end(world, slot, End::Refusal),
            _ if is_refused => return self.end(world, slot, End::Refusal),
            // The replay window is over.
            ModelClaimState::Free if world.expired => return self.end(world, slot, End::Refusal),
            ModelClaimState::Free => {
                let charged = if self.is_charged(&view) { None } else { Some(true) };
                AttemptStage::Claiming { view, opened: None, charged }
            }
            ModelClaimState::Ours(record) => AttemptStage::Charging(OwnClaim::new(record, view)),
            ModelClaimState::Refused((found, _)) => {
                self.reach("a refused record is taken");
                let ours = self.record(id, &view, None);
                AttemptStage::Taking { found, ours, view, approval: None, earlier: None }
            }
            ModelClaimState::Pending(found) => AttemptStage::Asking { found, view },
        };
        world.attempts[slot].stage = stage;
    }

    /// Whether it is charged together with the claim.
    fn is_charged(&self, view: &View) -> bool {
        view.decided == Decided::Apply && !self.needs_approval
    }

    /// What follows once claim and charge were made.
    fn after_claiming(&self, world: &mut World, slot: usize) {
        let Attempt { id, stage } = &world.attempts[slot];
        let AttemptStage::Claiming { view, opened: Some(opened), charged: Some(charged) } = stage
        else {
            return;
        };
        let (id, view, charged) = (*id, view.clone(), *charged);
        match opened.clone() {
            ModelClaimState::Ours(record) => {
                let is_charged = charged && self.is_charged(&view);
                let mut claim = OwnClaim::new(record, view);
                claim.charged = is_charged;
                world.attempts[slot].stage = if charged {
                    AttemptStage::Charging(claim)
                } else {
                    let ended = program::ended(&claim.record.1, End::Refusal);
                    AttemptStage::Recording((claim.record.0, ended), program::refusal(false))
                };
            }
            found => {
                world.entries &= !(1 << id);
                self.after_reading(world, slot, found, view);
            }
        }
    }

    /// The effect's end is known (`Transaction::act`).
    fn after_effect(
        &self,
        world: &mut World,
        slot: usize,
        claim: OwnClaim,
        end: End,
        replayed: bool,
    ) {
        let id = world.attempts[slot].id;
        let is_broken = self.broken == Some(Broken::Refund) && end == End::Unknown;
        if program::settlement(end, replayed) == Settlement::Refund || is_broken {
            world.entries &= !(1 << id);
        }
        self.complete(world, slot, &claim.record, end);
    }

    /// `Transaction::complete`, or the record of another end.
    fn complete(&self, world: &mut World, slot: usize, (version, record): &Stored, end: End) {
        world.attempts[slot].stage = match end {
            End::Said(said) if self.waits => {
                AttemptStage::Marking((*version, program::marked(record, said)), end)
            }
            _ => AttemptStage::Recording((*version, program::ended(record, end)), end),
        };
    }

    /// It ends like this, unless the evidence of what it has sent decides.
    fn finish(&self, world: &mut World, slot: usize, claim: OwnClaim, end: End) {
        match claim.sent {
            Some(_) => world.attempts[slot].stage = AttemptStage::Settling(claim, end),
            None => self.after_effect(world, slot, claim, end, false),
        }
    }

    /// A further decision of the loop in `apply::apply`.
    fn after_plan(&self, world: &mut World, slot: usize, claim: OwnClaim) {
        match claim.view.decided {
            Decided::Apply => {
                let seen = claim.view.seen.as_ref().expect("is planned");
                let bars = |it: &SentChange| program::bars_another(self.kind, &it.change, seen);
                let shown = claim.sent.as_ref().and_then(bars);
                match (&claim.sent, shown) {
                    (Some(sent), Some(_)) if self.broken != Some(Broken::Undone) => {
                        let end = program::conclude(sent, shown, End::Refusal);
                        self.after_effect(world, slot, claim, end, false);
                    }
                    _ => world.attempts[slot].stage = AttemptStage::Sending(claim),
                }
            }
            Decided::AlreadyApplied => {
                let replayed = program::is_replayed(claim.sent.as_ref());
                self.reach("the mark is recognised");
                self.after_effect(world, slot, claim, End::Said(Said::Applied), replayed);
            }
            Decided::NoOp => self.finish(world, slot, claim, End::Said(Said::Unchanged)),
            Decided::Refused => self.finish(world, slot, claim, End::Refusal),
        }
    }

    fn after_answer(
        &self,
        world: &mut World,
        slot: usize,
        mut claim: OwnClaim,
        change: Change,
        is_made: bool,
    ) {
        if is_made {
            return self.after_effect(world, slot, claim, End::Said(Said::Applied), false);
        }
        self.reach("the API server refuses a write");
        claim.sent = program::refused(claim.sent.take(), change);
        world.attempts[slot].stage = AttemptStage::Replanning(claim);
    }

    fn steps_of_attempt(&self, steps: &mut Steps<'_>, slot: usize) {
        let world = steps.from;
        let Attempt { id, stage } = &world.attempts[slot];
        let who = *id;
        if *stage != AttemptStage::Idle {
            steps.add("crashes", who, 1, |to| {
                self.reach("a crash");
                to.attempts[slot] = Attempt { id: 0, stage: AttemptStage::Idle };
            });
        }
        let set = move |to: &mut World, stage: AttemptStage| to.attempts[slot].stage = stage;
        match stage {
            AttemptStage::Idle => {
                // Of two idle processes, the first one starts.
                if world.started < self.attempts
                    && (slot == 0 || world.attempts[0].stage != AttemptStage::Idle)
                {
                    let id = world.started + 1;
                    steps.add("starts", id, 0, |to| {
                        to.started = id;
                        let stage = AttemptStage::Reading { found: None, view: None };
                        to.attempts[slot] = Attempt { id, stage };
                    });
                }
            }
            AttemptStage::Reading { found, view } => {
                if found.is_none() {
                    for (is_early, what) in
                        [(false, "reads the record"), (true, "reads the record, by a fast clock")]
                    {
                        let seen = self.find(world, who, is_early);
                        if is_early && seen == self.find(world, who, false) {
                            continue;
                        }
                        let view = view.clone();
                        steps.add(what, who, is_early.into(), |to| match view {
                            Some(view) => self.after_reading(to, slot, seen, view),
                            None => {
                                set(to, AttemptStage::Reading { found: Some(seen), view: None })
                            }
                        });
                    }
                }
                if view.is_none() {
                    let (seen, found) = (self.read(world, None), found.clone());
                    steps.add("reads the object", who, 0, |to| match found {
                        Some(found) => self.after_reading(to, slot, found, seen),
                        None => set(to, AttemptStage::Reading { found: None, view: Some(seen) }),
                    });
                }
            }
            AttemptStage::Claiming { view, opened, charged } => {
                if opened.is_none() {
                    let ours = self.record(who, view, None);
                    let open = |to: &mut World, opened: ModelClaimState| {
                        let charged = *charged;
                        set(
                            to,
                            AttemptStage::Claiming {
                                view: view.clone(),
                                opened: Some(opened),
                                charged,
                            },
                        );
                        self.after_claiming(to, slot);
                    };
                    let create = |to: &mut World| {
                        if to.event.is_none() {
                            self.store(to, ours.clone());
                        }
                        let found = self.find(to, who, false);
                        open(to, found);
                    };
                    steps.add("creates the record", who, 0, create);
                    steps.add("creates the record, and once more later", who, 1, |to| {
                        create(to);
                        to.network.push(Write::Create(ours.clone()));
                    });
                    steps.add("creates the record, which is held", who, 1, |to| {
                        to.network.push(Write::Create(ours.clone()));
                        open(to, ModelClaimState::Failed);
                    });
                    if world.event.is_none() {
                        steps.add("creates the record, without any answer", who, 1, |to| {
                            self.store(to, ours.clone());
                            open(to, ModelClaimState::Failed);
                        });
                    }
                }
                if charged.is_none() {
                    for (is_charged, what) in
                        [(true, "charges the budget"), (false, "is refused by the budget")]
                    {
                        steps.add(what, who, (!is_charged).into(), |to| {
                            if is_charged {
                                to.entries |= 1 << who;
                            }
                            let (view, opened) = (view.clone(), opened.clone());
                            set(
                                to,
                                AttemptStage::Claiming { view, opened, charged: Some(is_charged) },
                            );
                            self.after_claiming(to, slot);
                        });
                    }
                }
            }
            AttemptStage::Asking { found, view } => {
                let (version, record) = found;
                let approval = self.find_approval(world, record, view);
                steps.add("checks for the approval", who, 0, |to| match approval {
                    Some(approval) => {
                        self.reach("an approval is found");
                        let ours = self.record(who, view, Some(&approval));
                        let (found, view, approval) = (*version, view.clone(), Some(approval));
                        set(
                            to,
                            AttemptStage::Taking { found, ours, view, approval, earlier: None },
                        );
                    }
                    None => {
                        if let (Some(nonce), Some(seen)) = (record.nonce, view.seen.clone()) {
                            to.asked.insert((nonce, seen));
                        }
                        self.reach("a person is asked");
                        self.end(to, slot, End::Refusal);
                    }
                });
                steps.add("finds the request for approval expired", who, 1, |to| {
                    let (found, ours) = (*version, self.record(who, view, None));
                    let (view, approval) = (view.clone(), None);
                    set(to, AttemptStage::Taking { found, ours, view, approval, earlier: None });
                });
            }
            AttemptStage::Taking { found, ours, view, approval, earlier } => {
                let is_unchanged = world.event.as_ref().is_some_and(|(now, _)| now == found);
                steps.add("takes the record", who, 0, |to| {
                    if !is_unchanged {
                        return set(to, AttemptStage::Reading { found: None, view: None });
                    }
                    self.store(to, ours.clone());
                    if ours.state == RecordState::PendingApproval {
                        to.asked.extend(ours.nonce.zip(view.seen.clone()));
                        return self.end(to, slot, End::Refusal);
                    }
                    let mut claim = OwnClaim::new((to.writes, ours.clone()), view.clone());
                    claim.approval.clone_from(approval);
                    claim.earlier.clone_from(earlier);
                    let effect = |seen: &Object| Change { seen: seen.clone(), bound: false };
                    let sent = |change| SentChange { change, own: false, missing: true };
                    claim.sent = earlier.as_ref().map(effect).map(sent);
                    set(to, AttemptStage::Charging(claim));
                });
                let end = program::refusal(earlier.is_some());
                let end = if end == End::Unknown { end } else { End::Refusal };
                steps.add("takes the record, which is held", who, 1, |to| {
                    to.network.push(Write::Patch((*found, ours.clone())));
                    self.end(to, slot, end);
                });
                if is_unchanged {
                    steps.add("takes the record, without an answer", who, 1, |to| {
                        self.store(to, ours.clone());
                        self.end(to, slot, end);
                    });
                }
            }
            AttemptStage::Resuming { found } => {
                let evidence = self.evidence_of_recorded(world, &found.1);
                let view = self.read(world, Some(found.1.uid));
                steps.add("searches for evidence, and plans", who, 0, |to| match evidence {
                    Earlier::Made | Earlier::Unknown => {
                        self.end_of_abandoned(to, slot, found, evidence);
                    }
                    _ => set(to, AttemptStage::Resumed { found: found.clone(), view }),
                });
            }
            AttemptStage::Resumed { found, view } => {
                self.steps_of_resumed(steps, slot, found, view)
            }
            AttemptStage::Charging(claim) => {
                let needs_charge = claim.view.decided == Decided::Apply && !claim.charged;
                let refuse = |to: &mut World| {
                    to.entries &= !(1 << who);
                    let (version, record) = &claim.record;
                    let ended = program::ended(record, End::Refusal);
                    let end = program::refusal(claim.earlier.is_some());
                    set(to, AttemptStage::Recording((*version, ended), end));
                };
                steps.add("charges, and judges anew", who, 0, |to| {
                    let is_effect = claim.view.decided == Decided::Apply;
                    if is_effect && !self.is_allowed(claim, &claim.view) {
                        self.reach("an effect without approval is refused");
                        return refuse(to);
                    }
                    let mut claim = claim.clone();
                    if needs_charge {
                        to.entries |= 1 << who;
                        claim.charged = true;
                    }
                    self.after_plan(to, slot, claim);
                });
                steps.add("is refused before the effect", who, 1, refuse);
            }
            AttemptStage::Sending(claim) => self.steps_of_sending(steps, slot, claim),
            AttemptStage::Doubting(claim, change) => {
                let shown = self.evidence(world, change);
                for (shown, cost) in [(Some(shown), 0), (None, 1)] {
                    steps.add("searches for the effect", who, cost, |to| {
                        let mut claim = claim.clone();
                        match program::after_loss(shown) {
                            AfterLoss::MayCome => {
                                let change = change.clone();
                                claim.sent = Some(SentChange { change, own: true, missing: true });
                                set(to, AttemptStage::Replanning(claim));
                            }
                            AfterLoss::CannotCome => {
                                to.unanswered = None;
                                set(to, AttemptStage::Replanning(claim));
                            }
                            AfterLoss::End(end) => self.after_effect(to, slot, claim, end, false),
                        }
                    });
                }
            }
            AttemptStage::Replanning(claim) => {
                let uid = claim.view.seen.as_ref().map(|it| it.uid);
                let view = self.read(world, uid);
                steps.add("plans again", who, 0, |to| {
                    let is_allowed =
                        view.decided == Decided::Refused || self.is_allowed(claim, &view);
                    let mut claim = claim.clone();
                    if is_allowed {
                        claim.view = view;
                        self.after_plan(to, slot, claim);
                    } else {
                        claim.view.decided = Decided::Refused;
                        self.finish(to, slot, claim, End::Refusal);
                    }
                });
                steps.add("is refused when it plans again", who, 1, |to| {
                    self.finish(to, slot, claim.clone(), End::Refusal);
                });
            }
            AttemptStage::Settling(claim, end) => {
                let sent = claim.sent.as_ref().expect("was sent");
                let shown = self.evidence(world, &sent.change);
                for (shown, cost) in [(Some(shown), 0), (None, 1)] {
                    let end = program::conclude(sent, shown, *end);
                    steps.add("searches for what it has sent", who, cost, |to| {
                        if shown == Some(Shown::NeverMade) {
                            to.unanswered = None;
                        }
                        self.after_effect(to, slot, claim.clone(), end, false);
                    });
                }
            }
            AttemptStage::Marking(record, end) => {
                let answered = program::ended(&record.1, *end);
                steps.add("records that it is made", who, 0, |to| {
                    let is_stored = self.settle(to, record).is_none();
                    let version = if is_stored { to.writes } else { record.0 };
                    set(to, AttemptStage::Recording((version, answered.clone()), *end));
                });
                steps.add("records that it is made, which is held", who, 1, |to| {
                    to.network.push(Write::Patch(record.clone()));
                    set(to, AttemptStage::Recording((record.0, answered.clone()), *end));
                });
            }
            AttemptStage::Recording(record, end) => {
                let is_answer = matches!(end, End::Said(_));
                steps.add("records the end", who, 0, |to| {
                    let end = match self.settle(to, record) {
                        None => *end,
                        Some(_) if !is_answer => *end,
                        Some(Resolved::Superseded) => {
                            self.reach("another attempt has answered");
                            let found = to.event.as_ref().and_then(|(_, it)| it.answer);
                            End::Said(found.expect("is answered"))
                        }
                        Some(_) => End::InProgress,
                    };
                    self.end(to, slot, end);
                });
                steps.add("records the end, which is held", who, 1, |to| {
                    to.network.push(Write::Patch(record.clone()));
                    self.end(to, slot, *end);
                });
            }
        }
    }

    fn end_of_abandoned(&self, to: &mut World, slot: usize, found: &Stored, evidence: Earlier) {
        let (version, record) = found;
        let adopted = Rec { holder: to.attempts[slot].id, ..record.clone() };
        let end = match evidence {
            Earlier::Made => {
                self.reach("the effect of another attempt is recognised");
                End::Said(record.intended)
            }
            _ if record.state == RecordState::InDoubt => return self.end(to, slot, End::Unknown),
            _ => End::Unknown,
        };
        self.complete(to, slot, &(*version, adopted), end);
    }

    fn steps_of_resumed(&self, steps: &mut Steps<'_>, slot: usize, found: &Stored, view: &View) {
        let (who, world) = (steps.from.attempts[slot].id, steps.from);
        let (version, record) = found;
        let evidence = self.evidence_of_recorded(world, record);
        let approval = self.find_approval(world, record, view);
        steps.add("searches for evidence again", who, 0, |to| {
            if matches!(evidence, Earlier::Made | Earlier::Unknown) {
                return self.end_of_abandoned(to, slot, found, evidence);
            }
            let earlier = record.effect.clone().filter(|_| evidence == Earlier::MayCome);
            if earlier.is_none() && record.effect.is_some() {
                to.unanswered = None;
            }
            if view.decided == Decided::Refused {
                return self.end(to, slot, program::refusal(earlier.is_some()));
            }
            let is_broken = self.broken == Some(Broken::Consent);
            let is_allowed = !self.needs_approval || approval.is_some() || is_broken;
            let (found, view) = (*version, view.clone());
            let stage = match program::resume(earlier.is_some(), is_allowed) {
                Resumed::TakeOver => {
                    self.reach("a claim is taken over");
                    let ours = self.record(who, &view, approval.as_ref());
                    let taken_over = earlier.is_some() && self.broken != Some(Broken::TakenOver);
                    let state = if is_broken { RecordState::Claimed } else { ours.state };
                    let ours = Rec { taken_over, state, ..ours };
                    AttemptStage::Taking { found, ours, view, approval, earlier }
                }
                Resumed::AskAnew => {
                    let ours = self.record(who, &view, None);
                    AttemptStage::Taking { found, ours, view, approval: None, earlier: None }
                }
                Resumed::Unknown => return self.end(to, slot, End::Unknown),
            };
            to.attempts[slot].stage = stage;
        });
    }

    fn steps_of_sending(&self, steps: &mut Steps<'_>, slot: usize, claim: &OwnClaim) {
        let who = steps.from.attempts[slot].id;
        let seen = claim.view.seen.clone().expect("is planned");
        let bound = self.kind == Kind::Pod;
        let change = Change { seen, bound };
        let doubt = |to: &mut World| {
            to.unanswered = Some(change.seen.uid);
            to.attempts[slot].stage = AttemptStage::Doubting(claim.clone(), change.clone());
        };
        let hold = |to: &mut World| {
            to.network.push(Write::Effect { by: who, change: change.clone(), denied: false });
        };
        let answer = |to: &mut World, is_made| {
            self.after_answer(to, slot, claim.clone(), change.clone(), is_made);
        };
        steps.add("sends the effect", who, 0, |to| {
            let is_made = self.arrives(to, who, &change, false);
            answer(to, is_made);
        });
        steps.add("sends the effect, and crashes", who, 1, |to| {
            self.arrives(to, who, &change, false);
            to.unanswered = Some(change.seen.uid);
            to.attempts[slot] = Attempt { id: 0, stage: AttemptStage::Idle };
        });
        steps.add("sends the effect, which is held, and crashes", who, 1, |to| {
            hold(to);
            to.unanswered = Some(change.seen.uid);
            to.attempts[slot] = Attempt { id: 0, stage: AttemptStage::Idle };
        });
        steps.add("sends the effect, whose answer is lost", who, 1, |to| {
            self.arrives(to, who, &change, false);
            doubt(to);
        });
        steps.add("sends the effect, which is held", who, 1, |to| {
            hold(to);
            doubt(to);
        });
        steps.add("sends the effect, which arrives twice", who, 1, |to| {
            self.arrives(to, who, &change, false);
            let is_made = self.arrives(to, who, &change, false);
            answer(to, is_made);
        });
        steps.add("sends the effect, which arrives once more later", who, 1, |to| {
            let is_made = self.arrives(to, who, &change, false);
            answer(to, is_made);
            hold(to);
        });
        steps.add("has no time left", who, 1, |to| {
            self.finish(to, slot, claim.clone(), End::Refusal);
        });
    }

    fn steps_of_network(&self, steps: &mut Steps<'_>) {
        for (index, write) in steps.from.network.iter().enumerate() {
            match write {
                Write::Effect { by, change, denied } => {
                    steps.add("a held effect arrives", *by, 0, |to| {
                        to.network.remove(index);
                        let is_made = self.arrives(to, *by, change, *denied);
                        self.reach(if is_made {
                            "a late effect"
                        } else {
                            "a late write without effect"
                        });
                    });
                }
                Write::Create(record) => {
                    steps.add("a held claim arrives", record.holder, 0, |to| {
                        to.network.remove(index);
                        if to.event.is_none() {
                            self.reach("a late claim");
                            self.store(to, record.clone());
                        }
                    })
                }
                Write::Patch((version, record)) => {
                    steps.add("a held record arrives", record.holder, 0, |to| {
                        to.network.remove(index);
                        if to.event.as_ref().is_some_and(|(now, _)| now == version) {
                            self.reach("a late record");
                            self.store(to, record.clone());
                        }
                    });
                }
            }
        }
    }

    fn steps_of_others(&self, steps: &mut Steps<'_>) {
        let world = steps.from;
        let Some(object) = &world.object else {
            // Only a pod is deleted. The versions of its controller's next pod are new.
            return steps.add("the controller replaces the pod", 0, 0, |to| {
                to.last_uid += 1;
                let uid = to.last_uid;
                to.object = Some(Object { uid, version: 20 * uid, ..Object::new() });
            });
        };
        let changed = Object { generation: object.generation + 1, ..object.clone() };
        match self.kind {
            Kind::Deployment => {
                let paused = !object.paused;
                steps.add("someone pauses or resumes it", 0, 1, |to| {
                    to.object = Some(Object { paused, ..changed.clone() });
                });
                steps.add("someone changes the spec", 0, 1, |to| {
                    to.object = Some(changed.clone());
                });
                if !object.requests.is_empty() && !world.lost {
                    steps.add("someone undoes it, with its mark", 0, 1, |to| {
                        to.unmarked = true;
                        to.object = Some(Object {
                            paused: false,
                            requests: String::new(),
                            ..changed.clone()
                        });
                    });
                }
                if !world.lost {
                    steps.add("someone replaces the object", 0, 1, |to| {
                        to.unmarked = true;
                        to.last_uid += 1;
                        to.object = Some(Object { uid: to.last_uid, ..Object::new() });
                    });
                }
                if world.event.is_some() && !world.unmarked {
                    steps.add("someone deletes the Event", 0, 1, |to| {
                        to.lost = true;
                        to.event = None;
                    });
                }
            }
            Kind::Pod => {
                if object.paused {
                    steps.add("the pod is gone", 0, 0, |to| to.object = None);
                }
                let version = object.version + 1;
                if !object.paused {
                    steps.add("someone deletes the pod", 0, 1, |to| {
                        to.object = Some(Object { version, paused: true, ..object.clone() });
                    });
                }
                steps.add("the kubelet writes the status", 0, 1, |to| {
                    to.object = Some(Object { version, ..object.clone() });
                });
            }
        }
        let is_idle = world.attempts.iter().all(|it| it.stage == AttemptStage::Idle);
        if world.event.is_some() && is_idle && !world.expired {
            steps.add("the Event expires", 0, 1, |to| {
                to.expired = true;
                to.event = None;
                // No record is held as long as an Event is kept.
                to.network.retain(|it| matches!(it, Write::Effect { .. }));
            });
        }
    }

    fn steps_of_persons(&self, steps: &mut Steps<'_>) {
        let world = steps.from;
        for asked in world.asked.difference(&world.approved) {
            let cost = (!world.approved.is_empty()).into();
            steps.add("a person approves", 0, cost, |to| {
                to.approved.insert(asked.clone());
            });
        }
        if !self.forger || world.forged {
            return;
        }
        let uid = world.last_uid;
        let nonces: BTreeSet<u8> = world.asked.iter().map(|it| it.0).collect();
        let running = world.attempts.iter().map(|it| it.id).filter(|id| *id > 0);
        let holders: Vec<u8> = running.chain([100]).collect();
        for state in [
            RecordState::Claimed,
            RecordState::InDoubt,
            RecordState::Refused,
            RecordState::PendingApproval,
        ] {
            for holder in &holders {
                for nonce in nonces.iter().copied().map(Some).chain([None]) {
                    let planned = self.read(world, None);
                    let planned = planned.seen.filter(|_| planned.decided == Decided::Apply);
                    for effect in BTreeSet::from([None, planned]) {
                        steps.add("someone forges the record", 0, 2, |to| {
                            self.reach("a forged record");
                            to.forged = true;
                            let (holder, intended, answer) = (*holder, Said::Applied, None);
                            let taken_over = false;
                            self.store(
                                to,
                                Rec {
                                    state,
                                    holder,
                                    uid,
                                    effect,
                                    intended,
                                    answer,
                                    taken_over,
                                    nonce,
                                },
                            );
                        });
                    }
                }
            }
        }
    }
}

impl OwnClaim {
    fn new(record: Stored, view: View) -> Self {
        OwnClaim { record, view, charged: false, approval: None, earlier: None, sent: None }
    }
}

impl Object {
    fn new() -> Self {
        Object { uid: 1, generation: 1, version: 1, paused: false, requests: String::new() }
    }
}

fn is_running(world: &World, id: u8) -> bool {
    world.attempts.iter().any(|it| it.id == id && it.stage != AttemptStage::Idle)
}

impl stateright::Model for Model {
    type State = World;
    type Action = ModelStep;

    fn init_states(&self) -> Vec<World> {
        let idle = Attempt { id: 0, stage: AttemptStage::Idle };
        vec![World {
            object: Some(Object::new()),
            last_uid: 1,
            event: None,
            writes: 0,
            entries: 0,
            forged: false,
            asked: BTreeSet::new(),
            approved: BTreeSet::new(),
            network: Vec::new(),
            attempts: [idle.clone(), idle],
            started: 0,
            left: self.disturbances,
            expired: false,
            lost: false,
            unmarked: false,
            effects: 0,
            by: 0,
            unanswered: None,
            unchanged: false,
            wrong: None,
        }]
    }

    fn actions(&self, state: &World, actions: &mut Vec<ModelStep>) {
        if state.wrong.is_some() {
            return;
        }
        let mut steps = Steps { from: state, all: Vec::new() };
        for slot in 0..state.attempts.len() {
            self.steps_of_attempt(&mut steps, slot);
        }
        self.steps_of_network(&mut steps);
        self.steps_of_others(&mut steps);
        self.steps_of_persons(&mut steps);
        actions.extend(steps.all);
    }

    fn next_state(&self, _: &World, step: ModelStep) -> Option<World> {
        Some(*step.next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds<const RULE: usize>(_: &Model, world: &World) -> bool {
            world.wrong != Some(ALL_RULES[RULE])
        }
        vec![
            Property::always(ALL_RULES[0], holds::<0>),
            Property::always(ALL_RULES[1], holds::<1>),
            Property::always(ALL_RULES[2], holds::<2>),
            Property::always(ALL_RULES[3], holds::<3>),
            Property::always(ALL_RULES[4], holds::<4>),
            Property::always(ALL_RULES[5], holds::<5>),
            Property::always(ALL_RULES[6], holds::<6>),
            Property::always(ALL_RULES[7], holds::<7>),
            Property::always(ALL_RULES[8], holds::<8>),
        ]
    }
}

/// Explores all histories, and checks that these were among them.
fn explore(name: &str, mut model: Model, expected: &[&str]) {
    if std::env::var("MODEL").is_ok_and(|it| it == "large") {
        model.disturbances += 1;
    }
    let (disturbances, start) = (model.disturbances, Instant::now());
    let checker = model.checker().threads(2).spawn_bfs().join();
    let (states, seconds) = (checker.unique_state_count(), start.elapsed().as_secs_f32());
    println!("{name}: {states} states with at most {disturbances} disturbances, {seconds:.1} s");
    let reached = checker.model().reached.lock().expect("is not poisoned").clone();
    println!("{reached:?}");
    let found = checker.discoveries();
    for (rule, path) in &found {
        println!("does not hold: {rule}");
        for step in path.clone().into_actions() {
            println!("  {step:?}");
        }
    }
    assert!(found.is_empty(), "{name}: {:?}", found.keys());
    for what in expected {
        assert!(reached.contains_key(what), "{name} never reached: {what}");
    }
}

fn model(kind: Kind) -> Model {
    Model {
        kind,
        needs_approval: false,
        forger: false,
        waits: false,
        disturbances: 2,
        attempts: 3,
        broken: None,
        reached: Mutex::default(),
    }
}

const ALWAYS_REACHED: [&str; 10] = [
    "applied",
    "a replay",
    "a refusal",
    "an unknown outcome",
    "in progress",
    "a crash",
    "a claim is taken over",
    "a late effect",
    "a late write without effect",
    "the API server refuses a write",
];

#[test]
fn a_patch_is_made_at_most_once_and_answered_truly_in_every_history() {
    let more =
        ["unchanged", "the mark is recognised", "the effect of another attempt is recognised"];
    explore("patch", model(Kind::Deployment), &[&ALWAYS_REACHED[..], &more].concat());
}

#[test]
fn requests_that_wait_are_answered_truly_in_every_history() {
    let model = Model { waits: true, ..model(Kind::Deployment) };
    explore("waiting", model, &[&ALWAYS_REACHED[..], &["unchanged", "a wait is joined"]].concat());
}

#[test]
fn a_pod_is_deleted_at_most_once_and_its_successor_never_in_every_history() {
    explore("deletion", model(Kind::Pod), &ALWAYS_REACHED);
}

#[test]
fn an_effect_that_needs_approval_has_it_in_every_history() {
    let model = Model { needs_approval: true, ..model(Kind::Deployment) };
    let more = ["an approval is found", "a person is asked"];
    explore("approval", model, &[&ALWAYS_REACHED[..], &more].concat());
}

#[test]
fn no_forged_record_stands_for_an_approval_in_any_history() {
    let model = Model { needs_approval: true, forger: true, ..model(Kind::Deployment) };
    explore("forgery", model, &["applied", "a forged record", "an approval is found"]);
}

#[test]
fn each_broken_rule_is_found() {
    let patch = || model(Kind::Deployment);
    let forgery = || Model { needs_approval: true, forger: true, ..patch() };
    for (broken, model, rules) in [
        (Broken::Absence, patch(), &[DENIED, UNTRUE_UNCHANGED, UNCHARGED][..]),
        (Broken::Refund, patch(), &[UNCHARGED]),
        (Broken::Consent, forgery(), &[NO_CONSENT]),
        (Broken::Fence, Model { needs_approval: true, ..patch() }, &[NO_CONSENT]),
        (Broken::Undone, patch(), &[TWO_EFFECTS]),
        (Broken::TakenOver, model(Kind::Pod), &[TWO_EFFECTS, SUCCESSOR, UNTRUE_UNCHANGED]),
    ] {
        let model = Model { broken: Some(broken), ..model };
        let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.spawn_bfs().join();
        let found = checker.discoveries();
        let states = checker.unique_state_count();
        println!("{broken:?}: {:?} after {states} states", found.keys());
        assert!(rules.iter().any(|rule| found.contains_key(rule)), "{broken:?}");
    }
}
