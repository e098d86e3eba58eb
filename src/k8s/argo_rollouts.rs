//! What the spec and the status of a Rollout say, as the kubectl plugin and the controller of Argo Rollouts read them.
//! Pure.
//!
//! Fields and meaning: argoproj/argo-rollouts, `pkg/apis/rollouts/v1alpha1/types.go`; the phase:
//! `utils/rollout/rolloututil.go`. The objects are read as JSON, so that unknown fields survive an undo.

use chrono::DateTime;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    api::DynamicObject,
    core::{ObjectMeta, Selector},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::k8s::{
    pods,
    revisions::{template_digest, template_in},
    rollout::RolloutStatus,
};

/// The annotation of a ReplicaSet with the number of its revision, and of a Rollout with that of its newest one.
pub(crate) const REVISION_ANNOTATION: &str = "rollout.argoproj.io/revision";

/// The label with which the controller distinguishes its ReplicaSets (`DefaultRolloutUniqueLabelKey`).
pub(crate) const HASH_LABEL: &str = "rollouts-pod-template-hash";

/// Why the controller paused a canary whose analysis was inconclusive.
const INCONCLUSIVE: &str = "Inconclusive";

/// How the message of an aborted Rollout begins.
const ABORTED: &str = "RolloutAborted";

/// A Rollout as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArgoRollout<'a> {
    pub metadata: &'a ObjectMeta,
    data: &'a Value,
}

/// The phase of a Rollout, with the controller's message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RolloutPhase {
    Progressing(String),
    Paused(String),
    Healthy,
    Degraded(String),
}

impl<'a> ArgoRollout<'a> {
    pub(crate) fn new(object: &'a DynamicObject) -> Self {
        ArgoRollout { metadata: &object.metadata, data: &object.data }
    }

