//! What an action plans: a decision as data, with what it changes, what to warn of and when it is complete.
//!
//! Must not depend on one action, nor on how a plan is carried out.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    config::OwnPod,
    contract::{
        error::{ActionError, Code},
        names::{QualifiedName, RequestId},
        precondition::Precondition,
        quantity::Quantity,
        response::{Change, Target, TargetResult},
    },
    k8s::{
        OWN_PREFIX,
        api::preflight::Preflight,
        applied_requests::{self, AppliedRequests},
        completion::{AwaitedRollout, Completion, RolloutOf},
        conditional_patch::annotations_after,
        drain_filter::EvictionSet,
        effect::{Applied, Effect, Mutation},
        preflight_warnings,
        resources::AmountField,
        revisions::{History, RollbackTarget, template_digest},
        workload::{Workload, WorkloadKind},
    },
};

/// The hint of a refusal because the object is not the one that the client saw.
pub(crate) const READ_AGAIN: &str = "read the target again, then decide again";

/// The length of all annotations of an object, with their keys (`TotalAnnotationSizeLimitB` in
/// `k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// The annotations of an object that is to be created.
fn annotations_in(object: &Value) -> BTreeMap<String, String> {
    let annotations = object["metadata"]["annotations"].clone();
    serde_json::from_value(annotations).unwrap_or_default()
}

/// What an action needs to know of the request beyond its parameters.
#[derive(Clone, Debug)]
pub(crate) struct PlanInput {
    pub id: RequestId,
    /// The cluster's name for people, if one is configured.
    pub cluster: Option<Arc<str>>,
    /// The request's mark on an object that it changed (`k8s::applied_requests`).
    pub mark: String,
    /// The time of the request, for annotations and sentences.
    pub at: DateTime<Utc>,
    /// The limit for calls to the cluster.
    pub deadline: Instant,
    /// Whether the request waits for the effect.
    pub wait: bool,
    /// How long it waits then.
    pub timeout: Duration,
    /// The pod in which the executor runs, if it is known.
    pub own_pod: Option<OwnPod>,
    pub precondition: Option<Precondition>,
    /// The uid of the object that the first plan was for; none in the first plan.
    pub uid: Option<String>,
    /// [`Plan::decision_etag`] of the first plan.
    pub decision_etag: Option<String>,
}

impl PlanInput {
    /// Refuses an object that the request does not mean, or that is being deleted.
    ///
    /// # Errors
    /// [`Code::TargetNotFound`] if it is being deleted, else as [`PlanInput::check_same`] says.
    pub(crate) fn check_found(
        &self,
        target: &Target,
        metadata: &ObjectMeta,
    ) -> Result<(), ActionError> {
        let target = target.clone().found(metadata);
        let with_uid = |refusal: ActionError| refusal.object_uid(target.uid.as_deref());
        self.check_same(&target).map_err(with_uid)?;
        if metadata.deletion_timestamp.is_some() {
            let detail = format!("{target} is being deleted");
            return Err(with_uid(ActionError::new(Code::TargetNotFound, detail)));
        }
        Ok(())
    }

    /// Whether this request changed the object with this metadata, as the object records it.
    ///
    /// # Errors
    /// [`Code::IdReused`] if another request with the same id changed it.
    pub(crate) fn has_changed(&self, metadata: &ObjectMeta) -> Result<bool, ActionError> {
        let requests = AppliedRequests::from_metadata(metadata);
        if requests.contains_id_of_another(&self.mark) {
            return Err(ActionError::id_reused(&self.id).object_uid(metadata.uid.as_deref()));
        }
        Ok(requests.contains(&self.mark))
    }

    /// The resourceVersion that the target must still have, if the request names one.
    pub(crate) fn required_version(&self) -> Option<String> {
        self.precondition.as_ref()?.resource_version.as_deref().map(str::to_owned)
    }

