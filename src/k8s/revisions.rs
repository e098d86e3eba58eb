//! The revisions of a workload: which there are, which one is meant, and what would differ.
//!
//! A Deployment keeps its earlier templates in the ReplicaSets that it owns, a StatefulSet and a
//! DaemonSet in ControllerRevisions. Both are read as the API has them and not through our own types, so
//! that a field which this program does not know goes back as well: without it, what comes back would
//! be a new revision and not the old one.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, ReplicaSet},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::{
    contract::{digest::sha256, error::ActionError, response::Change},
    k8s::{
        REQUEST_ID_ANNOTATION,
        api::{
            client::Cluster,
            completion::{TemplateIdentity, digest_of},
        },
        pods,
        restart::RESTARTED_AT_ANNOTATION,
        workload::{Workload, WorkloadKind},
    },
};

/// The number of a ReplicaSet's revision (`deploymentutil.RevisionAnnotation`).
const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";

/// What the Deployment controller adds to a template to tell its ReplicaSets apart.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// The ControllerRevision that a pod was made of.
const REVISION_LABEL: &str = "controller-revision-hash";

/// Why a revision came about, in people's words.
const CHANGE_CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";

/// The annotations of a Deployment that its revisions have no say in (`annotationsToSkip` in
/// `polymorphichelpers/rollback.go`).
const KEPT_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION_ANNOTATION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

/// Our own annotations, which are not a revision's either.
const OWN_PREFIX: &str = "action-executor.dev/";

/// The annotations of a template in which a restart differs from what was before it.
const RESTART_ANNOTATIONS: [&str; 2] = [RESTARTED_AT_ANNOTATION, REQUEST_ID_ANNOTATION];

/// A workload and the revisions that there are of it.
#[derive(Clone, Debug)]
pub struct History {
    /// The workload.
    pub workload: Workload,
    /// Its pod template, whole.
    template: Value,
    /// Its revisions, the latest first.
    revisions: Vec<Revision>,
}

/// A pod template that a workload had.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Its number.
    pub number: i64,
    /// The object that keeps it.
    pub name: String,
    /// The template, whole.
    template: Value,
    /// The strategic merge patch that brings it back.
    patch: Value,
    /// The annotations that the Deployment had then; none for other kinds.
    annotations: Option<BTreeMap<String, String>>,
}

/// The revision to which a workload goes back if a change of it does not come to anything. It is known by
/// the object that keeps it: going back gives it another number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackTarget {
    /// The object that keeps the revision.
    pub revision: String,
    /// Its number before the change.
    pub number: i64,
}

/// Which revision is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionSelector {
    /// The one of this number.
    Number(i64),
    /// The last one before the present.
    Previous,
    /// The last one that differs from the present in more than a restart.
    PreviousThatDiffers,
}

impl Cluster {
    /// Reads a workload and its revisions.
    ///
    /// # Errors
    /// As [`Cluster::get`] says.
    pub async fn history(
        &self,
        kind: WorkloadKind,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<History, ActionError> {
        let object = self.get_dynamic(&kind.resource(), namespace, name, deadline).await?;
        let template = template_in(&object.data, "/spec/template");
        let workload = kind.read(object)?;
        let selector = workload.label_selector();
        let keepers =
            self.list_dynamic(&revision_resource(kind), namespace, &selector, deadline).await?;
        Ok(History::new(workload, template, &keepers))
    }
}

/// The kind of object that keeps the revisions of this kind of workload.
fn revision_resource(kind: WorkloadKind) -> ApiResource {
    match kind {
        WorkloadKind::Deployment | WorkloadKind::ReplicaSet => {
            ApiResource::erase::<ReplicaSet>(&())
        }
        WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => {
            ApiResource::erase::<ControllerRevision>(&())
        }
    }
}

/// The template at this place, without what is not the user's.
fn template_in(object: &Value, pointer: &str) -> Value {
    let mut template = object.pointer(pointer).cloned().unwrap_or_default();
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

impl History {
    fn new(workload: Workload, template: Value, keepers: &[DynamicObject]) -> Self {
        let uid = workload.metadata().uid.as_deref();
        let owned = keepers.iter().filter(|it| uid.is_some() && controller(&it.metadata) == uid);
        let read = match workload.kind() {
            WorkloadKind::Deployment | WorkloadKind::ReplicaSet => Revision::in_replica_set,
            WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => Revision::in_controller_revision,
        };
        let mut revisions: Vec<_> = owned.filter_map(read).collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
        History { workload, template, revisions }
    }

    /// The revision that is meant. The present one is known by its template and not by its number, so
    /// it makes no difference whether the controller has seen the last change yet.
    #[must_use]
    pub fn find(&self, wanted: RevisionSelector) -> Option<&Revision> {
        self.revisions.iter().find(|revision| match wanted {
            RevisionSelector::Number(number) => revision.number == number,
            RevisionSelector::Previous => !self.is_at(revision),
            RevisionSelector::PreviousThatDiffers => !self.differs_by_restarts_alone(revision),
        })
    }

    /// Whether the workload has this revision's template.
    #[must_use]
    pub fn is_at(&self, revision: &Revision) -> bool {
        self.template == revision.template
    }

    /// Whether this revision differs from the present one in nothing but restarts.
    #[must_use]
    pub fn differs_by_restarts_alone(&self, revision: &Revision) -> bool {
        without_restarts(&self.template) == without_restarts(&revision.template)
    }

    /// The present revision, to go back to after a change; none if the controller has not recorded it yet.
    #[must_use]
    pub fn rollback_target(&self) -> Option<RollbackTarget> {
        let present = self.revisions.iter().find(|revision| self.is_at(revision))?;
        Some(RollbackTarget { revision: present.name.clone(), number: present.number })
    }

    /// The revision that was meant to be gone back to, if it is still kept.
    #[must_use]
    pub fn kept(&self, fallback: &RollbackTarget) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.name == fallback.revision)
    }

