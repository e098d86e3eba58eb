//! What `label` and `annotate` have in common: they set and remove entries of a map in an object's metadata, and differ
//! in the map. The pod template of a workload is never changed. Must not depend on one of them.

use std::collections::{BTreeMap, BTreeSet};

use json_patch::{PatchOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    api::{ApiResource, DynamicObject},
    core::ObjectMeta,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    actions::{ChangedKeys, CompletionSpec, Decision, KeysOf, Plan, PlanInput, Preview},
    contract::{
        error::{ActionError, Code},
        names::{LabelValue, Namespace, ObjectName, QualifiedName, is_own_key},
        response::{Change, Target, rfc3339_millis},
    },
    k8s::{
        api::client::Cluster,
        applied_requests::AppliedRequests,
        completion::Completion,
        conditional_patch::{add, remove, set_entries, test},
        effect::Effect,
        gitops,
        pods::controller_of,
        rbac::PolicyRule,
        replacement::describe,
    },
};

/// The most keys of one request.
const MAX_KEYS: usize = 20;

/// The most characters of an annotation's value; all annotations of an object have 256 KiB.
const MAX_VALUE_CHARACTERS: usize = 4096;

/// The most characters of a value that an answer shows: it is stored in the record.
const MAX_SHOWN_CHARACTERS: usize = 256;

/// The labels by which controllers know their pods and revisions, apart from those with a prefix of Kubernetes.
const CONTROLLER_LABELS: [&str; 5] = [
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
];

/// The RBAC rules to change the metadata of each kind.
pub(crate) const WORKLOADS: PolicyRule = PolicyRule {
    api_groups: &["apps"],
    resources: &["deployments", "statefulsets", "daemonsets"],
    verbs: &["get", "patch"],
};
pub(crate) const JOBS: PolicyRule = PolicyRule {
    api_groups: &["batch"],
    resources: &["cronjobs", "jobs"],
    verbs: &["get", "patch"],
};
pub(crate) const PODS: PolicyRule =
    PolicyRule { api_groups: &[""], resources: &["pods"], verbs: &["get", "patch"] };

/// The kinds of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelledKind {
    /// Deployment
    #[default]
    Deployment,
    /// StatefulSet
    StatefulSet,
    /// DaemonSet
    DaemonSet,
    /// CronJob
    CronJob,
    /// Job
    Job,
    /// Pod
    Pod,
}

impl LabelledKind {
    fn resource(self) -> ApiResource {
        match self {
            LabelledKind::Deployment => ApiResource::erase::<Deployment>(&()),
            LabelledKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            LabelledKind::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
            LabelledKind::CronJob => ApiResource::erase::<CronJob>(&()),
            LabelledKind::Job => ApiResource::erase::<Job>(&()),
            LabelledKind::Pod => ApiResource::erase::<Pod>(&()),
        }
    }

    /// Whether the API server counts a change of the annotations, and so each change with a mark, as a generation
    /// (`PrepareForUpdate` in `pkg/registry/apps/deployment/strategy.go`).
    fn counts_annotations(self) -> bool {
        self == LabelledKind::Deployment
    }
}

/// The entries that a request sets and removes.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a> {
    pub of: KeysOf,
    pub kind: LabelledKind,
    pub name: &'a ObjectName,
    pub namespace: &'a Namespace,
    pub set: &'a BTreeMap<QualifiedName, String>,
    pub remove: &'a [QualifiedName],
}

/// What selects pods by their labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selector {
    /// For example `ReplicaSet 'web-5d4f'`.
    owner: String,
    /// The keys that it selects by; none if they are unknown.
    keys: Option<BTreeSet<String>>,
}

/// One entry that differs from what is wanted.
struct Difference<'a> {
    key: &'a str,
    from: Option<&'a str>,
    to: Option<&'a str>,
}

impl<'a> Entries<'a> {
    pub(crate) fn target(self) -> Target {
        let ApiResource { api_version, kind, .. } = self.kind.resource();
        Target::named(&api_version, &kind, self.namespace, self.name)
    }