    /// The mark on a workload that is to return to this revision if its rollout fails.
    pub(crate) fn mark_for(&self, rollback_target: Option<&RollbackTarget>) -> String {
        match rollback_target {
            Some(target) => applied_requests::mark_with_revision(&self.mark, &target.revision),
            None => self.mark.clone(),
        }
    }

    /// The digest of the pod template that this request's change left on the object; none if the object was changed
    /// since.
    pub(crate) fn template_left(&self, metadata: &ObjectMeta, template: &Value) -> Option<String> {
        let is_last = AppliedRequests::from_metadata(metadata).is_last_change(&self.mark);
        is_last.then(|| template_digest(template))
    }

    /// Refuses a workload whose pod template was changed since the first plan.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`].
    pub(crate) fn check_decided_on(
        &self,
        target: &Target,
        history: &History,
    ) -> Result<(), ActionError> {
        self.check_decision("the pod template", target, &history.digest())
    }

    /// Refuses a target of which `what` the decision rests on was changed since the first plan; this is its digest now.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`].
    pub(crate) fn check_decision(
        &self,
        what: &str,
        target: &Target,
        digest: &str,
    ) -> Result<(), ActionError> {
        if self.decision_etag.as_deref().is_none_or(|first| first == digest) {
            return Ok(());
        }
        let detail = format!("{what} of {target} changed while the request was running");
        Err(ActionError::new(Code::PreconditionFailed, detail).with_hint(READ_AGAIN))
    }

    /// Whether the object is the one that the request means, and the one of the first plan.
    ///
    /// # Errors
    /// [`Code::PreconditionFailed`] with the wrong field.
    pub(crate) fn check_same(&self, found: &Target) -> Result<(), ActionError> {
        let differs = |expected: Option<&str>, found: &Option<String>| {
            expected.is_some_and(|expected| found.as_deref() != Some(expected))
        };
        if differs(self.uid.as_deref(), &found.uid) {
            let detail = format!(
                "{found} was replaced by another object of its name while the request was running"
            );
            return Err(ActionError::new(Code::PreconditionFailed, detail).with_hint(READ_AGAIN));
        }
        let Some(expected) = &self.precondition else { return Ok(()) };
        let (field, actual) = if differs(expected.uid.as_deref(), &found.uid) {
            ("uid", &found.uid)
        } else if differs(expected.resource_version.as_deref(), &found.resource_version) {
            ("resource_version", &found.resource_version)
        } else {
            return Ok(());
        };
        let actual = actual.as_deref().unwrap_or("not set");
        let detail = format!("{found} does not match the precondition: its {field} is {actual}");
        Err(ActionError::new(Code::PreconditionFailed, detail)
            .with_field(format!("precondition.{field}"))
            .with_hint(READ_AGAIN))
    }
}

/// What an action decided.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The target as it was read.
    pub target: Target,
    pub decision: Decision,
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
    pub completion: CompletionSpec,
    /// The target's metadata as it was read.
    pub found: ObjectMeta,
    /// How many replicas the target has afterwards, if that changes.
    pub replicas: Option<u32>,
    /// The images that change.
    pub images: Vec<ImageChange>,
    /// The bounds of an autoscaler, if they change.
    pub bounds: Option<BoundsChange>,
    /// The requests and limits that change.
    pub resources: Vec<ResourceChange>,
    /// The size of a volume claim, if it changes.
    pub size: Option<SizeChange>,
    /// The other objects that are affected: policy and budget apply to each.
    pub others: Vec<AffectedObject>,
    /// What would be done to each target that a selector chose, for a person who approves it.
    pub previews: Vec<TargetResult>,
    /// What the decision rests on, or a digest of it, where the same parameters mean another change once
    /// that has changed. A later plan of the request is refused then.
    pub decision_etag: Option<String>,
    /// The revision to return to if the rollout fails.
    pub rollback_target: Option<RollbackTarget>,
}

/// The minimum and the maximum of an autoscaler before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoundsChange {
    pub from: [i32; 2],
    pub to: [i32; 2],
}

