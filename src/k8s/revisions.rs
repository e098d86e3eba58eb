//! The revisions of a workload: which exist, which one is selected, and what differs. Pure.
//!
//! A Deployment keeps its earlier templates in the ReplicaSets that it owns, a StatefulSet and a
//! DaemonSet in ControllerRevisions. Both are read as the API returns them and not
//! through typed structs, so that unknown fields are restored too: without them, a rollback would create
//! a new revision.

use std::collections::{BTreeMap, BTreeSet};

use json_patch::PatchOperation;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    contract::{digest::sha256, response::Change},
    k8s::{
        OWN_PREFIX, REQUEST_ID_ANNOTATION,
        conditional_patch::{add, remove},
        pods,
        restart::RESTARTED_AT_ANNOTATION,
        workload::{Workload, WorkloadKind},
    },
};

/// The number of a ReplicaSet's revision (`deploymentutil.RevisionAnnotation`).
const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";

/// The label that the Deployment controller adds to a template to distinguish its ReplicaSets.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// The label with a pod's ControllerRevision.
const REVISION_LABEL: &str = "controller-revision-hash";

const CHANGE_CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";

/// The configuration that `kubectl apply` applied last.
pub(crate) const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The annotations of a Deployment that a rollback does not change (`annotationsToSkip` in
/// `polymorphichelpers/rollback.go`).
const KEPT_ANNOTATIONS: [&str; 6] = [
    LAST_APPLIED_ANNOTATION,
    REVISION_ANNOTATION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

/// The annotations of a template that a restart changes.
const RESTART_ANNOTATIONS: [&str; 2] = [RESTARTED_AT_ANNOTATION, REQUEST_ID_ANNOTATION];

/// A workload and its revisions.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub workload: Workload,
    /// Its pod template, with unknown fields.
    template: Value,
    /// Its revisions, the latest first.
    revisions: Vec<Revision>,
    /// The names of revisions that mean the current template although they are written in another way: an earlier
    /// Kubernetes wrote them, which knew fewer defaults.
    synonyms: BTreeSet<String>,
}

/// A pod template that a workload had.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Revision {
    pub number: i64,
    /// The object that stores it.
    pub name: String,
    /// With unknown fields.
    template: Value,
    /// The Deployment's annotations at that time; none for other kinds.
    annotations: Option<BTreeMap<String, String>>,
}

/// The revision to return to if a rollout fails. It is recognised by the object that stores it, since a
/// rollback gives it another number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RollbackTarget {
    /// The object that stores the revision.
    pub revision: String,
    /// Its number before the change.
    pub number: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RevisionSelector {
    Number(i64),
    /// The last one whose template differs from the current one.
    Previous,
    /// The last one that differs in more than a restart.
    PreviousThatDiffers,
}

/// The kind of object that stores the revisions.
pub(crate) fn revision_resource(kind: WorkloadKind) -> ApiResource {
    match kind {
        WorkloadKind::Deployment | WorkloadKind::ReplicaSet => {
            ApiResource::erase::<ReplicaSet>(&())
        }
        WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => {
            ApiResource::erase::<ControllerRevision>(&())
        }
    }
}

/// The template at this JSON Pointer, without what controllers and the API server add, and without nulls, which some
/// versions of Kubernetes write where others leave the field out.
pub(crate) fn template_in(object: &Value, pointer: &str) -> Value {
    let mut template = object.pointer(pointer).cloned().unwrap_or_default();
    remove_nulls(&mut template);
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(TEMPLATE_HASH_LABEL);
        }
    }
    template
}

/// Removes fields that are null, and objects of which nothing else is left.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|_, field| {
            let was_empty = field.as_object().is_some_and(Map::is_empty);
            remove_nulls(field);
            !field.is_null() && (was_empty || !field.as_object().is_some_and(Map::is_empty))
        }),
        Value::Array(elements) => elements.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// The revision that the StatefulSet's controller regards as the current one, if it has seen the current spec. A