    /// The pods of other revisions for which a StatefulSet that keeps order may wait for ever before it
    /// replaces any
    /// ([forced rollback](https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback)).
    #[must_use]
    pub fn stuck<'a>(&self, revision: &Revision, pods: &'a [Pod]) -> Vec<&'a str> {
        if !self.keeps_order() {
            return Vec::new();
        }
        let uid = self.workload.metadata().uid.as_deref();
        pods.iter()
            .filter(|pod| controller(&pod.metadata) == uid)
            .filter(|pod| !pods::is_ready(pod) && !pods::is_terminating(pod))
            .filter(|pod| {
                let labels = pod.metadata.labels.as_ref();
                labels.and_then(|all| all.get(REVISION_LABEL)) != Some(&revision.name)
            })
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect()
    }

    /// Whether it is a StatefulSet that does one pod after the other.
    #[must_use]
    pub fn keeps_order(&self) -> bool {
        let Workload::StatefulSet(set) = &self.workload else { return false };
        let policy = set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref());
        policy != Some("Parallel")
    }

    /// The numbers of the revisions that there are, the latest first.
    #[must_use]
    pub fn numbers(&self) -> Vec<i64> {
        self.revisions.iter().map(|revision| revision.number).collect()
    }

    /// A digest of the present template.
    #[must_use]
    pub fn digest(&self) -> String {
        sha256(self.template.to_string().as_bytes())
    }

    /// The strategic merge patch that brings this revision back. Of a Deployment it brings back the
    /// annotations too, as kubectl does: among them the cause of the change, which would else be told of
    /// the wrong revision.
    #[must_use]
    pub fn patch_to(&self, revision: &Revision) -> Value {
        let mut patch = revision.patch.clone();
        for (name, (_, to)) in self.annotations_to(revision) {
            patch["metadata"]["annotations"][name] = json!(to);
        }
        patch
    }

    /// The annotations that differ, before and after.
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
            .filter(|name| !name.starts_with(OWN_PREFIX))
            .map(|name| (name.as_str(), (now.get(name), then.get(name))))
            .filter(|(_, (from, to))| from != to)
            .collect()
    }

    /// What differs between the present and this revision. Values are told only of what can hold no
    /// secret: images, resources, restarts and the cause of the change. Of anything else it is told that
    /// it differs. Elements of a list that have names stand under them.
    #[must_use]
    pub fn changes_to(&self, revision: &Revision) -> Vec<Change> {
        let mut changes = Vec::new();
        compare(
            "/spec/template",
            Some(&self.template),
            Some(&revision.template),
            Redaction::Word,
            &mut changes,
        );
        for (name, (from, to)) in self.annotations_to(revision) {
            let told =
                if name == CHANGE_CAUSE_ANNOTATION { Redaction::Value } else { Redaction::Word };
            let (from, to) = (from.map(|it| json!(it)), to.map(|it| json!(it)));
            let path = format!("/metadata/annotations/{}", escaped(name));
            changes.push(told.change(path, from.as_ref(), to.as_ref()));
        }
        changes
    }
}