    pub(crate) fn status(self) -> &'a Value {
        &self.data["status"]
    }

    fn text(self, field: &str) -> Option<&'a str> {
        self.status()[field].as_str().filter(|text| !text.is_empty())
    }

    fn flag(self, field: &str) -> bool {
        self.status()[field] == true
    }

    /// The hash of the newest pod template.
    pub(crate) fn current_hash(self) -> Option<&'a str> {
        self.text("currentPodHash")
    }

    /// Whether the newest template is the stable one (`IsFullyPromoted`).
    pub(crate) fn is_fully_promoted(self) -> bool {
        self.text("stableRS") == self.current_hash()
    }

    /// Whether a version before the newest one was ever stable.
    pub(crate) fn has_stable_version(self) -> bool {
        self.text("stableRS").is_some()
    }

    pub(crate) fn is_aborted(self) -> bool {
        self.flag("abort")
    }

    /// Whether the controller completes the update without further pauses already.
    pub(crate) fn is_being_promoted(self) -> bool {
        self.flag("promoteFull")
    }

    /// Whether someone paused it by its spec.
    pub(crate) fn is_paused_by_spec(self) -> bool {
        self.data["spec"]["paused"] == true
    }

    /// Why the controller paused it, for example `CanaryPauseStep`; empty if it did not.
    pub(crate) fn pause_reasons(self) -> Vec<&'a str> {
        let conditions = self.status()["pauseConditions"].as_array().into_iter().flatten();
        conditions.filter_map(|condition| condition["reason"].as_str()).collect()
    }

    pub(crate) fn is_blue_green(self) -> bool {
        self.data["spec"]["strategy"]["blueGreen"].is_object()
    }

    /// The steps of a canary; empty without steps.
    fn steps(self) -> &'a [Value] {
        let steps = self.data["spec"]["strategy"]["canary"]["steps"].as_array();
        steps.map_or(&[], Vec::as_slice)
    }

    /// The index of the step at which a canary with steps is, and the number of steps (`GetCurrentCanaryStep`).
    pub(crate) fn step(self) -> Option<(usize, usize)> {
        let all = self.steps().len();
        let index = self.status()["currentStepIndex"].as_u64().unwrap_or(0);
        (all > 0).then(|| (usize::try_from(index).unwrap_or(all).min(all), all))
    }

    /// For example ` at step 2 of 5`; empty without steps.
    pub(crate) fn place(self) -> String {
        match self.step() {
            Some((index, all)) if index < all => format!(" at step {} of {all}", index + 1),
            _ => String::new(),
        }
    }

    /// Whether it is paused because the analysis of its step is inconclusive. Clearing the pause alone would leave it
    /// there (`isInconclusive` in `pkg/kubectl-argo-rollouts/cmd/promote/promote.go`).
    pub(crate) fn is_inconclusive(self) -> bool {
        let run = &self.status()["canary"]["currentStepAnalysisRunStatus"];
        run["status"] == INCONCLUSIVE && self.flag("controllerPause")
    }

    /// The Service that a blue-green Rollout switches.
    pub(crate) fn active_service(self) -> Option<&'a str> {
        self.data["spec"]["strategy"]["blueGreen"]["activeService"].as_str()
    }

    /// Whether the active Service of a blue-green Rollout has the newest version already.
    pub(crate) fn is_cut_over(self) -> bool {
        let active = self.status()["blueGreen"]["activeSelector"].as_str();
        self.is_blue_green() && active.is_some() && active == self.current_hash()
    }

    /// The workload that has the pod template in its place.
    pub(crate) fn workload_ref(self) -> Option<String> {
        let reference = self.data["spec"].get("workloadRef").filter(|it| !it.is_null())?;
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        Some(format!("{} '{}'", text("kind"), text("name")))
    }

    /// Whether the controller adds a rule to the affinity of each ReplicaSet's template
    /// (`GenerateReplicaSetAffinity`).
    pub(crate) fn injects_affinity(self) -> bool {
        let strategy = &self.data["spec"]["strategy"];
        ["canary", "blueGreen"].iter().any(|it| strategy[*it]["antiAffinity"].is_object())
    }

    /// When it was to be restarted last.
    pub(crate) fn restart_at(self) -> &'a Value {
        &self.data["spec"]["restartAt"]
    }

    pub(crate) fn template(self) -> Value {
        without_hash(template_in(self.data, "/spec/template"))
    }

    /// Its pods' selector as the API writes it; without one of its own the one that the controller found in the
    /// workload that has its template.
    pub(crate) fn label_selector(self) -> String {
        let selector = self.data["spec"]["selector"].clone();
        let selector = serde_json::from_value::<LabelSelector>(selector).ok();
        let selector = selector.and_then(|it| Selector::try_from(it).ok());
        let selector = selector.map(|selector| selector.to_string());
        selector.or_else(|| self.text("selector").map(str::to_owned)).unwrap_or_default()
    }

    /// Whether the controller has seen the newest spec. It writes the generation as text; what is no number is of
    /// another meaning, which only versions before 0.10 gave it.
    pub(crate) fn is_observed(self) -> bool {
        let observed = self.text("observedGeneration").and_then(|text| text.parse::<i64>().ok());
        observed == self.metadata.generation
    }

    /// Whether someone ended a pause and the controller has not reacted to it yet (`IsUnpausing`).
    fn is_unpausing(self) -> bool {
        self.flag("controllerPause") && self.pause_reasons().is_empty()
    }

    /// As `GetRolloutPhase` judges it, for the versions whose controller writes the phase (1.0 and newer).
    pub(crate) fn phase(self) -> RolloutPhase {
        let message = || self.text("message").unwrap_or_default().to_owned();
        if !self.is_observed() {
            return RolloutPhase::Progressing(
                "the controller has not observed the change yet".to_owned(),
            );
        }
        if self.is_unpausing() {
            return RolloutPhase::Progressing(
                "waiting for the controller to unpause it".to_owned(),
            );
        }
        match self.text("phase") {
            Some("Healthy") => RolloutPhase::Healthy,
            Some("Degraded") => RolloutPhase::Degraded(message()),
            Some("Paused") => RolloutPhase::Paused(message()),
            Some(_) => RolloutPhase::Progressing(message()),
            None => RolloutPhase::Progressing("the controller has written no phase yet".to_owned()),
        }
    }

    fn number(self, field: &str) -> i64 {
        self.status()[field].as_i64().unwrap_or(0)
    }

    fn replicas(self) -> i64 {
        self.data["spec"]["replicas"].as_i64().unwrap_or(1)
    }
}