/// DaemonSet's status has no such field.
fn update_revision(workload: &Workload) -> Option<String> {
    let Workload::StatefulSet(set) = workload else { return None };
    let status = set.status.as_ref()?;
    let is_observed = status.observed_generation == set.metadata.generation;
    status.update_revision.clone().filter(|_| is_observed)
}

/// The digest of a template as [`template_in`] returns it. The order of its fields does not count: it differs between
/// a workload and its ControllerRevisions.
pub(crate) fn template_digest(template: &Value) -> String {
    let mut template = template.clone();
    template.sort_all_objects();
    sha256(template.to_string().as_bytes())
}

impl History {
    pub(crate) fn new(workload: Workload, template: Value, objects: &[DynamicObject]) -> Self {
        let uid = workload.metadata().uid.as_deref();
        let owned =
            objects.iter().filter(|it| uid.is_some() && controller_uid(&it.metadata) == uid);
        let read = match workload.kind() {
            WorkloadKind::Deployment | WorkloadKind::ReplicaSet => Revision::in_replica_set,
            WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => Revision::in_controller_revision,
        };
        let mut revisions: Vec<_> = owned.filter_map(read).collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
        let synonyms = update_revision(&workload).into_iter().collect();
        History { workload, template, revisions, synonyms }
    }

    /// The current revision is recognised by its template and not by its number, so it does not matter
    /// whether the controller has observed the last change.
    pub(crate) fn find(&self, selector: RevisionSelector) -> Option<&Revision> {
        self.revisions.iter().find(|revision| match selector {
            RevisionSelector::Number(number) => revision.number == number,
            RevisionSelector::Previous => !self.is_at(revision),
            RevisionSelector::PreviousThatDiffers => {
                !self.is_at(revision) && !self.differs_by_restarts_alone(revision)
            }
        })
    }

    /// Whether the workload has this revision's template.
    pub(crate) fn is_at(&self, revision: &Revision) -> bool {
        self.template == revision.template || self.synonyms.contains(&revision.name)
    }

    /// Notes that this revision's template changes nothing, as the API server found.
    pub(crate) fn note_same(&mut self, revision: &str) {
        self.synonyms.insert(revision.to_owned());
    }

    /// Whether this revision differs from the current one by restarts only.
    pub(crate) fn differs_by_restarts_alone(&self, revision: &Revision) -> bool {
        without_restarts(&self.template) == without_restarts(&revision.template)
    }

    /// The current revision; none if the controller has not recorded it yet.
    pub(crate) fn rollback_target(&self) -> Option<RollbackTarget> {
        let current = self.current()?;
        Some(RollbackTarget { revision: current.name.clone(), number: current.number })
    }

    /// The object that stores the current revision; none if the controller has not recorded it yet.
    pub(crate) fn current(&self) -> Option<&Revision> {
        self.revisions.iter().find(|revision| self.is_at(revision))
    }

    /// Whether this pod is of this revision.
    pub(crate) fn is_of(&self, revision: &Revision, pod: &Pod) -> bool {
        let label = pod.metadata.labels.as_ref().and_then(|all| all.get(REVISION_LABEL));
        match self.workload {
            Workload::Deployment(_) | Workload::ReplicaSet(_) => {
                pods::controller_of(&pod.metadata).is_some_and(|owner| owner.name == revision.name)
            }
            Workload::StatefulSet(_) => label == Some(&revision.name),
            // Of a DaemonSet the label has the last part of the name.
            Workload::DaemonSet(_) => {
                label.is_some_and(|hash| revision.name.ends_with(&format!("-{hash}")))
            }
        }
    }

    /// Whether the object of this name stores the current revision.
    pub(crate) fn is_current(&self, name: &str) -> bool {
        self.revisions.iter().any(|revision| revision.name == name && self.is_at(revision))
    }