impl Revision {
    fn in_replica_set(set: &DynamicObject) -> Option<Self> {
        let annotations = set.metadata.annotations.clone().unwrap_or_default();
        let number = annotations.get(REVISION_ANNOTATION)?.parse().ok()?;
        let template = template_in(&set.data, "/spec/template");
        let mut whole = template.clone();
        whole.as_object_mut()?.insert("$patch".to_owned(), "replace".into());
        Some(Revision {
            number,
            name: set.metadata.name.clone()?,
            template,
            patch: json!({ "spec": { "template": whole } }),
            annotations: Some(annotations),
        })
    }

    /// Its data is the patch already.
    fn in_controller_revision(revision: &DynamicObject) -> Option<Self> {
        let patch = revision.data.get("data")?.clone();
        Some(Revision {
            number: revision.data.get("revision")?.as_i64()?,
            name: revision.metadata.name.clone()?,
            template: template_in(&patch, "/spec/template"),
            patch,
            annotations: None,
        })
    }

    /// By what the workload's template is known to be this one: nothing may be added to it.
    #[must_use]
    pub fn known_by(&self) -> TemplateIdentity {
        let template = serde_json::from_value::<PodTemplateSpec>(self.template.clone());
        template
            .map_or(TemplateIdentity::Nothing, |it| TemplateIdentity::Digest(digest_of(Some(&it))))
    }
}