fn without_hash(mut template: Value) -> Value {
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// A pod template that a Rollout had, in one of its ReplicaSets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ArgoRevision {
    pub number: i64,
    /// The hash of its pods.
    hash: String,
    /// With unknown fields, and with the defaults of the API server, which that of a Rollout lacks.
    pub template: Value,
}

/// The revisions of a Rollout, the latest first.
pub(crate) fn revisions(rollout: ArgoRollout, replica_sets: &[DynamicObject]) -> Vec<ArgoRevision> {
    let uid = rollout.metadata.uid.as_deref();
    let is_owned = |it: &&DynamicObject| {
        let owner = pods::controller_of(&it.metadata).map(|owner| owner.uid.as_str());
        uid.is_some() && owner == uid
    };
    let read = |set: &DynamicObject| {
        let number = set.metadata.annotations.as_ref()?.get(REVISION_ANNOTATION)?.parse().ok()?;
        let hash = set.metadata.labels.as_ref()?.get(HASH_LABEL)?.clone();
        let template = without_hash(template_in(&set.data, "/spec/template"));
        Some(ArgoRevision { number, hash, template })
    };
    let mut all: Vec<_> = replica_sets.iter().filter(is_owned).filter_map(read).collect();
    all.sort_by_key(|revision| std::cmp::Reverse(revision.number));
    all
}

impl ArgoRevision {
    /// Whether the Rollout has this template: by the controller's hash, or because the template sets nothing else
    /// (`equalIgnoreHash` in `pkg/kubectl-argo-rollouts/cmd/undo/undo.go`).
    pub(crate) fn is_current(&self, rollout: ArgoRollout) -> bool {
        let has_hash = rollout.is_observed() && rollout.current_hash() == Some(&self.hash);
        has_hash || is_part_of(&rollout.template(), &self.template)
    }
}

/// Whether all that the first value sets is the same in the other one (`DeepDerivative`).
fn is_part_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part.iter().all(|(key, value)| {
            is_unset(value) || whole.get(key).is_some_and(|it| is_part_of(value, it))
        }),
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(a, b)| is_part_of(a, b))
        }
        (part, whole) => part == whole,
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        _ => false,
    }
}

/// What a change of a Rollout leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AwaitedArgoRollout {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
    /// The version that the change is of; another one supersedes it.
    pub version: ArgoVersion,
    pub goal: ArgoGoal,
}

/// How a version of a Rollout is recognised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArgoVersion {
    /// By the hash of the newest pod template.
    Hash(String),
    /// By the digest of the pod template.
    Template(String),
    Unknown,
}

/// When the change is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ArgoGoal {
    /// The update is done, or paused again.
    Advanced,
    /// The update is done, without a pause.
    Promoted,
    /// The stable version has all replicas.
    Aborted,
    /// All pods are newer than this time.
    Restarted(String),
}

impl AwaitedArgoRollout {
    /// How far it is, by the Rollout as it is now.
    pub(crate) fn status(&self, rollout: ArgoRollout) -> RolloutStatus {
        if let Some(why) = self.superseded(rollout) {
            return RolloutStatus::Failed(why);
        }
        match &self.goal {
            ArgoGoal::Aborted => aborted_status(rollout),
            ArgoGoal::Restarted(at) => restarted_status(rollout, at),
            ArgoGoal::Promoted => promoted_status(rollout),
            ArgoGoal::Advanced => advanced_status(rollout),
        }
    }