    /// The warning that the current revision may not be kept until a rollout fails. A Deployment's controller deletes
    /// old ReplicaSets once a rollout is complete, and a StatefulSet's keeps the current revision until then. A
    /// DaemonSet's keeps only revisions that a pod has (`cleanupHistory` in `pkg/controller/daemon/update.go`).
    pub(crate) fn unkept_warning(&self) -> Option<String> {
        let is_unkept = matches!(self.workload, Workload::DaemonSet(_))
            && self.workload.revision_history_limit() == Some(0);
        is_unkept.then(|| {
            "its revisionHistoryLimit is 0: once no pod of the current revision is left, the revision is deleted, and a \
             failed rollout cannot be rolled back"
                .to_owned()
        })
    }

    /// The revision to return to, if it still exists.
    pub(crate) fn kept(&self, rollback_target: &RollbackTarget) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.name == rollback_target.revision)
    }

    /// The pods of other revisions for which an ordered StatefulSet may wait forever before it replaces any
    /// ([forced rollback](https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback)).
    pub(crate) fn stuck<'a>(&self, revision: &Revision, pods: &'a [Pod]) -> Vec<&'a str> {
        if !self.workload.keeps_order() {
            return Vec::new();
        }
        let uid = self.workload.metadata().uid.as_deref();
        pods.iter()
            .filter(|pod| controller_uid(&pod.metadata) == uid)
            .filter(|pod| !pods::is_ready(pod) && !pods::is_terminating(pod))
            .filter(|pod| !self.is_of(revision, pod))
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect()
    }

    /// The numbers of the revisions, the latest first.
    pub(crate) fn numbers(&self) -> Vec<i64> {
        self.revisions.iter().map(|revision| revision.number).collect()
    }

    /// The current template, with unknown fields.
    pub(crate) fn template(&self) -> &Value {
        &self.template
    }

    /// A digest of the current template.
    pub(crate) fn digest(&self) -> String {
        template_digest(&self.template)
    }

    /// Restores this revision's template as a whole. Like kubectl, it restores a Deployment's annotations too:
    /// otherwise the change cause would be that of the wrong revision.
    pub(crate) fn operations_to(&self, revision: &Revision) -> Vec<PatchOperation> {
        let annotations = self.annotations_to(revision).into_iter().map(|(name, (_, to))| {
            let path = ["metadata", "annotations", name];
            to.map_or_else(|| remove(&path), |to| add(&path, json!(to)))
        });
        let template = add(&["spec", "template"], revision.template.clone());
        annotations.chain([template]).collect()
    }

    /// The annotations that differ, with the values before and after.
    fn annotations_to<'a>(
        &'a self,
        revision: &'a Revision,
    ) -> BTreeMap<&'a str, (Option<&'a String>, Option<&'a String>)> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let Some(then) = &revision.annotations else { return BTreeMap::new() };
        let now = self.workload.metadata().annotations.as_ref().unwrap_or(&NONE);
        now.keys()
            .chain(then.keys())
            .filter(|name| !KEPT_ANNOTATIONS.contains(&name.as_str()))
            // A rollback changes none of our own annotations either.
            .filter(|name| !name.starts_with(OWN_PREFIX))
            .map(|name| (name.as_str(), (now.get(name), then.get(name))))
            .filter(|(_, (from, to))| from != to)
            .collect()
    }

    /// What differs between the current and this revision. Only values that cannot be secret are shown:
    /// images, resources, restarts and the change cause. Anything else is shown as changed. The path of a
    /// named list element has its name.
    pub(crate) fn changes_to(&self, revision: &Revision) -> Vec<Change> {
        let mut changes = template_changes(&self.template, &revision.template);
        for (name, (from, to)) in self.annotations_to(revision) {
            let redaction =
                if name == CHANGE_CAUSE_ANNOTATION { Redaction::Value } else { Redaction::Word };
            let (from, to) = (from.map(|it| json!(it)), to.map(|it| json!(it)));
            let path = format!("/metadata/annotations/{}", escape(name));
            changes.push(redaction.change(path, from.as_ref(), to.as_ref()));
        }
        changes
    }
}