    pub(crate) fn changed_keys(self) -> ChangedKeys<'a> {
        ChangedKeys { of: self.of, set: Some(self.set), others: self.remove }
    }

    /// Checks the keys and values.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] with the wrong field.
    pub(crate) fn check(self) -> Result<(), ActionError> {
        let number = self.set.len() + self.remove.len();
        if !(1..=MAX_KEYS).contains(&number) {
            let what =
                format!("must have 1 to {MAX_KEYS} keys together with remove, but has {number}");
            return Err(ActionError::invalid_field("parameters.set", what));
        }
        for (key, value) in self.set {
            let field = format!("parameters.set.{key}");
            self.check_key(key, &field)?;
            let checked = match self.of {
                KeysOf::Labels => LabelValue::try_from(value.clone()).map(drop),
                _ if value.chars().count() > MAX_VALUE_CHARACTERS => {
                    Err(format!("must have at most {MAX_VALUE_CHARACTERS} characters"))
                }
                _ => Ok(()),
            };
            checked.map_err(|what| ActionError::invalid_field(field, what))?;
        }
        for (index, key) in self.remove.iter().enumerate() {
            let field = format!("parameters.remove[{index}]");
            self.check_key(key, &field)?;
            if self.set.contains_key(key) || self.remove[..index].contains(key) {
                return Err(ActionError::invalid_field(field, "is given more than once"));
            }
        }
        Ok(())
    }

    fn check_key(self, key: &str, field: &str) -> Result<(), ActionError> {
        if is_own_key(key) {
            let what = "is a key of this program, which no action changes";
            return Err(ActionError::invalid_field(field, what));
        }
        if self.of == KeysOf::Labels && CONTROLLER_LABELS.contains(&key) {
            let what =
                "is a label by which controllers know their objects, which no action changes";
            return Err(ActionError::invalid_field(field, what));
        }
        Ok(())
    }

    pub(crate) fn preview(self, input: &PlanInput) -> Preview {
        let set = self.set.iter().map(|(key, value)| (key, Some(value.as_str())));
        let removed = self.remove.iter().map(|key| (key, None));
        let entries = set.chain(removed).map(|(key, to)| Difference { key, from: None, to });
        let changes = entries.map(|it| self.change(&it));
        let mark = AppliedRequests::default().change(&input.mark);
        Preview { result: self.would(), changes: changes.chain([mark]).collect() }
    }

    /// Reads the object, and of a pod whose labels change what selects it, and decides.
    pub(crate) async fn plan(
        self,
        cluster: &Cluster,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let resource = self.kind.resource();
        let (namespace, deadline) = (self.namespace, input.deadline);
        let found = cluster.get_dynamic(&resource, namespace, self.name, deadline).await?;
        let selector = match (self.of, self.kind) {
            (KeysOf::Labels, LabelledKind::Pod) => {
                self.selector_of_pod(cluster, &found, input).await?
            }
            (KeysOf::Labels, _) => Some(Selector::of(&describe_target(&self.target()), &found)),
            _ => None,
        };
        self.decide(&found, selector.as_ref(), input)
    }

    /// By what its controller selects the pod, if it has one.
    async fn selector_of_pod(
        self,
        cluster: &Cluster,
        pod: &DynamicObject,
        input: &PlanInput,
    ) -> Result<Option<Selector>, ActionError> {
        let Some(owner) = controller_of(&pod.metadata) else { return Ok(None) };
        let described = describe(owner);
        let Some(resource) = selecting_kind(owner) else {
            return Ok(Some(Selector { owner: described, keys: None }));
        };
        let read =
            cluster.get_dynamic(&resource, self.namespace, &owner.name, input.deadline).await;
        match read {
            Ok(found) => Ok(Some(Selector::of(&described, &found))),
            // The garbage collector deletes the pod.
            Err(error) if error.code == Code::TargetNotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// From the object, and what selects pods by their labels, to the plan.
    pub(crate) fn decide(
        self,
        found: &DynamicObject,
        selector: Option<&Selector>,
        input: &PlanInput,
    ) -> Result<Plan, ActionError> {
        let (target, metadata) = (self.target(), &found.metadata);
        let object = describe_target(&target);
        let completion = CompletionSpec::Known(Completion::Immediate(format!(
            "only the metadata of {object} changes; no pod is replaced"
        )));
        let did =
            format!("{} changed at {}; {}.", self.what(), rfc3339_millis(input.at), self.how());
        if input.has_changed(metadata)? {
            return Ok(Plan::already_applied(target, metadata, did, completion));
        }
        input.check_found(&target, metadata)?;
        let differences = self.differences(metadata);
        refuse_selected(&target, &differences, selector)
            .map_err(|refusal| refusal.object_uid(metadata.uid.as_deref()))?;
        if differences.is_empty() {
            let decision = Decision::NoOp(format!("{} have these values already.", self.what()));
            return Ok(Plan::new(target, metadata, decision, completion));
        }
        let operations = self.operations(metadata, &differences);
        let (resource, mark) = (self.kind.resource(), &input.mark);
        let precondition = input.precondition.as_ref();
        let requests = AppliedRequests::from_metadata(metadata);
        let (effect, marked) = match self.kind.counts_annotations() {
            true => (
                Effect::patch(resource, metadata, mark, precondition, operations),
                requests.change(mark),
            ),
            false => (
                Effect::metadata_patch(resource, metadata, mark, precondition, operations),
                requests.change_beside(mark),
            ),
        };
        let decision = Decision::apply(effect, did, self.would());
        let mut plan = Plan::new(target, metadata, decision, completion);
        plan.changes = differences.iter().map(|it| self.change(it)).chain([marked]).collect();
        plan.warnings = self.warnings(metadata);
        Ok(plan)
    }

    fn map(self, metadata: &ObjectMeta) -> Option<&BTreeMap<String, String>> {
        match self.of {
            KeysOf::Labels => metadata.labels.as_ref(),
            _ => metadata.annotations.as_ref(),
        }
    }

    fn field(self) -> &'static str {
        match self.of {
            KeysOf::Labels => "labels",
            _ => "annotations",
        }
    }

    fn differences(self, metadata: &'a ObjectMeta) -> Vec<Difference<'a>> {
        let now = |key: &str| self.map(metadata)?.get(key).map(String::as_str);
        let set = self.set.iter().map(|(key, value)| (key, Some(value.as_str())));
        let wanted = set.chain(self.remove.iter().map(|key| (key, None)));
        let entries = wanted.map(|(key, to)| Difference { key, from: now(key), to });
        entries.filter(|entry| entry.from != entry.to).collect()
    }

    /// Sets and removes what differs. Each annotation must be as it was read; every patch tests all labels.
    fn operations(self, metadata: &ObjectMeta, differences: &[Difference]) -> Vec<PatchOperation> {
        let path = ["metadata", self.field()];
        let is_empty = self.map(metadata).is_none_or(BTreeMap::is_empty);
        if self.of == KeysOf::Labels && is_empty {
            let set = differences.iter().filter_map(|it| Some((it.key, it.to?.to_owned())));
            return set_entries(&path, None, &set.collect::<Vec<_>>());
        }
        let of_entry = |entry: &Difference| {
            let path = [path[0], path[1], entry.key];
            let set = match entry.to {
                Some(value) => add(&path, value.into()),
                None => remove(&path),
            };
            [test(&path, entry.from.into()), set]
        };
        differences.iter().flat_map(of_entry).collect()
    }

    fn change(self, entry: &Difference) -> Change {
        let or_null = |value: Option<String>| value.map_or(Value::Null, Value::from);
        // An annotation may have a secret, which a caller that may simulate must not read here.
        let before = |value: &str| match self.of {
            KeysOf::Annotations => format!("{} characters", value.chars().count()),
            _ => value.to_owned(),
        };
        Change {
            path: PointerBuf::from_tokens(["metadata", self.field(), entry.key]).to_string(),
            from: or_null(entry.from.map(before)),
            to: or_null(entry.to.map(shown)),
        }
    }

    /// For example `The labels of Deployment 'web'`.
    fn what(self) -> String {
        format!("The {} of {}", self.field(), describe_target(&self.target()))
    }

    /// For example `set: a, b; removed: c`.
    fn how(self) -> String {
        let list = |verb: &str, keys: Vec<&str>| {
            (!keys.is_empty()).then(|| format!("{verb}: {}", keys.join(", ")))
        };
        let set = list("set", self.set.keys().map(|key| &**key).collect());
        let removed = list("removed", self.remove.iter().map(|key| &**key).collect());
        set.into_iter().chain(removed).collect::<Vec<_>>().join("; ")
    }

    fn would(self) -> String {
        let what = self.what().replacen("The", "the", 1);
        format!("Simulated: {what} would be changed; {}.", self.how())
    }

    fn warnings(self, metadata: &ObjectMeta) -> Vec<String> {
        let reverted = gitops::revert_warning(metadata, &format!("these {}", self.field()));
        let of_pod = match (self.kind, controller_of(metadata)) {
            (LabelledKind::Pod, Some(owner)) => Some(format!(
                "only this pod is changed: one that replaces it comes from the template of {}",
                describe(owner)
            )),
            (LabelledKind::Pod, None) if self.of == KeysOf::Labels && !self.set.is_empty() => Some(
                "the pod has no controller: one whose selector its labels match adopts it, and may delete it as one too \
                 many"
                    .to_owned(),
            ),
            _ => None,
        };
        let selected = (self.kind == LabelledKind::Pod && self.of == KeysOf::Labels).then(|| {
            "Services, network policies and disruption budgets that select pods by these labels select this pod, or no \
             longer do"
                .to_owned()
        });
        reverted.into_iter().chain(of_pod).chain(selected).collect()
    }
}

impl Selector {
    /// The selector in the spec of an object.
    fn of(owner: &str, object: &DynamicObject) -> Self {
        let selector = &object.data["spec"]["selector"];
        let labels = selector["matchLabels"].as_object().into_iter().flatten();
        let labels = labels.map(|(key, _)| key.clone());
        let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
        let expressions = expressions.filter_map(|it| it["key"].as_str().map(str::to_owned));
        Selector { owner: owner.to_owned(), keys: Some(labels.chain(expressions).collect()) }
    }
}

/// The kind of a controller that selects its pods by `spec.selector`, and whose kind this program reads.
fn selecting_kind(owner: &OwnerReference) -> Option<ApiResource> {
    match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => Some(ApiResource::erase::<ReplicaSet>(&())),
        ("apps/v1", "StatefulSet") => Some(ApiResource::erase::<StatefulSet>(&())),
        ("apps/v1", "DaemonSet") => Some(ApiResource::erase::<DaemonSet>(&())),
        ("batch/v1", "Job") => Some(ApiResource::erase::<Job>(&())),
        _ => None,
    }
}