/// The keys that a request sets or removes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangedKeys<'a> {
    pub of: KeysOf,
    pub set: Option<&'a BTreeMap<QualifiedName, String>>,
    pub others: &'a [QualifiedName],
}

/// What the keys are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeysOf {
    Labels,
    Annotations,
    Taints,
}

impl<'a> ChangedKeys<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a QualifiedName> {
        self.set.into_iter().flat_map(BTreeMap::keys).chain(self.others)
    }
}

impl KeysOf {
    /// For example `label`.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            KeysOf::Labels => "label",
            KeysOf::Annotations => "annotation",
            KeysOf::Taints => "taint",
        }
    }
}

/// The image of a container before and after.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ImageChange {
    pub container: String,
    pub from: String,
    pub to: String,
}

/// A request or a limit of a container before and after.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResourceChange {
    pub container: String,
    pub field: AmountField,
    /// None if neither it nor, for a request, the limit was set.
    pub from: Option<Quantity>,
    pub to: Quantity,
}

/// The size of a volume claim before and after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SizeChange {
    pub from: Quantity,
    pub to: Quantity,
}

/// An object that is affected with the target: a pod of a node that is drained, or of a namespace that is cleaned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AffectedObject {
    pub target: Target,
    pub labels: BTreeMap<String, String>,
}

impl AffectedObject {
    /// The pod with this metadata.
    pub(crate) fn pod(metadata: &ObjectMeta) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        AffectedObject::new(Target::named("v1", "Pod", namespace, name), metadata)
    }

    /// The workload of this kind with this metadata.
    pub(crate) fn workload(kind: WorkloadKind, metadata: &ObjectMeta) -> Self {
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        AffectedObject::new(kind.target(namespace, name), metadata)
    }

    fn new(target: Target, metadata: &ObjectMeta) -> Self {
        AffectedObject {
            target: Target { uid: metadata.uid.clone(), ..target },
            labels: metadata.labels.clone().unwrap_or_default(),
        }
    }
}

/// One of the targets that a selector chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SelectedTarget {
    pub name: String,
    pub uid: String,
    /// The digest of what would be done to it, which an approval of the request covers; none before that is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<String>,
}

impl SelectedTarget {
    /// The object with this metadata.
    pub(crate) fn of(metadata: &ObjectMeta) -> Self {
        SelectedTarget {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            plan_digest: None,
        }
    }
}

impl Plan {
    /// A plan for the object with this metadata, without changes and warnings.
    pub(crate) fn new(
        target: Target,
        found: &ObjectMeta,
        decision: Decision,
        completion: CompletionSpec,
    ) -> Self {
        Plan {
            target: target.found(found),
            decision,
            changes: Vec::new(),
            warnings: Vec::new(),
            completion,
            found: found.clone(),
            replicas: None,
            images: Vec::new(),
            bounds: None,
            resources: Vec::new(),
            size: None,
            others: Vec::new(),
            previews: Vec::new(),
            decision_etag: None,
            rollback_target: None,
        }
    }

    /// Checks that the request's mark fits into the object's annotations. The API server would refuse it only later,
    /// and without naming the annotation.
    ///
    /// # Errors
    /// [`Code::RejectedByCluster`] naming the longest annotation.
    pub(crate) fn check_annotations_fit(&self) -> Result<(), ActionError> {
        let Decision::Apply { effect, .. } = &self.decision else { return Ok(()) };
        let annotations = match &effect.mutation {
            Mutation::Patch { patch, .. } => annotations_after(&self.found, patch),
            Mutation::Create { object, .. } => annotations_in(object),
            _ => return Ok(()),
        };
        let length = |(key, value): (&String, &String)| key.len() + value.len();
        let total: usize = annotations.iter().map(length).sum();
        if total <= MAX_ANNOTATION_BYTES {
            return Ok(());
        }
        let foreign = annotations.iter().filter(|(key, _)| !key.starts_with(OWN_PREFIX));
        let longest =
            foreign.max_by_key(|entry| length(*entry)).map_or("", |(key, _)| key.as_str());
        let detail = format!(
            "the mark of this request does not fit into the annotations of {}: they would be {total} bytes long with \
             it, and the cluster allows {MAX_ANNOTATION_BYTES}",
            self.target
        );
        Err(ActionError::new(Code::RejectedByCluster, detail)
            .with_hint(format!("shorten or remove an annotation; the longest is {longest}"))
            .object_uid(self.target.uid.as_deref()))
    }