impl Revision {
    fn in_replica_set(set: &DynamicObject) -> Option<Self> {
        let annotations = set.metadata.annotations.clone().unwrap_or_default();
        let number = annotations.get(REVISION_ANNOTATION)?.parse().ok()?;
        Some(Revision {
            number,
            name: set.metadata.name.clone()?,
            template: template_in(&set.data, "/spec/template"),
            annotations: Some(annotations),
        })
    }

    /// Its data is a strategic merge patch that replaces the template.
    fn in_controller_revision(revision: &DynamicObject) -> Option<Self> {
        Some(Revision {
            number: revision.data.get("revision")?.as_i64()?,
            name: revision.metadata.name.clone()?,
            template: template_in(revision.data.get("data")?, "/spec/template"),
            annotations: None,
        })
    }

    /// A digest of its template.
    pub(crate) fn digest(&self) -> String {
        template_digest(&self.template)
    }
}

fn controller_uid(metadata: &ObjectMeta) -> Option<&str> {
    pods::controller_of(metadata).map(|owner| owner.uid.as_str())
}

fn without_restarts(template: &Value) -> Value {
    let mut template = template.clone();
    let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) else {
        return template;
    };
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| !RESTART_ANNOTATIONS.contains(&name.as_str()));
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    template
}

#[derive(Clone, Copy, PartialEq)]
enum Redaction {
    /// Show the values.
    Value,
    /// Show only that there is a difference.
    Word,
}

impl Redaction {
    /// The redaction of the field of this name, within a value of this redaction.
    fn of(self, name: &str) -> Self {
        let harmless = matches!(name, "image" | "resources") || RESTART_ANNOTATIONS.contains(&name);
        if harmless { Redaction::Value } else { self }
    }

    fn change(self, path: String, from: Option<&Value>, to: Option<&Value>) -> Change {
        let word = |there: Option<&Value>, word: &str| there.map_or(Value::Null, |_| word.into());
        let (from, to) = match self {
            Redaction::Value => (json!(from), json!(to)),
            Redaction::Word if from.is_some() => (word(from, "set"), word(to, "changed")),
            Redaction::Word => (Value::Null, word(to, "set")),
        };
        Change { path, from, to }
    }
}

/// What differs between two pod templates, as [`History::changes_to`] shows it.
pub(crate) fn template_changes(from: &Value, to: &Value) -> Vec<Change> {
    let mut changes = Vec::new();
    compare("/spec/template", Some(from), Some(to), Redaction::Word, &mut changes);
    changes
}

/// Adds what differs at this path and below.
fn compare(
    path: &str,
    from: Option<&Value>,
    to: Option<&Value>,
    redaction: Redaction,
    changes: &mut Vec<Change>,
) {
    if from == to {
        return;
    }
    let below = |name: &str| format!("{path}/{}", escape(name));
    match (from, to) {
        (Some(Value::Object(from)), Some(Value::Object(to))) => {
            for name in union(from, to) {
                let (from, to) = (from.get(name), to.get(name));
                match name {
                    "containers" | "initContainers" => {
                        compare_containers(&below(name), from, to, changes);
                    }
                    "env" => compare_env(&below(name), from, to, changes),
                    _ => compare(&below(name), from, to, redaction.of(name), changes),
                }
            }
        }
        _ => changes.push(redaction.change(path.to_owned(), from, to)),
    }
}