    fn superseded(&self, rollout: ArgoRollout) -> Option<String> {
        let (metadata, name) = (rollout.metadata, &self.name);
        if self.uid.is_some() && metadata.uid != self.uid {
            return Some(format!("Rollout '{name}' was replaced by another object of its name"));
        }
        let is_another = match &self.version {
            ArgoVersion::Hash(hash) => rollout.current_hash() != Some(hash),
            ArgoVersion::Template(digest) => template_digest(&rollout.template()) != *digest,
            ArgoVersion::Unknown => false,
        };
        is_another.then(|| "superseded: the pod template was changed in the meantime".to_owned())
    }
}

/// The controller takes the request to promote it fully back once the update is done. An abort leaves it.
fn promoted_status(rollout: ArgoRollout) -> RolloutStatus {
    if rollout.is_aborted() {
        return RolloutStatus::Failed("the update was aborted".to_owned());
    }
    if rollout.is_being_promoted() {
        return RolloutStatus::Waiting("being promoted fully".to_owned());
    }
    match rollout.phase() {
        RolloutPhase::Paused(why) if !rollout.is_fully_promoted() => {
            RolloutStatus::Failed(format!(
                "superseded: it is paused{}, and no longer being promoted fully: {why}",
                rollout.place()
            ))
        }
        _ => advanced_status(rollout),
    }
}

fn advanced_status(rollout: ArgoRollout) -> RolloutStatus {
    // The controller removes this time once it has seen that the abort was reverted.
    if !rollout.is_aborted() && !rollout.status()["abortedAt"].is_null() {
        return RolloutStatus::Waiting("the controller has not observed the retry yet".to_owned());
    }
    match rollout.phase() {
        RolloutPhase::Healthy => {
            RolloutStatus::Complete("Healthy: all replicas are updated".to_owned())
        }
        // As the promotion of a step with an inconclusive analysis leaves it.
        RolloutPhase::Paused(_)
            if rollout.pause_reasons().is_empty() && !rollout.is_paused_by_spec() =>
        {
            RolloutStatus::Waiting(
                "the controller has not observed the end of the pause yet".to_owned(),
            )
        }
        RolloutPhase::Paused(why) => {
            RolloutStatus::Complete(format!("paused{}: {why}", rollout.place()))
        }
        RolloutPhase::Degraded(why) if !rollout.is_aborted() && why.starts_with(ABORTED) => {
            RolloutStatus::Waiting("the controller has not observed the retry yet".to_owned())
        }
        RolloutPhase::Degraded(why) => RolloutStatus::Failed(format!("Degraded: {why}")),
        RolloutPhase::Progressing(what) => RolloutStatus::Waiting(what),
    }
}

/// An aborted Rollout is Degraded, however well its stable version does.
fn aborted_status(rollout: ArgoRollout) -> RolloutStatus {
    if !rollout.is_aborted() {
        return RolloutStatus::Failed("superseded: the abort was reverted".to_owned());
    }
    if rollout.status()["abortedAt"].is_null()
        || !matches!(rollout.phase(), RolloutPhase::Degraded(_))
    {
        return RolloutStatus::Waiting("the controller has not observed the abort yet".to_owned());
    }
    RolloutStatus::Complete("aborted: the stable version has all replicas".to_owned())
}

/// `at` is when the pods are to be restarted.
fn restarted_status(rollout: ArgoRollout, at: &str) -> RolloutStatus {
    let time = |value: &Value| DateTime::parse_from_rfc3339(value.as_str()?).ok();
    let wanted = time(&Value::String(at.to_owned()));
    if time(rollout.restart_at()) != wanted {
        return RolloutStatus::Failed("superseded: another restart was requested".to_owned());
    }
    if time(&rollout.status()["restartedAt"]) != wanted {
        return RolloutStatus::Waiting("its pods are being replaced".to_owned());
    }
    let phase = match rollout.phase() {
        // The pods of the stable version are restarted all the same.
        RolloutPhase::Degraded(why) if rollout.is_aborted() => RolloutPhase::Paused(why),
        phase => phase,
    };
    match phase {
        RolloutPhase::Degraded(why) => RolloutStatus::Failed(format!("Degraded: {why}")),
        RolloutPhase::Progressing(what) => RolloutStatus::Waiting(what),
        RolloutPhase::Paused(_) if rollout.number("availableReplicas") < rollout.replicas() => {
            RolloutStatus::Waiting("not all pods are available".to_owned())
        }
        RolloutPhase::Healthy | RolloutPhase::Paused(_) => {
            RolloutStatus::Complete("all pods were replaced, and are available".to_owned())
        }
    }
}