/// The uid of the controller that owns the object.
fn controller(metadata: &ObjectMeta) -> Option<&str> {
    let owners = metadata.owner_references.as_ref()?;
    owners.iter().find(|it| it.controller == Some(true)).map(|it| it.uid.as_str())
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

/// How a difference is told.
#[derive(Clone, Copy, PartialEq)]
enum Redaction {
    /// By its values.
    Value,
    /// By saying that there is one.
    Word,
}

impl Redaction {
    /// How the field of this name is told, within what is told like this.
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

/// Adds what differs at this place and below.
fn compare(
    path: &str,
    from: Option<&Value>,
    to: Option<&Value>,
    told: Redaction,
    changes: &mut Vec<Change>,
) {
    if from == to {
        return;
    }
    let below = |name: &str| format!("{path}/{}", escaped(name));
    match (from, to) {
        (Some(Value::Object(from)), Some(Value::Object(to))) => {
            for name in union(from, to) {
                let (from, to) = (from.get(name), to.get(name));
                match name {
                    "containers" | "initContainers" => {
                        compare_containers(&below(name), from, to, changes);
                    }
                    "env" => compare_env(&below(name), from, to, changes),
                    _ => compare(&below(name), from, to, told.of(name), changes),
                }
            }
        }
        _ => changes.push(told.change(path.to_owned(), from, to)),
    }
}

/// A container that is only there before or after is told by its image.
fn compare_containers(
    path: &str,
    from: Option<&Value>,
    to: Option<&Value>,
    changes: &mut Vec<Change>,
) {
    let (whole, known) = ((from, to), changes.len());
    let (from, to) = (by_name(from), by_name(to));
    for name in union(&from, &to) {
        let path = format!("{path}/{}", escaped(name));
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
    describe_order(path, whole, known, changes);
}

/// The value of a variable is nobody else's business, and neither is where it comes from.
fn compare_env(path: &str, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<Change>) {
    let (whole, known) = ((from, to), changes.len());
    let (from, to) = (by_name(from), by_name(to));
    for name in union(&from, &to) {
        let (from, to) = (from.get(name), to.get(name));
        if from != to {
            changes.push(Redaction::Word.change(format!("{path}/{}", escaped(name)), from, to));
        }
    }
    describe_order(path, whole, known, changes);
}

/// Two lists may hold the same in another order.
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

/// A name as a step of a JSON Pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
impl History {
    /// The history of an object, its revisions kept by these, all in YAML, for the tests of decisions.
    pub(crate) fn example(kind: WorkloadKind, object: &str, keepers: &[&str]) -> Self {
        let read = |yaml: &str| serde_yaml_ng::from_str(yaml).expect("is an object");
        let object: DynamicObject = read(object);
        let template = template_in(&object.data, "/spec/template");
        let keepers: Vec<_> = keepers.iter().map(|yaml| read(yaml)).collect();
        History::new(kind.read(object).expect("is of that kind"), template, &keepers)
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

    fn found(history: &History, wanted: RevisionSelector) -> Option<i64> {
        history.find(wanted).map(|revision| revision.number)
    }

    #[test]
    fn the_previous_revision_is_the_last_one_of_another_template() {
        assert_eq!(history().numbers(), [4, 3, 2]);
        assert_eq!(found(&history(), RevisionSelector::Previous), Some(3));
        assert_eq!(found(&history(), RevisionSelector::Number(2)), Some(2));
        assert_eq!(found(&history(), RevisionSelector::Number(9)), None);
    }

    #[test]
    fn a_restart_can_be_passed_over() {
        assert_eq!(found(&history(), RevisionSelector::PreviousThatDiffers), Some(2));
        let third = history().find(RevisionSelector::Number(3)).cloned().expect("is there");
        assert!(history().differs_by_restarts_alone(&third) && !history().is_at(&third));
    }

    #[test]
    fn a_change_that_no_controller_has_seen_yet_is_not_passed_over() {
        let (old, new) = (template("{}", "image: 'app:2'"), template("{}", "image: 'app:3'"));
        let kept = [replica_set("1", "u1", "{}", ""), replica_set("2", "u1", &old, "")];
        let kept: Vec<_> = kept.iter().map(String::as_str).collect();
        let history = History::example(WorkloadKind::Deployment, &deployment(&new, "{}"), &kept);
        assert_eq!(found(&history, RevisionSelector::Previous), Some(2));
    }

    #[test]
    fn the_whole_template_comes_back_without_the_controllers_label() {
        let history = history();
        let patch = history.patch_to(history.find(RevisionSelector::Number(2)).expect("is there"));
        assert_eq!(
            patch,
            json!({ "spec": { "template": {
                "$patch": "replace",
                "metadata": { "labels": { "app": "web" }, "annotations": {} },
                "spec": { "containers": [{ "name": "app", "image": "app:1" }] },
            }}})
        );
    }

    #[test]
    fn a_field_that_our_types_do_not_know_comes_back_too() {
        let new = template("{}", "image: 'app:2'");
        let old = template("{}", "image: 'app:2', inTheFuture: {answer: 42}");
        let history = History::example(
            WorkloadKind::Deployment,
            &deployment(&new, "{}"),
            &[&replica_set("1", "u1", &old, ""), &replica_set("2", "u1", &new, "")],
        );
        let first = history.find(RevisionSelector::Previous).expect("is another one");
        let patch = history.patch_to(first);
        let container = patch.pointer("/spec/template/spec/containers/0").expect("is there");
        assert_eq!(container["inTheFuture"]["answer"], 42);
    }

    #[test]
    fn annotations_come_back_as_with_kubectl_but_ours_stay() {
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
        assert_eq!(
            history.patch_to(first)["metadata"]["annotations"],
            json!({ "kubernetes.io/change-cause": "first", "team": null })
        );
        let changes = history.changes_to(first);
        let told = |path: &str| changes.iter().find(|it| it.path == path).expect("is told");
        let cause = told("/metadata/annotations/kubernetes.io~1change-cause");
        assert_eq!((&cause.from, &cause.to), (&json!("second"), &json!("first")));
        assert_eq!(told("/metadata/annotations/team").from, "set");
    }

    #[test]
    fn a_controller_revision_holds_the_patch() {
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
        assert_eq!(history.patch_to(revision)["spec"]["template"]["$patch"], "replace");
        assert!(history.patch_to(revision).get("metadata").is_none());
    }

    #[test]
    fn tells_what_differs_and_never_the_value_of_a_variable() {
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
        let told: Vec<_> = changes
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
            assert!(told.contains(&line.to_owned()), "{line}: {told:#?}");
        }
        assert_eq!(told.len(), 7, "{told:#?}");
    }

    #[test]
    fn another_order_of_the_same_is_told() {
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
    fn the_present_revision_is_found_again_under_another_number() {
        let before = history();
        let fallback = before.rollback_target().expect("is recorded");
        assert_eq!((fallback.revision.as_str(), fallback.number), ("web-4", 4));
        let mut after = before;
        after.revisions[0].number = 6;
        assert_eq!(after.kept(&fallback).map(|revision| revision.number), Some(6));
        after.revisions.remove(0);
        assert_eq!(after.kept(&fallback), None);
        assert_eq!(after.rollback_target(), None);
    }

    #[test]
    fn a_container_that_comes_or_goes_is_told_by_its_image() {
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