/// A container that exists only before or only after is shown by its image.
fn compare_containers(
    path: &str,
    from: Option<&Value>,
    to: Option<&Value>,
    changes: &mut Vec<Change>,
) {
    let (lists, known) = ((from, to), changes.len());
    let (from, to) = (by_name(from), by_name(to));
    for name in union(&from, &to) {
        let path = format!("{path}/{}", escape(name));
        let (from, to) = (from.get(name), to.get(name));
        if from.is_some() && to.is_some() {
            compare(&path, from, to, Redaction::Word, changes);
        } else {
            let image = |it: Option<&Value>| it.and_then(|it| it.get("image")).cloned();
            let (from, to) = (image(from), image(to));
            let change =
                Redaction::Value.change(format!("{path}/image"), from.as_ref(), to.as_ref());
            changes.push(change);
        }
    }
    describe_order(path, lists, known, changes);
}

/// Neither a variable's value nor its source is shown.
fn compare_env(path: &str, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<Change>) {
    let (lists, known) = ((from, to), changes.len());
    let (from, to) = (by_name(from), by_name(to));
    for name in union(&from, &to) {
        let (from, to) = (from.get(name), to.get(name));
        if from != to {
            changes.push(Redaction::Word.change(format!("{path}/{}", escape(name)), from, to));
        }
    }
    describe_order(path, lists, known, changes);
}

/// Two lists may have the same elements in another order.
fn describe_order(
    path: &str,
    (from, to): (Option<&Value>, Option<&Value>),
    known: usize,
    changes: &mut Vec<Change>,
) {
    if from != to && changes.len() == known {
        changes.push(Redaction::Word.change(path.to_owned(), from, to));
    }
}

fn by_name(list: Option<&Value>) -> Map<String, Value> {
    let elements = list.and_then(Value::as_array).into_iter().flatten();
    let named = elements.filter_map(|it| Some((it.get("name")?.as_str()?.to_owned(), it.clone())));
    named.collect()
}

fn union<'a>(one: &'a Map<String, Value>, other: &'a Map<String, Value>) -> Vec<&'a str> {
    let more = other.keys().filter(|name| !one.contains_key(*name));
    one.keys().chain(more).map(String::as_str).collect()
}

