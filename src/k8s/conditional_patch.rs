//! A JSON Patch (RFC 6902) that changes an object only if it still is as it was decided on. Pure.
//!
//! Controllers and kubelets write an object's status many times a second, most of all while somebody wants to
//! act on it. Each write changes `metadata.resourceVersion`, so a patch that names it may never succeed. The
//! `test` operations here name what a decision rests on instead:
//!
//! - `metadata.uid`: the object, and not another one of its name;
//! - the annotation with the last requests: no other request changed it since, and not this one either, so a
//!   patch that is sent twice takes effect once;
//! - `metadata.generation`, where the kind has one: the whole spec, with the pod template, and whether the
//!   object is being deleted; of a Deployment its annotations too;
//! - `metadata.labels`: what the policy decided by labels;
//! - `metadata.resourceVersion` only if the request's precondition names it.
//!
//! A patch without resourceVersion is repeated by the API server itself when a status writer comes between
//! (`apiserver/pkg/endpoints/handlers/patch.go`), and the tests are evaluated each time. A failed test is 422.
//!
//! What is not tested: the status, which only causes warnings; other annotations, which an action shows and does
//! not decide on; other objects (autoscalers, disruption budgets, revisions), which no patch of this object can
//! test. A revision does not change once it exists.

use std::collections::BTreeMap;

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation,
    jsonptr::PointerBuf,
};
use kube::core::ObjectMeta;
use serde_json::{Value, json};

use crate::{
    contract::precondition::Precondition,
    k8s::applied_requests::{AppliedRequests, REQUESTS_ANNOTATION},
};

/// The patch that makes `change` to the object with this metadata, and adds the request's mark to it.
pub(crate) fn patch(
    metadata: &ObjectMeta,
    request_id: &str,
    precondition: Option<&Precondition>,
    change: Vec<PatchOperation>,
) -> Patch {
    let marked = AppliedRequests::from_metadata(metadata).push(request_id);
    marking_patch(metadata, marked, precondition, change)
}

/// The same for a change that leaves the object's generation as it is.
pub(crate) fn patch_beside(
    metadata: &ObjectMeta,
    request_id: &str,
    precondition: Option<&Precondition>,
    change: Vec<PatchOperation>,
) -> Patch {
    let marked = AppliedRequests::from_metadata(metadata).push_beside(request_id);
    marking_patch(metadata, marked, precondition, change)
}

fn marking_patch(
    metadata: &ObjectMeta,
    marked: String,
    precondition: Option<&Precondition>,
    change: Vec<PatchOperation>,
) -> Patch {
    let annotations = metadata.annotations.as_ref();
    // A test within a map that is missing fails; that the map is missing is tested where it is created.
    let known = non_empty(annotations).map(|all| {
        let value = json!(all.get(REQUESTS_ANNOTATION));
        test(&["metadata", "annotations", REQUESTS_ANNOTATION], value)
    });
    let mut operations = tests(metadata, precondition);
    operations.extend(known);
    let mark = [(REQUESTS_ANNOTATION, marked)];
    operations.extend(set_entries(&["metadata", "annotations"], annotations, &mark));
    operations.extend(change);
    Patch(operations)
}

/// The tests that the object is the one with this metadata, as far as each change rests on it.
pub(crate) fn tests(
    metadata: &ObjectMeta,
    precondition: Option<&Precondition>,
) -> Vec<PatchOperation> {
    let version = precondition.and_then(|it| it.resource_version.as_deref());
    let generation = metadata.generation.map(|it| test(&["metadata", "generation"], json!(it)));
    let version = version.map(|it| test(&["metadata", "resourceVersion"], json!(it)));
    let mut operations = vec![
        test(&["metadata", "uid"], json!(metadata.uid)),
        test(&["metadata", "labels"], json!(non_empty(metadata.labels.as_ref()))),
    ];
    operations.extend(generation);
    operations.extend(version);
    operations
}

/// The object's annotations after a patch.
pub(crate) fn annotations_after(metadata: &ObjectMeta, patch: &Patch) -> BTreeMap<String, String> {
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    for operation in &patch.0 {
        let (path, value) = match operation {
            PatchOperation::Add(AddOperation { path, value })
            | PatchOperation::Replace(ReplaceOperation { path, value }) => (path, Some(value)),
            PatchOperation::Remove(RemoveOperation { path }) => (path, None),
            _ => continue,
        };
        let tokens: Vec<_> = path.tokens().map(|token| token.decoded().into_owned()).collect();
        match (tokens.as_slice(), value) {
            ([metadata, all], value) if metadata == "metadata" && all == "annotations" => {
                annotations = serde_json::from_value(json!(value)).unwrap_or_default();
            }
            ([metadata, all, key], value) if metadata == "metadata" && all == "annotations" => {
                match value.and_then(Value::as_str) {
                    Some(value) => annotations.insert(key.clone(), value.to_owned()),
                    None => annotations.remove(key),
                };
            }
            _ => {}
        }
    }
    annotations
}