impl AwaitedArgoRollout {
    /// The same status, given all pods of the Rollout: the controller writes that it has restarted them as soon as it
    /// has evicted the last one, with the number of pods from before, and it counts no pods of the stable version.
    pub(crate) fn status_with_pods(&self, rollout: ArgoRollout, pods: &[Pod]) -> RolloutStatus {
        let missing = match &self.goal {
            ArgoGoal::Restarted(at) => unrestarted(rollout, at, pods),
            ArgoGoal::Aborted => unready_stable(rollout, pods),
            ArgoGoal::Advanced | ArgoGoal::Promoted => None,
        };
        match (self.status(rollout), missing) {
            (RolloutStatus::Complete(_), Some(missing)) => RolloutStatus::Waiting(missing),
            (status, _) => status,
        }
    }

    /// Whether the pods decide, too.
    pub(crate) fn needs_pods(&self) -> bool {
        matches!(self.goal, ArgoGoal::Restarted(_) | ArgoGoal::Aborted)
    }
}

/// What is missing until all pods are newer than this time, and ready; none if nothing is.
fn unrestarted(rollout: ArgoRollout, at: &str, pods: &[Pod]) -> Option<String> {
    let at = DateTime::parse_from_rfc3339(at).ok()?.timestamp();
    let is_old = |pod: &&Pod| {
        let created = pod.metadata.creation_timestamp.as_ref();
        created.is_some_and(|time| time.0.as_second() < at)
    };
    let (old, new): (Vec<_>, Vec<_>) = pods.iter().partition(is_old);
    if !old.is_empty() {
        return Some(format!("{} of {} pods are older than the restart", old.len(), pods.len()));
    }
    unready(rollout, &new, "new pods")
}

/// What is missing until the stable version has all replicas, ready; none if nothing is.
fn unready_stable(rollout: ArgoRollout, pods: &[Pod]) -> Option<String> {
    let hash = rollout.text("stableRS")?;
    let is_stable = |pod: &&Pod| {
        pod.metadata
            .labels
            .as_ref()
            .and_then(|all| all.get(HASH_LABEL))
            .is_some_and(|it| it == hash)
    };
    let stable: Vec<_> = pods.iter().filter(is_stable).collect();
    unready(rollout, &stable, "pods of the stable version")
}

fn unready(rollout: ArgoRollout, pods: &[&Pod], which: &str) -> Option<String> {
    let ready = pods.iter().filter(|pod| pods::is_ready(pod) && !pods::is_terminating(pod)).count();
    let wanted = rollout.replicas();
    let is_missing = usize::try_from(wanted).is_ok_and(|wanted| ready < wanted);
    is_missing.then(|| format!("{ready} of {wanted} {which} are ready"))
}