/// A name as a token of a JSON Pointer (RFC 6901).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
impl History {
    /// The history of an object and the objects that store its revisions, in YAML, for tests.
    pub(crate) fn example(kind: WorkloadKind, object: &str, objects: &[&str]) -> Self {
        let read = |yaml: &str| serde_yaml_ng::from_str(yaml).expect("is an object");
        let (workload, template) = kind.read_with_template(read(object)).expect("is of that kind");
        let objects: Vec<_> = objects.iter().map(|yaml| read(yaml)).collect();
        History::new(workload, template, &objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template of one container, with this in its annotations and in the container.
    fn template(annotations: &str, container: &str) -> String {
        format!(
            "{{metadata: {{labels: {{app: web, pod-template-hash: h}}, annotations: {annotations}}}, \
             spec: {{containers: [{{name: app, {container}}}]}}}}"
        )
    }

    fn replica_set(number: &str, owner: &str, template: &str, annotations: &str) -> String {
        format!(
            "metadata: {{name: web-{number}, annotations: {{deployment.kubernetes.io/revision: \
             '{number}'{annotations}}}, ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, \
             name: web, uid: {owner}, controller: true}}]}}\nspec: {{selector: {{}}, template: {template}}}"
        )
    }

    fn deployment(template: &str, annotations: &str) -> String {
        let template = template.replace(", pod-template-hash: h", "");
        format!(
            "metadata: {{name: web, uid: u1, annotations: {annotations}}}\n\
             spec: {{selector: {{}}, template: {template}}}"
        )
    }

    /// A Deployment of revision 4, which is revision 3 restarted; 3 differs from 2 in its image.
    fn history() -> History {
        let (old, new) = (template("{}", "image: 'app:1'"), template("{}", "image: 'app:2'"));
        let restarted =
            template("{kubectl.kubernetes.io/restartedAt: '2026-01-31'}", "image: 'app:2'");
        History::example(
            WorkloadKind::Deployment,
            &deployment(&restarted, "{}"),
            &[
                &replica_set("3", "u1", &new, ""),
                &replica_set("4", "u1", &restarted, ""),
                &replica_set("2", "u1", &old, ""),
                &replica_set("9", "another", &old, ""),
            ],
        )
    }

    fn found(history: &History, selector: RevisionSelector) -> Option<i64> {
        history.find(selector).map(|revision| revision.number)
    }

    #[test]
    fn the_previous_revision_is_the_last_one_of_another_template() {
        assert_eq!(history().numbers(), [4, 3, 2]);
        assert_eq!(found(&history(), RevisionSelector::Previous), Some(3));
        assert_eq!(found(&history(), RevisionSelector::Number(2)), Some(2));
        assert_eq!(found(&history(), RevisionSelector::Number(9)), None);
    }

    #[test]
    fn a_restart_can_be_skipped() {
        assert_eq!(found(&history(), RevisionSelector::PreviousThatDiffers), Some(2));
        let third = history().find(RevisionSelector::Number(3)).cloned().expect("is there");
        assert!(history().differs_by_restarts_alone(&third) && !history().is_at(&third));
    }

    fn controller_revision(number: i64, container: &str) -> String {
        format!(
            "metadata: {{name: web-{number}, ownerReferences: [{{apiVersion: apps/v1, kind: StatefulSet, \
             name: web, uid: u1, controller: true}}]}}\nrevision: {number}\n\
             data: {{spec: {{template: {{$patch: replace, metadata: {{creationTimestamp: null, \
             labels: {{app: web}}}}, spec: {{containers: [{{name: app, {container}}}]}}}}}}}}"
        )
    }

    fn stateful_set(container: &str, status: &str) -> String {
        format!(
            "metadata: {{name: web, uid: u1, generation: 3}}\nspec: {{selector: {{}}, serviceName: web, \
             template: {{metadata: {{labels: {{app: web}}}}, \
             spec: {{containers: [{{name: app, {container}}}]}}}}}}\nstatus: {{replicas: 1{status}}}"
        )
    }

    #[test]
    fn a_field_that_is_null_in_a_revision_is_one_that_is_absent() {
        let revisions = ["image: 'app:1'", "image: 'app:2', claim: {metadata: {time: null}}"];
        let kept = [controller_revision(1, revisions[0]), controller_revision(2, revisions[1])];
        let kept: Vec<_> = kept.iter().map(String::as_str).collect();
        let now = stateful_set("image: 'app:2', claim: {}", "");
        let history = History::example(WorkloadKind::StatefulSet, &now, &kept);
        assert_eq!(
            found(&history, RevisionSelector::Previous),
            Some(2),
            "an empty object is a value"
        );
        let now = stateful_set("image: 'app:2'", "");
        let history = History::example(WorkloadKind::StatefulSet, &now, &kept);
        assert_eq!(found(&history, RevisionSelector::Previous), Some(1));
        assert_eq!(history.rollback_target().expect("is known").number, 2);
    }

    #[test]
    fn a_revision_written_by_an_earlier_kubernetes_is_the_current_one_if_its_controller_says_so() {
        let kept =
            [controller_revision(1, "image: 'app:1'"), controller_revision(2, "image: 'app:2'")];
        let kept: Vec<_> = kept.iter().map(String::as_str).collect();
        let previous = |status: &str| {
            let now = stateful_set("image: 'app:2', newDefault: x", status);
            let history = History::example(WorkloadKind::StatefulSet, &now, &kept);
            found(&history, RevisionSelector::Previous)
        };
        assert_eq!(previous(", observedGeneration: 3, updateRevision: web-2"), Some(1));
        assert_eq!(previous(", observedGeneration: 2, updateRevision: web-2"), Some(2));
    }

    #[test]
    fn a_revision_that_the_api_server_finds_unchanged_is_not_an_earlier_one() {
        let mut history = history();
        history.note_same("web-3");
        assert_eq!(found(&history, RevisionSelector::Previous), Some(2));
        assert_eq!(found(&history, RevisionSelector::PreviousThatDiffers), Some(2));
    }

    #[test]
    fn an_unobserved_change_is_not_skipped() {
        let (old, new) = (template("{}", "image: 'app:2'"), template("{}", "image: 'app:3'"));
        let kept = [replica_set("1", "u1", "{}", ""), replica_set("2", "u1", &old, "")];
        let kept: Vec<_> = kept.iter().map(String::as_str).collect();
        let history = History::example(WorkloadKind::Deployment, &deployment(&new, "{}"), &kept);
        assert_eq!(found(&history, RevisionSelector::Previous), Some(2));
    }

    #[test]
    fn a_template_is_restored_without_the_controllers_label() {
        let history = history();
        let second = history.find(RevisionSelector::Number(2)).expect("is there");
        assert_eq!(
            json!(history.operations_to(second)),
            json!([{ "op": "add", "path": "/spec/template", "value": {
                "metadata": { "labels": { "app": "web" }, "annotations": {} },
                "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
            }}])
        );
    }

    #[test]
    fn an_unknown_field_is_restored() {
        let new = template("{}", "image: 'app:2'");
        let old = template("{}", "image: 'app:2', inTheFuture: {answer: 42}");
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(&new, "{}"),
            &[&replica_set("1", "u1", &old, ""), &replica_set("2", "u1", &new, "")],
        );
        let first = history.find(RevisionSelector::Previous).expect("is another one");
        let operations = json!(history.operations_to(first));
        let answer = operations.pointer("/0/value/spec/containers/0/inTheFuture/answer");
        assert_eq!(answer, Some(&json!(42)));
    }

    #[test]
    fn annotations_are_restored_as_with_kubectl_but_ours_stay() {
        let (old, new) = (template("{}", "image: 'app:1'"), template("{}", "image: 'app:2'"));
        let now = "{kubernetes.io/change-cause: second, team: shop, \
                   kubectl.kubernetes.io/last-applied-configuration: now, \
                   deployment.kubernetes.io/revision: '2', action-executor.dev/requests: '1:r0'}";
        let then = ", kubernetes.io/change-cause: first, action-executor.dev/requests: '0:x', \
                    deployment.kubernetes.io/desired-replicas: '3'";
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(&new, now),
            &[&replica_set("1", "u1", &old, then)],
        );
        let first = history.find(RevisionSelector::Previous).expect("is there");
        let operations = history.operations_to(first);
        assert_eq!(
            json!(operations[..2]),
            json!([
                {
                    "op": "add", "path": "/metadata/annotations/kubernetes.io~1change-cause",
                    "value": "first",
                },
                { "op": "remove", "path": "/metadata/annotations/team" },
            ])
        );
        assert_eq!(operations.len(), 3);
        let changes = history.changes_to(first);
        let redaction =
            |path: &str| changes.iter().find(|it| it.path == path).expect("is a change");
        let cause = redaction("/metadata/annotations/kubernetes.io~1change-cause");
        assert_eq!((&cause.from, &cause.to), (&json!("second"), &json!("first")));
        assert_eq!(redaction("/metadata/annotations/team").from, "set");
    }