/// The object after these operations, whose tests hold. It is unchanged if they do not fit it.
pub(crate) fn after(mut object: Value, operations: &[PatchOperation]) -> Value {
    // To the API server a value that is missing is null, to the crate it is an error.
    let is_change = |operation: &&PatchOperation| !matches!(operation, PatchOperation::Test(_));
    let changes: Vec<_> = operations.iter().filter(is_change).cloned().collect();
    // One that does not fit changes nothing, and the API server refuses it too.
    let _ = json_patch::patch(&mut object, &changes);
    object
}

/// The paths at which a patch sets a value, with the value.
pub(crate) fn values_set(patch: &Patch) -> impl Iterator<Item = (&str, &Value)> {
    patch.0.iter().filter_map(|operation| match operation {
        PatchOperation::Add(AddOperation { path, value })
        | PatchOperation::Replace(ReplaceOperation { path, value }) => Some((path.as_str(), value)),
        _ => None,
    })
}

/// Sets entries of the map at this path, which may not exist yet. If it is created, it must not have been created
/// by someone else since, whose entries would be lost.
pub(crate) fn set_entries(
    path: &[&str],
    map: Option<&BTreeMap<String, String>>,
    entries: &[(&str, String)],
) -> Vec<PatchOperation> {
    if non_empty(map).is_none() {
        let entries: BTreeMap<&str, &String> = entries.iter().map(|(key, it)| (*key, it)).collect();
        return vec![test(path, Value::Null), add(path, json!(entries))];
    }
    entries.iter().map(|(key, value)| add(&[path, &[*key]].concat(), json!(value))).collect()
}

/// The API server leaves out an empty map.
fn non_empty(map: Option<&BTreeMap<String, String>>) -> Option<&BTreeMap<String, String>> {
    map.filter(|map| !map.is_empty())
}

/// Adds or replaces a value.
pub(crate) fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
}

/// Removes a value, which must exist.
pub(crate) fn remove(path: &[&str]) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path: PointerBuf::from_tokens(path.iter().copied()) })
}