/// The labels of the pods of its newest version, as a selector.
pub(crate) fn newest_pods(rollout: ArgoRollout) -> Option<String> {
    let hash = rollout.current_hash()?;
    let own = Some(format!("{HASH_LABEL}={hash}"));
    let all = Some(rollout.label_selector()).filter(|it| !it.is_empty());
    Some(own.into_iter().chain(all).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(goal: &ArgoGoal, spec: &str, status: &str) -> RolloutStatus {
        let rollout: DynamicObject = serde_yaml_ng::from_str(&format!(
            "metadata: {{name: web, uid: u1, generation: 3}}\n\
             spec: {{replicas: 2, strategy: {{canary: {{steps: [{{pause: {{}}}}, {{pause: {{}}}}]}}}}{spec}}}\n\
             status: {{currentPodHash: new, {status}}}"
        ))
        .expect("is a Rollout");
        let awaited = AwaitedArgoRollout {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: Some("u1".to_owned()),
            version: ArgoVersion::Hash("new".to_owned()),
            goal: goal.clone(),
        };
        awaited.status(ArgoRollout::new(&rollout))
    }

    /// `complete`, `failed` or `waiting`, with the message.
    fn described(status: RolloutStatus) -> String {
        match status {
            RolloutStatus::Complete(what) => format!("complete: {what}"),
            RolloutStatus::Failed(what) => format!("failed: {what}"),
            RolloutStatus::Waiting(what) => format!("waiting: {what}"),
        }
    }

    #[test]
    fn a_promotion_is_complete_at_the_next_pause_or_the_end() {
        let pause = "pauseConditions: [{reason: CanaryPauseStep}], controllerPause: true";
        for (status, expected) in [
            ("observedGeneration: '2', phase: Healthy", "waiting: the controller has not observed"),
            // As the promotion has left it.
            (
                "observedGeneration: '3', phase: Paused, controllerPause: true, pauseConditions: []",
                "waiting: waiting for",
            ),
            (
                "observedGeneration: '3', phase: Progressing, message: more replicas",
                "waiting: more replicas",
            ),
            (
                &format!(
                    "observedGeneration: '3', phase: Paused, message: CanaryPauseStep, currentStepIndex: 1, {pause}"
                ),
                "complete: paused at step 2 of 2: CanaryPauseStep",
            ),
            ("observedGeneration: '3', phase: Healthy", "complete: Healthy"),
            (
                "observedGeneration: '3', phase: Degraded, message: ProgressDeadlineExceeded",
                "failed: Degraded: Prog",
            ),
            // As the promotion of a step with an inconclusive analysis has left it.
            (
                "observedGeneration: '3', phase: Paused, controllerPause: false, pauseConditions: []",
                "waiting: the controller has not observed the end of the pause",
            ),
            (
                "observedGeneration: '3', phase: Degraded, abort: false, message: 'RolloutAborted: x'",
                "waiting: the controller has not observed the retry",
            ),
            // A retry that the controller has not seen.
            (
                "observedGeneration: '3', phase: Degraded, abort: false, abortedAt: '2026-01-31T12:00:00Z'",
                "waiting: the controller has not observed the retry",
            ),
        ] {
            let seen = described(status_of(&ArgoGoal::Advanced, "", status));
            assert!(seen.starts_with(expected), "{status}: {seen}");
        }
        let held = "observedGeneration: '3', phase: Paused, message: manually paused";
        let seen = described(status_of(&ArgoGoal::Advanced, ", paused: true", held));
        assert_eq!(seen, "complete: paused at step 1 of 2: manually paused");
    }

    #[test]
    fn a_promotion_in_full_is_complete_at_the_end_alone() {
        let seen = "observedGeneration: '3'";
        for (status, expected) in [
            ("phase: Paused, promoteFull: true", "waiting: being promoted fully"),
            ("phase: Degraded, promoteFull: true, abort: true", "failed: the update was aborted"),
            ("phase: Paused, stableRS: old, pauseConditions: [{reason: x}]", "failed: superseded"),
            ("phase: Healthy, stableRS: new", "complete: Healthy"),
        ] {
            let found = status_of(&ArgoGoal::Promoted, "", &format!("{seen}, {status}"));
            let found = described(found);
            assert!(found.starts_with(expected), "{status}: {found}");
        }
    }

    #[test]
    fn an_abort_is_complete_once_the_controller_has_seen_it() {
        let at = "abortedAt: '2026-01-31T12:00:00Z', observedGeneration: '3', phase: Degraded";
        for (status, expected) in [
            ("abort: true, observedGeneration: '3', phase: Paused", "waiting: the controller"),
            (&format!("abort: true, {at}"), "complete: aborted"),
            ("observedGeneration: '3', phase: Progressing", "failed: superseded"),
        ] {
            let seen = described(status_of(&ArgoGoal::Aborted, "", status));
            assert!(seen.starts_with(expected), "{status}: {seen}");
        }
    }

    #[test]
    fn a_restart_is_complete_once_all_pods_are_newer_and_available() {
        let goal = ArgoGoal::Restarted("2026-01-31T12:00:00Z".to_owned());
        let spec = ", restartAt: '2026-01-31T12:00:00Z'";
        let done = "restartedAt: '2026-01-31T12:00:00Z', observedGeneration: '3'";
        for (spec, status, expected) in [
            (spec, "observedGeneration: '3', phase: Healthy".to_owned(), "waiting: its pods"),
            (spec, format!("{done}, phase: Healthy"), "complete: all pods"),
            (spec, format!("{done}, phase: Paused, availableReplicas: 1"), "waiting: not all"),
            (spec, format!("{done}, phase: Paused, availableReplicas: 2"), "complete: all pods"),
            (spec, format!("{done}, phase: Degraded, message: x"), "failed: Degraded: x"),
            (
                spec,
                format!("{done}, phase: Degraded, abort: true, availableReplicas: 1"),
                "waiting: not all",
            ),
            (
                spec,
                format!("{done}, phase: Degraded, abort: true, availableReplicas: 2"),
                "complete: all pods",
            ),
            (", restartAt: '2026-01-31T12:05:00Z'", done.to_owned(), "failed: superseded"),
        ] {
            let seen = described(status_of(&goal, spec, &status));
            assert!(seen.starts_with(expected), "{status}: {seen}");
        }
    }

    #[test]
    fn a_restart_is_not_complete_while_a_pod_is_old_or_a_new_one_not_ready() {
        let pod = |time: &str, ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: web-1, creationTimestamp: '2026-01-31T{time}Z'}}\n\
                 status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        let rollout: DynamicObject =
            serde_yaml_ng::from_str("metadata: {name: web}\nspec: {replicas: 1}").expect("is one");
        let missing = |pods: &[Pod]| {
            unrestarted(ArgoRollout::new(&rollout), "2026-01-31T12:00:00Z", pods)
                .unwrap_or_default()
        };
        assert_eq!(missing(&[pod("12:00:00", "True")]), "");
        let evicted = [pod("11:59:59", "True"), pod("12:00:01", "True")];
        assert_eq!(missing(&evicted), "1 of 2 pods are older than the restart");
        for pods in [&[][..], &[pod("12:00:01", "False")]] {
            assert_eq!(missing(pods), "0 of 1 new pods are ready");
        }
    }

    #[test]
    fn an_abort_is_not_complete_while_a_pod_of_the_stable_version_is_missing() {
        let pod = |hash: &str, ready: &str| -> Pod {
            serde_yaml_ng::from_str(&format!(
                "metadata: {{name: web-1, labels: {{rollouts-pod-template-hash: {hash}}}}}\n\
                 status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}"
            ))
            .expect("is a pod")
        };
        let rollout: DynamicObject = serde_yaml_ng::from_str(
            "metadata: {name: web}\nspec: {replicas: 2}\nstatus: {stableRS: old, updatedReplicas: 2}",
        )
        .expect("is one");
        let missing = |pods: &[Pod]| unready_stable(ArgoRollout::new(&rollout), pods);
        // The pods of the aborted version may run for a while.
        let stable =
            [pod("old", "True"), pod("old", "True"), pod("new", "True"), pod("new", "True")];
        assert_eq!(missing(&stable), None);
        for second in [pod("new", "True"), pod("old", "False")] {
            let expected = "1 of 2 pods of the stable version are ready";
            assert_eq!(missing(&[pod("old", "True"), second]).as_deref(), Some(expected));
        }
    }

    #[test]
    fn another_version_supersedes_the_wait() {
        let seen = status_of(&ArgoGoal::Advanced, "", "phase: Healthy, currentPodHash: newer");
        assert!(described(seen).starts_with("failed: superseded"));
    }
}