/// Refuses to change a label by which pods are selected: the controller would lose the pod and make another one.
fn refuse_selected(
    target: &Target,
    differences: &[Difference],
    selector: Option<&Selector>,
) -> Result<(), ActionError> {
    let Some(Selector { owner, keys }) = selector else { return Ok(()) };
    let is_selected =
        |key: &str| keys.as_ref().is_none_or(|keys| keys.iter().any(|selected| selected == key));
    let Some(entry) = differences.iter().find(|entry| is_selected(entry.key)) else {
        return Ok(());
    };
    let key = entry.key;
    let detail = match keys {
        Some(_) => format!(
            "{owner} selects its pods by the label '{key}', so that of {target} is not changed"
        ),
        None => format!(
            "by which labels {owner} selects its pods is unknown, so the label '{key}' of {target} is not changed"
        ),
    };
    Err(ActionError::new(Code::TargetManaged, detail)
        .with_hint("use another key, or an annotation, by which no controller selects"))
}

/// For example `Deployment 'web'`.
fn describe_target(target: &Target) -> String {
    format!("{} '{}'", target.kind, target.name)
}

/// A value, shortened.
fn shown(value: &str) -> String {
    match value.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a test asks for.
    struct Wanted {
        of: KeysOf,
        kind: LabelledKind,
        set: BTreeMap<QualifiedName, String>,
        remove: Vec<QualifiedName>,
    }

    fn key(text: &str) -> QualifiedName {
        text.to_owned().try_into().expect("is a key")
    }

    fn wanted(of: KeysOf, kind: LabelledKind, set: &[(&str, &str)], remove: &[&str]) -> Wanted {
        let set = set.iter().map(|(name, value)| (key(name), (*value).to_owned())).collect();
        Wanted { of, kind, set, remove: remove.iter().map(|name| key(name)).collect() }
    }

    impl Wanted {
        fn with<T>(&self, then: impl FnOnce(Entries<'_>) -> T) -> T {
            let name = ObjectName::try_from("web".to_owned()).expect("is a name");
            let namespace = Namespace::try_from("shop".to_owned()).expect("is a name");
            let Wanted { of, kind, set, remove } = self;
            then(Entries { of: *of, kind: *kind, name: &name, namespace: &namespace, set, remove })
        }

        fn decide(&self, yaml: &str, selector: Option<&Selector>) -> Result<Plan, ActionError> {
            self.with(|entries| entries.decide(&object(yaml), selector, &PlanInput::example()))
        }
    }

    fn object(yaml: &str) -> DynamicObject {
        let common = "name: web, namespace: shop, uid: u1, resourceVersion: '7'";
        serde_yaml_ng::from_str(&yaml.replace("METADATA", common)).expect("is an object")
    }

    const LABELLED: &str =
        "metadata: {METADATA, generation: 3, labels: {app: web, team: a}, annotations: {note: x}}";

    fn operations(plan: &Plan) -> Vec<Value> {
        let effect = plan.expect_change().0;
        effect.operations()
    }

    #[test]
    fn only_what_differs_is_changed_and_must_be_as_it_was_read() {
        let (set, remove) = ([("team", "b"), ("app", "web")], ["old", "note"]);
        let labels = wanted(KeysOf::Labels, LabelledKind::Deployment, &set, &remove);
        let plan = labels.decide(LABELLED, None).expect("is planned");
        let last = json!({ "op": "add", "path": "/metadata/labels/team", "value": "b" });
        let all = json!({ "op": "test", "path": "/metadata/labels", "value": { "app": "web", "team": "a" } });
        assert_eq!(operations(&plan).last(), Some(&last));
        assert!(operations(&plan).contains(&all));
        assert_eq!(plan.changes.len(), 2);
        assert_eq!((&plan.changes[0].from, &plan.changes[0].to), (&json!("a"), &json!("b")));
        let (_, did, would) = plan.expect_change();
        assert_eq!(
            did,
            "The labels of Deployment 'web' changed at 2026-01-31T12:00:00.987Z; set: app, team; removed: old, note."
        );
        assert!(would.starts_with("Simulated: the labels of Deployment 'web' would be"), "{would}");

        let annotations =
            wanted(KeysOf::Annotations, LabelledKind::Deployment, &[("a/b", "1")], &["note"]);
        let plan = annotations.decide(LABELLED, None).expect("is planned");
        let read = operations(&plan);
        for expected in [
            json!({ "op": "test", "path": "/metadata/annotations/a~1b", "value": null }),
            json!({ "op": "add", "path": "/metadata/annotations/a~1b", "value": "1" }),
            json!({ "op": "test", "path": "/metadata/annotations/note", "value": "x" }),
            json!({ "op": "remove", "path": "/metadata/annotations/note" }),
        ] {
            assert!(read.contains(&expected), "{read:?}");
        }
        assert_eq!(plan.changes[0].path, "/metadata/annotations/a~1b");
    }

    #[test]
    fn a_patch_makes_the_object_what_is_wanted_whatever_it_had() {
        for before in [
            LABELLED,
            "metadata: {METADATA, generation: 3}",
            "metadata: {METADATA, annotations: {a: b}}",
        ] {
            for (of, field) in [(KeysOf::Labels, "labels"), (KeysOf::Annotations, "annotations")] {
                let set = [("team", "b"), ("x.io/y", "c")];
                let plan =
                    wanted(of, LabelledKind::StatefulSet, &set, &["note"]).decide(before, None);
                let changes: Vec<_> = operations(&plan.expect("is planned"))
                    .into_iter()
                    // `json_patch` does not regard a missing value as null.
                    .filter(|it| it["op"] != "test")
                    .collect();
                let patch: json_patch::Patch =
                    serde_json::from_value(json!(changes)).expect("is a patch");
                let mut after = json!(object(before));
                json_patch::patch(&mut after, &patch).expect("is patched");
                let map = &after["metadata"][field];
                assert_eq!((&map["team"], &map["x.io/y"]), (&json!("b"), &json!("c")), "{after}");
                assert!(map.get("note").is_none(), "{after}");
            }
        }
    }

    #[test]
    fn a_mark_counts_as_a_generation_only_where_the_kind_counts_annotations() {
        for (kind, generation, number) in
            [(LabelledKind::Deployment, Some(3), "4"), (LabelledKind::StatefulSet, None, "0")]
        {
            let wanted = wanted(KeysOf::Labels, kind, &[("team", "b")], &[]);
            let plan = wanted.decide(LABELLED, None).expect("is planned");
            let effect = plan.expect_change().0;
            assert_eq!(effect.generation, generation, "{kind:?}");
            let mark = plan.changes.last().expect("is there");
            assert_eq!(mark.to, json!(format!("{number}:r1@d1")), "{kind:?}");
        }
    }

    #[test]
    fn an_object_that_is_so_already_is_left() {
        let wanted = wanted(KeysOf::Labels, LabelledKind::Deployment, &[("team", "a")], &["old"]);
        let plan = wanted.decide(LABELLED, None).expect("is planned");
        assert!(matches!(plan.decision, Decision::NoOp(_)), "{:?}", plan.decision);
        assert!(plan.changes.is_empty() && plan.warnings.is_empty());
    }

    #[test]
    fn a_request_is_not_applied_twice() {
        let marked = "metadata: {METADATA, annotations: {action-executor.dev/requests: '3:r1@d1'}}";
        let wanted = wanted(KeysOf::Labels, LabelledKind::StatefulSet, &[("team", "a")], &[]);
        let plan = wanted.decide(marked, None).expect("is planned");
        assert!(matches!(plan.decision, Decision::AlreadyApplied(..)), "{:?}", plan.decision);
    }

    #[test]
    fn a_label_by_which_pods_are_selected_is_refused() {
        let set = object(
            "metadata: {METADATA}\nspec: {selector: {matchLabels: {app: web}, matchExpressions: [{key: tier, \
             operator: Exists}]}}",
        );
        let known = Selector::of("ReplicaSet 'web-5d4f'", &set);
        let unknown = Selector { owner: "CloneSet 'web'".to_owned(), keys: None };
        for (selector, set, remove, is_refused) in [
            (&known, vec![("app", "other")], vec![], true),
            (&known, vec![], vec!["app"], true),
            (&known, vec![("tier", "x")], vec![], true),
            (&known, vec![("team", "b")], vec![], false),
            // It is so already.
            (&known, vec![("app", "web")], vec![], false),
            (&unknown, vec![("team", "b")], vec![], true),
        ] {
            let wanted = wanted(KeysOf::Labels, LabelledKind::Pod, &set, &remove);
            match wanted.decide(LABELLED, Some(selector)) {
                Err(error) => {
                    assert!(is_refused, "{error:?}");
                    assert_eq!(error.code, Code::TargetManaged);
                    assert!(error.detail.contains(&selector.owner), "{}", error.detail);
                }
                Ok(_) => assert!(!is_refused, "{set:?} {remove:?}"),
            }
        }
    }

    #[test]
    fn each_wrong_parameter_is_named() {
        let too_many: Vec<_> = (0..21).map(|number| format!("k{number}")).collect();
        let too_many: Vec<_> = too_many.iter().map(|name| (name.as_str(), "")).collect();
        let long = "x".repeat(4097);
        for (of, set, remove, field) in [
            (KeysOf::Labels, vec![], vec![], Some("parameters.set")),
            (KeysOf::Labels, too_many, vec![], Some("parameters.set")),
            (KeysOf::Labels, vec![("a", "b c")], vec![], Some("parameters.set.a")),
            (KeysOf::Annotations, vec![("a", "b c")], vec![], None),
            (KeysOf::Annotations, vec![("a", long.as_str())], vec![], Some("parameters.set.a")),
            (KeysOf::Labels, vec![("a", "b")], vec!["a"], Some("parameters.remove[0]")),
            (KeysOf::Labels, vec![], vec!["a", "a"], Some("parameters.remove[1]")),
            (KeysOf::Labels, vec![], vec!["pod-template-hash"], Some("parameters.remove[0]")),
            (
                KeysOf::Annotations,
                vec![],
                vec!["action-executor.dev/requests"],
                Some("parameters.remove[0]"),
            ),
        ] {
            let checked = wanted(of, LabelledKind::Pod, &set, &remove).with(|it| it.check());
            assert_eq!(checked.err().and_then(|error| error.field).as_deref(), field);
        }
    }

    #[test]
    fn consequences_for_a_pod_are_warned_of() {
        let warnings = |of, metadata: &str| {
            let pod = wanted(of, LabelledKind::Pod, &[("team", "b")], &[]);
            pod.decide(metadata, None).expect("is planned").warnings.join("; ")
        };
        let owned = "metadata: {METADATA, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, \
                     uid: r, controller: true}]}";
        let text = warnings(KeysOf::Labels, owned);
        assert!(
            text.contains("template of ReplicaSet 'web-5d4f'") && text.contains("Services"),
            "{text}"
        );
        let text = warnings(KeysOf::Labels, "metadata: {METADATA}");
        assert!(text.contains("adopts it"), "{text}");
        assert_eq!(warnings(KeysOf::Annotations, "metadata: {METADATA}"), "");
        let synced =
            "metadata: {METADATA, annotations: {argocd.argoproj.io/tracking-id: 'shop:a'}}";
        assert!(
            warnings(KeysOf::Annotations, synced).contains("if the source sets these annotations")
        );
    }

    #[test]
    fn a_long_value_is_shortened_where_it_is_shown() {
        let set = [("note", "ü".repeat(300))];
        let set: Vec<_> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let plan = wanted(KeysOf::Annotations, LabelledKind::Job, &set, &[]).decide(LABELLED, None);
        let shown = plan.expect("is planned").changes[0].to.to_string();
        assert!(shown.ends_with("...\"") && shown.chars().count() < 270, "{shown}");
    }
}