/// Requires a value. The API server regards a missing value as null, if what contains it is there.
pub(crate) fn test(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation {
        path: PointerBuf::from_tokens(path.iter().copied()),
        value,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn metadata(yaml: &str) -> ObjectMeta {
        serde_yaml_ng::from_str(yaml).expect("is metadata")
    }

    fn paused(metadata: &ObjectMeta) -> Patch {
        patch(metadata, "r1", None, vec![add(&["spec", "paused"], json!(true))])
    }

    #[test]
    fn a_patch_tests_what_the_decision_rests_on_and_adds_the_requests_id() {
        let metadata = metadata(
            "{name: web, uid: u1, resourceVersion: '7', generation: 3, labels: {app: web}, \
             annotations: {action-executor.dev/requests: '4:r0'}}",
        );
        let path = "/metadata/annotations/action-executor.dev~1requests";
        assert_eq!(
            json!(paused(&metadata)),
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "u1" },
                { "op": "test", "path": "/metadata/labels", "value": { "app": "web" } },
                { "op": "test", "path": "/metadata/generation", "value": 3 },
                { "op": "test", "path": path, "value": "4:r0" },
                { "op": "add", "path": path, "value": "4:r0 5:r1" },
                { "op": "add", "path": "/spec/paused", "value": true },
            ])
        );
    }

    #[test]
    fn the_annotations_after_a_patch_are_those_of_the_object() {
        for (before, after) in [
            ("{}", "{action-executor.dev/requests: '1:r1', b/c: '2'}"),
            ("{annotations: {a: '1'}}", "{a: '1', action-executor.dev/requests: '1:r1', b/c: '2'}"),
            ("{annotations: {d: '1'}}", "{action-executor.dev/requests: '1:r1', b/c: '2'}"),
        ] {
            let metadata = metadata(before);
            let annotation = |key: &str| ["metadata", "annotations", key].map(str::to_owned);
            let [removed, added] = ["d", "b/c"].map(annotation);
            let [removed, added] = [&removed, &added].map(|it| it.each_ref().map(String::as_str));
            let mut change = vec![add(&added, json!("2"))];
            change.extend(before.contains("d:").then(|| remove(&removed)));
            let after: BTreeMap<String, String> = serde_yaml_ng::from_str(after).expect("is one");
            assert_eq!(annotations_after(&metadata, &patch(&metadata, "r1", None, change)), after);
        }
    }

    #[test]
    fn annotations_are_created_only_where_there_are_none() {
        let patch = json!(paused(&metadata("{name: web, uid: u1}")));
        let path = "/metadata/annotations/action-executor.dev~1requests";
        assert_eq!(
            patch,
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "u1" },
                { "op": "test", "path": "/metadata/labels", "value": null },
                { "op": "test", "path": "/metadata/annotations", "value": null },
                { "op": "add", "path": "/metadata/annotations", "value": {
                    "action-executor.dev/requests": "1:r1",
                }},
                { "op": "add", "path": "/spec/paused", "value": true },
            ])
        );
        let with_others = json!(paused(&metadata("{name: web, uid: u1, annotations: {a: b}}")));
        assert_eq!(with_others[2], json!({ "op": "test", "path": path, "value": null }));
        assert_eq!(with_others[3], json!({ "op": "add", "path": path, "value": "1:r1" }));
    }

    #[test]
    fn a_resource_version_is_tested_if_the_precondition_names_it() {
        let opaque = |text: &str| Some(text.to_owned().try_into().expect("is opaque"));
        let with_version = Precondition { uid: None, resource_version: opaque("7") };
        let with_uid = Precondition { uid: opaque("u1"), resource_version: None };
        let metadata = metadata("{name: web, uid: u1, resourceVersion: '7'}");
        for (precondition, expected) in
            [(None, false), (Some(&with_uid), false), (Some(&with_version), true)]
        {
            let text = json!(patch(&metadata, "r1", precondition, Vec::new())).to_string();
            assert_eq!(text.contains("/metadata/resourceVersion"), expected, "{precondition:?}");
        }
    }

    /// What another writer does to the object between our read and our write.
    #[derive(Clone, Copy, Debug)]
    enum Writer {
        /// A controller: resourceVersion alone.
        Status,
        /// The Deployment controller: an annotation of its own.
        Annotation,
        Spec,
        Label,
        /// Another request of this program, which may not change the generation.
        Request,
        /// A deletion and a creation with the same name.
        Recreation,
    }

    impl Writer {
        /// Whether it changes what a decision rests on.
        fn changes_the_decision(self) -> bool {
            !matches!(self, Writer::Status | Writer::Annotation)
        }

        fn write(self, object: &mut Value, number: usize) {
            let metadata = &mut object["metadata"];
            metadata["resourceVersion"] = json!(format!("v{number}"));
            match self {
                Writer::Status => {}
                Writer::Annotation => {
                    metadata["annotations"]["revision"] = json!(number.to_string())
                }
                Writer::Spec => metadata["generation"] = json!(100 + number),
                Writer::Label => metadata["labels"]["protected"] = json!(number.to_string()),
                Writer::Request => {
                    let now: ObjectMeta = serde_json::from_value(metadata.clone()).expect("is one");
                    let requests = AppliedRequests::from_metadata(&now).push("other");
                    metadata["annotations"][REQUESTS_ANNOTATION] = json!(requests);
                }
                Writer::Recreation => metadata["uid"] = json!(format!("new-{number}")),
            }
        }
    }

    fn writers() -> impl Strategy<Value = Vec<Writer>> {
        use Writer::*;
        prop::collection::vec(
            prop::sample::select(vec![Status, Annotation, Spec, Label, Request, Recreation]),
            0..6,
        )
    }

    proptest! {
        /// The patch takes effect exactly if nobody changed what the decision rests on, whatever else happened
        /// between, and at most once.
        #[test]
        fn a_patch_takes_effect_once_and_only_on_what_was_decided_on(writers in writers()) {
            let mut object = json!({
                "metadata": {
                    "name": "web", "uid": "u1", "resourceVersion": "7", "generation": 3,
                    "labels": { "app": "web" },
                    "annotations": { "revision": "1", REQUESTS_ANNOTATION: "1:r0" },
                },
                "spec": {},
            });
            let found: ObjectMeta =
                serde_json::from_value(object["metadata"].clone()).expect("is metadata");
            let patch = paused(&found);
            for (number, writer) in writers.iter().enumerate() {
                writer.write(&mut object, number);
            }
            let applied = json_patch::patch(&mut object, &patch).is_ok();
            prop_assert_eq!(applied, !writers.iter().any(|it| it.changes_the_decision()));
            prop_assert_eq!(object["spec"]["paused"] == true, applied);
            prop_assert!(json_patch::patch(&mut object, &patch).is_err(), "a second time");
        }
    }
}