    #[test]
    fn a_controller_revision_contains_the_template() {
        let patch = "{spec: {template: {$patch: replace, metadata: {creationTimestamp: null, labels: \
                     {app: db}}, spec: {containers: []}}}}";
        let kept = format!(
            "metadata: {{name: db-1, ownerReferences: [{{apiVersion: apps/v1, kind: StatefulSet, \
             name: db, uid: u1, controller: true}}]}}\nrevision: 7\ndata: {patch}"
        );
        let object = |image: &str| {
            format!(
                "metadata: {{name: db, uid: u1}}\nspec: {{selector: {{}}, serviceName: db, template: \
                 {{metadata: {{labels: {{app: db}}}}, spec: {{containers: [{image}]}}}}}}"
            )
        };
        let at = History::example(WorkloadKind::StatefulSet, &object(""), &[&kept]);
        assert_eq!(found(&at, RevisionSelector::Previous), None);
        let beyond = object("{name: db, image: 'db:2'}");
        let history = History::example(WorkloadKind::StatefulSet, &beyond, &[&kept]);
        let revision = history.find(RevisionSelector::Number(7)).expect("is there");
        assert_eq!(
            json!(history.operations_to(revision)),
            json!([{ "op": "add", "path": "/spec/template", "value": {
                "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [] },
            }}])
        );
    }