    /// The plan with the current revision as the one to return to if the rollout fails.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the controller has not recorded it yet.
    pub(crate) fn with_rollback_target(mut self, history: &History) -> Result<Self, ActionError> {
        self.rollback_target = history.rollback_target();
        self.decision_etag = Some(history.digest());
        if self.rollback_target.is_some() {
            self.warnings.extend(history.unkept_warning());
            return Ok(self);
        }
        let detail = format!(
            "the controller has not recorded the current pod template of {} as a revision yet, so there \
             is no revision to return to",
            self.target
        );
        Err(ActionError::new(Code::Conflict, detail)
            .object_uid(self.target.uid.as_deref())
            .with_retry_after(Some(Duration::from_secs(1))))
    }

    /// The uids of the other affected objects.
    pub(crate) fn uids_of_others(&self) -> HashSet<String> {
        self.others.iter().filter_map(|other| other.target.uid.clone()).collect()
    }

    /// The plan for an object whose annotation has this request's id: the change was made, and its
    /// response was lost. If its pod template is unknown, the object was changed since.
    pub(crate) fn already_applied(
        target: Target,
        found: &ObjectMeta,
        sentence: String,
        completion: CompletionSpec,
    ) -> Self {
        // The object may have been changed since, so its version right after the change is unknown.
        let applied = Applied { generation: found.generation, ..Applied::default() };
        let decision = Decision::AlreadyApplied(applied, sentence);
        let mut plan = Plan::new(target, found, decision, completion);
        if let CompletionSpec::Rollout(RolloutOf { template: None, .. }) = &plan.completion {
            plan.warnings.push(format!(
                "{} was changed again since this request changed it: what is reported of its rollout may be of a \
                 later change",
                plan.target
            ));
        }
        plan
    }

    /// The labels of the target; none if a selector chose the targets, whose labels are those of the other objects.
    pub(crate) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();
        match self.decision {
            Decision::EachTarget(_) => None,
            _ => Some(self.found.labels.as_ref().unwrap_or(&NO_LABELS)),
        }
    }

    /// How many targets a selector chose.
    pub(crate) fn selected(&self) -> Option<usize> {
        self.completion.targets().map(<[_]>::len)
    }

    /// Whether there is a change to make.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self.decision, Decision::Apply { .. } | Decision::DeleteEach(..))
    }

    /// The plan with the warnings about the workload whose pods it replaces, if it makes a change.
    pub(crate) fn with_preflight_warnings(
        mut self,
        preflight: &Preflight,
        workload: &Workload,
        input: &PlanInput,
    ) -> Self {
        if self.is_change() {
            self.warnings.extend(preflight_warnings::on_rollout(workload, preflight, input.at));
        }
        self
    }
}

/// The change of a target that is removed.
pub(crate) fn removal(target: &Target) -> Change {
    let uid = target.uid.clone().unwrap_or_default();
    Change { path: "/metadata/uid".to_owned(), from: uid.into(), to: Value::Null }
}