    #[test]
    fn a_change_never_shows_the_value_of_a_variable() {
        let old = template(
            "{checksum: a1b2c3}",
            "image: 'app:1', command: [run], resources: {limits: {cpu: 1}}, env: [{name: GONE, value: \
             hunter1}, {name: OTHER, value: hunter2}, {name: SAME, value: x}]",
        );
        let new = template(
            "{checksum: d4e5f6}",
            "image: 'app:2', command: [walk], resources: {limits: {cpu: 2}}, env: [{name: OTHER, \
             value: hunter3}, {name: SAME, value: x}, {name: NEW, value: hunter4}]",
        );
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(&new, "{}"),
            &[&replica_set("1", "u1", &old, "")],
        );
        let changes =
            history.changes_to(history.find(RevisionSelector::Previous).expect("is there"));
        let redaction: Vec<_> = changes
            .iter()
            .map(|it| format!("{} {} {}", it.path.replace("/spec/template", ""), it.from, it.to))
            .collect();
        for line in [
            r#"/spec/containers/app/image "app:2" "app:1""#,
            r#"/spec/containers/app/command "set" "changed""#,
            "/spec/containers/app/resources/limits/cpu 2 1",
            r#"/spec/containers/app/env/GONE null "set""#,
            r#"/spec/containers/app/env/NEW "set" null"#,
            r#"/spec/containers/app/env/OTHER "set" "changed""#,
            r#"/metadata/annotations/checksum "set" "changed""#,
        ] {
            assert!(redaction.contains(&line.to_owned()), "{line}: {redaction:#?}");
        }
        assert_eq!(redaction.len(), 7, "{redaction:#?}");
    }

    #[test]
    fn another_order_of_a_list_is_a_change() {
        let of = |env: &str| template("{}", &format!("image: 'app:1', env: [{env}]"));
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(&of("{name: A}, {name: B}"), "{}"),
            &[&replica_set("1", "u1", &of("{name: B}, {name: A}"), "")],
        );
        let changes =
            history.changes_to(history.find(RevisionSelector::Previous).expect("is there"));
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].path, "/spec/template/spec/containers/app/env");
    }

    #[test]
    fn the_current_revision_is_found_under_another_number() {
        let before = history();
        let rollback_target = before.rollback_target().expect("is recorded");
        assert_eq!((rollback_target.revision.as_str(), rollback_target.number), ("web-4", 4));
        let mut after = before;
        after.revisions[0].number = 6;
        assert_eq!(after.kept(&rollback_target).map(|revision| revision.number), Some(6));
        after.revisions.remove(0);
        assert_eq!(after.kept(&rollback_target), None);
        assert_eq!(after.rollback_target(), None);
    }

    #[test]
    fn an_added_or_removed_container_is_shown_by_its_image() {
        let one = "{spec: {containers: [{name: app, image: 'app:1'}]}}";
        let two = "{spec: {containers: [{name: app, image: 'app:1'}, {name: log, image: 'log:1', env: \
                   [{name: A, value: hunter2}]}]}}";
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(two, "{}"),
            &[&replica_set("1", "u1", one, "")],
        );
        let changes =
            history.changes_to(history.find(RevisionSelector::Previous).expect("is there"));
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].path, "/spec/template/spec/containers/log/image");
        assert_eq!((&changes[0].from, &changes[0].to), (&json!("log:1"), &Value::Null));
    }
}