/// What to do, with the sentences for the answer's `result`.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// Apply the effect.
    Apply {
        effect: Box<Effect>,
        /// The sentence once it is applied.
        did: String,
        /// The sentence of a simulation.
        would: String,
    },
    /// Delete each of the plan's other objects: the deletions, and the sentence of a simulation. What the decision
    /// rests on (`Plan::decision_etag`) are these objects, so that an attempt that takes the request over deletes no
    /// others.
    DeleteEach(Vec<Effect>, String),
    /// Act on each of the targets in `Plan::completion`, which a selector chose, by a request of its own; the sentence
    /// about the choice. They are the plan's other objects too. What the decision rests on are these objects.
    EachTarget(String),
    /// This request applied it before.
    AlreadyApplied(Applied, String),
    /// The target is already in the requested state.
    NoOp(String),
}

impl Decision {
    /// Apply this effect, with the sentence once it is applied and that of a simulation.
    pub(crate) fn apply(effect: Effect, did: String, would: String) -> Self {
        Decision::Apply { effect: Box::new(effect), did, would }
    }
}

#[cfg(test)]
impl Plan {
    /// The effect, the sentence once it is applied, and that of a simulation. Panics if the plan is to change nothing.
    pub(crate) fn expect_change(&self) -> (&Effect, &str, &str) {
        match &self.decision {
            Decision::Apply { effect, did, would } => (effect, did, would),
            other => panic!("{other:?}"),
        }
    }
}

/// What follows once the effect is applied.
pub(crate) enum FollowUp<'a> {
    /// Wait until this is so.
    Wait(Completion),
    /// Evict the pods of the node that was cordoned.
    Drain(&'a EvictionSet),
    /// Act on each of these targets, one after the other.
    EachTarget(&'a [SelectedTarget]),
}

/// When a plan is complete, before the effect is applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CompletionSpec {
    /// Once the rollout is done; its generation is known when the effect is applied.
    Rollout(RolloutOf),
    /// Fully known.
    Known(Completion),
    /// Once these pods of the node are evicted.
    Drained(EvictionSet),
    /// Once the request of each of these targets is.
    EachTarget(Vec<SelectedTarget>),
}

impl CompletionSpec {
    /// What follows, given what the effect left.
    pub(crate) fn given(&self, target: &Target, applied: &Applied) -> FollowUp<'_> {
        match self {
            CompletionSpec::Known(completion) => FollowUp::Wait(completion.clone()),
            CompletionSpec::Drained(eviction_set) => FollowUp::Drain(eviction_set),
            CompletionSpec::EachTarget(targets) => FollowUp::EachTarget(targets),
            CompletionSpec::Rollout(rollout) => {
                let awaited = AwaitedRollout::new(rollout, target, applied);
                FollowUp::Wait(Completion::RolledOut(awaited))
            }
        }
    }

    /// The namespace of what is awaited, if that is not the target itself.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            CompletionSpec::Known(completion) => completion.namespace(),
            CompletionSpec::Rollout(_)
            | CompletionSpec::Drained(_)
            | CompletionSpec::EachTarget(_) => None,
        }
    }

    /// The targets that a selector chose, if one did.
    pub(crate) fn targets(&self) -> Option<&[SelectedTarget]> {
        match self {
            CompletionSpec::EachTarget(targets) => Some(targets),
            _ => None,
        }
    }

    /// Whether more is to be done after the effect even if the request does not wait.
    pub(crate) fn is_work(&self) -> bool {
        matches!(self, CompletionSpec::Drained(_) | CompletionSpec::EachTarget(_))
    }
}

/// What is known of an action without a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Preview {
    pub result: String,
    pub changes: Vec<Change>,
}

#[cfg(test)]
impl PlanInput {
    /// The input of a plain request with the id `r1`, for tests.
    pub(crate) fn example() -> Self {
        PlanInput {
            id: RequestId::try_from("r1".to_owned()).expect("is an id"),
            cluster: None,
            mark: "r1@d1".to_owned(),
            at: "2026-01-31T12:00:00.987Z".parse().expect("is a time"),
            deadline: Instant::now(),
            wait: false,
            timeout: Duration::from_secs(300),
            own_pod: None,
            precondition: None,
            uid: None,
            decision_etag: None,
        }
    }
}
